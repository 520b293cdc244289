"""Demonstrations that are chosen: rejection sampling and distillation (DeepSeek-R1), few good ones (s1).

    traces   of a teacher, `samples` responses to each problem; or the task's own solutions as a collected pool
    keep     those that are right (wrong, all), in the format, in one of the modes     R1 2.3: rejection sampling
    how      of these all, or `choose` of them: random, longest, diverse, or as s1 (2501.19393, section 2) does
               quality      what is not in the format is dropped (calls that failed, traces that were cut)
               difficulty   what the base solves by itself, in one of `attempts`, is dropped
               diversity    draw a domain evenly, then one of its problems with weight 2^-rank, rank 0 the longest trace
    write    OUT/demonstrations.jsonl, a line {"prompt", "response"} each; and demonstrations-tokens.jsonl and the like,
             whose prompts say how long to think

`train.py sft --data OUT/demonstrations.jsonl --base FOLDER` learns them: a small base for distillation, the teacher's
own base for the third stage of R1's pipeline, with `--modes recheck --choose 300` the cold start. Nothing compares
logits.
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from nanoreason.checkpoint import load_checkpoint
from nanoreason.environment import check_words, judge, log_samples, mean, sample
from nanoreason.prompts import asked, is_well_formed, spaced
from nanoreason.rollout import Problem, Rollout, Task, demonstration, seed_of
from nanoreason.run import (
    Count,
    Positive,
    Rate,
    Rows,
    Run,
    RunConfig,
    Share,
    check_rows,
    chosen,
    pick_device,
    replace_text,
    say,
)
from nanoreason.tasks import TASKS, ThinkingAddition
from nanoreason.tasks.wrappers import Templated

CONDITIONS = ("tokens", "steps", "class")


@dataclass
class SelectConfig(RunConfig):
    """Choose demonstrations: sample a teacher or take a pool of traces, filter them, choose some, write a file."""

    out: str = "runs/select"  # folder of this run: config.json, metrics.jsonl, samples.jsonl, demonstrations.jsonl
    # traces
    task: Task = chosen(TASKS, Templated(ThinkingAddition()))  # whose problems they are
    teacher: str = ""  # checkpoint folder of the policy that is sampled; empty: the task's own solutions
    problems: Rows = 400  # problems that are answered
    samples: Rows = 4  # responses of the teacher to each
    temperature: Rate = 1.0  # of the sampling
    max_new_tokens: Positive = 112  # response tokens after which a row is cut, and then not kept
    broken_share: Share = 0.0  # pool: share of the traces that end somewhere in the middle
    # choice
    keep: Literal["right", "wrong", "all"] = "right"  # by the verdict; wrong is a control. Always in the format
    modes: tuple[str, ...] = ()  # only traces in one of these modes, such as recheck; empty: all
    how: Literal["all", "first", "random", "longest", "diverse", "s1"] = "all"  # which of them
    choose: Count = 0  # how many of them at most, but for `all`
    base: str = ""  # s1: checkpoint folder of who will learn; what it solves is not difficult
    attempts: Rows = 2  # s1: samples of the base per problem
    conditions: tuple[str, ...] = ()  # more files, whose prompts say how long to think: tokens, steps, class


PRESETS = {
    "cpu": SelectConfig(),
    "tiny": SelectConfig(task=Templated(ThinkingAddition((1,))), problems=12, samples=2, max_new_tokens=48),
    "gpu": SelectConfig(problems=8000),
}


class Trace(NamedTuple):
    """A problem as the task poses it, before any template, and a response to it."""

    problem: Problem
    text: str
    right: bool
    mode: str  # one of the task's mode/..., or ""
    tokens: int


def run(config: SelectConfig) -> dict:
    """Choose and write OUT/demonstrations.jsonl; returns the line of metrics. ValueError if nothing is left."""
    if config.how == "s1" and not config.base:
        raise ValueError("--how s1 needs --base: the checkpoint folder of the model that will learn")
    if config.how not in ("all", "s1") and not config.choose:
        raise ValueError(f"--how {config.how} needs --choose: how many of them")
    if unknown := set(config.conditions) - set(CONDITIONS):
        raise ValueError(f"--conditions {', '.join(sorted(unknown))}: use {', '.join(CONDITIONS)}")
    check_rows(problems=config.problems, samples=config.samples if config.teacher else 1)
    check_rows(problems=config.problems, attempts=config.attempts if config.how == "s1" else 1)
    groups: list[list[Rollout]] = []
    if config.teacher:
        traces, metrics, groups = taught(config)
    else:
        traces, metrics = collected(config)
    good = [trace for trace in traces if is_well_formed(trace.text)]
    metrics |= {"pool": len(traces), "after_quality": len(good)}
    wanted = {"right": (True,), "wrong": (False,), "all": (False, True)}[config.keep]
    kept = [t for t in good if t.right in wanted and (not config.modes or t.mode in config.modes)]
    picked, counts = pick(config, kept)
    if not picked:
        raise ValueError(
            f"none of {len(traces)} traces is kept: more of them (--problems, --samples) or fewer demands (--keep, "
            f"--modes). Of them {metrics['accuracy']:.3f} are right, {metrics['format']:.3f} in the format"
        )
    run = Run(config)
    run.rewind(-1)
    shown = []
    for condition in ("", *config.conditions):
        posed = [(templated(config.task, problem), text) for problem, text in conditioned(picked, condition)]
        lines = [{"prompt": problem.prompt, "response": text} for problem, text in posed]
        name = f"demonstrations{condition and '-'}{condition}.jsonl"
        replace_text(run.folder / name, "".join(json.dumps(line) + "\n" for line in lines))
        shown.append((f"chosen {condition}".strip(), posed))
    metrics |= counts | {
        "kept": len(picked),
        "kept_length": mean([trace.tokens for trace in picked]),
        "chosen": len(picked),
        "chosen_tokens": mean([trace.tokens for trace in picked]),
        "chosen_right": mean([trace.right for trace in picked]),
        "chosen_digits": mean([config.task.difficulty(trace.problem) for trace in picked]),
        "chosen_domains": len({config.task.domain(trace.problem) for trace in picked}),
    }
    run.log(0, **metrics)
    tokenizer = config.task.tokenizer()
    log_samples(run, 0, "teacher", config.task, tokenizer, groups)
    for kind, posed in shown:
        rows = [[demonstration(tokenizer, problem, text)] for problem, text in posed]
        log_samples(run, 0, kind, config.task, tokenizer, rows)
    run.close()
    say(", ".join(f"{name} {value:.3g}" for name, value in metrics.items()))
    return metrics


def bare(task: Task) -> Task:
    """The task inside its template."""
    return task.task if isinstance(task, Templated) else task


def templated(task: Task, problem: Problem) -> Problem:
    return task.wrap(problem, "", 0) if isinstance(task, Templated) else problem


# ----------------------------------------------------------------------------------------------------------- traces


def taught(config: SelectConfig) -> tuple[list[Trace], dict[str, float], list[list[Rollout]]]:
    """What the teacher writes, and the rows, a group per problem."""
    teacher, tokenizer = load_checkpoint(config.teacher, pick_device(config.device))
    check_words(tokenizer, task=config.task)
    problems = [bare(config.task).problem(f"select-{config.seed}", i) for i in range(config.problems)]
    posed = [templated(config.task, problem) for problem in problems]
    groups = sample(config.task, teacher, tokenizer, posed, group_size=config.samples, temperature=config.temperature,
                    max_new_tokens=config.max_new_tokens, seed=seed_of(config.seed, "select"))  # fmt: skip
    scored = judge(config.task, tokenizer, groups)
    traces = []
    for i, one in enumerate(scored):
        mode = next((name[5:] for name, value in one.metrics.items() if name.startswith("mode/") and value), "")
        traces.append(Trace(problems[i // config.samples], one.text, one.right, mode, one.tokens))
    return traces, about(traces) | {"tokens": sum(one.tokens for one in scored)}, groups


def collected(config: SelectConfig) -> tuple[list[Trace], dict[str, float]]:
    """The task's own solutions as somebody collected them: of all lengths, with errors, some of them broken."""
    task, tokenizer, traces = config.task, config.task.tokenizer(), []
    for index in range(config.problems):
        problem = bare(task).problem(f"pool-{config.seed}", index)
        draw = random.Random(seed_of("pool", config.seed, index))
        text = problem.solution
        if draw.random() < config.broken_share:
            parts = text.split(" ")
            text = " ".join(parts[: draw.randint(1, len(parts) - 1)])
        right = task.reward(templated(task, problem), text) == 1
        traces.append(Trace(problem, text, right, problem.info.get("form", ""), len(tokenizer.encode(text)) + 1))
    return traces, about(traces)


def about(traces: list[Trace]) -> dict[str, float]:
    return {
        "accuracy": mean([trace.right for trace in traces]),
        "format": mean([is_well_formed(trace.text) for trace in traces]),
    }


# ----------------------------------------------------------------------------------------------------------- choice


def pick(config: SelectConfig, traces: list[Trace]) -> tuple[list[Trace], dict[str, float]]:
    """The chosen traces, and how many were left after the filter of difficulty."""
    draw = random.Random(seed_of(config.seed, "choose", config.how))

    def domain(trace: Trace) -> Hashable:
        return config.task.domain(trace.problem)

    def tokens(trace: Trace) -> int:
        return trace.tokens

    if config.how == "s1":
        hard = unsolved(config, traces)
        return diverse(hard, config.choose or len(hard), domain, tokens, draw), {"after_difficulty": len(hard)}
    if config.how == "diverse":  # evenly within a domain
        return diverse(traces, config.choose, domain, lambda trace: draw.random(), draw, weight=1.0), {}
    if config.how == "longest":
        return sorted(traces, key=tokens, reverse=True)[: config.choose], {}
    if config.how == "random":
        return draw.sample(traces, min(config.choose, len(traces))), {}
    return traces[: config.choose or None] if config.how == "first" else traces, {}


def unsolved(config: SelectConfig, traces: list[Trace]) -> list[Trace]:
    """Difficulty: the traces of problems that none of the base's `attempts` solves."""
    # DIFFERS from the paper: samples of one base instead of an answer each of two models (7 and 32 billion parameters).
    base, tokenizer = load_checkpoint(config.base, pick_device(config.device))
    check_words(tokenizer, task=config.task)
    posed = [templated(config.task, trace.problem) for trace in traces]
    groups = sample(config.task, base, tokenizer, posed, group_size=config.attempts, temperature=1.0,
                    max_new_tokens=base.config.max_position_embeddings, seed=seed_of(config.seed, "attempts"),
                    name="difficulty")  # fmt: skip
    right = [any(one.right for one in judge(config.task, tokenizer, [group])) for group in groups]
    return [trace for trace, solved in zip(traces, right, strict=True) if not solved]


def diverse(
    pool: list,
    count: int,
    domain: Callable[..., Hashable],
    length: Callable[..., float],
    draw: random.Random,
    weight: float = 0.5,
) -> list:
    """`count` different items (all if there are fewer): a domain evenly, then one of its items, again and again.

    Within a domain the item of rank r has weight `weight`^r, rank 0 being the longest of those that are left; ties
    keep the pool's order. An empty domain is drawn no more. With weight 1 every item of a domain is as likely.
    """
    # DIFFERS from the released code: it leaves the even draw of domains after 700 of 1,000 for that of its benchmarks.
    domains: dict[Hashable, list] = {}
    for item in sorted(pool, key=length, reverse=True):
        domains.setdefault(domain(item), []).append(item)
    picked: list = []
    while domains and len(picked) < count:
        name = draw.choice(sorted(domains))
        left = domains[name]
        rank = draw.choices(range(len(left)), [max(weight**r, 1e-300) for r in range(len(left))])[0]
        picked.append(left.pop(rank))
        if not left:
            del domains[name]
    return picked


# ------------------------------------------------------------------------------ prompts that say how long to think


def conditioned(traces: list[Trace], condition: str) -> list[tuple[Problem, str]]:
    """Problems and responses whose prompts tell the truth about their traces (s1, section 5.2 and appendix D).

    tokens   at most so many, rounded up to a power of two
    steps    so many passes, and before each of them the trace says how many are left
    class    short or long: below the median of all traces, or not
    """
    median = statistics.median(thinking_tokens(trace.text) for trace in traces)
    found = []
    for problem, text, *_ in traces:
        tokens = thinking_tokens(text)
        if condition == "tokens":
            problem = asked(problem, "max", power_of_two(tokens))
        elif condition == "class":
            problem = asked(problem, "class", "short" if tokens < median else "long")
        elif condition == "steps":
            text = counting_down(text)
            problem = asked(problem, "steps", text.count("steps left"))
        found.append((replace(problem, solution=text), text))
    return found


def thinking_tokens(response: str) -> int:
    """Words between the think tags.

    >>> thinking_tokens("<think> a b </think> <answer> c </answer>")
    2
    """
    return len(response.partition("<think>")[2].partition("</think>")[0].split())


def power_of_two(tokens: int) -> int:
    """The smallest power of two that is not less.

    >>> [power_of_two(n) for n in (1, 8, 9, 100)]
    [1, 8, 16, 128]
    """
    return 1 << max(0, tokens - 1).bit_length()


def counting_down(solution: str) -> str:
    """A solution each of whose passes says how many are left, itself included (s1, step-conditional control).

    >>> counting_down("<think> a wait b </think> <answer> c </answer>")
    '<think> 2 steps left a wait 1 steps left b </think> <answer> c </answer>'
    """
    if not thinking_tokens(solution):
        return solution  # a direct answer has no passes
    thinking, answer = solution.removeprefix("<think> ").split(" </think>")
    passes = thinking.split(" wait ")
    passes = [f"{spaced(len(passes) - i)} steps left {text}" for i, text in enumerate(passes)]
    return f"<think> {' wait '.join(passes)} </think>{answer}"
