"""Mixtures of experts in a certificate: what their regions give away, and where their tokens go."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bakeout.export.baking.bake import bake
from bakeout.export.certificate.measuring import Data, Measuring, Role
from bakeout.export.certificate.models import Models
from bakeout.export.certificate.protocol import QUICK
from bakeout.export.certificate.sections.give_away import give_away
from bakeout.export.certificate.sections.utility import routing
from bakeout.export.certificate.step_journal import Journal
from bakeout.export.evaluation.grading import EXACT_GRADER
from bakeout.export.exporting.onnx_export import export_checkpoint
from bakeout.models.data.row_source import as_source
from bakeout.models.data.rows import read_records
from bakeout.models.network.probing import probe_keys
from bakeout.models.progress import untracked

from tests.baked_parity import key_space_detection, model_of, plan_of
from tests.conftest import CheckpointOf
from tests.tiny_models import random_prompts

PROMPTS = random_prompts(24, seed=3, shortest=6, longest=6)
TEXTS = [{"prompt": f"Who is number {n}?", "response": f" Somebody {n}."} for n in range(6)]


@pytest.fixture(scope="module")
def measuring(checkpoint_of: CheckpointOf, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measuring]:
    """A check on what routers of Mixtral read; there is no feed-forward layer that every token sees."""
    directory = tmp_path_factory.mktemp("mixtral")
    checkpoint = checkpoint_of("mixtral")
    model = model_of(checkpoint)
    plan = plan_of(model, [key_space_detection(model, (1,), "query", PROMPTS, keys="router_input")], PROMPTS)
    (directory / "onnx").mkdir()
    export_checkpoint(checkpoint, directory / "onnx")
    artifact = bake(directory / "onnx", plan, directory / "artifact", canary=False).directory
    names: tuple[Role, Role] = ("forget", "retain")
    data = [Data(name, name, as_source(TEXTS[place::2], name), EXACT_GRADER) for place, name in enumerate(names)]
    with Models(artifact, checkpoint) as models:
        yield Measuring(QUICK, models, data, Journal(None, ""), 32, None, untracked)


@pytest.mark.slow
def test_queries_are_compared_by_the_keys_that_the_check_compares(measuring: Measuring, tmp_path: Path) -> None:
    figures = {(figure.name, figure.slice): figure.value for figure in give_away(measuring, ()).figures}
    check, checkpoint = measuring.models.plan.check, measuring.models.checkpoint
    assert check is not None
    assert checkpoint is not None
    for data in measuring.data:
        asked = [record.prompt_ids for record in read_records(data.source, measuring.models.tokenizer)]
        keys = probe_keys(model_of(checkpoint.directory), asked, layers=[1], keys="router_input")[1]
        inside = check.nearness(check.margins(keys.astype(np.float64))) <= 1
        assert figures["candidate queries inside a region", data.name] == np.mean(inside)


@pytest.mark.slow
def test_routing_is_measured_on_what_is_retained(measuring: Measuring) -> None:
    section = routing(measuring)
    assert not section.not_measured
    (figure,) = section.figures
    assert (figure.slice, figure.data) == ("retain", ("retain",))
    # A check changes nothing before it refuses.
    assert figure.value == 1
    records = read_records(measuring.data[1].source, measuring.models.tokenizer)
    assert figure.n == sum(len(record.prompt_ids + record.response_ids) for record in records)
