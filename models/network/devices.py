"""Where what goes into a model lies, and where float64 is computed: not every device has it."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel


def input_device(model: PreTrainedModel) -> torch.device:
    """Where the tokens that ``model`` reads belong. Where its weights are offloaded, accelerate moves them on."""
    return torch.device("cpu") if model.device.type == "meta" else model.device


def in_float64(values: Tensor) -> Tensor:
    """``values`` as float64 on their device, or on the CPU where the device has no float64 (MPS)."""
    return (values.cpu() if values.device.type == "mps" else values).double()
