"""These tests type the command as its users do: its output, records, refusals and recipes."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY, TINY_DATA, run_program

import modeling
from settings.arguments import parse
from settings.errors import Refused
from settings.recipes import RAW_SCOPE, RECIPES, departures
from training import experiment
from training.engine import Engine

ROOT = Path(__file__).resolve().parent.parent
PRUNED = ["--prune_type", "structured", "--prune_rate", "0.6", "--reg", "reg_cov", "--odecay", "0.7"]


@pytest.fixture
def train(tmp_path, monkeypatch, capsys):
    """Runs a command in an empty folder and returns its lines on stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*flags):
        run_program(*flags)
        captured = capsys.readouterr()
        return captured.out.splitlines(), captured.err.splitlines()

    return run


def notebook(lines):
    """The paper's plotting notebook reads lines by their first word, and words by position between single spaces."""
    read = {"train": [], "valid": [], "sparsity": []}
    for line in lines:
        words = line.split(" ")
        if words[0] in ("train", "valid"):
            read[words[0]].append((int(words[1]), float(words[4]), float(words[6])))
        elif words[0] == "sparsity":
            zero, total = words[-1].split("/")
            read["sparsity"].append((int(words[1]), float(words[3].rstrip("%")), int(zero), int(total)))
    return read


@pytest.mark.core
def test_the_published_lines(train):
    out, _ = train(*TINY, *PRUNED)
    assert out[0] == "prune rate 0.6 regularization odecay 0.7"
    read = notebook(out)
    assert [epoch for epoch, *_ in read["train"]] == [epoch for epoch, *_ in read["valid"]] == [0, 1]
    for epoch, percent, zero, total in read["sparsity"]:
        assert total == 272_019
        assert f"{100 * zero / total:.2f}" == f"{percent:.2f}"
        assert out[2 + 3 * epoch].startswith("sparsity")
        assert zero > 0
    best = ast.literal_eval(out[-1])
    epoch = max((0, 1), key=lambda epoch: read["valid"][epoch][1])
    wanted = [epoch, *read["train"][epoch][1:], *read["valid"][epoch][1:]]
    assert best == pytest.approx(wanted, abs=0.006)
    assert [line.split()[0] for line in out[7:-1]] == ["result"] * 6


@pytest.mark.core
def test_a_dense_run_has_no_sparsity_line(train):
    out, err = train(*TINY)
    assert out[0] == "prune rate 0.0 regularization odecay 0.0"
    assert not any(line.startswith("sparsity") for line in out)
    assert "result filters: 784 of 784 (100.00 %) left after removal" in out
    assert not any("mask" in line for line in err)


@pytest.mark.core
def test_the_records_of_a_run(train, tmp_path):
    out, err = train(*TINY, *PRUNED, "--out_dir", "here")
    config = json.loads((tmp_path / "here" / "config.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "here" / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((tmp_path / "here" / "summary.json").read_text())
    assert config["command"].startswith("python modeling.py --dataset folder")
    assert config["settings"]["arch"] == "resnet20"
    assert config["settings"]["augment"] == "crop_flip"
    assert config["settings"]["typed"]["prune_rate"] == 0.6
    assert (len(config["filters"]), sum(config["filters"].values())) == (21, 784)
    assert config["versions"]["torch"] == torch.__version__
    assert [row["epoch"] for row in rows] == [0, 1]
    read = notebook(out)
    for row, (_, top1, top5), (_, _, zero, _) in zip(rows, read["valid"], read["sparsity"], strict=True):
        assert (row["valid"]["top1"], row["valid"]["top5"]) == pytest.approx((top1, top5), abs=0.001)
        assert row["num_zero"] == zero
        assert row["train"]["reg_cov"] > 0.001
        assert sum(row["kept_filters"].values()) == 784 - 470
    assert rows[0]["mask_changes"] == 470
    assert summary["left"]["filters"] == 314
    assert f"result parameters: {summary['left']['parameters']} of 272019 (" in "\n".join(out)
    assert err[-1] == "records: here"
    with pytest.raises(Refused, match="already holds a run"):
        train(*TINY, "--out_dir", "here")


def test_default_folders_are_numbered(train, tmp_path):
    for _ in range(2):
        train(*TINY, "--epochs", "1")
    assert sorted(path.name for path in (tmp_path / "result").iterdir()) == ["resnet20-none", "resnet20-none-2"]


@pytest.mark.core
def test_a_dry_run_leaves_nothing(train, tmp_path):
    out, _ = train(*TINY, *PRUNED, "--dry_run")
    assert notebook(out)["valid"]
    assert notebook(out)["sparsity"][0][2] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("amp", ["off", "bfloat16"])
def test_the_same_command_gives_the_same_numbers(train, amp):
    first, second, other = (
        [line for line in train(*TINY, *PRUNED, "--amp", amp, "--deterministic", "--seed", seed)[0] if "seconds" not in line]
        for seed in ("3", "3", "4")
    )
    assert first == second != other


def test_the_test_set_is_read_once_unless_it_is_the_validation_set(train, monkeypatch):
    reads = []
    evaluate = experiment.evaluate

    def counted(model, task, split, *rest):
        reads.append("test" if split is task.test else "valid")
        return evaluate(model, task, split, *rest)

    monkeypatch.setattr(experiment, "evaluate", counted)
    out, _ = train(*TINY)
    assert reads == ["valid", "valid", "test"]
    assert "6 held-out images" in "".join(out)
    reads.clear()
    out, _ = train(*TINY, "--val_size", "0")
    assert reads == ["test", "test"]
    last = notebook(out)["valid"][-1][1]
    assert f"result test accuracy: {last:.2f} after the last epoch (24 images)" in out


def test_what_is_said_on_the_way(train):
    _, err = train(*TINY, *PRUNED)
    assert any(line.startswith("epoch 0 took ") and "all 2 will take about " in line for line in err)
    assert err[-1].startswith("records: result")
    _, err = train(*TINY, *PRUNED, "--quiet")
    assert err == []
    run = modeling.start(parse([*TINY, *PRUNED]))
    assert modeling.pruning_text(run) == " kept 784 filters, sparsity 0.0%, 0 masks changed"
    run.pruner.before_step(0, 0)
    assert modeling.pruning_text(run).startswith(" kept 314 filters, sparsity 6")
    assert modeling.pruning_text(run).endswith("470 masks changed")


@pytest.mark.core
def test_masked_filters_never_show(train, monkeypatch):
    """The network that is evaluated has the masks on: silencing cut filters' weights changes nothing."""
    seen = {}
    summarise = modeling.Result.of

    def look(run, *rest):
        model, images = run.model, next(run.task.ordered(run.task.test, 50))[0]
        model.eval()
        with torch.no_grad():
            before = model(images)
            for unit in model.units.values():
                unit.layer.weight[~unit.live.bool()] = 123.0
            seen["same"] = torch.equal(before, model(images))
        return summarise(run, *rest)

    monkeypatch.setattr(modeling.Result, "of", look)
    train(*TINY, *PRUNED)
    assert seen["same"]


@pytest.mark.core
def test_a_loss_that_is_not_finite_stops_the_run(train):
    with pytest.raises(modeling.Failed, match=r"not finite at epoch 0, step \d+ of 3"):
        train(*TINY, "--lr", "1e30")


def test_weights_that_the_last_step_has_spoilt_are_not_kept(tmp_path, monkeypatch, capsys):
    """Its loss is still that of the weights before it."""
    monkeypatch.chdir(tmp_path)
    train = modeling.train_epoch

    def spoil(run, epoch, bar):
        measures = train(run, epoch, bar)
        if epoch == 1:
            run.model.classifier.weight.data.fill_(float("nan"))
        return measures

    monkeypatch.setattr(modeling, "train_epoch", spoil)
    with pytest.raises(modeling.Failed, match="validation loss was not finite after epoch 1"):
        run_program(*TINY, "--out_dir", "run", "--quiet")
    monkeypatch.setattr(modeling, "train_epoch", train)
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1
    capsys.readouterr()
    run_program("--resume", "run", "--quiet")  # from the last epoch that was whole
    assert "valid 1 ====>" in capsys.readouterr().out


def test_the_cure_for_a_loss_that_is_not_finite_can_be_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = [*TINY, "--epochs", "1", *PRUNED, "--compact", "--finetune_epochs", "1", "--out_dir", "run", "--quiet"]
    with pytest.raises(modeling.Failed, match=r"--resume masked.pt, in the run's folder, with a smaller --finetune_lr"):
        run_program(*flags, "--finetune_lr", "1e30")
    run_program("--resume", "run/masked.pt", "--finetune_lr", "1e-3", "--quiet")
    assert (tmp_path / "run" / "summary.json").exists()


def test_a_run_whose_reader_goes_away_is_kept(tmp_path):
    """As in `modeling.py ... | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    typed = [sys.executable, ROOT / "modeling.py", *TINY, "--epochs", "1", "--out_dir", "run"]
    done = subprocess.run(typed, cwd=tmp_path, stdout=writer, stderr=writer)
    os.close(writer)
    assert done.returncode == 0
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.core
def test_the_learning_rate_follows_its_schedule():
    def rates(*flags, at):
        run = modeling.start(parse([*TINY, *flags, "--batch_size", "5"]))  # ten steps an epoch
        return [run.learning_rate(epoch, step) for epoch, step in at]

    moments = ((0, 0), (2, 0), (5, 0), (149, 9), (150, 0), (225, 0), (299, 0))
    warm = rates("--epochs", "300", "--warmup_epochs", "5", at=moments)
    assert warm == pytest.approx([0.2 * 0.1 / 5, 0.2 * 2.1 / 5, 0.2, 0.2, 0.02, 0.002, 0.002])
    assert rates("--epochs", "300", "--lr_schedule", "cosine", at=((0, 0), (150, 0), (300, 0))) == pytest.approx([0.2, 0.1, 0])
    assert rates("--lr_schedule", "constant", "--lr", "0.3", at=((0, 0), (1, 5))) == [0.3, 0.3]


def test_a_run_that_diverges_exits_with_1(tmp_path):
    """The script in a process of its own, as it is typed."""
    typed = [sys.executable, ROOT / "modeling.py", *TINY, "--lr", "1e30"]
    done = subprocess.run(typed, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("modeling.py: error: the loss was not finite at epoch 0, step ")


def test_the_plain_command_is_the_paper_with_cures():
    settings = parse([*PRUNED])
    assert (settings.network.arch, settings.training.epochs, settings.training.batch_size, settings.training.lr) == (
        "resnet50",
        300,
        128,
        0.2,
    )
    assert (settings.training.momentum, settings.training.weight_decay, settings.pruning.prune_freq) == (0.9, 1e-4, "1ep")
    assert (settings.data.dataset, settings.data.val_size) == ("cifar10", 0.1)
    lines = departures(settings)
    assert len(lines) == 5
    undone = [flag for line in lines for flag in undo_flags(line)]
    assert departures(parse([*PRUNED[:4], *undone])) == []


def undo_flags(line):
    """The flag after `undo:`, as a shell would split it."""

    return shlex.split(re.search(r"undo: (.*)\)$", line)[1])


def flat(argv):
    """Every setting of a command, by its flag."""
    return SimpleNamespace(**parse(argv).flat)


def test_a_recipe_replaces_defaults_and_typed_flags_win():
    code = flat(["--recipe", "ksc2020"])
    assert (code.arch, code.batch_size, code.seed, code.val_size) == ("resnet56", 256, 777, 0.0)
    assert (code.augment, code.normalise, code.lr_schedule, code.reg) == ("crop", "half", "constant", "none")
    assert (code.prune_imp, code.prune_gate, code.prune_freq) == ("L1(reduce='mean')", "weight", "4it")
    assert code.prune_until * 300 == pytest.approx(226)
    paper = flat(["--recipe", "paper", "--prune_rate", "0.7", "--layers", "20"])
    assert (paper.arch, paper.prune_rate, paper.reg, paper.odecay) == ("resnet20", 0.7, "reg_cov", 0.7)
    assert (paper.prune_scope, paper.prune_gate, paper.prune_until) == (RAW_SCOPE, "weight", 1.0)
    asked = parse(["--recipe", "paper", "--prune_rate", "0.7", "--layers", "20"])
    assert departures(asked) == ["the regulariser is live (the published one was the constant 0) (reg reg_cov; undo: --reg none)"]


def test_flags_of_pruning_speak_for_others():
    best = flat(["--recipe", "best", "--layers", "20"])
    assert (best.prune_type, best.prune_schedule, best.lr_schedule, best.weight_decay) == ("structured", "cubic", "cosine", 5e-4)
    assert (best.arch, best.prune_rate, best.reg) == ("resnet20", 0.6, "none")
    rounds = flat(["--prune_type", "structured", "--rounds", "3"])
    assert (rounds.prune_phase, rounds.prune_schedule) == ("iterative(rounds=3)", "linear")
    assert flat(["--prune_type", "structured", "--prune_imp", "LcP"]).prune_scope == "global(normalise='none')"
    assert flat(["--prune_type", "structured", "--prune_imp", "LcP", "--prune_scope", "local"]).prune_scope == "local"
    assert flat(["--recipe", "best", "--prune_imp", "LcP"]).prune_scope == "global(normalise='none')"
    assert flat(["--preset", "VGG-16-A", "--prune_imp", "LcP"]).prune_scope == "preset(name='VGG-16-A')"
    preset = flat(["--preset", "VGG-16-A", "--compact"])
    assert (preset.arch, preset.prune_type, preset.prune_scope) == ("vgg16", "structured", "preset(name='VGG-16-A')")
    assert flat(["--prune_type", "structured", "--prune_imp", "APoZ(counts='deviation')"]).prune_rate == 0


def test_a_trained_network_is_cut_before_the_first_step(train, tmp_path):
    train(*TINY, "--out_dir", "dense")
    dense = torch.load("dense/checkpoint.pt", weights_only=True)["model"]
    flags = ["--prune_type", "structured", "--prune_rate", "0.5", "--lr", "1e-30", "--weight_decay", "0"]
    for name, phase in (("first", "init"), ("second", "after")):
        # the network is that of the file, whatever the default is
        tiny = [word for word in TINY if word not in ("--layers", "20")]
        out, _ = train(*tiny, "--init", "dense", *flags, "--prune_phase", phase, "--out_dir", name)
        assert notebook(out)["sparsity"][0][2] > 30
        began = torch.load(f"{name}/checkpoint.pt", weights_only=True)
        assert began["settings"]["arch"] == "resnet20"
        for key, value in dense.items():
            if key.endswith("weight"):
                torch.testing.assert_close(began["model"][key], value)
    with pytest.raises(Refused, match="has been pruned; a whole network is needed"):
        train(*TINY, "--init", "first")
    train("--resume", "first", "--compact")
    train(*TINY, "--init", "first/model.pt", "--out_dir", "third")  # what is left trains on
    left, third = (torch.load(f, weights_only=True) for f in ("first/model.pt", "third/checkpoint.pt"))
    assert {name: value.shape for name, value in third["model"].items()} == {n: v.shape for n, v in left["tensors"].items()}
    with pytest.raises(Refused, match="is a resnet20, not a resnet32"):
        train(*TINY, "--layers", "32", "--init", "dense")


def test_a_run_from_a_trained_network_goes_on_without_it(train, tmp_path):
    train(*TINY, "--out_dir", "dense")
    flags = ["--init", "dense", "--prune_type", "structured", "--rounds", "2", "--out_dir", "part"]
    train(*TINY, *flags, "--epochs", "1")
    shutil.rmtree("dense")
    config = json.loads(Path("part/config.json").read_text())
    assert config["settings"]["init"] == "dense"
    train("--resume", "part", "--epochs", "2")
    summary = json.loads(Path("part/summary.json").read_text())
    assert summary["left"]["filters"] < summary["dense"]["filters"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_trains_and_says_what_was_typed_over_it(train, recipe):
    batch = "3" if recipe == "dpf" else "9"  # its masks are made every 16 steps
    out, err = train("--recipe", recipe, *TINY, "--batch_size", batch, "--reg", "reg_ortho", "--lr", "0.01")
    assert notebook(out)["sparsity"][-1][2] > 0
    recipe_line = next(line for line in err if line.startswith("recipe"))
    typed = "--batch_size, --dataset, --epochs, --image_size, --layers, --lr, --reg"
    assert recipe_line == f"recipe {recipe}, typed over it: {typed}"


@pytest.mark.parametrize(
    "flags",
    [
        ["--prune_type", "unstructured", "--prune_rate", "0.9", "--reg", "reg_cov"],
        ["--prune_type", "structured", "--prune_imp", "syn", "--score_batches", "1", "--prune_schedule", "cubic"],
        ["--prune_type", "structured", "--prune_phase", "after", "--prune_imp", "grad"],
        [
            "--prune_type",
            "structured",
            "--prune_phase",
            "init",
            "--prune_scope",
            "local",
            "--reg",
            "reg_ortho",
            "--odecay",
            "1e-4",
        ],
        ["--shortcut", "pad", "--prune_type", "structured"],
    ],
)
def test_the_answers_from_the_command_line(train, flags):
    out, _ = train(*TINY, *flags)
    assert len(notebook(out)["valid"]) == 2


@pytest.mark.parametrize("arch", ["vgg16", "resnet18"])
def test_other_networks_from_the_command_line(train, arch):
    out, _ = train("--arch", arch, *TINY_DATA, "--image_size", "32", "--dry_run", "--batch_size", "8", *PRUNED)
    assert len(notebook(out)["valid"]) == 1


def test_flags_of_the_engine_have_an_effect(train):
    def losses(name, *flags):
        train(*TINY, *flags, "--out_dir", name)
        return [json.loads(line)["train"]["loss"] for line in Path(name, "metrics.jsonl").read_text().splitlines()]

    base = losses("base")
    for number, flags in enumerate(
        (
            ["--normalise", "half"],
            ["--augment", "none"],
            ["--momentum", "0.5"],
            ["--weight_decay", "0.1"],
            ["--lr", "0.1"],
            ["--lr_schedule", "constant"],
            ["--warmup_epochs", "1"],
            ["--batch_size", "9"],
            ["--val_size", "0.2"],
            ["--shortcut", "pad"],
            ["--reg", "reg_cov"],
            ["--seed", "1"],
            ["--amp", "bfloat16" if default_engine().amp == "off" else "off"],
        )
    ):
        assert losses(str(number), *flags) != base, flags


def default_engine():
    """The engine that the defaults resolve to on this machine."""
    return Engine.choose(parse(TINY).engine)


@pytest.mark.parametrize(
    "flags",
    [
        ["--prune_rate", "0.5"],
        ["--prune_imp", "random"],
        ["--prune_imp", "grad"],
        ["--prune_scope", "local"],
        ["--prune_phase", "init"],
        ["--prune_phase", "after"],
        ["--prune_schedule", "cubic"],
        ["--prune_freq", "2ep"],
        ["--prune_freq", "1it"],
        ["--prune_until", "0.3"],
        ["--prune_gate", "weight"],
        ["--prune_type", "unstructured"],
        ["--reg", "reg_cov", "--odecay", "0.7"],
        ["--reg", "reg_cov", "--odecay", "7"],
        ["--reg", "reg_cov_ijcai2018"],
        ["--reg", "reg_ortho"],
    ],
)
def test_flags_of_the_pruning_have_an_effect(train, flags, tmp_path):
    """Against a plain pruned run: another mask, or another course of training."""
    base = [*TINY, "--prune_type", "structured", "--epochs", "4", "--lr", "0.5", "--amp", "off"]
    if "7" in flags:
        base += ["--reg", "reg_cov"]
    rows = []
    for number, typed in enumerate(([], flags)):
        train(*base, *typed, "--out_dir", str(number))
        lines = (tmp_path / str(number) / "metrics.jsonl").read_text().splitlines()
        rows.append([{k: v for k, v in json.loads(line).items() if k not in ("seconds", "images_per_second")} for line in lines])
    assert rows[0] != rows[1]
    assert rows[1][-1]["cut"] > 0


def test_score_batches_have_an_effect():
    scores = []
    for batches in ("1", "3"):
        run = modeling.start(parse([*TINY, "--prune_type", "structured", "--prune_imp", "grad", "--score_batches", batches]))
        scores.append(run.pruner.scores()["stem"])
    assert not torch.equal(*scores)


def test_the_best_epoch_is_one_at_the_rate(train):
    """Trained dense for three epochs of four, the network of the best epoch is still the pruned one."""
    out, _ = train(*TINY, "--epochs", "4", "--prune_type", "structured", "--prune_phase", "after", "--prune_rate", "0.9")
    assert [zero > 0 for _, _, zero, _ in notebook(out)["sparsity"]] == [False, False, False, True]
    assert ast.literal_eval(out[-1])[0] == 3
    assert "at epoch 3" in out[-7]


@pytest.mark.parametrize(
    "flags",
    [
        ["--prune_freq", "5000it"],
        ["--prune_phase", "after", "--epochs", "1", "--batch_size", "100"],
        ["--prune_scope", "local(floor=100)"],
        ["--prune_scope", "global(floor=100)"],
        ["--prune_rate", "0.99"],
    ],
)
def test_a_run_that_would_not_prune_as_asked_is_refused(train, flags, tmp_path):
    with pytest.raises(Refused, match="--prune_"):
        train(*TINY, "--prune_type", "structured", *flags)
    assert list(tmp_path.iterdir()) == []


def test_a_regulariser_of_filters_is_refused_where_there_are_none():
    with pytest.raises(Refused, match=r"--reg reg_cov has no effect: it is about filters, and lenet300 has none"):
        modeling.start(parse([*TINY_DATA, "--arch", "lenet300", "--reg", "reg_cov"]))
    modeling.start(parse([*TINY_DATA, "--arch", "lenet300", "--reg", "reg_ortho(linear=True)", "--quiet"]))
