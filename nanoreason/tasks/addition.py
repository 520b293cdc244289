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

from nanoreason.rollout import Problem, seed_of
from nanoreason.tokenizer import TextTokenizer, word_tokenizer

TEST_SHARE = 10  # one sum in ten is held out


def tokenizer() -> TextTokenizer:
    """The 19 tokens that all of this task's texts are made of."""
    return word_tokenizer(["\n", "Input:", "Target:", "<scratch>", "</scratch>", "C:", "+", ",", *"0123456789"])


def spaced(number: int | str) -> str:
    """
    >>> spaced(624)
    '6 2 4'
    """
    return " ".join(str(number))


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


def is_test(a: int, b: int) -> bool:
    return seed_of("addition", a, b) % TEST_SHARE == 0


def hinted(problem: Problem) -> Problem:
    """The same problem with its answer on the target line. The gold answer has no leading zero, here as in training."""
    # DIFFERS from the paper's code: its query hint keeps a leading 0 for two sums in five, its examples do not.
    return replace(problem, prompt=problem.prompt[:-1] + f" {problem.answer}\n", info={**problem.info, "hinted": True})


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
class Addition:
    """n-digit sums; item i of a split has `digits[i % len(digits)]` digits, or a length drawn by `shares`."""

    digits: tuple[int, ...] = (1, 2, 3, 4, 5)
    form: str = "scratchpad"  # or "direct": the answer alone
    shares: tuple[float, ...] = ()  # chance of each length; empty: all lengths in turn
    hint_share: float = 0.0  # how many of the problems carry their answer as a hint

    def __post_init__(self) -> None:
        if self.form not in ("scratchpad", "direct"):
            raise ValueError(f"form {self.form!r}: use scratchpad or direct")
        if not self.digits or min(self.digits) < 1:
            raise ValueError(f"digits {self.digits}: every length must be at least 1")
        if self.shares and len(self.shares) != len(self.digits):
            raise ValueError(f"{len(self.shares)} shares for {len(self.digits)} digit lengths")

    def problem(self, split: str, index: int) -> Problem:
        """`split` is "test" or any other name; all others share the sums that are not held out."""
        draw = random.Random(seed_of("addition", split, index))
        n = draw.choices(self.digits, self.shares)[0] if self.shares else self.digits[index % len(self.digits)]
        low, high = 10 ** (n - 1), 10**n - 1
        a, b = draw.randint(low, high), draw.randint(low, high)
        while is_test(a, b) != (split == "test"):
            a, b = draw.randint(low, high), draw.randint(low, high)
        problem = sum_problem(a, b, self.form)
        return hinted(problem) if draw.random() < self.hint_share else problem

    def reward(self, problem: Problem, response: str) -> float:
        """1.0 if the answer's line is the gold answer, else 0.0."""
        return float(answer_of(response) == problem.answer)

    def work_is_valid(self, problem: Problem, response: str) -> bool:
        """Whether every line is what the procedure asks for. It leaves no choice, so the lines can be compared."""
        return trimmed(response) == problem.solution


def digits_of(problem: Problem) -> int:
    """The difficulty of a sum: its number of digits."""
    return problem.info["digits"]


@functools.cache
def longest_response(digits: int) -> int:
    """Tokens of the longest worked response to a sum of `digits` digits, EOS included: that of all nines."""
    return len(tokenizer().encode(scratchpad(10**digits - 1, 10**digits - 1))) + 1


def budget(problem: Problem) -> int:
    """Response tokens after which a sum cannot be right any more."""
    return longest_response(digits_of(problem))


def test_sums(digits: tuple[int, ...], count: int, form: str = "scratchpad") -> list[Problem]:
    """`count` held-out sums of each length; for one digit all 81 sums, seen ones included, whatever `count` is."""
    one_digit = [sum_problem(a, b, form) for a in range(1, 10) for b in range(1, 10)] if 1 in digits else []
    return one_digit + [Addition((n,), form).problem("test", i) for n in digits if n > 1 for i in range(count)]
