"""Folders in VOC layout are read as they are, and what is wrong with one is said in one line before any work."""

import struct
import zlib

import numpy as np
import pytest
import torch
from boxes import DETECTOR, annotation
from conftest import run_program
from PIL import Image

from settings.arguments import parse
from settings.errors import Refused
from tasks import load, load_test
from tasks.boxes import CROWD, DIFFICULT, PLAIN
from tasks.datasets.voc import VOC
from tasks.pictures import size_of

pytestmark = pytest.mark.core


def read(folder, **options):
    source = VOC(data_dir=str(folder), image_size=300, **options)
    return source, *source.read()


def write(folder, name: str, boxes: list) -> None:
    (folder / "Annotations" / f"{name}.xml").write_text(annotation(boxes))


def test_boxes_are_fractions_of_the_picture(voc):
    write(voc, "p000", [("red", "9.0", 7, "45", 70.0), ("blue", 0, 0, 90, 35, "difficult"), ("red", 1, 1, 5, 5, "crowd")])
    _, train, _, classes = read(voc)
    assert classes == ["blue", "red"]
    rows = train.targets[0]
    wanted = [[0.1, 0.1, 0.5, 1, 2, PLAIN], [0, 0, 1, 0.5, 1, DIFFICULT], [1 / 90, 1 / 70, 5 / 90, 5 / 70, 2, CROWD]]
    assert torch.allclose(rows, torch.tensor(wanted))
    assert train.sizes[0] == (90, 70)


def test_boxes_without_an_area_are_dropped_and_named(voc):
    write(voc, "p001", [("red", 10, 10, 10, 30), ("red", 20, 30, 10, 40), ("blue", 95, 10, 120, 30), ("red", 80, 10, 120, 30)])
    source, train, _, _ = read(voc)
    assert len(train.targets[1]) == 1
    assert source.notes == ["3 boxes without an area are dropped, of p001 (red), p001 (red), p001 (blue)"]


def test_pictures_without_boxes_are_trained_too(voc):
    for number in range(8):
        if number > 1:
            write(voc, f"p{number:03d}", [])
    run_program(*DETECTOR, "--data_dir", str(voc), "--epochs", "1", "--out_dir", str(voc / "run"), "--quiet")
    assert (voc / "run" / "summary.json").exists()


def test_parts_are_those_of_the_lists(voc):
    lists = voc / "ImageSets" / "Main"
    (lists / "trainval.txt").rename(lists / "train.txt")
    (lists / "val.txt").write_text("p008\np009\n")
    (lists / "test.txt").write_text("p010\n")
    source, train, test, classes = read(voc)
    held = source.read_held_out(classes)
    assert (len(train), len(held), len(test)) == (8, 2, 1)
    assert "val.txt" in source.notes[0]
    (lists / "train.txt").rename(lists / "trainval.txt")  # which lists what is held out too, as a rule
    assert read(voc)[0].read_held_out(classes) is None


def test_a_test_part_is_split_off(voc):
    (voc / "ImageSets" / "Main" / "test.txt").unlink()
    _, train, test, _ = read(voc, test_size=0.25)
    assert (len(train), len(test)) == (6, 2)
    assert {*train.paths}.isdisjoint(test.paths)
    assert read(voc, test_size=0.25)[2].paths == test.paths
    source = VOC(data_dir=str(voc), image_size=300, test_size=0.25)
    assert source.read_test()[0].paths == test.paths


def spoil_xml(folder):
    (folder / "Annotations" / "p002.xml").write_text("<annotation><object></annotation>")
    return "p002.xml' is no annotation: broken XML"


def spoil_name(folder):
    (folder / "Annotations" / "p002.xml").write_text("<annotation><object><bndbox/></object></annotation>")
    return "p002.xml' is no annotation: an object without a name"


def spoil_side(folder):
    write(folder, "p002", [("red", 1, 1, "wide", 9)])
    return "'red' has no number xmax"


def spoil_number(folder):
    write(folder, "p002", [("red", 1, 1, "nan", 9)])
    return "'red' has xmax nan"


def spoil_entity(folder):
    (folder / "Annotations" / "p002.xml").write_text('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>')
    return "it declares entities"


def spoil_class(folder):
    write(folder, "p009", [("green", 1, 1, 9, 9)])
    return "p009.xml': no such class in training: green"


def spoil_picture(folder):
    (folder / "JPEGImages" / "p003.png").unlink()
    return "no picture '"


def spoil_content(folder):
    (folder / "JPEGImages" / "p003.png").write_bytes(b"no picture")
    return "unreadable images"


def spoil_end(folder):
    file = folder / "JPEGImages" / "p003.png"
    file.write_bytes(file.read_bytes()[:2000])
    return "unreadable images"


def spoil_size(folder):
    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    parts = [struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks]
    (folder / "JPEGImages" / "p003.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return "too large a picture"


def spoil_list(folder):
    (folder / "ImageSets" / "Main" / "trainval.txt").write_text("../p001\n")
    return "which is no name of a picture"


def spoil_lists(folder):
    (folder / "ImageSets" / "Main" / "test.txt").unlink()
    return "--test_size 0.2"


def spoil_twice(folder):
    (folder / "ImageSets" / "Main" / "trainval.txt").write_text("p001\np002\np001\n")
    return "lists a picture twice: p001"


def spoil_boxes(folder):
    for number in range(8):
        write(folder, f"p{number:03d}", [])
    return "no box in the annotations"


@pytest.mark.parametrize("spoil", [
    spoil_xml, spoil_name, spoil_side, spoil_number, spoil_entity, spoil_class, spoil_picture, spoil_content, spoil_end,
    spoil_size, spoil_list, spoil_lists, spoil_twice, spoil_boxes,
])  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(voc, spoil):
    words = spoil(voc)
    settings = parse([*DETECTOR, "--data_dir", str(voc)])
    with pytest.raises(Refused) as caught:
        load(settings.data, batch_size=2, seed=0, device="cpu")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_large_data_are_read_from_files(voc, monkeypatch):
    settings = parse([*DETECTOR, "--data_dir", str(voc)])
    held = load(settings.data, batch_size=2, seed=0, device="cpu")
    monkeypatch.setattr("tasks.detection.machine_memory", lambda: 1000)
    read_anew = load(settings.data, batch_size=2, seed=0, device="cpu")
    assert (held.train.held is None, read_anew.train.held is None) == (False, True)
    assert "read from their files" in read_anew.notes[-1]
    for (inputs, targets), (others, others_targets) in zip(held.batches(3), read_anew.batches(3), strict=True):
        assert torch.equal(inputs, others)
        assert torch.equal(targets, others_targets)
    pairs = zip(held.ordered(held.test, 3), read_anew.ordered(read_anew.test, 3), strict=True)
    assert all(torch.equal(one[0], other[0]) for one, other in pairs)


def test_the_test_part_alone_is_enough_to_evaluate(voc):
    (voc / "ImageSets" / "Main" / "trainval.txt").unlink()
    settings = parse([*DETECTOR, "--data_dir", str(voc)])
    assert len(load_test(settings.data, device="cpu").test) == 4


def test_a_picture_is_measured_as_it_is_shown(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(np.zeros((10, 30, 3), np.uint8)).save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(np.zeros((10, 30, 3), np.uint8)).save(tmp_path / "plain.jpg")
    assert size_of(str(tmp_path / "turned.jpg")) == (10, 30)
    assert size_of(str(tmp_path / "plain.jpg")) == (30, 10)
