"""Demystifying Long CoT (Yeo et al., 2025) in miniature, on addition with optional re-checking.

One base per seed, which mostly works a sum out once or just answers it, and now and then re-checks. From this base

    long-N, short-N     fine-tuning on N demonstrations that re-check until two passes agree, or that make one pass.
                        Passes of both are wrong now and then, so that checking pays and a single pass cannot be sure
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

import statistics
from dataclasses import dataclass, replace

from nanoreason.experiments.figure import Line, Panel, shades
from nanoreason.experiments.results import LESS, Arm, Claim, PerSeed, Results, gain, growth, lead, ratio
from nanoreason.learn import ALGORITHMS
from nanoreason.recipes import grpo, sft
from nanoreason.rewards import Classic, Cosine, DenseRepetition, Reward
from nanoreason.run import Schedule
from nanoreason.tasks import ThinkingAddition
from nanoreason.tasks.wrappers import Templated, Unanswerable

FORMS = {"long": (0.0, 0.0, 1.0), "short": (0.0, 1.0, 0.0)}  # shares of direct, one pass, re-checking
NAMES = {"long": "long CoT: re-checks until two passes agree", "short": "short CoT: one pass"}
SHAPES = {  # values of a right answer of length 0 and of full length, and of a wrong one (the paper's figure 5)
    "shape-a": Cosine(right=(0.0, 10.0), wrong=(0.0, 0.0)),
    "shape-b": Cosine(right=(6.0, 5.0), wrong=(-10.0, 0.0)),
    "shape-c": Cosine(right=(10.0, 9.0), wrong=(-10.0, 0.0)),
}


@dataclass(frozen=True)
class Preset:
    base: sft.SftConfig  # the base, and what all fine-tuning has in common with it
    tune: dict  # what fine-tuning on demonstrations has on its own
    error_prob: float  # chance that a column of a demonstrated pass is wrong
    sizes: tuple[int, ...]  # N, demonstrations of each number of digits
    epochs: int  # passes over them
    rl: grpo.GrpoConfig  # what all reinforcement has in common
    window: int  # L, tokens
    repetition_n: int = 8  # tokens of the n-grams that are penalized


REINFORCE = replace(ALGORITHMS["reinforce"], baseline="group", divide_by="batch", average="token")
PRESETS = {
    "cpu": Preset(
        sft.SftConfig(
            task=Templated(ThinkingAddition((2,), modes=(0.3, 0.65, 0.05), error_prob=0.2)), width=64, context=320,
            steps=1400, lr=3e-3, warmup=40, rows_per_step=32, eval_problems=80,
        ),
        dict(lr=2e-3, warmup=2), 0.15, (128, 512, 2048, 8192), 2,
        grpo.GrpoConfig(
            task=Templated(ThinkingAddition((2,))), algorithm=REINFORCE, steps=40, prompts=8, lr=3e-4, preflight=0,
            save_every=40, eval_every=0, eval_problems=64, eval_samples=4,
        ),
        64,
    ),
    "tiny": Preset(
        sft.SftConfig(
            task=Templated(ThinkingAddition((1,), modes=(0.3, 0.6, 0.1), error_prob=0.2)), width=16, heads=2,
            kv_heads=1, layers=1, context=96, steps=8, lr=1e-2, warmup=2, rows_per_step=8, eval_problems=4,
        ),
        dict(lr=1e-3, warmup=0), 0.2, (8, 16), 1,
        grpo.GrpoConfig(
            task=Templated(ThinkingAddition((1,))), algorithm=REINFORCE, steps=2, prompts=2, group_size=4, lr=1e-3,
            warmup=1, preflight=0, save_every=2, eval_every=0, eval_problems=3, eval_samples=2,
        ),
        12, 6,
    ),
}  # fmt: skip
PRESETS["gpu"] = replace(
    PRESETS["cpu"],
    base=replace(PRESETS["cpu"].base, width=128, context=1024, steps=3000, lr=1e-3, micro_tokens=32768,
                 task=Templated(ThinkingAddition((2, 3), modes=(0.3, 0.65, 0.05), error_prob=0.2))),
    tune=dict(lr=1e-3, warmup=2), sizes=(512, 2048, 8192, 32768),
    rl=replace(PRESETS["cpu"].rl, task=Templated(ThinkingAddition((2, 3))), steps=200, prompts=32, save_every=50,
               micro_tokens=65536, eval_problems=250),
    window=96,
)  # fmt: skip


def windows(preset: str) -> dict[str, int]:
    """Arms of the classic reward and their windows in tokens: L, 2L, 4L."""
    L = PRESETS[preset].window
    return {f"classic-{L * k}": L * k for k in (1, 2, 4)}


def tuning(preset: str, form: str, size: int) -> sft.SftConfig:
    """Fine-tuning of the base on `size` demonstrations of one form, `epochs` passes over them."""
    chosen = PRESETS[preset]
    sums = replace(chosen.base.task.task, modes=FORMS[form], error_prob=chosen.error_prob)
    steps = max(1, round(chosen.epochs * size * len(sums.digits) / chosen.base.rows_per_step))
    return replace(chosen.base, task=Templated(sums), distinct=size, steps=steps, **chosen.tune)


def arms(preset: str, seed: int) -> list[Arm]:
    """The base; fine-tuning on demonstrations; reinforcement, and samples from all that was fine-tuned."""
    chosen = PRESETS[preset]
    largest, sizes = max(chosen.sizes), [(form, size) for form in FORMS for size in chosen.sizes]
    penalty = DenseRepetition(n=chosen.repetition_n)
    lost = replace(chosen.rl.task, task=Unanswerable(chosen.rl.task.task))

    def reinforced(arm: str, start: str, window: int, *rewards: Reward, **settings) -> Arm:
        config = replace(chosen.rl, max_new_tokens=Schedule(window), rewards=rewards, **settings)
        return Arm(arm, "grpo", config, start, cost=config.steps * window)

    def cosine(arm: str, *rewards: Reward, **settings) -> Arm:
        return reinforced(arm, f"long-{largest}", 2 * chosen.window, *rewards, **settings)

    wide = 4 * chosen.window
    return [
        Arm("base", "sft", chosen.base),
        *(Arm(f"{form}-{size}", "sft", tuning(preset, form, size), "base") for form, size in sizes),
        *(reinforced(f"{form}-{size}-samples", f"{form}-{size}", wide, Classic(), steps=0) for form, size in sizes),
        reinforced("rl-base", "base", wide, Classic()),
        reinforced("rl-short", f"short-{largest}", wide, Classic()),
        *(reinforced(arm, f"long-{largest}", window, Classic()) for arm, window in windows(preset).items()),
        cosine("cosine", Cosine()),
        cosine("repetition", Cosine(), penalty),
        *(cosine(arm, shape) for arm, shape in SHAPES.items()),
        cosine("hack", Cosine(), task=lost),
        cosine("hack-repetition", Cosine(), penalty, task=lost),
    ]


# -------------------------------------------------------------------------------------------------------- claims

ACC, RECHECKS = "eval/pass@1", "eval/thinking/rechecks"
LENGTH, CUT, REPEATED = "completions/mean_length", "completions/clipped_ratio", "completions/repetition"


def best(values: list[float]) -> float:
    """The largest mean of a quarter of the steps in a row."""
    width = max(1, len(values) // 4)
    return max(statistics.fmean(values[i : i + width]) for i in range(len(values) - width + 1))


def claims(preset: str) -> list[Claim]:
    small, half, large = PRESETS[preset].sizes[0], *PRESETS[preset].sizes[-2:]
    narrow, middle, wide = windows(preset)

    def more_data(few: int, many: int):
        """What long gains more than short from more demonstrations."""
        of = {n: lead(f"long-{n}-samples", f"short-{n}-samples", ACC) for n in (few, many)}
        return lambda r: of[many](r) - of[few](r)

    def lost(r: Results) -> PerSeed:
        """Accuracy lost since its best, in the window where that is most."""
        losses = [r.of_series(best, arm, "accuracy") - r.late(arm, "accuracy") for arm in windows(preset)]
        return r.per_seed(lambda seed: max((loss[seed] for loss in losses if seed in loss), default=None))

    def late_growth(arm: str, key: str):
        return lambda r: r.late(arm, key) - r.early(arm, key)

    over_early = {"before": Results.early, "after": Results.late}
    return [
        Claim("SFT: long - short, accuracy with most data",
              lead(f"long-{large}-samples", f"short-{large}-samples", ACC), 0.03),
        Claim("SFT: long - short, gain from the last growth of data", more_data(half, large), 0.05),
        Claim("SFT: long - short, gain from least to most data", more_data(small, large), 0.1),
        Claim("RL on long CoT: gain in accuracy", gain(wide, ACC), 0.03),
        Claim("RL on long - RL on short: gain in accuracy", lambda r: gain(wide, ACC)(r) - gain("rl-short", ACC)(r),
              0.03),
        Claim("RL on long - RL on short: final accuracy", lead(wide, "rl-short", ACC), 0.03),
        Claim("RL from base: gain in accuracy", gain("rl-base", ACC), 0.03),
        Claim("RL from base: gain in re-checks per response", gain("rl-base", RECHECKS), 0.1, LESS),
        Claim("RL on long - RL from base: final accuracy", lead(wide, "rl-base", ACC), 0.03),
        Claim("classic: late / early length in the widest window", growth(wide, LENGTH, **over_early), 1.1,
              no_effect=1),
        Claim("classic: late share of the narrowest window that a response takes",
              lambda r: r.late(narrow, LENGTH) / windows(preset)[narrow], 0.8, no_effect=0.5),
        Claim("classic: late - early exceed rate in the narrowest window", late_growth(narrow, CUT), 0.05),
        Claim("classic: accuracy lost since its best, worst of the windows", lost, 0.05, no_effect=0.02),
        Claim("classic - cosine: late exceed rate in the same window", lead(middle, "cosine", CUT, Results.late), 0.05),
        Claim("shapes: late length of A / of C, right answers gain by length", ratio("shape-a", "shape-c", LENGTH), 1.1,
              no_effect=1),
        Claim("shapes: late length of B / of C, right answers are worth less against wrong ones",
              ratio("shape-b", "shape-c", LENGTH), 1.1, no_effect=1),
        Claim("hack: late / early length", growth("hack", LENGTH, **over_early), 1.2, no_effect=1),
        Claim("hack: growth of the share of repeated n-grams", late_growth("hack", REPEATED), 0.1),
        Claim("hack: late share of repeated n-grams, penalty / none", ratio("hack-repetition", "hack", REPEATED), 0.5,
              LESS, 1),
        Claim("repetition / cosine: late length", ratio("repetition", "cosine", LENGTH), 0.9, LESS, 1),
        Claim("repetition - cosine: final accuracy", lead("repetition", "cosine", ACC), 0.03),
    ]  # fmt: skip


def extra(results: Results, preset: str) -> dict:
    """What every arm came to, before and after its reinforcement."""
    keys = {"accuracy": ACC, "length": "eval/mean_length", "exceed rate": "eval/clipped_ratio", "re-checks": RECHECKS}
    numbers = results.table(keys, [arm for arm in results.arms if results.last(arm, ACC)])
    for arm in numbers:
        if results.last(arm, LENGTH):
            numbers[arm] |= {f"{n} before": results.first(arm, key).rounded() for n, key in keys.items()}
    return numbers


# -------------------------------------------------------------------------------------------------------- figure


def trained_on(r: Results, arm: str) -> float:
    """Tokens of all steps of a fine-tuning, mean over seeds."""
    return (r.mean(arm, "num_tokens") * r.last(arm, "step")).mean


def panels(preset: str) -> list[Panel]:
    """Top: the two kinds of demonstrations, reinforcement on each, windows. Bottom: exceed rates, shapes, hacking."""
    chosen = PRESETS[preset]
    narrow, middle, wide = windows(preset)
    started = [Line(wide, "from long CoT"), Line("rl-short", "from short CoT"), Line("rl-base", "from the base", "C7")]
    classic = [Line(arm, f"classic, window {window}", color)
               for (arm, window), color in zip(windows(preset).items(), shades(3), strict=True)]  # fmt: skip
    cosine, repetition = (Line("cosine", f"cosine, window {2 * chosen.window}", "C3"),
                          Line("repetition", "cosine, repetition penalty", "C6"))  # fmt: skip
    shapes = [Line(f"shape-{name[0].lower()}", name, color) for name, color in
              (("A: right 0 to 10, wrong 0", "C4"), ("B: right 6 to 5, wrong -10 to 0", "C2"),
               ("C: right 10 to 9, wrong -10 to 0", "C8"))]  # fmt: skip

    def by_data(r: Results, line: Line, key: str, seed: int | None) -> list[tuple[float, float]]:
        """(tokens trained on, accuracy) of the fine-tuned arms of one form."""
        found = []
        for size in chosen.sizes:
            y = r.last(f"{line.arm}-{size}-samples", key)
            found.append((trained_on(r, f"{line.arm}-{size}"), y.mean if seed is None else y[seed]))
        return found

    def reinforcement(axis, r: Results) -> None:
        axis.axhline(r.first("rl-base", ACC).mean, color="C7", linestyle=":", label="the base")
        for form, arm, color in (("long", wide, "C0"), ("short", "rl-short", "C1")):
            x = trained_on(r, f"{form}-{chosen.sizes[-1]}") * 1.15
            how = {"arrowstyle": "->", "color": color, "linewidth": 2}
            axis.annotate("", (x, r.last(arm, ACC).mean), (x, r.first(arm, ACC).mean), arrowprops=how)

    length = {"ylabel": "tokens per response, mean", "smooth": 5}
    return [
        Panel("Fine-tuning on more data (arrows: RL on top)", [Line(form, NAMES[form]) for form in FORMS], ACC,
              points=by_data, also=reinforcement, xlabel="tokens trained on", xscale="log10", marker="o",
              ylim=(None, 1), ylabel="accuracy on held-out sums, sampled"),
        Panel("RL from three starts, classic reward", started, "accuracy", ylabel="accuracy of rollouts", smooth=5),
        Panel("Length of responses", [*classic, cosine, repetition], LENGTH, **length),
        Panel("Exceed rate", [*classic, cosine, repetition], CUT, smooth=5, ylim=(-0.01, None),
              ylabel="share of responses that reach the window"),
        Panel(f"Shapes of the cosine reward, window {2 * chosen.window}",
              [*shapes, Line("cosine", "default: right 2 to 1, wrong -10 to 0", "C3")], LENGTH, **length),
        Panel("Hacking: stated answers that nothing reaches",
              [Line("hack", "cosine", "C3"), Line("hack-repetition", "cosine, repetition penalty", "C6")], REPEATED,
              smooth=5, ylabel=f"share of {chosen.repetition_n}-grams that repeat an earlier one"),
    ]  # fmt: skip


def caption(preset: str) -> str:
    chosen = PRESETS[preset]
    return (
        f"Long chains of thought on {' and '.join(map(str, chosen.base.task.task.digits))}-digit addition with "
        f"optional re-checking, preset {preset}: sampled at temperature 1; {chosen.error_prob:.0%} of the columns of a "
        "demonstrated pass are wrong; curves over steps are means of 5 neighbours."
    )
