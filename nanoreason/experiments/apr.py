"""Adaptive Parallel Reasoning (Pan et al., 2025) in miniature, on Countdown by attempts with four numbers.

From the base that sections share (section `base`), which can solve problems of three numbers, two models are taught by
demonstrations of about as many tokens, each for a context of 256 response tokens:

    serial   one thread that tries and tries again                                           (the paper's SoS+)
    apr      a parent that spawns children with one operation done, and joins what they find

Each is then improved by GRPO with the verdict of the last answer as its only reward, which for `apr` reaches every
thread: free, and with the widest spawn asked for in every prompt. `faithful` is taught like `apr`, but with the joins
in the loss, as the released code does.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace

from nanoreason.experiments.base import shared
from nanoreason.experiments.figure import Line, Panel
from nanoreason.experiments.results import LESS, Arm, Claim, PerSeed, Results, at_tokens
from nanoreason.learn import ALGORITHMS
from nanoreason.prompts import CLOSE, OPEN
from nanoreason.recipes import grpo, parallel, sft
from nanoreason.rewards import Accuracy
from nanoreason.run import Schedule
from nanoreason.spawn import STEP
from nanoreason.tasks import HardAttempts
from nanoreason.tasks.attempts import Mixture
from nanoreason.tasks.wrappers import Parallel


@dataclass(frozen=True)
class Preset:
    tune: sft.SftConfig  # of apr and faithful
    serial_steps: int  # of serial, whose demonstrations are longer: about as many tokens
    grpo: grpo.GrpoConfig
    measure: parallel.ParallelConfig


THREAD = HardAttempts(shares=Mixture.parse("long:1"), longest=230)  # a thought and its answer fit 256 tokens
TAUGHT = Parallel(HardAttempts(), texts=(0.4, 0.3, 0.3), asked_share=0.7)
FREE = Parallel(HardAttempts())
# DIFFERS from the paper: it trains a model for spawns that are asked for and one for free ones; here it is one model,
# and seven in ten of its demonstrations say in the prompt how many children they spawn.
TUNE = sft.SftConfig(
    task=TAUGHT, eval_task=FREE, optimizer="muon", lr=2e-3, warmup=10, steps=600, rows_per_step=48, eval_problems=0
)
# DIFFERS from the paper: one update per rollout instead of two, no KL, groups of 8 instead of 5; the average is by a
# constant, so that a token of a short child counts no more than one of a long parent. At lr 3e-4 children soon ran into
# their windows, and accuracy rose to .56 in six steps and fell again.
RL = grpo.GrpoConfig(
    task=FREE, rewards=(Accuracy(),), steps=10, prompts=24, group_size=8, lr=1e-4, algorithm=ALGORITHMS["dr_grpo"],
    max_new_tokens=Schedule(256), warmup=2, preflight=0, eval_every=0, eval_problems=1, save_every=4,
)  # fmt: skip
PRESETS = {
    "cpu": Preset(TUNE, 300, RL, parallel.PRESETS["cpu"]),
    "tiny": Preset(
        replace(TUNE, steps=2, rows_per_step=4, warmup=1), 1,
        replace(RL, steps=2, prompts=2, group_size=2, warmup=1, max_new_tokens=Schedule(64)),
        parallel.PRESETS["tiny"],
    ),
    "gpu": Preset(
        replace(TUNE, steps=800, rows_per_step=256, lr=1e-3, micro_tokens=65536), 400,
        replace(RL, steps=150, prompts=64, micro_tokens=65536), parallel.PRESETS["gpu"],
    ),
}  # fmt: skip
COLORS = {"serial": "tab:gray", "apr": "tab:blue", "rl_serial": "black", "rl_apr": "tab:red", "rl_wide": "tab:orange"}
LABELS = {"serial": "one thread", "apr": "threads", "rl_serial": "one thread, RL", "rl_apr": "threads, RL",
          "rl_wide": "threads, RL at the widest"}  # fmt: skip


def arms(preset: str, seed: int) -> list[Arm]:
    """The base; three models that are taught, three that are reinforced; what each of them is worth."""
    chosen = PRESETS[preset]
    widest = chosen.measure.widths[-1]

    def tested(name: str, *methods: str) -> Arm:
        task = HardAttempts() if "serial" in name else FREE
        config = replace(chosen.measure, task=task, methods=methods)
        return Arm(f"test_{name}", "parallel", config, name, cost=50.0 * len(methods))

    serial = replace(chosen.tune, task=THREAD, eval_task=THREAD, steps=chosen.serial_steps)
    # half as long as apr: it is asked for nothing but what it makes up
    faithful = replace(chosen.tune, task=replace(TAUGHT, faithful_mask=True), steps=max(1, chosen.tune.steps // 2))
    wide = replace(chosen.grpo, task=replace(FREE, asked=widest))
    return [
        shared(preset, seed),
        Arm("serial", "sft", serial, "base"),
        Arm("apr", "sft", chosen.tune, "base"),
        Arm("faithful", "sft", faithful, "base"),
        Arm("rl_serial", "grpo", replace(chosen.grpo, task=HardAttempts()), "serial", cost=20.0 * chosen.grpo.steps),
        Arm("rl_apr", "grpo", chosen.grpo, "apr", cost=100.0 * chosen.grpo.steps),
        Arm("rl_wide", "grpo", wide, "apr", cost=100.0 * chosen.grpo.steps),
        tested("serial", "context", "samples", "alone", "exhaustive"),
        tested("apr", "context", "asked", "alone"),
        tested("faithful", "context"),
        tested("rl_serial", "context", "samples", "alone"),
        tested("rl_apr", "context", "asked", "alone"),
        tested("rl_wide", "asked"),
    ]


# -------------------------------------------------------------------------------------------------------- claims


def claims(preset: str) -> list[Claim]:
    windows, widths = PRESETS[preset].measure.windows, PRESETS[preset].measure.widths
    window, widest = windows[-1], widths[-1]
    few = max(width for width in widths if width <= 3)

    def free(name: str, key: str) -> Callable[[Results], PerSeed]:
        return lambda r: r.last(f"test_{name}", key, method="context", asked=window)

    def wide(name: str, key: str, width: int = widest) -> Callable[[Results], PerSeed]:
        return lambda r: r.last(f"test_{name}", key, method="asked", asked=width)

    def minus(a: Callable, b: Callable) -> Callable[[Results], PerSeed]:
        return lambda r: a(r) - b(r)

    def over(a: Callable, b: Callable) -> Callable[[Results], PerSeed]:
        return lambda r: a(r) / b(r)

    learnt = {name: minus(free(f"rl_{name}", "accuracy"), free(name, "accuracy")) for name in ("serial", "apr")}
    wider = over(free("rl_apr", "children"), free("apr", "children"))
    deeper = over(free("rl_apr", "child_tokens"), free("apr", "child_tokens"))
    return [
        Claim("R1, taught: threads - one thread: accuracy at equal context",
              minus(free("apr", "accuracy"), free("serial", "accuracy")), 0.1),
        Claim("R1, after RL: threads - one thread: accuracy at equal context",
              minus(free("rl_apr", "accuracy"), free("rl_serial", "accuracy")), 0.1),
        Claim("R2, taught: one child asked for - one thread: accuracy (threads cost more than they bring)",
              minus(wide("apr", "accuracy", widths[0]), free("serial", "accuracy")), 0.0, LESS),
        *(Claim(f"R2, {when}: 4 children and more - {kind}@k of one thread at as many tokens: accuracy",
                lambda r, pair=pair, kind=kind: lead_at_equal_tokens(r, *pair, kind), 0.03)
          for when, pair in (("taught", ("apr", "serial")), ("after RL", ("rl_apr", "rl_serial")))
          for kind in ("cons", "pass")),
        Claim(f"R3: critical path with {widest} children / with {few}",
              over(wide("apr", "sequential"), wide("apr", "sequential", few)), 1.4, LESS, no_effect=2.0),
        Claim(f"R3: all tokens with {widest} children / with {few}",
              over(wide("apr", "total"), wide("apr", "total", few)), 2.0, no_effect=1.0),
        Claim("R4, RL free: gain in accuracy", learnt["apr"], 0.03),
        Claim("R4, RL free: children after / before", wider, 1.15, no_effect=1.0),
        Claim("R4, RL free: all tokens after / before", over(free("rl_apr", "total"), free("apr", "total")), 1.05,
              no_effect=1.0),
        Claim("R4, wider not deeper: rise of children - rise of tokens per child", minus(wider, deeper), 0.1),
        Claim("R5, RL at the widest: what it changes in accuracy",
              lambda r: abs(minus(wide("rl_wide", "accuracy"), wide("apr", "accuracy"))(r)), 0.05, LESS),
        Claim("R6: gain by RL of threads - of one thread", minus(learnt["apr"], learnt["serial"]), 0.03),
        Claim("all tokens / those on the critical path, taught", over(free("apr", "total"), free("apr", "sequential")),
              1.3, no_effect=1.1),
        Claim("threads one after another / side by side: seconds of a problem, taught",
              lambda r: speedup(r, "apr", "serial"), 1.1, no_effect=1.0),
        Claim("joins in the loss - not: rollouts in which a parent makes a result up",
              minus(free("faithful", "hallucinated"), free("apr", "hallucinated")), 0.2),
    ]  # fmt: skip


def lead_at_equal_tokens(r: Results, threads: str, serial: str, kind: str) -> PerSeed:
    """Accuracy where at least four children are asked for, minus that of a single thread's k samples (cons@k, pass@k)
    at as many tokens; mean over the widths. Between two numbers of samples the rival's accuracy is taken to grow with
    the logarithm of the tokens, as the figure draws it."""

    def of(seed: int) -> float | None:
        rivals = r.points(f"test_{serial}", "total", "accuracy", seed, kind=kind)
        leads = []
        for total, accuracy in r.points(f"test_{threads}", "total", "accuracy", seed, by="asked", method="asked",
                                        asked=lambda width: width >= 4):  # fmt: skip
            rival = at_tokens(rivals, total)
            leads += [] if rival is None else [accuracy - rival]
        return statistics.fmean(leads) if leads else None

    return r.per_seed(of)


def speedup(r: Results, threads: str, serial: str) -> PerSeed:
    """Seconds that all of a problem's tokens would take one after another, at the pace of a model with one thread, over
    the seconds that they take. It is less than the ratio of tokens: a step with several rows costs more."""
    pace = r.last(f"test_{serial}", "seconds", method="alone") / r.last(f"test_{serial}", "steps", method="alone")
    spent = r.last(f"test_{threads}", "seconds", method="alone")
    return r.last(f"test_{threads}", "total", method="alone") * pace / spent


def extra(results: Results, preset: str) -> dict:
    """Accuracy and clocks of every model, at every context, width and number of samples."""
    keys = ("accuracy", "accuracy_se", "children", "rounds", "cut", "child_tokens", "sequential", "total", "operations",
            "hallucinated", "seconds", "steps")  # fmt: skip
    numbers = {}
    for name in (*LABELS, "faithful"):
        for method in ("context", "asked", "alone"):
            found = {key: results.listed(f"test_{name}", key, "asked", method=method) for key in keys}
            numbers[f"{name}, {method}"] = {key: value for key, value in found.items() if value}
        for kind in ("cons", "pass"):
            found = {key: results.listed(f"test_{name}", key, "asked", kind=kind) for key in ("accuracy", "total")}
            numbers[f"{name}, {kind}"] = {key: value for key, value in found.items() if value}
    numbers["speed-up on the clock"] = {name: speedup(results, f"{name}apr", f"{name}serial").rounded()
                                        for name in ("", "rl_")}  # fmt: skip
    return {name: value for name, value in numbers.items() if value}


# -------------------------------------------------------------------------------------------------------- figure


def panels(preset: str) -> list[Panel]:
    """Equal context, tokens and critical path; operations, the clock, RL; how wide, one problem in time, its tree."""

    def line(name: str, method: str, label: str = "") -> Line:
        return Line(f"test_{name}", label or LABELS[name], COLORS[name], {"method": method})

    def votes(name: str, kind: str) -> Line:
        style = {"cons": "--", "pass": ":"}[kind]
        return Line(f"test_{name}", f"{LABELS[name]}, {kind}@k", COLORS[name], {"kind": kind}, style=style)

    share = {"ylabel": "accuracy on held-out problems", "marker": "o", "ylim": (-0.03, 1.03)}
    asked = [line("apr", "asked", "threads, 1 to 8 asked for"), line("rl_apr", "asked", "the same, RL")]
    rivals = [votes(name, kind) for name in ("serial", "rl_serial") for kind in ("cons", "pass")]
    every = [Line(name, LABELS[name], COLORS[name]) for name in ("rl_serial", "rl_apr", "rl_wide")]

    def ratio(r: Results, line: Line, how: str) -> PerSeed:
        name = line.arm.removeprefix("test_")
        if how == "clock":
            return speedup(r, name, name.replace("apr", "serial"))
        return r.last(line.arm, "total", method="alone") / r.last(line.arm, "sequential", method="alone")

    return [
        Panel("Accuracy at equal context", [line(name, "context") for name in ("serial", "apr", "rl_serial", "rl_apr")],
              "accuracy", "asked", xlabel="response tokens that every row may have", **share),
        Panel("Accuracy against all tokens", [*asked, *rivals], "accuracy", "total", by="asked", xscale="log",
              xlabel="tokens of all threads or samples", **share),
        Panel("Accuracy against the critical path", [*asked, *rivals], "accuracy", "sequential", by="asked",
              xlabel="tokens that wait for one another", **share),
        Panel("Accuracy at equal operations",
              [*asked, Line("test_serial", "exhaustive search, random order", "tab:green", {"method": "exhaustive"},
                            style=":")],
              "accuracy", "operations", by="asked", xscale="log", xlabel="calculations", **share),
        Panel("Side by side instead of one after another", [line("apr", "alone"), line("rl_apr", "alone")],
              {"in tokens": "tokens", "on the clock": "clock"}, kind="bar", bars=ratio, ylabel="times faster"),
        Panel("Accuracy of the rollouts", every, "accuracy", ylabel="share of right rollouts", smooth=3),
        Panel("Wider or deeper", every[1:], {"children": "threads/children",
              "tokens of a child / 30": "scaled"}, ylabel="per rollout", points=wider_or_deeper),
        Panel("The threads of one problem (seed 0)", (), xlabel="tokens on the clock", also=draw_lanes),
        Panel("What they searched, by thread (seed 0)", (), xlabel="operations done", also=draw_tree),
    ]  # fmt: skip


def wider_or_deeper(r: Results, line: Line, metric: str, seed: int | None) -> list[tuple[float, float]]:
    if metric == "threads/children":
        return r.points(line.arm, "step", metric, seed)
    return [(step, tokens / 30) for step, tokens in r.points(line.arm, "step", "threads/child_tokens", seed)]


def lanes_of(r: Results) -> list[dict]:
    """The parent and the children of the rollout that was put down: the reinforced model's, if there is one."""
    found = [line for arm in ("test_rl_apr", "test_apr") for line in r.samples if line.get("arm") == arm]
    return next((line["lanes"] for line in found if line.get("kind") == "threads"), [])


def draw_lanes(axis, r: Results) -> None:
    """A lane per thread over the tokens of the clock; where the parent waits its lane is dashed."""
    lanes = lanes_of(r)
    for y, lane in enumerate(lanes):
        start = lane["start"]
        for spawned, joined in lane["rounds"]:
            axis.plot([start, spawned], [-y, -y], color="black", linewidth=5)
            axis.plot([spawned, joined], [-y, -y], ":", color="gray", linewidth=1)
            axis.plot([spawned], [-y], "v", color="tab:blue", label="spawn")
            axis.plot([joined], [-y], "^", color="tab:red", label="join")
            start = joined
        color = "black" if y == 0 else f"C{(y - 1) % 10}"
        axis.plot([start, lane["end"]], [-y, -y], color=color, linewidth=5)
        found = "  found" if parallel.CLAIM.search(lane["text"]) else ""
        axis.text(lane["start"], -y + 0.2, f"{lane['prompt']}{found}", fontsize=7)
    axis.set_yticks([])
    handles, labels = axis.get_legend_handles_labels()
    for handle, label in list(zip(handles, labels, strict=True))[2:]:
        handle.set_label(f"_{label}")  # one entry each, however many rounds there are


def paths_of(lane: dict) -> list[tuple[str, ...]]:
    """The attempts of a child as paths from the root: the operation it was spawned with, then its own.

    >>> paths_of({"step": "8 - 4 = 4", "text": "<think> 4 + 2 = 6 , 7 * 6 = 42 no wait 7 - 4 = 3 </think>"})
    [('8 - 4 = 4', '4 + 2 = 6', '7 * 6 = 42'), ('8 - 4 = 4', '7 - 4 = 3')]
    """
    thinking = lane["text"].partition(CLOSE)[0].removeprefix(OPEN)
    attempts = [tuple(re.findall(STEP, part)) for part in thinking.split(" wait ")]
    return [(lane["step"], *attempt) for attempt in attempts if attempt]


def draw_tree(axis, r: Results) -> None:
    """All paths as a tree, root on the left; a child's part in its lane's colour, a star where it says yes."""
    y: dict[tuple[str, ...], float] = {}
    lanes = lanes_of(r)[1:]
    leaves = 0
    for i, lane in enumerate(lanes):
        for path in paths_of(lane):
            if path not in y:
                y[path], leaves = -leaves, leaves + 1
        inner = {path[:n] for path in y if path[0] == lane["step"] for n in range(1, len(path))} - y.keys()
        for node in sorted(inner, key=len, reverse=True):
            y[node] = statistics.fmean(value for path, value in y.items() if path[: len(node)] == node)
        for node, value in y.items():
            if node[0] == lane["step"]:
                above = y.get(node[:-1], -leaves / 2 if len(node) == 1 else value)
                axis.plot([len(node) - 1, len(node)], [above, value], color=f"C{i % 10}", linewidth=0.8)
        if parallel.CLAIM.search(lane["text"]) and (paths := paths_of(lane)):
            axis.plot([len(paths[-1])], [y[paths[-1]]], "*", color=f"C{i % 10}", markersize=12)
        axis.text(1, y.get((lane["step"],), 0), lane["step"], fontsize=7)
    axis.set_yticks([])


def caption(preset: str) -> str:
    settings = PRESETS[preset].measure
    return (
        f"Adaptive Parallel Reasoning on Countdown by attempts with four numbers, preset {preset}: "
        f"{settings.problems} held-out problems, {settings.repeats} rollouts each at temperature 1, at most "
        f"{settings.max_new_tokens} response tokens in every thread."
    )
