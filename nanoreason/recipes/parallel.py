"""How well a model scales with its threads, or as one thread, at equal context, tokens and time; no training.

    problems -> rollouts, with threads where the task lets them -> accuracy beside the clocks of `threads.py`

Every setting of a method is one line of metrics (Adaptive Parallel Reasoning, Pan et al., 2025, sections 4 and 5):

    context      of free rollouts: right, and no row of them has more than so many response tokens
    asked        the prompt asks for so many children
    samples      of so many free rollouts: pass@k, which an oracle chooses, and cons@k, the majority of those that claim
                 to have found something (`Task.claims`); the tokens of all k count
    alone        one problem at a time: seconds and decode steps, beside those of the same threads one after another
    exhaustive   no model: all attempts in random order, as many as this number of operations pays for
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from nanoreason.checkpoint import load_checkpoint
from nanoreason.environment import check_words, log_samples
from nanoreason.evaluate import maj_at_k, mean_pass_at_k, pass_at_k, standard_error
from nanoreason.model import Transformer
from nanoreason.prompts import CLOSE
from nanoreason.rollout import Problem, Rollout, Task, prompt_groups, response_text, seed_of, stops_of
from nanoreason.run import Positive, Progress, Rate, Rows, Run, RunConfig, check_rows, chosen, pick_device, say, table
from nanoreason.sampler import Sampler, generate
from nanoreason.tasks import TASKS, HardAttempts
from nanoreason.tasks.wrappers import Parallel
from nanoreason.threads import Thread, Threads
from nanoreason.tokenizer import TextTokenizer

VOTES = (1, 2, 4, 8, 16, 32, 64)  # of so many samples, as far as there are
Lines = Iterator[tuple[dict, list[list[Rollout]]]]


@dataclass
class ParallelConfig(RunConfig):
    """How well a model scales with its threads, or as one thread, at equal context, tokens and time."""

    out: str = "runs/parallel"  # folder of this run: config.json, metrics.jsonl, samples.jsonl
    base: str = ""  # checkpoint folder of the model that is measured; needed
    task: Task = chosen(TASKS, Parallel(HardAttempts()))  # what it is asked; hard_attempts for a single thread
    problems: Rows = 120  # held-out problems
    repeats: Rows = 2  # rollouts of each
    methods: tuple[str, ...] = ("context", "asked", "alone")  # context, asked, samples, alone, exhaustive
    temperature: Rate = 1.0  # of all threads
    max_new_tokens: Positive = 256  # response tokens of each thread
    windows: tuple[Positive, ...] = (64, 96, 128, 160, 192, 224, 256)  # contexts, in response tokens
    widths: tuple[Positive, ...] = (1, 2, 3, 4, 6, 8)  # children that prompts ask for
    samples: Rows = 16  # rollouts of a problem for pass@k and cons@k
    alone: Rows = 12  # problems that are timed, each three times where the task spawns
    operations: tuple[Positive, ...] = (3, 6, 12, 24, 48, 96, 192, 384)  # of the exhaustive search


PRESETS = {
    "cpu": ParallelConfig(),
    "tiny": ParallelConfig(
        problems=4,
        repeats=1,
        max_new_tokens=64,
        windows=(32, 64),
        widths=(1, 3),
        samples=4,
        alone=2,
        operations=(3, 12),
    ),
    "gpu": ParallelConfig(problems=1000, samples=64, alone=100),
}


def check_config(config: ParallelConfig) -> None:
    """What no single setting tells; ValueError says in one line what is wrong."""
    if not config.base:
        raise ValueError("--base is needed: a checkpoint folder")
    if not config.methods or len(set(config.methods)) < len(config.methods) or set(config.methods) - set(METHODS):
        raise ValueError(f"--methods {','.join(config.methods)}: at least one, each once, of {', '.join(METHODS)}")
    if "asked" in config.methods and not (config.task.spawn and hasattr(config.task, "asked")):
        raise ValueError("--methods asked needs a task that spawns: --task hard_attempts,parallel or threaded_search")
    if "exhaustive" in config.methods and "chance" not in config.task.problem("test", 0).info:
        raise ValueError("--methods exhaustive needs a task that knows all attempts: --task hard_attempts")
    check_rows(problems=config.problems, samples=config.samples)


def run(config: ParallelConfig) -> dict:
    """Every setting of every method is one line of metrics; returns the last one."""
    check_config(config)
    model, tokenizer = load_checkpoint(config.base, pick_device(config.device))
    check_words(tokenizer, task=config.task)
    run, lines = Run(config), []
    run.rewind(-1)  # it is measured again as a whole
    with Progress(len(config.methods), "parallel", "methods") as progress:
        for name in config.methods:
            for line, groups in METHODS[name](config, model, tokenizer, run):
                lines.append({"method": name, **line})
                run.log(len(lines), **lines[-1])
                log_samples(run, len(lines), f"{name} {line['asked']}", config.task, tokenizer, groups)
            progress.update()
    run.close()
    names = ["method", "asked", "accuracy", "children", "sequential", "total"]
    say(table(names, [[f"{v:.2f}" if isinstance(v := line.get(name, ""), float) else str(v) for name in names]
                      for line in lines]))  # fmt: skip
    return run.last_line()


# ------------------------------------------------------------------------------------------- rollouts and their clocks


def sampled(
    config: ParallelConfig, model: Transformer, tokenizer: TextTokenizer, problems: list[Problem], count: int, **how
) -> tuple[list[list[Rollout]], dict[Rollout, Thread], Sampler]:
    """`count` rollouts of each problem with their verdicts as rewards, the threads of those that spawn, the sampler.
    The random numbers depend on a problem's place alone: every setting and every model has the same ones. `how`: more
    of the sampler's settings."""
    groups = prompt_groups(tokenizer, problems, count, seed_of("held-out"))
    sampler = Sampler(model, tokenizer, stop=stops_of(config.task), temperature=config.temperature,
                      max_new_tokens=config.max_new_tokens, **how)  # fmt: skip
    threads = Threads(config.task, sampler) if config.task.spawn else None
    rows = [row for group in groups for row in group]
    generate(sampler, rows, threads)
    for row in rows:
        row.reward = config.task.reward(row.problem, response_text(tokenizer, row))
    return groups, threads.of if threads else {}, sampler


def of_row(row: Rollout, tokenizer: TextTokenizer, task: Task) -> dict[str, float]:
    """The clocks of a rollout: of a single thread all its tokens wait for one another.

    longest        response tokens of its longest row, which is what a context must hold
    operations     calculations in all of its rows
    hallucinated   1 if the parent itself says in its thought what only a join can know
    """
    threads = {name.removeprefix("threads/"): value for name, value in row.counted.items()}
    text = tokenizer.decode([t for t, chosen in zip(row.tokens, row.loss_mask, strict=True) if chosen])
    return {
        "children": threads.get("children", 0.0),
        "rounds": threads.get("rounds", 0.0),
        "cut": threads.get("cut_children", 0.0) + (row.stop_reason == "length"),
        "child_tokens": threads.get("child_tokens", 0.0),
        "sequential": threads.get("sequential_tokens", float(row.draws)),
        "total": threads.get("total_tokens", float(row.draws)),
        "longest": float(max(len(one.response) for one in row.family)),
        "operations": float(sum(tokenizer.decode(one.response).split().count(task.calculation) for one in row.family)),
        "hallucinated": float(bool(row.counted) and bool({*task.join_words} & {*text.partition(CLOSE)[0].split()})),
    }


def means(
    groups: list[list[Rollout]], tokenizer: TextTokenizer, task: Task, right=lambda row: row.reward
) -> dict[str, float]:
    """Means over rollouts; `accuracy_se` is by problem, because rollouts of one problem are no independent evidence."""
    counts = [of_row(row, tokenizer, task) for group in groups for row in group]
    accuracy = [statistics.fmean(map(right, group)) for group in groups]
    averages = {name: statistics.fmean(count[name] for count in counts) for name in counts[0]}
    return {"accuracy": statistics.fmean(accuracy), "accuracy_se": standard_error(accuracy), **averages}


# ------------------------------------------------------------------------------------------------------- the methods


def by_context(config: ParallelConfig, model: Transformer, tokenizer: TextTokenizer, run: Run) -> Lines:
    groups, threads, _ = sampled(config, model, tokenizer, config.task.test_problems(config.problems), config.repeats)
    for window in config.windows:
        fits = {row: row.reward * (max(len(one.response) for one in row.family) <= window) for g in groups for row in g}
        yield {"asked": window, **means(groups, tokenizer, config.task, fits.get)}, groups
    log_lanes(config, tokenizer, run, threads, [row for group in groups for row in group])


def by_asked(config: ParallelConfig, model: Transformer, tokenizer: TextTokenizer, run: Run) -> Lines:
    for width in config.widths:
        problems = replace(config.task, asked=width).test_problems(config.problems)
        groups, _, _ = sampled(config, model, tokenizer, problems, config.repeats)
        yield {"asked": width, **means(groups, tokenizer, config.task)}, groups


def by_samples(config: ParallelConfig, model: Transformer, tokenizer: TextTokenizer, run: Run) -> Lines:
    G, problems = config.samples, config.task.test_problems(config.problems)
    groups, _, _ = sampled(config, model, tokenizer, problems, G)
    one = means(groups, tokenizer, config.task)
    votes = [[vote(config.task, response_text(tokenizer, row)) for row in group] for group in groups]
    right = [[row.reward == 1 for row in group] for group in groups]
    for k in (k for k in VOTES if k <= G):
        total = {"asked": k, "total": k * one["total"], "sequential": one["sequential"],
                 "operations": k * one["operations"]}  # fmt: skip
        cons = [maj_at_k(vote, marks, k, draws=20) for vote, marks in zip(votes, right, strict=True)]
        yield {**total, "kind": "cons", "accuracy": statistics.fmean(cons)}, groups
        yield {**total, "kind": "pass", "accuracy": mean_pass_at_k(right, k)}, groups


def vote(task: Task, text: str) -> str | None:
    """What a response votes for: nothing unless it claims a solution, as in the paper."""
    return task.answer(text) if task.claims(text) else None


def by_alone(config: ParallelConfig, model: Transformer, tokenizer: TextTokenizer, run: Run) -> Lines:
    """Latency: threads of one problem share its decode steps, and a step with several rows costs little more.

    Right before and right after, the same threads run one after another, a single row at a time. `speedup` is the
    median over the problems of their seconds (the mean of before and after) over those side by side: whatever else the
    machine does slows both down alike, unless it changes within seconds.
    """
    groups, found = [], []
    for problem in config.task.test_problems(config.alone):
        before = timed(config, model, tokenizer, problem, max_rows=1) if config.task.spawn else None
        beside = timed(config, model, tokenizer, problem)
        line = {"seconds": beside.seconds, "steps": beside.steps}
        if before:
            after = timed(config, model, tokenizer, problem, max_rows=1)
            # per token: on a GPU the samples may differ by rounding, and so in their lengths
            apart = statistics.fmean(one.seconds / one.tokens for one in (before, after)) * beside.tokens
            line |= {"serial_seconds": apart, "speedup": apart / beside.seconds}
        found.append(line)
        groups += beside.groups
    # the median: a machine that does something else for a moment makes a mean of so few useless
    times = {name: statistics.median(line[name] for line in found) for name in found[0]}
    times["steps"] = statistics.fmean(line["steps"] for line in found)
    yield {"asked": 1, **times, **means(groups, tokenizer, config.task)}, groups


class Timed(NamedTuple):
    groups: list[list[Rollout]]
    seconds: float
    steps: int  # of the decode loop
    tokens: int  # that were sampled, in all threads


def timed(config: ParallelConfig, model: Transformer, tokenizer: TextTokenizer, problem: Problem, **how) -> Timed:
    started = time.perf_counter()
    groups, _, sampler = sampled(config, model, tokenizer, [problem], 1, **how)
    return Timed(groups, time.perf_counter() - started, sampler.steps, sampler.row_steps)


def by_exhaustive(config: ParallelConfig, model: Transformer, tokenizer: TextTokenizer, run: Run) -> Lines:
    """The chance that m attempts drawn without repetition hold a right one; an attempt has inputs - 1 operations."""
    infos = [problem.info for problem in config.task.test_problems(config.problems)]
    for operations in config.operations:
        found = []
        for info in infos:
            tried = round(info["solutions"] / info["chance"]) if info["chance"] else 1
            attempts = min(tried, operations // (len(info["numbers"]) - 1))
            found.append(pass_at_k(tried, info["solutions"], attempts) if attempts else 0.0)
        yield {"asked": operations, "operations": float(operations), "accuracy": statistics.fmean(found)}, []


METHODS = {
    "context": by_context,
    "asked": by_asked,
    "samples": by_samples,
    "alone": by_alone,
    "exhaustive": by_exhaustive,
}


# ------------------------------------------------------------------------------------------- one problem, to be drawn


def log_lanes(
    config: ParallelConfig, tokenizer: TextTokenizer, run: Run, threads: dict[Rollout, Thread], rows: list[Rollout]
) -> None:
    """Puts down one rollout's threads over time, for the figure: the first right one of at least three children."""

    def lane(thread: Thread, step: str) -> dict:
        text = response_text(tokenizer, thread.row)
        found = thread.row.stop_reason != "length" and config.task.answer(text) is not None and config.task.claims(text)
        return {"prompt": thread.row.problem.prompt, "step": step, "text": text, "found": found, "start": thread.start,
                "end": thread.clock, "rounds": [[one.start, one.end] for one in thread.rounds]}  # fmt: skip

    shown = [row for row in rows if row in threads and row.counted["threads/children"] >= 1]
    if not shown:
        return
    row = max(shown, key=lambda row: (row.reward, row.counted["threads/children"] >= 3))
    root = threads[row]
    lanes = [lane(root, ""), *(lane(child, child.row.problem.info.get("step", "")) for child in root.below())]
    run.sample(0, kind="threads", split="test", prompt=row.problem.prompt, right=row.reward, lanes=lanes)
