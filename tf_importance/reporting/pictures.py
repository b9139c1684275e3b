"""Plots as SVG within a page: they take its colours, light or dark, and its width."""

from __future__ import annotations

import io
import itertools
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import figure

# Told apart on white and on black, and by people who see few colours (Okabe and Ito).
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#8a8a8a")
# Stands in for the colour of the page's text.
_INK = "#010203"
_STYLE: Any = {
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK
    ),
    "svg.fonttype": "none",
    "svg.hashsalt": "tf_importance",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_POINTS = 200
# The values of one run: over what, and what.
Line = tuple[Sequence[float], Sequence[float]]


def colors_of(labels: Sequence[str]) -> dict[str, str]:
    """A colour for each curve of a page."""
    return dict(zip(labels, itertools.cycle(COLORS)))


def lines(
    curves: Mapping[str, Sequence[Line]],
    colors: Mapping[str, str],
    over: str,
    what: str,
    logarithmic: bool,
) -> str:
    """Medians of the runs of each curve, and their range.

    Args:
        curves: of each label its runs. colors: of each label.
        over, what: names of the axes.
        logarithmic: where all values are positive.
    """
    values = [value for runs in curves.values() for _, run in runs for value in run]
    with matplotlib.rc_context(_STYLE):
        drawing, axes = _axes()
        for label, runs in curves.items():
            color = colors[label]
            runs = [run for run in runs if len(run[0]) > 0]
            if not runs:
                continue
            start, end = max(run[0][0] for run in runs), min(run[0][-1] for run in runs)
            grid = np.linspace(start, end, _POINTS) if len(runs) > 1 else np.asarray(runs[0][0])
            found = np.array([np.interp(grid, *run) for run in runs])
            middle = np.median(found, axis=0)
            axes.plot(grid, middle, color=color, label=label, marker="" if len(grid) > 1 else "o")
            if len(runs) > 1:
                axes.fill_between(
                    grid, found.min(axis=0), found.max(axis=0), color=color, alpha=0.2, lw=0
                )
        if logarithmic and values and min(values) > 0:
            axes.set_yscale("log")
        axes.set_xlabel(over)
        axes.set_ylabel(what)
        axes.grid(alpha=0.25, color=_INK)
        if len(curves) > 1:
            axes.legend(frameon=False, fontsize="small")
        ends = [f"{label} {_told(runs)}" for label, runs in curves.items()]
        return _svg(drawing, f"{what} over {over}, at the end: {'; '.join(ends)}")


def histogram(edges: Sequence[float], counts: Sequence[int], color: str, over: str) -> str:
    """How many values lie between neighbouring edges, which grow by a factor."""
    with matplotlib.rc_context(_STYLE):
        drawing, axes = _axes()
        axes.stairs(counts, edges, fill=True, color=color)
        axes.set_xscale("log")
        axes.set_xlabel(over)
        axes.set_ylabel("examples")
        most = edges[int(np.argmax(counts))]
        return _svg(
            drawing,
            f"Histogram of {over}, from {edges[0]:.2g} to {edges[-1]:.2g}, most "
            f"of them about {most:.2g}",
        )


def shares(seconds: Mapping[str, Mapping[str, float]]) -> str:
    """Of each curve a bar of seconds, by what they were spent on."""
    with matplotlib.rc_context(_STYLE):
        drawing, axes = _axes(height=1.6 + 0.4 * len(seconds))
        parts = list(next(iter(seconds.values())))
        ends = np.zeros(len(seconds))
        for color, part in zip(COLORS, parts):
            widths = np.array([of[part] for of in seconds.values()])
            axes.barh(list(seconds), widths, left=ends, color=color, label=part)
            ends += widths
        axes.set_xlabel("seconds")
        axes.invert_yaxis()
        axes.legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1))
        told = [
            f"{label}: " + ", ".join(f"{part} {value:.2g}" for part, value in of.items())
            for label, of in seconds.items()
        ]
        return _svg(drawing, f"Seconds by what they were spent on. {'; '.join(told)}")


def drawn(make: Callable[[], figure.Figure], description: str) -> str:
    """A figure of somebody else's.

    Args:
        make: makes it, within the page's style.
    """
    with matplotlib.rc_context(_STYLE):
        drawing = make()
        drawing.patch.set_alpha(0)
        for axes in drawing.axes:
            axes.patch.set_alpha(0)
        for legend in filter(None, (axes.get_legend() for axes in drawing.axes)):
            legend.get_frame().set_alpha(0)
        return _svg(drawing, description)


def _axes(height: float = 3.0):
    drawing = figure.Figure(figsize=(4.8, height), layout="constrained")
    drawing.patch.set_alpha(0)
    axes = drawing.subplots()
    axes.patch.set_alpha(0)
    return drawing, axes


def _told(runs: Sequence[Line]) -> str:
    ends = [values[-1] for _, values in runs if len(values) > 0]
    return f"{statistics.median(ends):.3g}" if ends else "unknown"


def _svg(drawing: figure.Figure, description: str) -> str:
    text = io.StringIO()
    drawing.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    # A page has several: names are for one only. Its own width and colours are the page's.
    svg = re.sub(r' id="\w+_\d+"', "", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", svg, count=1)
    described = description.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{described}" ', 1)
    return svg.replace(_INK, "currentColor")
