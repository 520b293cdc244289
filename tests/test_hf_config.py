"""config.json: read as `transformers` reads it, or refused in one line that names the field."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from nanoreason.checkpoint import load_checkpoint, save_checkpoint
from nanoreason.hf_config import huggingface_config, model_config
from nanoreason.model import rope_table
from nanoreason.tokenizer import load_tokenizer, word_tokenizer

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
SHAPES = {
    "llama": {"model_type": "llama", "tie_word_embeddings": False, "rope_scaling": LLAMA3},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "tie_word_embeddings": False, "head_dim": 16},
}
BASE = {
    "model_type": "llama", "vocab_size": 24, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture(scope="module", params=SHAPES)
def good(request, make_model, tmp_path_factory) -> Path:
    """A valid checkpoint as somebody else would have written it: without our checksums."""
    folder = tmp_path_factory.mktemp("good") / request.param
    save_checkpoint(folder, make_model(1, **SHAPES[request.param]), word_tokenizer([f"w{i}" for i in range(23)]))
    (folder / "checksums.json").unlink()
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 3]}))
    return folder


def changed(folder: Path, target: Path, change, file: str = "config.json") -> Path:
    """A copy of a checkpoint in which `change(config)` was made to one JSON file."""
    shutil.copytree(folder, target, dirs_exist_ok=True)
    raw = json.loads((folder / file).read_text())
    change(raw)
    (target / file).write_text(json.dumps(raw))
    return target


# ------------------------------------------------------------------------------------------------- damaged fields

VALUES = [
    None, True, False, "", "4", "true", "false", "silu", "sliding_attention", -1, 0, 1, 2, 3, 7, 0.5, -0.5, 1e-300,
    1e300, float("nan"), float("inf"), -float("inf"), 10_000_000, 2**31, 2**63, 10**40, [], [0], [1, 2], [None], {},
    {"a": 1}, [[1]], {"rope_type": "yarn"}, {"rope_type": ["llama3"]}, {"type": "linear", "factor": 2.0},
    {"rope_theta": None}, {"rope_theta": "x"}, {"rope_type": None},
]  # fmt: skip
ADDED = {
    "initializer_range": 0.02, "use_cache": True, "attention_dropout": 0.0, "max_window_layers": 28,
    "use_sliding_window": False, "mlp_bias": False, "is_causal": True, "layer_types": ["full_attention"] * 2,
    "sliding_window": None, "quantization_config": None, "partial_rotary_factor": None, "per_layer_config": None,
    "original_max_position_embeddings": 16, "transformers_version": "4.51.0",
}  # fmt: skip


def outcome(folder: Path, raw: dict, fields: tuple[str, ...], seen: dict) -> str:
    """'loads' with finite logits, or 'refused' in one line that names one of the fields; anything else is an error."""
    try:
        config = model_config(json.loads(json.dumps(raw)))
        if str(config) not in seen:  # the same shape gives the same logits
            (folder / "config.json").write_text(json.dumps(raw))
            model, _ = load_checkpoint(folder)
            with torch.no_grad():
                logits = model(torch.arange(min(24, config.max_position_embeddings))[None])
            assert logits.isfinite().all(), fields
            seen[str(config)] = True
    except ValueError as error:
        message = str(error)
        assert "\n" not in message and len(message) < 600, message
        assert any(field in message for field in fields), (fields, message)
        return "refused"
    return "loads"


def test_every_field_damaged_in_every_way_loads_with_finite_logits_or_is_refused_by_name(good, tmp_path):
    folder = shutil.copytree(good, tmp_path / "c")
    raw = {**ADDED, **json.loads((good / "config.json").read_text())}
    seen, count = {}, {"loads": 0, "refused": 0}
    for field in raw.keys() - {"eos_token_id"}:
        named = (field, *(("rope_theta",) if field.startswith("rope") else ()))
        for value in VALUES:
            count[outcome(folder, {**raw, field: value}, named, seen)] += 1
        without = {key: value for key, value in raw.items() if key != field}
        outcome(folder, without, (*named, "num_key_value_heads", "head_dim"), seen)
    assert count["refused"] > 500 and count["loads"] > 200


def test_every_field_of_the_rope_damaged_in_every_way_loads_with_finite_logits_or_is_refused_by_name(good, tmp_path):
    folder = shutil.copytree(good, tmp_path / "c")
    raw, seen = json.loads((good / "config.json").read_text()), {}
    for name in ("rope_parameters", "rope_scaling"):
        for field in ("rope_type", "type", "rope_theta", "partial_rotary_factor", *LLAMA3):
            for value in VALUES:
                rope = {**LLAMA3, "rope_theta": 500.0, field: value}
                outcome(folder, {**raw, name: rope}, (field, "rope_type", "high_freq_factor"), seen)


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_every_damaged_eos_is_refused_by_name_or_loads(good, tmp_path, file):
    for value in VALUES:
        folder = changed(good, tmp_path / "c", lambda config, v=value: config.update(eos_token_id=v), file)
        try:
            ids = load_tokenizer(folder).eos_ids
        except ValueError as error:
            assert file in str(error) and "eos_token_id" in str(error) and "\n" not in str(error)
        else:
            assert value is None or set(value if isinstance(value, list) else [value]) <= set(ids)


@pytest.mark.parametrize("layers", [10_000_000, 10**15])
def test_ten_million_layers_are_refused_before_memory_is_taken(good, tmp_path, layers, monkeypatch):
    monkeypatch.setattr("nanoreason.checkpoint.Transformer", None)
    monkeypatch.setattr("nanoreason.checkpoint.read_weights", None)
    folder = changed(good, tmp_path / "c", lambda config: config.update(num_hidden_layers=layers))
    with pytest.raises(ValueError, match=f"config.json: num_hidden_layers is {layers} instead of a whole number"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false' instead of true or false"),
        ({"is_causal": False}, "is_causal=False"),
        ({"is_causal": None}, "is_causal=None"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"layer_types": ["full_attention"]}, "layer_types names 1 layers, num_hidden_layers is 2"),
        ({"sliding_window": 16}, "sliding_window=16"),
        ({"rope_scaling": YARN}, "rope_scaling: rope_type 'yarn'"),
        ({"rope_parameters": YARN}, "rope_parameters: rope_type 'yarn'"),
        ({"rope_parameters": {"full_attention": LLAMA3}}, "rope_parameters: full_attention"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling: rope_type 'linear'"),
        ({"rope_theta": "high"}, "rope_theta is 'high'"),
        ({"head_dim": 7}, "head_dim 7 is odd"),
        ({"num_attention_heads": 5, "num_key_value_heads": 5}, "hidden_size 32 is not a multiple"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
    ],
    ids=str,
)
def test_what_is_not_computed_here_is_refused_by_name(change, named):
    with pytest.raises(ValueError, match=named.replace("(", r"\(")):
        model_config({**BASE, **change})


# --------------------------------------------------------------------------------------- as `transformers` reads it

PLAIN = {"rope_type": "default", "rope_theta": 500.0}
ROPES = {
    "nothing": {},
    "theta alone": {"rope_theta": 500.0},
    "parameters": {"rope_parameters": PLAIN},
    "theta beside parameters": {"rope_theta": 7.0, "rope_parameters": {"rope_type": "default"}},
    "theta in and beside parameters": {"rope_theta": 7.0, "rope_parameters": PLAIN},
    "scaling beside parameters": {"rope_scaling": LLAMA3, "rope_parameters": PLAIN},
    "scaling beside parameters and theta": {"rope_scaling": LLAMA3, "rope_theta": 90.0, "rope_parameters": PLAIN},
    "plain scaling beside llama3 parameters": {
        "rope_scaling": {"rope_type": "default", "rope_theta": 50.0}, "rope_parameters": {**LLAMA3, "rope_theta": 500.0}
    },
    "empty scaling beside parameters": {"rope_scaling": {}, "rope_parameters": {**LLAMA3, "rope_theta": 500.0}},
    "scaling without a type": {"rope_scaling": {"factor": 4.0}, "rope_parameters": {**LLAMA3, "rope_theta": 500.0}},
    "type under its old name": {"rope_scaling": {"type": "llama3", **dict(list(LLAMA3.items())[1:])}},
    "first context beside": {"rope_scaling": LLAMA3, "original_max_position_embeddings": 40},
    "no first context": {"rope_scaling": {k: v for k, v in LLAMA3.items() if not k.startswith("original")}},
}  # fmt: skip


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("rope", ROPES)
def test_the_rotary_embedding_is_the_one_that_transformers_takes_from_the_same_file(rope, kind, tmp_path):
    from transformers import AutoConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    raw = {**BASE, "head_dim": 8, **ROPES[rope], "model_type": kind}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    theirs = LlamaRotaryEmbedding(AutoConfig.from_pretrained(tmp_path))
    cos, sin = theirs(torch.zeros(1, 64, 8), torch.arange(64)[None])
    sin[..., :4] *= -1  # ours are signed: see `rotate`
    assert (rope_table(model_config(raw)) - torch.cat([cos, sin])).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"head_dim": 16},
        {"num_key_value_heads": None},
        {"num_attention_heads": 64, "hidden_size": 128, "num_key_value_heads": ...},
        {"rms_norm_eps": 1e-3, "tie_word_embeddings": True},
        {"layer_types": ["full_attention"] * 2},
    ],
    ids=str,
)
def test_what_a_config_leaves_out_is_filled_in_as_transformers_does(kind, change, tmp_path):
    from transformers import AutoConfig

    raw = {key: value for key, value in {**BASE, "model_type": kind, **change}.items() if value is not ...}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    ours, theirs = model_config(raw), AutoConfig.from_pretrained(tmp_path)
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                 "num_key_value_heads", "rms_norm_eps", "tie_word_embeddings", "max_position_embeddings"):  # fmt: skip
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.head_dim == getattr(theirs, "head_dim", theirs.hidden_size // theirs.num_attention_heads)


def test_what_a_config_says_beyond_the_shape_is_saved_again():
    words = word_tokenizer([f"w{i}" for i in range(23)])
    stored = {**BASE, "bos_token_id": 5, "pad_token_id": 6, "eos_token_id": 0, "initializer_range": 0.01,
              "max_window_layers": 28, "dtype": "bfloat16", "torch_dtype": "bfloat16"}  # fmt: skip
    saved = huggingface_config(model_config(stored), words, stored)
    kept = ("bos_token_id", "pad_token_id", "eos_token_id", "initializer_range", "max_window_layers")
    assert {key: saved[key] for key in kept} == {key: stored[key] for key in kept}
    assert (saved["torch_dtype"], saved.get("dtype")) == ("float32", None)
    assert model_config(saved) == model_config(stored)
    other = huggingface_config(model_config(stored), words, {**stored, "eos_token_id": [4, 7]})
    assert other["eos_token_id"] == 0  # of a tokenizer that is not this one
