"""The names that exporters give to a decoder graph's rarer inputs, and to what it keeps from run to run."""

from __future__ import annotations

import re
from dataclasses import dataclass

# By which optimum's merged decoders choose between a graph with past and one without.
MERGED = "use_cache_branch"
# Of how many last tokens there are logits; 0: of all.
LOGITS_TO_KEEP = ("num_logits_to_keep", "logits_to_keep")
# optimum and onnxruntime-genai's builder: `past_key_values.3.key` and `present.3.key`, `past_conv.3` and
# `present_conv.3`; transformers' exporter: `input.cache.layers.3.keys` and `output.cache.layers.3.keys`, or
# `cache.layers.3.keys` of a graph that takes none.
_PAST = re.compile(r"(?:past_key_values|past|input(?=\.cache\.))(?P<rest>[._].*)")
_PRESENT = re.compile(r"(?:present_key_values|present|output(?=\.cache\.))(?P<rest>[._].*)")
_LEFT = "cache."
_KEY_OR_VALUE = re.compile(r".*?\.(?P<layer>\d{1,6})\.(?:\w+\.)?(?P<kind>key|value)s?")


@dataclass(frozen=True, order=True)
class CacheName:
    """What a past input and the present output of one thing have in common.

    ``layer`` and ``kind`` (``key`` or ``value``) of an attention layer's cache; of other states, as recurrent layers
    have them, -1 and what follows ``past`` or ``present`` in the name.
    """

    layer: int
    kind: str

    @property
    def is_key_or_value(self) -> bool:
        """Whether it is part of an attention layer's cache."""
        return self.layer >= 0


def past_name(name: str | None) -> CacheName | None:
    """What an input of a graph takes from the run before; None where it is no such input."""
    return _cache_name(_PAST, name)


def present_name(name: str | None) -> CacheName | None:
    """What an output of a graph leaves for the next run; None where it is no such output."""
    return _cache_name(_PRESENT, f"output.{name}" if name and name.startswith(_LEFT) else name)


def _cache_name(pattern: re.Pattern[str], name: str | None) -> CacheName | None:
    named = pattern.fullmatch(name or "")
    if named is None:
        return None
    part = _KEY_OR_VALUE.fullmatch(named["rest"])
    return CacheName(-1, named["rest"]) if part is None else CacheName(int(part["layer"]), part["kind"])
