"""Forms of questions that a model's context does not hold are left out of a certificate, and not its end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bakeout.export.certificate.figures import Section
from bakeout.export.certificate.measuring import Data, Measuring
from bakeout.export.certificate.models import Models
from bakeout.export.certificate.protocol import QUICK
from bakeout.export.certificate.sections.attacks import forms, mixed_questions
from bakeout.export.certificate.step_journal import Journal
from bakeout.export.evaluation.grading import EXACT_GRADER
from bakeout.models.data.row_source import as_source
from bakeout.models.progress import untracked

FIXTURES = Path(__file__).parents[2] / "fixtures" / "v0.1.0"
SUMS = [{"prompt": f"{n} + 1 =", "response": f" {n + 1}"} for n in range(2)]
# Of one of two questions, both together are too long.
NAMES = [{"prompt": "Who is it?", "response": " Me."}, {"prompt": f"Who {'really ' * 4}is it?", "response": " Me."}]


def _measured(directory: Path, names: Sequence[Mapping[str, str]], context: int) -> tuple[Section, Section]:
    """Forms and mixed questions of models whose context is ``context`` tokens; a token is a byte."""
    for name in ("artifacts/mixed", "onnx"):
        copy = shutil.copytree(FIXTURES / name, directory / name)
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps({**config, "max_position_embeddings": context}))
    data = [
        Data("sums", "forget", as_source(SUMS, "sums"), EXACT_GRADER),
        Data("names", "retain", as_source(names, "names"), EXACT_GRADER),
    ]
    protocol = replace(QUICK, rows=2, attack_prompts=2)
    with Models(directory / "artifacts/mixed", directory / "onnx") as models:
        measuring = Measuring(protocol, models, data, Journal(None, ""), 4, None, untracked)
        return forms(measuring), mixed_questions(measuring)


def test_what_the_context_does_not_hold_is_left_out(tmp_path: Path) -> None:
    attacks, both = _measured(tmp_path, NAMES, 45)
    asked = {figure.slice.partition(", ")[2] for figure in attacks.figures}
    assert {"none", "zero_think"} <= asked
    assert "less_think" not in asked
    (absent,) = [missing for missing in attacks.not_measured if "less_think" in missing.name]
    assert "the context does not hold them" in absent.why
    assert {figure.n for figure in both.figures} == {1}
    assert not both.not_measured


def test_no_two_questions_fit(tmp_path: Path) -> None:
    _, both = _measured(tmp_path, NAMES[:1], 15)
    assert not both.figures
    assert [missing.name for missing in both.not_measured] == [
        "two questions on sums, forget_first",
        "two questions on sums, retain_first",
    ]
