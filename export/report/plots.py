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
from bakeout.models.plan import Adjustment
from bakeout.models.printable import printable

# Okabe and Ito's colours, which colour-blind readers can distinguish; those too pale for a white page are left out.
_COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c")
_DASHES: tuple[Any, ...] = (
    (0, (9, 1.5)),
    (0, (5, 2)),
    (0, (1, 1.5)),
    (0, (6, 2, 1, 2)),
    (0, (3, 1)),
    (0, (8, 2, 2, 2, 2, 2)),
)
_MARKERS = "osD^vPX"
# Becomes the page's text colour.
_INK = "#010203"
_WIDTH = 4.6
_LONGEST_NAME = 18
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bakeout",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11,
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
    "legend.fontsize": 10.5,
}


def inside(figure: Inside, identifier: str) -> str:
    """Share of queries inside against alpha: a line a skill, the skill to refuse in bold."""
    with rc_context(_STYLE):
        canvas, axes = _canvas(3.3)
        names = sorted({figure.skill, *figure.shares})
        _lines(axes, figure.alpha, figure.shares, names, figure.skill, markers=False)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel("α")
        axes.set_ylabel("queries inside")
        if figure.chosen is not None:
            axes.axvline(figure.chosen, color=_INK, linewidth=1, linestyle=(0, (2, 2)))
            axes.annotate("chosen", (figure.chosen, 0.5), (4, 0), textcoords="offset points", fontsize=10)
        _legend(canvas)
        return _svg(canvas, identifier)


def depth(figure: Depth, identifier: str) -> str:
    """Layer by layer, a panel below the other, a line a skill, the skill to refuse in bold."""
    with rc_context(_STYLE):
        canvas = Figure(figsize=(_WIDTH, 0.8 + 2 * len(figure.panels)), layout="constrained")
        names = sorted({figure.skill}.union(*(panel.series for panel in figure.panels)))
        for number, panel in enumerate(figure.panels, start=1):
            axes = canvas.add_subplot(len(figure.panels), 1, number)
            _lines(axes, figure.layers, panel.series, names, figure.skill)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_title(_short(panel.label), loc="left", fontsize=11)
        axes.set_xlabel("layer")
        _legend(canvas)
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
            axes.annotate(text, (left, kept), (6, -12), textcoords="offset points", fontsize=10)
            if chosen:
                axes.plot([left], [kept], "o", markersize=12, markerfacecolor="none", markeredgecolor=_COLOURS[0])
        axes.margins(0.14)
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_xlabel(f"left of {_short(figure.skill)}, of base")
        axes.set_ylabel("least left of another")
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
                column + 0.5, row + 0.5, f"{shares[row, column]:.1%}", ha="center", va="center", color=ink, fontsize=10
            )
        axes.set_xticks(np.arange(len(figure.tested)) + 0.5, [_short(name) for name in figure.tested])
        axes.set_yticks(np.arange(len(figure.forgotten)) + 0.5, [_short(name) for name in figure.forgotten])
        axes.set_xlabel("tested")
        axes.set_ylabel("forgotten")
        axes.tick_params(length=0)
        axes.invert_yaxis()
        for spine in axes.spines.values():
            spine.set_visible(False)
        return _svg(canvas, identifier)


def neurons(adjust: Adjustment, chosen: Sequence[tuple[str, int, int]], identifier: str) -> str:
    """The two Gaussians of neurons (the paper's Figure 3): each one's name, and its layer's and its own index in the
    plan.
    """
    with rc_context(_STYLE):
        rows = (len(chosen) + 1) // 2
        canvas = Figure(figsize=(_WIDTH, 0.5 + 1.5 * rows), layout="constrained")
        for number, (neuron, layer, index) in enumerate(chosen, start=1):
            adjusted = adjust.layers[layer]
            axes = canvas.add_subplot(rows, 2, number)
            curves = {
                "forget": (adjusted.forget_mean[index], adjusted.forget_deviation[index]),
                "retain": (adjusted.retain_mean[index], adjusted.retain_deviation[index]),
            }
            reach = [mean + sign * 3.2 * deviation for mean, deviation in curves.values() for sign in (-1, 1)]
            x = np.linspace(min(reach), max(reach), 81)
            for (name, (mean, deviation)), colour, dash in zip(curves.items(), _COLOURS, ("-", "--"), strict=False):
                density = np.exp(-(((x - mean) / deviation) ** 2) / 2) / deviation
                axes.plot(x, density, color=colour, linestyle=dash, label=name, linewidth=1.6)
                axes.fill_between(x, density, color=colour, alpha=0.12, linewidth=0)
            axes.set_title(neuron, fontsize=10)
            axes.set_yticks([])
            axes.xaxis.set_major_locator(MaxNLocator(4))
            if number == 1:
                handles = axes.get_legend_handles_labels()
                canvas.legend(*handles, loc="outside upper center", ncols=2)
        return _svg(canvas, identifier)


def _canvas(height: float) -> tuple[Figure, Axes]:
    canvas = Figure(figsize=(_WIDTH, height), layout="constrained")
    return canvas, canvas.add_subplot()


def _lines(
    axes: Axes,
    x: Sequence[float],
    series: Mapping[str, Sequence[float]],
    names: Sequence[str],
    bold: str,
    *,
    markers: bool = True,
) -> None:
    """A line for each of ``series``; its place in ``names`` gives its look, so that a name looks alike everywhere."""
    for name in sorted(series, key=lambda name: name == bold):
        place = names.index(name)
        axes.plot(
            x,
            series[name],
            label=_short(name).removeprefix("_"),  # matplotlib leaves such names out of legends
            color=_COLOURS[place % len(_COLOURS)],
            linestyle="-" if name == bold else _DASHES[place % len(_DASHES)],
            marker=_MARKERS[place % len(_MARKERS)] if markers else None,
            markersize=4,
            linewidth=3 if name == bold else 1.6,
        )


def _short(name: str) -> str:
    """A name that leaves room for the drawing; the tables have the whole one."""
    name = printable(name)
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _legend(canvas: Figure) -> None:
    """One legend above all panels, each name once."""
    by_label = {
        label: handle for axes in canvas.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    labels = sorted(by_label)
    handles = [by_label[label] for label in labels]
    canvas.legend(handles, labels, loc="outside upper left", ncols=4, handlelength=2.2, columnspacing=1.2)


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
