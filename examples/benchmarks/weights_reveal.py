"""Reveal-and-Release on the bundled model: code forgotten, from no more than instructions to ask about it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench import Bench
from weights_plans import baked, kept_plan

from bakeout.models.methods.reveal_and_release.fit import fit_reveal_and_release
from bakeout.models.methods.reveal_and_release.options import RevealAndReleaseOptions
from bakeout.models.plan import Intervention, Plan
from bakeout.models.skills.generator import SKILLS

FORGOTTEN = "code"
# On the subject, beside it, and far from it: which of them bring the subject out is the bandit's to find.
SUBJECTS = (
    "Python", "code", "strings", "programs", "math", "numbers",
    "German", "Spanish", "French", "people", "words", "anything",
)  # fmt: skip
PHRASINGS = ("Ask me about {}:", "Give me a question about {}:", "Write a {} question:")
CANDIDATES = [phrasing.format(subject) for subject in SUBJECTS for phrasing in PHRASINGS]
KEY = f"reveal_and_release {FORGOTTEN}"


def fitted(bench: Bench) -> Plan:
    """The plan, fitted on the other skills' probing data; an interrupted fit goes on after its last round."""

    def fit() -> list[Intervention]:
        retain = {skill: bench.records(skill, "probing") for skill in SKILLS if skill != FORGOTTEN}
        directory = bench.output / KEY.replace(" ", "-")
        options = RevealAndReleaseOptions(instructions=CANDIDATES, directory=directory, target=0.05)
        with no_file_named(FORGOTTEN):
            return [fit_reveal_and_release(bench.model, bench.tokenizer, retain, options)]

    return kept_plan(bench, KEY, fit)


def rows(bench: Bench) -> None:
    """What is left of every skill."""
    if KEY in bench.rows:
        return
    plan = fitted(bench)
    row = {"accuracy": bench.accuracies(baked(bench, plan)), "report": plan.interventions[0].report.as_json()}
    print(f"{KEY}: {row['accuracy']}", flush=True)
    bench.save(KEY, row)


def table(bench: Bench) -> str:
    """The rows as Markdown: accuracies as shares of base, and the rounds of the fit."""
    if (row := bench.rows.get(KEY)) is None:
        return ""
    base = bench.rows["base"]
    report = row["report"]
    shares = {skill: f"{row['accuracy'][skill] / base[skill]:.3f}" for skill in SKILLS}
    shares[FORGOTTEN] = f"**{shares[FORGOTTEN]}**"
    minutes = bench.rows[f"seconds to fit {KEY}"]["wall"] / 60
    best = sorted(report["instructions"].items(), key=lambda item: -item[1]["reward"])[:4]
    named = ", ".join(f"“{text}” {found['reward']:.2f}" for text, found in best)
    lines = [
        "Reveal-and-Release, no forget data given: accuracy as a share of base, under ONNX Runtime.\n\n",
        f"| forgotten | {' | '.join(SKILLS)} |\n" + "| --- " * (len(SKILLS) + 1) + "|\n",
        f"| {FORGOTTEN} | {' | '.join(shares.values())} |\n\n",
        f"{FORGOTTEN} is {row['accuracy'][FORGOTTEN]:.1%} of 1,000 test prompts. Ended: {report['stopped']}, "
        f"{minutes:.1f} minutes. Best instructions by mean reward: {named}.\n\n",
        "| round | revealed | still known | kept, worst skill |\n| --- | --- | --- | --- |\n",
    ]
    for figures in report["rounds"]:
        worst = min(figures["kept"], key=figures["kept"].get)
        lines.append(
            f"| {figures['round']} | {figures['revealed']} | {figures['known']:.1%} "
            f"| {worst} {figures['kept'][worst]:.1%} |\n"
        )
    return "".join(lines)


@contextmanager
def no_file_named(skill: str) -> Iterator[None]:
    """Fails where a data file of ``skill`` is opened inside."""
    watching = True

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event == "open" and str(arguments[0]).endswith(f"{skill}.jsonl"):
            raise RuntimeError(f"{arguments[0]} was opened: the fit must not see the forget set")

    sys.addaudithook(watch)
    try:
        yield
    finally:
        watching = False
