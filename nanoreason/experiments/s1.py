"""s1 (Muennighoff et al., 2025) in miniature, on sums with optional re-checking: few chosen samples, forced budgets.

A base adds in one pass or with any number of re-checks, and a pass slips now and then; a re-check is done with more
care. From a pool of traces that mostly re-check until two passes agree, it is fine-tuned on
    s1        a few that are in the format, hard for the base and diverse        (the paper's 1K of 59K)
    random, longest, diverse, all      others as many, or all of the pool
    tokens, steps, class               the same few as s1, whose prompts say how long to think
Then `s1` thinks within budgets that are forced, or is kept from closing by "wait" or other words; against prompts that
ask for a length, rejection sampling by length, and the majority of several samples at equal tokens.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from pathlib import Path

from nanoreason.evaluate import control, performance, scaling
from nanoreason.experiments.reproduce import Criterion, Job
from nanoreason.recipes import budget, curate, sft

CHOICES = {
    "s1": "s1: quality, difficulty, diversity",
    "random": "random",
    "longest": "longest",
    "diverse": "diverse only",
    "all": "all of the pool",
}
PROMPTS = {"tokens": "token-conditional", "steps": "step-conditional", "class": "class-conditional"}
# DIFFERS from the paper, which decodes greedily: thinking is sampled at temperature 1. A slip is one chance in five, so
# a greedy pass has none, and there would be nothing to find by checking. Answers are greedy, as there.
PER = 100  # tokens: the unit of Scaling is points of accuracy per 100 thinking tokens


@dataclass(frozen=True)
class Preset:
    base: sft.SftConfig
    curate: curate.CurateConfig
    budget: budget.BudgetConfig


CPU_BASE = sft.SftConfig(
    form="thinking", width=64, layers=3, heads=4, context=384, digits=(1, 2), modes=(0.0, 0.55, 0.45), slip=0.2,
    care=0.25, doubt=0.6, passes=12, asked_share=0.3, steps=5000, lr=3e-3, rows_per_step=32, eval_digits=(1, 2),
)  # fmt: skip
PRESETS = {
    "cpu": Preset(CPU_BASE, curate.PRESETS["cpu"], budget.PRESETS["cpu"]),
    "tiny": Preset(
        replace(CPU_BASE, width=32, layers=2, heads=2, steps=20, warmup=2, rows_per_step=8, eval_problems=4),
        curate.PRESETS["tiny"], budget.PRESETS["tiny"],
    ),
    "gpu": Preset(
        replace(CPU_BASE, width=256, layers=6, heads=8, context=768, digits=(2, 3), eval_digits=(2, 3), steps=6000,
                lr=1e-3, rows_per_step=128, micro_tokens=32768, eval_problems=500),
        curate.PRESETS["gpu"], budget.PRESETS["gpu"],
    ),
}  # fmt: skip


def stages(preset: str, seed: int, folder: Path) -> list[list[Job]]:
    """The base; what is fine-tuned from it; what each of them does with its budget."""
    chosen = PRESETS[preset]
    base = Job("base", "sft", replace(chosen.base, seed=seed, out=str(folder / "base")))
    common = replace(chosen.curate, seed=seed, base=str(folder / "base" / "policy"))
    tuned = {name: replace(common, how=name) for name in CHOICES}
    tuned |= {name: replace(common, condition=name) for name in PROMPTS}
    methods = {name: ("wait",) for name in CHOICES} | {name: (name,) for name in PROMPTS}
    methods |= {"s1": ("forcing", "until", "wait", "words", "samples"), "base": ("wait", "samples")}
    measured = []
    for name, wanted in methods.items():
        model = str(folder / (f"sft_{name}" if name in tuned else name) / "policy")
        waits = chosen.budget.waits if name in ("s1", "base") else (0,)
        config = replace(chosen.budget, seed=seed, base=model, methods=wanted, waits=waits, out=str(folder / name))
        if name == "base":
            config = replace(config, out=str(folder / "untuned"))
        measured.append(Job("untuned" if name == "base" else name, "budget", config))
    tuning = [
        Job(f"sft_{name}", "curate", replace(config, out=str(folder / f"sft_{name}"))) for name, config in tuned.items()
    ]
    return [[base], tuning, measured]


# ------------------------------------------------------------------------------------------------------- numbers


def runs_of(lines: list[dict], arm: str, method: str, **wanted) -> list[dict]:
    """The runs of a method in the order they were made, each the mean over seeds of all that is a number."""
    found: dict[object, list[dict]] = {}
    for line in lines:
        if line["arm"] == arm and line.get("method") == method and all(line.get(k) == v for k, v in wanted.items()):
            found.setdefault(line["asked"], []).append(line)
    return [
        {key: statistics.fmean(line[key] for line in same) if isinstance(value, float) else value
         for key, value in same[0].items()}
        for same in found.values()
    ]  # fmt: skip


def s1_metrics(runs: list[dict]) -> dict[str, float]:
    """Control, Scaling and Performance of a method over its runs (s1, section 3.2)."""
    tokens, accuracy = [run["thinking"] for run in runs], [run["accuracy"] for run in runs]
    return {
        "control": control(tokens, [run["most"] for run in runs]),
        f"scaling_points_per_{PER}_tokens": scaling(tokens, accuracy, PER),
        "performance": performance(accuracy),
        "runs": len(runs),
    }


METHODS = {  # name: (arm, method, which of its lines)
    "budget forcing": ("s1", "forcing", {}),
    "forced both ways": ("s1", "until", {}),
    "token-conditional": ("tokens", "tokens", {"enforced": False}),
    "token-conditional + forcing": ("tokens", "tokens", {"enforced": True}),
    "step-conditional": ("steps", "steps", {"enforced": False}),
    "step-conditional + forcing": ("steps", "steps", {"enforced": True}),
    "class-conditional": ("class", "class", {}),
    "rejection sampling": ("s1", "samples", {"kind": "rejection"}),
    "majority": ("s1", "samples", {"kind": "majority"}),
    "majority of the base": ("untuned", "samples", {"kind": "majority"}),
}


def at_tokens(runs: list[dict], tokens: float) -> float | None:
    """The best accuracy of the runs that use no more than so many tokens; None if none does."""
    return max((run["accuracy"] for run in runs if run["thinking"] <= tokens), default=None)


def summarise(lines: list[dict], preset: str) -> tuple[dict, list[Criterion]]:
    """Numbers per method and per choice of data, and the criteria of "what counts as reproduced"."""
    arms: dict[str, dict] = {}
    for name, (arm, method, wanted) in METHODS.items():
        runs = runs_of(lines, arm, method, **wanted)
        arms[name] = s1_metrics(runs) | {
            "asked": [run["asked"] for run in runs],
            "thinking": [round(run["thinking"], 2) for run in runs],
            "accuracy": [round(run["accuracy"], 4) for run in runs],
        }
    natural = {name: runs_of(lines, name, "wait")[0] for name in (*CHOICES, "untuned")}
    for name, run in natural.items():
        made = [line for line in lines if line["arm"] == f"sft_{name}"]
        about = ("chosen", "chosen_tokens", "chosen_right", "chosen_digits", "chosen_domains", "after_difficulty")
        arms[f"data: {name}"] = {"accuracy": run["accuracy"], "thinking": run["thinking"]} | {
            key: statistics.fmean(line[key] for line in made) for key in about if made and key in made[0]
        }
    waits = runs_of(lines, "s1", "wait")
    words = {run["asked"]: run for run in runs_of(lines, "s1", "words")}
    arms["wait"] = {"accuracy": [run["accuracy"] for run in waits], "thinking": [run["thinking"] for run in waits]}
    arms["words, twice"] = {word: run["accuracy"] for word, run in words.items()}

    forcing = runs_of(lines, "s1", "forcing")
    usual = natural["s1"]["thinking"]
    below = [run for run in forcing if run["most"] <= usual] or forcing
    gains = [run["accuracy"] - waits[0]["accuracy"] for run in waits]
    early, late = statistics.fmean(gains[1:3]), statistics.fmean(gains[-2:])
    rejection = arms["rejection sampling"]
    slope = f"scaling_points_per_{PER}_tokens"
    per_seed = zip(*([line["accuracy"] for line in lines if line["arm"] == arm and line.get("method") == "wait"
                      and line["asked"] == 0] for arm in ("s1", "random")), strict=True)  # fmt: skip
    arms["data: s1"]["lead over random by seed"] = [round(a - b, 4) for a, b in per_seed]
    voted = at_tokens(runs_of(lines, "untuned", "samples", kind="majority"), usual)
    criteria = [
        Criterion("budget forcing: Control", arms["budget forcing"]["control"], 1.0),
        Criterion("token-conditional prompt: Control (it is not obeyed)",
                  arms["token-conditional"]["control"], 0.99, False),
        Criterion(f"budget forcing: Scaling below the natural length, points per {PER} tokens",
                  s1_metrics(below)[slope], 1.0),
        Criterion("wait, once and twice - stopping by itself: accuracy", early, 0.005),
        Criterion("wait, once and twice: a gain, of a few points", early if early > 0 else None, 0.1, False),
        Criterion("wait, the last two counts - once and twice: a gain that flattens",
                  late - early if early > 0 else None, 0.01, False),
        Criterion("wait - no word, twice each: accuracy",
                  words["wait"]["accuracy"] - words["(none)"]["accuracy"], 0.005),
        Criterion(f"rejection sampling by length: Scaling, points per {PER} tokens", rejection[slope], -1.0, False),
        Criterion("chosen as s1 - random: accuracy", natural["s1"]["accuracy"] - natural["random"]["accuracy"], 0.005),
        Criterion("chosen as s1 - all of the pool: accuracy",
                  natural["s1"]["accuracy"] - natural["all"]["accuracy"], -0.03),
        Criterion("s1 - the base's majority with no more tokens: accuracy",
                  None if voted is None else natural["s1"]["accuracy"] - voted, 0.01),
    ]  # fmt: skip
    return arms, criteria


# -------------------------------------------------------------------------------------------------------- figure

COLORS = {
    "budget forcing": "tab:blue", "forced both ways": "tab:cyan", "token-conditional": "tab:orange",
    "token-conditional + forcing": "tab:orange", "step-conditional": "tab:green",
    "step-conditional + forcing": "tab:green", "class-conditional": "tab:purple", "rejection sampling": "tab:red",
    "majority": "tab:gray", "majority of the base": "tab:brown",
}  # fmt: skip


def draw(lines: list[dict], preset: str, path: Path) -> None:
    """Top: budgets, other ways to set a length, waits. Bottom: what was asked and what came, words, choice of data."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    seeds = sorted({line["seed"] for line in lines})
    figure, axes = plt.subplots(2, 3, figsize=(16, 9), layout="constrained")
    curves = {name: runs_of(lines, arm, method, **wanted) for name, (arm, method, wanted) in METHODS.items()}
    waits, base_waits = runs_of(lines, "s1", "wait"), runs_of(lines, "untuned", "wait")

    def plot(axis, runs: list[dict], x: str = "thinking", **how) -> None:
        runs = [run for run in runs if isinstance(run[x], (int, float))]
        axis.plot([run[x] for run in runs], [run["accuracy"] for run in runs], marker="o", markersize=4, **how)

    axis = axes[0][0]
    for name in ("budget forcing", "forced both ways", "majority", "majority of the base"):
        for seed in seeds:
            arm, method, wanted = METHODS[name]
            own = [line for line in lines if line["seed"] == seed]
            axis.plot(*zip(*[(r["thinking"], r["accuracy"]) for r in runs_of(own, arm, method, **wanted)], strict=True),
                      color=COLORS[name], linewidth=0.6, alpha=0.4)  # fmt: skip
        label = {"budget forcing": "cut at a budget", "forced both ways": "kept going, then cut"}.get(name, name)
        plot(axis, curves[name], color=COLORS[name], label=label)
    plot(
        axis,
        waits,
        color="tab:blue",
        linestyle="--",
        markerfacecolor="white",
        label=f'"wait" {waits[0]["asked"]} to {waits[-1]["asked"]} times, then it may stop',
    )
    axis.set(title="Budget forcing and majority voting", xlabel="mean thinking tokens (log)", xscale="log")

    axis = axes[0][1]
    for name in METHODS:
        if "majority" not in name and name != "forced both ways":
            plot(axis, curves[name], color=COLORS[name], label=name, linestyle="--" if "+" in name else "-")
    axis.set(title="Other ways to set a length", xlabel="mean thinking tokens")

    axis = axes[0][2]
    for runs, color, name in ((waits, "tab:blue", "s1"), (base_waits, "tab:brown", "the base")):
        plot(axis, runs, "asked", color=color, label=f"{name}: accuracy")
    other = axis.twinx()
    for runs, color, name in ((waits, "tab:blue", "s1"), (base_waits, "tab:brown", "the base")):
        other.plot([r["asked"] for r in runs], [r["thinking"] for r in runs], ":", color=color, label=f"{name}: tokens")
    other.set(ylabel="mean thinking tokens (dotted)")
    axis.set(title="Extrapolation: how often it is kept from closing", xlabel='number of "wait"')

    axis = axes[1][0]
    for name in ("budget forcing", "token-conditional", "step-conditional", "class-conditional", "rejection sampling"):
        runs = [run for run in curves[name] if run["most"] < budget.NO_LIMIT]
        axis.plot(
            [run["most"] for run in runs],
            [run["thinking"] for run in runs],
            marker="o",
            markersize=4,
            color=COLORS[name],
            label=f"{name}: Control {100 * s1_metrics(curves[name])['control']:.0f}%",
        )
    limits = [run["most"] for run in curves["budget forcing"]]
    axis.plot(limits, limits, color="black", linewidth=0.8, label="the limit")
    axis.set(
        title="Control: thinking tokens against what was allowed",
        xlabel="tokens allowed",
        ylabel="mean thinking tokens",
    )

    axis = axes[1][1]
    words = runs_of(lines, "s1", "words")
    bars = [("stops by itself", waits[0]["accuracy"])] + [(f"{run['asked']} (2)", run["accuracy"]) for run in words]
    axis.bar([name for name, _ in bars], [value for _, value in bars], color=["tab:gray"] + ["tab:blue"] * len(words))
    axis.tick_params(axis="x", rotation=20)
    axis.set(title="What is appended, twice each")

    axis = axes[1][2]
    arms, _ = summarise(lines, preset)
    names = ["untuned", *CHOICES]
    values = [arms[f"data: {name}"] for name in names]
    labels = [
        f"{name}\n{value['chosen']:.0f}" if "chosen" in value else name.replace("untuned", "the base")
        for name, value in zip(names, values, strict=True)
    ]
    axis.bar(labels, [v["accuracy"] for v in values], color=["tab:brown"] + ["tab:blue"] * len(CHOICES))
    for i, name in enumerate(names):
        own = [
            line["accuracy"]
            for line in lines
            if line["arm"] == name and line.get("method") == "wait" and line["asked"] == 0
        ]
        axis.plot([i] * len(own), own, "k.", markersize=4)
        axis.text(i, 0.03, f"{values[i]['thinking']:.0f} tokens", ha="center", fontsize=8, color="white")
    axis.set(title="Choice and number of demonstrations (dots: seeds)")
    for i, axis in enumerate(axes.flat):
        if i != 3:
            axis.set(ylabel="accuracy on held-out sums")
        if i < 4:
            axis.legend(fontsize=7)
    figure.suptitle(
        f"s1 on addition with optional re-checking (the cheap task), preset {preset}: mean of {len(seeds)} seed(s), "
        "thin lines single seeds\nthinking is sampled at temperature 1, answers are greedy"
    )
    figure.savefig(path, dpi=100)
    plt.close(figure)
