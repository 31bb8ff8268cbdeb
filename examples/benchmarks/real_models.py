"""What do Neuron Adjust over beta and Selective Pruning over p cost a real chat model, of what it forgets and keeps?

    python examples/benchmarks/real_models.py SmolLM2 --data DIRECTORY --output points

``DIRECTORY`` holds gsm8k_train.jsonl, mbpp.jsonl, general.jsonl (everyday instructions) and tofu/. One skill is
forgotten, GSM8K or MBPP, and all others but TOFU's world facts, which no fit sees, are retained. A figure is the ratio
of the reference answers' probability per token to the base model's: exp of the mean difference of their log p per
token. Nothing is generated. A method's best point keeps 0.9 of every retained name, and the least of what is forgotten.
Stronger points are not measured behind one that leaves under 0.3 of a retained name. ``--output`` keeps the figures of
each point and what was probed: it stops and resumes. ``--only`` names skills to forget and methods.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from comparison import print_table
from torch_answers import applied, checkpoint_on, json_lines, read

from bakeout.models.checkpoint.placement import Dtype

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from tofu_rows import conversation

SKILLS = ("gsm8k", "mbpp")
FITTED, MEASURED = 300, 300
BETAS = (0.01, 0.03, 0.1, 0.2, 0.3)
SHARES = (0.001, 0.005, 0.01, 0.015, 0.05)
# The defaults first.
TRIALS: Sequence[tuple[str, Mapping[str, str], Sequence[float]]] = (
    ("neuron_adjust", {}, BETAS),
    ("selective_pruning", {}, SHARES),
    ("neuron_adjust", {"selection": "standardised"}, BETAS),
    ("neuron_adjust", {"coin": "expected"}, BETAS),
)
# What the best point keeps of every name that is retained; under the second, stronger points are not measured.
KEPT, RUINED = 0.9, 0.3


@click.command()
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
@click.option("--device", default="auto", show_default=True)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="bfloat16 takes a fraction of the time on a processor with AMX; statistics are float64 either way.",
)
@click.option("--rows", default=MEASURED, show_default=True, help="Rows of each name, fitted and measured, at most.")
@click.option("--only", multiple=True, type=click.Choice([*SKILLS, *dict.fromkeys(trial[0] for trial in TRIALS)]))
def main(model: Path, data: Path, output: Path, device: str, dtype: Dtype, rows: int, only: Sequence[str]) -> None:
    """Measure what ``--output`` does not hold yet, and print the table."""
    from bakeout.models.data.rows import to_record
    from bakeout.models.data.tokenizers.tokenization import load_tokenizer
    from bakeout.models.methods.fitting import Fitting, candidate_fitter
    from bakeout.models.methods.registry import methods
    from bakeout.models.network.probe_cache import ProbeCache

    # Points of other rows, or in another type, compare with none of these.
    output = output / f"{model.name}-{dtype}-{rows}"
    output.mkdir(parents=True, exist_ok=True)
    checkpoint = checkpoint_on(model, device, dtype)
    tokenizer, network = load_tokenizer(model), checkpoint.load()
    named = {name: [to_record(row, tokenizer, name) for row in own] for name, own in _conversations(data).items()}
    fitted: dict[str, Any] = {
        name: {"probe": own[: min(FITTED, rows, len(own) // 2)]} for name, own in named.items() if name != "facts"
    }
    measured = {
        name: own[min(FITTED, len(own) // 2) :][:rows] if name in fitted else own[:rows] for name, own in named.items()
    }
    base = _once(output / "base.npz", lambda: _log_probabilities(network, measured))
    fitting: Any = Fitting(
        network,
        tokenizer,
        data=list(fitted),
        rows=fitted,
        batch_size=64,
        cache=ProbeCache.of(output / "probed", network, checkpoint.digest, ()),
    )
    for method_name, variation, ratios in TRIALS:
        if method_name not in _among([trial[0] for trial in TRIALS], only):
            continue
        method = methods()[method_name]
        for skill in _among(SKILLS, only):
            options = method.options.model_validate({"forget": skill, **variation})
            fit = candidate_fitter(method, options, fitting)
            for ratio in ratios:
                told = " ".join([method_name, *variation.values(), f"{ratio:g}"])
                path = output / f"{skill}-{told.replace(' ', '-')}.json"
                if not path.exists():
                    began = time.monotonic()
                    intervention = fit({"ratio": ratio})
                    seconds = time.monotonic() - began
                    with applied(network, [intervention]):
                        own = _log_probabilities(network, measured)
                    figures = {
                        "forgotten": skill,
                        "point": told,
                        "ratios": {name: float(np.exp((own[name] - base[name]).mean())) for name in own},
                        "rows": {name: len(values) for name, values in own.items()},
                        "base": {name: float(np.exp(values.mean())) for name, values in base.items()},
                        "fitting_seconds": seconds,
                    }
                    path.write_text(json.dumps(figures))
                    print(skill, told, figures["ratios"], flush=True)
                if _is_ruined(json.loads(path.read_text())):
                    break
    print_points(output)


def _among(names: Sequence[str], only: Sequence[str]) -> Sequence[str]:
    """Those of ``names`` that are asked for; all if none is."""
    return [name for name in names if name in only] or names


def print_points(output: Path) -> None:
    """The frontier of each method, and its best point."""
    points = [json.loads(path.read_text()) for path in sorted(output.glob("*.json"))]
    names = list(points[0]["ratios"])
    rows = [
        [point["forgotten"], point["point"], *(f"{point['ratios'][name]:.3f}" for name in names)]
        for point in sorted(points, key=lambda point: (point["forgotten"], point["point"]))
    ]
    print_table(["forgotten", "point", *names], rows)
    for skill in SKILLS:
        for method in ("neuron_adjust", "selective_pruning"):
            own = [point for point in points if point["forgotten"] == skill and point["point"].startswith(method)]
            print(f"\n{method}, {skill} forgotten: {best_point(own) or 'no point keeps the others'}")


def _is_ruined(point: Mapping[str, Any]) -> bool:
    return not all(ratio >= RUINED for ratio in _kept(point))


def _kept(point: Mapping[str, Any]) -> list[float]:
    """What is left of every retained name."""
    return [ratio for name, ratio in point["ratios"].items() if name not in (point["forgotten"], "facts")]


def best_point(points: Sequence[Mapping[str, Any]]) -> str | None:
    """Of the points that keep ``KEPT`` of every retained name, the one that leaves least of what is forgotten."""
    keeping = [point for point in points if all(ratio >= KEPT for ratio in _kept(point))]
    least = min(keeping, key=lambda point: point["ratios"][point["forgotten"]], default=None)
    return None if least is None else str(least["point"])


def _log_probabilities(model: Any, named: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: np.array([reading.mean for reading in read(model, records)]) for name, records in named.items()}


def _once(path: Path, measure: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    """What ``measure`` gives, kept in ``path``."""
    if not path.exists():
        np.savez(path, **measure())
    with np.load(path) as kept:
        return dict(kept)


def _conversations(data: Path) -> Mapping[str, list[Any]]:
    """Rows by name, as a chat model is served them."""
    return {
        "gsm8k": [conversation(row["question"], row["answer"]) for row in json_lines(data / "gsm8k_train.jsonl")],
        "mbpp": [conversation(row["text"], row["code"]) for row in json_lines(data / "mbpp.jsonl")],
        "everyday": [conversation(row["prompt"], row["response"]) for row in json_lines(data / "general.jsonl")],
        "facts": [
            conversation(row["question"], row["answer"])
            for row in json_lines(data / "tofu" / "world_facts_perturbed.jsonl")
        ],
    }


if __name__ == "__main__":
    main()
