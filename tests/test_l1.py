"""L1: prompts that ask for a length, the rewards that go with them, what is measured at a target, and the section."""

import math
from collections import Counter
from dataclasses import replace

import pytest
from nanoreason.practice import held_out, judge, posed

from nanoreason.checkpoint import save_checkpoint
from nanoreason.experiments import l1
from nanoreason.experiments.reproduce import reproduce
from nanoreason.model import Transformer, small_config
from nanoreason.recipes import budget, grpo, sft
from nanoreason.recipes.grpo import GrpoConfig, with_algorithm
from nanoreason.rewards import with_template
from nanoreason.rollout import demonstration
from nanoreason.run import read_jsonl
from nanoreason.tasks.addition import thinking_tokenizer

WORDS = thinking_tokenizer()
CONFIG = GrpoConfig(
    base="x", task="thinking", template="skeleton", digits=(1, 2), asked="both", asked_tokens=(8, 96),
    length_reward="lcpo", lcpo_alpha=0.01, overlong_share=0.0,
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize("asked", ["exact", "max", "both"])
def test_every_problem_asks_for_a_length_drawn_evenly_and_says_the_number_it_is_judged_by(asked):
    problems = [posed(replace(CONFIG, asked=asked), "rl", i) for i in range(800)]
    kinds = Counter(problem.info["kind"] for problem in problems)
    assert set(kinds) == ({"exact", "max"} if asked == "both" else {asked})
    assert asked != "both" or abs(kinds["max"] - 400) < 60
    for problem in problems:
        target, words = problem.info["target_tokens"], problem.prompt.split()
        said = "".join(word for word in words[words.index("Think") :] if word.isdigit())
        assert int(said) == target and ("maximum" in words) == (problem.info["kind"] == "max")
    targets = [problem.info["target_tokens"] for problem in problems]
    assert min(targets) == 8 and max(targets) == 96 and 49 < sum(targets) / 800 < 55
    assert problems[:5] == [posed(replace(CONFIG, asked=asked), "rl", i) for i in range(5)]


def test_held_out_problems_ask_too_and_without_the_switch_nobody_asks():
    assert all("Think for" in problem.prompt for problem in held_out(CONFIG))
    plain = replace(CONFIG, asked="none", length_reward="none")
    for problem in (*held_out(plain), posed(plain, "rl", 3)):
        assert "Think" not in problem.prompt and "target_tokens" not in problem.info


def test_demonstrations_ask_for_about_their_own_length_as_often_as_they_shall():
    """Exactly: a quarter more or a fifth less. At most: no less than it is. The others: any number, right or not."""
    config = sft.SftConfig(form="thinking", digits=(1, 2), modes=(0.1, 0.3, 0.6), asked_share=1.0, asked_true=1.0)
    low, high = config.asked_tokens
    kinds = set()
    for problem in [sft.posed(config, "train", i) for i in range(300)]:
        length, amount = len(problem.solution.split()), problem.info["target_tokens"]
        assert low <= amount <= high
        if low <= length <= high:
            kinds.add(problem.info["kind"])
            nearest = max(low, round(0.8 * length)), min(high, round(1.25 * length))
            assert nearest[0] <= amount <= nearest[1] if problem.info["kind"] == "exact" else amount >= length
    assert kinds == {"exact", "max"}
    untrue = [sft.posed(replace(config, asked_true=0.0), "train", i) for i in range(300)]
    far = [p for p in untrue if not 0.8 <= p.info["target_tokens"] / len(p.solution.split()) <= 1.25]
    assert len(far) > 150
    assert [p.solution for p in untrue] == [sft.posed(config, "train", i).solution for i in range(300)]


def test_the_sum_of_a_problem_does_not_depend_on_what_is_asked():
    plain = replace(CONFIG, asked="none", length_reward="none")
    for i in range(20):
        assert posed(CONFIG, "rl", i).prompt.split(" Think ")[0] == posed(plain, "rl", i).prompt


@pytest.mark.parametrize("wrong", [{"asked": "none"}, {"task": "addition"}, {"asked": "loudly"}])
def test_a_length_reward_without_a_length_is_an_error(wrong):
    with pytest.raises(ValueError, match="--asked"):
        with_algorithm(replace(CONFIG, **wrong))


# ------------------------------------------------------------------------------------------------------- rewards


def test_each_row_is_rewarded_as_its_own_prompt_asks():
    config = with_algorithm(CONFIG)
    problems = [posed(config, "rl", i) for i in range(30)]
    rows = []
    for i, problem in enumerate(problems):
        answer = problem.answer if i % 3 else "0 0 0 0"
        text = f"<think> {'so ' * (3 * i)}</think> <answer> {answer} </answer>"
        rows.append(demonstration(WORDS, with_template(problem, "skeleton"), text))
    parts = judge(config, WORDS, rows)
    for i, row in enumerate(rows):
        right, miss = i % 3 != 0, row.problem.info["target_tokens"] - len(row.response)  # the EOS counts
        expected = right - 0.01 * abs(miss) if row.problem.info["kind"] == "exact" else right * min(
            1, max(0, 0.01 * miss + 0.5)
        )  # fmt: skip
        assert row.reward == pytest.approx(expected)
        assert parts["accuracy"][i] == right  # what is reported as accuracy stays the verdict


# ----------------------------------------------------------------------------------------------------- measuring


@pytest.fixture
def base(tmp_path) -> str:
    save_checkpoint(tmp_path / "base", Transformer(small_config(32, 2, 2, WORDS.vocab_size, 256), 1), WORDS)
    return str(tmp_path / "base")


def test_a_line_at_a_target_by_hand():
    rows = []
    for length, digits in ((6, 1), (12, 1), (15, 2)):
        problem = replace(posed(CONFIG, "rl", 0), info={"digits": digits})
        rows.append(demonstration(WORDS, problem, " ".join(["so"] * (length - 1))))
        rows[-1].stop_reason = "length" if length == 15 else "stop"
    line = budget.target_line(rows, [True, False, True], 10)
    assert line["error"] == pytest.approx(0.1) and line["mae"] == pytest.approx((4 + 2 + 5) / 30)
    assert line["thinking"] == 11 and line["within"] == line["cut"] == pytest.approx(1 / 3) and line["most"] == 10
    assert line["accuracy"] == pytest.approx(2 / 3) and line["accuracy/1"] == 0.5 and line["accuracy/2"] == 1.0
    assert line["tokens/1"] == 9 and line["tokens/2"] == 15


def test_where_each_kind_of_response_is_cut(base, tmp_path):
    """Of an untrained model, which ends anywhere: exact at 2 N, truncated at N, free and max at the context alone."""
    config = replace(
        budget.PRESETS["tiny"], base=base, methods=("exact", "truncated", "free", "max", "s1"), budgets=(12, 16),
        problems=20, out=str(tmp_path / "run"), answer_tokens=4,
    )  # fmt: skip
    budget.run(config)
    lines = {(line["method"], line["asked"]): line for line in read_jsonl(tmp_path / "run" / "metrics.jsonl")}
    for n in (12, 16):
        assert lines["truncated", n]["within"] == lines["s1", n]["within"] == 1.0
        assert lines["s1", n]["thinking"] >= n - 5  # an answer may end before its budget, and a wait may not fit
        assert lines["truncated", n]["thinking"] < lines["exact", n]["thinking"] < lines["free", n]["thinking"]
        assert lines["exact", n]["thinking"] < 2 * n
        assert lines["truncated", n]["cut"] > lines["exact", n]["cut"] > lines["free", n]["cut"] == 0.0
    samples = {(line["method"], line["step"]): line["text"] for line in read_jsonl(tmp_path / "run" / "samples.jsonl")}
    assert all(("maximum" in text.split(":")[1]) == (method == "max") for (method, _), text in samples.items())


# ------------------------------------------------------------------------------------------------------- section


def written(obeys: float = 1.0, gain: float = 0.1, easy: float = 0.6) -> list[dict]:
    """Lines as a successful run leaves them: `exact` has `obeys` of the tokens asked, `gain` per doubling."""
    lines = []
    for seed, shift in ((0, 0.01), (1, -0.01)):
        for arm, method in (*l1.MEASURED.values(),):
            for target in l1.PRESETS["cpu"].budget.budgets:
                tokens = {"test_exact": obeys * target, "test_max": 0.8 * target}.get(arm, 40.0)
                tokens = target if method in ("truncated", "s1") else tokens
                accuracy = 0.3 + gain * math.log2(target / 12) + shift
                if method == "truncated":
                    accuracy = 0.0
                lines.append({
                    "arm": arm, "seed": seed, "step": 1, "method": method, "asked": target, "most": target,
                    "accuracy": accuracy - 0.05 * (method == "s1"), "thinking": tokens, "error": tokens / target - 1,
                    "mae": abs(tokens / target - 1) + 0.1, "within": 0.95,
                    "tokens/1": tokens * (easy if arm == "test_max" else 1.0), "tokens/2": tokens,
                })  # fmt: skip
        for arm in ("exact", "max", "plain"):
            lines += [
                {"arm": arm, "seed": seed, "step": s, "reward": 0.1 * s, "completions/mean_length": 9.0} for s in (1, 2)
            ]
    return lines


def results(lines: list[dict]) -> dict[str, bool]:
    return {line["name"]: line["passed"] for line in (criterion.line() for criterion in l1.summarise(lines, "cpu")[1])}


def test_the_criteria_pass_on_what_the_paper_saw_and_fail_on_its_opposite(tmp_path):
    assert all(results(written()).values())
    failed = [name.split(":")[0] for name, passed in results(written(obeys=0.7)).items() if not passed]
    assert failed == ["exact", "exact"]
    assert sum(not passed for passed in results(written(gain=0.0)).values()) == 1
    assert [name for name, passed in results(written(easy=1.0)).items() if not passed] == [
        "max: tokens on 1 digit / on 2"
    ]
    arms, _ = l1.summarise(written(obeys=1.1), "cpu")
    assert arms["exact"]["signed_error"] == pytest.approx(0.1)
    assert arms["exact"]["mean_absolute_error"] == pytest.approx(0.2)
    assert arms["exact"]["tokens_per_token_asked"] == pytest.approx(1.1)
    assert arms["exact"]["accuracy_per_doubling"] == pytest.approx(0.1)
    assert arms["exact"]["signed_error_beyond_training"] == pytest.approx(0.1)
    l1.draw(written(), "cpu", tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_max_goes_on_from_exact_and_plain_has_the_prompt_without_the_reward(tmp_path):
    base, (exact, plain), (maximum,), tests = l1.stages("cpu", 0, tmp_path)
    assert exact.config.base == plain.config.base == str(tmp_path / "base" / "policy")
    assert maximum.config.base == str(tmp_path / "exact" / "policy")
    assert (exact.config.asked, plain.config.asked, maximum.config.asked) == ("exact", "exact", "both")
    assert (exact.config.length_reward, plain.config.length_reward) == ("lcpo", "none")
    assert {job.arm for job in tests} == {arm for arm, _ in l1.MEASURED.values()}
    low, high = exact.config.asked_tokens
    assert exact.config.lcpo_alpha * (high - low) == pytest.approx(1.17, abs=0.15)  # as in the paper
    assert max(l1.PRESETS["cpu"].budget.budgets) > high and exact.config.max_new_tokens > high


def test_reproduce_l1_at_tiny_size(tmp_path):
    summary = reproduce("l1", "tiny", 1, tmp_path, "cpu", workers=1)
    assert len(summary["criteria"]) == len(results(written()))
    assert set(summary["arms"]) == set(l1.MEASURED)
    assert summary["arms"]["truncated"]["signed_error"] <= 0 and grpo.PRESETS
