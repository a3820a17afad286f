"""This file holds the rules of a run's ending, and of --evaluate and --predict; settings/rules.py says what a rule is."""

import importlib.util
import os
from pathlib import Path

from settings.effects import nothing_to_take_out
from settings.flags import FLAGS, of_kind
from settings.meaning import makes_smaller, masks_filters, scratch_model, smaller_pieces, task_of, writes_onnx, zero_filters
from settings.paths import network_of
from settings.registry import DATASETS, FACTORISATIONS, FORMS, parse_call
from settings.rules import rule, without_effect


def use_of(settings) -> tuple[str, list[str]]:
    """Which of "evaluate" and "predict" is asked for, and the paths that it names: a model.pt or .onnx file, then images."""
    typed = settings.typed
    return ("evaluate", [typed["evaluate"]]) if "evaluate" in typed else ("predict", typed["predict"])


def files_to_write(settings) -> list[Path]:
    """The paths that --export names."""
    return [Path(name) for name in settings.ending.export or ()]


def folders_of_others(settings) -> list[tuple[Path, Path]]:
    """Each file that --export was typed for now, with its folder, unless that is the folder that the run makes itself."""
    out_dir = settings.run.out_dir
    own = None if out_dir is None else Path(out_dir).absolute()
    files = [(file, file.absolute().parent) for file in files_to_write(settings) if "export" in settings.typed]
    return [(file, folder) for file, folder in files if folder != own]


@rule("use")
def flags_go_with_the_use(settings) -> str | None:
    use, _ = use_of(settings)
    for name in settings.typed:
        if name != use and use not in FLAGS[name].goes_with:
            return f"--{name} has no effect with --{use}"


@rule("use")
def an_image_is_named(settings) -> str | None:
    use, paths = use_of(settings)
    if use == "predict" and len(paths) < 2:
        return "--predict needs a model file and at least one image"


@rule("use")
def used_files_exist(settings) -> str | None:
    use, paths = use_of(settings)
    for number, path in enumerate(paths):
        pictures = number > 0 and Path(path).is_dir()
        if not (pictures or network_of(path).is_file()):
            return f"--{use}: no network in the folder '{path}'" if Path(path).is_dir() else f"--{use}: no file at '{path}'"


@rule("ending")
def removal_takes_whole_filters(settings) -> str | None:
    if settings.ending.compact and scratch_model(settings):
        return f"--compact {nothing_to_take_out(settings)}"
    none = settings.pruning.prune_type == "none" and not zero_filters(settings)
    if settings.ending.compact and (none or smaller_pieces(settings)):
        return f"--compact takes out whole filters, and --prune_type {settings.pruning.prune_type} prunes none"


@rule("new", "saved")
def one_option_says_which_ranks(settings) -> str | None:
    if settings.ending.factorise is None:
        return None
    name, options = FACTORISATIONS.check(settings.ending.factorise)
    chosen = [option for option in ("ranks", "fraction", "macs", "params") if options.get(option, "none") != "none"]
    if len(chosen) != 1:
        said = " and ".join(chosen) or "none"
        return f"--factorise {name} needs exactly one of ranks='VBMF', fraction, macs and params, not {said}"


@rule("new", "saved")
def what_is_factorised_has_no_masks(settings) -> str | None:
    if settings.ending.factorise is None or settings.ending.compact:
        return None
    if pieces := smaller_pieces(settings):
        return f"--factorise multiplies weights out of factors, in which no mask of --prune_type {pieces} can stay"
    if settings.pruning.prune_type != "none" or zero_filters(settings):
        return (
            "--factorise takes apart the layers that pruning leaves: it needs --compact, which takes the pruned filters out first"
        )


@rule("ending")
def the_smaller_network_is_fine_tuned(settings) -> str | None:
    if settings.ending.finetune_epochs and not makes_smaller(settings):
        return "--finetune_epochs trains the smaller network: it needs --compact or --factorise"


@rule("ending")
def ending_flags_have_an_effect(settings) -> str | None:
    """By the table of flags."""
    return without_effect(settings, of_kind("ending"))


@rule("ending")
def masks_are_not_exported(settings) -> str | None:
    if files_to_write(settings) and masks_filters(settings) and not settings.use.evaluate:
        return "--export writes a network without masks: it needs --compact, which takes the masked filters out"


@rule("ending")
def a_dry_run_writes_nothing(settings) -> str | None:
    if files_to_write(settings) and settings.run.dry_run:
        return "--export writes files, --dry_run none"


@rule("ending")
def the_form_is_known(settings) -> str | None:
    try:
        return FORMS.check(settings.ending.form or "deep_compression") and None
    except ValueError as error:
        return str(error)


@rule("ending")
def a_form_is_of_weights(settings) -> str | None:
    if settings.ending.form and masks_filters(settings):
        return f"--form {settings.ending.form}: with --prune_type structured it needs --compact, since masks are in no file"


@rule("ending")
def a_form_on_integers_has_one_output(settings) -> str | None:
    if writes_onnx(settings) and task_of(DATASETS.entry(settings.data.dataset)) != "classification":
        form = parse_call(settings.ending.form)[0]
        return f"--form {form} is for networks that name the class of an image, and --dataset {settings.data.dataset} is not"


@rule("ending")
def exports_are_different_files(settings) -> str | None:
    files = [file.absolute() for file in files_to_write(settings)]
    if len({*files}) < len(files):
        return "--export names a file twice"


@rule("ending")
def exports_have_a_known_format(settings) -> str | None:
    for file in files_to_write(settings):
        if file.suffix not in (".onnx", ".pt2"):
            return f"--export {file}: choose a name that ends in .onnx or .pt2"


@rule("ending")
def exports_overwrite_nothing(settings) -> str | None:
    for file in files_to_write(settings):
        if "export" in settings.typed and file.exists():
            return f"--export {file}: there is such a file already"


@rule("ending")
def exports_have_a_folder(settings) -> str | None:
    for file, folder in folders_of_others(settings):
        if not folder.is_dir():
            return f"--export {file}: no folder '{file.parent}'"


@rule("ending")
def exports_can_be_written(settings) -> str | None:
    for file, folder in folders_of_others(settings):
        if not os.access(folder, os.W_OK):
            return f"--export {file}: cannot write to '{file.parent}'"


@rule("ending")
def onnx_is_installed(settings) -> str | None:
    asked = [f"--export {file}" for file in files_to_write(settings) if file.suffix == ".onnx"]
    asked += [f"--form {settings.ending.form}"] if writes_onnx(settings) else []
    missing = _not_installed("onnx", "onnxscript", "onnxruntime")
    if asked and missing:
        return f"{asked[0]} needs packages that are not here: pip install {' '.join(missing)}"


@rule("use")
def an_onnx_file_is_computed_as_it_is(settings) -> str | None:
    _, (model, *_) = use_of(settings)
    for name in ("export", "amp"):
        if Path(model).suffix == ".onnx" and name in settings.typed:
            return f"--{name} has no effect on {model}: an .onnx file is computed as it is"


@rule("use")
def onnx_files_can_be_read(settings) -> str | None:
    use, (model, *_) = use_of(settings)
    missing = _not_installed("onnx", "onnxruntime")
    if Path(model).suffix == ".onnx" and missing:
        return f"--{use} {model} needs packages that are not here: pip install {' '.join(missing)}"


def _not_installed(*packages: str) -> list[str]:
    return [name for name in packages if importlib.util.find_spec(name) is None]
