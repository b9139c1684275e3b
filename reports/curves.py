"""Curves and tables of runs, from the metrics.jsonl and run.json that each leaves.

    python -m reports.curves OUT RUN_DIRECTORY...

Runs in one parent directory are one curve, repeated with several seeds: the curve is their
median, the band around it their range. OUT gets comparison.png and .svg, table.md and table.csv.
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from reports import figures

_POINTS = 200
_PANELS = {
    "train_loss": "Training loss",
    "test_error": "Test error",
    "test_loss": "Test log loss",
    "test_average_precision": "Test average precision",
    "tau": "τ, equivalent batch increase",
}
_FORMS = {"train_loss": "{:.2e}", "test_error": "{:.2%}", "test_average_precision": "{:.3f}"}


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        label: name of its curve.
        flags: its flags.
        rows: lines of metrics.jsonl, by step.
        path: its directory.
    """

    label: str
    flags: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    path: pathlib.Path | None = None

    @property
    def last(self) -> Mapping[str, Any]:
        return self.rows[-1]

    @property
    def importance(self) -> float | None:
        """Share of steps on drawn batches, None for plain Keras."""
        shares = [row["importance"] for row in self.rows[1:]]
        if not shares or None in shares:
            return None
        return float(np.average(shares, weights=np.diff([row["step"] for row in self.rows])))

    def values(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Seconds and values of one metric, where it was measured."""
        measured = [(row["seconds"], row[name]) for row in self.rows if row[name] is not None]
        seconds, values = np.array(measured, float).reshape(-1, 2).T
        return seconds, values


class Spread(NamedTuple):
    """Median and range over the runs of a curve; mean, and standard deviation (0 of one run)."""

    median: float
    smallest: float
    largest: float
    mean: float
    deviation: float


Curves = Mapping[str, Sequence[Run]]


def read(directory: str | pathlib.Path, label: str | None = None) -> Run:
    """Read one run.

    Args:
        directory: holds run.json and metrics.jsonl.
        label: name of its curve; by default that of the parent directory.
    Raises:
        FileNotFoundError: no run is there.
        ValueError: the run has recorded nothing.
    """
    directory = pathlib.Path(directory)
    flags = json.loads((directory / "run.json").read_text())["flags"]
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    if not lines:
        raise ValueError(f"{directory / 'metrics.jsonl'} is empty: the run recorded nothing.")
    label = directory.resolve().parent.name if label is None else label
    return Run(label, flags, [json.loads(line) for line in lines], directory)


def spread(values: Sequence[float]) -> Spread:
    """How values lie."""
    found = np.asarray(values, float)
    deviation = found.std(ddof=1) if len(found) > 1 else 0.0
    numbers = np.median(found), found.min(), found.max(), found.mean(), deviation
    return Spread(*map(float, numbers))


def final(runs: Sequence[Run], name: str) -> Spread:
    """How a metric lies at the end of the runs of a curve."""
    return spread([run.last[name] for run in runs])


def compared(runs: Sequence[Run]) -> tuple[str, ...]:
    """The metrics that count: where classes are rare, an error says next to nothing."""
    if "test_average_precision" in runs[0].last:
        return ("test_loss", "test_average_precision", "test_calibration_error")
    return ("train_loss", "test_error")


def table(curves: Curves) -> list[dict[str, Any]]:
    """One row of numbers for each curve, all of the last evaluation."""
    rows = []
    for label, runs in curves.items():
        row: dict[str, Any] = {"curve": label, "runs": len(runs)}
        row["learning_rate"] = runs[0].flags["learning_rate"]
        for name in (*compared(runs), "step", "seconds"):
            measured = final(runs, name)
            row[name] = measured.median
            row |= {f"{name}_{part}": getattr(measured, part) for part in Spread._fields[1:]}
        shares = [run.importance for run in runs]
        row["importance"] = None if None in shares else spread(shares).median
        rows.append(row)
    return rows


def markdown(curves: Curves) -> str:
    """The table for people, as aligned Markdown."""
    metrics = compared(next(iter(curves.values())))
    named = (name.replace("_", " ") for name in metrics)
    cells = [("curve", "runs", "learning rate", *named, "steps", "seconds", "importance steps")]
    for row in table(curves):
        cells.append(
            (
                row["curve"],
                str(row["runs"]),
                f"{row['learning_rate']:g}",
                *(_cell(row, name, _FORMS.get(name, "{:.4f}")) for name in metrics),
                _cell(row, "step", "{:.0f}"),
                f"{row['seconds']:.1f}",
                "none" if row["importance"] is None else f"{row['importance']:.0%}",
            )
        )
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = [" | ".join(text.ljust(width) for text, width in zip(line, widths)) for line in cells]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" for line in lines)


def comma_separated(curves: Curves) -> str:
    """The table for programs, as CSV."""
    return figures.comma_separated(table(curves))


def verdict(label: str, runs: Sequence[Run], other: str, others: Sequence[Run], name: str) -> str:
    """One sentence on a metric at the end, "lower" or "higher" only where no two runs overlap."""
    mine, theirs = final(runs, name), final(others, name)
    what = f"{name.replace('_', ' ')} of {label} against {other}"
    medians = f"medians {mine.median:.3g} and {theirs.median:.3g}"
    if mine.largest < theirs.smallest:
        return f"{what}: lower in every run ({medians})."
    if mine.smallest > theirs.largest:
        return f"{what}: higher in every run ({medians})."
    return f"{what}: no clear difference, the ranges over seeds overlap ({medians})."


def draw(curves: Curves, path: str | pathlib.Path) -> None:
    """Draw metrics against seconds of training: medians, with the range over the runs.

    Args:
        curves: runs by label.
        path: of the PNG; the SVG lies beside it.
    """
    counted = {"tau", *compared(next(iter(curves.values())))}
    panels = [
        name
        for name in _PANELS
        if name in counted and any(_measured(runs, name) for runs in curves.values())
    ]
    with figures.saved(pathlib.Path(path), panels=len(panels)) as axes:
        for axis, name in zip(axes, panels):
            for number, (label, runs) in enumerate(curves.items()):
                if _measured(runs, name):
                    _draw_curve(axis, label, f"C{number}", runs, name)
            axis.set(xlabel="seconds of training", title=_PANELS[name])
            axis.set_yscale("linear" if name == "tau" else "log")
            axis.grid(alpha=0.3)
            axis.legend()


def _draw_curve(axis, label: str, color: str, runs: Sequence[Run], name: str) -> None:
    measured = [run.values(name) for run in runs]
    start = max(seconds[0] for seconds, _ in measured)
    end = min(seconds[-1] for seconds, _ in measured)
    grid = np.linspace(start, end, _POINTS)
    values = np.array([np.interp(grid, *one) for one in measured])
    axis.plot(grid, np.median(values, axis=0), color=color, label=label)
    if len(runs) > 1:
        smallest, largest = values.min(axis=0), values.max(axis=0)
        axis.fill_between(grid, smallest, largest, color=color, alpha=0.2, lw=0)


def _measured(runs: Sequence[Run], name: str) -> bool:
    return all(row[name] is not None for run in runs for row in run.rows[1:])


def _cell(row: Mapping[str, Any], name: str, form: str) -> str:
    median = form.format(row[name])
    if row["runs"] == 1:
        return median
    smallest, largest = row[f"{name}_smallest"], row[f"{name}_largest"]
    return f"{median} ({form.format(smallest)} to {form.format(largest)})"


def write(curves: Curves, out: str | pathlib.Path) -> None:
    """Write comparison.png and .svg, table.md and table.csv.

    Args:
        curves: runs by label.
        out: directory.
    """
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    draw(curves, out / "comparison.png")
    (out / "table.md").write_text(markdown(curves) + "\n")
    (out / "table.csv").write_text(comma_separated(curves))


def main(arguments: Sequence[str]) -> None:
    """Read the run directories given and write their comparison."""
    if len(arguments) < 2:
        sys.exit(__doc__)
    out, *directories = arguments
    curves: dict[str, list[Run]] = {}
    for run in map(read, directories):
        curves.setdefault(run.label, []).append(run)
    write(curves, out)
    print(markdown(curves))


if __name__ == "__main__":
    main(sys.argv[1:])
