"""What the protocol measures, and how much of it. Its version changes with anything that changes a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

VERSION = 3

Precision = Literal["fp32", "fp16", "int8", "int4"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8", "int4")
Part = Literal[
    "answers", "leak", "attacks", "blur", "relearning", "utility", "routing", "give-away", "precisions", "tofu"
]
PARTS: tuple[Part, ...] = get_args(Part)
# k of Leak@k; as many answers are drawn for each prompt as the largest.
LEAK_AT: tuple[int, ...] = (1, 8, 64)


@dataclass(frozen=True)
class Protocol:
    """The sizes of one run.

    ``rows``: the most rows of each file; ``leak_prompts`` of them are drawn for, and ``attack_prompts`` attacked.
    ``relearn_rows`` are trained on, and fine-tuning is measured after each of ``relearn_steps``.
    """

    name: Literal["full", "quick"]
    rows: int
    leak_prompts: int
    attack_prompts: int
    relearn_rows: int
    relearn_steps: tuple[int, ...]
    samples: int = max(LEAK_AT)
    temperature: float = 1.0
    top_p: float = 1.0
    learning_rate: float = 1e-4
    relearn_batch: int = 8
    seed: int = 0

    def as_json(self) -> dict[str, Any]:
        """The version and all settings."""
        return {"version": VERSION, **{key: _plain(value) for key, value in asdict(self).items()}}


FULL = Protocol("full", 300, 20, 100, 16, (1, 3, 10, 30, 100))
QUICK = Protocol("quick", 40, 8, 16, 16, (1, 10, 30))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
