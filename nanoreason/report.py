"""python -m nanoreason report RUN [RUN2]: all that a run left, or two of them, in one HTML file that needs no server.

    metrics.jsonl · config.json · summary.json · samples.jsonl -> plain data -> JSON inside report.html -> OUT.html

RUN is the folder of a recipe, of `reproduce`, or what `reproduce` keeps in data/results. The page is `report.html`
beside this file: plain JavaScript that only reads the data. What a model wrote is data in it and never becomes markup:
`<` is escaped in the JSON, the page shows texts through textContent alone, and its policy lets no other script run.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import html
import json
import math
import re
from pathlib import Path
from typing import Any

from nanoreason.look import arms_below, is_run
from nanoreason.plot import DEFAULTS, is_number, lines_of
from nanoreason.report_samples import MOST_SAMPLES, groups_of, thinned
from nanoreason.run import Parser, read_json, read_jsonl, replace_text, say

PAGE = Path(__file__).with_name("report.html")
MOST_POINTS = 400  # of a line: a panel is not as many pixels wide
MOST_BYTES = 40 << 20  # of the samples in the page
USUAL = ("reward", "accuracy", "acc/*", "completions/mean_length", "completions/clipped_ratio", "entropy", "kl",
         "grad_norm", "frac_reward_zero_std", "thinking", *DEFAULTS)  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- curves


def series_of(lines: list[dict], run: int) -> list[dict]:
    """Lines of metrics -> series of an arm, seed and axis: {..., "x": [...], "values": {metric: [...]}}.

    axis   step; "asked: METHOD" where lines say what was asked of a method (a budget, a number of samples), which is
           not the same for two methods; empty where what was asked is no number: a single point at 0

    Several lines at one x are one point, with the last value of each metric.
    """
    found: dict[tuple, dict[float, dict]] = {}
    for line in lines:
        words = [str(value) for name, value in line.items() if name not in ("run", "method") and isinstance(value, str)]
        words += [name for name, value in line.items() if value is True]
        axis, x = "step", line.get("step")
        if isinstance(line.get("method"), str):
            axis, x = "asked: " + line["method"], line.get("asked")
            if not is_finite(x):
                axis, x, words = "", 0, [line["method"], *words]
        if is_finite(x):
            seed = line["seed"] if is_finite(line["seed"]) else 0
            arm = " · ".join([str(line["run"]), *(words if axis != "step" else [])])
            numbers = {k: v for k, v in line.items() if k not in ("seed", "step", "asked") and is_finite(v)}
            found.setdefault((arm, seed, axis), {}).setdefault(x, {}).update(numbers)
    series = []
    for (arm, seed, axis), points in found.items():
        xs = spread(sorted(points), MOST_POINTS)
        names = dict.fromkeys(name for x in xs for name in points[x])
        values = {name: [shortened(points[x].get(name)) for x in xs] for name in names}
        series.append({"run": run, "arm": arm, "seed": seed, "axis": axis, "x": xs, "values": values,
                       "points": len(points)})  # fmt: skip
    return series


def is_finite(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)


def shortened(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def spread(values: list, most: int) -> list:
    """At most so many of the values, evenly, the first and the last among them.

    >>> spread([0, 1, 2, 3, 4, 5, 6], 3)
    [0, 3, 6]
    """
    if len(values) <= most:
        return values
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


def usual_metrics(names: list[str]) -> list[str]:
    """Which panels the page opens with: what is usually looked at, of a pattern at most three."""
    patterns = [pattern for pattern in USUAL if pattern != "loss" or "reward" not in names]  # that of RL says nothing
    found = [name for pattern in patterns for name in fnmatch.filter(names, pattern)[:3]]
    return list(dict.fromkeys(found))[:9] or names[:6]


# -------------------------------------------------------------------------------------------------------- settings


def settings_of(folder: Path) -> dict[str, dict[str, list[str]]]:
    """{arm: {setting: its value, or one per seed where they differ}}, as text; without the seed and place of a run."""
    found: dict[str, list[dict]] = {}
    if arms := arms_below(folder):
        for arm, _, place in arms:
            found.setdefault(arm, []).append(read_json(place / "config.json"))
    elif (folder / "config.json").is_file():
        jobs = read_json(folder / "config.json").get("jobs")
        for name, settings in (jobs if isinstance(jobs, dict) else {}).items():
            if isinstance(settings, dict):
                found.setdefault(re.sub(r"^seed[0-9]+/", "", name), []).append(settings)
    merged: dict[str, dict[str, list[str]]] = {}
    for arm, seeds in found.items():
        names = dict.fromkeys(name for settings in seeds for name in settings if name not in ("seed", "out"))
        merged[arm] = {
            name: list(dict.fromkeys(as_text(settings[name]) for settings in seeds if name in settings))
            for name in names
        }
    return merged


def as_text(value: Any) -> str:
    """
    >>> as_text([10, 60]), as_text("accuracy"), as_text(0.0), as_text("")
    ('10, 60', 'accuracy', '0.0', '(empty)')
    """
    if isinstance(value, list):
        return ", ".join(map(as_text, value))
    return (value or "(empty)") if isinstance(value, str) else json.dumps(value)


def settings_table(runs: list[dict[str, dict[str, list[str]]]]) -> dict:
    """Of all arms of all runs: {"columns": [{"run", "arm"}], "rows": [{"name", "cells", "differs"}]}.

    A cell is the text of a value, None where an arm has no such setting.
    """
    columns = [{"run": r, "arm": arm} for r, arms in enumerate(runs) for arm in arms]
    names = dict.fromkeys(name for arms in runs for settings in arms.values() for name in settings)
    rows = []
    for name in names:
        values = [runs[column["run"]][column["arm"]].get(name) for column in columns]
        cells = [None if value is None else " | ".join(value) for value in values]
        rows.append({"name": name, "cells": cells, "differs": len(set(cells)) > 1})
    return {"columns": columns, "rows": rows}


def claims_of(folder: Path, run: int) -> list[dict]:
    """What summary.json says of the claims of a section, where there is one."""
    path = folder / "summary.json"
    claims = read_json(path).get("claims") if path.is_file() else None
    found = []
    for claim in claims if isinstance(claims, list) else []:
        if isinstance(claim, dict):
            values = claim.get("values") if isinstance(claim.get("values"), dict) else {}
            numbers = {name: claim.get(name) for name in ("mean", "standard_error", "threshold")}
            found.append({
                "run": run, "name": str(claim.get("name", "")), "passed": claim.get("passed") is True,
                "values": {str(seed): shortened(value) for seed, value in values.items() if is_finite(value)},
                **{name: shortened(value) if is_finite(value) else None for name, value in numbers.items()},
                "direction": str(claim.get("direction", "")).replace("_", " "),
                "reason": str(claim.get("reason") or ""),
            })  # fmt: skip
    return found


# ------------------------------------------------------------------------------------------------------ the whole


def sample_lines(folder: Path, run: int) -> list[dict]:
    """All samples of a folder, each with its run, arm and seed."""
    found = []
    for arm, seed, place in arms_below(folder):
        path = place / "samples.jsonl"
        lines = read_jsonl(path) if path.is_file() else []
        found += [line | {"run": run, "arm": arm, "seed": seed} for line in lines]
    if not found and not is_run(folder) and (folder / "samples.jsonl").is_file():  # those that `reproduce` keeps
        for line in read_jsonl(folder / "samples.jsonl"):
            found.append({"arm": str(folder), "seed": 0} | line | {"run": run})
    return found


def has_metrics(folder: Path) -> bool:
    places = [folder, *(place for _, _, place in arms_below(folder))]
    return any((place / "metrics.jsonl").is_file() and (place / "metrics.jsonl").stat().st_size for place in places)


def gather(folders: list[Path], most_samples: int) -> dict:
    """All that the page shows, as plain JSON; ValueError if a folder holds nothing to show."""
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError(f"{folders[0]} is named twice: a report compares two runs")
    series, samples, settings, claims, notes, runs = [], [], [], [], [], []
    for r, folder in enumerate(folders):
        lines = sample_lines(folder, r)
        curves = lines_of(folder) if has_metrics(folder) or not lines else []
        series += series_of(curves, r)
        samples += lines
        settings.append(settings_of(folder))
        claims += claims_of(folder, r)
        runs.append({"name": str(folder), "arms": list(dict.fromkeys(line["run"] for line in curves))})
        if not lines:
            notes.append(
                f"{folder} has no samples" + ("" if is_run(folder) else ": those of its runs are not kept here")
            )
    if any(one["points"] > len(one["x"]) for one in series):
        notes.append(f"long curves are thinned to {MOST_POINTS} points each, evenly")
    groups, note = thinned(groups_of(samples), most_samples, MOST_BYTES)
    names = list(dict.fromkeys(name for one in series for name in one["values"]))
    usual = usual_metrics(names)
    return {
        "runs": runs, "series": series, "metrics": list(dict.fromkeys(usual + names)), "usual": usual,
        "settings": settings_table(settings), "claims": claims, "groups": groups, "notes": notes + note,
    }  # fmt: skip


def page(data: dict, title: str) -> str:
    """The HTML file. The data are in it once, as JSON in which nothing can close its element or begin another."""
    text = PAGE.read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    safe = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    before, _, after = text.partition("{{DATA}}")  # first, as texts of a model may hold the other names
    before = before.replace("{{TITLE}}", html.escape(title.encode("utf-8", "replace").decode())).replace(
        "{{DIGEST}}", digest
    )
    return before + safe + after


def main(argv: list[str]) -> int:
    about = "Curves, settings and samples of a run, or of two, as one HTML file to open in a browser."
    parser = Parser(prog="python -m nanoreason report", description=about, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="one or two: folders of recipes' runs or of `reproduce`")
    parser.add_argument("--out", default="", metavar="FILE.html", help="the page (default: RUN/report.html)")
    parser.add_argument("--samples", type=int, default=MOST_SAMPLES,
                        help=f"responses at most, in whole groups (default: {MOST_SAMPLES})")  # fmt: skip
    flags = parser.parse_args(argv)
    if len(flags.runs) > 2:
        raise ValueError(f"{len(flags.runs)} runs: a report is of one run, or compares two (plot draws more)")
    if flags.samples < 0:
        raise ValueError(f"--samples {flags.samples}: at least 0")
    folders = [Path(run) for run in flags.runs]
    data = gather(folders, flags.samples)
    path = Path(flags.out or folders[0] / "report.html")
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, page(data, " against ".join(flags.runs)))
    shown = sum(len(group["samples"]) for group in data["groups"])
    seeds = len({(one["run"], one["arm"], one["seed"]) for one in data["series"]})
    say(
        f"{path}: {seeds} curves of {len(data['metrics'])} metrics, {shown} samples, {path.stat().st_size / 1e6:.1f} MB"
    )
    for note in data["notes"]:
        say(f"  {note}")
    return 0
