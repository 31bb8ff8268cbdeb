"""Bake LLM unlearning into the model file.

The public names are loaded when they are first used: importing this package loads neither torch nor onnx. All else,
``bakeout.models``, ``bakeout.graph_passes`` and ``bakeout.export`` among it, may change with any version.

Progress is logged, and shown by ``logging.basicConfig(); logging.getLogger("bakeout").setLevel("INFO")``, or passed to
the ``Track`` that a function is given.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

# ONNX Runtime and the libraries of the model hub report home unless these are set before they are imported (datasets
# counts even files on this machine). Whoever wants that sets them otherwise.
for _name, _off in {
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
}.items():
    os.environ.setdefault(_name, _off)

if TYPE_CHECKING:
    from bakeout.artifact import Artifact as Artifact
    from bakeout.export.recipes.bake_options import BakeOptions as BakeOptions
    from bakeout.export.recipes.recipe import DataFiles as DataFiles
    from bakeout.export.recipes.recipe import Recipe as Recipe
    from bakeout.export.recipes.recipe import load_recipe as load_recipe
    from bakeout.export.running.runner import Runner as Runner
    from bakeout.functions import bake as bake
    from bakeout.functions import certify as certify
    from bakeout.functions import evaluate as evaluate
    from bakeout.functions import fit as fit
    from bakeout.functions import sign as sign
    from bakeout.functions import verify as verify
    from bakeout.models.data.tokenizers.chat_options import ChatTemplateOptions as ChatTemplateOptions
    from bakeout.models.errors import BakeoutError as BakeoutError
    from bakeout.models.methods.key_space_detection.options import KeySpaceDetectionOptions as KeySpaceDetectionOptions
    from bakeout.models.methods.learn.options import LearnOptions as LearnOptions
    from bakeout.models.methods.lunar.options import LunarOptions as LunarOptions
    from bakeout.models.methods.neuron_adjust.options import NeuronAdjustOptions as NeuronAdjustOptions
    from bakeout.models.methods.registry import method as method
    from bakeout.models.methods.reveal_and_release.options import RevealAndReleaseOptions as RevealAndReleaseOptions
    from bakeout.models.methods.selective_pruning.options import SelectivePruningOptions as SelectivePruningOptions
    from bakeout.models.methods.unlearn.options import UnlearnOptions as UnlearnOptions
    from bakeout.models.plan import Plan as Plan
    from bakeout.models.plan.plan_file import load_plan as load_plan
    from bakeout.models.progress import Track as Track
    from bakeout.plans import combine as combine
    from bakeout.plans import export_adapter as export_adapter
    from bakeout.plans import import_plan as import_plan

    __version__: str

_METHODS = "bakeout.models.methods"
# Where each public name is defined.
_DEFINED_IN = {
    "Artifact": "bakeout.artifact",
    "BakeOptions": "bakeout.export.recipes.bake_options",
    "BakeoutError": "bakeout.models.errors",
    "ChatTemplateOptions": "bakeout.models.data.tokenizers.chat_options",
    "DataFiles": "bakeout.export.recipes.recipe",
    "KeySpaceDetectionOptions": f"{_METHODS}.key_space_detection.options",
    "LearnOptions": f"{_METHODS}.learn.options",
    "LunarOptions": f"{_METHODS}.lunar.options",
    "NeuronAdjustOptions": f"{_METHODS}.neuron_adjust.options",
    "Plan": "bakeout.models.plan",
    "Recipe": "bakeout.export.recipes.recipe",
    "RevealAndReleaseOptions": f"{_METHODS}.reveal_and_release.options",
    "Runner": "bakeout.export.running.runner",
    "SelectivePruningOptions": f"{_METHODS}.selective_pruning.options",
    "Track": "bakeout.models.progress",
    "UnlearnOptions": f"{_METHODS}.unlearn.options",
    "bake": "bakeout.functions",
    "certify": "bakeout.functions",
    "combine": "bakeout.plans",
    "evaluate": "bakeout.functions",
    "export_adapter": "bakeout.plans",
    "fit": "bakeout.functions",
    "import_plan": "bakeout.plans",
    "load_plan": "bakeout.models.plan.plan_file",
    "load_recipe": "bakeout.export.recipes.recipe",
    "method": f"{_METHODS}.registry",
    "sign": "bakeout.functions",
    "verify": "bakeout.functions",
}

__all__ = [
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


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        value: object = version("bakeout")
    elif name in _DEFINED_IN:
        value = getattr(import_module(_DEFINED_IN[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
