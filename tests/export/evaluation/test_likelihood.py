"""Perplexity and divergence against what torch computes for the same tiny models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bakeout.export.baking.bake import bake
from bakeout.export.evaluation.likelihood import divergence, predict, text_row
from bakeout.export.exporting.onnx_export import export_checkpoint
from bakeout.export.running.runner import Runner
from bakeout.models.checkpoint.checkpoint_files import load_model
from bakeout.models.data.row_source import DataError
from bakeout.models.data.rows import read_records
from bakeout.models.data.tokenizers.tokenization import load_tokenizer
from bakeout.models.plan import Plan

from tests.recipe_files import rows, write_rows
from tests.tiny_models import tiny_checkpoint

TEXTS = [
    {"prompt": "seven and two", "response": " are nine"},
    {"text": "plain text of some length"},
    {"prompt": "x", "response": "y"},
]


@pytest.fixture(scope="module")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="module")
def other_onnx(other_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("other-onnx")
    export_checkpoint(other_checkpoint, directory)
    return directory


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "texts.jsonl", TEXTS)


def _by_torch(checkpoint: Path, path: Path) -> tuple[list[float], list[int], torch.Tensor]:
    """For each text: the sum of -log p over what is predicted, how many tokens that are, log p at the first place."""
    model = load_model(checkpoint)
    surprise, counts, first = [], [], []
    for record in read_records(path, load_tokenizer(checkpoint)):
        ids = torch.tensor([record.prompt_ids + record.response_ids])
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[0].double()
        start = max(len(record.prompt_ids), 1)
        losses = torch.nn.functional.cross_entropy(logits[start - 1 : -1], ids[0, start:], reduction="none")
        surprise.append(float(losses.sum()))
        counts.append(len(losses))
        first.append(logits[(len(record.prompt_ids) or len(ids[0])) - 1].log_softmax(dim=-1))
    return surprise, counts, torch.stack(first)


def test_figures_are_those_of_torch(
    llama_checkpoint: Path, llama_export: Path, other_checkpoint: Path, other_onnx: Path, texts: Path
) -> None:
    base, other = predict(Runner(llama_export), texts), predict(Runner(other_onnx), texts)
    row = text_row("other", "texts", other, base)
    base_surprise, counts, base_first = _by_torch(llama_checkpoint, texts)
    surprise, _, first = _by_torch(other_checkpoint, texts)
    assert other.tokens.tolist() == counts
    assert row.perplexity == pytest.approx(np.exp(sum(surprise) / sum(counts)), rel=1e-4)
    assert row.perplexity_ratio == pytest.approx(np.exp((sum(surprise) - sum(base_surprise)) / sum(counts)), rel=1e-4)
    expected = torch.nn.functional.kl_div(first, base_first, log_target=True, reduction="none").sum(dim=1)
    assert divergence(base.first, other.first) == pytest.approx(expected.numpy(), rel=1e-3)
    assert row.divergence == pytest.approx(float(expected.mean()), rel=1e-3)
    for value, interval in (
        (row.perplexity_ratio, row.perplexity_ratio_interval),
        (row.divergence, row.divergence_interval),
    ):
        assert value is not None
        assert interval is not None
        assert interval[0] <= value <= interval[1]


def test_a_model_is_no_distance_from_itself(llama_export: Path, texts: Path) -> None:
    predicted = predict(Runner(llama_export), texts)
    row = text_row("m", "texts", predicted, predicted)
    assert (row.perplexity_ratio, row.perplexity_ratio_interval) == (1.0, (1.0, 1.0))
    assert (row.divergence, row.divergence_interval) == (0.0, (0.0, 0.0))


def test_the_batch_size_does_not_matter(llama_export: Path, texts: Path) -> None:
    runner = Runner(llama_export)
    alone, together = predict(runner, texts, batch_size=1), predict(runner, texts)
    assert alone.surprise == pytest.approx(together.surprise, rel=1e-5)
    assert alone.first == pytest.approx(together.first, abs=1e-4)


def test_refused_texts_are_counted_and_left_out(llama_export: Path, tiny_plan: Plan, tmp_path: Path) -> None:
    artifact = Runner(bake(llama_export, tiny_plan, tmp_path / "artifact").directory)
    sums = write_rows(tmp_path / "sums.jsonl", rows("sums", "calibration"))
    names = write_rows(tmp_path / "names.jsonl", rows("names", "calibration"))
    mixed = write_rows(tmp_path / "mixed.jsonl", rows("sums", "calibration") + rows("names", "calibration"))
    base = predict(Runner(llama_export), mixed)
    row = text_row("a", "mixed", predict(artifact, mixed), base)
    assert row.texts == 40
    refused = predict(artifact, sums).refused.sum() + predict(artifact, names).refused.sum()
    assert row.refused == refused >= 15
    assert row.perplexity is not None
    # A refused token's surprise is 30,000 nats.
    assert row.perplexity < 1e6
    assert row.perplexity_ratio is not None
    assert 0.5 < row.perplexity_ratio < 2


def test_of_refused_texts_alone_nothing_is_said_but_their_number(
    llama_export: Path, tiny_plan: Plan, tmp_path: Path
) -> None:
    artifact = Runner(bake(llama_export, tiny_plan, tmp_path / "artifact").directory)
    candidates = rows("sums", "calibration")
    refused = predict(artifact, write_rows(tmp_path / "all.jsonl", candidates)).refused
    only = [row for row, said_no in zip(candidates, refused, strict=True) if said_no]
    path = write_rows(tmp_path / "refused.jsonl", only)
    row = text_row("a", "refused", predict(artifact, path), predict(Runner(llama_export), path))
    assert row.as_json() == {
        "model": "a",
        "data": "refused",
        "texts": len(only),
        "refused": len(only),
        "perplexity": None,
    }


@pytest.mark.parametrize("row", [{"prompt": "no response"}, {"text": "x"}], ids=str)
def test_rows_with_nothing_to_predict_are_named(llama_export: Path, tmp_path: Path, row: dict[str, str]) -> None:
    path = write_rows(tmp_path / "d.jsonl", [{"text": "some text"}, row])
    with pytest.raises(DataError, match="line 2"):
        predict(Runner(llama_export), path)
