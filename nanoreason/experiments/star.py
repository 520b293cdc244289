"""STaR (Zelikman et al., 2022), Figure 4 and 5 in miniature: how digit addition is learnt, length by length.

One base per seed, which adds short sums, a few longer ones and any with its answer as a hint; from this same base
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
from collections.abc import Callable
from dataclasses import dataclass, replace

from nanoreason.experiments.figure import Line, Panel, family
from nanoreason.experiments.results import LESS, Arm, Claim, PerSeed, Results
from nanoreason.recipes import sft, star
from nanoreason.tasks import Addition

ARMS = {
    "plain": "without rationalization",
    "rationalize": "with rationalization",
    "direct": "direct answers",
    "temperature": "temperature instead of hints",
    "continue": "continue instead of restart",
}
COLORS = dict(zip(ARMS, ("tab:blue", "tab:orange", "tab:gray", "tab:green", "tab:purple"), strict=True))


@dataclass(frozen=True)
class Preset:
    base: sft.SftConfig | None  # how the base is pretrained; None: the one in data/checkpoints
    star: star.StarConfig  # what the STaR arms have in common
    late: Addition | None  # longer sums that join the practice of `rationalize` after the compared rounds
    late_rounds: int  # for how many more rounds
    direct: sft.SftConfig  # of the direct baseline
    arms: tuple[str, ...] = tuple(ARMS)


# The base adds sums of one and two digits, of three mostly, of four now and then, and reads a hint at any length.
HINTED = Addition(
    (1, 2, 3, 4, 5, 6, 7), shares=(0.5, 0.35, 0.13, 0.02, 0, 0, 0), hint_share=0.4, hinted_shares=(1,) * 7
)
LONG = Addition((1, 2, 3, 4, 5, 6, 7, 8, 9, 10))
BASE = sft.SftConfig(
    task=HINTED, optimizer="muon", lr=5e-3, steps=1500, rows_per_step=32, micro_tokens=512, eval_task=LONG,
    eval_problems=60,
)  # fmt: skip
DIRECT = sft.SftConfig(
    task=Addition(form="direct"), distinct=2000, steps=5000, rows_per_step=16, lr=1e-3, warmup=50, eval_problems=60
)
TINY = sft.PRESETS["tiny"]
PRESETS = {
    "cpu": Preset(BASE, star.StarConfig(), Addition((6, 7)), 2, DIRECT),
    "tiny": Preset(
        None, star.PRESETS["tiny"], Addition((3,)), 1,
        replace(TINY, task=Addition((1, 2), "direct"), distinct=64, steps=8), ("plain", "rationalize", "direct"),
    ),
    "gpu": Preset(
        replace(BASE, width=256, layers=6, heads=8, kv_heads=4, lr=2e-3, rows_per_step=128, micro_tokens=32768,
                eval_problems=500),
        star.PRESETS["gpu"], Addition((6, 7)), 6, replace(DIRECT, micro_tokens=32768, eval_problems=500),
    ),
    "demo": Preset(
        None, star.StarConfig(rounds=3, problems=240, step_increment=0, lr=2e-3), None, 0,
        replace(DIRECT, steps=500), ("plain", "rationalize", "direct"),
    ),
}  # fmt: skip


def tested(chosen: Preset) -> tuple[int, ...]:
    """The lengths that are tested: three longer than any practised too, where some join late."""
    practised = (*chosen.star.task.digits, *(chosen.late.digits if chosen.late else ()))
    return tuple(range(1, max(practised) + 4)) if chosen.late else practised


def arms(preset: str, seed: int) -> list[Arm]:
    """First the base, then the arms, which do not need each other."""
    chosen = PRESETS[preset]
    common, trained = chosen.star, chosen.base is not None
    settings = {
        "plain": common,
        "rationalize": replace(common, rationalize=True),
        "direct": replace(chosen.direct, base=common.base),
        "temperature": replace(common, retry_temperature=0.7),
        "continue": replace(common, rationalize=True, restart=False),
    }
    if chosen.late:
        settings["rationalize"] = replace(
            settings["rationalize"], rounds=common.rounds + chosen.late_rounds, late_task=chosen.late,
            late_from=common.rounds + 1, eval_task=Addition(tested(chosen)),
        )  # fmt: skip
    base = [Arm("base", "sft", chosen.base)] if trained else []
    costs = {arm: 400.0 * (s.rounds + 1) if arm != "direct" else s.steps / 4 for arm, s in settings.items()}
    return base + [
        Arm(arm, "sft" if arm == "direct" else "star", settings[arm], base="base" if trained else "", cost=costs[arm])
        for arm in chosen.arms
    ]


# -------------------------------------------------------------------------------------------------------- claims


def arrivals(results: Results, arm: str, digits: tuple[int, ...], seed: int, rounds: int) -> list[int]:
    """The first round with an accuracy above one half, of each length that the base did not have, shortest first.

    A length that never arrives counts as one round after the last.
    """
    curves = [results.curve(arm, f"acc/{n}", seed, step=lambda s: s <= rounds) for n in digits]
    found = [next((r for r, value in curve.items() if value > 0.5), rounds + 1) for curve in curves]
    return [r for r in found if r > 0]


def arrived(results: Results, arm: str, preset: str, number) -> PerSeed:
    """A number of the rounds of arrival, where two lengths at least were left to learn and one was learnt."""
    settings = PRESETS[preset].star
    times = {s: arrivals(results, arm, settings.task.digits, s, settings.rounds) for s in results.seeds}
    some = {s: t for s, t in times.items() if len(t) > 1 and min(t) <= settings.rounds}
    return PerSeed({seed: float(number(t)) for seed, t in some.items()})


def in_order(times: list[int]) -> float:
    """The share of neighbouring lengths of which the shorter arrives strictly earlier."""
    return statistics.fmean(a < b for a, b in zip(times, times[1:], strict=False))


def spread(times: list[int]) -> int:
    """Rounds between the first and the last arrival."""
    return max(times) - min(times)


def claims(preset: str) -> list[Claim]:
    chosen, settings = PRESETS[preset], PRESETS[preset].star
    acc = tuple(f"acc/{n}" for n in settings.task.digits)

    def lead(other: str) -> Callable[[Results], PerSeed]:
        """Of rationalize, in mean accuracy over the rounds."""
        rounds = {"step": lambda s: s <= settings.rounds}
        return lambda r: r.mean("rationalize", acc, **rounds) - r.mean(other, acc, **rounds)

    found = [
        Claim("plain: share of neighbouring lengths of which the shorter arrives in an earlier round",
              lambda r: arrived(r, "plain", preset, in_order), 0.9),
        Claim("plain: rounds from first to last arrival",
              lambda r: arrived(r, "plain", preset, spread), 0.5, no_effect=0.5),
        Claim("rationalize: rounds from first to last arrival",
              lambda r: arrived(r, "rationalize", preset, spread), 0.5, LESS, 0.5),
        Claim("rationalize - plain: accuracy, mean over rounds", lead("plain"), 0.05),
        Claim("plain - direct: final accuracy", lambda r: r.last("plain", acc) - r.last("direct", acc), 0.03),
        Claim("rationalize - direct: final accuracy",
              lambda r: r.last("rationalize", acc, step=settings.rounds) - r.last("direct", acc), 0.03),
    ]  # fmt: skip
    if "temperature" in chosen.arms:
        found.append(Claim("rationalize - temperature: accuracy, mean over rounds", lead("temperature"), 0.05))
    if chosen.late_rounds:
        joined, longer = chosen.late.digits, max(chosen.late.digits) + 1
        late = tuple(f"acc/{n}" for n in joined)
        found += [
            Claim(f"longer unseen sums: accuracy on {joined[0]} digits before they joined",
                  lambda r: r.last("rationalize", late[0], step=settings.rounds), 0.03, no_effect=0.01),
            Claim(f"late: gain on {' and '.join(map(str, joined))} digits after they joined",
                  lambda r: r.last("rationalize", late) - r.last("rationalize", late, step=settings.rounds), 0.1),
        ]  # fmt: skip
        if longer in tested(chosen):
            found.append(Claim(f"late: accuracy on {longer} digits, never practised",
                               lambda r: r.last("rationalize", f"acc/{longer}"), 0.03, no_effect=0.01))  # fmt: skip
    return found


def extra(results: Results, preset: str) -> dict:
    """Final accuracy by length and rounds of arrival, every seed."""
    settings = PRESETS[preset].star
    numbers = results.table({f"accuracy/{n}": f"acc/{n}" for n in tested(PRESETS[preset])})
    for arm in set(numbers) - {"base", "direct"}:
        numbers[arm]["arrival rounds of new lengths"] = {
            str(s): arrivals(results, arm, settings.task.digits, s, settings.rounds) for s in results.seeds
        }
    return numbers


# -------------------------------------------------------------------------------------------------------- figure


def panels(preset: str) -> list[Panel]:
    """Top: accuracy per length without and with rationalization, all arms. Bottom: data kept, hints, longer sums."""
    chosen, digits, rounds = PRESETS[preset], PRESETS[preset].star.task.digits, PRESETS[preset].star.rounds
    acc, unseen = tuple(f"acc/{n}" for n in digits), [n for n in tested(chosen) if n > max(digits)]
    compared = {"step": lambda s: s <= rounds}
    label, ylabel = "{}-digit sums", "accuracy on held-out sums"
    how = {"xlabel": "round (0: the base)", "ylim": (-0.03, 1.03), "marker": "o"}
    shown = tuple(Line(arm, ARMS[arm], COLORS[arm], compared) for arm in chosen.arms if arm != "direct")

    def direct(axis, results: Results) -> None:
        axis.axhline(results.last("direct", acc).mean, color="gray", linestyle=":", label=ARMS["direct"])

    def joining(axis, results: Results) -> None:
        if chosen.late_rounds:
            joined = f"{' and '.join(map(str, chosen.late.digits))} digits join the practice"
            axis.axvline(rounds + 0.5, color="gray", linestyle="--", label=joined)

    longer = [
        Panel("Longer sums, with rationalization", family("rationalize", "acc/{}", unseen, label), also=joining,
              ylabel=ylabel, **how),
    ] if chosen.late_rounds else []  # fmt: skip
    return [
        Panel("STaR without rationalization", family("plain", "acc/{}", digits, label), ylabel=ylabel, **how),
        Panel("STaR with rationalization", family("rationalize", "acc/{}", digits, label, where=compared),
              ylabel=ylabel, **how),
        Panel(f"All arms, mean over {min(digits)} to {max(digits)} digits", shown, acc, also=direct, ylabel=ylabel,
              **how),
        Panel("Data kept for training",
              [line for line in shown if line.arm != "continue"], {"first try": "kept", "second try": "kept_second"},
              ylabel="share of the round's problems", **how | {"xlabel": "round"}),
        Panel("Rationalization: solved when hinted at",
              family("rationalize", "hinted/{}", digits, label, where=compared),
              ylabel="share of the problems that failed", **how | {"xlabel": "round"}),
        *longer,
    ]  # fmt: skip


def caption(preset: str) -> str:
    settings = PRESETS[preset].star
    return (
        f"STaR on sums of {min(settings.task.digits)} to {max(settings.task.digits)} digits with a scratchpad, "
        f"preset {preset}: greedy accuracy on held-out sums."
    )
