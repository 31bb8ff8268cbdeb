"""onnxruntime-genai runs exported graphs by the configuration that is written for them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bakeout.export.running.genai_config import copy_genai_config, genai_config, has_cache, write_genai_config
from bakeout.export.running.runner import Runner
from bakeout.graph_passes.graph.graph_file import load_graph
from bakeout.models.errors import BakeoutError

from tests.conftest import CheckpointOf


def _copy(source: Path, directory: Path) -> Path:
    shutil.copytree(source, directory)
    return directory


@pytest.mark.parametrize("family", ["llama", "gemma", "opt"])
def test_genai_says_what_our_loop_says(onnx_of: CheckpointOf, tmp_path: Path, family: str) -> None:
    genai = pytest.importorskip("onnxruntime_genai")
    directory = _copy(onnx_of(family), tmp_path / family)
    write_genai_config(directory, load_graph(directory / "model.onnx"))
    prompt = [5, 77, 130, 9]
    (expected,) = Runner(directory).generate([prompt], 8)
    model = genai.Model(str(directory))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + 8)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array([prompt], dtype=np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    assert list(generator.get_sequence(0))[len(prompt) :] == expected


def test_options_of_generation_are_carried_over(llama_onnx: Path, tmp_path: Path) -> None:
    directory = _copy(llama_onnx, tmp_path / "model")
    path = directory / "generation_config.json"
    settings = {"eos_token_id": [1, 7], "pad_token_id": 0, "temperature": 0.5, "do_sample": True, "top_k": None}
    path.write_text(json.dumps(settings))
    write_genai_config(directory, load_graph(directory / "model.onnx"))
    written = json.loads((directory / "genai_config.json").read_text())
    assert written["model"]["eos_token_id"] == [1, 7]
    assert written["search"]["temperature"] == 0.5
    assert written["search"]["do_sample"] is True
    assert written["search"]["top_k"] == 50


def test_a_configuration_that_does_not_say_enough_is_refused(llama_onnx: Path, tmp_path: Path) -> None:
    directory = _copy(llama_onnx, tmp_path / "model")
    (directory / "config.json").write_text('{"eos_token_id": 1}')
    assert has_cache(load_graph(directory / "model.onnx"))
    with pytest.raises(BakeoutError, match=r"config\.json does not give"):
        write_genai_config(directory, load_graph(directory / "model.onnx"))


def test_sizes_of_a_multimodal_model_are_its_text_decoders(llama_onnx: Path, tmp_path: Path) -> None:
    directory = _copy(llama_onnx, tmp_path / "model")
    graph = load_graph(directory / "model.onnx")
    expected = genai_config(directory, graph)
    own = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": own}))
    assert genai_config(directory, graph) == expected


def test_what_gemma_3_leaves_out_of_its_configuration_is_known(llama_onnx: Path, tmp_path: Path) -> None:
    """The text decoder of gemma-3-4b-it, as its repository has it; its context is stretched already."""
    directory = _copy(llama_onnx, tmp_path / "model")
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    config = {"model_type": "gemma3", "eos_token_id": [1, 106], "text_config": text}
    (directory / "config.json").write_text(json.dumps(config))
    model = genai_config(directory, load_graph(directory / "model.onnx"))["model"]
    assert (model["decoder"]["num_attention_heads"], model["decoder"]["hidden_size"]) == (8, 2560)
    assert (model["vocab_size"], model["context_length"]) == (262_208, 131_072)


@pytest.mark.parametrize("name", ["past_key_values.7.key", "past_conv.0"])
def test_what_genai_does_not_feed_back_is_told(llama_onnx: Path, name: str) -> None:
    """The first layer's cache bears another's number, or a convolution's state stands in its place."""
    graph = load_graph(llama_onnx / "model.onnx")
    next(value for value in graph.graph.inputs if value.name == "past_key_values.0.key").name = name
    with pytest.raises(BakeoutError, match="onnxruntime-genai feeds back nothing else"):
        genai_config(llama_onnx, graph)


def test_anothers_configuration_is_taken_over_for_our_graph(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "genai_config.json").write_text('{"model": {"decoder": {"filename": "other.onnx", "x": 1}}, "y": 2}')
    copy_genai_config(tmp_path, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "genai_config.json").read_text())
    assert written == {"model": {"decoder": {"filename": "model.onnx", "x": 1}}, "y": 2}
    (tmp_path / "genai_config.json").write_text('{"model": 3}')
    with pytest.raises(BakeoutError, match="no decoder"):
        copy_genai_config(tmp_path, tmp_path / "out")
