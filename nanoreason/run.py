"""Everything around an experiment: settings <-> command line, the run folder, metrics, progress, device, schedules.

A recipe's settings are one dataclass. Its fields are the flags, the comment behind a field is its help text, its type
says what is allowed. A field may hold an object (a task, rewards, an algorithm): it is chosen by name, and its own
fields are flags with a dot, as in `--task countdown --task.inputs 4`.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import functools
import importlib.util
import inspect
import json
import math
import os
import re
import stat
import sys
import textwrap
import time
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from tqdm import tqdm

from nanoreason import processes
from nanoreason.console import Console

# ------------------------------------------------------------------------------------------------- kinds of settings


@dataclass(frozen=True)
class Range:
    """What a number may be, declared beside its field: `steps: Annotated[int, Range(0)] = 100`. Never NaN."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False  # `low` itself is not allowed
    infinite: bool = False  # inf is allowed

    def __str__(self) -> str:
        low = f"more than {self.low:g}" if self.low_open else f"at least {self.low:g}" if self.low > -math.inf else ""
        high = f"at most {self.high:g}" if self.high < math.inf else "" if self.infinite or not low else "finite"
        return " and ".join(part for part in (low, high) if part) or "a finite number"

    def holds(self, value: float) -> bool:
        if math.isnan(value) or (math.isinf(value) and not self.infinite):
            return False
        return (value > self.low if self.low_open else value >= self.low) and value <= self.high


Count = Annotated[int, Range(0)]
Positive = Annotated[int, Range(1)]
ROWS = 1_000_000  # no more rows than this at once: they and their problems are all in memory
Rows = Annotated[int, Range(1, ROWS)]
AnyRows = Annotated[int, Range(0, ROWS)]
Share = Annotated[float, Range(0, 1)]
Rate = Annotated[float, Range(0)]
LearningRate = Annotated[float, Range(0, 100)]
Threads = Annotated[int, Range(1, 1024)]


@dataclass(frozen=True)
class Schedule:
    """A whole number that may change during a run: `64`, or `50,31:112` for 50 until step 30 and 112 from step 31 on.

    >>> schedule = Schedule.parse("50,31:112")
    >>> schedule.at(30), schedule.at(31), schedule.largest, str(schedule)
    (50, 112, 112, '50,31:112')
    """

    first: int
    changes: tuple[tuple[int, int], ...] = ()  # (step, value from this step on), steps rising

    def __post_init__(self) -> None:
        steps = [step for step, _ in self.changes]
        if min([self.first, *(value for _, value in self.changes)]) < 1 or steps != sorted(set(steps)):
            raise ValueError(f"{self} is no schedule: numbers of at least 1, as in 64 or 50,31:112")

    @classmethod
    def parse(cls, text: str) -> Schedule:
        first, *changes = text.split(",")
        try:
            pairs = [change.split(":") for change in changes]
            return cls(int(first), tuple((int(step), int(value)) for step, value in pairs))
        except ValueError:
            raise ValueError(f"{text!r} is no schedule: numbers of at least 1, as in 64 or 50,31:112") from None

    def __str__(self) -> str:
        return ",".join([str(self.first), *(f"{step}:{value}" for step, value in self.changes)])

    def at(self, step: int) -> int:
        """The value in step 1..S; 0 is before the first one."""
        return [self.first, *(value for start, value in self.changes if start <= step)][-1]

    @property
    def largest(self) -> int:
        return max([self.first, *(value for _, value in self.changes)])


def chosen(table: dict[str, Any], default: Any, like: str = "") -> Any:
    """A field that holds an object, or a tuple of objects, of `table` {name: class or instance}.

    `like`: None stands for what another field holds, and dotted flags start from that.
    """
    return dataclasses.field(default=default, metadata={"table": table, "like": like})


@dataclass
class RunConfig:
    """Settings that every recipe shares."""

    # run
    out: str = "runs/default"  # folder of this run: config.json, metrics.jsonl, samples.jsonl, checkpoints
    seed: int = 0  # every random number of the run follows from it
    device: str = "auto"  # auto, cpu, cuda, cuda:N or mps
    threads: Threads = 1  # CPU threads; one is fastest for tiny models and makes results independent of the cores
    resume: bool = False  # go on where the run in `out` stopped


Config = TypeVar("Config", bound=RunConfig)
FREE = {"out", "resume", "device", "threads", "micro_tokens", "memory.shard", "save_every", "log_every", "eval_every"}
# ... may change between a stop and the resumption: they do not change what a step computes. So may `steps`, but where
# the learning rate falls towards the last one.


@functools.cache
def field_comments(config_class: type) -> dict[str, tuple[str, str]]:
    """{field: (the comment behind it in the source, the heading above it)}: where a setting is explained, once."""
    comments: dict[str, tuple[str, str]] = {}
    for parent in reversed(config_class.__mro__[:-1]):
        heading = ""
        if not dataclasses.is_dataclass(parent):
            continue
        for line in inspect.getsource(parent).split("\n"):
            if found := re.match(r"    # (\w.*)$", line):
                heading = found[1]
            elif found := re.match(r"    (\w+): .*?  # (.*)$", line):
                comments[found[1]] = (found[2], heading or comments.get(found[1], ("", ""))[1])
            elif found := re.match(r"    (\w+): ", line):
                comments.setdefault(found[1], ("", heading))
    return comments


def hints_of(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


# ------------------------------------------------------------------------------------------- objects inside settings


def own_entry(text: str) -> Any:
    """The class or object that `path/to/file.py:Name` means."""
    path, _, name = text.rpartition(":")
    if not Path(path).is_file():
        raise ValueError(f"{text}: there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"own_{Path(path).stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their own module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be imported: {type(error).__name__}: {said}") from error
    if not hasattr(module, name):
        raise ValueError(f"{text}: {path} defines no {name}")
    entry = getattr(module, name)
    is_class = inspect.isclass(entry) and dataclasses.is_dataclass(entry)  # an object would have no name in config.json
    if not is_class or not entry.__dataclass_params__.frozen:
        raise ValueError(f"{text}: {name} must be a frozen dataclass, whose fields become flags")
    missing = (dataclasses.MISSING, dataclasses.MISSING)
    bare = [f.name for f in dataclasses.fields(entry) if (f.default, f.default_factory) == missing]
    if bare := [field for field in bare if field != "task"]:  # a wrapper is given the task inside it
        raise ValueError(f"{text}: every field of {name} needs a default, {bare[0]} has none")
    entry.source = text
    return entry


def methods_of(kind: type) -> set[str]:
    """What a caller may call in objects of this class."""
    named = [(name, value) for parent in kind.__mro__[:-1] for name, value in vars(parent).items()]
    return {name for name, value in named if callable(value) and (name == "__call__" or not name.startswith("_"))}


def entry_of(name: str, table: dict[str, Any], field: str) -> Any:
    if ".py:" in name:
        entry = own_entry(name)
        kinds = [known if inspect.isclass(known) else type(known) for known in table.values()]
        needed = set.intersection(*map(methods_of, kinds)) - methods_of(entry)
        if needed:
            raise ValueError(f"--{field} {name}: it is no {field.rstrip('s')}, it has no {', '.join(sorted(needed))}")
        return entry
    if name not in table:
        raise ValueError(f"--{field} {name}: one of {', '.join(table)}, or path/to/file.py:Name")
    return table[name]


def name_of(value: Any, table: dict[str, Any]) -> str:
    """The name under which `--field NAME` finds the object's kind."""
    if hasattr(type(value), "source"):
        return type(value).source
    named = [name for name, entry in table.items() if entry is type(value)]
    return named[0] if named else getattr(value, "name", "") or own_name(type(value))


def own_name(kind: type) -> str:
    """What `--field` calls a class that was handed over in Python: file.py:Name; its name alone in a notebook."""
    try:
        return f"{os.path.relpath(inspect.getfile(kind))}:{kind.__qualname__}"
    except (TypeError, OSError, ValueError):  # made in a session, where there is no file; on another drive
        return kind.__qualname__


def layers(value: Any) -> list[Any]:
    """An object and the objects that it is wrapped around, the innermost first."""
    return [*layers(value.task), value] if hasattr(value, "__dataclass_fields__") and "task" in vars(value) else [value]


def spec_of(value: Any, table: dict[str, Any]) -> str:
    """The text that chooses this object: `thinking,templated` or `accuracy,format:0.1`."""
    if isinstance(value, tuple):
        return ",".join(name_of(one, table) + ("" if one.weight == 1 else f":{shown(one.weight)}") for one in value)
    return ",".join(name_of(layer, table) for layer in layers(value))


def from_spec(text: str, table: dict[str, Any], field: str, current: Any) -> Any:
    """The object that the text chooses; the current one where it is of this kind already, with its values."""
    if isinstance(current, tuple):
        now = {name_of(one, table): one for one in current}
        found, names = [], []
        for part in filter(None, text.split(",")):
            name, _, weight = part.rpartition(":")
            if not name or not is_number(weight):
                name, weight = part, ""
            if weight and not math.isfinite(float(weight)):
                raise ValueError(f"--{field} {part}: a weight must be a finite number")
            if name in names:
                raise ValueError(f"--{field} {text}: {name} stands there twice")
            names.append(name)
            entry = entry_of(name, table, field)
            one = now.get(name) or (entry() if inspect.isclass(entry) else entry)
            if not hasattr(one, "weight"):
                raise ValueError(f"--{field} {name}: it needs a field weight, as in weight: float = 1.0")
            found.append(dataclasses.replace(one, weight=float(weight)) if weight else one)
        return tuple(found)
    if current is not None and spec_of(current, table) == text:
        return current
    value = None
    for name in text.split(","):
        entry = entry_of(name, table, field)
        wraps = inspect.isclass(entry) and "task" in getattr(entry, "__dataclass_fields__", {})
        if wraps != (value is not None):
            how = "wraps a task: name one before it, as in countdown,templated" if wraps else "wraps nothing"
            raise ValueError(f"--{field} {text}: {name} {how}")
        value = entry(value) if wraps else entry() if inspect.isclass(entry) else entry
    return value


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def parts_of(field: str, value: Any, table: dict[str, Any]) -> dict[str, tuple[Any, str]]:
    """{dotted name: (the object that has the field, the field)} of all settings inside an object field."""
    if value is None:
        return {}
    found: dict[str, tuple[Any, str]] = {}
    if isinstance(value, tuple):
        for one in value:
            name = name_of(one, table).rpartition(":")[2]
            found |= {f"{field}.{name}.{f.name}": (one, f.name) for f in dataclasses.fields(one) if f.name != "weight"}
        return found
    for layer in layers(value):
        names = [f.name for f in dataclasses.fields(layer) if f.name != "task" and not f.metadata.get("hidden")]
        if clash := [name for name in names if f"{field}.{name}" in found]:
            raise ValueError(f"--{field}: two of {spec_of(value, table)} have a setting {clash[0]!r}")
        found |= {f"{field}.{name}": (layer, name) for name in names}
    return found


def with_parts(value: Any, changes: dict[int, dict[str, Any]]) -> Any:
    """The object with changed fields, {id of a layer: {field: value}}, in new objects throughout."""
    if isinstance(value, tuple):
        return tuple(with_parts(one, changes) for one in value)
    own = dict(changes.get(id(value), {}))
    if "task" in getattr(value, "__dataclass_fields__", {}):
        own["task"] = with_parts(value.task, changes)
    return dataclasses.replace(value, **own) if own else value


# ---------------------------------------------------------------------------------------- settings <-> command line


def number(text: str) -> float:
    value = float(text)
    if math.isnan(value):
        raise ValueError("NaN is no setting")
    return value


def bare(kind: Any) -> Any:
    """The type without its annotations and without `| None`."""
    if typing.get_origin(kind) is Annotated:
        return bare(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return bare(next(arg for arg in typing.get_args(kind) if arg is not type(None)))
    return kind


def reader_of(kind: Any) -> Callable[[str], Any]:
    """The function from a flag's text to a value of the field's type."""
    kind = bare(kind)
    if typing.get_origin(kind) is tuple:
        items = typing.get_args(kind)
        item = reader_of(items[0])

        def comma_separated(text: str) -> tuple:
            return tuple(item(part) for part in text.split(",")) if text else ()

        return comma_separated
    if typing.get_origin(kind) is Literal:
        return str

    def parsed(text: str) -> Any:
        try:
            return kind.parse(text)
        except ValueError as error:  # argparse would not show what is wrong
            raise argparse.ArgumentTypeError(str(error)) from None

    return {int: int, float: number, str: str}.get(kind, parsed)


def shown(value: Any) -> str:
    """A setting as the command line takes it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ",".join(map(shown, value))
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return repr(value) if isinstance(value, float) and float(short) != value == value else short


KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def check(value: Any, kind: Any, flag: str) -> None:
    """ValueError in one line if a setting is not what its type allows. Files and notebooks hold any type of value."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    plain_kind = tuple if origin is tuple else str if origin is Literal else bare(kind)
    allowed = (int, float) if plain_kind is float else plain_kind
    if not isinstance(value, allowed) or (isinstance(value, bool) and plain_kind is not bool):
        raise ValueError(f"{flag} {value!r:.60}: must be {KINDS.get(plain_kind, plain_kind.__name__)}")
    if origin is Annotated:
        for range_ in (arg for arg in args[1:] if isinstance(arg, Range)):
            if not range_.holds(value):
                raise ValueError(f"{flag} {shown(value)}: must be {range_}")
    elif origin is Literal:
        if value not in args:
            raise ValueError(f"{flag} {value}: one of {', '.join(map(str, args))}")
    elif origin is tuple:
        if Ellipsis not in args and len(value) != len(args):
            raise ValueError(f"{flag} {shown(value)}: {len(args)} values are needed, separated by commas")
        for one in value:
            check(one, args[0], flag)
    elif kind is float and not Range().holds(value):
        raise ValueError(f"{flag} {shown(value)}: must be a finite number")


def tables(config: RunConfig) -> dict[str, dict[str, Any]]:
    """{field that holds an object: its table}"""
    return {f.name: f.metadata["table"] for f in dataclasses.fields(config) if "table" in f.metadata}


def flatten(config: RunConfig) -> dict[str, Any]:
    """All settings as {flag: value}, as JSON gives them back: what config.json holds.

    Objects are the text that chooses them, and their fields stand beside them: task, task.inputs, rewards.cosine.wrong.
    """
    flat: dict[str, Any] = {}
    known = tables(config)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in known and value is not None:
            flat[field.name] = spec_of(value, known[field.name])
            for flag, (owner, name) in parts_of(field.name, value, known[field.name]).items():
                flat[flag] = plain(getattr(owner, name))
        else:
            flat[field.name] = plain(value)
    return flat


def task_flags(flat: dict[str, Any]) -> dict[str, Any]:
    """Of all settings, those that say which task: what a checkpoint records, so that --base alone suffices."""
    return {flag: value for flag, value in flat.items() if flag == "task" or flag.startswith("task.")}


def plain(value: Any) -> Any:
    """A setting as JSON has it: tuples are lists, an infinite number and a schedule are text."""
    if isinstance(value, (tuple, list)):
        return [plain(one) for one in value]
    infinite = isinstance(value, float) and math.isinf(value)
    return value if isinstance(value, (int, float, str, type(None))) and not infinite else str(value)


def from_flat(field: str, flat: dict[str, Any], table: dict[str, Any]) -> Any:
    """The object of a field, from what `flatten` made of it: how a checkpoint tells which task it is for.

    ValueError names the flag whose value is none.
    """
    check(flat[field], str, f"--{field}")
    value = from_spec(flat[field], table, field, None)
    changes: dict[int, dict[str, Any]] = {}
    for flag, (owner, name) in parts_of(field, value, table).items():
        if flag in flat:
            stored = flat[flag]
            text = shown(tuple(stored)) if isinstance(stored, list) else stored
            kind = hints_of(type(owner))[name]
            read = reader_of(kind) if isinstance(text, str) and bare(kind) is not str else lambda same: same
            try:
                found = read(text)
            except (ValueError, argparse.ArgumentTypeError) as error:
                raise ValueError(f"--{flag} {stored!r:.60}: {error}") from None
            check(found, kind, f"--{flag}")
            changes.setdefault(id(owner), {})[name] = found
    return changed(field, value, changes, table)


def changed(field: str, value: Any, changes: dict[int, dict[str, Any]], table: dict[str, Any]) -> Any:
    """`with_parts`; what the objects have against it is said with the flag."""
    try:
        return with_parts(value, changes)
    except ValueError as error:
        flag = f"{field}.{str(error).partition(':')[0]}"
        is_named = flag in parts_of(field, value, table)
        raise ValueError(f"--{field}{'.' if is_named else ': '}{error}") from None


def check_settings(config: RunConfig) -> None:
    """Every setting against its type, those inside objects too."""
    known = tables(config)
    for field in dataclasses.fields(config):
        value, flag = getattr(config, field.name), f"--{field.name.replace('_', '-')}"
        if field.name not in known:
            check(value, hints_of(type(config))[field.name], flag)
            continue
        for one in value if isinstance(value, tuple) else ():
            check(one.weight, float, f"{flag}: the weight of {name_of(one, known[field.name])},")
        for name, (owner, part) in parts_of(field.name, value, known[field.name]).items():
            check(getattr(owner, part), hints_of(type(owner))[part], f"--{name}")


def check_rows(**counts: int) -> None:
    """ValueError if these settings together ask for more rows at once than any memory holds."""
    if math.prod(counts.values()) > ROWS:
        flags = " times ".join(f"--{name.replace('_', '-')} {value}" for name, value in counts.items())
        raise ValueError(f"{flags}: more than {ROWS} rows at once")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


def parse_config(presets: dict[str, Config], argv: list[str], prog: str) -> Config:
    """Start from a preset (the first one if none is named) and replace what the flags name.

    Booleans are written `--flag` and `--no-flag`, tuples `--task.digits 1,2,3`. An unknown flag is an error.
    """
    first = next(iter(presets))
    early = Parser(prog=prog, add_help=False, allow_abbrev=False)
    early.add_argument("--preset", choices=list(presets), default=first)
    known = tables(presets[first])
    for name in known:
        early.add_argument(*dict.fromkeys((f"--{name.replace('_', '-')}", f"--{name}")), dest=name)
    given, _ = early.parse_known_args(argv)
    config = presets[given.preset]
    for name, table in known.items():  # the objects first: their fields are flags too
        if (text := getattr(given, name)) is not None:
            config = dataclasses.replace(config, **{name: from_spec(text, table, name, getattr(config, name))})
    likened: dict[str, str] = {}  # {field that starts from another one: that one}
    for field in dataclasses.fields(config):
        dotted = any(arg.replace("-", "_").startswith(f"__{field.name}.") for arg in argv)
        if field.metadata.get("like") and getattr(config, field.name) is None and dotted:
            likened[field.name] = field.metadata["like"]
            config = dataclasses.replace(config, **{field.name: getattr(config, field.metadata["like"])})
    # Layers are told apart by identity, so no two fields may share one.
    config = dataclasses.replace(config, **{name: copy.deepcopy(getattr(config, name)) for name in known})

    parser = Parser(prog=prog, allow_abbrev=False)
    parser.add_argument("--preset", choices=list(presets))
    for name in known:
        parser.add_argument(*dict.fromkeys((f"--{name.replace('_', '-')}", f"--{name}")), dest=name)
    owners: dict[str, tuple[Any, str]] = {}
    for name, table in known.items():
        owners |= parts_of(name, getattr(config, name), table)
    hints = hints_of(type(config))
    kinds = {f.name: hints[f.name] for f in dataclasses.fields(config) if f.name not in known}
    kinds |= {flag: hints_of(type(owner))[part] for flag, (owner, part) in owners.items()}
    for flag, kind in kinds.items():
        how = {"action": argparse.BooleanOptionalAction} if bare(kind) is bool else {"type": reader_of(kind)}
        names = dict.fromkeys((f"--{flag.replace('_', '-')}", f"--{flag}"))
        parser.add_argument(*names, dest=flag, default=argparse.SUPPRESS, **how)
    parser.format_help = lambda: help_text(config, given.preset, list(presets), prog)
    values = {flag: value for flag, value in vars(parser.parse_args(argv)).items() if flag in kinds}
    for name, like in likened.items():  # what was said of the other one is said of this one, unless it says otherwise
        for flag in [flag for flag in values if flag.startswith(f"{like}.")]:
            values.setdefault(name + flag.removeprefix(like), values[flag])
    changes: dict[int, dict[str, Any]] = {}
    for flag in sorted(values.keys() & owners.keys()):
        owner, part = owners[flag]
        check(values[flag], kinds[flag], f"--{flag}")  # first: the object itself may not stand a wrong value
        changes.setdefault(id(owner), {})[part] = values[flag]
    objects = {name: changed(name, getattr(config, name), changes, known[name])
               for name in known if getattr(config, name) is not None}  # fmt: skip
    plain_values = {flag: value for flag, value in values.items() if flag not in owners}
    config = dataclasses.replace(config, **objects, **plain_values)
    check_settings(config)
    if "warmup" in plain_values:
        check_warmup(config)
    return config


def check_warmup(config: RunConfig) -> None:
    """ValueError if the warm-up that was asked for is longer than the run. A preset's may be: whoever sets a few steps
    to look at them need not think of it."""
    updates = getattr(config, "steps", 0) * getattr(config, "updates_per_rollout", 1) * getattr(config, "epochs", 1)
    if 0 < updates < config.warmup:
        raise ValueError(
            f"--warmup {config.warmup}: a run of {updates} updates would never come to --lr {config.lr:g}, use at most "
            f"{updates}"
        )


def with_choices(comment: str, kind: Any) -> str:
    """What a setting means, and which values it can have where the comment does not name them all.

    >>> with_choices("of the answer", Literal["operations", "expression"])
    'of the answer (operations, expression)'
    """
    choices = [str(choice) for choice in typing.get_args(kind)] if typing.get_origin(kind) is Literal else []
    return comment if {*choices} <= {*re.findall(r"[\w-]+", comment)} else f"{comment} ({', '.join(choices)})".strip()


def help_text(config: RunConfig, preset: str, presets: list[str], prog: str) -> str:
    """A line per setting, by heading: the flag, its value in this preset, what it means."""
    known, sections = tables(config), {}
    comments = field_comments(type(config))
    for field in dataclasses.fields(config):
        value, (comment, heading) = getattr(config, field.name), comments[field.name]
        if field.name not in known:
            about = with_choices(comment, hints_of(type(config))[field.name])
            sections.setdefault(heading, []).append((field.name, shown(value), about))
            continue
        table = known[field.name]
        spec = "" if value is None else spec_of(value, table)
        sections.setdefault(heading, []).append((field.name, spec, f"{comment}: {', '.join(table)}"))
        for flag, (owner, part) in parts_of(field.name, value, table).items():
            about = with_choices(field_comments(type(owner)).get(part, ("", ""))[0], hints_of(type(owner))[part])
            sections.setdefault(heading, []).append((flag, shown(getattr(owner, part)), about))
    about = inspect.getdoc(type(config)).split("\n\n")[0].replace("\n", " ")
    lines = [f"usage: {prog} [--preset {'|'.join(presets)}] [--flag value ...]", about]
    lines.append(f"Values are those of --preset {preset}; yes and no are --flag and --no-flag; tuples are 1,2,3.")
    run = sections.pop("run", [])
    for heading, entries in [*sections.items(), ("run", run)]:
        lines.append(f"{heading or 'settings'}:")
        for flag, value, comment in entries:
            left = f"  --{flag.replace('_', '-')} {value}"
            wrapped = textwrap.wrap(comment, 84) or [""]
            if len(left) > 34:
                lines.append(left)
                left = ""
            lines += [f"{left:<35} {wrapped[0]}".rstrip(), *(" " * 36 + more for more in wrapped[1:])]
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------------ the run folder


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Only one process at a time works in a folder; ValueError says so.

    The lock ends with the process, however it ends. In the process that has it, it may be taken again.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "a+b")
    except OSError as error:
        raise ValueError(f"--out {folder}: {error.strerror}: choose another one") from None
    with file:
        try:
            try:
                import fcntl

                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except ImportError:  # Windows
                import msvcrt

                file.seek(0)
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            raise ValueError(f"another process works in {folder}: wait for it, or choose another --out") from None
        yield


# What a run leaves: a folder that has one of these holds a run, or what is left of one.
LEFT = (
    "policy",
    "policy.old",
    "adapter",
    "adapter.old",
    "reference",
    "metrics.jsonl",
    "samples.jsonl",
    "demonstrations.jsonl",
)
LOGS = ("metrics.jsonl", "samples.jsonl")


def stored_settings(out: str) -> dict | None:
    """The settings of the run in a folder; {} if it never began, None if there is none. Errors say why it cannot be."""
    if not out:
        raise ValueError("--out is empty: it names the folder of the run")
    folder, stored = Path(out), Path(out, "config.json")
    if not stored.exists():
        if left := [name for name in LEFT if (folder / name).exists()]:
            raise FileExistsError(
                f"{folder} holds {', '.join(left)} but no config.json: how it was made is lost, choose another --out"
            )
        return None
    settings = read_json(stored)
    if "recipe" not in settings:
        raise FileExistsError(f"{stored} is not that of a run of a recipe: choose another --out")
    return settings if any(path.name not in ("config.json", ".lock") for path in folder.iterdir()) else {}


def check_out(config: RunConfig) -> None:
    """What can be said of --out and --resume before anything is loaded: one line for a person who mistyped it."""
    before = stored_settings(config.out)
    if config.resume and before is None:
        raise ValueError(f"--resume: {config.out} holds no run to go on with")
    if before and not config.resume:
        raise FileExistsError(
            f"{config.out} already holds a run: add --resume to go on with it, or choose another --out"
        )


class Run:
    """The folder of one run. It exists, with config.json in it, before the first step; other processes keep out of it.

    `metrics.jsonl` and `samples.jsonl` are flushed line by line, so a killed run keeps what it logged. Each line
    carries the step it belongs to: a resumed run first drops the lines that its checkpoint does not know of.
    """

    def __init__(self, config: RunConfig):
        check_settings(config)
        stored_settings(config.out)  # a folder that cannot be one is refused before the lock stands in it
        self.config = config
        self.folder = Path(config.out)
        stored = self.folder / "config.json"
        settings = {"recipe": type(config).__name__, **flatten(config)}
        self._lock = locked(self.folder) if processes.is_first() else contextlib.nullcontext()
        self._lock.__enter__()
        if before := stored_settings(config.out):
            check_out(config)
            free = FREE | ({"steps"} if settings.get("decay", "none") == "none" else set())
            others = {k: v for k, v in settings.items() if k not in free and v != before.get(k)}
            if others:
                said = ", ".join(f"{k}={before.get(k)!r}, not {v!r}" for k, v in others.items())
                raise ValueError(f"cannot resume {self.folder}: it ran with {said}")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(stored, settings)
        processes.wait_for_all()  # none goes on before the folder is there, or where the first one has refused it
        self._files: dict[str, typing.TextIO] = {}
        self.logged = dict.fromkeys(LOGS, 0)  # lines in each file: a checkpoint records how many belong to it

    def rewind(self, step: int, logged: dict[str, int] | None = None) -> None:
        """Drop logged lines of steps after `step`: the run goes on from there and will write them again.

        `logged` is what the checkpoint of that step recorded. Where fewer lines are left it is said, and no more: a
        power cut may take the last lines of a log, which is no reason to give a run up.
        """
        for file in self._files.values():  # they would go on writing into the files that are replaced
            file.close()
        self._files.clear()
        for name in LOGS:
            path, kept = self.folder / name, []
            if path.exists():
                for line in read_jsonl(path):
                    check(line.get("step"), int, f"{path}: step")
                    if line["step"] <= step:
                        kept.append(json.dumps(line) + "\n")
                replace_text(path, "".join(kept))
            self.logged[name] = len(kept)
            if logged and len(kept) != (before := logged.get(name)):
                say(f"{path} has {len(kept)} lines up to step {step}, of {before}: this run's history is not whole")

    def last_line(self) -> dict:
        """The last line of metrics; ValueError if they are lost."""
        processes.wait_for_all()
        path = self.folder / "metrics.jsonl"
        lines = read_jsonl(path) if path.exists() else []
        if not lines:
            raise ValueError(f"{path} holds no line: what the run measured is lost, its policy is not")
        return lines[-1]

    def _append(self, name: str, line: dict) -> None:
        self.logged[name] += 1
        if not processes.is_first():
            return
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
        self._lock.__exit__(None, None, None)


def read_jsonl(path: Path) -> list[dict]:
    """The lines of a JSONL file. A last line that a kill cut in half is left out, another bad one is a ValueError."""
    try:
        lines = read_file(Path(path)).decode("utf-8").split("\n")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text: the file is damaged") from None
    found = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            value = json.loads(line) if line else {}
        except (ValueError, RecursionError):  # no JSON; nested too deep
            value = None
        if not isinstance(value, dict):
            raise ValueError(f"{path}, line {number} is no JSON object: the file is damaged")
        if line:
            found.append(value)
    return found


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
    """Write a file so that a reader finds the old text or the new one, never a half.

    Of several processes the first one writes.
    """
    if not processes.is_first():
        return
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    replace_text(path, json.dumps(value, indent=2) + "\n")


# ------------------------------------------------------------------------------------------ progress and schedule


LINE_SECONDS = 10.0  # where there is no terminal: at most one line of progress in so many seconds
_bar_position: int | None = None  # the screen line of this process's bar
_speaker = ""  # whose lines these are, where several runs write into one log
_running: list[Progress] = []  # from the outermost to the innermost
_last_line = time.monotonic()  # when the last line of progress was said


def set_bar_position(position: int, lock: Any) -> None:
    """For one of several processes on a terminal: which line its bar has, and the lock that keeps writes apart."""
    global _bar_position
    _bar_position = position
    tqdm.set_lock(lock)


@contextlib.contextmanager
def speaking_as(name: str) -> Iterator[None]:
    """All that is said inside begins with [name]."""
    global _speaker
    before, _speaker = _speaker, name
    try:
        yield
    finally:
        _speaker = before


class Progress:
    """How far something is: a tqdm bar on a terminal; in logs and notebooks a line on stderr now and then.

        with Progress(total=100, name="grpo", unit="steps") as progress:
            progress.update(tokens=5310, reward=0.412)

    The line comes every LINE_SECONDS seconds at most, and not before the outermost has run for so long, of all that is
    running at once, the outermost first:
    `grpo: 12/100 steps, reward 0.412, 5,310 tok/s, 3:20 left; sample: 64/256 rows`. `done`: where a resumed run begins.
    """

    def __init__(self, total: int, name: str, unit: str, done: int = 0):
        self.total, self.name, self.unit, self.done = total, name, unit, done
        self.first, self.tokens, self.shown = done, 0, {}

    def __enter__(self) -> Progress:
        # Processes that share a terminal have one line each, which is the outermost bar's.
        quiet = not sys.stderr.isatty() or not processes.is_first() or (_bar_position is not None and bool(_running))
        self.started = time.monotonic()
        self.bar = tqdm(total=self.total, initial=self.done, desc=spoken(self.name), unit=f" {self.unit}", leave=False,
                        disable=quiet, dynamic_ncols=True, position=_bar_position)  # fmt: skip
        _running.append(self)
        return self

    def __exit__(self, *error) -> None:
        _running.remove(self)
        self.bar.close()

    def update(self, count: int = 1, tokens: int = 0, **shown: float) -> None:
        """`count` more are done, with so many tokens; `shown` are the numbers to tell, such as a loss."""
        global _last_line
        self.done, self.tokens, self.shown = self.done + count, self.tokens + tokens, shown or self.shown
        if not self.bar.disable:
            self.bar.set_postfix({name: f"{value:.3f}" for name, value in self.shown.items()}, refresh=False)
            self.bar.update(count)
        elif not sys.stderr.isatty() and time.monotonic() - max(_last_line, _running[0].started) >= LINE_SECONDS:
            _last_line = time.monotonic()
            whole = next((one for one in _running if one.done > one.first), self)  # whose speed and end are told
            say("; ".join(one.text(with_speed=one is whole) for one in _running), sys.stderr)

    def text(self, with_speed: bool) -> str:
        parts = [f"{self.name}: {self.done}/{self.total} {self.unit}"]
        parts += [f"{name} {value:.3f}" for name, value in self.shown.items()]
        seconds = max(1e-9, time.monotonic() - self.started)
        if with_speed and self.tokens:
            parts.append(f"{self.tokens / seconds:,.0f} tok/s")
        if with_speed and self.done > self.first:
            parts.append(f"{clock(seconds / (self.done - self.first) * (self.total - self.done))} left")
        return ", ".join(parts)


def clock(seconds: float) -> str:
    """
    >>> clock(59.6), clock(3723)
    ('1:00', '1:02:03')
    """
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}" if minutes >= 60 else f"{minutes}:{seconds:02}"


def spoken(text: str) -> str:
    """The text, each line of it (but empty ones) behind the name of who speaks."""
    return textwrap.indent(text, f"[{_speaker}] ") if _speaker else text


def say(text: str, file: typing.TextIO | None = None) -> None:
    """Print lines of a report, on stdout unless a file is named, without tearing a bar apart. A stream that does not
    take them, or is not there, ends nothing."""
    stream = file or sys.stdout
    if stream is None or not processes.is_first():
        return
    out = stream if isinstance(stream, Console) else Console(stream)
    with tqdm.external_write_mode(file=stream):
        out.write(f"{spoken(text)}\n")
    out.flush()


def table(header: list[str], rows: list[list[str]]) -> str:
    """A plain-text table with right-aligned columns.

    >>> print(table(["round", "1"], [["0", ".97"]]))
    round    1
        0  .97
    """
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
    return "\n".join("  ".join(str(cell).rjust(w) for cell, w in zip(row, widths)) for row in [header, *rows])  # noqa: B905


def is_due(done: int, every: int) -> bool:
    """Whether something that is done every so many steps is done after step `done`; 0: never."""
    return every > 0 and done % every == 0


Decay = Literal["none", "cosine", "linear"]


def learning_rate(step: int, steps: int, peak: float, warmup: int, decay: str) -> float:
    """Linear warm-up over `warmup` steps to `peak`, then by `decay`.

    none     constant
    cosine   half a cosine wave down to a tenth of the peak
    linear   down to 0 behind the last step: a small model's accuracy swings at a constant rate and settles at a
             vanishing one, so what is to be stable at its end is trained like this

    >>> [round(learning_rate(s, 100, 1.0, 4, "none"), 2) for s in (0, 1, 3, 50)]
    [0.25, 0.5, 1.0, 1.0]
    >>> [round(learning_rate(s, 100, 1.0, 0, "linear"), 2) for s in (0, 50, 99)]
    [1.0, 0.5, 0.01]
    >>> learning_rate(100, 100, 1.0, 0, "cosine")
    0.1
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    share = (step - warmup) / max(1, steps - warmup)
    if decay == "linear":
        return peak * max(0.0, 1 - share)
    return peak if decay == "none" else peak * round(0.1 + 0.45 * (1 + math.cos(math.pi * share)), 12)


# --------------------------------------------------------------------------------------------- device and precision


def pick_device(name: str = "auto") -> torch.device:
    """auto: cuda, else mps, else cpu. A device that is not there is one clear error."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if name == "cuda" and processes.count() > 1:  # one for each process of this machine
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(name)
    kind, colon, index = name.partition(":")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if not available.get(kind, False) or (colon and not (index.isdecimal() and int(index) < count)):
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
