"""What the documentation shows is run as it stands, and what it names exists."""

import dataclasses
import itertools
import re
import shlex
from pathlib import Path

import pytest

from nanoreason.__main__ import RECIPES, SECTIONS, VIEWS, main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The words of every command of ours on a page, comments aside."""
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [line for line in words if line[:2] == ["python", "train.py"] or line[:3] == ["python", "-m", "nanoreason"]]


@pytest.mark.trains
def test_own_task_reward_model_and_recipe_work_as_the_page_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page, made = ROOT / "docs" / "extend.md", {}
    for block in blocks(page, "python"):
        name = re.search(r"class (\w+)", block)[1].lower()
        (tmp_path / f"{name}.py").write_text(block)
        made[name] = {"__name__": name}
        exec(compile(block, name, "exec"), made[name])  # noqa: S102
    monkeypatch.setattr("builtins.input", lambda prompt: "q")
    base = ROOT / "data" / "checkpoints" / "attempts-0"
    last = made["raft"]["run"](dataclasses.replace(made["raft"]["PRESETS"]["tiny"], base=str(base)))
    assert last["step"] == 2 and 0 <= last["accuracy"] <= 1
    for command in commands(page):
        flags = command[2:] if command[1] == "train.py" else command[3:]
        less = {"sft": ["--steps", "60", "--eval-problems", "4"], "grpo": ["--steps", "1", "--eval-problems", "4"]}
        more = less.get(flags[0], [])
        if "FOLDER" not in flags and not any(flag.startswith("--family") for flag in flags):
            assert main([*flags, *more]) == 0, (command, capsys.readouterr())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_names_what_exists_and_every_link_leads_somewhere(page):
    for command in commands(page):
        name = command[2] if command[1] == "train.py" else command[3]
        assert name in {*RECIPES, *VIEWS, "reproduce", "--help"}, command
        if name == "reproduce":
            assert set(command[3].split("|")) <= set(SECTIONS), command
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_table_has_a_row_twice(page):
    lines = page.read_text(encoding="utf-8").splitlines()
    for is_table, group in itertools.groupby(lines, key=lambda line: line.startswith("|")):
        rows = list(group)
        assert not is_table or len(rows) == len(set(rows)), rows[0]


def test_the_table_of_the_plan_is_what_was_measured():
    log = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8").partition("\n## Plan\n")[2]
    measured = [re.split(r"\s{2,}", line) for line in log.split("```")[1].strip().splitlines()[1:]]
    lines = (ROOT / "docs" / "from-laptop-to-gpu.md").read_text(encoding="utf-8").splitlines()
    shown = [line.strip("| ").split(" | ") for line in lines if re.match(r"\| \d+ M \|", line)]
    assert shown == measured and len(shown) == 8


def test_every_page_and_notebook_is_linked_from_the_readme_or_from_the_map():
    linked = set()
    for page in (ROOT / "README.md", ROOT / "notebooks" / "00_map.py"):
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"
            linked.add((page.parent / target).resolve())
    for path in [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "notebooks").glob("*.ipynb"))]:
        assert path.resolve() in linked, f"{path.name} is linked from neither README.md nor notebooks/00_map.py"


def test_every_section_has_a_page_and_a_line_in_the_map():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for section in SECTIONS:
        assert (ROOT / "docs" / f"{section}.md").exists() and f"(docs/{section}.md)" in readme
