"""Symbolic search on Countdown that writes its own trace, and the one reader that judges any trace.

Stream of Search (Gandhi et al., 2024) trains a language model on searches written down as text, dead ends included. The
twelve strategies are depth-first search with two heuristics and a best-first beam ("bfs" 1 to 5) with the same two.

    strategy --events--> writer --text--> SFT;  a model --text--> reader --events--> replay --> Reading

A strategy yields abstract events (`Explore`, `Generate`, `Move`, `State`, `Check`, `Exhausted`). Two small writers put
them into words, two small parsers take them out of words, and one checker replays them from the root. The languages:

    paper     Exploring Operation: 9*3=27, Resulting Numbers: [4, 27]      compact   E 9 * 3 = 27 > 4 27
              Generated Node #0,0: 24:[4, 27] Operation: 9*3=27                      G 0 0
              Moving to Node #0,0                                                    M 0 0
              Current State: 24:[4, 27], Operations: ['9*3=27']                      S 4 27 | 9 * 3 = 27
              23,24 unequal: No Solution                                             X
              24,24 equal: Goal Reached                                              W
              No solution found.                                                     N

The prompt is the root's state: `Current State: 24:[4, 9, 3], Operations: []` or `T 24 : 4 9 3`, and a line end. The
compact response is a single line of words: integers and the 18 of COMPACT_WORDS. It leaves out what the line before
has said, and a return to the state it is already in. Its `tokenizer` has one token per word and per number up to 99,
one more for each further digit.

Of the released code these faults are knowingly absent: operands are used up (its numbers could be reused, so wrong
answers scored), every statement is checked, not just the last operation list, solutions straight from the root count,
nothing is evaluated as code, any number of inputs works, every leaf is seen; leaves are never queued or moved to; ids
are unique; shuffles are seeded; optimal paths lose one copy of a used number, not all, and reach the goal.

DIFFERS from the paper: a failed depth-first search too closes with "No solution found."; of children that a heuristic
cannot tell apart the one nearer to the target comes first, so pruning never drops the goal for another factor of it;
optimal paths use the sentences of the search. As in the paper, pruning is by node and the queue is one global heap.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from heapq import heappop, heappush
from math import comb, prod
from operator import itemgetter
from typing import NamedTuple

from nanoreason.countdown import Numbers, Operation, apply, children, in_steps
from nanoreason.rollout import seed_of
from nanoreason.tokenizer import TextTokenizer, word_tokenizer

STRATEGIES = {  # name -> (heuristic, beam); beam 0: depth first
    f"{f'bfs{beam}' if beam else 'dfs'}-{heuristic}": (heuristic, beam)
    for beam in range(6)
    for heuristic in ("sum", "mult")
}
# The paper's mixture: either heuristic, depth first or a beam, beam 1 to 5, each drawn uniformly.
MIXTURE = {name: 0.05 if beam else 0.25 for name, (_, beam) in STRATEGIES.items()}
LANGUAGES = ("paper", "compact")
COMPACT_WORDS = ("\n", *"TEGMSXWN", *":>|,=", *"+-*/")
ERRORS = ("arithmetic", "formatting", "exploration", "other")

Path = tuple[int, ...]  # of a node: the root is (0,), its second child (0, 1)
Steps = tuple[Operation, ...]


# ---------------------------------------------------------------------------------------------- events


@dataclass(slots=True)
class Explore:
    """An operation on the current state is tried; `numbers` is what it leaves."""

    operation: Operation
    numbers: Numbers


@dataclass(slots=True)
class Generate:
    """The state just explored becomes a node that can be moved to."""

    node: Path
    target: int
    numbers: Numbers
    operation: Operation | None


@dataclass(slots=True)
class Move:
    node: Path


@dataclass(slots=True)
class State:
    """What is left at the current node, and the operations that led there."""

    target: int
    numbers: Numbers
    operations: Steps


@dataclass(slots=True)
class Check:
    """A leaf just explored is compared with the target; if equal, the search is over."""

    value: int | None
    target: int
    equal: bool


@dataclass(slots=True)
class Exhausted:
    """Nothing is left to try."""


@dataclass(slots=True)
class Unreadable:
    """Text that is no statement of the language. Only readers make these."""

    text: str


Event = Explore | Generate | Move | State | Check | Exhausted | Unreadable


# ---------------------------------------------------------------------------------------------- strategies


def search(numbers: Sequence[int], target: int, strategy: str, seed: int = 0) -> Iterator[Event]:
    """The events of one search; `seed` decides the order in which a beam shows its children.

    >>> print(write(search((9, 4, 3), 24, "bfs1-mult"), "compact"))
    E 9 + 3 = 12 > 4 12 G 0 0 M 0 0 S 4 12 | 9 + 3 = 12 E 12 - 4 = 8 > 8 X N
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy: one of {', '.join(STRATEGIES)}, not {strategy!r}")
    heuristic, beam = STRATEGIES[strategy]
    if beam:
        return best_first(tuple(numbers), target, heuristic, beam, random.Random(seed_of("shuffle", seed)))
    return depth_first(tuple(numbers), target, heuristic)


@lru_cache(maxsize=1024)
def distance_to(target: int, heuristic: str) -> Callable[[int], int]:
    """How far a number is from the target ("sum"), or from the nearest of the target's factors, 1 aside ("mult").

    >>> [distance_to(24, "mult")(number) for number in (1, 8, 10, 19, 24, 30)]
    [1, 0, 2, 5, 0, 6]
    """
    if heuristic == "sum":
        return lambda number: abs(number - target)
    factors = [factor for factor in range(2, target) if target % factor == 0] + [target]
    table = [min(abs(number - factor) for factor in factors) for number in range(target + 1)]
    return lambda number: table[number] if number <= target else number - target


def expand(numbers: Numbers, target: int, heuristic: str) -> list[tuple[float, int, Operation, Numbers]]:
    """All children as (heuristic, tie breaker, operation, numbers left), the best first.

    The heuristic of a state is the sum of its numbers' distances ("mult"), or their mean ("sum").
    """
    distance = distance_to(target, heuristic)
    total = sum(map(distance, numbers))
    share = len(numbers) - 1 if heuristic == "sum" else 1
    found = []
    for operation, rest in children(numbers):
        a, _, b, result = operation
        score = (total - distance(a) - distance(b) + distance(result)) / share  # the other numbers stay as they are
        found.append((score, abs(result - target), operation, rest))
    found.sort(key=itemgetter(0, 1))
    return found


def depth_first(numbers: Numbers, target: int, heuristic: str) -> Iterator[Event]:
    """Visit, best first and each at once, all children whose heuristic is at most the target."""

    def visit(node: Path, state: State) -> Iterator[Event]:  # returns whether it reached the goal
        kept = [child for child in expand(state.numbers, target, heuristic) if child[0] <= target]
        for index, (_, _, operation, rest) in enumerate(kept):
            yield Explore(operation, rest)
            if len(rest) == 1:
                yield Check(rest[0], target, rest[0] == target)
                if rest[0] == target:
                    return True
            else:
                child, below = (*node, index), State(target, rest, (*state.operations, operation))
                yield Generate(child, target, rest, operation)
                yield Move(child)
                yield below
                if (yield from visit(child, below)):
                    return True
            if index + 1 < len(kept):  # after the last child the search goes back further up, without a word
                yield Move(node)
                yield state
        return False

    if not (yield from visit((0,), State(target, numbers, ()))):
        yield Exhausted()


def best_first(numbers: Numbers, target: int, heuristic: str, beam: int, rng: random.Random) -> Iterator[Event]:
    """Pop the best `beam` nodes of one heap, expand each, keep each one's best `beam` children, show them shuffled."""
    heap = [(0.0, 0, (0,), State(target, numbers, ()))]  # heuristic, age (older first), node, its state
    age = 0
    while heap:
        for _, _, node, state in [heappop(heap) for _ in range(min(beam, len(heap)))]:
            if state.operations:
                yield Move(node)
                yield state
            kept = expand(state.numbers, target, heuristic)[:beam]
            rng.shuffle(kept)
            for index, (score, _, operation, rest) in enumerate(kept):
                yield Explore(operation, rest)
                if len(rest) > 1:
                    age += 1
                    child = (*node, index)
                    yield Generate(child, target, rest, operation)
                    heappush(heap, (score, age, child, State(target, rest, (*state.operations, operation))))
                else:
                    yield Check(rest[0], target, rest[0] == target)
                    if rest[0] == target:
                        return
    yield Exhausted()


def optimal_path(numbers: Sequence[int], target: int, operations: Iterable[Operation]) -> Iterator[Event]:
    """A known solution told as a search that never errs: what the "optimal path" (OP) baseline learns."""
    node: Path = (0,)
    state = State(target, tuple(numbers), ())
    for operation in operations:
        rest = list(state.numbers)
        rest.remove(operation.a)  # one copy
        rest.remove(operation.b)
        rest.append(operation.result)
        node, state = (*node, 0), State(target, tuple(rest), (*state.operations, operation))
        yield Explore(operation, state.numbers)
        if len(rest) > 1:
            yield Generate(node, target, state.numbers, operation)
            yield Move(node)
            yield state
    yield Check(state.numbers[0], target, state.numbers[0] == target)


# ---------------------------------------------------------------------------------------------- writing


def prompt(numbers: Sequence[int], target: int, language: str) -> str:
    """The root's state, which the response continues."""
    if language == "compact":
        return f"T {target} : {words(numbers)}\n"
    return _PAPER[State](State(target, tuple(numbers), ())) + "\n"


def tokenizer() -> TextTokenizer:
    """The tokens that all of the compact language is made of: its words, 0 to 99, and the later digits of a number.

    As in the paper's GPT-2 vocabulary a number of two digits is one token. A model need not learn which tens go with
    which ones before it can copy a number, and a held-out target is a token that training has seen as an input.
    """
    return word_tokenizer([*COMPACT_WORDS, *map(str, range(10, 100))], digits=True)


def write(events: Iterable[Event], language: str) -> str:
    """The response: the prompt and what `write` returns are the whole trace."""
    if language == "compact":
        return " ".join(_compact(events))
    return "\n".join([_PAPER[type(event)](event) for event in events])


def first_events(events: Iterable[Event], most: int) -> tuple[list[Event], bool]:
    """The first events of a search, as many as `most` tokens of the compact language hold, and whether that is all.

    The search is not carried on beyond that: it may have a hundred times as many.
    """
    kept: list[Event] = []

    def noted() -> Iterator[Event]:
        for event in events:
            kept.append(event)
            yield event

    tokens = 0
    for statement in _compact(noted()):
        tokens += sum(max(1, len(word) - 1) for word in statement.split())  # see `tokenizer`
        if tokens > most:
            return kept[:-1], False
    return kept, True


def words(numbers: Iterable[int]) -> str:
    return " ".join(map(str, numbers))


def _ids(node: Path) -> str:
    return ",".join(map(str, node))


_PAPER: dict[type, Callable[..., str]] = {
    Explore: lambda e: f"Exploring Operation: {e.operation}, Resulting Numbers: {[*e.numbers]}",
    Generate: lambda e: f"Generated Node #{_ids(e.node)}: {e.target}:{[*e.numbers]} Operation: {e.operation}",
    Move: lambda e: f"Moving to Node #{_ids(e.node)}",
    State: lambda e: f"Current State: {e.target}:{[*e.numbers]}, Operations: {[str(step) for step in e.operations]}",
    Check: lambda e: f"{e.value},{e.target} " + ("equal: Goal Reached" if e.equal else "unequal: No Solution"),
    Exhausted: lambda e: "No solution found.",
}

_COMPACT: dict[type, Callable[..., str]] = {
    Explore: lambda e: f"E {e.operation.spaced()} > {words(e.numbers)}",
    Generate: lambda e: f"G {words(e.node)}",
    Move: lambda e: f"M {words(e.node)}",
    State: lambda e: f"S {words(e.numbers)} | " + in_steps(e.operations),
    Check: lambda e: "W" if e.equal else "X",
    Exhausted: lambda e: "N",
}


def _compact(events: Iterable[Event]) -> Iterator[str]:
    # <exercise traces>
    here: Path = (0,)
    staying = False
    for event in events:
        if type(event) is Move:
            staying = event.node == here
            here = event.node
        # depth first says where it is after every leaf, though it never left: one token in seven of the mixture
        if not (staying and type(event) in (Move, State)):
            yield _COMPACT[type(event)](event).rstrip()  # the root's state ends in "|"
    # </exercise traces>


# ---------------------------------------------------------------------------------------------- reading


class Way(NamedTuple):
    """The operations that led to a node: those that led to the node before it, and one more.

    A list of its own per node would be quadratic in a chain of nodes: a trace of 1.3 MB would take all memory.
    """

    length: int = 0
    before: Way | None = None
    last: Operation | None = None

    def then(self, operation: Operation) -> Way:
        return Way(self.length + 1, self, operation)

    @property
    def operations(self) -> Steps:
        found, way = [], self
        while way.before is not None:
            found.append(way.last)
            way = way.before
        return tuple(reversed(found))

    def says(self, operations: Steps) -> bool:
        """Whether these are the operations; no more work than there are in the shorter list."""
        return self.length == len(operations) and self.operations == operations


def way_of(operations: Iterable[Operation]) -> Way:
    way = Way()
    for operation in operations:
        way = way.then(operation)
    return way


@dataclass
class Node:
    """A state that the trace explored. It is valid if every statement on the way to it was true."""

    numbers: Numbers | None  # None: moved to without ever being generated, so unknown until the trace says
    way: Way
    valid: bool
    path: Path = ()  # () for one that was never generated, such as a leaf
    children: list[Node] = field(default_factory=list)  # all that was explored from here, in order


@dataclass
class Reading:
    """What a trace is worth. The tree holds every generated node by its path; leaves hang on `children`."""

    solved: bool = False  # strict: every statement on the way to the goal is true, every input is used exactly once
    lenient: bool = False  # as the released code scores: correct sums with known numbers that end at the target
    ending: str = ""  # "goal" (claimed), "exhausted" (claimed) or "": cut off
    nodes: int = 1  # states explored, the root included, repeats and errors too
    errors: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ERRORS, 0))
    solution: Steps = ()
    tree: dict[Path, Node] = field(default_factory=dict)
    states: set[Numbers] = field(default_factory=set)  # sorted numbers of every valid state, the root included
    events: list[Event] = field(default_factory=list)

    @property
    def rating(self) -> float:
        """The reward for short searches: 1 - nodes / max_nodes, at least 0; 0 if unsolved."""
        return max(0.0, 1 - self.nodes / max_nodes(len(self.tree[0,].numbers))) if self.solved else 0.0


def max_nodes(inputs: int) -> int:
    """The leaves of the full tree if every operation were always legal: 48 for 3 inputs, 1152 for 4, 46080 for 5.

    >>> [max_nodes(inputs) for inputs in (3, 4, 5)]
    [48, 1152, 46080]
    """
    return prod(4 * comb(left, 2) for left in range(2, inputs + 1))


def read_trace(numbers: Sequence[int], target: int, text: str) -> Reading:
    """Replay a response, in either language, with or without its prompt. Never raises, whatever the text.

    Work and memory are linear in the text.

    >>> reading = read_trace((9, 4, 3), 24, "E 9 - 3 = 6 > 4 6 G 0 0 M 0 0 S 4 6 | 9 - 3 = 6 E 4 * 6 = 24 > 24 W")
    >>> reading.solved, reading.nodes, reading.rating
    (True, 3, 0.9375)
    >>> reused = "E 4 * 3 = 12 > 9 12 G 0 0 M 0 0 S 9 12 | 4 * 3 = 12 E 12 + 12 = 24 > 24 W"
    >>> reading = read_trace((9, 4, 3), 24, reused)
    >>> reading.solved, reading.lenient, reading.errors["other"]
    (False, True, 1)
    """
    events = read_events(text, target)
    root = State(target, tuple(numbers), ())
    return replay(numbers, target, events[1:] if events[:1] == [root] else events)


def read_events(text: str, target: int) -> list[Event]:
    """What a text in either language states, one event per statement."""
    paper = re.search("Exploring|Generated|Moving|Current|equal|solution", text)
    return list((_read_paper if paper else _read_compact)(text, target))


def claimed_path(events: Iterable[Event]) -> Steps | None:
    """The operations last listed before the goal was claimed, and the one that reached it; None: no such claim."""
    steps: Steps = ()
    last: Operation | None = None
    for event in events:
        if type(event) is State:
            steps = event.operations
        elif type(event) is Explore:
            last = event.operation
        elif type(event) is Check and event.equal:
            return (*steps, last) if last else None
    return None


_N = "(?:0|[1-9][0-9]{0,17})"  # no sign, no leading zero, and short enough for cheap arithmetic
_STEP, _LIST, _NODE = f"{_N}[-+*/]{_N}={_N}", f"{_N}(?:, {_N})*", f"{_N}(?:,{_N})*"
_EXPLORE = re.compile(rf"Exploring Operation: ({_STEP}), Resulting Numbers: \[({_LIST})\]")
_GENERATE = re.compile(rf"Generated Node #({_NODE}): ({_N}):\[({_LIST})\] Operation: ({_STEP})")
_MOVE = re.compile(f"Moving to Node #({_NODE})")
_STATE = re.compile(rf"Current State: ({_N}):\[({_LIST})\], Operations: \[((?:'{_STEP}'(?:, '{_STEP}')*)?)\]")
_CHECK = re.compile(f"({_N}),({_N}) (equal: Goal Reached|unequal: No Solution)")
_WORD_STEP, _WORDS = f"{_N} [-+*/] {_N} = {_N}", f"{_N}(?: {_N})*"
_COMPACT_STATEMENT = re.compile(
    rf"E ({_WORD_STEP}) > ({_WORDS})|[GM] ({_WORDS})|S ({_WORDS}) \|(?: ({_WORD_STEP}(?: , {_WORD_STEP})*))?|[XWN]"
    rf"|T ({_N}) : ({_WORDS})"
)


REMEMBERED = 200  # characters; a trace says the same short things again and again


def _numbers(text: str) -> Numbers:
    return (_short_numbers if len(text) <= REMEMBERED else _short_numbers.__wrapped__)(text)


def _steps(text: str | None) -> Steps:
    return (_short_steps if len(text or "") <= REMEMBERED else _short_steps.__wrapped__)(text)


@lru_cache(maxsize=1 << 14)
def _short_numbers(text: str) -> Numbers:
    return tuple(map(int, re.findall("[0-9]+", text)))


@lru_cache(maxsize=1 << 14)
def _short_steps(text: str | None) -> Steps:
    found = re.findall("([0-9]+) ?([-+*/]) ?([0-9]+) ?= ?([0-9]+)", text or "")
    return tuple(Operation(int(a), sign, int(b), int(result)) for a, sign, b, result in found)


def _read_paper(text: str, target: int) -> Iterator[Event]:
    for line in filter(None, map(str.strip, text.split("\n"))):
        if m := _EXPLORE.fullmatch(line):
            yield Explore(*_steps(m[1]), _numbers(m[2]))
        elif m := _STATE.fullmatch(line):
            yield State(int(m[1]), _numbers(m[2]), _steps(m[3]))
        elif m := _MOVE.fullmatch(line):
            yield Move(_numbers(m[1]))
        elif m := _GENERATE.fullmatch(line):
            yield Generate(_numbers(m[1]), int(m[2]), _numbers(m[3]), *_steps(m[4]))
        elif m := _CHECK.fullmatch(line):
            yield Check(int(m[1]), int(m[2]), m[3].startswith("equal"))
        else:
            yield Exhausted() if line == "No solution found." else Unreadable(line)


def _read_compact(text: str, target: int) -> Iterator[Event]:
    last: Explore | None = None  # what was explored last, for the statements that do not repeat it
    for statement in filter(None, re.split(" (?=[TEGMSXWN](?: |$))", " ".join(text.split()))):
        m = _COMPACT_STATEMENT.fullmatch(statement)
        # <exercise traces>
        match statement[0] if m else "":
            case "E":
                last = Explore(*_steps(m[1]), _numbers(m[2]))
                yield last
            case "G":
                yield Generate(_numbers(m[3]), target, last.numbers if last else (), last and last.operation)
            case "M":
                yield Move(_numbers(m[3]))
            case "S":
                yield State(target, _numbers(m[4]), _steps(m[5]))
            case "X" | "W":
                leaf = last.numbers[0] if last and len(last.numbers) == 1 else None
                yield Check(leaf, target, m[0] == "W")
            case "N":
                yield Exhausted()
            case "T":
                yield State(int(m[6]), _numbers(m[7]), ())
            case _:
                yield Unreadable(statement)
        # </exercise traces>


# ---------------------------------------------------------------------------------------------- judging


def replay(numbers: Sequence[int], target: int, events: Sequence[Event]) -> Reading:
    """Follow the events from the root and hold every statement against what is true there.

    An error is a false or an unreadable statement; what is not said is no error until something depends on it. Each
    error is counted once, where it is made: from then on the trace is followed in its own terms, and all that grows
    from there is not valid. The first claim to be done ends the trace; text after it is one formatting error. A trace
    that makes no such claim was cut off by its budget, so its last statement is not held against it.
    """
    root = here = Node(tuple(numbers), Way(), True, (0,))  # here: the current node
    child: Node | None = None  # what was explored last from here
    reading = Reading(tree={root.path: root}, states={tuple(sorted(numbers))}, events=list(events))
    wrong: list[str] = []
    for event in events:
        for error in wrong:
            reading.errors[error] += 1
        wrong = []
        if reading.ending:
            wrong = ["formatting"]
            break
        match event:
            case Explore(operation, left):
                wrong = list(_explore_errors(here, operation, left))
                child = Node(left, here.way.then(operation), here.valid and not wrong)
                here.children.append(child)
                reading.nodes += 1
                if child.valid:
                    reading.states.add(tuple(sorted(left)))
            case Generate(path, stated_target, left, operation):
                if (
                    child is None
                    or child.path
                    or (stated_target, left) != (target, child.numbers)
                    or operation != child.way.last
                ):
                    wrong.append("other")
                    child = Node(left, here.way.then(operation) if operation else here.way, False)
                if path[:-1] != here.path or path in reading.tree:
                    wrong.append("exploration")
                child.path = path
                reading.tree.setdefault(path, child)
            case Move(path):
                # <exercise traces>
                if path not in reading.tree:
                    wrong.append("exploration")
                here, child = reading.tree.get(path) or Node(None, Way(), False, path), None
                # </exercise traces>
            case State(stated_target, left, operations):
                known = here.numbers is not None
                true = known and stated_target == target and here.way.says(operations)
                if not true or len(left) != len(here.numbers) or sorted(left) != sorted(here.numbers):
                    if known or stated_target != target:  # of an unknown node, only the target can be wrong
                        wrong.append("other")
                    here = Node(left, way_of(operations), False, here.path)
                child = None
            case Check(value, stated_target, equal):
                # <exercise traces>
                claim = child is not None and child.numbers == (value,) and stated_target == target
                if not claim or equal != (value == target):
                    wrong.append("other")
                if equal:
                    reading.ending = "goal"
                    reading.solved = not wrong and child.valid
                    reading.solution = child.way.operations if reading.solved else ()
                # </exercise traces>
            case Exhausted():
                reading.ending = "exhausted"
            case Unreadable():
                wrong.append("formatting")
    if reading.ending:
        for error in wrong:
            reading.errors[error] += 1
    reading.lenient = _lenient(numbers, target, events)
    return reading


def _explore_errors(here: Node, operation: Operation, left: Numbers) -> Iterator[str]:
    # <exercise traces>
    a, sign, b, result = operation
    if apply(a, sign, b) != result:
        yield "arithmetic"
    if here.numbers is not None:
        if len(left) != len(here.numbers) - 1:
            yield "other"
            return
        rest = list(here.numbers)
        for number in (a, b):
            if number not in rest:
                yield "other"  # not there, or not there twice
                return
            rest.remove(number)
        if sorted([*rest, result]) != sorted(left):
            yield "other"
    # </exercise traces>


def _lenient(numbers: Sequence[int], target: int, events: Iterable[Event]) -> bool:
    """The released code's idea of correct: the operations last listed before the goal, without using anything up."""
    path, known = claimed_path(events), set(numbers)
    for step in path or ():
        if step.a not in known or step.b not in known or apply(*step[:3]) != step.result:
            return False
        known.add(step.result)
    return path is not None and path[-1].result == target
