"""Exact arithmetic on text that nobody can trust, and the sums that tasks about addition share.

A model under reinforcement learning tries whatever pays, so `safe_arithmetic` accepts a small language, looks at no
more than MAX_ANSWER characters, returns None for everything else, and never raises.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from fractions import Fraction
from typing import TypeVar

from nanoreason.rollout import seed_of

T = TypeVar("T")
TEST_SHARE = 10  # one sum in ten is held out
MAX_ANSWER = 300  # characters; a longer answer is no answer. Bounds the work and the size of every intermediate
TOKEN = re.compile(r"\s*(?:(0|[1-9][0-9]{0,11})|([-+*/()]))")  # [0-9], as \d takes every Unicode digit
BINDS = {"+": 1, "-": 1, "*": 2, "/": 2, "(": 0}


def parse_arithmetic(
    text: str, number: Callable[[int], T], join: Callable[[T, str, T], T | None]
) -> tuple[T, list[int]] | None:
    """The value of an expression and the numbers it uses, in order; None unless all of it is one expression.

    `number` gives the value of a number, `join` that of "a sign b", or None if there is none. The language:
    non-negative integers of at most 12 digits, + - * / with their usual precedence, parentheses, spaces. No unary
    signs, powers, floor division, decimal points, leading zeros or implied products.
    Dijkstra's two stacks instead of recursion: nesting cannot exhaust Python's own stack.
    """
    text = text.rstrip()
    if len(text) > MAX_ANSWER:
        return None
    numbers: list[int] = []
    values: list[T] = []
    operators: list[str] = []

    def reduce() -> bool:
        """Apply the operator on top of the stack; False if that has no value."""
        sign, b, a = operators.pop(), values.pop(), values.pop()
        values.append(join(a, sign, b))
        return values[-1] is not None

    wants_value = True  # a number or "(" must come next; otherwise an operator or ")"
    position = 0
    while position < len(text):
        if not (token := TOKEN.match(text, position)):
            return None
        position = token.end()
        digits, sign = token[1], token[2]
        if wants_value != (digits is not None or sign == "("):
            return None
        if digits is not None:
            numbers.append(int(digits))
            values.append(number(int(digits)))
            wants_value = False
        elif sign == "(":
            operators.append(sign)
        else:
            # ")" closes back to its "("; an operator first applies what binds at least as tightly (left to right)
            while operators and operators[-1] != "(" and (sign == ")" or BINDS[operators[-1]] >= BINDS[sign]):
                if not reduce():
                    return None
            if sign == ")":
                if not operators:
                    return None
                operators.pop()
            else:
                operators.append(sign)
                wants_value = True
    if wants_value:
        return None
    while operators:
        if operators[-1] == "(" or not reduce():
            return None
    return values[0], numbers


def safe_arithmetic(text: str) -> tuple[Fraction, list[int]] | None:
    """The exact value of an expression and the numbers it uses, in order; None for anything else, or a division by 0.

    >>> value, numbers = safe_arithmetic("8/(3-8/3)")
    >>> int(value), numbers
    (24, [8, 3, 8, 3])
    >>> [safe_arithmetic(trick) for trick in ("2**3", "7//2", "-3+5", "2(3)", "1/0", "1+2=3", "")]
    [None, None, None, None, None, None, None]
    """

    def join(a: Fraction, sign: str, b: Fraction) -> Fraction | None:
        if sign == "/":
            return a / b if b else None
        return a + b if sign == "+" else a - b if sign == "-" else a * b

    return parse_arithmetic(text, Fraction, join)


def same_number(text: str) -> str:
    """A number without spaces between its digits and without a full stop: all wordings of it are the same text.

    >>> same_number("8 5"), same_number(" 85"), same_number("8 5.")
    ('85', '85', '85')
    """
    return "".join(text.split()).removesuffix(".")


# ---------------------------------------------------------------------------------------------------------- sums


def is_test(a: int, b: int) -> bool:
    """Whether a sum is held out: a hash of itself says so, hence no training sum is ever tested."""
    return seed_of("addition", a, b) % TEST_SHARE == 0


def summands(digits: int, split: str, draw: random.Random) -> tuple[int, int]:
    """Two numbers of so many digits, whose sum belongs to the split."""
    low, high = 10 ** (digits - 1), 10**digits - 1
    a, b = draw.randint(low, high), draw.randint(low, high)
    while is_test(a, b) != (split == "test"):
        a, b = draw.randint(low, high), draw.randint(low, high)
    return a, b


def two_numbers(text: str) -> tuple[int, int]:
    """The summands that a person has typed.

    >>> two_numbers("47 + 38")
    (47, 38)
    """
    numbers = re.findall(r"[0-9]{1,18}", text)
    if len(numbers) != 2 or len(numbers[0]) != len(numbers[1]):
        raise ValueError("two numbers with equally many digits, such as 47 + 38")
    return int(numbers[0]), int(numbers[1])
