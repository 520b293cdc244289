"""Drawing a token, and its log-prob

Write `draw(logits, u, temperature, top_p=1.0)` in `sampler.py`: logits (B, V) float32 and one number u (B,) in [0, 1)
for each row, float64 -> tokens (B,) int64, log-probs (B,) float32 of the distribution that the tokens were drawn from.
Drawing is a pure function: all randomness is in u.

- The distribution is softmax(logits / temperature).
- The token is found with the inverse CDF: with C_k the sum of the probabilities of tokens 0..k, it is the first k with
  C_k > u * C_last. A token of probability 0 (a logit of -inf) is never drawn, not by u = 0, and not by the largest u.
- The log-prob is that of the distribution which was drawn from, so that a learner which divides by it gets a ratio of
  1: at this temperature, and with `top_p` < 1 that of the truncated distribution.
- `top_p` < 1: only the most likely tokens can be drawn, as few of them as reach `top_p` together; the token that
  reaches it is among them. Their probabilities are scaled to sum to 1; the CDF stays in the order of the vocabulary.
- `temperature` 0 takes the most likely token (the first of equals); its log-prob is then the one at temperature 1 of
  the whole distribution, whatever `top_p` is.
- Sums over the vocabulary are made in the dtype `exact` (float64, but for devices that have none), which is computed
  for you: with float32 a token of probability 1e-8 that comes late in the vocabulary is never drawn. The log-prob is
  float32 again.
"""

import math

PART = "Language models"
POINTS = 4
SECONDS = 2
FILES = ("sampler.py",)
HINTS = (
    "`probs.cumsum(-1, dtype=exact)` is the CDF, and `torch.searchsorted(cdf, target, right=True)` the first index "
    "where it is larger than the target. Both want (B, n) shapes.",
    "u * total may be rounded up to the total, which no CDF exceeds: cut it to just below (`torch.nextafter`).",
    "Top-p: sort, and leave out a token where the probability before it (cumsum minus its own) already reaches top_p.",
)
BUG = (
    "Log-probs of the learner without the temperature of the sampler (trl#4159), and log-probs of the full softmax for "
    "tokens that were drawn with top-p (trl#6789: a kept mass of 0.895 made the mean ratio 0.896): both bias the "
    "gradient without any visible sign."
)


def draws(logits, u, temperature, top_p=1.0):
    """[tokens, log-probs]; a single row of logits serves all u."""
    import torch

    from nanoreason.sampler import draw

    rows = torch.tensor(logits).expand(len(u), -1).contiguous()
    tokens, logprobs = draw(rows, torch.tensor(u, dtype=torch.float64), temperature, top_p)
    return [tokens.tolist(), logprobs.tolist()]


CALLS = (draws,)


def same(found, wanted_tokens, wanted_logprobs):
    tokens, logprobs = found
    assert tokens == wanted_tokens, f"tokens {tokens} instead of {wanted_tokens}"
    close = [math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-4) for a, b in zip(logprobs, wanted_logprobs, strict=True)]
    assert all(close), f"log-probs {logprobs} instead of {wanted_logprobs}"


def public_inverse_cdf(call):
    """Probabilities 1/2, 1/4, 1/4: below 0.5 token 0 is drawn, below 0.75 token 1, then token 2"""
    half, quarter = math.log(1 / 2), math.log(1 / 4)
    logits = [[half + 3, quarter + 3, quarter + 3]] * 6
    wanted = [half, half, quarter, quarter, quarter, quarter]
    same(call("draws", logits, [0.0, 0.49, 0.51, 0.74, 0.76, 0.999], 1.0), [0, 0, 1, 1, 2, 2], wanted)


def public_temperature(call):
    """The same at temperature 1/2 has 2/3, 1/6, 1/6; at 0 the likeliest token and its log-prob at temperature 1"""
    logits = [[math.log(1 / 4), math.log(1 / 2), math.log(1 / 4)]] * 3
    wanted = [math.log(1 / 6), math.log(2 / 3), math.log(1 / 6)]
    same(call("draws", logits, [0.16, 0.82, 0.84], 0.5), [0, 1, 2], wanted)
    same(call("draws", logits, [0.0, 0.5, 0.9], 0), [1, 1, 1], [math.log(1 / 2)] * 3)


def public_top_p(call):
    """With top_p 0.6 of 0.2, 0.5, 0.3 the last two are left, which reach it together: 0.625 and 0.375"""
    logits = [[math.log(0.2), math.log(0.5), math.log(0.3)]] * 4
    left = [math.log(0.625), math.log(0.375)]
    same(call("draws", logits, [0.0, 0.62, 0.63, 0.999], 1.0, 0.6), [1, 1, 2, 2], [left[0], left[0], left[1], left[1]])


def hidden_frequencies(call, draw):
    """Over evenly spaced u each token comes as often as softmax(logits / temperature) says, with that log-prob"""
    for temperature in (0.7, 1.0, 1.3):
        logits = [draw.gauss(0, 1.5) for _ in range(5)]
        weights = [math.exp(value / temperature) for value in logits]
        probs = [weight / sum(weights) for weight in weights]
        n = 1000
        tokens, logprobs = call("draws", [logits], [(i + 0.5) / n for i in range(n)], temperature)
        for token, p in enumerate(probs):
            share = tokens.count(token) / n
            assert abs(share - p) < 1.5 / n, f"token {token} is drawn in {share} of all cases, not {p:.4f}"
        assert tokens == sorted(tokens), "a larger u draws a later token"
        same([tokens, logprobs], tokens, [math.log(probs[token]) for token in tokens])


def hidden_top_p(call, draw):
    """With top_p only the likeliest tokens that reach it are drawn, and the log-probs are of what is left"""
    for top_p in (0.3, 0.6, 0.9):
        probs, mass = [], 0.0
        while not probs or any(abs(sum(sorted(probs)[-k:]) - top_p) < 1e-3 for k in range(1, 7)):  # none at the border
            weights = [draw.uniform(0.05, 1) for _ in range(6)]
            probs = [weight / sum(weights) for weight in weights]
        left, n = set(), 600
        for token in sorted(range(6), key=lambda token: -probs[token]):
            if mass < top_p:
                left.add(token)
                mass += probs[token]
        tokens, logprobs = call("draws", [[math.log(p) for p in probs]], [(i + 0.5) / n for i in range(n)], 1.0, top_p)
        assert set(tokens) == left, f"probabilities {probs}, top_p {top_p}: {set(tokens)} were drawn, not {left}"
        for token in left:
            assert abs(tokens.count(token) / n - probs[token] / mass) < 1.5 / n, "how often a token is drawn"
        same([tokens, logprobs], tokens, [math.log(probs[token] / mass) for token in tokens])


def hidden_impossible_tokens(call, draw):
    """Tokens with a logit of -inf are never drawn, however extreme u is"""
    for _ in range(10):
        possible = sorted(draw.sample(range(8), draw.randint(1, 3)))
        logits = [draw.gauss(0, 1) if token in possible else -math.inf for token in range(8)]
        tokens, logprobs = call("draws", [logits] * 2, [0.0, 1 - 2.0**-48], draw.choice((0.5, 1.0, 2.0)))
        assert tokens == [possible[0], possible[-1]], f"{tokens} were drawn of {possible}"
        assert all(math.isfinite(value) for value in logprobs)


def hidden_rows(call, draw):
    """Rows have nothing to do with each other; adding a number to all logits changes nothing"""
    logits = [[draw.gauss(0, 2) for _ in range(5)] for _ in range(6)]
    u = [draw.random() for _ in range(6)]
    for temperature in (0, 0.8):
        tokens, logprobs = call("draws", logits, u, temperature)
        alone = [call("draws", [row], [number], temperature) for row, number in zip(logits, u, strict=True)]
        same([tokens, logprobs], [token for (token,), _ in alone], [value for _, (value,) in alone])
        same(
            call("draws", [[v + 10 for v in row] for row in logits[::-1]], u[::-1], temperature),
            tokens[::-1],
            logprobs[::-1],
        )


def hidden_rare_tokens(call, draw):
    """1000 tokens of probability 1e-8 behind a likely one: numbers aimed at them draw (nearly) all of them"""
    low = -18 - draw.random()
    tail = math.exp(low)
    total = 1 + 1000 * tail
    found = set()
    for first in range(0, 1000, 250):
        u = [(1 + (i + 0.5) * tail) / total for i in range(first, first + 250)]
        found |= set(call("draws", [[0.0, *[low] * 1000]], u, 1.0)[0])
    assert len(found) > 900, f"{len(found)} of 1000 were drawn"


WRONG = {
    "the log-prob without the temperature": (
        "(probs.gather(-1, tokens) / total).log()",
        "logits.log_softmax(-1).gather(-1, tokens)",
    ),
    "the log-prob without top_p": (
        "(probs.gather(-1, tokens) / total)",
        "(logits / temperature).softmax(-1).gather(-1, tokens)",
    ),
    "temperature upside down": ("(logits / temperature)", "(logits * temperature)"),
    "tokens of probability 0": ("target, right=True)", "target, right=False)"),
    "float32 sums": ("cdf = probs.cumsum(-1, dtype=exact)", "cdf = probs.cumsum(-1).to(exact)"),
    "top_p leaves out the token that reaches it": ("dtype=exact) - ordered >= top_p", "dtype=exact) > top_p"),
    "the same number for all rows": ("u[:, None] * total", "u[:1, None] * total"),
    "always the likeliest": ("if temperature == 0:", "if True:"),
    "a log-prob of 0 where it is greedy": (
        "logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]",
        "torch.zeros_like(u)",
    ),
    "zeros": "return torch.zeros_like(u).long(), torch.zeros_like(u).float()\n",
    "a constant": "return torch.ones_like(u).long(), torch.full_like(u, -1.0).float()\n",
}
