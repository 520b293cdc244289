"""Several processes that train one model: data parallelism over torch.distributed.

    torchrun --nproc-per-node 2 train.py grpo ...        one process per GPU, or per core

Every process has the whole model and its optimizer, and decides everything from the same numbers in the same way. Only
work is dealt out: the groups that are sampled (`environment.sample`) and the micro-batches whose gradients are summed
(`learn.update`). A row's random numbers are its own and the average over the step is made before it is cut, so the
samples and the gradient are those of one process, up to rounding, and a run may go on with another number of processes.
The first process writes the files and speaks for all.

What is exchanged is text (JSON) and tensors; nothing is unpickled.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

Item = TypeVar("Item")
BUCKET = 1 << 25  # gradients that are added up at a time: bounds the memory of the copy


def launched() -> int:
    """How many processes torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join() -> None:
    """Meets the other processes that torchrun has started. Text goes over gloo, gradients on GPUs over NCCL."""
    if launched() > 1 and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """0 .. count() - 1; the first is the one that writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    return rank() == 0


def of_rank(items: Sequence[Item], rank: int) -> list[Item]:
    """Dealt out like cards.

    >>> of_rank("abcde", 0)
    ['a', 'b', 'c', 'd', 'e']
    """
    return list(items[rank :: count()])


def mine(items: Sequence[Item]) -> list[Item]:
    """This process's share of what is to be done; everything where there is only one."""
    return of_rank(items, rank())


def wait_for_all() -> None:
    """Returns when every process has come here, so that what the first one wrote can be read."""
    if count() > 1:
        dist.barrier()


def gather(text: str) -> list[str]:
    """What every process says, in the order of their ranks."""
    if count() == 1:
        return [text]
    own = torch.frombuffer(bytearray(text.encode() or b" "), dtype=torch.uint8)
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(count())]
    dist.all_gather(lengths, torch.tensor([len(own)]))
    longest = max(int(length) for length in lengths)
    found = [torch.zeros(longest, dtype=torch.uint8) for _ in range(count())]
    dist.all_gather(found, torch.nn.functional.pad(own, (0, longest - len(own))))
    return [bytes(said[: int(length)].tolist()).decode() for said, length in zip(found, lengths, strict=True)]


def add_up(tensors: list[torch.Tensor]) -> None:
    """Replaces each tensor by its sum over the processes."""
    if count() == 1:
        return
    for some in buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in some])
        dist.all_reduce(flat)
        for tensor, part in zip(some, flat.split([tensor.numel() for tensor in some]), strict=True):
            tensor.copy_(part.view_as(tensor))


def buckets(tensors: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """The tensors in order, so many together that they have about BUCKET values; those of one have one dtype."""
    some: list[torch.Tensor] = []
    for tensor in tensors:
        if some and (tensor.dtype != some[0].dtype or sum(t.numel() for t in some) + tensor.numel() > BUCKET):
            yield some
            some = []
        some.append(tensor)
    if some:
        yield some
