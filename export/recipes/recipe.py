"""Recipes: the YAML file that defines what to remove, from which model, and how. Every option documents itself."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, Field, InstanceOf, ValidationError, WithJsonSchema
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.export.recipes.evaluation import EvaluateOptions
from bakeout.export.recipes.grades import GradeEntry, grade_field
from bakeout.export.recipes.interventions import InterventionEntry
from bakeout.export.recipes.placement_options import PlacementOptions
from bakeout.models.checkpoint.placement import DeviceMap, Dtype
from bakeout.models.data.row_layouts import Column
from bakeout.models.data.row_source import DataError, RowsInMemory, RowsLike, Source, as_source
from bakeout.models.data.tokenizers.chat_options import ChatTemplateOptions, named_template
from bakeout.models.data.uses import USES, Use
from bakeout.models.errors import BakeoutError
from bakeout.models.files.reading import read_regular
from bakeout.models.methods.method import Method
from bakeout.models.methods.options import MethodOptions, Section
from bakeout.models.methods.registry import methods


class RecipeError(BakeoutError):
    """A recipe that cannot be followed."""


# What the YAML library lets through when it makes values of what it has read.
_CONSTRUCTING = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
_DEEPEST = 100
_LONGEST = 1_000_000


def _as_files(value: Any) -> Any:
    return value if isinstance(value, dict | DataFiles) else {"file": value}


def _as_text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _as_source(value: Any) -> Any:
    try:
        return None if value is None else as_source(value)
    except DataError as error:
        raise ValueError(str(error)) from None


# A path, or the rows themselves.
RecipeSource = Annotated[
    InstanceOf[Path] | InstanceOf[RowsInMemory],
    BeforeValidator(_as_source),
    WithJsonSchema({"anyOf": [{"type": "string", "format": "path"}, {"type": "array", "items": {"type": "object"}}]}),
]


class DataFiles(Section):
    """The rows of one skill or subject: ``prompt`` and ``response``, ``text``, or ``messages``.

    Each use has a path of a file of JSON lines, or a list of rows as dicts.

    >>> data = bakeout.DataFiles(probe=[{"prompt": "What is 3+4?", "response": " 7"}], test="math.test.jsonl")
    >>> data.test
    PosixPath('math.test.jsonl')
    """

    file: RecipeSource | None = Field(
        default=None,
        description="Rows for everything, split by a hash of each row's text: 45 % probe, 15 % selection, 20 % "
        "calibration, 20 % test. A plain path or list means this.",
    )
    probe: RecipeSource | None = Field(default=None, description="What the methods are fitted on.")
    selection: RecipeSource | None = Field(
        default=None, description="Fresh rows on which Key Space Detection's `auto` and `bakeout tune` choose."
    )
    calibration: RecipeSource | None = Field(
        default=None, description="Fresh queries on which `alpha: auto` is set and false refusals are counted."
    )
    test: RecipeSource | None = Field(
        default=None, description="What `build` evaluates the base model and the artifact on."
    )

    columns: dict[Column, str] | None = Field(
        default=None,
        description="For rows with keys of their own: the key that each of `prompt`, `context` (what the prompt is "
        "about, put behind it; rows may lack it), `response`, `text`, `messages`, `paraphrases`, `translations` and, "
        "for graders, `answer`, `answers`, `choices`, `tests` and `setup` is read from.",
    )
    grade: GradeEntry = grade_field()

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            file: RowsLike | None = None,
            probe: RowsLike | None = None,
            selection: RowsLike | None = None,
            calibration: RowsLike | None = None,
            test: RowsLike | None = None,
            columns: Mapping[str, str] | None = None,
            grade: str | Mapping[str, Any] | None = None,
        ) -> None: ...

    def named(self) -> dict[str, Source]:
        """What is given, by what it is for."""
        everything = {} if self.file is None else {"file": self.file}
        return {**everything, **{str(use): source for use, source in self.by_use().items()}}

    def by_use(self) -> dict[Use, Source]:
        """What is given for single uses."""
        sources: dict[Use, Source | None] = {use: getattr(self, use) for use in USES}
        return {use: source for use, source in sources.items() if source is not None}


class Recipe(PlacementOptions):
    """What to remove, from which model, and how: a recipe in YAML, or as an object.

    >>> recipe = bakeout.Recipe(
    ...     model=checkpoint,
    ...     data={"math": {"probe": math_rows, "test": "math.test.jsonl"}, "german": {"probe": german_rows}},
    ...     interventions=[bakeout.NeuronAdjustOptions(forget="math", ratio=0.2)],
    ... )
    >>> recipe.fitted_data()
    ['math', 'german']

    In Python, paths are relative to the working directory. Raises pydantic's ``ValidationError`` for unknown keys and
    values of another type; what contradicts itself is refused by ``fit``.
    """

    model: Annotated[str, BeforeValidator(_as_text)] = Field(
        description="A checkpoint's directory or a GGUF file, relative to the recipe, or a hub id."
    )
    data: dict[str, Annotated[DataFiles, BeforeValidator(_as_files)]] = Field(
        description="The data, by the names that the interventions use.", min_length=1
    )
    interventions: list[InterventionEntry] = Field(
        description="What is applied, in order: each is fitted with those before it applied.", min_length=1
    )
    chat_template: Annotated[ChatTemplateOptions, BeforeValidator(named_template)] = ChatTemplateOptions()
    export: BakeOptions = BakeOptions()
    evaluate: EvaluateOptions = EvaluateOptions()

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            model: str | os.PathLike[str],
            data: Mapping[str, DataFiles | RowsLike | Mapping[str, Any]],
            interventions: Sequence[InterventionEntry | MethodOptions | Mapping[str, Any]],
            chat_template: ChatTemplateOptions | Mapping[str, Any] | str = ...,
            export: BakeOptions | Mapping[str, Any] = ...,
            evaluate: EvaluateOptions | Mapping[str, Any] = ...,
            device: str = ...,
            dtype: Dtype = ...,
            device_map: DeviceMap | None = ...,
        ) -> None: ...

    def fitted_data(self) -> list[str]:
        """The names of all data that a method may see: not those that are there for testing alone."""
        return [name for name, data in self.data.items() if data.named().keys() - {"test"}]


def load_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read and validate a YAML recipe; its paths, which are relative to it, become absolute.

    >>> recipe = bakeout.load_recipe("recipe.yaml")
    >>> list(recipe.data)
    ['math', 'german']

    Raises ``RecipeError``, a ``BakeoutError``, that lists every error with its line.
    """
    path = Path(path)
    return parse_recipe(read_recipe(path), path)


def read_recipe(path: Path) -> bytes:
    """The bytes of a recipe: what works for hours by it writes these, and not what stands there at its end."""
    try:
        return read_regular(path)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}).", "Check the path.") from None


def parse_recipe(content: bytes, path: Path) -> Recipe:
    """``load_recipe`` of what was read from ``path``."""
    written = _parsed(content, path)
    try:
        recipe = Recipe.model_validate(written)
    except ValidationError as error:
        raise _recipe_error(path, _problems(error, written)) from None
    problems = [(_line(written, where), text) for where, text in _contradictions(recipe, path.parent)]
    if problems:
        raise _recipe_error(path, problems)
    return _resolved(recipe, path.parent)


def require_consistent(recipe: Recipe) -> None:
    """Raise ``RecipeError``, as ``load_recipe`` does, for a recipe whose parts contradict each other."""
    if problems := [text for _, text in _contradictions(recipe, Path())]:
        raise RecipeError(f"The recipe has {_count(problems)}: {'; '.join(problems)}.", "Correct the recipe.")


def _parsed(content: bytes, path: Path) -> Mapping[str, Any]:
    try:
        text = content.decode("utf-8")
        _require_shallow(path, text)
        written = YAML(typ="rt").load(text)
    except UnicodeDecodeError:
        raise RecipeError(f"{path}: not UTF-8 text.", "A recipe is a YAML file.") from None
    except MarkedYAMLError as error:
        line = 0 if error.problem_mark is None else error.problem_mark.line + 1
        raise RecipeError(f"{path}, line {line}: not YAML ({error.problem}).", "Correct the line.") from None
    except (YAMLError, *_CONSTRUCTING) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RecipeError(f"{path}: not YAML ({reason}).", "Correct the file.") from None
    if not isinstance(written, dict):
        raise RecipeError(f"{path}: not a recipe.", "Begin with `model:`, `data:` and `interventions:`.")
    return written


def _require_shallow(path: Path, text: str) -> None:
    """Raise ``RecipeError`` for what the YAML library would take minutes to refuse."""
    opened = sum(map(text.count, "[{")) - sum(map(text.count, "]}"))
    if opened > _DEEPEST or "- " * _DEEPEST in text or len(text) > _LONGEST:
        raise RecipeError(f"{path}: not a recipe (it nests too deeply, or is too long).", "Correct the file.")


def _problems(error: ValidationError, written: Any) -> list[tuple[int, str]]:
    """Pydantic's errors as line numbers and sentences; the errors of all parts of a union are one error."""
    merged: dict[tuple[int, str], list[str]] = {}
    for details in error.errors():
        subject, message = _problem(details)
        merged.setdefault((_line(written, details["loc"]), subject), []).append(message)
    return [(line, f"{subject}{' or '.join(messages)}") for (line, subject), messages in merged.items()]


def _problem(details: ErrorDetails) -> tuple[str, str]:
    """One of pydantic's errors as what it is about and a sentence."""
    where = details["loc"]
    key = str(where[-1])
    if details["type"] == "extra_forbidden":
        known = _known_keys(where[:-1])
        # A lower cutoff suggests other words: `calibration` for `train`.
        close = get_close_matches(key, known, n=1, cutoff=0.75)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
        return f"unknown key {key!r} ({hint})", ""
    if details["type"] == "missing":
        return f"{key!r} is missing", ""
    # The parts of a union are pydantic's, not the user's.
    name = ".".join(str(part) for part in where if isinstance(part, int) or part.isidentifier())
    return f"{name}: ", f"{details['msg'][:1].lower()}{details['msg'][1:]}"


def _known_keys(where: Sequence[int | str]) -> list[str]:
    """The keys that a section at this place may have."""
    sections: Sequence[type[BaseModel]] = [Recipe]
    for part in where:
        fields = [section.model_fields[part] for section in sections if part in section.model_fields]
        # Other parts are an index, a name of data, or pydantic's name for a part of a union.
        if nested := [section for field in fields for section in _sections(field.annotation)]:
            sections = nested
    return [key for section in sections for key in section.model_fields]


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The sections in a field's type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]


def _line(written: Any, where: Sequence[int | str]) -> int:
    """The line, from 1, of the deepest part of a place that the file has."""
    line = 1
    for part in where:
        if isinstance(written, dict):
            is_there = part in written
        else:
            is_there = isinstance(written, list) and isinstance(part, int) and part < len(written)
        if not is_there:
            break
        # What came in by a merge key (`<<:`) has no line of its own.
        known = (getattr(getattr(written, "lc", None), "data", None) or {}).get(part)
        line = line if known is None else known[0] + 1
        written = written[part]
    return line


def _contradictions(recipe: Recipe, directory: Path) -> Iterator[tuple[list[int | str], str]]:
    """Contradictions that the types cannot express: (place in the file, sentence)."""
    for name, data in recipe.data.items():
        files = data.named()
        if "file" in files and len(files) > 1:
            yield ["data", name, "file"], f"{name} has both one file for everything and files for single uses"
        if not files:
            yield ["data", name], f"{name} has no file"
        for use, file in files.items():
            if isinstance(file, Path) and not _is(directory / file, Path.is_file):
                yield ["data", name, use], f"there is no file {file}"
    for contradiction in recipe.export.contradictions():
        yield ["export", contradiction.option], contradiction.cause
    yield from _not_in_checkpoints(recipe)
    before: list[Method] = []
    for index, entry in enumerate(recipe.interventions):
        where: list[int | str] = ["interventions", index]
        named = sorted(entry.model_fields_set)
        if len(named) != 1 or getattr(entry, named[0]) is None:
            yield where, f"an entry names one method, not {' and '.join(named) or 'none'}"
            continue
        for earlier in before:
            if earlier.kind.stands_last and not entry.method.kind.stands_last:
                changed = f"{entry.method.title} would change the keys that {earlier.title} before it was fitted to"
                yield where, f"{changed} (put {earlier.title} last)"
        before.append(entry.method)
        yield from _names(recipe, entry.options, [*where, *named])
    for kind, count in Counter(method.kind for method in before).items():
        if kind.at_most_one and count > 1:
            yield ["interventions"], f"{count} times {kind.title} (put their skills into one: `forget` takes a list)"


def _is(path: Path, form: Callable[[Path], bool]) -> bool:
    """Whether a path, as somebody wrote it, leads to something of this form."""
    try:
        return form(path)
    # A name that is too long, or that holds a zero byte.
    except (OSError, ValueError):
        return False


def _not_in_checkpoints(recipe: Recipe) -> Iterator[tuple[list[int | str], str]]:
    """What an artifact that is a checkpoint cannot carry."""
    if recipe.export.to != "safetensors":
        return
    for index, entry in enumerate(recipe.interventions):
        for name in sorted(entry.model_fields_set):
            if not methods()[name].kind.edits_weights:
                yield (
                    ["interventions", index, name],
                    f"{name} acts on what the model computes, so no checkpoint can carry it (leave out `to`)",
                )


def _names(recipe: Recipe, options: MethodOptions, where: list[int | str]) -> Iterator[tuple[list[int | str], str]]:
    by_role = options.names(recipe.fitted_data())
    for role, names in by_role.items():
        for name in names:
            if name not in recipe.data:
                close = get_close_matches(name, recipe.data, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(recipe.data)}"
                yield [*where, role], f"no data are called {name!r} ({hint})"
            elif role in options.probed and not {"file", "probe"} & recipe.data[name].named().keys():
                yield [*where, role], f"{name!r} has nothing to probe (give it `probe:`, or one file for everything)"
    if options.kept is None:
        return
    # None where data need not be kept, and none are named.
    kept = by_role.get(options.kept, getattr(options, options.kept))
    for role in options.roles:
        if role != options.kept and (both := sorted(set(by_role.get(role, [])) & set(kept or ()))):
            yield [*where, options.kept], f"{both[0]!r} is in both `{role}` and `{options.kept}`"
    if options.kept in options.probed and kept is not None and not kept:
        yield where, "there are no data to retain, and this method needs some"


def _resolved(recipe: Recipe, directory: Path) -> Recipe:
    """The recipe with its files and directories, and a model that is a directory beside it, as absolute paths."""
    data = {
        name: files.model_copy(update={use: _resolved_source(file, directory) for use, file in files.named().items()})
        for name, files in recipe.data.items()
    }
    local = directory / recipe.model
    beside = _is(local, Path.is_dir) or _is(local, Path.is_file)
    model = str(local.resolve()) if beside else recipe.model
    interventions = [_with_paths(entry, directory) for entry in recipe.interventions]
    evaluate = recipe.evaluate.beside(directory)
    return recipe.model_copy(
        update={"data": data, "model": model, "interventions": interventions, "evaluate": evaluate}
    )


def _resolved_source(source: Source, directory: Path) -> Source:
    return (directory / source).resolve() if isinstance(source, Path) else source


def _with_paths(entry: InterventionEntry, directory: Path) -> InterventionEntry:
    paths = {name: (directory / path).resolve() for name, path in entry.options.paths().items()}
    options = entry.options.model_copy(update=paths)
    return entry.model_copy(update={entry.method.name: options}) if paths else entry


def _recipe_error(path: Path, problems: Sequence[tuple[int, str]]) -> RecipeError:
    listed = "; ".join(f"line {line}: {text}" for line, text in sorted(problems))
    return RecipeError(f"{path} has {_count(problems)}: {listed}.", "Correct the recipe.")


def _count(problems: Sequence[object]) -> str:
    return "an error" if len(problems) == 1 else f"{len(problems)} errors"
