"""`bakeout tune`: a recipe with every choice filled in, so that a build never searches."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ruamel.yaml import YAML

from bakeout.export.console import Track, no_track, say
from bakeout.export.fit import read_rows
from bakeout.export.fit_methods import Fitting, fit_method
from bakeout.export.intervention_options import InterventionEntry, MethodOptions, NeuronAdjustOptions
from bakeout.export.recipe import Recipe, load_recipe
from bakeout.export.search import Measured, Settings, Trial, choose_trial, described, search
from bakeout.export.search_spaces import Searched, searched
from bakeout.models.checkpoint import load_tokenizer, resolve_checkpoint, weights_digest
from bakeout.models.data import Record, file_digest
from bakeout.models.errors import BakeoutError
from bakeout.models.plan import Intervention, LowRankUpdate, WeightEdit

if TYPE_CHECKING:
    from bakeout.models.statistics import NeuronStatistics
    from bakeout.models.teacher_forcing import Answers

_BATCH = 32
# Where the base model gets fewer answers right to the letter, the answers' tokens are counted instead.
_FEW_RIGHT = 0.2
# Options that Key Space Detection chooses while it is fitted.
_STRUCTURE = ("layers", "cubes", "floor", "epsilon")


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
            "trials": {str(index): [one.as_json() for one in trials] for index, trials in self.trials.items()},
        }


def tune(
    recipe_file: Path,
    output: Path,
    *,
    trials: int = 20,
    prompts: int = 200,
    seed: int = 0,
    directory: Path | None = None,
    track: Track = no_track,
) -> Tuned:
    """Search what a recipe leaves `auto`, and write the recipe with the choices filled in and its comments kept.

    Neuron Adjust's ratio (with selection, tokens and coin, where the recipe does not set them), LUNAR's coefficient and
    UNLEARN's scale take a search of ``trials`` candidates each (``search.search``), measured on ``prompts`` rows of
    every name's selection file, or else its calibration file; the rule is ``search.choose_trial``. What Key Space
    Detection chooses while it is fitted is filled in too.

    Candidates are fitted and measured in PyTorch: one forward pass a row tells what a greedy loop would say
    (``models.teacher_forcing``), so that no graph has to be baked for each. All trials are kept in ``directory`` (by
    default beside the output), as text: from its journal an interrupted search goes on.

    Raises ``BakeoutError`` where the output exists, nothing is left to tune, or a name has nothing to be measured on.
    """
    from bakeout.models.checkpoint import load_model
    from bakeout.models.weight_edits import apply_weight_edit

    if output.exists():
        raise BakeoutError(f"{output} exists already.", "Name another output, or remove it.")
    recipe = load_recipe(recipe_file)
    directory = directory or output.with_name(f"{output.stem}.tuning")
    last = max((index for index, entry in enumerate(recipe.interventions) if _is_open(entry)), default=None)
    if last is None:
        raise BakeoutError(
            f"{recipe_file}: nothing is left `auto`, so there is nothing to tune.", "Build it, or set `ratio: auto`."
        )
    checkpoint = resolve_checkpoint(recipe.model)
    tokenizer = load_tokenizer(checkpoint)
    with tempfile.TemporaryDirectory(prefix="bakeout-") as scratch:
        rows = read_rows(recipe, tokenizer, Path(scratch))
    model = load_model(checkpoint)
    fingerprint = _Fingerprint(recipe, weights_digest(checkpoint), prompts, seed)
    interventions: list[Intervention] = []
    filled: dict[int, dict[str, Any]] = {}
    tried: dict[int, list[Trial]] = {}
    for index, entry in enumerate(recipe.interventions[: last + 1]):
        fitting = Fitting(model, tokenizer, recipe.fitted_data(), rows, tuple(interventions), track)
        options = entry.options
        if (wanted := searched(entry)) is not None:
            say(f"tuning {_method(entry)}: {trials} trials")
            tried[index] = _search(entry, wanted, fitting, trials, prompts, seed, directory, fingerprint.of(index))
            chosen = choose_trial(tried[index])
            say(f"chosen: {described(chosen)}")
            filled[index] = dict(chosen.settings)
            options = options.model_copy(update=filled[index])
        fitted = fit_method(options, fitting)
        if index not in tried and (structure := _structure(options, fitted)):
            filled[index] = structure
        interventions.append(fitted)
        if isinstance(fitted, WeightEdit):
            apply_weight_edit(model, fitted)
    _write_tables(directory, recipe, tried, filled)
    _write_recipe(recipe_file, output, filled)
    return Tuned(output, directory, filled, tried)


def _search(
    entry: InterventionEntry,
    wanted: Searched,
    fitting: Fitting,
    trials: int,
    prompts: int,
    seed: int,
    directory: Path,
    name: str,
) -> list[Trial]:
    options = entry.options
    names = options.names(fitting.data)
    space = wanted.free(options.model_fields_set)
    starts: list[Settings] = []
    for start in wanted.starts:
        if (kept := {key: start[key] for key in space}) not in starts:
            starts.append(kept)
    meter = _Meter(fitting, names["forget"], names["retain"], prompts)
    fit = _fitter(options, wanted, fitting)
    return search(
        space,
        starts,
        lambda settings: meter.measure(fit(settings)),
        trials=trials,
        seed=seed,
        journal=directory / "journal.log",
        name=name,
    )


class _Meter:
    """Measures candidates beside the model that carries the earlier interventions alone."""

    def __init__(self, fitting: Fitting, forget: Sequence[str], retain: Sequence[str], prompts: int) -> None:
        from bakeout.models.generation import end_tokens

        self._fitting = fitting
        self._forget, self._retain = list(forget), list(retain)
        self._end = end_tokens(fitting.model, fitting.tokenizer)
        self._records = {name: _measured_rows(fitting, name, prompts) for name in (*forget, *retain)}
        self._base: dict[str, Answers] = self._answers(())

    def measure(self, candidate: Intervention) -> Measured:
        """What the candidate does, the earlier interventions in force."""
        said = self._answers((candidate,))
        shares = {name: _share(said[name], self._base[name]) for name in said}
        divergence = np.concatenate([said[name].divergence(self._base[name]) for name in self._retain])
        return Measured(
            {name: shares[name] for name in self._forget},
            {name: shares[name] for name in self._retain},
            float(divergence.mean()),
        )

    def _answers(self, candidate: Sequence[Intervention]) -> dict[str, Answers]:
        from bakeout.models.hooks import Hooks
        from bakeout.models.teacher_forcing import answers
        from bakeout.models.weight_edits import edited_weights

        fitting = self._fitting
        base = self._base if candidate else {}
        found = {}
        with edited_weights(fitting.model, candidate), Hooks(fitting.model, (*fitting.earlier, *candidate)):
            for name, records in self._records.items():
                found[name] = answers(
                    fitting.model, records, end=self._end, base=base.get(name), batch_size=_BATCH, track=fitting.track
                )
        return found


def _measured_rows(fitting: Fitting, name: str, prompts: int) -> list[Record]:
    by_use = fitting.rows[name]
    records = by_use.get("selection") or by_use.get("calibration")
    if not records:
        raise BakeoutError(
            f"{name} has nothing to measure candidates on.",
            f"Give {name} a `selection:` or `calibration:` file, or one file for everything.",
        )
    step = max(1, len(records) // prompts)
    return list(records[::step][:prompts])


def _share(said: Answers, base: Answers) -> float:
    """Accuracy as a share of the base model's: of whole answers, or of tokens where it gets few answers right."""
    exact = float(base.right.mean()) >= _FEW_RIGHT
    ours, theirs = (one.right.mean() if exact else one.tokens.mean() for one in (said, base))
    return float(ours / theirs) if theirs > 0 else 1.0


def _fitter(options: MethodOptions, wanted: Searched, fitting: Fitting) -> Callable[[Settings], Intervention]:
    """The way from settings to an intervention that repeats least."""
    if isinstance(options, NeuronAdjustOptions):
        return _adjust_fitter(options, fitting)
    if not wanted.linear:
        return lambda settings: fit_method(options.model_copy(update=dict(settings)), fitting)
    fitted: list[LowRankUpdate] = []

    def scaled(settings: Settings) -> Intervention:
        if not fitted:
            once = fit_method(options.model_copy(update={wanted.strength: 1.0}), fitting)
            assert isinstance(once, LowRankUpdate)
            fitted.append(once)
        strength = np.float32(settings[wanted.strength])
        updates = tuple(replace(update, left=update.left * strength) for update in fitted[0].updates)
        return replace(fitted[0], updates=updates)

    return scaled


def _adjust_fitter(options: NeuronAdjustOptions, fitting: Fitting) -> Callable[[Settings], Intervention]:
    """Neuron Adjust from statistics that are probed once for each scope."""
    from bakeout.models.hooks import Hooks
    from bakeout.models.methods.neuron_adjust import fit_neuron_adjust
    from bakeout.models.probing import probe_neurons

    names = options.names(fitting.data)
    statistics: dict[str, tuple[NeuronStatistics, NeuronStatistics]] = {}

    def fit(settings: Settings) -> Intervention:
        candidate = options.model_copy(update=dict(settings))
        if candidate.tokens not in statistics:
            with Hooks(fitting.model, fitting.earlier):
                forget, retain = (
                    probe_neurons(
                        fitting.model,
                        fitting.probe(names[role]),
                        scope=candidate.tokens,
                        batch_size=_BATCH,
                        track=fitting.track,
                    )
                    for role in ("forget", "retain")
                )
            statistics[candidate.tokens] = forget, retain
        forget, retain = statistics[candidate.tokens]
        return fit_neuron_adjust(
            forget,
            retain,
            ratio=candidate.ratio,
            selection=candidate.selection,
            coin=candidate.coin,
            seed=candidate.seed,
        )

    return fit


class _Fingerprint:
    """Names a search by everything that its figures depend on: another recipe never goes on from its journal."""

    def __init__(self, recipe: Recipe, model: str, prompts: int, seed: int) -> None:
        self._recipe = recipe
        files = {
            name: {use: file_digest(path) for use, path in files.named().items()} for name, files in recipe.data.items()
        }
        self._fixed = [model, files, prompts, seed, version("bakeout")]

    def of(self, index: int) -> str:
        entries = [entry.model_dump(mode="json", exclude_unset=True) for entry in self._recipe.interventions]
        text = json.dumps([self._fixed, entries[: index + 1]], sort_keys=True, default=str)
        return f"{index}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _is_open(entry: InterventionEntry) -> bool:
    return searched(entry) is not None or any(getattr(entry.options, key, None) == "auto" for key in _STRUCTURE)


def _structure(options: MethodOptions, fitted: Intervention) -> dict[str, Any]:
    """What a fit chose of the options that were left to it."""
    chosen = fitted.report.get("choice", {}).get("chosen", {})
    return {key: chosen[key] for key in _STRUCTURE if key in chosen and getattr(options, key, None) == "auto"}


def _method(entry: InterventionEntry) -> str:
    (method,) = entry.model_fields_set
    return method


def _write_tables(
    directory: Path, recipe: Recipe, tried: Mapping[int, Sequence[Trial]], filled: Mapping[int, Settings]
) -> None:
    """All trials, as JSON and CSV."""
    directory.mkdir(parents=True, exist_ok=True)
    content = {
        str(index): {
            "method": _method(recipe.interventions[index]),
            "chosen": dict(filled[index]),
            "trials": [trial.as_json() for trial in trials],
        }
        for index, trials in tried.items()
    }
    (directory / "trials.json").write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    for index, trials in tried.items():
        table = StringIO()
        writer = csv.writer(table, lineterminator="\n")
        first = trials[0]
        writer.writerow([*first.settings, *first.measured.forget, *first.measured.retain, "divergence"])
        for trial in trials:
            measured = trial.measured
            shares = [*measured.forget.values(), *measured.retain.values()]
            writer.writerow([*trial.settings.values(), *shares, measured.divergence])
        (directory / f"trials-{index}-{_method(recipe.interventions[index])}.csv").write_text(
            table.getvalue(), encoding="utf-8"
        )


def _write_recipe(source: Path, output: Path, filled: Mapping[int, Settings]) -> None:
    """The recipe as it was written, comments and all, with the choices filled in and its paths right from there."""
    yaml = YAML(typ="rt")
    yaml.preserve_quotes = True
    yaml.width = 120
    written = yaml.load(source.read_text(encoding="utf-8"))
    for index, settings in filled.items():
        (options,) = written["interventions"][index].values()
        options.update(settings)
    if source.resolve().parent != output.resolve().parent:
        _move(written, source.resolve().parent, output.resolve().parent)
    text = StringIO()
    yaml.dump(written, text)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.partial")
    partial.write_text(text.getvalue(), encoding="utf-8")
    partial.rename(output)


def _move(written: Any, source: Path, destination: Path) -> None:
    """Rewrite the relative paths of a recipe for another directory."""

    def moved(path: str) -> str:
        return path if Path(path).is_absolute() else Path(os.path.relpath(source / path, destination)).as_posix()

    if (source / written["model"]).is_dir():
        written["model"] = moved(written["model"])
    for name, files in written["data"].items():
        if isinstance(files, str):
            written["data"][name] = moved(files)
        else:
            files.update({use: moved(path) for use, path in files.items()})
    for entry in written["interventions"]:
        for options in entry.values():
            if "directory" in options:
                options["directory"] = moved(options["directory"])
