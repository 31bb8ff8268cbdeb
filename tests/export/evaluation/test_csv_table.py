"""An evaluation as a table, as CSV and as JSON."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from bakeout.export.cli.evaluate import print_evaluation
from bakeout.export.evaluation.csv_table import write_csv
from bakeout.export.evaluation.rows import BASE, Change, Evaluation, Row, TextRow
from bakeout.models.errors import BakeoutError

EVALUATION = Evaluation(
    rows=(
        Row(BASE, "math", 200, 0.98, 0.0),
        Row("one", "math", 200, 0.02, 0.97, Change(-0.96, (-0.98, -0.92), True, lost=193, gained=1)),
        Row("[bold]two", "math", 200, 0.97, 0.0, Change(-0.01, (-0.03, 0.01), False)),
    ),
    texts=(
        TextRow(BASE, "prose", 40, 0, 12.5),
        TextRow("one", "prose", 40, 3, 12.6, 1.01, (0.99, 1.04), 0.002, (0.001, 0.003)),
        TextRow("[bold]two", "prose", 40, 40, None),
    ),
)


def test_models_stand_side_by_side_with_their_changes(capsys: pytest.CaptureFixture[str]) -> None:
    print_evaluation(EVALUATION)
    out = capsys.readouterr().out
    (line,) = (line for line in out.splitlines() if "math" in line)
    assert line.split()[:3] == ["math", "200", "98.0%"]
    assert "-96.0 [-98.0, -92.0]" in line
    assert "-1.0 [-3.0, +1.0]" in line
    assert "97.0%" in line
    assert "[bold]two" in out
    assert "3 of 40" in out
    assert "1.01 [0.99, 1.04]" in " ".join(out.split())


def test_answers_that_a_limit_cut_off_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    cut = Evaluation(rows=(Row(BASE, "math", 200, 0.0, 0.0, cut_off=0.75),), texts=())
    for is_limited in (True, False):
        print_evaluation(cut, is_limited=is_limited)
        assert ("75.0%" in capsys.readouterr().out) is is_limited


def test_csv_has_every_figure_of_the_json(tmp_path: Path) -> None:
    write_csv(EVALUATION, tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    rows: list[Row | TextRow] = [*EVALUATION.rows, *EVALUATION.texts]
    assert [line["model"] for line in table] == [row.model for row in rows]
    for line, row in zip(table, rows, strict=True):
        for key, value in row.as_json().items():
            if key.endswith("_interval"):
                short = key.removesuffix("_interval")
                assert [float(line[f"{short}_low"]), float(line[f"{short}_high"])] == value
            else:
                assert line[key] == ("" if value is None else str(value))


def test_a_table_never_takes_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("mine")
    with pytest.raises(BakeoutError, match="exists already"):
        write_csv(EVALUATION, tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text() == "mine"
