"""Demystifying Long CoT (Yeo et al., 2025) in miniature, on addition with optional re-checking.

One base per seed, which mostly works a sum out once or just answers it, and now and then re-checks. From this base

    long-N, short-N     fine-tuning on N demonstrations that re-check until two passes agree, or that make one pass.
                        Passes of both slip now and then, so that checking pays and a single pass cannot be sure
    rl-base, rl-short   reinforcement learning with the classic reward from the base and from the largest short-N;
                        from the largest long-N, and it alone, start all others
    classic-W           the classic reward in windows of W = L, 2L and 4L tokens; the last one is "RL on long CoT"
    cosine              the cosine reward in the window 2L, as all that follow
    repetition          and each token of a repeated n-gram is punished
    shape-a, -b, -c     cosine rewards of the paper's three shapes: the smaller the right answer's share, the longer
    hack, hack-repetition   cosine, and cosine with the penalty, on sums whose stated answer no response can reach

Differences from the paper that matter: GRPO with the advantages of whole batches instead of PPO with a critic, a model
of some hundred thousand weights, and errors that are slips of sampling, so that reinforcement can also remove them.
"""

from __future__ import annotations

import functools
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

from nanoreason.experiments.reproduce import Criterion, Job, curve
from nanoreason.recipes import grpo, sft
from nanoreason.tasks.addition import MODES, ThinkingAddition, thinking_tokenizer

FORMS = {"long": (0.0, 0.0, 1.0), "short": (0.0, 1.0, 0.0)}  # shares of direct, one pass, re-checking
NAMES = {"long": "long CoT: re-checks until two passes agree", "short": "short CoT: one pass"}
SHAPES = {  # values of a right answer of length 0 and of full length, and of a wrong one (the paper's figure 5)
    "shape-a": dict(cosine_right=(0.0, 10.0), cosine_wrong=(0.0, 0.0)),
    "shape-b": dict(cosine_right=(6.0, 5.0), cosine_wrong=(-10.0, 0.0)),
    "shape-c": dict(cosine_right=(10.0, 9.0), cosine_wrong=(-10.0, 0.0)),
}


@dataclass(frozen=True)
class Preset:
    base: sft.SftConfig  # the base, and what all fine-tuning has in common with it
    tune: dict  # what fine-tuning on demonstrations has on its own
    sizes: tuple[int, ...]  # N, demonstrations
    epochs: int  # passes over them
    rl: grpo.GrpoConfig  # what all reinforcement has in common
    window: int  # L, tokens


PRESETS = {
    "cpu": Preset(
        sft.SftConfig(
            form="thinking", digits=(2,), modes=(0.3, 0.65, 0.05), slip=0.2, width=64, heads=4, layers=3, context=320,
            steps=1400, lr=3e-3, warmup=40, rows_per_step=32, eval_digits=(2,), eval_problems=80,
        ),
        dict(modes=FORMS["long"], slip=0.15, lr=2e-3, warmup=2, rows_per_step=32),
        (128, 512, 2048, 8192), 2,
        grpo.GrpoConfig(
            task="thinking", template="skeleton", digits=(2,), algorithm="reinforce", baseline="group",
            divide_by="batch", average="token", steps=40, prompts=8, group_size=16, lr=3e-4, warmup=5, preflight=0,
            save_every=40, eval_every=0, eval_digits=(2,), eval_problems=64, eval_samples=4, repetition_n=8,
        ),
        64,
    ),
    "tiny": Preset(
        sft.SftConfig(
            form="thinking", digits=(1,), modes=(0.3, 0.6, 0.1), slip=0.2, width=16, heads=2, layers=1, context=96,
            steps=8, lr=1e-2, warmup=2, rows_per_step=8, eval_digits=(1,), eval_problems=4,
        ),
        dict(modes=FORMS["long"], lr=1e-3, warmup=0, rows_per_step=8),
        (8, 16), 1,
        grpo.GrpoConfig(
            task="thinking", template="skeleton", digits=(1,), algorithm="reinforce", baseline="group",
            divide_by="batch", average="token", steps=2, prompts=2, group_size=4, lr=1e-3, warmup=1, preflight=0,
            save_every=2, eval_every=0, eval_digits=(1,), eval_problems=3, eval_samples=2, repetition_n=6,
        ),
        12,
    ),
}  # fmt: skip
PRESETS["gpu"] = replace(
    PRESETS["cpu"],
    base=replace(PRESETS["cpu"].base, width=128, digits=(2, 3), context=1024, steps=3000, lr=1e-3, micro_tokens=32768,
                 eval_digits=(2, 3)),
    tune=dict(modes=FORMS["long"], slip=0.15, lr=1e-3, warmup=2, rows_per_step=32),
    sizes=(512, 2048, 8192, 32768),
    rl=replace(PRESETS["cpu"].rl, digits=(2, 3), steps=200, prompts=32, save_every=50, micro_tokens=65536,
               eval_digits=(2, 3), eval_problems=250, repetition_n=8),
    window=96,
)  # fmt: skip


def windows(preset: str) -> dict[str, int]:
    """Arms of the classic reward and their windows in tokens: L, 2L, 4L."""
    L = PRESETS[preset].window
    return {f"classic-{L * k}": L * k for k in (1, 2, 4)}


def stages(preset: str, seed: int, folder: Path) -> list[list[Job]]:
    """The base; fine-tuning on demonstrations; reinforcement, and samples from all that was fine-tuned."""
    chosen = PRESETS[preset]
    base = replace(chosen.base, seed=seed, out=str(folder / "base"))
    tuned = [
        Job(f"{form}-{size}", "sft", tuning(preset, form, size, seed, folder / f"{form}-{size}", base.out))
        for form in FORMS
        for size in chosen.sizes
    ]
    largest = max(chosen.sizes)
    wide = {"max_new_tokens": 4 * chosen.window, "length_reward": "classic"}
    narrow = {"max_new_tokens": 2 * chosen.window, "length_reward": "cosine"}
    settings = {
        "rl-base": ("base", wide),
        "rl-short": (f"short-{largest}", wide),
        **{arm: ("", {**wide, "max_new_tokens": window}) for arm, window in windows(preset).items()},
        "cosine": ("", narrow),
        "repetition": ("", narrow | {"repetition": "dense"}),
        **{arm: ("", narrow | values) for arm, values in SHAPES.items()},
        "hack": ("", narrow | {"unsolvable": 1.0}),
        "hack-repetition": ("", narrow | {"unsolvable": 1.0, "repetition": "dense"}),
    }
    common = replace(chosen.rl, seed=seed)

    def reinforced(arm: str, start: str, changes: dict) -> Job:
        start = folder / (start or f"long-{largest}") / "policy"
        return Job(arm, "grpo", replace(common, base=str(start), out=str(folder / arm), **changes))

    samples = [reinforced(f"{job.arm}-samples", job.arm, wide | {"steps": 0}) for job in tuned]
    return [
        [Job("base", "sft", base)],
        tuned,
        samples + [reinforced(arm, start, changes) for arm, (start, changes) in settings.items()],
    ]


def tuning(preset: str, form: str, size: int, seed: int, out: Path, base: str) -> sft.SftConfig:
    """Fine-tuning of the base on `size` demonstrations of one form, `epochs` passes over them."""
    chosen = PRESETS[preset]
    config = replace(chosen.base, **chosen.tune)
    steps = max(1, round(chosen.epochs * size * len(config.digits) / config.rows_per_step))
    return replace(config, seed=seed, modes=FORMS[form], base=f"{base}/policy", out=str(out), pool=size, steps=steps)


# ------------------------------------------------------------------------------------------------------- numbers


def first(lines: list[dict], arm: str, key: str) -> float | None:
    return next(iter(curve(lines, arm, key).values()), None)


def last(lines: list[dict], arm: str, key: str, seed: int | None = None) -> float | None:
    return next(reversed(curve(lines, arm, key, seed).values()), None)


def late(lines: list[dict], arm: str, key: str) -> float:
    """The mean over the last quarter of the steps: single rollouts are noisy."""
    values = list(curve(lines, arm, key).values())
    return statistics.fmean(values[-max(1, len(values) // 4) :])


def early(lines: list[dict], arm: str, key: str) -> float:
    """The mean over the first tenth of the steps."""
    values = list(curve(lines, arm, key).values())
    return statistics.fmean(values[: max(1, len(values) // 10)])


def best(lines: list[dict], arm: str, key: str) -> float:
    """The largest mean of a quarter of the steps in a row."""
    values = list(curve(lines, arm, key).values())
    width = max(1, len(values) // 4)
    return max(statistics.fmean(values[i : i + width]) for i in range(len(values) - width + 1))


LENGTH, CUT, REPEATED = "completions/mean_length", "completions/clipped_ratio", "completions/repetition"


def summarise(lines: list[dict], preset: str) -> tuple[dict, list[Criterion]]:
    """Numbers per arm, and the criteria of "what counts as reproduced"."""
    chosen = PRESETS[preset]
    arms: dict[str, dict] = {}
    for arm in dict.fromkeys(line["arm"] for line in lines):
        if curve(lines, arm, "eval/pass@1"):
            keys = {"accuracy": "eval/pass@1", "length": "eval/mean_length", "exceed_rate": "eval/clipped_ratio",
                    "rechecks": "eval/thinking/rechecks", "repetition": "eval/repetition"}  # fmt: skip
            arms[arm] = {name: last(lines, arm, key) for name, key in keys.items()}
            if curve(lines, arm, LENGTH):
                arms[arm] |= {f"{name}_before": first(lines, arm, key) for name, key in keys.items()}
                arms[arm]["length_by_step"] = [round(value, 1) for value in curve(lines, arm, LENGTH).values()]
    for form in FORMS:
        for size in chosen.sizes:
            arms[f"{form}-{size}-samples"]["demonstration_tokens"] = demonstration_tokens(preset, form, size)
    small, half, large = chosen.sizes[0], chosen.sizes[-2], chosen.sizes[-1]

    def accuracy(form: str, size: int) -> float:
        return arms[f"{form}-{size}-samples"]["accuracy"]

    def gain(arm: str, key: str = "accuracy") -> float:
        return arms[arm][key] - arms[arm][f"{key}_before"]

    def ratio(arm: str, other: str, key: str) -> float | None:
        """What the late steps of the other arm have of this one's; None where this one has nothing to speak of."""
        return late(lines, other, key) / late(lines, arm, key) if late(lines, arm, key) > 0.1 else None

    narrow, middle, wide = windows(preset)
    criteria = [
        Criterion("SFT: long - short, accuracy with most data", accuracy("long", large) - accuracy("short", large),
                  0.05),
        Criterion("SFT: short saturates, gain from the last growth of data",
                  accuracy("short", large) - accuracy("short", half), 0.03, False),
        Criterion("SFT: long - short, gain from least to most data",
                  accuracy("long", large) - accuracy("long", small) - accuracy("short", large)
                  + accuracy("short", small), 0.05),
        Criterion("RL on long CoT: gain in accuracy", gain(wide), 0.01),
        Criterion("RL on long - RL on short: gain in accuracy", gain(wide) - gain("rl-short"), 0.01),
        Criterion("RL on long - RL on short: final accuracy", arms[wide]["accuracy"] - arms["rl-short"]["accuracy"],
                  0.01),
        Criterion("RL from base: gain in accuracy", gain("rl-base"), 0.01),
        Criterion("RL from base: gain in re-checks per response", gain("rl-base", "rechecks"), 0.05, False),
        Criterion("RL on long - RL from base: final accuracy", arms[wide]["accuracy"] - arms["rl-base"]["accuracy"],
                  0.01),
        Criterion("classic: late / early length in the widest window",
                  late(lines, wide, LENGTH) / early(lines, wide, LENGTH), 1.1),
        Criterion("classic: late share of the narrowest window that a response takes",
                  late(lines, narrow, LENGTH) / windows(preset)[narrow], 0.8),
        Criterion("classic: late exceed rate in the narrowest window, above 0", late(lines, narrow, CUT), 0.01),
        Criterion("classic: late exceed rate in the narrowest window, below 1", late(lines, narrow, CUT), 0.95, False),
        Criterion("classic: accuracy lost since its best, worst of the windows",
                  max(best(lines, arm, "accuracy") - late(lines, arm, "accuracy") for arm in windows(preset)), 0.02),
        Criterion("cosine: late exceed rate", late(lines, "cosine", CUT), 0.05, False),
        Criterion("classic - cosine: late exceed rate in the same window",
                  late(lines, middle, CUT) - late(lines, "cosine", CUT), 0.01),
        Criterion("shapes: late length of A / of C, right answers gain by length",
                  ratio("shape-c", "shape-a", LENGTH), 1.05),
        Criterion("shapes: late length of B / of C, right answers are worth less against wrong ones",
                  ratio("shape-c", "shape-b", LENGTH), 1.02),
        Criterion("hack: late / early length", late(lines, "hack", LENGTH) / early(lines, "hack", LENGTH), 1.2),
        Criterion("hack: growth of the share of repeated n-grams",
                  late(lines, "hack", REPEATED) - early(lines, "hack", REPEATED), 0.1),
        Criterion("hack: late share of repeated n-grams, penalty / none", ratio("hack", "hack-repetition", REPEATED),
                  0.5, False),
        Criterion("repetition / cosine: late length", ratio("cosine", "repetition", LENGTH), 0.98, False),
        Criterion("repetition - cosine: final accuracy", arms["repetition"]["accuracy"] - arms["cosine"]["accuracy"],
                  0.01),
    ]  # fmt: skip
    return arms, criteria


@functools.cache
def demonstration_tokens(preset: str, form: str, size: int) -> int:
    """Response tokens of all demonstrations of one form, the x axis of the curve."""
    config = tuning(preset, form, size, 0, Path(), "")
    words = thinking_tokenizer()
    forms = dict(zip(MODES, config.modes, strict=True))
    tasks = {n: ThinkingAddition((n,), (), forms, config.slip, config.doubt) for n in config.digits}
    solutions = (task.problem(f"train-{n}", i).solution for n, task in tasks.items() for i in range(size))
    return sum(len(words.encode(solution)) + 1 for solution in solutions)


# -------------------------------------------------------------------------------------------------------- figure


def smooth(values: list[float], width: int = 5) -> list[float]:
    """The mean of each value and its neighbours."""
    return [statistics.fmean(values[max(0, i - width // 2) : i + width // 2 + 1]) for i in range(len(values))]


def draw(lines: list[dict], preset: str, path: Path) -> None:
    """Top: the two kinds of demonstrations, reinforcement on each, windows. Bottom: exceed rates, shapes, hacking."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    chosen, seeds = PRESETS[preset], sorted({line["seed"] for line in lines})
    figure, axes = plt.subplots(2, 3, figsize=(16, 9), layout="constrained")
    colors = dict(zip(("long", "short", "base"), ("tab:blue", "tab:orange", "tab:gray"), strict=True))
    narrow, middle, wide = windows(preset)

    def curves(axis, arms: dict[str, tuple[str, str]], key: str) -> None:
        """One line per arm {arm: (label, color)}: the mean over seeds, with single seeds thin behind it."""
        for arm, (label, color) in arms.items():
            for seed in seeds:
                found = curve(lines, arm, key, seed)
                axis.plot(found.keys(), smooth(list(found.values())), color=color, linewidth=0.6, alpha=0.4)
            found = curve(lines, arm, key)
            axis.plot(found.keys(), smooth(list(found.values())), color=color, label=label)
        axis.set_xlabel("step of reinforcement")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))

    axis = axes[0][0]
    for form in FORMS:
        tokens = [demonstration_tokens(preset, form, size) for size in chosen.sizes]

        def accuracies(seed: int | None, form: str = form) -> list[float]:
            return [last(lines, f"{form}-{size}-samples", "eval/pass@1", seed) for size in chosen.sizes]

        for seed in seeds:
            axis.plot(tokens, accuracies(seed), color=colors[form], linewidth=0.6, alpha=0.4)
        axis.plot(tokens, accuracies(None), color=colors[form], marker="o", markersize=4, label=NAMES[form])
        arm = wide if form == "long" else "rl-short"
        after = last(lines, arm, "eval/pass@1")
        axis.annotate("", (tokens[-1] * 1.15, after), (tokens[-1] * 1.15, accuracies(None)[-1]),
                      arrowprops={"arrowstyle": "->", "color": colors[form], "linewidth": 2})  # fmt: skip
    axis.axhline(first(lines, "rl-base", "eval/pass@1"), color="gray", linestyle=":", label="the base")
    axis.set(xscale="log", ylim=(None, 1), xlabel="tokens of demonstrations",
             ylabel="accuracy on held-out sums, sampled",
             title="Fine-tuning on more data (arrows: reinforcement on top)")  # fmt: skip
    started = {wide: ("from long CoT", colors["long"]), "rl-short": ("from short CoT", colors["short"]),
               "rl-base": ("from the base", colors["base"])}  # fmt: skip
    curves(axes[0][1], started, "accuracy")
    axes[0][1].set(ylabel="accuracy of rollouts", title="Reinforcement from three starts, classic reward")
    by_window = {arm: (f"classic, window {window}", plt.get_cmap("viridis")(0.15 + 0.35 * i))
                 for i, (arm, window) in enumerate(windows(preset).items())}  # fmt: skip
    with_cosine = by_window | {"cosine": (f"cosine, window {2 * chosen.window}", "tab:red"),
                               "repetition": ("cosine and repetition penalty", "tab:pink")}  # fmt: skip
    curves(axes[0][2], with_cosine, LENGTH)
    axes[0][2].set(
        ylabel="tokens per response, mean",
        title=f"Length in windows of {', '.join(map(str, windows(preset).values()))} tokens",
    )
    curves(axes[1][0], with_cosine, CUT)
    axes[1][0].set(ylabel="share of responses that reach the window", title="Exceed rate", ylim=(-0.01, None))
    labels = {
        "shape-a": "A: right 0 to 10, wrong 0",
        "shape-b": "B: right 6 to 5, wrong -10 to 0",
        "shape-c": "C: right 10 to 9, wrong -10 to 0",
    }
    shapes = {arm: (label, color) for (arm, label), color in
              zip(labels.items(), ("tab:purple", "tab:green", "tab:olive"), strict=True)}  # fmt: skip
    curves(axes[1][1], shapes | {"cosine": ("default: right 2 to 1, wrong -10 to 0", "tab:red")}, LENGTH)
    axes[1][1].set(
        ylabel="tokens per response, mean", title=f"Shapes of the cosine reward, window of {2 * chosen.window}"
    )
    hacks = {"hack": ("cosine", "tab:red"), "hack-repetition": ("cosine and repetition penalty", "tab:pink")}
    curves(axes[1][2], hacks, REPEATED)
    axes[1][2].set(ylabel=f"share of {chosen.rl.repetition_n}-grams that repeat an earlier one",
                   title="Hacking: stated answers that nothing reaches")  # fmt: skip
    for axis in axes.flat:
        axis.title.set_fontsize(11)
        axis.legend(fontsize=8)
        axis.grid(alpha=0.2)
    digits = " and ".join(map(str, chosen.base.digits))
    slip = tuning(preset, "long", chosen.sizes[-1], 0, Path(), "").slip
    figure.suptitle(
        f"Long chains of thought on {digits}-digit addition with optional re-checking, preset {preset}: "
        f"mean of {len(seeds)} seed(s), thin lines single seeds.\nSampled at temperature 1. In demonstrations "
        f"{slip:.0%} of the columns of a pass are wrong; curves over steps are means of 5 neighbours",
        fontsize=11,
    )
    figure.savefig(path, dpi=100)
    plt.close(figure)
