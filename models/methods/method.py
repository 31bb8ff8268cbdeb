"""A method: what recipes, help, `tune` and model cards know of it before anything that fits it is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from bakeout.models.methods.options import MethodOptions
from bakeout.models.methods.search_space import SearchSpace, Settings
from bakeout.models.plan import Intervention

if TYPE_CHECKING:
    from bakeout.models.data.rows import Rows
    from bakeout.models.methods.fitting import Fitting


@dataclass(frozen=True)
class Method:
    """A way from options and data to an intervention.

    ``name``: its key in a recipe. ``title``, ``paper`` and ``summary``: what users see. ``kind``: the class of
    the interventions that it fits. ``search``: what `bakeout tune` searches, where it searches anything.

    Functions are named as ``"module:function"``, and loaded when they are called:

    * ``fit(options, fitting) -> intervention``;
    * ``require(options, data, rows)``, of all names of the recipe and the rows by name and use, raises ``BakeoutError``
      for too few rows, so far as that is known before anything is fitted; optional;
    * ``fitter(options, fitting)`` gives a function of settings, for `tune`'s many candidates, that repeats less work
      than fitting each of them alone; optional;
    * ``chosen(intervention)`` gives what a fit chose for the options ``chooses`` that were left `auto`; optional;
    * ``figures(options, fitting, intervention)`` yields the figures of a fit for a report; optional.
    """

    name: str
    title: str
    paper: str
    summary: str
    options: type[MethodOptions]
    kind: type[Intervention]
    fit: str
    require: str | None = None
    search: SearchSpace | None = None
    fitter: str | None = None
    chooses: tuple[str, ...] = ()
    chosen: str | None = None
    figures: str | None = None

    def load_fit(self) -> Callable[[Any, Fitting], Intervention]:
        """The function that fits."""
        fit: Callable[[Any, Fitting], Intervention] = load(self.fit)
        return fit

    def require_rows(self, options: MethodOptions, data: Sequence[str], rows: Rows) -> None:
        """Raise ``BakeoutError`` for rows to which the method knows beforehand that it cannot be fitted."""
        if self.require is not None:
            load(self.require)(options, data, rows)

    def load_fitter(self) -> Callable[[Any, Fitting], Callable[[Settings], Intervention]]:
        """The function that gives a function of settings."""
        if self.fitter is not None:
            fitter: Callable[[Any, Fitting], Callable[[Settings], Intervention]] = load(self.fitter)
            return fitter
        fit = self.load_fit()
        return lambda options, fitting: lambda settings: fit(options.model_copy(update=dict(settings)), fitting)

    def needed_search(self, options: MethodOptions) -> SearchSpace | None:
        """The search that ``options`` still need; none where the strength is set."""
        is_open = self.search is not None and getattr(options, self.search.strength) == "auto"
        return self.search if is_open else None

    def left_to_the_fit(self, options: MethodOptions) -> tuple[str, ...]:
        """The options that are `auto`, and that a fit chooses itself."""
        return tuple(name for name in self.chooses if getattr(options, name) == "auto")

    def choices(self, options: MethodOptions, fitted: Intervention) -> Settings:
        """What the fit chose for the options that were left to it."""
        if self.chosen is None or not (names := self.left_to_the_fit(options)):
            return {}
        chosen: Settings = load(self.chosen)(fitted)
        return {name: chosen[name] for name in names}


def load(name: str) -> Any:
    """The object that ``"module:object"`` names."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
