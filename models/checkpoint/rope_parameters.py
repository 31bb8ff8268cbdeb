"""The rotary embedding in configurations: transformers 5 writes ``rope_parameters``, which 4 loads and ignores.

Read in both: 5 moves ``rope_theta``, ``rope_scaling`` and ``partial_rotary_factor`` into that one entry. Version 4 then
computes with its own base frequency, and says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bakeout.models.errors import BakeoutError

_ROPE, _SCALING = "rope_parameters", "rope_scaling"
# What version 4 has beside the scaling, under the same names.
_APART = ("rope_theta", "partial_rotary_factor")


def with_rope_of_version_4(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A configuration whose rotary embedding is named as by transformers 4; itself where it is so already."""
    rope = config.get(_ROPE)
    if not isinstance(rope, Mapping) or not isinstance(rope.get("rope_type"), str):
        return config
    scaling = {name: value for name, value in rope.items() if name not in _APART}
    others = {name: value for name, value in config.items() if name != _ROPE}
    apart = {name: rope[name] for name in _APART if name in rope}
    return {**others, **apart, _SCALING: None if rope["rope_type"] == "default" else scaling}


def readable_here(config: Mapping[str, Any], directory: Path) -> Mapping[str, Any]:
    """A configuration that the installed transformers reads as it is meant: beside version 4, in its words.

    Raises ``BakeoutError`` where version 4 has no such entries for the architecture, and would ignore them.
    """
    from transformers import __version__

    return _read_by_version_4(config, directory) if int(__version__.partition(".")[0]) < 5 else config


def _read_by_version_4(config: Mapping[str, Any], directory: Path) -> Mapping[str, Any]:
    """``with_rope_of_version_4``, also in the configurations of a model's parts."""
    from transformers import AutoConfig

    parts = {
        name: _read_by_version_4(value, directory)
        for name, value in config.items()
        if name.endswith("_config") and isinstance(value, Mapping)
    }
    renamed = with_rope_of_version_4({**config, **parts})
    model_type = config.get("model_type")
    if config.get(_ROPE) is None or not isinstance(model_type, str):
        return renamed
    try:
        known, read = AutoConfig.for_model(model_type).to_dict(), AutoConfig.for_model(**renamed).to_dict()
    except ValueError:
        # Loading says that the architecture is unknown.
        return renamed
    written = {name: value for name, value in renamed.items() if value is not None and name not in config}
    # An entry that the architecture does not have is kept, and ignored.
    if _ROPE in renamed or any(name not in known or read[name] != value for name, value in written.items()):
        raise BakeoutError(
            f"{directory}: transformers 5 wrote its rotary embedding, and the installed version 4 would ignore it.",
            "Use transformers 5, or save the checkpoint with version 4.",
        )
    return renamed
