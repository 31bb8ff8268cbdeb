"""The YAML files of tasks of lm-evaluation-harness, which can name code to run: read before the harness reads them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bakeout.models.errors import BakeoutError
from bakeout.models.files.reading import read_regular

_DEEPEST = 100
_STANDARD, _PYTHON = "tag:yaml.org,2002:", "tag:yaml.org,2002:python/"


def require_no_code(directory: Path) -> None:
    """Raise ``BakeoutError`` where a task in ``directory`` names a function (`!function`) or another tag of its own,
    includes a file from elsewhere, or cannot be read.
    """
    top = directory.resolve()
    waiting, seen = sorted(top.rglob("*.yaml")), set()
    while waiting:
        path = waiting.pop().resolve()
        if path in seen:
            continue
        seen.add(path)
        if not path.is_relative_to(top):
            raise BakeoutError(
                f"The tasks in {directory} include {path}, which lies outside.", "Copy it into the directory."
            )
        tags, included = _read(path)
        if tags:
            raise BakeoutError(
                f"{path} names Python code to run ({tags[0]}).", "Give `task_code` if you trust who wrote it."
            )
        waiting += [path.parent / name for name in included]


def _read(path: Path) -> tuple[list[str], list[str]]:
    """The tags in a file that are not YAML's own, and the files that it includes."""
    import yaml

    # The harness's own loader, so that both read the same.
    loader = yaml.CSafeLoader if getattr(yaml, "__with_libyaml__", False) else yaml.FullLoader
    try:
        content = read_regular(path)
        _require_shallow(yaml.parse(content, Loader=loader))
        root = yaml.compose(content, Loader=loader)
        nodes = {id(node): node for node in _nodes(root, set())}
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BakeoutError(f"{path} cannot be read ({reason}).", "Correct the task, or remove it.") from None
    tags = [node.tag for node in nodes.values() if not node.tag.startswith(_STANDARD) or node.tag.startswith(_PYTHON)]
    return tags, [name for value in _values(root, "include") for name in _texts(value)]


def _require_shallow(events: Iterator[Any]) -> None:
    """Raise ``ValueError`` for what nests more deeply than the loader's stack bears, which ends the process."""
    depth = 0
    for event in events:
        kind = type(event).__name__
        depth += kind.endswith("StartEvent") - kind.endswith("EndEvent")
        if depth > _DEEPEST:
            raise ValueError("it nests too deeply")


def _nodes(node: Any, seen: set[int]) -> Iterator[Any]:
    """A node and all below, each once: aliases may name one a thousand times."""
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    yield node
    if isinstance(node.value, list):
        for child in node.value:
            for part in child if isinstance(child, tuple) else (child,):
                yield from _nodes(part, seen)


def _values(root: Any, key: str) -> Iterator[Any]:
    if root is not None and isinstance(root.value, list):
        for entry in root.value:
            if isinstance(entry, tuple) and entry[0].value == key:
                yield entry[1]


def _texts(node: Any) -> Iterator[str]:
    for child in node.value if isinstance(node.value, list) else [node]:
        if not isinstance(child, tuple) and isinstance(child.value, str):
            yield child.value
