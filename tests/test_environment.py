"""From problems to numbers: what is sampled, judged, rewarded, measured and evaluated, against values by hand."""

import math
from dataclasses import dataclass, field

import pytest
import torch

from nanoreason import environment
from nanoreason.environment import (
    compute_rewards,
    evaluate,
    judge,
    log_samples,
    reward_name,
    rollout_metrics,
    sample,
    sampled_metrics,
)
from nanoreason.evaluate import pass_at_k
from nanoreason.learn import collate, token_weights
from nanoreason.rewards import Accuracy, Cosine, DenseRepetition, Format, Metric, Scored
from nanoreason.rollout import Problem, Rollout, Task, demonstration, prompt_row, token_ends
from nanoreason.run import Run, RunConfig, read_jsonl
from nanoreason.tasks.addition import Addition
from nanoreason.tasks.addition import tokenizer as addition_tokenizer
from nanoreason.tasks.thinking import ThinkingAddition, thinking_tokenizer
from nanoreason.tasks.wrappers import Templated
from nanoreason.tokenizer import char_tokenizer, word_tokenizer

WORDS = thinking_tokenizer()


@dataclass(frozen=True)
class Letters(Task):
    """A task in the words of thinking: the prompt is a digit, right is the digit itself; 5 and up is difficult."""

    stop = ("so",)

    def tokenizer(self):
        return WORDS

    def problem(self, split, index):
        digit = str(index % 10)
        return Problem(digit, digit, digit, {"split": split})

    def reward(self, problem, response):
        return float(response.strip() == problem.answer)

    def difficulty(self, problem):
        return int(int(problem.answer) >= 5)

    def work_is_valid(self, problem, response):
        return not response.startswith(" ")

    def is_right_leniently(self, problem, response):
        return problem.answer in response

    def answer(self, response):
        return response.replace(".", "").strip() or None

    def max_tokens(self, problem):
        return 2 + self.difficulty(problem)

    def metrics(self, problem, response):
        return {"mode/long": float(len(response) > 3), "words": float(len(response.split()))}


TASK = Letters()


def finished_row(prompt: str, text: str, stop_reason: str = "eos", **fields) -> Rollout:
    """A row that answered with these words; with stop_reason length there is no EOS."""
    row = prompt_row(WORDS, Problem(prompt, prompt))
    for token in WORDS.encode(text) + ([WORDS.eos_id] if stop_reason == "eos" else []):
        row.sampled(token, -1.0)
    row.stop_reason = stop_reason
    for name, value in fields.items():
        setattr(row, name, value)
    return row


# -------------------------------------------------------------------------------------------------------- sampling


@pytest.fixture
def policy(make_model):
    return make_model(2, vocab_size=WORDS.vocab_size)


def test_groups_come_in_the_order_of_their_problems_each_row_with_its_own_numbers_and_budget(policy):
    problems = [TASK.problem("x", i) for i in (7, 2, 7)]
    groups = sample(TASK, policy, WORDS, problems, group_size=3, seed=5)
    assert [[row.problem for row in group] for group in groups] == [[problem] * 3 for problem in problems]
    rows = [row for group in groups for row in group]
    assert len({row.seed for row in rows}) == 9
    for row in rows:
        assert row.stop_reason and row.max_new_tokens == TASK.max_tokens(row.problem) >= len(row.response)
        assert row.loss_mask == [False] * row.prompt_len + [True] * len(row.response)
    again = sample(TASK, policy, WORDS, problems, group_size=3, seed=5)
    assert [[row.tokens for row in group] for group in again] == [[row.tokens for row in group] for group in groups]
    other = sample(TASK, policy, WORDS, problems, group_size=3, seed=6)
    assert [[row.tokens for row in group] for group in other] != [[row.tokens for row in group] for group in groups]


def test_a_budget_that_is_asked_for_replaces_the_tasks_and_a_stop_text_ends_a_row(policy):
    problems = [TASK.problem("x", i) for i in range(10)]
    rows = [row for group in sample(TASK, policy, WORDS, problems, group_size=8, max_new_tokens=30) for row in group]
    assert {row.max_new_tokens for row in rows} == {30} and max(len(row.response) for row in rows) > 3
    stopped = [row for row in rows if row.stop_reason == "stop"]
    assert stopped and all(WORDS.decode(row.tokens[-1:]) == "so" for row in stopped)
    assert all("so" not in WORDS.decode(row.response[:-1]).split() for row in rows)


def test_where_nobody_knows_a_budget_the_context_is_the_limit(policy):
    @dataclass(frozen=True)
    class Unbounded(Letters):
        stop = ()

        def max_tokens(self, problem):
            return None

    rows = [row for (row,) in sample(Unbounded(), policy, WORDS, [TASK.problem("x", i) for i in range(6)])]
    limit = policy.config.max_position_embeddings
    assert all(row.stop_reason == "eos" or (row.stop_reason, len(row.tokens)) == ("length", limit) for row in rows)


# --------------------------------------------------------------------------------------------- verdicts and rewards


def test_judging_gives_one_scored_row_after_another_with_text_verdict_limit_and_metrics():
    groups = [[finished_row("4", "4", max_new_tokens=6), finished_row("4", "5 5", "length", max_new_tokens=2)],
              [finished_row("7", "7", max_new_tokens=9)]]  # fmt: skip
    scored = judge(TASK, WORDS, groups)
    assert [one.row for one in scored] == [row for group in groups for row in group]
    assert [one.text for one in scored] == ["4", "5 5", "7"]  # without the EOS
    assert [one.verdict for one in scored] == [1, 0, 1] and [one.right for one in scored] == [True, False, True]
    assert [one.tokens for one in scored] == [2, 2, 2] and [one.limit for one in scored] == [6, 2, 9]
    assert [dict(one.metrics) for one in scored][1] == {"mode/long": 0.0, "words": 2.0}
    assert [one.limit for one in judge(TASK, WORDS, groups, 4)] == [4, 4, 4]
    assert [one.exceeds() for one in scored] == [False, True, False]


def test_a_verdict_is_asked_for_once_however_many_rewards_there_are(monkeypatch):
    calls = []
    monkeypatch.setattr(Letters, "reward", lambda task, problem, response: calls.append(response) or 1.0)
    scored = judge(TASK, WORDS, [[finished_row("4", "4"), finished_row("4", "5")]], 9)
    compute_rewards(scored, (Accuracy(), Cosine(), Format()))
    assert calls == ["4", "5"]


def test_the_reward_is_the_weighted_sum_of_its_parts_and_the_parts_are_without_weight():
    task = Templated(ThinkingAddition((1,)))
    problem = task.parse("3 + 4")
    texts = ["<think> </think> <answer> 7 </answer>", "<answer> 7 </answer>", "<think> </think> <answer> 8 </answer>"]
    scored = judge(task, WORDS, [[demonstration(WORDS, problem, text) for text in texts]])
    parts = compute_rewards(scored, (Accuracy(weight=2.0), Format(weight=0.25), Metric(0.5, "thinking/passes")))
    assert parts == {"accuracy": [1, 1, 0], "format": [1, 0, 1], "metric": [0, 0, 0]}
    assert [one.row.reward for one in scored] == [2.25, 2.0, 0.25]
    assert all(one.row.token_advantages is None for one in scored)


def test_two_rewards_of_one_kind_are_two_parts():
    scored = judge(TASK, WORDS, [[finished_row("4", "4 4", max_new_tokens=9)]])
    parts = compute_rewards(scored, (Metric(1.0, "words"), Metric(10.0, "mode/long"), Metric(0.5, "words")))
    assert parts == {"metric": [2.0], "metric_2": [0.0], "metric_3": [2.0]}
    assert scored[0].row.reward == 2 + 0 + 1


def test_rewards_of_tokens_become_token_advantages_and_no_part_of_the_sum():
    rows = [finished_row("4", "2 2 2", "length"), finished_row("4", "1 2")]
    scored = judge(TASK, WORDS, [rows])
    rewards = (Accuracy(), DenseRepetition(2.0, n=2, penalty=-0.5, gamma=0.5), DenseRepetition(1.0, n=1, gamma=0.0))
    parts = compute_rewards(scored, rewards)
    assert [row.reward for row in rows] == [0, 0]
    assert parts["dense_repetition"] == [-1.0, 0.0] and parts["dense_repetition_2"] == pytest.approx([-0.1, 0])
    # twice -0.5 on tokens 2 and 3, halved towards the front: -0.75 -1.5 -1; and -0.05 on the same tokens alone
    assert rows[0].token_advantages == pytest.approx([0.0, -0.75, -1.55, -1.05])
    assert rows[1].token_advantages == [0.0] * 4
    for row in rows:
        row.advantage = 1.0
    advantages = collate(rows, token_weights(rows), torch.device("cpu")).advantages
    assert advantages[0].tolist() == pytest.approx([1.0, 0.25, -0.55, -0.05])
    compute_rewards(scored, (Accuracy(),))
    assert rows[0].token_advantages is None  # nothing is left of an earlier reward


@dataclass(frozen=True)
class Broken:
    """A reward that is `value` for the text "bad"."""

    weight: float = 1.0
    value: object = field(default=math.nan)

    def __call__(self, scored):
        return self.value if scored.text == "wait" else 0.5


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, "high", [1.0]])
@pytest.mark.parametrize("place", [0, 1, 4])
def test_a_value_that_is_no_finite_number_is_one_error_that_names_reward_and_row_wherever_it_stands(place, value):
    texts = ["8"] * 5
    texts[place] = "wait"
    scored = judge(TASK, WORDS, [[finished_row("8", text) for text in texts[:3]],
                                 [finished_row("8", text) for text in texts[3:]]])  # fmt: skip
    for rewards in ((Broken(value=value),), (Accuracy(), Broken(0.1, value)), (Broken(0.0, value), Accuracy())):
        with pytest.raises(ValueError, match=rf"reward broken is .* for row {place} .*prompt '8'.*'wait'") as caught:
            compute_rewards(scored, rewards)
        assert "\n" not in str(caught.value)


def test_a_weight_or_value_of_a_token_that_is_infinite_or_too_large_to_be_squared_is_named_too():
    scored = judge(TASK, WORDS, [[finished_row("8", "8"), finished_row("8", "8 8 8")]])
    with pytest.raises(ValueError, match="reward accuracy times its weight is inf for row 0"):
        compute_rewards(scored, (Accuracy(weight=math.inf),))
    with pytest.raises(ValueError, match=r"reward accuracy times its weight is 1e\+200 for row 0"):
        compute_rewards(scored, (Accuracy(weight=1e200),))  # the deviation of its group would be no number
    with pytest.raises(ValueError, match="reward dense_repetition of tokens is -inf for row 1"):
        compute_rewards(scored, (DenseRepetition(n=1, weight=1e308, penalty=-1e20),))


def test_a_reward_of_tokens_must_have_one_value_per_token():
    @dataclass(frozen=True)
    class Short(Broken):
        def of_tokens(self, scored):
            return [1.0]

    with pytest.raises(ValueError, match="reward short has 1 values for 2 tokens for row 0"):
        compute_rewards(judge(TASK, WORDS, [[finished_row("8", "8")]]), (Short(),))


def test_rewards_are_called_what_their_classes_are_called():
    assert [reward_name(r) for r in (Accuracy(), DenseRepetition(), Metric())] == [
        "accuracy", "dense_repetition", "metric"
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- metrics


def test_metrics_of_a_rollout_equal_those_by_hand():
    groups = [[finished_row("4", "4"), finished_row("4", "1 1 1 1", "length")],
              [finished_row("7", "7"), finished_row("7", "7")]]  # fmt: skip
    scored = judge(TASK, WORDS, groups, 4)
    parts = compute_rewards(scored, (Accuracy(), Metric(0.5, "words")))
    assert [one.row.reward for one in scored] == [1.5, 2.0, 1.5, 1.5]
    assert rollout_metrics(groups, scored, parts, repeat_n=1) == pytest.approx({
        "reward": 6.5 / 4, "reward_std": (0.25 + 0) / 2, "frac_reward_zero_std": 0.5,
        "rewards/accuracy/mean": 0.75, "rewards/metric/mean": 7 / 4, "accuracy": 0.75, "groups": 2,
        "completions/mean_length": 10 / 4, "completions/min_length": 2, "completions/max_length": 4,
        "completions/mean_terminated_length": 2, "completions/mean_length_correct": 2,
        "completions/mean_length_wrong": 4, "completions/clipped_ratio": 0.25,
        "completions/repetition": (0 + 3 / 4 + 0 + 0) / 4, "tokens": 10,
        "mode/long": 0.25, "accuracy/long": 0.0, "words": 7 / 4,
    })  # fmt: skip


def test_means_of_nothing_are_zero():
    groups = [[finished_row("4", "4 4", "length"), finished_row("4", "5 5", "length")]]
    scored = judge(TASK, WORDS, groups)
    metrics = rollout_metrics(groups, scored, compute_rewards(scored, (Accuracy(),)))
    assert metrics["completions/mean_terminated_length"] == metrics["completions/mean_length_correct"] == 0
    assert "accuracy/long" not in metrics and metrics["mode/long"] == 0  # no response in this mode, no accuracy of it


def test_samples_are_counted_by_problem_vote_and_difficulty():
    texts = {"4": ["4", "4", "5", "6"], "1": ["2", "2", "1", ""], "7": ["7 7 7", "8", "8", "7"]}
    rows = [finished_row(prompt, text) for prompt, some in texts.items() for text in some]
    rows[-1].stop_reason = "length"
    metrics = sampled_metrics(TASK, judge(TASK, WORDS, [rows]), 4, repeat_n=1)
    right = [2, 1, 1]
    for n in (1, 2, 4):
        assert metrics[f"pass@{n}"] == pytest.approx(sum(pass_at_k(4, c, n) for c in right) / 3)
    assert "pass@8" not in metrics
    assert metrics["maj@4"] == pytest.approx((1 + 0 + 0) / 3)  # 4 wins; 2 wins; 8 wins
    assert metrics["accuracy_lenient"] == (2 + 1 + 2) / 12
    assert (metrics["accuracy/0"], metrics["accuracy/1"]) == (3 / 8, 1 / 4)
    assert metrics["mode/long"] == 1 / 12 and metrics["accuracy/long"] == 0
    assert (metrics["mode/long/0"], metrics["mode/long/1"], metrics["accuracy/long/1"]) == (0, 1 / 4, 0)
    assert "accuracy/long/0" not in metrics and "words/0" not in metrics
    assert metrics["words"] == (4 + 3 + 6) / 12 and metrics["clipped_ratio"] == 1 / 12
    assert metrics["mean_length"] == (8 + 7 + 10) / 12 and "format" not in metrics
    assert metrics["stopped_length"] == pytest.approx((8 + 7 + 10 - len(rows[-1].response)) / 11)
    for row in rows:
        row.stop_reason = "length"
    assert sampled_metrics(TASK, judge(TASK, WORDS, [rows]), 4)["stopped_length"] == 0  # none stopped


def test_votes_are_the_tasks_answers_so_wordings_of_one_answer_vote_together():
    task = ThinkingAddition((2,))
    problem = task.parse("47 + 38")
    texts = ["8 5", "85", "8 5.", "8 6", "8 6"]
    scored = [Scored(finished_row("9", "8", max_new_tokens=9), text, task.reward(problem, text), 9,
                     task.metrics(problem, text)) for text in texts]  # fmt: skip
    for one in scored:
        one.row.problem = problem
    metrics = sampled_metrics(task, scored, 5)
    assert metrics["maj@5"] == 1.0 and metrics["pass@1"] == pytest.approx(1 / 5)
    assert metrics["accuracy_lenient"] == 3 / 5


def test_the_format_is_measured_where_the_task_ends_in_its_tags():
    task = Templated(ThinkingAddition((1,)))
    problem = task.parse("3 + 4")
    texts = ["<think> </think> <answer> 7 </answer>", "<answer> 7 </answer>"]
    metrics = sampled_metrics(task, judge(task, WORDS, [[demonstration(WORDS, problem, text) for text in texts]]), 2)
    assert (metrics["format"], metrics["pass@1"], metrics["maj@2"]) == (0.5, 1.0, 1.0)


# ------------------------------------------------------------------------------------------------------- evaluation


def test_evaluation_lists_accuracy_by_difficulty_and_samples_only_when_asked(monkeypatch):
    asked = []

    def said(task, policy, tokenizer, problems, *, group_size=1, temperature=1.0, max_new_tokens=None, **how):
        asked.append((len(problems), group_size, temperature, max_new_tokens))
        # right; right with other work; right to a lenient judge; wrong
        texts = ["{}", "{}", "{} wait", "wait"]
        groups = [[finished_row(problem.prompt, texts[i % 4].format(problem.prompt)) for _ in range(group_size)]
                  for i, problem in enumerate(problems)]  # fmt: skip
        for group, problem in zip(groups, problems, strict=True):
            for row in group:
                row.problem = problem
        return groups

    monkeypatch.setattr(environment, "sample", said)
    monkeypatch.setattr(Letters, "work_is_valid", lambda task, problem, response: problem.answer != "0")
    greedy = evaluate(TASK, None, WORDS, 10, max_new_tokens=7)
    assert greedy == {"acc/0": 3 / 5, "acc_strict/0": 2 / 5, "acc_lenient/0": 4 / 5,
                      "acc/1": 3 / 5, "acc_strict/1": 3 / 5, "acc_lenient/1": 4 / 5}  # fmt: skip
    both = evaluate(TASK, None, WORDS, 10, max_new_tokens=7, samples=3, temperature=0.7)
    assert asked == [(10, 1, 0.0, 7), (10, 1, 0.0, 7), (10, 3, 0.7, 7)]
    assert {name: value for name, value in both.items() if not name.startswith("eval/")} == greedy
    assert both["eval/pass@1"] == pytest.approx(0.6) == both["eval/maj@3"] and both["eval/accuracy_lenient"] == 0.8
    assert both["eval/greedy_length"] > 0


def test_evaluation_of_a_real_policy_is_pure(make_model):
    task = Addition((1, 2), form="direct")
    model = make_model(3, vocab_size=addition_tokenizer().vocab_size)
    one, two = (evaluate(task, model, addition_tokenizer(), 5, samples=2) for _ in range(2))
    assert one == two and {"acc/1", "acc/2", "eval/pass@2", "eval/maj@2"} <= one.keys()
    assert all(math.isfinite(value) for value in one.values())


# ---------------------------------------------------------------------------------------------- samples to be read


def logged(tmp_path, groups: list[list[Rollout]], **how) -> list[dict]:
    """What log_samples leaves of these groups."""
    run = Run(RunConfig(out=str(tmp_path / f"run-{len(list(tmp_path.iterdir()))}")))
    log_samples(run, 7, "rollout", TASK, WORDS, groups, **how)
    run.close()
    path = run.folder / "samples.jsonl"
    return read_jsonl(path) if path.exists() else []


def test_a_logged_response_says_all_that_is_known_of_it(tmp_path):
    row = finished_row("7", "7", advantage=0.5)
    cut = finished_row("7", "3 so", "length", advantage=-0.5)
    cut.force(WORDS.encode("wait"))
    compute_rewards(judge(TASK, WORDS, [[row, cut]]), [Accuracy(2.0), Metric(0.1, "words")])
    right, wrong = logged(tmp_path, [[row, cut]], rewarded=True)
    assert right == {
        "step": 7, "kind": "rollout", "group": 0, "difficulty": 1, "prompt": "7", "answer": "7", "response": "7",
        "tokens": 2, "stop_reason": "eos", "right": 1.0, "valid": 1.0, "reward": pytest.approx(2.1),
        "rewards": {"accuracy": 1.0, "metric": 1.0}, "advantage": 0.5, "token_ends": [1, 1], "logprobs": [-1.0, -1.0],
    }  # fmt: skip
    assert (wrong["right"], wrong["stop_reason"], wrong["tokens"], wrong["advantage"]) == (0.0, "length", 3, -0.5)
    assert (wrong["response"], wrong["marked"]) == ("3 so wait", "3 so «wait»")
    plain = logged(tmp_path, [[row, cut]])[0]  # of a test: no reward, no advantage, under the same names
    assert plain.keys() == right.keys() and (plain["reward"], plain["rewards"], plain["advantage"]) == (None, {}, None)
    assert [line["right"] for line in logged(tmp_path, [[row, cut]], verdict=lambda row: 0.25)] == [0.25, 0.25]


def test_the_tokens_of_a_logged_response_have_their_places_log_probs_advantages_and_entropies(tmp_path, make_model):
    row = finished_row("7", "3 so", "length", advantage=-0.5)
    row.force(WORDS.encode("wait"))
    row.logprobs[-3:] = [-0.12345, -2.0, 0.0]
    row.token_advantages = [0.0] * row.prompt_len + [0.25, -0.25, 9.0]
    policy = make_model(3, vocab_size=WORDS.vocab_size)
    (line,) = logged(tmp_path, [[row]], rewarded=True, policy=policy, temperature=0.7)
    assert (line["response"], line["token_ends"]) == ("3 so wait", [1, 4, 9])
    assert (line["logprobs"], line["token_advantages"]) == ([-0.123, -2.0, None], [0.25, -0.25, None])
    with torch.no_grad():  # the entropies by their definition
        logits = policy(torch.tensor([row.tokens]))[0] / 0.7
    p = logits[row.prompt_len - 1 : -2, : WORDS.vocab_size].softmax(-1)
    wanted = (-p * p.log()).sum(-1).tolist()
    assert line["entropies"] == [pytest.approx(wanted[0], abs=1e-3), pytest.approx(wanted[1], abs=1e-3), None]
    shown = demonstration(WORDS, Problem("7", "7"), "7")  # nothing was sampled: nothing is said of its tokens
    assert not {"token_ends", "logprobs"} & logged(tmp_path, [[shown]])[0].keys()


def test_tokens_are_logged_up_to_a_bound_and_the_responses_always(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "LOGGED_TOKENS", 5)
    groups = [[finished_row("7", "7 7", "length"), finished_row("7", "7 so 7", "length")], [finished_row("8", "8 8")]]
    lines = logged(tmp_path, groups, rewarded=True)
    assert [line["tokens"] for line in lines] == [2, 3, 3]
    assert ["logprobs" in line for line in lines] == [True, True, False]


def test_a_text_is_cut_where_its_tokens_end():
    for tokenizer, text in ((WORDS, "3 so wait"), (addition_tokenizer(), "1 2 + 3"), (char_tokenizer("aé\n"), "é\naé"),
                            (word_tokenizer(["a", "\n"], digits=True), "a 407\na 12")):  # fmt: skip
        tokens = tokenizer.encode(text) * 3
        assert token_ends(tokenizer, tokens) == [len(tokenizer.decode(tokens[: t + 1])) for t in range(len(tokens))]
    assert token_ends(WORDS, []) == []


@pytest.mark.parametrize(
    ("groups", "size", "numbers"),
    [(0, 4, []), (1, 4, [0]), (2, 4, [0, 1]), (9, 4, [1, 4, 7]), (9, 1, [1, 4, 7]), (8, 16, [2, 6]), (8, 99, [4])],
)
def test_so_few_whole_groups_are_logged_taken_evenly_from_all(groups, size, numbers, tmp_path):
    rows = [[finished_row(str(g), "1") for _ in range(size)] for g in range(groups)]
    lines = logged(tmp_path, rows)
    assert [line["group"] for line in lines] == [number for number in numbers for _ in range(size)]
    assert all(line["prompt"] == str(line["group"]) for line in lines)


def test_evaluation_logs_greedy_and_sampled_responses_of_every_part_of_the_test_and_the_same_numbers(policy, tmp_path):
    run = Run(RunConfig(out=str(tmp_path / "run")))
    found = evaluate(TASK, policy, WORDS, 10, samples=2, run=run, step=3)
    run.close()
    assert found == evaluate(TASK, policy, WORDS, 10, samples=2)
    lines = read_jsonl(tmp_path / "run" / "samples.jsonl")
    assert [line["kind"] for line in lines] == ["greedy test"] * 3 + ["sampled test"] * 6 + ["one sample each"] * 8
    followed = [line for line in lines if line.get("split") == "test"]  # the same problems at every test
    assert [line["prompt"] for line in followed] == list("01234567") and followed == lines[-8:]
    assert {line["difficulty"] for line in lines[:3]} == {0, 1} and {line["step"] for line in lines} == {3}
