"""LoRA: equal to its formula, exact where it must be, and in the layout that `peft` reads."""

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nanoreason.__main__ import main
from nanoreason.checkpoint import load_checkpoint, resume, save_checkpoint
from nanoreason.learn import Algorithm, ChunkedHead, compute_logprobs, make_optimizer, token_weights, update
from nanoreason.lora import adapters, add_adapters, merged, squares, switched_off
from nanoreason.recipes import grpo, sft
from nanoreason.recipes.grpo import PRESETS
from nanoreason.run import Schedule, read_jsonl
from nanoreason.sampler import Sampler
from nanoreason.tasks import Addition
from nanoreason.tokenizer import word_tokenizer

BASE = str(Path(__file__).parent / "data" / "one-digit-sums")
SHAPES = [{}, {"model_type": "qwen2"}, {"model_type": "qwen3", "tie_word_embeddings": False}]
ROWS = torch.randint(1, 24, (3, 20), generator=torch.Generator().manual_seed(0))


def adapted(make_model, rank=3, seed=1, trained=True, **shape):
    """A model with adapters whose B is not 0, as after some training."""
    model = make_model(seed, **shape)
    add_adapters(model, rank, seed)
    if trained:
        generator = torch.Generator().manual_seed(seed)
        for layer in adapters(model).values():
            layer.lora_B.weight.data.normal_(std=0.02, generator=generator)
    return model


@pytest.fixture(scope="module")
def words():
    return word_tokenizer(["\n", *(f"w{i}" for i in range(1, 23))])  # 24 with EOS


# ------------------------------------------------------------------------------------------------- what it computes


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fresh_adapters_change_no_bit_and_stand_beside_every_linear_layer_of_the_blocks(make_model, shape):
    plain, model = make_model(1, **shape), adapted(make_model, trained=False, **shape)
    assert torch.equal(plain(ROWS), model(ROWS))
    parts = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")
    names = {f"model.layers.{i}.{part}_proj" for i in (0, 1) for part in parts}
    assert adapters(model).keys() == names
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {f"{name}.lora_{which}.weight" for name in names for which in "AB"}
    assert model.state_dict().keys() - plain.state_dict().keys() == trained


def test_a_layer_is_w_x_plus_alpha_over_r_b_a_x(make_model):
    model = adapted(make_model, rank=4, model_type="qwen2")
    layer = model.model.layers[1].self_attn.q_proj
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    W, b, A, B = (w.detach().double() for w in (layer.weight, layer.bias, layer.lora_A.weight, layer.lora_B.weight))
    by_hand = x @ W.T + b + 32 / 4 * (x @ A.T @ B.T)
    assert (layer(x.float()) - by_hand).abs().max() < 1e-5
    assert (by_hand - x @ W.T - b).abs().max() > 0.1  # the adapter is no rounding error


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_merged_is_the_same_function_and_shares_what_it_does_not_change(make_model, shape):
    model = adapted(make_model, **shape)
    plain = merged(model)
    assert not adapters(plain) and (plain(ROWS) - model(ROWS)).abs().max() < 1e-4
    assert plain.model.embed_tokens.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert plain.size() == make_model(1, **shape).size()


def test_switched_off_it_is_the_base_to_the_bit_and_then_on_again_even_after_an_error(make_model):
    base, model = make_model(1), adapted(make_model)
    with_adapters = model(ROWS)
    with pytest.raises(KeyError), switched_off(model):
        assert torch.equal(model(ROWS), base(ROWS))
        raise KeyError
    assert torch.equal(model(ROWS), with_adapters) and not torch.equal(with_adapters, base(ROWS))


def test_sampler_and_learner_agree_and_the_sampler_notices_an_adapter_that_moved(make_model, ragged):
    model = adapted(make_model)
    for temperature in (0.7, 1.0, 1.3):
        rows = Sampler(model, eos_id=0, temperature=temperature).finish(ragged(20))
        for row, values in zip(rows, compute_logprobs(model, rows, temperature, 200), strict=True):
            assert max(abs(a - b) for a, b in zip(row.logprobs, values, strict=True)) < 1e-4
    sampler = Sampler(model, eos_id=0)
    sampler.submit(ragged(2))
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.lora_A.weight.add_(1)
    with pytest.raises(RuntimeError, match="weights changed"):
        next(sampler)


# ------------------------------------------------------------------------------------------------------- training


def test_only_adapters_get_gradients_moments_and_steps(make_model, finished):
    model, before = adapted(make_model), {n: w.clone() for n, w in adapted(make_model).named_parameters()}
    optimizer = make_optimizer(model, weight_decay=0.1)
    update(model, optimizer, finished(8), lr=1e-2)
    for name, weight in model.named_parameters():
        assert (weight.grad is not None) == (weight in optimizer.state) == (".lora_" in name), name
        assert torch.equal(weight, before[name]) == (".lora_" not in name), name
    assert all(len(state) == 3 for state in optimizer.state.values())


def test_the_gradient_is_that_of_the_merged_weight_through_the_product(make_model, finished):
    """dL/dA = s B' dL/dW, dL/dB = s dL/dW A': by the chain rule from a plain model's gradients."""
    model = adapted(make_model)
    plain, rows = merged(model).requires_grad_(True), finished(6)
    for one in (model, plain):
        update(one, make_optimizer(one), rows, lr=0.0, max_grad_norm=1e9)
    weights = dict(plain.named_parameters())
    for name, layer in adapters(model).items():
        dW, A, B = weights[f"{name}.weight"].grad, layer.lora_A.weight, layer.lora_B.weight
        for own, chained in ((A.grad, B.T @ dW), (B.grad, dW @ A.T)):
            assert (own - layer.scale * chained).norm() < 1e-4 * own.norm()


def test_a_frozen_head_gets_no_gradient_of_its_own_size(monkeypatch, make_model):
    """Cut into chunks, hidden's gradient is the same whether the head is trained or not."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(7, 4, generator=generator), torch.randn(11, 4, generator=generator)
    targets, found = torch.arange(7), []
    monkeypatch.setattr("nanoreason.learn.CHUNK_LOGITS", 33)
    for trained in (True, False):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_(trained)
        ChunkedHead.apply(h, w, targets, 1.3, None)[0].sum().backward()
        found.append(h.grad)
        assert (w.grad is not None) == trained
    assert torch.equal(*found)


def test_how_far_the_weights_moved_counts_what_the_adapters_add_to_them(make_model, finished):
    model = adapted(make_model)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}
    old, base = merged(model).state_dict(), make_model(1)
    update(model, make_optimizer(model), finished(6), lr=1e-2)
    new = merged(model).state_dict()
    moved, norm = squares(model, before)
    by_hand = sum((new[name] - old[name]).double().square().sum() for name in new if name != "lm_head.weight")
    assert moved.item() == pytest.approx(by_hand.item(), rel=1e-4) and by_hand > 0
    assert norm.item() == pytest.approx(sum(w.double().square().sum().item() for w in base.parameters()), rel=1e-5)


# --------------------------------------------------------------------------------------------------- the recipes

CONFIG = replace(
    PRESETS["tiny"], base=BASE, task=Addition((1,), form="direct"), max_new_tokens=Schedule(6), lr=2e-3, steps=4,
    algorithm=Algorithm(kl_coef=0.05, reference_every=0), memory=grpo.Memory(lora=4),
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora") / "run"
    grpo.run(replace(CONFIG, out=str(folder)))
    return folder


@pytest.mark.trains
def test_the_first_step_is_on_policy_with_ratio_one_and_no_kl_and_later_ones_leave_the_base(whole):
    lines = read_jsonl(whole / "metrics.jsonl")[1:]
    assert lines[0]["kl"] < 1e-9 and lines[0]["logp_diff/max"] < 1e-4
    assert lines[-1]["kl"] > 1e-4 and all(line["update_ratio"] > 1e-4 for line in lines)
    base, _ = load_checkpoint(BASE)
    assert not any(torch.equal(a, b) for (n, a), (_, b) in
                   zip(load_checkpoint(whole / "policy")[0].named_parameters(), base.named_parameters(), strict=True)
                   if "_proj" in n)  # fmt: skip


@pytest.mark.trains
def test_the_reference_is_the_base_without_a_copy(whole, monkeypatch):
    """The log-probs under which KL is measured are the base's own, to the bit, after steps away from it."""
    policy, tokenizer = load_checkpoint(BASE)
    grpo.prepare(policy, CONFIG.memory, 0)
    resume(whole / "adapter", policy, make_optimizer(policy))
    groups, _ = grpo.collect(CONFIG, 5, policy, tokenizer)
    grpo.compute_advantages(CONFIG, policy, policy, groups)
    rows = [row for group in groups for row in group]
    assert [row.ref_logprobs for row in rows] == compute_logprobs(load_checkpoint(BASE)[0], rows, 1.0, 2048)
    assert [row.ref_logprobs for row in rows] != compute_logprobs(policy, rows, 1.0, 2048)
    assert not (whole / "reference").exists()


@pytest.mark.trains
@pytest.mark.parametrize("stop", [("update", 3), ("save_policy", 1), ("save_checkpoint", 3)], ids=lambda stop: stop[0])
def test_a_run_that_was_stopped_and_resumed_ends_bit_equal(whole, tmp_path, monkeypatch, stop_at, stop):
    """Stopped between two saves, right before one, and at the end between the merged policy and the adapter."""
    name, count = stop
    config = replace(CONFIG, out=str(tmp_path / "run"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        owner = grpo if name != "save_checkpoint" else importlib.import_module("nanoreason.memory")
        stop_at(patch, owner, name, count)
        grpo.run(config)
    grpo.run(replace(config, resume=True))
    for path in (path for path in whole.rglob("*") if path.is_file() and path.parent != whole):
        assert (tmp_path / "run" / path.relative_to(whole)).read_bytes() == path.read_bytes(), path
    old, new = (read_jsonl(folder / "metrics.jsonl") for folder in (whole, tmp_path / "run"))
    same = lambda lines: [{k: v for k, v in line.items() if "time" not in k and k != "tok_per_s"} for line in lines]  # noqa: E731
    assert same(old) == same(new)


@pytest.mark.trains
def test_the_merged_policy_is_the_adapter_beside_its_base(whole):
    """Both folders load here alone, and as the same function."""
    by_merging, tokenizer = load_checkpoint(whole / "adapter")
    stored, _ = load_checkpoint(whole / "policy")
    for (name, a), b in zip(by_merging.named_parameters(), stored.parameters(), strict=True):
        assert torch.equal(a, b) and a.requires_grad, name
    assert tokenizer.vocab_size == stored.config.vocab_size


@pytest.mark.trains
def test_fine_tuning_with_adapters_learns_and_resumes(tmp_path, monkeypatch, stop_at):
    config = replace(sft.PRESETS["tiny"], base=BASE, task=Addition((2,), form="direct"), steps=30, lr=1e-2,
                     memory=grpo.Memory(lora=4, recompute=True), save_every=10, out=str(tmp_path / "a"))  # fmt: skip
    last, lines = sft.run(config), read_jsonl(tmp_path / "a" / "metrics.jsonl")
    assert last["loss"] < lines[0]["loss"] - 0.3  # nats; it is 0.56
    stopped = replace(config, out=str(tmp_path / "b"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, sft, "save_policy", 2)
        sft.run(stopped)
    sft.run(replace(stopped, resume=True))
    for name in ("adapter/adapter_model.safetensors", "adapter/training.safetensors", "policy/model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    with pytest.raises(ValueError, match="--memory.lora needs --base"):
        sft.check_config(replace(config, base=""))
    with pytest.raises(ValueError, match="adamw"):
        sft.check_config(replace(config, optimizer="muon"))


def test_a_reference_that_moves_is_refused_with_adapters(capsys, tmp_path):
    flags = ["--base", BASE, "--memory", "lora", "--algorithm.kl-coef", "0.1", "--out", str(tmp_path / "run")]
    assert main(["grpo", *flags, "--steps", "400"]) == 2
    assert "--algorithm.reference-every 0" in capsys.readouterr().err and not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------ peft's layout


@pytest.fixture
def folder(make_model, words, tmp_path):
    """(the adapted model, its folder), beside the folder of its base."""
    save_checkpoint(tmp_path / "base", make_model(1), words)
    model = adapted(make_model)
    save_checkpoint(tmp_path / "adapter", model, words, base=str(tmp_path / "base"), state={"step": 1})
    return model, tmp_path / "adapter"


def test_names_shapes_and_settings_are_those_that_peft_documents(folder):
    model, path = folder
    tensors = load_file(path / "adapter_model.safetensors")
    layers = {"self_attn.q_proj": (32, 32), "self_attn.k_proj": (16, 32), "self_attn.v_proj": (16, 32),
              "self_attn.o_proj": (32, 32), "mlp.gate_proj": (64, 32), "mlp.up_proj": (64, 32),
              "mlp.down_proj": (32, 64)}  # fmt: skip
    wanted = {}
    for name, (out, into) in layers.items():
        for i in (0, 1):
            wanted[f"base_model.model.model.layers.{i}.{name}.lora_A.weight"] = (3, into)
            wanted[f"base_model.model.model.layers.{i}.{name}.lora_B.weight"] = (out, 3)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == wanted
    config = json.loads((path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["task_type"], config["r"], config["lora_alpha"]) == ("LORA", "CAUSAL_LM", 3, 32)
    assert config["target_modules"] == sorted(name.partition(".")[2] for name in layers)
    assert not (path / "model.safetensors").exists()


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
def test_peft_loads_the_adapter_and_we_load_what_peft_saves(folder, words, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model, path = folder
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), path)
    with torch.no_grad():
        assert (theirs(ROWS).logits - model(ROWS)).abs().max() < 1e-4
        theirs.save_pretrained(tmp_path / "theirs")
        assert (load_checkpoint(tmp_path / "theirs")[0](ROWS) - model(ROWS)).abs().max() < 1e-4


def test_an_adapter_folder_goes_on_only_beside_the_weights_that_it_was_trained_with(folder, make_model, words):
    model, path = folder
    assert (load_checkpoint(path)[0](ROWS) - model(ROWS)).abs().max() < 1e-4
    base, kept = path.parent / "base", path.parent / "kept"
    save_checkpoint(kept, model, words, base=str(base))  # without a state to go on from
    assert (load_checkpoint(kept)[0](ROWS) - model(ROWS)).abs().max() < 1e-4
    save_checkpoint(base, make_model(2), words)
    for load in (load_checkpoint, lambda path: resume(path, adapted(make_model)), lambda path: load_checkpoint(kept)):
        with pytest.raises(ValueError, match="not those that the adapter stands beside"):
            load(path)
    shutil.rmtree(base)
    with pytest.raises(ValueError, match="is no folder of a whole model here"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"r": "3"}, "r is '3'"), ({"r": 0}, "r is 0"), ({"r": 5}, "has shape (3, 64) instead of (5, 64)"),
        ({"lora_alpha": None}, "lora_alpha is None"), ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"use_dora": True}, "use_dora=True is not supported"), ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"), ({"peft_type": "IA3"}, "peft_type='IA3'"),
        *(({"init_lora_weights": way}, f"init_lora_weights='{way}' is not supported")
          for way in ("pissa", "pissa_niter_16", "olora", "loftq", "corda", "lora_ga")),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens=[1, 2] is not supported"),
        ({"use_qalora": True}, "use_qalora=True is not supported"), ({"layers_to_transform": [0]}, "layers_to_transf"),
        ({"exclude_modules": ["q_proj"]}, "exclude_modules"), ({"target_parameters": ["w"]}, "target_parameters"),
        ({"arrow_config": {"top_k": 3}}, "arrow_config"), ({"kasa_config": {"beta": 1e-4}}, "kasa_config"),
        ({"named_by_a_later_version": True}, "named_by_a_later_version=True is not supported"),
        ({"target_modules": "all-linear"}, "target_modules is 'all-linear'"),
        ({"target_modules": ["q_proj"]}, "has the unknown weight"), ({"base_model_name_or_path": 7}, "its base 7"),
    ],
)  # fmt: skip
def test_what_is_not_computed_here_or_does_not_fit_is_one_line(folder, change, said):
    path = folder[1]
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps(config | change))
    (path / "checksums.json").unlink()
    with pytest.raises(ValueError) as error:
        load_checkpoint(path)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("way", [True, False, "gaussian", "eva", "orthogonal", "mica"])
def test_how_a_and_b_began_does_not_matter_where_the_base_stayed_as_it_was(folder, way):
    model, path = folder
    config = json.loads((path / "adapter_config.json").read_text())
    off = {"use_qalora": False, "qalora_group_size": 16, "alora_invocation_tokens": None, "loftq_config": {},
           "megatron_core": "megatron.core", "layers_to_transform": None, "later": None}  # fmt: skip
    (path / "adapter_config.json").write_text(json.dumps(config | off | {"init_lora_weights": way}))
    (path / "checksums.json").unlink()
    assert (load_checkpoint(path)[0](ROWS) - model(ROWS)).abs().max() < 1e-4


def test_a_damaged_adapter_is_refused(folder):
    path = folder[1]
    file = path / "adapter_model.safetensors"
    tensors = load_file(file)
    name = min(tensors)
    save_file({**tensors, name: tensors[name] * torch.inf}, file)
    with pytest.raises(ValueError, match="not finite"):
        load_checkpoint(path)
    save_file({**tensors, name: tensors[name] + 1}, file)
    with pytest.raises(ValueError, match="checksum"):
        load_checkpoint(path)
    del tensors[name]
    save_file(tensors, file)
    (path / "checksums.json").unlink()
    with pytest.raises(ValueError, match="lacks weight"):
        load_checkpoint(path)


def test_the_average_of_a_step_does_not_hang_on_adapters(make_model, finished):
    """With B = 0 loss and metrics of an update are the plain model's to the bit."""
    rows = finished(6)
    weights = token_weights(rows, "sequence")
    found = [update(model, make_optimizer(model), rows, Algorithm(on_policy=True), lr=0.0, weights=weights)
             for model in (make_model(1), adapted(make_model, trained=False))]  # fmt: skip
    assert found[0]["loss"] == found[1]["loss"]
