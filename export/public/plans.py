"""Plans that are not fitted here: out of what other tools wrote, out of other plans, and back to other tools."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bakeout.functions import Model, PathLike, loaded_plan, naming_extras, on_disk
from bakeout.models.progress import Track, logged

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from bakeout.models.plan import Plan


@naming_extras
def import_plan(
    source: PathLike,
    base: Model,
    *,
    scale: float = 1.0,
    energy: float | None = None,
    exact: bool = False,
    project: bool = False,
    fold: bool = False,
    keep_norm: bool = False,
    layers: Sequence[int] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    track: Track = logged,
) -> Plan:
    """What another tool wrote, as a plan for the model ``base``, a checkpoint or in memory.

    ``source``: the directory of a PEFT LoRA adapter, or of an edited checkpoint of ``base``; or the file of a control
    vector, or with ``project`` of a direction to project out of the residual stream. ``scale``: how many times the
    edit, negative for its reverse. Of an edited checkpoint, each weight's difference is cut at the rank that holds the
    share ``energy`` (by default 0.9999) of its squared norm, or kept whole with ``exact``. ``fold``: the projection as
    changes of the weights that write into the residual stream, where that is exact. ``keep_norm``: a control
    vector leaves the norm of the residual stream. ``layers``: the blocks behind which a single direction acts.

    >>> imported = bakeout.import_plan(adapter, checkpoint)
    >>> [intervention.kind for intervention in imported.interventions]
    ['low_rank_update']

    Raises ``BakeoutError`` where nothing would be edited, and for all that the source names and no plan carries.
    """
    from bakeout.export.importing.import_plan import import_plan as import_source

    with on_disk(base, tokenizer) as checkpoint:
        return import_source(
            Path(source),
            checkpoint,
            scale=scale,
            energy=energy,
            exact=exact,
            project=project,
            fold=fold,
            keep_norm=keep_norm,
            layers=layers,
            track=track,
        )


@naming_extras
def combine(
    plans: Sequence[Plan | PathLike],
    base: Model,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    track: Track = logged,
) -> Plan:
    """All interventions of several plans of the model ``base``, a checkpoint or in memory, in their order, as one plan.

    Nothing is fitted again; the canary is measured again. ``Plan.provenance["combined"]["interactions"]`` tells, for
    each intervention, which others it was fitted without, and how far they move what it looks at.

    >>> both = bakeout.combine(["plan.safetensors", control_plan], checkpoint)
    >>> [intervention.kind for intervention in both.interventions]
    ['neuron_adjust', 'residual_addition']

    Raises ``BakeoutError`` for plans of different models, and where two of them hold a kind that a plan holds once.
    """
    from bakeout.export.importing.combine import combine as combine_plans

    with on_disk(base, tokenizer) as checkpoint:
        return combine_plans([loaded_plan(plan) for plan in plans], checkpoint, track=track).plan


@naming_extras
def export_adapter(
    plan: Plan | PathLike, output: PathLike, *, artifact: PathLike | None = None, policy: bool = False
) -> Path:
    """Write a plan as an adapter, and return where it is.

    Without ``artifact``: a PEFT LoRA adapter, a directory, of a plan's low-rank updates. With the directory of an
    artifact that was baked with ``BakeOptions(adapter_slots=True)``: an ``.onnx_adapter`` file for it, which ONNX
    Runtime activates in a run; the plan must differ from the artifact's in constants alone. ``policy``: a directory of
    either with its plan and a manifest, which ``sign``, ``verify`` and ``certify`` take as they take artifacts.

    >>> imported = bakeout.import_plan(adapter, checkpoint)
    >>> bakeout.export_adapter(imported, "lora").name
    'lora'

    Raises ``BakeoutError`` where ``output`` exists, and for what the adapter cannot carry.
    """
    if policy:
        from bakeout.export.adapters.policy import export_policy

        export_policy(loaded_plan(plan), Path(output), artifact=None if artifact is None else Path(artifact))
    elif artifact is None:
        from bakeout.export.adapters.peft_adapter import export_peft_adapter

        export_peft_adapter(loaded_plan(plan), Path(output))
    else:
        from bakeout.export.adapters.onnx_adapter import export_onnx_adapter

        export_onnx_adapter(loaded_plan(plan), Path(artifact), Path(output))
    return Path(output)
