"""Chat templates, rendered in a sandbox like transformers' (4.57, ``utils/chat_template_utils.py``)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class ChatTemplate:
    """A Jinja template of chats. Raises ``jinja2.TemplateError`` for one that is not Jinja.

    >>> template = ChatTemplate("{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}")
    >>> template.render([{"role": "user", "content": "Hello"}], {}, generation=False)
    '<user>Hello'
    """

    def __init__(self, source: str) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _now
        self._template = environment.from_string(source)

    def render(
        self, messages: Sequence[Mapping[str, str]], special_tokens: Mapping[str, Any], *, generation: bool
    ) -> str:
        """The chat as text; with ``generation``, as far as the beginning of the answer.

        Raises ``jinja2.TemplateError`` where the template refuses the messages.
        """
        return self._template.render(
            messages=messages, tools=None, documents=None, add_generation_prompt=generation, **special_tokens
        )


class _Generation(Extension):
    """``{% generation %}`` marks what the assistant says, for training: here it is its content, in its own scope."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's name for it

    def parse(self, parser: Parser) -> CallBlock:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        block = CallBlock(self.call_method("_content"), [], [], body)
        block.set_lineno(line)
        return block

    def _content(self, caller: Callable[[], str]) -> str:
        return caller()


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without HTML escapes, which Jinja's own filter makes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
