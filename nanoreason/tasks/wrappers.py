"""Tasks around a task: the same problems in a template, as a chat, with a number of tokens to think for, without an
answer, or for a thread that may spawn others.

    --task thinking,asked_length,templated       ThinkingAddition, asked for N tokens, in "User: ... Assistant:"

Each is a frozen dataclass over the task inside it and passes on what it does not change.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from nanoreason.prompts import (
    ANSWER,
    CLOSE,
    END,
    OPEN,
    TAGS,
    asked,
    extract_answer,
    extract_tagged,
    tagged,
    with_template,
)
from nanoreason.rollout import Problem, Task, seed_of
from nanoreason.run import Count, Positive, Rate, Share
from nanoreason.spawn import JOIN, NONE, SPAWN, Limits, Spawn, first_spawns, read_spawns, write_join, write_spawns


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
            work = problem.info.get("work", "")  # where the task tells it apart from the answer
            problem = replace(problem, solution=tagged(work, problem.answer if work else problem.solution))
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


@dataclass(frozen=True)
class Parallel(Wrapper):
    """Attempts whose parent may spawn children, each with one operation done (Pan et al., 2025); see `spawn.py`.

    Its solutions are single segments of what a demonstrator does, each a text of its own as in the paper: a block of
    spawns, what follows a join (the join is part of the prompt, so it is context and not loss), a child.
    """

    task: Task
    texts: tuple[Rate, Rate, Rate] = (1.0, 0.0, 0.0)  # shares: blocks of spawns, what follows a join, children
    asked: Count = 0  # children that every prompt asks for; 0: it does not say, but for asked_share
    asked_share: Share = 0.0  # how many of the texts are asked for as many as they spawn
    found_share: Share = 0.5  # of joins and children, how many have something to find: by chance too few have
    go_on: Share = 0.5  # chance of one more block where all children found nothing
    child_tokens: Positive = 240  # of a child's thought in the solutions: it fits the window that children have
    faithful_mask: bool = False  # the join in the loss too, as in the released code: parents then make joins up
    max_children: Positive = 8  # of a block
    max_rounds: Positive = 4  # blocks

    spawn = (SPAWN, JOIN)

    def __post_init__(self) -> None:
        if not hasattr(self.task, "tried"):
            raise ValueError("parallel goes directly around attempts or hard_attempts, as in hard_attempts,parallel")
        if not sum(self.texts):
            raise ValueError(f"texts {self.texts}: at least one share must be more than 0")

    @property
    def limits(self) -> Limits:
        return Limits(self.max_children, self.max_rounds)

    def wrap(self, problem: Problem, split: str, index: int) -> Problem:
        draw = random.Random(seed_of("parallel", split, index))
        kind = 0 if split == "test" else draw.choices(range(3), self.texts)[0]
        count = self.asked or draw.randint(1, self.max_children)
        is_asked = bool(self.asked) or draw.random() < self.asked_share
        problem = replace(problem, prompt=f"{problem.prompt} ;{f' {count}' if is_asked else ''}")
        if kind == 2:
            return self.child(problem, draw)
        spawns = self.spawns(problem, draw)
        if kind == 1 and draw.random() < self.found_share:  # one that can find something is among the first `count`
            good = next((s for s in spawns if self.thought(s, problem, draw)[1]), spawns[0])
            spawns.insert(draw.randrange(count), spawns.pop(spawns.index(good)))
        segments = list(self.segments(problem, spawns, count, draw))
        before, said = segments[0] if kind == 0 else draw.choice(segments[1:])
        if kind == 1 and self.faithful_mask:
            before, said = "", f"{before} {said}"
        return replace(problem, prompt=f"{problem.prompt} {before}".rstrip(), solution=said)

    def spawns(self, problem: Problem, draw: random.Random) -> list[Spawn]:
        """All first operations, shuffled."""
        found = first_spawns(problem.info["numbers"], self.task.operations, self.task.largest)
        return draw.sample(found, len(found))

    def thought(self, spawn: Spawn, problem: Problem, draw: random.Random) -> tuple[str, str]:
        """What a child thinks that fits its window, and the steps that it finds or nothing."""
        most = max(1, self.child_tokens // (6 * len(spawn.numbers) - 5))  # an attempt, its verdict, the wait behind it
        return self.task.tried(spawn.numbers, problem.info["target"], draw, most)

    def segments(
        self, problem: Problem, left: list[Spawn], count: int, draw: random.Random
    ) -> Iterator[tuple[str, str]]:
        """(what stands before a segment, the segment): blocks of `count` of the spawns, and the answer."""
        before, opening, answer = "", f"{OPEN} ", ""
        for _ in range(self.max_rounds):
            spawns, left = left[:count], left[count:]
            yield before, f"{opening}{write_spawns(spawns)}"
            outcomes = [self.thought(spawn, problem, draw)[1] or NONE for spawn in spawns]
            before = f"{before} {opening}{write_join(spawns, outcomes)}".strip()
            answer = (
                before.rpartition(" wait ")[2].removeprefix(OPEN).removesuffix("yes") if before[-3:] == "yes" else ""
            )
            if answer or not left or draw.random() >= self.go_on:
                break
            opening = "wait "
        yield before, f"{CLOSE} {ANSWER} {answer.strip() or NONE} {END}"

    def child(self, problem: Problem, draw: random.Random) -> Problem:
        """A child of a first operation: its thought, and the steps that it found, or none."""
        wanted = draw.random() < self.found_share
        for spawn in self.spawns(problem, draw):
            thinking, found = self.thought(spawn, problem, draw)
            if found or not wanted:
                break
        return replace(self.posed(spawn, problem), solution=tagged(thinking, found or NONE))

    def posed(self, spawn: Spawn, problem: Problem) -> Problem:
        info = {**problem.info, "numbers": spawn.numbers, "step": spawn.step}
        prompt = f"{info['target']} from {' '.join(map(str, spawn.numbers))}"
        return Problem(prompt, problem.answer, "", info)

    def spawned(self, problem: Problem, response: str) -> list[Problem]:
        spawns = read_spawns(response, len(problem.info["numbers"]) - 1)
        return [self.posed(spawn, problem) for spawn in spawns if spawn.numbers]

    def joined(self, children: list[Problem], responses: list[str]) -> str:
        spawns = [Spawn(child.info["step"], child.info["numbers"]) for child in children]
        return write_join(spawns, [extract_answer(response) or NONE for response in responses])


@dataclass(frozen=True)
class Chat(Wrapper):
    """Asked as the user's message in a chat, in the template that the checkpoint brings along (`chat.py`).

    The prompt stays the question; it becomes a chat where it becomes tokens, because only there the template is known.
    """

    task: Task
    system: str = ""  # the system's message; empty: none, or what the template says by itself

    def wrap(self, problem: Problem, split: str, index: int) -> Problem:
        return replace(problem, info={**problem.info, "chat": self.system})


WRAPPERS = {
    "templated": Templated, "chat": Chat, "asked_length": AskedLength, "unanswerable": Unanswerable,
    "parallel": Parallel,
}  # fmt: skip
