"""A decoder whose cache is a list of tensors, as inputs and outputs of a graph are."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import PreTrainedModel

from bakeout.export.exporting.torch_cache import filled_cache, kept_by
from bakeout.models.network.structure.caches import with_cache


class TracedDecoder(nn.Module):
    """``model`` as an exporter traces it.

    ``kept``: what its cache holds; ``example``: the tensors of it after ``past`` tokens.
    """

    def __init__(self, model: PreTrainedModel, past: int) -> None:
        super().__init__()
        self.model = model
        self.kept, self.example = kept_by(model, past)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor | None = None,
        past: list[Tensor] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """The logits of the new tokens, and the cache behind them."""
        cache = filled_cache(self.model, self.kept, past or [])
        options = {} if position_ids is None else {"position_ids": position_ids}
        logits: Tensor = self.model(
            input_ids=input_ids, attention_mask=attention_mask, **with_cache(self.model, cache), **options
        ).logits
        return logits, [entry.tensor(cache) for entry in self.kept]
