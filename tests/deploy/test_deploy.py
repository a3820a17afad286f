"""These tests type what users type to get smaller networks: removal, model files, exports, measurements."""

import json
import shutil
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import programs
import pytest
import torch
from conftest import TINY, TINY_DATA, run_program
from PIL import Image

import modeling
import models
from deploy import export, latency, measure, use
from deploy.folding import folded
from deploy.forms import onnx as onnx_form
from deploy.forms.onnx import session
from deploy.forms.pt2 import FACTS
from pruning import OutputGate, Pruner
from pruning.removal import Removal
from settings.arguments import parse
from settings.errors import Failed, Refused
from training import comparison
from training.statistics import recalibrate_statistics

ROOT = Path(__file__).resolve().parents[2]
PRUNED = ["--prune_type", "structured", "--prune_rate", "0.6"]
IMAGES = Path(TINY_DATA[3]) / "test"
RUN = [*TINY, "--deterministic", "--quiet", *PRUNED]


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Runs a command in an empty folder and returns its lines on stdout."""
    monkeypatch.chdir(tmp_path)

    def run(*flags):
        run_program(*flags)
        return capsys.readouterr().out.splitlines()

    return run


def smaller_network(name="resnet20", rate=0.6):
    torch.manual_seed(0)
    network = models.build(name, classes=3)
    Pruner(network, rate=rate).update(rate)
    return Removal(network.eval()).compact()


def card(**changes):
    return models.Card(
        **{"arch": "resnet20", "classes": ["a", "b", "c"], "image_size": 16, "mean": [1.0] * 3, "std": [2.0] * 3}, **changes
    )


def line(lines, start):
    (single,) = (line for line in lines if line.startswith(f"result {start}"))
    return single


@pytest.mark.measures
def test_a_run_ends_with_a_smaller_network_in_a_file(call):
    out = call(*RUN, "--compact", "--out_dir", "run", "--export", "small.onnx", "small.pt2")
    assert "the same outputs" in line(out, "removal")
    assert "24 of 24 predictions the same" in line(out, "removal")
    network = models.load("run/model.pt")
    summary = json.loads(Path("run/summary.json").read_text())
    assert sum(parameter.numel() for parameter in network.parameters()) == summary["left"]["parameters"]
    assert line(out, "parameters") == "result parameters: {} of 272019 ({:.2f} %) left".format(
        summary["left"]["parameters"], 100 * summary["left"]["parameters"] / 272019
    )
    assert summary["file"]["bytes"] == Path("run/model.pt").stat().st_size < summary["file"]["dense_bytes"]
    assert [(row["engine"], row["batch"]) for row in summary["speed"]] == [
        *(("PyTorch", batch) for batch in (1, 128)),
        *(("onnxruntime", batch) for batch in (1, 128)),
    ]
    for measured in (row[which] for row in summary["speed"] for which in ("dense", "compact")):
        low, high = measured["middle_ms"]
        assert 0 < low <= measured["ms"] <= high
    assert "; the middle half of 1 rounds: " in "".join(out)
    assert network.card.classes == ["blue", "green", "red"]
    assert network.card.training["settings"]["prune_rate"] == 0.6
    assert [Path(exported["file"]).stat().st_size for exported in summary["exports"]] == [
        exported["bytes"] for exported in summary["exports"]
    ]
    # the file tests as the run did, in the run's precision, on the data set that it names itself
    accuracy = line(out, "test accuracy").split(": ")[1].split(" ")[0]
    precision = json.loads(Path("run/config.json").read_text())["settings"]["amp"]
    tested = line(call("--evaluate", "run/model.pt", "--quiet", "--amp", precision), "test accuracy")
    assert tested.startswith(f"result test accuracy: {accuracy}, ")


@pytest.mark.core
def test_an_ended_run_is_compacted_later_as_it_would_have_been_at_once(call):
    at_once = call(*RUN, "--compact", "--out_dir", "at_once")
    call(*RUN, "--out_dir", "later")
    later = call("--resume", "later", "--compact", "--quiet")
    assert line(later, "removal") == line(at_once, "removal")
    assert line(later, "parameters") == line(at_once, "parameters")
    one, other = models.load("at_once/model.pt"), models.load("later/model.pt")
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    # asked again, it is told again
    assert call("--resume", "later", "--quiet") == later


FINETUNE = ["--compact", "--finetune_epochs", "2", "--recalibrate", "5"]


def test_fine_tuning_goes_on_from_the_smaller_network_and_resumes_bit_for_bit(call, monkeypatch):
    whole = call(*RUN, *FINETUNE, "--out_dir", "whole")
    rows = [json.loads(row) for row in Path("whole/metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
    assert [row["learning_rate"] for row in rows[2:]] == pytest.approx([0.002, 0.0002])
    assert rows[3]["cut"] == rows[1]["cut"] == 470
    assert rows[3]["mask_changes"] == 0
    assert sum(one.startswith("sparsity") for one in whole) == 4
    assert "after 5 batches" in line(whole, "recalibration")

    for stops_after in (1, 2, 3):  # before removal, after it, and within fine-tuning
        folder = f"stopped{stops_after}"
        train_epoch = modeling.train_epoch

        def stop(run, epoch, bar, at=stops_after, train_epoch=train_epoch):
            if epoch == at:
                raise KeyboardInterrupt
            return train_epoch(run, epoch, bar)

        with monkeypatch.context() as patch:
            patch.setattr(modeling, "train_epoch", stop)
            with pytest.raises(KeyboardInterrupt):
                call(*RUN, *FINETUNE, "--out_dir", folder)
        resumed = call("--resume", folder, "--quiet")
        wanted = [one for one in whole if not one.startswith(("result seconds", "result latency", "result file"))]
        got = [one for one in resumed[-len(whole) :] if not one.startswith(("result seconds", "result latency", "result file"))]
        assert got == wanted
        one, other = models.load("whole/model.pt"), models.load(f"{folder}/model.pt")
        assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))

    for flags, words in (
        (["--epochs", "3"], "fine-tuning has begun with --epochs 2"),
        (["--finetune_lr", "0.1"], "fine-tuning has begun with --finetune_lr 0.002: go on from masked.pt"),
        (["--recalibrate", "2"], "fine-tuning has begun with --recalibrate 5"),
        (["--finetune_epochs", "1"], "2 epochs of fine-tuning are done already"),
    ):
        with pytest.raises(Refused, match=words):
            call("--resume", "whole", *flags, "--quiet")
    masked = Path("whole/masked.pt").read_bytes()
    with pytest.raises(modeling.Failed, match="smaller --finetune_lr"):
        call("--resume", "whole/masked.pt", "--finetune_lr", "1e30", "--quiet")
    assert Path("whole/masked.pt").read_bytes() == Path("whole/checkpoint.pt").read_bytes() == masked
    again = call("--resume", "whole/masked.pt", "--finetune_lr", "0.1", "--quiet")
    assert Path("whole/masked.pt").read_bytes() == masked
    assert [one for one in again if one.startswith("train")][:2] == [one for one in whole if one.startswith("train")][:2]
    assert json.loads(Path("whole/metrics.jsonl").read_text().splitlines()[2])["learning_rate"] == pytest.approx(0.1)
    longer = call("--resume", "whole", "--finetune_epochs", "3", "--quiet")
    assert sum(one.startswith("train") for one in longer) == 5


def test_a_budget_is_asked_for_and_told(call):
    out = call(*TINY, "--quiet", "--prune_type", "structured", "--target_macs", "0.4", "--compact", "--residual", "grouped")
    told = line(out, "budget")
    assert told.startswith("result budget: asked for 40.00 % of the MACs, got 39.")
    assert Path("result/resnet20-structured-macs0.4").is_dir()


def test_the_published_placement_is_not_called_exact_and_empty_layers_go_all_the_way(call):
    """The description taken literally empties whole layers; it is trained further, regularised, timed and exported."""
    flags = ["--recipe", "paper", "--lr", "0.01", "--compact", "--finetune_epochs", "1", "--val_size", "0", "--out_dir", "run"]
    out = call(*TINY, "--quiet", *flags, "--export", "m.onnx", "m.pt2", "--export_input", "normalised")
    assert line(out, "removal").startswith("result removal: NOT exact at --prune_gate weight: largest difference ")
    network = models.load("run/model.pt")
    assert any(unit.filters == 0 for unit in network.units.values())
    x = torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        wanted = network(x)
    onnx = torch.from_numpy(session("m.onnx").run(None, {"images": x.numpy()})[0])
    for got in (onnx, torch.export.load("m.pt2").module()(x)):
        assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_what_fails_after_training_takes_nothing_with_it(call, monkeypatch):
    def fails(*_):
        raise Failed("'m.pt2' cannot be made: for a test")

    with monkeypatch.context() as patch:
        patch.setattr(measure, "export", fails)
        with pytest.raises(Failed):
            call(*RUN, "--compact", "--out_dir", "run", "--export", "m.pt2")
    assert json.loads(Path("run/summary.json").read_text())["exports"] == []
    assert Path("run/model.pt").is_file()
    # asked again, it is tried again
    assert line(call("--resume", "run", "--quiet"), "export").startswith("result export: m.pt2, ")
    Path("run/summary.json").unlink()
    # and overwrites nothing
    assert line(call("--resume", "run", "--quiet"), "export").startswith("result export: m-2.pt2, ")


@pytest.mark.measures
def test_a_signal_while_measuring_ends_the_run_with_what_there_is(call, monkeypatch):
    class Asked(modeling.Stop):
        """A signal arrives once the smaller network is saved."""

        @property
        def signal(self):
            return modeling.signal.SIGTERM if Path("run/model.pt").exists() else None

        @signal.setter
        def signal(self, _):
            pass

    with monkeypatch.context() as patch:
        patch.setattr(modeling, "Stop", Asked)
        with pytest.raises(modeling.Stopped, match="SIGTERM while measuring; --resume does it again"):
            call(*RUN, "--compact", "--out_dir", "run")
    monkeypatch.setattr(measure, "find_spec", lambda _: None)  # without onnxruntime, which takes longest
    assert "speed" not in json.loads(Path("run/summary.json").read_text())
    assert any(one.startswith("result latency") for one in call("--resume", "run", "--quiet"))
    Path("run/model.pt").unlink()  # what is gone is made again
    call("--resume", "run", "--quiet")
    assert Path("run/model.pt").exists()


def test_outputs_that_are_no_numbers_are_not_called_the_same():
    task = modeling.start(parse(TINY)).task
    whole = models.build("resnet20", classes=3)
    torch.nn.init.constant_(whole.classifier.layer.weight, float("nan"))
    with pytest.raises(Failed, match="nan"):
        comparison.compare(whole, whole, task, exact=True)


def test_removal_that_changes_outputs_is_an_error_and_saves_nothing(call, monkeypatch):
    monkeypatch.setattr(comparison, "TOLERANCE", -1.0)
    with pytest.raises(Failed, match="no file was written"):
        call(*RUN, "--compact", "--out_dir", "run")
    assert not Path("run/model.pt").exists()


@pytest.mark.core
def test_a_dry_run_compacts_without_a_file(call, tmp_path):
    assert "the same outputs" in line(call(*RUN, "--compact", "--dry_run"), "removal")
    assert list(tmp_path.iterdir()) == []


def test_a_file_predicts_in_a_bare_process(tmp_path):
    """ResNet-56, pruned: rebuilt where importing pruning code is impossible."""
    network = smaller_network("resnet56")
    models.save(tmp_path / "model.pt", network, models.Card("resnet56", ["a", "b", "c"], 16, [9.0] * 3, [60.0] * 3))
    photograph = IMAGES / "red" / "0.png"
    code = (
        "import sys; sys.modules['pruning'] = None; from deploy.use import predict; "
        "print(*predict(sys.argv[1], sys.argv[2:]), sep='\\n'); import models; print(models.load(sys.argv[1]).card.arch)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model.pt"), str(photograph)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told, arch = done.stdout.splitlines()
    with Image.open(photograph) as image:
        pixels = torch.from_numpy(np.array(image)).float().permute(2, 0, 1)[None]
    with torch.inference_mode():
        wanted = network((pixels - 9) / 60)[0].softmax(0)
    first = wanted.argmax().item()
    assert told.startswith(f"{photograph}: {'abc'[first]} {wanted[first]:.4f}, ")
    assert told.count(",") == 2
    assert arch == "resnet56"


def test_the_program_predicts_and_names_what_it_cannot_read(tmp_path):
    models.save(tmp_path / "model.pt", smaller_network(), card())
    (tmp_path / "broken.png").write_bytes(b"no image")
    images = [str(IMAGES / "red" / "0.png"), str(IMAGES / "blue" / "1.png")]
    program = partial(programs.command, cwd=tmp_path)
    done = program("--predict", "model.pt", *images)
    assert (done.returncode, done.stderr) == (0, "")
    assert [one.split(": ")[0] for one in done.stdout.splitlines()] == images
    shares = [float(word.rstrip(",")) for word in done.stdout.splitlines()[0].split(": ")[1].split(" ")[1::2]]
    assert sum(shares) == pytest.approx(1, abs=2e-4)
    one_bad = program("--predict", "model.pt", "broken.png", *images)
    assert (one_bad.returncode, one_bad.stdout) == (1, done.stdout)  # the others are predicted
    unreadable, error = one_bad.stderr.splitlines()
    assert "broken.png" in unreadable
    assert error == "modeling.py: error: 1 of 3 images could not be read"
    shutil.copytree(IMAGES / "red", tmp_path / "pictures")
    (tmp_path / "pictures" / "notes.txt").touch()
    (tmp_path / "pictures" / "._0.png").touch()
    folder = program("--predict", "model.pt", "pictures")
    assert (folder.returncode, folder.stderr) == (0, "")
    assert [line.split(": ")[0] for line in folder.stdout.splitlines()] == [f"pictures/{number}.png" for number in range(8)]
    (tmp_path / "empty").mkdir()
    empty = program("--predict", "model.pt", "empty")
    assert (empty.returncode, empty.stderr) == (2, "modeling.py: error: --predict: no image in 'empty'\n")
    foreign = program("--evaluate", "broken.png")
    assert (foreign.returncode, foreign.stdout) == (2, "")
    assert foreign.stderr == "modeling.py: error: 'broken.png' is truncated or no model file\n"


def test_a_file_has_one_accuracy_in_float32_unless_asked(call):
    """Whatever precision the machine trains with: the loss is that of --predict's probabilities."""
    models.save("model.pt", smaller_network(), models.Card("resnet20", ["blue", "green", "red"], 16, [127.0] * 3, [60.0] * 3))
    plain = line(call("--evaluate", "model.pt", *TINY_DATA[:4], "--quiet"), "test accuracy")
    assert plain == line(call("--evaluate", "model.pt", *TINY_DATA[:4], "--quiet", "--amp", "off"), "test accuracy")
    assert plain.endswith("(24 images), float32")
    coarse = line(call("--evaluate", "model.pt", *TINY_DATA[:4], "--quiet", "--amp", "bfloat16"), "test accuracy")
    assert coarse.endswith("(24 images), bfloat16")
    losses = []
    for number, name in enumerate(("blue", "green", "red")):
        for told in use.predict("model.pt", [str(IMAGES / name)]):
            words = dict(word.split(" ") for word in told.split(": ")[1].split(", "))
            losses.append(-np.log(float(words[("blue", "green", "red")[number]])))
    assert float(plain.split("loss ")[1].split(" ")[0]) == pytest.approx(np.mean(losses), abs=1e-3)


def test_a_file_is_tested_on_another_data_set_by_class_names(call, monkeypatch):
    network = smaller_network()
    models.save("model.pt", network, models.Card("resnet20", ["red", "green", "blue"], 16, [127.0] * 3, [60.0] * 3))
    out = call("--evaluate", "model.pt", *TINY_DATA[:4], "--quiet")
    right = 0
    for number, name in enumerate(("red", "green", "blue")):
        for path in (IMAGES / name).iterdir():
            pixels = torch.from_numpy(np.array(Image.open(path))).float().permute(2, 0, 1)[None]
            with torch.no_grad():
                right += int(network((pixels - 127) / 60).argmax()) == number
    assert line(out, "test accuracy").startswith(f"result test accuracy: {100 * right / 24:.2f}, loss ")
    models.save("other.pt", network, card())
    with pytest.raises(Refused, match=r"knows no class blue, green, red: it has a, b, c$"):
        call("--evaluate", "other.pt", *TINY_DATA[:4])
    monkeypatch.setattr("tasks.load_test", lambda *_, **__: SimpleNamespace(classes=["cat"], as_known_to=lambda _: None))
    with pytest.raises(Refused, match=r"it has a, b, c \(--dataset cifar10 is a guess: 'other.pt' does not say it\)"):
        call("--evaluate", "other.pt")


class TestFiles:
    """model.pt."""

    @pytest.mark.parametrize("name", ["resnet20", "resnet20(shortcut='pad')", "vgg16", "resnet18"])
    @pytest.mark.parametrize("rate", [0.0, 0.6, 0.95])
    def test_round_trip(self, name, rate, tmp_path):
        network = smaller_network(name, rate)
        models.save(tmp_path / "m.pt", network, models.Card(name, ["a", "b", "c"], 32, [1.0] * 3, [2.0] * 3, {"epochs": 3}))
        random = torch.get_rng_state()
        again = models.load(tmp_path / "m.pt")
        assert torch.equal(random, torch.get_rng_state())
        x = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            assert torch.equal(again(x), network(x))
        assert again.shapes() == network.shapes()
        assert again.card == models.Card(name, ["a", "b", "c"], 32, [1.0] * 3, [2.0] * 3, {"epochs": 3})
        assert not again.training

    @pytest.mark.core
    def test_the_constants_of_the_published_placement_are_kept(self, tmp_path):
        torch.manual_seed(0)
        network = models.build("resnet20", classes=3).eval()
        for unit in network.units.values():
            torch.nn.init.uniform_(unit.norm.bias, -0.5, 0.5)
        Pruner(network, rate=0.5, gate="weight").update(0.5)
        smaller, x = Removal(network).compact(), torch.randn(2, 3, 16, 16)
        assert any(joint.constant is not None for joint in smaller.joints.values())
        models.save(tmp_path / "m.pt", smaller, card())
        with torch.no_grad():
            assert torch.equal(models.load(tmp_path / "m.pt")(x), smaller(x))

    def test_folded_copies_are_not_saved(self, tmp_path):
        with pytest.raises(ValueError, match="write the network that it came from"):
            models.save(tmp_path / "m.pt", folded(smaller_network()), card())

    def test_masks_are_not_saved(self, tmp_path):
        network = models.build("resnet20", classes=3)
        network.stem.gate = OutputGate(16)
        with pytest.raises(ValueError, match="remove the filters first"):
            models.save(tmp_path / "m.pt", network, card())

    @pytest.mark.core
    def test_what_is_no_model_file_is_refused(self, tmp_path):
        path = tmp_path / "m.pt"
        models.save(path, smaller_network(), card())
        state = torch.load(path, weights_only=True)
        for change, message in (
            ({"format": 99}, "format 99, newer"),
            ({"arch": "resnet21"}, "unknown network"),
            ({"arch": "vgg16"}, r"shapes\.units has no"),
            ({"classes": ["a"]}, r"shapes\.units\.classifier is 3"),
            ({"classes": ["a", "b", "c", "d"]}, "another number of classes than of outputs"),
            ({"shapes": {"units": {}, "joints": {}}}, r"shapes\.units is a table of 0"),
            ({"mean": None}, "mean is None, not a list"),
            ({"std": [1.0, 0.0, 1.0]}, r"std\[1\] is 0\.0, not a finite number above 0"),
            ({"std": [1.0]}, "mean and std are of different channels"),
            ({"training": None}, "training is None"),
            ({"training": {"settings": None}}, r"training\.settings is None"),
            ({"classes": "abc"}, "classes is 'abc', not a list"),
            ({"image_size": "x"}, "image_size is 'x', not what --image_size can be"),
            ({"image_size": 20_000}, "image_size is 20000"),
            ({"tensors": state["tensors"] | {"more": torch.ones(1)}}, "more is of another network"),
        ):
            torch.save({**state, **change}, path)
            with pytest.raises(Refused, match=message):
                models.load(path)
        torch.save({"format": 1, "rows": []}, path)
        with pytest.raises(Refused, match="no model file of this program"):
            models.load(path)
        with pytest.raises(Refused, match="no model file at"):
            models.load(tmp_path / "gone.pt")


class TestExport:
    """.onnx and .pt2."""

    @pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
    @pytest.mark.parametrize(("name", "rate"), [("resnet20(shortcut='pad')", 0.6), ("vgg16", 0.9)])
    def test_the_file_gives_what_the_network_gives(self, suffix, name, rate, tmp_path):
        network, path = smaller_network(name, rate), tmp_path / f"m{suffix}"
        images = torch.randn(4, 3, 32, 32)
        exported = export.export(network, str(path), images)
        assert exported["difference"] <= 1e-5
        assert exported["bytes"] == path.stat().st_size
        for batch in (1, 7):  # any number of images
            x = torch.randn(batch, 3, 32, 32)
            with torch.no_grad():
                wanted = network(x)
            if suffix == ".onnx":
                got = torch.from_numpy(session(path).run(None, {"images": x.numpy()})[0])
            else:
                got = torch.export.load(str(path)).module()(x)
            assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()

    def test_a_file_that_differs_is_not_kept(self, tmp_path, monkeypatch):
        monkeypatch.setattr(export, "LARGEST_DIFFERENCE", -1.0)
        with pytest.raises(Failed, match="would not be the same network"):
            export.export(smaller_network(), str(tmp_path / "m.pt2"), torch.randn(2, 3, 32, 32))
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
    def test_a_file_takes_pictures_as_bytes_and_normalises_them_itself(self, suffix, tmp_path):
        network, path = smaller_network(), tmp_path / f"m{suffix}"
        facts = card(training={"began_in": "/somewhere"}, fit="pad")
        pixels = torch.randint(0, 256, (5, 16, 16, 3), dtype=torch.uint8)
        exported = export.export(network, str(path), pixels, facts)
        assert exported["form"].startswith("takes bytes (n, 16, 16, 3)")
        with torch.no_grad():
            wanted = network(((pixels.float() - 1) / 2).permute(0, 3, 1, 2))
        for part in (slice(0, 1), slice(0, 5)):
            got = run(path, pixels[part])
            assert (got - wanted[part]).abs().max() <= 1e-5 * wanted.abs().max()
        if suffix == ".onnx":  # what is no byte is refused, not misread
            with pytest.raises(Exception, match="float"):
                run(path, pixels.float() / 255)
        about = told(path)
        assert about["classes"] == ["a", "b", "c"]
        assert (about["image_size"], about["fit"]) == (16, "pad")
        assert about["normalisation"] == {"inside": True, "mean": [1.0] * 3, "std": [2.0] * 3, "of": "bytes"}
        assert about["input"] == {"type": "uint8", "shape": ["n", 16, 16, 3], "channels": ["R", "G", "B"]}
        export.export(network, str(tmp_path / f"n{suffix}"), torch.randn(2, 3, 16, 16), facts)
        about = told(tmp_path / f"n{suffix}")
        assert about["normalisation"]["inside"] is False
        assert about["input"] == {"type": "float32", "shape": ["n", 3, 16, 16], "channels": ["R", "G", "B"]}

    @pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
    @pytest.mark.parametrize("images", [1, 2])
    def test_nothing_of_this_machine_or_of_the_pictures_is_in_a_file(self, suffix, images, tmp_path):
        """Not even with a single test image, by which the file is checked but not shaped."""
        path = tmp_path / f"m{suffix}"
        pixels = torch.full((images, 16, 16, 3), 173, dtype=torch.uint8)
        export.export(smaller_network(), str(path), pixels, card())
        assert run(path, torch.zeros(7, 16, 16, 3, dtype=torch.uint8)).shape == (7, 3)
        contents = {"whole": path.read_bytes()}
        if suffix == ".pt2":
            with zipfile.ZipFile(path) as archive:
                contents |= {name: archive.read(name) for name in archive.namelist()}
        for name, content in contents.items():
            for word in (
                str(ROOT),
                sys.prefix,
                Path(torch.__file__).parent,
                tmp_path,
                Path.home(),
                "stack_trace",
                ".py",
                "return ",
            ):
                assert str(word).encode() not in content, (name, word)
            assert pixels[0, :2].numpy().tobytes() not in content

    def test_an_onnx_file_is_for_old_runtimes_too(self, tmp_path):
        import onnx

        path = tmp_path / "m.onnx"
        export.export(smaller_network(), str(path), torch.zeros(2, 16, 16, 3, dtype=torch.uint8), card())
        model = onnx.load(path)
        assert model.ir_version == 8
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
        assert len(model.functions) == 0

    @pytest.mark.parametrize(("gains", "filled"), [((1.2, 1.3), True), ((1.2, 1.05), False), ((0.9, 2.0), False)])
    def test_zeros_are_written_only_where_they_are_measured_to_pay(self, gains, filled, tmp_path, monkeypatch):
        import onnx

        rows = [{"plain": {"ms": gain}, "filled": {"ms": 1.0}} for gain in gains]
        monkeypatch.setattr(onnx_form, "timed", lambda *_: rows)
        path, network = tmp_path / "m.onnx", smaller_network("resnet20", 0.4)
        exported = export.export(network, str(path), torch.randn(2, 3, 16, 16), card())
        words = f"{gains[0]:.2f} and {gains[1]:.2f} times as fast, batches of 1 and 16"
        assert exported["form"].endswith(words)
        assert ("no channels of zeros" in exported["form"]) is not filled
        weights = [onnx.numpy_helper.to_array(value) for value in onnx.load(path).graph.initializer]
        zeros = sum(int((weight == 0).sum()) for weight in weights if weight.ndim == 4)
        indexed = sum(rows.numel() for rows in zeros_of(folded(network, 1)))
        assert (zeros > indexed) is filled
        assert zeros >= indexed

    def test_forms_are_measured_in_turns(self, tmp_path):
        network = smaller_network("resnet20", 0.4)
        form, words = onnx_form.chosen_form(network, (16, 16))
        assert "times as fast, batches of 1 and 16" in words
        assert form.widths() in (folded(network, 1).widths(), folded(network, 16).widths())
        whole = models.build("resnet20", classes=3).eval()
        assert onnx_form.chosen_form(whole, (16, 16))[1] == "all channels are in blocks of 16"
        assert "more than double the work" in onnx_form.chosen_form(smaller_network("resnet20", 0.9), (16, 16))[1]

    @pytest.mark.parametrize("taken", ["bytes", "normalised"])
    def test_a_saved_network_is_exported_later(self, taken, call):
        models.save("model.pt", smaller_network(), models.Card("resnet20", ["blue", "green", "red"], 16, [127.0] * 3, [60.0] * 3))
        out = call("--evaluate", "model.pt", *TINY_DATA[:4], "--quiet", "--export", "m.pt2", "--export_input", taken)
        words = {"bytes": "takes bytes (n, 16, 16, 3)", "normalised": "takes normalised floats (n, 3, 16, 16)"}[taken]
        assert line(out, "export").startswith("result export: m.pt2, ")
        assert line(out, "export").endswith(words)
        assert told(Path("m.pt2"))["classes"] == ["blue", "green", "red"]


def zeros_of(form):
    """The weights that are zero in each layer of a folded network."""
    return [unit.layer.weight[unit.layer.weight == 0] for unit in form.all_units.values() if unit.layer.weight.dim() == 4]


def run(path, images):
    """What a file makes of images."""
    if path.suffix == ".onnx":
        return torch.from_numpy(session(path).run(None, {"images": images.numpy()})[0])
    return torch.export.load(str(path)).module()(images)


def told(path):
    """What a file says of its network."""
    if path.suffix == ".onnx":
        return {name: json.loads(value) for name, value in session(path).get_modelmeta().custom_metadata_map.items()}
    extra = {FACTS: ""}
    torch.export.load(str(path), extra_files=extra)
    return json.loads(extra[FACTS])


def test_latencies_are_medians_of_turns(monkeypatch):
    """Warm-up of two rounds, then five that take 50, 10, 30, 20 and 40 s, or twice as long."""
    monkeypatch.setattr(latency, "MOST", 5)
    monkeypatch.setattr(latency, "WARM_UP", 2)
    now, turns = [0.0], []
    monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])

    def work(name, factor):
        seconds = [1000, 1000, 50, 10, 30, 20, 40][len(turns) // 2]
        turns.append(name)
        now[0] += factor * seconds

    took = latency.alternate({"a": lambda: work("a", 1), "b": lambda: work("b", 2)})
    assert turns == ["a", "b"] * 7
    assert took == {"a": 30.0, "b": 60.0}


def test_the_middle_half_of_the_rounds_is_kept():
    assert latency.summed_up([0.05, 0.01, 0.03, 0.02, 0.04]) == {"ms": 30.0, "middle_ms": [20.0, 40.0], "rounds": 5}
    assert latency.summed_up([0.5]) == {"ms": 500.0, "middle_ms": [500.0, 500.0], "rounds": 1}


def test_peak_memory_counts_what_is_alive_at_once():
    """A weight of 4 x 3 and 2 images of 3 channels of 4 x 4: the output is 2 x 4 x 4 x 4, and the ReLU is in place."""
    unit = models.Unit(torch.nn.Conv2d(3, 4, 1, bias=False), norm=False)
    x = torch.randn(2, 3, 4, 4)
    with torch.inference_mode():
        assert latency.peak_memory(unit, x) == 4 * (4 * 3 + 2 * 3 * 16 + 2 * 4 * 16)


def test_recalibration_measures_the_batches_alone():
    torch.manual_seed(0)
    network = models.build("resnet20", classes=3)
    for unit in network.units.values():
        torch.nn.init.constant_(unit.norm.running_mean, 7.0)
    batches = [(torch.randn(8, 3, 16, 16) * scale, None) for scale in (1, 3)]
    recalibrate_statistics(network, batches, torch.no_grad)
    with torch.no_grad():
        products = [network.stem.multiply(x, network.stem.weight) for x, _ in batches]
    wanted = sum(product.mean((0, 2, 3)) for product in products) / 2
    assert torch.allclose(network.stem.norm.running_mean, wanted, atol=1e-5)
    assert torch.allclose(network.stem.norm.running_var, sum(p.var((0, 2, 3)) for p in products) / 2, rtol=1e-4)
    assert network.stem.norm.momentum == 0.1
