"""A run's folder holds what was asked, what came of every epoch, and the state to go on from.

config.json     what was asked, resolved            metrics.jsonl   one row an epoch
checkpoint.pt   the state after the last epoch      summary.json    what came of it, once it has ended
previous.pt     the state before that               model.pt        the smaller network, with --compact
masked.pt       the state before removal, where the smaller network was trained further
"""

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

from runs.checkpoints import FORMAT, load_checkpoint
from runs.records import measured, rows_fit
from runs.schemas import RESULT
from runs.storage import MOST, append, as_json, held, packed, replace
from settings.earlier import read_record
from settings.errors import Refused
from settings.files import Damaged, Missing, fitting, read_json, read_whole
from settings.flags import FLAGS, of_kind
from settings.meaning import makes_smaller
from settings.paths import began_in
from settings.saved import counted

ROOT = Path(__file__).resolve().parent.parent


def refuse_used(out_dir: str | None) -> None:
    """Raise Refused if `out_dir` names a folder that already holds a run, or that cannot be written."""
    if out_dir is None:
        return
    path = Path(out_dir)
    if (path / "config.json").exists():
        raise Refused(f"'{out_dir}' already holds a run: name another --out_dir, or go on with it by --resume {out_dir}")
    nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise Refused(f"cannot write to '{out_dir}': '{nearest}' is no folder that can be written")


class Folder:
    """A run's folder is held by one process at a time, for as long as this context manager lasts.

    `rows` are those of the epochs that are done; `state` is the checkpoint of a run that goes on, else None.
    """

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[dict] = []
        self.state: dict | None = None
        self._earlier: dict = {}
        self._source: Path | None = None
        self._measures: tuple[str, ...] = ()
        self._lock = None
        self.notes: list[str] = []  # for stderr

    def __enter__(self) -> "Folder":
        return self

    def __exit__(self, *_) -> None:
        self._lock.close()

    @classmethod
    def create(cls, out_dir: str | None, name: str) -> "Folder":
        """Make the folder `out_dir` or, where that is None, result/`name` with the first number that is free.

        Raises Refused if it holds a run, or cannot be written.
        """
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
    def resume(cls, path: Path, measures: tuple[str, ...] = (), trained: tuple[str, ...] = ()) -> "Folder":
        """The folder of an earlier run, with the state of its newest readable checkpoint, or of the one that `path` names.

        `measures` are the names of those that its lines tell of an evaluation, `trained` of the training batches.

        Raises Refused where no checkpoint can be read, or where another process holds the folder.
        """
        folder = cls(path if path.is_dir() else path.parent)
        folder._source, folder._measures = None if path.is_dir() else path, measures
        folder._take()
        try:
            folder._earlier = read_record(folder.path)
            folder.state = folder._newest() if path.is_dir() else load_checkpoint(path)
            folder.rows = folder.state["rows"]
            with fitting(path, "run"):
                pruned = folder._earlier["settings"]["prune_type"] != "none"
                filters = folder._earlier.get("filters") if pruned else None
                rows_fit(folder.rows, filters, folder._earlier.get("prunable"), {"train": trained, "valid": measures})
        except Refused:
            folder._lock.close()
            raise
        # the epochs that were logged after the checkpoint are trained again
        replace(folder.path / "metrics.jsonl", b"".join(map(as_json, folder.rows)))
        return folder

    def begin(self, config: dict) -> None:
        """Write what is asked as config.json. A run that goes on keeps its first record, and adds this session to `resumed`."""
        if self._source is not None:  # the run goes on from the checkpoint that was named: newer ones are not of its past
            replace(self.path / "checkpoint.pt", read_whole(self._source, "checkpoint", MOST))
        if self.state:
            session = {name: value for name, value in config.items() if name not in ("settings", "filters", "prunable")}
            session |= {"from_epoch": len(self.rows), "changed": self.changed(config)}
            may_change = [name for name, flag in FLAGS.items() if flag.on_resume != "same"]
            settings = counted(self._earlier["settings"] | {name: config["settings"][name] for name in may_change})
            config = {
                **self._earlier,
                "settings": settings,
                "plan": config["plan"],
                "resumed": [*self._earlier.get("resumed", []), session],
            }
            if len(self.rows) < sum(stage["epochs"] for stage in config["plan"]):
                (self.path / "summary.json").unlink(missing_ok=True)
        self.write("config.json", {**config, "began_in": began_in(self.path)})

    def changed(self, config: dict) -> list[str]:
        """Lines such as "threads was 2, is 1": each keeps the run from ending bit for bit as it would have."""
        if not self.state:
            return []
        flags = [name for name, flag in FLAGS.items() if flag.noted]
        then = {"processes": 1, **self._earlier, **{name: self._earlier["settings"].get(name) or 0 for name in flags}}
        now = {**config, **{name: config["settings"][name] for name in flags}}
        names = (*flags, "threads", "processes", "device_name", "versions")
        return [f"{name} was {then.get(name)}, is {now[name]}" for name in names if then.get(name) != now[name]]

    def result(self, settings, epochs: int) -> dict | None:
        """The result of the run, if it has ended after so many epochs and did all that is asked for now; None otherwise."""
        names = [name for name in of_kind("ending") if name != "finetune_lr" or settings.ending.finetune_epochs]
        then = self._earlier["settings"]
        same = all((then.get(name) or None) == (settings.flat[name] or None) for name in names)
        if not same or len(self.rows) < epochs:
            return None
        try:
            result = read_json(self.path / "summary.json", "summary", RESULT)
        except (Missing, Damaged):  # the run was killed while it ended: its end is computed again
            return None
        with fitting(self.path / "summary.json", "summary"):
            measured(result["test"], self._measures, "test")
        last, best = ([as_json(result[name])] if name in result else [] for name in ("last", "best"))
        rows = [*map(as_json, self.rows)]
        if last != rows[-1:] or len(best) != len(last) or not {*best} <= {*rows}:
            raise Refused(f"'{self.path / 'summary.json'}' is of other epochs than the checkpoint")
        if settings.ending.form:
            if "form" not in result or not (file := self.path / Path(result["form"]["file"]).name).exists():
                return None
            result["form"]["file"] = str(file)
        made = {"file", "speed", "removal" if settings.ending.compact else "factorisation"} if makes_smaller(settings) else set()
        if not made <= result.keys() or len(result.get("exports", ())) < len(settings.ending.export or ()):
            return None
        if "file" in result:  # which older dense runs have not written
            if not (file := self.path / "model.pt").exists():
                return None
            result["file"]["file"] = str(file)
        return result

    def write(self, name: str, record: dict) -> None:
        """Write a record as the JSON file `name` of the folder. Failed if it holds a number that is not finite."""
        replace(self.path / name, as_json(record, indent=1))

    def log(self, row: dict, state: dict) -> None:
        """Keep what came of an epoch: its row, and the state that the next epoch starts from."""
        line = as_json(row)
        self.rows.append(row)
        self.save(state)
        append(self.path / "metrics.jsonl", line)

    def save(self, state: dict) -> None:
        """Write a checkpoint of tensors and plain values, and keep the one before it; an OSError leaves both as they were."""
        content = packed({"format": FORMAT, "rows": self.rows, **state})
        replace(self.path / "checkpoint.pt", content, keep=self.path / "previous.pt")

    def keep(self, name: str) -> None:
        """Copy the checkpoint to the file `name`, which later checkpoints do not replace."""
        replace(self.path / name, read_whole(self.path / "checkpoint.pt", "checkpoint", MOST))

    def _newest(self) -> dict:
        """The state of the newest checkpoint that is whole. Refused, with all troubles, where none is.

        Only one that was read and is damaged is passed over: one that could not be read may be good.
        """
        troubles = []
        for name in ("checkpoint.pt", "previous.pt"):
            try:
                state = load_checkpoint(self.path / name)
            except (Missing, Damaged) as error:
                troubles.append(str(error))
                continue
            if troubles:  # otherwise the next save would replace the good checkpoint with the damaged one
                (self.path / "checkpoint.pt").unlink(missing_ok=True)
            return state
        raise Refused("; ".join(troubles))

    def _take(self) -> None:
        """Hold the folder for this process: the system releases the lock when the process ends, however it ends."""
        self._lock, warning = held(self.path / ".lock")
        if self._lock is None:
            raise Refused(f"another process is writing to '{self.path}'")
        self.notes += [warning] if warning else []


def provenance() -> dict:
    """What config.json says of where a run comes from: the command, the commit and Python's version."""
    command = shlex.join(["python", *sys.argv])
    return {"command": command, "commit": _commit(), "python": platform.python_version()}


def _numbered(path: Path) -> Path:
    """Make the folder `path`, or where it exists the first free one of path-2, path-3, ...: no two runs get the same."""
    candidate, number = path, 1
    while True:
        try:
            candidate.mkdir(parents=True)
            return candidate
        except FileExistsError:
            number += 1
            candidate = path.with_name(f"{path.name}-{number}")


def _commit() -> str | None:
    """The repository's commit, with + where the working tree differs from it; None outside of a repository."""
    try:
        git = ["git", "-C", str(ROOT)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
        return commit + ("+" if changed.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return None
