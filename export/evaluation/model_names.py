"""Names of models in tables and files: the directory's own, which does not depend on where it lies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bakeout.export.evaluation.rows import BASE


def model_names(directories: Sequence[Path]) -> list[str]:
    """A name for each directory: the end of its path, as long as needed to tell the directories apart.

    >>> model_names([Path("out/neuron-adjust"), Path("out/lunar")])
    ['neuron-adjust', 'lunar']
    >>> model_names([Path("first/lunar"), Path("second/lunar")])
    ['first/lunar', 'second/lunar']

    No name is ``base``, which is the base model's.
    """
    paths = [directory.resolve() for directory in directories]
    for depth in range(1, max((len(path.parts) for path in paths), default=0) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(set(paths)) and BASE not in names:
            return names
    return [str(path) for path in paths]
