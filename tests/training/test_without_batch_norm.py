"""What is about batch norm is refused, before the data is read, for networks in which it does not stand where it must."""

import pytest
from conftest import TINY_DATA, run_program

import models
from pruning import Pruner
from settings.errors import Refused

pytestmark = pytest.mark.core

GREY = ["--arch", "lenet5", "--dataset", "folder", "--data_dir", "nowhere", "--channels", "1", "--image_size", "28"]


@pytest.mark.parametrize("criterion", ["bn_scale", "LcP(of='bn_scale')"])
def test_a_criterion(criterion):
    network = models.build("lenet5", channels=1)
    with pytest.raises(ValueError, match=r"bn_scale compares scales of batch norm, and 'convolutions\.0' has none"):
        Pruner(network, rate=0.5, criterion=criterion)
    # layers that are never cut need none
    network = models.build("resnet20")
    network.stem.norm = None
    Pruner(network, rate=0.5, criterion=criterion, whole=("stem",))


@pytest.mark.parametrize("reg", ["bn_l1", "bn_l1_proximal"])
def test_a_regulariser(reg, monkeypatch):
    monkeypatch.setattr("tasks.outputs_of", lambda _: 10)
    with pytest.raises(Refused, match=f"--reg {reg} has no effect: it is about batch norm, and no convolution of this network"):
        run_program(*GREY, "--reg", reg)


def test_the_flag_is_named(monkeypatch):
    monkeypatch.setattr("tasks.outputs_of", lambda _: 10)
    with pytest.raises(
        Refused, match=r"--prune_imp bn_scale: bn_scale compares scales of batch norm, and 'convolutions\.0' has none"
    ):
        run_program(*GREY, "--prune_type", "structured", "--prune_imp", "bn_scale")


def test_new_statistics(tmp_path):
    words = "--recalibrate has no effect: it is about batch norm, and no layer of lenet5 has one"
    tiny = [*TINY_DATA, "--arch", "lenet5", "--epochs", "1", "--batch_size", "18", "--out_dir", str(tmp_path / "run")]
    with pytest.raises(Refused, match=words):
        run_program(*tiny, "--recalibrate", "50")
    run_program(*tiny)
    with pytest.raises(Refused, match=words):
        run_program("--resume", str(tmp_path / "run"), "--recalibrate", "50")
    # in a run of several networks it is about the last one
    several = [*tiny[:-2], "--labelled", "0.5", "--recalibrate", "1", "--dry_run", "--procedure"]
    run_program(*several, "noisy_student(student='resnet20')")
