"""The cosine length reward

A reward for right answers alone says nothing about length, so thinking may grow until it is cut off, and what is cut
off has no answer. Demystifying Long CoT (2502.03373, section 4.2) shapes the verdict by the length L of the response,
in tokens, between 0 and the limit L_max: half a cosine wave from a value r_0 at L = 0 to a value r_L at L = L_max.

    r_L + (r_0 - r_L) (1 + cos(pi L / L_max)) / 2

Write two methods in `rewards.py`:

- `Scored.exceeds(margin)`: whether the response was cut off, or comes within `margin` tokens of the limit,
  L + margin >= L_max. It was cut off if `self.row.stop_reason` is `"length"`, however short it is: the context may end
  before the limit does. `self.tokens` is L, `self.limit` is L_max.
- `Cosine.__call__(scored)`: `self.exceed` where the response exceeds, with `self.margin`, **right or wrong**; else the
  wave, with (r_0, r_L) = `self.right` for a right response and `self.wrong` for any other one. `scored.right` says
  which it is (a verdict of less than 1 is not right), `scored.tokens` is L and `scored.limit` is L_max. `self.weight`
  has no part in it: it is multiplied where rewards are summed.

With the default values a short right answer (2) is worth more than a long one (1), a long wrong one (0) costs less than
a short one (-10), and being cut off costs 10: think on where you do not know, but come to an end.
"""

import math
import random

PART = "Length"
POINTS = 3
SECONDS = 1
FILES = ("rewards.py",)
HINTS = (
    "At L = 0 the cosine is 1 and the wave is at r_0; at L = L_max it is -1 and the wave is at r_L. Try both ends.",
    "Ask whether the response exceeds before anything else: a right answer that was cut off is no exception.",
)
BUG = (
    "The paper's own appendix defines CosFn(t, T, low, high) and its text calls it with (r_0, r_L), which exchanges "
    "the ends; TRL's documentation had a reward that minimised what it claimed to maximise (trl#2714). A run whose "
    "responses reach the limit without a word in the reward collapses (open-r1#363: after 50 steps, at 1024 tokens)."
)


def scored(length, is_right, limit, stop_reason, verdict):
    from nanoreason.rewards import Scored
    from nanoreason.rollout import Problem, Rollout

    tokens = [7] * (3 + length)  # a prompt of three tokens, which do not count
    row = Rollout(
        Problem("", ""), tokens, [False] * 3 + [True] * length, [0.0] * len(tokens), 3, stop_reason=stop_reason
    )
    return Scored(row, "", float(is_right) if verdict is None else verdict, limit)


def reward(length, is_right, limit, stop_reason="eos", verdict=None, **fields):
    from nanoreason.rewards import Cosine

    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    return Cosine(**fields)(scored(length, is_right, limit, stop_reason, verdict))


def exceeds(length, limit, stop_reason="eos", margin=0):
    return scored(length, True, limit, stop_reason, None).exceeds(margin)


CALLS = (reward, exceeds)


def close(found, wanted, where=""):
    assert math.isclose(found, wanted, rel_tol=1e-9, abs_tol=1e-9), f"{found} instead of {wanted} {where}"


def public_ends_and_middle(call):
    """Right: 2 at length 0 and 1.5 halfway; wrong: -10 and -5"""
    for right, start, middle in ((True, 2, 1.5), (False, -10, -5)):
        close(call("reward", 0, right, 80), start)
        close(call("reward", 40, right, 80), middle)


def public_quarter(call):
    """It is a wave and no line: right at a quarter of the limit is worth 1 + (1 + 0.70710678) / 2"""
    close(call("reward", 25, True, 100), 1.5 + math.sqrt(0.125), "at a quarter")


def public_cut_off(call):
    """What is cut off costs 10, right or wrong; one token less does not"""
    for right in (True, False):
        close(call("reward", 50, right, 50, "length"), -10, f"of {'right' if right else 'wrong'} and cut off")
    assert call("reward", 49, True, 50) > 1, "49 of 50 tokens were not cut off"


def hidden_wave(call, draw):
    """Between any two values the wave is r_L + (r_0 - r_L) cos^2(pi L / 2 L_max)"""
    for _ in range(40):
        limit, start, end = draw.randint(2, 400), draw.uniform(-9, 9), draw.uniform(-9, 9)
        length, right = draw.randrange(limit), draw.random() < 0.5
        ends = {"right": [start, end], "wrong": [3.0, -4.0]} if right else {"right": [3.0, -4.0], "wrong": [start, end]}
        wanted = end + (start - end) * math.cos(math.pi * length / limit / 2) ** 2
        close(call("reward", length, right, limit, **ends), wanted, f"at {length} of {limit} tokens")


def hidden_order(call, draw):
    """Defaults: short right > long right > long wrong > short wrong, without a jump, and symmetric about the middle"""
    limit = draw.randint(20, 60)
    for right, ends in ((True, (2, 1)), (False, (-10, 0))):
        wave = [call("reward", length, right, limit) for length in range(limit)]
        assert wave == sorted(wave, reverse=right), "not monotone"
        steepest = abs(ends[0] - ends[1]) * math.pi / limit / 2
        assert all(abs(b - a) <= steepest + 1e-9 for a, b in zip(wave, wave[1:], strict=False)), "a jump"
        for length in range(1, limit):
            close(wave[length] + wave[limit - length], sum(ends), "of two lengths that add up to the limit")


def hidden_exceeds(call, draw):
    """It exceeds if it was cut, or if length + margin reaches the limit: every case"""
    limit = draw.randint(4, 9)
    for length in range(limit + 2):
        for margin in range(limit):
            for reason in ("eos", "stop", "length"):
                wanted = reason == "length" or length + margin > limit - 1
                found = call("exceeds", length, limit, reason, margin)
                assert found == wanted, f"{found} for {length} of {limit} tokens, margin {margin}, stop_reason {reason}"


def hidden_cut_by_the_context(call, draw):
    """A short response that the context cut, and one within the margin, get `exceed`, whatever the verdict"""
    for right in (True, False):
        limit, margin, value = draw.randint(50, 99), draw.randint(1, 20), draw.uniform(-5, 5)
        cut = call("reward", draw.randint(1, 20), right, limit, "length", exceed=value)
        near = call("reward", limit - margin, right, limit, exceed=value, margin=margin)
        far = call("reward", limit - margin - 1, right, limit, exceed=value, margin=margin)
        assert (cut, near) == (value, value), f"{cut} for one cut, {near} for one in the margin, instead of {value}"
        close(far, call("reward", limit - margin - 1, right, limit), "a margin moves the limit and nothing else")


def hidden_half_right(call, draw: random.Random):
    """A verdict of less than 1 is not right"""
    length = draw.randint(1, 40)
    close(call("reward", length, False, 50, verdict=draw.uniform(0.1, 0.9)), call("reward", length, False, 50))


CUT = "if scored.exceeds(self.margin):\n    return self.exceed\n"
WRONG = {
    "the ends exchanged, as the appendix has it": ("return end + (start - end) *", "return start + (end - start) *"),
    "a right answer at the limit keeps its reward": (CUT, CUT.replace("):", ") and not scored.right:")),
    "a line": ("(1 + math.cos(math.pi * scored.tokens / scored.limit)) / 2", "(1 - scored.tokens / scored.limit)"),
    "a whole wave": ("math.pi * scored", "2 * math.pi * scored"),
    "what the context cuts is not cut": ('self.row.stop_reason == "length" or ', ""),
    "the last allowed token does not count": ("+ margin >= self", "+ margin > self"),
    "the margin forgotten": ("scored.exceeds(self.margin)", "scored.exceeds()"),
    "half right is right": ("if scored.right else", "if scored.verdict else"),
    "zeros": ("return end + (start - end) *", "return 0.0 *"),
    "a constant": (CUT, "return 2.0\n"),
}  # fmt: skip
