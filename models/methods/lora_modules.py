"""LoRA modules on the FFL weights of a model: put in by peft, taken out again, and summed into one update."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bakeout.models.network.families import feed_forward_layers
from bakeout.models.plan import Role, WeightUpdate

# Per linear layer of the FFLs, by its name in the model: B [out, rank] and A [rank, in]; the product is B A.
Module = Mapping[str, tuple[Tensor, Tensor]]

_ADAPTER = "bakeout"
# Hooks of a module that see its output: with an adapter they must see the adapted output.
_OUTPUT_HOOKS = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")
# Singular values under this share of the largest are rounding errors.
_NEGLIGIBLE = 1e-7


@contextmanager
def adapted(model: PreTrainedModel, rank: int, seed: int) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """``model`` with fresh LoRA modules in its FFLs: per module name the parameters (B, A). Afterwards as it was."""
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    names = [name for name, _, _ in linear_layers(model)]
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    training = [(module, module.training) for module in model.modules()]
    conv = any(isinstance(model.get_submodule(name), Conv1D) for name in names)
    configuration = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=names, fan_in_fan_out=conv)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wrapped = LoraModel(model, configuration, _ADAPTER)
    layers: list[Any] = [model.get_submodule(name) for name in names]
    for layer in layers:
        # Steps in half precision would be rounded away.
        layer.lora_A.float()
        layer.lora_B.float()
    swapped = [(layer, layer.base_layer) for layer in layers]
    try:
        _swap_output_hooks(swapped)
        yield {
            name: (layer.lora_B[_ADAPTER].weight, layer.lora_A[_ADAPTER].weight)
            for name, layer in zip(names, layers, strict=True)
        }
    finally:
        _swap_output_hooks(swapped)
        wrapped.unload()
        del model.peft_config
        for parameter, required in trainable:
            parameter.requires_grad_(required)
        for module, mode in training:
            module.training = mode


def _swap_output_hooks(pairs: Sequence[tuple[Any, Any]]) -> None:
    """Hooks move between a linear layer and its adapter as whole dictionaries, to which their handles refer."""
    for layer, base in pairs:
        for name in _OUTPUT_HOOKS:
            ours, theirs = getattr(layer, name), getattr(base, name)
            setattr(layer, name, theirs)
            setattr(base, name, ours)


def summed(model: PreTrainedModel, parts: Sequence[tuple[float, Module]]) -> tuple[tuple[WeightUpdate, ...], float]:
    """The sum of share * B A over the (share, module) pairs, as one update per weight of ``model``.

    The factors side by side are compressed by a singular value decomposition to what numbers of float64 can tell: at
    most the sum of the ranks, and at most the weight's smaller side. Returned beside the updates: the largest
    loss of a weight by compressing, and by rounding to float32, relative to its update in the Frobenius norm.
    """
    updates, residual = [], 0.0
    for name, layer, roles in linear_layers(model):
        left = torch.cat([share * module[name][0].double() for share, module in parts], dim=1)
        right = torch.cat([module[name][1].double() for _, module in parts])
        for role, rows in roles:
            update, lost = _compressed(layer, role, left[rows], right)
            updates.append(update)
            residual = max(residual, lost)
    updates.sort(key=lambda update: (update.layer, update.role))
    return tuple(updates), residual


def linear_layers(model: PreTrainedModel) -> list[tuple[str, int, tuple[tuple[Role, slice], ...]]]:
    """Name, layer and roles of every linear layer of the FFLs, and which rows of its output each role is."""
    names = {module: name for name, module in model.named_modules()}
    every = slice(None)
    linears: list[tuple[str, int, tuple[tuple[Role, slice], ...]]] = []
    for layer in feed_forward_layers(model):
        if layer.layout == "fused":
            halves: tuple[tuple[Role, slice], ...] = (("gate", slice(0, layer.width)), ("up", slice(layer.width, None)))
            linears.append((names[layer.gate], layer.layer, halves))
        else:
            linears.append((names[layer.gate], layer.layer, (("gate", every),)))
        if layer.up is not None:
            linears.append((names[layer.up], layer.layer, (("up", every),)))
        linears.append((names[layer.down], layer.layer, (("down", every),)))
    return linears


def _compressed(layer: int, role: Role, left: Tensor, right: Tensor) -> tuple[WeightUpdate, float]:
    left_basis, left_part = torch.linalg.qr(left)
    right_basis, right_part = torch.linalg.qr(right.T)
    u, sizes, v = torch.linalg.svd(left_part @ right_part.T)
    rank = max(1, int((sizes > sizes[0] * _NEGLIGIBLE).sum()))
    root = sizes[:rank].sqrt()
    short_left = (left_basis @ u[:, :rank] * root).float().numpy()
    short_right = (root[:, None] * (right_basis @ v[:rank].T).T).float().numpy()
    whole = float(sizes.norm())
    lost = left @ right - torch.from_numpy(short_left).double() @ torch.from_numpy(short_right).double()
    update = WeightUpdate(layer, role, np.ascontiguousarray(short_left), np.ascontiguousarray(short_right))
    return update, float(lost.norm()) / whole if whole > 0 else 0.0
