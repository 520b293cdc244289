"""What the run exercises of the course come to with eight students' settings: the ranges of docs/teaching.md.

    python benchmarks/course_ranges.py --out runs/course-ranges

A line per run in benchmarks/course_ranges.jsonl, and a table. Runs that are there are not made again.
"""

import argparse
import importlib
import json
import time
from dataclasses import replace
from pathlib import Path

import torch

from nanoreason.checkpoint import load_checkpoint
from nanoreason.course.bundle import RUNS, accuracy, config_of

SALTS = [f"student-{i}" for i in range(8)]
FILE = Path(__file__).with_suffix(".jsonl")


def measured(name: str, salt: str, out: Path) -> dict:
    """One run on one thread, then policy and base on the same 150 new problems at temperature 1."""
    config = replace(config_of(name, salt), out=str(out / f"{name}-{salt}"), threads=1)
    started = time.perf_counter()
    importlib.import_module(f"nanoreason.recipes.{name}").run(config)
    minutes = (time.perf_counter() - started) / 60
    base, tokenizer = load_checkpoint(config.base)
    policy, _ = load_checkpoint(Path(config.out) / "policy")
    before, after = (accuracy(config, model, tokenizer, seed=1) for model in (base, policy))
    return {"run": name, "salt": salt, "before": before, "after": after, "minutes": round(minutes, 2)}


def table(lines: list[dict]) -> str:
    rows = ["| run | before | after | gain, least to most | needed |", "|---|---|---|---|---|"]
    for name, exercise in RUNS.items():
        own = [line for line in lines if line["run"] == name]
        spans = [f"{min(some):.2f} to {max(some):.2f}" for some in
                 ([line["before"] for line in own], [line["after"] for line in own],
                  [line["after"] - line["before"] for line in own])]  # fmt: skip
        rows.append(f"| {exercise.title} | {' | '.join(spans)} | {exercise.gained} |")
    return "\n".join(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/course-ranges"))
    flags = parser.parse_args()
    torch.set_num_threads(1)
    lines = [json.loads(line) for line in FILE.read_text().splitlines()] if FILE.exists() else []
    for salt in SALTS:
        for name in RUNS:
            if not any(line["run"] == name and line["salt"] == salt for line in lines):
                lines.append(measured(name, salt, flags.out))
                FILE.write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(table(lines))
