"""What training changed in a policy, beside the one it began as: distributions, ranks of words, hidden states, style.

    rows (texts) -> both models -> one value per response token -> KL both ways, rank shift, table of shifted words
    texts -> pooled hidden states per layer -> PCA of the base's -> how far the policy's have moved

The measures are those of "Does Math Reasoning Improve General LLM Capabilities?" (2507.00432), without the faults of
its released analysis: padding is never pooled, no token of a response is dropped, nothing is paired by accident, the KL
is the sum over the vocabulary. Nothing here holds (batch, length, vocabulary): logits are made for a few positions.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

from nanoreason import learn
from nanoreason.model import Transformer
from nanoreason.rollout import Rollout
from nanoreason.run import Progress, autocast
from nanoreason.tokenizer import TextTokenizer

MICRO_TOKENS = 4096  # of a forward pass

# ---------------------------------------------------------------------------------------------------- distributions


class TokenShifts(NamedTuple):
    """One value per response token of some rows, row after row; all tensors are (M,) and on the CPU, KL in nats."""

    row: torch.Tensor  # int64, which row it stands in
    token: torch.Tensor  # int64
    kl: torch.Tensor  # float32, D(policy || base) at its position, exact
    reverse_kl: torch.Tensor  # float32, D(base || policy)
    log_ratio: torch.Tensor  # float32, log policy - log base of the token: one sample of `kl` if the policy drew it
    base_rank: torch.Tensor  # int64, how many tokens the base finds more probable; 0: it would have said so too
    policy_rank: torch.Tensor  # int64

    @property
    def rank_shift(self) -> torch.Tensor:
        """(M,) places that each token gained by training."""
        return self.base_rank - self.policy_rank

    def mean(self, values: torch.Tensor) -> float:
        """The mean over tokens; 0 of none."""
        return values.double().mean().item() if len(values) else 0.0

    def per_row(self, values: torch.Tensor) -> list[float]:
        """The mean over the tokens of each row that has some, in order."""
        return [values[self.row == row].double().mean().item() for row in self.row.unique().tolist()]


@torch.no_grad()
def token_shifts(
    base: Transformer, policy: Transformer, rows: Sequence[Rollout], micro_tokens: int = MICRO_TOKENS
) -> TokenShifts:
    """Both models on every token of the rows that was sampled (`loss_mask`), at temperature 1.

    At most `learn.CHUNK_LOGITS` logits of each model are held at once, whatever the vocabulary. ValueError if the two
    vocabularies differ in size. An id without a token has probability 0 in a model.
    """
    vocab = base.config.vocab_size
    if policy.config.vocab_size != vocab:
        raise ValueError(f"vocabularies of {vocab} and {policy.config.vocab_size} tokens: nothing can be compared")
    found: list[tuple[torch.Tensor, ...]] = [()] * len(rows)
    with Progress(total=len(rows), name="compare", unit="rows") as progress:
        for indices in learn.micro_batches([len(row.tokens) for row in rows], micro_tokens):
            tokens, mask = padded([rows[i] for i in indices], base.device)
            picked = mask[:, 1:]  # (B, T-1): column t knows tokens[:, :t+1] and is about t+1
            with autocast(base.device):
                hidden = [model.hidden(tokens[:, :-1])[picked] for model in (base, policy)]  # (M, D) each
            values = [torch.cat(parts) for parts in zip(*in_chunks(base, policy, hidden, tokens[:, 1:][picked]))]  # noqa: B905
            for i, *own in zip(indices, *(value.split(picked.sum(1).tolist()) for value in values), strict=True):
                found[i] = tuple(own)
            progress.update(len(indices), tokens=int(picked.sum()))
    if not rows:
        return TokenShifts(*(torch.zeros(0, dtype=kind) for kind in KINDS))
    where = torch.cat([torch.full((len(values[0]),), i) for i, values in enumerate(found)])
    return TokenShifts(where, *(torch.cat(values) for values in zip(*found, strict=True)))


KINDS = (torch.int64, torch.int64, torch.float32, torch.float32, torch.float32, torch.int64, torch.int64)


def padded(rows: Sequence[Rollout], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """tokens (B, T) and loss_mask (B, T); the first token is predicted by nothing, so it never counts."""
    tokens = learn.right_padded([row.tokens for row in rows], 0, torch.int64, device)
    return tokens, learn.right_padded([row.loss_mask for row in rows], False, torch.bool, device)


def in_chunks(
    base: Transformer, policy: Transformer, hidden: list[torch.Tensor], targets: torch.Tensor
) -> Iterator[tuple[torch.Tensor, ...]]:
    """hidden (M, D) of both, targets (M,) -> the fields of TokenShifts but `row`, some positions at a time."""
    step = max(1, learn.CHUNK_LOGITS // base.config.vocab_size)
    for first in range(0, max(1, len(targets)), step):
        part = slice(first, first + step)
        logs = []
        for model, states in zip((base, policy), hidden, strict=True):
            with autocast(model.device):
                logits = model.lm_head(states[part])  # (m, V)
            logits = logits.float()
            if model.no_token is not None:
                logits = logits.masked_fill(model.no_token, learn.NEVER)
            logs.append(logits.log_softmax(-1))
        yield tuple(value.cpu() for value in compared(*logs, targets[part]))


def compared(base_logs: torch.Tensor, policy_logs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """log-probs (m, V) of both, targets (m,) -> targets, KL(policy || base), KL(base || policy), log-ratio, ranks."""
    base_said, policy_said = (logs.gather(-1, targets[:, None]) for logs in (base_logs, policy_logs))  # (m, 1)
    base_rank, policy_rank = ((logs > said).sum(-1) for logs, said in ((base_logs, base_said),
                                                                     (policy_logs, policy_said)))  # fmt: skip
    ratio = policy_logs - base_logs
    kl, reverse_kl = (policy_logs.exp() * ratio).sum(-1), -(base_logs.exp() * ratio).sum(-1)
    return targets, kl, reverse_kl, (policy_said - base_said)[:, 0], base_rank, policy_rank


# ---------------------------------------------------------------------------------------------------- shifted words

# By the base's rank of a token that the policy says (Lin et al., 2023, The Unlocking Spell on Base LLMs): the base
# would have said it too; it is among the base's first three; it is not.
CLASSES = ("unshifted", "marginal", "shifted")
MARGINAL = 2  # the last rank, counted from 0, that is marginal
# Words that steer a text and say nothing of the problem, beside tags, signs and line ends.
STEERING = frozenset(
    """
    wait but so now hmm okay alternatively instead maybe first then next finally let let's check verify again since
    therefore thus hence if yes no answer final think thought step
""".split()
)


def shift_class(base_rank: int) -> str:
    """
    >>> [shift_class(rank) for rank in (0, 1, 2, 3)]
    ['unshifted', 'marginal', 'marginal', 'shifted']
    """
    return CLASSES[(base_rank > 0) + (base_rank > MARGINAL)]


def is_structure(word: str) -> bool:
    """Whether a word is structure (tags, signs, line ends, words of STEERING) or content (numbers, names, the rest).

    >>> [word for word in ("<think>", "=", "\\n", "Wait", "7", "cat", "b") if is_structure(word)]
    ['<think>', '=', '\\n', 'Wait']
    """
    word = word.strip("Ġ▁ ")  # how vocabularies of bytes and of pieces write a space
    tag = re.fullmatch(r"<[^<>]+>", word)
    return bool(tag) or not any(map(str.isalnum, word)) or word.lower().strip(".,:;!?") in STEERING


class ShiftedWord(NamedTuple):
    """What became of a word, over all its places in the policy's texts."""

    word: str
    structure: bool
    count: int
    classes: tuple[int, int, int]  # how often it was unshifted, marginal, shifted
    gained: int  # sum of the places that it gained where it gained some


def shifted_words(shifts: TokenShifts, tokenizer: TextTokenizer) -> list[ShiftedWord]:
    """Every word of the texts, those first that gained most places in all (frequency times shift); ties by id."""
    count, gained, classes = Counter(), Counter(), Counter()
    places = (shifts.token, shifts.base_rank, shifts.rank_shift)
    for token, rank, shift in zip(*(values.tolist() for values in places), strict=True):
        count[token] += 1
        gained[token] += max(0, shift)
        classes[token, shift_class(rank)] += 1
    words = [(token, tokenizer.decode([token])) for token in sorted(count, key=lambda token: (-gained[token], token))]
    return [
        ShiftedWord(word, is_structure(word), count[token], tuple(classes[token, name] for name in CLASSES),
                    gained[token])
        for token, word in words
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------------- hidden states


class PcaShift(NamedTuple):
    """How far mean hidden states moved in the plane of the base's two principal components."""

    distances: tuple[float, ...]  # of each layer, the embeddings first
    relative: tuple[float, ...]  # the same over sqrt(lambda1 + lambda2), the base's own spread in that plane
    of_means: float  # as the paper has it: the norm of the mean over layers, in which layers may cancel

    @property
    def distance(self) -> float:
        """The mean over layers, after norms are taken: no sign of a component can matter."""
        return sum(self.distances) / len(self.distances)


@torch.no_grad()
def pooled_states(model: Transformer, texts: Sequence[list[int]], micro_tokens: int = MICRO_TOKENS) -> torch.Tensor:
    """texts (N token lists) -> (L+1, N, D) float64: embeddings and blocks, each the mean over the text's own tokens."""
    pooled = torch.zeros(len(model.model.layers) + 1, len(texts), model.config.hidden_size, dtype=torch.float64)
    if not all(texts):
        raise ValueError("a text without a token has no hidden states")
    with Progress(total=len(texts), name="hidden states", unit="texts") as progress:
        for indices in learn.micro_batches([len(text) for text in texts], micro_tokens):
            lengths = torch.tensor([len(texts[i]) for i in indices], device=model.device)
            tokens = learn.right_padded([texts[i] for i in indices], 0, torch.int64, model.device)
            real = torch.arange(tokens.shape[1], device=model.device) < lengths[:, None]  # (B, T)

            def take(layer: int, states: torch.Tensor, real=real, lengths=lengths, indices=indices) -> None:
                states = states.double().masked_fill(~real[..., None], 0.0)  # (B, T, D)
                pooled[layer, indices] = (states.sum(1) / lengths[:, None]).cpu()

            with watched(model, take), autocast(model.device):
                model.hidden(tokens)
            progress.update(len(indices), tokens=int(lengths.sum()))
    return pooled


@contextmanager
def watched(model: Transformer, take: Callable[[int, torch.Tensor], None]) -> Iterator[None]:
    """Calls take(layer, states (B, T, D)) for the embeddings (0) and after each block of every forward pass."""

    def hook(layer: int):
        return lambda module, inputs, output: take(layer, output)

    parts = [model.model.embed_tokens, *model.model.layers]
    handles = [part.register_forward_hook(hook(layer)) for layer, part in enumerate(parts)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def pca_shift(base: torch.Tensor, policy: torch.Tensor) -> PcaShift:
    """base, policy (L, N, D), `pooled_states` of the same texts -> the shift of each layer in the base's PCA(2).

    ValueError with fewer than three texts, or if the shapes differ.
    """
    if base.shape != policy.shape or base.shape[1] < 3:
        raise ValueError(f"states {tuple(base.shape)} and {tuple(policy.shape)}: equal, of three texts at least")
    moves, spreads = [], []
    for before, after in zip(base, policy, strict=True):
        _, singular, axes = torch.linalg.svd(before - before.mean(0), full_matrices=False)
        axes = axes[:2]  # (2, D)
        largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
        axes = axes * torch.where(largest < 0, -1.0, 1.0)  # a sign of its own would be arbitrary
        moves.append(axes @ (after.mean(0) - before.mean(0)))  # (2,)
        spreads.append(math.sqrt(float(singular[:2].square().sum()) / (len(before) - 1)))
    distances = [float(move.norm()) for move in moves]
    relative = [distance / spread if spread else math.inf if distance else 0.0
                for distance, spread in zip(distances, spreads, strict=True)]  # fmt: skip
    return PcaShift(tuple(distances), tuple(relative), float(torch.stack(moves).mean(0).norm()))


# ------------------------------------------------------------------------------------------------------------ style


def style_leak_rate(responses: Iterable[str], markers: Iterable[str]) -> float:
    """The share of responses with any of the markers as a word of its own; 0 of none.

    Markers are words of the style that was trained (tags, "wait"), the responses are to other tasks.

    >>> style_leak_rate(["Hmm , 4", "4", "<think> 4", "hmmm"], ["hmm", "<think>"])
    0.5
    """
    said = [response.lower() for response in responses]
    alone = [re.compile(rf"(?<!\w){re.escape(marker.lower())}(?!\w)") for marker in markers]
    leaks = [any(pattern.search(response) for pattern in alone) for response in said]
    return sum(leaks) / len(leaks) if leaks else 0.0
