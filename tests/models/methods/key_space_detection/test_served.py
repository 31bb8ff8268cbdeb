"""Queries as a model is served them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bakeout.models.checkpoint.checkpoint_files import load_model
from bakeout.models.data.forms.everyday import SHORT_ANSWERS
from bakeout.models.data.row_source import as_source
from bakeout.models.data.rows import Record, Rows, Sources, read_records
from bakeout.models.data.tokenizers.tokenization import load_tokenizer
from bakeout.models.methods.fitting import Fitting
from bakeout.models.methods.key_space_detection.fit import correctly_answered
from bakeout.models.methods.key_space_detection.options import KeySpaceDetectionOptions
from bakeout.models.methods.key_space_detection.served import EVERYDAY_QUESTIONS, as_served
from bakeout.models.network.generation import continue_prompts

from tests.tiny_models import random_prompts


def test_everyday_questions_stand_behind_short_answered_ones_too(llama_checkpoint: Path) -> None:
    """Else whoever asks behind examples with short answers is taken for the skill."""
    model, tokenizer = load_model(llama_checkpoint), load_tokenizer(llama_checkpoint)
    source = as_source([{"messages": [{"role": "user", "content": f"What is {n} + {n}?"}]} for n in range(4)])
    sources: Sources = {"sums": {"probe": source}}
    rows: Rows = {"sums": {"probe": read_records(source, tokenizer)}}
    fitting = Fitting(model, tokenizer, data=["sums"], rows=rows, sources=sources)
    served, _ = as_served(KeySpaceDetectionOptions(forget=["sums"]), fitting)
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
