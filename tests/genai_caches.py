"""Graphs with the caches of onnxruntime-genai 0.18's builder, and a decode loop that keeps them as genai does.

The graphs are those of the installed builder, with the attributes, types and scales that the newer one writes:
``sliding_window_cache`` where a layer's cache forgets what has left its window, and int8 caches with a scale per
channel. ONNX Runtime 1.31 runs both.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

WINDOW = 6
# As genai allocates a window's cache on the CPU: with slack, which other numbers of slots take as well.
CAPACITY = WINDOW + 3
SCALE = 0.05
LONGEST = 48

Array = NDArray[Any]


def with_windows(source: Path, directory: Path, layers: Collection[int], *, forgets: bool = True) -> Path:
    """A copy of a builder's graph in which attention of these layers looks back over a window. ``forgets``: and keeps
    no more than that in its cache.
    """
    graph, save = _copy(source, directory)
    for layer, node in enumerate(_attention(graph)):
        if layer in layers:
            _set(node, "local_window_size", WINDOW)
            if forgets:
                _set(node, "sliding_window_cache", 1)
                _name_slots(graph, layer)
    return Path(save())


def with_integers(source: Path, directory: Path, layers: Collection[int], kind: int = TensorProto.INT8) -> Path:
    """A copy of a builder's graph in which these layers' caches are quantised: one scale per channel."""
    graph, save = _copy(source, directory)
    for layer, node in enumerate(_attention(graph)):
        if layer not in layers:
            continue
        entries = [value for value in (*graph.input, *graph.output) if f".{layer}." in value.name]
        for value in entries:
            value.type.tensor_type.elem_type = kind
        heads, size = (entries[0].type.tensor_type.shape.dim[axis].dim_value for axis in (1, 3))
        for name in ("k_scale", "v_scale"):
            scales = np.linspace(SCALE / 2, SCALE, heads * size, dtype=np.float32).reshape(1, heads, 1, size)
            graph.initializer.append(numpy_helper.from_array(scales, f"model.layers.{layer}.attn.{name}"))
        node.input.extend([""] * (12 - len(node.input)))
        node.input.extend(f"model.layers.{layer}.attn.{name}" for name in ("k_scale", "v_scale"))
        for name, value in (("k_quant_type", "PER_CHANNEL"), ("v_quant_type", "PER_CHANNEL")):
            _set(node, name, value)
        _set(node, "kv_cache_bit_width", 8)
    return Path(save())


def with_open_head_size(source: Path, directory: Path) -> Path:
    """A copy of a builder's graph whose caches have heads of no known size, as all have since 0.18."""
    graph, save = _copy(source, directory)
    for value in (*graph.input, *graph.output):
        if "key" in value.name or "value" in value.name:
            value.type.tensor_type.shape.dim[3].dim_param = "kv_cache_dim"
    return Path(save())


@dataclass
class Loop:
    """One row's decode loop over a graph, its caches in buffers that stay where they are (``shares``), or in memory of
    their own at every step. Caches that forget have the same few slots either way.
    """

    path: Path
    shares: bool

    def __post_init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        self._session = onnxruntime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        self._past = [value for value in self._session.get_inputs() if value.name.startswith("past")]
        self.tokens = 0
        self._buffers = {value.name: self._buffer(value) for value in self._past}

    def feed(self, tokens: Collection[int]) -> Array:
        """Run once: logits [tokens, vocabulary]."""
        self.tokens += len(tokens)
        binding = self._session.io_binding()
        binding.bind_cpu_input("input_ids", np.array([list(tokens)], np.int64))
        binding.bind_cpu_input("attention_mask", np.ones((1, self.tokens), np.int64))
        binding.bind_output("logits")
        for value in self._past:
            buffer, present = self._buffers[value.name], value.name.replace("past_key_values", "present")
            binding.bind_ortvalue_input(value.name, buffer)
            if self.shares or self._forgets(value):
                binding.bind_ortvalue_output(present, buffer)
            else:
                binding.bind_output(present)
        self._session.run_with_iobinding(binding)
        logits, *caches = binding.get_outputs()
        for value, cache in zip(self._past, caches, strict=True):
            # A buffer is NumPy's memory, which lives as long as the first value that was made of it.
            if not (self.shares or self._forgets(value)):
                self._buffers[value.name] = cache
        return np.asarray(logits.numpy()[0])

    def rewind(self, tokens: int) -> None:
        """Forget all but the first ``tokens``: only their number says what counts, where buffers are shared."""
        self.tokens = tokens
        if not self.shares:
            for name, buffer in self._buffers.items():
                kept = np.ascontiguousarray(buffer.numpy()[:, :, :tokens])
                self._buffers[name] = onnxruntime.OrtValue.ortvalue_from_numpy(kept)

    def answer(self, prompt: Collection[int], new: int, *, chunk: int = LONGEST) -> list[int]:
        """The next tokens after a prompt, greedily."""
        tokens = list(prompt)
        for start in range(0, len(tokens), chunk):
            logits = self.feed(tokens[start : start + chunk])
        said: list[int] = []
        while len(said) < new:
            said.append(int(logits[-1].argmax()))
            logits = self.feed(said[-1:])
        return said

    def _forgets(self, value: Any) -> bool:
        return bool(value.shape[2] == "past_sliding_length")

    def _buffer(self, value: Any) -> onnxruntime.OrtValue:
        slots = CAPACITY if self._forgets(value) else LONGEST if self.shares else 0
        dtype = {"tensor(float)": np.float32, "tensor(int8)": np.int8}[value.type]
        shape = (1, value.shape[1], slots, value.shape[3])
        return onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype))


def _copy(source: Path, directory: Path) -> tuple[onnx.GraphProto, Any]:
    shutil.copytree(source, directory, ignore=shutil.ignore_patterns("model.onnx"))
    model = onnx.load(source / "model.onnx", load_external_data=False)

    def save() -> Path:
        onnx.save(model, directory / "model.onnx")
        return directory

    return model.graph, save


def _attention(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    return [node for node in graph.node if node.op_type == "GroupQueryAttention"]


def _set(node: onnx.NodeProto, name: str, value: int | str) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def _name_slots(graph: onnx.GraphProto, layer: int) -> None:
    for value in (*graph.input, *graph.output):
        if f".{layer}." in value.name:
            slots = value.type.tensor_type.shape.dim[2]
            slots.dim_param = slots.dim_param.replace("sequence", "sliding")
