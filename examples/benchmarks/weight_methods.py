"""What every weight method does to the bundled model: Selective Pruning, LUNAR, UNLEARN and the others.

    python examples/benchmarks/weight_methods.py --output runs/benchmarks/weights

Figures are exact-match accuracies of greedy answers under ONNX Runtime, on test prompts that nothing else has seen.
Stops and resumes: finished rows lie in ``<output>/rows.json``.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import click
import weights_composition
import weights_learn
import weights_lunar
import weights_parity
import weights_pruning
import weights_relearning
import weights_reveal
import weights_unlearn
from bench import Bench

from bakeout.models.skills import checkpoint_directory

METHODS: dict[str, ModuleType] = {
    "pruning": weights_pruning,
    "lunar": weights_lunar,
    "unlearn": weights_unlearn,
    "learn": weights_learn,
    "reveal": weights_reveal,
    "relearning": weights_relearning,
    "composition": weights_composition,
    "parity": weights_parity,
}


@click.command()
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Where rows and the export are kept.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Another checkpoint than the bundled one.")
@click.option("--only", type=click.Choice(list(METHODS)), multiple=True, help="Measure some of the methods alone.")
def main(output: Path, checkpoint: Path | None, only: tuple[str, ...]) -> None:
    """Measure, and print the tables."""
    bench = Bench(output, checkpoint or checkpoint_directory())
    if "base" not in bench.rows:
        bench.save("base", bench.accuracies(bench.base))
    for name, method in METHODS.items():
        if not only or name in only:
            method.rows(bench)
    print("\n".join(method.table(bench) for method in METHODS.values()))


if __name__ == "__main__":
    main()
