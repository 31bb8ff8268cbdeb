"""Certify an artifact: run the protocol, and write what it gave into the artifact."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Mapping
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bakeout.export.adapters.policy import check_policy, require_over
from bakeout.export.artifacts.additions import require_unchanged
from bakeout.export.artifacts.file_names import ADDED, PLAN
from bakeout.export.artifacts.manifest import adapter_of, content_digest
from bakeout.export.certificate.base_model import base_digest, require_base
from bakeout.export.certificate.certificate_files import write_certificate
from bakeout.export.certificate.figures import Certificate, NotMeasured, Section
from bakeout.export.certificate.given_data import GivenData, NamedSources
from bakeout.export.certificate.measuring import Measuring
from bakeout.export.certificate.models import Models
from bakeout.export.certificate.protocol import FULL, PARTS, Part, Protocol
from bakeout.export.certificate.sections.answers import other_precisions, own_precision
from bakeout.export.certificate.sections.attacks import forms, mixed_questions
from bakeout.export.certificate.sections.give_away import give_away
from bakeout.export.certificate.sections.leak import leaks
from bakeout.export.certificate.sections.relearning import relearning
from bakeout.export.certificate.sections.tofu import tofu
from bakeout.export.certificate.sections.utility import routing, utility
from bakeout.export.certificate.statements import statements
from bakeout.export.certificate.step_journal import Journal
from bakeout.export.evaluation.graders.custom import Custom
from bakeout.export.evaluation.graders.grader import Grader
from bakeout.export.evaluation.recorded_inputs import fitted_rows
from bakeout.export.recipes.data_files import Columns
from bakeout.export.running.runner import Runner
from bakeout.models.errors import BakeoutError
from bakeout.models.files.json_object import read_json
from bakeout.models.files.writing import require_writable
from bakeout.models.progress import Track, untracked

_logger = logging.getLogger(__name__)


def certify(
    directory: Path,
    base: str | Path,
    forget: NamedSources,
    retain: NamedSources,
    *,
    over: Path | None = None,
    strangers: NamedSources = (),
    fitted: NamedSources = (),
    real_authors: Path | None = None,
    world_facts: Path | None = None,
    tofu_reference: Path | None = None,
    columns: Mapping[str, Columns] = MappingProxyType({}),
    grades: Mapping[str, Grader] = MappingProxyType({}),
    protocol: Protocol = FULL,
    parts: Collection[Part] = PARTS,
    journal: Path | None = None,
    salt: Path | None = None,
    batch_size: int = 32,
    max_new_tokens: int | None = None,
    track: Track = untracked,
) -> Certificate:
    """Run the protocol on an artifact and its base model, and write the certificate into the artifact.

    ``directory`` can be a policy too: one for ONNX Runtime is run as an adapter of the artifact ``over`` which it was
    exported, and one for peft is baked into the base model, once it is found to be what its plan becomes.
    ``forget``, ``retain``: rows with prompts and responses, fresh ones; ``strangers``: prompts that nobody names,
    beside Bakeout's everyday questions; ``fitted``: rows that the plan was fitted on, for what it gives away of them.
    ``real_authors``, ``world_facts``: TOFU's; ``tofu_reference``: the TOFU_EVAL.json of a model that never saw what is
    forgotten. ``columns``: which keys rows are under, by the data's name, where they are not Bakeout's; ``grades``:
    graders by the same names, exact match else. ``parts``: those of the protocol to run; the
    certificate tells the others as not measured. ``journal``: a file of the steps done, from which a run that was cut
    goes on; certificates of several artifacts of one base model that share it measure the base model once. ``salt``:
    the file of the salt of an artifact that hides what it forgets, by which names and digests of data are salted in its
    certificate too.

    `certificate.json`, a section of the model card, and for rows of TOFU two files for open-unlearning are written, and
    the manifest anew. Removed are a signature, which no longer holds, and what belongs to another certificate: an
    erasure record, and metrics of TOFU that this one lacks. Raises ``BakeoutError``, writing nothing into the artifact,
    where that is not what its manifest lists, for what cannot be read or run, for another base model than the plan's,
    and for a journal of what a caller's function judges.
    """
    manifest = require_unchanged(directory, ADDED)
    over = require_over(manifest, over)
    if adapter_of(manifest) is not None and not (held := check_policy(directory, manifest))[0]:
        raise BakeoutError(f"{directory}: {held[1]}.", "Export the policy again.")
    require_writable(directory)
    data = GivenData.of(forget, retain, strangers, fitted, grades, real_authors, world_facts, columns)
    if journal is not None and (own := [item.name for item in data.all if isinstance(item.grader, Custom)]):
        raise BakeoutError(
            f"The grader of {own[0]} is a function, which a journal cannot tell from another.", "Leave out `journal`."
        )
    reference = None if tofu_reference is None else _reference(tofu_reference)
    with Models(directory, base, over) as models:
        data.require_roles(models.plan)
        told = dict(fitted_rows([directory], {item.name: item.source for item in data.asked}))
        for words in told.values():
            _logger.warning(words)
        fitted_on = [item.name in told for item in data.asked]
        data = data.hidden_as(models.plan, salt)
        not_fresh = [
            NotMeasured("data", f"{item.name} by fresh rows", "the plan was fitted with these rows")
            for item, is_known in zip(data.asked, fitted_on, strict=True)
            if is_known
        ]
        require_base(models.base, models.plan)
        described = _described(models, manifest, protocol, data)
        steps = Journal(journal, *_names(described, models, data, max_new_tokens))
        measuring = Measuring(
            protocol, models, data.asked, steps, batch_size, max_new_tokens, track, data.salt is not None
        )
        measures: dict[Part, Callable[[Measuring], Section]] = {
            "answers": own_precision,
            "leak": leaks,
            "attacks": forms,
            "blur": mixed_questions,
            "relearning": relearning,
            "utility": utility,
            "routing": routing,
            "give-away": lambda measuring: give_away(measuring, data.fitted),
            # Behind the others, as graphs of one precision are kept at a time.
            "precisions": other_precisions,
        }
        sections = [measure(measuring) for part, measure in measures.items() if part in parts]
        section, metrics = tofu(measuring, data.tofu, reference) if "tofu" in parts else (Section(), {})
    left_out = [NotMeasured(part, "all of it", "it was not asked for") for part in PARTS if part not in parts]
    sections += [section, Section((), [*left_out, *not_fresh])]
    certificate = Certificate(
        {**described, "statements": list(statements(models.plan))},
        tuple(figure for measured in sections for figure in measured.figures),
        tuple(missing for measured in sections for missing in measured.not_measured),
        metrics,
    )
    write_certificate(directory, certificate)
    return certificate


def _reference(path: Path) -> Mapping[str, Any]:
    content = read_json(path)
    if "value_by_index" not in content.get("forget_truth_ratio", {}):
        raise BakeoutError(f"{path} holds no forget_truth_ratio.", "Give the TOFU_EVAL.json of a retained model.")
    return content


def _described(models: Models, manifest: Mapping[str, Any], protocol: Protocol, data: GivenData) -> dict[str, Any]:
    graph = models.graph
    provider = "CPUExecutionProvider" if graph is None else Runner(graph).provider
    import onnxruntime

    return {
        "protocol": protocol.as_json(),
        "artifact": {
            "files": content_digest(manifest),
            "plan": manifest["files"][PLAN]["sha256"],
            "base": models.plan.model.digest,
            "precision": models.own,
            "forgets": list(models.plan.forgets),
            "methods": [intervention.title for intervention in models.plan.interventions],
            **({"adapter": dict(told)} if (told := adapter_of(manifest)) else {}),
        },
        "data": data.described(),
        "runtime": {
            "name": f"ONNX Runtime {onnxruntime.__version__}, {provider}",
            "bakeout": version("bakeout"),
        },
    }


def _names(
    described: Mapping[str, Any], models: Models, data: GivenData, max_new_tokens: int | None
) -> tuple[str, str]:
    """All that figures depend on, as a digest; and all that those of the base model alone do."""
    graders = [dict(item.grader.described) for item in data.all]
    columns = [dict(item.columns) for item in data.all]
    asked = [base_digest(models.base), [item.name for item in data.asked], columns, graders, max_new_tokens]
    of_base = {key: value for key, value in described.items() if key != "artifact"}
    # Of the artifact, what the base model is made and read with.
    with_artifact = [models.own, models.exporter, models.template]
    return _digest([described, *asked]), _digest([of_base, *asked, *with_artifact])


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
