"""The course: regions, the sheet, and an autograder that hostile submissions gain nothing from."""

import json
import os
import textwrap
import time
import zipfile
from pathlib import Path

import pytest

from nanoreason.course import grade, sheet

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
                                "        os.write(fd, b'{\"value\": 1}\\n' * 9)", "    except OSError:", "        pass"],
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


def test_what_one_check_breaks_the_next_does_not_feel():
    """An answer that ends the process on one input only fails there: the next check gets a new worker."""
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
