"""Group advantages

GRPO has no critic: the rewards of the G responses to one problem are compared with each other
(DeepSeekMath, 2402.03300, eq. 3 and 4). Write `group_advantages` in `learn.py`.

- `groups` is a list of groups, each a list of rewards; the result has the same shape.
- Each reward minus the mean of its own group, divided by a standard deviation: `"group"` that of the group, `"batch"`
  that of all rewards of all groups around the mean of all, `"none"` nothing (Dr. GRPO).
- Deviations have the number of rewards as their divisor, not one less, and nothing is added to them.
- A group whose rewards are all equal, `is_zero_variance(group)`, and so a group of one too, has the advantages 0.0,
  exactly, whatever the others are divided by. With `"batch"` its rewards count in the deviation as all others do.
"""

import math
import random

PART = "GRPO"
POINTS = 4
SECONDS = 1
FILES = ("learn.py",)
HINTS = (
    "`statistics.fmean` and `statistics.pstdev` are imported already.",
    "Rewards of 0.1 three times have a deviation of about 1e-17 in floating point, and dividing by it makes noise: ask "
    "`is_zero_variance` before you divide.",
)
BUG = (
    "Dividing by a deviation of 0 (or by 0 + 1e-8 where it is rounding noise) turns groups without any signal into "
    "large random steps; libraries also differ in G and G - 1, so that the same learning rate is not the same step."
)


def advantages(groups, divide_by="group"):
    from nanoreason.learn import group_advantages

    return group_advantages(groups, divide_by)


CALLS = (advantages,)


def close(found, wanted, tolerance=1e-9):
    assert [len(group) for group in found] == [len(group) for group in wanted], f"{found}: not the shape of the rewards"
    for a, b in zip(sum(found, []), sum(wanted, []), strict=True):
        assert math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance), f"{found} instead of {wanted}"


def public_right_and_wrong(call):
    """Two right and two wrong: the advantages are 1 and -1"""
    close(call("advantages", [[1.0, 0.0, 0.0, 1.0]]), [[1.0, -1.0, -1.0, 1.0]])


def public_equal_rewards(call):
    """Equal rewards have advantages of exactly 0, also where the mean is rounded"""
    assert call("advantages", [[0.1, 0.1, 0.1], [1.0, 1.0]]) == [[0.0, 0.0, 0.0], [0.0, 0.0]]


def public_none(call):
    """Dr. GRPO: one right of four has 0.75, the others -0.25"""
    close(call("advantages", [[1.0, 0.0, 0.0, 0.0]], "none"), [[0.75, -0.25, -0.25, -0.25]])


def public_batch(call):
    """Rewards 1 0 and 2 2: all four have the deviation sqrt(11) / 4, and equal ones 0 all the same"""
    close(call("advantages", [[1.0, 0.0], [2.0, 2.0]], "batch"), [[2 / math.sqrt(11), -2 / math.sqrt(11)], [0.0, 0.0]])


def drawn(draw: random.Random):
    return [[draw.choice((0.0, 0.1, 1.0, draw.gauss(0, 2))) for _ in range(draw.randint(2, 6))] for _ in range(5)]


def hidden_moments(call, draw):
    """Of each group the advantages have mean 0 and mean square 1"""
    groups = [[draw.gauss(0, 3) for _ in range(draw.randint(2, 7))] for _ in range(6)]
    found = call("advantages", groups)
    close([[0.0 * a for a in group] for group in found], [[0.0] * len(group) for group in groups])
    for group in found:
        assert abs(sum(group)) < 1e-9 and math.isclose(sum(a * a for a in group) / len(group), 1, rel_tol=1e-9)


def hidden_batch(call, draw):
    """batch: every group is divided by the same deviation, that of all rewards"""
    groups = drawn(draw) + [[0.0, 1.0]]
    everything = sum(groups, [])
    mean = sum(everything) / len(everything)
    deviation = math.sqrt(sum((r - mean) ** 2 for r in everything) / len(everything))
    wanted = [[(r - sum(g) / len(g)) / deviation if len(set(g)) > 1 else 0.0 for r in g] for g in groups]
    close(call("advantages", groups, "batch"), wanted)


def hidden_affine(call, draw):
    """Rewards times 3 plus 5 have the same advantages"""
    groups = [[draw.random() for _ in range(4)] for _ in range(3)]
    found = call("advantages", groups)
    close(call("advantages", [[3 * r + 5 for r in group] for group in groups]), found, 1e-7)
    ranks = [[sorted(values).index(value) for value in values] for values in (*groups, *found)]
    assert ranks[:3] == ranks[3:], "a larger reward must have a larger advantage"


def hidden_groups_are_independent(call, draw):
    """A group's advantages do not depend on the other groups, nor on the order of its rewards; their sum is 0"""
    groups = [[draw.random() for _ in range(5)] for _ in range(4)]
    found = call("advantages", groups)
    close([call("advantages", [group])[0] for group in groups], found)
    close(call("advantages", [group[::-1] for group in groups]), [a[::-1] for a in found])
    assert all(abs(sum(group)) < 1e-9 for group in found)


def hidden_noise(call, draw):
    """Rewards that differ by rounding alone are equal; so is a group of one"""
    value = draw.random()
    assert call("advantages", [[value, value + 1e-16, value], [value]]) == [[0.0, 0.0, 0.0], [0.0]]


WRONG = {
    "divisor G - 1": ("statistics.pstdev(", "statistics.stdev("),
    "no deviation": ("(r - mean) / std", "(r - mean)"),
    "the mean of the whole batch": ("statistics.fmean(group)", "statistics.fmean(everything)"),
    "an epsilon instead of asking": ("if is_zero_variance(group):", "if False:"),
    "the group's deviation for the batch": ('if divide_by == "group" else everything', "if True else everything"),
    "zeros": "return [[0.0] * len(group) for group in groups]\n",
    "a constant": "return [[1.0, -1.0, -1.0, 1.0][: len(group)] for group in groups]\n",
}
