"""How a plan is baked: the recipe's `export` section, what `bake` takes, and the flags of its command."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from bakeout.models.methods.options import Section

RuntimeName = Literal[
    "onnxruntime", "optimum", "genai", "node", "web", "webgpu", "transformers.js", "openvino", "reference"
]
Quantisation = Literal["int8", "int4"]
DType = Literal["fp32", "fp16"]
ExporterName = Literal["auto", "optimum", "dynamo"]


def _each_once(names: tuple[RuntimeName, ...]) -> tuple[RuntimeName, ...]:
    return tuple(dict.fromkeys(names))


@dataclass(frozen=True)
class Contradiction:
    """Two options that exclude each other: the option that is refused, why, and what to do."""

    option: str
    cause: str
    remedy: str


class BakeOptions(Section):
    """How the artifact is written.

    >>> bakeout.BakeOptions(dtype="fp16", monitor=True).dtype
    'fp16'
    """

    to: Literal["onnx", "safetensors"] = Field(
        "onnx",
        description="An ONNX graph, or a checkpoint that `transformers` loads: the latter for methods that change "
        "weights alone; it keeps its type.",
    )
    dtype: DType = Field("fp32", description="The precision in which a checkpoint is exported; graphs keep their own.")
    exporter: ExporterName = Field(
        "auto",
        description="What exports a checkpoint: `optimum` (its extra, for transformers 4.57), or `dynamo`, "
        "`torch.onnx.export`; `auto`: optimum where it is installed and knows the architecture, else `dynamo`.",
    )
    variant: str | None = Field(
        None,
        description="Bake into one of the graphs that the model's directory or repository holds: `q4` for "
        "`onnx/model_q4.onnx`, `fp32` for `onnx/model.onnx`.",
    )
    quantize: Quantisation | None = Field(
        None,
        description="Quantise the weights of a float32 graph, after the plan's edits of them: `int8` dynamically, "
        "`int4` in blocks of 32; not with fp16.",
    )
    inline: bool = Field(
        False, description="Write Neuron Adjust as standard operators alone, for runtimes without local functions."
    )
    early_exit: bool | None = Field(
        None,
        description="Skip the layers that a refusal does not need, in an `If`; false: no branches at all. By default, "
        "but not where that holds float16 products, whose weights the CPU would cast in every run.",
    )
    monitor: bool = Field(False, description="Add two outputs: `refused` and `margin`.")
    adapter_slots: bool = Field(
        False,
        description="Declare the constants of the graph's edits as inputs with defaults: ONNX Runtime's adapters "
        "(`bakeout export-adapter --to onnx`) override them.",
    )
    runtimes: Annotated[tuple[RuntimeName, ...], AfterValidator(_each_once)] = Field(
        (), description="The runtimes that the artifact must serve; what they need is done, or refused."
    )

    def contradictions(self) -> Iterator[Contradiction]:
        """Contradictions that the types cannot express."""
        if self.to == "safetensors" and self.runtimes:
            yield Contradiction("runtimes", "runtimes run graphs, not checkpoints", "Leave out `runtimes`, or `to`.")
        if self.to == "safetensors" and self.quantize:
            yield Contradiction("quantize", "a checkpoint keeps its type", "Leave out `quantize`, or `to`.")
        if self.to == "safetensors" and self.variant:
            yield Contradiction("variant", "a checkpoint has one form", "Leave out `variant`, or `to`.")
        if self.to == "safetensors" and self.adapter_slots:
            yield Contradiction("adapter_slots", "a checkpoint has no inputs", "Leave out `adapter_slots`, or `to`.")
        if self.quantize and self.dtype == "fp16":
            yield Contradiction(
                "quantize", f"{self.quantize} comes from fp32, not from fp16", "Leave out `quantize`, or `dtype`."
            )
