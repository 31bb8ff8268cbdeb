"""An ``.onnx_adapter`` as inputs of a session: ONNX Runtime activates none where inputs are bound."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bakeout.models.errors import BakeoutError

_NAME = "Name what `bakeout export-adapter --to onnx` wrote."


def adapter_constants(path: Path) -> Mapping[str, Any]:
    """The constants in an adapter, each an ``OrtValue``, by their names. Raises ``BakeoutError`` for what is none."""
    import onnxruntime

    if not path.is_file():
        raise BakeoutError(f"{path} is not there.", _NAME)
    try:
        adapter = onnxruntime.AdapterFormat.read_adapter(str(path))
        constants: Mapping[str, Any] = adapter.get_parameters()
    # ONNX Runtime has no error of its own for it.
    except Exception as error:  # noqa: BLE001
        reason = " ".join(str(error).split())
        raise BakeoutError(f"{path} is no adapter of ONNX Runtime ({reason}).", _NAME) from None
    # Copies, for the values lie in the adapter's memory, which ends with it: what is read later is anything.
    return {name: onnxruntime.OrtValue.ortvalue_from_numpy(value.numpy().copy()) for name, value in constants.items()}


def read_adapter(path: Path, session: Any) -> Mapping[str, Any]:
    """The constants in an adapter, each an ``OrtValue``, by the names of the session's initialisers that they override.

    Raises ``BakeoutError`` for what is no adapter, or one for a graph without these slots.
    """
    constants = adapter_constants(path)
    slots = {value.name: value for value in session.get_overridable_initializers()}
    if strange := sorted(name for name, value in constants.items() if not _fits(value, slots.get(name))):
        raise BakeoutError(
            f"{path} holds {strange[0]}, for which the graph has no slot of its type and shape.",
            "Bake the graph with `adapter_slots`, and export the adapter for it.",
        )
    return constants


def _fits(constant: Any, slot: Any) -> bool:
    """Whether a constant goes into a slot, of whose dimensions some are named: the number of neurons is free."""
    return (
        slot is not None
        and constant.data_type() == slot.type
        and len(constant.shape()) == len(slot.shape)
        and all(isinstance(size, str) or size == own for own, size in zip(constant.shape(), slot.shape, strict=True))
    )
