"""s1: what is chosen from a pool and why, what prompts say about length, what its metrics are, and the section."""

import json
import random
from collections import Counter
from dataclasses import replace

import pytest
from nanoreason.recipes.curate import CurateConfig, conditioned, diverse, pool_of, trace_tokens, unsolved, well_formed

from nanoreason.checkpoint import load_checkpoint, save_checkpoint
from nanoreason.evaluate import control, performance, scaling
from nanoreason.experiments import s1
from nanoreason.experiments.reproduce import reproduce
from nanoreason.model import Transformer, small_config
from nanoreason.recipes import budget, curate
from nanoreason.recipes.budget import Thought
from nanoreason.rollout import Problem, demonstration, prompt_row
from nanoreason.run import read_jsonl
from nanoreason.tasks.addition import ThinkingAddition, carries, thinking_tokenizer

WORDS = thinking_tokenizer()


def item(name: str, tokens: int, answer: str = "") -> Problem:
    """A problem of domain name[0] whose trace has so many tokens."""
    return Problem(name, answer, f"<think> {'so ' * tokens}</think> <answer> {answer} </answer>")


def first_letter(problem: Problem) -> str:
    return problem.prompt[0]


# -------------------------------------------------------------------------------------------------- diversity


def test_domains_are_drawn_evenly_whatever_their_size():
    pool = [item(f"a{i}", i) for i in range(400)] + [item(f"b{i}", i) for i in range(60)]
    chosen = diverse(pool, 100, first_letter, trace_tokens, random.Random(0))
    count = Counter(map(first_letter, chosen))
    assert len(set(p.prompt for p in chosen)) == 100 and 35 <= count["b"] <= 60


def test_within_a_domain_the_weights_halve_from_rank_to_rank_of_length():
    pool = [item(f"a{i}", tokens) for i, tokens in enumerate((3, 9, 5, 7))]  # ranks: a1, a3, a2, a0
    draws = Counter(diverse(pool, 1, first_letter, trace_tokens, random.Random(seed))[0].prompt for seed in range(3000))
    shares = [draws[name] / 3000 for name in ("a1", "a3", "a2", "a0")]
    assert shares == pytest.approx([8 / 15, 4 / 15, 2 / 15, 1 / 15], abs=0.03)


def test_with_weight_one_every_problem_of_a_domain_is_as_likely():
    pool = [item(f"a{i}", i) for i in range(4)]
    draws = Counter(
        diverse(pool, 1, first_letter, trace_tokens, random.Random(seed), weight=1.0)[0].prompt for seed in range(2000)
    )
    assert [draws[f"a{i}"] / 2000 for i in range(4)] == pytest.approx([0.25] * 4, abs=0.04)


def test_ranks_are_those_of_what_is_left_and_an_empty_domain_is_drawn_no_more():
    pool = [item("a0", 5), item("b0", 3), item("b1", 9)]
    assert len(diverse(pool, 3, first_letter, trace_tokens, random.Random(1))) == 3
    assert len(diverse(pool, 9, first_letter, trace_tokens, random.Random(1))) == 3
    long = [item(f"a{i}", i) for i in range(5000)]  # 2^-5000 is no float: the shortest are still choosable
    assert len(diverse(long, 5000, first_letter, trace_tokens, random.Random(1))) == 5000


# ---------------------------------------------------------------------------------------- quality and difficulty


def test_broken_traces_and_no_others_are_not_well_formed():
    whole = pool_of(CurateConfig(pool=200, broken=0.0))
    assert all(map(well_formed, whole))
    some = pool_of(CurateConfig(pool=400, broken=0.25))
    good = [problem for problem in some if well_formed(problem)]
    assert 0.68 < len(good) / 400 < 0.82
    assert {p.prompt for p in good} <= {p.prompt for p in some} and pool_of(CurateConfig(pool=200, broken=0.0)) == whole


def test_the_pool_is_not_filtered_for_right_traces_and_has_other_words():
    pool = pool_of(CurateConfig(pool=300, broken=0.0))
    right = [ThinkingAddition().reward(problem, problem.solution) for problem in pool]
    assert 0.5 < sum(right) / 300 < 1.0
    text = " ".join(problem.solution for problem in pool)
    assert text.count("wait") > text.count("Hmm") > 10 and text.count("Alternatively") > 10


def test_difficult_is_what_none_of_the_attempts_solves(monkeypatch):
    tries = {"q0": "1 2", "q1": "2 2", "q2": "2 1", "q3": "1 1"}  # two attempts each; the answer is 1

    def respond(model, words, problems, *, group_size, temperature, **how):
        assert (group_size, temperature) == (2, 1.0)
        asked = [problem.prompt.split()[1] for problem in problems]
        return [
            demonstration(WORDS, replace(problem, prompt="1 + 0"), f"<answer> {attempt} </answer>")
            for problem, name in zip(problems, asked, strict=True)
            for attempt in tries[name].split()
        ]

    monkeypatch.setattr(curate, "respond", respond)
    model = Transformer(small_config(16, 1, 1, WORDS.vocab_size, 64), 0)
    found = unsolved(model, WORDS, [Problem(name, "1") for name in tries], 2, seed=0)
    assert [problem.prompt for problem in found] == ["q1"]


@pytest.mark.parametrize("how", curate.CHOICES)
def test_each_way_to_choose_gives_what_it_names(how, monkeypatch):
    config = CurateConfig(pool=300, choose=40, how=how)
    good = [problem for problem in pool_of(config) if well_formed(problem)]
    hard = [problem for problem in good if carries(problem) == 2]
    monkeypatch.setattr(curate, "unsolved", lambda base, words, problems, attempts, seed: hard)
    chosen, counts = curate.choose(config, None, WORDS)
    assert all(map(well_formed, chosen)) and counts["chosen"] == len(chosen) == (len(good) if how == "all" else 40)
    assert counts["pool"] == 300 and counts["after_quality"] == len(good)
    shortest, mean = min(map(trace_tokens, chosen)), sum(map(trace_tokens, good)) / len(good)
    if how == "s1":
        assert chosen != hard[:40] and all(problem in hard for problem in chosen)
        assert counts["after_difficulty"] == len(hard) and counts["chosen_tokens"] > mean
    elif how == "longest":
        assert shortest >= sorted(map(trace_tokens, good))[-40]
    elif how == "diverse":
        sizes = Counter(map(curate.domain, chosen))
        assert max(sizes.values()) <= 2 * min(sizes.values()) and len(sizes) == 5
    else:
        assert counts["chosen_tokens"] == pytest.approx(mean, rel=0.25)


# --------------------------------------------------------------------------------- prompts that say how long


def test_conditional_prompts_tell_the_truth_about_their_traces():
    pool = [p for p in pool_of(CurateConfig(pool=120, broken=0.0))]
    for before, after in zip(pool, conditioned(pool, "tokens"), strict=True):
        named = int("".join(word for word in after.prompt.split("maximum")[1].split() if word.isdigit()))
        assert trace_tokens(before) <= named < 2 * max(1, trace_tokens(before)) and named & (named - 1) == 0
        assert after.solution == before.solution
    for before, after in zip(pool, conditioned(pool, "steps"), strict=True):
        passes = before.solution.count("so ")
        assert after.prompt.endswith(f"Think for {passes} steps")
        counted = [f"{passes - i} steps left" for i in range(passes)]
        assert all(text in after.solution for text in counted) and after.solution.count("steps left") == passes
        stripped = after.solution
        for text in counted:
            stripped = stripped.replace(text + " ", "", 1)
        assert stripped == before.solution
    named = Counter(problem.prompt.split()[-1] for problem in conditioned(pool, "class"))
    assert set(named) == {"short", "long"} and abs(named["short"] - named["long"]) < 40
    assert conditioned(pool, "none") is pool


# ------------------------------------------------------------------------------------------------------ metrics


def test_control_scaling_and_performance_by_hand():
    assert control([10, 30, 60], [16, 16, 64]) == pytest.approx(2 / 3)
    assert control([10, 30, 60], [64] * 3, least=20) == pytest.approx(2 / 3)
    # slopes: (0.5-0.2)/20 = 0.015, (0.4-0.2)/40 = 0.005, (0.4-0.5)/20 = -0.005; their mean is 0.005 per token
    assert scaling([10, 30, 50], [0.2, 0.5, 0.4], per=100) == pytest.approx(50.0)
    assert scaling([30, 10, 50], [0.5, 0.2, 0.4], per=100) == pytest.approx(50.0)  # in any order
    assert scaling([10, 30, 50], [0.2, 0.5, 0.4], per=1000) == pytest.approx(500.0)
    assert scaling([10, 10], [0.2, 0.9]) == 0.0 and scaling([10, 10, 20], [0.2, 0.4, 0.4]) == pytest.approx(100.0)
    assert performance([0.2, 0.5, 0.4]) == 0.5


def thought(text: str, tokens: int, answer: str = "1") -> Thought:
    """A finished thought of so many tokens that ends in `text`."""
    row = prompt_row(WORDS, Problem("1 + 0", answer, info={"digits": 1}))
    row.tokens += WORDS.encode("<think> " + "so " * tokens + f"</think> <answer> {text}")
    start = row.prompt_len + 1
    return Thought(row, start, start + tokens, done=True)


def test_an_answer_counts_only_where_it_is_closed_and_alone():
    for text, right in (("1 </answer>", True), ("2 </answer>", False), ("1", False), ("1 <answer> 1 </answer>", False)):
        assert budget.is_right(WORDS, thought(text, 3)) == right


def test_rejection_takes_the_first_sample_that_fits_and_the_majority_votes(monkeypatch):
    """Two problems of four samples: (tokens, answer); 1 is right."""
    samples = [[(30, 1), (10, 2), (12, 1), (8, 2)], [(20, 1), (25, 1), (40, 2), (30, 1)]]
    thoughts = [thought(f"{answer} </answer>", tokens) for group in samples for tokens, answer in group]
    monkeypatch.setattr(budget, "forced", lambda *how: thoughts)
    config = budget.BudgetConfig(budgets=(8, 12, 30), samples=4, problems=1)
    lines = [line for line, _ in budget.by_samples(config, None, WORDS)]
    rejection = [line for line in lines if line["kind"] == "rejection"]
    # budget 8: 4th sample (wrong); none fits, the shortest (right). 12: 2nd (wrong); the shortest. 30: 1st of each
    assert [line["accuracy"] for line in rejection] == [0.5, 0.5, 1.0]
    assert [line["thinking"] for line in rejection] == [14, 15, 25]
    assert [line["tries"] for line in rejection] == [4, 3, 1]
    assert [line["within"] for line in rejection] == [0.5, 0.5, 1.0]
    majority = [line for line in lines if line["kind"] == "majority"]
    assert [line["asked"] for line in majority] == [1, 2, 4]
    assert [line["thinking"] for line in majority] == pytest.approx([175 / 8, 175 / 4, 175 / 2])
    assert majority[-1]["accuracy"] == 0.75  # 2:2 is half right, 3:1 is right


# -------------------------------------------------------------------------------------------------- the recipes


@pytest.fixture
def base(tmp_path) -> str:
    save_checkpoint(tmp_path / "base", Transformer(small_config(32, 2, 2, WORDS.vocab_size, 256), 1), WORDS)
    return str(tmp_path / "base")


def test_curation_trains_on_the_chosen_and_goes_on_bit_equal(base, tmp_path, assert_same_weights, monkeypatch):
    config = replace(curate.PRESETS["tiny"], base=base, out=str(tmp_path / "run"), how="random")
    line = curate.run(config)
    assert line["chosen"] == 12 and line["step"] == 2
    assert {"prompt", "response"} <= read_jsonl(tmp_path / "run" / "samples.jsonl")[0].keys()
    before, _ = load_checkpoint(tmp_path / "run" / "policy")
    curate.run(replace(config, resume=True))  # nothing is left to do
    after, _ = load_checkpoint(tmp_path / "run" / "policy")
    assert_same_weights(before, after)


def test_every_method_leaves_lines_with_what_it_asked_and_what_came(base, tmp_path):
    config = replace(
        budget.PRESETS["tiny"], base=base, methods=tuple(budget.METHODS), problems=3, out=str(tmp_path / "run")
    )
    budget.run(config)
    lines = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert {line["method"] for line in lines} == set(budget.METHODS)
    for line in lines:
        assert 0 <= line["accuracy"] <= 1
        if line["method"] in ("forcing", "until") or line.get("enforced"):
            assert line["within"] == 1.0 and line["thinking"] <= line["most"]
        if line["method"] == "until":
            assert line["most"] - 1 <= line["thinking"]  # a "wait" that nothing could follow is not appended
    json.dumps(lines, allow_nan=False)


@pytest.mark.parametrize("wrong", [{"base": ""}, {"methods": ("magic",)}])
def test_a_wrong_setting_is_one_clear_error(wrong, base, tmp_path):
    with pytest.raises(ValueError, match="--base|magic"):
        budget.run(replace(budget.PRESETS["tiny"], **{"base": base, "out": str(tmp_path / "x"), **wrong}))
    with pytest.raises(ValueError, match="--base|--how"):
        curate.run(CurateConfig(out=str(tmp_path / "y"), base="" if "base" in wrong else base, how="magic"))


# -------------------------------------------------------------------------------------------------- the section


def test_reproduce_s1_at_tiny_size(tmp_path):
    summary = reproduce("s1", "tiny", 1, tmp_path, "cpu", workers=1)
    assert [claim.name for claim in s1.claims("tiny")] == [line["name"] for line in summary["claims"]]
    # at this size no vote may take as few tokens as thinking does
    assert all(line["mean"] is not None or "majority" in line["name"] for line in summary["claims"])
    assert summary["numbers"]["budget forcing"]["control"] == {"0": 1.0}
    thinking = [seeds["0"] for seeds in summary["numbers"]["forced both ways"]["thinking"].values()]
    assert thinking == pytest.approx([4, 8, 16], abs=1)
