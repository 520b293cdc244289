"""The files that one default GRPO step enters, in the order in which a debugger meets them.

python benchmarks/step_files.py

A step is one rollout and one update: problems, samples, rewards, advantages, the optimizer. Loading, logging, saving
and testing are not part of it. Every Python frame whose code is in nanoreason/ counts, once per file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from nanoreason.checkpoint import load_checkpoint
from nanoreason.learn import make_optimizer
from nanoreason.recipes import grpo, grpo_minimal

ROOT = Path(__file__).resolve().parent.parent
# What every part of a step stands on: the vocabulary, settings and seeds, text <-> tokens, the formula of AdamW, and
# the helpers of the task
GROUND = ("rollout.py", "run.py", "processes.py", "sharding.py", "tokenizer.py", "optim.py", "arithmetic.py",
          "prompts.py")  # fmt: skip


def entered(function: Callable[[], object]) -> list[str]:
    """The files of nanoreason/ in which a function runs while `function` does, in the order of their first frame."""
    package, found = str(ROOT / "nanoreason") + "/", {}

    def profile(frame, event, argument) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(package):
            found.setdefault(name.removeprefix(package))

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(before)
    return list(found)


def files_of_a_step(recipe: str) -> list[str]:
    """Of `grpo_minimal` or `grpo` with default settings, but for smaller sizes."""
    base = str(ROOT / "data" / "checkpoints" / "star-base")
    policy, tokenizer = load_checkpoint(base)
    optimizer = make_optimizer(policy)
    minimal = replace(grpo_minimal.PRESETS["tiny"], base=base)
    if recipe == "grpo_minimal":
        return entered(lambda: grpo_minimal.grpo_step(minimal, 0, policy, tokenizer, optimizer))
    config = replace(grpo.PRESETS["cpu"], base=base, task=minimal.task, prompts=4, group_size=4)

    def step() -> None:
        groups, _ = grpo.collect(config, 1, policy, tokenizer)
        grpo.compute_advantages(config, policy, None, groups)
        grpo.update_policy(config, 1, policy, optimizer, groups)

    return entered(step)


def main() -> None:
    for recipe in ("grpo_minimal", "grpo"):
        found = files_of_a_step(recipe)
        floors = [name for name in found if name not in GROUND], [name for name in found if name in GROUND]
        print(f"{recipe}: {len(floors[0])} files: {', '.join(floors[0])}")
        print(f"{' ' * len(recipe)}  and the ground floor: {', '.join(floors[1])}")


if __name__ == "__main__":
    main()
