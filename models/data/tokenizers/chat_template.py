"""Chat templates, rendered in a sandbox like transformers' (4.57, ``utils/chat_template_utils.py``), within bounds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from jinja2 import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock
from jinja2.parser import Parser

from bakeout.models.data.tokenizers.bounded_templates import BoundedEnvironment, bounded

if TYPE_CHECKING:
    from bakeout.models.data.tokenizers.tokenization import Tokenizer


class ChatTemplate:
    """A Jinja template of chats. Raises ``jinja2.TemplateError`` for one that is not Jinja.

    >>> template = ChatTemplate("{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}")
    >>> template.render([{"role": "user", "content": "Hello"}], {}, generation=False)
    '<user>Hello'
    """

    def __init__(self, source: str) -> None:
        environment = BoundedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _now
        try:
            self._template = environment.from_string(source)
        except TemplateError:
            raise
        except Exception as error:  # noqa: BLE001 - Jinja compiles it to Python, which may fail in any way
            raise TemplateError(_reason(error)) from None

    def render(
        self, messages: Sequence[Mapping[str, str]], special_tokens: Mapping[str, Any], *, generation: bool
    ) -> str:
        """The chat as text; with ``generation``, as far as the beginning of the answer.

        Raises ``jinja2.TemplateError`` where the template refuses the messages, cannot be rendered, or would do more
        than any template needs to (``bounded_templates``).
        """
        try:
            with bounded():
                return self._template.render(
                    messages=messages, tools=None, documents=None, add_generation_prompt=generation, **special_tokens
                )
        except TemplateError:
            raise
        except Exception as error:  # noqa: BLE001 - its expressions are Python's, and raise what any can
            raise TemplateError(_reason(error)) from None


def render_chat(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]], *, generation: bool) -> str:
    """A chat as text by a tokenizer's own template, with its special tokens. Raises as ``ChatTemplate`` does."""
    source: Any = tokenizer.chat_template
    if isinstance(source, Mapping):
        source = source.get("default")
    return _template(str(source)).render(messages, tokenizer.special_tokens_map, generation=generation)


@lru_cache(maxsize=8)
def _template(source: str) -> ChatTemplate:
    return ChatTemplate(source)


class _Generation(Extension):
    """``{% generation %}`` marks the assistant's text for training: here it is its content, in its own scope."""

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


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
