"""What methods probe, by way of the cache where there is one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bakeout.models.data.rows import Record
from bakeout.models.data.uses import Scope
from bakeout.models.methods.fitting import Fitting
from bakeout.models.network.devices import give_back
from bakeout.models.network.families import all_widths, require_experts
from bakeout.models.network.generation import end_tokens
from bakeout.models.network.mixtures.expert_probing import probe_mixture, probe_mixture_magnitudes
from bakeout.models.network.mixtures.routers import routers
from bakeout.models.network.probe_cache import Array
from bakeout.models.network.probing import probe_key_magnitudes, probe_keys, probe_neurons
from bakeout.models.network.statistics import (
    KeyMagnitudes,
    MixtureMagnitudes,
    MixtureStatistics,
    Moments,
    NeuronStatistics,
)
from bakeout.models.network.teacher_forcing import exactly_answered
from bakeout.models.plan import Keys, first_of_mean


def keys(
    fitting: Fitting,
    name: str,
    prompts: Sequence[Sequence[int]],
    layers: Sequence[int],
    what: Keys = "key_vector",
    query_start: Sequence[int] | None = None,
) -> dict[int, NDArray[np.float32]]:
    """``probe_keys``, from ``query_start`` on (``first_of_mean``) if it is given. ``name`` is for progress."""
    first = None if query_start is None else [first_of_mean(prompt, query_start) for prompt in prompts]

    def compute() -> list[Array]:
        probed = probe_keys(
            fitting.model,
            prompts,
            layers=layers,
            keys=what,
            first=first,
            batch_size=fitting.batch_size,
            track=fitting.track_of([name]),
        )
        return [probed[layer] for layer in layers]

    kind = {} if what == "key_vector" else {"keys": what}
    of = "keys of the last token in layer" if query_start is None else "mean keys in layer"
    counted = {} if query_start is None else {"query_start": list(query_start)}
    asked = [{of: layer, **kind, **counted} for layer in layers]
    return dict(zip(layers, _arrays(fitting, asked, prompts, compute), strict=True))


def neurons(fitting: Fitting, names: Sequence[str], scope: Scope) -> NeuronStatistics:
    """``probe_neurons`` on the probe records of ``names``."""
    records = fitting.probe(names)

    def compute() -> list[Array]:
        moments = probe_neurons(
            fitting.model, records, scope=scope, batch_size=fitting.batch_size, track=fitting.track_of(names)
        ).moments
        return [np.stack([np.full_like(moments.mean, moments.count), moments.mean, moments.m2])]

    (array,) = _arrays(fitting, [{"moments of pre-activations": scope}], _texts(records), compute)
    count, mean, m2 = np.array(array)
    return NeuronStatistics(Moments(int(count.flat[0]), mean, m2))


def is_layer_by_layer(fitting: Fitting, *, experts: bool) -> bool:
    """Whether the probes of a mixture are those to take: of mixtures, and of dense models of several widths.

    ``experts``: whether experts are to be changed. Raises ``BakeoutError`` where they are and cannot be read:
    transformers 5 has stacks of its own.
    """
    routed = bool(routers(fitting.model))
    if routed and experts:
        require_experts(fitting.model)
    return routed or len(set(all_widths(fitting.model))) > 1


def mixture(fitting: Fitting, names: Sequence[str], scope: Scope, *, with_experts: bool) -> MixtureStatistics:
    """``probe_mixture`` on the probe records of ``names``."""
    records = fitting.probe(names)

    def compute() -> list[Array]:
        statistics = probe_mixture(
            fitting.model,
            records,
            scope=scope,
            with_experts=with_experts,
            batch_size=fitting.batch_size,
            track=fitting.track_of(names),
        )
        # Layers of several widths, one after the other, and how many tokens were probed.
        rows = [np.stack([np.full_like(of.mean, of.count), of.mean, of.m2]) for of in statistics.layers]
        return [np.concatenate([*rows, np.full((3, 1), float(statistics.tokens))], axis=1)]

    (array,) = _arrays(
        fitting, [_asked("moments of a mixture's pre-activations", scope, with_experts)], _texts(records), compute
    )
    values = np.array(array)
    ends = np.cumsum(all_widths(fitting.model, with_experts=with_experts))
    return MixtureStatistics(
        int(values[0, -1]),
        tuple(Moments(int(own[0, 0]), own[1], own[2]) for own in np.split(values[:, :-1], ends[:-1], axis=1)),
    )


def key_magnitudes(fitting: Fitting, names: Sequence[str], scope: Scope) -> KeyMagnitudes:
    """``probe_key_magnitudes`` on the probe records of ``names``."""
    records = fitting.probe(names)

    def compute() -> list[Array]:
        magnitudes = probe_key_magnitudes(
            fitting.model, records, scope=scope, batch_size=fitting.batch_size, track=fitting.track_of(names)
        )
        return [np.stack([np.full_like(magnitudes.total, magnitudes.tokens), magnitudes.total])]

    (array,) = _arrays(fitting, [{"magnitudes of keys": scope}], _texts(records), compute)
    tokens, total = np.array(array)
    return KeyMagnitudes(int(tokens.flat[0]), total)


def mixture_magnitudes(
    fitting: Fitting, names: Sequence[str], scope: Scope, *, with_experts: bool
) -> MixtureMagnitudes:
    """``probe_mixture_magnitudes`` on the probe records of ``names``."""
    records = fitting.probe(names)

    def compute() -> list[Array]:
        magnitudes = probe_mixture_magnitudes(
            fitting.model,
            records,
            scope=scope,
            with_experts=with_experts,
            batch_size=fitting.batch_size,
            track=fitting.track_of(names),
        )
        return [np.concatenate([*magnitudes.layers, [float(magnitudes.tokens)]])]

    (array,) = _arrays(
        fitting, [_asked("magnitudes of a mixture's keys", scope, with_experts)], _texts(records), compute
    )
    values = np.array(array)
    ends = np.cumsum(all_widths(fitting.model, with_experts=with_experts))
    return MixtureMagnitudes(int(values[-1]), tuple(np.split(values[:-1], ends[:-1])))


def exact_answers(fitting: Fitting, name: str, records: Sequence[Record]) -> NDArray[np.bool_]:
    """``exactly_answered``."""
    end = end_tokens(fitting.model, fitting.tokenizer)

    def compute() -> list[Array]:
        track = fitting.track_of([name])
        return [exactly_answered(fitting.model, records, end=end, batch_size=fitting.batch_size, track=track)]

    return np.array(_arrays(fitting, [{"exact answers up to": sorted(end)}], _texts(records), compute)[0])


def _asked(what: str, scope: Scope, with_experts: bool) -> dict[str, Any]:
    return {what: scope} if with_experts else {what: scope, "experts": False}


def _texts(records: Sequence[Record]) -> list[list[int]]:
    return [ids for record in records for ids in (record.prompt_ids, record.response_ids)]


def _arrays(
    fitting: Fitting,
    asked: Sequence[Mapping[str, Any]],
    rows: Sequence[Sequence[int]],
    compute: Callable[[], list[Array]],
) -> list[Array]:
    def gathered() -> list[Array]:
        arrays = compute()
        give_back()
        return arrays

    described = [{**request, "batch": fitting.batch_size} for request in asked]
    return gathered() if fitting.cache is None or not rows else fitting.cache.arrays(described, rows, gathered)
