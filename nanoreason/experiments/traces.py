"""Single responses of an arm, before and after its training: as text, and drawn as rows of attempts."""

from __future__ import annotations

import itertools
import textwrap
from typing import Any

from nanoreason.experiments.results import Results
from nanoreason.prompts import ANSWER, CLOSE
from nanoreason.tasks.attempts import RETRY, read_attempts

COLORS = {"wrong": "tab:red", "tried before": "lightgray", "right": "tab:green", "right, said again": "tab:olive"}


def tests_of(results: Results, arm: str, seed: int = 0) -> dict[int, list[dict]]:
    """{step: the responses of an arm that were kept when it was tested, always to the same problems}."""
    found: dict[int, list[dict]] = {}
    for line in results.samples:
        if (line["arm"], line["seed"], line.get("split")) == (arm, seed, "test"):
            found.setdefault(line["step"], []).append(line)
    return found


def one_thought_a_line(sample: dict, width: int) -> list[str]:
    """A response as a column: each attempt on a line of its own, then the answer and its verdict."""
    text = sample["response"]
    for mark in (*RETRY, CLOSE, ANSWER):
        text = text.replace(f" {mark}", f"\n{mark}")
    lines = [part for line in text.split("\n") for part in textwrap.wrap(line, width, subsequent_indent="  ")]
    return [*lines, "right" if sample["right"] else "cut" if sample["stop_reason"] == "length" else "wrong"]


def before_and_after(results: Results, arm: str, width: int = 40, most: int = 30) -> str:
    """Two responses side by side: to the first of the kept problems that is solved after the training and was not
    before, if there is one."""
    tests = tests_of(results, arm)
    if not tests:
        return "no responses were kept"
    (first, before), *_, (last, after) = sorted(tests.items()) * 2
    pairs = list(zip(before, after, strict=False))
    left, right = next((p for p in pairs if p[1]["right"] > p[0]["right"]), pairs[0])
    columns = [
        [f"step {step}", ""] + one_thought_a_line(sample, width) for step, sample in ((first, left), (last, right))
    ]
    columns = [c if len(c) <= most else [*c[: most - 4], "...", *c[-3:]] for c in columns]
    rows = itertools.zip_longest(*columns, fillvalue="")
    return "\n".join([left["prompt"], "", *(f"{a.ljust(width + 2)}{b}".rstrip() for a, b in rows)])


def draw_attempts(axis: Any, results: Results, arm: str) -> None:
    """Every attempt of the kept responses as a square, one row a response: what is tried, found, and tried again."""
    y, ticks = 0, {}
    squares: dict[str, list[tuple[int, int]]] = {name: [] for name in COLORS}
    for step, samples in sorted(tests_of(results, arm).items()):
        ticks[y - (len(samples) - 1) / 2] = f"step {step}"
        for sample in samples:
            target, numbers = (part.split() for part in sample["prompt"].split(" from "))
            read = read_attempts(tuple(map(int, numbers)), int(target[0]), sample["response"])
            for x, (attempt, ok) in enumerate(zip(read.attempts, read.legal, strict=True), 1):
                again = attempt in read.attempts[: x - 1]
                hit = ok and attempt.endswith(f"= {target[0]}")
                name = ("right, said again" if again else "right") if hit else "tried before" if again else "wrong"
                squares[name].append((x, y))
            if not read.attempts:
                axis.text(0.6, y, "a guess", fontsize=6, va="center")
            y -= 1
        y -= 1
    for name, places in squares.items():
        axis.plot(*zip(*places, strict=True) if places else ((), ()), "s", color=COLORS[name], label=name, markersize=5)
    axis.set_yticks(list(ticks), list(ticks.values()))
