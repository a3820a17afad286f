"""This file is the table of flags: it alone says what can be typed, what that means, and when it has no effect.

The parser and its help, the sections of the settings, what may change on --resume, and the refusal of flags without effect
are all derived from it. `FLAGS` maps a name to its flag, `SECTIONS` a section of the settings to the names of its flags.
"""

from settings import effects, procedure_effects, task_effects, teacher_effects
from settings.parsing import Flag, frequency, number
from settings.recipes import RECIPES
from settings.registry import (
    AUGMENTATIONS,
    CRITERIA,
    DATASETS,
    DISTILLATIONS,
    FACTORISATIONS,
    FORMS,
    GATES,
    GRANULARITIES,
    LEARNING_RATES,
    NETWORKS,
    OPTIMISERS,
    PHASES,
    PROCEDURES,
    RECONSTRUCTIONS,
    REGULARIZERS,
    SCHEDULES,
    SCOPES,
    presets,
)

SWITCH = {"action": "store_true", "default": False}
ANY = {"on_resume": "any"}
BOTH, EVALUATE = {"goes_with": ("evaluate", "predict")}, {"goes_with": ("evaluate",)}
# flags that say how much goes have no effect beside published counts, or with a criterion that finds its own
GIVEN = (effects.no_pruning, procedure_effects.masks_are_given)
AMOUNT = (effects.no_pruning, effects.finds_its_counts, effects.beside_counts, procedure_effects.procedure_says_amounts)


def _pruning(name: str, text: str, no_effect: tuple = (effects.no_pruning,), **rest) -> Flag:
    decided = () if name in ("prune_type", "prune_gate") else (effects.gate_decides,)
    return Flag(name, "pruning", "method", text, no_effect=(effects.pattern_decides, *decided, *no_effect), **rest)


def _training(name: str, text: str, **rest) -> Flag:
    return Flag(name, "training", "method", text, **rest)


def _listens(name: str, text: str, **rest) -> Flag:
    return Flag(name, "data", "method", text, no_effect=(effects.not_of_the_data_set(name),), **rest)


# fmt: off
GROUPS = {
    "experiment": (
        Flag("recipe", "run", "output", "defaults of a published setting, or the best one found here; typed flags win",
             choices=tuple(sorted(RECIPES))),
        Flag("procedure", "run", "method", "in which stages. {listing} (default once)", default="once", registry=PROCEDURES,
             no_effect=(procedure_effects.no_repair,)),
        Flag("seed", "run", "method", "of weights, order and crops (default 0)", type=number(int, 0, 2**31), default=0,
             tells_apart=False),
        Flag("out_dir", "run", "output", "folder for config.json and metrics.jsonl (default: numbered, below result/)"),
        Flag("resume", "run", "output", "go on with the run in this folder, or from this checkpoint in it", metavar="PATH",
             **ANY),
        Flag("tensorboard", "run", "output", "also write the scalars as TensorBoard events", **SWITCH, **ANY),
        Flag("quiet", "run", "output", "no bar and no notes on stderr", **SWITCH, on_resume="anew", **BOTH),
        Flag("dry_run", "run", "output", "two batches of everything, then stop; writes no file. The data must be there, as with "
             "--dataset digits it always is", **SWITCH),
    ),
    "network and data": (
        Flag("layers", "network", "method", "ResNet depth: 20 32 44 56 110, 18 34 50 101 152 (default 50)", type=int, default=50),
        Flag("arch", "network", "method", "a network by name: {names}", registry=NETWORKS),
        Flag("scratch", "network", "method",
             "the smaller network of this model.pt, or run, trained anew from fresh weights: the control of pruning",
             metavar="MODEL"),
        Flag("widths", "network", "method", "give each stage of the network the mean width that it has in these pruned runs or "
             "model.pt files, and fresh weights (guided pruning)", nargs="+", metavar="RUN"),
        Flag("pattern", "network", "method", "cut single weights before the first step at random, by the mean pattern that each "
             "stage's kernels have in these runs of --prune_type unstructured or kernels (guided sparsification)", nargs="+",
             metavar="RUN"),
        Flag("init", "network", "method", "weights of a trained network to begin with: a run's folder, a checkpoint, a model.pt, "
             "also one of a pruned or factorised network", metavar="PATH", no_effect=(procedure_effects.weights_are_given,)),
        Flag("shortcut", "network", "method", "of ResNet-20 to 110 (default projection)", choices=("projection", "pad"),
             no_effect=(effects.beside_preset, effects.no_shortcut)),
        Flag("dataset", "data", "method", "digits is inside scikit-learn and needs no download; folder reads "
             "DIR/train/CLASS/IMAGE and DIR/test, voc pictures with boxes as PASCAL VOC lays them out (default cifar10)",
             choices=lambda: list(DATASETS.entries),
             default="cifar10", **EVALUATE),
        Flag("data_dir", "data", "engine", "where the data is, or is downloaded to (default data)", default="data",
             no_effect=(effects.not_of_the_data_set("data_dir"),), **ANY, **EVALUATE),
        _listens("image_size", "pixels of a side, for data sets without a size of their own (default 32)",
                 type=number(int, 8, 1024), default=32),
        _listens("channels", "of the images of such data sets: 1 grey, 3 colours (default 3)", type=int, choices=(1, 3),
                 default=3),
        _listens("fit", "how pictures of folder become square: crop the sides of the longer edge, pad with white, or stretch "
                 "(default crop)", choices=("crop", "pad", "stretch"), default="crop"),
        Flag("val_size", "data", "method", "fraction of the training set held out for every choice; 0 validates on the test set, "
             "as the authors did (default 0.1)", type=number(float, 0, 1, below=True), default=0.1),
        _listens("test_size", "for a folder without a test part: the fraction of DIR/train, or of DIR/CLASS/IMAGE, that becomes "
                 "it, always the same images", type=number(float, 0, 1, above=True, below=True), **EVALUATE),
        Flag("class_weights", "data", "method", "of the loss: balanced lets each class count alike, however many training images "
             "it has (default none)", choices=("none", "balanced"), default="none",
             no_effect=(task_effects.weighs_whole_images,)),
        Flag("labelled", "data", "method", "fraction of each class's training images that keep their labels, chosen by --seed; "
             "of the others none is read", type=number(float, 0, 1, above=True, below=True)),
        Flag("unlabelled", "data", "engine", "a folder of pictures without classes, for a procedure that learns from them",
             metavar="DIR", no_effect=(procedure_effects.learns_from_labels_alone,), **ANY),
        Flag("augment", "data", "method", "how training images are changed at random. {listing} (default crop_flip, for digits "
             "and mnist crop, for pictures with boxes ssd)", registry=AUGMENTATIONS,
             no_effect=(task_effects.augments_other_targets,)),
        Flag("normalise", "data", "method", "by the training set's channel mean and deviation, or all by 0.5 (default dataset)",
             choices=("dataset", "half"), default="dataset"),
    ),
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
        Flag("evaluate", "use", "use", "test a model.pt or .onnx file, on its own data set or on --dataset", metavar="MODEL"),
        Flag("predict", "use", "use", "classes and probabilities of image files, or of those in a folder", nargs="+",
             metavar=("MODEL", "IMAGE")),
        Flag("draw", "use", "use", "write the pictures of --predict with the boxes that were found into this folder",
             metavar="DIR", goes_with=("predict",), no_effect=(task_effects.draws_no_boxes,)),
    ),
    "regulariser": (
        _training("reg", "none, or: {listing} (default none)", default="none", registry=REGULARIZERS),
        _training("odecay", "alpha, its weight in the loss (default: the weight that --reg lists)", type=number(float, 0),
                  no_effect=(effects.no_penalty,)),
    ),
    "teacher": (
        # where it is may change: a run knows its teacher by the file's hash
        Flag("teacher", "training", "engine", "a trained network that teaches this one: a run's folder, a checkpoint or a "
             "model.pt; or dense, the network as it is before anything is cut", metavar="PATH", tells_apart=True,
             no_effect=(teacher_effects.nothing_taught, teacher_effects.nothing_dense), **ANY),
        _training("distill", "by which losses, one or several as in \"KD + AT\". {listing} (default none, with --teacher KD)",
                  default="none", registry=DISTILLATIONS, no_effect=(teacher_effects.no_teacher,)),
    ),
    "optimisation": (
        _training("epochs", "default 300", type=number(int, 1, 1_000_000), default=300, on_resume="more", noted=True),
        _training("batch_size", "images a step (default 128)", type=number(int, 2), default=128),
        _training("optimizer", "{listing} (default sgd)", default="sgd", registry=OPTIMISERS),
        _training("lr", "learning rate (default 0.2)", type=number(float, 0, above=True), default=0.2),
        _training("momentum", "default 0.9", type=number(float, 0, 1, below=True), default=0.9, no_effect=(effects.no_momentum,)),
        _training("weight_decay", "default 1e-4", type=number(float, 0), default=1e-4,
                  no_effect=(effects.weights_are_frozen,)),
        _training("lr_schedule", "{listing} (default step)", default="step", registry=LEARNING_RATES),
        _training("warmup_epochs", "linear rise of the learning rate (default 0)", type=number(float, 0), default=0.0),
    ),
    "engine": (
        Flag("device", "engine", "engine", "default: the best there is", choices=("cpu", "cuda", "mps"), **ANY, **BOTH),
        Flag("amp", "engine", "engine", "default: bfloat16 where the device is faster with it; --evaluate: off",
             choices=("bfloat16", "off"), tells_apart=True, **EVALUATE),
        Flag("compile", "engine", "engine", "capture the step by torch.compile, on CUDA with CUDA graphs; the start takes longer "
             "(default: on CUDA)", action="store_true", opposite="run each operation by itself", noted=True, **ANY),
        Flag("threads", "engine", "engine", "CPU threads (default: torch's choice)", type=number(int, 1, 1024), **ANY, **BOTH),
        Flag("deterministic", "engine", "engine", "same command, same numbers; slower on CUDA", **SWITCH),
    ),
}
# fmt: on
# what a group's title leaves out
DESCRIPTIONS = {
    "pruning": "options go in the name: \"L1(reduce='mean')\"",
    "how much is left": "instead of --prune_rate, for structured pruning",
    "and then": "also for a run that has ended: --resume DIR --compact",
}
FLAGS = {flag.name: flag for flags in GROUPS.values() for flag in flags}
SECTIONS = {
    section: tuple(flag.name for flag in FLAGS.values() if flag.section == section)
    for section in ("run", "network", "data", "pruning", "training", "ending", "use", "engine")
}


def of_kind(*kinds: str) -> tuple[str, ...]:
    """The names of the flags of these kinds, in the order of the table."""
    return tuple(flag.name for flag in FLAGS.values() if flag.kind in kinds)


def defaults() -> dict:
    """The value of every flag in the plain command, before what depends on other flags is resolved."""
    return {name: flag.default for name, flag in FLAGS.items()}
