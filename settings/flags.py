"""This file is the table of flags: it alone says what can be typed, what that means, and when it has no effect.

The parser and its help, the sections of the settings, what may change on --resume, and the refusal of flags without effect
are all derived from it. `FLAGS` maps a name to its flag, `SECTIONS` a section of the settings to the names of its flags.
"""

from settings import effects, procedure_effects, task_effects, teacher_effects, training_effects
from settings.parsing import ANY, BOTH, EVALUATE, SWITCH, Flag, number
from settings.pruning_flags import PRUNING
from settings.recipes import RECIPES
from settings.registry import (
    AUGMENTATIONS,
    DATASETS,
    DISTILLATIONS,
    LEARNING_RATES,
    NETWORKS,
    OPTIMISERS,
    PROCEDURES,
    REGULARIZERS,
)


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
        Flag("arch", "network", "method", "a network by name: {names}; or one of your own, mynet.py:build: a function in a file "
             "that returns a torch.nn.Module", registry=NETWORKS),
        Flag("scratch", "network", "method",
             "the smaller network of this model.pt, or run, trained anew from fresh weights: the control of pruning",
             metavar="MODEL"),
        Flag("widths", "network", "method", "give each stage of the network the mean width that it has in these pruned runs or "
             "model.pt files, and fresh weights (guided pruning)", nargs="+", metavar="RUN"),
        Flag("pattern", "network", "method", "cut single weights before the first step at random, by the mean pattern that each "
             "stage's kernels have in these runs of --prune_type unstructured or kernels (guided sparsification)", nargs="+",
             metavar="RUN"),
        Flag("init", "network", "method", "weights of a trained network to begin with: a run's folder, a checkpoint, a model.pt, "
             "also one of a pruned or factorised network; beside --arch also a state dict from elsewhere, or "
             "torchvision:IMAGENET1K_V1", metavar="PATH", no_effect=(procedure_effects.weights_are_given,)),
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
        Flag("memory", "data", "engine", "gigabytes that the pictures of a folder may take; more are read from their files at "
             "every step (default half of what is free)", type=number(float, 0), metavar="GB",
             no_effect=(effects.not_of_the_data_set("memory"),), **ANY, **EVALUATE),
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
        Flag("normalise", "data", "method", "by the channel mean and deviation of the training set or of ImageNet, all by 0.5, "
             "or by the mean that weights from Caffe want (default dataset)",
             choices=("dataset", "imagenet", "half", "caffe"), default="dataset"),
    ),
    **PRUNING,
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
        _training("epochs", "default 300; 0 trains nothing: the network of --init is cut, measured and saved",
                  type=number(int, 0, 1_000_000), default=300, on_resume="more", noted=True),
        _training("batch_size", "images a step (default 128)", type=number(int, 2), default=128),
        _training("accumulate", "so many batches for each step of the optimiser, which follows their mean loss (default 1)",
                  type=number(int, 1, 100_000), default=1),
        _training("optimizer", "{listing} (default sgd)", default="sgd", registry=OPTIMISERS),
        _training("lr", "learning rate (default 0.2)", type=number(float, 0, above=True), default=0.2),
        _training("momentum", "default 0.9", type=number(float, 0, 1, below=True), default=0.9, no_effect=(effects.no_momentum,)),
        _training("weight_decay", "default 1e-4", type=number(float, 0), default=1e-4,
                  no_effect=(effects.weights_are_frozen,)),
        _training("lr_schedule", "{listing} (default step)", default="step", registry=LEARNING_RATES),
        _training("freeze", "epochs at the start in which only the classifier learns, behind weights that --init gives "
                  "(default 0)", type=number(int, 0), default=0,
                  no_effect=(effects.weights_are_frozen, procedure_effects.nothing_to_freeze)),
        _training("warmup_epochs", "linear rise of the learning rate (default 0)", type=number(float, 0), default=0.0),
        _training("label_smoothing", "of the cross-entropy in training: this fraction of each label is spread evenly over all "
                  "classes (default 0)", type=number(float, 0, 1, below=True), default=0.0,
                  no_effect=(training_effects.names_no_classes,)),
        _training("mixup", "mix pairs of images, and their labels, in shares drawn from Beta(A, A) (default 0: not)",
                  type=number(float, 0, 1000), default=0.0, metavar="A", no_effect=(training_effects.names_no_classes,)),
        _training("ema", "evaluate and save the exponential moving average of the weights, of this decay a step, such as 0.999 "
                  "(default 0: not)", type=number(float, 0, 1, below=True), default=0.0, metavar="DECAY"),
        _training("keep_best", "test and save the weights of the epoch that is the best on the held-out images, not the last "
                  "epoch's", no_effect=(training_effects.gates_learn_to_the_end, training_effects.compares_trainings), **SWITCH),
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
