"""Whether all feed-forward layers of a PyTorch model were located: one that was missed would keep what is to go."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from bakeout.models.network.structure.feed_forward_search import Located


def blocks_with_missed(model: PreTrainedModel, located: Sequence[Located]) -> list[str]:
    """The names of the blocks that hold what is built like a located FFL, and was not located.

    That is a module that has the name of ``down`` in another block of the list, or the class of what holds one. Blocks
    without an FFL, or with another mixer in its place, hold neither.
    """
    downs = {layer.down.path for layer in located}
    names = {layer.down.path.removeprefix(f"{layer.block}.") for layer in located}
    holders = {path.rpartition(".")[0] for path in downs} - {layer.block for layer in located}
    classes = {type(model.get_submodule(path)) for path in holders}
    # What torch itself has, as a list of modules, holds anything.
    classes = {kind for kind in classes if not kind.__module__.startswith(f"{nn.__name__}.")}
    missed = []
    for path in dict.fromkeys(layer.block.rpartition(".")[0] for layer in located):
        for number, block in model.get_submodule(path).named_children():
            for name, module in block.named_modules(prefix=f"{path}.{number}", remove_duplicate=False):
                is_down = name.removeprefix(f"{path}.{number}.") in names
                if (is_down and name not in downs) or (module.__class__ in classes and name not in holders):
                    missed.append(f"{path}.{number}")
                    break
    return missed
