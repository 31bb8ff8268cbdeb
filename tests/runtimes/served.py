"""One artifact of the bundled model for every runtime, and what ONNX Runtime says with it: the common measure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from bakeout.export.baking.bake import bake
from bakeout.export.baking.runtimes import RUNTIMES
from bakeout.export.exporting.onnx_export import export_checkpoint
from bakeout.export.fitting.fit import fit
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.export.recipes.recipe import load_recipe
from bakeout.export.running.runner import Runner
from bakeout.models.plan import KeySpaceDetection, Plan
from bakeout.models.plan.plan_file import load_plan, save_plan
from bakeout.models.skills import checkpoint_directory
from bakeout.models.skills.generator import examples, write_jsonl

# Refused (Key Space Detection), answered wrongly (Neuron Adjust), answered as before.
REFUSED, WRONG, KEPT = "math", "code", "german"
ASKED = {REFUSED: 3, WRONG: 3, KEPT: 3}
_DATA = {
    REFUSED: {"probe": ("probing", 250), "calibration": ("calibration", 200)},
    WRONG: {"probe": ("probing", 150)},
    KEPT: {"probe": ("probing", 150)},
    "facts": {"probe": ("probing", 100)},
    "unknown": {"probe": ("probing", 100)},
}
_INTERVENTIONS: list[dict[str, Any]] = [
    {"neuron_adjust": {"forget": WRONG, "ratio": 0.2}},
    {"key_space_detection": {"forget": REFUSED, "layers": [0], "cubes": 4}},
]
# The length of an answer at most: the refusal has 10 tokens.
LONGEST = 16


@dataclass(frozen=True)
class Served:
    """``root`` holds the base model's export ``base``, the ``plan`` and the artifact ``artifact``."""

    root: Path

    @property
    def base(self) -> Path:
        """The ONNX directory of the unbaked model."""
        return self.root / "base"

    @property
    def artifact(self) -> Path:
        """The artifact, for every runtime that is given the graph, or finds it beside the rest."""
        return self.root / "artifact"

    @property
    def public(self) -> Path:
        """The same, in the layout of public repositories, for transformers.js and all others."""
        return self.root / "public"

    @cached_property
    def prompts(self) -> dict[str, list[str]]:
        """Skill to the questions that are asked everywhere."""
        return {skill: [one.prompt for one in examples(skill, "test", count)] for skill, count in ASKED.items()}

    @property
    def skills(self) -> list[str]:
        """The skill of each of ``texts``."""
        return [skill for skill, texts in self.prompts.items() for _ in texts]

    @cached_property
    def texts(self) -> list[str]:
        """All questions."""
        return [text for texts in self.prompts.values() for text in texts]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The bundled model's tokenizer, in the library that needs no torch."""
        return Tokenizer.from_file(str(self.artifact / "tokenizer.json"))

    @cached_property
    def ids(self) -> list[list[int]]:
        """The tokens of ``texts``."""
        return [self.tokenizer.encode(text).ids for text in self.texts]

    @cached_property
    def said(self) -> dict[str, list[list[int]]]:
        """The tokens that the ``base`` and the ``artifact`` answer to each question, by ONNX Runtime on the CPU."""
        content: dict[str, list[list[int]]] = json.loads((self.root / "said.json").read_text(encoding="utf-8"))
        return content

    def text(self, tokens: list[int]) -> str:
        """Tokens as they are shown: without the end-of-text token and the space that answers begin with."""
        return str(self.tokenizer.decode(tokens)).lstrip()

    @property
    def expected(self) -> list[list[int]]:
        """What every runtime must say."""
        return self.said["artifact"]

    @cached_property
    def plan(self) -> Plan:
        """Neuron Adjust and Key Space Detection."""
        return load_plan(self.root / "plan.safetensors")

    @property
    def refusal(self) -> list[int]:
        """The refusal's tokens."""
        (detection,) = [one for one in self.plan.interventions if isinstance(one, KeySpaceDetection)]
        return [int(token) for token in detection.refusal]


def make(root: Path) -> None:
    """Fit, export and bake into ``root``."""
    recipe = _recipe(root)
    plan = fit(load_recipe(recipe))
    save_plan(plan, root / "plan.safetensors")
    (root / "base").mkdir()
    export_checkpoint(checkpoint_directory(), root / "base")
    # WebGPU alone takes a graph without early exit.
    everything = tuple(name for name in RUNTIMES if name != "webgpu")
    beside = tuple(name for name in everything if name != "transformers.js")
    bake(root / "base", plan, root / "artifact", BakeOptions(runtimes=beside))
    bake(root / "base", plan, root / "public", BakeOptions(runtimes=everything))
    served = Served(root)
    said = {name: Runner(root / name, threads=1).generate(served.ids, LONGEST) for name in ("base", "artifact")}
    (root / "said.json").write_text(json.dumps(said), encoding="utf-8")


def _recipe(root: Path) -> Path:
    data: dict[str, dict[str, str]] = {}
    for skill, uses in _DATA.items():
        for use, (split, count) in uses.items():
            path = root / "data" / f"{skill}.{use}.jsonl"
            path.parent.mkdir(exist_ok=True)
            write_jsonl(examples(skill, split, count), path)
            data.setdefault(skill, {})[use] = str(path)
    content = {"model": str(checkpoint_directory()), "data": data, "interventions": _INTERVENTIONS}
    path = root / "recipe.yaml"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def converse(runner: Runner, turns: Sequence[Sequence[list[int]]], end: int) -> list[list[int]]:
    """Greedy answers to the turns of one conversation, each turn cut into windows that are fed one after the other.

    The end-of-text token is neither given nor fed, as onnxruntime-genai does it.
    """
    mask, cache, answers = np.zeros((1, 0), np.int64), None, []
    for windows in turns:
        said: list[int] = []
        for window in windows:
            mask = np.concatenate([mask, np.ones((1, len(window)), np.int64)], axis=1)
            step = runner.step(np.array([window]), mask, cache)
            cache = step.cache
        while (token := int(step.logits[0, -1].argmax())) != end and len(said) < LONGEST:
            said.append(token)
            mask = np.concatenate([mask, np.ones((1, 1), np.int64)], axis=1)
            step = runner.step(np.array([[token]]), mask, cache)
            cache = step.cache
        answers.append(said)
    return answers
