"""What training changed: KL, ranks, words, hidden states and indices, against hand-made cases and brute force."""

import math

import numpy as np
import pytest
import torch

from nanoreason import analysis, learn
from nanoreason.analysis import (
    TokenShifts,
    compared,
    is_structure,
    pca_shift,
    pooled_states,
    shifted_words,
    style_leak_rate,
    token_shifts,
)
from nanoreason.evaluate import (
    NEAR_ZERO,
    forgetting,
    pooled_sigma,
    relative_gain,
    transferability,
    undefined,
    weighted_gain,
)
from nanoreason.model import Transformer, small_config
from nanoreason.rollout import Problem, Rollout
from nanoreason.sampler import Sampler, generate
from nanoreason.tokenizer import word_tokenizer


def logs(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows).log()


# ---------------------------------------------------------------------------------------------------- distributions


def test_kl_both_ways_ratio_and_ranks_of_hand_made_distributions():
    base, policy = logs([0.5, 0.25, 0.25], [0.7, 0.2, 0.1]), logs([0.25, 0.25, 0.5], [0.7, 0.2, 0.1])
    token, kl, reverse, ratio, base_rank, policy_rank = compared(base, policy, torch.tensor([0, 2]))
    assert token.tolist() == [0, 2]
    # .25 ln(1/2) + .25 ln 1 + .5 ln 2, and the same the other way round, as it happens
    assert kl.tolist() == pytest.approx([0.25 * math.log(2), 0.0], abs=1e-6)
    assert reverse.tolist() == pytest.approx([0.25 * math.log(2), 0.0], abs=1e-6)
    assert ratio.tolist() == pytest.approx([-math.log(2), 0.0], abs=1e-6)
    assert base_rank.tolist() == [0, 2] and policy_rank.tolist() == [1, 2]


def test_the_two_directions_differ_and_each_is_what_its_name_says():
    base, policy = logs([0.5, 0.5]), logs([0.9, 0.1])
    _, kl, reverse, *_ = compared(base, policy, torch.tensor([0]))
    assert kl.item() == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2), abs=1e-6)
    assert reverse.item() == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(5), abs=1e-6)


def test_every_sampled_token_is_compared_as_one_uncached_pass_has_it(make_model, finished):
    base, policy, rows = make_model(1), make_model(2), finished(7, 3)
    shifts = token_shifts(base, policy, rows, micro_tokens=60)
    expected = []
    for i, row in enumerate(rows):
        p, q = (model(torch.tensor([row.tokens]))[0].double().log_softmax(-1).detach().numpy()
                for model in (base, policy))  # fmt: skip
        for t in range(1, len(row.tokens)):
            if row.loss_mask[t]:
                a, b, y = p[t - 1], q[t - 1], row.tokens[t]
                ranks = [sorted(x, reverse=True).index(x[y]) for x in (a, b)]
                expected.append([i, y, (np.exp(b) * (b - a)).sum(), (np.exp(a) * (a - b)).sum(), b[y] - a[y], *ranks])
    found = [value.double().numpy() for value in shifts]
    assert len(expected) == sum(sum(row.loss_mask) for row in rows)
    np.testing.assert_allclose(np.array(found).T, np.array(expected), atol=2e-4)
    assert shifts.rank_shift.tolist() == [int(line[5] - line[6]) for line in expected]
    assert min(shifts.kl.min(), shifts.reverse_kl.min()) > -1e-5
    of_rows = [[line[2] for line in expected if line[0] == i] for i in range(len(rows))]
    assert shifts.per_row(shifts.kl) == pytest.approx([np.mean(some) for some in of_rows], abs=2e-4)


def test_a_policy_is_no_step_away_from_itself(model, finished):
    shifts = token_shifts(model, model, finished(4))
    assert shifts.kl.abs().max() < 1e-6 and shifts.log_ratio.abs().max() == 0 and not shifts.rank_shift.any()


def test_chunks_of_positions_change_nothing(make_model, finished, monkeypatch):
    base, policy, rows = make_model(1), make_model(2), finished(5)
    whole = token_shifts(base, policy, rows)
    monkeypatch.setattr(learn, "CHUNK_LOGITS", 3 * base.config.vocab_size)
    for one, other in zip(whole, token_shifts(base, policy, rows), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_no_more_logits_are_held_than_the_chunk_has_with_fifty_thousand_words(monkeypatch):
    vocab = 50_000
    base, policy = (Transformer(small_config(8, 1, 1, vocab, 64), seed=seed) for seed in (0, 1))
    rows = [row_of([1, 2, *range(100 + 40 * i, 140 + 40 * i)]) for i in range(3)]
    monkeypatch.setattr(learn, "CHUNK_LOGITS", 10 * vocab)
    shapes, compared_before = [], compared

    def watched(a, b, targets):
        shapes.append(tuple(a.shape))
        return compared_before(a, b, targets)

    monkeypatch.setattr(analysis, "compared", watched)
    assert len(token_shifts(base, policy, rows).kl) == 120
    assert max(shapes) == (10, vocab) and sum(m for m, _ in shapes) == 120


def test_ids_without_a_token_have_no_probability(make_model, finished):
    base, policy, rows = make_model(1), make_model(2), finished(3)
    full = token_shifts(base, policy, rows)
    for model in (base, policy):
        model.no_token = torch.arange(24) == 5
    rows = [row for row in rows if 5 not in row.tokens] or rows
    less = token_shifts(base, policy, rows)
    assert torch.isfinite(less.kl).all() and less.kl.sum() != full.kl.sum()
    assert less.base_rank.max() <= 22


def test_the_mean_log_ratio_of_samples_comes_near_the_exact_kl(make_model, prompt_only):
    base, policy = make_model(1), make_model(1)
    noise = torch.randn(policy.lm_head.weight.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        policy.lm_head.weight += 0.05 * noise
    rows = [prompt_only([3, 4], seed=i, max_new_tokens=30) for i in range(150)]
    tokenizer = word_tokenizer([f"w{i}" for i in range(23)])
    generate(Sampler(policy, tokenizer, temperature=1.0), rows)
    shifts = token_shifts(base, policy, rows)
    error = (shifts.log_ratio - shifts.kl).double()
    assert shifts.mean(shifts.kl) > 0.005
    assert abs(error.mean()) < 4 * error.std() / math.sqrt(len(error))
    assert error.std() > shifts.kl.double().std()  # the noise of one sample: the reason to sum over the vocabulary


def test_other_vocabularies_are_one_line(make_model, finished):
    with pytest.raises(ValueError, match="vocabularies of 24 and 25 tokens"):
        token_shifts(make_model(1), make_model(1, vocab_size=25), finished(2))
    assert token_shifts(make_model(1), make_model(2), []).kl.shape == (0,)


# ------------------------------------------------------------------------------------------------------------ words


def row_of(tokens: list[int]) -> Rollout:
    mask = [False, False] + [True] * (len(tokens) - 2)
    return Rollout(Problem("", ""), tokens, mask, [0.0] * len(tokens), 2)


def test_words_are_ordered_by_all_the_places_they_gained_and_classed_by_the_bases_rank():
    tokenizer = word_tokenizer(["wait", "7", "cat", "="])  # ids 1, 2, 3, 4
    token = torch.tensor([1, 1, 2, 3, 2, 4])
    base_rank = torch.tensor([4, 1, 0, 2, 3, 0])
    policy_rank = torch.tensor([0, 0, 0, 3, 0, 9])
    nothing = torch.zeros(6)
    words = shifted_words(TokenShifts(token * 0, token, nothing, nothing, nothing, base_rank, policy_rank), tokenizer)
    assert [(w.word, w.structure, w.count, w.classes, w.gained) for w in words] == [
        ("wait", True, 2, (0, 1, 1), 5),
        ("7", False, 2, (1, 0, 1), 3),
        ("cat", False, 1, (0, 1, 0), 0),  # it lost a place, which is no gain
        ("=", True, 1, (1, 0, 0), 0),
    ]


@pytest.mark.parametrize("word", ["<think>", "</answer>", "<|endoftext|>", "=", "\n", ",", "Wait", "ĠWait", "hmm,", ""])
def test_tags_signs_and_steering_words_are_structure(word):
    assert is_structure(word)


@pytest.mark.parametrize("word", ["7", "##3", "42", "apples", "Ġcat", "a", "<3", "no1"])
def test_numbers_and_names_are_content(word):
    assert not is_structure(word)


# ---------------------------------------------------------------------------------------------------- hidden states


def test_pooled_states_are_means_over_a_texts_own_tokens_never_over_padding(model):
    texts = [[3], [4, 5, 6, 7, 8, 9], [1, 2, 3]]
    pooled = pooled_states(model, texts)
    assert pooled.shape == (3, 3, 32)
    for i, text in enumerate(texts):
        alone = pooled_states(model, [text])
        torch.testing.assert_close(pooled[:, i], alone[:, 0], atol=1e-6, rtol=1e-5)
        embedded = model.model.embed_tokens.weight[torch.tensor(text)].detach().double().mean(0)
        torch.testing.assert_close(pooled[0, i], embedded)
    # what the last block says, after the norm, is what `hidden` returns
    tokens = torch.tensor([[3]])
    torch.testing.assert_close(model.model.norm(pooled[-1, :1].float()), model.hidden(tokens)[0], atol=1e-5, rtol=1e-4)
    assert not any(block._forward_hooks for block in model.model.layers)
    with pytest.raises(ValueError, match="a text without a token"):
        pooled_states(model, [[1], []])


def test_pca_shift_equals_that_of_the_covariance_matrix():
    draw = np.random.default_rng(0)
    base = draw.normal(size=(2, 9, 5)) * [4, 3, 1, 0.5, 0.1]
    policy = base + draw.normal(size=(2, 1, 5))
    shift = pca_shift(torch.tensor(base), torch.tensor(policy))
    for layer in range(2):
        values, vectors = np.linalg.eigh(np.cov(base[layer].T))
        move = (policy[layer].mean(0) - base[layer].mean(0)) @ vectors[:, -2:]
        assert shift.distances[layer] == pytest.approx(np.linalg.norm(move))
        assert shift.relative[layer] == pytest.approx(np.linalg.norm(move) / np.sqrt(values[-2:].sum()))
    assert shift.distance == pytest.approx(sum(shift.distances) / 2)


def test_layers_that_move_apart_do_not_cancel_where_norms_are_taken_first():
    flat = torch.tensor([[[-2.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, -1.0]]] * 2, dtype=torch.float64)
    moved = flat + torch.tensor([[[3.0, 0.0]], [[-3.0, 0.0]]], dtype=torch.float64)
    shift = pca_shift(flat, moved)
    assert shift.distances == pytest.approx((3.0, 3.0)) and shift.distance == pytest.approx(3.0)
    assert shift.of_means == pytest.approx(0.0)  # the paper's measure sees nothing
    assert shift.relative == pytest.approx((3 / math.sqrt(10 / 3),) * 2)  # variances 8/3 and 2/3
    assert pca_shift(flat, flat).distance == 0
    still = torch.zeros_like(flat)
    assert pca_shift(still, still).relative == (0.0, 0.0)
    with pytest.raises(ValueError, match="three texts at least"):
        pca_shift(flat[:, :2], flat[:, :2])


def test_a_move_that_no_component_has_is_not_seen():
    base = torch.tensor([[[-2.0, 0, 0], [2.0, 0, 0], [0, 1.0, 0], [0, -1.0, 0]]], dtype=torch.float64)
    assert pca_shift(base, base + torch.tensor([0, 0, 5.0])).distance == pytest.approx(0.0, abs=1e-9)


# ---------------------------------------------------------------------------------------------------------- indices


def test_transferability_by_hand():
    target = relative_gain([0.2], [0.5])  # 1.5
    other = relative_gain([0.5, 0.4], [0.25, 0.6])  # (-.5 + .5) / 2
    assert (target, other) == (pytest.approx(1.5), pytest.approx(0.0))
    assert transferability(relative_gain([0.8], [0.2]), target, NEAR_ZERO) == pytest.approx(-50.0)
    # d = 25 and -16 at sigma 1 point; weights .8 / 1.2 and .4 / 1.2
    gain = weighted_gain([0.2, 0.6], [0.45, 0.44], 1.0)
    assert gain == pytest.approx((0.8 * 5 - 0.4 * 4) / 1.2)
    assert weighted_gain([0.2, 0.6], [0.45, 0.44], 4.0) == pytest.approx(gain / 2)


def test_an_index_is_undefined_where_its_denominator_is_near_zero():
    assert transferability(0.5, 0.19) is None and transferability(0.5, 0.2) == pytest.approx(250)
    assert transferability(0.5, -1.0) is None  # the target got worse: the ratio's sign would mean nothing
    assert relative_gain([0.0, 0.5], [0.5, 0.5]) is None and relative_gain([], []) is None
    assert weighted_gain([1.0], [0.5], 3.0) is None and weighted_gain([0.5], [0.6], 0.0) is None
    assert undefined(transferability(0.5, 0.0)) == "undefined" and undefined(-104.12) == "-104.1"


def test_what_the_base_solves_in_full_has_no_weight_in_version_two():
    assert weighted_gain([0.5, 1.0], [0.5, 0.0], 1.0) == 0
    assert forgetting([0.5, 1.0], [0.5, 0.0]) == 0.5


def test_sigma_is_pooled_over_models():
    assert pooled_sigma([([0.5], [0.6]), ([0.5], [0.4])]) == pytest.approx(10.0)
    assert pooled_sigma([([0.5, 0.5], [0.6, 0.6])]) == pytest.approx(0.0, abs=1e-9) and pooled_sigma([]) == 0


def test_style_leaks_are_whole_words_in_any_case():
    said = ["CHECK 4", "checked 4", "4 </think>", "", "wait, 4"]
    assert style_leak_rate(said, ["check"]) == 0.2
    assert style_leak_rate(said, ["check", "</think>", "wait"]) == 0.6
    assert style_leak_rate(said, []) == style_leak_rate([], ["check"]) == 0.0
