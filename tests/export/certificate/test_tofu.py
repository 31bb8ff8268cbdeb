"""TOFU's metrics as figures of a certificate: of which rows they are, and what cannot be had."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bakeout.export.certificate.measuring import Data, Measuring
from bakeout.export.certificate.models import Models
from bakeout.export.certificate.protocol import QUICK
from bakeout.export.certificate.sections.tofu import tofu
from bakeout.export.certificate.sections.utility import utility
from bakeout.export.certificate.step_journal import Journal
from bakeout.export.certificate.tofu_metrics import Part
from bakeout.export.evaluation.grading import EXACT_GRADER
from bakeout.models.progress import untracked

FIXTURES = Path(__file__).parents[2] / "fixtures" / "v0.1.0"


@pytest.fixture
def measuring() -> Iterator[Measuring]:
    with Models(FIXTURES / "artifacts" / "mixed", FIXTURES / "onnx") as models:
        yield Measuring(QUICK, models, [], Journal(None, ""), 32, None, untracked)


def test_tofu_figures_name_the_rows_that_they_are_of(measuring: Measuring) -> None:
    parts: dict[Part, Data] = {}
    every: tuple[Part, ...] = ("forget", "retain", "ra", "wf")
    for rows, part in enumerate(every, start=2):
        parts[part] = Data(f"data of {part}", "retain", FIXTURES, EXACT_GRADER)
        measuring.journal.step(f"tofu {part}", partial(_metrics, part, rows, refuses=False))
    never_saw = {"forget_truth_ratio": _metrics("forget", 4, refuses=False)["forget_truth_ratio"]}
    section, metrics = tofu(measuring, parts, never_saw)
    figures = {figure.name: (figure.data, figure.n, figure.good) for figure in section.figures}
    kept = tuple(f"data of {part}" for part in ("retain", "ra", "wf"))
    assert figures["model_utility"] == (kept, 3 + 4 + 5, "high")
    assert figures["forget_quality"] == (("data of forget",), 2, "high")
    assert figures["forget_Q_A_Prob"] == (("data of forget",), 2, "low")
    assert metrics["model_utility"] == {"agg_value": pytest.approx(0.5)}


def test_forget_quality_is_not_measured_where_rows_are_refused(measuring: Measuring) -> None:
    parts: dict[Part, Data] = {"forget": Data("forget", "forget", FIXTURES, EXACT_GRADER)}
    measuring.journal.step("tofu forget", partial(_metrics, "forget", 3, refuses=True))
    never_saw = {"forget_truth_ratio": _metrics("forget", 3, refuses=False)["forget_truth_ratio"]}
    section, metrics = tofu(measuring, parts, never_saw)
    assert "forget_quality" not in metrics
    (told,) = [entry for entry in section.not_measured if entry.name == "forget_quality"]
    assert "refused" in told.why


@pytest.mark.parametrize("hides", [False, True])
def test_only_a_certificate_that_hides_nothing_says_which_rows_cannot_be_read(
    measuring: Measuring, tmp_path: Path, hides: bool
) -> None:
    rows = tmp_path / "ada-example.jsonl"
    rows.write_text("no row", encoding="utf-8")
    of_ada = Data("0123456789abcdef", "retain", rows, EXACT_GRADER)
    measuring = replace(measuring, hides=hides, data=[of_ada])
    measuring.journal.step(f"refused {of_ada.name}", lambda: [False])
    reasons = [
        entry.why for entry in tofu(measuring, {"retain": of_ada}, None)[0].not_measured if "of 0123" in entry.name
    ]
    reasons += [entry.why for entry in utility(measuring).not_measured if "on 0123" in entry.name]
    assert len(reasons) == 2
    assert all(("ada-example" in reason) != hides for reason in reasons)


def _metrics(part: Part, rows: int, *, refuses: bool) -> dict[str, Any]:
    """As of `open-unlearning`: every value is 0.5, but that of the first row where it ``refuses`` that."""
    probabilities = {"agg_value": 0.5, "value_by_index": {str(row): {"prob": 0.5} for row in range(rows)}}
    ratios = {str(row): None if refuses and row == 0 else {"score": 0.5} for row in range(rows)}
    names = ("Q_A_Prob", "Q_A_ROUGE", *(("Q_A_Prob_normalised",) if part in ("ra", "wf") else ()))
    return {
        **{f"{part}_{name}": probabilities for name in names},
        "forget_truth_ratio" if part == "forget" else f"{part}_Truth_Ratio": {
            "agg_value": 0.5,
            "value_by_index": ratios,
        },
    }
