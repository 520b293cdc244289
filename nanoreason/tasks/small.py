"""Eleven small tasks of one vocabulary: what a policy that was trained on one of them keeps of the others.

    other reasoning    mul 4 7 * 8 =      <think> 4 0 * 8 = 3 2 0 , 7 * 8 = 5 6 </think> <answer> 3 7 6 </answer>
                       mod ( 1 7 + 5 ) mod 4 =        chain 1 2 + 3 - 4 + 5 =       sub 8 2 1 3 - 9 1 5 =
                       gcd 4 8 , 1 8 =                sort 4 1 , 7 , 2 3 , ... =
    no reasoning       copy a b c =     reverse a b c =     max 4 1 , 7 , 2 3 =     recall a : 3 , b : 7 ; b =
                       count a : a b a =

The prompt names the task, every digit is a token, and all answers are in the tags of DeepSeek-R1. The thought is empty
but in a share `scratch` of the solutions of reasoning tasks. One question in ten is held out, by a hash of itself. The
suite follows the transferability study (2507.00432), at the size of a base of some 100,000 parameters.
"""

from __future__ import annotations

import functools
import math
import random
from dataclasses import dataclass
from typing import Annotated, NamedTuple

from nanoreason.prompts import END, TAGS, extract_tagged, spaced, tagged
from nanoreason.rollout import Problem, Task, seed_of
from nanoreason.run import Range, Share
from nanoreason.tokenizer import TextTokenizer, word_tokenizer

HOLD_OUT = 10  # one question in ten is held out
LETTERS = "abcdefghijklmnop"
NAMES = ("mul", "mod", "chain", "gcd", "sort", "copy", "reverse", "max", "recall", "count", "sub")
WORDS = [*NAMES, *TAGS, *"+-*=,:;()", *"0123456789", *LETTERS]


@functools.cache
def tokenizer() -> TextTokenizer:
    """The tokens that all small tasks are made of, and EOS."""
    return word_tokenizer(WORDS)


class Asked(NamedTuple):
    question: str
    answer: str
    work: str = ""  # a short thought; empty: the task needs none


def listed(numbers: list[int]) -> str:
    """
    >>> listed([41, 7])
    '4 1 , 7'
    """
    return " , ".join(map(spaced, numbers))


@dataclass(frozen=True)
class Small(Task):
    """A question drawn by `asked`; the same question is always in the same split."""

    stop = (END,)

    def asked(self, draw: random.Random) -> Asked:
        raise NotImplementedError

    def tokenizer(self) -> TextTokenizer:
        return tokenizer()

    def problem(self, split: str, index: int) -> Problem:
        name = type(self).__name__.lower()
        draw = random.Random(seed_of(name, split, index))
        while True:
            question, answer, work = self.asked(draw)
            prompt = f"{name} {question} ="
            if (seed_of(prompt) % HOLD_OUT == 0) == (split == "test"):
                break
        thinks = bool(work) and draw.random() < getattr(self, "scratch", 0.0)
        return Problem(prompt, answer, tagged(work if thinks else "", answer), {"thinks": thinks})

    def reward(self, problem: Problem, response: str) -> float:
        """1.0 if exactly the answer stands in the one <answer>."""
        return float(extract_tagged(response) == problem.answer)

    def answer(self, response: str) -> str | None:
        return extract_tagged(response)


# -------------------------------------------------------------------------------------------------- other reasoning


@dataclass(frozen=True)
class Reasoning(Small):
    scratch: Share = 0.3  # how many solutions have a short thought


@dataclass(frozen=True)
class Mul(Reasoning):
    """Two digits times one: tens and ones apart, then their sum."""

    largest: Annotated[int, Range(20, 99)] = 99  # of the first factor

    def asked(self, draw: random.Random) -> Asked:
        a, b = draw.randint(10, self.largest), draw.randint(2, 9)
        tens, ones = a // 10 * 10, a % 10
        work = f"{spaced(tens)} * {b} = {spaced(tens * b)} , {ones} * {b} = {spaced(ones * b)}"
        return Asked(f"{spaced(a)} * {b}", spaced(a * b), work)


@dataclass(frozen=True)
class Mod(Reasoning):
    """A sum of two numbers, modulo 2 to 9."""

    largest: Annotated[int, Range(9, 99)] = 99  # of the numbers

    def asked(self, draw: random.Random) -> Asked:
        a, b, m = draw.randint(1, self.largest), draw.randint(1, self.largest), draw.randint(2, 9)
        question = f"( {spaced(a)} + {spaced(b)} ) mod {m}"
        return Asked(question, str((a + b) % m), f"{spaced(a)} + {spaced(b)} = {spaced(a + b)}")


@dataclass(frozen=True)
class Chain(Reasoning):
    """a + b - c + d; nothing on the way is negative."""

    largest: Annotated[int, Range(9, 99)] = 99  # of the numbers

    def asked(self, draw: random.Random) -> Asked:
        a, b, d = (draw.randint(1, self.largest) for _ in range(3))
        c = draw.randint(1, min(self.largest, a + b))
        A, B, C, D, first, second = map(spaced, (a, b, c, d, a + b, a + b - c))
        work = f"{A} + {B} = {first} , {first} - {C} = {second}"
        return Asked(f"{A} + {B} - {C} + {D}", spaced(a + b - c + d), work)


@dataclass(frozen=True)
class Gcd(Reasoning):
    """The greatest common divisor of two numbers, by Euclid; half of the pairs share a divisor on purpose."""

    largest: Annotated[int, Range(24, 99)] = 60  # of the numbers

    def asked(self, draw: random.Random) -> Asked:
        shared = draw.randint(2, 12) if draw.random() < 0.5 else 1
        a, b = (shared * draw.randint(1, self.largest // shared) for _ in range(2))
        steps, x, y = [], a, b
        while y:
            steps.append(f"{spaced(x)} mod {spaced(y)} = {spaced(x % y)}")
            x, y = y, x % y
        return Asked(listed([a, b]), spaced(math.gcd(a, b)), " , ".join(steps))


@dataclass(frozen=True)
class Sort(Reasoning):
    """Numbers of two digits in rising order; the thought sorts both halves."""

    length: Annotated[int, Range(2, 12)] = 6  # how many numbers

    def asked(self, draw: random.Random) -> Asked:
        numbers = [draw.randint(10, 99) for _ in range(self.length)]
        half = self.length // 2
        work = f"{listed(sorted(numbers[:half]))} ; {listed(sorted(numbers[half:]))}"
        return Asked(listed(numbers), listed(sorted(numbers)), work)


@dataclass(frozen=True)
class Sub(Reasoning):
    """A number from one of so many digits; the thought goes by columns: digits, borrow = digit , borrow."""

    digits: Annotated[int, Range(2, 6)] = 4  # of the larger number

    def asked(self, draw: random.Random) -> Asked:
        b, a = sorted(draw.randint(10 ** (self.digits - 1) if i else 1, 10**self.digits - 1) for i in range(2))
        steps, borrow = [], 0
        for upper, lower in zip(reversed(str(a)), reversed(str(b).zfill(len(str(a)))), strict=True):
            rest = int(upper) - int(lower) - borrow
            steps.append(f"{upper} - {lower} - {borrow} = {rest % 10} : {int(rest < 0)}")
            borrow = int(rest < 0)
        return Asked(f"{spaced(a)} - {spaced(b)}", spaced(a - b), " , ".join(steps))


# ----------------------------------------------------------------------------------------------------- no reasoning


@dataclass(frozen=True)
class Copy(Small):
    """The letters again."""

    length: Annotated[int, Range(2, 40)] = 12  # how many letters

    def asked(self, draw: random.Random) -> Asked:
        text = spaced("".join(draw.choices(LETTERS, k=self.length)))
        return Asked(text, text)


@dataclass(frozen=True)
class Reverse(Copy):
    """The letters, the last one first."""

    def asked(self, draw: random.Random) -> Asked:
        text = super().asked(draw).question
        return Asked(text, text[::-1])


@dataclass(frozen=True)
class Max(Small):
    """The largest of some numbers up to 99."""

    length: Annotated[int, Range(2, 12)] = 6  # how many numbers

    def asked(self, draw: random.Random) -> Asked:
        numbers = [draw.randint(0, 99) for _ in range(self.length)]
        return Asked(listed(numbers), spaced(max(numbers)))


@dataclass(frozen=True)
class Recall(Small):
    """The value of one of some keys."""

    length: Annotated[int, Range(2, len(LETTERS))] = 6  # how many pairs

    def asked(self, draw: random.Random) -> Asked:
        pairs = [(key, draw.randint(0, 9)) for key in draw.sample(LETTERS, self.length)]
        key, value = draw.choice(pairs)
        return Asked(" , ".join(f"{k} : {v}" for k, v in pairs) + f" ; {key}", str(value))


@dataclass(frozen=True)
class Count(Small):
    """How often a letter occurs among some of a, b, c and d."""

    length: Annotated[int, Range(2, 40)] = 12  # how many letters

    def asked(self, draw: random.Random) -> Asked:
        letter, text = draw.choice("abcd"), "".join(draw.choices("abcd", k=self.length))
        return Asked(f"{letter} : {spaced(text)}", spaced(text.count(letter)))


SMALL = {kind.__name__.lower(): kind
         for kind in (Mul, Mod, Chain, Gcd, Sort, Copy, Reverse, Max, Recall, Count, Sub)}  # fmt: skip
