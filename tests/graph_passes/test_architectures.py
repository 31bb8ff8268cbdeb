"""Every architecture that optimum exports: Neuron Adjust and Key Space Detection against the PyTorch reference."""

from __future__ import annotations

import pytest

from tests.baked_parity import model_of
from tests.conftest import CheckpointOf
from tests.exported_graphs import Kind, compared, holds
from tests.tiny_models import FAMILIES

# What `make test` runs; `test_parity.py` has more of them there.
QUICK = ("bloom", "glm", "olmo2")


@pytest.mark.parametrize("kind", ["neuron_adjust", "middle"])
@pytest.mark.parametrize(
    "family", [pytest.param(family, marks=[] if family in QUICK else pytest.mark.slow) for family in FAMILIES]
)
def test_it_says_what_the_reference_says(
    checkpoint_of: CheckpointOf, onnx_of: CheckpointOf, family: str, kind: Kind
) -> None:
    """Token for token, and another text than the unbaked model's on at least half of the prompts."""
    parity = compared(onnx_of(family), model_of(checkpoint_of(family)), kind)
    assert holds(parity, kind), parity
