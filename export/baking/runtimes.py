"""What the tested runtimes need of an artifact, and how baking provides it.

Any graph that is baked has IR version 10, which all of them read, and all take the early exit's ``If``. One artifact
can serve them all.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import onnx_ir as ir

from bakeout.export.artifacts.file_names import GRAPH
from bakeout.export.artifacts.onnx_layout import DECODE, PREFILL, public_graph, variant_of
from bakeout.export.recipes.bake_options import BakeOptions, RuntimeName
from bakeout.export.running.genai_config import GENAI_CONFIG, genai_feeds_back, has_cache
from bakeout.graph_passes.graph.graph_file import data_files, name_data_files
from bakeout.models.errors import BakeoutError
from bakeout.models.files.json_object import read_json

# What ONNX Runtime 1.30 and 1.31 read, in every language.
NEWEST_OPSET = 26


@dataclass(frozen=True)
class Runtime:
    """What a runtime needs.

    ``functions``: it runs model-local functions; ``branches``: it runs an ``If`` on the device; ``contributed``: it
    runs ONNX Runtime's own operators, as the graphs of onnxruntime-genai's builder have; ``pairs``: the program that
    calls it chooses the graph of each run, one for prompts and another for what follows; ``cache``: it cannot do
    without past keys and values; ``files``: what it reads beside the graph, each one file or another.
    """

    functions: bool = True
    branches: bool = True
    contributed: bool = True
    pairs: bool = True
    cache: bool = False
    files: tuple[tuple[str, ...], ...] = ()


RUNTIMES: Mapping[RuntimeName, Runtime] = {
    "onnxruntime": Runtime(),
    "optimum": Runtime(pairs=False, files=(("config.json",),)),
    # Its configuration is written where the model's is there.
    "genai": Runtime(pairs=False, cache=True, files=((GENAI_CONFIG, "config.json"),)),
    "node": Runtime(),
    "web": Runtime(),
    # onnxruntime-web's provider, whose graph capture takes neither branches nor 64-bit integers.
    "webgpu": Runtime(functions=False, branches=False),
    "transformers.js": Runtime(
        pairs=False, cache=True, files=(("config.json",), ("tokenizer.json",), ("tokenizer_config.json",))
    ),
    "openvino": Runtime(functions=False, contributed=False),
    "reference": Runtime(functions=False, contributed=False),
}


def take_functions(names: Iterable[RuntimeName]) -> bool:
    """Whether all these runtimes run model-local functions."""
    return all(RUNTIMES[name].functions for name in names)


def take_branches(names: Iterable[RuntimeName]) -> bool:
    """Whether all these runtimes run branches on the device."""
    return all(RUNTIMES[name].branches for name in names)


def place_of_graph(names: Sequence[RuntimeName], variant: str) -> str:
    """Where the graph lies in an artifact for these runtimes: for transformers.js as in its public repositories."""
    return public_graph(variant) if "transformers.js" in names else GRAPH


def require_pairs_served(options: BakeOptions) -> None:
    """Raise ``BakeoutError`` where a pair of graphs, one for prompts, is not what the options ask for."""
    if others := [name for name in options.runtimes if not RUNTIMES[name].pairs]:
        raise BakeoutError(
            f"{others[0]} runs one graph, and this model is two: {PREFILL} and {DECODE}.",
            "Export it as one graph, or leave out this runtime.",
        )
    if options.adapter_slots:
        raise BakeoutError("Adapters are for one graph, and this model is two.", "Leave out `adapter_slots`.")


def name_data_for(names: Sequence[RuntimeName], graph: ir.Model, place: str) -> None:
    """Give a loaded graph's data files the names by which these runtimes look for them beside ``place``."""
    if "transformers.js" in names:
        name, files = PurePosixPath(place).name, data_files(graph)
        name_data_files(graph, {old: _chunk(name, index) for index, old in enumerate(files)})


def require_served(names: Sequence[RuntimeName], graph: ir.Model, files: Collection[str]) -> None:
    """Raise ``BakeoutError`` where one of these runtimes cannot run ``graph`` with ``files``, names, beside it."""
    for name in names:
        runtime = RUNTIMES[name]
        opset = graph.opset_imports[""]
        if opset > NEWEST_OPSET:
            raise BakeoutError(
                f"{name} reads graphs up to opset {NEWEST_OPSET}, and this one has {opset}.",
                "Export it with an older one.",
            )
        if not runtime.contributed and (own := sorted(set(_contributed(graph)))):
            raise BakeoutError(
                f"{name} does not run ONNX Runtime's own operators, and the graph has {own[0]}.",
                "Bake into an export by optimum, or leave out this runtime.",
            )
        if runtime.cache and not has_cache(graph):
            raise BakeoutError(
                f"{name} needs a graph with past keys and values.",
                "Export the model with them (optimum: --task text-generation-with-past).",
            )
        if name == "genai" and GENAI_CONFIG not in files and not genai_feeds_back(graph):
            raise BakeoutError(
                "genai feeds back keys and values of every layer alone, and this graph has layers without them, or "
                "other states.",
                "Leave out this runtime.",
            )
        for alternatives in runtime.files:
            if not set(alternatives) & set(files):
                raise BakeoutError(
                    f"{name} needs {' or '.join(alternatives)}.", f"Put {alternatives[-1]} beside the graph."
                )


def describe_to(names: Sequence[RuntimeName], graph: ir.Model, directory: Path, place: str) -> None:
    """Add what these runtimes need to the configuration files of the artifact whose ``graph`` lies at ``place``."""
    if "transformers.js" in names:
        _describe_to_transformers_js(graph, directory, place)


def _contributed(graph: ir.Model) -> Iterable[str]:
    for node in ir.traversal.RecursiveGraphIterator(graph.graph):
        if node.domain == "com.microsoft":
            yield node.op_type


def _chunk(name: str, index: int) -> str:
    """The name that transformers.js gives a graph's data files."""
    return f"{name}_data" + (f"_{index}" if index else "")


def _describe_to_transformers_js(graph: ir.Model, directory: Path, place: str) -> None:
    """Set the graph as the default, and the number of its data files; what the model's own entry says else stays.

    It reads the chat template in the tokenizer's configuration alone.
    """
    config = directory / "config.json"
    own = read_json(config).get("transformers.js_config")
    known: dict[str, Any] = {**own} if isinstance(own, dict) else {}
    known.pop("use_external_data_format", None)
    known["dtype"] = variant_of(place)
    if files := data_files(graph):
        known["use_external_data_format"] = {PurePosixPath(place).name: len(files)}
    _update(config, {"transformers.js_config": known})
    template = directory / "chat_template.jinja"
    if template.is_file():
        _update(directory / "tokenizer_config.json", {"chat_template": template.read_text(encoding="utf-8")})


def _update(path: Path, entries: Mapping[str, Any]) -> None:
    content = {**read_json(path), **entries}
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
