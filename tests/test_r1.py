"""The R1 family: tasks with thinking under GRPO, what is measured of it, distillation, the section's arms."""

import json
from dataclasses import replace

import pytest

from nanoreason import practice
from nanoreason.checkpoint import load_checkpoint
from nanoreason.evaluate import maj_at_k, pass_at_k
from nanoreason.experiments import r1
from nanoreason.experiments.reproduce import reproduce
from nanoreason.recipes import distill, grpo, sft
from nanoreason.rewards import format_reward, with_template
from nanoreason.rollout import demonstration, seed_of
from nanoreason.run import read_jsonl
from nanoreason.search import Countdown, ThinkingCountdown
from nanoreason.search import thinking_tokenizer as countdown_words
from nanoreason.tasks.addition import ThinkingAddition, read_thinking

BASE = replace(sft.PRESETS["tiny"], form="thinking", context=96, steps=60, lr=1e-2, rows_per_step=32, digits=(1,),
               eval_digits=(1,), slip=0.0, modes=(0.4, 0.4, 0.2))  # fmt: skip
RL = replace(grpo.PRESETS["tiny"], task="thinking", template="skeleton", format_weight=0.1, max_new_tokens=48,
             preflight=0, eval_samples=4, eval_problems=6)  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("base")
    sft.run(replace(BASE, out=str(folder)))
    return str(folder / "policy")


# ------------------------------------------------------------------------------------------------ tasks under GRPO


def test_thinking_is_practised_and_measured_before_the_first_step_and_after(base, tmp_path):
    grpo.run(replace(RL, base=base, out=str(tmp_path)))
    lines = read_jsonl(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    assert ["eval/pass@1" in line for line in lines] == [True, False, True, False, True]
    for line in lines[1:]:
        assert line["completions/min_length"] <= line["completions/mean_length"] <= line["completions/max_length"]
        modes = [line[f"mode/{mode}"] for mode in ("direct", "steps", "recheck")]
        assert sum(modes) <= 1.000001
    for line in (lines[0], lines[2], lines[4]):
        assert line["eval/pass@1"] <= line["eval/pass@2"] <= line["eval/pass@4"]
        assert line["eval/pass@1"] == pytest.approx(line["eval/accuracy/1"])
        assert {"acc/1", "eval/maj@4", "eval/format", "eval/mean_length", "eval/mode/steps/1"} <= line.keys()
    by_mode = lines[0]
    parts = [
        (by_mode[f"eval/mode/{m}"], by_mode.get(f"eval/accuracy/{m}", 0.0)) for m in ("direct", "steps", "recheck")
    ]
    assert sum(share * accuracy for share, accuracy in parts) <= by_mode["eval/pass@1"] + 1e-9


def test_held_out_problems_are_sampled_alike_for_every_policy_and_counted_rightly(base):
    config = grpo.with_algorithm(replace(RL, base=base))
    policy, words = load_checkpoint(base)
    first, second = practice.measure_samples(config, policy, words), practice.measure_samples(config, policy, words)
    assert first == second
    rows = grpo.sample(config, policy, words, practice.held_out(config), 4, seed_of("held-out"))
    right = grpo.judge(config, words, rows)["accuracy"]
    groups = [right[i : i + 4] for i in range(0, len(rows), 4)]
    assert first["eval/pass@2"] == pytest.approx(sum(pass_at_k(4, int(sum(g)), 2) for g in groups) / len(groups))
    answers = [read_thinking(grpo.response_text(words, row)).answer for row in rows]
    votes = [answers[i : i + 4] for i in range(0, len(rows), 4)]
    maj = [maj_at_k(v, [bool(r) for r in g], 4) for v, g in zip(votes, groups, strict=True)]
    assert first["eval/maj@4"] == pytest.approx(sum(maj) / len(maj))


def test_all_samples_of_one_problem_right_is_not_some_samples_of_all_problems_right(base, monkeypatch):
    config, real = grpo.with_algorithm(replace(RL, base=base)), grpo.judge
    policy, words = load_checkpoint(base)
    verdicts = [1.0] * 4 + [0.0] * 20  # 6 problems, 4 samples of each
    monkeypatch.setattr(practice, "judge", lambda *arguments: real(*arguments) | {"accuracy": verdicts})
    measured = practice.measure_samples(config, policy, words)
    assert [measured[f"eval/pass@{k}"] for k in (1, 2, 4)] == pytest.approx([1 / 6] * 3)


def test_no_steps_only_measure(base, tmp_path):
    config = replace(RL, base=base, out=str(tmp_path), steps=0)
    line = grpo.run(config)
    assert line["step"] == 0 and "eval/pass@1" in line
    assert grpo.run(replace(config, resume=True)) == line


def test_the_budget_rises_in_the_middle_of_a_run(base, tmp_path):
    config = replace(RL, base=base, out=str(tmp_path), max_new_tokens=4, later_max_new_tokens=30, later_from=3,
                     eval_samples=0)  # fmt: skip
    grpo.run(config)
    longest = [line["completions/max_length"] for line in read_jsonl(tmp_path / "metrics.jsonl")]
    assert longest[:2] == [4, 4] and min(longest[2:]) > 4
    cut = [line["completions/clipped_ratio"] for line in read_jsonl(tmp_path / "metrics.jsonl")]
    assert min(cut[:2]) > max(cut[2:])
    assert grpo.with_cap(replace(config, later_from=0), 100).max_new_tokens == 4


def test_a_task_with_tags_needs_a_template(base):
    for settings in (dict(task="thinking"), dict(task="countdown"), dict(eval_samples=2)):
        with pytest.raises(ValueError, match="--template"):
            grpo.with_algorithm(replace(grpo.PRESETS["tiny"], base=base, **settings))


@pytest.mark.parametrize("form", ["operations", "expression"])
def test_countdown_demonstrations_search_and_answer_what_they_found(form):
    task, words = ThinkingCountdown(Countdown(3, form=form), direct=0.3), countdown_words()
    rewards = {"direct": [], "search": []}
    for i in range(80):
        problem = task.problem("train", i)
        assert format_reward([""], [problem.solution]) == [1.0]
        found = task.reward(problem, problem.solution)
        thinking = problem.solution.partition("</think>")[0].split()
        assert found == float(problem.info["form"] == "direct" or thinking[-1] == "W")  # W: goal reached
        rewards[problem.info["form"]].append(found)
        traits = task.traits(problem.solution)
        assert traits["mode/direct"] == float(problem.info["form"] == "direct") == 1 - traits["mode/search"]
        row = demonstration(words, with_template(problem, "skeleton"))
        assert words.decode(row.response[:-1]) == problem.solution
    assert min(rewards["direct"]) == 1.0 and 0.5 < sum(rewards["search"]) / len(rewards["search"]) < 1.0


def test_countdown_runs_under_the_recipe_and_no_practised_problem_is_tested(tmp_path):
    base = replace(BASE, form="countdown", context=640, steps=6, out=str(tmp_path / "base"), eval_problems=2)
    sft.run(base)
    config = replace(RL, task="countdown", base=str(tmp_path / "base/policy"), out=str(tmp_path / "rl"), steps=1,
                     max_new_tokens=60, eval_every=1, eval_problems=3)  # fmt: skip
    line = grpo.run(config)
    assert {"acc/3", "eval/accuracy/3", "thinking/explored"} <= line.keys()
    tested = {
        (*sorted(p.info["numbers"]), p.info["target"]) for p in practice.held_out(replace(config, eval_problems=50))
    }
    drawn = [practice.posed(config, "rl", i) for i in range(200)]
    assert not tested & {(*sorted(p.info["numbers"]), p.info["target"]) for p in drawn}
    assert len({p.prompt for p in drawn}) > 190


# ---------------------------------------------------------------------------------------------------- distillation

DISTILL = replace(distill.PRESETS["tiny"], problems=30)


def kept_by(base: str, folder, **settings) -> tuple[list[dict], dict]:
    config = replace(DISTILL, teacher=base, base=base, out=str(folder), **settings)
    teacher, words = load_checkpoint(base)
    return distill.keep(config, teacher, words)


def test_what_is_kept_is_right_or_wrong_as_asked_in_the_format_and_in_the_modes(base, tmp_path):
    task = ThinkingAddition((1,))
    problems = {with_template(p, "skeleton").prompt: p for p in (task.problem("distill-0", i) for i in range(30))}
    kept = {how: kept_by(base, tmp_path, keep=how)[0] for how in ("right", "wrong", "all")}
    for how, expected in (("right", {1.0}), ("wrong", {0.0})):
        assert {task.reward(problems[line["prompt"]], line["response"]) for line in kept[how]} == expected
    assert len(kept["right"]) + len(kept["wrong"]) == len(kept["all"]) <= 60
    assert format_reward([""] * len(kept["all"]), [line["response"] for line in kept["all"]]) == [1.0] * len(
        kept["all"]
    )
    steps, metrics = kept_by(base, tmp_path, modes=("steps",), most=3)
    assert len(steps) == metrics["kept"] <= 3 and {read_thinking(line["response"]).mode for line in steps} == {"steps"}
    with pytest.raises(ValueError, match="none of 60 responses is kept"):
        kept_by(base, tmp_path, modes=("search",))


def test_distillation_resumes_bit_equal_and_learns_what_was_kept(base, tmp_path):
    config = replace(DISTILL, teacher=base, base=base, out=str(tmp_path / "whole"), steps=6, log_every=2)
    distill.run(config)
    loss = [line["loss"] for line in read_jsonl(tmp_path / "whole/metrics.jsonl") if "loss" in line]
    assert len(loss) == 3 and loss[-1] < loss[0]
    stopped = replace(config, out=str(tmp_path / "stopped"))
    with pytest.MonkeyPatch.context() as patch:
        real, calls = distill.save_checkpoint, []

        def save(*arguments):
            real(*arguments)
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt

        patch.setattr(distill, "save_checkpoint", save)
        with pytest.raises(KeyboardInterrupt):
            distill.run(stopped)
        patch.setattr(distill, "keep", None)  # the teacher is not asked again
        patch.setattr(distill, "save_checkpoint", real)
        distill.run(replace(stopped, resume=True))
    for name in ("policy/model.safetensors", "metrics.jsonl", "demonstrations.jsonl"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_distillation_refuses_what_cannot_work(base, tmp_path):
    config = replace(DISTILL, teacher=base, base=base, out=str(tmp_path / "run"))
    for settings, message in (
        (dict(teacher=""), "--teacher"),
        (dict(keep="best"), "--keep"),
        (dict(task="x"), "--task"),
    ):
        with pytest.raises(ValueError, match=message):
            distill.run(replace(config, **settings))


# ------------------------------------------------------------------------------------------------------ the section


def test_the_whole_section_runs_at_tiny_size(tmp_path):
    summary = reproduce("r1", "tiny", 1, tmp_path, workers=1)
    assert len(summary["claims"]) == 20
    assert {line["name"] for line in summary["claims"] if line["mean"] is None} <= {
        # too few responses of a kind at this size
        "R1-Zero: accuracy of re-checked - of single passes, at equal difficulty",
        "R1-Zero: rank correlation of accuracy and length over the training",
        "R1-Zero: re-checks after / before",
    }
    assert list(summary["numbers"]["pipeline"]) == list(r1.PIPELINE)
    assert all({} not in stage.values() for stage in summary["numbers"]["pipeline"].values())
    assert (tmp_path / "figure.png").exists()
    jobs = json.loads((tmp_path / "config.json").read_text())["jobs"]
    assert (
        jobs["seed0/cold"]["teacher"] == "seed0/zero/policy" and jobs["seed0/rejection"]["base"] == "seed0/base/policy"
    )
