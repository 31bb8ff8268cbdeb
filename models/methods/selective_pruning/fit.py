"""Selective Pruning (arXiv 2403.01267; the baseline of arXiv 2503.21730): which neurons to cut off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from bakeout.models.data.uses import Scope
from bakeout.models.errors import BakeoutError
from bakeout.models.methods import probed
from bakeout.models.methods.fitting import Fitting
from bakeout.models.methods.search_space import Settings, tuned
from bakeout.models.methods.selective_pruning.options import SelectivePruningOptions
from bakeout.models.network.statistics import KeyMagnitudes, MixtureMagnitudes, shape_of
from bakeout.models.plan import ZeroColumns, ZeroedColumns
from bakeout.models.plan.kinds.zero_columns import ZeroColumnsReport

# Of a dense model, or of a mixture of experts.
Magnitudes = KeyMagnitudes | MixtureMagnitudes

# What the authors add to the denominator, so that a neuron that is silent on the retain set has a score.
SILENT = 1e-8


def fit(options: SelectivePruningOptions, fitting: Fitting) -> ZeroColumns:
    """Probe the data to forget and to keep, and fit."""
    return fitter(options, fitting)({})


def fitter(options: SelectivePruningOptions, fitting: Fitting) -> Callable[[Settings], ZeroColumns]:
    """Fits of other settings, from magnitudes that are probed once for each choice of `tokens`."""
    gathered: dict[Scope, tuple[Magnitudes, Magnitudes]] = {}

    def fit_settings(settings: Settings) -> ZeroColumns:
        candidate = options.model_copy(update=dict(settings))
        if candidate.tokens not in gathered:
            gathered[candidate.tokens] = _magnitudes(candidate, fitting)
        return fit_selective_pruning(*gathered[candidate.tokens], ratio=tuned(candidate.ratio))

    return fit_settings


def _magnitudes(options: SelectivePruningOptions, fitting: Fitting) -> tuple[Magnitudes, Magnitudes]:
    names = options.names(fitting.data)
    probe: Callable[[Fitting, Sequence[str], Scope], Magnitudes] = probed.key_magnitudes
    if probed.is_layer_by_layer(fitting, experts=options.experts):
        probe = partial(probed.mixture_magnitudes, with_experts=options.experts)
    return probe(fitting, names["forget"], options.tokens), probe(fitting, names["retain"], options.tokens)


def fit_selective_pruning(forget: Magnitudes, retain: Magnitudes, *, ratio: float) -> ZeroColumns:
    """Cut off the top ``ratio`` of all neurons, pooled over layers: their columns of ``down`` become exactly 0.

    The score of a neuron is mean |key| over the forget set's tokens, divided by mean |key| over the retain set's plus
    1e-8, as in the authors' code. Equal scores go to the lower layer, then the lower neuron. At least one neuron is
    cut off. A neuron that is silent on the forget set is never cut off: its score is 0. An expert's neurons are silent
    on the tokens that are not sent to it.

    The authors' ratios are 0.015 (arithmetic) and 0.0001 (code). Raises ``BakeoutError`` for statistics of different
    models or with NaN or infinite values, and when every neuron is silent.
    """
    _require_comparable(forget, retain)
    scored = [
        own / forget.tokens / (other / retain.tokens + SILENT)
        for own, other in zip(forget.layers, retain.layers, strict=True)
    ]
    score = np.concatenate(scored)
    active = int((score > 0).sum())
    if active == 0:
        raise BakeoutError("Selective Pruning: every neuron is silent on the forget set.", "Probe more texts.")
    count = min(max(1, round(ratio * score.size)), active)
    order = np.argsort(-score, kind="stable")[:count]
    selected = np.zeros(score.size, dtype=bool)
    selected[order] = True
    layers = tuple(
        ZeroedColumns(layer, np.flatnonzero(row).astype(np.int64))
        for layer, row in enumerate(np.split(selected, np.cumsum([len(own) for own in scored])[:-1]))
        if row.any()
    )
    report = ZeroColumnsReport(
        ratio=ratio,
        neurons=count,
        neurons_per_layer={str(layer.layer): len(layer.columns) for layer in layers},
        silent_neurons=score.size - active,
        highest_score=float(score[order[0]]),
        lowest_selected_score=float(score[order[-1]]),
        forget_tokens=forget.tokens,
        retain_tokens=retain.tokens,
    )
    return ZeroColumns(layers, report)


def _require_comparable(forget: Magnitudes, retain: Magnitudes) -> None:
    shapes = [[len(own) for own in magnitudes.layers] for magnitudes in (forget, retain)]
    if shapes[0] != shapes[1]:
        raise BakeoutError(
            f"Selective Pruning: the statistics have shapes {shape_of(shapes[0])} (forget) and {shape_of(shapes[1])} "
            "(retain).",
            "Probe both data sets on one model.",
        )
    for name, statistics in (("forget", forget), ("retain", retain)):
        if statistics.tokens == 0:
            raise BakeoutError("A mean needs at least one token; none was probed.", "Give more data to probe.")
        if not all(np.isfinite(own).all() for own in statistics.layers):
            raise BakeoutError(
                f"Selective Pruning: the {name} set's statistics hold NaN or infinite values.",
                "Probe again, in float32, and look for overflow.",
            )
