"""Stream of Search (Gandhi et al., 2024) in miniature: learning to search on Countdown, and getting better at it.

From random weights, all on the same problems in the same order
    op          optimal paths only: the model has to guess the right step at once
    sos         streams of search: symbolic strategies as they went, mistakes and failures included
and from the end of `sos`
    sos_star    STaR: three rounds of fine-tuning on its own successes
    sos_pg      policy gradient with a reward for short searches
    sos_apa     the same with the loss of advantage-induced policy alignment
gpu also has two controls from random weights that are not in the paper
    correct     streams of search that succeeded
    op_tokens   optimal paths of three times as many problems: as many tokens as `sos`

Held-out problems have new inputs for known targets, or targets that no training problem has. The preset `cpu` has three
inputs of 1 to 30 and the paper's mixture of twelve strategies, whose searches all but a few fit into 640 tokens. As in
the paper all learn from the same fixed set of problems, again and again: whoever sees ever new ones with three inputs
learns to guess. What a guess often made costs beside a search is shown on one axis of tokens (2504.07052 asks for it).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from nanoreason.experiments.figure import Line, Panel
from nanoreason.experiments.results import LESS, Arm, Claim, PerSeed, Results, average, lead, ratio
from nanoreason.learn import ALGORITHMS, Algorithm
from nanoreason.recipes import grpo, search_test, sft, star
from nanoreason.recipes.search_test import BEST_OF, BUDGETS, SPLITS
from nanoreason.rewards import Metric
from nanoreason.run import Schedule
from nanoreason.search import ERRORS, STRATEGIES
from nanoreason.tasks import StreamOfSearch

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
    sos: sft.SftConfig  # the searcher
    star: star.StarConfig
    pg: grpo.GrpoConfig
    test: search_test.SearchTestConfig
    best_of: dict[str, int]  # arm: how many samples of each problem, of which an oracle chooses the best
    controls: dict[str, dict] = field(default_factory=dict)  # arm: what differs from the searcher


CPU_TASK = StreamOfSearch(3, 30, (10, 60))
CPU_SOS = sft.SftConfig(
    task=CPU_TASK, distinct=40_000, context=640, optimizer="muon", steps=6000, rows_per_step=32, lr=5e-3,
    micro_tokens=4096, eval_problems=200, eval_every=1000,
)  # fmt: skip
CPU_STAR = star.StarConfig(
    task=CPU_TASK, rounds=3, pool=40_000, problems=1000, temperature=0.8, restart=False, prompt_set=0,
    first_steps=60, step_increment=0, rows_per_step=32, lr=3e-4, decay="cosine", warmup=10, micro_tokens=4096,
    eval_problems=200,
)  # fmt: skip
CPU_PG = grpo.GrpoConfig(
    task=CPU_TASK, rewards=(Metric(name="rating"),), algorithm=Algorithm(average="token"), steps=40, prompts=32,
    group_size=4, max_new_tokens=Schedule(640), preflight=0, lr=2e-4, warmup=5, micro_tokens=4096, eval_problems=200,
)  # fmt: skip
# A path is some 35 tokens, a search 145: what is spent on one problem then reaches about equally far.
SAMPLES = {"op": 64, "sos": 8}
TINY_TASK = StreamOfSearch(3, 9, (10, 40))
GPU_TASK = StreamOfSearch()
PRESETS = {
    "cpu": Preset(CPU_SOS, CPU_STAR, CPU_PG, search_test.SearchTestConfig(task=CPU_TASK), SAMPLES),
    "tiny": Preset(
        replace(CPU_SOS, task=TINY_TASK, distinct=0, width=32, layers=2, heads=2, kv_heads=1, context=128, steps=12,
                rows_per_step=8, warmup=2, save_every=6, log_every=2, eval_problems=6, eval_every=6),
        replace(CPU_STAR, task=TINY_TASK, rounds=2, pool=100, problems=8, first_steps=2, rows_per_step=4, warmup=1,
                eval_problems=6),
        replace(CPU_PG, task=TINY_TASK, steps=2, prompts=2, group_size=4, max_new_tokens=Schedule(100), warmup=1,
                eval_problems=6),
        search_test.PRESETS["tiny"],
        {"op": 4, "sos": 2},
        {"correct": {"data": "correct"}},
    ),
    "gpu": Preset(
        replace(CPU_SOS, task=GPU_TASK, distinct=0, width=384, layers=8, heads=6, kv_heads=3, context=2048, steps=6000,
                rows_per_step=64, lr=1e-3, warmup=200, micro_tokens=65536, eval_problems=500, eval_every=2000),
        replace(CPU_STAR, task=GPU_TASK, pool=100_000, problems=5000, rows_per_step=64, first_steps=300, lr=1e-4,
                micro_tokens=65536, eval_problems=500),
        replace(CPU_PG, task=GPU_TASK, steps=20, prompts=64, lr=1e-4, max_new_tokens=Schedule(2000), micro_tokens=65536,
                eval_problems=500),
        search_test.PRESETS["gpu"],
        SAMPLES,
        {"correct": {"data": "correct"}, "op_tokens": {"data": "op", "steps": 18000, "eval_every": 4500}},
    ),
}  # fmt: skip


def arms(preset: str, seed: int) -> list[Arm]:
    """What starts from random weights, what starts from the searcher, and the test of each."""
    chosen = PRESETS[preset]

    def learner(arm: str, data: str, **settings) -> Arm:
        task = replace(chosen.sos.task, data=data)
        return Arm(f"{arm}_model", "sft", replace(chosen.sos, task=task, **settings))

    trained = [
        learner("sos", "sos"),
        learner("op", "op"),
        *(learner(arm, **settings) for arm, settings in chosen.controls.items()),
        Arm("sos_star_model", "star", chosen.star, "sos_model", cost=1500.0),
        Arm("sos_pg_model", "grpo", chosen.pg, "sos_model", cost=1500.0),
        Arm("sos_apa_model", "grpo", replace(chosen.pg, algorithm=ALGORITHMS["apa"]), "sos_model", cost=1500.0),
    ]
    tests = []
    for arm in (arm.name.removesuffix("_model") for arm in trained):
        config = replace(chosen.test, samples=chosen.best_of.get(arm, 0))
        tests.append(Arm(arm, "search_test", config, f"{arm}_model", cost=500.0))
    return trained + tests


# -------------------------------------------------------------------------------------------------------- claims

INPUTS, TARGETS = (f"acc/{split}" for split in SPLITS)
BOTH, NODES, ARITHMETIC = (tuple(f"{key}/{split}" for split in SPLITS) for key in ("acc", "nodes", "errors/arithmetic"))


def of_mixture(r: Results, preset: str, key: str, split: str = SPLITS[0]) -> PerSeed:
    """The strategies' mean of `symbolic...` metrics, weighted as they were drawn for the training data."""
    shares = PRESETS[preset].sos.task.mixture().items()
    terms = [r.last("sos", f"{key}/{name}/{split}") * (share * len(shares)) for name, share in shares]
    return average(terms)


def closest(r: Results, arm: str) -> PerSeed:
    """The largest alignment of visited states with a single strategy."""
    alignments = [r.last(arm, f"states/{name}/{SPLITS[0]}") for name in STRATEGIES]
    return r.per_seed(lambda seed: max((values[seed] for values in alignments if seed in values), default=None))


def first_and_last_gain(preset: str):
    """What the first round of STaR gains more than the last."""
    inputs = PRESETS[preset].sos.task.inputs

    def of(r: Results) -> PerSeed:
        rounds = list(r.by("sos_star", BOTH, "step").values())
        if "sos_star_model" in r.arms:  # its own tests, on new inputs; the first one is before any round
            rounds = list(r.by("sos_star_model", f"acc/{inputs}", "step").values())
        else:
            rounds.insert(0, r.last("sos", BOTH))
        return (rounds[1] - rounds[0]) - (rounds[-1] - rounds[-2]) if len(rounds) > 2 else PerSeed()

    return of


def best_for(r: Results, arm: str, tokens: PerSeed) -> PerSeed:
    """Accuracy of the best of as many samples as `tokens` pay for."""

    def of(seed: int) -> float | None:
        found = None
        for n in BEST_OF:
            cost, accuracy = (r.last(arm, f"best/{n}/{key}") for key in ("tokens", "acc"))
            if seed in cost and seed in tokens and cost[seed] <= tokens[seed]:
                found = accuracy[seed]
        return found

    return r.per_seed(of)


def claims(preset: str) -> list[Claim]:
    chosen = PRESETS[preset]
    few = max(n for n in BEST_OF if n <= max(1, chosen.best_of["sos"] // 2))
    reached = [budget for budget in BUDGETS if budget <= chosen.sos.context]
    most, quarter = reached[-1], reached[max(0, len(reached) - 3)]

    def ahead(tokens: str, accuracy: str):
        """What the best of n optimal paths solves more than the searcher, for no more than its tokens."""
        return lambda r: best_for(r, "op", r.last("sos", tokens)) - r.last("sos", accuracy)

    return [
        Claim("sos - op: solved, new inputs", lead("sos", "op", INPUTS), 0.05),
        Claim("sos - op: solved, held-out targets", lead("sos", "op", TARGETS), 0.05),
        *(Claim(f"sos - {arm}: solved, both splits", lead("sos", arm, BOTH), 0.05) for arm in chosen.controls),
        Claim("sos - its strategies in the same context: solved, new inputs",
              lambda r: r.last("sos", INPUTS) - of_mixture(r, preset, "symbolic_within"), -0.1),
        Claim("sos: solved, new inputs - held-out targets", lambda r: r.last("sos", INPUTS) - r.last("sos", TARGETS),
              0.05, LESS),
        Claim("sos: largest alignment of its states with one strategy", lambda r: closest(r, "sos"), 0.7, LESS),
        Claim(f"sos: solved within {most} tokens - within {quarter}",
              lambda r: r.last("sos", f"budget/{most}/acc") - r.last("sos", f"budget/{quarter}/acc"), 0.1),
        Claim("equal tokens: best of n optimal paths - one search, greedy (2504.07052)",
              ahead(f"tokens/{SPLITS[0]}", INPUTS), 0.05),
        Claim(f"equal tokens: best of n optimal paths - best of {few} searches",
              ahead(f"best/{few}/tokens", f"best/{few}/acc"), 0.05),
        Claim("optimal paths - random legal paths: best of 4",
              lambda r: r.last("op", "best/4/acc") - r.last("op", "random_best/4/acc"), 0.1),
        Claim("sos_star - sos: solved, both splits", lead("sos_star", "sos", BOTH), 0.03),
        Claim("sos_star: gain of the first round - of the last", first_and_last_gain(preset), 0.02),
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
    names += [f"{kind}/{n}/{key}" for kind, sizes in (("budget", BUDGETS), ("best", BEST_OF), ("random_best", BEST_OF),
                                                      ("symbolic_budget", BUDGETS))
              for n in sizes for key in ("acc", "tokens")]  # fmt: skip
    mixture = {
        f"{key}/{split}": of_mixture(results, preset, key, split).rounded()
        for key in ("symbolic", "symbolic_within") for split in SPLITS
    }  # fmt: skip
    chance = {f"chance/{split}": results.last("sos", f"chance/{split}").rounded() for split in SPLITS}
    return results.table({name: name for name in names}) | {"strategies": mixture | chance}


# -------------------------------------------------------------------------------------------------------- figure


def panels(preset: str) -> list[Panel]:
    """Solved: per split, against the strategies, at what cost, of the hard problems; then nodes, errors, alignment."""
    short = dict(zip(ARMS, ("optimal\npaths", "optimal,\nSoS tokens", "SoS", "correct\nSoS", "SoS\n+ STaR", "SoS\n+ PG",
                            "SoS\n+ APA"), strict=True))  # fmt: skip
    controls = {"op_tokens", "correct"} - PRESETS[preset].controls.keys()
    bars = [Line(arm, name, COLORS[arm]) for arm, name in short.items() if arm not in controls]
    of_splits = {"new inputs": INPUTS, "held-out targets": TARGETS}
    searchers = [Line(arm, ARMS[arm], COLORS[arm]) for arm in ("sos", "sos_star", "sos_pg")]

    spent = [
        Line("sos", "SoS, greedy, cut at a budget", COLORS["sos"], y="budget"),
        Line("sos", "SoS, best of n", COLORS["sos_pg"], y="best"),
        Line("op", "optimal paths, best of n", COLORS["op"], y="best"),
        Line("sos", "the strategies, cut at a budget", "black", y="symbolic_budget", style=":"),
        Line("sos", "random legal paths, best of n", "tab:pink", y="random_best", style=":"),
    ]

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

    def costs(r: Results, line: Line, key: str, seed: int | None) -> list[tuple[float, float]]:
        """(tokens a problem, share solved) for each budget, or each number of samples."""
        found = [tuple(r.last(line.arm, f"{line.y}/{n}/{key}") for key in ("tokens", "acc"))
                 for n in (BEST_OF if "best" in line.y else BUDGETS)]  # fmt: skip
        return [(x.mean, y.mean) if seed is None else (x[seed], y[seed]) for x, y in found if x and y]

    return [
        Panel("Solved, strictly judged", bars, of_splits, kind="bar", also=strategies, ylim=(0, 1),
              ylabel="share of held-out problems"),
        Panel("The twelve strategies, new inputs", [Line("sos", name, "dimgray") for name in STRATEGIES],
              {"unlimited": "symbolic", "in the same context": "symbolic_within"}, kind="bar", also=levels, ylim=(0, 1),
              bars=lambda r, line, key: r.last("sos", f"{key}/{line.label}/{SPLITS[0]}"),
              ylabel="share of held-out problems solved"),
        Panel("What accuracy costs, new inputs", spent, "acc", points=costs, xscale="log", marker="o", ylim=(0, 1),
              xlabel="tokens spent on a problem, mean", ylabel="share of held-out problems solved"),
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
    task = PRESETS[preset].sos.task
    return (
        f"Stream of Search on Countdown with {task.inputs} inputs up to {task.max_input}, preset {preset}: "
        "greedy responses to held-out problems."
    )
