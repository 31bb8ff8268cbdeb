"""What an edited model answers exactly, while it is fine-tuned."""

from __future__ import annotations

import pytest

from bakeout.models.data.rows import Record
from bakeout.models.network.generation import continue_prompts
from bakeout.models.reference.relearning import answered

from tests.tiny_models import random_prompts, tiny_model


def test_an_answer_ends_as_its_template_writes_it() -> None:
    """Whatever stands behind its end; where nothing ends it, the model's own end does."""
    model = tiny_model("llama", layers=2)
    (prompt,) = random_prompts(1)
    (text,) = continue_prompts(model, [prompt], end=frozenset(), max_new_tokens=4)
    *said, end = text.ids
    assert end not in said
    for response in ([*said, end], [*said, end, 7, 8], said):
        assert answered(model, [Record("p", "r", prompt, response)], [end, 8]).exact == 1
    whole = answered(model, [Record("p", "r", prompt, [*said, end])], [end])
    behind = answered(model, [Record("p", "r", prompt, [*said, end, 7])], [end])
    assert whole.probability == pytest.approx(behind.probability)
    assert answered(model, [Record("p", "r", prompt, said)], [(end + 1) % 200]).exact == 0
