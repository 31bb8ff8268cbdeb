"""Random token sequences that are sent to adjusted experts: a canary knows nothing of experts that none is sent to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from bakeout.models.network.devices import input_device
from bakeout.models.network.families import feed_forwards_if_any
from bakeout.models.plan import Canary, Integers, Intervention
from bakeout.models.reference.hooks import Hooks
from bakeout.models.reference.search_vocabulary import Vocabulary
from bakeout.models.reference.token_search import CLEAR

# Passes at most, and the sequences of each.
_PASSES, _TRIED = 16, 32


def sequences_of_experts(
    model: PreTrainedModel,
    interventions: Sequence[Intervention],
    canary: Canary,
    vocabulary: Vocabulary,
    generator: np.random.Generator,
    *,
    most: int,
) -> Integers:
    """Sequences whose last tokens are sent to adjusted experts that ``canary`` has no value of: int64 [n, tokens].

    Each adds an expert to those before it, and lies clear of all regions of a check, whichever positions that tests
    (the mean of keys too). At most ``most``, and none where ``canary`` has a value of every adjusted expert.
    """
    missing = _of_experts(model, interventions) & np.isnan(_side_by_side(interventions, canary.expected)).all(axis=0)
    chosen: list[Integers] = []
    for _ in range(_PASSES):
        if not missing.any() or len(chosen) == most:
            break
        sequences = vocabulary.framed(vocabulary.random(_TRIED, generator))
        for row, reached in zip(sequences, _reached(model, interventions, sequences), strict=True):
            if (reached & missing).any() and len(chosen) < most:
                chosen.append(row)
                missing &= ~reached
    return np.array(chosen, np.int64).reshape(-1, canary.input_ids.shape[1])


def _of_experts(model: PreTrainedModel, interventions: Sequence[Intervention]) -> NDArray[np.bool_]:
    """Which of all adjusted neurons are an expert's."""
    seeing = len(feed_forwards_if_any(model))
    parts = [part for entry in interventions if entry.adjustment is not None for part in entry.parts]
    return np.repeat([part.layer >= seeing for part in parts], [part.count for part in parts]).astype(bool)


def _side_by_side(interventions: Sequence[Intervention], values: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The values of all adjusted neurons: [n, neurons]."""
    adjusted = [own for entry, own in zip(interventions, values, strict=True) if entry.adjustment is not None]
    return np.concatenate([np.empty((len(values[0]), 0)), *adjusted], axis=1)


@torch.no_grad()
def _reached(model: PreTrainedModel, interventions: Sequence[Intervention], sequences: Integers) -> NDArray[np.bool_]:
    """Which adjusted neurons the last tokens are sent to: [n, neurons]; none of a sequence that comes near a region."""
    with Hooks(model, interventions) as hooks:
        model(input_ids=torch.from_numpy(sequences).to(input_device(model)), use_cache=False)
    # Weight edits are no hooks.
    nothing = np.empty((sequences.size, 0))
    by_place = {place: values.cpu().numpy() for place, values in hooks.seen.items()}
    seen = [by_place.get(place, nothing) for place in range(len(interventions))]
    length = sequences.shape[1]
    reached = ~np.isnan(_side_by_side(interventions, seen)[length - 1 :: length])
    for entry, keys in zip(interventions, seen, strict=True):
        if entry.check is not None:
            decisive = entry.at_canary_tokens(keys.reshape(*sequences.shape, -1), sequences)
            for tested in (decisive, keys):
                nearest = entry.check.nearness(entry.check.margins(tested)).reshape(len(sequences), -1).min(axis=1)
                reached &= (nearest > CLEAR)[:, None]
    return reached
