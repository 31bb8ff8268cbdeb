"""What a path or hub id is: one answer for every command, with an error each for what Bakeout does not take."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from bakeout.export.artifacts.file_names import GRAPH, MANIFEST
from bakeout.models.checkpoint.checkpoint import Checkpoint
from bakeout.models.checkpoint.checkpoint_files import resolve_checkpoint
from bakeout.models.errors import BakeoutError
from bakeout.models.files.writing import disk_errors

Form = Literal["graph", "checkpoint", "adapter", "adapted checkpoint", "gguf", "weights file", "nothing"]

_MERGE = "merge the adapter (peft: merge_and_unload, then save_pretrained) and name the result"
_GGUF = b"GGUF"


def model_source(model: str | Path | Checkpoint) -> Path | Checkpoint:
    """What ``model``, a path or hub id, is: the file of an ONNX graph, or a checkpoint. Only names and a few bytes are
    read.

    Raises ``BakeoutError`` for what holds no model, and for what Bakeout does not read: an adapter, GGUF, a single
    file of weights.
    """
    if isinstance(model, Checkpoint):
        return model
    path, form = Path(model), local_form(Path(model))
    if form == "nothing" and path.suffix not in (".onnx", ".gguf"):
        path = resolve_checkpoint(model)
        form = local_form(path)
    if form == "graph":
        return _only_graph(path)
    if form == "checkpoint":
        return Checkpoint(resolve_checkpoint(path))
    raise _refusal(model, form)


def local_form(path: Path) -> Form:
    """What lies at ``path``, by names and first bytes alone.

    A directory with an ONNX file is a graph, whatever lies beside; a directory that is none of the others counts as a
    checkpoint, an incomplete one perhaps.
    """
    if path.is_file():
        return _file_form(path)
    if not path.is_dir():
        return "nothing"
    if any(path.glob("*.onnx")):
        return "graph"
    has_model = (path / "config.json").is_file()
    if (path / "adapter_config.json").is_file():
        return "adapted checkpoint" if has_model else "adapter"
    if any(path.glob("*.gguf")) and not any(path.glob("*.safetensors")):
        return "gguf"
    return "checkpoint"


def find_graph(model: str | Path) -> Path:
    """The decoder's ONNX file: ``model`` itself, the directory's ``model.onnx``, or its only ``*.onnx``.

    Raises ``BakeoutError`` for everything else, by name.
    """
    path = Path(model)
    form = local_form(path)
    if form == "graph":
        return _only_graph(path)
    if form == "checkpoint":
        raise BakeoutError(
            f"{path} holds no ONNX graph.", "Name an artifact or an ONNX directory; `bake` makes one of a checkpoint."
        )
    raise _refusal(model, form)


def find_checkpoint(model: str | Path | Checkpoint) -> Checkpoint:
    """The checkpoint ``model``, a path or hub id. Raises ``BakeoutError`` for everything else."""
    source = model_source(model)
    if isinstance(source, Path):
        raise BakeoutError(
            f"{model} is an ONNX graph, and a checkpoint is needed.", "Name the checkpoint's directory or hub id."
        )
    return source


def require_unbaked(directory: Path) -> None:
    """Raise ``BakeoutError`` where ``directory`` is an artifact."""
    if (directory / MANIFEST).is_file():
        raise BakeoutError(
            f"{directory} is an artifact: a plan is baked into it already.",
            "Bake into the base model: one plan can hold several interventions.",
        )


def _file_form(path: Path) -> Form:
    with disk_errors(path), path.open("rb") as file:
        begins = file.read(len(_GGUF))
    if begins == _GGUF or path.suffix == ".gguf":
        return "gguf"
    return "weights file" if path.suffix in (".safetensors", ".bin", ".pt", ".pth") else "graph"


def _only_graph(path: Path) -> Path:
    if path.is_file():
        return path
    if (path / GRAPH).is_file():
        return path / GRAPH
    graphs = sorted(path.glob("*.onnx"))
    if len(graphs) != 1:
        raise BakeoutError(
            f"{path} does not hold one ONNX graph (found: {', '.join(graph.name for graph in graphs)}).",
            "Name the file itself.",
        )
    return graphs[0]


def _refusal(model: str | Path, form: Form) -> BakeoutError:
    cause, remedy = {
        "adapter": (f"{model} is an adapter alone, without the model that it adapts.", f"First {_MERGE}."),
        "adapted checkpoint": (
            f"{model} is a checkpoint with an adapter beside it, and transformers would load both.",
            f"First {_MERGE}, or move adapter_config.json out of the directory.",
        ),
        "gguf": (f"{model} is GGUF, which is not read.", "Name the model's safetensors checkpoint or an ONNX graph."),
        "weights file": (f"{model} is a single file of weights.", "Name the checkpoint's directory."),
    }.get(form, (f"There is no file or directory {model}.", "Check the path."))
    return BakeoutError(cause, remedy)
