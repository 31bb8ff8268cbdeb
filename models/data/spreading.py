"""Choosing a few of many rows, evenly: files of several skills follow one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def spread_indices(total: int, count: int) -> list[int]:
    """At most ``count`` indices of ``total`` items, ascending and spread evenly over all of them."""
    count = min(count, total)
    return [index * total // count for index in range(count)]


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most ``count`` of ``items``, in their order and spread evenly over them.

    >>> spread("abcde", 3)
    ['a', 'b', 'd']
    """
    return [items[index] for index in spread_indices(len(items), count)]
