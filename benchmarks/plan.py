"""What `--plan` predicts beside what a run needs: peak memory and processor seconds of a GRPO step, at three sizes.

    python benchmarks/plan.py                  all sizes and settings; a table for RESULTS.md
    python benchmarks/plan.py --quick          one tiny size, to see that it runs; nothing is written

Models have random weights, so that responses run to their budget. Each run is a process of its own: its memory is the
peak of its resident set above that of a tiny run before. glibc keeps much of what is freed; "freed returned" is with
MALLOC_MMAP_THRESHOLD_=65536, under which the resident set is what tensors need. Its time is the processor time of the
second of two steps, without the checkpoint at its end.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from timing import write_results

from nanoreason import plan_memory, plan_time
from nanoreason.checkpoint import load_checkpoint, save_checkpoint
from nanoreason.memory import prepare
from nanoreason.model import ModelConfig, Transformer
from nanoreason.recipes import grpo
from nanoreason.rollout import seed_of
from nanoreason.run import Run, parse_config, pick_device
from nanoreason.tasks import Addition
from nanoreason.tokenizer import word_tokenizer

# name: vocabulary, width, inner width, blocks, heads, kv heads of 64 dimensions; the last one is SmolLM2-135M's
SIZES = {
    "25 M": (16_384, 384, 1024, 12, 6, 2),
    "52 M": (32_768, 512, 1408, 12, 8, 4),
    "135 M": (49_152, 576, 1536, 30, 9, 3),
}
QUICK = {"tiny": (64, 64, 128, 2, 2, 1)}
SETTINGS = {
    "lora 8, recompute": "--memory.lora 8 --memory.recompute",
    "recompute": "--memory.recompute",
    "moments bfloat16": "--memory.moments bfloat16",
    "sample bfloat16": "--memory.sample-dtype bfloat16",
}
STEP = (
    "--steps 2 --prompts 2 --group-size 4 --max-new-tokens 32 --micro-tokens 128 --task.digits 2 --preflight 0 "
    "--eval-problems 0 --save-every 100 --algorithm.entropy-coef 0.001"
)  # else equal rewards have no backward pass


def make(folder: Path, size: tuple[int, ...]) -> None:
    """A folder with random weights; its tokenizer has as many words as the head, so that no response ends by itself."""
    V, D, inner, layers, heads, kv_heads = size
    own = sorted(Addition().tokenizer().backend.get_vocab().items(), key=lambda item: item[1])
    words = [word for word, number in own if number]
    words += [f"w{i}" for i in range(V - len(words) - 1)]
    shape = ModelConfig(vocab_size=V, hidden_size=D, intermediate_size=inner, num_hidden_layers=layers,
                        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=64,
                        max_position_embeddings=2048)  # fmt: skip
    save_checkpoint(folder, Transformer(shape), word_tokenizer(words))


def trials(size: tuple[int, ...]) -> list[tuple[str, str, bool]]:
    """(name, flags, whether freed memory goes back at once): the last at the smallest size, settings at the largest."""
    smallest, largest = list(SIZES.values())[0], list(SIZES.values())[-1]
    some = [(name, flags, False) for name, flags in SETTINGS.items() if size == largest]
    return [("full", "", False), *some, *[("full, freed returned", "", True)] * (size == smallest)]


def settings(folder: Path, flags: str, out: Path) -> grpo.GrpoConfig:
    return parse_config(grpo.PRESETS, [*STEP.split(), *flags.split(), "--base", str(folder), "--out", str(out)], "plan")


def run_one(config: grpo.GrpoConfig, warm: bool = True) -> dict[str, float]:
    """Peak bytes above those of a tiny run before, and processor seconds of the second step without its save."""
    torch.set_num_threads(1)
    if warm:  # what is imported on first use, and what torch keeps
        with tempfile.TemporaryDirectory() as place:
            make(Path(place, "base"), QUICK["tiny"])
            run_one(settings(Path(place, "base"), "", Path(place, "out")), warm=False)
    before = resident()
    policy, tokenizer = load_checkpoint(config.base, pick_device(config.device))
    prepare(policy, config.memory, seed_of(config.seed, "adapters"))
    run, ends, saving, save = Run(config), [], [], grpo.save_policy

    def timed_save(*arguments, **named) -> None:
        started = time.process_time()
        save(*arguments, **named)
        saving.append(time.process_time() - started)

    grpo.save_policy = timed_save
    for _ in grpo.train(config, policy, policy, tokenizer, run, {}):
        ends.append(time.process_time())
    grpo.save_policy = save
    run.close()
    return {"bytes": resident() - before, "seconds": ends[1] - ends[0] - sum(saving)}


def resident() -> int:
    """The largest resident set of this process so far, in bytes. Linux tells that of the program itself; getrusage, for
    others, may count what the process was before it became this program."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def compared(folder: Path, flags: str, out: Path, returns: bool) -> dict[str, tuple[float, float]]:
    """{bytes, seconds: (predicted, measured)}. `returns`: what is freed goes back to the system at once."""
    config = settings(folder, flags, out)
    environment = os.environ | ({"MALLOC_MMAP_THRESHOLD_": "65536"} if returns else {})
    command = [sys.executable, __file__, "--one", str(folder), f"--flags={flags}", "--out", str(out)]
    work, device = grpo.workload(config), pick_device("cpu")
    seconds = sum(plan_time.seconds_of(work, plan_time.measured(work, device)).values())
    said = (
        subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        .stdout.strip()
        .split("\n")[-1]
    )
    found = json.loads(said)
    return {"bytes": (plan_memory.peak(work), found["bytes"]), "seconds": (seconds, found["seconds"])}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--sizes", default="", help="only these, as 25 M,52 M; nothing is written")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    parser.add_argument("--flags", default="", help=argparse.SUPPRESS)
    parser.add_argument("--out", default="", help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    if asked.one:
        print(json.dumps(run_one(settings(Path(asked.one), asked.flags, Path(asked.out)))))
        return
    torch.set_num_threads(1)
    sizes = QUICK if asked.quick else {n: s for n, s in SIZES.items() if not asked.sizes or n in asked.sizes.split(",")}
    lines = [f"{'weights':8} {'settings':22} {'GB predicted':>12} {'measured':>9} {'p/m':>6}"
             f" {'s predicted':>12} {'measured':>9} {'p/m':>6}"]  # fmt: skip
    print(lines[0])
    with tempfile.TemporaryDirectory() as place:
        for name, size in sizes.items():
            make(Path(place, "base"), size)
            for i, (label, flags, returns) in enumerate(trials(size)[: 1 if asked.quick else None]):
                found = compared(Path(place, "base"), flags, Path(place, f"{name} {i}"), returns)
                (more, there), (longer, took) = found["bytes"], found["seconds"]
                there = max(there, 1)  # a tiny one takes no more than the imports did
                lines.append(f"{name:8} {label:22} {more / 1e9:12.2f} {there / 1e9:9.2f} {more / there:6.2f}"
                             f" {longer:12.2f} {took:9.2f} {longer / took:6.2f}")  # fmt: skip
                print(lines[-1], flush=True)
    if not asked.quick and not asked.sizes:
        write_results("Plan", lines, torch.device("cpu"))


if __name__ == "__main__":
    main(sys.argv[1:])
