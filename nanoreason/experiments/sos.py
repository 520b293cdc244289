"""Stream of Search (Gandhi et al., 2024) in miniature: learning to search on Countdown, and getting better at it.

From random weights, all on the same problems in the same order
    op          optimal paths only: the model has to guess the right step at once
    op_tokens   optimal paths of three times as many problems: as many tokens as `sos` (not in the paper; seed 0 alone)
    sos         streams of search: symbolic strategies as they went, mistakes and failures included
    correct     streams of search that succeeded (a control)
and from the end of `sos`
    sos_star    STaR: three rounds of fine-tuning on its own successes
    sos_pg      policy gradient with a reward for short searches
    sos_apa     the same with the loss of advantage-induced policy alignment

Held-out problems have new inputs for known targets, or targets that no training problem has. The preset `cpu` has
three inputs up to 50, and of the twelve strategies the six short ones (beams of 2 to 4), so that a search fits into 320
tokens: a path that is guessed at random is right in 8 % of problems, the searches that it learns from in about 70 %.
With smaller inputs the right path is soon guessed without any search (optimal paths of inputs up to 20 teach to solve
three in four problems), with larger ones arithmetic takes too long to learn.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from nanoreason.experiments.figure import Line, Panel
from nanoreason.experiments.results import LESS, Arm, Claim, PerSeed, Results, average, lead, ratio
from nanoreason.recipes import sos, sos_improve
from nanoreason.search import ERRORS, STRATEGIES
from nanoreason.trajectories import SPLITS

ARMS = {
    "op": "optimal paths",
    "op_tokens": "optimal paths, as many tokens as SoS",
    "sos": "SoS",
    "correct": "correct-only SoS",
    "sos_star": "SoS + STaR",
    "sos_pg": "SoS + policy gradient",
    "sos_apa": "SoS + APA",
}
COLORS = dict(
    zip(ARMS, ("tab:gray", "tab:brown", "tab:blue", "tab:cyan", "tab:green", "tab:orange", "tab:red"), strict=True)
)


@dataclass(frozen=True)
class Preset:
    sos: sos.SosConfig  # the searcher
    op_tokens: dict  # optimal paths are short: with these settings they make as many tokens
    star: sos_improve.SosImproveConfig
    pg: sos_improve.SosImproveConfig
    apa: sos_improve.SosImproveConfig


def preset_of(name: str, policy_gradient: str, op_tokens: dict) -> Preset:
    improve = sos_improve.PRESETS
    by_gradient = replace(improve[policy_gradient], method="pg")
    return Preset(sos.PRESETS[name], op_tokens, improve[name], by_gradient, replace(by_gradient, method="apa"))


PRESETS = {
    "cpu": preset_of("cpu", "pg", {"rows_per_step": 37}),
    "tiny": preset_of("tiny", "tiny", {}),
    "gpu": preset_of("gpu", "gpu-pg", {"steps": 18000, "eval_every": 4500}),
}


def arms(preset: str, seed: int) -> list[Arm]:
    """What starts from random weights, and what starts from the searcher."""
    chosen = PRESETS[preset]
    learners = {"sos": {}, "correct": {"data": "correct"}, "op": {"data": "op"}}
    if seed == 0:  # a control that costs as much as `sos`
        learners["op_tokens"] = {"data": "op", **chosen.op_tokens}
    improvers = {"sos_star": chosen.star, "sos_pg": chosen.pg, "sos_apa": chosen.apa}
    shared = ("inputs", "max_input", "targets", "strategies", "eval_problems", "hard_problems")
    same = {name: getattr(chosen.sos, name) for name in shared}
    cost = chosen.sos.steps / 4
    return [Arm(arm, "sos", replace(chosen.sos, **data)) for arm, data in learners.items()] + [
        Arm(arm, "sos_improve", replace(config, **same), "sos", cost=cost) for arm, config in improvers.items()
    ]


# -------------------------------------------------------------------------------------------------------- claims

INPUTS, TARGETS = (f"acc/{split}" for split in SPLITS)
BOTH, NODES, ARITHMETIC = (tuple(f"{key}/{split}" for split in SPLITS) for key in ("acc", "nodes", "errors/arithmetic"))


def of_mixture(r: Results, preset: str, key: str, split: str = SPLITS[0]) -> PerSeed:
    """The strategies' mean of `symbolic...` metrics, weighted as they were drawn for the training data."""
    shares = PRESETS[preset].sos.mixture().items()
    terms = [r.last("sos", f"{key}/{name}/{split}") * (share * len(shares)) for name, share in shares]
    return average(terms)


def closest(r: Results, arm: str) -> PerSeed:
    """The largest alignment of visited states with a single strategy."""
    alignments = [r.last(arm, f"states/{name}/{SPLITS[0]}") for name in STRATEGIES]
    return r.per_seed(lambda seed: max((values[seed] for values in alignments if seed in values), default=None))


def first_and_last_gain(r: Results) -> PerSeed:
    """What the first round of STaR gains more than the last."""
    rounds = list(r.by("sos_star", BOTH, "step").values())
    return (rounds[0] - r.last("sos", BOTH)) - (rounds[-1] - rounds[-2]) if len(rounds) > 1 else PerSeed()


def claims(preset: str) -> list[Claim]:
    return [
        Claim("sos - op: solved, new inputs", lead("sos", "op", INPUTS), 0.05),
        Claim("sos - op: solved, held-out targets", lead("sos", "op", TARGETS), 0.05),
        Claim("sos - op_tokens: solved, both splits", lead("sos", "op_tokens", BOTH), 0.05),
        Claim("sos - correct: solved, both splits", lead("sos", "correct", BOTH), 0.03),
        Claim("sos - its strategies in the same context: solved, new inputs",
              lambda r: r.last("sos", INPUTS) - of_mixture(r, preset, "symbolic_within"), -0.1),
        Claim("sos: solved, new inputs - held-out targets", lambda r: r.last("sos", INPUTS) - r.last("sos", TARGETS),
              0.05, LESS),
        Claim("sos: largest alignment of its states with one strategy", lambda r: closest(r, "sos"), 0.7, LESS),
        Claim("sos_star - sos: solved, both splits", lead("sos_star", "sos", BOTH), 0.03),
        Claim("sos_star: gain of the first round - of the last", first_and_last_gain, 0.02),
        Claim("sos_pg - sos: solved, both splits", lead("sos_pg", "sos", BOTH), 0.03),
        Claim("sos_apa - sos: solved, both splits", lead("sos_apa", "sos", BOTH), 0.03),
        Claim("sos_pg / sos_star: arithmetic errors per trajectory",
              ratio("sos_pg", "sos_star", ARITHMETIC, Results.last), 0.9, LESS, 1),
        Claim("sos_pg / sos_star: states explored per trajectory",
              ratio("sos_pg", "sos_star", NODES, Results.last), 0.95, LESS, 1),
        *(Claim(f"{arm} - sos: solved of the {problems}", lead(arm, "sos", f"acc/{problems}"), size)
          for problems, size in (("unsolved", 0.03), ("difficult", 0.01)) for arm in ("sos_star", "sos_pg")),
    ]  # fmt: skip


def extra(results: Results, preset: str) -> dict:
    """What every arm solves, explores and gets wrong, and what the strategies solve."""
    names = [
        f"{key}/{split}"
        for split in SPLITS
        for key in ("acc", "nodes", "tokens", "cut", *map("errors/{}".format, ERRORS))
    ]
    names += ["acc/unsolved", "acc/difficult", "problems", "tokens_seen", "dropped_share"]
    mixture = {
        f"{key}/{split}": of_mixture(results, preset, key, split).rounded()
        for key in ("symbolic", "symbolic_within") for split in SPLITS
    }  # fmt: skip
    chance = {f"chance/{split}": results.last("sos", f"chance/{split}").rounded() for split in SPLITS}
    return results.table({name: name for name in names}) | {"strategies": mixture | chance}


# -------------------------------------------------------------------------------------------------------- figure


def panels(preset: str) -> list[Panel]:
    """Top: solved per split, against the strategies, of the hard problems. Bottom: nodes, errors, alignment."""
    names = ["optimal\npaths", "optimal,\nSoS tokens", "SoS", "correct\nSoS", "SoS\n+ STaR", "SoS\n+ PG", "SoS\n+ APA"]
    bars = [Line(arm, name, COLORS[arm]) for arm, name in zip(ARMS, names, strict=True)]
    of_splits = {"new inputs": INPUTS, "held-out targets": TARGETS}
    searchers = [Line(arm, ARMS[arm], COLORS[arm]) for arm in ("sos", "sos_star", "sos_pg")]

    def strategies(axis, r: Results) -> None:
        for key, style, label in (("symbolic", "--", "unlimited"), ("symbolic_within", "-.", "in the same context")):
            axis.axhline(of_mixture(r, preset, key).mean, color="black", linestyle=style, linewidth=1,
                         label=f"its strategies, {label}")  # fmt: skip
        axis.axhline(r.last("sos", f"chance/{SPLITS[0]}").mean, color="black", linestyle=":", linewidth=1,
                     label="random legal path")  # fmt: skip

    def aligned(r: Results, line: Line, key: str, seed: int | None) -> list[tuple[str, float]]:
        values = {name: r.last(line.arm, f"{key}/{name}/{SPLITS[0]}") for name in STRATEGIES}
        return [(name, v.mean if seed is None else v[seed]) for name, v in values.items() if v]

    def levels(axis, r: Results) -> None:
        for arm in ("op", "sos", "sos_star"):
            axis.axhline(r.last(arm, INPUTS).mean, color=COLORS[arm], linewidth=2, label=ARMS[arm])

    return [
        Panel("Solved, strictly judged", bars, of_splits, kind="bar", also=strategies, ylim=(0, 1),
              ylabel="share of held-out problems"),
        Panel("The twelve strategies, new inputs", [Line("sos", name, "dimgray") for name in STRATEGIES],
              {"unlimited": "symbolic", "in the same context": "symbolic_within"}, kind="bar", also=levels, ylim=(0, 1),
              bars=lambda r, line, key: r.last("sos", f"{key}/{line.label}/{SPLITS[0]}"),
              ylabel="share of held-out problems solved"),
        Panel("Solved of what symbolic search failed on", bars,
              {"the drawn strategy failed": "acc/unsolved", "all twelve failed": "acc/difficult"}, kind="bar",
              ylabel="share solved"),
        Panel("States explored", bars, {label: key.replace("acc", "nodes") for label, key in of_splits.items()},
              kind="bar", ylabel="states per trajectory"),
        Panel("Errors, new inputs", bars, {kind: f"errors/{kind}/{SPLITS[0]}" for kind in ERRORS}, kind="bar",
              ylabel="errors per trajectory"),
        Panel("Alignment with the strategies, new inputs", searchers,
              {"of the states visited": "states", "of what is solved": "correctness"}, points=aligned, xlabel="",
              ylabel="correlation", marker="o", ylim=(-0.2, 1),
              also=lambda axis, r: axis.tick_params(axis="x", rotation=60, labelsize=8)),
    ]  # fmt: skip


def caption(preset: str) -> str:
    sos = PRESETS[preset].sos
    return (
        f"Stream of Search on Countdown with {sos.inputs} inputs up to {sos.max_input}, preset {preset}: "
        "greedy responses to held-out problems."
    )
