"""The examples in the docstrings of the public surface, run as one session on the bundled model."""

from __future__ import annotations

import doctest
import inspect
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

import bakeout
from bakeout.models.skills import checkpoint_directory
from bakeout.models.skills.generator import examples

from tests.imported_sources import peft_adapter, save

# In the order of a session: what one has made, the next ones use.
SESSION = [
    "Recipe",
    "DataFiles",
    "load_recipe",
    "method",
    "fit",
    "Track",
    "load_plan",
    "Plan",
    "import_plan",
    "combine",
    "export_adapter",
    "BakeOptions",
    "bake",
    "Artifact",
    "verify",
    "evaluate",
    "certify",
    "sign",
    "Runner",
    "BakeoutError",
]


def _rows(skill: str, split: str, count: int) -> list[dict[str, Any]]:
    return [asdict(example) for example in examples(skill, split, count)]


def test_every_public_name_has_an_example() -> None:
    options = {name for name in bakeout.__all__ if name.endswith("Options") and name != "BakeOptions"}
    assert set(SESSION) == set(bakeout.__all__) - options - {"__version__"}


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {
        "bakeout": bakeout,
        "checkpoint": str(checkpoint_directory()),
        "math_rows": _rows("math", "probing", 80),
        "german_rows": _rows("german", "probing", 80),
        "rows": _rows("math", "test", 40),
    }
    peft_adapter(checkpoint_directory(), Path("adapter"))
    save(Path("direction.safetensors"), direction=np.ones(128, np.float32))
    names["adapter"] = "adapter"
    names["control_plan"] = bakeout.import_plan("direction.safetensors", names["checkpoint"], layers=[1])
    lines = "".join(json.dumps(row) + "\n" for row in names["rows"])
    Path("math.test.jsonl").write_text(lines, encoding="utf-8")
    key = ec.generate_private_key(ec.SECP256R1())
    private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    Path("signing.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, *private))
    recipe = {
        "model": names["checkpoint"],
        "data": {"math": {"probe": names["math_rows"]}, "german": {"probe": names["german_rows"]}},
        "interventions": [{"neuron_adjust": {"forget": "math", "ratio": 0.2}}],
    }
    Path("recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    failed: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF | doctest.ELLIPSIS)
    parser = doctest.DocTestParser()
    for name in SESSION:
        text = inspect.getdoc(getattr(bakeout, name)) or ""
        session = parser.get_doctest(text, names, f"bakeout.{name}", None, None)
        assert session.examples, f"{name} has no example"
        runner.run(session, out=failed.append, clear_globs=False)
        names = session.globs
    assert not failed, "".join(failed)
