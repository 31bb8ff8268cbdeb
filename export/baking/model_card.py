"""The artifact's README.md: what was removed, how, with what measured effect, and what it does not protect against."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal

from jinja2 import Environment, StrictUndefined, Undefined

from bakeout.export.artifacts.titles import described
from bakeout.export.baking.markdown import as_code, as_text
from bakeout.export.evaluation.rows import BASE, Row, TaskRow
from bakeout.export.recipes.bake_options import RuntimeName
from bakeout.models.data.tokenizers.chat_options import CHAT_TEMPLATE
from bakeout.models.plan import Decode, Plan
from bakeout.models.plan.hiding import is_hidden
from bakeout.models.plan.plan_file import plan_bytes

if TYPE_CHECKING:
    from bakeout.models.data.tokenizers.tokenization import Tokenizer

Form = Literal["onnx", "checkpoint"]


def model_card(
    plan: Plan,
    rows: Sequence[Row],
    tokenizer: Tokenizer | None = None,
    *,
    form: Form = "onnx",
    quantized: str | None = None,
    tasks: Sequence[TaskRow] = (),
    runtimes: Sequence[RuntimeName] = (),
    warnings: Sequence[str] = (),
) -> str:
    """The card as Markdown. ``rows`` are the base model's and the artifact's, on the same data, or none; so ``tasks``.

    ``tokenizer`` writes a refusal as text, and is not needed where nothing is refused; ``quantized`` names what the
    weights were quantised to; ``runtimes``: those that the artifact was made for, whose code is shown; ``warnings``
    stand below the figures. The card does not depend on where the artifact lies, nor on what its directory is called.
    """
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True, autoescape=False)
    environment.filters |= {"text": as_text, "code": as_code, "percent": _percent}
    template = environment.from_string(
        files("bakeout.export").joinpath("templates/model_card.md.j2").read_text("utf-8")
    )
    return template.render(
        form=form,
        quantized=quantized,
        runtimes=runtimes,
        forgotten=plan.forgets,
        learned=plan.learns,
        model=plan.model,
        routing=plan.routing_stability,
        interventions=[described(intervention, plan.model, _decode(tokenizer)) for intervention in plan.interventions],
        edits_weights=plan.edits_weights,
        in_graph=list(dict.fromkeys(entry.title for entry in plan.interventions if not entry.edits_weights)),
        rows=_beside_base(rows),
        tasks=_tasks_beside_base(tasks),
        warnings=warnings,
        chat_template=_json(plan.provenance[CHAT_TEMPLATE]) if CHAT_TEMPLATE in plan.provenance else None,
        plan_digest=hashlib.sha256(plan_bytes(plan)).hexdigest(),
        data=plan.provenance.get("data", {}),
        hidden=is_hidden(plan),
        source=plan.provenance.get("source", {}),
        versions=plan.provenance.get("versions", {}),
    )


def _decode(tokenizer: Tokenizer | None) -> Decode | None:
    if tokenizer is None:
        return None
    return lambda tokens: str(tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()


def _percent(share: float | Undefined) -> str:
    """A share; of figures that were not measured, a dash."""
    return "–" if isinstance(share, Undefined) else f"{100 * share:.1f} %"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _beside_base(rows: Sequence[Row]) -> list[dict[str, Any]]:
    base = {row.data: row.accuracy for row in rows if row.model == BASE}
    return [
        row.as_json()
        | {
            "base": base[row.data],
            "asked": row.asked.removesuffix(" prompts"),
            "score": row.score,
            "outcomes": row.outcomes,
        }
        for row in rows
        if row.model != BASE
    ]


def _tasks_beside_base(tasks: Sequence[TaskRow]) -> list[dict[str, Any]]:
    base = {(row.task, row.metric, row.filter): row.value for row in tasks if row.model == BASE}
    return [
        row.as_json() | {"base": base.get((row.task, row.metric, row.filter))} for row in tasks if row.model != BASE
    ]
