"""This file gives every command that takes an earlier run that run's own settings.

--resume goes on with all of them. --init, --scratch, --teacher, --evaluate, sensitivity.py and the benchmarks that take a
run take its data settings: the data set, where it is, the size of its images and how they are normalised and held out.
"""

from pathlib import Path

from settings.errors import Refused
from settings.files import Missing, fitting, read_json
from settings.flags import FLAGS, SECTIONS, defaults
from settings.meaning import pixels_of, task_of, teaching_run
from settings.paths import TORCHVISION, located
from settings.recipes import RECIPES, RETRAINS
from settings.registry import DATASETS
from settings.saved import CONFIG, check_settings, named_as_today


def folder_of(path: Path) -> Path:
    """The folder of the run that `path` names: a folder is itself, a checkpoint or a model.pt is in it."""
    return path if path.is_dir() else path.parent


def read_record(folder: Path) -> dict:
    """The record of the run in a folder, from its config.json. Raises Missing where there is none, Refused as `read_json`."""
    path = folder / "config.json"
    record = read_json(path, "record of a run", CONFIG)
    record["settings"] = named_as_today(record["settings"])
    with fitting(path, "record of a run"):
        check_settings(record["settings"], [*FLAGS, "typed"])
    return record


def saved_settings(folder: Path) -> dict | None:
    """The settings of the run in a folder, by flag, its data where that is now; None without a run. Refused as `read_record`."""
    try:
        record = read_record(folder)
    except Missing:
        return None
    saved = record["settings"]
    began, paths = record.get("began_in"), ("data_dir", "teacher", "unlabelled")
    return saved | {name: located(saved[name], folder, began) for name in paths if saved.get(name) is not None}


def settings_of(path: Path) -> dict | None:
    """What `saved_settings` returns for the run that `path` names. Beside a file a config.json that is no record says nothing."""
    try:
        return saved_settings(folder_of(path))
    except Refused:
        if path.is_dir():
            raise
        return None  # a file of this program says itself what its data was


def with_data_of(settings, saved: dict):
    """The settings with the data settings of an earlier run; `saved` holds that run's settings by flag.

    What was typed, and what a recipe says, is kept. Where another data set was typed, no data settings are taken from the run.
    A recipe that trains a network on at a part of its learning rate takes that. Refused where the run does not say it.
    """
    if retrains(settings):
        if "lr" not in saved:
            init = settings.network.init
            raise Refused(
                f"--recipe {settings.run.recipe}: '{init}' does not say at which learning rate it was trained: type --lr"
            )
        settings = settings.replace(lr=saved["lr"] / RETRAINS[settings.run.recipe])
    # pictures without classes are its procedure's
    data = {name: saved[name] for name in SECTIONS["data"] if saved.get(name) is not None and name != "unlabelled"}
    if settings.typed.get("dataset", data.get("dataset")) != data.get("dataset"):
        return settings
    chosen = settings.typed.keys() | RECIPES.get(settings.run.recipe, {}).keys()
    return settings.replace(**{name: value for name, value in data.items() if name not in chosen})


def retrains(settings) -> bool:
    """Whether the learning rate is a part, said by the recipe, of that of the run that --init names."""
    return settings.run.recipe in RETRAINS and settings.network.init is not None and "lr" not in settings.typed


def taken_over(settings) -> list[str]:
    """The lines that tell which settings are those of the run that --init, --scratch or --teacher names."""
    path, plain = settings.network.init or settings.network.scratch or teaching_run(settings), defaults()
    implied = {"augment", *(["image_size"] if pixels_of(settings.network.arch) else [])}
    implied |= {"fit"} if task_of(DATASETS.entry(settings.data.dataset)) == "detection" else set()
    names = [name for name in SECTIONS["data"] if name not in settings.typed and name not in implied]
    flags = [f"--{name} {getattr(settings.data, name)}" for name in names if getattr(settings.data, name) != plain[name]]
    lines = [f"data as in '{path}': {' '.join(flags)}"] if path and flags and not path.startswith(TORCHVISION) else []
    if retrains(settings):
        lines.append(f"learning rate {settings.training.lr:g}, 1/{RETRAINS[settings.run.recipe]} of that of '{path}'")
    return lines


def with_data_of_run(settings, path: str | None):
    """The settings with the data settings of the run that `path` names, where it has a config.json; see `with_data_of`."""
    saved = settings_of(Path(path)) if path and Path(path).exists() else None
    return settings if saved is None else with_data_of(settings, saved)


def as_measured_on(settings, path: str):
    """The settings of a command that measures the network of the run that `path` names: its data, batch size and seed.

    Raises Refused for a typed flag that says other data than the run was trained on; only where it is may have changed.
    """
    folder = folder_of(Path(path))
    saved = settings_of(Path(path))
    if saved is None:  # a file by itself: what it holds of its run is read with its weights
        return settings
    saved = defaults() | saved  # a flag that is newer than the run was at its default
    for name in SECTIONS["data"]:
        if name in settings.typed and FLAGS[name].kind == "method" and settings.typed[name] != saved[name]:
            raise Refused(f"--{name} {settings.typed[name]} contradicts the run in '{folder}', which has {saved[name]}")
    return settings.replace(**{name: saved[name] for name in ("batch_size", "seed") if name not in settings.typed})
