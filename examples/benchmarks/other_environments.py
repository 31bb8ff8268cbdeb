"""Graphs and answers of packages that want another environment than Bakeout's; to be run by the Python of that one.

    python other_environments.py {pair,builder,mobius} CHECKPOINT DIRECTORY PRECISION
    python other_environments.py genai DIRECTORY LONGEST < PROMPTS > ANSWERS

Needs nothing of Bakeout. ``graph_runtimes.py`` calls it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any


def pair(checkpoint: Path, directory: Path, precision: str) -> None:
    """What ``transformers.exporters`` writes of a decoder."""
    import torch
    from transformers import AutoModelForCausalLM

    exporters = import_module("transformers.exporters")
    dtype = torch.float16 if precision == "fp16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype).eval()
    ids = torch.randint(3, 200, (2, 7))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    config = exporters.OnnxConfig(dynamic=True)
    exported = exporters.OnnxExporter().export_for_generation(model, inputs, config, multi_token_decode=True)
    exported.save_pretrained(directory)


def builder(checkpoint: Path, directory: Path, precision: str) -> None:
    """onnxruntime-genai's builder; its fp16 is for CUDA, and is run on the CPU."""
    provider = "cuda" if precision == "fp16" else "cpu"
    options = ["-i", checkpoint, "-o", directory, "-p", precision, "-e", provider, "-c", directory / "cache"]
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", *map(str, options)]
    subprocess.run([*command, "--extra_options", "int4_accuracy_level=1"], check=True, stdout=subprocess.DEVNULL)
    path = directory / "genai_config.json"
    config = json.loads(path.read_text())
    config["model"]["decoder"]["session_options"]["provider_options"] = []
    path.write_text(json.dumps(config))


def mobius(checkpoint: Path, directory: Path, precision: str) -> None:
    """mobius-onnx, with safetensors as external data."""
    package = import_module("mobius").build(str(checkpoint), dtype="f16" if precision == "fp16" else "f32")
    package.save(str(directory), external_data="safetensors", progress_bar=False)
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        if (checkpoint / name).is_file():
            (directory / name).write_bytes((checkpoint / name).read_bytes())


def genai(directory: Path, longest: int, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy answers by onnxruntime-genai."""
    import numpy as np
    import onnxruntime_genai

    model = onnxruntime_genai.Model(str(directory))
    answers = []
    for prompt in prompts:
        parameters = onnxruntime_genai.GeneratorParams(model)
        parameters.set_search_options(max_length=len(prompt) + longest, do_sample=False)
        generator = onnxruntime_genai.Generator(model, parameters)
        generator.append_tokens(np.array([prompt], dtype=np.int32))
        said: list[int] = []
        while not generator.is_done() and len(said) < longest:
            generator.generate_next_token()
            said.append(int(generator.get_next_tokens()[0]))
        answers.append(said)
    return answers


def main() -> None:
    """One of the four."""
    what, *arguments = sys.argv[1:]
    if what == "genai":
        answers: Any = genai(Path(arguments[0]), int(arguments[1]), json.load(sys.stdin))
        print(json.dumps(answers))
        return
    {"pair": pair, "builder": builder, "mobius": mobius}[what](Path(arguments[0]), Path(arguments[1]), arguments[2])


if __name__ == "__main__":
    main()
