"""UNLEARN (arXiv 2408.04140)."""

from bakeout.models.methods.method import Method
from bakeout.models.methods.unlearn.options import SEARCH, UnlearnOptions
from bakeout.models.plan import LowRankUpdate

METHOD = Method(
    name="unlearn",
    title="UNLEARN",
    paper="arXiv 2408.04140",
    summary="Takes a task's low-rank matrices away, apart from the subspaces of similar tasks.",
    options=UnlearnOptions,
    kind=LowRankUpdate,
    fit="bakeout.models.methods.unlearn.fit:fit",
    search=SEARCH,
    fitter="bakeout.models.methods.unlearn.fit:fitter",
)
