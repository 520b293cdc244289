"""The four behaviours: rules against hand-counted traces, and the two views of what training changed."""

import csv
import json
import re
from pathlib import Path

import pytest

from nanoreason.__main__ import main
from nanoreason.behavior_rules import NAMES, count_behaviors
from nanoreason.behaviors import counted, lines_at, problem_of

TRACES = Path(__file__).parent / "data" / "behaviors" / "traces.jsonl"
LINES = [json.loads(line) for line in TRACES.read_text(encoding="utf-8").splitlines()]
CHECKPOINTS = Path(__file__).parents[1] / "data" / "checkpoints"
FOUND = "<think> 20 - 6 = 14 , 14 + 5 = 19 no wait 6 * 5 = 30 , 30 + 20 = 50 yes </think>"


def count(numbers, target, response) -> list[int]:
    return list(count_behaviors(tuple(numbers), target, response)[:4])


def agreement(counts: list[list[int]], behavior: int) -> tuple[float, float]:
    """Precision and recall over single instances: of a trace, as many agree as the smaller of the two counts."""
    both = sum(min(found[behavior], line["label"][behavior]) for found, line in zip(counts, LINES, strict=True))
    said, there = (sum(some[behavior] for some in rows) for rows in (counts, [line["label"] for line in LINES]))
    return both / max(1, said), both / max(1, there)


# behaviour: precision and recall, of 192, 94, 9 and 6 instances
MEASURED = {
    "verification": (1.0, 1.0),
    "backtracking": (0.989, 0.989),
    "subgoals": (1.0, 0.889),
    "backward": (1.0, 1.0),
}


@pytest.mark.parametrize("name", NAMES)
def test_the_rules_agree_with_a_reader(name):
    counts = [count(line["numbers"], line["target"], line["response"]) for line in LINES]
    precision, recall = agreement(counts, NAMES.index(name))
    assert precision >= MEASURED[name][0] - 0.001 and recall >= MEASURED[name][1] - 0.001
    assert agreement([[0] * 4] * len(LINES), NAMES.index(name))[1] == 0  # a counter that sees nothing
    assert agreement([[9] * 4] * len(LINES), NAMES.index(name))[0] < 0.3  # and one that sees everything


def test_the_traces_are_enough_and_mostly_sampled():
    assert len(LINES) >= 80 and sum(line["source"] != "written" for line in LINES) >= 40
    assert all(sum(line["label"][i] > 0 for line in LINES) >= 5 for i in range(4))


@pytest.mark.parametrize("text", ["", ". . . . .", "<think> </think> <answer> 6 * 5 = 30 , 30 + 20 = 50 </answer>",
                                  "<think> . . . </think>", "6 * 5 = 30 , 30 + 20 = 50"])  # fmt: skip
def test_dots_empty_thoughts_and_forward_steps_show_nothing(text):
    assert count((6, 5, 20), 50, text) == [0, 0, 0, 0]


@pytest.mark.parametrize("text", ["(" * 3000, "9" * 5000, "1 = " * 2000, "\0\ud800", "so make " * 9, "1 / 0 = 3 no"])
def test_any_text_is_read(text):
    assert min(count((6, 5, 20), 50, text)) >= 0


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("43 from 8 7 5", ((8, 7, 5), 43)),
        ("User: 43 from 8 7 5 Think for 60 tokens. Assistant:", ((8, 7, 5), 43)),
        ("Make 24 from 9 4 3 in steps:", ((9, 4, 3), 24)),
        ("T 24 : 4 9 3\n", ((4, 9, 3), 24)),
        ("Current State: 24:[4, 9, 3], Operations: []", ((4, 9, 3), 24)),
        ("Using the numbers [4, 9, 3], create an equation that equals 24.", ((4, 9, 3), 24)),
        ("47 + 38", None),
        ("", None),
    ],
)
def test_problems_are_read_from_their_prompts(prompt, wanted):
    assert problem_of({"prompt": prompt}) == wanted


# ------------------------------------------------------------------------------------------------------------ views


@pytest.fixture
def samples(tmp_path) -> Path:
    path = tmp_path / "mine.jsonl"
    lines = [
        {"step": 0, "prompt": "50 from 6 5 20", "response": FOUND, "right": 1.0},
        {"step": 0, "prompt": "50 from 6 5 20", "response": "<think> . . </think>", "right": 0.0},
        {"step": 9, "prompt": "50 from 6 5 20", "response": FOUND, "right": 1.0},
        {"step": 9, "prompt": "4 7 + 3 8", "response": "8 5", "right": 1.0},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_rates_and_counts_by_step_and_by_verdict(samples, tmp_path, capsys):
    assert main(["behaviors", str(samples), "--csv", str(tmp_path / "table.csv")]) == 0
    assert "1 of 4 samples are no problems of Countdown" in capsys.readouterr().out
    with open(tmp_path / "table.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["of"], row["responses"]) for row in rows] == [
        ("0", "all", "2"), ("0", "right", "1"), ("0", "wrong", "1"), ("9", "all", "1"), ("9", "right", "1"),
    ]  # fmt: skip
    assert [row["verification mean"] for row in rows] == ["1.00", "2.00", "0.00", "2.00", "2.00"]
    assert [row["verification rate"] for row in rows] == ["0.50", "1.00", "0.00", "1.00", "1.00"]
    assert [row["backtracking mean"] for row in rows] == ["0.50", "1.00", "0.00", "1.00", "1.00"]
    assert main(["behaviors", str(samples)]) == 0
    assert capsys.readouterr().out.splitlines()[0].split()[:5] == ["arm", "split", "step", "responses", "of"]


def test_arms_are_of_all_seeds_and_a_step_that_is_no_number_is_0(tmp_path):
    for seed in (0, 1):
        folder = tmp_path / f"seed{seed}" / "zero"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"recipe": "grpo"}')
        line = {"step": seed or None, "prompt": "50 from 6 5 20", "response": FOUND}
        (folder / "samples.jsonl").write_text(json.dumps(line) + "\n")
    groups = counted(lines_at(tmp_path))
    assert list(groups) == [("zero", "", 0), ("zero", "", 1)]


def test_a_policy_compared_with_itself_has_not_moved_and_with_another_it_has(tmp_path, capsys):
    base, other = (str(CHECKPOINTS / name) for name in ("attempts-0", "attempts-1"))
    few = ["--problems", "4", "--max-new-tokens", "24", "--words", "3"]
    picture = tmp_path / "words.png"

    def numbers(*flags: str) -> dict[str, list[float]]:
        assert main(["compare", *flags, *few]) == 0
        out = capsys.readouterr().out
        rows = (re.split(r" {2,}", line.strip()) for line in out.splitlines())
        return {
            row[0]: [float(x) for x in row[1:]] for row in rows if len(row) > 1 and re.fullmatch(r"-?[\d.]+", row[1])
        }

    same = numbers(base, base, "--others", "hard_attempts")
    assert same["KL(policy || base), policy's texts"] == same["rank shift, greedy texts"] == [0.0, 0.0]
    assert same["PCA shift, mean of layers"] == [0.0, 0.0] and same["length over that of base"] == [1.0, 1.0]
    moved = numbers(base, other, "--picture", str(picture))
    assert moved["KL(policy || base), policy's texts"][0] > 0 and moved["PCA shift, mean of layers"][0] > 1
    assert picture.stat().st_size > 1000


MISTAKES = {
    "no place": (["behaviors", "nowhere"], "there is no folder nowhere"),
    "nothing there": (["behaviors", "."], ". has no samples"),
    "no Countdown": (["behaviors", "sums.jsonl"], "none of 1 samples is a problem of Countdown"),
    "no policy": (["compare", str(CHECKPOINTS / "attempts-0")], "a second checkpoint folder is missing"),
    "no checkpoint": (["compare"], "a checkpoint folder is missing"),
    "another vocabulary": (["compare", str(CHECKPOINTS / "star-base"), str(CHECKPOINTS / "attempts-0")],
                           "have different vocabularies"),
    "no such task": (["compare", *[str(CHECKPOINTS / "attempts-0")] * 2, "--others", "mull"], "--others mull: one of"),
    "words": (["compare", *[str(CHECKPOINTS / "attempts-0")] * 2, "--others", "addition"], "--others: the model does"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_says_what_is_wrong(mistake, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sums.jsonl").write_text('{"prompt": "4 7 + 3 8", "response": "8 5"}\n')
    flags, named = MISTAKES[mistake]
    assert main(flags) == 2
    message = capsys.readouterr().err
    assert named in message and message.count("\n") == 1
