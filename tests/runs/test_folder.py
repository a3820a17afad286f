"""Runs survive: a run that was killed at any moment and resumed ends as if nothing had happened."""

import functools
import json
import os
import pickle
import random
import signal
import time
from pathlib import Path

import programs
import pytest
import torch
from conftest import TINY, run_program

import modeling
from runs import folder as run_folder
from settings.arguments import parse
from settings.errors import Refused
from training.restoring import restore

RUN = [*TINY, "--epochs", "4", "--deterministic"]
KINDS = {
    "dense": [],
    "structured": ["--prune_type", "structured", "--prune_rate", "0.6", "--reg", "reg_cov"],
    "gradient": ["--prune_type", "structured", "--prune_imp", "grad", "--prune_rate", "0.4"],
    "unstructured": ["--prune_type", "unstructured", "--prune_rate", "0.9", "--prune_freq", "1it"],
}


THREADS = ["--threads", str(torch.get_num_threads())]  # a process of its own has as many as this one


def untimed(lines):
    """Output without what a clock wrote, and without the names of files, which are in folders of their own."""
    return [line for line in lines if not line.startswith(("result seconds", "result file"))]


def ending(folder):
    """All that a run leaves, less what a clock wrote: rows, weights, masks, momentum, random state."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        del row["seconds"], row["images_per_second"]
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    tensors = {f"model.{name}": value for name, value in state["model"].items()}
    for index, entry in state["optimizer"]["state"].items():
        tensors[f"momentum.{index}"] = entry["momentum_buffer"]
    tensors["random"] = state["random"][0]
    summary = json.loads((folder / "summary.json").read_text())
    return rows, tensors, (summary["test"], summary["left"], len(state["rows"]))


def assert_same_ending(folder, reference):
    rows, tensors, rest = ending(folder)
    wanted_rows, wanted_tensors, wanted_rest = ending(reference)
    assert rows == wanted_rows
    assert rest == wanted_rest
    assert tensors.keys() == wanted_tensors.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], wanted_tensors[name])] == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """By kind, a run that nobody interrupted: its folder and output."""

    @functools.cache
    def run(kind):
        place = tmp_path_factory.mktemp(kind)
        done = programs.command(*RUN, *KINDS[kind], *THREADS, "--out_dir", "whole", cwd=place)
        assert done.returncode == 0, done.stderr
        return place / "whole", done.stdout.splitlines()

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_resumed(whole, kind, tmp_path):
    """SIGKILL at a random moment after the folder exists, in the first epoch too."""
    reference, wanted = whole(kind)
    process = programs.start(*RUN, *KINDS[kind], *THREADS, "--out_dir", "run", cwd=tmp_path)
    while not (tmp_path / "run" / "config.json").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    time.sleep(random.Random().uniform(0, 0.4))
    process.kill()
    process.communicate()
    done = programs.command("--resume", "run", *THREADS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert untimed(done.stdout.splitlines()) == untimed(wanted)
    assert_same_ending(tmp_path / "run", reference)


@pytest.fixture
def structured(whole, tmp_path, monkeypatch, capsys):
    """A structured run of two of its four epochs, in a folder `run` of the current directory, and the whole one."""
    reference, wanted = whole("structured")
    monkeypatch.chdir(tmp_path)
    train = modeling.train_epoch

    def stop_in_third(run, epoch, bar):
        if epoch == 2:
            run.stop.signal = signal.SIGTERM
        return train(run, epoch, bar)

    monkeypatch.setattr(modeling, "train_epoch", stop_in_third)
    with pytest.raises(modeling.Stopped, match=r"SIGTERM in epoch 2, while masks were made: go on with --resume run"):
        run_program(*RUN, *KINDS["structured"], "--out_dir", "run", "--tensorboard")
    monkeypatch.setattr(modeling, "train_epoch", train)
    capsys.readouterr()
    return tmp_path / "run", reference, wanted


def test_a_stopped_run_goes_on_and_prints_all_its_lines(structured, capsys):
    folder, reference, wanted = structured
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    run_program("--resume", "run")
    assert untimed(capsys.readouterr().out.splitlines()) == untimed(wanted)
    assert_same_ending(folder, reference)
    if (folder / "summary.json").exists():  # half of it is none: the end is computed again
        (folder / "summary.json").write_text('{"last": {')
    run_program("--resume", "run")
    assert untimed(capsys.readouterr().out.splitlines()) == untimed(wanted)
    # a finished run prints the same once more, and does nothing
    before = (folder / "checkpoint.pt").stat().st_mtime_ns
    run_program("--resume", "run/checkpoint.pt")
    assert untimed(capsys.readouterr().out.splitlines()) == untimed(wanted)
    assert (folder / "checkpoint.pt").stat().st_mtime_ns == before
    config = json.loads((folder / "config.json").read_text())
    session, _ = config["resumed"]
    assert (session["from_epoch"], session["changed"], config["settings"]["epochs"]) == (2, [], 4)
    assert session["command"] == "python modeling.py --resume run"
    assert "--out_dir run" in config["command"]


def test_tensorboard_events_are_those_of_the_rows(structured):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _, _ = structured
    run_program("--resume", "run")
    run_program("--resume", "run", "--epochs", "5")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    events = EventAccumulator(str(folder)).Reload()
    for name, value in (("valid/top1", lambda row: row["valid"]["top1"]), ("cut", lambda row: row["cut"])):
        assert [(e.step, pytest.approx(e.value, rel=1e-6)) for e in events.Scalars(name)] == [
            (row["epoch"], value(row)) for row in rows
        ]
    assert {"train/loss", "train/reg_cov", "sparsity", "mask_changes", "learning_rate"} <= set(events.Tags()["scalars"])


def test_after_a_fallback_the_good_checkpoint_is_not_lost(structured, monkeypatch):
    """The newest is truncated; the run that goes on from the one before is killed as it saves for the first time."""
    folder, reference, _ = structured
    newest = folder / "checkpoint.pt"
    newest.write_bytes(newest.read_bytes()[:-3000])

    class KilledError(BaseException):
        pass

    def killed(path, target):
        if path.name == "checkpoint.pt.new":
            raise KilledError
        return rename(path, target)

    rename = Path.replace
    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KilledError):
        run_program("--resume", "run")
    monkeypatch.setattr(Path, "replace", rename)
    run_program("--resume", "run")
    assert_same_ending(folder, reference)


SLOW_WRITE = """
import os, runpy, sys, time
from pathlib import Path
sync, calls = os.fsync, 0
def slow(file):
    global calls
    size = os.fstat(file).st_size
    if size > 1_000_000:  # a checkpoint, whole but not yet in its place
        calls += 1
        if calls == 3:
            Path("writing").touch()
            time.sleep(60)
    sync(file)
os.fsync = slow
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_killed_by_sigkill_during_a_checkpoint_write(whole, tmp_path):
    reference, wanted = whole("structured")
    (tmp_path / "slow.py").write_text(SLOW_WRITE)
    flags = [*RUN, *KINDS["structured"], *THREADS, "--out_dir", "run"]
    process = programs.Program([tmp_path / "slow.py", programs.SCRIPT, *flags], cwd=tmp_path)
    while not (tmp_path / "writing").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert (tmp_path / "run" / "checkpoint.pt.new").exists()
    done = programs.command("--resume", "run", *THREADS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert untimed(done.stdout.splitlines()) == untimed(wanted)
    assert_same_ending(tmp_path / "run", reference)


@pytest.mark.core
def test_a_checkpoint_is_synced_before_it_gets_its_name(tmp_path, monkeypatch):
    order = []
    sync, rename = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda file: order.append("sync") or sync(file))
    monkeypatch.setattr(Path, "replace", lambda path, target: order.append(path.name) or rename(path, target))
    with run_folder.Folder.create(str(tmp_path / "run"), "") as folder:
        folder.save({})
        folder.save({})
    assert order == ["sync", "checkpoint.pt.new", "sync", "sync", "checkpoint.pt", "checkpoint.pt.new", "sync"]


@pytest.mark.core
def test_the_random_state_is_restored():
    run = modeling.start(parse(RUN))
    state = run.state() | {"rows": []}
    wanted = torch.rand(3)
    torch.manual_seed(99)
    restore(run, state)
    assert torch.equal(torch.rand(3), wanted)


def test_a_checkpoint_of_another_run_is_refused(structured):
    folder, _, _ = structured
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    state["settings"]["seed"] = 5
    torch.save(state, folder / "checkpoint.pt")
    with pytest.raises(Refused, match="another run's, with seed 5, not 0"):
        run_program("--resume", "run")


def test_a_checkpoint_with_a_hole_falls_back(structured):
    folder, reference, _ = structured
    content = bytearray((folder / "checkpoint.pt").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096] = bytes(4096)
    (folder / "checkpoint.pt").write_bytes(content)
    run_program("--resume", "run")
    assert_same_ending(folder, reference)


@pytest.mark.parametrize("damage", ["unfinished write", "between the two renames", "truncated", "row not logged", "half a row"])
def test_killed_while_writing(structured, damage):
    folder, reference, _ = structured
    newest, metrics = folder / "checkpoint.pt", folder / "metrics.jsonl"
    lines = metrics.read_text()
    if damage == "unfinished write":
        (folder / "checkpoint.pt.new").write_bytes(newest.read_bytes()[:5000])
    elif damage == "between the two renames":
        newest.rename(folder / "checkpoint.pt.new")
    elif damage == "truncated":
        newest.write_bytes(newest.read_bytes()[:-3000])
    elif damage == "row not logged":
        metrics.write_text(lines.splitlines(keepends=True)[0])
    else:
        metrics.write_text(lines + lines[:100])
    run_program("--resume", "run")
    assert_same_ending(folder, reference)


def test_both_checkpoints_bad_is_refused(structured):
    folder, _, _ = structured
    for name in ("checkpoint.pt", "previous.pt"):
        (folder / name).write_bytes(b"PK\x03\x04 not much")
    with pytest.raises(Refused, match=r"checkpoint\.pt' is truncated.*previous\.pt' is truncated"):
        run_program("--resume", "run")


def test_a_full_disk_leaves_the_last_good_checkpoint(structured):
    folder, reference, _ = structured
    before = (folder / "checkpoint.pt").read_bytes()
    done = programs.command("--resume", "run", *THREADS, cwd=folder.parent, file_size=500_000)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("modeling.py: error: ")
    assert "File too large" in done.stderr
    assert (folder / "checkpoint.pt").read_bytes() == before
    assert not list(folder.glob("*.new"))
    run_program("--resume", "run")
    assert_same_ending(folder, reference)


def test_typed_flags_that_contradict_the_run_are_refused(structured):
    for flags, words in (
        (["--prune_rate", "0.5"], "--prune_rate 0.5 contradicts the run in 'run', which has 0.6"),
        (["--epochs", "3"], "--epochs 3 contradicts"),
        (["--seed", "1"], "--seed 1 contradicts the run in 'run', which has 0"),
        (["--out_dir", "other"], "--out_dir other contradicts"),
    ):
        with pytest.raises(Refused) as caught:
            parse(["--resume", "run", *flags])
        assert words in str(caught.value)
    settings = parse(["--resume", "run", "--epochs", "6", "--prune_rate", "0.6", "--threads", "1", "--quiet"])
    assert (settings.training.epochs, settings.training.reg, settings.engine.threads, settings.run.quiet) == (
        6,
        "reg_cov",
        1,
        True,
    )


def test_more_epochs_may_be_asked_for(structured, capsys, monkeypatch):
    folder, _, _ = structured
    run_program("--resume", "run", "--epochs", "5")
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("valid")] == list("01234")
    config = json.loads((folder / "config.json").read_text())
    assert config["settings"]["epochs"] == 5
    assert config["resumed"][0]["changed"] == ["epochs was 4, is 5"]
    # and once more, stopped: the run is unfinished again
    monkeypatch.setattr(modeling, "train_epoch", stop_at_once)
    with pytest.raises(modeling.Stopped):
        run_program("--resume", "run", "--epochs", "6")
    assert not (folder / "summary.json").exists()


def stop_at_once(run, epoch, bar):
    raise modeling.Stopped(signal.SIGTERM, "SIGTERM")


def test_two_processes_do_not_write_to_one_folder(structured):
    folder, _, _ = structured
    with run_folder.Folder.resume(folder):
        done = programs.command("--resume", "run", cwd=folder.parent)
    assert (done.returncode, done.stderr) == (2, "modeling.py: error: another process is writing to 'run'\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_step(number, tmp_path):
    process = programs.start(*RUN, "--epochs", "1000", "--out_dir", "run", cwd=tmp_path)
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert err.splitlines()[-1].endswith("go on with --resume run")


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


@pytest.mark.core
@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_a_checkpoint_that_would_run_code_is_refused_and_does_not_run_it(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    if protocol == "torch":
        torch.save({"format": 1, "model": Trap()}, "bad.pt")
    else:
        Path("bad.pt").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(Refused, match=r"other than tensors|no checkpoint"):
        run_folder.load_checkpoint(Path("bad.pt"))
    assert not Path("trapped").exists()


@pytest.mark.core
def test_checkpoints_of_others_are_refused(tmp_path):
    def refused(content):
        torch.save(content, tmp_path / "c.pt")
        with pytest.raises(Refused) as caught:
            run_folder.load_checkpoint(tmp_path / "c.pt")
        return str(caught.value)

    assert "format 99, newer than this program's 2" in refused({"format": 99})
    assert "no checkpoint of this program" in refused({"state_dict": {}})
    assert "no checkpoint of this program" in refused([1, 2])
    assert "no checkpoint of this program" in refused({"format": 1, "rows": []})
    (tmp_path / "empty.pt").touch()
    for name in ("empty.pt", "absent.pt"):
        with pytest.raises(Refused):
            run_folder.load_checkpoint(tmp_path / name)


def test_another_networks_checkpoint_is_refused(structured):
    folder, _, _ = structured
    config = json.loads((folder / "config.json").read_text())
    config["settings"]["arch"] = "resnet32"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(Refused, match="another run's, with arch resnet20, not resnet32"):
        run_program("--resume", "run")


@pytest.mark.core
def test_where_there_is_no_run_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "absent", tmp_path / "absent" / "checkpoint.pt"):
        with pytest.raises(Refused, match="no run in"):
            parse(["--resume", str(path)])
    for content in ("{}", "[]", '{"settings": {}}', '{"settings": []}', '{"settings": {"epochs": 3', ""):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(Refused, match=r"config\.json' is (no record of a run of this program|damaged)"):
            parse(["--resume", str(tmp_path)])


def test_a_place_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match=r"cannot write to 'file/run'"):
        run_program(*RUN, "--out_dir", "file/run")
