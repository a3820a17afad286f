"""These tests check tables against metrics computed by hand, and that figures are really drawn."""

import csv
import json
from pathlib import Path

from PIL import Image

import report


def make_run(folder, *, seed=0, accuracies=(50.0, 70.0, 60.0), test=61.0, ended=True, pruned=True, epochs=3, **settings):
    folder.mkdir(parents=True)
    settings = {"prune_type": "structured" if pruned else "none", "prune_rate": 0.5, "epochs": epochs, "seed": seed, **settings}
    command = f"python modeling.py --seed {seed}"
    (folder / "config.json").write_text(json.dumps({"settings": settings, "filters": {"a": 4, "b": 8}, "command": command}))
    rows = []
    for epoch, accuracy in enumerate(accuracies):
        row = {"epoch": epoch, "train": {"top1": accuracy + 1}, "valid": {"top1": accuracy}, "seconds": 10.0}
        if pruned:
            row |= {"num_zero": 30 + epoch, "num_total": 120, "cut": 6, "mask_changes": 6 if epoch == 0 else epoch}
            row |= {"kept_filters": {"a": 1, "b": 5}}
        rows.append(row)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if ended:
        dense = {"filters": 12, "parameters": 1200, "macs": 50_000}
        left = {"filters": 6, "parameters": 300, "macs": 20_000} if pruned else dense
        (folder / "summary.json").write_text(json.dumps({"dense": dense, "left": left, "test": {"top1": test}}))
    return folder


def table(capsys, *arguments):
    plots = [] if "--plots" in arguments else ["--no_plots"]
    assert report.main([*map(str, arguments), *plots]) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


def cells(out):
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines()]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_a_rate_that_nobody_named_is_not_zero(tmp_path, capsys):
    """A budget, a procedure such as `control` or a file has said what goes; a typed 0 is one."""
    runs = {
        "budget": {"target_macs": 0.4},
        "control": {"prune_rate": 0.0},
        "typed": {"prune_rate": 0.0, "typed": {"prune_rate": 0.0}, "epochs": 4},
    }
    for name, settings in runs.items():
        make_run(tmp_path / name, **settings)
    make_run(tmp_path / "dense", pruned=False)
    out, _ = table(capsys, *(tmp_path / name for name in (*runs, "dense")))
    assert {row["run"]: row["rate asked"] for row in cells(out)} == {
        "budget": "-",
        "control": "-",
        "typed": "0.00",
        "dense": "0.00",
    }


def test_one_run(tmp_path, capsys):
    out, _ = table(capsys, make_run(tmp_path / "one"))
    (row,) = cells(out)
    assert row == {
        "run": "one",
        "n": "1",
        "rate asked": "0.50",
        "rate got": "0.50",
        "accuracy last %": "60.00",
        "accuracy best %": "70.00",
        "test accuracy %": "61.00",
        "weights left %": "-",
        "filters left": "6",
        "filters left %": "50.00",
        "parameters left": "300",
        "parameters left %": "25.00",
        "MACs left": "20,000",
        "MACs left %": "40.00",
        "mask changes an epoch": "1.50",
        "seconds": "30.00",
        "command": "`python modeling.py --seed 0`",
    }


def test_seeds_are_one_row_with_mean_and_spread(tmp_path, capsys):
    folders = [make_run(tmp_path / f"run{seed}", seed=seed, test=60.0 + seed) for seed in (1, 2, 3)]
    dense = make_run(tmp_path / "dense", pruned=False)
    out, _ = table(capsys, *folders, dense)
    first, second = cells(out)
    assert (first["n"], first["test accuracy %"], first["accuracy last %"]) == ("3", "62.00 ± 1.00", "60.00 ± 0.00")
    assert (second["run"], second["rate got"], second["MACs left %"]) == ("dense", "0.00", "100.00")
    assert second["mask changes an epoch"] == "-"


def test_the_same_seed_twice_is_one_seed(tmp_path, capsys):
    (row,) = cells(table(capsys, make_run(tmp_path / "a", quiet=False), make_run(tmp_path / "b", quiet=True))[0])
    assert row["n"] == "1"


def test_a_run_whose_epochs_grew_is_a_row_of_its_own(tmp_path, capsys):
    whole, grown = make_run(tmp_path / "whole"), make_run(tmp_path / "grown", seed=1)
    config = json.loads((grown / "config.json").read_text())
    config["resumed"] = [{"changed": ["epochs was 2, is 3"]}]
    (grown / "config.json").write_text(json.dumps(config))
    assert [row["run"] for row in cells(table(capsys, whole, grown)[0])] == ["whole", "grown"]


def test_folders_of_the_same_name_are_told_apart(tmp_path, capsys):
    folders = [make_run(tmp_path / part / "run", lr=number) for number, part in enumerate("ab")]
    out, err = table(capsys, *folders, "--plots", tmp_path / "plots")
    assert [row["run"] for row in cells(out)] == ["run", "run (2)"]
    assert {"kept_run.png", "kept_run_2_.png"} <= {Path(line).name for line in err.splitlines()}


def test_a_half_written_end_is_an_unfinished_run(tmp_path, capsys):
    folder = make_run(tmp_path / "one")
    (folder / "metrics.jsonl").write_text((folder / "metrics.jsonl").read_text()[:-40])
    (folder / "summary.json").write_text('{"dense": {')
    assert cells(table(capsys, folder)[0])[0]["run"] == "one (unfinished: 2 of 3)"


def test_unstructured_rates_are_those_of_prunable_weights(tmp_path, capsys):
    folder = make_run(tmp_path / "one")
    config = json.loads((folder / "config.json").read_text())
    config["settings"]["prune_type"], config["prunable"] = "unstructured", 8
    (folder / "config.json").write_text(json.dumps(config))
    assert cells(table(capsys, folder)[0])[0]["rate got"] == "0.75"


def test_another_setting_is_another_row(tmp_path, capsys):
    out, _ = table(capsys, make_run(tmp_path / "a", lr=0.1), make_run(tmp_path / "b", lr=0.2))
    assert [row["run"] for row in cells(out)] == ["a", "b"]


def test_a_flag_that_an_older_run_did_not_know_was_at_its_default(tmp_path, capsys):
    newer = make_run(tmp_path / "newer", seed=1, optimizer="sgd", procedure="once")
    other = make_run(tmp_path / "other", seed=2, optimizer="adam", procedure="once")
    out, _ = table(capsys, make_run(tmp_path / "older"), newer, other)
    assert [(row["run"], row["n"]) for row in cells(out)] == [("older", "2"), ("other", "1")]


def test_unfinished_runs_are_marked_and_stay(tmp_path, capsys):
    whole = make_run(tmp_path / "whole")
    half = make_run(tmp_path / "half", accuracies=(50.0,), ended=False)
    fresh = make_run(tmp_path / "fresh", accuracies=(), ended=False)
    out, _ = table(capsys, whole, half, fresh)
    rows = cells(out)
    assert [row["run"] for row in rows] == ["whole", "half (unfinished: 1 of 3)", "fresh (unfinished: 0 of 3)"]
    assert (rows[1]["accuracy last %"], rows[1]["test accuracy %"]) == ("50.00", "-")
    assert rows[2]["accuracy last %"] == "-"


def test_best_is_an_epoch_at_the_rate(tmp_path, capsys):
    folder = make_run(tmp_path / "ramp")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows[1]["cut"] = 3  # the best epoch came before the rate was reached
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cells(table(capsys, folder)[0])[0]["accuracy best %"] == "60.00"


def test_filters_kept_per_layer(tmp_path, capsys):
    out, _ = table(capsys, make_run(tmp_path / "one"), make_run(tmp_path / "dense", pruned=False), "--layers")
    assert cells(out) == [{"layer": "a", "filters": "4", "one": "1"}, {"layer": "b", "filters": "8", "one": "5"}]
    assert report.main([str(tmp_path / "dense"), "--layers", "--no_plots"]) == 2


def test_other_formats(tmp_path, capsys):
    folders = [make_run(tmp_path / f"run{seed}", seed=seed, test=60.0 + seed) for seed in (1, 2)]
    (row,) = json.loads(table(capsys, *folders, "--format", "json")[0])
    assert row["test accuracy %"] == [61.0, 62.0]
    (row,) = csv.DictReader(table(capsys, *folders, "--format", "csv")[0].splitlines())
    assert (row["n"], row["test accuracy %"]) == ("2", "61.0; 62.0")


def test_other_paths_are_passed_over_and_none_is_refused(tmp_path, capsys):
    (tmp_path / "result.txt").write_text("prune rate")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    for number, content in enumerate(("{}", "[]", '{"settings": {"epochs": 3}}')):
        (tmp_path / f"odd{number}").mkdir()
        (tmp_path / f"odd{number}" / "config.json").write_text(content)
    odd = [tmp_path / f"odd{number}" for number in range(3)]
    out, err = table(capsys, make_run(tmp_path / "one"), tmp_path / "result.txt", tmp_path / "broken", *odd)
    assert len(cells(out)) == 1
    assert err.count("passed over") == 5
    assert report.main([str(tmp_path / "result.txt")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1] == "report.py: error: none of these is the folder of a run"


def test_figures_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert report.main([str(make_run(tmp_path / "one")), "--plots", str(tmp_path / "file")]) == 1
    assert "cannot write figures" in capsys.readouterr().err


def test_figures(tmp_path, capsys):
    runs = [make_run(tmp_path / "one"), make_run(tmp_path / "dense", pruned=False), make_run(tmp_path / "half", ended=False)]
    _, err = table(capsys, *runs, "--plots", tmp_path / "plots")
    written = {Path(line) for line in err.splitlines()}
    assert {path.name for path in written} == {"accuracy.png", "sparsity.png", "trade_off.png", "kept_one.png", "kept_half.png"}
    for path in written:
        with Image.open(path) as image:
            assert image.width > 500
            assert len(image.convert("RGB").getcolors(10_000_000)) > 20  # not an empty page


def test_each_metric_has_columns_of_its_own(tmp_path, capsys):
    make_run(tmp_path / "images", test=61.0)
    boxes = make_run(tmp_path / "boxes", test=12.0, accuracies=(9.0, 11.0, 10.0), epochs=4)
    for file in boxes.iterdir():
        file.write_text(file.read_text().replace('"top1"', '"mAP"'))
    config = json.loads((boxes / "config.json").read_text())
    (boxes / "config.json").write_text(json.dumps(config | {"metric": "mAP"}))
    out, _ = table(capsys, tmp_path / "images", boxes)
    first, second = cells(out)
    assert [first[f"{word} %"] for word in ("test accuracy", "accuracy last", "test mAP", "mAP best")] == [
        "61.00",
        "60.00",
        "-",
        "-",
    ]
    assert [second[f"{word} %"] for word in ("test accuracy", "mAP last", "test mAP", "mAP best")] == [
        "-",
        "10.00",
        "12.00",
        "11.00",
    ]
