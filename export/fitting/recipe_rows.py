"""A recipe's rows as records: whatever is wrong with them is told before the model is loaded."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bakeout.export.recipes.recipe import Recipe
from bakeout.models.data.limits import Limits
from bakeout.models.data.prompt_rows import (
    has_conversations,
    read_prompt_rows,
    require_forms,
    unlike_chats,
    varied_records,
)
from bakeout.models.data.rows import Rows, Sources, read_records

if TYPE_CHECKING:
    from bakeout.models.data.tokenizers.tokenization import Tokenizer

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecipeRows:
    """Records by name and use, the tokenizer that encoded them, with the recipe's chat template, and their sources.

    ``chat_template``: what a plan records of that template.
    """

    tokenizer: Tokenizer
    sources: Sources
    rows: Rows
    chat_template: Mapping[str, Any]

    def require_readable(self, limits: Limits) -> None:
        """Raise ``DataError``, naming file and line, for a row that the model itself cannot read."""
        for uses in self.rows.values():
            for records in uses.values():
                for record in records:
                    limits.require(record.prompt_ids + record.response_ids, self.tokenizer, record.where)


def read_recipe_rows(recipe: Recipe, sources: Sources, tokenizer: Tokenizer, config: Mapping[str, Any]) -> RecipeRows:
    """Read ``sources``, those rows of ``recipe`` that methods may see, for a model with this tokenizer and config.json.

    Raises ``BakeoutError`` for rows that cannot be read, rendered or, where a method is fitted on variants, varied, for
    rows that are too few for a method that knows how many it needs, and for a chat template that the tokenizer lacks.
    """
    chosen = recipe.chat_template.recorded(tokenizer)
    if "date" in chosen and recipe.chat_template.date is None:
        if any(has_conversations(source) for uses in sources.values() for source in uses.values()):
            _logger.info("the chat template reads the clock: it is told that the day is %s", chosen["date"])
        else:
            del chosen["date"]
    tokenizer = recipe.chat_template.applied_to(tokenizer)
    limits = Limits.of_config(config)
    rows = {
        name: {use: read_records(source, tokenizer, limits) for use, source in uses.items()}
        for name, uses in sources.items()
    }
    for name, uses in sources.items():
        told = [told for source in uses.values() if (told := unlike_chats(source, tokenizer))]
        if told:
            _logger.warning("%s: %s", name, told[0])
    names = recipe.fitted_data()
    for entry in recipe.interventions:
        entry.method.require_rows(entry.options, names, rows)
    for options in (entry.options for entry in recipe.interventions):
        if options.redraws_conversations:
            for source in (source for uses in sources.values() for source in uses.values()):
                if has_conversations(source):
                    read_prompt_rows(source, tokenizer, limits)
        if kinds := options.widened():
            for name in options.names(names)["forget"]:
                for source in sources[name].values():
                    asked = read_prompt_rows(source, tokenizer, limits)
                    require_forms(asked, kinds, name)
                    varied_records(asked, kinds, tokenizer, limits=limits, seed=0, use="widening")
    return RecipeRows(tokenizer, sources, rows, chosen)
