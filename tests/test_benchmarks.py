"""Every benchmark can be imported, and those that measure speed or stability run on their smallest workload."""

import importlib
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
WORDS = {
    "sample": [],
    "grpo_step": [],
    "learner": ["update", "cuts", "optimizers"],  # a start is one of a new process
    "search": [],
    "plan": [],
    "stability": ["none.jsonl"],
}
OTHERS = ["timing", "step_files", "demo_portable", "course_ranges"]  # no workload; has a test; take minutes


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_it_is_known_and_can_be_imported(path, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    importlib.import_module(path.stem)
    assert path.stem in {*WORDS, *OTHERS}, "say here how its smallest workload is run"


@pytest.mark.parametrize("name", WORDS)
def test_the_smallest_workload_runs_and_writes_nothing_down(name, monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER)
    timing = importlib.import_module("timing")
    monkeypatch.setattr(timing, "peak_now", lambda *_: timing.Peak(1e10, 1e10))  # measured by three large products
    before = timing.RESULTS.read_text(encoding="utf-8")
    importlib.import_module(name).main([*WORDS[name], "--quick"])
    assert timing.RESULTS.read_text(encoding="utf-8") == before
    assert "/" in capsys.readouterr().out


def test_a_measurement_replaces_its_table_and_keeps_the_words_below(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER)
    timing, torch = importlib.import_module("timing"), sys.modules["torch"]
    monkeypatch.setattr(timing, "RESULTS", tmp_path / "RESULTS.md")
    timing.RESULTS.write_text("# Results\n\nHead.\n")
    timing.write_results("B", ["1 token/s"], torch.device("cpu"))
    timing.RESULTS.write_text(timing.RESULTS.read_text() + "\nIt is slow.\n")
    timing.write_results("A", ["of a"], torch.device("cpu"))
    timing.write_results("B", ["2 tokens/s"], torch.device("cpu"))
    text = timing.RESULTS.read_text()
    assert text.startswith("# Results\n\nHead.\n\n## A\n") and text.count("## B\n") == 1
    assert text.endswith("```\n2 tokens/s\n```\n\nIt is slow.\n") and "1 token/s" not in text


def test_the_ranges_of_the_run_exercises_on_the_page_are_those_of_the_log(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    ranges = importlib.import_module("course_ranges")
    page = (FOLDER.parent / "docs" / "teaching.md").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in ranges.FILE.read_text(encoding="utf-8").splitlines()]
    assert sorted((line["run"], line["salt"]) for line in lines) == sorted(
        (run, salt) for run in ranges.RUNS for salt in ranges.SALTS
    )
    for row in ranges.table(lines).splitlines()[2:]:
        assert row in page
    assert all(line["after"] - line["before"] > ranges.RUNS[line["run"]].gained for line in lines)
