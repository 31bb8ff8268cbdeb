"""The certificate's content: figures with all that they depend on, and what was not measured, with the reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bakeout.export.certificate.protocol import Precision
from bakeout.export.evaluation.intervals import Interval

SCHEMA = 1


@dataclass(frozen=True)
class Figure:
    """One number of the artifact, and the base model's beside it where that has one.

    ``section`` and ``name`` say what it is, ``slice`` on what: a data name, and a form or a step where there are
    several. ``data``: the names whose digests the certificate has; ``n``: how many prompts or rows; ``good``: which
    direction is.
    """

    section: str
    name: str
    slice: str
    value: float
    interval: Interval | None
    n: int
    precision: Precision | str
    data: tuple[str, ...]
    base: float | None = None
    base_interval: Interval | None = None
    good: str = "low"

    def as_json(self) -> dict[str, Any]:
        """The figure as JSON, without what it does not have."""
        content = {
            "section": self.section,
            "name": self.name,
            "slice": self.slice,
            "value": self.value,
            "interval": _pair(self.interval),
            "base": self.base,
            "base_interval": _pair(self.base_interval),
            "n": self.n,
            "precision": self.precision,
            "data": list(self.data),
            "good": self.good,
        }
        return {key: value for key, value in content.items() if value is not None}


@dataclass(frozen=True)
class NotMeasured:
    """A claim that the certificate does not make, and why."""

    section: str
    name: str
    why: str

    def as_json(self) -> dict[str, Any]:
        """As JSON."""
        return {"section": self.section, "name": self.name, "why": self.why}


@dataclass(frozen=True)
class Section:
    """What one part of the protocol gave."""

    figures: Sequence[Figure] = ()
    not_measured: Sequence[NotMeasured] = ()


@dataclass(frozen=True)
class Certificate:
    """A certificate of one artifact. ``entries``: protocol, artifact, data, runtime and statements, as JSON."""

    entries: Mapping[str, Any]
    figures: tuple[Figure, ...] = ()
    not_measured: tuple[NotMeasured, ...] = ()
    tofu: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The content of `certificate.json`: every figure names the protocol, seed, runtime and data digests."""
        # Salted where the artifact hides what it forgets.
        key = "salted" if any("salted" in entry for entry in self.entries["data"].values()) else "sha256"
        digests = {name: entry[key] for name, entry in self.entries["data"].items()}
        shared = {
            "protocol": self.entries["protocol"]["version"],
            "seed": self.entries["protocol"]["seed"],
            "runtime": self.entries["runtime"]["name"],
        }
        return {
            "schema": SCHEMA,
            **self.entries,
            "figures": [
                {**figure.as_json(), **shared, f"data_{key}": [digests[name] for name in figure.data]}
                for figure in self.figures
            ],
            "not_measured": [missing.as_json() for missing in self.not_measured],
        }


def _pair(interval: Interval | None) -> list[float] | None:
    return None if interval is None else list(interval)
