"""`bakeout tune`: a recipe with every choice filled in, so that a build never searches."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bakeout.export.fitting.recipe_rows import read_recipe_rows
from bakeout.export.recipes.interventions import InterventionEntry
from bakeout.export.recipes.recipe import Recipe, parse_recipe, read_recipe
from bakeout.export.recipes.recipe_inputs import open_inputs
from bakeout.export.report.figures_file import Figure, figure, figures_json
from bakeout.export.tuning.candidates import Meter
from bakeout.export.tuning.frontiers import frontiers
from bakeout.export.tuning.search import search
from bakeout.export.tuning.trials import Trial, choose_trial, described
from bakeout.export.tuning.tuned_files import filled_recipe, require_new_outputs, write_outputs, write_tables
from bakeout.models.data.row_source import source_digest
from bakeout.models.data.rows import Sources
from bakeout.models.data.tokenizers.tokenization import load_tokenizer
from bakeout.models.errors import BakeoutError
from bakeout.models.files.writing import require_own_directory
from bakeout.models.methods.fitting import Fitting, candidate_fitter, fit_method, method_figures
from bakeout.models.methods.search_space import SearchSpace, Settings
from bakeout.models.plan import Intervention
from bakeout.models.progress import Track, untracked

_logger = logging.getLogger(__name__)

JOURNAL = "journal.log"


@dataclass(frozen=True)
class Tuned:
    """A tuned recipe: what was filled in, by intervention, and the trials that it was chosen from."""

    recipe: Path
    directory: Path
    filled: Mapping[int, Settings]
    trials: Mapping[int, Sequence[Trial]]

    def as_json(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {
            "recipe": str(self.recipe),
            "directory": str(self.directory),
            "filled": {str(index): dict(settings) for index, settings in self.filled.items()},
            "trials": {str(index): [trial.as_json() for trial in trials] for index, trials in self.trials.items()},
        }


def tune(
    recipe_file: Path,
    output: Path,
    *,
    trials: int = 20,
    prompts: int = 200,
    seed: int = 0,
    directory: Path | None = None,
    figures: Path | None = None,
    placed: Mapping[str, Any] = MappingProxyType({}),
    cache: Path | None = None,
    track: Track = untracked,
) -> Tuned:
    """Search what a recipe leaves `auto`, and write the recipe with the choices filled in and its comments kept.

    Neuron Adjust's and Selective Pruning's ratio (with selection, tokens and coin, where they have these and the recipe
    does not set them), LUNAR's coefficient and UNLEARN's scale take a search of ``trials`` candidates each
    (``search.search``), measured on ``prompts`` rows of every name's selection file; the rule is
    ``search.choose_trial``. What Key Space Detection chooses while it is fitted is filled in too.

    Candidates are fitted and measured in PyTorch: one forward pass for each row shows what a greedy loop would
    generate (``teacher_forcing``), so that no graph has to be baked for each. All trials are kept in ``directory`` (by
    default beside the output), as text: an interrupted search resumes from its journal. ``figures``: a file for the
    figures of the choices for a report (``report.figures_file``). ``placed``: options of ``PlacementOptions`` in place
    of the recipe's. ``cache``: the directory that keeps what is probed.

    Raises ``BakeoutError`` where the output or the figures' file exists, nothing is left to tune, or a name has
    nothing to be measured on.
    """
    from bakeout.models.checkpoint.checkpoint_files import load_model, read_config
    from bakeout.models.checkpoint.this_machine import require_weights_in_memory
    from bakeout.models.network.devices import input_device
    from bakeout.models.network.families import model_limits
    from bakeout.models.network.probe_cache import ProbeCache
    from bakeout.models.reference.weight_edits import apply_weight_edit

    outputs = {"recipe": output} if figures is None else {"recipe": output, "figures": figures}
    directory = directory or output.with_name(f"{output.stem}.tuning")
    require_new_outputs(directory, outputs)
    require_own_directory(directory)
    read = read_recipe(recipe_file)
    recipe = parse_recipe(read, recipe_file).placed(**placed)
    _require_retained(recipe)
    last = max((index for index, entry in enumerate(recipe.interventions) if _is_open(entry)), default=None)
    if last is None:
        raise BakeoutError(
            f"{recipe_file}: nothing is left `auto`, so there is nothing to tune.", "Build it, or set `ratio: auto`."
        )
    inputs = open_inputs(recipe)
    checkpoint = inputs.checkpoint.directory
    data = read_recipe_rows(recipe, inputs.fitted, load_tokenizer(checkpoint), read_config(checkpoint))
    model = load_model(checkpoint, recipe.placement)
    data.require_readable(model_limits(model))
    computed = [inputs.checkpoint.digest, str(model.dtype), input_device(model).type]
    fingerprint = _Fingerprint(recipe, data.sources, [*computed, prompts, seed])
    interventions: list[Intervention] = []
    filled: dict[int, dict[str, Any]] = {}
    tried: dict[int, list[Trial]] = {}
    drawn: list[Figure] = []
    for index, entry in enumerate(recipe.interventions[: last + 1]):
        fitting = Fitting(
            model,
            data.tokenizer,
            data=recipe.fitted_data(),
            rows=data.rows,
            sources=data.sources,
            earlier=tuple(interventions),
            track=track,
            cache=ProbeCache.of(cache, model, inputs.checkpoint.digest, interventions),
        )
        method, options = entry.method, entry.options
        if method.kind.edits_weights:
            require_weights_in_memory(model, method.title)
        if (space := method.needed_search(options)) is not None:
            _logger.info(f"tuning {method.title}: {trials} trials")
            retained = _retained(recipe, index)
            meter = Meter(fitting, options.names(fitting.data)["forget"], retained, prompts)
            tried[index] = _search(entry, space, fitting, meter, trials, seed, directory, fingerprint.of(index, filled))
            chosen = choose_trial(tried[index])
            _logger.info(f"chosen: {described(chosen)}")
            filled[index] = dict(chosen.settings)
            options = options.model_copy(update=filled[index])
        fitted = fit_method(method, options, fitting)
        if choices := method.choices(options, fitted):
            filled[index] = {**filled.get(index, {}), **choices}
        if figures is not None:
            drawn += _figures(entry, fitting, fitted, tried.get(index), f"bakeout tune {recipe_file.name}")
        interventions.append(fitted)
        apply_weight_edit(model, fitted)
    write_tables(directory, recipe, tried, filled)
    written = {"recipe": filled_recipe(read, recipe_file, output, recipe, filled)}
    if figures is not None:
        written["figures"] = json.dumps(figures_json(drawn), indent=1, ensure_ascii=False) + "\n"
    write_outputs(directory, outputs, written)
    return Tuned(output, directory, filled, tried)


def _retained(recipe: Recipe, index: int) -> list[str]:
    """The names that an entry's candidates are to keep: not those that an entry before it has forgotten."""
    data = recipe.fitted_data()
    entries = [entry.options.names(data) for entry in recipe.interventions[: index + 1]]
    forgotten = {name for names in entries for name in names.get("forget", ())}
    return [name for name in entries[index].get("retain") or data if name not in forgotten]


def _require_retained(recipe: Recipe) -> None:
    for index, entry in enumerate(recipe.interventions):
        if entry.method.needed_search(entry.options) is not None and not _retained(recipe, index):
            raise BakeoutError(
                f"{entry.method.title}: nothing is retained, so that no candidate can be told to go too far.",
                "Name data in the recipe that are to be kept.",
            )


def _search(
    entry: InterventionEntry,
    space: SearchSpace,
    fitting: Fitting,
    meter: Meter,
    trials: int,
    seed: int,
    directory: Path,
    name: str,
) -> list[Trial]:
    options = entry.options
    axes = space.free(options.model_fields_set)
    starts: list[Settings] = []
    for start in space.starts:
        if (kept := {key: start[key] for key in axes}) not in starts:
            starts.append(kept)
    _logger.info("before: " + ", ".join(f"{name} {accuracy:.0%}" for name, accuracy in meter.baseline.items()))
    fit = candidate_fitter(entry.method, options, fitting)
    return search(
        axes,
        starts,
        lambda settings: meter.measure(fit(settings)),
        trials=trials,
        seed=seed,
        journal=directory / JOURNAL,
        name=name,
    )


def _figures(
    entry: InterventionEntry, fitting: Fitting, fitted: Intervention, trials: Sequence[Trial] | None, source: str
) -> Iterator[Figure]:
    method, options = entry.method, entry.options
    if trials and (space := method.needed_search(options)) is not None:
        yield from frontiers(trials, choose_trial(trials).settings, space, method.name, source)
    for drawn in method_figures(method, options, fitting, fitted):
        yield figure(drawn, source)


class _Fingerprint:
    """The name of a search, from everything that its figures depend on: another recipe never resumes its journal.

    Nor does one behind other choices: more trials may choose otherwise in an earlier search.
    """

    def __init__(self, recipe: Recipe, sources: Sources, others: Sequence[Any]) -> None:
        self._recipe = recipe
        rows = {name: {use: source_digest(source) for use, source in uses.items()} for name, uses in sources.items()}
        chats = recipe.chat_template.model_dump(mode="json", exclude_defaults=True)
        self._fixed = [rows, *others, version("bakeout"), *([chats] if chats else [])]

    def of(self, index: int, filled: Mapping[int, Settings]) -> str:
        entries = [entry.model_dump(mode="json", exclude_unset=True) for entry in self._recipe.interventions]
        text = json.dumps([self._fixed, entries[: index + 1], filled], sort_keys=True, default=str)
        return f"{index}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _is_open(entry: InterventionEntry) -> bool:
    method, options = entry.method, entry.options
    return method.needed_search(options) is not None or bool(method.left_to_the_fit(options))
