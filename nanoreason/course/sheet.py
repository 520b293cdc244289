"""What an exercise is, and how its regions are cut from the source and put back.

An exercise is one module of `exercises/`. Its docstring is the statement; PART, POINTS, SECONDS, FILES, HINTS, BUG and
NEEDS say about it what `Exercise` holds; functions in CALLS stand between the checks and the code that is examined;
`public_...` and `hidden_...` are the checks; `secret_...` are functions of the hidden ones that know right values,
which neither a student nor the worker gets; WRONG are answers that the checks must catch.

A region is what stands between `# <exercise NAME>` and `# </exercise NAME>` in the body of one function.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import random
import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = Path(__file__).parents[1]  # nanoreason/
SHEET = ("verifier", "mask", "sampling", "star", "advantages", "policy_loss", "kl", "grpo", "traces", "cosine",
         "forcing", "lengths", "threads", "statistics")  # fmt: skip
ASKED = ("PART", "POINTS", "SECONDS", "FILES", "HINTS", "BUG", "NEEDS", "CALLS")  # of an exercise's module, by `load`
MOST_REGION = 20_000  # characters of an answer

Call = Callable[..., Any]  # call("name of a function in CALLS", *what JSON can hold)
Check = Callable[..., None]  # public_...(call), hidden_...(call, draw); an AssertionError says what is wrong
Wrong = tuple[str, str] | str  # a piece of the solution and what replaces it, or a whole first region


@dataclass(frozen=True)
class Exercise:
    name: str
    number: int  # on the sheet, from 1 on
    title: str
    statement: str  # Markdown
    part: str  # of the lecture
    points: int
    seconds: float  # of its tests on a laptop
    files: tuple[str, ...]  # in nanoreason/, that hold its regions
    hints: tuple[str, ...]
    bug: str  # the real mistake that it teaches to avoid
    needs: tuple[str, ...]  # exercises whose code its own tests run
    calls: Mapping[str, Callable[..., Any]]
    public: tuple[Check, ...]
    hidden: tuple[Check, ...]
    wrong: Mapping[str, Wrong]
    module: ModuleType

    @property
    def id(self) -> str:
        """
        >>> load("advantages").id
        '05_advantages'
        """
        return f"{self.number:02}_{self.name}"

    def checks(self) -> list[tuple[str, Callable[[Call, random.Random], None]]]:
        """(what it says about itself, the check) of all checks, the public ones first."""
        own = [(told(check), lambda call, draw, check=check: check(call)) for check in self.public]
        return own + [(told(check), check) for check in self.hidden]


def told(check: Check) -> str:
    return " ".join((check.__doc__ or check.__name__).split())


def load(name: str) -> Exercise:
    """The exercise of that name; ValueError lists the names if it is none."""
    if name not in SHEET:
        raise ValueError(f"no exercise is called {name!r}: there are {', '.join(SHEET)}")
    module = importlib.import_module(f"nanoreason.course.exercises.{name}")
    title, _, statement = inspect.cleandoc(module.__doc__).partition("\n")
    functions = [value for value in vars(module).values() if inspect.isfunction(value)]

    def named(prefix: str) -> tuple[Check, ...]:
        return tuple(one for one in functions if one.__name__.startswith(prefix))

    return Exercise(
        name, SHEET.index(name) + 1, title.strip(), statement.strip(), module.PART, module.POINTS, module.SECONDS,
        module.FILES, module.HINTS, module.BUG, getattr(module, "NEEDS", ()),
        {call.__name__: call for call in module.CALLS}, named("public_"), named("hidden_"), module.WRONG, module,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ regions


def marks(name: str) -> tuple[str, str]:
    return f"# <exercise {name}>", f"# </exercise {name}>"


def regions(text: str, name: str) -> list[str]:
    """What stands between the marks of an exercise, region after region, without common indentation.

    ValueError where a mark is missing, doubled or out of order.

    >>> regions("def f():\\n    # <exercise f>\\n    return 1\\n    # </exercise f>\\n", "f")
    ['return 1\\n']
    """
    return [textwrap.dedent(inner) for _, inner, _ in _cut(text, name)[1::2]]


def with_regions(text: str, name: str, answers: list[str]) -> str:
    """The text with the answers in its regions, indented as they are. ValueError unless there is one for each."""
    parts = _cut(text, name)
    if len(answers) != len(parts) // 2:
        raise ValueError(f"{len(parts) // 2} regions of exercise {name}, but {len(answers)} answers")
    for i, answer in enumerate(answers):
        before, _, after = parts[2 * i + 1]
        indent = before[: len(before) - len(before.lstrip())]
        parts[2 * i + 1] = before + textwrap.indent(answer.rstrip("\n") + "\n", indent) + after
    return "".join(part if isinstance(part, str) else "".join(part) for part in parts)


def _cut(text: str, name: str) -> list[Any]:
    """[text, (line of the mark, region, line of the other mark), text, ...]"""
    opening, closing = marks(name)
    parts: list[Any] = [""]
    inside: list[str] | None = None
    for line in text.splitlines(keepends=True):
        is_mark = line.strip()
        if is_mark == opening and inside is None:
            inside, first = [], line
        elif is_mark == closing and inside is not None:
            parts += [(first, "".join(inside), line), ""]
            inside = None
        elif is_mark in (opening, closing):
            raise ValueError(f"the marks {opening} and {closing} do not alternate")
        elif inside is None:
            parts[-1] += line
        else:
            inside.append(line)
    if inside is not None:
        raise ValueError(f"{opening} is not followed by {closing}")
    return parts


def check_answer(reference: str, spliced: str, name: str) -> None:
    """ValueError unless the answers changed nothing but the bodies of the functions that they stand in: what runs when
    the module is imported, signatures and defaults are as they were."""
    try:
        mine, theirs = (_outline(text, name) for text in (reference, spliced))
    except SyntaxError as error:
        raise ValueError(f"it is no Python: {error.msg} (line {error.lineno} of the file, with your answer)") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"it cannot be read as Python ({type(error).__name__})") from None
    if mine != theirs:
        raise ValueError("it does not stay inside its function: imports and helpers go inside too, indented")


def _outline(text: str, name: str) -> str:
    """The syntax tree without the bodies of the functions that hold a region, as text."""
    tree, (opening, _) = ast.parse(text), marks(name)
    places = [number for number, line in enumerate(text.splitlines(), 1) if line.strip() == opening]
    for place in places:
        holders = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
                   and node.lineno < place <= (node.end_lineno or 0)]  # fmt: skip
        if not holders:
            raise ValueError(f"line {place}: a region stands in no function")
        min(holders, key=lambda node: node.lineno).body = [ast.Pass()]  # the outermost
    return ast.dump(tree)


def solution(exercise: Exercise) -> list[list[str]]:
    """The regions of each of its files, as they stand in this package."""
    found = [regions((PACKAGE / file).read_text(encoding="utf-8"), exercise.name) for file in exercise.files]
    for file, answers in zip(exercise.files, found, strict=True):
        if not answers:
            raise ValueError(f"{file} has no region of exercise {exercise.name}")
    return found


def stub(exercise: Exercise) -> list[list[str]]:
    """What a student finds in the place of the solution."""
    return [[f'raise NotImplementedError("exercise {exercise.name}")\n' for _ in file] for file in solution(exercise)]


def wrong_answer(exercise: Exercise, key: str) -> list[list[str]]:
    """The solution with one of the known mistakes. ValueError unless what it replaces stands there exactly once."""
    answers, wrong = solution(exercise), exercise.wrong[key]
    if isinstance(wrong, str):
        return [[wrong, *answers[0][1:]], *answers[1:]]
    old, new = wrong
    count = sum(region.count(old) for file in answers for region in file)
    if count != 1:
        raise ValueError(f"exercise {exercise.name}, wrong answer {key!r}: {old!r} occurs {count} times")
    return [[region.replace(old, new) for region in file] for file in answers]


def public_part(exercise: Exercise) -> str:
    """The module as a student and the worker get it: without hidden checks, without wrong answers, and without the
    helpers and texts that nothing of what is left uses."""
    text = inspect.getsource(exercise.module)
    lines, nodes = text.splitlines(keepends=True), ast.parse(text).body
    kept = [node for node in nodes if not is_secret(node)]
    while useless := [node for node in kept if is_useless(node, kept)]:
        kept = [node for node in kept if node not in useless]
    for node in nodes:
        if node not in kept:
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    return re.sub(r"\n{4,}", "\n\n\n", "".join(lines)).rstrip() + "\n"


def names_of(node: ast.stmt) -> list[str]:
    """What a statement of a module defines: a function, or names."""
    if isinstance(node, ast.FunctionDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else []
    return [one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)]


def is_secret(node: ast.stmt) -> bool:
    return any(name == "WRONG" or name.startswith(("hidden_", "secret_")) for name in names_of(node))


def is_useless(node: ast.stmt, nodes: list[ast.stmt]) -> bool:
    """Whether it defines something that neither `Exercise` nor any other of the nodes asks for."""
    used = {one.id for other in nodes if other is not node for one in ast.walk(other)
            if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Load)}  # fmt: skip
    own = names_of(node)
    return bool(own) and not any(name in used or name in ASKED or name.startswith("public_") for name in own)
