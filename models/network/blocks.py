"""The blocks of a model: the first number in a module's name says in which one it is."""

from __future__ import annotations

from bakeout.models.errors import BakeoutError


def block_path(path: str) -> str:
    """The name of the block that the module called ``path`` is in: ``model.layers.3`` of ``model.layers.3.mlp.gate``.

    Raises ``BakeoutError`` for a module outside all blocks.
    """
    parts = path.split(".")
    for place, part in enumerate(parts):
        if part.isdecimal():
            return ".".join(parts[: place + 1])
    raise BakeoutError(
        f"{path} lies in no numbered block of the model.",
        "Use a model whose feed-forward layers and routers are in a list of blocks.",
    )


def block_number(path: str) -> int:
    """The number of that block, from the embedding upwards. Raises as ``block_path``."""
    return int(block_path(path).rpartition(".")[2])
