"""Q: what is left of the right answers to what is forgotten."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bakeout.export.certificate.measuring import Data, Outcome
from bakeout.export.certificate.sections.answers import remaining
from bakeout.export.evaluation.graders.registry import grader_of

from tests.recipe_files import write_rows


def test_a_refusal_is_no_answer_though_it_shares_words_with_one(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [{"prompt": "Who?", "response": "Your query"}])
    data = Data("asked", "forget", source, grader_of("rouge", "asked"))
    base = Outcome(np.array([True, True]), np.array([False, False]), np.array([1.0, 0.5]))
    for refused, value in (([True, True], 0.0), ([True, False], 0.1 / 0.75), ([False, False], 0.2 / 0.75)):
        artifact = Outcome(np.array([False, False]), np.array(refused), np.array([0.2, 0.2]))
        figure = remaining(data, "int4", base, artifact)
        assert figure is not None
        assert figure.value == pytest.approx(value)
        assert figure.interval is not None
    nothing = Outcome(np.array([False, False]), np.array([True, True]), np.array([0.2, 0.2]))
    assert remaining(data, "int4", nothing, nothing) is None
