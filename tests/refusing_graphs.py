"""Graphs baked to refuse chosen prompts, and what they must do, computed with the unbaked graph and the automaton."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from bakeout.graph_passes.graph.anatomy import read_anatomy
from bakeout.graph_passes.graph.graph_file import graph_bytes, load_graph, save_graph
from bakeout.graph_passes.key_space_detection.detection_pass import KeySpaceDetectionPass
from bakeout.models.plan import Cubes, KeySpaceDetection, Positions, first_of_mean
from bakeout.models.reference.refusal import positions_tested, refuse_row

from tests.tiny_models import END_OF_TEXT_ID

# "No no, no!" in the bytes of the tiny tokenizer would do; repeated tokens are what a refusal's state is tested by.
REFUSAL = np.array([80, 113, 80, 113, 114, END_OF_TEXT_ID])
SUPPRESSED, SUPPRESSED_END = -30000.0, -60000.0

Array = NDArray[Any]

_TYPES: Mapping[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
}


class Session:
    """A graph in ONNX Runtime on one thread; outputs by name."""

    def __init__(self, model: ir.Model | Path, data: Path | None = None) -> None:
        """``data``: where the data files of an ``ir.Model`` lie."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        if data is not None:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(data))
        source = model if isinstance(model, Path) else graph_bytes(model)
        self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._past = {i.name: i for i in self._session.get_inputs() if i.name.startswith("past_key_values")}
        self._takes_positions = "position_ids" in {i.name for i in self._session.get_inputs()}

    def step(self, tokens: Array, mask: Array, before: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Run once. ``before`` are the outputs of the step before."""
        fed: dict[str, Array] = {"input_ids": tokens, "attention_mask": mask}
        if self._takes_positions:
            fed["position_ids"] = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, -tokens.shape[1] :]
        for name, value in self._past.items():
            empty = np.zeros((len(tokens), value.shape[1], 0, value.shape[3]), _TYPES[value.type])
            fed[name] = before[name.replace("past_key_values", "present")] if before else empty
        return dict(zip(self._outputs, self._session.run(None, fed), strict=True))


def with_keys(directory: Path) -> Session:
    """The unbaked graph, with the key vectors of every layer as more outputs: ``key.0`` and so on."""
    model = load_graph(directory / "model.onnx")
    for layer in read_anatomy(model).layers:
        model.graph.outputs.append(layer.key_vector)
        layer.key_vector.name = f"key.{layer.index}"
        layer.key_vector.type = layer.key_vector.type or ir.TensorType(layer.dtype)
    model.ir_version = 10
    return Session(model, directory)


def detection_of(
    directory: Path,
    prompts: Sequence[Sequence[int]],
    *,
    layers: Sequence[int],
    positions: Positions = "query",
    query_end: Sequence[int] = (),
    query_start: Sequence[int] = (),
) -> KeySpaceDetection:
    """A narrow cube around the key of each prompt's last token, or around its mean key."""
    session = with_keys(directory)
    centres = []
    for prompt in prompts:
        out = session.step(np.array([prompt]), np.ones((1, len(prompt)), np.int64))
        keys = np.concatenate([out[f"key.{layer}"].reshape(len(prompt), -1) for layer in layers], axis=1)
        first = first_of_mean(prompt, query_start) if positions == "mean" else len(prompt) - 1
        centres.append(keys[first:].mean(axis=0, dtype=np.float64))
    centre = np.stack(centres)
    return KeySpaceDetection(
        layers=tuple(layers),
        regions=Cubes(centre, np.full(centre.shape, 1e-3)),
        alpha=np.ones(len(centre)),
        skills=("forgotten",) * len(centre),
        refusal=REFUSAL,
        positions=positions,
        query_end=tuple(query_end),
        query_start=tuple(query_start),
    )


def bake(source: Path, directory: Path, detection: KeySpaceDetection, **options: bool) -> Path:
    """A copy of an ONNX directory that refuses."""
    shutil.copytree(source, directory, ignore=shutil.ignore_patterns("model.onnx"))
    model = load_graph(source / "model.onnx")
    KeySpaceDetectionPass(detection, 0, **options)(model)
    model.ir_version = 10
    save_graph(model, directory / "model.onnx")
    return directory


@dataclass
class Expected:
    """The conversation as it must go: the unbaked graph beside a latch per slot."""

    session: Session
    detection: KeySpaceDetection
    before: dict[str, Array] | None = None
    said: Array = field(default_factory=lambda: np.zeros((0, 0), np.int64))

    def step(self, tokens: Array, mask: Array) -> tuple[Array, Array]:
        """Logits [B, W, vocabulary], and which positions are refused, bool [B, W]."""
        rows, width = tokens.shape
        past = mask.shape[1] - width
        self.before = self.session.step(tokens, mask, self.before)
        layers = [self.before[f"key.{layer}"].reshape(rows, width, -1) for layer in self.detection.layers]
        keys = np.concatenate(layers, axis=-1).astype(np.float64)
        if self.detection.positions == "mean":
            # At each row's last token; the tokens before it are not tested.
            keys = np.stack([self._with_mean(*row, past) for row in zip(keys, tokens, mask, strict=True)])
        margins = self.detection.margins(keys.reshape(rows * width, -1))
        inside = (margins <= self.detection.alpha).any(axis=-1).reshape(rows, width)
        said, latched = np.zeros((2, rows, width), np.int64)
        for row in range(rows):
            real = mask[row, past:].astype(bool).tolist()
            given, end = tokens[row].tolist(), self.detection.query_end
            tested = positions_tested(
                self.detection.positions, has_past=past > 0, real=real, tokens=given, query_end=end
            )
            newest = np.flatnonzero(mask[row, :past])
            outcome = refuse_row(
                self.detection.refusal.tolist(),
                self.detection.positions,
                past_said=int(self.said[row, newest[-1]]) if len(newest) else 0,
                tokens=given,
                real=real,
                inside=(inside[row] & tested).tolist(),
            )
            said[row], latched[row] = outcome.said, outcome.latched
        self.said = np.concatenate([self.said.reshape(rows, past), latched], axis=1)
        logits = self.before["logits"].copy()
        logits[said > 0] = SUPPRESSED
        logits[said > 0, self.detection.refusal[-1]] = SUPPRESSED_END
        for row, position in np.argwhere(said > 0):
            logits[row, position, self.detection.refusal[said[row, position] - 1]] = 0
        return logits, said > 0

    def _with_mean(self, keys: Array, tokens: Array, mask: Array, past: int) -> Array:
        real = np.flatnonzero(mask[past:])
        if len(real):
            has_past = bool(mask[:past].any())
            first = first_of_mean(tokens[real].tolist(), self.detection.query_start, has_past=has_past)
            keys[real[-1]] = keys[real[first:]].mean(axis=0)
        return keys
