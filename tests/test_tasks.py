"""What every task promises, also in every wrapper; and that a person's own task or reward works by being named."""

import copy
import math
import pickle
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoreason.__main__ import main
from nanoreason.arithmetic import same_number
from nanoreason.prompts import END, tagged
from nanoreason.recipes import sft
from nanoreason.rollout import Problem, Task, demonstration
from nanoreason.run import flatten, from_flat, parse_config, read_jsonl, spec_of
from nanoreason.tasks import (
    TASKS,
    WRAPPERS,
    Addition,
    Countdown,
    StreamOfSearch,
    ThinkingAddition,
    ThinkingCountdown,
    ThreadedSearch,
)
from nanoreason.tasks.attempts import Attempts, HardAttempts
from nanoreason.tasks.countdown import CountdownWords
from nanoreason.tasks.small import SMALL
from nanoreason.tasks.suite import Suite
from nanoreason.tasks.sums import SumsInWords
from nanoreason.tasks.wrappers import AskedLength, Chat, Parallel, Templated, Unanswerable
from nanoreason.tasks.written import Gsm8k, Math

GSM8K, MATH = (str(Path(__file__).parents[1] / "data" / name) for name in ("gsm8k", "math"))
SURE = Attempts(right_guess=1.0, give_up=(0.0, 0.0))
BARE = {
    "addition": Addition((1, 3), hint_share=0.3),
    "addition, direct": Addition((1, 3), "direct"),
    "thinking": ThinkingAddition((1, 2, 3), error_prob=0.1, drop_tag_prob=0.1),
    "countdown": Countdown(3, 20, (10, 40)),
    "countdown, expression": Countdown(3, 20, (10, 40), form="expression"),
    "search": StreamOfSearch(3, 9, (10, 40)),
    "search, paper": StreamOfSearch(3, 9, (10, 40), language="paper"),
    "search, op": StreamOfSearch(3, 9, (10, 40), data="op"),
    "threaded_search, serial": ThreadedSearch(3, 9, (10, 40), serial=True, beams=(4, 8)),
    "thinking_countdown": ThinkingCountdown(3, 20, (10, 40)),
    "attempts": SURE,
    "hard_attempts": HardAttempts(right_guess=0.8),
    "sums_in_words": SumsInWords((1, 2), "any", "both"),
    "sums_in_words, lenient": SumsInWords((2,), judge="lenient"),
    "countdown_words": CountdownWords(3, 20, (10, 40)),
    "countdown_words, operations": CountdownWords(3, 20, (10, 40), form="operations"),
    "gsm8k": Gsm8k(GSM8K),
    "gsm8k, lenient": Gsm8k(GSM8K, form="boxed", judge="lenient"),
    "math": Math(MATH),
    "math, hashes": Math(MATH, form="hashes"),
    **{name: kind() for name, kind in SMALL.items()},
    "suite": Suite(others=0.8),
    "suite, think": Suite(style="think"),
}
SUMS = ThinkingAddition((1, 2), error_prob=0.0)
WRAPPED = {
    "templated": Templated(SUMS),
    "templated, r1": Templated(SUMS, template="r1"),
    "asked_length": AskedLength(SUMS, kind="both", asked_share=0.7, true_share=0.5),
    "unanswerable": Unanswerable(SUMS, wrong_answer_prob=0.5),
    "asked_length, templated": Templated(AskedLength(SUMS)),
    "thinking_countdown, templated": Templated(ThinkingCountdown(3, 20, (10, 40))),
    "countdown, templated": Templated(Countdown(3, 20, (10, 40))),
    "attempts, asked_length, templated": Templated(AskedLength(SURE)),
    "hard_attempts, parallel": Parallel(HardAttempts(), texts=(0.0, 3.0, 1.0), asked_share=0.5),
    "gsm8k, templated": Templated(Gsm8k(GSM8K, form="none"), template="r1"),
    "chat": Chat(SUMS),
    "all of them": Templated(AskedLength(Unanswerable(SUMS, 0.5))),
}
ALL = BARE | WRAPPED
ERRS = {"thinking", "suite", "unanswerable", "all of them", "search", "search, paper", "thinking_countdown",
        "thinking_countdown, templated", "hard_attempts",
        "hard_attempts, parallel", "threaded_search, serial"}  # whose solutions are not always right  # fmt: skip

hostile = st.one_of(
    st.text(max_size=60),
    st.text(st.sampled_from("0123456789+-*/=()[],.#' \n<>EGMSXWNT:|"), max_size=120),
    st.lists(
        st.sampled_from(["<think>", "</think>", "<answer>", END, "so", "wait", "8", "5", "\n", "</scratch>", "E", "W"]),
        max_size=20,
    ).map(" ".join),
    st.sampled_from(["", " ", "\0", "\ud800", "9" * 5000, "(" * 5000, "<answer>" * 500, "\n" * 500, "²", "９", "٣"]),
)


def test_every_entry_of_the_table_is_tried_here():
    assert {type(task) for task in BARE.values()} | set(WRAPPERS.values()) == set(TASKS.values())
    assert {type(task) for task in WRAPPED.values()} == set(WRAPPERS.values())


@pytest.fixture(params=ALL)
def name(request) -> str:
    return request.param


@pytest.fixture
def task(name):
    return ALL[name]


# -------------------------------------------------------------------------------------------------------- problems


@given(index=st.integers(0, 400), split=st.sampled_from(["test", "train", "rl-3"]))
def test_a_problem_is_a_function_of_settings_split_and_index_alone(task, index, split):
    problem = task.problem(split, index)
    for other in (index + 1, 0):
        task.problem(split, other)
    assert copy.deepcopy(task).problem(split, index) == problem == task.problem(split, index)


def test_problems_and_solutions_survive_the_tasks_tokenizer(task, name):
    if name == "chat":
        with pytest.raises(ValueError, match="the checkpoint has no chat template"):
            demonstration(task.tokenizer(), task.problem("train", 0))
        return
    if name in ("search, paper", "templated, r1"):  # in sentences, which no small vocabulary has the words of
        with pytest.raises(ValueError, match="not in the tokenizer's vocabulary"):
            demonstration(task.tokenizer(), task.problem("train", 0))
        return
    words = task.tokenizer()
    for problem in (task.problem(split, i) for split in ("train", "test") for i in range(25)):
        row = demonstration(words, problem)
        assert words.decode(row.tokens[: row.prompt_len]) == problem.prompt
        assert words.decode(row.response[:-1]) == problem.solution and row.tokens[-1] == words.eos_id
        limit = task.max_tokens(problem)
        assert limit is None or len(row.response) <= limit + (2 if "drop" in name else 0)


def test_solutions_are_right_unless_the_task_says_that_they_err(task, name):
    problems = [task.problem("train", i) for i in range(80)]
    right = [task.reward(problem, problem.solution) for problem in problems if problem.solution]
    assert set(right) <= {0.0, 1.0} and sum(right) > 0.3 * len(right)
    assert name in ERRS or min(right) == 1.0
    for problem in problems:
        if task.reward(problem, problem.solution) == 1:
            assert task.is_right_leniently(problem, problem.solution)
            assert task.answer(problem.solution) is not None
            assert task.reward(problem, task.clean(problem.solution)) == 1


def test_no_test_problem_is_ever_practised(task):
    def key(problem):  # what is asked, whatever the words around it
        info = problem.info
        return (*sorted(info["numbers"]), info["target"]) if "numbers" in info else stated(problem.prompt)

    def stated(prompt):
        sums = prompt.removeprefix("Input:\n").split(" Think ")[0].split("\nTarget")[0]
        return sums.split("User: ")[-1].split(" Assistant")[0]

    tested = {key(task.problem("test", i)) for i in range(100)}
    trained = {key(task.problem(split, i)) for split in ("train-0", "sft-0", "rl-7") for i in range(100)}
    assert tested and not tested & trained


def test_held_out_problems_are_as_many_of_each_difficulty_and_of_the_test_split(task):
    problems = task.test_problems(6)
    count = {n: sum(task.difficulty(p) == n for p in problems) for n in {task.difficulty(p) for p in problems}}
    always = {1: 81} if isinstance(task, Addition) else {}  # all sums of one digit
    there = Counter(map(task.difficulty, task.of_split("test"))) if hasattr(task, "of_split") else {}  # in files
    assert count == {n: always.get(n, min(6, there.get(n, 6))) for n in count} and count.keys() >= there.keys()
    assert task.test_problems(6) == problems and len(task.test_problems(0)) == sum(always.values())
    assert all("hinted" not in p.info for p in problems)
    assert all(not p.answer.startswith("not ") for p in problems)  # what is held out can always be answered


def test_levels_cut_the_task_by_difficulty_and_keep_everything_else(task):
    levels = task.levels()
    seen = [{level.difficulty(level.problem("train-0", i)) for i in range(12)} for level in levels]
    assert all(len(some) == 1 for some in seen) or len(levels) == 1
    assert set().union(*seen) == {task.difficulty(task.problem("train-0", i)) for i in range(60)}
    assert all(type(level) is type(task) and level.stop == task.stop for level in levels)
    hash(task.domain(task.problem("train", 0)))
    sorted({task.domain(task.problem("train", i)) for i in range(10)})


def test_a_hint_is_in_the_prompt_or_the_task_says_that_it_has_none(task):
    problem = task.levels()[0].problem("train", 0)
    if getattr(type(task), "hint", None) in (None, Task.hint):
        with pytest.raises(ValueError, match="has no hints: rationalization needs its method `hint`"):
            task.hint(problem)
    else:
        hinted = task.hint(problem)
        assert problem.answer in hinted.prompt and hinted.prompt != problem.prompt
        assert (hinted.answer, hinted.solution) == (problem.answer, problem.solution)


@pytest.mark.parametrize(
    "text", ["", "  ", "hello", "1", "4 + 4 + 4", "١ + ٢", "99999999999999999999 + 1", "1 + 22", "0"]
)
def test_what_a_person_types_is_a_problem_or_one_line(task, text):
    try:
        problem = task.parse(text)
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert problem.prompt and task.reward(problem, "hm") == 0.0


def test_a_typed_problem_is_asked_as_a_drawn_one(task, name):
    if name in SMALL:
        with pytest.raises(ValueError, match="takes no typed problems"):
            task.parse("47 + 38")
        return
    if hasattr(task, "of_split"):  # a question of a person's own: nobody knows the answer
        problem = task.parse("How many?")
        assert task.problem("test", 0).prompt.endswith(problem.prompt.partition("How many?")[2])
        assert problem.answer == "" and task.reward(problem, "") == task.reward(problem, "0") == 0
        return
    search = any(word in name for word in ("search", "countdown", "attempts", "suite"))
    problem = task.parse("24 from 9 4 3" if search else "47 + 38")
    assert type(problem) is Problem and task.difficulty(problem) == (3 if search else 2)
    drawn = {re.sub(r"[0-9 ]+", "9", task.problem("test", i).prompt) for i in range(20)}  # what is not numbers
    assert re.sub(r"[0-9 ]+", "9", problem.prompt) in drawn or name == "asked_length"  # where 30 in 100 are not asked
    if not search:
        answer = "85" if name.startswith("sums_in_words") else "8 5"
        answer = tagged("", answer) if END in task.stop else answer
        assert task.reward(problem, answer) == 1.0


# --------------------------------------------------------------------------------------------------------- judging


@given(index=st.integers(0, 20), response=hostile)
def test_judging_is_total_and_metrics_always_have_the_same_names(task, index, response):
    problem = task.problem("train", index)
    names = task.metrics(problem, problem.solution).keys()
    for text in (response, f"<think> {response} </think> <answer> {response} </answer>"):
        verdict = task.reward(problem, text)
        assert verdict in (0.0, 1.0)
        assert task.is_right_leniently(problem, text) >= (verdict == 1)  # who overlooks more takes more
        counted = task.metrics(problem, text)
        assert counted.keys() == names and all(math.isfinite(value) for value in counted.values())
        vote = task.answer(text)
        assert vote is None or (isinstance(vote, str) and vote)
        assert verdict == 0 or vote is not None
        assert isinstance(task.clean(text), str) and task.work_is_valid(problem, text) in (True, False)


@given(st.integers(10, 9998), st.data())
def test_wordings_of_a_number_are_one_answer_that_the_lenient_judge_takes(number, data):
    digits = list(str(number))
    spaced = [digit + data.draw(st.sampled_from(["", " ", "  "])) for digit in digits]
    worded = "".join(spaced) + data.draw(st.sampled_from(["", "."]))
    for task, response in ((ThinkingAddition(), worded), (Templated(ThinkingAddition()), tagged("hm", worded)),
                           (Addition(), f"<scratch>\n</scratch>\n{worded}")):  # fmt: skip
        problem = Problem("", " ".join(digits), "", {"digits": 2})
        assert task.answer(response) == str(number) and task.is_right_leniently(problem, response)
        assert task.reward(problem, response) == (worded.strip() == " ".join(digits))
        other = replace(problem, answer=" ".join(str(number + 1)))
        assert not task.is_right_leniently(other, response) and task.reward(other, response) == 0


def test_words_that_are_no_number_stay_what_they_are():
    assert [same_number(text) for text in ("", " . ", "8 5..", "eight", "-8 5")] == ["", "", "85.", "eight", "-85"]


# -------------------------------------------------------------------------------------------------------- wrappers


def test_tasks_survive_pickling_copying_and_the_way_through_a_config(task, name):
    for other in (pickle.loads(pickle.dumps(task)), copy.deepcopy(task), copy.copy(task)):  # noqa: S301 - our own bytes
        assert other == task and other.problem("train", 3) == task.problem("train", 3)
    config = replace(sft.PRESETS["tiny"], task=task)
    assert from_flat("task", flatten(config), TASKS) == task


def test_a_wrapped_task_is_chosen_by_names_and_its_fields_are_flags():
    config = parse_config(
        sft.PRESETS,
        "--task thinking,asked_length,templated --task.digits 1,2 --task.kind max --task.template r1".split(),
        "sft",
    )
    assert config.task == Templated(AskedLength(ThinkingAddition((1, 2)), kind="max"), template="r1")
    assert spec_of(config.task, TASKS) == "thinking,asked_length,templated"
    for wrong, said in (("templated", "name one before it"), ("thinking,addition", "addition wraps nothing"),
                        ("nothing", "--task nothing: one of addition")):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            parse_config(sft.PRESETS, ["--task", wrong], "sft")


def test_what_a_wrapper_does_not_change_is_that_of_the_task_inside():
    inner = ThinkingAddition((1, 2))
    for wrapped in (Templated(inner), AskedLength(inner), Unanswerable(inner)):
        problem = wrapped.problem("test", 4)
        assert wrapped.max_tokens(problem) == inner.max_tokens(problem)
        assert wrapped.domain(problem) == inner.domain(inner.problem("test", 4))
        assert wrapped.digits == (1, 2)
        with pytest.raises(AttributeError):
            _ = wrapped.no_such_thing


def test_a_template_puts_answers_in_tags_and_leaves_tags_that_are_missing_on_purpose():
    plain = Templated(Countdown(3, 20, (10, 40)))
    for problem in (plain.problem("train", i) for i in range(10)):
        assert problem.solution.startswith("<think> </think> <answer> ")
        assert plain.reward(problem, problem.solution) == 1
        bare = plain.task.problem("train", 0).solution
        assert plain.reward(problem, bare) == 0 and plain.answer(bare) is None
    untidy = ThinkingAddition((1, 2), drop_tag_prob=1.0)
    assert [Templated(untidy).problem("x", i).solution for i in range(20)] == [
        untidy.problem("x", i).solution for i in range(20)
    ]


# ------------------------------------------------------------------------------------------- a task of one's own

OWN_TASK = '''"""Say the letters backwards."""

import random
from dataclasses import dataclass
from typing import Annotated

from nanoreason.rollout import Problem, Task, seed_of
from nanoreason.run import Range
from nanoreason.tokenizer import word_tokenizer

LETTERS = "abcdef"


@dataclass(frozen=True)
class Backwards(Task):
    """Letters to be said backwards."""

    lengths: tuple[Annotated[int, Range(1, 8)], ...] = (1, 2)  # how many letters

    def tokenizer(self):
        return word_tokenizer([*LETTERS, "say"])

    def problem(self, split, index):
        draw = random.Random(seed_of("backwards", split, index))
        letters = draw.choices(LETTERS, k=self.lengths[index % len(self.lengths)])
        answer = " ".join(reversed(letters))
        return Problem(" ".join(letters) + " say", answer, answer, {"length": len(letters)})

    def reward(self, problem, response):
        return float(response.strip() == problem.answer)

    def difficulty(self, problem):
        return problem.info["length"]

    def max_tokens(self, problem):
        return 1 + problem.info["length"]

    def metrics(self, problem, response):
        return {"letters": float(len(response.split()))}

    def parse(self, text):
        return Problem(" ".join(text) + " say", " ".join(reversed(text)), "", {"length": len(text)})
'''
OWN_REWARD = """from dataclasses import dataclass


@dataclass(frozen=True)
class Brief:
    weight: float = 1.0
    price: float = 0.1  # of a token

    def __call__(self, scored):
        return scored.verdict - self.price * scored.tokens
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Files of a person's own, and a checkpoint that has practised her task for a few steps."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "letters.py").write_text(OWN_TASK)
    (folder / "brief.py").write_text(OWN_REWARD)
    flags = ["--preset", "tiny", "--task", f"{folder / 'letters.py'}:Backwards", "--steps", "150", "--lr", "0.01"]
    assert main(["sft", *flags, "--out", str(folder / "sft"), "--save-every", "150"]) == 0
    return folder


def test_a_task_and_a_reward_are_as_short_as_is_said():
    assert len(OWN_TASK.splitlines()) <= 60 and len(OWN_REWARD.splitlines()) <= 10


@pytest.mark.trains
def test_a_task_of_ones_own_is_learnt_tested_and_played(own, capsys, monkeypatch):
    last = read_jsonl(own / "sft" / "metrics.jsonl")[-1]
    assert last["acc/1"] > 0.5 and {"acc/2", "acc_strict/1", "acc_lenient/2"} <= last.keys()
    checkpoint = str(own / "sft" / "policy")
    assert main(["eval", checkpoint, "--problems", "6", "--samples", "2"]) == 0  # it says itself which task it is for
    shown = capsys.readouterr().out
    assert all(f" {name} " in shown for name in ("acc/1", "eval/pass@2", "eval/maj@2", "eval/letters"))
    assert main(["play", checkpoint, "--problem", "abc"]) == 0
    assert "a b c say" in capsys.readouterr().out
    answers = iter(["", "q"])
    monkeypatch.setattr("builtins.input", lambda *_: next(answers))
    assert main(["play", checkpoint]) == 0
    assert "say" in capsys.readouterr().out


@pytest.mark.trains
def test_a_task_and_a_reward_of_ones_own_are_practised(own, tmp_path, capsys):
    task, base = f"{own / 'letters.py'}:Backwards", str(own / "sft" / "policy")
    common = ["--preset", "tiny", "--base", base, "--task", task]
    flags = [*common, "--rewards", f"accuracy:0.5,{own / 'brief.py'}:Brief:2", "--rewards.Brief.price", "0.2"]
    assert main(["grpo", *flags, "--task.lengths", "2,3", "--out", str(tmp_path / "grpo")]) == 0, capsys.readouterr()
    lines = read_jsonl(tmp_path / "grpo" / "metrics.jsonl")
    assert {"rewards/accuracy/mean", "rewards/brief/mean", "letters"} <= lines[1].keys()
    for line in lines[1:]:
        brief = line["accuracy"] - 0.2 * line["completions/mean_length"]
        assert line["rewards/brief/mean"] == pytest.approx(brief)
        assert line["reward"] == pytest.approx(0.5 * line["accuracy"] + 2 * brief)
    assert main(["grpo", *flags, "--task.lengths", "2,3", "--out", str(tmp_path / "grpo"), "--resume"]) == 0
    assert main(["star", *common, "--prompt-set", "0", "--pool", "32", "--out", str(tmp_path / "star")]) == 0
    lines = read_jsonl(tmp_path / "star" / "metrics.jsonl")
    assert [line["round"] for line in lines] == [0, 1, 2] and lines[-1]["kept"] > 0


BAD_TASKS = {
    "missing.py:Mine": (None, "there is no file"),
    "syntax.py:Mine": ("class Mine(:\n", "cannot be imported: SyntaxError"),
    "raises.py:Mine": ("import no_such_module_at_all\n", "cannot be imported: ModuleNotFoundError"),
    "exits.py:Mine": ("raise SystemExit(3)\n", "cannot be imported: SystemExit"),
    "other.py:Mine": ("class Yours: pass\n", "defines no Mine"),
    "plain.py:Mine": ("class Mine: pass\n", "must be a frozen dataclass"),
    "function.py:Mine": ("def Mine(): pass\n", "must be a frozen dataclass"),
    "thawed.py:Mine": (
        "from dataclasses import dataclass\n@dataclass\nclass Mine:\n    weight: float = 1.0\n",
        "must be a frozen dataclass",
    ),
    "number.py:Mine": ("Mine = 3\n", "must be a frozen dataclass"),
    "needs.py:Mine": (
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Mine:\n    weight: float\n    x: int\n",
        "every field of Mine needs a default, weight has none",
    ),
}


@pytest.mark.parametrize("flag", ["--task", "--rewards"])
@pytest.mark.parametrize("spec", BAD_TASKS)
def test_a_file_of_ones_own_that_cannot_be_used_is_one_line(tmp_path, capsys, flag, spec):
    text, said = BAD_TASKS[spec]
    if text is not None:
        (tmp_path / spec.split(":")[0]).write_text(text)
    assert main(["grpo", "--base", "x", flag, f"{tmp_path / spec}", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.strip().split("\n")) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flag", "other", "said"),
    [
        ("--task", "brief.py:Brief", "it is no task, it has no levels, parse, problem"),
        ("--rewards", "letters.py:Backwards", "it is no reward, it has no __call__"),
        ("--rewards", "light.py:Light", "it needs a field weight"),
    ],
)
def test_a_reward_is_no_task_and_a_task_no_reward(tmp_path, capsys, flag, other, said):
    (tmp_path / "letters.py").write_text(OWN_TASK)
    (tmp_path / "brief.py").write_text(OWN_REWARD)
    (tmp_path / "light.py").write_text(OWN_REWARD.replace("    weight: float = 1.0\n", "").replace("Brief", "Light"))
    assert main(["grpo", "--base", "x", flag, f"{tmp_path / other}", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.strip().split("\n")) == 1
