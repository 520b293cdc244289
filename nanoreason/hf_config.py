"""config.json of a Hugging Face folder <-> ModelConfig, read as `transformers` reads it.

A fact that this code base does not compute is refused in one line that names the field, never ignored: a model that
loads gives the logits that it gives in `transformers`.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from nanoreason.model import ModelConfig, check
from nanoreason.run import read_json
from nanoreason.tokenizer import TextTokenizer

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
SCALING = ("rope_type", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
# What each field may say, where it stands at all. The first value is what is meant without the field.
ALLOWED: dict[str, tuple] = {
    "hidden_act": ("silu", "swish"),
    "mlp_bias": (False, None),
    "use_sliding_window": (False, None),
    "is_causal": (True,),
    "quantization_config": (None,),
    "compression_config": (None,),
    "per_layer_config": (None,),
    "partial_rotary_factor": (None, 1),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
}


def read_config(path: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """The shape that a config.json describes, and the whole of it; ValueError names the file and the field."""
    raw = read_json(path)
    try:
        return model_config(raw), raw
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def model_config(raw: dict[str, Any]) -> ModelConfig:
    """Where a field is left out, the defaults are those of the LlamaConfig, Qwen2Config, Qwen3Config of `transformers`
    (5.23), save for sizes without which no model is described."""
    for name, allowed in ALLOWED.items():
        if name in raw and not any(raw[name] == value and type(raw[name]) in (type(value), float) for value in allowed):
            raise ValueError(f"{name}={raw[name]!r:.60} is not supported")
    kind = raw.get("model_type")
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "max_position_embeddings")  # fmt: skip
    for name in sizes:
        if name not in raw:
            raise ValueError(f"{name} is missing")
        check(name, raw[name], int, 1, 1 << 31)
    for name in ("bos_token_id", "pad_token_id"):  # not used here, but saved again
        if raw.get(name) is not None:
            check(name, raw[name], int, 0, 1 << 31)
    heads, layers = raw["num_attention_heads"], raw["num_hidden_layers"]
    window, types = raw.get("sliding_window"), raw.get("layer_types")
    if types is not None and (not isinstance(types, list) or any(each != "full_attention" for each in types)):
        raise ValueError(f"layer_types={types!r:.60} is not supported: every layer has full attention here")
    if types is not None and len(types) != layers:
        raise ValueError(f"layer_types names {len(types)} layers, num_hidden_layers is {layers}")
    if kind == "llama" and window is not None:  # the Qwens have it with use_sliding_window false
        raise ValueError(f"sliding_window={window!r:.60} is not supported")
    head_dim, kv_heads = raw.get("head_dim"), raw.get("num_key_value_heads")
    if head_dim is None:
        head_dim = 128 if kind == "qwen3" else raw["hidden_size"] // heads
    if kv_heads is None:
        kv_heads = 32 if kind != "llama" and "num_key_value_heads" not in raw else heads
    theta, scaling = rope_of(raw)
    return ModelConfig(
        model_type=kind,
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["intermediate_size"],
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=raw["max_position_embeddings"],
        rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_word_embeddings=raw.get("tie_word_embeddings", False),
        attention_bias=raw.get("attention_bias", False),
    )


def rope_of(raw: dict[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """Base and scaling of the rotary embedding, with the priorities of `transformers` 5.

    rope_scaling (the name in version 4), if it holds anything, replaces rope_parameters as a whole. The base stands in
    the dict that counts, else beside it, else it is 10000; the first context stands beside it, else in the dict.
    """
    for name in ("rope_scaling", "rope_parameters"):
        value = raw.get(name)
        if value is not None and not isinstance(value, dict):
            raise ValueError(f"{name} is {value!r:.60} instead of an object")
        if nested := [key for key, inner in (value or {}).items() if isinstance(inner, dict | list)]:
            raise ValueError(f"{name}: {nested[0]}={value[nested[0]]!r:.60} is not supported: layers turn alike here")
    name = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
    rope = raw.get(name) or {}
    theta = rope.get("rope_theta", raw.get("rope_theta", 10000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise ValueError(f"{name}: rope_type {kind!r:.60} is not supported: only default and llama3 are")
    if rope.get("partial_rotary_factor") not in (None, 1):
        raise ValueError(f"{name}: partial_rotary_factor={rope['partial_rotary_factor']!r:.60} is not supported")
    if kind == "default":
        return theta, None
    first_context = rope.get("original_max_position_embeddings", raw["max_position_embeddings"])
    scaling = {**rope, "rope_type": kind, "original_max_position_embeddings": first_context}
    if "original_max_position_embeddings" in raw:
        scaling["original_max_position_embeddings"] = raw["original_max_position_embeddings"]
    return theta, {key: scaling[key] for key in SCALING if key in scaling}


def huggingface_config(config: ModelConfig, tokenizer: TextTokenizer, stored: dict[str, Any] | None = None) -> dict:
    """config.json as `transformers` 4 (rope_theta, rope_scaling) and 5 (rope_parameters) read it.

    What `stored`, the config.json that the model was loaded from, says beyond the shape is kept; so is what it says
    about EOS and padding, unless the tokenizer is another one.
    """
    stored = dict(stored or {})
    rope = {"rope_type": "default", **(config.rope_scaling or {}), "rope_theta": config.rope_theta}
    eos, pad = stored.get("eos_token_id"), stored.get("pad_token_id")
    if eos is None or not set(eos if isinstance(eos, list) else [eos]) <= set(tokenizer.eos_ids):
        eos = list(tokenizer.eos_ids) if len(tokenizer.eos_ids) > 1 else tokenizer.eos_id
    stored.pop("dtype", None)  # of the file it was loaded from; `transformers` 5 would believe it before torch_dtype
    return {
        "bos_token_id": None,
        **stored,
        "architectures": [ARCHITECTURES[config.model_type]],
        **asdict(config),
        "rope_parameters": rope,
        "hidden_act": "silu",
        "eos_token_id": eos,
        "pad_token_id": tokenizer.pad_id if pad is None else pad,
        "torch_dtype": "float32",
    }
