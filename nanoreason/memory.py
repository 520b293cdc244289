"""What a run keeps in memory, and in which form: adapters, recomputation, small moments, a copy to sample from.

    --memory lora                               adapters of rank 16, activations recomputed
    --memory.lora 8 --memory.recompute          the same settings one by one

A recipe asks `prepare` once, before it makes the optimizer, and saves through `save_policy`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import torch

from nanoreason.checkpoint import existing, is_adapter, save_checkpoint
from nanoreason.lora import add_adapters, merged
from nanoreason.model import Transformer
from nanoreason.optim import Optimizer
from nanoreason.run import Range
from nanoreason.sharding import check_shard, shard
from nanoreason.tokenizer import TextTokenizer


@dataclass(frozen=True)
class Memory:
    """Each setting costs time or exactness and saves memory; the defaults train all weights in float32."""

    name: str = field(default="full", metadata={"hidden": True})
    lora: Annotated[int, Range(0, 1 << 12)] = 0  # rank of adapters beside frozen weights; 0: all weights are trained
    recompute: bool = False  # keep each block's input alone for the backward pass, and compute the rest once more
    moments: Literal["float32", "bfloat16", "cpu"] = "float32"  # adamw's two: as they are, half as large, or elsewhere
    sample_dtype: Literal["float32", "bfloat16"] = "float32"  # of the weights that sample; bfloat16: a copy per rollout
    shard: bool = False  # weights, gradients and moments in parts, one per process of torchrun, instead of all in each


MEMORY = {"full": Memory(), "lora": Memory("lora", lora=16, recompute=True)}


def check_memory(memory: Memory, base: str, optimizer: str = "adamw") -> None:
    """ValueError in one line if these settings do not go together."""
    if memory.lora and not base:
        raise ValueError("--memory.lora needs --base: adapters stand beside weights that are worth keeping")
    if memory.lora and existing(base) is not None and is_adapter(existing(base)):
        raise ValueError(f"--memory.lora on --base {base}, which holds adapters itself: name a whole model, such as "
                         "OUT/policy of the run that made them")  # fmt: skip
    if memory.lora and optimizer != "adamw":
        raise ValueError(f"--memory.lora with --optimizer {optimizer}: adapters are trained by adamw")
    if memory.moments != "float32" and optimizer != "adamw":
        raise ValueError(f"--memory.moments {memory.moments} with --optimizer {optimizer}: only adamw has them")
    check_shard(memory.shard, optimizer)
    if memory.shard and replace(memory, name="", shard=False) != Memory(""):
        raise ValueError("--memory.shard goes with none of the other --memory settings: take either")


def prepare(model: Transformer, memory: Memory, seed: int) -> None:
    """Put the adapters beside the weights, and say whether activations are recomputed."""
    if memory.lora:
        add_adapters(model, memory.lora, seed)
    model.recompute = memory.recompute
    if memory.shard:
        shard(model)


def resumed_from(memory: Memory) -> str:
    """The folder of a run that --resume reads."""
    return "adapter" if memory.lora else "policy"


def save_policy(
    folder: Path, memory: Memory, policy: Transformer, tokenizer: TextTokenizer, optimizer: Optimizer, state: dict,
    *, base: str, extra: dict, last: bool,
) -> None:  # fmt: skip
    """A checkpoint to go on from; of adapters that of a run's end is also merged into OUT/policy, which comes first: a
    run that is stopped in between does its last steps again."""
    if memory.lora and last:
        save_checkpoint(folder / "policy", merged(policy, device="cpu"), tokenizer, extra=extra)  # a card may be full
    save_checkpoint(folder / resumed_from(memory), policy, tokenizer, optimizer, state, extra=extra, base=base)


def sampling_copy(policy: Transformer) -> Transformer:
    """A copy in bfloat16, with its adapters merged, that samples a rollout.

    The copy reads half the bytes per token and is another policy by rounding. Log-probs of the rows are the copy's;
    `logp_diff/mean` says how far the learner is off, and `--algorithm.sampler-cap` weighs it (truncated importance
    sampling). It is made anew for each rollout and gone before the update.
    """
    return merged(policy, torch.bfloat16)
