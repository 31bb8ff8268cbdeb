"""Chat templates as models have them: several by name, ones that read the clock, take arguments, open the reasoning."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from transformers import AutoTokenizer

from bakeout.export.artifacts.manifest import read_manifest
from bakeout.export.baking.bake import bake
from bakeout.export.cli.main import main
from bakeout.export.evaluation.evaluate import evaluate
from bakeout.export.fitting.fit import fit
from bakeout.export.pipeline.build import build
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.export.recipes.recipe import RecipeError, load_recipe
from bakeout.export.running.chat import Chat
from bakeout.export.running.runner import Runner
from bakeout.export.tuning.tune import tune
from bakeout.models.data.row_source import DataError, as_source
from bakeout.models.data.rows import read_records
from bakeout.models.data.tokenizers.chat_answer import render_begun
from bakeout.models.data.tokenizers.chat_options import CHAT_TEMPLATE, ChatTemplateOptions
from bakeout.models.data.tokenizers.chat_template import ChatTemplateError, render_chat
from bakeout.models.data.tokenizers.json_tokenizer import JsonTokenizer
from bakeout.models.data.tokenizers.tokenization import load_tokenizer
from bakeout.models.errors import BakeoutError
from bakeout.models.methods.reveal_and_release.scorers import encoded
from bakeout.models.plan.plan_file import plan_bytes

from tests.recipe_files import rows, write_recipe
from tests.tiny_models import byte_tokenizer

# The day in the first line, with a percent sign before a letter, and reasoning that an argument turns off.
CLOCK = (
    "Today is {{ strftime_now('%d %b %Y (%%d)') }}, day %j.\n"
    "{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}"
    "{% for turn in messages %}[{{ turn.role }}] {{ turn.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% if not enable_thinking %}<think></think>{% endif %}{% endif %}"
)
# As DeepSeek-R1: the generation prompt opens the reasoning, and answers that were given have none.
REASONING = (
    "{% for turn in messages %}{% if turn.role == 'assistant' %}<a>{{ turn.content.split('</think>')[-1].strip() }}<e>"
    "{% else %}<u>{{ turn.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<a><think>\n{% endif %}"
)
# As SmolLM3: without reasoning, the generation prompt holds an empty one, and answers that were given hold none.
WITHOUT_REASONING = (
    "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}<e>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if not thinking %}<think>\n\n</think>\n{% endif %}{% endif %}"
)
# As DeepSeek-V3.1: a generation prompt that opens the reasoning, answers in which it is closed.
CLOSED_REASONING = (
    "{% for turn in messages %}{% if turn.role == 'user' %}<u>{{ turn.content }}{% else %}<a></think>"
    "{{ turn.content.split('</think>', 1)[-1] }}<e>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<a><think>{% endif %}"
)
# As Mistral's: what stands before the last message is written elsewhere once that message is answered.
LAST_TURN = (
    "{% for turn in messages %}{% if turn.role == 'user' %}{% if loop.last %}[tools]{% endif %}"
    "[i]{{ turn.content }}[/i]{% else %} {{ turn.content }}<e>{% endif %}{% endfor %}"
)
CHATML = (
    "{% for turn in messages %}<{{ turn.role }}>\n{{ turn.content }}<e>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)
QUESTION = {"role": "user", "content": "3+4?"}


def _answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _tokenizer(template: object, **options: Any) -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return ChatTemplateOptions(**options).applied_to(tokenizer)


def _record(tokenizer: Any, *messages: dict[str, str]) -> tuple[str, str | None]:
    (record,) = read_records(as_source([{"messages": list(messages)}]), tokenizer)
    assert tokenizer.decode(record.prompt_ids + record.response_ids) == record.prompt + (record.response or "")
    return record.prompt, record.response


@pytest.mark.parametrize(
    ("template", "answer", "prompt", "response"),
    [
        (REASONING, "7", "<u>3+4?<a><think>\n", "7<e>"),
        (REASONING, "<think>\nadd\n</think>\n\n7", "<u>3+4?<a><think>\n", "add\n</think>\n\n7<e>"),
        (REASONING, "<think>add</think>7", "<u>3+4?<a><think>\n", "add</think>7<e>"),
        (REASONING.replace("<think>\n", ""), "<think>add</think>7", "<u>3+4?<a>", "<think>add</think>7<e>"),
        (WITHOUT_REASONING, "7", "<user>3+4?<e>\n<assistant><think>\n\n</think>\n", "7<e>"),
        (WITHOUT_REASONING, "<think>", "<user>3+4?<e>\n<assistant><think>\n\n</think>\n", "<think><e>"),
        # As ChatML: no model is asked for the line break behind its end.
        (CHATML, "7 \n", "<user>\n3+4?<e>\n<assistant>\n", "7 \n<e>"),
        (CHATML.replace("<e>", ""), "7", "<user>\n3+4?\n<assistant>\n", "7\n"),
        (CLOSED_REASONING, "7", "<u>3+4?<a><think>", "</think>7<e>"),
        (CLOSED_REASONING, "<think>add</think>7", "<u>3+4?<a><think>", "add</think>7<e>"),
        (LAST_TURN, "7", "[tools][i]3+4?[/i]", "7<e>"),
    ],
)
def test_the_answer_follows_a_generation_prompt_that_history_lacks(
    template: str, answer: str, prompt: str, response: str
) -> None:
    tokenizer = _tokenizer(template)
    assert _record(tokenizer, QUESTION, _answer(answer)) == (prompt, response)
    # The query alone is the same, answered or not.
    assert _record(tokenizer, QUESTION) == (prompt, None)


def test_earlier_turns_are_rendered_as_history() -> None:
    turns = [QUESTION, _answer("<think>\nadd\n</think>\n\n7"), {"role": "user", "content": "twice?"}, _answer("14")]
    assert _record(_tokenizer(REASONING), *turns) == ("<u>3+4?<a>7<e><u>twice?<a><think>\n", "14<e>")


def test_a_conversation_goes_on_with_what_the_template_keeps_of_an_answer(
    llama_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Runner(llama_onnx)
    runner.tokenizer = _tokenizer(REASONING)  # a cached property
    asked: list[str] = []
    said = iter(["add\n</think>\n\n7", "14"])

    def stream(tokens: list[int], *_: Any, **__: Any) -> Any:
        asked.append(runner.tokenizer.decode(tokens))
        return iter(runner.tokenizer.encode(next(said)))

    monkeypatch.setattr(runner, "stream", stream)
    chat = Chat(runner)
    for question in ("3+4?", "twice?"):
        "".join(chat.answer(question))
    assert asked == ["<u>3+4?<a><think>\n", "<u>3+4?<a>7<e><u>twice?<a><think>\n"]


def test_an_answer_is_continued_where_it_ends() -> None:
    assert render_begun(_tokenizer(REASONING), [QUESTION, _answer("It is ")]) == "<u>3+4?<a>It is"
    assert render_begun(_tokenizer(LAST_TURN), [QUESTION, _answer("It is ")]) == "[i]3+4?[/i] It is "


@pytest.mark.parametrize(
    "template", ["{{ [1, 2] | random }}", "{{ lipsum() }}", "{{ [].pop() }}", "{{ cycler().next() }}", "{{ 'a'.b.c }}"]
)
def test_whatever_a_template_raises_is_one_line_with_the_row(template: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "fine"}) + "\n" + json.dumps({"messages": [QUESTION]}) + "\n")
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2: The chat template refuses the messages \(") as caught:
        read_records(path, _tokenizer(template))
    assert "\n" not in str(caught.value)


SEVERAL = {"chatml": CLOCK, "tool_use": "{{ tools | tojson }}{{ messages[0].content }}"}


def test_several_templates_without_a_default_are_named(tmp_path: Path) -> None:
    tokenizer = _tokenizer(SEVERAL)
    tokenizer.save_pretrained(tmp_path)
    for reader in (tokenizer, load_tokenizer(tmp_path), JsonTokenizer(tmp_path)):
        with pytest.raises(
            DataError, match=r"row 1: .*several chat templates.*chatml, tool_use.*`chat_template: chatml`"
        ):
            _record(reader, QUESTION)
        with pytest.raises(ChatTemplateError, match="several chat templates"):
            encoded("one", reader, chat=True)
        chosen = ChatTemplateOptions(name="tool_use", arguments={"tools": [{"name": "f"}]}).applied_to(reader)
        assert _record(chosen, QUESTION) == ('[{"name": "f"}]3+4?', None)
        # As transformers chooses where there are tools.
        assert ChatTemplateOptions(arguments={"tools": [1]}).applied_to(reader).chat_template.endswith("content }}")
        # Rows without messages need none.
        assert ChatTemplateOptions().applied_to(reader) is reader


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name": "chatm"}, "no chat template called 'chatm'.*chatml, tool_use"),
        ({"name": "chatml", "arguments": {"enable_thinkin": False}}, "no argument called.*'enable_thinking'"),
        ({"name": "chatml", "arguments": {"messages": []}}, "no argument called 'messages'"),
        ({"name": "tool_use", "date": "2024-01-02"}, "does not read the clock"),
        ({"arguments": {"enable_thinking": False}}, "several chat templates"),
    ],
)
def test_a_choice_without_effect_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ChatTemplateError, match=says):
        _tokenizer(SEVERAL, **options)
    with pytest.raises(ChatTemplateError, match=r"has none|no chat template"):
        _tokenizer(None, **options)


@pytest.mark.parametrize(
    "value", [True, None, 7, -1.5e-9, "a\n'\"\\ {{ }} {% %} {# é 😀", [1, [2], {}], {"a": {"b": [None]}}, ""]
)
def test_an_argument_is_the_templates_default_in_every_renderer(value: Any) -> None:
    source = "{% macro inner() %}{{ given | tojson }}{% endmacro %} \n{% if given is defined %}{{ inner() }}{% endif %}"
    ours = _tokenizer(source, arguments={"given": value})
    theirs = byte_tokenizer()
    theirs.chat_template = source
    expected = theirs.apply_chat_template([QUESTION], tokenize=False, given=value)
    assert render_chat(ours, [QUESTION], generation=False) == expected
    assert ours.apply_chat_template([QUESTION], tokenize=False) == expected
    # Who serves the artifact may still give another.
    assert ours.apply_chat_template([QUESTION], tokenize=False, given=8) == " \n8"


def test_the_clock_stands_still() -> None:
    plain, pinned = byte_tokenizer(), _tokenizer(CLOCK)
    plain.chat_template = CLOCK
    rendered = "Today is 26 Jul 2024 (%d), day %j.\n[user] 3+4?\n"
    assert render_chat(plain, [QUESTION], generation=False) == rendered
    assert render_chat(pinned, [QUESTION], generation=False) == rendered
    # In transformers, whose clock is today's.
    assert pinned.apply_chat_template([QUESTION], tokenize=False) == rendered
    assert plain.apply_chat_template([QUESTION], tokenize=False) != rendered
    chosen = _tokenizer("{{ strftime_now('%A, %-d %B %y, %H:%M') }}", date="2031-02-03")
    assert chosen.apply_chat_template([QUESTION], tokenize=False) == "Monday, 3 February 31, 00:00"
    percents = "{{ strftime_now('%%|%d%%|%%d|%%%d|%%%%') }}"
    plain.chat_template, pinned = percents, _tokenizer(percents)
    assert render_chat(plain, [QUESTION], generation=False) == "%|26%|%d|%26|%%"
    assert pinned.apply_chat_template([QUESTION], tokenize=False) == "%|26%|%d|%26|%%"


def _chats(subject: str, use: str) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": row["prompt"]}, _answer(row["response"])]}
        for row in rows(subject, use)
    ]


def _recipe(directory: Path, checkpoint: Path, template: object, **sections: Any) -> Path:
    """A recipe of chats for a copy of a checkpoint whose tokenizer has other templates."""
    model = directory / "model"
    shutil.copytree(checkpoint, model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = template
    (model / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(model)
    data = {name: {use: _chats(name, use) for use in ("probe", "test")} for name in ("sums", "names")}
    pruning = [{"selective_pruning": {"forget": "sums", "retain": "names", "ratio": 0.1}}]
    return write_recipe(directory, model, **{"data": data, "interventions": pruning, **sections})


def test_a_plan_records_the_day_and_its_artifact_renders_by_it(llama_checkpoint: Path, tmp_path: Path) -> None:
    plan = fit(load_recipe(_recipe(tmp_path, llama_checkpoint, CLOCK)))
    assert plan.provenance[CHAT_TEMPLATE] == {"date": "2024-07-26"}
    artifact = bake(tmp_path / "model", plan, tmp_path / "artifact", BakeOptions(to="safetensors")).directory
    assert read_manifest(artifact)[CHAT_TEMPLATE] == {"date": "2024-07-26"}
    served = AutoTokenizer.from_pretrained(artifact).apply_chat_template([QUESTION], tokenize=False)
    assert served == render_chat(load_tokenizer(tmp_path / "model"), [QUESTION], generation=False)
    assert "26 Jul 2024" in served


def test_a_plan_without_a_choice_is_what_it_was(llama_checkpoint: Path, tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, llama_checkpoint, byte_tokenizer().chat_template)
    assert CHAT_TEMPLATE not in fit(load_recipe(recipe)).provenance
    # A clock that no row makes the template read changes nothing either.
    prompts = {name: {"probe": rows(name, "probe")} for name in ("sums", "names")}
    recipe = _recipe(tmp_path / "clock", llama_checkpoint, CLOCK, data=prompts)
    assert CHAT_TEMPLATE not in fit(load_recipe(recipe)).provenance


def test_a_recipe_chooses_template_arguments_and_day_for_every_command(
    llama_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = {"name": "chatml", "arguments": {"enable_thinking": False}, "date": "2025-12-24"}
    recipe = _recipe(tmp_path, llama_checkpoint, SEVERAL, chat_template=chosen)
    built = build(recipe, tmp_path / "artifact")
    manifest = read_manifest(built.directory)
    assert manifest[CHAT_TEMPLATE] == chosen
    prompt = "Today is 24 Dec 2025 (%d), day %j.\n[user] 3+4?\n[assistant]<think></think>"
    for reader in (AutoTokenizer.from_pretrained(built.directory), JsonTokenizer(built.directory)):
        assert isinstance(reader.chat_template, str)
        assert reader.apply_chat_template([QUESTION], tokenize=False, add_generation_prompt=True) == prompt
    # Which writes the line breaks behind a template's tags.
    genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    served = genai.Tokenizer(genai.Model(str(built.directory)))
    assert served.apply_chat_template(json.dumps([QUESTION]), add_generation_prompt=True) == prompt
    # The base model is asked as the artifact is, when it is built and afterwards.
    chats = tmp_path / "chats.jsonl"
    chats.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _chats("sums", "test")))
    again = evaluate([built.directory], [chats], base=tmp_path / "model")
    assert [row.accuracy for row in again.rows] == [row.accuracy for row in built.rows if row.data == "sums"]
    run = CliRunner().invoke(
        main, ["chat", str(built.directory), "--prompt", "3+4?", "--max-new-tokens", "3", "--json"]
    )
    runner = Runner(built.directory)
    tokens = list(runner.stream(runner.tokenizer.encode(prompt), 3))
    assert json.loads(run.stdout)["answer"] == runner.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    # Another choice is another plan.
    other = load_recipe(recipe).model_copy(update={"chat_template": ChatTemplateOptions(name="chatml")})
    assert plan_bytes(fit(other)) != (built.directory / "plan.safetensors").read_bytes()


def test_commands_without_a_recipe_choose_by_options(llama_onnx: Path, tmp_path: Path) -> None:
    graph = tmp_path / "graph"
    shutil.copytree(llama_onnx, graph)
    (graph / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = SEVERAL
    tokenizer.save_pretrained(graph)
    chats = tmp_path / "chats.jsonl"
    chats.write_text(json.dumps({"messages": [QUESTION, _answer("7")]}) + "\n")
    asking = ["chat", str(graph), "--prompt", "3+4?", "--max-new-tokens", "2"]
    measuring = ["evaluate", str(graph), "--data", str(chats)]
    for command in (asking, measuring):
        refused = CliRunner().invoke(main, command)
        assert refused.exit_code == 1
        assert "`--template chatml`" in refused.output
        assert "Traceback" not in refused.output
        options = [
            "--template",
            "chatml",
            "--template-argument",
            "enable_thinking=false",
            "--template-date",
            "2024-01-02",
        ]
        assert CliRunner().invoke(main, [*command, *options]).exit_code == 0
    for wrong, says in (
        (["--template-argument", "x"], "`--template-argument` as NAME=VALUE"),
        (["--template-date", "today"], "`--template-date`: "),
        (["--template", "tool_use", "--template-date", "2024-01-02"], "does not read the clock"),
    ):
        refused = CliRunner().invoke(main, [*asking, *wrong])
        assert (refused.exit_code, says in " ".join(refused.output.split())) == (1, True), refused.output


def test_tuning_renders_by_the_recipes_template(llama_checkpoint: Path, tmp_path: Path) -> None:
    selection = {name: {use: _chats(name, use) for use in ("probe", "selection")} for name in ("sums", "names")}
    adjusting = [{"neuron_adjust": {"forget": "sums", "ratio": "auto"}}]
    sections = {"data": selection, "interventions": adjusting}
    recipe = _recipe(tmp_path, llama_checkpoint, SEVERAL, **sections)
    with pytest.raises(DataError, match="several chat templates"):
        tune(recipe, tmp_path / "tuned.yaml", trials=1)
    chosen = _recipe(tmp_path / "chosen", llama_checkpoint, SEVERAL, **sections, chat_template="chatml")
    tuned = tune(chosen, tmp_path / "tuned.yaml", trials=1, prompts=4)
    assert load_recipe(tuned.recipe).chat_template.name == "chatml"


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ({"nam": "x"}, "did you mean 'name'"),
        ({"date": "tomorrow"}, "chat_template.date: .*not a day"),
        ({"date": "2024-01-02T03:04"}, "not a day"),
        ({"arguments": ["x"]}, "arguments"),
    ],
)
def test_a_recipes_choice_is_checked_with_its_line(
    written: dict[str, Any], says: str, llama_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=says):
        load_recipe(write_recipe(tmp_path, llama_checkpoint, chat_template=written))


def test_named_templates_in_files_of_their_own_travel(llama_checkpoint: Path, tmp_path: Path) -> None:
    several = {"default": byte_tokenizer().chat_template, "short": "{{ messages[0].content[:1] }}"}
    plan = fit(load_recipe(_recipe(tmp_path, llama_checkpoint, several)))
    artifact = bake(tmp_path / "model", plan, tmp_path / "artifact", BakeOptions(to="safetensors")).directory
    assert AutoTokenizer.from_pretrained(artifact).chat_template == JsonTokenizer(artifact).chat_template == several


def test_a_record_that_is_none_is_refused(llama_checkpoint: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    plan = fit(load_recipe(_recipe(tmp_path, llama_checkpoint, CLOCK)))
    for record in ("x" * 10, {"date": "never"}, {"arguments": {"x": 1}}, {"name": "absent"}, 7):
        forged = replace(plan, provenance={**plan.provenance, CHAT_TEMPLATE: record})
        with pytest.raises(BakeoutError):
            bake(tmp_path / "model", forged, tmp_path / "artifact", BakeOptions(to="safetensors"))
        assert not (tmp_path / "artifact").exists()
