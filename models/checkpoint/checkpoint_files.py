"""Hugging Face checkpoints as files: found, fingerprinted and loaded. Safetensors alone, and never remote code."""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from bakeout.models.checkpoint.placement import REFERENCE, Placement
from bakeout.models.checkpoint.rope_parameters import readable_here
from bakeout.models.errors import BakeoutError
from bakeout.models.files.hashing import hash_files
from bakeout.models.files.json_object import read_json
from bakeout.models.files.reading import open_regular, parse_json, read_regular, require_no_devices
from bakeout.models.files.writing import scratch_directory

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_SINGLE, _INDEX, _CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
# What a causal language model needs of its repository: neither pickles nor other frameworks' weights.
CHECKPOINT_FILES = (
    "*.safetensors",
    "*.json",
    "*.txt",
    "*.jinja",
    "*.model",
    "*.spm",
    "*.codes",
    "*.tiktoken",
    "*.tokenizer",
)
# The weights once more, in a form of the model's maker: fetched and hashed for nothing.
_CONSOLIDATED = "consolidated*.safetensors"
_NOT_FETCHED = (_CONSOLIDATED, "*/*.safetensors")


def resolve_checkpoint(name: str | Path) -> Path:
    """The directory of a checkpoint: ``name`` itself, or the local snapshot of the hub id ``name``.

    A hub id is looked up in the local cache and, unless ``HF_HUB_OFFLINE`` is set, on the hub. Raises
    ``BakeoutError`` when there is no such checkpoint.
    """
    directory = local_directory(name, CHECKPOINT_FILES)
    require_no_devices(directory)
    if not (directory / _CONFIG).is_file():
        raise BakeoutError(
            f"{directory} holds no config.json, so it is not a checkpoint.",
            "Give the directory that save_pretrained wrote.",
        )
    return directory


def local_directory(name: str | Path, patterns: Sequence[str]) -> Path:
    """``name`` itself, or the local snapshot of the hub id ``name``, of which files like ``patterns`` are fetched.

    Raises ``BakeoutError`` where it is neither, or cannot be fetched.
    """
    directory = Path(name)
    return directory if directory.is_dir() else _snapshot(str(name), patterns)


def weights_digest(directory: Path) -> str:
    """SHA-256 (hex) over the names, sizes and SHA-256 of the checkpoint's ``*.safetensors``, in order of name.

    Raises ``BakeoutError`` for a checkpoint without any, and for damaged files.
    """
    return combined_digest(directory, weight_file_digests(directory))


def weight_file_digests(directory: Path) -> dict[str, str]:
    """SHA-256 (hex) of each of the checkpoint's ``*.safetensors`` by name. Raises as ``weights_digest``."""
    files = weight_files(directory)
    return dict(zip((path.name for path in files), hash_files(files), strict=True))


def combined_digest(directory: Path, digests: Mapping[str, str]) -> str:
    """``weights_digest`` from the ``weight_file_digests``."""
    digest = hashlib.sha256()
    for name, content in digests.items():
        digest.update(f"{name}\0{(directory / name).stat().st_size}\0{content}\0".encode())
    return digest.hexdigest()


def load_model(directory: Path, placement: Placement = REFERENCE) -> PreTrainedModel:
    """The causal language model in ``directory``, in evaluation mode, where and how ``placement`` says.

    What it offloads to disk lasts as long as the model. Raises ``BakeoutError`` when the weights are pickled, damaged,
    quantised or incomplete, when the architecture is one that the installed transformers does not know, when it does
    not compute causally, and for a device that this machine lacks.
    """
    from transformers import AutoModelForCausalLM

    from bakeout.models.checkpoint.this_machine import loading_options, mapped_piece_by_piece

    loading = loading_options(placement)
    lacking = _lacking(directory, weight_files(directory))
    if "quantization_config" in read_config(directory):
        raise BakeoutError(f"{directory} holds quantised weights.", "Use the unquantised checkpoint.")
    with ExitStack() as files:
        readable = files.enter_context(_readable(directory))
        if placement.device_map is not None:
            loading["offload_folder"] = str(files.enter_context(scratch_directory()))
        try:
            with mapped_piece_by_piece():
                loaded: Any = AutoModelForCausalLM.from_pretrained(
                    readable,
                    **loading,
                    use_safetensors=True,
                    local_files_only=True,
                    trust_remote_code=False,
                    output_loading_info=True,
                )
        except Exception as error:  # noqa: BLE001 - a configuration's numbers end up anywhere in its architecture's code
            raise BakeoutError(
                f"{directory} cannot be loaded ({_first_line(error)}).",
                "Use a complete checkpoint of a causal language model that transformers knows.",
            ) from None
        model: PreTrainedModel
        model, outcome = loaded
        if placement.device_map is not None:
            # Offloaded weights are read from there whenever they are needed.
            weakref.finalize(model, files.pop_all().close)
    model.config.name_or_path = str(directory)
    unread = {name for name, weight in model.named_parameters() if weight.is_meta and placement.device_map is None}
    if missing := sorted(unread | set(outcome["missing_keys"]) | _unfilled(model, lacking)):
        raise BakeoutError(
            f"{directory} lacks {len(missing)} of the model's weights, among them {missing[0]}.",
            "Use a complete checkpoint.",
        )
    model.train(False)
    _require_computing(model, directory)
    return model


def load_config(directory: Path) -> PretrainedConfig:
    """The configuration that ``load_model`` gives the model in ``directory``."""
    from transformers import AutoConfig

    with _readable(directory) as readable:
        config: PretrainedConfig = AutoConfig.from_pretrained(readable, local_files_only=True, trust_remote_code=False)
    return config


def _require_computing(model: PreTrainedModel, directory: Path) -> None:
    """Raise ``BakeoutError`` where the architecture loads with a configuration, and cannot compute with it causally.

    Where the default attention alone is not causal (Doge's in transformers 4), ``model`` computes eagerly from now on.
    """
    if _is_causal(model, str(directory)):
        return
    model.set_attn_implementation("eager")
    require_causal(
        model,
        str(directory),
        "Use a causal language model; one that can be either, such as BERT, has `is_decoder` in its config.",
    )


def require_causal(model: PreTrainedModel, name: str, remedy: str) -> None:
    """Raise ``BakeoutError`` where a model, called ``name``, does not compute, or looks ahead."""
    if not _is_causal(model, name):
        raise BakeoutError(f"{name} is loaded, and what it says of a token depends on tokens behind it.", remedy)


def _is_causal(model: PreTrainedModel, name: str) -> bool:
    """Whether the first of two tokens has the same logits before either of two others."""
    import torch

    # Where weights are offloaded, accelerate moves what the model reads.
    device = torch.device("cpu") if model.device.type == "meta" else model.device
    try:
        with torch.no_grad():
            logits = model(torch.tensor([[0, 0], [0, 1]], device=device)).logits[:, 0]
            first, other = logits.float()
    except Exception as error:
        raise BakeoutError(
            f"{name} is loaded, and does not compute ({type(error).__name__}: {_first_line(error)}).",
            "Correct its config.json, or use another copy.",
        ) from error
    # Two rows that compute the same may still be rounded apart. (Not ``<=``: what is no number is told elsewhere.)
    rounding = max(1e-3, 8 * torch.finfo(logits.dtype).eps)
    return not (first - other).abs().max() > rounding * first.abs().max()


@contextmanager
def _readable(directory: Path) -> Iterator[Path]:
    """``directory``, or links to its files beside those that the installed transformers reads as they are meant.

    Those are an index without the ``metadata`` that it asks for, and a configuration whose rotary embedding version 5
    wrote, beside version 4. Raises ``BakeoutError`` where version 4 has no entries for that.
    """
    replaced: dict[str, Mapping[str, Any]] = {}
    index = read_json(directory / _INDEX)
    if index and not isinstance(index.get("metadata"), dict):
        replaced[_INDEX] = {**index, "metadata": {}}
    config = read_config(directory)
    if (readable := readable_here(config, directory)) != config:
        replaced[_CONFIG] = readable
    if not replaced:
        yield directory
        return
    with scratch_directory() as scratch:
        for path in directory.iterdir():
            if path.is_file() and path.name not in replaced:
                (scratch / path.name).symlink_to(path.resolve())
        for name, content in replaced.items():
            (scratch / name).write_text(json.dumps(content), encoding="utf-8")
        yield scratch


def weight_files(directory: Path) -> list[Path]:
    """The checkpoint's ``*.safetensors``, in order of name, without the ``consolidated.safetensors`` that some
    repositories hold beside. Raises ``BakeoutError`` for none, or damaged ones.
    """
    files = sorted(set(directory.glob("*.safetensors")) - set(directory.glob(_CONSOLIDATED)))
    if not files:
        pickled = any(directory.glob("*.bin")) or any(directory.glob("*.pt")) or any(directory.glob("*.pth"))
        raise BakeoutError(
            f"{directory} holds {'pickled weights alone' if pickled else 'no weights'}; Bakeout reads safetensors.",
            "Save the model with save_pretrained(safe_serialization=True).",
        )
    for path in files:
        try:
            with open_regular(path), safe_open(path, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise BakeoutError(
                f"{path} is not a whole safetensors file ({_first_line(error)}).", "Copy it again."
            ) from None
    return files


def _lacking(directory: Path, files: Sequence[Path]) -> set[str]:
    """The tensors that the index names, and that none of its shards, of ``files``, holds."""
    weight_map = read_json(directory / _INDEX).get("weight_map")
    if (directory / _SINGLE).is_file() or not isinstance(weight_map, dict):
        return set()
    shards = [shard for shard in weight_map.values() if isinstance(shard, str)]
    held: set[str] = set()
    for path in files:
        if path.name in shards:
            with safe_open(path, framework="numpy") as stored:
                held.update(stored.keys())
    return weight_map.keys() - held


def _unfilled(model: PreTrainedModel, lacking: Collection[str]) -> set[str]:
    """Those of the model's weights that are ``lacking``, and that no other name of theirs stands for.

    transformers takes the index's word for what is there, and computes with whatever lies in memory in their place.
    """
    names: dict[int, set[str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(weight), set()).add(name)
    stem = f"{model.base_model_prefix}."
    lacking = {form for name in lacking for form in (name, stem + name, name.removeprefix(stem))}
    return {min(tied) for tied in names.values() if tied <= lacking}


def read_config(directory: Path) -> dict[str, Any]:
    """The checkpoint's ``config.json``.

    Raises ``BakeoutError`` where it cannot be read, and where it names another file for the weights: what is loaded
    would not be what is hashed and edited.
    """
    path = directory / _CONFIG
    try:
        config = parse_json(read_regular(path).decode("utf-8"))
    except (OSError, ValueError) as error:
        raise BakeoutError(f"{path} cannot be read ({_first_line(error)}).", "Copy the checkpoint again.") from None
    if not isinstance(config, dict):
        raise BakeoutError(f"{path} is not a JSON object.", "Copy the checkpoint again.")
    if (named := config.get("transformers_weights")) is not None:
        raise BakeoutError(
            f"{path} names another file for the weights than {_SINGLE} (`transformers_weights`: {named}).",
            f"Rename that file to {_SINGLE}, and remove the entry.",
        )
    return config


def _snapshot(name: str, patterns: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns), ignore_patterns=list(_NOT_FETCHED)))
    except HFValidationError:
        raise BakeoutError(
            f"There is no directory {name}, and it is not a hub id.", "Give a checkpoint's directory or hub id."
        ) from None
    except OSError as error:
        raise BakeoutError(
            f"There is no directory {name}, and no such checkpoint could be fetched ({_first_line(error)}).",
            "Check the name, the network and the access rights, or give the directory of a copy.",
        ) from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
