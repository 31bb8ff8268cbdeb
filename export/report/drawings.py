"""Measured figures as drawings with captions and the numbers behind them, in the sections of the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from bakeout.export.report import plots
from bakeout.export.report.figures_file import Depth, Figure, Frontier, Inside, Languages
from bakeout.models.plan import Adjustment, ModelIdentity

# How many of the most changed neurons are drawn.
_NEURONS = 6


@dataclass(frozen=True)
class Plot:
    """One drawing: SVG, what it shows beyond its section's words, and the numbers behind it as a table."""

    title: str
    caption: str
    source: str
    svg: Markup
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Section:
    """Drawings of one kind under a heading."""

    title: str
    introduction: str
    plots: tuple[Plot, ...]

    @property
    def sources(self) -> str:
        """Where the numbers come from, each source once."""
        return "; ".join(dict.fromkeys(plot.source for plot in self.plots))


def sections(figures: Sequence[Figure]) -> list[Section]:
    """The drawn kinds of figures that there are, in the order of reading."""
    named = [(f"p{number}", figure) for number, figure in enumerate(figures)]
    sections = [
        Section(
            "Who would be refused, at each α",
            "Key Space Detection draws regions around the queries of the skill to forget; α is their size. The share "
            "of every skill's fresh queries that lies inside: the wider the gap between the skill to forget (bold) and "
            "the rest, the safer the choice.",
            tuple(_inside(figure, name) for name, figure in named if isinstance(figure, Inside)),
        ),
        Section(
            "Where the skills separate, layer by layer",
            "One cube in one layer, for each layer. A check in an early layer saves the work of all that follow when "
            "it refuses; deeper layers often separate better.",
            tuple(_depth(figure, name) for name, figure in named if isinstance(figure, Depth)),
        ),
        Section(
            "Forgetting against keeping",
            "Every point is one setting of the method's strength, with its value beside it: what is left of the skill "
            "to forget, against the least that is left of any other. The best corner is up on the left. Shares are of "
            "the base model's accuracy.",
            tuple(_frontier(figure, name) for name, figure in named if isinstance(figure, Frontier)),
        ),
        Section(
            "Languages: forgotten against tested",
            "Accuracy as a share of the base model's: a row for each forgotten language, a column for each tested one. "
            "The diagonal should be pale, the rest dark.",
            tuple(_languages(figure, name) for name, figure in named if isinstance(figure, Languages)),
        ),
    ]
    return [section for section in sections if section.plots]


def neurons(adjust: Adjustment, model: ModelIdentity, identifier: str) -> Plot:
    """The neurons whose Gaussians lie farthest apart, in their pooled deviation (the paper's Figure 3)."""
    shifts = [
        (float(shift), layer, index)
        for layer, adjusted in enumerate(adjust.layers)
        for index, shift in enumerate(
            np.abs(adjusted.forget_mean - adjusted.retain_mean)
            / np.sqrt((adjusted.forget_deviation**2 + adjusted.retain_deviation**2) / 2)
        )
    ]
    chosen = sorted(shifts, key=lambda entry: (-entry[0], entry[1:]))[:_NEURONS]
    rows = []
    named = []
    for shift, layer, index in chosen:
        adjusted = adjust.layers[layer]
        values = (adjusted.forget_mean, adjusted.forget_deviation, adjusted.retain_mean, adjusted.retain_deviation)
        neuron = f"{model.name_of(adjusted.layer)}, neuron {adjusted.neurons[index]}"
        named.append((neuron, layer, index))
        rows.append((neuron, *(f"{value[index]:.4g}" for value in values), f"{shift:.2f}"))
    return Plot(
        "The most changed neurons",
        "The Gaussians of the pre-activations that Neuron Adjust compares: a value more likely under the forget set's "
        "is moved to the retain set's and mirrored there. Drawn are the neurons where the two lie farthest apart.",
        "the plan in the artifact",
        Markup(plots.neurons(adjust, named, identifier)),
        ("neuron", "forget mean", "deviation", "retain mean", "deviation", "apart, in deviations"),
        tuple(rows),
    )


def percent(share: float) -> str:
    """A share as it is written everywhere on the page."""
    return f"{100 * share:.1f} %"


def _inside(figure: Inside, identifier: str) -> Plot:
    names = _with_first(figure.shares, figure.skill)
    layers = f"layer{'s' if len(figure.layers) > 1 else ''} {', '.join(map(str, figure.layers))}"
    return Plot(
        f"Forgetting {figure.skill}, in {layers}",
        "",
        figure.source,
        Markup(plots.inside(figure, identifier)),
        ("α", *names),
        tuple(
            (f"{alpha:.4g}", *(percent(figure.shares[name][row]) for name in names))
            for row, alpha in enumerate(figure.alpha)
        ),
    )


def _depth(figure: Depth, identifier: str) -> Plot:
    columns = [(panel.label, name) for panel in figure.panels for name in panel.series]
    return Plot(
        f"{figure.skill}, by depth",
        "",
        figure.source,
        Markup(plots.depth(figure, identifier)),
        ("layer", *(f"{label}: {name}" for label, name in columns)),
        tuple(
            (str(layer), *(f"{values[row]:.4g}" for panel in figure.panels for values in panel.series.values()))
            for row, layer in enumerate(figure.layers)
        ),
    )


def _frontier(figure: Frontier, identifier: str) -> Plot:
    others = list(figure.points[0].others)
    return Plot(
        f"{figure.skill}, over {figure.name}: {figure.method}",
        "",
        figure.source,
        Markup(plots.frontier(figure, identifier)),
        (figure.name, figure.skill, *others),
        tuple(
            (f"{entry.setting:g}", percent(entry.forgotten), *(percent(entry.others[name]) for name in others))
            for entry in sorted(figure.points, key=lambda point: point.setting)
        ),
    )


def _languages(figure: Languages, identifier: str) -> Plot:
    return Plot(
        figure.method,
        "",
        figure.source,
        Markup(plots.languages(figure, identifier)),
        ("forgotten", *figure.tested),
        tuple(
            (name, *(percent(share) for share in row))
            for name, row in zip(figure.forgotten, figure.shares, strict=True)
        ),
    )


def _with_first(names: Iterable[str], first: str) -> list[str]:
    return sorted(names, key=lambda name: name != first)
