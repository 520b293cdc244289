"""Every claim of every section meets a world in which it is true, and its opposite.

A world is a function of `s`: with s = 1 everything happens as in the paper, with s = -1 the other way round. All claims
must hold in the first and fail in the second, and fail as soon as one seed of three lives in the second. A new claim
fails here until its section's world shows it.
"""

import math
import random

import pytest

from nanoreason.__main__ import SECTIONS
from nanoreason.evaluate import control
from nanoreason.experiments import apr, behaviors, l1, longcot, r1, s1, sos, star, traces, transfer, zoo
from nanoreason.experiments.figure import draw
from nanoreason.experiments.reproduce import jobs_of, section_of
from nanoreason.experiments.results import PerSeed, Results
from nanoreason.recipes import budget

STEPS = 20


def course(arm: str, metrics: dict, steps: int = STEPS) -> list[dict]:
    """Lines of an arm in which each metric goes evenly from its first to its second number, or stays at its one."""
    lines = []
    for step in range(steps + 1):
        ends = {key: v if isinstance(v, tuple) else (v, v) for key, v in metrics.items()}
        values = {key: a + (b - a) * step / steps for key, (a, b) in ends.items()}
        lines.append({"arm": arm, "step": step} | values)
    return lines


def star_world(s: int) -> list[dict]:
    """In arm A, length n is at .9 from round arrival[A][n] on, before at .1 (longer ones at 0)."""
    one_by_one, together = {1: 0, 2: 0, 3: 1, 4: 3, 5: 5}, {1: 0, 2: 0, 3: 1, 4: 1, 5: 1}
    arrival = {"base": {1: 0, 2: 0}, "plain": one_by_one, "rationalize": together | {6: 6, 7: 7, 8: 8}, "direct": {},
               "temperature": one_by_one, "continue": together}  # fmt: skip
    if s < 0:
        everything = dict.fromkeys(range(1, 11), 0)
        arrival |= {"plain": together, "rationalize": one_by_one, "direct": everything, "temperature": everything}
    chosen, lines = star.PRESETS["cpu"], []
    rounds = {"base": 0, "rationalize": chosen.star.rounds + chosen.late_rounds}
    for arm, of_length in arrival.items():
        for step in [5000] if arm == "direct" else range(rounds.get(arm, chosen.star.rounds) + 1):
            low, high = 0.1, 0.95 if arm == "direct" else 0.9
            shares = {n: high if step >= of_length.get(n, math.inf) else low * (n < 6) for n in range(1, 11)}
            if s < 0 and step < 7:  # nothing to speak of, and that is lost when longer sums join
                shares |= {6: 0.005, 7: 0.005}
            kept = {"kept": 0.5, "kept_second": 0.1} | {f"hinted/{n}": 0.5 for n in range(2, 6)}
            lines.append({"arm": arm, "step": step, **{f"acc/{n}": share for n, share in shares.items()}} | kept)
    return lines


def r1_world(s: int, preset: str = "cpu") -> list[dict]:
    names, k = r1.PRESETS[preset].names, r1.PRESETS[preset].zero_samples
    start, end = 0.4 - 0.25 * s, 0.4 + 0.25 * s
    same = {r1.ACC: 0.5, r1.FORMAT: 0.7, r1.LENGTH: 20, names.tries: 1, "accuracy": 0.5, "entropy": 0.2, r1.CUT: 0.2,
            "num_tokens": (0, 900), r1.ROLLOUT: 30, f"{r1.ROLLOUT}_wrong": 20, "frac_learnt_zero_std": 0.4}  # fmt: skip
    arms = {
        "zero": {r1.ACC: (start, end), r1.LENGTH: (30 - 10 * s, 30 + 10 * s), "accuracy": (0.1, 0.9),
                 r1.ROLLOUT: (30 - 10 * s, 30 + 10 * s), f"eval/mode/{names.none}": (0.5 + 0.4 * s, 0.5 - 0.4 * s),
                 f"eval/maj@{k}": end + 0.1 * s, names.tries: (0.5 - 0.4 * s, 0.5 + 0.4 * s),
                 **{f"eval/accuracy/{names.long}/{n}": 0.5 + 0.2 * s for n in (2, 3)},
                 **{f"eval/accuracy/{names.short}/{n}": 0.5 - 0.2 * s for n in (2, 3)},
                 **{f"eval/pass@{k}": (start, end) for k in (1, 2, 4, 8, 16)}},
        "no_thoughts": {r1.ACC: (0, 0.25 - 0.25 * s), r1.LENGTH: (10, 15 - 5 * s)},
        "easy": {r1.LENGTH: (20, 30)},
        "raised": {r1.ROLLOUT: 30 + 10 * s, "accuracy": 0.5 + 0.1 * s},
        "capped": {r1.CUT: 0.1 + 0.1 * s},
        "cold_rl": {r1.ACC: (0.4 + 0.1 * s, 0.5 + 0.1 * s)},
        "short_rl": {},
        "final": {r1.ACC: end + 0.1 * s},
        "student_rl": {},
        "distilled_data": {"tokens": 300},
        "distilled_eval": {r1.ACC: 0.5 + 0.3 * s},
        "distilled_wrong_eval": {r1.ACC: 0.5 - 0.1 * s},
        "grpo": {},
        "dr_grpo": {f"{r1.ROLLOUT}_wrong": 20 - 5 * s},
        "dapo": {"frac_learnt_zero_std": 0.4 - 0.2 * s, "entropy": 0.2 + 0.1 * s},
    }  # fmt: skip
    return [line for arm, metrics in arms.items() for line in course(arm, same | metrics)]


def longcot_world(s: int, preset: str = "cpu") -> list[dict]:
    same = {longcot.ACC: 0.6, longcot.GREEDY: 0.6, longcot.GREEDY_LENGTH: 60, longcot.LENGTH: 60, longcot.CUT: 0.2,
            "accuracy": 0.6, "attempts": 8, "attempts/new": 6, "eval/mean_length": 60, "eval/clipped_ratio": 0.2,
            "eval/attempts": 8, "eval/steps": 16, "eval/steps/right": 15, "eval/hits": 1,
            "eval/hits/seen": 1}  # fmt: skip
    world = longcot_from_the_base if preset == "cpu" else longcot_from_own_bases
    lines = []
    for arm, metrics in world(s).items():
        wave = metrics.pop("wave", None)  # accuracy over the steps, in quarters
        for line in course(arm, same | metrics, 40):
            lines.append(line | ({"accuracy": wave[min(3, line["step"] // 10)]} if wave else {}))
    return lines


def longcot_from_the_base(s: int) -> dict[str, dict]:
    narrow, middle, wide = longcot.windows("cpu")
    risen, fallen = (0.3, 0.5, 0.6, 0.6), (0.3, 0.6, 0.5, 0.5)
    arms = {
        "rl-long": {longcot.ACC: (0.6 - 0.1 * s, 0.6 + 0.25 * s)},
        "rl-short": {longcot.ACC: (0.1, 0.35 - 0.15 * s)},
        narrow: {longcot.ACC: (0.2, 0.6 - 0.4 * s)},
        middle: {"wave": fallen if s > 0 else risen, longcot.CUT: (0.2 - 0.1 * s, 0.4 + 0.2 * s)},
        wide: {longcot.ACC: (0.3, 0.6) if s > 0 else (0.6, 0.5)},
        "cosine": {"wave": risen if s > 0 else fallen, longcot.CUT: (0.4, 0.4 - 0.3 * s)},
        "repetition": {longcot.ACC: 0.6 + 0.1 * s, "attempts/new": 6 + 1.5 * s},
        "paid": {longcot.LENGTH: (60, 120 if s > 0 else 30), "attempts/new": (8, 4) if s > 0 else (4, 6),
                 longcot.CUT: 0.2 + 0.2 * s},
        "paid-penalty": {"attempts/new": 7 if s > 0 else 3},
        "accepts": {longcot.ACC: 0.6 - 0.2 * s},
        "rejects": {longcot.ACC: 0.6 - 0.2 * s},
    }  # fmt: skip
    grows, saturates = (0.2, 0.3, 0.5, 0.6), (0.1, 0.1, 0.1, 0.1)
    for form, accuracies in zip(("long", "short"), (grows, saturates) if s > 0 else (saturates, grows), strict=True):
        for size, accuracy in zip(longcot.PRESETS["cpu"].sizes, accuracies, strict=True):
            arms[f"{form}-{size}"] = {longcot.ACC: accuracy}
    return arms


def longcot_from_own_bases(s: int) -> dict[str, dict]:
    shares, widths = longcot.PRESETS["conditions"].shares, longcot.PRESETS["conditions"].widths
    arms = {}
    for i, share in enumerate(shares):
        more = s * (i - 1) / 2
        arms[f"share-{share}"] = {longcot.GREEDY: 0.2 + 0.15 * more, longcot.GREEDY_LENGTH: 40 + 20 * more}
        arms[f"share-{share}-rl"] = {longcot.ACC: (0.2, 0.7 if i else 0.3) if s > 0 else (0.4, 0.1 if i else 0.6)}
    for width in widths[:-1]:
        arms[f"width-{width}"] = {}
        arms[f"width-{width}-rl"] = {longcot.ACC: (0.1, 0.2) if s > 0 else (0.2, 0.7)}
    return arms


def zoo_world(s: int) -> list[dict]:
    """With s = 1 all bases gain, the longer a base grows the less it verifies, and the rest is as in the paper; with
    s = -1 none gains and what grows verifies."""
    k = f"eval/pass@{zoo.PRESETS['cpu'].samples}"
    few, most = (f"short-{steps}-rl" for steps in zoo.PRESETS["cpu"].short)
    arms: dict[str, dict] = {}
    for i, base in enumerate(zoo.names()):
        accuracy = (0.2, 0.6) if s > 0 else (0.2, 0.15)
        arms[f"{base}-rl"] = {zoo.ACC: accuracy, zoo.EIGHT: (0.5, 0.5 + 0.2 * s), zoo.LENGTH: (60, 65 + 5 * i)}
    arms[f"{zoo.OTHER}-rl"] |= {zoo.VERDICTS: 4 - 4 * (s > 0), zoo.LENGTH: (60, 60 + 30 * s)}
    arms[f"{zoo.SHARED}-rl"][zoo.LENGTH] = (60, 95)
    for base in zoo.names():
        longer = arms[f"{base}-rl"][zoo.LENGTH][1] - 60
        arms[f"{base}-rl"]["eval/verdicts/right"] = (3, 3 - s * longer / 50)
    arms |= {
        f"{zoo.WEAK}-easy": {}, f"{zoo.WEAK}-hard": {zoo.ACC: (0.2, 0.2) if s > 0 else (0.2, 0.6)},
        f"{zoo.SHARED}-easy": {zoo.LENGTH: (60, 95 - 30 * s)},
        f"{zoo.SHARED}-hard": {zoo.ACC: (0.3, 0.4 + 0.2 * s)},
        f"{zoo.LOOSE}-format": {}, f"{zoo.SHARED}-format": {},
        f"{zoo.LOOSE}-strict": {zoo.ACC: (0.2, 0.3)},
        f"{zoo.SHARED}-strict": {zoo.ACC: (0.2, 0.6) if s > 0 else (0.2, 0.05)},
        few: {zoo.ACC: (0.25, 0.5 if s > 0 else 0.1)},
        "four-before": {k: 0.4}, "four-after": {k: 0.4 + 0.2 * s},
        most: {zoo.ACC: (0.3, 0.35) if s > 0 else (0.1, 0.6), zoo.ATTEMPTS: 5 - 3 * s},
    }  # fmt: skip
    same = {zoo.ACC: 0.3, zoo.EIGHT: 0.5, k: 0.6, zoo.LENGTH: 60, zoo.STOPPED: 50, zoo.CUT: 0.1, zoo.FORMAT: 0.9,
            zoo.VERDICTS: 4, "eval/verdicts/right": 4, zoo.ATTEMPTS: 5, zoo.RETRIES: 4, "accuracy": 0.3, "attempts": 5,
            "verdicts/right": 4, "completions/mean_length": 60, "completions/clipped_ratio": 0.1,
            "completions/mean_terminated_length": 50}  # fmt: skip
    same |= {f"eval/pass@{n}": 0.3 + 0.05 * n for n in (2, 4)}
    return [line for arm, metrics in arms.items() for line in course(arm, same | metrics)]


def s1_world(s: int) -> list[dict]:
    lines = []

    def add(
        arm: str, method: str, asked, accuracy: float, thinking: float, most: int = budget.NO_LIMIT, **more
    ) -> None:
        lines.append({"arm": arm, "step": len(lines), "method": method, "asked": asked, "accuracy": accuracy,
                      "accuracy_se": 0.02, "thinking": float(thinking), "most": most, "attempts": 4.0,
                      "attempts/new": 3.0, "found": 0.5} | more)  # fmt: skip

    # stopping by itself: .6 of s1 at 80 tokens; "wait" gains and flattens, or it loses and then gains
    waits = {k: 0.6 + s * (0.15 if 0 < k < 12 else 0) + 0.2 * (k >= 8) * (s < 0) for k in (0, 1, 2, 3, 4, 6, 8, 12, 16)}
    for b in (16, 32, 64, 96, 128, 192, 256, 384):
        add("s1", "forcing", b, 0.6 - 0.3 * s * (b < 64), min(b, 80), b)
        add("s1", "until", b, 0.5 + s * 0.07 * math.log2(b / 64), b, b)
        add("tokens", "tokens", b, 0.5, 500 if s > 0 else b, b, enforced=False)
        add("tokens", "tokens", b, 0.4 if s > 0 else 0.95, min(b, 96), b, enforced=True)
        add("s1", "samples", b, 0.6 - 0.1 * s * (b > 32), min(b, 80), b, kind="rejection")
    for k, accuracy in waits.items():
        add("s1", "wait", k, accuracy, 80 + 30 * k)
        add("untuned", "wait", k, 0.6 - 0.3 * s, 40 + 30 * k)
    for word in s1.WORDS:
        add("s1", "words", word, 0.6 + 0.1 * s * (word == "wait"), 140)
    add("s1", "suppressed", "not wait", 0.1, 20)
    for k in (1, 2, 4, 8):
        for kind in ("majority", "best"):
            add("untuned", "samples", k, 0.55 - 0.25 * s, 40 * k, kind=kind)
            add("s1", "samples", k, 0.6 + (0.3 * s if s > 0 else 0.2 * s), 70 * k, kind=kind)
    for enforced in (False, True):
        add("steps", "steps", 1, 0.5, 30, 24, enforced=enforced)
    add("class", "class", "short", 0.5, 30, 48)
    for arm, accuracy in {"random": 0.6 - 0.1 * s, "longest": 0.6 - 0.1 * s, "diverse": 0.6 - 0.1 * s,
                          "all": 0.7 - 0.1 * s}.items():  # fmt: skip
        for k in (0, 2):
            add(arm, "wait", k, accuracy, 60 + 30 * k)
    return lines + [{"arm": f"pick_{name}", "step": 0, "chosen": 100, "chosen_tokens": 40} for name in s1.CHOICES]


def l1_world(s: int) -> list[dict]:
    """With s = 1 exact and max obey N and the control does not; with s = -1 the control alone does."""
    lines = []
    for name, (arm, method) in l1.MEASURED.items():
        for n in l1.PRESETS["cpu"].budget.budgets:
            obeys = {"exact": s > 0, "plain": s < 0, "truncated": True, "s1": True}.get(name, False)
            tokens = (30 + n / 4 if s > 0 else 150 - n / 4) if name == "max" else n if obeys else 110
            better = 0.15 * math.log2(n / 96) - 0.2 * (name in ("truncated", "s1")) + 0.05 * (name == "max")
            lines.append({"arm": arm, "step": len(lines), "method": method, "asked": n, "accuracy": 0.5 + s * better,
                          "accuracy_se": 0.03, "thinking": tokens, "error": tokens / n - 1,
                          "mae": abs(tokens - n) / n + 0.05, "within": 0.85 + 0.1 * s, l1.HARD: tokens,
                          **dict.fromkeys(l1.EASY, tokens * (1 - 0.3 * s * (name == "max")))})  # fmt: skip
    return lines + [line for arm in ("exact", "max", "plain") for line in course(arm, {"accuracy": (0.3, 0.6)}, 4)]


def sos_world(s: int) -> list[dict]:
    inputs, targets = 0.4, 0.3 + 0.1 * s
    strategies = {"symbolic": 0.9, "symbolic_within": 0.5 - 0.1 * s, "states": 0.6 - 0.2 * s, "correctness": 0.2}
    lines = []

    def add(
        arm: str, gain: float, step: int = 9, nodes: float = 10, arithmetic: float = 1, unsolved: float = 0
    ) -> None:
        line = {"arm": arm, "step": step, sos.INPUTS: inputs + gain, sos.TARGETS: targets + gain}
        line |= {"acc/unsolved": 0.2 + unsolved, "acc/difficult": 0.05 + 0.4 * unsolved}
        for split in sos.SPLITS:
            line |= {f"nodes/{split}": nodes, f"chance/{split}": 0.1}
            line |= {f"errors/{kind}/{split}": arithmetic for kind in sos.ERRORS}
            line |= {f"{key}/{name}/{split}": v for key, v in strategies.items() for name in sos.STRATEGIES}
        lines.append(line)

    add("sos", 0)
    # a greedy search takes 300 tokens, four sampled ones 1,200; a path 30, random ones as many
    lines[-1] |= {f"tokens/{sos.SPLITS[0]}": 300, "budget/640/acc": inputs, "budget/160/acc": inputs - 0.2 * s,
                  "best/4/tokens": 1200, "best/4/acc": 0.7}  # fmt: skip
    add("op", -0.1 * s)
    for n in sos.BEST_OF:
        solved = {4: 0.3, 8: 0.55, 16: 0.6, 32: 0.85} if s > 0 else {4: 0.3, 8: 0.3, 16: 0.6, 32: 0.6, 64: 0.95}
        lines[-1] |= {f"best/{n}/tokens": 30 * n, f"best/{n}/acc": solved.get(n, 0.9 if n > 32 else 0.1)}
        lines[-1] |= {f"random_best/{n}/acc": 0.1 if s > 0 else 0.35}
    for step in (1, 2, 3):
        add("sos_star", 0.1 * s, step, unsolved=0.1 * s)
    for arm in ("sos_pg", "sos_apa"):
        add(arm, 0.1 * s, 40, nodes=10 - 3 * s, arithmetic=1 - 0.3 * s, unsolved=0.1 * s)
    return lines


def base_world(s: int) -> list[dict]:
    """With s = 1 arithmetic comes before the verdict and thinking pays, with s = -1 the other way round."""
    lines = []
    for step in range(0, 1300, 100):
        early, late = (min(1.0, step / when) for when in ((300, 700) if s > 0 else (700, 300)))
        good = s > 0
        lines.append({
            "arm": "base", "step": step, "tokens_seen": step * 5000, "loss": 3 - step / 500,
            "eval/steps": 20.0, "eval/steps/right": 20 * early * (1.0 if good else 0.95),
            "eval/attempts": 4.0, "eval/attempts/legal": 4 * late * (1.0 if good else 0.8), "eval/attempts/new": 3.5,
            "eval/hits": 0.4, "eval/hits/seen": 0.4 * late * (1.0 if good else 0.8),
            "eval/yes": 0.4 * late * (1.0 if good else 1.2),
            "eval/pass@1": 0.35 * late if good else 0.05, "acc/3": 0.3 * late, "eval/found": 0.36 * late,
            "eval/accuracy/search": 0.5 if good else 0.2, "eval/accuracy/guess": 0.2 if good else 0.5,
            "eval/gave_up": 0.4 if good else 0.0, "eval/found/lost": 0.01 if good else 0.2,
            "eval/mode/guess": 0.3, "eval/mode/one": 0.3, "eval/mode/search": 0.4, "eval/clipped_ratio": 0.02,
        })  # fmt: skip
    return lines


def apr_world(s: int) -> list[dict]:
    """With s = 1 threads find more, at the pace of the longest; RL widens them and changes nothing at the widest."""
    lines = []

    def add(arm: str, method: str, asked: int, accuracy: float, children: float, long: float = 150, **more) -> None:
        total, path = 40 + children * long, 40 + long * (1.0 if s > 0 else children)
        lines.append({"arm": f"test_{arm}", "step": len(lines), "method": method, "asked": asked, "accuracy": accuracy,
                      "children": children, "child_tokens": long, "sequential": path, "total": total,
                      "operations": total / 6, "hallucinated": 0.1} | more)  # fmt: skip

    chosen = apr.PRESETS["cpu"].measure
    serial = {"serial": 0.5 - 0.2 * s, "rl_serial": 0.55 - 0.2 * s}  # threads before RL: .5; after it .7, or .3
    for window in chosen.windows:
        for arm, accuracy in serial.items():
            add(arm, "context", window, accuracy, 1, total=200, sequential=200)
        add("apr", "context", window, 0.5, 4)
        add("rl_apr", "context", window, 0.5 + 0.2 * s, 4 + 3 * s, 150 - 10 * s)
        add("faithful", "context", window, 0.4, 4, hallucinated=0.1 + 0.4 * s * (s > 0))
    for width in chosen.widths:
        accuracy = 0.5 - s * (0.4 if width == 1 else 0.0)
        shown = width if s > 0 else max(3, 4 - 0.3 * width)  # asked for more, they spawn less
        path = 190 if s > 0 else 40 + 100 * width
        add("apr", "asked", width, accuracy if width < 4 else 0.5 + 0.1 * s, shown, sequential=path)
        add("rl_apr", "asked", width, 0.6 + 0.1 * s, shown, sequential=path)
        add("rl_wide", "asked", width, 0.5 + 0.1 * s + (0.0 if s > 0 else 0.3), width)
    for k in (1, 2, 4, 8, 16):
        for arm, accuracy in serial.items():
            for kind in ("cons", "pass"):
                add(arm, "samples", k, accuracy + 0.2 * (s < 0), k, 200 if s > 0 else 20, kind=kind)
    for arm, seconds in {"serial": 0.2, "rl_serial": 0.2, "apr": 0.3, "rl_apr": 0.3}.items():
        add(arm, "alone", 1, 0.5, 4 if s > 0 else 1, seconds=seconds, steps=200)
    for operations in chosen.operations:
        add("serial", "exhaustive", operations, operations / 400, 1, operations=operations)
    for arm in ("rl_serial", "rl_apr", "rl_wide"):
        lines += course(arm, {"accuracy": (0.3, 0.6), "threads/children": (4, 7), "threads/child_tokens": 150}, 12)
    return lines


def transfer_world(s: int) -> list[dict]:
    """With s = 1 SFT on a teacher's texts loses what is not trained, at every learning rate; with s = -1 RL does."""
    tasks = transfer.OWN.groups()
    before = {"target": 0.3, "other": 0.6, "non": 0.9}
    lost = {arm: 0.25 for arm in ("think", "think_3", "think_10", "think_50", "direct", "replay", "self")}
    lost |= {"online": 0.0, "grpo": 0.0, "grpo-kl": 0.0, "teacher-rl": 0.1}
    if s < 0:
        lost = dict.fromkeys(lost, -0.05) | {"online": 0.3, "grpo": 0.25, "grpo-kl": 0.1, "teacher-rl": 0.0}
    else:
        lost |= {"self": 0.05}

    def accuracies(of: dict[str, float]) -> dict[str, float]:
        named = {f"acc/{name}": of[group] for group, names in tasks.items() for name in names}
        return named | {f"acc/{group}": value for group, value in of.items()}

    lines = [{"arm": "base-test", "step": 0} | accuracies(before)]
    for arm, loss in lost.items():
        after = accuracies({"target": 0.9, "other": before["other"] - loss, "non": before["non"] - loss})
        far = loss > 0.2
        metrics = {key: (value, after[key]) for key, value in accuracies(before).items()}
        for name in ("kl", "rank", "changed", "pca", "pca_relative", "pca_paper", "length"):
            metrics |= {f"{name}/{group}": (0.0, 10.0 if far else 1.0) for group in tasks}
        metrics |= {f"leak/{group}": (0.0, 0.5 if far else 0.01) for group in tasks}
        metrics |= {"distance": (0.0, 1.0)}
        for line in course(f"{arm}-test", metrics, 4):
            x = line["step"] / 4 * (1 + len(arm) / 10)
            noise = (line["step"] * 7 + len(arm) * 5) % 3 - 1
            words = {f"words/{group}": [["wait", True, 3, 20], ["7", False, 2, 5]] for group in tasks}
            lines.append(line | words | {"base_kl": x, "forgotten": x * x if s > 0 else 0.5 + noise})
        if s < 0 and arm == "grpo":  # it ends in a collapse
            lines.append({**lines[-1], "step": 5, "acc/target": 0.1})
    return lines


def behaviors_world(s: int) -> list[dict]:
    """With s = 1 backtracking in the base or in the primer is what RL needs, with s = -1 it is what RL cannot use."""
    same = {behaviors.GREEDY: 0.1, behaviors.LENGTH: 60, "accuracy": 0.3, "eval/verdicts": 4, "eval/waits": 3,
            "eval/subgoals": 1, "eval/backward": 1, "verdicts": 4, "waits": 3, "subgoals": 1, "backward": 1,
            "num_tokens": (0, 40000)}  # fmt: skip
    up, low = (0.4, 0.7) if s > 0 else (0.4, 0.15), 0.1 if s > 0 else 0.4
    arms = {kind: {behaviors.ACC: up} for kind in behaviors.RETURNING}
    arms["all_four"] |= {"eval/verdicts": (4, 4 + 2 * s), "eval/waits": (3, 3 + 2 * s),
                         "eval/subgoals": (1, 1 - 0.8 * s), "eval/backward": (1, 1 - 0.8 * s)}  # fmt: skip
    arms |= {kind: {behaviors.ACC: (low, 0.5 - 0.35 * s)} for kind in behaviors.CONTROLS}
    arms["wrong"] = {behaviors.ACC: 0.65 if s > 0 else 0.05}
    arms["without"] = {behaviors.ACC: (0.1, 0.2 if s > 0 else 0.35), "num_tokens": (0, 20000)}
    arms["with"] = {behaviors.ACC: (0.15, 0.6 if s > 0 else 0.3), behaviors.GREEDY: 0.2 - 0.1 * s}
    steps = behaviors.PRESETS["cpu"].rl.steps
    lines = [line for arm, metrics in arms.items() for line in course(arm, same | metrics, steps)]
    for line in lines:  # most of the gain comes early; with s = -1 late
        if line["arm"] in behaviors.RETURNING:
            way = line["step"] / steps
            line[behaviors.ACC] = up[0] + (up[1] - up[0]) * (way**0.5 if s > 0 else way**2)
    return lines


WORLDS = {
    "transfer": transfer_world,
    "apr": apr_world,
    "base": base_world,
    "behaviors": behaviors_world,
    "star": star_world,
    "r1": r1_world,
    "longcot": longcot_world,
    "s1": s1_world,
    "l1": l1_world,
    "sos": sos_world,
    "zoo": zoo_world,
}


def results(section: str, signs: tuple[int, ...]) -> Results:
    return Results({**line, "seed": seed} for seed, s in enumerate(signs) for line in WORLDS[section](s))


def verdicts(section: str, *signs: int) -> dict[str, dict]:
    found = [claim.judge(results(section, signs)) for claim in section_of(section, "cpu").claims("cpu")]
    assert len({line["name"] for line in found}) == len(found)
    return {line["name"]: line for line in found}


def test_every_section_has_its_world():
    assert WORLDS.keys() == SECTIONS.keys()


@pytest.mark.parametrize("section", SECTIONS)
def test_every_claim_holds_in_the_papers_world(section):
    assert not {name: line for name, line in verdicts(section, 1, 1, 1).items() if not line["passed"]}
    assert all(line["passed"] for line in verdicts(section, 1).values())  # one seed


@pytest.mark.parametrize("section", SECTIONS)
def test_every_claim_fails_on_its_opposite(section):
    for signs in ((-1, -1, -1), (-1,)):
        assert not {name: line for name, line in verdicts(section, *signs).items() if line["passed"]}


@pytest.mark.parametrize("section", SECTIONS)
def test_every_claim_fails_if_one_seed_of_three_disagrees(section):
    assert not {name: line for name, line in verdicts(section, 1, 1, -1).items() if line["passed"]}


@pytest.mark.parametrize("section", SECTIONS)
def test_every_claim_fails_without_data(section):
    for claim in section_of(section, "cpu").claims("cpu"):
        assert not claim.judge(Results([{"arm": "nobody", "seed": 0, "step": 0}]))["passed"]


@pytest.mark.parametrize("section", SECTIONS)
def test_the_figure_and_the_table_of_a_made_up_world(section, tmp_path):
    pytest.importorskip("matplotlib")
    module, r = section_of(section, "cpu"), results(section, (1, -1))
    draw(module.panels("cpu"), r, module.caption("cpu"), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert module.extra(r, "cpu")


@pytest.mark.parametrize("section", SECTIONS)
def test_every_preset_has_arms_that_can_run_and_claims_about_them(section, tmp_path):
    for preset in section_of(section, "cpu").PRESETS:
        module = section_of(section, preset)
        for seed in (0, 1):
            jobs = jobs_of(module.arms(preset, seed), seed, tmp_path)
            before: set[str] = set()
            for job in jobs:  # in an order in which each can run
                assert before.issuperset(job.after) and job.config.out not in before and job.config.seed == seed
                before.add(job.config.out)
        assert module.claims(preset) and len(module.panels(preset)) >= 5 and preset in module.caption(preset)


# ---------------------------------------------------------------------------------------- numbers that are special


def test_the_student_is_compared_at_as_many_sampled_tokens_as_the_teacher_wrote():
    rl = [{"arm": "student_rl", "seed": 0, "step": s, "num_tokens": s * 100, r1.ACC: s / 10} for s in (0, 1, 2, 3)]
    for spent, expected in ((150, 0.2), (200, 0.2), (201, 0.3), (900, 0.3)):
        teacher = {"arm": "distilled_data", "seed": 0, "step": 0, "tokens": spent}
        assert r1.rl_at_equal_tokens(Results([*rl, teacher])) == {0: expected}


@pytest.mark.parametrize("preset", ["sums", "demo"])
def test_the_claims_about_r1_zero_alone_meet_their_opposites_too(preset):
    for signs, expected in (((1, 1, 1), True), ((-1, -1, -1), False), ((1, 1, -1), False)):
        lines = [{**line, "seed": seed} for seed, s in enumerate(signs) for line in r1_world(s, preset)]
        judged = [claim.judge(Results(lines)) for claim in r1.claims(preset)]
        assert {line["name"] for line in judged if line["passed"] != expected} == set()
    assert r1.extra(Results(lines), preset)


def test_length_and_accuracy_are_compared_while_they_are_expected_to_rise():
    points = [(0.1, 50), (0.5, 90), (0.7, 120), (0.8, 100), (0.9, 80)]  # the rise, and what comes behind it
    lines = [{"arm": "zero", "seed": 0, "step": 10 * (i + 1), "accuracy": a, r1.ROLLOUT: n}
             for i, (a, n) in enumerate(points)]  # fmt: skip
    assert r1.length_follows_accuracy("demo")(Results(lines)) == {0: 1.0}  # steps 10 and 20
    assert r1.length_follows_accuracy("sums")(Results(lines))[0] < 0.5


def test_one_problem_is_shown_before_and_after():
    first = "<think> 20 - 6 = 14 , 14 + 5 = 19 no </think> <answer> 20 - 6 = 14 , 14 + 5 = 19 </answer>"
    then = "<think> 20 - 6 = 14 , 14 + 5 = 19 no wait 6 * 5 = 30 , 30 + 20 = 50 yes </think> <answer> 6 * 5 ..."
    same = {"arm": "zero", "seed": 0, "split": "test", "stop_reason": "stop"}
    samples = [
        same | {"step": 0, "prompt": "12 from 3 4 5", "response": "<think> </think>", "right": False},
        same | {"step": 0, "prompt": "50 from 6 5 20", "response": first, "right": False},
        same | {"step": 20, "prompt": "12 from 3 4 5", "response": "<think> </think>", "right": False},
        same | {"step": 20, "prompt": "50 from 6 5 20", "response": then, "right": True},
        {"arm": "zero", "seed": 0, "step": 20, "prompt": "a rollout", "response": "", "right": True},
    ]
    assert traces.before_and_after(Results([], samples), "zero").split("\n") == [
        "50 from 6 5 20",
        "",
        "step 0                                    step 20",
        "",
        "<think> 20 - 6 = 14 , 14 + 5 = 19 no      <think> 20 - 6 = 14 , 14 + 5 = 19 no",
        "</think>                                  wait 6 * 5 = 30 , 30 + 20 = 50 yes",
        "<answer> 20 - 6 = 14 , 14 + 5 = 19        </think>",
        "  </answer>                               <answer> 6 * 5 ...",
        "wrong                                     right",
    ]
    assert traces.before_and_after(Results([]), "zero") == "no responses were kept"


def test_the_claims_of_longcot_on_its_own_bases_meet_their_opposites_too():
    for signs, expected in (((1, 1, 1), True), ((1,), True), ((-1, -1, -1), False), ((1, 1, -1), False)):
        lines = [{**line, "seed": seed} for seed, s in enumerate(signs) for line in longcot_world(s, "conditions")]
        judged = [claim.judge(Results(lines)) for claim in longcot.claims("conditions")]
        assert {line["name"] for line in judged if line["passed"] != expected} == set()
    assert longcot.extra(Results(lines), "conditions")["conditions"].keys() == {"capacity", "base quality"}


def test_primed_and_unprimed_are_compared_at_as_many_sampled_tokens():
    other = [{"arm": "without", "seed": 0, "step": s, "num_tokens": 30 * s, behaviors.ACC: 0.1} for s in (0, 5, 10)]
    for each, expected in ((100, 0.0), (60, 0.4), (61, 0.0), (30, 0.7), (10, 0.7)):  # 300 tokens are there to spend
        primed = [{"arm": "a", "seed": 0, "step": s, "num_tokens": each * s, behaviors.ACC: accuracy}
                  for s, accuracy in ((0, 0.1), (5, 0.5), (10, 0.8))]  # fmt: skip
        found = behaviors.at_equal_tokens(Results([*other, *primed]), "a", "without")
        assert found[0] == pytest.approx(expected)


def test_what_is_lost_since_the_best_is_nothing_while_accuracy_rises():
    def of(accuracies) -> Results:
        return Results([{"arm": "a", "seed": 0, "step": i, "accuracy": x, "attempts": 8, "attempts/new": 6}
                        for i, x in enumerate(accuracies)])  # fmt: skip

    assert longcot.lost(of([0.1, 0.2, 0.3, 0.4]), "a")[0] == 0
    assert longcot.lost(of([0.1, 0.5, 0.7, 0.7, 0.6, 0.6, 0.4, 0.2]), "a")[0] == pytest.approx(0.4)
    assert longcot.since("accuracy", "a")(of([0, 0, 0.3, 0.5, 0, 0, 0.6, 0.8]))[0] == pytest.approx(0.3)
    assert longcot.repeated(of([0.1]), "a")[0] == 0.25


def test_re_checks_are_compared_with_single_passes_at_equal_difficulty():
    """Simpson's paradox: re-checks are mostly of hard sums, so that over all sums they look worse."""
    metrics = {"eval/accuracy/recheck/2": 0.9, "eval/accuracy/steps/2": 0.8, "eval/accuracy/recheck/3": 0.5,
               "eval/accuracy/steps/3": 0.2, "eval/accuracy/recheck": 0.5, "eval/accuracy/steps": 0.6}  # fmt: skip
    r = Results([{"arm": "zero", "step": 0, "seed": 0, **metrics}])
    assert r1.gain_of_retries(r, "zero", r1.PRESETS["sums"].names, (2, 3))[0] == pytest.approx(0.2)
    assert r1.gain_of_retries(r, "zero", r1.PRESETS["sums"].names, (4,)) == {}


def test_lengths_that_arrive_at_once_or_never_are_not_in_order():
    assert star.in_order([1, 3, 5]) == 1.0 and star.in_order([2, 2]) == 0.0 and star.in_order([1, 9, 9]) == 0.5
    assert star.spread([1, 9]) == 8 and star.spread([3, 4]) == 1
    r = results("star", (1,))
    assert star.arrivals(r, "plain", (1, 2, 3, 4, 5), 0, 6) == [1, 3, 5]
    assert star.arrivals(r, "plain", (3, 8), 0, 6) == [1, 7]  # never: one round after the last


def test_control_scaling_and_performance_are_of_each_seed_alone():
    r = results("s1", (1, -1))
    budgets = [16, 32, 64, 96, 128, 192, 256, 384]
    assert s1.s1_metric(r, "token-conditional", "control") == {0: control([500] * 8, budgets), 1: 1.0} == {0: 0, 1: 1}
    assert s1.s1_metric(r, "budget forcing", "performance") == pytest.approx({0: 0.6, 1: 0.9})
    assert s1.s1_metric(r, "budget forcing", "scaling")[0] > 0 > s1.s1_metric(r, "budget forcing", "scaling")[1]


def test_waiting_is_compared_with_votes_at_as_many_tokens():
    def at(method: str, asked: int, thinking: float, accuracy: float, **more) -> dict:
        return {"arm": "s1", "seed": 0, "step": 0, "method": method, "asked": asked, "thinking": thinking,
                "accuracy": accuracy} | more  # fmt: skip

    waits = [at("wait", 0, 50.0, 0.1), at("wait", 1, 100.0, 0.8), at("wait", 2, 2**0.5 * 100, 0.7)]
    votes = [at("samples", k, 50.0 * k, a, kind="majority") for k, a in ((1, 0.4), (2, 0.6), (4, 0.5), (8, 0.9))]
    best = [at("samples", 1, 50.0, 0.4, kind="best")]
    # 100 tokens: two samples, .6; 141: halfway to four samples on the figure's scale, .55. That it may stop at once
    # counts not; behind the last number of samples nothing is gained
    assert s1.lead_over_votes(Results([*waits, *votes, *best]), "s1")[0] == pytest.approx((0.2 + 0.15) / 2)
    assert s1.lead_over_votes(Results([*waits, *votes, *best]), "s1", "best")[0] == pytest.approx((0.4 + 0.3) / 2)


def test_transfer_is_compared_where_two_arms_are_as_accurate_on_the_target():
    def line(arm: str, step: int, target: float, non: float) -> dict:
        return {"arm": f"{arm}-test", "seed": 0, "step": step, "acc/target": target, "acc/non": non}

    base = line("base", 0, 0.25, 0.9)
    sft = [line("think", 1, 0.75, 0.5), line("think", 2, 1.0, 0.1)]
    rl = [line("grpo", 1, 0.5, 0.8), line("grpo", 2, 0.4, 0.0)]
    r = Results([base, *sft, *rl])
    assert transfer.level(r, "think", "grpo") == {0: 0.5}  # the best of the arm that gets less far
    assert transfer.difference("grpo", "think")(r)[0] == pytest.approx(0.8 - 0.7)  # half of the way from .9 to .5
    assert transfer.lost("think", "grpo")(r)[0] == pytest.approx(0.2)
    hardly = Results([base, *sft, line("grpo", 1, 0.3, 0.9)])
    assert transfer.level(hardly, "think", "grpo") == {} == transfer.difference("grpo", "think")(hardly)
    # the best rate is the one that keeps most; one that never gets so far is not compared
    more = Results([base, *sft, *rl, line("think_3", 1, 0.75, 0.9), line("think_50", 1, 0.26, 0.95)])
    assert transfer.best_of_sweep(more)[0] == pytest.approx(0.8 - 0.9)


def test_transfer_begins_at_what_the_base_measures_beside_itself():
    base = {"arm": "base-test", "seed": 0, "step": 0, "acc/target": 0.25}
    kept = {"arm": "grpo-test", "seed": 0, "step": 1, "acc/target": 0.75,
            "length/non": 2.0, "kl/non": 0.5, "leak/non": 0.5}  # fmt: skip
    unmeasured = {"arm": "grpo-test", "seed": 0, "step": 2, "acc/target": 0.8}

    def halfway(key: str, **more: float) -> float | None:
        r = Results([base | more, kept, unmeasured])
        return transfer.at(r, "grpo", key, PerSeed({0: 0.5})).get(0)

    assert halfway("length/non") == 1.5  # as long as itself, once
    assert halfway("kl/non") == 0.25 == halfway("leak/non")  # nothing has moved; a leak that was not logged is none
    assert halfway("leak/non", **{"leak/non": 0.125}) == (0.125 + 0.5) / 2
    assert transfer.at(Results([base, kept, unmeasured]), "grpo", "kl/non", PerSeed({0: 0.8})) == {}  # no number: none


def test_the_smaller_of_two_noisy_maxima_is_biased_against_the_arm_that_goes_on_rising():
    """What `transfer.level` and its page say of it: two arms of the same law, without noise in what they keep."""
    draw = random.Random(0)

    def apart(stops: str, rises: str) -> float:
        def measured(arm: str, step: int, accuracy: float) -> dict:
            solved = sum(draw.random() < accuracy for _ in range(120)) / 120
            return {"arm": f"{arm}-test", "seed": step // 10, "step": step % 10, "acc/target": solved,
                    "acc/non": 0.72 - 0.6 * accuracy}  # fmt: skip

        paths = {"base": [0.2], stops: [0.3, 0.45, 0.55, 0.55, 0.55], rises: [0.3, 0.45, 0.6, 0.75, 0.9]}
        lines = [measured(arm, 10 * run + i, accuracy) for run in range(100)
                 for arm, path in paths.items() for i, accuracy in enumerate(path)]  # fmt: skip
        return transfer.difference("grpo", "think")(Results(lines)).mean

    assert 0.015 < apart("grpo", "think") < 0.03
    assert -0.03 < apart("think", "grpo") < -0.015


def test_a_parabola_explains_what_it_can():
    assert transfer.explained([(x, 3 * x * x - x + 1) for x in range(6)]) == pytest.approx(1)
    assert transfer.explained([(0, 0), (1, 1), (2, 0), (3, 1), (4, 0)]) < 0.3
    assert transfer.explained([(0, 1), (1, 1), (2, 1), (3, 1)]) is transfer.explained([(0, 1), (1, 2)]) is None


def test_bases_are_counted_only_where_all_of_them_were_measured():
    def of(gains: list[float]) -> Results:
        return Results(
            {"arm": f"{base}-rl", "seed": 0, "step": step, zoo.ACC: 0.25 + (gained if step else 0.0)}
            for base, gained in zip(zoo.names(), gains, strict=False)
            for step in (0, 20)
        )

    assert zoo.bases_that_gain(of([0.0625, 0.0625, 0.03125, 0.0, -0.25, 0.5, 0.0625])) == {0: 4}
    assert zoo.bases_that_gain(of([0.5] * 6)) == {}  # one is missing


def test_verification_is_the_share_of_attempts_with_a_true_verdict():
    def of(tried: float, true: float) -> Results:
        return Results([{"arm": "a", "seed": 0, "step": 1, zoo.ATTEMPTS: tried, "eval/verdicts/right": true}])

    assert zoo.verification(of(8, 6), "a") == {0: 0.75}
    assert zoo.verification(of(0, 0), "a") == {0: 0.0}  # a guess verifies nothing
