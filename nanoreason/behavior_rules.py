"""The four cognitive behaviours, counted by rules in any text that works on a Countdown problem.

    text, numbers, target -> equations and cues -> replay of the numbers that are left -> Behaviors

    verification        a result is compared with the goal        35 + 8 = 43 yes · "20 is too low" · a leaf that says X
    backtracking        a path is given up for an earlier state   ... no wait 7 * 5 = 35 · a move to no child
    subgoal setting     a number on the way is aimed for          aim for 20 first · "let's get close to 30"
    backward chaining   work begins at the target                 50 - 20 = 30 so make 30 · "24 / 2 = 12, so 12 * 2"

The definitions are those of Gandhi et al., 2025 (Cognitive Behaviors that Enable Self-Improving Reasoners), whose judge
is a language model. These rules read English, the language of attempts (`tasks/attempts.py`) and that of searches
(`search.py`). How often they agree with a reader stands in `tests/test_behavior_rules.py`: on texts that they were not
adjusted on hardly any check or return is missed or made up, but a quarter of the subgoals and of the backward steps is
missed. Weak: goals in broken sentences, a target that is also an input or an intermediate value, sums in words.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from nanoreason.arithmetic import safe_arithmetic
from nanoreason.countdown import Numbers, apply
from nanoreason.prompts import ANSWER, CLOSE, OPEN
from nanoreason.search import Check, Explore, Move, read_events

NAMES = ("verification", "backtracking", "subgoals", "backward")  # the fields of Behaviors that are behaviours


class Behaviors(NamedTuple):
    """How often each was shown, and what else should be known of a text before its counts are believed."""

    verification: int = 0  # calculations with a check behind them
    backtracking: int = 0  # returns to an earlier state; saying a found solution again is none
    subgoals: int = 0  # different numbers that are aimed for
    backward: int = 0  # different calculations that begin at the target, or as many words for it, if these are more
    new_backtracking: int = 0  # returns that go on in a way not tried from there: a loop has few of them
    equations: int = 0  # calculations
    invalid: int = 0  # of these: with a wrong result, or with numbers that are not there


def count_behaviors(numbers: Numbers, target: int, response: str) -> Behaviors:
    """Total: any text is read. What stands behind the thought (an answer) is not counted.

    >>> said = "<think> 20 - 6 = 14 , 14 + 5 = 19 no wait 6 * 5 = 30 , 30 + 20 = 50 yes </think>"
    >>> count_behaviors((6, 5, 20), 50, said)[:4]
    (2, 1, 0, 0)
    >>> said = "I need 12 first, as 24 / 2 = 12. 9 + 3 = 12, then 12 * 2 = 24, which is the target."
    >>> count_behaviors((9, 3, 2), 24, said)[:4]
    (1, 0, 1, 1)
    """
    thought = END_OF_THOUGHT.split(response, 1)[0].partition(OPEN)
    text = thought[2] or thought[0]
    if SEARCH.match(text):
        return in_search(text, target)
    text = normal(text)
    steps = list(calculations(text))
    backward, forward = parted(steps, numbers, target, text)
    cues = len(re.findall(BACKWARD.replace("{T}", str(target)), text))
    goals = {int(g) for g in re.findall(NEEDED, text)} - set(numbers)
    goals |= {int(g) for pattern in SUBGOAL for g in re.findall(pattern.replace("{T}", str(target)), text)}
    back, new, invalid = replay(numbers, target, forward, text)
    return Behaviors(
        verification=verifications(text, target, steps),
        backtracking=back,
        subgoals=len(goals - {target}),
        backward=max(cues, len({step.key for step in backward})),
        new_backtracking=new,
        equations=len(steps),
        invalid=invalid,
    )


# ------------------------------------------------------------------------------------------------------------ cues

END_OF_THOUGHT = re.compile(f"{CLOSE}|{ANSWER}|" + r"\b(?:[Ff]inal )?[Aa]nswer ?:|\b[Aa]nswer is\b")
SEARCH = re.compile(r"\s*(?:E [0-9]|Exploring Operation|Moving to Node|Current State)")
NOT = r"(?:isn't|is not|not|doesn't|does not|don't|didn't|did not)"
# Each is looked for once behind every calculation. {T} is the target.
CHECK = "|".join([
    rf"\b{NOT} (?:quite |exactly |yet )?(?:equal|equals|reach|match|get|give|make|hit|work|enough|right|correct"
    r"|(?:the |our )?(?:target|goal)\b|{T}\b)",
    "!=",
    r"\b(?:is|equals|hits|hit|reaches|reached|matches|was) (?:exactly |equal to )?(?:the |our |my )?(?:target|goal)\b",
    r"\b(?:goal|target) (?:has been |is |was )?(?:reached|achieved|met|hit|matched)\b",
    r"\btoo (?:high|low|big|small|large|much|little|far)\b|\b(?:over|under)shoots?\b|\boff by\b",
    r"\b(?:above|below|over|under|(?:more|less|higher|lower|bigger|smaller|greater|larger) than) "
    r"(?:(?:the |our )?(?:target|goal)|{T})\b",
    r"\bworks\b|\bworked\b|\bchecks out\b|\bmatches\b|\b(?:in)?correct\b(?! (?:answer|target|number|way))",
    r"[0-9][.,;:)!]* *-*>? *(?:yes|no|nope)\b(?! (?:other|more|way|number|luck|solution))",
])  # fmt: skip
ANNOUNCED = r"\b(?:let me|let's|let us|i'll|to) (?:double[- ]?)?(?:check|verify|confirm)\b"
GETTING = (r"(?:get(?:ting)? (?:(?:close|closer|near|up|down) )?to|get|reach|make|create|build|form|obtain) "
           r"(?:(?:a|an|about|around|roughly|the number|something (?:close to|like)) )?")  # fmt: skip
SUBGOAL = (
    r"\b(?:first|let's|let me|try|trying|need|want|could|can|should|goal|if i|to)\b[^.\n=]{0,30}?\b"
    + GETTING
    + r"([0-9]{1,12})\b(?! [-+*/])",
    r"\baim(?:ing)? (?:for|at) (?:(?:a|an|about|around) )?([0-9]{1,12})\b",
    r"\b([0-9]{1,12}) (?:is|as) (?:a|one) (?:factor|multiple|divisor) of {T}\b",
)
NEEDED = r"\b(?:need|want) (?:(?:a|an|another|about|to have) )?([0-9]{1,12})\b(?! [-+*/])"  # no goal if it is an input
BACKWARD = (r"\bwork(?:ing)? backwards?\b|\bstart(?:ing)? (?:from|with|at) (?:(?:the |our )?(?:target|goal)|{T})\b"
            r"|\bbackwards? from\b|\bso make\b")  # fmt: skip
PLANNED = re.compile(r"[ ,0-9=]*so make\b")  # what stands before it is not done, but to be done
SUMMARY = re.compile(r"\b(?:so|therefore|thus|hence|in total|check|verify|confirm)\b")
RETRY = re.compile(r"\b(?:wait|but|alternatively|hmm|try|instead|another|different|start over|go back|back to)\b")
SIGNS = str.maketrans({"×": "*", "·": "*", "∗": "*", "⋅": "*", "÷": "/", "−": "-", "–": "-", "≠": "!=", "’": "'"})


def normal(text: str) -> str:
    """Small letters and one sign for each operation; numbers, signs and words are parted by single spaces."""
    text = text.translate(SIGNS).lower().replace("\\times", "*").replace("\\div", "/").replace("\\cdot", "*")
    text = re.sub(r"[^\S\n]+", " ", text)
    text = re.sub(r"(?<=[0-9)]) ?x ?(?=[0-9(])", " * ", text)
    return re.sub(r" ?(!=|[-+*/()=]) ?", r" \1 ", text).replace("  ", " ")


# ---------------------------------------------------------------------------------------------------- calculations


class Step(NamedTuple):
    """A calculation: the expression on the left, what it is said to come to, and where it stands."""

    used: tuple[int, ...]  # the numbers of the expression
    value: Fraction  # what it does come to
    result: Fraction
    start: int
    end: int  # of the expression; its result may stand behind
    turned: bool = False  # "24 = 8 * 3"
    bare: bool = False  # no result is said

    @property
    def key(self) -> tuple:
        """The same for 3 * 8 and 8 * 3."""
        return tuple(sorted(self.used)) if len(self.used) == 2 else self.used, self.value


ARITHMETIC = re.compile(r"[0-9]+(?:\.[0-9]+)?|[-+*/()]")
EQUALS = re.compile(r",? ?(?:which |that )?(?:=|equals|equal to|gives(?: us| me)?|makes|results in|is|leaves|yields)"
                    r"(?: us| me)?,? ?:? ?")  # fmt: skip


class Side(NamedTuple):
    """A stretch of numbers and signs; `value` is None where it is no expression."""

    value: Fraction | None
    numbers: tuple[int, ...]
    start: int
    end: int


def sides(text: str) -> Iterator[Side]:
    """All stretches of numbers, signs and parentheses, as long as they can be; two numbers side by side are two."""
    tokens: list[re.Match] = []
    for token in [*ARITHMETIC.finditer(text), None]:
        behind = tokens and (token is None or text[tokens[-1].end() : token.start()].strip(" ")
                             or "\n" in text[tokens[-1].end() : token.start()]
                             or (token[0][0] in "0123456789(" and tokens[-1][0][-1] in "0123456789)"))  # fmt: skip
        if behind:
            yield from side(text, tokens)
            tokens = []
        if token:
            tokens.append(token)


def side(text: str, tokens: list[re.Match]) -> Iterator[Side]:
    opened, closed = (sum(token[0] == sign for token in tokens) for sign in "()")
    first, last = 0, len(tokens)
    while first < last and (tokens[first][0] in "-+*/)" or (tokens[first][0] == "(" and opened > closed)):
        opened -= tokens[first][0] == "("
        closed -= tokens[first][0] == ")"
        first += 1
    while first < last and (tokens[last - 1][0] in "-+*/(" or (tokens[last - 1][0] == ")" and closed > opened)):
        opened -= tokens[last - 1][0] == "("
        closed -= tokens[last - 1][0] == ")"
        last -= 1
    if first == last:
        return
    start, end = tokens[first].start(), tokens[last - 1].end()
    if last - first == 1:
        if len(tokens[first][0]) <= 12:
            number = Fraction(tokens[first][0])
            yield Side(number, (int(number),), start, end)
        return
    value, numbers = safe_arithmetic(text[start:end]) or (None, ())
    yield Side(value, tuple(numbers), start, end)


def calculations(text: str) -> Iterator[Step]:
    """The calculations of a normal text, in order; "5 * 4 = 20 + 3 = 23" is two."""
    chain: list[Side] = []
    for one in [*sides(text), None]:
        if chain and (one is None or one.start - chain[-1].end > 20
                      or not EQUALS.fullmatch(text, chain[-1].end, one.start)):  # fmt: skip
            yield from in_chain(chain)
            chain = []
        if one:
            chain.append(one)


def in_chain(chain: list[Side]) -> Iterator[Step]:
    """The calculations of sides that are said to be equal."""
    left: Side | None = None
    result: Fraction | None = None
    turned = False
    for one in chain:
        if len(one.numbers) < 2:
            result = one.value if one.value is not None else result
        elif left is None:
            left, turned = one, result is not None
        elif left.value is not None and one.value != left.value and one.numbers[0] == left.value:
            yield Step(left.numbers, left.value, left.value, left.start, left.end)
            left, result = one, None
    if left is not None and left.value is not None:
        said = left.value if result is None else result
        yield Step(left.numbers, left.value, said, left.start, left.end, turned, bare=result is None)


# ------------------------------------------------------------------------------------------------------- behaviours


def verifications(text: str, target: int, steps: list[Step]) -> int:
    """Calculations behind which, before the next one, something checks; an announced check belongs to the next one."""
    ends = [step.end for step in steps]
    slots = {bisect.bisect_right(ends, hit.end()) for hit in re.finditer(CHECK.replace("{T}", str(target)), text)}
    slots |= {min(len(ends), 1 + bisect.bisect_right(ends, hit.end())) for hit in re.finditer(ANNOUNCED, text)}
    return len(slots - {0})


def parted(steps: list[Step], numbers: Numbers, target: int, text: str) -> tuple[list[Step], list[Step]]:
    """The calculations that begin at the target, and the others.

    They use it before it was made (50 - 20 = 30), or explain it by a number that is not there yet: "24 = 12 * 2".
    """
    made, backward, forward = set(numbers), [], []
    for step in steps:
        uses = target in step.used and step.result != target
        there = [number in made for number in step.used]
        explains = step.result == target and not all(there) and (step.turned or any(there))
        if target not in made and (uses or explains):
            backward.append(step)
        elif not PLANNED.match(text, step.end):
            forward.append(step)
            made.add(step.result)
    return backward, forward


def take(pool: Numbers, used: tuple[int, ...]) -> tuple[Numbers, bool]:
    """What is left of the numbers when some are used, and whether all of these were there."""
    left = list(pool)
    there = [number in left and not left.remove(number) for number in used]
    return tuple(left), all(there)


def replay(numbers: Numbers, target: int, steps: list[Step], text: str) -> tuple[int, int, int]:
    """Returns to an earlier pool of numbers, those of them that go on in a new way, and calculations that are invalid.

    The pools of the path so far are a stack. A calculation goes on from the latest pool that has its numbers and, if
    there is one, those of what follows until something else is tried. If it is not the last pool, the path was given
    up. A calculation whose numbers are nowhere is left out, unless it is the first of something else.
    """
    pools: list[Numbers] = [tuple(numbers)]
    tried: set[tuple] = set()
    back = new = invalid = 0
    solved = False
    for i, step in enumerate(steps):
        before = text[steps[i - 1].end if i else 0 : step.start]
        possible = [j for j in reversed(range(len(pools))) if take(pools[j], step.used)[1]]
        fits = next((j for j in possible if goes_on(pools[j], steps, i, text)), possible[0] if possible else None)
        invalid += fits is None or step.result != step.value
        way = (tuple(sorted(pools[fits or 0])), step.key)
        elsewhere = fits is None and not step.bare and len(pools) > 1 and RETRY.search(before)
        if (fits is None and not elsewhere) or (step.bare and way in tried):
            continue  # nothing that could go on, or only spoken of again
        if fits != len(pools) - 1:
            again = solved and (step.result == target or way in tried)  # a solution is said once more
            if not again and not (SUMMARY.search(before) and (solved or step.result == target)):
                back, new, solved = back + 1, new + (way not in tried), False
        tried.add(way)
        del pools[(fits or 0) + 1 :]
        pools.append((*take(pools[-1], step.used)[0], step.result))
        solved = solved or pools[-1] == (target,)
    return back, new, invalid


def goes_on(pool: Numbers, steps: list[Step], i: int, text: str) -> bool:
    """Whether step i and all those behind it, until something else is tried, can go on from this pool."""
    while len(pool) > 1:
        pool, there = take(pool, steps[i].used)
        if not there:
            return False
        pool, i = (*pool, steps[i].result), i + 1
        if i == len(steps) or RETRY.search(text, steps[i - 1].end, steps[i].start):
            return True
    return False


def in_search(text: str, target: int) -> Behaviors:
    """Of a search (`search.py`): leaves that are compared, and moves to a node that is no child of the one before."""
    here, seen = (0,), {(0,)}
    checks = back = new = tried = invalid = 0
    for event in read_events(text, target):
        checks += isinstance(event, Check)
        if isinstance(event, Explore):
            a, sign, b, result = event.operation
            tried, invalid = tried + 1, invalid + (apply(a, sign, b) != result)
        if isinstance(event, Move):
            if here not in (event.node, event.node[:-1]):
                back, new = back + 1, new + (event.node not in seen)
            here = event.node
            seen.add(here)
    return Behaviors(checks, back, new_backtracking=new, equations=tried, invalid=invalid)
