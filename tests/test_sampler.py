"""The sampling loop: samples depend on the row alone, log-probs are those of the learner, rows come back and go on."""

import math
import random
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from nanoreason import sampler as sampling
from nanoreason.learn import collate, make_optimizer, token_logprobs, token_weights, update
from nanoreason.rollout import Problem, seed_of
from nanoreason.sampler import Sampler, completes, draw, generate, may_complete, uniforms
from nanoreason.tokenizer import TextTokenizer, word_tokenizer

EOS = 0
LARGEST_U = 1 - 2**-24  # the largest float32 below 1


@pytest.fixture(autouse=True)
def a_cache_that_grows_often(monkeypatch):
    """By three slots at a time: otherwise the short rows of these tests would all fit from the start."""
    monkeypatch.setattr(sampling, "WIDEN", 3)


def sample(model, rows, **options):
    """Finish rows in a new sampler and return them."""
    return Sampler(model, **{"eos_id": EOS, **options}).finish(rows)


def contents(rows):
    """What a sample consists of, its log-probs aside: they may differ by rounding."""
    return [(row.tokens, row.loss_mask, row.draws, row.stop_reason) for row in rows]


def recomputed(model, row, temperature):
    """The learner's log-probs of one row, (T,)."""
    batch = collate([row], token_weights([row]), torch.device("cpu"))
    with torch.no_grad():
        return token_logprobs(model, batch.tokens, batch.loss_mask, temperature)[0]


# ---------------------------------------------------------------------------------------- agreement with the learner


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_stored_logprobs_equal_those_of_the_learner_in_ragged_retired_and_refilled_batches(model, ragged, temperature):
    rows = sample(model, ragged(40, seed=1), temperature=temperature, max_rows=6)
    batch = collate(rows, token_weights(rows), torch.device("cpu"))
    with torch.no_grad():
        learner = token_logprobs(model, batch.tokens, batch.loss_mask, temperature)
    assert (learner - batch.old_logprobs).abs().max() < 1e-4
    assert batch.old_logprobs[batch.loss_mask].std() > 0.5  # peaky: another temperature would be far off
    assert not batch.old_logprobs[~batch.loss_mask].any()


@pytest.mark.parametrize(
    "shape",
    [{"model_type": "qwen2"}, {"model_type": "qwen3", "num_key_value_heads": 4}, {"num_key_value_heads": 1},
     {"tie_word_embeddings": False}],
)  # fmt: skip
def test_stored_logprobs_equal_those_of_the_learner_in_every_family(make_model, ragged, shape):
    model = make_model(2, **shape)
    for row in sample(model, ragged(12, seed=2), temperature=0.7, max_rows=4):
        assert (recomputed(model, row, 0.7) - torch.tensor(row.logprobs)).abs().max() < 1e-4


def test_stored_logprobs_equal_those_of_the_learner_after_rows_went_on(model, ragged):
    rows = ragged(20, seed=3)
    sampler = Sampler(model, eos_id=EOS, temperature=1.3, max_rows=5)
    sampler.submit(rows)
    resumed = 0
    for row in sampler:
        if row.stop_reason == "eos" and resumed < 30 and len(row.response) > 1:
            resumed += 1
            row.retract(2)
            row.force([5, 6])
            sampler.submit([row])
    assert resumed > 5
    for row in rows:
        assert (recomputed(model, row, 1.3) - torch.tensor(row.logprobs)).abs().max() < 1e-4


@pytest.mark.parametrize("top_p", [0.5, 0.9])
def test_under_top_p_the_stored_logprobs_are_those_of_the_truncated_distribution(model, ragged, top_p):
    """Recomputed by sorting each distribution by hand."""
    rows = sample(model, ragged(12, seed=4), temperature=1.3, top_p=top_p)
    truncated = 0
    for row in rows:
        with torch.no_grad():
            probs = (model(torch.tensor([row.tokens]))[0] / 1.3).softmax(-1)
        for t in range(row.prompt_len, len(row.tokens)):
            p, mass, kept = probs[t - 1].tolist(), 0.0, {}
            for token in sorted(range(len(p)), key=lambda token, p=p: -p[token]):
                kept[token] = p[token]
                mass += p[token]
                if mass >= top_p:
                    break
            truncated += mass < 0.999
            assert row.tokens[t] in kept
            assert row.logprobs[t] == pytest.approx(math.log(p[row.tokens[t]] / mass), abs=1e-4)
    assert truncated > 50


def test_at_temperature_zero_the_most_likely_token_is_taken_with_its_logprob_at_temperature_one(model, ragged):
    for row in sample(model, ragged(20, seed=5), temperature=0.0, max_rows=7):
        with torch.no_grad():
            best = model(torch.tensor([row.tokens]))[0].argmax(-1).tolist()
        assert row.response == best[row.prompt_len - 1 : -1]
        assert (recomputed(model, row, 1.0) - torch.tensor(row.logprobs)).abs().max() < 1e-4


# ------------------------------------------------------------------------------------------------ independence


ALONE = {}  # (temperature, top_p): the rows of the next test, each sampled in a sampler of its own


@given(
    order=st.permutations(range(14)),
    max_rows=st.integers(1, 16),
    kv_bytes=st.sampled_from([1, 20_000, 60_000, 4 << 30]),
    temperature=st.sampled_from([0.0, 1.0]),
    top_p=st.sampled_from([0.8, 1.0]),
)
def test_a_sample_depends_on_no_neighbour_limit_or_order(
    model, ragged, prompt_only, copy_rows, order, max_rows, kv_bytes, temperature, top_p
):
    settings = {"temperature": temperature, "top_p": top_p}
    rows = ragged(14, seed=6)
    for i in (3, 4, 5):  # a group: one prompt, three streams of numbers
        rows[i] = prompt_only(rows[2].tokens, rows[i].seed, rows[i].max_new_tokens)
    if (temperature, top_p) not in ALONE:
        ALONE[temperature, top_p] = [sample(model, [row], **settings)[0] for row in copy_rows(rows)]
    sampler = Sampler(model, eos_id=EOS, max_rows=max_rows, kv_bytes=kv_bytes, **settings)
    sampler.submit([rows[i] for i in order[:5]])
    handed_out = []
    for k, row in enumerate(sampler):
        handed_out.append(row)
        if k < 9:  # the others arrive one by one, while the first are under way
            sampler.submit([rows[order[5 + k]]])
    assert sorted(map(id, handed_out)) == sorted(map(id, rows))
    assert contents(rows) == contents(ALONE[temperature, top_p])


def test_rows_of_a_group_differ_and_their_seed_alone_tells_them_apart(model, prompt_only):
    rows = [prompt_only([1, 2, 3], seed=seed, max_new_tokens=20) for seed in (1, 2, 3, 4, 1)]
    sample(model, rows, temperature=1.0)
    assert rows[0].tokens == rows[4].tokens
    assert len({tuple(row.tokens) for row in rows[:4]}) == 4


def test_the_kth_draw_uses_the_kth_number_of_the_rows_stream(model, prompt_only):
    row = prompt_only([1, 2, 3], seed=77, max_new_tokens=12)
    sample(model, [row], temperature=1.0)
    numbers = uniforms(77, 0, 12)
    for k, token in enumerate(row.response):
        with torch.no_grad():
            logits = model(torch.tensor([row.tokens[: 3 + k]]))[:, -1]
        assert draw(logits, torch.tensor(numbers[k : k + 1]), 1.0)[0].item() == token


@given(seed=st.integers(0, 2**64 - 1), start=st.integers(0, 50), count=st.integers(0, 50))
def test_a_stream_of_uniforms_can_be_entered_anywhere_and_stays_below_one(seed, start, count):
    numbers = uniforms(seed, start, count)
    assert numbers.tolist() == uniforms(seed, 0, start + count)[start:].tolist()
    assert len(numbers) == count
    assert ((numbers >= 0) & (numbers < 1)).all()


# ------------------------------------------------------------------------------------------------------- draw


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.3, 0.8)])
def test_draws_occur_as_often_as_their_probability_says(temperature, top_p):
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0, 1.2, -3.0])
    p = (logits / temperature).softmax(-1).tolist()
    expected, mass = [0.0] * 6, 0.0
    for token in sorted(range(6), key=lambda token: -p[token]):
        if mass < top_p:
            expected[token] = p[token]
            mass += p[token]
    expected = [x / mass for x in expected]
    n = 40_000
    u = torch.rand(n, generator=torch.Generator().manual_seed(0))
    tokens, logprobs = draw(logits.expand(n, 6), u, temperature, top_p)
    counts = torch.bincount(tokens, minlength=6).tolist()
    assert [count > 0 for count in counts] == [x > 0 for x in expected]
    chi_square = sum((count - n * x) ** 2 / (n * x) for count, x in zip(counts, expected, strict=True) if x > 0)
    assert chi_square < 25.7  # the 1e-4 quantile at 5 degrees of freedom; the seed is fixed
    assert logprobs.exp().tolist() == pytest.approx([expected[token] for token in tokens.tolist()], abs=1e-5)


@given(
    st.lists(st.booleans(), min_size=2, max_size=40).filter(any),
    st.integers(0, 99),
    st.sampled_from([0.7, 1.0, 1.3]),
    st.sampled_from([0.3, 0.999, 1.0]),
)
def test_a_token_without_probability_is_never_drawn_not_even_by_the_most_extreme_numbers(possible, seed, T, top_p):
    logits = 4 * torch.randn(len(possible), generator=torch.Generator().manual_seed(seed))
    logits[~torch.tensor(possible)] = -torch.inf
    u = torch.tensor([0.0, 1e-30, 2**-24, 0.25, 0.5, 0.999999, LARGEST_U])
    tokens, logprobs = draw(logits.expand(len(u), -1), u, T, top_p)
    assert all(possible[token] for token in tokens.tolist())
    assert logprobs.isfinite().all()
    assert (logprobs <= 1e-6).all()


def test_extreme_numbers_draw_a_possible_token_from_a_large_vocabulary_too():
    logits = torch.full((2, 150_000), -torch.inf)
    logits[:, 1_000:149_000] = torch.randn(148_000, generator=torch.Generator().manual_seed(0))
    tokens, logprobs = draw(logits, torch.tensor([0.0, LARGEST_U]), 1.0)
    assert 1_000 <= tokens[0] < 1_100  # the first few of the possible tokens
    assert 148_900 <= tokens[1] < 149_000  # the last few
    assert logprobs.isfinite().all()


def test_a_larger_number_never_draws_an_earlier_token():
    """The CDF is inverted: draws are monotone in u, so nearby numbers give equal or neighbouring tokens."""
    u = torch.linspace(0, LARGEST_U, 500)
    tokens, _ = draw(torch.tensor([0.5, 2.0, -1.0, 0.0]).expand(500, 4), u, 1.0)
    assert tokens.unique_consecutive().tolist() == [0, 1, 2, 3]


# --------------------------------------------------------------------------------------------------- how rows end


def test_a_row_ends_at_its_first_eos_or_at_its_budget_and_says_which(model, ragged):
    rows = sample(model, ragged(60, seed=7), temperature=1.0)
    assert {row.stop_reason for row in rows} == {"eos", "length"}
    for row in rows:
        assert EOS not in row.response[:-1]
        assert (row.response[-1] == EOS) == (row.stop_reason == "eos")
        assert len(row.response) == row.max_new_tokens if row.stop_reason == "length" else len(row.response) >= 1


def test_a_row_that_ended_itself_has_its_eos_in_the_loss(model, ragged):
    ended = [row for row in sample(model, ragged(60, seed=7), temperature=1.0) if row.stop_reason == "eos"]
    assert len(ended) > 10
    for row in ended:
        assert row.tokens[-1] == EOS
        assert row.loss_mask[-1] is True
        assert row.logprobs[-1] < 0


def test_what_was_sampled_is_in_the_loss_and_the_prompt_is_not(model, ragged):
    for row in sample(model, ragged(30, seed=8)):
        assert row.loss_mask == [False] * row.prompt_len + [True] * len(row.response)
        assert len(row.logprobs) == len(row.tokens) == len(row.loss_mask)
        assert row.draws == len(row.response)


def test_a_stop_id_hands_the_row_back_as_its_last_token(model, ragged, copy_rows):
    free = ragged(60, seed=9)
    stopped = sample(model, copy_rows(free), stop_ids=(7, 11))
    sample(model, free)
    assert {row.stop_reason for row in stopped} == {"eos", "stop", "length"}
    for row, unhindered in zip(stopped, free, strict=True):
        ends = [t for t, token in enumerate(unhindered.response) if token in (7, 11)]
        cut = ends[0] + 1 if ends else len(unhindered.response)
        assert row.response == unhindered.response[:cut]
        assert row.stop_reason == ("stop" if ends else unhindered.stop_reason)


def test_without_an_eos_rows_end_by_stop_ids_and_budgets_alone(model, ragged):
    rows = sample(model, ragged(40, seed=10), eos_id=None, stop_ids=(7,))
    assert any(EOS in row.response for row in rows)
    assert {row.stop_reason for row in rows} == {"stop", "length"}


def test_a_row_without_a_budget_of_its_own_has_the_samplers(model, prompt_only):
    rows = [prompt_only([1, 2], 1), prompt_only([1, 2, 3], 2, max_new_tokens=3), prompt_only([4], 3)]
    sample(model, rows, eos_id=None, max_new_tokens=9)
    assert [len(row.response) for row in rows] == [9, 3, 9]


def test_the_models_context_ends_a_row_whatever_its_budget(model, prompt_only):
    rows = [prompt_only([1] * 60, 1, max_new_tokens=500), prompt_only([1] * 63, 2), prompt_only([1], 3)]
    sample(model, rows, eos_id=None, max_new_tokens=1000)
    assert [len(row.tokens) for row in rows] == [64, 64, 64]
    assert [row.stop_reason for row in rows] == ["length"] * 3


def test_a_row_without_any_budget_comes_back_as_it_was(model, prompt_only):
    row = prompt_only([1, 2, 3], max_new_tokens=0)
    sample(model, [row])
    assert (row.tokens, row.stop_reason, row.draws) == ([1, 2, 3], "length", 0)


def test_forced_tokens_count_against_the_budget_of_the_response(model, prompt_only):
    row = prompt_only([1, 2, 3], max_new_tokens=6)
    row.force([4, 5])
    sample(model, [row], eos_id=None)
    assert row.response[:2] == [4, 5]
    assert row.loss_mask == [False] * 5 + [True] * 4


# ------------------------------------------------------------------------------------- rows that come back and go on


def test_a_row_that_goes_on_equals_a_fresh_run_of_the_same_row(model, ragged, copy_rows):
    """In the same sampler, beside other rows, with its keys still there or not; in a new sampler alone."""
    waiting, fresh_runs, went_on = {}, 0, 0
    generator = random.Random(0)
    rows = ragged(30, seed=11)
    sampler = Sampler(model, eos_id=EOS, max_rows=4)
    sampler.submit(rows)
    for row in sampler:
        if id(row) in waiting:
            (twin,) = waiting.pop(id(row))
            sample(model, [twin])
            assert contents([row]) == contents([twin])
            fresh_runs += 1
        if went_on < 40 and len(row.response) < row.max_new_tokens:
            row.retract(generator.randint(0, len(row.response)))
            row.force(generator.choices(range(1, 24), k=generator.randint(0, 3)))
            waiting[id(row)] = copy_rows([row])
            sampler.submit([row])
            went_on += 1
    assert fresh_runs == went_on > 15


def test_a_row_that_goes_on_without_a_change_equals_one_that_never_stopped(model, prompt_only):
    """Stopped at every token below 16 and put back at once, it uses the same numbers as if nothing had happened."""
    stopping, free = prompt_only([3, 1], 5, 40), prompt_only([3, 1], 5, 40)
    sampler = Sampler(model, eos_id=EOS, stop_ids=tuple(range(1, 16)))
    sampler.submit([stopping])
    stops = 0
    for row in sampler:
        if row.stop_reason == "stop":
            stops += 1
            sampler.submit([row])
    sample(model, [free])
    assert stops > 3
    assert contents([stopping]) == contents([free])


def test_a_retracted_token_does_not_give_its_number_back(model, prompt_only):
    """Otherwise a second try would draw the same token again, for ever."""
    row = prompt_only([1, 2, 3], seed=4, max_new_tokens=10)
    sampler = Sampler(model, eos_id=None)
    sampler.finish([row])
    first = row.response
    row.retract(10)
    sampler.finish([row])
    assert row.draws == 20
    assert row.response != first
    with torch.no_grad():
        logits = model(torch.tensor([[1, 2, 3]]))[:, -1]
    assert draw(logits, torch.tensor(uniforms(4, 10, 1)), 1.0)[0].item() == row.response[0]


def test_a_row_that_goes_on_reads_only_its_new_tokens(model, prompt_only, count_hidden):
    """20 prompt tokens and 30 sampled ones are in the cache; after one retraction and two forced tokens, two are new:
    the first forced token is read, the second is the first decode step's input."""
    row = prompt_only([1 + i % 20 for i in range(20)], seed=1, max_new_tokens=30)
    sampler = Sampler(model, eos_id=None)
    sampler.finish([row])
    row.retract()
    row.force([5, 6])
    row.max_new_tokens = 33
    forwards = count_hidden(model)
    sampler.finish([row])
    assert len(row.response) == 33
    assert forwards == [(1, 1)] + [(1, 1)] * 2


def test_a_row_that_goes_on_unchanged_reads_nothing_again(model, prompt_only, count_hidden):
    row = prompt_only([1, 2, 3, 4, 5, 6], seed=1, max_new_tokens=8)
    sampler = Sampler(model, eos_id=None)
    sampler.finish([row])
    row.max_new_tokens = 12
    forwards = count_hidden(model)
    sampler.finish([row])
    assert forwards == [(1, 1)] * 4  # four decode steps


def test_keys_of_tokens_that_were_replaced_are_not_used_again(model, prompt_only, copy_rows):
    """The row comes back with as many tokens as before, but other ones."""
    row = prompt_only([1, 2, 3], seed=1, max_new_tokens=12)
    sampler = Sampler(model, eos_id=None)
    sampler.finish([row])
    row.retract(10)
    row.force([9] * 8)
    (twin,) = copy_rows([row])
    sampler.finish([row])
    sample(model, [twin], eos_id=None)
    assert contents([row]) == contents([twin])
    assert (recomputed(model, row, 1.0) - torch.tensor(row.logprobs)).abs().max() < 1e-4


def test_a_row_whose_slot_was_taken_is_read_again(model, prompt_only, ragged, copy_rows):
    row = prompt_only([1, 2, 3], seed=1, max_new_tokens=5)
    sampler = Sampler(model, eos_id=None, max_rows=1)
    sampler.finish([row])
    sampler.finish(ragged(3, seed=12))  # one after another through the only slot
    row.max_new_tokens = 15
    (twin,) = copy_rows([row])
    sampler.finish([row])
    sample(model, [twin], eos_id=None)
    assert contents([row]) == contents([twin])


# ------------------------------------------------------------------------------------------------------ efficiency


def test_the_prompt_of_a_group_is_read_once(model, prompt_only, count_hidden):
    """Two prompts of 9 and 5 tokens, 8 rows each: 8 + 4 tokens are read (at most padded to 2 x 8); no decoding yet."""
    rows = [prompt_only(tokens, seed, 4) for tokens in ([1] * 9, [2] * 5) for seed in range(8)]
    sampler = Sampler(model, eos_id=None)
    sampler.submit(rows)
    forwards = count_hidden(model)
    next(sampler)
    prefills = [shape for shape in forwards if shape[1] > 1]
    assert sum(rows for rows, _ in prefills) == 2
    assert sum(rows * width for rows, width in prefills) <= 16
    assert forwards[len(prefills) :] == [(16, 1)] * 4


def test_a_late_row_of_a_group_shares_the_prompt_of_a_live_one(model, prompt_only, copy_rows, count_hidden):
    rows = [prompt_only([1, 2, 3, 4, 5], seed, 6 + 9 * seed) for seed in range(4)]
    twins = copy_rows(rows)
    sampler = Sampler(model, eos_id=None, max_rows=2)
    forwards = count_hidden(model)
    sampler.finish(rows)
    assert [shape for shape in forwards if shape[1] > 1] == [(1, 4)]
    for twin in twins:
        sample(model, [twin], eos_id=None)
    assert contents(rows) == contents(twins)


def test_no_step_is_spent_on_rows_that_are_done(model, ragged, count_hidden):
    """Each decode step runs the live rows alone, so its rows add up to the sampled tokens."""
    rows = ragged(30, seed=13)
    for row in rows:
        row.max_new_tokens = max(2, row.max_new_tokens)
    sampler = Sampler(model, eos_id=EOS)
    sampler.submit(rows)
    next(sampler)  # all prompts are read by now
    spent = sampler.row_steps
    forwards = count_hidden(model)
    for _ in sampler:
        pass
    assert sum(rows for rows, _ in forwards) == sampler.row_steps - spent
    assert sampler.row_steps == sum(row.draws for row in rows)


def test_no_more_than_max_rows_are_decoded_at_once_and_slots_are_refilled(model, ragged, count_hidden):
    rows = ragged(40, seed=14)
    sampler = Sampler(model, eos_id=EOS, max_rows=8)
    forwards = count_hidden(model)
    sampler.finish(rows)
    assert max(n for n, _ in forwards) == 8
    tokens = sum(row.draws for row in rows)
    assert sampler.steps < 1.5 * tokens / 8 + 30  # a batch that waits for its longest row would need far more


def test_the_cache_stays_within_kv_bytes(model, ragged):
    sampler = Sampler(model, eos_id=EOS, kv_bytes=50_000)
    sampler.finish(ragged(30, seed=15))
    assert sampler.cache.kv.numel() * 4 <= 50_000
    assert len(sampler.rows) > 1


def test_rows_are_handed_out_when_they_stop_not_when_all_have(model, prompt_only):
    short, long = prompt_only([1, 2], 1, 2), prompt_only([1, 2, 3], 2, 40)
    sampler = Sampler(model, eos_id=None)
    sampler.submit([long, short])
    assert next(sampler) is short
    assert sampler.steps == 2
    assert next(sampler) is long
    assert next(sampler, None) is None


# ---------------------------------------------------------------------------------------------------------- errors


def test_nothing_to_do_is_fine(model):
    sampler = Sampler(model, eos_id=EOS)
    assert sampler.finish([]) == []
    assert list(sampler) == []


def test_finish_returns_the_rows_in_the_order_given(model, ragged):
    rows = ragged(15, seed=16)
    returned = sample(model, rows, max_rows=4)
    assert all(a is b for a, b in zip(returned, rows, strict=True))


def test_submitting_a_row_twice_is_an_error_until_it_came_back(model, prompt_only):
    row, other = prompt_only([1, 2], 1, 3), prompt_only([3], 2, 3)
    sampler = Sampler(model, eos_id=None)
    with pytest.raises(ValueError, match="row 1 is already being sampled"):
        sampler.submit([row, row])
    sampler.submit([row])
    with pytest.raises(ValueError, match="row 1 is already being sampled"):
        sampler.submit([other, row])
    next(sampler)
    row.max_new_tokens = 5
    sampler.submit([row])
    assert next(sampler) is row
    assert len(row.response) == 5


def test_a_prompt_longer_than_the_context_is_an_error_that_names_the_row(model, prompt_only):
    rows = [prompt_only([1, 2]), prompt_only([1] * 64)]
    rows[1].problem = Problem("Once upon a time", "")
    sampler = Sampler(model, eos_id=EOS)
    with pytest.raises(ValueError, match="row 1: 64 tokens .* context of 64 .*Once upon"):
        sampler.submit(rows)
    assert list(sampler) == []  # and nothing of the call was queued


def test_an_empty_prompt_is_an_error_that_names_the_row(model, prompt_only):
    with pytest.raises(ValueError, match="row 1: .*empty"):
        Sampler(model, eos_id=EOS).submit([prompt_only([1]), prompt_only([])])


def test_weights_that_changed_after_the_sampler_was_made_are_an_error(make_model, prompt_only):
    model = make_model(5)
    sampler = Sampler(model, eos_id=EOS)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.01)
    with pytest.raises(RuntimeError, match="make a new Sampler"):
        sampler.submit([prompt_only([1, 2])])


def test_an_optimizer_step_counts_as_a_change_of_weights(make_model, prompt_only):
    model = make_model(5)
    sampler = Sampler(model, eos_id=EOS)
    rows = sampler.finish([prompt_only([1, 2], 1, 5)])
    update(model, make_optimizer(model), rows, lr=1e-3)
    with pytest.raises(RuntimeError, match="make a new Sampler"):
        sampler.submit(rows)


def trained(model, row):
    update(model, make_optimizer(model), [row], lr=1e-3)


CHANGES = {
    "an optimizer step": trained,
    "a loaded state": lambda model, row: model.load_state_dict({k: v * 1.01 for k, v in model.state_dict().items()}),
    "replaced weights": lambda model, row: model.load_state_dict(
        {k: v * 1.01 for k, v in model.state_dict().items()}, assign=True
    ),
    "one weight": lambda model, row: setattr(
        model.model.norm, "weight", torch.nn.Parameter(1.01 * model.model.norm.weight.detach())
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_weights_that_change_between_two_rows_are_an_error_however_they_change(make_model, ragged, change):
    """The rows that are still live have keys of the old weights: going on would mix two policies in one row."""
    model = make_model(5)
    sampler = Sampler(model, eos_id=EOS)
    sampler.submit(ragged(6))
    row = next(sampler)
    CHANGES[change](model, row)
    with pytest.raises(RuntimeError, match="make a new Sampler"):
        next(sampler)


def test_weights_that_change_while_generate_runs_are_an_error(make_model, ragged):
    model = make_model(5)

    def on_stop(row):
        trained(model, row)
        return []

    with pytest.raises(RuntimeError, match="make a new Sampler"):
        generate(Sampler(model, eos_id=EOS), ragged(6), on_stop)


@pytest.mark.parametrize(
    "options", [{"temperature": -0.1}, {"top_p": 0.0}, {"top_p": 1.1}, {"max_rows": 0}], ids=lambda o: str(*o)
)
def test_settings_out_of_range_are_an_error(model, options):
    with pytest.raises(ValueError, match=str(*options)):
        Sampler(model, eos_id=EOS, **options)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_must_go_on_draws_from_what_is_left_without_its_stops(model, ragged, copy_rows, temperature):
    """No stop before `min_tokens` tokens; until then the log-prob is that of the distribution without stops."""
    stops = (0, 7, 11, 3, 4)
    rows = ragged(60, seed=21)
    for row in rows[::2]:
        row.min_tokens = len(row.tokens) + 3
    free = sample(model, copy_rows(rows), stop_ids=stops, temperature=temperature)
    sample(model, rows, stop_ids=stops, temperature=temperature)
    held = 0
    for row, unhindered in zip(rows, free, strict=True):
        assert all(token not in stops for token in row.tokens[row.prompt_len : row.min_tokens - 1])
        if not row.min_tokens:
            assert contents([row]) == contents([unhindered])
            continue
        held += unhindered.stop_reason != "length" and len(unhindered.response) < 3
        with torch.no_grad():
            logits = model(torch.tensor([row.tokens]))[0, row.prompt_len - 1].float()
        logits[list(stops)] = -torch.inf
        expected = (logits / (temperature or 1)).log_softmax(-1)[row.response[0]]
        assert row.logprobs[row.prompt_len] == pytest.approx(expected.item(), abs=1e-4)
    assert held > 5


# ------------------------------------------------------------------------------------------------------ stop texts


@pytest.fixture(scope="module")
def pairs():
    """A byte-pair vocabulary: "</b>" is one token, and may be spelled by others; some tokens reach beyond it."""
    tokens = [
        "<eos>",
        "<",
        "/",
        "b",
        ">",
        "a",
        " ",
        "</",
        "b>",
        "</b",
        "</b>",
        "b>a",
        ">a",
        "a<",
        "ab",
        "</b>a",
        "é",
        "ba",
    ]
    merges = [("<", "/"), ("b", ">"), ("</", "b"), ("</b", ">"), ("b>", "a"), (">", "a"), ("a", "<"), ("a", "b"),
              ("</b>", "a"), ("b", "a")]  # fmt: skip
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(["<eos>"])
    return TextTokenizer(backend, "<eos>")


def written(model, rows, pairs, **options):
    return Sampler(model, pairs, **options).finish(rows)


def first_stop(pairs, response, text="</b>"):
    """Tokens of a response up to the one that completes the text first, or None."""
    counts = [pairs.decode(response[:t]).count(text) for t in range(len(response) + 1)]
    return next((t for t in range(1, len(counts)) if counts[t] > counts[t - 1]), None)


@pytest.fixture(scope="module")
def speller(make_model, pairs):
    """A model of that vocabulary that likes the pieces of "</b>", and seldom its EOS."""
    model = make_model(31, vocab_size=pairs.vocab_size, tie_word_embeddings=False)
    hidden = model.hidden

    def biased(tokens, *context):  # one more direction of the hidden state, always on, for a bias of the head
        out = hidden(tokens, *context).clone()
        out[..., 0] = 1.0
        return out

    with torch.no_grad():
        model.lm_head.weight.mul_(0.5)
        model.lm_head.weight[:, 0] = 0.0
        model.lm_head.weight[[7, 3, 4], 0] = 3.5
        model.lm_head.weight[[8, 9, 10, 15], 0] = 2.5
        model.lm_head.weight[0, 0] = -3.0
    model.hidden = biased
    return model


def spelled(prompt_only, count=80, budget=24, seed=0):
    return [prompt_only([5, 6], seed=1000 * seed + i, max_new_tokens=budget) for i in range(count)]


def test_a_stop_text_ends_a_row_however_it_is_spelled_and_is_not_cut_from_it(speller, pairs, prompt_only):
    rows, free = spelled(prompt_only), spelled(prompt_only)
    written(speller, rows, pairs, stop=("</b>",))
    written(speller, free, pairs)
    spellings, beyond = set(), 0
    for row, unhindered in zip(rows, free, strict=True):
        cut = first_stop(pairs, unhindered.response)
        assert row.response == unhindered.response[:cut]
        assert row.stop_reason == ("stop" if cut else unhindered.stop_reason)
        assert row.loss_mask[row.prompt_len :] == [True] * len(row.response)
        if cut:
            text = pairs.decode(row.response)
            beyond += not text.endswith("</b>")
            start = max(t for t in range(cut) if "</b>" in pairs.decode(row.response[t:]))
            spellings.add(tuple(row.response[start:]))
    assert (10,) in spellings and (15,) in spellings  # one token for all of it, and one that holds more
    assert any(len(spelling) == 2 for spelling in spellings) and any(len(spelling) > 2 for spelling in spellings)
    assert beyond > 0


def test_a_token_that_only_could_have_completed_the_text_is_not_handed_out(speller, pairs, prompt_only):
    """ ">" behind anything but "</b" goes on inside the sampler, so nobody sees the row before it really stops."""
    rows = spelled(prompt_only, seed=1)
    sampler = Sampler(speller, pairs, stop=("</b>",))
    sampler.submit(rows)
    handed_out = list(sampler)
    assert sorted(map(id, handed_out)) == sorted(map(id, rows))  # each of them once
    candidates = set(may_complete(pairs, "</b>"))
    assert {4, 8, 10, 11, 12, 15} <= candidates and not {0, 1, 2, 5, 6, 7, 9, 16} & candidates
    assert sum(token in candidates for row in rows for token in row.response[:-1]) > 20


def test_at_the_budgets_end_a_row_says_whether_it_completed_the_text_or_was_cut(speller, pairs, prompt_only):
    """Its last token is allowed to complete the text; one that only could have is a cut."""
    free = written(speller, spelled(prompt_only, seed=2), pairs)
    cuts = [(i, cut) for i, row in enumerate(free) if (cut := first_stop(pairs, row.response))]
    assert len(cuts) > 20
    for budget_of, reason in ((lambda cut: cut, "stop"), (lambda cut: cut - 1, "length")):
        rows = spelled(prompt_only, seed=2)
        kept = [(rows[i], budget_of(cut)) for i, cut in cuts if budget_of(cut)]
        for row, budget in kept:
            row.max_new_tokens = budget
        written(speller, [row for row, _ in kept], pairs, stop=("</b>",))
        assert {row.stop_reason for row, _ in kept} == {reason}
        assert all(len(row.response) == budget for row, budget in kept)


def test_min_tokens_keeps_a_stop_text_from_being_completed(speller, pairs, prompt_only):
    rows = spelled(prompt_only, seed=3)
    for row in rows:
        row.min_tokens = row.prompt_len + 6
    written(speller, rows, pairs, stop=("</b>",))
    candidates = set(may_complete(pairs, "</b>")) | {0}
    early = 0
    for row in rows:
        assert not candidates & set(row.response[:6])
        early += len(row.response) == 7
    assert early > 5  # and right behind it they may
    blocked = recomputed_without(speller, rows[0], candidates)
    assert rows[0].logprobs[rows[0].prompt_len] == pytest.approx(blocked, abs=1e-4)


def recomputed_without(model, row, tokens):
    """The log-prob of the row's first sampled token, from the distribution without `tokens`."""
    with torch.no_grad():
        logits = model(torch.tensor([row.tokens[: row.prompt_len]]))[0, -1].float()
    logits[list(tokens)] = -torch.inf
    return logits.log_softmax(-1)[row.response[0]].item()


@given(order=st.permutations(range(12)), max_rows=st.integers(1, 13), seed=st.integers(4, 6))
def test_with_stop_texts_too_a_sample_depends_on_no_neighbour(speller, pairs, prompt_only, order, max_rows, seed):
    rows, alone = spelled(prompt_only, 12, seed=seed), spelled(prompt_only, 12, seed=seed)
    for one in (rows, alone):
        for row in one[::3]:
            row.min_tokens = 5
    for row in alone:
        written(speller, [row], pairs, stop=("</b>", "aa"))
    written(speller, [rows[i] for i in order], pairs, stop=("</b>", "aa"), max_rows=max_rows)
    assert contents(rows) == contents(alone)


def test_a_row_that_stopped_at_a_text_goes_on_to_the_next_one_as_if_it_had_never_stopped(speller, pairs, prompt_only):
    rows, free = spelled(prompt_only, seed=7), spelled(prompt_only, seed=7)
    sampler = Sampler(speller, pairs, stop=("</b>",))
    sampler.submit(rows)
    stops = 0
    for row in sampler:
        if row.stop_reason == "stop" and len(row.response) < row.max_new_tokens:
            stops += 1
            sampler.submit([row])
    written(speller, free, pairs)
    assert stops > 40
    assert [row.tokens for row in rows] == [row.tokens for row in free]
    assert sum(pairs.decode(row.response).count("</b>") > 1 for row in rows) > 5


@given(st.lists(st.integers(1, 17), max_size=12), st.sampled_from(["</b>", "b>", "a", "é", " a", "<a"]))
def test_the_last_token_of_a_text_is_always_among_those_that_may_complete_it(pairs, response, text):
    stop = first_stop(pairs, response, text)
    complete = [t for t in range(1, len(response) + 1) if completes(pairs, response[:t], (text,))]
    assert complete[:1] == ([stop] if stop else [])
    assert all(response[t - 1] in may_complete(pairs, text) for t in complete)


def test_texts_of_a_vocabulary_of_words_stop_with_the_word_and_with_its_neighbours(make_model, prompt_only):
    words = word_tokenizer(["so", "</t>", "x", "y"])
    model = make_model(3, vocab_size=words.vocab_size)
    rows = [prompt_only([1, 3], seed, 30) for seed in range(200)]
    Sampler(model, words, stop=("x </t>", "</t> </t>"), temperature=3.0).finish(rows)
    ends = [row.response[-2:] for row in rows if row.stop_reason == "stop"]
    assert [3, 2] in ends and [2, 2] in ends
    assert all(end in ([3, 2], [2, 2]) for end in ends)


# -------------------------------------------------------------------------------------------------------- generate


def test_without_a_rule_generate_is_sampling_to_the_end(model, ragged, copy_rows):
    rows = ragged(20, seed=30)
    twins = copy_rows(rows)
    returned = generate(Sampler(model, eos_id=EOS, max_rows=4), rows)
    assert all(a is b for a, b in zip(returned, rows, strict=True))
    assert contents(rows) == contents(sample(model, twins))


def test_generate_goes_on_with_what_on_stop_returns_and_returns_the_first_rows_in_order(model, prompt_only):
    """Each row is kept from stopping twice, by a word; every row is asked until nothing is returned."""
    rows = [prompt_only([1, 2, 3], seed, 25) for seed in range(12)]
    asked = Counter()

    def on_stop(row):
        asked[id(row)] += 1
        if asked[id(row)] > 2 or row.stop_reason == "length":
            return []
        row.retract()
        row.force([9, 9])
        return [row] if len(row.response) < 25 else []

    returned = generate(Sampler(model, eos_id=EOS, max_rows=5), rows, on_stop)
    assert all(a is b for a, b in zip(returned, rows, strict=True))
    assert set(asked) == set(map(id, rows)) and max(asked.values()) == 3
    for row in rows:
        assert row.loss_mask.count(False) - row.prompt_len <= 4
        forced = [t for t, counted in enumerate(row.loss_mask) if not counted and t >= row.prompt_len]
        assert all(row.tokens[t] == 9 and row.logprobs[t] == 0.0 for t in forced)
        for t in range(row.prompt_len, len(row.tokens)):
            if row.loss_mask[t]:
                assert recomputed(model, row, 1.0)[t].item() == pytest.approx(row.logprobs[t], abs=1e-4)


def test_rows_that_on_stop_spawns_are_sampled_too_and_their_parent_waits_for_them(model, prompt_only):
    """A parent that stops at token 7 spawns two children, takes in what they say as context, and goes on."""
    parents = [prompt_only([1, 2], seed, 30) for seed in range(40)]
    open_children: dict[int, list] = {}
    children = []

    def on_stop(row):
        if row.parent is not None:
            waiting = open_children[id(row.parent)]
            waiting.remove(row)
            row.parent.force(row.response[:1])
            joined = not waiting and len(row.parent.response) < 30
            return [row.parent] if joined else []
        if row.stop_reason != "stop" or len(row.response) > 20:
            return []
        spawned = [prompt_only([3, k], seed_of(row.seed, row.draws, k), 4) for k in (4, 5)]
        for child in spawned:
            child.parent = row
        children.extend(spawned)
        open_children[id(row)] = list(spawned)
        return spawned

    returned = generate(Sampler(model, eos_id=EOS, stop_ids=(7,), max_rows=3), parents, on_stop)
    assert all(a is b for a, b in zip(returned, parents, strict=True))
    assert len(children) > 10 and not any(open_children.values())
    for child in children:
        assert child.stop_reason and child.root in parents
        twin = prompt_only(child.tokens[: child.prompt_len], child.seed, 4)
        sample(model, [twin], stop_ids=(7,))
        assert contents([child]) == contents([twin])  # beside others or alone
    assert any(row.loss_mask[row.prompt_len :].count(False) >= 4 for row in parents)
