"""What a path or hub id is: one answer for every command, and an error for each form that Bakeout does not read."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open

from bakeout.export.artifacts.file_names import MANIFEST, PLAN
from bakeout.export.artifacts.onnx_layout import choose_graph, graph_files, graphs_in, names_data
from bakeout.models.checkpoint.checkpoint import Checkpoint
from bakeout.models.checkpoint.checkpoint_files import CHECKPOINT_FILES, local_directory, resolve_checkpoint
from bakeout.models.errors import BakeoutError
from bakeout.models.files.json_object import read_json
from bakeout.models.files.reading import open_regular
from bakeout.models.files.writing import disk_errors

Form = Literal["graph", "checkpoint", "adapter", "adapted checkpoint", "gguf", "weights file", "nothing"]

_LOG = logging.getLogger(__name__)
_MERGE = "merge the adapter (peft: merge_and_unload, then save_pretrained) and name the result"
_GGUF = b"GGUF"
_ADAPTER = "adapter_config.json"


def model_source(model: str | Path | Checkpoint, variant: str | None = None) -> Path | Checkpoint:
    """What ``model``, a path or hub id, is: the file of an ONNX graph, or a checkpoint. Only names and a few bytes are
    read.

    A directory that holds both is the checkpoint, which a log line says; ``variant`` chooses among its graphs, as
    ``choose_graph``. A GGUF file, or a directory with one, is the checkpoint that it is converted to once. Raises
    ``BakeoutError`` for what holds no model, and for what Bakeout does not read: an adapter, a single file of weights.
    """
    path = model.directory if isinstance(model, Checkpoint) else _local(model, variant)
    if variant is not None:
        return _variant(path, variant)
    if isinstance(model, Checkpoint):
        return model
    form = local_form(path)
    if form == "graph":
        return path if path.is_file() else choose_graph(path)
    if form == "checkpoint":
        if graphs := graphs_in(path):
            _LOG.info("%s is taken as a checkpoint; to take the graph in it, name %s.", path, graphs[0])
        return Checkpoint(resolve_checkpoint(path))
    if form == "gguf":
        from bakeout.models.checkpoint.gguf.gguf_checkpoint import find_gguf, gguf_checkpoint

        return Checkpoint(gguf_checkpoint(find_gguf(path)))
    raise _refusal(model, path, form)


def local_form(path: Path) -> Form:
    """What lies at ``path``, by names and first bytes alone.

    A directory with a configuration and safetensors is a checkpoint, whatever ONNX files lie in it too (unless the
    safetensors are their data), and with an adapter beside them an adapted one; one with ONNX files, its own or in its
    folder ``onnx``, is a graph; a directory that is none of the others counts as a checkpoint, an incomplete one
    perhaps.
    """
    if path.is_file():
        return _file_form(path)
    if not path.is_dir():
        return "nothing"
    adapted = (path / _ADAPTER).is_file()
    if (path / "config.json").is_file() and _has_weights(path):
        return "adapted checkpoint" if adapted else "checkpoint"
    if graphs_in(path):
        return "graph"
    if adapted:
        return "adapter"
    return "gguf" if any(path.glob("*.gguf")) else "checkpoint"


def find_graph(model: str | Path) -> Path:
    """The decoder's ONNX file: ``model`` itself, or that of a directory, as ``choose_graph``.

    Raises ``BakeoutError`` for everything else, by name.
    """
    path = Path(model)
    form = local_form(path)
    if form == "graph" and path.is_file():
        return path
    if form == "graph" or (form == "checkpoint" and graphs_in(path)):
        return choose_graph(path)
    if form == "checkpoint":
        raise BakeoutError(
            f"{path} holds no ONNX graph.", "Name an artifact or an ONNX directory; `bake` makes one of a checkpoint."
        )
    raise _refusal(model, path, form)


def find_checkpoint(model: str | Path | Checkpoint) -> Checkpoint:
    """The checkpoint ``model``, a path or hub id. Raises ``BakeoutError`` for everything else."""
    source = model_source(model)
    if isinstance(source, Path):
        raise BakeoutError(
            f"{model} is an ONNX graph, and a checkpoint is needed.", "Name the checkpoint's directory or hub id."
        )
    return source


def require_unbaked(
    directory: Path, remedy: str = "Bake into the base model: one plan can hold several interventions."
) -> None:
    """Raise ``BakeoutError`` where ``directory`` is an artifact."""
    if (directory / MANIFEST).is_file():
        raise BakeoutError(f"{directory} is an artifact: a plan is baked into it already.", remedy)


def _file_form(path: Path) -> Form:
    with disk_errors(path), open_regular(path) as file:
        begins = file.read(len(_GGUF))
    if begins == _GGUF or path.suffix == ".gguf":
        return "gguf"
    return "weights file" if path.suffix in (".safetensors", ".bin", ".pt", ".pth") else "graph"


def _local(model: str | Path, variant: str | None) -> Path:
    """``model`` itself, or what the hub has of this id: a checkpoint or, failing that or by variant, a graph."""
    path = Path(model)
    if path.exists() or path.suffix in (".onnx", ".gguf"):
        return path
    path = local_directory(model, CHECKPOINT_FILES)
    if variant is None and _may_hold_data(path):
        path = local_directory(model, (*CHECKPOINT_FILES, *(name for name in graph_files() if "/" not in name)))
    if variant is not None or not (_has_weights(path) or graphs_in(path)):
        path = local_directory(model, (*CHECKPOINT_FILES, *graph_files(variant)))
    return path


def _variant(path: Path, variant: str) -> Path:
    if not path.is_dir():
        raise BakeoutError(f"{path} is not a directory with variants of a graph.", "Leave out `variant`.")
    return choose_graph(path, variant)


def _has_weights(directory: Path) -> bool:
    """Whether there are weights of a checkpoint: plans, adapters and data of graphs are safetensors too."""
    others = (PLAN, "adapter_model.safetensors")
    weights = [path.name for path in directory.glob("*.safetensors") if path.name not in others]
    graphs = list(directory.glob("*.onnx")) if weights else []
    return any(not any(names_data(graph, name) for graph in graphs) for name in weights)


def _may_hold_data(directory: Path) -> bool:
    """Whether there are safetensors without the format that checkpoints tell: they may be a graph's data."""
    for path in directory.glob("*.safetensors"):
        try:
            with safe_open(path, framework="numpy") as file:
                if "format" not in (file.metadata() or {}):
                    return True
        # Whoever reads the weights tells what is wrong with them.
        except (OSError, SafetensorError):
            continue
    return False


def _refusal(model: str | Path, path: Path, form: Form) -> BakeoutError:
    base = read_json(path / _ADAPTER).get("base_model_name_or_path") or "a model that it does not name"
    cause, remedy = {
        "adapter": (
            f"{model} is an adapter alone, of {base}, and holds no model.",
            f"Load {base} with it, {_MERGE}.",
        ),
        "adapted checkpoint": (
            f"{model} is a checkpoint with an adapter beside it, of {base}, and transformers would load both.",
            f"First {_MERGE}, or move adapter_config.json out of the directory.",
        ),
        "gguf": (
            f"{model} is GGUF, which ONNX Runtime does not run.",
            "Bake a plan into it, or name an artifact or an ONNX directory.",
        ),
        "weights file": (f"{model} is a single file of weights.", "Name the checkpoint's directory."),
    }.get(form, (f"There is no file or directory {model}.", "Check the path."))
    return BakeoutError(cause, remedy)
