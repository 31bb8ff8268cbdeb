"""The artifact's README.md: what was removed, how, with what measured effect, and what it does not protect against."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined

from bakeout.export.evaluate import BASE, Row
from bakeout.models.plan import Intervention, NeuronAdjust, Plan
from bakeout.models.plan_file import plan_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def model_card(plan: Plan, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> str:
    """The card as Markdown. ``rows`` are the base model's and the artifact's, on the same data, or none.

    It does not depend on where the artifact lies, nor on what its directory is called.
    """
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True, autoescape=False)
    template = environment.from_string(files(__package__).joinpath("templates/model_card.md.j2").read_text("utf-8"))
    return template.render(
        forgotten=list(dict.fromkeys(name for one in plan.interventions for name in _forgotten(one))),
        model=plan.model,
        interventions=[_described(intervention, tokenizer) for intervention in plan.interventions],
        rows=_beside_base(rows),
        plan_digest=hashlib.sha256(plan_bytes(plan)).hexdigest(),
        data=plan.provenance["data"],
        versions=plan.provenance["versions"],
    )


def _forgotten(intervention: Intervention) -> Iterable[str]:
    return intervention.report["forget"] if isinstance(intervention, NeuronAdjust) else intervention.skills


def _described(intervention: Intervention, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    described: dict[str, Any] = {"kind": intervention.kind, "report": intervention.report}
    if isinstance(intervention, NeuronAdjust):
        return described | {
            "neurons": sum(len(layer.neurons) for layer in intervention.layers),
            "layers": len(intervention.layers),
            "coin": intervention.coin,
            "seed": intervention.seed,
        }
    return described | {
        "layers": intervention.layers,
        "cubes": len(intervention.centre),
        "positions": intervention.positions,
        "refusal": str(tokenizer.decode(intervention.refusal.tolist(), skip_special_tokens=True)).strip(),
    }


def _beside_base(rows: Sequence[Row]) -> list[dict[str, Any]]:
    base = {row.data: row.accuracy for row in rows if row.model == BASE}
    return [row.as_json() | {"base": base[row.data]} for row in rows if row.model != BASE]
