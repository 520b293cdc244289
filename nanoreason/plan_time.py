"""How long a training step takes, from the speed of its pieces: measured on this device, or stated for a card.

Measured are two blocks of the model, its head and a piece of the optimizer, at the shapes of the run. On a card
everything is arithmetic on public figures, and was not compared with a run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from nanoreason.learn import logprobs_and_entropy, states_of, token_logprobs
from nanoreason.lora import merged
from nanoreason.memory import Memory, prepare
from nanoreason.model import KVCache, ModelConfig, Transformer
from nanoreason.optim import AdamW
from nanoreason.plan_memory import Work, counted, halved, read_share, resident
from nanoreason.sampler import draw

# Public figures: dense bfloat16 TFLOP/s, GB/s.
CARDS = {"3090": (71, 936), "4090": (165, 1008), "a100": (312, 2039), "h100": (989, 3350)}
# Assumed: the share of the first that products reach, and the seconds of each of the kernels that a block starts.
SHARE, KERNEL, KERNELS = 0.4, 6e-6, 16
LARGEST_HEAD = 65_536  # rows of the head that are measured; the rest is in proportion


@dataclass(frozen=True)
class Speed:
    """Seconds of the pieces that a step is made of."""

    learn: float  # a block, forward and backward, of one token
    score: float  # a block, forward alone, of one token
    head: float  # embedding and head, forward and backward, of one token that counts
    score_head: float  # the head, forward alone, of one token that counts
    decode: Callable[[int], float]  # a block, one new token of so many rows
    draw: Callable[[int], float]  # head and draw, one token of so many rows
    step: float  # the optimizer, of one trained weight


def seconds_of(work: Work, speed: Speed) -> dict[str, float]:
    """{phase: seconds} of a step whose responses are all as long as they may be."""
    c, targets = work.shape, work.rows * work.response
    tokens = work.rows * work.length * read_share(work)
    found = {}
    if work.prompts:
        rows, _ = resident(work)
        waves = -(-work.rows // rows)
        prefill = work.prompts * work.prompt * c.num_hidden_layers * speed.score
        token = c.num_hidden_layers * speed.decode(rows) + speed.draw(rows)
        found["sample"] = prefill + waves * work.response * token
        passes = work.scores + work.logged / work.rows
        found["score"] = passes * (tokens * c.num_hidden_layers * speed.score + targets * speed.score_head)
    found["update"] = work.epochs * (tokens * c.num_hidden_layers * speed.learn + targets * speed.head)
    found["step"] = work.updates * counted(c, work.memory)[1] * speed.step
    return found


def block_flops(c: ModelConfig, length: int) -> float:
    """Of one block's forward pass, per token of rows of this length: two per weight, and attention."""
    q, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    weights = c.hidden_size * (2 * q + 2 * kv + 3 * c.intermediate_size)
    return 2 * weights + 2 * q * length  # a token sees half of the row on average: 2 products x 2 flops x length / 2


def backwards(memory: Memory) -> float:
    """A forward and a backward pass, in forward passes: frozen weights need no gradient, recomputing is one more."""
    return (2 if memory.lora else 3) + memory.recompute


def stated(work: Work, card: str) -> Speed:
    """Of a card, from CARDS."""
    tflops, bandwidth = CARDS[card]
    c, flops = work.shape, SHARE * tflops * 1e12
    block = block_flops(c, work.length) / flops
    head, weights = 2 * c.hidden_size * c.vocab_size, block_flops(c, 0) / 2
    slot = 2 * 2 * c.num_key_value_heads * c.head_dim  # bytes of a slot's keys and values in one layer
    read = lambda rows: (4 * weights + rows * work.length * slot) / (bandwidth * 1e9)  # noqa: E731
    return Speed(
        learn=backwards(work.memory) * block,
        score=block,
        head=(2 if work.memory.lora else 3) * head / flops,
        score_head=head / flops,
        decode=lambda rows: max(rows * block, read(rows), KERNELS * KERNEL),
        draw=lambda rows: max(rows * head / flops, 2 * head / bandwidth / 1e9),
        step=40 / (bandwidth * 1e9),  # w, g, m, v are read, w, m, v written; the copy and the norm
    )


def measured(work: Work, device: torch.device) -> Speed:
    """Of this device: two blocks, the head and a piece of the optimizer, at the shapes of this run."""
    V = min(work.shape.vocab_size, LARGEST_HEAD)
    c = replace(work.shape, num_hidden_layers=2, vocab_size=V)  # two blocks: something is done once a pass
    small = Transformer(c).to(device)
    prepare(small, work.memory, 0)
    tokens = torch.zeros(work.micro_rows, work.length, dtype=torch.int64, device=device)
    row = torch.arange(work.micro_rows, device=device)
    tokens[:, 0] = (row * work.prompts // work.rows if work.prompts else row) % V  # rows of a group have one prompt
    mask = torch.arange(work.length, device=device) >= work.prompt
    mask, embedding = mask.expand_as(tokens), small.model.embed_tokens.weight

    def blocks() -> None:
        embedding.requires_grad_(False)
        states_of(small, tokens[:, :-1], mask).sum().backward()
        embedding.requires_grad_(not work.memory.lora)

    def whole() -> None:
        logprobs_and_entropy(small, tokens, mask, with_entropy=bool(work.prompts))[0].sum().backward()

    def score() -> None:
        with torch.no_grad():
            states_of(small, tokens[:, :-1], mask)

    def whole_score() -> None:
        with torch.no_grad():
            token_logprobs(small, tokens, mask)

    rows, dtype = resident(work)[0], torch.bfloat16 if halved(work.memory) else torch.float32
    cache = KVCache(c, rows, max(1, work.prompt + work.response // 2), device, dtype)
    sampler = small if dtype == torch.float32 else merged(small, dtype)
    here, uniform = torch.full((rows, 1), cache.slots - 1, device=device), torch.full((rows,), 0.5, device=device)

    @torch.inference_mode()
    def decode() -> torch.Tensor:
        return sampler.hidden(here * 0, here, cache)

    states = decode()[:, 0]

    @torch.inference_mode()
    def one_draw() -> None:
        logits = sampler.lm_head(states).float()
        draw(logits.masked_fill(logits > torch.inf, -torch.inf), uniform, 1.0)

    weights = [torch.nn.Parameter(torch.randn(1 << 19, device=device)) for _ in range(16)]  # larger than any cache
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    optimizer = AdamW(((str(i), weight) for i, weight in enumerate(weights)), moments=work.memory.moments)

    def step() -> None:
        before = [weight.detach().clone() for weight in weights]
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step(1e-6)
        for weight, old in zip(weights, before, strict=True):
            (weight.detach() - old).square().sum(), old.square().sum()

    took, targets = {}, work.micro_rows * work.response
    tokens_in = work.micro_rows * work.length * read_share(work)
    for one in (blocks, whole, score, whole_score, decode, one_draw, step):
        took[one.__name__] = median_of(one, device)
    share = work.shape.vocab_size / V
    of_row, drawn = took["decode"] / rows / 2, took["one_draw"] / rows * share
    return Speed(
        learn=took["blocks"] / tokens_in / 2,
        head=max(0, took["whole"] - took["blocks"]) / targets * share,
        score=took["score"] / tokens_in / 2,
        score_head=max(0, took["whole_score"] - took["score"]) / targets * share,
        decode=lambda rows: rows * of_row,
        draw=lambda rows: rows * drawn,
        step=took["step"] / sum(weight.numel() for weight in weights),
    )


def median_of(work: Callable[[], None], device: torch.device, repeat: int = 3) -> float:
    """Seconds; of the processor on a CPU with one thread, which a busy neighbour disturbs least."""
    if device.type == "cuda":
        clock = lambda: (torch.cuda.synchronize(), time.perf_counter())[1]  # noqa: E731
    else:
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times = []
    for _ in range(repeat):
        started = clock()
        work()
        times.append(clock() - started)
    return sorted(times)[repeat // 2]
