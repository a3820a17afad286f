"""This file says in lines what came of factorising layers, and names what networks are counted by."""

# as results name it and as lines do
WORDS = {"filters": "filters", "parameters": "parameters", "macs": "MACs"}


def factor_line(record: dict) -> str:
    """The line on stderr that tells of the factors that stand in place of a layer."""
    ranks, full = (" and ".join(map(str, record[name])) for name in ("ranks", "of"))
    return f"layer {record['layer']}: ranks {ranks} of {full}, relative error {record['error']:.4f}"


def factorised_line(record: dict, word: str) -> str:
    """The line that tells what came of factorisation; `word` is what the metric is called."""
    counts = [
        f"{record[name]['after']} of {record[name]['before']} {WORDS[name]} "
        f"({100 * record[name]['after'] / max(record[name]['before'], 1):.2f} %)"
        for name in ("parameters", "macs")
    ]
    accuracy = f"{word} {record['accuracy']['before']:.2f} before, {record['accuracy']['after']:.2f} after (where validated)"
    return f"factorisation: {len(record['layers'])} layers, {len(record['whole'])} stay; {', '.join(counts)}; {accuracy}"
