"""The experts of a PyTorch model's mixtures as feed-forward layers, whichever way the model holds them.

Some models hold an expert as a module of three linear layers, others all experts of a mixture as stacks of matrices,
[experts, hidden, 2F] for gates and ups and [experts, F, hidden] for downs, and compute with these in one forward pass.
``Expert`` reads and changes both. Which tokens an expert sees is told by its router (``Routed``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bakeout.models.network.mixtures.routers import EXPERTS, Router, require_in_memory
from bakeout.models.plan import Role
from bakeout.models.plan.feed_forward_modules import ExpertModules

# What becomes of pre-activations [tokens, F], or of an output [tokens, hidden].
Change = Callable[[Tensor], Tensor]
# What of an expert is changed.
Changed = Literal["pre-activation", "output"]
# What gate, up and down are called in FFLs of mixtures; the latter are Mixtral's and lfm2_moe's.
GATED = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))


class Removable(Protocol):
    """What is in force until it is removed."""

    def remove(self) -> None:
        """End it."""


@dataclass(frozen=True, eq=False)
class Routed:
    """What passed a router: its ``inputs`` [tokens, hidden], and which experts each token is sent to, ``chosen``, bool
    [tokens, experts]. ``output`` is what the router gave.
    """

    inputs: Tensor
    chosen: Tensor
    output: Any

    @classmethod
    def of(cls, router: Router, inputs: Tensor, output: Any) -> Routed:
        """From what a router's module reads and gives."""
        return cls(inputs.reshape(-1, router.hidden), router.choice(output), output)


@dataclass(frozen=True, eq=False)
class Expert(ABC):
    """One expert. ``number``: which of its router's. ``width`` is F, ``hidden`` that of the residual stream."""

    router: Router
    number: int
    width: int
    hidden: int

    def rows(self, routed: Routed, tokens: Tensor) -> Tensor:
        """What the expert reads of those ``tokens`` (int64 [n]), which are sent to it: [n, hidden]."""
        return routed.inputs[tokens]

    def pre_activation(self, rows: Tensor, changes: Sequence[Change]) -> Tensor:
        """The pre-activation of ``rows`` after ``changes`` alone, whichever are in force: [n, hidden] to [n, F]."""
        return _changed(self.unchanged(rows), changes)

    @abstractmethod
    def unchanged(self, rows: Tensor) -> Tensor:
        """The pre-activation of ``rows`` before any change, likewise."""

    @abstractmethod
    def key_vector(self, rows: Tensor) -> Tensor:
        """The key vector of ``rows`` with all changes in force, likewise."""

    @property
    @abstractmethod
    def changes(self) -> tuple[Change, ...]:
        """What changes its pre-activations now, in this order."""

    @abstractmethod
    def changed_by(self, change: Change) -> Removable:
        """Change its pre-activations from now on, after earlier changes, until what is returned is told to ``remove``.

        The rows that are changed are those of the tokens that are sent to the expert, in any order.
        """

    @abstractmethod
    def shifted_by(self, vector: Tensor) -> Removable:
        """Add ``vector`` [hidden] to what it gives, before the router weights that, until ``remove``, likewise."""

    @abstractmethod
    def weight(self, role: Role) -> Tensor:
        """A weight W [out, in]: a view of the model's own parameter."""

    @abstractmethod
    def linears(self) -> tuple[ExpertLinear, ...]:
        """Its linear layers, in the order gate, up, down."""


@dataclass(frozen=True)
class ExpertLinear:
    """A linear layer of an expert: the module at ``path``, or matrix ``number`` of the stack [experts, in, out] there.

    ``roles``: which rows of its weight [out, in] each role is.
    """

    path: str
    roles: tuple[tuple[Role, slice], ...]
    number: int | None = None


def experts_of(model: PreTrainedModel, router: Router) -> tuple[Expert, ...]:
    """The experts of one mixture; none where any of them is of a form that is not read."""
    module: Any = model.get_submodule(f"{router.path}.{EXPERTS}")
    if isinstance(module, nn.ModuleList):
        separate = tuple(_separate(router, module))
        # Experts are counted, so that one that is missing would give its number to the next.
        return separate if len(separate) == router.experts else ()
    form = _FORMS.get(type(module).__name__)
    if form is None:
        return ()
    count, width, hidden = module.down_proj.shape
    return tuple(_Stacked(router, number, width, hidden, module, form) for number in range(count))


def expert_modules(experts: Sequence[Expert]) -> ExpertModules:
    """Where a model keeps its experts, which all are of one form."""
    paths = tuple(dict.fromkeys(f"{expert.router.path}.{EXPERTS}" for expert in experts))
    first = experts[0]
    if isinstance(first, _Stacked):
        return ExpertModules(paths, "gate_up_proj", "down_proj", interleaved=first.form.interleaved)
    assert isinstance(first, _Separate), "experts are separate or in stacks"
    names = {module: name for name, module in first.module.named_children()}
    return ExpertModules(paths, names[first.gate], names[first.down], names[first.up])


@dataclass(frozen=True, eq=False)
class _Separate(Expert):
    """An expert that is a module of three linear layers."""

    module: nn.Module
    gate: nn.Linear
    up: nn.Linear
    down: nn.Linear

    def unchanged(self, rows: Tensor) -> Tensor:
        # Without its hooks, which change what it gives, but as it computes where its weights are offloaded.
        gate: Tensor = self.gate.forward(rows.to(self.gate.weight.dtype))
        return gate

    def key_vector(self, rows: Tensor) -> Tensor:
        seen: list[Tensor] = []
        handle = self.down.register_forward_pre_hook(lambda _module, arguments: seen.append(arguments[0]))
        try:
            self.module(rows.to(self.gate.weight.dtype))
        finally:
            handle.remove()
        return seen[0]

    @property
    def changes(self) -> tuple[Change, ...]:
        return tuple(hook.change for hook in self.gate._forward_hooks.values() if isinstance(hook, _Changing))

    def changed_by(self, change: Change) -> Removable:
        return self.gate.register_forward_hook(_Changing(change))

    def shifted_by(self, vector: Tensor) -> Removable:
        return self.down.register_forward_hook(lambda _module, _arguments, output: output + vector.to(output))

    def weight(self, role: Role) -> Tensor:
        return {"gate": self.gate, "up": self.up, "down": self.down}[role].weight

    def linears(self) -> tuple[ExpertLinear, ...]:
        path = f"{self.router.path}.{EXPERTS}.{self.number}"
        names = {module: name for name, module in self.module.named_children()}
        roles: tuple[tuple[Role, nn.Module], ...] = (("gate", self.gate), ("up", self.up), ("down", self.down))
        return tuple(ExpertLinear(f"{path}.{names[module]}", ((role, slice(None)),)) for role, module in roles)


@dataclass(frozen=True)
class _Changing:
    """A change as a forward hook of a gate."""

    change: Change

    def __call__(self, module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        return self.change(output)


def _changed(values: Tensor, changes: Sequence[Change]) -> Tensor:
    for change in changes:
        values = change(values)
    return values


def _separate(router: Router, module: nn.ModuleList) -> Iterator[_Separate]:
    for number, expert in enumerate(module):
        children = dict(expert.named_children())
        names = next((names for names in GATED if children.keys() >= set(names)), None)
        if names is None or not all(type(children[name]) is nn.Linear for name in names):
            continue
        gate, up, down = (children[name] for name in names)
        width, hidden = gate.weight.shape  # type: ignore[misc]
        yield _Separate(router, number, width, hidden, expert, gate, up, down)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Form:
    """How a class of stacked experts computes.

    ``interleaved``: gates and ups alternate, else all gates come first. ``key``: the key vector from gates and ups;
    ``scores``: whether an expert reads its tokens multiplied by the router's score of it.
    """

    interleaved: bool
    key: Callable[[Any, Tensor, Tensor], Tensor]
    scores: bool

    def rows(self, width: int) -> tuple[tuple[Role, slice], ...]:
        """Which of 2F outputs are gates and ups."""
        if self.interleaved:
            return ("gate", slice(0, None, 2)), ("up", slice(1, None, 2))
        return ("gate", slice(0, width)), ("up", slice(width, None))

    def halves(self, gate_up: Tensor) -> tuple[Tensor, Tensor]:
        """Gates and ups [..., F] of [..., 2F]: views."""
        if self.interleaved:
            return gate_up[..., ::2], gate_up[..., 1::2]
        gate, up = gate_up.chunk(2, dim=-1)
        return gate, up


def _gpt_oss_key(module: Any, gate: Tensor, up: Tensor) -> Tensor:
    gate, up = gate.clamp(min=None, max=module.limit), up.clamp(min=-module.limit, max=module.limit)
    return (up + 1) * (gate * torch.sigmoid(gate * module.alpha))


def _llama4_key(module: Any, gate: Tensor, up: Tensor) -> Tensor:
    key: Tensor = up * module.act_fn(gate)
    return key


_FORMS: Mapping[str, _Form] = {
    "GptOssExperts": _Form(interleaved=True, key=_gpt_oss_key, scores=False),
    "Llama4TextExperts": _Form(interleaved=False, key=_llama4_key, scores=True),
}


@dataclass(frozen=True, eq=False)
class _Stacked(Expert):
    """An expert whose weights are matrices in stacks. ``module`` holds the stacks of all of its router's experts."""

    module: Any
    form: _Form

    def rows(self, routed: Routed, tokens: Tensor) -> Tensor:
        rows = super().rows(routed, tokens)
        return rows * routed.output[0][tokens, self.number, None] if self.form.scores else rows

    def unchanged(self, rows: Tensor) -> Tensor:
        return self.form.halves(self._gate_up(rows))[0]

    def key_vector(self, rows: Tensor) -> Tensor:
        gate, up = self.form.halves(self._gate_up(rows))
        return self.form.key(self.module, _changed(gate, self.changes), up)

    @property
    def changes(self) -> tuple[Change, ...]:
        present = self.module.__dict__.get("forward")
        return present.changes_of(self.number, "pre-activation") if isinstance(present, _Unstacked) else ()

    def changed_by(self, change: Change) -> Removable:
        self._require_in_memory()
        return _Unstacked.of(self).with_change(self.number, "pre-activation", change)

    def shifted_by(self, vector: Tensor) -> Removable:
        self._require_in_memory()
        return _Unstacked.of(self).with_change(self.number, "output", lambda output: output + vector.to(output))

    def weight(self, role: Role) -> Tensor:
        if role == "down":
            down: Tensor = self.module.down_proj[self.number].T
            return down
        gate, up = self.form.halves(self.module.gate_up_proj[self.number])
        return (gate if role == "gate" else up).T

    def linears(self) -> tuple[ExpertLinear, ...]:
        self._require_in_memory()
        path = f"{self.router.path}.{EXPERTS}"
        return (
            ExpertLinear(f"{path}.gate_up_proj", self.form.rows(self.width), self.number),
            ExpertLinear(f"{path}.down_proj", (("down", slice(None)),), self.number),
        )

    def computed(self, rows: Tensor) -> Tensor:
        """What the expert gives for ``rows``, its pre-activations changed: [n, hidden]."""
        return self._product(self.key_vector(rows), "down_proj")

    def _gate_up(self, rows: Tensor) -> Tensor:
        return self._product(rows, "gate_up_proj")

    def _product(self, rows: Tensor, name: str) -> Tensor:
        self._require_in_memory()
        product: Tensor = rows @ getattr(self.module, name)[self.number]
        bias = getattr(self.module, f"{name}_bias", None)
        return product if bias is None else product + bias[self.number]

    def _require_in_memory(self) -> None:
        require_in_memory(self.module.down_proj, self.router.path)


class _Unstacked:
    """The forward pass of a module of stacked experts, expert by expert, with changes of what they compute."""

    def __init__(self, expert: _Stacked) -> None:
        self._module, self._form = expert.module, expert.form
        self._experts = [
            _Stacked(expert.router, number, expert.width, expert.hidden, self._module, self._form)
            for number in range(len(self._module.down_proj))
        ]
        self._changes: list[tuple[int, Changed, Change]] = []
        # accelerate gives a module a forward pass of its own.
        self._replaced = self._module.__dict__.get("forward")

    @classmethod
    def of(cls, expert: _Stacked) -> _Unstacked:
        """The one that is the module's forward pass already, or a new one."""
        present = expert.module.__dict__.get("forward")
        return present if isinstance(present, cls) else cls(expert)

    def changes_of(self, number: int, what: Changed) -> tuple[Change, ...]:
        """Those of one expert, in their order."""
        return tuple(change for own, changed, change in self._changes if (own, changed) == (number, what))

    def with_change(self, number: int, what: Changed, change: Change) -> _UntilRemoved:
        """Compute by this pass, with a change of one expert, until it is removed."""
        entry = (number, what, change)
        self._changes.append(entry)
        self._module.forward = self
        return _UntilRemoved(lambda: self._without(entry))

    def _without(self, entry: tuple[int, Changed, Change]) -> None:
        self._changes.remove(entry)
        if self._changes:
            return
        if self._replaced is None:
            del self._module.forward
        else:
            self._module.forward = self._replaced

    def __call__(self, hidden_states: Tensor, router_indices: Any = None, routing_weights: Any = None) -> Tensor:
        """GPT-OSS gives the tokens and their weights for each expert; Llama 4 the tokens once for every expert.

        Transformers 5 gives GPT-OSS's tokens without a batch dimension, and weights of the chosen experts alone.
        """
        if self._form.scores:
            parts = hidden_states.view(len(self._experts), -1, hidden_states.shape[-1])
            return torch.cat([self._given(expert, rows) for expert, rows in zip(self._experts, parts, strict=True)])
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        if hidden_states.ndim == 2:
            of_every = routing_weights.new_zeros(len(rows), len(self._experts))
            routing_weights = of_every.scatter(1, router_indices, routing_weights)
        result = torch.zeros_like(rows)
        for number, expert in enumerate(self._experts):
            tokens = (router_indices == number).any(dim=-1).nonzero().flatten()
            weighted = self._given(expert, rows[tokens]) * routing_weights[tokens, number, None]
            result.index_add_(0, tokens, weighted.to(rows.dtype))
        return result.view(hidden_states.shape)

    def _given(self, expert: _Stacked, rows: Tensor) -> Tensor:
        return _changed(expert.computed(rows), self.changes_of(expert.number, "output"))


@dataclass(frozen=True)
class _UntilRemoved:
    """A change of an expert in a stack, which ``end`` ends."""

    end: Callable[[], None]

    def remove(self) -> None:
        """End it."""
        self.end()
