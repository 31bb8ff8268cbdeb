"""Weight edits in a checkpoint's files: copied as they are, then the edited tensors overwritten, two at a time.

Needs neither torch nor transformers. Shapes, types and file names stay, so that whatever loaded the checkpoint loads
the result.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from bakeout.models.checkpoint.architectures import stored_weight
from bakeout.models.checkpoint.checkpoint_files import read_config, weight_files
from bakeout.models.checkpoint.weight_arithmetic import (
    EDITABLE,
    PlannedChange,
    change_with_receipt,
    one_blas_thread,
    planned_changes,
)
from bakeout.models.errors import BakeoutError
from bakeout.models.files.hashing import hash_file
from bakeout.models.files.reading import parse_json, read_regular
from bakeout.models.plan import Plan, StoredWeight
from bakeout.models.plan.receipt import Receipt

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_LENGTH = 8
# How many tensors are edited at a time.
AT_ONCE = 2
# From the name of a list of blocks on: "layers.7." in a tensor's name.
_BLOCK = re.compile(r"\w+\.\d+\.")
# What quantisers store beside, or instead of, a linear layer's ``weight``.
_QUANTISED = ("qweight", "weight_packed", "weight_scale", "weight_scale_inv", "SCB", "scales", "weight_blocks")


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: its file (relative to the checkpoint), and from which byte on. ``dtype`` as safetensors."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        """In bytes. For types that can be edited alone."""
        return int(EDITABLE[self.dtype].itemsize) * math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class TensorEdit:
    """A tensor and what becomes of it: changes in the plan's order, each with the part of the tensor that it is of."""

    tensor: StoredTensor
    changes: tuple[tuple[StoredWeight, PlannedChange], ...]


def find_edits(checkpoint: Path, plan: Plan) -> tuple[TensorEdit, ...]:
    """The tensors that ``plan`` edits, in the order of their places in the files. No weight is read.

    Raises ``BakeoutError`` where the checkpoint is of an unknown architecture or quantised, and where one of the
    tensors is absent, of another shape, or of a type that cannot be edited.
    """
    config = read_config(checkpoint)
    if "quantization_config" in config:
        raise _quantised(str(checkpoint))
    # A multimodal model names its text decoder's architecture one level down.
    levels = (config, *(value for value in config.values() if isinstance(value, dict)))
    if plan.model.architecture not in [level.get("model_type") for level in levels]:
        raise BakeoutError(
            f"{checkpoint} has the architecture {config.get('model_type')!r}, the plan {plan.model.architecture!r}.",
            "Bake into the checkpoint that the plan was fitted on.",
        )
    tensors = _tensors(checkpoint)
    changes: dict[str, list[tuple[StoredWeight, PlannedChange]]] = {}
    for planned in planned_changes(plan.interventions):
        stored = stored_weight(plan.model, planned.change)
        tensor = _tensor(stored.name, tensors, checkpoint)
        _require_fit(tensor, stored, planned, plan)
        changes.setdefault(tensor.name, []).append((stored, planned))
    edits = [TensorEdit(tensors[name], tuple(of_tensor)) for name, of_tensor in changes.items()]
    return tuple(sorted(edits, key=lambda edit: (edit.tensor.file, edit.tensor.start)))


def checkpoint_files(checkpoint: Path) -> list[Path]:
    """The files that transformers reads the weights from: ``model.safetensors``, or an index and its shards.

    Others, as the ``consolidated.safetensors`` that some repositories hold beside, are left out: they hold the weights
    once more, and nobody would edit them. Raises ``BakeoutError`` where a file is missing or damaged.
    """
    present = {path.name: path for path in weight_files(checkpoint)}
    if SINGLE in present:
        return [present[SINGLE]]
    index = checkpoint / INDEX
    shards = sorted(set(_weight_map(index).values()))
    if missing := [name for name in shards if name not in present]:
        raise BakeoutError(f"{index} names {missing[0]}, which is missing.", "Copy the checkpoint again.")
    return [index, *(present[name] for name in shards)]


def tensor_digests(checkpoint: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 (hex) of the bytes of those of the tensors ``names`` that the checkpoint holds."""
    digests = {}
    tensors = _tensors(checkpoint)
    for name in names:
        if (tensor := tensors.get(name)) is not None and tensor.dtype in EDITABLE:
            content = np.fromfile(checkpoint / tensor.file, dtype=np.uint8, count=tensor.size, offset=tensor.start)
            digests[name] = hashlib.sha256(content.data).hexdigest()
    return digests


def parameter_count(checkpoint: Path) -> int:
    """How many numbers the weights of a checkpoint are."""
    return sum(math.prod(tensor.shape) for tensor in _tensors(checkpoint).values())


@one_blas_thread()
def write_checkpoint(
    checkpoint: Path,
    edits: Sequence[TensorEdit],
    directory: Path,
    copy: Callable[[Path, Path], None],
    track: Callable[[Iterable[Path], str, int], Iterable[Path]],
) -> tuple[list[Receipt], dict[str, str]]:
    """Write the weights of ``checkpoint``, edited, into ``directory``.

    Gives a receipt for every change, in the plan's order, and the SHA-256 of the edited files, by name.

    ``copy`` copies one file to another path. Files without an edit are copied and no more; in the others, the bytes of
    the edited tensors are replaced, and no others. While a file is copied, the one before it is edited, two tensors at
    a time, and the one before that is hashed.
    """
    files = checkpoint_files(checkpoint)
    receipts: list[Receipt] = []
    digests: dict[str, Future[str]] = {}
    pool = ThreadPoolExecutor(AT_ONCE)

    def hash_once_edited(path: Path, edited: Iterable[Future[list[Receipt]]]) -> None:
        of_file = [receipt for tensor in edited for receipt in tensor.result()]
        receipts.extend(of_file)
        if of_file:
            digests[path.name] = pool.submit(hash_file, path)

    try:
        last: tuple[Path, list[Future[list[Receipt]]]] | None = None
        for source in track(files, "writing the weights", len(files)):
            path = directory / source.name
            copy(source, path)
            edited = [pool.submit(_edit_tensor, path, edit) for edit in edits if edit.tensor.file == path.name]
            if last is not None:
                hash_once_edited(*last)
            last = path, edited
        if last is not None:
            hash_once_edited(*last)
        return _in_order(receipts), {name: digest.result() for name, digest in digests.items()}
    finally:
        pool.shutdown(cancel_futures=True)


@one_blas_thread()
def preview_edits(checkpoint: Path, edits: Sequence[TensorEdit]) -> list[Receipt]:
    """The receipts that ``write_checkpoint`` will give. Only the edited tensors are read, and nothing is written."""
    receipts = []
    for edit in edits:
        with (checkpoint / edit.tensor.file).open("rb") as file:
            receipts += _edited(file, edit)[1]
    return _in_order(receipts)


def _edit_tensor(path: Path, edit: TensorEdit) -> list[Receipt]:
    with path.open("r+b") as file:
        values, receipts = _edited(file, edit)
        file.seek(edit.tensor.start)
        file.write(values.data)
    return receipts


def _edited(file: BinaryIO, edit: TensorEdit) -> tuple[NDArray[np.uint8], list[Receipt]]:
    """The bytes of a tensor after its edits, and a receipt for each."""
    tensor = edit.tensor
    content = np.fromfile(file, dtype=np.uint8, count=tensor.size, offset=tensor.start)
    values = content.view(EDITABLE[tensor.dtype]).reshape(tensor.shape)
    receipts: list[Receipt] = []
    for stored, planned in edit.changes:
        receipt = change_with_receipt(
            weight_in(values, stored),
            planned,
            stored=values,
            node=tensor.file,
            tensor=tensor.name,
            before=receipts[-1].after if receipts else None,
        )
        receipts.append(receipt)
    return content, receipts


def _in_order(receipts: Iterable[Receipt]) -> list[Receipt]:
    return sorted(receipts, key=lambda receipt: (receipt.intervention, receipt.layer, receipt.detail["role"]))


def weight_in(values: NDArray[Any], stored: StoredWeight) -> NDArray[Any]:
    """The weight W [out, in] in the tensor that it is stored in: a view. A vector [n] is one [n, 1]."""
    own = values if stored.slot is None else values[stored.slot]
    if own.ndim == 1:
        return own[:, None]
    weight = own.T if stored.transposed else own
    return weight if stored.rows is None else weight[slice(*stored.rows)]


def _tensors(checkpoint: Path) -> dict[str, StoredTensor]:
    stored: dict[str, StoredTensor] = {}
    for path in checkpoint_files(checkpoint):
        if path.name != INDEX:
            tensors = _tensors_in(path)
            if twice := sorted(stored.keys() & tensors.keys()):
                raise BakeoutError(
                    f"{checkpoint} holds {twice[0]} in two files, {stored[twice[0]].file} and {path.name}.",
                    "Save the model with save_pretrained.",
                )
            stored.update(tensors)
    return stored


def _tensors_in(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file, whose header safetensors has found to be sound."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH), "little")
        header: dict[str, Any] = parse_json(file.read(length))
    return {
        name: StoredTensor(
            name, path.name, entry["dtype"], tuple(entry["shape"]), _LENGTH + length + entry["data_offsets"][0]
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _weight_map(index: Path) -> Mapping[str, str]:
    if not index.is_file():
        raise BakeoutError(
            f"{index.parent} holds neither {SINGLE} nor {INDEX}, so there is no telling which weights are loaded.",
            "Save the model with save_pretrained.",
        )
    try:
        weight_map = parse_json(read_regular(index))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError):
        weight_map = None
    if not isinstance(weight_map, dict) or not all(map(_is_file_name, weight_map.values())):
        raise BakeoutError(f"{index} is not an index of shards.", "Copy the checkpoint again.")
    return weight_map


def _is_file_name(name: Any) -> bool:
    """Whether this names a shard beside its index, and leads nowhere else."""
    return isinstance(name, str) and name not in ("", ".", "..") and not {"/", "\\", "\0"} & set(name)


def _tensor(name: str, tensors: Mapping[str, StoredTensor], checkpoint: Path) -> StoredTensor:
    """The tensor ``name``, or what it is called in a checkpoint that was saved without the language model's head.

    A multimodal model's checkpoint may call its text decoder otherwise than the model does: there, the only tensor
    whose name ends as this one's does from its list of blocks on.
    """
    block = _BLOCK.search(name)
    endings = [key for key in tensors if block and key.endswith(f".{name[block.start() :]}")]
    for candidate in (name, name.split(".", 1)[1], *(endings if len(endings) == 1 else ())):
        if candidate in tensors:
            return tensors[candidate]
        module = candidate.removesuffix(".weight")
        if any(f"{module}.{suffix}" in tensors for suffix in _QUANTISED):
            raise _quantised(f"{checkpoint}: {module}")
    raise BakeoutError(
        f"{checkpoint} holds no tensor {name}, which the plan edits.", "Bake the plan into the model it was fitted on."
    )


def _require_fit(tensor: StoredTensor, stored: StoredWeight, planned: PlannedChange, plan: Plan) -> None:
    if tensor.dtype not in EDITABLE:
        if tensor.dtype.startswith(("F64", "C")):
            raise BakeoutError(
                f"{tensor.name} is stored as {tensor.dtype}; {', '.join(EDITABLE)} can be edited.",
                "Save the model in one of these types.",
            )
        raise _quantised(f"{tensor.name} ({tensor.dtype})")
    shape = tensor.shape if stored.slot is None else tensor.shape[1:]
    shape = (*shape, 1) if len(shape) == 1 else shape
    shape = shape[::-1] if stored.transposed else shape
    if stored.rows is not None:
        width = plan.model.width_of(planned.change.layer)
        if len(shape) != 2 or shape[0] != 2 * width:
            raise BakeoutError(
                f"{tensor.name} has the shape {tensor.shape}: not gate and up of {width} neurons each.",
                "Bake the plan into the model it was fitted on.",
            )
        shape = (width, shape[1])
    planned.require_shape(shape)


def _quantised(what: str) -> BakeoutError:
    return BakeoutError(
        f"{what} is quantised: a small change of its weights would be lost, and what was forgotten could stay.",
        "Bake into the unquantised checkpoint, then quantise, and measure again what is forgotten.",
    )
