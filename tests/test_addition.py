"""Digit addition: the paper's text to the line, splits that cannot overlap, answers and work judged apart."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoreason.arithmetic import is_test
from nanoreason.prompts import spaced
from nanoreason.recipes import sft
from nanoreason.rollout import Problem, demonstration, response_text
from nanoreason.run import parse_config
from nanoreason.tasks.addition import Addition, answer_of, longest_response, scratchpad, tokenizer, trimmed

WORKED_EXAMPLE = """\
<scratch>
6 2 4 + 2 5 9 , C: 0
2 + 5 , 3 C: 1
6 + 2 , 8 3 C: 0
, 8 8 3 C: 0
0 8 8 3
</scratch>
8 8 3"""


def numbers(problem: Problem) -> tuple[int, int]:
    """The two addends, read back from the prompt's second line."""
    left, right = problem.prompt.split("\n")[1].split(" + ")
    return int(left.replace(" ", "")), int(right.replace(" ", ""))


def pairs(most_digits: int = 12):
    """Two numbers with equally many digits."""
    return st.integers(1, most_digits).flatmap(
        lambda n: st.tuples(*[st.integers(10 ** (n - 1), 10**n - 1)] * 2)  # no leading zeros
    )


# -------------------------------------------------------------------------------------------------- text format


def test_the_scratchpad_of_the_papers_worked_example_is_reproduced_to_the_line():
    assert scratchpad(624, 259) == WORKED_EXAMPLE


def test_a_one_digit_sum_has_no_pair_left_after_its_first_line():
    assert scratchpad(6, 1) == "<scratch>\n6 + 1 , C: 0\n, 7 C: 0\n0 7\n</scratch>\n7"


def test_a_carry_that_runs_through_ends_in_front():
    assert scratchpad(99, 99).split("\n")[1:] == [
        "9 9 + 9 9 , C: 0", "9 + 9 , 8 C: 1", ", 9 8 C: 1", "1 9 8", "</scratch>", "1 9 8"
    ]  # fmt: skip


@given(pairs())
def test_a_scratchpad_always_ends_in_the_right_answer_and_every_line_says_what_was_done(pair):
    a, b = pair
    n = len(str(a))
    lines = scratchpad(a, b).split("\n")
    assert (lines[0], lines[-2], lines[-1]) == ("<scratch>", "</scratch>", spaced(a + b))
    assert len(lines) == n + 5
    for column, line in enumerate(lines[1:-3]):  # after `column` digits were added
        todo, after = line.split(", ") if column else line.split(" , ")
        done, carry = after.split("C: ")
        total = a % 10**column + b % 10**column
        assert done.replace(" ", "") == (f"{total % 10**column:0{column}d}" if column else "")
        assert int(carry) == total // 10**column
        if column == 0:
            assert todo == f"{spaced(a)} + {spaced(b)}"
        elif column < n:
            assert todo.strip() == f"{str(a)[-1 - column]} + {str(b)[-1 - column]}"
        else:
            assert todo == ""
    assert lines[-3].replace(" ", "") == f"{a + b:0{n + 1}d}"


def test_numbers_of_different_lengths_are_an_error():
    with pytest.raises(ValueError, match="12 and 345"):
        scratchpad(12, 345)


@given(st.integers(0, 5000), st.sampled_from(["test", "train-3", "sft-0"]))
def test_a_problem_is_its_sum_in_the_papers_prompt_with_the_answer_it_asks_for(index, split):
    problem = Addition((1, 2, 3, 7)).problem(split, index)
    n = (1, 2, 3, 7)[index % 4]
    number = r"[1-9]" + r" \d" * (n - 1)
    assert re.fullmatch(rf"Input:\n{number} \+ {number}\nTarget:\n", problem.prompt)
    a, b = numbers(problem)
    assert problem.answer == spaced(a + b)
    assert problem.solution == scratchpad(a, b)
    assert Addition().difficulty(problem) == n
    direct = Addition((1, 2, 3, 7), form="direct").problem(split, index)
    assert (direct.prompt, direct.solution) == (problem.prompt, problem.answer)


@given(st.integers(0, 500))
def test_a_hint_is_the_answer_on_the_target_line_and_changes_nothing_else(index):
    problem = Addition((1, 3)).problem("train", index)
    with_hint = Addition().hint(problem)
    before, after = problem.prompt.split("\n"), with_hint.prompt.split("\n")
    assert after[:2] == before[:2] and after[3:] == before[3:] == [""]
    assert (before[2], after[2]) == ("Target:", f"Target: {problem.answer}")
    assert not after[2].startswith("Target: 0")
    assert (with_hint.answer, with_hint.solution, Addition().difficulty(with_hint)) == (
        problem.answer,
        problem.solution,
        Addition().difficulty(problem),
    )
    assert with_hint.info["hinted"] and "hinted" not in problem.info


# ---------------------------------------------------------------------------------------------------- the splits


@given(st.integers(0, 10**6), st.sampled_from(["test", "train"]), st.sampled_from(["scratchpad", "direct"]))
def test_a_problem_is_a_function_of_its_split_and_index_alone(index, split, form):
    task = Addition((1, 2, 3), form, (0.5, 0.3, 0.2), 0.5)
    expected = task.problem(split, index)
    for other in (index + 1, 0, 3):
        task.problem(split, other)
    assert Addition((1, 2, 3), form, (0.5, 0.3, 0.2), 0.5).problem(split, index) == expected


def test_no_sum_of_the_test_split_occurs_in_any_other_split_over_many_items():
    tested, trained = set(), set()
    for n in (1, 2, 3):
        task = Addition((n,))
        tested |= {numbers(task.problem("test", i)) for i in range(1500)}
        for split in (f"train-{n}", "sft-0", "base-1"):
            trained |= {numbers(task.problem(split, i)) for i in range(1500)}
    assert len(tested) > 800 and len(trained) > 4000  # of one- and two-digit sums all that there are
    assert not tested & trained
    assert all(is_test(a, b) for a, b in tested)


def test_different_splits_hold_different_problems():
    """A seed made of sums of numbers would make neighbouring splits overlap."""
    first, second = ([Addition((5,)).problem(f"train-{s}", i).prompt for i in range(500)] for s in (1, 2))
    assert len(set(first) & set(second)) < 5
    assert len(set(first)) > 490


def test_about_one_sum_in_ten_is_held_out():
    held_out = sum(is_test(a, b) for a in range(100, 200) for b in range(100, 200))
    assert 850 < held_out < 1150


def test_lengths_come_in_turn_or_as_often_as_their_shares_say():
    def drawn_lengths(task, count):
        return [task.difficulty(task.problem("train", i)) for i in range(count)]

    assert drawn_lengths(Addition((4, 2)), 4) == [4, 2, 4, 2]
    drawn = drawn_lengths(Addition((1, 2, 3), shares=(0.7, 0.3, 0.0)), 2000)
    assert 3 not in drawn
    assert 0.65 < drawn.count(1) / 2000 < 0.75


def test_the_share_of_hinted_problems_is_the_one_asked_for():
    problems = [Addition((2,), hint_share=0.3).problem("train", i) for i in range(2000)]
    hints = sum("Target: " in problem.prompt for problem in problems)
    assert 0.26 < hints / 2000 < 0.34
    assert hints == sum(problem.info.get("hinted", False) for problem in problems)


def test_the_test_sums_are_as_many_held_out_sums_of_each_length_and_all_sums_of_one_digit():
    sums = Addition((1, 2, 4)).test_problems(20)
    assert [Addition().difficulty(problem) for problem in sums] == [1] * 81 + [2] * 20 + [4] * 20
    assert {numbers(problem) for problem in sums[:81]} == {(a, b) for a in range(1, 10) for b in range(1, 10)}
    assert all(is_test(*numbers(problem)) for problem in sums[81:])
    direct = Addition((2, 4), "direct", shares=(0.9, 0.1), hint_share=1.0).test_problems(20)  # neither is for tests
    assert [problem.solution for problem in direct] == [problem.answer for problem in sums[81:]]
    assert [problem.prompt for problem in direct] == [problem.prompt for problem in sums[81:]]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["--task.form", "poem"], "--task.form poem: one of scratchpad, direct"),
        (["--task.digits="], "digits: at least one length"),
        (["--task.digits", "0,1"], "--task.digits 0: must be at least 1"),
        (["--task.digits", "1,2", "--task.shares", "1"], "shares: one share for each of 2 lengths"),
        (["--task.digits", "1,2", "--task.shares", "0,0"], "shares: one share for each of 2 lengths"),
        (["--task.digits", "1,2", "--task.hinted-shares", "1"], "hinted_shares: one share for each of 2 lengths"),
        (["--task.hint-share", "1.5"], "--task.hint_share 1.5: must be at least 0 and at most 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        parse_config(sft.PRESETS, ["--task", "addition", *settings], "sft")


# ------------------------------------------------------------------------------------------------------- judging

SUM = Problem("Input:\n6 2 4 + 2 5 9\nTarget:\n", "8 8 3", WORKED_EXAMPLE, {"digits": 3})


def marks(response: str, problem: Problem = SUM) -> tuple[float, bool]:
    return Addition().reward(problem, response), Addition().work_is_valid(problem, response)


@given(pairs())
def test_the_worked_solution_is_right_and_valid_in_both_forms(pair):
    a, b = pair
    problem = Problem("", spaced(a + b), scratchpad(a, b))
    assert marks(problem.solution, problem) == (1.0, True)
    direct = Problem("", spaced(a + b), spaced(a + b))
    assert marks(direct.solution, direct) == (1.0, True)


@given(st.integers(0, 6), st.sampled_from("0123456789"))
def test_a_right_answer_under_any_wrong_line_of_work_is_right_but_not_valid(line, digit):
    lines = WORKED_EXAMPLE.split("\n")
    if "scratch" in lines[line]:
        return
    wrong = re.sub(r"\d", digit, lines[line], count=1)
    response = "\n".join([*lines[:line], wrong, *lines[line + 1 :]])
    assert marks(response) == ((1.0, wrong == lines[line]))


@pytest.mark.parametrize(
    "response",
    [
        WORKED_EXAMPLE.replace("2 + 5 , 3 C: 1\n", ""),  # a line is missing
        WORKED_EXAMPLE.replace(", 8 8 3 C: 0\n", ", 8 8 3 C: 0\n" * 2),  # a line too many
        "<scratch>\n</scratch>\n8 8 3",
        "8 8 3",
    ],
)
def test_skipped_and_repeated_work_is_not_valid_though_the_answer_is_right(response):
    assert marks(response) == (1.0, False)


@pytest.mark.parametrize(
    "response",
    [
        WORKED_EXAMPLE[:-1] + "4",
        WORKED_EXAMPLE[:-1],
        WORKED_EXAMPLE + " 3",
        WORKED_EXAMPLE.replace("</scratch>\n8 8 3", "</scratch>\n0 8 8 3"),  # with its leading zero
        WORKED_EXAMPLE.replace("</scratch>\n8 8 3", "</scratch>"),  # no answer
        WORKED_EXAMPLE.replace("</scratch>\n8 8 3", "</scratch>\n\n8 8 3"),  # not on the line behind it
        WORKED_EXAMPLE.replace("</scratch>\n", ""),  # never closed: line 0 counts, which is no answer
        "",
    ],
)
def test_anything_but_the_answer_on_its_line_is_wrong(response):
    assert marks(response) == (0.0, False)


def test_what_follows_the_answers_line_is_cut_before_the_trace_is_kept():
    assert trimmed(WORKED_EXAMPLE + "\nInput:\n1 + 1") == WORKED_EXAMPLE
    assert marks(WORKED_EXAMPLE + "\n\nInput:") == (1.0, True)
    assert trimmed("8 8 3\nTarget:") == "8 8 3"


@given(st.one_of(st.text(max_size=40), st.lists(st.integers(0, 18), max_size=30).map(tokenizer().decode)))
def test_judging_is_total_whatever_the_policy_writes(response):
    reward, valid = marks(response)
    assert reward in (0.0, 1.0)
    assert not (valid and reward == 0.0)
    assert "\n" not in answer_of(response)


# -------------------------------------------------------------------------------------------------------- tokens


@given(st.integers(0, 3000))
def test_texts_survive_the_tokenizer_with_one_token_per_digit(index):
    words, problem = tokenizer(), Addition((1, 2, 5, 10), hint_share=0.5).problem("train", index)
    row = demonstration(words, problem)
    assert words.decode(row.tokens[: row.prompt_len]) == problem.prompt
    assert response_text(words, row) == problem.solution
    assert len(words.encode(problem.answer)) == len(problem.answer.replace(" ", ""))


@given(pairs(10))
def test_the_budget_holds_every_worked_response_and_its_eos_and_not_much_more(pair):
    a, b = pair
    problem = Problem("", spaced(a + b), scratchpad(a, b), {"digits": len(str(a))})
    needed = len(tokenizer().encode(problem.solution)) + 1
    assert needed <= Addition().max_tokens(problem) == longest_response(len(str(a)))
    assert Addition().max_tokens(problem) <= needed + 1  # the answer may have one digit more


def test_the_longest_sum_fits_into_the_default_context():
    a = 9999999999
    problem = Addition().hint(Problem(f"Input:\n{spaced(a)} + {spaced(a)}\nTarget:\n", spaced(2 * a),
                                      scratchpad(a, a), {"digits": 10}))  # fmt: skip
    assert len(demonstration(tokenizer(), problem).tokens) <= sft.PRESETS["cpu"].context
