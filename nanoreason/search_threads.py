"""The demonstrators of Adaptive Parallel Reasoning (Pan et al., 2025) in the compact language of `search.py`.

    T 27 : 22 26 31 53                                   the prompt
    E 53 - 22 = 31 > 26 31 31 G 0 0                      an operation is tried; what it leaves becomes a node
    M 0 0 S 26 31 31 | 53 - 22 = 31                      on to a node, and what is left there
    X   W                                                a leaf that misses the target, one that hits it
    CALL F 0 0 1 F 0 0 0 END                        spawns by reference: the nodes of two children
    CALL F 26 1 | 53 - 22 = 31 , 31 / 31 = 1 END    ... and by value: what is left there and how it came about
    SUB W 0 53 - 22 = 31 , ... N 1 DONE               the join: the path of child 0, nothing of child 1
    RET 53 - 22 = 31 , ...   RET NONE                    how every thread ends: with a path, or with nothing

Both searches expand best first and keep the `beam` best successors of a node. SoS+ flips a coin at each node whether to
search below all of its successors at once, one after another, or to queue them; APR's parent flips it at nodes of more
than one successor, and then each of these is a child, which queues all that it finds, with a beam of its own.

DIFFERS from the released code: statements are true (its loops announced wrong nodes), and as in `search.py` of equally
good successors the one nearer to the target comes first. Its rate of spawning, 0.9, is not the text's "10 %".
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from typing import NamedTuple

from nanoreason.countdown import STEP, Numbers, Operation, check_operations, in_steps
from nanoreason.rollout import seed_of
from nanoreason.search import (
    COMPACT_WORDS,
    Check,
    Event,
    Explore,
    Generate,
    Move,
    Path,
    State,
    Steps,
    expand,
    read_trace,
    words,
    write,
)
from nanoreason.search import prompt as root_prompt
from nanoreason.tokenizer import TextTokenizer, word_tokenizer

# no word is part of another: texts are searched for them
CALL, ITEM, END_CALL, SUB, END_SUB, RETURN, NOTHING = "CALL", "F", "END", "SUB", "DONE", "RET", "NONE"
SERIAL_COIN, SPAWN_COIN = 0.5, 0.9  # how often a node's successors are searched below at once


class Place(NamedTuple):
    """A node that is to be expanded."""

    node: Path
    numbers: Numbers
    steps: Steps  # from the root of the problem


@dataclass
class Trace:
    """What one thread writes, in the segments that its spawns cut it into, and the threads of its children."""

    prompt: str
    segments: list[tuple[str, str]] = field(default_factory=list)  # (its context before, what it writes)
    path: Steps | None = None  # from the root of the problem to the target
    children: list[list[Trace]] = field(default_factory=list)  # of each block
    place: Place | None = None  # where a child begins
    joins: list[str] = field(default_factory=list)

    @property
    def threads(self) -> list[Trace]:
        return [self, *(thread for block in self.children for child in block for thread in child.threads)]

    @property
    def tokens(self) -> int:
        """What it writes itself, one token a word."""
        return sum(len(said.split()) for _, said in self.segments)

    @property
    def longest(self) -> int:
        """Words of its longest context: a segment with all that stands before it, the prompt aside."""
        return max(len(f"{before} {said}".split()) for before, said in self.segments)


# yields what is said, and lists of states to spawn, of which it is sent the path that they found; returns its own
Search = Generator[Event | list[Place], Steps | None, Steps | None]
Deeper = Callable[[list[Place]], "Search | None"]


def tokenizer() -> TextTokenizer:
    """One token per word and per number up to 99, one more for each further digit."""
    more = (CALL, ITEM, END_CALL, SUB, END_SUB, RETURN, NOTHING)
    return word_tokenizer([*COMPACT_WORDS, *more, *map(str, range(10, 100))], digits=True)


def move(state: Place, target: int) -> Iterator[Event]:
    yield Move(state.node)
    yield State(target, state.numbers, state.steps)


def beam_search(start: Place, target: int, beam: int, rng: random.Random, deeper: Deeper) -> Search:
    """Pop the best `beam` nodes, expand each. `deeper(its successors)` searches below them, or is None: queue them."""
    heap, age = [(0.0, 0, start)], 0
    while heap:
        for _, _, state in [heappop(heap) for _ in range(min(beam, len(heap)))]:
            if state is not start:
                yield from move(state, target)
            kept = expand(state.numbers, target, "mult")[:beam]
            rng.shuffle(kept)
            found = []
            for index, (score, _, operation, rest) in enumerate(kept):
                yield Explore(operation, rest)
                child = Place((*state.node, index), rest, (*state.steps, operation))
                if len(rest) == 1:
                    yield Check(rest[0], target, rest[0] == target)
                    if rest[0] == target:
                        return child.steps
                    continue
                age += 1
                found.append((score, age, child))
                yield Generate(child.node, target, rest, operation)
            found.sort()
            below = deeper([child for _, _, child in found])
            if below is None:
                for one in found:
                    heappush(heap, one)
            elif path := (yield from below):
                return path
    return None


def serial_search(start: Place, target: int, beam: int, rng: random.Random) -> Search:
    """SoS+: breadth first and depth first in one trace."""

    def deeper(states: list[Place]) -> Search | None:
        return below(states) if states and rng.random() < SERIAL_COIN else None

    def below(states: list[Place]) -> Search:
        for state in states:
            yield from move(state, target)
            if path := (yield from serial_search(state, target, beam, rng)):
                return path
        return None

    return beam_search(start, target, beam, rng, deeper)


def parallel_search(start: Place, target: int, beam: int, rng: random.Random) -> Search:
    """APR's parent: the successors of a node are spawned, all at once; it yields them and is sent what they found."""

    def deeper(states: list[Place]) -> Search | None:
        return below(states) if len(states) > 1 and rng.random() < SPAWN_COIN else None

    def below(states: list[Place]) -> Search:
        return (yield states)

    return beam_search(start, target, beam, rng, deeper)


def item(state: Place, by_value: bool) -> str:
    return f"{ITEM} {words(state.numbers)} | {in_steps(state.steps)}" if by_value else f"{ITEM} {words(state.node)}"


def write_join(results: Sequence[Steps | None]) -> str:
    """What a parent reads: each child's number with its path from the root of the problem, or N."""
    said = [f"W {k} {in_steps(path)}" if path else f"N {k}" for k, path in enumerate(results)]
    return " ".join([SUB, *said, END_SUB])


def trace(prompt: str, search: Search, spawn: Callable[[Place, int], Trace], by_value: bool, done: int = 0) -> Trace:
    """Run a search to its end. `spawn(state, place)` runs a child; `done`: steps before this thread's own, which its
    RET leaves out."""
    found, before, said, answer = Trace(prompt), "", [], None
    try:
        while True:
            states, answer = search.send(answer), None
            if not isinstance(states, list):
                said.append(write([states], "compact"))
                continue
            if by_value:  # a number that is given twice makes equal states: one child does for both
                states = list({(state.numbers, state.steps): state for state in states}.values())
            calls = [CALL, *(item(state, by_value) for state in states), END_CALL]
            found.segments.append((before, " ".join([*said, *calls])))
            children = [spawn(state, place) for place, state in enumerate(states)]
            found.children.append(children)
            found.joins.append(write_join([child.path for child in children]))
            before, said = " ".join(filter(None, [before, *said, found.joins[-1]])), []
            answer = next((child.path for child in children if child.path), None)  # the first, as in the paper
    except StopIteration as end:
        found.path = end.value
    said.append(f"{RETURN} {in_steps(found.path[done:]) if found.path else NOTHING}")
    found.segments.append((before, " ".join(said)))
    return found


def no_children(state: Place, place: int) -> Trace:
    raise AssertionError("this search spawns nothing")


def child_prompt(state: Place, target: int) -> str:
    return f"T {target} : {words(state.numbers)} | {in_steps(state.steps)}\n"


def serial_demonstration(numbers: Sequence[int], target: int, beam: int, seed: int = 0) -> Trace:
    """One SoS+ search; the paper draws its beam from 1..5, a context of 768 tokens holds 1..4."""
    rng, start = random.Random(seed_of("sos+", seed)), Place((0,), tuple(numbers), ())
    return trace(root_prompt(numbers, target, "compact"), serial_search(start, target, beam, rng), no_children, False)


def parallel_demonstration(
    numbers: Sequence[int], target: int, beam: int, sub_beam: int, seed: int = 0, by_value: bool = False
) -> Trace:
    """One APR search; the paper draws beam from 1..10 and sub_beam from beam..15, a context of 768 holds 2..8.

    A child's prompt by reference is that of the state that the runtime looks up; by value it is the same state, as the
    parent has said it. Its steps are behind "|", so that its path is one from the root of the problem.
    """
    rng, start = random.Random(seed_of("apr", seed)), Place((0,), tuple(numbers), ())

    def spawn(state: Place, place: int) -> Trace:
        own = random.Random(seed_of("apr child", seed, state.node, place))
        search = beam_search(state, target, sub_beam, own, lambda states: None)
        return replace(trace(child_prompt(state, target), search, no_children, by_value, len(state.steps)), place=state)

    return trace(root_prompt(numbers, target, "compact"), parallel_search(start, target, beam, rng), spawn, by_value)


# ----------------------------------------------------------------------------------------------- for the runtime


_BY_VALUE = re.compile(r"([0-9]+(?: [0-9]+)*) \|(.*)")


def called(numbers: Sequence[int], target: int, response: str) -> list[Place]:
    """The states that the block asks for in which a parent's response ends, each once, in order; total.

    A node is looked up in what the response itself has said of it; a state by value is taken as it is said. Which of
    the two it is, is seen in its "|". One that is unknown, or that has nothing to search, is left out.
    """
    before, _, block = response.rpartition(CALL)
    block = block.rpartition(END_CALL)[0]
    items = [" ".join(part.split()) for part in block.split(ITEM)[1:]]
    tree = None
    found: dict[Place, None] = {}
    for said in items:
        if by_value := _BY_VALUE.fullmatch(said):
            steps = read_steps(by_value[2])
            left, node = tuple(map(int, by_value[1].split())), ()
        else:
            tree = tree if tree is not None else read_trace(numbers, target, without_joins(before)).tree
            path = tuple(int(word) for word in said.split() if word.isdigit() and len(word) < 9)
            known = tree.get(path) if said and len(path) == len(said.split()) else None
            steps, left, node = (known.way.operations, known.numbers, path) if known else (None, None, ())
        if steps and left and 1 < len(left) < len(numbers):
            found[Place(node, left, steps)] = None
    return list(found)


def without_joins(text: str) -> str:
    """What a parent has said itself.

    >>> without_joins("G 0 0 SUB N 0 DONE M 0 0")
    'G 0 0  M 0 0'
    """
    own, *rest = text.split(SUB)
    return " ".join([own.rstrip(" "), *(part.partition(END_SUB)[2] for part in rest)])


def read_steps(text: str) -> Steps | None:
    """The operations of a list, or None if it is none.

    >>> read_steps(" 9 - 3 = 6 , 4 * 6 = 24"), read_steps("9 - 3 ="), read_steps("NONE")
    ((Operation(a=9, sign='-', b=3, result=6), Operation(a=4, sign='*', b=6, result=24)), None, None)
    """
    steps = [STEP.fullmatch(part) for part in text.split(",")]
    return tuple(Operation(int(m[1]), m[2], int(m[3]), int(m[4])) for m in steps) if all(steps) else None


def returned(response: str) -> Steps | None:
    """The path that a thread says it has found; total."""
    return read_steps(response.rpartition(RETURN)[2]) if RETURN in response else None


def is_solution(numbers: Sequence[int], target: int, response: str) -> bool:
    """Whether the last RET of a parent's response names a legal path that uses every number once; total."""
    said = response.rpartition(RETURN)
    return bool(said[1]) and check_operations(numbers, target, said[2].strip())
