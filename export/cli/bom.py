"""`bakeout bom`."""

from __future__ import annotations

from pathlib import Path

import click

from bakeout.export.cli.console import emit_json, show
from bakeout.export.cli.options import PATH, json_output


@click.command()
@click.argument("directory", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="File of the new bill; it must not exist.")
@click.option("--license", help="The artifact's licence, as an SPDX expression.")
@click.option(
    "--base-license",
    help="The base model's, as an SPDX expression or by its name; by default that of the GGUF file that it came from.",
)
@json_output
def bom(directory: Path, output: Path, license: str | None, base_license: str | None, machine: bool) -> None:
    """Write an artifact's bill of materials: CycloneDX 1.7 for machine learning (pip install "bakeout[trust]").

    It names the base model, the data and every file by their digests, the methods, the licences, and the figures of the
    certificate, if `bakeout certify` wrote one. The same artifact gives the same bytes.
    """
    from bakeout.export.trust.bill_of_materials import SPECIFICATION, bill_of_materials, bill_text
    from bakeout.models.files.writing import require_new, write_file

    require_new(output)
    content = bill_of_materials(directory, license=license, base_license=base_license)
    write_file(output, bill_text(content))
    if machine:
        emit_json({"bom": str(output), "serial_number": content["serialNumber"]})
    else:
        show(f"{output}: CycloneDX {SPECIFICATION}, {content['serialNumber']}")
