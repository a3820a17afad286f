"""This file says when a flag has no effect: each condition is a function of the settings, named in the table of flags.

A condition returns the rest of the sentence that refuses the flag, `--NAME has no effect ...`, or None where the flag has
its effect. It may rely on every name in the settings being known to its registry.
"""

from collections.abc import Callable

from settings.meaning import (
    finds_counts,
    gate_that_learns,
    images_a_class,
    masks_stay,
    network_is_typed,
    phase_of,
    rounds_of,
    scope_decides,
    scratch_model,
    smaller_pieces,
    updates_survivors,
    writes_onnx,
    zero_filters,
)
from settings.own_files import own_file
from settings.registry import (
    CRITERIA,
    DATASETS,
    GRANULARITIES,
    NETWORKS,
    OPTIMISERS,
    PHASES,
    REGULARIZERS,
    parse_call,
)

Condition = Callable[..., str | None]


def no_pruning(settings) -> str | None:
    """Flags of pruning, in a run that prunes nothing."""
    if settings.pruning.prune_type == "none":
        *most, last = GRANULARITIES.entries
        return f"has no effect without --prune_type {', '.join(most)} or {last}"


def pattern_decides(settings) -> str | None:
    """Flags that say what is cut, and when, beside --pattern."""
    if settings.network.pattern:
        return "has no effect with --pattern, which itself says which single weights are cut"


def gate_decides(settings) -> str | None:
    """Flags that say what a pruner cuts, and when, with a gate that learns what is cut."""
    if gate := gate_that_learns(settings):
        return f"has no effect with --prune_gate {gate.name}, which itself learns what is cut"


def weights_are_frozen(settings) -> str | None:
    """--weight_decay and --freeze, with a gate that leaves the weights as they begin."""
    if (gate := gate_that_learns(settings)) and "freezes" in gate.traits:
        return f"has no effect with --prune_gate {gate.name}: weights stay as they begin, and scores have no decay"


def nothing_to_take_out(settings) -> str | None:
    """--compact, in a run that neither prunes nor sets filters to 0, or whose network has been pruned before."""
    if scratch_model(settings):
        return "takes filters out of a network, and --scratch trains one that has lost them: leave out --compact"
    if (words := no_pruning(settings)) and not zero_filters(settings):
        *most, last = [name for name, entry in REGULARIZERS.entries.items() if "zero filters" in entry.traits]
        return f"{words}, or --reg {', '.join(most)} or {last}"


def no_whole_filters(settings) -> str | None:
    """Flags about filters, where smaller pieces are cut."""
    if smaller_pieces(settings):
        return "is for --prune_type structured: no filter goes as a whole"


def one_place(settings) -> str | None:
    """--prune_gate, where a mask has one place only."""
    if (kind := smaller_pieces(settings)) and not gate_that_learns(settings):
        pieces = "single weights" if kind == "unstructured" else kind
        return f"has no effect without --prune_type structured: {pieces} have one place only"


def gate_option_without_effect(settings) -> str | None:
    """Options of --prune_gate, where masks do not move or the criterion sees neither maps nor gradients."""
    pruning = settings.pruning
    name, options = parse_call(pruning.prune_gate)
    if name == "soft" and (still := masks_stay(settings)):
        return f"soft is about masks that move, {still}"
    if options.get("joint") == "right" and (still := masks_stay(settings)):
        return f"{pruning.prune_gate} has no effect: joint is about masks that move, {still}"
    if options.get("scored") == "own" and "reads images" not in CRITERIA.entry(pruning.prune_imp).traits:
        return f"{pruning.prune_gate} has no effect: scored is about maps and gradients, and {pruning.prune_imp} reads none"


def nothing_returns(settings) -> str | None:
    """Hysteresis of --prune_scope, in a phase in which nothing returns."""
    scope = settings.pruning.prune_scope
    if parse_call(scope)[1].get("hysteresis") and (still := masks_stay(settings)):
        return f"{scope} has no effect: hysteresis is about masks that move back, {still}"


def reads_no_images(settings) -> str | None:
    """--score_batches, with a criterion that measures on no images."""
    criterion = settings.pruning.prune_imp
    traits, options = CRITERIA.entry(criterion).traits, parse_call(criterion)[1]
    if "reads images" not in traits or any(options.get(name) for name in traits.get("instead of images", ())):
        return f"has no effect on criterion '{criterion}', which reads no images"


def reads_images_of_each_class(settings) -> str | None:
    """--score_batches, with a criterion that reads so many images of each class."""
    criterion = settings.pruning.prune_imp
    if number := images_a_class(criterion):
        return f"has no effect on criterion '{criterion}', which reads {number} images of each class"


def finds_its_counts(settings) -> str | None:
    """Flags that say how much goes, with a criterion that says it itself."""
    if finds_counts(settings.pruning.prune_imp):
        return f"has no effect on {settings.pruning.prune_imp}, which finds its own counts"


def by_the_scope(settings) -> str | None:
    """Flags that say how much goes, with a scope that says it itself."""
    if scope_decides(settings):
        return f"has no effect with --prune_scope {settings.pruning.prune_scope}, which itself says how much goes"


def one_cut(settings) -> str | None:
    """--prune_schedule, in a phase that cuts once."""
    return phase_decides(settings, rounds_of(settings) == 1)


def due_is_unused(settings) -> str | None:
    """--prune_freq, in a phase that has times of its own."""
    return phase_decides(settings, "due" in phase_of(settings).traits.get("unused", ()))


def until_is_unused(settings) -> str | None:
    """--prune_until, in a phase that ends by itself."""
    phase, options = phase_of(settings), parse_call(settings.pruning.prune_phase)[1]
    # of rounds that would end there
    single = "one cut" not in phase.traits and rounds_of(settings) == 1 and not options.get("start")
    return phase_decides(settings, "until" in phase.traits.get("unused", ()) or single)


def phase_decides(settings, decides: bool) -> str | None:
    """The words that refuse a flag about when masks are made, where the phase `decides` that itself; None otherwise."""
    if decides:
        return f"has no effect with --prune_phase {phase_of(settings).name}, which says itself when it cuts"


def other_pieces(settings) -> str | None:
    """--reconstruct, with a method that is for other pieces than those that are cut."""
    if not updates_survivors(settings):
        return None if settings.pruning.reconstruct == "none" else no_whole_filters(settings)
    if not smaller_pieces(settings):
        kinds = [name for name, entry in GRANULARITIES.entries.items() if "whole filters" not in entry.traits]
        return f"{settings.pruning.reconstruct} updates what is left of a filter: it needs --prune_type {' or '.join(kinds)}"


def several_cuts(settings) -> str | None:
    """--reconstruct, in a phase that cuts more than once."""
    phase, rounds = phase_of(settings), rounds_of(settings)
    if "one cut" not in phase.traits or rounds > 1:
        once = " or ".join(name for name, entry in PHASES.entries.items() if "one cut" in entry.traits)
        asked = f"{phase.name} in {rounds} rounds" if "one cut" in phase.traits else phase.name
        return f"repairs what one cut leaves: it needs --prune_phase {once}, not {asked}"


def nothing_trained(settings) -> str | None:
    """--reconstruct, before anything was trained."""
    if phase_of(settings).name == "init" and settings.network.init is None:
        return "repairs a trained network: with --prune_phase init it needs --init"


def not_as_removed(settings) -> str | None:
    """--reconstruct, with a gate at which what is cut is not gone."""
    if parse_call(settings.pruning.prune_gate)[0] == "weight":
        return "has no effect with --prune_gate weight: behind it batch norm's bias still passes, which no weight repairs"


def beside_counts(settings) -> str | None:
    """Flags that say how much goes, beside published counts, whether by --preset or by the scope."""
    if settings.pruning.preset or parse_call(settings.pruning.prune_scope)[0] == "preset":
        return "has no effect beside a preset, which says how many filters stay: leave it out"


def beside_preset(settings) -> str | None:
    """Flags whose values --preset stands for."""
    return beside_counts(settings) if settings.pruning.preset else None


def no_shortcut(settings) -> str | None:
    """--shortcut, on a network that has one kind, or whose name says which."""
    if settings.network.scratch or (settings.network.init is not None and not network_is_typed(settings)):
        return None  # the file says which network: a rule refuses the flag for that
    arch = settings.network.arch or f"resnet{settings.network.layers}"
    name, options = parse_call(arch)
    if own_file(arch):
        return f"has no effect on {arch}: it is for ResNet-20, 32, 44, 56 and 110"
    if name in NETWORKS.entries and ("shortcut" not in NETWORKS.entries[name].options or "shortcut" in options):
        return f"has no effect on {arch}: it is for ResNet-20, 32, 44, 56 and 110"


def no_export(settings) -> str | None:
    """--export_input, where nothing is exported and no form is an .onnx file."""
    if not (settings.ending.export or writes_onnx(settings)):
        return "has no effect without --export, or a --form that is an .onnx file"


def not_of_the_data_set(flag: str) -> Condition:
    """The condition for a flag about data, for a data set that does not listen to it."""

    def condition(settings) -> str | None:
        if flag not in DATASETS.entry(settings.data.dataset).options:
            listening = " or ".join(name for name, entry in DATASETS.entries.items() if flag in entry.options)
            return f"has no effect on {settings.data.dataset}: it is for --dataset {listening}"

    condition.__name__ = f"no_{flag}"
    return condition


def no_penalty(settings) -> str | None:
    """--odecay, without a penalty."""
    if settings.training.reg == "none":
        return f"has no effect without --reg: choose from {', '.join(REGULARIZERS.entries)}"


def no_momentum(settings) -> str | None:
    """--momentum, with an optimiser that has none."""
    name = parse_call(settings.training.optimizer)[0]
    if name in OPTIMISERS.entries and "no momentum" in OPTIMISERS.entries[name].traits:
        return f"has no effect with --optimizer {name}, which has averages of its own"


def no_finetuning(settings) -> str | None:
    """--finetune_lr, where nothing is fine-tuned."""
    rounds = parse_call(settings.run.procedure)[1].get("rewind") == "none"
    if not settings.ending.finetune_epochs and not rounds:
        return "has no effect without --finetune_epochs"
