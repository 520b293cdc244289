"""The four behaviours: rules against people, against the reader of attempts, against hand-made opposites; the command.

`data/behaviors/labelled.jsonl` holds 111 texts whose behaviours were counted by reading them, before the rules were
run on them. The rules were adjusted on the 67 "seen" ones. After the 44 "held out" ones were labelled one rule changed,
because of texts of the task (`goes_on`): it cost these a point of precision in backtracking.
"""

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoreason.__main__ import main
from nanoreason.behavior_rules import NAMES, Behaviors, count_behaviors
from nanoreason.behaviors import counted, lines_of, problem_in, verdict
from nanoreason.run import read_jsonl
from nanoreason.search import search, write
from nanoreason.tasks.attempts import PLAIN, Attempts, Mixture, read_attempts

LABELLED = Path(__file__).parent / "data" / "behaviors" / "labelled.jsonl"
ZEROS = dict.fromkeys(NAMES, 0)


def counts(text: str, numbers=(6, 5, 20), target=50) -> dict[str, int]:
    return dict(zip(NAMES, count_behaviors(numbers, target, text), strict=False))


# ------------------------------------------------------------------------------------------------- against a person


def precision_and_recall(lines: list[dict]) -> dict[str, tuple[float, float]]:
    """Of single occurrences: of k counted and n labelled ones min(k, n) are agreed upon."""
    scores = {}
    for i, name in enumerate(NAMES):
        pairs = [(count_behaviors(*problem_in(one["prompt"]), one["response"])[i], one["labels"][i]) for one in lines]
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


def test_of_attempts_the_reader_of_that_language_counts_the_same():
    """Verdicts are verifications; every attempt but the first, and but those that repeat a yes, goes back."""
    task = Attempts(shares=Mixture(tuple((kind, 1.0) for kind in PLAIN)), insist=0.3)
    longest = 0
    for i in range(150):
        problem = task.problem("train", i)
        read = read_attempts(problem.info["numbers"], problem.info["target"], problem.solution)
        found = count_behaviors(problem.info["numbers"], problem.info["target"], problem.solution)
        assert (found.verification, found.subgoals, found.backward) == (read.verdicts, 0, 0)
        assert found.backtracking == max(0, len(read.attempts) - 1 - read.checks), problem
        longest = max(longest, found.backtracking)
    assert longest > 10


@given(st.text("0123456789+-*/=().,:x \nnoyesawit", max_size=200) | st.text(max_size=80))
def test_any_text_is_read(text):
    assert min(count_behaviors((6, 5, 20), 50, text)) >= 0


@pytest.mark.parametrize(
    "unit", ["(", ")", "1 ", "1+", "9" * 50, " ", "= 1 ", "1 = ", "E 1 + 1 = 2 > 2 ", "to get ", "!!1!! "]
)
def test_long_hostile_texts_are_read_in_linear_time(unit):
    """Quadratic work on this many characters would not end."""
    assert isinstance(count_behaviors((6, 5, 20), 50, unit * (30_000 // len(unit))), Behaviors)


# ------------------------------------------------------------------------------------------------------ the command


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("43 from 8 7 5", ((8, 7, 5), 43)),
        ("User: 43 from 8 7 5 Think for 4 8 tokens. Assistant:", ((8, 7, 5), 43)),
        ("Make 24 from 9 4 3 in steps:\n", ((9, 4, 3), 24)),
        ("T 24 : 4 9 3\n", ((4, 9, 3), 24)),
        ("Current State: 24:[4, 9, 3], Operations: []\n", ((4, 9, 3), 24)),
        ("Using the numbers [19 36 55 7], create an equation that equals 65. You may", ((19, 36, 55, 7), 65)),
        ("47 + 38 =", None),
        ("", None),
    ],
)
def test_the_problem_of_a_prompt(prompt, wanted):
    assert problem_in(prompt) == wanted


@pytest.fixture
def responses(tmp_path) -> Path:
    lines = [
        {"arm": "a", "step": 0, "kind": "test", "prompt": "50 from 6 5 20", "response": ATTEMPT + " no", "right": 0.0},
        {"arm": "a", "step": 5, "kind": "test", "prompt": "50 from 6 5 20", "right": 1.0,
         "response": f"{ATTEMPT} no wait {OTHER} yes"},
        {"arm": "a", "step": 5, "kind": "test", "prompt": "50 from 6 5 20", "response": OTHER, "right": 1.0},
        {"arm": "b", "step": 5, "kind": "test", "prompt": "50 from 6 5 20", "response": OTHER},
        {"arm": "b", "step": 5, "kind": "test", "prompt": "4 7 + 3 8", "response": "8 5", "right": 1.0},
    ]  # fmt: skip
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def shown(capsys, *flags: object) -> str:
    assert main([str(flag) for flag in ("behaviors", *flags)]) == 0
    return capsys.readouterr().out


def test_means_and_shares_by_arm_kind_step_and_by_verdict(responses, capsys):
    lines = [line.split() for line in shown(capsys, responses).splitlines()]
    rows = {tuple(line[:3]): line[3:13] for line in lines if len(line) == 15}
    mean = ["1.00", "(0.50)", "0.50", "(0.50)", "0.00", "(0.00)", "0.00", "(0.00)"]
    assert rows["a", "test", "5"] == ["2", "1.00", *mean] == rows["a", "test", "right"]
    assert rows["a", "test", "0"][:4] == ["1", "0.00", "1.00", "(1.00)"] == rows["a", "test", "wrong"][:4]
    assert rows["b", "test", "5"][:2] == ["1", "-"]
    assert [verdict(line) for line in read_jsonl(responses)] == ["wrong", "right", "right", "not judged", "right"]


def test_other_prompts_are_left_out_and_said_so_arms_are_chosen_and_counts_written(responses, tmp_path, capsys):
    assert "1 of 5 lines are left out" in shown(capsys, responses)
    text = shown(capsys, responses, "--arms", "a", "--csv", tmp_path / "counts.csv")
    assert "left out" not in text and "not judged" not in text
    rows = list(csv.DictReader(open(tmp_path / "counts.csv")))
    assert [(row["step"], row["verdict"], row["verification"], row["backtracking"]) for row in rows] == [
        ("0", "wrong", "1", "0"), ("5", "right", "2", "1"), ("5", "right", "0", "0")]  # fmt: skip


def test_runs_of_reproduce_are_arms_over_their_seeds(responses, tmp_path):
    for seed in (0, 1):
        folder = tmp_path / "reproduced" / f"seed{seed}" / "zero"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"recipe": "grpo"}')
        (folder / "samples.jsonl").write_text('{"step": 1, "prompt": "50 from 6 5 20", "response": "hm"}\n')
    lines = lines_of(tmp_path / "reproduced")
    assert [line["arm"] for line in lines] == ["zero", "zero"]
    assert len(counted(lines, tmp_path)) == 2
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "samples.jsonl").write_bytes(responses.read_bytes())
    assert [line["arm"] for line in lines_of(tmp_path / "alone")] == ["a", "a", "a", "b", "b"]


def test_mistakes_end_in_one_line(responses, tmp_path, capsys):
    sums = tmp_path / "sums.jsonl"
    sums.write_text('{"prompt": "4 7 + 3 8", "response": "8 5"}\n')
    for flags, said in (
        ([tmp_path / "nothing"], "there is no folder"),
        ([sums], "none of 1 lines has a response to a Countdown problem"),
        ([responses, "--arms", "c"], "has no arm c, but a, b"),
        ([Path(__file__)], "is no JSON object"),
        ([], "RUN|FILE"),
    ):
        assert main(["behaviors", *map(str, flags)]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
