"""These tests are about the captured step, the control that is trained from scratch, and malloc's memory."""

import contextlib
import inspect
import json
import os
import platform
import resource
import shutil
import signal
from dataclasses import replace

import programs
import pytest
import torch
import torch.nn.functional as F
import tqdm
from conftest import TINY, TINY_DATA, run_program
from torch._dynamo.utils import counters

import modeling
import models
from models.layers import conv_unit, initialise
from models.numerics import without_tf32
from pruning import Pruner
from regularizers import reg_cov
from settings.arguments import parse
from settings.errors import Refused, Stopped
from training import actions
from training.engine import Engine, Stop

PRUNED = ["--prune_type", "structured", "--prune_rate", "0.6", "--reg", "reg_cov"]


class OneUnit(models.Network):
    """The smallest network with a mask: each of its operations is a kernel that a C++ compiler takes a second for."""

    def __init__(self):
        super().__init__()
        self.stem = conv_unit(3, 4, 3)
        self.classifier = models.Unit(torch.nn.Linear(4, 4), norm=False, activation=False)
        self.wire("stem", "input", "stem")
        self.wire("classifier", "stem", "output")
        initialise(self)

    def forward(self, x):
        return self.classifier(self.stem(x).mean((2, 3)))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_the_captured_step_is_the_plain_one(batch):
    """Masks that move, then fixed ones, then evaluation; new masks need no new compilation."""
    images, labels = batch
    network = OneUnit().double()
    pruner = Pruner(network, rate=0.5, until=0.5)
    pruner.begin(epochs=2, steps=2, sample=lambda: iter([batch]))
    engine = Engine.choose(parse([*TINY, "--compile"]).engine)
    plain_results, captured_results = [], []
    began = {name: value.clone() for name, value in network.state_dict().items()}

    def forward(images, labels):
        logits = network(images)
        return logits, F.cross_entropy(logits, labels), 0.7 * reg_cov(network)

    for function, results in ((forward, plain_results), (engine.compiled(forward), captured_results)):
        network.load_state_dict(began)
        torch.compiler.reset()
        counters.clear()
        for epoch, rate, graphs in ((0, 0.5, 1), (0, 0.3, 1), (1, 0.3, 2), (1, 0.5, 2)):
            pruner.before_step(epoch, 1)  # masks move before the second epoch, and not in it
            pruner.update(rate)
            logits, loss, penalty = function(images, labels)
            results += [logits.detach(), loss.detach(), *torch.autograd.grad(loss + penalty, list(network.parameters()))]
            assert counters["stats"]["unique_graphs"] == (graphs if function is not forward else 0)
        network.eval()
        with torch.no_grad():
            results.append(function(images, labels)[0].clone())
        network.train()
    assert Engine.choose(parse([*TINY, "--no_compile"]).engine).compiled(forward) is forward
    for plain, captured in zip(plain_results, captured_results, strict=True):
        torch.testing.assert_close(plain, captured, rtol=0, atol=1e-9)


def test_where_the_compiler_fails_the_run_goes_on_without_unless_it_was_typed(monkeypatch, capsys):
    def broken(function, **_):
        def fail(*_):
            raise RuntimeError("no compiler")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(Refused, match="--compile: no compiler"):
        modeling.start(parse([*TINY, "--compile"]))
    settings = parse(TINY)
    engine = replace(Engine.choose(settings.engine), compile=True)  # what a CUDA device resolves to
    run = modeling.start(settings, engine=engine)
    assert "without torch.compile, which fails here: no compiler" in capsys.readouterr().err
    assert run.engine.compile is False
    assert run.evaluate(run.task.test)["images"] == 24


@pytest.mark.parametrize("broken", ["forward", "predict"])
def test_where_the_compiler_fails_on_the_smaller_network_the_run_ends_without(broken, tmp_path, monkeypatch, capsys):
    """Also where --compile was typed: all training would be lost."""

    def compile_masked_networks_only(function, **_):
        def run(*arguments):
            closure = inspect.getclosurevars(function).nonlocals
            network = closure["model"] if "model" in closure else closure["self"].model
            if function.__name__ == broken and all(unit.gate is None for unit in network.units.values()):
                raise RuntimeError("too small")
            return function(*arguments)

        return run

    monkeypatch.setattr(torch, "compile", compile_masked_networks_only)
    monkeypatch.chdir(tmp_path)
    run_program(*TINY, *PRUNED, "--compact", "--finetune_epochs", "1", "--compile", "--out_dir", "run")
    said = capsys.readouterr()
    assert "without torch.compile, which fails here: too small" in said.err
    assert "train 2 ====>" in said.out
    assert (tmp_path / "run" / "model.pt").exists()


@pytest.fixture
def tf32():
    """On, and afterwards as it was; whether it is on, for products and for convolutions."""
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = True
    yield lambda: [switch.allow_tf32 for switch in switches]
    for switch, value in zip(switches, before, strict=True):
        switch.allow_tf32 = value


def test_scores_and_the_check_of_removal_are_without_tf32(tf32):
    seen = []
    run = modeling.start(parse([*TINY, *PRUNED, "--prune_imp", "APoZ"]))
    run.model.stem.register_forward_hook(lambda *_: seen.append(tf32()))
    run.pruner.update(0.6)
    scored = len(seen)
    actions.remove(run)
    assert 0 < scored < len(seen)
    assert all(each == [False, False] for each in seen)
    with contextlib.suppress(KeyError), without_tf32():
        assert tf32() == [False, False]
        raise KeyError
    assert tf32() == [True, True]


def test_compiling_first_leaves_the_network_as_it_was(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    plain, tried = (modeling.start(parse([*TINY, *PRUNED, *flags])) for flags in ([], ["--compile"]))
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, tried.model.state_dict()[name]), name
    assert all(parameter.grad is None for parameter in tried.model.parameters())


def test_scratch_trains_the_smaller_network_anew(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_program(*TINY, *PRUNED, "--compact", "--out_dir", "pruned")
    run_program("--scratch", "pruned/model.pt", *TINY_DATA, "--batch_size", "18", "--epochs", "1", "--out_dir", "scratch")
    pruned, scratch = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("pruned", "scratch"))
    assert scratch["left"] == pruned["left"]
    assert scratch["dense"] == pruned["dense"]
    (tmp_path / "pruned" / "model.pt").unlink()
    capsys.readouterr()
    run_program("--resume", "scratch", "--epochs", "2")  # a run needs nothing but its folder
    assert "train 1 ====>" in capsys.readouterr().out
    state = torch.load(tmp_path / "scratch" / "checkpoint.pt")
    assert state["shapes"]["units"]["stem"][0] < 16


def test_scratch_has_fresh_weights_and_refuses_other_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_program(*TINY, *PRUNED, "--epochs", "1", "--compact", "--out_dir", "pruned")
    smaller = models.load("pruned/model.pt")
    run = modeling.start(parse(["--scratch", "pruned/model.pt", *TINY_DATA, "--seed", "5"]))
    assert run.model.shapes() == smaller.shapes()
    assert not torch.equal(run.model.stem.weight, smaller.stem.weight)
    with pytest.raises(Refused, match="has 3 classes, --dataset digits 10"):
        modeling.start(parse(["--scratch", "pruned/model.pt", "--dataset", "digits"]))
    with pytest.raises(Refused, match="reads images of 3 channels, not 1"):
        modeling.start(parse(["--scratch", "pruned/model.pt", *TINY_DATA, "--channels", "1"]))


def test_an_emptied_layer_is_initialised_without_a_word():
    network = models.build("resnet20")
    network.stage1[0].conv1.resize(0, 16)
    network.stage1[0].conv2.resize(16, 0)
    initialise(network)  # torch warns of layers without a weight, and warnings are errors here


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc alone has this option")
def test_freed_memory_is_kept(tmp_path):
    script = tmp_path / "faults.py"
    script.write_text("""
import resource, sys, torch
from training.engine import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(16 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
""")
    keep, give_back = (int(programs.Program([script, how]).communicate()[0]) for how in ("keep", "give_back"))
    assert give_back > 10 * 64 * 2**20 // resource.getpagesize() // 2 > 10 * keep


class TestStop:
    """Signals end a run where nothing is lost."""

    @pytest.fixture
    def stop(self):
        stop = Stop()
        stop.listen()  # conftest puts pytest's own handlers back
        return stop

    def test_a_signal_waits_for_the_end_of_a_step(self, stop):
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped, match="SIGTERM after step 3"):
            stop.check("after step 3")

    def test_a_signal_is_heard_at_once_where_nothing_is_written(self, stop):
        with pytest.raises(Stopped, match="SIGTERM while masks were made") as error, stop.at_once("while masks were made"):
            os.kill(os.getpid(), signal.SIGTERM)
        assert error.value.status == 143

    def test_a_library_that_takes_the_exception_for_its_own_does_not_lose_it(self, stop):
        where = "before the first step"
        with pytest.raises(Stopped, match=f"SIGINT {where}"), stop.at_once(where), contextlib.suppress(Exception):
            os.kill(os.getpid(), signal.SIGINT)

    def test_behind_the_block_it_waits_again(self, stop):
        with stop.at_once("before"):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGTERM

    def test_making_masks_is_such_a_block(self, monkeypatch):
        run = modeling.start(parse([*TINY, "--prune_type", "structured", "--quiet"]))
        run.stop.listen()
        monkeypatch.setattr(type(run.pruner), "update", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Stopped, match="in epoch 0, while masks were made"):
            modeling.train_epoch(run, 0, tqdm.tqdm(disable=True))
