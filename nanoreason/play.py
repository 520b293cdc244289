"""python -m nanoreason play CHECKPOINT: pose a problem, watch a model think, keep it from stopping, see the verdict.

    problem (typed or drawn) -> prompt -> thinking within --budget, kept from closing --wait times -> answer -> verdict

Tokens that were forced on the model stand in «». A model that thinks in tags is forced as in s1 (`recipes.budget`); one
that has no tags, such as a searcher, works until its end of text, and that is what it is kept from.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from nanoreason.checkpoint import load_checkpoint
from nanoreason.model import Transformer
from nanoreason.recipes.budget import OPEN, Forcing, deliberate
from nanoreason.rewards import with_template
from nanoreason.rollout import Problem, Rollout, Task, prompt_row, response_text, seed_of
from nanoreason.run import pick_device
from nanoreason.sampler import Sampler
from nanoreason.search import StreamOfSearch, ThinkingCountdown, prompt
from nanoreason.tasks.addition import Addition, ThinkingAddition, spaced, sum_problem
from nanoreason.tasks.countdown import FORMS, Countdown, find_solution
from nanoreason.tokenizer import TextTokenizer

EXAMPLES = {"addition": "47 + 38", "countdown": "24 from 9 4 3"}


@dataclass
class Table:
    """What is played, on what."""

    model: Transformer
    words: TextTokenizer
    task: str  # addition or countdown
    digits: int  # of drawn sums
    inputs: int  # numbers of drawn Countdown problems
    max_input: int = 50  # the largest of them

    @property
    def tagged(self) -> bool:
        """Whether the model's vocabulary has the think tags."""
        return self.words.backend.token_to_id(OPEN) is not None

    def judge(self) -> Task:
        if self.task == "addition":
            return ThinkingAddition((self.digits,)) if self.tagged else Addition((self.digits,))
        countdown = Countdown(self.inputs, self.max_input)
        return ThinkingCountdown(countdown) if self.tagged else StreamOfSearch(countdown)

    def posed(self, problem: Problem) -> Problem:
        return with_template(problem, "skeleton") if self.tagged else problem

    def drawn(self, index: int) -> Problem:
        """A held-out problem."""
        return self.posed(self.judge().problem("test" if self.task == "addition" else "test_inputs", index))

    def typed(self, text: str) -> Problem:
        """The problem that a person means; ValueError says what is missing."""
        numbers = [int(number) for number in re.findall(r"[0-9]{1,9}", text)]
        if self.task == "addition":
            if len(numbers) != 2 or len(str(numbers[0])) != len(str(numbers[1])):
                raise ValueError(f"two numbers with equally many digits, such as {EXAMPLES['addition']}")
            a, b = numbers
            if self.tagged:
                return self.posed(Problem(f"{spaced(a)} + {spaced(b)}", spaced(a + b), info={"digits": len(str(a))}))
            return sum_problem(a, b)
        if not 3 <= len(numbers) <= 7:
            raise ValueError(f"a target and two to six numbers, such as {EXAMPLES['countdown']}")
        target, *given = numbers
        info = {"numbers": tuple(given), "target": target}
        words = f"Make {target} from {' '.join(map(str, given))} {FORMS['operations']}:"
        return self.posed(Problem(words if self.tagged else prompt(given, target, "compact"), str(target), info=info))


def keep_going(
    model: Transformer, words: TextTokenizer, row: Rollout, forcing: Forcing, temperature: float
) -> Iterator[Rollout]:
    """The row at each of its ends, of which the first `waits` are taken back: budget forcing without tags."""
    wait, waits = words.encode(forcing.word), 0
    row.max_new_tokens = forcing.budget or model.config.max_position_embeddings
    sampler = Sampler(model, eos_id=words.eos_ids, temperature=temperature)
    sampler.submit([row])
    for row in sampler:
        if row.stop_reason == "eos" and waits < forcing.waits and len(row.response) + len(wait) <= row.max_new_tokens:
            waits += 1
            row.retract()
            row.force(wait)
            row.go_on_until = len(row.tokens) + 1
            sampler.submit([row])
        yield row


def marked(words: TextTokenizer, row: Rollout, start: int) -> str:
    """The row from token `start` on; each stretch of forced tokens in «», EOS left out."""
    parts: list[tuple[bool, list[int]]] = []
    for token, chosen in zip(row.tokens[start:], row.loss_mask[start:], strict=True):
        if token in words.eos_ids:
            continue
        if not parts or parts[-1][0] != chosen:
            parts.append((chosen, []))
        parts[-1][1].append(token)
    return " ".join(words.decode(tokens) if chosen else f"«{words.decode(tokens)}»" for chosen, tokens in parts)


def play(table: Table, problem: Problem, forcing: Forcing, temperature: float, seed: int) -> bool:
    """One problem from prompt to verdict, printed as it comes; returns whether it was solved."""
    model, words = table.model, table.words
    row = prompt_row(words, problem, seed)
    print(problem.prompt.rstrip("\n"), flush=True)
    shown = row.prompt_len
    if table.tagged:
        events = deliberate(model, words, [row], forcing, temperature=temperature, answer_tokens=40)
    else:
        events = keep_going(model, words, row, forcing, temperature)
    for _ in events:
        # What is shown is final: a close that was taken back is no longer in the row, and the word is.
        print(f"  {marked(words, row, shown)}", flush=True)
        shown = len(row.tokens)
    solved = table.judge().reward(problem, response_text(words, row)) == 1
    verdict = "right" if solved else f"wrong, {solution(problem)}"
    print(f"{verdict} ({len(row.response)} tokens)")
    return solved


def solution(problem: Problem) -> str:
    """What would have been right."""
    if "target" not in problem.info:
        return f"the sum is {problem.answer}"
    found = find_solution(problem.info["numbers"], problem.info["target"])
    return f"a solution is {', '.join(map(str, found))}" if found else "there is no solution"


def main(argv: list[str]) -> int:
    about = "Pose a problem, watch a model think, keep it from stopping, see the verdict."
    parser = argparse.ArgumentParser(prog="python -m nanoreason play", description=about, allow_abbrev=False)
    parser.add_argument("checkpoint", help="folder of a model, such as runs/sft/policy")
    parser.add_argument("--task", choices=list(EXAMPLES), default="addition", help="what it is asked")
    parser.add_argument("--budget", type=int, default=96, help="thinking tokens after which it is cut; 0: its context")
    parser.add_argument("--wait", type=int, default=0, help="how often it is kept from stopping (default: 0)")
    parser.add_argument("--word", default="wait", help='what is appended then (default: wait); "": nothing')
    parser.add_argument("--temperature", type=float, default=1.0, help="of the thinking; 0: greedy (default: 1)")
    parser.add_argument("--digits", type=int, default=2, help="of drawn sums (default: 2)")
    parser.add_argument("--inputs", type=int, default=3, help="numbers of drawn Countdown problems (default: 3)")
    parser.add_argument("--max-input", type=int, default=50, help="the largest of these numbers (default: 50)")
    parser.add_argument("--problem", default="", help=f"play this one and leave, e.g. {EXAMPLES['addition']!r}")
    parser.add_argument("--seed", type=int, default=0, help="of drawn problems and of the sampling")
    flags = parser.parse_args(argv)
    if flags.budget < 0 or flags.wait < 0:
        raise ValueError("--budget and --wait count: 0 or more")
    model, words = load_checkpoint(flags.checkpoint, pick_device("auto"))
    table = Table(model, words, flags.task, flags.digits, flags.inputs, flags.max_input)
    word = flags.word
    try:
        words.encode(word)
    except ValueError as error:
        if word != parser.get_default("word"):
            raise
        # a searcher's "wait" is to move to some node
        word = "M" if table.task == "countdown" and not table.tagged else ""
        print(f"({error}: it is kept from stopping {f'with {word!r}' if word else 'without a word'})")
    forcing = Forcing(flags.budget, flags.wait, word)
    draw, number = random.Random(flags.seed), 0
    while True:
        try:
            text = flags.problem or input(f"{EXAMPLES[flags.task]}, or nothing for a drawn problem, or q to leave: ")
        except EOFError:
            return 0
        if text.strip() == "q":
            return 0
        try:
            problem = table.typed(text) if text.strip() else table.drawn(draw.randrange(10_000))
            play(table, problem, forcing, flags.temperature, seed_of(flags.seed, "play", number))
        except ValueError as error:  # a typing error ends no session
            if flags.problem:
                raise
            print(error)
        if flags.problem:
            return 0
        number += 1
