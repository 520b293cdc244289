"""Stream of Search: what is trained on, how searches are measured, how a searcher improves, and that runs go on."""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from nanoreason.trajectories import (
    SearchConfig,
    correctness_alignment,
    hard_problems,
    held_out,
    measure,
    solves,
    state_alignment,
    summary,
)

from nanoreason.checkpoint import load_checkpoint
from nanoreason.experiments import sos as section
from nanoreason.experiments.reproduce import reproduce
from nanoreason.learn import collate, score, token_logprobs, token_weights, update
from nanoreason.optim import SGD, AdamW
from nanoreason.recipes import sos, sos_improve
from nanoreason.rollout import demonstration
from nanoreason.run import read_jsonl
from nanoreason.search import ERRORS, MIXTURE, STRATEGIES, StreamOfSearch, generate, read_trace, tokenizer
from nanoreason.tasks.countdown import Countdown

TINY = sos.PRESETS["tiny"]
IMPROVE = sos_improve.PRESETS["tiny"]
WORDS = tokenizer()
TASK = StreamOfSearch(Countdown(inputs=3, max_input=99))


# ----------------------------------------------------------------------------------------------------- tokens


@pytest.mark.parametrize("inputs", [3, 4])
def test_traces_survive_the_round_trip_through_tokens(inputs):
    for trajectory in generate(StreamOfSearch(Countdown(inputs)), "train", 0, 30, workers=1):
        for text in (trajectory.problem.prompt, trajectory.text, trajectory.problem.solution):
            ids = WORDS.encode(text)
            assert WORDS.decode(ids) == text
            parts = text.replace("\n", " \n").split(" ")  # one token each, but one for each digit after the second
            assert len(ids) == sum(max(1, len(part) - 1) if part.isdecimal() else 1 for part in parts)


def test_every_number_is_made_of_tokens_that_training_has_seen():
    """A held-out target has no token of its own that would stay untrained."""
    trained = set()
    for trajectory in generate(TASK, "train", 0, 100, workers=1):
        trained |= set(WORDS.encode(trajectory.problem.prompt + trajectory.text))
    for target in TASK.countdown.held_out_targets:
        assert set(WORDS.encode(f"T {target} : 4")) <= trained


# ------------------------------------------------------------------------------------------------ training data


def rows_of(config: sos.SosConfig, steps: int = 6) -> tuple[list, Counter]:
    seen = Counter()
    at = sos.demonstrations(config, WORDS, seen)
    return [row for step in range(steps) for row in at(step)], seen


def test_searches_beyond_the_context_are_dropped_and_counted_never_cut():
    wide = replace(TINY, inputs=3, max_input=99, context=2048)
    narrow = replace(wide, context=150)
    every, _ = rows_of(wide)
    kept, seen = rows_of(narrow)
    assert [row.tokens for row in kept] == [row.tokens for row in every if len(row.tokens) <= 150]
    assert 0 < len(kept) < len(every) == seen["problems"] == 6 * narrow.rows_per_step
    assert seen["dropped"] == len(every) - len(kept) and seen["rows"] == len(kept)
    for row in kept:  # whole searches, each to its own end
        reading = TASK.read(row.problem, WORDS.decode(row.response[:-1]))
        assert reading.ending and not any(reading.errors.values())


@pytest.mark.parametrize("data", sos.DATA)
def test_the_end_of_a_search_is_in_the_loss_and_the_prompt_is_not(data):
    for row in rows_of(replace(TINY, data=data), 2)[0]:
        assert row.tokens[-1] == WORDS.eos_id and row.loss_mask[-1]
        assert row.loss_mask == [False] * row.prompt_len + [True] * len(row.response)


def test_the_gradient_reaches_the_end_of_a_search(make_model):
    """Trained on one row alone, the model comes to expect EOS where the search ends."""
    (trajectory,) = generate(TASK, "train", 0, 1, ["bfs1-sum"], workers=1)
    row = demonstration(WORDS, trajectory.problem, trajectory.text)
    model = make_model(0, vocab_size=WORDS.vocab_size, max_position_embeddings=256)
    optimizer = AdamW(model)
    batch = collate([row], token_weights([row]), model.device)

    def end() -> float:
        return token_logprobs(model, batch.tokens, batch.loss_mask)[0, -1].item()

    before = end()
    for _ in range(5):
        update(model, optimizer, [row], lr=1e-2)
    assert end() > before + 1


def test_each_kind_of_data_is_what_it_says():
    config = replace(TINY, inputs=3, max_input=99, context=1024)
    rows = {data: rows_of(replace(config, data=data))[0] for data in sos.DATA}
    readings = {
        data: [TASK.read(row.problem, WORDS.decode(row.response[:-1])) for row in rows[data]] for data in sos.DATA
    }
    assert all(reading.solved and reading.nodes == 3 for reading in readings["op"])
    assert all(reading.solved for reading in readings["correct"])
    assert 0.5 < sum(reading.solved for reading in readings["sos"]) / len(rows["sos"]) < 1
    assert max(reading.nodes for reading in readings["sos"]) > 10
    solved = [row.tokens for row, reading in zip(rows["sos"], readings["sos"], strict=True) if reading.solved]
    assert [row.tokens for row in rows["correct"]] == solved
    prompts = {data: [row.problem.prompt for row in rows[data]] for data in sos.DATA}
    assert prompts["op"] == prompts["sos"]


def test_training_data_holds_no_held_out_target_and_no_test_problem():
    config = replace(TINY, inputs=3, max_input=20, targets=(10, 50), context=256)
    keys = {
        split: {
            (*sorted(p.info["numbers"]), p.info["target"]) for p in held_out(replace(config, eval_problems=50), split)
        }
        for split in ("test_inputs", "test_targets")
    }
    practice = [config.task().problem("train", i) for i in range(300)]  # sos_improve practises on these
    for problem in [row.problem for data in sos.DATA for row in rows_of(replace(config, data=data), 30)[0]] + practice:
        assert problem.info["target"] not in config.task().countdown.held_out_targets
        key = (*sorted(problem.info["numbers"]), problem.info["target"])
        assert key not in keys["test_inputs"] | keys["test_targets"]


def test_a_context_too_small_for_any_search_is_a_clear_error():
    with pytest.raises(ValueError, match="longer --context"):
        rows_of(replace(TINY, context=12))


# ---------------------------------------------------------------------------------------------------- measuring

SOLVED = read_trace((9, 4, 3), 24, "E 9 - 3 = 6 > 4 6 G 0 0 M 0 0 S 4 6 | 9 - 3 = 6 E 4 * 6 = 24 > 24 W")
WANDERS = read_trace((9, 4, 3), 24, "E 9 + 3 = 12 > 4 12 G 0 0 E 9 - 3 = 6 > 4 6 G 0 1 M 0 1 S 4 6 | 9 - 3 = 6 "
                                    "E 4 * 6 = 24 > 24 W")  # fmt: skip
ERRS = read_trace((9, 4, 3), 24, "E 9 - 3 = 5 > 4 5 G 0 0 M 0 0 S 4 5 | 9 - 3 = 5 E 4 + 5 = 9 > 9 X N")
NOTHING = read_trace((9, 4, 3), 24, "N")


def test_state_alignment_is_the_common_share_of_the_larger_set_of_valid_states():
    # valid states: {349, 46, 24}, {349, 4 12, 46, 24}, {349} (the rest grows from a wrong sum), {349}
    assert state_alignment([SOLVED], [SOLVED]) == 1
    assert state_alignment([SOLVED], [WANDERS]) == state_alignment([WANDERS], [SOLVED]) == 3 / 4
    assert state_alignment([ERRS], [SOLVED]) == 1 / 3
    assert state_alignment([SOLVED, ERRS], [WANDERS, NOTHING]) == (3 / 4 + 1) / 2


def test_correctness_alignment_is_pearsons_correlation():
    yes, no = SOLVED, NOTHING
    assert correctness_alignment([yes, no, yes, no], [yes, no, yes, no]) == pytest.approx(1)
    assert correctness_alignment([yes, no], [no, yes]) == pytest.approx(-1)
    # a = 1100, b = 1010: covariance 0;  a = 1110, b = 1100: (2/4 - 3/4 * 2/4) / sqrt(3/16 * 4/16)
    assert correctness_alignment([yes, yes, no, no], [yes, no, yes, no]) == pytest.approx(0)
    assert correctness_alignment([yes, yes, yes, no], [yes, yes, no, no]) == pytest.approx(1 / math.sqrt(3))
    assert correctness_alignment([yes, yes], [yes, no]) == 0  # one of them never varies


def test_the_summary_counts_what_the_reader_says():
    (trajectory,) = generate(TASK, "train", 0, 1, workers=1)
    rows = [demonstration(WORDS, trajectory.problem, "N") for _ in range(4)]
    rows[3].stop_reason = "length"
    numbers = summary(rows, [SOLVED, WANDERS, ERRS, NOTHING])
    assert (numbers["acc"], numbers["cut"], numbers["tokens"]) == (0.5, 0.25, 2)
    assert (numbers["nodes"], numbers["nodes_solved"]) == ((3 + 4 + 3 + 1) / 4, 3.5)
    assert numbers["errors/arithmetic"] == 0.25 and numbers["errors/formatting"] == 0


def test_unsolved_are_those_whose_drawn_strategy_failed_and_difficult_those_that_all_twelve_fail():
    config = SearchConfig(seed=3, max_input=20, targets=(10, 50), hard_problems=8)
    unsolved, difficult = hard_problems(config)
    assert len(unsolved) == 8 and 0 < len(difficult) <= 8
    drawn = [t for t in generate(config.task(), "train", 0, 200, MIXTURE, workers=1, seed=3) if not t.solved]
    assert unsolved == [t.problem for t in drawn[:8]]
    assert not any(solves(problem, name) for problem in difficult for name in STRATEGIES)
    assert any(solves(problem, name) for problem in unsolved for name in STRATEGIES)  # not everyone fails on those
    config = replace(config, strategies=("bfs1-sum",))
    unsolved, _ = hard_problems(config)
    assert not any(solves(problem, "bfs1-sum") for problem in unsolved)


def test_the_symbolic_baseline_is_given_the_same_context(make_model):
    """A search that needs more tokens than the policy may write does not count as solved within its context."""
    config = SearchConfig(max_input=20, targets=(10, 50), eval_problems=6, hard_problems=2)
    model = make_model(0, vocab_size=WORDS.vocab_size, max_position_embeddings=100)
    numbers = measure(config, model, WORDS, full=True)
    for split in ("test_inputs", "test_targets"):
        problems = held_out(config, split)
        for name in ("dfs-sum", "bfs3-sum"):
            seeds = {p.info["target"]: p for p in problems}
            assert len(seeds) > 1
            assert numbers[f"symbolic_within/{name}/{split}"] <= numbers[f"symbolic/{name}/{split}"]
        assert numbers[f"symbolic_within/dfs-sum/{split}"] < numbers[f"symbolic/dfs-sum/{split}"]
        assert 0 < numbers[f"chance/{split}"] < 0.3
        assert 0 <= numbers[f"states/dfs-sum/{split}"] <= 1


# -------------------------------------------------------------------------------------------------- improvement


def test_the_apa_loss_pulls_each_log_prob_to_the_references_plus_half_the_advantage(finished):
    rows = finished(2, seed=5)
    for row, advantage in zip(rows, (1.0, -2.0), strict=True):
        row.advantage = advantage
    batch = collate(rows, token_weights(rows), torch.device("cpu"))
    logprobs = (batch.old_logprobs + 0.25).requires_grad_()
    loss = sos_improve.apa_loss(logprobs, batch)
    # d/dx (x - ref - A/2)^2 = 2 (x - ref - A/2), with x - ref = 1/4
    torch.testing.assert_close(loss[0], torch.full_like(loss[0], (0.25 - 0.5) ** 2))
    torch.testing.assert_close(loss[1], torch.full_like(loss[1], (0.25 + 1.0) ** 2))
    (loss * batch.weights).sum().backward()
    expected = 2 * torch.tensor([[0.25 - 0.5], [0.25 + 1.0]]) * batch.weights
    torch.testing.assert_close(logprobs.grad, expected)
    assert (logprobs.grad[0][batch.loss_mask[0]] < 0).all()  # a good row becomes more likely
    at_goal = batch.old_logprobs + 0.5 * batch.advantages
    assert (sos_improve.apa_loss(at_goal, batch).abs() < 1e-10).all()


def test_alignment_compares_with_the_log_probs_of_the_reference(make_model, finished, monkeypatch):
    model, reference, rows = make_model(3), make_model(7), finished(4, seed=8)
    monkeypatch.setattr(sos_improve, "update", lambda *args, **kwargs: {})
    sampled = [list(row.logprobs) for row in rows]
    sos_improve.reinforce(replace(IMPROVE, method="apa", temperature=0.8), 0, model, None, rows, reference)
    for row, values in zip(rows, sampled, strict=True):
        batch = collate([row], token_weights([row]), model.device)
        alone = token_logprobs(reference, batch.tokens, batch.loss_mask, 0.8)
        torch.testing.assert_close(batch.old_logprobs, alone, atol=1e-5, rtol=0)
        assert row.logprobs == values


@pytest.mark.parametrize("group_size", [1, 4])
@pytest.mark.parametrize("method", ["pg", "apa"])
def test_policy_improvement_raises_the_better_search_and_lowers_the_worse(make_model, finished, method, group_size):
    model, rows = make_model(3), finished(4, seed=8)
    for row, logprobs in zip(rows, score(model, rows, 1.0, 1024), strict=True):
        row.logprobs = logprobs
    for row, reward in zip(rows, (0.9, 0.0, 0.0, 0.3), strict=True):
        row.reward = reward
    config = replace(IMPROVE, method=method, group_size=group_size, rows_per_step=4, temperature=1.0, warmup=0, lr=1e-3)

    def total() -> list[float]:
        batch = collate(rows, token_weights(rows), model.device)
        return token_logprobs(model, batch.tokens, batch.loss_mask).sum(1).tolist()

    before = total()
    reference = model if method == "apa" else None
    sos_improve.reinforce(config, 0, model, SGD(model), rows, reference)
    gain = [after - was for after, was in zip(total(), before, strict=True)]
    assert gain[0] > 0 and gain[0] == max(gain) and gain[1] < gain[0] and gain[2] < gain[0]
    assert sum(row.advantage for row in rows) == pytest.approx(0)


# ------------------------------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def searcher(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("sos") / "run"
    sos.run(replace(TINY, out=str(out)))
    return out


def test_a_searcher_is_trained_and_tested(searcher):
    lines = read_jsonl(searcher / "metrics.jsonl")
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[-1]["problems"] == 96 == lines[-1]["rows"] + lines[-1]["dropped"]
    for split in ("test_inputs", "test_targets", "unsolved"):
        for name in ("acc", "acc_lenient", "nodes", "cut", *(f"errors/{kind}" for kind in ERRORS)):
            assert lines[-1][f"{name}/{split}"] >= 0
    assert "acc/test_inputs" in lines[2] and "acc/unsolved" not in lines[2]


def without_times(path: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in read_jsonl(path)]


def interrupted(monkeypatch, module, name: str, calls: int, start) -> None:
    """Run `start` until `module.name` is called for the `calls`-th time, which is where the run is killed."""
    real, count = getattr(module, name), Counter()

    def counting(*args, **kwargs):
        count[name] += 1
        if count[name] == calls:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, counting)
        with pytest.raises(KeyboardInterrupt):
            start()


def assert_same_run(one: Path, other: Path, assert_same_weights) -> None:
    assert without_times(one / "metrics.jsonl") == without_times(other / "metrics.jsonl")
    assert_same_weights(load_checkpoint(one / "policy")[0], load_checkpoint(other / "policy")[0])
    moments = one / "policy" / "training.safetensors"
    if moments.exists():
        assert moments.read_bytes() == (other / "policy" / "training.safetensors").read_bytes()


def test_a_stopped_and_resumed_searcher_ends_bit_equal(searcher, tmp_path, monkeypatch, assert_same_weights):
    config = replace(TINY, out=str(tmp_path / "run"))
    interrupted(monkeypatch, sos, "measure", 2, lambda: sos.run(config))  # at the end, after the checkpoint of step 6
    sos.run(replace(config, resume=True))
    assert_same_run(searcher, tmp_path / "run", assert_same_weights)


@pytest.mark.parametrize("method", sos_improve.METHODS)
def test_a_stopped_and_resumed_improvement_ends_bit_equal(searcher, tmp_path, monkeypatch, assert_same_weights, method):
    # Every third trajectory counts as a solution, so that there is something to learn; the tests cost no time.
    def attempts(model, words, task, problems, **how):
        rows, readings = real(model, words, task, problems, **how)
        return rows, [replace_reading(reading, i) for i, reading in enumerate(readings)]

    def replace_reading(reading, i):
        return replace(reading, solved=i % 3 == 0, nodes=3 + i)

    real = sos_improve.attempts
    monkeypatch.setattr(sos_improve, "attempts", attempts)
    monkeypatch.setattr(
        sos_improve, "measure", lambda *_, **__: dict.fromkeys(("acc/test_inputs", "acc/test_targets"), 0.5)
    )
    config = replace(
        IMPROVE, method=method, base=str(searcher / "policy"), out=str(tmp_path / "whole"), rounds=5, temperature=1.0
    )
    sos_improve.run(config)
    config = replace(config, out=str(tmp_path / "run"))
    # killed in round 4: pg and apa go back to the checkpoint of round 2, where the reference was replaced
    interrupted(monkeypatch, sos_improve, "practise", 4, lambda: sos_improve.run(config))
    sos_improve.run(replace(config, resume=True))
    assert_same_run(tmp_path / "whole", tmp_path / "run", assert_same_weights)
    base, _ = load_checkpoint(searcher / "policy")
    after, _ = load_checkpoint(tmp_path / "run" / "policy")
    assert not torch.equal(base.lm_head.weight, after.lm_head.weight)


def test_a_round_without_a_solution_leaves_the_policy_alone(make_model, finished):
    model, rows = make_model(3), finished(4)
    for row in rows:
        row.reward = 0.0
    before = model.lm_head.weight.clone()
    assert sos_improve.imitate(IMPROVE, 0, model, rows) == {"kept": 0.0, "steps": 0}
    assert torch.equal(before, model.lm_head.weight)


@pytest.mark.parametrize(
    ("module", "change", "message"),
    [
        (sos, {"data": "dreams"}, "--data dreams"),
        (sos, {"save_every": 5}, "--save-every 5"),
        (sos, {"targets": (10,)}, "targets"),
        (sos_improve, {"method": "luck", "base": "x"}, "--method luck"),
        (sos_improve, {}, "--base is needed"),
    ],
)
def test_flags_that_cannot_work_are_one_clear_error(tmp_path, module, change, message):
    config = replace(module.PRESETS["tiny"], out=str(tmp_path / "run"), **change)
    with pytest.raises(ValueError, match=message):
        module.run(config)


def test_reproduce_writes_the_summary_and_the_figure(tmp_path):
    summary = reproduce("sos", "tiny", 1, tmp_path / "out", device="cpu", workers=1)
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    assert set(summary["numbers"]) == {*section.ARMS, "strategies"}
    assert all(line["mean"] is not None for line in summary["claims"] if "/" not in line["name"])
    assert 0 < summary["numbers"]["strategies"]["symbolic/test_inputs"]["0"] <= 1
    assert {line["arm"] for line in read_jsonl(tmp_path / "out" / "metrics.jsonl")} == set(section.ARMS)
    pytest.importorskip("matplotlib")
    assert (tmp_path / "out" / "figure.png").stat().st_size > 10_000
