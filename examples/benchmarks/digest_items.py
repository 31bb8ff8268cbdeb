"""What ``digests.py`` builds: the demo, the recipes in examples/recipes, and small recipes that use all the options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Commands write below this directory, whose name is cut off all paths.
OUTPUT = "OUTPUT"
RECIPE = "recipe.yaml"

Command = tuple[str, ...]


@dataclass(frozen=True)
class Item:
    """Commands of Bakeout, and what they read: a recipe (its text, or a file of examples/recipes) and data.

    ``data``: how much of it there is (``small``, ``examples``), if any. ``slow``: it takes many minutes.
    """

    commands: tuple[Command, ...]
    recipe: str = ""
    data: str = ""
    slow: bool = False


_BUILT, _PLAN = f"{OUTPUT}/built", f"{OUTPUT}/plan.safetensors"
_BUILD = ("build", RECIPE, "-o", _BUILT, "--json")
_VERIFY = ("verify", _BUILT, "--base", "model", "--json")
_MATH, _CODE = "data/math.test.jsonl", "data/code.test.jsonl"
_ASSUMPTIONS = ("assumptions", _BUILT, "--base", "model", "--forget", _MATH, "--retain", _CODE, "--json")


def _by_use(*skills: str) -> dict[str, Any]:
    return {skill: {use: f"data/{skill}.{use}.jsonl" for use in ("probe", "test")} for skill in skills}


def _whole(*skills: str) -> dict[str, Any]:
    """One file a skill, which Bakeout splits."""
    return {skill: f"data/{skill}.probe.jsonl" for skill in skills}


def _small(
    data: Mapping[str, Any], *interventions: str, commands: tuple[Command, ...] = (_BUILD,), export: str = "{}"
) -> Item:
    listed = "".join(f"  - {intervention}\n" for intervention in interventions)
    recipe = f"model: model\ndata: {json.dumps(data)}\ninterventions:\n{listed}export: {export}\n"
    return Item(commands, recipe, "small")


_FEW = ("math", "code", "german")
_PEOPLE = ("ten_people", "unknown", "code", "math")

_NEURON_ADJUST = "neuron_adjust: {forget: math}"
_DETECTION = "key_space_detection: {forget: math, layers: [1], cubes: 2, epsilon: 0.1}"
_PRUNING = "selective_pruning: {forget: math, retain: [code, german], ratio: 0.05}"
_LUNAR = "lunar: {forget: ten_people, reference: unknown, retain: [code, math], layers: [3]}"
_UNLEARN = "unlearn: {forget: german, similar: spanish, steps: 2}"

_METHODS = {
    "neuron_adjust": _small(_by_use(*_FEW), _NEURON_ADJUST),
    "neuron_adjust_stochastic": _small(
        _whole(*_FEW),
        "neuron_adjust: {forget: math, ratio: 0.1, coin: stochastic, tokens: all, seed: 3}",
        export="{dtype: fp16}",
    ),
    "neuron_adjust_expected": _small(
        _by_use(*_FEW),
        "neuron_adjust: {forget: [math, code], selection: standardised, coin: expected}",
        export="{inline: true, runtimes: [reference, openvino]}",
    ),
    "key_space_detection": _small(_whole(*_FEW), "key_space_detection: {forget: math, layers: last, epsilon: 0.1}"),
    "key_space_detection_auto": _small(
        _whole(*_FEW),
        "key_space_detection: {forget: [math, code], layers: auto, cubes: auto, floor: auto, epsilon: auto, "
        "alpha: auto, augment: [suffix, case]}",
        export="{monitor: true}",
    ),
    "key_space_detection_every": _small(
        _whole(*_FEW),
        "key_space_detection: {forget: math, layers: [0, 2], cubes: 3, alpha: {times_largest: 2}, positions: every, "
        "refusal: No., seed: 1}",
        export="{early_exit: false}",
    ),
    "key_space_detection_step": _small(
        _whole(*_FEW),
        "key_space_detection: {forget: math, layers: [2], alpha: 4.0, positions: step}",
        export="{runtimes: [genai, web]}",
    ),
    "selective_pruning": _small(_by_use(*_FEW), _PRUNING, export="{quantize: int8}"),
    "lunar_closed_form": _small(_by_use(*_PEOPLE), _LUNAR, export="{to: safetensors}"),
    "lunar_gradient": _small(
        _by_use(*_PEOPLE),
        "lunar: {forget: ten_people, reference: unknown, solver: gradient, aim: shift, seed: 1}",
    ),
    "unlearn": _small(_by_use("german", "spanish"), _UNLEARN, export="{to: safetensors}"),
    "learn": _small(
        _by_use("new_people", "facts"), "learn: {learn: new_people, similar: facts, steps: 3, rank: 2, seed: 1}"
    ),
    "reveal_and_release": _small(
        _by_use("math", "german"),
        f"reveal_and_release: {{instructions: ['Ask me about Python:', 'Ask me about math:', 'Write a question:'], "
        f"directory: {OUTPUT}/revealed, rounds: 2}}",
        export="{to: safetensors}",
    ),
    "reveal_and_release_patterns": _small(
        _by_use("math", "german"),
        "reveal_and_release: {instructions: ['Ask me about Python:', 'Ask me about code:'], patterns: ['\\[', python], "
        f"directory: {OUTPUT}/revealed, rounds: 1, seed: 1}}",
    ),
    "graph_methods": _small(_whole(*_FEW), _NEURON_ADJUST, _DETECTION, export="{monitor: true, dtype: fp16}"),
    "weight_methods": _small(
        _by_use(*_PEOPLE, "german", "spanish"), _PRUNING, _LUNAR, _UNLEARN, export="{to: safetensors}"
    ),
    "both": _small(
        _whole("math", "code", "german", "spanish"),
        _UNLEARN,
        _PRUNING,
        _NEURON_ADJUST,
        _DETECTION,
        export="{runtimes: [genai]}",
    ),
}

_COMMANDS = {
    "commands": _small(
        _by_use(*_FEW),
        _PRUNING,
        _NEURON_ADJUST,
        commands=(
            ("fit", RECIPE, "-o", _PLAN, "--json"),
            ("inspect", _PLAN, "--json"),
            ("bake", "model", _PLAN, "--dry-run", "--json"),
            ("bake", "model", _PLAN, "-o", _BUILT, "--inline", "--runtime", "openvino", "--json"),
            ("bake", "model", _PLAN, "-o", f"{OUTPUT}/int8", "--quantize", "int8", "--no-canary", "--json"),
            ("inspect", _BUILT, "--json"),
            (*_VERIFY, "--data", _MATH),
            ("verify", f"{OUTPUT}/int8", "--base", "model", "--json"),
            ("evaluate", _BUILT, "--data", _MATH, "--data", _CODE, "--text", _CODE, "--base", "model", "--json"),
            ("evaluate", f"{OUTPUT}/int8", "--data", _MATH, "--base", "model", "--csv", f"{OUTPUT}/f.csv", "--json"),
            ("attack", _BUILT, "--data", _MATH, "--retain", _CODE, "--prompts", "6", "--json"),
            _ASSUMPTIONS,
            ("chat", _BUILT, "--prompt", "What is 3 + 4?", "--json"),
        ),
    ),
    "commands_refusing": _small(
        {**_whole("code", "german"), "math": {"test": _MATH, "calibration": _CODE, **_by_use("math")["math"]}},
        _DETECTION,
        commands=(
            _BUILD,
            _VERIFY,
            ("inspect", _BUILT, "--json"),
            ("evaluate", _BUILT, "--data", _MATH, "--json"),
            ("attack", _BUILT, "--data", _MATH, "--prompts", "6", "--positions", "step", "--base", "model", "--json"),
            _ASSUMPTIONS,
        ),
    ),
    "tune": _small(
        _whole(*_FEW),
        "neuron_adjust: {forget: math, ratio: auto, coin: threshold}",
        "key_space_detection: {forget: math, layers: auto, epsilon: 0.1}",
        commands=(
            (
                *("tune", RECIPE, "-o", f"{OUTPUT}/tuned.yaml", "--trials", "3", "--prompts", "20", "--json"),
                *("--directory", f"{OUTPUT}/trials", "--figures", f"{OUTPUT}/figures.json"),
            ),
        ),
    ),
}

_DEMO = Item(
    (
        ("demo", "-o", OUTPUT, "--json"),
        ("bake", f"{OUTPUT}/base", f"{OUTPUT}/neuron-adjust/plan.safetensors", "-o", f"{OUTPUT}/baked", "--json"),
        ("verify", f"{OUTPUT}/key-space-detection", "--base", f"{OUTPUT}/model", "--json"),
    )
)


def _example(name: str, slow: bool = False) -> Item:
    return Item((_BUILD,), f"{name}.yaml", "examples", slow)


# By name, in the order in which they are built.
ITEMS = {
    **_METHODS,
    **_COMMANDS,
    "demo": _DEMO,
    "examples-selective-pruning": _example("selective-pruning"),
    "examples-lunar": _example("lunar"),
    "examples-unlearn": _example("unlearn"),
    "examples-learn": _example("learn", slow=True),
    "examples-reveal-and-release": _example("reveal-and-release", slow=True),
}
