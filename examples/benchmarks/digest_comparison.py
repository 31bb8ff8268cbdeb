"""How two files of digests differ: bytes, values, renamed keys, versions."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

Place = tuple[str, ...]


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> int:
    """Print the differences item by item. The exit status: 1 where bytes or values differ or are missing, else 0.

    Renamed keys (the same value in another place), keys that are new, and versions are printed and do not count.
    """
    status = 0
    if before["environment"] != after["environment"]:
        print(f"environment: {before['environment']} -> {after['environment']}")
    for name, old in before["items"].items():
        if name not in after["items"]:
            print(f"{name}: not in the second file")
            status = 1
            continue
        new = after["items"][name]
        failures = [*_bytes(old["bytes"], new["bytes"]), *_values(old["values"], new["values"])]
        notes = [*_renamed(old["values"], new["values"]), *_apart(old, new)]
        same = f"{len(old['bytes'])} digests and {len(_leaves(old['values']))} values as before"
        print(f"{name}: {'DIFFERS' if failures else same}")
        for line in (*failures, *notes):
            print(f"  {line}")
        status = status or int(bool(failures))
    if unknown := sorted(after["items"].keys() - before["items"].keys()):
        print(f"only in the second file: {', '.join(unknown)}")
    return status


def _bytes(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    for name in sorted(old.keys() | new.keys()):
        if name not in new:
            yield f"bytes missing: {name}"
        elif name not in old:
            yield f"bytes that are new: {name}"
        elif old[name] != new[name]:
            yield f"bytes differ: {name}"


def _values(old: Any, new: Any) -> Iterator[str]:
    lost, _, _ = _moved(old, new)
    before, after = _leaves(old), _leaves(new)
    for place, value in before.items():
        if place in after and after[place] != value:
            yield f"value differs: {_text(place)}: {json.dumps(value)} -> {json.dumps(after[place])}"
        elif place in lost:
            yield f"value missing: {_text(place)}: {json.dumps(value)}"


def _renamed(old: Any, new: Any) -> Iterator[str]:
    _, added, moved = _moved(old, new)
    renames = Counter(_shortest(before, after) for before, after in moved.items())
    for (before, after), count in renames.items():
        yield f"key renamed ({count} values): {before} -> {after}"
    for place, count in Counter(_general(_text(place)) for place in added).items():
        yield f"key is new ({count} values): {place}"


def _apart(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    before, after = _leaves(old["versions"]), _leaves(new["versions"])
    changes = {
        (place[-1], before.get(place), after.get(place))
        for place in before.keys() | after.keys()
        if before.get(place) != after.get(place)
    }
    for package, was, now in sorted(changes, key=str):
        yield f"version: {package} {was} -> {now}"
    for name in sorted(set(old["prose"]) ^ set(new["prose"])):
        yield f"prose in one of them alone: {name}"


def _moved(old: Any, new: Any) -> tuple[set[Place], set[Place], dict[Place, Place]]:
    """Places that are lost, places that are new, and the old ones whose value stands in a new place instead.

    Among new places with the same value, the one is taken that shares most with the old one from both ends.
    """
    before, after = _leaves(old), _leaves(new)
    lost = [place for place in before if place not in after]
    added = {place: after[place] for place in after if place not in before}
    moved: dict[Place, Place] = {}
    for place in lost:
        alike = [other for other, value in added.items() if _same(value, before[place])]
        if alike:
            moved[place] = max(alike, key=lambda other: sum(_shared(place, other)))
            del added[moved[place]]
    return set(lost) - moved.keys(), set(added), moved


def _same(first: Any, second: Any) -> bool:
    return type(first) is type(second) and first == second


def _leaves(value: Any, where: Place = ()) -> dict[Place, Any]:
    """Every number, string and empty container by its place."""
    entries: Mapping[str, Any] = {}
    if isinstance(value, dict):
        entries = value
    elif isinstance(value, list):
        entries = {f"[{index}]": element for index, element in enumerate(value)}
    if not entries:
        return {where: value}
    return {place: leaf for key, entry in entries.items() for place, leaf in _leaves(entry, (*where, key)).items()}


def _shared(first: Place, second: Place) -> tuple[int, int]:
    """How many keys two places share from the start, and from the end of what is left."""
    start = _common(first, second)
    return start, _common(first[start:][::-1], second[start:][::-1])


def _common(first: Place, second: Place) -> int:
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count


def _shortest(before: Place, after: Place) -> tuple[str, str]:
    """Both places without the keys that they share at the end, list indices left out."""
    _, end = _shared(before, after)
    return _general(_text(before[: len(before) - end])), _general(_text(after[: len(after) - end]))


def _general(text: str) -> str:
    return re.sub(r"\[\d+\]", "[]", text)


def _text(place: Place) -> str:
    return " ".join(place[:1]) + ": " + ".".join(place[1:]).replace(".[", "[")
