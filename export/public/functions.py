"""What can be done with models, recipes, plans and artifacts: fit, bake, verify, evaluate, certify, sign.

Models are given as paths, hub ids, artifacts, or as transformers models that are in memory already; rows as paths or
lists of dicts. Progress goes to ``track``, which by default logs it to the logger ``bakeout``; nothing is printed. What
the user can correct is raised as ``BakeoutError``.

A model in memory is known by the digest of the checkpoint that holds its weights: the one that it was loaded from, if
it lies on this machine and every weight in it is the model's still; otherwise the one that ``save_pretrained`` writes.
``tokenizer`` is needed in the latter case alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, Union

from bakeout.artifact import Artifact
from bakeout.models.data.row_source import RowsLike, as_source
from bakeout.models.errors import BakeoutError
from bakeout.models.extras import missing_extra
from bakeout.models.progress import Track, logged

if TYPE_CHECKING:
    from pydantic import BaseModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from bakeout.export.certificate.figures import Certificate
    from bakeout.export.evaluation.evaluate import NamedData
    from bakeout.export.evaluation.graders.registry import GradeLike
    from bakeout.export.evaluation.rows import Evaluation
    from bakeout.export.recipes.bake_options import BakeOptions
    from bakeout.export.recipes.data_files import ColumnsLike
    from bakeout.export.recipes.evaluation import EvaluateOptions
    from bakeout.export.recipes.recipe import Recipe
    from bakeout.export.verification.verify import AskedName, Check
    from bakeout.models.checkpoint.placement import DeviceMap, Dtype
    from bakeout.models.plan import Plan

PathLike = str | os.PathLike[str]
Model = Union[PathLike, "PreTrainedModel"]
# Rows by name, or files: one, or several.
DataLike = Mapping[str, RowsLike] | PathLike | Sequence[PathLike]
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_Options = TypeVar("_Options", bound="BaseModel")


def naming_extras(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """``function``, which raises ``BakeoutError`` with the extra to install where a library is missing."""

    @wraps(function)
    def named(*arguments: _Arguments.args, **options: _Arguments.kwargs) -> _Result:
        try:
            return function(*arguments, **options)
        except ModuleNotFoundError as error:
            raise (missing_extra(error, f"`bakeout.{function.__name__}`") or error) from error

    return named


@naming_extras
def fit(
    recipe: Recipe | PathLike,
    *,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    cache: PathLike | None = None,
    track: Track = logged,
) -> Plan:
    """Fit a recipe's interventions to its model, each with those before it in force.

    ``recipe``: a ``Recipe``, or the path of a YAML file. ``model``: the recipe's model, if it is in memory already, on
    any device and in any type; in the end it is what it was, bit for bit. Where ``Recipe.model`` names a checkpoint on
    this machine, it must hold the same weights, and ``tokenizer`` render and end chats as its own; otherwise it is a
    mere name. ``cache``: a directory that keeps what is
    probed and trained, so that another fit of the same model on the same rows runs no forward pass over them.

    >>> plan = bakeout.fit(recipe)
    >>> [intervention.kind for intervention in plan.interventions]
    ['neuron_adjust']
    >>> plan.save("plan.safetensors")

    Raises ``BakeoutError`` for what is wrong with the model, the rows or the options.
    """
    from bakeout.export.fitting.fit import fit as fit_recipe
    from bakeout.export.recipes.recipe import Recipe, load_recipe, require_consistent

    if isinstance(recipe, Recipe):
        require_consistent(recipe)
    else:
        recipe = load_recipe(recipe)
    kept = None if cache is None else Path(cache)
    if model is None:
        if tokenizer is not None:
            raise BakeoutError("A tokenizer is given without its model.", "Give `model` too, or neither.")
        return fit_recipe(recipe, track, cache=kept)
    return _fit_in_memory(recipe, model, tokenizer, kept, track)


def _fit_in_memory(
    recipe: Recipe,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    cache: Path | None,
    track: Track,
) -> Plan:
    from bakeout.export.fitting.fit import fit as fit_recipe
    from bakeout.models.checkpoint.checkpoint_files import require_causal, weights_digest
    from bakeout.models.checkpoint.loaded_model import LoadedModel, as_checkpoint, local_checkpoint
    from bakeout.models.data.tokenizers.tokenization import load_tokenizer

    with as_checkpoint(model, tokenizer, recipe.model) as checkpoint:
        if (named := local_checkpoint(recipe.model)) is not None and named != checkpoint:
            raise BakeoutError(
                f"The weights of the model in memory are not those in {recipe.model}.",
                "Save it with save_pretrained, and name that directory in the recipe.",
            )
        loaded = LoadedModel(model, tokenizer or load_tokenizer(checkpoint), weights_digest(checkpoint))
    was_training = model.training
    model.train(False)
    try:
        require_causal(model, "The model in memory", 'Load it with attn_implementation="eager", if that is causal.')
        return fit_recipe(recipe, track, loaded=loaded, cache=cache)
    finally:
        model.train(was_training)


def loaded_plan(plan: Plan | PathLike) -> Plan:
    """``plan``, or what is in its file."""
    from bakeout.models.plan import Plan
    from bakeout.models.plan.plan_file import load_plan

    return plan if isinstance(plan, Plan) else load_plan(as_path(plan, "A plan", "Give a Plan, or its file."))


def as_path(given: Any, what: str, remedy: str) -> Path:
    """The path that is given for ``what``. Raises ``BakeoutError``, with the remedy, for what is none."""
    if not isinstance(given, str | os.PathLike):
        raise BakeoutError(f"{what} is given as {type(given).__name__}, not as a path.", remedy)
    return Path(given)


@naming_extras
def bake(
    model: Model,
    plan: Plan | PathLike,
    output: PathLike,
    options: BakeOptions | Mapping[str, Any] | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    track: Track = logged,
) -> Artifact:
    """Apply a plan to the model that it was fitted on, and write the artifact: whole, or not at all.

    ``model``: a checkpoint's directory or hub id, or a model in memory, which is exported, or an ONNX directory or file
    of any exporter. ``plan``: a ``Plan``, or the path of its file. ``output``: a directory, which must not exist.
    ``options``: ``BakeOptions``, or what a recipe's `export` holds.

    >>> artifact = bakeout.bake(checkpoint, "plan.safetensors", "unlearned")
    >>> sorted(path.name for path in artifact.directory.glob("model*"))
    ['model.onnx', 'model.onnx.data']

    Raises ``BakeoutError``, and leaves nothing behind, where ``output`` exists, the model is not the one that the plan
    was fitted on (by the digest of a checkpoint's weights; by shapes and the plan's canary for a graph), it cannot be
    exported or edited, or the disk is full.
    """
    from bakeout.export.baking.bake import bake as bake_plan
    from bakeout.export.recipes.bake_options import BakeOptions

    if not isinstance(options, BakeOptions):
        options = _validated(BakeOptions, options or {}, "baking")
    with on_disk(model, tokenizer) as source:
        baked = bake_plan(source, loaded_plan(plan), Path(output), options, track=track)
    return Artifact(baked.directory)


@dataclass(frozen=True)
class Verification:
    """What ``verify`` gives: the checks that were asked for, and the names of those that were not."""

    checks: tuple[Check, ...]
    not_asked: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every check is ok that was asked for. A check that could not run is not."""
        return all(check.ok for check in self.checks)

    def __str__(self) -> str:
        lines = [f"{'ok' if check.ok else 'NOT OK':<7} {check.name:<7} {check.detail}" for check in self.checks]
        return "\n".join([*lines, *(f"{'-':<7} {name:<7} not asked for" for name in self.not_asked)])


@naming_extras
def verify(
    artifact: PathLike,
    *,
    base: Model | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    digest: str | None = None,
    signature: PathLike | None = None,
    prompts: Sequence[Sequence[int]] = (),
    checks: Sequence[AskedName] | None = None,
    device: str | None = None,
    dtype: Dtype | None = None,
    device_map: DeviceMap | None = None,
    track: Track = logged,
) -> Verification:
    """Check an artifact: its files, its graph or edited tensors, the plan's canary, parity with the PyTorch reference.

    ``base``: the base model, which parity needs: its checkpoint, or in memory. ``digest``: ``Artifact.digest`` as it
    was when you trusted it. ``signature``: a PEM file with the public key, or the root certificates, that the
    artifact's signature is checked with. ``prompts``: token ids to compare on beside the canary's. ``checks``: these
    alone, out of ``files``, ``graph`` (for a checkpoint: ``tensors``), ``canary`` and ``parity``. ``device``,
    ``dtype`` and ``device_map``: where and how the base model runs, as in recipes; by default in float32 on the CPU.

    >>> verification = bakeout.verify("unlearned", base=checkpoint)
    >>> verification.ok
    True
    >>> [check.name for check in verification.checks]
    ['files', 'graph', 'canary', 'parity']

    Raises ``BakeoutError`` where there is no artifact; what is wrong with one is in the checks.
    """
    from bakeout.export.verification.verify import not_asked
    from bakeout.export.verification.verify import verify as checks_of
    from bakeout.models.checkpoint.placement import REFERENCE

    directory = Path(artifact)
    with _base_on_disk(base, tokenizer) as source:
        done = checks_of(
            directory,
            digest=digest,
            signature=None if signature is None else Path(signature),
            base=source,
            prompts=prompts,
            checks=checks,
            placement=REFERENCE.changed(device=device, dtype=dtype, device_map=device_map),
            track=track,
        )
    return Verification(tuple(done), tuple(not_asked(directory, checks)))


@naming_extras
def evaluate(
    models: PathLike | Iterable[PathLike],
    data: DataLike,
    *,
    texts: DataLike = (),
    base: Model | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    columns: ColumnsLike | None = None,
    grade: GradeLike | Mapping[str, GradeLike] | None = None,
    options: EvaluateOptions | Mapping[str, Any] | None = None,
    batch_size: int = 32,
    track: Track = logged,
) -> Evaluation:
    """Measure artifacts, or any ONNX directories or checkpoints, beside their base model.

    ``data``: rows with prompts and responses by name, or the path of a file or of several, whose names without the
    ending are taken. The share of correct answers and of refusals have Wilson's 95 % intervals, changes from the base
    Newcombe's.
    ``texts``: rows to measure perplexity and divergence on. ``base``: the base model; where it is not given, its
    figures are those that `bakeout build` stored on the same rows, if it did. ``columns``: for rows with keys of their
    own, what recipes call so (``{"prompt": "question"}``), for all data and texts or by name.

    ``grade``: how answers are judged, for all data or by name: a grader as recipes write it (``"number"``,
    ``{"python": {"show_tests": 1}}``), or a function of an answer and its row that gives a bool, or a score between 0
    and 1; exact match where it says nothing. ``options``: what a recipe's `evaluate` holds; all rows, greedily, by
    default.

    >>> evaluation = bakeout.evaluate("unlearned", {"math": rows}, base=checkpoint)
    >>> [(row.model, row.data, row.prompts) for row in evaluation.rows]
    [('base', 'math', 40), ('unlearned', 'math', 40)]
    >>> evaluation.rows[1].change.accuracy < 0
    True
    >>> print(evaluation)
    math, base: ...% correct, 0.0% refused, 40 prompts
    math, unlearned: ...% correct (change -... [-..., -...]), 0.0% refused, 40 prompts

    Raises ``BakeoutError`` for what cannot be read or run, and for rows without a prompt or a response.
    """
    from bakeout.export.evaluation.evaluate import data_names
    from bakeout.export.evaluation.evaluate import evaluate as evaluate_files
    from bakeout.export.evaluation.graders.registry import graders_of
    from bakeout.export.recipes.data_files import columns_of

    chosen = models if isinstance(models, Iterable) and not isinstance(models, str | os.PathLike) else [models]
    named, named_texts = _named(data), _named(texts)
    names, text_names = (list(data_names(given)) if given else [] for given in (named, named_texts))
    graders = graders_of(grade, names)
    with _base_on_disk(base, tokenizer) as source:
        return evaluate_files(
            [as_path(model, "A model to evaluate", "Save it with save_pretrained.") for model in chosen],
            named,
            texts=named_texts,
            base=source,
            columns=columns_of(columns, [*names, *text_names]),
            grades=graders,
            options=_evaluate_options(options, batch_size),
            track=track,
        )


@naming_extras
def certify(
    artifact: PathLike,
    base: Model,
    forget: DataLike,
    retain: DataLike,
    *,
    over: PathLike | None = None,
    strangers: DataLike = (),
    fitted: DataLike = (),
    tokenizer: PreTrainedTokenizerBase | None = None,
    columns: ColumnsLike | None = None,
    grade: GradeLike | Mapping[str, GradeLike] | None = None,
    quick: bool = False,
    journal: PathLike | None = None,
    salt: PathLike | None = None,
    track: Track = logged,
) -> Certificate:
    """Run the protocol of forgetting on an artifact, and write its certificate into it: `certificate.json`, model card.

    ``forget``, ``retain``: fresh rows with prompts and responses, as of ``evaluate``, and so are ``columns`` and
    ``grade``; ``strangers``: prompts that the recipe names nowhere; ``fitted``: rows that the plan was fitted on.
    ``quick``: fewer of all. ``journal``: a file of steps, from which a cut run goes on. ``salt``: of an artifact that
    hides its names.
    ``artifact`` can be a policy (`bakeout export-adapter --policy`), for ONNX Runtime with the artifact that it is
    ``over``.

    >>> certificate = bakeout.certify("unlearned", "model", [math], [german], quick=True)  # doctest: +SKIP
    >>> [figure.name for figure in certificate.figures if figure.section == "leak"][:3]  # doctest: +SKIP
    ['Leak@1', 'Leak@8', 'Leak@64']

    Raises ``BakeoutError`` for what cannot be read or run; what was not measured is in the certificate.
    """
    from bakeout.export.certificate.certify import certify as certify_artifact
    from bakeout.export.certificate.protocol import FULL, QUICK
    from bakeout.export.evaluation.evaluate import data_names
    from bakeout.export.evaluation.graders.registry import graders_of
    from bakeout.export.recipes.data_files import columns_of

    given = [_named(rows) if rows else {} for rows in (forget, retain, strangers, fitted)]
    names = [[name for rows in group if rows for name in data_names(rows)] for group in (given[:2], given[2:])]
    with on_disk(base, tokenizer) as source:
        return certify_artifact(
            Path(artifact),
            source,
            given[0],
            given[1],
            over=None if over is None else Path(over),
            strangers=given[2],
            fitted=given[3],
            columns=columns_of(columns, [*names[0], *names[1]]),
            grades=graders_of(grade, names[0]),
            protocol=QUICK if quick else FULL,
            journal=None if journal is None else Path(journal),
            salt=None if salt is None else Path(salt),
            track=track,
        )


@naming_extras
def sign(
    artifact: PathLike, key: PathLike, *, certificate: PathLike | None = None, chain: Sequence[PathLike] = ()
) -> Path:
    """Sign an artifact, or any file, through OpenSSF Model Signing, and give the path of the signature.

    ``key``: an elliptic curve's private key, in PEM; ``certificate``: the signing certificate of that key, with the
    certificates in ``chain`` between it and the root. ``verify`` checks signatures, and so does ``model_signing``.

    >>> bakeout.sign("unlearned", "signing.key").name
    'model.sig'

    Raises ``BakeoutError`` for files that are no such keys or certificates.
    """
    from bakeout.export.trust.signature import sign as sign_path

    named = None if certificate is None else Path(certificate)
    return sign_path(Path(artifact), Path(key), certificate=named, chain=[Path(path) for path in chain])


def _evaluate_options(options: EvaluateOptions | Mapping[str, Any] | None, batch_size: int) -> EvaluateOptions:
    from bakeout.export.recipes.evaluation import EvaluateOptions

    if isinstance(options, EvaluateOptions):
        return options
    return _validated(EvaluateOptions, {"rows": "all", "batch_size": batch_size, **(options or {})}, "an evaluation")


def _validated(kind: type[_Options], given: Mapping[str, Any], use: str) -> _Options:
    """The options that a mapping holds, those of ``use``. Raises ``BakeoutError``."""
    from pydantic import ValidationError

    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BakeoutError(f"The options are none of {use}: {where}: {first['msg']}.", "Correct `options`.") from None


@contextmanager
def on_disk(model: Model, tokenizer: PreTrainedTokenizerBase | None) -> Iterator[str]:
    """The path or hub id of a model."""
    if isinstance(model, str | os.PathLike):
        yield os.fspath(model)
        return
    from bakeout.models.checkpoint.loaded_model import as_checkpoint

    with as_checkpoint(model, tokenizer) as checkpoint:
        yield str(checkpoint)


@contextmanager
def _base_on_disk(base: Model | None, tokenizer: PreTrainedTokenizerBase | None) -> Iterator[Path | None]:
    if base is None:
        yield None
        return
    with on_disk(base, tokenizer) as source:
        yield Path(source)


def _named(data: DataLike) -> NamedData:
    if isinstance(data, Mapping):
        return {name: as_source(rows, name) for name, rows in data.items()}
    if isinstance(data, str | os.PathLike):
        return [Path(data)]
    files = data if isinstance(data, Iterable) else [data]
    return [as_path(path, "Data without a name", 'Give rows by name: {"math": rows}.') for path in files]
