"""Files are written whole, and through no link; a folder is held where the system can hold it."""

import errno
import fcntl
import io
import json
import os
import stat
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import TINY, run_program

import report
from runs.folder import Folder
from runs.storage import append, as_json, packed, read_tensors, replace
from settings.errors import Failed, Refused
from settings.files import Damaged, Missing

PRUNED = ["--prune_type", "structured", "--prune_rate", "0.6"]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """The folder of a pruned run of one epoch that has ended."""
    folder = tmp_path_factory.mktemp("ended") / "run"
    run_program(*TINY, "--epochs", "1", *PRUNED, "--quiet", "--out_dir", str(folder))
    return folder


@pytest.fixture
def received(ended, tmp_path, monkeypatch):
    """A copy of that folder, all of whose files that are written on the way are links to a file of the user's, `victim`."""
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    for name in ("config.json", "checkpoint.pt"):
        Path("run", name).write_bytes((ended / name).read_bytes())
    Path("victim").write_text("mine")
    return Path("run")


LINKS = [
    ".lock",
    "config.json.new",
    "checkpoint.pt.new",
    "previous.pt",
    "metrics.jsonl",
    "metrics.jsonl.new",
    "summary.json",
    "summary.json.new",
    "model.pt",
    "model.pt.new",
    "masked.pt",
    "masked.pt.new",
    "net.pt2",
    "net.pt2.new",
]


def test_nothing_is_written_through_a_link_in_a_received_folder(received):
    for name in LINKS[1:]:
        (received / name).symlink_to("../victim" if name != "net.pt2" else "../absent")
    flags = ["--epochs", "2", "--compact", "--finetune_epochs", "1", "--export", "run/net.pt2", "--quiet"]
    run_program("--resume", "run", *flags)
    assert Path("victim").read_text() == "mine"
    assert not Path("absent").exists()
    written = {path.name for path in received.iterdir()}
    assert {"config.json", "metrics.jsonl", "summary.json", "model.pt", "masked.pt"} <= written
    assert not any(name.endswith(".new") for name in written)
    assert not any(path.is_symlink() for path in received.iterdir())


@pytest.mark.core
@pytest.mark.parametrize("target", ["../victim", "../absent"])
def test_a_lock_that_is_a_link_is_refused_in_one_line(received, target):
    (received / ".lock").symlink_to(target)
    with pytest.raises(OSError, match="symbolic links"):
        run_program("--resume", "run", "--quiet")
    assert Path("victim").read_text() == "mine"
    assert not Path("absent").exists()


@pytest.mark.core
def test_what_is_appended_is_no_link_and_no_pipe(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "link").symlink_to("victim")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(OSError):  # noqa: PT011  (its words are the system's)
            append(tmp_path / name, b"x")
    assert (tmp_path / "victim").read_text() == "mine"
    append(tmp_path / "new", b"a")
    append(tmp_path / "new", b"b")
    assert (tmp_path / "new").read_bytes() == b"ab"


def test_figures_replace_a_link(ended, tmp_path):
    (tmp_path / "victim").write_text("mine")
    for name in ("accuracy.png", "sparsity.png"):
        (tmp_path / name).symlink_to("victim")
    assert report.main([str(ended), "--plots", str(tmp_path)]) == 0
    assert (tmp_path / "victim").read_text() == "mine"
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.core
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_checkpoint_that_cannot_be_read_stays(received, monkeypatch, number):
    (received / "previous.pt").write_bytes((received / "checkpoint.pt").read_bytes())
    whole, opened = (received / "checkpoint.pt").read_bytes(), os.open

    def no_checkpoint(path, *rest, **words):
        if str(path).endswith("checkpoint.pt"):
            raise OSError(number, os.strerror(number))
        return opened(path, *rest, **words)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", no_checkpoint)
        with pytest.raises(Refused, match=rf"cannot read 'run/checkpoint\.pt': {os.strerror(number)}"):
            Folder.resume(received)
    assert (received / "checkpoint.pt").read_bytes() == whole


@pytest.mark.core
@pytest.mark.parametrize("content", ["newer", "foreign", "code"])
def test_a_checkpoint_that_is_whole_but_not_understood_stays(received, content):
    made = {"newer": {"format": 99}, "foreign": {"state_dict": {}}, "code": {"format": 2, "model": Path("x")}}[content]
    (received / "checkpoint.pt").rename(received / "previous.pt")
    torch.save(made, received / "checkpoint.pt")
    before = (received / "checkpoint.pt").read_bytes()
    with pytest.raises(Refused, match=r"checkpoint\.pt"):
        Folder.resume(received)
    assert (received / "checkpoint.pt").read_bytes() == before


@pytest.mark.core
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_folder_that_cannot_be_synced_ends_no_run(tmp_path, monkeypatch, number):
    sync = os.fsync

    def no_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", no_folders)
    replace(tmp_path / "f", b"x")
    assert (tmp_path / "f").read_bytes() == b"x"


@pytest.mark.core
def test_a_folder_that_cannot_be_opened_ends_no_run_and_a_broken_disk_does(tmp_path, monkeypatch):
    opened = os.open

    def as_on_windows(path, flags, *rest, **words):
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, flags, *rest, **words)

    monkeypatch.setattr(os, "open", as_on_windows)
    replace(tmp_path / "f", b"x")
    assert (tmp_path / "f").read_bytes() == b"x"

    def broken(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output"):
        replace(tmp_path / "f", b"y")
    assert {path.name for path in tmp_path.iterdir()} == {"f"}
    assert (tmp_path / "f").read_bytes() == b"x"


def refusing(number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    return flock


@pytest.mark.core
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_a_note(tmp_path, monkeypatch, number):
    monkeypatch.setattr(fcntl, "flock", refusing(number))
    with Folder.create(str(tmp_path / "run"), "") as folder:
        (note,) = folder.notes
    assert "is not locked" in note
    assert os.strerror(number) in note


@pytest.mark.core
def test_a_system_without_locks_is_a_note(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with Folder.create(str(tmp_path / "run"), "") as folder:
        assert "for lack of locks on this system" in folder.notes[0]


@pytest.mark.core
@pytest.mark.parametrize("number", [errno.EWOULDBLOCK, errno.EACCES])
def test_a_lock_that_is_held_is_refused(tmp_path, monkeypatch, number):
    monkeypatch.setattr(fcntl, "flock", refusing(number))
    with pytest.raises(Refused, match="another process is writing"):
        Folder.create(str(tmp_path / "run"), "")


@pytest.mark.core
def test_json_holds_finite_numbers_or_is_not_written(tmp_path):
    assert json.loads(as_json({"a": [1.5, None]})) == {"a": [1.5, None]}
    for value, words in ((float("nan"), r"train\.loss is nan"), (float("inf"), r"train\.loss is inf")):
        with pytest.raises(Failed, match=words):
            as_json({"epoch": 0, "train": {"top1": 1.0, "loss": value}})
    with Folder.create(str(tmp_path / "run"), "") as folder, pytest.raises(Failed, match=r"valid\.loss is nan"):
        folder.log({"valid": {"loss": float("nan")}}, {})
    assert not {"checkpoint.pt", "metrics.jsonl"} & {path.name for path in folder.path.iterdir()}


def compressed(content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    return buffer.getvalue()


RING: list = []
RING += [RING]
BOMB: list = [1]
for _ in range(20):
    BOMB = [BOMB] * 10


@pytest.mark.core
@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": torch.zeros(1).expand(10**8)}, "more values than the file"),
        ({"a": torch.zeros(3).to_sparse()}, "more values than the file"),
        ({"a": torch.zeros(3, device="meta")}, "more values than the file|no model file"),
        ({"a": RING}, "nested too deep"),
        ({"a": BOMB}, "nested too deep"),
        ({"a": {1j: 2}}, "complex|something other"),
    ],
)
def test_a_torch_file_asks_for_no_more_than_is_in_it(tmp_path, state, message):
    torch.save({"format": 1, **state}, tmp_path / "f.pt")
    with pytest.raises(Refused, match=message):
        read_tensors(tmp_path / "f.pt", "model file", {"a"}, 1)


@pytest.mark.core
def test_a_torch_file_is_not_compressed_and_is_whole(tmp_path):
    content, path = bytes(packed({"format": 1, "a": torch.zeros(1000)})), tmp_path / "f.pt"
    path.write_bytes(content)
    assert read_tensors(path, "model file", {"a"}, 1)["a"].shape == (1000,)
    path.write_bytes(compressed(content))
    with pytest.raises(Refused, match="it is compressed") as caught:
        read_tensors(path, "model file", {"a"}, 1)
    assert not isinstance(caught.value, Damaged)
    for damaged in (content[:-10], content[:1000] + b"x" * 9 + content[1009:]):
        path.write_bytes(damaged)
        with pytest.raises(Damaged):
            read_tensors(path, "model file", {"a"}, 1)
    with pytest.raises(Missing):
        read_tensors(tmp_path / "absent.pt", "model file", {"a"}, 1)
