"""A plan of finished interventions: the model that they are of, and a canary that is made anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from bakeout.models.checkpoint.checkpoint import Checkpoint
from bakeout.models.errors import BakeoutError
from bakeout.models.plan import Canary, Intervention, ModelIdentity, Plan
from bakeout.models.progress import Track

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PACKAGES = ("bakeout", "numpy", "safetensors", "torch", "transformers")


def base_checkpoint(base: str) -> Checkpoint:
    """The checkpoint that ``base`` names. Raises ``BakeoutError`` for what is none."""
    from bakeout.export.artifacts.model_source import model_source

    source = model_source(base)
    if not isinstance(source, Checkpoint):
        raise BakeoutError(
            f"{base} is an ONNX graph, and a canary is measured on a checkpoint.", "Name that as `base`."
        )
    return source


@contextmanager
def loaded_base(checkpoint: Checkpoint) -> Iterator[tuple[PreTrainedModel, ModelIdentity]]:
    """The model of a checkpoint in float32 on the CPU, and what a plan keeps of it."""
    from bakeout.models.network.families import identity

    model = checkpoint.load()
    yield model, identity(model, checkpoint.digest)


def plan_of(
    checkpoint: Checkpoint,
    model: PreTrainedModel,
    interventions: Sequence[Intervention],
    provenance: Mapping[str, Any],
    track: Track,
    canaries: Sequence[Canary] = (),
) -> Plan:
    """The plan of ``interventions`` on ``model``, whose weights are those of ``checkpoint``, with a canary of its own.

    In the end ``model`` is what it was. ``provenance``: what to keep beside the versions; ``canaries``: those of whose
    sequences the new one is made, of random ones without.
    """
    from bakeout.models.data.tokenizers.tokenization import load_tokenizer
    from bakeout.models.network.families import identity, text_config
    from bakeout.models.reference.canary import measured_anew, synthesise_canary
    from bakeout.models.reference.search_vocabulary import Vocabulary
    from bakeout.models.reference.weight_edits import edited_weights

    with edited_weights(model, interventions):
        if canaries:
            canary = measured_anew(model, interventions, canaries)
        else:
            vocabulary = Vocabulary.of_data(load_tokenizer(checkpoint.directory), text_config(model).vocab_size, {})
            canary = synthesise_canary(model, interventions, vocabulary, track=track)
    versions = {package: version(package) for package in _PACKAGES}
    source = {"source": checkpoint.source} if checkpoint.source else {}
    own = {"versions": versions, **source, **provenance}
    return Plan(identity(model, checkpoint.digest), tuple(interventions), canary, own)
