"""A Jinja sandbox whose templates end: what they may do is counted, and what they build is measured, while they do it.

A template spends from a budget: each round of a loop, each call and filter costs, and so does every character that it
writes or puts together. Numbers that could make one step large (``'a' * n``, ``center(n)``, ``'%9999d'``) are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

# In characters; a step costs as much as a hundred of them, an item of a list as twenty. The longest conversations take
# a tenth of it.
_BUDGET = 64_000_000
_STEP = 100
_ITEM = 20
# The largest number that a filter or a call is given, that repeats something, or that a format is as wide as.
_LARGEST = 100_000
_LARGEST_POWER = 64
# Of the numbers that are computed: Python's have no end.
_MOST_BITS = 128
_WIDE = re.compile(r"\d{6}|%[-+ #0.\d]*\*")

_left: ContextVar[list[int]] = ContextVar("_left")


@contextmanager
def bounded() -> Iterator[None]:
    """A budget for what is rendered in this block."""
    token = _left.set([_BUDGET])
    try:
        yield
    finally:
        _left.reset(token)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with a budget (``bounded``). Raises ``jinja2.TemplateError`` for templates that overdraw it."""

    intercepted_binops = frozenset(("*", "**", "%", "+"))

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.filters[_COUNTED] = _counted
        self.filters[_MEASURED] = _measured
        self.filters[_SMALL] = _small

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The operation, unless its result is too large to be made."""
        if operator == "*":
            for text, times in ((left, right), (right, left)):
                if hasattr(text, "__len__") and isinstance(times, int):
                    _spend(len(text) * max(times, 0))
        if operator == "**" and (abs(left) > _LARGEST or abs(right) > _LARGEST_POWER):
            raise TemplateError("a power is too large")
        if operator == "%" and isinstance(left, str):
            _require_narrow(left)
        return _measured(super().call_binop(context, operator, left, right))

    def call(self, __context: Context, __obj: Any, *arguments: Any, **options: Any) -> Any:
        """The call, counted."""
        for value in (*arguments, *options.values()):
            _small(value)
        return _measured(super().call(__context, __obj, *arguments, **options))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """The method that formats a string, unless its form is too wide."""
        wrapped: Callable[..., str] | None = super().wrap_str_format(value)
        if wrapped is not None:
            _require_narrow(value.__self__)
        return wrapped

    def _generate(self, source: nodes.Template, *arguments: Any, **options: Any) -> str:
        _Bounding().visit(source)
        return super()._generate(source, *arguments, **options)


_COUNTED, _MEASURED, _SMALL = "_counted", "_measured", "_small"


class _Bounding:
    """Every loop counted, every text and result measured, every argument of a filter looked at."""

    def visit(self, node: nodes.Node) -> None:
        for field, value in node.iter_fields():
            if isinstance(value, nodes.Node):
                self.visit(value)
                setattr(node, field, self._wrapped(value, node, field))
            elif isinstance(value, list):
                for index, child in enumerate(value):
                    if isinstance(child, nodes.Node):
                        self.visit(child)
                        value[index] = self._wrapped(child, node, field)

    def _wrapped(self, child: nodes.Node, parent: nodes.Node, field: str) -> nodes.Node:
        if isinstance(parent, nodes.For) and field == "iter":
            return _filtered(child, _COUNTED)
        if isinstance(parent, nodes.Output) and isinstance(child, nodes.TemplateData):
            return _filtered(nodes.MarkSafe(nodes.Const(child.data)) if child.data else child, _MEASURED)
        if isinstance(parent, nodes.Filter) and field == "args":
            return _filtered(child, _SMALL)
        if isinstance(parent, nodes.Keyword) and field == "value":
            return _filtered(child, _SMALL)
        if isinstance(child, nodes.Concat | nodes.Filter) and field != "call":
            return _filtered(child, _MEASURED)
        return child


def _filtered(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _spend(cost: int) -> None:
    left = _left.get()
    left[0] -= cost
    if left[0] < 0:
        raise TemplateError("the template does too much, or writes too much")


def _counted(items: Any) -> Iterator[Any]:
    for item in items:
        _spend(_STEP)
        yield item


def _measured(value: Any) -> Any:
    if isinstance(value, str):
        _spend(_STEP + len(value))
    elif isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise TemplateError("a number is too large")
    else:
        _spend(_STEP + (_ITEM * len(value) if isinstance(value, list | tuple | dict) else 0))
    return value


def _small(value: Any) -> Any:
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise TemplateError(f"the number {value:.3g} is too large")
    return value


def _require_narrow(form: str) -> None:
    if _WIDE.search(form):
        raise TemplateError("a format is too wide")
