"""These tests run what the page on your own pictures shows, in both of its languages."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, TINY, TINY_DATA, run_program
from PIL import Image

PAGES = {name: (ROOT / "tasks" / name).read_text(encoding="utf-8") for name in ("README.md", "README.ko.md")}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.MULTILINE | re.DOTALL)


def test_both_languages_show_the_same_commands():
    assert blocks("README.ko.md", "python") == blocks("README.md", "python")
    assert len(blocks("README.ko.md", "python")) == 1
    assert blocks("README.ko.md", "sh") != []
    assert {*blocks("README.ko.md", "sh")} <= {*blocks("README.md", "sh")}
    for name in re.findall(r"\]\(([\w.]+)", PAGES["README.ko.md"]):
        assert (ROOT / "tasks" / name).exists()
    prose = re.sub(r"^```.*?^```", "", PAGES["README.ko.md"], flags=re.MULTILINE | re.DOTALL)
    for flag in re.findall(r"--[a-z_]+", prose):
        assert f"{flag}" in PAGES["README.md"]


@pytest.mark.parametrize("taken", ["bytes", "normalised"])
@pytest.mark.parametrize("channels", ["1", "3"])
def test_the_script_names_the_class(taken, channels, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pruned = ["--prune_type", "structured", "--prune_rate", "0.3", "--compact", "--quiet", "--channels", channels]
    run_program(*TINY, *pruned, "--export", "photos.onnx", "--export_input", taken, "--out_dir", "run")
    (source,) = blocks("README.md", "python")
    Path("classify.py").write_text(source)
    picture = Image.open(next(Path(TINY_DATA[3]).glob("test/red/*.png")))
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    picture.resize((31, 22)).save("turned.png", exif=exif)
    capsys.readouterr()
    run_program("--predict", "run/model.pt", "turned.png")
    wanted = re.match(r"turned\.png: (\w+) ", capsys.readouterr().out)[1]
    done = subprocess.run([sys.executable, "classify.py", "photos.onnx", "turned.png"], capture_output=True, text=True)
    assert done.stdout == f"{wanted}\n", done.stderr
