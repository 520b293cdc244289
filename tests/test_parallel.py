"""The recipe that measures threads, and play with them: what is counted, compared at equal cost, drawn and shown."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nanoreason.__main__ import main
from nanoreason.checkpoint import load_checkpoint, save_checkpoint
from nanoreason.evaluate import pass_at_k
from nanoreason.experiments import apr
from nanoreason.experiments.results import Results
from nanoreason.forcing import Forcing
from nanoreason.model import Transformer, small_config
from nanoreason.play import play, side_by_side
from nanoreason.recipes import parallel
from nanoreason.recipes.parallel import ParallelConfig, means, of_row, sampled, vote
from nanoreason.rollout import prompt_row
from nanoreason.run import read_jsonl
from nanoreason.tasks import Attempts, HardAttempts
from nanoreason.tasks.attempts import all_attempts
from nanoreason.tasks.wrappers import Parallel

BASE = str(Path(__file__).parent.parent / "data" / "checkpoints" / "attempts-0")
TASK = Parallel(HardAttempts())
WORDS = TASK.tokenizer()


@pytest.fixture(scope="module")
def spawner(tmp_path_factory) -> str:
    """Random weights that know the words."""
    folder = tmp_path_factory.mktemp("spawner") / "policy"
    model = Transformer(small_config(32, 1, 2, WORDS.vocab_size, 128), 1)
    save_checkpoint(folder, model, WORDS, extra={"task": "hard_attempts,parallel"})
    return str(folder)


def config(tmp_path, **settings) -> ParallelConfig:
    return replace(parallel.PRESETS["tiny"], out=str(tmp_path / "run"), base=BASE, **settings)


# ------------------------------------------------------------------------------------------------------- counting


def test_a_rollout_is_counted_in_all_of_its_rows():
    row = prompt_row(WORDS, TASK.parse("36 from 8 4 2 7"), 0)
    for token in WORDS.encode("<think> spawn 8 - 4 = 4 : 4 2 7 join"):
        row.sampled(token, -1.0)
    single = of_row(row, WORDS)
    assert (single["sequential"], single["total"], single["children"], single["longest"]) == (12, 12, 0, 12)
    row.erase(11)
    row.force(WORDS.encode("8 - 4 = 4 no"))
    assert [len(one.response) for one in row.family] == [7, 11]
    row.counted = {"threads/sequential_tokens": 40.0, "threads/total_tokens": 60.0, "threads/children": 1.0,
                   "threads/rounds": 1.0, "threads/child_tokens": 30.0, "threads/cut_children": 0.0}  # fmt: skip
    found = of_row(row, WORDS)
    assert (found["sequential"], found["total"], found["longest"], found["operations"]) == (40, 60, 11, 2)
    assert found["hallucinated"] == 0  # the no is the join's
    row.sampled(WORDS.encode("yes")[0], -1.0)
    assert of_row(row, WORDS)["hallucinated"] == 1


def test_only_a_thought_that_claims_a_solution_votes():
    steps = "8 - 4 = 4 , 4 + 2 = 6"
    task = HardAttempts()
    assert vote(task, f"<think> {steps} yes </think> <answer> {steps} </answer>") is not None
    assert vote(task, f"<think> {steps} no </think> <answer> {steps} </answer>") is None
    assert vote(task, f"<think> {steps} yes wait {steps} no </think> <answer> {steps} </answer>") is None


def test_the_context_holds_every_row_and_the_standard_error_is_by_problem(tmp_path):
    settings = config(tmp_path, task=Attempts(), methods=("context",), problems=6, repeats=2, max_new_tokens=128,
                      windows=(20, 60, 128))  # fmt: skip
    parallel.run(settings)
    lines = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    model, words = load_checkpoint(BASE)
    groups, threads, _ = sampled(settings, model, words, Attempts().test_problems(6), 2)
    assert not threads
    for line in lines:
        right = [[row.reward == 1 and len(row.response) <= line["asked"] for row in group] for group in groups]
        assert line["accuracy"] == pytest.approx(sum(map(sum, right)) / 12)
    assert lines[-1]["accuracy"] > 0 and lines[0]["accuracy"] <= lines[1]["accuracy"] <= lines[2]["accuracy"]
    doubled = means([group + group for group in groups], words)
    assert doubled["accuracy_se"] == pytest.approx(means(groups, words)["accuracy_se"])


def test_samples_are_counted_with_all_their_tokens(tmp_path):
    parallel.run(config(tmp_path, task=Attempts(), methods=("samples",), problems=4, samples=4))
    lines = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    totals = {(line["kind"], line["asked"]): line["total"] for line in lines}
    assert {k for _, k in totals} == {1, 2, 4} and totals["pass", 4] == pytest.approx(4 * totals["cons", 1])
    passed = [line["accuracy"] for line in lines if line["kind"] == "pass"]
    voted = [line["accuracy"] for line in lines if line["kind"] == "cons"]
    assert passed == sorted(passed) and all(v <= p + 1e-9 for v, p in zip(voted, passed, strict=True))


def test_exhaustive_search_is_drawing_without_repetition(tmp_path):
    settings = config(tmp_path, task=HardAttempts(), methods=("exhaustive",), problems=5, operations=(2, 3, 30, 9000))
    parallel.run(settings)
    found = {line["asked"]: line["accuracy"] for line in read_jsonl(tmp_path / "run" / "metrics.jsonl")}
    by_hand = []
    for problem in HardAttempts().test_problems(5):
        attempts = all_attempts(tuple(sorted(problem.info["numbers"])))
        right = sum(attempt.value == problem.info["target"] for attempt in attempts)
        by_hand.append((len(attempts), right))
    assert found[2] == 0 and found[9000] == 1
    assert found[3] == pytest.approx(sum(right / n for n, right in by_hand) / 5)
    assert found[30] == pytest.approx(sum(pass_at_k(n, right, 10) for n, right in by_hand) / 5)


def test_threads_are_measured_and_one_rollout_is_put_down_for_the_figure(tmp_path, monkeypatch):
    real = Parallel.spawned
    asked = [child for child in real(TASK, TASK.parse("36 from 8 4 2 7"), "spawn 8 - 4 = 4 : 4 2 7 join")]
    monkeypatch.setattr(Parallel, "spawned", lambda self, problem, response: asked if len(problem.info["numbers"]) == 4
                        else [])  # fmt: skip
    monkeypatch.setattr(Parallel, "spawn", ("<think>", "no"))  # every failed attempt of the base is taken for a block
    parallel.run(config(tmp_path, methods=("context", "asked", "alone")))
    lines = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert {line["method"] for line in lines} == {"context", "asked", "alone"}
    assert any(line["children"] > 0 and line["total"] > line["sequential"] - 1 for line in lines)
    (alone,) = [line for line in lines if line["method"] == "alone"]
    assert alone["seconds"] > 0 and alone["steps"] >= 1
    lanes = [line for line in read_jsonl(tmp_path / "run" / "samples.jsonl") if line.get("kind") == "threads"]
    assert len(lanes) == 1 and lanes[0]["split"] == "test"
    parent, *children = lanes[0]["lanes"]
    assert children and all(parent["start"] < child["start"] <= child["end"] <= parent["end"] for child in children)
    assert all(start <= end for start, end in parent["rounds"])


# --------------------------------------------------------------------------------------------------- comparisons


def lines_of(arm: str, **fields) -> list[dict]:
    return [{"arm": arm, "seed": 0, "step": i, **{key: values[i] for key, values in fields.items()}}
            for i in range(len(next(iter(fields.values()))))]  # fmt: skip


def test_threads_are_compared_with_votes_at_as_many_tokens():
    threads = lines_of(
        "test_apr", method=["asked"] * 3, asked=[1, 4, 8], total=[100, 400, 1600], accuracy=[0.9, 0.5, 0.7]
    )
    votes = lines_of("test_serial", kind=["pass"] * 3, total=[200, 800, 3200], accuracy=[0.2, 0.4, 0.6])
    lead = apr.lead_at_equal_tokens(Results([*threads, *votes]), "apr", "serial", "pass")
    assert lead == {0: pytest.approx(((0.5 - 0.3) + (0.7 - 0.5)) / 2)}
    assert apr.lead_at_equal_tokens(Results([*threads, *votes]), "apr", "serial", "cons") == {}


def test_the_speed_up_is_that_of_all_tokens_at_the_pace_of_one_thread():
    serial = lines_of("test_serial", method=["alone"], seconds=[0.5], steps=[100], total=[100])
    threads = lines_of("test_apr", method=["alone"], seconds=[2.0], steps=[300], total=[800])
    assert apr.speedup(Results([*serial, *threads]), "apr", "serial") == {0: pytest.approx(800 * 0.005 / 2.0)}


# ------------------------------------------------------------------------------------------------------------ play


def test_columns_hold_all_words_side_by_side():
    shown = side_by_side([("one", "a b c d e f"), ("two", "g h"), ("three", "i")], 40, 18)
    assert shown[0].startswith("+ one") and "| two" in shown[0]
    assert any(line.startswith("+ three") for line in shown[1:])
    assert set("abcdefghi") <= set("".join(shown)) and max(map(len, shown)) <= 40


def test_a_parent_its_children_and_their_join_are_shown(monkeypatch, capsys):
    asked = Parallel.spawned(TASK, TASK.parse("36 from 8 4 2 7"), "spawn 8 - 4 = 4 : 4 2 7 ; 7 * 4 = 28 : 28 8 2 join")
    monkeypatch.setattr(Parallel, "spawned", lambda self, problem, response: asked)
    monkeypatch.setattr(Parallel, "spawn", ("<think>", "no"))
    model, words = load_checkpoint(BASE)
    play(model, words, TASK, TASK.parse("36 from 8 4 2 7"), Forcing(200), 1.0, 3)
    said = capsys.readouterr().out
    assert said.startswith("36 from 8 4 2 7 ;\n")
    assert ", 6 children)" in said  # three blocks, two children each
    assert "+ 36 from 4 2 7, tokens" in said and "| 36 from 28 8 2, tokens" in said and "«8 - 4 = 4" in said
    assert "on the critical path" in said and "wrong" in said


def test_threads_cannot_be_kept_from_stopping(spawner, capsys):
    assert main(["play", spawner, "--problem", "36 from 8 4 2 7", "--wait", "2"]) == 2
    assert "--wait 2" in capsys.readouterr().err
    assert main(["play", spawner, "--problem", "36 from 8 4 2 7", "--budget", "30"]) == 0
    assert "36 from 8 4 2 7 ;" in capsys.readouterr().out


def test_lines_can_be_read_by_others(tmp_path):
    parallel.run(config(tmp_path, methods=("context",), problems=2))
    assert all(json.dumps(line, allow_nan=False) for line in read_jsonl(tmp_path / "run" / "metrics.jsonl"))
