"""How a plan is baked: the recipe's `export` section, what `bake` takes, and the flags of its command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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

# The options that are for graphs alone, and why a checkpoint takes none of them.
_OF_GRAPHS: Mapping[str, str] = {
    "runtimes": "runtimes run graphs, not checkpoints",
    "quantize": "a checkpoint keeps its type",
    "variant": "a checkpoint has one form",
    "adapter_slots": "a checkpoint has no inputs",
    "dtype": "a checkpoint keeps its type",
    "exporter": "a checkpoint is not exported",
    "inline": "a checkpoint has no operators",
    "early_exit": "a checkpoint has no branches",
    "monitor": "a checkpoint has no outputs",
}


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
        for option, cause in _OF_GRAPHS.items() if self.to == "safetensors" else ():
            if getattr(self, option) != BakeOptions.model_fields[option].default:
                yield Contradiction(option, cause, f"Leave out `{option}`, or `to`.")
        if self.quantize and self.dtype == "fp16":
            yield Contradiction(
                "quantize", f"{self.quantize} comes from fp32, not from fp16", "Leave out `quantize`, or `dtype`."
            )
