"""python train.py reproduce <section>: all arms and seeds of a section, its figure, and its claims as numbers.

    arms -> jobs in OUT/seed*/ARM, in parallel processes -> OUT/metrics.jsonl -> figure.png, summary.json

A section is a module `nanoreason.experiments.<section>` with

    PRESETS                    {preset: settings of the section}
    arms(preset, seed)         [Arm, ...]: what is run, and from which other arm each starts
    claims(preset)             [Claim, ...]: what must be seen
    panels(preset)             [Panel, ...]: the figure
    caption(preset)            its setting in a sentence or two
    extra(results, preset)     more numbers for summary.json as {name: ...}; may be missing
    shown(results, preset)     a text for the terminal, such as a response before and after; may be missing

A finished job is never run again, and a stopped one goes on from its checkpoint: the same command resumes everything.
`done.json` in its folder says by which settings and code it was finished; others are another job, and are refused.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import functools
import hashlib
import importlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated

import nanoreason
from nanoreason import console
from nanoreason.experiments.base import shared
from nanoreason.experiments.figure import draw
from nanoreason.experiments.results import Arm, Results, verdict
from nanoreason.run import (
    Count,
    Range,
    Rate,
    RunConfig,
    Threads,
    check,
    device_name,
    flatten,
    locked,
    pick_device,
    read_json,
    read_jsonl,
    replace_text,
    say,
    set_bar_position,
    speaking_as,
    write_json,
)

# Settings that say where and how fast a job runs, not what comes out (micro_tokens: but for rounding).
FREE = {"out", "device", "threads", "resume", "workers", "micro_tokens"}


@dataclass(frozen=True)
class Job:
    """An arm in one seed: `nanoreason.recipes.<recipe>.run(config)` in the folder config.out."""

    arm: str
    recipe: str
    config: RunConfig
    settings: dict  # those that count, as JSON; folders are named from OUT on
    hash: str  # of settings and code, and of the jobs that it starts from
    after: tuple[str, ...] = ()  # folders of the jobs that it starts from
    cost: float = 1.0


# --------------------------------------------------------------------------------------------- settings and code


@functools.cache
def code_hash() -> str:
    """Of all that can change a job's numbers: the package without experiments, what only looks, and the command line.

    Comments, docstrings and layout do not count: what is hashed is the syntax tree without them.
    """
    package, digest = Path(nanoreason.__file__).parent, hashlib.sha256()
    only_look = ("experiments", "play.py", "eval.py", "look.py", "plot.py", "behaviors.py", "compare.py",
                 "doctor.py", "doctor_rules.py", "curves.py", "notebook.py", "__main__.py")  # fmt: skip
    for path in sorted(package.rglob("*.py")):
        place = path.relative_to(package)
        if place.parts[0] not in only_look:
            digest.update(f"{place.as_posix()}\n{code_of(path.read_text(encoding='utf-8'))}\n".encode())
    return digest.hexdigest()[:16]


def code_of(source: str) -> str:
    """Source text without comments, docstrings and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body[0] = ast.Pass()
    return ast.unparse(tree)


def counted(config: RunConfig, out: Path) -> dict:
    """The settings that count, as JSON; folders are named from `out` on, the same on every machine."""
    settings = {flag: value for flag, value in flatten(config).items() if flag not in FREE}
    for flag, value in settings.items():
        if isinstance(value, str) and Path(value).is_relative_to(out):
            settings[flag] = Path(value).relative_to(out).as_posix()
    return settings


def with_own_base(arms: list[Arm], preset: str, seed: int) -> list[Arm]:
    """The arms of a section with the base that they share trained instead of shipped; ValueError if they share none."""
    shipped, own = shared(preset, seed), shared(preset, seed, retrain=True)
    if shipped not in arms and own not in arms:
        raise ValueError("--retrain-base: this section and preset start from no shipped base")
    return [own if arm == shipped else arm for arm in arms]


def jobs_of(arms: list[Arm], seed: int, out: Path, device: str = "auto", threads: int = 1) -> list[Job]:
    """The jobs of one seed, each after those it starts from; ValueError if an arm starts from none of them."""
    jobs: dict[str, Job] = {}
    waiting = {arm.name: arm for arm in arms}
    while waiting:
        ready = [arm for arm in waiting.values() if all(name in jobs for name in arm.needs())]
        if not ready:
            raise ValueError(f"arms that start from no arm, or from one another: {', '.join(waiting)}")
        for arm in ready:
            folders = {setting: str(out / f"seed{seed}" / place) for setting, place in arm.sources().items()}
            config = dataclasses.replace(
                arm.settings,
                seed=seed,
                out=str(out / f"seed{seed}" / arm.name),
                device=device,
                threads=threads,
                resume=True,
                **folders,
            )
            settings = {"recipe": arm.recipe} | counted(config, out)
            needs = dict.fromkeys(arm.needs())
            hashed = json.dumps([settings, code_hash(), [jobs[name].hash for name in needs]], sort_keys=True)
            jobs[arm.name] = Job(
                arm.name, arm.recipe, config, settings, hashlib.sha256(hashed.encode()).hexdigest()[:16],
                tuple(jobs[name].config.out for name in needs),
                arm.cost or float(getattr(arm.settings, "steps", 1)),
            )  # fmt: skip
            del waiting[arm.name]
    return list(jobs.values())


def is_done(job: Job) -> bool:
    """Whether the folder holds this job, finished; ValueError if it holds one of other settings or other code."""
    path = Path(job.config.out) / "done.json"
    if not path.exists():
        return False
    done = read_json(path)
    if done.get("hash") == job.hash:
        return True
    before = done.get("settings")
    check(before, dict, f"{path}: settings")
    changed = [key for key in job.settings if job.settings[key] != before.get(key)]
    if changed:
        why = f"with {changed[0]}={before.get(changed[0])!r}, not {job.settings[changed[0]]!r}"
    elif done.get("code") != code_hash():
        why = f"by other code (hash {done.get('code')}, now {code_hash()})"
    else:
        why = "from another base"
    raise ValueError(f"{path.parent} was finished {why}: choose another --out, or delete that folder to run it again")


# ------------------------------------------------------------------------------------------------------- running


def run_job(job: Job) -> None:
    """Run or resume one job; `done.json` in its folder says how long it took and that nothing is left to do."""
    import torch

    folder = Path(job.config.out)
    if is_done(job):
        return
    spent = seconds_in(folder / "spent.json") if (folder / "spent.json").exists() else 0.0
    torch.set_num_threads(job.config.threads)
    started = time.perf_counter()
    try:
        with speaking_as(f"{job.arm}, seed {job.config.seed}"):
            say("begins" if spent == 0 else f"goes on after {spent:.0f} s")
            importlib.import_module(f"nanoreason.recipes.{job.recipe}").run(job.config)
    except BaseException:
        if folder.exists():
            write_json(folder / "spent.json", {"seconds": spent + time.perf_counter() - started})
        raise
    seconds = round(spent + time.perf_counter() - started, 1)
    done = {"arm": job.arm, "seconds": seconds, "hash": job.hash, "code": code_hash(), "settings": job.settings}
    write_json(folder / "done.json", done)


def seconds_in(path: Path) -> float:
    """How long a job ran, as its file says."""
    seconds = read_json(path).get("seconds")
    check(seconds, Rate, f"{path}: seconds")
    return seconds


def die_with_parent() -> None:
    """A worker whose parent was killed must not go on writing into a folder that the next run resumes."""
    multiprocessing.parent_process().join()
    os._exit(1)


@contextlib.contextmanager
def no_interrupts() -> Iterator[None]:
    """Processes that are started in this do not get Ctrl-C (but on Windows): they inherit that it is blocked."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_job(*_) -> None:
    """Told to stop, and not to be told again while it does."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def run_in_worker(run, job: Job) -> None:
    """SIGTERM ends a job as Ctrl-C does in one process, and the worker with it: it would take the next one."""
    signal.signal(signal.SIGTERM, end_job)
    try:
        run(job)
    except KeyboardInterrupt:
        os._exit(130)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def worker_setup(counter, lock) -> None:
    """Each process draws its progress bar on a line of its own, and ends with its parent.

    A terminal sends Ctrl-C to all processes, but only the parent acts on it, and ends its workers by SIGTERM: one that
    still imports just ends, one that has a job puts down how long it ran.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    console.install()
    threading.Thread(target=die_with_parent, daemon=True).start()
    with counter.get_lock():
        position = counter.value
        counter.value += 1
    set_bar_position(position, lock)


class ThisProcess(Executor):
    """Runs a job when it is submitted, here: what it raises is raised here."""

    def submit(self, function, /, *arguments) -> Future:
        future: Future = Future()
        future.set_result(function(*arguments))
        return future


def cores() -> int:
    """Those that this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def remaining(jobs: list[Job]) -> dict[str, float]:
    """{folder: cost of the longest chain of jobs that begins with this one}; `jobs` are in an order of dependence."""
    longest: dict[str, float] = {}
    for job in reversed(jobs):
        behind = [longest[other.config.out] for other in jobs if job.config.out in other.after]
        longest[job.config.out] = job.cost + max(behind, default=0.0)
    return longest


def run_jobs(jobs: list[Job], workers: int, pool: Executor | None = None, run=run_job) -> None:
    """Run all jobs. One starts as soon as those it needs are done and a worker is free; first the one on which the
    longest chain of work hangs, so that the workers run dry as late as possible. An exception of a job ends all,
    after those that are running: they can be resumed, but what is finished need not be.
    """
    workers = min(workers, len(jobs))
    if pool is None and workers > 1:
        context = multiprocessing.get_context("spawn")
        counter, lock = context.Value("i", 0), context.RLock()
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=worker_setup, initargs=(counter, lock))
        run = functools.partial(run_in_worker, run)
    pool = pool or ThisProcess()
    others = set(multiprocessing.active_children())

    def end_workers() -> None:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()

    longest, done = remaining(jobs), set()
    waiting, running = list(jobs), {}
    try:
        while waiting or running:
            ready = sorted(
                (job for job in waiting if done.issuperset(job.after)), key=lambda job: -longest[job.config.out]
            )
            for job in ready[: workers - len(running)]:
                waiting.remove(job)
                with no_interrupts() if workers > 1 else contextlib.nullcontext():  # it may start a process
                    running[pool.submit(run, job)] = job
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                future.result()
                job = running.pop(future)
                done.add(job.config.out)
                say(f"{len(done)} of {len(jobs)} jobs done: {job.arm}, seed {job.config.seed}")
    except BrokenProcessPool:
        raise ValueError(
            "a worker process was killed, perhaps for want of memory: the same command goes on, --workers 1 needs less"
        ) from None
    except KeyboardInterrupt:
        end_workers()
        raise
    finally:
        try:
            pool.shutdown(cancel_futures=True)
        except KeyboardInterrupt:  # while what runs is waited for
            end_workers()
            raise


# ---------------------------------------------------------------------------------------------- what it came to


def collect(jobs: list[Job], name: str) -> list[dict]:
    """The lines of one file of all jobs, each with its arm and seed."""
    return [
        {"arm": job.arm, "seed": job.config.seed, **line}
        for job in jobs
        if (Path(job.config.out) / name).exists()
        for line in read_jsonl(Path(job.config.out) / name)
    ]


def followed(jobs: list[Job]) -> list[dict]:
    """The responses to problems that every test of an arm poses again, which a figure may show. All other samples stay
    in the folders of the arms, where `python -m nanoreason look` finds them: there are tens of megabytes of them."""
    return [line for line in collect(jobs, "samples.jsonl") if line.get("split") == "test"]


def section_of(name: str, preset: str) -> ModuleType:
    section = importlib.import_module(f"nanoreason.experiments.{name}")
    if preset not in section.PRESETS:
        raise ValueError(f"{name} has no preset {preset!r}: use one of {', '.join(section.PRESETS)}")
    return section


def check_folder(out: Path, section: str, preset: str) -> None:
    """ValueError if a folder holds another section or preset."""
    if (out / "config.json").exists():
        before = read_json(out / "config.json")
        if (before.get("section"), before.get("preset")) != (section, preset):
            is_section = "section" in before
            held = f"{before['section']} --preset {before.get('preset')}" if is_section else "a run, and no section"
            raise ValueError(f"{out} holds {held}: choose another --out")


def summarise(section: str, preset: str, out: Path, device: str = "", seconds: float | None = None) -> dict:
    """Judge the claims by OUT/metrics.jsonl and draw the figure; returns what stands in OUT/summary.json.

    On what and for how long the runs took is kept from an older summary.json if it is not given.
    """
    module = section_of(section, preset)
    check_folder(out, section, preset)
    if not (out / "metrics.jsonl").exists():
        raise ValueError(f"no metrics.jsonl in {out}: there is nothing to summarise")
    lines = read_jsonl(out / "metrics.jsonl")
    for line in lines:
        for name, kind in (("arm", str), ("seed", int), ("step", int)):
            check(line.get(name), kind, f"{out / 'metrics.jsonl'}: {name}")
    samples = read_jsonl(out / "samples.jsonl") if (out / "samples.jsonl").exists() else []
    results = Results(lines, samples)
    before = read_json(out / "summary.json") if (out / "summary.json").exists() else {}
    summary = {
        "section": section,
        "preset": preset,
        "seeds": len(results.seeds),
        "device": device or before.get("device"),
        "seconds": before.get("seconds") if seconds is None else round(seconds, 1),  # of all jobs, one after another
        "claims": [claim.judge(results) for claim in module.claims(preset)],
        "numbers": module.extra(results, preset) if hasattr(module, "extra") else {},
    } | ({"shown": module.shown(results, preset)} if hasattr(module, "shown") else {})
    write_json(out / "summary.json", summary)
    try:
        draw(module.panels(preset), results, module.caption(preset), out / "figure.png")
    except ModuleNotFoundError as error:
        print(f"no figure: {error.name} is not installed (pip install 'nanoreason[figures]')", file=sys.stderr)
    return summary


def reproduce(
    section: str, preset: str, seeds: int, out: Path, device: str = "auto", workers: int = 0, threads: int = 1,
    retrain_base: bool = False,
) -> dict:  # fmt: skip
    """Run everything that is not done yet; returns what stands in OUT/summary.json."""
    module = section_of(section, preset)
    where = pick_device(device)
    # One process per core on the CPU, where a tiny model uses one; a GPU is one queue.
    workers = workers or (cores() if where.type == "cpu" else 1)
    check_folder(out, section, preset)
    if (out / "metrics.jsonl").exists() and not (out / "config.json").exists():
        raise ValueError(f"{out} holds metrics.jsonl but no config.json: of what is lost, choose another --out")
    with locked(out):
        jobs = []
        for seed in range(seeds):
            arms = module.arms(preset, seed)
            if retrain_base:
                arms = with_own_base(arms, preset, seed)
            jobs += jobs_of(arms, seed, out, device, threads)
        for job in jobs:
            is_done(job)  # a folder that holds something else is told before anything is run
        configs = {f"seed{job.config.seed}/{job.arm}": job.settings for job in jobs}
        write_json(out / "config.json", {"section": section, "preset": preset, "seeds": seeds, "jobs": configs})
        run_jobs(jobs, workers)
        lines = {"metrics.jsonl": collect(jobs, "metrics.jsonl"), "samples.jsonl": followed(jobs)}
        for name, found in lines.items():
            replace_text(out / name, "".join(json.dumps(line) + "\n" for line in found))
        seconds = sum(seconds_in(Path(job.config.out) / "done.json") for job in jobs)
        return summarise(section, preset, out, device_name(where), seconds)


def main(argv: list[str], sections: dict[str, str]) -> int:
    parser = argparse.ArgumentParser(prog="train.py reproduce", description=reproduce.__doc__, allow_abbrev=False)
    parser.add_argument("section", choices=list(sections))
    parser.add_argument("--preset", default="cpu", help="tiny: seconds; cpu: minutes on two cores; gpu (default: cpu)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 .. SEEDS-1 (default: 3)")
    parser.add_argument("--out", default=None, help="folder of everything (default: runs/SECTION-PRESET)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: one per core on cpu, one on a GPU")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each process (default: 1)")
    retrain_help = "train the base that comes with the repository anew"
    parser.add_argument("--retrain-base", action="store_true", help=retrain_help)
    summarise_help = "run nothing: make summary.json and figure.png of FOLDER anew from its metrics.jsonl"
    parser.add_argument("--summarise", default=None, metavar="FOLDER", help=summarise_help)
    flags = parser.parse_args(argv)
    check(flags.threads, Threads, "--threads")
    check(flags.workers, Count, "--workers")
    check(flags.seeds, Annotated[int, Range(1, 10_000)], "--seeds")
    for flag in ("out", "summarise"):
        if getattr(flags, flag) == "":
            raise ValueError(f"--{flag} is empty: it names a folder")
    out = Path(flags.summarise or flags.out or f"runs/{flags.section}-{flags.preset}")
    if flags.summarise:
        summary = summarise(flags.section, flags.preset, out)
    else:
        summary = reproduce(
            flags.section, flags.preset, flags.seeds, out, flags.device, flags.workers, flags.threads,
            flags.retrain_base,
        )  # fmt: skip
    cost = "" if summary["seconds"] is None else f", {summary['seconds']:.0f} s of {summary['device']}"
    if summary.get("shown"):
        print(f"\n{summary['shown']}")
    print(f"\n{flags.section}, preset {flags.preset}, {summary['seeds']} seed(s){cost}")
    for line in summary["claims"]:
        print("  " + verdict(line))
    held = sum(line["passed"] for line in summary["claims"])
    print(f"{held} of {len(summary['claims'])} claims hold")
    print(f"left in {out}: " + ", ".join(sorted(path.name for path in out.iterdir() if path.name != ".lock")))
    return 0
