"""Numbers: draws and log-probs exact at any vocabulary, 0 for ids without a token, an error where there is none."""

import copy

import numpy as np
import pytest
import torch

from nanoreason import learn
from nanoreason.learn import make_optimizer, update
from nanoreason.model import ModelConfig, Transformer
from nanoreason.rollout import Problem, demonstration, response_text
from nanoreason.sampler import Sampler, draw, uniforms
from nanoreason.tokenizer import EOS as EOS_TOKEN
from nanoreason.tokenizer import TextTokenizer, word_tokenizer

EOS = 0


def sample(model, rows, **options):
    """Finish rows in a new sampler and return them."""
    return Sampler(model, **{"eos_id": EOS, **options}).finish(rows)


# ------------------------------------------------------------------------------------------------ large vocabularies


def drawn_mass(logits: torch.Tensor) -> torch.Tensor:
    """The probability (V,) with which `draw` gives each token, found from outside: where in [0, 1) draws change."""
    V = len(logits)
    low, high = torch.zeros(V, dtype=torch.float64), torch.ones(V, dtype=torch.float64)
    wanted = torch.arange(V)  # the smallest u with a draw >= t, for every t at once
    for _ in range(50):
        middle = (low + high) / 2
        tokens = torch.cat([draw(logits.expand(len(u), V), u, 1.0)[0] for u in middle.split(64)])
        low, high = torch.where(tokens < wanted, middle, low), torch.where(tokens < wanted, high, middle)
    return torch.diff(high, append=torch.ones(1, dtype=torch.float64))


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])
def test_the_draw_is_within_a_millionth_of_the_stated_probabilities(scale):
    logits = scale * torch.randn(512, generator=torch.Generator().manual_seed(1))
    stated = logits.double().softmax(-1)
    assert (drawn_mass(logits) - stated).abs().sum() / 2 < 1e-6


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("T", [0.7, 1.0])
def test_every_token_of_a_large_vocabulary_can_be_drawn_and_its_logprob_is_exact(scale, T):
    """With float32 sums up to 98 % of 151,936 tokens could not be drawn, and log-probs were off by up to 6e-4."""
    V = 151_936
    logits = scale * torch.randn(V, generator=torch.Generator().manual_seed(0))
    exact = (logits.double() / T).log_softmax(-1)
    p = exact.exp()
    middle = p.cumsum(0) - p / 2  # of each token's own stretch of [0, 1)
    some = torch.arange(0, V, 997)[(p > 1e-6)[::997]]
    assert len(some) > 20
    tokens, logprobs = draw(logits.expand(len(some), V), middle[some], T)
    assert tokens.tolist() == some.tolist()
    assert (logprobs.double() - exact[some]).abs().max() < 5e-6
    assert abs((logprobs.double() - exact[some]).mean()) < 1e-6  # and in no direction


def test_each_token_of_a_long_tail_has_its_own_numbers():
    """Behind a token of 99.8 %, each of the others has 1.5e-8, a quarter of a float32 step: three of four got lost."""
    V = 151_936
    logits = torch.zeros(V)
    logits[0] = 18.0
    p = logits.double().softmax(-1)
    u = p[0] + p[1] * (70_000 + torch.arange(0.25, 200, 0.5, dtype=torch.float64))  # two numbers for each of 200 tokens
    drawn = [draw(logits.expand(len(part), V), part, 1.0) for part in u.split(50)]
    tokens, logprobs = (torch.cat(parts) for parts in zip(*drawn, strict=True))
    assert tokens.diff().unique().tolist() == [0, 1]
    assert 199 <= len(tokens.unique()) <= 201
    assert abs(tokens[0] - 70_000) < 10  # within 1e-7
    assert (logprobs.double() - p[1].log()).abs().max() < 2e-6


def test_a_rows_numbers_tell_more_tokens_apart_than_there_are():
    numbers = uniforms(5, 0, 20_000)
    assert numbers.dtype == np.float64
    assert len(np.unique(numbers)) == 20_000
    assert np.mean(numbers * 2**24 % 1 != 0) > 0.99  # finer than float32
    assert abs(numbers.mean() - 0.5) < 0.01 and abs(np.var(numbers) - 1 / 12) < 0.003
    fine = numbers * 2**24 % 1
    assert abs(fine.mean() - 0.5) < 0.01 and abs(np.corrcoef(fine, numbers)[0, 1]) < 0.03


# ------------------------------------------------------------------------- several EOS, ids without a token, no number


def test_every_eos_id_ends_a_row_and_is_in_the_loss(model, ragged, copy_rows):
    rows = ragged(80, seed=23)
    one = sample(model, copy_rows(rows), eos_id=EOS)
    several = sample(model, rows, eos_id=(EOS, 5, 9))
    assert {row.tokens[-1] for row in several if row.stop_reason == "eos"} == {EOS, 5, 9}
    for row, alone in zip(several, one, strict=True):
        ends = [t for t, token in enumerate(alone.response) if token in (EOS, 5, 9)]
        assert row.response == alone.response[: ends[0] + 1 if ends else None]
        assert row.stop_reason == ("eos" if ends else "length")
        assert row.loss_mask[-1]


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_ids_without_a_token_are_never_drawn_and_the_learner_agrees(make_model, ragged, temperature, top_p):
    model = make_model(2)
    free = {token for row in sample(model, ragged(60, seed=3), temperature=temperature) for token in row.response}
    model.no_token = torch.arange(24) % 3 == 1
    rows = sample(model, ragged(60, seed=3), temperature=temperature, top_p=top_p)
    drawn = {token for row in rows for token in row.response}
    assert any(token % 3 == 1 for token in free) and not any(token % 3 == 1 for token in drawn)
    if top_p == 1:
        learned = learn.compute_logprobs(model, rows, temperature or 1.0, 4096)
        for row, logprobs in zip(rows, learned, strict=True):
            assert row.logprobs[row.prompt_len :] == pytest.approx(logprobs[row.prompt_len :], abs=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("where", ["lm_head.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_logits_that_are_not_finite_are_an_error_that_names_the_row(
    make_model, prompt_only, temperature, top_p, value, where
):
    model = make_model(1, tie_word_embeddings=False)
    with torch.no_grad():
        model.get_parameter(where).view(-1)[40 % model.get_parameter(where).numel()] = value
    sampler = Sampler(model, eos_id=EOS, temperature=temperature, top_p=top_p)
    with pytest.raises(FloatingPointError, match=r"row with prompt 'prompt \[1, 2\]' are not finite after \d+ tokens"):
        sampler.finish([prompt_only([1, 2], seed=i, max_new_tokens=20) for i in range(8)])


def test_the_row_whose_logits_are_not_finite_is_the_one_that_is_named(make_model, prompt_only):
    model = make_model(1, tie_word_embeddings=False)
    with torch.no_grad():
        model.model.embed_tokens.weight[13] = float("nan")
    rows = [prompt_only([1, 2], max_new_tokens=1), prompt_only([3, 13], max_new_tokens=1)]
    with pytest.raises(FloatingPointError, match=r"prompt \[3, 13\]"):
        Sampler(model, eos_id=EOS).finish(rows)


@pytest.mark.parametrize("temperature", [float("nan"), float("inf"), -1.0])
def test_a_temperature_that_is_no_number_from_0_on_is_refused(model, temperature):
    with pytest.raises(ValueError, match="temperature"):
        Sampler(model, eos_id=EOS, temperature=temperature)


# --------------------------------------------------------------------------------------------- ids without a token


@pytest.mark.parametrize("chunked", [False, True])
def test_ids_without_a_token_have_probability_0_no_entropy_and_no_gradient(make_model, monkeypatch, chunked):
    """As if the head had no such rows: same log-probs, entropies and gradients as of a head that is cut."""
    wide, narrow = make_model(2, tie_word_embeddings=False), make_model(2, tie_word_embeddings=False, vocab_size=16)
    wide.no_token = torch.arange(24) >= 16
    narrow.load_state_dict({k: v[:16] if v.shape[0] == 24 else v for k, v in wide.state_dict().items()})
    tokens = torch.randint(0, 16, (5, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.rand(5, 20, generator=torch.Generator().manual_seed(1)) < 0.5
    if chunked:
        monkeypatch.setattr(learn, "CHUNK_LOGITS", 24 * 3)
    for T in (0.7, 1.3):
        found = []
        for model in (wide, narrow):
            model.zero_grad()
            logprobs, entropy = learn.logprobs_and_entropy(model, tokens, mask, T)
            (logprobs - 0.3 * entropy).sum().backward()
            found.append((logprobs, entropy, model.model.layers[0].mlp.up_proj.weight.grad, model.lm_head.weight.grad))
        for ours, cut in zip(*found, strict=True):
            assert ours.isfinite().all()
            torch.testing.assert_close(ours[:16] if ours.shape[0] == 24 else ours, cut, atol=1e-4, rtol=1e-4)
        assert not wide.lm_head.weight.grad[16:].any()
    tokens[mask] = 20
    assert (learn.token_logprobs(wide, tokens, mask)[:, 1:][mask[:, 1:]] == -torch.inf).all()


@pytest.mark.parametrize("rows", [3, 200])
def test_logprobs_and_entropies_of_a_large_vocabulary_are_exact(rows):
    V = 151_936
    config = ModelConfig(vocab_size=V, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
                         num_key_value_heads=1, head_dim=8, max_position_embeddings=256)  # fmt: skip
    model = Transformer(config)
    with torch.no_grad():
        model.lm_head.weight.normal_(generator=torch.Generator().manual_seed(0))
        tokens = torch.randint(0, V, (1, rows + 1), generator=torch.Generator().manual_seed(1))
        logprobs, entropy = learn.logprobs_and_entropy(model, tokens, torch.ones_like(tokens, dtype=torch.bool))
        for t in range(1, rows + 1, 50):
            exact = model(tokens[:, :t])[0, -1].double().log_softmax(-1)
            assert abs(logprobs[0, t] - exact[tokens[0, t]]) < 5e-6
            assert abs(entropy[0, t] + (exact.exp() * exact).sum()) < 1e-4


@pytest.mark.parametrize("lr", [float("nan"), float("inf"), -1e-3])
def test_a_learning_rate_that_is_no_number_from_0_on_is_refused_before_the_step(make_model, finished, lr):
    model = make_model(1)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="learning rate"):
        update(model, make_optimizer(model), finished(4), lr=lr)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("end", [(0,), (0, 5)])
def test_a_demonstration_that_ends_itself_gets_no_second_eos(end):
    words = word_tokenizer(["a", "b", "c", "d", "e"])
    words = TextTokenizer(words.backend, more_eos_ids=end)
    assert demonstration(words, Problem("a", "", "b c")).response == [2, 3, 0]
    assert demonstration(words, Problem("a", "", f"b c {EOS_TOKEN}")).response == [2, 3, 0]
    assert demonstration(words, Problem("a", "", "b e")).response == ([2, 5] if 5 in end else [2, 5, 0])
    assert demonstration(words, Problem("a", "", "")).response == [0]
    row = demonstration(words, Problem("a", "", "b e"))
    assert response_text(words, row) == ("b" if 5 in end else "b e")
