"""Models that are in memory already: which checkpoint they are, by their weights and configuration."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from bakeout.models.checkpoint.checkpoint_files import load_config, weight_files
from bakeout.models.checkpoint.end_of_text import CONFIG, GENERATION, config_value, end_of_text
from bakeout.models.data.tokenizers.tokenization import differing_sample, load_tokenizer
from bakeout.models.errors import BakeoutError
from bakeout.models.files.json_object import read_json
from bakeout.models.files.writing import scratch_directory

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from bakeout.models.data.tokenizers.tokenization import Tokenizer

# What loading sets in a configuration, and what no logits depend on where nothing is trained.
_AS_LOADED = frozenset(
    {
        "architectures",
        "attn_implementation",
        "dtype",
        "experts_implementation",
        "finetuning_task",
        "id2label",
        "initializer_range",
        "is_decoder",
        "is_encoder_decoder",
        "label2id",
        "loss_type",
        "output_router_logits",
        "pretraining_tp",
        "problem_type",
        "return_dict",
        "router_aux_loss_coef",
        "tokenizer_class",
        "torch_dtype",
        "torchscript",
    }
)
_OF_TRAINING = ("dropout", "_pdrop", "_jitter_noise")


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model in memory, its tokenizer, and the digest of the weights of the checkpoint that it is."""

    model: PreTrainedModel
    tokenizer: Tokenizer
    digest: str


@contextmanager
def as_checkpoint(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, name: str | None = None
) -> Iterator[Path]:
    """The directory of a checkpoint that holds the weights of ``model``.

    That is the one called ``name``, or the one that the model was loaded from, if it is on this machine and every
    weight in it, rounded to the model's dtype, is the model's own. Otherwise it is what ``save_pretrained`` writes,
    into a temporary directory that lasts as long as the context: the same weights give the same files, and so the
    digest of the directory that you save the model to.

    Raises ``BakeoutError`` for what is no plain transformers model, for what ``save_pretrained`` refuses, where the
    tokenizer is lacking, and where weights are a checkpoint's while the configuration, the ``tokenizer``, or the tokens
    that end a text, are not: what is made of the checkpoint would be served otherwise than it was fitted.
    """
    _require_plain(model)
    origin = str(model.config.name_or_path or "")
    known = [directory for source in (name, origin) if source and (directory := local_checkpoint(source))]
    for directory in known:
        if holds_weights_of(directory, model):
            _require_served_alike(directory, model, tokenizer)
            yield directory
            return
    if tokenizer is None:
        raise BakeoutError(
            "The model in memory is that of no checkpoint on this machine, and its tokenizer is not given.",
            "Give `tokenizer` too, or save both with save_pretrained and name the directory.",
        )
    with scratch_directory() as scratch:
        try:
            model.save_pretrained(scratch, safe_serialization=True)
        except ValueError as error:
            raise BakeoutError(
                f"transformers does not save the model in memory ({' '.join(str(error).split())[:300]}).",
                "Correct its `generation_config` and `config`, so that `save_pretrained` works.",
            ) from error
        tokenizer.save_pretrained(scratch)
        yield scratch


def _require_served_alike(directory: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
    different = []
    config = load_config(directory)
    # Of a multimodal checkpoint, the text decoder alone may be in memory.
    in_memory = _computed(model.config)
    # What only the model in memory has, its class does not know.
    if not any(stored.items() <= in_memory.items() for stored in map(_computed, (config, config.get_text_config()))):
        different.append("configuration")
    stored_ends = _ends(config, read_json(directory / GENERATION).get("eos_token_id"))
    if _ends(model.config, getattr(model.generation_config, "eos_token_id", None)) - stored_ends:
        different.append("tokens that end a text (`eos_token_id`)")
    own = None if tokenizer is None else _own_tokenizer(directory)
    if tokenizer is not None and own is not None:
        if tokenizer.chat_template != own.chat_template:
            different.append("chat template")
        if tokenizer.eos_token_id != own.eos_token_id or differing_sample(tokenizer, own) is not None:
            different.append("tokenizer")
    if different:
        raise BakeoutError(
            f"The model in memory has the weights of {directory}, but not its {' and '.join(different)}.",
            "Save model and tokenizer with save_pretrained, and name that directory in their place.",
        )


def _computed(config: PretrainedConfig) -> dict[str, Any]:
    """What a configuration says of the computation: not where it comes from, nor how texts are generated."""
    from transformers import GenerationConfig

    passed = _AS_LOADED | vars(GenerationConfig()).keys()

    def of(values: dict[Any, Any]) -> dict[Any, Any]:
        return {
            name: of(value) if isinstance(value, dict) else value
            for name, value in values.items()
            if name not in passed and not str(name).startswith("_") and not str(name).endswith(_OF_TRAINING)
        }

    return of(config.to_dict())


def _ends(config: PretrainedConfig, generation: Any) -> set[int]:
    """The tokens that end a text by both configurations."""
    return set(end_of_text({GENERATION: generation, CONFIG: config_value(config.to_dict(), "eos_token_id")}).tokens)


def _own_tokenizer(directory: Path) -> Tokenizer | None:
    """A checkpoint's tokenizer; None where there is none that could be baked in place of another."""
    try:
        return load_tokenizer(directory)
    except BakeoutError:
        return None


def local_checkpoint(name: str) -> Path | None:
    """The directory that ``name`` is, or the hub id's in the local cache; None where there are no weights on disk."""
    directory = Path(name)
    if not directory.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError

        try:
            directory = Path(snapshot_download(name, local_files_only=True))
        except (OSError, HFValidationError):
            return None
    return directory if any(directory.glob("*.safetensors")) else None


def holds_weights_of(directory: Path, model: PreTrainedModel) -> bool:
    """Whether every weight of ``model`` is in a checkpoint, and is the same there, rounded to the model's dtype.

    Tensors are read one at a time, up to the first that differs. Raises ``BakeoutError`` for damaged files.
    """
    weights = _as_stored(model)
    same: set[int] = set()
    for file in weight_files(directory):
        with safe_open(file, framework="pt") as stored:
            for key in stored.keys():  # noqa: SIM118 - not a mapping
                weight = _first(weights, _names(key, model.base_model_prefix))
                # What no weight is called is ignored on loading too.
                if weight is None:
                    continue
                if not _equal(stored.get_tensor(key), weight):
                    return False
                same.add(weight.data_ptr())
    # Tied weights are stored once.
    return all(weight.data_ptr() in same for weight in weights.values())


def _require_plain(model: Any) -> None:
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise BakeoutError(
            f"A {type(model).__name__} is no transformers model.",
            "Give what AutoModelForCausalLM.from_pretrained gave, adapters merged (merge_and_unload).",
        )
    if getattr(model.config, "quantization_config", None) is not None:
        raise BakeoutError("The model in memory has quantised weights.", "Load the unquantised checkpoint.")
    if any(weight.is_meta for weight in model.parameters()):
        raise BakeoutError(
            "Weights of the model in memory are offloaded, and cannot be compared with a checkpoint's.",
            "Give the checkpoint's name alone, with `device_map`.",
        )


def _as_stored(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights by the names, and in the form, in which they are stored: transformers 5 renames and stacks some."""
    weights: dict[str, Tensor] = model.state_dict()
    try:
        loading: Any = import_module("transformers.core_model_loading")
    except ModuleNotFoundError:
        return weights
    stored: dict[str, Tensor] = loading.revert_weight_conversion(model, weights)
    return stored


def _names(key: str, prefix: str) -> Iterable[str]:
    """What a stored tensor may be called in the model: checkpoints come with and without the base model's prefix."""
    return (key, f"{prefix}.{key}", key.removeprefix(f"{prefix}."))


def _first(weights: dict[str, Tensor], names: Iterable[str]) -> Tensor | None:
    return next((weights[name] for name in names if name in weights), None)


def _equal(stored: Tensor, weight: Tensor) -> bool:
    return stored.shape == weight.shape and bool((stored.to(weight.dtype) == weight.cpu()).all())
