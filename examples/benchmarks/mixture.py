r"""What Bakeout does to a mixture of experts: the bundled skills in 8 experts a layer, top 2, beside a shared expert.

    python examples/training/train_skills_model.py --output runs/mixture --experts 8 --steps 1200 --batch-size 32 \
        --learning-rate 1e-3
    python examples/benchmarks/mixture.py --checkpoint runs/mixture/checkpoint --output runs/benchmarks/mixture

Figures are exact-match accuracies of greedy answers under ONNX Runtime, on test prompts that nothing else has seen.
Stops and resumes: finished rows lie in ``<output>/rows.json``.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import click
import mixture_adjust
import mixture_detection
import mixture_weights
from bench import Bench
from mixture_detection import answered_correctly

from bakeout.models.skills.generator import SKILLS

PARTS: dict[str, ModuleType] = {
    "detection": mixture_detection,
    "adjust": mixture_adjust,
    "weights": mixture_weights,
}


@click.command()
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Where rows and the export are kept.")
@click.option("--checkpoint", type=click.Path(path_type=Path), required=True, help="The trained mixture.")
@click.option("--tests", default=1000, show_default=True, help="Test prompts a skill.")
@click.option("--only", type=click.Choice(list(PARTS)), multiple=True, help="Measure some of the parts alone.")
def main(output: Path, checkpoint: Path, tests: int, only: tuple[str, ...]) -> None:
    """Measure, and print the tables."""
    bench = Bench(output, checkpoint, tests)
    parts = {name: part for name, part in PARTS.items() if not only or name in only}
    if parts.keys() - {"detection"} and "base" not in bench.rows:
        bench.save("base", bench.accuracies(bench.base))
    for part in parts.values():
        part.rows(bench)
    shares = {skill: answered_correctly(bench, skill, "test", tests).mean() for skill in SKILLS}
    print(f"Unbaked, in %: {', '.join(f'{skill} {100 * share:.1f}' for skill, share in shares.items())}\n")
    print("\n".join(part.table(bench) for part in parts.values()))


if __name__ == "__main__":
    main()
