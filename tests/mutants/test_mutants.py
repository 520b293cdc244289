"""Every known-wrong variant of the package is caught: the test that it names fails on it."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
TESTS = HERE.parent

spec = importlib.util.spec_from_file_location("mutants", HERE / "mutants.py")
mutants = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mutants)
MUTANTS = mutants.MUTANTS


def copied_to(folder: Path) -> Path:
    """The package, the tests and their settings, on their own."""
    ignored = shutil.ignore_patterns("__pycache__", "mutants")
    shutil.copytree(ROOT / "nanoreason", folder / "nanoreason", ignore=ignored)
    shutil.copytree(TESTS, folder / "tests", ignore=ignored)
    (folder / "data").symlink_to(ROOT / "data")  # some tests start from checkpoints in it
    for name in ("pyproject.toml", "train.py"):
        shutil.copy(ROOT / name, folder)
    return folder


def outcome_of(nodes: list[str], folder: Path) -> tuple[int, str]:
    """Exit code and output of pytest in the copy: 0 all passed, 1 a test failed, anything else is no test result."""
    paths = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=line"]
    command += ["--assert=plain", "--hypothesis-profile=first"]  # that it fails is all there is to know
    command += [f"tests/{node}" for node in nodes]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout + done.stderr


def as_parameter(mutant):
    return pytest.param(mutant, id=mutant.name, marks=[] if mutant.fast else pytest.mark.slow)


def test_every_mutant_still_finds_the_text_that_it_replaces():
    """The slow ones are not run often: that the package has moved on is known at once."""
    texts = {mutant.file: (ROOT / "nanoreason" / mutant.file).read_text(encoding="utf-8") for mutant in MUTANTS}
    assert [mutant.name for mutant in MUTANTS if texts[mutant.file].count(mutant.old) != 1] == []


@pytest.mark.parametrize("mutant", map(as_parameter, MUTANTS))
def test_the_mutant_is_caught(mutant, tmp_path):
    source = copied_to(tmp_path) / "nanoreason" / mutant.file
    text = source.read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1, f"{mutant.file} holds the text to replace {text.count(mutant.old)} times"
    source.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    compile(source.read_text(encoding="utf-8"), str(source), "exec")
    code, output = outcome_of([mutant.test], tmp_path)
    assert code == 1, f"exit code {code}, not 1: no test failed\n{output}"


@pytest.mark.slow
def test_without_a_mutation_the_same_tests_pass_in_a_copy(tmp_path):
    """So it is the mutation that they fail on, not the copy."""
    code, output = outcome_of(sorted({mutant.test for mutant in MUTANTS}), copied_to(tmp_path))
    assert code == 0, output


def test_mutants_have_names_of_their_own_and_change_something():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert all(mutant.old != mutant.new for mutant in MUTANTS)
    assert sum(mutant.fast for mutant in MUTANTS) >= 11
