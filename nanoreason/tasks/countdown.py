"""Countdown as tasks: answered at once, by a stream of search, or by a search in think tags. Rules: `countdown.py`.

    Countdown            Make 24 from 9 4 3 in steps:                 9 - 3 = 6 , 4 * 6 = 24
      expression         Make 24 from 9 4 3 in one expression:        4 * ( 9 - 3 )
    StreamOfSearch       T 24 : 4 9 3                                 E 9 * 3 = 27 > 4 27 X ... W       (`search.py`)
    ThinkingCountdown    Make 24 from 9 4 3 in steps:                 <think> E ... </think> <answer> ... </answer>
    CountdownWords       Reach 24 with the numbers 9, 4 and 3: ...    ... <answer> 4 * ( 9 - 3 ) </answer>

A problem is a function of (settings, split, index) alone: draw a target, then inputs until they can reach it, so that
easy targets are not over-represented. Whether (sorted inputs, target) is held out as `test_inputs` is decided by a hash
of exactly that, and the targets of `test_targets` are the tenth of the range with the smallest hashes. Hence splits
cannot overlap, in any order of the inputs, and nobody has to keep a list. "test" is `test_inputs`.

    python -m nanoreason.tasks.countdown --out data/countdown       # writes the held-out problems, byte for byte
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from nanoreason.countdown import (
    Numbers,
    Operation,
    as_expression,
    check_expression,
    check_operations,
    count_solutions,
    find_solution,
    in_steps,
    same_answer,
    same_operations,
)
from nanoreason.prompts import ANSWER, CLOSE, END, OPEN, TAGS, extract_answer, extract_tagged, tagged
from nanoreason.rollout import Problem, Task, seed_of
from nanoreason.run import Count, Positive, Range, Share
from nanoreason.search import (
    COMPACT_WORDS,
    ERRORS,
    MIXTURE,
    STRATEGIES,
    Check,
    Event,
    Explore,
    Reading,
    State,
    claimed_path,
    first_events,
    optimal_path,
    prompt,
    read_events,
    read_trace,
    search,
    tokenizer,
    write,
)
from nanoreason.search_threads import (
    CALL,
    END_CALL,
    ITEM,
    Place,
    called,
    child_prompt,
    is_solution,
    parallel_demonstration,
    returned,
    serial_demonstration,
    write_join,
)
from nanoreason.search_threads import tokenizer as threads_tokenizer
from nanoreason.spawn import Limits
from nanoreason.tokenizer import TextTokenizer, byte_tokenizer, word_tokenizer

SPLITS = ("train", "test_inputs", "test_targets")
FORMS = {"operations": "in steps", "expression": "in one expression"}  # answer form -> the words that ask for it
IN_WORDS = {  # how the answer is asked for in English, and an example that solves nothing
    "operations": ("and round brackets, one step after another", "8 - 6 = 2 , 2 * 5 = 10"),
    "expression": ("and round brackets, in one expression", "( 8 - 6 ) * 5"),
}
MAX_PATH = 12  # operations; a longer one solves nothing, and is not worth putting into one form
HOLD_OUT = 10  # one in ten targets, and one in ten (inputs, target) of the other targets
WORDS = ("User:", "Assistant:", *TAGS, "Make", "from", "in", "steps:", "one", "expression:", "(", ")")


@functools.cache
def thinking_tokenizer() -> TextTokenizer:
    """The compact language of searches, R1's tags and template, and the words of `Countdown`'s prompts."""
    return word_tokenizer([*COMPACT_WORDS, *WORDS, *map(str, range(10, 100))], digits=True)


@functools.cache
def search_tokenizer() -> TextTokenizer:
    return tokenizer()


@functools.cache
def held_out_targets(low: int, high: int) -> frozenset[int]:
    """A tenth of the targets, rounded down (9 of the standard 91), at least one; in no training problem."""
    by_hash = sorted(range(low, high + 1), key=lambda t: seed_of("countdown target", t))
    return frozenset(by_hash[: max(1, len(by_hash) // HOLD_OUT)])


@dataclass(frozen=True)
class Countdown(Task):
    """Make the target from the numbers, each used once. `info` holds `numbers`, `target`, `operations` (a solution)."""

    inputs: Annotated[int, Range(2, 6)] = 4  # how many numbers a problem has
    max_input: Annotated[int, Range(2, 9999)] = 99  # inputs are uniform in 1..max_input
    targets: tuple[int, int] = (10, 100)  # smallest and largest target; a tenth of them is held out
    form: Literal["operations", "expression"] = "operations"  # of the answer

    def __post_init__(self) -> None:
        if not 0 <= self.targets[0] < self.targets[1]:
            raise ValueError(f"targets: a range (low, high) of at least two, not {self.targets}")

    def tokenizer(self) -> TextTokenizer:
        return thinking_tokenizer()

    def split_of(self, numbers: Sequence[int], target: int) -> str:
        """The one of SPLITS these numbers and this target can occur in; the order of the numbers does not matter."""
        if target in held_out_targets(*self.targets):
            return "test_targets"
        return "train" if seed_of("countdown inputs", *sorted(numbers), target) % HOLD_OUT else "test_inputs"

    def problem(self, split: str, index: int) -> Problem:
        """Problem `index` of a split. Two indices may meet the same numbers and target: see `unique_problems`."""
        split = "test_inputs" if split == "test" else split
        kind = split if split in SPLITS else "train"
        rng = random.Random(seed_of("countdown", self.inputs, self.max_input, *self.targets, split, index))
        held_out = held_out_targets(*self.targets)
        targets = [t for t in range(self.targets[0], self.targets[1] + 1) if (t in held_out) == (kind == SPLITS[2])]
        for target in rng.sample(targets, len(targets)):  # the first one, unless these inputs (almost) never reach it
            for _ in range(10_000):
                numbers = tuple(rng.choices(range(1, self.max_input + 1), k=self.inputs))
                if self.split_of(numbers, target) == kind and (operations := find_solution(numbers, target)):
                    return self.pose(numbers, target, operations)
        raise ValueError(f"{self}: found no solvable problem for split {split!r}")

    def pose(self, numbers: Numbers, target: int, operations: tuple[Operation, ...]) -> Problem:
        question = f"Make {target} from {' '.join(map(str, numbers))} {FORMS[self.form]}:\n"
        solution = self.answer_text(numbers, operations)
        return Problem(question, str(target), solution, dict(numbers=numbers, target=target, operations=operations))

    def answer_text(self, numbers: Numbers, operations: Iterable[Operation]) -> str:
        """An answer in this task's form."""
        if self.form == "expression":
            return as_expression(numbers, operations)
        return in_steps(operations)

    def unique_problems(self, split: str, count: int) -> list[Problem]:
        """The first `count` problems of a split that differ in (sorted numbers, target); ValueError if it has fewer."""
        found: dict[tuple, Problem] = {}
        index = last_new = 0
        while len(found) < count:
            problem = self.problem(split, index)
            key = (*sorted(problem.info["numbers"]), problem.info["target"])
            if key not in found:
                found[key] = problem
                last_new = index
            elif index - last_new > 2_000:
                raise ValueError(f"{self}: split {split!r} seems to have {len(found)} different problems, not {count}")
            index += 1
        return list(found.values())

    def reward(self, problem: Problem, response: str) -> float:
        """1.0 iff the response holds exactly one answer, in this task's form, and that answer is correct."""
        answer = extract_answer(response)
        check = check_expression if self.form == "expression" else check_operations
        return float(answer is not None and check(problem.info["numbers"], problem.info["target"], answer))

    def difficulty(self, problem: Problem) -> int:
        """How many numbers are given."""
        return len(problem.info["numbers"])

    def is_right_leniently(self, problem: Problem, response: str) -> bool:
        """With a full stop behind the answer too."""
        answer = extract_answer(response) or ""
        return self.reward(problem, response) == 1 or Countdown.reward(self, problem, answer.rstrip(". \n")) == 1

    def answer(self, response: str) -> str | None:
        """Whoever computes the same thing votes for the same (`countdown.same_answer`)."""
        answer = extract_answer(response)
        return None if answer is None else same_answer(answer)

    def parse(self, text: str) -> Problem:
        """A target and the numbers, such as "24 from 9 4 3"; they need not be solvable."""
        numbers = [int(number) for number in re.findall(r"[0-9]{1,9}", text)]
        if not 3 <= len(numbers) <= 7:
            raise ValueError("a target and two to six numbers, such as 24 from 9 4 3")
        target, given = numbers[0], tuple(numbers[1:])
        return self.pose(given, target, find_solution(given, target) or ())

    def told(self, problem: Problem) -> str:
        return in_steps(problem.info["operations"]) or "nothing: it cannot be made"


@dataclass(frozen=True)
class StreamOfSearch(Countdown):
    """Countdown whose prompt is the root's state and whose solution is a search written as it went (`search.py`).

    data   sos      a search by a strategy drawn from the mixture, dead ends and failures included
           correct  the same, but a failed search is no solution: "" (nobody can learn from it)
           op       the optimal path, told as a search that never errs
    `info` also has `strategy`, `solved` and `nodes` of that search, and `unfinished` where the limit broke it off: it
    then ends in the middle, and nobody learns an end from it. The paper learns the first tokens of long searches too.
    """

    data: Literal["sos", "correct", "op"] = "sos"  # what the solutions are
    strategies: tuple[str, ...] = ()  # one is drawn evenly for each problem; empty: the paper's mixture of all twelve
    language: Literal["compact", "paper"] = "compact"  # of the searches
    limit: Count = 0  # tokens, of the compact language, after which any search is broken off, EOS included; 0: none

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := sorted(set(self.strategies) - set(STRATEGIES)):
            raise ValueError(f"strategies: {', '.join(unknown)} not among {', '.join(STRATEGIES)}")

    def tokenizer(self) -> TextTokenizer:
        return search_tokenizer()

    def mixture(self) -> dict[str, float]:
        """{strategy: how often it is drawn}"""
        return dict.fromkeys(self.strategies, 1 / len(self.strategies)) if self.strategies else dict(MIXTURE)

    def problem(self, split: str, index: int) -> Problem:
        problem, weights = super().problem(split, index), self.mixture()
        seed = seed_of("trajectory", split, index)
        (strategy,) = random.Random(seed).choices(list(weights), list(weights.values()))
        if self.data == "op":
            return problem
        events, finished = self.search(problem, strategy, seed)
        solved = finished and type(events[-1]) is Check
        found = {"strategy": strategy, "solved": solved, "nodes": 1 + sum(type(event) is Explore for event in events)}
        solution = write(events, self.language) if solved or self.data == "sos" else ""
        return replace(problem, solution=solution, info={**problem.info, **found, "unfinished": not finished})

    def search(self, problem: Problem, strategy: str, seed: int) -> tuple[list[Event], bool]:
        """The events of one search within the limit, and whether that is all of it."""
        events = search(problem.info["numbers"], problem.info["target"], strategy, seed)
        return first_events(events, self.limit - 1) if self.limit else (list(events), True)

    def max_tokens(self, problem: Problem) -> int | None:
        return self.limit or None

    def pose(self, numbers: Numbers, target: int, operations: tuple[Operation, ...]) -> Problem:
        optimal = write(optimal_path(numbers, target, operations), self.language) if operations else ""
        info = dict(numbers=numbers, target=target, operations=operations)
        return Problem(prompt(numbers, target, self.language), str(target), optimal, info)

    def read(self, problem: Problem, response: str) -> Reading:
        return read_trace(problem.info["numbers"], problem.info["target"], response)

    def reward(self, problem: Problem, response: str) -> float:
        """1.0 iff the trace solves the problem in the strict sense. `rating` rewards short searches more."""
        return float(self.read(problem, response).solved)

    def answer(self, response: str) -> str | None:
        """A search that claims the goal votes for what the operations that led there compute."""
        path = claimed_path(read_events(response, 0))
        if path is None:
            return None
        return (same_operations(path) if len(path) < MAX_PATH else None) or " , ".join(map(str, path))

    def is_right_leniently(self, problem: Problem, response: str) -> bool:
        """As the released code scores: correct sums with known numbers that end at the target."""
        reading = self.read(problem, response)
        return reading.solved or reading.lenient

    def metrics(self, problem: Problem, response: str) -> dict[str, float]:
        reading = self.read(problem, response)
        return {
            "lenient": float(reading.lenient),
            "nodes": float(reading.nodes),
            "rating": reading.rating,
            **{f"errors/{kind}": float(reading.errors[kind]) for kind in ERRORS},
        }


@dataclass(frozen=True)
class ThinkingCountdown(Countdown):
    """Countdown whose solutions are in R1's tags: a compact search is the thinking, the path it found the answer.

    `info["form"]` is "direct" (no thought, a right answer) or "search"; a search that finds nothing answers N.
    """

    inputs: Annotated[int, Range(2, 6)] = 3  # how many numbers a problem has
    direct: Share = 0.5  # chance of a solution without a thought
    strategies: tuple[str, ...] = ()  # of the searches; empty: the paper's mixture of all twelve

    def problem(self, split: str, index: int) -> Problem:
        problem = super().problem(split, index)
        draw = random.Random(seed_of("thinking countdown", split, index))
        info: dict[str, Any] = {**problem.info, "form": "direct" if draw.random() < self.direct else "search"}
        if info["form"] == "direct":
            return replace(problem, solution=tagged("", problem.solution), info=info)
        weights = dict.fromkeys(self.strategies, 1.0) if self.strategies else MIXTURE
        (strategy,) = draw.choices(list(weights), list(weights.values()))
        numbers = problem.info["numbers"]
        events = list(search(numbers, problem.info["target"], strategy, draw.getrandbits(32)))
        answer, steps = "N", ()
        for event in events:
            if isinstance(event, State):
                steps = event.operations
            elif isinstance(event, Explore):
                path = (*steps, event.operation)
            elif isinstance(event, Check) and event.equal:
                answer = self.answer_text(numbers, path)
        return replace(problem, solution=tagged(write(events, "compact"), answer), info=info)

    def metrics(self, problem: Problem, response: str) -> dict[str, float]:
        """How much it thought, how many operations it tried, how often it moved to another state."""
        thinking = response.partition("<think>")[2].partition("</think>")[0].split()
        return {
            "mode/direct": float("<think>" in response and not thinking),
            "mode/search": float(bool(thinking)),
            "thinking/length": float(len(thinking)),
            "thinking/explored": float(thinking.count("E")),
            "thinking/moves": float(thinking.count("M")),
        }


@dataclass(frozen=True)
class ThreadedSearch(Countdown):
    """Countdown searched by threads (Adaptive Parallel Reasoning; `search_threads.py`), or by one as its rival SoS+.

    A solution is one of the texts that a demonstrator's search is cut into, each as likely: a segment of the parent,
    whose context before it is in the prompt, or a child. The split "test" has the parent's first segment.
    """

    serial: bool = False  # one thread, SoS+, whose responses never spawn
    beams: tuple[Positive, Positive] = (2, 8)  # smallest and largest beam; a child's is drawn from the parent's on
    by_value: bool = False  # a spawn says its state instead of its node
    asked: Count = 0  # children that every prompt asks for; 0: it does not say, but for asked_share
    asked_share: Share = 0.0  # how many of the parents are asked for as many as their blocks have on average
    max_children: Positive = 10  # of a block
    max_rounds: Positive = 10  # blocks

    @property
    def spawn(self) -> tuple[str, str] | None:
        return None if self.serial else (CALL, END_CALL)

    @property
    def limits(self) -> Limits:
        return Limits(self.max_children, self.max_rounds)

    def tokenizer(self) -> TextTokenizer:
        return threads_tokenizer()

    def problem(self, split: str, index: int) -> Problem:
        problem = super().problem(split, index)
        draw = random.Random(seed_of("threaded search", split, index))
        numbers, target = problem.info["numbers"], problem.info["target"]
        beam, seed = draw.randint(*self.beams), draw.getrandbits(32)
        if self.serial:
            root = serial_demonstration(numbers, target, beam, seed)
        else:
            wide = draw.randint(beam, self.beams[1])
            root = parallel_demonstration(numbers, target, beam, wide, seed, self.by_value)
        sizes = [len(block) for block in root.children]
        asked = self.asked or (draw.random() < self.asked_share and sizes and round(sum(sizes) / len(sizes)))
        problem = replace(problem, prompt=f"{ITEM} {asked} {root.prompt}" if asked else root.prompt)
        texts = [(problem, *segment) for segment in root.segments]
        for child in root.threads[1:]:
            texts += [(self.child(problem, child.place), *segment) for segment in child.segments]
        posed, before, said = texts[0] if split == "test" else draw.choice(texts)
        return replace(posed, prompt=posed.prompt + before, solution=said)

    def pose(self, numbers: Numbers, target: int, operations: tuple[Operation, ...]) -> Problem:
        asked = f"{ITEM} {self.asked} " if self.asked else ""
        info = dict(numbers=numbers, target=target, operations=operations)
        return Problem(asked + prompt(numbers, target, "compact"), str(target), "", info)

    def child(self, problem: Problem, state: Place) -> Problem:
        info = {**problem.info, "numbers": state.numbers, "steps": state.steps}
        return Problem(child_prompt(state, info["target"]), problem.answer, "", info)

    def spawned(self, problem: Problem, response: str) -> list[Problem]:
        states = called(problem.info["numbers"], problem.info["target"], response)
        return [self.child(problem, state) for state in states]

    def joined(self, children: list[Problem], responses: list[str]) -> str:
        paths = [returned(response) for response in responses]
        return write_join([path and (*child.info["steps"], *path) for child, path in zip(children, paths, strict=True)])

    def reward(self, problem: Problem, response: str) -> float:
        return float(is_solution(problem.info["numbers"], problem.info["target"], response))

    def answer(self, response: str) -> str | None:
        """Whoever computes the same thing votes for the same; who has found nothing has no vote."""
        path = returned(response)
        return same_answer(in_steps(path)) if path else None

    def is_right_leniently(self, problem: Problem, response: str) -> bool:
        return self.reward(problem, response.rstrip(". \n")) == 1


@dataclass(frozen=True)
class CountdownWords(Countdown):
    """Countdown in English, for pretrained models, answered by an expression in <answer> tags (as TinyZero asks it)."""

    inputs: Annotated[int, Range(2, 6)] = 3  # how many numbers a problem has
    form: Literal["operations", "expression"] = "expression"  # of the answer

    stop = (END,)

    def tokenizer(self) -> TextTokenizer:
        return byte_tokenizer()

    def pose(self, numbers: Numbers, target: int, operations: tuple[Operation, ...]) -> Problem:
        problem = super().pose(numbers, target, operations)
        how, example = IN_WORDS[self.form]
        question = (
            f"Reach {target} with the numbers {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}: use each of them "
            f"exactly once, with + - * / {how}. Think between {OPEN} and {CLOSE}, then give only the result of your "
            f"search between {ANSWER} and {END}, as in {ANSWER} {example} {END}."
        )
        return replace(problem, prompt=question, solution=tagged("", problem.solution) if operations else "")

    def reward(self, problem: Problem, response: str) -> float:
        return super().reward(problem, extract_tagged(response) or "")

    def is_right_leniently(self, problem: Problem, response: str) -> bool:
        """With signs as they are printed, "= target" behind an expression, and a full stop."""
        answer = (extract_tagged(response) or "").translate(str.maketrans("×÷−[]", "*/-()")).rstrip(". \n")
        if self.form == "expression":
            answer = re.sub(rf"\s*=\s*{problem.info['target']}$", "", answer)
        return self.reward(problem, response) == 1 or Countdown.reward(self, problem, answer) == 1

    def answer(self, response: str) -> str | None:
        answer = extract_tagged(response)
        return None if answer is None else same_answer(answer)

    def metrics(self, problem: Problem, response: str) -> dict[str, float]:
        return {"lenient": float(self.is_right_leniently(problem, response)),
                "tagged": float(extract_tagged(response) is not None)}  # fmt: skip


# ---------------------------------------------------------------------------------------------- checked-in data


def held_out_lines(task: Countdown, split: str, count: int) -> Iterable[str]:
    """The lines of data/countdown/<split>.jsonl."""
    for problem in task.unique_problems(split, count):
        numbers, target = problem.info["numbers"], problem.info["target"]
        solutions, chance = count_solutions(numbers, target)
        yield json.dumps(
            {"numbers": numbers, "target": target, "operations": [str(step) for step in problem.info["operations"]],
             "solutions": solutions, "chance": round(chance, 6)}
        ) + "\n"  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the held-out Countdown problems (4 inputs, standard ranges).")
    parser.add_argument("--out", type=Path, default=Path("data/countdown"), help="folder for one JSONL file per split")
    parser.add_argument("--count", type=int, default=1000, help="problems per split")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for split in SPLITS[1:]:
        with open(arguments.out / f"{split}.jsonl", "w", encoding="utf-8", newline="\n") as file:
            file.writelines(held_out_lines(Countdown(), split, arguments.count))


if __name__ == "__main__":
    main()
