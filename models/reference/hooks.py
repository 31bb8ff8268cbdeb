"""Interventions as forward hooks on a PyTorch model, by the paper's own formulas in float64.

Nothing here uses the constants that are baked into graphs: baked graphs are compared with these hooks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from bakeout.models.network.devices import in_float64
from bakeout.models.network.families import FeedForward, experts, feed_forwards_if_any, identity
from bakeout.models.network.key_sites import KeySite, key_sites
from bakeout.models.network.mixtures.experts import Expert, Removable, Routed
from bakeout.models.plan import (
    AdjustedLayer,
    Coin,
    Intervention,
    KeySpaceDetection,
    NeuronAdjust,
    PlanError,
    ResidualAddition,
    ResidualEdit,
    ResidualProjection,
)

# Called with a layer and what an intervention watches there: [N, n] in the model's dtype, all tokens in their order.
See = Callable[[int, Tensor], None]


class Hooks:
    """A context in which ``model`` runs with ``interventions`` applied, and shows what they look at.

    Every Neuron Adjust adjusts, and every residual edit moves the stream, in the order given. Key Space Detection only
    reads: what it does to the logits is ``Reference``'s. Weight edits are no hooks and are passed over: the model
    carries them (``weight_edits``).
    Hooks that others register inside the context see the adjusted values.

    After a forward pass over N = batch x tokens tokens, in their order: ``seen[index]``, float64 [N, n], is what
    intervention ``index`` watches, layer after layer: for Neuron Adjust the selected neurons' pre-activations before
    the adjustment, for all others their layers' key vectors. A stochastic coin starts from its plan's seed when the
    context is entered, and runs on from one forward pass to the next.

    Raises ``PlanError`` where an intervention names layers or neurons that the model lacks, or has no hook.
    """

    def __init__(self, model: PreTrainedModel, interventions: Sequence[Intervention]) -> None:
        self.model = model
        self.interventions = tuple(interventions)
        self._hooked = {index: entry for index, entry in enumerate(interventions) if not entry.edits_weights}
        for intervention in self._hooked.values():
            _require_hook(intervention)
            intervention.require_fit(identity(model, ""))
        self._seen: dict[tuple[int, int], Tensor] = {}
        self._handles: list[Removable] = []

    def __enter__(self) -> Hooks:
        """Register the hooks."""
        if self._handles:
            raise RuntimeError("the hooks are registered already")
        for index, intervention in self._hooked.items():
            # What watches is registered before what acts, and so sees the values before they are changed.
            self._handles += watch(self.model, intervention, self._keep(index))
            self._handles += _ACTING[type(intervention)](self.model, intervention)
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove the hooks. What was seen stays."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @property
    def seen(self) -> dict[int, Tensor]:
        """What every hooked intervention watched in the latest forward pass, by its index."""
        return {index: self.seen_by(index) for index in self._hooked}

    def seen_by(self, index: int) -> Tensor:
        """What one of them watched there; the pass may end behind its last layer."""
        return _side_by_side([self._seen[index, part.layer] for part in self._hooked[index].parts])

    def _keep(self, index: int) -> See:
        def keep(layer: int, values: Tensor) -> None:
            self._seen[index, layer] = in_float64(values)

        return keep


def watch(model: PreTrainedModel, intervention: Intervention, see: See) -> Iterator[RemovableHandle]:
    """Hooks that show what a graph's ``intervention`` watches in each of its layers, and change nothing.

    Of an expert they are the values after the adjustments that are in force by then, as of any layer, and NaN of the
    tokens that are not sent to it. They are computed for the hook alone: what tosses a coin there tosses it once more.
    """
    layers, routed = feed_forwards_if_any(model), experts(model)
    watches = intervention.watches
    for layer in dict.fromkeys(part.layer for part in intervention.parts):
        watched = intervention.watched(layer)
        index = watched if isinstance(watched, slice) else torch.from_numpy(watched)
        if watches != "pre_activation":
            site = key_sites(model, watches)[layer]
            yield site.module.register_forward_pre_hook(_key_hook(layer, site, index, see))
        elif layer < len(layers):
            yield layers[layer].gate.register_forward_hook(_pre_activation_hook(layers[layer], index, see))
        else:
            expert = routed[layer - len(layers)]
            yield expert.router.module.register_forward_hook(_expert_hook(layer, expert, index, see))


def _key_hook(
    layer: int, site: KeySite, index: Tensor | slice, see: See
) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def read(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        see(layer, site.key(arguments[0])[..., index].flatten(0, -2))

    return read


def _pre_activation_hook(
    feed_forward: FeedForward, index: Tensor | slice, see: See
) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
    def read(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        see(feed_forward.layer, feed_forward.pre_activation(output)[..., index].flatten(0, -2))

    return read


def _expert_hook(
    layer: int, expert: Expert, index: Tensor | slice, see: See
) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    earlier = expert.changes

    def read(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        routed = Routed.of(expert.router, arguments[0], output)
        tokens = routed.chosen[:, expert.number].nonzero().flatten()
        values = expert.pre_activation(expert.rows(routed, tokens), earlier)[..., index]
        every = values.new_full((len(routed.inputs), values.shape[-1]), float("nan"))
        see(layer, every.index_copy(0, tokens, values))

    return read


def _adjusting(model: PreTrainedModel, intervention: NeuronAdjust) -> Iterator[Removable]:
    """Hooks that adjust the selected neurons."""
    layers, routed = feed_forwards_if_any(model), experts(model)
    # Drawn on the CPU, so that the draws are the same on every device.
    generator = torch.Generator().manual_seed(intervention.seed)
    for adjusted in intervention.layers:
        formula = _Adjustment(adjusted, intervention.coin, generator)
        if adjusted.layer >= len(layers):
            yield routed[adjusted.layer - len(layers)].changed_by(formula.of_all)
            continue
        feed_forward = layers[adjusted.layer]

        def adjust(
            module: nn.Module,
            arguments: tuple[Any, ...],
            output: Tensor,
            feed_forward: FeedForward = feed_forward,
            formula: _Adjustment = formula,
        ) -> Tensor:
            return feed_forward.with_pre_activation(output, formula.of_all(feed_forward.pre_activation(output)))

        yield feed_forward.gate.register_forward_hook(adjust)


def _reading(model: PreTrainedModel, intervention: KeySpaceDetection) -> Iterator[RemovableHandle]:
    """No hooks: ``Reference`` refuses by what is seen."""
    return iter(())


# From a residual stream and a direction, float64, to the changed stream.
_Formula = Callable[[Tensor, Tensor], Tensor]


def _adding(model: PreTrainedModel, intervention: ResidualAddition) -> Iterator[RemovableHandle]:
    """Hooks that add the directions."""

    def add(stream: Tensor, direction: Tensor) -> Tensor:
        moved = stream + intervention.coefficient * direction
        if not intervention.keep_norm:
            return moved
        norm = moved.norm(dim=-1, keepdim=True)
        # A stream of zeros has no direction, and stays.
        return torch.where(norm > 0, moved / norm * stream.norm(dim=-1, keepdim=True), moved)

    return _moving(model, intervention, add)


def _projecting(model: PreTrainedModel, intervention: ResidualProjection) -> Iterator[RemovableHandle]:
    """Hooks that project the directions out."""
    return _moving(model, intervention, lambda stream, v: stream - (stream * v).sum(dim=-1, keepdim=True) * v)


def _moving(model: PreTrainedModel, edit: ResidualEdit, formula: _Formula) -> Iterator[RemovableHandle]:
    """Hooks that change what blocks give."""
    layers = feed_forwards_if_any(model)
    for placed in edit.layers:
        layer = layers[placed.layer]
        if layer.norm_after_block:
            raise PlanError(
                f"{edit.title}: this architecture normalises its residual stream behind every block.",
                "Use an architecture that adds to its residual stream, as Llama does.",
            )

        def move(
            module: nn.Module,
            arguments: tuple[Any, ...],
            output: Any,
            direction: Tensor = torch.from_numpy(placed.direction.astype(np.float64)),  # noqa: B008
        ) -> Any:
            stream = output[0] if isinstance(output, tuple) else output
            exact = in_float64(stream)
            moved = formula(exact, direction.to(exact.device)).to(stream)
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        yield layer.block.register_forward_hook(move)


# How the kinds that edit graphs act on a PyTorch model.
_ACTING: Mapping[type[Intervention], Callable[[PreTrainedModel, Any], Iterator[Removable]]] = {
    NeuronAdjust: _adjusting,
    KeySpaceDetection: _reading,
    ResidualAddition: _adding,
    ResidualProjection: _projecting,
}


class _Adjustment:
    """Neuron Adjust of one layer's selected neurons (arXiv 2503.21730, section 3.1), as the paper writes it.

    The densities are compared and divided through their logarithms, because far from both means each underflows
    to 0 even in float64, and 0 / 0 has no value.
    """

    def __init__(self, layer: AdjustedLayer, coin: Coin, generator: torch.Generator) -> None:
        self.neurons = torch.from_numpy(layer.neurons)
        self._forget = torch.from_numpy(layer.forget_mean), torch.from_numpy(layer.forget_deviation)
        self._retain = torch.from_numpy(layer.retain_mean), torch.from_numpy(layer.retain_deviation)
        self._coin = coin
        self._generator = generator

    def of_all(self, pre_activation: Tensor) -> Tensor:
        """All of a layer's pre-activations [..., F], those of the selected neurons adjusted."""
        adjusted = pre_activation.clone()
        adjusted[..., self.neurons] = self(in_float64(adjusted[..., self.neurons])).to(adjusted)
        return adjusted

    def __call__(self, values: Tensor) -> Tensor:
        """The adjusted values: float64 [..., n] to the same shape."""
        forget_mean, forget_deviation = (part.to(values.device) for part in self._forget)
        retain_mean, retain_deviation = (part.to(values.device) for part in self._retain)
        log_forget = _log_density(values, forget_mean, forget_deviation)
        log_retain = _log_density(values, retain_mean, retain_deviation)
        shifted = retain_mean - retain_deviation * (values - forget_mean) / forget_deviation
        probability = 1 / (torch.exp(log_retain - log_forget) + 1)  # p_f / (p_r + p_f)
        is_forget = log_forget > log_retain
        if self._coin == "expected":
            return torch.where(is_forget, values + probability * (shifted - values), values)
        if self._coin == "stochastic":
            draws = torch.rand(values.shape, generator=self._generator, dtype=values.dtype)
            is_forget &= draws.to(values.device) < probability
        return torch.where(is_forget, shifted, values)


def _log_density(values: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """The logarithm of the normal density: -(v - mean)^2 / (2 deviation^2) - log(deviation sqrt(2 pi))."""
    return -((values - mean) ** 2) / (2 * deviation**2) - torch.log(deviation * math.sqrt(2 * math.pi))


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """Layers of one model may be on several devices."""
    return torch.cat([part.to(parts[0].device) for part in parts], dim=-1)


def _require_hook(intervention: Intervention) -> None:
    if type(intervention) not in _ACTING:
        raise PlanError(
            f"{intervention.title} acts on what a model computes, and no hook is known for it.",
            "Add one to models/reference/hooks.py.",
        )
