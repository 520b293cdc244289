r"""Written problems from public files, for pretrained models: GSM8K and MATH. Where the answer is: `math_answers.py`.

    gsm8k    {"question": "...", "answer": "48-30 = <<48-30=18>>18 rolls are left.\n#### 18"}
    math     {"problem": "...", "solution": "... $\boxed{2\sqrt{5}}$.", "level": "Level 3", "type": "Geometry"}

    --task gsm8k,chat --task.files FOLDER       the folder of the files, as they are published (JSONL, JSON, Parquet)

data/gsm8k and data/math hold a dozen problems of each kind, written for this project, so that everything runs without
the data sets: they measure nothing. A stream of training problems goes through the split train again and again, in a
new order each time. A question that is also in the split test is never practised.
"""

from __future__ import annotations

import functools
import random
import re
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from nanoreason.math_answers import (
    canonical,
    is_same_answer,
    lenient_answers,
    marked_answer,
    strict_answer,
    without_boxes,
)
from nanoreason.problem_files import read_splits, text_of
from nanoreason.rollout import Problem, Task, seed_of
from nanoreason.run import Range
from nanoreason.tokenizer import TextTokenizer, byte_tokenizer

FORMS = {  # how the answer is asked for, and how a worked solution ends
    "hashes": ("Think step by step, then write #### and the final number on the last line.", "\n#### {}"),
    "boxed": ("Think step by step, and put the final answer into \\boxed{}.", "\nThe answer is \\boxed{{{}}}."),
    "none": ("", "\n#### {}"),
}
LEVELS = (1, 2, 3, 4, 5)


@functools.lru_cache(maxsize=8)
def problems_of(task: Written) -> dict[str, list[Problem]]:
    """All problems of a task by split; each question once."""
    found: dict[str, dict[str, Problem]] = {}
    for split, rows in read_splits(task.files).items():
        all_of_split = (task.read(row, where) for where, row in rows)
        found[split] = {problem.prompt: problem for problem in reversed([*all_of_split])}  # the first one counts
    train = {prompt: problem for prompt, problem in found["train"].items() if prompt not in found["test"]}
    return {
        split: [problem for problem in reversed(some.values()) if task.wants(problem)]
        for split, some in (("train", train), ("test", found["test"]))
    }


@functools.lru_cache(maxsize=16)
def order_of(count: int, split: str, epoch: int) -> list[int]:
    return random.Random(seed_of("written", split, epoch)).sample(range(count), count)


@dataclass(frozen=True)
class Written(Task):
    """What GSM8K and MATH share; a subclass reads a row."""

    files: str = ""  # folder of the train and test files
    form: Literal["hashes", "boxed", "none"] = "hashes"  # asked for and shown in solutions; none: only the question
    judge: Literal["strict", "lenient"] = "strict"  # whose verdict counts; the other one is measured beside it

    def read(self, row: dict, where: str) -> Problem:
        raise NotImplementedError

    def wants(self, problem: Problem) -> bool:
        return True

    def pose(self, question: str, answer: str = "", work: str = "", level: int = 0) -> Problem:
        """info["work"]: the worked solution without its answer, for whoever puts the two into tags."""
        words, ending = FORMS[self.form]
        solution = work + ending.format(answer) if answer else ""
        return Problem(f"{question}\n{words}".strip(), answer, solution, {"level": level, "work": work})

    def tokenizer(self) -> TextTokenizer:
        return byte_tokenizer()

    def of_split(self, split: str) -> list[Problem]:
        if not (problems := problems_of(self)[split]):
            raise ValueError(f"files: {self.files} holds no problem of the split {split} that this task asks")
        return problems

    def problem(self, split: str, index: int) -> Problem:
        if split == "test":
            return self.of_split(split)[index % len(self.of_split(split))]
        problems = self.of_split("train")
        epoch, place = divmod(index, len(problems))
        return problems[order_of(len(problems), split, epoch)[place]]

    def test_problems(self, count: int) -> list[Problem]:
        """`count` held-out problems of each level, or as many as there are."""
        by_level: dict[int, list[Problem]] = {}
        for problem in self.of_split("test"):
            by_level.setdefault(self.difficulty(problem), []).append(problem)
        return [problem for level in sorted(by_level) for problem in by_level[level][:count]]

    def is_right_strictly(self, problem: Problem, response: str) -> bool:
        return is_same_answer(problem.answer, strict_answer(response))

    def is_right_leniently(self, problem: Problem, response: str) -> bool:
        found = lenient_answers(response)
        return self.is_right_strictly(problem, response) or any(
            is_same_answer(problem.answer, answer, lenient=True) for answer in found
        )

    def reward(self, problem: Problem, response: str) -> float:
        right = self.is_right_strictly if self.judge == "strict" else self.is_right_leniently
        return float(right(problem, response))

    def metrics(self, problem: Problem, response: str) -> dict[str, float]:
        """Both verdicts, and whether an answer is marked at all."""
        return {
            "strict": float(self.is_right_strictly(problem, response)),
            "lenient": float(self.is_right_leniently(problem, response)),
            "marked": float(marked_answer(response) is not None),
        }

    def difficulty(self, problem: Problem) -> int:
        return problem.info["level"]

    def answer(self, response: str) -> str | None:
        found = [strict_answer(response)] if self.judge == "strict" else lenient_answers(response)
        return next((canonical(answer) for answer in found if answer), None) or None

    def parse(self, text: str) -> Problem:
        """Any question; its answer is not known."""
        if not text.strip():
            raise ValueError("a question, such as What is 3 times 4?")
        return self.pose(text.strip())


@dataclass(frozen=True)
class Gsm8k(Written):
    """Grade-school word problems (2110.14168): the answer is a number."""

    files: str = "data/gsm8k"  # folder of the train and test files; the default is a dozen of our own

    def read(self, row: dict, where: str) -> Problem:
        question, text = text_of(row, "question", where), text_of(row, "answer", where)
        work, mark, answer = text.rpartition("####")
        answer = answer.strip().replace(",", "").replace("$", "")
        if not mark or not re.fullmatch(r"-?[0-9]{1,300}(\.[0-9]{1,300})?", answer):
            raise ValueError(f"{where}: its answer does not end in #### and a number")
        return self.pose(question, answer, re.sub(r"<<[^<>]*>>", "", work).strip())


@dataclass(frozen=True)
class Math(Written):
    r"""Competition problems (2103.03874), also as MATH-500: the answer is what the solution's last \boxed holds."""

    files: str = "data/math"  # folder of the train and test files; the default is a dozen of our own
    form: Literal["hashes", "boxed", "none"] = "boxed"  # asked for and shown in solutions; none: only the question
    level: tuple[Annotated[int, Range(0, 5)], ...] = ()  # of the problems, 1 (easy) to 5, 0: not told; empty: all

    def read(self, row: dict, where: str) -> Problem:
        question, work = text_of(row, "problem", where), text_of(row, "solution", where)
        answer = text_of(row, "answer", where) if "answer" in row else next(iter(lenient_answers(work)), "")
        if not answer or ("answer" not in row and "\\boxed" not in work and "\\fbox" not in work):
            raise ValueError(f"{where}: its solution has no \\boxed answer")
        level = re.search("[1-5]", str(row.get("level", "")))
        problem = self.pose(question, answer, without_boxes(work), int(level[0]) if level else 0)
        return replace(problem, solution=work) if self.form == "boxed" and marked_answer(work) == answer else problem

    def wants(self, problem: Problem) -> bool:
        return not self.level or problem.info["level"] in self.level

    def levels(self) -> list[Task]:
        there = {self.difficulty(problem) for problem in self.of_split("train")}
        return [replace(self, level=(level,)) for level in sorted(there)]
