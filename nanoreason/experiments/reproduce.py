"""python train.py reproduce <section>: all arms and seeds of a section, its figure, and its criteria as numbers.

    stages of jobs -> runs in OUT/seed*/ARM, in parallel processes -> OUT/metrics.jsonl -> figure.png, summary.json

A section is a module `nanoreason.experiments.<section>` with

    PRESETS                              {preset: settings of the section}
    stages(preset, seed, folder)         [[Job, ...], ...]: the jobs of a stage need the stages before it
    summarise(lines, preset)             metrics of all jobs -> ({arm: numbers}, [Criterion, ...])
    draw(lines, preset, path)            the figure

A finished job is never run again, and a stopped one goes on from its checkpoint: the same command resumes everything.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import multiprocessing
import os
import statistics
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from nanoreason.run import (
    RunConfig,
    device_name,
    pick_device,
    read_jsonl,
    replace_text,
    say,
    set_bar_position,
    write_json,
)


@dataclass(frozen=True)
class Job:
    """One run of one recipe: `nanoreason.recipes.<recipe>.run(config)` in the folder config.out."""

    arm: str
    recipe: str
    config: RunConfig


@dataclass(frozen=True)
class Criterion:
    """A statement of the paper as a number. `value` None means that the run cannot tell: not passed."""

    name: str
    value: float | None
    threshold: float
    at_least: bool = True  # passed if value >= threshold; else if value <= threshold

    def line(self) -> dict:
        passed = self.value is not None and (
            self.value >= self.threshold if self.at_least else self.value <= self.threshold
        )
        return {"name": self.name, "value": self.value, "threshold": self.threshold, "passed": passed}


def run_job(job: Job) -> None:
    """Run or resume one job; `done.json` in its folder says how long it took and that nothing is left to do."""
    import torch

    folder = Path(job.config.out)
    if (folder / "done.json").exists():
        return
    spent = json.loads((folder / "spent.json").read_text()) if (folder / "spent.json").exists() else 0.0
    torch.set_num_threads(job.config.threads)
    say(f"\n{job.arm}, seed {job.config.seed}")
    started = time.perf_counter()
    try:
        importlib.import_module(f"nanoreason.recipes.{job.recipe}").run(job.config)
    except BaseException:
        if folder.exists():
            write_json(folder / "spent.json", spent + time.perf_counter() - started)
        raise
    seconds = spent + time.perf_counter() - started
    write_json(folder / "done.json", {"arm": job.arm, "seconds": round(seconds, 1)})


def die_with_parent() -> None:
    """A worker whose parent was killed must not go on writing into a folder that the next run resumes."""
    multiprocessing.parent_process().join()
    os._exit(1)


def worker_setup(counter, lock) -> None:
    """Each process draws its progress bar on a line of its own, and ends with its parent."""
    threading.Thread(target=die_with_parent, daemon=True).start()
    with counter.get_lock():
        position = counter.value
        counter.value += 1
    set_bar_position(position, lock)


def run_jobs(jobs: list[Job], workers: int) -> None:
    if workers == 1 or len(jobs) == 1:
        for job in jobs:
            run_job(job)
        return
    context = multiprocessing.get_context("spawn")
    counter, lock = context.Value("i", 0), context.RLock()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=worker_setup, initargs=(counter, lock))
    try:
        for future in [pool.submit(run_job, job) for job in jobs]:
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def collect(jobs: list[Job], name: str) -> list[dict]:
    """The lines of one file of all jobs, each with its arm and seed."""
    return [
        {"arm": job.arm, "seed": job.config.seed, **line}
        for job in jobs
        if (Path(job.config.out) / name).exists()
        for line in read_jsonl(Path(job.config.out) / name)
    ]


def curve(lines: list[dict], arm: str, key: str, seed: int | None = None) -> dict[int, float]:
    """{step: a metric of an arm, the mean over seeds or of the one named}, for the steps that have it, in order."""
    steps: dict[int, list[float]] = {}
    for line in lines:
        if line["arm"] == arm and key in line and seed in (None, line["seed"]):
            steps.setdefault(line["step"], []).append(line[key])
    return {step: statistics.fmean(steps[step]) for step in sorted(steps)}


def relative(settings: dict, out: Path) -> dict:
    """Settings whose folders are named from `out` on: the same on every machine."""
    return {
        key: Path(value).relative_to(out).as_posix()
        if isinstance(value, str) and Path(value).is_relative_to(out)
        else value
        for key, value in settings.items()
    }


def reproduce(section: str, preset: str, seeds: int, out: Path, device: str = "auto", workers: int = 0) -> dict:
    """Run everything that is not done yet; returns what stands in OUT/summary.json."""
    module = importlib.import_module(f"nanoreason.experiments.{section}")
    where = pick_device(device)
    # One process per core on the CPU, where a tiny model uses one; a GPU is one queue.
    workers = workers or (os.cpu_count() or 1 if where.type == "cpu" else 1)
    settings = {"section": section, "preset": preset}
    if (out / "config.json").exists():
        before = json.loads((out / "config.json").read_text(encoding="utf-8"))
        if {key: before.get(key) for key in settings} != settings:
            raise ValueError(
                f"{out} holds {before.get('section')} --preset {before.get('preset')}: choose another --out"
            )
    out.mkdir(parents=True, exist_ok=True)
    by_seed = [module.stages(preset, seed, out / f"seed{seed}") for seed in range(seeds)]
    stages = [[job for stage in parallel for job in stage] for parallel in zip(*by_seed, strict=True)]
    jobs = [job for stage in stages for job in stage]
    for job in jobs:
        job.config.device, job.config.resume = device, True
    configs = {f"seed{job.config.seed}/{job.arm}": relative(dataclasses.asdict(job.config), out) for job in jobs}
    write_json(out / "config.json", {**settings, "seeds": seeds, "jobs": configs})
    for stage in stages:
        run_jobs(stage, workers)
    lines = collect(jobs, "metrics.jsonl")
    replace_text(out / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    samples = collect(jobs, "samples.jsonl")
    replace_text(out / "samples.jsonl", "".join(json.dumps(line) + "\n" for line in samples))
    arms, criteria = module.summarise(lines, preset)
    seconds = sum(json.loads((Path(job.config.out) / "done.json").read_text())["seconds"] for job in jobs)
    summary = {
        "section": section,
        "preset": preset,
        "seeds": seeds,
        "device": device_name(where),
        "seconds": round(seconds, 1),  # of all jobs, one after another
        "arms": arms,
        "criteria": [criterion.line() for criterion in criteria],
    }
    write_json(out / "summary.json", summary)
    try:
        module.draw(lines, preset, out / "figure.png")
    except ModuleNotFoundError as error:
        print(f"no figure: {error.name} is not installed (pip install 'nanoreason[figures]')", file=sys.stderr)
    return summary


def main(argv: list[str], sections: dict[str, str]) -> int:
    parser = argparse.ArgumentParser(prog="train.py reproduce", description=reproduce.__doc__, allow_abbrev=False)
    parser.add_argument("section", choices=list(sections))
    parser.add_argument("--preset", default="cpu", help="tiny: seconds; cpu: minutes on two cores; gpu (default: cpu)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 .. SEEDS-1 (default: 3)")
    parser.add_argument("--out", default="", help="folder of everything (default: runs/SECTION-PRESET)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: one per core on cpu, one on a GPU")
    flags = parser.parse_args(argv)
    presets = importlib.import_module(f"nanoreason.experiments.{flags.section}").PRESETS
    if flags.preset not in presets:
        raise ValueError(f"{flags.section} has no preset {flags.preset!r}: use one of {', '.join(presets)}")
    if flags.seeds < 1:
        raise ValueError(f"--seeds {flags.seeds}: at least one seed is needed")
    out = Path(flags.out or f"runs/{flags.section}-{flags.preset}")
    summary = reproduce(flags.section, flags.preset, flags.seeds, out, flags.device, flags.workers)
    cost = f"{summary['seconds']:.0f} s of {summary['device']}"
    print(f"\n{flags.section}, preset {flags.preset}, {flags.seeds} seed(s), {cost}")
    for line in summary["criteria"]:
        value = "none" if line["value"] is None else f"{line['value']:.3f}"
        print(f"  {'passed' if line['passed'] else 'FAILED'}  {line['name']}: {value} (threshold {line['threshold']})")
    print(f"left in {out}: " + ", ".join(sorted(path.name for path in out.iterdir())))
    return 0
