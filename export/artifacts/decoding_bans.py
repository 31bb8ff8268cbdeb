"""Settings of decoding that an artifact ships and that would garble its refusal: what each must be instead.

A refused position leaves one token possible, whatever the temperature or penalty; but a setting that forbids that
token, or forces another, has the last word. The names are those of ``generation_config.json``, as transformers 4.57
reads it; onnxruntime-genai's ``search`` has some of them too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from bakeout.models.errors import BakeoutError

# What a suppressed token's logit is below the refusal's (graph_passes), and what stays a safe distance.
_SUPPRESSED, _SAFE = 30_000.0, 300.0
# A rule gives the value that leaves a refusal whole: the setting's own where it does.
_Rule = Callable[[Any, Sequence[int]], Any]


@dataclass(frozen=True)
class Ban:
    """A setting that would garble a refusal: its name, its value, and the one that would not (None: to be removed)."""

    name: str
    value: Any
    instead: Any

    def __str__(self) -> str:
        after = "removed" if self.instead is None else f"now {self.instead}"
        return f"{self.name} was {self.value}, {after}"


def find_bans(settings: Mapping[str, Any], refusal: Sequence[int], where: str) -> Iterator[Ban]:
    """The settings that would garble ``refusal``, its end-of-text token last, in some conversation.

    Raises ``BakeoutError`` for settings in ``where``, a file, that no loop could follow.
    """
    for name, rule in _RULES.items():
        value = settings.get(name)
        if value is None:
            continue
        try:
            instead = rule(value, refusal)
        except (TypeError, ValueError, IndexError, OverflowError):
            raise BakeoutError(
                f"{where}: {name} is {value!r}, which no decode loop can follow.", "Remove it."
            ) from None
        if instead != value:
            yield Ban(name, value, instead)


def _without_its_tokens(value: Any, refusal: Sequence[int]) -> Any:
    """Tokens that are never said."""
    return [token for token in _listed(value) if token not in set(refusal)] or None


def _without_its_first(value: Any, refusal: Sequence[int]) -> Any:
    """Tokens that no answer begins with."""
    return [token for token in _listed(value) if token != refusal[0]] or None


def _without_its_words(value: Any, refusal: Sequence[int]) -> Any:
    """Sequences that are never said."""
    return [word for word in value if not _occurs(word, refusal)] or None


def _without_its_biases(value: Any, refusal: Sequence[int]) -> Any:
    """Sequences whose last token becomes more or less likely: [[tokens], bias], by much or little."""
    return [
        [word, bias]
        for word, bias in value
        if abs(bias) < _SUPPRESSED - _SAFE or (bias < 0 and not _occurs(word, refusal))
    ] or None


def _none(value: Any, refusal: Sequence[int]) -> Any:
    """What a refusal that is said again in a later turn always collides with."""
    return None if value else value


def _at_most_its_length(value: Any, refusal: Sequence[int]) -> Any:
    """The number of tokens before which no text ends."""
    return min(value, len(refusal) - 1)


def _its_first(value: Any, refusal: Sequence[int]) -> Any:
    """The token that a text of one token goes on with."""
    return value if value == refusal[0] else None


def _not_too_small(value: Any, refusal: Sequence[int]) -> Any:
    """A factor of what is unlikely: 0.001 would make it likely."""
    return value if value * _SUPPRESSED >= _SAFE else 1.0


def _not_too_large(value: Any, refusal: Sequence[int]) -> Any:
    """A divisor of what is unlikely."""
    return value if 0 < value <= _SUPPRESSED / _SAFE else 1.0


def _after_it(value: Any, refusal: Sequence[int]) -> Any:
    """[start, factor]: with each token behind ``start``, scores of end tokens rise by the factor; doubled, they win."""
    start, factor = value
    return value if factor ** max(len(refusal) - start, 0) < 2 else [len(refusal), factor]


def _at_least_its_length(value: Any, refusal: Sequence[int]) -> Any:
    """The number of tokens after which every text is cut."""
    return max(value, len(refusal))


_RULES: Mapping[str, _Rule] = MappingProxyType(
    {
        "suppress_tokens": _without_its_tokens,
        "begin_suppress_tokens": _without_its_first,
        "bad_words_ids": _without_its_words,
        "sequence_bias": _without_its_biases,
        "no_repeat_ngram_size": _none,
        "encoder_no_repeat_ngram_size": _none,
        "min_length": _at_most_its_length,
        "min_new_tokens": _at_most_its_length,
        "repetition_penalty": _not_too_small,
        "encoder_repetition_penalty": _not_too_large,
        "forced_bos_token_id": _its_first,
        "forced_decoder_ids": _none,
        "max_new_tokens": _at_least_its_length,
        "exponential_decay_length_penalty": _after_it,
    }
)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _occurs(word: Sequence[int], refusal: Sequence[int]) -> bool:
    """Whether ``word`` could end within the refusal; what stands before the refusal may be anything."""
    return any(
        all(ours == theirs for ours, theirs in zip(reversed(word), reversed(refusal[: end + 1]), strict=False))
        for end in range(len(refusal))
    )
