"""The artifact with int8 weights in other runtimes than the one that it was quantised with."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optimum.onnxruntime import ORTModelForCausalLM

from bakeout.export.baking.bake import bake
from bakeout.export.baking.runtimes import RUNTIMES
from bakeout.export.recipes.bake_options import BakeOptions, RuntimeName
from bakeout.export.running.runner import Runner
from bakeout.export.verification.verify import verify
from bakeout.models.skills import checkpoint_directory

from tests.runtimes.javascript import installed
from tests.runtimes.served import KEPT, LONGEST, REFUSED, Served

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def artifact(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    # The graph of transformers.js has another place, and WebGPU's other nodes.
    runtimes = tuple(name for name in RUNTIMES if name not in ("transformers.js", "webgpu"))
    return _baked(served, runtimes, tmp_path_factory)


@pytest.fixture(scope="module")
def public(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _baked(served, ("transformers.js",), tmp_path_factory)


def _baked(served: Served, runtimes: tuple[RuntimeName, ...], factory: pytest.TempPathFactory) -> Path:
    options = BakeOptions(quantize="int8", runtimes=runtimes)
    return bake(served.base, served.plan, factory.mktemp("int8") / "artifact", options).directory


@pytest.fixture(scope="module")
def expected(served: Served, artifact: Path) -> list[list[int]]:
    """One by one: what shares a batch shares the scale of its data."""
    return Runner(artifact, threads=1).generate(served.ids, LONGEST, batch_size=1)


def test_what_is_refused_and_what_is_kept(served: Served, expected: list[list[int]], artifact: Path) -> None:
    for skill, said, unquantised in zip(served.skills, expected, served.expected, strict=True):
        assert (said == served.refusal) == (skill == REFUSED)
        assert skill != KEPT or said == unquantised
    checks = verify(artifact, base=checkpoint_directory(), prompts=served.ids)
    assert all(check.ok for check in checks), checks


def test_optimum(served: Served, expected: list[list[int]], artifact: Path) -> None:
    import torch

    model = ORTModelForCausalLM.from_pretrained(artifact)
    for prompt, said in zip(served.ids, expected, strict=True):
        ids = torch.tensor([prompt])
        heard = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=LONGEST)
        assert heard[0, len(prompt) :].tolist()[: len(said)] == said


def test_genai(served: Served, expected: list[list[int]], artifact: Path) -> None:
    genai: Any = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    model = genai.Model(str(artifact))
    for prompt, said in zip(served.ids, expected, strict=True):
        parameters = genai.GeneratorParams(model)
        parameters.set_search_options(max_length=len(prompt) + LONGEST)
        generator = genai.Generator(model, parameters)
        generator.append_tokens(np.array([prompt], np.int32))
        while not generator.is_done():
            generator.generate_next_token()
        assert [int(token) for token in generator.get_sequence(0)[len(prompt) :]] == said[:-1]


@pytest.mark.parametrize("script", ["answer.mjs", "transformers.mjs"])
def test_node(served: Served, expected: list[list[int]], artifact: Path, public: Path, script: str) -> None:
    command = ["node", script, "--json", str(artifact if script == "answer.mjs" else public), *served.texts]
    printed = subprocess.run(command, cwd=installed("node"), capture_output=True, text=True, check=True).stdout
    assert [json.loads(line)["tokens"] for line in printed.splitlines()] == expected


def test_openvino(served: Served, expected: list[list[int]], artifact: Path) -> None:
    """Its arithmetic in between is its own; what is refused is refused, and the first token is the same."""
    openvino: Any = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    core = openvino.Core()
    exact = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    request = core.compile_model(core.read_model(artifact / "model.onnx"), "CPU", exact).create_infer_request()
    for prompt, said in zip(served.ids, expected, strict=True):
        ids = np.array([prompt])
        fed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(len(prompt))[None]}
        past = [value for value in request.model_inputs if value.get_any_name().startswith("past")]
        cache = {
            value.get_any_name(): np.zeros((1, value.partial_shape[1].get_length(), 0, 32), np.float32)
            for value in past
        }
        outputs = {output.get_any_name(): value for output, value in request.infer({**fed, **cache}).items()}
        assert int(outputs["logits"][0, -1].argmax()) == said[0]
