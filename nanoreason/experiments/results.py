"""What the runs of a section came to: numbers per seed, read from lines of metrics, and claims that are judged by them.

    lines of metrics.jsonl -> Results -> PerSeed {seed: number} -> Claim.judge -> a line of summary.json

A number of an experiment is never one number but one per seed; means are taken last, and disagreement stays visible.
"""

from __future__ import annotations

import math
import operator
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from nanoreason.run import RunConfig


class PerSeed(dict):
    """{seed: number}. +, -, *, / with another PerSeed or a number go seed by seed; seeds that one side lacks are left
    out, and so are divisions by zero.

    >>> PerSeed({0: 3.0, 1: 5.0}) - PerSeed({0: 1.0, 2: 1.0})
    {0: 2.0}
    """

    def _combine(self, other: PerSeed | float, how: Callable[[float, float], float]) -> PerSeed:
        if not isinstance(other, dict):
            other = dict.fromkeys(self, other)
        return PerSeed({seed: how(self[seed], other[seed]) for seed in self if seed in other})

    def __add__(self, other):
        return self._combine(other, operator.add)

    def __sub__(self, other):
        return self._combine(other, operator.sub)

    def __mul__(self, other):
        return self._combine(other, operator.mul)

    def __truediv__(self, other):
        quotients = self._combine(other, lambda a, b: a / b if b else None)
        return PerSeed({seed: value for seed, value in quotients.items() if value is not None})

    def __abs__(self):
        return PerSeed({seed: abs(value) for seed, value in self.items()})

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values()) if self else None

    @property
    def error(self) -> float | None:
        """The standard error of the mean; None with fewer than two seeds."""
        return statistics.stdev(self.values()) / math.sqrt(len(self)) if len(self) > 1 else None

    def rounded(self, digits: int = 4) -> dict[str, float]:
        """As it stands in summary.json."""
        return {str(seed): round(value, digits) for seed, value in sorted(self.items())}


def average(values: Iterable[PerSeed]) -> PerSeed:
    """The mean of several numbers, seed by seed, of the seeds that all of them have."""
    values = list(values)
    seeds = set.intersection(*map(set, values)) if values else set()
    return PerSeed({seed: statistics.fmean(value[seed] for value in values) for seed in sorted(seeds)})


class Results:
    """The lines of metrics of all jobs, each {"arm", "seed", "step", metric: value, ...}.

    `where` narrows to lines with these values of other fields: results.last("s1", "accuracy", method="wait", asked=2).
    """

    def __init__(self, lines: Iterable[dict]):
        self._by_arm: dict[str, list[dict]] = {}
        for line in lines:
            self._by_arm.setdefault(line["arm"], []).append(line)
        self.arms = tuple(self._by_arm)
        self.seeds = tuple(sorted({line["seed"] for lines in self._by_arm.values() for line in lines}))

    def lines(self, arm: str, key: str, seed: int | None = None, **where: Any) -> list[dict]:
        """The lines of an arm that have a metric, as they were written: seed by seed, step by step."""
        return [
            line
            for line in self._by_arm.get(arm, ())
            if key in line and seed in (None, line["seed"]) and all(line.get(k) == v for k, v in where.items())
        ]

    def per_seed(self, number: Callable[[int], float | None]) -> PerSeed:
        """{seed: number(seed)}, without the seeds for which it is None."""
        values = {seed: number(seed) for seed in self.seeds}
        return PerSeed({seed: value for seed, value in values.items() if value is not None})

    def first(self, arm: str, key: str, **where: Any) -> PerSeed:
        """A metric at its first measurement."""
        return self._of_series(arm, key, where, lambda values: values[0])

    def last(self, arm: str, key: str, **where: Any) -> PerSeed:
        """A metric at its last measurement."""
        return self._of_series(arm, key, where, lambda values: values[-1])

    def early(self, arm: str, key: str, share: float = 0.1, **where: Any) -> PerSeed:
        """The mean of a metric over the first share of its measurements, one at least."""
        return self._of_series(arm, key, where, lambda v: statistics.fmean(v[: max(1, round(share * len(v)))]))

    def late(self, arm: str, key: str, share: float = 0.25, **where: Any) -> PerSeed:
        """The mean of a metric over the last share of its measurements, one at least: single rollouts are noisy."""
        return self._of_series(arm, key, where, lambda v: statistics.fmean(v[-max(1, round(share * len(v))) :]))

    def mean(self, arm: str, key: str, **where: Any) -> PerSeed:
        """The mean of a metric over all its measurements."""
        return self._of_series(arm, key, where, statistics.fmean)

    def _of_series(self, arm: str, key: str, where: dict, number: Callable[[list[float]], float]) -> PerSeed:
        def of(seed: int) -> float | None:
            values = [line[key] for line in self.lines(arm, key, seed, **where)]
            return number(values) if values else None

        return self.per_seed(of)

    def by(self, arm: str, key: str, field: str, **where: Any) -> dict[Any, PerSeed]:
        """{value of another field: the last value of a metric there}, in the order in which the lines have them."""
        values = dict.fromkeys(line[field] for line in self.lines(arm, key, **where) if field in line)
        return {value: self.last(arm, key, **{field: value}, **where) for value in values}

    def curve(self, arm: str, key: str, seed: int | None = None, **where: Any) -> dict[int, float]:
        """{step: a metric of one seed, or the mean over seeds}, in order of steps."""
        return dict(self.points(arm, "step", key, seed, **where))

    def points(
        self, arm: str, x: str, y: str, seed: int | None = None, by: str = "", **where: Any
    ) -> list[tuple[float, float]]:
        """(x, y) of the lines of one seed; without one, means of both over the lines that share a value of `by` (x)."""
        groups: dict[Any, list[dict]] = {}
        for line in self.lines(arm, y, seed, **where):
            if x in line:
                groups.setdefault(line[by or x], []).append(line)
        if all(isinstance(value, (int, float)) for value in groups):
            groups = {value: groups[value] for value in sorted(groups)}
        return [
            tuple(statistics.fmean(line[key] for line in group) if _is_number(group[0][key]) else group[0][key]
                  for key in (x, y))
            for group in groups.values()
        ]  # fmt: skip


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class Claim:
    """A statement of a paper as a number per seed, which must exceed (at_most: stay below) a threshold.

    It passes if the mean is beyond the threshold by more than one standard error, every seed of the results has a
    number, and no seed shows the opposite. A seed shows the opposite if its number lies on the other side of
    `no_effect`: 0 for differences, 1 for ratios. Where the threshold itself lies beyond no effect ("loses at most .03",
    "is off by at most .05"), what is claimed is that something stays small, and a seed that crosses the threshold shows
    the opposite. With one seed there is no standard error; the threshold alone judges, and the reason says so.
    """

    name: str
    values: Callable[[Results], PerSeed]
    threshold: float
    direction: str = "at_least"  # or at_most
    no_effect: float = 0.0

    def __post_init__(self):
        assert self.direction in ("at_least", "at_most"), self.direction

    def judge(self, results: Results) -> dict:
        """The line of summary.json: every seed's number, mean, standard error, threshold, verdict and its reason."""
        sign = 1 if self.direction == "at_least" else -1
        values = PerSeed({seed: v for seed, v in self.values(results).items() if v is not None and math.isfinite(v)})
        missing = [seed for seed in results.seeds if seed not in values]
        turn = min(sign * self.no_effect, sign * self.threshold)  # a seed below it, times sign, shows the opposite
        opposite = [seed for seed in values if sign * values[seed] < turn]
        if not values or missing:
            passed, reason = False, f"no number for seed {_listed(missing)}" if missing else "no numbers at all"
        elif len(values) == 1:
            passed = sign * values.mean > sign * self.threshold
            reason = "one seed, judged by the threshold alone"
        elif opposite:
            passed, reason = False, f"seed {_listed(opposite)} shows the opposite"
        elif sign * (values.mean - self.threshold) <= 0:
            passed, reason = False, "the mean does not reach the threshold"
        else:
            passed = sign * (values.mean - self.threshold) > values.error
            reason = "" if passed else "the mean is less than one standard error beyond the threshold"
        return {
            "name": self.name,
            "values": values.rounded(6),
            "mean": None if values.mean is None else round(values.mean, 6),
            "standard_error": None if values.error is None else round(values.error, 6),
            "direction": self.direction,
            "threshold": self.threshold,
            "no_effect": self.no_effect,
            "passed": passed,
            "reason": reason,
        }


def _listed(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(seeds)))


def verdict(line: dict) -> str:
    """A judged claim as one line for people.

    >>> verdict(Claim("gain", lambda r: r.last("a", "x"), 0.5).judge(Results([{"arm": "a", "seed": 0, "x": 0.7}])))
    'holds   gain: 0.700 (at least 0.5) [0.700]; one seed, judged by the threshold alone'
    """
    numbers = ", ".join(f"{value:.3f}" for value in line["values"].values())
    mean = "none" if line["mean"] is None else f"{line['mean']:.3f}"
    wanted = f"{line['direction'].replace('_', ' ')} {line['threshold']:g}"
    error = "" if line["standard_error"] is None else f" ± {line['standard_error']:.3f}"
    reason = f"; {line['reason']}" if line["reason"] else ""
    return f"{'holds  ' if line['passed'] else 'FAILS  '} {line['name']}: {mean}{error} ({wanted}) [{numbers}]{reason}"


def rank_correlation(x: list[float], y: list[float]) -> float | None:
    """Spearman's: Pearson's of the ranks, ties sharing theirs. None where one of them is constant.

    >>> rank_correlation([1, 2, 3], [10, 20, 15]), rank_correlation([1, 1], [1, 2])
    (0.5, None)
    """

    def ranks(values: list[float]) -> list[float]:
        return [sum(v < value for v in values) + sum(v == value for v in values) / 2 for value in values]

    if len(set(x)) < 2 or len(set(y)) < 2:
        return None
    return round(statistics.correlation(ranks(x), ranks(y)), 6)


def slope(points: dict[float, float], log: bool = False) -> float | None:
    """Of the least-squares line through {x: y}; with log, per doubling of x. None with fewer than two x.

    >>> slope({8: 1.0, 16: 2.0, 32: 3.0}, log=True), slope({8: 4.0, 16: 8.0, 32: 16.0})
    (1.0, 0.5)
    """
    if len(points) < 2:
        return None
    x = [math.log2(value) if log else value for value in points]
    return statistics.linear_regression(x, list(points.values())).slope


# ------------------------------------------------------------------------------------------- what is run for them


@dataclass(frozen=True)
class Arm:
    """One run of one recipe, `nanoreason.recipes.<recipe>.run(settings)`, in OUT/seed<s>/<name>.

    Seed, device, `out` and the paths of what it starts from are filled in by `reproduce`.
    """

    name: str
    recipe: str
    settings: RunConfig
    base: str = ""  # the arm whose policy it starts from, or ARM/FOLDER for another folder of it; "": random weights
    inputs: dict[str, str] = field(default_factory=dict)  # {other setting that names a folder: like base}
    cost: float = 0.0  # how long it takes, in any unit the section's arms share; 0: its steps. A hint for the order

    def sources(self) -> dict[str, str]:
        """{setting: ARM/FOLDER}: what must be there before it starts."""
        named = ({"base": self.base} if self.base else {}) | self.inputs
        return {setting: name if "/" in name else f"{name}/policy" for setting, name in named.items()}

    def needs(self) -> Iterator[str]:
        return (name.split("/")[0] for name in self.sources().values())
