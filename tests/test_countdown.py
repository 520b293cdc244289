"""Countdown: pure, disjoint splits; a verifier that is right, total and quick; solvers that agree with brute force."""

import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoreason.arithmetic import safe_arithmetic
from nanoreason.countdown import (
    apply,
    as_expression,
    before,
    check_expression,
    check_operations,
    combine,
    count_solutions,
    find_solution,
    is_solvable,
    same_answer,
)
from nanoreason.recipes import sft
from nanoreason.rollout import Problem
from nanoreason.run import parse_config
from nanoreason.tasks import countdown
from nanoreason.tasks.countdown import SPLITS, Countdown, held_out_lines, held_out_targets

DATA = Path(__file__).parents[1] / "data" / "countdown"
SMALL = Countdown(inputs=3, max_input=20, targets=(10, 50))


def brute_force(numbers, target):
    """(paths that end at the target, chance of a random one), by the rules as the paper words them."""
    if len(numbers) == 1:
        return int(numbers[0] == target), Fraction(numbers[0] == target)
    found = []
    for i in range(len(numbers)):
        for j in range(i):
            rest = [number for k, number in enumerate(numbers) if k not in (i, j)]
            large, small = max(numbers[i], numbers[j]), min(numbers[i], numbers[j])
            results = [large + small, large * small, large - small]
            if small > 0 and Fraction(large, small).denominator == 1:
                results.append(large // small)
            found += [brute_force([*rest, result], target) for result in results]
    return sum(count for count, _ in found), sum(chance for _, chance in found) / len(found)


def key(problem):
    return (*sorted(problem.info["numbers"]), problem.info["target"])


# ------------------------------------------------------------------------------------------------ problems


def test_a_problem_depends_on_its_split_and_index_alone():
    forward = [Countdown().problem("train", index) for index in range(20)]
    task = Countdown()
    task.problem("test_inputs", 3)
    assert forward == [task.problem("train", index) for index in reversed(range(20))][::-1]
    assert len({key(problem) for problem in forward}) == 20
    assert forward[0] != task.problem("test_inputs", 0)


@pytest.mark.parametrize("task", [Countdown(), SMALL], ids=["standard", "small"])
def test_splits_are_disjoint_and_hold_what_they_say(task):
    keys = {split: {key(task.problem(split, index)) for index in range(400)} for split in SPLITS}
    assert not keys["train"] & keys["test_inputs"] and not keys["train"] & keys["test_targets"]
    assert not keys["test_inputs"] & keys["test_targets"]
    for split, its_keys in keys.items():
        targets = {k[-1] for k in its_keys}
        assert all(task.split_of(k[:-1][::-1], k[-1]) == split for k in its_keys)  # in whatever order
        assert targets <= set(range(task.targets[0], task.targets[1] + 1))
        assert (targets <= held_out_targets(*task.targets)) == (split == "test_targets")
        assert all(1 <= number <= task.max_input for k in its_keys for number in k[:-1])


def test_a_tenth_of_the_targets_is_held_out():
    assert len(held_out_targets(10, 100)) == 9 and len(held_out_targets(*SMALL.targets)) == 4
    assert len(held_out_targets(10, 12)) == 1
    assert held_out_targets(10, 100) < set(range(10, 101))
    seen = {Countdown().problem("train", index).info["target"] for index in range(800)}
    assert seen | held_out_targets(10, 100) == set(range(10, 101))


def test_easy_targets_are_not_over_represented():
    # 24 has many times the solutions of 97; drawn with the inputs, it would dominate
    counts = [Countdown().problem("train", index).info["target"] for index in range(1640)]
    per_target = [counts.count(target) for target in range(10, 101) if target not in held_out_targets(10, 100)]
    assert min(per_target) >= 6 and max(per_target) <= 40  # 20 expected each


def test_any_other_split_is_a_stream_of_training_problems_and_test_is_the_inputs_held_out():
    for index in range(60):
        problem = Countdown().problem("rl-3", index)
        assert Countdown().split_of(problem.info["numbers"], problem.info["target"]) == "train"
        assert Countdown().problem("test", index) == Countdown().problem("test_inputs", index)
    assert [Countdown().problem("rl-3", i) for i in range(9)] != [Countdown().problem("train", i) for i in range(9)]


def test_unique_problems_skip_repeats():
    problems = SMALL.unique_problems("test_targets", 200)
    assert len({key(problem) for problem in problems}) == 200
    first = [SMALL.problem("test_targets", index) for index in range(400)]
    assert len({key(problem) for problem in first}) < 400  # so there was something to skip
    with pytest.raises(ValueError, match="different problems"):
        Countdown(inputs=2, max_input=9, targets=(10, 12)).unique_problems("train", 1000)


@pytest.mark.parametrize("inputs", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("form", ["operations", "expression"])
def test_the_solution_of_every_problem_is_rewarded(inputs, form):
    task = Countdown(inputs=inputs, form=form)
    for index in range(20):
        for split in SPLITS:
            problem = task.problem(split, index)
            assert len(problem.info["numbers"]) == inputs
            assert task.reward(problem, problem.solution) == 1.0
            assert task.reward(problem, f"<think>hm</think><answer>{problem.solution}</answer>") == 1.0


def test_impossible_settings_are_refused():
    for flag, value in (("inputs", "1"), ("inputs", "7"), ("max_input", "0"), ("targets", "10,10"), ("targets", "10"),
                        ("form", "prose")):  # fmt: skip
        with pytest.raises(ValueError, match=flag):
            parse_config(sft.PRESETS, ["--task", "countdown", f"--task.{flag}", value], "sft")
    with pytest.raises(ValueError, match="no solvable problem"):
        Countdown(inputs=2, max_input=2, targets=(50, 60)).problem("train", 0)


# ------------------------------------------------------------------------------------------------ solver

some_numbers = st.lists(st.integers(0, 12), min_size=2, max_size=4)  # zeros too: they come up on the way


@given(some_numbers, st.integers(0, 60))
@settings(max_examples=150, deadline=None)
def test_solvers_agree_with_brute_force(numbers, target):
    count, chance = brute_force(numbers, target)
    assert count_solutions(numbers, target) == (count, pytest.approx(float(chance)))
    assert is_solvable(numbers, target) == (count > 0)
    path = find_solution(numbers, target)
    assert (path is not None) == (count > 0)
    if path:
        assert check_operations(numbers, target, ", ".join(map(str, path)))


@given(st.integers(0, 40), st.integers(0, 40))
@settings(max_examples=300, deadline=None)
def test_working_backwards_undoes_every_operation(a, b):
    for operation in combine(a, b):
        assert apply(*operation[:3]) == operation.result
        for x, value in ((a, b), (b, a)):
            assert x in before({operation.result}, value) or value == operation.result == 0  # 0 * x, for any x
    for goal in range(30):
        for x in before({goal}, a):
            assert goal in {operation.result for operation in combine(x, a)}


def test_known_counts():
    assert count_solutions((5, 5), 25) == (1, 0.25)  # 5+5, 5*5, 5-5, 5/5
    assert count_solutions((1, 2, 3), 100) == (0, 0.0)
    assert find_solution((1, 2, 3), 100) is None


# ------------------------------------------------------------------------------------------------ verifier

PROBLEM = Problem("", "24", "", dict(numbers=(9, 4, 3), target=24))
BOMBS = [
    "(" * 10**5, ")" * 10**5, "(" * 10**5 + "1" + ")" * 10**5, "-" * 10**5 + "1", "9" * 10**5, "1+" * 10**5,
    "9**" * 10**4 + "9", "9/" * 149 + "7", "9*3=27," * 10**4, ", " * 10**5, "\n" * 10**5, "<answer>" * 10**4,
]  # fmt: skip


@pytest.mark.parametrize(
    "answer",
    ["9-3=6, 4*6=24", "9-3=6,4*6=24", " 9 - 3 = 6\n6*4=24 ", "9 - 3 = 6 , 4 * 6 = 24"],
)
def test_right_operations(answer):
    assert Countdown().reward(PROBLEM, answer) == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "", " ", "24", "24=24", "4*6=24",  # nothing, or not from the inputs
        "9-3=6", "9-3=6, 4*6=24, 24+0=24", "9-3=6, 4*6=24, 9-3=6, 4*6=24",  # too few, too many, twice
        "4*3=12, 12+12=24",  # used twice
        "4*3=12, 9+12=21", "9-3=6, 4*6=25", "9-3=5, 4*5=24",  # not 24, or false
        "3-9=-6, 4*-6=24", "3-9=6, 4*6=24", "9-3=6, 6*4=24.", "9-3=06, 4*6=24", "9-3=6, 4*6=+24",  # no such numbers
        "9//3=3, 3*8=24", "9-3=6, 4**6=24", "9-3=6; 4*6=24", "9-3=6 4*6=24", "9-3=6, 4x6=24", "4*(9-3)=24", "4*(9-3)",
        "९-3=6, 4*6=24", "9-3=6, 4*6=24 or 9-3=6, 4*6=24",
        "<answer>9-3=6, 4*6=24", "9-3=6, 4*6=24</answer>", "</answer>9-3=6, 4*6=24<answer>",
        "<answer>9-3=6, 4*6=24</answer><answer>9-3=6, 4*6=24</answer>", "<answer></answer>9-3=6, 4*6=24",
    ],
)  # fmt: skip
def test_wrong_operations(answer):
    assert Countdown().reward(PROBLEM, answer) == 0.0


@pytest.mark.parametrize(
    "answer", ["4*(9-3)", "(9-3)*4", " ( ( 9-3 ) )*(4)\n", "<think>4*9</think><answer>4*(9-3)</answer>"]
)
def test_right_expressions(answer):
    assert Countdown(form="expression").reward(PROBLEM, answer) == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "", "24", "4*6", "9+4+3", "4*(9-3)+0", "4*(9-3)*1", "4*9-4*3", "(9-3)*4*9/9",  # not 24, or not these numbers
        "4*(9-3)=24", "4*(9-3), 4*(9-3)", "4*(9-3) 4*(9-3)", "4(9-3)", "(9-3)4", "4*(9-3", "4*9-3)", "4*()(9-3)",
        "+4*(9-3)", "-4*(3-9)", "4*-(3-9)", "4*(9+-3)", "4*(9--3)", "4**1*(9-3)", "4*(9-3)//1", "4*(9-3)%9", "4*(9-3)!",
        "4.0*(9-3)", "4e0*(9-3)", "04*(9-3)", "0x4*(9-3)", "4_*(9-3)", "４*(9-3)", "4×(9-3)", "4*(9-3)#", "4*[9-3]",
        "9/(4-4)*3", "4*(9-3)/0", "(lambda: 24)()", "__import__('os')",
        "<answer>4*(9-3)</answer> <answer>4*(9-3)</answer>", "<answer>4*(9-3)",
    ],
)  # fmt: skip
def test_wrong_expressions(answer):
    assert Countdown(form="expression").reward(PROBLEM, answer) == 0.0


def test_expressions_may_pass_through_fractions_and_negatives():
    assert check_expression((8, 3, 8, 3), 24, "8/(3-8/3)")
    assert check_expression((3, 9, 30), 24, "3-9+30")
    assert not check_operations((3, 9, 30), 24, "3-9=-6, 30-6=24")


expressions = st.recursive(
    st.integers(0, 99).map(lambda number: (str(number), Fraction(number), [number], 3)),
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner, st.booleans()).map(lambda parts: join(*parts)),
    max_leaves=8,
)


def join(left, sign, right, spare):
    """An expression as (text, value or None, its numbers, how tightly it binds), with or without spare parentheses."""
    binds = 1 if sign in "+-" else 2
    a, b = left[1], right[1]
    if a is None or b is None or (sign == "/" and b == 0):
        value = None
    else:
        value = a + b if sign == "+" else a - b if sign == "-" else a * b if sign == "*" else a / b
    first = f"({left[0]})" if spare or left[3] < binds else left[0]
    second = f"({right[0]})" if spare or right[3] <= binds else right[0]
    return f"{first} {sign}{second}", value, left[2] + right[2], binds


@given(expressions)
@settings(max_examples=300, deadline=None)
def test_arithmetic_is_exact(expression):
    text, value, numbers, _ = expression
    assert safe_arithmetic(text) == (None if value is None else (value, numbers))


@given(st.text(st.sampled_from("0123456789+-*/()=, \n<answer>/९²") | st.characters(), max_size=60))
@settings(max_examples=500, deadline=None)
def test_rewards_are_total(text):
    for form in ("operations", "expression"):
        task = Countdown(form=form)
        assert task.reward(PROBLEM, text) in (0.0, 1.0)
        assert task.reward(PROBLEM, f"<answer>{text}</answer>") in (0.0, 1.0)
    parsed = safe_arithmetic(text)
    if parsed is not None:
        assert set(text) <= set("0123456789+-*/() \n\t\r\f\v") and "**" not in text and "//" not in text


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb[:6].strip() or "blank")
def test_bombs_are_rejected_in_under_a_millisecond(bomb):
    for task in (Countdown(), Countdown(form="expression")):
        for response in (bomb, f"<answer>{bomb}</answer>"):
            seconds = []
            for _ in range(20):  # the best of many: the machine may be busy with something else
                start = time.perf_counter()
                assert task.reward(PROBLEM, response) == 0.0
                seconds.append(time.perf_counter() - start)
            assert min(seconds) < 1e-3


# ------------------------------------------------------------------------------------------------ equal answers


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("9-3=6, 4*6=24", " 9 - 3 = 6\n6*4=24 ", True),
        ("9-3=6, 4*6=24", "4*(9-3)", True),
        ("1+2=3, 4+5=9, 3*9=27", "4+5=9, 2+1=3, 9*3=27", True),  # steps that do not need one another
        ("1+2+3", "3+(1+2)", True),
        ("9-3=6, 4*6=24", "9-3=6, 4*6=24.", True),
        ("9-3=6, 4*6=24", "4*6=24, 9-3=6", False),  # the 6 is used before it is there
        ("9-3=5, 4*5=24", "9-3=6, 4*6=24", False),  # false sums
        ("9-3", "3-9", False),
        ("4*6", "24", False),
        ("(1+2)*3", "1+2*3", False),
        ("8/(3-8/3)", "8/3-8/3", False),
        ("6+6=12, 12+12=24", "6+6+6+6", False),  # one 12 used twice is not four sixes
    ],
)
def test_two_answers_are_the_same_if_they_compute_the_same_thing(one, other, same):
    assert (same_answer(one) == same_answer(other)) == same
    assert (Countdown().answer(one) == Countdown().answer(f"<answer>{other}</answer>")) == same


@given(expressions, expressions)
@settings(max_examples=100, deadline=None)
def test_the_same_answer_has_the_same_value_and_the_same_numbers(left, right):
    swapped = [join(right, sign, left, True)[0] for sign in "+*"]
    for text, turned in zip([join(left, sign, right, False)[0] for sign in "+*"], swapped, strict=True):
        assert same_answer(text) == same_answer(turned)
    if same_answer(left[0]) == same_answer(right[0]):
        assert left[1] == right[1] and sorted(left[2]) == sorted(right[2])


@given(st.integers(2, 5), st.integers(0, 300), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_right_steps_in_any_order_that_still_works_are_the_same_answer_as_the_expression(inputs, index, rng):
    info = Countdown(inputs).problem("train", index).info
    steps, numbers = info["operations"], info["numbers"]
    mixed = rng.sample(steps, len(steps))
    text = ", ".join(str(step) for step in mixed)
    if check_operations(numbers, steps[-1].result, text) and len({step.result for step in steps} & set(numbers)) == 0:
        assert same_answer(text) == same_answer(", ".join(map(str, steps)))
        assert same_answer(text) == same_answer(as_expression(numbers, steps))


def test_the_lenient_judge_overlooks_a_full_stop_and_the_strict_one_does_not():
    for answer, strict, lenient in (
        ("9-3=6, 4*6=24", 1, True), ("9-3=6, 4*6=24.", 0, True), ("9-3=6, 4*6=25.", 0, False), ("", 0, False),
    ):  # fmt: skip
        for response in (answer, f"<answer> {answer} </answer>"):
            assert Countdown().reward(PROBLEM, response) == strict
            assert Countdown().is_right_leniently(PROBLEM, response) == lenient
    assert Countdown(form="expression").is_right_leniently(PROBLEM, "4*(9-3).")


# ------------------------------------------------------------------------------------------------ checked-in data


@pytest.mark.parametrize("split", ["test_inputs", "test_targets"])
def test_checked_in_problems_are_what_the_command_writes(split):
    lines = (DATA / f"{split}.jsonl").read_bytes().decode().splitlines(keepends=True)
    assert len(lines) == 1000
    assert lines == list(held_out_lines(Countdown(), split, 1000))


def test_the_command_writes_the_lines_of_both_splits_byte_for_byte(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["countdown", "--out", str(tmp_path / "new"), "--count", "30"])
    countdown.main()
    assert sorted(path.stem for path in (tmp_path / "new").iterdir()) == ["test_inputs", "test_targets"]
    for path in (tmp_path / "new").iterdir():
        checked_in = (DATA / path.name).read_bytes()
        assert path.read_bytes() == b"".join(checked_in.splitlines(keepends=True)[:30])
