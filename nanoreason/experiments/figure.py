"""The figure of a section: panels in a grid, declared as data.

Panel(title, lines, x, y) + Results -> thin single seeds, a thick mean, a legend below the axes
"""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanoreason.experiments.results import Metric, PerSeed, Results


@dataclass(frozen=True)
class Line:
    """What has one colour in a panel: an arm, or those of its lines of metrics that have the values in `where`."""

    arm: str
    label: str  # in the legend; of a bar: below it
    color: str | tuple = ""  # "": the next of matplotlib's ten
    where: dict[str, Any] = field(default_factory=dict)
    y: Metric = ""  # instead of the panel's
    style: str = ""  # linestyle, instead of that of the metric


@dataclass(frozen=True)
class Panel:
    """One plot. `y` is a metric, or several as {label: metric}, which differ in line style (bars: in hatching).

    line   (x, y) of each arm: thin for single seeds, thick for their mean. x and y are averaged over the lines of all
           seeds that share a value of `by`
    bar    one number per arm, its last measurement: the bar is the mean, dots are seeds
    text   what `text` makes of the results, in letters of equal width
    """

    title: str
    lines: Sequence[Line]
    y: Metric | dict[str, Metric] = ""
    x: str = "step"
    by: str = ""  # default: x
    kind: str = "line"
    xlabel: str = "step"
    ylabel: str = ""
    xlim: tuple = (None, None)
    ylim: tuple = (None, None)
    xscale: str = "linear"  # or log (base 2), log10
    yscale: str = "linear"
    smooth: int = 1  # each point is the mean of so many neighbours
    marker: str = ""  # on the points of the mean
    # instead of what stands under the metric's name: (results, line, metric, seed or None: the mean) -> [(x, y), ...]
    points: Callable[[Results, Line, Metric, int | None], list[tuple[float, float]]] | None = None
    bars: Callable[[Results, Line, Metric], PerSeed] | None = None  # the same for a bar
    text: Callable[[Results], str] | None = None
    also: Callable[[Any, Results], None] | None = None  # (axis, results): what is special about this panel


def shades(count: int) -> list[tuple]:
    """Colours for a row of arms or lengths, from dark to light."""
    from matplotlib import colormaps

    return [colormaps["viridis"](0.9 * i / max(1, count - 1)) for i in range(count)]


def family(arm: str, key: str, values: Sequence, label: str, **how: Any) -> tuple[Line, ...]:
    """One line per value: family("plain", "acc/{}", (1, 2), "{} digits")."""
    colors = shades(len(values))
    return tuple(Line(arm, label.format(v), c, y=key.format(v), **how) for v, c in zip(values, colors, strict=True))


def coloured(lines: Sequence[Line]) -> list[tuple[Line, Any]]:
    return [(line, line.color or f"C{i % 10}") for i, line in enumerate(lines)]


def smoothed(values: list[float], width: int) -> list[float]:
    """The mean of each value and its neighbours, `width` of them where there are as many."""
    return [statistics.fmean(values[max(0, i - width // 2) : i + (width + 1) // 2]) for i in range(len(values))]


def draw(panels: list[Panel], results: Results, caption: str, path: Path, about_seeds: bool = True) -> None:
    """Draw all panels into one PNG, under the caption and, if `about_seeds`, what its lines say of the seeds.

    Raises ModuleNotFoundError without matplotlib (the extra `figures`).
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(len(panels), 4 if len(panels) % 4 == 0 else 3)
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(5.4 * columns, 4.7 * rows), layout="constrained", squeeze=False)
    for axis, panel in zip(axes.flat, panels, strict=False):
        {"line": draw_lines, "bar": draw_bars, "text": draw_text}[panel.kind](axis, panel, results)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_axis_off()
    thin = "thin lines and dots are single seeds" if len(results.seeds) > 1 else ""
    if about_seeds:
        caption += f" Mean of {len(results.seeds)} seeds; {thin}." if thin else " One seed."
    figure.suptitle("\n".join(textwrap.wrap(caption, 62 * columns)), fontsize=11)
    without_formulas(figure)
    figure.draw_without_rendering()
    for axis in axes.flat:
        legend_below(axis)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def without_formulas(figure) -> None:
    """A `$` that a model wrote, or that stands in the name of a run or of a metric, is a dollar and begins no formula.

    Only matplotlib itself writes formulas: powers of ten along a logarithmic axis.
    """
    from matplotlib.text import Text

    powers: set[Text] = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "log":
                powers |= {*axis.findobj(Text)} - {axis.label}
    for text in {*figure.findobj(Text)} - powers:
        text.set_parse_math(False)


def finish(axis, panel: Panel, results: Results) -> None:
    """Title, labels, limits, and what is special about the panel."""
    axis.set_title(panel.title, fontsize=11)
    axis.set(ylabel=panel.ylabel, yscale=panel.yscale)
    axis.grid(alpha=0.2)
    axis.set_axisbelow(True)
    if panel.also:
        panel.also(axis, results)
    axis.set(xlim=panel.xlim, ylim=panel.ylim)


def legend_below(axis) -> None:
    """The legend under everything that stands below the axes, however long its labels are. For a drawn figure."""
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        longest = max(map(len, labels))
        columns = 1 if longest > 34 else 2 if longest > 16 or len(labels) < 3 else 3
        box = axis.get_window_extent()
        below = (axis.xaxis.get_tightbbox().y0 - box.y0) / box.height - 0.02
        legend = axis.legend(handles, labels, fontsize=8, ncols=columns, loc="upper center",
                             bbox_to_anchor=(0.5, below), frameon=False, handlelength=2.4)  # fmt: skip
        for text in legend.get_texts():
            text.set_parse_math(False)


def draw_lines(axis, panel: Panel, results: Results) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    metrics, shown_x = panel.y if isinstance(panel.y, dict) else {"": panel.y}, set()

    def points(line: Line, metric: Metric, seed: int | None) -> list[tuple[float, float]]:
        if panel.points:
            return panel.points(results, line, metric, seed)
        return results.points(line.arm, panel.x, line.y or metric, seed, panel.by, **line.where)

    for line, color in coloured(panel.lines):
        for metric, style in zip(metrics.values(), ("-", "--", ":"), strict=False):
            for seed in (*results.seeds, None) if len(results.seeds) > 1 else (None,):
                found = points(line, metric, seed)
                if not found:
                    continue
                shown_x.update(p[0] for p in found)
                x, y = [p[0] for p in found], smoothed([p[1] for p in found], panel.smooth)
                if seed is not None:
                    axis.plot(x, y, line.style or style, color=color, linewidth=0.6, alpha=0.4)
                else:
                    label = line.label if style == "-" else None
                    axis.plot(x, y, line.style or style, color=color, linewidth=1.8, label=label,
                              markersize=4, **{"marker": panel.marker} if panel.marker else {})  # fmt: skip
    for name, style in zip(metrics, ("-", "--", ":"), strict=False):
        if name:
            axis.plot([], [], style, color="dimgray", label=name)
    axis.set(xlabel=panel.xlabel)
    if panel.xscale == "log10":
        axis.set_xscale("log")
    elif panel.xscale == "log":
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
    elif all(isinstance(value, int) for value in shown_x):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    finish(axis, panel, results)


def draw_text(axis, panel: Panel, results: Results) -> None:
    axis.set_title(panel.title, fontsize=11)
    axis.set_axis_off()
    lines = panel.text(results).split("\n")
    size = min(8, 620 / max(map(len, lines)), 250 / len(lines))  # points: what fits 5.4 x 4.7 inches
    axis.text(0, 1, "\n".join(lines), family="monospace", fontsize=size, va="top", transform=axis.transAxes)


def draw_bars(axis, panel: Panel, results: Results) -> None:
    metrics = panel.y if isinstance(panel.y, dict) else {"": panel.y}
    width = 0.8 / len(metrics)
    for m, (name, metric) in enumerate(metrics.items()):
        shown = {"alpha": (0.95, 0.6, 0.35, 0.2)[m], "edgecolor": "white", "hatch": ("", "//", "..", "xx")[m]}
        for i, (line, color) in enumerate(coloured(panel.lines)):
            values = (
                panel.bars(results, line, metric)
                if panel.bars
                else results.last(line.arm, line.y or metric, **line.where)
            )
            if values:
                x = i + (m - (len(metrics) - 1) / 2) * width
                axis.bar(x, values.mean, width * 0.94, color=color, **shown)
                if len(results.seeds) > 1:
                    axis.plot([x] * len(values), list(values.values()), "k.", markersize=4)
        if name:
            axis.bar(0, 0, color="gray", label=name, **shown)
    letters = sum(max(map(len, line.label.split("\n"))) + 2 for line in panel.lines)
    angle = 0 if letters < 60 else 30
    axis.set_xticks(range(len(panel.lines)), [line.label for line in panel.lines], fontsize=8, rotation=angle,
                    ha="right" if angle else "center", rotation_mode="anchor" if angle else None)  # fmt: skip
    finish(axis, panel, results)
