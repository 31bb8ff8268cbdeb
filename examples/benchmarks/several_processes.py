"""How much faster do two processes probe than one, each on a core of its own, and how equal are their plans?

    python examples/benchmarks/several_processes.py MODEL FORGET.jsonl RETAIN.jsonl

Every process is held on one core and computes in one thread. Probing is timed from when all processes have loaded the
model until all have what was probed; one and two processes take turns. Where a machine does other things too, the
processor time of the busier process says how well the work is shared, and nothing of waiting. The plans are those of
``bakeout fit``; one of two threads shows how far another number of threads moves what is fitted.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from comparison import CLOCKS, Clock, print_machine, print_table

if TYPE_CHECKING:
    from bakeout.models.plan import Floats, Intervention

LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
INTERVENTIONS: list[dict[str, Any]] = [
    {"neuron_adjust": {"forget": "forget", "ratio": 0.03}},
    {"key_space_detection": {"forget": "forget", "layers": "last", "cubes": 2, "epsilon": 0.1}},
]
FILE = click.Path(exists=True, path_type=Path)


@click.command()
@click.argument("model", type=FILE)
@click.argument("forget", type=FILE)
@click.argument("retain", type=FILE)
@click.option("--pairs", default=3, show_default=True, help="Times that one and two processes probe.")
@click.option("--plans/--no-plans", default=True, show_default=True, help="Fit plans and compare them, too.")
@click.option("--clock", type=click.Choice(["wall", "processor"]), default="wall", show_default=True)
@click.option("--probe-into", type=click.Path(path_type=Path), hidden=True, help="What each process is started with.")
def main(model: Path, forget: Path, retain: Path, pairs: int, plans: bool, clock: str, probe_into: Path | None) -> None:
    """Print the seconds that probing took, and how far the plans are from each other."""
    if probe_into:
        _probe(model, forget, probe_into, CLOCKS[clock])
        return
    print_machine("torch", "transformers")
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        probe = [__file__, *map(str, (model, forget, retain)), "--clock", clock, "--probe-into", str(work)]
        taken = []
        for _ in range(pairs):
            seconds = []
            for count in (1, 2):
                _run_together(probe, count)
                ranks = [json.loads((work / f"{rank}.json").read_text()) for rank in range(count)]
                seconds.append({what: max(rank[what] for rank in ranks) for what in ranks[0]})
            taken.append(seconds)
        columns = [f"probing, {clock} time", "one process, s", "two, s", "times as fast: median (least to most)"]
        print_table(columns, _speed(taken))
        if plans:
            columns = ["plan", "bytes as of one process in one thread", "largest distance in deviations"]
            print_table(columns, _compared(work, model, forget, retain))


def _speed(taken: list[list[dict[str, float]]]) -> Iterator[list[str]]:
    for what in taken[0][0]:
        one, two = ([seconds[place][what] for seconds in taken] for place in (0, 1))
        ratios = [first / second for first, second in zip(one, two, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        yield [what, f"{statistics.median(one):.1f}", f"{statistics.median(two):.1f}", spread]


def _run_together(command: list[str], count: int) -> None:
    """Start processes with what torchrun tells those that it starts."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        told = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1]}
    ranks = [{**told, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": 1} for rank in range(count)]
    environments = [os.environ | {name: str(value) for name, value in rank.items()} for rank in ranks]
    processes = [subprocess.Popen([sys.executable, *command], env=environment) for environment in environments]
    if any(process.wait() for process in processes):
        raise SystemExit("A process failed.")


def _run(command: list[str], threads: int) -> None:
    subprocess.run([sys.executable, *command], env={**os.environ, "OMP_NUM_THREADS": str(threads)}, check=True)


def _probe(directory: Path, rows: Path, results: Path, now: Clock) -> None:
    """Probe in this process, with the others that were launched."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[int(os.environ.get("LOCAL_RANK", "0"))]})
    from bakeout.models.checkpoint.checkpoint_files import load_model
    from bakeout.models.data.rows import read_records
    from bakeout.models.data.tokenizers.tokenization import load_tokenizer
    from bakeout.models.network.families import feed_forward_layers
    from bakeout.models.network.probing import probe_keys, probe_neurons
    from bakeout.models.network.processes import all_agree, joined

    with joined() as rank:
        model = load_model(directory)
        records = read_records(rows, load_tokenizer(directory))
        layers = range(len(feed_forward_layers(model)))
        prompts = [record.prompt_ids for record in records]
        probes: dict[str, Callable[[], object]] = {
            "neurons, the answers' tokens": lambda: probe_neurons(model, records),
            "keys of all layers": lambda: probe_keys(model, prompts, layers=layers),
        }
        seconds = {}
        for what, probe in probes.items():
            all_agree(True)
            began = now()
            probe()
            all_agree(True)
            seconds[what] = now() - began
        (results / f"{rank}.json").write_text(json.dumps(seconds))


def _compared(work: Path, model: Path, forget: Path, retain: Path) -> Iterator[list[str]]:
    from bakeout.models.plan.plan_file import load_plan

    data = {name: str(path.resolve()) for name, path in (("forget", forget), ("retain", retain))}
    recipe = work / "recipe.yaml"
    recipe.write_text(json.dumps({"model": str(model.resolve()), "data": data, "interventions": INTERVENTIONS}))
    plans = [work / f"{number}.safetensors" for number in range(3)]
    for plan, launcher, threads in zip(plans, ([], LAUNCHER, []), (1, 1, 2), strict=True):
        fit = ["-m", "bakeout"] if not launcher else [*launcher, "-m", "bakeout"]
        _run([*fit, "fit", str(recipe), "-o", str(plan), "--no-cache"], threads)
    reference = load_plan(plans[0])
    for name, path in (("two processes of one thread", plans[1]), ("one process of two threads", plans[2])):
        pairs = zip(reference.interventions, load_plan(path).interventions, strict=True)
        distances = ", ".join(f"{one.title} {_distance(one, other):.1e}" for one, other in pairs)
        yield [name, "equal" if path.read_bytes() == plans[0].read_bytes() else "different", distances]


def _distance(one: Intervention, other: Intervention) -> float:
    """The largest difference of two means or centres, in deviations; infinite where other neurons are chosen."""
    distances = []
    for first, second, deviations in zip(_means(one), _means(other), _deviations(one), strict=True):
        distances.append(float(np.abs((first - second) / deviations).max()) if first.shape == second.shape else np.inf)
    return max(distances)


def _means(intervention: Any) -> list[Floats]:
    if hasattr(intervention, "regions"):
        return [intervention.regions.centre]
    return [values for layer in intervention.layers for values in (layer.forget_mean, layer.retain_mean)]


def _deviations(intervention: Any) -> list[Floats]:
    if hasattr(intervention, "regions"):
        return [intervention.regions.deviation]
    return [values for layer in intervention.layers for values in (layer.forget_deviation, layer.retain_deviation)]


if __name__ == "__main__":
    main()
