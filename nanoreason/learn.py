"""From rollouts to new weights: log-probs, advantages, losses, averages, collate, and the one `update`.

    rollouts -> weights of the whole step -> micro-batches -> log-probs -> losses -> (losses * weights).sum() -> step

(a rollout is a row, or a row and the rows that it spawned: they share the root's advantage and count as one)

Every algorithm is `loss = (per_token_loss * weights).sum()`. The average (per token, per sequence, constant) is the
tensor of weights, computed over the whole step before it is cut, so the gradient does not depend on the cut.
Column t of every (B, T) tensor is about `tokens[:, t]`; `token_logprobs` is the one function that shifts.
"""

from __future__ import annotations

import functools
import json
import math
import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
import torch.nn.functional as F

from nanoreason import processes
from nanoreason.model import Transformer
from nanoreason.optim import OPTIMIZERS, Optimizer
from nanoreason.rollout import Batch, Rollout, seed_of
from nanoreason.run import Count, Progress, Range, autocast, learning_rate
from nanoreason.sharding import is_sharded, reshard, together

Loss = Callable[[torch.Tensor, Batch], torch.Tensor]  # log-probs (B, T), batch -> per-token loss (B, T)
Measure = Callable[[torch.Tensor, Batch], dict[str, torch.Tensor]]  # the same -> {metric: per-token value (B, T)}

CHUNK_LOGITS = 1 << 24  # logits held at once by `ChunkedHead`, which takes over where a micro-batch has more of them
EQUAL = 1e-12  # rewards closer than this are equal: the rest is rounding
NEVER = torch.finfo(torch.float32).min / 2  # a logit of probability 0; 0 * log 0 of -inf would be NaN in the entropy

# ------------------------------------------------------------------------------------------------------ log-probs


def token_logprobs(
    model: Transformer, tokens: torch.Tensor, mask: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """tokens (B, T), mask (B, T) bool -> log-probs (B, T) of the tokens under `mask`, 0 elsewhere."""
    return logprobs_and_entropy(model, tokens, mask, temperature, with_entropy=False)[0]


def logprobs_and_entropy(
    model: Transformer, tokens: torch.Tensor, mask: torch.Tensor, temperature: float = 1.0, with_entropy: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """tokens (B, T), mask (B, T) bool -> log-probs (B, T) of the tokens under `mask`, and the entropy (B, T), in nats,
    of the distribution that each of them was drawn from; both are 0 elsewhere.

    The temperature is the sampler's: the log-probs are those of the distribution that the tokens were drawn from.
    The head is applied at masked columns only, and cross-entropy keeps no second (M, V) tensor for the backward pass.
    An id without a token (`model.no_token`) has probability 0: its log-prob is -inf, and no gradient reaches its logit.
    """
    no_token = model.no_token
    with autocast(tokens.device):
        # <exercise mask>
        hidden = states_of(model, tokens[:, :-1], mask)  # (B, T-1, D): column t knows tokens[:, :t+1], is about t+1
        picked = mask[:, 1:]  # (B, T-1)
        hidden, targets = hidden[picked], tokens[:, 1:][picked]  # (M, D), (M,)
        # </exercise mask>
        if len(targets) * model.config.vocab_size > CHUNK_LOGITS:
            logprobs, entropy = ChunkedHead.apply(hidden, model.lm_head.weight, targets, temperature, no_token)  # (M,)
        else:
            logits = model.lm_head(hidden)  # (M, V)
            logits = logits.float() / temperature
            if no_token is not None:
                logits = logits.masked_fill(no_token, NEVER)
            logprobs = -F.cross_entropy(logits, targets, reduction="none")
            entropy = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1) if with_entropy else logprobs * 0

        if no_token is not None:
            logprobs = logprobs.masked_fill(no_token[targets], -torch.inf)

    def in_columns(values: torch.Tensor) -> torch.Tensor:
        # <exercise mask>
        shifted = torch.zeros(picked.shape, device=tokens.device).masked_scatter(picked, values)
        return F.pad(shifted, (1, 0))  # (B, T): nothing predicts the first token
        # </exercise mask>

    return in_columns(logprobs), in_columns(entropy)


def states_of(model: Transformer, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """tokens (B, T) -> final hidden states (B, T, D), as `model.hidden` gives them from one column before the first
    loss token of the `mask` on; what is before that may be left at 0.

    The rows of a group begin with the same prompt. Where this is a quarter of the tokens or more, each prompt is read
    once: its keys and values are those of all rows that begin with it, and gradients add up in them.
    """
    B, T = tokens.shape
    L = max(0, min(T, int(mask.any(0).int().argmax()) - 1))  # columns of which nothing is asked
    if not is_worth_sharing(B, T, L, 1):  # not even if all prompts were the same
        return model.hidden(tokens)
    if model.recompute or is_sharded(model):  # a block is computed again, or put together, once per row
        return model.hidden(tokens)
    prompts, of_row = torch.unique(tokens[:, :L], dim=0, return_inverse=True)  # (P, L), (B,)
    if not is_worth_sharing(B, T, L, len(prompts)):
        return model.hidden(tokens)
    positions = torch.arange(T, device=tokens.device)
    read = Prefix(L)
    model.hidden(prompts, positions[:L].expand(len(prompts), L), read)
    hidden = model.hidden(tokens[:, L:], positions[L:].expand(B, T - L), Prefix(T, read, of_row))
    return F.pad(hidden, (0, 0, L, 0))


def is_worth_sharing(rows: int, columns: int, prompt: int, prompts: int) -> bool:
    """Whether reading so many different prompts once each saves a quarter of the tokens of a micro-batch, or more."""
    return prompt * (rows - prompts) >= 0.25 * rows * columns


class Prefix:
    """What a KVCache is to the model's layers, for training: nothing is written in place, so gradients flow through it.

    slots   columns that there are keys of, from the first one on
    read    keys and values of the columns before those that are being read now: row i goes on from row `of_row[i]`
    """

    def __init__(self, slots: int, read: Prefix | None = None, of_row: torch.Tensor | None = None):
        self.slots, self.read, self.of_row = slots, read, of_row
        self.kv: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # of each layer (P, K, L, d)

    def addresses(self, positions: torch.Tensor) -> None:
        """Nothing is written."""

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor, addresses: None) -> tuple[torch.Tensor, torch.Tensor]:
        """k, v (B, K, T, d) of the columns that are read now -> those of all columns (B, K, slots, d)."""
        if self.read is None:
            self.kv[layer] = k, v
            return k, v
        old = (values.index_select(0, self.of_row) for values in self.read.kv[layer])
        return tuple(torch.cat(pair, 2) for pair in zip(old, (k, v), strict=True))


class ChunkedHead(torch.autograd.Function):
    """hidden (M, D), weight (V, D), targets (M,) -> log-probs (M,) and entropies (M,), never holding all (M, V) logits.

    With 150,000 tokens in the vocabulary, logits and their gradient are most of the memory of an update. Here a few
    rows are done at a time, and the backward pass computes their logits once more. With p = softmax(logits):

        d log p_y / d logit_j = [j = y] - p_j          d entropy / d logit_j = -p_j (log p_j + entropy)
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature, no_token=None):
        ctx.temperature, ctx.rows, ctx.no_token = temperature, max(1, CHUNK_LOGITS // len(weight)), no_token
        logprobs, entropy = hidden.new_empty(2, len(targets), dtype=torch.float32)
        for first in range(0, len(targets), ctx.rows):
            part = slice(first, first + ctx.rows)
            logits = F.linear(hidden[part], weight)  # under autocast in bf16; the backward pass does the same
            logp = ChunkedHead.log_softmax(logits, ctx)  # (rows, V)
            logprobs[part] = logp.gather(-1, targets[part, None])[:, 0]
            entropy[part] = -logp.exp().mul_(logp).sum(-1)
        ctx.dtype = logits.dtype
        ctx.save_for_backward(hidden, weight, targets, entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx, d_logprobs, d_entropy):
        hidden, weight, targets, entropy = ctx.saved_tensors
        d_hidden, W = torch.empty_like(hidden), weight.to(ctx.dtype)
        d_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None  # None: the head is frozen
        for first in range(0, len(targets), ctx.rows):
            part = slice(first, first + ctx.rows)
            h, d_logp = hidden[part].to(ctx.dtype), d_logprobs[part, None]
            logp = ChunkedHead.log_softmax(F.linear(h, W), ctx)  # (rows, V)
            p = logp.exp()
            d_logits = logp.add_(entropy[part, None]).mul_(d_entropy[part, None]).add_(d_logp).mul_(p).neg_()
            d_logits = d_logits.scatter_add_(1, targets[part, None], d_logp).div_(ctx.temperature).to(ctx.dtype)
            d_hidden[part] = d_logits @ W
            if d_weight is None:
                continue
            if ctx.dtype == weight.dtype:
                d_weight.addmm_(d_logits.T, h)  # in place: no second (V, D) tensor per chunk
            else:
                d_weight += d_logits.T @ h
        return d_hidden, d_weight, None, None, None

    @staticmethod
    def log_softmax(logits, ctx):
        logits = logits.float().div_(ctx.temperature)
        return (logits if ctx.no_token is None else logits.masked_fill_(ctx.no_token, NEVER)).log_softmax(-1)


# ------------------------------------------------------------------------------------- advantages, losses, averages


def is_zero_variance(rewards: list[float]) -> bool:
    """Whether all rewards of a group are equal, so that nothing in it is better than the rest."""
    return max(rewards) - min(rewards) <= EQUAL


def group_advantages(groups: list[list[float]], divide_by: str = "group") -> list[list[float]]:
    """Rewards, group by group -> reward minus the mean of its group, divided by a standard deviation (GRPO,
    DeepSeekMath eq. 3-4).

    divide_by   group   that of the group's own G rewards (GRPO)
                batch   that of all rewards (LitePPO), so that a group with little variance is not blown up
                none    nothing (Dr. GRPO), so that very easy and very hard problems do not count more than others

    A group whose rewards are all equal says nothing about what is better: its advantages are exactly 0, and so they
    are for a group of one. Deviations have divisor G, the number of rewards (TRL and verl use G - 1).

    >>> group_advantages([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    [[1.0, -1.0, -1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]
    >>> group_advantages([[1.0, 0.0, 0.0, 0.0]], divide_by="none")
    [[0.75, -0.25, -0.25, -0.25]]
    """
    if divide_by not in ("group", "batch", "none"):
        raise ValueError(f"cannot divide advantages by {divide_by!r}: use group, batch or none")
    # <exercise advantages>
    everything = [reward for group in groups for reward in group]
    advantages: list[list[float]] = []
    for group in groups:
        if is_zero_variance(group):
            advantages.append([0.0] * len(group))
            continue
        mean = statistics.fmean(group)
        std = 1.0 if divide_by == "none" else statistics.pstdev(group if divide_by == "group" else everything)
        advantages.append([(r - mean) / std for r in group])
    return advantages
    # </exercise advantages>


def sft_loss(logprobs: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Negative log-likelihood (B, T) of what the row says."""
    return -logprobs


def policy_ratio(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, level: str = "token", mask: torch.Tensor | None = None
) -> torch.Tensor:
    """policy / old policy (B, T): of each token, or of its whole row.

    "sequence" is GSPO's s = (pi(row) / pi_old(row))^(1 / loss tokens of the row) (GSPO eq. 7), the same in all columns.
    """
    # <exercise policy_loss>
    log_ratio = logprobs - old_logprobs
    if level == "sequence":
        mean = (log_ratio * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)  # (B, 1)
        log_ratio = mean.expand_as(logprobs)
    return log_ratio.clamp(-20, 20).exp()  # e^89 is inf, and a gradient of 0 * inf would be NaN
    # </exercise policy_loss>


def clipped_policy_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    *,
    cap: float = math.inf,
    level: str = "token",
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """-min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A), per token (B, T) (PPO eq. 7; DAPO's two bounds).

    The gradient stops where the ratio has already moved far enough in the direction that A asks for: above
    1 + clip_high if A > 0, below 1 - clip_low if A < 0. It never stops a move back, unless the ratio is above `cap`:
    then a wrong token that has become far too likely has a bounded loss and no gradient (INTELLECT-2's two-sided clip).

    level   token      each token has its own ratio (PPO, GRPO, DAPO)
            sequence   all tokens of a row have the row's ratio; needs the `mask` of loss tokens (GSPO)
            detached   -min(ratio, 1 + clip_high) * A * log-prob with the ratio held fixed: it only weighs the gradient,
                       which therefore never stops (CISPO, MiniMax-M1 eq. 4-5; no lower bound)
    """
    # <exercise policy_loss>
    ratio = policy_ratio(logprobs, old_logprobs, level, mask)
    if level == "detached":
        return -ratio.clamp(max=1 + clip_high).detach() * advantages * logprobs
    ratio = ratio.clamp(max=cap)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratio * advantages, clipped * advantages)
    # </exercise policy_loss>


def kl_estimate(logprobs: torch.Tensor, ref_logprobs: torch.Tensor, estimator: str = "k3") -> torch.Tensor:
    """Per-token estimate (B, T) of KL(policy || reference) from tokens that the policy drew (Schulman, 2020).

    k1 = log p/q is unbiased and may be negative; k2 = (log p/q)^2 / 2 is biased, never negative and has the exact
    gradient of the KL; k3 = q/p - 1 - log q/p is unbiased and never negative, but its gradient is that of KL(q || p).
    """
    # <exercise kl>
    difference = ref_logprobs - logprobs  # log q/p
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return difference.square() / 2
    if estimator == "k3":
        difference = difference.clamp(-20, 20)  # as in the ratio
        return difference.expm1() - difference
    # </exercise kl>
    raise ValueError(f"unknown KL estimator {estimator!r}: use k1, k2 or k3")


@dataclass(frozen=True)
class Algorithm:
    """GRPO and its family as switches: advantages, the loss per token (B, T), and how it is averaged.

        -min(ratio * A, clip(ratio) * A) * sampler weight + kl_coef * k(log p/q)           (DeepSeekMath eq. 3)

    With one update per rollout set `on_policy`: the old policy is then the policy itself, the ratio is exactly 1, and
    the loss is about 0 (advantages have mean 0) while its gradient is that of -A * log-prob.
    """

    name: str = field(default="grpo", metadata={"hidden": True})
    baseline: Literal["group", "none"] = "group"  # what is subtracted from the reward: its group's mean or nothing
    divide_by: Literal["group", "batch", "none"] = "group"  # the standard deviation of the rewards that divides it
    average: Literal["sequence", "token", "constant"] = "sequence"  # of rows, of all tokens, or sums by a constant
    length_constant: Count = 0  # constant: what a row's sum is divided by; 0: the largest max_new_tokens of the run
    ratio: Literal["token", "sequence", "detached", "apa"] = "token"  # of tokens, of rows, as a weight; apa: no ratio
    clip_low: Annotated[float, Range(0, infinite=True)] = 0.2  # ratios below 1 - this: no gradient of wrong tokens
    clip_high: Annotated[float, Range(0, infinite=True)] = 0.2  # ratios above 1 + this: no gradient of right tokens
    cap: Annotated[float, Range(0, infinite=True)] = math.inf  # two-sided clip: above it none of wrong ones either
    kl_coef: Annotated[float, Range(0, 1000)] = 0.0  # beta, weight of KL(policy || reference); 0: no reference
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"  # k3 or k2 in the loss, k1 in the reward
    kl_correction: bool = False  # weigh k2 or k3 by the ratio: exact gradient of the KL when off-policy
    reference_every: Count = 400  # updates between replacements of the reference by the policy; 0: never
    entropy_coef: float = 0.0  # weight of the entropy bonus
    sampler_cap: Annotated[float, Range(0, infinite=True)] = math.inf  # largest weight old policy / sampler; inf: none
    max_refills: Count = 0  # dynamic sampling: how often groups of equal rewards are replaced by new problems
    overlong_filter: bool = False  # rows that were cut are not learnt from
    on_policy: bool = field(default=False, metadata={"hidden": True})

    @property
    def needs_reference(self) -> bool:
        return self.kl_coef > 0 or self.ratio == "apa"

    def old(self, logprobs: torch.Tensor, batch: Batch) -> torch.Tensor:
        return logprobs.detach() if self.on_policy else batch.old_logprobs

    def __call__(self, logprobs: torch.Tensor, batch: Batch) -> torch.Tensor:
        if self.ratio == "apa":
            return apa_loss(logprobs, batch.ref_logprobs, batch.advantages)
        old = self.old(logprobs, batch)
        loss = clipped_policy_loss(logprobs, old, batch.advantages, self.clip_low, self.clip_high,
                                   cap=self.cap, level=self.ratio, mask=batch.loss_mask)  # fmt: skip
        if self.sampler_cap < math.inf:
            loss = loss * policy_ratio(old, batch.sampler_logprobs).clamp(max=self.sampler_cap)
        if self.kl_coef and self.kl_estimator != "k1":
            loss = loss + self.kl_coef * self.kl(logprobs, old, batch.ref_logprobs)
        return loss

    def kl(self, logprobs: torch.Tensor, old: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
        """Corrected, both estimators have the exact gradient of KL(policy || reference) on samples of the old policy.

        For k3 the gradient must go through the ratio (E_old[ratio * k3] is the KL, as in DeepSeek-V3.2); k2 has the
        right gradient and a wrong mean, so that for k2 it must not.
        """
        estimate = kl_estimate(logprobs, ref_logprobs, self.kl_estimator)
        if not self.kl_correction:
            return estimate
        ratio = policy_ratio(logprobs, old)
        return estimate * (ratio.detach() if self.kl_estimator == "k2" else ratio)

    def measure(self, logprobs: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        """Per token: where the clip stops the gradient, KL to the reference, how far the learner is off the sampler."""
        old, A = self.old(logprobs, batch), batch.advantages
        ratio = policy_ratio(logprobs, old, self.ratio, batch.loss_mask)
        low, high = (ratio < 1 - self.clip_low) & (A < 0), (ratio > 1 + self.clip_high) & (A > 0)
        if self.ratio == "detached":  # the ratio is cut, the gradient goes on
            low, high = torch.zeros_like(low), ratio > 1 + self.clip_high
        difference = (old - batch.sampler_logprobs).abs()
        measured = {
            "clip_ratio/low_mean": low,
            "clip_ratio/high_mean": high,
            "clip_ratio/region_mean": low | high,
            "logp_diff/mean": difference,
            "logp_diff/max": difference,
        }
        return measured | ({"kl": kl_estimate(logprobs, batch.ref_logprobs)} if self.needs_reference else {})


# What each algorithm sets. CISPO's bound is not published, 1 + 4 is the one recommended in TRL. DAPO also has a soft
# punishment of overlong responses, which is a reward: --rewards accuracy,overlong
ALGORITHMS = {
    "grpo": Algorithm(),  # DIFFERS from the papers: no KL unless asked for (DeepSeekMath: kl_coef 0.04, R1: 0.001)
    "dr_grpo": Algorithm("dr_grpo", average="constant", divide_by="none"),
    "dapo": Algorithm("dapo", average="token", clip_high=0.28, max_refills=4),
    "gspo": Algorithm("gspo", ratio="sequence", clip_low=3e-4, clip_high=4e-4),
    "cispo": Algorithm("cispo", average="token", ratio="detached", clip_high=4.0),
    "reinforce": Algorithm("reinforce", average="constant", divide_by="none", baseline="none", ratio="detached",
                           clip_high=math.inf),
    "apa": Algorithm("apa", average="token", ratio="apa", reference_every=20),
}  # fmt: skip


def apa_loss(logprobs: torch.Tensor, ref_logprobs: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """(log pi - log pi_ref - A / 2)^2, per token (B, T) (advantage-induced policy alignment, Zhu et al., 2023).

    The pull is towards pi_ref * exp(A / 2), so it ends there: the policy is kept near the reference without a clip or a
    penalty.
    """
    return (logprobs - ref_logprobs - 0.5 * advantages).square()


def token_weights(
    rows: list[Rollout], average: str = "token", constant: int | None = None, rollouts: int | None = None
) -> list[list[float]]:
    """How much each token of a whole step counts; 0 for prompt and forced tokens.

    token      every token alike: 1 / number of loss tokens in the step (DAPO; SFT)
    sequence   every rollout alike: 1 / (rollouts * loss tokens of the rollout) (GRPO)
    constant   1 / (rollouts * `constant`), so a token's weight does not depend on its row's length (Dr. GRPO)

    A row counts for its root: a rollout's tokens are those of all its rows. `rollouts` is their number in the step
    where `rows` are not all of it (rows that were cut are left out, and the others count no more for it, as in TRL).
    """
    # <exercise policy_loss>
    counts: dict[int, int] = {}
    for row in rows:
        counts[id(row.root)] = counts.get(id(row.root), 0) + sum(row.loss_mask)
    rollouts = len(counts) if rollouts is None else rollouts
    if average == "token":
        each = dict.fromkeys(counts, 1 / max(1, sum(counts.values())))
    elif average == "sequence":
        each = {root: 1 / (rollouts * max(1, count)) for root, count in counts.items()}
    elif average == "constant":
        if not constant:
            raise ValueError("average 'constant' needs the constant: the budget of response tokens")
        each = dict.fromkeys(counts, 1 / (rollouts * constant))
    else:
        raise ValueError(f"unknown average {average!r}: use token, sequence or constant")
    return [[each[id(row.root)] * counted for counted in row.loss_mask] for row in rows]
    # </exercise policy_loss>


# -------------------------------------------------------------------------------------------------------- batches


def right_padded(lists: list[list], fill: float, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Ragged lists -> (B, T), T being the length of the longest."""
    T = max(map(len, lists))
    return torch.tensor([values + [fill] * (T - len(values)) for values in lists], dtype=dtype, device=device)


def collate(rollouts: list[Rollout], weights: list[list[float]], device: torch.device, pad_id: int = 0) -> Batch:
    """Ragged rows -> right-padded tensors (B, T). Padding has weight 0 and is seen by no real token."""
    padded = functools.partial(right_padded, device=device)
    advantages = torch.tensor([[row.root.advantage] for row in rollouts], dtype=torch.float32, device=device)  # (B, 1)
    if any(row.token_advantages for row in rollouts):
        for row in rollouts:
            if row.token_advantages and len(row.token_advantages) != len(row.tokens):
                raise ValueError(f"{len(row.token_advantages)} token_advantages for a row of {len(row.tokens)} tokens")
        of_tokens = [row.token_advantages or [0.0] * len(row.tokens) for row in rollouts]
        advantages = advantages + padded(of_tokens, 0.0, torch.float32)  # (B, T)
    return Batch(
        tokens=padded([row.tokens for row in rollouts], pad_id, torch.int64),
        loss_mask=padded([row.loss_mask for row in rollouts], False, torch.bool),
        old_logprobs=padded([row.old_logprobs or row.logprobs for row in rollouts], 0.0, torch.float32),
        weights=padded(weights, 0.0, torch.float32),
        advantages=advantages,
        sampler_logprobs=padded([row.logprobs for row in rollouts], 0.0, torch.float32),
        ref_logprobs=padded([row.ref_logprobs or [0.0] * len(row.tokens) for row in rollouts], 0.0, torch.float32),
    )


def micro_batches(lengths: list[int], micro_tokens: int) -> list[list[int]]:
    """Row indices, longest first, cut so that rows * longest row <= micro_tokens (a longer single row stands alone).

    Among all such cuts of the sorted rows it is the cheapest: a micro-batch costs its tokens, padding included, and as
    much as about 100 tokens (with large budgets, as on a GPU: a 16th of the budget) to be started. By dynamic
    programming: the best cut of the first i rows is the best cut of some first j rows, and rows j..i-1 as the last.

    >>> micro_batches([3, 9, 4, 8], 18)
    [[1, 3], [2, 0]]
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    start = max(100, micro_tokens // 16)
    best = [(0, 0)]  # of the first i rows: the least cost, and (negative) where the last micro-batch of that cut begins
    for i in range(1, len(order) + 1):
        cuts = []
        for j in reversed(range(i)):  # row j is the longest of j..i-1
            tokens = (i - j) * lengths[order[j]]
            if tokens > micro_tokens and j < i - 1:
                break  # and with the even longer rows before it all the more
            cuts.append((best[j][0] + tokens + start, -j))
        best.append(min(cuts))
    cut, i = [], len(order)
    while i:
        i, stop = -best[i][1], i
        cut.append(order[i:stop])
    return cut[::-1]


def row_batches(rollouts: list[Rollout], indices: list[int], micro_tokens: int) -> list[list[int]]:
    """`micro_batches` of the rollouts with these indices, each as such indices."""
    cut = micro_batches([len(rollouts[i].tokens) for i in indices], micro_tokens)
    return [[indices[i] for i in part] for part in cut]


def own_batches(model: Transformer, batches: list[list[int]]) -> list[tuple[list[int], bool]]:
    """This process's share of all micro-batches, and whether each counts. Of a sharded model every process does as
    many, since they put its blocks together at the same time: one that has too few does the cheapest again, which does
    not count."""
    own = [(indices, True) for indices in processes.mine(batches)]
    most = math.ceil(len(batches) / processes.count()) if is_sharded(model) else 0
    return own + [(batches[-1], False) for _ in range(most - len(own))]


# --------------------------------------------------------------------------------------------------------- update


def make_optimizer(
    model: Transformer, name: str = "adamw", weight_decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.999),
    moments: str = "float32",
) -> Optimizer:  # fmt: skip
    """adamw, or muon (for the matrices of the layers; AdamW for the rest). Each update sets its own learning rate.

    moments   how adamw stores its two: float32, bfloat16 or cpu
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {name!r}: use {' or '.join(OPTIMIZERS)}")
    return OPTIMIZERS[name](
        model, betas=betas, weight_decay=weight_decay, **({"moments": moments} if name == "adamw" else {})
    )


def update(
    model: Transformer,
    optimizer: Optimizer,
    rollouts: list[Rollout],
    loss_of: Loss = sft_loss,
    *,
    lr: float,
    weights: list[list[float]] | None = None,
    temperature: float = 1.0,
    micro_tokens: int = 4096,
    max_grad_norm: float = 1.0,
    entropy_coef: float | None = None,
    measure: Measure | None = None,
    update_ratio: bool = False,
) -> dict[str, float]:
    """One optimizer step on all of `rollouts`. Returns loss, grad_norm (before clipping) and loss tokens.

    entropy_coef   subtracts this much of the entropy from each token's loss and returns "entropy"; 0 only measures it
    measure        more per-token values to return, as means over loss tokens (names that end in /max: as maxima)
    update_ratio   return it too: the norm of the step over that of the weights

    A loss or gradient that is not finite stops the run with FloatingPointError before any weight is touched. Of several
    processes each is given all rows and computes the gradients of some micro-batches.
    """
    if not 0 <= lr < math.inf:  # NaN is in no range
        raise ValueError(f"the learning rate is {lr}: it must be a number from 0 on")
    longest = max(rollouts, key=lambda row: len(row.tokens))
    if len(longest.tokens) > model.config.max_position_embeddings:
        raise ValueError(
            f"a sample has {len(longest.tokens)} tokens, the model's context of {model.config.max_position_embeddings} "
            f"is too short for it (prompt starts {longest.problem.prompt[:40]!r})"
        )
    if not any(any(row.loss_mask) for row in rollouts):
        raise ValueError(f"none of {len(rollouts)} rows has a token that counts in the loss: no weight was changed")
    weights = token_weights(rollouts) if weights is None else weights
    optimizer.zero_grad()
    total = 0.0
    measured: dict[str, list[torch.Tensor]] = {}
    moving, still = by_advantage(rollouts)
    batches = [part for some in (moving, still) for part in row_batches(rollouts, some, micro_tokens)]
    for indices, counts in own_batches(model, batches):
        batch = collate([rollouts[i] for i in indices], [weights[i] for i in indices], model.device)
        batch.weights.mul_(counts)
        logprobs, entropy = logprobs_and_entropy(
            model, batch.tokens, batch.loss_mask, temperature, with_entropy=entropy_coef is not None
        )
        if not entropy_coef:
            entropy = entropy.detach()  # only measured: two (M, V) tensors, which its gradient would need, are let go
        losses = loss_of(logprobs, batch) * batch.weights  # (B, T)
        if entropy_coef:
            losses = losses - entropy_coef * entropy * batch.weights
        loss = losses.sum()
        if not torch.isfinite(loss):
            row = rollouts[indices[int((~losses.isfinite()).any(1).nonzero()[0])]]
            raise FloatingPointError(
                f"the loss is {loss.item()} because of the sample with prompt {row.problem.prompt[:60]!r} "
                f"({len(row.response)} response tokens, advantage {row.advantage}): no weight was changed"
            )
        # Where all rewards of a group are equal the gradient is 0, and two thirds of the work would be for nothing.
        may_rest = indices[0] not in moving and not entropy_coef and not is_sharded(model)
        if not may_rest or torch.autograd.grad(loss, logprobs, retain_graph=True)[0].any():
            loss.backward()
        total += loss.item()
        if not counts:
            continue
        values = {} if measure is None else measure(logprobs.detach(), batch)
        for name, value in (values | ({} if entropy_coef is None else {"entropy": entropy.detach()})).items():
            measured.setdefault(name, []).append(value[batch.loss_mask].float())
    sum_gradients(model)
    grad_norm = together(torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm))
    if not torch.isfinite(grad_norm):
        longest = max(rollouts, key=lambda row: len(row.tokens))
        raise FloatingPointError(
            f"the gradient's norm is {grad_norm.item()} though the loss is {total}: no weight was changed. "
            f"Lower the learning rate ({lr}); the longest sample has prompt {longest.problem.prompt[:60]!r}"
        )
    ratio = {}
    if update_ratio:
        ratio["update_ratio"] = optimizer.measured_step(lr)
    else:
        optimizer.step(lr)
    total, means = over_processes(total, {name: torch.cat(parts) for name, parts in measured.items()})
    tokens = sum(sum(row.loss_mask) for row in rollouts)
    return {"loss": total, "grad_norm": grad_norm.item(), "num_tokens": tokens, **means, **ratio}


def by_advantage(rollouts: list[Rollout]) -> tuple[list[int], list[int]]:
    """Of the rows with loss tokens the indices of those that have an advantage other than 0, and of all others."""
    moves = {i: row.root.advantage != 0 or any(row.token_advantages or ()) for i, row in enumerate(rollouts)
             if any(row.loss_mask)}  # fmt: skip
    return tuple([i for i, so in moves.items() if so is wanted] for wanted in (True, False))


def sum_gradients(model: Transformer) -> None:
    """Each gradient becomes its sum over the processes; where there was no backward pass it is 0."""
    if is_sharded(model):  # the backward pass adds them up
        return
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    processes.add_up([parameter.grad for parameter in trained])


def over_processes(loss: float, measured: dict[str, torch.Tensor]) -> tuple[float, dict[str, float]]:
    """The sum of the losses, and the mean (of .../max: the largest) of the values that all processes have measured."""
    own = {name: [values.sum().item(), values.max().item(), len(values)] for name, values in measured.items()}
    losses, found = zip(*(json.loads(said) for said in processes.gather(json.dumps([loss, own]))), strict=True)
    means = {}
    for name in {name: None for of in found for name in of}:
        sums, largest, counts = zip(*(of[name] for of in found if name in of), strict=True)
        means[name] = max(largest) if name.endswith("/max") else sum(sums) / sum(counts)
    return sum(losses), means


@torch.no_grad()
def compute_logprobs(
    model: Transformer, rollouts: list[Rollout], temperature: float, micro_tokens: int, entropies: bool = False
) -> list[list[float]]:
    """The log-probs that `model` gives to the sampled tokens of each row, 0 at the others; or with `entropies` those of
    the distributions that the tokens are drawn from, in nats."""
    weights = token_weights(rollouts)  # collate wants them; no loss is made of them here
    scores: dict[int, list[float]] = {}
    asked = [i for i, row in enumerate(rollouts) if any(row.loss_mask)]
    for indices, counts in own_batches(model, row_batches(rollouts, asked, micro_tokens)):
        rows = [rollouts[i] for i in indices]
        batch = collate(rows, [weights[i] for i in indices], model.device)
        found = logprobs_and_entropy(model, batch.tokens, batch.loss_mask, temperature, entropies)[entropies]
        for i, values in zip(indices if counts else (), found.tolist(), strict=counts):
            scores[i] = values[: len(rollouts[i].tokens)]
    reshard(model)
    if processes.count() > 1:  # in JSON keys are texts
        everywhere = [json.loads(said) for said in processes.gather(json.dumps(scores))]
        scores = {int(i): values for of in everywhere for i, values in of.items()}
    return [scores.get(i, [0.0] * len(row.tokens)) for i, row in enumerate(rollouts)]


def fit(
    model: Transformer,
    optimizer: Optimizer,
    rows_of: Callable[[int], list[Rollout]],
    *,
    steps: int,
    lr: float,
    first_step: int = 0,
    warmup: int = 20,
    decay: str = "none",
    micro_tokens: int = 4096,
    max_grad_norm: float = 1.0,
    name: str = "sft",
) -> Iterator[tuple[int, dict[str, float]]]:
    """Supervised fine-tuning, step by step: an update on the demonstrations `rows_of(s)`, then yields (s + 1, metrics).

        for done, metrics in fit(model, optimizer, rows_of, steps=800, lr=2e-3): ...

    The rows are a function of s = 0..steps-1, so a run that stops and resumes at `first_step` sees the same ones.
    """
    with Progress(total=steps, name=name, unit="steps", done=first_step) as progress:
        for step in range(first_step, steps):
            rate = learning_rate(step, steps, lr, warmup, decay)
            metrics = update(
                model, optimizer, rows_of(step), lr=rate, micro_tokens=micro_tokens, max_grad_norm=max_grad_norm
            )
            progress.update(tokens=int(metrics["num_tokens"]), loss=metrics["loss"])
            yield step + 1, {**metrics, "learning_rate": rate}


def in_epochs(rows: list[Rollout], rows_per_step: int, seed: int) -> Callable[[int], list[Rollout]]:
    """`rows_of` for `fit`: all rows once per epoch in a new order, as a function of the step alone."""

    def rows_of(step: int) -> list[Rollout]:
        wanted = range(step * rows_per_step, (step + 1) * rows_per_step)
        return [rows[order(i // len(rows))[i % len(rows)]] for i in wanted]

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> list[int]:
        return random.Random(seed_of(seed, "epoch", epoch)).sample(range(len(rows)), len(rows))

    return rows_of
