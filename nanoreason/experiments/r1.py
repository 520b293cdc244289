"""DeepSeek-R1 (2501.12948) in miniature: R1-Zero, the pipeline, distillation, on problems that may be thought about.

Countdown by attempts (`tasks/attempts.py`), from a base that can try, judge and try again, but often guesses or gives
up (section `base`). What it can do and what it usually does are two things, and RL is to change the second. All by GRPO
with rewards for accuracy and format:

    zero             R1-Zero: RL on the base; the figure that made it famous
    no_thoughts      control: the same on the base after it was shown guesses alone
    easy             control: only problems that a random attempt often solves
    capped, raised   RL under a budget of tokens that is too small; in `raised` it grows halfway
    cold             cold start: the base fine-tuned on a few hundred right traces of zero, of several attempts each
    cold_rl          RL on that
    rejection        right traces of cold_rl, and the base (not cold_rl) fine-tuned on them
    final            RL on that: the end of R1's pipeline
    short, short_rl  control: cold start and RL with traces of a single attempt
    student_rl       RL on a small base that has never tried twice; distilled: it, fine-tuned on right traces of final
    distilled_wrong  control: on its wrong traces
    grpo ... cispo   five losses from the same base on the same problems, several updates per rollout

`student`, `cold` and the like are bases; what they are worth is measured by GRPO runs, before their first step.

The preset sums is R1-Zero alone, where it rises and falls: sums that may be worked out, with slips, and again after
"wait". Reinforcement unlearns the slips, and with them the reason to think.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from nanoreason.experiments.base import shared
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
from nanoreason.experiments.traces import before_and_after, draw_attempts
from nanoreason.learn import ALGORITHMS, Algorithm
from nanoreason.recipes import grpo, select, sft
from nanoreason.rewards import Accuracy, Format, Overlong
from nanoreason.run import Schedule
from nanoreason.tasks import Attempts, ThinkingAddition
from nanoreason.tasks.attempts import Mixture
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

    none: str = "guess"  # no thought
    short: str = "one"  # one pass: traces for the control of the cold start
    long: str = "search"  # several: traces for the cold start
    tries: str = "eval/attempts"
    retries: str = "attempts"  # what that is called


@dataclass(frozen=True)
class Rest:
    """What comes beside R1-Zero."""

    control_steps: int  # of no_thoughts and easy
    easy: Attempts  # problems that need little thought
    cap: int  # tokens: too few for most of what there is to try
    cap_steps: int  # the budget is raised after half of them
    cold: tuple[select.SelectConfig, int]  # how traces are chosen for the cold start, optimizer steps on them
    rejection: tuple[select.SelectConfig, int]
    distilled: tuple[select.SelectConfig, int]
    pipeline_steps: tuple[int, int]  # of the first RL of the pipeline, and of the last
    student: sft.SftConfig  # how the small base is trained
    student_steps: int  # of RL on it
    loss_steps: int  # rollouts of each of the five losses
    loss_updates: int = 4  # updates per rollout there: with one, all clips are the same


@dataclass(frozen=True)
class Preset:
    rl: grpo.GrpoConfig  # what all RL runs have in common
    zero_steps: int
    zero_samples: int  # per held-out problem when R1-Zero is tested: before, after, and in between
    zero_tests: int  # how often it is tested, but for the start
    rise: int  # steps in which accuracy and length are expected to rise
    rest: Rest | None = None
    names: Modes = Modes()
    phases: tuple[sft.SftConfig, ...] = ()  # of a base that is trained here; (): the one that sections share


# DIFFERS from the paper: R1 gives accuracy and format equal weight. Here most of the base's responses are in the
# format already; a small weight keeps what is left of it from drowning the verdict in short runs.
RL = grpo.GrpoConfig(
    task=Attempts(), rewards=(Accuracy(), Format(0.1)), max_new_tokens=Schedule(256), lr=3e-4, warmup=2,
    # R1's own equation has no 1/|o|, and no division by the deviation here; not tied to the budget, so that a smaller
    # budget is no larger step
    algorithm=replace(ALGORITHMS["dr_grpo"], length_constant=256), preflight=16, save_every=20, eval_every=0,
    eval_problems=232, eval_samples=4,
)  # fmt: skip
TRACES = select.SelectConfig(task=Attempts(), max_new_tokens=256)
EASY = Attempts(chance=(0.14, 1.0))  # a quarter of the problems: two to nine of some 19 attempts are right
# It can calculate, judge attempts that are given, and make one of its own; it has never judged one of its own or tried
# again. A student that has learnt no verdicts (width 48, 600 steps of the base's corpus) cannot use what it is taught.
STUDENT = Mixture.parse("blind:.4,guess:.15,compare:.13,mark:.32")
CPU = Rest(
    control_steps=20, easy=EASY, cap=96, cap_steps=40,
    cold=(replace(TRACES, problems=300, how="first", choose=300), 60), rejection=(TRACES, 100),
    distilled=(replace(TRACES, problems=500), 200), pipeline_steps=(20, 20),
    student=replace(sft.PRESETS["attempts"], task=Attempts(shares=STUDENT), steps=1000, eval_every=0, width=64,
                    layers=2),
    student_steps=30, loss_steps=10,
)  # fmt: skip
TINY_TRACES = replace(TRACES, problems=24, samples=2, max_new_tokens=128)
TINY = replace(
    RL, prompts=2, group_size=4, max_new_tokens=Schedule(64), preflight=0, eval_problems=4, eval_samples=2, warmup=1
)
GPU_TRACES = replace(TRACES, problems=4000, max_new_tokens=384)

# In minutes of training a model this small does not learn to stop if two passes agree and only then: it stops after
# the second as it likes. So that checking pays all the same, the passes behind "wait" are written with more care.
SUMS = sft.SftConfig(
    task=Templated(ThinkingAddition(
        (1, 2, 3), shares=(0.1, 0.3, 0.6), error_prob=0.15, recheck_error_scale=0.1, max_passes=3, drop_tag_prob=0.15,
        direct_error_prob=0.5, modes=(0.2, 0.4, 0.4),
    )),
    context=160, steps=2000, rows_per_step=32, lr=1.5e-3, warmup=50, micro_tokens=2048,
    eval_task=Templated(ThinkingAddition((1, 2, 3))), eval_problems=20,
)  # fmt: skip
RARELY = replace(SUMS.task, task=replace(SUMS.task.task, modes=(0.66, 0.26, 0.08)))  # all three are known; now habits

PRESETS = {
    "cpu": Preset(RL, zero_steps=40, zero_samples=16, zero_tests=2, rise=20, rest=CPU),
    "demo": Preset(replace(RL, eval_problems=100, preflight=0), zero_steps=20, zero_samples=4, zero_tests=1, rise=20),
    "sums": Preset(
        replace(RL, task=Templated(ThinkingAddition((2, 3))), rewards=(Accuracy(), Format(0.2)), prompts=8, warmup=3,
                max_new_tokens=Schedule(112), algorithm=Algorithm(average="constant"), eval_problems=32,
                eval_samples=16),
        zero_steps=120, zero_samples=16, zero_tests=6, rise=120,
        names=Modes("direct", "steps", "recheck", "eval/thinking/rechecks", "re-checks"),
        phases=(SUMS, replace(SUMS, task=RARELY, steps=150, rows_per_step=64, lr=5e-4, warmup=10)),
    ),
    "tiny": Preset(
        TINY, zero_steps=4, zero_samples=2, zero_tests=2, rise=4,
        rest=replace(
            CPU, control_steps=1, cap=40, cap_steps=2, cold=(replace(TINY_TRACES, how="first", choose=12), 2),
            rejection=(TINY_TRACES, 2), distilled=(TINY_TRACES, 2), pipeline_steps=(1, 1),
            student=replace(CPU.student, steps=4, rows_per_step=8, width=16, heads=2, kv_heads=1, layers=1, warmup=1),
            student_steps=2, loss_steps=1, loss_updates=2,
        ),
    ),
    "gpu": Preset(
        replace(RL, prompts=64, lr=1e-4, max_new_tokens=Schedule(384), micro_tokens=65536),
        zero_steps=150, zero_samples=64, zero_tests=3, rise=60,
        rest=replace(
            CPU, control_steps=60, cap_steps=80,
            cold=(replace(GPU_TRACES, problems=1000, how="first", choose=500), 100),
            rejection=(GPU_TRACES, 500), distilled=(replace(GPU_TRACES, problems=8000), 1000), pipeline_steps=(60, 60),
            student=replace(CPU.student, width=96, layers=3, rows_per_step=256, micro_tokens=65536, steps=1600),
            student_steps=100, loss_steps=40,
        ),
    ),
}  # fmt: skip


def arms(preset: str, seed: int) -> list[Arm]:
    """The base; RL on it; cold starts from R1-Zero; so on down the pipeline; distillation from its end."""
    chosen = PRESETS[preset]
    rest = chosen.rest

    def rl(arm: str, base: str, steps: int, **settings) -> Arm:
        return Arm(arm, "grpo", replace(chosen.rl, steps=steps, **settings), base)

    def from_traces(arm: str, how: tuple[select.SelectConfig, int], teacher: str, base: str, **settings) -> list[Arm]:
        config, steps = how
        tune = sft.SftConfig(steps=steps, lr=1e-3, warmup=10, rows_per_step=32, micro_tokens=2048, decay="cosine")
        return [
            Arm(f"{arm}_data", "select", replace(config, **settings), inputs={"teacher": f"{teacher}/policy"}),
            Arm(arm, "sft", tune, base, inputs={"data": f"{arm}_data/demonstrations.jsonl"}),
        ]

    names = [*(f"phase{i}" for i in range(1, len(chosen.phases))), "base"]
    phases = [Arm(name, "sft", config, before)
              for name, config, before in zip(names, chosen.phases, ["", *names], strict=False)]  # fmt: skip
    found = phases or [shared(preset, seed)]
    found.append(rl("zero", "base", chosen.zero_steps, eval_samples=chosen.zero_samples,
                    eval_every=chosen.zero_steps // chosen.zero_tests))  # fmt: skip
    if rest is None:
        return found
    guesses = sft.SftConfig(task=Attempts(shares=Mixture.parse("guess:1")), steps=60, lr=1e-3, eval_problems=0)
    no_samples = dict(eval_samples=0)
    raised = Schedule(rest.cap, ((rest.cap_steps // 2 + 1, chosen.rl.max_new_tokens.first),))
    first, last = rest.pipeline_steps
    return [
        *found,
        Arm("direct", "sft", guesses, "base"),
        Arm("student", "sft", rest.student),
        rl("no_thoughts", "direct", rest.control_steps, preflight=0),
        rl("easy", "base", rest.control_steps, preflight=0, task=rest.easy),
        rl("capped", "base", rest.cap_steps, max_new_tokens=Schedule(rest.cap), **no_samples),
        rl("raised", "base", rest.cap_steps, max_new_tokens=raised, **no_samples),
        rl("student_rl", "student", rest.student_steps, preflight=0, eval_every=max(1, rest.student_steps // 5)),
        # one update per rollout makes all clips equal; dynamic sampling and the rest are the algorithm's own
        *(rl(loss, "base", rest.loss_steps, algorithm=ALGORITHMS[loss], updates_per_rollout=rest.loss_updates,
             rewards=chosen.rl.rewards + ((Overlong(),) if loss == "dapo" else ()), **no_samples) for loss in LOSSES),
        *from_traces("cold", rest.cold, "zero", "base", modes=(chosen.names.long,)),
        *from_traces("short", rest.cold, "zero", "base", modes=(chosen.names.short,)),
        rl("cold_rl", "cold", first, preflight=0),
        rl("short_rl", "short", first, preflight=0),
        *from_traces("rejection", rest.rejection, "cold_rl", "base"),
        rl("final", "rejection", last, preflight=0),
        *from_traces("distilled", rest.distilled, "final", "student"),
        *from_traces("distilled_wrong", rest.distilled, "final", "student", keep="wrong"),
        rl("distilled_eval", "distilled", 0, preflight=0),
        rl("distilled_wrong_eval", "distilled_wrong", 0, preflight=0),
    ]  # fmt: skip


# -------------------------------------------------------------------------------------------------------- claims

ACC, FORMAT, LENGTH = "eval/pass@1", "eval/format", "eval/mean_length"
ROLLOUT, CUT = "completions/mean_length", "completions/clipped_ratio"  # tokens, tags included; share at the budget


def length_follows_accuracy(preset: str):
    """The rank correlation of accuracy and length over the rollouts of R1-Zero, while they are expected to rise."""

    def of(r: Results) -> PerSeed:
        keys, where = ("accuracy", ROLLOUT), {"step": lambda step: step <= PRESETS[preset].rise}
        curves = {s: [[value for _, value in r.lines("zero", key, s, **where)] for key in keys] for s in r.seeds}
        return r.per_seed(lambda seed: rank_correlation(*curves[seed]))

    return of


def gain_of_retries(r: Results, arm: str, names: Modes, levels: tuple[int, ...]) -> PerSeed:
    """P(right | several passes) - P(right | one) at equal difficulty: per level, then the mean."""
    return average(
        r.last(arm, f"eval/accuracy/{names.long}/{n}") - r.last(arm, f"eval/accuracy/{names.short}/{n}") for n in levels
    )


def rl_at_equal_tokens(r: Results) -> PerSeed:
    """pass@1 of student_rl at its first measurement with as many sampled tokens as the teacher's; else its last."""

    def of(seed: int) -> float | None:
        spent = sum(tokens for _, tokens in r.lines("distilled_data", "tokens", seed))
        measured = r.lines("student_rl", ACC, seed)
        enough = [value for line, value in measured if line.get("num_tokens", 0) >= spent]
        return (enough or [value for _, value in measured[-1:]] or [None])[0]

    return r.per_seed(of)


def claims(preset: str) -> list[Claim]:
    chosen, first, last = PRESETS[preset], Results.first, Results.last
    names, on_sums = chosen.names, preset == "sums"
    levels = chosen.rl.task.task.digits if on_sums else (chosen.rl.task.inputs,)
    found = [
        Claim("R1-Zero: gain in accuracy", gain("zero", ACC), 0.25),
        Claim("R1-Zero: length after / before", growth("zero", LENGTH), 1.5, no_effect=1),
        Claim(f"R1-Zero: rank correlation of accuracy and length over {chosen.rise} steps",
              length_follows_accuracy(preset), 0.5),
        Claim("R1-Zero: gain in the share of responses without thought", gain("zero", f"eval/mode/{names.none}"), -0.15,
              LESS),
        Claim(f"R1-Zero: {names.retries} after / before", growth("zero", names.tries), 1.5, no_effect=1),
        Claim("R1-Zero: accuracy of several passes - of single ones, at equal difficulty",
              lambda r: gain_of_retries(r, "zero", names, levels), 0.1),
        Claim("R1-Zero: majority of the samples - pass@1",
              lambda r: r.last("zero", f"eval/maj@{chosen.zero_samples}") - r.last("zero", ACC), 0.03),
    ]  # fmt: skip
    if preset == "demo":  # without the two that the cpu preset has shown not to hold in this world: docs/r1.md says why
        return [claim for claim in found if "rank correlation" not in claim.name and "single ones" not in claim.name]
    if chosen.rest is None:
        return found
    return found + [
        Claim("without thoughts in the base: gain in accuracy", gain("no_thoughts", ACC), 0.1, LESS),
        Claim("without thoughts in the base: length after / before", growth("no_thoughts", LENGTH), 1.1, LESS, 1),
        Claim("easy problems: their length after / before, over that of all problems",
              lambda r: growth("easy", LENGTH)(r) / growth("zero", LENGTH)(r), 0.9, LESS, 1),
        Claim("small budget: rollouts that are cut by it, late", lambda r: r.late("capped", CUT), 0.1),
        Claim("budget raised halfway / not raised: late length", ratio("raised", "capped", ROLLOUT), 1.1, no_effect=1),
        Claim("budget raised halfway - not raised: late accuracy", lead("raised", "capped", "accuracy", Results.late),
              0.05),
        Claim("pipeline: cold start - base, accuracy", lead("cold_rl", "zero", ACC, first), 0.1),
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


def extra(results: Results, preset: str) -> dict:
    """What each arm came to, and R1's table of stages, every seed."""
    chosen = PRESETS[preset]
    modes, k = chosen.names, chosen.zero_samples
    names = {
        "accuracy": ACC,
        "format": FORMAT,
        "length": LENGTH,
        modes.retries: modes.tries,
        "cut": "eval/clipped_ratio",
    }
    names |= {"sampled tokens": "num_tokens", f"pass@{k}": f"eval/pass@{k}", f"maj@{k}": f"eval/maj@{k}"}
    names |= {f"mode/{mode}": f"eval/mode/{mode}" for mode in (modes.none, modes.short, modes.long)}
    before = {name: results.first("zero", key).rounded() for name, key in names.items() if key != "num_tokens"}
    numbers = results.table(names) | {"base": before}
    if chosen.rest is None:
        return numbers
    stages = {
        stage: {name: at(results, arm, key).rounded() for name, key in list(names.items())[:3]}
        for stage, (arm, at) in PIPELINE.items()
    }
    return numbers | {"pipeline": stages, "student RL at equal tokens": rl_at_equal_tokens(results).rounded()}


def shown(results: Results, preset: str) -> str:
    """What `reproduce` prints below the claims: a response before and after."""
    return before_and_after(results, "zero")


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
    """R1-Zero; then the budget, the pipeline, distillation, the losses."""
    chosen, base, share = PRESETS[preset], "tab:gray", {"ylim": (-0.03, 1.03)}
    rest, modes = chosen.rest, chosen.names
    zero = [Line("zero", "R1-Zero")]
    zero += [Line("no_thoughts", "base without thoughts", base), Line("easy", "easy problems")] if rest else []
    how = {modes.none: "no thought", modes.short: "one pass", modes.long: "several passes"}
    k = chosen.zero_samples
    before_after = [Line("zero", "R1-Zero, pass@k", where={"at": Results.last}),
                    Line("zero", "base, pass@k", base, {"at": Results.first})]  # fmt: skip

    def majority(axis, r: Results) -> None:
        for line, color in zip(before_after, ("C0", base), strict=True):
            value = line.where["at"](r, "zero", f"eval/maj@{k}")
            if value:
                name = f"{line.label.split(',')[0]}, majority of {k}"
                axis.axhline(value.mean, color=color, linestyle=":", label=name)

    def lengths(axis, r: Results) -> None:
        for i, (arm, at) in enumerate(PIPELINE.values()):
            axis.text(i, 1.03, f"{at(r, arm, LENGTH).mean or 0:.0f}", ha="center", fontsize=8)

    def distilled(axis, r: Results) -> None:
        for arm, color, label in (("", "C0", "distilled from R1"), ("_wrong", base, "from its wrong traces")):
            tokens, value = r.last("distilled_data", "tokens"), r.last(f"distilled{arm}_eval", ACC)
            axis.plot([tokens[s] for s in value], list(value.values()), "*", color=color, markersize=11, label=label)

    found = [
        Panel("Accuracy of the rollouts", zero, "accuracy", ylabel="share of right responses", **share),
        Panel("Length of the rollouts", zero, ROLLOUT, ylabel="tokens, tags included", ylim=(0, None)),
        Panel("How R1-Zero thinks", [Line("zero", how[mode], y=f"mode/{mode}") for mode in how],
              ylabel="share of its responses", **share),
        Panel("Held-out problems, before and after", before_after, "eval/pass", points=pass_at, also=majority,
              xlabel="k", ylabel="accuracy", xscale="log", marker="o", **share),
    ]  # fmt: skip
    if preset != "sums":
        found += [
            Panel("Attempts at the same problems (seed 0)", (), xlabel="number of the attempt", xlim=(0.3, None),
                  also=partial(draw_attempts, arm="zero")),
            Panel("One problem before and after (seed 0)", (), kind="text", text=partial(before_and_after, arm="zero")),
        ]  # fmt: skip
    else:
        found += [Panel("Re-checks", zero, "thinking/rechecks", ylabel="per response", ylim=(0, None))]
    if rest is None:
        return found
    return found + [
        Panel(f"A budget raised at step {rest.cap_steps // 2 + 1}",
              [Line("raised", f"from {rest.cap} to {chosen.rl.max_new_tokens.first} tokens"),
               Line("capped", f"{rest.cap} tokens throughout", base)],
              {"accuracy of rollouts": "accuracy", "share that is cut": CUT}, **share),
        Panel("The stages of R1 (numbers: mean length in tokens)", [Line(name, name, "C0") for name in PIPELINE],
              {"accuracy": ACC, "format": FORMAT}, kind="bar", also=lengths, ylim=(0, 1.12),
              bars=lambda r, line, key: PIPELINE[line.arm][1](r, PIPELINE[line.arm][0], key)),
        Panel("Distillation against RL, on a small student", [Line("student_rl", "RL on the student", "C1")], ACC,
              points=spent, also=distilled, xlabel="sampled tokens", ylabel="accuracy", marker="o", **share),
        *(Panel(f"Five losses, {rest.loss_updates} updates per rollout: {name}", [Line(loss, loss) for loss in LOSSES],
                key, ylabel=name) for name, key in
          (("accuracy", "accuracy"), ("entropy in nats", "entropy"), ("tokens of wrong ones", f"{ROLLOUT}_wrong"))),
    ]  # fmt: skip


def caption(preset: str) -> str:
    on_sums = preset == "sums"
    what = "sums of two and three digits that may be thought about" if on_sums else "Countdown by attempts"
    return f"DeepSeek-R1 on {what}, preset {preset}: sampled at temperature 1."
