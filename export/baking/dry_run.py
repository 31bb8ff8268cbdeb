"""What baking would do: what changes, where, by how much, and the disk and memory it takes. Nothing is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bakeout.export.artifacts.inspection import receipt_lines
from bakeout.export.artifacts.onnx_directory import companion_files
from bakeout.export.artifacts.titles import described
from bakeout.export.baking.bake import completed
from bakeout.export.baking.bake_checkpoint import checkpoint_base
from bakeout.export.baking.bake_graph import GraphBase, edited_graphs, graph_or_checkpoint
from bakeout.export.baking.quantise import require_quantisable
from bakeout.export.exporting.exporters import choose_exporter
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.graph_passes.graph.graph_file import data_files, data_tensors, graph_bytes, load_graph
from bakeout.models.checkpoint.checkpoint import Checkpoint
from bakeout.models.checkpoint.checkpoint_files import read_config
from bakeout.models.checkpoint.checkpoint_writer import find_edits, parameter_count, preview_edits
from bakeout.models.files.disk_room import gigabytes, room_on_disk
from bakeout.models.plan import Plan
from bakeout.models.plan.plan_file import plan_bytes
from bakeout.models.plan.receipt import Receipt

# What Bakeout and its libraries take before they hold any of a model, and the float64 copies of a block of rows.
_PROCESS = 150_000_000
_BYTES = {"fp32": 4, "fp16": 2}
# A checkpoint that is exported is loaded in its dtype, and traced and saved by way of a copy.
_EXPORT_COPIES = 3


@dataclass(frozen=True)
class DryRun:
    """What ``bake`` would do with the same arguments.

    ``receipts``: those it would give. If a checkpoint would be exported first, by ``exporter``, those of Neuron Adjust
    and Key Space Detection lack names and digests, and those of weights are for the checkpoint's tensors; if the graph
    would be quantised first, those of the two lack digests. ``disk``: the bytes it needs at most while it runs,
    ``memory``: about how many are resident at most.
    """

    plan: Plan
    receipts: tuple[Receipt, ...]
    disk: int
    memory: int
    exporter: str | None = None

    @property
    def exports(self) -> bool:
        """Whether a checkpoint would be exported first."""
        return self.exporter is not None

    def as_json(self) -> dict[str, Any]:
        """The dry run as it stands in ``--json``."""
        return {
            "dry_run": True,
            "receipts": [receipt.as_json() for receipt in self.receipts],
            "disk": self.disk,
            "memory": self.memory,
            "exports": self.exports,
        }


def dry_run(model: str | Path, plan: Plan, options: BakeOptions) -> DryRun:
    """What baking ``plan`` into ``model`` would do. A checkpoint is hashed; of a graph only what is edited is read.

    Raises ``BakeoutError`` where baking would refuse: what only the export of a checkpoint can
    show is left out.
    """
    options = completed(options)
    if options.to == "safetensors":
        base = checkpoint_base(model, plan)
        room = base.room + len(plan_bytes(plan))
        return DryRun(plan, tuple(base.preview()), room, _PROCESS + 2 * base.in_memory)
    source = graph_or_checkpoint(model, plan, options.variant)
    if isinstance(source, Path):
        return _into_graph(source, plan, options)
    return _by_export(source, plan, options)


def _into_graph(path: Path, plan: Plan, options: BakeOptions) -> DryRun:
    base = GraphBase(path, exported=False)
    companions = companion_files(base.directory)
    receipts: list[Receipt] = []
    content = weights = largest = 0
    for graph, own in edited_graphs(base, plan, options):
        receipts += own
        content += len(graph_bytes(graph))
        weights += sum(room_on_disk(file) for file in data_files(graph).values())
        largest = max([largest, *(tensor.nbytes for tensor in data_tensors(graph) if tensor.awaits_writing)])
    disk = content + weights + sum(room_on_disk(companion) for companion in companions) + len(plan_bytes(plan))
    if options.quantize:
        require_quantisable(load_graph(path))
        kept = [
            receipt if plan.interventions[receipt.intervention].edits_weights else replace(receipt, before="", after="")
            for receipt in receipts
        ]
        return DryRun(plan, tuple(kept), disk + 2 * content + weights, _PROCESS + 3 * content + 2 * weights)
    return DryRun(plan, tuple(receipts), disk, _PROCESS + 3 * content + 2 * largest)


def _by_export(checkpoint: Checkpoint, plan: Plan, options: BakeOptions) -> DryRun:
    directory = checkpoint.directory
    exporter, _ = choose_exporter(options.exporter, str(read_config(directory).get("model_type")))
    edits = find_edits(directory, plan) if plan.edits_weights else ()
    receipts = [*preview_edits(directory, edits), *_in_graph_alone(plan)]
    exported = _BYTES[options.dtype] * parameter_count(directory)
    return DryRun(
        plan,
        tuple(sorted(receipts, key=lambda receipt: (receipt.intervention, receipt.layer))),
        _EXPORT_COPIES * exported,
        _PROCESS + _EXPORT_COPIES * exported,
        exporter,
    )


def _in_graph_alone(plan: Plan) -> Iterator[Receipt]:
    """What will be edited in a graph that is not there yet: without the names and digests."""
    for index, intervention in enumerate(plan.interventions):
        if not intervention.edits_weights:
            for part in intervention.parts:
                yield Receipt(index, intervention.kind, part.layer, "", "", part.count, "", "")


def lines(outlook: DryRun) -> Iterator[str]:
    """The dry run for people."""
    yield f"would make     {len(outlook.receipts)} edits"
    for number, intervention in enumerate(outlook.plan.interventions):
        description = described(intervention, outlook.plan.model)
        yield f"{number}  {description.title}: {description.summary}"
        for receipt in outlook.receipts:
            if receipt.intervention == number:
                yield from receipt_lines(receipt.as_json())
    if outlook.exports:
        yield f"export         first, by {outlook.exporter}: names, and norms in the exported type, are known then"
    yield f"disk           {gigabytes(outlook.disk)} at most, while it runs"
    yield f"memory         about {gigabytes(outlook.memory)} at most"
