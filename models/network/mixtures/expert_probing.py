"""Probing mixtures of experts: what each FFL computes, the experts of the tokens that are sent to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bakeout.models.data.rows import Record
from bakeout.models.data.uses import Scope
from bakeout.models.network.devices import in_float64
from bakeout.models.network.families import all_widths, experts, feed_forward_layers, feed_forwards_if_any
from bakeout.models.network.mixtures.experts import Expert, Routed
from bakeout.models.network.mixtures.routers import Router
from bakeout.models.network.probing import Batch, Read, counted_tokens, run_shared
from bakeout.models.network.statistics import MixtureMagnitudes, MixtureStatistics, Moments
from bakeout.models.plan import Floats
from bakeout.models.progress import Track, untracked

# Called with an expert's place among all, what it reads of tokens that count, [n, hidden], and which of these were
# sent to it, bool [tokens that count].
See = Callable[[int, Tensor, Tensor], None]


def probe_mixture(
    model: PreTrainedModel,
    records: Sequence[Record],
    *,
    scope: Scope = "answer",
    with_experts: bool = True,
    batch_size: int = 8,
    track: Track = untracked,
) -> MixtureStatistics:
    """The moments of every neuron's pre-activation, experts' of the tokens sent to them (Neuron Adjust's probe).

    Without ``with_experts``, those of the FFLs that see every token alone. The scope, the padding and the errors are
    those of ``probe_neurons``.
    """
    routed = experts(model) if with_experts else ()
    layers = feed_forwards_if_any(model) if routed else feed_forward_layers(model)
    sequences, first_counted = counted_tokens(records, scope)
    tokens = torch.empty(0, dtype=torch.int64)
    gathered: list[Moments] = []
    nothing = [Moments.none((width,)) for width in all_widths(model, with_experts=with_experts)]

    def prepare(batch: Batch) -> None:
        nonlocal tokens, gathered
        tokens = batch.tokens_from([first_counted[row] for row in batch.rows])
        gathered = list(nothing)

    def gather(number: int) -> Read:
        def read(output: Tensor) -> None:
            layer = layers[number]
            values = layer.pre_activation(output).reshape(-1, layer.width)
            gathered[number] = Moments.of(_numpy(values[tokens.to(values.device)]))

        return read

    def see(place: int, rows: Tensor, _sent: Tensor) -> None:
        expert = routed[place]
        gathered[len(layers) + place] = Moments.of(_numpy(expert.pre_activation(rows, expert.changes)))

    total = list(nothing)
    counted = 0
    inputs, outputs = reading_experts(routed, lambda: tokens, see)
    for batch_tokens, of_batch in run_shared(
        lambda _: (len(tokens), gathered),
        model,
        sequences,
        inputs=inputs,
        outputs={**{layer.gate: gather(number) for number, layer in enumerate(layers)}, **outputs},
        batch_size=batch_size,
        description="probing neurons",
        track=track,
        prepare=prepare,
    ):
        counted += batch_tokens
        total = [before.merge(own) for before, own in zip(total, of_batch, strict=True)]
    return MixtureStatistics(counted, tuple(total))


def probe_mixture_magnitudes(
    model: PreTrainedModel,
    records: Sequence[Record],
    *,
    scope: Scope = "answer",
    with_experts: bool = True,
    batch_size: int = 8,
    track: Track = untracked,
) -> MixtureMagnitudes:
    """The sum of every neuron's |key| over the tokens of ``records`` (Selective Pruning's probe).

    A token that is not sent to an expert adds nothing to its neurons. The rest is as of ``probe_mixture``.
    """
    routed = experts(model) if with_experts else ()
    layers = feed_forwards_if_any(model) if routed else feed_forward_layers(model)
    sequences, first_counted = counted_tokens(records, scope)
    tokens = torch.empty(0, dtype=torch.int64)
    gathered: list[Floats] = []
    total = [np.zeros(width) for width in all_widths(model, with_experts=with_experts)]

    def prepare(batch: Batch) -> None:
        nonlocal tokens, gathered
        tokens = batch.tokens_from([first_counted[row] for row in batch.rows])
        gathered = [np.zeros(width) for width in all_widths(model, with_experts=with_experts)]

    def gather(number: int) -> Read:
        def read(key: Tensor) -> None:
            values = key.reshape(-1, layers[number].width)
            gathered[number] = np.abs(_numpy(values[tokens.to(values.device)])).sum(axis=0)

        return read

    def see(place: int, rows: Tensor, _sent: Tensor) -> None:
        gathered[len(layers) + place] = np.abs(_numpy(routed[place].key_vector(rows))).sum(axis=0)

    counted = 0
    inputs, outputs = reading_experts(routed, lambda: tokens, see)
    for batch_tokens, of_batch in run_shared(
        lambda _: (len(tokens), gathered),
        model,
        sequences,
        inputs={**{layer.down: gather(number) for number, layer in enumerate(layers)}, **inputs},
        outputs=outputs,
        batch_size=batch_size,
        description="probing neurons",
        track=track,
        prepare=prepare,
    ):
        counted += batch_tokens
        total = [before + own for before, own in zip(total, of_batch, strict=True)]
    return MixtureMagnitudes(counted, tuple(total))


def reading_experts(
    routed: Sequence[Expert], tokens: Callable[[], Tensor], see: See
) -> tuple[Mapping[nn.Module, Read], Mapping[nn.Module, Read]]:
    """What reads routers in a forward pass, their inputs and their outputs, and shows what each expert reads.

    ``tokens`` are those that count: positions in the flattened batch.
    """
    inputs: dict[nn.Module, Read] = {}
    outputs: dict[nn.Module, Read] = {}
    for router, own in _by_router(routed):
        latest: list[Tensor] = []

        def keep(value: Tensor, latest: list[Tensor] = latest) -> None:
            latest[:] = [value]

        def read(
            output: object,
            router: Router = router,
            own: Sequence[tuple[int, Expert]] = own,
            latest: list[Tensor] = latest,
        ) -> None:
            passed = Routed.of(router, latest.pop(), output)
            chosen = passed.chosen[tokens().to(passed.chosen.device)]
            for place, expert in own:
                sent = chosen[:, expert.number]
                see(place, expert.rows(passed, tokens().to(chosen.device)[sent]), sent)

        inputs[router.module], outputs[router.module] = keep, read
    return inputs, outputs


def _by_router(routed: Sequence[Expert]) -> Iterator[tuple[Router, list[tuple[int, Expert]]]]:
    by_router: dict[int, list[tuple[int, Expert]]] = {}
    for place, expert in enumerate(routed):
        by_router.setdefault(expert.router.index, []).append((place, expert))
    for own in by_router.values():
        yield own[0][1].router, own


def _numpy(values: Tensor) -> Floats:
    return np.asarray(in_float64(values).cpu().numpy())
