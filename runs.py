"""A run's folder: what was asked (config.json), and one row an epoch of what came of it (metrics.jsonl)."""

import json
import platform
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent


def refuse_used(out_dir: str | None) -> None:
    """FileExistsError if a folder was named that already holds a run."""
    if out_dir is not None and (Path(out_dir) / "config.json").exists():
        raise FileExistsError(f"'{out_dir}' already holds a run: name another --out_dir, or leave it out for a numbered one")


class Folder:
    """A folder of its own for one run: `out_dir`, or result/`name` with a number where that is taken."""

    def __init__(self, out_dir: str | None, name: str):
        refuse_used(out_dir)
        self.path = _numbered(Path("result") / name) if out_dir is None else Path(out_dir)
        self.path.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, record: dict) -> None:
        """A JSON file in the folder; config.json also says the command, the commit and Python's version."""
        if name == "config.json":
            command = shlex.join(["python", *sys.argv])
            record = {"command": command, "commit": _commit(), "python": platform.python_version(), **record}
        (self.path / name).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    def log(self, row: dict) -> None:
        """Append one epoch's row."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _numbered(path: Path) -> Path:
    """The path itself, or with the first number that is free."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def _commit() -> str | None:
    """The repository's commit, with + where the working tree differs from it."""
    try:
        git = ["git", "-C", str(ROOT)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True).stdout
        return commit + ("+" if changed.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return None
