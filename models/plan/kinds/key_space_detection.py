"""Key Space Detection: queries whose key vector lies in a region are refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self, get_args

import numpy as np

from bakeout.models.plan.arrays import Array, Floats, Integers, PlanError, require_finite, require_layer
from bakeout.models.plan.kinds.check import LONGEST_REFUSAL, Check, Positions
from bakeout.models.plan.kinds.description import Decode, Description, Part, counted
from bakeout.models.plan.kinds.detection_report import KeySpaceDetectionReport
from bakeout.models.plan.kinds.intervention import Blocks, CoinPlace, Intervention, Take
from bakeout.models.plan.kinds.regions.cube import Cubes
from bakeout.models.plan.kinds.regions.regions import Regions
from bakeout.models.plan.kinds.regions.registry import find_regions
from bakeout.models.plan.model_identity import Keys, ModelIdentity, Watched


@dataclass(frozen=True, eq=False)
class KeySpaceDetection(Intervention, Check):
    """Key Space Detection (arXiv 2503.21730, section 3.2): refuse queries whose key vector lies in a region.

    ``layers``, ``skills``, ``refusal``, ``other_ends``, ``positions``, ``query_end``, ``query_start`` and ``alpha`` as
    of ``Check``. The paper's ``regions`` are cubes; the other shapes are ours. Its ``keys`` are FFLs' key vectors; in a
    mixture of experts ``layers`` count the FFLs that see every token, or the routers where keys are a router's input or
    logits. The canary is the margins at the last token, or those of the mean key where that is tested.
    """

    kind = "key_space_detection"
    # From 2 on a plan says which shape its regions have, from 3 on which keys it looks at, and 4 has the mean of keys.
    schema = 4
    title = "Key Space Detection"
    unit = "region"
    at_most_one = True
    stands_last = True
    report_type = KeySpaceDetectionReport
    layers: tuple[int, ...]
    regions: Regions
    alpha: Floats
    skills: tuple[str, ...]
    refusal: Integers
    positions: Positions = "query"
    other_ends: tuple[int, ...] = ()
    query_end: tuple[int, ...] = ()
    query_start: tuple[int, ...] = ()
    keys: Keys = "key_vector"
    report: KeySpaceDetectionReport = field(default_factory=KeySpaceDetectionReport)

    def __post_init__(self) -> None:
        where = "Key Space Detection"
        if not self.layers or list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 0:
            raise PlanError(f"{where}: the layers are not ascending, or there is none.")
        for layer in self.layers:
            require_layer(layer, where)
        if not all(isinstance(skill, str) for skill in self.skills):
            raise PlanError(f"{where}: a skill's name is not text.")
        if self.keys not in get_args(Keys):
            raise PlanError(f"{where}: no keys are called {self.keys!r}.")
        if self.positions not in get_args(Positions):
            raise PlanError(f"{where}: no positions are called {self.positions!r}.")
        regions, dimensions = self.regions.shape
        if dimensions % len(self.layers):
            raise PlanError(f"{where}: {dimensions} dimensions are not those of {len(self.layers)} layers.")
        if self.alpha.shape != (regions,) or len(self.skills) != regions:
            raise PlanError(f"{where}: {counted(regions, 'region')} must have as many alphas and skill names.")
        require_finite(self.alpha, f"{where}: alpha")
        self.regions.require_alpha(self.alpha)
        if self.refusal.ndim != 1 or not 2 <= len(self.refusal) <= LONGEST_REFUSAL or bool(np.any(self.refusal < 0)):
            raise PlanError(
                f"{where}: the refusal must have 1 to {LONGEST_REFUSAL - 1} tokens and the end-of-text token.",
                "Choose another refusal text.",
            )
        if not all(type(token) is int and token >= 0 for token in self._marks):
            raise PlanError(f"{where}: a token that ends a text, or ends or opens a query, is not a token.")
        if self.query_start and self.positions != "mean":
            raise PlanError(f"{where}: what opens a query counts for the mean of keys alone.")

    @property
    def schema_written(self) -> int:
        """The lowest that can hold its regions, keys and positions: versions that know cubes alone read those."""
        if self.positions == "mean":
            return 4
        return self.regions.schema if self.keys == "key_vector" else 3

    @property
    def watches(self) -> Watched:
        """Its keys."""
        return self.keys

    def settings(self) -> dict[str, Any]:
        """Layers, skills, positions; where they are there, the shape of regions that are no cubes and ends."""
        settings = {"layers": list(self.layers), "skills": list(self.skills), "positions": self.positions}
        shape = {} if self.regions.schema == 1 else {"region": self.regions.name}
        ends = {"other_ends": list(self.other_ends)} if self.other_ends else {}
        query_end = {"query_end": list(self.query_end)} if self.query_end else {}
        query_start = {"query_start": list(self.query_start)} if self.query_start else {}
        keys = {} if self.keys == "key_vector" else {"keys": self.keys}
        return {**settings, **shape, **ends, **query_end, **query_start, **keys}

    def structure(self) -> dict[str, Any]:
        """Layers, positions, the regions' shape and the refusal; not the regions, and not what skills are called."""
        settings = {name: value for name, value in self.settings().items() if name != "skills"}
        return {"kind": self.kind, **settings, "refusal": self.refusal}

    def arrays(self) -> dict[str, Array]:
        """The regions and the refusal."""
        return self.regions.arrays() | {"alpha": self.alpha, "refusal": self.refusal}

    @classmethod
    def from_file(cls, settings: Mapping[str, Any], take: Take, report: Any) -> Self:
        """From layers, skills, positions, other ends, regions and refusal. Schema 1 is of cubes."""
        return cls(
            layers=tuple(settings["layers"]),
            regions=find_regions(settings.get("region", Cubes.name)).from_file(take),
            alpha=take("alpha", np.float64),
            skills=tuple(settings["skills"]),
            refusal=take("refusal", np.int64),
            positions=settings["positions"],
            other_ends=tuple(settings.get("other_ends", ())),
            query_end=tuple(settings.get("query_end", ())),
            query_start=tuple(settings.get("query_start", ())),
            keys=settings.get("keys", "key_vector"),
            report=report,
        )

    @property
    def parts(self) -> tuple[Part, ...]:
        """Layer by layer: every region is in all of them."""
        regions, _ = self.regions.shape
        return tuple(Part(layer, regions, counted(regions, self.regions.noun)) for layer in self.layers)

    def require_fit(self, model: ModelIdentity) -> None:
        """Raise ``PlanError`` unless ``model`` has the regions' key space, and the refusal's tokens."""
        widths = [model.watched_width(self.keys, layer) for layer in self.layers]
        if self.regions.shape[1] != sum(widths):
            raise PlanError(f"The {self.regions.noun}s' dimension is not {' + '.join(map(str, widths))}.")
        if max([*self.refusal.tolist(), *self._marks]) >= model.vocabulary:
            raise PlanError("The refusal's tokens are not in the model's vocabulary.")

    @property
    def _marks(self) -> tuple[int, ...]:
        return (*self.other_ends, *self.query_end, *self.query_start)

    @property
    def check(self) -> Check:
        """Itself."""
        return self

    def margins(self, keys: Floats) -> Floats:
        """The margin to every region: keys float [n, D] to float64 [n, regions]."""
        return self.regions.margins(keys)

    @property
    def is_bounded(self) -> bool:
        """Whether the regions' shape is."""
        return self.regions.bounded

    def nearness_of_each(self, margins: Floats) -> Floats:
        """The margins on the scale of the regions' own alpha."""
        return self.regions.nearness(margins, self.alpha)

    def slope(self, keys: Floats, region: int) -> Floats:
        """The gradient of the margin, softened where that has corners."""
        return self.regions.slope(keys, region, float(self.alpha[region]))

    def joined(self, other: Self) -> Self:
        """One check of the regions of both, which refuses what either of them refuses.

        The figures of each skill stay. Those of false refusals do not, which are of fewer regions. Raises ``PlanError``
        where the two look at other keys, or answer otherwise, and where they refuse the same skill.
        """
        own, its = self.structure(), other.structure()
        same = {name for name in own.keys() & its.keys() if np.array_equal(own[name], its[name])}
        if differing := sorted({*own, *its} - same):
            raise PlanError(
                f"Two checks of {self.title} differ in their {', '.join(differing)}, and a plan holds one.",
                "Fit one of them as the other is.",
            )
        if both := sorted(set(self.skills) & set(other.skills)):
            raise PlanError(f"Two checks of {self.title} refuse {both[0]}.", "Leave one of them out.")
        skills = {**(self.report.skills or {}), **(other.report.skills or {})}
        whole = set(skills) == {*self.skills, *other.skills}
        return replace(
            self,
            regions=self.regions.joined([other.regions]),
            alpha=np.concatenate([self.alpha, other.alpha]),
            skills=(*self.skills, *other.skills),
            report=KeySpaceDetectionReport(skills=skills if whole else None),
        )

    def at_positions(self, positions: Positions) -> Self:
        """The same regions, tested at other positions. Raises ``PlanError`` to or from ``mean``."""
        if positions != self.positions and "mean" in (positions, self.positions):
            raise PlanError(
                f"The {self.regions.noun}s are of the keys that positions `{self.positions}` tests, and those of "
                f"`{positions}` are others.",
                f"Fit them with `positions: {positions}`.",
            )
        return replace(self, positions=positions)

    def watched(self, layer: int) -> Integers | slice:
        """The whole key vector."""
        return slice(None)

    def canary_tokens(self, tokens: Sequence[int]) -> slice:
        """Those that decide."""
        return self.decisive(tokens)

    def canary_values(self, seen: Floats) -> Floats:
        """The margins of the keys."""
        return self.margins(seen)

    def canary_unit(self, expected: Floats) -> Floats:
        """The unit of the regions' margins."""
        return self.regions.canary_unit(expected)

    def is_behind(self, coin: CoinPlace, place: int, blocks: Blocks) -> bool:
        """Whether the deepest layer is in the coin's block or a later one, which is not known of a router."""
        return self.keys != "key_vector" or blocks[0][self.layers[-1]] >= coin[0]

    @property
    def contradiction(self) -> str:
        """Whether regions and alphas are those of the report, and its figures can be of one calibration."""
        skills = self.report.skills
        if skills is not None and set(skills) != set(self.skills):
            return f"{self.regions.noun}s of {', '.join(self.forgets)}, and a report of {', '.join(skills)}"
        for skill, figures in (skills or {}).items():
            alphas = {float(alpha) for alpha, name in zip(self.alpha, self.skills, strict=True) if name == skill}
            if alphas != {figures.alpha}:
                return f"the alpha of {skill} is not the report's"
            if self.skills.count(skill) != len(figures.cubes):
                return f"the report tells of {counted(len(figures.cubes), self.regions.noun)} of {skill}"
        return self.report.contradiction

    def hidden(self, name: Callable[[str], str], refusal: Integers | None) -> Self:
        """As of ``Intervention``, with other names, and another refusal if one is given."""
        nameless = super().hidden(name, refusal)
        return replace(
            nameless, skills=tuple(map(name, self.skills)), refusal=self.refusal if refusal is None else refusal
        )

    @property
    def forgets(self) -> tuple[str, ...]:
        """The skills, each once."""
        return tuple(dict.fromkeys(self.skills))

    def describe(self, decode: Decode | None = None) -> Description:
        """Region by region."""
        noun = self.regions.noun
        regions = [
            {"skill": skill, "alpha": float(alpha), **self.regions.facts(region)}
            for region, (skill, alpha) in enumerate(zip(self.skills, self.alpha, strict=True))
        ]
        tokens = self.refusal.tolist()
        refusal = decode(tokens) if decode else f"{len(tokens)} tokens: {tokens}"
        start, end = (
            repr(decode(list(mark))) if decode else str(list(mark)) for mark in (self.query_start, self.query_end)
        )
        mean_of = f"the last tokens that begin with {start}" if self.query_start else "all tokens but a text's first"
        frame = (
            *([("mean key of", mean_of)] if self.positions == "mean" else []),
            *([("queries end", end)] if self.query_end else []),
        )
        layers = ", ".join(map(str, self.layers))
        keys = {"router_input": "the input of router", "router_logits": "the logits of router"}.get(self.keys, "layer")
        return Description(
            kind=self.kind,
            title=self.title,
            summary=f"{counted(len(regions), noun)} in {keys} {layers}, checked at {self.positions}",
            explanation=_explanation(noun, self.positions),
            parts=self.parts,
            facts=(
                ("refusal", refusal),
                *frame,
                *(
                    (noun, f"{skill}: alpha {alpha:.4g}, {self.regions.told(region)}")
                    for region, (skill, alpha) in enumerate(zip(self.skills, self.alpha, strict=True))
                ),
                *self.report.facts(),
            ),
            details=self.report.details,
            json={
                "kind": self.kind,
                "positions": self.positions,
                **({"query_end": list(self.query_end)} if self.query_end else {}),
                **({"query_start": list(self.query_start)} if self.query_start else {}),
                "layers": list(self.layers),
                **({} if self.keys == "key_vector" else {"keys": self.keys}),
                "refusal": tokens,
                "region": self.regions.name,
                "cubes": regions,
                "report": self.report.as_json(),
            },
        )


def _explanation(noun: str, positions: Positions) -> str:
    explanation = (
        f"A query whose key vector lies in a {noun} is answered with the refusal, and a refused conversation stays "
        "refused as long as its KV cache goes on: new input that does not continue the refusal starts it again. Where "
        "whole conversations are sent, the chat template leaves refused turns out: small models repeat what they read."
    )
    if positions == "every":
        return explanation
    if positions == "mean":
        return (
            f"{explanation} What is tested is the mean key over a query's tokens, which needs the whole prompt in one "
            "run: of a prompt that is cut into runs, each is judged by its own tokens alone."
        )
    return f"{explanation} The decision depends on how a prompt is cut into runs; only positions `every` does not."
