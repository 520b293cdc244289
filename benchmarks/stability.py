"""Which small model learns reliably? Digit addition over seeds: family, schedule, optimizer, shape of the attention.

    python benchmarks/stability.py OUT.jsonl             all arms, one line of JSON per run; goes on where it stopped
    python benchmarks/stability.py OUT.jsonl --table     only write the table of what OUT holds
    python benchmarks/stability.py OUT.jsonl qwen3       only arms whose name holds a word
    python benchmarks/stability.py OUT.jsonl --quick     one run of two steps, to see that it runs

Every run trains a new model of width 96 with 3 layers on worked sums of one and two digits, 32 rows a step, 900 steps,
and is tested greedily on all 81 sums of one digit and on 200 held-out ones of two: often late in training, so that a
learning rate under which accuracy swings is seen to swing. A run takes one to two minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from timing import write_results

from nanoreason.environment import evaluate
from nanoreason.learn import make_optimizer, update
from nanoreason.model import Transformer, small_config
from nanoreason.rollout import demonstration, seed_of
from nanoreason.run import table
from nanoreason.tasks.addition import Addition, tokenizer

STEPS, WARMUP, ROWS = 900, 20, 32
TESTED = (300, 500, 600, 650, 700, 750, 800, 850, 900)  # steps after which accuracy is measured
LATE = 600  # from this step on a swing counts: what a run has reached it should keep


@dataclass(frozen=True)
class Arm:
    family: str = "qwen3"  # llama, or qwen3 (with RMSNorm on each head's q and k)
    schedule: str = "linear"  # constant, or linear (decay to zero)
    optimizer: str = "adamw"
    lr: float = 2e-3
    heads: int = 4
    kv_heads: int = 4

    def __str__(self) -> str:
        shape = f"{self.heads} heads, {self.kv_heads} kv"
        return f"{self.family}, {self.schedule}, {self.optimizer} {self.lr:g}, {shape}"


ARMS: list[tuple[Arm, int]] = [  # and the number of seeds
    *[(Arm(family, schedule), 4) for family in ("llama", "qwen3") for schedule in ("constant", "linear")],
    (Arm(optimizer="muon", lr=5e-3, kv_heads=2), 4),
    (Arm(optimizer="muon", lr=5e-3), 2),
    (Arm(heads=4, kv_heads=2), 4),
    (Arm(heads=4, kv_heads=1), 2),
    (Arm(heads=2, kv_heads=2), 2),
]


def run(arm: Arm, seed: int, steps: int = STEPS, tested: tuple[int, ...] = TESTED, problems: int = 200) -> dict:
    """One line of results. `tokens_per_second` is that of the updates alone, in this process's CPU time."""
    words, task = tokenizer(), Addition((1, 2))
    shape = dict(kv_heads=arm.kv_heads, model_type=arm.family)
    model = Transformer(small_config(96, 3, arm.heads, words.vocab_size, 128, **shape), seed_of("stability", seed))
    optimizer = make_optimizer(model, arm.optimizer)
    accuracy, seconds, tokens = {}, 0.0, 0
    for step in range(steps):
        rate = arm.lr * min(1.0, (step + 1) / WARMUP) * (1 - step / steps if arm.schedule == "linear" else 1.0)
        indices = range(step * ROWS, (step + 1) * ROWS)
        rows = [demonstration(words, task.problem(f"stability-{seed}", i)) for i in indices]
        started = time.process_time()
        update(model, optimizer, rows, lr=rate, micro_tokens=1024)
        seconds += time.process_time() - started
        tokens += sum(len(row.tokens) for row in rows)
        if step + 1 in tested:
            found = evaluate(task, model, words, problems)
            accuracy[step + 1] = [found["acc/1"], found["acc/2"]]
    return {**asdict(arm), "seed": seed, "accuracy": accuracy, "tokens_per_second": round(tokens / seconds)}


def tables(lines: list[dict], steps: int = STEPS) -> str:
    """One row per arm: accuracy on two digits at the end by seed, its mean and least, the least at LATE, the falls."""
    rows = []
    for arm in dict.fromkeys(Arm(**{key: line[key] for key in asdict(Arm())}) for line in lines):
        runs = [line for line in lines if all(line[key] == value for key, value in asdict(arm).items())]
        runs.sort(key=lambda line: line["seed"])
        end = [run["accuracy"][str(steps)][1] for run in runs]
        early = min(run["accuracy"][str(min(LATE, steps))][1] for run in runs)
        swing = 0.0
        for one in runs:  # the deepest fall below what was already reached
            late = [two for step, (_, two) in one["accuracy"].items() if int(step) >= LATE]
            swing = max([swing, *(max(late[: i + 1]) - value for i, value in enumerate(late))])
        speed = statistics.median(run["tokens_per_second"] for run in runs)
        ones = min(run["accuracy"][str(steps)][0] for run in runs)
        seeds = " ".join(f"{x:.2f}" for x in end)
        shares = [f"{x:.2f}" for x in (statistics.fmean(end), min(end), early, ones, swing)]
        rows.append([str(arm), seeds, *shares, f"{speed:,.0f}"])
    header = ["arm", "2 digits, by seed", "mean", "least", f"at {LATE}", "1 digit, least", "largest fall", "tokens/s"]
    return table(header, rows)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON lines, one per run; runs that it holds are not repeated")
    parser.add_argument("words", nargs="*", help="only arms whose name holds one of these (default: all)")
    parser.add_argument("--table", action="store_true", help="run nothing, only write down what was found")
    parser.add_argument("--quick", action="store_true", help="two steps of the first arm; nothing is written")
    flags = parser.parse_args(words)
    torch.set_num_threads(1)
    if flags.quick:
        print(tables([json.loads(json.dumps(run(ARMS[0][0], 0, steps=2, tested=(2,), problems=1)))], steps=2))
        return
    lines = [json.loads(line) for line in flags.out.read_text().splitlines()] if flags.out.exists() else []
    for seed in [] if flags.table else range(max(seeds for _, seeds in ARMS)):  # all arms of a seed before the next one
        for arm, seeds in ARMS:
            wanted = not flags.words or any(word in str(arm) for word in flags.words)
            if seed >= seeds or not wanted or any({**line, **asdict(arm), "seed": seed} == line for line in lines):
                continue
            lines.append(json.loads(json.dumps(run(arm, seed))))
            print(f"{arm}, seed {seed}: {lines[-1]['accuracy']}", flush=True)
            with flags.out.open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
    if flags.words:
        print(tables(lines))
    else:
        note = [
            f"Greedy accuracy on held-out sums after {STEPS} steps. At {LATE}: the least on two digits by then.",
            f"Fall: how far two digits fell below what they had reached, from step {LATE} on.",
        ]
        write_results("Stability on digit addition", [*note, "", *tables(lines).split("\n")], torch.device("cpu"))


if __name__ == "__main__":
    main()
