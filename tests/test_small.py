"""The small tasks: answers recomputed from prompts, thoughts checked by step, strict verdicts, held-out questions."""

import math
import re

import pytest

from nanoreason.tasks.small import LETTERS, SMALL, WORDS, Chain, Gcd, Mod, Mul, Reasoning, Sub, tokenizer

PROBLEMS = {name: [kind().problem(split, i) for split in ("train", "test") for i in range(120)]
            for name, kind in SMALL.items()}  # fmt: skip


def numbers(text: str) -> list[int]:
    """Digits that stand side by side, joined."""
    return [int(found.replace(" ", "")) for found in re.findall(r"\d(?: \d)*", text)]


def solved(name: str, question: str) -> object:
    """Another way to each answer."""
    n = numbers(question)
    letters = [word for word in question.split() if word in LETTERS]
    return {
        "mul": lambda: sum(n[0] for _ in range(n[1])),
        "mod": lambda: n[0] + n[1] - n[2] * ((n[0] + n[1]) // n[2]),
        "chain": lambda: n[0] + n[1] - n[2] + n[3],
        "gcd": lambda: max(d for d in range(1, 61) if n[0] % d == 0 == n[1] % d),
        "sort": lambda: sorted(n),
        "max": lambda: sorted(n)[-1],
        "sub": lambda: n[0] - n[1],
        "copy": lambda: letters,
        "reverse": lambda: letters[::-1],
        "recall": lambda: dict(zip(letters[:-1], n, strict=True))[letters[-1]],
        "count": lambda: letters[1:].count(letters[0]),
    }[name]()


@pytest.mark.parametrize("name", SMALL)
def test_every_answer_is_what_its_question_asks(name):
    for problem in PROBLEMS[name]:
        tag, _, question = problem.prompt.removesuffix(" =").partition(" ")
        wanted = solved(name, question)
        found = numbers(problem.answer) if name == "sort" else problem.answer.split()
        assert tag == name
        assert found == wanted if isinstance(wanted, list) else int("".join(found)) == wanted
        if name in ("chain", "sub"):
            assert wanted >= 0


@pytest.mark.parametrize("name", [name for name, kind in SMALL.items() if issubclass(kind, Reasoning)])
def test_thoughts_calculate_right_and_are_as_frequent_as_their_share(name):
    task = SMALL[name](scratch=1.0)
    for problem in (task.problem("train", i) for i in range(60)):
        thought = problem.solution.removeprefix("<think> ").partition(" </think> <answer>")[0]
        for step in thought.split(" , ") if name != "sort" else []:
            left, right = (side.replace(" ", "") for side in step.split(" = "))
            if name == "sub":
                digit, borrow = map(int, right.split(":"))
                a, b, before = map(int, left.split("-"))
                assert a - b - before == digit - 10 * borrow
            else:
                a, sign, b = re.fullmatch(r"(\d+)([-+*]|mod)(\d+)", left).groups()
                a, b = int(a), int(b)
                value = {"+": a + b, "-": a - b, "*": a * b, "mod": math.fmod(a, b) if b else None}[sign]
                assert value == int(right)
        if name == "sort":
            halves = [numbers(half) for half in thought.split(" ; ")]
            assert all(half == sorted(half) for half in halves)
            assert sorted(sum(halves, [])) == numbers(problem.answer)
    shares = [
        sum(SMALL[name](scratch=s).problem("train", i).info["thinks"] for i in range(200)) for s in (0.0, 0.3, 1.0)
    ]
    assert shares[0] == 0 and 35 <= shares[1] <= 85 and shares[2] == 200


def test_by_hand():
    mul = next(p for p in (Mul(scratch=1.0).problem("train", i) for i in range(2000)) if p.prompt == "mul 4 7 * 8 =")
    assert mul.solution == "<think> 4 0 * 8 = 3 2 0 , 7 * 8 = 5 6 </think> <answer> 3 7 6 </answer>"
    assert mul.answer == "3 7 6"


@pytest.mark.parametrize("task, most", [
    (Mul(largest=20), 20), (Mod(largest=9), 9), (Chain(largest=9), 9), (Gcd(largest=24), 24), (Sub(digits=2), 99),
    (Sub(digits=6), 999_999),
])  # fmt: skip
def test_numbers_are_as_large_as_asked(task, most):
    found = [max(numbers(task.problem("train", i).prompt)) for i in range(300)]
    assert max(found) <= most and max(found) > 0.8 * most


@pytest.mark.parametrize("name", SMALL)
def test_verdicts_are_strict(name):
    task = SMALL[name]()
    for problem in PROBLEMS[name][:40]:
        right = problem.answer
        said = f"<answer> {right} </answer>"
        assert task.reward(problem, said) == task.reward(problem, f"<think> = = </think> {said}") == 1
        assert task.reward(problem, problem.solution) == 1
        wrong = [f"<answer> {right} {right} </answer>", f"{said} {said}", f"<answer> {right} 0 </answer>", "", right,
                 f"<think> {right} </think>", f"<answer> {right}", f"<answer> = {right} </answer>"]  # fmt: skip
        assert not any(task.reward(problem, response) for response in wrong)


@pytest.mark.parametrize("name", SMALL)
def test_questions_are_held_out_and_one_vocabulary_has_all_words(name):
    train, test = ({p.prompt for p in PROBLEMS[name][k : k + 120]} for k in (0, 120))
    assert len(test) > 20 and not train & test
    assert all(tokenizer().encode(f"{p.prompt} {p.solution}") for p in PROBLEMS[name])
    assert SMALL[name]().tokenizer() is tokenizer() and tokenizer().vocab_size == len(set(WORDS)) + 1
