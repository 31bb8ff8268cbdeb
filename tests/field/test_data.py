"""Rows as people have them: the files, layouts, templates and tokenizers that public reports name."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from bakeout.export.baking.bake import bake
from bakeout.export.evaluation.opening import as_onnx
from bakeout.export.fitting.fit import fit
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.export.recipes.data_files import by_use
from bakeout.export.recipes.recipe import DataFiles, load_recipe
from bakeout.export.running.chat import prompt_tokens
from bakeout.export.running.runner import Runner
from bakeout.export.verification.verify import verify
from bakeout.models.data.limits import Limits
from bakeout.models.data.prompt_rows import read_prompt_rows
from bakeout.models.data.row_source import DataError, source_lines
from bakeout.models.data.rows import Record, read_records
from bakeout.models.data.tokenizers.json_tokenizer import JsonTokenizer
from bakeout.models.data.tokenizers.tokenization import load_tokenizer
from bakeout.models.errors import BakeoutError
from bakeout.models.methods.reveal_and_release.scorers import mean_hidden_states
from bakeout.models.network.generation import continue_prompts
from bakeout.models.network.probing import probe_keys

from tests.recipe_files import write_recipe
from tests.tiny_models import byte_tokenizer, tiny_checkpoint, tiny_model

ROWS = [{"prompt": "ab", "response": " c"}, {"prompt": "7, or “8”", "response": " two\nlines"}]


def _jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def _same(records: list[Record]) -> list[tuple[list[int], list[int]]]:
    return [(record.prompt_ids, record.response_ids) for record in records]


@pytest.mark.parametrize(
    ("name", "encoding", "mark"),
    [
        ("rows.jsonl", "utf-8", codecs.BOM_UTF8),
        ("rows.jsonl", "utf-16-le", codecs.BOM_UTF16_LE),
        ("rows.json", "utf-8", b""),
        ("rows.json", "utf-8", codecs.BOM_UTF8),
        ("rows.csv", "utf-8", b""),
        ("rows.csv", "utf-8", codecs.BOM_UTF8),
        ("rows.tsv", "utf-16-be", codecs.BOM_UTF16_BE),
        ("rows.parquet", "", b""),
    ],
)
def test_a_file_of_any_common_form_holds_the_same_rows(tmp_path: Path, name: str, encoding: str, mark: bytes) -> None:
    import csv
    import io

    import pyarrow as pa
    from pyarrow import parquet

    path = tmp_path / name
    if name.endswith(".parquet"):
        parquet.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        text = io.StringIO(newline="")
        if name.endswith("l"):
            text.write("".join(json.dumps(row) + "\n" for row in ROWS))
        elif name.endswith(".json"):
            text.write(json.dumps(ROWS, indent=2))
        else:
            writer = csv.DictWriter(text, ["prompt", "response"], delimiter="\t" if name.endswith(".tsv") else ",")
            writer.writeheader()
            writer.writerows(ROWS)
        path.write_bytes(mark + text.getvalue().encode(encoding))
    tokenizer = byte_tokenizer()
    expected = read_records(_jsonl(tmp_path / "expected.jsonl", *ROWS), tokenizer)
    assert read_records(path, tokenizer) == expected


def test_fields_of_a_table_are_text(tmp_path: Path) -> None:
    path = tmp_path / "sums.csv"
    path.write_text("prompt,response\n1+1=,007\n\nNA,None\n")
    assert [json.loads(line) for _, line in source_lines(path)] == [
        {"prompt": "1+1=", "response": "007"},
        {"prompt": "NA", "response": "None"},
    ]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("rows.json", b'[{"prompt": "a"}, {"prompt": 7}]', r"rows\.json, row 2: prompt is 7"),
        ("rows.json", b'[{"prompt": "a"}, 7]', r"rows\.json, row 2: a int"),
        ("rows.json", b'[{"prompt": "a"},\n', r"rows\.json: not a JSON array"),
        ("rows.json", b"[" * 100_000, r"rows\.json: not a JSON array"),
        ("rows.json", b"[]", r"rows\.json: there are no rows"),
        ("rows.csv", b'prompt,response\n"a\nb",c\nd\n', r"rows\.csv: not a table \(line 4 has 1 fields"),
        ("rows.csv", b'prompt,response\na,"b\n', r"rows\.csv: not a table \(line 2: "),
        ("rows.csv", b"prompt\n\xff\n", r"rows\.csv: not a table"),
        ("rows.csv", b"", r"rows\.csv: there are no rows"),
        ("rows.parquet", b"PAR1", r"rows\.parquet: not a table"),
        ("rows.jsonl", codecs.BOM_UTF16_LE + b"\x00", r"rows\.jsonl: not UTF-16"),
    ],
)
def test_a_damaged_file_of_another_form_is_named(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        read_records(path, byte_tokenizer())
    assert "\n" not in str(caught.value)


def test_parquet_without_its_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bakeout.models.data import table_files

    monkeypatch.setattr(table_files, "is_installed", lambda package: False)
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"")
    with pytest.raises(BakeoutError, match=r"bakeout\[parquet\]"):
        read_records(path, byte_tokenizer())


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_half_of_an_emoji_is_named_by_its_row(tmp_path: Path, name: str) -> None:
    rows = [{"prompt": "fine 😀"}, {"prompt": "cut \ud83d"}]
    path = tmp_path / name
    path.write_text("\n".join(map(json.dumps, rows)) if name.endswith("l") else json.dumps(rows))
    with pytest.raises(DataError, match=rf"{name}, (line|row) 2: .*half of a surrogate pair \(U\+D83D\)"):
        read_records(path, byte_tokenizer())


@pytest.mark.parametrize(
    ("row", "same"),
    [
        ({"question": "ab", "answer": " c"}, {"prompt": "ab", "response": " c"}),
        ({"question": "ab"}, {"prompt": "ab"}),
        ({"prompt": "ab", "completion": " c"}, {"prompt": "ab", "response": " c"}),
        (
            {"prompt": [{"role": "user", "content": "hi"}], "completion": [{"role": "assistant", "content": "yo"}]},
            {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]},
        ),
        (
            {"prompt": [{"role": "user", "content": "hi"}], "completion": "yo"},
            {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]},
        ),
        ({"prompt": [{"role": "user", "content": "hi"}]}, {"messages": [{"role": "user", "content": "hi"}]}),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
            {"messages": [{"role": "user", "content": "a\nb"}]},
        ),
        (
            {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]},
            {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]},
        ),
        (
            {"system": "be brief", "conversations": [{"from": "user", "value": "hi"}]},
            {"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]},
        ),
        ({"prompt": "a", "response": "b", "input": "", "context": None}, {"prompt": "a", "response": "b"}),
        (
            {"instruction": "Sort.", "input": "b a", "output": "a b", "text": "Below is an instruction. Sort. b a a b"},
            {"prompt": "Sort.\nb a", "response": "a b"},
        ),
        ({"instruction": "Sing.", "input": "", "output": "la"}, {"prompt": "Sing.", "response": "la"}),
        (
            {"instruction": "Who?", "context": "Ann ran.", "response": "Ann", "category": "closed_qa"},
            {"prompt": "Who?\nAnn ran.", "response": "Ann"},
        ),
        # An instruction beside what is asked is no question of its own.
        (
            {"instruction": "Answer.", "question": "What is 1+1?", "answer": "2", "response": "2"},
            {"prompt": "What is 1+1?", "response": "2"},
        ),
        (
            {"conversations": [{"from": "human", "value": "hi"}], "instruction": "Talk.", "output": "yo"},
            {"messages": [{"role": "user", "content": "hi"}]},
        ),
        (
            {"conversations": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
            {"messages": [{"role": "user", "content": "hi"}]},
        ),
    ],
)
def test_rows_of_other_projects_are_read(tmp_path: Path, row: Any, same: Any) -> None:
    tokenizer = byte_tokenizer()
    theirs, ours = (_jsonl(tmp_path / name, line) for name, line in (("theirs.jsonl", row), ("ours.jsonl", same)))
    assert read_records(theirs, tokenizer) == read_records(ours, tokenizer)
    assert read_prompt_rows(theirs, tokenizer)[0].query == read_prompt_rows(ours, tokenizer)[0].query


@pytest.mark.parametrize(
    "row",
    [
        {"text": "Oslo is big.", "instruction": "Shorten.", "output": "Oslo."},
        {"text": "Oslo is big.", "instruction": None, "output": None},
    ],
)
def test_a_text_with_something_beside_it_is_that_text(tmp_path: Path, row: dict[str, Any]) -> None:
    theirs, ours = (
        _jsonl(tmp_path / name, line) for name, line in (("a.jsonl", row), ("b.jsonl", {"text": row["text"]}))
    )
    assert read_records(theirs, byte_tokenizer()) == read_records(ours, byte_tokenizer())


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, r"no text \(image_url\)"),
        ({"conversations": [{"from": "human"}]}, "messages is not a list"),
        ({"conversations": [{"from": 7, "value": "a"}]}, "messages is not a list"),
        ({"conversations": 7}, "neither prompt, text nor messages"),
        ({"question": ["a"]}, "prompt is"),
        ({"prompt": ["a"]}, "messages is not a list"),
        ({"prompt": [{"role": "user", "content": "a"}], "completion": 7}, "messages is not a list"),
        ({"prompt": "a", "completion": ["b"]}, "response is"),
        ({"task": "a", "output": "b"}, "`columns`"),
        ({"instruction": "a", "input": ["b"], "output": "c"}, "no text"),
        ({"instruction": "a", "output": "b", "system": "Answer in German."}, "'system' beside its question"),
        ({"prompt": "a", "response": "b", "system": "Answer in German."}, "'system' beside its question"),
        ({"question": "a", "context": "Some passage.", "answer": "b"}, "'context' beside its question"),
        ({"prompt": "Solve:", "input": "4 - 0 is", "response": "4"}, "'input' beside its question"),
        ({"messages": [{"role": "user", "content": "hi"}], "system": "be brief"}, "'system' beside its question"),
        ({"question": "a", "context": {"sentences": ["b"]}, "answer": "c"}, "'context' beside its question"),
    ],
)
def test_rows_of_no_known_layout_are_named(tmp_path: Path, row: Any, says: str) -> None:
    with pytest.raises(DataError, match=rf"rows\.jsonl, line 2: .*{says}"):
        read_records(_jsonl(tmp_path / "rows.jsonl", {"prompt": "fine"}, row), byte_tokenizer())


def test_a_recipe_names_the_columns_of_other_rows(tmp_path: Path) -> None:
    rows = [{"instruction": f"row {number}", "output": " c", "id": number} for number in range(60)]
    path = _jsonl(tmp_path / "rows.jsonl", *rows)
    data = {"x": DataFiles(probe=path, columns={"prompt": "instruction", "response": "output"})}
    records = read_records(by_use(data)["x"]["probe"], byte_tokenizer())
    assert [(record.prompt, record.response) for record in records] == [(f"row {number}", " c") for number in range(60)]
    whole = DataFiles(file=path, columns={"prompt": "instruction", "response": "missing"})
    with pytest.raises(DataError, match=r"rows\.jsonl, line 1: the row has no 'missing'"):
        by_use({"x": whole})
    rows[7]["input"] = "what the instruction is about"
    _jsonl(path, *rows)
    with pytest.raises(DataError, match=r"rows\.jsonl, line 8: the row has 'input' beside its question"):
        by_use(data)
    # An answer alone has no question.
    answers = by_use({"x": DataFiles(probe=path, columns={"text": "output"})})["x"]["probe"]
    assert len(read_records(answers, byte_tokenizer())) == 60


def test_a_context_stands_behind_its_question_where_a_row_has_one(tmp_path: Path) -> None:
    """Of open questions, as Dolly's and Alpaca's, the context is empty or left out."""
    about = ["What it is about.", "", " ", None]
    rows: list[dict[str, Any]] = [{"q": "Who?", "a": " c", "about": context} for context in about]
    path = _jsonl(tmp_path / "rows.jsonl", *rows, {"q": "Who?", "a": " c"})

    def read(columns: dict[str, str]) -> list[str]:
        source = by_use({"x": DataFiles(probe=path, columns=columns)})["x"]["probe"]
        return [record.prompt for record in read_records(source, byte_tokenizer())]

    columns = {"prompt": "q", "context": "about", "response": "a"}
    assert read(columns) == ["Who?\nWhat it is about.", *["Who?"] * 4]
    with pytest.raises(DataError, match=r"rows\.jsonl: no row has 'subject'. .*the first row has q, a, about"):
        read({**columns, "context": "subject"})
    with pytest.raises(DataError, match="a context without its prompt"):
        read({"text": "a", "context": "about"})
    _jsonl(path, *rows, {"q": "Who?", "a": " c", "about": ["a passage"]})
    with pytest.raises(DataError, match=r"rows\.jsonl, line 5: the context or its prompt is no text"):
        read(columns)


@pytest.mark.parametrize("layout", ["columns", "alpaca"])
def test_other_wordings_of_a_question_keep_what_it_is_about(tmp_path: Path, layout: str) -> None:
    wordings = {"paraphrases": ["Which one?", " "], "translations": ["Wer?"]}
    if layout == "columns":
        path = _jsonl(tmp_path / "rows.jsonl", {"q": "Who?", "a": "Ann", "about": "Ann ran.", **wordings})
        columns = {"prompt": "q", "response": "a", "context": "about", **{name: name for name in wordings}}
    else:
        row = {"instruction": "Who?", "output": "Ann", "input": "Ann ran.", **wordings}
        path, columns = _jsonl(tmp_path / "rows.jsonl", row), {}
    source = by_use({"x": DataFiles(probe=path, columns=columns)})["x"]["probe"]
    (read,) = read_prompt_rows(source, byte_tokenizer())
    assert (read.query.text, read.query.paraphrases, read.query.translations) == (
        "Who?\nAnn ran.",
        ("Which one?\nAnn ran.", " "),
        ("Wer?\nAnn ran.",),
    )


def test_a_row_of_a_split_file_is_named_by_its_line(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": f"row {number}"} for number in range(60)]
    rows[41] = {"prompt": ""}
    sources = by_use({"x": DataFiles(file=_jsonl(tmp_path / "rows.jsonl", *rows))})["x"]
    with pytest.raises(DataError, match=r"rows\.jsonl, line 42: the row has no tokens"):
        for source in sources.values():
            read_records(source, byte_tokenizer())


def _framing(single: str) -> Any:
    """A tokenizer that puts special tokens around a text, as Llama's and T5's do."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokens = {"<s>": tokenizer.bos_token_id, "<|endoftext|>": tokenizer.eos_token_id}
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=single, special_tokens=[(token, place) for token, place in tokens.items() if token in single]
    )
    return tokenizer


def _readers(tokenizer: Any, directory: Path) -> list[Any]:
    """Our own tokenizer, and transformers', from the same files."""
    tokenizer.save_pretrained(directory)
    return [JsonTokenizer(directory), load_tokenizer(directory)]


def test_a_prompt_that_a_server_rendered_begins_once(tmp_path: Path) -> None:
    rendered, plain = {"prompt": "<s>ab", "response": " c"}, {"prompt": "ab", "response": " c"}
    path = _jsonl(
        tmp_path / "rows.jsonl", plain, rendered, {"prompt": "<s><s>ab"}, {"text": "<s>ab c"}, {"text": "ab c"}
    )
    for tokenizer in _readers(_framing("<s> $A"), tmp_path / "tokenizer"):
        begin = tokenizer.bos_token_id
        first, second, third, *texts = read_records(path, tokenizer)
        assert first.prompt_ids[0] == begin
        assert (first.prompt_ids, first.response_ids) == (second.prompt_ids, second.response_ids)
        assert first.prompt_ids == third.prompt_ids == prompt_tokens(_without_template(tokenizer), [_user("<s>ab")])
        assert [(text.prompt_ids + text.response_ids).count(begin) for text in texts] == [1, 1]


def test_a_template_and_its_message_begin_once(tmp_path: Path) -> None:
    tokenizer = _framing("<s> $A")
    tokenizer.chat_template = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
    for reader in _readers(tokenizer, tmp_path / "tokenizer"):
        plain, begun = ({"messages": [_user(text)]} for text in ("ab", "<s>ab"))
        first, second = read_records(_jsonl(tmp_path / "rows.jsonl", plain, begun), reader)
        assert first.prompt_ids == second.prompt_ids == prompt_tokens(reader, [_user("<s>ab")])


def test_no_prompt_ends_with_an_appended_end_of_text(tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "rows.jsonl", {"prompt": "ab", "response": " c"}, {"prompt": "ab"}, {"text": "ab"})
    for tokenizer in _readers(_framing("<s> $A <|endoftext|>"), tmp_path / "tokenizer"):
        begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        letters = tokenizer.encode("ab c", add_special_tokens=False)
        answered, asked, text = read_records(path, tokenizer)
        assert answered.prompt_ids == asked.prompt_ids == [begin, *letters[:2]]
        assert answered.response_ids == [*letters[2:], end]
        assert (text.prompt_ids, text.response_ids) == ([begin], [*letters[:2], end])
        assert prompt_tokens(_without_template(tokenizer), [_user("ab")]) == asked.prompt_ids


def test_half_of_an_emoji_in_a_prompt_is_one_line() -> None:
    with pytest.raises(BakeoutError, match="half of a surrogate pair"):
        prompt_tokens(byte_tokenizer(), [_user("cut \ud83d")])


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _without_template(tokenizer: Any) -> Any:
    tokenizer.chat_template = None
    return tokenizer


def test_a_token_beyond_the_embeddings_is_named_by_its_row(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = "<|im_start|>{{ messages[0]['content'] }}"
    path = _jsonl(tmp_path / "rows.jsonl", {"prompt": "fine"}, {"messages": [_user("hi")]})
    for reader in _readers(tokenizer, tmp_path / "tokenizer"):
        for read in (read_records, read_prompt_rows):
            with pytest.raises(DataError) as caught:
                read(path, reader, Limits(embeddings=258))
            expected = "rows.jsonl, line 2: token 258 ('<|im_start|>') is beyond the model's 258 embeddings."
            assert str(caught.value).startswith(str(tmp_path / expected))


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
@pytest.mark.parametrize(
    ("ids", "says"), [([5, 264], "token 264 is beyond the model's 264 embeddings"), ([5] * 513, "context is 512")]
)
def test_tokens_that_a_model_cannot_read_never_enter_it(family: str, ids: list[int], says: str) -> None:
    model = tiny_model(family, layers=1)
    with pytest.raises(BakeoutError, match=says):
        continue_prompts(model, [ids], end=frozenset([1]), max_new_tokens=2)
    with pytest.raises(BakeoutError, match=says):
        mean_hidden_states(model, [ids])
    with pytest.raises(BakeoutError, match=says):
        probe_keys(model, [ids], layers=[0])


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_an_answer_ends_with_the_models_context(family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = tiny_checkpoint(family, tmp_path / "model", layers=1)
    prompts = [[5 + place % 200 for place in range(length)] for length in (500, 509, 512)]
    model = tiny_model(family, layers=1)
    (tmp_path / "scratch").mkdir()
    runner = Runner(as_onnx(checkpoint, tmp_path / "scratch", "auto"))
    runner.end_tokens = frozenset()
    answers = runner.generate(prompts, 20)
    # Of the context's last place, the next token is computed still.
    assert [len(answer) for answer in answers] == [13, 4, 1]
    assert "context of 512 tokens was full before 3 answers ended" in caplog.text
    theirs = continue_prompts(model, prompts, end=frozenset(), max_new_tokens=20)
    assert [said.ids for said in theirs] == answers
    assert not any(said.finished for said in theirs)
    for ids, says in (([5] * 513, "context is 512"), ([264], "token 264 is beyond")):
        with pytest.raises(BakeoutError, match=says):
            runner.generate([ids], 1)
        with pytest.raises(BakeoutError, match=says):
            runner.logits([ids])


@pytest.mark.parametrize("to", ["onnx", "safetensors"])
def test_parity_is_compared_up_to_the_models_context(to: Any, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("gpt2", tmp_path / "model", layers=2)
    pruning = {"selective_pruning": {"forget": "sums", "ratio": 0.1}}
    plan = fit(load_recipe(write_recipe(tmp_path, checkpoint, [pruning])))
    artifact = bake(checkpoint, plan, tmp_path / "artifact", BakeOptions(to=to)).directory
    prompts = [[5 + place % 200 for place in range(length)] for length in (512, 40, 509, 500)]
    (parity,) = verify(artifact, base=checkpoint, prompts=prompts, checks=["parity"])
    assert parity.ok, parity.detail


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ({"max_position_embeddings": 512}, 512),
        ({"n_positions": 512}, 512),
        ({"text_config": {"max_position_embeddings": 512}}, 512),
        ({"max_position_embeddings": 512, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 2048),
        ({"max_position_embeddings": 4096, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 4096),
        ({"n_layer": 2}, None),
    ],
)
def test_the_context_is_read_where_configurations_name_it(config: dict[str, Any], context: int | None) -> None:
    assert Limits.of_config(config).context == context


def test_a_row_beyond_the_context_or_without_text_is_named(tmp_path: Path) -> None:
    for row, says in (
        ({"prompt": "ab", "response": "c" * 9}, "12 tokens; the model"),
        ({"prompt": ""}, "no tokens"),
    ):
        with pytest.raises(DataError, match=rf"rows\.jsonl, line 2: .*{says}"):
            path = _jsonl(tmp_path / "rows.jsonl", {"prompt": "fine"}, row)
            read_records(path, _framing("<s> $A"), Limits(context=10))
