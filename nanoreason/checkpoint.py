"""A checkpoint is a Hugging Face folder plus the training state, written so that a kill at any moment loses nothing.

    config.json  model.safetensors  tokenizer.json  tokenizer_config.json       loads in `transformers` as it is
    generation_config.json, chat templates, ...                                as they were in the folder it came from
    nanoreason.json                                                            what a recipe wants to be known later
    training.json  training.safetensors                                        step, optimizer moments: exact resume
    checksums.json                                                             of all of these

A model with adapters (LoRA) is saved as `peft` saves it, without the weights of its base, and loads merged with them:

    adapter_config.json  adapter_model.safetensors  tokenizer.json ...          in place of the first two

The folder is written under a temporary name, flushed to the disk and renamed. All random numbers of a run are functions
of (seed, step), so there is no generator state to save. Nothing is pickled. Weights that are not finite are neither
saved nor loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PureWindowsPath

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from nanoreason import processes
from nanoreason.hf_config import huggingface_config, read_config
from nanoreason.lora import add_stored, merged, peft_config, peft_tensors, put_back
from nanoreason.model import EMBEDDING, HEAD, Transformer, assign_weights, on_meta, rope_table
from nanoreason.run import read_json
from nanoreason.sharding import is_sharded, load_weights, together
from nanoreason.tokenizer import TextTokenizer, load_tokenizer

SUMS, EXTRA = "checksums.json", "nanoreason.json"
BASE_SUMS = "base_weights.json"  # beside adapters: which weights they stand beside
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
# The fields of config.json by which a weight is there, and by which it has its shape; the first part that fits counts.
NUMBER_DECIDED_BY = {".bias": "attention_bias, model_type", "_norm.": "model_type", HEAD: "tie_word_embeddings",
                     ".layers.": "num_hidden_layers", "": "model_type"}  # fmt: skip
SHAPE_DECIDED_BY = {
    "embed_tokens": "vocab_size, hidden_size", "lm_head": "vocab_size, hidden_size",
    "mlp": "hidden_size, intermediate_size", "q_norm": "head_dim", "k_norm": "head_dim",
    "q_proj": "hidden_size, num_attention_heads, head_dim", "o_proj": "hidden_size, num_attention_heads, head_dim",
    "_proj": "hidden_size, num_key_value_heads, head_dim", "": "hidden_size",
}  # fmt: skip

# --------------------------------------------------------------------------------------------------------- save


def save_checkpoint(
    folder: str | Path,
    model: Transformer,
    tokenizer: TextTokenizer,
    optimizer: torch.optim.Optimizer | None = None,
    state: dict | None = None,
    extra: dict | None = None,
    base: str = "",
) -> None:
    """Replace `folder` by a checkpoint of `model`, or of its adapters alone where it has some.

    state   any JSON object with a "step" or a "round" to go on from
    extra   any JSON object that is to be known of the checkpoint later, such as its task: `load_extra` gives it back
    base    of a model with adapters: the folder that its other weights came from

    A weight or moment that is not finite is a FloatingPointError that names it; the old checkpoint stays. Of several
    processes the first one saves, and all return when it has.
    """
    sharded = is_sharded(model)
    if not processes.is_first() and not sharded:
        processes.wait_for_all()
        return

    def kept(tensor: torch.Tensor) -> torch.Tensor:
        """Of a sharded tensor all parts, which take all processes to put together and the first one to keep."""
        tensor = together(torch.as_tensor(tensor).detach())
        return (tensor.cpu() if processes.is_first() else tensor[..., :0]) if sharded and tensor.ndim else tensor

    folder = Path(folder)
    temporary, old = folder.with_name(folder.name + ".tmp"), folder.with_name(folder.name + ".old")
    adapted = peft_tensors(model)
    tensors = adapted or {name: kept(tensor).contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings and not adapted:
        del tensors[HEAD]  # one tensor, stored once
    moments = {
        f"{name}:{key}": kept(value).contiguous()
        for name, parameter in (model.named_parameters() if optimizer is not None else ())
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    if not processes.is_first():
        processes.wait_for_all()
        return
    for name, tensor in {**tensors, **moments}.items():
        if not tensor.isfinite().all():
            raise FloatingPointError(f"{name} holds values that are not finite: nothing is saved to {folder}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_tensors(tensors, temporary / (ADAPTER if adapted else "model.safetensors"))
    described = temporary / (ADAPTER_CONFIG if adapted else "config.json")
    config = peft_config(model, base) if adapted else huggingface_config(model.config, tokenizer, model.stored_config)
    described.write_text(json.dumps(config, indent=2) + "\n")
    tokenizer.save(temporary)
    if extra is not None:
        (temporary / EXTRA).write_text(json.dumps(extra, indent=2) + "\n")
    if optimizer is not None:
        save_tensors(moments, temporary / "training.safetensors")
    if adapted and existing(base) is not None:
        (temporary / BASE_SUMS).write_text(json.dumps(base_weights(base), indent=2) + "\n")
    if state is not None:
        (temporary / "training.json").write_text(json.dumps(state, indent=2) + "\n")
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    for path in files:
        if path.suffix == ".safetensors":  # its writer makes it readable for the owner alone, whatever the umask says
            path.chmod(described.stat().st_mode)
    sums = {path.relative_to(temporary).as_posix(): checksum(path) for path in files}
    (temporary / SUMS).write_text(json.dumps(sums, indent=2) + "\n")
    for path in (*files, temporary / SUMS, temporary):
        flush(path)
    # A folder cannot be replaced in one move. Between the two renames `old` is the checkpoint: `existing` knows.
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    os.replace(temporary, folder)
    flush(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
    processes.wait_for_all()


def save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file; a disk that is full is an OSError, as it is for every other file."""
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written ({error}): the checkpoint before it is kept") from None


def flush(path: Path) -> None:
    """Return when the disk holds a file, or the names in a folder: a rename must not survive what it stands for."""
    with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():  # not every system does folders
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def checksum(path: Path) -> str:
    """BLAKE2 of a file's bytes."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# --------------------------------------------------------------------------------------------------------- load


def existing(folder: str | Path) -> Path | None:
    """The folder to read: `folder`, or what a save that was killed between its two renames left of it."""
    if not str(folder):
        return None
    folder = Path(folder)
    old = folder.parent / f"{folder.name}.old"
    return folder if folder.exists() else old if old.exists() else None


def load_checkpoint(folder: str | Path, device: torch.device | str = "cpu") -> tuple[Transformer, TextTokenizer]:
    """Model (float32) and tokenizer of a folder written here or by `transformers` (Llama, Qwen2, Qwen3; safetensors).

    A folder of adapters in `peft`'s layout is loaded with its base, and merged into it. ValueError names the file and
    what is wrong with it.
    """
    path = found(folder)
    if is_adapter(path):
        return load_merged(path, device)
    model = load_model(path)
    tokenizer = load_tokenizer(path)
    V = model.config.vocab_size
    if tokenizer.vocab_size > V:
        raise ValueError(f"{path}: the tokenizer needs a head of {tokenizer.vocab_size} tokens, the model has only {V}")
    if len(tokenizer.valid_ids) < V:  # padded to a round number, or with gaps
        model.no_token = torch.ones(V, dtype=torch.bool).index_fill_(0, torch.tensor(tokenizer.valid_ids), False)
    verify(path, lambda name: not name.startswith("training."))
    return model.to(device), tokenizer


def is_adapter(path: Path) -> bool:
    return (path / ADAPTER_CONFIG).exists() and not (path / "config.json").exists()


def load_merged(path: Path, device: torch.device | str) -> tuple[Transformer, TextTokenizer]:
    """The base that a folder of adapters names, with the adapters merged into its weights."""
    config, tensors = read_adapter(path)
    model, tokenizer = load_checkpoint(config["base_model_name_or_path"], device)
    try:
        add_stored(model, config, tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    plain = merged(model)
    plain.requires_grad_(True)
    return plain, tokenizer


def read_adapter(path: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """adapter_config.json and the tensors of a folder of adapters; their base is here, and is that of the training."""
    config, tensors = read_json(path / ADAPTER_CONFIG), read_tensors(path / ADAPTER, torch.float32)
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or existing(base) is None or is_adapter(existing(base)):
        raise ValueError(f"{path / ADAPTER_CONFIG}: its base {base!r:.200} is no folder of a whole model here")
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{path / ADAPTER}: {name} holds values that are not finite")
    verify(path, lambda name: not name.startswith("training."))
    if (path / BASE_SUMS).exists() and (before := read_json(path / BASE_SUMS)) != base_weights(base):
        raise ValueError(f"{path}: the weights in {base} are not those that the adapter stands beside: {before}")
    return config, tensors


def base_weights(folder: str | Path) -> dict[str, str]:
    """{weight file: its checksum}"""
    path = found(folder)
    return {name: checksum(path / name) for name in weight_files(path)}


def found(folder: str | Path) -> Path:
    path = existing(folder)
    if path is None:
        raise ValueError(f"no checkpoint at {str(folder) or repr('')}")
    return path


def verify(path: Path, wanted: Callable[[str], bool]) -> None:
    """ValueError unless the wanted files are those that `save_checkpoint` wrote; says nothing of other folders.

    Asked last: what is wrong with a file in itself is the better message.
    """
    if not (path / SUMS).exists():
        return
    for name, value in read_json(path / SUMS).items():
        if wanted(name) and not ((path / name).is_file() and checksum(path / name) == value):
            raise ValueError(
                f"{path / name} is not the file that was saved (its checksum differs): it is damaged or was changed. "
                f"If you changed it, delete {SUMS}"
            )


def load_extra(folder: str | Path) -> dict:
    """What was saved as `extra`; {} where there is nothing."""
    path = found(folder) / EXTRA
    return read_json(path) if path.exists() else {}


def load_model(path: Path, device: torch.device | str = "cpu") -> Transformer:
    config, stored = read_config(path / "config.json")
    tensors = read_weights(path)
    if config.tie_word_embeddings:
        if {EMBEDDING, HEAD} <= tensors.keys() and not torch.equal(tensors[EMBEDDING], tensors[HEAD]):
            config = replace(config, tie_word_embeddings=False)  # the file has two: both count, as in `transformers`
        elif shared := [tensors[name] for name in (EMBEDDING, HEAD) if name in tensors]:
            tensors[EMBEDDING] = tensors[HEAD] = shared[0]
    model = on_meta(config)
    wanted = model.state_dict()
    missing, extra = wanted.keys() - tensors.keys(), tensors.keys() - wanted.keys()
    if missing or extra:
        word, name = ("lacks", min(missing)) if missing else ("has the unknown", min(extra))
        fields = next(fields for part, fields in NUMBER_DECIDED_BY.items() if part in name)
        raise ValueError(
            f"{path}: the checkpoint {word} weight {name} ({len(missing)} missing, {len(extra)} unknown; "
            f"config.json: see {fields})"
        )
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            fields = next(fields for part, fields in SHAPE_DECIDED_BY.items() if part in name)
            raise ValueError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, config.json asks for {tuple(wanted[name].shape)} "
                f"(see {fields})"
            )
    assign_weights(model, tensors)
    model.rope = rope_table(config)
    model.stored_config = stored
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model.to(device)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """All weights as float32: of model.safetensors, or where there is none, of the shards that the index names."""
    tensors: dict[str, torch.Tensor] = {}
    for name in weight_files(path):
        part = read_tensors(path / name, torch.float32)
        part = {weight: tensor for weight, tensor in part.items() if not weight.endswith("rotary_emb.inv_freq")}
        if twice := tensors.keys() & part.keys():
            raise ValueError(f"{path / name} holds {min(twice)}, and so does another shard: which one counts?")
        for weight, tensor in part.items():
            if not tensor.isfinite().all():
                raise ValueError(f"{path / name}: {weight} holds values that are not finite")
        tensors |= part
    return tensors


def weight_files(path: Path) -> list[str]:
    """The names of the weight files. An index that was left beside a single file does not count."""
    index = path / "model.safetensors.index.json"
    if (path / "model.safetensors").exists() or not index.exists():
        if not (path / "model.safetensors").exists() and list(path.glob("*.bin")):
            raise ValueError(
                f"{path / 'model.safetensors'} is missing (pickled weights are not loaded: convert them to safetensors)"
            )
        return ["model.safetensors"]
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ValueError(f"{index} has no weight_map: the file is damaged")
    for weight, name in shards.items():  # a plain name: no other folder, on no system
        if not isinstance(name, str) or PureWindowsPath(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{index}: the shard of {weight!r:.80} is {name!r:.80}, not a .safetensors file beside it")
    return sorted(set(shards.values()))


def read_tensors(path: Path, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, in memory of their own: what happens to the file later does not touch them."""
    if not path.is_file():
        raise ValueError(f"{path} is {'not a regular file' if path.exists() else 'missing'}")
    tensors = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                tensor = file.get_tensor(name)
                if dtype is not None and not tensor.is_floating_point():
                    raise ValueError(f"{path}: {name} is of type {tensor.dtype}: quantized weights are not supported")
                tensors[name] = tensor.to(dtype or tensor.dtype, copy=True)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or not a safetensors file ({error})") from None
    return tensors


def load_training(
    folder: str | Path, model: Transformer, optimizer: torch.optim.Optimizer | None = None, counter: str = "step"
) -> dict:
    """Put the optimizer's moments back where they were; return the `state` that was saved beside them.

    `counter` names the number in it that says where the run stood: a ValueError if there is no such number.
    """
    path = found(folder)
    state = read_json(path / "training.json")
    if counter not in state:
        raise ValueError(
            f"{path / 'training.json'} does not say at which {counter} it was: where the run stood is lost"
        )
    if type(state[counter]) is not int or state[counter] < 0:
        raise ValueError(f"{path / 'training.json'}: {counter} is {state[counter]!r:.60}, not a number of {counter}s")
    verify(path, lambda name: name == "training.json" or (name == "training.safetensors" and optimizer is not None))
    if optimizer is None:
        return state
    file = path / "training.safetensors"
    try:
        moments = read_tensors(file)
    except ValueError as error:
        raise ValueError(f"{error}: the run cannot go on exactly") from None
    if not moments and state[counter] == 0:
        return state  # a run that has only measured
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue  # frozen beside adapters
        of_it = {key.rpartition(":")[2]: value for key, value in moments.items() if key.rpartition(":")[0] == name}
        if any(value.ndim and value.shape != parameter.shape for value in of_it.values()) or not of_it:
            raise ValueError(f"{file} holds no moments for {name}: it is of another model")
        optimizer.restore(parameter, of_it)
    return state


def resume(
    folder: str | Path,
    model: Transformer,
    optimizer: torch.optim.Optimizer | None = None,
    tokenizer: TextTokenizer | None = None,
) -> dict:
    """If `folder` holds a checkpoint, put model and optimizer into its state, in place; returns the state or {}.

    With the run's `tokenizer`, a checkpoint whose token ids mean something else is refused.
    """
    path = existing(folder)
    if path is None:
        return {}
    if is_adapter(path):
        _, tensors = read_adapter(path)
        try:
            put_back(model, tensors)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        return load_training(folder, model, optimizer)
    stored, words = load_checkpoint(folder, "cpu" if is_sharded(model) else model.device)
    if stored.config != model.config:
        raise ValueError(f"{folder} holds a model of another shape: {stored.config} instead of {model.config}")
    if tokenizer is not None and not words.has_ids_of(tokenizer):
        raise ValueError(f"{folder} holds another tokenizer than this run's: the same ids are other texts there")
    load_weights(model, stored)
    return load_training(folder, model, optimizer)
