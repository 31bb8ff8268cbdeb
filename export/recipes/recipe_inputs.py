"""What a recipe names, opened once for every step: the checkpoint, and the rows by use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bakeout.export.artifacts.model_source import find_checkpoint
from bakeout.export.recipes.data_files import by_use, data_digests, read_files
from bakeout.export.recipes.recipe import Recipe
from bakeout.export.recipes.shared_rows import SeenRows, require_separate
from bakeout.models.checkpoint.checkpoint import Checkpoint
from bakeout.models.data.row_source import Source
from bakeout.models.data.rows import Sources

# SHA-256, in hex, of what a recipe's data name, by name and by what it is for.
Digests = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class RecipeInputs:
    """The model that a recipe names, whose weights are hashed once, and its data by name and use, read and split once.

    ``digests``: of the data as they were read; ``seen``: rows for testing or choosing that are fitted on too.
    """

    checkpoint: Checkpoint
    sources: Sources
    digests: Digests
    seen: tuple[SeenRows, ...]

    @property
    def fitted(self) -> Sources:
        """What methods may see."""
        return without_tests(self.sources)

    @property
    def tests(self) -> dict[str, Source]:
        """The rows for testing, by name."""
        return {name: uses["test"] for name, uses in self.sources.items() if "test" in uses}


def open_inputs(recipe: Recipe) -> RecipeInputs:
    """Find the checkpoint and split the data.

    Raises ``BakeoutError`` where either cannot be read, and for rows that contradict each other (``shared_rows``).
    """
    checkpoint = find_checkpoint(recipe.model)
    return RecipeInputs(checkpoint, *open_rows(recipe))


def open_rows(recipe: Recipe) -> tuple[Sources, Digests, tuple[SeenRows, ...]]:
    """The rows by name and use, their digests, and those that are seen. Raises as ``open_inputs`` does.

    Every file is read here, once, so that a plan is fitted on the rows whose digests it records.
    """
    data = read_files(recipe.data)
    sources = by_use(data)
    return sources, data_digests(data), require_separate(recipe, sources)


def without_tests(sources: Sources) -> Sources:
    """All rows but those for testing, which no method may see."""
    return {name: {use: source for use, source in uses.items() if use != "test"} for name, uses in sources.items()}
