"""The queries of a name, and their key vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bakeout.models.data.rows import Record
from bakeout.models.methods import probed
from bakeout.models.methods.fitting import Fitting
from bakeout.models.methods.key_space_detection.cubes import LayerKeys
from bakeout.models.network.token_keys import reduced_token_keys
from bakeout.models.plan import Floats, Keys, KeySpaceDetection


def fresh_queries(fitting: Fitting, name: str) -> list[Record]:
    """Queries of a name to retain on which its false refusals are not counted: those of its probe file."""
    rows = fitting.rows[name]
    return [*rows.get("selection", ()), *rows.get("probe", ())]


@dataclass(frozen=True)
class RetainedQueries:
    """Queries of a name to retain: ``fitted`` ones, which regions are fitted against, and ``fresh`` ones."""

    fitted: Sequence[Record]
    fresh: Sequence[Record]


def retained_queries(fitting: Fitting, name: str, *, fits: bool) -> RetainedQueries:
    """The queries of a name to retain: all fresh, or if a shape ``fits`` against some, those of its probe file fitted.

    Without a selection file, every other one of the probe queries stays fresh.
    """
    if not fits:
        return RetainedQueries([], fresh_queries(fitting, name))
    probe, selection = fitting.rows[name].get("probe", []), fitting.rows[name].get("selection", [])
    return RetainedQueries(probe, selection) if selection else RetainedQueries(probe[::2], probe[1::2])


def least_margins(fitting: Fitting, queries: Sequence[Record], check: KeySpaceDetection) -> Floats:
    """The least margin over a query's tokens to each region, which decides at positions `every`: [queries, regions]."""
    return np.array(
        reduced_token_keys(
            lambda keys: check.margins(keys.astype(np.float64)).min(axis=0),
            fitting.model,
            [query.prompt_ids for query in queries],
            layers=check.layers,
            keys=check.keys,
            batch_size=fitting.batch_size,
            track=fitting.track,
        )
    )


def query_keys(
    fitting: Fitting,
    name: str,
    queries: Sequence[Record],
    layers: Sequence[int],
    keys: Keys = "key_vector",
    query_start: Sequence[int] | None = None,
) -> LayerKeys:
    """The keys of the queries' last tokens, or if ``query_start`` is given their mean keys from there on.

    Float32 [queries, F] of each layer. ``name`` is for progress.
    """
    return probed.keys(fitting, name, [query.prompt_ids for query in queries], layers, keys, query_start)
