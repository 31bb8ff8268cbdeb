"""Plots as inline SVG: legible in grey (every line has its own dashes and marker), on a phone, and in the dark.

Deterministic: the same numbers, the same bytes. Ink is the page's own colour; ids are the plot's own.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from bakeout.export.report.figures_file import Depth, Frontier, Inside, Languages
from bakeout.models.plan import NeuronAdjust

# Okabe and Ito's colours, which colour-blind readers can tell apart; those too pale for a white page are left out.
_COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1)), (0, (8, 2, 2, 2, 2, 2)))
_MARKERS = "osD^vPX"
# Becomes the page's text colour.
_INK = "#010203"
_WIDTH = 4.7
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bakeout",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.18,
    "grid.color": _INK,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def inside(figure: Inside, identifier: str) -> str:
    """Share of queries inside against alpha: a line a skill, the skill to refuse in bold."""
    with rc_context(_STYLE):
        canvas, axes = _canvas(3.2)
        names = [figure.skill, *sorted(set(figure.shares) - {figure.skill})]
        _lines(
            axes, figure.alpha, {name: figure.shares[name] for name in names if name in figure.shares}, markers=False
        )
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel("α")
        axes.set_ylabel("queries inside")
        if figure.chosen is not None:
            axes.axvline(figure.chosen, color=_INK, linewidth=1, linestyle=(0, (2, 2)))
            axes.annotate("chosen", (figure.chosen, 1.0), (3, 2), textcoords="offset points", fontsize=8.5)
        _legend(axes)
        return _svg(canvas, identifier)


def depth(figure: Depth, identifier: str) -> str:
    """Layer by layer, a panel below the other."""
    with rc_context(_STYLE):
        canvas = Figure(figsize=(_WIDTH, 0.6 + 2.5 * len(figure.panels)), layout="constrained")
        for number, panel in enumerate(figure.panels, start=1):
            axes = canvas.add_subplot(len(figure.panels), 1, number)
            _lines(axes, figure.layers, panel.series)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_xlabel("layer")
            axes.set_ylabel(panel.label)
            if len(panel.series) > 1:
                _legend(axes)
        return _svg(canvas, identifier)


def frontier(figure: Frontier, identifier: str) -> str:
    """What is left of the forgotten skill against the least that is left of another, a point a setting."""
    with rc_context(_STYLE):
        canvas, axes = _canvas(3.2)
        points = sorted(figure.points, key=lambda point: point.setting)
        x = [point.forgotten for point in points]
        y = [min(point.others.values()) for point in points]
        axes.plot(x, y, color=_COLOURS[1], marker="o", linewidth=1.5)
        for point, left, kept in zip(points, x, y, strict=True):
            chosen = point.setting == figure.chosen
            text = f"{point.setting:g}" + (" (chosen)" if chosen else "")
            axes.annotate(text, (left, kept), (5, 5), textcoords="offset points", fontsize=8.5)
            if chosen:
                axes.plot([left], [kept], "o", markersize=12, markerfacecolor="none", markeredgecolor=_COLOURS[0])
        axes.margins(0.12)
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_xlabel(f"left of {figure.skill}, of base (less is better)")
        axes.set_ylabel("least left of another skill")
        return _svg(canvas, identifier)


def languages(figure: Languages, identifier: str) -> str:
    """The matrix, its numbers written into the cells."""
    with rc_context(_STYLE | {"axes.grid": False}):
        canvas, axes = _canvas(0.9 + 0.55 * len(figure.forgotten))
        shares = np.array(figure.shares)
        # Drawn as vectors: an image would be embedded pixels.
        axes.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1.25, edgecolors="white", linewidth=2)
        for row, column in np.ndindex(shares.shape):
            ink = "#ffffff" if shares[row, column] > 0.6 else "#10233a"
            axes.text(
                column + 0.5, row + 0.5, f"{shares[row, column]:.1%}", ha="center", va="center", color=ink, fontsize=9
            )
        axes.set_xticks(np.arange(len(figure.tested)) + 0.5, figure.tested)
        axes.set_yticks(np.arange(len(figure.forgotten)) + 0.5, figure.forgotten)
        axes.set_xlabel("tested")
        axes.set_ylabel("forgotten")
        axes.tick_params(length=0)
        axes.invert_yaxis()
        for spine in axes.spines.values():
            spine.set_visible(False)
        return _svg(canvas, identifier)


def neurons(adjust: NeuronAdjust, chosen: Sequence[tuple[int, int]], identifier: str) -> str:
    """The two Gaussians of neurons, named by their layer's and their own index in the plan (the paper's Figure 3)."""
    with rc_context(_STYLE):
        rows = (len(chosen) + 1) // 2
        canvas = Figure(figsize=(_WIDTH, 0.5 + 1.5 * rows), layout="constrained")
        for number, (layer, index) in enumerate(chosen, start=1):
            one = adjust.layers[layer]
            axes = canvas.add_subplot(rows, 2, number)
            curves = {
                "forget": (one.forget_mean[index], one.forget_deviation[index]),
                "retain": (one.retain_mean[index], one.retain_deviation[index]),
            }
            reach = [mean + sign * 3.2 * deviation for mean, deviation in curves.values() for sign in (-1, 1)]
            x = np.linspace(min(reach), max(reach), 81)
            for (name, (mean, deviation)), colour, dash in zip(curves.items(), _COLOURS, _DASHES, strict=False):
                density = np.exp(-(((x - mean) / deviation) ** 2) / 2) / deviation
                axes.plot(x, density, color=colour, linestyle=dash, label=name, linewidth=1.6)
                axes.fill_between(x, density, color=colour, alpha=0.12, linewidth=0)
            axes.set_title(f"layer {one.layer}, neuron {one.neurons[index]}", fontsize=9)
            axes.set_yticks([])
            axes.xaxis.set_major_locator(MaxNLocator(4))
            if number == 1:
                handles = axes.get_legend_handles_labels()
                canvas.legend(*handles, loc="outside upper center", ncols=2)
        return _svg(canvas, identifier)


def _canvas(height: float) -> tuple[Figure, Axes]:
    canvas = Figure(figsize=(_WIDTH, height), layout="constrained")
    return canvas, canvas.add_subplot()


def _lines(axes: Axes, x: Sequence[float], series: Mapping[str, Sequence[float]], *, markers: bool = True) -> None:
    for number, (name, values) in enumerate(series.items()):
        axes.plot(
            x,
            values,
            label=name.removeprefix("_"),  # matplotlib leaves such names out of legends
            color=_COLOURS[number % len(_COLOURS)],
            linestyle=_DASHES[number % len(_DASHES)],
            marker=_MARKERS[number % len(_MARKERS)] if markers else None,
            markersize=4,
            linewidth=2.4 if number == 0 else 1.5,
        )


def _legend(axes: Axes) -> None:
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, handlelength=2.2, columnspacing=1.2)


def _svg(canvas: Figure, identifier: str) -> str:
    """The drawing as an element of a page: no document around it, no metadata, no namespaces, ids of its own."""
    out = io.StringIO()
    FigureCanvasSVG(canvas)  # what measures and draws the text
    canvas.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{identifier}-", text)
    text = re.sub(r'<svg width="[^"]*" height="[^"]*"', "<svg", text, count=1)
    text = re.sub(r'<svg([^>]*?) width="[^"]*"', r"<svg\1", text, count=1)
    text = re.sub(r'<svg([^>]*?) height="[^"]*"', r"<svg\1", text, count=1)
    return text.replace(_INK, "currentColor").replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans'").strip()
