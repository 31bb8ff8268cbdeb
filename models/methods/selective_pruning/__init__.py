"""Selective Pruning (arXiv 2403.01267)."""

from bakeout.models.methods.method import Method
from bakeout.models.methods.selective_pruning.options import SEARCH, SelectivePruningOptions
from bakeout.models.plan import ZeroColumns

METHOD = Method(
    name="selective_pruning",
    title="Selective Pruning",
    paper="arXiv 2403.01267; the baseline of arXiv 2503.21730",
    summary="Cuts off the neurons that are most active on the forget set.",
    options=SelectivePruningOptions,
    kind=ZeroColumns,
    fit="bakeout.models.methods.selective_pruning.fit:fit",
    search=SEARCH,
    fitter="bakeout.models.methods.selective_pruning.fit:fitter",
)
