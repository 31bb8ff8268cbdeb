"""GGUF files as checkpoints: dequantised through transformers once, and kept where caches are.

The tokenizer that transformers makes of a GGUF file has the wrong end-of-text token, and begins texts as its class does
rather than as the file says: both are set as the file has them.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bakeout.models.checkpoint.gguf.gguf_header import GgufHeader, read_gguf_header
from bakeout.models.checkpoint.gguf.gguf_rope import FACTORS, rope_scaling, scale_positions
from bakeout.models.checkpoint.gguf.gguf_tokenizer import as_file_says
from bakeout.models.errors import BakeoutError
from bakeout.models.files.hashing import hash_file
from bakeout.models.files.json_object import read_json
from bakeout.models.files.writing import new_directory, scratch_directory

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# Beside the weights: which file they come from.
SOURCE = "gguf.json"
# Of what is kept: a new one whenever the same file gives another checkpoint.
_FORM = 6
_LOG = logging.getLogger("bakeout")
# Metadata that changes what is computed, and the configuration's name for it; 0 leaves each of them as it is, and so
# does what is given here. transformers reads some of them, for some architectures.
_COMPUTED: Mapping[str, tuple[str | None, float]] = {
    "attention.clamp_kqv": (None, 0),
    "attention.max_alibi_bias": (None, 0),
    "attention.sliding_window": ("sliding_window", 0),
    "attn_logit_softcapping": ("attn_logit_softcapping", 0),
    "embedding_scale": (None, 1),
    "final_logit_softcapping": ("final_logit_softcapping", 0),
    "logit_scale": (None, 1),
    "residual_scale": (None, 1),
    "rope.freq_base": ("rope_theta", 10000),
}
# Metadata that transformers (4.57) leaves out of these architectures, and computes by where their configuration has it:
# its name there. llama.cpp ignores Phi-3's window today; the original model has it.
_SETTABLE: Mapping[str, Mapping[str, str]] = {
    "phi3": {"attention.sliding_window": "sliding_window"},
    "starcoder2": {"rope.freq_base": "rope_theta"},
}
# What the libraries raise for files of unexpected content.
_UNREADABLE = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    OSError,
    ArithmeticError,
    AssertionError,
)


def find_gguf(path: Path) -> Path:
    """The file that ``path`` is, or the only one in the directory. Raises ``BakeoutError`` for several."""
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.gguf"))
    if len(files) != 1:
        raise BakeoutError(
            f"{path} holds {len(files)} GGUF files: {', '.join(file.name for file in files)}.", "Name one of them."
        )
    return files[0]


def gguf_checkpoint(path: Path) -> Path:
    """The directory of the checkpoint that a GGUF file makes, in float32: converted, or kept from an earlier time.

    It is kept by the file's content, in ``cache_directory``. Raises ``BakeoutError`` for a damaged file, an
    architecture that transformers does not read from GGUF, a quantisation that gguf does not read, and transformers 5;
    ``ModuleNotFoundError`` where gguf is not installed.
    """
    header = read_gguf_header(path)
    _require_readable(path, header)
    digest = hash_file(path)
    target = cache_directory() / "gguf" / f"{digest[:32]}-{_FORM}"
    if not (target / SOURCE).is_file():
        _require_reader(path)
        _LOG.info(f"Converting {path} to a checkpoint, once: {target}")
        try:
            with new_directory(target) as directory:
                _convert(path, header, directory)
                source = json.dumps(_lineage(header, digest), indent=2, sort_keys=True, ensure_ascii=False)
                (directory / SOURCE).write_text(source + "\n", encoding="utf-8")
        except BakeoutError:
            # Another process may have been faster.
            if not (target / SOURCE).is_file():
                raise
    return target


def _require_reader(path: Path) -> None:
    """Raise ``BakeoutError`` beside transformers 5, which does not save what it loads from GGUF (read in 5.24)."""
    from transformers import __version__

    if int(__version__.partition(".")[0]) >= 5:
        raise BakeoutError(
            f"{path} cannot be converted beside transformers {__version__}.",
            "Convert it beside transformers 4.57 (the extra `gguf` brings it), or name the original checkpoint.",
        )


def gguf_source(directory: Path) -> dict[str, Any]:
    """Which GGUF file a checkpoint was made of; empty for others."""
    return read_json(directory / SOURCE)


def cache_directory() -> Path:
    """Where what can be made again is kept: ``BAKEOUT_CACHE``, or ``bakeout`` among the user's caches."""
    if named := os.environ.get("BAKEOUT_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bakeout"


def _lineage(header: GgufHeader, digest: str) -> dict[str, Any]:
    from gguf import GGMLQuantizationType

    kinds = Counter(GGMLQuantizationType(tensor.quantisation).name for tensor in header.tensors.values())
    known = {key: header.text(f"general.{key}") for key in ("name", "license", "architecture")}
    return {
        "format": "gguf",
        "sha256": digest,
        "quantisation": dict(sorted(kinds.items())),
        **{key: value for key, value in known.items() if value is not None},
    }


def _require_readable(path: Path, header: GgufHeader) -> None:
    """Raise ``BakeoutError`` unless architecture and quantisations are read, and every tensor's data are there."""
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    architecture = header.text("general.architecture")
    if architecture not in GGUF_SUPPORTED_ARCHITECTURES:
        raise BakeoutError(
            f"{path} holds the architecture {architecture}, which transformers does not read from GGUF.",
            "Name the model's safetensors checkpoint.",
        )
    parts = header.metadata.get("split.count", 0)
    if not isinstance(parts, int):
        raise BakeoutError(f"{path} names {parts!r} as the number of its parts.", "Copy it again.")
    if parts > 1:
        raise BakeoutError(f"{path} is a part of a model.", "Join the parts with llama.cpp's `gguf-split --merge`.")
    readable: dict[int, tuple[int, int]] = {}
    for name, tensor in header.tensors.items():
        if tensor.quantisation not in readable:
            try:
                kind = GGMLQuantizationType(tensor.quantisation)
                readable[tensor.quantisation] = GGML_QUANT_SIZES[kind]
                if kind not in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
                    dequantize(np.zeros((1, readable[tensor.quantisation][1]), dtype=np.uint8), kind)
            except (ValueError, KeyError, NotImplementedError):
                raise BakeoutError(
                    f"{path}: {name} is quantised in a way that is not read (type {tensor.quantisation}).",
                    "Name a file in another quantisation, or the model's safetensors checkpoint.",
                ) from None
        block, size = readable[tensor.quantisation]
        if header.data + tensor.offset + tensor.elements // block * size > header.size:
            raise BakeoutError(f"{path} is not a whole GGUF file (the data of {name} are cut short).", "Copy it again.")


def _convert(path: Path, header: GgufHeader, directory: Path) -> None:
    with scratch_directory() as scratch:
        # Transformers first looks for this name where the process works: none lies there that is called so.
        link = scratch / f"{scratch.name}.gguf"
        link.symlink_to(path.resolve())
        try:
            # A bar for people, and warnings about what is set right below.
            with contextlib.redirect_stderr(io.StringIO()), _quiet():
                model, tokenizer = _loaded(path, header, link)
        except _UNREADABLE as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise BakeoutError(
                f"{path} cannot be dequantised by transformers ({reason}).", "Name the model's safetensors checkpoint."
            ) from None
        _settle(model, tokenizer, header, path)
        model.save_pretrained(directory, safe_serialization=True)
        # Where it is not written down, transformers says on every load that it does as it always did.
        if hasattr(tokenizer, "legacy"):
            tokenizer.init_kwargs["legacy"] = tokenizer.legacy
        tokenizer.save_pretrained(directory)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Transformers says nothing but errors."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


def _loaded(path: Path, header: GgufHeader, link: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model and the tokenizer as transformers reads them; every tensor of the file must be a weight, and back."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.modeling_gguf_pytorch_utils import get_gguf_hf_weights_map

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        link.parent, gguf_file=link.name, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    model, loading = loaded
    if missing := sorted(loading["missing_keys"]):
        raise BakeoutError(
            f"{path} lacks {len(missing)} of the model's weights, among them {missing[0]}.", "Copy it again."
        )
    _set_left_out(header, model.config)
    _require_computed(path, header, model.config)
    _require_rotated(path, header, model)
    if (scaling := rope_scaling(path, header)) is not None:
        scale_positions(model.config, scaling)
    known = {*get_gguf_hf_weights_map(model), FACTORS}
    if unknown := sorted(name for name in header.tensors if name not in known):
        raise BakeoutError(
            f"{path} holds {unknown[0]}, which transformers would leave out without a word.",
            "Name the model's safetensors checkpoint.",
        )
    # With its configuration given, no class is guessed from the directory's name.
    tokenizer = AutoTokenizer.from_pretrained(
        link.parent, gguf_file=link.name, config=model.config, local_files_only=True
    )
    return model, as_file_says(tokenizer, header, path)


def _set_left_out(header: GgufHeader, config: Any) -> None:
    """Write metadata that transformers leaves out (``_SETTABLE``) into the configuration; no weight depends on it."""
    architecture = header.text("general.architecture") or ""
    for key, name in _SETTABLE.get(architecture, {}).items():
        value = header.metadata.get(f"{architecture}.{key}")
        # A number of another type than the configuration's is refused (``_require_computed``); 0 stands for none.
        own = int if name == "sliding_window" else float
        if isinstance(value, own) and not isinstance(value, bool) and 0 < value < math.inf:
            setattr(config, name, value)


def _require_computed(path: Path, header: GgufHeader, config: Any) -> None:
    """Raise ``BakeoutError`` for metadata by which llama.cpp computes otherwise than ``config`` has it."""
    prefix = f"{header.text('general.architecture')}."
    as_computed = {key: (0, neutral, getattr(config, name or "", None)) for key, (name, neutral) in _COMPUTED.items()}
    if f"{prefix}attention.scale" in header.metadata:
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        as_computed["attention.scale"] = (0, getattr(config, "query_pre_attn_scalar", size) ** -0.5, None)
    if (context := header.metadata.get(f"{prefix}context_length")) is not None:
        # A window that nothing leaves.
        window = header.metadata.get(f"{prefix}attention.sliding_window")
        if isinstance(window, int) and isinstance(context, int) and window >= context:
            del as_computed["attention.sliding_window"]
    for key, known in as_computed.items():
        value = header.metadata.get(prefix + key)
        if value is not None and not any(own is not None and _is_close(value, own) for own in known):
            raise BakeoutError(
                f"{path} has {prefix}{key} = {value}, which transformers would leave out without a word.",
                "Name the model's safetensors checkpoint.",
            )


def _require_rotated(path: Path, header: GgufHeader, model: PreTrainedModel) -> None:
    """Raise ``BakeoutError`` where the file rotates another part of each head by its position than ``model``."""
    key = f"{header.text('general.architecture')}.rope.dimension_count"
    rotated = {2 * len(buffer) for name, buffer in model.named_buffers() if name.endswith("inv_freq")}
    if rotated and header.metadata.get(key, 0) not in (0, *rotated):
        raise BakeoutError(
            f"{path} has {key} = {header.metadata[key]}, and transformers would take {max(rotated)}.",
            "Name the model's safetensors checkpoint.",
        )


def _is_close(value: Any, number: float) -> bool:
    return isinstance(value, int | float) and math.isclose(value, number, rel_tol=1e-5)


def _settle(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, header: GgufHeader, path: Path) -> None:
    """Set what begins, ends and pads texts everywhere as the file has it."""
    model.config.name_or_path = ""
    settings = model.generation_config
    assert settings is not None
    named = {role: header.token(name) for role, name in _ROLES.items()}
    for role, token in {**named, "eot_token": header.token("eot")}.items():
        if token is not None and token >= len(tokenizer):
            raise BakeoutError(f"{path} names {token} as {role}, and has {len(tokenizer)} tokens.", "Copy it again.")
    for role, token in named.items():
        if token is None:
            continue
        setattr(tokenizer, role, tokenizer.convert_ids_to_tokens(token))
        setattr(model.config, f"{role}_id", token)
        setattr(settings, f"{role}_id", token)
    # Chat models may end a turn with another token than a text.
    ends = [token for token in (header.token("eos"), header.token("eot")) if token is not None]
    if len(set(ends)) > 1:
        settings.eos_token_id = ends
    begins = header.metadata.get("tokenizer.ggml.add_bos_token")
    if isinstance(begins, bool) and tokenizer.bos_token_id is not None:
        _set_beginning(tokenizer, begins)


_ROLES = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}


def _set_beginning(tokenizer: Any, begins: bool) -> None:
    """Let texts begin with the beginning-of-text token, or not."""
    from tokenizers.processors import ByteLevel, TemplateProcessing

    def does_begin() -> bool:
        return bool(tokenizer.encode("a")[:1] == [tokenizer.bos_token_id])

    if hasattr(tokenizer, "add_bos_token"):
        tokenizer.add_bos_token = begins
        tokenizer.update_post_processor()
    if does_begin() != begins:
        begin = tokenizer.bos_token
        tokenizer.backend_tokenizer.post_processor = (
            TemplateProcessing(
                single=f"{begin} $A",
                pair=f"{begin} $A {begin} $B",
                special_tokens=[(begin, tokenizer.bos_token_id)],
            )
            if begins
            else ByteLevel(trim_offsets=False)
        )
