"""Countdown by attempts among eleven small tasks: a mixture to pretrain on, then a teacher's solutions of Countdown.

    own        the target as `attempts.py` writes it: guesses, short and long thoughts; drills besides
    plain      <think> A no wait B yes </think> <answer> B </answer>    a solver in the base's own words: never gives up
    think      <think> Hmm A no Alternatively B yes check B yes </think> ...    other words, and a redundant check
    direct     <think> </think> <answer> B </answer>                    the answer at once

All tasks share their tags, one vocabulary and the digits; held-out problems are the target's. After "Does Math
Reasoning Improve General LLM Capabilities?" (2507.00432).
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass, replace
from typing import Literal

from nanoreason.prompts import OPEN, tagged
from nanoreason.rollout import Problem, Task, seed_of
from nanoreason.run import Share
from nanoreason.tasks.attempts import WORDS, Attempts, Mixture
from nanoreason.tasks.small import SMALL, Reasoning
from nanoreason.tasks.small import WORDS as SMALL_WORDS
from nanoreason.tokenizer import TextTokenizer, word_tokenizer

TARGET = "countdown"
MARKERS = ("Hmm", "Alternatively", "check")  # of the style think; own solutions have one of them by chance alone
TARGET_MIXTURE = Mixture.parse("guess:.18,short:.25,long:.42,compare:.15")
LONG = Mixture.parse("long:1")  # no drill: problems alone
LONGEST = 270  # tokens of a thought: 20 attempts
# At which a base of a few minutes is neither perfect nor hopeless. Small worlds have few questions, so that held-out
# problems repeat: 120 of `mul` are 17 different ones (all that are held out), of `gcd` 57, of `sub` 106, of `chain`
# 114, of `mod` and `count` 116.
SIZES: dict[str, dict[str, int]] = {
    "mul": {"largest": 30}, "mod": {"largest": 30}, "chain": {"largest": 12}, "gcd": {"largest": 30},
    "sub": {"digits": 2}, "sort": {"length": 3}, "copy": {"length": 20}, "reverse": {"length": 8},
    "max": {"length": 4}, "recall": {"length": 3}, "count": {"length": 6},
}  # fmt: skip
NON = tuple(name for name, kind in SMALL.items() if not issubclass(kind, Reasoning))


@functools.cache
def tokenizer() -> TextTokenizer:
    """The words of Countdown by attempts with the same numbers as there, and those that only small tasks have."""
    known = {*WORDS, *map(str, range(61))}
    return word_tokenizer([*WORDS, *map(str, range(61)), *(word for word in SMALL_WORDS if word not in known)])


@dataclass(frozen=True)
class Suite(Task):
    """Problems of the target, and in a share `others` of every small task alike."""

    others: Share = 0.0  # how many of the problems to train on are not the target's
    style: Literal["own", "plain", "think", "direct"] = "own"  # of the target's solutions
    scratch: Share = 0.7  # how many of a reasoning task's own solutions have a thought
    marked: Share = 0.005  # how many of the own thoughts begin with a stray marker, so that none is unheard of

    def tasks(self) -> dict[str, Task]:
        """All tasks by name, the target first."""
        small = {}
        for name, kind in SMALL.items():
            thoughts = {} if name in NON else {"scratch": self.scratch}
            small[name] = kind(**thoughts, **SIZES[name])
        return {TARGET: Attempts(shares=TARGET_MIXTURE, longest=LONGEST)} | small

    def groups(self) -> dict[str, list[str]]:
        """{target, other (reasoning tasks), non (tasks without reasoning): names}."""
        return {"target": [TARGET], "other": [name for name in SMALL if name not in NON], "non": list(NON)}

    def tokenizer(self) -> TextTokenizer:
        return tokenizer()

    def problem(self, split: str, index: int) -> Problem:
        """`info["task"]` is its task."""
        tasks, draw = self.tasks(), random.Random(seed_of("suite", split, index))
        elsewhere = split != "test" and draw.random() < self.others
        name = draw.choice(list(SMALL)) if elsewhere else TARGET
        problem = tasks[name].problem(split, index)
        if name == TARGET and self.style != "own":
            problem = taught(self.style, replace(tasks[name], shares=LONG).problem(split, index), tasks[name], draw)
        elif draw.random() < self.marked:
            stray = problem.solution.replace(OPEN, f"{OPEN} {draw.choice(MARKERS)}", 1)
            problem = replace(problem, solution=stray)
        return replace(problem, info=problem.info | {"task": name})

    def test_problems(self, count: int) -> list[Problem]:
        found = self.tasks()[TARGET].test_problems(count)
        return [replace(problem, info=problem.info | {"task": TARGET}) for problem in found]

    def parse(self, text: str) -> Problem:
        problem = self.tasks()[TARGET].parse(text)
        return replace(problem, info=problem.info | {"task": TARGET})

    def told(self, problem: Problem) -> str:
        return self.tasks()[problem.info["task"]].told(problem)

    def reward(self, problem: Problem, response: str) -> float:
        return self.tasks()[problem.info["task"]].reward(problem, response)

    def difficulty(self, problem: Problem) -> int:
        return self.tasks()[problem.info["task"]].difficulty(problem)

    def answer(self, response: str) -> str | None:
        return self.tasks()[TARGET].answer(response)

    def metrics(self, problem: Problem, response: str) -> dict[str, float]:
        return self.tasks()[problem.info["task"]].metrics(problem, response)


def taught(style: str, problem: Problem, target: Attempts, draw: random.Random) -> Problem:
    """The target's problem with a teacher's solution: it tries until it is right."""
    solver = replace(target, give_up=(0.0, 0.0))
    right = ""
    while not right:
        said, right = solver.tried(problem.info["numbers"], problem.info["target"], draw, LONGEST // 13)
    if style == "think":
        said = f"Hmm {said.replace(' wait ', ' Alternatively ')} check {right} yes"
    return replace(problem, solution=tagged("" if style == "direct" else said, right))
