"""What is chosen automatically, measured: Key Space Detection's structure and alpha, Neuron Adjust's beta, attacks.

    python examples/benchmarks/choosing.py --output runs/benchmarks/choosing

Everything is measured on test prompts that nothing else has seen. Stops and resumes: finished rows lie in
``<output>/rows.json``, and what a report draws of them in ``<output>/figures.json``.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import choosing_attacks
import choosing_beta
import choosing_structure
import click
from bench import Bench

from bakeout.export.report.figures_file import figures_json
from bakeout.models.skills import checkpoint_directory

PARTS: dict[str, ModuleType] = {
    "structure": choosing_structure,
    "beta": choosing_beta,
    "attacks": choosing_attacks,
}


@click.command()
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Where rows and the export are kept.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Another checkpoint than the bundled one.")
@click.option("--only", type=click.Choice(list(PARTS)), multiple=True, help="Measure some of the parts alone.")
def main(output: Path, checkpoint: Path | None, only: tuple[str, ...]) -> None:
    """Measure, print the tables, and write the figures."""
    bench = Bench(output, checkpoint or checkpoint_directory())
    if "base" not in bench.rows:
        bench.save("base", bench.accuracies(bench.base))
    for name, part in PARTS.items():
        if not only or name in only:
            part.rows(bench)
    drawn = [*choosing_structure.figures(bench), *choosing_beta.figures(bench), *choosing_attacks.figures(bench)]
    content = json.dumps(figures_json(drawn), indent=1, ensure_ascii=False)
    (output / "figures.json").write_text(content + "\n", encoding="utf-8")
    print("\n".join(part.table(bench) for part in PARTS.values()))


if __name__ == "__main__":
    main()
