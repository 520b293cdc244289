"""Sets to prime a base: each shows the behaviours that it is named after and no others, as two readers count them, and
all of them are about the same problems and make the same attempts."""

import random
import statistics

import pytest

from nanoreason.behavior_rules import count_behaviors
from nanoreason.priming import CONTROLS, FILLER, GIVE_UP, MOST_TRIES, PRIMED, RETURNING, backward_step, primed, subgoal
from nanoreason.prompts import is_well_formed
from nanoreason.rollout import demonstration
from nanoreason.tasks.attempts import (
    Attempt,
    Attempts,
    HardAttempts,
    Mixture,
    all_attempts,
    attempts_tokenizer,
    read_attempts,
)

COUNT = 300
SHOWS = {  # verification, backtracking, subgoals, backward chaining: does the set show it?
    "all_four": (1, 1, 1, 1), "backtracking": (0, 1, 0, 0), "verification": (1, 1, 0, 0), "subgoals": (0, 1, 1, 0),
    "backward": (0, 1, 0, 1), "wrong": (1, 1, 1, 1), "dots": (0, 0, 0, 0), "empty": (0, 0, 0, 0),
    "forward": (0, 0, 0, 0),
}  # fmt: skip


def texts_of(kind: str, count: int = COUNT, task: Attempts | None = None, **settings):
    task = Attempts(shares=Mixture(((kind, 1.0),)), **settings) if task is None else task
    return task, [task.problem("train-0", i) for i in range(count)]


def read(problem):
    return read_attempts(problem.info["numbers"], problem.info["target"], problem.solution)


def test_the_sets_are_those_that_this_file_knows():
    assert {*SHOWS} == {*PRIMED} == {*RETURNING, "wrong", *CONTROLS}


@pytest.mark.parametrize("kind", PRIMED)
def test_a_set_shows_the_behaviours_of_its_name_and_no_others(kind):
    """By the words of this language, and by rules for any text: they agree on what is there at all."""
    by_words, by_rules = [], []
    for problem in texts_of(kind)[1]:
        said = read(problem)
        by_words.append((said.verdicts, said.waits, said.subgoals, said.backward))
        by_rules.append(count_behaviors(problem.info["numbers"], problem.info["target"], problem.solution)[:4])
    for counts in (by_words, by_rules):
        assert tuple(int(any(c[i] for c in counts)) for i in range(4)) == SHOWS[kind]
    means = [[statistics.fmean(c[i] for c in counts) for i in range(4)] for counts in (by_words, by_rules)]
    assert means[0][:2] == pytest.approx(means[1][:2], rel=0.05)


def test_all_sets_pose_the_same_problems_and_make_the_same_attempts():
    sets, begins_alike = {kind: texts_of(kind)[1] for kind in PRIMED}, []
    for i in range(COUNT):
        assert len({sets[kind][i].prompt for kind in PRIMED}) == 1
        assert len({read(sets[kind][i]).attempts for kind in RETURNING}) == 1
        said = read(sets["all_four"][i]).attempts
        assert len(said) == len(set(said)) <= MOST_TRIES
        same, slipped = (sets[kind][i].solution.partition(" </think> <answer> ") for kind in ("all_four", "wrong"))
        assert same[0] == slipped[0]  # the very same thought
        begins_alike.append(same[2].split()[:5] == slipped[2].split()[:5])
        assert (same[2] == slipped[2]) == same[0].endswith(" no")
        assert read(sets["forward"][i]).attempts == said[-1:]
        lengths = {kind: len(sets[kind][i].solution.split()) for kind in PRIMED}
        assert lengths["dots"] == lengths["all_four"] and lengths["empty"] < lengths["forward"]
        assert len({sets[kind][i].solution.partition("<answer>")[2] for kind in PRIMED if kind != "wrong"}) == 1
    assert sum(begins_alike) / COUNT > 0.85  # a first step such as 8 * 7 = 56 may have no other legal one behind it
    tries = [len(read(problem).attempts) for problem in sets["all_four"]]
    assert min(tries) == 1 and max(tries) == MOST_TRIES
    longest = max(len(problem.solution.split()) for problem in sets["all_four"] + sets["backward"])
    assert longest < 256  # the window of reinforcement


@pytest.mark.parametrize("task", [Attempts, HardAttempts])
@pytest.mark.parametrize("kind", PRIMED)
def test_half_of_the_answers_are_right_but_in_one_set_and_every_calculation_is(kind, task):
    task, problems = texts_of(kind, 100, task(shares=Mixture(((kind, 1.0),))))
    if task.inputs == 3:
        right = sum(task.reward(problem, problem.solution) for problem in problems) / 100
        assert right == pytest.approx(0.5 * (kind != "wrong"), abs=0.12)
    for problem in problems:
        assert is_well_formed(problem.solution) and demonstration(attempts_tokenizer(), problem).tokens
        counted = task.metrics(problem, problem.solution)
        assert kind != "wrong" or task.reward(problem, problem.solution) == 0.0
        if kind not in ("wrong", "dots", "empty"):
            assert task.reward(problem, problem.solution) == counted["found"]
        if kind in ("all_four", "verification", "wrong"):
            assert counted["gave_up"] == 1 - counted["found"]
        assert counted["steps"] == counted["steps/right"] and counted["verdicts"] == counted["verdicts/right"]
        assert counted["attempts"] == counted["attempts/legal"]


def test_dots_are_words_without_meaning():
    for problem in texts_of("dots", 50)[1]:
        thought = problem.solution.removeprefix("<think> ").partition(" </think>")[0]
        assert set(thought.split()) == {FILLER}


def test_a_plan_is_about_the_attempt_behind_it():
    """Worked out by hand, x being what stands before the last step."""
    for attempt, target, step in (
        ("6 * 5 = 30 , 30 + 20 = 50", 50, "50 - 20 = 30"),  # x + 20 = 50
        ("6 * 5 = 30 , 30 + 20 = 50", 19, ""),  # x + 20 = 19: no number
        ("3 + 4 = 7 , 20 - 7 = 13", 15, "20 - 15 = 5"),  # 20 - x = 15
        ("3 + 4 = 7 , 20 - 7 = 13", 25, ""),  # 20 - x = 25
        ("9 + 8 = 17 , 17 - 5 = 12", 40, "40 + 5 = 45"),  # x - 5 = 40
        ("9 + 8 = 17 , 17 - 5 = 12", 57, ""),  # 62 is larger than any number here
        ("5 + 6 = 11 , 11 * 5 = 55", 50, "50 / 5 = 10"),  # x * 5 = 50
        ("5 + 6 = 11 , 11 * 5 = 55", 51, ""),  # no whole number
        ("9 + 3 = 12 , 12 / 4 = 3", 5, "5 * 4 = 20"),  # x / 4 = 5
        ("1 + 2 = 3 , 12 / 3 = 4", 6, "12 / 6 = 2"),  # 12 / x = 6
        ("4 - 4 = 0 , 12 * 0 = 0", 12, "12 / 12 = 1"),  # 12 * x = 12
        ("6 * 5 = 30", 50, ""),  # one step: nothing stands before it
    ):
        assert backward_step(attempt, target, 60) == (f"{step} so make {step.split()[-1]}" if step else "")
    assert subgoal("6 * 5 = 30 , 30 + 20 = 50", 50) == "aim for 30 first"
    assert subgoal("6 * 5 = 30 , 30 - 0 = 30", 30) == ""  # the target is no goal on the way


def test_thoughts_end_behind_a_right_attempt_or_give_up_and_are_never_too_long():
    never = [Attempt(f"1 + {i} = {i}", i) for i in range(40)]
    tries = [primed("backtracking", never, 50, random.Random(seed), 60)[0].count("=") for seed in range(2000)]
    assert tries.count(1) / 2000 == pytest.approx(GIVE_UP, abs=0.03)
    assert tries.count(MOST_TRIES) / 2000 == pytest.approx((1 - GIVE_UP) ** (MOST_TRIES - 1), abs=0.04)
    assert max(tries) == MOST_TRIES and min(tries) == 1
    right = [Attempt("6 * 5 = 30 , 30 + 20 = 50", 50), *never]
    for seed in range(50):
        assert primed("verification", right, 50, random.Random(seed), 60)[0] == f"{right[0].text} yes"


def test_without_a_wrong_attempt_there_is_no_wrong_text():
    tried = all_attempts((1, 2), "+")
    assert [attempt.value for attempt in tried] == [3]
    assert primed("wrong", tried, 3, random.Random(0), 60) is None
    assert primed("forward", tried, 3, random.Random(0), 60) == ("2 + 1 = 3", "2 + 1 = 3")
    task, (problem, *_) = texts_of("wrong", 1, operations="+")
    assert problem.solution == "" and task.reward(problem, "") == 0.0
