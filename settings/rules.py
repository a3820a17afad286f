"""Flags that make no sense, by themselves or together: every refusal that needs no data."""

import importlib.util
import os
from pathlib import Path

from settings.registry import CRITERIA, LEARNING_RATES, NETWORKS, PHASES, REGULARIZERS, SCHEDULES, SCOPES, parse_call

PRUNING_FLAGS = (
    *("prune_rate", "prune_imp", "prune_scope", "prune_phase", "prune_schedule", "prune_freq", "prune_until", "prune_gate"),
    *("score_batches", "residual", "target_macs", "target_params", "round_to", "compact", "rounds"),
)

# what goes with --evaluate, and with --predict
USES = {
    "evaluate": ("dataset", "data_dir", "device", "amp", "threads", "quiet", "export"),
    "predict": ("device", "threads", "quiet"),
}


def finds_counts(criterion: str) -> bool:
    """Whether a criterion as it was chosen says itself how many filters go."""
    return parse_call(criterion)[1].get("counts", "given") != "given"


def check_names(settings) -> None:
    """Every name and option in a name is known. ValueError otherwise."""
    CRITERIA.check(settings.prune_imp)
    SCOPES.check(settings.prune_scope)
    if PHASES.check(settings.prune_phase)[1].get("rounds", 1) < 1:
        raise ValueError(f"--prune_phase {settings.prune_phase}: at least one round is needed")
    for option in CRITERIA.constants(settings.prune_imp).get("FRACTIONS", ()):
        if parse_call(settings.prune_imp)[1].get(option, 0) > 1:
            raise ValueError(f"--prune_imp {settings.prune_imp}: {option} is a fraction, at most 1")
    SCHEDULES.check(settings.prune_schedule)
    try:
        LEARNING_RATES.get(settings.lr_schedule)(0.5)
    except TypeError:
        raise ValueError(f"--lr_schedule {settings.lr_schedule}: an option's value has the wrong type") from None
    if settings.reg != "none":
        REGULARIZERS.check(settings.reg)
    if settings.arch is not None:
        _, options = NETWORKS.check(settings.arch)
        if "classes" in options:
            raise ValueError(f"--arch {settings.arch}: the data set says how many classes there are")


def check_pairs(settings, typed: dict) -> None:
    """Flags that contradict each other, or would have no effect. ValueError for the first."""
    legal = CRITERIA.constants(settings.prune_imp).get("GRANULARITIES", ("structured", "unstructured"))
    off = settings.prune_type == "none"
    phase = "iterative" if settings.rounds else parse_call(settings.prune_phase)[0]
    once = {
        "init": ("prune_schedule", "prune_freq", "prune_until"),
        "after": ("prune_schedule", "prune_freq"),
        "iterative": ("prune_freq",),
    }
    idle = [name for name in PRUNING_FLAGS if name in typed] if off else []
    found = finds_counts(settings.prune_imp)
    said = ("prune_rate", "target_macs", "target_params", "prune_scope", "prune_schedule", "rounds", "preset")
    said = [name for name in said if name in typed] if found else []
    scope = parse_call(settings.prune_scope)[0]
    by_preset = ("prune_rate", "target_macs", "target_params", "round_to", "rounds", "prune_schedule")
    by_preset += ("prune_type", "prune_scope", "shortcut") if settings.preset else ()
    twice = [name for name in by_preset if name in typed] if settings.preset or scope == "preset" else []
    idle_in_phase = [name for name in once.get(phase, ()) if name in typed]
    amount = [name for name in ("prune_rate", "target_macs", "target_params") if name in typed]
    whole_filters = [name for name in ("target_macs", "target_params", "round_to", "residual") if name in typed]
    constants, given = CRITERIA.constants(settings.prune_imp), parse_call(settings.prune_imp)[1]
    reads_weights_only = not constants.get("READS_IMAGES") or given.get(constants.get("NO_IMAGES_WITH"))
    rules = [
        (idle, f"--{''.join(idle[:1])} has no effect without --prune_type structured or unstructured"),
        (
            not off and settings.prune_type not in legal,
            f"criterion '{settings.prune_imp}' scores {' or '.join(legal)} pruning only, not {settings.prune_type}",
        ),
        (
            "prune_gate" in typed and settings.prune_type != "structured",
            "--prune_gate has no effect without --prune_type structured: single weights have one place only",
        ),
        (
            "score_batches" in typed and reads_weights_only,
            f"--score_batches has no effect on criterion '{settings.prune_imp}', which reads no images",
        ),
        (
            idle_in_phase,
            f"--{''.join(idle_in_phase[:1])} has no effect with --prune_phase {phase}, which says itself when it cuts",
        ),
        (
            phase == "after" and settings.prune_until >= 1,
            "--prune_phase after leaves no epoch to fine-tune with --prune_until 1: choose less than 1",
        ),
        (said, f"--{''.join(said[:1])} has no effect on {settings.prune_imp}, which finds its own counts"),
        (twice, f"--{''.join(twice[:1])} has no effect beside a preset, which says how many filters stay: leave it out"),
        (
            settings.prune_type == "unstructured" and scope in ("preset", "sensitivity"),
            f"--prune_scope {scope} is about filters: it needs --prune_type structured",
        ),
        (
            scope == "sensitivity" and settings.residual == "grouped",
            "--prune_scope sensitivity is of single layers, --residual grouped decides several together",
        ),
        (
            phase == "dynamic" and settings.prune_gate == "weight" and CRITERIA.constants(settings.prune_imp).get("READS_MAPS"),
            f"{settings.prune_imp} reads feature maps, and with --prune_gate weight a cut filter has none to return by: "
            "choose another --prune_phase",
        ),
        (
            settings.init is not None and "shortcut" in typed and not {"arch", "layers"} & typed.keys(),
            "--init says which network: leave out --shortcut",
        ),
        ("rounds" in typed and "prune_phase" in typed, "--rounds and --prune_phase both say when: choose one"),
        (
            settings.init and settings.scratch,
            "--init starts from trained weights, --scratch from fresh ones: choose one",
        ),
        (
            settings.init is not None and not (settings.init and Path(settings.init).exists()),
            f"--init: nothing at '{settings.init}'",
        ),
        (
            "odecay" in typed and settings.reg == "none",
            f"--odecay has no effect without --reg: choose from {', '.join(REGULARIZERS.entries)}",
        ),
        (
            settings.tensorboard and importlib.util.find_spec("tensorboard") is None,
            "--tensorboard needs a package that is not here: pip install tensorboard",
        ),
        (settings.out_dir == "", "--out_dir is empty: name a folder, or leave it out"),
        ("arch" in typed and "layers" in typed, "--arch and --layers both name a network: choose one"),
        (
            "image_size" in typed and settings.dataset != "folder",
            f"--image_size is for --dataset folder; images of {settings.dataset} are 32x32",
        ),
        (
            settings.warmup_epochs >= settings.epochs,
            f"--warmup_epochs {settings.warmup_epochs:g} leaves none of {settings.epochs} epochs",
        ),
        (
            len(amount) > 1,
            f"--{' and --'.join(amount)} both say how much: choose one",
        ),
        (
            settings.round_to > 1 and settings.residual == "grouped" and "pad" in (settings.shortcut or settings.arch or ""),
            "--round_to does not go with --residual grouped and padded shortcuts, which tie layers of different widths",
        ),
        (
            settings.scratch and [name for name in ("arch", "layers", "shortcut") if name in typed],
            "--scratch says which network: leave out --arch, --layers and --shortcut",
        ),
        (
            settings.scratch and not off,
            f"--scratch trains a network that has been pruned: leave out --prune_type {settings.prune_type}",
        ),
        (
            settings.scratch is not None and not Path(settings.scratch or "").is_file(),
            f"--scratch: no file at '{settings.scratch}'",
        ),
        (
            whole_filters and settings.prune_type == "unstructured",
            f"--{''.join(whole_filters[:1])} is for --prune_type structured: no filter goes as a whole",
        ),
    ]
    _refuse(rules)


def check_after(settings, typed: dict) -> None:
    """What is asked for after the last mask. ValueError for the first thing that cannot be."""
    files = [Path(name) for name in settings.export or ()]
    _refuse(
        [
            (
                settings.compact and settings.prune_type != "structured",
                f"--compact takes out whole filters, and --prune_type {settings.prune_type} prunes none",
            ),
            (
                settings.finetune_epochs and not settings.compact,
                "--finetune_epochs trains the smaller network: it needs --compact",
            ),
            (
                "finetune_lr" in typed and not settings.finetune_epochs,
                "--finetune_lr has no effect without --finetune_epochs",
            ),
            (
                files and not (settings.compact or settings.evaluate),
                "--export writes the smaller network: it needs --compact, or --evaluate MODEL",
            ),
            (files and settings.dry_run, "--export writes files, --dry_run none"),
            (len({file.absolute() for file in files}) < len(files), "--export names a file twice"),
        ]
    )
    for file in files:
        place = file.absolute().parent
        made = settings.out_dir is not None and place == Path(settings.out_dir).absolute()
        asked_now = "export" in typed and not made
        missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
        _refuse(
            [
                (file.suffix not in (".onnx", ".pt2"), f"--export {file}: choose a name that ends in .onnx or .pt2"),
                ("export" in typed and file.exists(), f"--export {file}: there is such a file already"),
                (asked_now and not place.is_dir(), f"--export {file}: no folder '{file.parent}'"),
                (asked_now and not os.access(place, os.W_OK), f"--export {file}: cannot write to '{file.parent}'"),
                (
                    file.suffix == ".onnx" and missing,
                    f"--export {file} needs packages that are not here: pip install {' '.join(missing)}",
                ),
            ]
        )


def check_use(settings, typed: dict) -> None:
    """--evaluate and --predict: a file to use, and no flag that is for training. ValueError otherwise."""
    what = "evaluate" if "evaluate" in typed else "predict"
    idle = [name for name in typed if name not in (what, *USES[what])]
    paths = [typed["evaluate"]] if what == "evaluate" else typed["predict"]
    gone = [path for path in paths if not Path(path).is_file()]
    _refuse(
        [
            (idle, f"--{''.join(idle[:1])} has no effect with --{what}"),
            (what == "predict" and len(paths) < 2, "--predict needs a model file and at least one image"),
            (gone, f"--{what}: no file at '{''.join(gone[:1])}'"),
        ]
    )
    check_after(settings, typed)


def _refuse(rules: list) -> None:
    """ValueError with the message of the first rule that is broken."""
    for broken, message in rules:
        if broken:
            raise ValueError(message)
