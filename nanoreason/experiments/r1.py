"""DeepSeek-R1 (2501.12948) in miniature: R1-Zero, the pipeline, distillation, on sums that may be thought about.

One base per seed, trained on direct answers (guesses), sums worked column by column (with slips) and a few that are
worked out again after "wait" until two passes agree. It learns in two phases: first all three in plenty, then a mixture
in which thinking is rare, as it is in what people write. What a base can do and what it usually does are two things,
and RL is to change the second. Then, all by GRPO with rewards for accuracy and format:

    zero             R1-Zero: RL on the base; the figure that made it famous
    no_thoughts      control: the same on a base that was only ever shown direct answers
    easy             control: one-digit sums, which need no thought
    capped, raised   RL under a budget of tokens that is too small; in `raised` it grows halfway
    cold             cold start: the base fine-tuned on a few hundred right, re-checked traces of zero
    cold_rl          RL on that
    rejection        right traces of cold_rl, and the base (not cold_rl) fine-tuned on them
    final            RL on that: the end of R1's pipeline
    short, short_rl  control: cold start and RL with traces of a single pass
    student_rl       RL on a small base; distilled: the same base fine-tuned on right traces of final
    distilled_wrong  control: on its wrong traces
    grpo ... cispo   five losses from the same base on the same problems, four updates per rollout

`student`, `cold` and the like are bases; what they are worth is measured by GRPO runs, before their first step.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from pathlib import Path

from nanoreason.experiments.reproduce import Criterion, Job, curve
from nanoreason.recipes import distill, grpo, sft

LOSSES = ("grpo", "dr_grpo", "dapo", "gspo", "cispo")
PIPELINE = {  # name in the table -> (arm, whether before its first step)
    "base": ("zero", True),
    "R1-Zero": ("zero", False),
    "cold start": ("cold_rl", True),
    "+ RL": ("cold_rl", False),
    "rejection SFT": ("final", True),
    "+ RL = R1": ("final", False),
    "short cold start": ("short_rl", True),
    "short + RL": ("short_rl", False),
}


@dataclass(frozen=True)
class Preset:
    skills: sft.SftConfig  # the first phase of every base
    habits: dict  # the second: what differs from the first
    student: dict  # the student's shape: what differs from the base
    rl: grpo.GrpoConfig  # what all RL runs have in common
    zero_steps: int
    control_steps: int  # of no_thoughts and easy
    easy_digits: tuple[int, ...]
    cap: int  # tokens: too few to re-check the longest sums
    cap_steps: int  # the budget is raised after half of them
    cold: distill.DistillConfig
    rejection: distill.DistillConfig
    distilled: distill.DistillConfig
    pipeline_steps: tuple[int, int]  # of the first RL of the pipeline, and of the last
    student_steps: int  # of RL on the student
    loss_steps: int  # rollouts of each of the five losses
    loss_updates: int = 4  # updates per rollout there: with one, all clips are the same


# In minutes of training a model this small does not learn to stop if two passes agree and only then: it stops after
# the second as it likes. So that checking pays all the same, the passes behind "wait" are written with more care.
SKILLS = sft.SftConfig(
    form="thinking", modes=(0.2, 0.4, 0.4), slip=0.15, care=0.1, passes=3, messy=0.15, guess=0.5,
    digits=(1, 2, 3), shares=(0.1, 0.3, 0.6), context=160, steps=2000, rows_per_step=32, lr=1.5e-3, warmup=50,
    micro_tokens=2048, eval_digits=(1, 2, 3), eval_problems=20,
)  # fmt: skip
HABITS = dict(modes=(0.66, 0.26, 0.08), steps=150, rows_per_step=64, lr=5e-4, warmup=10)
# DIFFERS from the paper: R1 gives accuracy and format equal weight. Here most of the base's responses are in the
# format already; a small weight keeps what is left of it from drowning the verdict in short runs.
# R1's own equation has no 1/|o|. With it, a right single pass is strengthened twice as much per token as a right
# re-check, which is twice as long, and re-checks fall again after step 20; the five losses below show the difference.
RL = grpo.GrpoConfig(
    task="thinking", template="skeleton", digits=(2, 3), format_weight=0.2, prompts=8, group_size=16, kl_coef=0.0,
    average="constant", max_new_tokens=112, lr=3e-4, warmup=3, preflight=16, save_every=20, eval_every=0,
    eval_digits=(2, 3), eval_problems=32, eval_samples=16,
)  # fmt: skip
PRESETS = {
    "cpu": Preset(
        skills=SKILLS, habits=HABITS, student=dict(width=48, layers=2), rl=RL, zero_steps=120, control_steps=30,
        easy_digits=(1,), cap=50, cap_steps=60, cold=distill.DistillConfig(problems=300, most=300, steps=60),
        rejection=distill.DistillConfig(problems=400, steps=150),
        distilled=distill.DistillConfig(problems=500, steps=250), pipeline_steps=(50, 40), student_steps=60,
        loss_steps=20,
    ),
    "tiny": Preset(
        skills=replace(
            SKILLS, width=32, layers=2, heads=2, context=112, digits=(1,), shares=(), steps=150, lr=1e-2, messy=0.0,
            rows_per_step=32, slip=0.0, modes=(0.3, 0.3, 0.4), eval_digits=(1,), eval_problems=4,
            warmup=20,
        ),
        habits=dict(steps=2, lr=1e-3, warmup=1),
        student=dict(width=16, layers=1),
        rl=replace(
            RL, digits=(1,), prompts=4, group_size=4, max_new_tokens=48, preflight=0, eval_digits=(1,), eval_problems=4,
            eval_samples=4, warmup=1,
        ),
        zero_steps=3, control_steps=2, easy_digits=(1,), cap=20, cap_steps=4,
        cold=replace(distill.PRESETS["tiny"], problems=60), rejection=distill.PRESETS["tiny"],
        distilled=replace(distill.PRESETS["tiny"], problems=40), pipeline_steps=(2, 2), student_steps=2, loss_steps=2,
        loss_updates=2,
    ),
    "gpu": Preset(
        skills=replace(
            SKILLS, form="countdown", modes=(0.3, 0.7, 0.0), width=256, layers=6, heads=8, context=640, steps=4000,
            lr=1e-3, rows_per_step=128, micro_tokens=32768,
        ),
        habits=dict(modes=(0.8, 0.2, 0.0), steps=300, lr=3e-4),
        student=dict(width=128, layers=3),
        rl=replace(
            RL, task="countdown", prompts=32, max_new_tokens=512, micro_tokens=65536, eval_problems=250, lr=1e-4,
        ),
        zero_steps=200, control_steps=80, easy_digits=(1,), cap=128, cap_steps=160,
        cold=distill.DistillConfig(task="countdown", problems=1000, most=500, max_new_tokens=512, steps=100),
        rejection=distill.DistillConfig(task="countdown", problems=4000, max_new_tokens=512, steps=1000),
        distilled=distill.DistillConfig(task="countdown", problems=8000, max_new_tokens=512, steps=2000),
        pipeline_steps=(100, 80), student_steps=200, loss_steps=60,
    ),
}  # fmt: skip


def stages(preset: str, seed: int, folder: Path) -> list[list[Job]]:
    """Bases in two phases; RL on them; cold starts from R1-Zero; so on down the pipeline; distillation from its end."""
    chosen = PRESETS[preset]
    countdown = chosen.rl.task == "countdown"

    def policy(arm: str) -> str:
        return str(folder / arm / "policy")

    def skills(arm: str, **settings) -> Job:
        return Job(arm, "sft", replace(chosen.skills, seed=seed, out=str(folder / arm), **settings))

    def habits(arm: str, skills: str, **settings) -> Job:
        return Job(arm, "sft", replace(chosen.skills, seed=seed, base=policy(skills), out=str(folder / arm),
                                       **(chosen.habits | settings)))  # fmt: skip

    def rl(arm: str, base: str, steps: int, **settings) -> Job:
        settings = {"eval_every": max(1, steps // 6)} | settings if arm in ("zero", "student_rl") else settings
        config = replace(chosen.rl, seed=seed, base=policy(base), steps=steps, out=str(folder / arm), **settings)
        return Job(arm, "grpo", config)

    def from_traces(arm: str, config: distill.DistillConfig, teacher: str, base: str, **settings) -> Job:
        names = dict(seed=seed, teacher=policy(teacher), base=policy(base), out=str(folder / arm))
        return Job(arm, "distill", replace(config, digits=chosen.rl.digits, **names, **settings))

    cap = dict(max_new_tokens=chosen.cap, eval_samples=0)
    long, short = (("search",), ("direct",)) if countdown else (("recheck",), ("steps",))
    first, last = chosen.pipeline_steps
    # one update per rollout makes all clips equal; dynamic sampling and the rest are the algorithm's own
    losses = [
        rl(loss, "base", chosen.loss_steps, algorithm=loss, average="", eval_samples=0,
           updates_per_rollout=chosen.loss_updates)
        for loss in LOSSES
    ]  # fmt: skip
    easy = {} if countdown else dict(digits=chosen.easy_digits, eval_digits=chosen.easy_digits)
    return [
        [
            skills("skills"),
            skills("student_skills", **chosen.student),
            skills("direct", modes=(1.0, 0.0, 0.0), steps=chosen.skills.steps // 2),
        ],
        [habits("base", "skills"), habits("student", "student_skills", **chosen.student)],
        [
            rl("zero", "base", chosen.zero_steps),
            rl("no_thoughts", "direct", chosen.control_steps, preflight=0),
            rl("easy", "base", chosen.control_steps, preflight=0, **easy),
            rl("capped", "base", chosen.cap_steps, **cap),
            rl("raised", "base", chosen.cap_steps, later_max_new_tokens=chosen.rl.max_new_tokens,
               later_from=chosen.cap_steps // 2 + 1, **cap),
            rl("student_rl", "student", chosen.student_steps, preflight=0),
            *losses,
        ],
        [
            from_traces("cold", chosen.cold, "zero", "base", modes=long),
            from_traces("short", chosen.cold, "zero", "base", modes=short),
        ],
        [rl("cold_rl", "cold", first, preflight=0), rl("short_rl", "short", first, preflight=0)],
        [from_traces("rejection", chosen.rejection, "cold_rl", "base")],
        [rl("final", "rejection", last, preflight=0)],
        [
            from_traces("distilled", chosen.distilled, "final", "student"),
            from_traces("distilled_wrong", chosen.distilled, "final", "student", keep="wrong"),
        ],
        [
            rl("distilled_eval", "distilled", 0, preflight=0),
            rl("distilled_wrong_eval", "distilled_wrong", 0, preflight=0),
        ],
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------------- numbers


def lines_of(lines: list[dict], arm: str, key: str, seed: int | None = None) -> list[dict]:
    """The lines of an arm that have a metric, in the order of steps, seed by seed."""
    return [line for line in lines if line["arm"] == arm and key in line and seed in (None, line["seed"])]


def mean(values) -> float | None:
    """The mean of what is there."""
    values = [value for value in values if value is not None]
    return statistics.fmean(values) if values else None


def at(lines: list[dict], arm: str, key: str, first: bool = False) -> float | None:
    """A metric at the end of an arm, or at its first measurement; the mean over seeds."""
    found = [lines_of(lines, arm, key, seed) for seed in sorted({line["seed"] for line in lines})]
    return mean(some[0 if first else -1][key] for some in found if some)


def late(lines: list[dict], arm: str, key: str, share: float = 1 / 3) -> float | None:
    """The mean of a metric over the last steps of an arm, and over seeds."""
    values = list(curve(lines, arm, key).values())
    return mean(values[-max(1, round(share * len(values))) :]) if values else None


def minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def over(a: float | None, b: float | None) -> float | None:
    """a / b; a share that was nothing before counts as one in a thousand."""
    return None if a is None or b is None else a / max(b, 1e-3)


def rank_correlation(x: list[float], y: list[float]) -> float | None:
    """Spearman's: Pearson's of the ranks, ties sharing theirs. None where one of them is constant.

    >>> rank_correlation([1, 2, 3], [10, 20, 15]), rank_correlation([1, 1], [1, 2])
    (0.5, None)
    """

    def ranks(values: list[float]) -> list[float]:
        return [sum(v < value for v in values) + sum(v == value for v in values) / 2 for value in values]

    if len(set(x)) < 2 or len(set(y)) < 2:
        return None
    return round(statistics.correlation(ranks(x), ranks(y)), 6)


def gain_of_rechecks(lines: list[dict], arm: str, levels: tuple[int, ...], first: bool = False) -> float | None:
    """P(right | re-checked) - P(right | one pass) at equal difficulty: per number of digits, then the mean."""
    return mean(
        minus(at(lines, arm, f"eval/accuracy/recheck/{n}", first), at(lines, arm, f"eval/accuracy/steps/{n}", first))
        for n in levels
    )


def rl_at_equal_tokens(lines: list[dict]) -> float | None:
    """pass@1 of student_rl at its first measurement with as many sampled tokens as the teacher's; else its last."""
    found = []
    for seed in {line["seed"] for line in lines}:
        spent = sum(line["tokens"] for line in lines_of(lines, "distilled", "tokens", seed))
        measured = lines_of(lines, "student_rl", "eval/pass@1", seed)
        enough = [line for line in measured if line.get("num_tokens", 0) >= spent]
        found += [(enough[0] if enough else measured[-1])["eval/pass@1"]] if measured else []
    return mean(found)


def summarise(lines: list[dict], preset: str) -> tuple[dict, list[Criterion]]:
    """What each arm came to, R1's table of stages, and the paper's statements as numbers."""
    chosen = PRESETS[preset]
    arms: dict[str, dict] = {}
    for arm in dict.fromkeys(line["arm"] for line in lines):
        numbers = {
            "accuracy before": at(lines, arm, "eval/pass@1", first=True),
            "accuracy": at(lines, arm, "eval/pass@1"),
            "format": at(lines, arm, "eval/format"),
            "length": at(lines, arm, "eval/mean_length"),
            "practice accuracy": late(lines, arm, "accuracy"),
            "practice length": late(lines, arm, "completions/mean_length"),
            "sampled tokens": at(lines, arm, "num_tokens") if arm not in ("distilled",) else at(lines, arm, "tokens"),
        }
        arms[arm] = {name: value for name, value in numbers.items() if value is not None}
    arms["pipeline"] = {
        stage: {
            name: at(lines, arm, f"eval/{key}", first)
            for name, key in (("accuracy", "pass@1"), ("format", "format"), ("length", "mean_length"))
        }
        for stage, (arm, first) in PIPELINE.items()
    }
    arms["zero"] |= {
        name: {"before": at(lines, "zero", f"eval/{name}", first=True), "after": at(lines, "zero", f"eval/{name}")}
        for name in ("pass@1", "pass@4", "pass@16", f"maj@{chosen.rl.eval_samples}", "mode/direct", "mode/steps",
                     "mode/recheck")
    }  # fmt: skip

    def start(arm: str, key: str) -> float | None:
        return at(lines, arm, key, first=True)

    def grown(arm: str, key: str) -> float | None:
        return over(at(lines, arm, key), start(arm, key))

    def gained(arm: str, key: str) -> float | None:
        return minus(at(lines, arm, key), start(arm, key))

    accuracy, length = (list(curve(lines, "zero", k).values()) for k in ("accuracy", "completions/mean_length"))
    thoughtless = at(lines, "zero", "eval/mode/direct")
    levels = (chosen.rl.inputs,) if chosen.rl.task == "countdown" else chosen.rl.digits
    maj = f"eval/maj@{chosen.rl.eval_samples}"
    after_raise = chosen.cap_steps - chosen.cap_steps // 2
    jump = over(*(late(lines, arm, "completions/mean_length", after_raise / 2 / chosen.cap_steps)
                  for arm in ("raised", "capped")))  # fmt: skip
    final, zero = at(lines, "final", "eval/pass@1"), at(lines, "zero", "eval/pass@1")
    distilled = at(lines, "distilled_eval", "eval/pass@1")
    criteria = [
        Criterion("R1-Zero: gain in accuracy", gained("zero", "eval/pass@1"), 0.3),
        Criterion("R1-Zero: length after / before", grown("zero", "eval/mean_length"), 1.5),
        Criterion("R1-Zero: rank correlation of accuracy and length", rank_correlation(accuracy, length), 0.5),
        Criterion("R1-Zero: share of responses that think", minus(1.0, thoughtless), 0.9),
        Criterion("R1-Zero: majority of the samples - pass@1", minus(at(lines, "zero", maj), zero), 0.01),
        Criterion("R1-Zero: re-checks after / before", grown("zero", "eval/thinking/rechecks"), 3.0),
        Criterion("R1-Zero: accuracy of re-checked - of single passes, at equal difficulty",
                  gain_of_rechecks(lines, "zero", levels), 0.01),
        Criterion("without thoughts in the base: gain in accuracy", gained("no_thoughts", "eval/pass@1"), 0.1, False),
        Criterion("without thoughts in the base: length after / before", grown("no_thoughts", "eval/mean_length"), 1.1,
                  False),
        Criterion("easy sums: length after / before", grown("easy", "eval/mean_length"), 0.9, False),
        Criterion("budget raised / not raised: length", jump, 1.1),
        Criterion("pipeline: format after the cold start", start("cold_rl", "eval/format"), 0.98),
        Criterion("pipeline: cold start - R1-Zero, accuracy", minus(start("cold_rl", "eval/pass@1"), zero), -0.001,
                  False),
        Criterion("pipeline: R1 - R1-Zero, accuracy", minus(final, zero), 0.001),
        Criterion("pipeline: R1 - R1-Zero, format", minus(at(lines, "final", "eval/format"),
                                                        at(lines, "zero", "eval/format")), 0.001),
        Criterion("pipeline: long - short cold start, accuracy after RL",
                  minus(at(lines, "cold_rl", "eval/pass@1"), at(lines, "short_rl", "eval/pass@1")), 0.01),
        Criterion("distillation - RL on the student, accuracy at equal sampled tokens",
                  minus(distilled, rl_at_equal_tokens(lines)), 0.01),
        Criterion("distillation: right - wrong traces, accuracy",
                  minus(distilled, at(lines, "distilled_wrong_eval", "eval/pass@1")), 0.01),
        Criterion("losses: length of wrong responses, Dr. GRPO - GRPO",
                  minus(*(late(lines, arm, "completions/mean_length_wrong") for arm in ("dr_grpo", "grpo"))), -0.1,
                  False),
        Criterion("losses: share of flat groups among those learnt from, DAPO - GRPO",
                  minus(*(late(lines, arm, "frac_learnt_zero_std", 1.0) for arm in ("dapo", "grpo"))), -0.01, False),
        Criterion("losses: entropy, DAPO (clip-higher) - GRPO",
                  minus(*(late(lines, arm, "entropy") for arm in ("dapo", "grpo"))), 0.001),
    ]  # fmt: skip
    if chosen.rl.task == "countdown":  # its searches have no re-checks
        criteria = [criterion for criterion in criteria if "re-check" not in criterion.name]
    return arms, criteria


# -------------------------------------------------------------------------------------------------------- figure


def draw(lines: list[dict], preset: str, path: Path) -> None:
    """Top: R1-Zero. Bottom: the budget, the pipeline, distillation, the losses. Thin lines are single seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    chosen = PRESETS[preset]
    seeds = sorted({line["seed"] for line in lines})
    figure, axes = plt.subplots(2, 4, figsize=(20, 9), layout="constrained")

    def line(axis, arm: str, key: str, label: str, color: str, **style) -> None:
        for seed in seeds if len(seeds) > 1 else []:
            one = curve(lines, arm, key, seed)
            axis.plot(one.keys(), one.values(), color=color, linewidth=0.5, alpha=0.35)
        average = curve(lines, arm, key)
        axis.plot(average.keys(), average.values(), color=color, label=label, **style)

    axis = axes[0][0]
    line(axis, "zero", "accuracy", "R1-Zero", "tab:blue")
    line(axis, "no_thoughts", "accuracy", "base without thoughts", "tab:gray")
    line(axis, "easy", "accuracy", "easy sums", "tab:green")
    axis.set(title="Accuracy of the rollouts", ylabel="share of right responses", ylim=(-0.03, 1.03))

    axis = axes[0][1]
    line(axis, "zero", "completions/mean_length", "R1-Zero", "tab:blue")
    line(axis, "no_thoughts", "completions/mean_length", "base without thoughts", "tab:gray")
    line(axis, "easy", "completions/mean_length", "easy sums", "tab:green")
    axis.set(title="Length of the rollouts", ylabel="tokens, tags included", ylim=(0, None))

    axis = axes[0][2]
    names = {"direct": "no thought", "steps": "one pass", "recheck": "re-checked", "search": "search"}
    colors = {"direct": "tab:red", "steps": "tab:orange", "recheck": "tab:purple", "search": "tab:purple"}
    for mode, name in names.items():
        if curve(lines, "zero", f"mode/{mode}"):
            line(axis, "zero", f"mode/{mode}", name, colors[mode])
    axis.set(title="How R1-Zero thinks", ylabel="share of its responses", ylim=(-0.03, 1.03))

    axis = axes[0][3]
    ks = [k for k in (1, 2, 4, 8, 16, 32, 64) if k <= chosen.rl.eval_samples]
    for name, first, color in (("base", True, "tab:gray"), ("R1-Zero", False, "tab:blue")):
        values = [at(lines, "zero", f"eval/pass@{k}", first) for k in ks]
        axis.plot(ks, values, color=color, marker="o", label=f"{name}: pass@k")
        axis.axhline(at(lines, "zero", f"eval/maj@{ks[-1]}", first), color=color, linestyle=":",
                     label=f"{name}: majority of {ks[-1]}")  # fmt: skip
    axis.set_xscale("log", base=2)
    axis.set(title="Held-out problems, before and after", xlabel="k", ylabel="accuracy", ylim=(-0.03, 1.03))

    axis = axes[1][0]
    line(axis, "raised", "completions/mean_length", f"raised to {chosen.rl.max_new_tokens}", "tab:blue")
    line(axis, "capped", "completions/mean_length", f"{chosen.cap} tokens throughout", "tab:gray")
    axis.axvline(chosen.cap_steps // 2 + 0.5, color="black", linestyle="--", linewidth=0.8)
    axis.set(title="The budget is raised halfway", ylabel="mean length of the rollouts", ylim=(0, None))

    axis = axes[1][1]
    table = {stage: [at(lines, arm, f"eval/{key}", first) for key in ("pass@1", "format", "mean_length")]
             for stage, (arm, first) in PIPELINE.items()}  # fmt: skip
    places = range(len(table))
    axis.bar([x - 0.2 for x in places], [values[0] or 0 for values in table.values()], 0.4, color="tab:blue",
             label="accuracy")  # fmt: skip
    axis.bar([x + 0.2 for x in places], [values[1] or 0 for values in table.values()], 0.4, color="tab:green",
             label="format")  # fmt: skip
    for x, values in zip(places, table.values(), strict=True):
        axis.text(x, 1.02, "" if values[2] is None else f"{values[2]:.0f}", ha="center", fontsize=8)
    axis.set_xticks(list(places), list(table), rotation=35, ha="right", fontsize=8)
    axis.set(title="The stages of R1 (numbers: mean length)", ylim=(0, 1.25))

    axis = axes[1][2]
    for seed in seeds:
        some = lines_of(lines, "student_rl", "eval/pass@1", seed)
        label = "RL on the student" if seed == 0 else None
        tokens = [line.get("num_tokens", 0) / 1000 for line in some]
        axis.plot(tokens, [line["eval/pass@1"] for line in some], "o-", color="tab:orange", markersize=3, label=label)
        spent = at(lines_of(lines, "distilled", "tokens", seed), "distilled", "tokens") / 1000
        for arm, color, label in (("distilled", "tab:blue", "distilled from R1"),
                                  ("distilled_wrong", "tab:gray", "from its wrong traces")):  # fmt: skip
            value = at([line for line in lines if line["seed"] == seed], f"{arm}_eval", "eval/pass@1")
            axis.plot([spent], [value], color=color, marker="*", markersize=12, linestyle="none",
                      label=label if seed == 0 else None)  # fmt: skip
    axis.set(title="Distillation against RL, on a small student", ylabel="accuracy (pass@1)", ylim=(-0.03, 1.03))

    axis = axes[1][3]
    for loss, color in zip(LOSSES, ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple"), strict=True):
        line(axis, loss, "accuracy", loss, color)
        entropy = curve(lines, loss, "entropy")
        axis.plot(entropy.keys(), entropy.values(), color=color, linestyle=":")
    axis.set(title=f"Five losses, {chosen.loss_updates} updates per rollout", ylim=(-0.03, 1.03))
    axis.set(ylabel="accuracy; dotted: entropy in nats")

    for axis in (*axes[0][:3], axes[1][0], axes[1][3]):
        axis.set(xlabel="step")
    axes[1][2].set(xlabel="sampled tokens in thousands")
    for axis in axes.flat:
        axis.legend(fontsize=8)
    digits = " and ".join(map(str, chosen.rl.digits))
    what = "Countdown" if chosen.rl.task == "countdown" else f"sums of {digits} digits"
    figure.suptitle(f"DeepSeek-R1 on {what}, preset {preset}: mean of {len(seeds)} seed(s), thin lines single seeds")
    figure.savefig(path, dpi=90)
    plt.close(figure)
