"""What the benchmarks share: contestants that take turns, and the speed of the bare machine measured between them.

A shared machine is fast now and slow a second later. So every repetition runs each contestant once, each right after a
matrix product and a memory read of fixed size; ratios and shares of the floor are taken within a repetition, and what
is printed is the median over repetitions. With one thread the clock is the process's CPU time, which a busy neighbour
disturbs least; with more threads, or on a GPU, it is wall time.
"""

from __future__ import annotations

import os
import platform
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

RESULTS = Path(__file__).with_name("RESULTS.md")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "asimd", "sve")  # what decides how fast a product can be


@dataclass(frozen=True)
class Peak:
    """The machine as it was at one moment."""

    flops: float  # per second, of a float32 product of 1024 x 1024 matrices
    bandwidth: float  # bytes per second, read from a buffer of `peak_now(read_bytes)`


def clock_for(device: torch.device) -> Callable[[], float]:
    if device.type == "cuda":
        return lambda: (torch.cuda.synchronize(), time.perf_counter())[1]
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def peak_now(device: torch.device, read_bytes: int = 1 << 24) -> Peak:
    """Products and reads as fast as PyTorch does them here and now: the best of three, some 0.1 s in all."""
    clock = clock_for(device)
    a, b = torch.randn(1024, 1024, device=device), torch.randn(1024, 1024, device=device)
    buffer = torch.zeros(read_bytes // 4, device=device)

    def best(work: Callable) -> float:
        times = []
        for _ in range(3):
            started = clock()
            work()
            times.append(max(clock() - started, 1e-9))
        return min(times)

    return Peak(2 * 1024**3 / best(lambda: a @ b), read_bytes / best(buffer.sum))


@dataclass
class Timing:
    """Of one contestant, by repetition: seconds, and the machine just before."""

    amount: float  # work done in a repetition, e.g. tokens
    seconds: list[float]
    peaks: list[Peak]

    @property
    def rate(self) -> float:
        return self.amount / statistics.median(self.seconds)

    @property
    def range(self) -> tuple[float, float]:
        return self.amount / max(self.seconds), self.amount / min(self.seconds)

    def times_faster_than(self, other: Timing) -> float:
        """Median over repetitions of how many times more work per second this one does."""
        pairs = zip(self.seconds, other.seconds, strict=True)
        return statistics.median((self.amount / a) / (other.amount / b) for a, b in pairs)

    def share_of_floor(self, floor: Callable[[Peak], float]) -> float:
        """Median over repetitions of floor(peak) / seconds; `floor` says how long the work would take at that peak."""
        return statistics.median(floor(peak) / s for s, peak in zip(self.seconds, self.peaks, strict=True))


def interleaved(
    contestants: dict[str, Callable[[], float]],
    device: torch.device,
    repeat: int = 5,
    warm_up: bool = True,
    read_bytes: int = 1 << 24,
) -> dict[str, Timing]:
    """Every contestant is a function that does its work and returns the amount; the first round warms up."""
    clock = clock_for(device)
    timings: dict[str, Timing] = {}
    for repetition in range(repeat + warm_up):
        for name, work in contestants.items():
            peak = peak_now(device, read_bytes)
            started = clock()
            amount = work()
            seconds = clock() - started
            if repetition >= warm_up:
                timing = timings.setdefault(name, Timing(amount, [], []))
                timing.seconds.append(seconds)
                timing.peaks.append(peak)
    return timings


def machine(device: torch.device) -> str:
    """One line: processor, what it can do, threads, load, versions."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
        model = re.search(r"model name\s*: (.*)", cpuinfo)
        has = re.search(r"(?:flags|Features)\s*: (.*)", cpuinfo)
        flags = [flag for flag in FLAGS if has and flag in has[1].split()]
        used = torch.backends.cpu.get_cpu_capability()
        name = f"{model[1] if model else platform.processor()} ({' '.join(flags)}; torch uses {used})"
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    threads = f"{torch.get_num_threads()} thread(s) of {os.cpu_count()}"
    return f"{name}, {threads}, {load}, torch {torch.__version__}"


def write_results(name: str, lines: list[str], device: torch.device, keep: bool = True) -> None:
    """Print the lines, and put them into RESULTS.md as the section `name` in place of the table that it had before.

    The words that stand under a table are a person's. They stay, and have to be read again with the new numbers.
    """
    text = "\n".join(lines)
    section = f"## {name}\n\n{machine(device)}, {time.strftime('%Y-%m-%d')}\n\n```\n{text}\n```\n"
    print(section, flush=True)
    if not keep:
        return
    head, *sections = re.split(r"\n(?=## )", RESULTS.read_text())
    named = {part.split("\n")[0].removeprefix("## "): part.strip("\n") + "\n" for part in sections}
    words = named.get(name, "").rpartition("\n```\n")[2].strip("\n") if name in named else ""
    named[name] = section + (f"\n{words}\n" if words else "")
    RESULTS.write_text("\n".join([head.rstrip("\n") + "\n", *(named[key] for key in sorted(named))]))
    if words:
        print(f"{RESULTS}: the words under this table are about older numbers, read them again", flush=True)
