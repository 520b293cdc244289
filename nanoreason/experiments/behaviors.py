"""Cognitive Behaviors that Enable Self-Improving Reasoners (Gandhi et al., 2025) in miniature: Countdown by attempts.

    base -> base-without       pretraining goes on: one attempt and never a verdict on it, guesses, drills
    base -> base-with          the same, and a tenth of the texts try and judge until they have found it
    base-without -> primed-SET SFT on a thousand texts of a set (`priming.py`): which behaviours, right or wrong
    all of them -> RL          arms `without`, `with` and SET: accuracy and format, equal steps

What `without` lacks is the behaviour, not the skill: it calculates, and the drill `mark` keeps it judging attempts that
are given, at every position. `with` is also the paper's curated pretraining: as many tokens, some with behaviours. What
SFT alone gives is the test of an RL arm before its first step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from nanoreason.experiments.base import shared
from nanoreason.experiments.figure import Line, Panel
from nanoreason.experiments.r1 import RL, STUDENT
from nanoreason.experiments.results import LESS, Arm, Claim, PerSeed, Results, average, gain, growth, lead
from nanoreason.priming import CONTROLS, PRIMED, RETURNING
from nanoreason.recipes import grpo, sft
from nanoreason.run import Schedule
from nanoreason.tasks import Attempts
from nanoreason.tasks.attempts import Mixture

NAMES = {
    "without": "base without", "with": "base with", "all_four": "all four", "backtracking": "backtracking only",
    "verification": "+ verification", "subgoals": "+ subgoals", "backward": "+ backward chaining",
    "wrong": "all four, answers wrong", "dots": "dots", "empty": "empty thought", "forward": "forward only",
}  # fmt: skip
# Without: no verdict on an attempt of its own, and no retry. With: a tenth of long thoughts instead of single attempts.
WITHOUT, WITH = STUDENT, Mixture.parse("blind:.3,guess:.15,compare:.13,mark:.32,long:.1")


@dataclass(frozen=True)
class Preset:
    go_on: sft.SftConfig  # pretraining of the base `without`, from the base that sections share
    with_steps: int  # the same of `with`, for as many tokens: its texts are longer
    tune: sft.SftConfig  # priming
    rl: grpo.GrpoConfig


CPU = Preset(
    sft.SftConfig(task=Attempts(shares=WITHOUT), optimizer="muon", steps=120, lr=2e-3, warmup=10, eval_problems=0),
    108,
    sft.SftConfig(distinct=1000, steps=62, lr=1e-3, warmup=6, rows_per_step=32, decay="cosine", eval_problems=0),
    replace(RL, steps=12, preflight=0, save_every=6, eval_every=6, eval_samples=1),
)
PRESETS = {
    "cpu": CPU,
    "tiny": Preset(
        replace(CPU.go_on, steps=2, rows_per_step=8, warmup=1), 2,
        replace(CPU.tune, distinct=16, steps=2, rows_per_step=8, warmup=1),
        replace(CPU.rl, steps=2, prompts=2, group_size=4, max_new_tokens=Schedule(48), warmup=1, save_every=2,
                eval_every=1, eval_problems=3),
    ),
    "gpu": Preset(
        replace(CPU.go_on, rows_per_step=256, micro_tokens=65536), 108, replace(CPU.tune, micro_tokens=65536),
        replace(CPU.rl, steps=60, prompts=32, lr=1e-4, micro_tokens=65536, eval_samples=8),
    ),
}  # fmt: skip


def arms(preset: str, seed: int) -> list[Arm]:
    """The two bases, the primed ones, and RL on each."""
    chosen = PRESETS[preset]
    curated = replace(chosen.go_on, task=Attempts(shares=WITH), steps=chosen.with_steps)

    def primed(kind: str) -> Arm:
        task = Attempts(shares=Mixture(((kind, 1.0),)))
        return Arm(f"primed-{kind}", "sft", replace(chosen.tune, task=task), "base-without")

    starts = {"without": "base-without", "with": "base-with"} | {kind: f"primed-{kind}" for kind in PRIMED}
    return [
        shared(preset, seed),
        Arm("base-without", "sft", chosen.go_on, "base"),
        Arm("base-with", "sft", curated, "base"),
        *(primed(kind) for kind in PRIMED),
        *(Arm(arm, "grpo", chosen.rl, start, cost=1000) for arm, start in starts.items()),
    ]


# -------------------------------------------------------------------------------------------------------- claims

ACC, GREEDY, LENGTH = "eval/pass@1", "acc/3", "completions/mean_length"
BEHAVIORS = {  # how often a response shows each
    "verification": "verdicts",
    "backtracking": "waits",
    "subgoals": "subgoals",
    "backward chaining": "backward",
}


def of_all(pick: Callable, r: Results, arms: Iterable[str]) -> PerSeed:
    """The smallest, largest, ... final accuracy of some arms, seed by seed, where all of them have one."""
    values = [r.last(arm, ACC) for arm in arms]
    return r.per_seed(lambda seed: pick([v[seed] for v in values]) if all(seed in v for v in values) else None)


def at_equal_tokens(r: Results, arm: str, other: str) -> PerSeed:
    """Accuracy of an arm when it was last tested with no more sampled tokens than another took in all, minus the
    other's final one."""
    spent = r.last(other, "num_tokens")

    def of(seed: int) -> float | None:
        tested = [v for line, v in r.lines(arm, ACC, seed) if line.get("num_tokens", 0) <= spent.get(seed, -1)]
        return tested[-1] if tested else None

    return r.per_seed(of) - r.last(other, ACC)


def mean_at(r: Results, at: Callable, **where) -> PerSeed:
    """Mean accuracy of the sets with backtracking at one of the tests."""
    return average(at(r, kind, ACC, **where) for kind in RETURNING)


def early_share(r: Results, steps: int) -> PerSeed:
    """How much of their gain there is after half of the steps."""
    first, half = mean_at(r, Results.first), mean_at(r, Results.last, step=lambda step: 2 * step <= steps)
    return (half - first) / (mean_at(r, Results.last) - first)


def claims(preset: str) -> list[Claim]:
    steps = PRESETS[preset].rl.steps

    def counts(what: str) -> Callable[[Results], PerSeed]:
        return growth("all_four", f"eval/{BEHAVIORS[what]}")

    return [
        Claim("bases: difference of with and without, greedy accuracy, of one attempt",
              lambda r: abs(lead("with", "without", GREEDY, Results.first)(r)), 0.08, LESS),
        Claim("bases: with - without, accuracy after RL", lead("with", "without", ACC), 0.15),
        Claim("bases: without, gain in accuracy by RL", gain("without", ACC), 0.12, LESS),
        *(Claim(f"primed: {NAMES[kind]} - unprimed, accuracy after RL", lead(kind, "without", ACC), 0.15)
          for kind in (*RETURNING, "wrong")),
        Claim("primed: mean of the sets with backtracking - base with, accuracy after RL",
              lambda r: mean_at(r, Results.last) - r.last("with", ACC), -0.05),
        Claim("primed: all four - unprimed at equal sampled tokens, accuracy",
              lambda r: at_equal_tokens(r, "all_four", "without"), 0.1),
        Claim("primed: mean of the sets with backtracking, gain in accuracy by RL",
              lambda r: mean_at(r, Results.last) - mean_at(r, Results.first), 0.1),
        Claim("primed: share of that gain after half of the steps", lambda r: early_share(r, steps), 0.6,
              no_effect=0.5),
        Claim("wrong answers - right ones, accuracy after RL", lead("wrong", "all_four", ACC), -0.08),
        *(Claim(f"controls: {NAMES[kind]} - unprimed, accuracy after RL", lead(kind, "without", ACC), 0.1, LESS)
          for kind in CONTROLS),
        Claim("worst set with backtracking - best control, accuracy after RL",
              lambda r: of_all(min, r, RETURNING) - of_all(max, r, CONTROLS), 0.1),
        Claim("all four: verification after / before RL", counts("verification"), 1.2, no_effect=1),
        Claim("all four: backtracking after / before RL", counts("backtracking"), 1.2, no_effect=1),
        Claim("all four: subgoals after / before RL", counts("subgoals"), 0.7, LESS, 1),
        Claim("all four: backward chaining after / before RL", counts("backward chaining"), 0.7, LESS, 1),
    ]  # fmt: skip


def extra(results: Results, preset: str) -> dict:
    """Every arm before and after RL."""
    keys = {"accuracy": ACC, "greedy": GREEDY, "tokens": "eval/mean_length", "cut": "eval/clipped_ratio",
            **{name: f"eval/{key}" for name, key in BEHAVIORS.items()}}  # fmt: skip
    numbers = results.table(keys | {"sampled tokens": "num_tokens"}, NAMES)
    for arm in numbers:
        numbers[arm] |= {f"{name} before": results.first(arm, key).rounded() for name, key in keys.items()}
    return numbers


# -------------------------------------------------------------------------------------------------------- figure


def panels(preset: str) -> list[Panel]:
    colors = dict(zip(NAMES, ("k", "tab:gray", *(f"C{i}" for i in (0, 1, 2, 4, 9, 3, 5, 6, 8))), strict=True))

    def of(*arms: str) -> list[Line]:
        return [Line(arm, NAMES[arm], colors[arm]) for arm in arms]

    def counted(arm: str) -> Panel:
        return Panel(f"Behaviours under RL: {NAMES[arm]}", [Line(arm, name, y=key) for name, key in BEHAVIORS.items()],
                     ylabel="per response, rollouts", smooth=3, ylim=(0, None))  # fmt: skip

    rollouts = {"y": "accuracy", "ylabel": "accuracy of rollouts", "smooth": 3, "ylim": (0, None)}
    return [
        Panel("Two bases, and priming", of("without", "with", *RETURNING, "wrong"), **rollouts),
        Panel("Controls", of("without", "with", "all_four", *CONTROLS), **rollouts),
        Panel("Held-out problems: before RL (SFT alone) and after", of(*NAMES),
              {"after RL": Results.last, "before": Results.first}, kind="bar", ylabel="accuracy", ylim=(0, 1),
              bars=lambda r, line, at: at(r, line.arm, ACC)),
        counted("all_four"),
        counted("wrong"),
        Panel("Length", of(*NAMES), LENGTH, ylabel="tokens per response, rollouts", smooth=3, ylim=(0, None)),
    ]  # fmt: skip


def caption(preset: str) -> str:
    chosen = PRESETS[preset]
    return (
        f"Cognitive behaviours on Countdown by attempts, preset {preset}: two bases, "
        f"{chosen.tune.distinct} texts to prime, {chosen.rl.steps} steps of RL, window {chosen.rl.max_new_tokens}. "
        "Sampled at temperature 1; curves are means of 3 neighbours."
    )
