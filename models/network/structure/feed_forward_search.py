"""Where a PyTorch model computes its feed-forward layers, found by what depends on what in one forward pass.

The rule is that of ``graph_passes.graph.anatomy``. A *linear* is a module that multiplies by a weight matrix. A
feed-forward layer (FFL) is a linear of (F, hidden), ``down``, whose input comes through element-wise and shape
operations, at least one of them an activation, from linears of (hidden, F) or the two halves of one of (hidden, 2F),
and from nothing else. What depends on what is read from the graph that autograd keeps: no tensor is saved in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bakeout.models.errors import BakeoutError
from bakeout.models.network.blocks import numbered
from bakeout.models.network.devices import input_device
from bakeout.models.plan import Layout

# Names of the nodes of autograd's graph, without "Backward" and a number behind it. GeLUFunction is Bloom's own.
# fmt: off
_ACTIVATIONS = frozenset((
    "Celu", "Elu", "Erf", "Expm1", "Gelu", "GeLUFunction", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyRelu", "Mish",
    "PreluKernel", "Relu", "Selu", "Sigmoid", "Silu", "Softplus", "Tanh", "Threshold",
))
_ELEMENT_WISE = frozenset((
    "Abs", "Add", "ClampMax", "ClampMin", "Clamp", "Clone", "Div", "Exp", "Fill", "Maximum", "Minimum", "Mul",
    "NativeDropout", "Neg", "Pow", "Sqrt", "Sub", "ToCopy", "Where",
))
_SHAPES = frozenset((
    "Alias", "Expand", "Reshape", "ReshapeAlias", "Squeeze", "UnsafeView", "Unsqueeze", "View",
))
# fmt: on
_PARTS = frozenset(("Slice", "Split", "SplitWithSizes"))
_PARAMETER = "torch::autograd::AccumulateGrad"
# Nodes between the input of ``down`` and its linears: an activation takes a dozen at most.
_LONGEST = 100

Node = Any
# Part of a linear's output: 0 is the first half, 1 the second, None the whole.
Source = tuple["Linear", int | None]


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear layer: its name in the model, and the widths of its input and output."""

    path: str
    module: nn.Module
    inputs: int
    outputs: int


@dataclass(frozen=True, eq=False)
class Located:
    """The linears of one FFL, and the name of its block; ``up`` is None where it is fused or ungated."""

    gate: Linear
    up: Linear | None
    down: Linear
    block: str
    layout: Layout
    norm_after_block: bool


def dimensions(module: nn.Module) -> tuple[int, int] | None:
    """Input and output width of a plain linear layer; None of any other module."""
    weight: Any = getattr(module, "weight", None)
    if isinstance(module, nn.Linear) and weight.ndim == 2:
        return weight.shape[1], weight.shape[0]
    if isinstance(module, Conv1D):
        return weight.shape[0], weight.shape[1]
    return None


def locate_feed_forwards(model: PreTrainedModel) -> list[Located]:
    """The FFLs of ``model`` in the order in which it computes them. Runs it on one token."""
    trace = _Trace()
    with ExitStack() as stack:
        stack.enter_context(_evaluating(model))
        for hooks in trace.hooks(model):
            stack.callback(hooks.remove)
        # Nor does it matter whether a model's parameters are frozen.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(saved_tensors_hooks(_nothing, _nothing))
        token = torch.zeros((1, 1), dtype=torch.long, device=input_device(model))
        model(input_ids=token, attention_mask=torch.ones_like(token), use_cache=False)
    return [located for linear, node in trace.read if (located := _located(linear, node, trace)) is not None]


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """A model in memory may be training, and would draw random numbers."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@dataclass(eq=False)
class _Trace:
    """What the linears of one forward pass read and gave, as nodes of autograd's graph.

    ``read``: each linear with what it reads, in order; ``given``: by what they give, the linears; ``norms``: what norms
    give; ``members``: what the members of lists of modules read and give, by their names.
    """

    read: list[tuple[Linear, Node]] = field(default_factory=list)
    given: dict[Node, Linear] = field(default_factory=dict)
    norms: set[Node] = field(default_factory=set)
    members: dict[str, tuple[set[Node], Node]] = field(default_factory=dict)

    def hooks(self, model: PreTrainedModel) -> Iterator[Any]:
        """Register what fills this."""
        yield model.get_input_embeddings().register_forward_hook(_differentiable)
        for path, module in model.named_modules():
            if (widths := dimensions(module)) is not None:
                linear = Linear(path, module, *widths)
                yield module.register_forward_pre_hook(self._reading(linear))
                yield module.register_forward_hook(self._giving(linear))
            # Classes of whole blocks can name the norm that they begin with.
            elif "norm" in type(module).__name__.lower() and not list(module.children()):
                yield module.register_forward_hook(self._normalised)
            if path.rpartition(".")[2].isdecimal():
                yield module.register_forward_hook(self._leaving(path), with_kwargs=True)

    def _reading(self, linear: Linear) -> Any:
        def hook(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
            if arguments:
                self.read.append((linear, arguments[0].grad_fn))

        return hook

    def _giving(self, linear: Linear) -> Any:
        def hook(_module: nn.Module, _arguments: Any, output: Tensor) -> None:
            self.given[output.grad_fn] = linear

        return hook

    def _normalised(self, _module: nn.Module, _arguments: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            self.norms.add(output.grad_fn)

    def _leaving(self, path: str) -> Any:
        def hook(_module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            stream = output[0] if isinstance(output, tuple | list) else output
            if isinstance(stream, Tensor):
                read = (value.grad_fn for value in (*arguments, *named.values()) if isinstance(value, Tensor))
                self.members[path] = {node for node in read if node is not None}, stream.grad_fn

        return hook

    def block_of(self, path: str) -> str:
        """The name of the block that the module called ``path`` is in: the outermost member of a list whose output is
        its input and something added to it. Raises ``BakeoutError`` where there is none: lists can hold parts of
        blocks.
        """
        for outer in numbered(path):
            if outer in self.members and self._is_residual(outer):
                return outer
        raise BakeoutError(
            f"{path} lies in no numbered block of the model that adds to the residual stream.",
            "Use a model whose feed-forward layers are in a list of whole blocks.",
        )

    def _is_residual(self, member: str) -> bool:
        """Whether what a member of a list gives is computed from what it reads without a linear in between."""
        read, given = self.members[member]
        seen: set[Node] = set()
        pending = [given]
        while pending:
            node = pending.pop()
            if node in read:
                return True
            if node is not None and node not in seen and node not in self.given:
                seen.add(node)
                pending += [edge[0] for edge in node.next_functions]
        return False


def _nothing(_saved: Any) -> Any:
    return None


def _differentiable(_module: nn.Module, _arguments: Any, output: Tensor) -> Tensor:
    # A copy, which models may scale in place.
    return output.detach().requires_grad_().clone()


def _located(down: Linear, node: Node, trace: _Trace) -> Located | None:
    """The FFL that ends in ``down``, which reads ``node``; None where it ends no FFL."""
    walked = _walk_back(node, trace.given, down.inputs)
    if walked is None:
        return None
    reached, activated = walked
    plain = reached - activated
    parts = {part for _, part in reached}
    if len(activated) != 1 or len(plain) > 1 or parts not in ({None}, {0, 1}):
        return None
    ((gate, part),) = activated
    # A fused linear whose second half is activated has its gate where no weight of ours is looked for.
    if part == 1 or any((linear.inputs, linear.outputs) != _widths(down, part) for linear, part in reached):
        return None
    up = next((linear for linear, _ in plain), None)
    if part is not None and up is not gate:
        return None
    layout: Layout = "ungated" if up is None else "gated" if part is None else "fused"
    block = trace.block_of(down.path)
    return Located(
        gate,
        up if layout == "gated" else None,
        down,
        block,
        layout,
        norm_after_block=trace.members[block][1] in trace.norms,
    )


def _widths(down: Linear, part: int | None) -> tuple[int, int]:
    return down.outputs, down.inputs * (1 if part is None else 2)


def _walk_back(end: Node, given: Mapping[Node, Linear], width: int) -> tuple[set[Source], set[Source]] | None:
    """The linears that ``end`` is computed from, and those with an activation on the way.

    None where it is computed from anything else, or from other parts of a linear than halves of ``width``.
    """
    reached: set[Source] = set()
    activated: set[Source] = set()
    seen: set[tuple[Node, int, bool, int | None]] = set()
    # A node, which of its outputs, whether an activation lies behind it, and the part of it that is used.
    pending: list[tuple[Node, int, bool, int | None]] = [(end, 0, False, None)]
    while pending:
        step = pending.pop()
        if step in seen:
            continue
        seen.add(step)
        node, output, is_activated, part = step
        if node is None or len(seen) > _LONGEST:
            return None
        if node in given:
            source = given[node], part
            reached.add(source)
            if is_activated:
                activated.add(source)
            continue
        kind = _kind(node)
        if kind == _PARAMETER and node.variable.numel() == 1:
            continue
        if kind in _PARTS and part is None:
            part = _half(node, output, width)
            if part is None:
                return None
        elif kind in _ACTIVATIONS:
            is_activated = True
        elif kind not in _ELEMENT_WISE and kind not in _SHAPES:
            return None
        following = [(*edge, is_activated, part) for edge in node.next_functions if edge[0] is not None]
        if not following:
            return None
        pending += following
    return reached, activated


def _half(node: Node, output: int, width: int) -> int | None:
    """Which half of 2 * ``width`` numbers a part is: 0 or 1, None where it begins elsewhere or leaves numbers out."""
    kind = _kind(node)
    if kind == "Slice":
        start, step = node._saved_start, node._saved_step
    else:
        first = node._saved_split_size if kind == "Split" else node._saved_split_sizes[0]
        start, step = first * output, 1
    return {0: 0, width: 1}.get(start) if step == 1 else None


def _kind(node: Node) -> str:
    """The operation that a node of autograd's graph undoes."""
    name: str = node.name()
    return name.rstrip("0123456789").removesuffix("Backward")
