"""SimpleRL-Zoo (Zeng et al., 2025) in miniature: one recipe of zero RL on bases that differ, on Countdown by attempts.

Three bases from random weights differ in family, width and depth (FAMILY-WIDTH); the largest, qwen3-96, is the one that
all sections on attempts share; three more are that one, pretrained further on another mixture: `guesses` seldom thinks,
`tagless` often leaves the tags out, `unjudged` makes attempts and says no verdicts. With BASE for each of these names:

    BASE-rl               GRPO: the reward is 1 if right, else 0
    BASE-easy, -hard      the same on problems of which one attempt in seven or more is right, and on four numbers (one
                          in 40; else one in 13): guesses, qwen3-96
    four-before, -after   no training: four numbers for qwen3-96 and for what its RL made of it
    BASE-format, -strict  the same with .1 more in the format, or with -1 out of it: tagless, qwen3-96
    short-N, short-N-rl   guesses, fine-tuned for N steps on worked solutions without any search; RL on that

All are tested on the same held-out problems, three numbers up to 9. As in the paper the clip ratio is the share of
responses that reach the window, and the stopped length is the mean length of the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

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
)
from nanoreason.learn import Algorithm
from nanoreason.recipes import grpo, sft
from nanoreason.rewards import Accuracy, Format, Strict
from nanoreason.run import Schedule
from nanoreason.tasks import Attempts, HardAttempts
from nanoreason.tasks.attempts import Mixture

TASK = Attempts(max_input=9, targets=(10, 40), longest=160)
COMMON = Mixture.parse("guess:.2,long:.35,compare:.3,mark:.15")
SHARED, WEAK, LOOSE, OTHER = "qwen3-96", "guesses", "tagless", "unjudged"
SHORT = WEAK  # the base that is fine-tuned on short solutions
# bases from random weights, the first number of a name is the width
SCRATCH: dict[str, dict] = {
    "llama-32": dict(family="llama", width=32, layers=2),
    "qwen2-48": dict(family="qwen2", width=48, layers=3),
    "qwen3-64": dict(family="qwen3", width=64, layers=2),
}
# and those that are the shared one, pretrained further on another mixture: on guesses, on texts without tags as often
# as with them, in a language that has no words for a verdict
FURTHER = {
    WEAK: Mixture.parse("guess:.75,one:.2,long:.05"),
    LOOSE: Mixture.parse("bare:.5,guess:.1,long:.4"),
    OTHER: Mixture.parse("guess:.3,unjudged:.7"),
}
LEVELS = {"easy": replace(TASK, chance=(0.14, 1.0)), "hard": HardAttempts()}
REWARDS = {"format": (Accuracy(), Format(0.1)), "strict": (Strict(),)}


@dataclass(frozen=True)
class Preset:
    pretrain: sft.SftConfig
    rl: grpo.GrpoConfig  # what all RL has in common
    samples: int  # of each held-out problem when a base and what RL made of it are tested: pass@k up to here
    further: sft.SftConfig  # pretraining of the shared base on another mixture
    short: tuple[int, int]  # steps of fine-tuning on short solutions


# DIFFERS from the paper: one update per rollout instead of four, no KL term (1e-4 there) and no entropy bonus, which
# 16 steps do not need. As there: the mean over all tokens, advantages divided by the group's deviation, no format term.
RL = grpo.GrpoConfig(
    task=TASK, rewards=(Accuracy(),), algorithm=Algorithm(average="token"), steps=16, prompts=8, group_size=16,
    max_new_tokens=Schedule(256), lr=3e-4, warmup=2, preflight=0, save_every=4, eval_every=0, eval_task=TASK,
    eval_problems=40, eval_samples=8,
)  # fmt: skip
PRETRAIN = sft.SftConfig(
    task=replace(TASK, shares=COMMON), context=320, optimizer="muon", lr=5e-3, steps=2000, rows_per_step=16,
    save_every=100, eval_problems=0,
)  # fmt: skip
FURTHER_ON = sft.SftConfig(steps=100, rows_per_step=16, lr=1e-3, warmup=5, eval_problems=0)
PRESETS = {
    "cpu": Preset(PRETRAIN, RL, samples=32, further=FURTHER_ON, short=(20, 100)),
    "tiny": Preset(
        replace(PRETRAIN, steps=2, rows_per_step=4, warmup=1),
        replace(RL, steps=2, prompts=2, group_size=4, max_new_tokens=Schedule(48), warmup=1, eval_problems=2,
                eval_samples=2),
        samples=8, further=replace(FURTHER_ON, steps=1, rows_per_step=4), short=(1, 2),
    ),
    "gpu": Preset(
        replace(PRETRAIN, steps=1600, rows_per_step=128, lr=3e-3, micro_tokens=65536),
        replace(RL, steps=80, prompts=64, lr=2e-4, micro_tokens=65536, eval_problems=232),
        samples=64, further=replace(FURTHER_ON, steps=200, rows_per_step=64, micro_tokens=65536), short=(100, 500),
    ),
}  # fmt: skip


def arms(preset: str, seed: int) -> list[Arm]:
    """The bases and RL on each; then data of other difficulty, other rewards, and short solutions before RL."""
    chosen = PRESETS[preset]
    solutions = replace(TASK, shares=Mixture.parse("guess:1"), right_guess=1.0)
    tune = sft.SftConfig(task=solutions, lr=1e-3, warmup=2, rows_per_step=32, eval_problems=0)

    def rl(arm: str, base: str, **settings) -> Arm:
        config = replace(chosen.rl, **settings)
        return Arm(arm, "grpo", config, base, cost=config.steps * 10 + config.eval_samples)

    return [
        replace(shared(preset, seed), name=SHARED),
        *(Arm(base, "sft", replace(chosen.pretrain, **settings)) for base, settings in SCRATCH.items()),
        *(Arm(base, "sft", replace(chosen.further, task=replace(TASK, shares=mixture)), SHARED)
          for base, mixture in FURTHER.items()),
        *(rl(f"{base}-rl", base, eval_samples=chosen.samples) for base in names()),
        # pass@k where chance alone does not find everything
        *(rl(f"four-{when}", base, steps=0, task=HardAttempts(), eval_task=None, eval_samples=chosen.samples)
          for when, base in (("before", SHARED), ("after", f"{SHARED}-rl"))),
        *(rl(f"{base}-{level}", base, task=task) for base in (WEAK, SHARED) for level, task in LEVELS.items()),
        *(rl(f"{base}-{name}", base, rewards=rewards) for base in (LOOSE, SHARED) for name, rewards in REWARDS.items()),
        *(Arm(f"short-{steps}", "sft", replace(tune, steps=steps), SHORT) for steps in chosen.short),
        *(rl(f"short-{steps}-rl", f"short-{steps}") for steps in chosen.short),
    ]  # fmt: skip


def names() -> list[str]:
    """All bases."""
    return [*SCRATCH, *FURTHER, SHARED]


# -------------------------------------------------------------------------------------------------------- claims

ACC, LENGTH, STOPPED, CUT = "eval/pass@1", "eval/mean_length", "eval/stopped_length", "eval/clipped_ratio"
VERDICTS, ATTEMPTS, RETRIES, FORMAT = "eval/verdicts", "eval/attempts", "eval/waits", "eval/format"
EIGHT = "eval/pass@8"  # at 32 chance alone solves .84 of the problems of three numbers
GAINED = 0.05  # of accuracy: a base that gains so much


def bases_that_gain(r: Results) -> PerSeed:
    """How many of the bases gain GAINED or more; only where all of them were measured."""
    gains = [gain(f"{base}-rl", ACC)(r) for base in names()]
    return r.per_seed(lambda s: sum(g[s] >= GAINED for g in gains) if all(s in g for g in gains) else None)


def verification(r: Results, arm: str, at: Callable = Results.last) -> PerSeed:
    """Of the attempts of a response, how many have a verdict, and one that is true; 0 where nothing is tried."""
    found, tried = at(r, arm, "eval/verdicts/right"), at(r, arm, ATTEMPTS)
    return PerSeed({s: found[s] / tried[s] if tried[s] else 0.0 for s in tried if s in found})


def follows_length(of: Callable[[Results, str, Callable], PerSeed]) -> Callable[[Results], PerSeed]:
    """The rank correlation, over the bases, of length after / before RL with a number of arms after - before it."""

    def correlation(r: Results) -> PerSeed:
        arms = [f"{base}-rl" for base in names()]
        longer = [growth(arm, LENGTH)(r) for arm in arms]
        more = [of(r, arm, Results.last) - of(r, arm, Results.first) for arm in arms]
        whole = [s for s in r.seeds if all(s in values for values in [*longer, *more])]
        found = {s: rank_correlation([v[s] for v in longer], [v[s] for v in more]) for s in whole}
        return PerSeed({s: value for s, value in found.items() if value is not None})

    return correlation


def over_bases(number: Callable[[Results, str], PerSeed]) -> Callable[[Results], PerSeed]:
    return lambda r: average(number(r, f"{base}-rl") for base in names())


def claims(preset: str) -> list[Claim]:
    chosen = PRESETS[preset]
    few, most = (f"short-{steps}-rl" for steps in chosen.short)
    k, first = f"eval/pass@{chosen.samples}", Results.first

    def unpaid(base: str, reward: str):
        """What RL for right answers alone ends with more than with a reward for the format."""
        return lead(f"{base}-rl", f"{base}-{reward}", ACC)

    return [
        Claim(f"zero RL: bases of {len(names())} that gain {GAINED:g} or more", bases_that_gain, 4.5, no_effect=3.5),
        Claim("zero RL: gain in accuracy, mean of the bases", over_bases(lambda r, arm: gain(arm, ACC)(r)), 0.1),
        Claim("length is not verification: rank correlation of their growth over the bases",
              follows_length(verification), 0.5, LESS, no_effect=0.8),
        Claim("length without verdicts: the unjudged language, length after / before", growth(f"{OTHER}-rl", LENGTH),
              1.2, no_effect=1),
        Claim("length without verdicts: the unjudged language, verdicts per response",
              lambda r: r.last(f"{OTHER}-rl", VERDICTS), 0.2, LESS),
        Claim("difficulty: weak base, gain on four numbers' data", gain(f"{WEAK}-hard", ACC), 0.03, LESS),
        Claim("difficulty: weak base, fitting - too hard data, final accuracy", lead(f"{WEAK}-rl", f"{WEAK}-hard", ACC),
              0.05),
        Claim("difficulty: strong base, gain on four numbers' data", gain(f"{SHARED}-hard", ACC), 0.1),
        Claim("difficulty: strong base, too easy / fitting data, final length",
              lambda r: r.last(f"{SHARED}-easy", LENGTH) / r.last(f"{SHARED}-rl", LENGTH), 0.9, LESS, no_effect=1),
        Claim("format: base without tags, no - strict reward, final accuracy", unpaid(LOOSE, "strict"), 0.05),
        Claim("format: base with tags, no - strict reward, final accuracy", unpaid(SHARED, "strict"), 0.05, LESS),
        Claim("short SFT: most - none, accuracy before RL", lead(most, f"{SHORT}-rl", ACC, first), 0.03),
        Claim("short SFT: most - none, accuracy after RL", lead(most, f"{SHORT}-rl", ACC), -0.05, LESS),
        Claim("short SFT: most - few, accuracy after RL", lead(most, few, ACC), -0.03, LESS),
        Claim("short SFT: most - none, attempts after RL", lead(most, f"{SHORT}-rl", ATTEMPTS), -1.0, LESS),
        Claim("pass@k: after - before RL, pass@8, mean of the bases",
              over_bases(lambda r, arm: gain(arm, EIGHT)(r)), 0.05),
        Claim(f"pass@k: after - before RL, pass@{chosen.samples} on four numbers, {SHARED}",
              lead("four-after", "four-before", k), 0.1),
    ]  # fmt: skip


def extra(results: Results, preset: str) -> dict:
    """What every arm came to, before and after its RL, each seed."""
    shown = {"accuracy": ACC, "tokens": LENGTH, "stopped length": STOPPED, "at the window": CUT, "format": FORMAT,
             "attempts": ATTEMPTS, "verdicts": VERDICTS, "retries": RETRIES, "new": "eval/attempts/new"}  # fmt: skip
    shown |= {f"pass@{k}": f"eval/pass@{k}" for k in (1, 2, 4, 8, 16, 32, 64)[1:]}
    arms = [arm for arm in results.arms if results.last(arm, ACC)]
    numbers = results.table(shown, arms)
    for arm in arms:
        before = {f"{name} before": results.first(arm, key).rounded() for name, key in shown.items()}
        numbers[arm] |= {name: value for name, value in before.items() if value}
        numbers[arm]["verification before"] = verification(results, arm, Results.first).rounded()
        numbers[arm]["verification"] = verification(results, arm).rounded()
    followed = {
        "verification": verification,
        "verdicts per response": lambda r, arm, at: at(r, arm, VERDICTS),
        "accuracy": lambda r, arm, at: at(r, arm, ACC),
    }
    ranks = {name: follows_length(of)(results).rounded() for name, of in followed.items()}
    return {"rank correlation with the growth of length": ranks} | numbers


# -------------------------------------------------------------------------------------------------------- figure


def panels(preset: str) -> list[Panel]:
    """The paper's curves of every base; before and after, difficulty, pass@k; the rewards for the format; short SFT."""
    few, most = PRESETS[preset].short
    bases = [Line(f"{base}-rl", base, f"C{i}") for i, base in enumerate(names())]
    below = [replace(line, label=line.label.replace("-", "\n")) for line in bases]
    data = {"easy": ("easy\ndata", "C2"), "rl": ("fitting", "C0"), "hard": ("four\nnumbers", "C3")}
    levels = [Line(f"{base}-{end}", f"{base}\n{label}", color)
              for base in (WEAK, SHARED) for end, (label, color) in data.items()]  # fmt: skip
    formats = {"rl": ("right answers alone", "C0"), "format": ("format + .1", "C1"), "strict": ("no format: -1", "C3")}
    rewards = [Line(f"{base}-{end}", f"{base}: {label}", color, style=style) for base, style in ((LOOSE, "-"),
               (SHARED, "--")) for end, (label, color) in formats.items()]  # fmt: skip
    short = [Line(f"{SHORT}-rl", "no SFT", "C0"), Line(f"short-{few}-rl", f"{few} steps of SFT", "C1"),
             Line(f"short-{most}-rl", f"{most} steps of SFT", "C3")]  # fmt: skip
    on_four = f"four numbers, {SHARED}"
    passes = [Line("bases", "after RL, mean of the bases", "C0", {"at": Results.last}),
              Line("bases", "before RL, mean of the bases", "C7", {"at": Results.first}),
              Line("four-after", f"after RL, {on_four}", "C3", {"at": Results.last}),
              Line("four-before", f"before RL, {on_four}", "C1", {"at": Results.last})]  # fmt: skip

    def at(r: Results, line: Line, key: Callable) -> PerSeed:
        return key(r, line.arm, ACC)

    def pass_at(r: Results, line: Line, key: str, seed: int | None) -> list[tuple[float, float]]:
        """(k, pass@k), the mean of the bases, or on four numbers."""
        arms = [bar.arm for bar in bases] if line.arm == "bases" else [line.arm]
        found = {k: average(line.where["at"](r, arm, f"{key}@{k}") for arm in arms) for k in (1, 2, 4, 8, 16, 32, 64)}
        return [(k, y.mean if seed is None else y[seed]) for k, y in found.items() if y and seed in (None, *y)]

    def verified(r: Results, line: Line, key: str, seed: int | None) -> list[tuple[float, float]]:
        """(step, share of the attempts with a true verdict)."""
        true, tried = (r.curve(line.arm, name, seed) for name in ("verdicts/right", "attempts"))
        return [(step, true[step] / tried[step]) for step in true if tried[step]]

    accuracy = {"y": "accuracy", "ylabel": "accuracy of rollouts", "ylim": (0, 1), "smooth": 3}
    tokens = {"y": "completions/mean_length", "ylabel": "tokens per response", "ylim": (0, None), "smooth": 3}
    bars = {"y": {"base": Results.first, "after RL": Results.last}, "kind": "bar", "bars": at, "ylim": (0, 1),
            "ylabel": "accuracy on held-out problems"}  # fmt: skip
    return [
        Panel("Accuracy", bases, **accuracy),
        Panel("Length", bases, **tokens),
        Panel("Clip ratio", bases, "completions/clipped_ratio", smooth=3, ylim=(-0.01, None),
              ylabel="share of responses that reach the window"),
        Panel("Stopped length", bases, **tokens | {"y": "completions/mean_terminated_length",
              "ylabel": "tokens of responses that end by themselves"}),
        Panel("Verification", bases, points=verified, smooth=3, ylim=(-0.02, 1.02),
              ylabel="share of attempts with a true verdict"),
        Panel("Before and after RL", below, **bars),
        Panel("Difficulty of the data", levels, **bars),
        Panel("pass@k before and after RL", passes, "eval/pass", points=pass_at, xscale="log", xlabel="k", marker="o",
              ylim=(0, 1.02), ylabel="pass@k on held-out problems"),
        Panel("Rewards for the format: accuracy", rewards, **accuracy),
        Panel("Rewards for the format: length", rewards, **tokens),
        Panel(f"RL behind short SFT of {SHORT}: accuracy", short, **accuracy),
        Panel(f"RL behind short SFT of {SHORT}: length", short, **tokens),
    ]  # fmt: skip


def caption(preset: str) -> str:
    chosen = PRESETS[preset]
    return (
        f"Zero RL on {len(names())} bases, preset {preset}: GRPO, {chosen.rl.steps} steps of {chosen.rl.prompts} x "
        f"{chosen.rl.group_size} responses, window {chosen.rl.max_new_tokens.first}. Curves over steps are means of 3 "
        f"neighbours; held-out: {chosen.rl.eval_problems} problems at temperature 1."
    )
