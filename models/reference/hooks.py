"""Interventions as forward hooks on a PyTorch model, by the paper's own formulas in float64.

Nothing here uses the constants that are baked into graphs: what is baked is held against this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bakeout.models.network.families import FeedForward, feed_forward_layers
from bakeout.models.plan import AdjustedLayer, Coin, Intervention, KeySpaceDetection, NeuronAdjust, PlanError

_Hooked = NeuronAdjust | KeySpaceDetection


class Hooks:
    """A context in which ``model`` runs with ``interventions`` in force, and shows what they look at.

    Every Neuron Adjust adjusts, in the order given. Key Space Detection only reads: what it does to the logits is
    ``Reference``'s. Weight edits are no hooks and are passed over: the model carries them (``weight_edits``).
    Hooks that others register inside the context see the adjusted values.

    After a forward pass over N = batch x tokens tokens, in their order: ``pre_activations[index]`` float64 [N, n]
    are those of intervention ``index``'s selected neurons before it adjusts them, layer after layer, and
    ``keys[index]`` float64 [N, layers x F] the key vectors that it tests. A stochastic coin starts from its plan's
    seed when the context is entered, and runs on from one forward pass to the next.

    Raises ``PlanError`` where an intervention names layers or neurons that the model lacks.
    """

    def __init__(self, model: PreTrainedModel, interventions: Sequence[Intervention]) -> None:
        self.model = model
        self.interventions = tuple(interventions)
        self._layers = feed_forward_layers(model)
        for intervention in self.interventions:
            if isinstance(intervention, _Hooked):
                _require_fit(intervention, self._layers)
        self._seen: dict[tuple[int, int], Tensor] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> Hooks:
        """Register the hooks."""
        if self._handles:
            raise RuntimeError("the hooks are registered already")
        for index, intervention in enumerate(self.interventions):
            if isinstance(intervention, NeuronAdjust):
                self._hook_neuron_adjust(index, intervention)
            elif isinstance(intervention, KeySpaceDetection):
                self._hook_key_space_detection(index, intervention)
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
    def pre_activations(self) -> dict[int, Tensor]:
        """What every Neuron Adjust saw in the latest forward pass, by its index."""
        return self._seen_by(NeuronAdjust)

    @property
    def keys(self) -> dict[int, Tensor]:
        """What every Key Space Detection saw in the latest forward pass, by its index."""
        return self._seen_by(KeySpaceDetection)

    def _seen_by(self, kind: type[_Hooked]) -> dict[int, Tensor]:
        return {
            index: torch.cat([self._seen[index, layer] for layer in _layers_of(intervention)], dim=-1)
            for index, intervention in enumerate(self.interventions)
            if isinstance(intervention, kind)
        }

    def _hook_neuron_adjust(self, index: int, intervention: NeuronAdjust) -> None:
        device = self.model.device
        generator = torch.Generator(device).manual_seed(intervention.seed)
        for adjusted in intervention.layers:
            feed_forward = self._layers[adjusted.layer]
            formula = _Adjustment(adjusted, intervention.coin, generator, device)

            def adjust(
                module: nn.Module,
                arguments: tuple[Any, ...],
                output: Tensor,
                feed_forward: FeedForward = feed_forward,
                formula: _Adjustment = formula,
            ) -> Tensor:
                pre_activation = feed_forward.pre_activation(output).clone()
                selected = pre_activation[..., formula.neurons].double()
                self._seen[index, feed_forward.layer] = selected.flatten(0, -2)
                pre_activation[..., formula.neurons] = formula(selected).to(output.dtype)
                return feed_forward.with_pre_activation(output, pre_activation)

            self._handles.append(feed_forward.gate.register_forward_hook(adjust))

    def _hook_key_space_detection(self, index: int, intervention: KeySpaceDetection) -> None:
        for layer in intervention.layers:

            def read(module: nn.Module, arguments: tuple[Any, ...], layer: int = layer) -> None:
                self._seen[index, layer] = arguments[0].double().flatten(0, -2)

            self._handles.append(self._layers[layer].down.register_forward_pre_hook(read))


class _Adjustment:
    """Neuron Adjust of one layer's selected neurons (arXiv 2503.21730, section 3.1), as the paper writes it.

    The densities are compared and divided through their logarithms, because far from both means each underflows
    to 0 even in float64, and 0 / 0 has no value.
    """

    def __init__(self, layer: AdjustedLayer, coin: Coin, generator: torch.Generator, device: torch.device) -> None:
        self.neurons = torch.from_numpy(layer.neurons).to(device)
        self._forget = _on(device, layer.forget_mean), _on(device, layer.forget_deviation)
        self._retain = _on(device, layer.retain_mean), _on(device, layer.retain_deviation)
        self._coin = coin
        self._generator = generator

    def __call__(self, values: Tensor) -> Tensor:
        """The adjusted values: float64 [..., n] to the same shape."""
        log_forget = _log_density(values, *self._forget)
        log_retain = _log_density(values, *self._retain)
        forget_mean, forget_deviation = self._forget
        retain_mean, retain_deviation = self._retain
        shifted = retain_mean - retain_deviation * (values - forget_mean) / forget_deviation
        probability = 1 / (torch.exp(log_retain - log_forget) + 1)  # p_f / (p_r + p_f)
        likelier_forget = log_forget > log_retain
        if self._coin == "expected":
            return torch.where(likelier_forget, values + probability * (shifted - values), values)
        if self._coin == "stochastic":
            draws = torch.rand(values.shape, generator=self._generator, dtype=values.dtype, device=values.device)
            likelier_forget &= draws < probability
        return torch.where(likelier_forget, shifted, values)


def _log_density(values: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """The logarithm of the normal density: -(v - mean)^2 / (2 deviation^2) - log(deviation sqrt(2 pi))."""
    return -((values - mean) ** 2) / (2 * deviation**2) - torch.log(deviation * math.sqrt(2 * math.pi))


def _on(device: torch.device, values: Any) -> Tensor:
    return torch.from_numpy(values).to(device)


def _layers_of(intervention: _Hooked) -> tuple[int, ...]:
    if isinstance(intervention, NeuronAdjust):
        return tuple(adjusted.layer for adjusted in intervention.layers)
    return intervention.layers


def _require_fit(intervention: _Hooked, layers: Sequence[FeedForward]) -> None:
    width = layers[0].width
    last = _layers_of(intervention)[-1]
    if last >= len(layers):
        raise PlanError(f"The plan names layer {last} of a model with {len(layers)}.")
    if isinstance(intervention, NeuronAdjust):
        neuron = max(int(adjusted.neurons[-1]) for adjusted in intervention.layers)
        if neuron >= width:
            raise PlanError(f"Neuron Adjust names neuron {neuron} of {width}.")
    elif intervention.centre.shape[1] != len(intervention.layers) * width:
        raise PlanError(f"The cubes' dimension is not {len(intervention.layers)} x {width}.")
