"""This file says in lines how long networks take, and where that is known too badly to mean anything."""


def latency_line(row: dict, gain: float) -> str:
    """The line that tells how long a batch took both networks; `gain` is how many times fewer MACs the smaller one has.

    It ends with the spread, which older results lack: between the quartiles lies the middle half of the rounds.
    """
    dense, compact = row["dense"], row["compact"]
    line = f"result latency: {row['engine']}, batch {row['batch']}: {compact['ms']:.2f} ms, dense {dense['ms']:.2f} ms, "
    line += f"{dense['ms'] / compact['ms']:.2f} times as fast ({gain:.2f} in MACs)"
    if "peak_mb" in dense:
        line += f", peak memory {compact['peak_mb']:.1f} MB, dense {dense['peak_mb']:.1f} MB"
    return f"{line}; {row['where']}{spread(row)}"


def spread(row: dict, own: str = "compact", other: str = "dense") -> str:
    """The end of a line on latency: the middle half of the rounds of both, and a warning where it is too wide."""
    if "middle_ms" not in row[other]:
        return ""
    middles = ["{:.2f} to {:.2f} ms".format(*row[name]["middle_ms"]) for name in (own, other)]
    words = f"; the middle half of {row[other]['rounds']} rounds: {middles[0]}, {other} {middles[1]}"
    if too_wide(row, own, other):
        low, high = speed_range(row, own, other)
        words += f": {low:.2f} to {high:.2f} times as fast, TOO WIDE to mean anything, the machine is busy"
    return words


def speed_range(row: dict, own: str = "compact", other: str = "dense") -> tuple[float, float]:
    """How many times as fast as the other network its own one is at the least and at the most, by both networks' quartiles."""
    (low, high), (other_low, other_high) = row[own]["middle_ms"], row[other]["middle_ms"]
    return other_low / high, other_high / low


def too_wide(row: dict, own: str = "compact", other: str = "dense") -> bool:
    """Whether a row's latencies spread so far, by the factor 2, that their medians mean nothing; older rows do not say."""
    if "middle_ms" not in row[other]:
        return False
    low, high = speed_range(row, own, other)
    return high > 2 * low
