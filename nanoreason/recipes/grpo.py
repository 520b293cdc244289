"""GRPO: group relative policy optimization (DeepSeekMath, 2402.03300; DeepSeek-R1, 2501.12948), and its family.

    for step 1..S:
        G responses from the policy to each of P problems, and a reward r_i for each           collect
        A_i = (r_i - mean(r_1..r_G)) / std(r_1..r_G)                                           compute_advantages
        for each minibatch of the rollout: an optimizer step on                                update_policy
            1/rows sum_i 1/|o_i| sum_t  -min(ratio * A_i, clip(ratio, 1 - clip_low, 1 + clip_high) * A_i)
                                        + kl_coef * (q/p - log q/p - 1)
            ratio = p / p when it was sampled;  p, q: the probabilities that policy and reference give to token t
        after every K updates: reference = policy

This is DeepSeekMath eq. 3 with the sign reversed; |o_i| counts the EOS. R1 writes the same with the ratio of whole
outputs and leaves 1/|o_i| out; like all released code this one has a ratio per token. There is no critic: the group's
mean is the baseline. The default step is on one screen in `grpo_minimal.py`; here it has all its switches.

The loss is no measure of progress. With one update per rollout it is about 0 by algebra (the ratio is 1, advantages
have mean 0) while its gradient is not: watch `reward`. `grad_norm`, `update_ratio` and `frac_reward_zero_std` tell
"0 by algebra" from "0 because nothing is learnt".
"""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from nanoreason.checkpoint import existing, found, load_checkpoint, resume, save_checkpoint
from nanoreason.environment import (
    LOGGED_TOKENS,
    REPEAT_N,
    check_words,
    compute_rewards,
    evaluate,
    is_flat,
    judge,
    log_samples,
    logged_groups,
    mean,
    rollout_metrics,
    sample,
)
from nanoreason.evaluate import pass_at_k
from nanoreason.learn import (
    ALGORITHMS,
    Algorithm,
    compute_logprobs,
    group_advantages,
    make_optimizer,
    token_weights,
    update,
)
from nanoreason.lora import squares, switched_off
from nanoreason.memory import MEMORY, Memory, check_memory, prepare, resumed_from, sampling_copy, save_policy
from nanoreason.model import Transformer, on_meta
from nanoreason.plan_memory import Work, base_of
from nanoreason.rewards import (
    REWARDS,
    Accuracy,
    Classic,
    Cosine,
    DenseRepetition,
    Format,
    Lcpo,
    Repetition,
    Reward,
)
from nanoreason.rollout import Rollout, Task, prompt_row, seed_of
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
    Schedule,
    check,
    check_rows,
    chosen,
    flatten,
    is_due,
    learning_rate,
    pick_device,
    say,
    table,
    task_flags,
)
from nanoreason.sharding import shard, together, whole
from nanoreason.tasks import TASKS, Addition, Attempts
from nanoreason.tokenizer import TextTokenizer, load_tokenizer


@dataclass
class GrpoConfig(RunConfig):
    """GRPO and its family: reinforcement learning from verified answers, from a base that sometimes succeeds."""

    out: str = "runs/grpo"  # folder of this run: config.json, metrics.jsonl, samples.jsonl, checkpoints
    # start
    base: str = ""  # checkpoint folder of the base model, as `train.py sft` leaves in OUT/policy; needed
    # task
    task: Task = chosen(TASKS, Addition((1, 2, 3)))  # what is practised
    # rewards
    rewards: tuple[Reward, ...] = chosen(REWARDS, (Accuracy(),))  # summed with their weights, as accuracy,format:0.1
    # rollout
    steps: Count = 100  # rollouts
    prompts: Rows = 16  # P, problems of a rollout
    group_size: Rows = 16  # G, responses to each problem
    temperature: Rate = 1.0  # of the sampling; the learner's log-probs are those of this distribution
    teacher: str = ""  # checkpoint folder of who is sampled instead of the policy: off-policy; empty: the policy
    max_new_tokens: Schedule = Schedule(64)  # response tokens after which a row is cut; 50,31:112: 112 from step 31 on
    preflight: AnyRows = 32  # problems on which the base is measured before the first step; 0: none
    # loss
    algorithm: Algorithm = chosen(ALGORITHMS, Algorithm())  # advantages, loss, average
    # optimization
    updates_per_rollout: Positive = 1  # minibatches that a rollout is dealt out into, one optimizer step each
    epochs: Positive = 1  # passes over a rollout (GRPO's mu)
    lr: LearningRate = 1e-4  # learning rate after warm-up; at 1e-3 a small model loses in ten steps what it knew
    decay: Decay = "none"  # of the learning rate: none, cosine (to a tenth) or linear (to 0)
    warmup: Count = 5  # updates of warm-up
    max_grad_norm: Annotated[float, Range(0, low_open=True)] = 1.0  # the gradient is scaled down to this norm
    micro_tokens: Positive = 2048  # tokens of a micro-batch: memory and speed, not the result
    memory: Memory = chosen(MEMORY, Memory())  # what is kept in memory, and in which form
    # evaluation
    eval_task: Task | None = chosen(TASKS, None, like="task")  # what is tested; empty: the task
    eval_problems: AnyRows = 80  # held-out problems of each difficulty
    eval_samples: AnyRows = 0  # samples of each, before the first step too: pass@k, maj@k, length; 0: greedy only
    eval_every: Count = 20  # steps between tests and lines of the table; 0: only at the end
    save_every: Positive = 10  # steps between checkpoints
    keep: tuple[Positive, ...] = ()  # steps after which the policy is kept besides, in OUT/kept/STEP

    @property
    def updates(self) -> int:
        """Optimizer steps on one rollout."""
        return self.updates_per_rollout * self.epochs


PRESETS = {
    "cpu": GrpoConfig(),
    "attempts": GrpoConfig(  # R1-Zero in a few minutes: accuracy and length of thought rise together
        base="data/checkpoints/attempts-0", task=Attempts(), rewards=(Accuracy(), Format(0.1)), steps=40,
        max_new_tokens=Schedule(256), algorithm=ALGORITHMS["dr_grpo"], lr=3e-4, warmup=2, preflight=16,
        eval_problems=100, eval_samples=4, eval_every=10,
    ),
    "tiny": GrpoConfig(
        task=Addition((1,)), steps=4, prompts=4, group_size=4, max_new_tokens=Schedule(32), preflight=8, warmup=1,
        save_every=2, eval_every=2, eval_problems=8,
    ),
    "gpu": GrpoConfig(
        task=Addition(), steps=300, prompts=64, max_new_tokens=Schedule(96), preflight=64, micro_tokens=65536,
        algorithm=Algorithm(sampler_cap=2.0), eval_problems=500,
    ),
}  # fmt: skip


def check_config(config: GrpoConfig) -> None:
    """What no single setting tells; ValueError says in one line what is wrong."""
    if not config.base:
        raise ValueError(
            "--base is needed: the checkpoint folder of a model that sometimes succeeds, because reinforcement only "
            "strengthens what is sampled. `train.py sft --steps 150 --out runs/base` leaves one in runs/base/policy"
        )
    check_rows(prompts=config.prompts, group_size=config.group_size)
    check_rows(preflight=config.preflight, group_size=config.group_size)
    check_rows(eval_problems=config.eval_problems, eval_samples=config.eval_samples)
    if config.updates_per_rollout > (rows := config.prompts * config.group_size):
        raise ValueError(f"--updates-per-rollout {config.updates_per_rollout}: a rollout has only {rows} rows")
    if config.algorithm.baseline == "group" and config.group_size < 2:
        raise ValueError("--group-size 1 compares nothing: use at least 2, or --algorithm.baseline none")
    check_memory(config.memory, config.base)
    updates, every = config.steps * config.updates, config.algorithm.reference_every
    if config.memory.lora and config.algorithm.needs_reference and 0 < every <= updates:
        raise ValueError("with adapters the reference is the base throughout: set --algorithm.reference-every 0")
    if config.temperature <= 0:
        raise ValueError(f"--temperature {config.temperature}: all samples of a group would be equal, use more than 0")
    if not any(reward.weight for reward in config.rewards):
        raise ValueError("--rewards: no reward has a weight other than 0, there is nothing to learn")
    if any(isinstance(reward, Lcpo) for reward in config.rewards):
        if "target_tokens" not in config.task.problem("train", 0).info:
            raise ValueError("--rewards lcpo needs prompts that ask for a number of tokens: --task ...,asked_length")
    cap = config.max_new_tokens.first
    for reward in config.rewards:
        if isinstance(reward, (Classic, Cosine)) and reward.margin >= cap:
            raise ValueError(f"a reward's margin of {reward.margin} tokens leaves nothing of --max-new-tokens {cap}")
        if isinstance(reward, (Repetition, DenseRepetition)) and reward.n >= cap:
            raise ValueError(f"n-grams of {reward.n} tokens cannot repeat in a response of --max-new-tokens {cap}")


def workload(config: GrpoConfig) -> Work:
    """What `--plan` is asked about: a step with responses as long as they may be. No weight is read."""
    check_config(config)
    (shape, size), tokenizer = base_of(config.base), load_tokenizer(found(config.base))
    check_words(tokenizer, task=config.task)
    problems = [config.task.problem(f"rl-{config.seed}", i) for i in range(min(config.prompts, 32))]
    prompt = max(len(prompt_row(tokenizer, problem).tokens) for problem in problems)
    updates, algorithm = config.updates, config.algorithm
    response = min(config.max_new_tokens.largest, shape.max_position_embeddings - prompt)
    if response < 1:
        raise ValueError(f"a prompt of {prompt} tokens leaves no room for a response in the context of --base "
                         f"{config.base}, {shape.max_position_embeddings} tokens")  # fmt: skip
    groups = logged_groups(config.prompts, config.group_size)
    return Work(
        shape, config.prompts * config.group_size, prompt, response, config.micro_tokens, config.memory,
        prompts=config.prompts, updates=updates, epochs=config.epochs,
        scores=is_scored(config) + algorithm.needs_reference, reference=algorithm.needs_reference,
        teacher=on_meta(base_of(config.teacher)[0]).size() if config.teacher else 0,
        logged=min(groups * config.group_size, LOGGED_TOKENS // response), file_bytes=size,
    )  # fmt: skip


def run(config: GrpoConfig) -> dict:
    """All steps; returns the last line of metrics. The policy is left in OUT/policy, the reference in OUT/reference;
    with adapters (LoRA) these are left in OUT/adapter, and the reference is the base."""
    check_config(config)
    policy, tokenizer = load_checkpoint(config.base, pick_device(config.device))
    check_words(tokenizer, task=config.task, eval_task=config.eval_task)
    if config.eval_problems and config.eval_task is None:
        check_words(tokenizer, "test", task=config.task)
    prepare(policy, config.memory, seed_of(config.seed, "adapters"))
    teacher = teacher_of(config, policy, tokenizer)
    fresh = existing(Path(config.out) / resumed_from(config.memory)) is None
    measured = preflight(config, policy, tokenizer) if fresh and config.preflight else {}
    run = Run(config)
    if fresh:
        run.rewind(-1)
    if fresh and (config.eval_samples or not config.steps):
        measured |= test(config, 0, policy, tokenizer, run)
    header = True
    for step, metrics in train(config, policy, teacher, tokenizer, run, measured):
        if step == config.steps or is_due(step, config.eval_every):
            say(report(step, metrics, header))
            header = False
    run.close()
    return run.last_line()


def teacher_of(config: GrpoConfig, policy: Transformer, tokenizer: TextTokenizer) -> Transformer:
    """Who is sampled: the policy, or somebody else, to whom the same ids must be the same texts."""
    if not config.teacher:
        return policy
    teacher, words = load_checkpoint(config.teacher, policy.device)
    if not words.has_ids_of(tokenizer):
        raise ValueError(
            f"--teacher {config.teacher} has another tokenizer than --base {config.base}: its ids are other texts"
        )
    return teacher


def train(
    config: GrpoConfig,
    policy: Transformer,
    teacher: Transformer,
    tokenizer: TextTokenizer,
    run: Run,
    measured: dict[str, float],
) -> Iterator[tuple[int, dict[str, float]]]:
    """Yields (step, its metrics) after each step 1..S that is still to do; logs and saves. `teacher`: who is sampled;
    `measured`: of the base."""
    optimizer = make_optimizer(policy, moments=config.memory.moments)
    folder = run.folder / resumed_from(config.memory)
    state = resume(folder, policy, optimizer, tokenizer)
    if state:
        run.rewind(state["step"], state.get("logged"))
    state = state or {"step": 0, "num_tokens": 0}
    check(state.get("num_tokens"), Count, f"{folder / 'training.json'}: num_tokens")
    if measured or not config.steps:
        run.log(0, **measured)
    reference = None
    with Progress(config.steps, "grpo", "steps", done=state["step"]) as progress:
        for step in range(state["step"] + 1, config.steps + 1):
            if config.algorithm.needs_reference and config.memory.lora:
                reference = policy  # its adapters are switched off where it is asked
            elif replaces_reference(config, step - 1):
                reference = shard(whole(policy)) if config.memory.shard else copy.deepcopy(policy)
                save_checkpoint(run.folder / "reference", reference, tokenizer)
            elif config.algorithm.needs_reference and reference is None:
                reference, _ = load_checkpoint(run.folder / "reference", policy.device)
                if config.memory.shard:
                    shard(reference)
            started = time.perf_counter()
            groups, metrics = collect(config, step, teacher, tokenizer)
            sampled = time.perf_counter()
            compute_advantages(config, policy, reference, groups)
            log_samples(run, step, "rollout", config.task, tokenizer, groups, rewarded=True, policy=policy,
                        temperature=config.temperature)  # fmt: skip
            compared = time.perf_counter()
            metrics |= update_policy(config, step, policy, optimizer, groups)
            tokens = metrics.pop("tokens")
            state = {"step": step, "num_tokens": state["num_tokens"] + tokens}
            metrics |= {
                "num_tokens": state["num_tokens"],
                "tok_per_s": tokens / (sampled - started),
                "time/rollout": sampled - started,
                "time/score": compared - sampled,
                "time/update": time.perf_counter() - compared,
            }
            if step == config.steps or is_due(step, config.eval_every):
                metrics |= test(config, step, policy, tokenizer, run)
            run.log(step, **metrics)
            if step in config.keep:  # first: a run that is stopped in between does the step again
                save_checkpoint(run.folder / "kept" / str(step), policy, tokenizer, base=config.base,
                                extra=task_flags(flatten(config)))  # fmt: skip
            if step == config.steps or is_due(step, config.save_every) or replaces_reference(config, step):
                save_policy(run.folder, config.memory, policy, tokenizer, optimizer, state | {"logged": run.logged},
                            base=config.base, extra=task_flags(flatten(config)), last=step == config.steps)  # fmt: skip
            progress.update(tokens=tokens, reward=metrics["reward"])
            yield step, metrics


def replaces_reference(config: GrpoConfig, step: int) -> bool:
    """Whether the reference becomes the policy after this step: after step 0 (the base), then every K updates.

    The policy is saved right before, so that a run that was stopped anywhere replaces it by the same weights.
    """
    updates, every = config.updates, config.algorithm.reference_every
    is_time = step == 0 or (every > 0 and step * updates // every > (step - 1) * updates // every)
    return config.algorithm.needs_reference and is_time


# ------------------------------------------------------------------------------------------------------- rollout


def collect(
    config: GrpoConfig, step: int, policy: Transformer, tokenizer: TextTokenizer
) -> tuple[list[list[Rollout]], dict[str, float]]:
    """P groups of G rows with their rewards, and the metrics of all that was sampled.

    With dynamic sampling groups of equal rewards are replaced by new problems, `max_refills` times at most (DAPO).
    """
    refills, cap = config.algorithm.max_refills, config.max_new_tokens.at(step)
    kept: list[list[Rollout]] = []
    groups, scored, parts = [], [], {}
    sampler = policy if config.memory.sample_dtype == "float32" else sampling_copy(policy)
    for attempt in range(1 + refills):
        first = ((step - 1) * (1 + refills) + attempt) * config.prompts  # never the same index twice
        missing = range(first, first + config.prompts - len(kept))
        problems = [config.task.problem(f"rl-{config.seed}", index) for index in missing]
        seed = seed_of(config.seed, "rollout", step - 1, attempt)
        new = sample(config.task, sampler, tokenizer, problems, group_size=config.group_size, max_new_tokens=cap,
                     temperature=config.temperature, seed=seed)  # fmt: skip
        judged = judge(config.task, tokenizer, new, cap)
        for name, values in compute_rewards(judged, config.rewards).items():
            parts.setdefault(name, []).extend(values)
        groups, scored = groups + new, scored + judged
        kept += [group for group in new if not (refills and is_flat(group))]
        if len(kept) == config.prompts:
            break
    metrics = rollout_metrics(groups, scored, parts, repeat_n(config))
    metrics["frac_learnt_zero_std"] = mean([is_flat(group) for group in kept])
    return kept, metrics


def repeat_n(config: GrpoConfig) -> int:
    """Tokens of the n-grams whose repetition is measured: those of the penalty, where there is one."""
    return next((r.n for r in config.rewards if isinstance(r, (Repetition, DenseRepetition))), REPEAT_N)


# --------------------------------------------------------------------------------------------- advantages and updates


def is_scored(config: GrpoConfig) -> bool:
    """Whether the policy's log-probs of a rollout are computed before its updates: several of them compare with these,
    and so does a KL in the reward where somebody else has sampled."""
    in_reward = config.algorithm.needs_reference and config.algorithm.kl_estimator == "k1"
    return config.updates > 1 or (bool(config.teacher) and in_reward)


def compute_advantages(
    config: GrpoConfig, policy: Transformer, reference: Transformer | None, groups: list[list[Rollout]]
) -> None:
    """Sets each row's advantage, and the log-probs that its updates compare with."""
    algorithm, how = config.algorithm, (config.temperature, config.micro_tokens)
    rows = [row for group in groups for root in group for row in root.family]
    of_policy = [row.logprobs for row in rows]
    if is_scored(config):
        of_policy = compute_logprobs(policy, rows, *how)
    if config.updates > 1:
        for row, values in zip(rows, of_policy, strict=True):
            row.old_logprobs = values
    if reference is not None:
        with switched_off(reference):
            of_reference = compute_logprobs(reference, rows, *how)
        for row, own, values in zip(rows, of_policy, of_reference, strict=True):
            row.ref_logprobs = values
            if algorithm.kl_estimator == "k1":  # in the reward: the sum of log p/q over the row
                row.root.reward -= algorithm.kl_coef * (sum(own) - sum(values))
    rewards = [[row.reward for row in group] for group in groups]
    advantages = group_advantages(rewards, algorithm.divide_by) if algorithm.baseline == "group" else rewards
    for group, values in zip(groups, advantages, strict=True):
        for row, advantage in zip(group, values, strict=True):
            row.advantage = advantage


def update_policy(
    config: GrpoConfig, step: int, policy: Transformer, optimizer, groups: list[list[Rollout]]
) -> dict[str, float]:
    """The updates on one rollout: its rows are shuffled and dealt out into the minibatches, once per epoch, each with
    all rows of its family: they have the root's advantage and together count as one."""
    rows = [row for group in groups for row in group]
    updates = config.updates
    loss = replace(config.algorithm, on_policy=updates == 1)
    constant = loss.length_constant or config.max_new_tokens.largest
    measured = updates == 1 and not config.memory.lora  # by the optimizer in its step, without this copy
    trained = [] if measured else [(name, w) for name, w in policy.named_parameters() if w.requires_grad]
    before = {name: weight.detach().clone() for name, weight in trained}
    found: list[dict[str, float]] = []
    for i in range(updates):
        epoch, part = divmod(i, config.updates_per_rollout)
        order = rows  # one minibatch: in another order it would be the same up to rounding
        if config.updates_per_rollout > 1:
            order = random.Random(seed_of(config.seed, "order", step - 1, epoch)).sample(rows, len(rows))
        roots = order[part :: config.updates_per_rollout]
        rollouts, minibatch = len(roots), [row for root in roots for row in root.family]
        if loss.overlong_filter:  # after the advantages: a group's baseline knows of all its rows
            minibatch = [row for row in minibatch if row.stop_reason != "length"]
        lr = learning_rate((step - 1) * updates + i, config.steps * updates, config.lr, config.warmup, config.decay)
        if minibatch:  # nothing may be left where every group was flat or every row was cut
            found.append(
                update(policy, optimizer, minibatch, loss, lr=lr, temperature=config.temperature,
                       weights=token_weights(minibatch, loss.average, constant, rollouts),
                       micro_tokens=config.micro_tokens, max_grad_norm=config.max_grad_norm,
                       entropy_coef=loss.entropy_coef, measure=loss.measure, update_ratio=measured)
            )  # fmt: skip
    metrics = {"update_ratio": 0.0, **over_updates(found), "updates": len(found), "learning_rate": lr}
    if config.memory.lora:
        moved, norm = squares(policy, before)
        metrics["update_ratio"] = math.sqrt(moved / norm)
    elif before:
        now = dict(policy.named_parameters())
        moved = sum((now[name].detach() - old).square().sum() for name, old in before.items())
        norm = sum(old.square().sum() for old in before.values())
        metrics["update_ratio"] = math.sqrt(together(moved) / together(norm))
    return metrics


def over_updates(found: list[dict[str, float]]) -> dict[str, float]:
    """Metrics of some updates as one: maxima of what ends in /max, means of the rest, weighted by loss tokens.

    >>> over_updates([{"kl": 1.0, "num_tokens": 1}, {"kl": 3.0, "num_tokens": 3}])
    {'kl': 2.5}
    """
    tokens = sum(values["num_tokens"] for values in found)
    metrics = {}
    for name in (name for name in (found[0] if found else ()) if name != "num_tokens"):
        if name.endswith("/max"):
            metrics[name] = max(values[name] for values in found)
        else:
            metrics[name] = sum(values[name] * values["num_tokens"] for values in found) / tokens
    return metrics


# ----------------------------------------------------------------------------------------------------- measuring


def test(config: GrpoConfig, step: int, policy: Transformer, tokenizer: TextTokenizer, run: Run) -> dict[str, float]:
    """Held-out accuracy under the budget of this step."""
    if not config.eval_problems:
        return {}
    return evaluate(config.eval_task or config.task, policy, tokenizer, config.eval_problems,
                    max_new_tokens=config.max_new_tokens.at(step), samples=config.eval_samples,
                    temperature=config.temperature, repeat_n=repeat_n(config), run=run, step=step)  # fmt: skip


def preflight(config: GrpoConfig, policy: Transformer, tokenizer: TextTokenizer) -> dict[str, float]:
    """Measure the base, and stop here if all rewards in every group are equal: then no step could teach anything."""
    G, cap = config.group_size, config.max_new_tokens.at(1)
    problems = [config.task.problem(f"preflight-{config.seed}", i) for i in range(config.preflight)]
    groups = sample(config.task, policy, tokenizer, problems, group_size=G, seed=seed_of(config.seed, "preflight"),
                    temperature=config.temperature, max_new_tokens=cap)  # fmt: skip
    scored = judge(config.task, tokenizer, groups, cap)
    compute_rewards(scored, config.rewards)
    right = [sum(one.right for one in scored[i : i + G]) for i in range(0, len(scored), G)]
    metrics = {
        "preflight/accuracy": mean([one.verdict for one in scored]),
        f"preflight/pass@{G}": mean([pass_at_k(G, c, G) for c in right]),
        "preflight/frac_reward_zero_std": mean([is_flat(group) for group in groups]),
        "preflight/clipped_ratio": mean([one.row.stop_reason == "length" for one in scored]),
    }
    found = ", ".join(f"{name.removeprefix('preflight/')} {value:.3f}" for name, value in metrics.items())
    learns_nothing = all(map(is_flat, groups)) if config.algorithm.baseline == "group" else not any(
        one.row.reward for one in scored
    )  # fmt: skip
    if learns_nothing:
        advice = {
            0: "train the base longer, ask for easier problems (--task...), or allow more tokens (--max-new-tokens)",
            len(scored): "the base can do this already, ask for harder problems (--task...)",
        }.get(sum(right), "sample with a higher --temperature or a larger --group-size")
        raise ValueError(
            f"in all {config.preflight} groups of the base the rewards are equal, so there is nothing to learn from: "
            f"{advice}. Measured: {found}"
        )
    say(f"base: {found}")
    return metrics


def report(step: int, metrics: dict, header: bool) -> str:
    """One row of the table."""
    columns = {"reward": "reward", "accuracy": "accuracy", "equal": "frac_reward_zero_std",
               "length": "completions/mean_length", "entropy": "entropy", "kl": "kl"}  # fmt: skip
    columns |= {key: key for key in metrics if key.startswith("acc/")}
    columns = {name: key for name, key in columns.items() if key in metrics}
    names = [name.rjust(8) for name in ("step", *columns)]
    lines = table(names, [[str(step), *(f"{metrics[key]:.3f}" for key in columns.values())]]).split("\n")
    return "\n".join(lines if header else lines[1:])
