from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest
from click.testing import CliRunner

from bakeout.export.cli.demo import print_demo
from bakeout.export.cli.main import main
from bakeout.export.evaluation.rows import Row
from bakeout.export.pipeline.demo import METHODS, Demo, Sample, require_earlier_demo
from bakeout.export.recipes.recipe import load_recipe
from bakeout.export.report.figures_file import Attacks, Depth, Frontier, Inside, Languages, Matched, read_figures
from bakeout.models.errors import BakeoutError
from bakeout.models.skills.generator import SKILLS


def test_what_the_demo_did_not_write_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for path in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(BakeoutError, match="another output"):
            require_earlier_demo(path)
    require_earlier_demo(tmp_path / "new")
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "neuron-adjust.yaml").write_text("first")
    require_earlier_demo(tmp_path / "demo")


def test_the_table_has_a_row_a_skill_and_marks_the_forgotten_one(capsys: pytest.CaptureFixture[str]) -> None:
    models = ["base", *METHODS]
    rows = tuple(Row(model, skill, 200, 0.985, 0.25 * (model != "base")) for model in models for skill in SKILLS)
    print_demo(Demo(Path("out"), "CPUExecutionProvider", rows, (Sample(">>> 'ab'[::-1]", ("'ba'", "x", "[bold]y")),)))
    out = capsys.readouterr().out
    lines = out.splitlines()
    for skill in SKILLS:
        (line,) = (line for line in lines if line.split()[:1] == [skill])
        assert ("forgotten" in line) == (skill == "math")
        assert line.count("98.5%") == 3
    assert "25.0% refused" in out
    assert "'ab'[::-1]" in out
    assert "[bold]y" in out
    assert "out/neuron-adjust" in out
    assert "out/report.html" in out
    assert "made beforehand" in out


def test_the_figures_made_beforehand_are_whole_and_small() -> None:
    path = Path(str(files("bakeout.export").joinpath("templates/demo_figures.json")))
    kinds = {type(figure) for figure in read_figures(path)}
    assert kinds == {Inside, Depth, Frontier, Languages, Matched, Attacks}
    assert path.stat().st_size < 100_000


@pytest.mark.slow
def test_the_bundled_model_forgets_arithmetic_and_keeps_the_rest(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["demo", "-o", str(tmp_path / "demo"), "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    accuracy = {(row["model"], row["data"]): row["accuracy"] for row in rows}
    assert len(accuracy) == 3 * len(SKILLS)
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") > 5
    assert all(f"bakeout verify {method} --digest" in page for method in METHODS)
    for method in METHODS:
        load_recipe(tmp_path / "demo" / f"{method}.yaml")
        for skill in SKILLS:
            share = accuracy[method, skill] / accuracy["base", skill]
            assert share < 0.3 if skill == "math" else share > 0.85
