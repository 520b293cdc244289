"""The transformer: equal to the reference implementation, one visibility rule for training, prefill and decoding."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanoreason.model import KVCache, Transformer, small_config

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip
SHAPES = {
    "llama": {"model_type": "llama", "tie_word_embeddings": False, "num_key_value_heads": 4},
    "llama-tied-gqa": {"model_type": "llama", "tie_word_embeddings": True, "num_key_value_heads": 2},
    "llama-bias": {"model_type": "llama", "tie_word_embeddings": False, "attention_bias": True},
    "llama3-rope": {"model_type": "llama", "tie_word_embeddings": True, "rope_scaling": LLAMA3, "rope_theta": 500.0},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": False, "num_key_value_heads": 1, "rope_theta": 1e6},
    "qwen2-tied": {"model_type": "qwen2", "tie_word_embeddings": True, "num_key_value_heads": 4},
    "qwen3": {"model_type": "qwen3", "tie_word_embeddings": False, "head_dim": 16, "num_key_value_heads": 2},
    "qwen3-tied": {"model_type": "qwen3", "tie_word_embeddings": True, "num_hidden_layers": 3, "rms_norm_eps": 1e-3},
}


def random_tokens(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 24, (rows, columns), generator=torch.Generator().manual_seed(seed))


def reference_of(model):
    """The same weights in the implementation of `transformers`."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    kinds = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM),
             "qwen3": (Qwen3Config, Qwen3ForCausalLM)}  # fmt: skip
    config_class, model_class = kinds[model.config.model_type]
    fields = dict(vars(model.config))
    rope = {"rope_type": "default", **(fields.pop("rope_scaling") or {}), "rope_theta": fields.pop("rope_theta")}
    fields.pop("model_type")
    reference = model_class(config_class(**fields, rope_parameters=rope, attn_implementation="eager"))
    reference.load_state_dict(model.state_dict())
    return reference.float().eval()


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_every_gradient_equal_those_of_transformers(make_model, shape):
    model = make_model(3, **SHAPES[shape])
    reference = reference_of(model)
    tokens, target = random_tokens(3, 40), random_tokens(3, 40, seed=1)
    logits, expected = model(tokens), reference(tokens).logits
    assert (logits - expected).abs().max() < 1e-4
    assert logits.std() > 0.5  # or the comparison says little
    for output in (logits, expected):
        torch.nn.functional.cross_entropy(output.flatten(0, 1), target.flatten()).backward()
    expected_gradients = {name: parameter.grad for name, parameter in reference.named_parameters()}
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 1e-4 or name.endswith("k_proj.bias"), name  # softmax is blind to a shift of keys
        assert (gradient - expected_gradients[name]).abs().max() < 1e-4, name


@pytest.mark.parametrize("shape", SHAPES)
@given(st.data())
def test_any_cut_into_cached_chunks_with_ragged_positions_equals_one_uncached_pass(make_model, shape, data):
    """Rows start at different positions; then all of them go on together, in chunks of any length."""
    model = make_model(4, **SHAPES[shape])
    rows, columns = 3, 33
    tokens = random_tokens(rows, columns, data.draw(st.integers(0, 99)))
    reached = torch.tensor(data.draw(st.lists(st.integers(0, 20), min_size=rows, max_size=rows)))
    with torch.no_grad():
        expected = model.hidden(tokens)
        cache = KVCache(model.config, rows, max(1, int(reached.max())), torch.device("cpu"), torch.float32)
        cache.kv.normal_(std=30)  # what lies in slots that were not reached must not matter
        for row in range(rows):  # each row alone, as far as it goes
            if n := int(reached[row]):
                out = model.hidden(tokens[row : row + 1, :n], torch.arange(n)[None], cache.view(row, row + 1))
                torch.testing.assert_close(out[0], expected[row, :n], atol=1e-4, rtol=1e-4)
        while int(reached.max()) < columns:
            width = data.draw(st.integers(1, columns - int(reached.max())))
            positions = reached[:, None] + torch.arange(width)  # (B, T)
            slots = data.draw(st.integers(int(positions.max()) + 1, columns + 5))
            cache.resize(rows, max(slots, cache.slots))  # it grows with the rows
            out = model.hidden(tokens.gather(1, positions), positions, cache.view(0, rows))
            for row in range(rows):
                torch.testing.assert_close(out[row], expected[row, positions[row]], atol=1e-4, rtol=1e-4)
            reached += width


def test_a_view_of_the_cache_leaves_other_rows_and_slots_alone(model):
    cache = KVCache(model.config, 4, 12, torch.device("cpu"), torch.float32)
    cache.kv.fill_(7.0)
    with torch.no_grad():
        model.hidden(random_tokens(2, 3), torch.arange(4, 7).expand(2, 3), cache.view(1, 3))
    written = (cache.kv != 7.0).all(-1)  # (layer, 2, B, K, S)
    expected = torch.zeros(4, 12, dtype=torch.bool)
    expected[1:3, 4:7] = True
    assert torch.equal(written, expected[None, None, :, None].expand_as(written))


@given(st.tuples(st.integers(1, 5), st.integers(1, 9)), st.tuples(st.integers(1, 5), st.integers(1, 9)))
def test_resizing_the_cache_keeps_what_both_shapes_have_and_fills_the_rest_with_zeros(model, before, after):
    cache = KVCache(model.config, *before, torch.device("cpu"), torch.float32)
    cache.kv.normal_()
    old = cache.kv.clone()
    cache.resize(*after)
    assert (cache.kv.shape[2], cache.slots) == after
    rows, slots = (min(pair) for pair in zip(before, after, strict=True))
    assert torch.equal(cache.kv[:, :, :rows, :, :slots], old[:, :, :rows, :, :slots])
    assert not cache.kv[:, :, rows:].any() and not cache.kv[:, :, :, :, slots:].any()


@given(seed=st.integers(0, 99), length=st.integers(1, 20), padding=st.integers(1, 12))
def test_right_padding_does_not_change_the_logits_of_a_row(model, seed, length, padding):
    row, pad = random_tokens(1, length, seed), random_tokens(1, padding, seed + 1)
    with torch.no_grad():
        together = model(torch.cat([row, pad], 1))[:, :length]
        torch.testing.assert_close(together, model(row), atol=1e-5, rtol=1e-5)


@given(seed=st.integers(0, 99), t=st.integers(0, 18))
def test_future_tokens_are_invisible_and_past_ones_are_not(model, seed, t):
    tokens = random_tokens(2, 20, seed)
    changed = tokens.clone()
    changed[:, t + 1 :] = (changed[:, t + 1 :] + 1) % 24
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, : t + 1], after[:, : t + 1], atol=1e-5, rtol=1e-5)
    assert ((before - after)[:, t + 1 :].abs().amax(-1) > 1e-3).all()


def test_rows_of_a_batch_do_not_see_each_other(model):
    tokens = random_tokens(5, 17)
    with torch.no_grad():
        alone = torch.cat([model(row[None]) for row in tokens])
        torch.testing.assert_close(model(tokens), alone, atol=1e-5, rtol=1e-5)


def test_the_order_of_earlier_tokens_matters(model):
    """Without positions, attention over a set of earlier tokens could not tell these two rows apart."""
    with torch.no_grad():
        a, b = model(torch.tensor([[1, 2, 3, 9]]))[0, -1], model(torch.tensor([[2, 1, 3, 9]]))[0, -1]
    assert (a - b).abs().max() > 1e-2


def test_the_seed_decides_the_initial_weights(assert_same_weights):
    config = small_config(32, 2, 4, 24, 64)
    torch.manual_seed(5)
    first = Transformer(config, seed=2**63 + 11)
    torch.manual_seed(6)
    assert_same_weights(first, Transformer(config, seed=2**63 + 11))
    assert not torch.equal(first.lm_head.weight, Transformer(config, seed=12).lm_head.weight)


def test_size_counts_tied_weights_once(make_model):
    tied, untied = make_model(tie_word_embeddings=True), make_model(tie_word_embeddings=False)
    assert untied.size() - tied.size() == 24 * 32
    assert tied.size() == sum(tensor.numel() for name, tensor in tied.state_dict().items() if name != "lm_head.weight")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
    ],
)
def test_a_shape_that_is_not_computed_here_is_refused_by_name(make_model, fields, named):
    with pytest.raises(ValueError, match=named):
        make_model(**fields)


def test_a_width_that_does_not_fit_the_heads_is_refused():
    with pytest.raises(ValueError, match="width 30"):
        small_config(30, 2, 4, 24, 64)
