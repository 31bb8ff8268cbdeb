"""Baking: a model and a plan become an artifact. The graph is edited without its weights, which the kernel copies."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir

from bakeout.export.artifact import (
    GRAPH,
    MANIFEST,
    PLAN,
    artifact_directory,
    copy_by_kernel,
    require_new,
    require_space,
    room_on_disk,
    write_manifest,
)
from bakeout.export.canary import require_canary
from bakeout.export.console import Track, no_track
from bakeout.export.genai_config import GENAI_CONFIG, copy_genai_config, has_cache, write_genai_config
from bakeout.export.onnx_directory import companion_files, find_graph
from bakeout.graph_passes.apply import apply_plan
from bakeout.graph_passes.errors import GraphError
from bakeout.graph_passes.graph_file import data_files, graph_bytes, load_graph
from bakeout.models.canary_check import CanaryMatch
from bakeout.models.checkpoint import resolve_checkpoint, weights_digest
from bakeout.models.errors import BakeoutError
from bakeout.models.plan import Plan, PlanError
from bakeout.models.plan_file import plan_bytes
from bakeout.models.receipt import Receipt

_PACKAGES = ("bakeout", "numpy", "onnx", "onnx-ir", "safetensors")
_EXPORT_PACKAGES = ("optimum", "optimum-onnx", "torch", "transformers")


@dataclass(frozen=True)
class BakeOptions:
    """How a plan is baked.

    ``dtype``: what a checkpoint is exported in (an ONNX graph keeps its own); ``inline``: Neuron Adjust as standard
    operators instead of a model-local function; ``early_exit``: Key Space Detection skips what a refusal does not
    need; ``monitor``: outputs ``refused`` and ``margin``; ``canary``: run the plan's canary through the baked graph.
    """

    dtype: Literal["fp32", "fp16"] = "fp32"
    inline: bool = False
    early_exit: bool = True
    monitor: bool = False
    canary: bool = True


@dataclass(frozen=True)
class Baked:
    """A finished artifact, and a receipt for every edit."""

    directory: Path
    receipts: tuple[Receipt, ...]


# Looks at the directory of the model that the plan is about to be baked into.
SeeBase = Callable[[Path], None]
# Adds files to an artifact that is written but for its manifest, and gives more entries for the manifest.
AddFiles = Callable[[Path, Sequence[Receipt]], Mapping[str, Any]]


def bake(
    model: str | Path,
    plan: Plan,
    output: Path,
    options: BakeOptions = BakeOptions(),
    *,
    see_base: SeeBase | None = None,
    add_files: AddFiles | None = None,
    track: Track = no_track,
) -> Baked:
    """Apply ``plan`` to ``model`` and write the artifact directory ``output``.

    ``model``: a checkpoint's directory or hub id, which is exported, or an ONNX directory or file made by anybody,
    whose companion files (configuration, tokenizer) are copied from beside it; where there is no ``config.json`` and
    no ``genai_config.json``, the artifact has none either. ``see_base`` is called with the ONNX directory of the base
    model, ``add_files`` with the artifact's directory and the receipts before the manifest is written.

    Raises ``BakeoutError``, leaving nothing behind, when ``output`` exists, when the model is not the one that the
    plan was fitted on (digest of a checkpoint's weights; shapes and canary of any graph), when it cannot be exported
    or read, and when the disk is full.
    """
    require_new(output)
    with artifact_directory(output) as directory:
        with _as_graph(model, plan, options, directory) as source:
            if see_base is not None:
                see_base(source.graph.parent)
            receipts = _bake_graph(source, plan, options, directory, track)
        (directory / PLAN).write_bytes(plan_bytes(plan))
        canary = require_canary(directory / GRAPH, plan, receipts) if options.canary else None
        added = {} if add_files is None else add_files(directory, receipts)
        write_manifest(directory, {**_entries(plan, options, source, receipts, canary), **added})
    return Baked(output, tuple(receipts))


@dataclass(frozen=True)
class _Source:
    """A graph to bake into. ``exported``: by us, from a checkpoint, so that its files may be taken away."""

    graph: Path
    exported: bool


@contextmanager
def _as_graph(model: str | Path, plan: Plan, options: BakeOptions, directory: Path) -> Iterator[_Source]:
    path = Path(model)
    if path.is_file() or path.suffix == ".onnx" or (path.is_dir() and any(path.glob("*.onnx"))):
        graph = find_graph(path)
        if (graph.parent / MANIFEST).is_file():
            raise BakeoutError(
                f"{path} is an artifact: a plan is baked into it already.",
                "Bake into the base model: one plan can hold several interventions.",
            )
        yield _Source(graph, exported=False)
        return
    checkpoint = resolve_checkpoint(model)
    _require_weights(checkpoint, plan)
    from bakeout.export.onnx_export import export_checkpoint

    with tempfile.TemporaryDirectory(prefix=".export.", dir=directory) as scratch:
        yield _Source(export_checkpoint(checkpoint, Path(scratch), options.dtype), exported=True)


def _require_weights(checkpoint: Path, plan: Plan) -> None:
    found = weights_digest(checkpoint)
    if found != plan.model.digest:
        raise PlanError(
            f"The plan was fitted on weights with sha256 {plan.model.digest[:16]}…, and those in {checkpoint} have "
            f"{found[:16]}….",
            "Bake the plan into the checkpoint it was fitted on, or fit one for this checkpoint.",
        )


def _bake_graph(source: _Source, plan: Plan, options: BakeOptions, directory: Path, track: Track) -> list[Receipt]:
    """Write everything but the plan and the manifest: baked graph, data files, companions, genai's configuration."""
    graph = load_graph(source.graph)
    companions = companion_files(source.graph.parent)
    weights = data_files(graph)
    receipts = apply_plan(graph, plan, inline=options.inline, early_exit=options.early_exit, monitor=options.monitor)
    _require_own_names(source.graph, weights, companions)
    content = graph_bytes(graph)
    copied = companions if source.exported else [*companions, *weights.values()]
    require_space(directory, len(content) + sum(room_on_disk(path) for path in copied))
    for name, path in track(weights.items(), "copying the weights", len(weights)):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        if source.exported:
            path.replace(directory / name)
        else:
            copy_by_kernel(path, directory / name)
    (directory / GRAPH).write_bytes(content)
    for path in companions:
        if path.name != GENAI_CONFIG:
            copy_by_kernel(path, directory / path.name)
    _describe_to_genai(graph, source.graph.parent, directory)
    return receipts


def _describe_to_genai(graph: ir.Model, source: Path, directory: Path) -> None:
    if (source / GENAI_CONFIG).is_file():
        copy_genai_config(source, directory)
    elif (directory / "config.json").is_file() and has_cache(graph):
        write_genai_config(directory, graph)


def _require_own_names(graph: Path, weights: Mapping[str, Path], companions: Sequence[Path]) -> None:
    taken = {GRAPH, PLAN, MANIFEST, GENAI_CONFIG, "README.md", "recipe.yaml"} | {path.name for path in companions}
    if clash := sorted(taken & weights.keys()):
        raise GraphError(f"{graph}: its data file has the name of another file, {clash[0]}.", "Export it again.")


def _entries(
    plan: Plan,
    options: BakeOptions,
    source: _Source,
    receipts: Sequence[Receipt],
    canary: Sequence[CanaryMatch] | None,
) -> dict[str, Any]:
    packages = _PACKAGES + (_EXPORT_PACKAGES if source.exported else ())
    chosen = asdict(options)
    del chosen["canary"]
    if not source.exported:
        chosen["dtype"] = None
    return {
        "base": asdict(plan.model),
        "data": plan.provenance.get("data", {}),
        "plan": hashlib.sha256(plan_bytes(plan)).hexdigest(),
        "versions": {
            "baked_with": {package: version(package) for package in packages},
            "fitted_with": plan.provenance.get("versions", {}),
        },
        "options": chosen,
        "canary": _outcome(canary),
        "receipts": [receipt.as_json() for receipt in receipts],
    }


def _outcome(canary: Sequence[CanaryMatch] | None) -> str:
    """What became of the canary. How near the values came differs from machine to machine, and is left out."""
    if canary is None:
        return "not run"
    return "nothing to compare" if all(match.skipped for match in canary) else "passed"
