"""What a run keeps in memory: the same gradients, fewer bytes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nanoreason.checkpoint import resume, save_checkpoint
from nanoreason.learn import compute_logprobs, make_optimizer, update
from nanoreason.lora import add_adapters
from nanoreason.memory import Memory, check_memory, prepare, sampling_copy
from nanoreason.optim import AdamW, rounded_at_random
from nanoreason.recipes import grpo, sft
from nanoreason.run import Schedule, read_jsonl
from nanoreason.sampler import Sampler
from nanoreason.tasks import Addition
from nanoreason.tokenizer import word_tokenizer

BASE = str(Path(__file__).parent / "data" / "one-digit-sums")

SHAPES = [{}, {"model_type": "qwen3", "tie_word_embeddings": False, "num_hidden_layers": 4}]


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_recomputed_gradients_are_equal_to_the_bit(make_model, finished, shape, rank):
    rows, found = finished(9), []
    for recompute in (False, True):
        model = make_model(1, **shape)
        prepare(model, Memory(lora=rank, recompute=recompute), 5)
        metrics = update(model, make_optimizer(model), rows, lr=1e-3, micro_tokens=60, entropy_coef=0.01)
        found.append((metrics, {name: weight.grad for name, weight in model.named_parameters()}, model.state_dict()))
    (metrics, gradients, weights), again = found[0], found[1]
    assert metrics == again[0]
    assert any(gradient is not None and gradient.any() for gradient in gradients.values())
    for name, gradient in gradients.items():
        assert (gradient is None and again[1][name] is None) or torch.equal(gradient, again[1][name]), name
    assert all(torch.equal(weight, again[2][name]) for name, weight in weights.items())


@pytest.mark.parametrize("rank", [0, 3])
def test_recomputing_keeps_the_input_of_each_block_and_no_more(make_model, saved_bytes, rank):
    model, tokens = make_model(1, num_hidden_layers=4), torch.ones(2, 30, dtype=torch.int64)
    if rank:
        add_adapters(model, rank)
    whole, own = saved_bytes(model, tokens), 60 * 32 * 4
    model.recompute = True
    kept = saved_bytes(model, tokens)
    ends = 60 * 8 + 2 * own + 60 * 4 if not rank else own + 60 * 4  # tokens of the embedding; the last norm
    assert kept == 4 * own + ends and whole > 5 * kept / 2


def test_sampling_and_measuring_recompute_nothing(make_model, monkeypatch):
    model = make_model(1)
    model.recompute = True
    monkeypatch.setattr("nanoreason.model.checkpoint", None)  # would be called
    with torch.no_grad():
        model.hidden(torch.ones(1, 3, dtype=torch.int64))
    with pytest.raises(TypeError):
        model.hidden(torch.ones(1, 3, dtype=torch.int64))


# ------------------------------------------------------------------------------------------------------- moments


def trained(make_model, finished, moments, steps=5):
    """(model, optimizer) after some updates."""
    model = make_model(1)
    optimizer = make_optimizer(model, weight_decay=0.1, moments=moments)
    for step in range(steps):
        update(model, optimizer, finished(6, seed=step), lr=1e-2)
    return model, optimizer


def test_moments_on_the_cpu_are_the_plain_ones_to_the_bit(make_model, finished, assert_same_weights):
    (plain, usual), (model, optimizer) = (trained(make_model, finished, m) for m in ("float32", "cpu"))
    assert_same_weights(plain, model)
    for (name, a), b in zip(plain.named_parameters(), model.parameters(), strict=True):
        assert all(torch.equal(usual.state[a][key], optimizer.state[b][key]) for key in optimizer.state[b]), name


def test_moments_in_bfloat16_take_half_the_bytes_and_move_the_weights_nearly_alike(make_model, finished):
    start = make_model(1)
    (plain, usual), (model, optimizer) = (trained(make_model, finished, m) for m in ("float32", "bfloat16"))
    bytes_of = [sum(v.nbytes for state in one.state.values() for v in state.values() if v.ndim) for one in
                (usual, optimizer)]  # fmt: skip
    assert bytes_of[0] == 2 * bytes_of[1] > 0
    for (name, began), a, b in zip(start.named_parameters(), plain.parameters(), model.parameters(), strict=True):
        assert 0 < (a - b).norm() < 0.05 * (a - began).norm(), name


def test_rounding_at_random_gives_a_neighbour_and_the_value_in_the_mean():
    x = torch.tensor([1.0, 1 + 2**-9, -(1 + 2**-10), 3.14159e-20, 0.0])  # neighbours of 1 are 2**-7 apart
    draws = torch.stack([rounded_at_random(x, seed) for seed in range(4000)])
    assert draws.dtype == torch.bfloat16
    for value, column in zip(x, draws.T, strict=True):
        assert (column.float() - value).abs().max() <= 2**-7 * value.abs()
    up = (draws[:, 1] > 1).float().mean(), (draws[:, 2] < -1).float().mean()
    assert abs(up[0] - 0.25) < 0.03 and abs(up[1] - 0.125) < 0.03  # 4.5 standard deviations
    assert (draws[:, 0] == 1).all() and (draws[:, 4] == 0).all()
    assert torch.equal(rounded_at_random(x, 7), rounded_at_random(x, 7))


def test_a_second_moment_in_bfloat16_fades_as_it_should():
    """1000 steps without a gradient: v falls to 0.999^1000 = 0.368; rounded to the nearest it would not move at all."""
    w = torch.nn.Parameter(torch.zeros(2000))
    optimizer = AdamW([("w", w)], moments="bfloat16")
    w.grad = torch.ones(2000)
    optimizer.step(0.0)
    before = optimizer.state[w]["exp_avg_sq"].float().mean()
    w.grad = torch.zeros(2000)
    for _ in range(1000):
        optimizer.step(0.0)
    faded = optimizer.state[w]["exp_avg_sq"].float().mean() / before
    assert abs(faded - 0.999**1000) < 0.02
    v = torch.tensor(0.001)
    assert (v.bfloat16().float() * 0.999).bfloat16() == v.bfloat16()


@pytest.mark.parametrize("moments", ["bfloat16", "cpu"])
def test_a_run_with_other_moments_goes_on_bit_equal(make_model, finished, tmp_path, assert_same_weights, moments):
    words = word_tokenizer(["\n", *(f"w{i}" for i in range(1, 23))])
    model, optimizer = trained(make_model, finished, moments, steps=3)
    save_checkpoint(tmp_path / "c", model, words, optimizer, {"step": 3})
    again = make_model(2)
    optimizers = [optimizer, make_optimizer(again, weight_decay=0.1, moments=moments)]
    resume(tmp_path / "c", again, optimizers[1])
    for one, its in zip((model, again), optimizers, strict=True):
        update(one, its, finished(6, seed=3), lr=1e-2)
    assert_same_weights(model, again)
    dtype = torch.bfloat16 if moments == "bfloat16" else torch.float32
    assert all(state["exp_avg"].dtype == dtype for state in optimizers[1].state.values())


# ------------------------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_copy_in_bfloat16_samples_rows_whose_distance_to_the_learner_is_seen(make_model, ragged, shape, rank):
    model = make_model(1, **shape)
    prepare(model, Memory(lora=rank), 5)
    copy = sampling_copy(model)
    assert {weight.dtype for weight in copy.parameters()} == {torch.bfloat16} and copy.rope.dtype == torch.bfloat16
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    sampler = Sampler(copy, eos_id=0)
    rows = sampler.finish(ragged(20))
    assert sampler.cache.kv.dtype == torch.bfloat16
    scores = compute_logprobs(model, rows, 1.0, 400)
    off = [abs(a - b) for row, values in zip(rows, scores, strict=True)
           for a, b, sampled in zip(row.logprobs, values, row.loss_mask, strict=True) if sampled]  # fmt: skip
    assert 1e-4 < sum(off) / len(off) < 0.1  # nats: rounding is seen, and is rounding


@pytest.mark.trains
def test_the_mismatch_is_in_the_metrics_of_a_run_and_zero_without(tmp_path):
    found = {}
    for dtype in ("float32", "bfloat16"):
        config = replace(grpo.PRESETS["tiny"], base=BASE, task=Addition((1,), form="direct"), steps=2, eval_problems=0,
                         max_new_tokens=Schedule(6), memory=Memory(sample_dtype=dtype), out=str(tmp_path / dtype),
                         updates_per_rollout=2)  # fmt: skip
        grpo.run(config)
        found[dtype] = [line["logp_diff/mean"] for line in read_jsonl(tmp_path / dtype / "metrics.jsonl")[1:]]
    assert max(found["float32"]) < 1e-5 and min(found["bfloat16"]) > 1e-4


def test_settings_that_do_not_go_together_are_one_line():
    for memory, base, optimizer, said in [
        (Memory(lora=4), "", "adamw", "--base"), (Memory(lora=4), "a", "muon", "adapters are trained by adamw"),
        (Memory(moments="cpu"), "a", "muon", "only adamw"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=said):
            check_memory(memory, base, optimizer)
    check_memory(Memory(lora=4, moments="cpu"), "a")


def test_adapters_stand_beside_a_whole_model_and_not_beside_other_adapters(make_model, tmp_path):
    words = word_tokenizer([f"w{i}" for i in range(20)])
    save_checkpoint(tmp_path / "base", make_model(1), words)
    model = make_model(1)
    add_adapters(model, 2)
    save_checkpoint(tmp_path / "adapter", model, words, base=str(tmp_path / "base"))
    for recipe, more in ((grpo, {"preflight": 0}), (sft, {})):
        config = replace(recipe.PRESETS["tiny"], base=str(tmp_path / "adapter"), memory=Memory(lora=2),
                         out=str(tmp_path / "run"), **more)  # fmt: skip
        with pytest.raises(ValueError, match="which holds adapters itself: name a whole model, such as OUT/policy"):
            recipe.run(config)
    assert not (tmp_path / "run").exists()
    check_memory(Memory(), str(tmp_path / "adapter"))  # all its weights may be trained, merged
