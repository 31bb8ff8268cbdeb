"""A plan's canary: synthesised, and measured on the PyTorch model that the plan was fitted on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from bakeout.models.errors import BakeoutError
from bakeout.models.network.devices import in_float64, input_device
from bakeout.models.network.families import block_numbers, feed_forwards_if_any
from bakeout.models.network.key_sites import KeySite, key_sites
from bakeout.models.plan import CANARY_NEURONS, Canary, Floats, Integers, Intervention
from bakeout.models.plan.canary_check import unmeasured
from bakeout.models.plan.kinds.intervention import Blocks
from bakeout.models.progress import Track, untracked
from bakeout.models.reference.expert_sequences import sequences_of_experts
from bakeout.models.reference.hooks import Hooks
from bakeout.models.reference.search_vocabulary import Vocabulary
from bakeout.models.reference.token_search import search_sequences

SHORTEST = 4
MOST_SEQUENCES = 32
# Up to three sequences a region.
_MOST_REGIONS = MOST_SEQUENCES // 3
_RANDOM_SEQUENCES = 4


def synthesise_canary(
    model: PreTrainedModel,
    interventions: Sequence[Intervention],
    vocabulary: Vocabulary,
    *,
    seed: int = 0,
    track: Track = untracked,
) -> Canary:
    """A canary of sequences that are nobody's: at most 32, inside and just outside of the check's regions.

    Without a check, or where no region is reached, they are four random ones; where experts are adjusted, random ones
    that are sent to these are added. Of more than ten regions ten are sampled by ``seed``; those, and the ones that the
    search does not reach, are the canary's ``uncovered``. Apart from the frame of ``vocabulary``, no sequence holds a
    run of its ``private`` tokens. As for ``measure_canary``, ``model`` carries the weight edits. Raises
    ``BakeoutError`` where no sequence is sent to any expert that an intervention adjusts.
    """
    generator = np.random.default_rng(seed)
    check = next((entry.check for entry in interventions if entry.check is not None), None)
    sequences: Integers = np.empty((0, 0), np.int64)
    uncovered: list[int] = []
    if check is not None:
        regions = np.arange(len(check.alpha))
        chosen = sorted(generator.permutation(regions)[:_MOST_REGIONS].tolist())
        sequences, missed = search_sequences(model, interventions, vocabulary, chosen, seed=seed, track=track)
        uncovered = [region for region in regions.tolist() if region not in chosen or region in missed]
    if not len(sequences):
        sequences = vocabulary.framed(vocabulary.random(_RANDOM_SEQUENCES, generator))
    canary = _measured(model, interventions, sequences, tuple(uncovered))
    most = MOST_SEQUENCES - len(sequences)
    more = sequences_of_experts(model, interventions, canary, vocabulary, generator, most=most)
    if len(more):
        canary = _measured(model, interventions, np.concatenate([sequences, more]), tuple(uncovered))
    return _with_values(interventions, canary)


def measured_anew(model: PreTrainedModel, interventions: Sequence[Intervention], canaries: Sequence[Canary]) -> Canary:
    """A canary of the sequences of several, those that are as long as the first that has any refused, or as the first.

    It is measured with all ``interventions`` in force; ``model`` carries the weight edits. At most 32 sequences, as
    many of each canary as there is room for.
    """
    first = next((canary for canary in canaries if canary.refused and any(canary.refused)), canaries[0])
    length = first.input_ids.shape[1]
    others = [canary for canary in canaries if canary.input_ids.shape[1] == length and canary is not first]
    alike = [canary.input_ids for canary in (first, *others)]
    in_turns = sorted((row, place) for place, rows in enumerate(alike) for row in range(len(rows)))[:MOST_SEQUENCES]
    taken = Counter(place for _, place in in_turns)
    sequences = np.concatenate([rows[: taken[place]] for place, rows in enumerate(alike)])
    canary = _with_values(interventions, _measured(model, interventions, sequences, ()))
    for intervention, values in zip(interventions, canary.expected, strict=True):
        if intervention.check is not None and not np.isnan(values).any():
            missed = ~(values <= intervention.check.alpha).any(axis=0)
            return replace(canary, uncovered=tuple(np.flatnonzero(missed).tolist()))
    return canary


def _with_values(interventions: Sequence[Intervention], canary: Canary) -> Canary:
    """The canary, if it has a value of each intervention, without which it could not tell another model."""
    if (lacking := unmeasured(interventions, canary)) is not None:
        raise BakeoutError(
            f"No token sequence of the canary is sent to an expert that {lacking.title} adjusts.",
            "Adjust more neurons (`ratio`), or leave experts alone (`experts: false`).",
        )
    return canary


def _measured(
    model: PreTrainedModel, interventions: Sequence[Intervention], sequences: Integers, uncovered: tuple[int, ...]
) -> Canary:
    """The canary of ``sequences``, and which of them a check refuses."""
    expected = canary_values(model, interventions, sequences)
    canary = Canary(sequences, expected, uncovered=uncovered)
    for place, intervention in enumerate(interventions):
        if intervention.check is not None and not np.isnan(expected[place]).any():
            # Their last or their mean keys decide, as keys of earlier tokens that are tested are clear of all regions.
            refused = intervention.check.is_inside(expected[place])
            values = _before_refusal(model, interventions, place, expected, refused)
            return replace(canary, expected=values, refused=tuple(refused.tolist()))
    return canary


def _before_refusal(
    model: PreTrainedModel,
    interventions: Sequence[Intervention],
    place: int,
    expected: Sequence[Floats],
    refused: NDArray[np.bool_],
) -> tuple[Floats, ...]:
    """``expected`` without what a graph does not compute of refused sequences: values of layers behind the check's.

    The check is the intervention at ``place``. Behind it a refused token's values hold the latch, or nothing at all.
    """
    last = _last_block_before(model, interventions[place])
    values = list(expected)
    for other, intervention in enumerate(interventions):
        if other != place:
            behind = intervention.is_behind((last, len(interventions)), other, _blocks(model))
            values[other] = np.where(refused[:, None] & behind, np.nan, expected[other])
    return tuple(values)


def _last_block_before(model: PreTrainedModel, intervention: Intervention) -> int:
    """The last block whose pre-activations are computed before all keys of a check; -1 for none.

    For key vectors it is that of the check's own deepest layer. What lies in a router's own block can read what the
    router reads, and only earlier blocks come before it.
    """
    watches, deepest = intervention.watches, intervention.parts[-1].layer
    if watches == "pre_activation" or watches == "key_vector":
        return block_numbers(model)[deepest]
    return key_sites(model, watches)[deepest].block - 1


def _blocks(model: PreTrainedModel) -> Blocks:
    router = _deepest_router(model)
    return block_numbers(model), (router or key_sites(model)[-1]).block


def _deepest_router(model: PreTrainedModel) -> KeySite | None:
    """The last router's logits, if no FFL that sees every token lies in its block or a later one."""
    routers, layers = key_sites(model, "router_logits"), key_sites(model)
    return routers[-1] if routers and (not layers or routers[-1].block > layers[-1].block) else None


def measure_canary(
    model: PreTrainedModel,
    interventions: Sequence[Intervention],
    prompt_ids: Sequence[Sequence[int]],
    sequences: int = 4,
) -> Canary:
    """What ``model`` computes, with all ``interventions`` applied, on the first few prompts of four or more tokens.

    For prompts that are nobody's secret: a plan carries them (``synthesise_canary`` is for all others).

    Weight edits are not made here: ``model`` carries them already, as it does while a plan is fitted. The prompts are
    cut to the shortest one's length, so that none needs padding. Raises ``BakeoutError`` where no prompt is long
    enough.
    """
    prompts = [prompt for prompt in prompt_ids if len(prompt) >= SHORTEST][:sequences]
    if not prompts:
        raise BakeoutError(
            f"None of the {len(prompt_ids)} prompts has {SHORTEST} tokens, so no canary can be measured.",
            "Add longer prompts to the forget data.",
        )
    length = min(len(prompt) for prompt in prompts)
    input_ids = np.array([list(prompt[:length]) for prompt in prompts], dtype=np.int64)
    return Canary(input_ids, canary_values(model, interventions, input_ids))


@torch.no_grad()
def canary_values(
    model: PreTrainedModel, interventions: Sequence[Intervention], input_ids: Integers
) -> tuple[Floats, ...]:
    """What ``Canary.expected`` holds, computed by ``model``, which carries the weight edits, on its ``input_ids``."""
    of_edits: list[Tensor] = []
    with ExitStack() as stack:
        # Registered before the hooks: it sees the gate's own output, not the adjusted one.
        keep = _watch_for_edits(model, of_edits.append)
        stack.callback(keep.remove)
        hooks = stack.enter_context(Hooks(model, interventions))
        model(input_ids=torch.from_numpy(input_ids).to(input_device(model)), use_cache=False)
    # What weight edits look at, which are no hooks.
    values_of_edits = in_float64(of_edits[-1][..., :CANARY_NEURONS].flatten(0, -2))
    seen = dict.fromkeys(range(len(interventions)), values_of_edits) | hooks.seen
    of_layers = block_numbers(model)
    coins = [
        (min(of_layers[part.layer] for part in entry.parts), place)
        for place, entry in enumerate(interventions)
        if entry.is_stochastic
    ]
    expected = []
    for place, intervention in enumerate(interventions):
        watched = seen[place].cpu().numpy().reshape(*input_ids.shape, -1)
        values = intervention.canary_values(intervention.at_canary_tokens(watched, input_ids))
        is_behind = bool(coins) and intervention.is_behind(min(coins), place, _blocks(model))
        expected.append(np.where(is_behind, np.nan, values))
    return tuple(expected)


def _watch_for_edits(model: PreTrainedModel, see: Callable[[Tensor], None]) -> RemovableHandle:
    """A hook that shows what weight edits are seen in: pre-activations of the last FFL that sees every token, or logits
    of the last router, whichever is the deeper.
    """
    if (site := _deepest_router(model)) is not None:
        return site.module.register_forward_pre_hook(lambda _module, arguments: see(site.key(arguments[0])))
    last = feed_forwards_if_any(model)[-1]
    return last.gate.register_forward_hook(lambda _module, _arguments, output: see(last.pre_activation(output)))
