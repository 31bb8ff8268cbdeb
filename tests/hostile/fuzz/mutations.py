"""What is done to good input: to its bytes, to its JSON, to its YAML, to the header of a safetensors file."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from random import Random
from typing import Any

from tests.hostile.fuzz.odd_values import ODD, RAW, YAML_PARTS

DEEP = 100_000
# Stands where a text is put that json would not write.
_MARK = "\ue000mark\ue000"


def mutated_bytes(content: bytes, random: Random) -> bytes:
    """Cut, flipped, repeated, exchanged, or with something in between."""
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 5))):
        place = random.randrange(len(data) + 1)
        match random.randrange(8):
            case 0:
                del data[place:]
            case 1 if place < len(data):
                data[place] ^= 1 << random.randrange(8)
            case 2 if place < len(data):
                data[place] = random.randrange(256)
            case 3:
                del data[place : place + random.choice((1, 4, 32))]
            case 4:
                data[place:place] = data[max(0, place - random.choice((1, 16, 64))) : place]
            case 5:
                data[place:place] = random.choice(
                    (b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\n", b"\x1b[2J", b"9" * 400, b"9" * 5000)
                )
            case 6:
                there, size = random.randrange(len(data) + 1), random.choice((1, 8, 100))
                data[place : place + size] = data[there : there + size]
            case _:
                data[place:place] = random.choice((b"[", b"{", b'{"a":')) * random.choice((2, DEEP))
    return bytes(data)


def mutated_json(content: bytes, random: Random) -> bytes:
    """One to three values of a JSON document replaced, removed, renamed, repeated or exchanged."""
    document = json.loads(content)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        document = _mutated_value(document, random)
    return json.dumps(document, ensure_ascii=random.random() < 0.9).encode("utf-8", "surrogatepass")


def spliced_json(content: bytes, random: Random) -> bytes:
    """One value of a JSON document replaced by what no writer would write, or its key given twice."""
    document = json.loads(content)
    places = list(_places(document))
    if not places:
        return random.choice(RAW).encode("utf-8", "surrogatepass")
    parent, key = random.choice(places)
    text, parent[key] = json.dumps(parent[key]), _MARK
    if isinstance(parent, dict) and random.random() < 0.2:
        instead = f"{text}, {json.dumps(key)}: {json.dumps(random.choice(ODD))}"
    else:
        instead = random.choice(RAW)
    return json.dumps(document).replace(json.dumps(_MARK), instead).encode("utf-8", "surrogatepass")


def deep_json(content: bytes, random: Random) -> bytes:
    """Nested more deeply than any parser follows."""
    opened = random.choice((b"[", b'{"a":', b"- ", b"{a: "))
    return random.choice((b"", content, b"a: ", b'{"schema": 1, "x": ')) + opened * DEEP


def mutated_lines(content: bytes, random: Random) -> bytes:
    """One of the JSON lines mutated."""
    lines = content.splitlines()
    index = random.randrange(len(lines))
    lines[index] = random.choice((mutated_json, spliced_json))(lines[index], random)
    return b"\n".join(lines) + b"\n"


def mutated_table(content: bytes, random: Random) -> bytes:
    """A field of a CSV table replaced."""
    lines = content.split(b"\n")
    index = random.randrange(len(lines))
    fields = lines[index].split(b",")
    odd = str(random.choice(ODD)).encode("utf-8", "surrogatepass")
    fields[random.randrange(len(fields))] = random.choice((b"", odd, b'"' + odd + b'"', b'"', b"\r", b"a,b"))
    lines[index] = b",".join(fields)
    return b"\n".join(lines)


def mutated_safetensors(content: bytes, random: Random) -> bytes:
    """The header of a safetensors file mutated, or the JSON that it holds as a plan."""
    size = int.from_bytes(content[:8], "little")
    mutate = random.choice((mutated_json, mutated_json, spliced_json))
    header = json.loads(content[8 : 8 + size])
    if random.random() < 0.8 and "bakeout" in header.get("__metadata__", {}):
        text = header["__metadata__"]["bakeout"]
        header["__metadata__"]["bakeout"] = mutate(text.encode(), random).decode("utf-8", "surrogatepass")
        written = json.dumps(header).encode()
    else:
        written = mutate(json.dumps(header).encode(), random)
    return len(written).to_bytes(8, "little") + written + content[8 + size :]


def mutated_yaml(content: bytes, random: Random) -> bytes:
    """A line of YAML replaced, or its value, or with more behind it."""
    rows = content.decode().splitlines()
    index = random.randrange(len(rows))
    head, colon, _ = rows[index].partition(":")
    part = random.choice((*YAML_PARTS, json.dumps(random.choice(ODD))))
    match random.randrange(6):
        case 0:
            rows[index] = part
        case 1:
            rows[index] = f"{rows[index]} {part}"
        case 2:
            rows[index] = f"  {part}"
        case 3:
            rows.insert(random.randrange(len(rows)), rows[index])
        case _:
            rows[index] = f"{head}{colon} {part}"
    return "\n".join(rows).encode("utf-8", "surrogatepass")


def _mutated_value(document: Any, random: Random) -> Any:
    document = copy.deepcopy(document)
    places = list(_places(document))
    if not places:
        return random.choice(ODD)
    parent, key = random.choice(places)
    match random.randrange(8):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[str(random.choice(("x", "", "kind", "é" * 200, random.choice(ODD))))] = parent.pop(key)
        case 2:
            other, there = random.choice(places)
            parent[key] = copy.deepcopy(other[there])
        case 3 if isinstance(parent, list):
            parent *= random.choice((2, 5))
        case 4 if isinstance(parent[key], int | float) and abs(parent[key]) < 1e300:
            parent[key] = random.choice((-1, 2, 0.5, 10**6)) * parent[key]
        case 5 if isinstance(parent[key], str):
            parent[key] += random.choice(("x", "\n", "\x07", "\ud801", "\u202e", "|`", " " * 300))
        case _:
            parent[key] = random.choice(ODD)
    return document


def _places(document: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    """Where values stand: (list or dict, key); of long lists, the first few alone."""
    if isinstance(document, dict):
        keys: Any = list(document)
    elif isinstance(document, list):
        keys = range(min(len(document), 5))
    else:
        return
    for key in keys:
        yield document, key
        if depth < 12:
            yield from _places(document[key], depth + 1)
