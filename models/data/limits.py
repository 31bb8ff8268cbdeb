"""What a model can read: token ids that it has embeddings for, and no more of them than its context holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

from bakeout.models.data.row_source import DataError

if TYPE_CHECKING:
    from bakeout.models.data.padding import Integers
    from bakeout.models.data.tokenizers.tokenization import Tokenizer

_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
# Rotary positions that are stretched to several times the context that the configuration gives.
_STRETCHED = ("linear", "dynamic", "yarn")


@dataclass(frozen=True)
class Limits:
    """``embeddings``: the number of token ids; ``context``: the most tokens of a text. None where neither is known."""

    embeddings: int | None = None
    context: int | None = None

    @classmethod
    def of_config(cls, config: Mapping[str, Any], embeddings: int | None = None) -> Limits:
        """The limits that a config.json gives; ``embeddings``, where the model itself gives them."""
        text = config.get("text_config")
        own: Mapping[str, Any] = text if isinstance(text, Mapping) else config
        context = stated_context(own)
        vocabulary = own.get("vocab_size")
        known = vocabulary if _is_size(vocabulary) else None
        return cls(known if embeddings is None else embeddings, None if context is None else _stretched(context, own))

    def require(self, ids: Sequence[int] | Integers, tokenizer: Tokenizer | None, where: str) -> None:
        """Raise ``DataError`` for what the model cannot read: ``where`` says what it is."""
        beyond = max(map(int, ids), default=0)
        if self.embeddings is not None and beyond >= self.embeddings:
            written = "" if tokenizer is None else f" ({str(tokenizer.decode([beyond]))!r})"
            raise DataError(
                f"{where}: token {beyond}{written} is beyond the model's {self.embeddings} embeddings.",
                "Use the model's own tokenizer and chat template, or resize the model's embeddings.",
            )
        if not self.hold(ids):
            raise DataError(
                f"{where}: {len(ids)} tokens; the model's context is {self.context}.",
                "Shorten or remove the text.",
            )

    def hold(self, ids: Sequence[int] | Integers) -> bool:
        """Whether the context is long enough for a text of ``ids``."""
        return self.context is None or len(ids) <= self.context


UNLIMITED = Limits()


def stated_context(config: Mapping[str, Any]) -> int | None:
    """The most tokens of a text as a decoder's configuration gives them, whatever its rotary positions are scaled by;
    None where it gives none.
    """
    return next((size for name in _CONTEXT if _is_size(size := config.get(name))), None)


def _is_size(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _stretched(context: int, config: Mapping[str, Any]) -> int:
    """The context with what its rotary positions are scaled by. Those of Llama 3 and of longrope are in it already."""
    # Transformers 5 writes it beside the base of the positions.
    scaling = config.get("rope_scaling") or config.get("rope_parameters")
    if not isinstance(scaling, Mapping) or scaling.get("rope_type", scaling.get("type")) not in _STRETCHED:
        return context
    factor = scaling.get("factor")
    original = scaling.get("original_max_position_embeddings", context)
    if not isinstance(factor, int | float) or not 1 <= factor < 1 << 20:
        return context
    return max(context, int(factor * (original if _is_size(original) else context)))
