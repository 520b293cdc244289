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
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from nanoreason.checkpoint import existing, load_checkpoint, resume, save_checkpoint
from nanoreason.evaluate import maj_at_k, pass_at_k
from nanoreason.learn import (
    FLAT,
    PolicyLoss,
    discounted_returns,
    group_advantages,
    make_optimizer,
    score,
    token_weights,
    update,
)
from nanoreason.model import Transformer
from nanoreason.rewards import (
    accuracy_reward,
    classic_reward,
    closing_ids,
    cosine_reward,
    extract_answer,
    format_reward,
    lcpo_reward,
    overlong_reward,
    repetition_penalties,
    repetition_reward,
    with_template,
)
from nanoreason.rollout import Problem, Rollout, Task, prompt_rows, response_text, seed_of
from nanoreason.run import Run, RunConfig, learning_rate, pick_device, progress, read_jsonl, say, table
from nanoreason.sampler import Sampler
from nanoreason.search import ThinkingCountdown
from nanoreason.tasks.addition import Addition, ThinkingAddition, asked, test_sums, thinking_sums
from nanoreason.tasks.countdown import Countdown
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
class GrpoConfig(RunConfig):
    """GRPO and its family on digit addition, from a base that sometimes succeeds."""

    out: str = "runs/grpo"  # folder of this run: config.json, metrics.jsonl, samples.jsonl, checkpoints
    base: str = ""  # checkpoint folder of the base model, as `train.py sft` leaves in OUT/policy; needed
    # problems and rewards
    task: str = "addition"  # addition (on a scratchpad), thinking (sums in R1's tags) or countdown
    digits: tuple[int, ...] = (1, 2, 3)  # lengths of the sums
    inputs: int = 3  # countdown: how many numbers are given
    answer_form: str = "operations"  # countdown: operations or expression
    unsolvable: float = 0.0  # chance that the stated answer of a sum to practise on is none that a response can give
    template: str = "none"  # how they are asked: none (as the task does), skeleton (User: ... Assistant:) or r1
    accuracy_weight: float = 1.0  # of the verifier's verdict, 1 or 0, in the reward
    format_weight: float = 0.0  # of the right use of the tags, 1 or 0, in the reward; needs a template
    asked: str = "none"  # "Think for (maximum) N tokens." in the prompt: none, exact, max, or both, each half the time
    asked_tokens: tuple[int, ...] = (8, 96)  # smallest and largest N, drawn evenly; it counts the whole response
    length_reward: str = "none"  # shape of the verdict by length: none, classic (0 where cut), cosine or lcpo (for N)
    lcpo_alpha: float = 0.012  # lcpo: price of a token; times the range of N it is about one right answer (L1: 1.17)
    lcpo_delta: float = 0.5  # lcpo: value of a right answer with exactly the maximum
    cosine_right: tuple[float, float] = (2.0, 1.0)  # cosine: value of a right response of length 0, of max_new_tokens
    cosine_wrong: tuple[float, float] = (-10.0, 0.0)  # the same of a wrong one (a flag that starts with - needs an =)
    cosine_exceed: float = -10.0  # cosine: value where max_new_tokens is reached, right or wrong
    length_margin: int = 0  # tokens before max_new_tokens that count as reaching it (the paper's code: 16 of 14336)
    repetition: str = "none"  # n-grams that come again: none, dense (rewards of tokens) or sparse (of the response)
    repetition_n: int = 40  # N of the n-grams, in tokens; what a sound response says twice should be shorter
    repetition_penalty: float = -0.05  # dense: of each token of a repeated n-gram; sparse: times their share
    repetition_gamma: float = 0.99  # dense: discount of a penalty for the tokens before it
    # rollouts
    steps: int = 100  # rollouts
    prompts: int = 16  # P, problems of a rollout
    group_size: int = 16  # G, responses to each problem
    temperature: float = 1.0  # of the sampling; the learner's log-probs are those of this distribution
    max_new_tokens: int = 64  # response tokens after which a row is cut; a worked 3-digit sum needs 49
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
    overlong_share: float = -1  # soft punishment falling from 0 to -1 in the last share of max_new_tokens; 0: none
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
    eval_digits: tuple[int, ...] = (1, 2, 3)  # lengths that are tested
    eval_problems: int = 80  # held-out sums per length
    eval_samples: int = 0  # samples of each as in a rollout, before the first step too: pass@k, maj@k; 0: greedy only


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


# ------------------------------------------------------------------------------------------------------ the task


def task_of(config: GrpoConfig) -> Task:
    """Who poses and judges. This and the three functions below are all that a new task needs."""
    if config.task == "countdown":
        return ThinkingCountdown(Countdown(config.inputs, form=config.answer_form))
    return ThinkingAddition(config.digits) if config.task == "thinking" else Addition(config.digits)


def practice(config: GrpoConfig, purpose: str, index: int) -> Problem:
    """Problem `index` of those that the policy practises on ("rl") or that the base is measured on ("preflight")."""
    if config.unsolvable:  # the prompt does not tell which ones
        problem = practice(replace(config, unsolvable=0.0), purpose, index)
        lost = random.Random(seed_of("unsolvable", purpose, config.seed, index)).random() < config.unsolvable
        return replace(problem, answer=f"not {problem.answer}") if lost else problem
    if config.task == "countdown":  # its splits are named, and their problems come without an end
        return task_of(config).problem("train", seed_of(purpose, config.seed, index))
    return with_target(config, task_of(config).problem(f"{purpose}-{config.seed}", index), f"{purpose}-{index}")


def held_out(config: GrpoConfig) -> list[Problem]:
    """What no run practises on."""
    if config.task == "countdown":
        return [task_of(config).problem("test_inputs", i) for i in range(config.eval_problems)]
    problems = (thinking_sums if config.task == "thinking" else test_sums)(config.eval_digits, config.eval_problems)
    return [with_target(config, problem, f"held-out-{i}") for i, problem in enumerate(problems)]


def with_target(config: GrpoConfig, problem: Problem, name: str) -> Problem:
    """The problem with a number of tokens to think for (L1), if the settings say so: drawn evenly, by its name."""
    if config.asked == "none":
        return problem
    draw = random.Random(seed_of("target", config.seed, name))
    kind = draw.choice(["exact", "max"]) if config.asked == "both" else config.asked
    return asked(problem, kind, draw.randint(*config.asked_tokens))


def difficulty(problem: Problem) -> int:
    """The digits of a sum, the numbers of a Countdown."""
    return problem.info["digits"] if "digits" in problem.info else len(problem.info["numbers"])


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
        problems = [practice(config, "rl", index) for index in missing]
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


def sample(
    config: GrpoConfig, policy: Transformer, words: TextTokenizer, problems: list[Problem], group_size: int, seed: int,
    temperature: float | None = None,
) -> list[Rollout]:  # fmt: skip
    """Finished rows, group by group. They end with EOS, with their budget or, under a template, with </answer>."""
    sampler = Sampler(
        policy, eos_id=words.eos_id, max_new_tokens=config.max_new_tokens,
        temperature=config.temperature if temperature is None else temperature,
        stop_ids=() if config.template == "none" else closing_ids(words),
    )  # fmt: skip
    rows = prompt_rows(words, [with_template(problem, config.template) for problem in problems], group_size, seed)
    sampler.submit(rows)
    with progress(total=len(rows), desc="sample", unit="row") as bar:
        for row in sampler:
            if row.stop_reason == "stop" and "</answer>" not in response_text(words, row):
                sampler.submit([row])  # a token that could have completed the tag, and did not
            else:
                bar.update()
    return rows


def judge(config: GrpoConfig, words: TextTokenizer, rows: list[Rollout]) -> dict[str, list[float]]:
    """Sets each row's reward, the weighted sum of its parts. Returns the parts and, whatever its weight, accuracy."""
    tags = config.template != "none"
    parts = {"accuracy": (accuracy_reward(task_of(config), tags), config.accuracy_weight)}
    if tags:
        parts["format"] = (format_reward, config.format_weight)
    if config.overlong_share:
        buffer = max(1, round(config.overlong_share * config.max_new_tokens))
        parts["overlong"] = (overlong_reward(config.max_new_tokens, buffer), 1.0)
    if config.length_reward != "none":  # in place of the bare verdict, which is still measured
        verdict, limit, margin = parts["accuracy"][0], config.max_new_tokens, config.length_margin
        shaped = classic_reward(verdict, limit, margin)
        if config.length_reward == "lcpo":
            shaped = lcpo_reward(verdict, config.lcpo_alpha, config.lcpo_delta)
        elif config.length_reward == "cosine":
            ends = config.cosine_right, config.cosine_wrong, config.cosine_exceed
            shaped = cosine_reward(verdict, limit, *ends, margin)
        parts |= {"accuracy": (verdict, 0.0), config.length_reward: (shaped, config.accuracy_weight)}
    if config.repetition == "sparse":
        parts["repetition"] = (repetition_reward(config.repetition_n, config.repetition_penalty), 1.0)
    columns = {name: [getattr(row.problem, name) for row in rows] for name in ("answer", "solution", "info")}
    prompts = [row.problem.prompt for row in rows]
    completions = [response_text(words, row) for row in rows]
    values = {
        name: function(prompts, completions, completion_ids=[row.response for row in rows], **columns)
        for name, (function, _) in parts.items()
    }
    for i, row in enumerate(rows):
        row.reward = sum(weight * values[name][i] for name, (_, weight) in parts.items())
    if config.repetition == "dense":  # not in the reward: what its tokens earned is added to their advantages
        values["repetition"] = []
        for row in rows:
            penalties = repetition_penalties(row.response, config.repetition_n, config.repetition_penalty)
            row.token_advantages = [0.0] * row.prompt_len + discounted_returns(penalties, config.repetition_gamma)
            values["repetition"].append(sum(penalties))
    return values


def is_flat(group: list[Rollout]) -> bool:
    """Whether all rewards are equal, so that nothing in the group is better than the rest."""
    return max(row.reward for row in group) - min(row.reward for row in group) <= FLAT


def describe(
    config: GrpoConfig, words: TextTokenizer, groups: list[list[Rollout]], parts: dict[str, list[float]]
) -> dict[str, float]:
    """Metrics of all that was sampled, discarded groups included, under TRL's names where it has one."""
    rows = [row for group in groups for row in group]
    lengths = [len(row.response) for row in rows]
    cut = [row.stop_reason == "length" for row in rows]

    def mean_length(chosen: Callable[[int], bool]) -> float:
        some = [lengths[i] for i in range(len(rows)) if chosen(i)]
        return statistics.fmean(some) if some else 0.0

    return {
        "reward": statistics.fmean(row.reward for row in rows),
        "reward_std": statistics.fmean(statistics.pstdev(row.reward for row in group) for group in groups),
        "frac_reward_zero_std": statistics.fmean(is_flat(group) for group in groups),
        **{f"rewards/{name}/mean": statistics.fmean(values) for name, values in parts.items()},
        "accuracy": statistics.fmean(parts["accuracy"]),
        "groups": len(groups),
        "completions/mean_length": statistics.fmean(lengths),
        "completions/min_length": min(lengths),
        "completions/max_length": max(lengths),
        "completions/mean_terminated_length": mean_length(lambda i: not cut[i]),
        "completions/mean_length_correct": mean_length(lambda i: parts["accuracy"][i] == 1),
        "completions/mean_length_wrong": mean_length(lambda i: parts["accuracy"][i] < 1),
        "completions/clipped_ratio": statistics.fmean(cut),
        "completions/repetition": repeated_share(config, rows),
        "tokens": sum(lengths),
        **traits(config, [response_text(words, row) for row in rows], parts["accuracy"]),
    }


def repeated_share(config: GrpoConfig, rows: list[Rollout]) -> float:
    """The share of a response's N-grams that repeat an earlier one, its mean; N is the penalty's, used or not."""
    ids = [row.response for row in rows]
    return statistics.fmean(repetition_reward(config.repetition_n, 1.0)(ids, ids, completion_ids=ids))


def traits(config: GrpoConfig, texts: list[str], right: list[float]) -> dict[str, float]:
    """The means of what the task reads in the responses; for traits named mode/... also the accuracy in that mode."""
    task = task_of(config)
    if not hasattr(task, "traits"):
        return {}
    found = [task.traits(text) for text in texts]
    means = {name: statistics.fmean(values[name] for values in found) for name in found[0]}
    for name in [name for name in means if name.startswith("mode/") and means[name]]:
        chosen = [verdict for values, verdict in zip(found, right, strict=True) if values[name]]
        means[name.replace("mode/", "accuracy/")] = statistics.fmean(chosen)
    return means


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
    problems = [practice(config, "preflight", i) for i in range(config.preflight)]
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


def measure(config: GrpoConfig, policy: Transformer, words: TextTokenizer) -> dict[str, float]:
    """Accuracy on held-out problems by difficulty: {"acc/2": ...}, greedily; with --eval-samples also sampled."""
    rows = sample(config, policy, words, held_out(config), 1, 0, temperature=0.0)
    accuracy = judge(config, words, rows)["accuracy"]
    right: dict[int, list[float]] = {}
    for row, value in zip(rows, accuracy, strict=True):
        right.setdefault(difficulty(row.problem), []).append(value)
    greedy = {f"acc/{n}": statistics.fmean(values) for n, values in sorted(right.items())}
    return greedy | (measure_samples(config, policy, words) if config.eval_samples else {})


def measure_samples(config: GrpoConfig, policy: Transformer, words: TextTokenizer) -> dict[str, float]:
    """Held-out problems as the policy is trained, at its temperature and budget: eval/pass@k, eval/maj@k, format,
    length, traits, and by difficulty n the accuracy eval/accuracy/n and that of single modes eval/accuracy/MODE/n."""
    # As R1 measures: greedy decoding repeats itself, so pass@1 is the mean over k samples. The numbers of a row depend
    # on its problem and place alone, so policies are compared on the same ones.
    k = config.eval_samples
    rows = sample(config, policy, words, held_out(config), k, seed_of("held-out"))
    parts = judge(config, words, rows)
    texts, right = [response_text(words, row) for row in rows], parts["accuracy"]
    groups = [slice(i, i + k) for i in range(0, len(rows), k)]
    votes = [extract_answer(text) if "<answer>" in text else None for text in texts]
    metrics = {f"pass@{n}": statistics.fmean(pass_at_k(k, int(sum(right[g])), n) for g in groups)
               for n in (1, 2, 4, 8, 16, 32, 64) if n <= k}  # fmt: skip
    metrics[f"maj@{k}"] = statistics.fmean(maj_at_k(votes[g], [bool(r) for r in right[g]], k) for g in groups)
    metrics |= {
        "format": statistics.fmean(parts["format"]),
        "mean_length": statistics.fmean(len(row.response) for row in rows),
        "clipped_ratio": statistics.fmean(row.stop_reason == "length" for row in rows),
        "repetition": repeated_share(config, rows),
        **traits(config, texts, right),
    }
    for n in sorted({difficulty(row.problem) for row in rows}):
        chosen = [i for i, row in enumerate(rows) if difficulty(row.problem) == n]
        some = traits(config, [texts[i] for i in chosen], [right[i] for i in chosen])
        metrics[f"accuracy/{n}"] = statistics.fmean(right[i] for i in chosen)
        metrics |= {f"{name}/{n}": value for name, value in some.items() if name.split("/")[0] in ("mode", "accuracy")}
    return {f"eval/{name}": value for name, value in metrics.items()}


def report(config: GrpoConfig, done: int, metrics: dict, header: bool) -> str:
    """One row of the table."""
    columns = {"reward": "reward", "accuracy": "accuracy", "flat": "frac_reward_zero_std",
               "length": "completions/mean_length", "entropy": "entropy", "kl": "kl"}  # fmt: skip
    columns |= {key: key for key in sorted(metrics) if key.startswith("acc/")}
    names = [name.rjust(8) for name in ("step", *columns)]
    lines = table(names, [[str(done), *(f"{metrics.get(key, 0):.3f}" for key in columns.values())]]).split("\n")
    return "\n".join(lines if header else lines[1:])
