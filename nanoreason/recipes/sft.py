"""Supervised fine-tuning: maximise the log-probability of demonstrations, from random weights or from a checkpoint.

    for step 1..S:  rows = demonstrations(step);  loss = -mean log p(response token | what stands before it)

The demonstrations are a task's own worked solutions, or the lines {"prompt": ..., "response": ...} of a JSONL file.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from nanoreason import search
from nanoreason.checkpoint import load_checkpoint, resume, save_checkpoint
from nanoreason.evaluate import test_accuracy
from nanoreason.learn import fit, in_epochs, make_optimizer
from nanoreason.model import Transformer, small_config
from nanoreason.rewards import with_template
from nanoreason.rollout import Problem, Rollout, demonstration, seed_of
from nanoreason.run import Run, RunConfig, pick_device, read_jsonl, say, table
from nanoreason.tasks.addition import (
    MODES,
    Addition,
    ThinkingAddition,
    asked,
    budget,
    digits_of,
    longest_thinking,
    test_sums,
    thinking_sums,
    thinking_tokenizer,
    tokenizer,
)
from nanoreason.tasks.countdown import Countdown
from nanoreason.tokenizer import TextTokenizer


@dataclass
class SftConfig(RunConfig):
    """Supervised fine-tuning on worked sums, on direct answers, or on a JSONL file of prompts and responses."""

    out: str = "runs/sft"  # folder of this run: config.json, metrics.jsonl, checkpoints
    base: str = ""  # checkpoint folder to start from; empty: random weights of the shape below
    width: int = 96  # D, the model's width
    layers: int = 3  # transformer blocks
    heads: int = 4  # attention heads
    context: int = 256  # longest row in tokens
    data: str = ""  # JSONL file of {"prompt", "response"}; empty: digit addition
    digits: tuple[int, ...] = (1, 2, 3, 4, 5)  # lengths of the sums
    shares: tuple[float, ...] = ()  # how often each length is shown; empty: equally
    form: str = "scratchpad"  # scratchpad, direct (the answer alone), thinking (sums in R1's tags) or countdown (too)
    modes: tuple[float, ...] = (0.67, 0.28, 0.05)  # thinking: shares of direct answers, of one pass, of re-checks
    slip: float = 0.1  # thinking: chance that a column of a pass is wrong in a demonstration
    inputs: int = 3  # countdown: how many numbers are given; the first of --modes is the share without a search
    doubt: float = 0.0  # thinking: chance of one more pass although two agree
    passes: int = 4  # thinking: passes of a demonstration at most
    care: float = 1.0  # thinking: a re-check slips so many times as often as the first pass
    asked_share: float = 0.0  # thinking: how many sums are asked with "Think for N tokens.", N being any number
    asked_true: float = 0.0  # thinking: in how many of those N is about true of the solution, as far as N reaches
    asked_tokens: tuple[int, ...] = (8, 96)  # thinking: smallest and largest N
    messy: float = 0.0  # thinking: chance that a demonstration lacks one of its tags
    guess: float = 0.0  # thinking: chance that a digit of a direct answer is wrong
    hint_share: float = 0.0  # how many of the sums carry their answer as a hint
    pool: int = 0  # different problems per length; 0: never the same one twice on purpose
    steps: int = 800  # optimizer steps
    lr: float = 2e-3  # peak learning rate
    decay: bool = True  # cosine to a tenth of it; --no-decay: constant
    warmup: int = 20  # steps of warm-up
    rows_per_step: int = 64  # rows of an update
    micro_tokens: int = 1024  # tokens of a micro-batch: speed, not the result; small ones stay in a CPU cache
    save_every: int = 100  # steps between checkpoints
    log_every: int = 20  # steps between lines of metrics.jsonl
    eval_every: int = 0  # steps between tests on held-out sums; 0: only at the end
    eval_digits: tuple[int, ...] = (1, 2, 3, 4, 5)  # lengths that are tested
    eval_problems: int = 100  # held-out sums per length


PRESETS = {
    "cpu": SftConfig(),
    "tiny": SftConfig(
        width=32, layers=2, heads=2, context=64, digits=(1, 2), steps=20, warmup=2, rows_per_step=16, save_every=10,
        log_every=5, eval_digits=(1, 2), eval_problems=8,
    ),
    "gpu": SftConfig(
        width=256, layers=6, heads=8, steps=2000, lr=1e-3, rows_per_step=128, micro_tokens=32768, eval_problems=500,
    ),
}  # fmt: skip


def run(config: SftConfig) -> dict:
    """Train, test, and leave the model in OUT/policy; returns the last line of metrics."""
    if len(config.modes) != len(MODES):
        raise ValueError(f"--modes {','.join(map(str, config.modes))}: one share for each of {', '.join(MODES)}")
    run = Run(config)
    device = pick_device(config.device)
    if config.base:
        model, words = load_checkpoint(config.base, device)
    elif config.data:
        raise ValueError("--data needs --base: the checkpoint whose tokenizer knows the file's words")
    else:
        words = {"thinking": thinking_tokenizer, "countdown": search.thinking_tokenizer}.get(config.form, tokenizer)()
        model = Transformer(
            small_config(config.width, config.layers, config.heads, words.vocab_size, config.context),
            seed_of(config.seed, "sft"),
        ).to(device)
    optimizer = make_optimizer(model)
    first = resume(run.folder / "policy", model, optimizer).get("step", 0)
    run.rewind(first)

    def measure() -> dict:
        if config.data:
            return {}
        if config.form == "thinking":
            problems = [with_template(p, "skeleton") for p in thinking_sums(config.eval_digits, config.eval_problems)]
            return test_accuracy(model, words, ThinkingAddition(), problems, key=digits_of,
                                 budget=lambda problem: longest_thinking(digits_of(problem), 3))  # fmt: skip
        if config.form == "countdown":
            task = search.ThinkingCountdown(Countdown(config.inputs))
            problems = [with_template(task.problem("test_inputs", i), "skeleton") for i in range(config.eval_problems)]
            return test_accuracy(model, words, task, problems, budget=lambda problem: config.context,
                                 key=lambda problem: config.inputs)  # fmt: skip
        problems = test_sums(config.eval_digits, config.eval_problems, config.form)
        return test_accuracy(model, words, Addition(form=config.form), problems, budget=budget, key=digits_of)

    def after(step: int, metrics: dict) -> None:
        done = step + 1
        if done == config.steps or (config.eval_every and done % config.eval_every == 0):
            metrics = metrics | measure()
        if (
            done == config.steps
            or done % config.log_every == 0
            or (config.eval_every and done % config.eval_every == 0)
        ):
            run.log(done, **metrics)
        if done == config.steps or done % config.save_every == 0:
            save_checkpoint(run.folder / "policy", model, words, optimizer, {"step": done})

    fit(model, optimizer, demonstrations(config, words), steps=config.steps, first_step=first, lr=config.lr,
        warmup=config.warmup, decay=config.decay, micro_tokens=config.micro_tokens, after=after)  # fmt: skip
    run.close()
    last = read_jsonl(run.folder / "metrics.jsonl")[-1]
    names = [name for name in last if name.startswith("acc/")] or ["loss"]
    say(table(["step", *names], [[config.steps, *(f"{last[name]:.2f}" for name in names)]]))
    return last


def read_problems(path: Path) -> list[Problem]:
    """The lines {"prompt": ..., "response": ...} of a JSONL file; ValueError names a line that is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    problems = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
                problems.append(Problem(row["prompt"], "", row["response"]))
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{path}, line {number}: not a JSON object with prompt and response") from None
    if not problems:
        raise ValueError(f"{path} holds no demonstrations")
    return problems


def posed(config: SftConfig, split: str, index: int) -> Problem:
    """A sum with its solution, in the form and in the words that the model is asked with."""
    if config.form == "thinking":
        forms = dict(zip(MODES, config.modes, strict=True))
        habits = dict(slip=config.slip, doubt=config.doubt, messy=config.messy, guess=config.guess, most=config.passes,
                      care=config.care)  # fmt: skip
        task = ThinkingAddition(config.digits, config.shares, forms, **habits)
        problem, draw = task.problem(split, index), random.Random(seed_of("asked", split, index))
        if draw.random() < config.asked_share:
            low, high = config.asked_tokens
            kind, amount = draw.choice(["exact", "max"]), draw.randint(low, high)
            length = len(problem.solution.split())  # every word is a token
            if draw.random() < config.asked_true and low <= length <= high:
                # about as many: passes come whole, so exact numbers would leave most N without any demonstration
                about = min(high, max(low, round(length * draw.uniform(0.8, 1.25))))
                amount = about if kind == "exact" else draw.randint(length, high)
            problem = asked(problem, kind, amount)
        return with_template(problem, "skeleton")
    if config.form == "countdown":
        task = search.ThinkingCountdown(Countdown(config.inputs), direct=config.modes[0] / sum(config.modes))
        return with_template(task.problem("train", seed_of(split, index)), "skeleton")
    return Addition(config.digits, config.form, config.shares, config.hint_share).problem(split, index)


def demonstrations(config: SftConfig, words: TextTokenizer) -> Callable[[int], list[Rollout]]:
    """The rows of each step."""
    if config.data:
        problems = read_problems(Path(config.data))
    elif config.pool:  # the very problems that STaR practises on, with their solutions
        problems = [
            posed(replace(config, digits=(n,), shares=(), hint_share=0.0), f"train-{n}", i)
            for n in config.digits
            for i in range(config.pool)
        ]
    else:
        return lambda step: [
            demonstration(words, posed(config, f"sft-{config.seed}", i))
            for i in range(step * config.rows_per_step, (step + 1) * config.rows_per_step)
        ]
    rows = [demonstration(words, problem) for problem in problems]
    return in_epochs(rows, config.rows_per_step, config.seed)
