"""Every method. Ours are a line each; others' packages register theirs as entry points.

    [project.entry-points."bakeout.methods"]
    my_method = "my_package:METHOD"

What is registered is a ``Method``, whose ``name`` is that of the entry point. Reading the registry loads no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from bakeout.models.errors import BakeoutError
from bakeout.models.methods.method import Method, load

GROUP = "bakeout.methods"

_OURS = (
    "neuron_adjust",
    "key_space_detection",
    "selective_pruning",
    "lunar",
    "unlearn",
    "learn",
    "reveal_and_release",
)


@cache
def methods() -> Mapping[str, Method]:
    """The methods by name: ours, then those of other packages by name.

    Raises ``BakeoutError`` for a registered method that cannot be loaded, and for a name that is used twice.
    """
    known = {name: load(f"bakeout.models.methods.{name}:METHOD") for name in _OURS}
    return {**known, **registered(entry_points(group=GROUP), known)}


def method(name: str) -> Method:
    """The method of this name in recipes, another package's too.

    >>> lunar = bakeout.method("lunar")
    >>> lunar.title, lunar.paper
    ('LUNAR', 'arXiv 2502.07218')
    >>> options = lunar.options(forget="people", reference="unknown")

    Raises ``BakeoutError`` where there is none.
    """
    if name not in methods():
        close = get_close_matches(name, methods(), n=1)
        remedy = f"Did you mean {close[0]!r}?" if close else f"There are {', '.join(methods())}."
        raise BakeoutError(f"No method is called {name!r}.", remedy)
    return methods()[name]


def registered(entries: Iterable[EntryPoint], known: Iterable[str]) -> dict[str, Method]:
    """The methods of other packages, by name. Raises as ``methods`` does."""
    taken = dict.fromkeys(known, "Bakeout itself")
    loaded: dict[str, Method] = {}
    for entry in sorted(entries, key=lambda entry: (entry.name, entry.value)):
        package = entry.dist.name if entry.dist else entry.value
        if entry.name in taken:
            raise BakeoutError(
                f"The method {entry.name!r} of {package} is registered by {taken[entry.name]} already.",
                "Uninstall one of the two.",
            )
        taken[entry.name] = package
        loaded[entry.name] = _loaded(entry, package)
    return loaded


def _loaded(entry: EntryPoint, package: str) -> Method:
    remedy = f"Update {package}, or uninstall it."
    try:
        loaded = entry.load()
    except Exception as error:
        cause = f"The method {entry.name!r} of {package} cannot be loaded: {type(error).__name__}: {error}."
        raise BakeoutError(" ".join(cause.split()), remedy) from error
    if not isinstance(loaded, Method) or loaded.name != entry.name:
        raise BakeoutError(f"{entry.value} of {package} is no method called {entry.name!r}.", remedy)
    return loaded
