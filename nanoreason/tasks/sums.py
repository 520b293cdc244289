"""Sums asked in English, for pretrained models that are too small for word problems.

    What is seventeen plus five? Answer with the number only.           numbers words
    What is 17 + 5? Answer with the number only.                        numbers figures

One pair of numbers in ten is held out for each operation, by a hash of itself. Strictly right is a response that is the
number and nothing else, as it was asked for; leniently right is one whose last number it is, or that says it in words.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from nanoreason.math_answers import NUMBER, canonical, is_same_answer, last, strict_answer
from nanoreason.rollout import Problem, Task, seed_of
from nanoreason.run import Range
from nanoreason.tokenizer import TextTokenizer, byte_tokenizer

OPERATIONS = {"plus": "+", "minus": "-", "times": "*"}
HOLD_OUT = 10  # one pair in ten is held out
ONES = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen").split()  # fmt: skip
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
NO_NUMBER_WORD = re.compile(rf"\b(?!(?:{'|'.join([*ONES, *TENS, 'hundred', 'thousand', 'million'])})\b)[a-z]+")


def in_words(n: int) -> str:
    """
    >>> in_words(0), in_words(40), in_words(317), in_words(12_085), in_words(1_000_000)
    ('zero', 'forty', 'three hundred seventeen', 'twelve thousand eighty-five', 'one million')
    """
    for size, name in ((10**6, "million"), (1000, "thousand"), (100, "hundred")):
        if n >= size:
            rest = f" {in_words(n % size)}" if n % size else ""
            return f"{in_words(n // size)} {name}{rest}"
    if n < 20:
        return ONES[n]
    return TENS[n // 10 - 2] + (f"-{ONES[n % 10]}" if n % 10 else "")


@dataclass(frozen=True)
class SumsInWords(Task):
    """Sums, differences or products of two numbers with equally many digits, asked in English."""

    digits: tuple[Annotated[int, Range(1, 4)], ...] = (1,)  # how many digits both numbers have, in turn
    operation: Literal["plus", "minus", "times", "any"] = "plus"  # any: each as often; a difference is never negative
    numbers: Literal["words", "figures", "both"] = "figures"  # both: half of the questions each
    only: bool = True  # ask for the number only
    judge: Literal["strict", "lenient"] = "strict"  # whose verdict counts; the other one is measured beside it

    def __post_init__(self) -> None:
        if not self.digits:
            raise ValueError("digits: at least one length is needed")

    def tokenizer(self) -> TextTokenizer:
        return byte_tokenizer()

    def problem(self, split: str, index: int) -> Problem:
        draw = random.Random(seed_of("sums in words", split, index))
        n = self.digits[index % len(self.digits)]
        while True:
            operation = draw.choice(list(OPERATIONS)) if self.operation == "any" else self.operation
            a, b = (draw.randint(10 ** (n - 1), 10**n - 1) for _ in range(2))
            if operation == "minus":
                a, b = max(a, b), min(a, b)
            if (seed_of("sums in words", a, operation, b) % HOLD_OUT == 0) == (split == "test"):
                break
        words = draw.random() < 0.5 if self.numbers == "both" else self.numbers == "words"
        return self.pose(a, operation, b, words)

    def pose(self, a: int, operation: str, b: int, words: bool) -> Problem:
        asked = f"{in_words(a)} {operation} {in_words(b)}" if words else f"{a} {OPERATIONS[operation]} {b}"
        answer = str({"plus": a + b, "minus": a - b, "times": a * b}[operation])
        only = " Answer with the number only." if self.only else ""
        return Problem(f"What is {asked}?{only}", answer, answer, {"digits": len(str(max(a, b)))})

    def test_problems(self, count: int) -> list[Problem]:
        levels = [replace(self, digits=(n,)) for n in sorted(set(self.digits))]
        return [level.problem("test", index) for level in levels for index in range(count)]

    def levels(self) -> list[Task]:
        return [replace(self, digits=(n,)) for n in self.digits]

    def difficulty(self, problem: Problem) -> int:
        """How many digits the numbers have."""
        return problem.info["digits"]

    def is_right_strictly(self, problem: Problem, response: str) -> bool:
        """Whether the response, or the one answer that it marks, is the number written out."""
        return is_same_answer(problem.answer, strict_answer(response))

    def is_right_leniently(self, problem: Problem, response: str) -> bool:
        if self.is_right_strictly(problem, response):
            return True
        if number := last(NUMBER, response):
            return is_same_answer(problem.answer, number[0], lenient=True)
        said = NO_NUMBER_WORD.split(" ".join(re.findall("[a-z]+", response.lower().replace(" and ", " "))))[-1]
        return said.strip() == in_words(int(problem.answer)).replace("-", " ")

    def reward(self, problem: Problem, response: str) -> float:
        right = self.is_right_strictly if self.judge == "strict" else self.is_right_leniently
        return float(right(problem, response))

    def metrics(self, problem: Problem, response: str) -> dict[str, float]:
        """Both verdicts."""
        return {"strict": float(self.is_right_strictly(problem, response)),
                "lenient": float(self.is_right_leniently(problem, response))}  # fmt: skip

    def answer(self, response: str) -> str | None:
        number = last(NUMBER, response) if self.judge == "lenient" else None
        found = number[0] if number else strict_answer(response) or response.strip()
        return canonical(found) or None

    def parse(self, text: str) -> Problem:
        """Two numbers and a sign, such as "47 + 38"."""
        found = re.fullmatch(r"\s*([0-9]{1,4})\s*([-+*])\s*([0-9]{1,4})\s*", text)
        if not found:
            raise ValueError("two numbers of at most four digits, such as 47 + 38")
        operation = next(name for name, sign in OPERATIONS.items() if sign == found[2])
        return self.pose(int(found[1]), operation, int(found[3]), words=self.numbers == "words")
