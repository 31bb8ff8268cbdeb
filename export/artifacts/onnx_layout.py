"""The layouts of exporters and model hubs: where graphs lie, which of several is meant, where its companions lie."""

from __future__ import annotations

import mmap
import os
from pathlib import Path, PurePath, PurePosixPath

from bakeout.export.artifacts.file_names import GRAPH
from bakeout.models.errors import BakeoutError
from bakeout.models.files.json_object import read_json
from bakeout.models.files.reading import open_regular

# The folder of graphs in public repositories: configuration and tokenizer lie above it.
SUBFOLDER = "onnx"

_CONFIGS = ("config.json", "genai_config.json")
_TOKENIZERS = ("tokenizer*", "vocab*", "*.model", "*.spm", "*.tiktoken")
# What transformers.js calls the variant without suffix, the one whose files are named otherwise, and all that it knows.
_PLAIN, _SUFFIXES = "fp32", {"fp32": "", "q8": "_quantized"}
_VARIANTS = (_PLAIN, "fp16", "int8", "uint8", "q8", "q4", "q4f16", "bnb4", "q2", "q2f16", "q1", "q1f16")
_STEMS = ("model", "decoder_with_past_model")
# transformers.exporters' pair: one graph reads the prompt, and the other goes on from the cache that it leaves.
PREFILL, DECODE = "prefill.onnx", "decode.onnx"
# optimum's older exports: the first computes no cache's continuation, and the second holds both under an `If`.
_HALVES = ("decoder_model", "decoder_model_merged")


def graphs_in(directory: Path) -> list[Path]:
    """The ONNX files of a directory, or of its folder ``onnx`` where it has none itself, in order of name."""
    return sorted(directory.glob("*.onnx")) or sorted((directory / SUBFOLDER).glob("*.onnx"))


def names_data(graph: Path, name: str) -> bool:
    """Whether a graph refers to ``name``, a file beside it, for its data; False where it cannot be read.

    The graph's file is searched for the reference, and not parsed.
    """
    value = os.fsencode(name)
    length = bytes([len(value)]) if len(value) < 128 else bytes([len(value) % 128 + 128, len(value) // 128])
    # An entry of ONNX's `external_data` as protobuf writes it: key and value, each with its length.
    reference = b"\n\x08location\x12" + length + value
    try:
        with open_regular(graph) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(reference) >= 0
    # An empty file cannot be mapped.
    except (OSError, ValueError, BakeoutError):
        return False


def choose_graph(directory: Path, variant: str | None = None) -> Path:
    """The decoder among the graphs of ``directory``: what ``genai_config.json`` names, ``model.onnx``, or the only one.

    A pair is known by its second graph, ``decode.onnx`` (``graphs_of``).
    ``variant``: the one of this name, ``q4`` for ``model_q4.onnx``; ``fp32`` is ``model.onnx``. Raises ``BakeoutError``
    where there is none, or several and nothing tells which.
    """
    graphs = graphs_in(directory)
    if variant is not None:
        return _variant(directory, graphs, variant)
    if named := _named_by_genai(directory):
        return named
    by_name = {graph.name: graph for graph in graphs}
    whole = [graph for graph in graphs if graph.stem not in _HALVES]
    if GRAPH in by_name:
        return by_name[GRAPH]
    if by_name.keys() == {PREFILL, DECODE}:
        return by_name[DECODE]
    if len(graphs) == 1:
        return graphs[0]
    if len(whole) == 1:
        return whole[0]
    raise BakeoutError(
        f"{directory} does not hold one ONNX graph (found: {', '.join(by_name) or 'none'}).",
        "Name the file itself, or its `variant` (q4 for model_q4.onnx).",
    )


def graphs_of(graph: Path) -> tuple[Path, ...]:
    """The graphs that run as one decoder, in their order: ``graph`` alone, or ``prefill.onnx`` and ``decode.onnx``."""
    first = graph.with_name(PREFILL)
    return (first, graph) if graph.name == DECODE and first.is_file() and graph.is_file() else (graph,)


def graph_files(variant: str | None = None) -> list[str]:
    """The names, below a repository, that ``choose_graph`` may take without looking, and those of their data files."""
    suffix = _suffix(variant or _PLAIN)
    names = [f"{folder}{stem}{suffix}.onnx" for folder in ("", f"{SUBFOLDER}/") for stem in _STEMS]
    return [pattern for name in names for pattern in (name, f"{name}_data*", f"{name}.data")]


def public_graph(variant: str = _PLAIN) -> str:
    """Where public repositories, and transformers.js, have a decoder's variant: ``onnx/model_q4.onnx`` for ``q4``."""
    return f"{SUBFOLDER}/{_STEMS[0]}{_suffix(variant)}.onnx"


def variant_of(graph: str) -> str:
    """The variant that a graph's file name tells, by transformers.js's names; ``fp32`` where it tells none of them."""
    by_name = {f"{stem}{_suffix(variant)}.onnx": variant for stem in _STEMS for variant in _VARIANTS}
    return by_name.get(PurePosixPath(graph).name, _PLAIN)


def home_of(graph: Path) -> Path:
    """Where the configuration and tokenizer of a graph lie: in its directory or, as on model hubs, in the one above."""
    own = graph.parent
    # Links are not followed: the hub's cache holds files by them.
    above = Path(os.path.abspath(own)).parent  # noqa: PTH100
    if not _holds(above, _CONFIGS):
        return own
    if _holds(own, _CONFIGS) and (_holds(own, _TOKENIZERS) or not _holds(above, _TOKENIZERS)):
        return own
    return above


def _variant(directory: Path, graphs: list[Path], variant: str) -> Path:
    names = [f"{stem}{_suffix(variant)}.onnx" for stem in _STEMS]
    for graph in graphs:
        if graph.name in names:
            return graph
    there = ", ".join(graph.name for graph in graphs) or "no ONNX file"
    raise BakeoutError(f"{directory} has no {names[0]} (found: {there}).", "Choose `variant` of what is there.")


def _suffix(variant: str) -> str:
    return _SUFFIXES.get(variant, f"_{variant}")


def _named_by_genai(directory: Path) -> Path | None:
    model = read_json(directory / "genai_config.json").get("model")
    decoder = model.get("decoder") if isinstance(model, dict) else None
    name = decoder.get("filename") if isinstance(decoder, dict) else None
    if not isinstance(name, str):
        return None
    if not _is_below(directory, name):
        raise BakeoutError(
            f"{directory / 'genai_config.json'} names {name}, which is not there.", "Copy the model again."
        )
    return directory / name


def _is_below(directory: Path, name: str) -> bool:
    """Whether a name that a file gives leads to a file in ``directory``, or below it."""
    path = PurePath(name)
    try:
        return not path.is_absolute() and ".." not in path.parts and (directory / path).is_file()
    # A name that is too long, or that holds a zero byte.
    except (OSError, ValueError):
        return False


def _holds(directory: Path, patterns: tuple[str, ...]) -> bool:
    return any(path.is_file() for pattern in patterns for path in directory.glob(pattern))
