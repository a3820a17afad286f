"""This file has the flags that say what is cut, how much is left of the network, and what becomes of it then."""

from settings import effects, procedure_effects, task_effects
from settings.parsing import ANY, EVALUATE, SWITCH, Flag, frequency, number
from settings.registry import (
    CRITERIA,
    FACTORISATIONS,
    FORMS,
    GATES,
    GRANULARITIES,
    PHASES,
    RECONSTRUCTIONS,
    SCHEDULES,
    SCOPES,
    presets,
)

# flags that say how much goes have no effect beside published counts, or with a criterion that finds its own
GIVEN = (effects.no_pruning, procedure_effects.masks_are_given)
AMOUNT = (effects.no_pruning, effects.finds_its_counts, effects.beside_counts, procedure_effects.procedure_says_amounts)


def _pruning(name: str, text: str, no_effect: tuple = (effects.no_pruning,), **rest) -> Flag:
    decided = () if name in ("prune_type", "prune_gate", "keep") else (effects.gate_decides,)
    return Flag(name, "pruning", "method", text, no_effect=(effects.pattern_decides, *decided, *no_effect), **rest)


# fmt: off
PRUNING = {
    "pruning": (
        _pruning("prune_type", "what is cut: whole filters, single weights, or k x k kernels (default none)",
                 (effects.beside_preset,), default="none",
                 choices=lambda: ("none", *sorted(GRANULARITIES.entries, reverse=True))),
        _pruning("prune_rate", "fraction removed (default 0.6)", (*AMOUNT, effects.by_the_scope),
                 type=number(float, 0, 1, below=True), default=0.6),
        _pruning("prune_imp", "by what measure. {listing} (default L1)", GIVEN, default="L1", registry=CRITERIA),
        _pruning("prune_scope", "compared with whom. {listing} (default global)",
                 (*GIVEN, effects.finds_its_counts, effects.beside_preset, effects.nothing_returns), default="global",
                 registry=SCOPES),
        _pruning("prune_phase", "when. {listing} (default dynamic)", (effects.no_pruning, procedure_effects.procedure_cuts),
                 default="dynamic", registry=PHASES),
        _pruning("rounds", "so many times cut a part and train on: short for --prune_phase \"iterative(rounds=N)\"",
                 (*AMOUNT, procedure_effects.procedure_cuts),
                 type=number(int, 1, 1000)),
        _pruning("preset", "a published number of filters for each layer, and the network it is for",
                 (effects.finds_its_counts, procedure_effects.procedure_says_amounts),
                 choices=lambda: sorted(presets())),
        _pruning("prune_schedule", "how the rate grows from update to update, or round to round. {listing} (default constant, "
                 "iterative: linear, init in rounds: exponential)",
                 (effects.no_pruning, procedure_effects.procedure_cuts, effects.one_cut, *AMOUNT[1:3], effects.by_the_scope),
                 default="constant",
                 registry=SCHEDULES),
        _pruning("prune_freq", "epochs or iterations between masks (default 1ep)",
                 (effects.no_pruning, procedure_effects.procedure_cuts, effects.due_is_unused), type=frequency, default="1ep"),
        _pruning("prune_until", "fraction of the run after which masks are fixed; of phase after, when it cuts (default 0.75)",
                 (effects.no_pruning, procedure_effects.procedure_cuts, effects.until_is_unused),
                 type=number(float, 0, 1, above=True), default=0.75, resolved=(0.0,)),
        _pruning("prune_gate", "where a filter mask acts, or which gates learn what is cut. {listing} (default output)",
                 (effects.no_pruning, effects.one_place, effects.gate_option_without_effect), default="output", registry=GATES),
        _pruning("reconstruct", "what repairs the layers that read what is left, or what is left itself, after one cut. "
                 "{listing} (default none)",
                 (effects.no_pruning, procedure_effects.repairs_nothing, effects.other_pieces, effects.several_cuts,
                  effects.nothing_trained, effects.not_as_removed), default="none", registry=RECONSTRUCTIONS),
        _pruning("keep", "layers that are never cut, by their paths, such as stem \"stage1.*\"; rates are of the others",
                 (*GIVEN, effects.weights_are_frozen), nargs="+", metavar="LAYER"),
        _pruning("score_batches", "training batches that criteria which read images measure on (default 4)",
                 (*GIVEN, procedure_effects.selects_on_held_out_images, effects.reads_no_images,
                  effects.reads_images_of_each_class),
                 type=number(int, 1), default=4),
    ),
    "how much is left": (
        _pruning("target_macs", "fraction of the MACs that removal may leave", (*AMOUNT, effects.no_whole_filters),
                 type=number(float, 0, 1, above=True, below=True), metavar="LEFT"),
        _pruning("target_params", "fraction of the parameters that it may leave", (*AMOUNT, effects.no_whole_filters),
                 type=number(float, 0, 1, above=True, below=True), metavar="LEFT"),
        _pruning("round_to", "a multiple that each layer's filters are rounded up to (default 1)",
                 (effects.no_pruning, effects.beside_counts, effects.no_whole_filters), type=number(int, 1, 1024), default=1),
        _pruning("residual", "free: any filter may go; grouped: those that write one channel of a residual stream go together, "
                 "so that it leaves the stream (default free)", (effects.no_pruning, effects.no_whole_filters),
                 choices=("free", "grouped"), default="free"),
    ),
    "and then": (
        Flag("compact", "ending", "ending", "take the pruned filters out: a smaller network with the same outputs, checked, "
             "timed, saved as model.pt", tells_apart=False, no_effect=(effects.nothing_to_take_out,), **SWITCH, **ANY),
        Flag("factorise", "ending", "method", "put factors of lower rank in place of layers: before the first epoch of a trained "
             "network (--init), otherwise at the end, after --compact. {listing}", registry=FACTORISATIONS),
        Flag("recalibrate", "ending", "ending", "measure batch norm's statistics anew on so many training batches after the last "
             "mask (default 0)", type=number(int, 0), default=0, metavar="BATCHES", **ANY),
        Flag("finetune_epochs", "ending", "ending", "epochs after --compact (default 0)", type=number(int, 0, 1_000_000),
             default=0, noted=True, **ANY),
        Flag("finetune_lr", "ending", "ending", "its learning rate (default 0.01 x --lr)", type=number(float, 0, above=True),
             no_effect=(effects.no_finetuning,), **ANY),
        Flag("export", "ending", "ending", "write .onnx (checked by onnxruntime) or .pt2 files", nargs="+", metavar="FILE",
             tells_apart=False, **ANY, **EVALUATE),
        Flag("export_input", "ending", "ending", "what these files, and a form's .onnx file, take: bytes (n, height, width, "
             "channels), which they normalise themselves, or normalised floats (n, channels, height, width) (default bytes)",
             choices=("bytes", "normalised"),
             tells_apart=False, no_effect=(effects.no_export,), **ANY, **EVALUATE),
        Flag("form", "ending", "ending", "another representation of the network, in a file of the run's folder. {listing}",
             registry=FORMS, tells_apart=False, **ANY),
        Flag("evaluate", "use", "use", "test a model.pt or .onnx file, or the last network of a run's folder, on its own "
             "data set or on --dataset", metavar="MODEL"),
        Flag("predict", "use", "use", "classes and probabilities of image files, or of those in a folder, by such a network",
             nargs="+", metavar=("MODEL", "IMAGE")),
        Flag("draw", "use", "use", "write the pictures of --predict with the boxes that were found into this folder",
             metavar="DIR", goes_with=("predict",), no_effect=(task_effects.draws_no_boxes,)),
    ),
}
# fmt: on
