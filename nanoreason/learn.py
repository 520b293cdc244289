"""From rollouts to new weights: log-probs, advantages, losses, averages, collate, and the one `update`.

    rollouts -> weights of the whole step -> micro-batches -> log-probs -> losses -> (losses * weights).sum() -> step

Every algorithm is `loss = (per_token_loss * weights).sum()`. The average (per token, per sequence, constant) is the
tensor of weights, computed over the whole step before it is cut, so the gradient does not depend on the cut.
Column t of every (B, T) tensor is about `tokens[:, t]`; `token_logprobs` is the one function that shifts.
"""

from __future__ import annotations

import functools
import math
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from nanoreason.model import Transformer
from nanoreason.rollout import Batch, Rollout, Task, demonstration, seed_of
from nanoreason.run import autocast, learning_rate, progress
from nanoreason.tokenizer import TextTokenizer

Loss = Callable[[torch.Tensor, Batch], torch.Tensor]  # log-probs (B, T), batch -> per-token loss (B, T)
Measure = Callable[[torch.Tensor, Batch], dict[str, torch.Tensor]]  # the same -> {metric: per-token value (B, T)}

CHUNK_LOGITS = 1 << 24  # logits held at once by `ChunkedHead`, which takes over where a micro-batch has more of them
NEVER = torch.finfo(torch.float32).min / 2  # a logit of probability 0; 0 * log 0 of -inf would be NaN in the entropy
FLAT = 1e-12  # rewards closer than this are equal: the rest is rounding
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
        hidden = model.hidden(tokens[:, :-1])  # (B, T-1, D): column t knows tokens[:, :t+1] and is about t+1
        picked = mask[:, 1:]  # (B, T-1)
        hidden, targets = hidden[picked], tokens[:, 1:][picked]  # (M, D), (M,)
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
        shifted = torch.zeros(picked.shape, device=tokens.device).masked_scatter(picked, values)
        return F.pad(shifted, (1, 0))  # (B, T): nothing predicts the first token

    return in_columns(logprobs), in_columns(entropy)


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
        d_hidden, d_weight, W = torch.empty_like(hidden), torch.zeros_like(weight), weight.to(ctx.dtype)
        for first in range(0, len(targets), ctx.rows):
            part = slice(first, first + ctx.rows)
            h, d_logp = hidden[part].to(ctx.dtype), d_logprobs[part, None]
            logp = ChunkedHead.log_softmax(F.linear(h, W), ctx)  # (rows, V)
            p = logp.exp()
            d_logits = logp.add_(entropy[part, None]).mul_(d_entropy[part, None]).add_(d_logp).mul_(p).neg_()
            d_logits = d_logits.scatter_add_(1, targets[part, None], d_logp).div_(ctx.temperature).to(ctx.dtype)
            d_hidden[part] = d_logits @ W
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


def group_advantages(rewards: list[float], group_size: int, divide_by: str = "group") -> list[float]:
    """Reward minus the mean of its group, divided by a standard deviation (GRPO, DeepSeekMath eq. 3-4).

    divide_by   group   that of the group's own G rewards (GRPO)
                batch   that of all rewards (LitePPO), so that a nearly flat group is not blown up
                none    nothing (Dr. GRPO), so that very easy and very hard problems do not count more than others

    A group whose rewards are all equal says nothing about what is better: its advantages are exactly 0, and so they
    are for a group of one. Deviations have divisor G, the number of rewards (TRL and verl use G - 1).

    >>> group_advantages([1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0], 4)
    [1.0, -1.0, -1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    >>> group_advantages([1.0, 0.0, 0.0, 0.0], 4, divide_by="none")
    [0.75, -0.25, -0.25, -0.25]
    """
    if len(rewards) % group_size:
        raise ValueError(f"{len(rewards)} rewards do not fall into groups of {group_size}")
    if divide_by not in ("group", "batch", "none"):
        raise ValueError(f"cannot divide advantages by {divide_by!r}: use group, batch or none")
    advantages: list[float] = []
    for first in range(0, len(rewards), group_size):
        group = rewards[first : first + group_size]
        if max(group) - min(group) <= FLAT:
            advantages += [0.0] * group_size
            continue
        mean = statistics.fmean(group)
        std = 1.0 if divide_by == "none" else statistics.pstdev(group if divide_by == "group" else rewards)
        advantages += [(r - mean) / std for r in group]
    return advantages


def discounted_returns(rewards: list[float], gamma: float) -> list[float]:
    """rewards of tokens (T) -> what follows from each of them on (T): G_t = sum over l of gamma^l r_{t+l}.

    For rewards that single tokens have, such as the dense repetition penalty; `Rollout.token_advantages` takes them,
    so that the advantage of token t is A + G_t (the multi-reward GAE of Demystifying Long CoT, 2502.03373, at lambda 1:
    each kind of reward with its own discount, all of them in one sum). The token that earned a reward gets all of it,
    those before it less and less.

    A is the normalised advantage of the row's own reward, and G_t is added after that: it is neither centred nor
    divided. So a penalty has its size in units of A, also in a group whose rewards are all equal.

    >>> discounted_returns([0.0, -1.0, -1.0, 0.0], gamma=0.5)
    [-0.75, -1.5, -1.0, 0.0]
    """
    # DIFFERS from the paper: PPO subtracts a critic's V(s_t) from the sum of all kinds. GRPO has no critic; the group's
    # mean stands in for it in A, and nothing does in G_t, which changes the variance and not the expected gradient.
    returns, following = [0.0] * len(rewards), 0.0
    for t in reversed(range(len(rewards))):
        returns[t] = following = rewards[t] + gamma * following
    return returns


def sft_loss(logprobs: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Negative log-likelihood (B, T) of what the row says."""
    return -logprobs


def policy_ratio(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, level: str = "token", mask: torch.Tensor | None = None
) -> torch.Tensor:
    """policy / old policy (B, T): of each token, or of its whole row.

    "sequence" is GSPO's s = (pi(row) / pi_old(row))^(1 / loss tokens of the row) (GSPO eq. 7), the same in all columns.
    """
    log_ratio = logprobs - old_logprobs
    if level == "sequence":
        mean = (log_ratio * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)  # (B, 1)
        log_ratio = mean.expand_as(logprobs)
    return log_ratio.clamp(-20, 20).exp()  # e^89 is inf, and a gradient of 0 * inf would be NaN


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
    ratio = policy_ratio(logprobs, old_logprobs, level, mask)
    if level == "detached":
        return -ratio.clamp(max=1 + clip_high).detach() * advantages * logprobs
    ratio = ratio.clamp(max=cap)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def kl_estimate(logprobs: torch.Tensor, ref_logprobs: torch.Tensor, estimator: str = "k3") -> torch.Tensor:
    """Per-token estimate (B, T) of KL(policy || reference) from tokens that the policy drew (Schulman, 2020).

    k1 = log p/q is unbiased and may be negative; k2 = (log p/q)^2 / 2 is biased, never negative and has the exact
    gradient of the KL; k3 = q/p - 1 - log q/p is unbiased and never negative, but its gradient is that of KL(q || p).
    """
    difference = ref_logprobs - logprobs  # log q/p
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return difference.square() / 2
    if estimator == "k3":
        difference = difference.clamp(-20, 20)  # as in the ratio
        return difference.expm1() - difference
    raise ValueError(f"unknown KL estimator {estimator!r}: use k1, k2 or k3")


@dataclass(frozen=True)
class PolicyLoss:
    """The loss of GRPO and its family, per token (B, T): clipped policy loss + kl_coef * KL(policy || reference).

        -min(ratio * A, clip(ratio) * A) * sampler weight + kl_coef * k(log p/q)           (DeepSeekMath eq. 3)

    With one update per rollout set `on_policy`: the old policy is then the policy itself, the ratio is exactly 1, and
    the loss is about 0 (advantages have mean 0) while its gradient is that of -A * log-prob.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    cap: float = math.inf  # two-sided clip: the largest ratio that counts
    level: str = "token"  # of the ratio: token, sequence or detached
    kl_coef: float = 0.0
    kl_estimator: str = "k3"  # k2 or k3; k1 has no gradient as a loss and belongs into the reward
    kl_correction: bool = False  # weigh the KL by policy / old policy, so that its gradient is exact off-policy too
    sampler_cap: float = 0.0  # > 0: weigh tokens by min(old policy / sampler, this) where the two differ numerically
    on_policy: bool = False

    def old(self, logprobs: torch.Tensor, batch: Batch) -> torch.Tensor:
        return logprobs.detach() if self.on_policy else batch.old_logprobs

    def __call__(self, logprobs: torch.Tensor, batch: Batch) -> torch.Tensor:
        old = self.old(logprobs, batch)
        loss = clipped_policy_loss(logprobs, old, batch.advantages, self.clip_low, self.clip_high,
                                   cap=self.cap, level=self.level, mask=batch.loss_mask)  # fmt: skip
        if self.sampler_cap:
            loss = loss * policy_ratio(old, batch.sampler_logprobs).clamp(max=self.sampler_cap)
        if self.kl_coef:
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
        ratio = policy_ratio(logprobs, old, self.level, batch.loss_mask)
        low, high = (ratio < 1 - self.clip_low) & (A < 0), (ratio > 1 + self.clip_high) & (A > 0)
        if self.level == "detached":  # the ratio is cut, the gradient goes on
            low, high = torch.zeros_like(low), ratio > 1 + self.clip_high
        difference = (old - batch.sampler_logprobs).abs()
        return {
            "clip_ratio/low_mean": low,
            "clip_ratio/high_mean": high,
            "clip_ratio/region_mean": low | high,
            "kl": kl_estimate(logprobs, batch.ref_logprobs),
            "logp_diff/mean": difference,
            "logp_diff/max": difference,
        }


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

    advantages = torch.tensor([[row.advantage] for row in rollouts], dtype=torch.float32, device=device)  # (B, 1)
    if any(row.token_advantages for row in rollouts):
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
    entropy_coef: float | None = None,
    measure: Measure | None = None,
) -> dict[str, float]:
    """One optimizer step on all of `rollouts`. Returns loss, grad_norm (before clipping) and loss tokens.

    entropy_coef   subtracts this much of the entropy from each token's loss and returns "entropy"; 0 only measures it
    measure        more per-token values to return, as means over loss tokens (names that end in /max: as maxima)

    A loss or gradient that is not finite stops the run with FloatingPointError before any weight is touched.
    """
    if not 0 <= lr < math.inf:  # NaN is in no range
        raise ValueError(f"the learning rate is {lr}: it must be a number from 0 on")
    longest = max(rollouts, key=lambda row: len(row.tokens))
    if len(longest.tokens) > model.config.max_position_embeddings:
        raise ValueError(
            f"a sample has {len(longest.tokens)} tokens, the model's context of {model.config.max_position_embeddings} "
            f"is too short for it (prompt starts {longest.problem.prompt[:40]!r})"
        )
    weights = token_weights(rollouts) if weights is None else weights
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    measured: dict[str, list[torch.Tensor]] = {}
    for indices in micro_batches([len(row.tokens) for row in rollouts], micro_tokens):
        batch = collate([rollouts[i] for i in indices], [weights[i] for i in indices], model.device)
        logprobs, entropy = logprobs_and_entropy(
            model, batch.tokens, batch.loss_mask, temperature, with_entropy=entropy_coef is not None
        )
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
        loss.backward()
        total += loss.item()
        values = {} if measure is None else measure(logprobs.detach(), batch)
        for name, value in (values | ({} if entropy_coef is None else {"entropy": entropy.detach()})).items():
            measured.setdefault(name, []).append(value[batch.loss_mask].float())
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
    metrics = {"loss": total, "grad_norm": grad_norm.item(), "num_tokens": sum(sum(row.loss_mask) for row in rollouts)}
    for name, parts in measured.items():
        values = torch.cat(parts)
        metrics[name] = (values.max() if name.endswith("/max") else values.mean()).item()
    return metrics


@torch.no_grad()
def score(model: Transformer, rollouts: list[Rollout], temperature: float, micro_tokens: int) -> list[list[float]]:
    """The log-probs that `model` gives to the sampled tokens of each row, 0 at the others."""
    weights = token_weights(rollouts)  # collate wants them; no loss is made of them here
    scores: list[list[float]] = [[] for _ in rollouts]
    for indices in micro_batches([len(row.tokens) for row in rollouts], micro_tokens):
        rows = [rollouts[i] for i in indices]
        batch = collate(rows, [weights[i] for i in indices], model.device)
        found = token_logprobs(model, batch.tokens, batch.loss_mask, temperature)
        for i, values in zip(indices, found.tolist(), strict=True):
            scores[i] = values[: len(rollouts[i].tokens)]
    return scores


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
    after: Callable[[int, dict[str, float]], bool | None] = lambda step, metrics: None,
    name: str = "sft",
) -> None:
    """Supervised fine-tuning: step s is an update on the demonstrations `rows_of(s)`, then `after(s, metrics)`.

    If `after` returns True, that was the last step. The rows are a function of the step, so a run that stops and
    resumes at `first_step` sees the same ones.
    """
    with progress(total=steps, initial=first_step, desc=name, unit="step") as bar:
        for step in range(first_step, steps):
            rate = learning_rate(step, steps, lr, warmup, decay)
            metrics = update(
                model, optimizer, rows_of(step), lr=rate, micro_tokens=micro_tokens, max_grad_norm=max_grad_norm
            )
            bar.set_postfix(loss=f"{metrics['loss']:.3f}", refresh=False)
            bar.update()
            if after(step, {**metrics, "learning_rate": rate}):
                break


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
