"""What the notebooks in `notebooks/` share: source shown from the package itself, results read from what is committed.

show(grpo_minimal.grpo_step, "groups = sample", "metrics = update")    these lines, with file and line
figure("r1")                      data/results/r1/cpu/figure.png, where the notebook can show pictures
claims("r1", "gain", "length")    the judged claims whose names have one of these words
steps(folder, "reward", "kl")     metrics of a run, a line per step
"""

from __future__ import annotations

import inspect
import textwrap
from pathlib import Path
from typing import Any

from nanoreason.experiments.results import verdict
from nanoreason.run import read_json, read_jsonl, table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "data" / "results"
MARKS = ("# <exercise ", "# </exercise ")  # of the exercises, which a reader of the solution does not need


def show(thing: Any, first: str = "", last: str = "") -> None:
    """Print the source of a function, class or module from the first line that has `first` up to the next one that has
    `last`; without them all of it. ValueError where no line has them: the source has changed."""
    thing = inspect.unwrap(thing)  # behind `torch.no_grad`
    lines, start = inspect.getsourcelines(thing)
    begin = place(lines, first, 0, thing)
    end = place(lines, last, begin, thing) if last else len(lines) - 1
    shown = [line.replace("  # fmt: skip", "") for line in lines[begin : end + 1] if not line.strip().startswith(MARKS)]
    file = Path(inspect.getsourcefile(thing)).relative_to(ROOT).as_posix()
    print(f"# {file}, line {max(start, 1) + begin}\n{textwrap.dedent(''.join(shown)).rstrip()}")


def place(lines: list[str], text: str, start: int, thing: Any) -> int:
    found = next((i for i in range(start, len(lines)) if text in lines[i]), None)
    if found is None:
        raise ValueError(f"{thing.__name__} has no line with {text!r}: the notebook is older than the source")
    return found


def figure(section: str, preset: str = "cpu") -> Any:
    """The committed figure of a section as the last value of a cell; outside of Jupyter its path is printed."""
    path = RESULTS / section / preset / "figure.png"
    if not path.exists():
        raise ValueError(f"{path} is missing: `python train.py reproduce {section} --preset {preset}` draws it")
    try:
        from IPython import get_ipython
        from IPython.display import Image
    except ModuleNotFoundError:
        get_ipython = lambda: None  # noqa: E731
    if get_ipython() is None:
        print(f"the figure is in {path.relative_to(ROOT).as_posix()}")
        return None
    return Image(filename=str(path))


def claims(section: str, *words: str, preset: str = "cpu") -> None:
    """Print how the committed run was judged: all claims, or those whose names have one of the words. ValueError where
    a word is in none of them: the text around is older than the results."""
    summary = read_json(RESULTS / section / preset / "summary.json")
    judged = summary["claims"]
    for word in words:
        if not any(word in line["name"] for line in judged):
            raise ValueError(f"no claim of {section} has {word!r}: the notebook is older than the results")
    held = sum(line["passed"] for line in judged)
    print(f"{section}, preset {preset}, {summary['seeds']} seeds: {held} of {len(judged)} claims hold")
    for line in judged:
        if not words or any(word in line["name"] for word in words):
            print(textwrap.fill(verdict(line), 116, subsequent_indent=" " * 10))


def steps(folder: str | Path, *names: str) -> None:
    """Print metrics of a run, a line per step that has one of them."""
    lines = [line for line in read_jsonl(Path(folder) / "metrics.jsonl") if any(name in line for name in names)]
    if not lines:
        raise ValueError(f"{folder}/metrics.jsonl has none of {', '.join(names)}")
    last = [name.split("/")[-1] for name in names]
    short = [part if last.count(part) == 1 else name for part, name in zip(last, names, strict=True)]
    print(table(["step", *short], [[str(line["step"]), *(number(line.get(name)) for name in names)] for line in lines]))


def number(value: float | str | None) -> str:
    """
    >>> number(0.12345), number(12.345), number(-1e-9), number(100), number(None), number("wait")
    ('0.123', '12.3', '0.000', '100', '', 'wait')
    """
    if value is None or isinstance(value, (str, int)):
        return "" if value is None else str(value)
    return f"{value:.1f}" if abs(value) >= 10 else f"{round(value, 3) + 0.0:.3f}"  # + 0.0: no minus before a zero
