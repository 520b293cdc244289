"""The small tasks as one: a mixture to pretrain on, and one of them, the target, to be trained on in a teacher's style.

    own        the target's solutions as the task writes them: at once, or in a share behind a short thought
    direct     always at once
    think      <think> hmm , WORK ; wait check , WORK ; hmm </think> ANSWER: markers and a redundant check

Held-out problems are the target's. After "Does Math Reasoning Improve General LLM Capabilities?" (2507.00432).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Literal

from nanoreason.prompts import CLOSE, OPEN
from nanoreason.rollout import Problem, Task, seed_of
from nanoreason.run import Share
from nanoreason.tasks.small import SMALL, Reasoning, Small, answer_of, tokenizer
from nanoreason.tokenizer import TextTokenizer

MARKERS = ("hmm", "wait", "check")  # of the style think; "own" solutions have one of them by chance alone
SIZES = {"sort": 5, "recall": 4, "count": 6}  # what a base of a few hundred thousand weights learns in minutes
NON = tuple(name for name, kind in SMALL.items() if not issubclass(kind, Reasoning))


@dataclass(frozen=True)
class Suite(Task):
    """Problems of the target, and in a share `others` of every other small task alike."""

    target: Literal["mul", "mod", "chain", "gcd", "sort", "sub"] = "mul"  # the task that is trained for
    others: Share = 0.0  # how many of the problems to train on are not the target's
    style: Literal["own", "direct", "think"] = "own"  # of the target's solutions
    scratch: Share = 0.3  # how many of a reasoning task's own solutions have a thought
    marked: Share = 0.005  # how many of the own solutions begin with a stray marker, so that none is unheard of

    def tasks(self) -> dict[str, Small]:
        """All small tasks by name, the target first."""
        names = [self.target, *(name for name in SMALL if name != self.target)]
        sizes = {name: {"length": SIZES[name]} for name in SIZES}
        thoughts = {name: {} if name in NON else {"scratch": self.scratch} for name in names}
        return {name: SMALL[name](**thoughts[name], **sizes.get(name, {})) for name in names}

    def groups(self) -> dict[str, list[str]]:
        """{target, other (reasoning tasks), non (tasks without reasoning): names}."""
        other = [name for name in SMALL if name != self.target and name not in NON]
        return {"target": [self.target], "other": other, "non": list(NON)}

    def tokenizer(self) -> TextTokenizer:
        return tokenizer()

    def problem(self, split: str, index: int) -> Problem:
        tasks, draw = self.tasks(), random.Random(seed_of("suite", split, index))
        elsewhere = split != "test" and draw.random() < self.others
        name = draw.choice(list(tasks)[1:]) if elsewhere else self.target
        problem, task = tasks[name].problem(split, index), tasks[name]
        if name == self.target and self.style == "direct":
            return replace(problem, solution=problem.answer)
        if name == self.target and self.style == "think":
            thinking = replace(task, scratch=1.0).problem(split, index).solution  # the same question
            work = thinking.removeprefix(OPEN).partition(CLOSE)[0].strip()
            said = f"{OPEN} hmm , {work} ; wait check , {work} ; hmm {CLOSE} {problem.answer}"
            return replace(problem, solution=said)
        stray = f"{draw.choice(MARKERS)} " if draw.random() < self.marked else ""
        return replace(problem, solution=stray + problem.solution)

    def reward(self, problem: Problem, response: str) -> float:
        return float(answer_of(response) == problem.answer)

    def answer(self, response: str) -> str | None:
        return answer_of(response) or None

    def metrics(self, problem: Problem, response: str) -> dict[str, float]:
        return {"thinks": float(response.startswith(OPEN))}
