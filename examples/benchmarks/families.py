"""Which families of models run from checkpoint to baked graph: each made tiny, exported, baked, held against PyTorch.

    PYTHONPATH=. python examples/benchmarks/families.py --output runs/benchmarks/families [FAMILY ...]

Beside transformers 5, without optimum, every family is exported by ``torch.onnx.export``. The table has every dense
text family that the installed transformers has. A family is exact where, of 24 prompts, the baked graph answers all as
the reference does, token for token, with Neuron Adjust and with Key Space Detection in a middle layer and in the last.
Stops and resumes, several processes beside each other: finished rows lie in ``<output>``, one file a family.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, get_args

import click
import transformers
from comparison import print_table

from bakeout.export.exporting.exporters import choose_exporter
from bakeout.export.exporting.onnx_export import export_checkpoint
from bakeout.export.recipes.bake_options import ExporterName
from bakeout.models.checkpoint.checkpoint_files import load_model
from bakeout.models.errors import BakeoutError
from bakeout.models.network.families import feed_forward_layers

from tests.exported_graphs import Kind, compared, holds
from tests.tiny_models import FAMILIES, NEWER_FAMILIES, tiny_checkpoint

KINDS: tuple[Kind, ...] = get_args(Kind)
HEADER = ["family", "FFL", "exporter", "Neuron Adjust", "Key Space Detection, middle layer", "the same, last layer"]

Row = dict[str, Any]


def measure(family: str, scratch: Path, exporter: ExporterName, layers: int) -> Row:
    """What becomes of a family: its cells, or the reason why there are none. Faults that nobody names go through."""
    checkpoint = tiny_checkpoint(family, scratch / "checkpoint", layers=layers)
    (scratch / "onnx").mkdir()
    model = load_model(checkpoint)
    try:
        (first, *_) = feed_forward_layers(model)
        export_checkpoint(checkpoint, scratch / "onnx", exporter=exporter)
        parities = {kind: compared(scratch / "onnx", load_model(checkpoint), kind) for kind in KINDS}
    except BakeoutError as error:
        return {"reason": error.cause}
    return {
        "layout": first.layout,
        "exporter": choose_exporter(exporter, model.config.model_type)[0],
        "exact": all(holds(parity, kind) for kind, parity in parities.items()),
        **{
            kind: f"{parity.alike} of {parity.prompts} alike, {parity.changed} changed, {parity.refused} refused"
            for kind, parity in parities.items()
        },
    }


def row_of(family: str, output: Path, exporter: ExporterName, layers: int) -> Row:
    """The row of a family, measured unless it is there already."""
    saved = output / f"{family}.json"
    if not saved.exists():
        with tempfile.TemporaryDirectory() as scratch:
            row = measure(family, Path(scratch), exporter, layers)
        saved.write_text(json.dumps(row, indent=1))
        print(f"{family}: {row}", flush=True)
    kept: Row = json.loads(saved.read_text())
    return kept


def _cells(family: str, row: Row) -> list[str]:
    if "reason" in row:
        return [family, "", "", row["reason"], "", ""]
    failed = "" if row["exact"] else "**fails**: "
    return [family, row["layout"], row["exporter"], *(f"{failed}{row[kind]}" for kind in KINDS)]


@click.command()
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Where rows are kept.")
@click.option("--exporter", type=click.Choice(get_args(ExporterName)), default="auto", show_default=True)
@click.option(
    "--layers",
    default=2,
    show_default=True,
    help="Of each model: of two, the first is of another kind than the last, where a family has two kinds.",
)
@click.argument("families", nargs=-1)
def main(output: Path, exporter: ExporterName, layers: int, families: tuple[str, ...]) -> None:
    """Hold families against the PyTorch reference, and print their table."""
    output.mkdir(parents=True, exist_ok=True)
    names = families or sorted((*FAMILIES, *NEWER_FAMILIES))
    rows = {family: row_of(family, output, exporter, layers) for family in names}
    print_table(HEADER, (_cells(family, row) for family, row in rows.items()))
    exact = sum(row.get("exact", False) for row in rows.values())
    print(f"\n{exact} of {len(rows)} families token-exact, transformers {transformers.__version__}")


if __name__ == "__main__":
    main()
