"""An artifact in the layout of transformers.js's public repositories, and every command and runtime that reads it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from optimum.onnxruntime import ORTModelForCausalLM

from bakeout.export.baking.bake import bake
from bakeout.export.baking.model_card import model_card
from bakeout.export.cli.main import main
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.export.running.runner import Runner
from bakeout.export.verification.verify import verify
from bakeout.models.skills import checkpoint_directory

from tests.runtimes.javascript import installed
from tests.runtimes.served import LONGEST, Served


def answered(example: Path, model: Path, texts: list[str]) -> list[list[int]]:
    command = ["node", "transformers.mjs", "--json", str(model), *texts]
    done = subprocess.run(command, cwd=example, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line)["tokens"] for line in done.stdout.splitlines()]


def test_it_is_the_layout_of_public_repositories(served: Served) -> None:
    assert sorted(path.name for path in (served.public / "onnx").iterdir()) == ["model.onnx", "model.onnx_data"]
    here = {path.name for path in served.public.iterdir() if path.is_file()}
    assert {"config.json", "generation_config.json", "genai_config.json", "tokenizer.json", "plan.safetensors"} <= here
    assert not any(name.endswith((".onnx", ".data")) for name in here)


def test_every_command_reads_it(served: Served) -> None:
    for arguments in (
        ["inspect", served.public],
        ["verify", served.public, "--base", checkpoint_directory()],
        ["chat", served.public, "--prompt", served.texts[0]],
    ):
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
    assert result.stdout.strip() == served.text(served.expected[0])
    assert Runner(served.public, threads=1).generate(served.ids, LONGEST) == served.expected


def test_optimum(served: Served) -> None:
    model = ORTModelForCausalLM.from_pretrained(served.public)
    for prompt, expected in zip(served.ids, served.expected, strict=True):
        ids = torch.tensor([prompt])
        said = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=LONGEST, do_sample=False)
        assert said[0, len(prompt) :].tolist() == expected


def test_genai(served: Served) -> None:
    genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    model = genai.Model(str(served.public))
    for prompt, expected in zip(served.ids, served.expected, strict=True):
        parameters = genai.GeneratorParams(model)
        parameters.set_search_options(max_length=len(prompt) + LONGEST)
        generator = genai.Generator(model, parameters)
        generator.append_tokens(np.array([prompt], np.int32))
        while not generator.is_done():
            generator.generate_next_token()
        assert list(generator.get_sequence(0))[len(prompt) :] == expected[:-1]


def test_int8(served: Served, tmp_path: Path) -> None:
    options = BakeOptions(quantize="int8", runtimes=("transformers.js",))
    model = bake(served.base, served.plan, tmp_path / "int8", options).directory
    assert (model / "onnx" / "model_int8.onnx").is_file()
    expected = Runner(model, threads=1).generate(served.ids, LONGEST, batch_size=1)
    assert answered(installed("node"), model, served.texts) == expected


def test_a_variant_keeps_its_name(served: Served, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(served.base, base / "onnx")
    for path in (base / "onnx").iterdir():
        if not path.name.startswith("model.onnx"):
            path.rename(base / path.name)
    (base / "onnx" / "model.onnx").rename(base / "onnx" / "model_q4f16.onnx")
    own = {"kv_cache_dtype": {"q4f16": "float16"}, "dtype": "q8", "use_external_data_format": True}
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(json.dumps({**config, "transformers.js_config": own}), encoding="utf-8")
    options = BakeOptions(variant="q4f16", runtimes=("transformers.js",))
    model = bake(base, served.plan, tmp_path / "baked", options).directory
    known = json.loads((model / "config.json").read_text(encoding="utf-8"))["transformers.js_config"]
    name = "model_q4f16.onnx"
    assert known == {
        "dtype": "q4f16",
        "kv_cache_dtype": {"q4f16": "float16"},
        "use_external_data_format": {name: 1},
    }
    assert sorted(path.name for path in (model / "onnx").iterdir()) == [name, f"{name}_data"]
    assert answered(installed("node"), model, served.texts[:1]) == served.expected[:1]


def test_another_graph_beside_it_is_found(served: Served, tmp_path: Path) -> None:
    """Although the manifest lists it, and every file is as it says."""
    for place, genai in (("model.onnx", "onnx/model.onnx"), ("onnx/other.onnx", "onnx/model.onnx")):
        copy = shutil.copytree(served.public, tmp_path / place.replace("/", "-"))
        shutil.copyfile(served.base / "model.onnx", copy / place)
        manifest = json.loads((copy / "bakeout.json").read_text(encoding="utf-8"))
        manifest["files"][place] = manifest["files"]["onnx/model.onnx"]
        (copy / "bakeout.json").write_text(json.dumps(manifest), encoding="utf-8")
        assert json.loads((copy / "genai_config.json").read_text())["model"]["decoder"]["filename"] == genai
        (graph,) = verify(copy, checks=["graph"])
        assert not graph.ok
        assert f"another graph than model.onnx: {place}" in graph.detail


def card_block(language: str, served: Served, **options: Any) -> str:
    (code,) = re.findall(rf"```{language}\n(.*?)```", model_card(served.plan, (), **options), re.S)
    return str(code)


def test_the_cards_code_for_transformers_js(served: Served, tmp_path: Path) -> None:
    code = card_block("javascript", served, runtimes=("transformers.js",))
    artifact = shutil.copytree(served.public, tmp_path / "artifact")
    (artifact / "run.mjs").write_text(code.replace("Your question", served.texts[0]), encoding="utf-8")
    (artifact / "node_modules").symlink_to(installed("node") / "node_modules")
    done = subprocess.run(["node", "run.mjs"], cwd=artifact, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(served.text(served.expected[0]))


def test_the_cards_code_for_genai(served: Served, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    card = model_card(served.plan, (), runtimes=("genai",))
    _, code = re.findall(r"```python\n(.*?)```", card, re.S)
    monkeypatch.chdir(served.public)
    exec(compile(code.replace("Your question", served.texts[0]), "card", "exec"), {})
    assert capfd.readouterr().out.strip().endswith(served.text(served.expected[0]))
