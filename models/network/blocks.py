"""The blocks of a model: numbers in a module's name say in which one it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bakeout.models.errors import BakeoutError


def numbered(path: str) -> Iterator[str]:
    """The members of lists that the module called ``path`` is in, or is, from the outermost on."""
    parts = path.split(".")
    for place, part in enumerate(parts):
        if part.isdecimal():
            yield ".".join(parts[: place + 1])


def block_path(path: str) -> str:
    """The name of the block that the module called ``path`` is in: ``model.layers.3`` of ``model.layers.3.mlp.gate``.

    Raises ``BakeoutError`` for a module outside all blocks.
    """
    for outermost in numbered(path):
        return outermost
    raise BakeoutError(
        f"{path} lies in no numbered block of the model.",
        "Use a model whose feed-forward layers and routers are in a list of blocks.",
    )


def block_number(block: str) -> int:
    """The number of the block with this name, from the embedding upwards."""
    return int(block.rpartition(".")[2])


def require_one_list(blocks: Iterable[str]) -> None:
    """Raise ``BakeoutError`` where blocks with these names are in several lists: their numbers say no order."""
    lists = sorted({block.rpartition(".")[0] for block in blocks})
    if len(lists) > 1:
        raise BakeoutError(
            f"The feed-forward layers and routers of this model are in several lists of blocks: {', '.join(lists)}.",
            "Use a model whose blocks are in one list.",
        )
