"""Countdown by attempts: the legal attempts are all there, chance is what it is said to be, the corpus is what it says,
no test problem is in it, and the reader and the verdict stand any text."""

import random
import time
from collections import Counter
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nanoreason.prompts import TAGS, is_well_formed, tagged
from nanoreason.recipes import sft
from nanoreason.rollout import demonstration
from nanoreason.run import flatten, from_flat, parse_config
from nanoreason.tasks import TASKS
from nanoreason.tasks.attempts import (
    BASE_MIXTURE,
    INSISTENT,
    KINDS,
    PLAIN,
    RETRY,
    WORDS,
    Attempts,
    HardAttempts,
    Mixture,
    all_attempts,
    attempt_tokens,
    attempts_tokenizer,
    is_held_out,
    read_attempts,
)
from nanoreason.tasks.wrappers import Templated

TASK, HARD = Attempts(), HardAttempts()
WIDER = Attempts(max_input=20)
FIFTY = WIDER.parse("50 from 6 5 20")
RIGHT = "6 * 5 = 30 , 30 + 20 = 50"
WRONG = "20 - 6 = 14 , 14 + 5 = 19"
TOKENS = attempts_tokenizer()


def of(kind: str, count: int = 200, split: str = "sft-0", **settings):
    task = Attempts(shares=Mixture(((kind, 1.0),)), **settings)
    return task, [task.problem(split, i) for i in range(count)]


# ------------------------------------------------------------------------------------------------------- the world


def brute_force(numbers, operations, largest):
    """The texts of all legal attempts, by trying every order of the numbers and every sign."""
    found = set()
    for a, b, *rest in permutations(numbers):
        for sign in operations:
            if a < b:
                continue
            if sign == "/" and (b == 0 or a % b):
                continue
            value = {"+": a + b, "-": a - b, "*": a * b, "/": a // b if b else 0}[sign]
            if value <= largest:
                step = f"{a} {sign} {b} = {value}"
                more = brute_force((value, *rest), operations, largest) if rest else [""]
                found |= {f"{step} , {text}" if text else step for text in more}
    return found


@given(st.lists(st.integers(1, 12), min_size=2, max_size=4), st.sampled_from(["+-*", "+-*/", "+"]))
def test_all_attempts_are_there_and_each_is_legal_and_right(numbers, operations):
    found = all_attempts(tuple(sorted(numbers)), operations, 60)
    assert sorted(text for text, _ in found) == sorted(brute_force(numbers, operations, 60))
    task = Attempts(operations=operations)
    for text, value in found:
        read = read_attempts(tuple(numbers), value, f"<think> {text} yes </think>")
        assert read.attempts == (text,) and read.legal == (True,) and read.found
        assert task.reward(task.parse(f"{value} from {' '.join(map(str, numbers))}"), tagged("", text)) == 1.0
        assert all(0 <= int(word) <= 60 for word in text.split() if word.isdigit())


@pytest.mark.parametrize(("task", "attempts", "chance"), [(TASK, 19.3, 0.0945), (HARD, 273, 0.0235)])
def test_chance_level(task, attempts, chance):
    """3 inputs of 1..12: 19 attempts, a random one is right in 9.5 %; 4 of 1..9: 270 and 2.4 %."""
    problems = [task.problem("train", i) for i in range(800)]
    each = [len(all_attempts(tuple(sorted(p.info["numbers"])))) for p in problems]
    assert sum(each) / 800 == pytest.approx(attempts, rel=0.04)
    assert sum(p.info["chance"] for p in problems) / 800 == pytest.approx(chance, rel=0.08)
    assert all(p.info["solutions"] == round(p.info["chance"] * n) >= 1 for p, n in zip(problems, each, strict=True))


def test_problems_are_pure_and_no_test_problem_is_ever_in_training():
    assert [TASK.problem("a", i) for i in range(20)] == [Attempts().problem("a", i) for i in range(20)]
    assert TASK.problem("a", 1) != TASK.problem("b", 1)
    corpus = Attempts(shares=BASE_MIXTURE)
    seen = {True: set(), False: set()}
    for split in ("test", "sft-0", "rl-1", "preflight-0"):
        for i in range(400):
            info = corpus.problem(split, i).info
            if info["numbers"]:
                assert is_held_out(info["numbers"], info["target"]) == (split == "test")
                seen[split == "test"].add((tuple(sorted(info["numbers"])), info["target"]))
    assert not seen[True] & seen[False] and len(seen[True]) > 150
    tested = [(*sorted(p.info["numbers"]), p.info["target"]) for p in TASK.test_problems(400)]
    assert len(set(tested[:232])) == len(set(tested)) == 232 and len(tested) == 400
    found = [is_held_out((a, b, c), t) for a in range(1, 10) for b in range(a) for c in range(b) for t in range(10, 60)]
    assert sum(found) / len(found) == pytest.approx(0.1, abs=0.02)
    assert is_held_out((3, 1, 2), 10) == is_held_out((1, 2, 3), 10)
    hard = {tuple(HARD.problem("test", i).info["numbers"]) for i in range(50)}
    assert all(len(numbers) == 4 and max(numbers) <= 9 for numbers in hard)


# ------------------------------------------------------------------------------------------------------ the corpus


def test_each_kind_comes_with_its_share_and_test_problems_are_always_plain():
    task = Attempts(shares=BASE_MIXTURE)
    problems = [task.problem("sft-0", i) for i in range(1500)]
    forms = Counter(p.info.get("form") if "target_tokens" not in p.info else "asked" for p in problems)
    for kind, share in BASE_MIXTURE.shares:
        assert forms[kind] / 1500 == pytest.approx(share, abs=0.035), kind
    for problem in task.test_problems(100):
        assert problem.prompt.split()[1] == "from" and len(problem.prompt.split()) == 5
    assert {p.info["form"] for p in [TASK.problem("rl-0", i) for i in range(100)]} <= set(PLAIN)


@pytest.mark.parametrize("kind", KINDS)
def test_every_text_is_in_the_vocabulary_and_what_its_kind_says(kind):
    task, problems = of(kind)
    for problem in problems:
        row = demonstration(TOKENS, problem)
        assert TOKENS.decode(row.response[:-1]) == problem.solution and len(row.tokens) <= 450
        metrics = task.metrics(problem, problem.solution)
        assert metrics["steps/right"] == metrics["steps"] and metrics["verdicts/right"] <= metrics["verdicts"]
        if kind in ("compare", "mark", "cut"):
            assert problem.prompt.endswith(("<answer>", ":")) and task.reward(problem, problem.solution) == 0.0
            continue
        is_wrong = kind == "wrong"  # whatever its thought has found
        assert is_well_formed(problem.solution) == (kind != "bare")
        assert metrics["found/lost"] == metrics["found"] * is_wrong
        assert metrics["attempts/legal"] == metrics["attempts"] and metrics["verdicts/right"] == metrics["verdicts"]
        assert task.reward(problem, problem.solution) >= metrics["found"] * (not is_wrong)
        assert metrics["thinking/length"] <= 401
        assert (
            kind not in ("short", "long", "more")
            or metrics["attempts/new"] + metrics["checks"] >= metrics["attempts"] - 1
        )


def test_guesses_are_right_as_often_as_they_should():
    for right_guess in (0.0, 0.3, 1.0):
        task, problems = of("guess", 500, right_guess=right_guess)
        found = sum(task.reward(p, p.solution) for p in problems) / 500
        assert found == pytest.approx(right_guess + (1 - right_guess) * 0.095, abs=0.05)


def test_a_bare_answer_is_judged_as_one_in_tags_is():
    for right_guess in (0.0, 1.0):
        task, problems = of("bare", 300, right_guess=right_guess)
        right = [task.reward(p, p.solution) for p in problems]
        assert sum(right) / 300 == pytest.approx(right_guess or 0.095, abs=0.06)
        assert right == [task.reward(p, tagged("", p.solution)) for p in problems]
        assert not any("<" in p.solution or "yes" in p.solution for p in problems)


def test_an_unjudged_thought_says_no_verdict_and_ends_behind_what_is_right():
    task, problems = of("unjudged", 400)
    for problem in problems:
        read = read_attempts(problem.info["numbers"], problem.info["target"], problem.solution)
        assert read.verdicts == read.yes == 0 and read.waits == len(read.attempts) - 1
        assert read.found == task.reward(problem, problem.solution)
        assert problem.solution.endswith(f"<answer> {read.attempts[-1]} </answer>")
        assert not any(attempt.endswith(f"= {problem.info['target']}") for attempt in read.attempts[:-1])
    assert sum(task.reward(p, p.solution) for p in problems) / 400 > 0.6


def test_who_gives_up_later_finds_more():
    found = {}
    for kind in ("one", "short", "long"):
        task, problems = of(kind, 500)
        found[kind] = sum(task.reward(p, p.solution) for p in problems) / 500
        assert all(
            task.metrics(p, p.solution)["gave_up"] != task.reward(p, p.solution) for p in problems
        )  # it ends behind a yes, or gives up
    assert found["one"] < 0.15 < found["short"] < 0.35 < 0.6 < found["long"]
    task, problems = of("long", 200, give_up=(0.0, 0.0))
    assert all(task.reward(p, p.solution) for p in problems)


def test_a_cut_thought_is_answered_with_what_it_has_found_and_its_cut_is_not_learnt():
    task, problems = of("cut", 400)
    torn = 0
    for problem in problems:
        thinking = problem.prompt.partition("<think>")[2].removesuffix("</think> <answer>")
        read = read_attempts(problem.info["numbers"], problem.info["target"], problem.prompt)
        torn += len(thinking.split()) % attempt_tokens(3) not in (0, 11, 12)
        answer = problem.solution.removesuffix(" </answer>")
        if read.found:
            assert task.reward(problem, tagged("", answer)) == 1.0
        elif read.attempts:
            assert answer == read.attempts[-1]
        assert answer in {a.text for a in all_attempts(tuple(sorted(problem.info["numbers"])))}
    assert torn > 200


def test_asked_lengths_are_obeyed_as_far_as_attempts_allow():
    task, problems = of("asked", 600)
    exact = [p for p in problems if p.info["kind"] == "exact"]
    lengths = [(len(TOKENS.encode(p.solution)), p.info["target_tokens"]) for p in exact]
    near = sum(abs(n - asked) <= 0.15 * asked + 7 for n, asked in lengths) / len(lengths)
    assert 0.6 < near < 0.9 and len(exact) == pytest.approx(400, abs=50)
    assert max(n for n, _ in lengths) > 380 and min(asked for _, asked in lengths) < 40
    for problem in problems:
        if problem.info["kind"] == "max" and problem.info["target_tokens"] >= 28:
            assert len(TOKENS.encode(problem.solution)) <= problem.info["target_tokens"]
    assert any(" maximum " in p.prompt for p in problems)


def test_some_thoughts_begin_with_wait_and_some_insist_on_their_yes():
    task, problems = of("long", 600, insist=0.2, wait_first=0.3)
    first = sum(p.solution.startswith("<think> wait ") for p in problems) / 600
    checks = [task.metrics(p, p.solution)["checks"] for p in problems if task.reward(p, p.solution)]
    assert first == pytest.approx(0.3, abs=0.06)
    assert sum(n > 2 for n in checks) / len(checks) == pytest.approx(0.2 * INSISTENT**3, abs=0.03)
    task, problems = of("long", 300, insist=0.0, wait_first=0.0, check=0.0)
    assert all(task.metrics(p, p.solution)["checks"] == 0 and "<think> wait" not in p.solution for p in problems)


def test_thoughts_reach_the_longest_budget():
    task, problems = of("more", 300)
    lengths = [task.metrics(p, p.solution)["thinking/length"] for p in problems]
    assert max(lengths) > 370 and all(len(p.info["numbers"]) == 4 for p in problems)
    assert sum(task.reward(p, p.solution) for p in problems) / 300 > 0.3


def test_the_corpus_is_written_faster_than_any_model_learns_it():
    task = Attempts(shares=BASE_MIXTURE)
    [task.problem("warm", i) for i in range(300)]
    started = time.process_time()
    words = sum(len(task.problem("sft-0", i).solution.split()) for i in range(1000))
    assert words / (time.process_time() - started) > 50_000  # some 900,000 on one core


# ------------------------------------------------------------------------------------------- reading and the verdict


def test_the_reader_counts_what_is_there():
    said = f"{WRONG} no wait {RIGHT} yes wait {RIGHT} yes"
    m = TASK.metrics(FIFTY, tagged(said, RIGHT))
    assert (m["attempts"], m["attempts/legal"], m["attempts/new"], m["checks"], m["waits"]) == (3, 3, 2, 1, 2)
    assert (m["steps"], m["steps/right"], m["verdicts"], m["verdicts/right"]) == (8, 8, 3, 3)
    assert (m["hits"], m["hits/seen"], m["yes"]) == (2, 2, 2)
    assert (m["mode/search"], m["found"], m["found/lost"], m["gave_up"]) == (1, 1, 0, 0)
    m = TASK.metrics(FIFTY, tagged(f"{RIGHT} no", WRONG))  # found, not seen, not answered
    assert (m["verdicts"], m["verdicts/right"], m["found"], m["found/lost"], m["gave_up"]) == (1, 0, 1, 1, 1)
    assert (m["hits"], m["hits/seen"], m["yes"]) == (1, 0, 0)
    m = TASK.metrics(FIFTY, "<think> 6 * 5 = 31 , 31 + 20 = 51 no wait 20 - 6 = 14 , 14")  # wrong, then torn
    assert (m["attempts"], m["attempts/legal"], m["steps"], m["steps/right"]) == (1, 0, 3, 2)
    m = TASK.metrics(FIFTY, f"<think> aim for 30 first : {RIGHT} yes wait 50 - 20 = 30 so make 30 : {RIGHT} yes")
    assert (m["subgoals"], m["backward"], m["attempts"], m["attempts/legal"], m["checks"]) == (1, 1, 2, 2, 1)
    m = TASK.metrics(FIFTY, RIGHT)
    assert (m["attempts"], m["mode/guess"], m["found"]) == (0, 1, 0)
    m = TASK.metrics(FIFTY, "<think> 5 + 5 = 10 , 10 * 5 = 50 yes")  # a five too many
    assert (m["attempts"], m["attempts/legal"], m["found"], m["verdicts/right"]) == (1, 0, 0, 1)


@pytest.mark.parametrize(
    "answer",
    [
        "", "50", WRONG, "6 * 5 = 30", f"{RIGHT} yes", f"{RIGHT} , {RIGHT}", "5 * 6 = 30 , 30 + 20 = 51",
        "20 + 30 = 50", "6 * 5 = 30 , 30 + 20 = 50 , 50 - 0 = 50", "6 * 5 = 30 + 20 = 50", "6*5=30;30+20=50",
    ],
)  # fmt: skip
def test_wrong_answers_are_wrong(answer):
    assert TASK.reward(FIFTY, tagged("", answer)) == 0.0


def test_only_the_one_answer_counts():
    right = tagged(f"{RIGHT} yes", RIGHT)
    assert TASK.reward(FIFTY, right) == TASK.reward(FIFTY, tagged("", "5 * 6 = 30 , 20 + 30 = 50")) == 1.0
    assert TASK.reward(FIFTY, RIGHT) == 1.0 and Templated(TASK).reward(FIFTY, RIGHT) == 0.0
    for text in (f"<think> {RIGHT} yes </think>", right + right, right.replace("</answer>", "")):
        assert TASK.reward(FIFTY, text) == 0.0
    divided = tagged("", "20 / 5 = 4 , 6 * 4 = 24")
    for operations, verdict in (("+-*", 0.0), ("+-*/", 1.0)):
        assert Attempts(operations=operations).reward(WIDER.parse("24 from 6 5 20"), divided) == verdict
    assert TASK.reward(TASK.parse("40 from 10 10 3"), tagged("", "10 * 10 = 100 , 100 - 3 = 97")) == 0.0
    too_large = Attempts(max_input=60).parse("10 from 60 6 50")
    assert Attempts().reward(too_large, tagged("", "60 + 50 = 110 , 110 - 6 = 104")) == 0.0
    assert TASK.answer(right) == TASK.answer(RIGHT) and Templated(TASK).answer(RIGHT) is None
    assert TASK.answer(right) == TASK.answer(tagged("", "5 * 6 = 30 , 20 + 30 = 50")) != TASK.answer(tagged("", WRONG))
    for text, right in ((RIGHT, True), (tagged("", f"{RIGHT} yes"), True), (f"{RIGHT} .", True), (WRONG, False)):
        assert TASK.is_right_leniently(FIFTY, text) == right


HOSTILE = [*WORDS, *map(str, range(0, 61, 7)), "٣", "²", "9" * 30, "\n", "yes", "=", "  "]


@given(st.one_of(st.text(), st.lists(st.sampled_from(HOSTILE), max_size=60).map(" ".join)))
@example("<think> = yes")
@example("<think> 1 - 2 = 9 no </think> <answer> 1 / 0 = 0 </answer>")
def test_any_text_is_read(text):
    for problem in (FIFTY, HARD.parse("36 from 8 4 2 7"), of("compare", 1)[1][0]):
        metrics = TASK.metrics(problem, text)
        assert metrics.keys() == TASK.metrics(FIFTY, "").keys()
        assert all(value >= 0 for value in metrics.values()) and metrics["steps/right"] <= metrics["steps"]
        assert TASK.reward(problem, text) in (0.0, 1.0)
        TASK.answer(text)


@pytest.mark.parametrize("text", ["<think> ", "yes ", "1 + 1 = 2 ", "wait no ", "<answer>", "= ", "1 + ", ", : ", "9"])
def test_reading_is_linear(text):
    started = time.process_time()
    for whole in (text * 40_000, "<think> " + text * 40_000):
        TASK.metrics(FIFTY, whole)
    assert time.process_time() - started < 3


# --------------------------------------------------------------------------------------------------------- settings


def test_typed_problems():
    assert FIFTY.prompt == "50 from 6 5 20" and FIFTY.info["solutions"] >= 1
    for text in ("", "50", "50 from 6", "99 from 6 5 12", "50 from 20 6 5", "1 2 3 4 5 6 7"):
        with pytest.raises(ValueError, match="43 from"):
            TASK.parse(text)


def test_mixtures_are_flags_and_survive_a_checkpoint():
    argv = ["--task", "attempts", "--task.shares", "guess:.25,long:.75", "--task.give-up", "1,0"]
    config = parse_config(sft.PRESETS, argv, prog="x")
    assert config.task.shares == Mixture((("guess", 0.25), ("long", 0.75))) and config.task.give_up == (1, 0)
    assert from_flat("task", flatten(config), TASKS) == config.task
    hard = parse_config(sft.PRESETS, ["--task", "hard_attempts,templated", "--task.check", "0"], prog="x").task
    assert hard.task == replace(HARD, check=0.0)
    for wrong in ("guess", "guess:x", "guess:-1", "guess:0", "dream:1", "guess:1,guess:1", "guess:inf", ""):
        with pytest.raises(ValueError):
            Mixture.parse(wrong)
        with pytest.raises(ValueError):
            parse_config(sft.PRESETS, ["--task", "attempts", "--task.shares", wrong], prog="x")
    for settings in ({"targets": (60, 10)}, {"targets": (10, 99)}, {"operations": "+^"}, {"max_input": 99}):
        with pytest.raises(ValueError):
            Attempts(**settings)


def test_a_template_goes_around_and_the_vocabulary_holds_what_others_say():
    task = parse_config(sft.PRESETS, ["--task", "attempts,asked_length,templated"], prog="x").task
    TOKENS.encode(task.problem("rl-0", 0).prompt)
    TOKENS.encode(f"User: {' '.join(TAGS)} Assistant: {' '.join(RETRY)} spawn 8 - 4 = 4 : 4 2 7 ; join none")
    TOKENS.encode("aim for 20 first so make 10 Think for maximum 1 2 8 tokens.")
    assert TOKENS.vocab_size < 110 and task.stop == ("</answer>",)


def test_mixture_draws_are_those_of_its_shares():
    draw = random.Random(0)
    counts = Counter(Mixture.parse("guess:1,long:3").drawn(draw) for _ in range(2000))
    assert counts["long"] / 2000 == pytest.approx(0.75, abs=0.03)


def test_problems_can_be_chosen_by_how_often_a_random_attempt_solves_them():
    easy = Attempts(chance=(0.14, 1.0))
    found = [easy.problem(split, i).info["chance"] for split in ("train", "test") for i in range(50)]
    assert min(found) >= 0.14 and len({p.prompt for p in map(lambda i: easy.problem("train", i), range(50))}) > 40
    assert max(Attempts(chance=(0.0, 0.05)).problem("train", i).info["chance"] for i in range(50)) <= 0.05
    assert [Attempts().problem("train", i).info["chance"] for i in range(5)] != found[:5]
    with pytest.raises(ValueError, match="smallest and the largest"):
        Attempts(chance=(0.5, 0.1))
