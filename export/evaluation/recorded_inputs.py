"""What artifacts record of their making that matters to who measures them: template, exporter and rows."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from bakeout.export.artifacts.file_names import MANIFEST
from bakeout.export.artifacts.manifest import read_manifest
from bakeout.export.recipes.bake_options import DType, ExporterName
from bakeout.models.data.row_source import Source, source_digest
from bakeout.models.data.tokenizers.chat_options import CHAT_TEMPLATE, ChatTemplateOptions, recorded_options
from bakeout.models.errors import BakeoutError

_logger = logging.getLogger(__name__)


def recorded_template(directories: Sequence[Path]) -> ChatTemplateOptions | None:
    """The chat template that the artifacts in these directories render chats by, for models that they are compared
    with; None where none of them records any.

    Raises ``BakeoutError`` where they differ.
    """
    recorded = {
        path: recorded_options(manifest.get(CHAT_TEMPLATE)) for path, manifest in _manifests(directories).items()
    }
    options = list(recorded.values())
    if differing := [path for path, chosen in recorded.items() if chosen.complete() != options[0].complete()]:
        raise BakeoutError(
            f"{next(iter(recorded))} and {differing[0]} render chats by different templates, so that no base model is "
            "asked what both are.",
            "Evaluate them one by one, or choose `chat_template` for all.",
        )
    return options[0] if options else None


def recorded_exporter(directories: Sequence[Path]) -> ExporterName:
    """What exported the artifacts in these directories, to export models that they are compared with; ``auto`` where
    nothing did, and where they differ.

    Raises ``BakeoutError`` for an exporter that is not known.
    """
    recorded: set[ExporterName] = set()
    for path, manifest in _manifests(directories).items():
        name: Any = (manifest.get("options") or {}).get("exporter") or "auto"
        if name not in get_args(ExporterName):
            raise BakeoutError(f"{path} was exported by {name!r}, an exporter that is not known.", "Bake it again.")
        recorded.add(name)
    return recorded.pop() if len(recorded) == 1 else "auto"


def recorded_dtype(directories: Sequence[Path]) -> DType:
    """``fp16`` where all artifacts in these directories are graphs in it, to export models that they are compared with
    in the same precision; else ``fp32``, of which int8 and int4 are made too.
    """
    recorded = {(manifest.get("options") or {}).get("dtype") for manifest in _manifests(directories).values()}
    return "fp16" if recorded == {"fp16"} else "fp32"


def tell_fitted_rows(directories: Sequence[Path], sources: Mapping[str, Source]) -> None:
    """Log which of ``sources`` an artifact was fitted on."""
    for _, told in fitted_rows(directories, sources):
        _logger.warning(told)


def fitted_rows(directories: Sequence[Path], sources: Mapping[str, Source]) -> Iterator[tuple[str, str]]:
    """Which of ``sources`` an artifact was fitted on, by the digests of the files that it records: name, and words."""
    digests = {name: source_digest(source) for name, source in sources.items()}
    for path, manifest in _manifests(directories).items():
        data = manifest.get("data")
        for fitted, uses in data.items() if isinstance(data, dict) else ():
            for use, digest in uses.items() if isinstance(uses, dict) else ():
                for name in (name for name, own in digests.items() if own == digest and use != "test"):
                    role = "all its uses" if use == "file" else use
                    yield (
                        name,
                        f"{name} holds the rows that {path} was fitted with ({fitted}, {role}): figures on them are "
                        "not those of fresh rows.",
                    )


def _manifests(directories: Sequence[Path]) -> dict[Path, dict[str, Any]]:
    return {path: read_manifest(path) for path in directories if (path / MANIFEST).is_file()}
