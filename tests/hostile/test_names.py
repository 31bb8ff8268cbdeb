"""Names that files bring with them: no terminal obeys them, no page runs them, no spreadsheet computes them."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import shutil
import sys
import unicodedata
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from markdown_it import MarkdownIt

from bakeout.export.artifacts.file_names import MANIFEST
from bakeout.export.artifacts.manifest import write_manifest
from bakeout.export.baking.bake import bake
from bakeout.export.baking.model_card import model_card
from bakeout.export.cli.console import emit_table, progress, say, show
from bakeout.export.cli.main import main
from bakeout.export.evaluation.csv_table import write_csv
from bakeout.export.evaluation.rows import BASE, Change, Evaluation, Row, TextRow
from bakeout.export.report.page import report
from bakeout.export.running.runner import Runner
from bakeout.export.tuning.trials import Measured, Trial
from bakeout.export.tuning.tuned_files import write_tables
from bakeout.models.errors import BakeoutError
from bakeout.models.plan import KeySpaceDetection, NeuronAdjust, Plan
from bakeout.models.plan.plan_file import plan_bytes
from bakeout.models.printable import printable

from tests.report_files import EVALUATION, FIGURES, write_evaluation, write_figures

NAMES = {
    "escapes": "a\x1b[2J\x1b]0;title\x07b",
    "escapes of one byte": "a\x9b31mb\x9d0;t\x9c",
    "lines": "a\nerror: b\r\x0b\x0c\x85\u2028\u2029c",
    "directions": "a\u202egpj.exe\u2066b\u2069\u200f",
    "HTML": "<script>alert(1)</script><img src=x onerror=alert(1)>&lt;b&gt;",
    "Markdown": "a|b`c`**d**[e](javascript:f)![g](http://h/i) http://j/k www.l.m n@o.p _q_ ~~r~~ \\|",
    "blocks": "a\n\n---\nlicense: mit\n---\n# b\n> c\n- d\n    e",
    "markup of rich": "a[bold]b[/c][link=http://d]e",
    "formula": "=HYPERLINK(1)",
}
every_name = pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())


def _named(plan: Plan, name: str) -> Plan:
    """The plan of somebody who calls everything ``name``."""
    adjust, detection = plan.interventions
    assert isinstance(adjust, NeuronAdjust)
    assert isinstance(detection, KeySpaceDetection)
    (figures,) = (detection.report.skills or {}).values()
    changed = replace(
        detection,
        skills=(name,) * len(detection.skills),
        report=replace(detection.report, skills={name: figures}, forget=(name,), details={name: {name: [name]}}),
    )
    data, versions = {name: {"probe": name}}, {"bakeout": name, name: name}
    provenance = {"data": data, "versions": versions, name: [name, {name: name}]}
    interventions = (replace(adjust, report=replace(adjust.report, forget=(name,))), changed)
    return replace(
        plan, interventions=interventions, provenance=provenance, model=replace(plan.model, architecture=name)
    )


@pytest.fixture(scope="module")
def artifact(tiny_plan: Plan, llama_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bake(llama_export, tiny_plan, tmp_path_factory.mktemp("names") / "artifact").directory


def _renamed(artifact: Path, plan: Plan, name: str) -> None:
    (artifact / "plan.safetensors").write_bytes(plan_bytes(_named(plan, name)))
    manifest = json.loads((artifact / MANIFEST).read_text())
    entries = {key: value for key, value in manifest.items() if key not in ("schema", "files")}
    for receipt in entries["receipts"]:
        receipt |= {"node": name, "tensor": name}
    entries |= {"canary": name, "end_of_text": [name]}
    write_manifest(artifact, entries)


def _require_harmless(text: str) -> None:
    shown = [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c != "\n"]
    assert not shown, text


@every_name
def test_no_terminal_obeys_them(artifact: Path, tiny_plan: Plan, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(artifact, tmp_path / "artifact")
    (copy / name.replace("/", "").replace("\0", "")[:100]).write_text("x")
    _renamed(copy, tiny_plan, name)
    (copy / "config.json").write_text(json.dumps({"eos_token_id": name}))
    evaluation = json.loads(json.dumps(EVALUATION))
    evaluation["rows"][0]["accuracy"] = name
    write_evaluation(tmp_path / "evaluation.json", evaluation)
    for arguments in (
        ["inspect", str(copy)],
        ["inspect", str(copy), "--json"],
        ["inspect", str(copy / name)],
        ["verify", str(copy)],
        ["verify", str(copy), "--json"],
        ["report", str(copy), "-o", str(tmp_path / "page"), "--evaluation", str(tmp_path / "evaluation.json")],
        ["chat", str(copy), "--prompt", name],
        ["evaluate", str(copy), "--data", str(tmp_path / name)],
        [name],
    ):
        result = CliRunner().invoke(main, arguments)
        assert isinstance(result.exception, SystemExit | None), arguments
        _require_harmless(result.output)
        if result.exit_code:
            assert sum(line.startswith(("error:", '{"error"')) for line in result.stderr.splitlines()) <= 1


@every_name
def test_onnx_runtime_prints_none_of_them(
    llama_export: Path, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    directory = shutil.copytree(llama_export, tmp_path / "graph")
    model = onnx.load(directory / "model.onnx", load_external_data=False)
    # It tells of initialisers that nothing reads, and removes them.
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(3, np.float32), name))
    onnx.save(model, directory / "model.onnx")
    assert len(Runner(directory).generate([[5, 6]], 2)[0]) == 2
    out, err = capfd.readouterr()
    assert not out + err


@every_name
def test_messages_and_tables_show_them(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    say(name)
    logging.getLogger("bakeout.names").warning("%s", name)
    show(name, end="")
    emit_table([name, "b"], [[name, "1"]], title=name)
    with progress() as track:
        assert list(track([1, 2], name)) == [1, 2]
    out, err = capsys.readouterr()
    _require_harmless(out)
    _require_harmless(err)
    assert len([line for line in err.splitlines() if line.startswith("error: b")]) == 0


@every_name
def test_progress_on_a_terminal_shows_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress() as track:
        assert list(track([1, 2], name)) == [1, 2]
    for hostile in ("\x1b[2J", "\x1b]0;", "\x9b", "\x85", "\u202e", "\r\x0b"):
        assert hostile not in terminal.getvalue()


@every_name
def test_an_error_is_two_lines_in_the_library_too(name: str) -> None:
    error = BakeoutError(f"{name} is missing.", f"Make {name}.")
    assert len(error.cause.splitlines()) == len(error.remedy.splitlines()) == 1


def test_other_scripts_are_shown_as_they_are() -> None:
    text = "é 漢\u3000字 \u00a0 👩\u200d🚀 \u0928\u200c\u092e \u05d0"
    assert printable(text) == text


@every_name
def test_a_card_shows_them(tiny_plan: Plan, name: str) -> None:
    rows = [Row(BASE, name, 10, 0.9, 0.0), Row("out", name, 10, 0.1, 0.8)]
    card = model_card(_named(tiny_plan, name), rows)
    plain = model_card(_named(tiny_plan, "plain"), [replace(row, data="plain") for row in rows])
    _require_harmless(card)
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    tokens, expected = parser.parse(card), parser.parse(plain)
    # The same headings, tables, and cells; no link, image, tag, code or emphasis more.
    assert [token.type for token in tokens] == [token.type for token in expected]
    assert _inner_types(tokens) == _inner_types(expected)
    assert card.split("---")[:2] == plain.split("---")[:2]
    assert "<script" not in re.sub("`.*?`", "", card)


def _inner_types(tokens: list[Any]) -> list[list[str]]:
    """Of each text, what it is made of, but for plain text."""
    plain = ("text", "text_special", "softbreak")
    return [[one.type for one in token.children if one.type not in plain] for token in tokens if token.children]


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[str, ...]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, tuple(name for name, _ in attrs)))


def _elements(page: str) -> list[tuple[str, tuple[str, ...]]]:
    parser = _Elements()
    parser.feed(page)
    return parser.seen


def _page(artifact: Path, plan: Plan, name: str, directory: Path) -> str:
    copy = shutil.copytree(artifact, directory / "artifact")
    _renamed(copy, plan, name)
    text = json.dumps([EVALUATION, FIGURES])
    for replaced in ('"names"', '"prose"', '"a benchmark"'):
        text = text.replace(replaced, json.dumps(name))
    evaluation, figures = json.loads(text)
    files = [
        write_evaluation(directory / "evaluation.json", evaluation),
        write_figures(directory / "figures.json", figures),
    ]
    return report([copy], evaluations=files[:1], figures=files[1:])


@pytest.fixture(scope="module")
def plain_page(artifact: Path, tiny_plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> str:
    return _page(artifact, tiny_plan, "plain", tmp_path_factory.mktemp("plain"))


# To draw a page takes seconds.
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in ("HTML", "lines") else pytest.mark.slow) for kind in NAMES]
)
def test_a_report_shows_them(artifact: Path, tiny_plan: Plan, plain_page: str, tmp_path: Path, kind: str) -> None:
    page = _page(artifact, tiny_plan, NAMES[kind], tmp_path)
    _require_harmless(page)
    drawings = {"g", "path", "use", "text", "tspan", "defs", "clippath", "rect", "svg", "style"}
    plain, named = ([one for one in _elements(shown) if one[0] not in drawings] for shown in (plain_page, page))
    assert named == plain
    assert "<script" not in page


@every_name
def test_no_spreadsheet_computes_them(tmp_path: Path, name: str) -> None:
    rows = (
        Row(BASE, name, 10, 0.98, 0.0),
        Row(name, "a", 10, 0.02, 0.97, Change(-0.96, (-0.98, -0.92), False)),
    )
    write_csv(Evaluation(rows, (TextRow(name, name, 4, 0, 12.5),)), tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 3
    for row in table:
        for cell in (row["model"], row["data"]):
            assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
            assert cell.removeprefix("'") in (printable(name), "a", BASE)
    # Numbers stay numbers.
    assert (table[1]["change"], table[1]["change_low"]) == ("-0.96", "-0.98")


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1+cmd|' /C calc'!A0", "@SUM(1)", "\t=1", "\r=1"])
def test_no_spreadsheet_computes_names_of_data_in_the_tables_of_trials(tmp_path: Path, name: str) -> None:
    class Entry:
        method = type("Method", (), {"name": "neuron_adjust"})

    class Recipe:
        interventions = (Entry,)

    trial = Trial({"ratio": -0.5}, Measured({name: 0.1}, {name: 0.9}, 0.2))
    recipe: Any = Recipe
    write_tables(tmp_path, recipe, {0: [trial]}, {0: {"ratio": 0.5}})
    (path,) = tmp_path.glob("*.csv")
    with path.open(newline="", encoding="utf-8") as file:
        header, row = csv.reader(file)
    assert header == ["ratio", f"'{printable(name)}", f"'{printable(name)}", "divergence"]
    assert row[0] == "-0.5"
