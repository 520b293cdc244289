"""Choosing demonstrations: a teacher or a pool, what is kept of it, how it is chosen, what is written."""

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from nanoreason.__main__ import main
from nanoreason.checkpoint import load_checkpoint, save_checkpoint
from nanoreason.environment import judge
from nanoreason.model import Transformer, small_config
from nanoreason.prompts import is_well_formed, with_template
from nanoreason.recipes import select, sft
from nanoreason.recipes.select import SelectConfig, Trace, collected, conditioned, diverse, pick, thinking_tokens
from nanoreason.rollout import Problem, demonstration
from nanoreason.run import read_jsonl
from nanoreason.tasks import ThinkingAddition
from nanoreason.tasks.thinking import carries, read_thinking, thinking_tokenizer
from nanoreason.tasks.wrappers import AskedLength, Templated

WORDS = thinking_tokenizer()
THINKER = str(Path(__file__).parent.parent / "data" / "checkpoints" / "thinking-addition")
TEACHING = replace(select.PRESETS["tiny"], teacher=THINKER, problems=30)
# As s1 collected them: every third answered at once, some with errors, half of the thinking with a second look.
POOL = SelectConfig(task=Templated(ThinkingAddition(modes=(0.0, 0.5, 0.5))), problems=300, keep="all",
                    other_word_share=0.3)  # fmt: skip


def trace(name: str, tokens: int, answer: str = "") -> Trace:
    """A trace of so many tokens to a problem of domain name[0]."""
    text = f"<think> {'so ' * tokens}</think> <answer> {answer} </answer>"
    return Trace(Problem(name, answer), text, True, "steps", tokens)


def first_letter(one: Trace) -> str:
    return one.problem.prompt[0]


def tokens_of(one: Trace) -> int:
    return one.tokens


# -------------------------------------------------------------------------------------------------- diversity


def test_domains_are_drawn_evenly_whatever_their_size():
    pool = [trace(f"a{i}", i) for i in range(400)] + [trace(f"b{i}", i) for i in range(60)]
    chosen = diverse(pool, 100, first_letter, tokens_of, random.Random(0))
    count = Counter(map(first_letter, chosen))
    assert len(set(one.problem.prompt for one in chosen)) == 100 and 35 <= count["b"] <= 60


def test_within_a_domain_the_weights_halve_from_rank_to_rank_of_length():
    pool = [trace(f"a{i}", tokens) for i, tokens in enumerate((3, 9, 5, 7))]  # ranks: a1, a3, a2, a0
    draws = Counter(
        diverse(pool, 1, first_letter, tokens_of, random.Random(seed))[0].problem.prompt for seed in range(3000)
    )
    shares = [draws[name] / 3000 for name in ("a1", "a3", "a2", "a0")]
    assert shares == pytest.approx([8 / 15, 4 / 15, 2 / 15, 1 / 15], abs=0.03)


def test_with_weight_one_every_problem_of_a_domain_is_as_likely():
    pool = [trace(f"a{i}", i) for i in range(4)]
    draws = Counter(
        diverse(pool, 1, first_letter, tokens_of, random.Random(seed), weight=1.0)[0].problem.prompt
        for seed in range(2000)
    )
    assert [draws[f"a{i}"] / 2000 for i in range(4)] == pytest.approx([0.25] * 4, abs=0.04)


def test_ranks_are_those_of_what_is_left_and_an_empty_domain_is_drawn_no_more():
    pool = [trace("a0", 5), trace("b0", 3), trace("b1", 9)]
    assert len(diverse(pool, 3, first_letter, tokens_of, random.Random(1))) == 3
    assert len(diverse(pool, 9, first_letter, tokens_of, random.Random(1))) == 3
    long = [trace(f"a{i}", i) for i in range(5000)]  # 2^-5000 is no float: the shortest are still choosable
    assert len(diverse(long, 5000, first_letter, tokens_of, random.Random(1))) == 5000


# ---------------------------------------------------------------------------------------- the pool: quality, difficulty


def test_broken_traces_and_no_others_are_not_well_formed():
    whole, about = collected(replace(POOL, problems=200))
    assert all(is_well_formed(one.text) for one in whole) and about["format"] == 1.0
    some, about = collected(replace(POOL, problems=400, broken_share=0.25))
    good = [one for one in some if is_well_formed(one.text)]
    assert 0.68 < len(good) / 400 < 0.82 and about["format"] == len(good) / 400
    assert {one.problem.prompt for one in good} <= {one.problem.prompt for one in some}
    assert collected(replace(POOL, problems=200))[0] == whole


def test_the_pool_is_not_filtered_for_right_traces_and_has_other_words():
    pool, about = collected(POOL)
    task = ThinkingAddition()
    right = [task.reward(one.problem, one.text) for one in pool]
    assert [one.right for one in pool] == [value == 1 for value in right]
    assert 0.5 < sum(right) / 300 < 1.0 and about["accuracy"] == pytest.approx(sum(right) / 300)
    text = " ".join(one.text for one in pool)
    assert text.count("wait") > text.count("Hmm") > 10 and text.count("Alternatively") > 10
    assert all(one.tokens == len(WORDS.encode(one.text)) + 1 for one in pool)
    assert Counter(one.mode for one in pool).keys() == {"steps", "recheck"}


def test_difficult_is_what_none_of_the_attempts_solves(monkeypatch):
    tries = {"q0": "1 2", "q1": "2 2", "q2": "2 1", "q3": "1 1"}  # two attempts each; the answer is 1

    def sample(task, model, words, problems, *, group_size, temperature, **how):
        assert (group_size, temperature) == (2, 1.0)
        names = [problem.prompt.split()[1] for problem in problems]  # "User: q0 Assistant:"
        return [
            [
                demonstration(WORDS, replace(problem, prompt="1 + 0"), f"<answer> {attempt} </answer>")
                for attempt in tries[name].split()
            ]
            for problem, name in zip(problems, names, strict=True)
        ]

    monkeypatch.setattr(select, "sample", sample)
    traces = [Trace(Problem(name, "1"), "", True, "", 1) for name in tries]
    found = select.unsolved(replace(POOL, base=THINKER, attempts=2), traces)
    assert [one.problem.prompt for one in found] == ["q1"]


@pytest.mark.parametrize("how", ["all", "first", "random", "longest", "diverse", "s1"])
def test_each_way_to_choose_gives_what_it_names(how, monkeypatch):
    task = Templated(ThinkingAddition((1, 2), modes=(0.0, 0.5, 0.5)))
    config = replace(POOL, choose=40, how=how, base=THINKER, task=task)
    good, _ = collected(config)
    hard = [one for one in good if carries(one.problem) == 2]
    monkeypatch.setattr(select, "unsolved", lambda config, traces: hard)
    chosen, counts = pick(config, good)
    assert len(chosen) == (len(good) if how == "all" else 40)
    assert len({id(one) for one in chosen}) == len(chosen) and all(one in good for one in chosen)
    assert pick(config, good)[0] == chosen  # a function of the seed
    shortest = min(one.tokens for one in chosen)
    mean, its_mean = (sum(one.tokens for one in some) / len(some) for some in (good, chosen))
    if how == "s1":
        assert chosen != hard[:40] and all(one in hard for one in chosen)
        assert counts["after_difficulty"] == len(hard) and its_mean > mean
    elif how == "longest":
        assert shortest >= sorted(one.tokens for one in good)[-40]
    elif how == "first":
        assert chosen == good[:40]
    elif how == "diverse":
        sizes = Counter(config.task.domain(one.problem) for one in chosen)
        assert max(sizes.values()) <= 2 * min(sizes.values()) and len(sizes) == 5  # 0..1 and 0..2 carries
    else:
        assert its_mean == pytest.approx(mean, rel=0.25)
        assert pick(replace(config, seed=1), good)[0] != chosen or how == "all"


@pytest.mark.parametrize("how", ["first", "random", "longest", "diverse"])
def test_a_choice_of_more_than_there_are_takes_all(how):
    traces = collected(replace(POOL, problems=9))[0]
    chosen, _ = pick(replace(POOL, how=how, choose=50), traces)
    assert sorted(map(id, chosen)) == sorted(map(id, traces))


# --------------------------------------------------------------------------------- prompts that say how long


def test_conditional_prompts_tell_the_truth_about_their_traces():
    pool, _ = collected(replace(POOL, problems=120))
    for before, (after, text) in zip(pool, conditioned(pool, "tokens"), strict=True):
        named = int("".join(word for word in after.prompt.split("maximum")[1].split() if word.isdigit()))
        tokens = thinking_tokens(before.text)
        assert tokens <= named < 2 * max(1, tokens) and named & (named - 1) == 0
        assert text == after.solution == before.text
    for before, (after, text) in zip(pool, conditioned(pool, "steps"), strict=True):
        passes = before.text.count("so ")
        assert after.prompt.endswith(f"Think for {passes} steps")
        counted = [f"{passes - i} steps left" for i in range(passes)]
        assert all(words in text for words in counted) and text.count("steps left") == passes
        for words in counted:
            text = text.replace(words + " ", "", 1)
        assert text == before.text
    named = Counter(problem.prompt.split()[-1] for problem, _ in conditioned(pool, "class"))
    assert set(named) == {"short", "long"} and abs(named["short"] - named["long"]) < 40
    assert [(problem.prompt, text) for problem, text in conditioned(pool, "none")] == [
        (one.problem.prompt, one.text) for one in pool
    ]


@pytest.mark.parametrize("condition", ["none", "tokens", "steps", "class"])
def test_direct_answers_have_no_steps_and_are_conditioned_too(condition, tmp_path):
    task = Templated(ThinkingAddition(modes=(0.4, 0.3, 0.3)))
    config = SelectConfig(task=task, problems=60, keep="all", condition=condition, out=str(tmp_path))
    select.run(config)
    lines = read_jsonl(tmp_path / "demonstrations.jsonl")
    direct = [line for line in lines if line["response"].startswith("<think> </think>")]
    assert 10 < len(direct) < len(lines)
    said = {"none": "", "tokens": "Think for maximum 1 tokens.", "steps": "Think for 0 steps", "class": "Think short"}
    assert all(line["prompt"].endswith(f" {said[condition]} Assistant:".replace("  ", " ")) for line in direct)
    for line in lines:  # the sentence stands inside the template, and all of it is in the model's words
        assert line["prompt"].startswith("User: ") and WORDS.encode(line["prompt"] + " " + line["response"])


# ---------------------------------------------------------------------------------------------------- the teacher


def kept_by(folder: Path, **settings) -> tuple[list[dict], dict]:
    config = replace(TEACHING, out=str(folder / f"{len(list(folder.iterdir()))}"), **settings)
    metrics = select.run(config)
    return read_jsonl(Path(config.out) / "demonstrations.jsonl"), metrics


def test_what_is_kept_is_right_or_wrong_as_asked_in_the_format_and_in_the_modes(tmp_path):
    task = ThinkingAddition((2,), modes=(0.0, 0.5, 0.5))
    problems = {with_template(p, "skeleton").prompt: p for p in (task.problem("select-0", i) for i in range(30))}
    kept = {how: kept_by(tmp_path, task=Templated(task), keep=how)[0] for how in ("right", "wrong", "all")}
    for how, expected in (("right", {1.0}), ("wrong", {0.0})):
        assert {task.reward(problems[line["prompt"]], line["response"]) for line in kept[how]} == expected
    assert len(kept["right"]) + len(kept["wrong"]) == len(kept["all"]) <= 60
    assert all(is_well_formed(line["response"]) for line in kept["all"])
    steps, metrics = kept_by(tmp_path, task=Templated(task), modes=("steps",), how="first", choose=3)
    assert len(steps) == metrics["kept"] == 3 and {read_thinking(line["response"]).mode for line in steps} == {"steps"}
    with pytest.raises(ValueError, match="none of 60 traces is kept"):
        kept_by(tmp_path, modes=("search",))
    assert len(list(tmp_path.iterdir())) == 4  # nothing was written where nothing was kept


def test_the_teacher_is_sampled_as_asked_and_its_tokens_are_counted(tmp_path, monkeypatch):
    seen, real = [], select.sample

    def sample(task, model, words, problems, **how):
        seen.append((problems, how))
        return real(task, model, words, problems, **how)

    monkeypatch.setattr(select, "sample", sample)
    lines, metrics = kept_by(tmp_path, keep="all", samples=3, temperature=0.5, max_new_tokens=20)
    ((problems, how),) = seen
    assert len(problems) == 30 and all(problem.prompt.startswith("User: ") for problem in problems)
    assert (how["group_size"], how["temperature"], how["max_new_tokens"]) == (3, 0.5, 20)
    model, words = load_checkpoint(THINKER)
    scored = judge(TEACHING.task, words, real(TEACHING.task, model, words, problems, **how))
    assert metrics["tokens"] == sum(one.tokens for one in scored) and metrics["pool"] == 90
    assert metrics["accuracy"] == pytest.approx(sum(one.verdict for one in scored) / 90)
    good = [one for one in scored if is_well_formed(one.text)]
    assert metrics["after_quality"] == len(good) == len(lines) == metrics["kept"]
    assert [line["response"] for line in lines] == [one.text for one in good]
    assert metrics["kept_length"] == pytest.approx(sum(one.tokens for one in good) / len(good))
    other, _ = kept_by(tmp_path, keep="all", seed=1)
    assert [line["prompt"] for line in other] != [line["prompt"] for line in lines]


def test_no_problem_of_the_test_split_is_ever_demonstrated(tmp_path):
    held_out = {problem.prompt for problem in Templated(ThinkingAddition((2,))).test_problems(100)}
    for settings in (dict(teacher=""), dict()):
        lines, _ = kept_by(tmp_path, task=Templated(ThinkingAddition((2,))), problems=60, samples=1, **settings)
        assert not held_out & {line["prompt"] for line in lines}


def test_a_task_that_asks_for_lengths_is_asked_so_in_its_template(tmp_path):
    lines, _ = kept_by(tmp_path, task=Templated(AskedLength(ThinkingAddition((1,)), tokens=(8, 30))), keep="all")
    assert all("Think for " in line["prompt"] and line["prompt"].endswith("tokens. Assistant:") for line in lines)


@pytest.mark.trains
def test_what_was_chosen_is_learnt_by_sft(tmp_path):
    """Distillation: select, then sft. A student that knows nothing learns to write as its teacher does."""
    student = tmp_path / "student"
    save_checkpoint(student, Transformer(small_config(32, 2, 2, WORDS.vocab_size, 96), 1), WORDS)
    lines, _ = kept_by(tmp_path)
    (data,) = tmp_path.glob("*/demonstrations.jsonl")
    flags = ["--base", str(student), "--data", str(data), "--steps", "40", "--lr", "1e-2", "--log-every", "10"]
    assert main(["sft", "--preset", "tiny", *flags, "--out", str(tmp_path / "run")]) == 0
    losses = [line["loss"] for line in read_jsonl(tmp_path / "run" / "metrics.jsonl")]
    assert len(losses) == 4 and losses[-1] < 0.7 * losses[0]
    assert [problem.solution for _, problem in sft.read_problems(data)] == [line["response"] for line in lines]


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--keep", "best"], "--keep best: one of right, wrong, all"),
        (["--how", "magic"], "--how magic: one of all, first, random, longest, diverse, s1"),
        (["--how", "s1"], "--how s1 needs --base"),
        (["--how", "longest"], "--how longest needs --choose"),
        (["--condition", "words"], "--condition words: one of none, tokens, steps, class"),
        (["--task", "chess"], "--task chess: one of"),
        (["--teacher", "nowhere"], "no checkpoint at"),
        (["--modes", "search"], "none of 12 traces is kept: more of them"),
        (["--task", "addition"], "none of 12 traces is kept"),
        (["--broken-share", "2"], "--broken-share 2: must be at least 0 and at most 1"),
        (["--samples", "0"], "--samples 0: must be at least 1"),
    ],
)
def test_what_cannot_work_is_one_line_and_nothing_is_written(tmp_path, flags, message, capsys):
    assert main(["select", "--preset", "tiny", "--out", str(tmp_path / "run"), *flags]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not (tmp_path / "run").exists()


def test_what_is_written_is_json_lines_of_prompt_and_response_and_counted(tmp_path):
    metrics = select.run(replace(POOL, out=str(tmp_path), how="s1", base=THINKER, choose=20, keep="right"))
    raw = (tmp_path / "demonstrations.jsonl").read_text().splitlines()
    assert [json.loads(line).keys() for line in raw] == [{"prompt", "response"}] * len(raw)
    assert metrics["chosen"] == len(raw) <= 20 and metrics["chosen_right"] == 1.0
    assert metrics["pool"] >= metrics["after_quality"] >= metrics["after_difficulty"] >= metrics["chosen"]
    assert 2 <= metrics["chosen_digits"] <= 3 and 1 <= metrics["chosen_domains"] <= 7
    (line,) = read_jsonl(tmp_path / "metrics.jsonl")
    assert {name: line[name] for name in metrics} == metrics
    assert len(read_jsonl(tmp_path / "samples.jsonl")) == 4
