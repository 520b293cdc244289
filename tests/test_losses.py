"""The losses of GRPO's family: by hand on four numbers, against finite differences, exact sums and TRL's trainer."""

import copy
import itertools
import math
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from nanoreason import learn
from nanoreason.learn import (
    Algorithm,
    ChunkedHead,
    collate,
    group_advantages,
    is_zero_variance,
    kl_estimate,
    logprobs_and_entropy,
    policy_ratio,
    sft_loss,
    token_logprobs,
    token_weights,
    update,
)
from nanoreason.optim import SGD, AdamW
from nanoreason.rollout import Batch, Problem, Rollout

CPU = torch.device("cpu")
INF = math.inf


def batch_of(old, advantage, mask=None, ref=None, sampler=None) -> Batch:
    """One row of tokens with these log-probs, in double precision."""
    old = torch.as_tensor(old, dtype=torch.float64)[None]
    mask = torch.ones_like(old, dtype=torch.bool) if mask is None else torch.tensor([mask])

    def row(values):
        return old if values is None else torch.as_tensor(values, dtype=torch.float64)[None]

    return Batch(torch.zeros_like(old, dtype=torch.long), mask, old, mask.double(), torch.tensor([[float(advantage)]]),
                 row(sampler), row(ref))  # fmt: skip


def value_and_slope(loss: Algorithm, logprobs: torch.Tensor, batch: Batch, weights=None):
    """Per-token losses and d (losses * weights).sum() / d log-prob, as lists; weights default to 1 on loss tokens."""
    x = logprobs.clone().requires_grad_(True)
    losses = loss(x, batch)
    (losses * (batch.weights if weights is None else weights)).sum().backward()
    return losses[0].tolist(), x.grad[0].tolist()


# -------------------------------------------------------------------------------------------------- advantages


def test_advantages_by_hand_for_every_divisor():
    """Two groups with one and with three right answers of four; over all eight rewards the deviation is 1/2."""
    rewards = [[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]]
    assert group_advantages(rewards, "none") == [[0.75, -0.25, -0.25, -0.25], [0.25, 0.25, 0.25, -0.75]]
    assert group_advantages(rewards, "batch") == [[1.5, -0.5, -0.5, -0.5], [0.5, 0.5, 0.5, -1.5]]
    root = math.sqrt(3)
    first, second = group_advantages(rewards, "group")
    assert first == pytest.approx([root, -1 / root, -1 / root, -1 / root])
    assert second == pytest.approx([1 / root, 1 / root, 1 / root, -root])


@given(st.integers(2, 12), st.data())
def test_with_rewards_0_and_1_the_advantages_are_those_of_the_share_that_is_right(size, data):
    """A+ = sqrt((1-p)/p), A- = -sqrt(p/(1-p)): a rare success counts much more than a common one."""
    right = data.draw(st.integers(1, size - 1))
    p = right / size
    (advantages,) = group_advantages([[1.0] * right + [0.0] * (size - right)])
    assert advantages[0] == pytest.approx(math.sqrt((1 - p) / p))
    assert advantages[-1] == pytest.approx(-math.sqrt(p / (1 - p)))


@pytest.mark.parametrize("divide_by", ["group", "batch", "none"])
def test_a_group_without_variance_has_no_advantages_even_where_rounding_differs(divide_by):
    """0.1 + 0.2 is not 0.3 in floating point; divided by their deviation these three would be +-1."""
    equal = [0.1 + 0.2, 0.3, 0.3]
    assert max(equal) != min(equal)
    assert group_advantages([equal, [1.0, 0.0, 0.0]], divide_by)[0] == [0.0] * 3
    assert group_advantages([[0.5] * 3] * 2, divide_by) == [[0.0] * 3] * 2
    assert is_zero_variance(equal) and not is_zero_variance([0.0, 1e-6])


def test_an_unknown_divisor_is_an_error():
    with pytest.raises(ValueError, match="'std'"):
        group_advantages([[1.0, 0.0]], "std")


# --------------------------------------------------------------------------------------- by hand, on four numbers

RATIOS = [1.5, 0.5, 1.0, 1.1]
OLD = [-1.0, -2.0, -0.5, -3.0]
NOW = torch.tensor([[old + math.log(ratio) for old, ratio in zip(OLD, RATIOS, strict=True)]], dtype=torch.float64)
BY_HAND = {  # settings, advantage -> losses, slopes
    "grpo, right": (Algorithm(), 2, [-2.4, -1.0, -2.0, -2.2], [0, -1.0, -2.0, -2.2]),
    "grpo, wrong": (Algorithm(), -2, [3.0, 1.6, 2.0, 2.2], [3.0, 0, 2.0, 2.2]),
    "clip higher, right": (Algorithm(clip_high=0.6), 2, [-3.0, -1.0, -2.0, -2.2], [-3.0, -1.0, -2.0, -2.2]),
    "clip higher, wrong": (Algorithm(clip_high=0.6), -2, [3.0, 1.6, 2.0, 2.2], [3.0, 0, 2.0, 2.2]),
    "two-sided, right": (Algorithm(cap=1.3), 2, [-2.4, -1.0, -2.0, -2.2], [0, -1.0, -2.0, -2.2]),
    "two-sided, wrong": (Algorithm(cap=1.3), -2, [2.6, 1.6, 2.0, 2.2], [0, 0, 2.0, 2.2]),
    "unclipped": (Algorithm(clip_low=INF, clip_high=INF), 2, [-3.0, -1.0, -2.0, -2.2], [-3.0, -1.0, -2.0, -2.2]),
    "cispo, right": (Algorithm(ratio="detached"), 2, None, [-2.4, -1.0, -2.0, -2.2]),
    "cispo, wrong": (Algorithm(ratio="detached"), -2, None, [2.4, 1.0, 2.0, 2.2]),
    "reinforce": (Algorithm(ratio="detached", on_policy=True), 2, None, [-2.0] * 4),
    "on-policy": (Algorithm(on_policy=True), 2, [-2.0] * 4, [-2.0] * 4),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_losses_and_gradients_by_hand(case):
    loss, advantage, losses, slopes = BY_HAND[case]
    found, slope = value_and_slope(loss, NOW, batch_of(OLD, advantage))
    assert slope == pytest.approx(slopes)
    if losses is None:  # -weight * A * log-prob: the value is that of its slope at this log-prob
        losses = [s * x for s, x in zip(slopes, NOW[0].tolist(), strict=True)]
    assert found == pytest.approx(losses)


@pytest.mark.parametrize(
    ("ratios", "advantage", "slopes"),
    [
        ([2.0, 0.5, 1.0, 1.0], 2, [-0.5] * 4),  # the row as a whole is as likely as before: s = 1
        ([4.0, 1.0, 1.0, 1.0], 2, [0.0] * 4),  # s = 4^(1/4) = 1.41: all tokens stop together
        ([4.0, 1.0, 1.0, 1.0], -2, [math.sqrt(2) / 2] * 4),
        ([0.25, 1.0, 1.0, 1.0], -2, [0.0] * 4),  # s = 0.71
        ([0.25, 1.0, 1.0, 1.0], 2, [-math.sqrt(0.5) / 2] * 4),
    ],
)
def test_gspo_by_hand_with_the_ratio_of_the_whole_row(ratios, advantage, slopes):
    """With the sequence average a row's loss is -s * A, s the geometric mean of its tokens' ratios."""
    now = torch.tensor([OLD], dtype=torch.float64) + torch.tensor([ratios], dtype=torch.float64).log()
    batch = batch_of(OLD, advantage)
    _, slope = value_and_slope(Algorithm(ratio="sequence"), now, batch, weights=batch.weights / 4)
    assert slope == pytest.approx(slopes)


def test_the_ratio_of_a_row_is_the_mean_over_its_loss_tokens_alone():
    """The second token was forced: whatever its log-prob is said to be, it is not part of the ratio."""
    now, mask = torch.tensor([[0.3, 99.0, -0.1]]), torch.tensor([[True, False, True]])
    ratio = policy_ratio(now, torch.zeros(1, 3), "sequence", mask)
    assert ratio[0].tolist() == pytest.approx([math.exp(0.1)] * 3)
    assert policy_ratio(now, torch.zeros(1, 3), "sequence", torch.zeros_like(mask)).tolist() == [[1.0] * 3]


@pytest.mark.parametrize("of", ["token", "sequence"])
@pytest.mark.parametrize(
    ("advantage", "ratio", "stops"), [(1, 1.5, True), (1, 0.5, False), (-1, 1.5, False), (-1, 0.5, True)]
)
def test_the_four_cases_of_the_sign_table(of, advantage, ratio, stops):
    """It stops where the policy has gone far enough in the right direction; CISPO's gradient never stops."""
    now, batch = torch.tensor([[math.log(ratio) - 1]], dtype=torch.float64), batch_of([-1.0], advantage)
    _, slope = value_and_slope(Algorithm(ratio=of), now, batch)
    assert slope == pytest.approx([0.0 if stops else -advantage * ratio])
    _, slope = value_and_slope(Algorithm(ratio="detached"), now, batch)
    assert slope == pytest.approx([-advantage * min(ratio, 1.2)])
    measured = Algorithm(ratio=of).measure(now, batch)
    assert measured["clip_ratio/high_mean"].item() == (stops and advantage > 0)
    assert measured["clip_ratio/low_mean"].item() == (stops and advantage < 0)
    assert measured["clip_ratio/region_mean"].item() == stops


def test_the_weight_between_sampler_and_learner_is_cut_and_leaves_the_kl_alone():
    sampler = [old - math.log(ratio) for old, ratio in zip(OLD, [3.0, 0.5, 1.0, 1.0], strict=True)]
    batch = batch_of(OLD, 1, sampler=sampler, ref=[-1.0] * 4)
    _, slope = value_and_slope(Algorithm(sampler_cap=2.0, on_policy=False), torch.tensor([OLD]).double(), batch)
    assert slope == pytest.approx([-2.0, -0.5, -1.0, -1.0])
    loss = Algorithm(sampler_cap=2.0, kl_coef=0.5)
    with_kl, _ = value_and_slope(loss, NOW, batch)
    without, _ = value_and_slope(replace(loss, kl_coef=0.0), NOW, batch)
    kl = kl_estimate(NOW, batch.ref_logprobs)[0]
    assert [a - b for a, b in zip(with_kl, without, strict=True)] == pytest.approx((0.5 * kl).tolist())
    assert loss.measure(NOW, batch)["logp_diff/max"][0].tolist() == pytest.approx([math.log(3), math.log(2), 0, 0])


DIFFERENTIABLE = {
    "grpo": Algorithm(kl_coef=0.1),
    "dapo": Algorithm(clip_high=0.28),
    "two-sided": Algorithm(cap=1.35),
    "gspo": Algorithm(ratio="sequence", clip_low=0.01, clip_high=0.01),
    "k2": Algorithm(kl_coef=0.3, kl_estimator="k2"),
    "k3, corrected": Algorithm(kl_coef=0.3, kl_correction=True),
    "truncated importance": Algorithm(sampler_cap=1.1),
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_every_gradient_equals_finite_differences(name):
    generator = torch.Generator().manual_seed(0)
    old, step, ref, sampler = torch.randn(4, 3, 6, generator=generator, dtype=torch.float64)
    mask = torch.rand(3, 6, generator=generator) < 0.8
    A = torch.tensor([[1.0], [-2.0], [0.5]]).double()
    batch = Batch(torch.zeros(3, 6).long(), mask, old, mask / 7.0, A, sampler, ref)
    now = (old + 0.4 * step).requires_grad_(True)

    def total(x):
        return (DIFFERENTIABLE[name](x, batch) * batch.weights).sum()

    assert torch.autograd.gradcheck(total, now)


ONE_UPDATE = {
    "none": Algorithm(clip_low=INF, clip_high=INF),
    "grpo": Algorithm(),
    "dapo": Algorithm(clip_high=0.28),
    "two-sided": Algorithm(cap=4.0),
    "cispo": Algorithm(ratio="detached", clip_high=4.0),
    "reinforce": Algorithm(ratio="detached", clip_high=INF),
}


def test_with_one_update_per_rollout_all_clip_variants_have_the_same_gradient_bit_for_bit():
    generator = torch.Generator().manual_seed(1)
    now, old = -3 * torch.rand(2, 4, 9, generator=generator)
    A = torch.randn(4, 1, generator=generator)
    batch = Batch(torch.zeros(4, 9).long(), torch.ones(4, 9).bool(), old, torch.rand(4, 9, generator=generator), A, old,
                  old)  # fmt: skip

    def slope(loss):
        x = now.clone().requires_grad_(True)
        (loss(x, batch) * batch.weights).sum().backward()
        return x.grad

    for name, loss in ONE_UPDATE.items():
        assert torch.equal(slope(replace(loss, on_policy=True)), -A * batch.weights), name
        assert not torch.equal(slope(loss), -A * batch.weights), f"{name} off-policy"
    row_mean = (-A * batch.weights).mean(1, keepdim=True).expand(4, 9)  # GSPO spreads a row's weights evenly
    torch.testing.assert_close(slope(Algorithm(ratio="sequence", on_policy=True)), row_mean)


# ------------------------------------------------------------------------------------------ KL, on three tokens

LOGITS = torch.tensor([0.2, -0.7, 1.1], dtype=torch.float64)
OLD_POLICY = torch.tensor([-1.0, 1.2, 0.1], dtype=torch.float64).log_softmax(-1)
REFERENCE = torch.tensor([1.0, 0.1, -0.4], dtype=torch.float64).log_softmax(-1)


def exact_kl(logits):
    logp = logits.log_softmax(-1)
    return (logp.exp() * (logp - REFERENCE)).sum()


def gradient(function, at=LOGITS):
    logits = at.clone().requires_grad_(True)
    function(logits).backward()
    return logits.grad


def expected_kl_term(loss: Algorithm):
    """The mean of the loss's KL term over tokens that the OLD policy drew."""
    return lambda x: (OLD_POLICY.exp() * loss.kl(x.log_softmax(-1), OLD_POLICY, REFERENCE)).sum()


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_corrected_by_the_ratio_the_kl_gradient_is_exact_for_any_old_policy(estimator):
    loss = Algorithm(kl_coef=1.0, kl_estimator=estimator, kl_correction=True)
    torch.testing.assert_close(gradient(expected_kl_term(loss)), gradient(exact_kl))
    plain = replace(loss, kl_correction=False)
    assert (gradient(expected_kl_term(plain)) - gradient(exact_kl)).abs().max() > 0.05


def test_the_mean_of_the_corrected_k3_is_the_exact_kl_for_any_old_policy():
    loss = Algorithm(kl_correction=True)
    assert expected_kl_term(loss)(LOGITS).item() == pytest.approx(exact_kl(LOGITS).item(), rel=1e-12)
    assert expected_kl_term(Algorithm())(LOGITS).item() != pytest.approx(exact_kl(LOGITS).item(), rel=0.05)


def test_on_policy_the_corrected_k3_has_the_exact_gradient_too_and_the_plain_one_that_of_the_reversed_kl():
    def term(loss):
        return lambda x: (x.softmax(-1).detach() * loss.kl(*[x.log_softmax(-1)] * 2, REFERENCE)).sum()

    def corrected(x):  # the old policy is the policy, held fixed
        logp = x.log_softmax(-1)
        return (logp.exp().detach() * Algorithm(kl_correction=True).kl(logp, logp.detach(), REFERENCE)).sum()

    def reversed_kl(x):
        return (REFERENCE.exp() * (REFERENCE - x.log_softmax(-1))).sum()

    torch.testing.assert_close(gradient(corrected), gradient(exact_kl))
    torch.testing.assert_close(gradient(term(Algorithm())), gradient(reversed_kl))


def test_k1_in_the_reward_is_the_exact_gradient_of_the_kl():
    """Reward -log p/q with the policy gradient: E[-A * grad log p], A held fixed."""

    def policy_gradient(x):
        logp = x.log_softmax(-1)
        A = -kl_estimate(logp.detach(), REFERENCE, "k1")
        return (-logp.exp().detach() * A * logp).sum()

    torch.testing.assert_close(gradient(policy_gradient), gradient(exact_kl))


@pytest.mark.parametrize("estimator", ["k2", "k3"])
@pytest.mark.parametrize("corrected", [True, False])
def test_without_advantages_a_step_on_the_whole_loss_brings_the_policy_closer_to_its_reference(estimator, corrected):
    loss = Algorithm(kl_coef=0.5, kl_estimator=estimator, kl_correction=corrected, on_policy=True)
    logits = LOGITS.clone()
    for _ in range(20):

        def expected(x):
            batch = batch_of(x.detach().log_softmax(-1), 0.0, ref=REFERENCE)
            return (x.softmax(-1).detach() * loss(x.log_softmax(-1)[None], batch)).sum()

        logits -= gradient(expected, logits)
    assert exact_kl(logits) < 0.1 * exact_kl(LOGITS)


def test_k3_is_finite_where_the_policy_all_but_lost_a_token_of_its_reference():
    logprobs = torch.tensor([-200.0], requires_grad=True)
    kl_estimate(logprobs, torch.tensor([-0.1])).backward()
    assert torch.isfinite(logprobs.grad).all()


# ------------------------------------------------------------------------- STaR's filter, on an enumerable model


def all_rows(model, longest=3):
    """Every response to the prompt [1] over the tokens 0 (EOS), 1, 2, with its probability."""
    rows = []
    for length in range(1, longest + 1):
        for response in itertools.product(range(3), repeat=length):
            if 0 in response[:-1] or (length < longest and response[-1] != 0):
                continue
            row = Rollout(Problem("", ""), [1], [False], [0.0], 1)
            for token in response:
                row.sampled(token, 0.0)
            row.reward = float(response in {(2, 0), (1, 2, 0), (2, 2, 1)})  # any set of right answers
            rows.append(row)
    return rows


def loss_gradient(model, rows, weights, loss_of):
    model.zero_grad()
    batch = collate(rows, weights, CPU)
    (loss_of(token_logprobs(model, batch.tokens, batch.loss_mask), batch) * batch.weights).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def close(found, expected, rel=1e-4):
    scale = max(g.abs().max() for g in expected.values())
    return all((found[name] - expected[name]).abs().max() <= rel * scale for name in expected)


@pytest.fixture
def enumerated(make_model):
    """A model with three tokens, all its responses, and the probability of each."""
    model = make_model(20, vocab_size=3, hidden_size=16, intermediate_size=16)
    rows = all_rows(model)
    batch = collate(rows, token_weights(rows), CPU)
    logprobs = token_logprobs(model, batch.tokens, batch.loss_mask).sum(1)
    return model, rows, logprobs.exp()


def test_stars_filter_is_the_policy_gradient_with_reward_0_or_1_and_no_baseline(enumerated):
    """The mean of STaR's fine-tuning gradient over what the policy samples is minus the gradient of its accuracy."""
    model, rows, probability = enumerated
    assert probability.sum().item() == pytest.approx(1, abs=1e-5)
    p = probability.tolist()
    model.zero_grad()
    accuracy = (probability * torch.tensor([row.reward for row in rows])).sum()
    assert 0.001 < accuracy < 0.999
    (-accuracy).backward()
    exact = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    for row in rows:
        row.advantage = row.reward
    weights = [[chance * counted for counted in row.loss_mask] for chance, row in zip(p, rows, strict=True)]
    reinforce = loss_gradient(model, rows, weights, Algorithm(ratio="detached", clip_high=INF, on_policy=True))
    kept = [i for i, row in enumerate(rows) if row.reward]
    star = loss_gradient(model, [rows[i] for i in kept], [weights[i] for i in kept], sft_loss)
    assert close(reinforce, exact) and close(star, exact)
    # on a sample of rows as well: STaR averages over the kept tokens, reinforce over all rows and their budget
    sample = [copy.copy(rows[i]) for i in (0, 3, 5, 5, 7, *kept)]  # of one row twice: two rollouts
    found = loss_gradient(
        model, sample, token_weights(sample, "constant", 3), Algorithm(ratio="detached", on_policy=True)
    )
    kept = [row for row in sample if row.reward]
    star = loss_gradient(model, kept, token_weights(kept), sft_loss)
    scale = len(sample) * 3 / sum(sum(row.loss_mask) for row in kept)
    assert close({name: scale * g for name, g in found.items()}, star)


def test_a_baseline_changes_no_expected_gradient(enumerated):
    model, rows, probability = enumerated
    weights = [[p * counted for counted in row.loss_mask] for p, row in zip(probability.tolist(), rows, strict=True)]
    gradients = []
    for baseline in (0.0, 0.7):
        for row in rows:
            row.advantage = row.reward - baseline
        gradients.append(loss_gradient(model, rows, weights, Algorithm(on_policy=True)))
    assert close(*gradients, rel=1e-3)


# --------------------------------------------------------------------- one gradient for every cut, entropy, chunks


@pytest.mark.parametrize("average", ["token", "sequence", "constant"])
def test_the_gradient_and_all_metrics_of_the_whole_loss_do_not_depend_on_the_micro_batches(
    make_model, finished, average
):
    """GSPO's ratio, the KL to a reference, the sampler's weight and the entropy bonus together."""
    model, rows = make_model(21), finished(12)
    for row in rows:
        row.old_logprobs = [0.9 * x for x in row.logprobs]
        row.ref_logprobs = [0.5 * x - 0.1 for x in row.logprobs]
    loss = Algorithm(ratio="sequence", kl_coef=0.3, kl_correction=True, sampler_cap=1.5)
    results = []
    for micro_tokens in (10_000, 90, 1):
        optimizer = SGD(model)
        weights = token_weights(rows, average, 40)
        metrics = update(model, optimizer, rows, loss, lr=0.0, weights=weights, micro_tokens=micro_tokens,
                         max_grad_norm=INF, entropy_coef=0.1, measure=loss.measure)  # fmt: skip
        results.append((metrics, {name: parameter.grad for name, parameter in model.named_parameters()}))
    for metrics, gradients in results[1:]:
        assert metrics == pytest.approx(results[0][0], rel=1e-4, abs=1e-6)
        assert close(gradients, results[0][1], rel=1e-5)
    assert results[0][0]["entropy"] > 0 and results[0][0]["kl"] > 0 and results[0][0]["logp_diff/max"] > 0


def test_the_entropy_is_that_of_the_distribution_at_each_sampled_token(model, finished):
    rows = finished(3)
    batch = collate(rows, token_weights(rows), CPU)
    with torch.no_grad():
        _, entropy = logprobs_and_entropy(model, batch.tokens, batch.loss_mask, temperature=0.7)
        for i, row in enumerate(rows):
            for t, counted in enumerate(row.loss_mask):
                expected = 0.0
                if counted:
                    logits = model(torch.tensor([row.tokens[:t]]))[0, -1] / 0.7
                    expected = torch.distributions.Categorical(logits=logits).entropy().item()
                assert entropy[i, t].item() == pytest.approx(expected, abs=1e-4)


def test_the_entropy_bonus_raises_the_entropy(make_model, finished):
    model, rows = make_model(22), finished(6)
    options = dict(lr=3e-3, entropy_coef=1.0)
    optimizer = AdamW(model)
    found = [update(model, optimizer, rows, lambda logp, batch: 0 * logp, **options)["entropy"] for _ in range(5)]
    assert found == sorted(found) and found[-1] > found[0] + 0.05


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_in_chunks_log_probs_entropy_and_every_gradient_are_those_of_the_plain_head(
    make_model, finished, monkeypatch, temperature
):
    model, rows = make_model(23), finished(8)
    batch = collate(rows, token_weights(rows), CPU)
    mix = torch.randn(2, *batch.tokens.shape, generator=torch.Generator().manual_seed(0))
    results = []
    for chunk in (learn.CHUNK_LOGITS, 3 * 24, 1):
        monkeypatch.setattr(learn, "CHUNK_LOGITS", chunk)
        model.zero_grad()
        found = torch.stack(logprobs_and_entropy(model, batch.tokens, batch.loss_mask, temperature))
        (found * mix).sum().backward()
        results.append((found.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}))
    for found, gradients in results[1:]:
        torch.testing.assert_close(found, results[0][0], atol=1e-5, rtol=1e-5)
        assert close(gradients, results[0][1], rel=1e-5)


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, (tuple, list)) else [found]:
            self.numel = max(self.numel, tensor.numel() if isinstance(tensor, torch.Tensor) else 0)
        return found


def test_at_the_vocabulary_of_qwen_no_tensor_holds_all_logits_and_the_gradient_is_the_same(monkeypatch):
    V, D, M = 151_936, 4, 12
    monkeypatch.setattr(learn, "CHUNK_LOGITS", 2 * V)
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(M, D, generator=generator), torch.randn(V, D, generator=generator)
    targets, mix = torch.randint(V, (M,), generator=generator), torch.randn(M, generator=generator)

    def gradients(logprobs_of):
        h, w = hidden.clone().requires_grad_(True), weight.clone().requires_grad_(True)
        with LargestTensor() as largest:
            (logprobs_of(h, w) * mix).sum().backward()
        return (h.grad, w.grad), largest.numel

    plain, most = gradients(lambda h, w: -F.cross_entropy(h @ w.T, targets, reduction="none"))
    chunked, least = gradients(lambda h, w: ChunkedHead.apply(h, w, targets, 1.0)[0])
    assert most == M * V and least <= D * V
    for a, b in zip(chunked, plain, strict=True):
        assert (a - b).abs().max() < 1e-5 * b.abs().max()


def peak_bytes(work) -> int:
    """Bytes that tensors on the CPU held at most while `work()` ran, above what they held before it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    changes = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in changes))


def test_in_chunks_the_log_probs_need_less_than_a_quarter_of_the_memory_of_full_logits(monkeypatch):
    """8 x 512 tokens and the vocabulary of Qwen, with tokens, vocabulary and chunk scaled down alike."""
    M, V, D = 8 * 512 // 16, 151_936 // 16, 4
    monkeypatch.setattr(learn, "CHUNK_LOGITS", learn.CHUNK_LOGITS // 16**2)
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, D, generator=generator, requires_grad=True) for n in (M, V))
    targets = torch.randint(V, (M,), generator=generator)
    full = peak_bytes(lambda: F.cross_entropy(hidden @ weight.T, targets, reduction="none").sum().backward())
    chunked = peak_bytes(lambda: ChunkedHead.apply(hidden, weight, targets, 1.0)[0].sum().backward())
    assert full >= 4 * M * V  # bytes of the logits alone
    assert chunked < 4 * M * V / 4


# ----------------------------------------------------------------------------------------- TRL's own trainer code

BUDGET = 9
AGAINST_TRL = {  # ours, our average -> TRL's settings
    "grpo": (Algorithm(kl_coef=0.04), "sequence", dict(loss_type="grpo", beta=0.04)),
    "dr_grpo": (Algorithm(), "constant", dict(loss_type="dr_grpo")),
    "dapo": (Algorithm(clip_high=0.28), "token", dict(loss_type="dapo", epsilon_high=0.28)),
    "gspo": (Algorithm(ratio="sequence", clip_low=0.03, clip_high=0.04), "sequence",
             dict(loss_type="grpo", importance_sampling_level="sequence", epsilon_low=0.03, epsilon_high=0.04)),
    "cispo": (Algorithm(ratio="detached", clip_high=0.3), "token", dict(loss_type="cispo", epsilon_high=1.3)),
    "two-sided": (Algorithm(cap=1.3), "sequence", dict(loss_type="grpo", delta=1.3)),
    "corrected kl": (Algorithm(kl_coef=0.04, kl_correction=True), "token",
                     dict(loss_type="dapo", beta=0.04, use_bias_correction_kl=True)),
    "sampler weight": (Algorithm(sampler_cap=1.2), "sequence", dict(loss_type="grpo", use_vllm=True)),
    "on-policy": (Algorithm(on_policy=True), "sequence", dict(loss_type="grpo", on_policy=True)),
}  # fmt: skip


def trl_loss(now, batch: Batch, settings: dict):
    """`GRPOTrainer._compute_loss` of the installed TRL on these log-probs: (loss, metrics)."""
    trainer_code = pytest.importorskip("trl.trainer.grpo_trainer")
    defaults = dict(epsilon_low=0.2, epsilon_high=0.2, beta=0.0, importance_sampling_level="token", use_vllm=False)
    values = defaults | settings
    args = SimpleNamespace(delta=values.pop("delta", None), steps_per_generation=1,
                           use_bias_correction_kl=values.pop("use_bias_correction_kl", False))  # fmt: skip
    on_policy = values.pop("on_policy", False)
    accelerator = SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x, num_processes=1)
    metrics = defaultdict(list)
    trainer = SimpleNamespace(
        **values, args=args, accelerator=accelerator, _metrics={"train": metrics}, aux_loss_enabled=False,
        model=SimpleNamespace(training=True), current_gradient_accumulation_steps=1, max_completion_length=BUDGET,
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, vllm_importance_sampling_correction=True,
        _entropy_bonus_enabled=False,
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (now, torch.zeros_like(now), None),
    )  # fmt: skip
    inputs = {
        "prompt_ids": batch.tokens[:, :1], "prompt_mask": torch.ones_like(batch.tokens[:, :1]),
        "completion_ids": batch.tokens, "completion_mask": batch.loss_mask.long(),
        "advantages": batch.advantages[:, 0], "num_items_in_batch": batch.loss_mask.sum(),
        "old_per_token_logps": None if on_policy else batch.old_logprobs, "ref_per_token_logps": batch.ref_logprobs,
        "importance_sampling_ratio": (batch.old_logprobs - batch.sampler_logprobs).exp().clamp(max=1.2),
    }  # fmt: skip
    return trainer_code.GRPOTrainer._compute_loss(trainer, None, inputs), metrics


@pytest.mark.parametrize("name", AGAINST_TRL)
def test_value_gradient_and_metrics_are_those_of_trls_trainer_on_the_same_tensors(name, finished):
    ours, average, settings = AGAINST_TRL[name]
    rows = finished(6, seed=3, longest=8)
    generator = torch.Generator().manual_seed(3)
    for row in rows:  # TRL's tensors are about completions: rows without a prompt
        row.tokens, row.loss_mask = row.response, row.loss_mask[row.prompt_len :]
        row.logprobs, row.prompt_len = row.logprobs[-len(row.tokens) :], 0
        noise = 0.3 * torch.randn(2, len(row.tokens), generator=generator)
        row.old_logprobs, row.ref_logprobs = (torch.tensor(row.logprobs) + noise).tolist()
    batch = collate(rows, token_weights(rows, average, BUDGET), CPU)
    now = batch.old_logprobs + 0.3 * torch.randn(batch.old_logprobs.shape, generator=generator)
    mine, theirs = now.clone().requires_grad_(True), now.clone().requires_grad_(True)
    expected, metrics = trl_loss(theirs, batch, settings)
    expected.backward()
    loss = (ours(mine, batch) * batch.weights).sum()
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-7)
    torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-7, rtol=1e-5)
    assert mine.grad.abs().max() > 1e-3
    found = ours.measure(now, batch)
    for key in ("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean"):
        if metrics[key] and name != "two-sided":  # TRL counts after cutting the ratio: the same unless delta < 1 + high
            assert found[key][batch.loss_mask].float().mean().item() == pytest.approx(metrics[key][0], abs=1e-6)
