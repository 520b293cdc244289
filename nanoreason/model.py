"""A decoder-only transformer (Llama, Qwen2, Qwen3) and its KV cache, written by hand.

    tokens (B, T) -> embed -> [RMSNorm, attention, +, RMSNorm, SwiGLU, +] x layers -> RMSNorm -> head: logits (B, T, V)

One forward serves training, prefill and decoding. What a token may see is decided by one rule, *key j is visible at
position p iff j <= p*: rows are right-padded and every row has its own positions, so there is no mask argument.
Module names are Hugging Face's, so a checkpoint loads without a name map.

Shape letters: B rows, T tokens, S cache slots, V vocabulary, D width, H heads, K kv heads, G = H / K, d head size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Bounds well above any model there is, so that a damaged number is refused before memory is asked for.
LARGEST = {
    "vocab_size": 1 << 22, "hidden_size": 1 << 16, "intermediate_size": 1 << 18, "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 10, "num_key_value_heads": 1 << 10, "head_dim": 1 << 10,
    "max_position_embeddings": 1 << 21,
}  # fmt: skip


@dataclass
class ModelConfig:
    """Field names are those of Hugging Face's config.json. A field out of its range is a ValueError that names it."""

    model_type: str = "llama"  # llama, qwen2 (bias on q, k, v) or qwen3 (RMSNorm on each head's q and k)
    vocab_size: int = 64
    hidden_size: int = 96
    intermediate_size: int = 256
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    num_key_value_heads: int = 4
    head_dim: int = 24
    max_position_embeddings: int = 256
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None  # None, or Llama 3.1's {"rope_type": "llama3", "factor": ...}
    tie_word_embeddings: bool = True
    attention_bias: bool = False  # bias on q, k, v and o (llama, qwen3); qwen2 always has it on q, k, v alone

    def __post_init__(self) -> None:
        if self.model_type not in ("llama", "qwen2", "qwen3"):
            raise ValueError(f"model_type {str(self.model_type)!r:.60} is not supported: use llama, qwen2 or qwen3")
        for name, largest in LARGEST.items():
            check(name, getattr(self, name), int, 1, largest)
        check("rms_norm_eps", self.rms_norm_eps, float, 1e-12, 0.1)
        check("rope_theta", self.rope_theta, float, 1, 1e12)
        for name in ("tie_word_embeddings", "attention_bias"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r:.60} instead of true or false")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple "
                f"of num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd: rotary embedding turns pairs of dimensions")
        if self.model_type == "llama" and self.hidden_size % self.num_attention_heads:  # as `transformers` has it
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.rope_scaling:
            self._check_rope_scaling(self.rope_scaling)

    @staticmethod
    def _check_rope_scaling(scaling: dict[str, Any]) -> None:
        if scaling.get("rope_type") != "llama3":
            raise ValueError(f"rope_scaling {str(scaling):.200} is not supported: only rope_type llama3 is")
        numbers = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        if missing := set(numbers) - set(scaling):
            raise ValueError(f"rope_scaling lacks {', '.join(sorted(missing))}")
        for name in numbers:
            check(f"rope_scaling: {name}", scaling[name], float, 1e-6, 1e9)
        if scaling["low_freq_factor"] >= scaling["high_freq_factor"]:
            raise ValueError("rope_scaling: low_freq_factor must be smaller than high_freq_factor")


def check(name: str, value: Any, kind: type, least: float, most: float) -> None:
    """ValueError that names the field unless `value` is a number of this kind (a whole one is a float too) in range."""
    if type(value) not in (int, kind) or not least <= value <= most:
        what = "whole number" if kind is int else "number"
        raise ValueError(f"{name} is {value!r:.60} instead of a {what} from {least} to {most}")


def small_config(width: int, layers: int, heads: int, vocab_size: int, context: int, **other: Any) -> ModelConfig:
    """The shape of our own small models: SwiGLU of 8/3 width rounded up to 32, tied embeddings."""
    if width % heads or width // heads % 2:
        raise ValueError(f"width {width} must be an even multiple of heads {heads}")
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=math.ceil(width * 8 / 3 / 32) * 32,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=other.pop("kv_heads", heads),
        head_dim=width // heads,
        max_position_embeddings=context,
        **other,
    )


# ------------------------------------------------------------------------------------------------------ KV cache


class KVCache:
    """Keys and values of many rows. Slot j of a row holds its token at position j, so positions are addresses.

    `kv` is (layer, 2, B, K, S, d): kv heads before slots, so that one row's head is a plain matrix for `bmm`.
    """

    def __init__(self, config: ModelConfig, rows: int, slots: int, device: torch.device, dtype: torch.dtype):
        shape = (config.num_hidden_layers, 2, rows, config.num_key_value_heads, slots, config.head_dim)
        # Zeros, not empty: an unwritten slot is weighted with probability 0, and 0 * NaN would still be NaN.
        self.kv = torch.zeros(shape, device=device, dtype=dtype)

    @staticmethod
    def bytes_per_slot(config: ModelConfig, dtype: torch.dtype) -> int:
        return config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim * dtype.itemsize

    @property
    def slots(self) -> int:
        return self.kv.shape[4]

    def view(self, first: int, last: int) -> KVCache:
        """Rows first..last-1; writes go to the same memory."""
        part = object.__new__(KVCache)
        part.kv = self.kv[:, :, first:last]
        return part

    def resize(self, rows: int, slots: int) -> None:
        """Change the shape and keep what both shapes have.

        Attention reads all slots of a row, so a cache is kept as short as its longest row: reading a part of each row
        would be no saving, since memory that is read with gaps is several times slower than memory read in one piece.
        """
        old, (layers, two, _, heads, _, d) = self.kv, self.kv.shape
        self.kv = old.new_zeros(layers, two, rows, heads, slots, d)
        keep = (slice(None), slice(None), slice(min(rows, old.shape[2])), slice(None), slice(min(slots, old.shape[4])))
        self.kv[keep] = old[keep]

    def addresses(self, positions: torch.Tensor) -> torch.Tensor:
        """positions (B, T) -> (B*K*T,): where these tokens stand if B, K and S are counted as one; for all layers."""
        (_, _, B, K, S, _), device = self.kv.shape, positions.device
        first = torch.arange(B * K, device=device).view(B, K, 1) * S
        return (first + positions[:, None]).flatten()

    def write(
        self, layer: int, k: torch.Tensor, v: torch.Tensor, addresses: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store k, v (B, K, T, d) at their `addresses`; return all keys and values (B, K, S, d) of the view."""
        for old, new in zip(self.kv[layer], (k, v), strict=True):
            old.view(-1, old.shape[-1]).index_copy_(0, addresses, new.flatten(0, 2).to(old.dtype))
        return tuple(self.kv[layer])


# ----------------------------------------------------------------------------------------------------- the layers


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


def rope_table(config: ModelConfig) -> torch.Tensor:
    """(2, context, d): cosines and signed sines of position * frequency; Llama 3.1 stretches the low frequencies."""
    d = config.head_dim
    frequency = config.rope_theta ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)  # (d/2,)
    scaling = config.rope_scaling
    if scaling:
        turns = (
            scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
        )  # full turns in the first context
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        keep = ((turns - low) / (high - low)).clamp(0, 1)  # 1: fast enough to stay as it is, 0: slowed by `factor`
        frequency = frequency * (keep + (1 - keep) / scaling["factor"])
    angle = torch.arange(config.max_position_embeddings, dtype=torch.float64)[:, None] * frequency  # (context, d/2)
    cos, sin = angle.cos().float(), angle.sin().float()
    # (2, context, d): dimension i turns together with i + d/2; the first half gets minus the second one: see `rotate`
    return torch.stack([torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)])


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn x (B, heads, T, d) by its position: rotary embedding, in the half-split layout of Hugging Face."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)  # (a, b) -> (a cos - b sin, b cos + a sin)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        D, H, K, d = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim
        qkv_bias = config.attention_bias or config.model_type == "qwen2"
        self.head_dim = d
        self.q_proj = nn.Linear(D, H * d, bias=qkv_bias)
        self.k_proj = nn.Linear(D, K * d, bias=qkv_bias)
        self.v_proj = nn.Linear(D, K * d, bias=qkv_bias)
        self.o_proj = nn.Linear(H * d, D, bias=config.attention_bias and config.model_type != "qwen2")
        if config.model_type == "qwen3":
            self.q_norm = RMSNorm(d, config.rms_norm_eps)
            self.k_norm = RMSNorm(d, config.rms_norm_eps)

    def forward(self, x, rope, addresses, bias, cache: KVCache | None, layer: int) -> torch.Tensor:
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, -1, self.head_dim)  # (B, T, H, d)
        k = self.k_proj(x).view(B, T, -1, self.head_dim)  # (B, T, K, d)
        v = self.v_proj(x).view(B, T, -1, self.head_dim)
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        heads = [q.shape[2], k.shape[2]]
        q, k = rotate(torch.cat([q, k], 2).transpose(1, 2), *rope).split(heads, 1)  # (B, H, T, d), (B, K, T, d)
        v = v.transpose(1, 2)
        if cache is None:  # key j is visible at position p iff j <= p
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        else:
            k, v = cache.write(layer, k, v, addresses)  # (B, K, S, d)
            out = attend(q, k, v, bias)
        return self.o_proj(out.transpose(1, 2).reshape(B, T, -1))


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Attention of new tokens over a cache: q (B, H, T, d), k and v (B, K, S, d), bias (B, 1, T, S) of 0 and -inf.

    The G query heads that share a kv head are the rows of one matrix, so keys are read once and never repeated.
    """
    (B, H, T, d), K = q.shape, k.shape[1]
    G = H // K
    if T > 1:  # a prompt: the fused kernel never holds all (T, S) scores
        k, v = k.to(q.dtype), v.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), enable_gqa=G > 1)
    q = (q * d**-0.5).view(B, K, G, d)  # one token a row: T = 1
    scores = (q @ k.to(q.dtype).transpose(2, 3)).add_(bias)  # (B, K, G, S)
    return (scores.softmax(-1).to(q.dtype) @ v.to(q.dtype)).view(B, H, T, d)


class MLP(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x, *context) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), *context)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Transformer(nn.Module):
    def __init__(self, config: ModelConfig, seed: int = 0):
        """Random weights from `seed`.

        Embeddings are normal(0, 0.02), projections normal(0, 1/sqrt(D)), those into the residual stream divided by
        sqrt(2L). The usual 0.02 everywhere suits widths of some thousand; at width 96 it makes the layers so weak that
        the loss on addition is 0.51 instead of 0.22 after 200 steps.
        """
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.register_buffer("rope", rope_table(config), persistent=False)  # (2, context, d)
        # (V,) bool: ids without a token, where the head is wider than the tokenizer. Sampler and learner give them
        # probability 0; the logits of `forward` are those of the weights. None: every id has a token.
        self.register_buffer("no_token", None, persistent=False)
        self.stored_config: dict[str, Any] = {}  # the config.json it was loaded from: what is in it is saved again
        # Keep only each block's input for the backward pass, which computes the rest once more: about a third more
        # work, and memory for one block instead of all. The gradients are the same to the bit: nothing here is random.
        # (The learner then reads a prompt that rows share in each of them, see `states_of`: a difference of rounding.)
        self.recompute = False
        generator = torch.Generator().manual_seed(seed % 2**63)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                std = 0.02 if name.startswith(("model.embed_tokens", "lm_head")) else config.hidden_size**-0.5
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    std /= math.sqrt(2 * config.num_hidden_layers)
                nn.init.normal_(parameter, std=std, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    @property
    def device(self) -> torch.device:
        return self.lm_head.weight.device

    def hidden(
        self, tokens: torch.Tensor, positions: torch.Tensor | None = None, cache: KVCache | None = None
    ) -> torch.Tensor:
        """tokens (B, T) -> final hidden states (B, T, D).

        Without a cache the tokens start at position 0. With one, `positions` (B, T) says where each token stands:
        its keys are stored there, and it sees every slot up to there.
        """
        bias = addresses = None
        if cache is None:
            cos, sin = self.rope[:, None, None, : tokens.shape[1]]  # (1, 1, T, d)
        else:
            cos, sin = self.rope[:, positions].unsqueeze(2)  # (B, 1, T, d)
            addresses = cache.addresses(positions)
            slots = torch.arange(cache.slots, device=tokens.device)
            hidden = slots > positions[..., None]  # (B, T, S)
            bias = torch.zeros_like(hidden, dtype=cos.dtype).masked_fill_(hidden, -torch.inf)[:, None]  # (B, 1, T, S)
        x = self.model.embed_tokens(tokens)  # (B, T, D)
        for layer, block in enumerate(self.model.layers):
            if self.recompute and cache is None and torch.is_grad_enabled():
                x = checkpoint(block, x, (cos, sin), None, None, None, layer, use_reentrant=False)
            else:
                x = block(x, (cos, sin), addresses, bias, cache, layer)
        return self.model.norm(x)

    def forward(
        self, tokens: torch.Tensor, positions: torch.Tensor | None = None, cache: KVCache | None = None
    ) -> torch.Tensor:
        """tokens (B, T) -> logits (B, T, V); the logits at column t are about the token at t + 1."""
        return self.lm_head(self.hidden(tokens, positions, cache))

    def size(self) -> int:
        """Number of parameters, tied ones counted once."""
        return sum(parameter.numel() for parameter in self.parameters())


def on_meta(config: ModelConfig) -> Transformer:
    """A model that takes no memory and no random numbers: its weights are about to be replaced, or only counted."""
    with torch.device("meta"):
        return Transformer(config)


def assign_weights(model: Transformer, tensors: dict[str, torch.Tensor]) -> None:
    """The tensors become the weights, as they are and not copied. Tied, the embedding is the head, which may be
    left out of the tensors; any other name that is missing or unknown is a RuntimeError."""
    tied = model.config.tie_word_embeddings
    head = {HEAD: tensors[EMBEDDING]} if tied else {}
    model.load_state_dict(head | tensors, assign=True)
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight


def plain_copy(model: Transformer, tensors: dict[str, torch.Tensor]) -> Transformer:
    """A model like this one with these weights, without what stands around its own (adapters, parts)."""
    plain = on_meta(model.config)
    assign_weights(plain, tensors)
    plain.rope, plain.no_token, plain.stored_config = model.rope, model.no_token, model.stored_config
    return plain
