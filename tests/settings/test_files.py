"""Only regular files are read, at once, and what is wrong with a file is told apart."""

import errno
import os
import signal

import pytest
from conftest import TINY, TINY_DATA, run_program

import modeling
import report
from settings import files
from settings.arguments import parse
from settings.errors import Refused, guard, one_line
from settings.files import Damaged, Missing, nowhere, read_json, read_whole
from settings.schema import PLAIN
from tasks.pictures import read_pictures

pytestmark = pytest.mark.core


@pytest.fixture(autouse=True)
def _at_once():
    """Nothing here may wait for the other end of a pipe."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(30)
    yield
    signal.alarm(0)


@pytest.mark.parametrize("what", ["pipe", "device", "folder"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, what):
    path = tmp_path / "it"
    {"pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "folder": os.mkdir}[what](path)
    with pytest.raises(Refused, match=r"no regular file|is a folder") as caught:
        read_json(path, "scan", PLAIN)
    assert not isinstance(caught.value, Missing | Damaged)


def test_troubles_are_told_apart(tmp_path, monkeypatch):
    path = tmp_path / "it"
    with pytest.raises(Missing, match="no scan at"):
        read_json(path, "scan", PLAIN)
    path.write_text("{")
    with pytest.raises(Damaged, match="is damaged, or no scan"):
        read_json(path, "scan", PLAIN)
    with pytest.raises(Refused, match="has 1 bytes, more than any scan"):
        read_whole(path, "scan", 0)

    for number, words in (
        (errno.EIO, "Input/output error"),
        (errno.EACCES, "Permission denied"),
        (errno.ENAMETOOLONG, "too long"),
    ):
        monkeypatch.setattr(files.os, "open", lambda *_, number=number: broken_open(number))
        with pytest.raises(Refused, match=f"cannot read .*{words}") as caught:
            read_whole(path, "scan", 9)
        assert not isinstance(caught.value, Missing | Damaged)


def broken_open(number):
    raise OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    "flags",
    [
        ["--init", "{it}", *TINY],
        ["--scratch", "{it}", *TINY_DATA],
        ["--evaluate", "{it}"],
        ["--predict", "{it}", "{it}"],
        ["--resume", "{it}"],
        ["--resume", "run"],
        [*TINY, "--prune_type", "structured", "--prune_scope", "sensitivity(file='{it}')"],
        [*TINY, "--prune_type", "structured", "--prune_scope", "preset(name='{it}')"],
    ],
    ids=lambda flags: flags[0] + flags[-1][:8],
)
def test_a_pipe_in_the_place_of_a_file_is_one_line(tmp_path, monkeypatch, flags):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("it")
    os.mkdir("run")
    os.mkfifo("run/config.json")
    with pytest.raises(Refused):
        run_program(*(word.replace("{it}", "it") for word in flags))


def test_a_pipe_among_pictures_and_records_is_one_line(tmp_path, capsys):
    for name in ("0.png", "config.json"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(Refused, match="no regular file"):
        read_pictures([str(tmp_path / "0.png")], 8)
    assert report.main([str(tmp_path), "--no_plots"]) == 2
    assert "no regular file" in capsys.readouterr().err


def test_a_name_that_does_not_exist_says_where_it_was_looked_for(tmp_path, monkeypatch):
    (tmp_path / "result" / "dense").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused) as caught:
        parse(["--resume", "reslt/dense"])
    whole = tmp_path / "reslt" / "dense"
    assert str(caught.value) == (
        f"--resume: no run in 'reslt/dense' (looked for {whole}): did you mean 'result' in '{tmp_path}'?"
    )
    assert nowhere(tmp_path / "zzzzzz") == f"'{tmp_path / 'zzzzzz'}'"
    assert nowhere("a\0b").startswith("'a\0b'")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\r\x1b[31m", "a\\nb\\r\\x1b[31m"),
        ("\udcff \u202e", "\\udcff \\u202e"),
        ("결과/모델.pt é", "결과/모델.pt é"),
    ],
)
def test_a_message_is_one_line_whatever_is_in_a_name(capsys, text, shown):
    assert one_line(text) == shown
    with pytest.raises(SystemExit), guard("some.py"):
        raise Refused(text)
    assert capsys.readouterr().err == f"some.py: error: {shown}\n"


def test_a_name_that_is_too_long_is_one_line(capsys):
    for flags in (["--resume", "x" * 300], ["--init", "x" * 300], ["--evaluate", "x" * 300]):
        with pytest.raises(SystemExit) as ended, guard("modeling.py"):
            modeling.start(parse(flags))
        assert ended.value.code in (1, 2)
        assert capsys.readouterr().err.count("\n") == 1
