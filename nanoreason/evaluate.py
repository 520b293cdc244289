"""Measuring a policy: graded responses, accuracy by difficulty, unbiased pass@k, maj@k, bootstrap intervals."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from nanoreason.model import Transformer
from nanoreason.rollout import Problem, Rollout, Task, prompt_rows, response_text
from nanoreason.run import progress
from nanoreason.sampler import Sampler
from nanoreason.tokenizer import TextTokenizer


@dataclass(frozen=True)
class Graded:
    """One response and its marks. Lenient: the answer is right. Strict: so is every step of the work."""

    problem: Problem
    text: str
    tokens: int
    stop_reason: str
    lenient: float
    strict: float


def respond(
    model: Transformer,
    tokenizer: TextTokenizer,
    problems: list[Problem],
    *,
    budget: Callable[[Problem], int],
    temperature: float = 0.0,
    group_size: int = 1,
    seed: int = 0,
    name: str = "sample",
) -> list[Rollout]:
    """`group_size` finished rows per problem, in the problems' order; `budget(problem)` bounds their responses."""
    sampler = Sampler(model, eos_id=tokenizer.eos_ids, temperature=temperature)
    rows = prompt_rows(tokenizer, problems, group_size, seed)
    for row in rows:
        row.max_new_tokens = budget(row.problem)
    sampler.submit(rows)
    for _ in progress(sampler, total=len(rows), desc=name, unit="row"):
        pass
    return rows


def grade(task: Task, tokenizer: TextTokenizer, rows: list[Rollout]) -> list[Graded]:
    """Marks for finished rows; a task without a check of the work (`work_is_valid`) has strict = lenient."""
    marks = []
    for row in rows:
        text = response_text(tokenizer, row)
        right = task.reward(row.problem, text)
        valid = task.work_is_valid(row.problem, text) if hasattr(task, "work_is_valid") else True
        marks.append(Graded(row.problem, text, len(row.response), row.stop_reason, right, right if valid else 0.0))
    return marks


def accuracy_by(marks: list[Graded], key: Callable[[Problem], object], strict: bool = False) -> dict:
    """{difficulty: accuracy}, e.g. `accuracy_by(marks, lambda problem: problem.info["digits"])`, keys sorted."""
    groups: dict = {}
    for mark in marks:
        groups.setdefault(key(mark.problem), []).append(mark.strict if strict else mark.lenient)
    return {k: sum(values) / len(values) for k, values in sorted(groups.items())}


def test_accuracy(
    model: Transformer,
    tokenizer: TextTokenizer,
    task: Task,
    problems: list[Problem],
    *,
    budget: Callable[[Problem], int],
    key: Callable[[Problem], object],
) -> dict[str, float]:
    """Greedy accuracy by difficulty: {"acc/KEY": right answers, "acc_strict/KEY": right answers through valid work}."""
    marks = grade(task, tokenizer, respond(model, tokenizer, problems, budget=budget, name="test"))
    lenient = {f"acc/{k}": value for k, value in accuracy_by(marks, key).items()}
    return lenient | {f"acc_strict/{k}": value for k, value in accuracy_by(marks, key, strict=True).items()}


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that k of the n samples, drawn without replacement, hold one of the c right ones.

    Chen et al., 2021, eq. 1: 1 - C(n-c, k) / C(n, k). With k > n all samples are drawn: 1 if any is right, else 0.

    >>> pass_at_k(4, 1, 2), pass_at_k(10, 0, 5), pass_at_k(4, 0, 8), pass_at_k(4, 1, 8)
    (0.5, 0.0, 0.0, 1.0)
    """
    if not (0 <= c <= n and k >= 1):
        raise ValueError(f"pass@k needs 0 <= c <= n and k >= 1, not n={n}, c={c}, k={k}")
    if c == 0:
        return 0.0
    return 1.0 - math.comb(n - c, k) / math.comb(n, k) if k <= n else 1.0


def maj_at_k(answers: list[str | None], right: list[bool], k: int, draws: int = 200, seed: int = 0) -> float:
    """The chance that the majority of k answers is right; ties are broken evenly, None (no answer) has no vote.

    Exact for k = n, else the mean over `draws` random subsets of k.

    >>> maj_at_k(["7", "7", "8"], [True, True, False], 3), maj_at_k(["7", "8"], [True, False], 2)
    (1.0, 0.5)
    """
    n = len(answers)
    if not 1 <= k <= n:
        raise ValueError(f"maj@k needs 1 <= k <= {n} answers, not k={k}")
    is_right = dict(zip(answers, right, strict=True))
    generator = random.Random(seed)
    total = 0.0
    subsets = [range(n)] if k == n else [generator.sample(range(n), k) for _ in range(draws)]
    for subset in subsets:
        votes = Counter(answers[i] for i in subset if answers[i] is not None)
        winners = [answer for answer, count in votes.items() if count == max(votes.values())]
        total += sum(is_right[answer] for answer in winners) / max(1, len(winners))
    return total / len(subsets)


def bootstrap_interval(
    values: list[float], level: float = 0.95, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean of `values` under resampling with replacement.

    >>> bootstrap_interval([1.0] * 50)
    (1.0, 1.0)
    """
    if not values:
        raise ValueError("an interval needs at least one value")
    generator = random.Random(seed)
    means = sorted(sum(generator.choices(values, k=len(values))) / len(values) for _ in range(draws))
    tail = (1 - level) / 2
    return means[int(tail * draws)], means[min(draws - 1, int((1 - tail) * draws))]


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
