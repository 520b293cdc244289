"""Does Math Reasoning Improve General LLM Capabilities? (2507.00432) in miniature: what is kept of eleven small tasks?

A base learns all of them, and is then trained on one, the target, in several ways:

    think, think/3, /10, /50   SFT on a teacher's solutions in words of its own, the learning rate divided by so much
    plain, direct, replay      SFT on a solver's in the base's words; on answers alone; on think with 10 % other tasks
    self                       SFT on the base's own right samples: the labels nearest to the base
    online                     1-0 REINFORCE: sample the policy, learn what is right (on-policy SFT)
    grpo, grpo-kl              GRPO without and with a KL penalty
    teacher-rl                 GRPO's advantages of samples of the policy `think`, right and wrong ones: off-policy

The paper compares one SFT with one RL run, whose learning rates differ by 50. Here every comparison is at equal
accuracy on the target, by linear interpolation between kept checkpoints, and the sweep of learning rates asks the
question of RL's Razor (2509.04259): is it the algorithm that keeps the rest, or a small KL to the base on the new task?
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from nanoreason.evaluate import LEAST_GAIN, NEAR_ZERO, pooled_sigma, relative_gain, transferability, weighted_gain
from nanoreason.experiments.figure import Line, Panel
from nanoreason.experiments.results import LESS, Arm, Claim, PerSeed, Results
from nanoreason.learn import ALGORITHMS, Algorithm
from nanoreason.recipes import grpo, sft, transfer_test
from nanoreason.run import Schedule
from nanoreason.tasks.suite import Suite

SWEEP = {"think": 1, "think/3": 3, "think/10": 10, "think/50": 50}
GROUPS = ("target", "other", "non")
OWN = Suite()
GRPO = Algorithm(average="token")  # as in the paper's trainer
REINFORCE = replace(ALGORITHMS["reinforce"], average="token")  # rewards 0 and 1: wrong samples have no gradient


@dataclass(frozen=True)
class Preset:
    base: sft.SftConfig
    tune: sft.SftConfig  # what all supervised training has in common
    rl: grpo.GrpoConfig  # what all reinforcement has in common
    test: transfer_test.TransferTestConfig


CPU = Preset(
    sft.SftConfig(task=replace(OWN, others=0.65), context=320, optimizer="muon", steps=2500, lr=6e-3, eval_problems=0,
                  log_every=50),
    sft.SftConfig(steps=90, rows_per_step=32, lr=1e-3, decay="none", warmup=2, eval_problems=0,
                  keep=(3, 8, 20, 45, 90)),
    grpo.GrpoConfig(task=OWN, steps=16, prompts=16, group_size=8, lr=3e-4, warmup=2, max_new_tokens=Schedule(256),
                    preflight=0, eval_every=0, eval_problems=0, keep=(2, 5, 8, 12, 16)),
    transfer_test.TransferTestConfig(problems=120, analysed=30),
)  # fmt: skip
PRESETS = {
    "cpu": CPU,
    "tiny": Preset(
        replace(CPU.base, width=32, layers=1, heads=2, kv_heads=1, steps=6, rows_per_step=8, warmup=2),
        replace(CPU.tune, steps=2, rows_per_step=4, warmup=1, keep=(1, 2)),
        replace(CPU.rl, steps=2, prompts=2, group_size=4, warmup=1, max_new_tokens=Schedule(16), keep=(1, 2)),
        transfer_test.PRESETS["tiny"],
    ),
    "gpu": Preset(
        replace(CPU.base, width=256, layers=6, heads=8, kv_heads=4, steps=4000, rows_per_step=128, lr=3e-3,
                micro_tokens=65536),
        replace(CPU.tune, micro_tokens=65536, lr=5e-4),
        replace(CPU.rl, prompts=64, lr=2e-4, micro_tokens=65536),
        transfer_test.PRESETS["gpu"],
    ),
}  # fmt: skip


def named(arm: str) -> str:
    """An arm's name as a folder."""
    return arm.replace("/", "_")


def arms(preset: str, seed: int) -> list[Arm]:
    """The base, its trainings and a measurement of each."""
    chosen = PRESETS[preset]
    think = replace(OWN, style="think")
    tune, rl = chosen.tune, chosen.rl

    def reinforced(arm: str, algorithm: Algorithm, teacher: str = "") -> Arm:
        inputs = {"teacher": teacher} if teacher else {}
        return Arm(arm, "grpo", replace(rl, algorithm=algorithm), "base", inputs)

    trained = [
        *(Arm(named(arm), "sft", replace(tune, task=think, lr=tune.lr / by), "base") for arm, by in SWEEP.items()),
        *(Arm(style, "sft", replace(tune, task=replace(OWN, style=style)), "base") for style in ("plain", "direct")),
        Arm("replay", "sft", replace(tune, task=replace(think, others=0.1)), "base"),
        reinforced("self", REINFORCE, "base"),
        reinforced("online", REINFORCE),
        reinforced("grpo", GRPO),
        reinforced("grpo-kl", replace(GRPO, kl_coef=0.05, reference_every=0)),
        reinforced("teacher-rl", GRPO, "think"),
    ]
    measured = [
        Arm(f"{arm.name}-test", "transfer_test", chosen.test, "base", {"trained": f"{arm.name}/kept"})
        for arm in trained
    ]
    return [
        Arm("base", "sft", chosen.base),
        Arm("base-test", "transfer_test", chosen.test, "base"),
        *trained,
        *measured,
    ]


# --------------------------------------------------------------------------------------- at equal target accuracy

ARMS = {
    "think": "SFT, teacher's words", "think_3": "the same, lr / 3", "think_10": "the same, lr / 10",
    "think_50": "the same, lr / 50", "replay": "the same, replay", "plain": "SFT, a solver's", "direct": "SFT, answers",
    "self": "SFT, base's own right samples", "online": "1-0 REINFORCE", "grpo": "GRPO", "grpo-kl": "GRPO, KL",
    "teacher-rl": "off-policy RL",
}  # fmt: skip
AS_MUCH = 0.02  # of the accuracy without reasoning: a difference below this is none
LEAST_RISE = 0.1  # of the target's accuracy, else there is nothing to compare at


def beside_itself(key: str) -> float:
    """What a base that is measured beside itself has of a number: it is as long as itself, and shifted by nothing."""
    return 1.0 if key.startswith("length/") else 0.0


def course(results: Results, arm: str, key: str, seed: int) -> list[tuple[float, float]]:
    """(target accuracy, a number) of the base, then of each kept checkpoint that has it."""
    base = [line for line, _ in results.lines("base-test", "acc/target", seed)]
    kept = [line for line, _ in results.lines(f"{arm}-test", key, seed)]
    return [(line["acc/target"], line.get(key, beside_itself(key))) for line in base] + [
        (line["acc/target"], line[key]) for line in kept
    ]


def crossing(points: list[tuple[float, float]], level: float) -> float | None:
    """y where x first reaches the level, between two points in a row; None if it never does.

    >>> crossing([(0.25, 0.0), (0.75, 1.0), (0.5, 9.0)], 0.5), crossing([(0.2, 0.0)], 0.5)
    (0.5, None)
    """
    for (x, y), (next_x, next_y) in zip(points, points[1:], strict=False):
        if x <= level <= next_x:
            return next_y if x == next_x else y + (next_y - y) * (level - x) / (next_x - x)
    return None


def level(results: Results, *compared: str) -> PerSeed:
    """The largest target accuracy that all of some arms reach; none where that is hardly above the base.

    It is the smallest of noisy maxima, so it lies above what the arm that stops there is worth, while an arm that goes
    on rising crosses it without that luck, truly better and later: the measure is biased against that one. Two arms of
    the same law, .6 of accuracy elsewhere lost per accuracy on the target, 120 problems, came out .023 apart (standard
    error .001, 400 draws), as much as T5 and AS_MUCH ask for.
    """

    def of(seed: int) -> float | None:
        found = [[x for x, _ in course(results, arm, "acc/target", seed)] for arm in compared]
        if not all(len(some) > 1 for some in found):
            return None
        reached = min(map(max, found))
        return reached if reached - found[0][0] >= LEAST_RISE else None

    return results.per_seed(of)


def at(results: Results, arm: str, key: str, levels: PerSeed) -> PerSeed:
    return results.per_seed(
        lambda seed: crossing(course(results, arm, key, seed), levels[seed]) if seed in levels else None
    )


def both(arm: str, other: str, key: str, how: Callable[[PerSeed, PerSeed], PerSeed]) -> Callable[[Results], PerSeed]:
    """A number of two arms, combined where both have the same accuracy on the target."""

    def number(results: Results) -> PerSeed:
        levels = level(results, arm, other)
        return how(at(results, arm, key, levels), at(results, other, key, levels))

    return number


def lost(arm: str, other: str = "think") -> Callable[[Results], PerSeed]:
    """The accuracy without reasoning that an arm has lost, at the accuracy that the other one reaches too."""
    return lambda r: r.first("base-test", "acc/non") - at(r, arm, "acc/non", level(r, arm, other))


def difference(arm: str, other: str, key: str = "acc/non") -> Callable[[Results], PerSeed]:
    return both(arm, other, key, lambda a, b: a - b)


def quotient(arm: str, other: str, key: str) -> Callable[[Results], PerSeed]:
    return both(arm, other, key, lambda a, b: a / b)


def least(numbers: list[Callable[[Results], PerSeed]]) -> Callable[[Results], PerSeed]:
    """The smallest of some numbers, seed by seed; seeds that lack one have none."""

    def number(results: Results) -> PerSeed:
        found = [some(results) for some in numbers]
        return results.per_seed(lambda seed: min(f[seed] for f in found) if all(seed in f for f in found) else None)

    return number


def all_points(results: Results, seed: int) -> list[tuple[float, float]]:
    """(D(base || policy) on the target, accuracy forgotten elsewhere) of all checkpoints of all arms."""
    return [
        (line["base_kl"], forgotten)
        for arm in ARMS
        for line, forgotten in results.lines(f"{arm}-test", "forgotten", seed)
    ]


def explained(points: list[tuple[float, float]]) -> float | None:
    """R^2 of the best parabola through (x, y); None with fewer than four points or if y is constant.

    >>> round(explained([(0, 1), (1, 2), (2, 5), (3, 10)]), 6)
    1.0
    """
    x, y = torch.tensor(points, dtype=torch.float64).T if points else (torch.zeros(0), torch.zeros(0))
    total = float((y - y.mean()).square().sum()) if len(y) > 3 else 0.0
    if not total:
        return None
    powers = torch.stack([torch.ones_like(x), x, x * x], 1)
    # gelsd: arms may share a point, and then the powers are dependent
    fitted = powers @ torch.linalg.lstsq(powers, y[:, None], driver="gelsd").solution
    return 1 - float((y[:, None] - fitted).square().sum()) / total


# -------------------------------------------------------------------------------------------------------- claims


def claims(preset: str) -> list[Claim]:
    own = ("self", "online", "grpo", "grpo-kl")  # who learns from samples of the base or of itself
    return [
        Claim("GRPO: accuracy gained on the target", lambda r: r.last("grpo-test", "acc/target")
              - r.first("base-test", "acc/target"), 0.2),
        Claim("T1: SFT, accuracy without reasoning lost", lost("think", "grpo"), 0.1),
        Claim("T1: GRPO, accuracy without reasoning lost", lost("grpo"), 0.02, LESS),
        Claim("T1: GRPO - SFT, accuracy without reasoning", difference("grpo", "think"), 0.08),
        Claim("T2: SFT / GRPO, KL without reasoning", quotient("think", "grpo", "kl/non"), 3, no_effect=1),
        Claim("T3: SFT / GRPO, rank shift on the target", quotient("think", "grpo", "rank/target"), 4, no_effect=1),
        Claim("T3: SFT / GRPO, tokens of another rank per response, target", quotient("think", "grpo",
              "changed/target"), 5, no_effect=1),
        Claim("T4: SFT - GRPO, responses without reasoning that have a marker", difference("think", "grpo",
              "leak/non"), 0.15),
        Claim("T5: the worst of its own samples - off-policy RL, accuracy without reasoning",
              least([difference(arm, "teacher-rl") for arm in own]), 0.02),
        Claim("T5: off-policy RL - SFT, accuracy without reasoning", difference("teacher-rl", "think"), 0.02),
        Claim("T5: GRPO with KL and without, difference in accuracy without reasoning",
              lambda r: abs(difference("grpo-kl", "grpo")(r)), 0.03, LESS),
        Claim("T6: R^2 of forgetting, quadratic in the KL on the target",
              lambda r: r.per_seed(lambda seed: explained(all_points(r, seed))), 0.7),
        Claim("T7: SFT / GRPO, PCA shift, least of the three groups",
              least([quotient("think", "grpo", f"pca/{group}") for group in GROUPS]), 1.2, no_effect=1),
        Claim("T8: GRPO - SFT at the best learning rate, accuracy without reasoning",
              best_of_sweep, 0.03),
        Claim("T8: GRPO - SFT with replay, accuracy without reasoning", difference("grpo", "replay"), 0.03),
        Claim("T8: GRPO - SFT on the base's own, accuracy without reasoning", difference("grpo", "self"), 0.02),
    ]  # fmt: skip


def best_of_sweep(results: Results) -> PerSeed:
    """GRPO minus the learning rate of SFT that keeps most, each where it is as accurate as GRPO on the target; one that
    never rises is left out. Each rate has a level of its own: one that hardly rises is compared where little is lost.
    """
    found = [difference("grpo", named(arm))(results) for arm in SWEEP]
    return results.per_seed(lambda seed: min((f[seed] for f in found if seed in f), default=None))


def indices(results: Results) -> dict[str, dict[str, dict]]:
    """The transferability index, both versions, of each arm and seed at its last checkpoint; null: undefined."""
    tasks = OWN.groups()
    pairs: dict[str, dict] = {group: {} for group in GROUPS}
    for seed in results.seeds:
        for arm in ARMS:
            ends = [results.lines(f"{name}-test", "acc/target", seed)[-1:] for name in ("base", arm)]
            if all(ends):
                (before, _), (after, _) = (some[0] for some in ends)
                for group, names in tasks.items():
                    pairs[group][arm, seed] = tuple([line[f"acc/{n}"] for n in names] for line in (before, after))
    gains: dict[str, dict] = {}
    for group, of in pairs.items():
        sigma = pooled_sigma(list(of.values()))
        gains[group] = {who: weighted_gain(before, after, sigma) for who, (before, after) in of.items()}
    relative = {group: {who: relative_gain(*pair) for who, pair in of.items()} for group, of in pairs.items()}
    versions = {"1": (relative, NEAR_ZERO), "2": (gains, LEAST_GAIN)}
    return {
        f"transferability (version {version}) to {group}, last checkpoint": {
            arm: {str(seed): rounded(transferability(found[group][arm, seed], found["target"][arm, seed], least))
                  for seed in results.seeds if (arm, seed) in found[group]}
            for arm in ARMS
        }
        for version, (found, least) in versions.items() for group in ("other", "non")
    }  # fmt: skip


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def extra(results: Results, preset: str) -> dict:
    """Accuracies of the base; every arm where it is as accurate as both SFT and GRPO, and at its end."""
    levels = level(results, "think", "grpo")
    keys = [f"{name}/{group}" for name in ("acc", "kl", "rank", "changed", "leak", "length", "pca", "pca_relative",
            "pca_paper") for group in GROUPS] + ["forgotten", "base_kl", "distance"]  # fmt: skip
    tasks = [f"acc/{name}" for name in OWN.tasks()]
    return {
        "base": results.table({key: key for key in [*tasks, *(f"acc/{group}" for group in GROUPS)]}, ["base-test"]),
        "matched target accuracy": levels.rounded(),
        "at that accuracy": {arm: {key: at(results, arm, key, levels).rounded() for key in keys} for arm in ARMS},
        "last checkpoint": results.table({key: key for key in tasks + keys}, [f"{arm}-test" for arm in ARMS]),
    } | indices(results)


# -------------------------------------------------------------------------------------------------------- figure

COLORS = {"think": "C3", "think_3": "C1", "think_10": "gold", "think_50": "khaki", "plain": "C7", "direct": "C5",
          "replay": "C6", "self": "C8", "online": "C2", "grpo": "C0", "grpo-kl": "C9", "teacher-rl": "C4"}  # fmt: skip


def panels(preset: str) -> list[Panel]:
    def along(results: Results, line: Line, metric: str, seed: int | None) -> list[tuple[float, float]]:
        """The course of one seed, or the means over the seeds at each checkpoint."""
        found = [course(results, line.arm, metric, one) for one in (results.seeds if seed is None else [seed])]
        together = zip(*found, strict=False)  # checkpoints are of the same steps in all seeds
        return [tuple(statistics.fmean(values) for values in zip(*some, strict=True)) for some in together]

    def verdict(axis, results: Results) -> None:
        said = whose(results)
        if said:
            axis.text(0.02, 0.03, said, transform=axis.transAxes, fontsize=8, va="bottom")

    def forgotten(results: Results, line: Line, metric: str, seed: int | None) -> list[tuple[float, float]]:
        return results.points(f"{line.arm}-test", "base_kl", "forgotten", seed, "step")

    def gained(results: Results, line: Line, metric: str) -> PerSeed:
        return matched(results, line, metric) - results.first("base-test", metric)

    def matched(results: Results, line: Line, metric: str) -> PerSeed:
        return at(results, line.arm, metric, level(results, "think", "grpo"))

    lines = [Line(arm, label, COLORS[arm]) for arm, label in ARMS.items()]
    dots = [replace(line, style="o") for line in lines]
    bars = [replace(line, label=line.arm.replace("_", "/")) for line in lines]
    by_group = {"target": "{}/target", "other reasoning": "{}/other", "no reasoning": "{}/non"}

    def groups(key: str, *names: str) -> dict[str, str]:
        return {name: by_group[name].format(key) for name in names or by_group}

    return [
        Panel("What is kept, against what is learnt", lines, y="acc/non", points=along, also=verdict, marker="o",
              xlabel="accuracy on the target", ylabel="accuracy, tasks without reasoning"),
        Panel("Forgetting, and the KL on the new task", dots, points=forgotten, xscale="log10",
              xlabel="D(base || policy) on the target, nats per token", ylabel="accuracy forgotten elsewhere"),
        Panel("Gains where SFT and GRPO are as accurate on the target", bars, kind="bar", bars=gained,
              y=groups("acc", "other reasoning", "no reasoning"), ylabel="accuracy - that of the base"),
        Panel("Words that gained most places", [], kind="text", text=words),
        Panel("D(policy || base) at that accuracy", bars, kind="bar", bars=matched, y=groups("kl"),
              ylabel="nats per token", yscale="log"),
        Panel("Rank shift at that accuracy", bars, kind="bar", bars=matched, y=groups("rank"),
              ylabel="places per token"),
    ]  # fmt: skip


def whose(results: Results) -> str:
    """In words, whether it is the algorithm that keeps the rest (T8): a sentence for the figure; empty without numbers.

    "SFT keeps as much" if the best learning rate, or SFT on the base's own samples, is within .02 of GRPO.
    """
    sweep, own = best_of_sweep(results).mean, difference("grpo", "self")(results).mean
    known = [value for value in (sweep, own) if value is not None]
    if not known:
        return ""
    names = " and ".join(
        f"{name} {value:+.3f}"
        for name, value in (("SFT at its best rate", sweep), ("on the base's own", own))
        if value is not None
    )
    close = min(known) <= AS_MUCH
    return f"GRPO minus {names}:\n{'it is the KL, not the algorithm' if close else 'no SFT keeps as much as GRPO'}"


def words(results: Results) -> str:
    """The words that gained most at the last checkpoint of SFT and of GRPO, with their class; sums over the seeds."""
    blocks = []
    for arm in ("think", "grpo"):
        for group in ("target", "non"):
            gained: dict[tuple[str, bool], int] = {}
            for seed in results.seeds:
                for _, found in results.lines(f"{arm}-test", f"words/{group}", seed)[-1:]:
                    for word, structure, _, places in found:
                        gained[word, structure] = gained.get((word, structure), 0) + places
            best = sorted(gained.items(), key=lambda item: (-item[1], item[0]))[:7]
            blocks.append(f"{ARMS[arm]}, {'target' if group == 'target' else 'no reasoning'}")
            blocks += [f"  {word:8} {'structure' if structure else 'content':10}{places:7}"
                       for (word, structure), places in best if places] or ["  none"]  # fmt: skip
    return "\n".join(blocks)


def caption(preset: str) -> str:
    chosen = PRESETS[preset]
    return (
        f"Training on Countdown alone, preset {preset}: a base of width {chosen.base.width}, "
        f"SFT of up to {chosen.tune.steps} and RL of up to {chosen.rl.steps} steps. One sample of "
        f"{chosen.test.problems} held-out problems of each task."
    )
