"""Everything around an experiment: settings <-> command line, the run folder, metrics, progress, device, schedule.

A recipe's settings are one flat dataclass. Its fields are the flags; the comment behind a field is its help text.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
import json
import os
import re
import stat
import sys
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm


@dataclass
class RunConfig:
    """Settings that every recipe shares."""

    out: str = "runs/default"  # folder of this run: config.json, metrics.jsonl, samples.jsonl, checkpoints
    seed: int = 0  # every random number of the run follows from it
    device: str = "auto"  # auto, cpu, cuda, cuda:N or mps
    threads: int = 1  # CPU threads; one is fastest for tiny models and makes results independent of the machine's cores
    resume: bool = False  # go on where the run in `out` stopped


Config = TypeVar("Config", bound=RunConfig)

# ---------------------------------------------------------------------------------------- settings <-> command line


def field_comments(config_class: type) -> dict[str, str]:
    """{field: the comment behind it in the source}: the one place where a setting is explained."""
    comments: dict[str, str] = {}
    for parent in reversed(config_class.__mro__[:-1]):
        comments.update(re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(parent), re.MULTILINE))
    return comments


def _parser_of(kind: Any):
    """The function from a flag's text to a value of the field's type; int, float and str are their own."""
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]

        def comma_separated(text: str) -> tuple:
            return tuple(item(part) for part in text.split(","))

        return comma_separated
    return kind


def parse_config(presets: dict[str, Config], argv: list[str], prog: str) -> Config:
    """Start from a preset (the first one if none is named) and replace what the flags name.

    Booleans are written `--flag` and `--no-flag`, tuples `--digits 1,2,3`. An unknown flag is an error.
    """
    first, template = next(iter(presets.items()))
    parser = argparse.ArgumentParser(prog=prog, description=inspect.getdoc(type(template)), allow_abbrev=False)
    parser.add_argument(
        "--preset", choices=list(presets), default=first, help=f"where to start from (default: {first})"
    )
    types, comments = typing.get_type_hints(type(template)), field_comments(type(template))
    for field in dataclasses.fields(template):
        values = {name: getattr(preset, field.name) for name, preset in presets.items()}
        same = len(set(values.values())) == 1
        shown = repr(values[first]) if same else ", ".join(f"{name}: {value!r}" for name, value in values.items())
        kind = types[field.name]
        how = {"action": argparse.BooleanOptionalAction} if kind is bool else {"type": _parser_of(kind)}
        help_text = f"{comments.get(field.name, '')} (default: {shown})".replace("%", "%%")
        flags = dict.fromkeys(["--" + field.name.replace("_", "-"), "--" + field.name])
        parser.add_argument(*flags, dest=field.name, default=argparse.SUPPRESS, help=help_text, **how)
    given = vars(parser.parse_args(argv))
    return dataclasses.replace(presets[given.pop("preset")], **given)


# ------------------------------------------------------------------------------------------------ the run folder


class Run:
    """The folder of one run. It exists, with config.json in it, before the first step.

    `metrics.jsonl` and `samples.jsonl` are flushed line by line, so a killed run keeps what it logged. Each line
    carries the step it belongs to: a resumed run first drops the lines that its checkpoint does not know of.
    """

    def __init__(self, config: RunConfig):
        self.config = config
        self.folder = Path(config.out)
        stored = self.folder / "config.json"
        settings = json.loads(json.dumps(dataclasses.asdict(config)))  # as JSON gives it back: tuples are lists
        settings["recipe"] = type(config).__name__
        if stored.exists() and any(path != stored for path in self.folder.iterdir()):  # a config alone is no run
            if not config.resume:
                raise FileExistsError(
                    f"{self.folder} already holds a run: add --resume to go on with it, or choose another --out"
                )
            before = json.loads(stored.read_text(encoding="utf-8"))
            free = {"out", "resume", "device", "threads"}  # may change between stop and resume
            changed = [k for k in settings if k not in free and settings[k] != before.get(k)]
            if changed:
                k = changed[0]
                raise ValueError(f"cannot resume {self.folder}: it ran with {k}={before.get(k)!r}, not {settings[k]!r}")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(stored, settings)
        self._files: dict[str, typing.TextIO] = {}

    def rewind(self, step: int) -> None:
        """Drop logged lines of steps after `step`: the run goes on from there and will write them again."""
        for name in ("metrics.jsonl", "samples.jsonl"):
            path = self.folder / name
            if path.exists():
                kept = [json.dumps(line) + "\n" for line in read_jsonl(path) if line["step"] <= step]
                replace_text(path, "".join(kept))

    def _append(self, name: str, line: dict) -> None:
        if name not in self._files:
            self._files[name] = open(self.folder / name, "a", encoding="utf-8")
        self._files[name].write(json.dumps(line) + "\n")
        self._files[name].flush()

    def log(self, step: int, **metrics: Any) -> None:
        self._append("metrics.jsonl", {"step": step, **metrics})

    def sample(self, step: int, **sample: Any) -> None:
        self._append("samples.jsonl", {"step": step, **sample})

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()


def read_jsonl(path: Path) -> list[dict]:
    """The lines of a JSONL file. A last line that a kill cut in half is left out."""
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def read_file(path: Path) -> bytes:
    """The bytes of a regular file; ValueError says in one line why there are none. A pipe would never end."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError(f"{path} is not a regular file")
        return path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: the folder is not complete") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None


def read_json(path: Path) -> dict:
    """A JSON file that must hold an object; ValueError says in one line what is wrong with it."""
    raw = read_file(path)
    try:
        value = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, a number of too many digits; nested too deep
        raise ValueError(f"{path} is not valid JSON ({error}): the file is damaged") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object: it is another kind of file")
    return value


def replace_text(path: Path, text: str) -> None:
    """Write a file so that a reader finds the old text or the new one, never a half."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    replace_text(path, json.dumps(value, indent=2) + "\n")


# ------------------------------------------------------------------------------------------ progress and schedule


_bar_position: int | None = None  # the screen line of this process's bar


def set_bar_position(position: int, lock: Any) -> None:
    """For one of several processes on a terminal: which line its bar has, and the lock that keeps writes apart."""
    global _bar_position
    _bar_position = position
    tqdm.set_lock(lock)


def progress(iterable=None, **options):
    """A tqdm bar on a terminal; silent in logs, tests and notebooks. Bars vanish when done, tables stay."""
    quiet = not sys.stderr.isatty()
    return tqdm(iterable, disable=quiet, leave=False, dynamic_ncols=True, position=_bar_position, **options)


def say(text: str) -> None:
    """Print lines of a report without tearing a bar apart."""
    tqdm.write(text)
    sys.stdout.flush()


def table(header: list[str], rows: list[list[str]]) -> str:
    """A plain-text table with right-aligned columns.

    >>> print(table(["round", "1"], [["0", ".97"]]))
    round    1
        0  .97
    """
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
    return "\n".join("  ".join(str(cell).rjust(w) for cell, w in zip(row, widths)) for row in [header, *rows])  # noqa: B905


def learning_rate(step: int, steps: int, peak: float, warmup: int, decay: bool) -> float:
    """Linear warm-up over `warmup` steps to `peak`, then constant, or a cosine down to a tenth of it.

    >>> [round(learning_rate(s, 100, 1.0, 4, False), 2) for s in (0, 1, 3, 50)]
    [0.25, 0.5, 1.0, 1.0]
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if not decay:
        return peak
    share = (step - warmup) / max(1, steps - warmup)
    return peak * (0.1 + 0.45 * (1 + float(torch.cos(torch.tensor(torch.pi * share)))))


# --------------------------------------------------------------------------------------------- device and precision


def pick_device(name: str = "auto") -> torch.device:
    """auto: cuda, else mps, else cpu. A device that is not there is one clear error."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    kind = name.split(":")[0]
    if not available.get(kind, False):
        raise ValueError(
            f"device {name!r} is not available here: use one of {[k for k, there in available.items() if there]}"
        )
    return torch.device(name)


def autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """bf16 autocast over float32 weights on cuda of compute capability >= 8, plain float32 everywhere else.

    Older cards report bf16 support but emulate it, so the capability is asked for instead.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8:
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()


def device_name(device: torch.device) -> str:
    """For logs: what the numbers were measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({os.cpu_count()} cores)"
