"""What a plan gives away, where something stands before its check."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from transformers import PreTrainedModel

from bakeout.export.baking.bake import bake
from bakeout.export.certificate.measuring import Data, Measuring
from bakeout.export.certificate.models import Models
from bakeout.export.certificate.protocol import QUICK
from bakeout.export.certificate.sections.give_away import give_away
from bakeout.export.certificate.step_journal import Journal
from bakeout.export.evaluation.grading import EXACT_GRADER
from bakeout.models.checkpoint.checkpoint_files import load_model
from bakeout.models.data.row_source import as_source
from bakeout.models.data.rows import read_records
from bakeout.models.data.tokenizers.tokenization import load_tokenizer
from bakeout.models.network.probing import probe_keys
from bakeout.models.plan import Check, Intervention
from bakeout.models.progress import untracked
from bakeout.models.reference.hooks import Hooks
from bakeout.models.reference.weight_edits import apply_weight_edit

from tests.baked_parity import key_space_detection, neuron_adjust, plan_of
from tests.weight_plans import zero_columns

DATA = Data("asked", "forget", as_source([{"prompt": f"{n} + {n} ="} for n in range(12)], "asked"), EXACT_GRADER)


@pytest.mark.parametrize("edits_weights", [False, True])
def test_keys_are_those_behind_what_stands_before_the_check(
    edits_weights: bool, llama_checkpoint: Path, llama_onnx: Path, tmp_path: Path
) -> None:
    prompts = [record.prompt_ids for record in read_records(DATA.source, load_tokenizer(llama_checkpoint))]
    model = load_model(llama_checkpoint)
    earlier = (
        zero_columns(0, 1, columns=range(0, 96, 2)) if edits_weights else neuron_adjust(model, "threshold", prompts)
    )
    apply_weight_edit(model, earlier)
    check = key_space_detection(model, (2,), "query", prompts, [earlier])
    plan = plan_of(load_model(llama_checkpoint), [earlier, check], prompts)
    artifact = bake(llama_onnx, plan, tmp_path / "artifact", canary=False).directory
    with Models(artifact, llama_checkpoint) as models:
        section = give_away(Measuring(QUICK, models, [DATA], Journal(None, ""), 32, None, untracked), ())
    (share,) = [figure.value for figure in section.figures if figure.slice == "asked"]
    assert share == _inside(check, model, [earlier], prompts).mean() >= 0.5
    assert not _inside(check, load_model(llama_checkpoint), [], prompts).any()


def _inside(
    check: Check, model: PreTrainedModel, earlier: list[Intervention], prompts: list[list[int]]
) -> NDArray[np.bool_]:
    with Hooks(model, earlier):
        keys = probe_keys(model, prompts, layers=check.layers)[check.layers[0]]
    return check.nearness(check.margins(keys.astype(np.float64))) <= 1
