"""What commands print of a plan that they wrote."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bakeout.export.cli.console import emit_json, show, show_lines

if TYPE_CHECKING:
    from bakeout.models.plan import Plan


def show_plan(output: Path, plan: Plan, *, machine: bool) -> None:
    """The plan's file, its interventions, and what to do next; or one JSON object."""
    from bakeout.export.artifacts.titles import described

    descriptions = [described(intervention, plan.model) for intervention in plan.interventions]
    if machine:
        emit_json({"plan": str(output), "interventions": [dict(description.json) for description in descriptions]})
        return
    show_lines(
        f"{number}  {description.title}: {description.summary}" for number, description in enumerate(descriptions)
    )
    show(f"{output}: {output.stat().st_size:,} bytes. Next: bakeout bake MODEL {output} -o DIR")
