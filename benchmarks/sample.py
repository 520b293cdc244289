"""Tokens per second of the sampler beside `transformers.generate` with the same weights.

    python benchmarks/sample.py                             all workloads, dynamic cache
    python benchmarks/sample.py --compile                   also generate with the static cache and torch.compile
    python benchmarks/sample.py small-512 --repeat 9
    python benchmarks/sample.py --checkpoint FOLDER         a real checkpoint, one and eight rows
    python benchmarks/sample.py --quick                     a few tokens, to see that it runs; nothing is written

Contestants take turns in one process (see timing.py); printed are medians and the range. Only useful tokens count:
those up to each row's own length. The floor is the time that the arithmetic and the memory traffic of the live rows
alone would need at the matrix-product and read speeds of the moment; `of floor` is how close the sampler comes to it.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import transformers
from timing import Peak, interleaved, write_results
from transformers import GenerationConfig

from nanoreason.checkpoint import load_checkpoint
from nanoreason.hf_config import ARCHITECTURES
from nanoreason.model import KVCache, ModelConfig, Transformer, small_config
from nanoreason.rollout import Problem, Rollout, seed_of
from nanoreason.run import pick_device
from nanoreason.sampler import Sampler

SMALL = small_config(96, 3, 4, 64, 256, kv_heads=2, model_type="qwen3")  # that of our own bases
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
    "small-512": Workload(SMALL, [24] * 512, [100] * 512, 2.0),
    "tiny-64": Workload(TINY, [24] * 64, [128] * 64, 1.8),
    "tiny-512": Workload(TINY, [24] * 512, [128] * 512, 3.5),
    "tiny-heavy": Workload(TINY, [8 + (7 * i) % 33 for i in range(128)], heavy_tailed(128, 80, 256), 5.0),
    "qwen-8": Workload(QWEN, [32] * 8, [32] * 8, 2.2),
}
QUICK = {"quick": Workload(small_config(16, 1, 2, 16, 16, kv_heads=1, model_type="qwen3"), [3, 2, 4], [2, 5, 3], 0.0)}


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
    architecture = ARCHITECTURES[model.config.model_type]
    settings = {k: v for k, v in asdict(model.config).items() if k not in ("model_type", "rope_scaling", "rope_theta")}
    config_class = getattr(transformers, architecture.removesuffix("ForCausalLM") + "Config")
    config = config_class(**settings, rope_parameters={"rope_type": "default", "rope_theta": model.config.rope_theta})
    reference = getattr(transformers, architecture)(config)
    reference.load_state_dict(model.state_dict())
    return reference.to(model.device).eval()


# ------------------------------------------------------------------------------------------------- the floor


def bytes_and_flops(work: Workload) -> tuple[int, int, int, int]:
    """Weights of a token's matrix products; bytes of a row's slot; FLOPs per key read; bytes in use at the end."""
    c = work.model
    per_layer = (c.num_attention_heads * 2 + c.num_key_value_heads * 2) * c.head_dim + 3 * c.intermediate_size
    weights = c.num_hidden_layers * per_layer * c.hidden_size + c.vocab_size * c.hidden_size
    row_bytes = KVCache.bytes_per_slot(c, torch.float32)
    resident = 4 * weights + row_bytes * sum(p + n for p, n in zip(work.prompts, work.lengths, strict=True))
    return weights, row_bytes, 4 * c.num_hidden_layers * c.num_attention_heads * c.head_dim, resident


def floor_seconds(work: Workload, peak: Peak) -> float:
    """Least time: per step the larger of FLOPs / peak and bytes / bandwidth, live rows only, prompts read once."""
    weights, row_bytes, attention, _ = bytes_and_flops(work)
    seconds = 2 * weights * sum(work.prompts) / peak.flops
    for step in range(max(work.lengths)):
        keys = [p + step + 1 for p, n in zip(work.prompts, work.lengths, strict=True) if n > step]
        flops = 2 * weights * len(keys) + attention * sum(keys)
        seconds += max(flops / peak.flops, (4 * weights + row_bytes * sum(keys)) / peak.bandwidth)
    return seconds


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", help=f"of {', '.join(WORKLOADS)} (default: all)")
    parser.add_argument("--checkpoint", default="", help="folder of a real checkpoint: workloads checkpoint-1 and -8")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="also generate with static cache and torch.compile")
    parser.add_argument("--quick", action="store_true", help="one small workload, once")
    flags = parser.parse_args(words)
    torch.set_num_threads(flags.threads)
    device = pick_device(flags.device)
    workloads, models = dict(QUICK if flags.quick else WORKLOADS), {}
    if flags.checkpoint:
        model = load_checkpoint(flags.checkpoint, device)[0]
        workloads = {f"checkpoint-{n}": Workload(model.config, [32] * n, [32] * n, 1.5) for n in (1, 8)}
        models = dict.fromkeys(workloads, model)
    unknown = [name for name in flags.workloads if name not in workloads]
    if unknown:
        parser.error(f"unknown workload {unknown[0]!r}: use {', '.join(workloads)}")
    lines = []
    for name in flags.workloads or workloads:
        work = workloads[name]
        model = models.get(name) or Transformer(work.model).to(device)
        lines += compare(name, work, model, 1 if flags.quick else flags.repeat, flags.compile)
    write_results("Sampler, a real checkpoint" if flags.checkpoint else "Sampler", lines, device, not flags.quick)


def compare(name: str, work: Workload, model: Transformer, repeat: int, compiled: bool) -> list[str]:
    reference = twin(model)
    contestants: dict[str, Callable[[], float]] = {
        "generate": lambda: generate(reference, work, None),
        "ours": lambda: ours(model, work),
    }
    if compiled:
        contestants["generate, static, compiled"] = lambda: generate(reference, work, "static")
    timings = interleaved(contestants, model.device, repeat, read_bytes=bytes_and_flops(work)[3] // 4 * 4)
    lines, longest = [], max(map(len, timings))
    for contestant, timing in timings.items():
        slow, fast = timing.range
        lines.append(
            f"{name:<12} {contestant:<{longest}} {timing.rate:>7,.0f} tokens/s ({slow:,.0f}..{fast:,.0f})"
            f"  {timing.times_faster_than(timings['generate']):.2f}x generate"
            f"  {timing.share_of_floor(lambda peak: floor_seconds(work, peak)):.2f} of floor"
            + (f"  target {work.target}x" if contestant == "ours" else "")
        )
        print(lines[-1], flush=True)
    return lines


if __name__ == "__main__":
    main()
