"""Digit addition in the text format of STaR (Zelikman et al., 2022): one token per digit, a scratchpad, an answer.

    Input:                       the prompt: an n-digit sum
    6 2 4 + 2 5 9
    Target:                      with a hint: "Target: 8 8 3"
    <scratch>                    the response
    6 2 4 + 2 5 9 , C: 0         the sum again; this line stands for the ones column, nothing is carried in
    2 + 5 , 3 C: 1               the next pair of digits, after the comma the result so far, then the carry so far
    6 + 2 , 8 3 C: 0
    , 8 8 3 C: 0                 no pair is left
    0 8 8 3                      the last carry in front
    </scratch>
    8 8 3                        the answer, without leading zero

`ThinkingAddition` poses the same sums in words of one line, and its solutions think first, in the tags of DeepSeek-R1:

    4 7 + 3 8                                                                                  the prompt
    <think> </think> <answer> 8 5 </answer>                                                    direct: no thought
    <think> 7 + 8 = 1 5 , 4 + 3 + 1 = 8 , so 8 5 </think> <answer> 8 5 </answer>               steps: one pass
    <think> 7 + 8 = 1 6 , ... , so 8 6 wait 7 + 8 = 1 5 , ... , so 8 5 wait ... </think> ...   recheck: until two agree

Its demonstrations contain slips, as what people write does, so a single pass is wrong now and then and checking pays.

Splits: every sum (a, b) belongs to "test" or to the rest by a hash of itself, so no training sum is ever tested.
One-digit sums are so few (81) that a tenth of them says nothing: they are tested all, and that curve is practice.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from nanoreason.rewards import TAGS, extract_answer, extract_tagged, tagged
from nanoreason.rollout import Problem, seed_of
from nanoreason.tokenizer import TextTokenizer, word_tokenizer

TEST_SHARE = 10  # one sum in ten is held out


def tokenizer() -> TextTokenizer:
    """The 19 tokens that all of this task's texts are made of."""
    return word_tokenizer(["\n", "Input:", "Target:", "<scratch>", "</scratch>", "C:", "+", ",", *"0123456789"])


def spaced(number: int | str) -> str:
    """
    >>> spaced(624)
    '6 2 4'
    """
    return " ".join(str(number))


def scratchpad(a: int, b: int) -> str:
    """The worked response for two numbers with equally many digits.

    >>> print(scratchpad(6, 7))
    <scratch>
    6 + 7 , C: 0
    , 3 C: 1
    1 3
    </scratch>
    1 3
    """
    left, right = str(a), str(b)
    if len(left) != len(right):
        raise ValueError(f"{a} and {b} do not have equally many digits")
    lines = [f"{spaced(a)} + {spaced(b)} , C: 0"]
    done, carry = "", 0
    for column in reversed(range(len(left))):
        carry, digit = divmod(int(left[column]) + int(right[column]) + carry, 10)
        done = f"{digit}{done}"
        pair = f"{left[column - 1]} + {right[column - 1]} " if column else ""
        lines.append(f"{pair}, {spaced(done)} C: {carry}")
    lines.append(spaced(f"{carry}{done}"))
    return "\n".join(["<scratch>", *lines, "</scratch>", spaced(a + b)])


def sum_problem(a: int, b: int, form: str = "scratchpad") -> Problem:
    """The problem of adding two numbers with equally many digits; its solution is worked or the answer alone."""
    answer = spaced(a + b)
    solution = scratchpad(a, b) if form == "scratchpad" else answer
    return Problem(f"Input:\n{spaced(a)} + {spaced(b)}\nTarget:\n", answer, solution, {"digits": len(str(a))})


def is_test(a: int, b: int) -> bool:
    return seed_of("addition", a, b) % TEST_SHARE == 0


def summands(digits: int, split: str, draw: random.Random) -> tuple[int, int]:
    """Two numbers of so many digits, whose sum belongs to the split."""
    low, high = 10 ** (digits - 1), 10**digits - 1
    a, b = draw.randint(low, high), draw.randint(low, high)
    while is_test(a, b) != (split == "test"):
        a, b = draw.randint(low, high), draw.randint(low, high)
    return a, b


def hinted(problem: Problem) -> Problem:
    """The same problem with its answer on the target line. The gold answer has no leading zero, here as in training."""
    # DIFFERS from the paper's code: its query hint keeps a leading 0 for two sums in five, its examples do not.
    return replace(problem, prompt=problem.prompt[:-1] + f" {problem.answer}\n", info={**problem.info, "hinted": True})


def answer_of(response: str) -> str:
    """The line behind the scratchpad, or the first line of a response that has none."""
    lines = response.split("\n")
    after = lines.index("</scratch>") + 1 if "</scratch>" in lines else 0
    return lines[after].strip() if after < len(lines) else ""


def trimmed(response: str) -> str:
    """The response up to its answer's line: what came after was not part of the trace."""
    lines = response.split("\n")
    return "\n".join(lines[: lines.index("</scratch>") + 2 if "</scratch>" in lines else 1])


@dataclass(frozen=True)
class Addition:
    """n-digit sums; item i of a split has `digits[i % len(digits)]` digits, or a length drawn by `shares`."""

    digits: tuple[int, ...] = (1, 2, 3, 4, 5)
    form: str = "scratchpad"  # or "direct": the answer alone
    shares: tuple[float, ...] = ()  # chance of each length; empty: all lengths in turn
    hint_share: float = 0.0  # how many of the problems carry their answer as a hint

    def __post_init__(self) -> None:
        if self.form not in ("scratchpad", "direct"):
            raise ValueError(f"form {self.form!r}: use scratchpad or direct")
        if not self.digits or min(self.digits) < 1:
            raise ValueError(f"digits {self.digits}: every length must be at least 1")
        if self.shares and len(self.shares) != len(self.digits):
            raise ValueError(f"{len(self.shares)} shares for {len(self.digits)} digit lengths")

    def problem(self, split: str, index: int) -> Problem:
        """`split` is "test" or any other name; all others share the sums that are not held out."""
        draw = random.Random(seed_of("addition", split, index))
        n = draw.choices(self.digits, self.shares)[0] if self.shares else self.digits[index % len(self.digits)]
        a, b = summands(n, split, draw)
        problem = sum_problem(a, b, self.form)
        return hinted(problem) if draw.random() < self.hint_share else problem

    def reward(self, problem: Problem, response: str) -> float:
        """1.0 if the answer's line is the gold answer, else 0.0."""
        return float(answer_of(response) == problem.answer)

    def work_is_valid(self, problem: Problem, response: str) -> bool:
        """Whether every line is what the procedure asks for. It leaves no choice, so the lines can be compared."""
        return trimmed(response) == problem.solution


def digits_of(problem: Problem) -> int:
    """The difficulty of a sum: its number of digits."""
    return problem.info["digits"]


@functools.cache
def longest_response(digits: int) -> int:
    """Tokens of the longest worked response to a sum of `digits` digits, EOS included: that of all nines."""
    return len(tokenizer().encode(scratchpad(10**digits - 1, 10**digits - 1))) + 1


def budget(problem: Problem) -> int:
    """Response tokens after which a sum cannot be right any more."""
    return longest_response(digits_of(problem))


def test_sums(digits: tuple[int, ...], count: int, form: str = "scratchpad") -> list[Problem]:
    """`count` held-out sums of each length; for one digit all 81 sums, seen ones included, whatever `count` is."""
    one_digit = [sum_problem(a, b, form) for a in range(1, 10) for b in range(1, 10)] if 1 in digits else []
    return one_digit + [Addition((n,), form).problem("test", i) for n in digits if n > 1 for i in range(count)]


# ------------------------------------------------------------------------------------------------- sums with thinking

MODES = ("direct", "steps", "recheck")
# Numbers and instructions of other sections are words of the same vocabulary, so one base serves all of them.
THINKING_WORDS = [
    "User:", "Assistant:", "<think>", "</think>", "<answer>", "</answer>", "wait", "so", "+", "=", ",", "?",
    "Think", "for", "maximum", "tokens.", "steps", "left", "short", "long", "Final", "Answer:", "answer", "check",
    "but", "Alternatively", "Hmm", *"0123456789",
]  # fmt: skip


def thinking_tokenizer() -> TextTokenizer:
    """One token per word of THINKING_WORDS, so also per digit, and EOS."""
    return word_tokenizer(THINKING_WORDS)


def another(digit: int | str, draw: random.Random) -> str:
    """A digit that is not this one."""
    return str((int(digit) + draw.randint(1, 9)) % 10)


def one_pass(a: int, b: int, slip: float = 0.0, draw: random.Random | None = None) -> tuple[str, str]:
    """Column by column from the right; each column's digit is wrong with chance `slip`. Returns (text, result).

    A slip is believed: the result is made of the digits as they were written. The carry is never wrong.

    >>> one_pass(47, 38)
    ('7 + 8 = 1 5 , 4 + 3 + 1 = 8 , so 8 5', '8 5')
    """
    columns, result, carry = [], "", 0
    for x, y in zip(reversed(str(a)), reversed(str(b)), strict=True):
        pair = f"{x} + {y} + 1" if carry else f"{x} + {y}"
        carry, digit = divmod(int(x) + int(y) + carry, 10)
        if slip and draw.random() < slip:
            digit = another(digit, draw)
        result = f"{digit}{result}"
        columns.append(f"{pair} = {'1 ' * carry}{digit}")
    result = spaced("1" * carry + result)
    return f"{' , '.join(columns)} , so {result}", result


def thoughts(
    a: int, b: int, mode: str, slip: float, draw: random.Random, doubt: float = 0.0, most: int = 4, care: float = 1.0
) -> tuple[str, str]:
    """What stands between the think tags in one of MODES, and the answer it ends in.

    To recheck is to work the sum out again until two passes agree, or `most` are done; with chance `doubt` once more
    although they agree. A re-check slips `care` times as often as the first pass. The answer is the last pass's result.
    """
    if mode == "direct":
        return "", spaced(a + b)
    passes = [one_pass(a, b, slip, draw)]
    while mode == "recheck" and len(passes) < most:
        results = [result for _, result in passes]
        if results[-1] in results[:-1] and draw.random() >= doubt:
            break
        passes.append(one_pass(a, b, care * slip, draw))
    return " wait ".join(text for text, _ in passes), passes[-1][1]


@dataclass(frozen=True)
class ThinkingAddition:
    """n-digit sums whose solutions think in tags. `info` holds the number of digits and the solution's mode as `form`.

    Item i of a split has `digits[i % len(digits)]` digits, or a length drawn by `shares`. Nothing asks for a mode: it
    is a function of (split, i) like all else, so that a model of these solutions takes each with about its share.
    """

    digits: tuple[int, ...] = (2, 3)
    shares: tuple[float, ...] = ()  # chance of each length; empty: all lengths in turn
    forms: Mapping[str, float] = field(default_factory=lambda: dict(zip(MODES, (0.67, 0.28, 0.05), strict=True)))
    slip: float = 0.1  # chance that a column's digit is wrong, in each pass anew
    doubt: float = 0.0  # chance of one more pass although two agree
    most: int = 4  # passes of a solution, after which it believes the last one
    care: float = 1.0  # a re-check slips so many times as often as the first pass
    messy: float = 0.0  # chance that a solution lacks one of its four tags, so that the format is left to learn
    guess: float = 0.0  # chance that a digit of a direct answer is wrong; sums of one digit are known by heart

    def __post_init__(self) -> None:
        if not self.digits or min(self.digits) < 1:
            raise ValueError(f"digits {self.digits}: every length must be at least 1")
        if self.shares and len(self.shares) != len(self.digits):
            raise ValueError(f"{len(self.shares)} shares for {len(self.digits)} digit lengths")
        if not self.forms or set(self.forms) - set(MODES):
            raise ValueError(f"forms {dict(self.forms)}: a chance for one or more of {', '.join(MODES)}")

    def problem(self, split: str, index: int) -> Problem:
        """`split` is "test" or any other name; all others share the sums that are not held out."""
        draw = random.Random(seed_of("thinking", split, index))
        n = draw.choices(self.digits, self.shares)[0] if self.shares else self.digits[index % len(self.digits)]
        a, b = summands(n, split, draw)
        mode = draw.choices(list(self.forms), list(self.forms.values()))[0]
        thinking, answer = thoughts(a, b, mode, self.slip, draw, self.doubt, self.most, self.care)
        if mode == "direct" and self.guess and n > 1:
            answer = " ".join(another(digit, draw) if draw.random() < self.guess else digit for digit in answer.split())
        solution = tagged(thinking, answer)
        if draw.random() < self.messy:
            missing = draw.choice(TAGS)
            solution = " ".join(word for word in solution.split() if word != missing)
        return Problem(f"{spaced(a)} + {spaced(b)}", spaced(a + b), solution, {"digits": n, "form": mode})

    def reward(self, problem: Problem, response: str) -> float:
        """1.0 if the one <answer> of the response, or a response that is nothing but an answer, is the sum; else 0.0"""
        return float(extract_answer(response) == problem.answer)

    def traits(self, response: str) -> dict[str, float]:
        """What the response did, as numbers whose mean over many responses says something."""
        read = read_thinking(response)
        return {
            **{f"mode/{mode}": float(read.mode == mode) for mode in MODES},
            "thinking/length": float(read.tokens),
            "thinking/rechecks": float(read.rechecks),
            "thinking/passes": float(read.passes),
            "thinking/repeated": float(read.repeated),
        }


class Thinking(NamedTuple):
    """What a response did, read from its text; nothing here says that it is right."""

    mode: str  # one of MODES, or "none": no <think> at the beginning
    results: tuple[str, ...]  # what each finished pass came to, e.g. ("8 6", "8 5")
    rechecks: int  # how often it said "wait"
    repeated: int  # passes that are an earlier one word by word: 1 where two agreed, more is repetition
    tokens: int  # words between the tags
    answer: str | None  # what stands in the one <answer>

    @property
    def passes(self) -> int:
        return len(self.results)


def read_thinking(response: str) -> Thinking:
    """How a response of `ThinkingAddition` thinks; total: any text is read, one that was cut as far as it goes.

    >>> read_thinking("<think> 7 + 2 = 8 , so 8 wait 7 + 2 = 9 , so 9 wait 7 + 2 = 9 , so 9 </think> <answer> 9")
    Thinking(mode='recheck', results=('8', '9', '9'), rechecks=2, repeated=1, tokens=26, answer=None)
    >>> read_thinking("<think> </think> <answer> 8 5 </answer>").mode, read_thinking("8 5").mode
    ('direct', 'none')
    """
    answer = extract_tagged(response)
    if not response.lstrip().startswith("<think>"):
        return Thinking("none", (), 0, 0, 0, answer)
    thinking = response.lstrip().removeprefix("<think>").split("</think>")[0].split("<answer>")[0]
    words = thinking.split()
    parts = [part.strip() for part in " ".join(words).split("wait")]
    results = tuple(part.rpartition("so ")[2] for part in parts if "so " in part)
    passes = [part for part in parts if part]
    rechecks = words.count("wait")
    mode = "recheck" if rechecks else "steps" if words else "direct"
    return Thinking(mode, results, rechecks, len(passes) - len(set(passes)), len(words), answer)


@functools.cache
def longest_thinking(digits: int, passes: int = 1) -> int:
    """Tokens of the longest response of `passes` passes over a sum of `digits` digits, tags and EOS included."""
    nines = 10**digits - 1
    thinking = " wait ".join([one_pass(nines, nines)[0]] * passes)
    return len(thinking_tokenizer().encode(tagged(thinking, spaced(2 * nines)))) + 1


def thinking_sums(digits: tuple[int, ...], count: int) -> list[Problem]:
    """`count` held-out sums of each length, for `ThinkingAddition`."""
    return [ThinkingAddition((n,)).problem("test", i) for n in digits for i in range(count)]


# ------------------------------------------------------------------------------------ what a prompt says about length


def asked(problem: Problem, kind: str, amount: int | str) -> Problem:
    """The problem with a word about its thinking: L1's two sentences, or a number of steps, or a class (both of s1).

    `info["target_tokens"]` is the number of a sentence about tokens, which length rewards read.

    >>> sum_up = Problem("4 7 + 3 8", "8 5")
    >>> for how in (("exact", 48), ("max", 48), ("steps", 2), ("class", "long")):
    ...     print(asked(sum_up, *how).prompt)
    4 7 + 3 8 Think for 4 8 tokens.
    4 7 + 3 8 Think for maximum 4 8 tokens.
    4 7 + 3 8 Think for 2 steps
    4 7 + 3 8 Think long
    """
    words = {"exact": "for {} tokens.", "max": "for maximum {} tokens.", "steps": "for {} steps", "class": "{}"}
    sentence = words[kind].format(amount if kind == "class" else spaced(amount))
    target = {"target_tokens": amount, "kind": kind} if kind in ("exact", "max") else {}
    return replace(problem, prompt=f"{problem.prompt} Think {sentence}", info={**problem.info, **target})


def carries(problem: Problem) -> int:
    """How many columns of a sum carry.

    >>> carries(Problem("4 7 + 3 8", "8 5")), carries(Problem("9 9 + 9 9 Think long", "1 9 8"))
    (1, 2)
    """
    left, right = problem.prompt.split(" Think ")[0].split(" + ")
    count = carry = 0
    for x, y in zip(reversed(left.split()), reversed(right.split()), strict=True):
        carry = int(x) + int(y) + carry >= 10
        count += carry
    return count


def counting_down(solution: str) -> str:
    """A solution each of whose passes says how many are left, itself included (s1, step-conditional control).

    >>> counting_down("<think> a wait b </think> <answer> c </answer>")
    '<think> 2 steps left a wait 1 steps left b </think> <answer> c </answer>'
    """
    thinking, answer = solution.removeprefix("<think> ").split(" </think>")
    parts = re.split(r" (wait|Hmm|Alternatively) ", thinking)  # pass, word, pass, ..., pass
    left = iter(range(len(parts) // 2 + 1, 0, -1))
    parts[::2] = [f"{spaced(next(left))} steps left {text}" for text in parts[::2]]
    return f"<think> {' '.join(parts)} </think>{answer}"
