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
from pathlib import Path

from nanoreason.experiments.reproduce import Criterion, Job
from nanoreason.recipes import budget, grpo, sft


@dataclass(frozen=True)
class Preset:
    base: sft.SftConfig
    grpo: grpo.GrpoConfig  # of exact
    max_steps: int  # of max, after exact
    plain_steps: int
    budget: budget.BudgetConfig  # its budgets are the targets that are tested


CPU_BASE = sft.SftConfig(
    form="thinking", width=64, layers=3, heads=4, digits=(1, 2), modes=(0.1, 0.3, 0.6), slip=0.2, care=0.25,
    doubt=0.7, passes=8, asked_share=0.8, asked_true=0.6, steps=2500, lr=3e-3, rows_per_step=32, eval_digits=(1, 2),
)  # fmt: skip
CPU_GRPO = grpo.GrpoConfig(
    task="thinking", template="skeleton", digits=(1, 2), asked="exact", asked_tokens=(8, 96), length_reward="lcpo",
    steps=300, prompts=16, group_size=8, lr=3e-4, max_new_tokens=128, kl_coef=0.0, preflight=0, eval_every=40,
    save_every=40, eval_digits=(1, 2), eval_problems=20,
)  # fmt: skip
CPU_BUDGET = budget.BudgetConfig(problems=150, budgets=(12, 16, 24, 32, 48, 64, 96, 128, 160))
PRESETS = {
    "cpu": Preset(CPU_BASE, CPU_GRPO, 80, 60, CPU_BUDGET),
    "tiny": Preset(
        replace(CPU_BASE, width=32, layers=2, heads=2, steps=20, warmup=2, rows_per_step=8, eval_problems=4),
        replace(CPU_GRPO, steps=2, prompts=2, group_size=4, max_new_tokens=32, asked_tokens=(8, 24), eval_problems=2),
        1, 1, replace(CPU_BUDGET, problems=4, budgets=(8, 16, 32)),
    ),
    "gpu": Preset(
        replace(CPU_BASE, width=256, layers=6, heads=8, context=384, digits=(2, 3), eval_digits=(2, 3), steps=4000,
                lr=1e-3, rows_per_step=128, micro_tokens=32768, eval_problems=500),
        replace(CPU_GRPO, digits=(2, 3), eval_digits=(2, 3), steps=700, prompts=64, group_size=16, lr=1e-4,
                max_new_tokens=200, asked_tokens=(8, 160), lcpo_alpha=0.0075, micro_tokens=65536),
        120, 300, replace(CPU_BUDGET, digits=(2, 3), problems=1000, budgets=(12, 24, 48, 72, 96, 128, 160, 192, 224)),
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


def stages(preset: str, seed: int, folder: Path) -> list[list[Job]]:
    """The base; exact and plain; max; then every model at every target."""
    chosen = PRESETS[preset]

    def policy(arm: str) -> str:
        return str(folder / arm / "policy")

    base = Job("base", "sft", replace(chosen.base, seed=seed, out=str(folder / "base")))
    exact = replace(chosen.grpo, seed=seed, base=policy("base"), out=str(folder / "exact"))
    plain = replace(exact, length_reward="none", steps=chosen.plain_steps, out=str(folder / "plain"))
    # N of its own random numbers: the seed names them, and `exact` has used those of the same seed
    maximum = replace(exact, base=policy("exact"), asked="both", steps=chosen.max_steps, out=str(folder / "max"))
    methods = {"exact": ("exact",), "max": ("max",), "plain": ("free", "truncated", "s1"), "base": ("free",)}
    tests = [
        Job(f"test_{arm}", "budget",
            replace(chosen.budget, seed=seed, base=policy(arm), methods=methods[arm], out=str(folder / f"test_{arm}")))
        for arm in ARMS
    ]  # fmt: skip
    return [[base], [Job("exact", "grpo", exact), Job("plain", "grpo", plain)], [Job("max", "grpo", maximum)], tests]


# ------------------------------------------------------------------------------------------------------- numbers


def curve(lines: list[dict], name: str, key: str, seed: int | None = None) -> dict[int, float]:
    """{target: the mean over seeds of a metric}."""
    arm, method = MEASURED[name]
    found: dict[int, list[float]] = {}
    for line in lines:
        if line["arm"] == arm and line.get("method") == method and seed in (None, line["seed"]) and key in line:
            found.setdefault(line["asked"], []).append(line[key])
    return {target: statistics.fmean(values) for target, values in sorted(found.items())}


def slope(points: dict[int, float], log: bool = False) -> float:
    """Of the least-squares line through (target, value), or through (log2 target, value): per doubling.

    >>> slope({8: 1.0, 16: 2.0, 32: 3.0}, log=True), slope({8: 4.0, 16: 8.0, 32: 16.0})
    (1.0, 0.5)
    """
    x = [math.log2(target) if log else target for target in points]
    return statistics.linear_regression(x, list(points.values())).slope


def summarise(lines: list[dict], preset: str) -> tuple[dict, list[Criterion]]:
    """Numbers per curve, and the criteria of "what counts as reproduced"."""
    chosen = PRESETS[preset]
    low, high = chosen.grpo.asked_tokens
    digits = chosen.budget.digits
    arms: dict[str, dict] = {}
    trained: dict[str, dict[str, dict[int, float]]] = {}  # within the range of the training
    for name in MEASURED:
        all_of = {key: curve(lines, name, key) for key in ("accuracy", "thinking", "error", "mae")}
        for n in digits:
            all_of |= {f"tokens/{n}": curve(lines, name, f"tokens/{n}")}
        trained[name] = {key: {t: v for t, v in values.items() if low <= t <= high} for key, values in all_of.items()}
        beyond = [error for target, error in all_of["error"].items() if target > high]
        arms[name] = {
            "signed_error": statistics.fmean(trained[name]["error"].values()),
            "mean_size_of_signed_errors": statistics.fmean(map(abs, trained[name]["error"].values())),
            "mean_absolute_error": statistics.fmean(trained[name]["mae"].values()),
            "signed_error_beyond_training": statistics.fmean(beyond) if beyond else None,
            "accuracy_per_doubling": slope(trained[name]["accuracy"], log=True),
            "tokens_per_token_asked": slope(trained[name]["thinking"]),
            "by_target": {
                str(target): {key: round(values[target], 4) for key, values in all_of.items()}
                for target in all_of["accuracy"]
            },
        }
    small = sorted(trained["exact"]["accuracy"])[:3]

    def lead(name: str, other: str) -> float:
        """In accuracy, the mean over the smallest three targets."""
        return statistics.fmean(trained[name]["accuracy"][t] - trained[other]["accuracy"][t] for t in small)

    easy, hard = (statistics.fmean(trained["max"][f"tokens/{n}"].values()) for n in (digits[0], digits[-1]))
    easy_exact = statistics.fmean(trained["exact"][f"tokens/{digits[0]}"].values())
    criteria = [
        Criterion("exact: size of the signed error, mean over targets",
                  arms["exact"]["mean_size_of_signed_errors"], 0.05, False),
        Criterion("exact: tokens per token asked for", arms["exact"]["tokens_per_token_asked"], 0.8),
        Criterion("no reward for length: tokens per token asked for (no control)",
                  abs(arms["plain"]["tokens_per_token_asked"]), 0.1, False),
        Criterion("exact: accuracy per doubling of the target", arms["exact"]["accuracy_per_doubling"], 0.02),
        Criterion(f"exact - truncation: accuracy at targets {small}", lead("exact", "truncated"), 0.1),
        Criterion(f"exact - budget forcing: accuracy at targets {small}", lead("exact", "s1"), 0.01),
        Criterion(f"max: tokens on {digits[0]} digit / on {digits[-1]}", easy / hard, 0.9, False),
        Criterion(f"exact - max: tokens on {digits[0]} digit, mean over targets", easy_exact - easy, 1.0),
        Criterion("max: responses within the maximum, mean over targets",
                  statistics.fmean(v for t, v in curve(lines, "max", "within").items() if low <= t <= high), 0.9),
    ]  # fmt: skip
    return arms, criteria


# -------------------------------------------------------------------------------------------------------- figure


def draw(lines: list[dict], preset: str, path: Path) -> None:
    """Top: tokens and accuracy by target, errors. Bottom: accuracy by tokens, tokens by difficulty, the training."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import ScalarFormatter

    chosen = PRESETS[preset]
    seeds = sorted({line["seed"] for line in lines})
    high = chosen.grpo.asked_tokens[1]
    names = {**ARMS, "truncated": "no reward, cut at N", "s1": "no reward, budget forcing"}
    figure, axes = plt.subplots(2, 3, figsize=(16, 9), layout="constrained")

    def plot(axis, name: str, key: str, against: str = "", **how) -> None:
        for seed in (*seeds, None):
            y = curve(lines, name, key, seed)
            x = list(curve(lines, name, against, seed).values()) if against else list(y)
            thin = {"linewidth": 0.6, "alpha": 0.4} if seed is not None else {"marker": "o", "markersize": 4}
            label = {} if seed is not None else {"label": how.get("label", names[name])}
            axis.plot(x, list(y.values()), color=COLORS[name], linestyle=how.get("linestyle", "-"), **thin, **label)

    for name in ("exact", "max", "plain", "base"):
        plot(axes[0][0], name, "thinking")
    targets = list(curve(lines, "exact", "thinking"))
    axes[0][0].plot(targets, targets, color="black", linewidth=0.8, label="as asked")
    axes[0][0].set(title="Tokens of the response against the number in the prompt", xlabel="N", ylabel="mean tokens")
    for name in ("exact", "max", "truncated", "s1"):
        plot(axes[0][1], name, "accuracy")
    axes[0][1].set(
        title="Accuracy against the number in the prompt", xlabel="N (log)", ylabel="accuracy on held-out sums"
    )
    for key, style, label in (("error", "-", "signed error"), ("mae", "--", "mean absolute error")):
        plot(axes[0][2], "exact", key, linestyle=style, label=f"{ARMS['exact']}: {label}")
    axes[0][2].axhline(0, color="black", linewidth=0.8)
    axes[0][2].set(title="Error of the length", xlabel="N (log)", ylabel="relative to N")
    for name in ("exact", "max", "truncated", "s1", "plain"):
        plot(axes[1][0], name, "accuracy", against="thinking")
    axes[1][0].set(title="Accuracy against tokens used", xlabel="mean tokens of the response (log)",
                   ylabel="accuracy on held-out sums")  # fmt: skip
    for n, style in zip(chosen.budget.digits, ("-", "--", ":"), strict=False):
        for name in ("exact", "max"):
            plot(axes[1][1], name, f"tokens/{n}", linestyle=style, label=f"{ARMS[name]}, {n} digit{'s' * (n > 1)}")
    axes[1][1].set(title="Tokens by difficulty", xlabel="N", ylabel="mean tokens of the response")
    for arm in ("exact", "max", "plain"):
        own = [line for line in lines if line["arm"] == arm and "completions/mean_length" in line]
        steps = sorted({line["step"] for line in own})
        reward = [statistics.fmean(line["reward"] for line in own if line["step"] == step) for step in steps]
        shift = chosen.grpo.steps if arm == "max" else 0
        axes[1][2].plot([step + shift for step in steps], reward, color=COLORS[arm], linewidth=0.9, label=ARMS[arm])
    axes[1][2].set(title="Reward during training (Max goes on from Exact)", xlabel="step", ylabel="mean reward")
    for axis in (axes[0][0], axes[0][1], axes[0][2], axes[1][1]):
        axis.axvspan(
            high, max(targets), color="gray", alpha=0.12, label="beyond the training" if max(targets) > high else None
        )
    for axis in (axes[0][1], axes[0][2], axes[1][0]):
        axis.set_xscale("log")
        axis.set_xticks([t for t in targets if t not in (24, 48)] or targets)
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.minorticks_off()
    for axis in axes.flat:
        axis.legend(fontsize=7)
    figure.suptitle(
        f"L1 on addition with optional re-checking (the cheap task), preset {preset}: mean of {len(seeds)} seed(s), "
        "thin lines single seeds\nsampled at temperature 1; tokens are those of the whole response"
    )
    figure.savefig(path, dpi=100)
    plt.close(figure)
