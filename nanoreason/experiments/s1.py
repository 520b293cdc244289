"""s1 (Muennighoff et al., 2025) in miniature, on sums with optional re-checking: few chosen samples, forced budgets.

A base adds in one pass or with any number of re-checks, and a pass slips now and then; a re-check is done with more
care. From a pool of traces that mostly re-check until two passes agree, it is fine-tuned on
    s1        a few that are in the format, hard for the base and diverse        (the paper's 1K of 59K)
    random, longest, diverse, all      others as many, or all of the pool
    tokens, steps, class               the same few as s1, whose prompts say how long to think
Then `s1` thinks within budgets that are forced, or is kept from closing by "wait" or other words; against prompts that
ask for a length, rejection sampling by length, and the majority of several samples at equal tokens.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace

from nanoreason.evaluate import control, performance, scaling
from nanoreason.experiments.figure import Line, Panel
from nanoreason.experiments.results import LESS, Arm, Claim, PerSeed, Results, gain, lead
from nanoreason.recipes import budget, select, sft
from nanoreason.tasks import ThinkingAddition
from nanoreason.tasks.wrappers import AskedLength, Templated

CHOICES = ("s1", "random", "longest", "diverse", "all")  # s1: quality, difficulty, diversity; all: of the pool
PROMPTS = ("tokens", "steps", "class")  # prompts that ask for so many, or for short or long thinking
# DIFFERS from the paper, which decodes greedily: thinking is sampled at temperature 1. A slip is one chance in five, so
# a greedy pass has none, and there would be nothing to find by checking. Answers are greedy, as there.


@dataclass(frozen=True)
class Preset:
    base: sft.SftConfig
    select: select.SelectConfig  # how demonstrations are chosen
    epochs: int  # passes over them (the paper's 5 of 1,000 are 315 updates; 10 of 100 are 62)
    budget: budget.BudgetConfig


SUMS = ThinkingAddition((1, 2), error_prob=0.2, recheck_error_scale=0.25)
CPU_BASE = sft.SftConfig(
    task=Templated(AskedLength(
        replace(SUMS, modes=(0.0, 0.55, 0.45), extra_recheck_prob=0.6, max_passes=12), kind="both", asked_share=0.3,
    )),
    width=64, context=384, steps=5000, lr=3e-3, rows_per_step=32, eval_task=Templated(SUMS),
)  # fmt: skip
POOL = select.SelectConfig(
    task=Templated(replace(SUMS, modes=(0.0, 0.15, 0.85), extra_recheck_prob=0.2)), problems=1600, keep="all",
    broken_share=0.1, other_word_share=0.3, choose=100,
)  # fmt: skip
PRESETS = {
    "cpu": Preset(CPU_BASE, POOL, 10, budget.PRESETS["cpu"]),
    "tiny": Preset(
        replace(CPU_BASE, width=32, layers=2, heads=2, kv_heads=1, steps=20, warmup=2, rows_per_step=8,
                eval_problems=4),
        replace(POOL, problems=60, choose=12), 1, budget.PRESETS["tiny"],
    ),
    "gpu": Preset(
        replace(CPU_BASE, width=256, layers=6, heads=8, kv_heads=4, context=768, steps=6000, lr=1e-3, rows_per_step=128,
                micro_tokens=32768, eval_problems=500),
        replace(POOL, problems=10_000, choose=1000), 10, budget.PRESETS["gpu"],
    ),
}  # fmt: skip


def arms(preset: str, seed: int) -> list[Arm]:
    """The base; what is chosen and fine-tuned from it; what each of them does with its budget."""
    chosen = PRESETS[preset]
    picked = {name: replace(chosen.select, how=name) for name in CHOICES}
    picked |= {name: replace(chosen.select, how="s1", condition=name) for name in PROMPTS}
    methods = {name: ("wait",) for name in CHOICES} | {name: (name,) for name in PROMPTS}
    methods |= {"s1": ("forcing", "until", "wait", "words", "samples"), "untuned": ("wait", "samples")}

    def tuned(name: str, config: select.SelectConfig) -> sft.SftConfig:
        count = config.problems if name == "all" else config.choose
        steps = max(1, round(chosen.epochs * count / 16))
        return sft.SftConfig(steps=steps, lr=5e-4, warmup=1 + steps // 20, rows_per_step=16, decay="cosine")

    found = [Arm("base", "sft", chosen.base)]
    for name, config in picked.items():
        inputs = {"base": "base/policy"} if config.how == "s1" else {}
        found += [
            Arm(f"pick_{name}", "select", config, inputs=inputs, cost=100),
            Arm(f"sft_{name}", "sft", tuned(name, config), "base",
                inputs={"data": f"pick_{name}/demonstrations.jsonl"}),
        ]  # fmt: skip
    for name, wanted in methods.items():
        waits = chosen.budget.waits if name in ("s1", "untuned") else (0,)
        base = "base" if name == "untuned" else f"sft_{name}"
        config = replace(chosen.budget, methods=wanted, waits=waits)
        found.append(Arm(name, "budget", config, base, cost=300.0 * len(wanted)))
    return found


# -------------------------------------------------------------------------------------------------------- claims

METHODS = {  # name: (arm, which of its lines, color)
    "budget forcing": ("s1", {"method": "forcing"}, "C0"),
    "forced both ways": ("s1", {"method": "until"}, "C9"),
    "token-conditional": ("tokens", {"enforced": False}, "C1"),
    "token-conditional + forcing": ("tokens", {"enforced": True}, "C1"),
    "step-conditional": ("steps", {"enforced": False}, "C2"),
    "step-conditional + forcing": ("steps", {"enforced": True}, "C2"),
    "class-conditional": ("class", {"method": "class"}, "C4"),
    "rejection sampling": ("s1", {"kind": "rejection"}, "C3"),
    "majority": ("s1", {"kind": "majority"}, "C7"),
    "majority of the base": ("untuned", {"kind": "majority"}, "C5"),
}
WORDS = ("wait", "Hmm", "Alternatively", "(none)")
WAIT, ALONE = {"method": "wait"}, {"method": "wait", "asked": 0}


def s1_metric(r: Results, name: str, metric: str) -> PerSeed:
    """Control, Scaling (points of accuracy per 100 tokens) or Performance of a method's runs (s1, section 3.2)."""
    arm, where, _ = METHODS[name]

    def of(seed: int) -> float | None:
        keys = ("thinking", "most", "accuracy")
        tokens, most, accuracy = ([value for _, value in r.lines(arm, key, seed, **where)] for key in keys)
        if not tokens:
            return None
        if metric == "control":
            return control(tokens, most)
        return scaling(tokens, accuracy, 100) if metric == "scaling" else performance(accuracy)

    return r.per_seed(of)


def cut_at_half(r: Results) -> PerSeed:
    """Accuracy with the budget that is closest to half of the natural length, minus that without a budget."""

    def of(seed: int) -> float | None:
        natural = r.curve("s1", "thinking", seed, "asked", **ALONE).get(0, 0)
        cut = r.curve("s1", "accuracy", seed, "asked", method="forcing")
        return min(((abs(b - natural / 2), accuracy) for b, accuracy in cut.items()), default=(0, None))[1]

    return r.per_seed(of) - r.last("s1", "accuracy", **ALONE)


def lead_over_votes(r: Results) -> PerSeed:
    """Waiting minus the best majority of the base that takes no more tokens, mean over the counts of waiting."""

    def of(seed: int) -> float | None:
        votes = r.points("untuned", "thinking", "accuracy", seed, kind="majority")
        runs = r.points("s1", "thinking", "accuracy", seed, **WAIT, by="asked")[1:]
        rivals = [max((a for t, a in votes if t <= tokens), default=None) for tokens, _ in runs]
        leads = [a - rival for (_, a), rival in zip(runs, rivals, strict=True) if rival is not None]
        return statistics.fmean(leads) if leads else None

    return r.per_seed(of)


def picked_by(r: Results, name: str) -> str:
    """The arm that tells what was chosen; it was one with the fine-tuning once."""
    return f"pick_{name}" if f"pick_{name}" in r.arms else f"sft_{name}"


def claims(preset: str) -> list[Claim]:
    def more(claimed: dict, than: dict):
        """Accuracy of a run of s1 minus that of another, each named by its fields."""
        return lambda r: r.last("s1", "accuracy", **claimed) - r.last("s1", "accuracy", **than)

    def few(r: Results) -> PerSeed:
        return r.mean("s1", "accuracy", method="wait", asked=lambda k: k in (1, 2))

    def many(r: Results) -> PerSeed:
        return r.of_series(lambda values: statistics.fmean(values[-2:]), "s1", "accuracy", **WAIT)

    return [
        Claim("budget forcing: accuracy cut at half of its natural length - stopping by itself", cut_at_half, -0.1,
              LESS),
        Claim("forced both ways, the largest budget - stopping by itself: accuracy", more({"method": "until"}, ALONE),
              0.03),
        Claim("token-conditional prompt: Control (it is not obeyed)",
              lambda r: s1_metric(r, "token-conditional", "control"), 0.9, LESS),
        Claim("rejection sampling by length: accuracy with the largest budget - the smallest",
              gain("s1", "accuracy", kind="rejection"), -0.03, LESS),
        Claim("wait, once and twice - stopping by itself: accuracy",
              lambda r: few(r) - r.last("s1", "accuracy", **ALONE), 0.03),
        Claim("wait, the last two counts against once and twice: size of the difference in accuracy",
              lambda r: abs(many(r) - few(r)), 0.05, LESS),
        Claim("wait - no word, twice each: accuracy",
              more({"method": "words", "asked": "wait"}, {"method": "words", "asked": "(none)"}), 0.03),
        Claim("wait - majority of the base with no more tokens: accuracy, mean over counts", lead_over_votes, 0.03),
        Claim("chosen as s1 - the base: accuracy", lead("s1", "untuned", "accuracy", **ALONE), 0.03),
        Claim("chosen as s1 - random: accuracy", lead("s1", "random", "accuracy", **ALONE), 0.03),
        Claim("chosen as s1 - all of the pool: accuracy", lead("s1", "all", "accuracy", **ALONE), -0.03),
    ]  # fmt: skip


def extra(results: Results, preset: str) -> dict:
    """Accuracy and tokens of every method by what it asked for, the chosen data, and what is appended."""
    numbers = {}
    for name, (arm, where, _) in METHODS.items():
        numbers[name] = {key: results.listed(arm, key, "asked", **where) for key in ("accuracy", "thinking")}
        numbers[name] |= {m: s1_metric(results, name, m).rounded() for m in ("control", "scaling", "performance")}
    waited = {f"wait, {arm}": results.listed(arm, "accuracy", "asked", **WAIT) for arm in ("s1", "untuned")}
    words = {"words, twice each": results.listed("s1", "accuracy", "asked", method="words")}
    chosen = results.table({"accuracy": "accuracy", "thinking": "thinking"}, ("untuned", *CHOICES), **ALONE)
    about = results.table(
        {name: name for name in ("chosen", "chosen_tokens")}, [picked_by(results, name) for name in CHOICES]
    )
    return numbers | waited | words | {"data": chosen | about}


# -------------------------------------------------------------------------------------------------------- figure


def panels(preset: str) -> list[Panel]:
    """Top: budgets, other ways to set a length, waits. Bottom: what was asked and what came, words, choice of data."""
    lines = {name: Line(arm, name, color, where, style="--" if "+" in name else "")
             for name, (arm, where, color) in METHODS.items()}  # fmt: skip
    asked = [name for name in METHODS if "majority" not in name and name != "forced both ways"]
    how = {"by": "asked", "marker": "o", "ylabel": "accuracy on held-out sums"}
    tokens = {"x": "thinking", "xlabel": "mean thinking tokens"}
    kept_from_closing = [Line("s1", "s1", "C0", WAIT), Line("untuned", "the base", "C5", WAIT)]
    words = [Line("s1", "stops\nby itself", "C7", ALONE)]
    words += [Line("s1", word, "C0", {"method": "words", "asked": word}) for word in WORDS]
    limited = [replace(lines[name], where=lines[name].where | {"most": lambda most: most < budget.NO_LIMIT})
               for name in asked if "+" not in name]  # fmt: skip

    def limit(axis, r: Results) -> None:
        most = [p[0] for p in r.points("s1", "most", "thinking", method="forcing")]
        axis.plot(most, most, color="black", linewidth=0.8, label="what was allowed")

    def counts(axis, r: Results) -> None:
        for i, name in enumerate(CHOICES, 1):
            axis.text(
                i, 0.03, f"{r.last(picked_by(r, name), 'chosen').mean:.0f}", ha="center", fontsize=8, color="white"
            )

    return [
        Panel("Budget forcing and majority voting",
              [*(lines[name] for name in ("budget forcing", "forced both ways", "majority", "majority of the base")),
               Line("s1", '"wait", then it may stop', "C8", WAIT)], "accuracy", xscale="log", **how, **tokens),
        Panel("Other ways to set a length", [lines[name] for name in asked], "accuracy", **how, **tokens),
        Panel("How often it is kept from closing", kept_from_closing, "accuracy", "asked",
              xlabel='number of "wait"', **how),
        Panel("Thinking tokens against what was allowed", limited, "thinking", "most", also=limit,
              xlabel="tokens allowed", ylabel="mean thinking tokens", marker="o"),
        Panel("What is appended, twice each", words, "accuracy", kind="bar", ylabel="accuracy on held-out sums"),
        Panel("Choice of demonstrations (white: how many)",
              [Line("untuned", "the base", "C5", ALONE), *(Line(name, name, "C0", ALONE) for name in CHOICES)],
              "accuracy", kind="bar", also=counts, ylabel="accuracy on held-out sums"),
    ]  # fmt: skip


def caption(preset: str) -> str:
    digits = " and ".join(map(str, SUMS.digits))
    return (
        f"s1 on {digits}-digit addition with optional re-checking, preset {preset}: thinking is sampled at "
        "temperature 1, answers are greedy."
    )
