"""The report in a real Chromium: every figure is drawn, nothing complains, and it fits a phone and paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bakeout.export.baking.bake import bake
from bakeout.export.report.page import write_report
from bakeout.models.plan import Plan

from tests.report_files import FIGURES, write_evaluation, write_figures
from tests.runtimes.chromium import Page, chromium, page

PHONE = 390


@pytest.fixture(scope="module")
def opened(tiny_plan: Plan, llama_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A report with a figure of every kind, opened as people open it: from the disk."""
    browser = chromium()
    if browser is None:
        pytest.skip("there is no Chromium here (Debian: apt-get install chromium)")
    directory = tmp_path_factory.mktemp("report-page")
    artifact = bake(llama_export, tiny_plan, directory / "artifact").directory
    write_report(
        [artifact],
        directory / "report.html",
        evaluations=[write_evaluation(directory / "evaluation.json")],
        figures=[write_figures(directory / "figures.json", FIGURES)],
    )
    with page(browser, directory / "profile") as found:
        found.resize(1200, 900)
        found.go_to((directory / "report.html").as_uri())
        found.wait_for("document.readyState === 'complete' && document.querySelector('main')")
        yield found


def test_every_figure_is_drawn(opened: Page) -> None:
    opened.resize(1200, 900)
    drawn = opened.evaluate(
        """[...document.querySelectorAll('figure')].map((figure) => {
            const svg = figure.querySelector('svg');
            const box = svg.getBoundingClientRect();
            const marks = [...svg.querySelectorAll('path, use, text')].filter((one) => !one.closest('defs'));
            const cut = marks.filter((one) => {
                const mark = one.getBoundingClientRect();
                return mark.width + mark.height === 0 || mark.left < box.left - 1 || mark.right > box.right + 1
                    || mark.top < box.top - 1 || mark.bottom > box.bottom + 1;
            });
            return [figure.querySelector('h3').textContent, box.width, box.height,
                cut.map((one) => one.outerHTML.slice(0, 120)),
                [...svg.querySelectorAll('text')].filter((one) => one.getBBox().width > 0).length];
        })"""
    )
    assert len(drawn) == 5
    for title, width, height, cut, texts in drawn:
        assert title
        assert min(width, height) > 100, title
        assert cut == [], title
        assert texts > 5, title


def test_nothing_complains_and_nothing_is_fetched(opened: Page) -> None:
    assert opened.errors == []
    assert [request for request in opened.requests if not request.startswith("file:")] == []
    assert len(opened.requests) == 1


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_fits_a_phone_and_can_be_read(opened: Page, dark: bool) -> None:
    opened.resize(PHONE, 844, dark=dark)
    assert opened.evaluate("document.documentElement.scrollWidth") <= PHONE
    # Wide tables scroll in boxes of their own, which the keyboard reaches.
    wide = opened.evaluate(
        """[...document.querySelectorAll('main *')].filter((one) => !one.closest('.wide, pre, svg')
            && one.getBoundingClientRect().right > innerWidth + 1).map((one) => one.outerHTML.slice(0, 80))"""
    )
    assert wide == []
    assert opened.evaluate("[...document.querySelectorAll('.wide')].every((one) => one.tabIndex === 0)")
    smallest = opened.evaluate(
        """Math.min(...[...document.querySelectorAll('.plot svg text')].map((one) =>
            parseFloat(getComputedStyle(one).fontSize) * Math.hypot(one.getScreenCTM().a, one.getScreenCTM().b)))"""
    )
    assert smallest >= 9
    for selector in ("main p", "figcaption", "thead th", "summary", ".brand", ".gone th", ".ci"):
        assert opened.contrast(selector) >= 4.5, selector


def test_on_paper_it_is_dark_on_white_and_whole(opened: Page, tmp_path: Path) -> None:
    opened.resize(1200, 900, dark=True)
    printed = opened.print_pages()
    assert printed.startswith(b"%PDF")
    (tmp_path / "report.pdf").write_bytes(printed)
    opened.emulate_paper()
    assert opened.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
    assert opened.contrast("main p") >= 7
    assert opened.evaluate("[...document.querySelectorAll('.wide')].every((one) => one.scrollWidth <= one.clientWidth)")
    assert opened.evaluate("[...document.querySelectorAll('figure svg')].every((one) => one.clientWidth > 100)")
    # Receipts are printed though they are folded on the screen.
    assert opened.evaluate("document.querySelector('.receipts table').getBoundingClientRect().height > 20")
