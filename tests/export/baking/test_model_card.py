"""The model card says what was removed, what it did, and what it does not protect against."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from bakeout.export.baking.model_card import model_card
from bakeout.export.evaluation.rows import BASE, Row
from bakeout.models.plan import Canary, Intervention, KeySpaceDetection, NeuronAdjust, Plan

from tests.tiny_models import byte_tokenizer

ROWS = [
    Row(BASE, "sums", 200, 0.975, 0.0),
    Row(BASE, "names", 100, 0.99, 0.0),
    Row("out", "sums", 200, 0.015, 0.985),
    Row("out", "names", 100, 0.98, 0.01),
]


def _card(plan: Plan, rows: list[Row]) -> str:
    return model_card(plan, rows, byte_tokenizer())


def test_it_says_what_the_weights_were_quantised_to(tiny_plan: Plan) -> None:
    assert "quantised to int8" in model_card(tiny_plan, ROWS, byte_tokenizer(), quantized="int8")
    assert "quantised to" not in _card(tiny_plan, ROWS)


def test_it_says_what_was_removed_how_and_with_what_effect(tiny_plan: Plan) -> None:
    card = _card(tiny_plan, ROWS)
    assert "# llama without sums\n" in card
    assert "Neuron Adjust" in card
    assert "Key Space Detection" in card
    assert "Your query is not valid." in card
    assert "| sums | 200 | 97.5 % | 1.5 % | 98.5 % |" in card
    assert "| names | 100 | 99.0 % | 98.0 % | 1.0 % |" in card
    assert "* names, 95 % intervals: right 93.0 to 99.4 %, refused 0.2 to 5.4 %." in card
    assert tiny_plan.model.digest in card
    for digests in tiny_plan.provenance["data"].values():
        for digest in digests.values():
            assert digest in card


def test_it_says_what_it_does_not_protect_against(tiny_plan: Plan) -> None:
    limits = _card(tiny_plan, ROWS).split("## Limits")[1].split("##")[0]
    assert "still in the weights" in limits
    assert "cannot resist a white-box reader, who can cut the added nodes out" in limits
    assert "`bakeout verify --digest`" in limits


def test_it_says_when_nothing_was_measured(tiny_plan: Plan) -> None:
    assert "Not measured" in _card(tiny_plan, [])


def test_every_kind_of_plan_has_a_card_of_whole_tables(tiny_plan: Plan, tmp_path: Path) -> None:
    adjust, detection = tiny_plan.interventions
    assert isinstance(adjust, NeuronAdjust)
    assert isinstance(detection, KeySpaceDetection)
    alone: list[Intervention] = [replace(adjust, coin="stochastic", seed=5), replace(detection, positions="every")]
    only = [
        replace(
            tiny_plan,
            interventions=(intervention,),
            canary=Canary(tiny_plan.canary.input_ids, (tiny_plan.canary.expected[index],)),
        )
        for index, intervention in enumerate(alone)
    ]
    for plan in (tiny_plan, *only):
        card = _card(plan, ROWS)
        assert "{{" not in card
        assert "{%" not in card
        assert "\n\n\n" not in card
        # Rows of one table stand together and have as many cells.
        for table in re.findall(r"(?:^\|.*\n)+", card, flags=re.MULTILINE):
            lines = table.splitlines()
            assert len(lines) >= 3, table
            assert len({line.count("|") for line in lines}) == 1, table
    assert "seed 5" in _card(only[0], ROWS)
