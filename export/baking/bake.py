"""Baking: a model and a plan become an artifact."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from bakeout.export.artifacts.file_names import CARD, GRAPH, PLAN
from bakeout.export.artifacts.manifest import write_manifest
from bakeout.export.baking.bake_checkpoint import CheckpointSource, find_checkpoint, write_edited_checkpoint
from bakeout.export.baking.bake_graph import GraphOptions, as_graph, write_baked_graph
from bakeout.export.baking.model_card import model_card
from bakeout.export.baking.quantise import Quantisation
from bakeout.export.baking.runtimes import RuntimeName, take_functions
from bakeout.export.verification.graph_canary import require_canary
from bakeout.models.errors import BakeoutError
from bakeout.models.files.writing import new_directory, require_new
from bakeout.models.plan import Plan
from bakeout.models.plan.plan_file import plan_bytes
from bakeout.models.plan.receipt import Receipt
from bakeout.models.progress import Track, untracked

_PACKAGES: tuple[str, ...] = ("bakeout", "ml-dtypes", "numpy", "safetensors")
_GRAPH_PACKAGES = (*_PACKAGES, "onnx", "onnx-ir")
_EXPORT_PACKAGES = ("optimum", "optimum-onnx", "torch", "transformers")
_NOT_NEEDED = "not needed: the base model's digest is the plan's"


@dataclass(frozen=True)
class BakeOptions:
    """How a plan is baked.

    ``to``: an ONNX graph, or (weight edits alone) a checkpoint; ``dtype``: what a checkpoint is exported in (otherwise
    graphs and checkpoints keep their own); ``inline``: Neuron Adjust as standard operators instead of a model-local
    function; ``early_exit``: Key Space Detection skips what a refusal does not need; ``monitor``: outputs ``refused``
    and ``margin``; ``canary``: run the plan's canary through the baked graph (a checkpoint is known by its digest);
    ``runtimes``: names of ``RUNTIMES`` that the artifact must serve; ``quantize``: the weights of a
    float32 graph, those that the plan has edited too, in int8 (``export.baking.quantise``).

    >>> bakeout.BakeOptions(dtype="fp16", monitor=True).dtype
    'fp16'
    """

    to: Literal["onnx", "safetensors"] = "onnx"
    dtype: Literal["fp32", "fp16"] | None = "fp32"
    inline: bool = False
    early_exit: bool = True
    monitor: bool = False
    canary: bool = True
    runtimes: tuple[RuntimeName, ...] = ()
    quantize: Quantisation | None = None

    @property
    def of_graph(self) -> GraphOptions:
        """The options of the graph."""
        return GraphOptions(self.inline, self.early_exit, self.monitor, self.runtimes, self.quantize)


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
    track: Track = untracked,
) -> Baked:
    """Apply ``plan`` to ``model`` and write the artifact directory ``output``.

    ``model``: a checkpoint's directory or hub id, which is exported, or an ONNX directory or file made by anybody,
    whose companion files (configuration, tokenizer) are copied from beside it; where there is no ``config.json`` and
    no ``genai_config.json``, the artifact has none either. ``see_base`` is called with the ONNX directory of the base
    model, ``add_files`` with the artifact's directory and the receipts before the manifest is written.

    With ``to`` "safetensors", ``model`` is a checkpoint, its files are copied and the edited weights in them replaced;
    ``see_base`` is called with its directory.

    Raises ``BakeoutError``, leaving nothing behind, when ``output`` exists, when the model is not the one that the
    plan was fitted on (digest of a checkpoint's weights; shapes and canary of any graph), when it cannot be
    exported, read or edited, and when the disk is full.
    """
    require_new(output)
    options = completed(options)
    checkpoint = find_checkpoint(model, plan) if options.to == "safetensors" else None
    with new_directory(output) as directory:
        (directory / PLAN).write_bytes(plan_bytes(plan))
        if checkpoint is not None:
            receipts, known = _to_checkpoint(checkpoint, plan, directory, see_base, track)
            packages, canary = _PACKAGES, _NOT_NEEDED
        else:
            known = {}
            receipts, exported = _to_graph(model, plan, options, directory, see_base, track)
            packages = _GRAPH_PACKAGES + (_EXPORT_PACKAGES if exported else ())
            canary = _canary(directory, plan, receipts) if options.canary else "not run"
            if not exported:
                options = replace(options, dtype=None)
        added = {} if add_files is None else add_files(directory, receipts)
        write_manifest(directory, {**_entries(plan, options, packages, receipts, canary), **added}, known)
    return Baked(output, tuple(receipts))


def completed(options: BakeOptions) -> BakeOptions:
    """The options with what the runtimes ask for. Raises ``BakeoutError`` where some of them exclude each other."""
    if options.to == "safetensors":
        if options.runtimes:
            raise BakeoutError("The runtimes run graphs, not checkpoints.", "Name no runtime, or bake to ONNX.")
        if options.quantize:
            raise BakeoutError(
                f"{options.quantize} weights are a graph's: a checkpoint keeps its type.", "Bake to ONNX, or keep it."
            )
    if options.quantize and options.dtype == "fp16":
        raise BakeoutError(
            f"{options.quantize} comes from float32, and fp16 was asked for too.", "Choose one of the two."
        )
    return replace(options, inline=options.inline or not take_functions(options.runtimes))


def _to_checkpoint(
    source: CheckpointSource, plan: Plan, directory: Path, see_base: SeeBase | None, track: Track
) -> tuple[list[Receipt], dict[str, str]]:
    """The receipts, and the SHA-256 of the weight files, by name."""
    if see_base is not None:
        see_base(source.directory)
    receipts, digests = write_edited_checkpoint(source, directory, track)
    (directory / CARD).write_text(model_card(plan, (), form="checkpoint"), encoding="utf-8")
    return receipts, digests


def _to_graph(
    model: str | Path, plan: Plan, options: BakeOptions, directory: Path, see_base: SeeBase | None, track: Track
) -> tuple[list[Receipt], bool]:
    """The receipts, and whether the graph was exported from a checkpoint."""
    with as_graph(model, plan, options.dtype or "fp32", directory) as source:
        if see_base is not None:
            see_base(source.graph.parent)
        return write_baked_graph(source, plan, options.of_graph, directory, track), source.exported


def _entries(
    plan: Plan, options: BakeOptions, packages: Sequence[str], receipts: Sequence[Receipt], canary: str
) -> dict[str, Any]:
    chosen = asdict(options)
    del chosen["canary"]
    return {
        "base": asdict(plan.model),
        "data": plan.provenance.get("data", {}),
        "plan": hashlib.sha256(plan_bytes(plan)).hexdigest(),
        "versions": {
            "baked_with": {package: version(package) for package in packages} | _quantised_with(options),
            "fitted_with": plan.provenance.get("versions", {}),
        },
        "options": chosen,
        "canary": canary,
        "receipts": [receipt.as_json() for receipt in receipts],
    }


def _quantised_with(options: BakeOptions) -> dict[str, str]:
    if options.quantize is None:
        return {}
    # Its distribution has different names on different machines.
    import onnxruntime

    return {"onnxruntime": str(onnxruntime.__version__)}


def _canary(directory: Path, plan: Plan, receipts: Sequence[Receipt]) -> str:
    """What became of the canary. How near the values came differs from machine to machine, and is left out."""
    matches = require_canary(directory / GRAPH, plan, receipts)
    return "nothing to compare" if all(match.skipped for match in matches) else "passed"
