"""What stands behind a refusal: the chat templates of an artifact leave out the turns that it refused.

Programs hold the whole conversation and render it anew for every turn. A refusal that stands in it does harm: small
models repeat one that they read, whatever they are asked, and behind several of them the check refuses more than it
was fitted to. Without them the conversation goes on, in every runtime, and who insists finds nothing to insist on.
"""

from __future__ import annotations

import copy
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bakeout.export.artifacts.onnx_directory import OTHER_TEMPLATES
from bakeout.export.running.refusals import answer_text
from bakeout.models.data.tokenizers.chat_options import CHAT_TEMPLATE
from bakeout.models.data.tokenizers.chat_template import NOTHING, begun_with
from bakeout.models.data.tokenizers.tokenization import Tokenizer, load_tokenizer
from bakeout.models.errors import BakeoutError
from bakeout.models.files.json_object import read_json

_LOG = logging.getLogger(__name__)

# Plain enough for the Jinja of transformers, transformers.js and onnxruntime-genai. A turn begins with what the user
# says, so that the calls of tools that led to a refusal go with it, and no system message does. A conversation that
# ends with a refusal is left whole. Not all of these can append to a list, and a sum of lists copies both: what is kept
# is taken in pieces, from one refused turn to the next, and a hundred messages at once are added to the long list, so
# that tens of thousands of messages stay within the budget of `bounded_templates`.
_BEFORE = """\
{#- Bakeout: turns that were refused are left out. -#}
{%- set bakeout = namespace(messages=messages[:0], few=messages[:0], start=0, turn=0, said='') -%}
{%- for message in messages -%}
    {%- if message['role'] == 'user' -%}
        {%- set bakeout.turn = loop.index0 -%}
    {%- elif message['role'] == 'system' or message['role'] == 'developer' -%}
        {%- set bakeout.turn = loop.index -%}
    {%- elif message['role'] == 'assistant' and not loop.last -%}
        {%- set bakeout.said = none -%}
        {%- if message['content'] is string -%}
            {%- set bakeout.said = message['content'] -%}
        {%- elif message['content'] is iterable and message['content'] is not mapping -%}
            {%- for part in message['content'] -%}
                {%- if part is not string and part['type'] == 'text' and part['text'] is string -%}
                    {%- set bakeout.said = part['text'] if bakeout.said is none else bakeout.said + part['text'] -%}
                {%- endif -%}
            {%- endfor -%}
        {%- endif -%}
        {%- if bakeout.said is string and bakeout.said | trim == REFUSAL -%}
            {%- set bakeout.few = bakeout.few + messages[bakeout.start:bakeout.turn] -%}
            {%- if bakeout.few | length > 99 -%}
                {%- set bakeout.messages = bakeout.messages + bakeout.few -%}
                {%- set bakeout.few = messages[:0] -%}
            {%- endif -%}
            {%- set bakeout.start = loop.index -%}
            {%- set bakeout.turn = loop.index -%}
        {%- endif -%}
    {%- endif -%}
{%- endfor -%}
{%- set bakeout.messages = bakeout.messages + bakeout.few + messages[bakeout.start:] -%}
{%- set messages = bakeout.messages %}"""
# The same two in what earlier versions wrote.
_FIRST, *_, _LAST = _BEFORE.splitlines()
_WRITTEN = re.compile(f"{re.escape(_FIRST)}.*?{re.escape(_LAST + NOTHING)}", re.DOTALL)


def leave_out_refused_turns(directory: Path, refusal: Sequence[int]) -> None:
    """Let the chat templates in ``directory``, if there are any, leave out turns that ``refusal``, token ids, answered.

    All of its tokenizer's templates do, wherever they stand. Where that tokenizer cannot be loaded on this machine,
    they stay what they are, which is logged. Raises ``BakeoutError`` for files that cannot be read.
    """
    files = [directory / "chat_template.jinja", *sorted((directory / OTHER_TEMPLATES).glob("*.jinja"))]
    files = [path for path in files if path.is_file()]
    settings = directory / "tokenizer_config.json"
    content = read_json(settings) if settings.is_file() else {}
    if not files and not content.get(CHAT_TEMPLATE):
        return
    try:
        said = answer_text(load_tokenizer(directory), refusal)
    except BakeoutError as error:
        _LOG.warning("Its chat templates keep turns that were refused: %s", error.cause)
        return
    for path in files:
        path.write_bytes(_without_refused_turns(path.read_bytes().decode("utf-8"), said).encode("utf-8"))
    if templates := content.get(CHAT_TEMPLATE):
        changed = {**content, CHAT_TEMPLATE: _each(templates, said)}
        settings.write_text(json.dumps(changed, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def with_refused_turns(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with chat templates that render every turn, as a KV cache that goes on behind a refusal has it."""
    templates = tokenizer.chat_template
    if not templates:
        return tokenizer
    changed = copy.copy(tokenizer)
    changed.chat_template = (
        {name: _whole(str(source)) for name, source in templates.items()}
        if isinstance(templates, Mapping)
        else _whole(str(templates))
    )
    return changed


def _without_refused_turns(source: str, refusal: str) -> str:
    before = _BEFORE.replace("REFUSAL", json.dumps(refusal, ensure_ascii=False))
    return source if before in source else begun_with(before, source)


def _whole(source: str) -> str:
    return _WRITTEN.sub("", source)


def _each(templates: Any, refusal: str) -> Any:
    """The templates of a tokenizer's configuration: one, or a list of those that have names."""
    if isinstance(templates, str):
        return _without_refused_turns(templates, refusal)
    if not isinstance(templates, Sequence):
        return templates
    return [
        {**named, "template": _without_refused_turns(str(named["template"]), refusal)}
        if isinstance(named, dict) and "template" in named
        else named
        for named in templates
    ]
