"""A figure of every kind and an evaluation, as their files hold them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SKILL = "sums"

FIGURES: list[dict[str, Any]] = [
    {
        "kind": "inside",
        "source": "a benchmark",
        "skill": SKILL,
        "layers": [2],
        "chosen": 3.0,
        "alpha": [0, 1, 2, 3, 4, 5],
        "shares": {SKILL: [0, 0.4, 0.9, 1, 1, 1], "names": [0, 0, 0, 0.01, 0.1, 0.5]},
    },
    {
        "kind": "depth",
        "source": "a benchmark",
        "skill": SKILL,
        "layers": [0, 1, 2],
        "panels": [
            {"label": "volume", "series": {SKILL: [2.0, 1.5, 1.1]}},
            {"label": "separation", "series": {"names": [0.8, 0.9, 0.99]}},
        ],
    },
    {
        "kind": "frontier",
        "source": "a benchmark",
        "method": "Neuron Adjust",
        "skill": SKILL,
        "name": "β",
        "chosen": 0.2,
        "points": [
            {"setting": 0.1, "forgotten": 0.6, "others": {"names": 0.99, "code": 0.97}},
            {"setting": 0.2, "forgotten": 0.2, "others": {"names": 0.97, "code": 0.98}},
        ],
    },
    {
        "kind": "languages",
        "source": "a benchmark",
        "method": "Key Space Detection",
        "forgotten": ["german", "french"],
        "tested": ["german", "french"],
        "shares": [[0.01, 0.99], [0.98, 0.02]],
    },
    {
        "kind": "matched",
        "source": "a benchmark",
        "skill": SKILL,
        "methods": [
            {"method": "Key Space Detection", "forgotten": 0.01, "least_other": 1.0, "latency_refused": 0.42},
            {"method": "Neuron Adjust", "forgotten": 0.02, "least_other": 0.95, "latency": 1.03},
        ],
    },
    {
        "kind": "attacks",
        "source": "a benchmark",
        "rows": [
            {"attack": "suffixes", "target": "positions: query", "prompts": 200, "through": 30},
            {"attack": "suffixes", "target": "positions: every", "prompts": 200, "through": 2},
        ],
    },
]

EVALUATION: dict[str, Any] = {
    "schema": 1,
    "rows": [
        {"model": "base", "data": SKILL, "prompts": 100, "accuracy": 0.98, "refusals": 0.0},
        {"model": "base", "data": "names", "prompts": 90, "accuracy": 0.97, "refusals": 0.0},
        {
            "model": "out/artifact",
            "data": SKILL,
            "prompts": 100,
            "accuracy": 0.02,
            "refusals": 0.95,
            "change": -0.96,
            "change_interval": [-0.99, -0.91],
            "paired": False,
        },
        {"model": "out/artifact", "data": "names", "prompts": 90, "accuracy": 0.96, "refusals": 0.0},
    ],
    "texts": [
        {"model": "base", "data": "prose", "texts": 40, "refused": 0, "perplexity": 12.5},
        {
            "model": "out/artifact",
            "data": "prose",
            "texts": 40,
            "refused": 1,
            "perplexity": 12.6,
            "perplexity_ratio": 1.01,
            "perplexity_ratio_interval": [0.99, 1.03],
            "divergence": 0.002,
            "divergence_interval": [0.001, 0.003],
        },
    ],
    "tasks": [
        {
            "model": "out/artifact",
            "task": "gsm8k",
            "metric": "exact_match",
            "filter": "strict",
            "value": 0.25,
            "standard_error": 0.03,
        }
    ],
}


def write_figures(path: Path, figures: list[dict[str, Any]]) -> Path:
    """A figures file."""
    path.write_text(json.dumps({"schema": 1, "figures": figures}), encoding="utf-8")
    return path


def write_evaluation(path: Path, content: Any = EVALUATION) -> Path:
    """What ``bakeout evaluate --json`` would have printed."""
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
