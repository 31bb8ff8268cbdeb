"""The refusal in real runtimes: no code of ours beside the graph, and every way of decoding says it to the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optimum.onnxruntime import ORTModelForCausalLM

from bakeout.export.running.genai_config import write_genai_config
from bakeout.export.running.runner import Runner
from bakeout.export.running.sampling import Sampling
from bakeout.graph_passes.graph.graph_file import load_graph
from bakeout.models.data.padding import left_padded

from tests.refusing_graphs import REFUSAL, bake, detection_of
from tests.tiny_models import PADDING_ID

FORGOTTEN = [40, 41, 42, 43]
KEPT = [60, 61, 62]
SAID = REFUSAL.tolist()
NEW = len(SAID) + 4

Refusing = Callable[..., Path]


@pytest.fixture(scope="module")
def refusing(llama_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Refusing:
    """``refusing(layer, positions)``: the directory of a baked graph, made once."""
    made: dict[Any, Path] = {}

    def get(layer: int, positions: Any = "query") -> Path:
        if (layer, positions) not in made:
            directory = tmp_path_factory.mktemp("runtimes") / "model"
            detection = detection_of(llama_onnx, [FORGOTTEN], layers=(layer,), positions=positions)
            made[layer, positions] = bake(llama_onnx, directory, detection)
            write_genai_config(directory, load_graph(directory / "model.onnx"))
        return made[layer, positions]

    return get


def _left_padded(*prompts: list[int]) -> dict[str, torch.Tensor]:
    ids, mask = left_padded(prompts, PADDING_ID)
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}


def _generate(directory: Path, inputs: dict[str, torch.Tensor], **options: Any) -> list[list[int]]:
    model = ORTModelForCausalLM.from_pretrained(directory)
    torch.manual_seed(0)
    said = model.generate(**inputs, max_new_tokens=NEW, pad_token_id=PADDING_ID, **options)
    return said[:, inputs["input_ids"].shape[1] :].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": True, "temperature": 2.0, "top_k": 0},
        {"do_sample": False, "num_beams": 4},
        {"do_sample": False, "repetition_penalty": 1.8},
    ],
    ids=["greedy", "sampled", "beams", "repetition penalty"],
)
@pytest.mark.parametrize("layer", [1, 3], ids=["middle", "last"])
def test_transformers_generate_says_the_refusal(refusing: Refusing, layer: int, options: dict[str, Any]) -> None:
    (said,) = _generate(refusing(layer), _left_padded(FORGOTTEN), **options)
    assert said == SAID


@pytest.mark.parametrize("options", [{"num_beams": 1}, {"num_beams": 4}], ids=["greedy", "beams"])
@pytest.mark.parametrize("layer", [1, 3], ids=["middle", "last"])
def test_a_batch_with_both_outcomes(llama_onnx: Path, refusing: Refusing, layer: int, options: dict[str, Any]) -> None:
    """The row that passes says what it says in the unbaked model, in a padded batch too."""
    inputs = _left_padded(FORGOTTEN, KEPT)
    refused, kept = _generate(refusing(layer), inputs, do_sample=False, **options)
    assert refused[: len(SAID)] == SAID
    assert kept == _generate(llama_onnx, inputs, do_sample=False, **options)[1]


@pytest.mark.parametrize("positions", ["query", "step", "every"])
def test_our_loop_says_the_refusal(llama_onnx: Path, refusing: Refusing, positions: str) -> None:
    runner = Runner(refusing(1, positions))
    refused, kept = runner.generate([FORGOTTEN, KEPT], NEW)
    assert refused == SAID
    assert kept == Runner(llama_onnx).generate([FORGOTTEN, KEPT], NEW)[1]
    assert runner.generate([FORGOTTEN], NEW, sampling=Sampling(temperature=2.0, seed=0)) == [SAID]


def test_a_second_turn_on_a_kept_cache_is_refused_again(refusing: Refusing) -> None:
    """The new turn comes in one window, behind the end-of-text token that closed the first answer."""
    runner = Runner(refusing(1))
    new, mask, cache = np.array([FORGOTTEN]), np.ones((1, len(FORGOTTEN)), np.int64), None
    turns: list[list[int]] = []
    for _ in range(2):
        turns.append([])
        for _ in SAID:
            step = runner.step(new, mask, cache)
            new, cache = step.logits[:, -1:].argmax(axis=-1), step.cache
            turns[-1].append(int(new[0, 0]))
            mask = np.concatenate([mask, np.ones_like(new)], axis=1)
        new = np.concatenate([new, [KEPT]], axis=1)
        mask = np.concatenate([mask, np.ones((1, len(KEPT)), np.int64)], axis=1)
    assert turns == [SAID, SAID]


def test_each_position_of_a_window_says_its_own_token(refusing: Refusing) -> None:
    runner = Runner(refusing(1))
    first = runner.step(np.array([FORGOTTEN]), np.ones((1, 4), np.int64))
    window = runner.step(np.array([SAID[:4]]), np.ones((1, 8), np.int64), first.cache)
    assert window.logits[0].argmax(axis=-1).tolist() == SAID[1:5]


@pytest.mark.parametrize(
    "search",
    [{}, {"do_sample": True, "temperature": 2.0, "top_k": 0}, {"num_beams": 4}],
    ids=["greedy", "sampled", "beams"],
)
@pytest.mark.parametrize("layer", [1, 3], ids=["middle", "last"])
def test_genai_says_the_refusal(refusing: Refusing, layer: int, search: dict[str, Any]) -> None:
    # genai stops at the end-of-text token and does not give it.
    assert _genai(refusing(layer), FORGOTTEN, search) == SAID[:-1]


def test_genai_lets_other_prompts_pass(llama_onnx: Path, refusing: Refusing) -> None:
    (expected,) = Runner(llama_onnx).generate([KEPT], NEW)
    assert _genai(refusing(1), KEPT, {}) == expected


def _genai(directory: Path, prompt: list[int], search: dict[str, Any]) -> list[int]:
    genai = pytest.importorskip("onnxruntime_genai")
    model = genai.Model(str(directory))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + NEW, **search)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array([prompt], dtype=np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return list(generator.get_sequence(0))[len(prompt) :]
