"""Texts as the token ids that a model is served: a text begins once, and a prompt does not end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bakeout.models.data.row_source import half_of_pair
from bakeout.models.errors import BakeoutError

if TYPE_CHECKING:
    from bakeout.models.data.tokenizers.tokenization import Tokenizer


def encode_prompt(text: str, tokenizer: Tokenizer, *, special: bool = True) -> list[int]:
    """The token ids of a prompt; with ``special``, behind the special tokens that the tokenizer begins a text with.

    A prompt that was rendered already, and begins with these itself, gets no second ones; nor does one of a template
    and a message that each write the beginning-of-text token. What the tokenizer appends to a text, such as the
    end-of-text token, is left out: a model that reads it has nothing to answer.

    Raises ``BakeoutError`` for half of a surrogate pair, which no tokenizer encodes.
    """
    beginning, ids, _ = _framed(text, tokenizer, special)
    return _begun_once([*beginning, *ids], tokenizer)


def encode_text(text: str, tokenizer: Tokenizer, *, special: bool = True) -> list[int]:
    """The token ids of a whole text: as ``encode_prompt`` does, and with what the tokenizer appends."""
    beginning, ids, ending = _framed(text, tokenizer, special)
    return _begun_once([*beginning, *ids, *ending], tokenizer)


def _framed(text: str, tokenizer: Tokenizer, special: bool) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    """What stands before a text, its own tokens, and what stands behind it."""
    ids = _encode(text, tokenizer, special=False)
    if not special:
        return [], ids, []
    # Where nothing is encoded, the two ends of its frame touch.
    inner = ids or _encode("a", tokenizer, special=False)
    whole = _encode(text if ids else "a", tokenizer, special=True)
    starts = range(len(whole) - len(inner) + 1)
    start = next((start for start in starts if whole[start : start + len(inner)] == inner), None)
    if start is None:
        # A text that is encoded otherwise within its frame.
        return [], whole, []
    beginning, ending = whole[:start], whole[start + len(inner) :]
    return ([] if ids[: len(beginning)] == beginning else beginning), ids, ending


def _begun_once(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    begin = tokenizer.bos_token_id
    while begin is not None and ids[:2] == [begin, begin]:
        del ids[0]
    return ids


def _encode(text: str, tokenizer: Tokenizer, *, special: bool) -> list[int]:
    if half := half_of_pair(text):
        raise BakeoutError(
            f"The text holds half of a surrogate pair ({half}).", "Write the character whole, or remove it."
        )
    return [int(token) for token in tokenizer.encode(text, add_special_tokens=special)]
