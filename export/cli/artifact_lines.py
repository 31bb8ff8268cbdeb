"""What `bake` and `build` print about the artifact that they wrote."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bakeout.export.cli.console import emit_json, show

if TYPE_CHECKING:
    from bakeout.models.plan.receipt import Receipt


def show_artifact(directory: Path, receipts: Sequence[Receipt], *, machine: bool) -> None:
    """Print the directory, its receipts, the digest of its manifest, and what to run next."""
    from bakeout.export.artifacts.file_names import MANIFEST
    from bakeout.export.artifacts.model_source import local_form
    from bakeout.models.files.hashing import hash_file

    digest = hash_file(directory / MANIFEST)
    if machine:
        emit_json(
            {"directory": str(directory), "receipts": [receipt.as_json() for receipt in receipts], "digest": digest}
        )
        return
    named = shlex.quote(str(directory))
    show(f"{directory}: edits with a receipt: {len(receipts)}; {MANIFEST} has sha256 {digest}")
    if local_form(directory) == "graph":
        show(f"Next: bakeout chat {named}, or bakeout inspect {named}")
    else:
        show(f"Next: bakeout verify {named} --base MODEL, or bakeout inspect {named}")
