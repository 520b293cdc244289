"""Metrics of a run as curves: how they began, how they ended, and whether that is a change.

    lines of metrics.jsonl -> numbers(lines, "reward") -> curve: first, best, last -> learns, fall

No file is believed: what is missing or no number is left out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

Lines = Sequence[dict]
ENDS = 5  # first, last and best are means over so many neighbouring steps, but over a quarter of the steps at most
SHORT = 4  # with fewer steps there is no first and last
SURE = 3.0  # standard errors that make a change of the reward one
RISE = 0.2  # units (see `unit`): nine of ten runs that learnt rose by more, half of them by .6


def is_finite(value: object) -> bool:
    """Whether it is a number of a size that can be reckoned with."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30


def numbers(lines: Lines, name: str) -> list[float]:
    """The finite values of a metric in the lines of rollouts, step after step."""
    return [float(line[name]) for line in lines if "reward" in line and is_finite(line.get(name))]


def smooth(values: Sequence[float]) -> list[float]:
    """Means over neighbours: the first of them is how it began, the last how it ended.

    >>> smooth([0.0, 1.0, 2.0, 4.0]), smooth([1.0] * 19 + [6.0])[-1]
    ([0.0, 1.0, 2.0, 4.0], 2.0)
    """
    width = max(1, min(ENDS, len(values) // 4))
    return [statistics.fmean(values[i : i + width]) for i in range(len(values) - width + 1)]


class Curve(NamedTuple):
    first: float
    best: float
    last: float
    error: float  # standard error of a difference of two means, by how much neighbouring steps differ
    place: int  # how many steps came before the best

    @property
    def rise(self) -> float:
        return self.last - self.first

    def __str__(self) -> str:
        return f"{short(self.first)} -> {short(self.last)}"


def curve(lines: Lines, name: str) -> Curve | None:
    """None where fewer than SHORT steps have the metric."""
    values = numbers(lines, name)
    if len(values) < SHORT:
        return None
    means = smooth(values)
    jumps = [b - a for a, b in zip(values, values[1:], strict=False)]
    error = statistics.pstdev(jumps) / math.sqrt(len(values) - len(means) + 1)
    return Curve(means[0], max(means), means[-1], error, means.index(max(means)))


def ends(lines: Lines, name: str, what: str = "") -> list[str]:
    """["entropy .21 -> .02"] as evidence, or [] where it is not known."""
    found = curve(lines, name)
    return [f"{what or name} {found}"] if found else []


def unit(lines: Lines) -> float:
    """What a change of the reward is measured in: the deviation of the rewards within a group, which is what the
    gradient sees, where it was largest; where it is not logged, that of right and wrong answers. 0: unknown."""
    if deviations := numbers(lines, "reward_std"):
        return max(0.0, *smooth(deviations))
    shares = [min(1.0, max(0.0, share)) for share in smooth(numbers(lines, "accuracy") or [0.0])]
    return max(math.sqrt(share * (1 - share)) for share in shares)


def fall(lines: Lines) -> float:
    """Units that the reward lost since its best steps; 0 where it is not known."""
    reward, one = curve(lines, "reward"), unit(lines)
    return (reward.best - reward.last) / one if reward and one else 0.0


def learns(lines: Lines) -> bool:
    """Whether the reward rose by more than chance, and by a size worth a word."""
    reward = curve(lines, "reward")
    return reward is not None and reward.rise > max(SURE * reward.error, RISE * unit(lines), 1e-9)


def short(value: float) -> str:
    """
    >>> short(0.12345), short(-2.0), short(0.00000123), short(134.4)
    ('.123', '-2', '1.2e-06', '134')
    """
    text = f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.2g}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text
