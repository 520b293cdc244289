"""Rewards about length and repetition: endpoints, order and continuity; advantages of single tokens by hand."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from nanoreason.environment import compute_rewards, judge
from nanoreason.learn import Algorithm, collate, compute_logprobs, fit, make_optimizer, token_weights, update
from nanoreason.model import Transformer, small_config
from nanoreason.recipes import grpo
from nanoreason.rewards import (
    Accuracy,
    Classic,
    Cosine,
    DenseRepetition,
    Lcpo,
    Noisy,
    Overlong,
    Repetition,
    Scored,
    discounted_returns,
    repetition_penalties,
    trl_reward,
)
from nanoreason.rollout import Problem, Rollout, demonstration, prompt_rows
from nanoreason.run import Schedule, parse_config, read_jsonl
from nanoreason.tasks import Addition, ThinkingAddition
from nanoreason.tasks.addition import tokenizer
from nanoreason.tasks.wrappers import Templated, Unanswerable

windows = st.integers(2, 300)
values = st.floats(-20, 20)
token_lists = st.lists(st.integers(0, 3), max_size=30)


def response_of(tokens, right: bool = True, limit: int = 300, stop_reason: str = "eos", **info) -> Scored:
    """A judged response of these tokens."""
    row = Rollout(Problem("", "", info=info), tokens, [True] * len(tokens), [0.0] * len(tokens), 0,
                  stop_reason=stop_reason)  # fmt: skip
    return Scored(row, "", float(right), limit)


def rewards_of(reward, lengths, right: bool, limit: int = 300, **info) -> list[float]:
    """What `reward` gives to right or wrong responses of these lengths that end by themselves."""
    return [reward(response_of([0] * n, right, limit, **info)) for n in lengths]


# ------------------------------------------------------------------------------------------------- classic, cosine


@given(windows, st.data())
def test_the_classic_reward_is_the_verdict_below_the_limit_and_nothing_from_there_on(window, data):
    margin = data.draw(st.integers(0, window - 1))
    reward, lengths = Classic(margin=margin), range(window + 3)
    assert rewards_of(reward, lengths, True, window) == [float(n < window - margin) for n in lengths]
    assert rewards_of(reward, lengths, False, window) == [0.0] * len(lengths)


@given(windows, values, values, st.booleans(), values)
def test_the_cosine_goes_from_its_start_to_its_end_without_a_jump_and_never_back(window, start, end, right, exceed):
    ends = {"right": (start, end), "wrong": (3.0, 4.0)} if right else {"right": (3.0, 4.0), "wrong": (start, end)}
    found = rewards_of(Cosine(**ends, exceed=exceed), range(window + 2), right, window)
    wave, step = found[:window], abs(start - end) * math.pi / window / 2  # the steepest slope of the wave
    assert wave[0] == pytest.approx(start) and found[window:] == [exceed, exceed]
    assert abs(wave[-1] - end) <= step + 1e-9
    for here, there in zip(wave, wave[1:], strict=False):
        assert 0 - 1e-9 <= (there - here) * (1 if end > start else -1) <= step + 1e-9
    middle = rewards_of(Cosine(**ends), [window], right, 2 * window)
    assert middle == pytest.approx([(start + end) / 2])


@given(windows, st.data())
def test_the_defaults_order_responses_as_the_paper_wants_them(window, data):
    """Short right > long right > long wrong > short wrong = too long."""
    right, wrong = (rewards_of(Cosine(), range(window), verdict, window) for verdict in (True, False))
    assert right == sorted(right, reverse=True) and right[0] == 2 and min(right) >= 1
    assert wrong == sorted(wrong) and wrong[0] == -10 and max(wrong) <= 0 < min(right)
    margin = data.draw(st.integers(0, window - 1))
    cut = rewards_of(Cosine(margin=margin), [window - margin - 1, window - margin], True, window)
    assert cut[0] >= 1 and cut[1] == -10  # the margin moves the limit and nothing else
    assert cut[0] == right[window - margin - 1]


@given(st.integers(0, 200), st.booleans(), st.integers(0, 50))
def test_what_the_context_cuts_before_the_budget_counts_as_exceeding_it(length, right, margin):
    cut, whole = (response_of([0] * length, right, 300, stop_reason) for stop_reason in ("length", "eos"))
    assert Cosine(margin=margin)(cut) == -10 and Classic(margin=margin)(cut) == 0
    assert Cosine(margin=margin)(whole) > -10 or (length, right) == (0, False)
    assert Classic(margin=margin)(whole) == right


# -------------------------------------------------------------------------------------------- verifiers that err


def answered(i: int, right: bool, stop_reason: str = "eos", text: str = "<answer> {} </answer>") -> Scored:
    """A judged response that answers i to one of seven problems."""
    row = Rollout(Problem(f"problem {i % 7}", ""), [0] * 9, [True] * 9, [0.0] * 9, 0, stop_reason=stop_reason)
    return Scored(row, text.format(i), float(right), 300)


@pytest.mark.parametrize("accept, reject", [(0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.3, 0.2), (1.0, 1.0)])
def test_a_verifier_errs_as_often_as_it_says_and_judges_the_same_answer_alike(accept, reject):
    verifier = Noisy(accept=accept, reject=reject)
    for right, passing in ((True, 1 - reject), (False, accept)):
        found, again = (
            [verifier(answered(i, right, text=text)) for i in range(1000)]
            for text in ("<answer> {} </answer>", "<think> hm </think> <answer>{}</answer>")
        )
        assert found == again
        assert set(found) <= {0.0, 1.0} and sum(found) / 1000 == pytest.approx(passing, abs=0.05)
        assert not any(verifier(answered(i, right, "length")) for i in range(9))
        assert not any(verifier(answered(i, right, text="<answer> {}")) for i in range(9))


# ---------------------------------------------------------------------------------------------------- LCPO, overlong


@given(st.integers(0, 200), st.integers(0, 200), st.floats(1e-4, 0.05))
def test_lcpo_exact_is_best_at_the_target_and_falls_alike_on_both_sides_whatever_the_verdict(target, miss, alpha):
    lengths = [max(0, target - miss), target, target + miss, target + miss + 1]
    call = {"target_tokens": target, "kind": "exact"}
    right, wrong = (rewards_of(Lcpo(alpha=alpha), lengths, v, **call) for v in (True, False))
    assert right == pytest.approx([1 + value for value in wrong])
    assert right[1] == 1 and right[2] == pytest.approx(1 - alpha * miss)
    assert right[3] == pytest.approx(right[2] - alpha)
    if miss <= target:
        assert right[0] == pytest.approx(right[2])


@given(st.integers(0, 200), st.floats(1e-3, 0.05), st.floats(0, 1))
def test_lcpo_max_pays_right_answers_alone_and_less_the_longer_they_are_within_0_and_1(target, alpha, delta):
    lengths = range(400)
    call = {"target_tokens": target, "kind": "max"}
    right, wrong = (rewards_of(Lcpo(alpha=alpha, delta=delta), lengths, v, **call) for v in (True, False))
    assert wrong == [0.0] * len(lengths)
    assert right[target] == pytest.approx(delta)
    assert right == sorted(right, reverse=True) and 0 <= min(right) and max(right) <= 1
    assert all(here - there <= alpha + 1e-9 for here, there in zip(right, right[1:], strict=False))  # no jump
    beyond = target + math.ceil(delta / alpha)
    assert all(value == pytest.approx(0, abs=1e-9) for value in right[beyond:])


def test_lcpo_without_a_number_in_the_prompt_is_one_clear_error():
    with pytest.raises(ValueError, match="lcpo needs problems whose info has target_tokens"):
        Lcpo()(response_of([0]))


@given(windows, st.floats(0, 1, exclude_min=True))
def test_the_overlong_punishment_has_its_ends_and_no_jump(window, share):
    buffer = max(1, round(share * window))
    found = rewards_of(Overlong(share=share), range(window + 2), True, window)
    assert found[: window - buffer + 1] == [0.0] * (window - buffer + 1) and found[window:] == [-1.0, -1.0]
    assert all(0 <= here - there <= 1 / buffer + 1e-9 for here, there in zip(found, found[1:], strict=False))


TRL_EXTRAS = dict(trainer_state=object(), log_extra=lambda *a: None, log_metric=lambda *a: None)


def test_they_work_unchanged_as_reward_funcs_of_trl_around_a_verifier_that_needs_its_columns():
    """TRL calls with keywords: texts or chats, the token ids, every column of the data set and objects of its own."""
    task = Templated(ThinkingAddition((2,)))
    problem = task.problem("train", 0)
    texts = [f"<answer> {problem.answer} </answer>", "<answer> 1 </answer>"]
    expected = {
        "accuracy": (Accuracy(), [1.0, 0.0]),
        "classic": (Classic(), [1.0, 0.0]),
        "cosine": (Cosine(), [1.5, -5.0]),
        "lcpo": (Lcpo(alpha=0.01), [0.9, -0.1]),
        "repetition": (Repetition(n=2), [-48 / 49, -48 / 49]),
    }
    for completions in (texts, [[{"role": "assistant", "content": text}] for text in texts]):
        call = dict(prompts=[problem.prompt] * 2, completions=completions, completion_ids=[[0] * 50] * 2,
                    answer=[problem.answer] * 2, solution=["", ""], info=[{"target_tokens": 60}] * 2)  # fmt: skip
        for name, (reward, rewards) in expected.items():
            function = trl_reward(reward, task, 100)
            assert function.__name__ == name  # what TRL's metrics call it
            assert function(**call, **TRL_EXTRAS) == pytest.approx(rewards)
    call["info"] = [{"target_tokens": 60, "kind": "max"}] * 2
    assert trl_reward(Lcpo(alpha=0.01), task, 100)(**call, **TRL_EXTRAS) == pytest.approx([0.6, 0.0])
    at_the_limit = {**call, "completion_ids": [[0] * 100, [0] * 99]}  # TRL does not say what it cut
    assert trl_reward(Cosine(), task, 100)(**at_the_limit)[0] == -10


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
    sparse = Repetition(n=n)(response_of(tokens))
    assert (sparse < 0) == any(dense) and -1 < sparse <= 0
    starts = range(len(tokens) - n + 1)
    repeats = [s for s in starts if tokens[s : s + n] in [tokens[r : r + n] for r in range(s)]]
    assert not any(dense[: min(repeats, default=len(tokens))]) and 0 not in repeats
    assert repetition_penalties([9, *tokens], n, -1.0)[1:] == dense  # only what came before matters, not where
    assert not any(repetition_penalties(list(range(len(tokens))), n, -1.0))
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
    for loss in (Algorithm(on_policy=True), Algorithm(), Algorithm(ratio="detached", on_policy=True)):
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
    loss = Algorithm()
    (loss(logprobs, batch) * batch.weights).sum().backward()
    assert logprobs.grad[0].tolist() == pytest.approx([0, 0, 1.5 * 2 / 2])
    assert loss.measure(logprobs.detach(), batch)["clip_ratio/region_mean"][0, 1:].tolist() == [True, False]


@pytest.mark.parametrize("micro_tokens", [1, 12, 1000])
def test_the_gradient_does_not_depend_on_which_rows_share_a_batch(make_model, micro_tokens):
    def gradient(micro_tokens: int) -> torch.Tensor:
        model = make_model(3)
        rows = [row_of([1, *range(2, 2 + n)], [False] + [True] * n, n - 2.0) for n in (2, 3, 4, 5)]
        rows[1].token_advantages = [0.0, -1.0, -2.0, 1.0]
        loss = Algorithm(on_policy=True)
        update(model, make_optimizer(model), rows, loss, lr=0.0, micro_tokens=micro_tokens, max_grad_norm=1e9,
               measure=loss.measure)  # fmt: skip
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    assert torch.allclose(gradient(micro_tokens), gradient(64), atol=1e-6)


def test_in_a_flat_group_a_step_makes_the_repeated_tokens_rarer_and_leaves_no_advantage_to_the_rest(make_model):
    model = make_model(4)
    tokens = [1, 5, 6, 7, 5, 6, 7, 8]
    penalties = repetition_penalties(tokens[1:], 3, -1.0)
    row = row_of(tokens, [False] + [True] * 7, 0.0, [0.0, *discounted_returns(penalties, 0.0)])
    before = compute_logprobs(model, [row], 1.0, 100)[0]
    update(model, make_optimizer(model), [row], Algorithm(on_policy=True), lr=1e-3)
    after = compute_logprobs(model, [row], 1.0, 100)[0]
    assert [t for t, penalty in enumerate(penalties) if penalty] == [3, 4, 5]
    assert sum(after[4:7]) < sum(before[4:7])


# ------------------------------------------------------------------------------------------------------ the recipe


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    """A policy that has seen a little of one-digit sums, answered directly: right sometimes."""
    from nanoreason.checkpoint import save_checkpoint

    words = tokenizer()
    model = Transformer(small_config(32, 2, 2, words.vocab_size, 32), seed=1)
    task = Addition((1,), form="direct")

    def rows_of(step):
        return [demonstration(words, task.problem("base", i)) for i in range(16 * step, 16 * step + 16)]

    for _ in fit(model, make_optimizer(model), rows_of, steps=150, lr=1e-2, warmup=5, decay="linear"):
        pass
    folder = tmp_path_factory.mktemp("base") / "policy"
    save_checkpoint(folder, model, words)
    return str(folder)


@pytest.fixture
def config(base, tmp_path):
    return replace(grpo.PRESETS["tiny"], base=base, out=str(tmp_path / "run"), max_new_tokens=Schedule(8),
                   task=Addition((1,), form="direct"))  # fmt: skip


def judged(rewards, texts: list[str]) -> tuple[list[Rollout], dict[str, list[float]]]:
    """Rows that answer 3 + 4 with these texts under a budget of 8 tokens, and the parts of their rewards."""
    words, task = tokenizer(), Addition((1,), form="direct")
    rows = prompt_rows(words, [Problem("Input:\n3 + 4\nTarget:\n", "7", info={"digits": 1})] * len(texts))
    for row, text in zip(rows, texts, strict=True):
        for token in words.encode(text):
            row.sampled(token, -1.0)
    return rows, compute_rewards(judge(task, words, [rows], 8), rewards)


TEXTS = ["7", "7\n3 3 3 3 3 3", "4 4 4 4", "5"]  # right; right and at the limit; wrong and repeating itself; wrong


def test_the_verdict_is_shaped_by_length_and_measured_as_it_is():
    rows, parts = judged((Classic(),), TEXTS)
    assert [row.reward for row in rows] == parts["classic"] == [1, 0, 0, 0]
    rows, parts = judged((Cosine(weight=2.0), Accuracy(weight=0.0)), TEXTS)
    assert parts["accuracy"] == [1, 1, 0, 0]
    expected = [1 + (1 + math.cos(math.pi / 8)) / 2, -10, -5, -5 * (1 + math.cos(math.pi / 8))]
    assert parts["cosine"] == pytest.approx(expected)
    assert [row.reward for row in rows] == pytest.approx([2 * value for value in expected])
    assert all(row.token_advantages is None for row in rows)


def test_repetition_is_a_part_of_the_reward_or_of_the_tokens_advantages():
    rows, parts = judged((Accuracy(), Repetition(n=2, penalty=-0.5)), TEXTS)
    assert parts["repetition"] == pytest.approx([0, -0.5 * 4 / 7, -0.5 * 2 / 3, 0])
    assert [row.reward for row in rows] == pytest.approx([1, 1 - 2 / 7, -1 / 3, 0])
    rows, parts = judged((Accuracy(), DenseRepetition(n=2, penalty=-0.5, gamma=0.5)), TEXTS)
    assert [row.reward for row in rows] == [1, 1, 0, 0]
    assert parts["dense_repetition"] == [0, -0.5 * 5, -0.5 * 3, 0]
    assert rows[2].token_advantages[: rows[2].prompt_len] == [0.0] * rows[2].prompt_len
    assert rows[2].token_advantages[rows[2].prompt_len :] == pytest.approx([-0.4375, -0.875, -0.75, -0.5])
    assert all(len(row.token_advantages) == len(row.tokens) for row in rows)


@pytest.mark.trains
def test_a_run_with_all_of_it_goes_through_and_measures_every_part(config, tmp_path):
    cosine = Cosine(right=(1.0, 0.5), wrong=(-1.0, 0.0), exceed=-1.0)
    grpo.run(replace(config, rewards=(cosine, DenseRepetition(n=2))))
    for line in read_jsonl(tmp_path / "run" / "metrics.jsonl")[1:]:
        assert line["reward"] == pytest.approx(line["rewards/cosine/mean"])
        assert 0 <= line["accuracy"] <= 1 and line["rewards/dense_repetition/mean"] <= 0
        assert (line["completions/repetition"] > 0) == (line["rewards/dense_repetition/mean"] < 0)
        assert -1 <= line["reward"] <= 1 and math.isfinite(line["loss"])


def test_the_answers_of_unsolvable_sums_are_out_of_reach_and_held_out_sums_stay_as_they_are():
    none = Addition((1, 2), form="direct")
    some = Unanswerable(none, wrong_answer_prob=0.3)
    pairs = [(some.problem("rl", i), none.problem("rl", i)) for i in range(400)]
    lost = [a != b for a, b in pairs]
    assert 0.2 < sum(lost) / len(lost) < 0.4
    for (posed, real), is_lost in zip(pairs, lost, strict=True):
        assert posed == replace(real, answer=posed.answer) and (posed.answer != real.answer) == is_lost
        assert some.reward(posed, real.answer) == some.is_right_leniently(posed, real.answer) == 1 - is_lost
    assert some.test_problems(20) == none.test_problems(20)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--rewards", "linear"],
            "--rewards linear: one of accuracy, format, strict, noisy, overlong, classic, cosine",
        ),
        (["--rewards", "classic", "--rewards.classic.margin", "8"], "margin of 8 tokens leaves nothing"),
        (["--rewards", "cosine", "--rewards.cosine.right", "1"], "--rewards.cosine.right 1: 2 values are needed"),
        (["--rewards", "repetition", "--rewards.repetition.n", "0"], "--rewards.repetition.n 0: must be at least 1"),
        (["--rewards", "repetition", "--rewards.repetition.n", "40"], "n-grams of 40 tokens"),
        (["--rewards", "dense_repetition", "--rewards.dense_repetition.gamma=2"], "must be at least 0 and at most 1"),
        (["--rewards", "overlong", "--rewards.overlong.share", "0"], "must be more than 0"),
        (["--rewards", "lcpo"], "--rewards lcpo needs prompts that ask for a number"),
        (["--rewards", "accuracy:nan"], "--rewards accuracy:nan: a weight must be a finite number"),
        (["--rewards", "accuracy:-inf"], "--rewards accuracy:-inf: a weight must be a finite number"),
        (["--rewards", "accuracy,format,accuracy:2"], "--rewards accuracy,format,accuracy:2: accuracy stands there tw"),
        (["--rewards", "accuracy:0"], "no reward has a weight other than 0"),
        (["--rewards="], "no reward"),
    ],
)
def test_settings_that_cannot_work_are_refused(config, flags, message):
    with pytest.raises(ValueError, match=message):
        grpo.run(parse_config({"tiny": config}, flags, "grpo"))
