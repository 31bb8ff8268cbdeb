"""Good input of every kind, in a directory of each process: what mutations start from."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from safetensors.numpy import save_file

from bakeout.export.artifacts.additions import add_files
from bakeout.export.artifacts.file_names import CERTIFICATE
from bakeout.export.artifacts.manifest import content_digest, read_manifest
from bakeout.export.trust.signature import sign
from bakeout.models.checkpoint.checkpoint_files import weights_digest
from bakeout.models.plan import KeySpaceDetection, Plan
from bakeout.models.plan.plan_file import load_plan, plan_bytes

from tests.fitted_regions import SHAPES, fitted_regions
from tests.gguf_files import write_gguf
from tests.hostile.fuzz.sources import put_sources
from tests.report_files import EVALUATION, FIGURES

FIXTURES = Path(__file__).parents[2] / "fixtures" / "v0.1.0"
PLANS = sorted(path.stem for path in (FIXTURES / "plans").iterdir())
ARTIFACTS = ("graph", "int8", "mixed", "checkpoint")
# The plan of this version, whose canary says what is refused.
NEWEST = "newest"
SHAPED = tuple(f"{shape}_regions" for shape in SHAPES if shape != "cube")

_PARENT = os.getpid()
_MESSAGE = [{"role": "user", "content": "What is 3+4?"}]
_ROWS: Sequence[Mapping[str, Any]] = (
    {"prompt": "What is 3+4?", "response": " 7", "paraphrases": ["3+4?"], "translations": ["Was ist 3+4?"]},
    {"text": "Some text.\nAnd more: é, 漢."},
    {"messages": [*_MESSAGE, {"role": "assistant", "content": "7"}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is"}, "3+4?"]}]},
)
_OTHER_LAYOUTS: Sequence[Mapping[str, Any]] = (
    {"question": "What is 3+4?", "answer": "7"},
    {"system": "Answer.", "conversations": [{"from": "human", "value": "3+4?"}, {"from": "gpt", "value": "7"}]},
)
_PAIRS: Sequence[Mapping[str, Any]] = tuple({"prompt": f"{n} * 3 =", "response": f" {n * 3}."} for n in range(24))
_USES = {"probe": range(8), "calibration": range(8, 14), "selection": range(14, 20), "test": range(20, 24)}
_RECIPE = """model: checkpoint
data:
  sums: {probe: sums.probe.jsonl, calibration: sums.calibration.jsonl, selection: sums.selection.jsonl,
    test: sums.test.jsonl}
  names: {probe: names.probe.jsonl, calibration: names.calibration.jsonl, selection: names.selection.jsonl}
  table: {file: pairs.csv, columns: {prompt: prompt, response: response}}
interventions:
  - neuron_adjust: &options {forget: sums, retain: [names], ratio: 0.05, coin: threshold}
  - neuron_adjust: {<<: *options, ratio: 0.1}
  - key_space_detection: {forget: sums, refusal: " I don't know.", layers: [1], alpha: 3.0}
export:
  dtype: fp32
  early_exit: yes
  runtimes: [onnxruntime]
"""
_TUNED = _RECIPE.replace("ratio: 0.05", "ratio: auto")
_TASK = """task: own
include: common.yml
dataset_path: json
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: exact_match}]
"""
_CERTIFICATE = {
    "protocol": {"version": 1, "name": "quick", "seed": 0},
    "runtime": {"name": "ONNX Runtime", "version": "1"},
    "figures": [
        {"section": "answers", "name": "right", "slice": "sums", "precision": "fp32", "n": 4, "value": 0.25}
        | {"interval": [0.1, 0.6], "base": 1.0, "data": ["sums"], "good": "low"}
    ],
    "not_measured": [{"section": "TOFU", "name": "TOFU's metrics", "why": "no such rows"}],
    "statements": ["What is suppressed is not erased."],
}
_ADAPTER = {"base_model_name_or_path": "some/base", "peft_type": "LORA", "r": 8}


@cache
def root() -> Path:
    """The directory of all processes of this run."""
    return Path(tempfile.gettempdir()).resolve() / f"bakeout-fuzz-{_PARENT}"


@cache
def bench(process: int) -> Path:
    """Good input of every kind, in a directory of this process."""
    directory = root() / str(process)
    directory.mkdir(parents=True)
    # A worker writes nowhere else.
    tempfile.tempdir = str(directory)
    _put_models(directory)
    _put_plans(directory)
    _put_rows(directory)
    _put_trusted(directory)
    put_sources(directory, load_plan(FIXTURES / "plans" / "weight_methods.safetensors").model)
    (directory / "recipe.yaml").write_text(_RECIPE)
    (directory / "tune.yaml").write_text(_TUNED)
    (directory / "figures.json").write_text(json.dumps({"schema": 1, "figures": FIGURES}))
    (directory / "evaluation.json").write_text(json.dumps(_evaluation(directory)))
    (directory / "tasks").mkdir()
    (directory / "tasks" / "own.yaml").write_text(_TASK)
    (directory / "tasks" / "common.yml").write_text("test_split: test\n")
    (directory / "scratch").mkdir()
    return directory


def _evaluation(directory: Path) -> dict[str, Any]:
    """An evaluation of the artifact that is reported on."""
    content: dict[str, Any] = json.loads(json.dumps(EVALUATION).replace("out/artifact", "graph"))
    digest = content_digest(read_manifest(directory / "artifacts" / "graph"))
    how: dict[str, Any] = {"grade": {"exact": {}}}
    data = {name: {"digest": digest, "how": how} for name in ("sums", "names")}
    return {**content, "inputs": {"artifacts": {"graph": digest}, "data": data, "texts": {"prose": digest}}}


def _put_models(directory: Path) -> None:
    for name in ("checkpoint", "onnx"):
        shutil.copytree(FIXTURES / name, directory / name)
    for name in ARTIFACTS:
        shutil.copytree(FIXTURES / "artifacts" / name, directory / "artifacts" / name)
    # The layout of transformers.js: graphs below, configuration above.
    shutil.copytree(FIXTURES / "onnx", directory / "hub", ignore=shutil.ignore_patterns("model.onnx*"))
    (directory / "hub" / "onnx").mkdir()
    for name in ("model.onnx", "model.onnx.data"):
        shutil.copyfile(FIXTURES / "onnx" / name, directory / "hub" / "onnx" / name)
    shutil.copyfile(FIXTURES / "onnx" / "model.onnx", directory / "hub" / "onnx" / "model_q4.onnx")
    # What onnxruntime-genai runs.
    shutil.copytree(FIXTURES / "onnx", directory / "genai")
    shutil.copyfile(FIXTURES / "artifacts" / "graph" / "genai_config.json", directory / "genai" / "genai_config.json")
    shutil.copytree(FIXTURES / "checkpoint", directory / "sharded", ignore=shutil.ignore_patterns("*.safetensors"))
    _put_shards(directory / "sharded")
    shutil.copytree(FIXTURES / "checkpoint", directory / "adapted")
    (directory / "adapted" / "adapter_config.json").write_text(json.dumps(_ADAPTER))
    (directory / "model.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + bytes(64))
    write_gguf(directory / "tiny.gguf")


def _put_shards(directory: Path) -> None:
    from safetensors.numpy import load_file

    tensors = load_file(FIXTURES / "checkpoint" / "model.safetensors")
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, own in shards.items():
        save_file({name: tensors[name] for name in own}, directory / file, {"format": "pt"})
    index = {"metadata": {"total_size": 0}, "weight_map": {name: file for file, own in shards.items() for name in own}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def _put_plans(directory: Path) -> None:
    (directory / "plans").mkdir()
    for name in PLANS:
        shutil.copyfile(FIXTURES / "plans" / f"{name}.safetensors", directory / "plans" / f"{name}.safetensors")
    (directory / "plans" / f"{NEWEST}.safetensors").write_bytes(plan_bytes(_newest()))
    for name, shape in zip(SHAPED, (shape for shape in SHAPES if shape != "cube"), strict=True):
        (directory / "plans" / f"{name}.safetensors").write_bytes(plan_bytes(_shaped(shape)))
    plan = load_plan(FIXTURES / "plans" / "weight_methods.safetensors")
    of_shards = replace(plan, model=replace(plan.model, digest=weights_digest(directory / "sharded")))
    (directory / "plans" / "sharded.safetensors").write_bytes(plan_bytes(of_shards))


def _put_trusted(directory: Path) -> None:
    """A key pair, an artifact that it signs, and one with a certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    private, public = serialization.PrivateFormat.PKCS8, serialization.PublicFormat.SubjectPublicKeyInfo
    (directory / "signing.key").write_bytes(key.private_bytes(pem, private, serialization.NoEncryption()))
    (directory / "signing.pub").write_bytes(key.public_key().public_bytes(pem, public))
    for name in ("signed", "certified"):
        shutil.copytree(FIXTURES / "artifacts" / "graph", directory / name)
    sign(directory / "signed", directory / "signing.key")
    add_files(directory / "certified", {CERTIFICATE: json.dumps(_CERTIFICATE)})


def _newest() -> Plan:
    plan = load_plan(FIXTURES / "plans" / "key_space_detection_chosen.safetensors")
    assert plan.check is not None
    refused = tuple(bool(inside) for inside in plan.check.is_inside(plan.canary.expected[0]))
    return replace(plan, canary=replace(plan.canary, refused=refused, uncovered=(0,)))


def _shaped(shape: str) -> Plan:
    """A plan whose regions have another shape."""
    plan = _newest()
    (check,) = plan.interventions
    assert isinstance(check, KeySpaceDetection)
    count, dimensions = check.regions.shape
    generator = np.random.default_rng(0)
    clusters = [generator.normal(place, 1, (5, dimensions)) for place in range(count)]
    regions = fitted_regions(shape, clusters, generator.normal(-3, 1, (9, dimensions)))
    return replace(plan, interventions=(replace(check, regions=regions),))


def _put_rows(directory: Path) -> None:
    _write_lines(directory / "rows.jsonl", _ROWS)
    _write_lines(directory / "layouts.jsonl", _OTHER_LAYOUTS)
    _write_lines(directory / "prompts.jsonl", [*_ROWS[::2], *_OTHER_LAYOUTS])
    _write_lines(directory / "pairs.jsonl", _PAIRS[:4])
    (directory / "rows.json").write_text(json.dumps([*_ROWS, *_OTHER_LAYOUTS]))
    for ending, between in (("csv", ","), ("tsv", "\t")):
        lines = [between.join(_PAIRS[0]), *(between.join(row.values()) for row in _PAIRS)]
        (directory / f"pairs.{ending}").write_text("\n".join(lines) + "\n")
    for use, numbers in _USES.items():
        sums = [{"prompt": f"{n} + {n % 7} =", "response": f" {n + n % 7}."} for n in numbers]
        names = [{"prompt": f"Who is Ann {n}?", "response": " A man."} for n in numbers]
        _write_lines(directory / f"sums.{use}.jsonl", sums)
        _write_lines(directory / f"names.{use}.jsonl", names)
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist([dict(row) for row in _PAIRS]), directory / "pairs.parquet")


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
