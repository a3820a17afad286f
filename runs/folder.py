"""A run's folder: what was asked, what came of every epoch, and the state to go on from.

config.json     what was asked, resolved            metrics.jsonl   one row an epoch
checkpoint.pt   the state after the last epoch      summary.json    what came of it, once it has ended
previous.pt     the state before that               model.pt        the smaller network, with --compact
masked.pt       the state before removal, where the smaller network was trained further
"""

import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

from runs.storage import packed, read_tensors, replace
from settings.errors import Refused
from settings.flags import FLAGS, of_kind
from settings.paths import began_in

ROOT = Path(__file__).resolve().parent.parent
FORMAT = 2


def refuse_used(out_dir: str | None) -> None:
    """Refused if a folder was named that already holds a run, or cannot be written."""
    if out_dir is None:
        return
    path = Path(out_dir)
    if (path / "config.json").exists():
        raise Refused(f"'{out_dir}' already holds a run: name another --out_dir, or go on with it by --resume {out_dir}")
    nearest = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise Refused(f"cannot write to '{out_dir}': '{nearest}' is no folder that can be written")


class Folder:
    """A run's folder, held by one process at a time: a context manager. `rows` are those of the epochs that are done;
    `state` is the checkpoint of a run that goes on, else None."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[dict] = []
        self.state: dict | None = None
        self._earlier: dict = {}
        self._source: Path | None = None
        self._lock = None

    def __enter__(self) -> "Folder":
        return self

    def __exit__(self, *_) -> None:
        self._lock.close()

    @classmethod
    def create(cls, out_dir: str | None, name: str) -> "Folder":
        """`out_dir`, or result/`name` with the first number that is free. Refused if it holds a run."""
        refuse_used(out_dir)
        path = Path(out_dir) if out_dir is not None else Path("result") / name
        try:
            folder = cls(path if out_dir is not None else _numbered(path))
            folder.path.mkdir(parents=True, exist_ok=True)
            folder._take()
        except OSError as error:
            raise Refused(f"cannot write to '{path}': {error.strerror}") from None
        return folder

    @classmethod
    def resume(cls, path: Path) -> "Folder":
        """The folder of an earlier run, at its newest readable checkpoint or the one named. Refused if there is none."""
        folder = cls(path if path.is_dir() else path.parent)
        folder._source = None if path.is_dir() else path
        folder._take()
        try:
            folder.state = folder._newest() if path.is_dir() else load_checkpoint(path)
        except Refused:
            folder._lock.close()
            raise
        folder._earlier = folder.read("config.json")
        folder.rows = folder.state["rows"]
        # what was logged after the checkpoint happens again
        replace(folder.path / "metrics.jsonl", "".join(_line(row) for row in folder.rows).encode())
        return folder

    def begin(self, config: dict) -> None:
        """Say what is asked. A run that goes on keeps its first record, and lists how it went on: `resumed`."""
        if self._source is not None:  # the run is where this checkpoint is: the newer one is none of its past
            replace(self.path / "checkpoint.pt", self._source.read_bytes())
        if self.state:
            session = {name: value for name, value in config.items() if name not in ("settings", "filters", "prunable")}
            session |= {"from_epoch": len(self.rows), "changed": self.changed(config)}
            may_change = [name for name, flag in FLAGS.items() if flag.on_resume != "same"]
            settings = {**self._earlier["settings"], **{name: config["settings"][name] for name in may_change}}
            config = {**self._earlier, "settings": settings, "resumed": [*self._earlier.get("resumed", []), session]}
            if len(self.rows) < settings["epochs"] + settings["finetune_epochs"]:
                (self.path / "summary.json").unlink(missing_ok=True)
        else:
            config = {**config, "began_in": began_in(self.path)}
        self.write("config.json", config)

    def changed(self, config: dict) -> list[str]:
        """What is not as it was when the run began, so that it will not end bit for bit as it would have."""
        if not self.state:
            return []
        flags = [name for name, flag in FLAGS.items() if flag.noted]
        then = {"processes": 1, **self._earlier, **{name: self._earlier["settings"].get(name) or 0 for name in flags}}
        now = {**config, **{name: config["settings"][name] for name in flags}}
        names = (*flags, "threads", "processes", "device_name", "versions")
        return [f"{name} was {then.get(name)}, is {now[name]}" for name in names if then.get(name) != now[name]]

    def result(self, settings) -> dict | None:
        """What came of the run, if it has ended and did all that is asked now."""
        names = [name for name in of_kind("after") if name != "finetune_lr" or settings.ending.finetune_epochs]
        then = self._earlier["settings"]
        same = all((then.get(name) or None) == (settings.flat[name] or None) for name in names)
        result = self.read("summary.json")
        if result is None or not same or len(self.rows) < settings.training.epochs + settings.ending.finetune_epochs:
            return None
        if settings.ending.compact:
            file = self.path / "model.pt"
            if "speed" not in result or not file.exists() or len(result["exports"]) < len(settings.ending.export or ()):
                return None
            result["file"]["file"] = str(file)
        return result

    def write(self, name: str, record: dict) -> None:
        """A JSON file in the folder."""
        replace(self.path / name, (json.dumps(record, indent=1) + "\n").encode())

    def read(self, name: str) -> dict | None:
        """A JSON file of the folder, or None where there is no whole one."""
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def log(self, row: dict, state: dict) -> None:
        """An epoch has ended: its row, and the state that the next one starts from."""
        self.rows.append(row)
        self.save(state)
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(_line(row))

    def save(self, state: dict) -> None:
        """A checkpoint of tensors and plain values; the one before it is kept. OSError leaves both as they were."""
        content = packed({"format": FORMAT, "rows": self.rows, **state})
        replace(self.path / "checkpoint.pt", content, keep=self.path / "previous.pt")

    def keep(self, name: str) -> None:
        """Give the checkpoint a second name that later ones do not take."""
        replace(self.path / name, (self.path / "checkpoint.pt").read_bytes())

    def _newest(self) -> dict:
        troubles = []
        for name in ("checkpoint.pt", "previous.pt"):
            try:
                state = load_checkpoint(self.path / name)
            except Refused as error:
                troubles.append(str(error))
                continue
            if troubles:  # or the next save would put the bad one in the good one's place
                (self.path / "checkpoint.pt").unlink(missing_ok=True)
            return state
        raise Refused("; ".join(troubles))

    def _take(self) -> None:
        """Hold the folder for this process; the system lets go of it when the process ends, however it ends."""
        import fcntl

        self._lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise Refused(f"another process is writing to '{self.path}'") from None


def load_checkpoint(path: Path) -> dict:
    """A checkpoint's tensors and plain values. Refused if it is missing, damaged, foreign, newer, or holds code."""
    state = read_tensors(path, "checkpoint", {"rows", "settings", "model", "optimizer", "random"}, FORMAT)
    return state if state["format"] > 1 else _from_format_1(state)


def _from_format_1(state: dict) -> dict:
    """A checkpoint from before runs had stages: what followed the last mask stood in `after`."""
    after, scratch = state.get("after"), state.get("scratch")
    fixed = {name: after[name] for name in ("epochs", "recalibrate", "finetune_lr")} if after else {}
    results = {name: after[name] for name in ("recalibration", "removal") if after and name in after}
    stage, shapes = (1, after["shapes"]) if after else (0, scratch)
    return {**state, "stage": stage, "fixed": fixed, "shapes": shapes, "results": results}


def provenance() -> dict:
    """The command, the commit and Python's version."""
    command = shlex.join(["python", *sys.argv])
    return {"command": command, "commit": _commit(), "python": platform.python_version()}


def _line(row: dict) -> str:
    return json.dumps(row) + "\n"


def _numbered(path: Path) -> Path:
    """Make the folder, or with the first number that is free: no two runs get the same one."""
    candidate, number = path, 1
    while True:
        try:
            candidate.mkdir(parents=True)
            return candidate
        except FileExistsError:
            number += 1
            candidate = path.with_name(f"{path.name}-{number}")


def _commit() -> str | None:
    """The repository's commit, with + where the working tree differs from it."""
    try:
        git = ["git", "-C", str(ROOT)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
        return commit + ("+" if changed.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return None
