"""What the certificate says in words: what a white-box reader can do, and what was not asked."""

from __future__ import annotations

from collections.abc import Iterator

from bakeout.models.plan import Plan


def statements(plan: Plan) -> Iterator[str]:
    """The limits of a plan's methods, plainly."""
    if plan.edits_graph:
        titles = " and ".join(
            dict.fromkeys(intervention.title for intervention in plan.interventions if not intervention.edits_weights)
        )
        yield (
            f"{titles} suppress and do not erase: the weights still hold what is suppressed. Whoever can edit the file "
            "cuts the added nodes out, and has the base model's answers back at once, without training."
        )
    if plan.check is not None:
        yield (
            "Whoever reads the plan's regions, and has the base model, can test which queries are refused, can search "
            "for queries that lie just outside, and can read the layers behind the check."
        )
    if plan.edits_weights:
        titles = " and ".join(
            dict.fromkeys(intervention.title for intervention in plan.interventions if intervention.edits_weights)
        )
        yield (
            f"{titles} change weights, and no node can be cut out. Whoever has the base model, or the plan, can undo "
            "the change; fine-tuning on a few rows can bring back a part (see relearning)."
        )
    if plan.is_stochastic:
        yield "The artifact draws: two runs of the same prompt can differ, and so can figures beyond their intervals."
    yield "A decoding option that bans tokens (a grammar, a minimum length) can suppress a refusal."
    yield (
        "These figures hold for these rows, forms and precisions. Other wordings, languages and tools were not tried, "
        "and an interval is about other rows of the same kind alone."
    )
