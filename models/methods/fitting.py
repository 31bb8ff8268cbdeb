"""What a method is fitted with, and how: with the earlier interventions applied."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bakeout.models.data.forms.kinds import Kind
from bakeout.models.data.forms.turns import Turn
from bakeout.models.data.prompt_rows import kinds_with_forms, read_prompt_rows, varied_records
from bakeout.models.data.rows import Record, Rows, Sources
from bakeout.models.data.uses import Use
from bakeout.models.methods.method import Method, load
from bakeout.models.methods.options import MethodOptions
from bakeout.models.methods.search_space import Settings
from bakeout.models.plan import Intervention
from bakeout.models.progress import Item, Track, untracked

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bakeout.models.data.tokenizers.tokenization import Tokenizer
    from bakeout.models.network.probe_cache import ProbeCache

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fitting:
    """What a method is fitted with.

    ``model`` carries the earlier weight edits already; ``earlier`` are the interventions before this one. ``data`` are
    all names of the recipe, ``rows`` the records by name and use, ``sources`` where they come from. Models are probed
    ``batch_size`` rows at a time; ``cache`` keeps what was gathered.
    """

    model: PreTrainedModel
    tokenizer: Tokenizer
    data: Sequence[str]
    rows: Rows
    sources: Sources = field(default_factory=dict)
    earlier: tuple[Intervention, ...] = ()
    track: Track = untracked
    batch_size: int = 16
    cache: ProbeCache | None = None

    def probe(self, names: Sequence[str]) -> list[Record]:
        """The probe records of several names, one after the other."""
        return [record for name in names for record in self.rows[name]["probe"]]

    def variants(
        self, name: str, use: Use, kinds: Sequence[Kind], *, seed: int, refused: Sequence[Turn] = ()
    ) -> dict[Kind, list[Record]]:
        """The records of a name in other forms, for widening: per kind, a variant of each row that has any.

        Kinds that the rows have no forms of are left out, which a warning says. Raises ``DataError`` for rows that ask
        nothing.
        """
        from bakeout.models.network.families import model_limits

        limits = model_limits(self.model)
        every = read_prompt_rows(self.sources[name][use], self.tokenizer, limits) if kinds else []
        # Of rows that were left out there are no variants.
        kept = {record.where for record in self.rows[name][use]}
        rows = [row for row in every if row.where in kept]
        own = kinds_with_forms(rows, kinds)
        if left_out := [kind for kind in kinds if kind not in own]:
            _logger.warning(
                "%s has no forms of %s: a region may tell these forms apart, and not what is asked",
                name,
                ", ".join(left_out),
            )
        varied = varied_records(rows, own, self.tokenizer, limits=limits, seed=seed, use="widening", refused=refused)
        return {kind: [record for _, record in records] for kind, records in varied.items()}

    def track_of(self, names: Sequence[str]) -> Track:
        """Progress whose descriptions end with what data is worked on."""

        def named(iterable: Iterable[Item], description: str, total: int | None = None) -> Iterable[Item]:
            return self.track(iterable, f"{description}: {', '.join(names)}", total)

        return named


def fit_method(method: Method, options: MethodOptions, fitting: Fitting) -> Intervention:
    """Fit one intervention, with the earlier ones applied. Its report names the data of its roles."""
    from bakeout.models.reference.hooks import Hooks

    with Hooks(fitting.model, fitting.earlier):
        fitted = method.load_fit()(options, fitting)
    return fitted.with_data(options.names(fitting.data))


def candidate_fitter(method: Method, options: MethodOptions, fitting: Fitting) -> Callable[[Settings], Intervention]:
    """A function that fits ``options`` with other settings, for a search: the method's own, where it has one."""
    from bakeout.models.reference.hooks import Hooks

    fit = method.load_fitter()(options, fitting)

    def fit_settings(settings: Settings) -> Intervention:
        with Hooks(fitting.model, fitting.earlier):
            return fit(settings)

    return fit_settings


def method_figures(
    method: Method, options: MethodOptions, fitting: Fitting, fitted: Intervention
) -> Iterator[Mapping[str, Any]]:
    """The figures of a fit for a report: as ``figures.json`` has them, without their source."""
    from bakeout.models.reference.hooks import Hooks

    if method.figures is not None:
        with Hooks(fitting.model, fitting.earlier):
            yield from load(method.figures)(options, fitting, fitted)
