"""Fourteen exercises cut from this very source, and their autograder: python -m nanoreason course make|grade|bundle.

marked regions of the package --make--> starter tree (stubs, statements, public tests), instructor's tree
submission --regions spliced into the instructor's package--> a worker without rights --grade--> results.json
run folder --bundle--> one file whose claims the grader recomputes
"""

from __future__ import annotations

import argparse
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(prog="python -m nanoreason course", description=__doc__.split("\n")[0])
    commands = whole.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="write the starter tree and the instructor's")
    make.add_argument("--out", type=Path, required=True, help="a new folder")
    make.add_argument("--exercises", default="", help="names, separated by commas; all without it")
    make.add_argument("--salt", default="2026", help="a student's number: the settings of the runs follow from it")
    make.add_argument("--unchecked", action="store_true", help="do not try solutions, stubs and wrong answers first")
    grade = commands.add_parser("grade", help="grade a folder or zip, or a bundle of a run")
    grade.add_argument("submission", type=Path)
    grade.add_argument("--out", type=Path, help="results.json as Gradescope reads it")
    grade.add_argument("--exercises", default="", help="names, separated by commas; all without it")
    grade.add_argument("--run", default="", help="the submission is a bundle of this run exercise")
    grade.add_argument("--salt", default="2026", help="the student's number")
    grade.add_argument("--seed", type=int, help="of the checks' random numbers; a new one without it")
    bundle = commands.add_parser("bundle", help="pack a run folder into one file")
    bundle.add_argument("run", type=Path)
    bundle.add_argument("--out", type=Path, required=True)
    return whole


def main(argv: list[str]) -> int:
    flags = parser().parse_args(argv)
    # What is imported here loads torch; --help does not wait for it.
    from nanoreason.course import bundle, grade, make, pack, sheet
    from nanoreason.run import say, write_json

    if flags.command == "bundle":
        say(pack.bundle(flags.run, flags.out))
        return 0
    exercises = [sheet.load(name) for name in (flags.exercises.split(",") if flags.exercises else sheet.SHEET)]
    if flags.command == "make":
        make.make(flags.out, exercises, flags.salt, check=not flags.unchecked)
        return 0
    if flags.run:
        results = bundle.graded(flags.submission, flags.run, flags.salt, flags.seed)
        say("\n".join(test["output"] for test in results["tests"]))
    else:
        graded = grade.grade(flags.submission, exercises, flags.seed)
        results = grade.gradescope(graded)
        for one in graded:
            for verdict in one.verdicts:
                if not verdict.passed:
                    say(f"{one.exercise.id}: {verdict.check}: {verdict.said}")
        say(grade.as_table(graded))
    if flags.out is not None:
        flags.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(flags.out, results)
    return 0
