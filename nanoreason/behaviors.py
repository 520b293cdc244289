"""python -m nanoreason behaviors RUN|FILE: how often samples show the four cognitive behaviours.

    samples.jsonl -> problem (from its prompt) and response -> counts (`behavior_rules.py`) -> a table, or CSV

A line for each arm, split and step, for all responses and for the right and the wrong ones. rate: the share of
responses that show a behaviour at least once; mean: how often one response does (what Gandhi et al., 2025, plot).
`back new` are returns that go on in a way not tried before: a loop has many returns and few of these. FILE is any file
of JSON lines with `prompt` and `response`; `numbers`, `target`, `right`, `step`, `arm`, `split`, `kind` are read where
they are there.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

from nanoreason.behavior_rules import NAMES, Behaviors, count_behaviors
from nanoreason.countdown import Numbers
from nanoreason.look import runs_below, samples_of
from nanoreason.run import Parser, read_jsonl, say, table

# How the tasks of the package, and the data of the paper, pose a problem of Countdown.
POSED = (
    (r"(?:^|\n|User: )([0-9]{1,9}) from ([0-9 ]+)", "target first"),
    (r"[Mm]ake ([0-9]{1,9}) from ([0-9 ]+)", "target first"),
    (r"^T ([0-9]{1,9}) : ([0-9 ]+)", "target first"),
    (r"Current State: ([0-9]{1,9}):\[([0-9, ]+)\]", "target first"),
    (r"[Nn]umbers \[([0-9, ]+)\][^0-9]*?equals? ([0-9]{1,9})", "numbers first"),
)
WHICH = {"all": lambda line: True, "right": lambda line: line.get("right") == 1,
         "wrong": lambda line: line.get("right", 1) != 1}  # fmt: skip
HEADER = ["arm", "split", "step", "responses", "of", *(f"{name} {what}" for name in NAMES for what in ("rate", "mean")),
          "back new", "equations", "invalid"]  # fmt: skip


def problem_of(line: dict) -> tuple[Numbers, int] | None:
    """Inputs and target of a line; None if it is no problem of Countdown.

    >>> problem_of({"prompt": "User: 43 from 8 7 5 Assistant:"}), problem_of({"prompt": "4 7 + 3 8"})
    (((8, 7, 5), 43), None)
    """
    numbers, target = line.get("numbers"), line.get("target")
    if isinstance(numbers, list) and all(isinstance(n, int) for n in [*numbers, target]):
        return tuple(numbers), target
    for pattern, order in POSED:
        if found := re.search(pattern, str(line.get("prompt", ""))):
            target, numbers = found.groups() if order == "target first" else found.groups()[::-1]
            return tuple(int(n) for n in re.findall(r"[0-9]{1,9}", numbers)), int(target)
    return None


def counted(lines: list[dict]) -> dict[tuple, list[tuple[dict, Behaviors]]]:
    """{(arm, split, step): (line, its counts)}, sorted; lines that are no problem of Countdown are left out."""
    groups: dict[tuple, list[tuple[dict, Behaviors]]] = {}
    for line in lines:
        posed, response = problem_of(line), line.get("response")
        if posed and isinstance(response, str):
            step = line.get("step")
            step = step if isinstance(step, (int, float)) else 0
            key = (str(line.get("arm", "")), str(line.get("kind") or line.get("split", "")), step)
            groups.setdefault(key, []).append((line, count_behaviors(*posed, response)))
    return dict(sorted(groups.items(), key=lambda item: item[0]))


def rows_of(groups: dict[tuple, list[tuple[dict, Behaviors]]]) -> list[list[str]]:
    """A row of HEADER for each group, all and right and wrong; those of none are left out."""
    rows = []
    for (arm, split, step), counts in groups.items():
        for of, keep in WHICH.items():
            some = [found for line, found in counts if keep(line)]
            if not some:
                continue

            def mean(values: list[float], some=some) -> str:
                return f"{sum(values) / len(some):.2f}"

            row = [arm or "-", split or "-", str(step), str(len(some)), of]
            for name in NAMES:
                values = [getattr(found, name) for found in some]
                row += [mean([value > 0 for value in values]), mean(values)]
            others = ("new_backtracking", "equations", "invalid")
            rows.append(row + [mean([getattr(found, name) for found in some]) for name in others])
    return rows


def lines_at(place: Path) -> list[dict]:
    """All samples of a file, of a run, or of the runs of a folder, which are arms then, those of all seeds together;
    ValueError without any."""
    if place.is_file():
        lines = read_jsonl(place)
    elif (place / "samples.jsonl").is_file():
        lines = samples_of(place)
    else:
        runs = runs_below(place)
        arms = {name: "/".join(p for p in name.split("/") if not re.fullmatch("seed[0-9]+", p)) for name in runs}
        lines = [{"arm": arms[name]} | line for name, run in runs.items() if (run / "samples.jsonl").is_file()
                 for line in samples_of(run)]  # fmt: skip
    if not lines:
        raise ValueError(f"{place} has no samples: name a run, or a file of JSON lines with prompt and response")
    return [line for line in lines if isinstance(line, dict)]


def main(argv: list[str]) -> int:
    about = "The four cognitive behaviours in samples of Countdown."
    parser = Parser(prog="python -m nanoreason behaviors", description=about, allow_abbrev=False)
    parser.add_argument("place", metavar="RUN|FILE", help="folder of a run or of `reproduce`, or a file of JSON lines")
    parser.add_argument("--csv", default="", metavar="FILE", help="write the table there")
    flags = parser.parse_args(argv)
    lines = lines_at(Path(flags.place))
    groups = counted(lines)
    if not groups:
        raise ValueError(f"{flags.place}: none of {len(lines)} samples is a problem of Countdown with a response")
    rows, read = rows_of(groups), sum(map(len, groups.values()))
    if flags.csv:
        with open(flags.csv, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([HEADER, *rows])
        say(f"{len(rows)} lines: {flags.csv}")
    else:
        say(table(HEADER, rows))
    if read < len(lines):
        say(f"{len(lines) - read} of {len(lines)} samples are no problems of Countdown with a response: left out")
    return 0
