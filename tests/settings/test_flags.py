"""Every flag is in one section, and each condition under which a flag has no effect really refuses it."""

import pytest

from settings import arguments, effects, procedure_effects, task_effects, teacher_effects, training_effects
from settings.arguments import parse
from settings.errors import Refused
from settings.flags import FLAGS, GROUPS, SECTIONS, of_kind
from settings.registry import OPTIMISERS, Entry

pytestmark = pytest.mark.core

STRUCTURED = ["--prune_type", "structured"]
# for each condition, the rest of a command line under which the flags that name it have no effect
WITHOUT = {
    "no_pruning": [],
    "no_whole_filters": ["--prune_type", "unstructured"],
    "one_place": ["--prune_type", "unstructured"],
    "other_pieces": ["--prune_type", "unstructured"],
    "reads_no_images": STRUCTURED,
    "reads_images_of_each_class": [*STRUCTURED, "--prune_imp", "SNIP"],
    "finds_its_counts": [*STRUCTURED, "--prune_imp", "PFA(counts='KL')"],
    "by_the_scope": ["--prune_type", "unstructured", "--prune_scope", "deviation(q=1.0)"],
    "one_cut": [*STRUCTURED, "--prune_phase", "init"],
    "due_is_unused": [*STRUCTURED, "--prune_phase", "iterative"],
    "until_is_unused": [*STRUCTURED, "--prune_phase", "init"],
    "beside_counts": [*STRUCTURED, "--prune_scope", "preset(name='ResNet-56-A')"],
    "beside_preset": ["--preset", "ResNet-56-A"],
    "no_shortcut": ["--layers", "50"],
    "no_image_size": ["--dataset", "cifar10"],
    "no_channels": ["--dataset", "cifar100"],
    "no_fit": ["--dataset", "digits"],
    "no_test_size": ["--dataset", "mnist"],
    "no_memory": ["--dataset", "digits"],
    "no_data_dir": ["--dataset", "digits"],
    "weighs_whole_images": ["--dataset", "voc", "--arch", "ssd300_vgg16"],
    "names_no_classes": ["--dataset", "voc", "--arch", "ssd300_vgg16"],
    "gates_learn_to_the_end": [*STRUCTURED, "--prune_gate", "hard_concrete"],
    "compares_trainings": ["--prune_type", "unstructured", "--procedure", "rounds"],
    "augments_other_targets": [],
    "draws_no_boxes": [],
    "no_export": [*STRUCTURED, "--compact"],
    "no_penalty": [],
    "no_momentum": ["--optimizer", "adam"],
    "no_finetuning": [*STRUCTURED, "--compact"],
    "gate_option_without_effect": [*STRUCTURED, "--prune_phase", "init"],
    "nothing_returns": [*STRUCTURED, "--prune_phase", "init"],
    "several_cuts": STRUCTURED,
    "nothing_trained": [*STRUCTURED, "--prune_phase", "init"],
    "not_as_removed": [*STRUCTURED, "--prune_phase", "after", "--prune_gate", "weight"],
    "repairs_nothing": [*STRUCTURED, "--prune_phase", "after", "--procedure", "scratch(of='m.pt')"],
    "no_repair": [],
    "pattern_decides": ["--pattern", "run"],
    "gate_decides": [*STRUCTURED, "--prune_gate", "hard_concrete"],
    "weights_are_frozen": ["--prune_type", "unstructured", "--prune_gate", "supermask"],
    "nothing_to_take_out": ["--reg", "l1"],
    "procedure_cuts": [*STRUCTURED, "--procedure", "slimming"],
    "selects_on_held_out_images": ["--procedure", "multilayer"],
    "procedure_says_amounts": [*STRUCTURED, "--procedure", "rounds"],
    "nothing_to_freeze": [],
    "weights_are_given": [*STRUCTURED, "--procedure", "control(of='run')"],
    "learns_from_labels_alone": [],
    "masks_are_given": [*STRUCTURED, "--procedure", "control(of='run')"],
    "no_teacher": [],
    "nothing_taught": ["--distill", "none"],
    "nothing_dense": STRUCTURED,
}
# conditions that hold in the plain command: what must be typed for the flag to have its effect
WITH = {
    "several_cuts": ["--prune_phase", "after"],
    "no_teacher": ["--teacher", "run"],
    "nothing_to_freeze": ["--init", "run"],
    "learns_from_labels_alone": ["--procedure", "noisy_student", "--labelled", "0.1"],
    "draws_no_boxes": ["--predict", "m.pt", "cat.png"],
}
# conditions that are about an option in a flag's value
TYPED = {"gate_option_without_effect": "output(joint='right')", "nothing_returns": "global(hysteresis=0.1)"}
VALUES = {
    "weight_decay": "5e-4",
    "prune_type": "structured",
    "prune_rate": "0.3",
    "prune_imp": "L2",
    "prune_scope": "local",
    "prune_phase": "init",
    "rounds": "3",
    "preset": "ResNet-56-A",
    "prune_schedule": "cubic",
    "prune_freq": "2ep",
    "prune_until": "0.5",
    "prune_gate": "weight",
    "score_batches": "2",
    "keep": "stem",
    "target_macs": "0.5",
    "target_params": "0.5",
    "round_to": "8",
    "residual": "grouped",
    "shortcut": "pad",
    "image_size": "64",
    "channels": "1",
    "export_input": "normalised",
    "test_size": "0.2",
    "fit": "pad",
    "data_dir": "here",
    "memory": "1",
    "unlabelled": "here",
    "odecay": "0.5",
    "momentum": "0.5",
    "finetune_lr": "0.1",
    "reconstruct": "lasso",
    "init": "run",
    "freeze": "1",
    "teacher": "dense",
    "distill": "AT",
    "procedure": "layerwise",
    "class_weights": "balanced",
    "label_smoothing": "0.1",
    "mixup": "0.2",
    "augment": "ssd",
    "draw": "boxes",
}
# the default of these is a file that its registry reads
NAMED = [flag for flag in FLAGS.values() if flag.registry and flag.name not in ("procedure", "optimizer")]
PAIRS = [(flag.name, condition) for flag in FLAGS.values() for condition in flag.no_effect]


@pytest.fixture
def _adam(monkeypatch):
    """An optimiser without --momentum."""
    if "adam" not in OPTIMISERS.entries:
        entry = Entry("adam", "training.optimisers", "adam", "", "optimiser", traits={"no momentum": ("return",)})
        monkeypatch.setitem(OPTIMISERS.entries, "adam", entry)


@pytest.mark.usefixtures("_adam")
@pytest.mark.parametrize(("name", "condition"), PAIRS, ids=lambda value: getattr(value, "__name__", value))
def test_a_flag_without_effect_is_refused(name, condition):
    base = WITHOUT[condition.__name__]
    if name == "preset" and condition is not effects.pattern_decides:  # it says what is cut
        alone = (effects.gate_decides, procedure_effects.procedure_says_amounts)
        base = base[2:] if condition in alone else ["--prune_imp", "PFA(counts='KL')"]
    flag = [f"--{name}"] if FLAGS[name].action else [f"--{name}", TYPED.get(condition.__name__, VALUES.get(name))]
    words = condition(arguments.asked([*base, *flag]))
    assert words
    with pytest.raises(Refused) as caught:
        parse([*base, *flag])
    assert str(caught.value) == f"--{name} {words}"


@pytest.mark.usefixtures("_adam")
@pytest.mark.parametrize(
    "condition", dict.fromkeys(condition for _, condition in PAIRS), ids=lambda condition: condition.__name__
)
def test_a_flag_with_effect_is_not(condition):
    settings = arguments.asked(
        [
            "--arch",
            "resnet20",
            "--dataset",
            "folder",
            *STRUCTURED,
            "--prune_imp",
            "grad",
            "--reg",
            "l1",
            "--finetune_epochs",
            "1",
            "--export",
            "m.onnx",
            *WITH.get(condition.__name__, []),
        ]
    )
    assert condition(settings) is None


def test_every_condition_is_in_the_table():
    files = [effects, procedure_effects, task_effects, teacher_effects, training_effects]
    public = [(file, item) for file in files for name, item in vars(file).items() if not name.startswith("_")]
    defined = {item for file, item in public if getattr(item, "__module__", "") == file.__name__}
    named = {condition for _, condition in PAIRS if "<locals>" not in condition.__qualname__}
    assert named == defined - {effects.phase_decides, effects.not_of_the_data_set}


@pytest.mark.parametrize("rounds", [["--rounds", "1"], ["--prune_phase", "iterative(rounds=1)"]])
@pytest.mark.parametrize("flag", [["--prune_schedule", "cubic"], ["--prune_until", "0.5"]])
def test_a_single_round_has_neither_a_schedule_nor_an_end(rounds, flag):
    with pytest.raises(Refused, match=f"{flag[0]} has no effect with --prune_phase iterative"):
        parse([*STRUCTURED, *rounds, *flag])
    parse([*STRUCTURED, "--rounds", "2", *flag])


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        (
            "prune_phase",
            "iterative(rounds=1000000000)",
            "'rounds' of phase 'iterative' is a number of at least 1 and at most 1000",
        ),
        ("prune_phase", "iterative(rounds=0)", "at least 1"),
        ("prune_schedule", "cubic(reach=5.0)", "at most 1"),
        ("prune_imp", "PFA(tau=0.9)", "'tau' of criterion 'PFA' has no effect without counts='energy'"),
        ("prune_imp", "zero_fraction(own=0.9)", "no effect without counts='multilayer'"),
        ("prune_imp", "zero_fraction(readers=0.9)", "no effect without counts='multilayer'"),
        ("prune_imp", "zero_fraction(drop=0.1, threshold=0.2)", "'drop' of criterion 'zero_fraction' has no effect beside"),
        ("prune_imp", "FPGM(by_norm=7.0)", "at most 1"),
        ("lr_schedule", "step(drops=('a',))", "'a' has the wrong type"),
        ("epochs", "1000000000", "at most"),
    ],
)
def test_numbers_have_limits_and_say_what_they_need(flag, value, words):
    with pytest.raises(Refused) as caught:
        parse([*STRUCTURED, f"--{flag}", value])
    assert words in str(caught.value)


def test_every_flag_is_in_exactly_one_section():
    names = [name for section in SECTIONS.values() for name in section]
    assert sorted(names) == sorted(FLAGS)
    assert len(names) == sum(len(flags) for flags in GROUPS.values())
    assert sorted(of_kind("method", "engine", "output", "ending", "use")) == sorted(FLAGS)


@pytest.mark.parametrize("flag", FLAGS.values(), ids=lambda flag: flag.name)
def test_what_the_table_says_is_what_argparse_does(flag):
    assert arguments.build_parser().get_default(flag.name) == flag.default
    for word in flag.legal():
        assert arguments.typed_flags([f"--{flag.name}", str(word)])[flag.name] == word
    if flag.legal():
        with pytest.raises(Refused, match="no_such_word"):
            arguments.typed_flags([f"--{flag.name}", "no_such_word"])
    if flag.default is not None and flag.type is not None:
        assert flag.type(str(flag.default)) == flag.default  # the default is legal
    if flag.choices and flag.default is not None:
        assert flag.default in flag.legal()


@pytest.mark.parametrize("flag", NAMED, ids=lambda flag: flag.name)
def test_the_default_is_in_the_registry(flag):
    if flag.default not in (None, "none"):
        flag.registry.check(flag.default)


def test_what_makes_a_row_of_the_table_of_runs():
    """Seeds and machines do not; precision does."""
    apart = {name for name, flag in FLAGS.items() if flag.makes_a_row}
    assert apart == {*of_kind("method", "ending"), "amp", "teacher"} - {"seed", "compact", "export", "export_input", "form"}
