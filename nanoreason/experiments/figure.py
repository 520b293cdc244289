"""The figure of a section: panels in a grid, declared as data.

    Panel(title, lines, x, y) + Results -> thin single seeds, a thick mean, a legend below the axes
"""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanoreason.experiments.results import PerSeed, Results


@dataclass(frozen=True)
class Line:
    """What has one colour in a panel: an arm, or those of its lines of metrics that have the values in `where`."""

    arm: str
    label: str  # in the legend; of a bar: below it
    color: str | tuple = "tab:blue"
    where: dict[str, Any] = field(default_factory=dict)
    style: str = ""  # linestyle, instead of that of the metric


@dataclass(frozen=True)
class Panel:
    """One plot. `y` is a metric, or several as {label: metric}, which differ in line style (bars: in hatching).

    line   (x, y) of each arm: thin for single seeds, thick for their mean. x and y are averaged over the lines of all
           seeds that share a value of `by`
    bar    one number per arm, its last measurement: the bar is the mean, dots are seeds
    """

    title: str
    lines: tuple[Line, ...]
    y: str | dict[str, str]
    x: str = "step"
    by: str = ""  # default: x
    kind: str = "line"
    xlabel: str = "step"
    ylabel: str = ""
    xlim: tuple = (None, None)
    ylim: tuple = (None, None)
    xscale: str = "linear"
    yscale: str = "linear"
    smooth: int = 1  # each point is the mean of so many neighbours
    marker: str = ""  # on the points of the mean
    # instead of what stands under the metrics' names: (results, line, metric, seed or None for the mean) -> [(x, y), ..]
    points: Callable[[Results, Line, str, int | None], list[tuple[float, float]]] | None = None
    bars: Callable[[Results, Line, str], PerSeed] | None = None  # the same for a bar
    also: Callable[[Any, Results], None] | None = None  # (axis, results): what is special about this panel


def smoothed(values: list[float], width: int) -> list[float]:
    """The mean of each value and its neighbours, `width` of them where there are as many."""
    return [statistics.fmean(values[max(0, i - width // 2) : i + width // 2 + 1]) for i in range(len(values))]


def draw(panels: list[Panel], results: Results, caption: str, path: Path, columns: int = 3) -> None:
    """Draw all panels into one PNG. Raises ModuleNotFoundError without matplotlib (the extra `figures`)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(5.4 * columns, 4.7 * rows), layout="constrained", squeeze=False)
    for axis, panel in zip(axes.flat, panels, strict=False):
        (draw_bars if panel.kind == "bar" else draw_lines)(axis, panel, results)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_axis_off()
    thin = "thin lines and dots are single seeds" if len(results.seeds) > 1 else ""
    seeds = f"Mean of {len(results.seeds)} seeds; {thin}." if thin else "One seed."
    figure.suptitle("\n".join(textwrap.wrap(f"{caption} {seeds}", 62 * columns)), fontsize=11)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def finish(axis, panel: Panel, results: Results) -> None:
    """Labels, limits, and the legend below the axes, where it covers nothing."""
    axis.set_title(panel.title, fontsize=11)
    axis.set(ylabel=panel.ylabel, yscale=panel.yscale)
    axis.grid(alpha=0.2)
    if panel.also:
        panel.also(axis, results)
    axis.set(xlim=panel.xlim, ylim=panel.ylim)
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        columns = 1 if max(map(len, labels)) > 34 else 2 if max(map(len, labels)) > 16 or len(labels) < 3 else 3
        below = (0.5, -0.17 if panel.kind == "line" else -0.24)
        axis.legend(handles, labels, fontsize=8, ncols=columns, loc="upper center", bbox_to_anchor=below, frameon=False)


def draw_lines(axis, panel: Panel, results: Results) -> None:
    from matplotlib.ticker import MaxNLocator, NullFormatter, ScalarFormatter

    metrics = panel.y if isinstance(panel.y, dict) else {"": panel.y}

    def points(line: Line, metric: str, seed: int | None) -> list[tuple[float, float]]:
        if panel.points:
            return panel.points(results, line, metric, seed)
        return results.points(line.arm, panel.x, metric, seed, panel.by, **line.where)

    for line in panel.lines:
        for (name, metric), style in zip(metrics.items(), ("-", "--", ":"), strict=False):
            for seed in (*results.seeds, None) if len(results.seeds) > 1 else (None,):
                found = points(line, metric, seed)
                if not found:
                    continue
                x, y = [p[0] for p in found], smoothed([p[1] for p in found], panel.smooth)
                if seed is not None:
                    axis.plot(x, y, line.style or style, color=line.color, linewidth=0.6, alpha=0.4)
                else:
                    label = f"{line.label}: {name}" if name and line.label else line.label or name
                    axis.plot(x, y, line.style or style, color=line.color, linewidth=1.8, label=label,
                              marker=panel.marker or None, markersize=4)  # fmt: skip
    axis.set(xlabel=panel.xlabel)
    if panel.xscale == "log":
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_formatter(NullFormatter())
    elif panel.x in ("step", "asked", "round"):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    finish(axis, panel, results)


def draw_bars(axis, panel: Panel, results: Results) -> None:
    metrics = panel.y if isinstance(panel.y, dict) else {"": panel.y}
    width = 0.8 / len(metrics)
    for m, (name, metric) in enumerate(metrics.items()):
        shown = {"alpha": (0.95, 0.55, 0.3)[m], "edgecolor": "white", "hatch": ("", "//", "..")[m]}
        for i, line in enumerate(panel.lines):
            values = panel.bars(results, line, metric) if panel.bars else results.last(line.arm, metric, **line.where)
            if values:
                x = i + (m - (len(metrics) - 1) / 2) * width
                axis.bar(x, values.mean, width * 0.94, color=line.color, **shown)
                if len(results.seeds) > 1:
                    axis.plot([x] * len(values), list(values.values()), "k.", markersize=4)
        if name:
            axis.bar(0, 0, color="gray", label=name, **shown)
    angle = 30 if len(panel.lines) * max(len(word) for line in panel.lines for word in line.label.split("\n")) > 56 else 0
    axis.set_xticks(range(len(panel.lines)), [line.label for line in panel.lines], fontsize=8, rotation=angle,
                    ha="right" if angle else "center", rotation_mode="anchor" if angle else None)  # fmt: skip
    finish(axis, panel, results)
