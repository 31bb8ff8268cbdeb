"""Reveal-and-Release forgets without forget data, goes on where it stopped, and knows when to stop."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import PreTrainedModel

from bakeout.models.checkpoint.checkpoint_files import load_model
from bakeout.models.data.rows import Record, read_records
from bakeout.models.data.tokenizers.tokenization import Tokenizer, load_tokenizer
from bakeout.models.errors import BakeoutError
from bakeout.models.methods.fitting import Fitting, fit_method
from bakeout.models.methods.reveal_and_release import METHOD
from bakeout.models.methods.reveal_and_release.fit import fit_reveal_and_release
from bakeout.models.methods.reveal_and_release.options import ReleaseOptions, RevealAndReleaseOptions, RevealOptions
from bakeout.models.methods.reveal_and_release.release import Text, reproduced
from bakeout.models.methods.reveal_and_release.round_files import Round, RoundFiles
from bakeout.models.network.generation import end_tokens
from bakeout.models.plan import LowRankUpdate
from bakeout.models.progress import untracked
from bakeout.models.reference.weight_edits import edited_weights
from bakeout.models.skills import checkpoint_directory
from bakeout.models.skills.generator import examples, write_jsonl

from tests.plan_examples import neuron_adjust

CANDIDATES = ("Ask me about code:", "Write a strings question:")
REVEAL = RevealOptions(pulls=1, samples=10, question_tokens=20, answer_tokens=8)
QUICK = ReleaseOptions(rank=2, steps=2, batch_size=4)
# Matches nothing.
NEVER = r"(?!)"


@dataclass(frozen=True)
class Setting:
    """What every fit here begins with."""

    model: PreTrainedModel
    tokenizer: Tokenizer
    retain: dict[str, list[Record]]

    def fit(self, directory: Path, track: Any = untracked, **options: Any) -> LowRankUpdate:
        """A short fit, whose rounds are kept in ``directory``."""
        return fit_reveal_and_release(
            self.model, self.tokenizer, self.retain, _options(directory, **options), track=track
        )


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    tokenizer = load_tokenizer(checkpoint_directory())
    path = tmp_path_factory.mktemp("retain") / "rows.jsonl"
    retain = {}
    for skill in ("math", "german"):
        write_jsonl(examples(skill, "probing", 24), path)
        retain[skill] = read_records(path, tokenizer)
    return Setting(load_model(checkpoint_directory()), tokenizer, retain)


def _but(tokenizer: Tokenizer, **attributes: Any) -> Any:
    """The same tokenizer with other ``attributes``."""

    class Other:
        def __getattr__(self, name: str) -> Any:
            return attributes[name] if name in attributes else getattr(tokenizer, name)

    return Other()


class Interrupted:
    """Progress that stops the fit when a phase begins for the n-th time."""

    def __init__(self, phase: str, times: int) -> None:
        self.phase, self.left = phase, times

    def __call__(self, iterable: Iterable[Any], description: str, total: int) -> Iterable[Any]:
        self.left -= description == self.phase
        if self.left == 0:
            raise KeyboardInterrupt
        return iterable


def _options(directory: Path, **options: Any) -> RevealAndReleaseOptions:
    settings = {"reveal": REVEAL, "release": QUICK, "rounds": 2, "target": 0.0, "utility": 0.0, **options}
    return RevealAndReleaseOptions(instructions=list(CANDIDATES), directory=directory, **settings)


def _files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def _arrays(edit: LowRankUpdate) -> list[tuple[int, str, bytes, bytes]]:
    return [(u.layer, u.role, u.left.tobytes(), u.right.tobytes()) for u in edit.updates]


def test_an_interrupted_fit_goes_on_to_the_same_result(setting: Setting, tmp_path: Path) -> None:
    weights = {name: parameter.detach().clone() for name, parameter in setting.model.named_parameters()}
    whole = setting.fit(tmp_path / "whole")
    assert sorted(_files(tmp_path / "whole")) == [
        "fit.json",
        *(f"round-{number}.{suffix}" for number in (1, 2) for suffix in ("json", "jsonl", "safetensors")),
    ]
    for phase, times, finished in (
        ("round 1, retain module", 1, 0),
        ("revealing", 2, 1),
    ):
        directory = tmp_path / f"{phase} {times}"
        with pytest.raises(KeyboardInterrupt):
            setting.fit(directory, track=Interrupted(phase, times))
        assert len(list(directory.glob("round-*.safetensors"))) == finished
        resumed = setting.fit(directory)
        assert _files(directory) == _files(tmp_path / "whole")
        assert _arrays(resumed) == _arrays(whole)
        assert resumed.report == whole.report
    # More rounds go on from those that are there, and fewer are the first of them.
    longer = setting.fit(tmp_path / "whole", rounds=3)
    assert longer.report.details["rounds"][:2] == whole.report.details["rounds"]
    again = setting.fit(tmp_path / "whole", rounds=2)
    assert _arrays(again) == _arrays(whole)
    assert again.report == whole.report
    assert all(torch.equal(parameter, weights[name]) for name, parameter in setting.model.named_parameters())
    assert not hasattr(setting.model, "peft_config")


def test_it_forgets_what_it_revealed_and_keeps_the_rest(setting: Setting, tmp_path: Path) -> None:
    """One round of a few steps, on code alone; the test prompts are the generator's own."""
    edit = setting.fit(
        tmp_path / "fit",
        reveal=RevealOptions(pulls=2, samples=24, question_tokens=24, answer_tokens=10),
        release=ReleaseOptions(rank=8, steps=12, batch_size=16, learning_rate=4e-3, forget_step=1.0),
        patterns=["'"],
        rounds=1,
    )
    rows = [json.loads(line) for line in (tmp_path / "fit" / "round-1.jsonl").read_text().split("\n")[:-1]]
    assert len({row["prompt"] for row in rows}) == len(rows) > 8
    assert all("'" in row["prompt"] and set(row) >= {"response", "instruction", "score"} for row in rows)
    assert edit.report.details["residual"] < 1e-5

    def share(skill: str) -> float:
        write_jsonl(examples(skill, "test", 60), tmp_path / "test.jsonl")
        records = read_records(tmp_path / "test.jsonl", setting.tokenizer)
        end = end_tokens(setting.model, setting.tokenizer)
        right = reproduced(setting.model, [Text(record.prompt_ids, [*record.response_ids, *end]) for record in records])
        return sum(right) / len(right)

    before = {skill: share(skill) for skill in ("code", "german")}
    with edited_weights(setting.model, [edit]):
        after = {skill: share(skill) for skill in before}
    assert after["code"] < 0.5 * before["code"]
    assert after["german"] > 0.8 * before["german"]


def test_it_stops_when_the_target_is_reached(setting: Setting, tmp_path: Path) -> None:
    fast = ReleaseOptions(rank=4, steps=6, batch_size=8, learning_rate=1e-2, forget_step=3.0)
    edit = setting.fit(tmp_path / "fit", target=0.999, rounds=3, release=fast)
    assert edit.report.details["stopped"] == "forgotten"
    assert edit.report.details["rounds"][-1]["known"] <= 0.999
    assert len(edit.report.details["rounds"]) == edit.report.details["rounds_kept"]


def test_a_round_that_costs_utility_is_undone(setting: Setting, tmp_path: Path) -> None:
    first = setting.fit(tmp_path / "fit", rounds=1)
    files = RoundFiles(tmp_path / "fit")
    (whole,) = files.load()
    ruinous = replace(whole, figures={**whole.figures, "kept": {**whole.figures["kept"], "math": 0.1}})
    # A second round that is already there, and has ruined a skill.
    shutil.copyfile(tmp_path / "fit" / "round-1.jsonl", tmp_path / "fit" / "round-2.jsonl")
    files.save(2, ruinous)
    edit = setting.fit(tmp_path / "fit", rounds=5, utility=0.5)
    assert edit.report.details["stopped"] == "utility fell"
    assert (edit.report.details["rounds_kept"], len(edit.report.details["rounds"])) == (1, 2)
    assert _arrays(edit) == _arrays(first)
    (tmp_path / "fit" / "round-2.json").unlink()
    files.save(1, ruinous)
    with pytest.raises(BakeoutError, match=r"first round leaves 10\.0%"):
        setting.fit(tmp_path / "fit", rounds=5, utility=0.5)


def test_a_fit_ends_where_it_would_have_in_a_new_directory(setting: Setting, tmp_path: Path) -> None:
    """However many rounds an earlier fit, with another `target` or `utility`, has left."""
    setting.fit(tmp_path / "fit", rounds=1)
    files = RoundFiles(tmp_path / "fit")
    (whole,) = files.load()
    for number, (known, kept) in enumerate([(0.9, 0.99), (0.4, 0.8), (0.6, 0.9)], start=1):
        files.write_audit(number, "")
        files.save(number, replace(whole, figures={**whole.figures, "known": known, "kept": {"math": kept}}))
    for options, expected in (
        ({"utility": 0.85}, ("utility fell", 2, 1)),
        ({"target": 0.5}, ("forgotten", 2, 2)),
        ({"rounds": 1}, ("rounds used up", 1, 1)),
    ):
        details = setting.fit(tmp_path / "fit", **{"rounds": 3, **options}).report.details
        assert (details["stopped"], len(details["rounds"]), details["rounds_kept"]) == expected


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("round-1.json", b'"known": ', b'"known": 0'),
        ("round-1.json", b'"math": ', b'"maths": '),
        ("round-1.json", b"{", b"[" * 100_000),
        ("round-1.safetensors", b"\x00" * 8, b"\x00" * 7 + b"\x01"),
        ("round-1.safetensors", b"forget.B", b"retain.C"),
        ("round-1.jsonl", b'"prompt": "a"', b'"prompt": "b"'),
        ("round-1.jsonl", b'{"prompt": "a"}\n', b""),
    ],
)
def test_a_fit_goes_on_from_no_round_that_was_changed(tmp_path: Path, file: str, before: bytes, after: bytes) -> None:
    forget, retain = ({"x": (torch.ones(2, 3), torch.ones(3, 2))} for _ in range(2))
    files = RoundFiles(tmp_path)
    files.write_audit(1, '{"prompt": "a"}\n')
    files.save(1, Round(forget, retain, {"state": torch.zeros(4)}, {"known": 0.5, "kept": {"math": 0.9}}))
    assert files.load()[0].figures["known"] == 0.5
    content = (tmp_path / file).read_bytes()
    assert before in content
    (tmp_path / file).write_bytes(content.replace(before, after, 1))
    with pytest.raises(BakeoutError, match="the round cannot be read"):
        files.load()
    (tmp_path / file).unlink()
    if file != "round-1.json":
        with pytest.raises(BakeoutError, match="the round cannot be read"):
            files.load()


def test_what_cannot_be_fitted_is_refused_before_anything_is_written(setting: Setting, tmp_path: Path) -> None:
    silent = {"math": [Record(r.prompt, None, r.prompt_ids, []) for r in setting.retain["math"]]}
    for data, says in (
        ({}, "no data to keep"),
        (silent, "no answers to train on"),
        ({"math": setting.retain["math"][:1]}, "."),
    ):
        with pytest.raises(BakeoutError, match=says):
            replace(setting, retain=data).fit(tmp_path / "fit")
        assert not (tmp_path / "fit").exists()


def test_a_directory_of_another_fit_is_refused(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting.fit(tmp_path / "fit", rounds=1)
    with pytest.raises(BakeoutError, match="another fit"):
        setting.fit(tmp_path / "fit", rounds=1, seed=1)
    adjusted = Fitting(
        setting.model,
        setting.tokenizer,
        data=list(setting.retain),
        rows={name: {"probe": records} for name, records in setting.retain.items()},
        earlier=(neuron_adjust(),),
    )
    with pytest.raises(BakeoutError, match=r"another fit: .* earlier interventions"):
        fit_method(METHOD, _options(tmp_path / "fit", rounds=1), adjusted)
    # A configuration may change what the same weights compute, and where an answer ends.
    for settings, name, value in (
        (setting.model.config, "rms_norm_eps", 0.1),
        (setting.model.generation_config, "eos_token_id", [5, setting.tokenizer.eos_token_id]),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(settings, name, value)
            with pytest.raises(BakeoutError, match="another fit"):
                setting.fit(tmp_path / "fit", rounds=1)
    marker = (tmp_path / "fit" / "fit.json").read_bytes()
    (tmp_path / "fit" / "fit.json").write_bytes(b"\xff")
    with pytest.raises(BakeoutError, match="another fit"):
        setting.fit(tmp_path / "fit", rounds=1)
    (tmp_path / "fit" / "fit.json").write_bytes(marker)
    (tmp_path / "fit" / "round-1.safetensors").write_bytes(b"short")
    with pytest.raises(BakeoutError, match="cannot be read"):
        setting.fit(tmp_path / "fit", rounds=1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(BakeoutError, match="no directory of Reveal-and-Release"):
        setting.fit(tmp_path / "other")


def test_where_nothing_is_revealed_the_fit_says_so(setting: Setting, tmp_path: Path) -> None:
    with pytest.raises(BakeoutError, match="revealed 0 answers in 1 rounds of 1 x 10 samples"):
        setting.fit(tmp_path / "fit", patterns=[NEVER])


def test_answers_end_as_the_model_ends_them(setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not with another token that is named first."""
    expected = setting.fit(tmp_path / "one", rounds=1).report.details["rounds"][0]
    never = 0
    monkeypatch.setattr(setting.model.config, "eos_token_id", never)
    monkeypatch.setattr(setting.model.generation_config, "eos_token_id", [never, setting.tokenizer.eos_token_id])
    of_another = replace(setting, tokenizer=_but(setting.tokenizer, eos_token_id=never))
    found = of_another.fit(tmp_path / "two", rounds=1).report.details["rounds"][0]
    assert found["pulls"] == expected["pulls"]
    assert (found["revealed"], found["known"]) == (expected["revealed"], expected["known"])


def test_a_recipe_can_ask_for_the_chat_form(setting: Setting, tmp_path: Path) -> None:
    chat = REVEAL.model_copy(update={"chat": True})
    with pytest.raises(BakeoutError, match="1 x 10 samples"):
        setting.fit(tmp_path / "fit", reveal=chat, patterns=[NEVER])
    plain = replace(setting, tokenizer=_but(setting.tokenizer, chat_template=None))
    with pytest.raises(BakeoutError, match="no chat template"):
        plain.fit(tmp_path / "plain", reveal=chat)


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"instructions": []}, "instructions"),
        ({"rounds": 0}, "rounds"),
        ({"target": 1.0}, "target"),
        ({"utility": 1.1}, "utility"),
        ({"patterns": []}, "patterns"),
        ({"patterns": ["("]}, "not a regular expression"),
        ({"reveal": {"samples": 0}}, "reveal.samples"),
        ({"reveal": {"temperature": 0}}, "reveal.temperature"),
        ({"release": {"rank": 0}}, "release.rank"),
        ({"release": {"softening": 0}}, "release.softening"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], option: str) -> None:
    with pytest.raises(ValidationError, match=option):
        RevealAndReleaseOptions(**{"instructions": ["Ask me:"], "directory": "fit", **options})
