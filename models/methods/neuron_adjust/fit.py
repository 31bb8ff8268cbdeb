"""Neuron Adjust (arXiv 2503.21730, section 3.1): which neurons to shift, and between which Gaussians."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from bakeout.models.data.uses import Scope
from bakeout.models.errors import BakeoutError
from bakeout.models.methods import probed
from bakeout.models.methods.fitting import Fitting
from bakeout.models.methods.neuron_adjust.options import NeuronAdjustOptions
from bakeout.models.methods.search_space import Settings, tuned
from bakeout.models.network.statistics import MixtureStatistics, Moments, NeuronStatistics, shape_of
from bakeout.models.plan import AdjustedLayer, Floats, NeuronAdjust
from bakeout.models.plan.kinds.neuron_adjust import NeuronAdjustReport

# Of a dense model, or of a mixture of experts.
Statistics = NeuronStatistics | MixtureStatistics

# An expert that sees fewer tokens of one of the sets is left alone.
RARE = 32
_RESOLUTION = np.finfo(np.float32)
# Rows that a search probes at a time: it probes often, and larger batches are faster.
_SEARCH_BATCH = 32


def fit(options: NeuronAdjustOptions, fitting: Fitting) -> NeuronAdjust:
    """Probe the data to forget and to keep, and fit."""
    return fit_neuron_adjust(*_probed(options, fitting), options)


def fitter(options: NeuronAdjustOptions, fitting: Fitting) -> Callable[[Settings], NeuronAdjust]:
    """Fits of other settings, from statistics that are probed once for each choice of `tokens`."""
    probed: dict[str, tuple[Statistics, Statistics]] = {}

    def fit_settings(settings: Settings) -> NeuronAdjust:
        candidate = options.model_copy(update=dict(settings))
        if candidate.tokens not in probed:
            probed[candidate.tokens] = _probed(candidate, replace(fitting, batch_size=_SEARCH_BATCH))
        return fit_neuron_adjust(*probed[candidate.tokens], candidate)

    return fit_settings


def fit_neuron_adjust(forget: Statistics, retain: Statistics, options: NeuronAdjustOptions) -> NeuronAdjust:
    """Select the top `ratio` of all neurons, pooled over layers, and keep their Gaussians.

    The score of a neuron is mean_f - mean_r, signed, as in the authors' code (`difference`), or that divided by
    the pooled deviation sqrt((deviation_f^2 + deviation_r^2) / 2) (`standardised`, our reading). Equal scores go to
    the lower layer, then the lower neuron. A dead neuron, whose deviation on either set is below what float32 can
    resolve, has no density and is never selected; nor is one of a rare expert, which saw fewer than ``RARE`` tokens of
    either set (our reading: so few tell no deviation). At least one neuron is.

    Raises ``BakeoutError`` for statistics of different models, of fewer than two tokens
    or with NaN or infinite values, and when every neuron is dead.
    """
    ratio = tuned(options.ratio)
    _require_comparable(forget, retain)
    pairs = list(zip(forget.layers, retain.layers, strict=True))
    is_rare = [_is_rare(forget, own, other) or _is_rare(retain, other, own) for own, other in pairs]
    scored = [
        _dead_scores(own) if rare else _scores(own, other, options)
        for (own, other), rare in zip(pairs, is_rare, strict=True)
    ]
    score = np.concatenate(scored)
    alive = int((score > -np.inf).sum())
    if not alive:
        raise BakeoutError("Neuron Adjust: no neuron's pre-activation varies.", "Probe more, and different, texts.")
    count = min(max(1, round(ratio * score.size)), alive)
    selected = np.zeros(score.size, dtype=bool)
    selected[np.argsort(-score, kind="stable")[:count]] = True

    layers = []
    ends = np.cumsum([len(own) for own in scored])
    for layer, (row, (own, other)) in enumerate(zip(np.split(selected, ends[:-1]), pairs, strict=True)):
        neurons = np.flatnonzero(row).astype(np.int64)
        if len(neurons):
            layers.append(
                AdjustedLayer(
                    layer,
                    neurons,
                    forget_mean=own.mean[neurons],
                    forget_deviation=own.deviation[neurons],
                    retain_mean=other.mean[neurons],
                    retain_deviation=other.deviation[neurons],
                )
            )
    rare_neurons = sum(len(own) for own, rare in zip(scored, is_rare, strict=True) if rare)
    report = NeuronAdjustReport(
        ratio=ratio,
        selection=options.selection,
        coin=options.coin,
        neurons=count,
        neurons_per_layer={str(layer.layer): len(layer.neurons) for layer in layers},
        dead_neurons=score.size - alive - rare_neurons,
        rare_experts=sum(is_rare) if isinstance(forget, MixtureStatistics) else None,
        tokens=None if options.tokens == "answer" else options.tokens,
        forget_tokens=forget.tokens,
        retain_tokens=retain.tokens,
    )
    return NeuronAdjust(coin=options.coin, layers=tuple(layers), seed=options.seed, report=report)


def _is_rare(of: Statistics, own: Moments, other: Moments) -> bool:
    """Whether an expert saw too few tokens of either set. A layer that sees every token is no expert."""
    return isinstance(of, MixtureStatistics) and own.count < of.tokens and min(own.count, other.count) < RARE


def _scores(forget: Moments, retain: Moments, options: NeuronAdjustOptions) -> Floats:
    """What a layer's neurons are selected by, [F]; minus infinity of dead ones."""
    forget_deviation, retain_deviation = forget.deviation, retain.deviation
    alive = _varies(forget.mean, forget_deviation) & _varies(retain.mean, retain_deviation)
    score = forget.mean - retain.mean
    if options.selection == "standardised":
        pooled = np.sqrt((np.square(forget_deviation) + np.square(retain_deviation)) / 2)
        score = np.divide(score, pooled, out=np.zeros_like(score), where=alive)
    return np.where(alive, score, -np.inf)


def _dead_scores(moments: Moments) -> Floats:
    return np.full(len(moments.mean), -np.inf)


def _probed(options: NeuronAdjustOptions, fitting: Fitting) -> tuple[Statistics, Statistics]:
    """The statistics of the data to forget, and of the data to keep."""
    names = options.names(fitting.data)
    probe: Callable[[Fitting, Sequence[str], Scope], Statistics] = probed.neurons
    if probed.is_layer_by_layer(fitting, experts=options.experts):
        probe = partial(probed.mixture, with_experts=options.experts)
    forget, retain = (probe(fitting, names[role], options.tokens) for role in ("forget", "retain"))
    return forget, retain


def _require_comparable(forget: Statistics, retain: Statistics) -> None:
    shapes = [[len(moments.mean) for moments in statistics.layers] for statistics in (forget, retain)]
    if shapes[0] != shapes[1]:
        raise BakeoutError(
            f"Neuron Adjust: the statistics have shapes {shape_of(shapes[0])} (forget) and {shape_of(shapes[1])} "
            "(retain).",
            "Probe both data sets on one model.",
        )
    for name, statistics in (("forget", forget), ("retain", retain)):
        if not all(np.isfinite(of.mean).all() and np.isfinite(of.m2).all() for of in statistics.layers):
            raise BakeoutError(
                f"Neuron Adjust: the {name} set's statistics hold NaN or infinite values.",
                "Probe again, in float32, and look for overflow.",
            )


def _varies(mean: Floats, deviation: Floats) -> NDArray[np.bool_]:
    """Where a deviation is more than the rounding of float32 values around the mean, and 1 / deviation² one of them."""
    least = float(_RESOLUTION.max) ** -0.5
    varies: NDArray[np.bool_] = deviation > np.maximum(_RESOLUTION.eps * np.abs(mean), least)
    return varies
