"""What the runs of a section came to: numbers per seed, read from lines of metrics, and claims that are judged by them.

    lines of metrics.jsonl -> Results -> PerSeed {seed: number} -> Claim.judge -> a line of summary.json

A number of an experiment is never one number but one per seed; means are taken last, and disagreement stays visible.
"""

from __future__ import annotations

import itertools
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


Metric = str | tuple[str, ...]  # a name in a line of metrics; several: their mean, where all of them are there


class Results:
    """The lines of metrics of all jobs, each {"arm", "seed", "step", metric: value, ...}.

    `where` narrows to lines by their other fields, each a value or a condition:
    results.last("s1", "accuracy", method="wait", asked=2), results.mean("plain", "acc/3", step=lambda s: s <= 6).
    """

    def __init__(self, lines: Iterable[dict], samples: Iterable[dict] = ()):
        self.samples = tuple(samples)  # lines of samples.jsonl, of which a figure may show some
        self._by_arm: dict[str, list[dict]] = {}
        for line in lines:
            self._by_arm.setdefault(line["arm"], []).append(line)
        self.arms = tuple(self._by_arm)
        self.seeds = tuple(sorted({line["seed"] for lines in self._by_arm.values() for line in lines}))

    def lines(self, arm: str, key: Metric, seed: int | None = None, **where: Any) -> list[tuple[dict, float]]:
        """(line, the metric's value) of the lines of an arm that have it: seed by seed, step by step."""
        keys = (key,) if isinstance(key, str) else key
        return [
            (line, line[key] if isinstance(key, str) else statistics.fmean(line[k] for k in keys))
            for line in self._by_arm.get(arm, ())
            if seed in (None, line["seed"])
            and all(k in line for k in keys)
            and all(wanted(line.get(k)) if callable(wanted) else line.get(k) == wanted for k, wanted in where.items())
        ]

    def per_seed(self, number: Callable[[int], float | None]) -> PerSeed:
        """{seed: number(seed)}, without the seeds for which it is None."""
        values = {seed: number(seed) for seed in self.seeds}
        return PerSeed({seed: value for seed, value in values.items() if value is not None})

    def of_series(self, number: Callable[[list[float]], float], arm: str, key: Metric, **where: Any) -> PerSeed:
        """A number of all values that a metric has in a seed, in order; seeds without any are left out."""

        def of(seed: int) -> float | None:
            values = [value for _, value in self.lines(arm, key, seed, **where)]
            return number(values) if values else None

        return self.per_seed(of)

    def first(self, arm: str, key: Metric, **where: Any) -> PerSeed:
        """A metric at its first measurement."""
        return self.of_series(lambda values: values[0], arm, key, **where)

    def last(self, arm: str, key: Metric, **where: Any) -> PerSeed:
        """A metric at its last measurement."""
        return self.of_series(lambda values: values[-1], arm, key, **where)

    def mean(self, arm: str, key: Metric, **where: Any) -> PerSeed:
        """The mean of a metric over all its measurements."""
        return self.of_series(statistics.fmean, arm, key, **where)

    def early(self, arm: str, key: Metric, share: float = 0.1, **where: Any) -> PerSeed:
        """The mean of a metric over the first share of its measurements, one at least."""
        return self.of_series(lambda v: statistics.fmean(v[: max(1, round(share * len(v)))]), arm, key, **where)

    def late(self, arm: str, key: Metric, share: float = 0.25, **where: Any) -> PerSeed:
        """The mean of a metric over the last share of its measurements, one at least: single rollouts are noisy."""
        return self.of_series(lambda v: statistics.fmean(v[-max(1, round(share * len(v))) :]), arm, key, **where)

    def by(self, arm: str, key: Metric, field: str, **where: Any) -> dict[Any, PerSeed]:
        """{value of another field: the last value of a metric there}, in the order in which the lines have them."""
        values = dict.fromkeys(line[field] for line, _ in self.lines(arm, key, **where) if field in line)
        return {value: self.last(arm, key, **where | {field: value}) for value in values}

    def table(self, metrics: dict[str, Metric], arms: Iterable[str] = (), **where: Any) -> dict[str, dict]:
        """{arm: {name: {seed: last value of a metric}}} for summary.json, of what is there."""
        found = {
            arm: {n: self.last(arm, m, **where).rounded() for n, m in metrics.items()} for arm in arms or self.arms
        }
        return {arm: {n: v for n, v in named.items() if v} for arm, named in found.items() if any(named.values())}

    def listed(self, arm: str, key: Metric, field: str, **where: Any) -> dict[str, dict]:
        """{value of another field: {seed: last value of a metric there}} for summary.json."""
        return {str(value): found.rounded() for value, found in self.by(arm, key, field, **where).items()}

    def curve(self, arm: str, key: Metric, seed: int | None = None, x: str = "step", **where: Any) -> dict:
        """{step or another field: a metric of one seed, or the mean over seeds}, in order."""
        return dict(self.points(arm, x, key, seed, **where))

    def points(
        self, arm: str, x: str, y: Metric, seed: int | None = None, by: str = "", **where: Any
    ) -> list[tuple[float, float]]:
        """(x, y) of the lines of one seed; without one, means of both over the lines that share a value of `by` (x)."""
        groups: dict[Any, list[tuple[float, float]]] = {}
        for line, value in self.lines(arm, y, seed, **where):
            if x in line:
                groups.setdefault(line[by or x], []).append((line[x], value))
        if all(isinstance(value, (int, float)) for value in groups):
            groups = {value: groups[value] for value in sorted(groups)}
        same_x = not by or by == x  # x may be a word then
        return [
            (group[0][0] if same_x else statistics.fmean(x for x, _ in group), statistics.fmean(y for _, y in group))
            for group in groups.values()
        ]


MORE, LESS = "at_least", "at_most"


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
    direction: str = MORE  # or LESS
    no_effect: float = 0.0

    def __post_init__(self):
        assert self.direction in (MORE, LESS), self.direction

    def judge(self, results: Results) -> dict:
        """The line of summary.json: every seed's number, mean, standard error, threshold, verdict and its reason."""
        sign = 1 if self.direction == MORE else -1
        values = PerSeed({seed: v for seed, v in self.values(results).items() if v is not None and math.isfinite(v)})
        missing = [seed for seed in results.seeds if seed not in values]
        turn = min(sign * self.no_effect, sign * self.threshold)  # a seed below it, times sign, shows the opposite
        opposite = [seed for seed in values if sign * values[seed] < turn]
        if not values or missing:
            passed, reason = False, f"no number for {_listed(missing)}" if missing else "no numbers at all"
        elif len(values) == 1:
            passed = sign * values.mean > sign * self.threshold
            reason = "one seed, judged by the threshold alone"
        elif opposite:
            passed, reason = False, f"{_listed(opposite)} show{'s' * (len(opposite) == 1)} the opposite"
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


# What most claims are about, as functions of Results:


def gain(arm: str, key: Metric, **where: Any) -> Callable[[Results], PerSeed]:
    """Last minus first measurement of an arm."""
    return lambda r: r.last(arm, key, **where) - r.first(arm, key, **where)


def growth(arm: str, key: Metric, before=Results.first, after=Results.last, **where: Any) -> Callable:
    """What a metric of an arm is after its training, over what it was before."""
    return lambda r: after(r, arm, key, **where) / before(r, arm, key, **where)


def lead(arm: str, other: str, key: Metric, at=Results.last, other_at=None, **where: Any) -> Callable:
    """What an arm has more than another, at the end or where `at` (and `other_at`) says."""
    return lambda r: at(r, arm, key, **where) - (other_at or at)(r, other, key, **where)


def ratio(arm: str, other: str, key: Metric, at=Results.late, **where: Any) -> Callable[[Results], PerSeed]:
    """An arm over another, in the last quarter of the steps or where `at` says."""
    return lambda r: at(r, arm, key, **where) / at(r, other, key, **where)


def _listed(seeds: Iterable[int]) -> str:
    seeds = list(seeds)
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, sorted(seeds)))}"


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


def at_tokens(course: list[tuple[float, float]], tokens: float) -> float | None:
    """Accuracy at so many tokens, from points (tokens, accuracy): between two of them it grows with the logarithm of
    the tokens, behind the last it stays; None before the first.

    >>> at_tokens([(100.0, 0.25), (400.0, 0.75)], 200.0), at_tokens([(100.0, 0.25)], 900.0), at_tokens([], 9.0)
    (0.5, 0.25, None)
    """
    course = sorted(course)
    for (x, low), (y, high) in itertools.pairwise(course):
        if x <= tokens < y:
            return low + (high - low) * math.log(tokens / x) / math.log(y / x)
    return course[-1][1] if course and tokens >= course[-1][0] else None


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
