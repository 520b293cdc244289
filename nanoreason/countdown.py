"""The game of Countdown: use every input exactly once, with + - * /, to make the target. Rules, solver, verifiers.

The rules of Stream of Search (Gandhi et al., 2024): a state is the list of numbers that are left; an operation replaces
two of them by a+b, a*b, the larger minus the smaller, or the larger divided by the smaller where that is exact. So
every intermediate is a non-negative integer and every operation but division is always legal.

An answer is either the list of operations (the rules above apply to each) or one expression (any exact arithmetic:
intermediates may be negative or fractions). `find_solution` decides solvability, `count_solutions` counts all paths
and says how often a random one succeeds: the chance level that any learnt policy has to beat.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from itertools import combinations
from typing import NamedTuple

from nanoreason.arithmetic import MAX_ANSWER, parse_arithmetic, safe_arithmetic

STEP = re.compile(r"\s*(0|[1-9][0-9]{0,17})\s*([-+*/])\s*(0|[1-9][0-9]{0,17})\s*=\s*(0|[1-9][0-9]{0,17})\s*")

Numbers = tuple[int, ...]


class Operation(NamedTuple):
    """One step, with its claimed result: nothing here says that it is right.

    >>> str(Operation(9, "*", 3, 27))
    '9*3=27'
    """

    a: int
    sign: str
    b: int
    result: int

    def __str__(self) -> str:
        return f"{self.a}{self.sign}{self.b}={self.result}"

    def spaced(self) -> str:
        """The same with one word per number and sign, for word-level tokenizers: '9 * 3 = 27'."""
        return f"{self.a} {self.sign} {self.b} = {self.result}"


# ---------------------------------------------------------------------------------------------- the rules


def in_steps(operations: Iterable[Operation]) -> str:
    """
    >>> in_steps([Operation(9, "-", 3, 6), Operation(4, "*", 6, 24)])
    '9 - 3 = 6 , 4 * 6 = 24'
    """
    return " , ".join([operation.spaced() for operation in operations])


def apply(a: int, sign: str, b: int) -> int | None:
    """The result of a legal operation, None for an illegal one.

    >>> apply(9, "-", 3), apply(3, "-", 9), apply(9, "/", 3), apply(9, "/", 2), apply(9, "/", 0), apply(0, "/", 9)
    (6, None, 3, None, None, None)
    """
    if sign == "+":
        return a + b
    if sign == "*":
        return a * b
    if sign == "-":
        return a - b if a >= b else None
    return a // b if sign == "/" and a >= b > 0 and a % b == 0 else None


@lru_cache(maxsize=1 << 15)  # the same small pairs come up in every problem
def combine(a: int, b: int) -> tuple[Operation, ...]:
    """Every legal operation on a pair; sums and products are written in the order given.

    >>> [str(operation) for operation in combine(3, 9)]
    ['3+9=12', '3*9=27', '9-3=6', '9/3=3']
    """
    large, small = (a, b) if a >= b else (b, a)
    operations = (Operation(a, "+", b, a + b), Operation(a, "*", b, a * b), Operation(large, "-", small, large - small))
    if small and large % small == 0:
        operations += (Operation(large, "/", small, large // small),)
    return operations


def children(numbers: Numbers) -> list[tuple[Operation, Numbers]]:
    """Every legal operation on two of the numbers, with the state it leads to: survivors in order, the result last."""
    return [
        (operation, (*numbers[:i], *numbers[i + 1 : j], *numbers[j + 1 :], operation.result))
        for i in range(len(numbers))
        for j in range(i + 1, len(numbers))
        for operation in combine(numbers[i], numbers[j])
    ]


def is_solvable(numbers: Sequence[int], target: int) -> bool:
    """Whether any legal path ends at the target. Exhaustive, by working backwards: 50 microseconds for 4 inputs.

    The last operation joined two parts of the inputs. For each value of the smaller part, `before` says what the larger
    part would have to make; so values are only ever enumerated for small parts.
    """
    return _reaches(tuple(sorted(numbers)), {target})


def _reaches(part: Numbers, goals: set[int]) -> bool:
    if len(part) <= 2:
        return not _values(part).isdisjoint(goals)
    for large, small in _cuts(part):
        for value in _values(small):
            if _reaches(large, before(goals, value)):
                return True
    return False


@lru_cache(maxsize=1 << 15)
def _values(part: Numbers) -> frozenset[int]:
    """All that a part can make."""
    if len(part) == 1:
        return frozenset(part)
    pairs = ((a, b) for large, small in _cuts(part) for a in _values(large) for b in _values(small))
    return frozenset(operation.result for a, b in pairs for operation in combine(a, b))


def _cuts(part: Numbers) -> list[tuple[Numbers, Numbers]]:
    """Every way to cut the numbers in two, the larger part first."""
    return [(tuple([part[i] for i in large]), tuple([part[i] for i in small])) for large, small in _places(len(part))]


@cache
def _places(n: int) -> list[tuple[Numbers, Numbers]]:
    return [
        (tuple(i for i in range(n) if i not in small), small)
        for size in range(1, n // 2 + 1)
        for small in combinations(range(n), size)
        if 2 * size < n or 0 not in small  # two equal parts are one cut, not two
    ]


def before(goals: Iterable[int], value: int) -> set[int]:
    """Every x for which some legal operation on x and `value` gives a goal.

    Of 0 * x = 0 only x = 0 is found. Nothing is lost: who holds a 0 can multiply it by the other numbers one by one.

    >>> sorted(before({24}, 4))       # 6*4, 20+4, 24+4-4, 96/4
    [6, 20, 28, 96]
    """
    found = set()
    for goal in goals:
        found.add(goal + value)  # x - value
        found.add(abs(goal - value))  # x + value, or value - x
        if value and goal % value == 0:
            found.add(goal // value)  # x * value
        if value and goal:
            found.add(goal * value)  # x / value
            if value % goal == 0:
                found.add(value // goal)  # value / x
    return found


def find_solution(numbers: Sequence[int], target: int) -> tuple[Operation, ...] | None:
    """The first solution in the order of `children`, None if there is none; exhaustive, depth first.

    >>> ", ".join(map(str, find_solution((9, 4, 3), 24)))
    '9-3=6, 4*6=24'
    """
    if not is_solvable(numbers, target):
        return None

    def visit(numbers: Numbers) -> tuple[Operation, ...]:
        for operation, rest in children(numbers):
            if is_solvable(rest, target):
                return (operation, *visit(rest)) if len(rest) > 1 else (operation,)
        raise AssertionError("a solvable state has a solvable child")

    return visit(tuple(numbers))


def count_solutions(numbers: Sequence[int], target: int) -> tuple[int, float]:
    """How many legal paths end at the target, and the chance that a random one does.

    A path is a sequence of n-1 operations; equal inputs at different places count separately. The random path chooses
    uniformly among the legal operations of each state. Exhaustive: about a millisecond for 4 inputs, seconds for 6.

    >>> count_solutions((2, 3), 6)      # of 2+3, 2*3 and 3-2
    (1, 0.3333333333333333)
    """
    known: dict[Numbers, tuple[int, float]] = {}

    def visit(state: Numbers) -> tuple[int, float]:  # a sorted state
        if len(state) == 2:
            results = [operation.result for operation in combine(*state)]
            return results.count(target), results.count(target) / len(results)
        if state not in known:
            below = [visit(tuple(sorted(rest))) for _, rest in children(state)]
            known[state] = sum(count for count, _ in below), sum(chance for _, chance in below) / len(below)
        return known[state]

    return visit(tuple(sorted(numbers)))


def as_expression(numbers: Sequence[int], operations: Iterable[Operation]) -> str:
    """Correct operations as one expression with no more parentheses than it needs.

    >>> as_expression((9, 4, 3), [Operation(9, "-", 3, 6), Operation(4, "*", 6, 24)])
    '4 * ( 9 - 3 )'
    """
    terms = [(number, str(number), 3) for number in numbers]  # value, text, how tightly the text binds

    def take(value: int) -> tuple[str, int]:
        place = next(i for i, term in enumerate(terms) if term[0] == value)
        return terms.pop(place)[1:]

    for a, sign, b, result in operations:
        binds = 1 if sign in "+-" else 2
        (left, left_binds), (right, right_binds) = take(a), take(b)
        left = f"( {left} )" if left_binds < binds else left
        right = f"( {right} )" if right_binds < binds or (right_binds == binds and sign in "-/") else right
        terms.append((result, f"{left} {sign} {right}", binds))
    ((_, text, _),) = terms
    return text


# ---------------------------------------------------------------------------------------------- the verifier


def check_operations(numbers: Sequence[int], target: int, answer: str) -> bool:
    """Whether the answer is exactly one legal list of operations, separated by commas or line ends, that solves it.

    >>> check_operations((9, 4, 3), 24, "9-3=6, 4*6=24"), check_operations((9, 4, 3), 24, "3+9=12, 12+12=24")
    (True, False)
    """
    # <exercise verifier>
    if len(answer) > MAX_ANSWER:
        return False
    left = list(numbers)
    for step in re.split("[,\n]", answer.strip()):
        if not (match := STEP.fullmatch(step)):
            return False
        a, sign, b, result = int(match[1]), match[2], int(match[3]), int(match[4])
        for number in (a, b):
            if number not in left:
                return False
            left.remove(number)  # one copy: a number that occurs once can be used once
        if apply(a, sign, b) != result:
            return False
        left.append(result)
    return left == [target]
    # </exercise verifier>


def check_expression(numbers: Sequence[int], target: int, answer: str) -> bool:
    """Whether the answer is one expression over exactly these numbers whose exact value is the target.

    >>> check_expression((8, 3, 8, 3), 24, "8/(3-8/3)"), check_expression((9, 4, 3), 24, "4*(9-3)+0")
    (True, False)
    """
    # <exercise verifier>
    parsed = safe_arithmetic(answer)
    return parsed is not None and parsed[0] == target and sorted(parsed[1]) == sorted(numbers)
    # </exercise verifier>


# ---------------------------------------------------------------------------------- when two answers are the same


class Term(NamedTuple):
    """A number, or a sum or product: its parts as text, each with its sign in front, in one order."""

    kind: str  # "" of a number, "+" of a sum or difference, "*" of a product or quotient
    parts: tuple[str, ...]

    def __str__(self) -> str:
        if not self.kind:
            return self.parts[0]
        return "(" + " ".join(f"{part[0]} {part[1:]}" for part in self.parts)[2:] + ")"


def join(a: Term, sign: str, b: Term) -> Term:
    """`a sign b`, flattened where parentheses say nothing: a + (b - c) and (a + b) - c are one sum of +a, +b and -c."""
    plus = "+" if sign in "+-" else "*"
    left = a.parts if a.kind == plus else (f"{plus}{a}",)
    right = b.parts if b.kind == sign == plus else (f"{sign}{b}",)
    return Term(plus, tuple(sorted(left + right)))


def same_operations(operations: Iterable[Operation]) -> str | None:
    """What a list of operations computes, as one text; None if one of them is false or not legal.

    Two lists are the same answer if they compute the same thing: the order of steps that do not need one another, that
    of the terms of a sum or product, and parentheses that change nothing do not matter. Another way to the same target
    is another answer.

    >>> same_operations([Operation(9, "-", 3, 6), Operation(4, "*", 6, 24)])
    '((9 - 3) * 4)'
    """
    terms: dict[int, list[Term]] = {}

    def take(value: int) -> Term:
        return terms[value].pop() if terms.get(value) else Term("", (str(value),))

    for a, sign, b, result in operations:
        if apply(a, sign, b) != result:
            return None
        left = take(a)
        terms.setdefault(result, []).append(join(left, sign, take(b)))
    return " , ".join(sorted(str(term) for found in terms.values() for term in found))


def same_answer(answer: str) -> str:
    """An answer of either form as the text that all its wordings share; what is no answer is its own words.

    >>> same_answer("9-3=6, 6*4=24") == same_answer(" 9 - 3 = 6 , 4 * 6 = 24.") == same_answer("4*(9-3)")
    True
    >>> same_answer("4*6=24, 9-3=6") == same_answer("4*(9-3)"), same_answer("3 - 9  = hm")
    (False, '3 - 9 = hm')
    """
    answer = answer.strip().removesuffix(".")
    found = None
    if len(answer) <= MAX_ANSWER:
        steps = [STEP.fullmatch(step) for step in re.split("[,\n]", answer)]
        if all(steps):
            found = same_operations([Operation(int(m[1]), m[2], int(m[3]), int(m[4])) for m in steps])
        elif parsed := parse_arithmetic(answer, lambda number: Term("", (str(number),)), join):
            found = str(parsed[0])
    return " ".join(answer.split()) if found is None else found
