"""`bakeout assumptions`: do the assumptions of the methods hold on the user's model and data?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bakeout.export.artifacts.file_names import PLAN
from bakeout.export.artifacts.model_source import find_checkpoint
from bakeout.export.evaluation.evaluate import data_names
from bakeout.models.checkpoint.placement import REFERENCE, Placement
from bakeout.models.data.rows import Record, read_records
from bakeout.models.data.spreading import spread
from bakeout.models.data.tokenizers.chat_options import CHAT_TEMPLATE, recorded_options
from bakeout.models.errors import BakeoutError
from bakeout.models.plan import Intervention, ModelIdentity
from bakeout.models.plan.plan_file import load_plan
from bakeout.models.progress import Track, untracked
from bakeout.models.reference.assumptions import Drift, Shapes

# Shares of the model's context that conversations are grown to.
_SHARES = (0.1, 0.25, 0.5, 0.85)
_BATCH = 8


@dataclass(frozen=True)
class Checked:
    """One intervention: its place in the plan, its selected neurons (Neuron Adjust), and how it drifts.

    ``model``: the plan's, which names layers.
    """

    index: int
    kind: str
    model: ModelIdentity
    shapes: Shapes | None
    drift: Drift

    @property
    def warnings(self) -> list[str]:
        """The warnings."""
        return [*(self.shapes.warnings if self.shapes else ()), *self.drift.warnings]

    def as_json(self) -> dict[str, Any]:
        """As in ``--json``."""
        return {
            "intervention": self.index,
            "kind": self.kind,
            "neurons": self.shapes.as_json()["neurons"] if self.shapes else None,
            "drift": self.drift.as_json()["rows"],
            "warnings": self.warnings,
        }


def check_assumptions(
    path: Path,
    base: str,
    forget: Sequence[Path],
    retain: Sequence[Path],
    *,
    lengths: Sequence[int] = (),
    prompts: int = 100,
    seed: int = 0,
    placement: Placement = REFERENCE,
    track: Track = untracked,
) -> list[Checked]:
    """Check every Neuron Adjust and Key Space Detection of a plan, each with the earlier ones applied.

    ``path``: a plan or an artifact; ``base``: its base model's checkpoint; ``forget`` and ``retain``: fresh rows, of
    which ``prompts`` of each file are asked. ``lengths``: of the conversations before a query, in tokens; by default
    from a tenth of the model's context to most of it. ``placement``: where and how the model runs.

    Raises ``BakeoutError`` for another model than the plan's, unsuitable data, a plan without interventions of
    either kind, and lengths that leave no room for the query.
    """
    import random

    from bakeout.models.checkpoint.checkpoint_files import load_model
    from bakeout.models.data.tokenizers.tokenization import load_tokenizer
    from bakeout.models.network.families import model_limits
    from bakeout.models.reference.assumptions import conversation_drift, neuron_shapes
    from bakeout.models.reference.hooks import Hooks
    from bakeout.models.reference.weight_edits import apply_weight_edit

    plan = load_plan(path / PLAN if path.is_dir() else path)
    if not any(map(_assumes, plan.interventions)):
        raise BakeoutError(f"{path} neither adjusts nor checks, and assumes nothing.", "There is nothing to check.")
    files = data_names([*forget, *retain])
    checkpoint = find_checkpoint(base)
    if checkpoint.digest != plan.model.digest:
        raise BakeoutError(f"{base} is not the model that {path} was fitted on.", "Name its base model as `base`.")
    tokenizer = recorded_options(plan.provenance.get(CHAT_TEMPLATE)).applied_to(load_tokenizer(checkpoint.directory))
    model = load_model(checkpoint.directory, placement)
    records = {
        name: spread(read_records(file, tokenizer, model_limits(model)), prompts) for name, file in files.items()
    }
    names = list(records)[: len(forget)]
    conversation = [record for rows in records.values() for record in rows]
    random.Random(seed).shuffle(conversation)
    queries = {name: [record for record in rows if record.prompt_ids] for name, rows in records.items()}
    queries = {name: rows for name, rows in queries.items() if rows}
    reach = lengths or _lengths(model.config.max_position_embeddings, queries, conversation)
    checked = []
    earlier: list[Intervention] = []
    for index, intervention in enumerate(plan.interventions):
        with Hooks(model, earlier):
            shapes = None
            if (adjustment := intervention.adjustment) is not None:
                rows = {
                    kind: [record for name in records for record in records[name] if (name in names) == kind]
                    for kind in (True, False)
                }
                shapes = neuron_shapes(
                    model,
                    intervention,
                    rows[True],
                    rows[False],
                    scope=adjustment.tokens,
                    batch_size=_BATCH,
                    track=track,
                )
            if _assumes(intervention):
                drift = conversation_drift(
                    model,
                    intervention,
                    queries,
                    conversation,
                    forget=names,
                    lengths=reach,
                    batch_size=_BATCH,
                    track=track,
                )
                checked.append(Checked(index, intervention.kind, plan.model, shapes, drift))
        earlier.append(intervention)
        apply_weight_edit(model, intervention)
    return checked


def _assumes(intervention: Intervention) -> bool:
    """Whether it was fitted to values that conversations may move: an adjustment or a check."""
    return intervention.adjustment is not None or intervention.check is not None


def _lengths(context: int, queries: Mapping[str, Sequence[Record]], conversation: Sequence[Record]) -> list[int]:
    """The longest conversation that leaves room for a last turn that is too long, and for the longest query."""
    query = max((len(record.prompt_ids) for rows in queries.values() for record in rows), default=0)
    turn = max(len(record.prompt_ids) + len(record.response_ids) for record in conversation)
    room = context - query - turn
    return sorted({length for share in _SHARES if 0 < (length := int(share * context)) <= room})
