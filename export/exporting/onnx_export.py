"""A Hugging Face checkpoint exported to ONNX: graph, weights beside it, configuration, tokenizer."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from bakeout.export.artifacts.file_names import DATA, GRAPH
from bakeout.export.artifacts.onnx_directory import companion_files, companion_name, copy_companions
from bakeout.export.exporting.exporters import choose_exporter
from bakeout.export.exporting.tied_weights import tie_weights
from bakeout.export.running.overflow import overflow
from bakeout.models.checkpoint.checkpoint_files import load_model, read_config
from bakeout.models.checkpoint.placement import Placement
from bakeout.models.files.disk_room import require_space
from bakeout.models.files.writing import scratch_directory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bakeout.export.recipes.bake_options import DType, ExporterName

_BYTES = {"fp32": 4, "fp16": 2}
_MASKED = -30000.0


def export_checkpoint(
    checkpoint: Path,
    directory: Path,
    dtype: DType = "fp32",
    tried_on: Sequence[Sequence[int]] = (),
    exporter: ExporterName = "auto",
) -> Path:
    """Export ``checkpoint`` into ``directory`` and return the path of ``model.onnx``.

    The weights lie in ``model.onnx.data``; the checkpoint's configuration and tokenizer files are copied beside. The
    graph has a KV cache, and holds no path and no doc string: the same checkpoint gives the same bytes anywhere.
    ``exporter``: what exports it (``exporters``). ``fp16`` is a graph that computes in float16 wherever the model does;
    ``tried_on``: token ids on which it is tried whether the model can do that.

    Raises ``BakeoutError`` for a checkpoint that cannot be loaded or exported, for one that overflows in float16, and
    for a full disk.
    """
    _, chosen = choose_exporter(exporter, str(read_config(checkpoint).get("model_type")))
    model = load_model(checkpoint, Placement("cpu", "float16" if dtype == "fp16" else "float32"))
    if dtype == "fp16":
        # The default attention's mask is float32 in a trace, and would make everything behind it float32.
        model.set_attn_implementation("eager")
        _require_finite(model, tried_on)
    require_space(directory, _BYTES[dtype] * sum(weight.numel() for weight in model.state_dict().values()))
    with scratch_directory(directory) as exported:
        graph = chosen.export(model, exported, checkpoint, dtype)
        tie_weights(graph.graph)
        _bound_mask(graph)
        ir.save(graph, directory / GRAPH, external_data=DATA)
        # The checkpoint's own files go before those that the exporter writes anew.
        own = companion_files(checkpoint)
        names = {companion_name(path) for path in own}
        copy_companions([path for path in companion_files(exported) if companion_name(path) not in names], directory)
        copy_companions(own, directory)
    # A traced model and its graph refer to themselves: without this their weights stay while the artifact is tried.
    del model, graph
    gc.collect()
    return directory / GRAPH


def _require_finite(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> None:
    # By torch, which keeps every value in float16: ONNX Runtime's CPU kernels take some in float32, and a GPU's do not.
    import torch

    with torch.inference_mode():
        for prompt in prompts:
            if not torch.isfinite(model(input_ids=torch.tensor([list(prompt)])).logits).all():
                raise overflow()


def _bound_mask(graph: ir.Model) -> None:
    """Mask with -30000 instead of float16's lowest number, which a negative score makes infinite.

    A row of padding whose scores all are has no softmax, and its NaN would spread from the cache to every other row.
    """
    for node in graph.graph.all_nodes():
        value = node.attributes.get("value")
        if node.op_type != "Constant" or value is None:
            continue
        tensor = value.as_tensor()
        if tensor.dtype == ir.DataType.FLOAT16 and tensor.size == 1 and tensor.numpy() == np.finfo(np.float16).min:
            lower = np.full(tensor.shape.numpy(), _MASKED, dtype=np.float16)
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(lower))
