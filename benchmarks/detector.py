"""This benchmark prunes a detector in phases and at once: `python benchmarks/detector.py RUN`.

RUN is the folder of a dense run of modeling.py on pictures with boxes. Its network is pruned by the multi-layer framework of
Singh et al., 2019 (arXiv 1811.08342), in --phases phases; and, to the MACs that these leave, at once by the L1 norm. Both are
trained for --epochs epochs in all. Each run is a command of modeling.py with a folder of its own in --out, and goes on where it
was stopped. The table is written to --table; --sheet is a picture of the first test pictures, with the boxes of the
annotations, and with those that each network finds.
"""

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.records import conditions, ended, machine_flags, run_in  # noqa: E402
from deploy.opening import opened  # noqa: E402
from deploy.use import predictions, test_data, with_boxes  # noqa: E402
from runs.fonts import drawing, picture_of  # noqa: E402
from runs.records import Run  # noqa: E402
from runs.speed_lines import too_wide  # noqa: E402
from runs.storage import replace  # noqa: E402
from runs.tables import write_table  # noqa: E402
from settings.arguments import parse  # noqa: E402
from settings.earlier import saved_settings  # noqa: E402
from settings.errors import Refused, guard  # noqa: E402
from tasks import Said  # noqa: E402

PHASES, AT_ONCE = "phases", "L1"
ASKED = ("epochs", "lr", "weight_decay", "phases", "odecay", "prune_imp")  # what both runs are made by


def flags_of(options, name: str) -> list[str]:
    """The flags that begin the run of this name; that of L1 needs the ended one of the phases."""
    training = {"epochs": options.epochs, "lr": options.lr, "lr_schedule": "cosine", "weight_decay": options.weight_decay}
    training |= {"batch_size": saved_settings(Path(options.run))["batch_size"]}
    flags = ["--init", options.run, *(word for flag, value in training.items() for word in (f"--{flag}", str(value)))]
    if name == PHASES:
        flags += ["--procedure", f"multilayer(phases={options.phases})", "--prune_imp", options.prune_imp]
        return [*flags, "--odecay", str(options.odecay), "--compact"]
    left = ended(options.out / PHASES).share("macs")
    return [*flags, "--prune_type", "structured", "--prune_phase", "init", "--target_macs", str(left), "--compact"]


def check(options) -> None:
    """Raise Refused for a RUN that is no dense detector's, for flags that are none, and for runs that were begun otherwise."""
    run = ended(Path(options.run))
    if run.metric != "mAP" or run.pruned:
        raise Refused(f"'{options.run}' is no dense run on pictures with boxes")
    if not saved_settings(Path(options.run))["val_size"]:
        raise Refused(f"'{options.run}' holds no images out (--val_size), on which the phases are measured")
    for folder in (options.table.parent, options.sheet.parent):
        if not folder.is_dir():
            raise Refused(f"no folder at '{folder}' for the page and the sheet")
    for name in ("phases", "pictures"):
        if getattr(options, name) < 1:
            raise Refused(f"--{name} is at least 1")
    _begun_alike(options, PHASES)
    if (options.out / PHASES / "summary.json").exists():
        _begun_alike(options, AT_ONCE)


def _begun_alike(options, name: str) -> None:
    """Raise Refused for flags that are none, and for the folder of a run that was begun by others."""
    asked, folder = parse(flags_of(options, name)), options.out / name
    then = saved_settings(folder)
    for flag, value in asked.typed.items() if then else ():
        if then[flag] != value:
            raise Refused(f"'{folder}' has --{flag} {then[flag]}, not {value}: name another --out")


def rows_of(run: Run, network: str) -> list[dict]:
    """The rows of a pruned run: one for the end of each retraining, the last one with the test images, the time and the file."""
    last = {row["stage"]: row for row in run.rows}
    selections = {record["stage"]: record for record in run.summary.get("selections", ())}
    rows = []
    for stage, row in last.items():
        if stage not in selections and len(last) > 1:  # a stage with the penalty cuts nothing
            continue
        cut = selections.get(stage, {})
        rows.append(_cells(f"{network}, {stage.split(',')[0]}" if cut else network, row))
        rows[-1] |= {"mAP before the cut": cut.get("before", []), "behind it": cut.get("after", [])}
    rows[-1] |= _ends(run)
    return rows


def _cells(network: str, row: dict) -> dict:
    """The cells of an epoch's row that every network has; what others add is a dash in the table until they do."""
    cells = {"network": network}
    cells |= {
        f"{word} left %": 100 * row.get(name, 1.0) for word, name in (("parameters", "parameters_left"), ("MACs", "macs_left"))
    }
    cells |= {"mAP before the cut": [], "behind it": [], "held-out mAP": row["valid"]["mAP"], "AP50": row["valid"]["AP50"]}
    return cells | {"test mAP": [], "test AP50": [], "ms a picture": [], "file, MB": []}


def _ends(run: Run) -> dict:
    """The cells of a run that has ended: what is left, the measures on the test images, the time of one picture, the file."""
    cells = {"parameters left %": 100 * run.share("parameters"), "MACs left %": 100 * run.share("macs")}
    cells |= {"test mAP": run.summary["test"]["mAP"], "test AP50": run.summary["test"]["AP50"]}
    cells["file, MB"] = f"{run.summary['file']['bytes'] / 1e6:.3f}"
    for row in run.summary.get("speed", ()):
        if row["batch"] == 1:  # the last engine, onnxruntime where there is one
            cells["ms a picture"] = f"{row['compact']['ms']:.2f} (dense {row['dense']['ms']:.2f})"
            if too_wide(row):
                cells["ms a picture"] += ", TOO WIDE"
    return cells


def table(dense: Run, phases: Run, at_once: Run) -> str:
    """The table: the dense network, what each phase leaves, and what the L1 norm leaves at the same MACs."""
    whole = _cells("dense", dense.rows[-1]) | _ends(dense)
    return write_table([whole, *rows_of(phases, "multi-layer"), *rows_of(at_once, "L1 at once")], "markdown")


def page(options, dense: Run, tabulated: str) -> str:
    """The page: the command, what was measured, the table and the sheet."""
    settings, images = dense.config["settings"], dense.config["data"]["images"]
    asked = {name: getattr(options, name) for name in ASKED}
    sheet = os.path.relpath(options.sheet, options.table.parent)
    return (
        f"# A detector, pruned in phases and at once\n\n`python benchmarks/detector.py {options.run}` wrote this page\n"
        f"({conditions(asked)}).\n"
        f"`{settings['arch']}` on {Path(settings['data_dir']).name}: {images['train'][0]} pictures were trained, "
        f"{images['held_out'][0]} held out,\n{dense.summary['test']['images']} are test pictures; the dense network was trained "
        f"for {len(dense.rows)} epochs. Average precisions in %,\nafter the last epoch. Times are medians on the CPU, in "
        f"float32, beside the dense network's.\n\n{tabulated}\n\n"
        f"![{options.pictures} test pictures: their boxes, and those that are found]({sheet})\n"
    )


def draw_sheet(options, models: dict[str, Path]) -> None:
    """Draw the first test pictures in columns: their true boxes, then a row of those that each network finds."""
    settings = parse(["--evaluate", str(next(iter(models.values()))), *machine_flags(options)])
    networks = {name: opened(str(model)).to(options.device) for name, model in models.items()}
    card = next(iter(networks.values())).card
    test = test_data(settings, card, options.device).as_known_to(card)
    paths, rows = test.paths[: options.pictures], {"annotations": []}
    for (width, height), boxes in zip(test.sizes, test.targets[: len(paths)], strict=False):
        names = [card.classes[int(label) - 1] for label in boxes[:, 4]]
        corners = (boxes[:, :4] * boxes.new_tensor([width, height, width, height])).tolist()
        rows["annotations"].append([Said("", tuple(box), name) for box, name in zip(corners, names, strict=True)])
    for name, network in networks.items():
        rows[name] = [predictions(network, path, options.device) for path in paths]
    with drawing() as pyplot:
        figure, panels = pyplot.subplots(len(rows), len(paths), figsize=(3.2 * len(paths), 2.6 * len(rows)), squeeze=False)
        for line, (name, said) in zip(panels, rows.items(), strict=True):
            for axes, path, found in zip(line, paths, said, strict=True):
                axes.imshow(with_boxes(path, found, card.classes).permute(1, 2, 0).numpy())
                axes.set(xticks=[], yticks=[])
            line[0].set_ylabel(name)
        figure.tight_layout()
        replace(options.sheet, picture_of(figure, dpi=65))
        pyplot.close(figure)


def main(argv: list[str]) -> None:
    """Carry out the runs that have not ended, and write the page and the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", help="folder of a dense run on pictures with boxes")
    parser.add_argument("--epochs", type=int, default=60, help="of all phases together, and behind L1 (default 60)")
    parser.add_argument("--lr", type=float, default=0.001)
    parser.add_argument("--weight_decay", type=float, default=5e-4)
    parser.add_argument("--phases", type=int, default=4, help="sets of layers (default 4)")
    parser.add_argument("--odecay", type=float, default=1e-4, help="weight of the L1 norm in the loss (default 1e-4)")
    imp = "zero_fraction(counts='multilayer')"
    parser.add_argument("--prune_imp", default=imp, help=f"its constants are options of the criterion (default {imp})")
    parser.add_argument("--pictures", type=int, default=4, help="test pictures on the sheet (default 4)")
    parser.add_argument("--data_dir", help="default: the run's own")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=Path("result/detector"), help="the folder of the runs' folders")
    parser.add_argument("--table", type=Path, default=Path("benchmarks/detector.md"))
    parser.add_argument("--sheet", type=Path, default=Path("benchmarks/plots/detector.png"))
    options = parser.parse_args(argv)
    options.run = str(Path(options.run))
    check(options)
    runs = [run_in(options.out / name, flags_of(options, name), machine_flags(options)) for name in (PHASES, AT_ONCE)]
    dense = ended(Path(options.run))
    tabulated = table(dense, *runs)
    folders = {"dense": Path(options.run), "multi-layer": options.out / PHASES, "L1 at once": options.out / AT_ONCE}
    draw_sheet(options, {name: folder / "model.pt" for name, folder in folders.items()})
    options.table.write_text(page(options, dense, tabulated), encoding="utf-8")
    print(tabulated)


if __name__ == "__main__":
    with guard("detector.py"):
        main(sys.argv[1:])
