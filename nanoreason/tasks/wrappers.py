"""Tasks around a task: the same problems in a template, with a number of tokens to think for, or without an answer.

    --task thinking,asked_length,templated       ThinkingAddition, asked for N tokens, in "User: ... Assistant:"

Each is a frozen dataclass over the task inside it and passes on what it does not change.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any, Literal

from nanoreason.prompts import END, TAGS, asked, extract_tagged, tagged, with_template
from nanoreason.rollout import Problem, Task, seed_of
from nanoreason.run import Share


class Wrapper:
    """What all of them share: problems go through `wrap`, everything else to the task inside."""

    task: Task

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "task":  # while it is being unpickled there is no task yet
            raise AttributeError(name)
        return getattr(self.task, name)

    def wrap(self, problem: Problem, split: str, index: int) -> Problem:
        raise NotImplementedError

    def problem(self, split: str, index: int) -> Problem:
        return self.wrap(self.task.problem(split, index), split, index)

    def test_problems(self, count: int) -> list[Problem]:
        return [self.wrap(problem, "test", i) for i, problem in enumerate(self.task.test_problems(count))]

    def levels(self) -> list[Task]:
        return [replace(self, task=task) for task in self.task.levels()]

    def parse(self, text: str) -> Problem:
        return self.wrap(self.task.parse(text), "test", 0)


@dataclass(frozen=True)
class Templated(Wrapper):
    """Asked in a template, answered in tags: what counts is what the one <answer> holds, and </answer> is the end."""

    task: Task
    template: Literal["skeleton", "r1"] = "skeleton"  # skeleton: User: ... Assistant:; r1: that of DeepSeek-R1

    stop = (END,)

    def wrap(self, problem: Problem, split: str, index: int) -> Problem:
        if problem.solution and not any(tag in problem.solution for tag in TAGS):
            problem = replace(problem, solution=tagged("", problem.solution))
        return with_template(problem, self.template)

    def reward(self, problem: Problem, response: str) -> float:
        return self.task.reward(problem, extract_tagged(response) or "")

    def is_right_leniently(self, problem: Problem, response: str) -> bool:
        return self.task.is_right_leniently(problem, extract_tagged(response) or "")

    def answer(self, response: str) -> str | None:
        answer = extract_tagged(response)
        return None if answer is None else self.task.answer(answer)


@dataclass(frozen=True)
class AskedLength(Wrapper):
    """ "Think for (maximum) N tokens." in the prompt (L1, 2503.04697), N drawn evenly; it counts the whole response.

    `info` gets `target_tokens` and `kind`, exact or max, which the reward `lcpo` reads.
    """

    task: Task
    kind: Literal["exact", "max", "both"] = "exact"  # both: each half of the time
    tokens: tuple[int, int] = (8, 96)  # smallest and largest N
    asked_share: Share = 1.0  # how many of the problems are asked so
    true_share: Share = 0.0  # in how many of those N is about true of the worked solution, as far as N reaches

    def __post_init__(self) -> None:
        if not 1 <= self.tokens[0] <= self.tokens[1] < 1 << 21:  # no context is longer
            raise ValueError(f"tokens: the smallest and the largest N, not {self.tokens}")

    def wrap(self, problem: Problem, split: str, index: int) -> Problem:
        draw = random.Random(seed_of("asked", split, index))
        if draw.random() >= self.asked_share:
            return problem
        low, high = self.tokens
        kind, amount = draw.choice(["exact", "max"]) if self.kind == "both" else self.kind, draw.randint(low, high)
        if draw.random() < self.true_share:
            length = len(self.task.tokenizer().encode(problem.solution))
            if low <= length <= high:
                # About as many: solutions come in whole passes, so exact numbers would leave most N without any.
                about = min(high, max(low, round(length * draw.uniform(0.8, 1.25))))
                amount = about if kind == "exact" else draw.randint(length, high)
        return asked(problem, kind, amount)


@dataclass(frozen=True)
class Unanswerable(Wrapper):
    """Some problems to train on have a stated answer that no response can give; the prompt does not tell which ones.

    For tasks that are judged by their answer's text (Demystifying Long CoT, section 4.5: hacking of a length reward).
    """

    task: Task
    wrong_answer_prob: Share = 1.0  # chance that a problem is one of these; those that are held out never are

    def wrap(self, problem: Problem, split: str, index: int) -> Problem:
        lost = random.Random(seed_of("unsolvable", split, index)).random() < self.wrong_answer_prob
        return replace(problem, answer=f"not {problem.answer}") if lost and split != "test" else problem


WRAPPERS = {"templated": Templated, "asked_length": AskedLength, "unanswerable": Unanswerable}
