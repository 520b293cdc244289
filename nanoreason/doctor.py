"""python -m nanoreason doctor RUN: why a run of reinforcement learning does not learn.

    metrics, settings, samples of each run -> rules (`doctor_rules.py`) -> at most six findings, most serious first

RUN is the folder of a run of grpo or grpo_minimal, or one of `reproduce`: then each such arm and seed is examined, and
what several seeds of an arm have in common is told once. Each finding has its evidence, from the run's own files, and
the next step to take. Where nothing is found, it says so; `--loss` explains why the loss is about 0.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from nanoreason.curves import SHORT, curve, numbers, short
from nanoreason.doctor_rules import RULES, Finding, findings_of, one_update
from nanoreason.look import is_run, runs_below
from nanoreason.run import Parser, read_json, read_jsonl, say

MOST = 6  # findings that are shown
# What config.json calls the recipes that learn from rewards: in a run's folder, and in one of `reproduce`.
RECIPES = {"GrpoConfig": "grpo", "GrpoMinimalConfig": "grpo_minimal", "grpo": "grpo", "grpo_minimal": "grpo_minimal"}


class Case(NamedTuple):
    """One run and what it left."""

    arm: str
    seed: int | None  # None: it is the only run
    place: Path  # its folder, or the one that holds it
    settings: dict
    lines: list[dict]  # of metrics
    samples: list[dict]

    @property
    def name(self) -> str:
        return self.arm if self.seed is None else f"{self.arm}, seed {self.seed}"


# ---------------------------------------------------------------------------------------------------- what is there


def cases_of(folder: Path) -> list[Case]:
    """The runs of reinforcement learning in a folder; ValueError in one line if there are none."""
    runs = runs_below(folder)
    if not runs and (folder / "metrics.jsonl").is_file() and (folder / "config.json").is_file():
        return together(folder)
    if not runs:
        raise ValueError(f"{folder} is no run and has none below it: a run has a config.json and a metrics.jsonl")
    all_settings = {name: read_json(place / "config.json") for name, place in runs.items()}
    recipes = {name: str(settings.get("recipe")) for name, settings in all_settings.items()}
    if not RECIPES.keys() & recipes.values():
        others = ", ".join(sorted({recipe.removesuffix("Config").lower() for recipe in recipes.values()}))
        raise ValueError(f"{folder}: no run of grpo or grpo_minimal, but of {others}; nothing else learns from rewards")
    single, cases = is_run(folder), []
    for name, place in runs.items():
        if recipes[name] in RECIPES and (single or all_settings[name].get("steps") != 0):  # 0: it only measures
            try:
                cases += [case_at(place, None if single else name)]
            except ValueError as error:
                if single or len(runs) == 1:
                    raise
                say(f"left out: {error}")
    if not cases:
        raise ValueError(f"{folder}: none of its runs can be examined")
    return cases


def case_at(place: Path, name: str | None) -> Case:
    """The run of a folder; `name`: its place among several. ValueError if it has no metrics, or damaged ones."""
    settings, path = read_json(place / "config.json"), place / "metrics.jsonl"
    lines = read_jsonl(path) if path.is_file() else []
    if not any("reward" in line for line in lines):
        raise ValueError(f"{place} has no metrics of a rollout yet: there is nothing to examine")
    samples: list[dict] = []
    try:
        samples = read_jsonl(place / "samples.jsonl") if (place / "samples.jsonl").is_file() else []
    except ValueError as error:
        say(f"examined without samples: {error}")
    if name is None:
        return case(str(place), None, place, settings, lines, samples)
    seed = re.search(r"(?:^|/)seed([0-9]{1,9})(?:/|$)", name)
    arm = "/".join(part for part in name.split("/") if not re.fullmatch("seed[0-9]+", part))
    return case(arm, int(seed[1]) if seed else None, place, settings, lines, samples)


def together(folder: Path) -> list[Case]:
    """The arms of `reproduce` in one file, as in data/results."""
    jobs = read_json(folder / "config.json").get("jobs")
    jobs = {name: job for name, job in (jobs if isinstance(jobs, dict) else {}).items() if isinstance(job, dict)}
    path, cases = folder / "samples.jsonl", []
    lines, samples = (read_jsonl(one) if one.is_file() else [] for one in (folder / "metrics.jsonl", path))
    for name, settings in jobs.items():
        seed, _, arm = name.removeprefix("seed").partition("/")
        if settings.get("recipe") in RECIPES and seed.isdecimal():
            own = [[line for line in some if (line.get("arm"), line.get("seed")) == (arm, int(seed))]
                   for some in (lines, samples)]  # fmt: skip
            if any("reward" in line for line in own[0]):
                cases.append(case(arm, int(seed), folder, settings, *own))
    if not cases:
        raise ValueError(f"{folder}: no run of grpo or grpo_minimal with metrics in it")
    return cases


def case(arm: str, seed: int | None, place: Path, settings: dict, lines: list[dict], samples: list[dict]) -> Case:
    if RECIPES.get(str(settings.get("recipe"))) == "grpo_minimal":  # its reward is the verdict, and it logs no more
        lines = [{"accuracy": line["reward"], **line} if "reward" in line else line for line in lines]
    return Case(arm, seed, place, settings, lines, samples)


# ------------------------------------------------------------------------------------------------------- what is said


def slug(metric: str) -> str:
    """The anchor of a metric in docs/metrics.md.

    >>> slug("completions/clipped_ratio"), slug("preflight/pass@K")
    ('completions-clipped_ratio', 'preflight-pass-K')
    """
    return re.sub(r"[^A-Za-z0-9_]+", "-", metric)


def summary(case: Case) -> str:
    """How far a run is and what its reward and accuracy did."""
    steps, of = len(numbers(case.lines, "reward")), case.settings.get("steps")
    text = f"{case.name}: {steps} of {of} steps" if isinstance(of, int) else f"{case.name}: {steps} steps"
    for name in ("reward", "accuracy"):
        text += f", {name} {found}" if (found := curve(case.lines, name)) else ""
    return text + (f" (too few for what changes in time: {SHORT} are needed)" if steps < SHORT else "")


def not_examined(cases: list[Case]) -> str:
    """The rules for which no run has the metrics; "" if there are none."""
    there = {name for case in cases for line in case.lines for name in line}
    if not any(case.settings.get("algorithm.kl_coef") for case in cases):
        there.add("kl")  # without a reference there is none
    missing = [f"{name} ({' or '.join(rule.needs)})" for name, rule in RULES.items() if not there & {*rule.needs}]
    return f"not examined, for want of metrics: {', '.join(missing)}" if missing else ""


def ranked(cases: list[Case]) -> list[tuple[list[Case], str, Finding]]:
    """(the runs of an arm that have it, the rule, what is found in the first of them), the most serious first."""
    found: dict[tuple[str, str, bool], list[tuple[Case, Finding]]] = {}
    for one in cases:
        for name, finding in findings_of(one.lines, one.settings, one.samples).items():
            found.setdefault((one.arm, name, finding.serious), []).append((one, finding))
    order = {name: place for place, name in enumerate(RULES)}
    keys = sorted(found, key=lambda key: (not key[2], order[key[1]], -len(found[key])))
    return [([one for one, _ in found[key]], key[1], found[key][0][1]) for key in keys]


def shown(number: int, some: list[Case], finding: Finding) -> list[str]:
    """A finding as lines of text."""
    who = f"{some[0].name}: " if some[0].seed is not None or some[0].arm != str(some[0].place) else ""
    others = ", ".join(str(one.seed) for one in some[1:])
    text = [f"{number}. {'SERIOUS' if finding.serious else 'NOTICE '}  {who}{finding.title}"]
    text += [f"     {line}" for line in finding.evidence]
    text += [f"     the same in seeds {others}"] * bool(others)
    where = str(some[0].place)
    return [*text, f"     next: {re.sub(r'RUN', lambda _: where, finding.advice)}",
            f"     docs/metrics.md#{slug(finding.metric)}"]  # fmt: skip


def about_loss(case: Case) -> str:
    """Why the loss is 0, or is not, and what to look at instead."""
    losses, norms = numbers(case.lines, "loss"), numbers(case.lines, "grad_norm")
    largest = short(max(map(abs, losses))) if losses else "not logged"
    text = [f"{case.name}: the loss is at most {largest} (its size) over {len(losses)} steps.", loss_of(case.settings)]
    if norms:
        dead = sum(norm < 1e-9 for norm in norms)
        text += [f"The gradient is 0 in {dead} of {len(norms)} steps; at most {short(max(norms))} (grad_norm)."]
    return "\n".join([*text, "Watch reward, accuracy, grad_norm, update_ratio: docs/metrics.md#loss"])


def loss_of(settings: dict) -> str:
    """What the loss comes to under these settings, in a sentence or two."""
    average = settings.get("algorithm.average", "sequence")
    more = [name for name in ("kl_coef", "entropy_coef") if settings.get(f"algorithm.{name}")]
    once = "There is one update on a rollout, so the ratio is 1"
    if settings.get("algorithm.ratio") == "apa":
        return (
            "It is the squared distance from where the advantages pull each token: it falls as the policy gets there."
        )
    if not one_update(settings):
        return (
            "There are several updates on a rollout: from the second on the ratio is not 1, and the loss is the mean "
            "of -ratio * A over responses of an older policy. It does not say whether anything is learnt."
        )
    if more:
        return f"{once}; the loss shows mostly {' and '.join(more)}, for the advantages of a group have mean 0."
    if average == "sequence" and settings.get("algorithm.baseline", "group") == "group":
        return (
            f"{once} and the loss is the mean of -A, in which each response counts alike; the advantages of a group "
            "have mean 0. It is 0 by algebra, whatever is learnt. Its gradient is not: that of the mean of -A * log p."
        )
    return (
        f"{once}; with --algorithm.average {average} the loss is the mean of -A over responses that count by their "
        "tokens: above 0 where better ones are shorter, below 0 where they are longer. It does not say whether "
        "anything is learnt."
    )


def examined(folder: Path, cases: list[Case]) -> str:
    """All that is said of a folder."""
    found = ranked(cases)
    text = [summary(cases[0])] if len(cases) == 1 else []
    if len(cases) > 1:
        sick = {one.name for some, _, _ in found for one in some}
        arms = len({one.arm for one in cases})
        text = [f"{folder}: {len(cases)} runs of {arms} arms examined, nothing found in {len(cases) - len(sick)}"]
    for number, (some, _, finding) in enumerate(found[:MOST], 1):
        text += ["", *shown(number, some, finding)]
    if not found:
        text += ["", "nothing found"]
    if more := found[MOST:]:
        first = more[0][0][0]
        text += ["", f"{len(more)} more, no more serious: {first.name} and others; name a run's folder to see its own"]
    return "\n".join([*text, *filter(None, [not_examined(cases)])])


def main(argv: list[str]) -> int:
    about = "Why a run of reinforcement learning does not learn: findings, evidence, the next step."
    parser = Parser(prog="python -m nanoreason doctor", description=about, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="folder of a run of grpo or grpo_minimal, or of `reproduce`")
    parser.add_argument("--loss", action="store_true", help="explain why the loss is about 0")
    flags = parser.parse_args(argv)
    cases = cases_of(Path(flags.run))
    say("\n\n".join(map(about_loss, cases[:MOST])) if flags.loss else examined(Path(flags.run), cases))
    return 0
