"""Relearning curves: what fine-tuning brings back of what weight edits took away."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from bakeout.export.certificate.figures import Figure, NotMeasured, Section
from bakeout.export.certificate.measuring import Data, Measuring
from bakeout.models.data.rows import Record, read_records
from bakeout.models.data.spreading import spread

_SECTION = "relearning"


def relearning(measuring: Measuring) -> Section:
    """Accuracy on held-out rows after t steps on m others: of the rows to forget, and of those to keep.

    The area under a curve over log(1 + t), trapezoid by trapezoid, is relative to that of the base model, which answers
    as before any step (our reading). What acts on the graph is cut out in no step at all: see the statements.
    """
    models = measuring.models
    if not models.plan.edits_weights:
        why = "no weight is edited: whoever cuts the added nodes out has the base model back, without any training"
        return Section((), [NotMeasured(_SECTION, "relearning", why)])
    if models.checkpoint is None:
        why = "fine-tuning needs the base model's checkpoint, and it is an ONNX graph"
        return Section((), [NotMeasured(_SECTION, "relearning", why)])
    figures: list[Figure] = []
    missing: list[NotMeasured] = []
    kept = measuring.of("retain")
    for data in measuring.of("forget"):
        trained_on = {"other rows to forget": data, **({"rows to keep": kept[0]} if kept else {})}
        for name, other in trained_on.items():
            curve = measuring.journal.step(
                f"relearning {data.name} {other.name}", partial(_curve, measuring, data, other)
            )
            if not curve:
                needed = measuring.protocol.relearn_rows
                why = f"{data.name} has too few rows with a response to hold out beside the {needed} trained on"
                missing.append(NotMeasured(_SECTION, f"after training on {name}", why))
                continue
            figures += _figures(measuring, data, other, name, curve)
    return Section(figures, missing)


def _curve(measuring: Measuring, data: Data, other: Data) -> dict[str, Any]:
    from bakeout.models.checkpoint.checkpoint_files import load_model
    from bakeout.models.network.families import model_limits
    from bakeout.models.network.generation import named_ends
    from bakeout.models.reference.relearning import answered, relearn
    from bakeout.models.reference.weight_edits import apply_weight_edit

    protocol, checkpoint = measuring.protocol, measuring.models.checkpoint
    assert checkpoint is not None
    model = load_model(checkpoint.directory)
    tokenizer, limits = measuring.models.tokenizer, model_limits(model)
    rows = [
        record for record in read_records(data.source, tokenizer, limits) if record.prompt_ids and record.response_ids
    ]
    chosen = spread(rows, protocol.rows + protocol.relearn_rows)
    if len(chosen) <= protocol.relearn_rows:
        return {}
    places = set(spread(range(len(chosen)), protocol.relearn_rows))
    asked = [record for place, record in enumerate(chosen) if place not in places]
    trained: Sequence[Record] = [record for place, record in enumerate(chosen) if place in places]
    if other is not data:
        answerable = [record for record in read_records(other.source, tokenizer, limits) if record.response_ids]
        trained = spread(answerable, protocol.relearn_rows)
    ends = named_ends(model, tokenizer).tokens
    base = answered(model, asked, ends)
    for intervention in measuring.models.plan.interventions:
        apply_weight_edit(model, intervention)
    edited = answered(model, asked, ends)
    curve = [[0, edited.exact, edited.probability]]
    steps = relearn(
        model,
        trained,
        asked,
        ends,
        steps=protocol.relearn_steps,
        learning_rate=protocol.learning_rate,
        batch_size=protocol.relearn_batch,
        seed=protocol.seed,
        track=measuring.track,
        description=f"relearning {data.name} from {len(trained)} rows of {other.name}",
    )
    curve += [[step, answered_rows.exact, answered_rows.probability] for step, answered_rows in steps]
    return {"rows": len(asked), "base": [base.exact, base.probability], "curve": curve, "trained": len(trained)}


def _figures(measuring: Measuring, data: Data, other: Data, name: str, measured: dict[str, Any]) -> list[Figure]:
    figures = []
    names = (data.name,) if other is data else (data.name, other.name)
    for place, what in ((0, "exact answers"), (1, "probability per token")):
        base = measured["base"][place]
        points = [(step, values[place]) for step, *values in measured["curve"]]
        for step, value in points:
            figures.append(_figure(what, f"{data.name}, {step} steps on {measured['trained']} {name}", value, base))
        if base:
            relative = area(points) / area([(step, base) for step, _ in points])
            figures.append(_figure(f"area under {what} ÷ base's", f"{data.name}, {name}", relative, None))
    return [
        Figure(
            _SECTION,
            figure["name"],
            figure["slice"],
            figure["value"],
            None,
            measured["rows"],
            "fp32",
            names,
            figure["base"],
        )
        for figure in figures
    ]


def _figure(name: str, part: str, value: float, base: float | None) -> dict[str, Any]:
    return {"name": name, "slice": part, "value": value, "base": base}


def area(points: Sequence[tuple[float, float]]) -> float:
    """The area under (t, value) over log(1 + t), by trapezoids.

    >>> round(area([(0, 1.0), (9, 1.0)]), 4) == round(math.log(10), 4)
    True
    """
    places = [(math.log1p(step), value) for step, value in points]
    return sum((right - left) * (low + high) / 2 for (left, low), (right, high) in pairwise(places))
