"""Errors that users see."""

from __future__ import annotations

import pickle

import pytest

from bakeout.export.recipes.recipe import RecipeError
from bakeout.graph_passes.errors import GraphError
from bakeout.models.data.row_source import DataError
from bakeout.models.errors import BakeoutError
from bakeout.models.plan.arrays import PlanError


@pytest.mark.parametrize("kind", [BakeoutError, DataError, GraphError, PlanError, RecipeError])
def test_an_error_reaches_another_process(kind: type[BakeoutError]) -> None:
    sent = pickle.loads(pickle.dumps(kind("It is broken.", "Mend it.")))
    assert type(sent) is kind
    assert (sent.cause, sent.remedy, str(sent)) == ("It is broken.", "Mend it.", "It is broken. Mend it.")
