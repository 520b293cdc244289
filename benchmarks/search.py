"""Searches per second: problems made, searched and written down, then read back. `python benchmarks/search.py`"""

import argparse
import time

from nanoreason.search import LANGUAGES
from nanoreason.tasks.countdown import Countdown, StreamOfSearch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10000, help="searches per measurement")
    parser.add_argument("--inputs", type=int, default=4)
    arguments = parser.parse_args()

    def per_second(start: float) -> str:
        return f"{arguments.count / (time.perf_counter() - start):7,.0f} / s on one core"

    countdown, start = Countdown(arguments.inputs), time.perf_counter()
    for index in range(arguments.count):
        countdown.problem("train", index)
    print(f"problems alone:          {per_second(start)}")

    for language in LANGUAGES:
        task, start = StreamOfSearch(arguments.inputs, language=language), time.perf_counter()
        problems = [task.problem("train", index) for index in range(arguments.count)]
        print(f"{language:>7} searches:        {per_second(start)}")
        words = sum(len(problem.solution.split()) for problem in problems) / arguments.count
        start = time.perf_counter()
        for problem in problems:
            task.read(problem, problem.solution)
        print(f"{language:>7} searches read:   {per_second(start)}, {words:,.0f} words each")


if __name__ == "__main__":
    main()
