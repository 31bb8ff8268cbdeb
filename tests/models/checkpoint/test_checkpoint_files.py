"""Checkpoints are found, fingerprinted by their weights, and refused when they are not whole."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertConfig, BertLMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers import modeling_utils as transformers_modeling_utils

from bakeout.models.checkpoint.checkpoint_files import load_model, read_config, resolve_checkpoint, weights_digest
from bakeout.models.checkpoint.checkpoint_writer import checkpoint_files
from bakeout.models.checkpoint.placement import Placement
from bakeout.models.checkpoint.this_machine import mapped_piece_by_piece
from bakeout.models.data.tokenizers.tokenization import load_tokenizer
from bakeout.models.errors import BakeoutError

from tests.tiny_models import tiny_checkpoint

# transformers does not export the function that it opens safetensors files with.
modeling_utils: Any = transformers_modeling_utils


@pytest.fixture
def copy(llama_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    return Path(shutil.copytree(llama_checkpoint, tmp_path / "copy"))


def test_a_directory_is_its_own_checkpoint(llama_checkpoint: Path) -> None:
    assert resolve_checkpoint(str(llama_checkpoint)) == llama_checkpoint


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("/no/such/directory", "not a hub id"),
        ("bakeout-tests/never-downloaded", "no such checkpoint could be fetched"),
    ],
)
def test_an_unknown_name_is_refused(name: str, says: str) -> None:
    with pytest.raises(BakeoutError, match=says):
        resolve_checkpoint(name)


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BakeoutError, match=r"no config\.json"):
        resolve_checkpoint(tmp_path)


def test_the_digest_is_of_names_and_contents(copy: Path, llama_checkpoint: Path) -> None:
    digest = weights_digest(copy)
    assert digest == weights_digest(llama_checkpoint)
    (copy / "config.json").write_text("{}")
    assert weights_digest(copy) == digest
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    changed = weights_digest(copy)
    assert changed != digest
    weights.rename(copy / "other.safetensors")
    assert weights_digest(copy) not in (digest, changed)


def test_weights_that_nobody_loads_are_not_digested(copy: Path) -> None:
    digest = weights_digest(copy)
    shutil.copyfile(copy / "model.safetensors", copy / "consolidated.safetensors")
    assert weights_digest(copy) == digest


def test_a_model_is_loaded_for_evaluation(llama_checkpoint: Path) -> None:
    model = load_model(llama_checkpoint)
    assert not model.training
    assert model.dtype == torch.float32
    assert load_model(llama_checkpoint, Placement("cpu", "bfloat16")).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_attention_heads": 0}, "cannot be loaded"),
        ({"num_hidden_layers": "four"}, "cannot be loaded"),
        ({"hidden_act": 3}, "cannot be loaded"),
        ({"rms_norm_eps": "x"}, "does not compute|cannot be loaded"),
    ],
)
def test_a_configuration_that_breaks_its_architecture_is_refused(copy: Path, changes: Any, words: str) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(BakeoutError, match=words):
        load_model(copy)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "..", ""])
def test_an_index_leads_to_no_other_directory(copy: Path, name: str) -> None:
    (copy / "model.safetensors").rename(copy / "model-1.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": name}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BakeoutError, match="is not an index of shards"):
        checkpoint_files(copy)


def test_a_tokenizer_is_loaded(llama_checkpoint: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(llama_checkpoint)
    assert tokenizer.decode(tokenizer.encode("a b")) == "a b"
    with pytest.raises(BakeoutError, match="tokenizer cannot be loaded"):
        load_tokenizer(tmp_path)


def test_pickled_weights_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    for read in (weights_digest, load_model):
        with pytest.raises(BakeoutError, match="pickled weights alone"):
            read(copy)
    (copy / "pytorch_model.bin").unlink()
    with pytest.raises(BakeoutError, match="no weights"):
        weights_digest(copy)


@pytest.mark.parametrize("length", [0, 20, -1])
def test_truncated_weights_are_refused(copy: Path, length: int) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:length])
    for read in (weights_digest, load_model):
        with pytest.raises(BakeoutError, match="not a whole safetensors file"):
            read(copy)


def test_missing_weights_are_never_made_up(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.2.mlp.gate_proj.weight"]
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(BakeoutError, match=r"lacks 1 .*model\.layers\.2\.mlp\.gate_proj"):
        load_model(copy)


def _sharded(copy: Path, held: Any) -> dict[str, Any]:
    """Split the copy into two shards, without tensors that ``held`` denies; gives the shard of each by its index."""
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    names = sorted(tensors)
    index = {name: f"model-0000{1 + (place % 2)}-of-00002.safetensors" for place, name in enumerate(names)}
    for shard in set(index.values()):
        own = {name: tensors[name] for name in names if index[name] == shard and held(name)}
        save_file(own, copy / shard, {"format": "pt"})
    (copy / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return index


def test_a_tensor_that_only_the_index_holds_is_refused(copy: Path) -> None:
    _sharded(copy, lambda name: name != "model.layers.2.mlp.gate_proj.weight")
    with pytest.raises(BakeoutError, match=r"lacks 1 .*model\.layers\.2\.mlp\.gate_proj\.weight"):
        load_model(copy)


def test_an_index_may_name_what_the_model_does_not_lack(tmp_path: Path) -> None:
    """Tied weights under both names, buffers that are computed, and parts of another model."""
    checkpoint = tiny_checkpoint("gemma", tmp_path / "tied")
    assert "lm_head.weight" not in load_file(checkpoint / "model.safetensors")
    alone = load_model(checkpoint).state_dict()
    index = _sharded(checkpoint, lambda name: True)
    more = ("lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq", "vision.patches.weight")
    index |= dict.fromkeys(more, "model-00001-of-00002.safetensors")
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    loaded = load_model(checkpoint).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in alone.items())


def test_an_index_that_leaves_a_shard_unread_is_refused(copy: Path, llama_checkpoint: Path) -> None:
    index = _sharded(copy, lambda name: True)
    assert torch.equal(load_model(copy).lm_head.weight, load_model(llama_checkpoint).lm_head.weight)
    first = dict.fromkeys(index, "model-00001-of-00002.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": first}))
    with pytest.raises(BakeoutError, match=r"lacks \d+ of the model's weights"):
        load_model(copy)


def test_a_weight_that_transformers_leaves_without_data_is_refused(
    llama_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original: Any = AutoModelForCausalLM.from_pretrained

    def leave_one(*arguments: Any, **options: Any) -> Any:
        model, outcome = original(*arguments, **options)
        model.model.layers[1].mlp.up_proj.to("meta")
        return model, outcome

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", leave_one)
    with pytest.raises(BakeoutError, match=r"lacks 1 .*model\.layers\.1\.mlp\.up_proj"):
        load_model(llama_checkpoint)


def test_weights_of_another_shape_are_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "intermediate_size": 100}))
    with pytest.raises(BakeoutError, match="cannot be loaded"):
        load_model(copy)


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"quantization_config": {"bits": 4}}, "quantised"), ({"model_type": "unheard-of"}, "cannot be loaded")],
)
def test_models_that_cannot_be_probed_are_refused(copy: Path, changes: dict[str, object], says: str) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(BakeoutError, match=says):
        load_model(copy)


def test_a_configuration_that_names_another_file_for_the_weights_is_refused(copy: Path) -> None:
    """That one would be loaded, and nobody would hash or edit it."""
    shutil.copyfile(copy / "model.safetensors", copy / "other.safetensors")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "transformers_weights": None}))
    assert load_model(copy)
    (copy / "config.json").write_text(json.dumps({**config, "transformers_weights": "other.safetensors"}))
    for read in (load_model, read_config):
        with pytest.raises(BakeoutError, match="`transformers_weights`: other"):
            read(copy)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_garbled_configuration_is_refused(copy: Path, text: str) -> None:
    (copy / "config.json").write_text(text)
    with pytest.raises(BakeoutError, match=r"config\.json"):
        load_model(copy)


@pytest.mark.parametrize("is_decoder", [True, False])
def test_a_model_that_looks_ahead_is_refused(tmp_path: Path, is_decoder: bool) -> None:
    torch.manual_seed(0)
    # Weights as large as trained ones, of which attention tells tokens apart.
    config = BertConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        initializer_range=0.2,
    )
    config.is_decoder = is_decoder
    BertLMHeadModel(config).save_pretrained(tmp_path)
    if is_decoder:
        load_model(tmp_path)
    else:
        with pytest.raises(BakeoutError, match=r"depends on tokens behind it.*`is_decoder`"):
            load_model(tmp_path)


def test_doge_does_not_look_ahead(tmp_path: Path) -> None:
    """As it does in the default attention of transformers 4."""
    model = load_model(tiny_checkpoint("doge", tmp_path, layers=2))
    with torch.no_grad():
        one, other = model(torch.tensor([[5, 9, 3], [5, 9, 4]])).logits[:, :2]
    torch.testing.assert_close(one, other)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone tells the peak of a moment")
def test_a_conversion_holds_no_checkpoint_twice(tmp_path: Path) -> None:
    # Many tensors of 2 MB or less: how many are read at a time is transformers' own affair, and grows with its version.
    config = LlamaConfig(
        vocab_size=2048, hidden_size=512, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=8
    )
    torch.nn.Module.to(written := LlamaForCausalLM(config), torch.bfloat16)
    written.save_pretrained(tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    load_model(tmp_path, Placement("cpu", "float16"))
    gc.collect()
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    model = load_model(tmp_path, Placement("cpu", "float16"))
    assert {weight.dtype for weight in model.parameters()} == {torch.float16}
    # The copy, the pages of tensors that are being read, and a little.
    assert _resident("VmHWM") - before < 1.6 * size


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux alone lists mappings")
def test_small_tensors_share_a_mapping(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({f"expert.{number}": torch.full((2,), float(number)) for number in range(200)}, path)
    with mapped_piece_by_piece():
        file = modeling_utils.safe_open(path, framework="pt", device="cpu")
        slices = [file.get_slice(f"expert.{number}") for number in range(200)]
        read = [each[...] for each in slices]
        assert {each.get_dtype() for each in slices} == {"F32"}
        assert Path("/proc/self/maps").read_text().count(str(path)) == 1
    assert [each[0].item() for each in read] == list(range(200))


def test_loading_threads_leave_transformers_as_it_was() -> None:
    one, other = mapped_piece_by_piece(), mapped_piece_by_piece()
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert modeling_utils.safe_open is not safe_open
    other.__exit__(None, None, None)
    assert modeling_utils.safe_open is safe_open


def test_a_transformers_that_opens_files_elsewhere_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.delattr(modeling_utils, "safe_open")
        with mapped_piece_by_piece():
            assert not hasattr(modeling_utils, "safe_open")
        assert not hasattr(modeling_utils, "safe_open")


def _resident(which: str) -> int:
    """Bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(which)).split()[1])
