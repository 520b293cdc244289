"""What training changes in a model: exact KL, ranks of tokens, shifted words, hidden states, transfer, forgetting.

    two models, rows -> token_shifts: per token KL both ways, the one-sample estimate, ranks -> shifted_words
    two models, rows -> mean_states (layers, N, D) -> pca_shift
    accuracies before and after -> transferability, forgetting

The measures are those of Does Math Reasoning Improve General LLM Capabilities? (Huan et al., 2025, 2507.00432) without
what makes its numbers depend on chance: its KL is one sample per token, here it is the sum over the vocabulary, and its
PCA averages layers whose signs are arbitrary. Everything is done on micro-batches and a few positions at a time.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from nanoreason.learn import NEVER, collate, micro_batches, token_weights
from nanoreason.model import Transformer
from nanoreason.rollout import Rollout
from nanoreason.run import Progress, autocast
from nanoreason.tokenizer import TextTokenizer

CHUNK = 1 << 22  # logits of one model that are held at once: 84 positions of a vocabulary of 50,000
MARGINAL = 3  # a token that stood among the first three of the base, but not first, is marginal (Lin et al., 2023)
LEAST_DENOMINATOR = 0.2  # of v2's index; of a smaller gain on the target the ratio says nothing


# ------------------------------------------------------------------------------------------------- token by token


@dataclass(frozen=True)
class TokenShifts:
    """Of the M loss tokens of some rows, in order; all tensors are (M,) on the CPU."""

    row: torch.Tensor  # which row it stands in
    token: torch.Tensor  # its id
    kl: torch.Tensor  # KL(policy || base) of the distributions it is drawn from, in nats: the sum over the vocabulary
    reverse_kl: torch.Tensor  # KL(base || policy)
    estimate: torch.Tensor  # log policy - log base of the token: of policy's samples, an unbiased estimate of kl
    rank: torch.Tensor  # how many tokens the policy finds likelier than this one
    base_rank: torch.Tensor

    @property
    def shift(self) -> torch.Tensor:
        """Ranks that the token has risen from base to policy; negative: fallen."""
        return self.base_rank - self.rank

    def means(self) -> dict[str, float]:
        """kl, reverse_kl, estimate, rank_shift: means over tokens; shifted: the share whose rank differs; unshifted,
        marginal, far: the shares by rank in the base, first, within the first MARGINAL, or behind."""
        if not len(self.token):
            raise ValueError("there is no token to compare: every response is empty")
        classes = rank_classes(self.base_rank)
        return {
            **{name: getattr(self, name).double().mean().item() for name in ("kl", "reverse_kl", "estimate")},
            "rank_shift": self.shift.double().mean().item(),
            "shifted": (self.shift != 0).double().mean().item(),
            **{name: (classes == i).double().mean().item() for i, name in enumerate(RANK_CLASSES)},
        }


RANK_CLASSES = ("unshifted", "marginal", "far")


def rank_classes(base_rank: torch.Tensor) -> torch.Tensor:
    """base_rank (M,) -> index into RANK_CLASSES (M,)."""
    return (base_rank > 0).long() + (base_rank >= MARGINAL).long()


@torch.no_grad()
def token_shifts(
    policy: Transformer, base: Transformer, rows: list[Rollout], micro_tokens: int = 4096, name: str = "compare"
) -> TokenShifts:
    """What both models make of every loss token of the rows, at temperature 1.

    Never more than CHUNK logits of each model at once. ValueError if their heads differ in size: a KL needs one
    vocabulary. An id that has no token in one of them has probability 0 in both.
    """
    if policy.config.vocab_size != base.config.vocab_size:
        raise ValueError(
            f"heads of {policy.config.vocab_size} and {base.config.vocab_size} tokens: a KL needs the same"
        )
    lacking = [model.no_token for model in (policy, base) if model.no_token is not None]
    no_token = torch.stack(lacking).any(0) if lacking else None
    found: list[tuple[torch.Tensor, ...]] = []
    with Progress(total=len(rows), name=name, unit="rows") as progress:
        for indices in micro_batches([len(row.tokens) for row in rows], micro_tokens):
            some = [rows[i] for i in indices]
            batch = collate(some, token_weights(some), policy.device)
            picked = batch.loss_mask[:, 1:]
            tokens = batch.tokens[:, 1:][picked]  # (M,)
            states = []
            with autocast(policy.device):
                for model in (policy, base):
                    states.append(model.hidden(batch.tokens[:, :-1])[picked])  # (M, D)
                row = torch.tensor(indices)[:, None].expand(picked.shape)[picked.cpu()]  # (M,)
                numbers = [chunk for chunk in compared((policy, base), states, tokens, no_token)]
            found.append((row, tokens.cpu(), *(torch.cat(parts).cpu() for parts in zip(*numbers, strict=True))))
            progress.update(len(indices), tokens=len(tokens))
    columns = [torch.cat(parts) for parts in zip(*found, strict=True)]
    order = columns[0].argsort(stable=True)
    return TokenShifts(*(column[order] for column in columns))


def compared(
    models: Sequence[Transformer], states: list[torch.Tensor], tokens: torch.Tensor, no_token: torch.Tensor | None
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Final states (M, D) of two models, tokens (M,) -> kl, reverse_kl, estimate, rank, base_rank of a few positions at
    a time."""
    positions = max(1, CHUNK // models[0].config.vocab_size)
    for first in range(0, max(1, len(tokens)), positions):
        part = slice(first, first + positions)
        logprobs, ranks, own = [], [], []
        for model, state in zip(models, states, strict=True):
            logits = model.lm_head(state[part]).float()  # (positions, V)
            logits = logits if no_token is None else logits.masked_fill_(no_token, NEVER)
            mine = logits.gather(-1, tokens[part, None])  # (positions, 1)
            ranks.append((logits > mine).sum(-1))
            logprobs.append(logits.log_softmax(-1))
            own.append(logprobs[-1].gather(-1, tokens[part, None])[:, 0])
        p, q = logprobs
        ratio = p - q
        yield ((p.exp() * ratio).sum(-1), -(q.exp() * ratio).sum(-1), own[0] - own[1], *ranks)


# ------------------------------------------------------------------------------------------------------------ words

SIGNS = set("+-*/")
CONNECTIVES = set(
    """wait but so hmm alternatively however maybe perhaps actually okay ok alright let let's me us first
second then now next finally therefore thus hence because since if check verify yes no not the a an is are and or of to
in for i we it this that step steps answer final think aim make none""".split()
)


@dataclass(frozen=True)
class Word:
    """A token of a vocabulary and what became of it where the policy said it."""

    text: str
    kind: str  # structure or content
    count: int  # how often the policy said it
    shift: float  # mean ranks it has risen
    far: float  # share of these places at which it was not among the first MARGINAL of the base

    @property
    def weight(self) -> float:
        """How often times how far: the size of a word in the paper's cloud."""
        return self.count * self.shift


def word_kind(text: str) -> str:
    """structure (tags, punctuation, "=", line ends, words that connect) or content (numbers, signs, other words).

    >>> [word_kind(text) for text in ("7", "+", "apple", "=", "<think>", " Wait", ".", "\\n")]
    ['content', 'content', 'content', 'structure', 'structure', 'structure', 'structure', 'structure']
    """
    bare = text.strip().lower().rstrip(".,:;!?")
    if bare in SIGNS:
        return "content"
    is_tag = bare.startswith("<") and bare.endswith(">")
    return "structure" if is_tag or bare in CONNECTIVES or not any(c.isalnum() for c in bare) else "content"


def shifted_words(shifts: TokenShifts, tokenizer: TextTokenizer) -> list[Word]:
    """All words of the texts, those that rose most in all (count * mean shift) first."""
    words = []
    far = shifts.base_rank >= MARGINAL
    for token in shifts.token.unique().tolist():
        here = shifts.token == token
        text = tokenizer.decode([token])
        rise = shifts.shift[here].double().mean().item()
        words.append(Word(text, word_kind(text), int(here.sum()), rise, far[here].double().mean().item()))
    return sorted(words, key=lambda word: -word.weight)


def style_leak(responses: Sequence[str], markers: Sequence[str]) -> float:
    """The share of responses to tasks that were not trained that hold a marker of the trained style, as a word.

    >>> style_leak(["hmm 7 , so 8", "8", "hmmm 8"], ["hmm", "<think>"])
    0.3333333333333333
    """
    if not responses:
        raise ValueError("there is no response in which a style could show")
    return statistics.fmean(not set(markers).isdisjoint(response.split()) for response in responses)


# ---------------------------------------------------------------------------------------------------- hidden states


@torch.no_grad()
def mean_states(
    model: Transformer, rows: list[Rollout], micro_tokens: int = 4096, name: str = "states"
) -> torch.Tensor:
    """(L + 1, N, D): the mean hidden state of each row's prompt behind the embedding and behind each block.

    Padding has no part in the mean.
    """
    layers = [model.model.embed_tokens, *model.model.layers]
    found = torch.zeros(len(layers), len(rows), model.config.hidden_size)
    with Progress(total=len(rows), name=name, unit="rows") as progress:
        for indices in micro_batches([row.prompt_len for row in rows], micro_tokens):
            longest = max(rows[i].prompt_len for i in indices)
            prompts = [rows[i].tokens[: rows[i].prompt_len] for i in indices]
            tokens = torch.tensor([p + [0] * (longest - len(p)) for p in prompts], device=model.device)  # (B, T)
            lengths = torch.tensor([len(p) for p in prompts], device=model.device)
            real = (torch.arange(longest, device=model.device) < lengths[:, None]).float()  # (B, T)
            weights = real / real.sum(1, keepdim=True)

            def keep(layer: int):
                def hook(module, inputs, states):  # (B, T, D)
                    found[layer, indices] = torch.einsum("bt,btd->bd", weights, states.float()).cpu()  # noqa: B023

                return hook

            hooks = [layer.register_forward_hook(keep(i)) for i, layer in enumerate(layers)]
            try:
                model.hidden(tokens)
            finally:
                for hook in hooks:
                    hook.remove()
            progress.update(len(indices))
    return found


@dataclass(frozen=True)
class PcaShift:
    """How far the mean state moved in the plane of the base's first two principal components, layer by layer."""

    moves: torch.Tensor  # (L + 1, 2)
    spread: torch.Tensor  # (L + 1,): sqrt(lambda1 + lambda2), how far texts of the base lie apart in that plane

    @property
    def distance(self) -> float:
        """The mean over layers of how far each moved."""
        return self.moves.norm(dim=1).mean().item()

    @property
    def relative(self) -> float:
        """The same in units of the spread; layers without any spread are left out."""
        there = self.spread > 1e-12
        return (self.moves.norm(dim=1)[there] / self.spread[there]).mean().item() if there.any() else math.nan

    @property
    def as_in_the_paper(self) -> float:
        """The length of the mean move: layers that move in opposite directions cancel, and which do is arbitrary."""
        return self.moves.mean(0).norm().item()


def pca_shift(base: torch.Tensor, policy: torch.Tensor) -> PcaShift:
    """States (L + 1, N, D) of both models on the same texts. PCA is fitted to the base's, in each layer anew.

    The sign of a component is fixed by its largest entry, which is positive: any choice would be arbitrary.
    """
    if base.shape != policy.shape or base.shape[1] < 3:
        raise ValueError(
            f"states of {tuple(base.shape)} and {tuple(policy.shape)}: the same shape, three texts or more"
        )
    base, policy = base.double(), policy.double()
    center = base.mean(1, keepdim=True)
    _, sizes, components = torch.linalg.svd(base - center, full_matrices=False)  # (L + 1, min(N, D), D)
    components = components[:, :2]
    largest = components.gather(-1, components.abs().argmax(-1, keepdim=True))
    components = components * largest.sign()
    moves = torch.einsum("lkd,ld->lk", components, policy.mean(1) - center[:, 0])
    return PcaShift(moves, (sizes[:, :2].square().sum(1) / (base.shape[1] - 1)).sqrt())


# -------------------------------------------------------------------------------------------- transfer, forgetting

Scores = Mapping[str, float]  # {benchmark: accuracy in percent}


def transferability_v1(base: Scores, tuned: Scores, target: Sequence[str], group: Sequence[str]) -> float | None:
    """100 * (mean relative gain of a group) / (that of the target's benchmarks), version 1 of the paper.

    None, undefined: a benchmark that the base never solves, or no gain on the target.
    """

    def gain(names: Sequence[str]) -> float | None:
        if any(base[name] == 0 for name in names):
            return None
        return statistics.fmean((tuned[name] - base[name]) / base[name] for name in names)

    over, under = gain(group), gain(target)
    return None if over is None or under is None or abs(under) < 1e-6 else 100 * over / under


def pooled_sigma(gains: Sequence[float]) -> float:
    """The standard deviation (divisor: their number) of the gains, in points, of all arms, seeds and benchmarks of a
    group: pooled like this the paper's table can be recomputed, over one model's benchmarks it cannot."""
    return statistics.pstdev(gains)


def transferability_v2(
    base: Scores, tuned: Scores, target: Sequence[str], group: Sequence[str], target_sigma: float, group_sigma: float
) -> float | None:
    """100 * DI(group) / DI(target) with DI = sum of w * sign(gain) * sqrt(|gain| / sigma), w = 100 - base accuracy,
    normalised: version 2 of the paper. What the base solves always has no weight: forgetting it is not seen.

    None, undefined: DI(target) below LEAST_DENOMINATOR, no deviation, or a group that the base solves always.
    """

    def index(names: Sequence[str], sigma: float) -> float | None:
        weights = [100 - base[name] for name in names]
        if not sum(weights) or not sigma:
            return None
        gains = [tuned[name] - base[name] for name in names]
        roots = [math.copysign(math.sqrt(abs(gain) / sigma), gain) for gain in gains]
        return sum(w * root for w, root in zip(weights, roots, strict=True)) / sum(weights)

    over, under = index(group, group_sigma), index(target, target_sigma)
    return None if over is None or under is None or under < LEAST_DENOMINATOR else 100 * over / under


def forgetting(base: Scores, tuned: Scores, others: Sequence[str]) -> float:
    """The mean over other tasks of what was lost; gains do not make up for losses."""
    return statistics.fmean(max(0.0, base[name] - tuned[name]) for name in others)
