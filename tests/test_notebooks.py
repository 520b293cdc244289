"""The notebooks: made from their sources, short, linked, and every cell runs in a folder that is not the repository."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nanoreason import notebook
from nanoreason.recipes import grpo_minimal

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
spec = importlib.util.spec_from_file_location("build", FOLDER / "build.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)
SOURCES = build.sources()
NAMES = [path.stem for path in SOURCES]

# Runs the code of some notebooks in one process, each in a namespace and a folder of its own, and says what went wrong.
RUNNER = """
import contextlib, io, json, os, pathlib, sys, traceback
said = {}
for name, code in json.load(sys.stdin).items():
    pathlib.Path(name).mkdir()
    os.chdir(name)
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            exec(compile(code, name, "exec"), {"__name__": "__main__"})
        said[name] = [True, out.getvalue(), os.listdir()]
    except BaseException:
        said[name] = [False, traceback.format_exc(), os.listdir()]
    os.chdir("..")
json.dump(said, sys.stdout)
"""


def environment(quick: bool = True) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    found = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return found | ({"NANOREASON_QUICK": "1"} if quick else {})


def code_of(path: Path) -> str:
    return "\n\n".join(text for kind, text in build.cells(path) if kind == "code")


def text_of(path: Path) -> str:
    return "\n\n".join(text for kind, text in build.cells(path) if kind == "markdown")


# -------------------------------------------------------------------------------------------------------- they run


@pytest.mark.trains
def test_every_cell_of_every_notebook_runs_outside_of_the_repository(tmp_path):
    codes = json.dumps({path.stem: code_of(path) for path in SOURCES})
    done = subprocess.run([sys.executable, "-c", RUNNER], input=codes, capture_output=True, text=True, cwd=tmp_path,
                          env=environment() | {"TMPDIR": str(tmp_path), "TEMP": str(tmp_path)})  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    failed = {name: text for name, (ran, text, _) in said.items() if not ran}
    assert not failed, "\n".join(f"{name}: {text}" for name, text in failed.items())
    assert list(said) == [path.stem for path in SOURCES]
    for name, (_, text, left) in said.items():
        assert text.strip() and not left, f"{name} printed {text!r} and left {left} in its folder"


@pytest.mark.trains
def test_a_notebook_runs_in_jupyter(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    outputs = run_in_jupyter(nbformat, nbclient, FOLDER / "star.ipynb", tmp_path, quick=True)
    assert any("image/png" in output.get("data", {}) for output in outputs), "the committed figure is not shown"


@pytest.mark.slow
@pytest.mark.parametrize("name", [path.stem for path in SOURCES])
def test_a_notebook_runs_at_its_full_size(name, tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    run_in_jupyter(nbformat, nbclient, FOLDER / f"{name}.ipynb", tmp_path, quick=False)


def run_in_jupyter(nbformat, nbclient, path: Path, folder: Path, quick: bool) -> list[dict]:
    """What its cells showed."""
    made = nbformat.read(path, as_version=4)
    environ = dict(os.environ)
    os.environ.update(environment(quick))
    try:
        nbclient.NotebookClient(made, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    finally:
        os.environ.clear()
        os.environ.update(environ)
    outputs = [output for cell in made.cells for output in cell.get("outputs", ())]
    assert outputs
    return outputs


# ------------------------------------------------------------------------------------- what the sources look like


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_the_notebook_is_made_from_its_source_and_has_no_outputs(path):
    text = path.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert text == build.notebook(path), f"{path.stem}.ipynb is older than {path.name}: run `make notebooks`"
    cells = json.loads(text)["cells"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if "outputs" in cell)
    assert len({cell["id"] for cell in cells}) == len(cells)
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(nbformat.reads(text, as_version=4))


def test_no_notebook_is_without_a_source():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("path", [*SOURCES, FOLDER / "first_cell.py"], ids=lambda path: path.stem)
def test_no_function_in_a_notebook_is_longer_than_ten_lines(path):
    code = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            assert node.end_lineno - node.lineno < 10, f"{path.name}: {node.name} belongs into the package"


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_measured_numbers_are_read_and_not_typed(path):
    """Decimal fractions in the text are settings, in code or formulas: what was measured is printed by a cell."""
    text = re.sub(r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$", "", text_of(path), flags=re.DOTALL)
    assert not re.findall(r"(?<![\w.])[0-9]*\.[0-9]+(?![\w.])", text), path.name


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_every_notebook_begins_with_the_first_cell_and_ends_with_exercises(path):
    cells = build.cells(path)
    assert cells[0][0] == "markdown" and cells[0][1].startswith("# ")
    first = next(text for kind, text in cells if kind == "code")
    assert first.startswith((FOLDER / "first_cell.py").read_text(encoding="utf-8").strip())
    exercises = re.findall(r"^[0-9]\. ", text_of(path).partition("## Exercises\n")[2], re.MULTILINE)
    assert len(exercises) in (3, 4, 5) or path.stem == "00_map"


# ------------------------------------------------------------------------------------------------- how they are made


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "some.py"
    path.write_text(text, encoding="utf-8")
    return path


def test_cells_are_cut_at_their_marks(tmp_path):
    path = written(tmp_path, "# %% [markdown]\n# # Title\n#\n# text\n\n# %%\nx = 1\n\n\n# a comment\nprint(x)\n\n")
    assert build.cells(path) == [("markdown", "# Title\n\ntext"), ("code", "x = 1\n\n\n# a comment\nprint(x)")]


@pytest.mark.parametrize(
    "text, said",
    [
        ("x = 1\n# %%\n", "line 1: it stands before"),
        ("# %% [raw]\n", "line 1: a cell begins with"),
        ("# %%\n# %% title\n", "line 2: a cell begins with"),
        ("# %% [markdown]\n# a\nx = 1\n", "line 3: a line of text begins with"),
        ("# %% [markdown]\n#a\n", "line 2: a line of text begins with"),
    ],
)
def test_a_source_that_is_none_is_named_with_its_line(tmp_path, text, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        build.cells(written(tmp_path, text))


def test_building_writes_what_is_stale_and_checking_names_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    path = written(tmp_path, "# %%\nprint(1)\n")
    (tmp_path / "helper.py").write_text("x = 1\n")  # no notebook: it does not begin with a cell
    assert build.main(["--check"]) == 1 and "some.ipynb differs" in capsys.readouterr().out
    assert not path.with_suffix(".ipynb").exists()
    assert build.main([]) == 0 and build.main(["--check"]) == 0
    path.with_suffix(".ipynb").write_text("{}")
    (tmp_path / "lost.ipynb").write_text("{}")
    assert build.main(["--check"]) == 1
    assert build.main([]) == 0 and "lost.ipynb has no source" in capsys.readouterr().out
    assert json.loads(path.with_suffix(".ipynb").read_text())["cells"][0]["source"] == ["print(1)"]
    assert build.main(["--wrong"]) == 2


# ---------------------------------------------------------------------------------------------------- the first cell


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A working folder from which the package cannot be found; what the cell changes is put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "lib" / "site"), *sys.path])
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "nanoreason" else real(name))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def first_cell(repository: str = "") -> dict:
    code = (FOLDER / "first_cell.py").read_text(encoding="utf-8")
    assert code.count('REPOSITORY = ""') == 1
    scope = {"__name__": "__main__"}
    exec(compile(code.replace('REPOSITORY = ""', f"REPOSITORY = {repository!r}"), "first_cell", "exec"), scope)  # noqa: S102
    return scope


def test_the_first_cell_says_what_to_do_where_there_is_no_package(nowhere):
    with pytest.raises(FileNotFoundError, match="set REPOSITORY"):
        first_cell()
    assert not list(nowhere.iterdir())


def test_the_first_cell_finds_the_package_in_a_folder_above(nowhere, monkeypatch):
    fake_package(nowhere / "repo")
    (nowhere / "repo" / "some" / "where").mkdir(parents=True)
    monkeypatch.chdir(nowhere / "repo" / "some" / "where")
    assert first_cell()["ROOT"] == (nowhere / "repo").resolve()
    assert Path(sys.path[0]) == (nowhere / "repo").resolve()


def test_the_first_cell_fetches_the_package_once_and_into_one_folder(nowhere):
    fake_package(nowhere / "remote")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(nowhere / "remote")]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], check=True)
    (nowhere / "work").mkdir()
    os.chdir(nowhere / "work")  # put back by `nowhere`
    for _ in range(2):
        scope = first_cell((nowhere / "remote").as_uri())
        assert scope["ROOT"] == (nowhere / "work" / "nanoreason-source").resolve()
        assert sorted(path.name for path in Path.cwd().iterdir()) == ["nanoreason-source"]
        assert scope["RUNS"].is_dir() and Path.cwd() not in scope["RUNS"].parents


def fake_package(folder: Path) -> None:
    (folder / "nanoreason").mkdir(parents=True)
    (folder / "nanoreason" / "__init__.py").write_text("")
    (folder / "data" / "results").mkdir(parents=True)
    (folder / "data" / "results" / "here").write_text("")  # git keeps no empty folder


# --------------------------------------------------------------------------------------- what they share (notebook.py)


def test_show_prints_the_lines_that_run_without_the_marks_of_exercises(capsys):
    notebook.show(grpo_minimal.loss)
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"# nanoreason/recipes/grpo_minimal.py, line [0-9]+", lines[0])
    source = (ROOT / "nanoreason" / "recipes" / "grpo_minimal.py").read_text().splitlines()
    assert (
        source[int(lines[0].split()[-1]) - 1]
        == lines[1]
        == "def loss(logprobs: torch.Tensor, batch: Batch) -> torch.Tensor:"
    )
    assert lines[-1] == "    return -ratio * batch.advantages" and "exercise" not in "\n".join(lines)
    notebook.show(grpo_minimal.grpo_step, "for group in groups", "rewards = ")
    assert capsys.readouterr().out.splitlines()[1::3] == [
        "for group in groups:",
        "    rewards = [row.reward for row in group]",
    ]
    notebook.show(grpo_minimal, "GRPO on one screen", "GRPO on one screen")
    assert capsys.readouterr().out.startswith("# nanoreason/recipes/grpo_minimal.py, line 1\n")


def test_show_refuses_lines_that_are_not_there():
    for words in (("no such line",), ("def loss", "no such line"), ("return", "def loss")):
        with pytest.raises(ValueError, match="older than the source"):
            notebook.show(grpo_minimal.loss, *words)


def test_claims_are_those_of_the_committed_summary(capsys):
    summary = json.loads((ROOT / "data" / "results" / "r1" / "cpu" / "summary.json").read_text())
    name = summary["claims"][0]["name"]
    notebook.claims("r1", name)
    said = capsys.readouterr().out
    held = sum(line["passed"] for line in summary["claims"])
    assert f"{held} of {len(summary['claims'])} claims hold" in said
    assert said.count(name) == 1 and f"{summary['claims'][0]['mean']:.3f}" in said
    notebook.claims("r1")
    assert sum(line.startswith(("holds ", "FAILS ")) for line in capsys.readouterr().out.splitlines()) == len(
        summary["claims"]
    )
    with pytest.raises(ValueError, match="older than the results"):
        notebook.claims("r1", name, "of no claim")


def test_the_figure_is_the_committed_one_or_it_is_said_how_to_draw_it(capsys):
    notebook.figure("r1")
    assert capsys.readouterr().out == "the figure is in data/results/r1/cpu/figure.png\n"
    with pytest.raises(ValueError, match="reproduce r1 --preset none"):
        notebook.figure("r1", "none")


def test_steps_prints_the_metrics_that_are_there(tmp_path, capsys):
    lines = [{"step": 1, "a/reward": 0.5}, {"step": 2, "other": 1}, {"step": 3, "a/reward": 1, "b": "x"}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    notebook.steps(tmp_path, "a/reward", "b")
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["step", "reward", "b"], ["1", "0.500"], ["3", "1", "x"],
    ]  # fmt: skip
    notebook.steps(tmp_path, "a/reward", "other", "b/other")  # two that end alike have their whole names
    assert capsys.readouterr().out.split()[:4] == ["step", "reward", "other", "b/other"]
    with pytest.raises(ValueError, match="has none of c"):
        notebook.steps(tmp_path, "c")
