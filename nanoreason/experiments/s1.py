"""s1 (Muennighoff et al., 2025) in miniature, on Countdown by attempts: few chosen samples, forced budgets.

The base (section `base`) can try, judge and try again, but gives up early. A pool of 2,000 traces is as uneven as one
that somebody has collected: most think long, others guess or give up, end on a wrong answer or break off in the
middle. The base is fine-tuned on
    s1        100 that are in the format, hard for the base and diverse     (the paper's 1K of 59K)
    random, longest, diverse, all      others as many, or all of the pool
    tokens, steps, class               the same few as s1, whose prompts say how long to think
Then `s1` thinks within budgets that are forced, or is kept from closing by "wait" or other words. Its rivals at equal
tokens: prompts that ask for a length, rejection sampling by length, and parallel samples, by vote or by the verifier.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace

from nanoreason.evaluate import control, performance, scaling
from nanoreason.experiments.base import shared
from nanoreason.experiments.figure import Line, Panel
from nanoreason.experiments.results import LESS, Arm, Claim, PerSeed, Results, at_tokens, gain, lead, slope
from nanoreason.recipes import budget, select, sft
from nanoreason.tasks import Attempts, HardAttempts
from nanoreason.tasks.attempts import Mixture

CHOICES = ("s1", "random", "longest", "diverse", "all")  # s1: quality, difficulty, diversity; all: of the pool
PROMPTS = select.CONDITIONS  # prompts that ask for so many tokens or steps, or for short or long thinking
# DIFFERS from the paper, which decodes greedily: thinking is sampled at temperature 1, because a greedy model of this
# size repeats its attempts, and parallel samples must differ in any case. Answers are greedy, as there.


@dataclass(frozen=True)
class Preset:
    select: select.SelectConfig  # how demonstrations are chosen
    tune: sft.SftConfig  # on them
    epochs: int  # passes over them; the paper's 5 of 1,000 are 315 updates of 16, ours of 100 are 31
    budget: budget.BudgetConfig
    asked: tuple[int, ...] = (32, 64, 128, 256, 384)  # its budgets that prompts ask for: five, as in the paper


# A right attempt is stated again with chance one half, as thinking models check their results: what is never shown to
# hold on to its answer loses it when it is kept from ending. No trace has another word than "wait": the base has seen
# none, and with them in one trace of ten it learnt too little of them and forgot of the rest (.55 instead of .75).
MIXTURE = Mixture.parse("guess:.1,short:.25,long:.65")
POOL = select.SelectConfig(
    task=Attempts(shares=MIXTURE, check=0.5), problems=2000, keep="all", broken_share=0.1, choose=100,
)  # fmt: skip
TUNE = sft.SftConfig(lr=7e-4, rows_per_step=16, decay="cosine")
PRESETS = {
    "cpu": Preset(POOL, TUNE, 5, budget.PRESETS["cpu"]),
    "tiny": Preset(replace(POOL, problems=40, choose=8), TUNE, 1, budget.PRESETS["tiny"], (16, 32)),
    "gpu": Preset(  # four numbers, of which the base has met few
        replace(POOL, task=HardAttempts(shares=MIXTURE, check=0.5), problems=20_000, choose=1000),
        replace(TUNE, lr=3e-4, micro_tokens=32768), 5, budget.PRESETS["gpu"],
    ),
}  # fmt: skip


def arms(preset: str, seed: int) -> list[Arm]:
    """The base; what is chosen and fine-tuned from it; what each of them does with its budget."""
    chosen = PRESETS[preset]
    # DIFFERS from the paper, whose 59K are passed over as often as the 1K: once, which still is four times the updates.
    # "3 steps left" is new to the base: after five passes its arithmetic was lost (accuracy .11), so there are twenty.
    epochs = {"all": 1, "steps": 4 * chosen.epochs}

    def tuned(name: str) -> sft.SftConfig:
        count = chosen.select.problems if name == "all" else chosen.select.choose
        steps = max(1, round(epochs.get(name, chosen.epochs) * count / chosen.tune.rows_per_step))
        return replace(chosen.tune, steps=steps, warmup=1 + steps // 20)

    def measured(name: str, base: str, *methods: str, waits: tuple[int, ...] = (0,), **settings) -> Arm:
        config = replace(chosen.budget, methods=methods, waits=waits, **settings)
        return Arm(name, "budget", config, base, cost=100.0 * len(methods) * len(waits))

    found = [shared(preset, seed)]
    for name in CHOICES:
        inputs, conditions = ({"base": "base/policy"}, PROMPTS) if name == "s1" else ({}, ())
        config = replace(chosen.select, how=name, conditions=conditions)
        found.append(Arm(f"pick_{name}", "select", config, inputs=inputs, cost=100))
    for name in (*CHOICES, *PROMPTS):
        data = f"pick_s1/demonstrations-{name}.jsonl" if name in PROMPTS else f"pick_{name}/demonstrations.jsonl"
        found.append(Arm(f"sft_{name}", "sft", tuned(name), "base", inputs={"data": data}))
    waits = chosen.budget.waits
    return [
        *found,
        measured("s1", "sft_s1", "forcing", "until", "wait", "words", "suppressed", "samples", waits=waits),
        measured("untuned", "base", "wait", "samples", waits=waits),
        *(measured(name, f"sft_{name}", "wait", waits=(0, 2)) for name in CHOICES if name != "s1"),
        *(measured(name, f"sft_{name}", name, repeats=1, budgets=chosen.asked) for name in PROMPTS),
    ]


# -------------------------------------------------------------------------------------------------------- claims

WAIT, ALONE = {"method": "wait"}, {"method": "wait", "asked": 0}
METHODS = {  # name: (arm, which of its lines, color)
    "budget forcing": ("s1", {"method": "forcing"}, "C0"),
    "forced both ways": ("s1", {"method": "until"}, "C9"),
    '"wait"': ("s1", WAIT, "C8"),
    "token-conditional": ("tokens", {"enforced": False}, "C1"),
    "token-conditional + forcing": ("tokens", {"enforced": True}, "C1"),
    "step-conditional": ("steps", {"enforced": False}, "C2"),
    "step-conditional + forcing": ("steps", {"enforced": True}, "C2"),
    "class-conditional": ("class", {"method": "class"}, "C4"),
    "rejection sampling": ("s1", {"kind": "rejection"}, "C3"),
    "majority": ("s1", {"kind": "majority"}, "C7"),
    "best of k": ("s1", {"kind": "best"}, "C6"),
    "the base, majority": ("untuned", {"kind": "majority"}, "C5"),
}
RIVALS = ("token-conditional + forcing", "step-conditional + forcing", "class-conditional", "rejection sampling")
WORDS = ("wait", "Hmm", "Alternatively", "but", "(none)")


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


def best_of(r: Results, *names: str) -> PerSeed:
    """The largest Performance of several methods."""
    each = [s1_metric(r, name, "performance") for name in names]
    return r.per_seed(lambda seed: max((one[seed] for one in each if seed in one), default=None))


def cut_at_half(r: Results) -> PerSeed:
    """Accuracy with the budget that is closest to half of the natural length, minus that without a budget."""

    def of(seed: int) -> float | None:
        natural = r.curve("s1", "thinking", seed, "asked", **ALONE).get(0, 0)
        cut = r.curve("s1", "accuracy", seed, "asked", method="forcing")
        return min(((abs(b - natural / 2), accuracy) for b, accuracy in cut.items()), default=(0, None))[1]

    return r.per_seed(of) - r.last("s1", "accuracy", **ALONE)


def lead_over_votes(r: Results, arm: str, kind: str = "majority") -> PerSeed:
    """Waiting minus an arm's parallel samples at as many tokens, mean over the counts of waiting."""

    def of(seed: int) -> float | None:
        votes = r.points(arm, "thinking", "accuracy", seed, kind=kind)
        runs = r.points("s1", "thinking", "accuracy", seed, **WAIT, by="asked")[1:]
        rivals = [at_tokens(votes, tokens) for tokens, _ in runs]
        leads = [a - rival for (_, a), rival in zip(runs, rivals, strict=True) if rival is not None]
        return statistics.fmean(leads) if leads else None

    return r.per_seed(of)


def waited(r: Results, first: int, last: int) -> PerSeed:
    """What it gains in accuracy from being kept from closing `first` times to `last` times."""
    return r.last("s1", "accuracy", **WAIT | {"asked": last}) - r.last("s1", "accuracy", **WAIT | {"asked": first})


def claims(preset: str) -> list[Claim]:
    def more(claimed: dict, than: dict):
        """Accuracy of a run of s1 minus that of another, each named by its fields."""
        return lambda r: r.last("s1", "accuracy", **claimed) - r.last("s1", "accuracy", **than)

    def per_doubling(r: Results) -> PerSeed:
        return r.per_seed(lambda s: slope(r.curve("s1", "accuracy", s, "asked", method="until"), log=True))

    return [
        Claim("chosen as s1 - the base: accuracy", lead("s1", "untuned", "accuracy", **ALONE), 0.1),
        *(Claim(f"chosen as s1 - {name}: accuracy", lead("s1", name, "accuracy", **ALONE), 0.03)
          for name in ("random", "longest", "diverse")),
        Claim("chosen as s1 - all of the pool: accuracy", lead("s1", "all", "accuracy", **ALONE), -0.05),
        Claim("budget forcing: accuracy cut at half of its natural length - stopping by itself", cut_at_half, -0.1,
              LESS),
        Claim("forced both ways: accuracy per doubling of the budget", per_doubling, 0.05),
        Claim("forced both ways, the largest budget - stopping by itself: accuracy", more({"method": "until"}, ALONE),
              0.03),
        Claim('"wait" twice - stopping by itself: accuracy', lambda r: waited(r, 0, 2), 0.03),
        Claim('"wait": gain from 4 to 8 times - from 0 to 2', lambda r: waited(r, 4, 8) - waited(r, 0, 2), -0.03, LESS),
        Claim("wait - no word, twice each: accuracy",
              more({"method": "words", "asked": "wait"}, {"method": "words", "asked": "(none)"}), 0.03),
        Claim("token-conditional prompt: Control (it is not obeyed)",
              lambda r: s1_metric(r, "token-conditional", "control"), 0.9, LESS),
        Claim("rejection sampling by length: accuracy with the largest budget - the smallest",
              gain("s1", "accuracy", kind="rejection"), -0.03, LESS),
        Claim("Performance: budget forcing and waiting - the best other way to set a length",
              lambda r: best_of(r, "forced both ways", '"wait"') - best_of(r, *RIVALS), 0.03),
        Claim("equal tokens: waiting - majority of the base, mean over counts", lambda r: lead_over_votes(r, "untuned"),
              0.03),
        Claim("equal tokens: waiting - majority of s1 itself, mean over counts (voting wins: 2506.04210, 2502.12215)",
              lambda r: lead_over_votes(r, "s1"), -0.03, LESS),
    ]  # fmt: skip


def extra(results: Results, preset: str) -> dict:
    """Accuracy, its standard error by problem and tokens of every method by what it asked for; the chosen data."""
    numbers, keys = {}, ("accuracy", "accuracy_se", "thinking", *budget.COUNTED)
    both = {f"the base, {name}": ("untuned", METHODS[name][1]) for name in ('"wait"', "best of k")}
    words = {name: ("s1", {"method": name}) for name in ("words", "suppressed")}
    for name, (arm, where) in {**{name: of[:2] for name, of in METHODS.items()}, **both, **words}.items():
        numbers[name] = {key: results.listed(arm, key, "asked", **where) for key in keys}
        if name in METHODS:
            numbers[name] |= {m: s1_metric(results, name, m).rounded() for m in ("control", "scaling", "performance")}
    for kind in ("majority", "best"):
        numbers[f"waiting - {kind}, equal tokens"] = lead_over_votes(results, "s1", kind).rounded()
    about = ("after_quality", "after_difficulty", "chosen", "chosen_tokens", "chosen_right")
    chosen = {key: key for key in ("accuracy", "accuracy_se", "thinking")}
    return numbers | {
        "data": results.table({name: name for name in about}, [f"pick_{name}" for name in CHOICES]),
        "alone": results.table(chosen, ("untuned", *CHOICES), **ALONE),
        "wait twice": results.table(chosen, ("untuned", *CHOICES), **WAIT | {"asked": 2}),
    }


# -------------------------------------------------------------------------------------------------------- figure


def panels(preset: str) -> list[Panel]:
    """Top: equal tokens, budgets, waits and what they bring. Bottom: other lengths, control, words, choice of data."""
    lines = {name: Line(arm, name, color, where, style="--" if "+" in name else "")
             for name, (arm, where, color) in METHODS.items()}  # fmt: skip
    base = {"wait": Line("untuned", 'the base, "wait"', "C5", WAIT, style=":"),
            "best": Line("untuned", "the base, best of k", "C5", {"kind": "best"}, style="--")}  # fmt: skip
    how = {"by": "asked", "marker": "o", "ylabel": "accuracy on held-out problems"}
    tokens = {"x": "thinking", "xlabel": "mean thinking tokens, of all samples together", "xscale": "log"}
    asked = ("forced both ways", "token-conditional", "token-conditional + forcing", "step-conditional",
             "step-conditional + forcing", "class-conditional", "rejection sampling")  # fmt: skip
    limited = [replace(lines[name], where=lines[name].where | {"most": lambda most: most < budget.NO_LIMIT})
               for name in ("budget forcing", *asked) if "+" not in name]  # fmt: skip
    words = [Line("s1", "stops\nby itself", "C7", ALONE)]
    words += [Line("s1", word, "C0", {"method": "words", "asked": word}) for word in WORDS]
    words.append(Line("s1", "not wait", "C3", {"method": "suppressed"}))
    waits = {"by": "asked", "xlabel": 'number of "wait"', "marker": "o"}

    def limit(axis, r: Results) -> None:
        most = [p[0] for p in r.points("s1", "most", "thinking", method="forcing")]
        axis.plot(most, most, color="black", linewidth=0.8, label="what was allowed")

    def counts(axis, r: Results) -> None:
        for i, name in enumerate(CHOICES, 1):
            if chosen := r.last(f"pick_{name}", "chosen"):
                axis.text(i - 0.2, 0.03, f"{chosen.mean:.0f}", ha="center", fontsize=8, color="white")

    return [
        Panel("Sequential or parallel, at equal tokens",
              [lines['"wait"'], lines["majority"], lines["best of k"], base["wait"], lines["the base, majority"],
               base["best"]], "accuracy", **how, **tokens),
        Panel("Budgets", [lines["budget forcing"], lines["forced both ways"]], "accuracy", "asked", xscale="log",
              xlabel="thinking tokens allowed", **how),
        Panel("How often it is kept from closing",
              [replace(lines['"wait"'], label="s1"), replace(base["wait"], label="the base", style="")],
              {"answered": "accuracy", "found in the thought": "found"}, "asked",
              **how | waits | {"ylabel": "share of held-out problems"}),
        Panel("What waiting brings", [Line("s1", "s1", "C8", WAIT)],
              {"attempts": "attempts", "of these never made before": "attempts/new"}, "asked", ylabel="per thought",
              **waits),
        Panel("Ways to set a length", [lines[name] for name in asked], "accuracy", **how, **tokens
              | {"xlabel": "mean thinking tokens"}),
        Panel("Thinking tokens against what was allowed", limited, "thinking", "most", also=limit, xscale="log",
              yscale="log", xlabel="tokens allowed", ylabel="mean thinking tokens", marker="o"),
        Panel("Appended twice (blue); never sampled (red)", words, "accuracy", kind="bar", ylabel=how["ylabel"]),
        Panel("Choice of demonstrations (white: how many)",
              [Line("untuned", "the base", "C5"), *(Line(name, name, "C0") for name in CHOICES)],
              {"stopping by itself": "0", '"wait" twice': "2"}, kind="bar", also=counts, ylabel=how["ylabel"],
              bars=lambda r, line, waits: r.last(line.arm, "accuracy", method="wait", asked=int(waits))),
    ]  # fmt: skip


def caption(preset: str) -> str:
    settings = PRESETS[preset].budget
    return (
        f"s1 on Countdown by attempts, preset {preset} ({settings.task.inputs} numbers up to {settings.task.max_input})"
        f": {settings.problems} held-out problems, {settings.repeats} thoughts each, {settings.samples} in parallel; "
        "thinking is sampled at temperature 1, answers are greedy. Best of k: chosen by the task's own verdict."
    )
