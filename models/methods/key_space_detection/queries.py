"""The queries of a name, and their key vectors."""

from __future__ import annotations

from collections.abc import Sequence

from bakeout.models.data.rows import Record
from bakeout.models.methods.fitting import Fitting
from bakeout.models.methods.key_space_detection.cubes import LayerKeys
from bakeout.models.network.probing import probe_keys


def fresh_queries(fitting: Fitting, name: str) -> list[Record]:
    """Queries of a name to retain on which its false refusals are not counted: those of its probe file."""
    rows = fitting.rows[name]
    return [*rows.get("selection", ()), *rows.get("probe", ())]


def query_keys(fitting: Fitting, name: str, queries: Sequence[Record], layers: Sequence[int]) -> LayerKeys:
    """The key vectors of the queries' last tokens, float32 [queries, F] of each layer. ``name`` is for progress."""
    prompts = [query.prompt_ids for query in queries]
    return probe_keys(
        fitting.model, prompts, layers=layers, batch_size=fitting.batch_size, track=fitting.track_of([name])
    )
