"""Neuron Adjust (arXiv 2503.21730)."""

from bakeout.models.methods.method import Method
from bakeout.models.methods.neuron_adjust.options import SEARCH, NeuronAdjustOptions
from bakeout.models.plan import NeuronAdjust

METHOD = Method(
    name="neuron_adjust",
    title="Neuron Adjust",
    paper="arXiv 2503.21730, section 3.1",
    summary="Shifts the pre-activations that look like the forget set's.",
    options=NeuronAdjustOptions,
    kind=NeuronAdjust,
    fit="bakeout.models.methods.neuron_adjust.fit:fit",
    search=SEARCH,
    fitter="bakeout.models.methods.neuron_adjust.fit:fitter",
)
