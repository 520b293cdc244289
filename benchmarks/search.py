"""Searches per second: problems made, searched and written down, then read back.

python benchmarks/search.py             10,000 searches per measurement; --quick: 20, and nothing is written
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from timing import write_results

from nanoreason.search import LANGUAGES
from nanoreason.tasks.countdown import Countdown, StreamOfSearch


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10000, help="searches per measurement")
    parser.add_argument("--inputs", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="20 searches, to see that it runs")
    flags = parser.parse_args(words)
    torch.set_num_threads(1)
    count, lines = 20 if flags.quick else flags.count, []

    def measured(what: str, work, note: str = "") -> list:
        started = time.process_time()
        found = [work(index) for index in range(count)]
        lines.append(f"{what:<23} {count / (time.process_time() - started):>7,.0f} / s{note}")
        return found

    measured("problems alone", lambda index: Countdown(flags.inputs).problem("train", index))
    for language in LANGUAGES:
        task = StreamOfSearch(flags.inputs, language=language)
        problems = measured(f"{language} searches", lambda index, task=task: task.problem("train", index))
        lengths = [len(problem.solution.split()) for problem in problems]
        measured(
            f"{language} searches read",
            lambda index, task=task, problems=problems: task.read(problems[index], problems[index].solution),
            f", {sum(lengths) / count:,.0f} words each",
        )
    write_results("Searches", [f"{flags.inputs} inputs, {count:,} searches, on one core", *lines], torch.device("cpu"),
                  not flags.quick)  # fmt: skip


if __name__ == "__main__":
    main()
