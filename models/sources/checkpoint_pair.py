"""Two checkpoints, a base model and an edited one: their difference, tensor by tensor.

Matrices of FFLs and attention become a low-rank update, vectors (norms' weights, biases) a vector update.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from bakeout.models.checkpoint.architectures import modules_of, stored_module
from bakeout.models.checkpoint.checkpoint_files import read_config
from bakeout.models.checkpoint.checkpoint_writer import INDEX, checkpoint_files, weight_in
from bakeout.models.checkpoint.rope_parameters import with_rope_of_version_4
from bakeout.models.checkpoint.weight_arithmetic import EDITABLE
from bakeout.models.errors import BakeoutError
from bakeout.models.files.reading import require_no_devices
from bakeout.models.plan import (
    AttentionRole,
    EndRole,
    Floats,
    Floats32,
    LowRankUpdate,
    ModelIdentity,
    Role,
    StoredWeight,
    UpdatedVector,
    VectorUpdate,
    WeightUpdate,
    attention_weight,
    is_of_an_end,
    is_of_attention,
)
from bakeout.models.plan.attention_modules import block_of, list_of_blocks
from bakeout.models.progress import Track, untracked
from bakeout.models.sources.pair_vectors import unequal_elements, updated_vector
from bakeout.models.sources.source import none_matched, not_carried, read_report, reporting
from bakeout.models.sources.tensor_file import FileTensor, read_tensors

METHOD = "checkpoint difference"
_ROLES: tuple[Role, ...] = ("down", "gate", "up")
_HEAD = "lm_head.weight"
# What of a configuration says nothing of what the model computes.
_NAMES_ONLY = frozenset(("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"))


@dataclass(frozen=True)
class _Weight:
    """A weight that can differ, and where it is stored; ``module`` as of ``WeightUpdate``."""

    layer: int
    role: Role | AttentionRole | EndRole
    stored: StoredWeight
    module: str | None = None

    def fits(self, shape: tuple[int, ...], model: ModelIdentity) -> bool:
        """Whether it can have this shape."""
        if not is_of_attention(self.role) and not is_of_an_end(self.role):
            return shape == model.weight_shape(self.role, self.layer)
        return len(shape) == 2

    def update(self, left: Floats32, right: Floats32) -> WeightUpdate:
        """An update of it."""
        return WeightUpdate(self.layer, self.role, left, right, self.module)


def read_checkpoint_pair(
    base: Path,
    edited: Path,
    model: ModelIdentity,
    scale: float = 1.0,
    *,
    energy: float = 0.9999,
    exact: bool = False,
    ends: Mapping[str, EndRole] = MappingProxyType({}),
    track: Track = untracked,
) -> tuple[LowRankUpdate | VectorUpdate, ...]:
    """What was done to ``base`` to make ``edited``, as updates of ``model``, ``scale`` times as large.

    ``ends``: what the model calls its embedding and head, or the embedding that is both. Per weight, the singular value
    decomposition of the difference, cut at the smallest rank that holds the share ``energy`` of its squared norm; the
    residual is in the report. ``exact``: the whole difference, such that the edited checkpoint is baked bit for bit; of
    vectors it always is the whole. Two tensors are in memory at a time. Raises ``BakeoutError`` where anything but
    vectors and the weights of FFLs, attention and ends differs.
    """
    if not 0 < energy <= 1:
        raise BakeoutError(f"`energy` is {energy}, not a share between 0 and 1.", "Give one such as 0.9999.")
    if exact and scale != 1:
        raise BakeoutError("`exact` gives the edited checkpoint itself, at no other `scale`.", "Leave out one of them.")
    require_no_devices(edited)
    _require_same_configuration(edited, read_config(base), read_config(edited))
    before, after = _tensors(base), _tensors(edited)
    places = _places(model)
    lists = {list_of_blocks(place) for place in places}
    in_model = _names_in_model(before, places)
    last = max((block_of(name) or 0 for name in in_model.values() if list_of_blocks(name) in lists), default=0)
    for module, role in ends.items():
        stored = StoredWeight(f"{module}.weight", None, False)
        places[stored.name] = [_Weight(last if role == "head" else 0, role, stored, module)]
    _require_same_names(edited, before, after, _is_tied(base))
    updates: list[WeightUpdate] = []
    vectors: list[UpdatedVector] = []
    read: list[dict[str, Any]] = []
    names = sorted(before.keys() & after.keys())
    for name in track(names, "comparing the weights", len(names)):
        one, other = before[name], after[name]
        _require_same_shape(edited, one, other)
        if _are_equal(one, other):
            continue
        vector = updated_vector(in_model[name], one, other, scale, lists, last)
        if vector is not None:
            if vector.count:
                _require_exact(edited, name, unequal_elements(vector, other, one.dtype) if exact else 0)
                vectors.append(vector)
            continue
        own = _weights_in(in_model[name], places, lists, model)
        if not own or one.dtype not in EDITABLE:
            remedy = "Edit feed-forward layers, attention, norms, biases and embeddings alone" + (
                "." if one.dtype == other.dtype else f", and save {one.dtype}."
            )
            raise not_carried(edited, f"{name} differs from the base model's", remedy)
        old, new = one.values(), other.values()
        if own[0].role == "tied" and _HEAD in before:
            raise not_carried(
                edited, f"{name} differs, and the base model stores it twice", "Save the base model again."
            )
        for weight in own:
            start, end = weight_in(old, weight.stored), weight_in(new, weight.stored)
            if not weight.fits(start.shape, model):
                raise BakeoutError(f"{edited}: {name} has the shape {one.shape}.", "Name the model it was made from.")
            difference = end - start
            if not difference.any():
                continue
            if exact:
                update = _whole(weight, difference)
                if _unequal(update, start, end, one.dtype):
                    # Of float32 weights, a difference can need more digits than float32 has.
                    update = _whole(weight, difference, twice=True)
                _require_exact(edited, name, _unequal(update, start, end, one.dtype))
                figures = {"rank": update.count, "residual": 0.0}
            else:
                update, figures = _truncated(weight, difference * scale, energy)
            updates.append(update)
            read.append({"tensor": name, "role": weight.role, **figures})
    if not updates and not vectors:
        raise none_matched(edited, "the weights of its base model")
    updates.sort(key=lambda update: (update.layer, update.role))
    vectors.sort(key=lambda vector: (vector.layer, vector.parameter))
    files = [path for path in checkpoint_files(edited) if path.name != INDEX]
    of_weights = read_report("checkpoint pair", files, scale, read)
    of_vectors = reporting(of_weights, [{"tensor": vector.parameter, "elements": vector.count} for vector in vectors])
    return (
        *([LowRankUpdate(METHOD, tuple(updates), of_weights)] if updates else []),
        *([VectorUpdate(METHOD, tuple(vectors), of_vectors)] if vectors else []),
    )


def _places(model: ModelIdentity) -> dict[str, list[_Weight]]:
    """The weights of FFLs by the names of the tensors that they are in."""
    places: dict[str, list[_Weight]] = {}
    for layer, modules in enumerate(modules_of(model)):
        for role in _ROLES if modules.layout != "ungated" else _ROLES[:2]:
            stored = modules.weight(role, model.width_of(layer))
            places.setdefault(stored.name, []).append(_Weight(layer, role, stored))
    return places


def _names_in_model(names: Iterable[str], places: Mapping[str, list[_Weight]]) -> dict[str, str]:
    """What the model calls the tensors ``names``, which may lack the first part of that, all of them."""
    first = next((known.split(".", 1)[0] for known in places), None)
    is_whole = first is None or any(name.startswith(f"{first}.") for name in names)
    return {name: name if is_whole else f"{first}.{name}" for name in names}


def _weights_in(
    name: str, places: Mapping[str, list[_Weight]], lists: Collection[str], model: ModelIdentity
) -> list[_Weight]:
    """The weights that the tensor is which the model calls ``name``."""
    if name in places:
        return places[name]
    module = name.removesuffix(".weight")
    if module == name or (place := attention_weight(module)) is None:
        return []
    if lists and list_of_blocks(module) not in lists:
        return []
    return [_Weight(*place, stored_module(model, module), module)]


def _tensors(checkpoint: Path) -> Mapping[str, FileTensor]:
    tensors: dict[str, FileTensor] = {}
    for path in checkpoint_files(checkpoint):
        if path.name != INDEX:
            tensors |= read_tensors(path)
    return tensors


def _require_same_configuration(edited: Path, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Raise ``BakeoutError`` for an entry that has another value: a plan carries none.

    An entry that one of them leaves out has the value that transformers takes then.
    """
    before, after = with_rope_of_version_4(before), with_rope_of_version_4(after)
    for name in sorted((before.keys() & after.keys()) - _NAMES_ONLY):
        if before[name] != after[name]:
            raise not_carried(edited, f"its configuration has another `{name}`", "Name the model it was made from.")
    one_sided = (before.keys() ^ after.keys()) - _NAMES_ONLY
    if one_sided:
        complete_before, complete_after = (_complete(edited, config) for config in (before, after))
        for name in sorted(one_sided):
            if complete_before.get(name) != complete_after.get(name):
                raise not_carried(edited, f"its configuration has another `{name}`", "Name the model it was made from.")


def _is_tied(directory: Path) -> bool:
    """Whether the head is the embedding: some architectures leave the entry out where it is as they have it."""
    config = read_config(directory)
    entry = "tie_word_embeddings"
    return bool(config[entry] if entry in config else _complete(directory, config).get(entry, False))


def _complete(edited: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with what transformers takes for entries that are left out."""
    from transformers import AutoConfig

    try:
        complete: dict[str, Any] = AutoConfig.for_model(**config).to_dict()
    # Each architecture's own code checks its entries, in ways of its own.
    except Exception as error:  # noqa: BLE001
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BakeoutError(f"{edited}: its configuration cannot be read ({reason}).", "Save it again.") from None
    return complete


def _require_same_names(
    edited: Path, before: Mapping[str, FileTensor], after: Mapping[str, FileTensor], tied: bool
) -> None:
    for name in sorted(before.keys() ^ after.keys()):
        # Of tied weights, some tools write one, some both.
        if not (tied and name == _HEAD):
            which = "lacks" if name in before else "has"
            raise BakeoutError(f"{edited} {which} {name}, unlike the base model.", "Name the model it was made from.")


def _require_same_shape(edited: Path, one: FileTensor, other: FileTensor) -> None:
    if one.shape != other.shape:
        raise BakeoutError(
            f"{edited}: {one.name} has the shape {other.shape}, the base model's {one.shape}.",
            "Name the model it was made from.",
        )


def _are_equal(one: FileTensor, other: FileTensor) -> bool:
    """Whether two tensors hold the same, but for the rounding to the type that the other is stored in."""
    if one.dtype == other.dtype:
        return bool(np.array_equal(one.content(), other.content()))
    values = other.stored()
    return bool(np.array_equal(one.stored().astype(values.dtype), values))


def _truncated(weight: _Weight, difference: Floats, energy: float) -> tuple[WeightUpdate, dict[str, Any]]:
    left, sizes, right = np.linalg.svd(difference, full_matrices=False)
    held = np.cumsum(sizes**2) / np.sum(sizes**2)
    rank = min(int(np.searchsorted(held, energy - 1e-15)) + 1, len(sizes))
    root = np.sqrt(sizes[:rank])
    update = weight.update(
        np.ascontiguousarray(left[:, :rank] * root, np.float32),
        np.ascontiguousarray(root[:, None] * right[:rank], np.float32),
    )
    residual = float(np.sqrt(np.sum(sizes[rank:] ** 2) / np.sum(sizes**2)))
    return update, {"rank": rank, "residual": float(f"{residual:.3g}")}


def _whole(weight: _Weight, difference: Floats, *, twice: bool = False) -> WeightUpdate:
    """The difference times the identity, or, ``twice``, its float32 values and what these leave of it, side by side."""
    single = np.ascontiguousarray(difference, np.float32)
    terms = [single, (difference - single).astype(np.float32)] if twice else [single]
    rows, columns = single.shape
    if columns <= rows:
        identity = np.concatenate([np.eye(columns, dtype=np.float32)] * len(terms))
        return weight.update(np.concatenate(terms, axis=1), identity)
    identity = np.concatenate([np.eye(rows, dtype=np.float32)] * len(terms), axis=1)
    return weight.update(identity, np.concatenate(terms))


def _unequal(update: WeightUpdate, before: Floats, after: Floats, dtype: str) -> int:
    """How many elements baking, rounded as weights are stored, gives otherwise than the edited weight has them."""
    product = update.left.astype(np.float64) @ update.right.astype(np.float64)
    baked = (before + product).astype(np.float32).astype(EDITABLE[dtype]).astype(np.float64)
    return int((baked != after).sum())


def _require_exact(edited: Path, name: str, unequal: int) -> None:
    if unequal:
        raise BakeoutError(
            f"{edited}: {unequal} elements of {name} cannot be reached exactly from the base model's.",
            "Import it without `exact`; the residual is then in the report.",
        )
