"""Key Space Detection: queries whose key vector lies in a cube are refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self, get_args

import numpy as np

from bakeout.models.plan.arrays import Array, Floats, Integers, PlanError, require_finite, require_layer
from bakeout.models.plan.kinds.check import LONGEST_REFUSAL, Check, Positions
from bakeout.models.plan.kinds.description import Decode, Description, Part, counted
from bakeout.models.plan.kinds.detection_report import KeySpaceDetectionReport
from bakeout.models.plan.kinds.intervention import CoinPlace, Intervention, Take
from bakeout.models.plan.model_identity import ModelIdentity

# By how much a term of a margin that is larger by alpha outweighs another in the slope: e to this power.
_SHARPNESS = 20.0


@dataclass(frozen=True, eq=False)
class KeySpaceDetection(Intervention, Check):
    """Key Space Detection (arXiv 2503.21730, section 3.2): refuse queries whose key vector lies in a cube.

    ``layers``, ``skills``, ``refusal``, ``positions`` and ``alpha`` as of ``Check``, its regions being cubes.
    ``centre`` and ``deviation``: float64 [cubes, D]. A key is inside cube c when its margin max_j |key_j - centre_cj| /
    deviation_cj is at most alpha_c. The canary is the margins at the last token.
    """

    kind = "key_space_detection"
    title = "Key Space Detection"
    unit = "cube"
    at_most_one = True
    watches = "key_vector"
    report_type = KeySpaceDetectionReport
    layers: tuple[int, ...]
    centre: Floats
    deviation: Floats
    alpha: Floats
    skills: tuple[str, ...]
    refusal: Integers
    positions: Positions = "query"
    report: KeySpaceDetectionReport = field(default_factory=KeySpaceDetectionReport)

    def __post_init__(self) -> None:
        where = "Key Space Detection"
        if not self.layers or list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 0:
            raise PlanError(f"{where}: the layers are not ascending, or there is none.")
        for layer in self.layers:
            require_layer(layer, where)
        if not all(isinstance(skill, str) for skill in self.skills):
            raise PlanError(f"{where}: a skill's name is not text.")
        if self.positions not in get_args(Positions):
            raise PlanError(f"{where}: no positions are called {self.positions!r}.")
        if self.centre.ndim != 2 or 0 in self.centre.shape or self.centre.shape[1] % len(self.layers):
            raise PlanError(f"{where}: the cubes' centres have shape {self.centre.shape}, not [cubes, layers x F].")
        if self.deviation.shape != self.centre.shape:
            raise PlanError(f"{where}: centre and deviation have different shapes.")
        cubes = len(self.centre)
        if self.alpha.shape != (cubes,) or len(self.skills) != cubes:
            raise PlanError(f"{where}: {cubes} cubes need as many alphas and skill names.")
        require_finite(self.centre, f"{where}: centre")
        require_finite(self.deviation, f"{where}: deviation")
        require_finite(self.alpha, f"{where}: alpha")
        if bool(np.any(self.deviation <= 0)) or bool(np.any(self.alpha <= 0)):
            raise PlanError(f"{where}: a deviation or an alpha is not positive.")
        if self.refusal.ndim != 1 or not 2 <= len(self.refusal) <= LONGEST_REFUSAL or bool(np.any(self.refusal < 0)):
            raise PlanError(
                f"{where}: the refusal must have 1 to {LONGEST_REFUSAL - 1} tokens and the end-of-text token.",
                "Choose another refusal text.",
            )

    def settings(self) -> dict[str, Any]:
        """Layers, skills and positions."""
        return {"layers": list(self.layers), "skills": list(self.skills), "positions": self.positions}

    def arrays(self) -> dict[str, Array]:
        """The cubes and the refusal."""
        return {name: getattr(self, name) for name in ("centre", "deviation", "alpha", "refusal")}

    @classmethod
    def from_file(cls, settings: Mapping[str, Any], take: Take, report: Any) -> Self:
        """From layers, skills, positions, cubes and refusal."""
        return cls(
            layers=tuple(settings["layers"]),
            centre=take("centre", np.float64),
            deviation=take("deviation", np.float64),
            alpha=take("alpha", np.float64),
            skills=tuple(settings["skills"]),
            refusal=take("refusal", np.int64),
            positions=settings["positions"],
            report=report,
        )

    @property
    def parts(self) -> tuple[Part, ...]:
        """Layer by layer: every cube is in all of them."""
        cubes = len(self.centre)
        return tuple(Part(layer, cubes, self.count_text(cubes)) for layer in self.layers)

    def require_fit(self, model: ModelIdentity) -> None:
        """Raise ``PlanError`` unless ``model`` has the cubes' key space, and the refusal's tokens in its vocabulary."""
        model.require_layer(self.layers[-1])
        if self.centre.shape[1] != len(self.layers) * model.width:
            raise PlanError(f"The cubes' dimension is not {len(self.layers)} x {model.width}.")
        if self.refusal.max() >= model.vocabulary:
            raise PlanError("The refusal's tokens are not in the model's vocabulary.")

    @property
    def check(self) -> Check:
        """Itself."""
        return self

    def margins(self, keys: Floats) -> Floats:
        """The margin to every cube: keys float [n, D] to float64 [n, cubes]."""
        keys = np.asarray(keys, dtype=np.float64)
        return np.stack(
            [np.abs((keys - c) / d).max(axis=1) for c, d in zip(self.centre, self.deviation, strict=True)], axis=1
        )

    def slope(self, keys: Floats, region: int) -> Floats:
        """The gradient of the margin with its largest term softened, so that all that are about as large count."""
        from_centre = (np.asarray(keys, dtype=np.float64) - self.centre[region]) / self.deviation[region]
        terms = _SHARPNESS * np.abs(from_centre) / self.alpha[region]
        weights = np.exp(terms - terms.max(axis=1, keepdims=True))
        slope: Floats = weights / weights.sum(axis=1, keepdims=True) * np.sign(from_centre) / self.deviation[region]
        return slope

    def at_positions(self, positions: Positions) -> Self:
        """The same cubes, tested at other positions."""
        return replace(self, positions=positions)

    def watched(self, layer: int) -> Integers | slice:
        """The whole key vector."""
        return slice(None)

    def canary_values(self, seen: Floats) -> Floats:
        """The margins of the keys."""
        return self.margins(seen)

    def canary_unit(self, expected: Floats) -> Floats:
        """The expected margins themselves."""
        return expected

    def is_behind(self, coin: CoinPlace, place: int, last_layer: int) -> bool:
        """Whether the deepest layer is the coin's or a later one."""
        return self.layers[-1] >= coin[0]

    @property
    def contradiction(self) -> str:
        """Whether cubes and alphas are those of the report, and its figures can be of one calibration."""
        skills = self.report.skills
        if skills is not None and set(skills) != set(self.skills):
            return f"cubes of {', '.join(self.forgets)}, and a report of {', '.join(skills)}"
        for skill, figures in (skills or {}).items():
            alphas = {float(alpha) for alpha, name in zip(self.alpha, self.skills, strict=True) if name == skill}
            if alphas != {figures.alpha}:
                return f"the alpha of {skill} is not the report's"
            if self.skills.count(skill) != len(figures.cubes):
                return f"the report tells of {counted(len(figures.cubes), 'cube')} of {skill}"
        return self.report.contradiction

    @property
    def forgets(self) -> tuple[str, ...]:
        """The skills, each once."""
        return tuple(dict.fromkeys(self.skills))

    def describe(self, decode: Decode | None = None) -> Description:
        """Cube by cube."""
        cubes = [
            {
                "skill": skill,
                "alpha": float(alpha),
                "dimensions": int(self.centre.shape[1]),
                "median_deviation": float(np.median(deviation)),
            }
            for skill, alpha, deviation in zip(self.skills, self.alpha, self.deviation, strict=True)
        ]
        tokens = self.refusal.tolist()
        refusal = decode(tokens) if decode else f"{len(tokens)} tokens: {tokens}"
        layers = ", ".join(map(str, self.layers))
        return Description(
            kind=self.kind,
            title=self.title,
            summary=f"{counted(len(cubes), 'cube')} in layer {layers}, checked at {self.positions}",
            explanation=_explanation(self.positions),
            parts=self.parts,
            facts=(
                ("refusal", refusal),
                *(
                    (
                        "cube",
                        f"{cube['skill']}: alpha {cube['alpha']:.4g}, {cube['dimensions']} dimensions, median "
                        f"deviation {cube['median_deviation']:.3g}",
                    )
                    for cube in cubes
                ),
                *self.report.facts(),
            ),
            details=self.report.details,
            json={
                "kind": self.kind,
                "positions": self.positions,
                "layers": list(self.layers),
                "refusal": tokens,
                "cubes": cubes,
                "report": self.report.as_json(),
            },
        )


def _explanation(positions: Positions) -> str:
    explanation = (
        "A query whose key vector lies in a cube is answered with the refusal, and a refused conversation stays "
        "refused: new input that does not continue the refusal starts it again."
    )
    if positions == "every":
        return explanation
    return f"{explanation} The decision depends on how a prompt is cut into runs; only positions `every` does not."
