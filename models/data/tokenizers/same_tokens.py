"""Whether two tokenizers give the same tokens, by a few texts in which they usually differ."""

from __future__ import annotations

from bakeout.models.data.tokenizers.tokenization import Tokenizer

# Words, numbers, code, spaces, accents, scripts with and without spaces, a joined emoji.
_SAMPLES = (
    "Now, fish and house in German?",
    "What is 12 + 345,67?\n\n    return x_1 == 'y'\t# done",
    "  Größe, naïve, Ελλάδα, Россия, שלום, العربية",
    "東京の天気は。 안녕하세요 สวัสดี हिन्दी 👩‍👩‍👧 \u00a0½",
)


def differing_sample(one: Tokenizer, other: Tokenizer) -> str | None:
    """The first text of ours for which the two give other tokens; None where there is none."""
    return next((text for text in _SAMPLES if one.encode(text) != other.encode(text)), None)
