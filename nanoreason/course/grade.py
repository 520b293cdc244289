"""Grades a submission: each exercise's regions in the instructor's package, in a worker of their own.

    submission's regions -> a tree -> worker <-- calls -- checks, here, with fresh seeds -> points -> results.json

The checks run in this process and ask the worker for values, so that a submission can neither see nor touch them. An
exercise that is missing or wrong costs the others nothing: their trees hold the instructor's solution of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import select
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanoreason.course import worker
from nanoreason.course.sheet import (
    MOST_REGION,
    PACKAGE,
    Call,
    Exercise,
    check_answer,
    public_part,
    regions,
    with_regions,
)
from nanoreason.rollout import seed_of
from nanoreason.run import table

MOST_REPLY = 8 << 20  # bytes
MOST_FILE = 4 << 20  # bytes of a source file of a submission
START_SECONDS = 60.0  # to import torch, on half a core
FORGED = "your code wrote into the grader's channel"
MEGABYTES = 384  # of memory beyond what the imports take


class Unanswered(AssertionError):
    """The worker has no value: it raised, was stopped or is gone. That is the answer's fault, and fails the check."""


@dataclass(frozen=True)
class Verdict:
    check: str
    passed: bool
    said: str = ""  # why not


@dataclass(frozen=True)
class Graded:
    exercise: Exercise
    verdicts: tuple[Verdict, ...]
    seconds: float

    @property
    def score(self) -> float:
        """Partial credit: the share of the checks that pass, of the points."""
        passed = sum(verdict.passed for verdict in self.verdicts)
        return round(self.exercise.points * passed / max(1, len(self.verdicts)), 2)


# ------------------------------------------------------------------------------------------------------ the submission


def answers_of(submission: Path, exercise: Exercise) -> list[list[str]]:
    """The regions of an exercise in a folder or a zip; ValueError says in one line what is missing."""
    found = []
    for file in exercise.files:
        text = file_of(submission, f"nanoreason/{file}")
        try:
            answers = regions(text, exercise.name)
        except ValueError as error:
            raise ValueError(f"nanoreason/{file}: {error}") from None
        wanted = len(regions((PACKAGE / file).read_text(encoding="utf-8"), exercise.name))
        if len(answers) != wanted:
            raise ValueError(f"nanoreason/{file} has {len(answers)} regions of exercise {exercise.name}, not {wanted}")
        if any(len(answer) > MOST_REGION for answer in answers):
            raise ValueError(f"nanoreason/{file}: an answer of more than {MOST_REGION:,} characters")
        found.append(answers)
    return found


def file_of(submission: Path, name: str) -> str:
    """The text of a file of the submission, at its top or in the one folder that it holds."""
    try:
        if submission.is_dir():
            path = next((p for p in (submission / name, *submission.glob(f"*/{name}")) if p.exists()), None)
            if path is None:
                raise ValueError(f"{name} is missing")
            if path.is_symlink() or not path.is_file() or submission.resolve() not in path.resolve().parents:
                raise ValueError(f"{name} is no file of the submission")
            if path.stat().st_size > MOST_FILE:
                raise ValueError(f"{name} is larger than {MOST_FILE >> 20} MB")
            return path.read_bytes().decode("utf-8")
        with zipfile.ZipFile(submission) as archive:
            names = [n for n in archive.namelist() if n == name or n.partition("/")[2] == name]
            if not names:
                raise ValueError(f"{name} is missing")
            with archive.open(min(names, key=len)) as file:
                raw = file.read(MOST_FILE + 1)  # whatever size the archive claims
            if len(raw) > MOST_FILE:
                raise ValueError(f"{name} is larger than {MOST_FILE >> 20} MB")
            return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{name} is not UTF-8 text") from None
    except zipfile.BadZipFile:
        raise ValueError(f"{submission} is neither a folder nor a zip file") from None


def build(folder: Path, exercise: Exercise, answers: list[list[str]]) -> None:
    """The instructor's package with the answers in it, and the functions that are called. ValueError where an answer
    is no Python or leaves its function."""
    shutil.copytree(PACKAGE, folder / "nanoreason", ignore=shutil.ignore_patterns("course", "__pycache__"))
    for file, own in zip(exercise.files, answers, strict=True):
        path = folder / "nanoreason" / file
        reference = path.read_text(encoding="utf-8")
        spliced = with_regions(reference, exercise.name, own)
        check_answer(reference, spliced, exercise.name)
        path.write_text(spliced, encoding="utf-8")
    (folder / "exercise.py").write_text(public_part(exercise), encoding="utf-8")
    os.chmod(folder, 0o755)  # the worker may be another user


# ---------------------------------------------------------------------------------------------------------- the worker


class Worker:
    """A process with an answer in it, and the `call` that asks it."""

    def __init__(self, tree: Path, exercise: Exercise, seconds: float):
        if not hasattr(os, "killpg"):
            raise ValueError("answers are graded on Linux or macOS: this system cannot take a process its rights")
        self.number = 0  # of the request: an answer to no request is none
        self.deadline = time.monotonic() + START_SECONDS + seconds
        to_worker, self.requests = os.pipe()
        self.replies, from_worker = os.pipe()
        command = [sys.executable, "-I", worker.__file__, str(tree), str(to_worker), str(from_worker)]
        env = {"OMP_NUM_THREADS": "1", "HOME": str(tree), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
        self.process = subprocess.Popen(
            [*command, str(round(seconds) + 60), str(MEGABYTES)], pass_fds=(to_worker, from_worker), cwd=tree, env=env,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        os.close(to_worker)
        os.close(from_worker)
        self.rest = b""
        modules = sorted(f"nanoreason.{file.removesuffix('.py').replace('/', '.')}" for file in exercise.files)
        self.send({"modules": modules})
        if self.receive() != {"ready": True}:
            raise Unanswered("your code did not start")
        self.deadline = time.monotonic() + seconds

    def __call__(self, name: str, *arguments: Any, **named: Any) -> Any:
        self.number += 1
        self.send([self.number, name, arguments, named])
        reply = self.receive()
        if reply.get("number") != self.number or not reply.keys() & {"value", "error"}:
            self.stop()
            raise Unanswered(FORGED)
        if "error" in reply:
            raise Unanswered(f"{reply['error']} ({reply.get('where', '')})")
        return reply["value"]

    def send(self, request: Any) -> None:
        try:
            data = memoryview((json.dumps(request) + "\n").encode())
            while data:
                if not select.select([], [self.requests], [], max(0.0, self.deadline - time.monotonic()))[1]:
                    raise Unanswered("your code took too long")
                data = data[os.write(self.requests, data[:4096]) :]
        except OSError:
            self.stop()
            raise Unanswered("your code ended the process") from None

    def receive(self) -> dict[str, Any]:
        while b"\n" not in self.rest:
            if not select.select([self.replies], [], [], max(0.0, self.deadline - time.monotonic()))[0]:
                self.stop()
                raise Unanswered("your code took too long")
            new = os.read(self.replies, 1 << 16)
            if not new:
                self.stop()
                raise Unanswered("your code ended the process (or used more memory or time than it may)")
            self.rest += new
            if len(self.rest) > MOST_REPLY:
                self.stop()
                raise Unanswered("your code returned too much")
        line, _, self.rest = self.rest.partition(b"\n")
        try:
            reply = json.loads(line)
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict):
            self.stop()
            raise Unanswered(FORGED)
        return reply

    def stop(self) -> None:
        """The process and all that it may have started."""
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, 9)
        self.process.wait()

    def close(self) -> None:
        self.stop()
        for end in (self.requests, self.replies):
            with contextlib.suppress(OSError):
                os.close(end)


@contextlib.contextmanager
def examined(exercise: Exercise, answers: list[list[str]], seconds: float) -> Iterator[Call]:
    """The `call` of a worker that runs these answers."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        tree.mkdir()
        os.chmod(folder, 0o755)
        build(tree, exercise, answers)
        process = Worker(tree, exercise, seconds)
        try:
            yield process
        finally:
            process.close()


# ----------------------------------------------------------------------------------------------------------- verdicts


def allowed_seconds(exercise: Exercise) -> float:
    """Of all checks together: a laptop's time on half of a slow core, and some more."""
    return 10.0 + 6.0 * exercise.seconds


def run_checks(exercise: Exercise, answers: list[list[str]], seed: int) -> list[Verdict]:
    """Every check on these answers, within `allowed_seconds` together. When the worker is gone the next check gets a
    new one, twice at most."""
    checks = exercise.checks()
    verdicts: list[Verdict] = []
    left = allowed_seconds(exercise)
    try:
        for _ in range(3):
            with examined(exercise, answers, left) as call:
                for name, check in checks[len(verdicts) :]:
                    verdicts.append(verdict(name, check, call, seed_of(seed, exercise.name, name)))
                    if call.process.poll() is not None:
                        break
                left = call.deadline - time.monotonic()
            if len(verdicts) == len(checks) or left <= 0:
                break
    except (Unanswered, ValueError) as error:
        verdicts += [Verdict(name, False, str(error)) for name, _ in checks[len(verdicts) :]]
    return verdicts + [
        Verdict(name, False, "not run: the process or its time ended before") for name, _ in checks[len(verdicts) :]
    ]


def verdict(name: str, check, call: Call, seed: int) -> Verdict:
    try:
        check(call, random.Random(seed))
    except AssertionError as error:
        return Verdict(name, False, " ".join(str(error).split())[:500] or "not so")
    except Exception as error:  # the check met a value of another kind than it asked for
        return Verdict(name, False, f"a value of the wrong kind ({type(error).__name__}: {error})"[:500])
    return Verdict(name, True)


def grade(submission: Path, exercises: list[Exercise], seed: int | None = None) -> list[Graded]:
    """Each exercise by itself. `seed`: of the checks' random numbers; None: a new one that nobody knows."""
    if not submission.exists():
        raise ValueError(f"{submission} does not exist: a folder or a zip file with nanoreason/ in it is needed")
    seed = secrets.randbits(64) if seed is None else seed
    results = []
    for exercise in exercises:
        started = time.monotonic()
        try:
            verdicts = run_checks(exercise, answers_of(submission, exercise), seed)
        except ValueError as error:
            verdicts = [Verdict(name, False, str(error)) for name, _ in exercise.checks()]
        results.append(Graded(exercise, tuple(verdicts), time.monotonic() - started))
    return results


def gradescope(results: list[Graded]) -> dict[str, Any]:
    """results.json as Gradescope reads it: one test an exercise, with what failed."""
    tests = []
    for one in results:
        lines = [f"{'ok   ' if v.passed else 'FAILS'} {v.check}{f': {v.said}' if v.said else ''}" for v in one.verdicts]
        tests.append({
            "name": f"{one.exercise.number}. {one.exercise.title}",
            "score": one.score,
            "max_score": one.exercise.points,
            "status": "passed" if all(v.passed for v in one.verdicts) else "failed",
            "output": "\n".join(lines),
            "visibility": "visible",
        })  # fmt: skip
    seconds = sum(one.seconds for one in results)
    return {"tests": tests, "execution_time": round(seconds, 1), "visibility": "visible", "stdout_visibility": "hidden"}


def as_table(results: list[Graded]) -> str:
    def row(one: Graded) -> list[str]:
        passed = sum(verdict.passed for verdict in one.verdicts)
        points = f"{one.score:g} / {one.exercise.points}"
        return [one.exercise.id, points, f"{passed} of {len(one.verdicts)}", f"{one.seconds:.1f} s"]

    total = f"{sum(one.score for one in results):g} / {sum(one.exercise.points for one in results)}"
    return table(["exercise", "points", "checks", "time"], [*map(row, results), ["total", total, "", ""]])
