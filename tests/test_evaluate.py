"""Measuring: pass@k and maj@k against brute force, intervals that cover, lenient and strict side by side."""

import itertools
import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoreason.environment import by_difficulty, evaluate, judge, sample
from nanoreason.evaluate import bootstrap_interval, control, maj_at_k, pass_at_k, performance, scaling
from nanoreason.learn import make_optimizer, update
from nanoreason.model import Transformer, small_config
from nanoreason.rollout import Task, demonstration
from nanoreason.tasks import addition
from nanoreason.tasks.addition import Addition

# ---------------------------------------------------------------------------------------------------- pass@k, maj@k


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_pass_at_k_is_the_share_of_all_subsets_of_k_that_hold_a_right_answer(right, data):
    k = data.draw(st.integers(1, len(right)))
    subsets = list(itertools.combinations(right, k))
    assert pass_at_k(len(right), sum(right), k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@given(st.integers(1, 2000), st.data())
def test_pass_at_k_is_a_probability_that_grows_with_k_and_with_the_right_answers(n, data):
    c, k = data.draw(st.integers(0, n - 1)), data.draw(st.integers(1, 2 * n))
    value = pass_at_k(n, c, k)
    assert 0.0 <= value <= 1.0
    assert value <= pass_at_k(n, c + 1, k) and value <= pass_at_k(n, c, k + 1)
    assert pass_at_k(n, c, 1) == pytest.approx(c / n)


def test_pass_at_k_at_its_ends():
    assert pass_at_k(10, 0, 10) == pass_at_k(10, 0, 50) == 0.0
    assert pass_at_k(10, 1, 10) == pass_at_k(10, 1, 50) == pass_at_k(10, 10, 1) == 1.0
    assert pass_at_k(10, 4, 7) == 1.0  # no seven without a right one


@pytest.mark.parametrize(("n", "c", "k"), [(3, 4, 1), (3, -1, 1), (3, 1, 0)])
def test_pass_at_k_of_impossible_counts_is_an_error(n, c, k):
    with pytest.raises(ValueError, match="pass@k"):
        pass_at_k(n, c, k)


def majority(answers, right, subset):
    """1 if the majority of the subset is right; a tie counts as the share of right ones among the tied."""
    votes = Counter(answers[i] for i in subset if answers[i] is not None)
    if not votes:
        return 0.0
    tied = [answer for answer in votes if votes[answer] == max(votes.values())]
    return sum(answer == right for answer in tied) / len(tied)


@given(st.lists(st.sampled_from(["7", "8", "9", None]), min_size=1, max_size=8))
def test_maj_at_n_is_the_majority_of_all_answers_with_ties_shared_and_no_vote_for_no_answer(answers):
    right = [answer == "7" for answer in answers]
    assert maj_at_k(answers, right, len(answers)) == majority(answers, "7", range(len(answers)))


def test_maj_at_k_is_close_to_the_mean_over_all_subsets_and_the_same_each_time():
    answers = ["7", "8", "7", None, "9", "7", "8", "8"]
    right = [answer == "7" for answer in answers]
    subsets = list(itertools.combinations(range(8), 3))
    exact = sum(majority(answers, "7", subset) for subset in subsets) / len(subsets)
    assert maj_at_k(answers, right, 3, draws=4000) == pytest.approx(exact, abs=0.03)
    assert maj_at_k(answers, right, 3) == maj_at_k(answers, right, 3)
    assert maj_at_k(answers, right, 1, draws=4000) == pytest.approx(3 / 8, abs=0.03)


def test_three_wordings_of_a_right_answer_outvote_two_equal_wrong_ones():
    task, problem = Addition((2,)), Addition((2,)).parse("47 + 38")
    responses = ["8 5", "85", "8 5.", "8 6", "8 6"]
    answers, right = [task.answer(text) for text in responses], [task.reward(problem, text) == 1 for text in responses]
    assert right == [True, False, False, False, False]  # the strict judge takes one of the three
    assert [task.is_right_leniently(problem, text) for text in responses] == [True] * 3 + [False] * 2
    for order in itertools.permutations(range(5)):
        assert maj_at_k([answers[i] for i in order], [right[i] for i in order], 5) == 1.0
    assert maj_at_k(answers[1:], right[1:], 4) == 0.0  # no wording of it was right


@pytest.mark.parametrize("k", [0, 4])
def test_maj_at_k_of_more_answers_than_there_are_is_an_error(k):
    with pytest.raises(ValueError, match="maj@k"):
        maj_at_k(["1"] * 3, [True] * 3, k)


# ------------------------------------------------------------------------------------------------------ intervals


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_a_bootstrap_interval_holds_the_mean_and_stays_within_the_values(values):
    low, high = bootstrap_interval(values)
    mean = sum(values) / len(values)
    assert min(values) - 1e-9 <= low <= mean + 1e-9
    assert mean - 1e-9 <= high <= max(values) + 1e-9


def test_a_bootstrap_interval_has_the_width_of_the_normal_one_and_covers_as_often_as_it_says():
    generator = random.Random(0)
    covered = 0
    for _ in range(200):
        values = [float(generator.random() < 0.4) for _ in range(60)]
        low, high = bootstrap_interval(values, draws=200, seed=generator.getrandbits(32))
        covered += low <= 0.4 <= high
    assert 178 <= covered <= 199
    values = [float(i < 80) for i in range(200)]
    low, high = bootstrap_interval(values, draws=4000)
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.4 * 0.6 / 200), rel=0.1)
    narrow = bootstrap_interval(values, level=0.5, draws=4000)
    assert narrow[1] - narrow[0] == pytest.approx(2 * 0.674 * math.sqrt(0.4 * 0.6 / 200), rel=0.15)


def test_an_interval_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_interval([])


# ------------------------------------------------------------------------------------------------------- grading


def marks(task, problem, texts):
    """(right, right through valid work, right however it is written) of each text."""
    return [
        (task.reward(problem, text), task.reward(problem, text) * task.work_is_valid(problem, text),
         float(task.is_right_leniently(problem, text)))
        for text in texts
    ]  # fmt: skip


def test_lenient_marks_ask_for_the_answer_and_strict_ones_for_the_work_too():
    words, task = addition.tokenizer(), Addition((3,))
    problem = task.problem("train", 0)
    lines = problem.solution.split("\n")
    responses = {
        problem.solution: (1.0, 1.0, 1.0),
        "\n".join([*lines[:2], *lines[3:]]): (1.0, 0.0, 1.0),  # right answer, wrong work
        problem.solution + " 1": (0.0, 0.0, 0.0),
        "\n".join([*lines[:-1], "0"]): (0.0, 0.0, 0.0),
    }
    assert marks(task, problem, responses) == list(responses.values())
    scored = judge(task, words, [[demonstration(words, problem, text) for text in responses]])
    assert [one.text for one in scored] == list(responses)
    assert [one.verdict for one in scored] == [right for right, _, _ in responses.values()]
    assert [one.tokens for one in scored] == [len(words.encode(text)) + 1 for text in responses]


def test_a_task_without_a_check_of_the_work_has_strict_equal_to_lenient():
    class Plain(Task):
        def reward(self, problem, response):
            return float(response == problem.answer)

    problem = Addition((2,)).problem("train", 0)
    assert marks(Plain(), problem, [problem.answer, "0"]) == [(1.0, 1.0, 1.0), (0.0, 0.0, 0.0)]


def policy_that_says(monkeypatch, text_of):
    """From here on a rollout is the text `text_of(place of the problem, its problem, place in its group)`."""

    def said(task, policy, tokenizer, problems, *, group_size=1, **how):
        return [
            [demonstration(tokenizer, problem, text_of(i, problem, g)) for g in range(group_size)]
            for i, problem in enumerate(problems)
        ]

    monkeypatch.setattr("nanoreason.environment.sample", said)


def test_accuracy_is_counted_apart_for_each_difficulty_lenient_and_strict(monkeypatch):
    words, task = addition.tokenizer(), Addition((3, 2))

    def text_of(i, problem, g):
        wrong_work = problem.solution.replace("C: 0", "C: 1", 1)
        return [problem.solution, wrong_work, problem.solution[: -len(problem.answer)] + "0", "0"][i % 4]

    policy_that_says(monkeypatch, text_of)
    # places 0 to 9, of three digits: 0 4 8 through valid work, 1 5 9 too by another; 10 to 19, of two: 12 16, 13 17
    expected = {"acc/2": 0.4, "acc_strict/2": 0.2, "acc_lenient/2": 0.4,
                "acc/3": 0.6, "acc_strict/3": 0.3, "acc_lenient/3": 0.6}  # fmt: skip
    assert evaluate(task, None, words, 10) == expected
    assert list(by_difficulty(task, judge(task, words, [[demonstration(words, p)] for p in task.test_problems(2)]))) \
        == [2, 3]  # fmt: skip


@pytest.fixture(scope="module")
def memoriser():
    """A policy that was trained on four sums until it knows them, the tokenizer and the sums."""
    words = addition.tokenizer()
    problems = [Addition((1, 2)).problem("train", i) for i in range(4)]
    model = Transformer(small_config(32, 2, 4, words.vocab_size, 128), seed=1)
    optimizer, rows = make_optimizer(model), [demonstration(words, problem) for problem in problems]
    for _ in range(150):
        if update(model, optimizer, rows, lr=1e-2)["loss"] < 0.01:
            break
    return model, words, problems


@pytest.mark.trains
def test_a_policy_that_knows_its_sums_scores_one_on_them_and_not_on_others(memoriser, monkeypatch):
    model, words, problems = memoriser

    def scores(problems):
        monkeypatch.setattr(Addition, "test_problems", lambda self, count: problems)
        return evaluate(Addition(), model, words, 1)

    expected = [f"{name}/{n}" for n in (1, 2) for name in ("acc", "acc_strict", "acc_lenient")]
    assert scores(problems) == dict.fromkeys(expected, 1.0)
    others = [Addition((1, 2)).problem("test", i) for i in range(20)]
    assert all(score < 0.5 for score in scores([problem for problem in others if problem not in problems]).values())


@pytest.mark.trains
def test_responses_come_in_the_order_of_their_problems_with_each_group_together(memoriser):
    model, words, problems = memoriser
    groups = sample(Addition(), model, words, problems, group_size=3, temperature=1.0)
    assert [[row.problem for row in group] for group in groups] == [[problem] * 3 for problem in problems]
    rows = [row for group in groups for row in group]
    assert all(row.stop_reason for row in rows)
    assert len({row.seed for row in rows}) == len(rows)


@pytest.mark.trains
def test_responses_end_within_the_budget_of_their_problem(memoriser, monkeypatch):
    model, words, problems = memoriser
    monkeypatch.setattr(Addition, "max_tokens", lambda self, problem: 3 * self.difficulty(problem))
    groups = sample(Addition(), model, words, problems, temperature=0.0)
    assert [len(row.response) for (row,) in groups] == [3 * row.problem.info["digits"] for (row,) in groups]
    groups = sample(Addition(), model, words, problems, temperature=0.0, max_new_tokens=2)
    assert [len(row.response) for (row,) in groups] == [2] * 4


@pytest.mark.trains
def test_the_seed_decides_sampled_responses(memoriser):
    model, words, problems = memoriser

    def texts(seed):
        groups = sample(Addition(), model, words, problems, group_size=4, temperature=2.0, seed=seed)
        return [row.tokens for group in groups for row in group]

    assert texts(1) == texts(1) != texts(2)


def test_no_problems_have_no_accuracy(make_model):
    words = addition.tokenizer()
    model = make_model(0, vocab_size=words.vocab_size)
    assert evaluate(Addition((2,)), model, words, 0) == {}


# ------------------------------------------------------------------------------- scaling with the length of thinking


def test_control_scaling_and_performance_by_hand():
    assert control([10, 30, 60], [16, 16, 64]) == pytest.approx(2 / 3)
    assert control([10, 30, 60], [64] * 3, least=20) == pytest.approx(2 / 3)
    # slopes: (0.5-0.2)/20 = 0.015, (0.4-0.2)/40 = 0.005, (0.4-0.5)/20 = -0.005; their mean is 0.005 per token
    assert scaling([10, 30, 50], [0.2, 0.5, 0.4], per=100) == pytest.approx(50.0)
    assert scaling([30, 10, 50], [0.5, 0.2, 0.4], per=100) == pytest.approx(50.0)  # in any order
    assert scaling([10, 30, 50], [0.2, 0.5, 0.4], per=1000) == pytest.approx(500.0)
    assert scaling([10, 10], [0.2, 0.9]) == 0.0 and scaling([10, 10, 20], [0.2, 0.4, 0.4]) == pytest.approx(100.0)
    assert performance([0.2, 0.5, 0.4]) == 0.5
