"""This file says what the flags that were asked for amount to, where several parts of the program want to know it."""

from settings.calls import listed
from settings.registry import (
    CRITERIA,
    DATASETS,
    FORMS,
    GATES,
    GRANULARITIES,
    NETWORKS,
    PHASES,
    PROCEDURES,
    RECONSTRUCTIONS,
    REGULARIZERS,
    SCOPES,
    Entry,
    parse_call,
)


def task_of(entry: Entry) -> str:
    """The task that a data set or a network, by its registry's entry, is for."""
    return entry.traits.get("task", ("classification",))[0]


def pixels_of(arch: str) -> int | None:
    """The side of the only images that a network takes, or None where it takes any."""
    pixels = NETWORKS.entry(arch).traits.get("pixels")
    return int(pixels[0]) if pixels else None


def misfit(arch: str, dataset: str, image_size: int) -> str | None:
    """The words that say why a network is not for a data set, or for images of this size; None where it is."""
    task, wanted = task_of(DATASETS.entry(dataset)), task_of(NETWORKS.entry(arch))
    if task != wanted:
        fitting = [name for name, entry in NETWORKS.entries.items() if task_of(entry) == task]
        return f"{arch} is for {wanted}, and --dataset {dataset} for {task}: choose --arch {', '.join(fitting)}"
    if pixels_of(arch) not in (None, image_size):
        return f"{arch} takes images of {pixels_of(arch)} pixels, not --image_size {image_size}"


def finds_counts(criterion: str) -> bool:
    """Whether a criterion, with its options as they were chosen, itself says how many filters are cut."""
    return parse_call(criterion)[1].get("counts", "given") != "given"


def scope_decides(settings) -> bool:
    """Whether the scope, with its options as they were chosen, itself says how much is cut."""
    scope = settings.pruning.prune_scope
    deciding = SCOPES.entry(scope).traits.get("says how much", ())
    return any(parse_call(scope)[1].get(option) for option in deciding)


def phase_of(settings) -> Entry:
    """The registry's entry of the phase that --rounds or --prune_phase asks for."""
    return PHASES.entries["iterative"] if settings.pruning.rounds else PHASES.entry(settings.pruning.prune_phase)


def scratch_model(settings) -> str | None:
    """The path of the model.pt, or of its run, whose smaller network --scratch or --procedure trains anew, or None."""
    name, options = parse_call(settings.run.procedure)
    return settings.network.scratch if name != "scratch" else options.get("of")


def of_procedure(procedure: str, prune_type: str = "none") -> dict:
    """The values, by flag, that go with --procedure where this is cut: what it takes out filters by, and its regulariser.

    What it leaves is checked and saved as with --compact. ValueError for a procedure that is unknown.
    """
    traits = PROCEDURES.entry(procedure).traits
    own = {flag: traits[flag][0] for flag in ("prune_imp", "prune_gate", "reg", "augment") if flag in traits}
    own |= {"compact": True} if "removes" in traits else {}
    if "prune_scope" in traits and prune_type != "structured":
        own["prune_scope"] = traits["prune_scope"][0]
    return own | ({"prune_type": "structured"} if "prune_imp" in own else {}) | ({"odecay": None} if "reg" in own else {})


def learns_from_unlabelled(settings) -> bool:
    """Whether the procedure learns from images without labels too."""
    return "unlabelled images" in PROCEDURES.entry(settings.run.procedure).traits


def students_of(settings) -> list[str]:
    """The networks that the procedure names for its students, one after the other. ValueError where they cannot be read."""
    options = parse_call(settings.run.procedure)[1]
    named = PROCEDURES.entry(settings.run.procedure).traits.get("networks", ())
    return [arch for name in named if options.get(name) for arch in listed(options[name])]


def masks_stay(settings) -> str | None:
    """The words that say why no mask moves, in a phase or with a procedure in which none does; None otherwise."""
    if cuts_itself(settings):
        return f"and --procedure {PROCEDURES.entry(settings.run.procedure).name} moves none"
    return None if phase_of(settings).name == "dynamic" else "only --prune_phase dynamic moves them"


def takes_masks_of(settings) -> str | None:
    """The path of the earlier run whose masks the procedure puts in force, or None."""
    options = parse_call(settings.run.procedure)[1]
    named = PROCEDURES.entry(settings.run.procedure).traits.get("masks", ())
    return next((options[name] for name in named if options.get(name)), None)


def cuts_itself(settings) -> bool:
    """Whether the procedure itself says when something is cut."""
    return "cuts" in PROCEDURES.entry(settings.run.procedure).traits or takes_masks_of(settings) is not None


def cuts_at_once(settings) -> bool:
    """Whether all that is cut is cut before the first step, by a phase."""
    at_once = settings.network.init is not None and "prune_until" not in settings.typed  # as the settings are resolved
    phase = phase_of(settings).name
    return phase == "init" or (phase == "after" and (at_once or settings.pruning.prune_until == 0))


def trains_dense_first(settings) -> bool:
    """Whether a run that begins with fresh weights trains the whole network for some steps before anything is cut."""
    if settings.pruning.prune_type == "none" or settings.network.pattern or gate_that_learns(settings):
        return False
    if cuts_itself(settings):
        return takes_masks_of(settings) is None
    phase, options = phase_of(settings), parse_call(settings.pruning.prune_phase)[1]
    return phase.name == "after" or (phase.name == "iterative" and options.get("start", 0) > 0)


def teaching_run(settings) -> str | None:
    """The path of the run, or of the file, whose network teaches, or None."""
    return None if settings.training.teacher == "dense" else settings.training.teacher


def says_amounts(settings) -> float | None:
    """What the procedure leaves at last, as a fraction, where it itself says how much is cut; 1 where an earlier run says it."""
    entry = PROCEDURES.entry(settings.run.procedure)
    if takes_masks_of(settings) is not None:
        return 1.0
    if "amounts" not in entry.traits:
        return None
    chosen = {name: option.default for name, option in entry.options.items()} | parse_call(settings.run.procedure)[1]
    return (1 - chosen["fraction"]) ** chosen["n"]


def network_is_typed(settings) -> bool:
    """Whether a flag that names the network was typed, beside a file of weights."""
    return not {"arch", "layers"}.isdisjoint(settings.typed)


def smaller_pieces(settings) -> str:
    """The name of the granularity that is asked for, where it cuts smaller pieces than whole filters; empty otherwise."""
    kind = settings.pruning.prune_type
    return "" if kind == "none" or "whole filters" in GRANULARITIES.entry(kind).traits else kind


def gate_that_learns(settings) -> Entry | None:
    """The registry's entry of the gate that is asked for, where it learns what is cut."""
    gate = GATES.entry(settings.pruning.prune_gate)
    return gate if settings.pruning.prune_type != "none" and "decides" in gate.traits else None


def factorises_first(settings) -> bool:
    """Whether --factorise comes before the first epoch: where the network has been trained, and nothing is pruned any more."""
    trained = settings.network.init is not None and parse_call(settings.run.procedure)[0] == "once"
    return settings.ending.factorise is not None and trained and not settings.ending.compact


def makes_smaller(settings) -> bool:
    """Whether the run ends with a smaller network that is compared, saved and timed."""
    return settings.ending.compact or settings.ending.factorise is not None


def masks_filters(settings) -> bool:
    """Whether the run ends with whole filters under masks, or under scales that are learned, which no file of a network holds."""
    under = settings.pruning.prune_type != "none" and not smaller_pieces(settings)
    return (under or learned_scales(settings)) and not settings.ending.compact


def zero_filters(settings) -> bool:
    """Whether --reg sets filters to exactly 0, so that they can be taken out as those under a mask can."""
    reg = settings.training.reg
    return reg != "none" and "zero filters" in REGULARIZERS.entry(reg).traits


def learned_scales(settings) -> bool:
    """Whether --reg trains scales, which take the place of a mask."""
    reg = settings.training.reg
    return reg != "none" and "learned scales" in REGULARIZERS.entry(reg).traits


def rounds_of(settings) -> int | None:
    """In how many rounds the phase that is asked for cuts; None where that is not said beforehand."""
    phase = phase_of(settings)
    if "rounds" not in phase.options:
        return 1 if "one cut" in phase.traits else None
    typed = settings.pruning.rounds or parse_call(settings.pruning.prune_phase)[1].get("rounds")
    return typed or phase.options["rounds"].default


def images_a_class(criterion: str) -> int:
    """How many images of each class a criterion, with its options as they were chosen, reads; 0 where it reads the sample."""
    entry, chosen = CRITERIA.entry(criterion), parse_call(criterion)[1]
    return max((chosen.get(name, entry.options[name].default) for name in entry.traits.get("images a class", ())), default=0)


def merges_hidden_layers(settings) -> bool:
    """Whether --reconstruct names a method for layers that alone write their channels, linear ones too."""
    method = settings.pruning.reconstruct
    return method != "none" and "hidden layers" in RECONSTRUCTIONS.entry(method).traits


def writes_onnx(settings) -> bool:
    """Whether --form names a form that is an .onnx file."""
    form = settings.ending.form
    known = form is not None and parse_call(form)[0] in FORMS.entries
    return known and "an .onnx file" in FORMS.entry(form).traits


def updates_survivors(settings) -> bool:
    """Whether --reconstruct names a method that updates what is left of each layer itself, and not the layers that read it."""
    method = settings.pruning.reconstruct
    return method != "none" and "surviving weights" in RECONSTRUCTIONS.entry(method).traits
