"""L1 (Aggarwal and Welleck, 2025) in miniature, on sums with optional re-checking: a length that the prompt asks for.

A base adds directly, in one pass or with any number of re-checks. Four in five of its sums asked "Think for N tokens.",
about truly in some cases and with any number in the others: a pretrained model too has met numbers and what they count.
From it, by reinforcement learning with that sentence in every prompt, N drawn evenly,
    exact       LCPO-Exact: [right] - alpha |N - tokens|
    max         from `exact` on, LCPO-Max and LCPO-Exact by turns: N is a maximum in half of the prompts
    plain       no reward for length: the control, and the model whose responses are cut or forced to N instead
Each is measured at fixed N, some of them longer than any N of the training.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace

from nanoreason.experiments.figure import Line, Panel
from nanoreason.experiments.results import LESS, Arm, Claim, PerSeed, Results, slope
from nanoreason.recipes import budget, grpo, sft
from nanoreason.rewards import Accuracy, Lcpo
from nanoreason.run import Schedule
from nanoreason.tasks import ThinkingAddition
from nanoreason.tasks.wrappers import AskedLength, Templated


@dataclass(frozen=True)
class Preset:
    base: sft.SftConfig
    grpo: grpo.GrpoConfig  # of exact
    max_steps: int  # of max, after exact
    plain_steps: int
    budget: budget.BudgetConfig  # its budgets are the targets that are tested


SUMS = ThinkingAddition((1, 2))
CPU_BASE = sft.SftConfig(
    task=Templated(AskedLength(
        ThinkingAddition((1, 2), modes=(0.1, 0.3, 0.6), error_prob=0.2, recheck_error_scale=0.25,
                         extra_recheck_prob=0.7, max_passes=8),
        kind="both", asked_share=0.8, true_share=0.6,
    )),
    width=64, steps=2500, lr=3e-3, rows_per_step=32, eval_task=Templated(SUMS),
)  # fmt: skip
CPU_GRPO = grpo.GrpoConfig(
    task=Templated(AskedLength(SUMS)), rewards=(Lcpo(),), steps=300, group_size=8, lr=3e-4,
    max_new_tokens=Schedule(128), preflight=0, eval_every=40, save_every=40, eval_problems=20,
)  # fmt: skip
CPU_BUDGET = budget.BudgetConfig(problems=150, budgets=(12, 16, 24, 32, 48, 64, 96, 128, 160))
PRESETS = {
    "cpu": Preset(CPU_BASE, CPU_GRPO, 80, 60, CPU_BUDGET),
    "tiny": Preset(
        replace(CPU_BASE, width=32, layers=2, heads=2, kv_heads=1, steps=20, warmup=2, rows_per_step=8,
                eval_problems=4),
        replace(CPU_GRPO, task=Templated(AskedLength(SUMS, tokens=(8, 24))), steps=2, prompts=2, group_size=4,
                max_new_tokens=Schedule(32), eval_problems=2),
        1, 1, replace(CPU_BUDGET, problems=4, budgets=(8, 16, 32)),
    ),
    "gpu": Preset(
        replace(CPU_BASE, width=256, layers=6, heads=8, kv_heads=4, context=384, steps=4000, lr=1e-3,
                rows_per_step=128, micro_tokens=32768, eval_problems=500),
        replace(CPU_GRPO, task=Templated(AskedLength(ThinkingAddition((2, 3)), tokens=(8, 160))), steps=700, prompts=64,
                group_size=16, lr=1e-4, max_new_tokens=Schedule(200), rewards=(Lcpo(alpha=0.0075),),
                micro_tokens=65536),
        120, 300,
        replace(CPU_BUDGET, task=Templated(ThinkingAddition((2, 3))), problems=1000,
                budgets=(12, 24, 48, 72, 96, 128, 160, 192, 224)),
    ),
}  # fmt: skip


ARMS = {"exact": "LCPO-Exact", "max": "LCPO-Max", "plain": "no reward for length", "base": "the base"}
COLORS = {"exact": "tab:blue", "max": "tab:green", "plain": "tab:gray", "base": "tab:brown",
          "truncated": "tab:red", "s1": "tab:orange"}  # fmt: skip
MEASURED = {  # curve: (job that measures it, method)
    "exact": ("test_exact", "exact"),
    "max": ("test_max", "max"),
    "plain": ("test_plain", "free"),
    "base": ("test_base", "free"),
    "truncated": ("test_plain", "truncated"),
    "s1": ("test_plain", "s1"),
}


def arms(preset: str, seed: int) -> list[Arm]:
    """The base; exact and plain; max; then every model at every target."""
    chosen = PRESETS[preset]
    # N of its own random numbers: the seed names them, and `exact` has used those of the same seed
    both = replace(chosen.grpo.task, task=replace(chosen.grpo.task.task, kind="both"))
    methods = {"exact": ("exact",), "max": ("max",), "plain": ("free", "truncated", "s1"), "base": ("free",)}
    return [
        Arm("base", "sft", chosen.base),
        Arm("exact", "grpo", chosen.grpo, "base"),
        Arm("plain", "grpo", replace(chosen.grpo, rewards=(Accuracy(),), steps=chosen.plain_steps), "base"),
        Arm("max", "grpo", replace(chosen.grpo, task=both, steps=chosen.max_steps), "exact"),
        *(Arm(f"test_{arm}", "budget", replace(chosen.budget, methods=methods[arm]), arm, cost=50.0) for arm in ARMS),
    ]


# -------------------------------------------------------------------------------------------------------- claims


def by_target(r: Results, name: str, key: str, seed: int, preset: str = "") -> dict[int, float]:
    """{N: a metric of one seed}; of a preset: of the N that its training asks for."""
    arm, method = MEASURED[name]
    low, high = PRESETS[preset].grpo.task.task.tokens if preset else (0, math.inf)
    return r.curve(arm, key, seed, "asked", method=method, asked=lambda n: low <= n <= high)


def claims(preset: str) -> list[Claim]:
    digits = PRESETS[preset].budget.task.task.digits
    low, high = PRESETS[preset].grpo.task.task.tokens
    small = [n for n in PRESETS[preset].budget.budgets if n >= low][:3]
    easy, hard = f"tokens/{digits[0]}", f"tokens/{digits[-1]}"

    def steepness(name: str, key: str, log: bool = False):
        return lambda r: r.per_seed(lambda seed: slope(by_target(r, name, key, seed, preset), log))

    def mean(name: str, key: str, targets=lambda n: low <= n <= high):
        return lambda r: r.mean(MEASURED[name][0], key, method=MEASURED[name][1], asked=targets)

    def at_small(name: str):
        return mean(name, "accuracy", lambda n: n in small)

    def size_of_errors(r: Results) -> PerSeed:
        arm, method = MEASURED["exact"]
        return r.of_series(lambda errors: statistics.fmean(map(abs, errors)), arm, "error", method=method,
                           asked=lambda n: low <= n <= high)  # fmt: skip

    def largest_over_smallest(r: Results) -> PerSeed:
        tokens = {s: list(by_target(r, "max", "thinking", s, preset).values()) for s in r.seeds}
        return r.per_seed(lambda s: tokens[s][-1] / tokens[s][0] if tokens[s] else None)

    return [
        Claim("exact: size of the signed error relative to the target, mean over targets", size_of_errors, 0.05, LESS),
        Claim("exact: tokens per token asked for", steepness("exact", "thinking"), 0.8),
        Claim("exact - no reward for length: tokens per token asked for",
              lambda r: steepness("exact", "thinking")(r) - steepness("plain", "thinking")(r), 0.3),
        Claim("exact: accuracy per doubling of the target", steepness("exact", "accuracy", True), 0.03),
        Claim(f"exact - truncation: accuracy at targets {small}",
              lambda r: at_small("exact")(r) - at_small("truncated")(r), 0.1),
        Claim(f"exact - budget forcing: accuracy at targets {small}",
              lambda r: at_small("exact")(r) - at_small("s1")(r), 0.1),
        Claim(f"max: tokens on {digits[0]} digit / on {digits[-1]}",
              lambda r: mean("max", easy)(r) / mean("max", hard)(r), 0.9, LESS, 1),
        Claim(f"max / exact: tokens on {digits[0]} digit, mean over targets",
              lambda r: mean("max", easy)(r) / mean("exact", easy)(r), 0.9, LESS, 1),
        Claim("max: tokens at the largest maximum / at the smallest", largest_over_smallest, 1.2, no_effect=1),
        Claim("max: responses within the maximum, mean over targets", mean("max", "within"), 0.9),
    ]  # fmt: skip


def extra(results: Results, preset: str) -> dict:
    """Tokens, accuracy and errors of every model at every target."""
    keys = (
        "thinking",
        "accuracy",
        "error",
        "mae",
        "within",
        *(f"tokens/{n}" for n in PRESETS[preset].budget.task.task.digits),
    )
    return {
        name: {key: results.listed(arm, key, "asked", method=method) for key in keys}
        for name, (arm, method) in MEASURED.items()
    }


# -------------------------------------------------------------------------------------------------------- figure


def panels(preset: str) -> list[Panel]:
    """Top: tokens and accuracy by target, errors. Bottom: accuracy by tokens, tokens by difficulty, the training."""
    chosen = PRESETS[preset]
    high, longest = chosen.grpo.task.task.tokens[1], max(chosen.budget.budgets)
    names = {**ARMS, "truncated": "no reward, cut at N", "s1": "no reward, budget forcing"}

    def lines(*shown: str) -> list[Line]:
        return [Line(MEASURED[name][0], names[name], COLORS[name], {"method": MEASURED[name][1]}) for name in shown]

    def beyond(axis, r: Results) -> None:
        if longest > high:
            axis.axvspan(high, longest, color="gray", alpha=0.12, label="beyond the training")

    def diagonal(axis, r: Results) -> None:
        axis.plot(chosen.budget.budgets, chosen.budget.budgets, color="black", linewidth=0.8, label="as asked")
        beyond(axis, r)

    exact, accuracy = lines("exact"), "accuracy on held-out sums"
    targets = {"x": "asked", "marker": "o", "xlabel": "N, the number in the prompt"}
    return [
        Panel("Length of the response", lines("exact", "max", "plain", "base"), "thinking", also=diagonal,
              ylabel="mean tokens", **targets),
        Panel("Accuracy against the number in the prompt", lines("exact", "max", "truncated", "s1"), "accuracy",
              also=beyond, ylabel=accuracy, xscale="log", **targets),
        Panel("Error of the length", exact, {"signed error": "error", "mean absolute error": "mae"}, also=beyond,
              ylabel="relative to N", xscale="log", **targets),
        Panel("Accuracy against tokens used", lines("exact", "max", "truncated", "s1", "plain"), "accuracy", "thinking",
              by="asked", xlabel="mean tokens of the response", xscale="log", marker="o", ylabel=accuracy),
        Panel("Tokens by difficulty", lines("exact", "max"),
              {f"{n}-digit sums": f"tokens/{n}" for n in chosen.budget.task.task.digits}, also=beyond,
              ylabel="mean tokens of the response", **targets),
        Panel("Reward during training (Max goes on from Exact)",
              [Line(arm, ARMS[arm], COLORS[arm]) for arm in ("exact", "max", "plain")], "reward", smooth=5,
              ylabel="mean reward, of 5 neighbouring steps"),
    ]  # fmt: skip


def caption(preset: str) -> str:
    digits = " and ".join(map(str, PRESETS[preset].budget.task.task.digits))
    low, high = PRESETS[preset].grpo.task.task.tokens
    return (
        f"L1 on {digits}-digit addition with optional re-checking, preset {preset}: prompts ask for N tokens, {low} to "
        f"{high} in training; sampled at temperature 1; tokens are those of the whole response."
    )
