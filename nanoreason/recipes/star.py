"""STaR: Self-Taught Reasoner (Zelikman et al., 2022), Algorithm 1.

    base M                                        # knows easy problems, a little of harder ones
    for round 1..N:
        rows  = policy samples a response to each problem of the round
        kept  = rows whose answer is right
        if rationalize: the problems it got wrong again, with the answer as a hint;
                        keep those that are right now, stored WITHOUT their hint
        policy = M fine-tuned on kept             # from the base each time; only the data carries over

The filter is a policy gradient with reward 1 or 0 and no baseline; a rationalized trace is an off-policy sample.
Stream of Search improves itself in the same way, going on from its last policy: `--no-restart --no-rationalize`.
"""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from nanoreason.checkpoint import existing, load_checkpoint, load_training, save_checkpoint
from nanoreason.environment import (
    SAMPLED_GROUPS,
    by_difficulty,
    check_words,
    evaluate,
    judge,
    log_samples,
    mean,
    sample,
)
from nanoreason.learn import fit, in_epochs, make_optimizer
from nanoreason.model import Transformer
from nanoreason.rewards import Scored
from nanoreason.rollout import Problem, Rollout, Task, demonstration, seed_of
from nanoreason.run import (
    AnyRows,
    Count,
    Decay,
    LearningRate,
    Positive,
    Progress,
    Range,
    Rate,
    Rows,
    Run,
    RunConfig,
    Share,
    chosen,
    flatten,
    pick_device,
    say,
    table,
    task_flags,
)
from nanoreason.tasks import TASKS, Addition

Growth = Annotated[float, Range(0, 100)]


@dataclass
class StarConfig(RunConfig):
    """STaR: sample, filter, rationalize what failed, fine-tune the base; repeat."""

    out: str = "runs/star"  # folder of this run: config.json, metrics.jsonl, samples.jsonl, checkpoints
    # start
    base: str = "data/checkpoints/star-base"  # checkpoint folder of the base model
    # task
    task: Task = chosen(TASKS, Addition())  # what is practised, equally much of each difficulty
    late_task: Task | None = chosen(TASKS, None, like="task")  # problems that join the practice later
    late_from: Count = 0  # the round in which they join; 0: never
    # rounds
    rounds: Count = 6  # N; 0 only measures the base
    pool: Positive = 10000  # different problems of each difficulty (one digit: 81 sums, repeated)
    problems: Rows = 600  # how many of them, of each difficulty, are drawn for a round
    rationalize: bool = False  # hint at the answer of problems that were not solved
    temperature: Rate = 0.0  # of the first attempt; 0 is greedy
    retry_temperature: Rate = 0.0  # > 0: sample unsolved problems again at this temperature (without hints)
    restart: bool = True  # fine-tune the base in each round; --no-restart: go on from the last policy
    prompt_set: AnyRows = 10  # worked examples per difficulty that stay in every round's data, with and without hint
    prompt_share: Share = 0.125  # how much of an update they are
    # optimization
    first_steps: Positive = 300  # optimizer steps in round 1
    step_growth: Growth = 1.0  # factor per round; 1.2 on top of 40 is the paper's schedule without rationalization
    step_increment: Count = 20  # steps added per round; 20 on top of 300 is the paper's schedule with it
    rows_per_step: Rows = 16  # rows of an update
    lr: LearningRate = 1e-3  # peak learning rate
    decay: Decay = "linear"  # of the learning rate in a round: none (as in the paper), cosine or linear
    warmup: Count = 50  # steps of warm-up
    micro_tokens: Positive = 1024  # tokens of a micro-batch: speed, not the result; small ones stay in a CPU cache
    # evaluation
    eval_task: Task | None = chosen(TASKS, None, like="task")  # what is tested; empty: the task
    eval_problems: Rows = 60  # held-out problems of each difficulty


PRESETS = {
    "cpu": StarConfig(),
    "tiny": StarConfig(
        task=Addition((1, 2)), rounds=2, pool=64, problems=32, first_steps=4, step_increment=1, warmup=2,
        eval_problems=8,
    ),
    "gpu": StarConfig(rounds=16, problems=2000, first_steps=600, rows_per_step=64, micro_tokens=32768,
                      eval_problems=500),
}  # fmt: skip


def check_config(config: StarConfig) -> None:
    """What no single setting tells; ValueError says in one line what is wrong."""
    if config.rationalize:
        config.task.hint(config.task.problem("train-0", 0))  # a task without hints says so
        if config.retry_temperature:
            raise ValueError(
                f"--retry-temperature {config.retry_temperature}: with --rationalize a failed problem is hinted instead"
            )
    if config.problems > config.pool:
        raise ValueError(f"--problems {config.problems} cannot be drawn from a --pool of {config.pool}")
    if bool(config.late_task) != bool(config.late_from):
        raise ValueError("--late-task and --late-from, the round in which it joins, need each other")
    if config.prompt_set and fixed_rows(config) == config.rows_per_step:
        raise ValueError(
            f"--prompt-share {config.prompt_share} leaves none of --rows-per-step {config.rows_per_step} to new traces"
        )
    if (steps := steps_of(config, max(1, config.rounds))) < 1 or steps > MOST_STEPS:
        raise ValueError(
            f"--step-growth {config.step_growth} and --step-increment {config.step_increment} make {steps:.3g} steps "
            f"in round {config.rounds}: at least 1 and at most {MOST_STEPS} are possible"
        )


MOST_STEPS = 10**9


def steps_of(config: StarConfig, round: int) -> float:
    """Optimizer steps of a round 1..N, before they are cut to a whole number; inf is beyond all numbers."""
    try:
        return config.first_steps * config.step_growth ** (round - 1) + config.step_increment * (round - 1)
    except OverflowError:
        return math.inf


def fixed_rows(config: StarConfig) -> int:
    """Of the rows of an update, those of the worked examples."""
    return int(config.rows_per_step * config.prompt_share) if config.prompt_set else 0


def run(config: StarConfig) -> dict:
    """All rounds; returns the last line of metrics. The policy is left in OUT/policy."""
    check_config(config)
    device = pick_device(config.device)
    base, tokenizer = load_checkpoint(config.base, device)
    check_words(tokenizer, task=config.task, late_task=config.late_task, eval_task=config.eval_task)
    run = Run(config)
    policy, first, logged = base, 0, None
    if existing(run.folder / "policy"):
        policy, _ = load_checkpoint(run.folder / "policy", device)
        state = load_training(run.folder / "policy", policy, counter="round")
        first, logged = state["round"] + 1, state.get("logged")
    run.rewind(first - 1, logged)
    with Progress(config.rounds, "star", "rounds", done=max(0, first - 1)) as progress:
        for round in range(first, config.rounds + 1):
            metrics = {"round": round}
            if round > 0:
                policy, metrics = one_round(config, round, base, policy, tokenizer, run)
            metrics |= evaluate(
                config.eval_task or config.task, policy, tokenizer, config.eval_problems, run=run, step=round
            )
            run.log(round, **metrics)
            save_checkpoint(run.folder / "policy", policy, tokenizer, state={"round": round, "logged": run.logged},
                            extra=task_flags(flatten(config)))  # fmt: skip
            say(report(metrics, header=round == first))
            if round > 0:
                progress.update()
    run.close()
    return run.last_line()


def levels_of(config: StarConfig, round: int) -> list[Task]:
    """One task per difficulty that is practised in this round."""
    late = config.late_task.levels() if config.late_task and 0 < config.late_from <= round else []
    return config.task.levels() + late


def round_problems(config: StarConfig, round: int) -> list[Problem]:
    """This round's problems: equally many of each difficulty, drawn from the pool without repeats within the round."""
    problems = []
    for k, level in enumerate(levels_of(config, round)):
        indices = random.Random(seed_of(config.seed, "round", round, k)).sample(range(config.pool), config.problems)
        problems += [level.problem(f"train-{k}", index) for index in sorted(indices)]
    return problems


def prompt_set(config: StarConfig, tokenizer) -> list[Rollout]:
    """The worked examples P, the same in every round."""
    # DIFFERS from the paper: there P stands in the prompt whenever the policy samples, with hints when it rationalizes.
    # A model this small cannot read a prompt of ten examples, so P is in the training data instead. Without it a policy
    # that was fine-tuned on traces without hints forgets in one round how to read one. Of the problems that come late
    # it holds the hinted examples only: no policy sees them worked without a hint before they join.
    problems = []
    for k, level in enumerate(levels_of(config, config.late_from)):
        indices = range(k * config.prompt_set, (k + 1) * config.prompt_set)
        examples = [level.problem(f"prompts-{config.seed}", i) for i in indices]
        problems += examples if k < len(config.task.levels()) else []
        problems += [level.hint(problem) for problem in examples] if has_hints(config.task) else []
    return [demonstration(tokenizer, problem) for problem in problems]


def has_hints(task: Task) -> bool:
    return getattr(type(task), "hint", Task.hint) is not Task.hint


def right_traces(
    config: StarConfig, tokenizer, problems: list[Problem], attempt: Callable[[list[Problem], float, str], list[Scored]]
) -> tuple[list[Rollout], list[Rollout], list[Scored]]:
    """Filter and rationalize (lines 3 to 6 of Algorithm 1): the right traces of the first attempt as demonstrations,
    those of the second, and all that was attempted.

    attempt(problems, temperature, name) -> one response to each, scored; the names are sample, hinted and retry
    """
    task = config.task
    # <exercise star>
    scored = attempt(problems, config.temperature, "sample")
    kept = [demonstration(tokenizer, one.row.problem, task.clean(one.text)) for one in scored if one.right]
    failed = [one.row.problem for one in scored if not one.right]
    second: list[Scored] = []
    if config.rationalize:
        second = attempt([task.hint(problem) for problem in failed], config.temperature, "hinted")
    elif config.retry_temperature > 0:
        second = attempt(failed, config.retry_temperature, "retry")
    # The trace goes under the problem as it was first posed: the hint is gone, as if it had been found unaided.
    again = [
        demonstration(tokenizer, problem, task.clean(one.text))
        for problem, one in zip(failed, second, strict=False)
        if one.right
    ]
    return kept, again, [*scored, *second]
    # </exercise star>


def one_round(config: StarConfig, round: int, base, policy, tokenizer, run: Run) -> tuple[Transformer, dict]:
    """Sample, filter, rationalize, fine-tune: the body of Algorithm 1's loop (its lines 3 to 7)."""
    started = time.perf_counter()
    task = config.task
    problems = round_problems(config, round)
    metrics: dict = {"round": round}

    def attempt(problems: list[Problem], temperature: float, name: str) -> list[Scored]:
        groups = sample(task, policy, tokenizer, problems, temperature=temperature,
                        seed=seed_of(config.seed, round, name), name=name)  # fmt: skip
        scored = judge(task, tokenizer, groups)
        levels = by_difficulty(task, scored)
        metrics.update({f"{name}/{n}": mean([one.verdict for one in some]) for n, some in levels.items()})
        log_samples(run, round, name, task, tokenizer, groups, count=SAMPLED_GROUPS * len(levels))
        return scored

    def valid(one: Scored) -> float:
        return one.verdict * task.work_is_valid(one.row.problem, one.text)

    kept, again, attempts = right_traces(config, tokenizer, problems, attempt)
    metrics |= {
        "kept": len(kept) / len(problems),
        "kept_second": len(again) / len(problems),
        "valid_share_of_kept": sum(map(valid, attempts)) / max(1, len(kept) + len(again)),
        "time/rollout": time.perf_counter() - started,
    }
    if not kept and not again and not config.restart:  # the next problems may be luckier
        return policy, metrics | {"steps": 0}
    if not kept and not again:
        raise ValueError(
            f"round {round}: no trace was right, there is nothing to learn from: a base that knows more (--base), or "
            "easier problems (--task...)"
        )

    model = copy.deepcopy(base if config.restart else policy)
    # DIFFERS from the paper's code: the optimizer is fresh in each round, there are no pre-training moments to reload.
    steps = int(steps_of(config, round))
    started = time.perf_counter()
    fixed = fixed_rows(config)
    new_rows = in_epochs(kept + again, config.rows_per_step - fixed, seed_of(config.seed, "fit", round))
    old_rows = in_epochs(prompt_set(config, tokenizer), fixed, seed_of(config.seed, "prompts", round))
    for _, values in fit(
        model, make_optimizer(model), lambda step: new_rows(step) + old_rows(step), steps=steps, lr=config.lr,
        warmup=config.warmup, decay=config.decay, micro_tokens=config.micro_tokens, name=f"round {round}",
    ):  # fmt: skip
        metrics["loss"] = values["loss"]
    metrics |= {"steps": steps, "time/update": time.perf_counter() - started}
    return model, metrics


def report(metrics: dict, header: bool) -> str:
    """One row of the table: held-out accuracy by difficulty, and how much of the round's data was kept."""
    tested = [name for name in metrics if name.startswith("acc/")]
    names = ["round", *tested, "kept", "hinted", "steps"]
    row = [str(metrics["round"]), *(f"{metrics[name]:.2f}" for name in tested)]
    row += [f"{metrics.get(key, 0):.2f}" for key in ("kept", "kept_second")] + [str(metrics.get("steps", 0))]
    widths = [max(6, len(name)) for name in names]
    lines = table([name.rjust(w) for name, w in zip(names, widths, strict=True)], [row]).split("\n")
    return "\n".join(lines if header else lines[1:])
