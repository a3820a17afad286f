"""A teacher stays as it is, teaches networks of other widths and depths, and its lessons go on where a run was left."""

import json
import shutil
from pathlib import Path

import programs
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, TINY, TINY_DATA, run_program
from promises import differences, records, trains_and_resumes, unchanged
from tqdm import tqdm

import modeling
import models
from settings.arguments import parse
from settings.errors import Refused
from training.engine import Engine
from training.teacher import Teaching

PRUNED = ["--prune_type", "structured", "--prune_rate", "0.5"]
SHORT = [*TINY, "--lr", "0.02", "--amp", "off", "--deterministic", "--quiet"]
ALL = "KD + DKD + FitNet + AT + RKD + SP"
ENGINE = Engine("cpu", "off", False, False)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """The folder of a dense run of ResNet-20."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    run_program(*SHORT, "--epochs", "1", "--seed", "3", "--out_dir", str(folder))
    return folder


def started(*flags):
    return modeling.start(parse([*SHORT, *flags]))


def network_of(run: Path) -> models.Network:
    """The network that a run's checkpoint holds, by hand."""
    network = models.build("resnet20", classes=3)
    network.load_state_dict(torch.load(run / "checkpoint.pt", weights_only=True)["model"])
    return network.eval()


@pytest.mark.core
def test_the_loss_is_that_of_the_paper(teacher):
    """0.1 x cross-entropy + 0.9 x 16 x KL, from the logits of both networks."""
    run = started("--teacher", str(teacher), "--distill", "KD(temperature=4, weight=0.9)")
    images, labels = next(iter(run.batches(0)))
    outputs, terms = run.losses(images, labels)
    wanted = network_of(teacher)(images)
    p, q = (F.softmax(logits.double() / 4, 1) for logits in (wanted, outputs))
    assert set(terms) == {"cross_entropy", "KD"}
    assert terms["KD"].item() == pytest.approx(0.9 * 16 * (p * (p / q).log()).sum(1).mean().item(), rel=1e-4)
    assert terms["cross_entropy"].item() == pytest.approx(0.1 * F.cross_entropy(outputs, labels).item(), rel=1e-5)
    plain = started()
    assert set(plain.losses(images, labels)[1]) == {"cross_entropy"}
    both = started("--teacher", str(teacher), "--distill", "KD(weight=0.5) + SP")
    _, terms = both.losses(images, labels)
    assert terms["cross_entropy"].item() == pytest.approx(0.5 * F.cross_entropy(outputs, labels).item(), rel=1e-5)


@pytest.mark.core
def test_the_teacher_stays_as_it_is(teacher):
    run = started("--teacher", str(teacher), "--distill", ALL)
    taught = run.teaching.teacher
    trained = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
    assert not {*map(id, taught.parameters())} & {*map(id, trained)}
    assert not {*map(id, taught.parameters())} & {*map(id, run.model.parameters())}
    assert {*map(id, run.teaching.parameters)} < {*map(id, trained)}
    assert len(run.teaching.parameters) == 3  # the convolution of FitNet, and its batch norm
    before = [parameter.detach().clone() for parameter in run.teaching.parameters]
    row = modeling.train_epoch(run, 0, tqdm(disable=True))
    assert not any(module.training for module in taught.modules())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in taught.parameters())
    assert differences(taught.state_dict(), network_of(teacher).state_dict()) == []
    assert all(row[name] > 0 for name in ("KD", "DKD", "FitNet", "AT", "RKD", "SP"))
    assert not any(torch.equal(one, other) for one, other in zip(before, run.teaching.parameters, strict=True))


@pytest.mark.core
def test_a_student_that_is_its_teacher_has_nothing_to_learn(teacher):
    run = started("--init", str(teacher), "--teacher", "dense", "--distill", "KD + DKD + AT + RKD + SP")
    images, labels = next(iter(run.batches(0)))
    run.model.eval()
    with unchanged(run.model):
        _, terms = run.losses(images, labels)
    assert set(terms) == {"cross_entropy", "KD", "DKD", "AT", "RKD", "SP"}
    for name in ("KD", "DKD", "AT", "RKD", "SP"):
        assert terms[name].item() == pytest.approx(0, abs=1e-5), name
    run.model.train()
    _, terms = run.losses(images, labels)
    assert terms["KD"].item() > 1e-5  # batch norm by the batch


PAIRS = [
    ("resnet20", "resnet32"),
    ("resnet20(widen=0.5)", "resnet20(widen=2.0)"),
    ("resnet20", "vgg16(widen=0.1)"),
    ("vgg16(widen=0.1)", "resnext11"),
    ("lenet5", "resnet20"),
]


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_networks_of_other_widths_and_depths_teach(student, teacher):
    torch.manual_seed(0)
    own, other = (models.build(name, classes=5, size=32) for name in (student, teacher))
    teaching = Teaching(ALL, own, other, 32, ENGINE, "a file")
    images, labels = torch.rand(6, 3, 32, 32), torch.arange(6) % 5
    forward = teaching.wrapped(own.train(), modeling.Team())
    outputs = forward(images)
    terms = teaching.added({"cross_entropy": F.cross_entropy(outputs, labels)}, images, outputs, labels)
    assert all(term.isfinite() and term > 0 for term in terms.values())
    sum(terms.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in [*own.parameters(), *teaching.parameters])
    assert all(p.grad is None for p in other.parameters())


@pytest.mark.core
def test_linear_networks_compare_logits_and_embeddings_only():
    own, other = (models.build("lenet300", classes=5, channels=1, size=8) for _ in range(2))
    teaching = Teaching("KD + RKD + SP", own, other, 8, ENGINE, "a file")
    images = torch.rand(6, 1, 8, 8)
    outputs = teaching.wrapped(own, modeling.Team())(images)
    assert all(term > 0 for term in teaching.added({}, images, outputs, torch.zeros(6).long()).values())
    with pytest.raises(ValueError, match="the student has no feature maps"):
        Teaching("AT", own, other, 8, ENGINE, "a file")


@pytest.mark.core
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--dataset", "digits"], "tells 3 classes apart, and the student 10"),
        (["--image_size", "8"], "reads images of 3 x 16 x 16, and the student of 3 x 8 x 8"),
        (["--channels", "1"], "reads images of 3 x 16 x 16, and the student of 1 x 16 x 16"),
        (["--arch", "lenet300", "--distill", "AT"], "--distill AT: the student has no feature maps"),
        (["--distill", "FitNet(stage=4)"], "there is no stage 4: the networks have 3 in common"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_data_is_read(teacher, monkeypatch, flags, words):
    monkeypatch.setattr("tasks.load", lambda *_, **__: pytest.fail("the data was read"))
    plain = SHORT if "--dataset" not in flags else ["--layers", "20"]
    plain = [flag for flag in plain if flag not in ("--layers", "20")] if "--arch" in flags else plain
    with pytest.raises(Refused) as caught:
        modeling.start(parse([*plain, "--teacher", str(teacher), *flags]))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.core
def test_what_is_no_network_is_refused(tmp_path, teacher):
    (tmp_path / "model.pt").write_bytes(b"no network")
    for path in (tmp_path, tmp_path / "model.pt"):
        with pytest.raises(Refused, match="--teacher: "):
            started("--teacher", str(path))
    with pytest.raises(Refused, match="--teacher: nothing at 'absent'"):
        parse([*SHORT, "--teacher", "absent"])
    with pytest.raises(Refused, match="dense is the network before pruning, and this run trains none"):
        parse([*SHORT, *PRUNED, "--teacher", "dense"])


@pytest.mark.core
def test_the_data_are_those_of_the_teacher(teacher):
    """As with --init; what is typed wins."""
    settings = parse(["--layers", "20", "--teacher", str(teacher)])
    assert (settings.data.dataset, settings.data.image_size, settings.data.data_dir) == ("folder", 16, TINY_DATA[3])
    assert settings.training.distill == "KD"
    assert parse(["--layers", "20", "--teacher", str(teacher), "--val_size", "0.3"]).data.val_size == 0.3


@pytest.mark.core
def test_the_teacher_sees_images_as_when_it_was_trained(teacher):
    run = started("--teacher", str(teacher), "--distill", "KD(weight=1)", "--normalise", "half")
    images, labels = next(iter(run.batches(0)))
    data = torch.load(teacher / "checkpoint.pt", weights_only=True)["data"]
    mean, std = (torch.tensor(data[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    as_then = (images * 127.5 + 127.5 - mean) / std
    outputs, terms = run.losses(images, labels)
    p, q = (F.softmax(logits.double() / 4, 1) for logits in (network_of(teacher)(as_then), outputs))
    assert terms["KD"].item() == pytest.approx(16 * (p * (p / q).log()).sum(1).mean().item(), rel=1e-4)
    assert started("--teacher", str(teacher)).teaching.scale is None


@pytest.mark.core
@pytest.mark.parametrize("at", [1, 2])
def test_with_masks_moving_and_removal_it_goes_on_where_it_was(tmp_path, monkeypatch, teacher, at):
    """Before the second epoch, in which masks move, and before the first one of fine-tuning, after removal."""
    flags = [*PRUNED, "--layers", "20", "--compact", "--finetune_epochs", "1", "--lr", "0.02"]
    flags += ["--teacher", str(teacher), "--distill", "KD + FitNet + AT"]
    state = trains_and_resumes(tmp_path, monkeypatch, *flags, network=None, at=at)
    assert all(row["train"][name] > 0 for row in state["rows"] for name in ("KD", "FitNet", "AT"))
    assert state["shapes"] is not None
    width = state["teaching"]["losses"]["FitNet.regressor.weight"].shape[1]
    assert width <= 32
    config = json.loads(Path("whole", "config.json").read_text())
    assert config["teacher"] == state["teaching"]["file"]
    assert config["settings"]["distill"] == "KD + FitNet + AT"


@pytest.mark.core
def test_removal_leaves_a_hint_and_its_momentum_as_they_were(teacher):
    """What a regressor reads of filters under a mask is 0, and so nothing changes once they are gone."""
    run = started(*PRUNED, "--prune_rate", "0.8", "--compact", "--teacher", str(teacher), "--distill", "FitNet + AT + SP")
    modeling.train_epoch(run, 0, tqdm(disable=True))
    # a stream loses channels only where all that write them are cut
    for name, gate in run.pruner.gates.items():
        if name.startswith("stage2") and "conv1" not in name:
            gate.set(torch.arange(32) % 3 == 0)
    run.pruner.let_move(False)
    images, labels = next(iter(run.batches(0)))

    def said() -> dict:
        run.model.eval()
        return {name: term.item() for name, term in run.losses(images, labels)[1].items()}

    before, momentum = said(), run.optimizer.state[run.teaching.parameters[0]]["momentum_buffer"].clone()
    weight = run.teaching.parameters[0].detach().clone()
    run.enter(1)
    assert run.model.stage2[2].conv2.filters < 32
    after = said()
    for name, value in before.items():
        assert after[name] == pytest.approx(value, rel=1e-4), name
    kept = run.teaching.parameters[0]
    assert kept.shape[1] == 11
    assert torch.equal(kept, weight[:, torch.arange(32) % 3 == 0])
    assert torch.equal(run.optimizer.state[kept]["momentum_buffer"], momentum[:, torch.arange(32) % 3 == 0])
    modeling.train_step(run, images, labels)
    assert not torch.equal(kept, weight[:, torch.arange(32) % 3 == 0])


@pytest.mark.core
def test_a_run_teaches_itself_by_what_it_was_before_the_cut(tmp_path, monkeypatch):
    flags = ["--layers", "20", *PRUNED, "--prune_phase", "after", "--prune_until", "0.5", "--compact", "--finetune_epochs", "1"]
    flags += ["--teacher", "dense", "--distill", "KD + FitNet"]
    state = trains_and_resumes(tmp_path, monkeypatch, *flags, network=None, at=2)
    assert ["KD" in row["train"] for row in state["rows"]] == [False, True, True]
    assert state["teaching"]["file"] is None
    # fine-tuning goes on with it
    before = torch.load("whole/masked.pt", weights_only=True)["teaching"]["own"]
    assert differences(before, state["teaching"]["own"]) == []


@pytest.mark.core
@pytest.mark.parametrize(
    "how",
    [
        ["--prune_phase", "after", "--prune_until", "0.5"],
        ["--prune_phase", "iterative(rounds=2, start=0.75)"],
        ["--prune_phase", "after", "--prune_until", "0.5", "--reconstruct", "lasso"],
        ["--procedure", "rounds(n=1)", "--epochs", "1"],
    ],
    ids=lambda how: how[1],
)
def test_what_it_was_is_what_it_was_right_before_the_cut(how):
    """That is after the first of two epochs."""
    run = started(*PRUNED[:2], *(PRUNED[2:] if "--procedure" not in how else []), *how, "--teacher", "dense")
    bar = tqdm(disable=True)
    first = modeling.train_epoch(run, 0, bar)
    assert "KD" not in first
    assert first["cross_entropy"] == first["loss"]
    assert not run.teaching.active
    assert run.state()["teaching"]["own"] is None
    before = {name: value.clone() for name, value in run.model.state_dict().items() if ".gate." not in name}
    if len(run.plan.stages) > 1:
        run.enter(1)
    if run.plan.stages[run.stage].epochs:
        assert "KD" in modeling.train_epoch(run, 1, bar)
    assert differences(before, run.state()["teaching"]["own"]) == []


@pytest.mark.core
def test_another_teacher_is_refused_when_a_run_goes_on(tmp_path, monkeypatch, teacher):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(teacher, "taught")
    run_program(*SHORT, "--epochs", "1", "--teacher", "taught", "--out_dir", "run")
    shutil.move("taught", "moved")
    with pytest.raises(Refused, match="--teacher: no trained network at 'taught"):
        run_program("--resume", "run", "--epochs", "2", "--quiet")
    run_program("--resume", "run", "--epochs", "2", "--teacher", "moved", "--quiet")
    assert len(Path("run", "metrics.jsonl").read_text().splitlines()) == 2
    run_program("--resume", "moved", "--epochs", "2", "--quiet")  # it is trained on
    done = programs.command("--resume", "run", "--epochs", "3", "--quiet", cwd=tmp_path)
    assert done.returncode == 2
    assert "is not the teacher with which the run began: it has changed" in done.stderr.splitlines()[-1]
    with pytest.raises(Refused, match="is not the teacher with which the run began"):
        run_program("--resume", "run", "--epochs", "3", "--teacher", "run", "--quiet")
    with pytest.raises(Refused, match="the run began with another teacher"):
        run_program("--resume", "moved", "--epochs", "3", "--teacher", "run", "--quiet")


# each process writes what it has after an epoch: the network, the regressor, the measures
PROCESS = """
import sys, torch, tqdm
sys.path.insert(0, sys.argv[1])
import modeling
from settings.arguments import parse
from training.team import Team
settings = parse(sys.argv[3:])
team = Team.join("cpu")
run = modeling.start(settings, team=team)
images, labels = next(iter(run.batches(0)))
_, terms = run.losses(images, labels)
sum(terms.values()).backward()
gradients = [parameter.grad.clone() for parameter in run.teaching.parameters]
rows = [modeling.train_epoch(run, epoch, tqdm.tqdm(disable=True)) for epoch in range(2)]
state = {"model": run.model.state_dict(), "losses": run.teaching.modules.state_dict(), "rows": rows, "gradients": gradients}
torch.save(state, f"{sys.argv[2]}/{team.rank}.pt")
team.leave()
"""


def test_two_processes_learn_the_same(tmp_path, teacher):
    flags = [*TINY, *PRUNED, "--amp", "off", "--threads", "1", "--teacher", str(teacher), "--distill", "KD + FitNet + RKD"]
    (tmp_path / "process.py").write_text(PROCESS)
    done = programs.team(tmp_path / "process.py", ROOT, tmp_path, *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert differences(one, other) == []
    assert {"KD", "FitNet", "RKD"} < one["rows"][0].keys()
    # the mean of the two half batches
    run, sums = modeling.start(parse(flags)), None
    for half in range(2):
        images, labels = next(run.task.batches(0, (half, 2)))
        run.optimizer.zero_grad()
        sum(run.losses(images, labels)[1].values()).backward()
        halves = [parameter.grad / 2 for parameter in run.teaching.parameters]
        sums = halves if sums is None else [a + b for a, b in zip(sums, halves, strict=True)]
    for got, wanted in zip(one["gradients"], sums, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-5)


def test_a_step_that_is_captured_learns_the_same(teacher, monkeypatch):
    """As torch.compile captures it; that its compiler makes the same of what was captured is torch's own affair."""
    capture = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **_: capture(function, backend="eager", dynamic=False))
    flags = ["--teacher", str(teacher), "--distill", ALL, "--amp", "off"]
    plain, captured = started(*flags), started(*flags, "--compile")
    assert captured.engine.compile
    images, labels = next(iter(plain.batches(0)))
    for run in (plain, captured):
        run.model.train()
        run.set_learning_rate(0, 0)
    captured.model.load_state_dict(plain.model.state_dict())
    captured.teaching.modules.load_state_dict(plain.teaching.modules.state_dict())
    for _ in range(2):
        terms = [modeling.train_step(run, images, labels)[1] for run in (plain, captured)]
        assert terms[0].keys() == terms[1].keys()
        for name, value in terms[0].items():
            assert terms[1][name].item() == pytest.approx(value.item(), rel=1e-3), name
    assert captured.predict(images).shape == (len(images), 3)
    assert captured.teaching.watches[0].kept == {}


def test_the_commands_of_the_manual_do_what_they_say(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    short = ["--epochs", "1", "--batch_size", "18", "--quiet"]
    run_program("--layers", "20", *TINY_DATA, *short, "--out_dir", "RUN")
    commands = [
        ["--layers", "20", *PRUNED[:2], "--target_macs", "0.5", "--teacher", "RUN", "--distill", "KD(temperature=4, weight=0.9)"],
        ["--layers", "20", "--teacher", "RUN", "--distill", "FitNet + AT + RKD + SP"],
        ["--init", "RUN", *PRUNED[:2], "--target_macs", "0.3", "--prune_phase", "init", "--teacher", "dense", "--lr", "0.01"],
    ]
    terms = [{"KD"}, {"FitNet", "AT", "RKD", "SP"}, {"KD"}]
    for number, (command, names) in enumerate(zip(commands, terms, strict=True)):
        compact = ["--compact"] if "--prune_type" in command else []
        run_program(*command, *compact, *short, "--out_dir", str(number))
        row = records(str(number))["rows"][-1]
        assert names | {"cross_entropy"} == row["train"].keys() - {"top1", "top5", "loss", "images"}
        assert Path(str(number), "model.pt").exists()
    # --teacher dense beside --init is the network of that run
    config = [json.loads(Path(name, "config.json").read_text()) for name in ("0", "2")]
    assert config[0]["teacher"] == config[1]["teacher"]
    assert config[1]["settings"]["teacher"] == "RUN"
    run_program("--layers", "20", *short, "--teacher", "0")  # a smaller network teaches too
    assert Path("result", "resnet20-none-KD").is_dir()
    capsys.readouterr()
