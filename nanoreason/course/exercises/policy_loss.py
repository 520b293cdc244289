"""The policy loss: ratio, clip, and how tokens are averaged

Every algorithm of the package is `loss = (per_token_loss * weights).sum()`: the loss of each token, and a tensor that
says how much each token of the whole step counts. Write three functions in `learn.py`.

`policy_ratio(logprobs, old_logprobs, level="token", mask=None)`, all (B, T) -> r (B, T): exp(logprobs - old_logprobs)
of each token. At level "sequence", for which there is a mask, it is the row's: exp of the mean of the differences over
those tokens of the row that `mask` (bool) counts, the same in all T columns (GSPO, 2507.18071, eq. 7; a row without any
has 1). All other levels are as "token". What exp is taken of, that difference or that mean, is cut to -20..20 first.
(All log-probs are finite, also where `mask` is False.)

`clipped_policy_loss(logprobs, old_logprobs, advantages, clip_low=0.2, clip_high=0.2, *, cap=inf, level="token",
mask=None)` -> (B, T); advantages A are (B, 1) or (B, T):

    -min(r * A, clip(r, 1 - clip_low, 1 + clip_high) * A)                                   (PPO, 1707.06347, eq. 7)

where r is first replaced by min(r, `cap`), for both signs of A (two-sided clip). Gradients flow through r into
`logprobs`. Level "detached" is another loss, without lower bound and cap: -min(r, 1 + clip_high) * A * logprobs, in
which the first factor is a number without a gradient (CISPO, MiniMax-M1, 2506.13585, eq. 4).

`token_weights(rows, average="token", constant=None, rollouts=None)` -> a list per row, a weight per token, 0 where
`row.loss_mask` is False:

- "token": each token alike, 1 / all loss tokens of `rows`.
- "sequence": each rollout alike, 1 / (rollouts * loss tokens of this rollout).
- "constant": 1 / (rollouts * constant).

A rollout is a row, or several: those of `rows` with the same `row.root` are one rollout, whose loss tokens are those of
all of them. (Rollouts hash by identity.) The number of rollouts is that of the distinct roots, unless `rollouts` gives
it. Rows without any loss tokens have weights of 0, and are no error. A ValueError is another `average`, and "constant"
without its constant (None or 0).
"""

import math

PART = "GRPO"
POINTS = 8
SECONDS = 1
FILES = ("learn.py",)
HINTS = (
    "Where A < 0 the minimum picks the larger ratio. It is one `torch.minimum` for both signs.",
    "`.detach()` makes the number without a gradient; multiply by a mask before you sum over a row.",
    "Count loss tokens by root first: counts[id(row.root)] += sum(row.loss_mask). max(1, count) spares the zero.",
)
BUG = (
    "The same loss per token averaged over tokens, over rows or by a constant is three algorithms, and often not the "
    "one in the text beside it (trl#2995, hands-on-modern-rl#75); averages per micro-batch depend on how a step is "
    "cut, and exp of a large difference is inf, whose gradient is NaN (verl#6478)."
)


def ratio(logprobs, old, level="token", mask=None):
    import torch

    from nanoreason.learn import policy_ratio

    mask = None if mask is None else torch.tensor(mask)
    return policy_ratio(torch.tensor(logprobs), torch.tensor(old), level, mask).tolist()


def loss(logprobs, old, advantages, mask=None, **options):
    """[loss per token, gradient of their sum with respect to the log-probs]"""
    import torch

    from nanoreason.learn import clipped_policy_loss

    logprobs, mask = torch.tensor(logprobs, requires_grad=True), None if mask is None else torch.tensor(mask)
    values = clipped_policy_loss(logprobs, torch.tensor(old), torch.tensor(advantages), mask=mask, **options)
    (values.sum() + 0 * logprobs.sum()).backward()  # a gradient of 0 where the loss has none
    return [values.tolist(), logprobs.grad.tolist()]


def weights(masks, parents=None, **options):
    """Of rows with these loss masks; `parents` gives the index of each row's parent, or None."""
    from nanoreason.learn import token_weights
    from nanoreason.rollout import Problem, Rollout

    rows = [Rollout(Problem("", ""), [0] * len(mask), mask, [0.0] * len(mask), 1) for mask in masks]
    for row, parent in zip(rows, parents or [], strict=bool(parents)):
        row.parent = None if parent is None else rows[parent]
    try:
        return token_weights(rows, **options)
    except ValueError:
        return "ValueError"


CALLS = (ratio, loss, weights)


def same(found, wanted, what="", tolerance=1e-4):
    assert [len(row) for row in found] == [len(row) for row in wanted], f"{what} {found}: another shape than {wanted}"
    pairs = zip(sum(found, []), sum(wanted, []), strict=True)
    close = all(math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance) for a, b in pairs)
    assert close, f"{what} {found} instead of {wanted}"


def public_clip(call):
    """Ratios 1.5 and 0.5 with clip 0.2: bounded where A asks for the move, else not; zero and gradient 0 go apart"""
    up, down, old = math.log(1.5), math.log(0.5), [[0.0, 0.0]] * 2
    values, gradient = call("loss", [[up, down], [up, down]], old, [[1.0], [-1.0]])
    same(values, [[-1.2, -0.5], [1.5, 0.8]], "loss")
    same(gradient, [[0.0, -0.5], [1.5, 0.0]], "gradient")


def public_ratio(call):
    """Differences log 2 and log 8 of a row are the ratios 2 and 8, and 4 of the row; a masked column says nothing"""
    logs, mask = [[math.log(2), math.log(8), 7.0]], [[True, True, False]]
    same(call("ratio", logs, [[0.0, 0.0, 7.0]]), [[2, 8, 1]])
    same(call("ratio", logs, [[0.0] * 3], "sequence", mask), [[4, 4, 4]])


def public_weights(call):
    """A row with one loss token and a row with three"""
    masks = [[False, True], [False, True, True, True]]
    same(call("weights", masks, average="token"), [[0, 0.25], [0, 0.25, 0.25, 0.25]])
    same(call("weights", masks, average="sequence"), [[0, 1 / 2], [0, 1 / 6, 1 / 6, 1 / 6]])
    same(call("weights", masks, average="constant", constant=5), [[0, 0.1], [0, 0.1, 0.1, 0.1]])


def public_cap_and_weights_of_a_gradient(call):
    """Ratio 3: a cap of 2 bounds it where A is -1; detached, 1.2 * A * log-prob, whose gradient is -1.2 * A"""
    log, old = math.log(0.6), math.log(0.2)
    values, gradient = call("loss", [[log], [log]], [[old], [old]], [[-1.0], [1.0]], cap=2.0)
    same(values, [[2.0], [-1.2]], "loss")
    same(gradient, [[0.0], [0.0]], "gradient")
    values, gradient = call("loss", [[log]], [[old]], [[2.0]], level="detached")
    same(values, [[-2.4 * log]], "loss of level detached")
    same(gradient, [[-2.4]], "its gradient")


def public_weights_of_threads(call):
    """A row and the row that it spawned are one rollout of three loss tokens; an average of another name is none"""
    masks = [[True, True], [False, True], [True]]
    assert call("weights", masks, [None, 0, None], average="mean") == "ValueError"
    found = call("weights", masks, [None, 0, None], average="sequence")
    same(found, [[1 / 6, 1 / 6], [0, 1 / 6], [1 / 2]])


def hidden_clip(call, draw):
    """Any ratio, advantage, bounds and cap: the value by its formula, the gradient by finite differences"""
    for _ in range(30):
        low, high, cap = draw.uniform(0.1, 0.4), draw.uniform(0.5, 0.9), draw.choice((math.inf, draw.uniform(2.2, 3)))
        A, d = draw.choice((-1, 1)) * draw.uniform(0.5, 2), 0.0
        while not d or min(abs(math.exp(d) - border) for border in (1 - low, 1 + high, cap)) < 0.01:  # no kink near
            d = draw.choice((draw.gauss(0, 0.8), draw.uniform(0.8, 1.5)))

        def value(d, low=low, high=high, cap=cap, A=A):
            r = min(math.exp(d), cap)
            return max(-r * A, -max(1 - low, min(1 + high, r)) * A)

        slope = (value(d + 1e-5) - value(d - 1e-5)) / 2e-5
        old = draw.uniform(-2, 0)
        values, gradient = call("loss", [[old + d]], [[old]], [[A]], clip_low=low, clip_high=high, cap=cap)
        same(
            values,
            [[value(d)]],
            f"ratio {math.exp(d):.3f}, A {A:.2f}, bounds {low:.2f} {high:.2f}, cap {cap}: loss",
            1e-3,
        )
        same(
            gradient,
            [[slope]],
            f"ratio {math.exp(d):.3f}, A {A:.2f}, bounds {low:.2f} {high:.2f}, cap {cap}: gradient",
            1e-3,
        )


def hidden_on_policy(call, draw):
    """Where both policies are equal the ratio is 1 and the gradient -A: right tokens up, wrong ones down"""
    logs = [[-3 * draw.random() for _ in range(3)] for _ in range(4)]
    A = [[draw.gauss(0, 1)] for _ in range(4)]
    values, gradient = call("loss", logs, logs, A)
    same(values, [[-a] * 3 for (a,) in A])
    same(gradient, [[-a] * 3 for (a,) in A])


def hidden_sequence(call, draw):
    """Level sequence: the mean difference of the tokens that count, in every column; without any the ratio is 1"""
    B, T = 4, 5
    logs, old = ([[draw.gauss(0, 0.3) for _ in range(T)] for _ in range(B)] for _ in range(2))
    mask = [[draw.random() < 0.6 for _ in range(T)] for _ in range(B - 2)] + [[False] * T, [True] * T]
    wanted = []
    for b in range(B):
        counted = [logs[b][t] - old[b][t] for t in range(T) if mask[b][t]]
        wanted.append([math.exp(sum(counted) / max(1, len(counted)))] * T)
    same(call("ratio", logs, old, "sequence", mask), wanted)
    values, _ = call("loss", logs, old, [[1.0]] * B, mask, level="sequence", clip_low=0.9, clip_high=9.0)
    same(values, [[-r for r in row] for row in wanted])


def hidden_detached(call, draw):
    """Level detached: the cut ratio only weighs the gradient of A * log-prob, which never stops"""
    for _ in range(10):
        d, log, A, high = draw.gauss(0, 1), -draw.random(), draw.gauss(0, 1), draw.uniform(0.1, 1)
        values, gradient = call("loss", [[log]], [[log - d]], [[A]], level="detached", clip_high=high, cap=0.1)
        weight = min(math.exp(d), 1 + high)
        same(values, [[-weight * A * log]], "loss")
        same(gradient, [[-weight * A]], "gradient")


def hidden_far(call, draw):
    """Differences of hundreds: ratios are cut at exp(20) and exp(-20), losses and gradients are finite"""
    far = draw.uniform(90, 300)
    same(call("ratio", [[far, -far]], [[0.0, 0.0]]), [[math.exp(20), math.exp(-20)]])
    for level in ("token", "sequence", "detached"):
        for A in (1.0, -1.0):
            found = call("loss", [[far]], [[0.0]], [[A]], [[True]], level=level)
            assert all(math.isfinite(value) for ((value,),) in found), f"level {level}, A {A}: {found}"


def hidden_weights(call, draw):
    """Sums over tokens, rows and rollouts; threads count for their root; orders do not matter"""
    for _ in range(10):
        masks = [[False] + [draw.random() < 0.7 for _ in range(draw.randint(1, 6))] for _ in range(5)] + [
            [False, False]
        ]
        parents = [None, None, 0, 2, None, 1]  # row 3 belongs to row 2, which belongs to row 0; row 5 to row 1
        roots, order = [0, 1, 0, 0, 4, 1], draw.sample(range(6), 6)
        counts = [sum(sum(masks[i]) for i in range(6) if roots[i] == root) for root in roots]
        n, constant, rollouts = sum(map(sum, masks)), draw.randint(1, 9), draw.randint(4, 9)
        for options, each in (
            ({}, [1 / max(1, n)] * 6),
            ({"average": "sequence"}, [1 / (3 * max(1, count)) for count in counts]),
            ({"average": "sequence", "rollouts": rollouts}, [1 / (rollouts * max(1, count)) for count in counts]),
            ({"average": "constant", "constant": constant}, [1 / (3 * constant)] * 6),
            ({"average": "constant", "constant": constant, "rollouts": rollouts}, [1 / (rollouts * constant)] * 6),
        ):
            wanted = [[weight * counted for counted in mask] for weight, mask in zip(each, masks, strict=True)]
            same(call("weights", masks, parents, **options), wanted, f"{options}:", 1e-9)
            moved = [None if parents[i] is None else order.index(parents[i]) for i in order]
            same(call("weights", [masks[i] for i in order], moved, **options), [wanted[i] for i in order], "", 1e-9)
    same(call("weights", [[False, False]], average="sequence"), [[0, 0]])
    same(call("weights", [[False, False]]), [[0, 0]])
    for options in ({"average": "constant"}, {"average": "rows"}, {"average": "constant", "constant": 0}):
        assert call("weights", [[False, True]], **options) == "ValueError", f"{options}: no ValueError"


WRONG = {
    "the wrong sign": ("return -torch.minimum(", "return torch.minimum("),
    "the maximum where A is negative": (
        "return -torch.minimum(ratio * advantages, clipped * advantages)",
        "return -clipped * advantages",
    ),
    "the two bounds exchanged": ("clamp(1 - clip_low, 1 + clip_high)", "clamp(1 - clip_high, 1 + clip_low)"),
    "no cap": ("ratio.clamp(max=cap)", "ratio"),
    "a gradient through the weight": ("1 + clip_high).detach()", "1 + clip_high)"),
    "forced tokens in the row's ratio": ("(log_ratio * mask).sum", "log_ratio.sum"),
    "a product instead of a mean": (" / mask.sum(1, keepdim=True).clamp(min=1)", ""),
    "exp of anything": ("log_ratio.clamp(-20, 20).exp()", "log_ratio.exp()"),
    "token average for sequence": ("1 / (rollouts * max(1, count))", "1 / max(1, sum(counts.values()))"),
    "rows instead of rollouts": ("rollouts = len(counts) if", "rollouts = len(rows) if"),
    "the prompt counts": ("* counted for counted in row.loss_mask]", "for _ in row.loss_mask]"),
    "zeros": ("return -torch.minimum(ratio * advantages, clipped * advantages)", "return logprobs * 0"),
    "a constant": "return torch.ones_like(logprobs)\n",
}
