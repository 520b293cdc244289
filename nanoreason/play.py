"""python -m nanoreason play CHECKPOINT: pose a problem, watch a model think, keep it from stopping, see the verdict.

    problem (typed or drawn) -> prompt -> thinking within --budget, kept from closing --wait times -> answer -> verdict

Tokens that were forced on the model stand in «». A model that thinks in tags is forced as in s1 (`forcing.py`); one
that has no tags, such as a searcher, works until its end of text, and that is what it is kept from.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from nanoreason.checkpoint import load_checkpoint, load_extra
from nanoreason.environment import check_words
from nanoreason.forcing import Forcing, Thought, deliberate, keep_going
from nanoreason.model import Transformer
from nanoreason.prompts import END, OPEN
from nanoreason.rollout import Problem, Rollout, Task, marked_text, prompt_row, response_text, seed_of
from nanoreason.run import Count, Rate, RunConfig, chosen, flatten, from_flat, parse_config, pick_device, say
from nanoreason.sampler import Sampler, generate
from nanoreason.tasks import TASKS
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
        raise ValueError(f"{checkpoint} does not say which task it is for: name it by --task")
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
    solved = task.reward(problem, response_text(tokenizer, row)) == 1
    right = task.told(problem)
    say(f"{'right' if solved else f'wrong, right is {right}' if right else 'wrong'} ({len(row.response)} tokens)")
    return solved


def main(argv: list[str]) -> int:
    prog = "python -m nanoreason play CHECKPOINT"
    checkpoint, config = for_checkpoint(PlayConfig(), argv, prog, "[--problem TEXT]")
    model, tokenizer = load_checkpoint(checkpoint, pick_device(config.device))
    task, word = config.task, config.word
    check_words(tokenizer, task=task)
    try:
        tokenizer.encode(word)
    except ValueError as error:
        if word != PlayConfig.word:
            raise ValueError(f"--word {word}: {error}") from None
        # a searcher's "wait" is to move to some node
        word = "M" if tokenizer.backend.token_to_id("M") is not None else ""
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
