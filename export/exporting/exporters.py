"""The exporters, behind one interface: each gives a decoder's graph with a cache, its inputs named as optimum does."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol, cast

from bakeout.export.recipes.bake_options import DType, ExporterName
from bakeout.models.errors import BakeoutError

if TYPE_CHECKING:
    import onnx_ir as ir
    from transformers import PreTrainedModel


class Exporter(Protocol):
    """A module that exports, with its heavy imports inside its functions."""

    PACKAGES: tuple[str, ...]
    """The distributions whose versions decide what the graph is."""

    def unavailable(self, model_type: str) -> str | None:
        """Why it cannot export an architecture here; None where nothing is known against it."""

    def export(self, model: PreTrainedModel, directory: Path, checkpoint: Path, dtype: DType) -> ir.Model:
        """The graph of ``model``, whose weights are the model's own memory as far as the exporter left them as they
        were; the graph's configuration is written into ``directory``.

        Raises ``BakeoutError`` where it cannot; the errors name ``checkpoint`` and ``dtype``.
        """


# In the order in which `auto` asks them.
_MODULES: Mapping[str, str] = MappingProxyType(
    {
        "optimum": "bakeout.export.exporting.optimum_exporter",
        "dynamo": "bakeout.export.exporting.dynamo_exporter",
    }
)


def choose_exporter(name: ExporterName, model_type: str) -> tuple[str, Exporter]:
    """The exporter ``name`` and its module; of ``auto``, the first that is available for the architecture.

    Raises ``BakeoutError`` where the one that is named is not.
    """
    reasons = []
    for candidate in _MODULES if name == "auto" else (name,):
        exporter = cast(Exporter, importlib.import_module(_MODULES[candidate]))
        reason = exporter.unavailable(model_type)
        if reason is None:
            return candidate, exporter
        reasons.append(reason)
    raise BakeoutError(
        f"The exporter {name} cannot export {model_type}: {'; '.join(reasons)}.",
        "Choose `exporter: auto`, or bake an ONNX graph made elsewhere.",
    )
