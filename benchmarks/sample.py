"""Tokens per second of the sampler beside `transformers.generate` with the same weights.

    python benchmarks/sample.py                     all workloads, dynamic cache
    python benchmarks/sample.py --compile           also generate with the static cache and torch.compile
    python benchmarks/sample.py tiny-64 --repeat 5

Contestants take turns in one process; printed are medians and the range. With one thread the clock is the process's
CPU time, which a busy neighbour disturbs least; with more it is wall time. Only useful tokens count: those up to each
row's own length. `floor` is the time that the arithmetic and the memory traffic of the live rows alone would need at
the matrix-product and read speeds measured here just before; `of floor` is how close the sampler comes to it.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from nanoreason.model import KVCache, ModelConfig, Transformer
from nanoreason.rollout import Problem, Rollout, seed_of
from nanoreason.run import device_name, pick_device
from nanoreason.sampler import Sampler

TINY = ModelConfig(
    vocab_size=64, hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=4, head_dim=64, max_position_embeddings=512,
)  # fmt: skip
QWEN = ModelConfig(
    model_type="qwen2", vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
    num_attention_heads=14, num_key_value_heads=2, head_dim=64, max_position_embeddings=512, rope_theta=1e6,
)  # fmt: skip


@dataclass
class Workload:
    model: ModelConfig
    prompts: list[int]  # tokens of each row's prompt
    lengths: list[int]  # tokens each row is to get
    target: float  # wanted ratio to generate with the dynamic cache


def heavy_tailed(rows: int, mean: float, longest: int) -> list[int]:
    """Lengths with a long tail: exponential, cut at `longest`, scaled until the mean is about right."""
    draw = random.Random(0)
    return [min(longest, 1 + int(draw.expovariate(1 / mean))) for _ in range(rows)]


WORKLOADS = {
    "tiny-64": Workload(TINY, [24] * 64, [128] * 64, 2.0),
    "tiny-512": Workload(TINY, [24] * 512, [128] * 512, 3.5),
    "tiny-heavy": Workload(TINY, [8 + (7 * i) % 33 for i in range(128)], heavy_tailed(128, 80, 256), 6.0),
    "qwen-8": Workload(QWEN, [32] * 8, [32] * 8, 2.2),
}


def make_rows(work: Workload) -> list[Rollout]:
    draw = random.Random(1)
    rows = []
    for i, (prompt, length) in enumerate(zip(work.prompts, work.lengths, strict=True)):
        tokens = [draw.randrange(work.model.vocab_size) for _ in range(prompt)]
        rows.append(
            Rollout(
                Problem("", ""), tokens, [False] * prompt, [0.0] * prompt, prompt, seed_of(i), max_new_tokens=length
            )
        )
    return rows


def ours(model: Transformer, work: Workload) -> int:
    rows = make_rows(work)
    Sampler(model, eos_id=None, temperature=1.0).finish(rows)
    return sum(len(row.response) for row in rows)


def generate(reference, work: Workload, cache: str | None) -> int:
    """A static batch: every row runs until the longest is done, as generate does."""
    rows = make_rows(work)
    width, device = max(work.prompts), reference.device
    tokens = torch.tensor([[0] * (width - len(row.tokens)) + row.tokens for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row.tokens)) + [1] * len(row.tokens) for row in rows], device=device)
    longest = max(work.lengths)
    settings = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=longest, min_new_tokens=longest,
        eos_token_id=None, pad_token_id=0, cache_implementation=cache, use_cache=True,
    )  # fmt: skip
    with torch.inference_mode():
        out = reference.generate(tokens, attention_mask=mask, generation_config=settings)
    assert out.shape[1] == width + longest
    return sum(work.lengths)


def twin(model: Transformer):
    """The same weights in `transformers`."""
    kind, config_kind = (
        (Qwen2ForCausalLM, Qwen2Config) if model.config.model_type == "qwen2" else (LlamaForCausalLM, LlamaConfig)
    )
    settings = {k: v for k, v in asdict(model.config).items() if k not in ("model_type", "rope_scaling", "rope_theta")}
    config = config_kind(**settings, rope_parameters={"rope_type": "default", "rope_theta": model.config.rope_theta})
    reference = kind(config)
    reference.load_state_dict(model.state_dict())
    return reference.to(model.device).eval()


# ------------------------------------------------------------------------------------------------- the floor


def best_seconds(work, repeat: int, device: torch.device) -> float:
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times)


def floor_seconds(work: Workload, device: torch.device) -> float:
    """Least time: per step the larger of FLOPs / peak and bytes / bandwidth, live rows only, prompts read once."""
    a, b = torch.randn(1024, 1024, device=device), torch.randn(1024, 1024, device=device)
    peak = 2 * 1024**3 / best_seconds(lambda: a @ b, 10, device)
    c = work.model
    per_layer = (c.num_attention_heads * 2 + c.num_key_value_heads * 2) * c.head_dim + 3 * c.intermediate_size
    weights = c.num_hidden_layers * per_layer * c.hidden_size + c.vocab_size * c.hidden_size
    row_bytes = KVCache.bytes_per_slot(c, torch.float32)
    resident = 4 * weights + row_bytes * sum(p + n for p, n in zip(work.prompts, work.lengths, strict=True))
    buffer = torch.zeros(int(resident / 4), device=device)
    bandwidth = resident / best_seconds(lambda: buffer.sum(), 10, device)
    attention = 4 * c.num_hidden_layers * c.num_attention_heads * c.head_dim  # FLOPs per key read
    seconds = 2 * weights * sum(work.prompts) / peak
    for step in range(max(work.lengths)):
        keys = [p + step + 1 for p, n in zip(work.prompts, work.lengths, strict=True) if n > step]
        flops = 2 * weights * len(keys) + attention * sum(keys)
        seconds += max(flops / peak, (4 * weights + row_bytes * sum(keys)) / bandwidth)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", help=f"of {', '.join(WORKLOADS)} (default: all)")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="also generate with static cache and torch.compile")
    flags = parser.parse_args()
    unknown = [name for name in flags.workloads if name not in WORKLOADS]
    if unknown:
        parser.error(f"unknown workload {unknown[0]!r}: use {', '.join(WORKLOADS)}")
    torch.set_num_threads(flags.threads)
    device = pick_device(flags.device)
    clock = time.process_time if device.type == "cpu" and flags.threads == 1 else time.perf_counter
    print(f"{device_name(device)}, {flags.threads} thread(s), torch {torch.__version__}, float32, useful tokens/s")
    for name in flags.workloads or WORKLOADS:
        work = WORKLOADS[name]
        model = Transformer(work.model).to(device).eval()
        reference = twin(model)
        contestants = {
            "ours": lambda m=model, w=work: ours(m, w),
            "generate": lambda r=reference, w=work: generate(r, w, None),
        }
        if flags.compile:
            contestants["generate static+compile"] = lambda r=reference, w=work: generate(r, w, "static")
        for contestant in contestants.values():
            if name != "qwen-8" or flags.compile:
                contestant()  # warm up
        speeds: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(flags.repeat):
            for contestant, run in contestants.items():
                started = clock()
                tokens = run()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                speeds[contestant].append(tokens / (clock() - started))
        medians = {contestant: statistics.median(values) for contestant, values in speeds.items()}
        floor = sum(work.lengths) / floor_seconds(work, device)
        for contestant, values in speeds.items():
            ratio = medians[contestant] / medians["generate"]
            print(
                f"{name:<11} {contestant:<24} {medians[contestant]:>8.0f} ({min(values):.0f}..{max(values):.0f})"
                f"  {ratio:.2f}x generate  {medians[contestant] / floor:.2f} of floor"
                + (f"  target {work.target}x" if contestant == "ours" else ""),
                flush=True,
            )


if __name__ == "__main__":
    main()
