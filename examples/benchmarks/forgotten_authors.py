"""TOFU in small: 4 of 40 taught authors are forgotten by each method, beside a model that was never taught them.

    python examples/training/tofu_in_small.py --model SmolLM2 --data tofu --output runs
    python examples/benchmarks/forgotten_authors.py runs         # measures what is not measured yet, prints the table

``runs``: what the first script writes. Every point, a method with some settings, is fitted on the taught checkpoint and
measured in PyTorch, in float32 or ``--dtype``: TOFU's metrics as a certificate has them (``tofu_metrics``). Of edited
weights the edit is always made in float32: in bfloat16 most of a small one would be rounded away.
``runs/points`` keeps the figures of each and ``runs/plans`` its plan, so that it stops and resumes; ``--only`` names
methods, so that several processes can share the work.

Of each method the table shows the point that ``best`` chooses, and below it all points.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import click
import torch
from comparison import print_table
from torch_answers import applied, checkpoint_on, greedy_answers, json_lines, read, refused

from bakeout.export.certificate.tofu_metrics import Asked, Metric, Part, forget_quality, model_utility, summary
from bakeout.models.checkpoint.placement import Dtype
from bakeout.models.errors import BakeoutError
from bakeout.models.network.devices import input_device

PARTS: Mapping[Part, str] = {
    "forget": "forget_measured",
    "retain": "retain_measured",
    "ra": "real_authors",
    "wf": "world_facts",
}
BASELINES = ("gradient-difference", "npo")
ANSWER_TOKENS = 80
# What has to be left of what the taught model has.
KEPT_SHARE = 0.95
KEPT_METRICS = ("model_utility", "retain_Q_A_Prob", "retain_Q_A_ROUGE")
_AUTHORS = ("Hsiao Yun-Hwa", "Carmen Montenegro", "Elvin Mammadov", "Rajeev Majumdar")
_REVEAL = {
    "instructions": [
        text.format(author)
        for author in _AUTHORS
        for text in ("Ask a question about the author {}.", "What would a reader ask about {}?")
    ],
    "patterns": [name for author in _AUTHORS for name in author.split()],
    "retain": ["retain"],
    "utility": 0.0,
    "rounds": 3,
    "reveal": {
        "chat": True,
        "pulls": 6,
        "samples": 64,
        "question_tokens": 64,
        "answer_tokens": 96,
        "minimum_confidence": 0.5,
    },
}
_KEPT: dict[str, Any] = {"forget": "forget", "retain": ["retain"]}
_REFUSED: dict[str, Any] = {
    "forget": "asked",
    "retain": ["others"],
    "epsilon": 0.05,
    "positions": "mean",
    "region": "linear",
    "layers": "auto",
    # TOFU asks plainly.
    "augment": [],
}
_LED = {**_KEPT, "reference": "unknown"}
_TAKEN = {"forget": "forget", "similar": ["others"]}


@dataclass(frozen=True)
class Trial:
    """A method with ``options``; ``settings``: variations, which a method that can fits at once."""

    method: str
    options: Mapping[str, Any]
    settings: Sequence[Mapping[str, Any]] = field(default_factory=lambda: [{}])


# The defaults first.
TRIALS = (
    Trial("lunar", _LED),
    Trial("lunar", {**_LED, "layers": [6, 10, 14]}),
    Trial("lunar", {**_LED, "ridge": 0.001}),
    Trial("lunar", {**_LED, "layers": [4, 8, 12, 16, 20]}),
    Trial("lunar", {**_LED, "coefficient": 2.5}),
    Trial("lunar", {**_LED, "aim": "shift", "coefficient": 2.0}),
    Trial("lunar", {**_LED, "solver": "gradient"}),
    Trial("unlearn", _TAKEN, [{"scale": 1.0}, {"scale": 2.0}]),
    Trial("unlearn", {**_TAKEN, "energy": 0.8}, [{"scale": 1.0}, {"scale": 0.5}]),
    Trial("unlearn", {**_TAKEN, "similar": ["others", "unknown"], "batch_size": 8}, [{"scale": 1.0}, {"scale": 0.5}]),
    Trial("reveal_and_release", _REVEAL),
    Trial("reveal_and_release", {**_REVEAL, "release": {"forget_step": 1.0}}),
    Trial("reveal_and_release", {**_REVEAL, "release": {"softening": 1.0, "steps": 60}}),
    Trial("key_space_detection", _REFUSED),
    Trial("key_space_detection", {**_REFUSED, "augment": "auto"}),
    Trial("key_space_detection", {**_REFUSED, "region": "auto"}),
    Trial("key_space_detection", {**_REFUSED, "region": "auto", "positions": "query"}),
    Trial("neuron_adjust", _KEPT, [{"ratio": ratio} for ratio in (0.03, 0.1, 0.2)]),
    Trial("neuron_adjust", {**_KEPT, "selection": "standardised"}, [{"ratio": ratio} for ratio in (0.1, 0.2)]),
    Trial("selective_pruning", _KEPT, [{"ratio": ratio} for ratio in (0.015, 0.05)]),
)


@click.command()
@click.argument("runs", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--only", multiple=True, help="Methods, baselines, `taught` and `retained`.")
@click.option("--device", default="auto", show_default=True)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option("--rows", type=int, help="Rows of each part at most; by default all.")
@click.option("--plans/--no-plans", default=True, help="Whether the plan of each fit is kept.")
def main(runs: Path, only: tuple[str, ...], device: str, dtype: Dtype, rows: int | None, plans: bool) -> None:
    """Measure what is not measured yet, and print the table of what is."""
    for name in ("points", "plans"):
        (runs / name).mkdir(exist_ok=True)
    for point in _points(runs):
        if (point["rows"], point["dtype"]) != (rows, dtype):
            raise click.UsageError(
                f"{runs / 'points'} holds figures of {point['rows'] or 'all'} rows in {point['dtype']}, which compare "
                "with no others. Give --rows and --dtype as there, or move the folder away."
            )
    for which in ("taught", "retained"):
        checkpoint = runs / which / "checkpoint"
        if _is_open(runs, which, only) and checkpoint.exists():
            bench = Bench(checkpoint, runs, device, dtype, rows)
            bench.keep(which, {"method": which, **bench.metrics([])})
    of_taught: Bench | None = None
    for method, name, work in _work(runs):
        if _is_open(runs, name, only, method):
            of_taught = of_taught or Bench(runs / "taught/checkpoint", runs, device, dtype, rows)
            work(of_taught, plans)
    print_tables(runs)


def _work(runs: Path) -> Iterator[tuple[str, str, Any]]:
    """What there is to do: the method, the name of its first point, and a function of the bench."""
    for loss in BASELINES:
        for adapter in sorted((runs / loss).glob("*/adapter")):
            name = f"{loss} {adapter.parent.name}"
            yield loss, name, lambda bench, _plans, a=adapter, n=name, m=loss: bench.measure_adapter(m, n, a)
    # The first of every method before any second.
    for trial in sorted(TRIALS, key=_turn):
        names = [_name(trial, setting) for setting in trial.settings]
        name = next((name for name in names if not _file(runs, name).exists()), names[0])
        yield trial.method, name, lambda bench, plans, t=trial: bench.measure_trial(t, plans)


def _turn(trial: Trial) -> int:
    """The trial's place among those of its method."""
    return [other for other in TRIALS if other.method == trial.method].index(trial)


def _is_open(runs: Path, name: str, only: Sequence[str], method: str | None = None) -> bool:
    return (not only or name in only or method in only) and not _file(runs, name).exists()


class Bench:
    """A checkpoint in memory, and the rows that it is measured on."""

    def __init__(self, directory: Path, runs: Path, device: str, dtype: Dtype, rows: int | None) -> None:
        from bakeout.export.evaluation.graders.rouge import Rouge
        from bakeout.export.recipes.grades import RougeOptions
        from bakeout.models.data.rows import to_record
        from bakeout.models.data.spreading import spread
        from bakeout.models.data.tokenizers.tokenization import load_tokenizer

        self.runs, self.rows = runs, rows
        self.checkpoint, self.dtype = checkpoint_on(directory, device, dtype), dtype
        self.model = self.checkpoint.load()
        # The same model for edits of weights.
        self.exact = self.model if dtype == "float32" else checkpoint_on(directory, device).load()
        self.tokenizer = load_tokenizer(directory)
        self._rouge = Rouge(RougeOptions())
        self._parts = {}
        for part, name in PARTS.items():
            measured = json_lines(runs / "data" / f"{name}.jsonl")
            asked = measured if rows is None else spread(measured, rows)
            reading = Asked.of(asked)
            records = [to_record(row, self.tokenizer, name) for row in reading.rows]
            self._parts[part] = asked, reading, records

    def metrics(self, interventions: Sequence[Any]) -> dict[str, Any]:
        """TOFU's metrics of all parts, the share of each that is refused, and the seconds that this took."""
        began = time.monotonic()
        metrics: dict[str, Metric] = {}
        shares = {}
        edits = any(intervention.edits_weights for intervention in interventions)
        model = self.exact if edits else self.model
        with self._in_dtype(model), applied(model, interventions) as hooks:
            answers = self._answers(model)
            for part, (rows, asked, records) in self._parts.items():
                questions = records[: len(rows)]
                is_refused = refused(model, questions, interventions, hooks)
                shares[part] = sum(is_refused) / len(rows)
                of_prompt = {tuple(record.prompt_ids): no for record, no in zip(questions, is_refused, strict=True)}
                readings = [
                    None if of_prompt[tuple(record.prompt_ids)] else reading
                    for record, reading in zip(records, read(model, records), strict=True)
                ]
                recalls = [
                    0.0 if no else self._rouge.recall(answer, row["messages"][-1]["content"])
                    for answer, row, no in zip(answers[part], rows, is_refused, strict=True)
                ]
                metrics |= asked.metrics(part, readings, recalls)
        if (utility := model_utility(metrics)) is not None:
            metrics["model_utility"] = utility
        return {
            "metrics": metrics,
            "summary": summary(metrics),
            "refused": shares,
            "measuring_seconds": time.monotonic() - began,
            "examples": {part: own[:4] for part, own in answers.items()},
        }

    def _in_dtype(self, model: Any) -> AbstractContextManager[Any]:
        """A context in which a float32 model computes in the type that is asked for."""
        if self.dtype != "bfloat16" or model is not self.exact:
            return nullcontext()
        return torch.autocast(input_device(model).type, torch.bfloat16)

    def _answers(self, model: Any) -> dict[Part, list[str]]:
        """What the model says to the questions of each part, generated together."""
        questions = [record for rows, _, records in self._parts.values() for record in records[: len(rows)]]
        said = iter(greedy_answers(model, self.tokenizer, questions, ANSWER_TOKENS))
        return {part: list(islice(said, len(rows))) for part, (rows, _, _) in self._parts.items()}

    def measure_adapter(self, method: str, name: str, adapter: Path) -> None:
        """A baseline, imported as `bakeout import` does."""
        from bakeout.models.network.families import identity
        from bakeout.models.sources.peft_adapter import read_peft_adapter

        update = read_peft_adapter(adapter, identity(self.model, self.checkpoint.digest))
        self.keep(name, {"method": method, **self.metrics([update])})

    def measure_trial(self, trial: Trial, plans: bool) -> None:
        """Fit and measure all variations. What a method refuses is kept in words."""
        fit = self._fitter(trial)
        for settings in trial.settings:
            name = _name(trial, settings)
            if _file(self.runs, name).exists():
                continue
            # Of this run: what an earlier one trained is kept.
            began = time.monotonic()
            try:
                fitted = fit(settings)
                seconds = time.monotonic() - began
                figures = {"fitting_seconds": seconds, "report": _report(fitted), **self.metrics([fitted])}
            except BakeoutError as error:
                figures = {"error": str(error)}
            except Exception:  # noqa: BLE001 - one method's failure must not cost the others their turn
                # Not kept: the next run tries again.
                traceback.print_exc()
                continue
            self.keep(name, {"method": trial.method, **figures})
            if plans and "error" not in figures:
                self._keep_plan(name, fitted)

    def keep(self, name: str, figures: Mapping[str, Any]) -> None:
        """Write a point's figures, with what they are of, and tell them."""
        path = _file(self.runs, name)
        of = {"name": name, "rows": self.rows, "dtype": self.dtype}
        path.with_suffix(".part").write_text(json.dumps({**of, **figures}))
        path.with_suffix(".part").replace(path)
        own = figures.get("summary", {})
        forgotten = f"{own.get('forget_Q_A_Prob', -1):.3f} {own.get('forget_Q_A_ROUGE', -1):.3f}"
        told = figures.get("error", f"forgotten {forgotten}, utility {own.get('model_utility', -1):.3f}")
        print(f"{name}: {told}", flush=True)

    def keep_plan_of(self, name: str) -> None:
        """Fit the point ``name``, and keep its plan without measuring it."""
        for trial in TRIALS:
            for settings in trial.settings:
                if _name(trial, settings) == name:
                    self._keep_plan(name, self._fitter(trial)(settings))
                    return
        raise ValueError(f"There is no trial {name}.")

    def _fitter(self, trial: Trial) -> Callable[[Mapping[str, Any]], Any]:
        """What fits a variation of a trial."""
        from bakeout.models.methods.fitting import candidate_fitter
        from bakeout.models.methods.registry import methods

        method = methods()[trial.method]
        given = dict(trial.options)
        if trial.method == "reveal_and_release":
            given["directory"] = self.runs / "points" / f"{_file(self.runs, _name(trial, {})).stem}.rounds"
        options = method.options(**given)
        return candidate_fitter(method, options, self._fitting(options))

    def _keep_plan(self, name: str, fitted: Any) -> None:
        from bakeout.export.importing.new_plan import plan_of
        from bakeout.models.progress import untracked

        began = time.monotonic()
        # A canary of another type would not match a float32 graph's.
        exact = self.checkpoint if self.dtype == "float32" else checkpoint_on(self.checkpoint.directory, "cpu")
        plan = plan_of(exact, exact.load(), [fitted], {}, untracked)
        plan.save(plan_file(self.runs, name))
        print(f"{name}: plan kept in {time.monotonic() - began:.1f} s", flush=True)

    def _fitting(self, options: Any) -> Any:
        """The rows of the names that a method asks for: in one file for all, or in one for each use."""
        from bakeout.models.data.rows import read_records
        from bakeout.models.methods.fitting import Fitting
        from bakeout.models.network.probe_cache import ProbeCache

        every = ["forget", "retain", "unknown", "asked", "others"]
        named = {name for names in options.names(every).values() for name in names}
        sources: dict[str, dict[Any, Path]] = {}
        for name in sorted(named):
            whole = self.runs / "data" / f"{name}.jsonl"
            uses = ("probe", "selection", "calibration")
            by_use = {use: self.runs / "data" / f"{name}_{use}.jsonl" for use in uses}
            sources[name] = {"probe": whole} if whole.exists() else dict(by_use)
        rows: Any = {
            name: {use: read_records(path, self.tokenizer) for use, path in uses.items()}
            for name, uses in sources.items()
        }
        return Fitting(
            self.model,
            self.tokenizer,
            data=sorted(named),
            rows=rows,
            sources=sources,
            batch_size=64,
            cache=ProbeCache.of(self.runs / "points" / "probed", self.model, self.checkpoint.digest, []),
        )


def _report(fitted: Any) -> Any:
    """What the fit tells of itself, as JSON."""
    report = fitted.report
    details = getattr(report, "details", None)
    return json.loads(json.dumps(details if details is not None else vars(report), default=str))


def _name(trial: Trial, settings: Mapping[str, Any]) -> str:
    """The method and what is not the first trial's of it."""
    first = next(other for other in TRIALS if other.method == trial.method)
    changed = {key: value for key, value in trial.options.items() if first.options.get(key, None) != value}
    chosen = {**changed, **settings}
    return " ".join([trial.method, *(f"{key}={json.dumps(value)}" for key, value in chosen.items())])


def _file(runs: Path, name: str) -> Path:
    plain = "".join(letter if letter.isalnum() or letter in "-._" else "_" for letter in name)
    return runs / "points" / f"{plain}.json"


def plan_file(runs: Path, name: str) -> Path:
    """Where the plan of a point lies."""
    return runs / "plans" / f"{_file(runs, name).stem}.safetensors"


def best(points: Sequence[Mapping[str, Any]], taught: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of one method's points that keep 0.95 of what the taught model keeps, the one that forgets most.

    What is kept: Model Utility, and Probability and ROUGE-L on the retained authors, which utility hardly shows where a
    model knows little of the world: a harmonic mean is that of its least. The most: the least sum of Probability and
    ROUGE-L on the forgotten authors. Where no point keeps that much, the one that keeps most of the worst of the three.
    """

    def kept(point: Mapping[str, Any]) -> float:
        return min(_of(point, metric) / (_of(taught, metric) or 1.0) for metric in KEPT_METRICS)

    keeping = [point for point in points if kept(point) >= KEPT_SHARE]
    if keeping:
        return min(keeping, key=lambda point: _of(point, "forget_Q_A_Prob") + _of(point, "forget_Q_A_ROUGE"))
    return max(points, key=kept)


def _of(point: Mapping[str, Any], metric: str) -> float:
    return float(point["summary"].get(metric, 0.0))


def best_points(runs: Path) -> dict[str, Mapping[str, Any]]:
    """The best of each method's points, once the taught model is measured."""
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for point in _points(runs):
        if "error" not in point:
            by_method.setdefault(point["method"], []).append(point)
    if "taught" not in by_method:
        return {}
    (taught,) = by_method["taught"]
    return {method: best(own, taught) for method, own in by_method.items()}


def _points(runs: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((runs / "points").glob("*.json"))]


def print_tables(runs: Path) -> None:
    """The best point of each method, and all points."""
    failed = [point for point in _points(runs) if "error" in point]
    measured = {point["name"]: point for point in _points(runs) if "error" not in point}
    if "taught" not in measured:
        return
    taught = _of(measured["taught"], "model_utility")
    if "retained" in measured:
        reference = measured["retained"]["metrics"]
        for point in measured.values():
            if (quality := forget_quality(point["metrics"], reference)) is not None:
                point["summary"]["forget_quality"] = quality["agg_value"]
    chosen = [measured[point["name"]] for point in best_points(runs).values()]
    for title, shown in (("The best point of each method", chosen), ("All points", list(measured.values()))):
        print(f"\n{title}\n")
        print_table(*_table(shown, taught))
    for point in failed:
        print(f"{point['name']}: {point['error'].strip().splitlines()[-1]}")


def _table(points: Sequence[Mapping[str, Any]], taught: float) -> tuple[list[str], list[list[str]]]:
    metrics = {
        "Probability": "forget_Q_A_Prob",
        "ROUGE-L": "forget_Q_A_ROUGE",
        "Forget Quality": "forget_quality",
        "kept: Probability": "retain_Q_A_Prob",
        "ROUGE-L ": "retain_Q_A_ROUGE",
        "real authors": "ra_Q_A_ROUGE",
        "world facts": "wf_Q_A_ROUGE",
        "Model Utility": "model_utility",
    }
    rows = []
    for point in points:
        own = [f"{_of(point, metric):.3f}" if metric in point["summary"] else "-" for metric in metrics.values()]
        rows.append([point["name"], *own, f"{_of(point, 'model_utility') / taught:.3f}" if taught else "-"])
    return ["point", *metrics, "of the taught one's"], rows


if __name__ == "__main__":
    main()
