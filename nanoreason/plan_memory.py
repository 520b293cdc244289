"""What a training step keeps in memory, part by part, computed from the shape of the model and the settings of the run.

A step has phases: loading, sampling, updating (the passes of a micro-batch), stepping (the optimizer), saving. A part
is there in some of them; the largest sum is the peak. Weights are counted on the meta device, by the code that makes
them.
Bytes are those of float32 on a CPU, as measured (docs/from-laptop-to-gpu.md); on a card forward passes are in bfloat16,
and nothing of that was measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from nanoreason import processes
from nanoreason.checkpoint import found, is_adapter, weight_files
from nanoreason.hf_config import read_config
from nanoreason.learn import CHUNK_LOGITS, is_worth_sharing
from nanoreason.memory import Memory, prepare
from nanoreason.model import KVCache, ModelConfig, on_meta
from nanoreason.sampler import PREFILL_TOKENS, WIDEN

KV_BYTES, MAX_ROWS = 4 << 30, 512  # of the sampler, whose defaults the recipes use


@dataclass(frozen=True)
class Work:
    """One step of a run: what its memory and its time hang on. Lengths in tokens."""

    shape: ModelConfig
    rows: int  # of a step
    prompt: int  # the longest of the prompts that were looked at
    response: int  # the longest there can be
    micro_tokens: int
    memory: Memory = Memory()
    prompts: int = 0  # different ones that are sampled from; 0: nothing is sampled
    updates: int = 1  # optimizer steps
    epochs: int = 1  # passes over the rows
    scores: int = 0  # forward passes beside: old log-probs, reference
    logged: int = 0  # rows whose entropies are logged: another forward pass
    reference: bool = False
    teacher: int = 0  # weights of another model that is sampled
    muon: bool = False
    file_bytes: int = 0

    @property
    def length(self) -> int:
        return self.prompt + self.response

    @property
    def micro_rows(self) -> int:
        rows = self.rows * self.epochs // self.updates
        return max(1, min(rows, self.micro_tokens // self.length))


def read_share(work: Work) -> float:
    """Of the tokens of a micro-batch the share that the learner reads: a prompt that rows share is read once
    (`learn.states_of`). Rows of a group stand beside each other."""
    B, T, L = work.micro_rows, work.length - 1, work.prompt - 1
    prompts = math.ceil(B * work.prompts / work.rows) if work.prompts else B
    whole = work.memory.recompute or work.memory.shard or not is_worth_sharing(B, T, L, prompts)
    return 1.0 if whole else (prompts * L + B * (T - L)) / (B * T)


def base_of(folder: str) -> tuple[ModelConfig, int]:
    """(the shape, the bytes of the weight files) of a checkpoint folder; no weight is read."""
    path = found(folder)
    if is_adapter(path):
        raise ValueError(f"{path} holds adapters: plan with the folder of a whole model")
    return read_config(path / "config.json")[0], sum(Path(path, name).stat().st_size for name in weight_files(path))


def counted(shape: ModelConfig, memory: Memory) -> tuple[int, int]:
    """(all weights, those that are trained), by making them where they take no memory."""
    model = on_meta(shape)
    size = model.size()
    prepare(model, memory, 0)
    return size, sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def block_floats(c: ModelConfig, frozen: bool) -> int:
    """Numbers that one block keeps of each token for the backward pass."""
    D, q, kv, H, K = c.hidden_size, c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim, \
        c.num_attention_heads, c.num_key_value_heads  # fmt: skip
    norms = 2 * (D + 1) + (0 if frozen else 2 * D)  # inputs; where the norm's weight is trained, the normalized too
    if c.model_type == "qwen3":
        norms += (q + kv) * (1 if frozen else 2) + H + K
    attention = 2 * q + 2 * kv + H  # queries and keys, values, what comes out, the sum of each row's weights
    return norms + 2 * D + attention + 4 * c.intermediate_size  # 2 D: what goes into q, k, v and into gate, up


def saved_floats(work: Work) -> float:
    """Numbers that a forward pass keeps of each token: of all blocks, or of their inputs and one block at a time."""
    c, frozen = work.shape, bool(work.memory.lora)
    block = block_floats(c, frozen) + (7 * work.memory.lora)
    blocks = c.num_hidden_layers * (c.hidden_size if work.memory.recompute else block)
    return blocks + (block if work.memory.recompute else 0) + c.hidden_size * (1 if frozen else 2) + 3


def memory_of(work: Work, on_card: bool = False) -> dict[str, dict[str, float]]:
    """{phase: {part: bytes}}: loading, sampling, updating (the passes of a micro-batch), stepping (the optimizer), and
    on a CPU saving."""
    c, m = work.shape, work.memory
    N, T = counted(c, m)
    V, D, inner = c.vocab_size, c.hidden_size, c.intermediate_size
    wide = 2 if on_card else 4  # bytes of what a forward pass makes
    stored = {"float32": 8, "bfloat16": 4, "cpu": 0 if on_card else 8}[m.moments] * (0.5 if work.muon else 1)
    weights = {"weights": 4 * N + (4 * T if m.lora else 0)}
    others = {"reference": 4 * N if work.reference and not m.lora else 0, "teacher": 4 * work.teacher}
    lasting = weights | {"moments": stored * T} | others
    copied = bool(work.prompts) and (work.updates > 1 or bool(m.lora))  # else the optimizer copies some at a time
    gradients, before = {"gradients": 4 * T}, {"weights before the step": 4 * T if copied else 0}
    some = {"weights before the step": 4 * min(T, processes.BUCKET) if work.prompts else 0}
    phases = {"load": weights | {"file": work.file_bytes}}
    if work.prompts:
        rows, slots = resident(work, on_card)
        kv = rows * slots * KVCache.bytes_per_slot(c, torch.bfloat16 if on_card or halved(m) else torch.float32)
        prefill = min(work.prompts * work.prompt, PREFILL_TOKENS) * (2 * D + 3 * inner) * wide
        decode = rows * (V * 21 + c.num_attention_heads * slots * 8)  # logits, probabilities, their float64 sums
        copy = 2 * N if halved(m) else 0
        phases["sample"] = lasting | gradients | {"sampling copy": copy, "keys and values": 2 * kv,
                                                  "work": max(prefill, decode)}  # fmt: skip
    tokens, targets = work.micro_rows * (work.length - 1), work.micro_rows * work.response
    if chunked := targets * V > CHUNK_LOGITS:  # see `learn.ChunkedHead`
        logits = 3 * 4 * max(CHUNK_LOGITS, V)
    else:
        logits = (5 if work.prompts else 3) * 4 * targets * V
    head, read = 0 if m.lora else 4 * V * D, tokens * read_share(work)
    backward = head + read * (3 * inner + 2 * D) * 4
    # keys and values of a shared prompt are copied into its rows
    copies = 2 * c.num_key_value_heads * c.head_dim * c.num_hidden_layers * tokens if read < tokens else 0
    cast = {"weights in bfloat16": 2 * N} if on_card else {}
    several = work.rows * work.epochs // work.updates > work.micro_rows
    phases["update"] = lasting | (gradients if several else {}) | before | cast | {
        "activations": (saved_floats(work) * read + copies) * wide,
        "logits": logits + (head if chunked else 0), "work": max(0, backward - logits - (head if chunked else 0)),
    }  # fmt: skip
    # float32: a divisor of each weight; else of the largest weight alone both moments, the divisor and random bits
    largest = D * inner if m.lora else max(V * D, D * inner)
    stepping = 4 * T if m.moments == "float32" else 20 * min(largest, T)
    phases["step"] = lasting | gradients | (before if copied else some) | {"work": max(stepping, 2 * head)}
    if not on_card:  # asking whether a weight is finite takes 6 bytes of each of its numbers
        heads = V * D * (1 if c.tie_word_embeddings else 2)
        copy = {"merged copy": 4 * (N - heads) if m.lora else 0}  # OUT/policy is made on the CPU
        phases["save"] = lasting | gradients | before | copy | {"work": 6 * V * D}
    return phases


def halved(memory: Memory) -> bool:
    return memory.sample_dtype == "bfloat16"


def resident(work: Work, on_card: bool = False) -> tuple[int, int]:
    """Rows and slots of the sampler's cache."""
    slots = min(work.length + WIDEN, work.shape.max_position_embeddings)
    dtype = torch.bfloat16 if on_card or halved(work.memory) else torch.float32
    affordable = KV_BYTES // (work.length * KVCache.bytes_per_slot(work.shape, dtype))
    return max(1, min(work.rows, MAX_ROWS, affordable)), slots


def peak(work: Work, on_card: bool = False) -> float:
    return max(sum(parts.values()) for parts in memory_of(work, on_card).values())
