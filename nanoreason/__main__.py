"""The command line: python train.py <recipe> [flags] · python train.py reproduce <section> [flags].

Recipes train one policy; `reproduce` runs all arms and seeds of a section, draws its figure and judges its claims;
`play` and `eval` (python -m nanoreason play|eval CHECKPOINT) try one policy; `look`, `plot`, `report` and `behaviors`
show what runs left, `doctor` says why one does not learn; `compare` shows what training changed in a policy; `course`
makes and grades exercises.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import signal
import sys
from collections.abc import Iterator
from types import ModuleType

from nanoreason.console import steady

# Before torch loads: idle OpenMP threads that spin cost other processes on the machine more than they gain this one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

RECIPES = {
    "grpo_minimal": "GRPO on one screen: start reading here",
    "sft": "supervised fine-tuning or pretraining on a task's solutions or a file of demonstrations",
    "star": "STaR: sample, filter, rationalize, fine-tune; repeat",
    "grpo": "GRPO and its family: reinforcement learning from verified answers",
    "select": "choose demonstrations: rejection sampling of a teacher, or few good ones of a pool as in s1",
    "budget": "budget forcing: how a model that thinks in tags scales with forced and asked-for lengths",
    "parallel": "how a model scales with the threads that it spawns, or as one thread",
    "transfer_test": "what training on one small task changed in all others, at every kept checkpoint",
    "search_test": "how a searcher searches on Countdown, beside the symbolic strategies",
}
SECTIONS = {
    "base": "pretraining of the base that searches by attempts: which skill arrives when, on Countdown",
    "star": "STaR with and without rationalization against direct answers, on digit addition",
    "r1": "R1-Zero, R1's pipeline, distillation and five losses, on Countdown by attempts",
    "longcot": "long against short chains of thought, rewards, windows, hacking, on Countdown by attempts",
    "behaviors": "the four cognitive behaviours: bases with and without, priming, RL, on Countdown by attempts",
    "zoo": "one recipe of RL on bases that differ, difficulty, format rewards, short SFT, on Countdown by attempts",
    "l1": "a length in the prompt: LCPO-Exact and LCPO-Max, on Countdown by attempts",
    "s1": "few chosen samples, budget forcing and its rivals, on Countdown by attempts",
    "apr": "threads that spawn and join against one thread, on Countdown by attempts",
    "transfer": "training on one task by imitation or reinforcement: what is kept of eleven small tasks",
    "sos": "Stream of Search: searches against optimal paths, and self-improvement, on Countdown",
}
VIEWS = ("play", "eval", "look", "plot", "report", "doctor", "behaviors", "compare", "course")  # nanoreason/<name>.py

USAGE = """usage: python train.py <recipe> [--preset NAME] [--flag value ...]
       python train.py <recipe> --help
       python train.py grpo|sft [flags] --plan [3090|4090|a100|h100]      what it will need, before it begins
       python train.py reproduce <section> [--preset tiny|cpu|gpu] [--seeds N] [--out DIR]
       python train.py reproduce <section> [--preset NAME] --summarise DIR
       python -m nanoreason play CHECKPOINT [--problem TEXT] [--budget 96] [--wait 2]
       python -m nanoreason eval CHECKPOINT [--samples 8] [--json]
       python -m nanoreason look RUN [--step N] [--only right|wrong|truncated] [--count 8]
       python -m nanoreason plot RUN [RUN ...] [--metric reward,acc/*] [--out FILE.png] [--csv FILE] [--list]
       python -m nanoreason report RUN [RUN2] [--out FILE.html] [--samples 5000]
       python -m nanoreason doctor RUN [--loss]
       python -m nanoreason behaviors RUN|FILE.jsonl [--csv FILE]
       python -m nanoreason compare BASE POLICY [--task ...] [--others copy,reverse] [--picture FILE.png]
       python -m nanoreason course make|grade|bundle ...
       python -m nanoreason play|eval|look|plot|report|doctor|behaviors|compare|course --help

recipes
{recipes}

sections to reproduce
{sections}"""


def usage() -> str:
    def lines(entries: dict[str, str]) -> str:
        return "\n".join(f"  {name:<13} {text}" for name, text in entries.items())

    return USAGE.format(recipes=lines(RECIPES), sections=lines(SECTIONS))


def main(argv: list[str]) -> int:
    """Run a command; bad input and interruptions end in one clear line on stderr and exit code 2 or 130."""
    with steady() as out:
        code = command(argv)
    lost = out.error is not None and not isinstance(out.error, BrokenPipeError)
    # What a run leaves is in its folder; of the others nothing is left but what they print.
    return 2 if lost and code == 0 and not (argv and argv[0] in [*RECIPES, "reproduce"]) else code


def command(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    name, flags = argv[0], argv[1:]
    try:
        if name not in RECIPES and os.environ.get("WORLD_SIZE", "1") != "1":
            raise ValueError(f"{name} does not run under torchrun: recipes do, reproduce has --workers")
        if name == "reproduce":
            return loaded("nanoreason.experiments.reproduce").main(flags, SECTIONS)
        if name in VIEWS:
            return loaded(f"nanoreason.{name}").main(flags)
        if name not in RECIPES:
            names = f"{', '.join(RECIPES)}, or reproduce, {', '.join(VIEWS)}"
            print(f"train.py: {name!r} is no recipe: use one of {names}", file=sys.stderr)
            return 2
        return train(name, flags)
    except KeyboardInterrupt:
        print(
            "\nstopped; the run is kept: the same command with --resume goes on from its last checkpoint",
            file=sys.stderr,
        )
        return 130
    except (ValueError, OSError, FloatingPointError, MemoryError, RuntimeError) as error:
        if (said := in_one_line(error)) is None:
            raise  # an error of ours: the traceback is what helps
        rank = os.environ.get("RANK", "0")  # of several processes each says what is wrong, as only one may know of it
        print(f"train.py: {f'process {rank}: ' if rank != '0' else ''}{said}", file=sys.stderr)
        return 2


def loaded(name: str) -> ModuleType:
    """The module, imported so that Ctrl-C ends it: it takes seconds, and libraries swallow what is raised in theirs."""
    with leaving_at_once():
        return importlib.import_module(name)


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """Nothing has begun, so there is nothing to put down."""

    def leave(*_) -> None:
        os.write(2, b"stopped before it began\n")
        os._exit(130)

    try:
        is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        before = signal.signal(signal.SIGINT, leave) if is_default else None
    except ValueError:  # signals belong to the main thread
        before = None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


def in_one_line(error: Exception) -> str | None:
    """What a person can do something about, in one line; None for an error in the code."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{os.fspath(error.filename)}: " if error.filename is not None else ""
        return f"{where}{error.strerror}"
    if isinstance(error, (MemoryError, RuntimeError)):
        is_memory = isinstance(error, MemoryError) or re.search(r"allocate memory|out of memory", str(error))
        return "there is not enough memory for so large a model or so many rows and tokens" if is_memory else None
    return " ".join(str(error).split())


def asked_for_a_plan(flags: list[str]) -> tuple[str | None, list[str]]:
    """--plan or --plan CARD, and the other flags.

    >>> asked_for_a_plan(["--lr", "1", "--plan", "a100"]), asked_for_a_plan(["--plan", "--lr", "1"])
    (('a100', ['--lr', '1']), ('', ['--lr', '1']))
    >>> asked_for_a_plan(["--lr", "1"])
    (None, ['--lr', '1'])
    """
    if "--plan" not in flags:
        return None, flags
    i = flags.index("--plan")
    has_card = i + 1 < len(flags) and not flags[i + 1].startswith("-")
    return flags[i + 1] if has_card else "", flags[:i] + flags[i + 1 + has_card :]


def train(name: str, flags: list[str]) -> int:
    recipe = loaded(f"nanoreason.recipes.{name}")
    import torch

    from nanoreason import processes
    from nanoreason.run import check_out, parse_config, pick_device, say

    card, flags = asked_for_a_plan(flags)
    config = parse_config(recipe.PRESETS, flags, prog=f"train.py {name}")
    if card is not None:
        if not hasattr(recipe, "workload"):
            raise ValueError(f"--plan: of {name} nothing is predicted, of grpo and sft it is")
        torch.set_num_threads(config.threads)
        loaded("nanoreason.plan").report(recipe.workload(config), pick_device(config.device), card)
        return 0
    check_out(config)
    torch.set_num_threads(config.threads)
    processes.join()
    recipe.run(config)
    say(f"\nleft in {config.out}: " + ", ".join(sorted(name for name in os.listdir(config.out) if name[0] != ".")))
    processes.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
