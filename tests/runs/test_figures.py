"""These tests check what figures show: numbers in maps, one figure a data set, and letters that a font has."""

from types import SimpleNamespace

import matplotlib
import pytest
from matplotlib import font_manager

import sensitivity
from runs import figures, fonts, maps
from runs.fonts import drawing, families_for
from runs.records import Run


def a_run(name, rows=3, **settings):
    settings = {"prune_type": "structured", "epochs": rows, **settings}
    kept = [{"a": 4 - epoch, "b": 8} for epoch in range(rows)]
    made = [{"epoch": number, "valid": {"top1": 50.0}, "kept_filters": kept[number]} for number in range(rows)]
    for row in made:
        row |= {"num_zero": 1, "num_total": 2}
    summary = {"test": {"top1": 50.0}, "left": {"parameters": 1, "macs": 1}, "dense": {"parameters": 2, "macs": 2}}
    return Run(name, {"settings": settings, "filters": {"a": 4, "b": 8}}, made, summary)


def cells(figure):
    """The numbers of a map, by row and column."""
    return {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in figure.axes[0].texts}


def test_a_kept_map_has_numbers_and_the_range_that_occurs():
    with drawing() as pyplot:
        figure = figures.kept_figure(pyplot, a_run("one"))
        assert cells(figure) == {(0, 0): "4", (0, 1): "3", (0, 2): "2", (1, 0): "8", (1, 1): "8", (1, 2): "8"}
        assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a, of 4", "b, of 8"]
        assert figure.axes[0].images[0].get_clim() == (0.5, 1.0)
        pyplot.close(figure)


def test_rounds_and_copies_have_figures_of_their_own(tmp_path):
    run, copies = a_run("one"), a_run("two", prune_type="none")
    run.summary["rounds"] = [{"round": number, "density": 0.8**number, "test": 90.0 - number} for number in range(3)]
    pair = {"places": [0, 0.5, 1], "errors": [10.0, 30.0, 12.0], "half_way": 30.0, "barrier": 19.0}
    copies.summary["connectivity"] = {"split": "0it", "statistics": "measured", "pairs": [pair]}
    with drawing() as pyplot:
        figure = figures.rounds_figure(pyplot, {"one": ("k", "o")}, [run], "digits")
        (line,) = figure.axes[0].lines
        assert line.get_xydata().tolist() == [[100.0, 90.0], [80.0, 89.0], [100 * 0.8**2, 88.0]]
        assert figure.axes[0].get_xlabel() == "left of what is pruned (%)"
        run.summary["rounds"] = [{"round": 1, "density": 1.0, "trained": 0.5, "test": 90.0}]  # what is cut is held
        figure = figures.rounds_figure(pyplot, {"one": ("k", "o")}, [run], "digits")
        assert figure.axes[0].lines[0].get_xydata().tolist() == [[50.0, 90.0]]
        assert figure.axes[0].get_xlabel() == "trained of what is pruned (%)"
        figure = figures.connectivity_figure(pyplot, {"two": ("k", "o")}, [copies], "digits")
        (line,) = figure.axes[0].lines
        assert line.get_ydata().tolist() == pair["errors"]
        assert "barrier 19.0" in line.get_label()
        pyplot.close("all")
    assert {tmp_path / "rounds.png", tmp_path / "connectivity.png"} <= {*figures.draw([run, copies], tmp_path)}


def test_confusions_are_a_map_of_mistakes_with_accuracies_on_the_diagonal(tmp_path):
    run = a_run("one")
    run.summary["test"] |= {
        "classes": {"cat": [60.0, 10], "dog": [90.0, 10]},
        "confusions": {"cat": {"dog": 4}, "dog": {"cat": 1}},
    }
    with drawing() as pyplot:
        figure = figures.confusion_figure(pyplot, run)
        assert cells(figure) == {(0, 0): "60 %", (0, 1): "4", (1, 0): "1", (1, 1): "90 %"}
        assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["cat", "dog"]
        assert figure.axes[0].images[0].get_clim() == (1, 4)
        pyplot.close(figure)
    assert tmp_path / "confusions_one.png" in figures.draw([run], tmp_path)


def test_of_many_classes_those_with_the_most_mistakes_are_shown():
    names = [f"class {number}" for number in range(30)]
    run = a_run("one")
    mistakes = {name: {names[0]: number + 1} for number, name in enumerate(names) if number}
    run.summary["test"] |= {"classes": {name: [50.0, 9] for name in names}, "confusions": mistakes}
    with drawing() as pyplot:
        figure = figures.confusion_figure(pyplot, run)
        assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [names[0], *reversed(names[11:])]
        pyplot.close(figure)


def test_of_many_columns_some_are_numbered_the_ends_among_them():
    with drawing() as pyplot:
        figure = maps.number_map(pyplot, [[0.5] * 300], [["7"] * 300], ["a"], list(map(str, range(300))), "epoch", "kept")
        columns = sorted(column for _, column in cells(figure))
        assert (columns[0], columns[-1], len(columns)) == (0, 299, 12)
        low, high = figure.axes[0].images[0].get_clim()
        assert low < 0.5 < high  # a single value has a colour too
        pyplot.close(figure)


def test_a_scan_is_a_map_of_accuracies(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(sensitivity, "number_map", lambda *arguments: seen.append(arguments[1:4]) or maps.number_map(*arguments))
    sensitivity.draw([0.5, 0.9], 80.0, {"a": [1.0, 60.0], "b": [-0.5, 2.0]}, tmp_path / "scan.png")
    assert seen == [([[79.0, 20.0], [80.5, 78.0]], [["79.0", "20.0"], ["80.5", "78.0"]], ["a", "b"])]
    assert (tmp_path / "scan.png").stat().st_size > 5000


def test_runs_of_different_data_sets_do_not_share_axes(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "curve_figure", lambda pyplot, styles, runs, *_: drawn.append(runs) or pyplot.figure())
    pets, zoo = ({"dataset": "folder", "data_dir": place} for place in ("x/pets", "y/pets"))
    runs = [a_run("a"), a_run("b", dataset="digits"), a_run("c", **pets), a_run("d", **zoo), a_run("e", dataset="cifar10")]
    names = {path.name for path in figures.draw(runs, tmp_path)}
    data_sets = ("cifar10", "digits", "folder_pets", "folder_pets_2_")
    wanted = {f"{what}_{name}.png" for what in ("accuracy", "sparsity", "trade_off") for name in data_sets}
    assert names == wanted | {f"kept_{run.name}.png" for run in runs}
    assert [[run.name for run in together] for together in drawn[::2]] == [["a", "e"], ["b"], ["c"], ["d"]]
    assert {path.name for path in figures.draw(runs[:1], tmp_path)} == {
        "accuracy.png",
        "sparsity.png",
        "trade_off.png",
        "kept_a.png",
    }


@pytest.fixture
def _bundled(monkeypatch):
    """Only the fonts that come with matplotlib, none of which has Korean letters."""
    bundled = [font for font in font_manager.fontManager.ttflist if font.fname.startswith(matplotlib.get_data_path())]
    monkeypatch.setattr(font_manager, "fontManager", SimpleNamespace(ttflist=bundled))
    fonts.say_missing.cache_clear()


@pytest.mark.usefixtures("_bundled")
def test_a_font_with_the_glyphs_is_found():
    assert families_for("plain") == (["sans-serif"], set())
    families, missing = families_for("Ⓐ plain")  # matplotlib's DejaVu Sans has no such letter, STIX has
    assert (families, missing) == (["sans-serif", "STIXGeneral"], set())
    path = font_manager.findfont("STIXGeneral")
    assert fonts.glyphs_in(path, "Ⓐ가") == {"Ⓐ"}


@pytest.mark.usefixtures("_bundled")
def test_letters_that_no_font_has_are_told_once(tmp_path, capsys):
    assert families_for("가지")[1] == {"가", "지"}
    for _ in range(2):
        figures.draw([a_run("가지치기")], tmp_path)  # and matplotlib's own warnings, errors here, are none
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("no font on this machine has glyphs for '가기지치'")
    assert (tmp_path / "kept_가지치기.png").exists()


def test_a_file_that_is_no_font_has_no_glyphs(tmp_path):
    (tmp_path / "no.ttf").write_bytes(b"no font")
    assert fonts.glyphs_in(str(tmp_path / "no.ttf"), "a") == set()
