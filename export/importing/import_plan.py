"""What other tools wrote, as a plan: PEFT adapters, edited checkpoints, control vectors, directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bakeout.export.importing.new_plan import base_checkpoint, loaded_base, plan_of
from bakeout.models.errors import BakeoutError
from bakeout.models.plan import EndRole, Intervention, ModelIdentity, Plan, ResidualProjection
from bakeout.models.progress import Track, untracked

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FORMS = "a PEFT adapter, a checkpoint, a control vector (.gguf, .safetensors), or a direction (.safetensors)"
# What names blocks: behind them it acts.
_OF_BLOCKS = ("a direction", "a control vector")


def import_plan(
    source: Path,
    base: str,
    *,
    scale: float = 1.0,
    energy: float | None = None,
    exact: bool = False,
    project: bool = False,
    fold: bool = False,
    keep_norm: bool = False,
    layers: Sequence[int] | None = None,
    track: Track = untracked,
) -> Plan:
    """What ``source`` holds, as a plan for the checkpoint ``base``, with a canary measured there.

    ``source``: the directory of a PEFT LoRA adapter, or of an edited checkpoint of ``base``; or a file of directions: a
    control vector, or with ``project`` a direction to project out. ``scale``: how many times what it does, negative
    too. ``energy`` and ``exact``: of edited checkpoints (``read_checkpoint_pair``). ``keep_norm`` and ``layers``: of
    directions; ``fold``: the projection as updates of the weights that write into the residual stream
    (``importing.fold``), if that is exact. What was read is in the report of the intervention.

    Raises ``BakeoutError`` for options of other sources, for what does not belong to ``base``, where nothing would be
    edited, and for everything that the source names and a plan does not carry.
    """
    given = {
        "scale": scale != 1,
        "energy": energy is not None,
        "exact": exact,
        "project": project,
        "fold": fold,
        "keep_norm": keep_norm,
        "layers": layers is not None,
    }
    form, taken = _form(source, project)
    for option, is_given in given.items():
        if is_given and option not in taken:
            raise BakeoutError(f"`{option}` does nothing for {form}.", "Leave it out.")
    if scale == 0 or scale != scale or scale in (float("inf"), float("-inf")):
        raise BakeoutError(f"`scale` is {scale}.", "Give a finite number other than 0.")
    checkpoint = base_checkpoint(base)
    from bakeout.models.network.ends import ends_of

    with loaded_base(checkpoint) as (model, identity):
        if form in _OF_BLOCKS:
            _require_every_block(model)
        interventions = _read(
            form,
            source,
            checkpoint.directory,
            identity,
            scale=scale,
            energy=0.9999 if energy is None else energy,
            exact=exact,
            keep_norm=keep_norm,
            layers=layers,
            ends=ends_of(model) if form == "an edited checkpoint" else {},
            track=track,
        )
        if fold:
            from bakeout.export.importing.fold import folded, stored_as

            interventions = [
                folded(model, entry, stored_as(checkpoint)) if isinstance(entry, ResidualProjection) else entry
                for entry in interventions
            ]
        return plan_of(checkpoint, model, interventions, {"imported_from": form}, track)


def _require_every_block(model: PreTrainedModel) -> None:
    """Raise ``BakeoutError`` unless the FFLs, behind which directions act, count as the blocks that sources name."""
    from bakeout.models.network.families import feed_forward_layers

    blocks = [layer.block_number for layer in feed_forward_layers(model)]
    if blocks != list(range(len(blocks))):
        raise BakeoutError(
            f"Directions are named by block, and of this model only the blocks {', '.join(map(str, blocks))} have a "
            "feed-forward layer that sees every token.",
            "Import directions of dense models.",
        )


def _form(source: Path, project: bool) -> tuple[str, frozenset[str]]:
    """What ``source`` is, and the options that say something about it. Names alone are looked at."""
    from bakeout.models.sources.peft_adapter import is_peft_adapter

    if source.is_dir():
        if is_peft_adapter(source):
            return "a PEFT adapter", frozenset(("scale",))
        if (source / "config.json").is_file():
            return "an edited checkpoint", frozenset(("scale", "energy", "exact"))
        raise BakeoutError(f"{source} is neither an adapter nor a checkpoint.", f"Name {_FORMS}.")
    if not source.exists():
        raise BakeoutError(f"There is no {source}.", f"Name {_FORMS}.")
    if source.suffix not in (".gguf", ".safetensors"):
        raise BakeoutError(f"{source} is no source that is read (pickled files never are).", f"Name {_FORMS}.")
    if project:
        return _OF_BLOCKS[0], frozenset(("project", "fold", "layers"))
    return _OF_BLOCKS[1], frozenset(("scale", "keep_norm", "layers"))


def _read(
    form: str,
    source: Path,
    base: Path,
    model: ModelIdentity,
    *,
    scale: float,
    energy: float,
    exact: bool,
    keep_norm: bool,
    layers: Sequence[int] | None,
    ends: Mapping[str, EndRole],
    track: Track,
) -> Sequence[Intervention]:
    from bakeout.models.sources.checkpoint_pair import read_checkpoint_pair
    from bakeout.models.sources.directions import read_addition, read_projection
    from bakeout.models.sources.peft_adapter import read_peft_adapter

    if form == "a PEFT adapter":
        return [read_peft_adapter(source, model, scale)]
    if form == "an edited checkpoint":
        return read_checkpoint_pair(base, source, model, scale, energy=energy, exact=exact, ends=ends, track=track)
    if form == _OF_BLOCKS[0]:
        return [read_projection(source, model, layers=layers)]
    return [read_addition(source, model, scale, layers=layers, keep_norm=keep_norm)]
