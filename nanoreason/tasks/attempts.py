"""Countdown by attempts: hard to find, easy to check, so that thinking longer pays whatever a model has learnt.

    43 from 8 7 5                                                   the prompt: the target first, then the inputs
    <think> 8 * 7 = 56 , 56 - 5 = 51 no wait                        an attempt that uses every input once, its verdict
      7 * 5 = 35 , 35 + 8 = 43 yes </think>                         after "wait" another one, until one says yes
    <answer> 7 * 5 = 35 , 35 + 8 = 43 </answer>                     the steps of the last attempt

A guess is right in 9.5 % of the legal full attempts (3 inputs of 1..12; 2.3 % for 4 of 1..9) and nothing makes it
better, an attempt costs 13 tokens, a failed one is recognised with certainty. To close the thought after a "no" is to
give up: that choice is what reinforcement, budgets, "wait" and length rewards act on.

Every number is one token. In an operation the larger number stands first, and no value leaves 0..`largest`. Whether
(sorted inputs, target) is held out is decided by a hash of exactly that, one in ten is, whatever the other settings.

The corpus of a base is a mixture of KINDS of text, `--task.shares guess:.2,short:.3,long:.5`. Those of `PLAIN` pose the
problem as above; the others have prompts of their own, so only a base that is pretrained should meet them. The split
"test" never has them.
"""

from __future__ import annotations

import functools
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple

from nanoreason.countdown import Numbers, apply, check_operations, same_answer
from nanoreason.priming import PRIMED, primed
from nanoreason.prompts import ANSWER, CLOSE, END, OPEN, TAGS, asked, extract_answer, tagged
from nanoreason.rollout import Problem, Task, seed_of
from nanoreason.run import Positive, Range, Share
from nanoreason.tokenizer import TextTokenizer, word_tokenizer

HOLD_OUT = 10  # one (inputs, target) in ten is held out
INSISTENT = 0.7  # chance to state a right attempt once more, of a thought that insists on it
RETRY = ("wait", "but", "Alternatively", "Hmm")  # what stands between two attempts
WORDS = [
    "User:", "Assistant:", *TAGS, "from", "+", "-", "*", "/", "=", ",", ":", ";", "yes", "no", *RETRY,
    "Think", "for", "maximum", "tokens.", "steps", "short", "long", "left", "check", "Final", "Answer:",
    "aim", "first", "so", "make", "spawn", "join", "none",
]  # fmt: skip


@functools.cache
def attempts_tokenizer(largest: int = 60) -> TextTokenizer:
    """One token per word of WORDS and per number 0..largest, and EOS: 102 tokens for 60."""
    return word_tokenizer([*WORDS, *map(str, range(largest + 1))])


# ---------------------------------------------------------------------------------------------- all that can be tried


class Attempt(NamedTuple):
    """A legal full path: every input is used once. It says nothing about the target."""

    text: str  # its steps, as in "6 * 5 = 30 , 30 + 20 = 50"
    value: int  # what it comes to

    def judged(self, target: int) -> str:
        return f"{self.text} {'yes' if self.value == target else 'no'}"


@functools.lru_cache(maxsize=1 << 15)  # 364 sorted triples of 1..12, 495 quadruples of 1..9
def all_attempts(numbers: Numbers, operations: str = "+-*", largest: int = 60) -> tuple[Attempt, ...]:
    """Every legal attempt with these sorted numbers, none twice: equal inputs make equal attempts.

    >>> [attempt.text for attempt in all_attempts((5, 20))]
    ['20 + 5 = 25', '20 - 5 = 15']
    """
    if len(numbers) == 1:
        return (Attempt("", numbers[0]),)
    found: dict[Attempt, None] = {}
    for j in range(len(numbers)):
        for i in range(j):
            rest = numbers[:i] + numbers[i + 1 : j] + numbers[j + 1 :]
            for sign in operations:
                result = apply(numbers[j], sign, numbers[i])
                if result is None or result > largest:
                    continue
                step = f"{numbers[j]} {sign} {numbers[i]} = {result}"
                for text, value in all_attempts(tuple(sorted((*rest, result))), operations, largest):
                    found[Attempt(f"{step} , {text}" if text else step, value)] = None
    return tuple(found)


def is_held_out(numbers: Iterable[int], target: int) -> bool:
    """Of the inputs in any order; no other setting matters, so a base may meet the problems of several."""
    return seed_of("attempts", *sorted(numbers), target) % HOLD_OUT == 0


@functools.lru_cache(maxsize=1 << 15)
def reachable(
    numbers: Numbers, operations: str, largest: int, targets: tuple[int, int], held_out: bool
) -> tuple[int, ...]:
    """The targets in a range that these sorted numbers can make, of one split."""
    values = {value for _, value in all_attempts(numbers, operations, largest) if targets[0] <= value <= targets[1]}
    return tuple(value for value in sorted(values) if is_held_out(numbers, value) == held_out)


# ------------------------------------------------------------------------------------------------------- the corpus


@dataclass(frozen=True)
class Mixture:
    """Shares of kinds of text, as `guess:0.2,long:0.8`; they need not sum to 1.

    >>> mixture = Mixture.parse("guess:.2,long:.6")
    >>> str(mixture), mixture.drawn(random.Random(0))
    ('guess:0.2,long:0.6', 'long')
    """

    shares: tuple[tuple[str, float], ...]

    def __post_init__(self) -> None:
        known = len({kind for kind, _ in self.shares}) == len(self.shares) and {k for k, _ in self.shares} <= {*KINDS}
        if not known or not all(0 <= share < float("inf") for _, share in self.shares) or not sum(self.weights):
            raise ValueError(f"{self} is no mixture: shares such as guess:0.2,long:0.8 of {', '.join(KINDS)}")

    @classmethod
    def parse(cls, text: str) -> Mixture:
        try:
            pairs = [part.split(":") for part in text.split(",")]
            return cls(tuple((kind, float(share)) for kind, share in pairs))
        except ValueError:
            raise ValueError(f"{text!r} is no mixture: guess:0.2,long:0.8, of {', '.join(KINDS)}") from None

    def __str__(self) -> str:
        return ",".join(f"{kind}:{share!r}" for kind, share in self.shares)

    @property
    def weights(self) -> list[float]:
        return [share for _, share in self.shares]

    def drawn(self, draw: random.Random) -> str:
        return draw.choices(self.shares, self.weights)[0][0]


class Posed(NamedTuple):
    """What the kinds of text are written about."""

    numbers: Numbers  # in the order of the prompt
    target: int
    attempts: tuple[Attempt, ...]

    @property
    def right(self) -> list[Attempt]:
        return [attempt for attempt in self.attempts if attempt.value == self.target]

    def problem(self, solution: str, form: str) -> Problem:
        info = {"numbers": self.numbers, "target": self.target, "form": form, "solutions": len(self.right),
                "chance": len(self.right) / max(1, len(self.attempts))}  # fmt: skip
        return Problem(f"{self.target} from {' '.join(map(str, self.numbers))}", str(self.target), solution, info)


def shuffled(posed: Posed, draw: random.Random) -> list[Attempt]:
    return draw.sample(posed.attempts, len(posed.attempts))


def thought(
    tried: Iterable[Attempt], target: int, draw: random.Random, *, give_up: float, check: float = 0.0, most: int
) -> tuple[list[str], str]:
    """Attempts with verdicts, and the answer that they end in: the last one. At most `most`, one at least.

    After a failed one the thought gives up with chance `give_up`; one that says yes is stated again with chance
    `check`, then the thought ends.
    """
    said: list[str] = []
    for attempt in tried:
        said.append(attempt.judged(target))
        if attempt.value == target:
            while len(said) < most and draw.random() < check:
                said.append(said[-1])
            break
        if len(said) == most or draw.random() < give_up:
            break
    return said, attempt.text


def in_tags(said: list[str], answer: str) -> str:
    return tagged(f" {RETRY[0]} ".join(said), answer)


def free_thought(task: Attempts, posed: Posed, draw: random.Random, tried: list[Attempt], give_up: float) -> str:
    """A thought of nobody's length and its answer; now and then it insists on its yes, or begins with "wait"."""
    check = INSISTENT if draw.random() < task.insist else task.check
    said, answer = thought(tried, posed.target, draw, give_up=give_up, check=check, most=task.most(posed))
    if draw.random() < task.wait_first:
        said[0] = f"{RETRY[0]} {said[0]}"
    return in_tags(said, answer)


def guess(task: Attempts, posed: Posed, draw: random.Random) -> Problem:
    """No thought, and an answer that is right more often than chance."""
    right = draw.random() < task.right_guess
    return posed.problem(tagged("", draw.choice(posed.right if right else posed.attempts).text), "guess")


def one(task: Attempts, posed: Posed, draw: random.Random) -> Problem:
    """One attempt with its verdict, right or wrong."""
    tried = draw.choice(posed.attempts)
    return posed.problem(tagged(tried.judged(posed.target), tried.text), "one")


def blind(task: Attempts, posed: Posed, draw: random.Random) -> Problem:
    """One attempt without a verdict: a base of these does not look at what it has found."""
    tried = draw.choice(posed.attempts).text
    return posed.problem(tagged(tried, tried), "blind")


def bare(task: Attempts, posed: Posed, draw: random.Random) -> Problem:
    """The steps of a guess without any tags: a right one is accepted, but it is not in the format."""
    right = draw.random() < task.right_guess
    return posed.problem(draw.choice(posed.right if right else posed.attempts).text, "bare")


def short(task: Attempts, posed: Posed, draw: random.Random) -> Problem:
    """Attempts, and soon no more."""
    return posed.problem(free_thought(task, posed, draw, shuffled(posed, draw), task.give_up[0]), "short")


def long(task: Attempts, posed: Posed, draw: random.Random) -> Problem:
    """Attempts until one says yes, or nearly so."""
    return posed.problem(free_thought(task, posed, draw, shuffled(posed, draw), task.give_up[1]), "long")


def unjudged(task: Attempts, posed: Posed, draw: random.Random) -> Problem:
    """A long thought without a word of verdict: that it ends behind a right attempt is all that one can read of it."""
    said, answer = thought(shuffled(posed, draw), posed.target, draw, give_up=task.give_up[1], most=task.most(posed))
    return posed.problem(in_tags([judged.rsplit(" ", 1)[0] for judged in said], answer), "unjudged")


def cut(task: Attempts, posed: Posed, draw: random.Random) -> Problem:
    """What one can answer when a long thought is cut anywhere: the attempt that said yes, else the last that was
    complete, else a guess. Without these texts a model copies the torn attempt into its answer.

    The cut is not the model's choice, so the thought and its closing tags are the prompt here, not part of the loss:
    in the loss it would learn to close its thoughts in the middle of an attempt.
    """
    check = draw.choice((0.5, INSISTENT))
    said, _ = thought(shuffled(posed, draw), posed.target, draw, give_up=0.0, check=check, most=task.most(posed))
    words = f" {RETRY[0]} ".join(said).split()
    kept = words[: draw.randrange(len(words))]
    each = attempt_tokens(len(posed.numbers))
    torn = len(kept) % each
    complete = len(kept) // each + (torn >= each - 2)  # its verdict and the wait behind it may be missing
    answer = said[complete - 1].rsplit(" ", 1)[0] if complete else draw.choice(posed.attempts).text
    first = [RETRY[0]] if draw.random() < task.wait_first else []
    problem = posed.problem(f"{answer} {END}", "cut")
    return replace(problem, prompt=" ".join([problem.prompt, OPEN, *first, *kept, CLOSE, ANSWER]))


def asked_length(task: Attempts, posed: Posed, draw: random.Random) -> Problem:
    """ "Think for (maximum) N tokens." in the prompt. Attempts until about N, and the one that says yes again and again
    until then; in 70 % of the texts within 15 % of N, as far as whole attempts allow, in the rest any number of them.
    In a third of the texts N is a maximum, and the thought is a long one that fits."""
    each, most = attempt_tokens(len(posed.numbers)), task.most(posed)
    shortest, longest = 2 * each, (most + 1) * each  # an answer and its tags are about one attempt more

    def amount() -> int:
        return round(shortest * (longest / shortest) ** draw.random())  # evenly on a logarithmic scale

    n, is_max = amount(), draw.random() < 1 / 3
    about = n * draw.uniform(0.85, 1.15) if draw.random() < 0.7 else amount()
    most = max(1, (n - 1) // each - 1 if is_max else min(most, round(about / each) - 1))
    found = thought(shuffled(posed, draw), posed.target, draw, give_up=task.give_up[1] if is_max else 0.0,
                    check=task.check if is_max else 1.0, most=most)  # fmt: skip
    return asked(posed.problem(in_tags(*found), "asked"), "max" if is_max else "exact", n)


def more(task: Attempts, posed: Posed, draw: random.Random) -> Problem:
    """A long thought about one number more, each at most 9; in half of the texts a right attempt is moved to a place
    within reach, so that its longer steps are copied into the answer often enough to learn it."""
    posed = task.drawn(draw, task.inputs + 1, min(9, task.max_input), held_out=False)
    tried = shuffled(posed, draw)
    if draw.random() < 0.5:
        tried.insert(draw.randrange(task.most(posed)), draw.choice(posed.right))
    return posed.problem(free_thought(task, posed, draw, tried, task.give_up[1]), "more")


def compare(task: Attempts, posed: Posed, draw: random.Random) -> Problem:
    """A drill, `50 : 12 no 50 yes 51 no`: 40 % equal, half of the others near. A yes is so rare in thoughts that
    without it verdicts stay at chance for millions of tokens."""
    said, target = [], posed.target
    for _ in range(draw.randint(6, 24)):
        value = target
        if draw.random() >= 0.4:
            near = draw.random() < 0.5
            value = target + draw.choice((-3, -2, -1, 1, 2, 3)) if near else draw.randint(0, task.largest)
            value = min(task.largest, max(0, value))
        said.append(f"{value} {'yes' if value == target else 'no'}")
    return Problem(f"{target} :", "", " ".join(said), {"numbers": (), "target": target, "form": "compare"})


def mark(task: Attempts, posed: Posed, draw: random.Random) -> Problem:
    """A drill, `50 ; 6 5 20 : 6 * 5 = 30 , 30 + 20 = 50 yes ; ...`: given attempts with verdicts, a third of them
    right. It teaches to judge without teaching to try again."""
    given = [draw.choice(posed.right if draw.random() < 1 / 3 else posed.attempts) for _ in range(draw.randint(5, 16))]
    said = " ; ".join(attempt.judged(posed.target) for attempt in given[: task.most(posed)])
    prompt = f"{posed.target} ; {' '.join(map(str, posed.numbers))} :"
    return Problem(prompt, "", said, {"numbers": posed.numbers, "target": posed.target, "form": "mark"})


def priming(kind: str, task: Attempts, posed: Posed, draw: random.Random) -> Problem:
    """A thought with some of the four cognitive behaviours and no others; the same index is the same problem and the
    same attempts in all of PRIMED."""
    found = primed(kind, shuffled(posed, draw), posed.target, draw, task.largest)
    return posed.problem(tagged(*found) if found else "", kind)


def attempt_tokens(inputs: int) -> int:
    """An attempt, its verdict and the wait behind it: 13 with three inputs, 19 with four."""
    return 6 * inputs - 5


PLAIN = {  # the problem, as it is
    "guess": guess, "bare": bare, "one": one, "blind": blind, "short": short, "long": long, "unjudged": unjudged,
    **{kind: functools.partial(priming, kind) for kind in PRIMED},
}  # fmt: skip
KINDS: dict[str, Callable[[Attempts, Posed, random.Random], Problem]] = {
    **PLAIN, "cut": cut, "asked": asked_length, "more": more, "compare": compare, "mark": mark,
}  # fmt: skip


SOLUTIONS = Mixture.parse("guess:.25,short:.3,long:.45")
# What a base is pretrained on: 80 tokens a row, two fifths of them in long thoughts.
BASE_MIXTURE = Mixture.parse("guess:.18,short:.2,long:.3,cut:.08,compare:.08,asked:.1,more:.06")


# --------------------------------------------------------------------------------------------------------- the task


@dataclass(frozen=True)
class Attempts(Task):
    """Make the target from the inputs, each used once, by attempts. `info` holds `numbers`, `target`, `form` (of the
    solution), `solutions` (right attempts) and `chance` (that a random attempt is right)."""

    inputs: Annotated[int, Range(2, 5)] = 3  # how many numbers a problem has
    max_input: Positive = 12  # inputs are uniform in 1..max_input
    targets: tuple[int, int] = (10, 60)  # smallest and largest target
    operations: str = "+-*"  # of + - * /
    largest: Annotated[int, Range(1, 9999)] = 60  # no value exceeds it; so many number tokens, and 0
    chance: tuple[Share, Share] = (0.0, 1.0)  # only problems of which so many of the attempts are right
    shares: Mixture = SOLUTIONS  # of each of KINDS, such as guess, short, long
    right_guess: Share = 0.3  # chance that a guess, in tags or bare, is right on purpose
    give_up: tuple[Share, Share] = (0.5, 0.04)  # chance to end after a failed attempt, in short and in long thoughts
    check: Share = 0.1  # chance to state an attempt that says yes once more
    insist: Share = 0.05  # how many thoughts do so again and again, as if they were kept from ending
    wait_first: Share = 0.1  # how many thoughts begin with wait, as when one that would be empty is kept from ending
    longest: Positive = 400  # tokens of a thought, at most: as many as any budget that will be forced

    stop = (END,)

    def __post_init__(self) -> None:
        if not 0 <= self.targets[0] < self.targets[1] <= self.largest or self.max_input > self.largest:
            raise ValueError(f"targets {self.targets}, max_input {self.max_input}: rising, at most {self.largest}")
        if self.chance[0] > self.chance[1]:
            raise ValueError(f"chance {self.chance}: the smallest and the largest share of right attempts")
        if not self.operations or set(self.operations) - set("+-*/"):
            raise ValueError(f"operations {self.operations!r}: some of +-*/")

    def tokenizer(self) -> TextTokenizer:
        return attempts_tokenizer(self.largest)

    def most(self, posed: Posed) -> int:
        """How many attempts fit into the longest thought."""
        return max(1, (self.longest + 1) // attempt_tokens(len(posed.numbers)))

    def drawn(self, draw: random.Random, inputs: int, max_input: int, held_out: bool) -> Posed:
        """Inputs, and a target that they can make: evenly among those of the split."""
        rules = (self.operations, self.largest)
        for _ in range(10_000):
            numbers = tuple(draw.choices(range(1, max_input + 1), k=inputs))
            attempts = all_attempts(tuple(sorted(numbers)), *rules)
            targets = reachable(tuple(sorted(numbers)), *rules, self.targets, held_out)
            if self.chance != (0.0, 1.0):
                right = Counter(attempt.value for attempt in attempts)
                targets = [t for t in targets if self.chance[0] <= right[t] / len(attempts) <= self.chance[1]]
            if targets:
                return Posed(numbers, draw.choice(targets), attempts)
        raise ValueError(f"{self}: found no solvable problem")

    def tried(self, numbers: Numbers, target: int, draw: random.Random, most: int) -> tuple[str, str]:
        """A long thought about any numbers, of at most `most` attempts, and the right one; "" where it finds none."""
        posed = Posed(numbers, target, all_attempts(tuple(sorted(numbers)), self.operations, self.largest))
        said, last = thought(shuffled(posed, draw), target, draw, give_up=self.give_up[1], most=most)
        return f" {RETRY[0]} ".join(said), last if said[-1].endswith("yes") else ""

    def problem(self, split: str, index: int) -> Problem:
        draw = random.Random(seed_of("attempts", self.inputs, self.max_input, self.operations, split, index))
        posed = self.drawn(draw, self.inputs, self.max_input, split == "test")
        kind = long if split == "test" else KINDS[self.shares.drawn(draw)]
        return kind(self, posed, draw)

    def reward(self, problem: Problem, response: str) -> float:
        """1.0 iff the one <answer>, or a response that is nothing but an answer, is a legal list of operations that
        solves the problem, with this task's signs and values."""
        answer, numbers = extract_answer(response), problem.info["numbers"]
        if answer is None or not check_operations(numbers, problem.info["target"], answer):
            return 0.0
        words = re.findall(r"[0-9]+|[-+*/]", answer)
        return float(all(int(w) <= self.largest if w.isdigit() else w in self.operations for w in words))

    def difficulty(self, problem: Problem) -> int:
        """How many numbers are given."""
        return len(problem.info["numbers"])

    def domain(self, problem: Problem) -> tuple[int, int]:
        """How many numbers, and how many attempts are right (1, 2, 3, or more)."""
        return self.difficulty(problem), min(4, problem.info["solutions"])

    def is_right_leniently(self, problem: Problem, response: str) -> bool:
        """With a yes or a full stop behind the answer too."""
        return self.reward(problem, (extract_answer(response) or "").rstrip(". \n").removesuffix("yes")) == 1

    def answer(self, response: str) -> str | None:
        """Whoever computes the same thing votes for the same (`countdown.same_answer`)."""
        answer = extract_answer(response)
        return None if answer is None else same_answer(answer)

    def test_problems(self, count: int) -> list[Problem]:
        """Held-out problems that differ in more than the order of their inputs, as long as there are such: of 3 inputs
        up to 12 there are 232 (and 2,151 to train on), of 4 up to 9 1,217. Then they come again in another order."""
        found: dict[tuple, Problem] = {}
        repeated: list[Problem] = []
        for index in range(12 * count):
            problem = self.problem("test", index)
            key = (*sorted(problem.info["numbers"]), problem.info["target"])
            if key in found:
                repeated.append(problem)
            found.setdefault(key, problem)
            if len(found) == count:
                break
        return [*found.values(), *repeated][:count]

    def parse(self, text: str) -> Problem:
        """A target and the numbers, such as "43 from 8 7 5"; they need not be solvable."""
        numbers = tuple(int(number) for number in re.findall(r"[0-9]{1,9}", text))
        if not 3 <= len(numbers) <= 6 or max(numbers) > self.largest:
            raise ValueError(f"a target and two to five numbers up to {self.largest}, such as 43 from 8 7 5")
        target, given = numbers[0], numbers[1:]
        if max(given) > self.max_input:
            raise ValueError(
                f"{max(given)} is larger than any input that is practised, {self.max_input}: pose one such as 43 from "
                f"8 7 5, or this one all the same with --task.max-input {self.largest}"
            )
        return Posed(given, target, all_attempts(tuple(sorted(given)), self.operations, self.largest)).problem("", "")

    def told(self, problem: Problem) -> str:
        numbers = tuple(sorted(problem.info["numbers"]))
        right = Posed(numbers, problem.info["target"], all_attempts(numbers, self.operations, self.largest)).right
        return right[0].text if right else "nothing: it cannot be made"

    def metrics(self, problem: Problem, response: str) -> dict[str, float]:
        """What the response tried, as numbers per response: a share is the quotient of two means.

        steps, steps/right          operations in thought and answer; with a right result
        verdicts, verdicts/right    results with a yes or no behind them; where that is true (mostly: a no)
        hits, hits/seen, yes        judged results that are the target; to which it says yes; how often it says yes
        attempts, /legal, /new      in the thought; which use each input once, with right results; not said before
        found, found/lost           1 if an attempt is right; and if the answer is not, all the same
        checks, waits, gave_up      a yes said again; words of RETRY; 1 if the thought closes after a no
        subgoals, backward          "aim for 20 first"; "so make 10"
        """
        read = read_attempts(problem.info["numbers"], problem.info["target"], response)
        legal, answered = sum(read.legal), self.reward(problem, response)
        tried = len(read.attempts)
        return {
            "mode/guess": float(tried == 0),
            "mode/one": float(tried == 1),
            "mode/search": float(tried > 1),
            "thinking/length": float(read.tokens),
            "attempts": float(tried),
            "attempts/legal": float(legal),
            "attempts/new": float(len(set(read.attempts))),
            "steps": float(read.steps),
            "steps/right": float(read.steps_right),
            "verdicts": float(read.verdicts),
            "verdicts/right": float(read.verdicts_right),
            "hits": float(read.hits),
            "hits/seen": float(read.hits_seen),
            "yes": float(read.yes),
            "found": float(read.found),
            "found/lost": float(read.found and not answered),
            "checks": float(read.checks),
            "waits": float(read.waits),
            "gave_up": float(read.gave_up),
            "subgoals": float(read.subgoals),
            "backward": float(read.backward),
        }


@dataclass(frozen=True)
class HardAttempts(Attempts):
    """The same with four numbers up to 9: some 270 attempts, of which 2.4 % are right."""

    inputs: Annotated[int, Range(2, 5)] = 4  # how many numbers a problem has
    max_input: Positive = 9  # inputs are uniform in 1..max_input


# ------------------------------------------------------------------------------------------------------- the reader


class Reading(NamedTuple):
    """What a response did, read from its text; nothing here says that it is right."""

    attempts: tuple[str, ...]  # of the thought: with a verdict, or one operation less than there are inputs
    legal: tuple[bool, ...]  # of each: uses every input once, with right results
    found: bool  # a legal one comes to the target
    steps: int  # operations anywhere, a torn last one left out
    steps_right: int
    verdicts: int  # yes or no behind a result
    verdicts_right: int  # yes where that result is the target, no where it is not
    hits: int  # judged results that are the target
    hits_seen: int  # to which it says yes
    yes: int  # judged results to which it says yes
    checks: int  # attempts that repeat the one before them, which said yes
    waits: int  # words of RETRY in the thought
    gave_up: bool  # the thought was closed behind a no
    subgoals: int  # how often it says "aim for"
    backward: int  # how often it says "so make"
    tokens: int  # words of the thought


OPERATION = re.compile(r"([0-9]{1,9}) ([-+*/]) ([0-9]{1,9}) = ([0-9]{1,9})")


def read_attempts(numbers: Numbers, target: int, response: str) -> Reading:
    """Total and linear: any text is read, one that was cut as far as it goes.

    >>> said = "20 - 6 = 14 , 14 + 5 = 19 no wait 6 * 5 = 30 , 30 + 20 = 50 yes"
    >>> read = read_attempts((6, 5, 20), 50, f"<think> {said} </think> <answer> 6 * 5 = 30 , 30 + 20 = 50 </answer>")
    >>> read.attempts, read.legal, read.found, read.steps, read.verdicts_right
    (('20 - 6 = 14 , 14 + 5 = 19', '6 * 5 = 30 , 30 + 20 = 50'), (True, True), True, 6, 2)
    """
    thinking, closed, _ = response.partition(OPEN)[2].partition(CLOSE)
    words = thinking.partition(ANSWER)[0].split()
    attempts, legal, checks, last_yes = [], [], 0, ""
    judged: list[tuple[bool, bool]] = []  # (the result is the target, it says yes)
    waits = 0
    parts: list[str] = []

    def end(verdict: str) -> None:
        """An attempt is over: by its verdict, by a wait or with the thought."""
        nonlocal checks, last_yes
        operations = OPERATION.findall(" ".join(parts))
        parts.clear()
        if operations and (verdict or len(operations) >= len(numbers) - 1):  # else it is torn
            text = " , ".join(f"{a} {sign} {b} = {c}" for a, sign, b, c in operations)
            checks += text == last_yes
            last_yes = text if verdict == "yes" else ""
            attempts.append(text)
            legal.append(is_legal(numbers, operations))

    for i, word in enumerate(words):
        if word in RETRY:
            waits += 1
            if parts:
                end("")
        elif word in ("yes", "no"):
            if parts:
                found = words[i - 1]
                if len(parts) > 1 and parts[-2] == "=" and found.isascii() and found.isdigit():
                    judged.append((found.lstrip("0") == str(target).lstrip("0"), word == "yes"))
                end(word)
        elif word == ":":  # what stood before it was a plan
            parts.clear()
        else:
            parts.append(word)
    if parts:
        end("")
    operations = OPERATION.findall(" ".join(response.split()))
    pairs = list(zip(words, words[1:], strict=False))
    return Reading(
        attempts=tuple(attempts),
        legal=tuple(legal),
        found=any(ok and text.endswith(f"= {target}") for text, ok in zip(attempts, legal, strict=True)),
        steps=len(operations),
        steps_right=sum(is_right(*operation) for operation in operations),
        verdicts=len(judged),
        verdicts_right=sum(hit == yes for hit, yes in judged),
        hits=sum(hit for hit, _ in judged),
        hits_seen=sum(hit and yes for hit, yes in judged),
        yes=sum(yes for _, yes in judged),
        checks=checks,
        waits=waits,
        gave_up=bool(closed and words and words[-1] == "no"),
        subgoals=pairs.count(("aim", "for")),
        backward=pairs.count(("so", "make")),
        tokens=len(words),
    )


def is_right(a: str, sign: str, b: str, result: str) -> bool:
    return apply(int(a), sign, int(b)) == int(result)


def is_legal(numbers: Numbers, operations: list[tuple[str, str, str, str]]) -> bool:
    """Whether the operations use up the numbers, with right results."""
    left = list(numbers)
    for a, sign, b, result in operations:
        for used in (int(a), int(b)):
            if used not in left:
                return False
            left.remove(used)
        if not is_right(a, sign, b, result):
            return False
        left.append(int(result))
    return len(left) == 1
