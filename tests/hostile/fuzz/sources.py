"""What other tools write, as good input for the loaders of `bakeout import`, and those loaders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from bakeout.models.plan import ModelIdentity
from bakeout.models.sources.checkpoint_pair import read_checkpoint_pair
from bakeout.models.sources.directions import read_addition, read_projection
from bakeout.models.sources.peft_adapter import CONFIG, WEIGHTS, read_peft_adapter

from tests.imported_sources import control_vector

_MODULE = "model.layers.{layer}.mlp.down_proj"
_EDITED = "model.layers.0.mlp.down_proj.weight"


def put_sources(directory: Path, model: ModelIdentity) -> None:
    """An adapter, an edited checkpoint, control vectors of both forms and a direction, below ``directory``."""
    random = np.random.default_rng(0)
    sources = directory / "sources"
    (sources / "adapter").mkdir(parents=True)
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["down_proj"],
        "rank_pattern": {"layers.0.mlp.down_proj": 2},
        "alpha_pattern": {"down_proj": 3},
    }
    (sources / "adapter" / CONFIG).write_text(json.dumps(config))
    factors = {}
    for layer in range(model.layers):
        name = f"base_model.model.{_MODULE.format(layer=layer)}"
        factors[f"{name}.lora_A.weight"] = random.normal(size=(2, model.width)).astype(np.float32)
        factors[f"{name}.lora_B.weight"] = random.normal(size=(model.hidden, 2)).astype(np.float32)
    save_file(factors, sources / "adapter" / WEIGHTS)
    shutil.copytree(directory / "checkpoint", sources / "edited")
    weights = load_file(sources / "edited" / "model.safetensors")
    weights[_EDITED] = weights[_EDITED] * np.float32(1.5)
    save_file(weights, sources / "edited" / "model.safetensors")
    rows = random.normal(size=(model.layers, model.hidden)).astype(np.float32)
    control_vector(sources / "vector.gguf", dict(enumerate(rows)))
    save_file({"vectors": rows}, sources / "rows.safetensors")
    save_file({"direction": rows[0]}, sources / "direction.safetensors")


def read_source(directory: Path, name: str, model: ModelIdentity) -> object:
    """Read one of them as `bakeout import` does."""
    source = directory / "sources" / name
    if name == "adapter":
        return read_peft_adapter(source, model)
    if name == "edited":
        return read_checkpoint_pair(directory / "checkpoint", source, model)
    if name == "direction.safetensors":
        return read_projection(source, model)
    return read_addition(source, model, -1.5, keep_norm=True)
