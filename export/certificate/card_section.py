"""The certificate as a section of the artifact's model card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bakeout.export.baking.markdown import as_text

BEGIN, END = "<!-- certificate of forgetting -->", "<!-- end of the certificate -->"


def with_section(card: str, certificate: Mapping[str, Any]) -> str:
    """The card with the certificate's section, in the place of an earlier one, or before its limits."""
    section = "\n".join([BEGIN, *lines(certificate), END, "", ""])
    before, begins, rest = card.partition(BEGIN)
    if begins:
        return before + section + rest.partition(f"{END}\n\n")[2]
    before, limits, rest = card.partition("## Limits\n")
    return f"{before}{section}{limits}{rest}" if limits else f"{card}\n{section}"


def lines(certificate: Mapping[str, Any]) -> Iterator[str]:
    """The section as lines of Markdown."""
    protocol, runtime = certificate["protocol"], certificate["runtime"]
    yield "## Certificate of forgetting"
    yield ""
    yield (
        f"Protocol {protocol['version']} ({protocol['name']}), seed {protocol['seed']}, {as_text(runtime['name'])}; "
        "intervals are at 95 %. `certificate.json` has every figure with the digests of its data."
    )
    yield ""
    yield "| data | role | rows | digest |"
    yield "| --- | --- | --- | --- |"
    for name, data in certificate["data"].items():
        digest = f"salted `{data['salted']}`" if "salted" in data else f"SHA-256 `{data['sha256']}`"
        yield f"| {as_text(name)} | {data['role']} | {data['rows']} | {digest} |"
    yield ""
    sections = dict.fromkeys(figure["section"] for figure in certificate["figures"])
    for section in sections:
        yield f"### {as_text(section[:1].upper() + section[1:])}"
        yield ""
        yield "| figure | on | precision | n | base | artifact | better |"
        yield "| --- | --- | --- | --- | --- | --- | --- |"
        for figure in certificate["figures"]:
            if figure["section"] != section:
                continue
            base = _number(figure.get("base"), figure.get("base_interval"))
            own = _number(figure["value"], figure.get("interval"))
            cells = [figure["name"], figure["slice"], figure["precision"], str(figure["n"])]
            yield f"| {' | '.join(map(as_text, cells))} | {base} | {own} | {figure['good']} |"
        yield ""
    if certificate["not_measured"]:
        yield "### Not measured"
        yield ""
        for missing in certificate["not_measured"]:
            section, name, why = (as_text(missing[key]) for key in ("section", "name", "why"))
            yield f"* {section}, {name}: not measured, {why}"
        yield ""
    yield "### What it does not protect against"
    yield ""
    for statement in certificate["statements"]:
        yield f"* {as_text(statement)}"


def _number(value: float | None, interval: list[float] | None) -> str:
    if value is None:
        return "–"
    shown = f"{value:.3g}"
    return shown if interval is None else f"{shown} [{interval[0]:.3g}, {interval[1]:.3g}]"
