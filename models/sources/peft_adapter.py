"""A PEFT LoRA adapter as a low-rank update: ``adapter_config.json`` and ``adapter_model.safetensors``."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bakeout.models.checkpoint.architectures import modules_of
from bakeout.models.errors import BakeoutError
from bakeout.models.files.reading import parse_json, read_regular
from bakeout.models.plan import Floats, Floats32, LowRankUpdate, ModelIdentity, Role, WeightUpdate, attention_weight
from bakeout.models.plan.attention_modules import list_of_blocks
from bakeout.models.sources.source import none_matched, not_carried, read_report
from bakeout.models.sources.tensor_file import FileTensor, read_tensors

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
METHOD = "peft lora"
# What may be set without changing what the adapter computes on a model that is run.
# fmt: off
_HARMLESS = frozenset((
    "alora_invocation_tokens", "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform", "lora_dropout", "megatron_core",
    "peft_type", "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type",
))
# fmt: on
_READ = frozenset(("alpha_pattern", "bias", "init_lora_weights", "lora_alpha", "r", "rank_pattern", "use_rslora"))
# Ways to start that leave the base model as it is; others change it, and the adapter is a difference to that.
_PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")
_PREFIX = "base_model.model."
# Names; a point may be escaped, and nothing else: `\d` would be a class of characters.
_PLAIN_PATTERN = re.compile(r"\^?(?:[\w.]|\\\.)+\$?")
_NUMBER = re.compile(r"\.\d+\.")
_REMEDY = "Merge the adapter with peft (merge_and_unload), save both checkpoints, and import the pair."
# The layer of a module, and the weights that it is, in the order of its rows.
_Place = tuple[int, tuple[Role, ...]]


@dataclass(frozen=True)
class _Factors:
    """The two tensors of one module."""

    down: FileTensor
    up: FileTensor


def is_peft_adapter(path: Path) -> bool:
    """Whether a directory holds an adapter's configuration."""
    return (path / CONFIG).is_file()


def read_peft_adapter(path: Path, model: ModelIdentity, scale: float = 1.0) -> LowRankUpdate:
    """The adapter in the directory ``path`` as an update of ``model``, ``scale`` times as large.

    A module's update is B A times alpha / r, or alpha / sqrt(r) with rsLoRA, by the rank and alpha patterns. Raises
    ``BakeoutError``, naming it, for any setting or tensor that no low-rank update of FFLs and attention carries.
    """
    config = _config(path / CONFIG)
    _require_plain_lora(path, config)
    if not (path / WEIGHTS).is_file():
        raise BakeoutError(
            f"{path} holds no {WEIGHTS}; pickled adapters are not read.", "Save it with safe_serialization=True."
        )
    modules = _modules(path, read_tensors(path / WEIGHTS))
    _require_all_targets(path, config, modules)
    layers = enumerate(modules_of(model))
    places = {module: (layer, roles) for layer, own in layers for module, roles in own.roles().items()}
    lists = {list_of_blocks(module) for module in places}
    updates: list[WeightUpdate] = []
    read: list[dict[str, Any]] = []
    for name, factors in sorted(modules.items()):
        in_attention = attention_weight(name)
        if in_attention and lists and list_of_blocks(name) not in lists:
            raise not_carried(path, f"it changes {name}, which is not of the text decoder", "Train the decoder alone.")
        place = None if in_attention else _place(path, name, places)
        down, up = factors.down.values(), factors.up.values()
        rank, scaling = _scaling(path, name, config)
        if down.ndim != 2 or up.ndim != 2 or not len(down) == up.shape[1] == rank:
            raise BakeoutError(
                f"{path}: the factors of {name} have the shapes {down.shape} and {up.shape}, not those of rank {rank}.",
                "Save the adapter again with peft.",
            )
        is_zero = not down.any() or not up.any()
        read.append({"module": name, "rank": rank, "scaling": scaling, **({"zero": True} if is_zero else {})})
        if is_zero:
            # As peft starts: a module that was never trained adds nothing.
            continue
        left, right = _rounded(up * (scaling * scale)), _rounded(down)
        if in_attention:
            updates.append(WeightUpdate(*in_attention, left, right, name))
        if place:
            updates += _updates(path, name, place, left, right, model)
    if not updates:
        raise none_matched(path, "no LoRA module that is not zero")
    updates.sort(key=lambda update: (update.layer, update.role))
    files = [path / CONFIG, path / WEIGHTS]
    return LowRankUpdate(METHOD, tuple(updates), read_report("peft", files, scale, read))


def _config(path: Path) -> Mapping[str, Any]:
    try:
        config = parse_json(read_regular(path).decode("utf-8"), finite=True)
    except (OSError, ValueError) as error:
        raise BakeoutError(f"{path} cannot be read ({error}).", "Copy the adapter again.") from None
    if not isinstance(config, dict):
        raise BakeoutError(f"{path} is not a JSON object.", "Copy the adapter again.")
    return config


def _require_plain_lora(path: Path, config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise not_carried(path, f"an adapter of type {config.get('peft_type')!r}", _REMEDY)
    if config.get("use_dora"):
        raise not_carried(path, "DoRA (`use_dora`) changes magnitudes", _REMEDY)
    if config.get("bias", "none") != "none":
        raise not_carried(path, f"trained biases (`bias: {config['bias']}`)", _REMEDY)
    start = config.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise not_carried(path, f"an adapter to a base model changed by `init_lora_weights: {start}`", _REMEDY)
    if config.get("alora_invocation_tokens"):
        raise not_carried(path, "an adapter that is switched on by tokens (`alora_invocation_tokens`)", _REMEDY)
    for name, value in sorted(config.items()):
        if name not in _HARMLESS | _READ and value not in (None, False, "", [], {}):
            raise not_carried(path, f"the setting `{name}`", _REMEDY)


def _modules(path: Path, tensors: Mapping[str, FileTensor]) -> dict[str, _Factors]:
    """The factors by the names of their modules."""
    halves: dict[str, dict[str, FileTensor]] = {}
    for name, tensor in tensors.items():
        module, _, half = name.removeprefix(_PREFIX).rpartition(".lora_")
        if half not in ("A.weight", "B.weight") or not module:
            raise not_carried(path / WEIGHTS, f"it holds {name}", _REMEDY)
        halves.setdefault(module, {})[half[0]] = tensor
    for module, own in halves.items():
        if len(own) != 2:
            raise BakeoutError(f"{path}: of the factors of {module} one is missing.", "Copy the adapter again.")
    return {module: _Factors(own["A"], own["B"]) for module, own in halves.items()}


def _require_all_targets(path: Path, config: Mapping[str, Any], modules: Mapping[str, _Factors]) -> None:
    """Raise ``BakeoutError`` where the configuration names a module of which there are no factors."""
    targets = config.get("target_modules")
    for target in sorted(map(str, targets)) if isinstance(targets, list) else ():
        if not any(name == target or name.endswith(f".{target}") for name in modules):
            raise BakeoutError(
                f"{path}: the configuration names {target}, and no tensor is of it.", "Copy the adapter again."
            )


def _place(path: Path, name: str, places: Mapping[str, _Place]) -> _Place:
    if name in places:
        return places[name]
    known = {_NUMBER.sub(".N.", module) for module in places}
    if _NUMBER.sub(".N.", name) not in known:
        raise not_carried(path, f"it changes {name}", f"Plans change {_told(known)}: train those alone.")
    raise BakeoutError(
        f"{path} changes {name}, and the base model has no such layer.", "Name the adapter's base model."
    )


def _told(known: Iterable[str]) -> str:
    return ", ".join((*sorted(known), "the linear layers of attention"))


def _rounded(factor: Floats) -> Floats32:
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(factor, np.float32)


def _scaling(path: Path, name: str, config: Mapping[str, Any]) -> tuple[int, float]:
    """The rank that the configuration gives a module, and what its product is multiplied by."""
    rank = _by_pattern(path, name, config, "rank_pattern", config.get("r"))
    alpha = _by_pattern(path, name, config, "alpha_pattern", config.get("lora_alpha"))
    if type(rank) is not int or rank <= 0 or isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise BakeoutError(f"{path}: {name} has the rank {rank!r} and alpha {alpha!r}.", "Copy the adapter again.")
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(path: Path, name: str, config: Mapping[str, Any], table: str, default: Any) -> Any:
    """A module's entry in a table of patterns, the first that fits the end of its name, as peft looks it up."""
    patterns = config.get(table) or {}
    if not isinstance(patterns, dict):
        raise BakeoutError(f"{path}: `{table}` is not a table.", "Copy the adapter again.")
    for pattern, value in patterns.items():
        if not _PLAIN_PATTERN.fullmatch(pattern):
            raise not_carried(path, f"`{table}` holds the regular expression {pattern!r}", "Name modules in it.")
        plain = pattern.removeprefix("^").removesuffix("$").replace("\\", "")
        if name == plain or (not pattern.startswith("^") and name.endswith(f".{plain}")):
            return value
    return default


def _updates(
    path: Path, name: str, place: _Place, left: Floats32, right: Floats32, model: ModelIdentity
) -> list[WeightUpdate]:
    """One update a weight of an FFL: a fused linear's rows are those of several."""
    layer, roles = place
    if len(left) != sum(model.weight_shape(role, layer)[0] for role in roles):
        raise BakeoutError(
            f"{path}: {name} has {len(left)} outputs, which the base model does not have.",
            "Name the adapter's base model.",
        )
    updates = []
    for role, rows in zip(roles, np.split(left, len(roles)), strict=True):
        if rows.any():
            update = WeightUpdate(layer, role, rows, right)
            if not update.fits(model.weight_shape(role, layer)):
                raise BakeoutError(
                    f"{path}: {name} has {right.shape[1]} inputs, which the base model does not have.",
                    "Name the adapter's base model.",
                )
            updates.append(update)
    return updates
