"""Stream of Search (Gandhi et al., 2024) in miniature: learning to search on Countdown, and getting better at it.

From random weights, all on the same problems in the same order
    op          optimal paths only: the model has to guess the right step at once
    op_tokens   optimal paths of three times as many problems: as many tokens as `sos` (not in the paper; seed 0 alone)
    sos         streams of search: symbolic strategies as they went, mistakes and failures included
    correct     streams of search that succeeded (a control)
and from the end of `sos`
    sos_star    STaR: three rounds of fine-tuning on its own successes
    sos_pg      policy gradient with a reward for short searches
    sos_apa     the same with the loss of advantage-induced policy alignment

Held-out problems have new inputs for known targets, or targets that no training problem has. The preset `cpu` has
three inputs up to 50, and of the twelve strategies the six short ones (beams of 2 to 4), so that a search fits into 320
tokens: a path that is guessed at random is right in 8 % of problems, the searches that it learns from in about 70 %.
With smaller inputs the right path is soon guessed without any search (optimal paths of inputs up to 20 teach to solve
three in four problems), with larger ones arithmetic takes too long to learn.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from pathlib import Path

from nanoreason.experiments.reproduce import Criterion, Job, curve
from nanoreason.recipes import sos, sos_improve
from nanoreason.search import ERRORS, STRATEGIES
from nanoreason.trajectories import SPLITS

ARMS = {
    "op": "optimal paths",
    "op_tokens": "optimal paths, as many tokens as SoS",
    "sos": "SoS",
    "correct": "correct-only SoS",
    "sos_star": "SoS + STaR",
    "sos_pg": "SoS + policy gradient",
    "sos_apa": "SoS + APA",
}
COLORS = dict(
    zip(ARMS, ("tab:gray", "tab:brown", "tab:blue", "tab:cyan", "tab:green", "tab:orange", "tab:red"), strict=True)
)


@dataclass(frozen=True)
class Preset:
    sos: sos.SosConfig  # the searcher
    op_tokens: dict  # optimal paths are short: with these settings they make as many tokens
    star: sos_improve.SosImproveConfig
    pg: sos_improve.SosImproveConfig
    apa: sos_improve.SosImproveConfig


def preset_of(name: str, policy_gradient: str, op_tokens: dict) -> Preset:
    improve = sos_improve.PRESETS
    by_gradient = replace(improve[policy_gradient], method="pg")
    return Preset(sos.PRESETS[name], op_tokens, improve[name], by_gradient, replace(by_gradient, method="apa"))


PRESETS = {
    "cpu": preset_of("cpu", "pg", {"rows_per_step": 37}),
    "tiny": preset_of("tiny", "tiny", {}),
    "gpu": preset_of("gpu", "gpu-pg", {"steps": 18000, "eval_every": 4500}),
}


def stages(preset: str, seed: int, folder: Path) -> list[list[Job]]:
    """First what starts from random weights, then what starts from the searcher."""
    chosen = PRESETS[preset]
    learners = {
        "sos": chosen.sos,
        "correct": replace(chosen.sos, data="correct"),
        "op": replace(chosen.sos, data="op"),
    }
    if seed == 0:  # a control that costs as much as `sos`
        learners["op_tokens"] = replace(chosen.sos, data="op", **chosen.op_tokens)
    improvers = {"sos_star": chosen.star, "sos_pg": chosen.pg, "sos_apa": chosen.apa}
    same = {
        name: getattr(chosen.sos, name)
        for name in ("inputs", "max_input", "targets", "strategies", "eval_problems", "hard_problems")
    }
    base = str(folder / "sos" / "policy")
    return [
        [Job(arm, "sos", replace(config, seed=seed, out=str(folder / arm))) for arm, config in learners.items()],
        [
            Job(arm, "sos_improve", replace(config, **same, seed=seed, base=base, out=str(folder / arm)))
            for arm, config in improvers.items()
        ],
    ]


# ------------------------------------------------------------------------------------------------------- numbers


def by_seed(lines: list[dict], arm: str, key: str) -> list[float]:
    """The last value of a metric in each seed."""
    last = {line["seed"]: line[key] for line in lines if line["arm"] == arm and key in line}
    return [last[seed] for seed in sorted(last)]


def final(lines: list[dict], arm: str, key: str) -> float:
    """The last value of a metric, the mean over seeds."""
    return statistics.fmean(by_seed(lines, arm, key))


def of_mixture(lines: list[dict], preset: str, key: str, split: str) -> float:
    """The strategies' mean of `symbolic...` metrics, weighted as they were drawn for the training data."""
    mixture = PRESETS[preset].sos.mixture()
    return sum(share * final(lines, "sos", f"{key}/{name}/{split}") for name, share in mixture.items())


def summarise(lines: list[dict], preset: str) -> tuple[dict, list[Criterion]]:
    """Numbers per arm, and the criteria of "what counts as reproduced"."""
    inputs, targets = SPLITS
    arms: dict[str, dict] = {}
    for arm in ARMS:
        numbers = {
            f"{name}/{split}": final(lines, arm, f"{name}/{split}")
            for split in SPLITS
            for name in (
                "acc",
                "acc_lenient",
                "nodes",
                "nodes_solved",
                "tokens",
                "cut",
                *(f"errors/{e}" for e in ERRORS),
            )
        }
        numbers |= {
            f"acc/{problems}": final(lines, arm, f"acc/{problems}")
            for problems in ("unsolved", "difficult")
            if by_seed(lines, arm, f"acc/{problems}")
        }
        for kind in ("states", "correctness"):
            numbers[kind] = {name: final(lines, arm, f"{kind}/{name}/{inputs}") for name in STRATEGIES}
        if by_seed(lines, arm, "dropped_share"):
            numbers |= {key: final(lines, arm, key) for key in ("problems", "rows", "dropped_share", "tokens_seen")}
        arms[arm] = numbers
    arms["symbolic"] = {
        f"{key}/{split}": {name: final(lines, "sos", f"{key}/{name}/{split}") for name in STRATEGIES}
        for key in ("symbolic", "symbolic_within", "symbolic_nodes")
        for split in SPLITS
    }
    for split in SPLITS:
        arms["symbolic"][f"mixture/{split}"] = of_mixture(lines, preset, "symbolic", split)
        arms["symbolic"][f"mixture_within/{split}"] = of_mixture(lines, preset, "symbolic_within", split)
        arms["symbolic"][f"chance/{split}"] = final(lines, "sos", f"chance/{split}")

    def lead(arm: str, other: str, key: str) -> float:
        return arms[arm][key] - arms[other][key]

    def gain(arm: str, problems: str) -> float | None:
        key = f"acc/{problems}"
        return lead(arm, "sos", key) if key in arms[arm] else None

    def both(arm: str, other: str, key: str) -> float:
        return statistics.fmean(lead(arm, other, f"{key}/{split}") for split in SPLITS)

    same_tokens = statistics.fmean(
        by_seed(lines, "sos", f"acc/{split}")[0] - by_seed(lines, "op_tokens", f"acc/{split}")[0] for split in SPLITS
    )
    rounds = list(curve(lines, "sos_star", f"acc/{inputs}").values())
    above = arms["sos"][f"acc/{inputs}"] - arms["symbolic"][f"mixture_within/{inputs}"]
    criteria = [
        Criterion("sos - op: solved, new inputs", lead("sos", "op", f"acc/{inputs}"), 0.1),
        Criterion("sos - op: solved, held-out targets", lead("sos", "op", f"acc/{targets}"), 0.1),
        Criterion("sos - op_tokens, of seed 0: solved, both splits", same_tokens, 0.1),
        Criterion("sos - its symbolic mixture in the same context: solved, new inputs, at least", above, -0.15),
        Criterion("sos - its symbolic mixture in the same context: solved, new inputs, at most", above, 0.05, False),
        Criterion("sos: solved, new inputs - held-out targets", 
                  arms["sos"][f"acc/{inputs}"] - arms["sos"][f"acc/{targets}"], 0.08, False),
        Criterion("sos: largest state alignment with a strategy", max(arms["sos"]["states"].values()), 0.9, False),
        Criterion("sos_star - sos: solved, both splits", both("sos_star", "sos", "acc"), 0.02),
        Criterion("sos_star: gain in the last round, new inputs", rounds[-1] - rounds[-2], 0.03, False),
        Criterion("sos_pg - sos: solved, both splits", both("sos_pg", "sos", "acc"), 0.02),
        Criterion("sos_star - sos_pg: arithmetic errors per trajectory",
                  both("sos_star", "sos_pg", "errors/arithmetic"), 0.01),
        Criterion("sos_star - sos_pg: nodes per trajectory", both("sos_star", "sos_pg", "nodes"), 0.01),
        Criterion("sos_star - sos: solved of the unsolved", gain("sos_star", "unsolved"), 0.02),
        Criterion("sos_pg - sos: solved of the unsolved", gain("sos_pg", "unsolved"), 0.02),
        Criterion("sos_star - sos: solved of the difficult", gain("sos_star", "difficult"), 0.01),
        Criterion("sos_pg - sos: solved of the difficult", gain("sos_pg", "difficult"), 0.01),
    ]  # fmt: skip
    return arms, criteria


# -------------------------------------------------------------------------------------------------------- figure


def draw(lines: list[dict], preset: str, path: Path) -> None:
    """Top: solved per split, against the strategies, of the hard problems. Bottom: nodes, errors, alignment."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    inputs = SPLITS[0]
    seeds = len({line["seed"] for line in lines})
    names = ["optimal\npaths", "same, SoS'\ntokens", "SoS", "correct\nSoS", "SoS\n+ STaR", "SoS\n+ PG", "SoS\n+ APA"]
    figure, axes = plt.subplots(2, 3, figsize=(16, 9), layout="constrained")

    def bars(axis, groups: dict[str, str], hatches=("", "//")) -> None:
        """A bar per arm and metric, {label: metric}; dots are single seeds."""
        width = 0.8 / len(groups)
        for g, (label, key) in enumerate(groups.items()):
            for a, arm in enumerate(ARMS):
                if values := by_seed(lines, arm, key):
                    x = a + (g - (len(groups) - 1) / 2) * width
                    axis.bar(x, statistics.fmean(values), width * 0.92, color=COLORS[arm], hatch=hatches[g],
                             edgecolor="white", alpha=0.9 if g == 0 else 0.6)  # fmt: skip
                    axis.plot([x] * len(values), values, "k.", markersize=3)
            axis.bar(0, 0, color="silver", hatch=hatches[g], edgecolor="white", label=label)
        axis.set_xticks(range(len(ARMS)), names, fontsize=8)

    splits = {"new inputs": SPLITS[0], "held-out targets": SPLITS[1]}
    bars(axes[0][0], {label: f"acc/{split}" for label, split in splits.items()})
    for key, style, label in (("symbolic", "--", "unlimited"), ("symbolic_within", "-.", "in the same context")):
        share = of_mixture(lines, preset, key, inputs)
        axes[0][0].axhline(share, color="black", linestyle=style, linewidth=1, label=f"symbolic mixture, {label}")
    chance = final(lines, "sos", f"chance/{inputs}")
    axes[0][0].axhline(chance, color="black", linestyle=":", linewidth=1, label="random legal path")
    axes[0][0].set(title="Solved, strictly judged", ylim=(0, 1))

    places = range(len(STRATEGIES))
    for key, color, label in (
        ("symbolic", "gainsboro", "strategy, unlimited"),
        ("symbolic_within", "darkgray", "strategy, in the same context"),
    ):
        shares = [final(lines, "sos", f"{key}/{name}/{inputs}") for name in STRATEGIES]
        axes[0][1].barh(places, shares, color=color, label=label)
    for arm in ARMS:
        axes[0][1].axvline(final(lines, arm, f"acc/{inputs}"), color=COLORS[arm], linewidth=2, label=ARMS[arm])
    axes[0][1].set_yticks(places, STRATEGIES, fontsize=8)
    axes[0][1].invert_yaxis()
    axes[0][1].set(title="Against the twelve strategies, new inputs", xlabel="solved", xlim=(0, 1.6),
                   xticks=[0, 0.2, 0.4, 0.6, 0.8, 1])  # fmt: skip

    hard = {"the drawn strategy failed": "acc/unsolved", "all twelve failed": "acc/difficult"}
    bars(axes[0][2], hard)
    axes[0][2].set(title="Solved of what symbolic search failed on")

    bars(axes[1][0], {label: f"nodes/{split}" for label, split in splits.items()})
    axes[1][0].set(title="States explored per trajectory")

    for a, arm in enumerate(ARMS):
        bottom = 0.0
        for e, kind in enumerate(ERRORS):
            height = final(lines, arm, f"errors/{kind}/{inputs}")
            axes[1][1].bar(
                a, height, 0.7, bottom, color=plt.get_cmap("viridis")(e / 3.2), label=kind if a == 0 else None
            )
            bottom += height
    axes[1][1].set_xticks(range(len(ARMS)), names, fontsize=8)
    axes[1][1].set(title="Errors per trajectory, new inputs")

    for arm in ("sos", "sos_star", "sos_pg"):
        for kind, style in (("states", "-o"), ("correctness", "--x")):
            values = [final(lines, arm, f"{kind}/{name}/{inputs}") for name in STRATEGIES]
            axes[1][2].plot(places, values, style, color=COLORS[arm], markersize=4, label=f"{ARMS[arm]}: {kind}")
    axes[1][2].set_xticks(places, STRATEGIES, rotation=60, fontsize=8)
    axes[1][2].set(title="Alignment with the strategies, new inputs", ylim=(-0.2, 1))

    for axis in axes.flat:
        axis.legend(fontsize=7)
    figure.suptitle(f"Stream of Search on Countdown, preset {preset}: mean of {seeds} seed(s), dots single seeds")
    figure.savefig(path, dpi=100)
    plt.close(figure)
