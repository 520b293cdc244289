"""Measuring: pass@k and maj@k against brute force, intervals that cover, lenient and strict side by side."""

import itertools
import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoreason import evaluate
from nanoreason.evaluate import accuracy_by, bootstrap_interval, grade, maj_at_k, pass_at_k, respond
from nanoreason.learn import make_optimizer, update
from nanoreason.model import Transformer, small_config
from nanoreason.rollout import demonstration
from nanoreason.tasks import addition
from nanoreason.tasks.addition import Addition, digits_of

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


def test_lenient_marks_ask_for_the_answer_and_strict_ones_for_the_work_too():
    words, task = addition.tokenizer(), Addition((3,))
    problem = task.problem("train", 0)
    lines = problem.solution.split("\n")
    responses = {
        problem.solution: (1.0, 1.0),
        "\n".join([*lines[:2], *lines[3:]]): (1.0, 0.0),  # right answer, wrong work
        problem.solution + " 1": (0.0, 0.0),
        "\n".join([*lines[:-1], "0"]): (0.0, 0.0),
    }
    marks = grade(task, words, [demonstration(words, problem, text) for text in responses])
    assert [mark.text for mark in marks] == list(responses)
    assert [(mark.lenient, mark.strict) for mark in marks] == list(responses.values())
    assert [mark.tokens for mark in marks] == [len(words.encode(text)) + 1 for text in responses]


def test_a_task_without_a_check_of_the_work_has_strict_equal_to_lenient():
    class Lenient:
        def reward(self, problem, response):
            return float(response == problem.answer)

    words, problem = addition.tokenizer(), Addition((2,)).problem("train", 0)
    rows = [demonstration(words, problem, text) for text in (problem.answer, "0")]
    assert [(mark.lenient, mark.strict) for mark in grade(Lenient(), words, rows)] == [(1.0, 1.0), (0.0, 0.0)]


def test_accuracy_is_counted_apart_for_each_difficulty_lenient_and_strict():
    words, task = addition.tokenizer(), Addition((2, 1))
    rows = []
    for i in range(20):
        problem = task.problem("train", i)
        wrong_work = problem.solution.replace("C: 0", "C: 1", 1)
        rows.append(demonstration(words, problem, [problem.solution, wrong_work, "0", "0"][i // 2 % 4]))
    marks = grade(task, words, rows)
    lenient, strict = accuracy_by(marks, digits_of), accuracy_by(marks, digits_of, strict=True)
    assert list(lenient) == [1, 2]
    assert lenient == {1: 0.6, 2: 0.6}
    assert strict == {1: 0.3, 2: 0.3}


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


def test_a_policy_that_knows_its_sums_scores_one_on_them_and_not_on_others(memoriser):
    model, words, problems = memoriser

    def scores(problems):
        return evaluate.test_accuracy(model, words, Addition(), problems, budget=addition.budget, key=digits_of)

    assert scores(problems) == {"acc/1": 1.0, "acc/2": 1.0, "acc_strict/1": 1.0, "acc_strict/2": 1.0}
    others = [problem for problem in addition.test_sums((1, 2), 10) if problem not in problems]
    assert all(score < 0.5 for score in scores(others).values())


def test_responses_come_in_the_order_of_their_problems_with_each_group_together(memoriser):
    model, words, problems = memoriser
    rows = respond(model, words, problems, budget=addition.budget, group_size=3, temperature=1.0)
    assert [row.problem for row in rows] == [problem for problem in problems for _ in range(3)]
    assert all(row.stop_reason for row in rows)
    assert len({row.seed for row in rows}) == len(rows)


def test_responses_end_within_the_budget_of_their_problem(memoriser):
    model, words, problems = memoriser
    rows = respond(model, words, problems, budget=lambda problem: 3 * digits_of(problem))
    assert [len(row.response) for row in rows] == [3 * digits_of(row.problem) for row in rows]


def test_the_seed_decides_sampled_responses(memoriser):
    model, words, problems = memoriser

    def texts(seed):
        rows = respond(
            model, words, problems, budget=addition.budget, group_size=4, temperature=2.0, seed=seed
        )  # fmt: skip
        return [row.tokens for row in rows]

    assert texts(1) == texts(1) != texts(2)


def test_no_problems_have_no_accuracy(memoriser):
    model, words, _ = memoriser
    assert evaluate.test_accuracy(model, words, Addition(), [], budget=addition.budget, key=digits_of) == {}
