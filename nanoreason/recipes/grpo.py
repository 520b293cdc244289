"""GRPO: group relative policy optimization (DeepSeekMath, 2402.03300; DeepSeek-R1, 2501.12948), and its family.

    for step 1..S:
        G responses from the policy to each of P problems, and a reward r_i for each           rollout
        A_i = (r_i - mean(r_1..r_G)) / std(r_1..r_G)                                           compare
        for each minibatch of the rollout: an optimizer step on                                improve
            1/rows sum_i 1/|o_i| sum_t  -min(ratio * A_i, clip(ratio, 1 - clip_low, 1 + clip_high) * A_i)
                                        + kl_coef * (q/p - log q/p - 1)
            ratio = p / p when it was sampled;  p, q: the probabilities that policy and reference give to token t
        after every K updates: reference = policy

This is DeepSeekMath eq. 3 with the sign reversed; |o_i| counts the EOS. R1 writes the same with the ratio of whole
outputs and leaves 1/|o_i| out; like all released code this one has a ratio per token. There is no critic: the group's
mean is the baseline.

The loss is no measure of progress. With one update per rollout it is about 0 by algebra (the ratio is 1, advantages
have mean 0) while its gradient is not: watch `reward`. `grad_norm`, `update_ratio` and `frac_reward_zero_std` tell
"0 by algebra" from "0 because nothing is learnt".
"""

from __future__ import annotations

import copy
import math
import random
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from nanoreason.checkpoint import existing, load_checkpoint, resume, save_checkpoint
from nanoreason.evaluate import pass_at_k
from nanoreason.learn import PolicyLoss, group_advantages, make_optimizer, score, token_weights, update
from nanoreason.model import Transformer
from nanoreason.practice import PracticeConfig, describe, is_flat, judge, measure, posed, sample
from nanoreason.rollout import Rollout, response_text, seed_of
from nanoreason.run import Run, learning_rate, pick_device, read_jsonl, say, table
from nanoreason.tokenizer import TextTokenizer

# What each algorithm sets. DAPO's soft punishment replaces its overlong filter; CISPO's bound is not published, 1 + 4
# is the one recommended in TRL.
GRPO = dict(average="sequence", divide_by="group", baseline="group", ratio="token", clip_low=0.2, clip_high=0.2,
            kl_coef=0.001, max_refills=0, overlong_share=0.0)  # fmt: skip
ALGORITHMS: dict[str, dict] = {
    "grpo": GRPO,
    "dr_grpo": GRPO | dict(average="constant", divide_by="none", kl_coef=0.0),
    "dapo": GRPO | dict(average="token", clip_high=0.28, kl_coef=0.0, max_refills=4, overlong_share=0.2),
    "gspo": GRPO | dict(ratio="sequence", clip_low=3e-4, clip_high=4e-4, kl_coef=0.0),
    "cispo": GRPO | dict(average="token", ratio="detached", clip_high=4.0, kl_coef=0.0),
    "reinforce": GRPO | dict(average="constant", divide_by="none", baseline="none", ratio="detached", clip_high=0.0,
                             kl_coef=0.0),
}  # fmt: skip
WORDS = {"average": ("token", "sequence", "constant"), "divide_by": ("group", "batch", "none"),
         "baseline": ("group", "none"), "ratio": ("token", "sequence", "detached"), "kl_estimator": ("k1", "k2", "k3"),
         "algorithm": tuple(ALGORITHMS), "length_reward": ("none", "classic", "cosine", "lcpo"),
         "repetition": ("none", "dense", "sparse"), "task": ("addition", "thinking", "countdown"),
         "asked": ("none", "exact", "max", "both")}  # fmt: skip


@dataclass
class GrpoConfig(PracticeConfig):
    """GRPO and its family on digit addition, from a base that sometimes succeeds."""

    out: str = "runs/grpo"  # folder of this run: config.json, metrics.jsonl, samples.jsonl, checkpoints
    base: str = ""  # checkpoint folder of the base model, as `train.py sft` leaves in OUT/policy; needed
    overlong_share: float = -1  # soft punishment falling from 0 to -1 in the last share of max_new_tokens; 0: none
    # rollouts
    steps: int = 100  # rollouts
    prompts: int = 16  # P, problems of a rollout
    group_size: int = 16  # G, responses to each problem
    later_max_new_tokens: int = 0  # the budget from step later_from on (R1-Zero's was doubled at step 8,200)
    later_from: int = 0  # the first step with it; 0: never
    preflight: int = 32  # problems on which the base is measured before the first step; 0: none
    # the algorithm; what is left at -1 or empty is filled in by --algorithm
    algorithm: str = "grpo"  # grpo, dr_grpo, dapo, gspo, cispo or reinforce: a name for the switches listed above
    average: str = ""  # loss over tokens: sequence (mean of rows' means), token (of all tokens), constant (no lengths)
    baseline: str = ""  # what is subtracted from the reward: group (its mean) or none
    divide_by: str = ""  # standard deviation of the rewards: group, batch or none
    ratio: str = ""  # policy / old policy: token, sequence (of whole rows) or detached (only weighs the gradient)
    clip_low: float = -1  # ratios below 1 - this stop the gradient of wrong tokens; 0: no clip
    clip_high: float = -1  # ratios above 1 + this stop the gradient of right tokens; 0: no clip
    cap: float = 0.0  # two-sided clip: larger ratios stop the gradient of wrong tokens too (INTELLECT-2: 4); 0: none
    kl_coef: float = -1  # beta, weight of KL(policy || reference); 0: no reference
    kl_estimator: str = "k3"  # k3 or k2 in the loss, k1 in the reward
    kl_correction: bool = False  # weigh k2 or k3 by the ratio: exact gradient of the KL when off-policy
    reference_every: int = 400  # K, updates between replacements of the reference by the policy; 0: never
    entropy_coef: float = 0.0  # weight of the entropy bonus
    sampler_cap: float = 0.0  # weigh tokens by min(old policy / sampler, this) (truncated importance, e.g. 2); 0: no
    max_refills: int = -1  # dynamic sampling: how often groups of equal rewards are replaced by new problems; 0: never
    overlong_filter: bool = False  # rows that were cut are not learnt from
    # updates
    updates_per_rollout: int = 1  # minibatches that a rollout is dealt out into, one optimizer step each
    epochs: int = 1  # passes over a rollout (GRPO's mu)
    lr: float = 1e-4  # learning rate after warm-up; at 1e-3 a small model loses in ten steps what it knew
    decay: bool = False  # cosine to a tenth of it; --no-decay: constant
    warmup: int = 5  # updates of warm-up
    micro_tokens: int = 2048  # tokens of a micro-batch: memory and speed, not the result
    max_grad_norm: float = 1.0  # the gradient is scaled down to this norm
    # measuring
    save_every: int = 10  # steps between checkpoints
    eval_every: int = 20  # steps between tests on held-out sums, and lines of the table; 0: only at the end


GrpoConfig.__doc__ += " Algorithms: " + "; ".join(
    f"{name}: {', '.join(f'{switch} {value}' for switch, value in switches.items())}"
    for name, switches in ALGORITHMS.items()
)

PRESETS = {
    "cpu": GrpoConfig(),
    "tiny": GrpoConfig(
        digits=(1,), steps=4, prompts=4, group_size=4, max_new_tokens=32, preflight=8, warmup=1, save_every=2,
        eval_every=2, eval_digits=(1,), eval_problems=8,
    ),
    "gpu": GrpoConfig(
        digits=(1, 2, 3, 4, 5), steps=300, prompts=64, max_new_tokens=96, preflight=64, micro_tokens=65536,
        sampler_cap=2.0, eval_digits=(1, 2, 3, 4, 5), eval_problems=500,
    ),
}  # fmt: skip


def with_algorithm(config: GrpoConfig) -> GrpoConfig:
    """The settings with every switch filled in: what was given explicitly stays, the rest is the algorithm's."""
    if config.algorithm not in ALGORITHMS:
        raise ValueError(f"--algorithm {config.algorithm}: one of {', '.join(ALGORITHMS)}")
    unset = {k: v for k, v in ALGORITHMS[config.algorithm].items() if getattr(config, k) in ("", -1)}
    config = replace(config, **unset)
    for name, words in WORDS.items():
        if getattr(config, name) not in words:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(config, name)}: one of {', '.join(words)}")
    if not config.base:
        raise ValueError(
            "--base is needed: the checkpoint folder of a model that sometimes succeeds, because reinforcement only "
            "strengthens what is sampled. `train.py sft --steps 150 --out runs/base` leaves one in runs/base/policy"
        )
    if config.baseline == "group" and config.group_size < 2:
        raise ValueError("--group-size 1 compares nothing: use at least 2, or --baseline none")
    if config.temperature <= 0:
        raise ValueError(f"--temperature {config.temperature}: all samples of a group would be equal, use more than 0")
    if config.unsolvable and config.task == "countdown":
        raise ValueError("--unsolvable is about sums: Countdown's answers are judged by what they come to")
    if config.length_margin >= config.max_new_tokens:
        raise ValueError(f"--length-margin {config.length_margin} leaves nothing of --max-new-tokens")
    if config.length_reward == "lcpo" and config.asked == "none":
        raise ValueError("--length-reward lcpo needs --asked exact, max or both: the number that it rewards")
    if config.asked != "none" and config.task != "thinking":
        raise ValueError(f"--asked {config.asked} needs --task thinking: its vocabulary has the words")
    if config.repetition != "none" and not 1 <= config.repetition_n <= config.max_new_tokens:
        raise ValueError(f"--repetition-n {config.repetition_n}: from 1 to --max-new-tokens {config.max_new_tokens}")
    if config.template == "none":
        for name in ("format_weight", "eval_samples"):
            if getattr(config, name):
                raise ValueError(
                    f"--{name.replace('_', '-')} needs --template skeleton or r1: without tags there is no format and "
                    "no answer to vote for"
                )
        if config.task != "addition":
            raise ValueError(f"--task {config.task} needs --template skeleton or r1: its answers are in tags")
    if not (config.accuracy_weight or config.format_weight):
        raise ValueError("--accuracy-weight and --format-weight are both 0: there is nothing to learn")
    return config


def run(config: GrpoConfig) -> dict:
    """All steps; returns the last line of metrics. The policy is left in OUT/policy, the reference in OUT/reference."""
    config = with_algorithm(config)
    policy, words = load_checkpoint(config.base, pick_device(config.device))
    fresh = existing(Path(config.out) / "policy") is None
    measured = preflight(config, policy, words) if fresh and config.preflight else {}
    run = Run(config)
    optimizer = make_optimizer(policy)
    state = resume(run.folder / "policy", policy, optimizer) or {"step": 0, "num_tokens": 0}
    run.rewind(-1 if fresh else state["step"])
    if fresh and config.eval_samples:
        measured |= measure(with_cap(config, 0), policy, words)
    if measured:
        run.log(0, **measured)
    reference, header = None, True
    for step in range(state["step"], config.steps):
        done = step + 1
        if config.kl_coef and replaces_reference(config, step):
            reference = copy.deepcopy(policy)
            save_checkpoint(run.folder / "reference", reference, words)
        elif config.kl_coef and reference is None:
            reference, _ = load_checkpoint(run.folder / "reference", policy.device)
        now = with_cap(config, done)
        started = time.perf_counter()
        rows, metrics = rollout(now, step, policy, words, run)
        sampled = time.perf_counter()
        compare(now, policy, reference, rows)
        compared = time.perf_counter()
        metrics |= improve(now, step, policy, optimizer, rows)
        state = {"step": done, "num_tokens": state["num_tokens"] + metrics["tokens"]}
        metrics |= {
            "num_tokens": state["num_tokens"],
            "tok_per_s": metrics.pop("tokens") / (sampled - started),
            "time/rollout": sampled - started,
            "time/score": compared - sampled,
            "time/update": time.perf_counter() - compared,
        }
        if done == config.steps or (config.eval_every and done % config.eval_every == 0):
            metrics |= measure(now, policy, words)
            say(report(config, done, metrics, header))
            header = False
        run.log(done, **metrics)
        if done == config.steps or done % config.save_every == 0 or replaces_reference(config, done):
            save_checkpoint(run.folder / "policy", policy, words, optimizer, state)
    run.close()
    return read_jsonl(run.folder / "metrics.jsonl")[-1]


def replaces_reference(config: GrpoConfig, step: int) -> bool:
    """Whether the reference becomes the policy before this step: at the first one, then every K updates.

    The policy is saved right before, so that a run that was stopped anywhere replaces it by the same weights.
    """
    updates, every = config.updates_per_rollout * config.epochs, config.reference_every
    return config.kl_coef > 0 and (step == 0 or (every > 0 and step * updates // every > (step - 1) * updates // every))


def with_cap(config: GrpoConfig, step: int) -> GrpoConfig:
    """The settings of step 1..S, 0 the base's: the same, but for a budget of tokens that changes on the way."""
    changed = 0 < config.later_from <= step
    return replace(config, max_new_tokens=config.later_max_new_tokens) if changed else config


# ------------------------------------------------------------------------------------------------------- rollout


def rollout(
    config: GrpoConfig, step: int, policy: Transformer, words: TextTokenizer, run: Run
) -> tuple[list[Rollout], dict]:
    """P groups of G rows with their rewards. With dynamic sampling, groups of equal rewards are replaced (DAPO)."""
    G = config.group_size
    groups: list[list[Rollout]] = []
    sampled: list[list[Rollout]] = []
    parts: dict[str, list[float]] = {}
    for attempt in range(1 + config.max_refills):
        first = (step * (1 + config.max_refills) + attempt) * config.prompts  # never the same index twice
        missing = range(first, first + config.prompts - len(groups))
        problems = [posed(config, "rl", index) for index in missing]
        rows = sample(config, policy, words, problems, G, seed_of(config.seed, "rollout", step, attempt))
        for name, values in judge(config, words, rows).items():
            parts.setdefault(name, []).extend(values)
        new = [rows[i : i + G] for i in range(0, len(rows), G)]  # by position: the same problem may come twice
        sampled += new
        groups += [group for group in new if not (config.max_refills and is_flat(group))]
        if len(groups) == config.prompts:
            break
    example = sampled[0][0]
    run.sample(step + 1, prompt=example.problem.prompt, response=response_text(words, example),
               reward=example.reward, right=bool(parts["accuracy"][0]))  # fmt: skip
    metrics = describe(config, words, sampled, parts)
    metrics["frac_learnt_zero_std"] = statistics.fmean(map(is_flat, groups)) if groups else 0.0
    return [row for group in groups for row in group], metrics


# --------------------------------------------------------------------------------------------- score and improve


def compare(config: GrpoConfig, policy: Transformer, reference: Transformer | None, rows: list[Rollout]) -> None:
    """Sets each row's advantage, and the log-probs that its updates compare with."""
    if config.updates_per_rollout * config.epochs > 1:
        for row, values in zip(rows, score(policy, rows, config.temperature, config.micro_tokens), strict=True):
            row.old_logprobs = values
    if reference is not None:
        for row, values in zip(rows, score(reference, rows, config.temperature, config.micro_tokens), strict=True):
            row.ref_logprobs = values
            if config.kl_estimator == "k1":  # in the reward: the sum of log p/q over the row
                row.reward -= config.kl_coef * (sum(row.old_logprobs or row.logprobs) - sum(values))
    rewards = [row.reward for row in rows]
    if config.baseline == "group":
        rewards = group_advantages(rewards, config.group_size, config.divide_by)
    for row, advantage in zip(rows, rewards, strict=True):
        row.advantage = advantage


def improve(
    config: GrpoConfig, step: int, policy: Transformer, optimizer: torch.optim.Optimizer, rows: list[Rollout]
) -> dict[str, float]:
    """The updates on one rollout: its rows are shuffled and dealt out into minibatches, once per epoch."""
    updates = config.updates_per_rollout * config.epochs
    loss = PolicyLoss(
        clip_low=config.clip_low or math.inf, clip_high=config.clip_high or math.inf, cap=config.cap or math.inf,
        level=config.ratio, kl_coef=0.0 if config.kl_estimator == "k1" else config.kl_coef,
        kl_estimator=config.kl_estimator, kl_correction=config.kl_correction, sampler_cap=config.sampler_cap,
        on_policy=updates == 1,
    )  # fmt: skip
    if config.overlong_filter:  # after the advantages: a group's baseline knows of all its rows
        rows = [row for row in rows if row.stop_reason != "length"]
    before = [parameter.detach().clone() for parameter in policy.parameters()]
    found: list[dict[str, float]] = []
    for i in range(updates):
        epoch, part = divmod(i, config.updates_per_rollout)
        order = random.Random(seed_of(config.seed, "order", step, epoch)).sample(rows, len(rows))
        minibatch = order[part :: config.updates_per_rollout]
        lr = learning_rate(step * updates + i, config.steps * updates, config.lr, config.warmup, config.decay)
        if minibatch:  # nothing may be left where every group was flat or every row was cut
            found.append(
                update(policy, optimizer, minibatch, loss, lr=lr, temperature=config.temperature,
                       weights=token_weights(minibatch, config.average, config.max_new_tokens),
                       micro_tokens=config.micro_tokens, max_grad_norm=config.max_grad_norm,
                       entropy_coef=config.entropy_coef, measure=loss.measure)
            )  # fmt: skip
    metrics = {
        name: (max if name.endswith("/max") else statistics.fmean)(values[name] for values in found)
        for name in (found[0] if found else ())
        if name != "num_tokens" and (name != "kl" or config.kl_coef)
    }
    moved = sum((now.detach() - old).square().sum() for now, old in zip(policy.parameters(), before, strict=True))
    norm = sum(old.square().sum() for old in before)
    return metrics | {"updates": len(found), "learning_rate": lr, "update_ratio": math.sqrt(moved / norm)}


# ----------------------------------------------------------------------------------------------------- measuring


def preflight(config: GrpoConfig, policy: Transformer, words: TextTokenizer) -> dict[str, float]:
    """Measure the base, and stop here if every group would be flat: then no step could teach anything."""
    G = config.group_size
    problems = [posed(config, "preflight", i) for i in range(config.preflight)]
    rows = sample(config, policy, words, problems, G, seed_of(config.seed, "preflight"))
    accuracy = judge(config, words, rows)["accuracy"]
    compare(replace(config, kl_coef=0.0, updates_per_rollout=1, epochs=1), policy, None, rows)
    right = [int(sum(accuracy[i : i + G])) for i in range(0, len(rows), G)]
    metrics = {
        "preflight/accuracy": statistics.fmean(accuracy),
        f"preflight/pass@{G}": statistics.fmean(pass_at_k(G, c, G) for c in right),
        "preflight/frac_reward_zero_std": statistics.fmean(is_flat(rows[i : i + G]) for i in range(0, len(rows), G)),
        "preflight/clipped_ratio": statistics.fmean(row.stop_reason == "length" for row in rows),
    }
    found = ", ".join(f"{name.removeprefix('preflight/')} {value:.3f}" for name, value in metrics.items())
    if all(row.advantage == 0 for row in rows):
        advice = {
            0: "train the base longer, ask for easier sums (--digits), or allow more tokens (--max-new-tokens)",
            len(rows): "the base can do this already, ask for harder sums (--digits)",
        }.get(sum(right), "sample with a higher --temperature or a larger --group-size")
        raise ValueError(
            f"in all {config.preflight} groups of the base the rewards are equal, so there is nothing to learn from: "
            f"{advice}. Measured: {found}"
        )
    say(f"base: {found}")
    return metrics


def report(config: GrpoConfig, done: int, metrics: dict, header: bool) -> str:
    """One row of the table."""
    columns = {"reward": "reward", "accuracy": "accuracy", "flat": "frac_reward_zero_std",
               "length": "completions/mean_length", "entropy": "entropy", "kl": "kl"}  # fmt: skip
    columns |= {key: key for key in sorted(metrics) if key.startswith("acc/")}
    names = [name.rjust(8) for name in ("step", *columns)]
    lines = table(names, [[str(done), *(f"{metrics.get(key, 0):.3f}" for key in columns.values())]]).split("\n")
    return "\n".join(lines if header else lines[1:])
