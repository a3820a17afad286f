"""This file reads what a scope takes from a file: the counts of a preset, and the scan of sensitivity.py."""

from settings.errors import Refused
from settings.files import read_json
from settings.registry import presets
from settings.schema import PERCENT, TEXT, DictOf, ListOf, Record, number, whole

COUNTS = Record({"kept": DictOf(whole(1), 1)}, {"rate": number(0, 1), "arch": TEXT, "source": TEXT})
SCAN = Record(
    {"rates": ListOf(number(0, 1, above=True), 1), "layers": DictOf(ListOf(number(-100, 100)), 1)},
    {"command": TEXT, "accuracy": PERCENT},
)


def read_counts(name: str) -> dict[str, int]:
    """Return how many filters each layer keeps, by the preset of this name or by a file. ValueError if it is neither."""
    published = presets()
    if name in published:
        return published[name]["kept"]
    try:
        return read_json(name, "preset", COUNTS)["kept"]
    except Refused as error:
        raise ValueError(f"{error}; or choose from {', '.join(published)}") from None


def read_scan(file: str) -> tuple[list[float], dict[str, list[float]]]:
    """Return the rates of a scan, and the accuracy in % that each layer lost at each. ValueError if the file holds none."""
    try:
        scan = read_json(file, "scan", SCAN)
    except Refused as error:
        raise ValueError(str(error)) from None
    rates, layers = scan["rates"], scan["layers"]
    if sorted(set(rates)) != rates:
        raise ValueError(f"'{file}' is no scan: its rates do not ascend")
    for name, lost in layers.items():
        if len(lost) != len(rates):
            raise ValueError(f"'{file}' is no scan: {name} has {len(lost)} losses at {len(rates)} rates")
    return rates, layers
