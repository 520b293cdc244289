"""Which demonstrations are chosen, of a teacher or of a pool; what their prompts say; that a policy learns them."""

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from nanoreason.checkpoint import load_checkpoint, save_checkpoint
from nanoreason.model import Transformer, small_config
from nanoreason.prompts import is_well_formed, spaced, with_template
from nanoreason.recipes import select, sft
from nanoreason.recipes.select import SelectConfig, Trace, collected, conditioned, diverse, thinking_tokens
from nanoreason.rollout import Problem, demonstration
from nanoreason.run import read_jsonl
from nanoreason.tasks import Addition, Attempts, ThinkingAddition
from nanoreason.tasks.attempts import Mixture, read_attempts
from nanoreason.tasks.thinking import carries, read_thinking
from nanoreason.tasks.wrappers import Templated

SHIPPED = str(Path(__file__).parent.parent / "data" / "checkpoints" / "thinking-addition")
BARE = ThinkingAddition((1, 2), error_prob=0.2, modes=(0.0, 0.5, 0.5), extra_recheck_prob=0.2)
TASK = Templated(BARE)
WORDS = TASK.tokenizer()
POOL = SelectConfig(task=TASK, problems=300, broken_share=0.15, keep="all")
TAUGHT = replace(select.PRESETS["tiny"], teacher=SHIPPED, problems=20)


def choices(name: str) -> tuple[str, ...]:
    return get_args(get_type_hints(SelectConfig)[name])


def traces_of(config: SelectConfig = POOL) -> list[Trace]:
    return collected(config)[0]


def good_of(config: SelectConfig = POOL) -> list[Trace]:
    return [trace for trace in traces_of(config) if is_well_formed(trace.text)]


def written(out: Path) -> list[dict]:
    return read_jsonl(out / "demonstrations.jsonl")


# -------------------------------------------------------------------------------------------------- diversity


def item(name: str, tokens: int) -> tuple[str, int]:
    """An item of domain name[0] and of so many tokens."""
    return name, tokens


def pick(pool: list, count: int, seed: int = 1, **how) -> list:
    return diverse(pool, count, lambda one: one[0][0], lambda one: one[1], random.Random(seed), **how)


def test_domains_are_drawn_evenly_whatever_their_size():
    picked = pick([item(f"a{i}", i) for i in range(400)] + [item(f"b{i}", i) for i in range(60)], 100)
    count = Counter(name[0] for name, _ in picked)
    assert len(set(picked)) == 100 and 35 <= count["b"] <= 60


def test_within_a_domain_the_weights_halve_from_rank_to_rank_of_length():
    pool = [item(f"a{i}", tokens) for i, tokens in enumerate((3, 9, 5, 7))]  # ranks: a1, a3, a2, a0
    draws = Counter(pick(pool, 1, seed)[0][0] for seed in range(3000))
    shares = [draws[name] / 3000 for name in ("a1", "a3", "a2", "a0")]
    assert shares == pytest.approx([8 / 15, 4 / 15, 2 / 15, 1 / 15], abs=0.03)


def test_with_weight_one_every_problem_of_a_domain_is_as_likely():
    pool = [item(f"a{i}", i) for i in range(4)]
    draws = Counter(pick(pool, 1, seed, weight=1.0)[0][0] for seed in range(2000))
    assert [draws[f"a{i}"] / 2000 for i in range(4)] == pytest.approx([0.25] * 4, abs=0.04)


def test_ranks_are_those_of_what_is_left_and_an_empty_domain_is_drawn_no_more():
    pool = [item("a0", 5), item("b0", 3), item("b1", 9)]
    assert len(pick(pool, 3)) == len(pick(pool, 9)) == 3
    long = [item(f"a{i}", i) for i in range(2500)]  # 2^-2500 is no float: the shortest are still choosable
    assert len(pick(long, 2500)) == 2500


# ------------------------------------------------------------------------------------------------------- the pool


def test_broken_traces_and_no_others_are_not_well_formed():
    whole = replace(POOL, problems=400, broken_share=0.0)
    assert len(good_of(whole)) == 400
    some, good = replace(whole, broken_share=0.25), good_of(replace(whole, broken_share=0.25))
    assert 0.68 < len(good) / 400 < 0.82
    unbroken = traces_of(whole)
    assert all(trace in unbroken for trace in good)  # what is not broken is as it was
    for trace, before in zip(traces_of(some), unbroken, strict=True):
        assert before.text.startswith(trace.text) and trace.problem == before.problem and trace.mode == before.mode


def test_the_pool_is_not_filtered_for_right_traces():
    config = replace(POOL, broken_share=0.0)
    pool = traces_of(config)
    assert all(trace.right == (BARE.reward(trace.problem, trace.text) == 1) for trace in pool)
    assert 0.5 < sum(trace.right for trace in pool) / 300 < 1.0
    assert {trace.mode for trace in pool} == {"steps", "recheck"}
    assert all(trace.tokens == len(WORDS.encode(trace.text)) + 1 for trace in pool)  # the end counts


# ------------------------------------------------------------------------------------ difficulty, each way to choose


def test_difficult_is_what_none_of_the_attempts_solves(monkeypatch):
    tries = {"1 + 0": "1 2", "2 + 0": "3 3", "3 + 0": "4 3", "4 + 0": "4 4"}  # two attempts each

    def sample(task, policy, tokenizer, problems, *, group_size, temperature, **how):
        assert (group_size, temperature) == (2, 1.0)
        assert [problem.prompt for problem in problems] == [f"User: {name} Assistant:" for name in tries]
        return [
            [demonstration(tokenizer, problem, f"<think> </think> <answer> {n} </answer>") for n in attempts.split()]
            for problem, attempts in zip(problems, tries.values(), strict=True)
        ]

    monkeypatch.setattr(select, "sample", sample)
    traces = [Trace(Problem(name, name[0], info={"digits": 1}), "", True, "steps", 5) for name in tries]
    config = SelectConfig(task=TASK, how="s1", base=SHIPPED, attempts=2)
    assert [trace.problem.prompt for trace in select.unsolved(config, traces)] == ["2 + 0"]


@pytest.mark.parametrize("how", choices("how"))
def test_each_way_to_choose_gives_what_it_names(how, monkeypatch, tmp_path):
    choose = 0 if how == "all" else 40
    config = replace(POOL, how=how, choose=choose, base=SHIPPED, out=str(tmp_path))
    good = good_of(config)
    hard = [trace for trace in good if carries(trace.problem) >= 1]
    asked = []
    monkeypatch.setattr(select, "unsolved", lambda config, traces: asked.append(traces) or hard)
    metrics = select.run(config)
    assert asked == ([good] if how == "s1" else [])  # difficulty is asked of what passed for its quality
    by_line = {(with_template(t.problem, "skeleton").prompt, t.text): t for t in good}
    picked = [by_line[line["prompt"], line["response"]] for line in written(tmp_path)]
    lengths, every = [trace.tokens for trace in picked], [trace.tokens for trace in good]
    assert len(picked) == metrics["chosen"] == metrics["kept"] == (len(good) if how == "all" else 40)
    every_line = Counter((with_template(t.problem, "skeleton").prompt, t.text) for t in good)  # small sums occur twice
    assert Counter((line["prompt"], line["response"]) for line in written(tmp_path)) <= every_line
    assert metrics["pool"] == 300 and metrics["after_quality"] == len(good) < 300
    assert metrics["chosen_tokens"] == pytest.approx(sum(lengths) / len(lengths))
    assert metrics["chosen_right"] == pytest.approx(sum(trace.right for trace in picked) / len(picked))
    assert metrics["chosen_domains"] == len({BARE.domain(trace.problem) for trace in picked})
    if how == "s1":
        assert picked != hard[:40] and all(trace in hard for trace in picked)
        assert metrics["after_difficulty"] == len(hard) and sum(lengths) / 40 > sum(every) / len(every)
    elif how == "longest":
        assert sorted(lengths) == sorted(every)[-40:]
    elif how == "diverse":
        sizes = Counter(BARE.domain(trace.problem) for trace in picked)
        assert max(sizes.values()) <= 2 * min(sizes.values()) and len(sizes) == 5
    elif how in ("all", "first"):
        assert picked == good[: len(picked)]
    else:
        assert picked != good[:40] and sum(lengths) / 40 == pytest.approx(sum(every) / len(every), rel=0.25)


def test_with_fewer_than_were_asked_for_all_are_chosen(tmp_path):
    for how in ("first", "random", "longest", "diverse"):
        metrics = select.run(replace(POOL, how=how, choose=1000, out=str(tmp_path / how)))
        assert metrics["chosen"] == metrics["after_quality"]
        texts = sorted((line["prompt"], line["response"]) for line in written(tmp_path / how))
        assert texts == sorted((with_template(t.problem, "skeleton").prompt, t.text) for t in good_of())


def test_a_choice_is_a_function_of_the_seed(tmp_path):
    def chosen(name: str, **settings) -> list[dict]:
        select.run(replace(POOL, how="random", choose=20, out=str(tmp_path / name), **settings))
        return written(tmp_path / name)

    assert chosen("a") == chosen("b") != chosen("c", seed=1)


@pytest.mark.parametrize("keep", choices("keep"))
@pytest.mark.parametrize("modes", [(), ("recheck",), ("direct", "steps")])
def test_of_a_pool_too_what_is_kept_is_right_or_wrong_as_asked_and_in_the_modes(keep, modes, tmp_path):
    config = replace(POOL, keep=keep, modes=modes, out=str(tmp_path))
    select.run(config)
    verdicts = {"right": {True}, "wrong": {False}, "all": {True, False}}[keep]
    wanted = [t for t in good_of(config) if t.right in verdicts and (not modes or t.mode in modes)]
    assert [line["response"] for line in written(tmp_path)] == [trace.text for trace in wanted]
    assert len(wanted) > 10


# ----------------------------------------------------------------------------------- prompts that say how long to think


def test_conditional_prompts_tell_the_truth_about_their_traces():
    pool = traces_of(replace(POOL, problems=120, broken_share=0.0))
    for before, (problem, text) in zip(pool, conditioned(pool, "tokens"), strict=True):
        named = int("".join(word for word in problem.prompt.split("maximum")[1].split() if word.isdigit()))
        tokens = read_thinking(text).tokens
        assert tokens <= named < 2 * max(1, tokens) and named & (named - 1) == 0
        assert text == before.text == problem.solution
    for before, (problem, text) in zip(pool, conditioned(pool, "steps"), strict=True):
        passes = before.text.count("so ")
        assert problem.prompt == f"{before.problem.prompt} Think for {passes} steps"
        counted = [f"{passes - i} steps left" for i in range(passes)]
        assert all(part in text for part in counted) and text.count("steps left") == passes
        stripped = text
        for part in counted:
            stripped = stripped.replace(part + " ", "", 1)
        assert stripped == before.text and is_well_formed(text)
    named = Counter()
    median = sorted(thinking_tokens(trace.text) for trace in pool)[60]
    for before, (problem, text) in zip(pool, conditioned(pool, "class"), strict=True):
        name = problem.prompt.split()[-1]
        named[name] += 1
        assert text == before.text and (thinking_tokens(text) <= median if name == "short" else True)
    assert set(named) == {"short", "long"} and abs(named["short"] - named["long"]) < 40
    assert conditioned(pool, "") == [(replace(trace.problem, solution=trace.text), trace.text) for trace in pool]


def test_each_condition_is_a_file_of_its_own_about_the_same_traces_in_words_of_the_vocabulary(tmp_path):
    select.run(replace(POOL, conditions=select.CONDITIONS, how="first", choose=30, out=str(tmp_path)))
    plain = written(tmp_path)
    for condition in ("", *select.CONDITIONS):
        lines = read_jsonl(tmp_path / f"demonstrations-{condition}.jsonl") if condition else plain
        assert len(lines) == 30
        for line, before in zip(lines, plain, strict=True):
            assert line["prompt"].startswith("User: ") and line["prompt"].endswith(" Assistant:")
            assert ("Think" in line["prompt"]) == (condition != "")
            assert line["prompt"].startswith(before["prompt"].removesuffix(" Assistant:"))
            WORDS.encode(line["prompt"] + " " + line["response"])
    shown = read_jsonl(tmp_path / "samples.jsonl")
    assert [line["kind"] for line in shown[::3]] == ["chosen", *(f"chosen {name}" for name in select.CONDITIONS)]
    assert [line["prompt"] for line in shown[:3]] == [plain[i]["prompt"] for i in (5, 15, 25)]
    assert [line["right"] for line in shown] == [float(TASK.reward(Problem("", line["answer"]), line["response"]))
                                                 for line in shown]  # fmt: skip


def test_attempts_are_counted_down_and_a_thought_may_begin_with_wait():
    task = Attempts(shares=Mixture.parse("long:1"), wait_first=0.5)
    pool = traces_of(SelectConfig(task=task, problems=60))
    assert any(trace.text.startswith("<think> wait") for trace in pool)
    for before, (problem, text) in zip(pool, conditioned(pool, "steps"), strict=True):
        tried = len(read_attempts(problem.info["numbers"], problem.info["target"], before.text).attempts)
        assert problem.prompt == f"{before.problem.prompt} Think for {spaced(tried)} steps"
        assert all(f"{spaced(n)} steps left" in text for n in range(1, tried + 1)) and is_well_formed(text)
        assert task.reward(problem, text) == task.reward(problem, before.text)
        task.tokenizer().encode(f"{problem.prompt} {text}")


# -------------------------------------------------------------------------------------------------------- a teacher


def test_what_is_kept_of_a_teacher_is_right_or_wrong_as_asked_in_the_format_and_in_the_modes(tmp_path):
    task = ThinkingAddition((1, 2))
    taught = replace(TAUGHT, task=Templated(task), samples=4)
    problems = {with_template(p, "skeleton").prompt: p for p in (task.problem("select-0", i) for i in range(20))}
    lines, metrics = {}, {}
    for keep in choices("keep"):
        metrics[keep] = select.run(replace(taught, keep=keep, out=str(tmp_path / keep)))
        lines[keep] = written(tmp_path / keep)
    for keep, expected in (("right", {1.0}), ("wrong", {0.0}), ("all", {0.0, 1.0})):
        assert {task.reward(problems[line["prompt"]], line["response"]) for line in lines[keep]} == expected
        assert all(is_well_formed(line["response"]) for line in lines[keep])
        assert metrics[keep]["kept"] == len(lines[keep])
    both = lines["right"] + lines["wrong"]
    assert len(both) == len(lines["all"]) <= 80 and sorted(map(str, both)) == sorted(map(str, lines["all"]))
    assert metrics["all"]["pool"] == 80 and metrics["all"]["after_quality"] == len(lines["all"])
    assert metrics["all"]["accuracy"] == pytest.approx(len(lines["right"]) / 80, abs=0.05)  # a few are right untagged
    assert metrics["all"]["format"] == pytest.approx(len(lines["all"]) / 80)
    assert metrics["all"]["tokens"] > sum(len(WORDS.encode(line["response"])) for line in lines["all"])

    found = select.run(replace(taught, modes=("steps",), how="first", choose=3, out=str(tmp_path / "steps")))
    steps = written(tmp_path / "steps")
    assert len(steps) == found["kept"] == 3 and {read_thinking(line["response"]).mode for line in steps} == {"steps"}
    of_all = [line for line in lines["right"] if read_thinking(line["response"]).mode == "steps"]
    assert steps == of_all[:3]
    with pytest.raises(ValueError, match="none of 80 traces is kept.*--modes"):
        select.run(replace(taught, modes=("search",), out=str(tmp_path / "none")))
    assert not (tmp_path / "none").exists()


def test_what_was_cut_is_not_kept(tmp_path):
    with pytest.raises(ValueError, match="0.000 in the format"):
        select.run(replace(TAUGHT, keep="all", max_new_tokens=4, out=str(tmp_path / "run")))


@pytest.mark.trains
def test_what_a_teacher_wrote_is_learnt_by_another(tmp_path):
    """Of untrained weights: a student that has seen nothing else writes in the format of the teacher."""
    task = Templated(ThinkingAddition((1,)))
    select.run(replace(TAUGHT, problems=60, modes=("steps",), out=str(tmp_path / "data")))
    lines = written(tmp_path / "data")
    save_checkpoint(tmp_path / "base", Transformer(small_config(32, 2, 2, WORDS.vocab_size, 96), 1), WORDS)
    config = sft.SftConfig(
        base=str(tmp_path / "base"), data=str(tmp_path / "data" / "demonstrations.jsonl"), steps=60, rows_per_step=16,
        lr=1e-2, warmup=3, log_every=1, out=str(tmp_path / "run"),
    )  # fmt: skip
    sft.run(config)
    losses = [line["loss"] for line in read_jsonl(tmp_path / "run" / "metrics.jsonl")]
    assert len(lines) > 20 and losses[-1] < 0.3 * losses[0]
    student, tokenizer = load_checkpoint(tmp_path / "run" / "policy")
    problems = [task.problem("test", i) for i in range(20)]
    groups = select.sample(task, student, tokenizer, problems, temperature=0.0, max_new_tokens=30)
    assert sum(is_well_formed(one.text) for one in select.judge(task, tokenizer, groups)) >= 10


# -------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"how": "s1", "base": ""}, "--how s1 needs --base"),
        *[({"how": how}, f"--how {how} needs --choose") for how in ("first", "random", "longest", "diverse")],
        ({"modes": ("search",)}, "none of 300 traces is kept"),
        ({"broken_share": 1.0}, "none of 300 traces is kept.*0.000 in the format"),
        ({"conditions": ("tokens", "pages")}, "--conditions pages: use tokens, steps, class"),
        ({"teacher": "nowhere"}, "no checkpoint at nowhere"),
        ({"task": Addition((1,))}, "none of 300 traces is kept"),  # its solutions have no tags
    ],
    ids=str,
)
def test_what_cannot_work_is_one_clear_error_before_anything_is_written(wrong, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        select.run(replace(POOL, out=str(tmp_path / "run"), **wrong))
    assert not (tmp_path / "run").exists()


def test_a_file_is_written_again_as_it_was_on_resume_and_not_overwritten_without(tmp_path):
    config = replace(POOL, how="random", choose=5, out=str(tmp_path / "run"))
    select.run(config)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.jsonl")}
    with pytest.raises(FileExistsError, match="--resume"):
        select.run(replace(config, choose=6))
    select.run(replace(config, resume=True))
    after = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.jsonl")}
    assert before == after and set(before) == {"demonstrations.jsonl", "metrics.jsonl", "samples.jsonl"}
    assert all(
        json.loads(line).keys() == {"prompt", "response"} for line in before["demonstrations.jsonl"].splitlines()
    )
