"""The rules of the four behaviours against a reader, against `read_attempts`, and against opposites made by hand.

`data/behaviors/labelled.jsonl` holds 111 texts whose behaviours were counted by reading them, before the rules were
run on them. The rules were adjusted on the 67 "seen" ones. After the 44 "held out" ones were labelled one rule changed,
because of texts of the task (`goes_on`): it cost these a point of precision in backtracking.
"""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoreason.behavior_rules import NAMES, Behaviors, count_behaviors
from nanoreason.behaviors import problem_of
from nanoreason.priming import PRIMED
from nanoreason.run import read_jsonl
from nanoreason.search import search, write
from nanoreason.tasks.attempts import PLAIN, Attempts, Mixture, read_attempts

LABELLED = Path(__file__).parent / "data" / "behaviors" / "labelled.jsonl"
ZEROS = dict.fromkeys(NAMES, 0)


def counts(text: str, numbers=(6, 5, 20), target=50) -> dict[str, int]:
    return dict(zip(NAMES, count_behaviors(numbers, target, text), strict=False))


# ------------------------------------------------------------------------------------------------- against a reader


def precision_and_recall(lines: list[dict]) -> dict[str, tuple[float, float]]:
    """Of single occurrences: of k counted and n labelled ones min(k, n) are agreed upon."""
    scores = {}
    for i, name in enumerate(NAMES):
        pairs = [(count_behaviors(*problem_of(one), one["response"])[i], one["labels"][i]) for one in lines]
        agreed = sum(min(pair) for pair in pairs)
        scores[name] = round(agreed / sum(k for k, _ in pairs), 2), round(agreed / sum(n for _, n in pairs), 2)
    return scores


@pytest.mark.parametrize(
    ("split", "wanted"),
    [
        ("seen", {"verification": (1.0, 1.0), "backtracking": (1.0, 1.0), "subgoals": (1.0, 0.91),
                  "backward": (0.86, 1.0)}),
        ("held out", {"verification": (1.0, 0.97), "backtracking": (0.98, 1.0), "subgoals": (1.0, 0.74),
                      "backward": (0.83, 0.71)}),
    ],
)  # fmt: skip
def test_precision_and_recall_on_labelled_texts(split, wanted):
    assert precision_and_recall([one for one in read_jsonl(LABELLED) if one["split"] == split]) == wanted


def test_labelled_texts_are_many_different_and_mostly_of_models():
    lines = read_jsonl(LABELLED)
    sampled = [one for one in lines if one["source"] != "written by hand"]
    assert len(lines) == len({(one["prompt"], one["response"]) for one in lines}) == 111 and len(sampled) == 71
    assert {one["source"] for one in sampled} >= {f"attempts-{i}" for i in range(4)} | {"countdown-search"}
    for i in range(len(NAMES)):  # each behaviour is there and is absent, in both splits
        for split in ("seen", "held out"):
            assert {bool(one["labels"][i]) for one in lines if one["split"] == split} == {True, False}


# ------------------------------------------------------------------------------------------ right values, opposites


@pytest.mark.parametrize("text", ["", "<think> </think> <answer> 6 * 5 = 30 </answer>", "<think>" + 300 * " .",
                                  "6 * 5 = 30 , 30 + 20 = 50", "First, 6 * 5 = 30. Adding 20, we have 30 + 20 = 50.",
                                  "<think> 6 * 5 = 30 , 30 + 20 = 50 </think> <answer> 6 * 5 = 30 no wait 5 + 6 = 11",
                                  "I must find the correct numbers to reach the target."])  # fmt: skip
def test_dots_empty_thoughts_and_steps_straight_ahead_show_none(text):
    assert counts(text) == ZEROS


def test_restarts_are_counted_as_in_the_papers_own_example():
    """Five attempts that begin at the inputs again, after the first."""
    text = (
        "(78 - 20) - (11 - 7) = 54. (78 - 11) - (20 - 7) = 54. 78 - (20 + 7) = 51, then 51 + 11 = 62. "
        "78 - 20 = 58, 58 - 7 = 51, 51 - 11 = 40. (78 - 7) - (20 + 11) = 40. 20 + 11 = 31, 78 - 31 = 47."
    )
    found = count_behaviors((20, 7, 11, 78), 37, text)
    assert (found.backtracking, found.new_backtracking) == (5, 5)


ATTEMPT, OTHER = "20 - 6 = 14 , 14 + 5 = 19", "6 * 5 = 30 , 30 + 20 = 50"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (f"{ATTEMPT} no wait {OTHER} yes", {"verification": 2, "backtracking": 1}),
        (f"{ATTEMPT} wait {OTHER}", {"backtracking": 1}),  # without verdicts nothing is verified
        (f"{OTHER} yes wait {OTHER} yes", {"verification": 2}),  # a solution said again gives nothing up
        (f"{ATTEMPT} no wait {ATTEMPT} no", {"verification": 2, "backtracking": 1}),  # a failure tried again does
        (f"{OTHER} yes wait {ATTEMPT} no", {"verification": 2, "backtracking": 1}),
        ("aim for 30 first : " + OTHER, {"subgoals": 1}),
        ("aim for 50 first : " + OTHER, {}),  # the target is the goal
        ("50 - 20 = 30 so make 30 : " + OTHER, {"backward": 1}),
        ("20 + 30 = 50 so make 30 : " + OTHER, {"backward": 1}),
        ("6 * 5 = 30 , 30 + 20 = 50 , 50 - 6 = 44", {}),  # the target is there to be used
        ("6 * 5 = 30. That is not 50. 30 + 20 = 50. It equals the target.", {"verification": 2}),
        ("6 * 5 = 30. Too low! 30 + 20 = 50 ≠ 51.", {"verification": 2}),
        ("6 * 5 = 30. This is not enough, this is too low, it isn't 50.", {"verification": 1}),  # one of a calculation
        ("Working backwards, 50 - 20 = 30, I need 30. 6 × 5 = 30.", {"backward": 1, "subgoals": 1}),
        ("Let's try to get close to 45. 20 + 6 = 26. Instead, 20 * 6 = 120.", {"subgoals": 1, "backtracking": 1}),
    ],
)
def test_texts_and_their_opposites(text, wanted):
    assert counts(text) == ZEROS | wanted
    assert counts(f"<think> {text} </think> <answer> {ATTEMPT} no </answer>") == ZEROS | wanted


def test_a_loop_goes_back_again_and_again_but_not_in_new_ways():
    found = count_behaviors((6, 5, 20), 50, " no wait ".join([ATTEMPT] * 9))
    assert (found.backtracking, found.new_backtracking) == (8, 0)


def test_wrong_results_and_numbers_that_are_not_there_are_invalid():
    found = count_behaviors((6, 5, 20), 50, "6 * 5 = 31 , 31 + 20 = 51 no wait 7 * 5 = 35 , 20 - 6 = 14 no")
    assert (found.equations, found.invalid, found.backtracking) == (4, 2, 1)


def test_sums_in_one_chain_are_one_and_running_sums_are_several():
    assert count_behaviors((6, 5, 20), 50, "6 * 5 + 20 = 30 + 20 = 50").equations == 1
    assert count_behaviors((6, 5, 20), 50, "6 * 5 = 30 + 20 = 50").equations == 2


@pytest.mark.parametrize("language", ["compact", "paper"])
def test_of_searches_leaves_are_checks_and_moves_to_no_child_go_back(language):
    """All of (4, 9, 3), for a target that is out of reach: the events themselves say how often."""
    for strategy in ("dfs-sum", "bfs2-mult"):
        events = list(search((4, 9, 3), 100, strategy))
        names = [type(event).__name__ for event in events]
        here, back = (0,), 0
        for event in events:
            if type(event).__name__ == "Move":
                is_return = event.node != here and event.node[: len(event.node) - 1] != here
                back, here = back + is_return, event.node
        found = count_behaviors((4, 9, 3), 100, write(events, language))
        assert (found.verification, found.equations) == (names.count("Check"), names.count("Explore"))
        assert found.backtracking == back > 0 and (found.subgoals, found.backward, found.invalid) == (0, 0, 0)


def test_of_attempts_read_attempts_counts_the_same():
    """Verdicts are verifications; every attempt but the first, and but those that repeat a yes, goes back."""
    kinds = [kind for kind in PLAIN if kind not in PRIMED]  # those that prime have plans as well: test_priming
    task = Attempts(shares=Mixture(tuple((kind, 1.0) for kind in kinds)), insist=0.3)
    longest = 0
    for i in range(150):
        problem = task.problem("train", i)
        read = read_attempts(problem.info["numbers"], problem.info["target"], problem.solution)
        found = count_behaviors(problem.info["numbers"], problem.info["target"], problem.solution)
        assert (found.verification, found.subgoals, found.backward) == (read.verdicts, 0, 0)
        assert found.backtracking == max(0, len(read.attempts) - 1 - read.checks), problem
        longest = max(longest, found.backtracking)
    assert longest > 10


def test_a_calculation_goes_on_from_the_pool_that_what_follows_it_needs_too():
    """Of 8 3 2 7: 2 * 7 can follow 8 - 3 = 5, but the 8 that comes next is used up there: the first was given up."""
    given_up = count_behaviors((8, 3, 2, 7), 22, "8 - 3 = 5\n2 * 7 = 14\n14 + 8 = 22")
    assert (given_up.backtracking, given_up.invalid, given_up.equations) == (1, 0, 3)
    gone_on = count_behaviors((8, 3, 2, 7), 19, "8 - 3 = 5\n2 * 7 = 14\n14 + 5 = 19")
    assert (gone_on.backtracking, gone_on.invalid, gone_on.equations) == (0, 0, 3)


@given(st.text("0123456789+-*/=().,:x \nnoyesawit", max_size=200) | st.text(max_size=80))
def test_any_text_is_read(text):
    assert min(count_behaviors((6, 5, 20), 50, text)) >= 0


@pytest.mark.parametrize(
    "unit", ["(", ")", "1 ", "1+", "9" * 50, " ", "= 1 ", "1 = ", "E 1 + 1 = 2 > 2 ", "to get ", "!!1!! "]
)
def test_long_hostile_texts_are_read_in_linear_time(unit):
    """Quadratic work on this many characters would not end."""
    assert isinstance(count_behaviors((6, 5, 20), 50, unit * (30_000 // len(unit))), Behaviors)
