"""Checkpoints: both ways with `transformers`, clear errors, safe against a kill at any moment, exact resume."""

import copy
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nanoreason import checkpoint
from nanoreason.checkpoint import existing, load_checkpoint, load_extra, load_training, resume, save_checkpoint
from nanoreason.learn import make_optimizer, update
from nanoreason.tokenizer import TextTokenizer, word_tokenizer

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip
SHAPES = {
    "llama": {"model_type": "llama", "tie_word_embeddings": False, "rope_scaling": LLAMA3},
    "llama-tied": {"model_type": "llama", "tie_word_embeddings": True, "rope_theta": 500.0},
    "llama-bias": {"model_type": "llama", "tie_word_embeddings": False, "attention_bias": True},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True, "rope_theta": 1e6, "rms_norm_eps": 1e-5},
    "qwen3": {"model_type": "qwen3", "tie_word_embeddings": False, "head_dim": 16},
}
TEXTS = ["w1 w2 w3", "w22 w1\nw5", "\nw7\n\nw8"]


@pytest.fixture(scope="module")
def words() -> TextTokenizer:
    return word_tokenizer(["\n", *(f"w{i}" for i in range(1, 23))])  # 24 with EOS


def tokens(rows: int = 2, columns: int = 30) -> torch.Tensor:
    return torch.randint(0, 24, (rows, columns), generator=torch.Generator().manual_seed(0))


def logits_of(model) -> torch.Tensor:
    with torch.no_grad():
        output = model(tokens())
    return getattr(output, "logits", output)


# ------------------------------------------------------------------------------------------- both ways, transformers


@pytest.mark.parametrize("shape", SHAPES)
def test_a_checkpoint_saved_here_loads_in_transformers_with_equal_logits_and_token_ids(
    make_model, words, tmp_path, shape
):
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

    model = make_model(1, **SHAPES[shape])
    save_checkpoint(tmp_path / "c", model, words, make_optimizer(model), {"step": 1})
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "c")
    assert (logits_of(model) - logits_of(theirs)).abs().max() < 1e-4
    assert theirs.config.eos_token_id == theirs.config.pad_token_id == words.eos_id
    # For qwen2 AutoTokenizer insists on Qwen's own vocabulary, whatever tokenizer_config.json says.
    kind = PreTrainedTokenizerFast if shape == "qwen2" else AutoTokenizer
    tokenizer = kind.from_pretrained(tmp_path / "c")
    assert tokenizer.eos_token_id == words.eos_id
    for text in TEXTS:
        assert tokenizer(text).input_ids == words.encode(text)
        assert tokenizer.decode(words.encode(text)) == words.decode(words.encode(text)) == text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["llama", "llama3", "llama-tied", "qwen2", "qwen3"])
def test_a_checkpoint_saved_by_transformers_loads_here_with_equal_logits(words, tmp_path, family, dtype):
    """Written in one file or, in bfloat16, in many shards. Logits are compared in float32, with the stored weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        {"llama3": "llama", "llama-tied": "llama"}.get(family, family),
        vocab_size=24, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=family in ("llama-tied", "qwen2"),
        eos_token_id=0, pad_token_id=0, bos_token_id=None, initializer_range=0.3,
        rope_parameters={**(LLAMA3 if family == "llama3" else {"rope_type": "default"}), "rope_theta": 2000.0},
        **({"head_dim": 16} if family == "qwen3" else {}),
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(config).to(dtype)
    sharded = dtype == torch.bfloat16
    theirs.save_pretrained(tmp_path, max_shard_size="10KB" if sharded else "1GB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2 * sharded
    words.save(tmp_path)
    model, tokenizer = load_checkpoint(tmp_path)
    expected = logits_of(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32))
    assert expected.std() > 0.3
    assert (logits_of(model) - expected).abs().max() < 1e-4
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert tokenizer.encode(TEXTS[0]) == words.encode(TEXTS[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_checkpoint_loads_here_bit_for_bit_and_can_be_trained_on(
    make_model, words, finished, tmp_path, shape, assert_same_weights
):
    model = make_model(2, **SHAPES[shape])
    save_checkpoint(tmp_path / "c", model, words)
    loaded, _ = load_checkpoint(tmp_path / "c")
    assert loaded.config == model.config
    assert_same_weights(loaded, model)
    for each in (model, loaded):
        update(each, make_optimizer(each), finished(4), lr=1e-2)
    assert_same_weights(loaded, model)
    tied = model.config.tie_word_embeddings
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied


def test_nothing_in_a_checkpoint_is_pickled(make_model, words, finished, tmp_path):
    model = make_model(3)
    optimizer = make_optimizer(model)
    update(model, optimizer, finished(4), lr=1e-2)
    save_checkpoint(tmp_path / "c", model, words, optimizer, {"step": 1})
    names = sorted(path.name for path in (tmp_path / "c").iterdir())
    assert names == ["checksums.json", *FILES]
    for path in (tmp_path / "c").iterdir():
        if path.suffix == ".json":
            json.loads(path.read_text())
        else:  # a safetensors file starts with the length of its JSON header
            raw = path.read_bytes()
            json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])


# ---------------------------------------------------------------------------------------------------- broken files


@pytest.fixture(scope="module")
def good(make_model, words, finished, tmp_path_factory) -> Path:
    model = make_model(4)
    optimizer = make_optimizer(model)
    update(model, optimizer, finished(4), lr=1e-2)
    folder = tmp_path_factory.mktemp("good") / "policy"
    save_checkpoint(folder, model, words, optimizer, {"step": 7})
    return folder


def error_of_loading(folder: Path) -> str:
    """The message with which loading everything in a checkpoint fails."""
    with pytest.raises(ValueError) as caught:
        model, _ = load_checkpoint(folder)
        load_training(folder, model, make_optimizer(model))
    return str(caught.value)


FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "training.json",
         "training.safetensors"]  # fmt: skip


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_one_line_that_names_it(good, tmp_path, name, share):
    folder = shutil.copytree(good, tmp_path / "policy")
    raw = (folder / name).read_bytes()
    (folder / name).write_bytes(raw[: min(int(share * len(raw)), len(raw.rstrip()) - 1)])
    message = error_of_loading(folder)
    assert name in message and "\n" not in message


FOREIGN = {"binary": b"\x80\x04\x95\xff\x00", "text": b"hello\n", "list": b"[1, 2]", "object": b"{}", "number": b"3"}


@pytest.mark.parametrize("content", FOREIGN)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "training.safetensors"])
def test_a_foreign_file_is_one_line_that_names_it(good, tmp_path, name, content):
    folder = shutil.copytree(good, tmp_path / "policy")
    (folder / name).write_bytes(FOREIGN[content])
    message = error_of_loading(folder)
    assert name in message and "\n" not in message


@pytest.mark.parametrize("name", [name for name in FILES if name != "tokenizer_config.json"])
def test_a_missing_file_is_one_line_that_names_it(good, tmp_path, name):
    folder = shutil.copytree(good, tmp_path / "policy")
    (folder / name).unlink()
    message = error_of_loading(folder)
    assert name in message and "\n" not in message


def test_a_missing_folder_is_one_line_that_names_it(tmp_path):
    assert str(tmp_path / "nowhere") in error_of_loading(tmp_path / "nowhere")


def test_the_optimizer_state_of_another_model_is_not_taken_for_this_ones(good, tmp_path):
    """Its file is whole, but holds no moments of these weights: going on with fresh ones would not be the same run."""
    folder = shutil.copytree(good, tmp_path / "policy")
    shutil.copy(folder / "model.safetensors", folder / "training.safetensors")
    assert "training.safetensors" in error_of_loading(folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"model_type": None}, "model_type"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "factor"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_size": "many"}, "hidden_size"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
    ],
    ids=str,
)
def test_a_config_that_is_not_computed_here_is_refused_not_ignored(good, tmp_path, change, named):
    folder = shutil.copytree(good, tmp_path / "policy")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, **change}))
    message = error_of_loading(folder)
    assert "config.json" in message and named in message and "\n" not in message


def test_weights_of_another_shape_are_named(good, tmp_path):
    folder = shutil.copytree(good, tmp_path / "policy")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, "intermediate_size": 48}))
    assert "mlp" in error_of_loading(folder)
    (folder / "config.json").write_text(json.dumps({**raw, "num_hidden_layers": 3}))
    assert "lacks weight model.layers.2" in error_of_loading(folder)
    (folder / "config.json").write_text(json.dumps({**raw, "num_hidden_layers": 1}))
    assert "unknown weight model.layers.1" in error_of_loading(folder)


def sharded(good: Path, folder: Path, weight_map: dict | None = None) -> Path:
    """The same checkpoint with its weights in two shards, and no checksums."""
    shutil.copytree(good, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "checksums.json").unlink()
    names = sorted(tensors)
    for shard, part in (("one.safetensors", names[:5]), ("two.safetensors", names[5:])):
        save_file({name: tensors[name] for name in part}, folder / shard)
    right = {name: "one.safetensors" if name in names[:5] else "two.safetensors" for name in names}
    index = {"weight_map": {**right, **(weight_map or {})}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(
    "name",
    ["../policy/model.safetensors", "/etc/passwd", "/tmp/model.safetensors", "a/b.safetensors", "..\\x.safetensors",
     "C:\\x.safetensors", "C:x.safetensors", "..", ".", "", "model.bin", 7, None, ["one.safetensors"], {}],
    ids=str,
)  # fmt: skip
def test_a_shard_outside_the_folder_or_without_a_name_is_refused(good, tmp_path, name):
    folder = sharded(good, tmp_path / "c", {"model.norm.weight": name})
    message = error_of_loading(folder)
    assert "index.json: the shard of 'model.norm.weight' is" in message and "\n" not in message


def test_a_shard_that_is_missing_or_no_map_at_all_is_named(good, tmp_path):
    folder = sharded(good, tmp_path / "c", {"a": "shard-7.safetensors"})
    assert "shard-7.safetensors is missing" in error_of_loading(folder)
    for content in ({}, {"weight_map": {}}, {"weight_map": ["one.safetensors"]}):
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))
        assert "model.safetensors.index.json" in error_of_loading(folder)


def test_one_weight_in_two_shards_is_refused_by_name(good, tmp_path):
    folder = sharded(good, tmp_path / "c")
    one, two = load_file(folder / "one.safetensors"), load_file(folder / "two.safetensors")
    name = min(one)
    save_file({**two, name: one[name] + 1}, folder / "two.safetensors")
    assert f"two.safetensors holds {name}, and so does another shard" in error_of_loading(folder)


def test_an_index_left_beside_a_single_file_does_not_count(good, tmp_path, assert_same_weights):
    folder = sharded(good, tmp_path / "c")
    assert_same_weights(load_checkpoint(folder)[0], load_checkpoint(good)[0])
    for shard in ("one.safetensors", "two.safetensors"):
        save_file({name: tensor + 1 for name, tensor in load_file(folder / shard).items()}, folder / shard)
    shutil.copy(good / "model.safetensors", folder)
    assert_same_weights(load_checkpoint(folder)[0], load_checkpoint(good)[0])
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(folder)
    assert (logits_of(load_checkpoint(folder)[0]) - logits_of(theirs)).abs().max() < 1e-4


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "training.json", "training.safetensors"])
def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(good, tmp_path, name):
    folder = shutil.copytree(good, tmp_path / "c")
    (folder / "checksums.json").unlink()
    (folder / name).unlink()
    os.mkfifo(folder / name)
    message = error_of_loading(folder)
    assert f"{name} is not a regular file" in message


def test_pickled_weights_are_not_loaded_but_explained(good, tmp_path):
    folder = shutil.copytree(good, tmp_path / "policy")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "safetensors" in error_of_loading(folder) and "pickle" in error_of_loading(folder)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(good, tmp_path):
    folder = shutil.copytree(good, tmp_path / "policy")
    word_tokenizer([f"w{i}" for i in range(30)]).save(folder)
    assert "needs a head of 31 tokens, the model has only 24" in error_of_loading(folder)


def test_a_model_of_another_shape_does_not_resume(good, make_model):
    with pytest.raises(ValueError, match="another shape"):
        resume(good, make_model(0, num_hidden_layers=1))


def test_resuming_from_nothing_is_a_fresh_start(tmp_path, make_model, assert_same_weights):
    model = make_model(5)
    assert resume(tmp_path / "nothing", model, make_optimizer(model)) == {}
    assert_same_weights(model, make_model(5))


# ------------------------------------------------------------------------------------- what counts, what is kept


def foreign(make_model, words, folder: Path, change: dict | None = None, files: dict | None = None, **shape) -> Path:
    """A checkpoint as somebody else would have written it: other fields in config.json, other files, no checksums."""
    save_checkpoint(folder, make_model(5, **shape), words)
    (folder / "checksums.json").unlink()
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, **(change or {})}))
    for name, content in (files or {}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.mark.parametrize("head", ["another", "the same", "alone"])
def test_tied_weights_with_a_head_in_the_file_are_what_transformers_makes_of_them(make_model, words, tmp_path, head):
    from transformers import AutoModelForCausalLM

    folder = foreign(make_model, words, tmp_path / "c", {"tie_word_embeddings": True}, tie_word_embeddings=False)
    tensors = load_file(folder / "model.safetensors")
    if head == "the same":
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    if head == "alone":
        del tensors["model.embed_tokens.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model, tokenizer = load_checkpoint(folder)
    expected = logits_of(AutoModelForCausalLM.from_pretrained(folder))
    assert (logits_of(model) - expected).abs().max() < 1e-4
    assert model.config.tie_word_embeddings == (model.lm_head.weight is model.model.embed_tokens.weight)
    assert model.config.tie_word_embeddings == (head != "another")
    save_checkpoint(tmp_path / "again", model, tokenizer)
    assert (logits_of(load_checkpoint(tmp_path / "again")[0]) - expected).abs().max() < 1e-4


KEPT = {
    "tokenizer_config.json": {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "w3", "bos_token": "w4", "pad_token": "w5",
        "model_max_length": 77, "extra_special_tokens": {"image_token": "w6"}, "padding_side": "left",
        "chat_template": "{% for m in messages %}w1 {{ m.content }} w2 {% endfor %}",
    },
    "special_tokens_map.json": {"eos_token": "w3", "bos_token": "w4"},
    "generation_config.json": {"eos_token_id": [4, 0], "temperature": 0.6, "top_p": 0.95, "do_sample": True},
    "chat_template.jinja": "{% for m in messages %}w7 {{ m.content }} w8 {% endfor %}",
    "additional_chat_templates/tools.jinja": "w9",
    "merges.txt": "#version: 0.2\n",
}  # fmt: skip


def test_what_was_not_changed_survives_saving_byte_for_byte(make_model, words, finished, tmp_path):
    from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerFast

    fields = {"bos_token_id": 7, "eos_token_id": [4, 9], "pad_token_id": 6, "initializer_range": 0.01}
    folder = foreign(make_model, words, tmp_path / "c", fields, KEPT)
    model, tokenizer = load_checkpoint(folder)
    assert tokenizer.eos_ids == (4, 9, 0)  # w3, then the rest of config.json, then of generation_config.json
    model = copy.deepcopy(model)  # as recipes do
    update(model, make_optimizer(model), finished(4), lr=1e-2)
    shutil.rmtree(folder)
    save_checkpoint(tmp_path / "c", model, tokenizer)  # over it
    save_checkpoint(tmp_path / "again", *load_checkpoint(tmp_path / "c"))
    for saved in (tmp_path / "c", tmp_path / "again"):
        for name, content in KEPT.items():
            assert (saved / name).read_text() == (content if isinstance(content, str) else json.dumps(content)), name
        config = AutoConfig.from_pretrained(saved)
        assert {key: getattr(config, key) for key in fields} == fields
        theirs = PreTrainedTokenizerFast.from_pretrained(saved)
        assert (theirs.eos_token, theirs.bos_token, theirs.pad_token, theirs.model_max_length) == ("w3", "w4", "w5", 77)
        text = theirs.apply_chat_template([{"role": "user", "content": "w10"}], tokenize=False)
        assert text == "w7 w10 w8 "
        assert GenerationConfig.from_pretrained(saved).eos_token_id == [4, 0]
        assert load_checkpoint(saved)[1].eos_ids == (4, 9, 0)


def test_a_chat_template_in_the_tokenizers_config_survives_saving(make_model, words, tmp_path):
    from transformers import PreTrainedTokenizerFast

    folder = foreign(make_model, words, tmp_path / "c", files={"tokenizer_config.json": KEPT["tokenizer_config.json"]})
    save_checkpoint(tmp_path / "again", *load_checkpoint(folder))
    template = PreTrainedTokenizerFast.from_pretrained(tmp_path / "again").chat_template
    assert template == KEPT["tokenizer_config.json"]["chat_template"]


def test_the_tensors_of_a_loaded_checkpoint_do_not_hang_on_its_files(good, tmp_path):
    folder = shutil.copytree(good, tmp_path / "c")
    model, _ = load_checkpoint(folder)
    optimizer = make_optimizer(model)
    load_training(folder, model, optimizer)
    tensors = [
        *model.state_dict().values(),
        *(moment for state in optimizer.state.values() for moment in state.values()),
    ]
    before = [tensor.clone() for tensor in tensors]
    for name in ("model.safetensors", "training.safetensors"):
        if Path("/proc/self/maps").exists():
            assert str(folder / name) not in Path("/proc/self/maps").read_text()
        raw = (folder / name).read_bytes()
        with open(folder / name, "r+b") as file:  # the same file, other bytes
            file.write(raw[:-4000] + bytes(4000))
    assert all(torch.equal(*pair) for pair in zip(before, tensors, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("name", ["model.norm.weight", "lm_head.weight", "model.layers.1.mlp.up_proj.weight"])
def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(make_model, words, tmp_path, name, value):
    model, folder = make_model(6, tie_word_embeddings=False), tmp_path / "c"
    save_checkpoint(folder, model, words, state={"step": 1})
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with torch.no_grad():
        model.get_parameter(name).view(-1)[3] = value
    with pytest.raises(FloatingPointError, match=f"{name} holds values that are not finite"):
        save_checkpoint(folder, model, words, state={"step": 2})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    tensors = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    message = error_of_loading(folder)
    assert "model.safetensors" in message and name in message and "not finite" in message


def test_moments_that_are_not_finite_are_not_saved(make_model, words, finished, tmp_path):
    model = make_model(6)
    optimizer = make_optimizer(model)
    update(model, optimizer, finished(4), lr=1e-2)
    next(iter(optimizer.state.values()))["exp_avg_sq"].view(-1)[0] = float("inf")
    with pytest.raises(FloatingPointError, match=r"exp_avg_sq holds values that are not finite"):
        save_checkpoint(tmp_path / "c", model, words, optimizer)


def test_weights_of_whole_numbers_are_refused(good, tmp_path):
    folder = shutil.copytree(good, tmp_path / "c")
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {**tensors, "model.norm.weight": tensors["model.norm.weight"].to(torch.int8)}, folder / "model.safetensors"
    )
    assert "model.norm.weight is of type torch.int8" in error_of_loading(folder)


# ------------------------------------------------------------------------------------------------------- checksums


def flipped(path: Path, byte: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[byte] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors"])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99999])
def test_a_flipped_bit_in_a_tensor_is_refused(good, tmp_path, name, share):
    folder = shutil.copytree(good, tmp_path / "policy")
    flipped(folder / name, int(share * (folder / name).stat().st_size))
    message = error_of_loading(folder)
    assert name in message and "\n" not in message


def test_a_permuted_tokenizer_is_refused(good, tmp_path, words):
    folder = shutil.copytree(good, tmp_path / "policy")
    raw = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = raw["model"]["vocab"]
    vocabulary["w1"], vocabulary["w2"] = vocabulary["w2"], vocabulary["w1"]
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    assert "tokenizer.json is not the file that was saved" in error_of_loading(folder)
    (folder / "checksums.json").unlink()  # as the message says: now it is the user's own
    permuted = load_checkpoint(folder)[1]
    assert permuted.encode("w1") == words.encode("w2")
    model, _ = load_checkpoint(folder)
    assert resume(folder, model, tokenizer=permuted)["step"] == 7
    with pytest.raises(ValueError, match="another tokenizer"):
        resume(folder, model, tokenizer=words)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_part_that_was_changed_or_lost_is_refused_by_name(good, tmp_path, name):
    folder = shutil.copytree(good, tmp_path / "policy")
    raw = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**raw, "rms_norm_eps": 1e-5}))
    assert f"{name} is not the file that was saved" in error_of_loading(folder)
    (folder / name).unlink()
    assert name in error_of_loading(folder)


def test_a_checkpoint_without_its_training_state_still_loads(good, tmp_path):
    """As it is handed on: half as large."""
    folder = shutil.copytree(good, tmp_path / "policy")
    (folder / "training.safetensors").unlink()
    (folder / "training.json").unlink()
    load_checkpoint(folder)


STATES = [{}, {"step": -5}, {"step": None}, {"step": "7"}, {"step": 7.0}, {"step": True}, {"step": [7]}, {"seen": 3},
          {"round": 7}]  # fmt: skip


@pytest.mark.parametrize("state", STATES, ids=str)
@pytest.mark.parametrize("summed", [True, False])
def test_a_training_state_that_does_not_say_where_the_run_stood_is_refused(good, tmp_path, state, summed):
    folder = shutil.copytree(good, tmp_path / "policy")
    if not summed:
        (folder / "checksums.json").unlink()
    (folder / "training.json").write_text(json.dumps(state))
    message = error_of_loading(folder)
    assert "training.json" in message and "\n" not in message
    (folder / "training.json").write_text(json.dumps({"step": 8}))
    if summed:
        assert "training.json is not the file that was saved" in error_of_loading(folder)


def test_every_file_has_the_mode_that_the_umask_gives(make_model, words, tmp_path):
    model = make_model(1)
    optimizer = make_optimizer(model)
    for umask in (0o022, 0o077, 0o002):
        before = os.umask(umask)
        try:
            save_checkpoint(tmp_path / "c", model, words, optimizer, {"step": 1}, {"task": "t"})
        finally:
            os.umask(before)
        assert {path.stat().st_mode & 0o777 for path in (tmp_path / "c").iterdir()} == {0o666 & ~umask}


def test_everything_is_on_the_disk_before_the_folder_gets_its_name(make_model, words, tmp_path, monkeypatch):
    flushed, real_sync, real_replace, model = set(), os.fsync, os.replace, make_model(1)

    def fsync(descriptor):
        flushed.add(os.fstat(descriptor).st_ino)
        real_sync(descriptor)

    def renamed(source, target):
        if str(source).endswith(".tmp"):
            wanted = {path.stat().st_ino for path in [Path(source), *Path(source).iterdir()]}
            assert wanted <= flushed and len(wanted) == 8
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", renamed)
    save_checkpoint(tmp_path / "c", model, words, make_optimizer(model), {"step": 1})
    assert tmp_path.stat().st_ino in flushed


def test_what_a_recipe_wants_to_be_known_comes_back_and_only_when_asked_for(make_model, words, tmp_path):
    extra = {"task": {"name": "addition", "digits": [1, 2]}, "template": "r1"}
    save_checkpoint(tmp_path / "c", make_model(1), words, extra=extra)
    assert load_extra(tmp_path / "c") == extra
    load_checkpoint(tmp_path / "c")
    save_checkpoint(tmp_path / "c", make_model(1), words)
    assert load_extra(tmp_path / "c") == {}
    with pytest.raises(ValueError, match="no checkpoint at"):
        load_extra(tmp_path / "nowhere")


# --------------------------------------------------------------------------------------- a head wider than the text


def test_ids_without_a_token_are_known_after_loading(make_model, words, tmp_path):
    save_checkpoint(tmp_path / "c", make_model(1, vocab_size=40), words)
    model, tokenizer = load_checkpoint(tmp_path / "c")
    assert model.no_token.tolist() == [False] * 24 + [True] * 16
    assert "no_token" not in model.state_dict()
    assert copy.deepcopy(model).no_token.tolist() == model.no_token.tolist()
    save_checkpoint(tmp_path / "again", model, tokenizer)
    assert load_checkpoint(tmp_path / "again")[0].no_token.tolist() == model.no_token.tolist()
    save_checkpoint(tmp_path / "whole", make_model(1), words)
    assert load_checkpoint(tmp_path / "whole")[0].no_token is None


# ------------------------------------------------------------------------------------------- a kill at any moment


EVENTS = [(checkpoint, "save_file"), (checkpoint.os, "replace"), (checkpoint.shutil, "rmtree"), (Path, "write_text"),
          (Path, "mkdir"), (Path, "write_bytes"), (checkpoint.os, "fsync")]  # fmt: skip


def before_every_event(patch: pytest.MonkeyPatch, action) -> None:
    """Call `action(name, arguments)` before everything that a save does to the disk."""

    def acting(real, name):
        def act(*args, **kwargs):
            action(name, args)
            return real(*args, **kwargs)

        return act

    for owner, name in EVENTS:
        patch.setattr(owner, name, acting(getattr(owner, name), name))


def killed_before(k: int, save, half_written: bool) -> bool:
    """Run `save` in a child process that is killed before its k-th event; whether the child got that far."""
    child = os.fork()
    if child == 0:
        seen = 0

        def action(name, args):
            nonlocal seen
            if seen == k:
                if half_written and name == "save_file":
                    Path(args[1]).write_bytes(b"\x00" * 100)
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

        before_every_event(pytest.MonkeyPatch(), action)
        save()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("half_written", [False, True])
def test_a_kill_at_any_moment_of_a_save_leaves_the_old_checkpoint_or_the_new_one(
    make_model, words, finished, tmp_path, half_written
):
    model = make_model(6)
    optimizer = make_optimizer(model)
    update(model, optimizer, finished(4), lr=1e-2)
    old = copy.deepcopy(model).state_dict()
    save_checkpoint(tmp_path / "start" / "policy", model, words, optimizer, {"step": 1})
    update(model, optimizer, finished(4, seed=1), lr=1e-2)
    new = model.state_dict()
    folder = tmp_path / "run" / "policy"

    def save():
        save_checkpoint(folder, model, words, optimizer, {"step": 2})

    found, k, alive = set(), 0, False
    while not alive:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(tmp_path / "start", tmp_path / "run")
        alive = not killed_before(
            k, lambda: save_checkpoint(folder, model, words, optimizer, {"step": 2}), half_written
        )
        loaded, _ = load_checkpoint(folder)
        step = load_training(folder, loaded, make_optimizer(loaded))["step"]
        for name, tensor in loaded.state_dict().items():
            assert torch.equal(tensor, (old if step == 1 else new)[name])
        found.add(step)
        k += 1
        save_checkpoint(folder, model, words, optimizer, {"step": 3})  # what was left over does no harm
        assert load_training(folder, loaded)["step"] == 3
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["policy"]
    assert k > 8
    assert step == 2
    assert found == {1, 2}


def test_a_second_kill_before_the_first_save_was_repaired_loses_nothing_either(stop_at, make_model, words, tmp_path):
    """Killed between the two renames, the old checkpoint stands under its other name; the next save is killed too."""
    model, folder = make_model(7), tmp_path / "policy"
    save_checkpoint(folder, model, words, state={"step": 1})

    for owner, name, count in ((os, "replace", 2), (checkpoint, "save_file", 1), (os, "replace", 1)):
        with pytest.MonkeyPatch.context() as patch:
            stop_at(patch, owner, name, count)
            with pytest.raises(KeyboardInterrupt):
                save_checkpoint(folder, model, words, state={"step": 2})
        assert existing(folder) == tmp_path / "policy.old"
        assert load_training(folder, load_checkpoint(folder)[0])["step"] == 1
