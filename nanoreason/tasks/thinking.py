"""Sums with thinking: digit addition in words of one line, whose solutions think first, in the tags of DeepSeek-R1.

    4 7 + 3 8                                                                                  the prompt
    <think> </think> <answer> 8 5 </answer>                                                    direct: no thought
    <think> 7 + 8 = 1 5 , 4 + 3 + 1 = 8 , so 8 5 </think> <answer> 8 5 </answer>               steps: one pass
    <think> 7 + 8 = 1 6 , ... , so 8 6 wait 7 + 8 = 1 5 , ... , so 8 5 wait ... </think> ...   recheck: until two agree

Its demonstrations contain errors, as what people write does, so a single pass is wrong now and then and checking pays.
Splits are those of every task about sums (`arithmetic.is_test`).
"""

from __future__ import annotations

import functools
import random
import re
from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple

from nanoreason.arithmetic import same_number, summands, two_numbers
from nanoreason.prompts import TAGS, extract_answer, extract_tagged, spaced, tagged
from nanoreason.rollout import Problem, Task, seed_of
from nanoreason.run import Range, Rate, Share
from nanoreason.tokenizer import TextTokenizer, word_tokenizer

MODES = ("direct", "steps", "recheck")
# Numbers and instructions of other sections are words of the same vocabulary, so one base serves all of them.
THINKING_WORDS = [
    "User:", "Assistant:", "<think>", "</think>", "<answer>", "</answer>", "wait", "so", "+", "=", ",", "?",
    "Think", "for", "maximum", "tokens.", "steps", "left", "short", "long", "Final", "Answer:", "answer", "check",
    "but", "Alternatively", "Hmm", *"0123456789",
]  # fmt: skip


@functools.cache
def thinking_tokenizer() -> TextTokenizer:
    """One token per word of THINKING_WORDS, so also per digit, and EOS."""
    return word_tokenizer(THINKING_WORDS)


def another(digit: int | str, draw: random.Random) -> str:
    """A digit that is not this one."""
    return str((int(digit) + draw.randint(1, 9)) % 10)


def one_pass(a: int, b: int, error_prob: float = 0.0, draw: random.Random | None = None) -> tuple[str, str]:
    """Column by column from the right; each column's digit is wrong with chance `error_prob`. Returns (text, result).

    An error is believed: the result is made of the digits as they were written. The carry is never wrong.

    >>> one_pass(47, 38)
    ('7 + 8 = 1 5 , 4 + 3 + 1 = 8 , so 8 5', '8 5')
    """
    columns, result, carry = [], "", 0
    for x, y in zip(reversed(str(a)), reversed(str(b)), strict=True):
        pair = f"{x} + {y} + 1" if carry else f"{x} + {y}"
        carry, digit = divmod(int(x) + int(y) + carry, 10)
        if error_prob and draw.random() < error_prob:
            digit = another(digit, draw)
        result = f"{digit}{result}"
        columns.append(f"{pair} = {'1 ' * carry}{digit}")
    result = spaced("1" * carry + result)
    return f"{' , '.join(columns)} , so {result}", result


def thoughts(a: int, b: int, mode: str, habits: ThinkingAddition, draw: random.Random) -> tuple[str, str]:
    """What stands between the think tags in one of MODES, and the answer it ends in.

    To recheck is to work the sum out again until two passes agree, or `max_passes` are done; with chance
    `extra_recheck_prob` once more although they agree. The answer is the last pass's result.
    """
    if mode == "direct":
        return "", spaced(a + b)
    passes = [one_pass(a, b, habits.error_prob, draw)]
    while mode == "recheck" and len(passes) < habits.max_passes:
        results = [result for _, result in passes]
        if results[-1] in results[:-1] and draw.random() >= habits.extra_recheck_prob:
            break
        passes.append(one_pass(a, b, habits.recheck_error_scale * habits.error_prob, draw))
    return " wait ".join(text for text, _ in passes), passes[-1][1]


@dataclass(frozen=True)
class ThinkingAddition(Task):
    """n-digit sums whose solutions think in tags. `info` holds the number of digits and the solution's mode as `form`.

    Item i of a split has `digits[i % len(digits)]` digits, or a length drawn by `shares`. Nothing asks for a mode: it
    is a function of (split, i) like all else, so that a model of these solutions takes each with about its share.
    """

    digits: tuple[Annotated[int, Range(1, 18)], ...] = (2, 3)  # lengths of the sums
    shares: tuple[Annotated[float, Range(0)], ...] = ()  # chance of each length; empty: all lengths in turn
    modes: tuple[Rate, Rate, Rate] = (0.67, 0.28, 0.05)  # shares of direct answers, of one pass, of re-checks
    error_prob: Share = 0.1  # chance that a column's digit is wrong, in each pass anew
    recheck_error_scale: Annotated[float, Range(0)] = 1.0  # a re-check errs so many times as often as the first pass
    extra_recheck_prob: Share = 0.0  # chance of one more pass although two agree
    max_passes: Annotated[int, Range(1, 100)] = 4  # of a solution, after which it believes the last one
    drop_tag_prob: Share = 0.0  # chance that a solution lacks one of its four tags, so that format is left to learn
    direct_error_prob: Share = 0.0  # chance that a digit of a direct answer is wrong; 1-digit sums are known by heart

    def __post_init__(self) -> None:
        if not self.digits:
            raise ValueError("digits: at least one length is needed")
        if self.shares and (len(self.shares) != len(self.digits) or not sum(self.shares)):
            raise ValueError(f"shares: one for each of {len(self.digits)} lengths, not {self.shares}")
        if min(self.modes) < 0 or not sum(self.modes):
            raise ValueError(f"modes: one share for each of {', '.join(MODES)}, not {self.modes}")

    def tokenizer(self) -> TextTokenizer:
        return thinking_tokenizer()

    def problem(self, split: str, index: int) -> Problem:
        """`split` is "test" or any other name; all others share the sums that are not held out."""
        draw = random.Random(seed_of("thinking", split, index))
        n = draw.choices(self.digits, self.shares)[0] if self.shares else self.digits[index % len(self.digits)]
        a, b = summands(n, split, draw)
        mode = draw.choices(MODES, self.modes)[0]
        thinking, answer = thoughts(a, b, mode, self, draw)
        if mode == "direct" and self.direct_error_prob and n > 1:
            digits = answer.split()
            answer = " ".join(another(d, draw) if draw.random() < self.direct_error_prob else d for d in digits)
        solution = tagged(thinking, answer)
        if draw.random() < self.drop_tag_prob:
            missing = draw.choice(TAGS)
            solution = " ".join(word for word in solution.split() if word != missing)
        return pose(a, b, solution, mode)

    def reward(self, problem: Problem, response: str) -> float:
        """1.0 if the one <answer> of the response, or a response that is nothing but an answer, is the sum; else 0.0"""
        return float(extract_answer(response) == problem.answer)

    def difficulty(self, problem: Problem) -> int:
        """How many digits the numbers have."""
        return problem.info["digits"]

    def domain(self, problem: Problem) -> tuple[int, int]:
        """What a sum demands: its digits and its carries."""
        return problem.info["digits"], carries(problem)

    def answer(self, response: str) -> str | None:
        return same_number(extract_answer(response) or "") or None

    def is_right_leniently(self, problem: Problem, response: str) -> bool:
        """However the digits are spaced, with or without a full stop."""
        return self.answer(response) == same_number(problem.answer)

    def max_tokens(self, problem: Problem) -> int:
        return longest_thinking(self.difficulty(problem), self.max_passes)

    def test_problems(self, count: int) -> list[Problem]:
        return [task.problem("test", i) for task in self.levels() for i in range(count)]

    def levels(self) -> list[Task]:
        return [replace(self, digits=(n,), shares=()) for n in self.digits]

    def parse(self, text: str) -> Problem:
        return pose(*two_numbers(text), "", "")

    def metrics(self, problem: Problem, response: str) -> dict[str, float]:
        """How the response thinks: its mode, tokens, re-checks, passes, and passes that repeat another word by word."""
        read = read_thinking(response)
        return {
            **{f"mode/{mode}": float(read.mode == mode) for mode in MODES},
            "thinking/length": float(read.tokens),
            "thinking/rechecks": float(read.rechecks),
            "thinking/passes": float(read.passes),
            "thinking/repeated": float(read.repeated),
        }


def pose(a: int, b: int, solution: str, mode: str) -> Problem:
    return Problem(f"{spaced(a)} + {spaced(b)}", spaced(a + b), solution, {"digits": len(str(a)), "form": mode})


class Thinking(NamedTuple):
    """What a response did, read from its text; nothing here says that it is right."""

    mode: str  # one of MODES, or "none": no <think> at the beginning
    results: tuple[str, ...]  # what each finished pass came to, e.g. ("8 6", "8 5")
    rechecks: int  # how often it said "wait"
    repeated: int  # passes that are an earlier one word by word: 1 where two agreed, more is repetition
    tokens: int  # words between the tags
    answer: str | None  # what stands in the one <answer>

    @property
    def passes(self) -> int:
        return len(self.results)


def read_thinking(response: str) -> Thinking:
    """How a response of `ThinkingAddition` thinks; total: any text is read, one that was cut as far as it goes.

    >>> read_thinking("<think> 7 + 2 = 8 , so 8 wait 7 + 2 = 9 , so 9 wait 7 + 2 = 9 , so 9 </think> <answer> 9")
    Thinking(mode='recheck', results=('8', '9', '9'), rechecks=2, repeated=1, tokens=26, answer=None)
    >>> read_thinking("<think> </think> <answer> 8 5 </answer>").mode, read_thinking("8 5").mode
    ('direct', 'none')
    """
    answer = extract_tagged(response)
    if not response.lstrip().startswith("<think>"):
        return Thinking("none", (), 0, 0, 0, answer)
    thinking = response.lstrip().removeprefix("<think>").split("</think>")[0].split("<answer>")[0]
    words = thinking.split()
    parts = [part.strip() for part in " ".join(words).split("wait")]
    results = tuple(part.rpartition("so ")[2] for part in parts if "so " in part)
    passes = [part for part in parts if part]
    rechecks = words.count("wait")
    mode = "recheck" if rechecks else "steps" if words else "direct"
    return Thinking(mode, results, rechecks, len(passes) - len(set(passes)), len(words), answer)


@functools.cache
def longest_thinking(digits: int, passes: int = 1) -> int:
    """Tokens of the longest response of `passes` passes over a sum of `digits` digits, tags and EOS included."""
    nines = 10**digits - 1
    thinking = " wait ".join([one_pass(nines, nines)[0]] * passes)
    return len(thinking_tokenizer().encode(tagged(thinking, spaced(2 * nines)))) + 1


def carries(problem: Problem) -> int:
    """How many columns of a sum carry.

    >>> carries(Problem("4 7 + 3 8", "8 5")), carries(Problem("User: 9 9 + 9 9 Think long Assistant:", "1 9 8"))
    (1, 2)
    """
    left, right = re.search(r"([0-9](?: [0-9])*) \+ ([0-9](?: [0-9])*)", problem.prompt).groups()
    count = carry = 0
    for x, y in zip(reversed(left.split()), reversed(right.split()), strict=True):
        carry = int(x) + int(y) + carry >= 10
        count += carry
    return count
