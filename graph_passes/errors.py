"""The error of floor 2: a graph that cannot be read or edited."""

from __future__ import annotations

from bakeout.models.errors import BakeoutError


class GraphError(BakeoutError):
    """A graph that is broken, whose layers cannot be found, or that an intervention does not fit."""

    def __init__(self, cause: str, remedy: str = "Export the model again, or bake another export of it.") -> None:
        super().__init__(cause, remedy)
