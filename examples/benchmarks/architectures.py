"""Which graphs interventions can be baked into: every architecture that optimum exports, every exporter and precision.

    PYTHONPATH=. python examples/benchmarks/architectures.py --output runs/benchmarks/architectures

By the checks of ``tests/graph_passes`` (``make test-all``), on tiny random models. Stops and resumes: finished rows lie
in ``<output>/rows.json``.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import click
from comparison import print_table

from bakeout.export.exporting.onnx_export import export_checkpoint
from bakeout.graph_passes.graph.anatomy import read_anatomy
from bakeout.graph_passes.graph.graph_file import load_graph
from bakeout.models.checkpoint.checkpoint_files import load_model
from bakeout.models.errors import BakeoutError
from bakeout.models.network.families import feed_forward_layers

from tests.exported_graphs import EXPORTS, Kind, compared, export, holds
from tests.tiny_models import FAMILIES, MIXTURES, tiny_checkpoint

KINDS: tuple[Kind, ...] = get_args(Kind)
HEADER = ["Neuron Adjust", "Key Space Detection, middle layer", "the same, last layer"]

Row = dict[str, Any]


def of_architecture(family: str, scratch: Path) -> Row:
    """What becomes of a family's graph, as optimum exports it in fp32."""
    checkpoint = tiny_checkpoint(family, scratch / "checkpoint")
    (scratch / "onnx").mkdir()
    model = load_model(checkpoint)
    try:
        layers = feed_forward_layers(model)
        export_checkpoint(checkpoint, scratch / "onnx")
        read_anatomy(load_graph(scratch / "onnx" / "model.onnx"))
    except BakeoutError as error:
        return {"reason": error.cause}
    return {
        "layout": layers[0].layout,
        **{kind: _told(scratch / "onnx", model, kind, "optimum fp32") for kind in KINDS},
    }


def of_export(name: str, scratch: Path) -> Row:
    """What becomes of a Llama's graph by one exporter in one precision."""
    checkpoint = tiny_checkpoint("llama", scratch / "checkpoint", hidden=64)
    directory, model = export(checkpoint, scratch / "exported", name)
    return {kind: _told(directory, model, kind, name) for kind in KINDS}


def _told(directory: Path, model: Any, kind: Kind, name: str) -> str:
    parity = compared(directory, model, kind, name)
    told = f"{parity.alike} of {parity.prompts} alike, {parity.changed} changed"
    if kind != "neuron_adjust":
        told += f", {parity.refused} refused"
    return told if holds(parity, kind, name) else f"**fails**: {told}, ties {parity.ties:.2f}"


def measured(output: Path, names: tuple[str, ...], measure: Callable[[str, Path], Row]) -> dict[str, Row]:
    """The row of each name; those that are there already are not measured again."""
    saved = output / "rows.json"
    rows: dict[str, Row] = json.loads(saved.read_text()) if saved.exists() else {}
    for name in names:
        if name not in rows:
            with tempfile.TemporaryDirectory() as scratch:
                rows[name] = measure(name, Path(scratch))
            saved.write_text(json.dumps(rows, indent=1))
            print(f"{name}: {rows[name]}", flush=True)
    return rows


def _architectures(rows: dict[str, Row]) -> Iterator[list[str]]:
    for family in sorted((*FAMILIES, *MIXTURES)):
        row = rows[family]
        cells = [row["reason"], "", ""] if "reason" in row else [row[kind] for kind in KINDS]
        yield [family, row.get("layout", ""), *cells]


@click.command()
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Where rows are kept.")
def main(output: Path) -> None:
    """Hold them against the PyTorch reference, and print both tables."""
    output.mkdir(parents=True, exist_ok=True)
    measured(output, EXPORTS, of_export)
    rows = measured(output, (*FAMILIES, *MIXTURES), of_architecture)
    print_table(["architecture", "FFL", *HEADER], _architectures(rows))
    print()
    print_table(
        ["exporter and precision", *HEADER], ([name, *(rows[name][kind] for kind in KINDS)] for name in EXPORTS)
    )


if __name__ == "__main__":
    main()
