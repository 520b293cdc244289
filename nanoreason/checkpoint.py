"""A checkpoint is a Hugging Face folder plus the training state, written so that a kill at any moment loses nothing.

    config.json  model.safetensors  tokenizer.json  tokenizer_config.json       loads in `transformers` as it is
    training.json  training.safetensors                                        step, optimizer moments: exact resume

The folder is written under a temporary name and renamed. All random numbers of a run are functions of (seed, step), so
there is no generator state to save. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nanoreason.model import ModelConfig, Transformer, rope_table
from nanoreason.run import read_json
from nanoreason.tokenizer import TextTokenizer, load_tokenizer

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}

# --------------------------------------------------------------------------------------------------------- save


def save_checkpoint(
    folder: str | Path,
    model: Transformer,
    tokenizer: TextTokenizer,
    optimizer: torch.optim.Optimizer | None = None,
    state: dict | None = None,
    extra: dict | None = None,
) -> None:
    """Replace `folder` by a checkpoint of `model`; `state` is any JSON object, such as the step to go on from.

    `extra` is what else the folder should tell, such as the task: written as nanoreason.json, which others ignore.
    """
    folder = Path(folder)
    temporary, old = folder.with_name(folder.name + ".tmp"), folder.with_name(folder.name + ".old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]  # one tensor, stored once
    save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
    (temporary / "config.json").write_text(json.dumps(huggingface_config(model.config, tokenizer), indent=2) + "\n")
    tokenizer.save(temporary)
    if optimizer is not None:
        moments = {
            f"{name}:{key}": torch.as_tensor(value).contiguous()
            for name, parameter in model.named_parameters()
            for key, value in optimizer.state.get(parameter, {}).items()
        }
        save_file(moments, temporary / "training.safetensors")
    if state is not None:
        (temporary / "training.json").write_text(json.dumps(state, indent=2) + "\n")
    if extra is not None:
        (temporary / "nanoreason.json").write_text(json.dumps(extra, indent=2) + "\n")
    # A folder cannot be replaced in one move. Between the two renames `old` is the checkpoint: `existing` knows.
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    os.replace(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)


def huggingface_config(config: ModelConfig, tokenizer: TextTokenizer) -> dict:
    """config.json as `transformers` 4 (rope_theta, rope_scaling) and 5 (rope_parameters) read it."""
    rope = {"rope_type": "default", **(config.rope_scaling or {}), "rope_theta": config.rope_theta}
    return {
        "architectures": [ARCHITECTURES[config.model_type]],
        **asdict(config),
        "rope_parameters": rope,
        "hidden_act": "silu",
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
        "torch_dtype": "float32",
    }


# --------------------------------------------------------------------------------------------------------- load


def existing(folder: str | Path) -> Path | None:
    """The folder to read: `folder`, or what a save that was killed between its two renames left of it."""
    folder = Path(folder)
    old = folder.with_name(folder.name + ".old")
    return folder if folder.exists() else old if old.exists() else None


def load_checkpoint(folder: str | Path, device: torch.device | str = "cpu") -> tuple[Transformer, TextTokenizer]:
    """Model (float32) and tokenizer of a folder written here or by `transformers` (Llama, Qwen2, Qwen3; safetensors).

    ValueError names the file and what is wrong with it.
    """
    path = existing(folder)
    if path is None:
        raise ValueError(f"no checkpoint at {folder}")
    model = load_model(path, device)
    tokenizer = load_tokenizer(path)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} tokens, the model only {model.config.vocab_size}"
        )
    return model, tokenizer


def load_extra(folder: str | Path) -> dict:
    """What `save_checkpoint` was told besides the model, such as the task; {} where nothing was."""
    path = existing(folder)
    file = path / "nanoreason.json" if path else None
    return read_json(file) if file and file.exists() else {}


def load_model(path: Path, device: torch.device | str = "cpu") -> Transformer:
    config = read_config(path / "config.json")
    with torch.device("meta"):  # no memory and no random numbers for weights that are about to be replaced
        model = Transformer(config)
    tensors = read_weights(path)
    if config.tie_word_embeddings and "model.embed_tokens.weight" in tensors:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("rotary_emb.inv_freq")}
    wanted = model.state_dict()
    missing, extra = wanted.keys() - tensors.keys(), tensors.keys() - wanted.keys()
    if missing or extra:
        word, name = ("lacks", min(missing)) if missing else ("has the unknown", min(extra))
        raise ValueError(f"{path}: the checkpoint {word} weight {name} ({len(missing)} missing, {len(extra)} unknown)")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, config.json asks for {tuple(wanted[name].shape)}"
            )
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.rope = rope_table(config)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model.to(device)


def read_config(path: Path) -> ModelConfig:
    """A Hugging Face config.json -> ModelConfig; what this code base does not compute is refused, not ignored."""
    raw = read_json(path)
    refused = {
        "quantization_config": raw.get("quantization_config"),
        "use_sliding_window": raw.get("use_sliding_window"),
        "mlp_bias": raw.get("mlp_bias"),
        "hidden_act": raw.get("hidden_act", "silu") if raw.get("hidden_act", "silu") != "silu" else None,
    }
    for key, value in refused.items():
        if value:
            raise ValueError(f"{path}: {key}={value!r} is not supported")
    positive = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                "max_position_embeddings")  # fmt: skip
    for key in positive:
        if not (isinstance(raw.get(key), int) and raw[key] > 0):
            raise ValueError(f"{path}: {key} is {raw.get(key)!r} instead of a positive whole number")
    try:
        rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        scaling = {k: v for k, v in rope.items() if k != "rope_theta"} | {
            "rope_type": rope.get("rope_type", rope.get("type", "default"))
        }
        values = {field.name: raw[field.name] for field in fields(ModelConfig) if field.name in raw}
        heads = raw["num_attention_heads"]
        values |= {
            "head_dim": raw.get("head_dim") or raw["hidden_size"] // heads,
            "num_key_value_heads": raw.get("num_key_value_heads") or heads,
            "rope_theta": rope.get("rope_theta", raw.get("rope_theta", 10000.0)),
            "rope_scaling": None if scaling["rope_type"] == "default" else scaling,
            "tie_word_embeddings": raw.get("tie_word_embeddings", False),
        }
        values |= {key: raw[key] for key in ("model_type", "rms_norm_eps")}
        return ModelConfig(**values)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: {f'{error} is missing' if isinstance(error, KeyError) else error}") from None


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of model.safetensors, or of the shards that its index names."""
    index = path / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.exists():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict):
            raise ValueError(f"{index} has no weight_map: the file is damaged")
        names = sorted(set(shards.values()))
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        if not (path / name).exists():
            pickled = (
                " (pickled weights are not loaded: convert them to safetensors)" if list(path.glob("*.bin")) else ""
            )
            raise ValueError(f"{path / name} is missing{pickled}")
        try:
            tensors |= load_file(path / name)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path / name} is truncated or not a safetensors file ({error})") from None
    return tensors


def load_training(folder: str | Path, model: Transformer, optimizer: torch.optim.Optimizer | None = None) -> dict:
    """Put the optimizer's moments back where they were; return the `state` that was saved beside them."""
    path = existing(folder)
    if path is None:
        raise ValueError(f"no checkpoint at {folder}")
    if optimizer is not None:
        try:
            moments = load_file(path / "training.safetensors")
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{path / 'training.safetensors'} is missing or damaged ({error}): the run cannot go on exactly"
            ) from None
        for name, parameter in model.named_parameters():
            found = {key.rpartition(":")[2]: value for key, value in moments.items() if key.rpartition(":")[0] == name}
            if any(value.ndim and value.shape != parameter.shape for value in found.values()) or not found:
                raise ValueError(f"{path / 'training.safetensors'} holds no moments for {name}: it is of another model")
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in found.items()
            }
    return read_json(path / "training.json")


def resume(folder: str | Path, model: Transformer, optimizer: torch.optim.Optimizer | None = None) -> dict:
    """If `folder` holds a checkpoint, put model and optimizer into its state, in place; returns the state or {}."""
    if existing(folder) is None:
        return {}
    stored, _ = load_checkpoint(folder, model.device)
    if stored.config != model.config:
        raise ValueError(f"{folder} holds a model of another shape: {stored.config} instead of {model.config}")
    model.load_state_dict(stored.state_dict())
    return load_training(folder, model, optimizer)
