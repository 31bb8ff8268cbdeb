"""Links between the pages of the documentation, and to files, lead somewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.documentation.blocks import anchors, links

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "examples").glob("*.md"), *(ROOT / "examples").glob("*/*.md")])


@pytest.mark.parametrize("page", [str(page.relative_to(ROOT)) for page in PAGES])
def test_relative_links_resolve(page: str) -> None:
    broken = []
    for link in links((ROOT / page).read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    assert not broken


def test_every_page_of_the_guide_is_in_its_index() -> None:
    guide = ROOT / "examples" / "guide"
    named = set(links((guide / "README.md").read_text(encoding="utf-8")))
    assert {page.name for page in guide.glob("*.md")} - {"README.md"} <= named
