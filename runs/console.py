"""A run speaks on the console: the published lines and the summary on stdout, notes on stderr."""

import sys

from tqdm import tqdm


def note(settings, line: str) -> None:
    """A line on stderr, past the bar."""
    if not settings.run.quiet:
        tqdm.write(line, file=sys.stderr)


def say_all(*lines: str) -> None:
    """Lines on stdout, which may be a file that somebody follows, past the bar on the terminal."""
    for line in lines:
        tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


def header(settings) -> str:
    """The published first line."""
    rate = settings.pruning.prune_rate if settings.pruning.prune_type != "none" else 0.0
    return f"prune rate {rate} regularization odecay {settings.training.odecay}"


def epoch_lines(row: dict, task) -> list[str]:
    """The published lines of an epoch: the task's, with that of sparsity behind the first."""
    trained, *others = task.epoch_lines(row)
    if "num_zero" not in row:
        return [trained, *others]
    zero, total = row["num_zero"], row["num_total"]
    sparsity = f"sparsity {row['epoch']} ====> {100 * zero / total:.2f}% || num_zero/num_total: {zero}/{total}"
    return [trained, sparsity, *others]


def closing_lines(result: dict, settings, task) -> list[str]:
    """The lines that close a run. None begins with train, valid or sparsity; the last one is the published list."""
    lines = task.result_lines(result)
    if again := result.get("recalibration"):
        lines.append(
            f"result recalibration: accuracy {again['before']:.2f} before, {again['after']:.2f} after "
            f"{again['batches']} batches (where validated)"
        )
    lines += _left_lines(result, settings)
    lines += _compact_lines(result)
    lines.append(f"result seconds: {result['seconds']} of training, epochs 0 to {result['last']['epoch']}")
    return [*lines, task.last_line(result["best"])]


def _left_lines(result: dict, settings) -> list[str]:
    """What is left of the network, and what was asked to be left."""
    pruning, lines = settings.pruning, []
    # the results of older runs do not say
    removable = result.get("removable", pruning.prune_type != "unstructured")
    exact = result.get("exact", pruning.prune_gate != "weight")
    how = "left after removal" if removable else "not zero"
    if settings.ending.compact:
        how = "left"
    elif removable and not exact:
        how = "left after removal, which is not exact at this gate: batch norm's bias still passes"
    for name, word in (("filters", "filters"), ("parameters", "parameters"), ("macs", "MACs")):
        left, of = result["left"][name], result["dense"][name]
        lines.append(f"result {word}: {left} of {of} ({100 * left / of:.2f} %) {how}")
    for name, target in (("MACs", pruning.target_macs), ("parameters", pruning.target_params)):
        if target is not None:
            got = result["left"][name.lower()] / result["dense"][name.lower()]
            lines.append(f"result budget: asked for {100 * target:.2f} % of the {name}, got {100 * got:.2f} %")
    return lines


def _compact_lines(result: dict) -> list[str]:
    """What removal, saving, timing and exporting came to."""
    lines = []
    if removal := result.get("removal"):
        how = "the same outputs" if removal["exact"] else "NOT exact at --prune_gate weight"
        lines.append(
            f"result removal: {how}: largest difference {removal['difference']:.1e} of outputs up to "
            f"{removal['largest_output']:.3g}; {removal['same']} of {removal['images']} predictions the same"
        )
    if file := result.get("file"):
        lines.append(f"result file: {file['file']}, {file['bytes'] / 1e6:.3f} MB, dense {file['dense_bytes'] / 1e6:.3f} MB")
    gain = result["dense"]["macs"] / max(result["left"]["macs"], 1)
    for row in result.get("speed", ()):
        dense, compact = row["dense"], row["compact"]
        line = f"result latency: {row['engine']}, batch {row['batch']}: {compact['ms']:.2f} ms, dense {dense['ms']:.2f} ms, "
        line += f"{dense['ms'] / compact['ms']:.2f} times as fast ({gain:.2f} in MACs)"
        if "peak_mb" in dense:
            line += f", peak memory {compact['peak_mb']:.1f} MB, dense {dense['peak_mb']:.1f} MB"
        lines.append(line + f"; {row['where']}")
    return lines + [export_line(exported) for exported in result.get("exports", ())]


def export_line(exported: dict) -> str:
    """What came of one export."""
    return (
        f"result export: {exported['file']}, {exported['bytes'] / 1e6:.3f} MB, "
        f"differs by {exported['difference']:.1e} of the largest output from PyTorch"
        f"{'; ' + exported['form'] if 'form' in exported else ''}"
    )


def duration(seconds: float) -> str:
    """For people: 45 s, 12 min, 3.5 h."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
