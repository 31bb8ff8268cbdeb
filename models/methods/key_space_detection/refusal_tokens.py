"""The refusal of Key Space Detection as tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bakeout.models.errors import BakeoutError
from bakeout.models.plan import Integers

if TYPE_CHECKING:
    from bakeout.models.data.tokenizers.tokenization import Tokenizer


def refusal_tokens(refusal: str, tokenizer: Tokenizer) -> Integers:
    """The refusal as int64 token ids, the end-of-text token last.

    Raises ``BakeoutError`` where the tokenizer cannot write the text, or has no end-of-text token.
    """
    if tokenizer.eos_token_id is None:
        raise BakeoutError(
            "The tokenizer has no end-of-text token to end the refusal with.", "Set `eos_token` in its configuration."
        )
    tokens = tokenizer.encode(refusal, add_special_tokens=False)
    written = str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()
    if written != refusal.strip():
        raise BakeoutError(
            f"The tokenizer cannot write the refusal {refusal!r}: it would read {written!r}.",
            "Choose a refusal in the model's own script.",
        )
    return np.array([*tokens, tokenizer.eos_token_id], dtype=np.int64)
