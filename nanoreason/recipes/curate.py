"""s1K (s1, Muennighoff et al., 2025, section 2): few demonstrations, chosen well, and a fine-tuning on them.

    pool of problems with traces
        quality      what is not in the format is dropped (calls that failed, traces that were cut)
        difficulty   what the base solves by itself, in one of `attempts`, is dropped
        diversity    draw a domain evenly, then one of its problems with weight 2^-rank, rank 0 the longest trace;
                     again, until `choose` are chosen
    fine-tune the base on them                                                           (`how` names other choices)

Whether a chosen trace is right is never asked: half of s1K is wrong. A domain is what a sum demands: its digits and
its number of carries.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

from nanoreason.checkpoint import load_checkpoint, resume, save_checkpoint
from nanoreason.evaluate import respond
from nanoreason.learn import fit, in_epochs, make_optimizer
from nanoreason.model import Transformer
from nanoreason.rewards import format_reward, with_template
from nanoreason.rollout import Problem, demonstration, response_text, seed_of
from nanoreason.run import Run, RunConfig, pick_device, read_jsonl, say
from nanoreason.tasks.addition import MODES, ThinkingAddition, asked, carries, counting_down, digits_of, read_thinking
from nanoreason.tokenizer import TextTokenizer

CHOICES = ("s1", "random", "longest", "diverse", "all")
CONDITIONS = ("none", "tokens", "steps", "class")


@dataclass
class CurateConfig(RunConfig):
    """Choose demonstrations from a pool of sums with thinking, as s1 does or not, and fine-tune a base on them."""

    out: str = "runs/curate"  # folder of this run: config.json, metrics.jsonl, samples.jsonl, checkpoints
    base: str = ""  # checkpoint folder of the base model; needed
    digits: tuple[int, ...] = (1, 2)  # lengths of the sums in the pool, all equally often
    pool: int = 1600  # problems with traces to choose from
    forms: tuple[float, ...] = (0.0, 0.15, 0.85)  # shares of the traces: direct, steps (one pass), recheck
    slip: float = 0.2  # chance that a column of a pass is wrong
    care: float = 0.25  # a re-check slips so many times as often
    doubt: float = 0.2  # chance of one more pass although two agree
    broken: float = 0.1  # share of the traces that end somewhere in the middle: what the quality filter is for
    others: float = 0.3  # share of the traces whose "wait" is another word, so that others can be forced too
    attempts: int = 2  # samples of the base per problem; what one of them solves is not difficult
    how: str = "s1"  # s1 (quality, difficulty, diversity), random, longest, diverse (no difficulty) or all
    choose: int = 100  # demonstrations that are chosen
    condition: str = "none"  # what the prompts say about the thinking: none, tokens, steps or class
    epochs: int = 10  # passes over the chosen (the paper's 5 of 1,000 are 315 updates; these are 62)
    lr: float = 5e-4  # peak learning rate; cosine to a tenth of it
    rows_per_step: int = 16  # rows of an update
    micro_tokens: int = 1024  # tokens of a micro-batch: speed, not the result


PRESETS = {
    "cpu": CurateConfig(),
    "tiny": CurateConfig(pool=60, choose=12, epochs=1, rows_per_step=6),
    "gpu": CurateConfig(digits=(2, 3), pool=10_000, choose=1000, micro_tokens=32768),
}
OTHER_WORDS = ("Hmm", "Alternatively")


def run(config: CurateConfig) -> dict:
    """Choose, fine-tune, leave the model in OUT/policy; returns the line of metrics."""
    if config.how not in CHOICES or config.condition not in CONDITIONS:
        raise ValueError(f"--how is one of {', '.join(CHOICES)}, --condition one of {', '.join(CONDITIONS)}")
    if not config.base:
        raise ValueError("--base is needed: the checkpoint folder of a model that adds, as `train.py sft` leaves one")
    model, words = load_checkpoint(config.base, pick_device(config.device))
    run = Run(config)
    chosen, metrics = choose(config, model, words)
    rows = [
        demonstration(words, with_template(problem, "skeleton")) for problem in conditioned(chosen, config.condition)
    ]
    optimizer = make_optimizer(model)
    first = resume(run.folder / "policy", model, optimizer).get("step", 0)
    run.rewind(first)
    steps = max(1, round(config.epochs * len(rows) / config.rows_per_step))

    def after(step: int, values: dict[str, float]) -> None:
        if step + 1 == steps:
            run.log(steps, **metrics, **values)
            save_checkpoint(run.folder / "policy", model, words, optimizer, {"step": steps})

    fit(model, optimizer, in_epochs(rows, config.rows_per_step, config.seed), steps=steps, first_step=first,
        lr=config.lr, warmup=1 + steps // 20, decay=True, micro_tokens=config.micro_tokens, after=after)  # fmt: skip
    for row in rows[: 0 if first else 4]:
        run.sample(steps, prompt=row.problem.prompt, response=row.problem.solution)
    run.close()
    last = read_jsonl(run.folder / "metrics.jsonl")[-1]
    say(", ".join(f"{name} {value:.3g}" for name, value in last.items()))
    return last


# ------------------------------------------------------------------------------------------------------ choosing


def choose(config: CurateConfig, base: Transformer, words: TextTokenizer) -> tuple[list[Problem], dict[str, float]]:
    """The chosen problems, and how many were left after each filter."""
    draw = random.Random(seed_of(config.seed, "choose", config.how))
    pool = pool_of(config)
    good = [problem for problem in pool if well_formed(problem)]
    counts = {"pool": len(pool), "after_quality": len(good)}
    if config.how == "s1":
        hard = unsolved(base, words, good, config.attempts, seed_of(config.seed, "attempts"))
        counts["after_difficulty"] = len(hard)
        chosen = diverse(hard, config.choose, domain, trace_tokens, draw)
    elif config.how == "diverse":  # evenly within a domain
        chosen = diverse(good, config.choose, domain, lambda problem: draw.random(), draw, weight=1.0)
    elif config.how == "longest":
        chosen = sorted(good, key=trace_tokens, reverse=True)[: config.choose]
    else:
        chosen = draw.sample(good, min(config.choose, len(good))) if config.how == "random" else good
    if not chosen:
        raise ValueError("nothing is left to choose from: a larger --pool, or more --digits than the base has learnt")
    task = ThinkingAddition(config.digits)
    return chosen, counts | {
        "chosen": len(chosen),
        "chosen_tokens": statistics.fmean(trace_tokens(problem) for problem in chosen),
        "chosen_right": statistics.fmean(task.reward(problem, problem.solution) for problem in chosen),
        "chosen_digits": statistics.fmean(digits_of(problem) for problem in chosen),
        "chosen_domains": len({domain(problem) for problem in chosen}),
    }


def pool_of(config: CurateConfig) -> list[Problem]:
    """Problems with traces as somebody collected them: of all lengths, with slips, some of them broken."""
    habits = dict(slip=config.slip, care=config.care, doubt=config.doubt)
    task = ThinkingAddition(config.digits, forms=dict(zip(MODES, config.forms, strict=True)), **habits)
    pool = []
    for index in range(config.pool):
        problem = task.problem(f"pool-{config.seed}", index)
        draw = random.Random(seed_of("pool", config.seed, index))
        text = problem.solution
        if draw.random() < config.others:
            text = text.replace(" wait ", f" {draw.choice(OTHER_WORDS)} ")
        if draw.random() < config.broken:
            parts = text.split(" ")
            text = " ".join(parts[: draw.randint(1, len(parts) - 1)])
        pool.append(replace(problem, solution=text))
    return pool


def well_formed(problem: Problem) -> bool:
    """Quality: the trace is <think>...</think> <answer>...</answer>."""
    return format_reward([""], [problem.solution]) == [1.0]


def unsolved(
    base: Transformer, words: TextTokenizer, problems: list[Problem], attempts: int, seed: int
) -> list[Problem]:
    """Difficulty: the problems that none of the base's `attempts` solves."""
    # DIFFERS from the paper: samples of one base instead of an answer each of two models (7 and 32 billion parameters).
    posed = [with_template(problem, "skeleton") for problem in problems]
    context = base.config.max_position_embeddings
    rows = respond(base, words, posed, budget=lambda problem: context, temperature=1.0, group_size=attempts, seed=seed,
                   name="difficulty")  # fmt: skip
    task = ThinkingAddition()
    right = [task.reward(row.problem, response_text(words, row)) == 1 for row in rows]
    return [problem for i, problem in enumerate(problems) if not any(right[i * attempts : (i + 1) * attempts])]


def domain(problem: Problem) -> tuple[int, int]:
    return digits_of(problem), carries(problem)


def trace_tokens(problem: Problem) -> int:
    """Words of the trace's thinking; each is a token."""
    return read_thinking(problem.solution).tokens


def diverse(
    pool: list[Problem],
    count: int,
    domain: Callable[[Problem], Hashable],
    length: Callable[[Problem], float],
    draw: random.Random,
    weight: float = 0.5,
) -> list[Problem]:
    """`count` different problems (all if there are fewer): a domain evenly, then one of its problems, again and again.

    Within a domain the problem of rank r has weight `weight`^r, rank 0 being the longest of those that are left; ties
    keep the pool's order. An empty domain is drawn no more. With weight 1 every problem of a domain is as likely.
    """
    # DIFFERS from the released code: it leaves the even draw of domains after 700 of 1,000 for that of its benchmarks.
    domains: dict[Hashable, list[Problem]] = {}
    for problem in sorted(pool, key=length, reverse=True):
        domains.setdefault(domain(problem), []).append(problem)
    chosen: list[Problem] = []
    while domains and len(chosen) < count:
        name = draw.choice(sorted(domains))
        left = domains[name]
        rank = draw.choices(range(len(left)), [max(weight**r, 1e-300) for r in range(len(left))])[0]
        chosen.append(left.pop(rank))
        if not left:
            del domains[name]
    return chosen


# ------------------------------------------------------------------------------ prompts that say how long to think


def conditioned(problems: list[Problem], condition: str) -> list[Problem]:
    """Demonstrations whose prompts tell the truth about their traces (s1, section 5.2 and appendix D).

    tokens   at most so many, rounded up to a power of two
    steps    so many passes, and before each of them the trace says how many are left
    class    short or long: below the median of all traces, or not
    """
    if condition == "none":
        return problems
    median = statistics.median(trace_tokens(problem) for problem in problems)
    found = []
    for problem in problems:
        tokens = trace_tokens(problem)
        if condition == "tokens":
            found.append(asked(problem, "max", power_of_two(tokens)))
        elif condition == "class":
            found.append(asked(problem, "class", "short" if tokens < median else "long"))
        else:
            counted = counting_down(problem.solution)
            found.append(asked(replace(problem, solution=counted), "steps", counted.count("steps left")))
    return found


def power_of_two(tokens: int) -> int:
    """The smallest power of two that is not less.

    >>> [power_of_two(n) for n in (1, 8, 9, 100)]
    [1, 8, 16, 128]
    """
    return 1 << max(0, tokens - 1).bit_length()
