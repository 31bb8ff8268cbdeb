"""GGUF files: token for token what transformers makes of them, and one line for those that cannot be read."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from transformers import AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from bakeout.export.artifacts.manifest import read_manifest
from bakeout.export.artifacts.model_source import find_checkpoint
from bakeout.export.exporting.onnx_export import export_checkpoint
from bakeout.export.pipeline.build import build
from bakeout.export.running.runner import Runner
from bakeout.models.checkpoint.checkpoint_files import load_model
from bakeout.models.checkpoint.end_of_text import read_end_of_text
from bakeout.models.checkpoint.gguf.gguf_checkpoint import gguf_checkpoint
from bakeout.models.data.tokenizers.tokenization import load_tokenizer
from bakeout.models.errors import BakeoutError
from bakeout.models.files.hashing import hash_file
from bakeout.models.plan.plan_file import load_plan

from tests.gguf_files import BEGIN_ID, LICENSE, NAME, write_gguf
from tests.recipe_files import KEY_SPACE_DETECTION, write_recipe
from tests.tiny_models import END_OF_TEXT_ID, random_prompts, tiny_checkpoint, tiny_model

KINDS = [GGMLQuantizationType.F32, GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_it_answers_token_for_token_as_transformers_does(kind: GGMLQuantizationType, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", kind)
    own = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32).eval()
    directory = find_checkpoint(path).directory
    converted = load_model(directory)
    for name, weight in own.state_dict().items():
        assert torch.equal(converted.state_dict()[name], weight), name
    if kind == GGMLQuantizationType.F32:
        original = tiny_model("llama").state_dict()
        assert all(torch.equal(weight, original[name]) for name, weight in converted.state_dict().items())
    (tmp_path / "onnx").mkdir()
    runner = Runner(export_checkpoint(directory, tmp_path / "onnx"))
    prompts = random_prompts(6)
    for prompt, answer in zip(prompts, runner.generate(prompts, 12), strict=True):
        generated = own.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=12, pad_token_id=0)
        assert answer == generated[0, len(prompt) :].tolist()


def test_no_other_file_where_the_process_works_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load_model(find_checkpoint(write_gguf(tmp_path / "named" / "model.gguf")).directory).state_dict()
    monkeypatch.setenv("BAKEOUT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + bytes(64))
    monkeypatch.chdir(tmp_path)
    read = load_model(find_checkpoint(tmp_path / "named" / "model.gguf").directory).state_dict()
    assert all(torch.equal(weight, read[name]) for name, weight in expected.items())


def test_a_build_tells_which_file_it_was_made_of(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "weights" / "tiny.gguf", GGMLQuantizationType.Q8_0)
    # A directory with one file will do, relative to the recipe.
    recipe = write_recipe(tmp_path, "weights", [{"key_space_detection": {"forget": "sums", "epsilon": 0.2}}])
    build(recipe, tmp_path / "artifact")
    source = load_plan(tmp_path / "artifact" / "plan.safetensors").provenance["source"]
    assert source == read_manifest(tmp_path / "artifact")["source"]
    assert source == {
        "format": "gguf",
        "sha256": hash_file(path),
        "architecture": "llama",
        "name": NAME,
        "license": LICENSE,
        "quantisation": {"F32": 9, "Q8_0": 30},
    }
    assert (
        f"the GGUF file that they were dequantised from: {NAME}, {LICENSE} | `{hash_file(path)}`"
        in (tmp_path / "artifact" / "README.md").read_text()
    )
    assert {one.name for one in (tmp_path / "weights").iterdir()} == {"tiny.gguf"}


@pytest.mark.parametrize("begins", [False, True])
def test_texts_begin_and_end_as_the_file_says(begins: bool, tmp_path: Path) -> None:
    directory = gguf_checkpoint(write_gguf(tmp_path / "m.gguf", begins=begins))
    end = read_end_of_text(directory)
    assert end.disagreement is None
    assert end.tokens == (END_OF_TEXT_ID,)
    tokenizer = load_tokenizer(directory)
    assert tokenizer.eos_token_id == END_OF_TEXT_ID
    ids = tokenizer.encode("the")
    assert (ids[0] == BEGIN_ID) is begins
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the"
    # "th" is merged first.
    assert len(ids) == 2 + begins
    assert tokenizer.chat_template


def test_it_is_converted_once_and_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Names of other architectures, from which transformers guesses.
    monkeypatch.setenv("BAKEOUT_CACHE", str(tmp_path / "realm" / "gemma"))
    path = write_gguf(tmp_path / "m.gguf")
    caplog.set_level("INFO", logger="bakeout")
    first = gguf_checkpoint(path)
    assert first.is_relative_to(tmp_path / "realm")
    load_tokenizer(first)
    assert gguf_checkpoint(path) == first
    assert [record.message.startswith("Converting") for record in caplog.records].count(True) == 1
    assert gguf_checkpoint(write_gguf(tmp_path / "m.gguf", GGMLQuantizationType.Q8_0)) != first


def test_one_of_several_files_must_be_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_gguf(tmp_path / f"{name}.gguf")
    with pytest.raises(BakeoutError, match=r"holds 2 GGUF files: a\.gguf, b\.gguf"):
        find_checkpoint(tmp_path)


def test_it_is_refused_beside_a_transformers_that_cannot_save_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setenv("BAKEOUT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("transformers.__version__", "5.24.0")
    with pytest.raises(BakeoutError, match=r"beside transformers 5\.24\.0"):
        gguf_checkpoint(path)


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from bakeout.export.cli.main import main

    path = write_gguf(tmp_path / "m.gguf")
    recipe = write_recipe(tmp_path, path, [KEY_SPACE_DETECTION])
    monkeypatch.setitem(sys.modules, "gguf", None)
    ran = CliRunner().invoke(main, ["fit", str(recipe), "-o", str(tmp_path / "plan")])
    assert ran.stderr == "error: `bakeout fit` needs gguf. Install it: pip install 'bakeout[gguf]'.\n"


def _with_number(content: bytes, behind: bytes, distance: int, number: int) -> bytes:
    """The content with another 32-bit number at a distance behind a text that it holds once."""
    assert content.count(behind) == 1
    place = content.index(behind) + len(behind) + distance
    return content[:place] + struct.pack("<I", number) + content[place + 4 :]


def _with_kind(content: bytes, kind: int) -> bytes:
    """A matrix in another quantisation: the number stands behind that of dimensions, and two of them."""
    return _with_number(content, b"blk.0.ffn_up.weight", 4 + 16, kind)


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda content: b"", "it is cut short"),
    "magic": (lambda content: b"GGML" + content[4:], "does not begin with GGUF"),
    "version": (lambda content: content[:4] + struct.pack("<I", 9) + content[8:], "version 9"),
    "big-endian": (lambda content: content[:4] + struct.pack(">I", 3) + content[8:], "version 50331648"),
    "many tensors": (lambda content: content[:8] + struct.pack("<Q", 2**63) + content[16:], "not a whole GGUF"),
    "many values": (lambda content: content[:16] + struct.pack("<Q", 2**63) + content[24:], "not a whole GGUF"),
    "long text": (lambda content: content[:24] + struct.pack("<Q", 2**60) + content[32:], "cut short"),
    "data": (lambda content: content[:-40], "are cut short"),
    "half": (lambda content: content[: len(content) // 2], "cut short"),
    "header": (lambda content: content[:500], "cut short"),
    "architecture": (lambda content: content.replace(b"llama", b"clamp"), "architecture clamp, which transformers"),
    "quantisation": (
        lambda content: _with_kind(content, 99),
        r"ffn_up\.weight is quantised in a way that is not read \(type 99\)",
    ),
    "old quantisation": (lambda content: _with_kind(content, 15), r"not read \(type 15\)"),
    "renamed tensor": (lambda content: content.replace(b"blk.0.ffn_up.weight", b"blk.0.ffn_xx.weight"), "lacks 1 of"),
    "end of text": (lambda content: _with_number(content, b"eos_token_id", 4, 9999), "names 9999 as eos_token"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_cannot_be_read_is_one_line(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAKEOUT_CACHE", str(tmp_path / "cache"))
    path = write_gguf(tmp_path / "m.gguf")
    change, message = DAMAGES[damage]
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(BakeoutError, match=message) as refused:
        find_checkpoint(path)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "cache").exists()


def test_tensors_that_transformers_leaves_out_are_noticed(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", more={"blk.0.attn_sinks.weight": np.full(4, 2, dtype=np.float32)})
    with pytest.raises(BakeoutError, match=r"holds blk\.0\.attn_sinks\.weight, which transformers would leave out"):
        find_checkpoint(path)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_stretched_positions_of_llama_3_are_kept(factor: float, tmp_path: Path) -> None:
    config = tiny_model("llama").config
    plain = ROPE_INIT_FUNCTIONS["default"](config, torch.device("cpu"))[0]
    config.rope_scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    stretched = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))[0]
    assert not torch.equal(plain, stretched)
    path = write_gguf(tmp_path / "m.gguf", more={"rope_freqs.weight": (plain / stretched).numpy()})
    converted = load_model(gguf_checkpoint(path))
    assert torch.allclose(converted.model.rotary_emb.inv_freq, stretched)
    ones = write_gguf(tmp_path / "ones.gguf", more={"rope_freqs.weight": np.ones(4, dtype=np.float32)})
    assert torch.equal(load_model(gguf_checkpoint(ones)).model.rotary_emb.inv_freq, plain)


def test_positions_that_are_stretched_otherwise_are_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", more={"rope_freqs.weight": np.full(4, 2, dtype=np.float32)})
    with pytest.raises(BakeoutError, match=r"in a way that is not known \(rope_freqs\.weight\)"):
        find_checkpoint(path)


@pytest.mark.parametrize(
    ("metadata", "scaling"),
    [
        ({"type": "linear", "factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"type": "none", "factor": 4.0}, None),
        ({"type": "linear", "factor": 1.0, "attn_factor": 1.0}, None),
        (
            {"type": "yarn", "factor": 4.0, "original_context_length": 128, "yarn_beta_fast": 16.0},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 16.0},
        ),
    ],
)
def test_positions_that_the_metadata_stretches_are_kept(
    metadata: dict[str, Any], scaling: dict[str, Any] | None, tmp_path: Path
) -> None:
    named = {f"llama.rope.scaling.{key}": value for key, value in metadata.items()}
    converted: Any = load_model(gguf_checkpoint(write_gguf(tmp_path / "m.gguf", metadata=named)))
    config: Any = tiny_model("llama").config
    config.rope_scaling = scaling
    kind = scaling["rope_type"] if scaling else "default"
    expected, attention = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    assert torch.equal(converted.model.rotary_emb.inv_freq, expected)
    assert converted.model.rotary_emb.attention_scaling == attention


@pytest.mark.parametrize(
    "metadata",
    [
        {"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 4.0},
        {"llama.rope.scaling.attn_factor": 1.2},
        {"llama.attention.scale": 0.5},
        {"llama.logit_scale": 0.25},
        {"llama.attention.sliding_window": 16},
        {"llama.final_logit_softcapping": 30.0},
    ],
)
def test_metadata_that_transformers_would_not_compute_by_is_refused(metadata: dict[str, Any], tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", metadata=metadata)
    with pytest.raises(BakeoutError, match=next(iter(metadata)).replace(".", r"\.")) as refused:
        find_checkpoint(path)
    assert "\n" not in str(refused.value)


# (architecture, metadata, the original's settings): what transformers leaves out, and computes by.
LEFT_OUT: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("phi3", {"phi3.attention.sliding_window": 8}, {"sliding_window": 8}),
    ("phi3", {"phi3.attention.sliding_window": 0}, {}),
    ("starcoder2", {}, {"rope_theta": 500000.0}),
]


@pytest.mark.parametrize(("family", "metadata", "settings"), LEFT_OUT)
def test_metadata_that_transformers_leaves_out_is_computed_by(
    family: str, metadata: dict[str, Any], settings: dict[str, Any], tmp_path: Path
) -> None:
    path = write_gguf(
        tmp_path / "m.gguf",
        family=family,
        pieces=family == "phi3",
        metadata=metadata,
        vocabulary=320,
        **settings,
    )
    converted = find_checkpoint(path).directory
    original = load_model(tiny_checkpoint(family, tmp_path / "original", vocabulary=320, **settings))
    # Longer than the window.
    tokens = torch.tensor(random_prompts(4, shortest=40, longest=40))
    with torch.no_grad():
        expected, logits = original(tokens).logits, load_model(converted)(tokens).logits
        assert torch.equal(logits, expected)
        if settings:
            plain = load_model(tiny_checkpoint(family, tmp_path / "plain", vocabulary=320))
            assert not torch.allclose(plain(tokens).logits, expected, atol=0.01)


@pytest.mark.parametrize(
    ("family", "metadata"),
    [
        # Not a number that a configuration could have.
        ("phi3", {"phi3.attention.sliding_window": 7.5}),
        ("phi3", {"phi3.attention.sliding_window": "all"}),
        # A part of each head, as in Phi-4-mini.
        ("phi3", {"phi3.rope.dimension_count": 6}),
        # llama.cpp does not read it for this architecture.
        ("starcoder2", {"starcoder2.attention.sliding_window": 16}),
    ],
)
def test_metadata_that_cannot_be_set_is_refused(family: str, metadata: dict[str, Any], tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", family=family, pieces=family == "phi3", metadata=metadata, vocabulary=320)
    with pytest.raises(BakeoutError, match=next(iter(metadata)).replace(".", r"\.")) as refused:
        find_checkpoint(path)
    assert "\n" not in str(refused.value)


def test_metadata_that_changes_nothing_is_read(tmp_path: Path) -> None:
    head = 8
    metadata = {
        "llama.attention.key_length": head,
        "llama.attention.scale": head**-0.5,
        "llama.attention.sliding_window": 4096,
        "llama.context_length": 4096,
        "llama.logit_scale": 1.0,
        "llama.rope.scaling.original_context_length": 128,
        "split.count": 1,
        "tokenizer.ggml.eot_token_id": BEGIN_ID,
    }
    assert load_model(find_checkpoint(write_gguf(tmp_path / "m.gguf", metadata=metadata)).directory)


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({"split.count": "two"}, "names 'two' as the number of its parts"),
        ({"split.count": 2}, "is a part of a model"),
        ({"tokenizer.ggml.eot_token_id": 9999}, "names 9999 as eot_token"),
    ],
)
def test_numbers_that_cannot_be_right_are_refused(metadata: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(BakeoutError, match=says):
        find_checkpoint(write_gguf(tmp_path / "m.gguf", metadata=metadata))


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    content = path.read_bytes()
    for length in range(0, len(content), 1999):
        path.write_bytes(content[:length])
        with pytest.raises(BakeoutError, match="not a whole GGUF"):
            find_checkpoint(path)
