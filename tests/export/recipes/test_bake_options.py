from __future__ import annotations

import pytest
from pydantic import ValidationError

from bakeout.export.recipes.bake_options import BakeOptions


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        (BakeOptions(), []),
        (BakeOptions(quantize="int8", runtimes=("web",)), []),
        (BakeOptions(to="safetensors", runtimes=("web",), quantize="int8"), ["runtimes", "quantize"]),
        (
            BakeOptions(to="safetensors", dtype="fp16", exporter="dynamo", inline=True, early_exit=False, monitor=True),
            ["dtype", "exporter", "inline", "early_exit", "monitor"],
        ),
        (BakeOptions(dtype="fp16", quantize="int8"), ["quantize"]),
    ],
)
def test_options_that_exclude_each_other(options: BakeOptions, refused: list[str]) -> None:
    assert [contradiction.option for contradiction in options.contradictions()] == refused


def test_unknown_runtimes_are_refused() -> None:
    with pytest.raises(ValidationError, match="openvino"):
        BakeOptions.model_validate({"runtimes": ["openvin"]})
