"""This file says which runs the paper's table has, and in which order."""

from dataclasses import dataclass

RATES = (0.6, 0.3, 0.4, 0.5, 0.7, 0.8, 0.9, 0.95)  # of the sweep; 0.6 has its own row of ours
PRUNED, DECORRELATED = "--prune_type structured --prune_rate {} --compact", "--reg reg_cov --odecay 0.7"


@dataclass
class Row:
    """A run of the table: its flags, the line that its seeds share, and the row whose smaller network it trains anew."""

    name: str
    flags: list[str]
    line: str
    scratch_of: str | None = None


def plan(layers: int, seeds: list[int], out: str) -> list[Row]:
    """Every row, in the order in which time is spent on them. The seed of ksc2020 is 777, which stands for seed 0."""
    rows = []

    def add(line: str, flags: str, seed: int, depth: int = layers) -> None:
        """Add the row of a line and seed."""
        typed = "" if line == "ksc2020" and seed == 0 else f"--seed {seed}"
        rows.append(Row(line + mark(seed), f"--layers {depth} {typed} {flags}".split(), line))

    def mark(seed: int) -> str:
        """What a row's name ends in."""
        return f"_seed{seed}" if seed else ""

    both = f"{PRUNED.format(0.6)} {DECORRELATED}"
    for seed in seeds:
        add("ours_both", both, seed)
        add("ours_pruning", PRUNED.format(0.6), seed)
        add("ksc2020", "--recipe ksc2020", seed)
        add("dense", "--prune_type none", seed)
        add("decorrelation", f"--prune_type none {DECORRELATED}", seed)
        add("paper", "--recipe paper", seed)
    first = seeds[0]
    if layers == 56:
        for line, flags in (("ours_both", both), ("ours_pruning", PRUNED.format(0.6)), ("dense", "--prune_type none")):
            add(f"resnet50_{line}", flags, first, 50)
    for rate in RATES:
        percent, pruned = f"{100 * rate:g}", PRUNED.format(rate)
        ours = ("ours_both" if rate == 0.6 else f"ours_{percent}") + mark(first)
        if rate != 0.6:
            add(f"ours_{percent}", f"{pruned} {DECORRELATED}", first)
        add(f"random_{percent}", f"{pruned} --prune_imp random", first)
        add(f"fixed_{percent}", f"{pruned} --prune_phase init", first)
        flags = ["--scratch", f"{out}/{ours}/model.pt", "--seed", str(first)]
        rows.append(Row(f"scratch_{percent}{mark(first)}", flags, f"scratch_{percent}", ours))
    return rows
