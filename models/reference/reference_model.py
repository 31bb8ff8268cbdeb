"""The PyTorch model with a plan's interventions applied: the reference for every baked artifact."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from bakeout.models.network.families import model_limits
from bakeout.models.network.generation import is_told_positions
from bakeout.models.network.structure.caches import new_cache, with_cache
from bakeout.models.plan import Check, Floats, Integers, Plan, first_of_mean
from bakeout.models.reference.hooks import Hooks
from bakeout.models.reference.refusal import positions_tested, refuse_row
from bakeout.models.reference.weight_edits import edited_weights

# A refused position's logit for every token but the refusal's: finite in fp16, out of reach of any temperature.
SILENCED = -30000.0
# An end-of-text token's, before the refusal's end: beam search stops once enough beams, even unlikely ones, end.
SILENCED_END = -60000.0


@dataclass(eq=False)
class ReferenceCache:
    """What a conversation keeps between steps: the model's own cache and, beside it, the latch.

    ``said``: int64 [batch, slots], the state of the refusal latched in each slot (``refusal``), 0 for none.
    """

    keys_values: DynamicCache
    said: Integers


class Reference:
    """``model`` with all interventions of ``plan`` applied, for as long as the context is entered.

    Weight edits are made to ``model`` itself by their formulas in float64, rounded to its dtype, or to ``stored_as``
    where they are stored in another, and taken back bit for bit in the end (``weight_edits``): give the base
    model. Neuron Adjust follows the paper's formulas in float64 (``hooks``); the margins of Key Space Detection
    are float64 too; all else runs in the model's own dtype and on its own device. The latch, which a baked graph keeps
    in its value cache, is kept beside the cache here.

    After a step, ``margins`` is float64 [batch, tokens, cubes], the margins of the new positions (at a row's last one
    those of the mean key, where that is tested), and ``said`` int64 [batch, tokens] their state of the refusal, 0 where
    the model's own token stands; both None without Key Space Detection. Raises ``PlanError`` where the plan names
    layers or neurons that the model lacks.
    """

    def __init__(self, model: PreTrainedModel, plan: Plan, *, stored_as: torch.dtype | None = None) -> None:
        self.model = model
        self.margins: Floats | None = None
        self.said: Integers | None = None
        self._hooks = Hooks(model, plan.interventions)
        self._interventions = plan.interventions
        self._stored_as = stored_as
        self._in_force = ExitStack()
        self._check = plan.check
        self._checks_at = [
            index for index, intervention in enumerate(plan.interventions) if intervention.check is not None
        ]

    def __enter__(self) -> Reference:
        """Apply the interventions."""
        with ExitStack() as stack:
            stack.enter_context(edited_weights(self.model, self._interventions, stored_as=self._stored_as))
            stack.enter_context(self._hooks)
            self._in_force = stack.pop_all()
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the model back as it was."""
        self._in_force.close()

    def new_cache(self, batch: int) -> ReferenceCache:
        """An empty cache for ``batch`` conversations."""
        return ReferenceCache(new_cache(self.model), np.zeros((batch, 0), dtype=np.int64))

    @property
    def seen(self) -> dict[int, Tensor]:
        """What every hooked intervention watched in the latest step, as ``Hooks.seen``."""
        return self._hooks.seen

    @torch.no_grad()
    def step(self, input_ids: Tensor, attention_mask: Tensor, cache: ReferenceCache) -> Tensor:
        """The logits [batch, W, vocabulary] of W new tokens; ``cache`` grows by them.

        ``input_ids``: int64 [batch, W]; ``attention_mask``: [batch, P + W], 0 at padding, for the cache's P slots
        and the new tokens. Padding may be on either side. Raises ``ValueError`` for a mask of another width.
        """
        slots = cache.said.shape[1] + input_ids.shape[1]
        if attention_mask.shape != (len(input_ids), slots):
            raise ValueError(f"the attention mask is {tuple(attention_mask.shape)}, not {(len(input_ids), slots)}")
        options: dict[str, Any] = {}
        if is_told_positions(self.model):
            positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
            options["position_ids"] = positions[:, -input_ids.shape[1] :]
        logits: Tensor = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            **with_cache(self.model, cache.keys_values),
            **options,
        ).logits
        if self._check is None:
            said = np.zeros(tuple(input_ids.shape), dtype=np.int64)
            cache.said = np.concatenate([cache.said, said], axis=1)
            return logits
        return self._refuse(self._check, logits, input_ids, attention_mask, cache)

    def generate(
        self, input_ids: Tensor, attention_mask: Tensor, max_new_tokens: int, *, until: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Greedy decoding: the new tokens int64 [batch, n] and the logits [batch, n, vocabulary] they maximise.

        n is ``max_new_tokens``, or fewer once every row has generated the token ``until``; a row is not stopped by it,
        so cut each at its first. It is fewer, too, where the longest row fills the model's context. Padding may be on
        either side.
        """
        context = model_limits(self.model).context
        if context is not None:
            # Of the context's last place, the next token is computed still.
            max_new_tokens = min(max_new_tokens, context + 1 - int(attention_mask.sum(dim=-1).max()))
        cache = self.new_cache(len(input_ids))
        mask = attention_mask.long()
        new_ids = input_ids
        newest = torch.arange(mask.shape[1], device=mask.device).mul(mask).argmax(dim=-1)
        tokens: list[Tensor] = []
        chosen: list[Tensor] = []
        while len(tokens) < max_new_tokens:
            logits = self.step(new_ids, mask, cache)
            chosen.append(logits[torch.arange(len(newest), device=newest.device), newest])
            tokens.append(chosen[-1].argmax(dim=-1))
            if until is not None and bool((torch.stack(tokens) == until).any(dim=0).all()):
                break
            new_ids = tokens[-1][:, None]
            mask = torch.cat([mask, torch.ones_like(new_ids)], dim=1)
            newest = torch.zeros_like(newest)
        return torch.stack(tokens, dim=1), torch.stack(chosen, dim=1)

    def _refuse(
        self,
        check: Check,
        logits: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        cache: ReferenceCache,
    ) -> Tensor:
        """Replace the logits of refused positions by the refusal's, and latch it: by the rules of ``refusal``."""
        batch, width = input_ids.shape
        past = cache.said.shape[1]
        mask = attention_mask.bool().cpu().numpy()
        keys = self._hooks.seen[self._checks_at[0]].cpu().numpy().reshape(batch, width, -1)
        if check.positions == "mean":
            keys = _with_means(keys, check, input_ids.tolist(), mask[:, :past], mask[:, past:])
        margins = check.margins(keys.reshape(batch * width, -1)).reshape(batch, width, -1)
        refusal = check.refusal.tolist()
        rows = []
        for row, tokens in enumerate(input_ids.tolist()):
            real = mask[row, past:].tolist()
            tested = positions_tested(
                check.positions, has_past=past > 0, real=real, tokens=tokens, query_end=check.query_end
            )
            newest_past = np.flatnonzero(mask[row, :past])
            rows.append(
                refuse_row(
                    refusal,
                    check.positions,
                    past_said=int(cache.said[row, newest_past[-1]]) if len(newest_past) else 0,
                    tokens=tokens,
                    real=real,
                    inside=[t and bool(i) for t, i in zip(tested, check.is_inside(margins[row]), strict=True)],
                )
            )
        self.margins = margins
        self.said = np.array([row.said for row in rows], dtype=np.int64)
        latched = np.array([row.latched for row in rows], dtype=np.int64)
        cache.said = np.concatenate([cache.said, latched], axis=1)
        refused = torch.from_numpy(self.said > 0).to(logits.device)
        spoken = torch.from_numpy(check.refusal[np.maximum(self.said, 1) - 1]).to(logits.device)
        refusal_logits = torch.full_like(logits, SILENCED)
        refusal_logits[..., [int(check.refusal[-1]), *check.other_ends]] = SILENCED_END
        refusal_logits.scatter_(-1, spoken[..., None], 0.0)
        return torch.where(refused[..., None], refusal_logits, logits)


def _with_means(
    keys: Floats, check: Check, rows: Sequence[Sequence[int]], past: NDArray[np.bool_], real: NDArray[np.bool_]
) -> Floats:
    """``keys`` [batch, W, D], those of rows' last real tokens replaced by the mean keys that are tested there.

    ``past``, ``real``: bool [batch, P] and [batch, W], False at padding.
    """
    replaced = keys.copy()
    for row, tokens in enumerate(rows):
        places = np.flatnonzero(real[row]).tolist()
        if places:
            own = [tokens[place] for place in places]
            first = first_of_mean(own, check.query_start, has_past=bool(past[row].any()))
            replaced[row, places[-1]] = keys[row, places[first:]].mean(axis=0)
    return replaced
