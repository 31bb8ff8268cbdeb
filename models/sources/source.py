"""What all sources share: the receipt of what was read, and the errors of the rest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bakeout.models.errors import BakeoutError
from bakeout.models.files.hashing import hash_file
from bakeout.models.plan.kinds.report import RetainReport


def read_report(form: str, files: Sequence[Path], scale: float, read: Sequence[dict[str, Any]]) -> RetainReport:
    """The receipt of a source, as an intervention's report.

    ``form``: what it is; ``files``, by their names alone, with their SHA-256; ``scale``: what was asked for on top;
    ``read``: per weight or layer, what was read.
    """
    digests = {path.name: hash_file(path) for path in files}
    return RetainReport(details={"imported": {"source": form, "files": digests, "scale": scale, "read": list(read)}})


def reporting(report: RetainReport, read: Sequence[dict[str, Any]]) -> RetainReport:
    """The receipt of the same source for what else was read from it."""
    return RetainReport(details={"imported": {**report.details["imported"], "read": list(read)}})


def none_matched(path: Path, what: str) -> BakeoutError:
    """The error for a source in which nothing is carried."""
    return BakeoutError(f"{path} holds {what}, so the plan would do nothing.", "Import the source that holds the edit.")


def not_carried(path: Path, what: str, remedy: str) -> BakeoutError:
    """The error for what a source names and no plan carries."""
    return BakeoutError(f"{path}: {what}, which a plan does not carry.", remedy)
