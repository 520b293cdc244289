"""STaR: Self-Taught Reasoner (Zelikman et al., 2022), Algorithm 1, on digit addition.

    base M                                        # knows short sums, a little of longer ones
    for round 1..N:
        rows  = policy samples a scratchpad and an answer for each problem of the round
        kept  = rows whose answer is right
        if rationalize: the problems it got wrong again, with the answer as a hint;
                        keep those that are right now, stored WITHOUT their hint
        policy = M fine-tuned on kept             # from the base each time; only the data carries over

The filter is a policy gradient with reward 1 or 0 and no baseline; a rationalized trace is an off-policy sample.
"""

from __future__ import annotations

import copy
import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from nanoreason.checkpoint import existing, load_checkpoint, load_training, resume, save_checkpoint
from nanoreason.evaluate import Graded, accuracy_by, grade, respond, test_accuracy
from nanoreason.learn import fit, from_stream, in_epochs, make_optimizer
from nanoreason.model import Transformer, small_config
from nanoreason.rollout import Problem, Rollout, demonstration, seed_of
from nanoreason.run import Run, RunConfig, pick_device, read_jsonl, say, table
from nanoreason.tasks.addition import Addition, budget, digits_of, hinted, test_sums, tokenizer, trimmed
from nanoreason.tokenizer import TextTokenizer


@dataclass
class StarConfig(RunConfig):
    """STaR on digit addition: sample, filter, rationalize what failed, fine-tune the base; repeat."""

    out: str = "runs/star"  # folder of this run: config.json, metrics.jsonl, samples.jsonl, checkpoints
    base: str = ""  # checkpoint folder of the base model; empty: train one here, into OUT/base
    # the base, if it is trained here
    width: int = 96  # D, the model's width
    layers: int = 3  # transformer blocks
    heads: int = 4  # attention heads
    context: int = 256  # longest row in tokens; a 10-digit sum needs 202
    base_steps: int = 6000  # optimizer steps, unless it reaches its goal before
    base_goal: float = 0.5  # it is trained until it adds this share of the sums of `base_goal_digits`; 0: all its steps
    base_goal_digits: int = 3  # the length that it should know in part
    base_rows: int = 32  # rows of an update; many small updates teach far more than few large ones at the same cost
    base_lr: float = 1e-3  # learning rate after warm-up
    base_shares: tuple[float, ...] = (0.54, 0.33, 0.1, 0.02, 0.01)  # how often sums of 1, 2, ... digits are shown
    base_hint_share: float = 0.4  # share of an update that are further sums, with their answer as a hint
    base_hinted_shares: tuple[float, ...] = (1, 1, 1, 1, 1, 1, 1)  # how often these have 1, 2, ... digits
    # the rounds
    rounds: int = 6  # N; 0 only trains the base
    digits: tuple[int, ...] = (1, 2, 3, 4, 5)  # lengths of the sums that the policy practises on
    late_digits: tuple[int, ...] = ()  # lengths that join them later
    late_from: int = 0  # the round in which they join; 0: never
    pool: int = 10000  # different problems per length (one digit: 81 sums, repeated)
    problems: int = 600  # how many of them, per length, are drawn for a round
    rationalize: bool = False  # hint at the answer of problems that were not solved
    retry_temperature: float = 0.0  # > 0: sample unsolved problems again at this temperature (without hints)
    temperature: float = 0.0  # of the first attempt; 0 is greedy
    restart: bool = True  # fine-tune the base in each round; --no-restart: go on from the last policy
    prompt_set: int = 10  # worked examples per length that stay in every round's data, each with and without hint
    prompt_share: float = 0.125  # how much of an update they are
    first_steps: int = 300  # optimizer steps in round 1
    step_growth: float = 1.0  # factor per round; 1.2 on top of 40 is the paper's schedule without rationalization
    step_increment: int = 20  # steps added per round; 20 on top of 300 is the paper's schedule with it
    rows_per_step: int = 16  # rows of an update
    lr: float = 1e-3  # peak learning rate
    decay: bool = True  # cosine to a tenth of it; --no-decay: constant after warm-up, as in the paper
    warmup: int = 50  # steps of warm-up
    micro_tokens: int = 1024  # tokens of a micro-batch: speed, not the result; small ones stay in a CPU cache
    # measuring
    eval_digits: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)  # lengths that are tested on held-out sums
    eval_problems: int = 60  # held-out sums per length


PRESETS = {
    "cpu": StarConfig(),
    "tiny": StarConfig(
        width=32, layers=2, heads=2, context=80, base_steps=150, base_goal=0.0, base_lr=1e-2, base_shares=(0.9, 0.1),
        base_hinted_shares=(0.5, 0.5), rounds=2, digits=(1, 2), pool=64, problems=32, first_steps=4, step_increment=1,
        warmup=2, base_rows=16, eval_digits=(1, 2), eval_problems=8,
    ),
    "gpu": StarConfig(
        width=256, layers=6, heads=8, base_lr=1e-3, rounds=16, problems=2000, first_steps=600,
        base_rows=128, rows_per_step=64, lr=1e-3, micro_tokens=32768, eval_problems=500,
    ),
}  # fmt: skip


def run(config: StarConfig) -> dict:
    """All rounds; returns the last line of metrics. The policy is left in OUT/policy, the base in OUT/base."""
    run = Run(config)
    device = pick_device(config.device)
    base, words = (
        load_checkpoint(config.base, device) if config.base else train_base(config, run.folder / "base", device)
    )
    policy, first = base, 0
    if existing(run.folder / "policy"):
        policy, _ = load_checkpoint(run.folder / "policy", device)
        first = load_training(run.folder / "policy", policy)["round"] + 1
    run.rewind(first - 1)
    for round in range(first, config.rounds + 1):
        metrics = {"round": round}
        if round > 0:
            policy, metrics = one_round(config, round, base, policy, words, run)
        problems = test_sums(config.eval_digits, config.eval_problems)
        metrics |= test_accuracy(policy, words, Addition(), problems, budget=budget, key=digits_of)
        run.log(round, **metrics)
        save_checkpoint(run.folder / "policy", policy, words, state={"round": round})
        say(report(config, metrics, header=round == first))
    run.close()
    return read_jsonl(run.folder / "metrics.jsonl")[-1]


def train_base(config: StarConfig, folder: Path, device) -> tuple[Transformer, TextTokenizer]:
    """A small transformer from random weights that has seen few long sums, some of them with hints."""
    # DIFFERS from the paper: GPT-J is prompted with ten worked examples per length. A model this small has no
    # few-shot ability, so what the examples did is trained in, once, with lengths so rare that they are not mastered.
    words = tokenizer()
    hints = int(config.base_rows * config.base_hint_share)
    sums = Addition(tuple(range(1, len(config.base_shares) + 1)), shares=config.base_shares)
    unaided = from_stream(words, sums, f"base-{config.seed}", config.base_rows - hints)
    lengths = tuple(range(1, len(config.base_hinted_shares) + 1))
    sums = Addition(lengths, shares=config.base_hinted_shares, hint_share=1.0)
    aided = from_stream(words, sums, f"base-hint-{config.seed}", hints)
    model = Transformer(
        small_config(config.width, config.layers, config.heads, words.vocab_size, config.context),
        seed_of(config.seed, "base"),
    ).to(device)
    optimizer = make_optimizer(model)
    state = resume(folder, model, optimizer) or {"step": 0, "finished": False}
    # When a model finds out how to add is a matter of luck: after equally many steps one seed adds three digits and
    # another not even two. So all seeds stop at the same ability, measured on sums that are not tested later.
    goal = Addition((config.base_goal_digits,))
    checked = [goal.problem(f"base-goal-{config.seed}", i) for i in range(50)]

    def after(step: int, metrics: dict) -> bool:
        state["step"] = step + 1
        state["finished"] = step + 1 == config.base_steps
        if (step + 1) % 100 and not state["finished"]:
            return False
        if config.base_goal:
            marks = grade(goal, words, respond(model, words, checked, budget=budget, name="base"))
            state["finished"] |= statistics.fmean(mark.lenient for mark in marks) >= config.base_goal
        save_checkpoint(folder, model, words, optimizer, state)
        return state["finished"]

    if not state["finished"]:
        fit(model, optimizer, lambda step: unaided(step) + aided(step), steps=config.base_steps,
            first_step=state["step"], lr=config.base_lr, warmup=config.warmup, micro_tokens=config.micro_tokens,
            after=after, name="base")  # fmt: skip
    return model, words


def round_problems(config: StarConfig, round: int) -> list[Problem]:
    """This round's sums: equally many of each length, drawn from the pool without repeats within the round."""
    digits = config.digits + (config.late_digits if config.late_from and round >= config.late_from else ())
    if config.problems > config.pool:
        raise ValueError(f"problems {config.problems} cannot be drawn from a pool of {config.pool} per length")
    chosen = []
    for n in digits:
        indices = random.Random(seed_of(config.seed, "round", round, n)).sample(range(config.pool), config.problems)
        chosen += [Addition((n,)).problem(f"train-{n}", index) for index in sorted(indices)]
    return chosen


def prompt_set(config: StarConfig, words: TextTokenizer) -> list[Rollout]:
    """The worked examples P, the same in every round."""
    # DIFFERS from the paper: there P stands in the prompt whenever the policy samples, with hints when it rationalizes.
    # A model this small cannot read a prompt of ten examples, so P is in the training data instead. Without it a policy
    # that was fine-tuned on traces without hints forgets in one round how to read one. Of the lengths that come late
    # it holds the hinted examples only: no policy sees them worked without a hint before they join.
    task = Addition(config.digits + config.late_digits)
    count = config.prompt_set * len(task.digits)
    problems = [task.problem(f"prompts-{config.seed}", i) for i in range(count)]
    unaided = [problem for problem in problems if digits_of(problem) in config.digits]
    return [demonstration(words, problem) for problem in unaided + [hinted(problem) for problem in problems]]


def one_round(config: StarConfig, round: int, base, policy, words, run: Run) -> tuple[Transformer, dict]:
    """Sample, filter, rationalize, fine-tune: the body of Algorithm 1's loop (its lines 3 to 7)."""
    started = time.perf_counter()
    task = Addition(digits=config.digits + config.late_digits)
    problems = round_problems(config, round)
    metrics: dict = {"round": round}

    def attempt(problems: list[Problem], temperature: float, name: str) -> list[Graded]:
        seed = seed_of(config.seed, round, name)
        rows = respond(policy, words, problems, budget=budget, temperature=temperature, seed=seed, name=name)
        marks = grade(task, words, rows)
        for n, share in accuracy_by(marks, digits_of).items():
            metrics[f"{name}/{n}"] = share
        for mark in {digits_of(mark.problem): mark for mark in marks}.values():  # one per length, to read
            run.sample(
                round,
                attempt=name,
                prompt=mark.problem.prompt,
                response=mark.text,
                right=mark.lenient,
                valid=mark.strict,
            )
        return marks

    marks = attempt(problems, config.temperature, "sample")
    kept = [demonstration(words, mark.problem, trimmed(mark.text)) for mark in marks if mark.lenient]
    valid = sum(mark.strict for mark in marks)
    failed = [mark.problem for mark in marks if not mark.lenient]
    second: list[Graded] = []
    if config.rationalize:
        second = attempt([hinted(problem) for problem in failed], config.temperature, "hinted")
    elif config.retry_temperature > 0:
        second = attempt(failed, config.retry_temperature, "retry")
    # The trace goes under the problem as it was first posed: the hint is gone, as if it had been found unaided.
    again = [
        demonstration(words, problem, trimmed(mark.text))
        for problem, mark in zip(failed, second, strict=False)
        if mark.lenient
    ]
    valid += sum(mark.strict for mark in second)
    metrics |= {
        "kept": len(kept) / len(problems),
        "kept_second": len(again) / len(problems),
        "valid_share_of_kept": valid / max(1, len(kept) + len(again)),
        "time/rollout": time.perf_counter() - started,
    }
    if not kept and not again:
        raise ValueError(
            f"round {round}: no trace was right, there is nothing to learn from: train the base longer (--base-steps)"
        )

    model = copy.deepcopy(base if config.restart else policy)
    # DIFFERS from the paper's code: the optimizer is fresh in each round, there are no pre-training moments to reload.
    steps = int(config.first_steps * config.step_growth ** (round - 1) + config.step_increment * (round - 1))
    losses: list[float] = []
    started = time.perf_counter()
    fixed = int(config.rows_per_step * config.prompt_share) if config.prompt_set else 0
    new_rows = in_epochs(kept + again, config.rows_per_step - fixed, seed_of(config.seed, "fit", round))
    old_rows = in_epochs(prompt_set(config, words), fixed, seed_of(config.seed, "prompts", round))

    def rows_of(step: int):
        return new_rows(step) + old_rows(step)

    fit(model, make_optimizer(model), rows_of, steps=steps, lr=config.lr, warmup=config.warmup, decay=config.decay,
        micro_tokens=config.micro_tokens, after=lambda step, values: losses.append(values["loss"]),
        name=f"round {round}")  # fmt: skip
    metrics |= {"steps": steps, "loss": losses[-1], "time/update": time.perf_counter() - started}
    return model, metrics


def report(config: StarConfig, metrics: dict, header: bool) -> str:
    """One row of the table: held-out accuracy per digit length, and how much of the round's data was kept."""
    names = ["round", *(f"{n} digits" for n in config.eval_digits), "kept", "hinted", "steps"]
    row = [str(metrics["round"]), *(f"{metrics[f'acc/{n}']:.2f}" for n in config.eval_digits)]
    row += [f"{metrics.get(key, 0):.2f}" for key in ("kept", "kept_second")] + [str(metrics.get("steps", 0))]
    widths = [max(6, len(name)) for name in names]
    lines = table([name.rjust(w) for name, w in zip(names, widths, strict=True)], [row]).split("\n")
    return "\n".join(lines if header else lines[1:])
