"""The answer that ends a chat: what a model says after the prompt that it is served, as its template writes it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from bakeout.models.data.tokenizers.chat_template import ChatTemplateError, render_chat

if TYPE_CHECKING:
    from bakeout.models.data.tokenizers.tokenization import Tokenizer

# A tag, or a character.
_PARTS = re.compile(r"<[^<>\s]*>|[\s\S]")
# Stands in for an answer, to see what a template writes around it.
_MARK = "\ue000\uf8ff\ue000"


def prompt_and_answer(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]]) -> tuple[str, str]:
    """The messages before the last one as a model is served them, and what it says if that one is its answer.

    Together they are the whole chat where the template writes an answer as a continuation of its generation prompt.
    Templates of models that reason write it otherwise: DeepSeek-R1's opens the reasoning in the generation prompt
    alone, and removes it from answers. There the answer is the text that follows what both have in common
    or, where the template removes something from it, the message as it stands, without what the prompt has opened
    already; and then what the template writes behind an answer. Of that, white space behind an end is left out: a
    template puts it between messages, and no model is asked to say it.

    Raises ``ChatTemplateError``, for a template that leaves the answer out too.
    """
    prompt = render_chat(tokenizer, messages[:-1], generation=True)
    whole = render_chat(tokenizer, messages, generation=False)
    content = messages[-1]["content"].strip()
    if whole.startswith(prompt) and content in whole[len(prompt) :]:
        answer, after = _split_behind(content, whole[len(prompt) :])
        return prompt, answer + _up_to_end(after)
    before, after = _around_answer(tokenizer, messages)
    shared = prompt if whole.startswith(prompt) else _common_start(prompt, before, whole)
    follows = whole[len(shared) :]
    written = follows.removesuffix(after).strip()
    history = render_chat(tokenizer, messages[:-1], generation=False)
    if shared.startswith(history) and (written == content or not content.endswith(written)):
        return prompt, follows.removesuffix(after) + _up_to_end(after) if follows.endswith(after) else follows
    return prompt, _continued(messages[-1]["content"], prompt[len(shared) :]) + _up_to_end(after)


def render_begun(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]]) -> str:
    """A chat as text, up to the end of the last message's content: it is to be continued.

    Raises ``ChatTemplateError``, for a template that leaves that message out too.
    """
    before, after = _around_answer(tokenizer, messages)
    whole = render_chat(tokenizer, messages, generation=False)
    is_around = whole.startswith(before) and whole.endswith(after)
    return whole[: len(whole) - len(after)] if is_around else before + messages[-1]["content"]


def _around_answer(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]]) -> tuple[str, str]:
    """What the template writes before and behind the last message's content."""
    marked = render_chat(tokenizer, [*messages[:-1], {**messages[-1], "content": _MARK}], generation=False)
    before, mark, after = marked.rpartition(_MARK)
    if not mark:
        raise ChatTemplateError(
            "The chat template leaves the answer out.",
            "Give rows with `prompt` and `response`, rendered as your server renders them.",
        )
    return before, after


def _split_behind(content: str, text: str) -> tuple[str, str]:
    place = text.rindex(content) + len(content) if content else 0
    return text[:place], text[place:]


def _up_to_end(after: str) -> str:
    """What a template writes behind an answer, without white space behind its end."""
    return after.rstrip() or after


def _common_start(*texts: str) -> str:
    """What all texts begin with, up to the end of a tag: ``<think>`` and ``</think>`` have nothing in common."""
    parts = zip(*map(_PARTS.findall, texts), strict=False)
    return "".join(part for part, *_ in takewhile(lambda alike: len(set(alike)) == 1, parts))


def _continued(content: str, opened: str) -> str:
    """The content without what the prompt has written of it already."""
    if content.startswith(opened):
        return content[len(opened) :]
    mark = opened.strip()
    return content[len(mark) :].lstrip() if mark and content.startswith(mark) else content
