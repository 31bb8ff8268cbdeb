"""What the artifact still does well: the text it predicts, and whom it refuses without need."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from bakeout.export.certificate.figures import Figure, NotMeasured, Section
from bakeout.export.certificate.measuring import Data, Measuring
from bakeout.export.evaluation.answering.questions import choose_rows
from bakeout.export.evaluation.intervals import Interval, share_interval
from bakeout.export.evaluation.likelihood import predict, text_row
from bakeout.export.running.refusals import is_refused
from bakeout.models.data.forms.everyday import EVERYDAY
from bakeout.models.data.prompt_rows import has_conversations
from bakeout.models.data.row_source import Source, as_source
from bakeout.models.data.rows import read_records
from bakeout.models.data.spreading import spread
from bakeout.models.errors import BakeoutError

EVERYDAY_NAME = "everyday questions"


def everyday(forget: Source) -> Source:
    """Bakeout's everyday questions, asked as the rows to forget are: as conversations, or as plain prompts."""
    if has_conversations(forget):
        return as_source([{"messages": [{"role": "user", "content": text}]} for text in EVERYDAY], EVERYDAY_NAME)
    return as_source([{"prompt": text} for text in EVERYDAY], EVERYDAY_NAME)


def utility(measuring: Measuring) -> Section:
    """Perplexity and divergence on what is retained, beside the base model's; refusals of strangers."""
    figures: list[Figure] = []
    missing: list[NotMeasured] = []
    for data in measuring.of("retain"):
        try:
            row = measuring.journal.step(f"text {data.name}", partial(_text, measuring, data))
        except BakeoutError as error:
            missing.append(NotMeasured("utility", f"perplexity on {data.name}", measuring.reason(error)))
            continue
        for name, key, good in (
            ("perplexity ÷ base's", "perplexity_ratio", "low"),
            ("divergence", "divergence", "low"),
        ):
            if row.get(key) is None:
                missing.append(NotMeasured("utility", f"{name} on {data.name}", "fewer than two texts were answered"))
                continue
            figures.append(
                Figure(
                    "utility",
                    name,
                    data.name,
                    row[key],
                    _pair(row[f"{key}_interval"]),
                    row["texts"],
                    measuring.models.own,
                    (data.name,),
                    good=good,
                )
            )
    if measuring.models.plan.check is None:
        why = "the plan holds no check, so that nothing is refused"
        return Section(figures, [*missing, NotMeasured("utility", "over-refusal", why)])
    for data in measuring.of("retain", "stranger"):
        refused: Sequence[bool] = measuring.journal.step(f"refused {data.name}", partial(_refused, measuring, data))
        figures.append(
            Figure(
                "utility",
                "prompts refused",
                data.name,
                sum(refused) / len(refused),
                share_interval(sum(refused), len(refused)),
                len(refused),
                measuring.models.own,
                (data.name,),
            )
        )
    return Section(figures, missing)


def routing(measuring: Measuring) -> Section:
    """Routing stability on what is retained, of mixtures of experts (GRIP, arXiv 2601.16905)."""
    models = measuring.models
    if models.plan.model.routing is None:
        why = "the plan's model is no mixture of experts"
        return Section((), [NotMeasured("utility", "routing stability", why)])
    if models.checkpoint is None:
        told = models.plan.routing_stability
        why = "it needs the base model's checkpoint, and that is an ONNX graph"
        why += "" if told is None else f"; when the plan was fitted, {told}"
        return Section((), [NotMeasured("utility", "routing stability", why)])
    figures = []
    for data in measuring.of("retain"):
        stability = measuring.journal.step(f"routing {data.name}", partial(_routed, measuring, data))
        figures.append(
            Figure(
                "utility",
                "tokens that go to the same experts",
                data.name,
                stability["unchanged"],
                None,
                stability["tokens"],
                "fp32",
                (data.name,),
                good="high",
            )
        )
    return Section(figures)


def _routed(measuring: Measuring, data: Data) -> dict[str, Any]:
    from bakeout.models.checkpoint.checkpoint_files import load_model
    from bakeout.models.network.families import model_limits
    from bakeout.models.reference.routing import routing_stability

    assert measuring.models.checkpoint is not None
    model = load_model(measuring.models.checkpoint.directory)
    records = read_records(data.source, measuring.models.tokenizer, model_limits(model))
    chosen = spread(records, measuring.protocol.rows)
    stability = routing_stability(
        model, measuring.models.plan, [record.prompt_ids + record.response_ids for record in chosen]
    )
    assert stability is not None
    return {"unchanged": stability.unchanged, "tokens": stability.tokens}


def _text(measuring: Measuring, data: Data) -> dict[str, Any]:
    own = measuring.models.own
    source = choose_rows(data.source, measuring.protocol.rows).source
    read: dict[str, Any] = {
        which: predict(
            measuring.models.runner(which, own),
            source,
            batch_size=measuring.batch_size,
            track=measuring.track,
            description=f"{which} reads {data.name}",
        )
        for which in ("base", "artifact")
    }
    return text_row("artifact", data.name, read["artifact"], read["base"]).as_json()


def _refused(measuring: Measuring, data: Data) -> list[bool]:
    runner = measuring.models.runner("artifact", measuring.models.own)
    records = read_records(data.source, runner.tokenizer, runner.limits)
    prompts = [record.prompt_ids for record in spread(records, measuring.protocol.rows) if record.prompt_ids]
    flags = [False] * len(prompts)
    asked = runner.each_logits(prompts, batch_size=measuring.batch_size)
    for row, logits in measuring.track(asked, f"who of {data.name} is refused", len(prompts)):
        flags[row] = is_refused(logits[-1])
    return flags


def _pair(interval: Sequence[float] | None) -> Interval | None:
    return None if interval is None else (interval[0], interval[1])
