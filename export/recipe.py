"""Recipes: the YAML file that says what to remove, from which model, and how. Every option documents itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from bakeout.models.errors import BakeoutError
from bakeout.models.methods.neuron_adjust import Selection
from bakeout.models.plan import Coin, Positions
from bakeout.models.probing import Scope


class RecipeError(BakeoutError):
    """A recipe that cannot be followed."""


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _as_files(value: Any) -> Any:
    return {"file": value} if isinstance(value, str) else value


Names = Annotated[list[str], BeforeValidator(_as_list)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataFiles(_Section):
    """The files of one skill or subject: JSON lines with ``prompt`` and ``response``, ``text``, or ``messages``."""

    file: Path | None = Field(
        None,
        description="One file for everything, parted by a hash of each row's text: 60 % probe, 20 % calibration, "
        "20 % test. A plain string means this.",
    )
    probe: Path | None = Field(None, description="What the methods are fitted on.")
    calibration: Path | None = Field(
        None, description="Fresh queries on which `alpha: auto` is set and false refusals are counted."
    )
    test: Path | None = Field(None, description="What `build` evaluates the base model and the artifact on.")

    def named(self) -> dict[str, Path]:
        """The files that are given, by what they are for."""
        files = {"file": self.file, "probe": self.probe, "calibration": self.calibration, "test": self.test}
        return {use: path for use, path in files.items() if path is not None}


class NeuronAdjustOptions(_Section):
    """Neuron Adjust (arXiv 2503.21730): shifts the pre-activations that look like the forget set's."""

    forget: Names = Field(description="Names of the data to forget.", min_length=1)
    retain: Names | None = Field(None, description="Names of the data to keep; by default all others.")
    ratio: float = Field(0.03, gt=0, le=1, description="The paper's beta: the share of all neurons that is adjusted.")
    selection: Selection = Field(
        "difference",
        description="How neurons are ranked: by the signed `difference` of the means (the paper), or `standardised`, "
        "that difference in pooled standard deviations.",
    )
    tokens: Scope = Field(
        "answer", description="Which tokens the statistics are over: the `answer`'s (the paper), or `all`."
    )
    coin: Coin = Field(
        "threshold",
        description="`threshold` shifts whenever the value looks like the forget set's, `expected` by the expected "
        "amount (both deterministic), `stochastic` by chance, as in the paper.",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the stochastic coin.")


class KeySpaceDetectionOptions(_Section):
    """Key Space Detection (arXiv 2503.21730): refuses queries whose key vector lies in a cube."""

    forget: Names = Field(description="Names of the data whose queries are refused.", min_length=1)
    retain: Names | None = Field(
        None, description="Names of the data on which false refusals are counted; by default all others."
    )
    layers: Literal["last"] | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = Field(
        "last", description="The layers whose key vectors are checked, jointly: `last`, or a list counted from 0."
    )
    cubes: PositiveInt = Field(1, description="Cubes a skill: one around each of so many clusters of its queries.")
    alpha: Literal["auto"] | PositiveFloat = Field(
        "auto",
        description="The cubes' half-width in standard deviations; `auto` takes the smallest that holds all but a "
        "share `epsilon` of fresh queries (split conformal).",
    )
    epsilon: float = Field(0.005, gt=0, lt=1, description="The share of the skill's queries that may get through.")
    positions: Positions = Field(
        "query",
        description="What is checked: the `query`'s last token, the last token of every `step`, or `every` token (the "
        "only choice whose decision does not depend on how a prompt is cut into chunks).",
    )
    refusal: str = Field("Your query is not valid.", min_length=1, description="What the model says instead.")
    floor: float = Field(
        0.1, ge=0, description="Lowest deviation of a cube, as a share of the whole skill's in that dimension."
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the clustering.")


class InterventionEntry(_Section):
    """One intervention: a single key that names the method."""

    neuron_adjust: NeuronAdjustOptions | None = None
    key_space_detection: KeySpaceDetectionOptions | None = None

    @property
    def options(self) -> NeuronAdjustOptions | KeySpaceDetectionOptions:
        """The options of the method that the entry names."""
        options = self.neuron_adjust or self.key_space_detection
        assert options is not None, "load_recipe refuses entries without a method"
        return options


class ExportOptions(_Section):
    """How the artifact is written."""

    dtype: Literal["fp32", "fp16"] = Field("fp32", description="The type that the graph computes in.")
    inline: bool = Field(
        False, description="Write Neuron Adjust as standard operators alone, for runtimes without local functions."
    )
    early_exit: bool = Field(
        True, description="Skip the rest of the model when all rows are refused (an `If`); false: no branches."
    )
    monitor: bool = Field(False, description="Two more outputs: `refused` and `margin`.")


class Recipe(_Section):
    """A whole recipe, with its paths made absolute."""

    model: str = Field(description="A checkpoint's directory, relative to the recipe, or a hub id.")
    data: dict[str, Annotated[DataFiles, BeforeValidator(_as_files)]] = Field(
        description="The data, by the names that the interventions use.", min_length=1
    )
    interventions: list[InterventionEntry] = Field(
        description="What is applied, in order: each is fitted with those before it in force.", min_length=1
    )
    export: ExportOptions = Field(default_factory=lambda: ExportOptions())

    def others(self, names: Sequence[str]) -> list[str]:
        """All data but those named, in the recipe's order."""
        return [name for name in self.data if name not in names]


def load_recipe(path: Path) -> Recipe:
    """Read and validate a recipe. Raises ``RecipeError`` that lists every error with its line."""
    written = _read(path)
    try:
        recipe = Recipe.model_validate(written)
    except ValidationError as error:
        raise _recipe_error(path, [_problem(details, written) for details in error.errors()]) from None
    problems = [(_line(written, where), text) for where, text in _contradictions(recipe, path.parent)]
    if problems:
        raise _recipe_error(path, problems)
    return _resolved(recipe, path.parent)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        written = YAML(typ="rt").load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}).", "Check the path.") from None
    except UnicodeDecodeError:
        raise RecipeError(f"{path}: not UTF-8 text.", "A recipe is a YAML file.") from None
    except MarkedYAMLError as error:
        line = 0 if error.problem_mark is None else error.problem_mark.line + 1
        raise RecipeError(f"{path}, line {line}: not YAML ({error.problem}).", "Mend the line.") from None
    except YAMLError as error:
        raise RecipeError(f"{path}: not YAML ({str(error).splitlines()[0]}).", "Mend the file.") from None
    if not isinstance(written, dict):
        raise RecipeError(f"{path}: not a recipe.", "Begin with `model:`, `data:` and `interventions:`.")
    return written


def _problem(details: Mapping[str, Any], written: Any) -> tuple[int, str]:
    """One of pydantic's errors as a line number and a sentence."""
    where = details["loc"]
    key = str(where[-1])
    if details["type"] == "extra_forbidden":
        known = _known_keys(where[:-1])
        close = get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
        return _line(written, where), f"unknown key {key!r} ({hint})"
    if details["type"] == "missing":
        return _line(written, where[:-1]), f"{key!r} is missing"
    # The parts of a union are pydantic's, not the user's.
    name = ".".join(str(part) for part in where if isinstance(part, int) or part.isidentifier())
    return _line(written, where), f"{name}: {details['msg'][:1].lower()}{details['msg'][1:]}"


def _known_keys(where: Sequence[int | str]) -> list[str]:
    """The keys that a section at this place may have."""
    sections: dict[str, type[BaseModel]] = {
        "neuron_adjust": NeuronAdjustOptions,
        "key_space_detection": KeySpaceDetectionOptions,
        "interventions": InterventionEntry,
        "data": DataFiles,
        "export": ExportOptions,
    }
    for part in reversed(where):
        if part in sections:
            return list(sections[str(part)].model_fields)
    return list(Recipe.model_fields)


def _line(written: Any, where: Sequence[int | str]) -> int:
    """The line, from 1, of the deepest part of a place that the file has."""
    line = 1
    for part in where:
        if isinstance(written, dict) and part in written:
            line = written.lc.data[part][0] + 1  # type: ignore[attr-defined]
        elif isinstance(written, list) and isinstance(part, int) and part < len(written):
            line = written.lc.data[part][0] + 1  # type: ignore[attr-defined]
        else:
            break
        written = written[part]
    return line


def _contradictions(recipe: Recipe, directory: Path) -> Iterator[tuple[list[int | str], str]]:
    """What the types cannot say: (place in the file, sentence)."""
    for name, data in recipe.data.items():
        files = data.named()
        if "file" in files and len(files) > 1:
            yield ["data", name, "file"], f"{name} has both one file for everything and files for single uses"
        if not files:
            yield ["data", name], f"{name} has no file"
        for use, file in files.items():
            if not (directory / file).is_file():
                yield ["data", name, use], f"there is no file {file}"
    checks = 0
    for index, entry in enumerate(recipe.interventions):
        where: list[int | str] = ["interventions", index]
        methods = sorted(entry.model_fields_set)
        if len(methods) != 1 or getattr(entry, methods[0]) is None:
            yield where, f"an entry names one method, not {' and '.join(methods) or 'none'}"
            continue
        checks += methods[0] == "key_space_detection"
        yield from _names(recipe, entry.options, [*where, methods[0]])
    if checks > 1:
        yield ["interventions"], "two Key Space Detections (put their skills into one: `forget` takes a list)"


def _names(
    recipe: Recipe, options: NeuronAdjustOptions | KeySpaceDetectionOptions, where: list[int | str]
) -> Iterator[tuple[list[int | str], str]]:
    retain = recipe.others(options.forget) if options.retain is None else options.retain
    for key, names in (("forget", options.forget), ("retain", retain)):
        for name in names:
            if name not in recipe.data:
                close = get_close_matches(name, recipe.data, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(recipe.data)}"
                yield [*where, key], f"no data are called {name!r} ({hint})"
            elif not {"file", "probe"} & recipe.data[name].named().keys() and (
                key == "forget" or isinstance(options, NeuronAdjustOptions)
            ):
                yield [*where, key], f"{name!r} has nothing to probe (give it `probe:`, or one file for everything)"
    if both := sorted(set(options.forget) & set(retain)):
        yield [*where, "retain"], f"{both[0]!r} is to be both forgotten and retained"
    if isinstance(options, NeuronAdjustOptions) and not retain:
        yield where, "there are no data to retain, and Neuron Adjust shifts values towards theirs"


def _resolved(recipe: Recipe, directory: Path) -> Recipe:
    """The recipe with its files, and a model that is a directory beside it, as absolute paths."""
    data = {
        name: DataFiles(**{use: (directory / file).resolve() for use, file in files.named().items()})
        for name, files in recipe.data.items()
    }
    local = directory / recipe.model
    model = str(local.resolve()) if local.is_dir() else recipe.model
    return recipe.model_copy(update={"data": data, "model": model})


def _recipe_error(path: Path, problems: Sequence[tuple[int, str]]) -> RecipeError:
    listed = "; ".join(f"line {line}: {text}" for line, text in sorted(problems))
    count = "an error" if len(problems) == 1 else f"{len(problems)} errors"
    return RecipeError(f"{path} has {count}: {listed}.", "Mend the recipe.")
