"""The rows of an evaluation, with the JSON that ``bakeout evaluate`` prints and a report reads back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from bakeout.export.evaluation.intervals import Interval, share_interval

BASE = "base"
SCHEMA = 1

Share = Annotated[float, Field(ge=0, le=1)]
# Counts are multiplied by shares, and a float holds no larger one exactly.
Count = Annotated[int, Field(ge=0, lt=2**53)]
# SHA-256, in hex.
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

# A change's fields, and their names in the JSON of its row.
_CHANGE = {"accuracy": "change", "interval": "change_interval", "paired": "paired", "lost": "lost", "gained": "gained"}
# The figures that a row of text has only beside the base model.
_BESIDE_BASE = ("perplexity_ratio", "perplexity_ratio_interval", "divergence", "divergence_interval")


@dataclass(frozen=True)
class Change:
    """How an artifact's accuracy on a file differs from the base model's.

    ``accuracy`` is the difference of the two, with Newcombe's 95 % interval: for pairs where both models answered, else
    (``paired`` false) for two samples. For pairs it is known how many correct answers were ``lost`` and ``gained``.
    """

    __pydantic_config__ = ConfigDict(allow_inf_nan=False)

    accuracy: float
    interval: Interval
    paired: bool
    lost: Count | None = None
    gained: Count | None = None


@dataclass(frozen=True)
class Score:
    """The mean of a grader's figure over the rows that have one, with a bootstrapped 95 % interval.

    ``ratio``: to the base model's, over the rows that both have a figure for; of ``log p per token``, the ratio of the
    probabilities per token.
    """

    __pydantic_config__ = ConfigDict(allow_inf_nan=False)

    name: str
    mean: float
    interval: Interval
    ratio: float | None = None
    ratio_interval: Interval | None = None

    def __str__(self) -> str:
        ratio = "" if self.ratio is None else f" ({self.ratio:.3g} of the base's)"
        return f"{self.name} {self.mean:.4g}{ratio}"

    def as_json(self) -> dict[str, Any]:
        """The score as JSON, without what is not known."""
        return {key: _plain(value) for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Row:
    """One model on one data file.

    ``model``: ``base`` or the artifact's name; ``data``: the file's name without its ending; ``accuracy``: the share of
    prompts whose answer is right, as the grader ``grade`` judges; ``refusals``: the share answered with the refusal of
    one of the artifacts compared; ``cut_off``: the share of answers that are not right and had not ended where they
    were cut off, if that is known (all others are wrong); ``available``: how many rows ``prompts`` were chosen from;
    ``change``: from the base model, if that is known.
    """

    model: str
    data: str
    prompts: Annotated[Count, Field(gt=0)]
    accuracy: Share
    refusals: Share
    change: Change | None = None
    cut_off: Share | None = None
    grade: str = "exact"
    available: Count | None = None
    score: Score | None = None

    def __str__(self) -> str:
        change = ""
        if self.change is not None:
            low, high = self.change.interval
            change = f" (change {100 * self.change.accuracy:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}])"
        shares = f"{self.accuracy:.1%} correct{change}, {self.refusals:.1%} refused"
        cut = f", {self.cut_off:.1%} cut off" if self.cut_off else ""
        score = "" if self.score is None else f", {self.score}"
        return f"{self.data}, {self.model}: {shares}{cut}{score}, {self.asked}"

    @property
    def asked(self) -> str:
        """How many prompts, and of how many."""
        limited = self.available is not None and self.available > self.prompts
        return f"{self.prompts} of {self.available:,} prompts" if limited else f"{self.prompts} prompts"

    @property
    def wrong(self) -> float | None:
        """The share of answers that are none of right, refused and cut off; None where it is not known."""
        if self.cut_off is None:
            return None
        return max(round(self.prompts * (1 - self.accuracy - self.refusals - self.cut_off)), 0) / self.prompts

    @property
    def outcomes(self) -> dict[str, tuple[float, Interval]]:
        """The share of every outcome that is known, with Wilson's 95 % interval."""
        shares = {"right": self.accuracy, "wrong": self.wrong, "cut off": self.cut_off, "refused": self.refusals}
        return {name: (share, self._interval(share)) for name, share in shares.items() if share is not None}

    @property
    def accuracy_interval(self) -> Interval:
        """Wilson's 95 % interval."""
        return self._interval(self.accuracy)

    @property
    def refusals_interval(self) -> Interval:
        """Wilson's 95 % interval."""
        return self._interval(self.refusals)

    def _interval(self, share: float) -> Interval:
        return share_interval(round(share * self.prompts), self.prompts)

    def as_json(self) -> dict[str, Any]:
        """The row as JSON, the intervals included and the change among its own values."""
        row: dict[str, Any] = {
            "model": self.model,
            "data": self.data,
            "prompts": self.prompts,
            "accuracy": self.accuracy,
            "refusals": self.refusals,
            "accuracy_interval": list(self.accuracy_interval),
            "refusals_interval": list(self.refusals_interval),
            "grade": self.grade,
        }
        if self.available is not None:
            row["available"] = self.available
        for name in ("wrong", "cut_off"):
            if (share := getattr(self, name)) is not None:
                row |= {name: share, f"{name}_interval": list(self._interval(share))}
        if self.score is not None:
            row["score"] = self.score.as_json()
        if self.change is not None:
            row |= {key: _plain(getattr(self.change, field)) for field, key in _CHANGE.items()}
        return row


def with_nested_change(row: Any) -> Any:
    """The JSON of a row with its change in one place, as ``Row`` has it."""
    if not isinstance(row, Mapping) or "change" not in row:
        return row
    return {**row, "change": {field: row[key] for field, key in _CHANGE.items() if key in row}}


@dataclass(frozen=True)
class TextRow:
    """One model on one file of text.

    ``perplexity`` is over the response's tokens (of plain text: over all but the first). ``refused``: how many texts
    the model refused; a refusal leaves other tokens no probability at all, so they are in no other figure. Beside the
    base model, over the texts that neither refused (if there are two): ``perplexity_ratio``, the perplexity divided by
    the base's on the same tokens, and ``divergence``, the mean Kullback-Leibler divergence KL(base || model) in nats of
    the first token after the prompt (after the text, where it is plain). Intervals are bootstraps over the texts.
    """

    __pydantic_config__ = ConfigDict(allow_inf_nan=False)

    model: str
    data: str
    texts: Count
    refused: Count
    perplexity: float | None
    perplexity_ratio: float | None = None
    perplexity_ratio_interval: Interval | None = None
    divergence: float | None = None
    divergence_interval: Interval | None = None

    def __str__(self) -> str:
        figures = {"perplexity": self.perplexity, "to base's": self.perplexity_ratio, "divergence": self.divergence}
        shown = [f"{name} {value:.4g}" for name, value in figures.items() if value is not None]
        return f"{self.data}, {self.model}: {', '.join([*shown, f'{self.refused} of {self.texts} texts refused'])}"

    def as_json(self) -> dict[str, Any]:
        """The row as JSON, without what is not known."""
        row = {key: _plain(value) for key, value in asdict(self).items()}
        known = self.divergence is not None
        return {key: value for key, value in row.items() if known or key not in _BESIDE_BASE}


@dataclass(frozen=True)
class TaskRow:
    """One metric of one task or group, as the harness computed it; ``filter``: how answers were read."""

    __pydantic_config__ = ConfigDict(allow_inf_nan=False)

    model: str
    task: str
    metric: str
    filter: str
    value: float
    standard_error: float | None

    def __str__(self) -> str:
        return f"{self.task}, {self.model}: {self.metric} ({self.filter}) {self.value:.4f}"

    def as_json(self) -> dict[str, Any]:
        """The row as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class DataInput:
    """A data file by its content, and ``how`` answers to it were generated and judged (as of ``how_judged``)."""

    digest: Digest
    how: Mapping[str, Any]


@dataclass(frozen=True)
class Inputs:
    """What the names in an evaluation's rows stand for, since other models and files may have the same names.

    ``artifacts``: of each model that is an artifact, the ``manifest.content_digest``; ``texts``: of each file of text,
    the SHA-256.
    """

    artifacts: Mapping[str, Digest]
    data: Mapping[str, DataInput]
    texts: Mapping[str, Digest]


@dataclass(frozen=True)
class Evaluation:
    """A row for each model and data file, one for each model and file of text, one for each model and task's metric.

    ``inputs``: None in files of earlier versions.
    """

    rows: tuple[Row, ...]
    texts: tuple[TextRow, ...]
    tasks: tuple[TaskRow, ...] = ()
    inputs: Inputs | None = None

    def __str__(self) -> str:
        return "\n".join(map(str, (*self.rows, *self.texts, *self.tasks)))

    def as_json(self) -> dict[str, Any]:
        """The content of a file that a report reads (``report.evaluation_file``)."""
        return {
            "schema": SCHEMA,
            "rows": [row.as_json() for row in self.rows],
            "texts": [row.as_json() for row in self.texts],
            "tasks": [row.as_json() for row in self.tasks],
            **({} if self.inputs is None else {"inputs": asdict(self.inputs)}),
        }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
