"""Sums with thinking: what is written, how often it is wrong, how it is read back, and what is held out."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoreason.arithmetic import is_test
from nanoreason.checkpoint import load_checkpoint
from nanoreason.prompts import TAGS, is_well_formed, tagged, with_template
from nanoreason.recipes import sft
from nanoreason.rollout import demonstration
from nanoreason.run import parse_config
from nanoreason.tasks.thinking import (
    MODES,
    THINKING_WORDS,
    ThinkingAddition,
    longest_thinking,
    one_pass,
    read_thinking,
    thinking_tokenizer,
)
from nanoreason.tasks.wrappers import Templated

WORDS = thinking_tokenizer()
ONLY = {mode: tuple(float(mode == other) for other in MODES) for mode in MODES}


def problems(count: int, split: str = "x", **settings):
    task = ThinkingAddition(**settings)
    return [task.problem(split, i) for i in range(count)]


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(*[st.integers(10 ** (n - 1), 10**n - 1)] * 2)))
def test_a_pass_without_slips_is_right_in_every_column(pair):
    a, b = pair
    text, result = one_pass(a, b)
    assert result.replace(" ", "") == str(a + b) and text.endswith(f"so {result}")
    carry = 0
    for column, x, y in zip(text.split(" , ")[:-1], reversed(str(a)), reversed(str(b)), strict=True):
        left, right = column.split(" = ")
        assert left.split(" + ") == [x, y, "1"][: 2 + carry]
        total = int(right.replace(" ", ""))
        assert total == int(x) + int(y) + carry
        carry = total // 10


@pytest.mark.parametrize("mode", MODES)
def test_solutions_are_in_the_format_and_read_back_as_what_they_are(mode):
    for problem in problems(60, digits=(1, 2, 3, 4), modes=ONLY[mode], error_prob=0.2):
        assert is_well_formed(problem.solution)
        read = read_thinking(problem.solution)
        assert read.mode == problem.info["form"] == mode
        assert read.passes == (0 if mode == "direct" else read.rechecks + 1)
        assert mode == "direct" or read.answer == read.results[-1]
        if mode == "recheck":  # it ends when two agree, and not before
            assert read.results[-1] in read.results[:-1] or read.passes == 4
            assert len(set(read.results[:-1])) == read.passes - 1
            assert read.repeated <= 1
        assert ThinkingAddition().reward(problem, problem.solution) == float(read.answer == problem.answer)
        row = demonstration(WORDS, with_template(problem, "skeleton"))
        assert WORDS.decode(row.response[:-1]) == problem.solution
        assert len(row.response) <= longest_thinking(problem.info["digits"], max(1, read.passes))


def test_one_pass_is_wrong_as_often_as_its_columns_slip_and_checking_pays():
    right = {}
    for mode in MODES:
        found = problems(400, digits=(3,), modes=ONLY[mode], error_prob=0.1)
        right[mode] = sum(ThinkingAddition().reward(p, p.solution) for p in found) / len(found)
    assert right["direct"] == 1.0
    assert right["steps"] == pytest.approx(0.9**3, abs=0.07)
    assert right["recheck"] > 0.9


def test_who_checks_with_care_slips_less_behind_the_first_pass():
    found = [p for p in problems(500, digits=(3,), modes=ONLY["recheck"], error_prob=0.2, recheck_error_scale=0.1)]
    passes = [(read_thinking(p.solution).results, p.answer) for p in found]
    first = sum(results[0] == answer for results, answer in passes) / 500
    second = sum(results[1] == answer for results, answer in passes) / 500
    assert first == pytest.approx(0.8**3, abs=0.07) and second == pytest.approx(0.98**3, abs=0.05)


def test_forms_and_lengths_come_with_their_shares_and_doubt_adds_passes():
    found = problems(600, digits=(2, 3), shares=(0.75, 0.25), modes=(0.6, 0.3, 0.1))
    count = Counter(p.info["form"] for p in found)
    assert [count[mode] / 600 for mode in MODES] == pytest.approx([0.6, 0.3, 0.1], abs=0.06)
    assert sum(p.info["digits"] == 2 for p in found) / 600 == pytest.approx(0.75, abs=0.06)

    def passes(extra: float) -> float:
        some = problems(200, modes=ONLY["recheck"], extra_recheck_prob=extra)
        return sum(read_thinking(p.solution).passes for p in some) / 200

    assert passes(0.5) > passes(0.0) + 0.4


def test_problems_are_pure_and_no_test_sum_is_in_training():
    assert problems(20) == problems(20)
    for split, expected in (("test", True), ("train", False), ("rl-1", False)):
        for problem in problems(50, split):
            a, b = (int(number.replace(" ", "")) for number in problem.prompt.split(" + "))
            assert is_test(a, b) == expected and problem.answer.replace(" ", "") == str(a + b)
    assert [p.info["digits"] for p in ThinkingAddition((2, 4), shares=(0.9, 0.1)).test_problems(3)] == [
        2,
        2,
        2,
        4,
        4,
        4,
    ]


@pytest.mark.parametrize(
    ("response", "mode", "passes", "repeated"),
    [
        ("", "none", 0, 0),
        ("8 5", "none", 0, 0),
        ("so <think> </think>", "none", 0, 0),
        ("<think>", "direct", 0, 0),
        ("<think> 7 + 8 = 1", "steps", 0, 0),
        ("<think> so 8 5 wait", "recheck", 1, 0),
        ("<think> so 8 5 wait so 8 5 wait so 8 5 </think> <answer> 8 5 </answer>", "recheck", 3, 2),
        ("<think> wait wait wait </think>", "recheck", 0, 0),
        ("<think> <answer> 8 5 </answer>", "direct", 0, 0),
    ],
)
def test_any_text_is_read(response, mode, passes, repeated):
    read = read_thinking(response)
    assert (read.mode, read.passes, read.repeated) == (mode, passes, repeated)


@given(st.lists(st.sampled_from(THINKING_WORDS), max_size=30).map(" ".join))
def test_reading_and_judging_never_raise(response):
    task = ThinkingAddition()
    problem = task.problem("x", 0)
    read = read_thinking(response)
    assert read.mode in (*MODES, "none") and read.repeated >= 0
    assert task.reward(problem, response) in (0.0, 1.0)


def test_only_what_stands_in_the_one_answer_is_judged():
    task = ThinkingAddition()
    problem = task.problem("x", 0)
    assert task.reward(problem, tagged("so 1", problem.answer)) == 1.0
    assert task.reward(problem, tagged(problem.answer, "1")) == 0.0
    assert task.reward(problem, f"<answer> {problem.answer} </answer> <answer> {problem.answer} </answer>") == 0.0
    for settings in (dict(modes=(-1.0, 1.0, 1.0)), dict(modes=(0.0, 0.0, 0.0)), dict(digits=()), dict(shares=(1.0,))):
        with pytest.raises(ValueError, match=next(iter(settings))):
            ThinkingAddition(**settings)


def test_a_base_is_trained_on_the_mixture_in_the_words_it_will_be_asked_in(tmp_path):
    task = Templated(ThinkingAddition((1, 2)))
    config = replace(sft.PRESETS["tiny"], task=task, out=str(tmp_path / "run"), context=96, steps=2)
    last = sft.run(config)
    assert {"acc/1", "acc/2"} <= last.keys()
    _, words = load_checkpoint(tmp_path / "run" / "policy")
    rows = sft.task_rows(config, words, 96, Counter())(0)
    assert all(words.decode(row.tokens).startswith("User: ") and row.tokens[-1] == words.eos_id for row in rows)
    assert {read_thinking(row.problem.solution).mode for row in rows} >= {"direct", "steps"}
    rechecks = Templated(ThinkingAddition((1, 2), modes=ONLY["recheck"]))
    pool = sft.task_rows(replace(config, distinct=3, task=rechecks), words, 256, Counter())(0)
    assert {row.problem.info["form"] for row in pool} == {"recheck"} and len({r.problem.prompt for r in pool}) <= 6
    with pytest.raises(ValueError, match="--task.modes 1: 3 values are needed"):
        parse_config(sft.PRESETS, ["--task", "thinking", "--task.modes", "1"], "sft")


def test_direct_answers_may_be_guesses_and_tags_may_be_missing():
    task = ThinkingAddition()
    found = problems(400, digits=(1, 2), modes=ONLY["direct"], direct_error_prob=0.5)
    right = {n: [task.reward(p, p.solution) for p in found if p.info["digits"] == n] for n in (1, 2)}
    assert min(right[1]) == 1.0 and 0.08 < sum(right[2]) / len(right[2]) < 0.3  # 0.5 ** 2 or 0.5 ** 3
    messy = problems(400, drop_tag_prob=0.2)
    right_format = [is_well_formed(p.solution) for p in messy]
    assert sum(right_format) / 400 == pytest.approx(0.8, abs=0.07)
    counts = Counter(sum(tag in p.solution.split() for tag in TAGS) for p in messy)
    assert counts.keys() == {3, 4}


def test_with_care_a_recheck_slips_less_than_the_first_pass():
    first, later = [], []
    for problem in problems(
        300, digits=(2,), modes=ONLY["recheck"], error_prob=0.3, recheck_error_scale=0.2, extra_recheck_prob=0.5
    ):
        right = [result == problem.answer for result in read_thinking(problem.solution).results]
        first.append(right[0])
        later += right[1:]
    assert sum(first) / len(first) == pytest.approx(0.7**2, abs=0.08)
    assert sum(later) / len(later) == pytest.approx(0.94**2, abs=0.04)


def test_of_a_pool_too_what_has_no_solution_or_does_not_fit_is_left_out():
    config = replace(sft.PRESETS["tiny"], task=ThinkingAddition((1, 8)), distinct=20)
    rows = [row for step in range(3) for row in sft.task_rows(config, WORDS, 60, Counter())(step)]
    assert rows and max(len(row.tokens) for row in rows) <= 60
    assert {row.problem.info["digits"] for row in rows} == {1, 8}  # the direct answers of long sums fit
    with pytest.raises(ValueError, match="no solution of 40 problems fits into the context of 5 tokens"):
        sft.task_rows(config, WORDS, 5, Counter())
