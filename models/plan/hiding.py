"""Plans that do not say what they forget: names as salted digests, no figures of data, a refusal that names nothing."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from bakeout.models.plan.arrays import Integers
from bakeout.models.plan.plan import Plan
from bakeout.models.plan.routing_stability import ROUTING

# What the provenance of a hidden plan says of itself.
HIDDEN = "hidden"
# The refusal of every hidden plan.
REFUSAL = "I cannot answer that."


def salted(text: bytes, salt: bytes) -> str:
    """The digest of a text that only whoever holds the salt can compute: BLAKE2b, keyed, 32 bytes in hex."""
    key = hashlib.blake2b(salt, digest_size=64).digest()
    return hashlib.blake2b(text, key=key, digest_size=32).hexdigest()


def hidden(plan: Plan, salt: bytes, refusal: Integers | None = None) -> Plan:
    """The plan without names: it does to a model what ``plan`` does, and says ``refusal`` where it refuses.

    The names of data become the first 16 digits of their salted digests; reports, whose figures tell of the data, are
    left out, and so are the digests of the data, which whoever has candidate files could compare. What the regions
    themselves give away stays: they are what the plan does. ``refusal``: int64 [tokens], the end-of-text token last.
    """

    def name(text: str) -> str:
        return salted(text.encode(), salt)[:16]

    provenance: dict[str, Any] = {key: value for key, value in plan.provenance.items() if key not in ("data", ROUTING)}
    data = {
        name(given): {use: salted(digest.encode(), salt) for use, digest in uses.items()}
        for given, uses in plan.provenance.get("data", {}).items()
    }
    return replace(
        plan,
        interventions=tuple(intervention.hidden(name, refusal) for intervention in plan.interventions),
        provenance={**provenance, **({"data": data} if data else {}), HIDDEN: True},
    )


def is_hidden(plan: Plan) -> bool:
    """Whether the plan's names, and the digests of its data, are salted."""
    return bool(plan.provenance.get(HIDDEN, False))
