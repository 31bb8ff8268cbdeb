"""The bundled model, baked and run, against the PyTorch reference: 200 prompts, half of them to be forgotten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bakeout.export.baking.bake import bake
from bakeout.export.exporting.onnx_export import export_checkpoint
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.export.running.runner import Runner
from bakeout.export.verification.parity import check_parity
from bakeout.models.checkpoint.checkpoint import Checkpoint
from bakeout.models.checkpoint.checkpoint_files import load_model, weights_digest
from bakeout.models.data.rows import Record, read_records
from bakeout.models.data.tokenizers.tokenization import load_tokenizer
from bakeout.models.methods.key_space_detection.detection import fit_key_space_detection
from bakeout.models.methods.key_space_detection.options import KeySpaceDetectionOptions
from bakeout.models.methods.key_space_detection.refusal_tokens import refusal_tokens
from bakeout.models.methods.neuron_adjust.fit import fit_neuron_adjust
from bakeout.models.methods.neuron_adjust.options import NeuronAdjustOptions
from bakeout.models.network.families import identity
from bakeout.models.network.probing import probe_keys, probe_neurons
from bakeout.models.plan import Intervention, Plan
from bakeout.models.progress import untracked
from bakeout.models.reference.canary import measure_canary
from bakeout.models.skills import checkpoint_directory
from bakeout.models.skills.generator import examples, write_jsonl
from bakeout.models.skills.tokenizer import REFUSAL

RETAINED = ("code", "german", "facts", "unknown")


def records(skill: str, split: str, count: int, scratch: Path) -> list[Record]:
    path = scratch / f"{skill}.{split}.jsonl"
    write_jsonl(examples(skill, split, count), path)
    return read_records(path, load_tokenizer(checkpoint_directory()))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bundled")
    export_checkpoint(checkpoint_directory(), directory, "fp32")
    return directory


def intervention(kind: str, model: Any, scratch: Path) -> Intervention:
    forget = records("math", "probing", 200, scratch)
    retain = [record for skill in RETAINED for record in records(skill, "probing", 60, scratch)]
    if kind == "key_space_detection":
        keys = {
            split: probe_keys(model, [record.prompt_ids for record in records("math", split, 250, scratch)], layers=[0])
            for split in ("probing", "calibration")
        }
        refusal = refusal_tokens(REFUSAL, load_tokenizer(checkpoint_directory()), [1])
        return fit_key_space_detection(
            {"math": keys["probing"]},
            {"math": keys["calibration"]},
            {},
            KeySpaceDetectionOptions(forget="math", layers=[0], cubes=4),
            refusal=refusal,
        )
    statistics = probe_neurons(model, forget), probe_neurons(model, retain)
    options = NeuronAdjustOptions(forget="math", ratio=0.2, coin=kind)
    return fit_neuron_adjust(*statistics, options)


@pytest.mark.parametrize("kind", ["threshold", "expected", "key_space_detection"])
def test_answers_are_the_references_and_not_the_bases(kind: str, base: Path, tmp_path: Path) -> None:
    model = load_model(checkpoint_directory())
    edit = intervention(kind, model, tmp_path)
    asked = [record.prompt_ids for record in records("math", "test", 100, tmp_path)]
    others = [record.prompt_ids for skill in RETAINED for record in records(skill, "test", 25, tmp_path)]
    plan = Plan(
        identity(model, weights_digest(checkpoint_directory())),
        (edit,),
        measure_canary(model, [edit], asked),
        {"data": {}, "versions": {}},
    )
    baked = bake(base, plan, tmp_path / "artifact", BakeOptions())

    ok, detail = check_parity(
        baked.directory / "model.onnx", plan, Checkpoint(checkpoint_directory()), asked + others, untracked
    )
    assert ok, detail
    before, after = (Runner(directory).generate(asked, 16) for directory in (base, baked.directory))
    assert np.mean([one != other for one, other in zip(before, after, strict=True)]) > 0.5
