"""What `bakeout tune` searches for each method, and the refusal to build a recipe that still has to be tuned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from bakeout.export.tuning.search import Among, Settings, Space, Span
from bakeout.models.errors import BakeoutError

if TYPE_CHECKING:
    from bakeout.export.recipes.intervention_options import InterventionEntry


@dataclass(frozen=True)
class Searched:
    """A method's search: it is on where the option ``strength`` is `auto`.

    The other axes of ``space`` are searched with it, but for those that the recipe sets. ``starts`` are tried first.
    ``symbol``: what the strength is called in figures.
    ``linear``: the intervention of one strength is that of another times their ratio, so that one fit serves all.
    """

    strength: str
    symbol: str
    space: Space
    starts: Sequence[Settings]
    linear: bool = False

    def free(self, given: set[str]) -> Space:
        """The axes that are searched where the recipe sets the options ``given``."""
        return {name: axis for name, axis in self.space.items() if name == self.strength or name not in given}


def _adjusted(ratio: float, selection: str = "difference", tokens: str = "answer", coin: str = "threshold") -> Settings:
    return {"ratio": ratio, "selection": selection, "tokens": tokens, "coin": coin}


# By the methods' keys in a recipe.
SEARCHED: dict[str, Searched] = {
    "neuron_adjust": Searched(
        "ratio",
        "β",
        {
            "ratio": Span(0.003, 0.6),
            "selection": Among(("difference", "standardised")),
            "tokens": Among(("answer", "all")),
            "coin": Among(("threshold", "expected")),
        },
        # The paper's largest beta, and from there on what METHODS.md's pilot found on small models.
        (
            _adjusted(0.03),
            _adjusted(0.1),
            _adjusted(0.2),
            _adjusted(0.3),
            _adjusted(0.2, selection="standardised"),
            _adjusted(0.1, tokens="all"),
            _adjusted(0.2, coin="expected"),
        ),
    ),
    "lunar": Searched(
        "coefficient",
        "coefficient",
        {"coefficient": Span(0.25, 6.0)},
        ({"coefficient": 1.0}, {"coefficient": 1.5}, {"coefficient": 2.0}),
    ),
    "unlearn": Searched(
        "scale",
        "scale",
        {"scale": Span(0.1, 4.0)},
        ({"scale": 1.0}, {"scale": 0.5}, {"scale": 2.0}),
        linear=True,
    ),
}


def searched(entry: InterventionEntry) -> Searched | None:
    """The search that an intervention still needs; none where its strength is set."""
    (method,) = entry.model_fields_set
    search = SEARCHED.get(method)
    strength: Any = None if search is None else getattr(entry.options, search.strength)
    return search if strength == "auto" else None


def require_tuned(interventions: Sequence[InterventionEntry]) -> None:
    """Raise ``BakeoutError`` for interventions whose strength has yet to be searched: a build never searches."""
    for entry in interventions:
        if (search := searched(entry)) is not None:
            (method,) = entry.model_fields_set
            raise BakeoutError(
                f"`{search.strength}: auto` of `{method}` takes a search, and a build never searches.",
                "Write a recipe with every choice filled in: bakeout tune RECIPE -o TUNED.yaml",
            )


def tuned(strength: float | Literal["auto"]) -> float:
    """A strength that ``require_tuned`` let through."""
    if strength == "auto":
        raise ValueError("an untuned strength was not refused before the fit")
    return strength
