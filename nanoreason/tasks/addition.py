"""Digit addition in the text format of STaR (Zelikman et al., 2022): one token per digit, a scratchpad, an answer.

    Input:                       the prompt: an n-digit sum
    6 2 4 + 2 5 9
    Target:                      with a hint: "Target: 8 8 3"
    <scratch>                    the response
    6 2 4 + 2 5 9 , C: 0         the sum again; this line stands for the ones column, nothing is carried in
    2 + 5 , 3 C: 1               the next pair of digits, after the comma the result so far, then the carry so far
    6 + 2 , 8 3 C: 0
    , 8 8 3 C: 0                 no pair is left
    0 8 8 3                      the last carry in front
    </scratch>
    8 8 3                        the answer, without leading zero

Splits: every sum (a, b) belongs to "test" or to the rest by a hash of itself, so no training sum is ever tested.
One-digit sums are so few (81) that a tenth of them says nothing: they are tested all, and that curve is practice.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from nanoreason.arithmetic import same_number, summands, two_numbers
from nanoreason.prompts import spaced
from nanoreason.rollout import Problem, Task, seed_of
from nanoreason.run import Range, Share
from nanoreason.tokenizer import TextTokenizer, word_tokenizer

Digits = Annotated[int, Range(1, 18)]


@functools.cache
def tokenizer() -> TextTokenizer:
    """The 19 tokens that all of this task's texts are made of."""
    return word_tokenizer(["\n", "Input:", "Target:", "<scratch>", "</scratch>", "C:", "+", ",", *"0123456789"])


def scratchpad(a: int, b: int) -> str:
    """The worked response for two numbers with equally many digits.

    >>> print(scratchpad(6, 7))
    <scratch>
    6 + 7 , C: 0
    , 3 C: 1
    1 3
    </scratch>
    1 3
    """
    left, right = str(a), str(b)
    if len(left) != len(right):
        raise ValueError(f"{a} and {b} do not have equally many digits")
    lines = [f"{spaced(a)} + {spaced(b)} , C: 0"]
    done, carry = "", 0
    for column in reversed(range(len(left))):
        carry, digit = divmod(int(left[column]) + int(right[column]) + carry, 10)
        done = f"{digit}{done}"
        pair = f"{left[column - 1]} + {right[column - 1]} " if column else ""
        lines.append(f"{pair}, {spaced(done)} C: {carry}")
    lines.append(spaced(f"{carry}{done}"))
    return "\n".join(["<scratch>", *lines, "</scratch>", spaced(a + b)])


def sum_problem(a: int, b: int, form: str = "scratchpad") -> Problem:
    """The problem of adding two numbers with equally many digits; its solution is worked or the answer alone."""
    answer = spaced(a + b)
    solution = scratchpad(a, b) if form == "scratchpad" else answer
    return Problem(f"Input:\n{spaced(a)} + {spaced(b)}\nTarget:\n", answer, solution, {"digits": len(str(a))})


def answer_of(response: str) -> str:
    """The line behind the scratchpad, or the first line of a response that has none."""
    lines = response.split("\n")
    after = lines.index("</scratch>") + 1 if "</scratch>" in lines else 0
    return lines[after].strip() if after < len(lines) else ""


def trimmed(response: str) -> str:
    """The response up to its answer's line: what came after was not part of the trace."""
    lines = response.split("\n")
    return "\n".join(lines[: lines.index("</scratch>") + 2 if "</scratch>" in lines else 1])


@dataclass(frozen=True)
class Addition(Task):
    """n-digit sums on a scratchpad; item i of a split has `digits[i % len(digits)]` digits, or a length by `shares`."""

    digits: tuple[Digits, ...] = (1, 2, 3, 4, 5)  # lengths of the sums
    form: Literal["scratchpad", "direct"] = "scratchpad"  # direct: the answer alone
    shares: tuple[Annotated[float, Range(0)], ...] = ()  # chance of each length; empty: all lengths in turn
    hint_share: Share = 0.0  # how many of the problems carry their answer as a hint
    hinted_shares: tuple[Annotated[float, Range(0)], ...] = ()  # chance of each length among these; empty: as `shares`

    def __post_init__(self) -> None:
        if not self.digits:
            raise ValueError("digits: at least one length is needed")
        for name in ("shares", "hinted_shares"):
            shares = getattr(self, name)
            if shares and (len(shares) != len(self.digits) or not sum(shares)):
                raise ValueError(f"{name}: one share for each of {len(self.digits)} lengths, not {shares}")

    def tokenizer(self) -> TextTokenizer:
        return tokenizer()

    def problem(self, split: str, index: int) -> Problem:
        """`split` is "test" or any other name; all others share the sums that are not held out."""
        draw = random.Random(seed_of("addition", split, index))
        hinted = draw.random() < self.hint_share if self.hint_share else False
        shares = self.hinted_shares if hinted and self.hinted_shares else self.shares
        n = draw.choices(self.digits, shares)[0] if shares else self.digits[index % len(self.digits)]
        problem = sum_problem(*summands(n, split, draw), self.form)
        return self.hint(problem) if hinted else problem

    def reward(self, problem: Problem, response: str) -> float:
        """1.0 if the answer's line is the gold answer, else 0.0."""
        return float(answer_of(response) == problem.answer)

    def difficulty(self, problem: Problem) -> int:
        """How many digits the numbers have."""
        return problem.info["digits"]

    def answer(self, response: str) -> str | None:
        return same_number(answer_of(response)) or None

    def is_right_leniently(self, problem: Problem, response: str) -> bool:
        """However the digits are spaced, with or without a full stop."""
        return self.answer(response) == same_number(problem.answer)

    def work_is_valid(self, problem: Problem, response: str) -> bool:
        """Whether every line is what the procedure asks for. It leaves no choice, so the lines can be compared."""
        return trimmed(response) == problem.solution

    def max_tokens(self, problem: Problem) -> int:
        return longest_response(self.difficulty(problem))

    def test_problems(self, count: int) -> list[Problem]:
        """`count` held-out sums of each length; for one digit all 81 sums, seen ones included, whatever `count` is."""
        digits = [(a, b) for a in range(1, 10) for b in range(1, 10)]
        one_digit = [sum_problem(a, b, self.form) for a, b in digits] if 1 in self.digits else []
        longer = [replace(self, digits=(n,), shares=(), hint_share=0.0, hinted_shares=()) for n in self.digits if n > 1]
        return one_digit + [task.problem("test", i) for task in longer for i in range(count)]

    def levels(self) -> list[Task]:
        return [replace(self, digits=(n,), shares=(), hint_share=0.0, hinted_shares=()) for n in self.digits]

    def hint(self, problem: Problem) -> Problem:
        """The sum with its answer on the target line; the gold answer has no leading zero, here as in training."""
        # DIFFERS from the paper's code: its query hint keeps a leading 0 for two sums in five, its examples do not.
        asked = problem.prompt[:-1] + f" {problem.answer}\n"
        return replace(problem, prompt=asked, info={**problem.info, "hinted": True})

    def clean(self, response: str) -> str:
        return trimmed(response)

    def parse(self, text: str) -> Problem:
        return sum_problem(*two_numbers(text), self.form)


@functools.cache
def longest_response(digits: int) -> int:
    """Tokens of the longest worked response to a sum of `digits` digits, EOS included: that of all nines."""
    return len(tokenizer().encode(scratchpad(10**digits - 1, 10**digits - 1))) + 1
