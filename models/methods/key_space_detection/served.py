"""Queries as a model is served them: each conversation in one drawn form."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from math import ceil

from bakeout.models.data.forms.everyday import EVERYDAY, SHORT_ANSWERS
from bakeout.models.data.forms.forms import Query
from bakeout.models.data.forms.turns import Turn
from bakeout.models.data.prompt_rows import (
    PromptRow,
    drawn_records,
    has_conversations,
    kinds_without_rendering,
    read_prompt_rows,
    refused_turns,
)
from bakeout.models.data.rows import Record
from bakeout.models.data.uses import Use
from bakeout.models.methods.fitting import Fitting
from bakeout.models.methods.key_space_detection.options import KeySpaceDetectionOptions
from bakeout.models.methods.key_space_detection.queries import asked_once
from bakeout.models.network.families import model_limits

_logger = logging.getLogger(__name__)

_USES: tuple[Use, ...] = ("probe", "selection", "calibration")
# What everyday questions are called in reports.
EVERYDAY_QUESTIONS = "everyday questions"
# The everyday questions of each use. Every one is asked in several forms, and each form counts as a query. With two
# forms, few questions stand behind answered examples, and strangers that do are refused.
_EVERYDAY: Mapping[Use, Sequence[str]] = {
    "probe": EVERYDAY[:60],
    "selection": EVERYDAY[60:100],
    "calibration": EVERYDAY[100:],
}
_FORMS = 6
# A skill's probe queries are asked in as many forms as it takes to have this many. Each form has a dozen wordings: of a
# few hundred queries in one form each, most wordings meet none, and these lie far outside then. What is drawn twice is
# one query: copies would pass for evidence wherever queries are counted.
_PROBE_QUERIES = 1200


def as_served(options: KeySpaceDetectionOptions, fitting: Fitting) -> tuple[Fitting, dict[str, float]]:
    """``fitting`` with each conversation in one form of the options' mixture, of all names and uses alike.

    Few probe queries of a skill are asked in several forms each; fresh queries never, on which figures rest.
    With the option `everyday`, questions of ours are one more name in its rows, for strangers that nobody names.
    Also the share of each form in that mixture; empty where all rows stay as they are. Kinds that the chat template
    does not render (``kinds_without_rendering``) are left out, with a warning. Raises ``DataError`` for a conversation
    that asks nothing.
    """
    mixture = options.mixture
    conversations = {
        name: {use: source for use, source in uses.items() if use in _USES and has_conversations(source)}
        for name, uses in (fitting.sources.items() if mixture else ())
    }
    if not any(conversations.values()):
        return fitting, {}
    if left_out := [kind for kind in kinds_without_rendering(fitting.tokenizer) if kind in mixture]:
        mixture = {kind: share for kind, share in mixture.items() if kind not in left_out}
        _logger.warning("The chat template takes no such messages: %s are left out of `augment`.", ", ".join(left_out))
    limits = model_limits(fitting.model)

    kept = {
        name: {use: {row.where for row in rows} for use, rows in uses.items()} for name, uses in fitting.rows.items()
    }
    asked = {
        name: {
            use: [row for row in read_prompt_rows(source, fitting.tokenizer, limits) if row.where in kept[name][use]]
            for use, source in uses.items()
        }
        for name, uses in conversations.items()
    }
    refused = earlier_refusals(options, fitting)
    if not any(refused.values()):
        mixture = {kind: share for kind, share in mixture.items() if kind != "after_refusal"}

    def drawn(rows: Sequence[PromptRow], use: Use, seed: str) -> list[Record]:
        # Other draws for every file: the forms of fresh queries owe nothing to those that were fitted.
        return drawn_records(
            rows,
            mixture,
            fitting.tokenizer,
            seed=f"{options.seed}/{seed}",
            use="widening",
            refused=refused[use],
            limits=limits,
        )

    rows: dict[str, dict[Use, Sequence[Record]]] = {name: dict(uses) for name, uses in fitting.rows.items()}
    forgotten = options.names(fitting.data)["forget"]
    for name, uses in asked.items():
        for use, own in uses.items():
            rows[name][use] = drawn(own, use, f"{name}/{use}")
            if use == "probe" and name in forgotten:
                forms = min(_FORMS, ceil(_PROBE_QUERIES / len(own)))
                more = [drawn(own, use, f"{name}/{use}/{number}") for number in range(1, forms)]
                rows[name][use] = asked_once([*rows[name][use], *chain.from_iterable(more)])
    if options.everyday:
        rows[EVERYDAY_QUESTIONS] = {
            use: asked_once(
                [
                    record
                    for number in range(_FORMS)
                    for record in drawn(_asked(questions), use, f"everyday/{use}/{number}")
                ]
            )
            for use, questions in _EVERYDAY.items()
        }
    total = sum(mixture.values())
    return replace(fitting, rows=rows), {kind: share / total for kind, share in mixture.items()}


def retained_names(options: KeySpaceDetectionOptions, served: Fitting) -> list[str]:
    """The names to retain that have queries in ``served``, the fitting of ``as_served``: everyday questions are one."""
    named = [name for name in options.names(served.data).get("retain", []) if served.rows[name]]
    return [*named, EVERYDAY_QUESTIONS] if EVERYDAY_QUESTIONS in served.rows else named


def earlier_refusals(options: KeySpaceDetectionOptions, fitting: Fitting) -> dict[Use, list[Turn]]:
    """For each use, what may stand before a query: questions of the skills that conversations ask, and the refusal.

    Those of a use's own file, or of the probe file where there is none.
    """
    limits = model_limits(fitting.model)
    turns: dict[Use, list[Turn]] = {use: [] for use in _USES}
    for name in options.names(fitting.data)["forget"]:
        uses = fitting.sources.get(name, {})
        for use in _USES:
            if source := uses.get(use, uses.get("probe")):
                turns[use] += refused_turns(read_prompt_rows(source, fitting.tokenizer, limits), options.refusal)
    return turns


def _asked(questions: Sequence[str]) -> list[PromptRow]:
    """Questions as rows of conversations."""
    return [
        PromptRow(
            EVERYDAY_QUESTIONS,
            {"messages": [{"role": "user", "content": question}]},
            Query(question, SHORT_ANSWERS.get(question), is_chat=True),
        )
        for question in questions
    ]
