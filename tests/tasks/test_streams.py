"""Pictures that do not fit into memory are read from their files while a network trains, and give the same bits."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TwoBlocks, run_program
from PIL import Image
from promises import differences, records, trains_and_resumes, unchanged

import models
from settings.arguments import parse
from settings.errors import Failed, Refused
from tasks import load, memory
from tasks.pictures import read_picture
from tasks.statistics import MEASURED, statistics
from tasks.streams import Streamed, check_heads, chosen_evenly
from tasks.views import resized, seeded

pytestmark = pytest.mark.core

ROOT = Path(__file__).resolve().parents[2]


def odd_pictures(folder: Path, train: int = 8, test: int = 2, classes: tuple[str, ...] = ("blue", "green", "red")) -> Path:
    """Pictures of odd sizes, in colour and in grey, of several formats."""
    noise = np.random.RandomState(0)
    for part, count in (("train", train), ("test", test)):
        for label, name in enumerate(classes):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                height, width = noise.randint(20, 90, 2)
                pixels = noise.randint(0, 200, (height, width, 3))
                pixels[..., 2 - label % 3] += 55
                picture = Image.fromarray(pixels.astype(np.uint8))
                picture = picture.convert("L") if number == 3 else picture
                picture.save(folder / part / name / f"{number}.{('png', 'jpg', 'bmp')[number % 3]}")
    return folder


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    return odd_pictures(tmp_path_factory.mktemp("odd"))


def flags(folder, *more, size: int = 16):
    where = ["--dataset", "folder", "--data_dir", str(folder), "--image_size", str(size), "--device", "cpu", "--amp", "off"]
    return [*where, "--layers", "20", "--epochs", "1", "--batch_size", "6", "--quiet", *more]


def task_of(*typed):
    settings = parse(list(typed))
    return load(settings.data, batch_size=6, seed=3, device="cpu")


@pytest.mark.parametrize("augment", ["none", "crop_flip", "resized_crop(scale=0.3)", "randaugment"])
@pytest.mark.parametrize("held_out", ["0", "0.2"])
def test_streamed_pictures_give_the_bits_of_those_in_memory(odd, augment, held_out):
    tasks = [task_of(*flags(odd, "--augment", augment, "--val_size", held_out, *more)) for more in ([], ["--memory", "0"])]
    kept, streamed = tasks
    assert isinstance(kept.train.pixels, torch.Tensor)
    assert all(isinstance(split.pixels, Streamed) for split in (streamed.train, streamed.test))
    assert kept.record() == streamed.record()
    assert torch.equal(kept.examples(4), streamed.examples(4))
    for split in ("train", "valid", "test"):
        if getattr(kept, split) is None:
            continue
        pairs = zip(*(task.ordered(getattr(task, split), 5) for task in tasks), strict=True)
        assert all(torch.equal(one, other) for pair in pairs for one, other in zip(*pair, strict=True))
    for epoch, part in ((0, (0, 1)), (1, (0, 1)), (1, (1, 2))):
        pairs = list(zip(*(task.batches(epoch, part) for task in tasks), strict=True))
        assert len(pairs) == kept.steps == streamed.steps
        assert all(torch.equal(one, other) for pair in pairs for one, other in zip(*pair, strict=True))
    pairs = zip(*(task.sample(2) for task in tasks), strict=True)
    assert all(torch.equal(one, other) for pair in pairs for one, other in zip(*pair, strict=True))


@pytest.mark.parametrize("augment", ["crop_flip", "resized_crop(of='file')"])
def test_the_order_and_the_bits_do_not_depend_on_the_workers(odd, augment):
    task, found = task_of(*flags(odd, "--augment", augment, "--memory", "0")), []
    for workers in (0, 2):
        task.train.pixels = replace(task.train.pixels, workers=workers)
        with unchanged():
            found.append([torch.cat(list(part)) for part in zip(*task.batches(1), strict=True)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    other = torch.cat([labels for _, labels in task.batches(2)])
    assert not torch.equal(found[0][1], other)


def test_parts_of_whole_pictures_are_torchvisions(odd):
    """Each by the seed of its view; in memory or not, the pictures are read from their files."""
    task = task_of(*flags(odd, "--augment", "resized_crop(scale=0.5, of='file')"))
    assert isinstance(task.train.pixels, Streamed)
    assert isinstance(task.test.pixels, torch.Tensor)
    paths = task.train.pixels.paths
    seeds = torch.arange(len(paths)) + 7
    (seen,) = task.train.pixels.batches([torch.tensor([4, 1])], seeds, 0.5)
    from torchvision.transforms import v2

    for view, number in zip(seen, (4, 1), strict=True):
        picture = torch.from_numpy(read_picture(paths[number], None)).permute(2, 0, 1)
        with seeded(int(seeds[number])):
            wanted = v2.RandomHorizontalFlip()(v2.RandomResizedCrop(16, (0.5, 1.0), antialias=True)(picture))
        assert torch.equal(view.permute(2, 0, 1), wanted)
    squares = task_of(*flags(odd, "--augment", "resized_crop(scale=0.5)"))
    assert not torch.equal(next(task.batches(0))[0], next(squares.batches(0))[0])
    assert torch.equal(next(task.batches(0))[1], next(squares.batches(0))[1])


def test_a_part_is_at_least_so_large_and_half_are_mirrored():
    ramp = torch.arange(64, dtype=torch.uint8).repeat(64, 1).unsqueeze(2).repeat(1, 1, 3)
    widths, mirrored = [], 0
    for seed in range(200):
        with seeded(seed):
            part = resized(ramp, 64, 0.5)[32, :, 0].int()
        widths.append(int(part.max() - part.min()))
        mirrored += int(part[0] > part[-1])
    assert 60 < mirrored < 140
    assert min(widths) >= 64 * (0.5 * 3 / 4) ** 0.5 - 4  # the narrowest part of half the area


def test_a_run_that_streams_is_the_same_run_and_goes_on(odd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, more in (("kept", []), ("streamed", ["--memory", "0"])):
        run_program(*flags(odd, *more), "--out_dir", name)
    kept, streamed = records("kept"), records("streamed")
    assert differences(kept["model"], streamed["model"]) == []
    assert differences(kept["rows"], streamed["rows"]) == []
    run_program("--resume", "streamed", "--epochs", "2", "--quiet", "--memory", "1")
    run_program("--resume", "kept", "--epochs", "2", "--quiet", "--memory", "0")
    assert differences(records("kept")["model"], records("streamed")["model"]) == []
    monkeypatch.chdir(ROOT)
    (tmp_path / "again").mkdir()
    trains_and_resumes(tmp_path / "again", monkeypatch, "--memory", "0", "--augment", "resized_crop(of='file')")


def test_two_scales_are_two_results(odd):
    seen = [
        next(task_of(*flags(odd, "--augment", f"resized_crop(scale={scale}, of='file')")).batches(0))[0] for scale in (0.1, 0.9)
    ]
    assert not torch.equal(*seen)


def test_what_fits_is_kept_and_a_note_says_what_does_not(odd, monkeypatch):
    task = task_of(*flags(odd))
    assert not any("read from their files" in note for note in task.notes)
    needed = 30 * 16 * 16 * 3
    for gigabytes, streams in ((needed / 1e9, False), ((needed - 1) / 1e9, True)):
        task = task_of(*flags(odd, "--memory", str(gigabytes)))
        assert isinstance(task.train.pixels, Streamed) == streams
    (note,) = [note for note in task.notes if "read from their files" in note]
    assert note.startswith("30 pictures would take 2.3e-05 GB, and 2.3e-05 may be kept (--memory ")
    monkeypatch.setattr(memory, "free_memory", lambda device="cpu": 2 * needed - 2)
    task = task_of(*flags(odd))
    assert isinstance(task.train.pixels, Streamed)
    assert any("50% of the memory that is free" in note for note in task.notes)


def test_free_memory_is_the_least_of_machine_and_group(monkeypatch):
    said = {"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    4000 kB\n"}
    monkeypatch.setattr(memory, "machine_memory", lambda: 10_000_000)
    monkeypatch.setattr(memory, "text_of", lambda path: said.get(path, ""))
    assert memory.free_memory() == 4_096_000
    said |= {"/sys/fs/cgroup/memory.max": "3000000\n", "/sys/fs/cgroup/memory.current": "1000000\n"}
    assert memory.free_memory() == 2_000_000
    said["/sys/fs/cgroup/memory.max"] = "max\n"
    assert memory.free_memory() == 4_096_000
    assert memory.allowed(None)[0] == 2_048_000
    assert memory.allowed(0.5)[0] == 5e8
    monkeypatch.undo()
    assert 0 < memory.free_memory() <= memory.machine_memory()


def test_the_mean_is_of_a_sample_through_the_whole_set(odd):
    task = task_of(*flags(odd, "--memory", "0"))
    whole = torch.cat(list(task.train.pixels.batches([slice(0, 10), slice(10, None)])))
    assert all(torch.equal(*pair) for pair in zip(statistics(whole), statistics(task.train.pixels), strict=True))
    assert chosen_evenly(10, 4).tolist() == [0, 3, 6, 9]
    assert len(chosen_evenly(3 * MEASURED, MEASURED)) == MEASURED
    assert chosen_evenly(3, 5000).tolist() == [0, 1, 2]


def test_a_file_without_the_head_of_a_picture_is_refused_before_training(tmp_path, monkeypatch):
    odd_pictures(tmp_path / "data", train=4)
    (tmp_path / "data" / "train" / "red" / "1.jpg").write_bytes(b"no picture")
    (tmp_path / "data" / "test" / "red" / "0.png").write_bytes(b"")
    with pytest.raises(Refused, match=r"^1 unreadable images: .*red/1\.jpg$"):
        task_of(*flags(tmp_path / "data", "--memory", "0"))
    with pytest.raises(Refused, match="unreadable images"):
        check_heads([str(tmp_path)])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_breaks_off_ends_an_epoch_in_one_line(tmp_path, workers):
    odd_pictures(tmp_path / "data", train=4)
    broken = tmp_path / "data" / "train" / "red" / "2.bmp"
    broken.write_bytes(broken.read_bytes()[:200])
    check_heads([str(broken)])
    task = task_of(*flags(tmp_path / "data", "--memory", "0", "--normalise", "half", "--val_size", "0"))
    task.train.pixels = replace(task.train.pixels, workers=workers)
    with pytest.raises(Failed) as caught:
        list(task.batches(0))
    assert "red/2.bmp" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_program_then_ends_with_status_1(tmp_path):
    odd_pictures(tmp_path / "data", train=4)
    broken = tmp_path / "data" / "train" / "red" / "2.bmp"
    broken.write_bytes(broken.read_bytes()[:200])
    command = [sys.executable, ROOT / "modeling.py", *flags("data", "--memory", "0", "--normalise", "half", "--val_size", "0")]
    done = subprocess.run([*map(str, command)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "red/2.bmp" in line


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--memory", "0", "--labelled", "0.5"], "--labelled needs all training images in memory: allow them more by --memory"),
        (["--memory", "-1"], "at least 0"),
        (["--augment", "resized_crop(scale=0)"], "'scale' of augmentation 'resized_crop' is a number"),
        (["--augment", "resized_crop(of='file')", "--labelled", "0.5"], "is of pictures with labels"),
    ],
)
def test_what_makes_no_sense_is_refused(odd, more, words):
    with pytest.raises(Refused) as caught:
        task_of(*flags(odd, *more))
    assert words in str(caught.value)


def test_no_more_is_kept_than_a_batch(odd, monkeypatch):
    """Streamed pictures are never all in memory: each is read when its batch is due."""
    task, read = task_of(*flags(odd, "--memory", "0", "--normalise", "half")), []
    from tasks import streams

    monkeypatch.setattr(streams, "read_picture", lambda path, *rest: (read.append(path), read_picture(path, *rest))[1])
    batches = task.batches(0)
    next(batches)
    assert len(read) == 6
    next(batches)
    assert len(read) == 12


def test_forty_pictures_of_odd_sizes_at_224_pixels_end_to_end(tmp_path, monkeypatch):
    """Train, prune, remove and test, with what does not fit into memory, by a network that is tiny."""
    monkeypatch.setattr(models, "build", lambda _, classes=10, **__: TwoBlocks(classes=classes))
    odd_pictures(tmp_path / "data", train=16, test=4, classes=("blue", "green"))
    monkeypatch.chdir(tmp_path)
    asked = flags("data", "--memory", "0", "--augment", "resized_crop(of='file')", "--accumulate", "2", size=224)
    pruned = ["--prune_type", "structured", "--prune_rate", "0.3", "--compact"]
    run_program(*asked, "--ema", "0.9", "--keep_best", *pruned, "--out_dir", "run")
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["test"]["images"] == 8
    assert summary["left"]["filters"] < summary["dense"]["filters"]
    assert summary["last"]["train"]["images"] == 24  # four batches of six, of 28 that are not held out
