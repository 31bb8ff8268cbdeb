"""What the sequences of a canary are made of: ordinary tokens of the model, and nothing of the user's data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from bakeout.models.data.rows import Rows
from bakeout.models.data.tokenizers.tokenization import Tokenizer
from bakeout.models.plan import Integers
from bakeout.models.reference.ngrams import NGrams, common_frame

# How many tokens of a sequence are free, and how long a run of them may at most be one of the data: one less than this.
FREE_TOKENS = 8
RUN = 5
# Of a large vocabulary as many tokens are used, evenly spread.
_MOST_TOKENS = 20_000


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Free tokens out of ``ordinary`` between a ``prefix`` and a ``suffix``, no run of them in ``private``."""

    ordinary: Integers
    prefix: Sequence[int] = ()
    suffix: Sequence[int] = ()
    private: NGrams = field(default_factory=lambda: NGrams([], RUN))

    @classmethod
    def of_data(cls, tokenizer: Tokenizer, size: int, rows: Rows) -> Self:
        """The tokens below ``size`` that have a text, in the frame of all prompts; no five in a row are a row's."""
        records = [record for uses in rows.values() for records in uses.values() for record in records]
        prefix, suffix = common_frame([record.prompt_ids for record in records])
        step = max(1, size // _MOST_TOKENS)
        texts = ((token, tokenizer.decode([token], skip_special_tokens=True)) for token in range(0, size, step))
        return cls(
            ordinary=np.array([token for token, text in texts if text], dtype=np.int64),
            prefix=prefix,
            suffix=suffix,
            private=NGrams((record.prompt_ids + record.response_ids for record in records), RUN),
        )

    def framed(self, free: Integers) -> Integers:
        """The sequences around free tokens: int64 [n, free] to [n, tokens]."""
        before, after = (np.tile(np.array(part, np.int64), (len(free), 1)) for part in (self.prefix, self.suffix))
        return np.concatenate([before, free, after], axis=1)

    def random(self, count: int, generator: np.random.Generator) -> Integers:
        """Random free tokens, none of which is private: int64 [up to ``count``, free]."""
        free = generator.choice(self.ordinary, (4 * count, FREE_TOKENS))
        return free[~self.private.are_in(free)][:count]
