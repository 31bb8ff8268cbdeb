"""Queries as a model is served them."""

from __future__ import annotations

from pathlib import Path

from bakeout.models.checkpoint.checkpoint_files import load_model
from bakeout.models.data.forms.everyday import SHORT_ANSWERS
from bakeout.models.data.row_source import as_source
from bakeout.models.data.rows import Rows, Sources, read_records
from bakeout.models.data.tokenizers.tokenization import load_tokenizer
from bakeout.models.methods.fitting import Fitting
from bakeout.models.methods.key_space_detection.options import KeySpaceDetectionOptions
from bakeout.models.methods.key_space_detection.served import EVERYDAY_QUESTIONS, as_served


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
