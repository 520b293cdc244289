"""Supervised fine-tuning: a task's solutions or a file's lines, what is dropped and counted, files with mistakes."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from nanoreason import learn
from nanoreason.__main__ import main
from nanoreason.checkpoint import load_checkpoint, load_extra
from nanoreason.recipes import sft
from nanoreason.rollout import Problem, Task
from nanoreason.run import read_jsonl
from nanoreason.tasks import Addition
from nanoreason.tasks.addition import tokenizer

BASE = str(Path(__file__).parent / "data" / "one-digit-sums")  # its context is 32 tokens
TINY = sft.PRESETS["tiny"]


@pytest.fixture
def rows_of_steps(monkeypatch) -> list:
    """The rows of every update that is made."""
    seen, real = [], learn.update

    def watched(model, optimizer, rows, *arguments, **options):
        seen.append(rows)
        return real(model, optimizer, rows, *arguments, **options)

    monkeypatch.setattr(learn, "update", watched)
    return seen


def lines_of(folder: Path) -> list[dict]:
    return read_jsonl(folder / "metrics.jsonl")


# --------------------------------------------------------------------------------------------------- from a task


@pytest.mark.trains
def test_a_base_learns_its_task_from_random_weights_and_says_which_it_was(tmp_path):
    task = Addition((1,), form="direct")
    line = sft.run(replace(TINY, task=task, out=str(tmp_path), steps=60, lr=1e-2, context=32))
    losses = [line["loss"] for line in lines_of(tmp_path)]
    assert losses[-1] < 0.6 * losses[0] and all(map(math.isfinite, losses))
    assert line["step"] == 60 and {"acc/1", "acc_strict/1"} <= line.keys()
    assert load_extra(tmp_path / "policy")["task.form"] == "direct"
    model, words = load_checkpoint(tmp_path / "policy")
    assert words.encode("1 + 2") == tokenizer().encode("1 + 2") and model.config.model_type == "qwen3"
    assert model.config.num_key_value_heads == 1 and model.config.max_position_embeddings == 32


def test_every_step_sees_other_problems_and_the_rows_are_those_of_the_seed(tmp_path, rows_of_steps):
    config = replace(TINY, steps=3, rows_per_step=5, eval_problems=0)
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        sft.run(replace(config, out=str(tmp_path / name), seed=seed))
    first, again, other = ([row.tokens for rows in rows_of_steps[i : i + 3] for row in rows] for i in (0, 3, 6))
    assert first == again != other and len(first) == 15
    expected = [Addition((1, 2)).problem("sft-0", i) for i in range(15)]
    assert [row.problem for rows in rows_of_steps[:3] for row in rows] == expected
    for row in rows_of_steps[0]:  # the response and its EOS are in the loss, the prompt is not
        assert row.loss_mask == [False] * row.prompt_len + [True] * (len(row.tokens) - row.prompt_len)


def test_distinct_problems_are_those_that_star_draws_from_each_once_per_epoch(tmp_path, rows_of_steps):
    sft.run(replace(TINY, task=Addition((2, 3)), distinct=6, steps=4, rows_per_step=6, out=str(tmp_path),
                    eval_problems=0))  # fmt: skip
    levels = [Addition((2,)).problem("train-0", i) for i in range(6)]
    levels += [Addition((3,)).problem("train-1", i) for i in range(6)]
    seen = [row.problem for rows in rows_of_steps for row in rows]
    for epoch in (seen[:12], seen[12:]):
        assert sorted(problem.prompt for problem in epoch) == sorted(problem.prompt for problem in levels)
    assert seen[:12] != seen[12:]


@dataclass(frozen=True)
class Patchy(Task):
    """Every third problem has no solution, every fifth a very long one."""

    hopeless: bool = False

    def tokenizer(self):
        return tokenizer()

    def problem(self, split: str, index: int) -> Problem:
        if self.hopeless or index % 3 == 0:
            return Problem("1 + 1", "2")
        return Problem("1 + 1", "2", " ".join("2" * (60 if index % 5 == 0 else 1)))

    def reward(self, problem: Problem, response: str) -> float:
        return 0.0


def test_problems_without_a_solution_and_too_long_ones_are_dropped_and_counted(tmp_path, rows_of_steps):
    config = replace(TINY, task=Patchy(), steps=2, rows_per_step=30, context=16, log_every=1, out=str(tmp_path))
    config = replace(config, eval_problems=1, save_every=1)
    sft.run(config)
    assert all(row.problem.solution == "2" for rows in rows_of_steps for row in rows)
    assert json.loads((tmp_path / "config.json").read_text())["task"].endswith("test_sft.py:Patchy")
    first, last = lines_of(tmp_path)
    without, long = len(range(0, 60, 3)), len([i for i in range(60) if i % 3 and i % 5 == 0])
    assert last["problems"] == 60 and last["rows"] == 60 - without - long == sum(map(len, rows_of_steps))
    assert last["dropped"] == long and last["dropped_share"] == pytest.approx(long / 60)
    assert last["tokens_seen"] == 2 * last["rows"]  # "2" and EOS
    assert first["problems"] == 30
    sft.run(replace(config, steps=3, resume=True))  # the counts go on
    assert lines_of(tmp_path)[-1]["problems"] == 90


@pytest.mark.parametrize("distinct", [0, 4])
def test_a_step_without_any_solution_is_one_error(tmp_path, distinct):
    for task, context in ((Patchy(hopeless=True), 16), (Addition((3,)), 16)):
        config = replace(TINY, task=task, context=context, distinct=distinct, out=str(tmp_path / f"{context}"))
        with pytest.raises(ValueError, match="no solution of .* fits into the context of 16 tokens"):
            sft.run(config)


# --------------------------------------------------------------------------------------------------- from a file


def data_file(folder: Path, *lines, **how) -> str:
    path = folder / "data.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_text("\n".join(texts) + "\n", **{"encoding": "utf-8", **how})
    return str(path)


GOOD = {"prompt": "Input:\n3 + 4\nTarget:\n", "response": "7"}


def run_file(data: str, out: Path, **settings) -> dict:
    return sft.run(replace(TINY, **{"base": BASE, "data": data, "out": str(out), "steps": 2, "rows_per_step": 4,
                                    "log_every": 1, **settings}))  # fmt: skip


def test_the_lines_of_a_file_are_learnt_once_per_epoch(tmp_path, rows_of_steps):
    lines = [{"prompt": f"Input:\n{a} + 1\nTarget:\n", "response": str(a + 1), "note": "kept out"} for a in range(1, 5)]
    line = run_file(data_file(tmp_path, *lines, "", "  "), tmp_path / "run")
    assert line["step"] == 2 and "acc/1" not in line  # a file has no held-out problems
    for rows in rows_of_steps:
        found = sorted((row.problem.prompt, row.problem.solution) for row in rows)
        assert found == [(each["prompt"], each["response"]) for each in lines]
    assert [row.tokens for row in rows_of_steps[0]] != [row.tokens for row in rows_of_steps[1]]


def test_a_line_separator_inside_a_string_and_a_byte_order_mark_are_fine(tmp_path):
    odd = {"prompt": "3 + 4\u2028", "response": "7\u2029\x85"}
    (found,) = sft.read_problems(Path(data_file(tmp_path, odd)))
    assert found == (1, Problem(odd["prompt"], "", odd["response"]))
    data = data_file(tmp_path, GOOD, GOOD, encoding="utf-8-sig")
    assert Path(data).read_bytes().startswith(b"\xef\xbb\xbf")
    assert [number for number, _ in sft.read_problems(Path(data))] == [1, 2]
    assert run_file(data, tmp_path / "run")["step"] == 2
    Path(data).write_bytes(Path(data).read_bytes().replace(b"\n", b"\r\n"))  # as an editor on Windows leaves it
    assert [problem.solution for _, problem in sft.read_problems(Path(data))] == ["7", "7"]


MISTAKES = {
    "no JSON": (["{"], 'line 3: not a JSON object with the texts "prompt" and "response"'),
    "a number": ([{"prompt": 5, "response": "7"}], "line 3: not a JSON object"),
    "no response": ([{"prompt": 5}], "line 3: not a JSON object"),
    "a list": (["[1, 2]"], "line 3: not a JSON object"),
    "null": ([{"prompt": "3 + 4", "response": None}], "line 3: not a JSON object"),
    "deep": (["[" * 100_000], "line 3: not a JSON object"),
    "long number": (['{"prompt": ' + "1" * 5000 + "}"], "line 3: not a JSON object"),
    "too long": ([{"prompt": "3", "response": " ".join("7" * 40)}], "line 3: 42 tokens, more than the context of 32"),
    "unknown word": ([{"prompt": "3 x 4", "response": "7"}], "line 3: 'x' is not in the tokenizer's vocabulary"),
    "unknown answer": ([{"prompt": "3", "response": "seven"}], "line 3: 'seven' is not in the tokenizer's vocabulary"),
    "no prompt": ([{"prompt": "", "response": "7"}], "line 3: its prompt is empty"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_file_names_file_and_line_before_anything_is_learnt_or_written(
    tmp_path, mistake, monkeypatch, capsys
):
    lines, message = MISTAKES[mistake]
    data = data_file(tmp_path, GOOD, "", *lines, GOOD)
    monkeypatch.setattr(learn, "update", None)
    flags = ["--base", BASE, "--data", data, "--out", str(tmp_path / "run")]
    assert main(["sft", "--preset", "tiny", *flags]) == 2
    said = capsys.readouterr().err
    assert data in said and message in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"", "holds no demonstrations"),
        (b"\n \n", "holds no demonstrations"),
        (b'{"prompt": "\xff", "response": "7"}', "it is not UTF-8 text"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(tmp_path, content, message, capsys):
    data = tmp_path / "data.jsonl"
    if content is not None:
        data.write_bytes(content)
    assert main(["sft", "--preset", "tiny", "--base", BASE, "--data", str(data), "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert str(data) in said and message in said and said.count("\n") == 1 and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "x.jsonl"], "--data needs --base"),
        (["--data", str(Path(__file__).parent), "--base", BASE], "Is a directory"),
        (["--base", "nowhere"], "no checkpoint at"),
        (["--heads", "3"], "heads"),
        (["--lr", "inf"], "--lr inf: must be"),
        (["--optimizer", "sgd"], "--optimizer sgd: one of adamw, muon"),
        (["--steps", "-1"], "--steps -1: must be at least 0"),
    ],
)
def test_settings_that_cannot_work_are_one_line_and_nothing_is_written(tmp_path, flags, message, capsys):
    assert main(["sft", "--preset", "tiny", "--out", str(tmp_path / "run"), *flags]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------------ measuring


def test_no_steps_only_measure(tmp_path, assert_same_weights, monkeypatch):
    monkeypatch.setattr(learn, "update", None)
    task = Addition((1,), form="direct")
    config = replace(TINY, base=BASE, task=task, steps=0, out=str(tmp_path), eval_task=Addition((1, 2), form="direct"))
    line = sft.run(config)
    assert line["step"] == 0 and 0.2 < line["acc/1"] < 0.8 and "acc/2" in line and "loss" not in line
    assert_same_weights(load_checkpoint(tmp_path / "policy")[0], load_checkpoint(BASE)[0])
    assert sft.run(replace(config, resume=True)) == line
    assert len(lines_of(tmp_path)) == 1


def test_tests_come_when_they_are_due_and_at_the_end(tmp_path):
    sft.run(replace(TINY, steps=7, eval_every=3, log_every=2, rows_per_step=2, eval_problems=1, out=str(tmp_path)))
    found = {line["step"]: "acc/2" in line for line in lines_of(tmp_path)}
    assert found == {2: False, 3: True, 4: False, 6: True, 7: True}


@pytest.mark.trains
def test_muon_trains_too(tmp_path):
    sft.run(replace(TINY, optimizer="muon", steps=20, lr=2e-2, log_every=1, eval_problems=0, out=str(tmp_path)))
    losses = [line["loss"] for line in lines_of(tmp_path)]
    assert losses[-1] < 0.8 * losses[0]
