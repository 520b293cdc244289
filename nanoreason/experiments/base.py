"""The pretraining of the base that all sections on attempts share, and which skill arrives when.

    base   random weights -> 6 million tokens of Countdown by attempts, in seven kinds of text (`tasks/attempts.py`)

Four skills on the way to an answer, each against the tokens seen: to calculate, to use every input once, to notice that
an attempt is right, and not to claim it of a wrong one. Accuracy waits for the last of them and then stays far below 1,
because the base gives up early: to think longer is left to reinforcement.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace

from nanoreason.experiments.figure import Line, Panel
from nanoreason.experiments.results import LESS, Arm, Claim, PerSeed, Results
from nanoreason.recipes import sft
from nanoreason.tasks import Attempts

ACC, GAVE_UP = "eval/pass@1", "eval/gave_up"
# {skill: (how often it succeeds, how often it is tried)}, both per response
SKILLS = {
    "arithmetic": ("eval/steps/right", "eval/steps"),
    "legality": ("eval/attempts/legal", "eval/attempts"),
    "hits noticed": ("eval/hits/seen", "eval/hits"),
    "claims true": ("eval/hits/seen", "eval/yes"),
}
LABELS = {
    "arithmetic": "results that are right",
    "legality": "attempts that are legal and right",
    "hits noticed": "right attempts that are called right",
    "claims true": "attempts called right that are right",
}
ARRIVED = 0.9  # the share from which on a skill is there

BASE = sft.PRESETS["attempts"]
PRESETS = {
    "cpu": BASE,
    "tiny": replace(
        BASE, width=32, layers=2, heads=2, kv_heads=1, steps=6, rows_per_step=16, warmup=2, eval_every=2,
        eval_problems=4, eval_tokens=48, save_every=3, log_every=2,
    ),
    "gpu": replace(
        BASE, width=256, layers=6, heads=8, kv_heads=4, rows_per_step=256, lr=3e-3, micro_tokens=65536,
        eval_problems=232, eval_samples=8,
    ),
}  # fmt: skip


SHIPPED = 4  # data/checkpoints/attempts-0 .. 3: `reproduce base --preset cpu --seeds 4`


def arms(preset: str, seed: int) -> list[Arm]:
    return [Arm("base", "sft", PRESETS[preset])]


def shared(preset: str, seed: int, retrain: bool = False) -> Arm:
    """The arm "base" that sections on attempts start from: a shipped model as it is, seed s that of seed s % SHIPPED.

    On a GPU, or with `--retrain-base`, it is trained there as this section trains it.
    """
    if preset == "gpu" or retrain:
        return Arm("base", "sft", replace(PRESETS["gpu" if preset == "gpu" else "cpu"], eval_every=0))
    folder = f"data/checkpoints/attempts-{seed % SHIPPED}"
    return Arm("base", "sft", sft.SftConfig(base=folder, task=Attempts(), steps=0, eval_problems=0))


# -------------------------------------------------------------------------------------------------------- claims


def skill_course(results: Results, skill: str, seed: int | None) -> list[tuple[float, float]]:
    """(tokens seen, share of successes) at each test of a seed; without one, means over the seeds. Where nothing was
    tried there is no share."""
    part, whole = SKILLS[skill]
    found: dict[int, list[tuple[float, float]]] = {}
    for line, tried in results.lines("base", whole, seed):
        if tried and part in line:
            found.setdefault(line["step"], []).append((line["tokens_seen"], line[part] / tried))
    return [(statistics.fmean(x for x, _ in some), statistics.fmean(y for _, y in some)) for some in found.values()]


def finally_right(skill: str) -> Callable[[Results], PerSeed]:
    part, whole = SKILLS[skill]
    return lambda r: r.last("base", part) / r.last("base", whole)


def arrival(results: Results, skill: str) -> PerSeed:
    """Tokens after which a skill is there for good: all later tests find it too."""

    def tokens(seed: int) -> float | None:
        course = skill_course(results, skill, seed)
        late = [x for i, (x, _) in enumerate(course) if all(y >= ARRIVED for _, y in course[i:])]
        return late[0] if late else None

    return results.per_seed(tokens)


def claims(preset: str) -> list[Claim]:
    return [
        Claim("arithmetic: results that are right", finally_right("arithmetic"), 0.97),
        Claim("legality: attempts that use every input once, rightly", finally_right("legality"), 0.9),
        Claim("verdict: right attempts that are called right", finally_right("hits noticed"), 0.95),
        Claim("verdict: attempts called right that are right", finally_right("claims true"), 0.95),
        Claim("order: tokens until hits are noticed / until results are right",
              lambda r: arrival(r, "hits noticed") / arrival(r, "arithmetic"), 1.2, no_effect=1.0),
        Claim("accuracy at temperature 1 (chance: .09)", lambda r: r.last("base", ACC), 0.2, no_effect=0.09),
        Claim("left to reinforcement: responses that give up behind a no", lambda r: r.last("base", GAVE_UP), 0.25),
        Claim("thinking pays: accuracy of several attempts - of a guess",
              lambda r: r.last("base", "eval/accuracy/search") - r.last("base", "eval/accuracy/guess"), 0.15),
        Claim("found but not answered: share of responses", lambda r: r.last("base", "eval/found/lost"), 0.03, LESS),
    ]  # fmt: skip


def extra(results: Results, preset: str) -> dict:
    """What the base ends with and when each skill came, every seed."""
    names = {"accuracy": ACC, "greedy": "acc/3", "tokens": "eval/mean_length", "attempts": "eval/attempts",
             "gave up": GAVE_UP, "cut": "eval/clipped_ratio"}  # fmt: skip
    numbers = results.table(names)
    for skill in SKILLS:
        numbers[skill] = {
            "at the end": finally_right(skill)(results).rounded(),
            f"tokens until {ARRIVED:g} for good": arrival(results, skill).rounded(0),
        }
    return numbers


# -------------------------------------------------------------------------------------------------------- figure


def panels(preset: str) -> list[Panel]:
    how = {"x": "tokens_seen", "by": "step", "xlabel": "tokens seen"}

    def course(results: Results, line: Line, metric: str, seed: int | None) -> list[tuple[float, float]]:
        return skill_course(results, line.y, seed)

    def chance(axis, results: Results) -> None:
        axis.axhline(0.09, color="gray", linestyle=":", label="one random attempt")

    def lines(named: dict[str, str]) -> list[Line]:
        return [Line("base", label, y=key) for label, key in named.items()]

    share = {"ylabel": "share of responses", "ylim": (-0.03, 1.03), **how}
    return [
        Panel("Which skill arrives when", lines({LABELS[skill]: skill for skill in SKILLS}), points=course,
              **share | {"ylabel": "share"}),
        Panel("Accuracy on held-out problems", lines({"temperature 1": ACC, "greedy": "acc/3",
              "one of the attempts is right": "eval/found"}), also=chance, **share),
        Panel("How it thinks", lines({"nothing tried (a guess)": "eval/mode/guess", "one attempt": "eval/mode/one",
              "several attempts": "eval/mode/search"}), **share),
        Panel("How it ends", lines({"gives up behind a no": GAVE_UP, "cut by its budget": "eval/clipped_ratio",
              "found, but not answered": "eval/found/lost"}), **share),
        Panel("How much it thinks", lines({"attempts": "eval/attempts", "of these never made before":
              "eval/attempts/new"}), ylabel="per response", **how),
        Panel("Loss", lines({"next token": "loss"}), yscale="log", ylabel="nats per token", **how),
    ]  # fmt: skip


def caption(preset: str) -> str:
    settings = PRESETS[preset]
    return (
        f"Pretraining of the base on Countdown by attempts, preset {preset} ({settings.task.inputs} inputs up to "
        f"{settings.task.max_input}), {settings.steps} steps of {settings.rows_per_step} rows with {settings.optimizer}"
        f", width {settings.width}, {settings.layers} layers. Sampled at temperature 1 on problems that are held out."
    )
