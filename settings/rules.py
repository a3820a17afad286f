"""This file holds the rules that a command must keep: each is a small function, named by what must hold.

A rule takes the settings before they are resolved and returns the message of the refusal, or None where it is kept. RULES
maps an occasion to its rules, in the order in which they are asked: "new" for a run that begins, "ending" for what is done
after the last mask, also by a run that goes on, "use" for --evaluate and --predict, and "saved" for the resolved settings in
the record of a run. What concerns one flag alone stands in the table of flags.
"""

import importlib.util
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from settings.errors import Refused
from settings.flags import FLAGS
from settings.meaning import cuts_itself, network_is_typed, phase_of, smaller_pieces, teaching_run
from settings.own_files import check_own_file, own_file
from settings.paths import TORCHVISION, taken_in_first
from settings.recipes import of_recipe
from settings.registry import CRITERIA, NETWORKS, SCOPES, parse_call

RULES: dict[str, list[Callable]] = {"new": [], "ending": [], "use": [], "saved": []}


def rule(*occasions: str):
    """A decorator that puts a function among the rules of these occasions."""

    def add(function: Callable) -> Callable:
        for occasion in occasions:
            RULES[occasion].append(function)
        return function

    return add


def broken(settings, *occasions: str) -> str | None:
    """The message of the first rule of these occasions that the settings break, or None where they keep all."""
    messages = (rule(settings) for occasion in occasions for rule in RULES[occasion])
    return next((message for message in messages if message is not None), None)


@rule("new", "saved")
def names_are_known(settings) -> str | None:
    """Every name and option in a name is one that its registry has."""
    for flag in FLAGS.values():
        value = getattr(getattr(settings, flag.section), flag.name)
        if flag.registry is not None and value != flag.default:
            try:
                flag.registry.check(value)
            except ValueError as error:
                return str(error)


@rule("new")
def own_file_has_the_function(settings) -> str | None:
    """The file that --arch names is there, and has what stands behind the colon."""
    if own_file(settings.network.arch):
        try:
            check_own_file(settings.network.arch)
        except Refused as error:
            return f"--arch: {error}"


@rule("new", "saved")
def outputs_and_channels_are_the_data_sets(settings) -> str | None:
    for option in {"classes", "channels"} & (parse_call(settings.network.arch)[1] if settings.network.arch else {}).keys():
        return f"--arch {settings.network.arch}: the data set says how many {option} there are"


@rule("new")
def typed_flags_have_an_effect(settings) -> str | None:
    """No flag was typed that the table of flags says has no effect."""
    return without_effect(settings, FLAGS)


def without_effect(settings, names: Iterable[str]) -> str | None:
    """The refusal of the first of the flags `names` that was typed and has no effect, or None."""
    for name in names:
        for condition in FLAGS[name].no_effect if name in settings.typed else ():
            if words := condition(settings):
                return f"--{name} {words}"
    return None


def recipe_without_effect(settings) -> list[str]:
    """The flags of the recipe that have no effect beside what was typed."""
    return [
        f"--{name}"
        for name in of_recipe(settings.typed).keys() - settings.typed.keys()
        if any(condition(settings) for condition in FLAGS[name].no_effect)
    ]


@rule("new", "saved")
def criterion_scores_these_pieces(settings) -> str | None:
    kind, criterion = smaller_pieces(settings), settings.pruning.prune_imp
    if kind and "filters only" in CRITERIA.entry(criterion).traits:
        return f"criterion '{criterion}' scores structured pruning only, not {kind}"


@rule("new", "saved")
def a_cut_after_training_leaves_epochs(settings) -> str | None:
    if phase_of(settings).name == "after" and settings.pruning.prune_until >= 1:
        return "--prune_phase after leaves no epoch to fine-tune with --prune_until 1: choose less than 1"


@rule("new", "saved")
def scope_compares_these_pieces(settings) -> str | None:
    scope = SCOPES.entry(settings.pruning.prune_scope)
    if smaller_pieces(settings) and "filters only" in scope.traits:
        return f"--prune_scope {scope.name} is about filters: it needs --prune_type structured"
    if settings.pruning.prune_type not in ("none", "unstructured") and "single weights" in scope.traits:
        return f"--prune_scope {scope.name} is about single weights: it needs --prune_type unstructured"


@rule("new", "saved")
def scope_compares_these_scores(settings) -> str | None:
    scope, criterion = SCOPES.entry(settings.pruning.prune_scope), settings.pruning.prune_imp
    if "magnitudes" in scope.traits and "magnitude" not in CRITERIA.entry(criterion).traits:
        magnitudes = " or ".join(name for name, entry in CRITERIA.entries.items() if "magnitude" in entry.traits)
        return (
            f"--prune_scope {scope.name} compares the magnitudes of weights: it needs --prune_imp {magnitudes}, not {criterion}"
        )


@rule("new", "saved")
def groups_are_not_single_layers(settings) -> str | None:
    scope = SCOPES.entry(settings.pruning.prune_scope)
    if "single layers" in scope.traits and settings.pruning.residual == "grouped":
        return f"--prune_scope {scope.name} is of single layers, --residual grouped decides several together"


@rule("new", "saved")
def cut_filters_have_maps_to_return_by(settings) -> str | None:
    pruning = settings.pruning
    reads_maps = "reads maps" in CRITERIA.entry(pruning.prune_imp).traits
    if reads_maps and phase_of(settings).name == "dynamic" and parse_call(pruning.prune_gate)[0] == "weight":
        return (
            f"{pruning.prune_imp} reads feature maps, and with --prune_gate weight a cut filter has none to return by: "
            "choose another --prune_phase"
        )


@rule("new", "saved")
def initial_weights_are_not_those_of_now(settings) -> str | None:
    pruning = settings.pruning
    compares = pruning.prune_type != "none" and "initial weights" in CRITERIA.entry(pruning.prune_imp).traits
    if compares and phase_of(settings).name == "init" and not cuts_itself(settings):
        return (
            f"{pruning.prune_imp} compares with the weights before the first step, when --prune_phase init cuts: choose another"
        )


@rule("new")
def init_says_which_shortcut(settings) -> str | None:
    if settings.network.init is not None and "shortcut" in settings.typed and not network_is_typed(settings):
        return "--init says which network: leave out --shortcut"


@rule("new")
def one_flag_says_when(settings) -> str | None:
    if {"rounds", "prune_phase"} <= settings.typed.keys():
        return "--rounds and --prune_phase both say when: choose one"


@rule("new")
def init_exists(settings) -> str | None:
    path = settings.network.init
    if path is not None and not path.startswith(TORCHVISION) and not (path and Path(path).exists()):
        return f"--init: nothing at '{path}'"


@rule("new")
def teacher_exists(settings) -> str | None:
    path = teaching_run(settings)
    if path is not None and path.startswith(TORCHVISION):
        return f"--teacher: {taken_in_first(path)}"
    if path is not None and not (path and Path(path).exists()):
        return f"--teacher: nothing at '{path}'"


@rule("new")
def one_flag_weighs_the_penalty(settings) -> str | None:
    reg, odecay = settings.training.reg, settings.training.odecay
    if "odecay" in settings.typed and parse_call(reg)[1].get("weight", odecay) != odecay:
        return f"--reg {reg} and --odecay {odecay:g} both weigh the penalty: choose one"


@rule("new")
def tensorboard_is_installed(settings) -> str | None:
    if settings.run.tensorboard and importlib.util.find_spec("tensorboard") is None:
        return "--tensorboard needs a package that is not here: pip install tensorboard"


@rule("new")
def out_dir_is_named(settings) -> str | None:
    if settings.run.out_dir == "":
        return "--out_dir is empty: name a folder, or leave it out"


@rule("new")
def one_flag_names_the_network(settings) -> str | None:
    if {"arch", "layers"} <= settings.typed.keys():
        return "--arch and --layers both name a network: choose one"


@rule("new", "saved")
def warmup_leaves_epochs(settings) -> str | None:
    training = settings.training
    if training.warmup_epochs and training.warmup_epochs >= training.epochs:
        return f"--warmup_epochs {training.warmup_epochs:g} leaves none of {training.epochs} epochs"


@rule("new", "saved")
def freezing_leaves_epochs(settings) -> str | None:
    training = settings.training
    if training.freeze and training.freeze >= training.epochs:
        return f"--freeze {training.freeze} leaves none of {training.epochs} epochs in which all of the network learns"


@rule("new")
def one_flag_says_how_much(settings) -> str | None:
    amounts = [name for name in ("prune_rate", "target_macs", "target_params") if name in settings.typed]
    if len(amounts) > 1:
        return f"--{' and --'.join(amounts)} both say how much: choose one"


@rule("new")
def rounded_layers_have_one_width(settings) -> str | None:
    padded = not own_file(settings.network.arch) and "pad" in (settings.network.shortcut or settings.network.arch or "")
    if settings.pruning.round_to > 1 and settings.pruning.residual == "grouped" and padded:
        return "--round_to does not go with --residual grouped and padded shortcuts, which tie layers of different widths"


@rule("new")
def depth_exists(settings) -> str | None:
    arch = settings.network.arch or f"resnet{settings.network.layers}"
    if parse_call(arch)[0] not in NETWORKS.entries and not own_file(arch):
        depths = sorted(int(name[6:]) for name in NETWORKS.entries if re.fullmatch(r"resnet\d+", name))
        return f"no ResNet has {settings.network.layers} layers here: choose from {', '.join(map(str, depths))}"
