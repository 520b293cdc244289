"""Spawn and join in words: what a parent asks for, what a child is, what comes back (Pan et al., 2025, 2504.15466).

    36 from 8 4 2 7 ;                                                       the prompt of a parent
    <think> spawn 8 - 4 = 4 : 4 2 7 ; 7 * 4 = 28 : 28 8 2 join              a block of two spawns, sampled
    36 from 4 2 7                                                           the prompt of the first child
    <think> 8 - 4 = 4 no wait 7 * 4 = 28 , 28 + 8 = 36 , ... yes            the join, in the place of the block

A spawn is by value: it says the operation that the parent chose and the numbers that this leaves. Nothing is looked up
and nothing is checked here, so a parent may spawn what is not true; the verifier of the last answer finds that out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from nanoreason.countdown import Numbers, apply

SPAWN, JOIN, NONE = "spawn", "join", "none"  # open a block, close it; what a child answers that found nothing
STEP = r"[0-9]{1,9} [-+*/] [0-9]{1,9} = [0-9]{1,9}"
_SPAWN = re.compile(rf"({STEP}) :((?: [0-9]{{1,9}})+)")
_STEPS = re.compile(rf"{STEP}(?: , {STEP})*")


@dataclass(frozen=True)
class Limits:
    """What a thread may spawn; whatever a model writes beyond it ends in a defined join (`threads.py`)."""

    children: int = 8  # of a block; those behind them are not run
    rounds: int = 4  # blocks of a thread; one more ends the thread as its token limit does
    depth: int = 1  # generations of children; 1: children do not spawn, as in the paper
    tokens: int = 0  # response tokens of a child; 0: as many as its root has


class Spawn(NamedTuple):
    """A first operation, and what it leaves: the result, then the other numbers in their order."""

    step: str  # "8 - 4 = 4"
    numbers: Numbers

    def __str__(self) -> str:
        return f"{self.step} : {' '.join(map(str, self.numbers))}"


def first_spawns(numbers: Sequence[int], operations: str, largest: int) -> list[Spawn]:
    """Every first operation with two of the numbers whose result is at most `largest`, none twice.

    >>> [str(spawn) for spawn in first_spawns((2, 7, 7), "+-", 60)]
    ['7 + 2 = 9 : 9 7', '7 - 2 = 5 : 5 7', '7 + 7 = 14 : 14 2', '7 - 7 = 0 : 0 2']
    """
    found: dict[Spawn, None] = {}
    for j in range(len(numbers)):
        for i in range(j):
            small, large = sorted((numbers[i], numbers[j]))
            rest = (*numbers[:i], *numbers[i + 1 : j], *numbers[j + 1 :])
            for sign in operations:
                result = apply(large, sign, small)
                if result is not None and result <= largest:
                    found[Spawn(f"{large} {sign} {small} = {result}", (result, *rest))] = None
    return list(found)


def write_spawns(spawns: Iterable[Spawn]) -> str:
    return f"{SPAWN} {' ; '.join(map(str, spawns))} {JOIN}"


def read_spawns(text: str, left: int) -> list[Spawn]:
    """The spawns of the block that a text ends in, in order. Total and linear: one that is malformed, that does not
    leave `left` numbers or that stood there before is left out.

    >>> read_spawns("<think> spawn 8 - 4 = 4 : 4 2 7 ; 8 - 4 = 4 : 4 2 7 ; 8 - : 4 ; 7 * 4 = 28 : 28 8 join", 3)
    [Spawn(step='8 - 4 = 4', numbers=(4, 2, 7))]
    """
    block = text.rpartition(SPAWN)[2].rpartition(JOIN)[0]
    found: dict[Spawn, None] = {}
    for part in block.split(";"):
        said = _SPAWN.fullmatch(part.strip())
        if said and len(numbers := tuple(map(int, said[2].split()))) == left:
            found[Spawn(said[1], numbers)] = None
    return list(found)


def write_join(spawns: Sequence[Spawn], outcomes: Sequence[str]) -> str:
    """What the parent reads of its children, as if it were a thought: a no of each that found nothing, then the paths
    of the others. A thought of the base ends in its yes too, and what is copied into the answer is the last attempt.

    >>> write_join([Spawn("9 - 3 = 6", (6, 4)), Spawn("8 - 4 = 4", (4, 2, 7))], ["4 * 6 = 24", "none"])
    '8 - 4 = 4 no wait 9 - 3 = 6 , 4 * 6 = 24 yes'
    >>> write_join([], [])
    'none'
    """
    # DIFFERS from the paper, which lists children in their order and takes the first that succeeds.
    said = [
        f"{spawn.step} , {outcome} yes" if _STEPS.fullmatch(outcome) else f"{spawn.step} no"
        for spawn, outcome in zip(spawns, outcomes, strict=True)
    ]
    return " wait ".join(sorted(said, key=lambda line: line.endswith("yes"))) or NONE
