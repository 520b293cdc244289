"""Sharded parameters (FSDP2; the third stage of ZeRO, Rajbhandari et al., 2020), for models that fit on no one device.

    torchrun --nproc-per-node 2 train.py grpo ... --memory.shard

Each of N processes holds an N-th of every parameter, of its gradient and of its two moments. A block's weights are put
together for its forward pass and again for its backward pass, and given away behind them; the embedding, the head and
the last norm are whole from the first forward pass of an update to the end of its backward pass.

    shard(model)       in place: what `parameters()` gives are DTensors from then on, each with its own part
    together(tensor)   all parts of one, on every process
    whole(model)       a plain copy, which can sample

Putting together is something that all processes do at the same moment. An update has as many micro-batches on each of
them (`learn.own_batches`), but decoding has not: rows end when they like. So a rollout is sampled from a copy with all
weights (4 bytes a parameter on each process while it lasts). All else is as with whole models (`processes.py`).
"""

from __future__ import annotations

import torch
from torch import nn

from nanoreason import processes
from nanoreason.model import Transformer, plain_copy


def check_shard(shard: bool, optimizer: str = "adamw") -> None:
    """ValueError in one line where parameters cannot be sharded."""
    if shard and processes.count() == 1:
        raise ValueError("--memory.shard needs several processes: torchrun --nproc-per-node 2 train.py ...")
    if shard and optimizer != "adamw":
        raise ValueError(f"--memory.shard with --optimizer {optimizer}: it looks at whole matrices, use adamw")


def shard(model: Transformer) -> Transformer:
    """The same model, whose parameters are in parts from now on. Gradients become sums over the processes."""
    # they take seconds to import, and only who shards needs them
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(model.device.type, (processes.count(),))
    for block in model.model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "hidden")  # what the learner calls, beside `forward`
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # the average over a step is in its weights already
            module.set_force_sum_reduction_for_comms(True)
    return model


def is_sharded(model: nn.Module) -> bool:
    return hasattr(model, "reshard")


def reshard(model: Transformer) -> None:
    """Behind a forward pass without a backward pass, which would do it: give away what was put together."""
    if is_sharded(model):
        model.reshard()


def together(tensor: torch.Tensor) -> torch.Tensor:
    """All parts of a tensor; a plain one as it is. All processes call it for the same tensor."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def placed(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A plain tensor that all processes have, on the device of another one, and in parts if that is."""
    if not hasattr(like, "full_tensor"):
        return value.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


@torch.no_grad()
def whole(model: Transformer) -> Transformer:
    """A copy of a sharded model with all weights on this process; a plain model is returned as it is."""
    if not is_sharded(model):
        return model
    reshard(model)
    return plain_copy(model, {name: together(w) for name, w in model.named_parameters()})


@torch.no_grad()
def load_weights(model: Transformer, stored: Transformer) -> None:
    """Give a model, sharded or not, the weights of a plain one of the same shape."""
    if not is_sharded(model):
        model.load_state_dict(stored.state_dict())
        return
    for (_, weight), value in zip(model.named_parameters(), stored.parameters(), strict=True):
        weight.copy_(placed(value, weight))
