"""The course: regions, the sheet, and an autograder that hostile submissions gain nothing from."""

import dataclasses
import inspect
import json
import os
import shutil
import textwrap
import time
import zipfile
from pathlib import Path

import pytest

from nanoreason.__main__ import main
from nanoreason.course import bundle, grade, make, pack, sheet
from nanoreason.recipes import grpo_minimal

ADVANTAGES = sheet.load("advantages")


def written(*lines: str) -> list[list[str]]:
    """An answer to `advantages`, which has one region."""
    return [["\n".join(lines) + "\n"]]


def said(answers: list[list[str]], exercise: sheet.Exercise = ADVANTAGES) -> list[grade.Verdict]:
    return grade.run_checks(exercise, answers, seed=7)


def scores(answers: list[list[str]]) -> list[bool]:
    return [verdict.passed for verdict in said(answers)]


# ------------------------------------------------------------------------------------------------------------ regions


TEXT = """\
def f(x):
    # <exercise one>
    if x:
        return 1
    return 2
    # </exercise one>


class A:
    def g(self):
        with open("x"):
            # <exercise one>
            y = 1
            # </exercise one>
        return y
"""


def test_regions_are_cut_without_their_indentation_and_put_back_with_it():
    answers = sheet.regions(TEXT, "one")
    assert answers == ["if x:\n    return 1\nreturn 2\n", "y = 1\n"]
    assert sheet.with_regions(TEXT, "one", answers) == TEXT
    changed = sheet.with_regions(TEXT, "one", ["return 3\n", "y = 2\n\ny += 1"])
    assert "    # <exercise one>\n    return 3\n    # </exercise one>\n" in changed
    assert "            y = 2\n\n            y += 1\n            # </exercise one>\n" in changed
    assert sheet.regions(TEXT, "two") == []


@pytest.mark.parametrize("marks", ["# <exercise one>", "# </exercise one>", "# <exercise one>\n# <exercise one>",
                                   "# </exercise one>\n# <exercise one>"])  # fmt: skip
def test_marks_that_do_not_alternate_are_refused(marks):
    with pytest.raises(ValueError, match="exercise one"):
        sheet.regions(marks + "\n", "one")


@pytest.mark.parametrize("answer, why", [
    ("return 1\n", None),
    ("def helper():\n    return 1\nimport math\nreturn helper()\n", None),
    ("return (\n", "no Python"),
    ('"""\n', "no Python"),
    ("\x00", "read|Python"),
    ("(" * 5000, "Python"),
])  # fmt: skip
def test_an_answer_changes_the_inside_of_its_function_alone(answer, why):
    spliced = sheet.with_regions(TEXT, "one", [answer, "y = 1\n"])
    if why is None:
        sheet.check_answer(TEXT, spliced, "one")
    else:
        with pytest.raises(ValueError, match=why):
            sheet.check_answer(TEXT, spliced, "one")


def test_an_answer_that_leaves_its_function_is_refused():
    outside = TEXT.replace("        return 1\n", "        return 1\nimport os\nif True:\n")
    with pytest.raises(ValueError, match="inside its function"):
        sheet.check_answer(TEXT, outside, "one")
    with pytest.raises(ValueError, match="inside its function"):  # a default runs when the module is imported
        sheet.check_answer(TEXT, TEXT.replace("def f(x):", "def f(x=print(1)):"), "one")


# ------------------------------------------------------------------------------------------------------------ the sheet


@pytest.mark.parametrize("name", sheet.SHEET)
def test_every_exercise_is_whole(name):
    exercise = sheet.load(name)
    assert exercise.title and len(exercise.statement) > 200 and exercise.hints and exercise.bug
    assert (
        1 <= exercise.points <= 10
        and exercise.seconds <= 20
        and 2 <= len(exercise.public)
        and len(exercise.hidden) >= 3
    )
    assert len(exercise.wrong) >= 4 and set(exercise.needs) <= set(sheet.SHEET) - {name}
    assert all(answer.strip() for file in sheet.solution(exercise) for answer in file)
    told = [what for what, _ in exercise.checks()]
    assert len(set(told)) == len(told) and all(check.__doc__ for check in exercise.public + exercise.hidden)
    for key in exercise.wrong:
        assert sheet.wrong_answer(exercise, key) != sheet.solution(exercise)
    public = sheet.public_part(exercise)
    assert "WRONG" not in public and "hidden_" not in public and "def public_" in public
    for answer in sum(sheet.solution(exercise), []):
        assert answer not in exercise.statement
    told = [*exercise.hints, exercise.statement]
    for wrong in exercise.wrong.values():  # a line of the solution, named to be replaced
        if isinstance(wrong, tuple) and len(wrong[0]) > 12 and not any(wrong[0] in text for text in told):
            assert wrong[0] not in public


def test_the_public_tests_hold_no_helper_that_only_hidden_checks_use():
    text = sheet.public_part(sheet.load("cosine"))
    assert "CUT" in inspect.getsource(sheet.load("cosine").module) and "CUT" not in text and "CALLS = (" in text
    assert "def grown" not in sheet.public_part(sheet.load("threads"))


def test_an_unknown_exercise_is_one_clear_line():
    with pytest.raises(ValueError, match="'grop'.*grpo"):
        sheet.load("grop")


def test_the_solution_passes_the_stub_fails_and_a_wrong_answer_gets_a_part():
    assert all(scores(sheet.solution(ADVANTAGES)))
    verdicts = said(sheet.stub(ADVANTAGES))
    assert not any(verdict.passed for verdict in verdicts)
    assert "NotImplementedError: exercise advantages" in verdicts[0].said
    some = scores(sheet.wrong_answer(ADVANTAGES, "the mean of the whole batch"))
    assert any(some) and not all(some)


@pytest.mark.slow
@pytest.mark.parametrize("name", sheet.SHEET)
def test_every_solution_passes_every_stub_fails_and_every_wrong_answer_is_caught(name):
    exercise = sheet.load(name)
    assert [v for v in said(sheet.solution(exercise), exercise) if not v.passed] == []
    stubbed = said(sheet.stub(exercise), exercise)
    assert not any(verdict.passed for verdict in stubbed[: len(exercise.public)])
    for key in exercise.wrong:
        assert not all(v.passed for v in said(sheet.wrong_answer(exercise, key), exercise)), key


# --------------------------------------------------------------------------------------------------- hostile answers


HOSTILE = {
    "exits early": ["import os", "os._exit(0)"],
    "raises SystemExit": ["raise SystemExit(0)"],
    "kills its group": ["import os, signal", "os.killpg(os.getpgrp(), signal.SIGKILL)"],
    "sleeps": ["import time", "time.sleep(1000)"],
    "computes for ever": ["while True:", "    pass"],
    "takes all memory": ["x = []", "while True:", "    x.append(bytearray(1 << 26))"],
    "returns too much": ["return ['x' * 1000] * 100000"],
    "prints for ever": ["while True:", "    print('x' * 10000)"],
    "forks": ["import os", "while True:", "    os.fork()"],
    "starts a shell": ["import subprocess", "subprocess.run(['sh', '-c', 'touch MARK'])"],
    "os.system": ["import os", "os.system('touch MARK')", "return groups"],
    "writes a result file": ["open('MARK', 'w').write('{}')"],
    "writes with torch": ["import torch", "torch.save({}, 'MARK')"],
    "reads the solution": ["return open('SOLUTION').read()"],
    "connects": ["import socket", "socket.create_connection(('127.0.0.1', 80))"],
    "writes into the channel": ["import os", "for fd in range(3, 64):", "    try:",
                                "        os.write(fd, b'{}\\n' * 9)", "    except OSError:", "        pass"],
    "patches json": ["import json", "json.dumps = lambda *a, **k: '{\"value\": true}'", "return groups"],
    "patches torch and math": ["import math, torch", "math.isclose = lambda *a, **k: True",
                               "torch.allclose = lambda *a, **k: True", "return groups"],
    "equals everything": ["class Yes(list):", "    def __eq__(self, other):", "        return True",
                          "return Yes([Yes(g) for g in groups])"],
    "walks the frames": ["import sys", "frame = sys._getframe()", "while frame:",
                         "    frame.f_globals.update(passed=True, score=100)", "    frame = frame.f_back"],
    "loads C code": ["import ctypes", "ctypes.CDLL(None).system(b'touch MARK')", "return groups"],
    "nests without end": ["x = []", "for _ in range(100000):", "    x = [x]", "return x"],
    "not a number": ["return [[float('nan')] * len(g) for g in groups]"],
    "a wrong kind": ["return {'a': [1, None]}"],
}  # fmt: skip


FAST = ("exits early", "sleeps", "forks", "writes a result file", "writes into the channel", "walks the frames")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in HOSTILE]
)
def test_a_hostile_answer_gains_nothing(name, tmp_path, monkeypatch):
    monkeypatch.setattr(grade, "allowed_seconds", lambda exercise: 2.0)
    mark = tmp_path / "mark"
    tmp_path.chmod(0o777)
    lines = [
        line.replace("MARK", str(mark)).replace("SOLUTION", str(sheet.PACKAGE / "learn.py")) for line in HOSTILE[name]
    ]
    started = time.monotonic()
    verdicts = said(written(*lines))
    assert not any(verdict.passed for verdict in verdicts), [v for v in verdicts if v.passed]
    assert len(verdicts) == len(ADVANTAGES.checks()) and all(verdict.said for verdict in verdicts)
    assert not mark.exists()
    assert time.monotonic() - started < 200  # it ends at all


def test_a_process_that_an_answer_left_behind_is_gone(monkeypatch):
    with grade.examined(ADVANTAGES, sheet.solution(ADVANTAGES), 5) as call:
        pid = call.process.pid
        assert call("advantages", [[1.0, 0.0]]) == [[1.0, -1.0]]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_what_one_check_breaks_the_next_does_not_feel(monkeypatch):
    """An answer that ends the process on one input only fails there: the next check gets a new worker."""
    monkeypatch.setattr(grade, "allowed_seconds", lambda exercise: 120.0)  # whatever else the machine does
    lines = sheet.solution(ADVANTAGES)[0][0]
    fatal = f"if divide_by == 'none':\n    import os\n    os._exit(1)\n{lines}"
    failed = [verdict for verdict in said(written(fatal)) if not verdict.passed]
    assert [verdict.check for verdict in failed] == ["Dr. GRPO: one right of four has 0.75, the others -0.25"]
    assert "ended the process" in failed[0].said


# --------------------------------------------------------------------------------------------------------- submissions


def submission(folder: Path, answers: list[list[str]], name: str = "nanoreason") -> Path:
    for file, own in zip(ADVANTAGES.files, answers, strict=True):
        path = folder / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(sheet.with_regions((sheet.PACKAGE / file).read_text(), "advantages", own))
    return folder


def test_a_folder_and_a_zip_are_graded_alike_and_a_seed_makes_it_repeatable(tmp_path):
    wrong = sheet.wrong_answer(ADVANTAGES, "no deviation")
    folder = submission(tmp_path / "a", wrong)
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(folder / "nanoreason/learn.py", "homework-1/nanoreason/learn.py")
    (one,), (two,) = (grade.grade(path, [ADVANTAGES], seed=3) for path in (folder, archive))
    assert one.verdicts == two.verdicts and 0 < one.score < ADVANTAGES.points
    result = grade.gradescope([one])
    assert result["tests"][0]["max_score"] == ADVANTAGES.points and result["tests"][0]["score"] == one.score
    assert "FAILS" in result["tests"][0]["output"] and json.loads(json.dumps(result)) == result
    assert "total" in grade.as_table([one, two])


def test_what_is_no_submission_is_one_clear_line_and_no_points(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        grade.grade(tmp_path / "nothing", [ADVANTAGES])
    (tmp_path / "text").write_text("x")
    (tmp_path / "empty").mkdir()
    linked = submission(tmp_path / "linked", sheet.solution(ADVANTAGES))
    (linked / "nanoreason/learn.py").unlink()
    (linked / "nanoreason/learn.py").symlink_to(sheet.PACKAGE / "learn.py")
    unmarked = submission(tmp_path / "unmarked", sheet.solution(ADVANTAGES))
    path = unmarked / "nanoreason/learn.py"
    path.write_text(path.read_text().replace("# </exercise advantages>", ""))
    submission(tmp_path / "large", written("x = 1", *["# long" * 20] * 400))
    binary = submission(tmp_path / "binary", sheet.solution(ADVANTAGES))
    (binary / "nanoreason/learn.py").write_bytes(b"\xff\xfe")
    reasons = {"text": "neither a folder nor a zip", "empty": "missing", "linked": "no file of", "unmarked": "followed",
               "large": "more than", "binary": "UTF-8"}  # fmt: skip
    for name, why in reasons.items():
        (result,) = grade.grade(tmp_path / name, [ADVANTAGES])
        assert result.score == 0 and why in result.verdicts[0].said, (name, result.verdicts[0])


def test_the_worker_gets_the_calls_but_no_check_that_is_hidden(tmp_path):
    grade.build(tmp_path, ADVANTAGES, sheet.solution(ADVANTAGES))
    assert not (tmp_path / "nanoreason/course").exists()
    assert "hidden" not in (tmp_path / "exercise.py").read_text()
    assert textwrap.dedent("""def advantages(""") in (tmp_path / "exercise.py").read_text()


# ----------------------------------------------------------------------------------------------------------- the trees


def test_the_starter_tree_holds_stubs_statements_and_public_tests_alone(tmp_path):
    make.make(tmp_path / "hw", [ADVANTAGES], "ada", check=False)
    starter = tmp_path / "hw/starter"
    text = (starter / "nanoreason/learn.py").read_text()
    assert sheet.regions(text, "advantages") == ['raise NotImplementedError("exercise advantages")\n']
    assert not (starter / "nanoreason/course").exists()
    everything = "".join(path.read_text() for path in starter.rglob("*.py")) + (starter / "HANDOUT.md").read_text()
    assert "def hidden_" not in everything and "statistics.pstdev(group if" not in everything
    assert "a group of one" in (starter / "exercises/05_advantages.md").read_text()
    assert f"--seed {bundle.number_of('ada', 'grpo')}" in (starter / "HANDOUT.md").read_text()
    assert make.failing_tests(starter) == {"05_advantages": len(ADVANTAGES.public)}
    (one,) = grade.grade(starter, [ADVANTAGES], seed=1)
    assert one.score == 0
    # the instructor's tree grades, and its own source is a full answer
    instructor = tmp_path / "hw/instructor"
    assert (instructor / "nanoreason/course/exercises/advantages.py").exists()
    assert grade.grade(instructor, [ADVANTAGES], seed=1)[0].score == ADVANTAGES.points
    with pytest.raises(ValueError, match="there already"):
        make.make(tmp_path / "hw", [ADVANTAGES], "ada", check=False)


def test_make_refuses_what_its_checks_do_not_hold(tmp_path, monkeypatch):
    """A check that catches nothing, a solution that fails, a stub that passes: each is named."""

    def lax(call):
        """Anything is right"""

    def strict(call, draw):
        """Nothing is right"""
        raise AssertionError("never")

    broken = dataclasses.replace(
        ADVANTAGES, public=(lax,), hidden=(strict,), wrong={"zeros": ADVANTAGES.wrong["zeros"]}
    )
    monkeypatch.setattr(make, "failing_tests", lambda tree: {"05_advantages": 3})
    found = list(make.faults([broken]))
    assert any("the solution fails: Nothing is right" in one for one in found)
    loose = dataclasses.replace(broken, hidden=())
    found = list(make.faults([loose]))
    assert found == ["advantages: no check catches the wrong answer: zeros"]
    monkeypatch.setattr(make, "failing_tests", lambda tree: {"07_kl": 2})
    other = dataclasses.replace(ADVANTAGES, name="kl", number=7)
    assert list(make.entangled(ADVANTAGES, [ADVANTAGES, other])) == [
        f"advantages: {len(ADVANTAGES.public)} of its public tests pass without an answer",
        "kl: 2 of its public tests need advantages, but NEEDS does not say so",
    ]
    assert list(make.entangled(ADVANTAGES, [dataclasses.replace(other, needs=("advantages",))])) == []
    with pytest.raises(ValueError, match="no check catches"):
        monkeypatch.setattr(make, "faults", lambda exercises: ["no check catches it"])
        make.make(tmp_path / "new", [ADVANTAGES], "ada")
    assert not (tmp_path / "new").exists()


# ------------------------------------------------------------------------------------------------------------- bundles


@pytest.fixture(scope="module")
def asked():
    """A run exercise of seconds."""
    short = dataclasses.replace(
        bundle.RUNS["grpo_minimal"], gained=-0.5,
        config=lambda number: dataclasses.replace(bundle.minimal(number), steps=3, prompts=4, group_size=4),
    )  # fmt: skip
    before, bundle.RUNS["grpo_minimal"] = bundle.RUNS["grpo_minimal"], short
    tested, bundle.TESTED = bundle.TESTED, 12
    yield short
    bundle.RUNS["grpo_minimal"], bundle.TESTED = before, tested


@pytest.fixture(scope="module")
def run_folder(asked, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    grpo_minimal.run(dataclasses.replace(bundle.config_of("grpo_minimal", "ada"), out=str(folder)))
    return folder


def changed(folder: Path, out: Path, name: str = "", change=lambda text: text) -> Path:
    """A bundle of the run with one file changed before it was bundled."""
    copy = out / "copy"
    shutil.copytree(folder, copy)
    if name:
        (copy / name).write_text(change((copy / name).read_text()))
    pack.bundle(copy, out / "run.zip")
    return out / "run.zip"


def why(path: Path, salt: str = "ada") -> list[str]:
    return [reason for _, reason in bundle.examine(path, "grpo_minimal", salt, seed=1) if reason]


def test_an_honest_bundle_has_all_points(run_folder, tmp_path):
    path = changed(run_folder, tmp_path)
    assert why(path) == []
    result = bundle.graded(path, "grpo_minimal", "ada", seed=1)["tests"][0]
    assert result["score"] == result["max_score"] and result["status"] == "passed"


def in_samples(change):
    def apply(text: str) -> str:
        lines = [json.loads(line) for line in text.splitlines()]
        change(lines)
        return "".join(json.dumps(line) + "\n" for line in lines)

    return apply


@pytest.mark.parametrize("name, change, reason", [
    ("config.json", lambda text: text.replace('"steps": 3', '"steps": 4'), "steps is 4, not 3"),
    ("metrics.jsonl", lambda text: "".join(text.splitlines(keepends=True)[1:]), "steps 1 to 3"),
    ("metrics.jsonl", lambda text: text.replace('"reward": ', '"reward": 1e999, "x": '), "no number"),
    ("metrics.jsonl", in_samples(lambda lines: [line.update(reward=9.0) for line in lines]), "the log says reward"),
    ("samples.jsonl", in_samples(lambda lines: lines[0].update(right=1.0 - lines[0]["right"])), "a verdict is wrong"),
    ("samples.jsonl", in_samples(lambda lines: [line.update(prompt="1+1") for line in lines[:4]]), "not the problem"),
    ("samples.jsonl", in_samples(lambda lines: lines[0].update(advantage=5.0)), "advantages do not follow"),
    ("samples.jsonl", in_samples(lambda lines: lines.pop(0)), "has 3 responses"),
    ("samples.jsonl", in_samples(lambda lines: lines.clear()), "no samples"),
    ("samples.jsonl", lambda text: "[]\n", "damaged"),
])  # fmt: skip
def test_what_was_changed_in_a_run_is_found(run_folder, tmp_path, name, change, reason):
    found = why(changed(run_folder, tmp_path, name, change))
    assert any(reason in one for one in found), found


def test_another_students_run_another_policy_and_no_bundle_are_found(run_folder, tmp_path, asked):
    path = changed(run_folder, tmp_path / "a")
    assert any("seed is" in one for one in why(path, "ben"))
    assert bundle.graded(path, "grpo_minimal", "ben")["tests"][0]["score"] == 0
    other = tmp_path / "b"
    shutil.copytree(run_folder, other / "run")
    shutil.rmtree(other / "run/policy")
    shutil.copytree("data/checkpoints/attempts-0", other / "run/policy")
    pack.bundle(other / "run", other / "run.zip")
    assert any("shape" in one or "size" in one for one in why(other / "run.zip"))
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "c.zip", "w") as torn:
        for name in archive.namelist():
            torn.writestr(name, archive.read(name) + (b" " if name == "metrics.jsonl" else b""))
    assert any("changed after" in one for one in why(tmp_path / "c.zip"))
    (tmp_path / "text.zip").write_text("x")
    assert any("no bundle" in one for one in why(tmp_path / "text.zip"))
    with pytest.raises(ValueError, match="holds no policy"):
        pack.bundle(tmp_path, tmp_path / "d.zip")
    with pytest.raises(ValueError, match="no run exercise"):
        bundle.config_of("nothing", "ada")


def test_a_policy_that_learnt_nothing_has_no_points_for_it(run_folder, tmp_path, monkeypatch, asked):
    monkeypatch.setitem(bundle.RUNS, "grpo_minimal", dataclasses.replace(asked, gained=0.9))
    assert any("before" in one and "after" in one for one in why(changed(run_folder, tmp_path)))


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, capsys):
    assert main(["course", "grade", str(tmp_path / "nothing")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["course", "make", "--out", str(tmp_path / "x"), "--exercises", "grop"]) == 2
    assert "grpo" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["course", "--help"])
    assert "bundle" in capsys.readouterr().out
