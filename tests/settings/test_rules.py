"""A wrong command ends with exit status 2 and one line on stderr that helps; it prints and leaves nothing else."""

import json
import pickle
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision.datasets.cifar
from conftest import TINY, TINY_DATA
from PIL import Image

from settings.flags import defaults

pytestmark = pytest.mark.core

ROOT = Path(__file__).resolve().parents[2]
STRUCTURED = ["--prune_type", "structured"]
WEIGHTS = ["--prune_type", "unstructured", "--prune_phase", "after"]


def folder_of_images(place, train=("a", "b"), test=("a", "b")):
    for part, names in (("train", train), ("test", test)):
        for name in names:
            (place / part / name).mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (16, 16), (number, 0, 0)).save(place / part / name / f"{number}.png")
    return place


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Things that are not as they should be."""
    root = tmp_path_factory.mktemp("places")
    for name in ("used", "bad", "newer", "code"):
        (root / name).mkdir()
        settings = defaults() | {"epochs": 2, "typed": {}, "arch": "resnet20"}
        (root / name / "config.json").write_text(json.dumps({"settings": settings}))
    (root / "bad" / "checkpoint.pt").write_bytes(b"PK\x03\x04")
    (root / "bad" / "previous.pt").write_bytes(b"")
    torch.save({"format": 99, "rows": []}, root / "newer" / "checkpoint.pt")
    (root / "code" / "checkpoint.pt").write_bytes(pickle.dumps(Path("x")))
    (root / "file").touch()
    (root / "there.onnx").touch()
    folder_of_images(root / "other_classes", test=("a", "c"))
    folder_of_images(root / "no_test", test=())
    (folder_of_images(root / "broken") / "train" / "a" / "0.png").write_bytes(b"no image")
    (folder_of_images(root / "empty") / "test" / "b" / "0.png").unlink()
    for number in (1, 2):
        (root / "empty" / "test" / "b" / f"{number}.png").unlink()
    (root / "torn" / "cifar-10-batches-py").mkdir(parents=True)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        (root / "torn" / "cifar-10-batches-py" / name).write_bytes(b"torn")
    return root


CASES = [
    (
        ["--procedure", "scratch(of='{places}/file')", "--reg", "group_lasso", "--compact"],
        "--compact takes filters out of a network, and --scratch trains one that has lost them: leave out --compact",
    ),
    (
        ["--recipe", "sfp", "--rounds", "3"],
        "--recipe sfp says --prune_gate soft, which is about masks that move, only --prune_phase dynamic moves them",
    ),
    (["--pattern", "nothing"], "--pattern: nothing at 'nothing'"),
    (["--pattern", "{places}", "--widths", "{places}"], "leave out --init, --scratch and --widths"),
    (["--scratch", "nothing.pt"], "--scratch: no file at 'nothing.pt'"),
    (["--scratch", "{places}", "--layers", "20"], "--scratch says which network: leave out --arch, --layers and --shortcut"),
    (["--scratch", "{places}", "--prune_type", "structured"], "leave out --prune_type structured"),
    (["--init", "nothing"], "--init: nothing at 'nothing'"),
    (["--init", "{places}", "--scratch", "{places}/file"], "choose one"),
    ([*TINY, "--init", "{places}/file"], "--init: "),
    ([*TINY, "--init", "{places}/used"], "--init: no checkpoint at"),
    (["--preset", "ResNet-56-C"], "ResNet-56-C"),
    (["--preset", "ResNet-56-A", "--prune_rate", "0.3"], "--prune_rate has no effect beside a preset"),
    ([*TINY, "--preset", "VGG-16-A"], "'VGG-16-A' names a layer 'features.0', which this network does not have"),
    (["--preset", "ResNet-56-A", "--prune_scope", "local"], "--prune_scope has no effect beside a preset"),
    (["--preset", "ResNet-56-A", "--rounds", "3"], "--rounds has no effect beside a preset"),
    ([*STRUCTURED, "--prune_scope", "preset(name='VGG-16-A')", "--prune_rate", "0.9"], "--prune_rate has no effect beside"),
    ([*STRUCTURED, "--prune_scope", "preset(name=5)"], "is a name in quotes, not 5"),
    (["--prune_type", "unstructured", "--prune_scope", "preset(name='VGG-16-A')"], "is about filters"),
    ([*STRUCTURED, "--prune_scope", "sensitivity(file='x')", "--residual", "grouped"], "is of single layers"),
    ([*STRUCTURED, "--prune_imp", "APoZ", "--prune_gate", "weight"], "choose another --prune_phase"),
    (["--recipe", "paper", "--prune_imp", "HRank"], "choose another --prune_phase"),
    (["--init", ""], "--init: nothing at ''"),
    (["--init", "{places}", "--shortcut", "pad"], "--init says which network"),
    ([*STRUCTURED, "--prune_phase", "iterative(rounds=0)"], "'rounds' of phase 'iterative' is a number of at least 1"),
    ([*STRUCTURED, "--prune_imp", "OBS(block=0)"], "'block' of criterion 'OBS' is a number of at least 1"),
    ([*STRUCTURED, "--prune_imp", "OBS(damping=1e-10)"], "'damping' of criterion 'OBS' is a number of at least 1e-09"),
    ([*WEIGHTS, "--reconstruct", "hessian(images=0)"], "'images' of reconstruction 'hessian' is a number of at least 1"),
    ([*WEIGHTS, "--reconstruct", "hessian(block=0)"], "'block' of reconstruction 'hessian' is a number of at least 1"),
    ([*WEIGHTS, "--reconstruct", "hessian(damping=0.0)"], "'damping' of reconstruction 'hessian' is a number of at least 1e-09"),
    ([*WEIGHTS, "--reconstruct", "hessian(steps=0)"], "'steps' of reconstruction 'hessian' is a number of at least 1"),
    (
        [*WEIGHTS, "--reconstruct", "hessian", "--procedure", "layerwise"],
        "updates all layers at once, --procedure layerwise",
    ),
    ([*WEIGHTS, "--reconstruct", "lasso"], "--reconstruct is for --prune_type structured: no filter goes as a whole"),
    (
        [*STRUCTURED, "--prune_phase", "after", "--reconstruct", "hessian"],
        "--reconstruct hessian updates what is left of a filter: it needs --prune_type unstructured or kernels",
    ),
    (["--prune_type", "unstructured", "--reconstruct", "hessian"], "it needs --prune_phase init or after, not dynamic"),
    (
        ["--prune_type", "unstructured", "--prune_phase", "init", "--reconstruct", "hessian"],
        "--prune_phase init it needs --init",
    ),
    ([*STRUCTURED, "--prune_imp", "FPGM(by_norm=7)"], "at most 1, not 7"),
    (["--rounds", "3"], "--rounds has no effect without --prune_type"),
    ([*STRUCTURED, "--rounds", "3", "--prune_phase", "init"], "choose one"),
    ([*STRUCTURED, "--rounds", "3", "--prune_freq", "2ep"], "--prune_freq has no effect with --prune_phase iterative"),
    ([*STRUCTURED, "--prune_imp", "PFA(counts='KL')", "--target_macs", "0.5"], "which finds its own counts"),
    ([*STRUCTURED, "--prune_imp", "PFA(counts='entropy')"], "'given', 'KL', 'energy'"),
    (["--prune_type", "unstructured", "--prune_imp", "FPGM"], "scores structured pruning only"),
    (
        [*TINY, *STRUCTURED, "--prune_imp", "PFA", "--score_batches", "1"],
        "--score_batches: PFA needs more images than a layer has filters, 64; there are 18",
    ),
    ([*TINY, *STRUCTURED, "--prune_scope", "sensitivity(file='{places}/file')"], "is damaged, or no scan"),
    (["--prune_typ", "structured"], "did you mean '--prune_type'"),
    (["--prun", "0.5"], "unknown argument '--prun'"),
    (["extra"], "unknown argument 'extra'"),
    (["--prune_type", "structurd"], "structurd"),
    (["--prune_type", "structured", "--prune_imp", "L3"], "unknown criterion 'L3': did you mean 'L"),
    (["--prune_type", "structured", "--prune_imp", "L1(reduce='max')"], "'sum', 'mean'"),
    (["--prune_type", "structured", "--prune_imp", "L1(by='sum')"], "no option 'by'"),
    (["--prune_type", "structured", "--prune_scope", "globl"], "did you mean 'global'"),
    (["--prune_type", "structured", "--prune_phase", "later"], "unknown phase 'later'"),
    (["--prune_type", "structured", "--prune_schedule", "cubik"], "did you mean 'cubic'"),
    (["--prune_type", "structured", "--prune_freq", "4"], "1ep or 4it"),
    (["--prune_type", "structured", "--prune_freq", "0ep"], "1ep or 4it"),
    (["--prune_type", "structured", "--prune_rate", "1"], "at least 0 and below 1"),
    (["--prune_type", "structured", "--prune_rate", "-0.1"], "at least 0 and below 1"),
    (["--prune_type", "structured", "--prune_rate", "nan"], "at least 0 and below 1"),
    (["--prune_type", "structured", "--prune_rate", "sixty"], "at least 0 and below 1"),
    (["--prune_type", "structured", "--prune_until", "0"], "above 0 and at most 1"),
    (["--prune_type", "unstructured", "--prune_gate", "weight"], "--prune_gate has no effect"),
    ([*STRUCTURED, "--prune_gate", "output(scored='own')"], "scored is about maps and gradients, and L1 reads none"),
    ([*STRUCTURED, "--prune_gate", "output(joint='right')", "--rounds", "2"], "joint is about masks that move"),
    ([*STRUCTURED, "--procedure", "slimming", "--prune_gate", "soft"], "soft is about masks that move, and --procedure slimming"),
    ([*STRUCTURED, "--procedure", "slimming", "--prune_gate", "output(joint='right')"], "joint is about masks that move"),
    ([*STRUCTURED, "--procedure", "slimming", "--prune_scope", "global(hysteresis=0.1)"], "and --procedure slimming moves none"),
    (["--reg", "sss(momentum=1.0)"], "option 'momentum' of regulariser 'sss' is a number of at least 0 and below 1"),
    ([*STRUCTURED, "--prune_scope", "global(hysteresis=0.1)", "--prune_phase", "init"], "hysteresis is about masks"),
    (["--prune_type", "structured", "--score_batches", "2"], "--score_batches has no effect"),
    ([*STRUCTURED, "--prune_imp", "zero_fraction(threshold=0.01)", "--score_batches", "2"], "--score_batches has no effect"),
    (["--prune_type", "structured", "--prune_phase", "init", "--prune_freq", "2ep"], "--prune_freq has no effect"),
    (["--prune_type", "structured", "--prune_phase", "init", "--prune_until", "0.5"], "--prune_until has no effect"),
    (["--prune_type", "structured", "--prune_phase", "after", "--prune_until", "1"], "no epoch to fine-tune"),
    (["--prune_rate", "0.6"], "--prune_rate has no effect without --prune_type"),
    (["--reg", "reg_cof"], "did you mean 'reg_cov'"),
    (["--odecay", "0.7"], "--odecay has no effect without --reg"),
    (["--reg", "reg_cov", "--odecay", "-1"], "at least 0"),
    (["--reg", "reg_cov", "--odecay", "inf"], "at least 0"),
    (["--lr", "0"], "above 0"),
    (["--lr", "inf"], "above 0"),
    (["--momentum", "1"], "below 1"),
    (["--epochs", "-1"], "at least 0"),
    (["--epochs", "0"], "--epochs 0 trains nothing: it needs --init, a network that has been trained"),
    (["--epochs", "2.5"], "whole number"),
    (["--batch_size", "1"], "at least 2"),
    (["--lr_schedule", "stepp"], "did you mean 'step'"),
    (["--lr_schedule", "step(drops=0.5)"], "tuple"),
    (["--lr_schedule", "step(drops=('a',))"], "wrong type"),
    (["--prune_type", "structured", "--prune_phase", "after()", "--prune_until", "1"], "no epoch to fine-tune"),
    (["--prune_type", "structured", "--prune_imp", "L1(reduce='sum', reduce='mean')"], "cannot read"),
    (["--arch", "resnet20(classes=3)"], "the data set says"),
    (["--epochs", "9" * 400], "at least 0"),
    (["--threads", "5000000"], "at most 1024"),
    (["--out_dir", ""], "--out_dir is empty"),
    (["--warmup_epochs", "300"], "leaves none"),
    (["--layers", "57"], "choose from 18, 20"),
    (["--arch", "vgg15"], "did you mean 'vgg1"),
    (["--arch", "vgg16", "--layers", "20"], "choose one"),
    (["--layers", "50", "--shortcut", "pad"], "--shortcut has no effect on resnet50"),
    (["--dataset", "imagenet"], "imagenet"),
    (["--dataset", "cifar10", "--image_size", "64"], "--image_size has no effect on cifar10"),
    (["--val_size", "1"], "below 1"),
    (["--recipe", "ksc"], "ksc2020"),
    (["--seed", "-1"], "at least 0"),
    (["--device", "tpu"], "tpu"),
    ([*TINY, *STRUCTURED, "--prune_rate", "0.99"], "the largest rate is 0.9732"),
    ([*TINY, *STRUCTURED, "--prune_scope", "local(floor=17)"], "has a floor of 17"),
    ([*TINY, *STRUCTURED, "--prune_freq", "5000it"], "no mask would ever be made"),
    ([*TINY_DATA, "--image_size", "8", "--arch", "vgg16"], "too small for vgg16"),
    ([*TINY, "--out_dir", "/proc/run"], "cannot write to '/proc/run'"),
    ([*TINY, "--out_dir", "{places}/file"], "no folder that can be written"),
    ([*TINY, "--out_dir", "{places}/used"], "already holds a run"),
    (["--resume", "{places}/file"], "no run in"),
    (["--resume", "{places}/used"], "no checkpoint at"),
    (["--resume", "{places}/used", "--seed", "1"], "--seed 1 contradicts the run"),
    (["--resume", "{places}/used", "--epochs", "1"], "--epochs 1 contradicts the run"),
    (["--resume", "{places}/bad"], "is truncated"),
    (["--resume", "{places}/newer/checkpoint.pt"], "newer than this program's"),
    (["--resume", "{places}/code/checkpoint.pt"], "no checkpoint"),
    (["--dataset", "folder", "--data_dir", "{places}/absent"], "no folder"),
    (["--dataset", "folder", "--data_dir", "{places}/no_test"], "no folder"),
    (["--dataset", "folder", "--data_dir", "{places}/other_classes"], "differ between train and test: b, c"),
    (["--dataset", "folder", "--data_dir", "{places}/broken", "--layers", "20"], "1 unreadable images"),
    (["--dataset", "folder", "--data_dir", "{places}/empty", "--layers", "20"], "'{places}/empty/test'"),
    (["--layers", "20", "--data_dir", "{places}/absent"], "or use --dataset digits, or --dataset folder"),
    (["--layers", "20", "--data_dir", "{places}/torn"], "no usable cifar10 in '{places}/torn'"),
    (["--dataset", "cifar100", "--layers", "20", "--data_dir", "{places}/file"], "no usable cifar100"),
    (["--compact"], "--compact has no effect without --prune_type"),
    (["--prune_type", "unstructured", "--compact"], "--compact takes out whole filters"),
    (["--prune_type", "unstructured", "--target_macs", "0.5"], "--target_macs is for --prune_type structured"),
    (["--prune_type", "unstructured", "--residual", "grouped"], "--residual is for --prune_type structured"),
    ([*STRUCTURED, "--target_macs", "0.5", "--prune_rate", "0.5"], "both say how much"),
    ([*STRUCTURED, "--target_macs", "0.5", "--target_params", "0.5"], "both say how much"),
    ([*STRUCTURED, "--target_macs", "1"], "above 0 and below 1"),
    ([*STRUCTURED, "--round_to", "0"], "at least 1"),
    ([*TINY, *STRUCTURED, "--target_macs", "0.0001"], "--target_macs: 0.0001 of the macs is less than the least"),
    ([*TINY, *STRUCTURED, "--target_params", "0.05", "--round_to", "16"], "--target_params: 0.05 of the parameters is less"),
    ([*STRUCTURED, "--finetune_epochs", "3"], "it needs --compact"),
    ([*STRUCTURED, "--compact", "--finetune_lr", "0.1"], "--finetune_lr has no effect without --finetune_epochs"),
    ([*STRUCTURED, "--export", "m.onnx"], "it needs --compact"),
    ([*STRUCTURED, "--compact", "--export", "m.pth"], "ends in .onnx or .pt2"),
    ([*STRUCTURED, "--compact", "--export", "{places}/used/config.json"], "ends in .onnx or .pt2"),
    ([*STRUCTURED, "--compact", "--export", "{places}/there.onnx"], "there is such a file already"),
    ([*STRUCTURED, "--compact", "--export", "absent/m.onnx"], "no folder 'absent'"),
    ([*STRUCTURED, "--compact", "--export", "m.onnx", "m.onnx"], "names a file twice"),
    ([*STRUCTURED, "--compact", "--dry_run", "--export", "m.onnx"], "--dry_run none"),
    (
        [*STRUCTURED, "--layers", "20", "--shortcut", "pad", "--residual", "grouped", "--round_to", "8"],
        "--round_to does not go with",
    ),
    (["--resume", "{places}/used", "--compact"], "--compact takes out whole filters"),
    (["--evaluate", "absent.pt"], "--evaluate: no file at 'absent.pt'"),
    (["--evaluate", "{places}/file"], "is truncated or no model file"),
    (["--evaluate", "{places}/newer/checkpoint.pt"], "newer than this program's"),
    (["--evaluate", "{places}/file", "--epochs", "3"], "--epochs has no effect with --evaluate"),
    (["--predict", "{places}/file"], "at least one image"),
    (["--predict", "{places}/file", "{places}/file"], "is truncated or no model file"),
    (["--predict", "{places}/file", "absent.png"], "--predict: no file at 'absent.png'"),
    (["--predict", "{places}/file", "{places}/file", "--dataset", "digits"], "--dataset has no effect with --predict"),
    pytest.param(
        ["--dataset", "digits", "--device", "cuda"],
        "choose from",
        marks=pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here"),
    ),
]


def listing(place):
    return sorted((str(path), path.stat().st_size) for path in place.rglob("*") if path.name != ".lock")


@pytest.mark.parametrize(("flags", "words"), CASES)
def test_a_wrong_command_is_refused(flags, words, places, tmp_path, monkeypatch, capsys):
    """In this process, as the program itself: `python modeling.py` with these flags, without network."""

    def no_network(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", no_network)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["modeling.py", *(flag.replace("{places}", str(places)) for flag in flags)])
    before = listing(places)
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / "modeling.py"), run_name="__main__")
    captured = capsys.readouterr()
    assert left.value.code == 2
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("modeling.py: error: ")
    assert words.replace("{places}", str(places)) in line
    assert list(tmp_path.iterdir()) == []
    assert listing(places) == before


def test_there_are_sixty_of_them():
    assert len(CASES) >= 60


def test_in_a_process_of_its_own_it_is_the_same(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "modeling.py", "--prune_typ", "structured"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "modeling.py: error: unknown argument '--prune_typ': did you mean '--prune_type'?\n"
