"""The refusal of Key Space Detection as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bakeout.models.errors import BakeoutError
from bakeout.models.plan import Integers

if TYPE_CHECKING:
    from bakeout.models.data.tokenizers.tokenization import Tokenizer


def refusal_tokens(refusal: str, tokenizer: Tokenizer, ends: Sequence[int]) -> Integers:
    """The refusal as int64 token ids, the first special token of ``ends`` last: others would be shown.

    ``ends``: the tokens at which decode loops end a text, the best first. Raises ``BakeoutError`` where there is none,
    where the tokenizer cannot write the refusal, and where one of its tokens would end it early.
    """
    if not ends:
        raise BakeoutError(
            "Neither the model's configuration nor its tokenizer names an end-of-text token to end the refusal with.",
            "Set `eos_token_id` in its generation_config.json.",
        )
    tokens = tokenizer.encode(refusal, add_special_tokens=False)
    written = str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()
    if written != refusal.strip():
        raise BakeoutError(
            f"The tokenizer cannot write the refusal {refusal!r}: it would read {written!r}.",
            "Choose a refusal in the model's own script.",
        )
    if cut := [token for token in tokens if token in ends]:
        raise BakeoutError(
            f"The refusal {refusal!r} holds token {cut[0]}, at which decode loops end a text: it would be cut there.",
            "Choose another refusal text, or correct `eos_token_id` in the model's generation_config.json.",
        )
    special = (token for token in ends if _is_special(token, tokenizer))
    return np.array([*tokens, next(special, ends[0])], dtype=np.int64)


def _is_special(token: int, tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer knows a token, and can leave it out of a text."""
    return bool(tokenizer.decode([token])) and not tokenizer.decode([token], skip_special_tokens=True)
