"""The judges of written problems against a table of responses that were judged by hand: `data/judges.jsonl`.

Each line has the right answer (for countdown_words the problem), a response (`times`: repeated so often) and what the
strict and the lenient judge have to say of it.
"""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoreason.math_answers import is_same_answer
from nanoreason.rollout import Problem
from nanoreason.tasks import TASKS

TABLE = Path(__file__).parent / "data" / "judges.jsonl"
LINES = [json.loads(line) for line in TABLE.read_text(encoding="utf-8").splitlines()]


def problem_of(line: dict) -> Problem:
    if line["task"] == "countdown_words":
        return TASKS[line["task"]]().parse(line["answer"])
    return Problem("", line["answer"], "", {"level": 0, "digits": 1})


def test_the_table_is_large_and_has_every_verdict_of_every_judge():
    pairs = {(line["task"], line["answer"], line["response"], line.get("times", 1)) for line in LINES}
    assert len(pairs) == len(LINES) >= 250
    found = Counter((line["task"], line["strict"], line["lenient"]) for line in LINES)
    for task in ("gsm8k", "math", "sums_in_words", "countdown_words"):
        assert {verdict for name, *verdict in map(tuple, found) if name == task for verdict in [tuple(verdict)]} == \
            {(0, 0), (0, 1), (1, 1)}  # fmt: skip


@pytest.mark.parametrize("line", LINES, ids=[f"{i}-{line['task']}" for i, line in enumerate(LINES, 1)])
def test_both_judges_say_what_a_person_said(line):
    task, problem = TASKS[line["task"]](), problem_of(line)
    response = line["response"] * line.get("times", 1)
    assert task.reward(problem, response) == line["strict"]
    assert task.is_right_leniently(problem, response) == line["lenient"]
    if line["strict"]:
        assert task.answer(response)
    if hasattr(task, "judge"):
        lenient = replace(task, judge="lenient")
        assert lenient.reward(problem, response) == line["lenient"]
        counted = lenient.metrics(problem, response)
        assert (counted["strict"], counted["lenient"]) == (line["strict"], line["lenient"])
        assert not line["lenient"] or lenient.answer(response)


GOLD = sorted({line["answer"] for line in LINES if line["task"] == "math"})


@given(st.sampled_from(GOLD), st.sampled_from(GOLD))
def test_an_answer_is_itself_and_being_the_same_goes_both_ways_where_both_are_written_out(a, b):
    assert is_same_answer(a, a) and is_same_answer(a, f" ${a}$. ")
    if a.replace(".", "").isdigit() == b.replace(".", "").isdigit():
        assert is_same_answer(a, b) == is_same_answer(b, a)


def test_answers_without_a_value_are_not_all_the_same():
    for a, b in (
        ("1/0", "2/0"),
        ("9**9**9", "9**9**8"),
        ("sin x", "cos x"),
        ("\\frac", "\\sqrt"),
        ("", ""),
        ("$", "$"),
    ):
        assert not is_same_answer(a, b, lenient=True)
