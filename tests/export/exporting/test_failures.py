"""What is told of another project's errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.export import Dim

from bakeout.export.exporting.failures import reason_of, told_of
from bakeout.models.errors import BakeoutError


class _OfOneSize(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.ones(3)


def test_the_cause_is_told_of_an_error_that_torch_wraps_into_advice() -> None:
    with pytest.raises(BakeoutError) as caught, told_of(Path("model"), "fp32", "torch.onnx.export"):
        torch.onnx.export(
            _OfOneSize(),
            kwargs={"x": torch.ones(2, 3)},
            dynamo=True,
            dynamic_shapes={"x": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}},
            verbose=False,
        )
    assert "inferred a static shape of 3" in caught.value.cause
    assert "\x1b" not in caught.value.cause and "Next steps" not in caught.value.cause


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("\x1b[31mNo such operator.\x1b[0m", "No such operator"),
        ("It is invalid:\n- `top_p` is set\n\nFix these issues to save it.", "It is invalid: - `top_p` is set"),
        ("Unknown type. Please open an issue at https://example.org. Thanks.", "Unknown type"),
        ("Failed at 1.5 s. It was slow.", "Failed at 1.5 s. It was slow"),
        ("", "ValueError"),
    ],
)
def test_colours_and_advice_are_left_out(text: str, told: str) -> None:
    assert reason_of(ValueError(text)) == told
