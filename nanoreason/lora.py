"""LoRA: low-rank adapters beside frozen weights (Hu et al., 2021), and their folder in the layout of `peft`.

    y = W x + (alpha / r) B A x             W (out, in) is frozen, A (r, in) and B (out, r) are trained

Every linear layer of attention and MLP gets a pair; embeddings, head, norms and biases stay as they are. Gradients and
moments are those of A and B alone. B starts at 0, so that the policy starts as the base, bit for bit. Sampler and
learner run the same two products beside W, never a merged W in one of them: merging rounds. The base is still there:
`switched_off(model)` is the KL reference without a second copy of the weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from nanoreason.model import Transformer, plain_copy

ALPHA = 32  # whatever the rank: the best learning rate then hardly depends on it (Schulman et al., 2025)
PREFIX = "base_model.model."  # `peft` wraps the model twice; its names begin like this
# What an adapter_config.json may say (LoraConfig of `peft` 0.21). These have no say in what a stored adapter computes:
READ = ("r", "lora_alpha", "target_modules", "base_model_name_or_path")
UNUSED = ("task_type", "inference_mode", "revision", "auto_mapping", "peft_version", "lora_dropout", "megatron_core",
          "qalora_group_size", "eva_config", "ensure_weight_tying")  # fmt: skip
# these only with some values (other ways to begin, such as pissa, change the weights of the base as well),
PLAIN: dict[str, tuple] = {
    "peft_type": ("LORA",), "bias": ("none", None),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal", "mica"),
}  # fmt: skip
OFF = (None, False, [], {})  # and any other one, known or not, only switched off


class LoraLinear(nn.Module):
    """A linear layer with its adapter; the names of its parameters are `peft`'s."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__()
        (out, into), weight = linear.weight.shape, linear.weight
        self.weight, self.bias, self.scale, self.on = weight, linear.bias, alpha / rank, True
        self.lora_A = nn.Linear(into, rank, bias=False, device=weight.device)
        self.lora_B = nn.Linear(rank, out, bias=False, device=weight.device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.linear(x, self.weight, self.bias)
        return y + self.lora_B(self.lora_A(x) * self.scale) if self.on else y

    def change(self, A: torch.Tensor | None = None, B: torch.Tensor | None = None) -> torch.Tensor:
        """(out, in): what A and B, its own unless others are given, add to the weight."""
        A, B = (self.lora_A.weight if A is None else A), (self.lora_B.weight if B is None else B)
        return self.scale * (B.detach() @ A.detach())


def adapters(model: Transformer) -> dict[str, LoraLinear]:
    """{name of the linear layer: the layer}; {} where there are none."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


def add_adapters(
    model: Transformer, rank: int, seed: int = 0, *, alpha: float = ALPHA, targets: list[str] | None = None
) -> None:
    """Freeze the weights and put a fresh adapter of this rank beside each linear layer of the blocks, or beside those
    whose last name is in `targets`. A is uniform within 1 / sqrt(in), as a linear layer's weight is in torch."""
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed % 2**63)
    for block in model.model.layers:
        for part in (block.self_attn, block.mlp):
            for name, linear in list(part.named_children()):
                if isinstance(linear, nn.Linear) and (targets is None or name in targets):
                    new = LoraLinear(linear, rank, alpha)
                    bound = linear.weight.shape[1] ** -0.5
                    A = torch.empty(new.lora_A.weight.shape).uniform_(-bound, bound, generator=generator)
                    new.lora_A.weight.data.copy_(A)
                    nn.init.zeros_(new.lora_B.weight)
                    setattr(part, name, new)


@contextlib.contextmanager
def switched_off(model: Transformer) -> Iterator[None]:
    """Inside, the model is its base; nothing changes where it has no adapters."""
    layers = adapters(model).values()
    for layer in layers:
        layer.on = False
    try:
        yield
    finally:
        for layer in layers:
            layer.on = True


def merged(
    model: Transformer, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> Transformer:
    """A plain model with W + (alpha / r) B A, of this type and there; what stays as it is is shared, not copied."""
    device = model.device if device is None else device
    layers = adapters(model)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if ".lora_" not in name}
    for name in tensors:
        if layer := layers.get(name.removesuffix(".weight")):
            tensors[name] = (tensors[name] + layer.change()).to(device, dtype)  # in float32, one matrix at a time
        else:
            tensors[name] = tensors[name].to(device, dtype)
    plain = plain_copy(model, tensors)
    plain.rope = plain.rope.to(device, dtype)
    plain.no_token = None if plain.no_token is None else plain.no_token.to(device)
    return plain


def squares(model: Transformer, before: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The squared norm of how far the adapters have moved the weights that they stand beside since `before`, which
    holds A and B by name, and that of all weights."""
    moved, norm = 0, 0
    for name, layer in adapters(model).items():
        old = layer.change(before[f"{name}.lora_A.weight"], before[f"{name}.lora_B.weight"])
        moved = moved + (layer.change() - old).square().sum()
    for name, weight in model.named_parameters():
        norm = norm + (0 if ".lora_" in name else weight.detach().square().sum())
    return moved, norm


# --------------------------------------------------------------------------------------------------- peft's layout


def peft_config(model: Transformer, base: str) -> dict[str, Any]:
    """adapter_config.json: what `peft` needs to build the adapters beside the weights of `base`."""
    layers = adapters(model)
    rank, scale = next((layer.lora_A.weight.shape[0], layer.scale) for layer in layers.values())
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base,
        "r": rank, "lora_alpha": scale * rank, "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False,
        "target_modules": sorted({name.rpartition(".")[2] for name in layers}), "modules_to_save": None,
        "use_rslora": False, "use_dora": False, "init_lora_weights": True, "inference_mode": True,
    }  # fmt: skip


def peft_tensors(model: Transformer) -> dict[str, torch.Tensor]:
    """adapter_model.safetensors: A and B of every layer under `peft`'s names."""
    state = model.state_dict()
    return {PREFIX + name: tensor.contiguous() for name, tensor in state.items() if ".lora_" in name}


def add_stored(model: Transformer, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Put the adapters that a folder in `peft`'s layout holds beside the weights; ValueError says what does not fit."""
    for name, value in config.items():
        if name not in READ + UNUSED and value not in PLAIN.get(name, OFF):
            raise ValueError(f"{name}={value!r:.60} is not supported")
    rank, alpha, targets = config.get("r"), config.get("lora_alpha"), config.get("target_modules")
    if type(rank) is not int or not 1 <= rank <= 1 << 16:
        raise ValueError(f"r is {rank!r:.60} instead of a rank")
    if type(alpha) not in (int, float) or not 0 < alpha < 1e6:
        raise ValueError(f"lora_alpha is {alpha!r:.60} instead of a number")
    if not isinstance(targets, list):
        raise ValueError(f"target_modules is {targets!r:.60} instead of a list of names")
    add_adapters(model, rank, alpha=alpha, targets=[str(name).rpartition(".")[2] for name in targets])
    put_back(model, tensors)


def put_back(model: Transformer, tensors: dict[str, torch.Tensor]) -> None:
    """Stored A and B into the model's adapters, in place; ValueError unless all are there and of its shapes."""
    wanted = peft_tensors(model)
    if different := wanted.keys() ^ tensors.keys():
        word = "lacks" if min(different) in wanted else "has the unknown"
        raise ValueError(f"the adapter {word} weight {min(different)} ({len(different)} in all)")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)} instead of {tuple(wanted[name].shape)}")
        wanted[name].copy_(tensor)  # they share their memory with the parameters
