"""The GRPO recipe: it learns, resumes bit-equal, measures what it says, and refuses what cannot work."""

import copy
import math
from dataclasses import asdict, replace

import pytest
import torch

from nanoreason import practice, rewards
from nanoreason.__main__ import main
from nanoreason.checkpoint import load_checkpoint, save_checkpoint
from nanoreason.learn import PolicyLoss, fit, from_stream, group_advantages, make_optimizer, token_weights, update
from nanoreason.model import Transformer, small_config
from nanoreason.recipes import grpo
from nanoreason.recipes.grpo import ALGORITHMS, PRESETS, GrpoConfig, with_algorithm
from nanoreason.rewards import accuracy_reward, closing_ids, format_reward, overlong_reward, with_template
from nanoreason.rollout import Problem, prompt_rows, response_text
from nanoreason.run import Run, read_jsonl
from nanoreason.sampler import Sampler
from nanoreason.tasks.addition import Addition, tokenizer
from nanoreason.tokenizer import char_tokenizer, word_tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    """A policy that has seen a little of one-digit sums, answered directly: right sometimes."""
    words = tokenizer()
    model = Transformer(small_config(32, 2, 2, words.vocab_size, 32), seed=1)
    task = Addition((1,), form="direct")
    fit(model, make_optimizer(model), from_stream(words, task, "base", 16), steps=200, lr=1e-2, warmup=5)
    folder = tmp_path_factory.mktemp("base") / "policy"
    save_checkpoint(folder, model, words)
    return str(folder)


@pytest.fixture
def config(base, tmp_path) -> GrpoConfig:
    """Four steps with everything in motion: two updates per rollout, a reference that is replaced, refills."""
    return with_algorithm(
        replace(
            PRESETS["tiny"],
            base=base,
            out=str(tmp_path / "run"),
            max_new_tokens=6,
            lr=2e-3,
            kl_coef=0.05,
            updates_per_rollout=2,
            reference_every=6,
            max_refills=2,
            steps=5,
        )  # fmt: skip
    )


@pytest.fixture
def policy_and_words(base):
    return load_checkpoint(base)


# ------------------------------------------------------------------------------------------------------ it learns


def test_a_tiny_policy_learns_a_trivial_reward_within_a_few_updates(make_model):
    """Reward: the share of 7s in the response."""
    model = make_model(30)
    words = word_tokenizer([f"w{i}" for i in range(1, 24)])
    optimizer, loss = make_optimizer(model), PolicyLoss(on_policy=True)
    means = []
    for step in range(15):
        rows = prompt_rows(words, [Problem("w1 w2", ""), Problem("w3", "")], group_size=12, seed=step)
        Sampler(model, eos_id=None, max_new_tokens=4).finish(rows)
        for row in rows:
            row.reward = row.response.count(7) / 4
        means.append(sum(row.reward for row in rows) / len(rows))
        for row, advantage in zip(rows, group_advantages([row.reward for row in rows], 12), strict=True):
            row.advantage = advantage
        update(model, optimizer, rows, loss, lr=1e-2, weights=token_weights(rows, "sequence"))
    assert sum(means[:2]) / 2 < 0.3 and sum(means[-3:]) / 3 > 0.8


def test_the_recipe_raises_the_accuracy_of_its_base(base, tmp_path):
    config = replace(PRESETS["tiny"], base=base, out=str(tmp_path / "run"), max_new_tokens=4, steps=40, prompts=16,
                     group_size=8, lr=3e-3, eval_every=0, save_every=100)  # fmt: skip
    grpo.run(config)
    lines = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert 0.1 < lines[0]["preflight/accuracy"] < 0.7
    accuracy = [line["accuracy"] for line in lines[1:]]
    assert sum(accuracy[-10:]) / 10 > sum(accuracy[:10]) / 10 + 0.1


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_one_step_of_every_algorithm_makes_right_responses_likelier_against_wrong_ones(config, algorithm):
    policy, words = load_checkpoint(config.base)
    # an explicit switch stays as it is, so the fixture's own must go
    unset = {name: getattr(GrpoConfig(), name) for name in GRPO_SWITCHES}
    settings = replace(config, **unset, algorithm=algorithm, updates_per_rollout=1, lr=1e-3, prompts=8, group_size=8)
    settings = with_algorithm(settings)
    problems = [Addition((1,)).problem("x", i) for i in range(8)]
    rows = grpo.sample(settings, policy, words, problems, 8, seed=1)
    grpo.judge(settings, words, rows)
    grpo.compare(settings, policy, policy if settings.kl_coef else None, rows)
    some = [row for row in rows if row.advantage]
    assert {row.reward for row in some} >= ({1.0} if algorithm == "reinforce" else {0.0, 1.0})
    before = [sum(values) for values in grpo.score(policy, rows, 1.0, 2048)]
    metrics = grpo.improve(settings, 0, policy, make_optimizer(policy), rows)
    after = [sum(values) for values in grpo.score(policy, rows, 1.0, 2048)]
    gained = [a - b for a, b in zip(after, before, strict=True)]
    right = [g for g, row in zip(gained, rows, strict=True) if row.reward == 1]
    wrong = [g for g, row in zip(gained, rows, strict=True) if row.reward < 1]
    assert sum(right) / len(right) > sum(wrong) / len(wrong)
    assert metrics["updates"] == 1 and metrics["update_ratio"] > 0


GRPO_SWITCHES = ALGORITHMS["grpo"]

# ------------------------------------------------------------------------------------------------------- settings


def test_explicit_switches_stay_and_the_rest_is_the_algorithms(base):
    config = with_algorithm(replace(PRESETS["cpu"], base=base, algorithm="dapo", clip_high=0.5, max_refills=0))
    assert (config.clip_high, config.max_refills) == (0.5, 0)
    assert (config.average, config.clip_low, config.kl_coef, config.overlong_share) == ("token", 0.2, 0.0, 0.2)
    assert with_algorithm(config) == config
    default = with_algorithm(replace(PRESETS["cpu"], base=base))
    assert {name: getattr(default, name) for name in GRPO_SWITCHES} == GRPO_SWITCHES
    assert (default.average, default.divide_by, default.ratio) == ("sequence", "group", "token")


def test_the_help_shows_what_every_algorithm_sets(capsys):
    with pytest.raises(SystemExit):
        main(["grpo", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for name, switches in ALGORITHMS.items():
        assert f"{name}: {', '.join(f'{switch} {value}' for switch, value in switches.items())}" in shown


MISTAKES = {
    "no base": (dict(base=""), "--base is needed"),
    "no algorithm": (dict(algorithm="ppo"), "ppo: one of grpo, dr_grpo, dapo"),
    "no average": (dict(average="mean"), "--average mean: one of token, sequence"),
    "no ratio": (dict(ratio="row"), "--ratio row"),
    "groups of one": (dict(group_size=1), "--group-size 1"),
    "greedy": (dict(temperature=0.0), "--temperature 0.0"),
    "format without tags": (dict(format_weight=0.1), "--format-weight needs --template"),
    "no reward": (dict(accuracy_weight=0.0), "nothing to learn"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_settings_that_cannot_work_are_refused_before_anything_is_written(config, tmp_path, mistake):
    changed, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        grpo.run(replace(config, **changed))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("reward", "advice"), [(0.0, "train the base longer"), (1.0, "harder sums")])
def test_the_preflight_stops_where_all_groups_would_be_flat(config, tmp_path, monkeypatch, reward, advice):
    monkeypatch.setattr(Addition, "reward", lambda self, problem, response: reward)
    with pytest.raises(ValueError, match=advice) as stopped:
        grpo.run(config)
    assert f"pass@4 {reward:.3f}" in str(stopped.value)
    assert not (tmp_path / "run").exists()  # so that the next attempt needs no --resume


# -------------------------------------------------------------------------------------------------------- rollouts


def test_dynamic_sampling_replaces_flat_groups_by_new_problems_and_gives_up_in_time(config, policy_and_words, tmp_path):
    policy, words = policy_and_words
    config = replace(config, prompts=6, group_size=3)
    run, indices = Run(config), []
    with pytest.MonkeyPatch.context() as patch:
        real = Addition.problem
        patch.setattr(Addition, "problem", lambda self, s, i: indices.append((s, i)) or real(self, s, i))
        seen_flat = False
        for step in range(4):
            rows, metrics = grpo.rollout(config, step, policy, words, run)
            groups = [rows[i : i + 3] for i in range(0, len(rows), 3)]
            assert all(len({row.problem.prompt for row in group}) == 1 for group in groups)
            assert not any(grpo.is_flat(group) for group in groups)
            assert len(groups) <= 6 <= metrics["groups"] <= 6 * 3
            assert len(groups) == 6 or metrics["groups"] > 6
            seen_flat |= metrics["frac_reward_zero_std"] > 0
        assert seen_flat and len(set(indices)) == len(indices)  # no problem twice
    rows, metrics = grpo.rollout(replace(config, max_refills=0), 0, policy, words, run)
    assert len(rows) == 18 and metrics["groups"] == 6


def test_without_any_group_left_the_step_is_skipped(config, monkeypatch, policy_and_words, assert_same_weights):
    policy, words = policy_and_words
    before = copy.deepcopy(policy)
    metrics = grpo.improve(config, 0, policy, make_optimizer(policy), [])
    assert metrics["updates"] == 0 and metrics["update_ratio"] == 0
    assert_same_weights(policy, before)


def finished_rows(config, policy, words, count=4):
    problems = [Addition((1,)).problem("x", i) for i in range(count)]
    rows = grpo.sample(config, policy, words, problems, config.group_size, seed=3)
    grpo.judge(config, words, rows)
    return rows


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
    rows = finished_rows(config, policy, words)
    grpo.compare(config, policy, None, rows)
    metrics = grpo.improve(config, 1, policy, make_optimizer(policy), rows)
    assert metrics["updates"] == 6 and [len(call[0]) for call in updates] == [6, 5, 5] * 2
    epochs = [[id(row) for call in updates[i : i + 3] for row in call[0]] for i in (0, 3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(map(id, rows)) and epochs[0] != epochs[1]
    assert not updates[0][1].on_policy
    for minibatch, _, options in updates:  # the average is that of the minibatch
        assert options["weights"] == token_weights(minibatch, "sequence")


def test_the_old_policy_is_scored_before_the_first_of_several_updates_and_is_the_sampler(config, policy_and_words):
    policy, words = policy_and_words
    rows = finished_rows(config, policy, words)
    grpo.compare(config, policy, copy.deepcopy(policy), rows)
    for row in rows:
        assert row.old_logprobs == pytest.approx(row.logprobs, abs=1e-4)
        assert row.ref_logprobs == row.old_logprobs  # the reference is the policy here
    metrics = grpo.improve(replace(config, lr=3e-2, warmup=0), 0, policy, make_optimizer(policy), rows)
    assert metrics["logp_diff/max"] < 1e-4
    assert metrics["clip_ratio/region_mean"] > 0  # the second update is off-policy
    single = replace(config, updates_per_rollout=1)
    rows = finished_rows(single, policy, words)
    grpo.compare(single, policy, None, rows)
    assert all(row.old_logprobs is None for row in rows)


def test_cut_rows_are_filtered_after_the_groups_baseline_was_taken(config, policy_and_words, updates):
    policy, words = policy_and_words
    config = replace(config, updates_per_rollout=1, overlong_filter=True)
    rows = finished_rows(config, policy, words)
    for row in rows[::3]:
        row.stop_reason = "length"
    expected = group_advantages([row.reward for row in rows], config.group_size)
    grpo.compare(config, policy, None, rows)
    assert [row.advantage for row in rows] == expected
    grpo.improve(config, 0, policy, make_optimizer(policy), rows)
    ((minibatch, _, options),) = updates
    assert sorted(map(id, minibatch)) == sorted(id(row) for row in rows if row.stop_reason != "length")
    assert math.fsum(w for row in options["weights"] for w in row) == pytest.approx(1)  # the same rows in the average


def test_k1_is_taken_out_of_the_reward_and_not_put_into_the_loss(config, policy_and_words, make_model, updates):
    policy, words = policy_and_words
    config = replace(config, kl_estimator="k1", kl_coef=0.5, baseline="none", updates_per_rollout=1)
    rows = finished_rows(config, policy, words)
    before = [row.reward for row in rows]
    reference = make_model(5, vocab_size=words.vocab_size)
    grpo.compare(config, policy, reference, rows)
    for row, reward in zip(rows, before, strict=True):
        k1 = sum(p - q for p, q, counted in zip(row.logprobs, row.ref_logprobs, row.loss_mask, strict=True) if counted)
        assert row.advantage == row.reward == pytest.approx(reward - 0.5 * k1)
    metrics = grpo.improve(config, 0, policy, make_optimizer(policy), rows)
    assert updates[0][1].kl_coef == 0 and metrics["kl"] > 0


def test_the_reference_becomes_the_policy_every_k_updates(config):
    def replaced(**fields):
        return [step for step in range(10) if grpo.replaces_reference(replace(config, **fields), step)]

    assert replaced(updates_per_rollout=1, reference_every=4) == [0, 4, 8]
    assert replaced(updates_per_rollout=2, reference_every=6) == [0, 3, 6, 9]
    assert replaced(updates_per_rollout=2, epochs=2, reference_every=6) == [0, 2, 3, 5, 6, 8, 9]
    assert replaced(reference_every=0) == [0]
    assert replaced(kl_coef=0.0) == []


# --------------------------------------------------------------------------------------------- metrics and resume

METRICS = [
    "reward", "reward_std", "rewards/accuracy/mean", "accuracy", "frac_reward_zero_std", "completions/mean_length",
    "completions/min_length", "completions/mean_length_correct", "completions/mean_length_wrong",
    "completions/clipped_ratio", "entropy", "kl",
    "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean", "loss", "grad_norm", "learning_rate",
    "logp_diff/max", "update_ratio", "tok_per_s", "num_tokens", "time/rollout", "time/score", "time/update",
]  # fmt: skip


class Stop:
    """Raises KeyboardInterrupt at the `count`-th call of a function of the recipe, before it or after it."""

    def __init__(self, patch, name, count, after):
        real, self.calls = getattr(grpo, name), 0

        def stopping(*args, **kwargs):
            self.calls += 1
            if self.calls == count and not after:
                raise KeyboardInterrupt
            result = real(*args, **kwargs)
            if self.calls == count:
                raise KeyboardInterrupt
            return result

        patch.setattr(grpo, name, stopping)


def left_by(folder) -> dict:
    """All that a run leaves: bytes of every checkpoint file, and log lines without their times."""
    left = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob("*/*"))}
    for name in ("metrics.jsonl", "samples.jsonl"):
        lines = read_jsonl(folder / name)
        left[name] = [{k: v for k, v in line.items() if not k.startswith(("time/", "tok_per_s"))} for line in lines]
    return left


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory) -> dict:
    """One uninterrupted run of the configuration that the stopped ones have."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    config = replace(PRESETS["tiny"], base=base, out=str(folder), max_new_tokens=6, lr=2e-3, kl_coef=0.05,
                     updates_per_rollout=2, reference_every=6, max_refills=2, steps=5)  # fmt: skip
    grpo.run(config)
    return left_by(folder) | {"raw": read_jsonl(folder / "metrics.jsonl")}


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
    assert len(whole["samples.jsonl"]) == 5 and {"prompt", "response", "reward"} <= whole["samples.jsonl"][0].keys()


@pytest.mark.parametrize(
    ("name", "count", "after"),
    [
        ("update", 2, True),  # in the first step: no checkpoint yet
        ("save_checkpoint", 4, False),  # the reference is due, its policy was saved
        ("save_checkpoint", 4, True),  # the reference was replaced, no step was done with it
        ("update", 8, False),  # in the first step with the new reference
        ("update", 10, False),  # in the last step, behind a checkpoint and a replacement
        ("measure", 3, True),  # all done but the last checkpoint
    ],
)
def test_a_stopped_and_resumed_run_ends_bit_equal_to_one_that_never_stopped(
    whole, config, tmp_path, name, count, after
):
    with pytest.MonkeyPatch.context() as patch:
        Stop(patch, name, count, after)
        with pytest.raises(KeyboardInterrupt):
            grpo.run(config)
    grpo.run(replace(config, resume=True))
    left = left_by(tmp_path / "run")
    assert left.keys() == whole.keys() - {"raw"} and "reference/model.safetensors" in left
    for file, content in left.items():
        equal = content == whole[file]  # not in the assert: a diff of binary files takes minutes
        assert equal, f"{file} differs"


def test_resuming_a_finished_run_changes_nothing(whole, config, tmp_path, monkeypatch):
    grpo.run(config)
    monkeypatch.setattr(grpo, "update", None)
    last = grpo.run(replace(config, resume=True))
    assert last["step"] == 5 and left_by(tmp_path / "run")["metrics.jsonl"] == whole["metrics.jsonl"]


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


@pytest.mark.parametrize("text", FORMS)
def test_the_format_is_each_tag_once_in_order_with_nothing_around(text):
    assert format_reward([""], [text]) == [FORMS[text]]


def test_reward_functions_work_unchanged_as_reward_funcs_of_trl():
    """TRL calls them with keywords: prompts, completions, the token ids, every column of the data set, and more."""
    task = Addition((2,))
    problems = [task.problem("train", i) for i in range(3)]
    columns = {name: [asdict(problem)[name] for problem in problems] for name in ("answer", "solution", "info")}
    texts = [f"<think> hm </think> <answer> {problems[0].answer} </answer>", problems[1].answer, "<answer> 1 </answer>"]
    extras = dict(trainer_state=object(), log_extra=lambda *a: None, log_metric=lambda *a: None)
    prompts = [with_template(problem, "r1").prompt for problem in problems]
    chats = [[{"role": "assistant", "content": text}] for text in texts]
    ids = [[0] * n for n in (5, 9, 10)]
    for completions in (texts, chats):
        call = dict(prompts=prompts, completions=completions, completion_ids=ids, **columns, **extras)
        assert accuracy_reward(task, tags=True)(**call) == [1.0, 0.0, 0.0]
        assert accuracy_reward(task)(**call) == [0.0, 1.0, 0.0]
        assert format_reward(**call) == [1.0, 0.0, 0.0]
        assert overlong_reward(10, 5)(**call) == [0.0, -0.8, -1.0]
    assert all(function.__name__ for function in (accuracy_reward(task), format_reward, overlong_reward(10, 5)))


def test_with_tags_only_what_the_one_answer_holds_is_shown_to_the_verifier():
    task = Addition((1,))
    problem = task.problem("train", 0)
    judge = accuracy_reward(task, tags=True)
    good = problem.answer
    for text, reward in {
        f"<answer> {good} </answer>": 1.0,
        good: 0.0,
        f"<answer> {good} </answer> <answer> {good} </answer>": 0.0,
        f"<answer> {good} or 3 </answer>": 0.0,
        f"{good} <answer> </answer>": 0.0,
        "": 0.0,
    }.items():
        assert judge([""], [text], [good], [problem.info]) == [reward], text


def test_the_reward_is_the_weighted_sum_of_its_parts_each_of_them_measured(config):
    words = tagged_words()
    config = replace(
        config, template="skeleton", accuracy_weight=1.0, format_weight=0.1, overlong_share=0.5, max_new_tokens=12
    )
    problem = Problem("1 + 2", "3", info={"digits": 1})
    rows = prompt_rows(words, [with_template(problem, "skeleton")] * 4)
    for row, text in zip(rows, ("<think> 1 </think> <answer> 3 </answer>", "<think> 1 </think> <answer> 4 </answer>",
                                "<answer> 3 </answer>", "1 1 1 1 1 1 1 1 1 1 1 1"), strict=True):  # fmt: skip
        for token in words.encode(text):
            row.sampled(token, -1.0)
    parts = grpo.judge(config, words, rows)
    assert parts["accuracy"] == [1.0, 0.0, 1.0, 0.0] and parts["format"] == [1.0, 1.0, 0.0, 0.0]
    assert parts["overlong"] == [0.0, 0.0, 0.0, -1.0]
    assert [row.reward for row in rows] == pytest.approx([1.1, 0.1, 1.0, -1.0])
    metrics = grpo.describe(config, words, [rows], parts)
    assert metrics["rewards/format/mean"] == metrics["rewards/accuracy/mean"] == metrics["accuracy"] == 0.5


def tagged_words():
    tags = ["<think>", "</think>", "<answer>", "</answer>"]
    return word_tokenizer(["User:", "Assistant:", *tags, "+", *"0123456789"])


def test_under_a_template_rows_end_with_the_answer_that_closes(config, make_model):
    words = tagged_words()
    model = make_model(31, vocab_size=words.vocab_size)
    problems = [Problem(f"{a} + {b}", "") for a in range(4) for b in range(3)]
    rows = grpo.sample(replace(config, template="skeleton", max_new_tokens=20), model, words, problems, 4, seed=0)
    end = words.id_of("</answer>")
    assert closing_ids(words) == (end,)
    for row in rows:
        assert words.decode(row.tokens).startswith("User: ") and "Assistant:" in row.problem.prompt
        assert end not in row.response[:-1]
        assert (row.stop_reason == "stop") == (row.response[-1] == end)
        assert row.loss_mask == [False] * row.prompt_len + [True] * len(row.response)
    assert {row.stop_reason for row in rows} >= {"stop"}


def test_where_the_tag_is_several_tokens_rows_go_on_until_the_text_holds_it(config, make_model):
    """Each ">" hands a row back; one that closes nothing goes on as if it had never stopped."""
    words = char_tokenizer("</answer>b")
    text = "</answer>"
    assert closing_ids(words) == (words.id_of(">"),)
    model = make_model(32, vocab_size=words.vocab_size)
    free = prompt_rows(words, [Problem("ab", "")], 40, seed=5)
    Sampler(model, eos_id=words.eos_id, max_new_tokens=30).finish(free)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(practice, "with_template", lambda problem, template: problem)
        rows = grpo.sample(replace(config, template="r1", max_new_tokens=30), model, words, [Problem("ab", "")], 40, 5)
    assert any(words.id_of(">") in row.response[:-1] for row in rows)  # they did stop there, and went on
    for row, other in zip(rows, free, strict=True):
        assert row.tokens == other.tokens and text not in response_text(words, row)


def test_templates_ask_the_same_problem_and_nothing_in_a_question_is_read_as_a_template():
    problem = Problem("Input:\n{question} {0}\n", "3", info={"digits": 1})
    assert with_template(problem, "none") is problem
    assert with_template(problem, "skeleton").prompt == "User: Input:\n{question} {0} Assistant:"
    asked = with_template(problem, "r1")
    assert asked.prompt.startswith("A conversation between User and Assistant.")
    assert asked.prompt.endswith("</answer>. User: Input:\n{question} {0} Assistant:")
    assert (asked.answer, asked.info) == (problem.answer, problem.info)
    with pytest.raises(ValueError, match="use one of none, skeleton, r1"):
        with_template(problem, "chat")
    assert rewards.TEMPLATES.keys() == {"none", "skeleton", "r1"}


def test_a_loss_of_zero_still_moves_the_policy(config, policy_and_words):
    """With one update per rollout the loss is 0 by algebra; the gradient is not."""
    policy, words = policy_and_words
    config = replace(config, updates_per_rollout=1, kl_coef=0.0)
    rows = finished_rows(config, policy, words, count=8)
    grpo.compare(config, policy, None, rows)
    metrics = grpo.improve(config, 0, policy, make_optimizer(policy), rows)
    assert abs(metrics["loss"]) < 1e-6 and metrics["grad_norm"] > 0.01 and metrics["update_ratio"] > 0


def test_the_base_is_named_in_the_advice_and_the_command_line_reports_it(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["grpo", "--preset", "tiny"]) == 2
    assert "--base is needed" in capsys.readouterr().err
    assert torch.get_num_threads() >= 1 and not list(tmp_path.iterdir())
