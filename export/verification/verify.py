"""Does an artifact match its manifest, and compute what its plan states? Checks that cannot run give the reason."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import index
from pathlib import Path
from typing import Any, ClassVar, Literal, SupportsIndex

from bakeout.export.artifacts.file_checks import compare_files, irregular_entries
from bakeout.export.artifacts.file_names import MANIFEST, PLAN
from bakeout.export.artifacts.manifest import adapter_of, read_manifest, receipts_for, receipts_of
from bakeout.export.artifacts.model_source import find_checkpoint, find_graph, local_form
from bakeout.export.artifacts.onnx_layout import graphs_of
from bakeout.models.checkpoint.checkpoint import Checkpoint
from bakeout.models.checkpoint.checkpoint_files import read_config
from bakeout.models.checkpoint.placement import REFERENCE, Placement
from bakeout.models.data.limits import Limits
from bakeout.models.errors import BakeoutError
from bakeout.models.extras import installing, is_installed
from bakeout.models.files.hashing import hash_file
from bakeout.models.plan import Plan
from bakeout.models.plan.canary_check import CanaryMatch, unmeasured
from bakeout.models.plan.plan_file import load_plan
from bakeout.models.plan.receipt import Receipt
from bakeout.models.progress import Track, untracked

CheckName = Literal["files", "adapter", "graph", "tensors", "canary", "parity"]
# What may be asked for: what version 0.2.0 called the check ``files``, too.
AskedName = CheckName | Literal["hashes"]


@dataclass(frozen=True)
class Check:
    """One check. A check that could not run is not ok; its ``detail`` begins with ``skipped``."""

    name: str
    ok: bool
    detail: str

    def as_json(self) -> dict[str, Any]:
        """The check as in ``--json``."""
        return {"name": self.name, "ok": self.ok, "detail": self.detail}


def verify(
    directory: Path,
    *,
    digest: str | None = None,
    signature: Path | None = None,
    base: str | Path | Checkpoint | None = None,
    prompts: Sequence[Sequence[int]] = (),
    checks: Sequence[AskedName] | None = None,
    placement: Placement = REFERENCE,
    track: Track = untracked,
) -> list[Check]:
    """Check an artifact: files, graph or edited tensors, canary, and parity with the reference of the model ``base``.

    ``digest``: SHA-256 of the manifest, as it was when somebody trusted it. ``signature``: a PEM file with the public
    key, or the root certificates, that the artifact's signature is checked with. ``prompts``: token ids to compare on
    beside the canary's. ``checks``: these alone (``check_names`` by default): ``files`` (their hashes, and the
    manifest's), ``graph`` (the ONNX checker's) or ``tensors`` (a checkpoint's), ``canary``, ``parity``; of a policy
    ``files`` and ``adapter``, which is held against its plan. ``placement``: where and how the model ``base`` runs.
    Raises ``BakeoutError`` where there is no artifact, for checks that it does not have, for prompts that the
    model cannot read, and where ``base`` is no checkpoint; what is wrong with an artifact is in the checks.
    """
    manifest = read_manifest(directory)
    prompts = _token_ids(prompts)
    if signature is not None:
        from bakeout.export.trust.signature import check_signature
    asked = check_names(directory) if checks is None else _by_name(checks)
    _require_checks(directory, asked, digest, base is not None, prompts)
    checkpoint = None if base is None else find_checkpoint(base)
    if checkpoint is not None and placement != checkpoint.placement:
        checkpoint = replace(checkpoint, placement=placement)
    artifact = (_Checkpoint if _is_checkpoint(directory) else _Graph)(directory, manifest)
    done: list[Check] = []
    if irregular := irregular_entries(directory):
        # Other libraries would follow a link, and wait for a FIFO.
        detail = "; ".join(f"{name} is {what}" for name, what in irregular.items())
        return [Check("files", False, detail), *(_skipped(name) for name in asked if name != "files")]
    if signature is not None:
        done.append(Check("signature", *check_signature(directory, signature)))
    if "files" in asked:
        done += _digest_check(directory, digest)
        done.append(Check("files", *compare_files(directory, manifest["files"], track)))
    if adapter_of(manifest) is not None:
        from bakeout.export.adapters.policy import check_policy

        return [*done, *([Check("adapter", *check_policy(directory, manifest))] if "adapter" in asked else [])]
    if artifact.form in asked:
        done.append(Check(artifact.form, *artifact.form_is_sound()))
        if not done[-1].ok:
            return [*done, *(_skipped(name) for name in ("canary", "parity") if name in asked)]
    if not {"canary", "parity"} & set(asked):
        return done
    try:
        plan = load_plan(directory / PLAN)
        wrong = plan.contradiction or next(filter(None, (_not_owed(plan, own) for own in artifact.edits())), "")
    except BakeoutError as error:
        return [*done, Check("plan", False, str(error)), *(_skipped(n) for n in ("canary", "parity") if n in asked)]
    if wrong:
        return [*done, Check("plan", False, wrong), *(_skipped(n) for n in ("canary", "parity") if n in asked)]
    if "canary" in asked:
        done.append(_canary_check(artifact, plan))
    if "parity" in asked:
        config = {} if checkpoint is None else read_config(checkpoint.directory)
        _require_readable(prompts, Limits.of_config(config, plan.model.vocabulary))
        prompts = [*plan.canary.input_ids.tolist(), *prompts]
        try:
            done.append(_parity_check(artifact, plan, checkpoint, prompts, track))
        except BakeoutError as error:
            done.append(Check("parity", False, str(error)))
    return done


def _token_ids(prompts: Iterable[Iterable[SupportsIndex]]) -> list[list[int]]:
    """Lists of what may be arrays. Raises ``BakeoutError``."""
    try:
        return [[index(token) for token in prompt] for prompt in prompts]
    except TypeError:
        raise BakeoutError(
            "`prompts` are no lists of token ids.", "Tokenise each prompt with the model's own tokenizer."
        ) from None


def _require_readable(prompts: Sequence[Sequence[int]], limits: Limits) -> None:
    for number, prompt in enumerate(prompts, start=1):
        if not prompt or min(prompt) < 0:
            raise BakeoutError(
                f"Prompt {number} is empty, or has a negative token id.", "Tokenise it with the model's own tokenizer."
            )
        limits.require(prompt, None, f"Prompt {number}")


def check_names(directory: Path) -> tuple[CheckName, ...]:
    """The checks that an artifact has, or a policy."""
    if adapter_of(read_manifest(directory)) is not None:
        return "files", "adapter"
    return ("files", "tensors" if _is_checkpoint(directory) else "graph", "canary", "parity")


def not_asked(directory: Path, checks: Sequence[AskedName] | None) -> list[CheckName]:
    """The checks that an artifact has beside those that were asked for, if any were."""
    return [] if checks is None else [name for name in check_names(directory) if name not in _by_name(checks)]


def _by_name(asked: Sequence[AskedName]) -> list[CheckName]:
    """The checks that were asked for, by the names that they have now."""
    return ["files" if name == "hashes" else name for name in asked]


def _is_checkpoint(directory: Path) -> bool:
    return local_form(directory) == "checkpoint"


def _require_checks(
    directory: Path, asked: Sequence[CheckName], digest: str | None, base: bool, prompts: Sequence[Sequence[int]]
) -> None:
    names = check_names(directory)
    if unknown := [name for name in asked if name not in names]:
        raise BakeoutError(f"{directory} has no check called {unknown[0]}.", f"Choose `checks` of {', '.join(names)}.")
    for option, name, given in (
        ("digest", "files", digest is not None),
        ("base", "parity", base),
        ("prompts", "parity", len(prompts) > 0),
    ):
        if given and name not in asked:
            raise BakeoutError(
                f"`{option}` is for the check {name}, which `checks` leaves out.",
                f"Leave it out, or add {name}.",
            )


def _not_owed(plan: Plan, receipts: Sequence[Receipt]) -> str:
    """How the receipts differ from those that baking the plan gives; empty if they do not."""
    given = Counter((receipt.intervention, receipt.kind, receipt.layer, receipt.count) for receipt in receipts)
    owed = Counter(
        (index, intervention.kind, part.layer, part.count)
        for index, intervention in enumerate(plan.interventions)
        for part in intervention.parts
    )
    differing = sorted((given - owed) + (owed - given))
    if not differing:
        return ""
    index, kind, layer, count = differing[0]
    whose = "the plan's alone" if owed[differing[0]] > given[differing[0]] else "the receipts' alone"
    return f"plan and receipts differ: {kind} (intervention {index}) in layer {layer} with count {count} is {whose}"


def _digest_check(directory: Path, digest: str | None) -> Iterator[Check]:
    if digest is None:
        return
    actual = hash_file(directory / MANIFEST)
    ok = actual == digest.strip().lower()
    yield Check("digest", ok, f"{MANIFEST} has sha256 {actual}" + ("" if ok else ", not the one supplied"))


def _canary_check(artifact: _Artifact, plan: Plan) -> Check:
    if artifact.computes_with_torch and (lacking := _lacking()):
        return _skipped("canary", f"it needs {lacking}")
    if (unknown := unmeasured(plan.interventions, plan.canary)) is not None:
        return Check("canary", False, f"the plan has no value of {unknown.title}, so that any model would pass")
    try:
        compared = [match for match in artifact.match_canary(plan) if not match.skipped]
        ok, decided = artifact.decides(plan)
    except BakeoutError as error:
        return Check("canary", False, str(error))
    told = [
        f"{match.kind} {match.distance:.1e} away over {match.compared} values (at most {match.tolerance:g})"
        for match in compared
    ]
    return Check(
        "canary", ok and all(match.ok for match in compared), "; ".join([*told, *([decided] if decided else [])])
    )


def _parity_check(
    artifact: _Artifact, plan: Plan, base: Checkpoint | None, prompts: Sequence[Sequence[int]], track: Track
) -> Check:
    """Parity, and of an artifact that has it whether refusals are whole, and the routing of a mixture of experts."""
    check = artifact.parity(plan, base, prompts, track)
    if plan.check and check.ok:
        ok, told = artifact.refuses_to_the_end(plan.check.refusal.tolist(), prompts)
        check = Check("parity", ok, f"{check.detail}; {told}")
    if plan.model.routing is not None and check.ok and base is not None:
        from bakeout.models.reference.routing import routing_stability

        check = replace(check, detail=f"{check.detail}; routing: {routing_stability(base.load(), plan, prompts)}")
    return check


class _Artifact(ABC):
    """What is checked of an artifact, by what kind of model it holds: ``form`` is the name of the check of that."""

    form: ClassVar[CheckName]
    computes_with_torch: ClassVar[bool]

    def __init__(self, directory: Path, manifest: Mapping[str, Any]) -> None:
        self.directory = directory
        self.files = manifest["files"]
        self.receipts = receipts_of(manifest)

    def edits(self) -> list[Sequence[Receipt]]:
        """The receipts of each file that the whole plan was baked into."""
        return [self.receipts]

    @abstractmethod
    def form_is_sound(self) -> tuple[bool, str]:
        """The check ``form``."""

    @abstractmethod
    def match_canary(self, plan: Plan) -> tuple[CanaryMatch, ...]:
        """How near the model comes to the plan's canary."""

    def decides(self, plan: Plan) -> tuple[bool, str]:
        """Whether the model refuses what the plan refuses of its canary. No weight refuses."""
        return True, ""

    @abstractmethod
    def parity(self, plan: Plan, base: Checkpoint | None, prompts: Sequence[Sequence[int]], track: Track) -> Check:
        """The check of parity. Raises ``BakeoutError`` where the model cannot be run."""

    def refuses_to_the_end(self, refusal: Sequence[int], prompts: Sequence[Sequence[int]]) -> tuple[bool, str]:
        """Whether refusals are whole, and then stop."""
        return True, "no weight refuses"


class _Graph(_Artifact):
    """An ONNX artifact."""

    form = "graph"
    computes_with_torch = False

    @cached_property
    def graph(self) -> Path:
        """The graph that every command runs. Raises ``BakeoutError`` where the directory does not hold one."""
        return find_graph(self.directory)

    def edits(self) -> list[Sequence[Receipt]]:
        return [receipts_for(graph, self.receipts) for graph in graphs_of(self.graph)]

    def form_is_sound(self) -> tuple[bool, str]:
        import onnx
        from google.protobuf.message import DecodeError

        from bakeout.graph_passes.graph.graph_file import load_graph, without_data

        try:
            if others := self._other_graphs():
                return False, f"runtimes may run another graph than {self.graph.name}: {', '.join(others)}"
            for graph in graphs_of(self.graph):
                onnx.checker.check_model(without_data(graph))
                load_graph(graph)
        except BakeoutError as error:
            return False, str(error)
        except (onnx.checker.ValidationError, DecodeError, OSError, ValueError) as error:
            return False, f"the ONNX checker refuses it: {' '.join(str(error).split())}"
        return True, "the ONNX checker accepts it"

    def _other_graphs(self) -> list[str]:
        """ONNX files beside the artifact's graph, or its pair, which are among the manifest's files."""
        listed = {self.directory / name for name in self.files if name.endswith(".onnx")}
        graphs = graphs_of(self.graph)
        if listed == {*graphs}:
            return []
        from bakeout.graph_passes.graph.graph_file import data_files, load_graph

        data = {graph.parent / name for graph in graphs for name in data_files(load_graph(graph))}
        return sorted(path.relative_to(self.directory).as_posix() for path in listed - data - {*graphs})

    def match_canary(self, plan: Plan) -> tuple[CanaryMatch, ...]:
        from bakeout.export.verification.graph_canary import match_canary

        by_graph = [match_canary(graph, plan, receipts_for(graph, self.receipts)) for graph in graphs_of(self.graph)]
        return tuple(match for matches in by_graph for match in matches)

    def decides(self, plan: Plan) -> tuple[bool, str]:
        from bakeout.export.verification.decisions import check_decisions

        return check_decisions(self.graph, plan, self.receipts)

    def parity(self, plan: Plan, base: Checkpoint | None, prompts: Sequence[Sequence[int]], track: Track) -> Check:
        from bakeout.export.verification.formulas import check_formulas
        from bakeout.graph_passes.graph.graph_file import load_graph
        from bakeout.graph_passes.graph.precision import stored_precision

        drawn = ""
        if plan.is_stochastic:
            ok, told = check_formulas(self.graph, plan, self.receipts, prompts, track)
            drawn = f"; its stochastic coin: {told}"
            if not ok:
                return Check("parity", False, told)
        if base is None or _lacking():
            return _skipped("parity", f"{_needs(base)}{drawn}")
        from bakeout.export.verification.parity import check_parity, check_quantised

        if stored_precision(load_graph(self.graph)) == "quantised":
            return Check("parity", *check_quantised(self.graph, plan, self.receipts, base, prompts, track))
        ok, told = check_parity(self.graph, plan, base, prompts, track)
        return Check("parity", ok, f"{told}{drawn}")

    def refuses_to_the_end(self, refusal: Sequence[int], prompts: Sequence[Sequence[int]]) -> tuple[bool, str]:
        from bakeout.export.verification.refusals_said import check_refusals

        return check_refusals(self.graph, refusal, prompts)


class _Checkpoint(_Artifact):
    """An artifact that is a checkpoint."""

    form = "tensors"
    computes_with_torch = True

    def form_is_sound(self) -> tuple[bool, str]:
        from bakeout.export.verification.checkpoint_checks import check_tensors

        try:
            return check_tensors(self.directory, self.receipts)
        except BakeoutError as error:
            return False, str(error)

    def match_canary(self, plan: Plan) -> tuple[CanaryMatch, ...]:
        from bakeout.export.verification.checkpoint_checks import match_checkpoint_canary

        return match_checkpoint_canary(self.directory, plan, self.receipts)

    def parity(self, plan: Plan, base: Checkpoint | None, prompts: Sequence[Sequence[int]], track: Track) -> Check:
        if base is None or _lacking():
            return _skipped("parity", _needs(base))
        from bakeout.export.verification.checkpoint_checks import check_checkpoint_parity

        return Check("parity", *check_checkpoint_parity(self.directory, plan, self.receipts, base, prompts, track))


def _needs(base: Checkpoint | None) -> str:
    parts = [*(["the base model's checkpoint (`base`)"] if base is None else []), *([_lacking()] if _lacking() else [])]
    return f"it needs {' and '.join(parts)}"


def _lacking() -> str:
    """The library that the PyTorch reference needs and that is not installed, with its remedy; empty for none."""
    missing = [package for package in ("torch", "transformers") if not is_installed(package)]
    return f"{missing[0]} ({installing(missing[0])})" if missing else ""


def _skipped(name: str, why: str = "an earlier check failed") -> Check:
    return Check(name, False, f"skipped: {why}")
