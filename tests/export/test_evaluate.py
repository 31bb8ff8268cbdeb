import json

import pytest

from bakeout.export.evaluate import BASE, Row, data_names, evaluate, measure, stored_base_rows
from bakeout.export.runtime import Runner
from bakeout.models.data import file_digest
from bakeout.models.errors import BakeoutError

PROMPTS = ["one", "seven and two", "a longer prompt than these", "x"]


def _write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def runner(llama_onnx):
    return Runner(llama_onnx)


@pytest.fixture(scope="module")
def answers(runner):
    """What the model says to each prompt in four tokens."""
    said = runner.generate([runner.tokenizer(prompt).input_ids for prompt in PROMPTS], 4)
    return [runner.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in said]


def _ends(runner, text):
    """A runner that ends every text where ``text`` ends."""
    runner.end_tokens = frozenset({runner.tokenizer(text).input_ids[-1], *runner.end_tokens})
    return runner


def test_accuracy_is_the_share_of_exact_answers(llama_onnx, tmp_path):
    runner = Runner(llama_onnx)
    (said,) = runner.generate([runner.tokenizer("one").input_ids], 4)
    # The model is random and never ends a text: let it end with its fourth token.
    runner.end_tokens = frozenset({said[3]})
    length = said.index(said[3]) + 1
    right = runner.tokenizer.decode(said[:length], skip_special_tokens=True)
    data = _write(
        tmp_path / "mixed.jsonl",
        [{"prompt": "one", "response": f"  {right}\n"}, {"prompt": "one", "response": "wrong"}],
    )
    assert measure(runner, "m", {"mixed": data}, set()) == [Row("m", "mixed", 2, 0.5, 0.0)]
    assert measure(runner, "m", {"mixed": data}, {right.strip()}) == [Row("m", "mixed", 2, 0.5, 1.0)]


def test_an_answer_that_goes_on_is_not_exact(runner, answers, tmp_path):
    data = _write(tmp_path / "d.jsonl", [{"prompt": PROMPTS[0], "response": answers[0]}])
    assert measure(runner, "m", {"d": data}, set())[0].accuracy == 0.0


def test_the_batch_size_does_not_matter(runner, tmp_path):
    data = _write(tmp_path / "d.jsonl", [{"prompt": prompt, "response": " "} for prompt in PROMPTS])
    assert measure(runner, "m", {"d": data}, set(), batch_size=1) == measure(runner, "m", {"d": data}, set())


def test_artifacts_stand_beside_a_base_that_is_a_checkpoint_or_a_graph(llama_onnx, llama_checkpoint, tmp_path):
    data = _write(tmp_path / "d.jsonl", [{"prompt": "one", "response": "two"}])
    for base in (llama_checkpoint, llama_onnx):
        rows = evaluate([llama_onnx], [data], base=base).rows
        assert [(row.model, row.data, row.prompts) for row in rows] == [(BASE, "d", 1), (str(llama_onnx), "d", 1)]
        assert rows[0].accuracy == rows[1].accuracy


def test_stored_figures_are_found_by_the_files_content(tmp_path):
    data = _write(tmp_path / "d.jsonl", [{"prompt": "one", "response": "two"}])
    figures = [{"digest": file_digest(data), "prompts": 1, "accuracy": 0.25, "refusals": 0.0}]
    manifest = {"schema": 1, "files": {}, "receipts": [], "base_figures": figures}
    (tmp_path / "bakeout.json").write_text(json.dumps(manifest))
    renamed = data.rename(tmp_path / "renamed.jsonl")
    assert stored_base_rows(tmp_path, {"renamed": renamed}) == [Row(BASE, "renamed", 1, 0.25, 0.0)]
    _write(renamed, [{"prompt": "one", "response": "three"}])
    assert stored_base_rows(tmp_path, {"renamed": renamed}) == []


def test_data_of_one_name_twice_are_refused(tmp_path):
    with pytest.raises(BakeoutError, match="same name"):
        data_names([tmp_path / "a" / "x.jsonl", tmp_path / "b" / "x.jsonl"])


@pytest.mark.parametrize("row", [{"prompt": "no response"}, {"text": "no prompt"}], ids=str)
def test_rows_that_cannot_be_evaluated_are_named(runner, tmp_path, row):
    data = _write(tmp_path / "d.jsonl", [{"prompt": "one", "response": "two"}, row])
    with pytest.raises(BakeoutError, match="row 2"):
        measure(runner, "m", {"d": data}, set())
