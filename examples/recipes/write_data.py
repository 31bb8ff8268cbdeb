"""What the recipes beside this file begin with: the bundled model and questions and answers about what it knows.

    python write_data.py
    bakeout build unlearn.yaml -o unlearned

Writes ``model/`` and ``data/`` into this directory (or ``--directory``): for each skill a file to fit on and one to
test on, and the *facts* once more by the people that they are about.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import click

from bakeout.models.skills import checkpoint_directory
from bakeout.models.skills.generator import SKILLS, Example, examples, people, write_jsonl
from bakeout.models.skills.new_people import new_examples, new_people

SPLITS = {"probe": "probing", "test": "test"}
FORGOTTEN = [person.name for person in people()[:10]]


@click.command()
@click.option("--directory", type=click.Path(path_type=Path), default=Path(__file__).parent, help="Where it all goes.")
@click.option("--probe", default=1000, show_default=True, help="Rows to fit on, for each skill.")
@click.option("--test", default=300, show_default=True, help="Rows to test on, for each skill.")
def main(directory: Path, probe: int, test: int) -> None:
    """Write the model and the data."""
    shutil.copytree(checkpoint_directory(), directory / "model", dirs_exist_ok=True)
    data = directory / "data"
    data.mkdir(exist_ok=True)
    for use, count in {"probe": probe, "test": test}.items():
        split = SPLITS[use]
        for skill in SKILLS:
            write_jsonl(examples(skill, split, count), data / f"{skill}.{use}.jsonl")
        facts = examples("facts", split, 1300)
        write_jsonl(islice(_about(facts, FORGOTTEN), count), data / f"ten_people.{use}.jsonl")
        others = [person.name for person in people()[10:]]
        write_jsonl(islice(_about(facts, others), count), data / f"other_people.{use}.jsonl")
    write_jsonl(new_examples("test")[:test], data / "new_people.test.jsonl")
    write_jsonl(_lessons(probe), data / "new_people.probe.jsonl")


def _lessons(count: int) -> list[Example]:
    """Questions about the new people, and among them some about strangers, who stay unknown, and about the old ones."""
    new = new_examples("training")
    names = [person.name for person in new_people().values()]
    strangers = [one for one in examples("unknown", "training", count) if not list(_about([one], names))]
    return new[:: max(1, len(new) // count)] + strangers + examples("facts", "training", count // 3)


def _about(found: Sequence[Example], names: Sequence[str]) -> Iterable[Example]:
    return (example for example in found if any(name in example.prompt for name in names))


if __name__ == "__main__":
    main()
