"""This file says how far scores of networks agree with what the networks reach when they are trained."""

from collections.abc import Sequence
from itertools import combinations


def rank_correlations(scores: Sequence[float | None], reached: Sequence[float | None]) -> dict:
    """Return {"spearman", "kendall", "n"} of the networks that have both values; their sign is kept.

    Equal values share the mean of their ranks; Kendall's is tau-b. None stands for a correlation that is not defined: of
    fewer than two networks, or where all have one value.
    """
    pairs = [(score, value) for score, value in zip(scores, reached, strict=True) if score is not None and value is not None]
    if len({score for score, _ in pairs}) < 2 or len({value for _, value in pairs}) < 2:
        return {"spearman": None, "kendall": None, "n": len(pairs)}
    from scipy import stats

    first, second = zip(*pairs, strict=True)
    return {
        "spearman": float(stats.spearmanr(first, second).statistic),
        "kendall": float(stats.kendalltau(first, second).statistic),
        "n": len(pairs),
    }


def vote(voters: Sequence[Sequence[float | None]], reached: Sequence[float | None]) -> tuple[float | None, int]:
    """Return how often the majority of scores names the better of two networks, and of how many pairs.

    Pairs are of networks that have all values and reached different ones; a vote that is even counts half. None of no pairs.
    """
    rows = [row for row in zip(*voters, reached, strict=True) if None not in row]
    right = pairs = 0
    for (*first, one), (*second, other) in combinations(rows, 2):
        if one != other:
            ballot = sum((a > b) - (a < b) for a, b in zip(first, second, strict=True)) * (1 if one > other else -1)
            right += 1 if ballot > 0 else 0.5 if ballot == 0 else 0
            pairs += 1
    return (right / pairs if pairs else None), pairs
