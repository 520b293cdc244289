"""Trajectories per second: problems made, searched and written down, then read back. `python benchmarks/search.py`"""

import argparse
import os
import time

from nanoreason.search import LANGUAGES, StreamOfSearch, generate
from nanoreason.tasks.countdown import Countdown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10000, help="trajectories per measurement")
    parser.add_argument("--inputs", type=int, default=4)
    arguments = parser.parse_args()
    countdown = Countdown(inputs=arguments.inputs)

    start = time.perf_counter()
    for index in range(arguments.count):
        countdown.problem("train", index)
    print(f"problems alone:          {arguments.count / (time.perf_counter() - start):7,.0f} / s on one core")

    for language in LANGUAGES:
        task = StreamOfSearch(countdown, language)
        for workers in (1, os.cpu_count() or 1):
            start = time.perf_counter()
            trajectories = list(generate(task, "train", 0, arguments.count, workers=workers))
            seconds = time.perf_counter() - start
            print(f"{language:>7} trajectories:    {arguments.count / seconds:7,.0f} / s with {workers} processes")
        words = sum(len(trajectory.text.split()) for trajectory in trajectories) / arguments.count
        start = time.perf_counter()
        for trajectory in trajectories:
            task.read(trajectory.problem, trajectory.text)
        seconds = time.perf_counter() - start
        print(
            f"{language:>7} traces read:     {arguments.count / seconds:7,.0f} / s on one core, {words:,.0f} words each"
        )


if __name__ == "__main__":
    main()
