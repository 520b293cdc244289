"""Writes the course: a starter tree for students, and what the instructor grades with.

    OUT/starter/      the package with stubs, exercises/NN_NAME.md, tests/test_NN_NAME.py, HANDOUT.md, train.py
    OUT/instructor/   the package with its solutions and this course, and Gradescope's two scripts: zip it as it is

Nothing is written unless every solution passes all checks, every stub fails its own public tests and no other
exercise's but those that say they need it, and every known-wrong answer fails a check.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from nanoreason.course.bundle import RUNS, command_of
from nanoreason.course.grade import run_checks
from nanoreason.course.sheet import PACKAGE, Exercise, public_part, solution, stub, with_regions, wrong_answer
from nanoreason.run import Progress, say, write_json

ROOT = PACKAGE.parent
COPIED = ("train.py", "pyproject.toml", "constraints.txt", "LICENSE")
CHECKPOINTS = ("star-base", "attempts-0", "attempts-1", "attempts-2", "attempts-3")  # what the runs start from

PUBLIC_TESTS = '''

# ------------------------------------------------------------------------------------------- how pytest runs the checks
import json  # noqa: E402

import pytest  # noqa: E402


def call(name, *arguments, **named):
    """In this process, so that a debugger steps into your code; through JSON, as the grader asks it."""
    functions = {function.__name__: function for function in CALLS}
    arguments, named = json.loads(json.dumps([arguments, named]))
    return json.loads(json.dumps(functions[name](*arguments, **named)))


CHECKS = {name: check for name, check in list(globals().items()) if name.startswith("public_")}


@pytest.mark.parametrize("check", CHECKS)
def test(check):
    CHECKS[check](call)
'''


# ------------------------------------------------------------------------------------------------------------- checking


def faults(exercises: list[Exercise]) -> Iterator[str]:
    """What must be mended before the exercises may be given out, one line each."""
    with Progress(len(exercises), "course", "exercises") as progress:
        for exercise in exercises:
            for one in run_checks(exercise, solution(exercise), seed=0):
                if not one.passed:
                    yield f"{exercise.name}: the solution fails: {one.check}: {one.said}"
            for key in exercise.wrong:
                if all(one.passed for one in run_checks(exercise, wrong_answer(exercise, key), seed=0)):
                    yield f"{exercise.name}: no check catches the wrong answer: {key}"
            yield from entangled(exercise, exercises)
            progress.update()


def entangled(exercise: Exercise, exercises: list[Exercise]) -> Iterator[str]:
    """What is not as it should be where this exercise alone is not written: which public tests fail."""
    with tempfile.TemporaryDirectory() as folder:
        write_starter(Path(folder), exercises, stubbed=[exercise])
        failed = failing_tests(Path(folder))
    for other in exercises:
        count, own = failed.get(other.id, 0), other.name == exercise.name
        if own and count < len(other.public):
            yield f"{exercise.name}: {len(other.public) - count} of its public tests pass without an answer"
        if not own and count and exercise.name not in needed(other, exercises):
            yield f"{other.name}: {count} of its public tests need {exercise.name}, but NEEDS does not say so"


def needed(exercise: Exercise, exercises: list[Exercise]) -> set[str]:
    """All that it needs, and what those need."""
    by_name = {one.name: one for one in exercises}
    found: set[str] = set()
    left = list(exercise.needs)
    while left:
        if (name := left.pop()) not in found:
            found.add(name)
            left += by_name[name].needs if name in by_name else ()
    return found


def failing_tests(tree: Path) -> dict[str, int]:
    """{exercise's id: how many of its public tests fail} in a starter tree."""
    command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-rfE", "-p", "no:cacheprovider", "tests"]
    env = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise ValueError(f"the public tests cannot be run: {(done.stdout + done.stderr)[-500:]}")
    counts: dict[str, int] = {}
    for name in re.findall(r"^(?:FAILED|ERROR) tests/test_(\w+)\.py", done.stdout, re.M):
        counts[name] = counts.get(name, 0) + 1
    return counts


# -------------------------------------------------------------------------------------------------------------- writing


def make(out: Path, exercises: list[Exercise], salt: str, check: bool = True) -> None:
    """Both trees in a new folder `out`; ValueError lists what must be mended first."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already: choose another --out")
    if check and (found := list(faults(exercises))):
        raise ValueError("the course cannot be given out: " + "; ".join(found))
    write_starter(out / "starter", exercises, exercises)
    (out / "starter" / "HANDOUT.md").write_text(handout(exercises, salt), encoding="utf-8")
    for name in CHECKPOINTS:
        shutil.copytree(ROOT / "data/checkpoints" / name, out / "starter/data/checkpoints" / name)
    write_json(out / "starter" / "course.json", about(exercises, salt))
    write_instructor(out / "instructor", exercises, salt)
    say(f"{out}/starter is for students, {out}/instructor is for you: {len(exercises)} exercises, "
        f"{sum(one.points for one in exercises)} points, and {len(RUNS)} runs")  # fmt: skip


def about(exercises: list[Exercise], salt: str) -> dict:
    return {"salt": salt, "exercises": [one.name for one in exercises],
            "runs": {name: command_of(name, salt) for name in RUNS}}  # fmt: skip


def write_starter(tree: Path, exercises: list[Exercise], stubbed: list[Exercise]) -> None:
    """The package, some exercises of which are stubs; statements and public tests of all."""
    tree.mkdir(parents=True, exist_ok=True)
    shutil.copytree(PACKAGE, tree / "nanoreason", ignore=shutil.ignore_patterns("course", "__pycache__"))
    for name in COPIED:
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, tree / name)
    for exercise in stubbed:
        for file, answers in zip(exercise.files, stub(exercise), strict=True):
            path = tree / "nanoreason" / file
            path.write_text(with_regions(path.read_text(encoding="utf-8"), exercise.name, answers), encoding="utf-8")
    shutil.copy(PACKAGE / "course/pack.py", tree / "bundle.py")
    for folder in ("exercises", "tests"):
        (tree / folder).mkdir()
    # pytest's settings of this project name folders that students do not have
    (tree / "pytest.ini").write_text("[pytest]\ntestpaths = tests\naddopts = -q\n", encoding="utf-8")
    for exercise in exercises:
        (tree / "exercises" / f"{exercise.id}.md").write_text(statement(exercise), encoding="utf-8")
        text = public_part(exercise) + PUBLIC_TESTS
        (tree / "tests" / f"test_{exercise.id}.py").write_text(text, encoding="utf-8")


def statement(exercise: Exercise) -> str:
    files = ", ".join(f"`nanoreason/{file}`" for file in exercise.files)
    hints = "\n".join(f"<details><summary>Hint {i}</summary>\n\n{hint}\n\n</details>\n"
                      for i, hint in enumerate(exercise.hints, 1))  # fmt: skip
    needs = (f" Its public tests run your answers to {', '.join(exercise.needs)} too; the grader uses ours."
             if exercise.needs else "")  # fmt: skip
    return (
        f"# {exercise.number} · {exercise.title}\n\n"
        f"{exercise.part} · {exercise.points} points · tests: about {exercise.seconds:g} s on a laptop · {files}\n\n"
        f"{exercise.statement}\n\n"
        f"Write between `# <exercise {exercise.name}>` and `# </exercise {exercise.name}>`, and nowhere else: nothing "
        f"else is graded. Imports and helpers go inside, indented.{needs}\n\n"
        f"    python -m pytest tests/test_{exercise.id}.py\n\n"
        f"## Hints\n\n{hints}\n## The mistake to avoid\n\n{exercise.bug}\n"
    )


def handout(exercises: list[Exercise], salt: str) -> str:
    rows = "\n".join(
        f"| {one.number} | [{one.title}](exercises/{one.id}.md) | {one.part} | {one.points} | {one.seconds:g} s | "
        f"{', '.join(one.needs) or '–'} |" for one in exercises
    )  # fmt: skip
    runs = "\n\n".join(f"**{run.title}** ({run.points} points, about {run.minutes:g} minutes on one core)\n\n"
                       f"    {command_of(name, salt)}\n\n{run.question}" for name, run in RUNS.items())  # fmt: skip
    return f"""# Reasoning models from scratch: exercises

Each exercise is one piece of a working code base. You write it, its tests tell whether it is right, and the runs at the
end use all of it. No account, no download but the packages, no GPU.

    python -m venv .venv
    .venv/bin/pip install "$(grep ^torch== constraints.txt)"
    .venv/bin/pip install -e . pytest
    .venv/bin/python -m pytest            # all of it fails, and says what is not written yet

| # | exercise | part | points | tests | needs |
|---|---|---|---|---|---|
{rows}

Hand in a zip of the folder `nanoreason/`. What is graded is what stands between the marks. Each exercise is graded by
itself, with our solutions of all others; the hidden tests are properties with new random numbers each time.

## Runs

Your number is `{salt}`: the settings follow from it.

{runs}

Hand in the zip that `python bundle.py RUN --out run.zip` makes of a run's folder.
"""


SETUP = """#!/usr/bin/env bash
# Gradescope runs this once, when the image is built.
set -e
cd /autograder/source
pip install "$(grep '^torch==' constraints.txt)"  # a build for CPUs is enough: PIP_INDEX_URL may name where one is
pip install -c constraints.txt -e .
"""
RUN = """#!/usr/bin/env bash
# Gradescope runs this for each submission. The solutions are for root alone: answers run as nobody.
chmod 700 /autograder/source
cd /autograder/source
mkdir -p /autograder/results
python -m nanoreason course grade /autograder/submission --out /autograder/results/results.json
"""


def write_instructor(tree: Path, exercises: list[Exercise], salt: str) -> None:
    tree.mkdir(parents=True)
    shutil.copytree(PACKAGE, tree / "nanoreason", ignore=shutil.ignore_patterns("__pycache__"))
    for name in CHECKPOINTS:
        shutil.copytree(ROOT / "data/checkpoints" / name, tree / "data/checkpoints" / name)
    for name in (*COPIED, "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, tree / name)
    write_json(tree / "course.json", about(exercises, salt))
    for name, text in (("setup.sh", SETUP), ("run_autograder", RUN)):
        (tree / name).write_text(text, encoding="utf-8")
        (tree / name).chmod(0o755)
