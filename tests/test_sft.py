"""Supervised fine-tuning: which rows each step sees, what a data file may hold, what is left behind."""

import json
import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from nanoreason.checkpoint import load_checkpoint, load_extra, save_checkpoint
from nanoreason.model import Transformer, small_config
from nanoreason.optim import AdamW, Muon
from nanoreason.play import task_of
from nanoreason.recipes import sft
from nanoreason.rollout import Problem, Task
from nanoreason.run import flatten, read_jsonl, task_flags
from nanoreason.tasks import TASKS, Addition
from nanoreason.tasks.addition import sum_problem
from nanoreason.tokenizer import char_tokenizer

TASK = Addition((1, 2))
TINY = replace(sft.PRESETS["tiny"], task=TASK, eval_problems=2)
LINE = {"prompt": "Input:\n1 + 1\nTarget:\n", "response": "2"}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    """A base with a context of 40 tokens that is for one-digit sums."""
    folder, tokenizer = tmp_path_factory.mktemp("base") / "policy", TASK.tokenizer()
    extra = task_flags(flatten(replace(TINY, task=Addition((1,)))))
    save_checkpoint(folder, Transformer(small_config(16, 1, 2, tokenizer.vocab_size, 40), 1), tokenizer, extra=extra)
    return str(folder)


@pytest.fixture
def learn(base, tmp_path):
    """learn(text, **settings): a run on a data file with this text, and its last line."""

    def run(text: str | bytes, **settings) -> dict:
        (tmp_path / "rows.jsonl").write_bytes(text if isinstance(text, bytes) else text.encode())
        settings = {"steps": 2, "rows_per_step": 4, "base": base, "out": str(tmp_path / "run"), **settings}
        return sft.run(replace(TINY, data=str(tmp_path / "rows.jsonl"), **settings))

    return run


def jsonl(*lines) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


# ------------------------------------------------------------------------------------------------------ data files

DEEP = "[" * 100_000
FAULTS = {
    "no JSON": ('{"prompt": "1"', "not a JSON object with the texts"),
    "nested too deep": (DEEP, "not a JSON object with the texts"),
    "a list": ("[1, 2]", "not a JSON object with the texts"),
    "a number as prompt": (json.dumps({**LINE, "prompt": 5}), "not a JSON object with the texts"),
    "a list as response": (json.dumps({**LINE, "response": ["2"]}), "not a JSON object with the texts"),
    "null": (json.dumps({**LINE, "response": None}), "not a JSON object with the texts"),
    "other keys": ('{"question": "1 + 1", "answer": "2"}', "not a JSON object with the texts"),
    "a byte order mark": ("\ufeff" + json.dumps(LINE), "not a JSON object with the texts"),  # not in front: wrong
    "an unknown word": (json.dumps({**LINE, "response": "two"}), "'two' is not in the tokenizer's vocabulary"),
    "half a character": ('{"prompt": "\\ud800", "response": "2"}', "surrogates not allowed"),
    "overlong": (json.dumps({**LINE, "response": "1 " * 40}), "49 tokens, more than the context of 40"),
    "an empty prompt": (json.dumps({**LINE, "prompt": " "}), "its prompt has no tokens"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_a_data_file_names_file_and_line_and_nothing_is_written(fault, learn, tmp_path):
    line, message = FAULTS[fault]
    with pytest.raises(ValueError) as error:
        learn(jsonl(LINE) + "\n" + line + "\n" + jsonl(LINE))  # the empty line counts
    assert str(error.value).startswith(f"{tmp_path / 'rows.jsonl'}, line 3: ")
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text, message", [("", "holds no demonstrations"), ("\n\n", "holds no demonstrations"),
                                           (b'{"prompt": "\xff"}', "is not UTF-8 text")])  # fmt: skip
def test_a_file_of_nothing_and_one_that_is_no_text_are_one_line(text, message, learn, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        learn(text)
    assert str(tmp_path / "rows.jsonl") in str(error.value) and not (tmp_path / "run").exists()


def test_data_that_is_not_there_and_data_without_a_base_are_one_line(base, tmp_path):
    for settings, message in (
        ({"data": str(tmp_path / "x.jsonl"), "base": base}, "x.jsonl: No such file"),
        ({"data": str(tmp_path), "base": base}, "Is a directory"),
        ({"data": str(tmp_path / "x.jsonl")}, "--data needs --base"),
    ):
        with pytest.raises(ValueError, match=message):
            sft.run(replace(TINY, out=str(tmp_path / "run"), **settings))
    assert not (tmp_path / "run").exists()


def test_line_separators_inside_texts_and_a_byte_order_mark_are_no_faults(tmp_path):
    """U+2028 and U+0085 end no line of JSON, and editors put a mark in front."""
    texts = ["a\u2028b", "a\u2029b", "a\x85b", "a\x0cb"]
    lines = "".join(json.dumps({"prompt": text, "response": text}, ensure_ascii=False) + "\n" for text in texts)
    for mark, end in (("", "\n"), ("\ufeff", ""), ("\ufeff", "\r\n")):
        (tmp_path / "rows.jsonl").write_bytes((mark + lines.rstrip("\n") + end).encode())
        problems = sft.read_problems(tmp_path / "rows.jsonl")
        assert problems == [(i, Problem(text, "", text)) for i, text in enumerate(texts, 1)]


def test_a_line_separator_is_learnt_as_any_character_is(tmp_path):
    tokenizer = char_tokenizer("ab\u2028")
    save_checkpoint(tmp_path / "base", Transformer(small_config(16, 1, 2, tokenizer.vocab_size, 16), 1), tokenizer)
    text = '{"prompt": "a", "response": "b\u2028a"}\n'
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
    config = replace(TINY, base=str(tmp_path / "base"), data=str(tmp_path / "rows.jsonl"), steps=1, rows_per_step=3)
    assert sft.run(replace(config, out=str(tmp_path / "run")))["num_tokens"] == 3 * 4  # b, the separator, a, the end


def test_each_line_of_a_file_is_learnt_once_per_epoch(base, tmp_path):
    problems = [(i, sum_problem(i, 2, "direct")) for i in range(1, 8)]
    rows_of = sft.file_rows(replace(TINY, rows_per_step=3), TASK.tokenizer(), 40, problems)
    seen = [row.problem for step in range(14) for row in rows_of(step)]
    epochs = [seen[i : i + 7] for i in range(0, 42, 7)]
    for epoch in epochs:
        assert sorted(p.prompt for p in epoch) == sorted(problem.prompt for _, problem in problems)
    assert len({tuple(p.prompt for p in epoch) for epoch in epochs}) > 3


def test_a_policy_of_a_file_is_for_the_task_of_its_base(learn, base, tmp_path):
    """The file does not say its task, and the settings' default is another one."""
    line = learn(jsonl(LINE))
    assert line["step"] == 2 and not any(name.startswith("acc/") for name in line)
    assert load_extra(tmp_path / "run" / "policy") == load_extra(base)
    assert task_of(str(tmp_path / "run" / "policy")) == Addition((1,))


# ---------------------------------------------------------------------------------------------- rows of a task


@dataclass(frozen=True)
class Mixed(Addition):
    """Of four problems one has no solution and one is too long for a context of 60 tokens."""

    def problem(self, split: str, index: int) -> Problem:
        problem = sum_problem(12345, 54321) if index % 4 == 3 else sum_problem(1 + index % 9, 2)
        return replace(problem, prompt=f"{problem.prompt}{index % 10}", solution=problem.solution * (index % 4 != 1))


def test_problems_without_solution_and_too_long_ones_are_dropped_and_counted():
    counts = Counter()
    rows_of = sft.task_rows(replace(TINY, task=Mixed(), rows_per_step=8), TASK.tokenizer(), 60, counts)
    rows = [row for step in range(3) for row in rows_of(step)]
    assert [row.problem for row in rows] == [Mixed().problem("sft-0", i) for i in range(24) if i % 4 in (0, 2)]
    assert all(row.tokens[-1] == TASK.tokenizer().eos_id for row in rows)  # whole, never cut
    assert counts["problems"] == 24 and counts["rows"] == 12 and counts["dropped"] == 6  # and 6 without solution
    assert counts["tokens_seen"] == sum(len(row.response) for row in rows)
    with pytest.raises(ValueError, match="no solution of 8 problems fits into the context of 12 tokens"):
        sft.task_rows(replace(TINY, task=Mixed(), rows_per_step=8), TASK.tokenizer(), 12, counts)(0)


def test_the_counts_of_a_run_go_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "mixed", Mixed)
    config = replace(TINY, task=Mixed(), context=60, rows_per_step=8, eval_task=Addition((1,)), log_every=1)
    whole = sft.run(replace(config, steps=4, decay="none", out=str(tmp_path / "whole")))
    assert (whole["problems"], whole["rows"], whole["dropped"], whole["dropped_share"]) == (32, 16, 8, 0.25)
    stopped = replace(config, decay="none", out=str(tmp_path / "stopped"), resume=True)
    sft.run(replace(stopped, steps=2))
    assert sft.run(replace(stopped, steps=4)) == whole


def test_a_step_sees_the_tasks_own_problems_in_their_order_and_another_seed_others():
    tokenizer = TASK.tokenizer()
    rows_of = sft.task_rows(replace(TINY, rows_per_step=4), tokenizer, 64, Counter())
    assert [row.problem for row in rows_of(2)] == [TASK.problem("sft-0", i) for i in range(8, 12)]
    other = sft.task_rows(replace(TINY, rows_per_step=4, seed=1), tokenizer, 64, Counter())
    assert [row.problem for row in other(2)] == [TASK.problem("sft-1", i) for i in range(8, 12)]


def test_so_many_distinct_problems_are_those_that_star_practises_on():
    task, counts = Addition((2, 3)), Counter()
    rows_of = sft.task_rows(replace(TINY, task=task, distinct=5, rows_per_step=4), TASK.tokenizer(), 256, counts)
    pool = [level.problem(f"train-{k}", i) for k, level in enumerate(task.levels()) for i in range(5)]
    seen = [row.problem for step in range(5) for row in rows_of(step)]  # two epochs of ten
    for epoch in (seen[:10], seen[10:]):
        assert sorted(problem.prompt for problem in epoch) == sorted(problem.prompt for problem in pool)
    assert seen[:10] != seen[10:] and not counts


# ---------------------------------------------------------------------------------------------- training


def test_no_steps_only_measure(base, tmp_path, assert_same_weights):
    for name, settings in (("scratch", {}), ("base", {"base": base})):
        config = replace(
            TINY, steps=0, decay="none", out=str(tmp_path / name), eval_samples=2, eval_tokens=20, **settings
        )
        line = sft.run(config)
        assert line["step"] == 0 and "loss" not in line
        assert {"acc/1", "acc/2", "eval/pass@2"} <= line.keys()
        assert sft.run(replace(config, resume=True)) == line
    sft.run(replace(TINY, steps=3, decay="none", out=str(tmp_path / "more"), eval_problems=0))
    more = replace(config, base="", out=str(tmp_path / "scratch"), resume=True, steps=3)
    sft.run(more)  # a run that has only measured can go on too
    left, whole = (load_checkpoint(tmp_path / name / "policy")[0] for name in ("scratch", "more"))
    assert_same_weights(left, whole)
    assert_same_weights(load_checkpoint(tmp_path / "base" / "policy")[0], load_checkpoint(base)[0])
    assert task_of(str(tmp_path / "scratch" / "policy")) == TASK


@pytest.mark.parametrize("name, kind, slots", [("adamw", AdamW, {"exp_avg"}), ("muon", Muon, {"exp_avg", "momentum"})])
def test_the_optimizer_is_the_one_that_was_chosen(name, kind, slots, tmp_path, monkeypatch):
    made = []
    real = sft.make_optimizer
    monkeypatch.setattr(sft, "make_optimizer", lambda *how, **more: made.append(real(*how, **more)) or made[-1])
    config = replace(TINY, optimizer=name, steps=2, eval_problems=0, out=str(tmp_path / "run"))
    line = sft.run(config)
    (optimizer,) = made
    assert type(optimizer) is kind and math.isfinite(line["loss"])
    with pytest.raises(ValueError, match="optimizer"):
        other = "muon" if name == "adamw" else "adamw"
        sft.run(replace(config, optimizer=other, resume=True))


def test_the_two_optimizers_leave_different_weights_and_the_same_one_the_same(tmp_path):
    def left(name: str, optimizer: str) -> torch.Tensor:
        sft.run(replace(TINY, optimizer=optimizer, steps=3, eval_problems=0, out=str(tmp_path / name)))
        return load_checkpoint(tmp_path / name / "policy")[0].model.layers[0].mlp.up_proj.weight

    first, again, other = left("a", "adamw"), left("b", "adamw"), left("c", "muon")
    assert torch.equal(first, again) and not torch.allclose(first, other, rtol=0, atol=1e-4)


@pytest.mark.parametrize("decay, shares", [
    ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]), ("none", [0.5, 1, 1, 1, 1, 1]),
    ("cosine", [0.5, 1, *(0.1 + 0.45 * (1 + math.cos(math.pi * s / 4)) for s in range(4))]),
])  # fmt: skip
def test_the_learning_rate_warms_up_and_falls_as_asked(decay, shares, tmp_path):
    config = replace(TINY, decay=decay, steps=6, warmup=2, lr=1e-3, log_every=1, eval_problems=0)
    sft.run(replace(config, out=str(tmp_path / "run")))
    rates = [line["learning_rate"] for line in read_jsonl(tmp_path / "run" / "metrics.jsonl")]
    assert rates == pytest.approx([1e-3 * share for share in shares])


def test_tests_and_lines_come_when_they_are_due_and_at_the_end(tmp_path):
    config = replace(TINY, steps=7, log_every=2, eval_every=3, eval_task=Addition((1,)), rows_per_step=4)
    sft.run(replace(config, out=str(tmp_path / "run")))
    lines = {line["step"]: line for line in read_jsonl(tmp_path / "run" / "metrics.jsonl")}
    assert list(lines) == [2, 3, 4, 6, 7]
    assert [step for step, line in lines.items() if "acc/1" in line] == [3, 6, 7]
    assert not any("acc/2" in line for line in lines.values())  # another task is tested than is learnt


@pytest.mark.trains
def test_the_base_that_is_shipped_learns_a_file_that_contradicts_it(tmp_path):
    """Sums that are one too large, without a scratchpad: after a few updates it gives these answers."""
    shipped = str(Path(__file__).parent.parent / "data" / "checkpoints" / "star-base")
    problems = [sum_problem(a, b, "direct") for a in range(2, 8) for b in (1, 2)]
    wrong = [{"prompt": p.prompt, "response": str(int(p.answer) + 1).replace("1", "1 ", 1).strip()} for p in problems]
    wrong = [line for line in wrong if len(line["response"]) == 1]
    (tmp_path / "rows.jsonl").write_text(jsonl(*wrong))
    config = sft.SftConfig(base=shipped, data=str(tmp_path / "rows.jsonl"), steps=30, rows_per_step=len(wrong),
                           lr=1e-3, warmup=2, log_every=1, out=str(tmp_path / "run"))  # fmt: skip
    sft.run(config)
    losses = [line["loss"] for line in read_jsonl(tmp_path / "run" / "metrics.jsonl")]
    assert losses[-1] < 0.3 * losses[0]
    assert isinstance(task_of(str(tmp_path / "run" / "policy")), Task)
