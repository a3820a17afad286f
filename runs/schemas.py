"""This file says what the records in a run's folder hold: rows of epochs, summaries, and the results of a run's actions."""

from settings.saved import CONFIG
from settings.schema import (
    COUNT,
    FINITE,
    FRACTION,
    PERCENT,
    TEXT,
    TRUTH,
    All,
    DictOf,
    Is,
    ListOf,
    Maybe,
    Record,
    allows,
    number,
    whole,
)

REPORTED = Record(CONFIG.required | {name: CONFIG.optional[name] for name in ("command", "filters")}, CONFIG.optional)
# [accuracy in %, images] by class, and images by class and what they were taken for; older runs have a list of the commonest
BY_CLASS, TAKEN_FOR = DictOf(ListOf(number(0), 2)), DictOf(DictOf(COUNT))
MISTAKES = Is("a table of what was taken for what", lambda it: isinstance(it, list) or allows(it, TAKEN_FOR))
MEASURES = Record({}, {"classes": BY_CLASS, "confusions": MISTAKES, "curves": DictOf(ListOf(FRACTION, 11))}, others=FINITE)
COUNTS = Record(dict.fromkeys(("filters", "parameters", "macs"), COUNT))
ROW = Record(
    {"epoch": COUNT, "train": MEASURES, "valid": MEASURES, "seconds": number(0, 1e10)},
    {
        "stage": TEXT,
        "learning_rate": number(0),
        "images_per_second": number(0),
        "num_zero": COUNT,
        "num_total": whole(1),
        "kept_filters": DictOf(COUNT),
        **dict.fromkeys(("parameters_left", "macs_left"), FRACTION),
        **dict.fromkeys(("cut", "mask_changes", "returned", "left", "not_learning"), COUNT),
    },
)
PRUNED = Record({name: ROW.optional[name] for name in ("num_total", "kept_filters", "mask_changes")})
PAIR = Record({"places": ListOf(FRACTION, 2), "errors": ListOf(PERCENT, 2), "half_way": PERCENT, "barrier": FINITE})
# by which teacher a generation was taught, and what it has learned from
TAUGHT = Record(
    {"teacher": PERCENT, **dict.fromkeys(("unlabelled", "passed", "used", "of_classes"), COUNT)}, {"correct": PERCENT}
)
RESULTS = Record(
    optional={
        "recalibration": Record({"batches": COUNT, "before": FINITE, "after": FINITE}),
        "selections": ListOf(
            Record(
                {"stage": TEXT, "cut": COUNT}
                | dict.fromkeys(("before", "after"), FINITE)
                | dict.fromkeys(("parameters_left", "macs_left"), FRACTION),
                {"threshold": number(0), "below": FRACTION, "of_filters": ListOf(FRACTION, 3), "nothing_lost": TRUTH},
            )
        ),
        "rounds": ListOf(
            Record({"round": COUNT, "density": FRACTION, "test": PERCENT}, {"held_out": PERCENT, "trained": FRACTION})
        ),
        "generations": ListOf(Record({"generation": COUNT}, {"accuracy": PERCENT, "network": TEXT, "taught": TAUGHT})),
        "connectivity": Record({"split": TEXT, "statistics": TEXT, "pairs": ListOf(PAIR, 1)}),
        "factorisation": Record(
            {
                "layers": ListOf(
                    Record({"layer": TEXT, "ranks": ListOf(whole(1), 1), "of": ListOf(whole(1), 1), "error": number(0)})
                ),
                "whole": DictOf(TEXT),
                **dict.fromkeys(("parameters", "macs"), Record({"before": COUNT, "after": COUNT})),
                "accuracy": Record({"before": FINITE, "after": FINITE}),
            }
        ),
        "kept": Record({"epoch": COUNT, "valid": FINITE, "last": FINITE}),
        "collapse": Record({"empty": ListOf(TEXT), "connected": TRUTH}),
        "removal": Record({"exact": TRUTH, "difference": number(0), "largest_output": number(0), "same": COUNT, "images": COUNT}),
    }
)
TIMES = Record({"ms": number(0, above=True)}, {"middle_ms": ListOf(number(0), 2), "rounds": COUNT, "peak_mb": number(0)})
FORM = Record(
    {
        "file": TEXT,
        **dict.fromkeys(("bytes", "dense_bytes"), whole(1)),
        "bits": DictOf(COUNT),
        **dict.fromkeys(("before", "after"), FINITE),
    },
    {
        **dict.fromkeys(("same", "images"), COUNT),
        "about": TEXT,
        "float_bytes": whole(1),
        "speed": ListOf(Record({"engine": TEXT, "batch": whole(1), "where": TEXT, "float32": TIMES, "form": TIMES})),
    },
)
SPEED = All(
    (
        Record({"engine": TEXT, "batch": whole(1), "where": TEXT, "dense": TIMES, "compact": TIMES}),
        Is("a row that tells the same of both networks", lambda row: row["dense"].keys() == row["compact"].keys()),
        Is("a row with the spread of so many rounds", lambda row: ("middle_ms" in row["dense"]) == ("rounds" in row["dense"])),
    )
)
SUMMARY = Record(
    {"dense": Record({name: whole(int(name != "filters")) for name in COUNTS.required}), "left": COUNTS, "test": MEASURES},
    RESULTS.optional
    | {
        "last": ROW,
        "best": ROW,
        "valid": MEASURES,  # in place of both, of a run that has trained nothing
        "seconds": number(0, 1e10),
        **dict.fromkeys(("held_out", "removable", "exact"), TRUTH),
        "file": Record({"file": TEXT, "bytes": COUNT}, {"dense_bytes": COUNT}),
        "speed": ListOf(SPEED),
        "form": FORM,
        "architecture": Maybe(COUNTS),
        "weights": DictOf(Record({"left": COUNT, "of": whole(1)})),
        "dropout": DictOf(Record(dict.fromkeys(("original", "rate"), FRACTION))),
        "exports": ListOf(Record({"file": TEXT, "bytes": COUNT, "difference": number(0)}, {"form": TEXT})),
    },
)
# what the closing lines of a run are made of
RESULT = Record(SUMMARY.required | {name: SUMMARY.optional[name] for name in ("seconds", "held_out")}, SUMMARY.optional)
