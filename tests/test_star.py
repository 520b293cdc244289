"""STaR's algorithm box: what is kept, what is rationalized, where each round starts, how long it trains."""

import copy
from dataclasses import replace

import pytest
import torch

from nanoreason.checkpoint import load_checkpoint, save_checkpoint
from nanoreason.model import Transformer, small_config
from nanoreason.recipes import star
from nanoreason.rollout import demonstration, seed_of
from nanoreason.run import Run, read_jsonl
from nanoreason.tasks import Addition, ThinkingAddition

TASK = Addition((2, 3))
CONFIG = replace(
    star.PRESETS["tiny"], task=TASK, problems=24, pool=60, first_steps=3, step_increment=0, rows_per_step=8,
    prompt_set=0,
)  # fmt: skip


def fate(problem) -> str:
    """What becomes of a problem, decided by the sum alone: "solved" at once, "hint" only with one, or "never"."""
    target = problem.prompt.index("Target:")
    return ("solved", "hint", "never")[seed_of("fate", problem.prompt[:target]) % 3]


class Scripted:
    """Stands in for sampling and watches fine-tuning: responses by `fate`, and what each `fit` started from and saw."""

    def __init__(self, patch, junk: str = ""):
        self.attempts: list[tuple[str, list, float]] = []  # name, problems, temperature
        self.fits: list[dict] = []
        self.real_fit = star.fit

        def sample(task, policy, tokenizer, problems, *, temperature, name, **_):
            self.attempts.append((name, problems, temperature))
            rows = []
            for problem in problems:
                has_hint = "Target: " in problem.prompt
                right = fate(problem) == "solved" or (fate(problem) == "hint" and (has_hint or name == "retry"))
                rows.append(demonstration(tokenizer, problem, problem.solution + junk if right else "0"))
            return [[row] for row in rows]

        def fit(model, optimizer, rows_of, *, steps, **options):
            seen = [row for step in range(60) for row in rows_of(step)]  # several epochs
            self.fits.append({"start": copy.deepcopy(model), "rows": seen, "steps": steps, "optimizer": optimizer})
            yield from self.real_fit(model, optimizer, rows_of, steps=steps, **options)

        patch.setattr(star, "sample", sample)
        patch.setattr(star, "fit", fit)


@pytest.fixture
def scripted(monkeypatch) -> Scripted:
    return Scripted(monkeypatch)


@pytest.fixture(scope="module")
def tokenizer():
    return TASK.tokenizer()


@pytest.fixture(scope="module")
def models(tokenizer) -> tuple[Transformer, Transformer]:
    """A base and a policy of its shape with other weights."""
    config = small_config(32, 2, 2, tokenizer.vocab_size, 128)
    return Transformer(config, 1), Transformer(config, 2)


@pytest.fixture
def play(models, tokenizer, tmp_path):
    """play(config, round): one round of STaR; returns the new policy and the metrics."""

    def one_round(config=CONFIG, round=1):
        run = Run(replace(config, out=str(tmp_path / f"run{len(list(tmp_path.iterdir()))}")))
        policy, metrics = star.one_round(config, round, *models, tokenizer, run)
        run.close()
        return policy, metrics

    return one_round


def prompts_of(rows) -> set[str]:
    return {row.problem.prompt for row in rows}


def of_fate(problems, *fates) -> set[str]:
    return {problem.prompt for problem in problems if fate(problem) in fates}


# ------------------------------------------------------------------------------------------------ what is kept


def test_without_rationalization_exactly_the_solved_problems_are_kept(scripted, play):
    _, metrics = play()
    ((name, problems, temperature),) = scripted.attempts
    assert (name, temperature) == ("sample", CONFIG.temperature)
    solved = of_fate(problems, "solved")
    assert prompts_of(scripted.fits[0]["rows"]) == solved
    assert metrics["kept"] == len(solved) / len(problems) and metrics["kept_second"] == 0


def test_only_what_failed_is_rationalized_each_problem_with_its_own_answer_as_the_hint(scripted, play):
    play(replace(CONFIG, rationalize=True))
    (_, problems, _), (name, again, _) = scripted.attempts
    assert name == "hinted"
    assert again == [TASK.hint(problem) for problem in problems if fate(problem) != "solved"]
    assert 10 < len(again) < len(problems)


def test_a_rationalized_trace_is_stored_without_its_hint(scripted, play, tokenizer):
    _, metrics = play(replace(CONFIG, rationalize=True))
    problems, rows = scripted.attempts[0][1], scripted.fits[0]["rows"]
    kept_by_hint = of_fate(problems, "hint")
    assert len(kept_by_hint) > 5
    assert prompts_of(rows) == of_fate(problems, "solved") | kept_by_hint
    for row in rows:
        assert "Target: " not in row.problem.prompt
        assert tokenizer.decode(row.tokens[:-1]) == row.problem.prompt + row.problem.solution
        assert row.loss_mask == [False] * row.prompt_len + [True] * (len(row.tokens) - row.prompt_len)
    assert metrics["kept_second"] == len(kept_by_hint) / len(problems)


def test_every_kept_trace_is_used_equally_often(scripted, play):
    """One row per problem: none is doubled by the second attempt."""
    play(replace(CONFIG, rationalize=True))
    rows = scripted.fits[0]["rows"]
    unique = {id(row): row for row in rows}
    assert len(unique) == len(prompts_of(rows))
    first_epoch = rows[: len(unique)]
    assert {id(row) for row in first_epoch} == unique.keys()


def test_the_temperature_instead_of_hints_poses_what_failed_once_more_as_it_was(scripted, play):
    play(replace(CONFIG, retry_temperature=0.7))
    (_, problems, _), (name, again, temperature) = scripted.attempts
    assert (name, temperature) == ("retry", 0.7)
    assert again == [problem for problem in problems if fate(problem) != "solved"]
    assert prompts_of(scripted.fits[0]["rows"]) == of_fate(problems, "solved", "hint")


def test_a_right_answer_through_wrong_work_is_kept_and_counted_as_such(scripted, play, monkeypatch):
    """The filter looks at the answer alone; how much of the kept data is valid is measured beside it."""
    monkeypatch.setattr(Addition, "work_is_valid", lambda self, problem, text: fate(problem) == "hint")
    _, metrics = play(replace(CONFIG, rationalize=True))
    problems = scripted.attempts[0][1]
    solved, by_hint = of_fate(problems, "solved"), of_fate(problems, "hint")
    assert prompts_of(scripted.fits[0]["rows"]) == solved | by_hint
    assert metrics["valid_share_of_kept"] == len(by_hint) / len(solved | by_hint)


def test_what_the_policy_wrote_behind_its_answer_is_not_kept(monkeypatch, play, tokenizer):
    scripted = Scripted(monkeypatch, junk="\n1 + 1\nInput:")
    play(replace(CONFIG, rationalize=True))
    for row in scripted.fits[0]["rows"]:
        assert tokenizer.decode(row.response[:-1]) == row.problem.solution
        assert row.tokens[-1] == tokenizer.eos_id and row.loss_mask[-1]


def test_a_round_in_which_nothing_was_right_says_what_to_do(scripted, play, monkeypatch):
    monkeypatch.setattr(Addition, "reward", lambda *_: 0.0)
    with pytest.raises(ValueError, match="round 1: no trace was right.*--base"):
        play(replace(CONFIG, rationalize=True))


def test_a_policy_that_goes_on_skips_a_round_in_which_nothing_was_right(scripted, play, models, monkeypatch):
    monkeypatch.setattr(Addition, "reward", lambda *_: 0.0)
    policy, metrics = play(replace(CONFIG, restart=False))
    assert policy is models[1] and metrics["steps"] == metrics["kept"] == 0 and not scripted.fits


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"problems": 61}, "--problems 61 cannot be drawn from a --pool of 60"),
        ({"rationalize": True, "task": ThinkingAddition()}, "ThinkingAddition has no hints"),
    ],
    ids=["pool", "hints"],
)
def test_what_cannot_work_is_refused_before_anything_is_written(wrong, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        star.run(replace(CONFIG, out=str(tmp_path / "run"), **wrong))
    assert not (tmp_path / "run").exists()


def test_the_metrics_of_a_round_give_the_accuracy_of_each_attempt_by_length(scripted, play):
    _, metrics = play(replace(CONFIG, rationalize=True))
    for name, problems, _ in scripted.attempts:
        for n in (2, 3):
            asked = [problem for problem in problems if problem.info["digits"] == n]
            wanted = ("solved", "hint") if name == "hinted" else ("solved",)
            assert metrics[f"{name}/{n}"] == sum(fate(problem) in wanted for problem in asked) / len(asked)


def test_a_few_samples_of_each_length_and_attempt_are_left_to_be_read(scripted, play, tmp_path):
    play(replace(CONFIG, rationalize=True))
    lines = read_jsonl(next(tmp_path.glob("*/samples.jsonl")))
    assert [(line["step"], line["kind"]) for line in lines] == [(1, "sample")] * 6 + [(1, "hinted")] * 6
    for line in lines:
        assert ("Target: " in line["prompt"]) == (line["kind"] == "hinted")
        assert line["right"] in (0.0, 1.0) and line["response"] and line["advantage"] is None
        assert {line["difficulty"] for line in lines if line["kind"] == "sample"} == {2, 3}


# ------------------------------------------------------------------------------------------ where a round starts


def test_each_round_fine_tunes_the_base_and_leaves_it_unchanged_bit_for_bit(
    scripted, play, models, assert_same_weights
):
    base, policy = models
    before = copy.deepcopy(base), copy.deepcopy(policy)
    for round in (1, 2):
        new, _ = play(round=round)
        assert_same_weights(scripted.fits[-1]["start"], base)
        assert not torch.equal(new.lm_head.weight, base.lm_head.weight)
    assert_same_weights(base, before[0])
    assert_same_weights(policy, before[1])


def test_without_restart_each_round_goes_on_from_the_last_policy(scripted, play, models, assert_same_weights):
    play(replace(CONFIG, restart=False))
    assert_same_weights(scripted.fits[0]["start"], models[1])


def test_each_round_has_a_fresh_optimizer(scripted, play):
    play(round=1)
    play(round=2)
    first, second = (fit["optimizer"] for fit in scripted.fits)
    assert first is not second
    assert all(state["step"] == CONFIG.first_steps for state in second.state.values())


def test_no_data_of_an_earlier_round_is_used_again(scripted, play):
    for round in (1, 2):
        play(replace(CONFIG, pool=100_000), round=round)
    (_, first, _), (_, second, _) = scripted.attempts
    assert prompts_of(scripted.fits[1]["rows"]) == of_fate(second, "solved")
    three_digits_of_round_1 = {problem.prompt for problem in first if problem.info["digits"] == 3}
    assert len(three_digits_of_round_1 & prompts_of(scripted.fits[1]["rows"])) <= 2  # drawn again by chance


@pytest.mark.trains
def test_the_base_stays_the_same_through_a_whole_run_and_the_policy_is_the_last_rounds(
    scripted, tmp_path, models, tokenizer, assert_same_weights
):
    base, _ = models
    save_checkpoint(tmp_path / "base", base, tokenizer)
    config = replace(CONFIG, base=str(tmp_path / "base"), out=str(tmp_path / "run"), rounds=3, eval_task=Addition((2,)))
    star.run(config)
    assert_same_weights(load_checkpoint(tmp_path / "base")[0], base)
    for fit in scripted.fits:
        assert_same_weights(fit["start"], base)
    policy, _ = load_checkpoint(tmp_path / "run" / "policy")
    assert not torch.equal(policy.lm_head.weight, base.lm_head.weight)
    assert [line["step"] for line in read_jsonl(tmp_path / "run" / "metrics.jsonl")] == [0, 1, 2, 3]


def test_a_run_of_no_rounds_only_measures_the_base(tmp_path, monkeypatch, models, tokenizer, assert_same_weights):
    monkeypatch.setattr(star, "one_round", None)
    save_checkpoint(tmp_path / "base", models[0], tokenizer)
    config = replace(CONFIG, base=str(tmp_path / "base"), rounds=0, out=str(tmp_path / "run"), eval_task=Addition((2,)))
    metrics = star.run(config)
    assert {"acc/2", "acc_strict/2"} <= metrics.keys() and "acc/3" not in metrics and metrics["round"] == 0
    assert_same_weights(load_checkpoint(tmp_path / "run" / "policy")[0], models[0])


# ----------------------------------------------------------------------------------------------- the schedules

PAPER_WITHOUT_HINTS = [40, 48, 57, 69, 82, 99, 119, 143, 171, 206, 247, 297, 356, 427, 513, 616]


@pytest.mark.parametrize(
    ("schedule", "steps"),
    [
        ({"first_steps": 40, "step_growth": 1.2}, PAPER_WITHOUT_HINTS),
        ({"first_steps": 300, "step_increment": 20}, [300 + 20 * r for r in range(16)]),
        ({"first_steps": 7}, [7] * 16),
    ],
    ids=["geometric", "linear", "constant"],
)
def test_the_step_schedules_are_the_papers(scripted, play, monkeypatch, schedule, steps):
    taken = []
    scripted.real_fit = lambda *args, steps, **_: taken.append(steps) or [(steps, {"loss": 0.0})]
    logged = [play(replace(CONFIG, **schedule), round=round)[1]["steps"] for round in range(1, 17)]
    assert taken == logged == steps


# --------------------------------------------------------------------------------------- problems and examples


def test_a_round_draws_equally_many_sums_of_each_length_without_repeating_an_item_of_the_pool():
    pool = {n: [Addition((n,)).problem(f"train-{k}", i) for i in range(60)] for k, n in enumerate(TASK.digits)}
    config = replace(CONFIG, problems=60)  # all of the pool
    drawn = star.round_problems(config, 1)
    for n in (2, 3):
        assert [p for p in drawn if p.info["digits"] == n] == pool[n]


def test_the_problems_of_a_round_are_a_function_of_seed_and_round():
    assert star.round_problems(CONFIG, 3) == star.round_problems(CONFIG, 3)
    assert star.round_problems(CONFIG, 3) != star.round_problems(CONFIG, 4)
    assert star.round_problems(CONFIG, 3) != star.round_problems(replace(CONFIG, seed=1), 3)


def test_late_lengths_join_in_their_round_and_stay(tokenizer):
    config = replace(CONFIG, prompt_set=2, late_task=Addition((4,)), late_from=2)
    lengths = [{problem.info["digits"] for problem in star.round_problems(config, round)} for round in (1, 2, 3)]
    assert lengths == [{2, 3}, {2, 3, 4}, {2, 3, 4}]
    worked = [
        (row.problem.info["digits"], "Target: " in row.problem.prompt) for row in star.prompt_set(config, tokenizer)
    ]
    assert (4, True) in worked and (4, False) not in worked  # only the hint's use is shown before they join
    never = replace(config, late_from=0)
    assert {problem.info["digits"] for problem in star.round_problems(never, 9)} == {2, 3}


def test_the_worked_examples_are_the_same_each_round_with_and_without_hint_and_their_share_of_an_update(
    scripted, play, tokenizer
):
    config = replace(CONFIG, prompt_set=4, prompt_share=0.25, rationalize=True)
    examples = star.prompt_set(config, tokenizer)
    plain = [row.problem for row in examples if "Target: " not in row.problem.prompt]
    for level in TASK.levels():
        of_level = [row.problem for row in examples if TASK.difficulty(row.problem) == level.digits[0]]
        assert of_level[4:] == [TASK.hint(problem) for problem in of_level[:4]] and len(of_level) == 8
    assert len(plain) == 4 * len(TASK.digits) and len(examples) == 2 * len(plain)
    prompts = prompts_of(examples)
    for round in (1, 2):
        play(config, round=round)
        rows = scripted.fits[-1]["rows"]
        for first in range(0, len(rows), 8):
            sampled = [row for row in rows[first : first + 8] if row.problem.prompt not in prompts]
            assert len(sampled) <= 6
        assert prompts <= prompts_of(rows)
        assert all("Target: " not in p for p in prompts_of(rows) - prompts)  # sampled traces have no hint
