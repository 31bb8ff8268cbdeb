"""Sources for imports, each written by its own tool: peft, transformers, gguf, safetensors."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import Tensor

from bakeout.models.checkpoint.checkpoint_files import load_model

IDS = torch.arange(2, 42).reshape(2, 20)
PATTERNS: dict[str, Any] = {
    "use_rslora": True,
    "rank_pattern": {"layers.1.mlp.down_proj": 2},
    "alpha_pattern": {"gate_proj": 3},
}


def peft_adapter(checkpoint: Path, directory: Path, **settings: Any) -> Tensor:
    """An adapter with random factors, saved by peft: the logits of peft's own model on ``IDS``."""
    from peft import LoraConfig, get_peft_model

    chosen = {"r": 4, "lora_alpha": 16, "target_modules": ["down_proj", "gate_proj"], "init_lora_weights": False}
    torch.manual_seed(0)
    with warnings.catch_warnings():
        # peft's advice on settings that are there to be refused.
        warnings.simplefilter("ignore")
        model = get_peft_model(load_model(checkpoint), LoraConfig(**{**chosen, **settings}))
        model.save_pretrained(str(directory))
    with torch.no_grad():
        logits: Tensor = model(IDS).logits
    return logits


def edited_checkpoint(checkpoint: Path, directory: Path, *, rank: int | None, names: tuple[str, ...]) -> Tensor:
    """The checkpoint with noise on some weights, of low rank or of full, in two shards: its logits on ``IDS``."""
    model = load_model(checkpoint)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(names):
                noise = torch.randn_like(weight) if rank is None else _low_rank(weight, rank)
                weight.add_(0.3 * weight.norm() * noise / noise.norm())
        logits: Tensor = model(IDS).logits
    model.save_pretrained(directory, max_shard_size="100KB")
    return logits


def _low_rank(weight: Tensor, rank: int) -> Tensor:
    return torch.randn(weight.shape[0], rank) @ torch.randn(rank, weight.shape[1])


def control_vector(
    path: Path, directions: Mapping[int, NDArray[np.float32]], architecture: str = "controlvector"
) -> None:
    """A GGUF file as repeng and llama.cpp write it."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string(f"{architecture}.model_hint", "llama")
    writer.add_uint32(f"{architecture}.layer_count", len(directions))
    for layer, direction in directions.items():
        writer.add_tensor(f"direction.{layer}", direction)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def save(path: Path, **tensors: NDArray[Any]) -> Path:
    """A safetensors file."""
    save_file(tensors, path)
    return path


def logits_of(checkpoint: Path) -> Tensor:
    """A checkpoint's logits on ``IDS``."""
    with torch.no_grad():
        logits: Tensor = load_model(checkpoint)(IDS).logits
    return logits
