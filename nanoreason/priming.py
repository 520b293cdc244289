"""Thoughts that show some of the four cognitive behaviours and no others (Gandhi et al., 2025): sets to prime a base.

    all attempts in some order, which behaviours -> thought, answer

    all_four      aim for 14 first : 20 - 6 = 14 , 14 + 5 = 19 no wait 50 - 20 = 30 so make 30 : 6 * 5 = 30 , ... yes
    backtracking  20 - 6 = 14 , 14 + 5 = 19 wait 6 * 5 = 30 , 30 + 20 = 50
    verification  20 - 6 = 14 , 14 + 5 = 19 no wait 6 * 5 = 30 , 30 + 20 = 50 yes
    subgoals      aim for 14 first : 20 - 6 = 14 , 14 + 5 = 19 wait aim for 30 first : 6 * 5 = 30 , 30 + 20 = 50
    backward      50 - 5 = 45 so make 45 : 20 - 6 = 14 , 14 + 5 = 19 wait 50 - 20 = 30 so make 30 : 6 * 5 = 30 , ...
    wrong         the thoughts of all_four; an answer that would be right has a slip behind its first step
    dots          as many words without meaning as all_four has
    empty         no thought
    forward       the last attempt alone

The first five go back to another attempt, and so does `wrong`: the others show no behaviour at all. The answer is the
last attempt. After a failed one a thought gives up with a chance that makes half of the answers right, as in the paper,
whose texts were not filtered: to go on is left to reinforcement.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

from nanoreason.countdown import apply

RETURNING = ("all_four", "backtracking", "verification", "subgoals", "backward")  # they go back; half end right
CONTROLS = ("dots", "empty", "forward")  # they show nothing
PRIMED = (*RETURNING, "wrong", *CONTROLS)
GIVE_UP, MOST_TRIES = 0.1, 10  # chance to end after a failed attempt; attempts of a thought, 210 tokens in all_four
FILLER = "none"  # a word that the base has not met; the paper's is "."
BACK = {"+": "-", "-": "+", "*": "/", "/": "*"}  # x + c = target: x must be target - c


class Tried(Protocol):
    """`tasks.attempts.Attempt`."""

    text: str  # "6 * 5 = 30 , 30 + 20 = 50"
    value: int  # 50


def primed(kind: str, tried: Sequence[Tried], target: int, draw: random.Random, largest: int) -> tuple[str, str] | None:
    """(thought, answer) of one of PRIMED, from all attempts in the order in which they are tried.

    The same attempts are made in all sets; no number exceeds `largest`. None if `wrong` finds no wrong answer.
    """
    tries = []
    for attempt in tried[:MOST_TRIES]:
        tries.append(attempt)
        if attempt.value == target or draw.random() < GIVE_UP:
            break
    answer = tries[-1].text
    if kind == "empty":
        return "", answer
    if kind == "forward":
        return answer, answer
    said = []
    for attempt in tries:
        verdict = f" {'yes' if attempt.value == target else 'no'}" if kind not in WITHOUT_VERDICT else ""
        said.append(f"{plan(kind, attempt.text, target, draw, largest)}{attempt.text}{verdict}")
    thought = " wait ".join(said)
    if kind == "wrong" and tries[-1].value == target:
        wrong = [attempt.text for attempt in tried if attempt.value != target]
        first = f"{answer.partition(' , ')[0]} , "
        answer = next((text for text in wrong if text.startswith(first)), wrong[0] if wrong else "")
        if not answer:
            return None
    return (" ".join(FILLER for _ in thought.split()) if kind == "dots" else thought), answer


WITHOUT_VERDICT = ("backtracking", "subgoals", "backward")


def plan(kind: str, attempt: str, target: int, draw: random.Random, largest: int) -> str:
    """What stands before an attempt: a subgoal, a step from the target backwards, or nothing."""
    if kind in ("backtracking", "verification"):
        return ""
    if kind not in ("subgoals", "backward"):  # a third of the attempts each
        kind = draw.choice(("subgoals", "backward", ""))
    said = subgoal(attempt, target) if kind == "subgoals" else ""
    if kind == "backward":
        said = backward_step(attempt, target, largest)
    return f"{said} : " if said else ""


def subgoal(attempt: str, target: int) -> str:
    """
    >>> subgoal("6 * 5 = 30 , 30 + 20 = 50", 50), subgoal("6 * 5 = 30 , 30 + 20 = 50", 30)
    ('aim for 30 first', '')
    """
    goal = attempt.split()[4]
    return f"aim for {goal} first" if goal != str(target) else ""


def backward_step(attempt: str, target: int, largest: int) -> str:
    """What must stand before the last step of an attempt for it to reach the target; "" if no such number is there.

    >>> backward_step("6 * 5 = 30 , 30 + 20 = 50", 50, 60), backward_step("3 + 4 = 7 , 20 - 7 = 13", 15, 60)
    ('50 - 20 = 30 so make 30', '20 - 15 = 5 so make 5')
    >>> backward_step("5 + 6 = 11 , 11 * 5 = 55", 50, 60), backward_step("5 + 6 = 11 , 11 - 4 = 7", 59, 60)
    ('50 / 5 = 10 so make 10', '')
    """
    steps = [step.split() for step in attempt.split(" , ")]
    if len(steps) < 2:
        return ""
    (left, sign, right, _, _), made = steps[-1], steps[-2][-1]
    if left == made or sign in "+*":
        a, back, b = target, BACK[sign], int(right if left == made else left)
    else:  # c - x = target: x must be c - target
        a, back, b = int(left), sign, target
    needed = apply(a, back, b)
    return f"{a} {back} {b} = {needed} so make {needed}" if needed is not None and needed <= largest else ""
