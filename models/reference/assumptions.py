"""What the methods assume, checked on a model and its data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor
from transformers import PreTrainedModel

from bakeout.models.data.rows import Record
from bakeout.models.data.spreading import spread_indices
from bakeout.models.data.uses import Scope
from bakeout.models.errors import BakeoutError
from bakeout.models.network.probing import Batch, hooked, run_batches
from bakeout.models.plan import Floats, Intervention
from bakeout.models.progress import Track, untracked
from bakeout.models.reference.hooks import watch

# Where warnings begin: the largest gap between a distribution and its Gaussian, the overlap of two Gaussians, and how
# far a mean drifts over a conversation, in standard deviations.
FAR_FROM_GAUSSIAN = 0.15
MUCH_OVERLAP = 0.8
FAR_DRIFT = 0.5
# How many of the probed tokens are kept to be sorted.
_TOKENS = 4000


@dataclass(frozen=True)
class NeuronShape:
    """One selected neuron: is it Gaussian, as Neuron Adjust assumes, and do its two Gaussians differ?

    ``forget_gap``, ``retain_gap``: the largest gap between the empirical distribution function and that of the
    Gaussian in the plan (Kolmogorov-Smirnov). ``overlap``: the area under both Gaussians (1: the same one). A neuron is
    shifted where the forget Gaussian's density is the higher; ``shifted_forget`` and ``shifted_retain`` are the shares
    of tokens of either kind for which it is.
    """

    layer: int
    neuron: int
    forget_gap: float
    retain_gap: float
    forget_skewness: float
    retain_skewness: float
    forget_kurtosis: float
    retain_kurtosis: float
    overlap: float
    shifted_forget: float
    shifted_retain: float


@dataclass(frozen=True)
class Shapes:
    """All selected neurons, and warnings about them."""

    neurons: tuple[NeuronShape, ...]
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """A table, for a report."""
        return {"neurons": [asdict(neuron) for neuron in self.neurons], "warnings": list(self.warnings)}


@dataclass(frozen=True)
class DriftRow:
    """Queries that stand at one depth of a conversation, in tokens from ``first`` to before ``last``.

    ``margin`` is the median over them, ``refused`` the share inside; ``shift`` (Neuron Adjust) is the mean distance of
    the selected neurons' means from those of the same queries alone, in standard deviations.
    """

    name: str
    first: int
    last: int
    queries: int
    margin: float | None
    refused: float | None
    shift: float | None


@dataclass(frozen=True)
class Drift:
    """How margins and distributions move with a conversation's length, and warnings about them."""

    rows: tuple[DriftRow, ...]
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """A table, for a report."""
        return {"rows": [asdict(row) for row in self.rows], "warnings": list(self.warnings)}


def neuron_shapes(
    model: PreTrainedModel,
    intervention: Intervention,
    forget: Sequence[Record],
    retain: Sequence[Record],
    *,
    scope: Scope = "answer",
    batch_size: int = 8,
    track: Track = untracked,
) -> Shapes:
    """How far the selected neurons are from the Gaussians that Neuron Adjust assumes.

    ``forget`` and ``retain`` are best fresh rows, of the kinds that the plan was fitted on. ``scope``: the tokens that
    its Gaussians are of (``Adjustment.tokens``), of which at most 4,000 of either kind are examined, spread evenly; for
    an expert's neurons, those of them that are sent to it. Neurons of experts that are sent fewer than two are left
    out, which a warning tells.
    """
    seen = {
        "forget": _pre_activations(model, intervention, forget, scope, batch_size, track),
        "retain": _pre_activations(model, intervention, retain, scope, batch_size, track),
    }
    shapes = []
    column = unseen = 0
    for layer in intervention.adjustment.layers if intervention.adjustment else ():
        for index, neuron in enumerate(layer.neurons):
            gaussians = {
                "forget": (layer.forget_mean[index], layer.forget_deviation[index]),
                "retain": (layer.retain_mean[index], layer.retain_deviation[index]),
            }
            values = {kind: _known(seen[kind][:, column]) for kind in seen}
            column += 1
            if min(map(len, values.values())) < 2:
                unseen += 1
                continue
            moments = {kind: _shape(values[kind]) for kind in values}
            shapes.append(
                NeuronShape(
                    layer.layer,
                    int(neuron),
                    gaussian_gap(values["forget"], *gaussians["forget"]),
                    gaussian_gap(values["retain"], *gaussians["retain"]),
                    moments["forget"][0],
                    moments["retain"][0],
                    moments["forget"][1],
                    moments["retain"][1],
                    gaussian_overlap(*gaussians["forget"], *gaussians["retain"]),
                    _share_shifted(values["forget"], gaussians["forget"], gaussians["retain"]),
                    _share_shifted(values["retain"], gaussians["forget"], gaussians["retain"]),
                )
            )
    warnings = [f"{unseen} of {column} selected neurons are of experts that these tokens are not sent to."]
    return Shapes(tuple(shapes), (*(warnings if unseen else []), *_shape_warnings(shapes)))


def conversation_drift(
    model: PreTrainedModel,
    intervention: Intervention,
    queries: Mapping[str, Sequence[Record]],
    conversation: Sequence[Record],
    *,
    forget: Sequence[str],
    lengths: Sequence[int],
    separator: Sequence[int] = (),
    batch_size: int = 8,
    track: Track = untracked,
) -> Drift:
    """How an intervention treats the same ``queries`` alone and after longer and longer mixed conversations.

    ``conversation`` are answered rows of all skills. Before a query stand as many of them, from a place that differs
    from query to query, as reach one of ``lengths`` in tokens, with ``separator`` between them. Warnings are queries of
    ``forget`` that are refused less often than alone, others that are refused more often, and means that move far.

    Raises ``BakeoutError`` for a conversation of rows without tokens.
    """
    turns = [record.prompt_ids + record.response_ids + list(separator) for record in conversation]
    if not turns or not all(turns):
        raise BakeoutError("A conversation needs rows with tokens.", "Give rows with prompts and responses.")
    rows: list[DriftRow] = []
    warnings: list[str] = []
    for name, records in queries.items():
        alone: Floats | None = None
        fresh: DriftRow | None = None
        for before in sorted({0, *lengths}):
            heads = [_head(turns, before, start) for start in range(len(records))]
            prompts = [head + record.prompt_ids for head, record in zip(heads, records, strict=True)]
            seen = _deciding(model, intervention, prompts, batch_size, track)
            alone = seen if alone is None else alone
            row = _drift_row(intervention, name, prompts, seen, alone)
            rows.append(row)
            fresh = fresh or row
            warnings += _drift_warnings(row, fresh, name in forget)
    return Drift(tuple(rows), tuple(warnings))


def gaussian_gap(values: Floats, mean: float, deviation: float) -> float:
    """The largest gap between the distribution function of ``values`` [n] and the Gaussian's (Kolmogorov-Smirnov)."""
    ordered = np.sort(values)
    expected = norm.cdf(ordered, mean, deviation)
    steps = np.arange(len(ordered) + 1) / len(ordered)
    return float(max((steps[1:] - expected).max(), (expected - steps[:-1]).max()))


def gaussian_overlap(mean: float, deviation: float, other_mean: float, other_deviation: float) -> float:
    """The area under the lower of two normal densities: 1 if they are equal, 0 if they are disjoint."""
    if deviation == other_deviation:
        return float(2 * norm.cdf(-abs(mean - other_mean) / (2 * deviation)))
    # Between the two places where the densities cross, the narrower one is the higher.
    if deviation > other_deviation:
        mean, deviation, other_mean, other_deviation = other_mean, other_deviation, mean, deviation
    squares = 1 / deviation**2 - 1 / other_deviation**2
    linear = -2 * (mean / deviation**2 - other_mean / other_deviation**2)
    constant = (
        mean**2 / deviation**2 - other_mean**2 / other_deviation**2 - 2 * float(np.log(other_deviation / deviation))
    )
    root = float(np.sqrt(max(0.0, linear**2 - 4 * squares * constant)))
    low, high = (-linear - root) / (2 * squares), (-linear + root) / (2 * squares)
    narrow_inside = norm.cdf(high, mean, deviation) - norm.cdf(low, mean, deviation)
    wide_inside = norm.cdf(high, other_mean, other_deviation) - norm.cdf(low, other_mean, other_deviation)
    return float(1 - narrow_inside + wide_inside)


def _pre_activations(
    model: PreTrainedModel,
    intervention: Intervention,
    records: Sequence[Record],
    scope: Scope,
    batch_size: int,
    track: Track,
) -> Floats:
    """The selected neurons' pre-activations at the tokens in scope: float64 [tokens, neurons], spread evenly."""
    sequences = [record.prompt_ids + record.response_ids for record in records]
    first = [0 if scope == "all" else len(record.prompt_ids) for record in records]

    def in_scope(batch: Batch) -> Tensor:
        return batch.tokens_from([first[row] for row in batch.rows])

    parts = _watched(model, intervention, sequences, in_scope, batch_size, track)
    values: Floats = np.concatenate([part for _, part in parts])
    if len(values) < 2:
        raise BakeoutError("There are no tokens to look at.", "Give rows with a response.")
    return values[spread_indices(len(values), _TOKENS)]


def _deciding(
    model: PreTrainedModel,
    intervention: Intervention,
    prompts: Sequence[Sequence[int]],
    batch_size: int,
    track: Track,
) -> Floats:
    """The values by which an intervention decides over each prompt (its canary's): float64 [n, values]."""
    first = [intervention.canary_tokens(prompt).start for prompt in prompts]

    def tokens(batch: Batch) -> Tensor:
        return batch.tokens_from([first[row] for row in batch.rows])

    seen = {}
    for batch, part in _watched(model, intervention, prompts, tokens, batch_size, track):
        ends = np.cumsum([len(prompts[row]) - first[row] for row in batch.rows])[:-1]
        for row, own in zip(batch.rows, np.split(part, ends), strict=True):
            seen[row] = own.mean(axis=0)
    return intervention.canary_values(np.stack([seen[row] for row in range(len(prompts))]))


def _watched(
    model: PreTrainedModel,
    intervention: Intervention,
    sequences: Sequence[Sequence[int]],
    choose: Callable[[Batch], Tensor],
    batch_size: int,
    track: Track,
) -> Iterator[tuple[Batch, Floats]]:
    """Per batch what an intervention watches, layer after layer, at the flat positions that ``choose`` gives."""
    positions = torch.empty(0, dtype=torch.int64)
    gathered: dict[int, Tensor] = {}

    def prepare(batch: Batch) -> None:
        nonlocal positions
        positions = choose(batch)

    def see(layer: int, values: Tensor) -> None:
        gathered[layer] = values[positions].double()

    with hooked(watch(model, intervention, see)):
        for batch in run_batches(
            model, sequences, batch_size=batch_size, description="looking at neurons", track=track, prepare=prepare
        ):
            # A mixture computes its layers in another order than plans number them in.
            yield batch, torch.cat([gathered[part.layer].cpu() for part in intervention.parts], dim=-1).numpy()


def _head(turns: Sequence[list[int]], tokens: int, start: int) -> list[int]:
    """Whole turns from place ``start`` on, as many as reach ``tokens`` tokens."""
    head: list[int] = []
    turn = start * 7
    while len(head) < tokens:
        head += turns[turn % len(turns)]
        turn += 1
    return head


def _drift_row(
    intervention: Intervention,
    name: str,
    prompts: Sequence[Sequence[int]],
    seen: Floats,
    alone: Floats,
) -> DriftRow:
    margin = refused = shift = None
    if (check := intervention.check) is not None:
        nearness = check.nearness(seen)
        margin, refused = float(np.median(nearness)), float((nearness <= 1).mean())
    if intervention.adjustment is not None:
        # Of experts, only those that queries are sent to, both alone and here.
        known = ~(np.isnan(seen).all(axis=0) | np.isnan(alone).all(axis=0))
        if known.any():
            moved = np.abs(np.nanmean(seen[:, known], axis=0) - np.nanmean(alone[:, known], axis=0))
            shift = float(np.mean(moved / intervention.canary_unit(alone)[known]))
    shortest, longest = min(map(len, prompts)), max(map(len, prompts)) + 1
    return DriftRow(name, shortest, longest, len(prompts), margin, refused, shift)


def _drift_warnings(row: DriftRow, fresh: DriftRow, forgotten: bool) -> list[str]:
    where = f"{row.name} at {row.first} to {row.last - 1} tokens"
    if row.shift is not None:
        far = row.shift > FAR_DRIFT
        return [f"{where}: the neurons' means lie {row.shift:.1f} standard deviations off."] if far else []
    if row.refused is None or fresh.refused is None:
        return []
    if forgotten and row.refused < fresh.refused - 0.05:
        return [f"{where}: {row.refused:.0%} are refused, {fresh.refused:.0%} of the same queries alone."]
    if not forgotten and row.refused > fresh.refused + 0.01:
        return [f"{where}: {row.refused:.0%} are refused falsely, {fresh.refused:.0%} of the same queries alone."]
    return []


def _known(values: Floats) -> Floats:
    """Values without those of tokens that an expert is not sent."""
    known: Floats = values[~np.isnan(values)]
    return known


def _shape(values: Floats) -> tuple[float, float]:
    """Skewness and excess kurtosis; 0 if the values do not vary."""
    deviation = values.std()
    if deviation == 0:
        return 0.0, 0.0
    standard = (values - values.mean()) / deviation
    return float((standard**3).mean()), float((standard**4).mean() - 3)


def _share_shifted(values: Floats, forget: tuple[float, float], retain: tuple[float, float]) -> float:
    return float((norm.logpdf(values, *forget) > norm.logpdf(values, *retain)).mean())


def _shape_warnings(shapes: Sequence[NeuronShape]) -> list[str]:
    total = len(shapes)
    warnings = []
    if far := sum(max(shape.forget_gap, shape.retain_gap) > FAR_FROM_GAUSSIAN for shape in shapes):
        warnings.append(f"{far} of {total} selected neurons are far from Gaussian (gap above {FAR_FROM_GAUSSIAN}).")
    if alike := sum(shape.overlap > MUCH_OVERLAP for shape in shapes):
        warnings.append(
            f"{alike} of {total} selected neurons look much the same on both sets (overlap above {MUCH_OVERLAP})."
        )
    if backwards := sum(shape.shifted_retain >= shape.shifted_forget for shape in shapes):
        warnings.append(f"{backwards} of {total} selected neurons are shifted on retain tokens as often as on forget.")
    return warnings
