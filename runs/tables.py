"""This file writes tables: rows as Markdown, CSV or JSON."""

import csv
import io
import json
import statistics


def cell(value) -> str:
    """The text of a table's cell; of a list its mean, with the standard deviation where it holds several values."""
    if isinstance(value, list):
        if not value:
            return "-"
        mean = statistics.mean(value)
        if len(value) > 1:
            return f"{number(mean)} ± {statistics.stdev(value):.2f}"
        value = mean
    return value if isinstance(value, str) else number(value)


def number(value: float) -> str:
    """A number as a cell has it: two digits after the point, none from 1,000 on and for whole numbers."""
    if isinstance(value, int) or (value == int(value) and abs(value) >= 1000):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.2f}"


def write_table(rows: list[dict], style: str) -> str:
    """The table of these rows, which map columns to values, as "markdown" (means), "csv" or "json" (every value)."""
    if style == "json":
        return json.dumps(rows, indent=1)
    if style == "csv":
        lines = [["; ".join(map(str, v)) if isinstance(v, list) else str(v) for v in row.values()] for row in rows]
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([list(rows[0]), *lines])
        return out.getvalue().rstrip("\n")
    head = list(rows[0])
    lines = [head, ["---"] * len(head)]
    lines += [[f"`{value}`" if name == "command" else cell(value) for name, value in row.items()] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
