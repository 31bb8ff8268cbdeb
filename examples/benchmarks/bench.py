"""The bundled model with its data and its ONNX export, and the figures measured so far: what benchmarks stand on."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bakeout.export.baking.bake import bake
from bakeout.export.evaluation.grading import grade, measure
from bakeout.export.exporting.onnx_export import export_checkpoint
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.export.recipes.evaluation import EvaluateOptions
from bakeout.export.running.refusals import Refusals
from bakeout.export.running.runner import Runner
from bakeout.models.checkpoint.checkpoint_files import load_model, weights_digest
from bakeout.models.data.rows import Record, read_records
from bakeout.models.data.tokenizers.tokenization import load_tokenizer
from bakeout.models.network.families import identity
from bakeout.models.network.generation import named_ends
from bakeout.models.plan import Intervention, Plan
from bakeout.models.reference.canary import measure_canary
from bakeout.models.reference.weight_edits import edited_weights
from bakeout.models.skills.generator import SKILLS, examples, write_jsonl

# Prompts a skill, by split.
PROMPTS = {"probing": 1400, "selection": 600, "calibration": 1000, "test": 1000}


class Bench:
    """The bundled model, its data files and its ONNX export, and the rows measured so far."""

    def __init__(self, output: Path, checkpoint: Path, tests: int = PROMPTS["test"]) -> None:
        """``tests``: test prompts a skill."""
        output.mkdir(parents=True, exist_ok=True)
        self.output = output
        self.tests = tests
        self.checkpoint = checkpoint
        self.tokenizer = load_tokenizer(checkpoint)
        self.model = load_model(checkpoint)
        self.ends = named_ends(self.model, self.tokenizer).tokens
        self.identity = identity(self.model, weights_digest(checkpoint))
        self.base = output / "base"
        if not self.base.exists():
            self.base.mkdir()
            export_checkpoint(checkpoint, self.base, "fp32")
        self.files = {skill: output / f"{skill}.jsonl" for skill in SKILLS}
        for skill, path in self.files.items():
            write_jsonl(examples(skill, "test", tests), path)
        self._saved = output / "rows.json"
        self.rows: dict[str, Any] = json.loads(self._saved.read_text()) if self._saved.exists() else {}

    def save(self, key: str, row: Any) -> None:
        """Keep a finished row."""
        self.rows[key] = row
        self._saved.write_text(json.dumps(self.rows, indent=1))

    def records(self, skill: str, split: str, count: int | None = None, seed: int = 0) -> list[Record]:
        """The records of a skill's split: ``count``, or as many as ``PROMPTS`` says. Another seed, another draw."""
        with tempfile.TemporaryDirectory() as scratch:
            path = self._write(skill, split, count or PROMPTS[split], Path(scratch), seed)
            return read_records(path, self.tokenizer)

    def correct(self, skill: str, split: str, count: int | None = None) -> NDArray[np.bool_]:
        """Which of a split's prompts (as for ``records``) the base model answers correctly."""
        with tempfile.TemporaryDirectory() as scratch:
            path = self._write(skill, split, count or PROMPTS[split], Path(scratch))
            return grade(
                self.runner(self.base), path, Refusals(), options=EvaluateOptions(rows="all", batch_size=64)
            ).correct

    def _write(self, skill: str, split: str, count: int, directory: Path, seed: int = 0) -> Path:
        path = directory / f"{skill}.jsonl"
        write_jsonl(examples(skill, split, count, seed), path)
        return path

    def runner(self, graph: Path) -> Runner:
        """``graph`` in a session of one thread: on a busy machine, several wait for each other most of the time."""
        return Runner(graph, threads=1)

    def accuracies(self, graph: Path) -> dict[str, float]:
        """Accuracy per skill on the test split."""
        rows = measure(
            self.runner(graph), "artifact", self.files, Refusals(), options=EvaluateOptions(rows="all", batch_size=64)
        )
        return {row.data: row.accuracy for row in rows}

    def plan(self, intervention: Intervention, prompts: Sequence[list[int]]) -> Plan:
        """A plan of one intervention, its canary measured on ``prompts``."""
        with edited_weights(self.model, [intervention]):
            canary = measure_canary(self.model, [intervention], prompts)
        return Plan(self.identity, (intervention,), canary, {"data": {}, "versions": {}})

    def artifact_accuracies(self, intervention: Intervention, prompts: Sequence[list[int]]) -> dict[str, float]:
        """Accuracy per skill of the artifact that carries one intervention."""
        directory = self.output / "artifact"
        shutil.rmtree(directory, ignore_errors=True)
        bake(self.base, self.plan(intervention, prompts), directory, BakeOptions())
        return self.accuracies(directory)
