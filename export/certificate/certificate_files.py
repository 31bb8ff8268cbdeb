"""The files of a certificate in its artifact."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bakeout.export.artifacts.additions import add_files
from bakeout.export.artifacts.file_names import CARD, CERTIFICATE, ERASURE_PAGE, ERASURE_RECORD, TOFU, TOFU_SUMMARY
from bakeout.export.certificate.card_section import with_section
from bakeout.export.certificate.figures import Certificate
from bakeout.export.certificate.tofu_metrics import summary
from bakeout.models.errors import BakeoutError
from bakeout.models.files.json_object import read_json


def write_certificate(directory: Path, certificate: Certificate) -> None:
    """Write a certificate into its artifact: as JSON, in the model card, and for rows of TOFU as open-unlearning does.

    What belongs to another certificate goes: an erasure record, and metrics of TOFU that this one lacks. Raises as
    ``add_files``.
    """
    content = certificate.as_json()
    text = _json(content)
    files: dict[str, str] = {CERTIFICATE: text}
    if certificate.tofu:
        files |= {TOFU: _json(certificate.tofu), TOFU_SUMMARY: _json(summary(certificate.tofu))}
    card = directory / CARD
    files[CARD] = with_section(card.read_text(encoding="utf-8") if card.is_file() else "", content)
    outdated = {TOFU, TOFU_SUMMARY} - files.keys()
    if not _is_recorded(directory, text):
        outdated |= {ERASURE_RECORD, ERASURE_PAGE}
    add_files(directory, files, without=outdated)


def _is_recorded(directory: Path, certificate: str) -> bool:
    """Whether the artifact's erasure record is of this certificate."""
    try:
        measured = read_json(directory / ERASURE_RECORD).get("measured")
    except BakeoutError:
        return False
    digest = hashlib.sha256(certificate.encode()).hexdigest()
    return isinstance(measured, dict) and measured.get("sha256") == digest


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True, allow_nan=False) + "\n"
