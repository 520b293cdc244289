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
        replace(star.PRESETS["cpu"], base_steps=400, rounds=3, digits=(1, 2, 3), problems=300, eval_digits=(1, 2, 3, 4)),
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


def first_round_above(values: list[float], level: float = 0.5) -> int | None:
    """The first round in which a curve exceeds `level`."""
    return next((round for round, value in enumerate(values) if value > level), None)


def arrival_gap(lines: list[dict], arm: str, digits: tuple[int, ...]) -> float | None:
    """Rounds between the arrivals (first accuracy above one half) of the first and the last length the base lacks.

    A length that never arrives counts as arriving one round after the last: the gap is then a lower bound.
    """
    curves = [curve(lines, arm, f"acc/{n}") for n in digits]
    curves = [values for values in curves if values and values[0] <= 0.5]
    if len(curves) < 2:
        return None
    arrivals = [len(values) if first_round_above(values) is None else first_round_above(values) for values in curves]
    return float(max(arrivals) - min(arrivals))


def summarise(lines: list[dict], preset: str) -> tuple[dict, list[Criterion]]:
    """Numbers per arm, and the criteria of the reference's section 1.4."""
    chosen = PRESETS[preset]
    digits = chosen.star.digits
    unseen = tuple(n for n in chosen.star.eval_digits if n > max(digits))
    arms: dict[str, dict] = {}
    for arm in ("base", *chosen.arms):
        by_length = {str(n): final(lines, arm, (n,)) for n in chosen.star.eval_digits}
        arms[arm] = {
            "accuracy": final(lines, arm, digits),
            "accuracy_strict": final(lines, arm, digits, strict=True),
            "accuracy_by_digits": by_length,
        }
        if arm not in ("base", "direct"):
            arms[arm]["arrival_round_by_digits"] = {
                str(n): first_round_above(curve(lines, arm, f"acc/{n}")) for n in digits
            }
            arms[arm]["kept_by_round"] = curve(lines, arm, "kept")
            arms[arm]["kept_second_by_round"] = curve(lines, arm, "kept_second")

    def difference(a: float | None, b: float | None) -> float | None:
        return None if a is None or b is None else a - b

    plain_gap, rationalize_gap = (arrival_gap(lines, arm, digits) for arm in ("plain", "rationalize"))
    order = [
        r if r is not None else chosen.star.rounds + 1
        for r in (arms["plain"]["arrival_round_by_digits"][str(n)] for n in digits)
    ]
    steps_up = [
        b > a for a, b in zip(order, order[1:], strict=False) if b > 0
    ]  # lengths the base has already are no news
    area = {
        arm: statistics.fmean(statistics.fmean(curve(lines, arm, f"acc/{n}")) for n in digits)
        for arm in ("plain", "rationalize")
    }
    criteria = [
        Criterion("plain: lengths arrive in order, share of neighbours that do", sum(steps_up) / max(1, len(steps_up)), 1.0),
        Criterion("plain: rounds between first and last arrival", plain_gap, 2.0),
        Criterion("rationalize: rounds between first and last arrival", rationalize_gap, 1.0, at_least=False),
        Criterion("rationalize - plain: mean accuracy over rounds", difference(area["rationalize"], area["plain"]), 0.05),
        Criterion("rationalize - direct: final accuracy", difference(arms["rationalize"]["accuracy"], arms["direct"]["accuracy"]), 0.0),
        Criterion("plain - direct: final accuracy", difference(arms["plain"]["accuracy"], arms["direct"]["accuracy"]), 0.0),
    ]  # fmt: skip
    if "temperature" in chosen.arms:
        worse = difference(arms["rationalize"]["accuracy"], arms["temperature"]["accuracy"])
        criteria.append(Criterion("rationalize - temperature: final accuracy", worse, 0.0))
    if "late" in chosen.arms and unseen:
        never = tuple(n for n in unseen if n not in chosen.late_digits)
        criteria.append(
            Criterion(f"late: accuracy on never practised lengths {never}", final(lines, "late", never), 0.01)
        )
        before = curve(lines, "late", f"acc/{never[0]}")[chosen.late_from - 1]
        after = curve(lines, "late", f"acc/{never[0]}")[-1]
        criteria.append(Criterion(f"late: gain on {never[0]} digits after longer sums joined", after - before, 0.01))
    return arms, criteria


# -------------------------------------------------------------------------------------------------------- figure


def draw(lines: list[dict], preset: str, path: Path) -> None:
    """Top: accuracy per length and round without and with rationalization. Bottom: data kept, and unseen longer sums."""
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
