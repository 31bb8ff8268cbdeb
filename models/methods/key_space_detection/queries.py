"""The queries of a name: whether there are enough, which of them count, and their key vectors."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bakeout.models.data.rows import Record, Rows
from bakeout.models.data.uses import Use
from bakeout.models.errors import BakeoutError
from bakeout.models.methods import probed
from bakeout.models.methods.fitting import Fitting
from bakeout.models.methods.key_space_detection.choosing.structure import EPSILONS
from bakeout.models.methods.key_space_detection.cubes import LayerKeys
from bakeout.models.methods.key_space_detection.detection import require_calibration
from bakeout.models.methods.key_space_detection.options import KeySpaceDetectionOptions
from bakeout.models.methods.key_space_detection.regions.registry import needs_retained
from bakeout.models.network.token_keys import reduced_token_keys
from bakeout.models.plan import Floats, Keys, KeySpaceDetection

_logger = logging.getLogger(__name__)

# What choices and alpha are counted on.
_COUNTED: tuple[Use, ...] = ("selection", "calibration")


def require_queries(options: KeySpaceDetectionOptions, data: Sequence[str], rows: Rows) -> None:
    """Raise ``BakeoutError`` where queries are lacking, or too few for the guarantee. ``data``: the recipe's names."""
    for name in options.names(data)["forget"]:
        # Each may be asked in several forms: their number says nothing then.
        if len(rows[name]["probe"]) < 2:
            raise BakeoutError(
                f"Key Space Detection: {name} has fewer than two probe queries.",
                "Give at least 2; a few hundred are better.",
            )
        if options.is_chosen and "selection" not in rows[name]:
            raise BakeoutError(
                f"Key Space Detection: {name} has no queries to choose region, layers, cubes, floor or epsilon by.",
                f"Give {name} a `selection:` file, or one file for everything, or name them: `paper: true` does.",
            )
        if options.alpha != "auto":
            continue
        if "calibration" not in rows[name]:
            raise BakeoutError(
                f"`alpha: auto` needs fresh queries of {name}.",
                f"Give {name} a `calibration:` file, or one file for everything, or a number for alpha.",
            )
        require_enough(options, len(asked_once(rows[name]["calibration"])), name)
    for name in options.names(data).get("retain", []) if needs_retained(options.region) else []:
        if sum(len(rows[name].get(use, ())) for use in ("probe", "selection", "calibration")) == 1:
            raise BakeoutError(
                f"Key Space Detection: {name} has one row, which regions are fitted against, and none to count false "
                "refusals on.",
                f"Give {name} more rows.",
            )


def require_enough(options: KeySpaceDetectionOptions, queries: int, skill: str) -> None:
    """Raise ``BakeoutError`` for too few calibration queries for epsilon, or for the largest that `auto` tries."""
    require_calibration(queries, EPSILONS[-1] if options.epsilon == "auto" else options.epsilon, skill)


def asked_once(records: Sequence[Record]) -> list[Record]:
    """The first record of every prompt: copies of a query pass for evidence wherever queries are counted."""
    first = {tuple(record.prompt_ids): record for record in reversed(records)}
    return list(reversed(first.values()))


def counted_once(fitting: Fitting) -> Fitting:
    """``fitting`` with every query once among the selection and calibration rows of a name; a warning says of which."""
    rows = {name: dict(uses) for name, uses in fitting.rows.items()}
    for name, uses in rows.items():
        for use in _COUNTED:
            if use in uses and (copies := len(uses[use]) - len(asked_once(uses[use]))):
                _logger.warning(
                    "%s: %d of %d %s rows ask what another asks, and are left out.", name, copies, len(uses[use]), use
                )
                uses[use] = asked_once(uses[use])
    return replace(fitting, rows=rows)


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
