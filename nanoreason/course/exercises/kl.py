"""Three estimates of the KL divergence

The KL divergence of a policy p from a reference q, the mean of log(p/q) over tokens that p draws, is estimated at each
token that was drawn (Schulman, "Approximating KL divergence", 2020). With d = log(q/p) of the drawn token:

    k1 = -d                 unbiased, may be negative
    k2 = d^2 / 2            biased, never negative; its gradient is that of the KL
    k3 = exp(d) - 1 - d     unbiased, never negative; its gradient is that of the other KL, of q from p

Write `kl_estimate(logprobs, ref_logprobs, estimator="k3")` in `learn.py`: log-probs (B, T) of the drawn tokens under
the policy and under the reference -> the estimate (B, T) of each token. Gradients flow into `logprobs`; do not detach
them.

- For k3 alone, d is cut to -20..20 before anything else is done with it, so that a token that the policy has all but
  given up makes no infinite loss.
- k3 of a small d is about d^2 / 2, in float32 down to |d| of 1e-5: exp(d) - 1 must not be rounded to 0.
- Any other name is a ValueError; it is raised for you behind your region, so just do not return.
"""

import math

PART = "GRPO"
POINTS = 3
SECONDS = 1
FILES = ("learn.py",)
HINTS = (
    "The sign: where the policy likes a token better than the reference does, d is negative and k1 positive.",
    "`torch.expm1` is exp(x) - 1 without the rounding.",
)
BUG = (
    "A KL term of the wrong sign was copied from project to project, and maximized the KL (ToolRL#52); and the "
    "gradient of an unbiased estimate is not that of what it estimates (NeMo-RL PR#2506): the one of k1 has mean 0."
)


def estimate(logprobs, ref_logprobs, estimator):
    import torch

    from nanoreason.learn import kl_estimate

    return kl_estimate(torch.tensor([logprobs]), torch.tensor([ref_logprobs]), estimator)[0].tolist()


def gradient(logits, ref_logits, estimator):
    """Of the mean of the estimate over all tokens, each as often as the policy draws it, with respect to its logits."""
    import torch

    from nanoreason.learn import kl_estimate

    logits = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    logs, ref_logs = logits.log_softmax(-1), torch.tensor(ref_logits, dtype=torch.float64).log_softmax(-1)
    mean = (logs.detach().exp() * kl_estimate(logs[None], ref_logs[None], estimator)[0]).sum()
    (mean + 0 * logits.sum()).backward()  # a gradient of 0 where the estimate has none
    return logits.grad.tolist()


def raises(estimator):
    try:
        return estimate([0.0], [0.0], estimator)
    except ValueError:
        return "ValueError"


CALLS = (estimate, gradient, raises)


def same(found, wanted, tolerance=1e-4):
    close = [math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance) for a, b in zip(found, wanted, strict=True)]
    assert all(close), f"{found} instead of {wanted}"


def public_values(call):
    """p = 1/2, q = 1/4: k1 is log 2, k2 is (log 2)^2 / 2, k3 is 1/2 - 1 + log 2; and with p and q exchanged"""
    half, quarter, log2 = math.log(1 / 2), math.log(1 / 4), math.log(2)
    same(call("estimate", [half, quarter], [quarter, half], "k1"), [log2, -log2])
    same(call("estimate", [half, quarter], [quarter, half], "k2"), [log2**2 / 2, log2**2 / 2])
    same(call("estimate", [half, quarter], [quarter, half], "k3"), [log2 - 1 / 2, 1 - log2])


def public_equal(call):
    """Where policy and reference agree all three are 0; an unknown name is a ValueError"""
    for name in ("k1", "k2", "k3"):
        same(call("estimate", [-1.0, -2.0], [-1.0, -2.0], name), [0, 0])
    assert call("raises", "k4") == "ValueError"


def hidden_means(call, draw):
    """Over 5 words, each as often as it is drawn, the mean of k1 and of k3 is the KL, and of k2 half a mean square"""
    for _ in range(5):
        p, q = ([draw.expovariate(1) + 0.01 for _ in range(5)] for _ in range(2))
        p, q = [value / sum(p) for value in p], [value / sum(q) for value in q]
        logs = [math.log(value) for value in p], [math.log(value) for value in q]
        exact = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        square = sum(a * math.log(a / b) ** 2 for a, b in zip(p, q, strict=True)) / 2
        for name, wanted in (("k1", exact), ("k2", square), ("k3", exact)):
            values = call("estimate", *logs, name)
            assert name == "k1" or min(values) > -1e-6, f"{name} is never negative"
            same([sum(a * value for a, value in zip(p, values, strict=True))], [wanted])


def hidden_gradients(call, draw):
    """By enumeration of 5 words: the mean gradient of k1 is 0, that of k2 the KL's, that of k3 p - q"""
    for _ in range(5):
        logits = [[draw.gauss(0, 1) for _ in range(5)] for _ in range(2)]
        p, q = ([math.exp(v) / sum(map(math.exp, row)) for v in row] for row in logits)
        exact = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        same(call("gradient", *logits, "k1"), [0.0] * 5)
        same(call("gradient", *logits, "k2"), [a * (math.log(a / b) - exact) for a, b in zip(p, q, strict=True)])
        same(call("gradient", *logits, "k3"), [a - b for a, b in zip(p, q, strict=True)])


def hidden_descent(call, draw):
    """A small step down the gradient of k2 or k3 brings the policy closer to the reference"""

    def kl(logits, ref):
        p, q = ([math.exp(v) / sum(map(math.exp, row)) for v in row] for row in (logits, ref))
        return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))

    for name in ("k2", "k3"):
        logits, ref = ([draw.gauss(0, 0.5) for _ in range(4)] for _ in range(2))
        moved = [a - 0.05 * g for a, g in zip(logits, call("gradient", logits, ref, name), strict=True)]
        assert kl(moved, ref) < kl(logits, ref), f"{name}: the KL grew from {kl(logits, ref)} to {kl(moved, ref)}"


def hidden_small(call, draw):
    """Log-probs that differ by a thousandth: k3 is the square / 2, not rounding"""
    differences = [draw.choice((-1, 1)) * draw.uniform(0.5, 2) * 1e-3 for _ in range(20)]
    found = call("estimate", [0.0] * 20, differences, "k3")
    for d, value in zip(differences, found, strict=True):
        assert math.isclose(value, math.expm1(d) - d, rel_tol=0.02), f"log q/p {d}: {value}"


def hidden_far(call, draw):
    """Log-probs that differ by hundreds: k3 is finite and cut, k1 and k2 are not cut"""
    far = draw.uniform(100, 300)
    same(call("estimate", [-far, 0.0], [0.0, -far], "k3"), [math.exp(20) - 21, math.exp(-20) + 19], 1e-3)
    same(call("estimate", [-far, 0.0], [0.0, -far], "k1"), [-far, far])
    same(call("estimate", [-far, 0.0], [0.0, -far], "k2"), [far * far / 2] * 2)


WRONG = {
    "the wrong sign": ("difference = ref_logprobs - logprobs", "difference = logprobs - ref_logprobs"),
    "no minus in k1": ("return -difference", "return difference"),
    "k2 without the half": ("difference.square() / 2", "difference.square()"),
    "k3 without - 1": ("difference.expm1() - difference", "difference.exp() - difference"),
    "k3 rounded": ("difference.expm1() - difference", "difference.exp() - 1 - difference"),
    "not cut": ("difference.clamp(-20, 20)", "difference"),
    "no gradient": ("ref_logprobs - logprobs", "ref_logprobs - logprobs.detach()"),
    "k1 for everything": ('if estimator == "k1":', 'if estimator in ("k1", "k2", "k3"):'),
    "zeros": "return logprobs * 0\n",
    "a constant": "return logprobs * 0 + 0.5\n",
}
