"""Thinking as long as it is asked to: LCPO

L1 (2503.04697) asks for a length in the prompt, "Think for N tokens.", and pays for keeping to it. Write
`Lcpo.__call__(scored)` in `rewards.py`, behind the check that the prompt asked for a length; n is the length of the
response, [right] is 1 for a right response and 0 for any other one:

    kind exact   [right] - alpha * |N - n|                              (eq. 1)
    kind max     [right] * clip(alpha * (N - n) + delta, 0, 1)          (eq. 2)

- N is `info["target_tokens"]`; the kind is `info["kind"]`, `"exact"` or `"max"`, and exact where `info` has none.
- n is `scored.tokens`: the **whole** response, its answer and its EOS included, not the thinking alone.
- `scored.right` says whether the response is right, `self.alpha` is the price of a token, `self.delta` what a right
  answer of exactly N tokens is worth.
- Exact pays for the length of wrong answers too, and may be negative. Max pays for right answers alone, and lies in
  0 to 1: being shorter than asked for is welcome, being a little too long is better than being wrong.
- The limit (`scored.limit`) has no part in it, nor has `self.weight`, which is multiplied where rewards are summed.
"""

import math
import random

PART = "Length"
POINTS = 3
SECONDS = 1
FILES = ("rewards.py",)
HINTS = (
    "`info` is there already: `scored.row.problem.info`, read by the check above your region.",
    "clip(x, 0, 1) is `min(1.0, max(0.0, x))`; what is clipped is the whole of alpha * (N - n) + delta.",
)
BUG = (
    'Readers of L1 could not tell whether its "length" is the thinking or the whole response (L1#23; its code counts '
    "the whole response): a reward and a plot that count differently are off by the answer. Its code also "
    "scales Max into [-1, 1] before it halves it, which doubles alpha against the paper."
)


def reward(target, length, is_right, kind=None, alpha=0.01, delta=0.5, prompt=2):
    return rewards(target, [[length, is_right]], kind, alpha, delta, prompt)[0]


def rewards(target, responses, kind=None, alpha=0.01, delta=0.5, prompt=2):
    """Of (length, whether it is right); the first third of a response is its thinking."""
    from nanoreason.rewards import Lcpo, Scored
    from nanoreason.rollout import Problem, Rollout

    found = []
    for length, is_right in responses:
        tokens = [5] * (prompt + length)
        info = {"target_tokens": target} | ({"kind": kind} if kind else {})
        row = Rollout(Problem("Think", "", info=info), tokens, [True] * len(tokens), [0.0] * len(tokens), prompt)
        text = f"<think>{' a' * (length // 3)} </think> <answer> b </answer>"
        found.append(Lcpo(alpha=alpha, delta=delta)(Scored(row, text, float(is_right), 1000)))
    return found


CALLS = (reward, rewards)


def close(found, wanted, where=""):
    assert math.isclose(found, wanted, rel_tol=1e-9, abs_tol=1e-9), f"{found} instead of {wanted} {where}"


def public_exact(call):
    """Exact, 30 asked for: right with 30 is worth 1, right with 20 or 40 0.9, wrong with 40 -0.1"""
    for length, right, wanted in ((30, True, 1), (20, True, 0.9), (40, True, 0.9), (40, False, -0.1), (30, False, 0)):
        close(call("reward", 30, length, right, "exact"), wanted, f"({length} tokens, right: {right})")


def public_max(call):
    """Max, 100 asked for: right with 100 is worth 0.5, with 120 0.3, with 20 1; a wrong one 0"""
    for length, right, wanted in ((100, True, 0.5), (120, True, 0.3), (20, True, 1), (200, True, 0), (20, False, 0)):
        close(call("reward", 100, length, right, "max"), wanted, f"({length} tokens, right: {right})")


def public_exact_is_the_default(call):
    """Where info names no kind it is exact"""
    close(call("reward", 100, 20, False), -0.8)


def hidden_exact(call, draw):
    """Exact is a tent: each token off costs alpha on either side, right or wrong, without end"""
    for _ in range(20):
        target, miss, alpha = draw.randint(0, 300), draw.randint(0, 400), draw.uniform(1e-4, 0.1)
        for right in (1, 0):
            lengths = [target + miss, target + miss + 1] + [target - miss] * (miss <= target)
            long, longer, *short = call("rewards", target, [[n, right] for n in lengths], "exact", alpha)
            for value in (long, *short):
                close(value, right - alpha * miss, f"({miss} off, right: {right})")
            close(long - longer, alpha, "is what one token more costs")


def hidden_max(call, draw):
    """Max falls by alpha a token from 1 to 0, goes through delta at N, and pays right answers alone"""
    for _ in range(8):
        target, alpha, delta = draw.randint(20, 200), draw.uniform(2e-3, 0.1), draw.uniform(0.1, 0.9)
        values = call("rewards", target, [[n, True] for n in range(400)], "max", alpha, delta)
        close(values[target], delta, "at N tokens")
        for n, value in enumerate(values):
            ramp = delta + alpha * (target - n)
            close(value, 1 if ramp > 1 else 0 if ramp < 0 else ramp, f"(max: {n} tokens, {target} asked for)")
        wrong = set(call("rewards", target, [[n, False] for n in range(0, 400, 7)], "max", alpha, delta))
        assert wrong == {0}, f"max pays wrong answers {wrong}"


def hidden_the_whole_response(call, draw):
    """The length is that of the response: neither its prompt's nor its thinking's"""
    length, target = draw.randint(30, 90), draw.randint(30, 90)
    for kind in ("exact", "max"):
        values = [call("reward", target, length, True, kind, prompt=prompt) for prompt in (0, 5, 50)]
        best = 1 - 0.01 * abs(target - length) if kind == "exact" else min(1, 0.5 + 0.01 * (target - length))
        for value in values:
            close(value, best, f"({kind})")


def hidden_signal(call, draw):
    """Exact: in a group of equal verdicts the order is that of the distance to N; max: wrong answers are all alike"""
    target = draw.randint(40, 60)
    lengths = draw.sample(range(20, 90), 6)
    for right in (True, False):
        values = call("rewards", target, [[n, right] for n in lengths], "exact")
        misses = [
            abs(lengths[i] - target) for i in sorted(range(6), key=lambda i: (-values[i], abs(lengths[i] - target)))
        ]
        assert misses == sorted(misses) and len(set(values)) == len(set(misses)), f"misses by falling reward: {misses}"
    assert len(set(call("rewards", target, [[n, False] for n in lengths], "max"))) == 1, "max looks at wrong answers"


def hidden_half_right(call, draw: random.Random):
    """A verdict of less than 1 is not right"""
    for kind in ("exact", "max"):
        values = [call("reward", 50, 40, verdict, kind) for verdict in (draw.uniform(0.1, 0.9), 0.0)]
        close(*values, f"({kind})")


WRONG = {
    "Max scaled into [-1, 1] before it is halved": (
        "min(1.0, max(0.0, self.alpha * spare + self.delta))",
        "(min(1.0, max(-1.0, self.alpha * spare)) + 1) / 2",
    ),
    "the thinking alone is counted": ("- scored.tokens", '- scored.text.partition("</think>")[0].count(" a")'),
    "the prompt is counted": ("- scored.tokens", "- len(scored.row.tokens)"),
    "exact: only too long costs": ("abs(spare)", "max(0, -spare)"),
    "exact: nothing for wrong answers": (
        "float(scored.right) - self.alpha * abs(spare)",
        "scored.right * (1 - self.alpha * abs(spare))",
    ),
    "max: too short costs, too long does not": ("self.alpha * spare + self", "-self.alpha * spare + self"),
    "max: without delta": (" + self.delta", ""),
    "max for wrong answers too": (" if scored.right else 0.0", ""),
    "zeros": "return 0.0\n",
    "a constant": "return float(scored.right)\n",
}  # fmt: skip
