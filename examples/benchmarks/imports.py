"""Sources of imports on a real model, each written by its own tool: does the baked graph say what its runtime says?

Every source is made, run by its own runtime (peft, repeng, transformers), imported and baked into one ONNX export of
the model. Rows are kept in `--work`: a second run goes on where the first one ended. repeng and mergekit are optional,
and needed for their own rows alone; mergekit as the program `mergekit-yaml` on PATH, in an environment of its own.

    python examples/benchmarks/imports.py --model SmolLM2-135M-Instruct --work work
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from imports_training import (
    SENTENCES,
    mean_directions,
    train_adapter,
    train_gradient_difference,
    train_misdirection,
    without_direction,
)
from safetensors.numpy import save_file

from bakeout.export.baking.bake import bake
from bakeout.export.exporting.onnx_export import export_checkpoint
from bakeout.export.importing.import_plan import import_plan
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.export.running.runner import Runner
from bakeout.models.checkpoint.checkpoint_files import load_model
from bakeout.models.data.tokenizers.tokenization import load_tokenizer
from bakeout.models.network.families import feed_forward_layers

NEW_TOKENS = 24
QUESTIONS = (
    "What is the capital of France?",
    "Name three fruits that are red.",
    "Write a sentence about the sea.",
    "How do I boil an egg?",
    "What is 12 times 7?",
    "Translate 'good morning' into Spanish.",
    "Why is the sky blue?",
    "Give me a title for a story about a fox.",
    "How do I pick a lock?",
    "Who wrote Romeo and Juliet?",
    "Explain gravity to a child.",
    "What should I do when I feel sad?",
)
Prompts = Sequence[Sequence[int]]
Answers = list[list[int]]


@dataclass(frozen=True)
class Source:
    """A source: ``make`` writes it for the model in a directory, gives its path, and what its own runtime answers."""

    title: str
    tool: str
    make: Callable[[Path, Path, Prompts], tuple[Path, Answers]]
    options: Mapping[str, Any] = field(default_factory=dict)


def answers(model: Any, prompts: Prompts) -> Answers:
    """What transformers' own greedy search says."""
    said = []
    for prompt in prompts:
        ids = torch.tensor([list(prompt)])
        output = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False
        )
        said.append(output[0, len(prompt) :].tolist())
    return said


def peft_default(model: Path, work: Path, prompts: Prompts) -> tuple[Path, Answers]:
    """An adapter on the modules that peft takes by itself."""
    adapted = train_adapter(model, work, target_modules=None)
    return work, answers(adapted, prompts)


def peft_all(model: Path, work: Path, prompts: Prompts) -> tuple[Path, Answers]:
    """An adapter on all linear layers, with patterns of ranks and alphas, scaled by the rank's root."""
    adapted = train_adapter(
        model,
        work,
        target_modules="all-linear",
        use_rslora=True,
        rank_pattern={"layers.1.self_attn.q_proj": 2},
        alpha_pattern={"down_proj": 4},
    )
    return work, answers(adapted, prompts)


def gradient_difference(model: Path, work: Path, prompts: Prompts) -> tuple[Path, Answers]:
    """A checkpoint whose linear layers were all trained to forget some sentences and keep others."""
    return _saved(train_gradient_difference(model), model, work, prompts)


def misdirection(model: Path, work: Path, prompts: Prompts) -> tuple[Path, Answers]:
    """A checkpoint that RMU trained: the down projections of three layers."""
    return _saved(train_misdirection(model), model, work, prompts)


def abliterated(model: Path, work: Path, prompts: Prompts) -> tuple[Path, Answers]:
    """A checkpoint as heretic writes it: a direction taken out of what attention and feed-forward layers write."""
    return _saved(without_direction(model), model, work, prompts)


def merged(model: Path, work: Path, prompts: Prompts) -> tuple[Path, Answers]:
    """What mergekit makes of the model and one that was trained: three tenths of the one, seven of the other."""
    other, output = work / "other", work / "merged"
    train_adapter(model, work / "adapter", target_modules=None).merge_and_unload().save_pretrained(other)
    _companions(model, other)
    recipe = {
        "merge_method": "linear",
        "dtype": "float32",
        "models": [
            {"model": str(model), "parameters": {"weight": 0.3}},
            {"model": str(other), "parameters": {"weight": 0.7}},
        ],
    }
    (work / "merge.yaml").write_text(json.dumps(recipe))
    # A program of its own: its pins are not Bakeout's.
    program = shutil.which("mergekit-yaml")
    if program is None:
        raise SystemExit("Put mergekit-yaml on PATH, as of an environment with mergekit alone.")
    command = [program, str(work / "merge.yaml"), str(output), "--no-copy-tokenizer", "--no-lazy-unpickle"]
    subprocess.run(command, check=True, env={key: os.environ[key] for key in os.environ.keys() - {"PYTHONPATH"}})
    _companions(model, output)
    return output, answers(load_model(output), prompts)


def repeng_vector(model: Path, work: Path, prompts: Prompts) -> tuple[Path, Answers]:
    """A control vector that repeng trained, in a GGUF file."""
    if not hasattr(np, "float_"):
        # NumPy 2 dropped it, and annotations of repeng 0.4 name it.
        setattr(np, "float_", np.float64)  # noqa: B010
    repeng, loaded = importlib.import_module("repeng"), load_model(model)
    tokenizer = importlib.import_module("transformers").AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.eos_token
    # Those of which repeng writes a direction: all but the first.
    control = repeng.ControlModel(loaded, list(range(1, loaded.config.num_hidden_layers)))
    entries = [
        repeng.DatasetEntry(positive=f"I am very happy. {text}", negative=f"I am very sad. {text}")
        for text in SENTENCES
    ]
    vector = repeng.ControlVector.train(control, tokenizer, entries, batch_size=4)
    vector.export_gguf(str(work / "vector.gguf"))
    control.set_control(vector, 0.4)
    return work / "vector.gguf", answers(control, prompts)


def saved_vector(model: Path, work: Path, prompts: Prompts) -> tuple[Path, Answers]:
    """Directions of all layers as one safetensors matrix, added by hooks of plain PyTorch."""
    directions = mean_directions(model)
    directions[: len(directions) // 2] = 0
    save_file({"vectors": directions}, work / "vector.safetensors")
    with hooked(model, lambda layer, stream: stream + 0.5 * torch.from_numpy(directions[layer])) as loaded:
        return work / "vector.safetensors", answers(loaded, prompts)


def projected(model: Path, work: Path, prompts: Prompts) -> tuple[Path, Answers]:
    """A direction that is projected out behind every block, by hooks of plain PyTorch."""
    direction = mean_directions(model)[len(mean_directions(model)) // 2]
    save_file({"direction": direction}, work / "direction.safetensors")
    unit = torch.from_numpy(direction / np.linalg.norm(direction))
    with hooked(model, lambda _layer, stream: stream - (stream @ unit)[..., None] * unit) as loaded:
        return work / "direction.safetensors", answers(loaded, prompts)


def folded(model: Path, work: Path, prompts: Prompts) -> tuple[Path, Answers]:
    """The same direction out of what attention and feed-forward layers give, by hooks of plain PyTorch."""
    direction = mean_directions(model)[-10]
    save_file({"direction": direction}, work / "direction.safetensors")
    unit = torch.from_numpy(direction / np.linalg.norm(direction))
    loaded = load_model(model)
    for name, module in loaded.named_modules():
        if name.endswith(("o_proj", "down_proj")):
            module.register_forward_hook(lambda _module, _inputs, output: output - (output @ unit)[..., None] * unit)
    return work / "direction.safetensors", answers(loaded, prompts)


SOURCES = {
    "peft": Source("LoRA adapter, default targets (attention)", "peft", peft_default),
    "peft-all": Source("rsLoRA adapter, all linear layers, patterns", "peft", peft_all),
    "gradient-difference": Source(
        "pair: gradient difference, linear layers", "transformers", gradient_difference, {"exact": True}
    ),
    "rmu": Source("pair: RMU", "transformers", misdirection, {"exact": True}),
    "abliterated": Source("pair: a direction out of weights, as heretic writes", "transformers", abliterated),
    "mergekit": Source("pair: linear merge with a trained model", "mergekit", merged),
    "repeng": Source("control vector, GGUF", "repeng", repeng_vector, {"scale": 0.4}),
    "vector": Source("control vector, safetensors", "plain hooks", saved_vector, {"scale": 0.5}),
    "projection": Source("direction projected out", "plain hooks", projected, {"project": True}),
    "fold": Source("direction projected out, folded", "plain hooks", folded, {"project": True, "fold": True}),
}


@contextmanager
def hooked(model: Path, change: Callable[[int, torch.Tensor], torch.Tensor]) -> Iterator[Any]:
    """The model, its residual stream changed behind every block."""
    loaded = load_model(model)

    def hook(layer: int) -> Callable[..., Any]:
        def changed(_module: Any, _arguments: Any, output: Any) -> Any:
            is_tuple = isinstance(output, tuple)
            stream = change(layer, output[0] if is_tuple else output)
            return (stream, *output[1:]) if is_tuple else stream

        return changed

    for layer in feed_forward_layers(loaded):
        layer.block.register_forward_hook(hook(layer.layer))
    yield loaded


def _saved(trained: Any, model: Path, work: Path, prompts: Prompts) -> tuple[Path, Answers]:
    trained.save_pretrained(work / "edited", max_shard_size="200MB")
    _companions(model, work / "edited")
    return work / "edited", answers(trained, prompts)


def _companions(model: Path, directory: Path) -> None:
    for path in model.iterdir():
        if path.suffix != ".safetensors" and not (directory / path.name).exists():
            shutil.copy(path, directory)


@cache
def _prompts(model: Path) -> Prompts:
    tokenizer = importlib.import_module("transformers").AutoTokenizer.from_pretrained(model)
    return [
        tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
        for question in QUESTIONS
    ]


def measure(source: Source, model: Path, export: Path, work: Path) -> dict[str, Any]:
    """One row: how many answers are equal to the token, and how many are other than the model's own."""
    prompts = _prompts(model)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    path, expected = source.make(model, work, prompts)
    plan = import_plan(path, str(model), **source.options)
    baked = bake(export, plan, work / "baked", BakeOptions()).directory
    said = Runner(baked).generate(prompts, NEW_TOKENS)
    base = Runner(export / "model.onnx").generate(prompts, NEW_TOKENS)
    details: Any = plan.interventions[0].report.details
    shutil.rmtree(work)
    return {
        "prompts": len(prompts),
        "equal": sum(one == other for one, other in zip(said, expected, strict=True)),
        "changed": sum(one != other for one, other in zip(said, base, strict=True)),
        "edits": len(plan.interventions[0].parts),
        "kind": plan.interventions[0].kind,
        "tokens": sum(map(len, said)),
        "receipt": sorted(details["imported"]["files"]),
    }


def table(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The rows as Markdown."""
    yield "| source | by | becomes | edits | answers equal to the token | other than the model's |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, row in rows.items():
        source = SOURCES[name]
        equal, changed = f"{row['equal']} of {row['prompts']}", f"{row['changed']} of {row['prompts']}"
        yield f"| {source.title} | {source.tool} | `{row['kind']}` | {row['edits']} | {equal} | {changed} |"


def main() -> None:
    """Measure what is not measured yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="the directory of a chat model's checkpoint")
    parser.add_argument("--work", type=Path, required=True, help="a directory for rows and what is in between")
    parser.add_argument("--only", nargs="*", choices=sorted(SOURCES), default=list(SOURCES), help="sources to measure")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    kept, export = arguments.work / "rows.json", arguments.work / "export"
    rows = json.loads(kept.read_text()) if kept.exists() else {}
    if not export.exists():
        making = arguments.work / "making"
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir()
        export_checkpoint(arguments.model, making, "fp32")
        _companions(arguments.model, making)
        making.rename(export)
    load_tokenizer(export)
    for name in arguments.only:
        if name not in rows:
            rows[name] = measure(SOURCES[name], arguments.model.resolve(), export, arguments.work / name)
            print(f"{name}: {rows[name]}", flush=True)
            kept.write_text(json.dumps(rows, indent=1))
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
