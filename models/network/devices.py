"""Where what goes into a model lies, how much at once, where float64 is computed, and what is freed."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

import torch
from torch import Tensor
from transformers import PreTrainedModel

_TOKENS, _TOKENS_ON_PROCESSORS = 8192, 1024


def input_device(model: PreTrainedModel) -> torch.device:
    """Where the tokens that ``model`` reads belong. Where its weights are offloaded, accelerate moves them on."""
    return torch.device("cpu") if model.device.type == "meta" else model.device


def tokens_at_once(model: PreTrainedModel) -> int:
    """Padded tokens of one forward pass: fewer rows than the batch size go through together where rows are long.

    On a processor what a layer computes of 1,024 tokens stays in the caches, which takes 0.6 to 0.7 times as long as by
    8,192 (``pass_size.py``, examples/benchmarks/README.md). Offloaded weights are read anew in every pass: few passes.
    """
    return _TOKENS_ON_PROCESSORS if model.device.type == "cpu" else _TOKENS


def in_float64(values: Tensor) -> Tensor:
    """``values`` as float64 on their device, or on the CPU where the device has no float64 (MPS)."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def give_back() -> None:
    """Let glibc give back what forward passes have freed: it keeps blocks of up to 32 MiB for later ones.

    Without it a fit holds what its probing, its choices and its canary need together.
    """
    if sys.platform == "linux":
        # Other C libraries have no such function.
        with suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
