"""Reveal-and-Release (arXiv 2509.14624)."""

from bakeout.models.methods.method import Method
from bakeout.models.methods.reveal_and_release.options import RevealAndReleaseOptions
from bakeout.models.plan import LowRankUpdate

METHOD = Method(
    name="reveal_and_release",
    title="Reveal-and-Release",
    paper="arXiv 2509.14624",
    summary="The model itself reveals what it is to forget; no forget data is read.",
    options=RevealAndReleaseOptions,
    kind=LowRankUpdate,
    fit="bakeout.models.methods.reveal_and_release.fit:fit",
)
