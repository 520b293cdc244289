"""Self-improvement of a searcher (Gandhi et al., 2024, section 5): it practises on problems and learns from itself.

    star    for round 1..3:      sample one trajectory per training problem at temperature 0.8
                                 keep those that solve their problem; fine-tune on them
    pg      for iteration 1..N:  sample trajectories at temperature 1;  R = 1 - nodes / max_nodes if solved, else 0
                                 A = (R - mean R) / std R  over the batch, or over the samples of the same problem
                                 policy-gradient step with PPO's clipped ratio
    apa     as pg, but           loss = mean over tokens of (log pi - log pi_ref - A / 2)^2
                                 and the reference pi_ref is replaced by the policy now and then

STaR's reward is 1 for any solution; that of the other two is higher for the shorter search.
"""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import dataclass, replace

import torch

from nanoreason.checkpoint import load_checkpoint, resume, save_checkpoint
from nanoreason.learn import (
    Loss,
    clipped_policy_loss,
    fit,
    group_advantages,
    in_epochs,
    make_optimizer,
    score,
    update,
)
from nanoreason.model import Transformer
from nanoreason.rollout import Batch, Rollout, response_text, seed_of
from nanoreason.run import Run, learning_rate, pick_device, say
from nanoreason.tokenizer import TextTokenizer
from nanoreason.trajectories import SPLITS, SearchConfig, attempts, measure, summary

METHODS = ("star", "pg", "apa")


@dataclass
class SosImproveConfig(SearchConfig):
    """Self-improvement of a trained searcher on Countdown: STaR, policy gradient, or advantage-induced alignment."""

    out: str = "runs/sos-improve"  # folder of this run: config.json, metrics.jsonl, samples.jsonl, checkpoints
    base: str = ""  # checkpoint folder of the searcher, as left by the recipe sos
    method: str = "star"  # star, pg or apa
    rounds: int = 3  # star: rounds; pg and apa: iterations
    problems: int = 1500  # training problems of a round, never the same index twice
    group_size: int = 1  # trajectories per problem; more than one: advantages are relative to those of the same problem
    temperature: float = 0.8  # of these trajectories
    epochs: int = 4  # passes over a round's trajectories
    rows_per_step: int = 32  # trajectories of an update
    lr: float = 3e-4  # star: peak of each round, cosine to a tenth; else constant
    warmup: int = 10  # steps of warm-up
    clip: float = 0.2  # pg: how far the ratio may move
    reference_every: int = 20  # apa: iterations between replacements of the reference
    micro_tokens: int = 640  # tokens of a micro-batch: speed, not the result; small ones stay in a CPU cache
    save_every: int = 5  # rounds between checkpoints of pg and apa
    eval_every: int = 1  # rounds between tests on held-out problems


STAR = SosImproveConfig()
POLICY_GRADIENT = SosImproveConfig(
    method="pg", rounds=40, problems=32, group_size=8, temperature=1.0, epochs=1, rows_per_step=256, lr=2e-4,
    eval_every=20,
)  # fmt: skip
GPU = dict(inputs=4, eval_problems=500, micro_tokens=65536)
PRESETS = {
    "cpu": STAR,
    "pg": POLICY_GRADIENT,
    "tiny": SosImproveConfig(
        max_input=9, targets=(10, 40), eval_problems=6, hard_problems=4, rounds=2, problems=8, epochs=1,
        rows_per_step=4, warmup=1, reference_every=2, save_every=2,
    ),
    "gpu": replace(STAR, **GPU, problems=5000, rows_per_step=64, lr=1e-4),
    "gpu-pg": replace(POLICY_GRADIENT, **GPU, problems=64, lr=1e-4),
}  # fmt: skip


def run(config: SosImproveConfig) -> dict:
    """All rounds; returns the last line of metrics. The policy is left in OUT/policy."""
    if config.method not in METHODS:
        raise ValueError(f"--method {config.method}: one of {', '.join(METHODS)}")
    if not config.base:
        raise ValueError(
            "--base is needed: the checkpoint folder of a searcher, as `train.py sos` leaves in OUT/policy"
        )
    run = Run(config)
    policy, words = load_checkpoint(config.base, pick_device(config.device))
    # DIFFERS from the paper's code: STaR's optimizer is fresh in each round, so no moments are kept.
    optimizer = None if config.method == "star" else make_optimizer(policy)
    first = resume(run.folder / "policy", policy, optimizer).get("round", 0)
    run.rewind(first)
    reference = None
    metrics: dict = {}
    for round in range(first, config.rounds):
        done = round + 1
        if config.method == "apa" and round % config.reference_every == 0:
            # DIFFERS from the paper: the reference is replaced on a schedule, not when progress stalls.
            reference = copy.deepcopy(policy)
            save_checkpoint(run.folder / "reference", reference, words)
        elif config.method == "apa" and reference is None:
            reference, _ = load_checkpoint(run.folder / "reference", policy.device)
        rows, metrics = practise(config, round, policy, words, run)
        started = time.perf_counter()
        if config.method == "star":
            metrics |= imitate(config, round, policy, rows)
        else:
            metrics |= reinforce(config, round, policy, optimizer, rows, reference)
        metrics["time/update"] = time.perf_counter() - started
        if done == config.rounds or done % config.eval_every == 0:
            metrics |= measure(config, policy, words, full=done == config.rounds)
            say(report(done, metrics))
        run.log(done, round=done, **metrics)
        replaced_next = config.method == "apa" and done % config.reference_every == 0
        if config.method == "star" or replaced_next or done == config.rounds or done % config.save_every == 0:
            save_checkpoint(run.folder / "policy", policy, words, optimizer, {"round": done})
    run.close()
    return metrics


def practise(
    config: SosImproveConfig, round: int, policy: Transformer, words: TextTokenizer, run: Run
) -> tuple[list[Rollout], dict]:
    """Sampled trajectories of the round's problems, each with its reward."""
    started = time.perf_counter()
    task = config.task()
    problems = [task.problem("train", i) for i in range(round * config.problems, (round + 1) * config.problems)]
    rows, readings = attempts(
        policy, words, task, problems, group_size=config.group_size, temperature=config.temperature,
        seed=seed_of(config.seed, "practice", round), name=f"round {round + 1}",
    )  # fmt: skip
    for row, reading in zip(rows, readings, strict=True):
        row.reward = float(reading.solved) if config.method == "star" else reading.rating
    text = response_text(words, rows[0])
    run.sample(round + 1, prompt=rows[0].problem.prompt, response=text, reward=rows[0].reward)
    metrics = {f"train/{name}": value for name, value in summary(rows, readings).items()}
    metrics["reward"] = statistics.fmean(row.reward for row in rows)
    return rows, metrics | {"time/rollout": time.perf_counter() - started}


def imitate(config: SosImproveConfig, round: int, policy: Transformer, rows: list[Rollout]) -> dict:
    """STaR: fine-tune the policy on its own successes."""
    # DIFFERS from STaR on arithmetic: no rationalization (as in the paper), and rounds go on from the last policy.
    kept = [row for row in rows if row.reward > 0 and row.stop_reason == "eos"]
    if not kept:
        return {"kept": 0.0, "steps": 0}  # nothing was solved, so there is nothing to learn
    losses: list[float] = []
    steps = max(1, config.epochs * len(kept) // config.rows_per_step)
    fit(policy, make_optimizer(policy), in_epochs(kept, config.rows_per_step, seed_of(config.seed, "fit", round)),
        steps=steps, lr=config.lr, warmup=config.warmup, decay=True, micro_tokens=config.micro_tokens,
        after=lambda step, values: losses.append(values["loss"]), name=f"round {round + 1}")  # fmt: skip
    return {"kept": len(kept) / len(rows), "steps": steps, "loss": losses[-1]}


def reinforce(
    config: SosImproveConfig, round: int, policy: Transformer, optimizer: torch.optim.Optimizer,
    rows: list[Rollout], reference: Transformer | None,
) -> dict:  # fmt: skip
    """Policy improvement: raise what searched better than the others did, lower what searched worse."""
    # DIFFERS from the paper: the baseline is the mean reward of the batch or of the group; there is no critic.
    group = config.group_size if config.group_size > 1 else len(rows)
    for row, advantage in zip(rows, group_advantages([row.reward for row in rows], group), strict=True):
        row.advantage = advantage
    if reference is not None:
        for row, logprobs in zip(rows, score(reference, rows, config.temperature, config.micro_tokens), strict=True):
            row.old_logprobs = logprobs
    rows_of = in_epochs(rows, config.rows_per_step, seed_of(config.seed, "order", round))
    steps = max(1, config.epochs * len(rows) // config.rows_per_step)
    loss_of = apa_loss if config.method == "apa" else ppo_loss(config.clip)
    for step in range(steps):
        lr = learning_rate(round * steps + step, config.rounds * steps, config.lr, config.warmup, decay=False)
        metrics = update(policy, optimizer, rows_of(step), loss_of, lr=lr, temperature=config.temperature,
                         micro_tokens=config.micro_tokens)  # fmt: skip
    return {**metrics, "learning_rate": lr}


def ppo_loss(clip: float) -> Loss:
    return lambda logprobs, batch: clipped_policy_loss(logprobs, batch.old_logprobs, batch.advantages, clip, clip)


def apa_loss(logprobs: torch.Tensor, batch: Batch) -> torch.Tensor:
    """(log pi - log pi_ref - A / 2)^2, per token (B, T) (advantage-induced policy alignment, Zhu et al., 2023).

    `batch.old_logprobs` are those of the reference. The pull is towards pi_ref * exp(A / 2), so it ends there: the
    policy is kept near the reference without a clip or a penalty.
    """
    return (logprobs - batch.old_logprobs - 0.5 * batch.advantages).square()


def report(done: int, metrics: dict) -> str:
    shares = ", ".join(f"{split} {metrics[f'acc/{split}']:.2f}" for split in SPLITS)
    return f"round {done}: reward {metrics['reward']:.2f} in practice; solved of {shares}"
