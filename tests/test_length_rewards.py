"""Rewards about length and repetition: endpoints, order and continuity; advantages of single tokens by hand."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from nanoreason import practice
from nanoreason.checkpoint import load_checkpoint, save_checkpoint
from nanoreason.learn import (
    PolicyLoss,
    collate,
    discounted_returns,
    fit,
    from_stream,
    make_optimizer,
    token_weights,
    update,
)
from nanoreason.model import Transformer, small_config
from nanoreason.recipes import grpo
from nanoreason.rewards import (
    accuracy_reward,
    classic_reward,
    cosine_reward,
    lcpo_exact_reward,
    lcpo_max_reward,
    overlong_reward,
    repetition_penalties,
    repetition_reward,
)
from nanoreason.rollout import Problem, Rollout, prompt_rows
from nanoreason.run import read_jsonl
from nanoreason.tasks.addition import Addition, tokenizer

windows = st.integers(2, 300)
values = st.floats(-20, 20)
token_lists = st.lists(st.integers(0, 3), max_size=30)


def verdicts(prompts, completions, **columns) -> list[float]:
    """The verifier of these tests: a completion says itself whether it is right."""
    return [float(text == "right") for text in completions]


def rewards_of(reward, lengths, right: bool, **columns) -> list[float]:
    """What `reward` gives to right or wrong completions of these lengths."""
    n = len(lengths)
    return reward([""] * n, ["right" if right else "wrong"] * n, completion_ids=[[0] * k for k in lengths], **columns)


# ------------------------------------------------------------------------------------------------- classic, cosine


@given(windows, st.data())
def test_the_classic_reward_is_the_verdict_below_the_limit_and_nothing_from_there_on(window, data):
    margin = data.draw(st.integers(0, window - 1))
    reward, lengths = classic_reward(verdicts, window, margin), range(window + 3)
    assert rewards_of(reward, lengths, True) == [float(n < window - margin) for n in lengths]
    assert rewards_of(reward, lengths, False) == [0.0] * len(lengths)


@given(windows, values, values, st.booleans(), values)
def test_the_cosine_goes_from_its_start_to_its_end_without_a_jump_and_never_back(window, start, end, right, exceed):
    ends = {"right": (start, end), "wrong": (3.0, 4.0)} if right else {"right": (3.0, 4.0), "wrong": (start, end)}
    found = rewards_of(cosine_reward(verdicts, window, **ends, exceed=exceed), range(window + 2), right)
    wave, step = found[:window], abs(start - end) * math.pi / window / 2  # the steepest slope of the wave
    assert wave[0] == pytest.approx(start) and found[window:] == [exceed, exceed]
    assert abs(wave[-1] - end) <= step + 1e-9
    for here, there in zip(wave, wave[1:], strict=False):
        assert 0 - 1e-9 <= (there - here) * (1 if end > start else -1) <= step + 1e-9
    middle = rewards_of(cosine_reward(verdicts, 2 * window, **ends), [window], right)
    assert middle == pytest.approx([(start + end) / 2])


@given(windows, st.data())
def test_the_defaults_order_responses_as_the_paper_wants_them(window, data):
    """Short right > long right > long wrong > short wrong = too long."""
    reward, lengths = cosine_reward(verdicts, window), range(window)
    right, wrong = (rewards_of(reward, lengths, verdict) for verdict in (True, False))
    assert right == sorted(right, reverse=True) and right[0] == 2 and min(right) >= 1
    assert wrong == sorted(wrong) and wrong[0] == -10 and max(wrong) <= 0 < min(right)
    margin = data.draw(st.integers(0, window - 1))
    cut = rewards_of(cosine_reward(verdicts, window, margin=margin), [window - margin - 1, window - margin], True)
    assert cut[0] >= 1 and cut[1] == -10  # the margin moves the limit and nothing else
    assert cut[0] == right[window - margin - 1]


# ---------------------------------------------------------------------------------------------------- LCPO, overlong


@given(st.integers(0, 200), st.integers(0, 200), st.floats(1e-4, 0.05))
def test_lcpo_exact_is_best_at_the_target_and_falls_alike_on_both_sides_whatever_the_verdict(target, miss, alpha):
    lengths = [max(0, target - miss), target, target + miss, target + miss + 1]
    call = {"info": [{"target_tokens": target}] * 4}
    right, wrong = (rewards_of(lcpo_exact_reward(verdicts, alpha), lengths, v, **call) for v in (True, False))
    assert right == pytest.approx([1 + value for value in wrong])
    assert right[1] == 1 and right[2] == pytest.approx(1 - alpha * miss)
    assert right[3] == pytest.approx(right[2] - alpha)
    if miss <= target:
        assert right[0] == pytest.approx(right[2])


@given(st.integers(0, 200), st.floats(1e-3, 0.05), st.floats(0, 1))
def test_lcpo_max_pays_right_answers_alone_and_less_the_longer_they_are_within_0_and_1(target, alpha, delta):
    lengths = range(400)
    call = {"info": [{"target_tokens": target}] * len(lengths)}
    right, wrong = (rewards_of(lcpo_max_reward(verdicts, alpha, delta), lengths, v, **call) for v in (True, False))
    assert wrong == [0.0] * len(lengths)
    assert right[target] == pytest.approx(delta)
    assert right == sorted(right, reverse=True) and 0 <= min(right) and max(right) <= 1
    assert all(here - there <= alpha + 1e-9 for here, there in zip(right, right[1:], strict=False))  # no jump
    beyond = target + math.ceil(delta / alpha)
    assert all(value == pytest.approx(0, abs=1e-9) for value in right[beyond:])


@given(windows, st.data())
def test_the_overlong_punishment_has_its_ends_and_no_jump(window, data):
    buffer = data.draw(st.integers(1, window))
    found = rewards_of(overlong_reward(window, buffer), range(window + 2), True)
    assert found[: window - buffer + 1] == [0.0] * (window - buffer + 1) and found[window:] == [-1.0, -1.0]
    assert all(0 <= here - there <= 1 / buffer + 1e-9 for here, there in zip(found, found[1:], strict=False))


def test_they_work_unchanged_as_reward_funcs_of_trl_around_a_verifier_that_needs_its_columns():
    """TRL calls with keywords: texts or chats, the token ids, every column of the data set and objects of its own."""
    task = Addition((2,))
    problem = task.problem("train", 0)
    texts = [f"<answer> {problem.answer} </answer>", "<answer> 1 </answer>"]
    extras = dict(trainer_state=object(), log_extra=lambda *a: None, log_metric=lambda *a: None)
    verdict = accuracy_reward(task, tags=True)
    expected = {
        "classic": (classic_reward(verdict, 100), [1.0, 0.0]),
        "cosine": (cosine_reward(verdict, 100), [1.5, -5.0]),
        "lcpo_exact": (lcpo_exact_reward(verdict, 0.01), [0.9, -0.1]),
        "lcpo_max": (lcpo_max_reward(verdict, 0.01), [0.6, 0.0]),
        "repetition": (repetition_reward(2, -1.0), [-48 / 49, -48 / 49]),
    }
    for completions in (texts, [[{"role": "assistant", "content": text}] for text in texts]):
        call = dict(prompts=[problem.prompt] * 2, completions=completions, completion_ids=[[0] * 50] * 2,
                    answer=[problem.answer] * 2, solution=["", ""], info=[{"target_tokens": 60}] * 2)  # fmt: skip
        for name, (reward, rewards) in expected.items():
            assert reward.__name__ == name  # what TRL's metrics call it
            assert reward(**call, **extras) == pytest.approx(rewards)


# -------------------------------------------------------------------------------------------------------- repetition


@example([1, 2, 3, 0, 1, 2, 3], 3)
@given(token_lists, st.integers(1, 6))
def test_a_token_is_punished_once_where_some_n_gram_over_it_was_there_before(tokens, n):
    starts = range(len(tokens) - n + 1)
    grams = [tokens[s : s + n] for s in starts]
    repeated = [s for s in starts if grams[s] in grams[:s]]
    expected = [-0.5 if any(s <= t < s + n for s in repeated) else 0.0 for t in range(len(tokens))]
    assert repetition_penalties(tokens, n, -0.5) == expected


@given(token_lists, st.integers(1, 6))
def test_dense_and_sparse_agree_on_what_repetition_is_and_the_first_occurrence_is_free(tokens, n):
    dense = repetition_penalties(tokens, n, -1.0)
    (sparse,) = repetition_reward(n)([""], [""], completion_ids=[tokens])
    assert (sparse < 0) == any(dense) and -1 < sparse <= 0
    assert not any(dense[:n])
    assert repetition_penalties([9, *tokens], n, -1.0)[1:] == dense  # only what came before matters, not where
    assert not any(repetition_penalties(list(range(len(tokens))), n))
    twice = repetition_penalties(tokens + tokens, n, -1.0)[len(tokens) :]
    assert twice == [-1.0] * len(tokens) or len(tokens) < n


@given(st.lists(st.floats(-1, 1), max_size=12), st.floats(0, 1))
def test_the_return_of_a_token_is_the_discounted_sum_from_it_on(rewards, gamma):
    expected = [sum(gamma**i * r for i, r in enumerate(rewards[t:])) for t in range(len(rewards))]
    assert discounted_returns(rewards, gamma) == pytest.approx(expected)
    assert discounted_returns(rewards, 0.0) == rewards


# ------------------------------------------------------------------------------------- advantages of single tokens


def row_of(tokens, mask, advantage=0.0, token_advantages=None, prompt_len=1) -> Rollout:
    return Rollout(Problem("p", ""), tokens, mask, [-0.5 * m for m in mask], prompt_len, advantage=advantage,
                   token_advantages=token_advantages)  # fmt: skip


def test_token_advantages_by_hand():
    """A = 0.5; tokens 3 and 4 of 2 2 2 repeat; gamma 0.5 makes -1 -1 on them -0.75 -1.5 -1 over the response."""
    returns = discounted_returns(repetition_penalties([2, 2, 2], 2, -1.0), 0.5)
    assert returns == [-0.75, -1.5, -1.0]
    rows = [row_of([7, 2, 2, 2], [False, True, True, True], 0.5, [0.0, *returns]), row_of([7, 3], [False, True], 2.0)]
    batch = collate(rows, token_weights(rows, "token"), torch.device("cpu"))
    assert batch.advantages.tolist() == [[0.5, -0.25, -1.0, -0.5], [2.0, 2.0, 2.0, 2.0]]
    for loss in (PolicyLoss(on_policy=True), PolicyLoss(), PolicyLoss(level="detached", on_policy=True)):
        logprobs = batch.old_logprobs.clone().requires_grad_(True)
        (loss(logprobs, batch) * batch.weights).sum().backward()
        slopes = [[0.0, 0.25 / 4, 1.0 / 4, 0.5 / 4], [0.0, -2.0 / 4, 0.0, 0.0]]  # -(A + G_t) / 4 loss tokens
        assert logprobs.grad.tolist() == [pytest.approx(values) for values in slopes]


def test_without_them_a_row_has_one_advantage():
    rows = [row_of([7, 2, 2], [False, True, True], 0.5), row_of([7, 3], [False, True], -1.0)]
    assert collate(rows, token_weights(rows), torch.device("cpu")).advantages.tolist() == [[0.5], [-1.0]]


def test_the_clip_decides_token_by_token_by_the_sign_of_that_tokens_advantage():
    """Ratio 1.5: the gradient stops where A + G_t is positive and goes on where it is negative."""
    rows = [row_of([7, 2, 2], [False, True, True], 1.0, [0.0, 0.0, -3.0])]
    batch = collate(rows, token_weights(rows), torch.device("cpu"))
    logprobs = (batch.old_logprobs + math.log(1.5)).requires_grad_(True)
    loss = PolicyLoss()
    (loss(logprobs, batch) * batch.weights).sum().backward()
    assert logprobs.grad[0].tolist() == pytest.approx([0, 0, 1.5 * 2 / 2])
    assert loss.measure(logprobs.detach(), batch)["clip_ratio/region_mean"][0, 1:].tolist() == [True, False]


@pytest.mark.parametrize("micro_tokens", [1, 12, 1000])
def test_the_gradient_does_not_depend_on_which_rows_share_a_batch(make_model, micro_tokens):
    def gradient(micro_tokens: int) -> torch.Tensor:
        model = make_model(3)
        rows = [row_of([1, *range(2, 2 + n)], [False] + [True] * n, n - 2.0) for n in (2, 3, 4, 5)]
        rows[1].token_advantages = [0.0, -1.0, -2.0, 1.0]
        loss = PolicyLoss(on_policy=True)
        update(model, make_optimizer(model), rows, loss, lr=0.0, micro_tokens=micro_tokens, max_grad_norm=1e9,
               measure=loss.measure)  # fmt: skip
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    assert torch.allclose(gradient(micro_tokens), gradient(64), atol=1e-6)


def test_in_a_flat_group_a_step_makes_the_repeated_tokens_rarer_and_leaves_no_advantage_to_the_rest(make_model):
    model = make_model(4)
    tokens = [1, 5, 6, 7, 5, 6, 7, 8]
    penalties = repetition_penalties(tokens[1:], 3, -1.0)
    row = row_of(tokens, [False] + [True] * 7, 0.0, [0.0, *discounted_returns(penalties, 0.0)])
    before = grpo.score(model, [row], 1.0, 100)[0]
    update(model, make_optimizer(model), [row], PolicyLoss(on_policy=True), lr=1e-3)
    after = grpo.score(model, [row], 1.0, 100)[0]
    assert [t for t, penalty in enumerate(penalties) if penalty] == [3, 4, 5]
    assert sum(after[4:7]) < sum(before[4:7])


# ------------------------------------------------------------------------------------------------------ the recipe


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    """A policy that has seen a little of one-digit sums, answered directly: right sometimes."""
    words = tokenizer()
    model = Transformer(small_config(32, 2, 2, words.vocab_size, 32), seed=1)
    task = Addition((1,), form="direct")
    fit(model, make_optimizer(model), from_stream(words, task, "base", 16), steps=150, lr=1e-2, warmup=5)
    folder = tmp_path_factory.mktemp("base") / "policy"
    save_checkpoint(folder, model, words)
    return str(folder)


@pytest.fixture
def config(base, tmp_path):
    return replace(grpo.PRESETS["tiny"], base=base, out=str(tmp_path / "run"), max_new_tokens=8, repetition_n=2)


def judged(config, words, texts: list[str]) -> tuple[list[Rollout], dict[str, list[float]]]:
    """Rows that answer 3 + 4 with these texts, and the parts of their rewards."""
    rows = prompt_rows(words, [Problem("Input:\n3 + 4\nTarget:\n", "7", info={"digits": 1})] * len(texts))
    for row, text in zip(rows, texts, strict=True):
        for token in words.encode(text):
            row.sampled(token, -1.0)
    return rows, grpo.judge(grpo.with_algorithm(config), words, rows)


TEXTS = ["7", "7\n3 3 3 3 3 3", "4 4 4 4", "5"]  # right; right and at the limit; wrong and repeating itself; wrong


def test_the_verdict_is_shaped_by_length_and_measured_as_it_is(config):
    _, words = load_checkpoint(config.base)
    rows, parts = judged(replace(config, length_reward="classic"), words, TEXTS)
    assert parts["accuracy"] == [1, 1, 0, 0]
    assert [row.reward for row in rows] == parts["classic"] == [1, 0, 0, 0]
    rows, parts = judged(replace(config, length_reward="cosine", accuracy_weight=2.0), words, TEXTS)
    assert parts["accuracy"] == [1, 1, 0, 0]
    expected = [1 + (1 + math.cos(math.pi / 8)) / 2, -10, -5, -5 * (1 + math.cos(math.pi / 8))]
    assert parts["cosine"] == pytest.approx(expected)
    assert [row.reward for row in rows] == pytest.approx([2 * value for value in expected])
    assert all(row.token_advantages is None for row in rows)


def test_repetition_is_a_part_of_the_reward_or_of_the_tokens_advantages(config):
    _, words = load_checkpoint(config.base)
    rows, parts = judged(replace(config, repetition="sparse", repetition_penalty=-0.5), words, TEXTS)
    assert parts["repetition"] == pytest.approx([0, -0.5 * 4 / 7, -0.5 * 2 / 3, 0])
    assert [row.reward for row in rows] == pytest.approx([1, 1 - 2 / 7, -1 / 3, 0])
    settings = replace(config, repetition="dense", repetition_penalty=-0.5, repetition_gamma=0.5)
    rows, parts = judged(settings, words, TEXTS)
    assert [row.reward for row in rows] == [1, 1, 0, 0]
    assert parts["repetition"] == [0, -0.5 * 5, -0.5 * 3, 0]
    assert rows[2].token_advantages[: rows[2].prompt_len] == [0.0] * rows[2].prompt_len
    assert rows[2].token_advantages[rows[2].prompt_len :] == pytest.approx([-0.4375, -0.875, -0.75, -0.5])
    assert all(len(row.token_advantages) == len(row.tokens) for row in rows)


def test_a_run_with_all_of_it_goes_through_and_measures_every_part(config, tmp_path):
    config = replace(config, length_reward="cosine", cosine_right=(1.0, 0.5), cosine_wrong=(-1.0, 0.0),
                     cosine_exceed=-1.0, repetition="dense")  # fmt: skip
    grpo.run(config)
    for line in read_jsonl(tmp_path / "run" / "metrics.jsonl")[1:]:
        assert line["reward"] == pytest.approx(line["rewards/cosine/mean"])
        assert line["rewards/accuracy/mean"] == line["accuracy"] and line["rewards/repetition/mean"] <= 0
        assert (line["completions/repetition"] > 0) == (line["rewards/repetition/mean"] < 0)
        assert -1 <= line["reward"] <= 1 and math.isfinite(line["loss"])


def test_the_answers_of_unsolvable_sums_are_out_of_reach_and_held_out_sums_stay_as_they_are(config):
    some, none = replace(config, unsolvable=0.3, digits=(1, 2)), replace(config, digits=(1, 2))
    pairs = [(practice.posed(some, "rl", i), practice.posed(none, "rl", i)) for i in range(400)]
    lost = [a != b for a, b in pairs]
    assert 0.2 < sum(lost) / len(lost) < 0.4
    for (posed, real), is_lost in zip(pairs, lost, strict=True):
        assert posed == replace(real, answer=posed.answer) and (posed.answer != real.answer) == is_lost
        assert practice.task_of(some).reward(posed, real.answer) == 1 - is_lost
    assert practice.held_out(some) == practice.held_out(none)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(unsolvable=0.5, task="countdown", template="skeleton"), "--unsolvable is about sums"),
        (dict(length_reward="linear"), "--length-reward linear: one of none, classic, cosine"),
        (dict(repetition="all"), "--repetition all: one of none, dense, sparse"),
        (dict(length_margin=8), "--length-margin 8"),
        (dict(repetition="dense", repetition_n=40), "--repetition-n 40"),
    ],
)
def test_settings_that_cannot_work_are_refused(config, changed, message):
    with pytest.raises(ValueError, match=message):
        grpo.run(replace(config, **changed))
