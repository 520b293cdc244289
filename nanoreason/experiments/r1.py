"""DeepSeek-R1 (2501.12948) in miniature: R1-Zero, the pipeline, distillation, on problems that may be thought about.

Countdown by attempts (attempts): a shipped base per seed (section `base`) that can try, judge and try again, but often
guesses or gives up. An attempt succeeds once in ten times whatever is learnt, so only more attempts help.
Sums (cpu, tiny): a base that guesses, works a sum out (with slips), or works it out again after "wait"; it learns
first all three in plenty, then a mixture in which thinking is rare. Reinforcement unlearns the slips, and with them the
reason to think. What a base can do and what it usually does are two things, and RL is to change the second. Then, all
by GRPO with rewards for accuracy and format:

    zero             R1-Zero: RL on the base; the figure that made it famous
    no_thoughts      control: the same on a base that was only ever, or last, shown direct answers
    easy             control: one-digit sums, which need no thought (sums alone)
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

from dataclasses import dataclass, replace

from nanoreason.experiments.figure import Line, Panel
from nanoreason.experiments.results import (
    LESS,
    Arm,
    Claim,
    PerSeed,
    Results,
    average,
    gain,
    growth,
    lead,
    rank_correlation,
    ratio,
)
from nanoreason.learn import ALGORITHMS, Algorithm
from nanoreason.recipes import grpo, select, sft
from nanoreason.rewards import Accuracy, Format, Overlong
from nanoreason.rollout import Task
from nanoreason.run import Schedule
from nanoreason.tasks import Attempts, ThinkingAddition, ThinkingCountdown
from nanoreason.tasks.attempts import BASE_MIXTURE, Mixture
from nanoreason.tasks.wrappers import Templated

LOSSES = ("grpo", "dr_grpo", "dapo", "gspo", "cispo")
PIPELINE = {  # stage -> (arm that measures it, before or after its steps)
    "base": ("zero", Results.first),
    "R1-Zero": ("zero", Results.last),
    "cold start": ("cold_rl", Results.first),
    "+ RL": ("cold_rl", Results.last),
    "rejection SFT": ("final", Results.first),
    "+ RL = R1": ("final", Results.last),
    "short cold start": ("short_rl", Results.first),
    "short + RL": ("short_rl", Results.last),
}


@dataclass(frozen=True)
class Modes:
    """What a task calls the ways of thinking that are compared, and where it counts how often a response retries."""

    none: str = "direct"  # no thought
    short: str = "steps"  # one pass: traces for the control of the cold start
    long: str = "recheck"  # several: traces for the cold start
    tries: str = "eval/thinking/rechecks"
    retries: str = "re-checks"  # what that is called
    several: str = "re-checked"  # and what those responses are


SUM_MODES = Modes()
ATTEMPT_MODES = Modes("guess", "one", "search", "eval/attempts", "attempts", "several attempts")
SEARCH_MODES = Modes("direct", "direct", "search", "eval/thinking/moves", "moves", "searches")


@dataclass(frozen=True)
class Preset:
    skills: sft.SftConfig  # the first phase of every base; with a shipped one: how the student is trained
    habits: dict  # the second: what differs from the first
    modes: tuple[tuple[float, ...], tuple[float, ...]]  # how often each way of thinking is shown in the two phases
    student: dict  # the student's shape: what differs from the base
    rl: grpo.GrpoConfig  # what all RL runs have in common
    easy: Task | None  # problems that need no thought
    zero_steps: int
    control_steps: int  # of no_thoughts and easy
    cap: int  # tokens: too few to re-check the longest sums
    cap_steps: int  # the budget is raised after half of them
    cold: tuple[select.SelectConfig, int]  # how traces are chosen for the cold start, optimizer steps on them
    rejection: tuple[select.SelectConfig, int]
    distilled: tuple[select.SelectConfig, int]
    pipeline_steps: tuple[int, int]  # of the first RL of the pipeline, and of the last
    student_steps: int  # of RL on the student
    loss_steps: int  # rollouts of each of the five losses
    loss_updates: int = 4  # updates per rollout there: with one, all clips are the same
    names: Modes = SUM_MODES
    shipped: int = 0  # so many bases lie in data/checkpoints, seeds share them in turn; 0: bases are trained here


# In minutes of training a model this small does not learn to stop if two passes agree and only then: it stops after
# the second as it likes. So that checking pays all the same, the passes behind "wait" are written with more care.
SUMS = ThinkingAddition(
    (1, 2, 3), shares=(0.1, 0.3, 0.6), error_prob=0.15, recheck_error_scale=0.1, max_passes=3, drop_tag_prob=0.15,
    direct_error_prob=0.5,
)  # fmt: skip
SKILLS = sft.SftConfig(
    task=Templated(SUMS), context=160, steps=2000, rows_per_step=32, lr=1.5e-3, warmup=50, micro_tokens=2048,
    eval_task=Templated(ThinkingAddition((1, 2, 3))), eval_problems=20,
)  # fmt: skip
# DIFFERS from the paper: R1 gives accuracy and format equal weight. Here most of the base's responses are in the
# format already; a small weight keeps what is left of it from drowning the verdict in short runs.
# R1's own equation has no 1/|o|. With it, a right single pass is strengthened twice as much per token as a right
# re-check, which is twice as long, and re-checks fall again after step 20; the five losses below show the difference.
RL = grpo.GrpoConfig(
    task=Templated(ThinkingAddition((2, 3))), rewards=(Accuracy(), Format(0.2)), prompts=8,
    algorithm=Algorithm(average="constant"), max_new_tokens=Schedule(112), lr=3e-4, warmup=3, preflight=16,
    save_every=20, eval_every=0, eval_problems=32, eval_samples=16,
)  # fmt: skip
TRACES = select.SelectConfig(task=RL.task)
TINY_TRACES = select.PRESETS["tiny"]
TINY_SUMS = ThinkingAddition((1,), error_prob=0.0)
COUNTDOWN = Templated(ThinkingCountdown(direct=0.3))
RL_ATTEMPTS = replace(
    RL, task=Attempts(), rewards=(Accuracy(), Format(0.1)), prompts=16, max_new_tokens=Schedule(256), warmup=2,
    # not tied to the budget, so that a smaller budget is no larger step
    algorithm=replace(ALGORITHMS["dr_grpo"], length_constant=256), eval_problems=100, eval_samples=8,
)  # fmt: skip
ATTEMPT_TRACES = select.SelectConfig(task=Attempts(), max_new_tokens=256)
GPU_TRACES = select.SelectConfig(task=COUNTDOWN, max_new_tokens=512)
PRESETS = {
    "cpu": Preset(
        skills=SKILLS, habits=dict(steps=150, rows_per_step=64, lr=5e-4, warmup=10),
        modes=((0.2, 0.4, 0.4), (0.66, 0.26, 0.08)), student=dict(width=48, layers=2), rl=RL,
        easy=Templated(ThinkingAddition((1,))), zero_steps=120, control_steps=30, cap=50, cap_steps=60,
        cold=(replace(TRACES, problems=300, how="first", choose=300), 60), rejection=(TRACES, 150),
        distilled=(replace(TRACES, problems=500), 250), pipeline_steps=(50, 40), student_steps=60, loss_steps=20,
    ),
    "attempts": Preset(
        skills=replace(sft.PRESETS["attempts"], steps=600, eval_every=0), habits={}, modes=((), ()),
        student=dict(width=48, layers=2), rl=RL_ATTEMPTS, easy=None, zero_steps=60, control_steps=20, cap=96,
        cap_steps=40, cold=(replace(ATTEMPT_TRACES, problems=300, how="first", choose=300), 60),
        rejection=(ATTEMPT_TRACES, 100), distilled=(replace(ATTEMPT_TRACES, problems=500), 200),
        pipeline_steps=(20, 20), student_steps=30, loss_steps=10, names=ATTEMPT_MODES, shipped=4,
    ),
    "tiny": Preset(
        skills=replace(
            SKILLS, width=32, layers=2, heads=2, kv_heads=1, context=112, task=Templated(TINY_SUMS), steps=150, lr=1e-2,
            warmup=20, eval_task=None, eval_problems=4,
        ),
        habits=dict(steps=2, lr=1e-3, warmup=1), modes=((0.3, 0.3, 0.4), (0.66, 0.26, 0.08)),
        student=dict(width=16, layers=1),
        rl=replace(
            RL, task=Templated(ThinkingAddition((1,))), prompts=4, group_size=4, max_new_tokens=Schedule(48),
            preflight=0, eval_problems=4, eval_samples=4, warmup=1,
        ),
        easy=Templated(ThinkingAddition((1,))), zero_steps=3, control_steps=2, cap=20, cap_steps=4,
        cold=(replace(TINY_TRACES, problems=60), 4), rejection=(TINY_TRACES, 4),
        distilled=(replace(TINY_TRACES, problems=40), 4), pipeline_steps=(2, 2), student_steps=2, loss_steps=2,
        loss_updates=2,
    ),
    "gpu": Preset(
        skills=replace(SKILLS, task=COUNTDOWN, width=256, layers=6, heads=8, kv_heads=4, context=640, steps=4000,
                       lr=1e-3, rows_per_step=128, micro_tokens=32768, eval_task=None),
        habits=dict(steps=300, rows_per_step=64, lr=3e-4, warmup=10), modes=((0.3, 0.7), (0.8, 0.2)),
        student=dict(width=128, layers=3),
        rl=replace(RL, task=COUNTDOWN, prompts=32, max_new_tokens=Schedule(512), micro_tokens=65536, eval_problems=250,
                   lr=1e-4),
        easy=COUNTDOWN, zero_steps=200, control_steps=80, cap=128, cap_steps=160,
        cold=(replace(GPU_TRACES, problems=1000, how="first", choose=500), 100),
        rejection=(replace(GPU_TRACES, problems=4000), 1000),
        distilled=(replace(GPU_TRACES, problems=8000), 2000), pipeline_steps=(100, 80), student_steps=200,
        loss_steps=60, names=SEARCH_MODES,
    ),
}  # fmt: skip


def shown(task: Templated, shares: tuple[float, ...]) -> Templated:
    """The task whose solutions take each mode so often."""
    inner = task.task
    if isinstance(inner, ThinkingCountdown):
        return replace(task, task=replace(inner, direct=shares[0] / sum(shares)))
    return replace(task, task=replace(inner, modes=shares))


def arms(preset: str, seed: int) -> list[Arm]:
    """Bases in two phases; RL on them; cold starts from R1-Zero; so on down the pipeline; distillation from its end."""
    chosen = PRESETS[preset]
    first_phase, second_phase = chosen.modes
    task = chosen.skills.task

    def skills(arm: str, shares=first_phase, **settings) -> Arm:
        return Arm(arm, "sft", replace(chosen.skills, task=shown(task, shares), **settings))

    def habits(arm: str, base: str, **settings) -> Arm:
        settings = chosen.habits | settings
        return Arm(arm, "sft", replace(chosen.skills, task=shown(task, second_phase), **settings), base)

    def rl(arm: str, base: str, steps: int, **settings) -> Arm:
        settings = {"eval_every": max(1, steps // 6)} | settings if arm in ("zero", "student_rl") else settings
        return Arm(arm, "grpo", replace(chosen.rl, steps=steps, **settings), base)

    def from_traces(arm: str, how: tuple[select.SelectConfig, int], teacher: str, base: str, **settings) -> list[Arm]:
        config, steps = how
        tune = sft.SftConfig(steps=steps, lr=1e-3, warmup=10, rows_per_step=32, micro_tokens=2048, decay="cosine")
        return [
            Arm(f"{arm}_data", "select", replace(config, **settings), inputs={"teacher": f"{teacher}/policy"}),
            Arm(arm, "sft", tune, base, inputs={"data": f"{arm}_data/demonstrations.jsonl"}),
        ]

    def shipped() -> list[Arm]:
        """A shipped base as it is, and after it was shown guesses alone; a student of its own."""
        folder = f"data/checkpoints/attempts-{seed % chosen.shipped}"
        as_it_is = sft.SftConfig(base=folder, task=chosen.rl.task, steps=0, eval_problems=0)
        guesses = Attempts(shares=Mixture.parse("guess:1"))
        return [
            Arm("base", "sft", as_it_is),
            Arm("direct", "sft", replace(as_it_is, task=guesses, steps=60, lr=1e-3)),
            Arm("student", "sft", replace(chosen.skills, task=Attempts(shares=BASE_MIXTURE), **chosen.student)),
        ]

    def trained() -> list[Arm]:
        return [
            skills("skills"),
            skills("student_skills", **chosen.student),
            skills("direct", (1.0,) + (0.0,) * (len(first_phase) - 1), steps=chosen.skills.steps // 2),
            habits("base", "skills"),
            habits("student", "student_skills"),
        ]

    cap = dict(eval_samples=0)
    raised = Schedule(chosen.cap, ((chosen.cap_steps // 2 + 1, chosen.rl.max_new_tokens.first),))
    first, last = chosen.pipeline_steps
    return [
        *(shipped() if chosen.shipped else trained()),
        rl("zero", "base", chosen.zero_steps),
        rl("no_thoughts", "direct", chosen.control_steps, preflight=0),
        *([rl("easy", "base", chosen.control_steps, preflight=0, task=chosen.easy)] if chosen.easy else []),
        rl("capped", "base", chosen.cap_steps, max_new_tokens=Schedule(chosen.cap), **cap),
        rl("raised", "base", chosen.cap_steps, max_new_tokens=raised, **cap),
        rl("student_rl", "student", chosen.student_steps, preflight=0),
        # one update per rollout makes all clips equal; dynamic sampling and the rest are the algorithm's own
        *(rl(loss, "base", chosen.loss_steps, algorithm=ALGORITHMS[loss], eval_samples=0,
             updates_per_rollout=chosen.loss_updates,
             rewards=chosen.rl.rewards + ((Overlong(),) if loss == "dapo" else ())) for loss in LOSSES),
        *from_traces("cold", chosen.cold, "zero", "base", modes=(chosen.names.long,)),
        *from_traces("short", chosen.cold, "zero", "base", modes=(chosen.names.short,)),
        rl("cold_rl", "cold", first, preflight=0),
        rl("short_rl", "short", first, preflight=0),
        *from_traces("rejection", chosen.rejection, "cold_rl", "base"),
        rl("final", "rejection", last, preflight=0),
        *from_traces("distilled", chosen.distilled, "final", "student"),
        *from_traces("distilled_wrong", chosen.distilled, "final", "student", keep="wrong"),
        rl("distilled_eval", "distilled", 0, preflight=0),
        rl("distilled_wrong_eval", "distilled_wrong", 0, preflight=0),
    ]  # fmt: skip


# -------------------------------------------------------------------------------------------------------- claims

ACC, FORMAT, LENGTH = "eval/pass@1", "eval/format", "eval/mean_length"
ROLLOUT = "completions/mean_length"  # tokens, tags included


def length_follows_accuracy(r: Results) -> PerSeed:
    """The rank correlation of accuracy and length over the rollouts of R1-Zero."""
    curves = {s: [list(r.curve("zero", key, s).values()) for key in ("accuracy", ROLLOUT)] for s in r.seeds}
    return r.per_seed(lambda seed: rank_correlation(*curves[seed]))


def gain_of_retries(r: Results, arm: str, names: Modes, levels: tuple[int, ...]) -> PerSeed:
    """P(right | several passes) - P(right | one) at equal difficulty: per level, then the mean."""
    return average(
        r.last(arm, f"eval/accuracy/{names.long}/{n}") - r.last(arm, f"eval/accuracy/{names.short}/{n}") for n in levels
    )


def teacher_of(r: Results) -> str:
    """The arm that counts the tokens which were sampled for the student; it was one with the fine-tuning once."""
    return "distilled_data" if "distilled_data" in r.arms else "distilled"


def rl_at_equal_tokens(r: Results) -> PerSeed:
    """pass@1 of student_rl at its first measurement with as many sampled tokens as the teacher's; else its last."""

    def of(seed: int) -> float | None:
        spent = sum(tokens for _, tokens in r.lines(teacher_of(r), "tokens", seed))
        measured = r.lines("student_rl", ACC, seed)
        enough = [value for line, value in measured if line.get("num_tokens", 0) >= spent]
        return (enough or [value for _, value in measured[-1:]] or [None])[0]

    return r.per_seed(of)


def claims(preset: str) -> list[Claim]:
    chosen, first, last = PRESETS[preset], Results.first, Results.last
    rl, names = chosen.rl, chosen.names
    found = [
        Claim("R1-Zero: gain in accuracy", gain("zero", ACC), 0.3),
        Claim("R1-Zero: length after / before", growth("zero", LENGTH), 1.5, no_effect=1),
        Claim("R1-Zero: rank correlation of accuracy and length over the training", length_follows_accuracy, 0.5),
        Claim("R1-Zero: gain in the share of responses without thought", gain("zero", f"eval/mode/{names.none}"),
              -0.15 if chosen.shipped else -0.3, LESS),
        Claim("R1-Zero: majority of the samples - pass@1",
              lambda r: r.last("zero", f"eval/maj@{rl.eval_samples}") - r.last("zero", ACC), 0.03),
        Claim("without thoughts in the base: gain in accuracy", gain("no_thoughts", ACC), 0.1, LESS),
        Claim("without thoughts in the base: length after / before", growth("no_thoughts", LENGTH), 1.1, LESS, 1),
        *([Claim("easy sums: length after / before", growth("easy", LENGTH), 0.9, LESS, 1)] if chosen.easy else []),
        Claim("budget raised halfway / not raised: late length", ratio("raised", "capped", ROLLOUT), 1.1, no_effect=1),
        # responses of a shipped base are in the format already
        Claim("pipeline: cold start - base, accuracy", lead("cold_rl", "zero", ACC, first), 0.1) if chosen.shipped else
        Claim("pipeline: cold start - base, format", lead("cold_rl", "zero", FORMAT, first), 0.05),
        Claim("pipeline: cold start - R1-Zero, accuracy", lead("cold_rl", "zero", ACC, first, last), -0.03, LESS),
        Claim("pipeline: R1 - R1-Zero, accuracy", lead("final", "zero", ACC), 0.03),
        Claim("pipeline: long - short cold start, accuracy after RL", lead("cold_rl", "short_rl", ACC), 0.03),
        Claim("distillation - RL on the student, accuracy at equal sampled tokens",
              lambda r: r.last("distilled_eval", ACC) - rl_at_equal_tokens(r), 0.1),
        Claim("distillation: right - wrong traces, accuracy", lead("distilled_eval", "distilled_wrong_eval", ACC), 0.1),
        Claim("losses: late length of wrong responses, Dr. GRPO / GRPO", ratio("dr_grpo", "grpo", f"{ROLLOUT}_wrong"),
              0.95, LESS, 1),
        Claim("losses: share of zero-variance groups among those learnt from, DAPO - GRPO",
              lead("dapo", "grpo", "frac_learnt_zero_std", Results.mean), -0.05, LESS),
        Claim("losses: late entropy, DAPO (clip-higher) / GRPO", ratio("dapo", "grpo", "entropy"), 1.1, no_effect=1),
    ]  # fmt: skip
    if names is not SEARCH_MODES:  # those searches have no re-checks
        levels = (rl.task.inputs,) if chosen.shipped else rl.task.task.digits
        found += [
            Claim(f"R1-Zero: {names.retries} after / before", growth("zero", names.tries), 1.5 if chosen.shipped else
                  2.0, no_effect=1),
            Claim(f"R1-Zero: accuracy of {names.several} - of single passes, at equal difficulty",
                  lambda r: gain_of_retries(r, "zero", names, levels), 0.03),
        ]  # fmt: skip
    return found


def extra(results: Results, preset: str) -> dict:
    """What each arm came to, and R1's table of stages, every seed."""
    chosen = PRESETS[preset]
    modes, k = chosen.names, chosen.rl.eval_samples
    names = {"accuracy": ACC, "format": FORMAT, "length": LENGTH, modes.retries: modes.tries}
    names |= {"sampled tokens": "num_tokens", f"pass@{k}": f"eval/pass@{k}"}
    names |= {f"mode/{mode}": f"eval/mode/{mode}" for mode in (modes.none, modes.short, modes.long)}
    stages = {
        stage: {name: at(results, arm, key).rounded() for name, key in list(names.items())[:3]}
        for stage, (arm, at) in PIPELINE.items()
    }
    before = results.first("zero", f"eval/pass@{k}").rounded()
    equal = {f"pass@{k} of the base": before, "student RL at equal tokens": rl_at_equal_tokens(results).rounded()}
    return results.table(names) | {"pipeline": stages} | equal


# -------------------------------------------------------------------------------------------------------- figure


def pass_at(r: Results, line: Line, key: str, seed: int | None) -> list[tuple[float, float]]:
    """(k, pass@k) of zero before or after its training."""
    at, values = line.where["at"], {}
    for k in (1, 2, 4, 8, 16, 32, 64):
        values[k] = at(r, "zero", f"{key}@{k}")
    return [(k, v.mean if seed is None else v[seed]) for k, v in values.items() if v]


def spent(r: Results, line: Line, key: str, seed: int | None) -> list[tuple[float, float]]:
    """(tokens sampled so far, a metric), nothing being spent before the first step."""
    tokens = r.curve(line.arm, "num_tokens", seed)
    return [(tokens.get(step, 0), value) for step, value in r.curve(line.arm, key, seed).items()]


def panels(preset: str) -> list[Panel]:
    """Top: R1-Zero. Bottom: the budget, the pipeline, distillation, the losses."""
    chosen, base, share = PRESETS[preset], "tab:gray", {"ylim": (-0.03, 1.03)}
    zero = [Line("zero", "R1-Zero"), Line("no_thoughts", "base without thoughts", base)]
    zero += [Line("easy", "easy sums")] if chosen.easy else []
    modes = chosen.names
    names = {modes.none: "no thought", modes.short: "one pass", modes.long: "several passes"}
    before_after = [Line("zero", "R1-Zero, pass@k", where={"at": Results.last}),
                    Line("zero", "base, pass@k", base, {"at": Results.first})]  # fmt: skip

    def majority(axis, r: Results) -> None:
        for line, color in zip(before_after, ("C0", base), strict=True):
            value = line.where["at"](r, "zero", f"eval/maj@{chosen.rl.eval_samples}")
            name = f"{line.label.split(',')[0]}, majority of {chosen.rl.eval_samples}"
            axis.axhline(value.mean, color=color, linestyle=":", label=name)

    def lengths(axis, r: Results) -> None:
        for i, (arm, at) in enumerate(PIPELINE.values()):
            axis.text(i, 1.03, f"{at(r, arm, LENGTH).mean or 0:.0f}", ha="center", fontsize=8)

    def distilled(axis, r: Results) -> None:
        for arm, color, label in (("", "C0", "distilled from R1"), ("_wrong", base, "from its wrong traces")):
            tokens, value = r.last(teacher_of(r), "tokens"), r.last(f"distilled{arm}_eval", ACC)
            axis.plot([tokens[s] for s in value], list(value.values()), "*", color=color, markersize=11, label=label)

    return [
        Panel("Accuracy of the rollouts", zero, "accuracy", ylabel="share of right responses", **share),
        Panel("Length of the rollouts", zero, ROLLOUT, ylabel="tokens, tags included", ylim=(0, None)),
        Panel("How R1-Zero thinks", [Line("zero", names[mode], y=f"mode/{mode}") for mode in names],
              ylabel="share of its responses", **share),
        Panel("Held-out problems, before and after", before_after, "eval/pass", points=pass_at, also=majority,
              xlabel="k", ylabel="accuracy", xscale="log", marker="o", **share),
        Panel(f"A budget raised at step {chosen.cap_steps // 2 + 1}",
              [Line("raised", f"from {chosen.cap} to {chosen.rl.max_new_tokens.first} tokens"),
               Line("capped", f"{chosen.cap} tokens throughout", base)],
              ROLLOUT, ylabel="mean length of the rollouts, tokens", ylim=(0, None)),
        Panel("The stages of R1 (numbers: mean length in tokens)", [Line(name, name, "C0") for name in PIPELINE],
              {"accuracy": ACC, "format": FORMAT}, kind="bar", also=lengths, ylim=(0, 1.12),
              bars=lambda r, line, key: PIPELINE[line.arm][1](r, PIPELINE[line.arm][0], key)),
        Panel("Distillation against RL, on a small student", [Line("student_rl", "RL on the student", "C1")], ACC,
              points=spent, also=distilled, xlabel="sampled tokens", ylabel="accuracy", marker="o", **share),
        Panel(f"Five losses, {chosen.loss_updates} updates per rollout", [Line(loss, loss) for loss in LOSSES],
              {"accuracy of rollouts": "accuracy", "entropy in nats": "entropy"}, **share),
    ]  # fmt: skip


def caption(preset: str) -> str:
    rl = PRESETS[preset].rl
    what = "Countdown by attempts" if PRESETS[preset].shipped else "Countdown"
    if isinstance(getattr(rl.task, "task", None), ThinkingAddition):
        what = f"sums of {' and '.join(map(str, rl.task.task.digits))} digits"
    return f"DeepSeek-R1 on {what} that may be thought about, preset {preset}: sampled at temperature 1."
