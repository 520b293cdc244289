"""What a response is worth: finding the answer in it, exact arithmetic on text that nobody can trust, reward functions.

Everything here is total. A model under reinforcement learning tries whatever pays, so these functions accept a small
language, look at no more than MAX_ANSWER characters of it, return None for everything else, and never raise.

A reward function takes a batch of (prompts, completions, further columns) and returns one float per completion. That
is the interface of TRL's `reward_funcs`, so the functions of this file work there as they are. The columns are the
fields of `Problem`, and `completion_ids`: the tokens of each completion.
"""

from __future__ import annotations

import functools
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
                text = extract_answer(text) or "" if "<answer>" in text else ""
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
