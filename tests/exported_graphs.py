"""What interventions do in the graphs of many architectures and of every exporter: the checks behind two tables."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from transformers import PreTrainedModel

from bakeout.export.exporting.onnx_export import export_checkpoint
from bakeout.models.checkpoint.checkpoint_files import load_model
from bakeout.models.checkpoint.placement import Placement
from bakeout.models.network.families import feed_forward_layers
from bakeout.models.plan import Intervention

from tests.baked_parity import Parity, baked, compare, key_space_detection, neuron_adjust, plan_of, unbaked
from tests.dynamo_export import export_by_dynamo
from tests.genai_builder import FORMATS, build, stored_model
from tests.tiny_models import random_prompts

# In a middle layer, behind which an early exit skips something, and in the last one.
Kind = Literal["neuron_adjust", "middle", "last"]

# All of one length: not every graph takes position ids, one without may not be padded, nor may the builder's graphs.
PROMPTS = random_prompts(24, seed=3, shortest=6, longest=6)
EXPORTS = ("optimum fp32", "optimum fp16", *(f"genai {form}" for form in FORMATS), "dynamo opset20", "dynamo opset18")
HALF = 0.04
# A step at which two logits are as near to each other as that: seldom in float32, not so in float16.
MOST_TIES = {1e-3: 0.1, HALF: 0.3}


def export(checkpoint: Path, directory: Path, name: str) -> tuple[Path, PreTrainedModel]:
    """The Llama of ``checkpoint`` as one of ``EXPORTS``: ``directory``, and a model with the weights of its graph."""
    exporter, form = name.split()
    if exporter == "genai":
        build(checkpoint, directory, form)
        return directory, stored_model(checkpoint, directory)
    directory.mkdir()
    if exporter == "optimum":
        export_checkpoint(checkpoint, directory, "fp16" if form == "fp16" else "fp32")
        return directory, load_model(checkpoint, Placement("cpu", "float16" if form == "fp16" else "float32")).float()
    export_by_dynamo(checkpoint, directory / "model.onnx", int(form.removeprefix("opset")))
    shutil.copy(checkpoint / "config.json", directory)
    return directory, load_model(checkpoint)


def intervention_of(model: PreTrainedModel, kind: Kind, *, decisive: bool = False) -> Intervention:
    """Neuron Adjust (``decisive`` as there), or Key Space Detection in one layer."""
    if kind == "neuron_adjust":
        return neuron_adjust(model, "threshold", PROMPTS, decisive=decisive)
    last = len(feed_forward_layers(model)) - 1
    layer = last // 2 if kind == "middle" else last
    return key_space_detection(model, (layer,), "query", PROMPTS)


def compared(directory: Path, model: PreTrainedModel, kind: Kind, name: str = "optimum fp32") -> Parity:
    """The graph in ``directory``, exported as ``name``, with an intervention, beside the reference on ``model``."""
    half, exact = name.endswith("fp16"), name.endswith("QDQ")
    plan = plan_of(model, [intervention_of(model, kind, decisive=half)], PROMPTS)
    runners = unbaked(directory, exact=exact), baked(directory, plan, exact=exact)
    return compare(model, plan, *runners, PROMPTS, HALF if half else 1e-3)


def holds(parity: Parity, kind: Kind, name: str = "optimum fp32") -> bool:
    """Token for token the reference's, other than the unbaked graph's on half of the prompts, and some refused."""
    return (
        parity.alike == parity.prompts
        and parity.ties < MOST_TIES[HALF if name.endswith("fp16") else 1e-3]
        and parity.changed >= parity.prompts / 2
        and (kind == "neuron_adjust" or 0 < parity.refused < parity.prompts)
    )
