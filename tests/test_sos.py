"""Stream of Search: what is trained on, how searches are measured, how a searcher improves, and that runs go on."""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nanoreason.__main__ import main
from nanoreason.checkpoint import load_checkpoint
from nanoreason.countdown import count_solutions, find_solution
from nanoreason.environment import judge
from nanoreason.learn import (
    ALGORITHMS,
    apa_loss,
    collate,
    compute_logprobs,
    make_optimizer,
    token_logprobs,
    token_weights,
    update,
)
from nanoreason.optim import SGD
from nanoreason.recipes import grpo, search_test, sft, star
from nanoreason.recipes.search_test import (
    SearchTestConfig,
    correctness_alignment,
    hard_problems,
    measure,
    solves,
    state_alignment,
    summary,
    symbolic,
)
from nanoreason.rewards import Metric
from nanoreason.rollout import demonstration, seed_of
from nanoreason.run import Run, Schedule, read_jsonl
from nanoreason.search import ERRORS, STRATEGIES, read_trace
from nanoreason.tasks import Addition, StreamOfSearch
from nanoreason.tasks.countdown import held_out_targets, search_tokenizer

WORDS = search_tokenizer()
TASK = StreamOfSearch(inputs=3, max_input=99)
EASY = StreamOfSearch(3, 9, (10, 40))
TINY = replace(sft.PRESETS["tiny"], task=EASY, context=256, steps=12, rows_per_step=8, save_every=6, log_every=2,
               eval_problems=4)  # fmt: skip
DATA = ("sos", "correct", "op")


# ----------------------------------------------------------------------------------------------------- tokens


@pytest.mark.parametrize("inputs", [3, 4])
def test_traces_survive_the_round_trip_through_tokens(inputs):
    for data in ("sos", "op"):
        task = StreamOfSearch(inputs, data=data)
        for problem in (task.problem("train", index) for index in range(30)):
            for text in (problem.prompt, problem.solution):
                ids = WORDS.encode(text)
                assert WORDS.decode(ids) == text
                # one token for each word, but one for each digit after the second of a number
                parts = text.replace("\n", " \n").split(" ") if text else []
                assert len(ids) == sum(max(1, len(part) - 1) if part.isdecimal() else 1 for part in parts)


def test_every_number_is_made_of_tokens_that_training_has_seen():
    """A held-out target has no token of its own that would stay untrained."""
    trained = set()
    for problem in (TASK.problem("train", index) for index in range(100)):
        trained |= set(WORDS.encode(problem.prompt + problem.solution))
    for target in held_out_targets(*TASK.targets):
        assert set(WORDS.encode(f"T {target} : 4")) <= trained


# ------------------------------------------------------------------------------------------------ training data


def rows_of(config: sft.SftConfig, steps: int = 6) -> tuple[list, Counter]:
    seen = Counter()
    at = sft.task_rows(config, WORDS, config.context, seen)
    return [row for step in range(steps) for row in at(step)], seen


def test_searches_beyond_the_context_are_dropped_and_counted_never_cut():
    wide = replace(TINY, task=TASK, context=2048)
    narrow = replace(wide, context=150)
    every, _ = rows_of(wide)
    kept, seen = rows_of(narrow)
    assert [row.tokens for row in kept] == [row.tokens for row in every if len(row.tokens) <= 150]
    assert 0 < len(kept) < len(every) == seen["problems"] == 6 * narrow.rows_per_step
    assert seen["dropped"] == len(every) - len(kept) and seen["rows"] == len(kept)
    for row in kept:  # whole searches, each to its own end
        reading = TASK.read(row.problem, WORDS.decode(row.response[:-1]))
        assert reading.ending and not any(reading.errors.values())


@pytest.mark.parametrize("data", DATA)
def test_the_end_of_a_search_is_in_the_loss_and_the_prompt_is_not(data):
    for row in rows_of(replace(TINY, task=replace(EASY, data=data)), 2)[0]:
        assert row.tokens[-1] == WORDS.eos_id and row.loss_mask[-1]
        assert row.loss_mask == [False] * row.prompt_len + [True] * len(row.response)


def test_the_gradient_reaches_the_end_of_a_search(make_model):
    """Trained on one row alone, the model comes to expect EOS where the search ends."""
    row = demonstration(WORDS, replace(TASK, strategies=("bfs1-sum",)).problem("train", 0))
    model = make_model(0, vocab_size=WORDS.vocab_size, max_position_embeddings=256)
    optimizer = make_optimizer(model)
    batch = collate([row], token_weights([row]), model.device)

    def end() -> float:
        return token_logprobs(model, batch.tokens, batch.loss_mask)[0, -1].item()

    before = end()
    for _ in range(5):
        update(model, optimizer, [row], lr=1e-2)
    assert end() > before + 1


def test_each_kind_of_data_is_what_it_says():
    config = replace(TINY, task=TASK, context=1024)
    rows = {data: rows_of(replace(config, task=replace(TASK, data=data)))[0] for data in DATA}
    readings = {data: [TASK.read(row.problem, WORDS.decode(row.response[:-1])) for row in rows[data]] for data in DATA}
    assert all(reading.solved and reading.nodes == 3 for reading in readings["op"])
    assert all(reading.solved for reading in readings["correct"])
    assert 0.5 < sum(reading.solved for reading in readings["sos"]) / len(rows["sos"]) < 1
    assert max(reading.nodes for reading in readings["sos"]) > 10
    solved = [row.tokens for row, reading in zip(rows["sos"], readings["sos"], strict=True) if reading.solved]
    assert [row.tokens for row in rows["correct"]] == solved
    prompts = {data: [row.problem.prompt for row in rows[data]] for data in DATA}
    assert prompts["op"] == prompts["sos"]


def test_training_data_holds_no_held_out_target_and_no_test_problem():
    task = StreamOfSearch(3, 20, (10, 50))

    def key(problem):
        return (*sorted(problem.info["numbers"]), problem.info["target"])

    tested = {key(p) for split in search_test.SPLITS for p in task.unique_problems(split, 50)}
    tested |= {key(p) for p in task.test_problems(50)}
    practice = [task.problem(split, i) for split in ("train-0", "rl-0") for i in range(300)]
    config = replace(TINY, context=256)
    trained = [row.problem for data in DATA for row in rows_of(replace(config, task=replace(task, data=data)), 30)[0]]
    for problem in trained + practice:
        assert problem.info["target"] not in held_out_targets(*task.targets)
        assert key(problem) not in tested


def test_a_context_too_small_for_any_search_is_a_clear_error():
    with pytest.raises(ValueError, match="no solution of 8 problems fits into the context of 12 tokens"):
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
    problem = TASK.problem("train", 0)
    rows = [demonstration(WORDS, problem, "N") for _ in range(4)]
    rows[3].stop_reason = "length"
    numbers = summary(rows, [SOLVED, WANDERS, ERRS, NOTHING])
    assert (numbers["acc"], numbers["cut"], numbers["tokens"]) == (0.5, 0.25, 2)
    assert (numbers["nodes"], numbers["nodes_solved"]) == ((3 + 4 + 3 + 1) / 4, 3.5)
    assert numbers["errors/arithmetic"] == 0.25 and numbers["errors/formatting"] == 0


def test_unsolved_are_those_whose_drawn_strategy_failed_and_difficult_those_that_all_twelve_fail():
    task = StreamOfSearch(3, 20, (10, 50))
    unsolved, difficult = hard_problems(task, "sft-3", 8)
    assert len(unsolved) == 8 and 0 < len(difficult) <= 8
    drawn = [problem for problem in (task.problem("sft-3", i) for i in range(200)) if not problem.info["solved"]]
    assert unsolved == drawn[:8]
    assert not any(solves(problem, name) for problem in difficult for name in STRATEGIES)
    assert any(solves(problem, name) for problem in unsolved for name in STRATEGIES)  # not everyone fails on those
    unsolved, _ = hard_problems(replace(task, strategies=("bfs1-sum",)), "sft-3", 8)
    assert not any(solves(problem, "bfs1-sum") for problem in unsolved)


def test_the_symbolic_baseline_is_given_the_same_context(make_model, tmp_path):
    """A search that needs more tokens than the policy may write does not count as solved within its context."""
    config = SearchTestConfig(task=StreamOfSearch(3, 20, (10, 50)), problems=6, hard_problems=2,
                              out=str(tmp_path / "run"))  # fmt: skip
    model = make_model(0, vocab_size=WORDS.vocab_size, max_position_embeddings=100)
    numbers = measure(config, model, WORDS, Run(config))
    for split in search_test.SPLITS:
        assert len({p.info["target"] for p in config.task.unique_problems(split, 6)}) > 1
        for name in ("dfs-sum", "bfs3-sum"):
            assert numbers[f"symbolic_within/{name}/{split}"] <= numbers[f"symbolic/{name}/{split}"]
            theirs = symbolic(config.task, split, 6, name)
            assert numbers[f"symbolic/{name}/{split}"] == sum(one.reading.solved for one in theirs) / 6
        assert numbers[f"symbolic_within/dfs-sum/{split}"] < numbers[f"symbolic/dfs-sum/{split}"]
        assert 0 < numbers[f"chance/{split}"] < 0.3
        assert 0 <= numbers[f"states/dfs-sum/{split}"] <= 1


def test_budgets_cut_trajectories_and_count_what_is_spent():
    found = search_test.within_budgets([True, False, True], [30, 100, 100], context=160)
    assert found == pytest.approx({
        "40/acc": 1 / 3, "40/tokens": (30 + 40 + 40) / 3, "80/acc": 1 / 3, "80/tokens": (30 + 80 + 80) / 3,
        "160/acc": 2 / 3, "160/tokens": 230 / 3,
    })  # fmt: skip


def test_the_best_of_n_is_unbiased_and_pays_for_all_n():
    found = search_test.best_of([[True, False, False, False], [False] * 4, [True] * 4], tokens=50.0)
    assert found == pytest.approx({
        "1/acc": (1 / 4 + 0 + 1) / 3, "1/tokens": 50, "2/acc": (1 / 2 + 0 + 1) / 3, "2/tokens": 100,
        "4/acc": 2 / 3, "4/tokens": 200,
    })  # fmt: skip


def test_random_paths_are_right_as_often_as_counting_says():
    task = StreamOfSearch(3, 9, (10, 40))
    problem = task.pose((2, 3, 4), 24, find_solution((2, 3, 4), 24))
    _, chance = count_solutions((2, 3, 4), 24)
    assert search_test.chance(problem) == chance
    found = search_test.random_best_of([problem], [chance], task.tokenizer(), task.language)
    assert 0 < chance < 1 and found["1/acc"] == pytest.approx(chance)
    assert found["2/acc"] == pytest.approx(1 - (1 - chance) ** 2)
    length = len(task.tokenizer().encode(problem.solution)) + 1
    assert found["4/tokens"] == 4 * length


def test_only_searches_can_be_tested_as_searches(tmp_path):
    with pytest.raises(ValueError, match="--task search is the only one"):
        search_test.run(SearchTestConfig(task=Addition(), out=str(tmp_path / "run")))


# -------------------------------------------------------------------------------------------------- improvement


def test_the_apa_loss_pulls_each_log_prob_to_the_references_plus_half_the_advantage(finished):
    rows = finished(2, seed=5)
    for row, advantage in zip(rows, (1.0, -2.0), strict=True):
        row.advantage, row.ref_logprobs = advantage, list(row.logprobs)
    batch = collate(rows, token_weights(rows), torch.device("cpu"))
    logprobs = (batch.ref_logprobs + 0.25).requires_grad_()
    loss = ALGORITHMS["apa"](logprobs, batch)
    # d/dx (x - ref - A/2)^2 = 2 (x - ref - A/2), with x - ref = 1/4
    torch.testing.assert_close(loss[0], torch.full_like(loss[0], (0.25 - 0.5) ** 2))
    torch.testing.assert_close(loss[1], torch.full_like(loss[1], (0.25 + 1.0) ** 2))
    (loss * batch.weights).sum().backward()
    expected = 2 * torch.tensor([[0.25 - 0.5], [0.25 + 1.0]]) * batch.weights
    torch.testing.assert_close(logprobs.grad, expected)
    assert (logprobs.grad[0][batch.loss_mask[0]] < 0).all()  # a good row becomes more likely
    at_goal = batch.ref_logprobs + 0.5 * batch.advantages
    assert (apa_loss(at_goal, batch.ref_logprobs, batch.advantages).abs() < 1e-10).all()


IMPROVE = replace(
    grpo.PRESETS["tiny"], task=EASY, rewards=(Metric(name="rating"),), prompts=4, group_size=2, preflight=0, steps=5,
    max_new_tokens=Schedule(40), eval_problems=0, warmup=0, lr=1e-3,
)  # fmt: skip
METHODS = {"pg": replace(ALGORITHMS["grpo"], average="token"), "apa": replace(ALGORITHMS["apa"], reference_every=2)}


def test_alignment_compares_with_the_log_probs_of_the_reference(make_model, finished):
    model, reference, rows = make_model(3), make_model(7), finished(4, seed=8)
    sampled = [list(row.logprobs) for row in rows]
    config = replace(IMPROVE, algorithm=METHODS["apa"], temperature=0.8)
    grpo.compute_advantages(config, model, reference, [rows])
    for row, values in zip(rows, sampled, strict=True):
        batch = collate([row], token_weights([row]), model.device)
        alone = token_logprobs(reference, batch.tokens, batch.loss_mask, 0.8)
        torch.testing.assert_close(batch.ref_logprobs, alone, atol=1e-5, rtol=0)
        assert row.logprobs == values


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_policy_improvement_raises_the_better_search_and_lowers_the_worse(make_model, finished, method, grouped):
    model, rows = make_model(3), finished(4, seed=8)
    for row, logprobs in zip(rows, compute_logprobs(model, rows, 1.0, 1024), strict=True):
        row.logprobs = logprobs
    for row, reward in zip(rows, (0.9, 0.0, 0.0, 0.3), strict=True):
        row.reward = reward
    groups = [rows] if grouped else [rows[:2], rows[2:]]
    algorithm = replace(METHODS[method], divide_by="group" if grouped else "batch")
    config = replace(IMPROVE, algorithm=algorithm)

    def total() -> list[float]:
        batch = collate(rows, token_weights(rows), model.device)
        return token_logprobs(model, batch.tokens, batch.loss_mask).sum(1).tolist()

    before = total()
    grpo.compute_advantages(config, model, model if method == "apa" else None, groups)
    grpo.update_policy(config, 1, model, SGD(model), groups)
    gain = [after - was for after, was in zip(total(), before, strict=True)]
    assert gain[0] > 0 and gain[0] == max(gain) and gain[1] < gain[0] and gain[2] < gain[0]
    assert sum(row.advantage for row in rows) == pytest.approx(0)


def test_the_rating_is_a_reward_by_name():
    problem = EASY.pose((9, 4, 3), 24, ())
    texts = ["E 9 - 3 = 6 > 4 6 G 0 0 M 0 0 S 4 6 | 9 - 3 = 6 E 4 * 6 = 24 > 24 W", "N"]
    scored = judge(EASY, WORDS, [[demonstration(WORDS, problem, text) for text in texts]])
    assert [Metric(name="rating")(one) for one in scored] == [1 - 3 / 48, 0.0]


# ------------------------------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def searcher(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("sos") / "run"
    sft.run(replace(TINY, out=str(out)))
    return out


@pytest.mark.trains
def test_a_searcher_is_trained_and_tested(searcher, tmp_path):
    lines = read_jsonl(searcher / "metrics.jsonl")
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[-1]["problems"] == 96 == lines[-1]["rows"] + lines[-1]["dropped"]
    assert "acc/3" in lines[-1] and "acc/3" not in lines[2]
    config = replace(search_test.PRESETS["tiny"], base=str(searcher / "policy"), out=str(tmp_path / "test"))
    numbers = search_test.run(config)
    assert read_jsonl(tmp_path / "test" / "metrics.jsonl") == [{"step": 0, **numbers}]
    for split in ("test_inputs", "test_targets", "unsolved"):
        for name in ("acc", "acc_lenient", "nodes", "cut", *(f"errors/{kind}" for kind in ERRORS)):
            assert numbers[f"{name}/{split}"] >= 0


def without_times(path: Path) -> list[dict]:
    timed = ("time/", "tok_per_s")
    return [{k: v for k, v in line.items() if not k.startswith(timed)} for line in read_jsonl(path)]


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


@pytest.mark.trains
def test_a_stopped_and_resumed_searcher_ends_bit_equal(searcher, tmp_path, monkeypatch, assert_same_weights):
    config = replace(TINY, out=str(tmp_path / "run"))
    interrupted(monkeypatch, sft, "evaluate", 1, lambda: sft.run(config))  # at the end, after the checkpoint of step 6
    sft.run(replace(config, resume=True))
    assert_same_run(searcher, tmp_path / "run", assert_same_weights)


@pytest.fixture
def lucky(monkeypatch):
    """About every third trajectory counts as a solution, so that there is something to learn for a tiny searcher."""

    def luck(problem, response) -> int:
        return seed_of(problem.prompt, response) % 9

    def metrics(task, problem, response):
        return {"rating": luck(problem, response) / 9}

    monkeypatch.setattr(StreamOfSearch, "reward", lambda task, *what: float(luck(*what) % 3 == 0))
    monkeypatch.setattr(StreamOfSearch, "metrics", metrics)


@pytest.mark.trains
@pytest.mark.parametrize("method", ["star", *METHODS])
def test_a_stopped_and_resumed_improvement_ends_bit_equal(
    searcher, tmp_path, monkeypatch, assert_same_weights, lucky, method
):
    base = str(searcher / "policy")
    if method == "star":
        recipe, step = star, "one_round"
        config = replace(star.PRESETS["tiny"], base=base, task=EASY, rounds=4, restart=False, prompt_set=0, problems=8,
                         temperature=1.0, first_steps=2, eval_problems=2)  # fmt: skip
    else:
        recipe, step = grpo, "collect"
        config = replace(IMPROVE, base=base, algorithm=METHODS[method], updates_per_rollout=1, save_every=2)
    recipe.run(replace(config, out=str(tmp_path / "whole")))
    config = replace(config, out=str(tmp_path / "run"))
    # killed in the 4th: grpo goes back to the checkpoint of step 2, where apa's reference was replaced
    interrupted(monkeypatch, recipe, step, 4, lambda: recipe.run(config))
    recipe.run(replace(config, resume=True))
    assert_same_run(tmp_path / "whole", tmp_path / "run", assert_same_weights)
    before, _ = load_checkpoint(searcher / "policy")
    after, _ = load_checkpoint(tmp_path / "run" / "policy")
    assert not torch.equal(before.lm_head.weight, after.lm_head.weight)


@pytest.mark.trains
def test_searchers_that_improve_go_on_from_their_last_policy(searcher, tmp_path, monkeypatch, lucky):
    starts = []
    real = star.make_optimizer

    def watched(model):
        starts.append(model.lm_head.weight.detach().clone())
        return real(model)

    monkeypatch.setattr(star, "make_optimizer", watched)
    config = replace(star.PRESETS["tiny"], base=str(searcher / "policy"), task=EASY, rounds=2, restart=False,
                     prompt_set=0, problems=8, temperature=1.0, first_steps=2, eval_problems=2)  # fmt: skip
    star.run(replace(config, out=str(tmp_path / "run")))
    assert len(starts) == 2 and not torch.equal(*starts)


def test_a_round_without_a_solution_is_one_clear_error_and_leaves_no_policy_behind(make_model, tmp_path):
    config = replace(star.PRESETS["tiny"], task=EASY, problems=4, prompt_set=0)
    config = replace(config, out=str(tmp_path / "run"))
    model = make_model(3, vocab_size=WORDS.vocab_size)
    before = model.lm_head.weight.clone()
    with pytest.raises(ValueError, match="round 1: no trace was right"):
        star.one_round(config, 1, model, model, WORDS, Run(config))
    assert torch.equal(before, model.lm_head.weight)


@pytest.mark.parametrize(
    ("recipe", "flags", "message"),
    [
        ("sft", ["--task.data", "dreams"], "--task.data dreams: one of sos, correct, op"),
        ("sft", ["--task.targets", "10"], "--task.targets 10: 2 values are needed"),
        ("sft", ["--task.strategies", "bfs9-sum"], "bfs9-sum not among"),
        ("grpo", ["--algorithm", "luck"], "--algorithm luck: one of grpo"),
        ("grpo", [], "--base is needed"),
        ("star", ["--rationalize"], "has no hints"),
    ],
)
def test_flags_that_cannot_work_are_one_clear_error(tmp_path, capsys, recipe, flags, message):
    out = ["--preset", "tiny", "--out", str(tmp_path / "run"), "--task", "search", *flags]
    assert main([recipe, *out]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().split("\n")) == 1


@pytest.mark.trains
def test_reproduce_writes_the_summary_and_the_figure(tmp_path):
    from nanoreason.experiments import sos as section
    from nanoreason.experiments.reproduce import reproduce

    summary = reproduce("sos", "tiny", 1, tmp_path / "out", device="cpu", workers=1)
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    trained = set(section.ARMS) - {"op_tokens"}  # gpu's alone
    assert set(summary["numbers"]) >= {*trained, "strategies"}
    told = [line for line in summary["claims"] if "/" not in line["name"] and "solved of the" not in line["name"]]
    assert all(line["mean"] is not None for line in told)  # at this size there are too few unsolved problems
    assert 0 < summary["numbers"]["strategies"]["symbolic/test_inputs"]["0"] <= 1
    assert {line["arm"] for line in read_jsonl(tmp_path / "out" / "metrics.jsonl")} >= trained
    pytest.importorskip("matplotlib")
    assert (tmp_path / "out" / "figure.png").stat().st_size > 10_000
