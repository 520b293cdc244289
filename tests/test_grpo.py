"""The GRPO recipe: it learns, resumes bit-equal, measures what it says, and refuses what cannot work."""

import copy
import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nanoreason import environment
from nanoreason.__main__ import main
from nanoreason.checkpoint import load_checkpoint, load_extra, save_checkpoint
from nanoreason.environment import compute_rewards, evaluate, is_flat, judge, rollout_metrics, sample
from nanoreason.evaluate import maj_at_k, pass_at_k
from nanoreason.learn import (
    ALGORITHMS,
    Algorithm,
    compute_logprobs,
    group_advantages,
    kl_estimate,
    make_optimizer,
    token_weights,
    update,
)
from nanoreason.prompts import TEMPLATES, with_template
from nanoreason.recipes import grpo, sft
from nanoreason.recipes.grpo import PRESETS, GrpoConfig
from nanoreason.rewards import Accuracy, Format, Overlong, Scored, Strict
from nanoreason.rollout import Problem, Task, prompt_groups, prompt_row, prompt_rows, response_text, seed_of
from nanoreason.run import Schedule, parse_config, read_jsonl
from nanoreason.sampler import Sampler, may_complete
from nanoreason.tasks import Addition, ThinkingAddition, ThinkingCountdown
from nanoreason.tasks.thinking import read_thinking
from nanoreason.tasks.wrappers import Templated
from nanoreason.tokenizer import char_tokenizer, word_tokenizer

BASE = str(Path(__file__).parent / "data" / "one-digit-sums")  # it answers directly, and 0.42 of its samples are right
THINKER = str(Path(__file__).parent.parent / "data" / "checkpoints" / "thinking-addition")
SUMS = Addition((1,), form="direct")
# Five steps with everything in motion: two updates per rollout, a reference that is replaced, refills.
CONFIG = replace(
    PRESETS["tiny"], base=BASE, task=SUMS, max_new_tokens=Schedule(6), lr=2e-3, updates_per_rollout=2, steps=5,
    algorithm=Algorithm(kl_coef=0.05, reference_every=6, max_refills=2),
)  # fmt: skip


def with_algorithm(config: GrpoConfig, **switches) -> GrpoConfig:
    return replace(config, algorithm=replace(config.algorithm, **switches))


@pytest.fixture
def config(tmp_path) -> GrpoConfig:
    return replace(CONFIG, out=str(tmp_path / "run"))


@pytest.fixture
def policy_and_words():
    return load_checkpoint(BASE)


def flat(groups) -> list:
    return [row for group in groups for row in group]


# ------------------------------------------------------------------------------------------------------ it learns


@pytest.mark.trains
def test_a_tiny_policy_learns_a_trivial_reward_within_a_few_updates(make_model):
    """Reward: the share of 7s in the response."""
    model = make_model(30)
    words = word_tokenizer([f"w{i}" for i in range(1, 24)])
    optimizer, loss = make_optimizer(model), Algorithm(on_policy=True)
    means = []
    for step in range(15):
        groups = prompt_groups(words, [Problem("w1 w2", ""), Problem("w3", "")], group_size=12, seed=step)
        rows = flat(groups)
        Sampler(model, eos_id=None, max_new_tokens=4).finish(rows)
        for row in rows:
            row.reward = row.response.count(7) / 4
        means.append(sum(row.reward for row in rows) / len(rows))
        advantages = group_advantages([[row.reward for row in group] for group in groups])
        for row, advantage in zip(rows, flat(advantages), strict=True):
            row.advantage = advantage
        update(model, optimizer, rows, loss, lr=1e-2, weights=token_weights(rows, "sequence"))
    assert sum(means[:2]) / 2 < 0.3 and sum(means[-3:]) / 3 > 0.8


@pytest.mark.trains
def test_the_recipe_raises_the_accuracy_of_its_base(tmp_path):
    """Of sums of two digits by a base that answers most of them without thinking: from 0.51 to about 0.9."""
    config = replace(PRESETS["tiny"], base=THINKER, task=Templated(ThinkingAddition((2,))), out=str(tmp_path / "run"),
                     max_new_tokens=Schedule(48), steps=20, prompts=8, group_size=16, lr=1e-3, warmup=2,
                     eval_every=0, save_every=100, eval_problems=1)  # fmt: skip
    grpo.run(config)
    lines = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert 0.4 < lines[0]["preflight/accuracy"] < 0.6
    assert statistics.fmean(line["accuracy"] for line in lines[-5:]) > lines[0]["preflight/accuracy"] + 0.2


@pytest.mark.parametrize("name", ALGORITHMS)
def test_one_step_of_every_algorithm_makes_right_responses_likelier_against_wrong_ones(config, name, policy_and_words):
    policy, words = policy_and_words
    settings = replace(config, algorithm=ALGORITHMS[name], updates_per_rollout=1, lr=1e-3, group_size=8)
    groups = finished_groups(settings, policy, words, count=8)
    reference = copy.deepcopy(policy) if settings.algorithm.needs_reference else None
    grpo.compute_advantages(settings, policy, reference, groups)
    rows = flat(groups)
    some = [row for row in rows if row.advantage]
    assert {row.reward for row in some} >= ({1.0} if name == "reinforce" else {0.0, 1.0})
    before = [sum(values) for values in compute_logprobs(policy, rows, 1.0, 2048)]
    metrics = grpo.update_policy(settings, 1, policy, make_optimizer(policy), groups)
    after = [sum(values) for values in compute_logprobs(policy, rows, 1.0, 2048)]
    gained = [a - b for a, b in zip(after, before, strict=True)]
    right = [g for g, row in zip(gained, rows, strict=True) if row.reward == 1]
    wrong = [g for g, row in zip(gained, rows, strict=True) if row.reward < 1]
    assert sum(right) / len(right) > sum(wrong) / len(wrong)
    assert metrics["updates"] == 1 and metrics["update_ratio"] > 0


# ------------------------------------------------------------------------------------------------------- settings


def test_explicit_switches_stay_and_the_rest_is_the_algorithms():
    flags = ["--base", BASE, "--algorithm", "dapo", "--algorithm.clip-high", "0.5", "--algorithm.max-refills", "0"]
    for order in (flags, flags[4:] + flags[:4]):
        chosen = parse_config(PRESETS, order, "grpo").algorithm
        assert chosen == replace(ALGORITHMS["dapo"], clip_high=0.5, max_refills=0)
        assert (chosen.average, chosen.clip_low, chosen.kl_coef) == ("token", 0.2, 0.0)
    default = parse_config(PRESETS, ["--base", BASE], "grpo").algorithm
    assert default == ALGORITHMS["grpo"] == Algorithm()
    assert (default.average, default.divide_by, default.ratio) == ("sequence", "group", "token")


def test_the_switches_of_each_algorithm_are_those_of_its_paper():
    expected = {
        "grpo": {},
        "dr_grpo": dict(average="constant", divide_by="none"),
        "dapo": dict(average="token", clip_high=0.28, max_refills=4),
        "gspo": dict(ratio="sequence", clip_low=3e-4, clip_high=4e-4),
        "cispo": dict(average="token", ratio="detached", clip_high=4.0),
        "reinforce": dict(average="constant", divide_by="none", baseline="none", ratio="detached", clip_high=math.inf),
        "apa": dict(average="token", ratio="apa", reference_every=20),
    }
    assert {name: Algorithm(name, **switches) for name, switches in expected.items()} == ALGORITHMS


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_help_shows_what_every_algorithm_sets(name, capsys):
    with pytest.raises(SystemExit):
        main(["grpo", "--algorithm", name, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert all(other in shown.split("--algorithm " + name)[1][:200] for other in ALGORITHMS)
    for switch in ("average", "divide_by", "ratio", "clip_high", "kl_coef", "max_refills"):
        value = getattr(ALGORITHMS[name], switch)
        value = f"{value:g}" if isinstance(value, float) else value
        assert f"--algorithm.{switch.replace('_', '-')} {value} " in shown


MISTAKES = {
    "no base": (["--base", ""], "--base is needed"),
    "no algorithm": (["--algorithm", "ppo"], "--algorithm ppo: one of grpo, dr_grpo, dapo"),
    "no average": (["--algorithm.average", "mean"], "--algorithm.average mean: one of sequence, token, constant"),
    "no ratio": (["--algorithm.ratio", "row"], "--algorithm.ratio row: one of"),
    "no estimator": (["--algorithm.kl_estimator", "k4"], "--algorithm.kl_estimator k4: one of k1, k2, k3"),
    "groups of one": (["--group-size", "1"], "--group-size 1 compares nothing"),
    "greedy": (["--temperature", "0.0"], "--temperature 0.0"),
    "no reward": (["--rewards", "accuracy:0"], "nothing to learn"),
    "no rewards": (["--rewards", ""], "nothing to learn"),
    "no schedule": (["--max-new-tokens", "50,0"], "--max-new-tokens"),
    "falling steps": (["--max-new-tokens", "50,9:60,4:70"], "--max-new-tokens"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_settings_that_cannot_work_are_refused_before_anything_is_written(tmp_path, mistake, capsys):
    flags, message = MISTAKES[mistake]
    command = ["grpo", "--preset", "tiny", "--base", BASE, "--out", str(tmp_path / "run"), *flags]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("reward", "advice"), [(0.0, "train the base longer"), (1.0, "ask for harder problems")])
def test_the_preflight_stops_where_all_groups_would_be_flat(config, tmp_path, monkeypatch, reward, advice):
    monkeypatch.setattr(Addition, "reward", lambda self, problem, response: reward)
    with pytest.raises(ValueError, match=advice) as stopped:
        grpo.run(config)
    assert f"pass@4 {reward:.3f}" in str(stopped.value)
    assert not (tmp_path / "run").exists()  # so that the next attempt needs no --resume


def test_no_steps_only_measure(config, tmp_path):
    """Greedy, and sampled where it is asked for; the base stays where it is."""
    for name, settings in (("samples", dict(eval_samples=4)), ("greedy", dict(preflight=0))):
        config = replace(CONFIG, steps=0, out=str(tmp_path / name), **settings)
        line = grpo.run(config)
        assert line["step"] == 0 and "acc/1" in line
        assert ("eval/pass@1" in line) == (name == "samples") and ("preflight/accuracy" in line) == (name == "samples")
        assert grpo.run(replace(config, resume=True)) == line
        assert not (tmp_path / name / "policy").exists()


# -------------------------------------------------------------------------------------------------------- rollouts


def test_dynamic_sampling_replaces_flat_groups_by_new_problems_and_gives_up_in_time(config, policy_and_words):
    policy, words = policy_and_words
    config = replace(config, prompts=6, group_size=3)
    indices = []
    with pytest.MonkeyPatch.context() as patch:
        real = Addition.problem
        patch.setattr(Addition, "problem", lambda self, s, i: indices.append((s, i)) or real(self, s, i))
        seen_flat = False
        for step in range(1, 5):
            groups, metrics = grpo.collect(config, step, policy, words)
            assert all(len(group) == 3 and len({row.problem.prompt for row in group}) == 1 for group in groups)
            assert not any(is_flat(group) for group in groups)
            assert len(groups) <= 6 <= metrics["groups"] <= 6 * 3
            assert len(groups) == 6 or metrics["groups"] > 6
            assert metrics["frac_learnt_zero_std"] == 0
            seen_flat |= metrics["frac_reward_zero_std"] > 0
        assert seen_flat and len(set(indices)) == len(indices)  # no problem twice
    groups, metrics = grpo.collect(with_algorithm(config, max_refills=0), 1, policy, words)
    assert len(groups) == 6 and metrics["groups"] == 6


def test_dapo_asks_as_many_new_problems_as_groups_were_flat_until_its_refills_are_used_up(
    config, policy_and_words, monkeypatch
):
    """Of each four problems three are always right: of 8 groups 2 teach, then of 6 more 2, then of 4 more 1, ..."""
    policy, words = policy_and_words
    config = replace(config, algorithm=ALGORITHMS["dapo"], prompts=8, group_size=4)
    asked: list[int] = []

    def respond(task, policy, tokenizer, problems, *, group_size, **how):
        asked.append(len(problems))
        groups = [[prompt_row(tokenizer, problem) for _ in range(group_size)] for problem in problems]
        for i, group in enumerate(groups):
            for j, row in enumerate(group):
                for token in tokenizer.encode("0" if i % 4 == 0 and j else group[0].problem.answer):
                    row.sampled(token, -1.0)
        return groups

    monkeypatch.setattr(grpo, "sample", respond)
    groups, metrics = grpo.collect(config, 1, policy, words)
    assert asked == [8, 6, 4, 3, 2] and len(groups) == 2 + 2 + 1 + 1 + 1
    assert metrics["groups"] == sum(asked) == len(set(map(id, groups))) + round(metrics["frac_reward_zero_std"] * 23)


def test_without_any_group_left_the_step_is_skipped(config, policy_and_words, assert_same_weights):
    policy, words = policy_and_words
    before = copy.deepcopy(policy)
    metrics = grpo.update_policy(config, 1, policy, make_optimizer(policy), [])
    assert metrics["updates"] == 0 and metrics["update_ratio"] == 0
    assert_same_weights(policy, before)


def finished_groups(config, policy, words, count=4):
    """Groups with their rewards, of problems that do not depend on the step."""
    problems = [config.task.problem("x", i) for i in range(count)]
    cap = config.max_new_tokens.at(1)
    groups = sample(config.task, policy, words, problems, group_size=config.group_size, seed=3, max_new_tokens=cap)
    compute_rewards(judge(config.task, words, groups, cap), config.rewards)
    return groups


@pytest.fixture
def updates(monkeypatch):
    """The calls of `update` that a step makes: [(rows, loss, options), ...]."""
    calls = []
    real = grpo.update

    def watched(policy, optimizer, rows, loss, **options):
        calls.append((rows, loss, options))
        return real(policy, optimizer, rows, loss, **options)

    monkeypatch.setattr(grpo, "update", watched)
    return calls


def test_every_epoch_deals_all_rows_out_once_in_a_new_order(config, policy_and_words, updates):
    policy, words = policy_and_words
    config = replace(config, updates_per_rollout=3, epochs=2)
    groups = finished_groups(config, policy, words)
    grpo.compute_advantages(config, policy, copy.deepcopy(policy), groups)
    metrics = grpo.update_policy(config, 2, policy, make_optimizer(policy), groups)
    assert metrics["updates"] == 6 and [len(call[0]) for call in updates] == [6, 5, 5] * 2
    epochs = [[id(row) for call in updates[i : i + 3] for row in call[0]] for i in (0, 3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(map(id, flat(groups))) and epochs[0] != epochs[1]
    assert not updates[0][1].on_policy
    for minibatch, _, options in updates:  # the average is that of the minibatch
        assert options["weights"] == token_weights(minibatch, "sequence")


def test_the_old_policy_is_scored_before_the_first_of_several_updates_and_is_the_sampler(config, policy_and_words):
    policy, words = policy_and_words
    groups = finished_groups(config, policy, words)
    grpo.compute_advantages(config, policy, copy.deepcopy(policy), groups)
    for row in flat(groups):
        assert row.old_logprobs == pytest.approx(row.logprobs, abs=1e-4)
        assert row.ref_logprobs == row.old_logprobs  # the reference is the policy here
    metrics = grpo.update_policy(replace(config, warmup=0), 1, policy, make_optimizer(policy), groups)
    assert metrics["logp_diff/max"] < 1e-4
    moved = compute_logprobs(policy, flat(groups), 1.0, 2048)
    difference = max(abs(a - b) for row, now in zip(flat(groups), moved, strict=True)
                     for a, b in zip(row.old_logprobs, now, strict=True))  # fmt: skip
    assert difference > 1e-3  # the updates moved the policy, and the old one stayed what it was
    single = replace(config, updates_per_rollout=1)
    groups = finished_groups(single, policy, words)
    grpo.compute_advantages(single, policy, None, groups)
    assert all(row.old_logprobs is None for row in flat(groups))


def test_what_the_clip_region_says_of_ratios_that_were_made_by_hand(config, policy_and_words):
    """Half of the right responses have become 1.65 times as likely in each token, half of the wrong ones 0.6 times."""
    policy, words = policy_and_words
    config = with_algorithm(replace(config, updates_per_rollout=2, lr=0.0, group_size=8), kl_coef=0.0)
    groups = finished_groups(config, policy, words, count=8)
    grpo.compute_advantages(config, policy, None, groups)
    learnt = [row for row in flat(groups) if row.advantage]
    right, wrong = ([row for row in learnt if (row.advantage > 0) == good] for good in (True, False))
    clipped = {"high": right[::2], "low": wrong[::2]}
    assert min(map(len, clipped.values())) > 3
    for rows, shift in ((right[::2], -0.5), (wrong[::2], 0.5), (right[1::2], 0.5), (wrong[1::2], -0.5)):
        for row in rows:  # the others moved the wrong way: no clip there
            row.old_logprobs = [value + shift * drawn
                                for value, drawn in zip(row.old_logprobs, row.loss_mask, strict=True)]  # fmt: skip
    metrics = grpo.update_policy(config, 1, policy, make_optimizer(policy), groups)
    tokens = sum(sum(row.loss_mask) for row in flat(groups))
    for side, rows in clipped.items():
        assert metrics[f"clip_ratio/{side}_mean"] == pytest.approx(sum(sum(r.loss_mask) for r in rows) / tokens)
    assert metrics["clip_ratio/region_mean"] == pytest.approx(
        metrics["clip_ratio/low_mean"] + metrics["clip_ratio/high_mean"]
    )


def test_cut_rows_are_filtered_after_the_groups_baseline_was_taken(config, policy_and_words, updates):
    policy, words = policy_and_words
    config = with_algorithm(replace(config, updates_per_rollout=1), overlong_filter=True, kl_coef=0.0)
    groups = finished_groups(config, policy, words)
    rows = flat(groups)
    for row in rows[::3]:
        row.stop_reason = "length"
    expected = flat(group_advantages([[row.reward for row in group] for group in groups]))
    grpo.compute_advantages(config, policy, None, groups)
    assert [row.advantage for row in rows] == expected
    grpo.update_policy(config, 1, policy, make_optimizer(policy), groups)
    ((minibatch, _, options),) = updates
    assert sorted(map(id, minibatch)) == sorted(id(row) for row in rows if row.stop_reason != "length")
    kept = len(minibatch) / len(rows)
    assert math.fsum(w for row in options["weights"] for w in row) == pytest.approx(kept)  # all rows in the average


@pytest.mark.parametrize("average", ["sequence", "constant", "token"])
def test_the_overlong_filter_does_not_rescale_the_gradient_of_the_rows_that_stay(config, policy_and_words, average):
    """Equal to TRL's masked loss: per-token losses are zeroed in cut rows, and the average is as before.

    loss_type grpo: the mean over all rows of each row's mean; dr_grpo: the sum over rows * max_completion_length;
    bnpo: the mean over the tokens that are left.
    """
    policy, words = policy_and_words
    config = with_algorithm(replace(config, updates_per_rollout=1, lr=0.0, group_size=8), overlong_filter=True,
                            average=average, kl_coef=0.0)  # fmt: skip
    groups = finished_groups(config, policy, words)
    rows = flat(groups)
    for row in rows[1::3]:
        row.stop_reason = "length"
    grpo.compute_advantages(config, policy, None, groups)
    grads: dict[str, list] = {}

    def keep(model, optimizer, *arguments, max_grad_norm, **options):
        optimizer.step = lambda lr: grads.setdefault("ours", [p.grad.clone() for p in model.parameters()])
        return update(model, optimizer, *arguments, max_grad_norm=math.inf, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grpo, "update", keep)
        grpo.update_policy(config, 1, policy, make_optimizer(policy), groups)

    policy.zero_grad()
    per_row = []  # TRL's loss, row by row
    for row in rows:
        tokens = torch.tensor([row.tokens])
        logprobs = policy(tokens)[0].log_softmax(-1)[torch.arange(len(row.tokens) - 1), tokens[0, 1:]]
        mask = torch.tensor(row.loss_mask[1:]).float() * (row.stop_reason != "length")
        per_row.append((-(logprobs - logprobs.detach()).exp() * row.advantage * mask, mask))
    if average == "sequence":
        loss = torch.stack([loss.sum() / mask.sum().clamp(min=1) for loss, mask in per_row]).mean()
    elif average == "constant":
        loss = sum(loss.sum() for loss, _ in per_row) / (len(rows) * config.max_new_tokens.at(1))
    else:
        loss = sum(loss.sum() for loss, _ in per_row) / sum(mask.sum() for _, mask in per_row)
    loss.backward()
    for ours, parameter in zip(grads["ours"], policy.parameters(), strict=True):
        assert torch.allclose(ours, parameter.grad, atol=1e-6), (ours - parameter.grad).abs().max()
    assert max(grad.abs().max() for grad in grads["ours"]) > 1e-3


def test_dr_grpos_constant_does_not_change_with_the_budgets_schedule(config, policy_and_words, updates):
    """A token counts as much after the budget was raised as before: 1 / (rows * the largest budget of the run)."""
    policy, words = policy_and_words
    config = replace(config, algorithm=ALGORITHMS["dr_grpo"], updates_per_rollout=1,
                     max_new_tokens=Schedule(4, ((3, 16), (4, 8))))  # fmt: skip
    groups = finished_groups(config, policy, words)
    grpo.compute_advantages(config, policy, None, groups)
    optimizer = make_optimizer(policy)
    for step in (1, 2, 3, 4):
        grpo.update_policy(config, step, policy, optimizer, groups)
    rows = len(flat(groups))
    for _, _, options in updates:
        assert {w for row in options["weights"] for w in row} == {0.0, 1 / (rows * 16)}
    grpo.update_policy(with_algorithm(config, length_constant=50), 3, policy, optimizer, groups)
    assert {w for row in updates[-1][2]["weights"] for w in row} == {0.0, 1 / (rows * 50)}


def test_k1_is_taken_out_of_the_reward_and_not_put_into_the_loss(config, policy_and_words, make_model, updates):
    policy, words = policy_and_words
    config = with_algorithm(replace(config, updates_per_rollout=1), kl_estimator="k1", kl_coef=0.5, baseline="none")
    groups = finished_groups(config, policy, words)
    rows = flat(groups)
    before = [row.reward for row in rows]
    reference = make_model(5, vocab_size=words.vocab_size)
    grpo.compute_advantages(config, policy, reference, groups)
    for row, reward in zip(rows, before, strict=True):
        k1 = sum(p - q for p, q, counted in zip(row.logprobs, row.ref_logprobs, row.loss_mask, strict=True) if counted)
        assert row.advantage == row.reward == pytest.approx(reward - 0.5 * k1)
    metrics = grpo.update_policy(config, 1, policy, make_optimizer(policy), groups)
    assert metrics["loss"] == pytest.approx(-statistics.fmean(row.advantage for row in rows), rel=1e-4)  # no KL in it
    assert metrics["kl"] > 0


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_k2_and_k3_are_put_into_the_loss_and_not_taken_out_of_the_reward(
    config, policy_and_words, make_model, estimator
):
    policy, words = policy_and_words
    config = with_algorithm(replace(config, updates_per_rollout=1), kl_estimator=estimator, kl_coef=0.5)
    groups = finished_groups(config, policy, words)
    rows = flat(groups)
    before = [row.reward for row in rows]
    grpo.compute_advantages(config, policy, make_model(5, vocab_size=words.vocab_size), groups)
    assert [row.reward for row in rows] == before
    per_row = []
    for row in rows:
        drawn = torch.tensor(row.loss_mask)
        values = kl_estimate(torch.tensor(row.logprobs), torch.tensor(row.ref_logprobs), estimator)
        per_row.append((values * drawn).sum() / drawn.sum())
    metrics = grpo.update_policy(config, 1, policy, make_optimizer(policy), groups)
    # the rest of the loss is -A, whose mean over the rows of a group is 0
    assert metrics["loss"] == pytest.approx(0.5 * float(torch.stack(per_row).mean()), rel=1e-3)


def test_the_reference_becomes_the_policy_every_k_updates(config):
    def replaced(switches, **fields):
        settings = with_algorithm(replace(config, **fields), **switches)
        return [step for step in range(10) if grpo.replaces_reference(settings, step)]

    assert replaced(dict(reference_every=4), updates_per_rollout=1) == [0, 4, 8]
    assert replaced(dict(reference_every=6), updates_per_rollout=2) == [0, 3, 6, 9]
    assert replaced(dict(reference_every=6), updates_per_rollout=2, epochs=2) == [0, 2, 3, 5, 6, 8, 9]
    assert replaced(dict(reference_every=0)) == [0]
    assert replaced(dict(kl_coef=0.0)) == []
    assert replaced(dict(kl_coef=0.0, ratio="apa", reference_every=6), updates_per_rollout=1) == [0, 6]


# --------------------------------------------------------------------------------------------- metrics and resume

METRICS = [
    "reward", "reward_std", "rewards/accuracy/mean", "accuracy", "frac_reward_zero_std", "completions/mean_length",
    "completions/min_length", "completions/mean_length_correct", "completions/mean_length_wrong",
    "completions/clipped_ratio", "completions/repetition", "frac_learnt_zero_std", "entropy", "kl",
    "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean", "loss", "grad_norm", "learning_rate",
    "logp_diff/max", "update_ratio", "tok_per_s", "num_tokens", "time/rollout", "time/score", "time/update",
]  # fmt: skip


def left_by(folder) -> dict:
    """All that a run leaves: bytes of every checkpoint file, and log lines without their times."""
    left = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob("*/*"))}
    for name in ("metrics.jsonl", "samples.jsonl"):
        lines = read_jsonl(folder / name)
        left[name] = [{k: v for k, v in line.items() if not k.startswith(("time/", "tok_per_s"))} for line in lines]
    return left


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict:
    """One uninterrupted run of the configuration that the stopped ones have."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    grpo.run(replace(CONFIG, out=str(folder)))
    return left_by(folder) | {"raw": read_jsonl(folder / "metrics.jsonl")}


@pytest.mark.trains
def test_every_metric_is_there_at_every_step_and_they_agree_with_each_other(whole):
    lines = whole["raw"]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4, 5]
    assert "preflight/pass@4" in lines[0]
    for line in lines[1:]:
        assert not [name for name in METRICS if name not in line]
        assert all(math.isfinite(value) for value in line.values())
        assert line["reward"] == pytest.approx(line["rewards/accuracy/mean"]) == pytest.approx(line["accuracy"])
        assert line["logp_diff/max"] < 1e-4 and min(line["kl"], line["entropy"], line["update_ratio"]) > 0
        share, right, wrong = (line[f"completions/mean_length{end}"] for end in ("", "_correct", "_wrong"))
        assert share == pytest.approx(line["accuracy"] * right + (1 - line["accuracy"]) * wrong)
    assert [line["num_tokens"] for line in lines[1:]] == sorted(line["num_tokens"] for line in lines[1:])
    assert ["acc/1" in line for line in lines] == [False, False, True, False, True, True]
    samples = [line for line in whole["samples.jsonl"] if line["kind"] == "rollout"]
    assert {line["step"] for line in whole["samples.jsonl"] if line["kind"] == "greedy test"} == {2, 4, 5}
    for step in range(1, 6):  # three whole groups of each step
        groups = {}
        for line in samples:
            if line["step"] == step:
                groups.setdefault(line["group"], []).append(line)
        assert [len(group) for group in groups.values()] == [4, 4, 4]
        for group in groups.values():
            assert len({line["prompt"] for line in group}) == 1
            assert sum(line["advantage"] for line in group) == pytest.approx(0, abs=1e-5)
            assert all(line["reward"] == line["rewards"]["accuracy"] == line["right"] for line in group)
            mixed = len({line["right"] for line in group}) == 2
            assert all((line["advantage"] > 0) == (mixed and line["right"] == 1) for line in group)


@pytest.mark.trains
@pytest.mark.parametrize(
    ("name", "count", "after"),
    [
        ("update", 2, True),  # in the first step: no checkpoint yet
        ("save_checkpoint", 2, False),  # the reference is due, its policy was saved
        ("save_checkpoint", 2, True),  # the reference was replaced, no step was done with it
        ("update", 8, False),  # in the first step with the new reference
        ("update", 10, False),  # in the last step, behind a checkpoint and a replacement
        ("test", 3, True),  # all done but the last checkpoint
    ],
)
def test_a_stopped_and_resumed_run_ends_bit_equal_to_one_that_never_stopped(
    stop_at, whole, config, tmp_path, name, count, after
):
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, grpo, name, count, after)
        with pytest.raises(KeyboardInterrupt):
            grpo.run(config)
    grpo.run(replace(config, resume=True))
    left = left_by(tmp_path / "run")
    assert left.keys() == whole.keys() - {"raw"} and "reference/model.safetensors" in left
    for file, content in left.items():
        equal = content == whole[file]  # not in the assert: a diff of binary files takes minutes
        assert equal, f"{file} differs"


@pytest.mark.trains
def test_resuming_a_finished_run_changes_nothing(whole, config, tmp_path, monkeypatch):
    grpo.run(config)
    monkeypatch.setattr(grpo, "update", None)
    last = grpo.run(replace(config, resume=True))
    assert last["step"] == 5 and left_by(tmp_path / "run")["metrics.jsonl"] == whole["metrics.jsonl"]
    assert load_extra(tmp_path / "run" / "policy")["task.form"] == "direct"  # the checkpoint says what it is for


def test_a_run_does_not_go_on_with_other_settings(config, tmp_path, capsys):
    grpo.run(replace(config, steps=1))
    for other in (dict(lr=1e-3), dict(task=Addition((1, 2), form="direct")), dict(rewards=(Accuracy(), Format(0.1)))):
        with pytest.raises(ValueError, match="cannot resume .* it ran with"):
            grpo.run(replace(config, steps=2, resume=True, **other))
    with pytest.raises(ValueError, match=r"algorithm\.kl_coef=0.05, not 0.1"):
        grpo.run(with_algorithm(replace(config, steps=2, resume=True), kl_coef=0.1))
    with pytest.raises(FileExistsError, match="already holds a run: add --resume"):
        grpo.run(config)


# ------------------------------------------------------------------------------------------ rewards, the template

RIGHT = "<think> 2 + 2 is 4 </think> <answer> 4 </answer>"
FORMS = {
    RIGHT: 1.0,
    f"\n{RIGHT}\n": 1.0,
    "<think></think><answer></answer>": 1.0,
    "<think> a\nb </think>\n<answer> 4 </answer>": 1.0,
    RIGHT + " 5": 0.0,
    "so " + RIGHT: 0.0,
    "<think> 4 </think> and <answer> 4 </answer>": 0.0,
    "<answer> 4 </answer> <think> 4 </think>": 0.0,
    "</think> <think> <answer> 4 </answer>": 0.0,
    "<think> <think> 4 </think> <answer> 4 </answer>": 0.0,
    RIGHT + RIGHT: 0.0,
    "<think> 4 </think> <answer> 4": 0.0,
    "4": 0.0,
    "": 0.0,
}


def scored(task: Task, problem: Problem, text: str) -> Scored:
    return Scored(prompt_row(word_tokenizer(["x"]), Problem("x", "")), text, task.reward(problem, text), 10)


@pytest.mark.parametrize("text", FORMS)
def test_the_format_is_each_tag_once_in_order_with_nothing_around(text):
    assert Format()(scored(SUMS, Problem("", "4"), text)) == FORMS[text]


@pytest.mark.parametrize("text, value", [
    ("<think> 2 + 2 </think> <answer> 4 </answer>", 1.0), ("<think> 2 + 2 </think> <answer> 5 </answer>", 0.0),
    ("4", -1.0), ("<answer> 4 </answer>", -1.0), ("5", -1.0), ("", -1.0),
])  # fmt: skip
def test_a_strict_reward_takes_one_for_what_is_not_in_the_format_right_or_not(text, value):
    assert Strict()(scored(Templated(SUMS), Problem("", "4"), text)) == value


def test_with_tags_only_what_the_one_answer_holds_is_shown_to_the_verifier():
    task = Templated(Addition((1,)))
    problem = task.problem("train", 0)
    good = problem.answer
    for text, reward in {
        f"<answer> {good} </answer>": 1.0,
        good: 0.0,
        f"<answer> {good} </answer> <answer> {good} </answer>": 0.0,
        f"<answer> {good} or 3 </answer>": 0.0,
        f"{good} <answer> </answer>": 0.0,
        "": 0.0,
    }.items():
        assert task.reward(problem, text) == Accuracy()(scored(task, problem, text)) == reward, text


class Tagged(Addition):
    """One-digit sums in the words that a template has."""

    def tokenizer(self):
        return tagged_words()


def test_the_reward_is_the_weighted_sum_of_its_parts_each_of_them_measured():
    words, task = tagged_words(), Templated(Tagged((1,)))
    problem = with_template(Problem("1 + 2", "3", info={"digits": 1}), "skeleton")
    group = prompt_rows(words, [problem] * 4)
    for row, text in zip(group, ("<think> 1 </think> <answer> 3 </answer>", "<think> 1 </think> <answer> 4 </answer>",
                                 "<answer> 3 </answer>", "1 1 1 1 1 1 1 1 1 1 1 1"), strict=True):  # fmt: skip
        for token in words.encode(text):
            row.sampled(token, -1.0)
    judged = judge(task, words, [group], 12)
    parts = compute_rewards(judged, (Accuracy(), Format(0.1), Overlong(share=0.5)))
    assert parts["accuracy"] == [1.0, 0.0, 1.0, 0.0] and parts["format"] == [1.0, 1.0, 0.0, 0.0]
    assert parts["overlong"] == [0.0, 0.0, 0.0, -1.0]
    assert [row.reward for row in group] == pytest.approx([1.1, 0.1, 1.0, -1.0])
    metrics = rollout_metrics([group], judged, parts)
    assert metrics["rewards/format/mean"] == metrics["rewards/accuracy/mean"] == metrics["accuracy"] == 0.5


def tagged_words():
    tags = ["<think>", "</think>", "<answer>", "</answer>"]
    return word_tokenizer(["User:", "Assistant:", *tags, "+", *"0123456789"])


def test_under_a_template_rows_end_with_the_answer_that_closes(make_model):
    words, task = tagged_words(), Templated(Tagged((1,)))
    model = make_model(31, vocab_size=words.vocab_size)
    problems = [with_template(Problem(f"{a} + {b}", ""), "skeleton") for a in range(4) for b in range(3)]
    rows = flat(sample(task, model, words, problems, group_size=4, max_new_tokens=20))
    end = words.id_of("</answer>")
    assert task.stop == ("</answer>",) and may_complete(words, "</answer>") == (end,)
    for row in rows:
        assert words.decode(row.tokens).startswith("User: ") and "Assistant:" in row.problem.prompt
        assert end not in row.response[:-1]
        assert (row.stop_reason == "stop") == (row.response[-1] == end)
        assert row.loss_mask == [False] * row.prompt_len + [True] * len(row.response)
    assert {row.stop_reason for row in rows} >= {"stop"}


def test_where_the_tag_is_several_tokens_rows_go_on_until_the_text_holds_it(make_model):
    """Each ">" may complete the tag; one that completes nothing ends nothing, and no random number is lost by it."""
    words = char_tokenizer("</answer>b")
    text = "</answer>"
    assert may_complete(words, text) == (words.id_of(">"),)
    model = make_model(32, vocab_size=words.vocab_size)
    problem = Problem("ab", "")
    rows = flat(sample(Templated(SUMS), model, words, [problem], group_size=40, seed=5, max_new_tokens=30))
    free = prompt_rows(words, [problem], 40, seed=5)
    Sampler(model, words, max_new_tokens=30).finish(free)
    assert any(words.id_of(">") in row.response[:-1] for row in rows)  # they did not stop there
    for row, other in zip(rows, free, strict=True):
        assert row.tokens == other.tokens and text not in response_text(words, row)


def test_templates_ask_the_same_problem_and_nothing_in_a_question_is_read_as_a_template():
    problem = Problem("Input:\n{question} {0}\n", "3", info={"digits": 1})
    assert with_template(problem, "skeleton").prompt == "User: Input:\n{question} {0} Assistant:"
    asked = with_template(problem, "r1")
    assert asked.prompt.startswith("A conversation between User and Assistant.")
    assert asked.prompt.endswith("</answer>. User: Input:\n{question} {0} Assistant:")
    assert (asked.answer, asked.info) == (problem.answer, problem.info)
    with pytest.raises(ValueError, match="use one of skeleton, r1"):
        with_template(problem, "chat")
    assert TEMPLATES.keys() == {"skeleton", "r1"}


def test_a_loss_of_zero_still_moves_the_policy(config, policy_and_words):
    """With one update per rollout the loss is 0 by algebra; the gradient is not."""
    policy, words = policy_and_words
    config = with_algorithm(replace(config, updates_per_rollout=1), kl_coef=0.0)
    groups = finished_groups(config, policy, words, count=8)
    grpo.compute_advantages(config, policy, None, groups)
    metrics = grpo.update_policy(config, 1, policy, make_optimizer(policy), groups)
    assert abs(metrics["loss"]) < 1e-6 and metrics["grad_norm"] > 0.01 and metrics["update_ratio"] > 0


def test_the_base_is_named_in_the_advice_and_the_command_line_reports_it(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["grpo", "--preset", "tiny"]) == 2
    assert "--base is needed" in capsys.readouterr().err
    assert torch.get_num_threads() >= 1 and not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------- tasks with thinking

THINKING = replace(PRESETS["tiny"], base=THINKER, task=Templated(ThinkingAddition((1,))), preflight=0,
                   rewards=(Accuracy(), Format(0.1)), max_new_tokens=Schedule(48), eval_samples=4,
                   eval_problems=6)  # fmt: skip


@pytest.mark.trains
def test_thinking_is_practised_and_measured_before_the_first_step_and_after(tmp_path):
    grpo.run(replace(THINKING, out=str(tmp_path)))
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


def measured(task: Task, policy, words, problems: int = 6) -> dict[str, float]:
    return evaluate(task, policy, words, problems, samples=4, max_new_tokens=48)


def test_held_out_problems_are_sampled_alike_for_every_policy_and_counted_rightly():
    policy, words = load_checkpoint(THINKER)
    task = Templated(ThinkingAddition((2,), modes=(0, 1, 0)))
    first, second = measured(task, policy, words), measured(task, policy, words)
    assert first == second
    groups = sample(task, policy, words, task.test_problems(6), group_size=4, seed=seed_of("held-out"),
                    max_new_tokens=48)  # fmt: skip
    right = [[one.right for one in judge(task, words, [group])] for group in groups]
    assert first["eval/pass@2"] == pytest.approx(sum(pass_at_k(4, sum(g), 2) for g in right) / len(groups))
    votes = [[read_thinking(response_text(words, row)).answer for row in group] for group in groups]
    maj = [maj_at_k(v, g, 4) for v, g in zip(votes, right, strict=True)]
    assert first["eval/maj@4"] == pytest.approx(sum(maj) / len(maj))


def test_all_samples_of_one_problem_right_is_not_some_samples_of_all_problems_right(monkeypatch):
    policy, words = load_checkpoint(THINKER)
    task, real = Templated(ThinkingAddition((2,))), environment.judge
    verdicts = [1.0] * 4 + [0.0] * 20  # 6 problems, 4 samples of each

    def judged(*arguments):
        found = real(*arguments)
        return [replace(one, verdict=verdict) for one, verdict in zip(found, verdicts[: len(found)], strict=True)]

    monkeypatch.setattr(environment, "judge", judged)
    found = measured(task, policy, words)
    assert [found[f"eval/pass@{k}"] for k in (1, 2, 4)] == pytest.approx([1 / 6] * 3)


@pytest.mark.trains
def test_the_budget_rises_in_the_middle_of_a_run(tmp_path):
    """Thinking that goes on for 30 tokens and more is cut at 4 until step 2, and at 30 from step 3 on."""
    grpo.run(replace(THINKING, out=str(tmp_path), task=Templated(ThinkingAddition((2,))), eval_samples=0,
                     max_new_tokens=Schedule.parse("4,3:30")))  # fmt: skip
    lines = read_jsonl(tmp_path / "metrics.jsonl")
    longest = [line["completions/max_length"] for line in lines]
    assert longest[:2] == [4, 4] and min(longest[2:]) > 4
    cut = [line["completions/clipped_ratio"] for line in lines]
    assert min(cut[:2]) > max(cut[2:])
    assert [Schedule.parse("4,3:30").at(step) for step in (0, 1, 2, 3, 4)] == [4, 4, 4, 30, 30]


@pytest.mark.trains
def test_countdown_runs_under_the_recipe_and_no_practised_problem_is_tested(tmp_path):
    task = Templated(ThinkingCountdown(3))
    sft.run(replace(sft.PRESETS["tiny"], task=task, context=640, steps=6, out=str(tmp_path / "base"), eval_problems=2))
    config = replace(PRESETS["tiny"], task=task, base=str(tmp_path / "base/policy"), out=str(tmp_path / "rl"),
                     steps=1, max_new_tokens=Schedule(60), eval_every=1, eval_problems=3, eval_samples=2,
                     preflight=0)  # fmt: skip
    line = grpo.run(config)
    assert {"acc/3", "eval/accuracy/3", "thinking/explored"} <= line.keys()
    tested = {(*sorted(p.info["numbers"]), p.info["target"]) for p in task.test_problems(50)}
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        real = ThinkingCountdown.problem
        patch.setattr(ThinkingCountdown, "problem", lambda self, s, i: asked.append(s) or real(self, s, i))
        policy, words = load_checkpoint(config.base)
        grpo.collect(config, 1, policy, words)
    (split,) = set(asked)
    drawn = [task.problem(split, i) for i in range(200)]
    assert not tested & {(*sorted(p.info["numbers"]), p.info["target"]) for p in drawn}
    assert len({p.prompt for p in drawn}) > 190


# ------------------------------------------------------------------------------------------------- another is sampled


def test_a_teacher_must_have_the_same_words_and_is_looked_for_before_anything_is_made(config, make_model, tmp_path):
    save_checkpoint(tmp_path / "other", make_model(1), word_tokenizer([f"w{i}" for i in range(20)]))
    for teacher, said in (
        (tmp_path / "other", "has another tokenizer than --base"),
        (tmp_path / "no", "no checkpoint"),
    ):
        with pytest.raises(ValueError, match=said):
            grpo.run(replace(config, teacher=str(teacher)))
    assert not Path(config.out).exists()


@pytest.mark.parametrize("updates", [1, 2])
def test_a_kl_in_the_reward_is_that_of_the_policy_and_not_of_who_was_sampled(config, policy_and_words, updates):
    policy, words = policy_and_words
    reference, teacher = copy.deepcopy(policy), copy.deepcopy(policy)
    with torch.no_grad():
        policy.lm_head.weight.mul_(1.05)
        teacher.lm_head.weight.mul_(0.7)
    config = with_algorithm(replace(config, updates_per_rollout=updates, teacher=BASE), kl_coef=0.1, kl_estimator="k1")
    groups, _ = grpo.collect(config, 1, teacher, words)
    rows = flat(groups)
    before = [row.reward for row in rows]
    grpo.compute_advantages(config, policy, reference, groups)
    own, others = (compute_logprobs(model, rows, config.temperature, 4096) for model in (policy, reference))
    wanted = [0.1 * (sum(a) - sum(b)) for a, b in zip(own, others, strict=True)]
    assert [b - row.reward for b, row in zip(before, rows, strict=True)] == pytest.approx(wanted, abs=1e-4)
    assert max(map(abs, wanted)) > 1e-3


@pytest.mark.parametrize("recipe", [grpo, sft])
def test_a_run_that_is_killed_right_behind_its_checkpoint_has_kept_what_it_keeps(recipe, config, monkeypatch):
    if recipe is sft:
        config = replace(sft.PRESETS["tiny"], task=SUMS, steps=5, out=config.out, eval_problems=0)
    config, save = replace(config, keep=(2, 4), save_every=2), recipe.save_policy

    def killed(*arguments, **options):
        save(*arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(recipe, "save_policy", killed)
        recipe.run(config)
    recipe.run(replace(config, resume=True))
    assert sorted(path.name for path in (Path(config.out) / "kept").iterdir()) == ["2", "4"]
