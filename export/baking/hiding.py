"""Plans that are baked without saying what they forget."""

from __future__ import annotations

from pathlib import Path

from bakeout.export.artifacts.model_source import model_source
from bakeout.export.artifacts.onnx_layout import home_of
from bakeout.models.data.tokenizers.tokenization import load_tokenizer
from bakeout.models.methods.key_space_detection.refusal_tokens import refusal_tokens
from bakeout.models.plan import Plan
from bakeout.models.plan.hiding import REFUSAL, hidden


def hide_plan(model: str | Path | None, plan: Plan, salt: bytes) -> Plan:
    """``plan`` without names, its refusal ``REFUSAL`` in the words of the model's own tokenizer.

    ``model`` can be None for a plan that refuses nothing. Raises ``BakeoutError`` for a model that cannot be read, and
    for a tokenizer that cannot write the refusal.
    """
    refusal = None
    if plan.check is not None and model is not None:
        source = model_source(model)
        directory = home_of(source) if isinstance(source, Path) else source.directory
        ends = [int(plan.check.refusal[-1]), *plan.check.other_ends]
        refusal = refusal_tokens(REFUSAL, load_tokenizer(directory), ends)
    return hidden(plan, salt, refusal)
