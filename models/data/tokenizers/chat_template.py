"""Chat templates, rendered in a sandbox like transformers' (4.57, ``utils/chat_template_utils.py``), within bounds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock
from jinja2.parser import Parser

from bakeout.models.data.tokenizers.bounded_templates import BoundedEnvironment, bounded
from bakeout.models.errors import BakeoutError

if TYPE_CHECKING:
    from bakeout.models.data.tokenizers.tokenization import Tokenizer

# The day that a template which reads the clock is told: the one that Llama 3's templates fall back on.
PINNED_DATE = date(2024, 7, 26)
CLOCK = "strftime_now"
# What ``begun_with`` ends the tags with.
NOTHING = "{{ '' }}"
_INDENTED = re.compile(r"\A[ \t]+(?={%(?!\+)|{#)")


class ChatTemplateError(BakeoutError):
    """A chat that the tokenizer's template cannot render, or a template that cannot be chosen."""


class ChatTemplate:
    """A Jinja template of chats. Raises ``jinja2.TemplateError`` for one that is not Jinja.

    The clock that it may read (``strftime_now``) stands at the beginning of ``PINNED_DATE``, so that the same chat is
    the same text on every day. ``names``: every name that it reads.

    >>> template = ChatTemplate("{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}")
    >>> template.render([{"role": "user", "content": "Hello"}], {}, generation=False)
    '<user>Hello'
    """

    def __init__(self, source: str) -> None:
        environment = BoundedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.filters["random"] = _draw
        environment.globals["lipsum"] = _draw
        environment.globals["raise_exception"] = _raise
        environment.globals[CLOCK] = _pinned_clock
        try:
            self._template = environment.from_string(source)
            parsed = environment.parse(source)
            self.names = frozenset(name.name for name in parsed.find_all(nodes.Name) if name.ctx == "load")
            self._defined = frozenset(macro.name for macro in parsed.find_all(nodes.Macro))
        except TemplateError:
            raise
        except Exception as error:  # noqa: BLE001 - Jinja compiles it to Python, which may fail in any way
            raise TemplateError(_reason(error)) from None

    @property
    def reads_clock(self) -> bool:
        """Whether it asks for the time, and does not define itself what it is told."""
        return CLOCK in self.names - self._defined

    def render(
        self, messages: Sequence[Mapping[str, str]], special_tokens: Mapping[str, Any], *, generation: bool
    ) -> str:
        """The chat as text; with ``generation``, as far as the beginning of the answer.

        Raises ``jinja2.TemplateError`` where the template refuses the messages, cannot be rendered, draws at random, or
        would do more than any template needs to (``bounded_templates``).
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


def chosen_template(templates: object) -> str:
    """A tokenizer's chat template: the only one, or the one called ``default``. Raises ``ChatTemplateError``."""
    if not templates:
        raise ChatTemplateError(
            "The tokenizer has no chat template.", "Give rows with `prompt`, or the tokenizer of the chat model."
        )
    if not isinstance(templates, Mapping):
        return str(templates)
    if "default" not in templates:
        named = [str(name) for name in templates]
        raise ChatTemplateError(
            f"The tokenizer has several chat templates, and none of them is the default: {', '.join(named)}.",
            f"Choose one, as in `chat_template: {named[0]}`.",
        )
    return str(templates["default"])


def begun_with(tags: str, source: str) -> str:
    """A template that begins with ``tags``, which write nothing, and goes on as ``source``, in every runtime.

    transformers leaves out a line break behind a tag, and spaces that a line has before one; onnxruntime-genai (0.13)
    writes them. So neither may come to stand there.
    """
    return f"{tags}{NOTHING}{_INDENTED.sub('', source)}"


def render_chat(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]], *, generation: bool) -> str:
    """A chat as text by a tokenizer's own template, with its special tokens.

    Raises ``ChatTemplateError``, whatever the template raises.
    """
    source = chosen_template(tokenizer.chat_template)
    try:
        return parsed_template(source).render(messages, tokenizer.special_tokens_map, generation=generation)
    except TemplateError as error:
        reason = " ".join(str(error).split())[:200]
        raise ChatTemplateError(
            f"The chat template refuses the messages ({reason}).",
            "Correct the messages, or choose the template or its arguments by `chat_template`.",
        ) from None


@lru_cache(maxsize=8)
def parsed_template(source: str) -> ChatTemplate:
    """The template, parsed once. Raises ``jinja2.TemplateError`` for what is no template."""
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


def _draw(*_: Any, **__: Any) -> NoReturn:
    raise TemplateError("it draws at random, so that no two renderings are the same")


def _pinned_clock(form: str) -> str:
    return datetime.combine(PINNED_DATE, time()).strftime(form)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
