"""Reliability plots: what was predicted of a rare class, and how often it was there."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from reports import figures


def write(found: Mapping[str, Any], out: pathlib.Path) -> None:
    """Write reliability.json, reliability.png and .svg.

    Args:
        found: by label, `predicted`, `observed` and `weight` of each bin. out: directory.
    """
    numbers = {
        label: {name: list(map(float, values)) for name, values in one._asdict().items()}
        for label, one in found.items()
    }
    (out / "reliability.json").write_text(json.dumps(numbers, indent=2) + "\n")
    draw(numbers, out / "reliability")


def draw(numbers: Mapping[str, Mapping[str, list[float]]], path: pathlib.Path) -> None:
    """Draw bins by both logarithms; those in which nothing was observed have no logarithm.

    Args:
        numbers: as in reliability.json. path: without the ending.
    """
    with figures.saved(path) as (axis,):
        seen = []
        for label, one in numbers.items():
            bins = [pair for pair in zip(one["predicted"], one["observed"]) if min(pair) > 0]
            seen += [value for pair in bins for value in pair]
            axis.plot(*zip(*bins) if bins else ((), ()), marker="o", ms=3, label=label)
        ends = [min(seen), max(seen)] if seen else [0.1, 1]
        axis.plot(ends, ends, color="0.7", lw=1, zorder=0)
        axis.set(xscale="log", yscale="log", xlabel="predicted probability")
        axis.set(ylabel="share observed", title="Reliability, bins of equal weight")
        axis.grid(alpha=0.3)
        axis.legend()
