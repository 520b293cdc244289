"""Tokens per second of the learner beside the matrix-product peak; what cuts, optimizers and start-up cost.

    python benchmarks/learner.py                    all parts
    python benchmarks/learner.py update cuts        only some: update, cuts, optimizers, start
    python benchmarks/learner.py --quick            the smallest shape once, to see that it runs; nothing is written

Contestants take turns in one process (see timing.py). The floor of an update is its matrix products alone, forward and
backward, of the real tokens (no padding, no head where no loss is taken), at the product speed of the moment.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from timing import interleaved, write_results

from nanoreason import learn
from nanoreason.model import ModelConfig, Transformer, small_config
from nanoreason.optim import AdamW, Muon
from nanoreason.rollout import Problem, Rollout
from nanoreason.run import pick_device


@dataclass(frozen=True)
class Work:
    """What is measured. Micro-batches are compared on the second shape; optimizers on all but the first."""

    shapes: dict[str, ModelConfig]
    lengths: dict[str, list[int]]  # tokens of the responses of a step; prompts have 16
    micro_tokens: tuple[int, ...]
    repeat: int


FULL = Work(
    {
        "width 96, 4 heads, 4 kv": small_config(96, 3, 4, 64, 512, model_type="qwen3"),
        "width 96, 4 heads, 2 kv": small_config(96, 3, 4, 64, 512, model_type="qwen3", kv_heads=2),
        "width 256, 4 heads, 2 kv": small_config(256, 4, 4, 64, 512, model_type="qwen3", kv_heads=2),
    },
    {
        "32 sums": [12 + 13 * (i % 5) for i in range(32)],
        "256 rollouts": [min(240, 8 + int(random.Random(i).expovariate(1 / 80))) for i in range(256)],
    },
    (512, 1024, 2048, 4096),
    repeat=5,
)
QUICK = Work(
    {f"width {width}": small_config(width, 1, 2, 64, 64, model_type="qwen3") for width in (8, 16)},
    {"4 rows": [1, 3, 5, 9]}, (64,), repeat=1,
)  # fmt: skip


def rows_of(lengths: list[int], vocab: int = 64) -> list[Rollout]:
    draw, rows = random.Random(0), []
    for length in lengths:
        tokens = [draw.randrange(1, vocab) for _ in range(16 + length)]
        rows.append(Rollout(Problem("", ""), tokens, [False] * 16 + [True] * length, [0.0] * len(tokens), 16, 0))
    return rows


def update_flops(config: ModelConfig, lengths: list[int]) -> float:
    """Of the products of one update: 2 per weight and token forward, 4 backward; attention as far as it looks back."""
    c = config
    per_layer = (c.num_attention_heads * 2 + c.num_key_value_heads * 2) * c.head_dim + 3 * c.intermediate_size
    body, head = c.num_hidden_layers * per_layer * c.hidden_size, c.vocab_size * c.hidden_size
    attention = 4 * c.num_hidden_layers * c.num_attention_heads * c.head_dim
    keys = sum((16 + n) * (17 + n) / 2 for n in lengths)
    return 3 * (2 * body * sum(16 + n for n in lengths) + 2 * head * sum(lengths) + attention * keys)


def greedy(lengths: list[int], micro_tokens: int) -> list[list[int]]:
    """The obvious cut: sorted rows, each batch filled to the budget."""
    cut: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not cut or (len(cut[-1]) + 1) * lengths[cut[-1][0]] > micro_tokens:
            cut.append([])
        cut[-1].append(i)
    return cut


def one_update(model: Transformer, optimizer, rows: list[Rollout], micro_tokens: int, cut: Callable) -> int:
    best, learn.micro_batches = learn.micro_batches, cut
    try:
        learn.update(model, optimizer, rows, lr=1e-6, micro_tokens=micro_tokens)
    finally:
        learn.micro_batches = best
    return sum(len(row.tokens) for row in rows)


def update(device: torch.device, work: Work) -> list[str]:
    """Shapes and micro-batch sizes."""
    lines = []
    for kind, lengths in work.lengths.items():
        rows, contestants, floors = rows_of(lengths), {}, {}
        for shape, config in work.shapes.items():
            model = Transformer(config).to(device)
            optimizer = learn.make_optimizer(model)
            for micro in work.micro_tokens if shape == list(work.shapes)[1] else (1024,):
                name = f"{shape}, micro-batches of {micro}"
                cut = learn.micro_batches
                contestants[name] = lambda m=model, o=optimizer, t=micro, c=cut, r=rows: one_update(m, o, r, t, c)
                floors[name] = update_flops(config, lengths)
        for name, timing in interleaved(contestants, device, work.repeat).items():
            flops = floors[name]
            share = timing.share_of_floor(lambda peak, flops=flops: flops / peak.flops)
            slow, fast = timing.range
            lines.append(f"{kind:<13} {name:<47} {timing.rate:>7,.0f} tokens/s ({slow:,.0f}..{fast:,.0f})"
                         f"  {share:.2f} of the product peak")  # fmt: skip
    return lines


def cuts(device: torch.device, work: Work) -> list[str]:
    """Micro-batches filled greedily, and by dynamic programming."""
    lines, model = [], Transformer(list(work.shapes.values())[1]).to(device)
    optimizer, best = learn.make_optimizer(model), learn.micro_batches
    for kind, lengths in work.lengths.items():
        rows = rows_of(lengths)
        for micro in work.micro_tokens:
            ways = {"greedy": greedy, "ours": best}
            contestants = {
                name: lambda way=way, micro=micro, rows=rows: one_update(model, optimizer, rows, micro, way)
                for name, way in ways.items()
            }
            timings = interleaved(contestants, device, work.repeat)
            padded = {}
            for name, way in ways.items():
                cut = way([len(row.tokens) for row in rows], micro)
                tokens = sum(len(batch) * max(len(rows[i].tokens) for i in batch) for batch in cut)
                padded[name] = f"{tokens / sum(len(row.tokens) for row in rows):.2f} in {len(cut)}"
            lines.append(f"{kind:<13} budget {micro:>4}: padding x{padded['greedy']} -> x{padded['ours']} batches, "
                         f"{timings['ours'].times_faster_than(timings['greedy']):.2f}x as fast")  # fmt: skip
    return lines


def optimizers(device: torch.device, work: Work) -> list[str]:
    """One step, without forward and backward pass."""
    lines = []
    for shape, config in list(work.shapes.items())[1:]:
        model = Transformer(config).to(device)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter) * 1e-2
        hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name]
        theirs = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=device.type != "mps")
        adamw, muon = AdamW(model), Muon(model)
        steps: dict[str, Callable] = {
            "torch.optim.AdamW, fused": theirs.step, "AdamW": lambda a=adamw: a.step(1e-6),
            "Muon": lambda m=muon: m.step(1e-6),
        }  # fmt: skip
        if hasattr(torch.optim, "Muon"):
            steps["torch.optim.Muon, matrices alone"] = torch.optim.Muon(hidden, lr=1e-6).step

        def twenty(step: Callable) -> int:
            for _ in range(20):
                step()
            return 20

        contestants = {name: lambda step=step: twenty(step) for name, step in steps.items()}
        for name, timing in interleaved(contestants, device, work.repeat).items():
            lines.append(f"{shape:<25} {name:<34} {1e3 / timing.rate:8.2f} ms a step")
    return lines


def start(device: torch.device, work: Work) -> list[str]:
    """A new process: imports, then the first optimizer. Processor time, and wall time in brackets."""
    model = "model.Transformer(model.ModelConfig())"
    programs = {
        "import torch": "import torch",
        "nanoreason.learn, AdamW": f"from nanoreason import learn, model; learn.make_optimizer({model})",
        "nanoreason.learn, torch.optim.AdamW": "from nanoreason import learn, model; import torch; "
        f"torch.optim.AdamW({model}.parameters())",
        "train.py grpo --help": "from nanoreason.__main__ import main; main(['grpo', '--help'])",
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    for _ in range(work.repeat):
        for name, program in programs.items():
            started, before = time.perf_counter(), os.times()
            subprocess.run([sys.executable, "-c", program], check=True, env=environment, stdout=subprocess.DEVNULL)
            used = os.times()
            seconds = used.children_user + used.children_system - before.children_user - before.children_system
            found[name].append((seconds, time.perf_counter() - started))
    lines = []
    for name, times in found.items():
        of_cpu, of_wall = ([values[k] for values in times] for k in (0, 1))
        lines.append(f"{name:<36} {statistics.median(of_cpu):5.2f} s ({min(of_cpu):.2f}..{max(of_cpu):.2f})  "
                     f"[wall {statistics.median(of_wall):.2f} s]")  # fmt: skip
    return lines


PARTS = {"update": update, "cuts": cuts, "optimizers": optimizers, "start": start}


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="the smallest shape, few rows, once")
    flags = parser.parse_args(words)
    unknown = [part for part in flags.parts if part not in PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}: use {', '.join(PARTS)}")
    torch.set_num_threads(flags.threads)
    device = pick_device(flags.device)
    titles = {"update": "Learner: an update", "cuts": "Learner: micro-batches", "optimizers": "Learner: optimizers",
              "start": "Start-up"}  # fmt: skip
    work = QUICK if flags.quick else replace(FULL, repeat=flags.repeat)
    for part in flags.parts or PARTS:
        write_results(titles[part], PARTS[part](device, work), device, not flags.quick)


if __name__ == "__main__":
    main()
