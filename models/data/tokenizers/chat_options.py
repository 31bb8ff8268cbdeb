"""Which chat template renders conversations, and with what: chosen in a recipe, recorded in the plan.

A choice becomes part of the template itself. So all that renders a chat, here and wherever the artifact is served,
renders it alike: a named template is the tokenizer's only one, arguments are its defaults, the day stands in it.
"""

from __future__ import annotations

import copy
import datetime as dt
import json
import math
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any

from jinja2 import TemplateError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError, WithJsonSchema

from bakeout.models.data.tokenizers.chat_template import (
    CLOCK,
    PINNED_DATE,
    ChatTemplate,
    ChatTemplateError,
    begun_with,
    chosen_template,
    parsed_template,
)

if TYPE_CHECKING:
    from bakeout.models.data.tokenizers.tokenization import Tokenizer

# The key in a plan's provenance and in an artifact's manifest.
CHAT_TEMPLATE = "chat_template"
# What a chat is rendered from, and what a template is given by its sandbox.
_NOT_ARGUMENTS = frozenset({"messages", "add_generation_prompt", "raise_exception", CLOCK})
_DIRECTIVE = re.compile(r"%-?[A-Za-z]")


def _day(value: Any) -> Any:
    """A day alone: a moment would be rounded without a word."""
    if isinstance(value, dt.date) and not isinstance(value, dt.datetime):
        return value
    try:
        return dt.date.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError("not a day, as in 2024-07-26") from None


Day = Annotated[dt.date, BeforeValidator(_day)]


def named_template(value: Any) -> Any:
    """A plain name as the options that it stands for."""
    return {"name": value} if isinstance(value, str) else value


class ChatTemplateOptions(BaseModel):
    """How conversations are rendered: the tokenizer's chat template, its arguments, and the day that it is told.

    >>> options = bakeout.ChatTemplateOptions(arguments={"enable_thinking": False})
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str | None = Field(
        default=None,
        description="The template's name, where the tokenizer has several; by default the one called `default`. A "
        "plain name as `chat_template` means this.",
    )
    arguments: dict[str, Annotated[JsonValue, WithJsonSchema({})]] = Field(
        default={},
        description="What the template is given beside the messages, by name, as in `{enable_thinking: false}` or "
        "`tools`. They become the defaults of the artifact's template.",
    )
    date: Day | None = Field(
        default=None,
        description=f"The day that a template which reads the clock is told; by default {PINNED_DATE}. The artifact's "
        "template is told it too.",
    )

    def applied_to(self, tokenizer: Tokenizer) -> Tokenizer:
        """The tokenizer with the chosen template, which has the arguments and the day in it, for its only one.

        Where nothing is chosen, and no clock is read, it is the tokenizer itself. Raises ``ChatTemplateError`` for a
        template that the tokenizer lacks, and for arguments or a day that the template does not read.
        """
        source = self._chosen(tokenizer.chat_template)
        written = None if source is None else self._written(source)
        if written in (None, tokenizer.chat_template):
            return tokenizer
        changed = copy.copy(tokenizer)
        changed.chat_template = written
        return changed

    def recorded(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """What a plan records: the choices, and the day where the template reads the clock; empty for neither.

        Raises as ``applied_to`` does.
        """
        source = self._chosen(tokenizer.chat_template)
        reads_clock = source is not None and self._parsed(source).reads_clock
        chosen = {"name": self.name, "arguments": self.arguments}
        day = {"date": str(self.date or PINNED_DATE)} if reads_clock else {}
        return {name: value for name, value in chosen.items() if value} | day

    def complete(self) -> ChatTemplateOptions:
        """The same with the day that is meant where none is given: equal ones render alike."""
        return self.model_copy(update={"date": self.date or PINNED_DATE})

    def _chosen(self, templates: object) -> str | None:
        """The source of the template that is meant; None where rows may do without, and have not been asked for one."""
        named = templates if isinstance(templates, Mapping) else {"default": templates} if templates else {}
        if self.name is not None:
            if self.name not in named:
                known = f"It has {', '.join(map(str, named))}." if named else "It has none."
                raise ChatTemplateError(
                    f"The tokenizer has no chat template called {self.name!r}.", f"Correct `chat_template`. {known}"
                )
            return str(named[self.name])
        # As transformers chooses.
        if self.arguments.get("tools") and "tool_use" in named:
            return str(named["tool_use"])
        if self.arguments or self.date:
            return chosen_template(templates)
        return str(named["default"]) if "default" in named and _is_readable(str(named["default"])) else None

    def _parsed(self, source: str) -> ChatTemplate:
        """The template. Raises ``ChatTemplateError`` for one that cannot be read, and for a choice that it ignores."""
        try:
            template = parsed_template(source)
        except TemplateError as error:
            reason = " ".join(str(error).split())[:200]
            raise ChatTemplateError(f"The chat template is damaged ({reason}).", "Copy the tokenizer again.") from None
        for name in self.arguments:
            if name in _NOT_ARGUMENTS or name not in template.names:
                close = get_close_matches(name, template.names - _NOT_ARGUMENTS, n=1)
                hint = f"Did you mean {close[0]!r}?" if close else "Correct or remove it."
                raise ChatTemplateError(f"The chat template reads no argument called {name!r}.", hint)
        if self.date is not None and not template.reads_clock:
            raise ChatTemplateError(
                f"The chat template is to be told the day, {self.date}, and does not read the clock.",
                "Leave out its `date`, or give the tokenizer that it was chosen for.",
            )
        return template

    def _written(self, source: str) -> str:
        """The template with the choices before it."""
        day = _clock_macro(source, self.date or PINNED_DATE) if self._parsed(source).reads_clock else ""
        arguments = "".join(
            f"{{%- if {name} is not defined or {name} is none %}}{{%- set {name} = {_literal(value)} %}}{{%- endif %}}"
            for name, value in self.arguments.items()
        )
        return begun_with(f"{day}{arguments}", source) if day or arguments else source


def _is_readable(source: str) -> bool:
    try:
        parsed_template(source)
    except TemplateError:
        return False
    return True


def recorded_options(record: Any) -> ChatTemplateOptions:
    """The options that a plan or an artifact records, in ``CHAT_TEMPLATE``. Raises ``ChatTemplateError``."""
    try:
        return ChatTemplateOptions.model_validate({} if record is None else record)
    except (ValidationError, RecursionError):
        raise ChatTemplateError(
            f"What is recorded as `{CHAT_TEMPLATE}` is no choice of a chat template.", "Fit or bake it again."
        ) from None


def _clock_macro(source: str, day: dt.date) -> str:
    """A macro that answers for the clock: of the directives that the template's text has, each as it is on that day.

    onnxruntime-genai knows neither the filter nor the method ``replace``. ``%%`` is a percent sign, whatever follows.
    """
    moment = dt.datetime.combine(day, dt.time())
    directives = sorted(set(_DIRECTIVE.findall(source)), key=lambda directive: (-len(directive), directive))
    replaced = "".join(
        f"{{%- set form = form.split({_literal(directive)}) | join({_literal(text)}) -%}}"
        for directive in directives
        if (text := moment.strftime(directive)) != directive
    )
    answer = f"{replaced}{{{{ form }}}}"
    if "%%" in source:
        between = "{%- if not loop.first -%}{{ '%' }}{%- endif -%}"
        answer = f"{{%- for form in form.split('%%') -%}}{between}{answer}{{%- endfor -%}}"
    return f"{{%- macro {CLOCK}(form) -%}}{answer}{{%- endmacro -%}}"


def _literal(value: JsonValue) -> str:
    """JSON as Jinja writes it."""
    if value is None:
        return "none"
    if isinstance(value, float) and not math.isfinite(value):
        raise ChatTemplateError(f"An argument of the chat template is {value}.", "Give a finite number.")
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_literal(key)}: {_literal(inner)}' for key, inner in value.items())} }}"
    return json.dumps(value, ensure_ascii=False)
