"""Forms ask the same otherwise, and what is tested was never used for widening."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Literal, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bakeout.models.data.forms.everyday import EVERYDAY, SHORT_ANSWERS
from bakeout.models.data.forms.forms import Form, Query, mixture, variants
from bakeout.models.data.forms.kinds import CHAT_KINDS, MIXTURE, Affix, Kind, Surface, Use
from bakeout.models.data.forms.turns import TURNS
from bakeout.models.data.limits import Limits
from bakeout.models.data.prompt_rows import drawn_records, has_conversations, kinds_without_rendering, read_prompt_rows
from bakeout.models.data.row_source import as_source
from bakeout.models.data.tokenizers.tokenization import Tokenizer
from bakeout.models.errors import BakeoutError

from tests.tiny_models import byte_tokenizer

QUESTIONS = [Query(f"What is {n} + {n + 1}?", f" {2 * n + 1}") for n in range(40)]
CHATS = [
    Query(
        f"Anna has {n} apples, Ben has {n + 1}, and Carl has nform. How many are there?", f"{2 * n + 1}", is_chat=True
    )
    for n in range(40)
]
AFFIXES: tuple[Affix, ...] = get_args(Affix)
SURFACES: tuple[Surface, ...] = get_args(Surface)
REWRITTEN: list[Kind] = [*AFFIXES, *SURFACES]
USES: tuple[Use, ...] = ("widening", "testing")
# Of the skill, so their words may be in both uses.
REFUSED = [(query.text, "No.") for query in CHATS]


@pytest.mark.parametrize("kind", [*REWRITTEN, "few_shot"])
def test_every_prompt_gets_a_variant_that_differs_and_is_the_same_next_time(kind: Kind) -> None:
    drawn = variants(QUESTIONS, kind, seed=1, shots=QUESTIONS)
    assert drawn == variants(QUESTIONS, kind, seed=1, shots=QUESTIONS)
    assert drawn != variants(QUESTIONS, kind, seed=2, shots=QUESTIONS)
    assert len(drawn) >= 38
    assert all(form.text != QUESTIONS[form.source].text for form in drawn)
    assert len({form.source for form in drawn}) == len(drawn)


@pytest.mark.parametrize("kind", [*REWRITTEN, *CHAT_KINDS, "few_shot"])
def test_what_is_tested_was_not_widened_with(kind: Kind) -> None:
    """Of the same queries: texts, system messages, turns."""
    queries = [*CHATS, *QUESTIONS] if kind in REWRITTEN else CHATS
    refused = {"widening": REFUSED[:20], "testing": REFUSED[20:]}
    widening, testing = (
        [
            form
            for seed in range(9)
            for form in variants(queries, kind, seed=seed, use=use, shots=queries, refused=refused[use])
        ]
        for use in USES
    )
    if kind == "no_system_prompt":
        assert {form.system for form in [*widening, *testing]} == {""}
        return
    assert not {_words(form) for form in widening} & {_words(form) for form in testing}
    if kind in ("second_turn", "third_turn"):
        turns = [{turn for form in forms for turn in form.turns} for forms in (widening, testing)]
        assert not turns[0] & turns[1]
        assert min(map(len, turns)) >= 40


def _words(form: Form) -> object:
    return form.text, form.system, form.turns, form.answered[1:]


@pytest.mark.parametrize("kind", [*AFFIXES, *CHAT_KINDS])
@pytest.mark.parametrize("use", USES)
def test_a_kind_has_a_dozen_wordings_and_more_system_prompts(kind: Kind, use: Use) -> None:
    query = Query("Why?", is_chat=True)
    forms = {
        _words(form) for seed in range(400) for form in variants([query], kind, seed=seed, use=use, refused=REFUSED)
    }
    assert len(forms) >= {"system_prompt": 20, "no_system_prompt": 1}.get(kind, 12)


@pytest.mark.parametrize("kind", CHAT_KINDS)
def test_only_conversations_have_the_forms_of_conversations(kind: Kind) -> None:
    assert variants(QUESTIONS, kind, seed=0) == []
    assert len(variants(CHATS, kind, seed=0, refused=REFUSED)) == len(CHATS)


@given(st.text(min_size=1, max_size=40), st.sampled_from(CHAT_KINDS), st.sampled_from(USES), st.integers(0, 9))
def test_a_conversations_query_is_whole_in_each_form(text: str, kind: Kind, use: Use, seed: int) -> None:
    (form,) = variants([Query(text, is_chat=True)], kind, seed=seed, use=use, refused=REFUSED)
    assert text in (form.answered[0][0] if kind == "follow_up" else form.text)
    assert len(form.turns) in {"second_turn": (1,), "third_turn": (2,), "after_refusal": (1, 2)}.get(kind, (0,))


@pytest.mark.parametrize("use", USES)
def test_a_query_behind_a_refusal_is_another_than_what_was_refused(use: Use) -> None:
    for form in variants(CHATS[:3], "after_refusal", seed=0, use=use, refused=REFUSED[:3]):
        refused = [asked for asked, answer in form.turns if answer == "No."]
        assert refused and form.text not in refused
        assert all(turn in TURNS[use] for turn in form.turns if turn[1] != "No.")
    assert variants(CHATS, "after_refusal", seed=0) == []
    assert variants(CHATS[:1], "after_refusal", seed=0, refused=REFUSED[:1]) == []


@pytest.mark.parametrize("use", USES)
def test_a_follow_up_stands_behind_the_query_and_how_it_was_answered(use: Use) -> None:
    """What was refused behind its refusal; anything else behind its response or, as often, behind a refusal."""
    said = {
        query.text: {
            form.answered[0][1]
            for seed in range(20)
            for form in variants([query], "follow_up", seed=seed, use=use, refused=REFUSED[:1])
            if form.answered[0][0] == query.text
        }
        for query in (CHATS[0], CHATS[1], Query("Hm?", is_chat=True))
    }
    assert list(said.values()) == [{"No."}, {"No.", CHATS[1].response}, {"No."}]
    assert variants([Query("Hm?", is_chat=True)], "follow_up", seed=0, use=use) == []


def test_pasted_material_of_testing_is_none_that_was_fitted() -> None:
    lines = {
        use: {
            line.strip()
            for seed in range(400)
            for form in variants([Query("Why?", is_chat=True)], "attachment", seed=seed, use=use)
            for line in form.text.splitlines()
            if any(letter.isalnum() for letter in line) and "Why?" not in line
        }
        for use in USES
    }
    assert min(map(len, lines.values())) >= 40
    assert not lines["widening"] & lines["testing"]


@given(st.text(min_size=1, max_size=40), st.sampled_from(["suffix", "prefix"]), st.integers(0, 9))
def test_words_around_a_prompt_leave_it_whole(text: str, kind: Kind, seed: int) -> None:
    (form,) = variants([Query(text)], kind, seed=seed)
    assert text in form.text


@given(st.text(max_size=40), st.sampled_from(REWRITTEN), st.sampled_from(["widening", "testing"]))
def test_any_text_has_variants(text: str, kind: Kind, use: str) -> None:
    for form in variants([Query(text)], kind, seed=0, use=use):  # type: ignore[arg-type]
        assert form.text != text


def test_a_prompt_is_not_among_its_own_shots() -> None:
    for form in variants(QUESTIONS[:3], "few_shot", seed=0, shots=QUESTIONS[:3]):
        *shots, asked = form.text.split("\n")
        assert asked == QUESTIONS[form.source].text
        assert len(shots) == 2
        assert not any(shot.startswith(asked) for shot in shots)


def test_paraphrases_and_languages_are_those_that_are_given() -> None:
    queries = [Query("Hi", paraphrases=("Hello", "Hey")), Query("Bye"), Query("Yes", translations=("Ja",))]
    assert {form.text for form in variants(queries, "paraphrase", seed=0)} <= {"Hello", "Hey"}
    assert [(form.source, form.text) for form in variants(queries, "language", seed=0)] == [(2, "Ja")]


def test_what_cannot_be_varied_is_refused() -> None:
    with pytest.raises(BakeoutError, match=r"No attack is called 'poem'.*suffix"):
        variants(QUESTIONS, "poem", seed=0)  # type: ignore[arg-type]
    with pytest.raises(BakeoutError, match=r"two rows with a response.*Add responses"):
        variants(QUESTIONS, "few_shot", seed=0)


def test_everyday_questions_are_none_of_those_that_test() -> None:
    near = Path(__file__).parents[3] / "examples" / "benchmarks" / "near_misses.jsonl"
    tested = {json.loads(line)["prompt"] for line in near.read_text(encoding="utf-8").splitlines()}
    tested |= {question for question, _ in TURNS["testing"]}
    assert len(set(EVERYDAY)) == len(EVERYDAY) == 120
    assert not tested & set(EVERYDAY)
    assert SHORT_ANSWERS.keys() <= set(EVERYDAY)
    # Two answered examples stand in front of a query, which is neither of them: of each use's questions.
    for part in (EVERYDAY[:60], EVERYDAY[60:100], EVERYDAY[100:]):
        assert len(SHORT_ANSWERS.keys() & set(part)) >= 3


def test_a_mixture_gives_each_conversation_one_form_in_its_share() -> None:
    queries = [CHATS[number % len(CHATS)] for number in range(4000)]
    drawn = mixture(queries, MIXTURE, seed="0", use="widening", shots=CHATS, refused=REFUSED)
    assert drawn == mixture(queries, MIXTURE, seed="0", use="widening", shots=CHATS, refused=REFUSED)
    assert drawn != mixture(queries, MIXTURE, seed="1", use="widening", shots=CHATS, refused=REFUSED)
    assert [form.source for form in drawn] == list(range(4000))
    counts, total = Counter(form.kind for form in drawn), sum(MIXTURE.values())
    assert counts.keys() == MIXTURE.keys()
    for kind, share in MIXTURE.items():
        assert abs(counts[kind] / 4000 - share / total) < 0.03
    assert {form.kind for form in mixture(QUESTIONS, MIXTURE, seed="0", use="widening")} == {"plain"}


def test_the_forms_of_rows_are_messages_of_their_conversations() -> None:
    tokenizer: Tokenizer = byte_tokenizer()
    row = {
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Why?"},
            {"role": "assistant", "content": "So."},
        ]
    }
    (asked,) = read_prompt_rows(as_source([row]), tokenizer)
    plain = asked.plain(tokenizer)
    other = Form("system_prompt", 0, "Why?", system="Be rude.")
    assert asked.record(other, tokenizer).prompt == plain.prompt.replace("kind", "rude")
    turned = asked.record(Form("second_turn", 0, "Why?", turns=(("Hi", "Ho"),)), tokenizer)
    assert turned.prompt == plain.prompt.replace("[user]", "[user] Hi\n[assistant] Ho\n[user]")
    insisting = asked.record(Form("follow_up", 0, "So?", answered=(("Why?", "No."),), turns=(("Hi", "Ho"),)), tokenizer)
    assert insisting.prompt == turned.prompt.replace("Why?", "Why?\n[assistant] No.\n[user] So?")
    story = asked.record(Form("story", 0, "Tell: Why?"), tokenizer)
    assert story.prompt == plain.prompt.replace("Why", "Tell: Why")
    assert story.response == turned.response == plain.response
    assert has_conversations(as_source([{"prompt": "Why?"}, row])) and not has_conversations(
        as_source([{"prompt": "?"}])
    )


def test_a_row_stays_plain_where_its_form_does_not_fit_or_is_rendered_alike() -> None:
    tokenizer: Tokenizer = byte_tokenizer()
    rows = read_prompt_rows(as_source([{"messages": [{"role": "user", "content": "Why?"}]}] * 30), tokenizer)
    shares: dict[Kind | Literal["plain"], int] = {"story": 1, "no_system_prompt": 1}
    longest = len(rows[0].plain(tokenizer).prompt_ids)

    def kinds(limits: Limits) -> set[str]:
        drawn = drawn_records(rows, shares, tokenizer, seed="0", use="widening", limits=limits)
        assert all(record.form != "plain" or record == rows[0].plain(tokenizer) for record in drawn)
        return {record.form for record in drawn}

    assert kinds(Limits()) == {"story", "no_system_prompt"}
    assert kinds(Limits(context=longest + 20)) == {"plain", "no_system_prompt"}
    tokenizer.chat_template = "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{% endif %}{% endfor %}"
    assert kinds(Limits()) == {"story", "plain"}


def test_what_a_template_refuses_or_drops_is_told() -> None:
    tokenizer: Tokenizer = byte_tokenizer()
    assert not kinds_without_rendering(tokenizer)
    systems = ("system_prompt", "no_system_prompt")
    turns = ("second_turn", "third_turn", "after_refusal", "follow_up")
    each = "{% for m in messages %}{{ m.content }}{% endfor %}"
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    once = "{% if messages|length > 2 %}{{ raise_exception('one turn') }}{% endif %}"
    for template, kinds in (
        (refusing + each, systems),
        (each.replace("m.content", "m.content if m.role != 'system'"), systems),
        (once + each, turns),
        ("{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}{{ messages[-1].content }}", turns),
        ("{{ messages[-1].content }}", systems + turns),
        (None, systems + turns),
    ):
        tokenizer.chat_template = template
        assert kinds_without_rendering(tokenizer) == kinds


def test_an_empty_answer_is_none() -> None:
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": ""}]
    (row,) = read_prompt_rows(as_source([{"messages": messages}]), byte_tokenizer())
    assert row.query.response is None
