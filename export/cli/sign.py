"""`bakeout sign`."""

from __future__ import annotations

from pathlib import Path

import click

from bakeout.export.cli.console import emit_json, progress, show
from bakeout.export.cli.options import PATH, json_output


@click.command()
@click.argument("path", type=PATH)
@click.option("--key", type=PATH, required=True, help="The private key: an elliptic curve's, in PEM.")
@click.option("--certificate", type=PATH, help="The signing certificate of that key, in PEM.")
@click.option("--chain", type=PATH, multiple=True, help="A certificate between that one and the root; repeatable.")
@json_output
def sign(path: Path, key: Path, certificate: Path | None, chain: tuple[Path, ...], machine: bool) -> None:
    """Sign an artifact, or any file, through OpenSSF Model Signing (pip install "bakeout[trust]").

    A directory's signature is its `model.sig`, that of a FILE is `FILE.sig`. `bakeout verify --signature` checks it, as
    does `python -m model_signing verify` without Bakeout. The files of an artifact must be those of its manifest.
    """
    from bakeout.export.artifacts.additions import require_unchanged
    from bakeout.export.artifacts.file_names import MANIFEST
    from bakeout.export.trust.signature import sign, signature_of
    from bakeout.models.files.writing import require_writable

    require_writable(signature_of(path).parent)
    if (path / MANIFEST).is_file():
        with progress() as track:
            require_unchanged(path, track=track)
    signature = sign(path, key, certificate=certificate, chain=chain)
    if machine:
        emit_json({"signature": str(signature)})
    else:
        show(f"{signature}: keep it with what it signs")
