"""python -m nanoreason plot RUN [RUN ...]: metrics of runs over one another, a panel per metric; or as CSV.

    RUN/metrics.jsonl of each run, arm and seed -> Results -> Panel per metric -> OUT.png

A folder of `reproduce` stands for its arms: each is one line, the mean over its seeds.
"""

from __future__ import annotations

import csv
import difflib
import fnmatch
import statistics
from pathlib import Path

from nanoreason.experiments.figure import Line, Panel, draw
from nanoreason.experiments.results import Results
from nanoreason.look import arms_below, is_run, listed
from nanoreason.run import Parser, read_jsonl, say, table

# What is shown if no metric is named, as far as it is there; of a pattern, the mean of what it stands for. The loss of
# reinforcement learning says nothing, so it is shown only where there is no reward.
DEFAULTS = ("reward", "accuracy", "loss", "acc/*", "completions/mean_length", "thinking", "entropy", "kl",
            "frac_reward_zero_std", "kept")  # fmt: skip
NAMES = ("run", "seed", "step")  # of the first columns of a CSV; no metrics


# ---------------------------------------------------------------------------------------------------- what is there


def lines_of(folder: Path) -> list[dict]:
    """The metrics of a run, or of all runs of a folder, as {"run": its arm or folder, "seed": ..., "step": ..., ...}.

    ValueError if there are none.
    """
    runs = arms_below(folder)
    lines = []
    for arm, seed, place in runs:
        path = place / "metrics.jsonl"
        lines += [{"run": arm, "seed": seed} | line for line in (read_jsonl(path) if path.is_file() else [])]
    if not runs and (folder / "metrics.jsonl").is_file():  # the arms of `reproduce` in one file, as in data/results
        for line in read_jsonl(folder / "metrics.jsonl"):
            lines.append({"run": line.pop("arm", str(folder)), "seed": line.pop("seed", 0)} | line)
    if not lines:
        raise ValueError(f"{folder} has no metrics" + (" yet" if runs else ": it is no run, and has none below it"))
    return lines


def lines_of_all(folders: list[Path], arms: list[str]) -> list[dict]:
    """Of several folders; arms of two folders of `reproduce` are told apart by them. Only `arms`, if any are named."""
    found: list[dict] = []
    for folder in dict.fromkeys(folders):
        lines = lines_of(folder)
        names = list(dict.fromkeys(line["run"] for line in lines))
        if unknown := [arm for arm in arms if arm not in names]:
            raise ValueError(f"{folder} has no arm {unknown[0]}, but {', '.join(names)}")
        within = f"{folder}/" if len(set(folders)) > 1 and not is_run(folder) else ""
        found += [line | {"run": within + line["run"]} for line in lines if not arms or line["run"] in arms]
    return found


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def metrics_of(lines: list[dict]) -> list[str]:
    """The names of all numbers in the lines, in their order."""
    return list(dict.fromkeys(name for line in lines for name in line if name not in NAMES and is_number(line[name])))


def chosen_metrics(text: str, names: list[str]) -> dict[str, list[str]]:
    """{title: metrics whose mean it is} of `reward,acc/*`, in which a pattern stands for each that matches it.

    ValueError if one stands for nothing. Without a text: DEFAULTS, in which a pattern is one panel.

    >>> chosen_metrics("acc/*,loss", ["loss", "acc/1", "acc/2"])
    {'acc/1': ['acc/1'], 'acc/2': ['acc/2'], 'loss': ['loss']}
    >>> chosen_metrics("", ["loss", "acc/1", "acc/2"])
    {'loss': ['loss'], 'mean of acc/*': ['acc/1', 'acc/2']}
    """
    found: dict[str, list[str]] = {}
    if not text:
        usual = [pattern for pattern in DEFAULTS if pattern != "loss" or "reward" not in names]
        for pattern, some in ((pattern, fnmatch.filter(names, pattern)) for pattern in usual):
            if some:
                found[some[0] if len(some) == 1 else f"mean of {pattern}"] = some
        return found or {name: [name] for name in names[:6]}
    for pattern in filter(None, text.split(",")):
        some = [pattern] if pattern in names else fnmatch.filter(names, pattern)
        if not some:
            near = difflib.get_close_matches(pattern, names, 3, 0.5)
            hint = f", but {', '.join(near)}" if near else ""
            raise ValueError(f"no run has the metric {pattern}{hint}: --list names all")
        found |= {name: [name] for name in some}
    return found


# ------------------------------------------------------------------------------------------------ list, CSV, picture


def listing(lines: list[dict]) -> str:
    """A table of all metrics: how many runs have them, at which steps, from which to which value."""
    rows = []
    for name in metrics_of(lines):
        some = [line for line in lines if is_number(line.get(name))]
        values = [line[name] for line in some]
        steps = sorted({line["step"] for line in some})
        runs = len({(line["run"], line["seed"]) for line in some})
        span = f"{steps[0]}..{steps[-1]}" if len(steps) > 1 else listed(steps)
        rows.append([name, str(runs), span, str(len(some)), f"{min(values):.4g}", f"{max(values):.4g}"])
    return table(["metric", "runs", "steps", "values", "least", "most"], rows)


def write_csv(path: Path, lines: list[dict], names: list[str]) -> None:
    """run, seed, step and the named columns, a row per line of metrics that has one of them."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*NAMES, *names], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(line for line in lines if any(name in line for name in names))


def picture(lines: list[dict], metrics: dict[str, list[str]], x: str, smooth: int, path: Path) -> None:
    """A panel per metric, a line per run or arm: {title: metrics whose mean it is, of those that a line has}."""
    numbers = []
    for line in lines:
        point = {name: value for name, value in line.items() if is_number(value)}
        for title, names in metrics.items():
            if values := [point[name] for name in names if name in point]:
                point[title] = statistics.fmean(values)
        numbers.append(point | {"arm": line["run"]})
    results = Results(numbers)
    # matplotlib has ten colours: beyond them the line style differs
    arms = [Line(arm, arm, style=("-", "--", ":", "-.")[i // 10 % 4]) for i, arm in enumerate(results.arms)]
    panels = []
    for title in metrics:
        here = [line for line in arms if results.lines(line.arm, title)]
        seldom = max(len(results.curve(line.arm, title)) for line in here) <= 30  # its points should be seen
        panels.append(Panel(title, arms, title, x=x, by="step", xlabel=x, smooth=smooth, marker="." if seldom else ""))
    seeds = max(len({point["seed"] for point in numbers if point["arm"] == arm}) for arm in results.arms)
    caption = [f"Thick lines are means over {seeds} seeds, thin ones single seeds."] if seeds > 1 else []
    caption += [f"Each point is the mean of {smooth} neighbours."] if smooth > 1 else []
    draw(panels, results, " ".join(caption), path, about_seeds=False)


def main(argv: list[str]) -> int:
    parser = Parser(prog="python -m nanoreason plot", description="Metrics of runs.", allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of recipes' runs, or of `reproduce`")
    parser.add_argument("--metric", default="", help="such as reward,acc/* (default: what is usually looked at)")
    parser.add_argument("--arms", default="", help="only these arms of `reproduce`, as plain,direct (default: all)")
    parser.add_argument("--x", default="step", help="what is to the right, such as num_tokens (default: step)")
    parser.add_argument(
        "--smooth", type=int, default=1, help="each point is the mean of so many neighbours (default: 1)"
    )
    parser.add_argument("--out", default="", metavar="FILE.png", help="the picture (default: RUN/plot.png)")
    parser.add_argument(
        "--csv", default="", metavar="FILE", help="write the numbers there, and no picture without --out"
    )
    parser.add_argument("--list", action="store_true", help="only list the metrics that there are")
    flags = parser.parse_args(argv)
    if flags.smooth < 1:
        raise ValueError(f"--smooth {flags.smooth}: at least 1")
    lines = lines_of_all([Path(run) for run in flags.runs], [arm for arm in flags.arms.split(",") if arm])
    names = metrics_of(lines)
    if flags.list:
        say(listing(lines))
        return 0
    if flags.x != "step" and flags.x not in names:
        raise ValueError(f"--x {flags.x}: no run has this metric (--list names all)")
    if flags.csv:
        columns = list(chosen_metrics(flags.metric, names)) if flags.metric else list(
            dict.fromkeys(name for line in lines for name in line if name not in NAMES)
        )  # fmt: skip
        write_csv(Path(flags.csv), lines, columns)
        say(f"{len(lines)} lines of {len(columns)} metrics: {flags.csv}")
    if flags.csv and not flags.out:
        return 0
    metrics = chosen_metrics(flags.metric, names)
    path = Path(flags.out or Path(flags.runs[0]) / "plot.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        picture(lines, metrics, flags.x, flags.smooth, path)
    except ModuleNotFoundError as error:
        raise ValueError(f"no picture: {error.name} is not installed (pip install 'nanoreason[figures]')") from None
    say(f"{', '.join(metrics)}: {path}")
    return 0
