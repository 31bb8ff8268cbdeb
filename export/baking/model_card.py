"""The artifact's README.md: what was removed, how, with what measured effect, and what it does not protect against."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal

from jinja2 import Environment, StrictUndefined

from bakeout.export.evaluation.rows import BASE, Row
from bakeout.models.plan import (
    Intervention,
    KeySpaceDetection,
    LowRankUpdate,
    NeuronAdjust,
    Plan,
    WeightEdit,
    ZeroColumns,
)
from bakeout.models.plan.plan_file import plan_bytes

if TYPE_CHECKING:
    from bakeout.models.data.tokenization import Tokenizer

Form = Literal["onnx", "checkpoint"]

_METHODS = {
    "lunar": "LUNAR",
    "unlearn": "UNLEARN",
    "learn": "LEARN",
    "reveal_and_release": "Reveal-and-Release",
}


def model_card(
    plan: Plan,
    rows: Sequence[Row],
    tokenizer: Tokenizer | None = None,
    *,
    form: Form = "onnx",
    quantized: str | None = None,
) -> str:
    """The card as Markdown. ``rows`` are the base model's and the artifact's, on the same data, or none.

    ``tokenizer`` writes the refusal of a Key Space Detection, and is not needed without; ``quantized`` names what the
    weights were quantised to. The card does not depend on where the artifact lies, nor on what its directory is called.
    """
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True, autoescape=False)
    template = environment.from_string(
        files("bakeout.export").joinpath("templates/model_card.md.j2").read_text("utf-8")
    )
    edits = [intervention for intervention in plan.interventions if isinstance(intervention, WeightEdit)]
    return template.render(
        form=form,
        quantized=quantized,
        forgotten=list(dict.fromkeys(name for one in plan.interventions for name in _forgotten(one))),
        learned=list(dict.fromkeys(name for one in edits for name in one.report.get("learn", ()))),
        model=plan.model,
        interventions=[_described(intervention, tokenizer) for intervention in plan.interventions],
        edits_weights=bool(edits),
        edits_graph=len(edits) < len(plan.interventions),
        rows=_beside_base(rows),
        plan_digest=hashlib.sha256(plan_bytes(plan)).hexdigest(),
        data=plan.provenance.get("data", {}),
        versions=plan.provenance.get("versions", {}),
    )


def _forgotten(intervention: Intervention) -> Iterable[str]:
    if isinstance(intervention, KeySpaceDetection):
        return intervention.skills
    names: Iterable[str] = intervention.report.get("forget", ())
    return names


def _described(intervention: Intervention, tokenizer: Tokenizer | None) -> dict[str, Any]:
    described: dict[str, Any] = {"kind": intervention.kind, "report": intervention.report}
    if isinstance(intervention, NeuronAdjust):
        return described | {
            "title": "Neuron Adjust",
            "neurons": sum(len(layer.neurons) for layer in intervention.layers),
            "layers": len(intervention.layers),
            "coin": intervention.coin,
            "seed": intervention.seed,
        }
    if isinstance(intervention, ZeroColumns):
        return described | {
            "title": "Selective Pruning",
            "neurons": sum(len(layer.columns) for layer in intervention.layers),
            "layers": len(intervention.layers),
        }
    if isinstance(intervention, LowRankUpdate):
        return described | {
            "title": _METHODS.get(intervention.method, intervention.method),
            "weights": [
                {"layer": update.layer, "role": update.role, "rank": update.left.shape[1]}
                for update in intervention.updates
            ],
        }
    assert tokenizer is not None, "a refusal is written with a tokenizer"
    return described | {
        "title": "Key Space Detection",
        "layers": intervention.layers,
        "cubes": len(intervention.centre),
        "positions": intervention.positions,
        "refusal": str(tokenizer.decode(intervention.refusal.tolist(), skip_special_tokens=True)).strip(),
    }


def _beside_base(rows: Sequence[Row]) -> list[dict[str, Any]]:
    base = {row.data: row.accuracy for row in rows if row.model == BASE}
    return [row.as_json() | {"base": base[row.data]} for row in rows if row.model != BASE]
