"""Baking: a model and a plan become an artifact."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from bakeout.export.artifacts.file_names import CARD, PLAN
from bakeout.export.artifacts.manifest import receipts_for, write_manifest
from bakeout.export.artifacts.model_source import find_graph
from bakeout.export.artifacts.onnx_layout import graphs_of
from bakeout.export.baking.bake_checkpoint import CheckpointBase, checkpoint_base, write_edited_checkpoint
from bakeout.export.baking.bake_graph import GraphBase, graph_base, write_baked_graph
from bakeout.export.baking.model_card import model_card
from bakeout.export.baking.refused_turns import leave_out_refused_turns
from bakeout.export.baking.runtimes import take_branches, take_functions
from bakeout.export.baking.stopping import let_refusal_stop
from bakeout.export.baking.tokenizer_config import require_same_tokenizer
from bakeout.export.exporting.exporters import choose_exporter
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.export.running.overflow import require_finite
from bakeout.export.verification.graph_canary import require_canary
from bakeout.models.checkpoint.checkpoint import Checkpoint
from bakeout.models.data.tokenizers.chat_options import CHAT_TEMPLATE
from bakeout.models.errors import BakeoutError
from bakeout.models.files.writing import new_directory, require_new
from bakeout.models.plan import Plan
from bakeout.models.plan.plan_file import plan_bytes
from bakeout.models.plan.receipt import Receipt
from bakeout.models.progress import Track, untracked

_DEFAULTS = BakeOptions()
_PACKAGES: tuple[str, ...] = ("bakeout", "ml-dtypes", "numpy", "safetensors")
_GRAPH_PACKAGES = ("onnx", "onnx-ir")


@dataclass(frozen=True)
class Baked:
    """A finished artifact, and a receipt for every edit."""

    directory: Path
    receipts: tuple[Receipt, ...]


def bake(
    model: str | Path | Checkpoint,
    plan: Plan,
    output: Path,
    options: BakeOptions = _DEFAULTS,
    *,
    canary: bool = True,
    track: Track = untracked,
) -> Baked:
    """Apply ``plan`` to ``model`` and write the artifact directory ``output``.

    ``model``: a checkpoint's directory or hub id, or an ONNX directory or file made by anybody, whose companion files
    (configuration, tokenizer) are copied from beside it; where there is no ``config.json`` and no
    ``genai_config.json``, the artifact has none either. A checkpoint is exported, or, with ``to: safetensors``, its
    files are copied and the edited weights in them replaced. ``canary``: run the plan's canary through a baked graph;
    a checkpoint is known by its digest.

    Raises ``BakeoutError``, leaving nothing behind, when ``output`` exists, when the model is not the one that the
    plan was fitted on (digest of a checkpoint's weights; shapes and canary of any graph), when it cannot be
    exported, read or edited, and when the disk is full.
    """
    require_new(output)
    options = completed(options)
    with new_directory(output) as directory:
        with opened_base(model, plan, options, directory) as base:
            edited = write_edited(base, plan, options, directory, track)
        outcome = canary_outcome(directory, plan, edited, run=canary)
        if options.to == "safetensors":
            card = model_card(plan, (), form="checkpoint")
            (directory / CARD).write_text(card, encoding="utf-8")
        write_record(directory, plan, options, edited, outcome)
    return Baked(output, edited.receipts)


def completed(options: BakeOptions) -> BakeOptions:
    """The options with what the runtimes need. Raises ``BakeoutError`` where some of them exclude each other."""
    for contradiction in options.contradictions():
        raise BakeoutError(f"`{contradiction.option}`: {contradiction.cause}.", contradiction.remedy)
    return options.model_copy(
        update={
            "inline": options.inline or not take_functions(options.runtimes),
            "early_exit": options.early_exit if take_branches(options.runtimes) else False,
        }
    )


@contextmanager
def opened_base(
    model: str | Path | Checkpoint, plan: Plan, options: BakeOptions, directory: Path
) -> Iterator[GraphBase | CheckpointBase]:
    """What ``plan`` is baked into: the model as it is or, for a graph of a checkpoint, its export.

    The export lies in a scratch directory within ``directory``, and is there until the block ends. Raises
    ``BakeoutError`` where the model cannot be read, or is not the plan's.
    """
    if options.to == "safetensors":
        yield checkpoint_base(model, plan)
    else:
        with graph_base(model, plan, options, directory) as base:
            if not base.exported:
                _require_none_of_exports(options)
            yield base


def _require_none_of_exports(options: BakeOptions) -> None:
    """Raise ``BakeoutError`` for options that would be ignored, because the model is a graph already."""
    for name in ("dtype", "exporter"):
        if getattr(options, name) != BakeOptions.model_fields[name].default:
            raise BakeoutError(
                f"The model is an ONNX graph, which is not exported, and `{name}` is for exports.",
                f"Leave out `{name}`, or name the checkpoint that the graph comes from.",
            )


@dataclass(frozen=True)
class Edited:
    """The origin of an edited model's files.

    ``receipts``: one for every edit; ``digests``: the SHA-256 of files that need not be hashed again, by name;
    ``form``: what was edited, ``exported graph`` where we exported it from a checkpoint; ``told``: what was changed in
    configuration files so that the refusal stops (``stopping``).
    """

    receipts: tuple[Receipt, ...]
    digests: Mapping[str, str]
    form: Literal["checkpoint", "graph", "exported graph"]
    told: Mapping[str, Any]


def write_edited(
    base: GraphBase | CheckpointBase, plan: Plan, options: BakeOptions, directory: Path, track: Track
) -> Edited:
    """Write the plan and the edited model, with its companion files, into ``directory``."""
    (directory / PLAN).write_bytes(plan_bytes(plan))
    if isinstance(base, CheckpointBase):
        receipts, digests = write_edited_checkpoint(base, plan, directory, track)
        require_same_tokenizer(base.directory, directory)
        return Edited(tuple(receipts), digests, "checkpoint", {})
    receipts = write_baked_graph(base, plan, options, directory, track)
    require_same_tokenizer(base.directory, directory)
    told: Mapping[str, Any] = {}
    if plan.check:
        told = let_refusal_stop(directory, plan.check.refusal.tolist(), plan.check.other_ends)
        leave_out_refused_turns(directory, plan.check.refusal.tolist())
    return Edited(tuple(receipts), {}, "exported graph" if base.exported else "graph", told)


def canary_outcome(directory: Path, plan: Plan, edited: Edited, *, run: bool = True) -> str:
    """The result of the canary, which is ``run`` if it is needed.

    How near the values came differs from machine to machine, and is left out. Raises ``BakeoutError`` where the baked
    graph does not compute what the plan expects.
    """
    if edited.form == "checkpoint":
        return "not needed: the base model's digest is the plan's"
    if not run:
        return "not run"
    graph = find_graph(directory)
    # What is baked in can overflow where the base model does not.
    require_finite(graph, plan.canary.input_ids.tolist())
    for each in graphs_of(graph):
        require_canary(each, plan, receipts_for(each, edited.receipts))
    return "passed"


def write_record(
    directory: Path,
    plan: Plan,
    options: BakeOptions,
    edited: Edited,
    canary: str,
    measured: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write the manifest of all files in ``directory``: what they were made of, and with ``measured`` more entries."""
    chosen = options.model_dump(mode="json")
    chosen["exporter"], exporter_packages = _exported_by(options, plan, edited)
    if edited.form != "exported graph":
        # It kept its own.
        chosen["dtype"] = None
    entries = {
        "base": asdict(plan.model),
        "data": plan.provenance.get("data", {}),
        **({"source": source} if (source := plan.provenance.get("source")) else {}),
        "plan": hashlib.sha256(plan_bytes(plan)).hexdigest(),
        "versions": {
            "baked_with": _versions(options, edited, exporter_packages),
            "fitted_with": plan.provenance.get("versions", {}),
        },
        "options": chosen,
        **({CHAT_TEMPLATE: record} if (record := plan.provenance.get(CHAT_TEMPLATE)) else {}),
        "canary": canary,
        "receipts": [receipt.as_json() for receipt in edited.receipts],
    }
    write_manifest(directory, {**entries, **edited.told, **measured}, edited.digests)


def _exported_by(options: BakeOptions, plan: Plan, edited: Edited) -> tuple[str | None, tuple[str, ...]]:
    """The exporter of a graph that we exported, and its packages."""
    if edited.form != "exported graph":
        return None, ()
    name, exporter = choose_exporter(options.exporter, plan.model.architecture)
    return name, exporter.PACKAGES


def _versions(options: BakeOptions, edited: Edited, exporter_packages: tuple[str, ...]) -> dict[str, str]:
    packages = _PACKAGES + (() if edited.form == "checkpoint" else _GRAPH_PACKAGES) + exporter_packages
    versions = {package: version(package) for package in packages}
    if options.quantize is None:
        return versions
    # Its distribution has different names on different machines.
    import onnxruntime

    return versions | {"onnxruntime": str(onnxruntime.__version__)}
