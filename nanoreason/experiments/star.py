"""STaR (Zelikman et al., 2022), Figure 4 and 5 in miniature: how digit addition is learnt, length by length.

One base per seed, which adds short sums and sees a few longer ones, then from this same base
    plain         STaR without rationalization: lengths are learnt one after another
    rationalize   STaR with rationalization: lengths are learnt together
    direct        answers without scratchpad, on all the problems that STaR draws from
    temperature   plain, and problems that failed are sampled again at temperature 0.7 (the paper's section 5)
    continue      rationalize, but each round goes on from the last policy instead of the base
    late          rationalize, and longer sums join the practice in a late round (Figure 5)
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from pathlib import Path

from nanoreason.experiments.reproduce import Criterion, Job
from nanoreason.recipes import sft, star

ARMS = {
    "plain": "without rationalization",
    "rationalize": "with rationalization",
    "direct": "direct answers",
    "temperature": "temperature instead of hints",
    "continue": "continue instead of restart",
    "late": "longer sums join late",
}


@dataclass(frozen=True)
class Preset:
    star: star.StarConfig  # what the arms have in common
    late_digits: tuple[int, ...]  # lengths that join in the arm `late`
    late_from: int  # the round in which they do
    direct_steps: int  # optimizer steps of the direct baseline
    arms: tuple[str, ...] = tuple(ARMS)


PRESETS = {
    "cpu": Preset(star.PRESETS["cpu"], (6, 7), 6, 1500),
    "tiny": Preset(star.PRESETS["tiny"], (3,), 2, 8, ("plain", "rationalize", "direct")),
    "gpu": Preset(star.PRESETS["gpu"], (6, 7, 8), 11, 5000),
    "demo": Preset(
        replace(
            star.PRESETS["cpu"], base_steps=400, rounds=3, digits=(1, 2, 3), problems=300, eval_digits=(1, 2, 3, 4)
        ),
        (4,), 2, 300, ("plain", "rationalize", "direct"),
    ),
}  # fmt: skip


def stages(preset: str, seed: int, folder: Path) -> list[list[Job]]:
    """First the base, then the arms, which do not need each other."""
    chosen = PRESETS[preset]
    common = replace(chosen.star, seed=seed)
    base = Job("base", "star", replace(common, rounds=0, out=str(folder / "base")))
    common = replace(common, base=str(folder / "base" / "base"))
    direct = sft.SftConfig(
        seed=seed, base=common.base, context=common.context, form="direct", digits=common.digits, pool=common.pool,
        steps=chosen.direct_steps, lr=common.lr, decay=False, warmup=common.warmup, rows_per_step=common.rows_per_step,
        micro_tokens=common.micro_tokens, eval_digits=common.eval_digits, eval_problems=common.eval_problems,
    )  # fmt: skip
    configs = {
        "plain": common,
        "rationalize": replace(common, rationalize=True),
        "direct": direct,
        "temperature": replace(common, retry_temperature=0.7),
        "continue": replace(common, rationalize=True, restart=False),
        "late": replace(common, rationalize=True, late_digits=chosen.late_digits, late_from=chosen.late_from),
    }
    arms = [
        Job(arm, "sft" if arm == "direct" else "star", replace(configs[arm], out=str(folder / arm)))
        for arm in chosen.arms
    ]
    return [[base], arms]


# ------------------------------------------------------------------------------------------------------- numbers


def curve(lines: list[dict], arm: str, key: str) -> list[float]:
    """The mean over seeds of a metric, per round."""
    rounds: dict[int, list[float]] = {}
    for line in lines:
        if line["arm"] == arm and key in line:
            rounds.setdefault(line["step"], []).append(line[key])
    return [statistics.fmean(rounds[r]) for r in sorted(rounds)]


def final(
    lines: list[dict], arm: str, digits: tuple[int, ...], seed: int | None = None, strict: bool = False
) -> float | None:
    """Accuracy over all `digits` in the last round of an arm, the mean over seeds."""
    chosen = [line for line in lines if line["arm"] == arm and seed in (None, line["seed"])]
    name = "acc_strict" if strict else "acc"
    last = {line["seed"]: line for line in chosen if f"{name}/{digits[0]}" in line}
    values = [statistics.fmean(line[f"{name}/{n}"] for n in digits) for line in last.values()]
    return statistics.fmean(values) if values else None


def arrivals(lines: list[dict], arm: str, digits: tuple[int, ...]) -> dict[int, int | None]:
    """{length: the first round whose accuracy exceeds one half, None if none does}, of the mean over seeds."""
    found: dict[int, int | None] = {}
    for n in digits:
        values = curve(lines, arm, f"acc/{n}")
        found[n] = next((round for round, value in enumerate(values) if value > 0.5), None)
    return found


def spread(arrived: dict[int, int | None], rounds: int) -> float:
    """Rounds between the first and the last arrival among the lengths that the base did not have.

    A length that never arrives counts as one round after the last: the spread is then a lower bound.
    """
    times = [rounds + 1 if r is None else r for r in arrived.values() if r != 0]
    return float(max(times) - min(times)) if times else 0.0


def in_order(arrived: dict[int, int | None], rounds: int) -> float:
    """The share of neighbouring lengths, the base's own aside, of which the shorter arrives strictly earlier.

    Two lengths that both never arrive are not in order.
    """
    times = [rounds + 1 if r is None else r for r in arrived.values() if r != 0]
    pairs = list(zip(times, times[1:], strict=False))
    return sum(a < b for a, b in pairs) / len(pairs) if pairs else 0.0


def summarise(lines: list[dict], preset: str) -> tuple[dict, list[Criterion]]:
    """Numbers per arm, and the criteria of "what counts as reproduced"."""
    chosen, settings = PRESETS[preset], PRESETS[preset].star
    digits = settings.digits
    arms: dict[str, dict] = {}
    for arm in ("base", *chosen.arms):
        arms[arm] = {
            "accuracy": final(lines, arm, digits),
            "accuracy_strict": final(lines, arm, digits, strict=True),
            "accuracy_by_digits": {str(n): final(lines, arm, (n,)) for n in settings.eval_digits},
        }
        if arm not in ("base", "direct"):
            arms[arm] |= {
                "arrival_round_by_digits": {str(n): r for n, r in arrivals(lines, arm, digits).items()},
                "mean_accuracy_over_rounds": statistics.fmean(
                    statistics.fmean(curve(lines, arm, f"acc/{n}")) for n in digits
                ),
                "kept_by_round": curve(lines, arm, "kept"),
                "kept_second_by_round": curve(lines, arm, "kept_second"),
            }
    plain, rationalize = (arrivals(lines, arm, digits) for arm in ("plain", "rationalize"))

    def lead(arm: str, other: str, key: str = "accuracy") -> float:
        return arms[arm][key] - arms[other][key]

    criteria = [
        Criterion("plain: share of neighbouring lengths that arrive in order", in_order(plain, settings.rounds), 1.0),
        Criterion("plain: rounds from first to last arrival", spread(plain, settings.rounds), 2.0),
        Criterion("rationalize: rounds from first to last arrival", spread(rationalize, settings.rounds), 1.0, False),
        Criterion("rationalize - plain: accuracy, mean over rounds",
                  lead("rationalize", "plain", "mean_accuracy_over_rounds"), 0.05),
        Criterion("plain - direct: final accuracy", lead("plain", "direct"), 0.0),
        Criterion("rationalize - direct: final accuracy", lead("rationalize", "direct"), 0.0),
    ]  # fmt: skip
    if "temperature" in chosen.arms:
        worse = lead("rationalize", "temperature", "mean_accuracy_over_rounds")
        criteria.append(Criterion("rationalize - temperature: accuracy, mean over rounds", worse, 0.0))
    never = [n for n in settings.eval_digits if n > max(digits + chosen.late_digits)]
    if "late" in chosen.arms and never:
        n = never[0]
        unseen = curve(lines, "late", f"acc/{n}")
        gain = unseen[-1] - unseen[chosen.late_from - 1]
        criteria.append(Criterion(f"late: accuracy on {n} digits, never practised", unseen[-1], 0.01))
        criteria.append(Criterion(f"late: gain on {n} digits after longer sums joined", gain, 0.01))
    return arms, criteria


# -------------------------------------------------------------------------------------------------------- figure


def draw(lines: list[dict], preset: str, path: Path) -> None:
    """Top: accuracy per length and round without and with rationalization. Bottom: data kept, and longer sums."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    chosen = PRESETS[preset]
    digits = chosen.star.digits
    seeds = len({line["seed"] for line in lines})
    unseen = [n for n in chosen.star.eval_digits if n > max(digits)]
    colors = plt.get_cmap("viridis")
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.5), layout="constrained")

    def lengths(axis, arm: str, shown, style: str = "-") -> None:
        for i, n in enumerate(shown):
            color = colors(0.9 * i / max(1, len(shown) - 1))
            for seed in range(seeds):  # single seeds stay visible behind their mean
                one = curve([line for line in lines if line["seed"] == seed], arm, f"acc/{n}")
                axis.plot(one, style, color=color, linewidth=0.6, alpha=0.4)
            axis.plot(curve(lines, arm, f"acc/{n}"), style, color=color, marker="o", markersize=3, label=f"{n} digits")

    for axis, arm in zip(axes[0], ("plain", "rationalize"), strict=True):
        lengths(axis, arm, digits)
        direct = final(lines, "direct", digits)
        axis.axhline(direct, color="gray", linestyle=":", label=f"direct answers, all lengths: {direct:.2f}")
        axis.set(
            title=f"STaR {ARMS[arm]}",
            xlabel="round (0: the base)",
            ylabel="accuracy on held-out sums",
            ylim=(-0.03, 1.03),
        )
        axis.legend(fontsize=8)
    for arm, color in (("plain", "tab:blue"), ("rationalize", "tab:orange"), ("temperature", "tab:green")):
        if arm in chosen.arms:
            kept, second = curve(lines, arm, "kept"), curve(lines, arm, "kept_second")
            rounds = range(1, len(kept) + 1)
            axes[1][0].plot(rounds, kept, color=color, marker="o", markersize=3, label=f"{ARMS[arm]}: first try")
            if any(second):
                total = [a + b for a, b in zip(kept, second, strict=True)]
                axes[1][0].plot(rounds, total, "--", color=color, label=f"{ARMS[arm]}: and second try")
    axes[1][0].set(title="Share of the round's problems kept for training", xlabel="round", ylim=(-0.03, 1.03))
    axes[1][0].legend(fontsize=8)
    arm = "late" if "late" in chosen.arms else "rationalize"
    lengths(axes[1][1], arm, unseen or digits)
    if arm == "late":
        joined = ", ".join(map(str, chosen.late_digits))
        axes[1][1].axvline(
            chosen.late_from - 0.5, color="gray", linestyle="--", label=f"{joined} digits join the practice"
        )
    axes[1][1].set(
        title=f"Longer sums, STaR {ARMS[arm]}", xlabel="round (0: the base)", ylabel="accuracy", ylim=(-0.03, 1.03)
    )
    axes[1][1].legend(fontsize=8)
    figure.suptitle(f"STaR on digit addition, preset {preset}: mean of {seeds} seed(s), thin lines single seeds")
    figure.savefig(path, dpi=110)
    plt.close(figure)
