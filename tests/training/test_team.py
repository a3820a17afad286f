"""Two processes, started by torchrun on the CPU, train one network."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import programs
import pytest
import torch
from conftest import TINY

import modeling
from pruning import Pruner
from settings.arguments import parse
from tasks.images import Dataset, Images
from training.team import Team

ROOT = Path(__file__).resolve().parents[2]
FLAGS = [*TINY, "--prune_type", "structured", "--prune_rate", "0.6", "--reg", "reg_cov", "--amp", "off", "--threads", "1"]

# each process writes what it has: the first step's loss and gradients, then the state after two epochs
PROCESS = """
import sys, torch, tqdm
sys.path.insert(0, sys.argv[1])
import modeling
from settings.arguments import parse
from training.team import Team
settings = parse(sys.argv[3:])
team = Team.join("cpu")
run = modeling.start(settings, team=team)
run.pruner.before_step(0, 0)
images, labels = next(iter(run.batches(0)))
_, terms = run.losses(images, labels)
sum(terms.values()).backward()
first = {"terms": {name: term.detach() for name, term in terms.items()}, "images": images}
first["gradients"] = {name: p.grad.clone() for name, p in run.model.named_parameters()}
run = modeling.start(settings, team=team)
rows = [modeling.train_epoch(run, epoch, tqdm.tqdm(disable=True)) for epoch in range(2)]
accuracy = run.evaluate(run.task.test)
state = {"first": first, "model": run.model.state_dict(), "optimizer": run.optimizer.state_dict()["state"]}
torch.save({**state, "rows": rows, "accuracy": accuracy}, f"{sys.argv[2]}/{team.rank}.pt")
team.leave()
"""


def torchrun(*command, cwd, processes=2, **environment):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error", **environment}
    # the launcher itself warns about its own defaults
    launch = [launch[0], "-W", "ignore", *launch[1:]]
    return subprocess.run([*launch, *map(str, command)], cwd=cwd, capture_output=True, text=True, env=env, timeout=300)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "process.py").write_text(PROCESS)
    done = programs.team(folder / "process.py", ROOT, folder, *FLAGS, cwd=folder)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_weights_masks_momentum_and_statistics_are_bit_equal(ranks):
    one, other = ranks
    assert any("mask" in name for name in one["model"])
    for name, value in one["model"].items():
        assert torch.equal(value, other["model"][name]), name
    for key, state in one["optimizer"].items():
        assert torch.equal(state["momentum_buffer"], other["optimizer"][key]["momentum_buffer"])
    assert one["rows"] == other["rows"]
    assert one["accuracy"] == other["accuracy"]
    assert one["accuracy"]["images"] == 24
    assert one["rows"][0]["images"] == 54  # three batches of 18, nine images a process
    # they did not see the same images
    assert not torch.equal(one["first"]["images"], other["first"]["images"])


def test_the_first_step_is_the_mean_of_the_two_half_batches(ranks):
    run = modeling.start(parse(FLAGS))
    run.pruner.before_step(0, 0)
    losses, sums = [], {name: torch.zeros_like(p) for name, p in run.model.named_parameters()}
    for half in range(2):
        images, labels = next(run.task.batches(0, (half, 2)))
        assert torch.equal(images, ranks[half]["first"]["images"])
        _, terms = run.losses(images, labels)
        losses.append({name: term.detach() for name, term in terms.items()})
        run.model.zero_grad()
        sum(terms.values()).backward()
        for name, parameter in run.model.named_parameters():
            sums[name] += parameter.grad / 2
    for rank, state in enumerate(ranks):
        assert state["first"]["terms"].keys() == losses[rank].keys() == {"cross_entropy", "reg_cov"}
        for name, term in losses[rank].items():
            assert (state["first"]["terms"][name] - term).abs() < 1e-6, name
        for name, gradient in state["first"]["gradients"].items():
            assert (gradient - sums[name]).abs().max() < 1e-6, name


@pytest.mark.parametrize(
    "flags", [["structured", "hard_concrete"], ["unstructured", "variational(begin=0.0, full=1.0)"]], ids=lambda flags: flags[1]
)
def test_gates_that_learn_are_the_same_in_both(tmp_path, flags):
    (tmp_path / "process.py").write_text(PROCESS)
    flags = [*TINY, "--prune_type", flags[0], "--prune_gate", flags[1], "--amp", "off", "--threads", "1"]
    done = programs.team(tmp_path / "process.py", ROOT, tmp_path, *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    learned = [name for name in one["model"] if ".gate.log" in name]
    assert len(learned) == (21 if "structured" in flags else 22)
    for name, value in one["model"].items():
        assert torch.equal(value, other["model"][name]), name
    assert one["rows"] == other["rows"]


def test_the_parts_of_a_batch_are_the_batch():
    pixels = torch.arange(20 * 8 * 8 * 3).remainder(251).byte().view(20, 8, 8, 3)
    images = Images(pixels, torch.arange(20))
    dataset = Dataset(images, None, images, [], "half", "cpu")
    whole = list(dataset.epoch(6, "crop_flip", 1, 2))
    halves = [list(dataset.epoch(6, "crop_flip", 1, 2, (part, 2))) for part in range(2)]
    assert len(whole) == len(halves[0]) == 3
    for step, (batch, labels) in enumerate(whole):
        assert torch.equal(torch.cat([half[step][0] for half in halves]), batch)
        assert torch.equal(torch.cat([half[step][1] for half in halves]), labels)


def test_torchrun_starts_the_program(tmp_path):
    done = torchrun(programs.SCRIPT, *FLAGS, "--dry_run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("train 0 ====>") == 1  # one process speaks
    assert "2 processes" in done.stderr


def test_the_program_in_two_processes_compacts_tunes_and_resumes(tmp_path):
    flags = [*FLAGS, "--epochs", "1", "--out_dir", "run", "--compact", "--finetune_epochs", "1"]
    done = programs.team(programs.SCRIPT, *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("train 0 ====>") == 1
    assert json.loads((tmp_path / "run" / "config.json").read_text())["processes"] == 2
    assert (tmp_path / "run" / "model.pt").exists()
    again = programs.team(programs.SCRIPT, "--resume", "run", cwd=tmp_path)
    assert again.stdout == done.stdout, again.stderr
    more = programs.team(programs.SCRIPT, "--resume", "run", "--finetune_epochs", "2", cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    assert "train 2 ====>" in more.stdout
    # what two have begun one may go on with, and says so
    alone = programs.command("--resume", "run", "--finetune_epochs", "3", cwd=tmp_path)
    assert "processes was 2, is 1" in alone.stderr
    assert "train 3 ====>" in alone.stdout


def test_a_batch_that_cannot_be_shared_out_is_refused_once(tmp_path):
    done = programs.team(programs.SCRIPT, *FLAGS, "--batch_size", "9", cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("modeling.py: error: --batch_size: 9 images are not shared out evenly") == 1
    assert not (tmp_path / "result").exists()


# the second process takes a second longer than the first one to join
SLOW = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
import torch.distributed as dist
from training.team import Team
begin = dist.init_process_group
def slowly(*backend):
    begin(*backend)
    if os.environ["RANK"] == "1":
        time.sleep(1)
        open("joined", "w").close()
dist.init_process_group = slowly
team = Team.join("cpu")
assert os.path.exists("joined")
team.leave()
"""


def test_no_process_goes_on_before_all_have_joined(tmp_path):
    """Otherwise one that ends at once, as the leader does that is refused, breaks the joining of the others."""
    (tmp_path / "process.py").write_text(SLOW)
    done = programs.team(tmp_path / "process.py", ROOT, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_what_the_leader_alone_finds_wrong_is_one_line(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    flags = [programs.SCRIPT, *FLAGS, "--out_dir", "run"]
    leader, other = (
        programs.Program(flags, tmp_path, environment={**place, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in (0, 1)
    )
    said = [member.communicate() for member in (leader, other)]
    assert (leader.returncode, other.returncode) == (2, 1)
    (line,) = said[0][1].splitlines()
    assert line.startswith("modeling.py: error: 'run' already holds a run")
    assert said[1] == ("", "")


def test_a_process_that_is_killed_ends_the_others_with_a_line(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    flags = [programs.SCRIPT, *FLAGS, "--epochs", "1000", "--out_dir", "run", "--quiet"]
    leader, other = (
        programs.Program(flags, tmp_path, environment={**place, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in (0, 1)
    )
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert leader.poll() is None, leader.communicate()
        time.sleep(0.05)
    other.kill()
    _, err = leader.communicate(timeout=60)
    assert leader.returncode == 1
    assert err.splitlines()[-1].startswith("modeling.py: error: another process of the team has ended")


def test_what_is_made_the_same_is_no_operation_that_gradients_go_through(monkeypatch):
    got = []
    monkeypatch.setattr("training.team.dist.broadcast", lambda tensor, src: got.append(tensor))
    weight = torch.nn.Parameter(torch.ones(2))
    Team(size=2).same_([weight])
    assert not got[0].requires_grad
    assert got[0].data_ptr() == weight.data_ptr()


def test_alone_nothing_is_exchanged():
    team, value = Team(), torch.ones(2)
    team.sum_(value)
    team.average_statistics(torch.nn.BatchNorm1d(2))  # which has no units
    assert value.tolist() == [1, 1]
    assert team.leads
    assert team.share({"a": 1}) == {"a": 1}
    assert Team.join("cpu").size == 1


class Ten(Team):
    """One of ten processes that all hold the same."""

    def __init__(self):
        super().__init__(rank=0, size=10)

    def sum_(self, tensor):
        part = tensor.clone()
        for _ in range(self.size - 1):
            tensor += part


def test_ten_processes_average_statistics_and_leave_masks_alone(two_blocks):
    """Ten tenths of 1 are not 1 in float32."""
    network, ten = two_blocks.float(), Ten()
    tenths = torch.ones(1) / 10
    ten.sum_(tenths)
    assert tenths != 1
    Pruner(network, rate=0.5).update(0.5)
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    ten.average_statistics(network)
    changed = 0
    for name, buffer in network.named_buffers():
        if "running" in name:
            torch.testing.assert_close(buffer, before[name])
            changed += not torch.equal(buffer, before[name])
        else:
            assert torch.equal(buffer, before[name]), name
    assert changed > 0
    assert {0.0, 1.0} == {value for gate in network.units.values() for value in gate.gate.mask.tolist()}


def test_averages_mixed_images_and_several_batches_are_the_same_in_both(tmp_path):
    process = PROCESS.replace('"rows": rows', '"rows": rows, "average": run.average.values')
    (tmp_path / "process.py").write_text(process)
    flags = [*FLAGS, "--ema", "0.9", "--mixup", "0.5", "--accumulate", "2", "--batch_size", "8"]
    done = programs.team(tmp_path / "process.py", ROOT, tmp_path, *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for part in ("model", "average"):
        for name, value in one[part].items():
            assert torch.equal(value, other[part][name]), name
    assert one["rows"] == other["rows"]
    assert one["rows"][0]["images"] == 48  # six batches of eight
    assert any((one["average"][name] != one["model"][name]).any() for name in one["average"])
