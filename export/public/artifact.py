"""An artifact as an object: its directory, and what lies in it."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any

from bakeout.export.artifacts.file_names import MANIFEST, PLAN
from bakeout.export.artifacts.manifest import read_manifest, receipts_of
from bakeout.models.files.hashing import hash_file
from bakeout.models.plan import Plan
from bakeout.models.plan.plan_file import load_plan
from bakeout.models.plan.receipt import Receipt


class Artifact:
    """A directory that ``bake`` or `bakeout build` wrote: a graph or checkpoint, the plan baked into it, a manifest.

    It can be used wherever a path can. Raises ``BakeoutError`` where ``directory`` is none; ``verify``
    checks whether its files are those of the manifest.

    >>> artifact = bakeout.Artifact("unlearned")
    >>> artifact.directory.name
    'unlearned'
    >>> [intervention.kind for intervention in artifact.plan.interventions]
    ['neuron_adjust']
    >>> artifact.receipts[0].layer
    0
    >>> len(artifact.digest)
    64
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        """Where it lies."""
        self.manifest: dict[str, Any] = read_manifest(self.directory)
        """``bakeout.json``: the digests of the other files, and what the artifact was made of and with."""

    def __repr__(self) -> str:
        return f"Artifact({str(self.directory)!r})"

    def __fspath__(self) -> str:
        return str(self.directory)

    @cached_property
    def plan(self) -> Plan:
        """The plan that is baked in."""
        return load_plan(self.directory / PLAN)

    @property
    def receipts(self) -> tuple[Receipt, ...]:
        """A receipt for every edit: which layer's tensor was changed, and where it is now."""
        return receipts_of(self.manifest)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the manifest, and so of everything: what ``verify`` takes as ``digest``."""
        return hash_file(self.directory / MANIFEST)
