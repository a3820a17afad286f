"""Every rule is broken by a command line, and is then the one that refuses it."""

import importlib.util
import json
import os

import pytest

from settings import arguments
from settings.errors import Refused
from settings.flags import defaults
from settings.rules import RULES, broken

pytestmark = pytest.mark.core

STRUCTURED = ["--prune_type", "structured"]
COMPACT = [*STRUCTURED, "--compact"]
WEIGHTS = ["--prune_type", "unstructured"]
DETECTOR = ["--dataset", "voc", "--arch", "ssd300_vgg16"]
# for each rule a command line that breaks it; {here} is a folder with the files `file`, `old.pt2` and `old.onnx`
BREAKS = {
    "names_are_known": ["--lr_schedule", "stepp"],
    "own_file_has_the_function": ["--arch", "absent.py:build"],
    "outputs_and_channels_are_the_data_sets": ["--arch", "resnet20(classes=3)"],
    "typed_flags_have_an_effect": ["--prune_rate", "0.6"],
    "criterion_scores_these_pieces": ["--prune_type", "unstructured", "--prune_imp", "FPGM"],
    "a_cut_after_training_leaves_epochs": [*STRUCTURED, "--prune_phase", "after", "--prune_until", "1"],
    "scope_compares_these_pieces": ["--prune_type", "unstructured", "--prune_scope", "preset(name='VGG-16-A')"],
    "scope_compares_these_scores": ["--prune_type", "unstructured", "--prune_scope", "deviation", "--prune_imp", "syn"],
    "groups_are_not_single_layers": [*STRUCTURED, "--prune_scope", "sensitivity(file='x')", "--residual", "grouped"],
    "cut_filters_have_maps_to_return_by": [*STRUCTURED, "--prune_imp", "APoZ", "--prune_gate", "weight"],
    "initial_weights_are_not_those_of_now": [*WEIGHTS, "--prune_imp", "from_initial", "--prune_phase", "init"],
    "init_says_which_shortcut": ["--init", "{here}", "--shortcut", "pad"],
    "one_flag_says_when": [*STRUCTURED, "--rounds", "3", "--prune_phase", "init"],
    "weights_are_trained_or_fresh": ["--init", "{here}", "--scratch", "{here}/file"],
    "init_exists": ["--init", "nothing"],
    "teacher_exists": ["--teacher", "nothing"],
    "one_flag_weighs_the_penalty": ["--reg", "reg_cov(weight=0.5)", "--odecay", "0.7"],
    "a_unit_has_one_gate": [*STRUCTURED, "--reg", "sss"],
    "scales_are_put_on_whole_networks": ["--widths", "{here}", "--reg", "sss"],
    "filters_that_are_cut_by_a_procedure": ["--procedure", "slimming"],
    "soft_masks_move": ["--recipe", "sfp", "--prune_phase", "init"],
    "soft_masks_are_of_filters": ["--recipe", "sfp", "--prune_type", "unstructured"],
    "tensorboard_is_installed": ["--tensorboard"],
    "out_dir_is_named": ["--out_dir", ""],
    "one_flag_names_the_network": ["--arch", "vgg16", "--layers", "20"],
    "freezing_leaves_epochs": ["--init", "{here}", "--epochs", "2", "--freeze", "2"],
    "imagenet_has_three_channels": ["--dataset", "digits", "--channels", "1", "--normalise", "imagenet"],
    "warmup_leaves_epochs": ["--epochs", "5", "--warmup_epochs", "5"],
    "one_flag_says_how_much": [*STRUCTURED, "--target_macs", "0.5", "--prune_rate", "0.5"],
    "rounded_layers_have_one_width": [
        *(*STRUCTURED, "--layers", "20", "--shortcut", "pad", "--residual", "grouped", "--round_to", "8")
    ],
    "one_flag_says_how_it_goes": ["--scratch", "{here}/file", "--procedure", "once"],
    "scratch_says_which_network": ["--scratch", "{here}/file", "--layers", "20"],
    "scratch_prunes_nothing": ["--scratch", "{here}/file", *STRUCTURED],
    "scratch_exists": ["--scratch", "nothing.pt"],
    "scratch_options_have_an_effect": ["--procedure", "scratch(of='{here}/file', cap=2)"],
    "widths_exist": ["--widths", "nothing"],
    "widths_are_of_fresh_weights": ["--widths", "{here}", "--init", "{here}"],
    "widths_prune_nothing": ["--widths", "{here}", *STRUCTURED],
    "patterns_exist": ["--pattern", "nothing"],
    "a_pattern_is_of_fresh_weights": ["--pattern", "{here}", "--init", "{here}"],
    "a_pattern_is_all_that_cuts": ["--pattern", "{here}", "--procedure", "rounds"],
    "recipe_and_procedure_agree": ["--recipe", "paper", "--procedure", "multilayer"],
    "a_procedure_that_cuts_has_a_penalty": [*STRUCTURED, "--procedure", "slimming"],
    "a_procedure_that_selects_has_its_criterion": ["--procedure", "multilayer", "--prune_imp", "L1"],
    "a_procedure_that_cuts_prunes": ["--procedure", "rounds"],
    "one_says_how_much_goes": [*STRUCTURED, "--procedure", "rounds", "--prune_imp", "PFA(counts='KL')"],
    "places_in_training_are_read": [*WEIGHTS, "--procedure", "rounds(to='5')"],
    "rounds_without_rewinding_go_nowhere": [*WEIGHTS, "--procedure", "rounds(rewind='none', to='2it')"],
    "a_classifier_has_weights_to_cut": [*STRUCTURED, "--procedure", "rounds(classifier=0.5)"],
    "tickets_exist": [*WEIGHTS, "--procedure", "control(of='nothing')"],
    "tickets_say_how_many_and_from_where": ["--procedure", "connectivity(number=2)"],
    "copies_have_one_mask": [*WEIGHTS, "--procedure", "connectivity"],
    "unlabelled_images_are_named": ["--procedure", "noisy_student"],
    "unlabelled_images_exist": ["--procedure", "noisy_student", "--unlabelled", "nothing"],
    "students_have_fresh_weights": ["--procedure", "noisy_student", "--labelled", "0.1", "--init", "{here}"],
    "the_last_student_alone_is_pruned": [
        *(*STRUCTURED, "--prune_gate", "hard_concrete", "--procedure", "noisy_student", "--labelled", "0.1")
    ],
    "students_are_networks_for_the_data": ["--procedure", "noisy_student(student='resnet33')", "--labelled", "0.1"],
    "files_of_students_exist": ["--procedure", "noisy_student(student='mynet.py:build')", "--labelled", "0.1"],
    "every_student_has_a_generation": [
        *("--procedure", "noisy_student(generations=1, student='resnet32, resnet44')", "--labelled", "0.1")
    ],
    "a_dense_teacher_is_the_network_itself": [
        *(*STRUCTURED, "--prune_phase", "after", "--procedure", "noisy_student(student='resnet32')", "--labelled", "0.1"),
        *("--teacher", "dense"),
    ],
    "without_training_there_is_a_network": ["--epochs", "0"],
    "without_training_nothing_is_learned": ["--init", "{here}", "--epochs", "0", "--reg", "l1"],
    "a_hint_is_of_a_teacher": ["--procedure", "fitnets"],
    "the_network_is_for_the_data": ["--arch", "ssd300_vgg16"],
    "whole_pictures_are_in_files": ["--augment", "resized_crop(of='file')"],
    "whole_images_have_one_class": [*DETECTOR, "--labelled", "0.1"],
    "a_form_on_integers_has_one_output": [*DETECTOR, "--form", "int8"],
    "mixed_images_have_two_labels": ["--mixup", "0.2", "--teacher", "{here}", "--distill", "KD + DKD"],
    "the_best_epoch_is_chosen_by_held_out_images": ["--keep_best", "--val_size", "0"],
    "weights_that_are_zero_are_those_of_the_last_step": ["--ema", "0.9", "--reg", "group_lasso"],
    "depth_exists": ["--layers", "57"],
    "gate_learns_these_pieces": [*STRUCTURED, "--prune_gate", "variational"],
    "penalties_are_of_weights_that_are_trained": [*WEIGHTS, "--prune_gate", "supermask", "--reg", "l1"],
    "gate_learns_within_the_run": ["--prune_type", "unstructured", "--prune_gate", "variational", "--epochs", "5"],
    "one_option_says_which_ranks": ["--factorise", "tucker"],
    "what_is_factorised_has_no_masks": [*STRUCTURED, "--factorise", "svd(macs=0.5)"],
    "removal_takes_whole_filters": ["--resume", "{here}", "--compact"],
    "the_smaller_network_is_fine_tuned": [*STRUCTURED, "--finetune_epochs", "3"],
    "ending_flags_have_an_effect": ["--resume", "{here}", "--finetune_lr", "0.1"],
    "masks_are_not_exported": [*STRUCTURED, "--export", "m.pt2"],
    "a_dry_run_writes_nothing": [*COMPACT, "--dry_run", "--export", "m.pt2"],
    "the_form_is_known": ["--form", "shallow"],
    "a_form_is_of_weights": [*STRUCTURED, "--form", "deep_compression"],
    "exports_are_different_files": [*COMPACT, "--export", "m.pt2", "m.pt2"],
    "exports_have_a_known_format": [*COMPACT, "--export", "m.pth"],
    "exports_overwrite_nothing": [*COMPACT, "--export", "{here}/old.pt2"],
    "exports_have_a_folder": [*COMPACT, "--export", "absent/m.pt2"],
    "exports_can_be_written": [*COMPACT, "--export", "{here}/locked/m.pt2"],
    "onnx_is_installed": [*COMPACT, "--export", "m.onnx"],
    "flags_go_with_the_use": ["--evaluate", "{here}/file", "--epochs", "3"],
    "an_image_is_named": ["--predict", "{here}/file"],
    "used_files_exist": ["--evaluate", "absent.pt"],
    "onnx_files_can_be_read": ["--predict", "{here}/old.onnx", "{here}/file"],
    "an_onnx_file_is_computed_as_it_is": ["--evaluate", "{here}/old.onnx", "--amp", "bfloat16"],
}
NAMES = [rule.__name__ for occasion, rules in RULES.items() if occasion != "saved" for rule in rules]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of a dense run; no package is installed, and one folder cannot be written."""
    (tmp_path / "file").touch()
    (tmp_path / "old.pt2").touch()
    (tmp_path / "old.onnx").touch()
    (tmp_path / "locked").mkdir()
    saved = defaults() | {"arch": "resnet20", "typed": {}}
    (tmp_path / "config.json").write_text(json.dumps({"settings": saved}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / "locked")
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_a_command_that_breaks_the_rule_is_refused_by_it(here, name):
    assert name in BREAKS, f"no command line here breaks the rule {name}: add one to BREAKS"
    flags = [word.replace("{here}", str(here)) for word in BREAKS[name]]
    rule = next(rule for rules in RULES.values() for rule in rules if rule.__name__ == name)
    asked = arguments.asked(flags)
    message = rule(asked)
    assert message
    assert "\n" not in message
    with pytest.raises(Refused) as caught:
        arguments.parse(flags)
    assert str(caught.value) == message


def test_the_table_has_no_other_entries():
    assert sorted(BREAKS) == sorted(NAMES)
    assert len({*NAMES}) == len(NAMES)
    assert {*RULES["saved"]} < {*RULES["new"]}  # what is saved was asked for once


def test_plain_commands_break_none():
    for flags in ([], STRUCTURED, [*COMPACT, "--finetune_epochs", "2"], ["--recipe", "ksc2020"], ["--preset", "VGG-16-A"]):
        assert broken(arguments.asked(flags), "new", "ending") is None
