"""A run speaks on the console: the published lines and the summary on stdout, notes on stderr."""

import sys

from tqdm import tqdm

from runs.factor_lines import WORDS, factorised_line
from runs.records import weights_left
from runs.speed_lines import latency_line, spread
from settings.errors import one_line
from settings.meaning import makes_smaller

STABLE = 2.0  # copies are connected where the barrier between them is lower, in % of error (Frankle et al., 2020)


def note(settings, line: str) -> None:
    """Print a line on stderr without breaking the progress bar, unless --quiet is set."""
    if not settings.run.quiet:
        tqdm.write(one_line(line), file=sys.stderr)


def say_all(*lines: str) -> None:
    """Print lines on stdout without breaking the progress bar, and flush them: somebody may follow the file."""
    for line in lines:
        tqdm.write(one_line(line), file=sys.stdout)
    sys.stdout.flush()


def header(settings) -> str:
    """The published first line, which says the rate and the weight of the regulariser."""
    rate = settings.pruning.prune_rate if settings.pruning.prune_type != "none" else 0.0
    return f"prune rate {rate} regularization odecay {settings.training.odecay}"


def epoch_lines(row: dict, task) -> list[str]:
    """The published lines that tell an epoch's row: the task's lines, with the line of sparsity after the first."""
    trained, *others = task.epoch_lines(row)
    if "num_zero" not in row:
        return [trained, *others]
    zero, total = row["num_zero"], row["num_total"]
    sparsity = f"sparsity {row['epoch']} ====> {100 * zero / total:.2f}% || num_zero/num_total: {zero}/{total}"
    return [trained, sparsity, *others]


def closing_lines(result: dict, settings, task) -> list[str]:
    """The lines that tell a run's result. None begins with train, valid or sparsity; the last is the published list."""
    lines = task.result_lines(result)
    if kept := result.get("kept"):
        held_out = f"{task.word} {kept['valid']:.2f} on the held-out images, {kept['last']:.2f} after the last epoch"
        lines.append(f"result kept: the weights after epoch {kept['epoch']}, {held_out}")
    if recalibration := result.get("recalibration"):
        lines.append(
            f"result recalibration: {task.word} {recalibration['before']:.2f} before, {recalibration['after']:.2f} after "
            f"{recalibration['batches']} batches (where validated)"
        )
    lines += [f"result {selected_line(record, task.word)}" for record in result.get("selections", ())]
    lines += [f"result {round_line(record, task.word)}" for record in result.get("rounds", ())]
    lines += [f"result {generation_line(record, task.word)}" for record in result.get("generations", ())]
    lines += [f"result {line}" for line in connectivity_lines(result["connectivity"])] if "connectivity" in result else []
    lines += [f"result collapse: {line}"] if (line := collapse_line(result.get("collapse"))) else []
    lines += _size_lines(result, settings)
    lines += _compact_lines(result, task.word) + _form_lines(result, task.word)
    if "last" not in result:
        return lines  # nothing was trained
    lines.append(f"result seconds: {result['seconds']} of training, epochs 0 to {result['last']['epoch']}")
    return [*lines, task.last_line(result["best"])]


def _size_lines(result: dict, settings) -> list[str]:
    """The lines that say how many filters, parameters and MACs the network keeps, and how many were asked for."""
    pruning, lines = settings.pruning, []
    # the results of older runs lack both: there, one granularity was not removable and one gate not exact
    removable = result.get("removable", pruning.prune_type != "unstructured")
    exact = result.get("exact", not pruning.prune_gate.startswith("weight"))
    how = "left after removal" if removable else "not zero"
    if makes_smaller(settings):
        how = "left"
    elif removable and not exact:
        how = "left after removal, which is not exact at this gate: batch norm's bias still passes"
    counts = {word: (result["left"][name], result["dense"][name], how) for name, word in WORDS.items()}
    if (weights := weights_left(result)) is not None:
        counts = {"prunable weights": (*weights, how), **counts}
        fewer = counts["MACs"][1] / max(counts["MACs"][0], 1)
        counts["MACs"] = (*counts["MACs"][:2], f"{how}, {fewer:.2f} times fewer if a product with 0 costs nothing")
        counts["parameters"] = (*counts["parameters"][:2], f"{how}, with biases and batch norm")
    for word, (kept, dense, comment) in counts.items():
        if dense and (word != "filters" or "factorisation" not in result):  # linear layers have none, and factors others
            lines.append(f"result {word}: {kept} of {dense} ({100 * kept / dense:.2f} %) {comment}")
    if whole := result.get("architecture"):
        shares = (f"{100 * result['left'][name] / whole[name]:.2f} % of the {WORDS[name]}" for name in ("parameters", "macs"))
        lines.append(f"result of a whole {settings.network.arch}: {', '.join(shares)} {how}")
    lines += [
        f"result dropout: {name} {rates['rate']:.4g}, {rates['original']:.4g} before weights were cut"
        for name, rates in result.get("dropout", {}).items()
        if weights is not None
    ]
    for name, target in (("MACs", pruning.target_macs), ("parameters", pruning.target_params)):
        if target is not None:
            kept = result["left"][name.lower()] / result["dense"][name.lower()]
            lines.append(f"result budget: asked for {100 * target:.2f} % of the {name}, got {100 * kept:.2f} %")
    return lines


def _compact_lines(result: dict, word: str) -> list[str]:
    """The lines that tell what came of removing filters, saving, timing and exporting; empty without any of it."""
    lines = []
    if removal := result.get("removal"):
        how = "the same outputs" if removal["exact"] else "NOT exact at --prune_gate weight"
        lines.append(
            f"result removal: {how}: largest difference {removal['difference']:.1e} of outputs up to "
            f"{removal['largest_output']:.3g}; {removal['same']} of {removal['images']} predictions the same"
        )
    lines += [f"result {factorised_line(result['factorisation'], word)}"] if "factorisation" in result else []
    if file := result.get("file"):
        dense = f", dense {file['dense_bytes'] / 1e6:.3f} MB" if "dense_bytes" in file else ""
        lines.append(f"result file: {file['file']}, {file['bytes'] / 1e6:.3f} MB{dense}")
    gain = result["dense"]["macs"] / max(result["left"]["macs"], 1)
    lines += [latency_line(row, gain) for row in result.get("speed", ())]
    return lines + [export_line(exported) for exported in result.get("exports", ())]


def _form_lines(result: dict, word: str) -> list[str]:
    """The lines that tell what came of --form; empty without it."""
    form = result.get("form")
    if form is None:
        return []
    parts = ", ".join(f"{part} {bits / 8 / form['bytes']:.1%}" for part, bits in form["bits"].items() if bits)
    times = form["dense_bytes"] / form["bytes"]
    size = f"result form: {form['file']}, {form['bytes']} bytes, {times:.1f} times smaller than dense float32"
    if "float_bytes" in form:
        size += f", {form['float_bytes'] / form['bytes']:.1f} times smaller than its own .onnx file in float32"
    size += f"; {form['about']}" if "about" in form else ""
    accuracy = f"result form test {word}: {form['after']:.2f} as read from the file, {form['before']:.2f} before"
    if "same" in form:
        accuracy += f"; {form['same']} of {form['images']} predictions the same"
    lines = [size, f"result form parts: {parts}", accuracy]
    for row in form.get("speed", ()):
        own, other = row["form"]["ms"], row["float32"]["ms"]
        line = f"result form latency: {row['engine']}, batch {row['batch']}: {own:.2f} ms, float32 {other:.2f} ms, "
        line += f"{other / own:.2f} times as fast; {row['where']}{spread(row, 'form', 'float32')}"
        lines.append(line)
    return lines


def repaired_line(record: dict) -> str:
    """The line on stderr that tells how a layer was cut and repaired."""
    line = f"layer {record['layer']}: {record['kept']} of {record['of']} filters kept"
    if record["error"] is None:
        return f"{line}, {'nothing to repair' if record['rows'] == 0 else 'by the weights alone'}"
    readers = ", ".join(record["readers"])
    errors = f"error of {readers} {record['error_cut']:.4f} as cut, {record['error']:.4f} repaired"
    return f"{line}; {errors} ({record['rows']} rows, {record['seconds']:.1f} s)"


def updated_line(record: dict) -> str:
    """The line on stderr that tells of one step of a cut, after which what is left was updated."""
    loss = f"loss {record['loss_before']:.4f} before, {record['loss']:.4f} after, a rise of {record['predicted']:.4f} predicted"
    where = f"({record['images']} images, {record['seconds']:.1f} s)"
    return f"step {record['step']}: {record['cut']} of {record['of']} pieces cut; {loss} {where}"


def selected_line(record: dict, word: str) -> str:
    """The line that tells what a selection of filters has found, and what it costs; `word` is what the metric is called."""
    found = f"; {100 * record['below']:.2f} % of the weights below {record['threshold']:.3g}" if "below" in record else ""
    if "of_filters" in record:
        least, median, most = (100 * fraction for fraction in record["of_filters"])
        found += f", of a filter {least:.2f} to {most:.2f}, median {median:.2f}"
    return (
        f"{record['stage']}: {record['cut']} filters taken out{found}; {word} {record['before']:.2f} before, "
        f"{record['after']:.2f} after; {100 * record['parameters_left']:.2f} % of the parameters and "
        f"{100 * record['macs_left']:.2f} % of the MACs left"
    )


def round_line(record: dict, word: str) -> str:
    """The line that tells what a round of pruning came to; `word` is what the metric is called."""
    held_out = f"held out {record['held_out']:.2f}, " if "held_out" in record else ""
    trained = f" ({100 * record['trained']:.2f} % trained)" if "trained" in record else ""
    return (
        f"round {record['round']}: density {100 * record['density']:.2f} %{trained}, {word} {held_out}test {record['test']:.2f}"
    )


def generation_line(record: dict, word: str) -> str:
    """The line that tells what a generation of noisy students came to, and what it has learned from; 0 is the first teacher."""
    accuracy = f"{word} {record['accuracy']:.2f} (where validated)" if "accuracy" in record else "not measured"
    network = f", a {record['network']}" if "network" in record else ""
    line, taught = f"generation {record['generation']}{network}: {accuracy}", record.get("taught")
    if taught is None:
        return line
    right = f", {taught['correct']:.2f} % of their pseudo-labels right" if "correct" in taught else ""
    passed = f"{taught['passed']} of {taught['unlabelled']} unlabelled images passed{right}"
    used = f"{taught['used']} used, with repeats, of {taught['of_classes']} classes"
    return f"{line}, its teacher {taught['teacher']:.2f}; {passed}, {used}"


def connectivity_lines(record: dict) -> list[str]:
    """The lines that tell what is between the copies of a network, a line for each pair."""
    return [
        f"connectivity from {record['split']} on: error {pair['errors'][0]:.2f} and {pair['errors'][-1]:.2f} % at the ends, "
        f"{pair['half_way']:.2f} half-way, barrier {pair['barrier']:.2f}: "
        f"{'' if pair['barrier'] < STABLE else 'not '}connected, where less than {STABLE:g} counts as connected "
        f"(batch norm's statistics {record['statistics']})"
        for pair in record["pairs"]
    ]


def at_chance_line(record: dict, word: str) -> str:
    """The line on stderr that warns of a selection among weights that are worth nothing yet."""
    return (
        f"WARNING {record['stage']}: {word} {record['before']:.2f} is no better than with all of these weights at 0, so "
        "that the threshold means nothing: train for more --epochs before the cut, with a smaller --lr or a weaker --reg"
    )


def collapse_line(found: dict | None) -> str:
    """The line that tells of layers that have collapsed; empty where none has."""
    if found is None:  # a run that has no masks, or that ended before this was recorded
        return ""
    empty, words = found["empty"], []
    if empty:
        named = f"{', '.join(empty[:5])}{' ...' if len(empty) > 5 else ''}"
        words.append(f"no weight is left in {len(empty)} layers: {named}" if len(empty) > 1 else f"no weight is left in {named}")
    if not found["connected"]:
        words.append("no path leads from the input to the outputs")
    return "; ".join(words)


def export_line(exported: dict) -> str:
    """The line that tells what came of an export."""
    return (
        f"result export: {exported['file']}, {exported['bytes'] / 1e6:.3f} MB, "
        f"differs by {exported['difference']:.1e} of the largest output from PyTorch"
        f"{'; ' + exported['form'] if 'form' in exported else ''}"
    )


def duration(seconds: float) -> str:
    """A time as people read it: 45 s, 12 min, 3.5 h."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
