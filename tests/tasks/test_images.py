"""These tests are about splits, augmentation and normalisation, and about data that is missing or not usable."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tasks
from settings.arguments import parse
from settings.errors import Refused
from tasks.images import Dataset, Images, hold_out
from training.evaluation import images_at_once

CIFAR = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10"


def digits(**options):
    return load("digits", "", **options)


def load(dataset, directory, **options):
    """The images of a data set, by the program's own settings but for these."""
    settings = parse([]).replace(dataset=dataset, data_dir=str(directory), **options)
    return tasks.load(settings.data, batch_size=8, seed=0, device="cpu").images


def numbered(count=24, size=16, **options):
    """Images whose pixels say which image, row and column they are from."""
    pixels = torch.zeros(count, size, size, 3, dtype=torch.uint8)
    pixels[..., 0] = torch.arange(1, count + 1).view(-1, 1, 1)
    pixels[..., 1] = torch.arange(1, size + 1).view(1, -1, 1)
    pixels[..., 2] = torch.arange(1, size + 1).view(1, 1, -1)
    images = Images(pixels, torch.arange(count) % 3)
    return Dataset(images, None, images, ["a", "b", "c"], "half", "cpu")


def bytes_of(batch):
    return (batch * 127.5 + 127.5).round().permute(0, 2, 3, 1).int()


def test_digits_are_the_whole_set_split_once():
    dataset = digits()
    assert (len(dataset.train) + len(dataset.valid), len(dataset.test)) == (1437, 360)
    assert len(dataset.valid) == 145
    assert dataset.train.pixels.dtype == torch.uint8
    assert tuple(dataset.test.pixels.shape) == (360, 32, 32, 3)
    assert int(dataset.test.pixels.max()) == 255
    again = digits(val_size=0.0)
    assert torch.equal(again.test.labels, dataset.test.labels)
    assert again.valid is None
    assert len(again.train) == 1437


def test_the_held_out_tenth_is_stratified_and_always_the_same():
    labels = torch.arange(10).repeat(500)[torch.randperm(5000, generator=torch.Generator().manual_seed(0))]
    kept, held = hold_out(labels, 0.1)
    assert torch.bincount(labels[held]).tolist() == [50] * 10
    assert torch.equal(torch.cat([kept, held]).sort().values, torch.arange(5000))
    torch.manual_seed(123)
    np.random.seed(123)
    assert torch.equal(hold_out(labels, 0.1)[1], held)


def test_images_are_normalised_by_the_training_set():
    dataset = digits()
    batch = torch.cat([images for images, _ in dataset.ordered(dataset.train, 500)])
    torch.testing.assert_close(batch.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(batch.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-4, rtol=0)
    half = digits(normalise="half")
    images, _ = next(half.ordered(half.test, 10))
    torch.testing.assert_close(images, half.test.pixels[:10].permute(0, 3, 1, 2).float() / 127.5 - 1)


def test_batches_lie_in_memory_as_channels_last():
    images, _ = next(digits().epoch(32, "crop", 0, 0))
    assert images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("augment", ["none", "crop", "crop_flip"])
def test_crops_and_flips_are_windows_of_the_padded_image(augment):
    """Every batch image is looked up in numpy.pad of its original, and all windows occur."""
    dataset, shifts, flips = numbered(), set(), set()
    for epoch in range(12):
        for images, labels in dataset.epoch(8, augment, 0, epoch):
            for image, label in zip(bytes_of(images).numpy(), labels, strict=True):
                number = image[..., 0].max()
                assert (number - 1) % 3 == label
                original = np.pad(dataset.train.pixels[number - 1].numpy(), ((2, 2), (2, 2), (0, 0)))
                windows = [
                    (dy, dx, flip)
                    for dy in range(5)
                    for dx in range(5)
                    for flip in (1, -1)
                    if np.array_equal(original[dy : dy + 16, dx : dx + 16][:, ::flip], image)
                ]
                assert len(windows) == 1
                shifts.add(windows[0][:2])
                flips.add(windows[0][2])
    assert shifts == ({(2, 2)} if augment == "none" else {(y, x) for y in range(5) for x in range(5)})
    assert flips == ({1, -1} if augment == "crop_flip" else {1})


def test_an_epoch_shows_each_image_once_in_an_order_of_seed_and_epoch():
    dataset = numbered()

    def order(seed, epoch):
        return torch.cat([bytes_of(images).amax((1, 2))[:, 0] for images, _ in dataset.epoch(8, "none", seed, epoch)]).tolist()

    torch.manual_seed(5)
    assert sorted(order(0, 0)) == list(range(1, 25))
    torch.manual_seed(6)
    assert order(0, 3) == order(0, 3)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6


def test_incomplete_batches_are_left_out():
    assert [len(labels) for _, labels in numbered(count=25).epoch(8, "none", 0, 0)] == [8, 8, 8]
    assert numbered(count=5).steps(8) == 1


def test_the_scoring_sample_is_always_the_same():
    dataset = numbered()
    first, second = (torch.cat([images for images, _ in dataset.sample(4, 3, 0)]) for _ in range(2))
    assert torch.equal(first, second)
    assert len(first) == 12


def write_folder(root, classes=("cat", "dog"), test_classes=None, count=6):
    for part, names in (("train", classes), ("test", test_classes or classes)):
        for label, name in enumerate(names):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                colour = (40 * label + number, 100, 200)
                Image.new("RGB", (20 + number, 12), colour).save(folder / f"{number}.png")
    return root


def test_a_folder_of_images(tmp_path):
    dataset = load("folder", write_folder(tmp_path), val_size=0.34, image_size=16)
    assert dataset.classes == ["cat", "dog"]
    assert (len(dataset.train), len(dataset.valid), len(dataset.test)) == (8, 4, 12)
    assert dataset.image_size == 16
    assert dataset.test.pixels[6, 8, 8].tolist() == [40, 100, 200]
    assert dataset.test.labels.tolist() == [0] * 6 + [1] * 6
    assert tasks.outputs_of(parse(["--dataset", "folder", "--data_dir", str(tmp_path)]).data) == 2


def test_a_folder_that_is_not_usable_is_refused(tmp_path):
    def load_folder(path):
        return load("folder", path, image_size=16)

    with pytest.raises(Refused, match="no folder"):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(Refused, match="differ between train and test: cow, dog"):
        load_folder(write_folder(tmp_path / "a", test_classes=("cat", "cow")))
    broken = write_folder(tmp_path / "b")
    (broken / "train" / "cat" / "0.png").write_bytes(b"not an image")
    with pytest.raises(Refused, match=r"1 unreadable images: .*0\.png"):
        load_folder(broken)
    (broken / "train" / "cat" / "0.png").unlink()
    (broken / "train" / ".cache").mkdir()  # hidden folders are no classes
    Image.new("L", (4, 4)).save(broken / "train" / ".cache" / "x.png")
    assert load_folder(broken).classes == ["cat", "dog"]
    empty = write_folder(tmp_path / "c", count=0)
    with pytest.raises(Refused, match="cat"):
        load_folder(empty)


def test_images_of_16_bits_a_pixel_keep_their_range(tmp_path):
    root = write_folder(tmp_path)
    Image.fromarray(np.full((16, 16), 0x8000, dtype=np.uint16)).save(root / "test" / "cat" / "0.png")
    dataset = load("folder", root, val_size=0.0, image_size=16)
    assert dataset.test.pixels[0, 3, 3].tolist() == [0x80] * 3


def test_a_missing_data_set_says_where_it_looked(tmp_path, monkeypatch):
    import torchvision.datasets.cifar as cifar

    def no_network(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(cifar, "download_and_extract_archive", no_network)
    with pytest.raises(Refused) as caught:
        load("cifar10", tmp_path / "data")
    message = str(caught.value)
    assert str(tmp_path / "data") in message
    assert "digits" in message
    assert "folder" in message
    assert "\n" not in message
    assert not (tmp_path / "data").exists()


@pytest.fixture(scope="session")
def cifar(tmp_path_factory):
    if not CIFAR.exists():
        pytest.skip("real CIFAR-10 is not beside this repository")
    import subprocess
    import sys

    folder = tmp_path_factory.mktemp("cifar")
    subprocess.run([sys.executable, CIFAR / "unpack.py", folder], check=True, capture_output=True)
    return folder


def test_real_cifar10(cifar, capsys):
    dataset = load("cifar10", cifar)
    assert (len(dataset.train), len(dataset.valid), len(dataset.test)) == (45_000, 5_000, 10_000)
    assert torch.bincount(dataset.valid.labels).tolist() == [500] * 10
    assert dataset.classes[3] == "cat"
    assert (dataset.mean / 255).tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-3)
    assert (dataset.std / 255).tolist() == pytest.approx([0.2470, 0.2435, 0.2616], abs=1e-3)
    assert capsys.readouterr().out == ""


def test_images_that_are_taken_out_leave_the_others_in_order():
    """In place: the pixels that stay are in the memory where all were."""
    pixels, labels = torch.randint(0, 256, (3000, 4, 4, 3), dtype=torch.uint8), torch.arange(3000)
    images, whole = Images(pixels.clone(), labels.clone()), Images(pixels, labels)
    memory = images.pixels.data_ptr()
    taken = images.part_with(labels[::7])
    stays = labels[labels % 7 != 0]
    assert images.pixels.data_ptr() == memory
    assert torch.equal(images.pixels, whole.pixels[stays])
    assert torch.equal(images.labels, stays)
    assert torch.equal(taken.pixels, whole.pixels[::7])


@pytest.mark.parametrize(
    ("size", "batch", "wanted"), [(32, 128, 500), (32, 1024, 500), (224, 8, 10), (224, 128, 128), (1024, 2, 2), (1024, 0, 1)]
)
def test_evaluation_takes_no_more_memory_than_training(size, batch, wanted):
    class Data:
        inputs = (3, size, size)

    Data.batch = batch
    assert images_at_once(Data) == wanted
