"""The public names of ``bakeout``: a change here is a change for everybody who uses it."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import bakeout

SURFACE = [
    "Artifact",
    "BakeOptions",
    "BakeoutError",
    "ChatTemplateOptions",
    "DataFiles",
    "KeySpaceDetectionOptions",
    "LearnOptions",
    "LunarOptions",
    "NeuronAdjustOptions",
    "Plan",
    "Recipe",
    "RevealAndReleaseOptions",
    "Runner",
    "SelectivePruningOptions",
    "Track",
    "UnlearnOptions",
    "__version__",
    "bake",
    "certify",
    "combine",
    "evaluate",
    "export_adapter",
    "fit",
    "import_plan",
    "load_plan",
    "load_recipe",
    "method",
    "sign",
    "verify",
]
# What `import bakeout` may not load, and what nobody needs for plans and recipes.
HEAVY = {"numpy", "pydantic", "torch", "transformers", "optimum", "onnx", "onnx_ir", "onnxruntime", "onnxscript"}


def _loaded_by(program: str) -> list[str]:
    """The modules that a program has loaded in the end."""
    program = f"{program}; import sys; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd="/")
    return ran.stdout.split()


def test_the_surface_is_what_it_was() -> None:
    assert sorted(bakeout.__all__) == SURFACE
    assert set(SURFACE) <= set(dir(bakeout))


@pytest.mark.parametrize("name", SURFACE)
def test_every_name_is_there_and_documented(name: str) -> None:
    value = getattr(bakeout, name)
    assert value
    if name != "__version__":
        assert value.__name__ == name
        assert inspect.getdoc(value)


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(bakeout.__file__ or "").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    typed: dict[str, str | None] = {"__version__": None}
    for node in block.body:
        if isinstance(node, ast.ImportFrom):
            typed |= {alias.asname or alias.name: node.module for alias in node.names}
    assert sorted(typed) == SURFACE
    assert {name: module for name, module in typed.items() if module} == bakeout._DEFINED_IN


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'bakeout' has no attribute 'forget'"):
        bakeout.forget  # noqa: B018


def test_importing_loads_next_to_nothing() -> None:
    before, after = _loaded_by("pass"), _loaded_by("import bakeout; dir(bakeout)")
    assert not HEAVY & set(after)
    assert len(set(after) - set(before)) <= 40
    assert [name for name in after if name.startswith("bakeout")] == ["bakeout"]


@pytest.mark.parametrize("name", SURFACE)
def test_a_name_alone_loads_no_torch(name: str) -> None:
    assert not {"torch", "transformers", "optimum"} & set(_loaded_by(f"import bakeout; bakeout.{name}"))


def test_a_missing_extra_is_named() -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "import bakeout\n"
        "try: bakeout.fit(bakeout.Recipe(model='/', data={'a': {'probe': []}, 'b': {'probe': []}},"
        " interventions=[bakeout.NeuronAdjustOptions(forget='a')]))\n"
        "except bakeout.BakeoutError as error: print(error)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd="/")
    assert ran.stdout == "`bakeout.fit` needs torch. Install it: pip install 'bakeout[fit]'.\n"


def test_it_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "bakeout", "--version"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
    assert ran.stdout == f"python -m bakeout {bakeout.__version__}\n"
