"""Does the plan give away what was forgotten? Queries judged by its regions and the base model alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bakeout.export.certificate.figures import Figure, NotMeasured, Section
from bakeout.export.certificate.measuring import Data, Measuring
from bakeout.export.evaluation.intervals import bootstrap, share_interval
from bakeout.models.data.rows import read_records
from bakeout.models.data.spreading import spread

_SECTION = "what the plan gives away"


def give_away(measuring: Measuring, fitted: Sequence[Data]) -> Section:
    """How well whoever has the plan and the base model tells candidate queries apart by their nearness to a region.

    AUROC 0.5 is guessing. Queries of the forgotten skill against all others: high is what a check is for, and so the
    plan gives the skill away to whoever has candidates. Rows that the plan was ``fitted`` on against fresh ones of the
    same skill: high would give the very rows away.
    """
    check, checkpoint = measuring.models.plan.check, measuring.models.checkpoint
    if check is None:
        why = "the plan holds no region; statistics and edited weights are not tested for what they give away"
        return Section((), [NotMeasured(_SECTION, "membership of candidate queries", why)])
    if checkpoint is None:
        why = "it needs the base model's checkpoint, and that is an ONNX graph"
        return Section((), [NotMeasured(_SECTION, "membership of candidate queries", why)])
    near = {source.name: _nearness(measuring, source) for source in (*measuring.data, *fitted)}
    forget = [item for item in measuring.data if item.role == "forget"]
    others = [item for item in measuring.data if item.role != "forget"]
    figures: list[Figure] = []
    for data in measuring.data:
        inside = near[data.name] <= 1
        interval = share_interval(int(inside.sum()), len(inside))
        name = "candidate queries inside a region"
        figures.append(
            Figure(_SECTION, name, data.name, float(inside.mean()), interval, len(inside), "fp32", (data.name,))
        )
    if others:
        outside = np.concatenate([near[other.name] for other in others])
        names = tuple(item.name for item in (*forget, *others))
        members = np.concatenate([near[item.name] for item in forget])
        figures.append(_auroc("the skill: AUROC", "to forget, against all others", members, outside, names))
    if not fitted:
        why = "the rows that the plan was fitted on are not given (`fitted`)"
        return Section(figures, [NotMeasured(_SECTION, "the rows: AUROC", why)])
    fresh = np.concatenate([near[item.name] for item in forget])
    members = np.concatenate([near[item.name] for item in fitted])
    names = tuple(item.name for item in (*fitted, *forget))
    figures.append(_auroc("the rows: AUROC", "fitted on, against fresh", members, fresh, names))
    return Section(figures)


def auroc(members: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """The chance that a member is nearer (smaller) than another query, ties counted half (Mann and Whitney).

    >>> auroc(np.array([0.0, 1.0]), np.array([1.0, 2.0]))
    0.875
    """
    below = (members[:, None] < others[None, :]).mean()
    return float(below + (members[:, None] == others[None, :]).mean() / 2)


def _auroc(
    name: str, part: str, members: NDArray[np.float64], others: NDArray[np.float64], data: tuple[str, ...]
) -> Figure:
    both, count = np.concatenate([members, others]), len(members)

    def of(rows: NDArray[np.int64]) -> float:
        own, other = rows[rows < count], rows[rows >= count]
        return auroc(both[own], both[other]) if len(own) and len(other) else 0.5

    interval = bootstrap(len(both), of)
    return Figure(_SECTION, name, part, auroc(members, others), interval, len(both), "fp32", data)


def _nearness(measuring: Measuring, data: Data) -> NDArray[np.float64]:
    """Each query's nearness to the nearest region, at most 1 inside: float64 [queries]."""

    def measure() -> list[float]:
        from bakeout.models.checkpoint.checkpoint_files import load_model
        from bakeout.models.network.families import model_limits
        from bakeout.models.network.probing import probe_keys
        from bakeout.models.reference.hooks import Hooks
        from bakeout.models.reference.weight_edits import apply_weight_edit

        plan, checkpoint = measuring.models.plan, measuring.models.checkpoint
        check = plan.check
        assert check is not None
        assert checkpoint is not None
        # The check compares keys of a model with all that stands before it.
        earlier = list(takewhile(lambda intervention: intervention.check is None, plan.interventions))
        model: Any = load_model(checkpoint.directory)
        for intervention in earlier:
            apply_weight_edit(model, intervention)
        records = read_records(data.source, measuring.models.tokenizer, model_limits(model))
        asked = [record.prompt_ids for record in spread(records, measuring.protocol.rows) if record.prompt_ids]
        first = [check.decisive(prompt).start for prompt in asked] if check.positions == "mean" else None
        with Hooks(model, earlier):
            keys = probe_keys(model, asked, layers=check.layers, keys=check.keys, first=first, track=measuring.track)
        joined = np.concatenate([keys[layer] for layer in check.layers], axis=1)
        return [float(near) for near in check.nearness(check.margins(joined))]

    return np.array(measuring.journal.step(f"nearness {data.name}", measure), dtype=np.float64)
