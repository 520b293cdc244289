"""Demystifying Long CoT (Yeo et al., 2025) in miniature, on Countdown by attempts: what makes thinking long and useful?

From the base that all sections on attempts share (cpu), which can try again but often gives up:

    long-N, short-N     fine-tuning on N demonstrations that try until one attempt says yes, or that make one attempt
    rl-long, rl-short   reinforcement on the largest of each, classic reward, window 4L
    classic-W           the classic reward from the base in windows of W = L, 2L, 4L tokens
    cosine, repetition  the cosine reward in the window 2L; and each token of a repeated attempt is punished
    paid, paid-penalty  right answers are worth more the longer they are, window 4L; the same with that punishment
    accepts, rejects    window 4L, by verifiers that accept half of all wrong answers, or reject half of the right ones

and from bases of its own (conditions), trained for as many tokens each, classic reward, window 4L:

    share-S, width-D    pretraining with a share S of long thoughts in the corpus; of width D
    share-S-rl, ...     reinforcement on that

tiny and gpu have both. Differences from the paper that matter: GRPO with the advantages of whole batches instead of PPO
with a critic; a model of 0.3 million weights; windows start from the base, not from long demonstrations, which here
fill the narrow windows at once; and an attempt never succeeds more often, whatever is learnt.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from nanoreason.experiments.base import shared
from nanoreason.experiments.figure import Line, Panel, shades
from nanoreason.experiments.results import LESS, Arm, Claim, PerSeed, Results, gain, growth, lead, ratio
from nanoreason.learn import ALGORITHMS
from nanoreason.recipes import grpo, sft
from nanoreason.rewards import Classic, Cosine, DenseRepetition, Noisy, Reward
from nanoreason.run import Schedule
from nanoreason.tasks import Attempts
from nanoreason.tasks.attempts import Mixture

FORMS = {"long": "long:1", "short": "one:1"}
NAMES = {"long": "long CoT: until an attempt says yes", "short": "short CoT: one attempt"}
PAID = Cosine(right=(0.0, 10.0), wrong=(0.0, 0.0), exceed=0.0)  # shape A of the paper's figure 5
# 12 tokens are an attempt and its verdict: said again they are a repetition, the answer that copies the attempt is not.
# DIFFERS from the paper: its -0.05 a token stands beside rewards of -10..2, whose deviation here is about 4. Advantages
# are divided by that before the penalty is added, so it is divided too.
PENALTY = DenseRepetition(n=12, penalty=-0.0125)
VERIFIERS = {"accepts": Noisy(accept=0.5), "rejects": Noisy(reject=0.5)}


@dataclass(frozen=True)
class Preset:
    rl: grpo.GrpoConfig  # what all reinforcement has in common; its steps are those in the widest window
    window: int = 64  # L, tokens
    narrow_steps: int = 60  # of RL in the windows L and 2L
    sizes: tuple[int, ...] = ()  # N, demonstrations; none: no arms from the shared base
    epochs: int = 2  # passes over them
    tune: sft.SftConfig | None = None  # fine-tuning on them
    pretrain: sft.SftConfig | None = None  # of the bases of its own
    shares: dict[float, int] = field(default_factory=dict)  # long thoughts in the corpus: steps, for equal tokens
    widths: tuple[int, ...] = ()  # the last is that of pretrain, whose corpus has the largest share
    conditions: dict = field(default_factory=dict)  # what reinforcement on these bases has on its own


# The deviation of the whole batch divides the advantages, as the paper's PPO normalizes them: a cosine of -10..2 is
# then no larger a step than a classic 0..1.
REINFORCE = replace(ALGORITHMS["dr_grpo"], divide_by="batch", length_constant=256)
RL = grpo.GrpoConfig(
    task=Attempts(), algorithm=REINFORCE, steps=20, lr=3e-4, warmup=2, preflight=0, save_every=20, eval_every=0,
    eval_problems=232, eval_samples=2,
)  # fmt: skip
TUNE = sft.SftConfig(lr=3e-4, warmup=2, rows_per_step=32, eval_problems=232, eval_samples=2, eval_tokens=256)
PRETRAIN = sft.SftConfig(optimizer="muon", lr=5e-3, context=320, eval_problems=232, eval_samples=2, eval_tokens=256)
# Seconds of one core a seed, estimated from single arms that ran beside other work. cpu: demonstrations 55, RL on them
# 90, windows 60 + 105 + 70, cosine and repetition 230, paid 160, verifiers 130: 900. conditions: bases 630, RL 320.
PRESETS = {
    "cpu": Preset(RL, sizes=(25, 100, 400, 1600), tune=TUNE),
    "conditions": Preset(
        RL, pretrain=PRETRAIN, shares={0.02: 1150, 0.05: 1070, 0.1: 955, 0.3: 646}, widths=(32, 64, 96),
        conditions=dict(prompts=8, steps=30),
    ),
    "tiny": Preset(
        replace(RL, steps=2, prompts=2, group_size=4, warmup=1, save_every=2, eval_problems=3), 16, 2,
        sizes=(8, 16), epochs=1, tune=replace(TUNE, rows_per_step=8, eval_problems=3, eval_tokens=64),
        pretrain=replace(PRETRAIN, width=32, layers=1, heads=2, kv_heads=1, rows_per_step=8, warmup=2, eval_problems=3,
                         eval_tokens=64),
        shares={0.1: 4, 0.3: 3}, widths=(16, 32),
    ),
    "gpu": Preset(
        replace(RL, steps=60, prompts=32, lr=1e-4, micro_tokens=65536, eval_samples=8), narrow_steps=100,
        sizes=(100, 400, 1600, 6400), tune=replace(TUNE, lr=5e-4, micro_tokens=32768, eval_samples=8),
        pretrain=replace(PRETRAIN, width=256, layers=6, heads=8, kv_heads=4, lr=3e-3, rows_per_step=128,
                         micro_tokens=65536, eval_samples=8),
        shares={0.02: 2300, 0.05: 2140, 0.1: 1910, 0.3: 1292}, widths=(64, 128, 256),
    ),
}  # fmt: skip


def windows(preset: str) -> dict[str, int]:
    """Arms of the classic reward and their windows in tokens: L, 2L, 4L."""
    L = PRESETS[preset].window
    return {f"classic-{L * k}": L * k for k in (1, 2, 4)}


def corpus(share: float) -> Mixture:
    """Guesses, single attempts and the drill of comparing, beside a share of long thoughts."""
    return Mixture.parse(f"guess:.2,compare:.17,one:{0.63 - share:.2f},long:{share}")


def own_bases(preset: str) -> dict[str, sft.SftConfig]:
    """Pretraining of every base of one's own: by the share of long thoughts, then by the width at the largest share."""
    chosen = PRESETS[preset]
    by_share = {
        f"share-{share}": replace(chosen.pretrain, task=Attempts(shares=corpus(share)), steps=steps)
        for share, steps in chosen.shares.items()
    }
    last = list(by_share.values())[-1:]
    return by_share | {f"width-{width}": replace(best, width=width) for best in last for width in chosen.widths[:-1]}


def by_width(preset: str) -> dict[int, str]:
    """{width: base}, the largest being that of the largest share."""
    chosen = PRESETS[preset]
    return {width: f"width-{width}" for width in chosen.widths[:-1]} | {
        width: f"share-{max(chosen.shares)}" for width in chosen.widths[-1:]
    }


def arms(preset: str, seed: int) -> list[Arm]:
    """What starts from the shared base, if a preset has that; then bases of one's own, and reinforcement on them."""
    chosen = PRESETS[preset]
    wide, steps = 4 * chosen.window, chosen.rl.steps

    def rl(arm: str, start: str, window: int, *rewards: Reward, **settings) -> Arm:
        config = replace(chosen.rl, max_new_tokens=Schedule(window), rewards=rewards, **settings)
        return Arm(arm, "grpo", config, start, cost=config.steps * window)

    found = []
    if chosen.sizes:
        largest, task = max(chosen.sizes), chosen.rl.task
        tuned = {
            f"{form}-{size}": replace(
                chosen.tune, task=replace(task, shares=Mixture.parse(FORMS[form])), distinct=size,
                steps=max(1, round(chosen.epochs * size / chosen.tune.rows_per_step)),
            )
            for form in FORMS for size in chosen.sizes
        }  # fmt: skip
        narrow = dict(steps=chosen.narrow_steps)
        found += [
            shared(preset, seed),
            *(Arm(arm, "sft", config, "base") for arm, config in tuned.items()),
            *(rl(f"rl-{form}", f"{form}-{largest}", wide, Classic()) for form in FORMS),
            *(rl(arm, "base", window, Classic(), steps=steps if window == wide else chosen.narrow_steps)
              for arm, window in windows(preset).items()),
            rl("cosine", "base", 2 * chosen.window, Cosine(), **narrow),
            rl("repetition", "base", 2 * chosen.window, Cosine(), PENALTY, **narrow),
            rl("paid", "base", wide, PAID),
            rl("paid-penalty", "base", wide, PAID, PENALTY),
            *(rl(arm, "base", wide, verifier) for arm, verifier in VERIFIERS.items()),
        ]  # fmt: skip
    for arm, config in own_bases(preset).items():
        found += [Arm(arm, "sft", config), rl(f"{arm}-rl", arm, wide, Classic(), **chosen.conditions)]
    return found


# -------------------------------------------------------------------------------------------------------- claims

ACC, GREEDY, GREEDY_LENGTH = "eval/pass@1", "acc/3", "eval/greedy_length"
LENGTH, CUT = "completions/mean_length", "completions/clipped_ratio"


def lost(r: Results, arm: str) -> PerSeed:
    """Accuracy of rollouts: the best quarter of the steps in a row minus the last quarter."""

    def best(values: list[float]) -> float:
        width = max(1, len(values) // 4)
        return max(statistics.fmean(values[i : i + width]) for i in range(len(values) - width + 1))

    return r.of_series(best, arm, "accuracy") - r.late(arm, "accuracy")


def since(key: str, arm: str) -> Callable[[Results], PerSeed]:
    """The last quarter of the steps minus the second one."""

    def second(values: list[float]) -> float:
        quarter = max(1, len(values) // 4)
        return statistics.fmean(values[quarter : 2 * quarter] or values)

    return lambda r: r.late(arm, key) - r.of_series(second, arm, key)


def repeated(r: Results, arm: str, at=Results.late) -> PerSeed:
    """Share of the attempts that were made before in the same response."""
    return at(r, arm, "attempts/new") / at(r, arm, "attempts") * -1 + 1


def claims(preset: str) -> list[Claim]:
    return [*claims_from_the_base(preset), *claims_from_own_bases(preset)]


def claims_from_the_base(preset: str) -> list[Claim]:
    if not PRESETS[preset].sizes:
        return []
    small, half, large = PRESETS[preset].sizes[0], *PRESETS[preset].sizes[-2:]
    narrow, middle, wide = windows(preset)

    def growing(form: str, few: int):
        """Accuracy gained by more demonstrations."""
        return lead(f"{form}-{large}", f"{form}-{few}", ACC)

    def more_data(few: int):
        return lambda r: growing("long", few)(r) - growing("short", few)(r)

    return [
        Claim("SFT: long - short, accuracy with most data", lead(f"long-{large}", f"short-{large}", ACC), 0.2),
        Claim("SFT: long - short, gain from the last growth of data", more_data(half), 0.03),
        Claim("SFT: long - short, gain from least to most data", more_data(small), 0.1),
        Claim("SFT: short, gain from least to most data", growing("short", small), 0.05, LESS),
        Claim("approach: RL on long SFT, gain in accuracy", gain("rl-long", ACC), 0.03),
        Claim("approach: RL on long - RL on short, final accuracy", lead("rl-long", "rl-short", ACC), 0.1),
        Claim("approach: RL on long - RL on short, gain in accuracy",
              lambda r: gain("rl-long", ACC)(r) - gain("rl-short", ACC)(r), 0.03),
        Claim("approach: RL from the base, gain in accuracy", gain(wide, ACC), 0.2),
        Claim("approach: RL on long - RL from the base, final accuracy", lead("rl-long", wide, ACC), 0.03),
        Claim("windows: classic, widest - narrowest, final accuracy", lead(wide, narrow, ACC), 0.1),
        Claim("windows: classic 2L, late - early share at the window",
              lambda r: r.late(middle, CUT) - r.early(middle, CUT), 0.1),
        Claim("reward: classic - cosine in 2L, accuracy lost since its best",
              lambda r: lost(r, middle) - lost(r, "cosine"), 0.03),
        Claim("reward: classic - cosine in 2L, late share at the window", lead(middle, "cosine", CUT, Results.late),
              0.1),
        Claim("reward: cosine, last - second quarter, share at the window", since(CUT, "cosine"), -0.03, LESS),
        Claim("reward: cosine, last - second quarter, accuracy", since("accuracy", "cosine"), 0.03),
        Claim("repetition: penalty / none, late share of repeated attempts, cosine",
              lambda r: repeated(r, "repetition") / repeated(r, "cosine"), 0.7, LESS, 1),
        Claim("repetition: penalty - none, final accuracy, cosine", lead("repetition", "cosine", ACC), 0.02),
        Claim("hack: paid for length, late / early tokens",
              growth("paid", LENGTH, before=Results.early, after=Results.late), 1.5, no_effect=1),
        Claim("hack: paid for length, late - early share of repeated attempts",
              lambda r: repeated(r, "paid") - repeated(r, "paid", Results.early), 0.2),
        Claim("hack: paid for length - classic, late share at the window", lead("paid", wide, CUT, Results.late), 0.1),
        Claim("hack: paid, penalty / none, late share of repeated attempts",
              lambda r: repeated(r, "paid-penalty") / repeated(r, "paid"), 0.5, LESS, 1),
        *(Claim(f"verification: exact - {arm} half, final accuracy", lead(wide, arm, ACC), 0.05) for arm in VERIFIERS),
    ]  # fmt: skip


def claims_from_own_bases(preset: str) -> list[Claim]:
    chosen = PRESETS[preset]
    if not chosen.shares:
        return []
    least, *_, second, most = (f"share-{share}" for share in (min(chosen.shares), *sorted(chosen.shares)[-2:]))
    small = f"width-{chosen.widths[0]}"

    def more_gain(arm: str, other: str):
        return lambda r: gain(f"{arm}-rl", ACC)(r) - gain(f"{other}-rl", ACC)(r)

    return [
        Claim("capacity: largest - smallest width, accuracy after RL", lead(f"{most}-rl", f"{small}-rl", ACC), 0.2),
        Claim("capacity: largest - smallest width, gain in accuracy by RL", more_gain(most, small), 0.1),
        Claim("base quality: most / least long thoughts, greedy tokens of the base",
              ratio(most, least, GREEDY_LENGTH, Results.last), 1.5, no_effect=1),
        Claim("base quality: most - least long thoughts, greedy accuracy of the base", lead(most, least, GREEDY), 0.1),
        Claim("base quality: most - least long thoughts, accuracy after RL", lead(f"{most}-rl", f"{least}-rl", ACC),
              0.2),
        Claim("base quality: most - least long thoughts, gain in accuracy by RL", more_gain(most, least), 0.1),
        Claim(f"base quality: {second} - least long thoughts, accuracy after RL",
              lead(f"{second}-rl", f"{least}-rl", ACC), 0.15),
        Claim(f"base quality: RL on {second} - greedy base, accuracy",
              lambda r: r.last(f"{second}-rl", ACC) - r.last(second, GREEDY), 0.3),
    ]  # fmt: skip


def conditions(preset: str) -> dict[str, list[str]]:
    """The lecture's five conditions of emergence, and the arms that differ in each, as far as a preset has them."""
    chosen = PRESETS[preset]
    _, middle, wide = windows(preset)
    found = {}
    if chosen.sizes:
        found |= {
            "reward design": [middle, "cosine"],
            "training approach": [f"long-{max(chosen.sizes)}", wide, "rl-long", "rl-short"],
            "verification": [wide, *VERIFIERS],
        }
    if chosen.shares:
        found |= {
            "capacity": [f"{arm}-rl" for arm in by_width(preset).values()],
            "base quality": [f"share-{share}-rl" for share in chosen.shares],
        }
    return found


def extra(results: Results, preset: str) -> dict:
    """The table of the conditions, then what every arm came to, before and after its reinforcement."""
    keys = {"accuracy": ACC, "greedy accuracy": GREEDY, "tokens": "eval/mean_length", "greedy tokens": GREEDY_LENGTH,
            "at the window": "eval/clipped_ratio", "attempts": "eval/attempts", "new": "eval/attempts/new"}  # fmt: skip
    numbers = results.table(keys, [arm for arm in results.arms if results.last(arm, ACC)])
    for arm in numbers:
        if results.last(arm, LENGTH):
            numbers[arm] |= {f"{n} before": results.first(arm, key).rounded() for n, key in keys.items()}
    shown = ("accuracy before", "accuracy", "tokens", "attempts")
    table = {name: {arm: {key: numbers.get(arm, {}).get(key, {}) for key in shown} for arm in compared}
             for name, compared in conditions(preset).items()}  # fmt: skip
    return {"conditions": table} | numbers


# -------------------------------------------------------------------------------------------------------- figure


def panels(preset: str) -> list[Panel]:
    return [*panels_from_the_base(preset), *panels_from_own_bases(preset)]


ROLLOUTS = {"ylabel": "accuracy of rollouts", "smooth": 5, "ylim": (0, 1)}
TOKENS = {"ylabel": "tokens per response, mean", "smooth": 5, "ylim": (0, None)}


def panels_from_the_base(preset: str) -> list[Panel]:
    """Top: demonstrations, RL on them, windows. Bottom: the share at the window, hacking, verifiers."""
    chosen = PRESETS[preset]
    if not chosen.sizes:
        return []
    _, middle, wide = windows(preset)
    classic = [Line(arm, f"classic, {window} tokens", color)
               for (arm, window), color in zip(windows(preset).items(), shades(3), strict=True)]  # fmt: skip
    shaped = [Line("cosine", f"cosine, {2 * chosen.window} tokens", "C3"),
              Line("repetition", "and punished repetition", "C6")]  # fmt: skip

    def by_data(r: Results, line: Line, key: str, seed: int | None) -> list[tuple[float, float]]:
        """(demonstrations, accuracy) of the fine-tuned arms of one form."""
        found = {size: r.last(f"{line.arm}-{size}", key) for size in chosen.sizes}
        return [(size, y.mean if seed is None else y[seed]) for size, y in found.items() if y]

    def reinforcement(axis, r: Results) -> None:
        axis.axhline(r.first(wide, ACC).mean, color="C7", linestyle=":", label="the base")
        for form, color in (("long", "C0"), ("short", "C1")):
            how, x = {"arrowstyle": "->", "color": color, "linewidth": 2}, chosen.sizes[-1] * 1.15
            ends = r.last(f"rl-{form}", ACC).mean, r.first(f"rl-{form}", ACC).mean
            axis.annotate("", (x, ends[0]), (x, ends[1]), arrowprops=how)

    def repeats(r: Results, line: Line, key: str, seed: int | None) -> list[tuple[float, float]]:
        """(step, share of the attempts that were made before)."""
        made, new = (r.curve(line.arm, key, seed) for key in ("attempts", "attempts/new"))
        return [(step, 1 - new[step] / made[step]) for step in new if made[step]]

    return [
        Panel("Fine-tuning on more data (arrows: RL on top)", [Line(form, NAMES[form]) for form in FORMS], ACC,
              points=by_data, also=reinforcement, xlabel="demonstrations", xscale="log10", marker="o", ylim=(0, 1),
              ylabel="accuracy on held-out problems"),
        Panel(f"RL from three starts, window {4 * chosen.window}", [Line("rl-long", "from long CoT"),
              Line("rl-short", "from short CoT"), Line(wide, "from the base", "C7")], "accuracy", **ROLLOUTS),
        Panel("Windows and rewards: accuracy", [*classic, *shaped], "accuracy", **ROLLOUTS),
        Panel("Windows and rewards: length", [*classic, *shaped], LENGTH, **TOKENS),
        Panel("Share at the window", [*classic, *shaped], CUT, smooth=5, ylim=(-0.01, None),
              ylabel="share of responses that reach the window"),
        Panel(f"Right answers paid for length, window {4 * chosen.window}", [Line("paid", "paid for length", "C3"),
              Line("paid-penalty", "and punished repetition", "C6"), Line(wide, "classic", "C7")], "attempts",
              points=repeats, smooth=5, ylim=(-0.01, None), ylabel="share of attempts made before"),
        Panel("The same: length", [Line("paid", "paid for length", "C3"),
              Line("paid-penalty", "and punished repetition", "C6"), Line(wide, "classic", "C7")], LENGTH, **TOKENS),
        Panel("Verifiers", [Line(wide, "exact", "C7"), Line("accepts", "accepts half of the wrong answers", "C1"),
              Line("rejects", "rejects half of the right answers", "C4")], "accuracy", **ROLLOUTS),
    ]  # fmt: skip


def panels_from_own_bases(preset: str) -> list[Panel]:
    """Top: the share of long thoughts in the corpus. Bottom: the width, and what the bases can do."""
    chosen = PRESETS[preset]
    if not chosen.shares:
        return []

    def colored(labels: dict[str, str]) -> list[Line]:
        return [Line(arm, label, color)
                for (arm, label), color in zip(labels.items(), shades(len(labels)), strict=True)]  # fmt: skip

    by_share = colored({f"share-{share}-rl": f"{share:.0%} long thoughts" for share in chosen.shares})
    wide = colored({f"{arm}-rl": f"width {width}" for width, arm in by_width(preset).items()})
    stages = [Line("base", "base, greedy", "C7", y=GREEDY), Line("base", "base, sampled", "C1", y=ACC),
              Line("rl", "after RL, sampled", "C0", y=ACC)]  # fmt: skip

    def over_shares(r: Results, line: Line, key: str, seed: int | None) -> list[tuple[float, float]]:
        """(share of long thoughts, accuracy) of the bases, or of what RL made of them."""
        rl = "-rl" * (line.arm == "rl")
        found = {share: r.last(f"share-{share}{rl}", line.y) for share in chosen.shares}
        return [(share, y.mean if seed is None else y[seed]) for share, y in found.items() if y]

    def label_shares(axis, r: Results) -> None:
        axis.set_xticks(list(chosen.shares), [f"{share:g}" for share in chosen.shares])
        axis.minorticks_off()

    def right(r: Results, line: Line, key: tuple[str, str]) -> PerSeed:
        return r.last(line.arm, key[0]) / r.last(line.arm, key[1])

    bases = [Line(f"share-{share}", f"{share:.0%}\nlong", "C0") for share in chosen.shares]
    bases += [Line(arm, f"width\n{width}", "C2") for width, arm in list(by_width(preset).items())[:-1]]
    return [
        Panel("Base quality: before and after RL", stages, ACC, points=over_shares, xscale="log10", marker="o",
              xlabel="share of long thoughts in the corpus", ylim=(0, 1), ylabel="accuracy on held-out problems",
              also=label_shares),
        Panel("Base quality: accuracy", by_share, "accuracy", **ROLLOUTS),
        Panel("Base quality: length", by_share, LENGTH, **TOKENS),
        Panel("Capacity: accuracy", wide, "accuracy", **ROLLOUTS),
        Panel("Capacity: length", wide, LENGTH, **TOKENS),
        Panel("What the bases can do", bases, {"results that are right": ("eval/steps/right", "eval/steps"),
              "right attempts called right": ("eval/hits/seen", "eval/hits")}, kind="bar", bars=right, ylim=(0, 1.05),
              ylabel="share"),
    ]  # fmt: skip


def caption(preset: str) -> str:
    chosen = PRESETS[preset]
    what = "Long chains of thought" if chosen.sizes else "Two conditions of emergence"
    return (
        f"{what} on Countdown by attempts, preset {preset}: sampled at temperature 1; accuracy before and after is on "
        f"{chosen.rl.eval_problems} held-out problems x {chosen.rl.eval_samples} samples; curves over steps are "
        "means of 5 neighbours."
    )
