"""python -m nanoreason behaviors RUN|FILE: how often responses verify, go back, set subgoals, work backwards.

samples.jsonl of a run, of all runs of `reproduce`, or any JSONL file with "prompt" and "response"
  -> the problem in each prompt -> counts by rules (`behavior_rules.py`) -> means by arm, kind, step and verdict
"""

from __future__ import annotations

import csv
import re
import statistics
from collections.abc import Callable
from pathlib import Path

from nanoreason.behavior_rules import NAMES, Behaviors, count_behaviors
from nanoreason.countdown import Numbers
from nanoreason.look import runs_below
from nanoreason.run import Parser, Progress, read_jsonl, say, table

# How prompts pose a problem: of Attempts and Countdown, of both languages of searches, and as in TinyZero.
TARGET_FIRST = (
    re.compile(r"\b([0-9]{1,9}) from ([0-9]{1,9}(?: [0-9]{1,9})+)"),
    re.compile(r"\bT ([0-9]{1,9}) : ([0-9]{1,9}(?: [0-9]{1,9})+)"),
    re.compile(r"Current State: ([0-9]{1,9}):\[([0-9]{1,9}(?:, [0-9]{1,9})+)\]"),
)
NUMBERS_FIRST = re.compile(r"\[([0-9]{1,9}(?:,? [0-9]{1,9})+)\][^0-9]{1,80}\b([0-9]{1,9})\b")

Counted = tuple[dict, Behaviors]  # a line of a file and what was counted in its response


def problem_in(prompt: str) -> tuple[Numbers, int] | None:
    """The numbers and the target of a Countdown prompt; None where there are none.

    >>> problem_in("43 from 8 7 5"), problem_in("Using the numbers [8, 7, 5], create an equation that equals 43.")
    (((8, 7, 5), 43), ((8, 7, 5), 43))
    """
    for pattern in TARGET_FIRST:
        if found := pattern.search(prompt):
            return tuple(map(int, re.findall("[0-9]+", found[2]))), int(found[1])
    if found := NUMBERS_FIRST.search(prompt):
        return tuple(map(int, re.findall("[0-9]+", found[1]))), int(found[2])
    return None


def lines_of(place: Path) -> list[dict]:
    """The responses of a file, or of the samples of all runs of a folder, with the "arm" that each belongs to."""
    if place.is_file():
        return read_jsonl(place)
    runs = runs_below(place)
    if not runs and (place / "samples.jsonl").is_file():  # the arms of `reproduce` in one file, as in data/results
        return read_jsonl(place / "samples.jsonl")
    found: list[dict] = []
    for name, folder in runs.items():
        arm = "/".join(part for part in name.split("/") if not re.fullmatch("seed[0-9]+", part))
        path = folder / "samples.jsonl"
        found += [{"arm": arm} | line for line in (read_jsonl(path) if path.is_file() else [])]
    if not found:
        raise ValueError(f"{place} has no samples" + (" yet" if runs else ": it is no run, and has none below it"))
    return found


def counted(lines: list[dict], place: Path) -> list[Counted]:
    """Each line whose prompt poses a Countdown problem, with its counts; ValueError if there is none."""
    found = []
    with Progress(total=len(lines), name="behaviors", unit="responses") as progress:
        for line in lines:
            prompt, response = line.get("prompt"), line.get("response")
            if isinstance(prompt, str) and isinstance(response, str) and (posed := problem_in(prompt)):
                found.append((line, count_behaviors(*posed, response)))
            progress.update()
    if not found:
        raise ValueError(f"{place}: none of {len(lines)} lines has a response to a Countdown problem such as 43 from "
                         "8 7 5 (fields prompt and response)")  # fmt: skip
    return found


# ----------------------------------------------------------------------------------------------------------- tables


def grouped(some: list[Counted], *keys: Callable[[dict], str | int]) -> dict[tuple, list[Counted]]:
    """{(value of each key): its lines}, in order."""
    groups: dict[tuple, list[Counted]] = {}
    for line, counts in some:
        groups.setdefault(tuple(key(line) for key in keys), []).append((line, counts))
    return dict(sorted(groups.items()))


def arm(line: dict) -> str:
    return str(line.get("arm", "all"))


def kind(line: dict) -> str:
    return str(line.get("kind") or line.get("split") or "")


def step(line: dict) -> int:
    return line["step"] if isinstance(line.get("step"), int) else 0


def verdict(line: dict) -> str:
    return "not judged" if line.get("right") is None else "right" if line["right"] == 1 else "wrong"


def summary(some: list[Counted]) -> list[str]:
    """Responses; share of right ones; of each behaviour the mean count and the share of responses that show it; the
    mean of returns to a new way; the share of calculations that are invalid."""
    judged = [line["right"] == 1 for line, _ in some if line.get("right") is not None]
    cells = [str(len(some)), f"{statistics.fmean(judged):.2f}" if judged else "-"]
    for name in NAMES:
        counts = [getattr(one, name) for _, one in some]
        cells.append(f"{statistics.fmean(counts):.2f} ({statistics.fmean(count > 0 for count in counts):.2f})")
    equations = sum(one.equations for _, one in some)
    new = statistics.fmean(one.new_backtracking for _, one in some)
    return [*cells, f"{new:.2f}", f"{sum(one.invalid for _, one in some) / equations:.2f}" if equations else "-"]


def report(some: list[Counted]) -> str:
    """Two tables: by arm, kind and step; by arm, kind and verdict."""
    header = ["responses", "right", *NAMES, "new returns", "invalid"]
    text = ["mean count per response (share of responses that show it)", ""]
    for names, keys in (
        (["arm", "kind", "step"], (arm, kind, step)),
        (["arm", "kind", "verdict"], (arm, kind, verdict)),
    ):
        rows = [[*map(str, key), *summary(lines)] for key, lines in grouped(some, *keys).items()]
        text += [table([*names, *header], rows), ""]
    return "\n".join(text[:-1])


def write_csv(path: Path, some: list[Counted]) -> None:
    """arm, kind, step, verdict and all counts, a row per response."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["arm", "kind", "step", "verdict", *Behaviors._fields])
        rows.writerows([arm(line), kind(line), step(line), verdict(line), *counts] for line, counts in some)


def main(argv: list[str]) -> int:
    about = "Verification, backtracking, subgoals and backward chaining in responses to Countdown problems."
    parser = Parser(prog="python -m nanoreason behaviors", description=about, allow_abbrev=False)
    parser.add_argument("place", metavar="RUN|FILE", help="folder of a run or of `reproduce`, or a JSONL file")
    parser.add_argument("--arms", default="", help="only these arms of `reproduce`, as zero,short (default: all)")
    parser.add_argument("--csv", default="", metavar="FILE", help="write the counts of each response there")
    flags = parser.parse_args(argv)
    place = Path(flags.place)
    lines = lines_of(place)
    if wanted := [name for name in flags.arms.split(",") if name]:
        there = sorted({arm(line) for line in lines})
        if unknown := [name for name in wanted if name not in there]:
            raise ValueError(f"{place} has no arm {unknown[0]}, but {', '.join(there)}")
        lines = [line for line in lines if arm(line) in wanted]
    some = counted(lines, place)
    if len(some) < len(lines):
        say(f"{len(lines) - len(some)} of {len(lines)} lines are left out: their prompts pose no Countdown problem\n")
    say(report(some))
    if flags.csv:
        write_csv(Path(flags.csv), some)
        say(f"\n{len(some)} responses: {flags.csv}")
    return 0
