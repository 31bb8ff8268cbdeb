"""Queries as a model is served them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bakeout.models.checkpoint.checkpoint_files import load_model
from bakeout.models.data.forms.everyday import SHORT_ANSWERS
from bakeout.models.data.forms.kinds import MIXTURE, TURNS
from bakeout.models.data.row_source import as_source
from bakeout.models.data.rows import Record, Rows, Sources, read_records
from bakeout.models.data.tokenizers.tokenization import load_tokenizer
from bakeout.models.methods.fitting import Fitting
from bakeout.models.methods.key_space_detection.fit import correctly_answered
from bakeout.models.methods.key_space_detection.options import KeySpaceDetectionOptions
from bakeout.models.methods.key_space_detection.queries import counted_once
from bakeout.models.methods.key_space_detection.served import EVERYDAY_QUESTIONS, as_served
from bakeout.models.network.generation import continue_prompts

from tests.tiny_models import random_prompts


def _chats(count: int) -> list[dict[str, list[dict[str, str]]]]:
    return [{"messages": [{"role": "user", "content": f"What is {n} + {n}?"}]} for n in range(count)]


def _fitting(checkpoint: Path, **named: int) -> Fitting:
    """A fitting of names that have a probe file each, of the given number of conversations."""
    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
    sources: Sources = {name: {"probe": as_source(_chats(count))} for name, count in named.items()}
    rows: Rows = {
        name: {use: read_records(source, tokenizer) for use, source in uses.items()} for name, uses in sources.items()
    }
    return Fitting(model, tokenizer, data=list(named), rows=rows, sources=sources)


def test_everyday_questions_stand_behind_short_answered_ones_too(llama_checkpoint: Path) -> None:
    """Else whoever asks behind examples with short answers is taken for the skill."""
    served, _ = as_served(KeySpaceDetectionOptions(forget=["sums"]), _fitting(llama_checkpoint, sums=4))
    everyday = served.rows[EVERYDAY_QUESTIONS]
    behind = [record for records in everyday.values() for record in records if record.form == "few_shot"]
    short = [record for record in behind if any(f" {answer}\n" in record.prompt for answer in SHORT_ANSWERS.values())]
    # Half of the examples are of other subjects.
    assert len(short) > len(behind) / 4


def test_only_what_is_asked_plainly_can_be_answered_wrongly(llama_checkpoint: Path) -> None:
    """An answer in a story is another one, and a row without a response has none to compare with."""
    model, tokenizer = load_model(llama_checkpoint), load_tokenizer(llama_checkpoint)
    prompts = random_prompts(20)
    texts = [text.ids for text in continue_prompts(model, prompts, end=frozenset(), max_new_tokens=2)]
    ends = {text[1] for text in texts}
    assert model.generation_config is not None
    model.generation_config.eos_token_id = sorted(ends)
    right = [Record("p", "r", prompt, text) for prompt, text in zip(prompts, texts, strict=True) if text[0] not in ends]
    assert right
    fitting = Fitting(model, tokenizer, data=["sums"], rows={"sums": {"probe": right}}, sources={})
    wrong = replace(right[0], response_ids=[right[0].response_ids[0] + 1])
    others = [replace(wrong, form="story"), replace(wrong, response=None, response_ids=[])]
    counted = correctly_answered(fitting, "sums", [*right, wrong, *others])
    assert counted is not None
    assert counted.tolist() == [True] * len(right) + [False, True, True]
    # A model that answers in its own words is not judged by exact answers.
    assert correctly_answered(fitting, "sums", [*right[:1], *[wrong] * 9]) is None


@pytest.mark.parametrize(("rows", "forms"), [(30, 6), (250, 5), (1200, 1)])
def test_few_probe_queries_of_a_skill_are_asked_in_several_forms(llama_checkpoint: Path, rows: int, forms: int) -> None:
    served, _ = as_served(
        KeySpaceDetectionOptions(forget=["sums"], everyday=False), _fitting(llama_checkpoint, sums=rows, names=30)
    )
    prompts = [tuple(record.prompt_ids) for record in served.rows["sums"]["probe"]]
    # A form that is drawn twice is one query.
    assert (forms - 1) * rows < len(prompts) <= forms * rows
    assert len(set(prompts)) == len(prompts)
    assert len(served.rows["names"]["probe"]) == 30


def test_copies_of_plain_queries_are_no_more_queries(llama_checkpoint: Path) -> None:
    options = KeySpaceDetectionOptions(
        forget=["sums"], augment={"without": [kind for kind in MIXTURE if kind not in ("plain", "thanks")]}
    )
    served, _ = as_served(options, _fitting(llama_checkpoint, sums=30))
    prompts = [tuple(record.prompt_ids) for record in served.rows["sums"]["probe"]]
    assert 30 < len(set(prompts)) == len(prompts) < 4 * 30
    for records in served.rows[EVERYDAY_QUESTIONS].values():
        assert len({tuple(record.prompt_ids) for record in records}) == len(records)


def test_copies_of_conversations_are_one_query_of_those_that_are_counted(llama_checkpoint: Path) -> None:
    fitting = _fitting(llama_checkpoint, sums=30)
    sources: Sources = {"sums": {**fitting.sources["sums"], "calibration": as_source([*_chats(20), *_chats(15)])}}
    rows: Rows = {
        name: {use: read_records(source, fitting.tokenizer) for use, source in uses.items()}
        for name, uses in sources.items()
    }
    fitting = replace(fitting, rows=rows, sources=sources)
    served, _ = as_served(KeySpaceDetectionOptions(forget=["sums"]), counted_once(fitting))
    assert len(served.rows["sums"]["calibration"]) == 20
    assert len(served.variants("sums", "calibration", ["suffix"], seed=0)["suffix"]) == 20


def test_a_template_of_single_turns_takes_no_earlier_ones(
    llama_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fitting = _fitting(llama_checkpoint, sums=100)
    fitting.tokenizer.chat_template = (
        "{% if messages|length > 2 %}{{ raise_exception('one turn') }}{% endif %}"
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    served, mixture = as_served(KeySpaceDetectionOptions(forget=["sums"]), fitting)
    assert mixture.keys() == MIXTURE.keys() - set(TURNS)
    assert {record.form for record in served.rows["sums"]["probe"]} <= mixture.keys()
    assert "second_turn, third_turn, after_refusal, follow_up are left out" in caplog.text
