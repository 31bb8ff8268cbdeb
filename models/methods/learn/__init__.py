"""LEARN (arXiv 2408.04140)."""

from bakeout.models.methods.learn.options import LearnOptions
from bakeout.models.methods.method import Method
from bakeout.models.plan import LowRankUpdate

METHOD = Method(
    name="learn",
    title="LEARN",
    paper="arXiv 2408.04140",
    summary="Adds a task's low-rank matrices, apart from the subspaces of similar tasks.",
    options=LearnOptions,
    kind=LowRankUpdate,
    fit="bakeout.models.methods.learn.fit:fit",
)
