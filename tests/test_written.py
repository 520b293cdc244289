"""Written problems from files as they are published: splits, rows, levels, what is refused; sums in words."""

import json
import sys
from dataclasses import replace

import pytest

from nanoreason.algebra import is_same_value, value_at
from nanoreason.math_answers import without_boxes
from nanoreason.problem_files import read_splits
from nanoreason.prompts import tagged
from nanoreason.tasks.sums import SumsInWords, in_words
from nanoreason.tasks.wrappers import Templated
from nanoreason.tasks.written import Gsm8k, Math, problems_of


@pytest.fixture(autouse=True)
def fresh():
    read_splits.cache_clear()


def write(path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")  # as often: no newline at the end


def gsm(n: int, answer: str = "7") -> dict:
    return {"question": f"How much is {n}?", "answer": f"It is <<3+4=7>>{answer}.\n#### {answer}"}


def competition(n: int, level: str = "Level 2", answer: str = "7") -> dict:
    return {"problem": f"Find {n}.", "level": level, "type": "Algebra", "solution": f"It is $\\boxed{{{answer}}}$."}


# ----------------------------------------------------------------------------------------------------------- files


def test_rows_of_jsonl_are_problems_without_the_calculator_and_with_the_answer_as_it_was_asked_for(tmp_path):
    write(tmp_path / "train.jsonl", [gsm(1), gsm(2, "1,234")])
    write(tmp_path / "test.jsonl", [gsm(3)])
    task = Gsm8k(str(tmp_path))
    found = {problem.answer: problem for problem in (task.problem("train", i) for i in range(2))}
    assert found["7"].solution == "It is 7.\n#### 7" and found["1234"].solution == "It is 1,234.\n#### 1234"
    assert found["7"].prompt.startswith("How much is 1?\n") and "####" in found["7"].prompt
    boxed, bare = (replace(task, form=form).problem("test", 0) for form in ("boxed", "none"))
    assert "\\boxed" in boxed.prompt and boxed.solution.endswith("\\boxed{7}.") and "####" not in boxed.solution
    assert bare.prompt == "How much is 3?"
    assert all(task.reward(problem, problem.solution) == 1 for problem in (*found.values(), boxed, bare))
    wrapped = Templated(task, template="r1").problem("test", 0)
    assert wrapped.solution == tagged("It is 7.", "7") and Templated(task).reward(wrapped, wrapped.solution) == 1


def test_a_stream_goes_through_all_problems_in_a_new_order_each_time_and_never_asks_a_test_question(tmp_path):
    write(tmp_path / "train.jsonl", [gsm(n) for n in range(12)] + [gsm(3)])
    write(tmp_path / "test.jsonl", [gsm(5), gsm(100)])
    task = Gsm8k(str(tmp_path))
    first, second = ([task.problem("rl-0", 11 * epoch + i).prompt for i in range(11)] for epoch in (0, 1))
    assert len(set(first)) == 11 and set(first) == set(second) and first != second
    assert first != [task.problem("rl-1", i).prompt for i in range(11)]
    assert not any(prompt.startswith("How much is 5?") for prompt in first)
    assert [problem.prompt[:15] for problem in task.test_problems(9)] == ["How much is 5?\n", "How much is 100"]


def test_splits_are_read_from_the_names_below_the_folder(tmp_path):
    folder = tmp_path / "test" / "set"  # a word above it says nothing
    write(folder / "train" / "algebra" / "1.json", [competition(1)])
    write(folder / "algebra" / "test-00000-of-00001.jsonl", [competition(2, "Level 5")])
    write(folder / "validation.jsonl", [{"other": 1}])
    write(folder / "latest.jsonl", [{"other": 1}])
    (folder / "train.txt").write_text("x")
    task = Math(str(folder))
    assert task.problem("train", 0).prompt.startswith("Find 1.")
    assert [task.difficulty(problem) for problem in task.test_problems(3)] == [5]


def test_levels_are_a_choice_and_are_tested_apart(tmp_path):
    write(tmp_path / "train.jsonl", [competition(n, f"Level {n % 3 + 1}") for n in range(9)])
    write(tmp_path / "test.jsonl", [competition(n + 50, n % 2 + 1) for n in range(6)] + [competition(99, "Level ?")])
    task = Math(str(tmp_path))
    assert [task.difficulty(problem) for problem in task.test_problems(2)] == [0, 1, 1, 2, 2]
    easy = replace(task, level=(2,))
    assert {easy.difficulty(easy.problem("train", i)) for i in range(9)} == {2} and len(easy.test_problems(9)) == 3
    assert task.levels() == [replace(task, level=(n,)) for n in (1, 2, 3)]


def test_the_answer_of_a_competition_problem_is_its_field_or_the_last_box(tmp_path):
    rows = [
        {"problem": "a", "solution": "so \\boxed{1}, no, \\boxed{\\frac{1}{2}}"},
        {"problem": "b", "solution": "so \\boxed{\\dfrac12}", "answer": "\\frac{1}{2}", "level": 4},
    ]
    write(tmp_path / "test.jsonl", rows)
    for form in ("boxed", "hashes"):
        problems = Math(str(tmp_path), form=form).test_problems(9)
        assert [problem.answer for problem in problems] == ["\\frac{1}{2}"] * 2
        assert all(Math().reward(problem, problem.solution) == 1 for problem in problems), form
    assert without_boxes("a \\boxed{b} c \\fbox{d}") == "a b c d" and without_boxes("\\boxed{a") == "\\boxed{a"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("train.jsonl", b"{\n", "line 1 is no JSON object"),
        ("train.jsonl", b"[1]", "line 1 is no JSON object"),
        ("train.jsonl", b"[" * 100_000, "line 1 is no JSON object"),
        ("train.jsonl", b"\xff\xfe", "is not UTF-8 text"),
        ("train.jsonl", b'{"problem": "x", "solution": "y"}', "no text 'question' .it has problem, solution"),
        ("train.jsonl", b'{"question": "x", "answer": 3}', "row 1 has no text 'answer'"),
        ("train.jsonl", b'{"question": "x", "answer": "it is 3"}', "does not end in #### and a number"),
        ("train.jsonl", b'{"question": "x", "answer": "#### many"}', "does not end in #### and a number"),
        ("train.jsonl", b'\n{"question": "x", "answer": "#### 3"}\n{"question": ""}', "row 2 has"),
        ("train-test.jsonl", b"", "says both train and test"),
        ("problems.jsonl", b"{}", "holds no problems"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_one_line_that_names_it(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=said) as caught:
        Gsm8k(str(tmp_path)).problem("train", 0)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_folder_that_is_none_or_lacks_a_split_is_one_line(tmp_path):
    for folder in ("", str(tmp_path / "nothing")):
        with pytest.raises(ValueError, match="is no folder"):
            Gsm8k(folder).problem("train", 0)
    write(tmp_path / "test.jsonl", [{"problem": "x", "solution": "\\boxed{1}"}])
    assert Math(str(tmp_path)).problem("test", 5).answer == "1"
    for task in (Math(str(tmp_path)), Math(str(tmp_path), level=(3,))):
        with pytest.raises(ValueError, match="holds no problem of the split train"):
            task.problem("rl-0", 0)


def test_a_solution_without_a_box_is_one_line(tmp_path):
    write(tmp_path / "train.jsonl", [{"problem": "x", "solution": "it is 1"}])
    with pytest.raises(ValueError, match="has no .boxed answer"):
        Math(str(tmp_path)).problem("train", 0)


def test_parquet_without_its_library_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match="pyarrow is not installed: pip install pyarrow, or convert it to JSONL"):
        Gsm8k(str(tmp_path)).problem("train", 0)


def test_parquet_is_read_where_its_library_is_there(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "main").mkdir()
    rows = pyarrow.Table.from_pylist([gsm(1), gsm(2, "1,234")])
    parquet.write_table(rows, tmp_path / "main" / "train-00000-of-00001.parquet")
    parquet.write_table(pyarrow.Table.from_pylist([gsm(3)]), tmp_path / "main" / "test-00000-of-00001.parquet")
    task = Gsm8k(str(tmp_path))
    assert {task.problem("train", i).answer for i in range(2)} == {"7", "1234"} and len(task.test_problems(9)) == 1
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and nothing else")
    read_splits.cache_clear()
    problems_of.cache_clear()
    with pytest.raises(ValueError, match="is not a readable Parquet file"):
        task.problem("train", 0)


def test_our_own_dozen_is_sound():
    for task, levels in ((Gsm8k(), {0}), (Math(), {1, 2, 3, 4, 5})):
        problems = [task.problem("train", i) for i in range(12)]
        assert len({problem.prompt for problem in problems}) == 12 and len(task.test_problems(99)) == 6
        assert {task.difficulty(problem) for problem in problems} == levels
        for problem in problems:
            assert task.reward(problem, problem.solution) == task.reward(problem, problem.answer) == 1
            for other in problems:
                if other.answer != problem.answer:
                    assert task.reward(problem, other.solution) == 0


# --------------------------------------------------------------------------------------------------- sums in words


def test_numbers_in_words_are_all_different_and_some_are_known():
    known = {0: "zero", 13: "thirteen", 20: "twenty", 99: "ninety-nine", 100: "one hundred", 110: "one hundred ten",
             999: "nine hundred ninety-nine", 1000: "one thousand", 81_002: "eighty-one thousand two",
             99_980_001: "ninety-nine million nine hundred eighty thousand one"}  # fmt: skip
    assert {n: in_words(n) for n in known} == known
    assert len({in_words(n) for n in range(20_000)}) == 20_000


@pytest.mark.parametrize("operation", ["plus", "minus", "times", "any"])
def test_sums_are_asked_as_the_fields_say_and_differences_are_not_negative(operation):
    words = SumsInWords((1, 2), operation, "words", only=False)
    both = SumsInWords((2,), operation, "both")
    for i in range(60):
        problem = words.problem("train", i)
        assert not any(c.isdigit() for c in problem.prompt) and problem.prompt.endswith("?")
        assert words.difficulty(problem) == i % 2 + 1 and int(problem.answer) >= 0
    asked = [both.problem("train", i).prompt for i in range(60)]
    assert 10 < sum(any(c.isdigit() for c in prompt) for prompt in asked) < 50
    assert all(prompt.endswith("Answer with the number only.") for prompt in asked)


def test_typed_sums_are_worked_out():
    task = SumsInWords()
    for text, answer in (("47 + 38", "85"), ("3*4", "12"), (" 3 - 12 ", "-9")):
        problem = task.parse(text)
        assert problem.answer == answer and task.reward(problem, answer) == 1 and task.reward(problem, "86") == 0
        assert task.is_right_leniently(problem, f"It is {answer}.")
    assert task.parse("17 + 5").prompt == "What is 17 + 5? Answer with the number only."
    assert SumsInWords(numbers="words", only=False).parse("17+5").prompt == "What is seventeen plus five?"


# ---------------------------------------------------------------------------------------------------------- algebra


def test_values_are_those_of_floating_point_where_both_exist():
    for text, value in (("1+2*3^2/4-5", 0.5), ("-2^2", -4), ("2^3^2", 512), ("(1+2)(3-1)/4", 1.5), ("8/2/2", 2),
                        ("\\sqrt{2}\\sqrt{3}+\\sqrt{24}", 3 * 6**0.5), ("\\frac{1}{1+\\sqrt{5}}", 1 / (1 + 5**0.5)),
                        ("(1+\\sqrt2+\\sqrt3)/(1-\\sqrt2+\\sqrt3)", (1 + 2**0.5 + 3**0.5) / (1 - 2**0.5 + 3**0.5)),
                        ("16^{3/4}", 8), ("(-8)^{1/3}", -2), ("2^{-3}", 0.125), ("25%", 0.25), ("2*-3", -6),
                        ("\\sqrt{\\frac{8}{9}}", (8 / 9) ** 0.5), ("1.5e2", 150), ("\\sqrt[4]{81}", 3)):  # fmt: skip
        found = value_at(text, 0)
        assert found is not None and min(found, default=1) > 0, text
        assert sum(float(c) * n**0.5 for n, c in found.items()) == pytest.approx(value, rel=1e-12), text


def test_identities_hold_and_their_neighbours_do_not():
    same = [("(a+b)^3", "a^3+3a^2b+3ab^2+b^3"), ("\\frac{x^2-1}{x-1}", "x+1"), ("\\sqrt{x^2}", "x"),
            ("2^{n}3^{n}", "6^n"), ("(1+i)^2", "2i"), ("\\frac{1}{i}", "-i"),
            ("\\sqrt{-2}\\sqrt{-3}", "-\\sqrt{6}")]  # fmt: skip
    for a, b in same:
        assert is_same_value(a, b) is True and is_same_value(a, f"({b})+1") is False
        assert is_same_value(a, f"({b})*1.000001") is False
    for nothing in ("", "1+", "(1", "1)", "[1)", "2 3", "a,b", "1=1", "\\sin x", "0^0", "1/(x-x)", "9**9**9",
                    "x^{1/2.5}", "(\\sqrt2)^{\\sqrt2}", "10^{700}", "\\sqrt{10000019}",
                    "((" * 20 + "1" + "))" * 20):  # fmt: skip
        assert is_same_value(nothing, "1") is None, nothing
