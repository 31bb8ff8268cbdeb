"""Neuron Adjust (arXiv 2503.21730, section 3.1): which neurons to shift, and between which Gaussians."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bakeout.models.errors import BakeoutError
from bakeout.models.methods import probed
from bakeout.models.methods.fitting import Fitting
from bakeout.models.methods.neuron_adjust.options import NeuronAdjustOptions
from bakeout.models.methods.search_space import Settings, tuned
from bakeout.models.network.statistics import NeuronStatistics
from bakeout.models.plan import AdjustedLayer, Floats, NeuronAdjust
from bakeout.models.plan.kinds.neuron_adjust import NeuronAdjustReport

_RESOLUTION = np.finfo(np.float32)
# Rows that a search probes at a time: it probes often, and larger batches are faster.
_SEARCH_BATCH = 32


def fit(options: NeuronAdjustOptions, fitting: Fitting) -> NeuronAdjust:
    """Probe the data to forget and to keep, and fit."""
    return fit_neuron_adjust(*_probed(options, fitting), options)


def fitter(options: NeuronAdjustOptions, fitting: Fitting) -> Callable[[Settings], NeuronAdjust]:
    """Fits of other settings, from statistics that are probed once for each choice of `tokens`."""
    probed: dict[str, tuple[NeuronStatistics, NeuronStatistics]] = {}

    def fit_settings(settings: Settings) -> NeuronAdjust:
        candidate = options.model_copy(update=dict(settings))
        if candidate.tokens not in probed:
            probed[candidate.tokens] = _probed(candidate, replace(fitting, batch_size=_SEARCH_BATCH))
        return fit_neuron_adjust(*probed[candidate.tokens], candidate)

    return fit_settings


def fit_neuron_adjust(
    forget: NeuronStatistics,
    retain: NeuronStatistics,
    options: NeuronAdjustOptions,
) -> NeuronAdjust:
    """Select the top `ratio` of all neurons, pooled over layers, and keep their Gaussians.

    The score of a neuron is mean_f - mean_r, signed, as in the authors' code (`difference`), or that divided by
    the pooled deviation sqrt((deviation_f^2 + deviation_r^2) / 2) (`standardised`, our reading). Equal scores go to
    the lower layer, then the lower neuron. A dead neuron, whose deviation on either set is below what float32 can
    resolve, has no density and is never selected. At least one neuron is.

    Raises ``BakeoutError`` for statistics of different models, of fewer than two tokens
    or with NaN or infinite values, and when every neuron is dead.
    """
    ratio = tuned(options.ratio)
    _require_comparable(forget, retain)
    forget_deviation = forget.moments.deviation
    retain_deviation = retain.moments.deviation
    alive = _varies(forget.moments.mean, forget_deviation) & _varies(retain.moments.mean, retain_deviation)
    if not alive.any():
        raise BakeoutError("Neuron Adjust: no neuron's pre-activation varies.", "Probe more, and different, texts.")

    score = forget.moments.mean - retain.moments.mean
    if options.selection == "standardised":
        pooled = np.sqrt((np.square(forget_deviation) + np.square(retain_deviation)) / 2)
        score = np.divide(score, pooled, out=np.zeros_like(score), where=alive)
    score = np.where(alive, score, -np.inf)
    count = min(max(1, round(ratio * score.size)), int(alive.sum()))
    selected = np.zeros(score.size, dtype=bool)
    selected[np.argsort(-score, axis=None, kind="stable")[:count]] = True

    layers = []
    for layer, row in enumerate(selected.reshape(score.shape)):
        neurons = np.flatnonzero(row).astype(np.int64)
        if len(neurons):
            layers.append(
                AdjustedLayer(
                    layer,
                    neurons,
                    forget_mean=forget.moments.mean[layer, neurons],
                    forget_deviation=forget_deviation[layer, neurons],
                    retain_mean=retain.moments.mean[layer, neurons],
                    retain_deviation=retain_deviation[layer, neurons],
                )
            )
    report = NeuronAdjustReport(
        ratio=ratio,
        selection=options.selection,
        coin=options.coin,
        neurons=count,
        neurons_per_layer={str(layer.layer): len(layer.neurons) for layer in layers},
        dead_neurons=int((~alive).sum()),
        forget_tokens=forget.tokens,
        retain_tokens=retain.tokens,
    )
    return NeuronAdjust(coin=options.coin, layers=tuple(layers), seed=options.seed, report=report)


def _probed(options: NeuronAdjustOptions, fitting: Fitting) -> tuple[NeuronStatistics, NeuronStatistics]:
    """The statistics of the data to forget, and of the data to keep."""
    names = options.names(fitting.data)
    forget, retain = (probed.neurons(fitting, names[role], options.tokens) for role in ("forget", "retain"))
    return forget, retain


def _require_comparable(forget: NeuronStatistics, retain: NeuronStatistics) -> None:
    if forget.moments.mean.shape != retain.moments.mean.shape:
        raise BakeoutError(
            f"Neuron Adjust: the statistics have shapes {forget.moments.mean.shape} (forget) and "
            f"{retain.moments.mean.shape} (retain).",
            "Probe both data sets on one model.",
        )
    for name, statistics in (("forget", forget), ("retain", retain)):
        if not (np.isfinite(statistics.moments.mean).all() and np.isfinite(statistics.moments.m2).all()):
            raise BakeoutError(
                f"Neuron Adjust: the {name} set's statistics hold NaN or infinite values.",
                "Probe again, in float32, and look for overflow.",
            )


def _varies(mean: Floats, deviation: Floats) -> NDArray[np.bool_]:
    """Where a deviation is more than the rounding of float32 values around the mean."""
    return deviation > np.maximum(_RESOLUTION.eps * np.abs(mean), _RESOLUTION.tiny)
