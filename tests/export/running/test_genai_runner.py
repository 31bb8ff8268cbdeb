"""onnxruntime-genai answers as our own loop does: alone and in batches, to the end of a text, a context or a limit."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from bakeout.export.running.genai_config import GENAI_CONFIG, write_genai_config
from bakeout.export.running.genai_runner import GenaiRunner
from bakeout.export.running.runner import Runner
from bakeout.export.running.sampling import Sampling
from bakeout.graph_passes.graph.graph_file import load_graph
from bakeout.models.errors import BakeoutError

from tests.genai_builder import build
from tests.tiny_models import tiny_checkpoint

pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")

PROMPTS = [np.random.default_rng(length).integers(5, 250, length).tolist() for length in (3, 5, 5, 9, 12)]
LONGEST = 8


@pytest.fixture(scope="module")
def exported(llama_onnx: Path) -> GenaiRunner:
    assert not (llama_onnx / GENAI_CONFIG).exists()
    return GenaiRunner(llama_onnx)


def _answers(runner: GenaiRunner, batch_size: int = 32, most: int = LONGEST) -> list[list[int]]:
    return [tokens for _, tokens in sorted(runner.each_answer(PROMPTS, most, batch_size=batch_size))]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batches_say_what_our_loop_says(exported: GenaiRunner, llama_onnx: Path, batch_size: int) -> None:
    """By the configuration that baking would write: the export has none."""
    assert _answers(exported, batch_size) == Runner(llama_onnx).generate(PROMPTS, LONGEST)


def test_a_graph_of_its_builder(tmp_path: Path) -> None:
    """With shared buffers, and with tokens chosen greedily whatever its configuration says."""
    # GroupQueryAttention wants heads of a multiple of 16.
    directory = build(tiny_checkpoint("llama", tmp_path / "checkpoint", hidden=64), tmp_path / "graph", "fp32")
    _configure(directory, "search", do_sample=True, temperature=5.0, repetition_penalty=1.8, min_length=50)
    assert _answers(GenaiRunner(directory), 3) == Runner(directory).generate(PROMPTS, LONGEST)


def test_a_batch_holds_no_more_than_its_prompts_logits_take(
    exported: GenaiRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime_genai as genai

    rows = []

    class Counted(genai.GeneratorParams):  # type: ignore[misc]
        def set_search_options(self, **options: object) -> None:
            rows.append(options["batch_size"])
            super().set_search_options(**options)

    unlimited = _answers(exported)
    vocabulary = exported.limits.embeddings
    assert vocabulary is not None
    monkeypatch.setattr(genai, "GeneratorParams", Counted)
    monkeypatch.setattr("bakeout.export.running.batching.MOST_LOGITS", 10 * vocabulary)
    assert _answers(exported) == unlimited
    # Of 3, 5, 5, 9 and 12 tokens; the last is more than the limit alone.
    assert rows == [2, 1, 1, 1]


def test_an_answer_ends_where_our_loop_ends_it(llama_onnx: Path, tmp_path: Path) -> None:
    directory = tmp_path / "graph"
    shutil.copytree(llama_onnx, directory)
    ends = sorted({tokens[index] for index, tokens in enumerate(Runner(llama_onnx).generate(PROMPTS, LONGEST)[:3])})
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    said = _answers(GenaiRunner(directory))
    assert said == Runner(directory).generate(PROMPTS, LONGEST)
    assert {len(tokens) for tokens in said} >= {1, 2, LONGEST}


def test_padding_within_a_prompt_is_read_and_at_its_end_refused(llama_onnx: Path, tmp_path: Path) -> None:
    directory = tmp_path / "graph"
    shutil.copytree(llama_onnx, directory)
    write_genai_config(directory, load_graph(directory / "model.onnx"))
    _configure(directory, "model", pad_token_id=PROMPTS[1][2])
    runner = GenaiRunner(directory)
    assert _answers(runner) == Runner(directory).generate(PROMPTS, LONGEST)
    with pytest.raises(BakeoutError, match="A prompt ends with token"):
        list(runner.each_answer([PROMPTS[0], PROMPTS[1][:3]], LONGEST))


def test_the_context_cuts_answers(llama_onnx: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = tmp_path / "graph"
    shutil.copytree(llama_onnx, directory)
    write_genai_config(directory, load_graph(directory / "model.onnx"))
    _configure(directory, "model", context_length=12)
    whole = Runner(llama_onnx).generate(PROMPTS, LONGEST)
    with caplog.at_level(logging.WARNING):
        said = _answers(GenaiRunner(directory))
    assert said == [tokens[: 12 - len(prompt)] for tokens, prompt in zip(whole, PROMPTS, strict=True)]
    assert "context of 12 tokens was full before 4 answers ended" in caplog.text
    with pytest.raises(BakeoutError, match="13 tokens; the model's context is 12"):
        list(GenaiRunner(directory).each_answer([[5] * 13], 1))


def test_drawn_answers_depend_on_seed_and_row_alone(exported: GenaiRunner) -> None:
    def drawn(seed: int, only: list[int] | None = None) -> dict[int, list[int]]:
        sampling = Sampling(temperature=1.5, top_p=0.9, seed=seed)
        return dict(exported.each_answer(PROMPTS, LONGEST, sampling=sampling, only=only))

    first = drawn(1)
    assert first == drawn(1)
    assert drawn(1, [4, 2]) == {row: first[row] for row in (2, 4)}
    assert drawn(2) != first


def test_what_cannot_be_run_is_told(llama_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(llama_onnx, tmp_path / "graph")
    write_genai_config(tmp_path / "graph", load_graph(tmp_path / "graph" / "model.onnx"))
    _configure(tmp_path / "graph", "model", type="unheard-of")
    with pytest.raises(BakeoutError, match=r"onnxruntime-genai cannot run .*model\.onnx \(.*unheard-of"):
        GenaiRunner(tmp_path / "graph")
    (tmp_path / "graph" / GENAI_CONFIG).write_text("{}")
    with pytest.raises(BakeoutError, match=r"genai_config\.json gives no token that pads"):
        GenaiRunner(tmp_path / "graph")
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", None)
    with pytest.raises(BakeoutError, match=r"needs onnxruntime_genai\. Install it: pip install 'bakeout\[genai\]'"):
        GenaiRunner(llama_onnx)


def test_a_state_that_it_does_not_feed_back_is_told(llama_onnx: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(llama_onnx, tmp_path / "graph")
    model = onnx.load(directory / "model.onnx", load_external_data=False)
    model.graph.input.append(onnx.helper.make_tensor_value_info("past_conv.0", 1, ["rows", 4, 3]))
    onnx.save(model, directory / "model.onnx")
    with pytest.raises(BakeoutError, match=r"model\.onnx has .* other states .* Run it with ONNX Runtime\."):
        GenaiRunner(directory)


def _configure(directory: Path, section: str, **values: object) -> None:
    path = directory / GENAI_CONFIG
    content = json.loads(path.read_text())
    content[section].update(values)
    path.write_text(json.dumps(content))
