"""LUNAR on ten people, Key Space Detection on arithmetic and Neuron Adjust on German, in one artifact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import weights_lunar
from bench import Bench
from weights_plans import baked, kept_plan

from bakeout.export.evaluation.grading import measure
from bakeout.export.recipes.evaluation import EvaluateOptions
from bakeout.export.running.refusals import Refusals
from bakeout.export.verification.parity import check_parity
from bakeout.models.checkpoint.checkpoint import Checkpoint
from bakeout.models.data.rows import Record
from bakeout.models.methods.key_space_detection.detection import fit_key_space_detection
from bakeout.models.methods.key_space_detection.options import KeySpaceDetectionOptions
from bakeout.models.methods.key_space_detection.refusal_tokens import refusal_tokens
from bakeout.models.methods.neuron_adjust.fit import fit_neuron_adjust
from bakeout.models.methods.neuron_adjust.options import NeuronAdjustOptions
from bakeout.models.network.probing import probe_keys, probe_neurons
from bakeout.models.plan import Intervention
from bakeout.models.progress import untracked
from bakeout.models.reference.hooks import Hooks
from bakeout.models.reference.weight_edits import edited_weights
from bakeout.models.skills.generator import SKILLS
from bakeout.models.skills.tokenizer import REFUSAL

DETECTED, ADJUSTED = "math", "german"
# As chosen in skills.py.
LAYER, CUBES, FLOOR, QUERIES = 0, 32, 1.0, 1000
RATIO, ROWS = 0.1, 200
# Prompts a skill that the hooked reference answers, too.
COMPARED = 30


def rows(bench: Bench) -> None:
    """Each alone, and all three together, held against the hooked reference as well."""
    lunar = weights_lunar.fitted(bench, "closed form", weights_lunar.training_data(bench)).interventions
    alone = {
        DETECTED: lambda: [_detection(bench, [])],
        ADJUSTED: lambda: [_adjustment(bench, [])],
    }
    for skill, fit in alone.items():
        if (key := f"composition {skill} alone") not in bench.rows:
            graph = baked(bench, kept_plan(bench, key, fit))
            (row,) = measure(
                bench.runner(graph),
                "artifact",
                {skill: bench.files[skill]},
                Refusals(),
                options=EvaluateOptions(rows="all", batch_size=64),
            )
            print(f"{key}: {row.accuracy}", flush=True)
            bench.save(key, row.accuracy)
    if (key := "composition together") not in bench.rows:
        plan = kept_plan(bench, key, lambda: _together(bench, lunar))
        graph = baked(bench, plan)
        together = weights_lunar.answered(bench.runner(graph), weights_lunar.test_data(bench), weights_lunar.FIRST)
        prompts = [record.prompt_ids for skill in SKILLS for record in bench.records(skill, "test", COMPARED)]
        together["reference"] = check_parity(
            graph / "model.onnx", plan, Checkpoint(bench.checkpoint), prompts, untracked
        )[1]
        print(f"{key}: {together}", flush=True)
        bench.save(key, together)


def table(bench: Bench) -> str:
    """The rows as Markdown."""
    if (together := bench.rows.get("composition together")) is None:
        return ""
    lunar = bench.rows["lunar closed form"]
    pairs = {
        "the ten people's facts": (lunar["forgotten"], together["forgotten"]),
        "`I do not know.` about them": (lunar["ignorance"], together["ignorance"]),
        "math": (bench.rows[f"composition {DETECTED} alone"], together["math"]),
        "german": (bench.rows[f"composition {ADJUSTED} alone"], together["german"]),
    }
    lines = [
        "LUNAR on ten people, Key Space Detection on math and Neuron Adjust on german in one artifact: what is left, "
        "in %.\n\n",
        "| | alone | together |\n| --- | --- | --- |\n",
    ]
    lines += [f"| {name} | {100 * alone:.1f} | {100 * both:.1f} |\n" for name, (alone, both) in pairs.items()]
    others = {name: together[name] for name in ("others", "code", "spanish", "french", "unknown")}
    lines.append(
        f"\nThe rest, together: {', '.join(f'{name} {share:.1%}' for name, share in others.items())}. Against the "
        f"hooked reference: {together['reference']}.\n"
    )
    return "".join(lines)


def _together(bench: Bench, lunar: Sequence[Intervention]) -> list[Intervention]:
    """Each fitted with those before it in force: the check last, as Neuron Adjust moves the keys that it looks at."""
    plan = list(lunar)
    with edited_weights(bench.model, lunar):
        plan.append(_adjustment(bench, plan))
        plan.append(_detection(bench, plan))
    return plan


def _detection(bench: Bench, earlier: Sequence[Intervention]) -> Intervention:
    def keys(skill: str, split: str) -> dict[int, Any]:
        prompts = [record.prompt_ids for record in bench.records(skill, split, QUERIES)]
        return dict(probe_keys(bench.model, prompts, layers=[LAYER], batch_size=64))

    with Hooks(bench.model, earlier):
        return fit_key_space_detection(
            {DETECTED: keys(DETECTED, "probing")},
            {DETECTED: keys(DETECTED, "calibration")},
            {},
            KeySpaceDetectionOptions(forget=DETECTED, layers=[LAYER], cubes=CUBES, floor=FLOOR),
            refusal=refusal_tokens(REFUSAL, bench.tokenizer, bench.ends),
        )


def _adjustment(bench: Bench, earlier: Sequence[Intervention]) -> Intervention:
    records = {skill: bench.records(skill, "probing", ROWS) for skill in SKILLS}
    retained: list[Record] = [record for skill in SKILLS if skill != ADJUSTED for record in records[skill]]
    with Hooks(bench.model, earlier):
        forget, retain = (probe_neurons(bench.model, one, batch_size=64) for one in (records[ADJUSTED], retained))
    options = NeuronAdjustOptions(forget=ADJUSTED, ratio=RATIO, selection="standardised")
    return fit_neuron_adjust(forget, retain, options)
