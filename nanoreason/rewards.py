"""What a response is worth: finding the answer in it, and exact arithmetic on text that nobody can trust.

Everything here is total. A model under reinforcement learning tries whatever pays, so these functions accept a small
language, look at no more than MAX_ANSWER characters of it, return None for everything else, and never raise.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_ANSWER = 300  # characters; a longer answer is no answer. Bounds the work and the size of every intermediate
TOKEN = re.compile(r"\s*(?:(0|[1-9][0-9]{0,11})|([-+*/()]))")  # [0-9], as \d takes every Unicode digit
BINDS = {"+": 1, "-": 1, "*": 2, "/": 2, "(": 0}


def extract_answer(response: str) -> str | None:
    """The text between the one <answer> and the one </answer>, or the whole response if it has neither tag.

    Two answers are no answer: otherwise listing all candidates would be rewarded.

    >>> extract_answer("<think>2+2</think> <answer> 4 </answer>"), extract_answer(" 4\\n")
    ('4', '4')
    >>> extract_answer("<answer>4</answer> or <answer>5</answer>"), extract_answer("<answer>4"), extract_answer(" ")
    (None, None, None)
    """
    opened, closed = response.count("<answer>"), response.count("</answer>")
    if opened == closed == 0:
        return response.strip() or None
    start, end = response.find("<answer>") + len("<answer>"), response.find("</answer>")
    if opened != 1 or closed != 1 or end < start:
        return None
    return response[start:end].strip() or None


def safe_arithmetic(text: str) -> tuple[Fraction, list[int]] | None:
    """The exact value of an expression and the numbers it uses, in order; None unless all of it is one expression.

    The language: non-negative integers of at most 12 digits, + - * / with their usual precedence, parentheses, spaces.
    No unary signs, powers, floor division, decimal points, leading zeros, implied products, or division by zero.
    Dijkstra's two stacks instead of recursion: nesting cannot exhaust Python's own stack.

    >>> value, numbers = safe_arithmetic("8/(3-8/3)")
    >>> int(value), numbers
    (24, [8, 3, 8, 3])
    >>> [safe_arithmetic(trick) for trick in ("2**3", "7//2", "-3+5", "2(3)", "1/0", "1+2=3", "")]
    [None, None, None, None, None, None, None]
    """
    text = text.rstrip()
    if len(text) > MAX_ANSWER:
        return None
    numbers: list[int] = []
    values: list[Fraction] = []
    operators: list[str] = []

    def reduce() -> bool:
        """Apply the operator on top of the stack; False if that divides by zero."""
        sign, b, a = operators.pop(), values.pop(), values.pop()
        if sign == "/" and b == 0:
            return False
        values.append(a + b if sign == "+" else a - b if sign == "-" else a * b if sign == "*" else a / b)
        return True

    wants_value = True  # a number or "(" must come next; otherwise an operator or ")"
    position = 0
    while position < len(text):
        if not (token := TOKEN.match(text, position)):
            return None
        position = token.end()
        number, sign = token[1], token[2]
        if wants_value != (number is not None or sign == "("):
            return None
        if number is not None:
            numbers.append(int(number))
            values.append(Fraction(int(number)))
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
