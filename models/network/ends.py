"""The ends of a model: the embedding that tokens are looked up in, and the head that logits come from."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedModel

from bakeout.models.plan import EndRole


def ends_of(model: PreTrainedModel) -> Mapping[str, EndRole]:
    """The names of embedding and head; of an embedding that is also the head, its name alone.

    Empty where either is no plain ``Embedding`` and ``Linear``.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or not isinstance(embedding, nn.Embedding):
        return {}
    names = {module: name for name, module in model.named_modules()}
    if head.weight is embedding.weight:
        return {names[embedding]: "tied"}
    return {names[embedding]: "embedding", names[head]: "head"}
