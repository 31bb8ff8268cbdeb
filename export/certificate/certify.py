"""Certify an artifact: run the protocol, and write what it gave into the artifact."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bakeout.export.artifacts.additions import require_unchanged
from bakeout.export.artifacts.file_names import PLAN
from bakeout.export.artifacts.model_source import find_graph, local_form
from bakeout.export.certificate.base_model import base_digest, require_base
from bakeout.export.certificate.certificate_files import WRITTEN, write_certificate
from bakeout.export.certificate.figures import Certificate, NotMeasured, Section
from bakeout.export.certificate.measuring import Data, Measuring
from bakeout.export.certificate.models import Models
from bakeout.export.certificate.protocol import FULL, Protocol
from bakeout.export.certificate.sections.answers import other_precisions, own_precision
from bakeout.export.certificate.sections.attacks import forms, mixed_questions
from bakeout.export.certificate.sections.give_away import give_away
from bakeout.export.certificate.sections.leak import leaks
from bakeout.export.certificate.sections.relearning import relearning
from bakeout.export.certificate.sections.tofu import Part, has_wrong_answers, tofu
from bakeout.export.certificate.sections.utility import EVERYDAY_NAME, everyday, utility
from bakeout.export.certificate.statements import statements
from bakeout.export.certificate.step_journal import Journal
from bakeout.export.evaluation.evaluate import data_names
from bakeout.export.evaluation.graders.grader import Grader
from bakeout.export.evaluation.grading import EXACT_GRADER
from bakeout.export.running.runner import Runner
from bakeout.models.data.row_source import Source, source_digest, source_lines
from bakeout.models.errors import BakeoutError
from bakeout.models.files.json_object import read_json
from bakeout.models.progress import Track, untracked

NamedSources = Mapping[str, Source] | Sequence[Path]


def certify(
    directory: Path,
    base: str | Path,
    forget: NamedSources,
    retain: NamedSources,
    *,
    strangers: NamedSources = (),
    fitted: NamedSources = (),
    real_authors: Path | None = None,
    world_facts: Path | None = None,
    tofu_reference: Path | None = None,
    grades: Mapping[str, Grader] = MappingProxyType({}),
    protocol: Protocol = FULL,
    journal: Path | None = None,
    batch_size: int = 32,
    max_new_tokens: int | None = None,
    track: Track = untracked,
) -> Certificate:
    """Run the protocol on an artifact and its base model, and write the certificate into the artifact.

    ``forget``, ``retain``: rows with prompts and responses, fresh ones; ``strangers``: prompts that nobody names,
    beside Bakeout's everyday questions; ``fitted``: rows that the plan was fitted on, for what it gives away of them.
    ``real_authors``, ``world_facts``: TOFU's; ``tofu_reference``: the TOFU_EVAL.json of a model that never saw what is
    forgotten. ``grades``: graders by the data's name, exact match else. ``journal``: a file of the steps done, from
    which a run that was cut goes on.

    `certificate.json`, a section of the model card, and for rows of TOFU two files for open-unlearning are written, and
    the manifest anew. Removed are a signature, which no longer holds, and what belongs to another certificate: an
    erasure record, and metrics of TOFU that this one lacks. Raises ``BakeoutError``, writing nothing into the artifact,
    where that is not what its manifest lists, for what cannot be read or run, and for another base model than the
    plan's.
    """
    manifest = require_unchanged(directory, WRITTEN)
    data = _data(forget, retain, strangers, grades)
    members = _members(fitted)
    parts = _parts(data, real_authors, world_facts)
    others = [*members, *(part for part in parts.values() if part not in data)]
    _require_own_names([*data, *others])
    reference = None if tofu_reference is None else _reference(tofu_reference)
    with Models(directory, base) as models:
        require_base(models.base, models.plan)
        described = _described(models, manifest, protocol, [*data, *others])
        measuring = Measuring(
            protocol, models, data, Journal(journal, _name(described, models, data, max_new_tokens)), batch_size,
            max_new_tokens, track,
        )  # fmt: skip
        sections = [
            own_precision(measuring),
            leaks(measuring),
            forms(measuring),
            mixed_questions(measuring),
            relearning(measuring),
            utility(measuring),
            _routing(models),
            give_away(measuring, members),
            # Last, as graphs of one precision are kept at a time.
            other_precisions(measuring),
        ]
        section, metrics = tofu(measuring, parts, reference)
    certificate = Certificate(
        {**described, "statements": list(statements(models.plan))},
        tuple(figure for measured in (*sections, section) for figure in measured.figures),
        tuple(missing for measured in (*sections, section) for missing in measured.not_measured),
        metrics,
    )
    write_certificate(directory, certificate)
    return certificate


def _data(
    forget: NamedSources, retain: NamedSources, strangers: NamedSources, grades: Mapping[str, Grader]
) -> list[Data]:
    if not forget or not retain:
        raise BakeoutError("A certificate needs rows to forget and rows to keep.", "Give `forget` and `retain`.")
    by_role = {"forget": _named(forget), "retain": _named(retain), "stranger": _named(strangers)}
    by_role["stranger"][EVERYDAY_NAME] = everyday(next(iter(by_role["forget"].values())))
    names = [name for sources in by_role.values() for name in sources]
    if strange := sorted(set(grades) - set(names)):
        raise BakeoutError(f"No data are called {strange[0]!r}.", f"There are {', '.join(names)}.")
    return [
        Data(name, role, source, grades.get(name, EXACT_GRADER))  # type: ignore[arg-type]
        for role, sources in by_role.items()
        for name, source in sources.items()
    ]


def _members(fitted: NamedSources) -> list[Data]:
    """The rows that the plan was fitted on. Their file often has the name of the fresh ones' file."""
    return [Data(f"{name} (fitted)", "fitted", source, EXACT_GRADER) for name, source in _named(fitted).items()]


def _require_own_names(data: Sequence[Data]) -> None:
    """Raise ``BakeoutError`` where two files would have the same name, by which figures and journal know them."""
    names = [item.name for item in data]
    if twice := [name for name in names if names.count(name) > 1]:
        raise BakeoutError(f"Two files are called {twice[0]!r}.", "Rename one of them.")


def _named(sources: NamedSources) -> dict[str, Source]:
    return dict(data_names(sources)) if sources else {}


def _parts(data: Sequence[Data], real_authors: Path | None, world_facts: Path | None) -> dict[Part, Data]:
    """The rows of TOFU, by open-unlearning's prefix."""
    parts: dict[Part, Data] = {}
    for item in data:
        if item.role != "stranger" and item.role not in parts and has_wrong_answers(item.source):
            parts["forget" if item.role == "forget" else "retain"] = item
    if real_authors is not None:
        parts["ra"] = Data("real authors", "real authors", _with_wrong_answers(real_authors), EXACT_GRADER)
    if world_facts is not None:
        parts["wf"] = Data("world facts", "world facts", _with_wrong_answers(world_facts), EXACT_GRADER)
    return parts


def _with_wrong_answers(path: Path) -> Path:
    if not has_wrong_answers(path):
        raise BakeoutError(
            f"{path} has a row without `perturbed_answer`, which TOFU's metrics need.", "Give every row one."
        )
    return path


def _reference(path: Path) -> Mapping[str, Any]:
    content = read_json(path)
    if "value_by_index" not in content.get("forget_truth_ratio", {}):
        raise BakeoutError(f"{path} holds no forget_truth_ratio.", "Give the TOFU_EVAL.json of a retained model.")
    return content


def _routing(models: Models) -> Section:
    why = f"{models.plan.model.architecture} is measured as one dense model: no router's choices were compared"
    return Section((), [NotMeasured("utility", "routing stability", why)])


def _described(models: Models, manifest: Mapping[str, Any], protocol: Protocol, data: Sequence[Data]) -> dict[str, Any]:
    files = {name: digest["sha256"] for name, digest in manifest["files"].items() if name not in WRITTEN}
    runner = None if local_form(models.directory) == "checkpoint" else Runner(find_graph(models.directory))
    provider = "CPUExecutionProvider" if runner is None else runner.provider
    import onnxruntime

    return {
        "protocol": protocol.as_json(),
        "artifact": {
            "files": hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest(),
            "plan": manifest["files"][PLAN]["sha256"],
            "base": models.plan.model.digest,
            "precision": models.own,
            "forgets": list(models.plan.forgets),
            "methods": [intervention.title for intervention in models.plan.interventions],
        },
        "data": {part.name: _entry(part) for part in data},
        "runtime": {
            "name": f"ONNX Runtime {onnxruntime.__version__}, {provider}",
            "bakeout": version("bakeout"),
        },
    }


def _entry(data: Data) -> dict[str, Any]:
    return {
        "role": data.role,
        "sha256": source_digest(data.source),
        "rows": len(list(source_lines(data.source))),
        "grader": dict(data.grader.described),
    }


def _name(described: Mapping[str, Any], models: Models, data: Sequence[Data], max_new_tokens: int | None) -> str:
    """All that figures depend on, as a digest."""
    content = [described, base_digest(models.base), [part.name for part in data], max_new_tokens]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
