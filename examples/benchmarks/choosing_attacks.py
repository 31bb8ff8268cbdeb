"""What gets through Key Space Detection in other forms, with its probe set as it is and widened by `augment`."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import Bench

from bakeout.export.attacks.attack import AttackRow, attack, attacks_figure
from bakeout.export.baking.bake import bake
from bakeout.export.fitting.fit import fit
from bakeout.export.recipes.bake_options import BakeOptions
from bakeout.export.recipes.recipe import load_recipe
from bakeout.export.report.figures_file import Figure
from bakeout.models.plan import Positions
from bakeout.models.skills import vocabulary as words
from bakeout.models.skills.generator import SKILLS, Example, examples, write_jsonl

FORGOTTEN = ("math", "german")
# Other kinds than these are never seen while fitting; of these, testing draws other words, spacing and letter case.
WIDENED = ["suffix", "prefix", "whitespace", "case", "punctuation"]
SETTINGS: dict[str, list[str]] = {"plain": [], "augment": WIDENED}
POSITIONS: Sequence[Positions] = ("step", "every")
# Rows a split of the skill to forget, and of the others.
ROWS = {"probing": 600, "selection": 300, "calibration": 600, "test": 200}
OTHERS = {"selection": 200, "calibration": 200, "test": 200}
TEMPLATES: dict[str, Sequence[Sequence[str]]] = {
    "math": (words.SUM_PROBLEMS, words.DIFFERENCE_PROBLEMS, words.BARE_SUMS, words.BARE_DIFFERENCES),
    "german": (words.TRANSLATION_CORES,),
}


def rows(bench: Bench) -> None:
    """Fit with everything left `auto`, bake, attack, and see what the other skills keep."""
    for skill in FORGOTTEN:
        for name, augment in SETTINGS.items():
            if f"attacks {skill} {name}" not in bench.rows:
                _attack(bench, skill, name, augment)


def _attack(bench: Bench, skill: str, name: str, augment: list[str]) -> None:
    directory = bench.output / "attacks" / skill
    recipe = _recipe(bench, directory, skill, augment)
    artifact = directory / name
    shutil.rmtree(artifact, ignore_errors=True)
    plan = fit(load_recipe(recipe))
    bake(bench.base, plan, artifact, BakeOptions())
    tested = directory / "asked.jsonl"
    mixed = directory / "mixed.jsonl"
    mixed.write_text(
        "".join((directory / "data" / f"{one}.test.jsonl").read_text() for one in SKILLS if one != skill),
        encoding="utf-8",
    )
    found = attack([artifact], [tested], positions=POSITIONS, base=bench.base, mixed=mixed, prompts=ROWS["test"])
    (check,) = plan.interventions
    row = {
        "structure": check.report.as_json()["choice"]["chosen"],
        "false_refusals": {other: entry["rate"] for other, entry in check.report.as_json()["retain"].items()},
        "rows": [one.as_json() for one in found],
    }
    shares = {f"{one.target} {one.attack}": round(one.through / one.prompts, 3) for one in found}
    print(f"attacks {skill} {name}: {shares}, {row['false_refusals']}", flush=True)
    bench.save(f"attacks {skill} {name}", row)


def _recipe(bench: Bench, directory: Path, skill: str, augment: list[str]) -> Path:
    data: dict[str, dict[str, str]] = {}
    (directory / "data").mkdir(parents=True, exist_ok=True)
    for name in SKILLS:
        data[name] = {}
        for split, count in (ROWS if name == skill else OTHERS).items():
            use = "probe" if split == "probing" else split
            data[name][use] = f"data/{name}.{use}.jsonl"
            write_jsonl(examples(name, split, count), directory / data[name][use])
    _write_asked(skill, directory / "asked.jsonl")
    entry = {"key_space_detection": {"forget": skill, "region": "cube", "augment": augment}}
    content = {"model": str(bench.checkpoint.resolve()), "data": data, "interventions": [entry]}
    path = directory / "recipe.yaml"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def _write_asked(skill: str, path: Path) -> None:
    """The test prompts, each with its paraphrases: the same question by the skill's other templates."""
    draw = random.Random(f"paraphrases/{skill}")
    found = examples(skill, "test", ROWS["test"])
    content: list[dict[str, Any]] = [
        {"prompt": one.prompt, "response": one.response, "paraphrases": _paraphrases(one, skill, draw)} for one in found
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content), encoding="utf-8")


def _paraphrases(example: Example, skill: str, draw: random.Random) -> list[str]:
    """The question by the other templates of its kind, in random order; a name that the question lacks is made up."""
    asked = example.prompt
    for part in (*words.OPENERS, *words.CLOSERS):
        asked = asked.removeprefix(part).removesuffix(part)
    for templates in TEMPLATES[skill]:
        for template in templates:
            pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+?)", re.escape(template))
            # A template that names a slot twice has the same words in both.
            pattern = re.sub(r"(\(\?P<(\w+)>[^)]*\))(.*)\(\?P<\2>[^)]*\)", r"\1\3(?P=\2)", pattern)
            if (match := re.fullmatch(pattern, asked, re.IGNORECASE)) is not None:
                slots = {"name": words.FIRST_NAMES[0], **match.groupdict()}
                return [one.format(**slots) for one in draw.sample(templates, len(templates)) if one != template]
    raise ValueError(f"no template of {skill} gives {example.prompt!r}")


def figures(bench: Bench) -> list[Figure]:
    """What gets through, per attack and setting."""
    found: list[Figure] = []
    for skill in FORGOTTEN:
        measured = [
            AttackRow(**{key: value for key, value in row.items() if key != "through"})
            for name in SETTINGS
            for row in bench.rows.get(f"attacks {skill} {name}", {"rows": []})["rows"]
        ]
        if measured:
            found.append(
                attacks_figure(measured, f"examples/benchmarks/choosing.py, {ROWS['test']} prompts of {skill}")
            )
    return found


def table(bench: Bench) -> str:
    """The rows as Markdown: the share that gets through."""
    parts = []
    for skill in FORGOTTEN:
        measured = {name: row for name in SETTINGS if (row := bench.rows.get(f"attacks {skill} {name}"))}
        if not measured:
            continue
        found = {(row["attack"], row["target"]): row for one in measured.values() for row in one["rows"]}
        targets = list(dict.fromkeys(target for _, target in found))
        parts.append(f"| {skill} | " + " | ".join(targets) + " |\n" + "| --- " * (len(targets) + 1) + "|\n")
        for name in dict.fromkeys(attacked for attacked, _ in found):
            cells = [
                f"{row['through'] / row['prompts']:.3f}" if (row := found.get((name, target))) else ""
                for target in targets
            ]
            parts.append(f"| {name}{' (kind widened with)' if name in WIDENED else ''} | {' | '.join(cells)} |\n")
        for name, row in measured.items():
            worst = max(row["false_refusals"], key=lambda other: row["false_refusals"][other])
            parts.append(f"\n{name}: at most {row['false_refusals'][worst]:.1%} of another skill refused ({worst}).\n")
        parts.append("\n")
    return "".join(parts)
