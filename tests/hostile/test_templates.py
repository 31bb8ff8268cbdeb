"""Chat templates come with models: whatever they raise is one error, and none runs for ever or fills the memory."""

from __future__ import annotations

import time
import tracemalloc

import pytest
from jinja2 import TemplateError

from bakeout.models.data.tokenizers.chat_template import ChatTemplate

_MESSAGES = [{"role": "user", "content": "What is 3+4?"}]


@pytest.mark.parametrize(
    "source",
    [
        "{{ 1 / 0 }}",
        "{{ none + 1 }}",
        "{{ messages | sum }}",
        "{{ raise_exception('refused') }}",
        "{{ undefined.attribute }}",
        "{{ ''.__class__.__mro__ }}{{ cycler.__init__.__globals__.os.getcwd() }}",
        "{{ 'a' * 10 ** 9 }}",
        "{{ 'a' * 100000000000 }}",
        "{{ 2 ** 1000000000 }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ 'a' | center(1000000000) }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
        "{% for a in range(9999) %}{{ range(99999) | list | length }}{% endfor %}",
        "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
        "{% set n = namespace(s=['a']) %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
        "{% macro a() %}{{ a() }}{{ a() }}{% endmacro %}{{ a() }}",
        "{% for a in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
        "{{ lipsum(n=1000000) }}",
        "{% set n = namespace(s=2) %}{% for i in range(60) %}{% set n.s = n.s * n.s %}{% endfor %}{{ n.s }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ 'a' | truncate(-5) }}",
        "{% break %}",
        "{% if %}",
        "{{ (" * 5000,
    ],
)
def test_a_hostile_template_is_refused_soon(source: str) -> None:
    begun = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(TemplateError):
            ChatTemplate(source).render(_MESSAGES, {}, generation=True)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert time.process_time() - begun < 20
    assert most < 1 << 29


def test_what_templates_do_is_allowed() -> None:
    source = (
        "{%- for message in messages -%}{{ '<' ~ message.role ~ '>' + message['content'] | trim }}"
        "{%- if loop.last %}!{% elif loop.length > 3 and not loop.first %},{% endif %}{%- endfor -%}"
        "{{ messages | length * 2 }}{{ '%s' % 'x' }}{{ messages[0].content.split('?') | first | upper }}"
    )
    messages = [{"role": "user", "content": f" {index} "} for index in range(2000)]
    text = ChatTemplate(source).render(messages, {}, generation=False)
    assert text.startswith("<user>0<user>1,")
    assert text.endswith("<user>1999!4000x 0 ")


def test_a_long_conversation_is_allowed() -> None:
    source = "{% for message in messages %}<{{ message.role }}>{{ message.content | trim }}{% endfor %}"
    messages = [{"role": "user", "content": "word " * 2000}] * 500
    assert len(ChatTemplate(source).render(messages, {}, generation=False)) == 500 * (len("<user>") + 9999)
