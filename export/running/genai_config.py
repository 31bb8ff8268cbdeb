"""``genai_config.json``, which onnxruntime-genai needs to run a decoder graph."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from bakeout.export.artifacts.file_names import GRAPH
from bakeout.graph_passes.graph.exporter_names import past_name
from bakeout.models.checkpoint.end_of_text import config_value, read_end_of_text, read_padding
from bakeout.models.data.limits import stated_context
from bakeout.models.errors import BakeoutError
from bakeout.models.extras import is_installed
from bakeout.models.files.json_object import read_json

GENAI_CONFIG = "genai_config.json"

# The names that architectures give to these in config.json.
_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads", "decoder_attention_heads")
# For architectures whose positions are distances (ALiBi), which name none: what Bloom was trained with.
_UNBOUNDED_CONTEXT = 2048
_SEARCH: Mapping[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
}
_INPUTS = ("input_ids", "attention_mask", "position_ids")
_CACHE = re.compile(r"(?P<before>(?:past|present)\w*\.)\d+(?P<after>\.(?:\w+\.)?(?P<kind>key|value))")


def write_genai_config(directory: Path, model: ir.Model, place: str = GRAPH) -> None:
    """Write ``genai_config.json`` for ``model``, the graph at ``place`` in ``directory``, as ``genai_config``."""
    _write(directory, genai_config(directory, model, place))


def genai_config(directory: Path, model: ir.Model, place: str = GRAPH) -> dict[str, Any]:
    """The content of ``genai_config.json`` for ``model``, the graph at ``place`` in ``directory``, by names and shapes.

    Heads, context length and special tokens come from ``config.json``, of a multimodal model from its text decoder's
    part, and ``generation_config.json`` beside it. Raises ``BakeoutError`` where these are missing there, or where
    genai cannot feed back what the graph keeps.
    """
    config = read_json(directory / "config.json")
    own = _of_decoder(config)
    ends, padding = read_end_of_text(directory).require(directory), read_padding(directory)
    inputs = {value.name or "": value for value in model.graph.inputs}
    past = _cache_templates(list(inputs))
    present = _cache_templates([value.name or "" for value in model.graph.outputs])
    if not genai_feeds_back(model) or present.keys() != past.keys():
        raise BakeoutError(
            f"{directory / place} has no keys and values of every layer, or other states beside them, and "
            "onnxruntime-genai feeds back nothing else.",
            "Run it with ONNX Runtime.",
        )
    layers = sum(_CACHE.fullmatch(name) is not None for name in inputs) // 2
    key = inputs[past["key"] % 0].shape
    heads, size = (key[1], key[3]) if key is not None and len(key) == 4 else (None, None)
    if not isinstance(heads, int) or not isinstance(size, int):
        raise BakeoutError(
            f"{directory / place}: the number of heads is not in the cache's shape.", "Export it with optimum."
        )
    # As it is stated: a factor of rotary positions is in it already for some models, and not for others.
    context = stated_context(own)
    if context is None:
        context = _first({"seq_length": _UNBOUNDED_CONTEXT, **own}, ("seq_length",), directory)
    begin = config_value(config, "bos_token_id")
    return {
        "model": {
            **({"bos_token_id": begin} if isinstance(begin, int) else {}),
            "context_length": context,
            "decoder": {
                "filename": place,
                "head_size": size,
                "hidden_size": _first(own, ("hidden_size", "n_embd", "d_model"), directory),
                "inputs": {
                    **{name: name for name in _INPUTS if name in inputs},
                    **{f"past_{kind}_names": template for kind, template in past.items()},
                },
                "num_attention_heads": _first(own, _HEADS, directory),
                "num_hidden_layers": layers,
                "num_key_value_heads": heads,
                "outputs": {
                    "logits": "logits",
                    **{f"present_{kind}_names": template for kind, template in present.items()},
                },
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
            },
            "eos_token_id": sorted(ends) if len(ends) > 1 else ends[0],
            "pad_token_id": ends[0] if padding is None else padding,
            # genai's name for any decoder whose graph does all the work.
            "type": "decoder",
            "vocab_size": _first(own, ("vocab_size",), directory),
        },
        "search": {
            **_search(directory),
            "max_length": context,
            # The graph's new cache is one token longer than the old: it cannot lie in the same memory.
            "past_present_share_buffer": False,
        },
    }


def _of_decoder(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a configuration that is the decoder's: all of it, or a multimodal model's ``text_config``.

    Some leave out of the latter what is their architecture's default, such as Gemma 3's heads: transformers knows it.
    """
    text = config.get("text_config")
    if not isinstance(text, Mapping):
        return config
    if not is_installed("transformers"):
        return text
    from transformers import AutoConfig

    try:
        complete = AutoConfig.for_model(**config).get_text_config(decoder=True).to_dict()
    # Each architecture's own code checks its entries, in ways of its own.
    except Exception:  # noqa: BLE001
        return text
    return {**complete, **text}


def has_cache(model: ir.Model) -> bool:
    """Whether a graph takes past keys and values."""
    return bool(_cache_templates([value.name or "" for value in model.graph.inputs]))


def genai_feeds_back(model: ir.Model) -> bool:
    """Whether all that a graph takes from the run before is what genai feeds back: keys and values of every layer.

    By default it knows of no layer without them, such as those of hybrid models, nor of recurrent states.
    """
    names = [value.name or "" for value in model.graph.inputs]
    past = {name for name in names if past_name(name) is not None}
    templates = _cache_templates(names).values()
    return bool(past) and past == {template % layer for template in templates for layer in range(len(past) // 2)}


def copy_genai_config(source: Path, directory: Path, place: str = GRAPH) -> None:
    """Take over the ``genai_config.json`` of another graph's directory, for the graph at ``place``."""
    content = read_json(source / GENAI_CONFIG)
    try:
        content["model"]["decoder"]["filename"] = place
    except (KeyError, TypeError):
        raise BakeoutError(f"{source / GENAI_CONFIG} names no decoder.", "Remove it, or copy it again.") from None
    _write(directory, content)


def require_whole_prompts(directory: Path) -> None:
    """Raise ``BakeoutError`` where ``directory`` holds a configuration by which genai reads prompts in chunks."""
    search = read_json(directory / GENAI_CONFIG).get("search")
    size = search.get("chunk_size") if isinstance(search, dict) else None
    if isinstance(size, int | float) and size > 0:
        raise BakeoutError(
            f"{GENAI_CONFIG} reads prompts in chunks of {size:g} tokens, and `positions: mean` takes each for a query.",
            "Take `chunk_size` out of it, or fit with `positions: query`.",
        )


def _write(directory: Path, content: Mapping[str, Any]) -> None:
    (directory / GENAI_CONFIG).write_text(json.dumps(content, indent=4, sort_keys=True) + "\n", encoding="utf-8")


def _cache_templates(names: Sequence[str]) -> dict[str, str]:
    """``{"key": "past_key_values.%d.key", ...}`` of the names of one side."""
    matches = (_CACHE.fullmatch(name) for name in names)
    return {match["kind"]: f"{match['before']}%d{match['after']}" for match in matches if match}


def _search(directory: Path) -> dict[str, Any]:
    generation = read_json(directory / "generation_config.json")
    return {key: default if generation.get(key) is None else generation[key] for key, default in _SEARCH.items()}


def _first(config: Mapping[str, Any], keys: Sequence[str], directory: Path) -> int:
    for key in keys:
        if isinstance(config.get(key), int):
            return int(config[key])
    raise BakeoutError(f"{directory}: config.json does not give {keys[0]}.", "Put the model's config.json there.")
