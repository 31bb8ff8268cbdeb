"""LoRA modules on the FFL weights of a model: put in by peft, taken out again, and summed into one update."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bakeout.models.network.families import feed_forward_layers, feed_forwards_if_any, require_experts
from bakeout.models.network.mixtures.experts import Expert
from bakeout.models.network.mixtures.routers import is_expert, routers
from bakeout.models.plan import Role, WeightUpdate

# Per linear layer of the FFLs, by its name in the model: B [out, rank] and A [rank, in]; the product is B A.
Module = Mapping[str, tuple[Tensor, Tensor]]

_ADAPTER = "bakeout"
# Hooks of a module that see its output: with an adapter they must see the adapted output.
_OUTPUT_HOOKS = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")
# Singular values under this share of the largest are rounding errors.
_NEGLIGIBLE = 1e-7


@dataclass(frozen=True, eq=False)
class LinearLayer:
    """A linear layer of an FFL, by its name in the model, and which rows of its output each role is.

    ``expert``: the one that it belongs to; ``stack``: the path of its stack [experts, in, out], and its place there.
    """

    name: str
    layer: int
    roles: tuple[tuple[Role, slice], ...]
    expert: Expert | None = None
    stack: tuple[str, int] | None = None


@contextmanager
def adapted(
    model: PreTrainedModel, rank: int, seed: int, *, with_experts: bool = False
) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """``model`` with fresh LoRA modules in its FFLs: per linear layer the parameters (B, A). Afterwards as it was.

    ``with_experts``: in those of a mixture's experts too. Raises as ``linear_layers``.
    """
    linears = linear_layers(model, with_experts=with_experts)
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    training = [(module, module.training) for module in model.modules()]
    try:
        model.requires_grad_(False)
        with (
            _in_modules(model, [linear.name for linear in linears if linear.stack is None], rank, seed) as in_modules,
            _in_stacks(model, linears, rank, seed) as in_stacks,
        ):
            yield {linear.name: (in_modules | in_stacks)[linear.name] for linear in linears}
    finally:
        for parameter, required in trainable:
            parameter.requires_grad_(required)
        for module, mode in training:
            module.training = mode


@contextmanager
def _in_modules(
    model: PreTrainedModel, names: Sequence[str], rank: int, seed: int
) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """By peft, which wraps modules."""
    if not names:
        yield {}
        return
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    conv = any(isinstance(model.get_submodule(name), Conv1D) for name in names)
    configuration = LoraConfig(
        r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=list(names), fan_in_fan_out=conv
    )
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
        # Up to peft 0.20 it stays there.
        vars(model).pop("peft_config", None)


class _WithProducts(nn.Module):
    """A stack of matrices [experts, in, out], to each of which its (B A)ᵀ is added; started as peft starts modules."""

    def __init__(self, stack: Tensor, rank: int) -> None:
        super().__init__()
        count, inputs, outputs = stack.shape
        device = stack.device
        self.left = nn.ParameterList(torch.zeros(outputs, rank, device=device) for _ in range(count))
        self.right = nn.ParameterList(torch.empty(rank, inputs, device=device) for _ in range(count))
        for right in self.right:
            nn.init.kaiming_uniform_(right, a=math.sqrt(5))

    def forward(self, stack: Tensor) -> Tensor:
        products = [left @ right for left, right in zip(self.left, self.right, strict=True)]
        return stack + torch.stack(products).mT.to(stack.dtype)


@contextmanager
def _in_stacks(
    model: PreTrainedModel, linears: Sequence[LinearLayer], rank: int, seed: int
) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """By parametrizations of the stacks among ``linears``: peft can wrap one stack of a module alone."""
    stacked = [(linear.name, *linear.stack) for linear in linears if linear.stack is not None]
    added: dict[str, _WithProducts] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _, path, _ in stacked:
            if path not in added:
                added[path] = _WithProducts(model.get_parameter(path), rank)
    with ExitStack() as undo:
        for path, products in added.items():
            owner, _, name = path.rpartition(".")
            module = model.get_submodule(owner)
            undo.callback(_put_in_order, module, [own for own, _ in module.named_parameters(recurse=False)])
            parametrize.register_parametrization(module, name, products)
            undo.callback(parametrize.remove_parametrizations, module, name, leave_parametrized=False)
        yield {name: (added[path].left[place], added[path].right[place]) for name, path, place in stacked}


def _put_in_order(module: nn.Module, names: Sequence[str]) -> None:
    """Parameters that were taken out of a module and put back come last in it."""
    for name in names:
        parameter = module.get_parameter(name)
        delattr(module, name)
        module.register_parameter(name, parameter)


def _swap_output_hooks(pairs: Sequence[tuple[Any, Any]]) -> None:
    """Hooks move between a linear layer and its adapter as whole dictionaries, to which their handles refer."""
    for layer, base in pairs:
        for name in _OUTPUT_HOOKS:
            ours, theirs = getattr(layer, name), getattr(base, name)
            setattr(layer, name, theirs)
            setattr(base, name, ours)


def summed(model: PreTrainedModel, parts: Sequence[tuple[float, Module]]) -> tuple[tuple[WeightUpdate, ...], float]:
    """The sum of share * B A over the (share, module) pairs, as one update per weight that they change.

    The factors side by side are compressed by a singular value decomposition to what numbers of float64 can tell: at
    most the sum of the ranks, and at most the weight's smaller side. Returned beside the updates: the largest
    loss of a weight by compressing, and by rounding to float32, relative to its update in the Frobenius norm.
    """
    updates, residual = [], 0.0
    changed = parts[0][1]
    for linear in linear_layers(model, with_experts=any(map(is_expert, changed))):
        left = torch.cat([share * module[linear.name][0].double() for share, module in parts], dim=1)
        right = torch.cat([module[linear.name][1].double() for _, module in parts])
        for role, rows in linear.roles:
            update, lost = _compressed(linear.layer, role, left[rows], right)
            updates.append(update)
            residual = max(residual, lost)
    updates.sort(key=lambda update: (update.layer, update.role))
    return tuple(updates), residual


def linear_layers(model: PreTrainedModel, *, with_experts: bool = False) -> list[LinearLayer]:
    """Every linear layer of the FFLs, ``with_experts`` of a mixture's experts too.

    Raises ``BakeoutError`` for a model without FFLs that see every token where those are all that is asked for, and
    for experts of a form that is not read.
    """
    names = {module: name for name, module in model.named_modules()}
    every = slice(None)
    linears: list[LinearLayer] = []
    of_mixture = with_experts and bool(routers(model))
    for layer in feed_forwards_if_any(model) if of_mixture else feed_forward_layers(model):
        if layer.layout == "fused":
            halves: tuple[tuple[Role, slice], ...] = (("gate", slice(0, layer.width)), ("up", slice(layer.width, None)))
            linears.append(LinearLayer(names[layer.gate], layer.layer, halves))
        else:
            linears.append(LinearLayer(names[layer.gate], layer.layer, (("gate", every),)))
        if layer.up is not None:
            linears.append(LinearLayer(names[layer.up], layer.layer, (("up", every),)))
        linears.append(LinearLayer(names[layer.down], layer.layer, (("down", every),)))
    if not of_mixture:
        return linears
    seeing = 1 + max((linear.layer for linear in linears), default=-1)
    for number, expert in enumerate(require_experts(model), start=seeing):
        for linear in expert.linears():
            stack = None if linear.number is None else (linear.path, linear.number)
            name = linear.path if stack is None else f"{linear.path}.{linear.number}"
            linears.append(LinearLayer(name, number, linear.roles, expert, stack))
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
