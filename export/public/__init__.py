"""Bake LLM unlearning into the model file. Importing this package loads neither torch nor onnx."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str

__all__ = ["__version__"]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("bakeout")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
