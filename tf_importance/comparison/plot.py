"""The plot of a comparison; imported only when it is drawn."""

from __future__ import annotations

import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import figure


def draw(
    lengths: Mapping[float, Sequence[float]], others: Sequence[Any], path: str, what: str
) -> None:
    """`drawn`, as an image.

    Args:
        path: of the image.
    """
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    drawn(lengths, others, what).savefig(path, dpi=130)


def drawn(
    lengths: Mapping[float, Sequence[float]], others: Sequence[Any], what: str
) -> figure.Figure:
    """Loss against time: uniform sampling's curve, each method's runs at the budget.

    Args:
        lengths: uniform sampling's losses by its time in budgets. others: a `Row` of each method.
        what: the loss is called.
    """
    drawing = figure.Figure(figsize=(7, 4.5), layout="constrained")
    axes = drawing.subplots()
    for length, losses in lengths.items():
        axes.plot([length] * len(losses), losses, "o", color="0.6", markersize=3)
    middle = [statistics.median(losses) for losses in lengths.values()]
    axes.plot(list(lengths), middle, "-", color="0.4", label="uniform, so long")
    for number, row in enumerate(others):
        # Beside each other, at the budget.
        place = 1.0 + 0.04 * (number - (len(others) - 1) / 2)
        median = statistics.median(row.losses)
        axes.errorbar(
            [place],
            [median],
            [[median - min(row.losses)], [max(row.losses) - median]],
            fmt="s" if row.is_ours else "x",
            capsize=3,
            label=row.method,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(list(lengths), [f"{length:g}" for length in lengths])
    axes.xaxis.set_minor_formatter("")
    axes.set_xlabel("time, in budgets")
    axes.set_ylabel(f"{what}, median and range")
    axes.legend(fontsize="small", ncols=2)
    return drawing
