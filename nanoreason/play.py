"""python -m nanoreason play CHECKPOINT: pose a problem, watch a model think, keep it from stopping, see the verdict.

    problem (typed or drawn) -> prompt -> thinking within --budget, kept from closing --wait times -> answer -> verdict

Tokens that were forced on the model stand in «». A model that thinks in tags is forced as in s1 (`forcing.py`); one
that has no tags, such as a searcher, works until its end of text, and that is what it is kept from. Of one that spawns
threads the parent is shown, its children side by side, and their join.
"""

from __future__ import annotations

import itertools
import random
import re
import shutil
import textwrap
from dataclasses import dataclass
from pathlib import Path

from nanoreason.checkpoint import load_checkpoint, load_extra
from nanoreason.environment import check_words
from nanoreason.forcing import Forcing, Thought, deliberate, keep_going
from nanoreason.model import Transformer
from nanoreason.prompts import END, OPEN
from nanoreason.rollout import Problem, Rollout, Task, marked_text, prompt_row, response_text, seed_of, stops_of
from nanoreason.run import Count, Rate, RunConfig, chosen, flatten, from_flat, parse_config, pick_device, say
from nanoreason.sampler import Sampler, generate
from nanoreason.tasks import TASKS
from nanoreason.threads import Thread, Threads
from nanoreason.tokenizer import TextTokenizer


@dataclass
class PlayConfig(RunConfig):
    """Pose a problem, watch a model think, keep it from stopping, see the verdict."""

    # game
    task: Task | None = chosen(TASKS, None)  # what it is asked; empty: the task that the checkpoint was trained on
    problem: str = ""  # play this one and leave, e.g. "47 + 38" or "24 from 9 4 3"; empty: ask for problems
    # thinking
    budget: Count = 0  # thinking tokens after which it is cut; 0: its context
    wait: Count = 0  # how often it is kept from stopping
    word: str = "wait"  # what is appended then; "": nothing, it only may not stop
    temperature: Rate = 1.0  # of the thinking; 0: greedy


def task_of(checkpoint: str) -> Task:
    """The task that a checkpoint of ours was trained on."""
    flags = load_extra(checkpoint)
    if "task" not in flags:
        inside = Path(checkpoint) / "policy"
        hint = f"it is a run, its checkpoint is {inside}" if inside.is_dir() else "name it by --task"
        raise ValueError(f"{checkpoint} does not say which task it is for: {hint}")
    return from_flat("task", flags, TASKS)


def for_checkpoint(config: RunConfig, argv: list[str], prog: str, more: str) -> tuple[str, RunConfig]:
    """The checkpoint that the command line names first and the settings that follow; its own task unless one is named.

    `prog` and `more` are for the line that says what is missing.
    """
    checkpoint, flags = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else ("", argv)
    if checkpoint and not any(flag.split("=")[0] == "--task" for flag in flags):
        config.task = task_of(checkpoint)
    config = parse_config({"default": config}, flags, prog)
    if not checkpoint:
        raise ValueError(f"usage: {prog} {more} [--flag value ...]: a checkpoint folder is missing")
    return checkpoint, config


def play(
    model: Transformer, tokenizer: TextTokenizer, task: Task, problem: Problem, forcing: Forcing, temperature: float,
    seed: int,
) -> bool:  # fmt: skip
    """One problem from prompt to verdict, printed as it comes; returns whether it was solved."""
    row = prompt_row(tokenizer, problem, seed)
    say(problem.prompt.rstrip("\n"))
    if task.spawn:
        if forcing.waits:
            raise ValueError(f"--wait {forcing.waits}: a model that spawns threads is not kept from stopping, use 0")
        row.max_new_tokens = forcing.budget or model.config.max_position_embeddings
        sampler = Sampler(model, tokenizer, stop=stops_of(task), temperature=temperature)
        threads = Threads(task, sampler)
        generate(sampler, [row], threads)
        say(told_threads(tokenizer, threads.of[row], shutil.get_terminal_size((100, 24)).columns))
        return told_verdict(tokenizer, task, row)
    shown = row.prompt_len

    def show() -> None:
        # What is shown is final: a close that was taken back is no longer in the row, and the word is.
        nonlocal shown
        say(f"  {marked_text(tokenizer, row, shown)}")
        shown = len(row.tokens)

    if END in task.stop and tokenizer.backend.token_to_id(OPEN) is not None:

        def watch(thought: Thought) -> None:
            show()

        deliberate(model, tokenizer, [row], forcing, temperature=temperature, answer_tokens=40, watch=watch)
    else:
        word, waits = tokenizer.encode(forcing.word), 0
        row.max_new_tokens = forcing.budget or model.config.max_position_embeddings

        def on_stop(row: Rollout) -> list[Rollout]:
            nonlocal waits
            again = row.stop_reason != "length" and waits < forcing.waits
            if again:
                ending = row.tokens[-1:]
                row.retract()
                again = keep_going(tokenizer, row, word, row.max_new_tokens)
                waits += 1
                if not again:
                    row.force(ending)
            show()
            return [row] if again else []

        generate(Sampler(model, tokenizer, stop=task.stop, temperature=temperature), [row], on_stop)
    return told_verdict(tokenizer, task, row)


def told_verdict(tokenizer: TextTokenizer, task: Task, row: Rollout) -> bool:
    solved, right = task.reward(row.problem, response_text(tokenizer, row)) == 1, task.told(row.problem)
    counts = f"{len(row.response)} tokens"
    if row.counted:
        of = {name: round(row.counted[f"threads/{name}"]) for name in ("total_tokens", "sequential_tokens", "children")}
        counts = "{total_tokens} tokens, {sequential_tokens} of them on the critical path, {children} children"
        counts = counts.format(**of)
    say(f"{'right' if solved else f'wrong, right is {right}' if right else 'wrong'} ({counts})")
    return solved


# --------------------------------------------------------------------------------------------------------- threads


def told_threads(tokenizer: TextTokenizer, thread: Thread, width: int) -> str:
    """A parent from its first block to its answer; the children of each block in columns, their join in «»."""
    said = re.split("«[^»]*»", marked_text(tokenizer, thread.row, thread.row.prompt_len))  # what stands between joins
    lines = []
    for before, one in itertools.zip_longest(said, thread.rounds):
        lines += textwrap.wrap(f"{before or ''} {one.block if one else ''}".strip(), width - 2)
        if one is None:
            continue
        columns = []
        for child in one.children:
            status = " (cut)" if child.row.stop_reason == "length" else ""
            title = f"{child.row.problem.prompt}, tokens {child.start}..{child.clock}{status}"
            columns.append((title, tokenizer.decode(child.row.response)))
        lines += side_by_side(columns, width - 2)
        lines += textwrap.wrap(f"«{one.join}»", width - 2) if one.join else []
    return textwrap.indent("\n".join(lines), "  ")


def side_by_side(texts: list[tuple[str, str]], width: int, narrowest: int = 28) -> list[str]:
    """(title, text) in columns, as many beside one another as leave each its `narrowest`, then the next below.

    >>> side_by_side([("one", "a b"), ("two", "c")], 14, 5)
    ['+ one | two', '  a b | c']
    """
    lines = []
    each = max(1, width // narrowest)
    for start in range(0, len(texts), each):
        some = texts[start : start + each]
        wide = (width - 2) // len(some) - 2
        columns = [[line for part in one for line in textwrap.wrap(part, wide)] for one in some]
        for i, row in enumerate(itertools.zip_longest(*columns, fillvalue="")):
            lines.append(("+ " if i == 0 else "  ") + "| ".join(part.ljust(wide) for part in row).rstrip())
    return lines


def main(argv: list[str]) -> int:
    prog = "python -m nanoreason play CHECKPOINT"
    checkpoint, config = for_checkpoint(PlayConfig(), argv, prog, "[--problem TEXT]")
    model, tokenizer = load_checkpoint(checkpoint, pick_device(config.device))
    task, word = config.task, config.word
    check_words(tokenizer, "test", task=task)
    try:
        tokenizer.encode(word)
    except ValueError as error:
        if word != PlayConfig.word:
            raise ValueError(f"--word {word}: {error}") from None
        # a searcher's "wait" is to move to some node
        word = "M" if tokenizer.backend.token_to_id("M") is not None else ""
        if config.wait:
            say(f"({error}: it is kept from stopping {f'with {word!r}' if word else 'without a word'})")
    forcing = Forcing(config.budget, config.wait, word)
    say(f"{checkpoint}: {model.size():,} parameters, task {flatten(config)['task']}")
    draw, number = random.Random(config.seed), 0
    while True:
        try:
            text = config.problem or input("a problem, or nothing for a drawn one, or q to leave: ")
        except EOFError:
            return 0
        except UnicodeDecodeError as error:  # in another encoding than the console's
            say(str(error))
            continue
        if text.strip() == "q":
            return 0
        try:
            problem = task.parse(text) if text.strip() else task.problem("test", draw.randrange(10_000))
            play(model, tokenizer, task, problem, forcing, config.temperature, seed_of(config.seed, "play", number))
        except ValueError as error:  # a typing error ends no session
            if config.problem:
                raise
            say(str(error))
        if config.problem:
            return 0
        number += 1
