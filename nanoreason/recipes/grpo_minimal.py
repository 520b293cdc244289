"""GRPO on one screen: start here. Everything that `grpo.py` adds is a switch on these lines.

    sample G responses to each of P problems -> reward 1 or 0 -> advantage within the group -> one step on -A log p

With one optimizer step per rollout the policy is still the one that sampled, so the ratio p / p_old of PPO is 1 and the
clip never acts: what is left of GRPO's loss has the gradient of -A * log p, averaged over each row, then over rows.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Annotated

import torch

from nanoreason.checkpoint import load_checkpoint, save_checkpoint
from nanoreason.environment import check_words, log_samples, sample
from nanoreason.learn import is_zero_variance, make_optimizer, token_weights, update
from nanoreason.rollout import Batch, Rollout, Task, response_text, seed_of
from nanoreason.run import (
    ROWS,
    LearningRate,
    Positive,
    Range,
    Rows,
    Run,
    RunConfig,
    check_rows,
    chosen,
    flatten,
    learning_rate,
    pick_device,
    say,
    task_flags,
)
from nanoreason.tasks import TASKS, Addition


@dataclass
class GrpoMinimalConfig(RunConfig):
    """GRPO without any switch: the smallest code that learns from its own verified answers."""

    out: str = "runs/grpo-minimal"  # folder of this run: config.json, metrics.jsonl, samples.jsonl, policy
    base: str = "data/checkpoints/star-base"  # checkpoint folder of a model that sometimes succeeds
    task: Task = chosen(TASKS, Addition((4,)))  # what is practised; the base adds four digits now and then
    steps: Positive = 20  # rollouts, one optimizer step each
    prompts: Rows = 16  # P, problems of a rollout
    group_size: Annotated[int, Range(2, ROWS)] = 16  # G, responses to each problem
    max_new_tokens: Positive = 96  # response tokens after which a row is cut
    lr: LearningRate = 1e-4  # learning rate after five steps of warm-up


PRESETS = {"cpu": GrpoMinimalConfig(), "tiny": GrpoMinimalConfig(steps=2, prompts=4, group_size=4)}


SHOWN = 20  # held-out problems that are answered before and after


def loss(logprobs: torch.Tensor, batch: Batch) -> torch.Tensor:
    """-ratio * A per token (B, T); the ratio is 1, but its gradient is that of log p."""
    # <exercise grpo>
    ratio = (logprobs - logprobs.detach()).exp()
    return -ratio * batch.advantages
    # </exercise grpo>


def grpo_step(
    config: GrpoMinimalConfig, step: int, policy, tokenizer, optimizer
) -> tuple[list[list[Rollout]], dict[str, float]]:
    """One rollout and one update; step counts from 0. Returns the P groups of G rows, and metrics."""
    task, P, G = config.task, config.prompts, config.group_size
    problems = [task.problem(f"rl-{config.seed}", step * P + i) for i in range(P)]
    lr = learning_rate(step, config.steps, config.lr, warmup=5, decay="none")
    # <exercise grpo>
    groups = sample(task, policy, tokenizer, problems, group_size=G, max_new_tokens=config.max_new_tokens,
                    seed=seed_of(config.seed, "rollout", step, 0))  # fmt: skip
    for group in groups:
        for row in group:
            row.reward = task.reward(row.problem, response_text(tokenizer, row))
        rewards = [row.reward for row in group]
        mean, std = statistics.fmean(rewards), statistics.pstdev(rewards)
        for row in group:
            # All equal: nothing to learn from, and std may be 1e-17 where the mean is rounded.
            row.advantage = 0.0 if is_zero_variance(rewards) else (row.reward - mean) / std
    rows = [row for group in groups for row in group]
    weights = token_weights(rows, "sequence")  # 1 / (rows * tokens of the row)
    metrics = update(policy, optimizer, rows, loss, lr=lr, weights=weights, micro_tokens=2048)
    return groups, metrics | {"reward": statistics.fmean(row.reward for row in rows)}
    # </exercise grpo>


def answers(config: GrpoMinimalConfig, policy, tokenizer) -> list[tuple[str, str, float]]:
    """(prompt, greedy response, verdict) of some held-out problems."""
    groups = sample(config.task, policy, tokenizer, config.task.test_problems(SHOWN), temperature=0.0,
                    max_new_tokens=config.max_new_tokens)  # fmt: skip
    said = [(row.problem, response_text(tokenizer, row)) for (row,) in groups]
    return [(problem.prompt, text, config.task.reward(problem, text)) for problem, text in said]


def before_and_after(before: list[tuple[str, str, float]], after: list[tuple[str, str, float]]) -> str:
    """The first problem that is solved now and was not before, if there is one; and how many are solved."""
    pairs = list(zip(before, after, strict=True))
    (prompt, first, was_right), (_, last, is_right) = next((p for p in pairs if p[1][2] > p[0][2]), pairs[0])
    solved = [f"{sum(right for *_, right in some):.0f} of {len(some)}" for some in (before, after)]
    return (
        f"\n{prompt.strip()}\n\nbefore ({'right' if was_right else 'wrong'}):\n{first.strip()}\n\n"
        f"after ({'right' if is_right else 'wrong'}):\n{last.strip()}\n\n"
        f"held-out problems solved greedily: {solved[0]} before, {solved[1]} after"
    )


def run(config: GrpoMinimalConfig) -> dict:
    """All steps; the policy is left in OUT/policy."""
    check_rows(prompts=config.prompts, group_size=config.group_size)
    policy, tokenizer = load_checkpoint(config.base, pick_device(config.device))
    check_words(tokenizer, task=config.task)
    run, optimizer, metrics = Run(config), make_optimizer(policy), {}
    before = answers(config, policy, tokenizer)
    run.rewind(-1)  # there are no checkpoints on the way: a run that was stopped is done again
    for step in range(config.steps):
        groups, metrics = grpo_step(config, step, policy, tokenizer, optimizer)
        log_samples(run, step + 1, "rollout", config.task, tokenizer, groups, rewarded=True)
        run.log(step + 1, **metrics)
        say(f"step {step + 1}: reward {metrics['reward']:.3f}")
    save_checkpoint(run.folder / "policy", policy, tokenizer, extra=task_flags(flatten(config)))
    say(before_and_after(before, answers(config, policy, tokenizer)))
    run.close()
    return metrics
