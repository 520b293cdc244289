"""From rollouts to new weights: log-probs, advantages, losses, averages, collate, and the one `update`.

    rollouts -> weights of the whole step -> micro-batches -> log-probs -> losses -> (losses * weights).sum() -> step

Every algorithm is `loss = (per_token_loss * weights).sum()`. The average (per token, per sequence, constant) is the
tensor of weights, computed over the whole step before it is cut, so the gradient does not depend on the cut.
Column t of every (B, T) tensor is about `tokens[:, t]`; `token_logprobs` is the one function that shifts.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable

import torch
import torch.nn.functional as F

from nanoreason.model import Transformer
from nanoreason.rollout import Batch, Rollout, Task, demonstration, seed_of
from nanoreason.run import autocast, learning_rate, progress
from nanoreason.tokenizer import TextTokenizer

Loss = Callable[[torch.Tensor, Batch], torch.Tensor]  # log-probs (B, T), batch -> per-token loss (B, T)

# ------------------------------------------------------------------------------------------------------ log-probs


def token_logprobs(
    model: Transformer, tokens: torch.Tensor, mask: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """tokens (B, T), mask (B, T) bool -> log-probs (B, T) of the tokens under `mask`, 0 elsewhere.

    The temperature is the sampler's: the log-probs are those of the distribution that the tokens were drawn from.
    The head is applied at masked columns only, and cross-entropy keeps no second (M, V) tensor for the backward pass.
    """
    with autocast(tokens.device):
        hidden = model.hidden(tokens[:, :-1])  # (B, T-1, D): column t knows tokens[:, :t+1] and is about t+1
        picked = mask[:, 1:]  # (B, T-1)
        logits = model.lm_head(hidden[picked])  # (M, V)
    logprobs = -F.cross_entropy(logits.float() / temperature, tokens[:, 1:][picked], reduction="none")  # (M,)
    shifted = torch.zeros(picked.shape, device=tokens.device).masked_scatter(picked, logprobs)
    return F.pad(shifted, (1, 0))  # (B, T): nothing predicts the first token


# ------------------------------------------------------------------------------------- advantages, losses, averages


def group_advantages(rewards: list[float], group_size: int, divide_by_std: bool = True) -> list[float]:
    """Reward minus the mean of its group, divided by the group's standard deviation (GRPO, DeepSeekMath eq. 3-4).

    The deviation is that of the G samples themselves (divisor G). A group whose rewards are all equal says nothing
    about what is better: its advantages are exactly 0, and so they are for a group of one.

    >>> group_advantages([1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0], 4)
    [1.0, -1.0, -1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    >>> group_advantages([1.0, 0.0, 0.0, 0.0], 4, divide_by_std=False)
    [0.75, -0.25, -0.25, -0.25]
    """
    if len(rewards) % group_size:
        raise ValueError(f"{len(rewards)} rewards do not fall into groups of {group_size}")
    advantages: list[float] = []
    for first in range(0, len(rewards), group_size):
        group = rewards[first : first + group_size]
        if max(group) == min(group):
            advantages += [0.0] * group_size
            continue
        mean = sum(group) / group_size
        std = (sum((r - mean) ** 2 for r in group) / group_size) ** 0.5
        advantages += [(r - mean) / (std if divide_by_std else 1.0) for r in group]
    return advantages


def sft_loss(logprobs: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Negative log-likelihood (B, T) of what the row says."""
    return -logprobs


def clipped_policy_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> torch.Tensor:
    """-min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A), per token (B, T) (PPO eq. 7; DAPO's two bounds).

    The gradient stops where the ratio has already moved far enough in the direction that A asks for: above
    1 + clip_high if A > 0, below 1 - clip_low if A < 0. It never stops a move back.
    """
    ratio = (logprobs - old_logprobs).clamp(-20, 20).exp()  # e^89 is inf, and a gradient of 0 * inf would be NaN
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def kl_estimate(logprobs: torch.Tensor, ref_logprobs: torch.Tensor, estimator: str = "k3") -> torch.Tensor:
    """Per-token estimate (B, T) of KL(policy || reference) from tokens that the policy drew (Schulman, 2020).

    k1 = log p/q is unbiased and may be negative; k2 = (log p/q)^2 / 2 is biased, never negative and has the exact
    gradient of the KL; k3 = q/p - 1 - log q/p is unbiased and never negative.
    """
    difference = ref_logprobs - logprobs  # log q/p
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return difference.square() / 2
    if estimator == "k3":
        return difference.expm1() - difference
    raise ValueError(f"unknown KL estimator {estimator!r}: use k1, k2 or k3")


def token_weights(rollouts: list[Rollout], average: str = "token", constant: int | None = None) -> list[list[float]]:
    """How much each token of a whole step counts; 0 for prompt and forced tokens.

    token      every token alike: 1 / number of loss tokens in the step (DAPO; SFT)
    sequence   every row alike: 1 / (rows * loss tokens of the row) (GRPO)
    constant   1 / (rows * `constant`), so a token's weight does not depend on its row's length (Dr. GRPO)
    """
    counts = [sum(row.loss_mask) for row in rollouts]
    if average == "token":
        each = [1 / max(1, sum(counts))] * len(counts)
    elif average == "sequence":
        each = [1 / (len(counts) * max(1, count)) for count in counts]
    elif average == "constant":
        if not constant:
            raise ValueError("average 'constant' needs the constant: the budget of response tokens")
        each = [1 / (len(counts) * constant)] * len(counts)
    else:
        raise ValueError(f"unknown average {average!r}: use token, sequence or constant")
    return [[weight * counted for counted in row.loss_mask] for weight, row in zip(each, rollouts, strict=True)]


# -------------------------------------------------------------------------------------------------------- batches


def collate(rollouts: list[Rollout], weights: list[list[float]], device: torch.device, pad_id: int = 0) -> Batch:
    """Ragged rows -> right-padded tensors (B, T). Padding has weight 0 and is seen by no real token."""
    T = max(len(row.tokens) for row in rollouts)

    def padded(lists: list[list], fill, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor([values + [fill] * (T - len(values)) for values in lists], dtype=dtype, device=device)

    return Batch(
        tokens=padded([row.tokens for row in rollouts], pad_id, torch.int64),
        loss_mask=padded([row.loss_mask for row in rollouts], False, torch.bool),
        old_logprobs=padded([row.logprobs for row in rollouts], 0.0, torch.float32),
        weights=padded(weights, 0.0, torch.float32),
        advantages=torch.tensor([[row.advantage] for row in rollouts], dtype=torch.float32, device=device),
    )


def micro_batches(lengths: list[int], micro_tokens: int) -> list[list[int]]:
    """Row indices, longest first, cut so that rows * longest row <= micro_tokens (a longer single row stands alone).

    >>> micro_batches([3, 9, 4, 8], 18)
    [[1, 3], [2, 0]]
    """
    cut: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not cut or (len(cut[-1]) + 1) * lengths[cut[-1][0]] > micro_tokens:
            cut.append([])
        cut[-1].append(i)
    return cut


# --------------------------------------------------------------------------------------------------------- update


def make_optimizer(
    model: Transformer, weight_decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.999)
) -> torch.optim.AdamW:
    """AdamW; the learning rate is set at each update."""
    return torch.optim.AdamW(
        model.parameters(), lr=0.0, betas=betas, weight_decay=weight_decay, fused=model.device.type != "mps"
    )


def update(
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    rollouts: list[Rollout],
    loss_of: Loss = sft_loss,
    *,
    lr: float,
    weights: list[list[float]] | None = None,
    temperature: float = 1.0,
    micro_tokens: int = 4096,
    max_grad_norm: float = 1.0,
) -> dict[str, float]:
    """One optimizer step on all of `rollouts`. Returns loss, grad_norm (before clipping) and loss tokens.

    A loss or gradient that is not finite stops the run with FloatingPointError before any weight is touched.
    """
    weights = token_weights(rollouts) if weights is None else weights
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for indices in micro_batches([len(row.tokens) for row in rollouts], micro_tokens):
        batch = collate([rollouts[i] for i in indices], [weights[i] for i in indices], model.device)
        logprobs = token_logprobs(model, batch.tokens, batch.loss_mask, temperature)
        losses = loss_of(logprobs, batch) * batch.weights  # (B, T)
        loss = losses.sum()
        if not torch.isfinite(loss):
            row = rollouts[indices[int((~losses.isfinite()).any(1).nonzero()[0])]]
            raise FloatingPointError(
                f"the loss is {loss.item()} because of the sample with prompt {row.problem.prompt[:60]!r} "
                f"({len(row.response)} response tokens, advantage {row.advantage}): no weight was changed"
            )
        loss.backward()
        total += loss.item()
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    if not torch.isfinite(grad_norm):
        longest = max(rollouts, key=lambda row: len(row.tokens))
        raise FloatingPointError(
            f"the gradient's norm is {grad_norm.item()} though the loss is {total}: no weight was changed. "
            f"Lower the learning rate ({lr}); the longest sample has prompt {longest.problem.prompt[:60]!r}"
        )
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    torch.autograd.graph.increment_version(list(model.parameters()))  # a fused step does not; samplers look at it
    return {"loss": total, "grad_norm": grad_norm.item(), "num_tokens": sum(sum(row.loss_mask) for row in rollouts)}


def fit(
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    rows_of: Callable[[int], list[Rollout]],
    *,
    steps: int,
    lr: float,
    first_step: int = 0,
    warmup: int = 20,
    decay: bool = False,
    micro_tokens: int = 4096,
    max_grad_norm: float = 1.0,
    after: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    name: str = "sft",
) -> None:
    """Supervised fine-tuning: step s is an update on the demonstrations `rows_of(s)`, then `after(s, metrics)`.

    The rows are a function of the step, so a run that stops and resumes at `first_step` sees the same ones.
    """
    with progress(total=steps, initial=first_step, desc=name, unit="step") as bar:
        for step in range(first_step, steps):
            rate = learning_rate(step, steps, lr, warmup, decay)
            metrics = update(
                model, optimizer, rows_of(step), lr=rate, micro_tokens=micro_tokens, max_grad_norm=max_grad_norm
            )
            after(step, {**metrics, "learning_rate": rate})
            bar.set_postfix(loss=f"{metrics['loss']:.3f}", refresh=False)
            bar.update()


def in_epochs(rows: list[Rollout], rows_per_step: int, seed: int) -> Callable[[int], list[Rollout]]:
    """`rows_of` for `fit`: all rows once per epoch in a new order, as a function of the step alone."""

    def rows_of(step: int) -> list[Rollout]:
        wanted = range(step * rows_per_step, (step + 1) * rows_per_step)
        return [rows[order(i // len(rows))[i % len(rows)]] for i in wanted]

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> list[int]:
        return random.Random(seed_of(seed, "epoch", epoch)).sample(range(len(rows)), len(rows))

    return rows_of


def from_stream(tokenizer: TextTokenizer, task: Task, split: str, rows_per_step: int) -> Callable[[int], list[Rollout]]:
    """`rows_of` for `fit`: the next problems of a split with their own solutions, never the same index twice."""

    def rows_of(step: int) -> list[Rollout]:
        indices = range(step * rows_per_step, (step + 1) * rows_per_step)
        return [demonstration(tokenizer, task.problem(split, i)) for i in indices]

    return rows_of
