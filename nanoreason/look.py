"""python -m nanoreason look RUN: what a run's policy wrote, in the terminal, with its rewards and advantages.

    RUN/samples.jsonl (`environment.sample_line`) -> the lines of one step -> groups of one prompt -> text

RUN is the folder of a recipe. Of a folder of `reproduce`, or one that holds several runs, it says which there are.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

from nanoreason.run import Parser, read_json, read_jsonl, say

KEPT: dict[str, Callable[[dict], bool]] = {
    "all": lambda line: True,
    "right": lambda line: line.get("right") == 1,
    "wrong": lambda line: line.get("right") != 1,
    "truncated": lambda line: line.get("stop_reason") == "length",
}
COLORS = {"right": "32", "wrong": "31", "dim": "2", "bold": "1"}  # of a terminal (ANSI)


# ------------------------------------------------------------------------------------------------- folders of runs


def is_run(folder: Path) -> bool:
    """Whether it is the folder of one recipe's run: of `reproduce` and of a checkpoint, config.json names no recipe."""
    return (folder / "config.json").is_file() and "recipe" in read_json(folder / "config.json")


def runs_below(folder: Path) -> dict[str, Path]:
    """{name: folder} of a run, or of the runs one or two levels below, as `reproduce` has them in seed*/ARM.

    ValueError says in one line that there is no such folder, or nothing in it.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    if is_run(folder):
        return {folder.name or str(folder): folder}
    places = sorted([*folder.glob("*/config.json"), *folder.glob("*/*/config.json")])
    found = [path.parent for path in places if is_run(path.parent)]
    if not found and is_run(folder.absolute().parent):  # OUT/policy, OUT/adapter
        raise ValueError(f"{folder} is a part of a run: name the run, {folder.absolute().parent}")
    return {place.relative_to(folder).as_posix(): place for place in found}


def arms_below(folder: Path) -> list[tuple[str, int, Path]]:
    """(arm, seed, folder) of each of `runs_below`: the arm is where it lies, without the folder of its seed."""
    found = []
    for place in runs_below(folder).values():
        seed = read_json(place / "config.json").get("seed", 0)
        parts = place.relative_to(folder).parts  # () of a run, (seed0, arm) of `reproduce`
        found.append(("/".join(part for part in parts if part != f"seed{seed}") or str(folder), seed, place))
    return found


# --------------------------------------------------------------------------------------------------------- samples


def samples_of(folder: Path) -> list[dict]:
    """The lines of a run's samples.jsonl; ValueError if there are none yet."""
    path = folder / "samples.jsonl"
    lines = read_jsonl(path) if path.is_file() else []
    if not lines:
        raise ValueError(f"{folder} has no samples yet: they come with the first step, or the first test")
    return lines


def of_step(lines: list[dict], step: int | None, folder: Path) -> tuple[int, list[dict]]:
    """The step (None: the newest one) and its lines; ValueError names the steps that there are."""
    steps = sorted({line["step"] for line in lines})
    step = steps[-1] if step is None else step
    if step not in steps:
        raise ValueError(f"{folder} has no samples of step {step}, but of {listed(steps)}")
    return step, [line for line in lines if line["step"] == step]


def listed(steps: list[int]) -> str:
    """
    >>> listed([1, 2, 3]), listed([5]), listed(list(range(0, 200, 10)))
    ('1, 2, 3', '5', '0, 10, 20, ..., 180, 190')
    """
    names = [str(step) for step in steps]
    return ", ".join(names if len(names) <= 12 else [*names[:3], "...", *names[-2:]])


def grouped(lines: list[dict]) -> list[list[dict]]:
    """Responses to one prompt that were sampled together, in the order of the file."""
    groups: dict[tuple, list[dict]] = {}
    for line in lines:
        groups.setdefault((line.get("kind"), line.get("group"), line.get("prompt")), []).append(line)
    return list(groups.values())


# ------------------------------------------------------------------------------------------------------- as text


class Page:
    """Text for a terminal of so many columns; colours only where they are shown."""

    def __init__(self, columns: int, colored: bool):
        self.columns, self.colored = columns, colored

    def paint(self, text: str, color: str) -> str:
        return f"\033[{COLORS[color]}m{text}\033[0m" if self.colored else text

    def wrapped(self, text: str, label: str, indent: str) -> list[str]:
        """The text behind a label, wrapped; its own line ends stay. What would move the cursor is written out."""
        text = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
        lines = []
        for i, part in enumerate(text.split("\n")):
            first = indent + (label if i == 0 else " " * len(label))
            width = max(self.columns, len(first) + 20)
            lines += textwrap.wrap(part, width, initial_indent=first, subsequent_indent=indent + " " * len(label),
                                   replace_whitespace=False, drop_whitespace=True) or [first.rstrip()]  # fmt: skip
        return lines

    def group(self, lines: list[dict], keep: Callable[[dict], bool], count: int) -> list[str]:
        """A group as lines of text: its prompt, and at most `count` of its responses that are to be kept."""
        first, kept = lines[0], [(i, line) for i, line in enumerate(lines) if keep(line)]
        right = sum(KEPT["right"](line) for line in lines)
        title = f"{first.get('kind', 'sample')}, group {first.get('group', 0)}: {right} of {len(lines)} right"
        if first.get("difficulty"):
            title += f", difficulty {first['difficulty']}"
        text = [self.paint(title, "bold"), *self.wrapped(first.get("prompt", "").rstrip("\n"), "prompt  ", "  ")]
        if first.get("answer"):
            text += self.wrapped(first["answer"], "answer  ", "  ")
        for i, line in kept[:count]:
            verdict = "right" if KEPT["right"](line) else "wrong"
            text += [f"  {self.paint(f'{i + 1:>2} {verdict}', verdict)}  {about(line)}"]
            text += self.wrapped(line.get("marked", line.get("response", "")), "", "     ")
        if len(kept) > count:
            text.append(self.paint(f"  {len(kept) - count} more: --count {len(kept)}", "dim"))
        return text


def about(line: dict) -> str:
    """What is known of a response, but for its text and its verdict.

    >>> about({"right": 1.0, "tokens": 9, "stop_reason": "eos", "reward": 1.1, "rewards": {"accuracy": 1.0,
    ...        "format": 1.0}, "advantage": 0.5})
    'reward 1.1 (accuracy 1, format 1), advantage +0.50, 9 tokens, eos'
    >>> about({"right": 1.0, "valid": 0.0, "tokens": 9, "stop_reason": "length"})
    '9 tokens, truncated, its work is wrong'
    """
    parts = []
    if line.get("reward") is not None:
        named = ", ".join(f"{name} {value + 0:.3g}" for name, value in line.get("rewards", {}).items())
        parts.append(f"reward {line['reward'] + 0:.3g}" + (f" ({named})" if named else ""))
    if line.get("advantage") is not None:
        parts.append(f"advantage {line['advantage']:+.2f}")
    if "tokens" in line:
        parts.append(f"{line['tokens']} tokens")
    if line.get("stop_reason"):
        parts.append("truncated" if line["stop_reason"] == "length" else line["stop_reason"])
    if line.get("valid", line.get("right")) != line.get("right"):
        parts.append("its work is wrong")
    return ", ".join(parts)


def look(folder: Path, step: int | None, only: str, count: int, page: Page) -> str:
    """The samples of one step as text, group by group."""
    lines = samples_of(folder)
    step, shown = of_step(lines, step, folder)
    groups = [group for group in grouped(shown) if any(map(KEPT[only], group))]
    steps = sorted({line["step"] for line in lines})
    text = [f"{folder}, step {step} (samples of steps {listed(steps)})"]
    if not groups:
        text += ["", f"none of {len(shown)} responses is {only}"]
    for group in groups:
        text += ["", *page.group(group, KEPT[only], count)]
    return "\n".join(text)


def main(argv: list[str]) -> int:
    about = "The samples of a run: prompts, responses, rewards, advantages."
    parser = Parser(prog="python -m nanoreason look", description=about, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="folder of a recipe's run, or of `reproduce`")
    parser.add_argument("--step", type=int, help="of this step (default: the newest one)")
    parser.add_argument("--only", choices=[name for name in KEPT if name != "all"], default="all")
    parser.add_argument("--count", type=int, default=8, help="responses of a group at most (default: 8)")
    flags = parser.parse_args(argv)
    if flags.count < 1:
        raise ValueError(f"--count {flags.count}: at least 1")
    runs = runs_below(Path(flags.run))
    if not runs:
        raise ValueError(f"{flags.run} is no run and has none below it: a run has a config.json and a samples.jsonl")
    if len(runs) > 1:
        say(
            f"{flags.run} holds {len(runs)} runs: name one, as in python -m nanoreason look {next(iter(runs.values()))}"
        )
        for name, folder in runs.items():
            path = folder / "samples.jsonl"
            steps = sorted({line["step"] for line in read_jsonl(path)}) if path.is_file() else []
            say(f"  {name}: " + (f"samples of steps {listed(steps)}" if steps else "no samples yet"))
        return 0
    colored = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    page = Page(shutil.get_terminal_size((100, 24)).columns, colored)
    say(look(next(iter(runs.values())), flags.step, flags.only, flags.count, page))
    return 0
