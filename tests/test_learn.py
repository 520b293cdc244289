"""The learner: one gradient for every cut, the right sign everywhere, clipping, KL, averages, masks, errors."""

import copy
import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanoreason import learn
from nanoreason.learn import (
    clipped_policy_loss,
    collate,
    fit,
    group_advantages,
    in_epochs,
    kl_estimate,
    make_optimizer,
    micro_batches,
    sft_loss,
    token_logprobs,
    token_weights,
    update,
)
from nanoreason.optim import SGD
from nanoreason.recipes import sft
from nanoreason.recipes.grpo import over_updates
from nanoreason.rollout import Problem, Rollout, demonstration
from nanoreason.run import learning_rate
from nanoreason.tasks.addition import Addition, tokenizer

CPU = torch.device("cpu")


def policy_loss(logprobs, batch):
    return clipped_policy_loss(logprobs, batch.old_logprobs, batch.advantages)


def with_true_logprobs(model, rows, temperature=1.0):
    """The rows, with the log-probs that this model gives them: as if it had just sampled them."""
    for row in rows:
        batch = collate([row], token_weights([row]), CPU)
        with torch.no_grad():
            row.logprobs = token_logprobs(model, batch.tokens, batch.loss_mask, temperature)[0].tolist()
    return rows


def gradient_of(model, rows, loss_of, **options):
    """The gradient of one update, by weight; the model stays as it was."""
    model = copy.deepcopy(model)
    update(model, SGD(model), rows, loss_of, lr=0.0, max_grad_norm=math.inf, **options)
    return {name: parameter.grad for name, parameter in model.named_parameters()}


# ------------------------------------------------------------------------------------ work that need not be done


def groups_of(model, prompts: int, rows: int, kinds=(7, 9)) -> list[Rollout]:
    """Groups of ragged responses to prompts of about 20 tokens."""
    draw, found = torch.Generator().manual_seed(5), []

    def tokens(count: int) -> list[int]:
        return torch.randint(3, model.config.vocab_size, (count,), generator=draw).tolist()

    for p in range(prompts):
        prompt = tokens(20 + p % 2)
        for i in range(rows):
            row = Rollout(Problem("", ""), list(prompt), [False] * len(prompt), [0.0] * len(prompt), len(prompt))
            row.force(tokens(i % 2))  # as after a word that was forced right behind the prompt
            for token in tokens(kinds[i % len(kinds)]):
                row.sampled(token, -1.0)
            row.advantage = (-1.0) ** i
            found.append(row)
    return found


def assert_same(found: dict, expected: dict) -> None:
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-5 * max(1, gradient.abs().max())), name


def reads(monkeypatch, model) -> list[int]:
    """Tokens (rows * columns) of each call of `hidden`."""
    read, hidden = [], type(model).hidden

    def counted(self, tokens, *more):
        read.append(tokens.numel())
        return hidden(self, tokens, *more)

    monkeypatch.setattr(type(model), "hidden", counted)
    return read


@pytest.mark.parametrize("shape", [{}, {"num_key_value_heads": 2}, {"model_type": "qwen3"}])
def test_a_prompt_that_rows_share_is_read_once_and_nothing_else_changes(make_model, monkeypatch, shape):
    model = make_model(4, **shape)
    rows = groups_of(model, prompts=3, rows=4)
    batch = collate(rows, token_weights(rows), CPU)
    read = reads(monkeypatch, model)
    shared = (
        gradient_of(model, rows, policy_loss, entropy_coef=0.01),
        token_logprobs(model, batch.tokens, batch.loss_mask),
    )
    T = batch.tokens.shape[1] - 1
    assert read[:2] == [3 * 19, 12 * (T - 19)]  # up to the last token of the shortest prompt
    monkeypatch.setattr(learn, "states_of", lambda model, tokens, mask: model.hidden(tokens))
    plain = (
        gradient_of(model, rows, policy_loss, entropy_coef=0.01),
        token_logprobs(model, batch.tokens, batch.loss_mask),
    )
    assert read[-1] == 12 * T
    assert torch.allclose(shared[1], plain[1], atol=1e-5)
    assert_same(shared[0], plain[0])


def test_rows_that_share_little_are_read_as_they_are(make_model, monkeypatch):
    model = make_model(4)
    read = reads(monkeypatch, model)
    for rows in (groups_of(model, prompts=6, rows=1), groups_of(model, prompts=1, rows=4, kinds=(41,))):
        batch = collate(rows, token_weights(rows), CPU)
        token_logprobs(model, batch.tokens, batch.loss_mask)
        assert read.pop() == len(rows) * (batch.tokens.shape[1] - 1) and not read
    mask = torch.ones(2, 5, dtype=torch.bool)  # nothing before what counts
    assert token_logprobs(model, torch.ones(2, 5, dtype=torch.int64), mask).shape == (2, 5)


def test_rows_without_a_gradient_cost_no_backward_pass_and_are_measured_all_the_same(make_model, monkeypatch):
    model, rows = make_model(4), groups_of(make_model(4), prompts=3, rows=4)
    for row in rows[4:8]:
        row.advantage = 0.0
    backward, passed = torch.Tensor.backward, []
    monkeypatch.setattr(torch.Tensor, "backward", lambda self: (passed.append(1), backward(self))[1])
    seen = []

    def watched(logprobs, batch):
        seen.append(len(batch.tokens))
        return policy_loss(logprobs, batch)

    found = gradient_of(model, rows, watched)
    assert sorted(seen) == [4, 8] and len(passed) == 1
    monkeypatch.setattr(learn, "by_advantage", lambda rows: (list(range(len(rows))), []))
    whole = gradient_of(model, rows, policy_loss)
    assert_same(found, whole)
    monkeypatch.undo()
    for row in rows:
        row.advantage = 0.0
    assert all(gradient.eq(0).all() for gradient in gradient_of(model, rows, policy_loss).values())


@pytest.mark.parametrize("more", [{"entropy_coef": 0.1}, {"loss": "kl"}, {"loss": "sft"}])
def test_rows_without_an_advantage_still_move_what_does_not_hang_on_it(make_model, monkeypatch, more):
    """The entropy bonus, the pull to a reference, and demonstrations, of which none has an advantage."""
    model, rows = make_model(4), groups_of(make_model(4), prompts=2, rows=4)
    for row in rows[4:] if more.get("loss") != "sft" else rows:
        row.advantage = 0.0
    for row in rows:
        row.ref_logprobs = [-2.0] * len(row.tokens)
    loss = {"kl": learn.Algorithm(kl_coef=0.3), "sft": sft_loss, None: policy_loss}[more.get("loss")]
    options = {"entropy_coef": more.get("entropy_coef")}
    found = gradient_of(model, rows, loss, **options)
    monkeypatch.setattr(learn, "by_advantage", lambda rows: (list(range(len(rows))), []))
    whole = gradient_of(model, rows, loss, **options)
    assert_same(found, whole)


# -------------------------------------------------------------------------------------------------------- log-probs


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_token_logprobs_are_those_of_the_softmax_at_this_temperature(model, finished, temperature):
    rows = finished(5)
    batch = collate(rows, token_weights(rows), CPU)
    with torch.no_grad():
        logprobs = token_logprobs(model, batch.tokens, batch.loss_mask, temperature)
    for i, row in enumerate(rows):
        for t, token in enumerate(row.tokens):
            expected = 0.0
            if row.loss_mask[t]:
                with torch.no_grad():
                    logits = model(torch.tensor([row.tokens[:t]]))[0, -1]
                expected = (logits / temperature).log_softmax(-1)[token].item()
            assert logprobs[i, t].item() == pytest.approx(expected, abs=1e-4)


def test_padding_and_its_value_change_nothing_even_when_it_is_the_eos(model, finished):
    """Rows end with token 0, the EOS. Padding with it or with anything else gives the same where it counts."""
    rows = finished(6)
    weights = token_weights(rows)
    results = []
    for pad_id in (0, 5):
        batch = collate(rows, weights, CPU, pad_id)
        assert batch.loss_mask.tolist() == [
            row.loss_mask + [False] * (batch.tokens.shape[1] - len(row.tokens)) for row in rows
        ]
        assert not batch.weights[~batch.loss_mask].any()
        with torch.no_grad():
            results.append(token_logprobs(model, batch.tokens, batch.loss_mask))
    assert torch.equal(*results)
    alone = [collate([row], [w], CPU) for row, w in zip(rows, weights, strict=True)]
    with torch.no_grad():
        for i, batch in enumerate(alone):
            short = token_logprobs(model, batch.tokens, batch.loss_mask)[0]
            torch.testing.assert_close(results[0][i, : len(short)], short, atol=1e-5, rtol=0)


def test_column_t_of_every_tensor_is_about_token_t(finished):
    rows = finished(4)
    batch = collate(rows, token_weights(rows), CPU)
    for i, row in enumerate(rows):
        n = len(row.tokens)
        assert batch.tokens[i, :n].tolist() == row.tokens
        assert batch.loss_mask[i, :n].tolist() == row.loss_mask
        torch.testing.assert_close(batch.old_logprobs[i, :n], torch.tensor(row.logprobs))
        assert batch.advantages[i].item() == pytest.approx(row.advantage)


# ------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("average", ["token", "sequence", "constant"])
@pytest.mark.parametrize("loss_of", [sft_loss, policy_loss])
def test_the_gradient_does_not_depend_on_the_micro_batch_size(model, finished, average, loss_of):
    rows = finished(64, longest=12)
    weights = token_weights(rows, average, constant=40)
    longest = max(len(row.tokens) for row in rows)
    lengths = [len(row.tokens) for row in rows]
    gradients = []
    for micro_tokens, most_rows in ((64 * longest, 64), (5 * longest, 64), (1, 1)):
        sizes = [len(batch) for batch in micro_batches(lengths, micro_tokens)]
        assert max(sizes) <= most_rows and (len(sizes) > 2) == (micro_tokens < 64 * longest)
        gradients.append(gradient_of(model, rows, loss_of, weights=weights, micro_tokens=micro_tokens))
    scale = max(g.abs().max().item() for g in gradients[0].values())
    for gradient in gradients[1:]:
        for name, expected in gradients[0].items():
            assert (gradient[name] - expected).abs().max() < 1e-5 * scale, name


def test_five_rows_of_equal_length_go_into_one_micro_batch_of_five_times_their_length():
    assert [len(cut) for cut in micro_batches([7] * 64, 35)] == [5] * 12 + [4]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 120))
def test_micro_batches_hold_every_row_once_within_the_budget(lengths, micro_tokens):
    cut = micro_batches(lengths, micro_tokens)
    assert sorted(i for batch in cut for i in batch) == list(range(len(lengths)))
    for batch in cut:
        assert len(batch) * max(lengths[i] for i in batch) <= micro_tokens or len(batch) == 1


def every_cut(order):
    """All ways to cut a list into consecutive parts."""
    if not order:
        yield []
    for size in range(1, len(order) + 1):
        for rest in every_cut(order[size:]):
            yield [order[:size], *rest]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=9), st.integers(1, 400))
def test_micro_batches_are_the_cheapest_of_all_cuts(lengths, micro_tokens):
    """Cost: tokens with padding, and 100 more per micro-batch. Compared with every cut of the sorted rows there is."""

    def cost(cut):
        sizes = [len(batch) * max(lengths[i] for i in batch) for batch in cut]
        allowed = all(size <= micro_tokens or len(batch) == 1 for size, batch in zip(sizes, cut, strict=True))
        return sum(sizes) + 100 * len(cut) if allowed else math.inf

    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    assert cost(micro_batches(lengths, micro_tokens)) == min(map(cost, every_cut(order)))


def test_large_budgets_are_not_cut_for_a_little_padding():
    """Where 32,768 tokens are read at once a start costs more: 128 rows of 256..511 tokens are two or three batches."""
    assert len(micro_batches([256 + 2 * i for i in range(128)], 32768)) <= 3
    assert len(micro_batches([8, 8, 200, 200], 1024)) == 2  # where a thousand are, 384 tokens of padding cost more


@pytest.mark.parametrize("average", ["token", "sequence", "constant"])
@pytest.mark.parametrize("loss_of", [policy_loss, lambda logprobs, batch: -logprobs * batch.advantages])
def test_one_step_on_a_hand_made_group_moves_right_up_and_wrong_down(make_model, prompt_only, average, loss_of):
    """One prompt, two right and two wrong responses of different lengths."""
    model = make_model(7)
    rows = [prompt_only([3, 4, 5]) for _ in range(4)]
    for row, response in zip(rows, ([6, 7, 0], [8, 0], [9, 10, 0], [11, 12, 13, 0]), strict=True):
        for token in response:
            row.sampled(token, 0.0)
    with_true_logprobs(model, rows)
    for row, advantage in zip(rows, group_advantages([[1.0, 1.0, 0.0, 0.0]])[0], strict=True):
        row.advantage = advantage
    before = [sum(row.logprobs) for row in rows]
    weights = token_weights(rows, average, constant=8)
    update(model, SGD(model), rows, loss_of, lr=0.01, weights=weights)
    after = [sum(row.logprobs) for row in with_true_logprobs(model, rows)]
    assert all(b > a for a, b in zip(before[:2], after[:2], strict=True))
    assert all(b < a for a, b in zip(before[2:], after[2:], strict=True))


def test_sft_makes_its_demonstrations_more_likely_and_nothing_else_is_its_loss(make_model, finished):
    model = make_model(8)
    rows = with_true_logprobs(model, finished(8))
    nll = -sum(sum(row.logprobs) for row in rows) / sum(sum(row.loss_mask) for row in rows)
    metrics = update(model, make_optimizer(model), rows, lr=1e-3, micro_tokens=50)
    assert metrics["loss"] == pytest.approx(nll, rel=1e-4)
    assert metrics["num_tokens"] == sum(sum(row.loss_mask) for row in rows)
    assert update(model, make_optimizer(model), rows, lr=0.0)["loss"] < nll


def test_the_temperature_of_the_update_is_that_of_its_logprobs(model, finished):
    """On the policy's own rows the ratio is 1, so the loss is minus the mean advantage; at other temperatures not."""
    rows = with_true_logprobs(model, finished(6), temperature=0.7)
    counts = [sum(row.loss_mask) for row in rows]
    expected = -sum(row.advantage * count for row, count in zip(rows, counts, strict=True)) / sum(counts)

    def loss_at(temperature):
        frozen = copy.deepcopy(model)
        optimizer = make_optimizer(frozen)
        return update(frozen, optimizer, rows, policy_loss, lr=0.0, temperature=temperature)["loss"]

    assert loss_at(0.7) == pytest.approx(expected, abs=1e-4)
    assert abs(loss_at(1.0) - expected) > 1e-2


# --------------------------------------------------------------------------------------------------- clipped losses

CLIPS = {
    "none": {"clip_low": math.inf, "clip_high": math.inf},
    "ppo": {"clip_low": 0.2, "clip_high": 0.2},
    "dapo": {"clip_low": 0.2, "clip_high": 0.28},
    "tight": {"clip_low": 0.0, "clip_high": 0.0},
}


def test_with_one_update_per_rollout_all_clip_variants_are_bit_identical(model, finished):
    """Where the ratio is exactly 1 clipping does nothing, and the gradient is that of -A * log-prob."""
    rows = finished(10)

    def gradient(loss_of):
        return gradient_of(model, rows, loss_of)

    def variant(clip):
        return lambda logprobs, batch: clipped_policy_loss(logprobs, logprobs.detach(), batch.advantages, **clip)

    plain = gradient(lambda logprobs, batch: -batch.advantages * (logprobs - logprobs.detach()).exp())
    score = gradient(lambda logprobs, batch: -batch.advantages * logprobs)
    for name in ("none", "ppo", "dapo"):
        for weight, value in gradient(variant(CLIPS[name])).items():
            assert torch.equal(value, plain[weight]), (name, weight)
    for weight, value in plain.items():
        torch.testing.assert_close(value, score[weight])


def policy_gradient_of(logprob: float, old: float, advantage: float, **clip) -> float:
    """d loss / d log-prob of one token."""
    x = torch.tensor([[logprob]], dtype=torch.float64, requires_grad=True)
    old, advantage = torch.tensor([[old]], dtype=torch.float64), torch.tensor([[advantage]], dtype=torch.float64)
    clipped_policy_loss(x, old, advantage, **clip).sum().backward()
    return x.grad.item()


@pytest.mark.parametrize(
    ("advantage", "ratio", "stops"),
    [
        (1.0, 1.5, True),  # right, and already more likely by more than 1 + clip_high: enough
        (1.0, 0.5, False),  # right, but less likely than before: move back
        (-1.0, 1.5, False),  # wrong, and more likely than before: move back
        (-1.0, 0.5, True),  # wrong, and already less likely by more than 1 - clip_low: enough
    ],
)
def test_clipping_stops_the_gradient_only_of_moves_that_went_far_enough(advantage, ratio, stops):
    gradient = policy_gradient_of(math.log(ratio) - 1.0, -1.0, advantage, clip_low=0.2, clip_high=0.2)
    assert gradient == pytest.approx(0.0 if stops else -advantage * ratio)


@pytest.mark.parametrize(
    ("advantage", "ratio", "stops"), [(1.0, 1.25, False), (1.0, 1.35, True), (-1.0, 0.85, False), (-1.0, 0.75, True)]
)
def test_the_upper_bound_limits_right_answers_and_the_lower_bound_wrong_ones(advantage, ratio, stops):
    gradient = policy_gradient_of(math.log(ratio), 0.0, advantage, clip_low=0.2, clip_high=0.3)
    assert (gradient == 0.0) == stops


@given(
    logprob=st.floats(-3, -0.01),
    old=st.floats(-3, -0.01),
    advantage=st.floats(-2, 2),
    clip_low=st.floats(0.05, 0.5),
    clip_high=st.floats(0.05, 0.5),
)
def test_the_gradient_of_the_clipped_loss_equals_finite_differences(logprob, old, advantage, clip_low, clip_high):
    h, clip = 1e-6, {"clip_low": clip_low, "clip_high": clip_high}
    for corner in (1 - clip_low, 1 + clip_high):  # at the corners there is no derivative
        if abs(logprob - old - math.log(corner)) < 10 * h:
            return

    def loss(x):
        values = (torch.tensor([[v]], dtype=torch.float64) for v in (x, old, advantage))
        return clipped_policy_loss(*values, **clip).item()

    slope = (loss(logprob + h) - loss(logprob - h)) / (2 * h)
    assert policy_gradient_of(logprob, old, advantage, **clip) == pytest.approx(slope, abs=1e-4)


def test_the_clipped_loss_is_ratio_times_advantage_within_the_bounds_and_never_better_outside(finished):
    logprobs, old = torch.randn(2, 200, generator=torch.Generator().manual_seed(0)).unsqueeze(1)
    for advantage in (-1.5, 0.0, 2.0):
        A = torch.tensor([[advantage]])
        loss, ratio = clipped_policy_loss(logprobs, old, A, 0.2, 0.2), (logprobs - old).exp()
        inside = (ratio > 0.8) & (ratio < 1.2)
        assert inside.any() and not inside.all()
        torch.testing.assert_close(loss[inside], (-ratio * advantage)[inside])
        assert (loss >= -ratio * advantage - 1e-6).all()


def test_a_ratio_beyond_what_a_float_holds_stops_the_gradient_instead_of_spoiling_it():
    """exp(100) is inf in float32; a clipped token has gradient 0, not 0 * inf."""
    logprobs = torch.tensor([[-1.0, -1.0]], requires_grad=True)
    clipped_policy_loss(logprobs, torch.tensor([[-101.0, -1.0]]), torch.tensor([[1.0]])).sum().backward()
    assert logprobs.grad.tolist() == [[0.0, -1.0]]


# ------------------------------------------------------------------------------------------- KL on three tokens

LOGITS = torch.tensor([0.2, -0.7, 1.1], dtype=torch.float64)
REFERENCE = torch.tensor([1.0, 0.1, -0.4], dtype=torch.float64).log_softmax(-1)


def exact_kl(logits):
    logp = logits.log_softmax(-1)
    return (logp.exp() * (logp - REFERENCE)).sum()


def expected_estimate(logits, estimator):
    """The mean of the estimator over tokens drawn from the policy, which is held fixed, as sampling does."""
    logp = logits.log_softmax(-1)
    return (logp.exp().detach() * kl_estimate(logp, REFERENCE, estimator)).sum()


def gradient_at(function):
    logits = LOGITS.clone().requires_grad_(True)
    function(logits).backward()
    return logits.grad


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_mean_of_k1_and_of_k3_is_the_exact_kl(estimator):
    assert expected_estimate(LOGITS, estimator).item() == pytest.approx(exact_kl(LOGITS).item(), rel=1e-12)
    assert exact_kl(LOGITS).item() > 0.1


def test_the_mean_of_k2_is_half_the_mean_squared_log_ratio():
    difference = LOGITS.log_softmax(-1) - REFERENCE
    expected = (LOGITS.softmax(-1) * difference**2 / 2).sum().item()
    assert expected_estimate(LOGITS, "k2").item() == pytest.approx(expected, rel=1e-12)
    assert expected != pytest.approx(exact_kl(LOGITS).item(), rel=0.05)  # biased


@given(st.floats(-20, 0), st.floats(-20, 0))
def test_k2_and_k3_are_never_negative_and_zero_only_where_both_agree(logprob, ref_logprob):
    p, q = torch.tensor([logprob], dtype=torch.float64), torch.tensor([ref_logprob], dtype=torch.float64)
    for estimator in ("k2", "k3"):
        value = kl_estimate(p, q, estimator).item()
        assert value >= 0
        assert value > 0 or abs(logprob - ref_logprob) < 1e-6
    assert kl_estimate(p, q, "k1").item() == logprob - ref_logprob


def test_the_mean_gradient_of_k2_is_the_exact_gradient_of_the_kl():
    torch.testing.assert_close(gradient_at(lambda x: expected_estimate(x, "k2")), gradient_at(exact_kl))


def test_the_mean_gradient_of_k1_is_zero():
    """It is the mean of the score function: as a loss, k1 pulls nowhere."""
    assert gradient_at(lambda x: expected_estimate(x, "k1")).abs().max() < 1e-12
    assert gradient_at(exact_kl).abs().max() > 0.05


def test_the_mean_gradient_of_k3_is_that_of_the_reversed_kl():
    """d/d theta E_p[q/p - 1 - log(q/p)] with p's draws held fixed is the gradient of KL(reference || policy)."""

    def reversed_kl(logits):
        return (REFERENCE.exp() * (REFERENCE - logits.log_softmax(-1))).sum()

    torch.testing.assert_close(gradient_at(lambda x: expected_estimate(x, "k3")), gradient_at(reversed_kl))
    assert (gradient_at(reversed_kl) - gradient_at(exact_kl)).abs().max() > 0.01


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_descending_on_the_kl_estimate_brings_the_policy_to_its_reference(estimator):
    logits = LOGITS.clone().requires_grad_(True)
    for _ in range(20):
        (gradient,) = torch.autograd.grad(expected_estimate(logits, estimator), logits)
        logits.data -= 0.5 * gradient
    assert exact_kl(logits).item() < 0.1 * exact_kl(LOGITS).item()


def test_an_unknown_kl_estimator_is_an_error():
    with pytest.raises(ValueError, match="k4"):
        kl_estimate(LOGITS, REFERENCE, "k4")


# --------------------------------------------------------------------------------------------------------- masks


def test_a_demonstration_ends_with_an_eos_that_counts_and_its_prompt_does_not(model):
    words = tokenizer()
    row = demonstration(words, Problem("Input:\n1 + 2\nTarget:\n", "3", "3"))
    assert row.tokens[-1] == words.eos_id == words.pad_id
    assert row.loss_mask == [False] * row.prompt_len + [True, True]
    (weights,) = token_weights([row])
    assert weights[-1] == weights[-2] == 0.5
    batch = collate([row], [weights], CPU, pad_id=words.pad_id)
    assert batch.loss_mask[0, -1] and batch.weights[0, -1] == 0.5


def test_a_row_whose_only_sampled_token_is_its_eos_still_learns_to_stop(make_model, prompt_only):
    model = make_model(9)
    row = prompt_only([1, 2, 3])
    row.sampled(0, -2.0)
    before = with_true_logprobs(model, [row])[0].logprobs[-1]
    assert before < -0.1
    update(model, make_optimizer(model), [row], lr=1e-2)
    assert with_true_logprobs(model, [row])[0].logprobs[-1] > before


def test_forced_tokens_and_the_prompt_are_context_and_never_loss(prompt_only):
    row = prompt_only([1, 2])
    row.sampled(3, -0.5)
    row.force([4, 5])
    row.sampled(0, -0.25)
    assert row.loss_mask == [False, False, True, False, False, True]
    for average in ("token", "sequence", "constant"):
        (weights,) = token_weights([row], average, constant=10)
        assert [weight > 0 for weight in weights] == row.loss_mask


def test_the_gradient_of_a_forced_tokens_own_prediction_is_zero(make_model, prompt_only):
    """Tokens 20 and 21 are prompt and forced: the output weights of an untied head are not pulled towards them."""
    model = make_model(10, tie_word_embeddings=False)
    row = prompt_only([20, 2])
    row.sampled(3, 0.0)
    row.force([21])
    row.sampled(0, 0.0)
    pulled = gradient_of(model, [row], lambda logprobs, batch: -logprobs)["lm_head.weight"]  # (V, D)
    with torch.no_grad():
        hidden = model.hidden(torch.tensor([row.tokens]))[0]
        expected = torch.zeros_like(pulled)
        for t in (2, 4):  # the two sampled columns
            error = model.lm_head(hidden[t - 1]).softmax(-1)
            error[row.tokens[t]] -= 1
            expected += error[:, None] * hidden[t - 1] / 2
    torch.testing.assert_close(pulled, expected, atol=1e-5, rtol=1e-4)


@given(st.data())
def test_every_writer_keeps_the_lists_of_a_row_equally_long_and_the_mask_true_exactly_for_sampled_tokens(
    prompt_only, data
):
    row = prompt_only(data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=4)))
    start, truth = list(row.tokens), []
    for action in data.draw(st.lists(st.sampled_from(["sampled", "force", "retract"]), max_size=12)):
        if action == "sampled":
            row.sampled(token := data.draw(st.integers(0, 9)), -1.0)
            truth.append((token, True, -1.0))
        elif action == "force":
            row.force(tokens := data.draw(st.lists(st.integers(0, 9), max_size=3)))
            truth += [(token, False, 0.0) for token in tokens]
        elif (count := data.draw(st.integers(0, 4))) <= len(truth):
            row.retract(count)
            del truth[len(truth) - count :]
        else:
            with pytest.raises(ValueError, match="cannot retract"):
                row.retract(count)
    assert row.tokens[: row.prompt_len] == start and not any(row.loss_mask[: row.prompt_len])
    n = row.prompt_len
    assert list(zip(row.response, row.loss_mask[n:], row.logprobs[n:], strict=True)) == truth


# ------------------------------------------------------------------------------------------------------- averages


def of_length(count: int, prompt_len: int = 1) -> Rollout:
    n = prompt_len + count
    return Rollout(Problem("", ""), [1] * n, [False] * prompt_len + [True] * count, [0.0] * n, prompt_len)


def test_a_token_of_a_short_row_counts_as_much_as_one_of_a_long_row_only_in_the_token_and_constant_averages():
    """A row of 10 tokens beside one of 1000, by hand."""
    rows = [of_length(10), of_length(1000)]
    short, long = token_weights(rows, "token")
    assert (short[1], long[1]) == (1 / 1010, 1 / 1010)
    short, long = token_weights(rows, "sequence")
    assert (short[1], long[1]) == (1 / 20, 1 / 2000)
    short, long = token_weights(rows, "constant", constant=2000)
    assert (short[1], long[1]) == (1 / 4000, 1 / 4000)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=20), st.sampled_from(["token", "sequence"]))
def test_the_weights_of_a_step_sum_to_one(counts, average):
    rows = [of_length(count, prompt_len=1 + i % 3) for i, count in enumerate(counts)]
    weights = token_weights(rows, average)
    assert math.fsum(w for row in weights for w in row) == pytest.approx(1.0)
    if average == "sequence":
        assert [math.fsum(row) for row in weights] == pytest.approx([1 / len(rows)] * len(rows))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=20))
def test_constant_weights_sum_to_one_when_every_row_uses_its_budget_and_to_less_otherwise(counts):
    weights = token_weights([of_length(count) for count in counts], "constant", constant=60)
    assert math.fsum(w for row in weights for w in row) == pytest.approx(sum(counts) / (60 * len(counts)))
    assert math.fsum(
        w for row in token_weights([of_length(60) for _ in range(3)], "constant", 60) for w in row
    ) == pytest.approx(1)


def test_rows_without_loss_tokens_are_not_read_however_a_step_is_cut(make_model, count_hidden, finished):
    """A prompt of one token whose response was erased has no state before any token that could count."""
    model = make_model(3)
    rows = finished(3) + [Rollout(Problem("p", "a"), [3], [False], [0.0], 1)]
    rows[-1].advantage = -1.0
    found = [update(copy.deepcopy(model), SGD(model), rows, learn.Algorithm(), lr=0.0, micro_tokens=micro,
                    weights=token_weights(rows, "sequence")) for micro in (1000, 1)]  # fmt: skip
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    reads = count_hidden(model)
    logprobs = learn.compute_logprobs(model, rows, 1.0, 1)
    assert len(reads) == 3 and logprobs[-1] == [0.0]
    assert logprobs[:3] == learn.compute_logprobs(model, rows[:3], 1.0, 1)
    assert learn.compute_logprobs(model, rows[3:], 1.0, 1) == [[0.0]] and len(reads) == 6


def test_a_row_without_loss_tokens_has_weight_zero_and_is_no_division_by_zero():
    for average in ("token", "sequence", "constant"):
        assert token_weights([of_length(0)], average, constant=5) == [[0.0]]


def test_an_average_that_is_not_known_or_lacks_its_constant_is_an_error():
    with pytest.raises(ValueError, match="mean"):
        token_weights([of_length(3)], "mean")
    with pytest.raises(ValueError, match="constant"):
        token_weights([of_length(3)], "constant")


# ----------------------------------------------------------------------------------------------------- advantages


@given(st.lists(st.floats(-5, 5), min_size=6, max_size=6), st.booleans())
def test_advantages_of_a_group_have_mean_zero_and_unit_deviation_or_are_all_zero(rewards, divide):
    groups = [rewards[:3], rewards[3:]]
    advantages = group_advantages(groups, "group" if divide else "none")
    for group, members in zip(advantages, groups, strict=True):
        assert sum(group) == pytest.approx(0, abs=1e-6)
        if max(members) == min(members):
            assert group == [0.0] * 3
        elif divide and max(members) - min(members) > 1e-3:
            assert sum(a * a for a in group) / 3 == pytest.approx(1)
        elif not divide:
            assert max(group) - min(group) == pytest.approx(max(members) - min(members))


def test_a_group_is_judged_by_itself_alone():
    assert group_advantages([[1.0, 0.0], [5.0, 5.0]]) == [[1.0, -1.0], [0.0, 0.0]]
    assert group_advantages([[3.0], [4.0]]) == [[0.0], [0.0]]


def test_groups_need_not_be_equally_large():
    assert group_advantages([[1.0, 0.0], [2.0], [0.0, 4.0, 8.0]], "none") == [[0.5, -0.5], [0.0], [-4.0, 0.0, 4.0]]


# -------------------------------------------------------------------------------------------------- broken numbers


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_the_sample_and_leaves_every_weight_untouched(
    make_model, finished, assert_same_weights, bad
):
    model = make_model(11)
    before = copy.deepcopy(model)
    rows = finished(12)
    guilty = min(rows, key=lambda row: len(row.tokens))  # the last in turn: others have left their gradients by then
    guilty.advantage, guilty.problem = bad, Problem("the guilty prompt", "")
    with pytest.raises(FloatingPointError, match="the guilty prompt"):
        update(model, make_optimizer(model), rows, policy_loss, lr=1e-2, micro_tokens=100)
    assert_same_weights(model, before)


def test_a_gradient_that_is_not_finite_leaves_every_weight_untouched(make_model, finished, assert_same_weights):
    model = make_model(12)
    before = copy.deepcopy(model)

    def steep(logprobs, batch):  # its value is 0, its slope at 0 infinite
        return (logprobs - logprobs.detach()).abs().sqrt()

    with pytest.raises(FloatingPointError, match="gradient"):
        update(model, make_optimizer(model), finished(4), steep, lr=1e-2)
    assert_same_weights(model, before)


def test_the_gradient_is_cut_to_the_norm_allowed_and_reported_uncut(make_model, finished):
    model, rows = make_model(13), finished(6)
    steps = {}
    for most in (0.01, 1e9):
        moved = copy.deepcopy(model)
        metrics = update(moved, SGD(moved), rows, lr=1.0, max_grad_norm=most)
        pairs = zip(moved.parameters(), model.parameters(), strict=True)
        steps[most] = math.sqrt(sum((a - b).square().sum().item() for a, b in pairs))
        assert metrics["grad_norm"] == pytest.approx(steps[1e9] if most > 1 else metrics["grad_norm"], rel=1e-3)
    assert steps[0.01] == pytest.approx(0.01, rel=1e-2)
    assert steps[1e9] > 0.1


# ------------------------------------------------------------------------------------------------- rows over time


@given(st.integers(1, 40), st.integers(1, 16), st.integers(0, 5))
def test_in_epochs_gives_each_row_once_per_epoch_in_a_new_order(count, rows_per_step, seed):
    rows = list(range(count))
    rows_of = in_epochs(rows, rows_per_step, seed)
    stream = [row for step in range(3 * count) for row in rows_of(step)]
    epochs = [stream[first : first + count] for first in range(0, 3 * count, count)]
    assert all(sorted(epoch) == rows for epoch in epochs)
    assert count < 8 or len({tuple(epoch) for epoch in epochs}) == 3


@given(st.lists(st.integers(0, 30), min_size=1, max_size=10))
def test_the_rows_of_a_step_are_a_function_of_the_step_alone(steps):
    """Asked in any order, as after a resume."""
    rows = list(range(17))
    expected = [in_epochs(rows, 5, seed=3)(step) for step in steps]
    rows_of = in_epochs(rows, 5, seed=3)
    assert [rows_of(step) for step in steps] == expected
    assert any(in_epochs(rows, 5, seed=4)(step) != rows_of(step) for step in range(3))


def test_a_stream_never_repeats_an_index_and_starts_anywhere():
    """The stream that `sft` learns from."""
    words, task = tokenizer(), Addition((3,))
    config = sft.SftConfig(task=task, rows_per_step=4, seed=5)
    rows_of = sft.task_rows(config, words, 256, Counter())
    stream = [row.problem for step in range(3) for row in rows_of(step)]
    assert stream == [task.problem("sft-5", i) for i in range(12)]
    assert [row.problem for row in sft.task_rows(config, words, 256, Counter())(2)] == stream[8:]


@pytest.mark.trains
@pytest.mark.parametrize("stop", [1, 3, 6])
def test_fitting_in_two_halves_equals_fitting_at_once(make_model, finished, assert_same_weights, stop):
    rows = finished(20)
    options = {"lr": 1e-2, "warmup": 2, "decay": "cosine"}
    rows_of = in_epochs(rows, 6, 0)
    whole, halves = make_model(14), make_model(14)
    steps = list(fit(whole, make_optimizer(whole), rows_of, steps=7, **options))
    assert [done for done, _ in steps] == list(range(1, 8))
    optimizer = make_optimizer(halves)
    for done, _ in fit(halves, optimizer, rows_of, steps=7, **options):
        if done == stop:
            break
    again = list(fit(halves, optimizer, rows_of, steps=7, first_step=stop, **options))
    assert again == steps[stop:]
    assert_same_weights(whole, halves)


@pytest.mark.parametrize("decay", ["none", "cosine", "linear"])
def test_fit_reports_every_step_with_the_learning_rate_it_used(make_model, finished, monkeypatch, decay):
    used = []
    monkeypatch.setattr(learn, "update", lambda *args, lr, **options: used.append(lr) or {"loss": 1.0, "num_tokens": 2})
    model = make_model(15)
    steps = fit(model, make_optimizer(model), lambda step: finished(2), steps=9, lr=0.5, warmup=4, decay=decay)
    reported = [(done, metrics["learning_rate"]) for done, metrics in steps]
    assert reported == list(enumerate(used, 1))
    assert used == [learning_rate(step, 9, 0.5, 4, decay) for step in range(9)]


def test_the_learning_rate_rises_to_its_peak_and_falls_to_a_tenth_of_it():
    rates = [learning_rate(step, 100, 2.0, 10, "cosine") for step in range(101)]
    assert rates[:10] == pytest.approx([0.2 * k for k in range(1, 11)])
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert rates[10] == pytest.approx(2.0) and rates[100] == pytest.approx(0.2)
    assert [learning_rate(step, 100, 2.0, 10, "none") for step in (10, 99)] == [2.0, 2.0]


def test_the_linear_rate_falls_in_a_line_and_reaches_zero_behind_the_last_step():
    rates = [learning_rate(step, 100, 2.0, 10, "linear") for step in range(101)]
    assert rates[:10] == pytest.approx([0.2 * k for k in range(1, 11)])
    assert rates[10:] == pytest.approx([2.0 * (100 - step) / 90 for step in range(10, 101)])
    assert rates[99] > 0 == rates[100]


# --------------------------------------------------------------------- rollouts of several rows, rows of one rollout


def cut_into_threads(row: Rollout) -> list[Rollout]:
    """The row's rollout as three rows: the first third stays with the root, its child and grandchild have the rest.

    A thread's prompt is all that stands before it, so the same tokens are predicted from the same context.
    """
    n = len(row.response)
    cuts = [row.prompt_len, row.prompt_len + n // 3, row.prompt_len + 2 * n // 3, len(row.tokens)]
    threads: list[Rollout] = []
    for first, last in zip(cuts, cuts[1:], strict=False):
        mask = [False] * first + row.loss_mask[first:last]
        logprobs = [0.0] * first + row.logprobs[first:last]
        threads.append(Rollout(row.problem, row.tokens[:last], mask, logprobs, first))
        threads[-1].parent = threads[-2] if len(threads) > 1 else None
        threads[-1].advantage = 99.0  # what a thread says of itself does not count
    threads[0].advantage, threads[0].reward = row.advantage, row.reward
    return threads


def test_the_root_of_a_row_is_the_first_of_its_line():
    root, child, grandchild = (of_length(2) for _ in range(3))
    child.parent, grandchild.parent = root, child
    assert [row.root for row in (root, child, grandchild)] == [root] * 3


def test_threads_have_the_advantage_of_their_root(finished):
    row = finished(1, longest=12)[0]
    threads = cut_into_threads(row)
    batch = collate([*threads[1:], threads[0]], token_weights(threads), CPU)
    assert batch.advantages.tolist() == [pytest.approx([row.advantage])] * 3


@pytest.mark.parametrize("average", ["token", "sequence", "constant"])
def test_weights_count_rollouts_and_not_rows(average):
    """One rollout of three rows with 2 + 3 + 5 tokens beside one of a single row with 10, by hand."""
    root, child, grandchild, single = (of_length(count) for count in (2, 3, 5, 10))
    child.parent, grandchild.parent = root, child
    rows = [child, single, root, grandchild]
    found = token_weights(rows, average, constant=40)
    assert [len(weights) for weights in found] == [len(row.tokens) for row in rows]
    each = {"token": 1 / 20, "sequence": 1 / (2 * 10), "constant": 1 / (2 * 40)}[average]
    for row, weights in zip(rows, found, strict=True):
        assert weights == pytest.approx([each * counted for counted in row.loss_mask])
    short, *_ = token_weights([root, single], average, constant=40)
    assert short[1] == pytest.approx({"token": 1 / 12, "sequence": 1 / (2 * 2), "constant": 1 / (2 * 40)}[average])


def test_the_number_of_rollouts_can_be_that_of_a_whole_step_of_which_some_are_left_out():
    rows = [of_length(4), of_length(6)]
    for average, expected in (("sequence", 1 / (5 * 4)), ("constant", 1 / (5 * 8)), ("token", 1 / 10)):
        assert token_weights(rows, average, constant=8, rollouts=5)[0][1] == pytest.approx(expected)
        assert token_weights(rows, average, constant=8, rollouts=2) == token_weights(rows, average, constant=8)


@pytest.mark.parametrize("average", ["token", "sequence", "constant"])
@pytest.mark.parametrize("loss_of", [sft_loss, policy_loss])
def test_a_rollout_of_threads_has_the_gradient_of_the_single_row_that_they_make_together(
    model, finished, average, loss_of
):
    rows = finished(5, seed=2)
    threads = [thread for row in rows for thread in cut_into_threads(row)]
    gradients = []
    for some in (rows, threads):
        weights = token_weights(some, average, constant=30)
        gradients.append(gradient_of(model, some, loss_of, weights=weights, micro_tokens=120))
    scale = max(g.abs().max().item() for g in gradients[0].values())
    for name, expected in gradients[0].items():
        assert (gradients[1][name] - expected).abs().max() < 1e-5 * scale, name


def test_a_step_without_a_token_that_counts_is_an_error_before_any_weight_or_moment_changes(
    make_model, finished, assert_same_weights
):
    """A momentum would move the weights although the gradient is 0."""
    model = make_model(16)
    optimizer = make_optimizer(model)
    update(model, optimizer, finished(4), lr=1e-2)
    before = copy.deepcopy(model)
    moments = {key: value.clone() for state in optimizer.state.values() for key, value in state.items()}
    rows = finished(3)
    for row in rows:
        row.loss_mask = [False] * len(row.tokens)
    with pytest.raises(ValueError, match="none of 3 rows has a token that counts"):
        update(model, optimizer, rows, lr=1e-2)
    assert_same_weights(model, before)
    now = {key: value for state in optimizer.state.values() for key, value in state.items()}
    assert all(torch.equal(now[key], moments[key]) for key in moments)


@pytest.mark.parametrize("wrong", [-1, 1])
def test_token_advantages_of_another_length_than_the_row_are_an_error(finished, wrong):
    rows = finished(3)
    rows[0].token_advantages = [0.5] * len(rows[0].tokens)
    collate(rows, token_weights(rows), CPU)
    rows[1].token_advantages = [0.5] * (len(rows[1].tokens) + wrong)
    with pytest.raises(ValueError, match=f"{len(rows[1].tokens) + wrong} token_advantages for a row of"):
        collate(rows, token_weights(rows), CPU)


def test_token_advantages_are_added_to_the_rows_own_and_rows_without_them_have_that_alone(finished):
    rows = finished(3)
    rows[1].token_advantages = [0.1 * t for t in range(len(rows[1].tokens))]
    batch = collate(rows, token_weights(rows), CPU)
    assert batch.advantages.shape == batch.tokens.shape
    n = len(rows[1].tokens)
    torch.testing.assert_close(batch.advantages[1, :n], rows[1].advantage + 0.1 * torch.arange(n))
    assert batch.advantages[0, : len(rows[0].tokens)].tolist() == pytest.approx(
        [rows[0].advantage] * len(rows[0].tokens)
    )


def test_metrics_over_updates_are_weighted_by_their_tokens_and_maxima_are_maxima():
    found = [
        {"loss": 1.0, "logp_diff/max": 0.5, "num_tokens": 30},
        {"loss": 5.0, "logp_diff/max": 0.2, "num_tokens": 10},
    ]
    assert over_updates(found) == {"loss": pytest.approx(2.0), "logp_diff/max": 0.5}
    assert over_updates([]) == {}


def test_metrics_of_minibatches_together_are_those_of_one_update_on_all_their_tokens(model, finished):
    rows = finished(9)

    def measure(logprobs, batch):
        return {"nll": -logprobs, "nll/max": -logprobs}

    def metrics_of(some):
        frozen = copy.deepcopy(model)
        return update(frozen, SGD(frozen), some, lr=0.0, measure=measure, entropy_coef=0.0)

    together = metrics_of(rows)
    parts = over_updates([metrics_of(rows[:2]), metrics_of(rows[2:])])
    for name in ("loss", "nll", "nll/max", "entropy"):
        assert parts[name] == pytest.approx(together[name], rel=1e-4)
