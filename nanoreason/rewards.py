"""What a response is worth: finding the answer in it, exact arithmetic on text that nobody can trust, reward functions.

Everything here is total. A model under reinforcement learning tries whatever pays, so these functions accept a small
language, look at no more than MAX_ANSWER characters of it, return None for everything else, and never raise.

A reward function takes a batch of (prompts, completions, further columns) and returns one float per completion. That
is the interface of TRL's `reward_funcs`, so the functions of this file work there as they are. The columns are the
fields of `Problem`, and `completion_ids`: the tokens of each completion.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

from nanoreason.rollout import Problem, Task
from nanoreason.tokenizer import TextTokenizer

RewardFunction = Callable[..., list[float]]

# DeepSeek-R1 (2501.12948), table 1. Nothing in it says how to think: that is left to reinforcement learning.
R1_TEMPLATE = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant "
    "first thinks about the reasoning process in the mind and then provides the user with the answer. The reasoning "
    "process and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., "
    "<think> reasoning process here </think> <answer> answer here </answer>. User: {question} Assistant:"
)
TAGS = ["<think>", "</think>", "<answer>", "</answer>"]
TEMPLATES = {
    "none": "{question}",  # the task's own prompt
    "skeleton": "User: {question} Assistant:",  # for a tiny vocabulary, whose base has seen what follows
    "r1": R1_TEMPLATE,  # for a pretrained model, which must be told
}
MAX_ANSWER = 300  # characters; a longer answer is no answer. Bounds the work and the size of every intermediate
TOKEN = re.compile(r"\s*(?:(0|[1-9][0-9]{0,11})|([-+*/()]))")  # [0-9], as \d takes every Unicode digit
BINDS = {"+": 1, "-": 1, "*": 2, "/": 2, "(": 0}


def extract_answer(response: str) -> str | None:
    """The text between the one <answer> and the one </answer>, or the whole response if it has neither tag.

    Two answers are no answer: otherwise listing all candidates would be rewarded.

    >>> extract_answer("<think>2+2</think> <answer> 4 </answer>"), extract_answer(" 4\\n")
    ('4', '4')
    >>> extract_answer("<answer>4</answer> or <answer>5</answer>"), extract_answer("<answer>4"), extract_answer(" ")
    (None, None, None)
    """
    opened, closed = response.count("<answer>"), response.count("</answer>")
    if opened == closed == 0:
        return response.strip() or None
    start, end = response.find("<answer>") + len("<answer>"), response.find("</answer>")
    if opened != 1 or closed != 1 or end < start:
        return None
    return response[start:end].strip() or None


def extract_tagged(response: str) -> str | None:
    """The text in the one <answer>; a response without tags has no answer."""
    return extract_answer(response) if "<answer>" in response else None


def safe_arithmetic(text: str) -> tuple[Fraction, list[int]] | None:
    """The exact value of an expression and the numbers it uses, in order; None unless all of it is one expression.

    The language: non-negative integers of at most 12 digits, + - * / with their usual precedence, parentheses, spaces.
    No unary signs, powers, floor division, decimal points, leading zeros, implied products, or division by zero.
    Dijkstra's two stacks instead of recursion: nesting cannot exhaust Python's own stack.

    >>> value, numbers = safe_arithmetic("8/(3-8/3)")
    >>> int(value), numbers
    (24, [8, 3, 8, 3])
    >>> [safe_arithmetic(trick) for trick in ("2**3", "7//2", "-3+5", "2(3)", "1/0", "1+2=3", "")]
    [None, None, None, None, None, None, None]
    """
    text = text.rstrip()
    if len(text) > MAX_ANSWER:
        return None
    numbers: list[int] = []
    values: list[Fraction] = []
    operators: list[str] = []

    def reduce() -> bool:
        """Apply the operator on top of the stack; False if that divides by zero."""
        sign, b, a = operators.pop(), values.pop(), values.pop()
        if sign == "/" and b == 0:
            return False
        values.append(a + b if sign == "+" else a - b if sign == "-" else a * b if sign == "*" else a / b)
        return True

    wants_value = True  # a number or "(" must come next; otherwise an operator or ")"
    position = 0
    while position < len(text):
        if not (token := TOKEN.match(text, position)):
            return None
        position = token.end()
        number, sign = token[1], token[2]
        if wants_value != (number is not None or sign == "("):
            return None
        if number is not None:
            numbers.append(int(number))
            values.append(Fraction(int(number)))
            wants_value = False
        elif sign == "(":
            operators.append(sign)
        else:
            # ")" closes back to its "("; an operator first applies what binds at least as tightly (left to right)
            while operators and operators[-1] != "(" and (sign == ")" or BINDS[operators[-1]] >= BINDS[sign]):
                if not reduce():
                    return None
            if sign == ")":
                if not operators:
                    return None
                operators.pop()
            else:
                operators.append(sign)
                wants_value = True
    if wants_value:
        return None
    while operators:
        if operators[-1] == "(" or not reduce():
            return None
    return values[0], numbers


# ------------------------------------------------------------------------------------- the template and its tags


def with_template(problem: Problem, template: str) -> Problem:
    """The same problem, asked in one of TEMPLATES.

    >>> with_template(Problem("1 + 2", "3"), "skeleton").prompt
    'User: 1 + 2 Assistant:'
    """
    if template == "none":
        return problem
    if template not in TEMPLATES:
        raise ValueError(f"template {template!r}: use one of {', '.join(TEMPLATES)}")
    return replace(problem, prompt=TEMPLATES[template].replace("{question}", problem.prompt.strip()))


def tagged(thinking: str, answer: str) -> str:
    """
    >>> tagged("", "8 5"), tagged("hm", "8 5")
    ('<think> </think> <answer> 8 5 </answer>', '<think> hm </think> <answer> 8 5 </answer>')
    """
    return f"<think> {thinking + ' ' if thinking else ''}</think> <answer> {answer} </answer>"


@functools.lru_cache(maxsize=2)  # a pretrained vocabulary has 150,000 tokens
def closing_ids(tokenizer: TextTokenizer, tag: str = "</answer>") -> tuple[int, ...]:
    """The tokens that may complete `tag`: the one that is the tag, or all that hold its last character.

    A byte-pair vocabulary cuts a tag differently after different texts, so whether a response is complete is read in
    its text; these tokens are where to look.
    """
    texts = {i: tokenizer.decode([i]) for i in range(tokenizer.vocab_size) if i != tokenizer.eos_id}
    whole = tuple(i for i, text in texts.items() if text.strip() == tag)
    return whole or tuple(i for i, text in texts.items() if tag[-1] in text)


# ------------------------------------------------------------------------------------------------ reward functions


def text_of(completion: str | list[dict]) -> str:
    """A completion as text; TRL gives those of a chat as a list of messages."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def accuracy_reward(task: Task, tags: bool = False) -> RewardFunction:
    """What the task's own verifier says: 1 or 0. With `tags` it sees what the one <answer> holds, and nothing else."""

    def accuracy(prompts, completions, answer, info=None, **columns) -> list[float]:
        rewards = []
        for i, completion in enumerate(completions):
            text = text_of(completion)
            if tags:
                text = extract_tagged(text) or ""
            problem = Problem(str(prompts[i]), answer[i], info=info[i] if info else {})
            rewards.append(float(task.reward(problem, text)))
        return rewards

    return accuracy


def format_reward(prompts, completions, **columns) -> list[float]:
    """1 if a completion is <think>...</think> <answer>...</answer>, each tag once, nothing around them; else 0.

    >>> right = "<think> 2 + 2 is 4 </think> <answer> 4 </answer>"
    >>> format_reward([""] * 4, [right, right + " 5", "<answer> 4 </answer>", right.replace("2 is", "<think>")])
    [1.0, 0.0, 0.0, 0.0]
    """
    rewards = []
    for completion in completions:
        # what stands before the tags, <think>, thinking, </think>, between them, <answer>, answer, </answer>, behind
        parts = re.split(f"({'|'.join(TAGS)})", text_of(completion).strip())
        rewards.append(float(parts[1::2] == TAGS and not (parts[0] or parts[4].strip() or parts[8])))
    return rewards


def overlong_reward(max_tokens: int, buffer: int) -> RewardFunction:
    """DAPO's soft overlong punishment (eq. 13): 0 up to max_tokens - buffer tokens, then falling in a line to -1.

    >>> overlong_reward(100, 20)([""] * 4, [""] * 4, completion_ids=[[0] * n for n in (80, 85, 100, 130)])
    [0.0, -0.25, -1.0, -1.0]
    """

    def overlong(prompts, completions, completion_ids, **columns) -> list[float]:
        over = [len(ids) - (max_tokens - buffer) for ids in completion_ids]
        return [-min(1.0, excess / buffer) if excess > 0 else 0.0 for excess in over]

    return overlong


# ------------------------------------------------------------------------------- length: verdicts shaped by tokens
#
# `correct` is the reward function whose 1 means right; the tokens of a completion include its EOS. A completion that
# reaches the limit was cut (or would have been by one token more): it counts as exceeding, whatever its text says.


def classic_reward(correct: RewardFunction, max_tokens: int, margin: int = 0) -> RewardFunction:
    """1 if right, 0 if wrong, and 0 where max_tokens is reached (Demystifying Long CoT, 2502.03373, section 4.1).

    It is silent about length up to the limit, so that thinking may grow into it.

    >>> def correct(prompts, completions, **columns): return [float(text == "4") for text in completions]
    >>> classic_reward(correct, 100)([""] * 3, ["4", "4", "5"], completion_ids=[[0] * n for n in (99, 100, 7)])
    [1.0, 0.0, 0.0]
    """

    def classic(prompts, completions, completion_ids, **columns) -> list[float]:
        verdicts = correct(prompts, completions, completion_ids=completion_ids, **columns)
        return [
            float(verdict == 1 and len(ids) + margin < max_tokens)
            for verdict, ids in zip(verdicts, completion_ids, strict=True)
        ]

    return classic


def cosine_reward(
    correct: RewardFunction,
    max_tokens: int,
    right: tuple[float, float] = (2.0, 1.0),
    wrong: tuple[float, float] = (-10.0, 0.0),
    exceed: float = -10.0,
    margin: int = 0,
) -> RewardFunction:
    """Half a cosine wave from a value at length 0 to a value at max_tokens (Demystifying Long CoT, section 4.2).

        r_L + (r_0 - r_L) (1 + cos(pi L / max_tokens)) / 2        (r_0, r_L) = `right` or `wrong`
        `exceed`                                                  where L + margin reaches max_tokens, even if right

    With the default values a short right answer is worth more than a long one, and a long wrong one costs less than a
    short one: think on where you do not know. The slope is 0 at both ends and steepest in the middle.

    >>> def correct(prompts, completions, **columns): return [float(text == "4") for text in completions]
    >>> reward, lengths = cosine_reward(correct, 100), (0, 25, 50, 75, 99, 100)
    >>> [round(r, 2) for r in reward([""] * 6, ["4"] * 6, completion_ids=[[0] * n for n in lengths])]
    [2.0, 1.85, 1.5, 1.15, 1.0, -10.0]
    >>> [round(r, 2) for r in reward([""] * 6, ["5"] * 6, completion_ids=[[0] * n for n in lengths])]
    [-10.0, -8.54, -5.0, -1.46, -0.0, -10.0]
    """
    # DIFFERS from the paper in print: its appendix defines CosFn(t, T, low, high) and its text calls it with (r_0, r_L)
    # as (low, high), which taken literally exchanges the ends. This is what its prose, figures and code agree on.
    # DIFFERS from the paper's code: its margin is 16 tokens of 14,336; tiny windows need all of theirs.

    def cosine(prompts, completions, completion_ids, **columns) -> list[float]:
        rewards = []
        verdicts = correct(prompts, completions, completion_ids=completion_ids, **columns)
        for verdict, ids in zip(verdicts, completion_ids, strict=True):
            start, end = right if verdict == 1 else wrong
            wave = end + (start - end) * (1 + math.cos(math.pi * len(ids) / max_tokens)) / 2
            rewards.append(exceed if len(ids) + margin >= max_tokens else wave)
        return rewards

    return cosine


def lcpo_exact_reward(correct: RewardFunction, alpha: float = 0.0003) -> RewardFunction:
    """LCPO-Exact: [right] - alpha * |target - tokens|, the target from `info["target_tokens"]` (L1, 2503.04697).

    In a group of equal verdicts the length term is all there is, and dividing by the group's deviation makes it a full
    signal however small alpha is; without that division alpha keeps its meaning. alpha * (range of the targets) is
    about 1.2 in the paper: the worst miss costs what a right answer brings.

    >>> def correct(prompts, completions, **columns): return [float(text == "4") for text in completions]
    >>> call = dict(completion_ids=[[0] * n for n in (50, 40, 70, 50)], info=[{"target_tokens": 50}] * 4)
    >>> lcpo_exact_reward(correct, alpha=0.01)([""] * 4, ["4", "4", "4", "5"], **call)
    [1.0, 0.9, 0.8, 0.0]
    """

    def lcpo_exact(prompts, completions, completion_ids, info, **columns) -> list[float]:
        verdicts = correct(prompts, completions, completion_ids=completion_ids, info=info, **columns)
        return [
            float(verdict == 1) - alpha * abs(about["target_tokens"] - len(ids))
            for verdict, ids, about in zip(verdicts, completion_ids, info, strict=True)
        ]

    return lcpo_exact


def lcpo_max_reward(correct: RewardFunction, alpha: float = 0.0003, delta: float = 0.5) -> RewardFunction:
    """LCPO-Max: [right] * clip(alpha * (target - tokens) + delta, 0, 1), the target an upper bound (L1).

    delta keeps a right answer that is a little too long better than a wrong one: it is worth nothing only from
    delta / alpha tokens beyond the bound on, and shorter ones earn up to 1.

    >>> def correct(prompts, completions, **columns): return [float(text == "4") for text in completions]
    >>> call = dict(completion_ids=[[0] * n for n in (50, 30, 0, 70, 101, 30)], info=[{"target_tokens": 50}] * 6)
    >>> lcpo_max_reward(correct, alpha=0.01)([""] * 6, ["4"] * 5 + ["5"], **call)
    [0.5, 0.7, 1.0, 0.3, 0.0, 0.0]
    """
    # DIFFERS from the paper's code, as does LCPO-Exact: that one scales the product into [-1, 1] before it halves it,
    # which doubles alpha, and its run script for Max selects no length reward at all. These are the paper's formulas.

    def lcpo_max(prompts, completions, completion_ids, info, **columns) -> list[float]:
        verdicts = correct(prompts, completions, completion_ids=completion_ids, info=info, **columns)
        return [
            min(1.0, max(0.0, alpha * (about["target_tokens"] - len(ids)) + delta)) if verdict == 1 else 0.0
            for verdict, ids, about in zip(verdicts, completion_ids, info, strict=True)
        ]

    return lcpo_max


def lcpo_reward(correct: RewardFunction, alpha: float = 0.0003, delta: float = 0.5) -> RewardFunction:
    """Of each completion the reward that its prompt names: `info["kind"]` is exact or max (L1's mixed training of Max).

    >>> def correct(prompts, completions, **columns): return [float(text == "4") for text in completions]
    >>> call = dict(completion_ids=[[0] * 40] * 2, info=[{"target_tokens": 50, "kind": k} for k in ("exact", "max")])
    >>> lcpo_reward(correct, alpha=0.01)([""] * 2, ["4", "4"], **call)
    [0.9, 0.6]
    """
    rewards = {"exact": lcpo_exact_reward(correct, alpha), "max": lcpo_max_reward(correct, alpha, delta)}

    def lcpo(prompts, completions, info, **columns) -> list[float]:
        of = {kind: reward(prompts, completions, info=info, **columns) for kind, reward in rewards.items()}
        return [of[about["kind"]][i] for i, about in enumerate(info)]

    return lcpo


# ------------------------------------------------------------------------------------------------------ repetition


def repetition_penalties(tokens: list[int], n: int = 40, penalty: float = -0.05) -> list[float]:
    """tokens (T) -> one reward per token (T): `penalty` for each token of an n-gram that was there before, else 0.

    Demystifying Long CoT, algorithm 1: the first occurrence is free, and a token in several repeated n-grams gets the
    penalty once. These are rewards of tokens, not of the response: they go into `Rollout.token_advantages` as the
    discounted sum of what follows (`learn.discounted_returns`).

    >>> repetition_penalties([1, 2, 3, 1, 2, 3, 4], n=2, penalty=-1.0)
    [0.0, 0.0, 0.0, -1.0, -1.0, -1.0, 0.0]
    >>> repetition_penalties([5, 5, 5], n=2, penalty=-1.0)  # the repeated 2-gram overlaps the first one
    [0.0, -1.0, -1.0]
    """
    rewards = [0.0] * len(tokens)
    seen: set[tuple[int, ...]] = set()
    for first in range(len(tokens) - n + 1):
        gram = tuple(tokens[first : first + n])
        if gram in seen:
            rewards[first : first + n] = [penalty] * n
        seen.add(gram)
    return rewards


def repetition_reward(n: int = 40, penalty: float = -1.0) -> RewardFunction:
    """The sparse form: `penalty` times the share of a completion's n-grams that repeat an earlier one.

    One number for the whole response, which does not say where it repeats itself (TRL's get_repetition_penalty_reward,
    there over words).

    >>> repetition_reward(2)([""] * 3, [""] * 3, completion_ids=[[1, 2, 3], [5, 5, 5, 5, 5], [1]])
    [0.0, -0.75, 0.0]
    """

    def repetition(prompts, completions, completion_ids, **columns) -> list[float]:
        rewards = []
        for ids in completion_ids:
            grams = [tuple(ids[first : first + n]) for first in range(len(ids) - n + 1)]
            rewards.append(penalty * (1 - len(set(grams)) / len(grams)) if len(set(grams)) < len(grams) else 0.0)
        return rewards

    return repetition
