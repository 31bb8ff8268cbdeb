"""Quantisation to int8 and int4, by ONNX Runtime's own tools."""

from __future__ import annotations

import logging
from pathlib import Path

import onnx
import onnx_ir as ir

from bakeout.export.artifacts.file_names import DATA, GRAPH
from bakeout.export.recipes.bake_options import Quantisation
from bakeout.graph_passes.graph.graph_file import data_files, graph_bytes, load_graph
from bakeout.graph_passes.graph.precision import stored_precision
from bakeout.graph_passes.weight_edits import write_edited_tensors
from bakeout.models.errors import BakeoutError
from bakeout.models.files.copying import copy_by_kernel
from bakeout.models.files.disk_room import require_space, room_on_disk

# Weights that share a scale in int4.
_BLOCK = 32


def require_quantisable(graph: ir.Model) -> None:
    """Raise ``BakeoutError`` for a graph that is not in float32."""
    precision = stored_precision(graph)
    if precision == "quantised":
        raise BakeoutError("The graph is quantised already.", "Leave out `quantize`.")
    if precision != "float32":
        raise BakeoutError(
            f"The graph is in {precision}, and quantisation needs float32.",
            "Export it in fp32, or leave out `quantize`.",
        )


def quantise(graph: ir.Model, directory: Path, to: Quantisation = "int8") -> ir.Model:
    """The float32 ``graph``, edits of its weights included, with quantised weights: loaded, its data in ``directory``.

    int4: every product with a constant weight becomes a ``MatMulNBits`` of symmetric blocks of 32 weights, rounded to
    the nearest. int8: such a product becomes one of integers, whose data are quantised to 8 bits at run time, by one
    scale for the whole run: the answer to a prompt can depend on the other prompts of its batch, as in any
    graph that is quantised in this way. Weights have a scale for each output, and 7 bits: with 8, processors without
    VNNI saturate, and the same file would give different answers on different machines. Embeddings stay float32, and so
    does all that is baked into the graph from then on.

    The whole weights are held in memory. Raises ``BakeoutError`` as ``require_quantisable``.
    """
    require_quantisable(graph)
    _require_own_weights(graph)
    files = data_files(graph)
    content = graph_bytes(graph)
    # The copy that the tool reads, the one that it makes with shapes, and what it writes.
    require_space(directory, 3 * len(content) + 2 * sum(room_on_disk(path) for path in files.values()))
    source = directory / "float32"
    source.mkdir()
    for name, path in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        copy_by_kernel(path, source / name)
    write_edited_tensors(graph, source)
    (source / GRAPH).write_bytes(_without_shapes(content))
    before, handlers = logging.root.manager.disable, logging.root.handlers[:]
    # The tools recommend a step of their own beforehand, which would rename values.
    logging.disable(logging.CRITICAL)
    try:
        (_to_int8 if to == "int8" else _to_int4)(source / GRAPH, directory / GRAPH)
    except (OSError, MemoryError):
        raise
    # The tools infer shapes first, and have no errors of their own.
    except Exception as error:  # noqa: BLE001
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BakeoutError(
            f"ONNX Runtime cannot quantise the graph ({reason}).", "Export the model again, or bake it in float32."
        ) from None
    finally:
        logging.disable(before)
        # Their calls of `logging.warning` add one, by which every later line would be told twice.
        logging.root.handlers[:] = handlers
    quantised = load_graph(directory / GRAPH)
    quantised.meta.update(graph.meta)
    _forget_unread_shapes(quantised.graph)
    return quantised


def _to_int8(source: Path, output: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        source,
        output,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        reduce_range=True,
        weight_type=QuantType.QInt8,
        use_external_data_format=True,
        extra_options={"DefaultTensorType": int(ir.DataType.FLOAT)},
    )


def _to_int4(source: Path, output: Path) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    tool = MatMulNBitsQuantizer(onnx.load(source), block_size=_BLOCK, is_symmetric=True)
    tool.process()
    onnx.save(
        tool.model.model,
        output,
        save_as_external_data=True,
        location=DATA,
        size_threshold=1024,
        convert_attribute=False,
    )


def _require_own_weights(graph: ir.Model) -> None:
    """Raise ``BakeoutError`` where the tool would transpose a weight that something else reads too."""
    for node in graph.graph:
        if node.op_type != "Gemm" or not node.attributes.get_int("transB", 0):
            continue
        weight = node.inputs[1]
        if weight is not None and weight.const_value is not None and len(weight.uses()) > 1:
            raise BakeoutError(
                f"ONNX Runtime cannot quantise {weight.name}, a weight that one of its readers transposes.",
                "Export the model with a copy of each weight.",
            )


def _forget_unread_shapes(graph: ir.Graph) -> None:
    """Drop the shapes of outputs that nothing reads. The tool infers those of ONNX Runtime's own operators from
    functions of the graph that stand for them, and they need not hold there: onnxruntime-web then loads no graph.
    """
    for node in graph:
        for output in node.outputs:
            if not output.uses() and not output.is_graph_output():
                output.shape = None


def _without_shapes(content: bytes) -> bytes:
    """A graph without the shapes of its values, among them those of weights that the tool transposes."""
    model = onnx.ModelProto.FromString(content)
    del model.graph.value_info[:]
    return bytes(model.SerializeToString(deterministic=True))
