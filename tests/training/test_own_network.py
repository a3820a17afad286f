"""Commands with a network in a file of the user's: it is pruned, resumed and used, also where that file is gone."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY_DATA, run_program
from own_modules import ONCE
from programs import command, start
from promises import PRUNED, differences, records, trains_and_resumes

import models
import proxies
from models.adoption import from_file
from settings.arguments import parse
from settings.errors import Refused
from training.earlier_networks import read_network

LAYERWISE = ["--procedure", "layerwise", "--reconstruct", "thinet", "--prune_phase", "after", "--epochs", "4"]
DIGITS = ["--dataset", "digits", "--device", "cpu", "--epochs", "1", "--quiet"]
SMALL = """
import torch
from torch import nn

def build(*, classes, channels, size):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(8 * (size // 2) ** 2, classes),
    )
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with mynet.py, which is the current one."""
    monkeypatch.chdir(tmp_path)
    Path("mynet.py").write_text(SMALL)
    return tmp_path


@pytest.mark.core
def test_it_is_pruned_and_then_used_without_the_file(own):
    flags = ["--arch", "mynet.py:build", *DIGITS, "--prune_type", "structured", "--target_macs", "0.5", "--compact"]
    done = command(*flags, "--export", "m.onnx", "--out_dir", "run", cwd=own)
    assert done.returncode == 0, done.stderr
    summary = json.loads(Path("run", "summary.json").read_text())
    assert 0.4 < summary["left"]["macs"] / summary["dense"]["macs"] <= 0.5
    assert summary["removal"]["difference"] < 1e-4
    assert Path("m.onnx").is_file()
    Path("mynet.py").unlink()
    for path in ("run/model.pt", "m.onnx"):
        used = command("--evaluate", path, *DIGITS[:4], "--quiet", cwd=own)
        assert f"{summary['test']['top1']:.2f}" in used.stdout, used.stderr
    again = command("--init", "run/model.pt", *DIGITS, "--out_dir", "more", cwd=own)
    assert again.returncode == 0, again.stderr
    fresh = command("--scratch", "run/model.pt", *DIGITS, "--out_dir", "fresh", cwd=own)
    assert fresh.returncode == 0, fresh.stderr
    assert read_network("fresh")[0].shapes()["units"] == models.load("run/model.pt").shapes()["units"]
    for path in ("run", "run/model.pt", "more"):
        _, whole, known = read_network(path)
        assert (whole.units["4"].filters, known.outputs) == (8, 10)
    taught = command("--arch", "resnet20", "--teacher", "run/model.pt", *DIGITS, "--dry_run", cwd=own)
    assert taught.returncode == 0, taught.stderr


@pytest.mark.core
@pytest.mark.parametrize("ending", [[], ["--compact"]])
def test_a_run_goes_on_to_the_same_bits_without_the_file(tmp_path, monkeypatch, ending, capsys):
    monkeypatch.chdir(tmp_path)
    Path("once.py").write_text(ONCE)
    arch = ["--arch", "once.py:build", "--lr", "0.01"]
    trains_and_resumes(tmp_path, monkeypatch, *PRUNED, *ending, *arch, network=None)
    assert not Path("once.py").exists()
    said = capsys.readouterr()
    assert "this is not stdout's format" not in said.out
    assert "this is not stdout's format" in said.err


def test_killed_and_resumed(own):
    """SIGKILL once the run has a folder; then the file goes."""
    flags = ["--arch", "mynet.py:build", *DIGITS[:4], *PRUNED, "--epochs", "3", "--deterministic", "--quiet", "--compact"]
    flags += ["--threads", "1"]
    whole = command(*flags, "--out_dir", "whole", cwd=own)
    assert whole.returncode == 0, whole.stderr
    process = start(*flags, "--out_dir", "part", cwd=own)
    while not Path("part", "config.json").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.communicate()
    Path("mynet.py").unlink()
    again = command("--resume", "part", "--threads", "1", "--quiet", cwd=own)
    assert again.returncode == 0, again.stderr
    assert differences(records("whole"), records("part")) == []


@pytest.mark.core
def test_a_run_begins_with_the_weights_that_it_has(own):
    run_program("--arch", "mynet.py:build", *DIGITS, "--lr", "1e-12", "--out_dir", "run")
    trained, fresh = torch.load("run/checkpoint.pt", weights_only=True)["model"], from_file("mynet.py:build")
    for name, value in fresh.named_parameters():
        torch.testing.assert_close(trained[name], value, rtol=0, atol=1e-6)
    # --init names other ones, for the same network
    torch.manual_seed(9)
    trained["4.layer.weight"] += 1
    state = torch.load("run/checkpoint.pt", weights_only=True)
    torch.save(state | {"model": trained}, "run/checkpoint.pt")
    arch = ["--arch", "mynet.py:build", "--init", "run"]
    run_program(*arch, *DIGITS, "--lr", "1e-12", "--out_dir", "more")
    begun = torch.load("more/checkpoint.pt", weights_only=True)["model"]
    torch.testing.assert_close(begun["4.layer.weight"], trained["4.layer.weight"], rtol=0, atol=1e-6)


@pytest.mark.core
def test_its_weights_may_be_frozen(own):
    assert parse(["--arch", "mynet.py:build", *DIGITS, "--epochs", "2", "--freeze", "1"]).training.freeze == 1
    with pytest.raises(Refused, match="--freeze holds weights that have been trained: it needs --init"):
        parse(["--arch", "resnet20", *DIGITS, "--epochs", "2", "--freeze", "1"])


@pytest.mark.core
def test_a_checkpoint_never_executes_a_file(own):
    """Neither one that says no program, nor one that names another file."""
    run_program("--arch", "mynet.py:build", *DIGITS, "--out_dir", "run")
    Path("mynet.py").write_text("raise SystemExit('executed')\n")
    state = torch.load("run/checkpoint.pt", weights_only=True)
    del state["began"]["program"]
    for name in ("checkpoint.pt", "previous.pt"):
        torch.save(state, Path("run", name))
    for flags in (["--resume", "run", "--epochs", "2", "--quiet"], ["--init", "run", *DIGITS]):
        with pytest.raises(Refused, match="has no program") as caught:
            run_program(*flags)
        assert "executed" not in str(caught.value)


REFUSED = {
    "absent.py:build": "no Python file at 'absent.py'",
    "mynet.py:buidl": "'mynet.py' has no function 'buidl': did you mean 'build'?",
    "wrong.py:build": "'wrong.py' is no Python, line 2: ",
    "folder.py:build": "is a folder, but a Python file is wanted",
    "raises.py:build": "--arch raises.py:build: it raised KeyError: 'of mine'",
    "raises.py:leaves": "--arch raises.py:leaves: it raised SystemExit: 3",
    "raises.py:nothing": "--arch raises.py:nothing: it returned a NoneType, not a torch.nn.Module",
    "raises.py:needs": "it raised TypeError: needs() missing 1 required positional argument: 'depth'",
    "raises.py:five": "--arch raises.py:five: it has 5 outputs, and there are 10 classes",
    "raises.py:gelu": "--arch raises.py:gelu: GELU at '1' cannot be adopted: the activations are ReLU and ReLU6",
    "raises.py:number": "it raised TypeError: 3 is not a callable object",
    "raises.py:empty": "--arch raises.py:empty: its weights are on the device 'meta', where they have no values",
    "lost.py:build": "it raised ModuleNotFoundError: No module named 'nowhere_at_all'",
}
RAISES = """
from torch import nn

number = 3

def build():
    raise KeyError("of mine")

def leaves():
    raise SystemExit(3)

def nothing(classes):
    print(classes)

def needs(depth):
    return nn.Linear(depth, depth)

def five():
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 5))

def empty():
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)).to("meta")

def gelu():
    return nn.Sequential(nn.Conv2d(3, 3, 3), nn.GELU(), nn.Flatten(), nn.Linear(2700, 10))
"""


@pytest.mark.core
@pytest.mark.parametrize("arch", REFUSED)
def test_what_makes_no_network_is_refused_in_one_line(own, arch):
    Path("raises.py").write_text(RAISES)
    Path("wrong.py").write_text("def build():\n    return (\n")
    Path("lost.py").write_text("import nowhere_at_all\n\ndef build():\n    return None\n")
    Path("folder.py").mkdir()
    before = list(sys.path)
    with pytest.raises(Refused) as caught:
        run_program("--arch", arch, *DIGITS, "--out_dir", "run")
    assert REFUSED[arch] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("run").exists()
    assert sys.path == before


@pytest.mark.core
@pytest.mark.parametrize(("flags", "message"), [
    (["--arch", "mynet.py:build", "--shortcut", "pad"], "--shortcut has no effect on mynet.py:build"),
    (["--arch", "mynet.py:build", "--layers", "20"], "--arch and --layers both name a network"),
    (["--arch", "mynet.py"], "cannot read 'mynet.py': write mynet.py:build for a function in a file"),
    (["--arch", "mynet.py:build", "--dataset", "voc"], "mynet.py:build is for classification, and --dataset voc for detection"),
    (["--prune_imp", "mynet.py:build", *PRUNED], "unknown criterion 'mynet.py:build'"),
])  # fmt: skip
def test_flags_that_contradict_it_are_refused(own, flags, message):
    with pytest.raises(Refused) as caught:
        parse(flags)
    assert message in str(caught.value)


@pytest.mark.core
def test_its_name_is_no_promise_about_shortcuts(own):
    Path("pad.py").write_text(SMALL)
    flags = [*PRUNED, "--round_to", "4", "--residual", "grouped"]
    assert parse(["--arch", "pad.py:build", *flags]).network.arch == "pad.py:build"


def test_layers_cannot_be_planned_beforehand(own):
    with pytest.raises(Refused, match="plans by the layers of a network with a name"):
        run_program("--arch", "mynet.py:build", *DIGITS, *PRUNED, *LAYERWISE)


@pytest.mark.usefixtures("own")
def test_it_is_one_of_a_family():
    scored = ["--family", "mynet.py:build", "resnet20", *TINY_DATA, "--quiet", "--out_dir", "scores", "--images", "8"]
    options, settings, _ = proxies.read(scored)
    assert [each.network.arch for each in settings.values()] == options.family
    assert proxies.network_of("mynet.py:build") == ("mynet.py:build", ())
