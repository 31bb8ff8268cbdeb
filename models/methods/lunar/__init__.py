"""LUNAR (arXiv 2502.07218)."""

from bakeout.models.methods.lunar.options import SEARCH, LunarOptions
from bakeout.models.methods.method import Method
from bakeout.models.plan import LowRankUpdate

METHOD = Method(
    name="lunar",
    title="LUNAR",
    paper="arXiv 2502.07218",
    summary="Redirects what is to be forgotten to where the model says that it does not know.",
    options=LunarOptions,
    kind=LowRankUpdate,
    fit="bakeout.models.methods.lunar.fit:fit",
    search=SEARCH,
)
