"""Optimizers, written by hand: SGD, AdamW (Loshchilov & Hutter, 2019) and Muon (Jordan et al., 2024).

    optimizer = AdamW(model, betas=(0.9, 0.95), weight_decay=0.1)
    loss.backward()
    optimizer.step(lr=1e-3)                   # the learning rate comes with each step: there is no schedule inside
    optimizer.state[model.lm_head.weight]     # {"step": (), "exp_avg": (V, D), "exp_avg_sq": (V, D)}

A checkpoint saves and restores `state`, and nothing else is remembered between two steps. All arithmetic is float32 and
in place, so that whoever looks at a parameter's version (a sampler) sees that it changed. The `torch._foreach_*`
functions do one operation on a whole list of tensors, which costs less than a Python loop over them.

Why not `torch.optim`: constructing one of its optimizers imports the compiler, which takes seconds at every start, and
`torch.optim.Muon` computes in bfloat16, one matrix at a time, which is slow on a CPU without it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from nanoreason.processes import buckets
from nanoreason.sharding import placed, together

Parameters = nn.Module | Iterable[tuple[str, nn.Parameter]]  # a model, or what its `named_parameters()` gives

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's m and v, as `torch.optim` calls them
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan's quintic: steepest at 0; singular values end within about 0.7..1.2


class Optimizer:
    """What all of them share: the parameters by name, and `state`: what a step remembers of each parameter."""

    def __init__(self, parameters: Parameters):
        named = parameters.named_parameters() if isinstance(parameters, nn.Module) else parameters
        self.named = {name: parameter for name, parameter in named if parameter.requires_grad}  # others are frozen
        self.state: dict[nn.Parameter, dict[str, torch.Tensor]] = {}

    def zero_grad(self) -> None:
        for parameter in self.named.values():
            parameter.grad = None

    def step(self, lr: float) -> None:
        """Move the parameters that have a gradient; `lr` may be another one in each step."""
        raise NotImplementedError

    def all_parameters(self) -> list[nn.Parameter]:
        return list(self.named.values())

    @torch.no_grad()
    def measured_step(self, lr: float) -> float:
        """`step`, a few parameters at a time; returns how far it moved all weights: the norm of their change over their
        norm before. The copy that this takes is of some parameters (`processes.BUCKET` values), not of the model."""
        gradients = {w: w.grad for w in self.all_parameters()}
        self.zero_grad()
        moved = norm = 0.0
        for some in buckets(list(gradients)):
            before = [w.detach().clone() for w in some]
            for w in some:
                w.grad = gradients[w]
            self.step(lr)  # of those that have a gradient now
            self.zero_grad()
            moved += together(sum((w - old).square().sum() for w, old in zip(some, before, strict=True)))
            norm += together(sum(old.square().sum() for old in before))
        return math.sqrt(moved / norm)

    def restore(self, parameter: nn.Parameter, state: dict[str, torch.Tensor]) -> None:
        """Take a state that was saved, to where a step looks for it."""
        self.state[parameter] = {
            key: value if key == "step" else placed(value, parameter) for key, value in state.items()
        }

    def _lists(self, **memory: tuple[int, ...] | None) -> tuple[list, list, list[dict]]:
        """Weights, gradients and states of the parameters that have a gradient.

        memory   what a state holds from the first step on, as zeros: of this shape, or of the parameter's (None)
        """
        weights = [parameter for parameter in self.named.values() if parameter.grad is not None]
        for w in weights:
            if w not in self.state:
                self.state[w] = {
                    name: torch.zeros_like(w) if shape is None else torch.zeros(shape) for name, shape in memory.items()
                }
        return weights, [w.grad for w in weights], [self.state[w] for w in weights if memory]


class SGD(Optimizer):
    """w <- w - lr * gradient: the step that the others refine."""

    @torch.no_grad()
    def step(self, lr: float) -> None:
        weights, gradients, _ = self._lists()
        if weights:
            torch._foreach_add_(weights, gradients, alpha=-lr)


class AdamW(Optimizer):
    """Each weight moves by its mean gradient over its root mean square, about `lr` a step whatever the loss's scale.

        m <- b1 m + (1 - b1) g          v <- b2 v + (1 - b2) g^2
        w <- w - lr * weight_decay * w - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    The divisors mend that both means start at zero. Equal to `torch.optim.AdamW` up to rounding.

    moments   how m and v are stored between two steps; a step's arithmetic is float32 on the weights' device throughout
              float32    8 bytes a weight
              bfloat16   4 bytes, rounded at random (see `rounded_at_random`)
              cpu        8 bytes of the computer's memory instead of the device's, equal to float32 bit for bit
              The last two take one weight at a time, so that no second copy of all of them is ever there.
    """

    def __init__(
        self,
        parameters: Parameters,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        eps: float = 1e-8,
        moments: str = "float32",
    ):
        super().__init__(parameters)
        self.betas, self.weight_decay, self.eps, self.moments = betas, weight_decay, eps, moments

    @torch.no_grad()
    def step(self, lr: float) -> None:
        if self.moments == "float32":
            weights, gradients, states = self._lists(step=(), exp_avg=None, exp_avg_sq=None)
            if weights:
                self._move(weights, gradients, states, lr)
            return
        stored = {"dtype": torch.bfloat16} if self.moments == "bfloat16" else {"device": "cpu"}
        for number, w in enumerate(self.named.values()):
            if w.grad is None:
                continue
            if w not in self.state:
                self.state[w] = {"step": torch.zeros(()), **{k: torch.zeros_like(w, **stored) for k in MOMENTS}}
            state = self.state[w]
            there = {name: state[name].to(w.device, torch.float32) for name in MOMENTS}
            self._move([w], [w.grad], [{"step": state["step"], **there}], lr)
            for k, name in enumerate(MOMENTS):
                value = there[name]
                if self.moments == "bfloat16":  # the numbers follow from step and weight: a resumed run has the same
                    value = rounded_at_random(value, seed=(int(state["step"]) << 24) + 2 * number + k)
                state[name].copy_(value)

    def restore(self, parameter: nn.Parameter, state: dict[str, torch.Tensor]) -> None:
        if self.moments == "cpu":
            self.state[parameter] = state
        else:
            super().restore(parameter, state)

    def _move(self, weights: list, gradients: list, states: list[dict], lr: float) -> None:
        b1, b2 = self.betas
        m, v = [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]
        torch._foreach_add_([state["step"] for state in states], 1)
        torch._foreach_lerp_(m, gradients, 1 - b1)
        torch._foreach_mul_(v, b2)
        torch._foreach_addcmul_(v, gradients, gradients, 1 - b2)
        # sqrt(v / c) + eps = (sqrt(v) + eps sqrt(c)) / sqrt(c): both corrections go into numbers, not into tensors
        counts = [state["step"].item() for state in states]
        roots = [math.sqrt(1 - b2**t) for t in counts]
        divisors = torch._foreach_sqrt(v)
        torch._foreach_add_(divisors, [self.eps * root for root in roots])
        if self.weight_decay:
            torch._foreach_mul_(weights, 1 - lr * self.weight_decay)
        sizes = [-lr * root / (1 - b1**t) for t, root in zip(counts, roots, strict=True)]
        torch._foreach_addcdiv_(weights, m, divisors, sizes)


def rounded_at_random(x: torch.Tensor, seed: int) -> torch.Tensor:
    """x float32 -> bfloat16: up or down with the probabilities that make the mean x (stochastic rounding).

    v changes by a thousandth of itself in a step (b2 = 0.999), and bfloat16 has steps of a 256th: rounded to the
    nearest it would stay where it is for ever. A float32 is a bfloat16 and 16 more bits; adding random 16 bits carries
    into the upper half as often as the lower half is large.
    """
    generator = torch.Generator(x.device).manual_seed(seed)
    noise = torch.randint(0, 1 << 16, x.shape, generator=generator, device=x.device, dtype=torch.int32)
    return ((x.view(torch.int32) + noise) & -(1 << 16)).view(torch.float32).to(torch.bfloat16)


class Muon(Optimizer):
    """Matrices of the layers move by their momentum made orthogonal; everything else is AdamW's.

        m <- momentum m + (1 - momentum) g          u = g + momentum (m - g)   (Nesterov)
        w <- w - lr * weight_decay * w - lr * 0.2 sqrt(max side) * orthogonalize(u)

    A gradient of a matrix is nearly of low rank: a few directions are large. Orthogonalized, all directions that
    occurred move equally far, also those that a few rows of the batch asked for. The factor gives the step the size
    of one of AdamW's (Liu et al., 2502.16982), so that one learning rate serves both parts. Embeddings, the head,
    norms and biases are AdamW's.
    """

    def __init__(
        self,
        parameters: Parameters,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ):
        super().__init__(parameters)
        self.momentum, self.weight_decay = momentum, weight_decay
        hidden = {
            name: w
            for name, w in self.named.items()
            if w.ndim == 2 and not name.endswith(("embed_tokens.weight", "lm_head.weight"))
        }
        self.rest = AdamW([(name, w) for name, w in self.named.items() if name not in hidden], betas, weight_decay)
        self.named, self.rest.state = hidden, self.state

    def all_parameters(self) -> list[nn.Parameter]:
        return [*self.named.values(), *self.rest.named.values()]

    def zero_grad(self) -> None:
        super().zero_grad()
        self.rest.zero_grad()

    @torch.no_grad()
    def step(self, lr: float) -> None:
        self.rest.step(lr)
        weights, gradients, states = self._lists(momentum=None)
        if not weights:
            return
        m = [state["momentum"] for state in states]
        torch._foreach_lerp_(m, gradients, 1 - self.momentum)
        updates = torch._foreach_lerp(gradients, m, self.momentum)
        if self.weight_decay:
            torch._foreach_mul_(weights, 1 - lr * self.weight_decay)
        by_shape: dict[tuple, list] = {}  # equal shapes are one batch; a tall matrix is turned on its side
        for w, u in zip(weights, updates, strict=True):
            w, u = (w, u) if w.shape[0] <= w.shape[1] else (w.T, u.T)
            by_shape.setdefault(tuple(w.shape), []).append((w, u))
        for (_, longer), pairs in by_shape.items():
            orthogonal = orthogonalize(torch.stack([u for _, u in pairs])).unbind()
            torch._foreach_add_([w for w, _ in pairs], orthogonal, alpha=-lr * 0.2 * math.sqrt(longer))


def orthogonalize(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """matrices (N, a, b), a <= b -> (N, a, b): the same singular vectors, singular values about 1 (or 0 if they were).

    Newton-Schulz: x <- p x + q (x x') x + r (x x')^2 x acts on each singular value s as p s + q s^3 + r s^5.
    """
    p, q, r = NEWTON_SCHULZ
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # no singular value above 1
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)  # (N, a, a)
        polynomial = torch.baddbmm(gram, gram, gram, beta=q, alpha=r)
        x = torch.baddbmm(x, polynomial, x, beta=p)
    return x


OPTIMIZERS = {"adamw": AdamW, "muon": Muon}  # those that a recipe can name
