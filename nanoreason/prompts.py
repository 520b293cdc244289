"""How a problem is asked and how its answer is found: prompt templates, the tags of DeepSeek-R1, sentences on length.

    User: 4 7 + 3 8 Assistant:                                            the prompt, in the template "skeleton"
    <think> 7 + 8 = 1 5 , ... </think> <answer> 8 5 </answer>             the response, in tags

Everything that reads a response is total: it never raises, whatever the text.
"""

from __future__ import annotations

import re
from dataclasses import replace

from nanoreason.rollout import Problem

# DeepSeek-R1 (2501.12948), table 1. Nothing in it says how to think: that is left to reinforcement learning.
R1_TEMPLATE = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant "
    "first thinks about the reasoning process in the mind and then provides the user with the answer. The reasoning "
    "process and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., "
    "<think> reasoning process here </think> <answer> answer here </answer>. User: {question} Assistant:"
)
OPEN, CLOSE, ANSWER, END = TAGS = ["<think>", "</think>", "<answer>", "</answer>"]
TEMPLATES = {
    "skeleton": "User: {question} Assistant:",  # for a tiny vocabulary, whose base has seen what follows
    "r1": R1_TEMPLATE,  # for a pretrained model, which must be told
}


def with_template(problem: Problem, template: str) -> Problem:
    """The same problem, asked in one of TEMPLATES.

    >>> with_template(Problem("1 + 2", "3"), "skeleton").prompt
    'User: 1 + 2 Assistant:'
    """
    if template not in TEMPLATES:
        raise ValueError(f"template {template!r}: use one of {', '.join(TEMPLATES)}")
    return replace(problem, prompt=TEMPLATES[template].replace("{question}", problem.prompt.strip()))


def extract_answer(response: str) -> str | None:
    """The text between the one <answer> and the one </answer>, or the whole response if it has neither tag.

    Two answers are no answer: otherwise listing all candidates would be rewarded.

    >>> extract_answer("<think>2+2</think> <answer> 4 </answer>"), extract_answer(" 4\\n")
    ('4', '4')
    >>> extract_answer("<answer>4</answer> or <answer>5</answer>"), extract_answer("<answer>4"), extract_answer(" ")
    (None, None, None)
    """
    opened, closed = response.count(ANSWER), response.count(END)
    if opened == closed == 0:
        return response.strip() or None
    start, end = response.find(ANSWER) + len(ANSWER), response.find(END)
    if opened != 1 or closed != 1 or end < start:
        return None
    return response[start:end].strip() or None


def extract_tagged(response: str) -> str | None:
    """The text in the one <answer>; a response without tags has no answer."""
    return extract_answer(response) if ANSWER in response else None


def tagged(thinking: str, answer: str) -> str:
    """
    >>> tagged("", "8 5"), tagged("hm", "8 5")
    ('<think> </think> <answer> 8 5 </answer>', '<think> hm </think> <answer> 8 5 </answer>')
    """
    return f"{OPEN} {thinking + ' ' if thinking else ''}{CLOSE} {ANSWER} {answer} {END}"


def is_well_formed(response: str) -> bool:
    """Whether a response is <think>...</think> <answer>...</answer>, each tag once, nothing around them.

    >>> right = "<think> 2 + 2 is 4 </think> <answer> 4 </answer>"
    >>> [is_well_formed(text) for text in (right, right + " 5", "<answer> 4 </answer>", right.replace("2 is", OPEN))]
    [True, False, False, False]
    """
    # what stands before the tags, <think>, thinking, </think>, between them, <answer>, answer, </answer>, behind
    parts = re.split(f"({'|'.join(TAGS)})", response.strip())
    return parts[1::2] == TAGS and not (parts[0] or parts[4].strip() or parts[8])


def spaced(number: int | str) -> str:
    """
    >>> spaced(624)
    '6 2 4'
    """
    return " ".join(str(number))


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
