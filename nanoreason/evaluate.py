"""Statistics of verdicts: unbiased pass@k, maj@k, bootstrap intervals, and s1's measures of scaling."""

from __future__ import annotations

import math
import random
import statistics
from collections import Counter
from collections.abc import Sequence


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that k of the n samples, drawn without replacement, hold one of the c right ones.

    Chen et al., 2021, eq. 1: 1 - C(n-c, k) / C(n, k). With k > n all samples are drawn: 1 if any is right, else 0.

    >>> pass_at_k(4, 1, 2), pass_at_k(10, 0, 5), pass_at_k(4, 0, 8), pass_at_k(4, 1, 8)
    (0.5, 0.0, 0.0, 1.0)
    """
    if not (0 <= c <= n and k >= 1):
        raise ValueError(f"pass@k needs 0 <= c <= n and k >= 1, not n={n}, c={c}, k={k}")
    # <exercise statistics>
    if c == 0:
        return 0.0
    return 1.0 - math.comb(n - c, k) / math.comb(n, k) if k <= n else 1.0
    # </exercise statistics>


def mean_pass_at_k(right: Sequence[Sequence[bool]], k: int) -> float:
    """The mean over problems, `right` being the verdicts on the samples of each."""
    return statistics.fmean(pass_at_k(len(marks), sum(marks), k) for marks in right)


def maj_at_k(answers: list[str | None], right: list[bool], k: int, draws: int = 200, seed: int = 0) -> float:
    """The chance that the majority of k answers is right; ties are broken evenly, None (no answer) has no vote.

    Equal answers vote together, and one of them that is right (another may be written against the rules) makes it a
    right answer. Exact for k = n, else the mean over `draws` random subsets of k.

    >>> maj_at_k(["7", "7", "8"], [True, True, False], 3), maj_at_k(["7", "8"], [True, False], 2)
    (1.0, 0.5)
    """
    n = len(answers)
    if not 1 <= k <= n:
        raise ValueError(f"maj@k needs 1 <= k <= {n} answers, not k={k}")
    # <exercise statistics>
    is_right = {answer for answer, is_so in zip(answers, right, strict=True) if is_so}
    generator = random.Random(seed)
    total = 0.0
    subsets = [range(n)] if k == n else [generator.sample(range(n), k) for _ in range(draws)]
    for subset in subsets:
        votes = Counter(answers[i] for i in subset if answers[i] is not None)
        winners = [answer for answer, count in votes.items() if count == max(votes.values())]
        total += sum(answer in is_right for answer in winners) / max(1, len(winners))
    return total / len(subsets)
    # </exercise statistics>


def standard_error(values: list[float]) -> float:
    """Of the mean of independent values; 0 of a single one.

    >>> standard_error([0.0, 1.0]), standard_error([0.5])
    (0.5, 0.0)
    """
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def bootstrap_interval(
    values: list[float], level: float = 0.95, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean of `values` under resampling with replacement.

    >>> bootstrap_interval([1.0] * 50)
    (1.0, 1.0)
    """
    if not values:
        raise ValueError("an interval needs at least one value")
    # <exercise statistics>
    generator = random.Random(seed)
    means = sorted(sum(generator.choices(values, k=len(values))) / len(values) for _ in range(draws))
    tail = (1 - level) / 2
    return means[int(tail * draws)], means[min(draws - 1, int((1 - tail) * draws))]
    # </exercise statistics>


# ------------------------------------------------------------------------------- scaling with the length of thinking
# s1 (Muennighoff et al., 2025), section 3.2: a method is run at several settings of its thinking budget. A run is
# (mean thinking tokens a, accuracy f(a)).


def control(tokens: list[float], most: list[float], least: float = 0.0) -> float:
    """The share of runs whose thinking tokens are within what was asked for: least <= a <= most (s1, eq. 1).

    >>> control([8.0, 15.5, 40.0, 64.0], [8, 16, 32, 64])
    0.75
    """
    return sum(least <= a <= limit for a, limit in zip(tokens, most, strict=True)) / len(tokens)


def scaling(tokens: list[float], accuracy: list[float], per: float = 100.0) -> float:
    """The mean slope (f(b) - f(a)) / (b - a) over all pairs of runs b > a, in points of a percent per `per` tokens.

    s1, eq. 2; the paper prints no unit. Runs of equal length have no slope and make no pair; 0 if no pair is left.

    >>> scaling([10, 20, 40], [0.2, 0.4, 0.4])      # slopes of 200, 0 and 66.7 points per 100 tokens
    88.9
    """
    runs = list(zip(tokens, accuracy, strict=True))
    slopes = [(g - f) / (b - a) for i, (a, f) in enumerate(runs) for b, g in runs[i + 1 :] if a != b]
    return round(100 * per * sum(slopes) / len(slopes), 1) if slopes else 0.0


def performance(accuracy: list[float]) -> float:
    """The best run (s1, eq. 3)."""
    return max(accuracy)


# ------------------------------------------------------------------------------------------------ transfer of training
# Does Math Reasoning Improve General LLM Capabilities? (2507.00432). Accuracies are in 0..1, of the same benchmarks
# before and after training; a group is some benchmarks, the target group the one that was trained for.

NEAR_ZERO = 0.02  # a relative gain of the target of less than 2 % is no denominator
LEAST_GAIN = 0.2  # nor is a `weighted_gain` of less than this


def relative_gain(before: list[float], after: list[float]) -> float | None:
    """The mean of (after - before) / before; None if a benchmark was never solved before.

    >>> relative_gain([0.2, 0.5], [0.4, 0.25])
    0.25
    """
    pairs = list(zip(before, after, strict=True))
    return None if not pairs or min(before) <= 0 else sum((b - a) / a for a, b in pairs) / len(pairs)


def weighted_gain(before: list[float], after: list[float], sigma: float) -> float | None:
    """Sum of w * sign(d) * sqrt|d|, with d = 100 (after - before) / sigma and weights w ~ 1 - before that sum to 1.

    sigma   points: the deviation of the gains of this group, pooled over all models and benchmarks (`pooled_sigma`)

    None if nothing was left to gain, or if sigma is 0. A benchmark solved in full before has weight 0: what is
    forgotten there is not seen.
    """
    if sigma <= 0 or not sum(1 - a for a in before):
        return None
    total = sum(1 - a for a in before)
    moves = [100 * (b - a) / sigma for a, b in zip(before, after, strict=True)]
    return sum((1 - a) / total * math.copysign(math.sqrt(abs(d)), d) for a, d in zip(before, moves, strict=True))


def pooled_sigma(pairs: list[tuple[list[float], list[float]]]) -> float:
    """The deviation, in points, of all gains of one group: `pairs` are (before, after) of each model."""
    # DIFFERS from the paper's text, which takes it over the benchmarks of one model: that does not give its table.
    gains = [100 * (b - a) for before, after in pairs for a, b in zip(before, after, strict=True)]
    mean = sum(gains) / max(1, len(gains))
    return math.sqrt(sum((gain - mean) ** 2 for gain in gains) / max(1, len(gains)))


def transferability(gain: float | None, target: float | None, least: float = LEAST_GAIN) -> float | None:
    """The index 100 * gain / target; None, undefined, if a gain is or the target's is less than `least`.

    Version 1 is of `relative_gain` (least=NEAR_ZERO), version 2 of `weighted_gain`.

    >>> transferability(-0.3, 0.6), transferability(0.3, 0.1), undefined(transferability(None, 1.0))
    (-50.0, None, 'undefined')
    """
    return None if gain is None or target is None or target < least else 100 * gain / target


def undefined(value: float | None, digits: int = 1) -> str:
    return "undefined" if value is None else f"{value:.{digits}f}"


def forgetting(before: list[float], after: list[float]) -> float:
    """The mean of max(0, before - after): gains elsewhere make up for nothing.

    >>> forgetting([0.75, 0.5], [0.25, 1.0])
    0.25
    """
    return sum(max(0.0, a - b) for a, b in zip(before, after, strict=True)) / max(1, len(before))
