"""How long a training step takes, from the speed of its pieces: measured on this device, or stated for a card.

Measured are two blocks of the model, a piece of the head and one of the optimizer, at the shapes of the run. On a card
everything is arithmetic on public figures, and was not compared with a run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from nanoreason.learn import ChunkedHead
from nanoreason.memory import Memory, prepare
from nanoreason.model import KVCache, ModelConfig, Transformer
from nanoreason.optim import AdamW
from nanoreason.plan_memory import Work, counted, halved, resident
from nanoreason.sampler import draw

# Public figures: dense bfloat16 TFLOP/s, GB/s.
CARDS = {"3090": (71, 936), "4090": (165, 1008), "a100": (312, 2039), "h100": (989, 3350)}
# Assumed: the share of the first that products reach, and the seconds of each of the kernels that a block starts.
SHARE, KERNEL, KERNELS = 0.4, 6e-6, 16


@dataclass(frozen=True)
class Speed:
    """Seconds of the pieces that a step is made of."""

    learn: float  # a block, forward and backward, of one token
    score: float  # a block, forward alone, of one token
    head: float  # the head, forward and backward, of one token
    decode: Callable[[int], float]  # a block, one new token of so many rows
    draw: Callable[[int], float]  # head and draw, one token of so many rows
    step: float  # the optimizer, of one trained weight


def seconds_of(work: Work, speed: Speed) -> dict[str, float]:
    """{phase: seconds} of a step whose responses are all as long as they may be."""
    c, tokens = work.shape, work.rows * work.length
    head = work.rows * work.response * speed.head
    found = {}
    if work.prompts:
        rows, _ = resident(work)
        waves = -(-work.rows // rows)
        prefill = work.prompts * work.prompt * c.num_hidden_layers * speed.score
        token = c.num_hidden_layers * speed.decode(rows) + speed.draw(rows)
        found["sample"] = prefill + waves * work.response * token
        passes = work.scores + work.logged / work.rows
        found["score"] = passes * (tokens * c.num_hidden_layers * speed.score + head / 3)
    found["update"] = work.epochs * (tokens * c.num_hidden_layers * speed.learn + head)
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
        decode=lambda rows: max(rows * block, read(rows), KERNELS * KERNEL),
        draw=lambda rows: max(rows * head / flops, 2 * head / bandwidth / 1e9),
        step=40 / (bandwidth * 1e9),  # w, g, m, v are read, w, m, v written; the copy and the norm
    )


def measured(work: Work, device: torch.device) -> Speed:
    """Of this device: two blocks, a piece of the head and of the optimizer, at the shapes of this run."""
    c, D = (
        replace(work.shape, num_hidden_layers=2),
        work.shape.hidden_size,
    )  # one would carry all that comes once a pass
    small = Transformer(replace(c, vocab_size=64)).to(device)
    prepare(small, work.memory, 0)
    tokens = torch.zeros(work.micro_rows, work.length, dtype=torch.int64, device=device)

    def learn() -> None:
        small.hidden(tokens).sum().backward()

    @torch.no_grad()
    def score() -> None:
        small.hidden(tokens)

    rows = resident(work)[0]
    cache = KVCache(c, rows, max(1, work.prompt + work.response // 2), device,
                    torch.bfloat16 if halved(work.memory) else torch.float32)  # fmt: skip
    sampler = small if not halved(work.memory) else Transformer(small.config).to(device, torch.bfloat16)
    here = torch.full((rows, 1), cache.slots - 1, device=device)

    @torch.inference_mode()
    def decode() -> None:
        sampler.hidden(here * 0, here, cache)

    V = min(c.vocab_size, 16_384)  # the cost of the rest is in proportion
    head = torch.randn(V, D, device=device).requires_grad_(not work.memory.lora)
    states, targets = torch.randn(256, D, device=device, requires_grad=True), torch.zeros(256, device=device).long()

    def whole_head() -> None:
        ChunkedHead.apply(states, head, targets, 1.0, None)[0].sum().backward()

    few, uniform = torch.randn(rows, D, device=device), torch.full((rows,), 0.5, device=device)

    @torch.inference_mode()
    def one_draw() -> None:
        draw((few @ head.T).masked_fill(targets[:1].bool(), 0), uniform, 1.0)

    weight = torch.nn.Parameter(torch.randn(1 << 21, device=device))
    weight.grad, optimizer = torch.randn_like(weight), AdamW([("w", weight)], moments=work.memory.moments)

    def step() -> None:
        old = weight.detach().clone()
        torch.nn.utils.clip_grad_norm_([weight], 1.0)
        optimizer.step(1e-6)
        (weight.detach() - old).square().sum(), old.square().sum()

    of_token = 1 / (2 * work.micro_rows * work.length)
    per_row = {
        "decode": median_of(decode, device) / rows / 2,
        "draw": median_of(one_draw, device) / rows * c.vocab_size / V,
    }
    return Speed(
        learn=median_of(learn, device) * of_token,
        score=median_of(score, device) * of_token,
        head=median_of(whole_head, device) / 256 * c.vocab_size / V,
        decode=lambda rows: rows * per_row["decode"],
        draw=lambda rows: rows * per_row["draw"],
        step=median_of(step, device) / weight.numel(),
    )


def median_of(work: Callable[[], None], device: torch.device, repeat: int = 5) -> float:
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
