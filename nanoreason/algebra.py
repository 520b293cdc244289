r"""Exact values of the algebra that a model writes: numbers, fractions, roots, powers, letters, in plain text or LaTeX.

    value_at("\frac{1}{2}+\sqrt{8}", 0)      {1: 1/2, 2: 2}: a sum of rational multiples of roots
    is_same_value("(x+1)^2", "x^2+2x+1")     True: both agree, exactly, at several rational points

Nothing is evaluated as code. A text longer than MAX_ANSWER, brackets nested deeper than MAX_DEPTH, a number of more
than MAX_BITS bits, a root of a number above MAX_RADICAND or a sum of more than MAX_TERMS roots has no value, so the
work is bounded whatever the text: `9**9**9` is refused before anything is multiplied.
"""

from __future__ import annotations

import functools
import math
import re
from fractions import Fraction

from nanoreason.arithmetic import MAX_ANSWER
from nanoreason.rollout import seed_of

MAX_DEPTH, MAX_BITS, MAX_RADICAND, MAX_TERMS = 24, 2048, 10**7, 16
POINTS = 5  # at which two expressions with letters must agree
TOKEN = re.compile(
    r"(?P<number>(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3}(?![0-9.]))?)"
    r"|(?P<word>\\[a-zA-Z]+)|(?P<letter>[a-zA-Z])|(?P<sign>\*\*|[-+*/^%(){}\[\]])"
)
LETTERS = {f"\\{name}" for name in ("alpha", "beta", "gamma", "delta", "theta", "lambda", "mu", "phi", "omega", "pi")}
PAIRS = {"(": ")", "{": "}", "[": "]"}

Sum = dict[int, Fraction]  # {n: c}: the sum of c * sqrt(n); every n is square-free, sqrt(-n) is i * sqrt(n)


class NoValueError(ValueError):
    """The text has no value here: it is no algebra, it is too large, or it divides by 0."""


def is_same_value(a: str, b: str) -> bool | None:
    """Whether both texts have the same exact value wherever their letters point; None if one of them has no value.

    A false yes needs a difference that vanishes at POINTS fixed points; where one side has a value and the other has
    not (a pole), they are not the same.

    >>> is_same_value(r"\\frac{1}{\\sqrt{2}}", r"\\frac{\\sqrt2}{2}"), is_same_value("x(x+1)", "x^2+x+1")
    (True, False)
    >>> is_same_value("9**9**9", "1"), is_same_value("1/0", "1"), is_same_value("2 3", "6")
    (None, None, None)
    """
    compared = 0
    for point in range(POINTS):
        left, right = value_at(a, point), value_at(b, point)
        if left is None and right is None:
            continue
        if left is None or right is None:
            return False if compared else None
        if left != right:
            return False
        compared += 1
    return True if compared >= 2 else None


def rational(text: str) -> Fraction | None:
    """The value of a text without letters or roots that are left over, None for everything else.

    >>> rational("1.5"), rational("3/2"), rational("50%"), rational("x")
    (Fraction(3, 2), Fraction(3, 2), Fraction(1, 2), None)
    """
    values = [value_at(text, point) for point in (0, 1)]
    return values[0][1] if values[0] == values[1] and values[0] and values[0].keys() == {1} else \
        Fraction(0) if values == [{}, {}] else None  # fmt: skip


@functools.lru_cache(maxsize=1 << 14)
def value_at(text: str, point: int) -> Sum | None:
    """The value where each letter has the value that it has at this point; None if there is none."""
    if not text or len(text) > MAX_ANSWER:
        return None
    tokens, position = [], 0
    while position < len(text):
        if text[position].isspace():
            position += 1
            continue
        if not (found := TOKEN.match(text, position)):
            return None
        tokens.append((found.lastgroup, found[0]))
        position = found.end()
    try:
        reader = Reader(tokens, point)
        value = reader.sum(0)
        return value if reader.next == len(tokens) else None
    except (NoValueError, IndexError):
        return None


def letter_at(letter: str, point: int) -> Sum:
    """i is the imaginary unit. Every other letter is positive; whole at even points, for powers such as 2^n."""
    if letter == "i":
        return {-1: Fraction(1)}
    seed = seed_of("point", letter, point)
    return {1: Fraction(2 + seed % 61, 1 if point % 2 == 0 else 3 + seed // 61 % 7)}


class Reader:
    """A recursive descent over the tokens of one expression, with their values at one point.

    sum: product ((+|-) product)*      product: factor ((*|/|nothing) factor)*      factor: -factor | power
    power: atom %* (^ factor)?         atom: number | letter | bracketed sum | \\frac{}{} | \\sqrt[n]{}
    """

    def __init__(self, tokens: list[tuple[str, str]], point: int):
        self.tokens, self.point, self.next = tokens, point, 0

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.next] if self.next < len(self.tokens) else ("end", "")

    def take(self, *signs: str) -> str:
        """The next token if it is one of these, else nothing."""
        kind, text = self.peek()
        if text not in signs or kind == "end":
            return ""
        self.next += 1
        return text

    def sum(self, depth: int) -> Sum:
        if depth > MAX_DEPTH:
            raise NoValueError
        value = self.product(depth)
        while sign := self.take("+", "-"):
            value = add(value, self.product(depth), 1 if sign == "+" else -1)
        return value

    def product(self, depth: int) -> Sum:
        value = self.factor(depth)
        while True:
            if sign := self.take("*", "/"):
                right = self.factor(depth)
                value = times(value, right) if sign == "*" else over(value, right)
            elif self.peek()[0] in ("letter", "word") or self.peek()[1] in ("(", "{"):  # 2x, 3(x+1)
                value = times(value, self.power(depth))
            elif self.peek()[0] == "number" and self.tokens[self.next - 1][1] == "}":  # 2^{n}3^{n}; never "2 3"
                value = times(value, self.power(depth))
            else:
                return value

    def factor(self, depth: int) -> Sum:
        minus = 1
        while sign := self.take("-", "+"):
            minus = -minus if sign == "-" else minus
        return add({}, self.power(depth), minus)

    def power(self, depth: int) -> Sum:
        value = self.atom(depth)
        while self.take("%"):
            value = times(value, {1: Fraction(1, 100)})
        if self.take("^", "**"):
            if depth >= MAX_DEPTH:
                raise NoValueError
            value = raised(value, self.factor(depth + 1))  # to the right: 2^3^2 is 2^9
        return value

    def atom(self, depth: int) -> Sum:
        kind, text = self.tokens[self.next]
        if text in PAIRS:
            return self.group(depth)
        self.next += 1
        if kind == "number":
            mantissa, _, exponent = text.lower().partition("e")
            return checked({1: Fraction(mantissa) * Fraction(10) ** int(exponent or 0)})
        if kind == "letter" or text in LETTERS:
            return letter_at(text, self.point)
        if text == "\\frac":
            return over(self.group(depth), self.group(depth))
        if text == "\\sqrt":
            index = self.group(depth) if self.peek()[1] == "[" else {1: Fraction(2)}
            return root(self.group(depth) if self.peek()[1] == "{" else self.atom(depth), index)
        raise NoValueError

    def group(self, depth: int) -> Sum:
        opened = self.take(*PAIRS)
        value = self.sum(depth + 1) if opened else {}
        if not opened or not self.take(PAIRS[opened]):
            raise NoValueError
        return value


# ------------------------------------------------------------------------------------------------ sums of roots


def checked(value: Sum) -> Sum:
    """Without zeros; NoValueError if it has become too large."""
    value = {n: c for n, c in value.items() if c}
    if len(value) > MAX_TERMS or any(max(size(c), abs(n).bit_length()) > MAX_BITS for n, c in value.items()):
        raise NoValueError
    return value


def size(c: Fraction) -> int:
    """Bits of the larger of numerator and denominator."""
    return max(c.numerator.bit_length(), c.denominator.bit_length())


def add(a: Sum, b: Sum, sign: int = 1) -> Sum:
    return checked({n: a.get(n, Fraction(0)) + sign * b.get(n, Fraction(0)) for n in {**a, **b}})


def times(a: Sum, b: Sum) -> Sum:
    value: Sum = {}
    for m, c in a.items():
        for n, d in b.items():
            shared = math.gcd(m, n)  # sqrt(m) sqrt(n) = shared * sqrt(m n / shared^2), and i * i = -1
            sign = -1 if m < 0 and n < 0 else 1
            key = abs(m * n) // shared**2 * (-1 if (m < 0) != (n < 0) else 1)
            if abs(key) > MAX_RADICAND:
                raise NoValueError
            value[key] = value.get(key, Fraction(0)) + sign * shared * c * d
    return checked(value)


def over(a: Sum, b: Sum) -> Sum:
    """a / b: both are multiplied by conjugates of b until no root is left in it."""
    while b.keys() - {1}:
        n = next(n for n in b if n != 1)
        p = -1 if n < 0 else prime_factors(n)[0]
        conjugate = {n: -c if (n < 0 if p == -1 else n % p == 0) else c for n, c in b.items()}
        a, b = times(a, conjugate), times(b, conjugate)
    if not b:
        raise NoValueError
    return checked({n: c / b[1] for n, c in a.items()})


def raised(base: Sum, exponent: Sum) -> Sum:
    if exponent.keys() - {1}:
        raise NoValueError
    power = exponent.get(1, Fraction(0))
    if power.denominator != 1:
        base, power = root(base, {1: Fraction(power.denominator)}), Fraction(power.numerator)
    count = abs(power.numerator)
    if count > MAX_BITS or count * max((size(c) for c in base.values()), default=0) > MAX_BITS + 64:
        raise NoValueError
    if not base and power <= 0:
        raise NoValueError
    value: Sum = {1: Fraction(1)}
    for bit in bin(count)[2:]:
        value = times(times(value, value), base) if bit == "1" else times(value, value)
    return value if power >= 0 else over({1: Fraction(1)}, value)


def root(value: Sum, index: Sum) -> Sum:
    """The root of a rational number: any square root; others where they are rational."""
    n = index.get(1, Fraction(0))
    if value.keys() - {1} or index.keys() - {1} or n.denominator != 1 or not 2 <= n <= 64:
        raise NoValueError
    number, n = value.get(1, Fraction(0)), int(n)
    if n == 2:
        whole, rest = square_part(number.numerator * number.denominator)  # sqrt(a/b) = sqrt(ab) / b
        return checked({rest: Fraction(whole, number.denominator)})
    if number < 0 and n % 2 == 0:
        raise NoValueError
    parts = [whole_root(abs(part), n) for part in (number.numerator, number.denominator)]
    return checked({1: Fraction(*parts) * (-1 if number < 0 else 1)})


def whole_root(number: int, n: int) -> int:
    found = round(number ** (1 / n)) if number < 1 << 900 else 0
    if found**n != number:
        raise NoValueError
    return found


def square_part(n: int) -> tuple[int, int]:
    """(a, b) with n = a^2 b and b square-free, of the sign of n.

    >>> square_part(-72), square_part(0)
    ((6, -2), (0, 1))
    """
    sign, n = (-1, -n) if n < 0 else (1, n)
    if math.isqrt(n) ** 2 == n:
        return math.isqrt(n), sign
    if n > MAX_RADICAND:
        raise NoValueError
    a, b = 1, 1
    for p in prime_factors(n):
        a, b = (a * p, b // p) if b % p == 0 else (a, b * p)
    return a, sign * b


@functools.lru_cache(maxsize=1 << 12)
def prime_factors(n: int) -> tuple[int, ...]:
    """In rising order, each as often as it divides n.

    >>> prime_factors(72)
    (2, 2, 2, 3, 3)
    """
    found, p = [], 2
    while p * p <= n:
        while n % p == 0:
            found.append(p)
            n //= p
        p += 1
    return tuple(found + [n] * (n > 1))
