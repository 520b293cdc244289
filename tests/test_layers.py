"""The structure of the package: imports point down, recipes and tasks stand alone, and nothing unsafe is called."""

import ast
from pathlib import Path

import pytest

import nanoreason

PACKAGE = Path(nanoreason.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
# An import may skip layers downward. A new module needs its place here.
LAYERS = {
    "__init__": 0, "processes": 0, "console": 0, "rollout": 0, "run": 0, "tokenizer": 0, "chat": 0,
    "model": 1, "optim": 1, "prompts": 1, "arithmetic": 1, "countdown": 1, "search": 1, "search_threads": 1,
    "sharding": 1, "spawn": 1, "priming": 1, "evaluate": 1,
    "hf_config": 2, "lora": 2, "rewards": 2, "tasks": 2, "checkpoint": 3, "sampler": 3, "learn": 3,
    "forcing": 4, "threads": 4, "environment": 4, "analysis": 4,
    "memory": 4, "plan": 4, "plan_memory": 4, "plan_time": 4,
    "behavior_rules": 2, "curves": 2, "doctor_rules": 2,
    "algebra": 2, "math_answers": 2, "problem_files": 2,
    "recipes": 5,
    "experiments": 6, "play": 6, "eval": 6, "look": 6, "plot": 6, "notebook": 6,
    "behaviors": 6, "compare": 6, "course": 6, "doctor": 6, "report": 6, "report_samples": 6,
    "__main__": 7,
}  # fmt: skip
ALONE = ("recipes", "tasks")  # no imports between the modules of these folders


def name_of(path: Path) -> str:
    """recipes/star.py -> recipes.star"""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imported_by(path: Path) -> set[str]:
    """The package's own modules that a file imports, anywhere in it: {"run", "tasks.addition", ...}."""
    modules = {name_of(source) for source in SOURCES}
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    of_types = {  # what only a type checker reads is no import
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in of_types:
            continue
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are written out in full"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            package, _, module = name.partition(".")
            if package == "nanoreason" and module in modules:
                found.add(module)
    return found - {name_of(path)}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_an_import_never_points_up_nor_sideways_between_recipes_or_tasks(path):
    name = name_of(path)
    top, layer = name.split(".")[0], LAYERS[name.split(".")[0]]
    for imported in imported_by(path):
        other = imported.split(".")[0]
        assert LAYERS[other] <= layer, f"{name} imports {imported}, which lies above it"
        assert name != "rollout", f"the vocabulary is read first: it imports nothing of ours, not {imported}"
        table = "." not in name or name == "tasks.suite"  # they are made of tasks
        assert table or not (top == other and top in ALONE), f"{name} imports its sibling {imported}"


def test_the_import_reader_sees_the_imports_that_there_are():
    assert {"rollout", "model", "run"} <= imported_by(PACKAGE / "sampler.py")
    assert {"experiments.results", "recipes.star", "tasks"} <= imported_by(PACKAGE / "experiments" / "star.py")
    assert {"tasks.addition", "tasks.wrappers"} <= imported_by(PACKAGE / "tasks" / "__init__.py")
    assert imported_by(PACKAGE / "rollout.py") == set()  # but for types


def calls_of(tree: ast.AST) -> list[tuple[int, str]]:
    """(line, dotted name) of every call."""
    return [(node.lineno, ast.unparse(node.func)) for node in ast.walk(tree) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_evaluates_text_unpickles_or_swallows_every_exception(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    unsafe = {"eval", "exec", "compile", "__import__", "torch.load", "torch.save", "os.system"}
    for line, name in calls_of(tree):
        assert name not in unsafe, f"{path}:{line} calls {name}"
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not {"pickle", "dill", "joblib", "shelve", "marshal"} & {n.split(".")[0] for n in names}, path
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{path}:{node.lineno} has a bare except"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_that_only_unix_has_is_imported(path):
    """No time limits by signals, no forks: the package runs on Windows as well."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded = {  # where it is missing, something else is done
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.Try) and "ImportError" in [ast.unparse(h.type) for h in node.handlers if h.type]
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)) and node not in guarded:
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not {"fcntl", "resource", "pwd", "termios"} & set(names), f"{path}:{node.lineno}"
        if isinstance(node, ast.Attribute):  # of `signal`, which is everywhere, but not with all that is in it
            assert node.attr not in ("alarm", "setitimer", "SIGALRM", "SIGKILL"), f"{path}:{node.lineno}"


@pytest.mark.parametrize("path", [path for path in SOURCES if path.stat().st_size], ids=name_of)
def test_every_module_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
