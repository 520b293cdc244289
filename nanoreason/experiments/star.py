"""STaR (Zelikman et al., 2022), Figure 4 and 5 in miniature: how digit addition is learnt, length by length.

One base per seed, which adds short sums and sees a few longer ones, then from this same base
    plain         STaR without rationalization: lengths are learnt one after another
    rationalize   STaR with rationalization: lengths are learnt together; after the rounds that are compared, longer
                  sums join the practice for some more rounds (Figure 5)
    direct        answers without scratchpad: 10,000 of the problems STaR draws from, 5,000 steps as in the paper
    temperature   plain, and problems that failed are sampled again at temperature 0.7 (the paper's section 5)
    continue      rationalize, but each round goes on from the last policy instead of the base

All STaR arms have one schedule of steps, the paper's for rationalization. DIFFERS from the paper: there the arm without
rationalization starts with 40 steps instead of 300, growing by a factor, so its two arms differ in this too.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from pathlib import Path

from nanoreason.experiments.reproduce import Criterion, Job, curve
from nanoreason.recipes import sft, star

ARMS = {
    "plain": "without rationalization",
    "rationalize": "with rationalization",
    "direct": "direct answers",
    "temperature": "temperature instead of hints",
    "continue": "continue instead of restart",
}


@dataclass(frozen=True)
class Preset:
    star: star.StarConfig  # what the arms have in common
    late_digits: tuple[int, ...]  # lengths that join the practice of `rationalize` after the compared rounds
    late_rounds: int  # for how many more rounds
    direct_pool: int  # different problems per length of the direct baseline
    direct_steps: int  # its optimizer steps
    arms: tuple[str, ...] = tuple(ARMS)


CPU = star.PRESETS["cpu"]
PRESETS = {
    "cpu": Preset(CPU, (6, 7), 2, 2000, 5000),
    "tiny": Preset(star.PRESETS["tiny"], (3,), 1, 64, 8, ("plain", "rationalize", "direct")),
    "gpu": Preset(star.PRESETS["gpu"], (6, 7), 6, 2000, 5000),
    "demo": Preset(
        replace(
            CPU, base_steps=2500, base_goal=0.2, base_shares=(0.55, 0.35, 0.1), base_hinted_shares=(1, 1, 1, 1),
            rounds=3, digits=(1, 2, 3, 4), problems=240, step_increment=0, eval_digits=(1, 2, 3, 4),
        ),
        (), 0, 2000, 1000, ("plain", "rationalize", "direct"),
    ),
}  # fmt: skip


def stages(preset: str, seed: int, folder: Path) -> list[list[Job]]:
    """First the base, then the arms, which do not need each other."""
    chosen = PRESETS[preset]
    common = replace(chosen.star, seed=seed)
    base = Job("base", "star", replace(common, rounds=0, out=str(folder / "base")))
    common = replace(common, base=str(folder / "base" / "base"))
    direct = sft.SftConfig(
        seed=seed, base=common.base, context=common.context, form="direct", digits=common.digits,
        pool=chosen.direct_pool, steps=chosen.direct_steps, lr=common.lr, decay=True, warmup=common.warmup,
        rows_per_step=common.rows_per_step, micro_tokens=common.micro_tokens, eval_digits=common.eval_digits,
        eval_problems=common.eval_problems,
    )  # fmt: skip
    longer, common = common.eval_digits, replace(common, eval_digits=common.digits)  # longest rows: half of the time
    configs = {
        "plain": common,
        "rationalize": replace(
            common, rationalize=True, rounds=common.rounds + chosen.late_rounds, late_digits=chosen.late_digits,
            late_from=common.rounds + 1, eval_digits=longer,
        ),
        "direct": direct,
        "temperature": replace(common, retry_temperature=0.7),
        "continue": replace(common, rationalize=True, restart=False),
    }  # fmt: skip
    arms = [
        Job(arm, "sft" if arm == "direct" else "star", replace(configs[arm], out=str(folder / arm)))
        for arm in chosen.arms
    ]
    return [[base], arms]


# ------------------------------------------------------------------------------------------------------- numbers


def final(
    lines: list[dict], arm: str, digits: tuple[int, ...], seed: int | None = None, strict: bool = False
) -> float | None:
    """Accuracy over all `digits` in the last round of an arm, the mean over seeds."""
    chosen = [line for line in lines if line["arm"] == arm and seed in (None, line["seed"])]
    name = "acc_strict" if strict else "acc"
    last = {line["seed"]: line for line in chosen if f"{name}/{digits[0]}" in line}
    values = [statistics.fmean(line[f"{name}/{n}"] for n in digits) for line in last.values()]
    return statistics.fmean(values) if values else None


def compared(lines: list[dict], rounds: int) -> list[dict]:
    """The lines of the rounds that all arms have; `rationalize` goes on after them with longer sums."""
    return [line for line in lines if line["arm"] != "rationalize" or line["step"] <= rounds]


def arrivals(lines: list[dict], arm: str, digits: tuple[int, ...]) -> dict[int, int | None]:
    """{length: the first round whose accuracy exceeds one half, None if none does}, of the mean over seeds."""
    found: dict[int, int | None] = {}
    for n in digits:
        rounds = curve(lines, arm, f"acc/{n}").items()
        found[n] = next((round for round, value in rounds if value > 0.5), None)
    return found


def spread(arrived: dict[int, int | None], rounds: int) -> float | None:
    """Rounds between the first and the last arrival among the lengths that the base did not have.

    A length that never arrives counts as one round after the last: the spread is then a lower bound. None if none does.
    """
    times = [rounds + 1 if r is None else r for r in arrived.values() if r != 0]
    return float(max(times) - min(times)) if times and min(times) <= rounds else None


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
    digits, everything, lines = settings.digits, lines, compared(lines, settings.rounds)
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
                    statistics.fmean(curve(lines, arm, f"acc/{n}").values()) for n in digits
                ),
                "kept_by_round": list(curve(lines, arm, "kept").values()),
                "kept_second_by_round": list(curve(lines, arm, "kept_second").values()),
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
        Criterion("plain - direct: final accuracy", lead("plain", "direct"), 0.01),
        Criterion("rationalize - direct: final accuracy", lead("rationalize", "direct"), 0.01),
    ]  # fmt: skip
    if "temperature" in chosen.arms:
        worse = lead("rationalize", "temperature", "mean_accuracy_over_rounds")
        criteria.append(Criterion("rationalize - temperature: accuracy, mean over rounds", worse, 0.01))
    unseen = [n for n in settings.eval_digits if n > max(digits)]
    never = [n for n in unseen if n not in chosen.late_digits]
    if chosen.late_rounds and never:
        arms["late"] = {
            "accuracy_by_digits": {str(n): final(everything, "rationalize", (n,)) for n in digits + (*unseen,)}
        }
        joined, left = chosen.late_digits, never[0]
        before = {n: curve(everything, "rationalize", f"acc/{n}")[settings.rounds] for n in (*joined, left)}
        after = {n: final(everything, "rationalize", (n,)) for n in (*joined, left)}
        gain = statistics.fmean(after[n] - before[n] for n in joined)
        criteria += [
            Criterion(
                f"longer unseen sums: accuracy on {joined[0]} digits before they joined", before[joined[0]], 0.01
            ),
            Criterion(f"late: gain on {joined} digits after they joined", gain, 0.01),
            Criterion(f"late: accuracy on {left} digits, never practised", after[left], 0.01),
            Criterion(f"late: gain on {left} digits after longer sums joined", after[left] - before[left], 0.01),
        ]
    return arms, criteria


# -------------------------------------------------------------------------------------------------------- figure


def draw(lines: list[dict], preset: str, path: Path) -> None:
    """Top: accuracy per length without and with rationalization, all arms. Bottom: data kept, hints, longer sums."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    chosen = PRESETS[preset]
    digits, everything, lines = chosen.star.digits, lines, compared(lines, chosen.star.rounds)
    seeds = sorted({line["seed"] for line in lines})
    unseen = [n for n in chosen.star.eval_digits if n > max(digits)]
    figure, axes = plt.subplots(2, 3, figsize=(15, 8), layout="constrained")

    def lengths(axis, lines: list[dict], arm: str, key: str, shown) -> None:
        colors = {n: plt.get_cmap("viridis")(0.92 * i / max(1, len(shown) - 1)) for i, n in enumerate(shown)}
        for n in shown:
            label = "1 digit (all 81 sums)" if n == 1 and key == "acc" else f"{n} digit{'s' if n > 1 else ''}"
            for seed in seeds:  # single seeds stay visible behind their mean
                one = curve(lines, arm, f"{key}/{n}", seed)
                axis.plot(one.keys(), one.values(), color=colors[n], linewidth=0.6, alpha=0.4)
            mean = curve(lines, arm, f"{key}/{n}")
            axis.plot(mean.keys(), mean.values(), color=colors[n], marker="o", markersize=3, label=label)

    for axis, arm in zip(axes[0], ("plain", "rationalize"), strict=False):
        lengths(axis, lines, arm, "acc", digits)
        axis.set(title=f"STaR {ARMS[arm]}", ylabel="accuracy on held-out sums")
    for arm, name in ARMS.items():
        if arm == "direct":
            axes[0][2].axhline(
                final(lines, arm, digits), color="gray", linestyle=":", label=f"{name} (end of training)"
            )
        elif arm in chosen.arms:
            by_length = [curve(lines, arm, f"acc/{n}").values() for n in digits]
            mean = [statistics.fmean(values) for values in zip(*by_length, strict=True)]
            axes[0][2].plot(mean, marker="o", markersize=3, label=name)
    axes[0][2].set(
        title=f"All arms, mean over {min(digits)} to {max(digits)} digits", ylabel="accuracy on held-out sums"
    )
    for arm, color in (("plain", "tab:blue"), ("rationalize", "tab:orange"), ("temperature", "tab:green")):
        if arm in chosen.arms:
            kept, second = (list(curve(lines, arm, key).values()) for key in ("kept", "kept_second"))
            rounds = range(1, len(kept) + 1)
            axes[1][0].plot(rounds, kept, color=color, marker="o", markersize=3, label=f"{ARMS[arm]}: first try")
            if any(second):
                total = [a + b for a, b in zip(kept, second, strict=True)]
                axes[1][0].plot(rounds, total, "--", color=color, label=f"{ARMS[arm]}: and second try")
    axes[1][0].set(title="Data kept for training", ylabel="share of the round's problems")
    lengths(axes[1][1], lines, "rationalize", "hinted", digits)
    axes[1][1].set(title="Rationalization: solved when hinted at", ylabel="share of what failed (later: of few)")
    lengths(axes[1][2], everything, "rationalize", "acc", unseen or digits)
    if chosen.late_rounds:
        label = f"{', '.join(map(str, chosen.late_digits))} digits join the practice"
        axes[1][2].axvline(chosen.star.rounds + 0.5, color="gray", linestyle="--", label=label)
    axes[1][2].set(title="Longer sums, with rationalization", ylabel="accuracy on held-out sums")
    for axis in axes.flat:
        axis.set(xlabel="round (0: the base)", ylim=(-0.03, 1.03))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.legend(fontsize=8)
    figure.suptitle(f"STaR on digit addition, preset {preset}: mean of {len(seeds)} seed(s), thin lines single seeds")
    figure.savefig(path, dpi=100)
    plt.close(figure)
