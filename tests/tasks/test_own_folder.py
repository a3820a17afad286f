"""These tests say that a folder of pictures is the data set that its owner thinks it is."""

import hashlib
import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_DATA, run_program
from PIL import Image

import models
import tasks
from settings.arguments import parse
from settings.errors import Refused
from tasks.classification import Classification
from tasks.datasets.digits import Digits
from tasks.images import hold_out

FLAGS = [*TINY[len(TINY_DATA) :], "--device", "cpu", "--image_size", "16", "--dataset", "folder", "--quiet"]
LOUD = FLAGS[:-1]
PRUNED = ["--prune_type", "structured", "--prune_rate", "0.3"]


def picture(path: Path, value: int) -> None:
    """Write a picture that no other value gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(value).randint(0, 256, (16, 16, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)


def photos(root: Path, classes=("cat", "dog"), train=6, test=3, suffix="png") -> Path:
    for part, number in (("train", train), ("test", test)):
        for label, name in enumerate(classes):
            for image in range(number):
                picture(root / part / name / f"{image}.{suffix}", 1000 * label + image + (500 if part == "test" else 0))
    return root


def load(root, **options):
    data = parse(["--dataset", "folder"]).replace(data_dir=str(root), image_size=16, **{"val_size": 0.0, **options}).data
    return tasks.load(data, batch_size=8, seed=0, device="cpu")


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Runs a command in an empty folder; returns its lines on stdout and on stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*flags):
        capsys.readouterr()
        run_program(*flags)
        streams = capsys.readouterr()
        return streams.out.splitlines(), streams.err.splitlines()

    return run


class TestFiles:
    """Which files count."""

    def test_hidden_files_and_folders_are_skipped_at_every_depth(self, tmp_path):
        root = photos(tmp_path)
        for number in range(6):
            picture(root / "train" / "cat" / ".ipynb_checkpoints" / f"{number}-checkpoint.png", number)
            picture(root / "train" / "cat" / "tabby" / ".thumbs" / f"{number}.png", number)
            picture(root / "__MACOSX" / "cat" / f"{number}.png", number)
            (root / "train" / "dog" / f"._{number}.png").write_bytes(b"of a Mac")
        (root / "train" / "__MACOSX").mkdir()
        task = load(root)
        assert len(task.train) == 12
        assert task.classes == ["cat", "dog"]
        assert task.notes == []

    def test_links_lead_neither_upwards_nor_to_what_is_read_elsewhere(self, tmp_path):
        root = photos(tmp_path / "photos")
        cat, elsewhere = root / "train" / "cat", tmp_path / "elsewhere"
        for number, target in enumerate((cat, cat.parent, root, tmp_path, root / "train" / "dog", root / "test" / "cat")):
            (cat / f"link{number}").symlink_to(target, target_is_directory=True)
        (cat / "copy.png").symlink_to(cat / "0.png")
        picture(elsewhere / "a.png", 77)
        (cat / "more").symlink_to(elsewhere, target_is_directory=True)
        (cat / "again").symlink_to(elsewhere, target_is_directory=True)
        (cat / "z.png").symlink_to(elsewhere / "a.png")
        task = load(root)
        assert torch.bincount(task.train.labels).tolist() == [7, 6]
        assert len(task.train.pixels.flatten(1).unique(dim=0)) == 13
        assert task.notes == [
            f"'{root / 'train'}': folders in class folders are of the same class: cat/again (1)",
            f"'{root / 'train'}': passed over 9 links to what is read elsewhere",
        ]

    @pytest.mark.parametrize("place", ["train/dog", "test/cat"])
    @pytest.mark.parametrize("target", ["0.png", "tabby"])
    def test_no_link_leads_into_another_class_or_part(self, place, target, tmp_path):
        """Neither to a picture there nor to a folder: it would have two labels, or be trained on and tested."""
        root = photos(tmp_path)
        picture(root / "train" / "cat" / "tabby" / "0.png", 7)
        picture(root / "train" / ".store" / "0.png", 8)
        (root / place / f"link{Path(target).suffix}").symlink_to(root / "train" / "cat" / target)
        (root / place / "stored.png").symlink_to(root / "train" / ".store" / "0.png")  # of no class
        task = load(root)
        counts = torch.bincount(task.train.labels).tolist(), torch.bincount(task.test.labels).tolist()
        assert counts == (([7, 7], [3, 3]) if place == "train/dog" else ([7, 6], [4, 3]))
        assert any(note.endswith("passed over 1 links to what is read elsewhere") for note in task.notes)

    def test_two_classes_are_two_folders(self, tmp_path):
        root = photos(tmp_path)
        for part in ("train", "test"):
            (root / part / "twin").symlink_to("dog", target_is_directory=True)
        with pytest.raises(Refused, match="dog and twin are one folder"):
            load(root)

    def test_a_folder_that_cannot_be_read_is_not_an_empty_one(self, tmp_path):
        """Here one whose path is longer than the system takes, which stops the superuser, too."""
        root = photos(tmp_path)
        place = os.open(root / "train" / "cat", os.O_RDONLY)
        for _ in range(20):
            os.mkdir("d" * 250, dir_fd=place)
            above, place = place, os.open("d" * 250, os.O_RDONLY, dir_fd=place)
            os.close(above)
        os.close(place)
        with pytest.raises(Refused, match=r"cannot read '.*': File name too long"):
            load(root)

    def test_a_class_folder_may_be_a_link(self, tmp_path):
        root = photos(tmp_path / "photos")
        (root / "train" / "dog").rename(tmp_path / "dogs")
        (root / "train" / "dog").symlink_to(tmp_path / "dogs", target_is_directory=True)
        assert torch.bincount(load(root).train.labels).tolist() == [6, 6]

    def test_every_type_that_pillow_reads_counts_and_others_are_told(self, tmp_path):
        root = photos(tmp_path)
        kinds = ("gif", "jfif", "avif", "JPG", "tga", "webp")
        for number, suffix in enumerate(kinds):
            path = root / "train" / "dog" / f"x.{suffix}"
            picture(path, number)
        for name in ("a.txt", "b.txt", "c.mp4", "LICENSE"):
            (root / "train" / "cat" / name).write_text("no picture")
        picture(root / "train" / "loose.png", 5)
        task = load(root)
        assert torch.bincount(task.train.labels).tolist() == [6, 6 + len(kinds)]
        part = root / "train"
        assert task.notes == [
            f"'{part}': passed over 2 .txt, 1 .mp4, 1 without suffix, which are no pictures that can be read",
            f"'{part}': passed over 1 .png that lie in no class folder",
        ]
        for path in (root / "test" / "cat").iterdir():
            path.rename(path.with_suffix(".heic"))
        with pytest.raises(Refused, match=r"no pictures of cat; passed over: 3 \.heic"):
            load(root)

    def test_folders_in_class_folders_are_named(self, tmp_path):
        root = photos(tmp_path)
        for number in range(4):
            picture(root / "train" / "dog" / "poodle" / "white" / f"{number}.png", number)
        task = load(root)
        assert torch.bincount(task.train.labels).tolist() == [6, 10]
        assert task.notes == [f"'{root / 'train'}': folders in class folders are of the same class: dog/poodle (4)"]

    def test_the_order_is_that_of_torchvision(self, tmp_path):
        from torchvision.datasets import ImageFolder

        root = photos(tmp_path, classes=("b", "B", "a_b", "a"))
        picture(root / "train" / "a" / "sub" / "0.png", 1)
        picture(root / "train" / "a" / "sub-1" / "0.png", 2)
        wanted = ImageFolder(str(root / "train"))
        task = load(root)
        assert task.classes == wanted.classes
        assert [np.asarray(image).tolist() for image, _ in wanted] == task.train.pixels.tolist()
        assert task.train.labels.tolist() == wanted.targets

    def test_names_are_compared_in_one_form_of_unicode(self, tmp_path):
        names = [unicodedata.normalize(form, "Café") for form in ("NFC", "NFD")]
        assert names[0] != names[1]
        root = photos(tmp_path / "a", classes=(names[0], "bar"))
        (root / "test" / names[0]).rename(root / "test" / names[1])
        picture(root / "train" / names[1] / "x.png", 9)
        task = load(root)
        assert task.classes == [names[0], "bar"]
        assert torch.bincount(task.train.labels).tolist() == [7, 6]
        card = models.Card("resnet20", ["bar", names[1]], 16, [1.0] * 3, [2.0] * 3)
        assert task.as_known_to(card).labels.tolist() == [1] * 3 + [0] * 3


class TestParts:
    """Which pictures train, choose and test."""

    def test_the_held_out_images_of_today_stay(self):
        held = hold_out(Digits().read()[0].labels, 0.1)[1]
        wanted = "87d7b2ca425143ad7ddc269e453ee451496bca66f71b13bc297730dd4bcdcd67"
        assert hashlib.sha256(held.numpy().tobytes()).hexdigest() == wanted
        for sizes in ([5000] * 10, [500] * 100, [141, 150, 138]):
            labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
            shuffle = np.random.RandomState(0)
            held = [shuffle.permutation(np.flatnonzero(labels == k))[: round(0.1 * n)] for k, n in enumerate(sizes)]
            assert hold_out(labels, 0.1)[1].tolist() == sorted(np.concatenate(held).tolist())

    def test_small_classes_hold_out_what_is_still_due(self):
        labels = torch.tensor([0] * 400 + [1] * 4)
        kept, held = hold_out(labels, 0.1)
        assert torch.bincount(labels[held]).tolist() == [40, 1]
        assert torch.equal(torch.cat([kept, held]).sort().values, torch.arange(404))
        pairs = torch.arange(300).repeat(2)
        held = pairs[hold_out(pairs, 0.1)[1]]
        assert len(held) == len(held.unique()) == 60
        assert held.min() < 30 < 270 < held.max()  # from all over the alphabet
        alone = torch.tensor([0, 1, 1, 1])
        assert 0 not in alone[hold_out(alone, 0.9)[1]]  # what has one image trains with it

    def test_a_class_without_a_held_out_image_is_named(self, tmp_path):
        root = photos(tmp_path, train=30)
        for path in sorted((root / "train" / "dog").iterdir())[1:]:
            path.unlink()
        assert load(root, val_size=0.1).notes == ["1 of 2 classes have no held-out image: dog"]
        assert load(root).notes == []

    @pytest.mark.parametrize("name", ["validation", "val"])
    def test_a_folder_of_held_out_images_is_used(self, name, tmp_path):
        root = photos(tmp_path)
        for number in range(2):
            picture(root / name / "dog" / f"{number}.png", 40 + number)
        task = load(root, val_size=0.1)
        assert len(task.train) == 12
        assert task.valid.labels.tolist() == [1, 1]
        assert task.notes == [
            f"the held-out images are those of '{root / name}'; --val_size has no effect",
            "1 of 2 classes have no held-out image: cat",
        ]
        assert load(root).valid is None  # --val_size 0
        picture(root / name / "cow" / "0.png", 1)
        with pytest.raises(Refused, match="no such classes in training: cow"):
            load(root, val_size=0.1)
        (root / "val").mkdir(exist_ok=True)
        (root / "validation").mkdir(exist_ok=True)
        with pytest.raises(Refused, match="both hold held-out images"):
            load(root, val_size=0.1)

    @pytest.mark.parametrize("inside", ["", "train"])
    def test_a_folder_without_a_test_part_is_split(self, inside, tmp_path):
        for label, name in enumerate(("cat", "dog")):
            for number in range(10):
                picture(tmp_path / inside / name / f"{number}.png", 100 * label + number)
        with pytest.raises(Refused, match=r"no folder .*--test_size 0\.2"):
            load(tmp_path)
        first, second = load(tmp_path, test_size=0.2), load(tmp_path, test_size=0.2, val_size=0.25)
        assert torch.equal(first.test.pixels, second.test.pixels)
        assert torch.bincount(first.test.labels).tolist() == [2, 2]
        assert [len(second.train), len(second.valid)] == [12, 4]
        every = torch.cat([second.train.pixels, second.valid.pixels, second.test.pixels])
        assert len(every.flatten(1).unique(dim=0)) == 20
        (tmp_path / "test").mkdir()
        with pytest.raises(Refused, match=r"there is a test part already|no folder"):
            load(tmp_path, test_size=0.2)

    def test_a_test_part_can_be_made_for_folders_only(self):
        with pytest.raises(Refused, match="--test_size has no effect on cifar10: it is for --dataset folder"):
            parse(["--test_size", "0.2"])

    def test_evaluation_needs_the_test_part_alone(self, call):
        photos(Path("photos"))
        call(*FLAGS, "--data_dir", "photos", *PRUNED, "--compact", "--out_dir", "run")
        whole, _ = call("--evaluate", "run/model.pt", "--quiet")
        (Path("photos") / "train").rename("gone")
        assert call("--evaluate", "run/model.pt", "--quiet")[0] == whole

    def test_a_split_is_that_of_the_run_when_its_file_is_tested(self, call):
        for label, name in enumerate(("cat", "dog")):
            for number in range(10):
                picture(Path("pool", name, f"{number}.png"), 100 * label + number)
        out, _ = call(*FLAGS, "--data_dir", "pool", "--test_size", "0.2", *PRUNED, "--compact", "--out_dir", "run")
        accuracy = next(line for line in out if line.startswith("result test accuracy")).split()[3]
        tested, _ = call("--evaluate", "run/model.pt", "--quiet")
        assert tested[0].startswith(f"result test accuracy: {accuracy}, ")
        assert tested[0].endswith("(4 images), float32")


class TestPlaces:
    """Where the data are."""

    def test_a_relative_folder_is_looked_up_where_the_run_was(self, call, tmp_path, monkeypatch):
        (tmp_path / "home").mkdir()
        (tmp_path / "away").mkdir()
        photos(tmp_path / "home" / "photos")
        monkeypatch.chdir(tmp_path / "home")
        run = [*FLAGS, "--data_dir", "photos", *PRUNED]
        call(*run, "--compact", "--out_dir", "compacted")
        call(*run, "--out_dir", "plain")
        wanted, _ = call("--evaluate", "compacted/model.pt", "--quiet")
        record = json.loads(Path("plain/config.json").read_text())
        assert str(tmp_path) not in json.dumps({name: record[name] for name in ("settings", "began_in", "data")})
        monkeypatch.chdir(tmp_path / "away")
        assert call("--evaluate", "../home/compacted/model.pt", "--quiet")[0] == wanted
        call("--resume", "../home/plain", "--epochs", "3", "--quiet")
        (tmp_path / "home").rename(tmp_path / "moved")  # together
        assert call("--evaluate", "../moved/compacted/model.pt", "--quiet")[0] == wanted
        (tmp_path / "moved" / "photos").rename(tmp_path / "hidden")
        with pytest.raises(Refused, match=r"no folder 'photos/test'.*'\.\./moved/compacted/model\.pt' remembers 'photos'"):
            call("--evaluate", "../moved/compacted/model.pt")

    def test_cifar_is_found_one_folder_off(self, tmp_path):
        from tasks.downloads import archive_folder

        archive = "cifar-10-batches-py"
        (tmp_path / "data" / "cifar10" / archive).mkdir(parents=True)
        wanted = tmp_path / "data" / "cifar10"
        for named in (wanted, wanted / archive, tmp_path / "data"):
            assert archive_folder(named, archive) == wanted
        for named in (tmp_path, tmp_path / "nowhere"):
            assert archive_folder(named, archive) == named


class TestRecord:
    """What a run says of its data."""

    @pytest.fixture
    def run(self, call):
        photos(Path("photos"))
        call(*LOUD, "--data_dir", "photos", *PRUNED, "--out_dir", "run")
        return call

    def test_it_holds_names_counts_and_normalisation(self, run):
        record = json.loads(Path("run/config.json").read_text())["data"]
        task = load("photos", val_size=0.1)
        assert record == task.record() == torch.load("run/checkpoint.pt", weights_only=True)["data"]
        assert record["classes"] == ["cat", "dog"]
        assert record["images"] == {"train": [5, 5], "held_out": [1, 1], "test": [3, 3]}
        pixels = task.train.pixels.double()
        torch.testing.assert_close(torch.tensor(record["mean"]).double(), pixels.mean((0, 1, 2)), rtol=1e-6, atol=0)

    @pytest.mark.parametrize("name", ["cow", "ant"])
    def test_other_names_are_refused(self, name, run):
        """ant would come first, so that every class had another number."""
        for part in ("train", "test"):
            Path("photos", part, "dog").rename(Path("photos", part, name))
        with pytest.raises(Refused, match="the classes are not those of the run") as caught:
            run("--resume", "run", "--compact")
        assert name in str(caught.value)
        assert not Path("run/model.pt").exists()

    def test_other_counts_are_said_and_the_first_normalisation_stays(self, run):
        card = load("photos", val_size=0.1).record()
        for number in range(5):
            picture(Path("photos/train/cat", f"new{number}.png"), 900 + number)
        Path("photos/test/dog/0.png").unlink()
        _, errors = run("--resume", "run", "--compact")
        assert "other data than when the run began: 15 train images, were 10" in errors
        assert "other data than when the run began: 5 test images, were 6" in errors
        network = models.load("run/model.pt")
        assert network.card.mean == card["mean"]
        assert network.card.std == card["std"]

    def test_weights_of_other_classes_are_said(self, run):
        for part in ("train", "test"):
            Path("photos", part, "dog").rename(Path("photos", part, "cow"))
        run(*FLAGS, "--data_dir", "photos", "--out_dir", "dense")
        for part in ("train", "test"):
            Path("photos", part, "cow").rename(Path("photos", part, "dog"))
        _, errors = run(*LOUD, "--data_dir", "photos", "--init", "dense", "--out_dir", "begun")
        assert "'dense' was trained on other classes (cat, cow) than these (cat, dog)" in errors

    def test_a_run_that_is_older_than_records_goes_on(self, run):
        state = torch.load("run/checkpoint.pt", weights_only=True)
        del state["data"]
        torch.save(state, "run/checkpoint.pt")
        os.remove("run/summary.json")
        out, _ = run("--resume", "run", "--quiet")
        assert any(line.startswith("result test accuracy") for line in out)


class TestByClass:
    """Accuracy of each class."""

    def test_the_worst_class_comes_first(self):
        meter = Classification.meter("cpu", ["a", "b", "c", "unseen"])
        said, true = [0, 0, 1, 1, 2, 0, 0, 0], [0, 0, 1, 2, 2, 2, 2, 2]
        logits = torch.nn.functional.one_hot(torch.tensor(said), 4).float()
        for part in (slice(0, 3), slice(3, 8)):
            meter.add(logits[part], torch.tensor(true)[part], {"cross_entropy": torch.tensor(1.0)})
        read = meter.read()
        assert list(read["classes"].items()) == [("c", [20.0, 5]), ("a", [100.0, 2]), ("b", [100.0, 1])]
        assert read["confusions"] == {"c": {"a": 3, "b": 1}}

    def test_a_run_and_a_test_tell_it(self, call):
        photos(Path("photos"))
        call(*FLAGS, "--data_dir", "photos", *PRUNED, "--compact", "--out_dir", "run")
        summary = json.loads(Path("run/summary.json").read_text())
        classes = summary["test"]["classes"]
        assert sum(accuracy * images for accuracy, images in classes.values()) / 6 == pytest.approx(summary["test"]["top1"])
        assert [accuracy for accuracy, _ in classes.values()] == sorted(accuracy for accuracy, _ in classes.values())
        assert "classes" not in summary["last"]["valid"]
        out, _ = call("--evaluate", "run/model.pt", "--quiet")
        told = ", ".join(f"{name} {accuracy:.2f} ({images})" for name, (accuracy, images) in classes.items())
        assert out[1] == f"result classes, worst first, and their images: {told}"
        wrong = sum(sum(taken.values()) for taken in summary["test"]["confusions"].values())
        assert wrong == round(6 - 6 * summary["test"]["top1"] / 100)
        assert wrong == 0 or out[2].startswith("result confusions: ")

    def test_classes_are_told_where_the_test_images_validate(self, call):
        """In the rows, too, of which TensorBoard draws the numbers."""
        photos(Path("photos"))
        call(*FLAGS, "--data_dir", "photos", "--val_size", "0", "--tensorboard", "--out_dir", "run")
        rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
        test = json.loads(Path("run/summary.json").read_text())["test"]
        assert {*test["classes"]} == {"cat", "dog"}
        assert test == rows[-1]["valid"]

    def test_balanced_weights_let_classes_count_alike(self, tmp_path):
        root = photos(tmp_path, train=12)
        for path in sorted((root / "train" / "dog").iterdir())[3:]:
            path.unlink()
        plain, balanced = load(root), load(root, class_weights="balanced")
        logits, labels = torch.randn(15, 2), balanced.train.labels
        losses = plain.image_losses(logits, labels)
        wanted = (losses[:12].mean() + losses[12:].mean()) / 2
        torch.testing.assert_close(balanced.losses(logits, labels)["cross_entropy"], wanted)
        torch.testing.assert_close(balanced.image_losses(logits, labels).mean(), wanted)
        torch.testing.assert_close(plain.losses(logits, labels)["cross_entropy"], losses.mean())
        wide = torch.randn(15, 2, dtype=torch.float64)
        assert balanced.image_losses(wide, labels).dtype == torch.float64

    def test_balanced_weights_change_what_is_learned(self, call):
        photos(Path("photos"))
        for path in sorted(Path("photos/train/dog").iterdir())[3:]:
            path.unlink()
        flags = [*FLAGS, "--data_dir", "photos", "--epochs", "1", "--threads", "1", "--deterministic"]
        lines = [call(*flags, *more)[0][1] for more in ([], ["--class_weights", "none"], ["--class_weights", "balanced"])]
        rows = [json.loads(path.read_text()) for path in sorted(Path("result").glob("*/metrics.jsonl"))]
        assert len(lines) == len(rows) == 3
        assert rows[0]["train"]["loss"] == rows[1]["train"]["loss"] != rows[2]["train"]["loss"]
