"""The figures and the table of Alain et al. 2015 from runs of `trainers.issgd`.

    python -m reports.issgd OUT RUN_DIRECTORY...

Runs in one parent directory are one curve, repeated with several seeds: the curve is their median,
and the thin lines around it the first and third quartile, against seconds of training. OUT gets
figure2 (loss and error on training examples), figure3 (error on the test examples), figure4 (√Tr Σ
of the proposals, for each curve that has it), and Table 1 as table.md and table.csv.
"""

from __future__ import annotations

import contextlib
import json
import math
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from reports import curves, figures

_POINTS = 200
_QUARTILES = (25, 50, 75)
# Table 1 is "the average prediction error over the final 10% iterations".
_FINAL = 0.1
_FIGURE2 = {"train_loss": "Training loss", "train_error": "Training error"}
_FIGURE3 = {"test_error": "Test error"}
_FIGURE4 = {
    "sqrt_trace_uniform": "SGD, ideal",
    "sqrt_trace_stale": "ISSGD, stale",
    "sqrt_trace_drawn": "ISSGD, as drawn",
    "sqrt_trace_stale_other": "ISSGD, stale, other constant",
    "sqrt_trace_ideal": "ISSGD, ideal",
}


class Tube(NamedTuple):
    """A curve over several runs: "a tube into which half of the trajectories fit".

    Attributes:
        seconds: [k]. low, median, high: [k] quartiles.
    """

    seconds: np.ndarray
    low: np.ndarray
    median: np.ndarray
    high: np.ndarray


def tube(series: Sequence[tuple[np.ndarray, np.ndarray]]) -> Tube:
    """Quartiles over runs, where all of them have values.

    Args:
        series: seconds and values of each run.
    """
    start = max(seconds[0] for seconds, _ in series)
    end = min(seconds[-1] for seconds, _ in series)
    grid = np.linspace(start, end, _POINTS)
    values = np.array([np.interp(grid, *one) for one in series])
    return Tube(grid, *np.percentile(values, _QUARTILES, axis=0))


def monitored(directory: pathlib.Path, run: curves.Run) -> dict[str, tuple]:
    """Seconds and values of a run's monitors, by name; empty where none were recorded.

    Args:
        directory: the run's. run: the same.
    """
    path = directory / "issgd.jsonl"
    if not path.exists():
        return {}
    seconds = {row["step"]: row["seconds"] for row in run.rows}
    # A run that went on after a kill may have a step twice: the last one counts.
    rows = {row["step"]: row for row in _rows(path)}
    found = {}
    for name in _FIGURE4:
        known = [
            (seconds[step], row[name])
            for step, row in sorted(rows.items())
            if step in seconds and row.get(name) is not None and math.isfinite(row[name])
        ]
        if known:
            found[name] = tuple(np.array(known, float).T)
    return found


def _rows(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines():
        # One that a kill left without its end has the next one's on the same line.
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(line[max(line.rfind('{"step"'), 0) :])


def final_error(run: curves.Run, name: str = "test_error") -> float:
    """The mean over the last tenth of a run, by its seconds."""
    seconds, values = run.values(name)
    return float(values[seconds >= seconds[-1] - _FINAL * (seconds[-1] - seconds[0])].mean())


def table1(results: curves.Curves) -> list[dict[str, Any]]:
    """Test error of each curve: means over the last 10 % of the runs, and over these."""
    rows = []
    for label, runs in results.items():
        errors = [final_error(run) for run in runs]
        row: dict[str, Any] = {"model": label, "runs": len(runs)}
        row["test_error"] = float(np.mean(errors))
        row["smallest"], row["largest"] = min(errors), max(errors)
        row["final_train_loss"] = float(np.median([run.last["train_loss"] for run in runs]))
        rows.append(row)
    return rows


def _draw(axis, color: str, label: str, found: Tube) -> None:
    axis.plot(found.seconds, found.median, color=color, label=label, lw=2)
    for edge in (found.low, found.high):
        axis.plot(found.seconds, edge, color=color, lw=0.7)


def draw_runs(results: curves.Curves, panels: Mapping[str, str], path: pathlib.Path) -> None:
    """Figures 2 and 3.

    Args:
        results: runs by curve. panels: titles by metric. path: without ending.
    """
    with figures.saved(path, panels=len(panels)) as axes:
        for axis, (name, title) in zip(axes, panels.items()):
            for number, (label, runs) in enumerate(results.items()):
                _draw(axis, f"C{number}", label, tube([run.values(name) for run in runs]))
            axis.set(xlabel="seconds of training", title=title)
            axis.grid(alpha=0.3)
            axis.legend()


def draw_variance(monitors: Mapping[str, Sequence[Mapping[str, tuple]]], path) -> None:
    """Figure 4: √Tr Σ, a panel for each curve.

    Args:
        monitors: of the runs of each curve. path: without ending.
    """
    with figures.saved(path, panels=len(monitors)) as axes:
        for axis, (label, runs) in zip(axes, monitors.items()):
            for number, (name, title) in enumerate(_FIGURE4.items()):
                series = [run[name] for run in runs if name in run]
                if series:
                    _draw(axis, f"C{number}", title, tube(series))
            axis.set(xlabel="seconds of training", title=f"√Tr Σ, {label}")
            axis.grid(alpha=0.3)
            axis.legend()


def write(directories: Sequence[str | pathlib.Path], out: str | pathlib.Path) -> str:
    """Write all figures and the table; returns the table as Markdown.

    Args:
        directories: of runs. out: where to.
    """
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[curves.Run]] = {}
    monitors: dict[str, list[Mapping[str, tuple]]] = {}
    for directory in map(pathlib.Path, directories):
        run = curves.read(directory)
        results.setdefault(run.label, []).append(run)
        if found := monitored(directory, run):
            monitors.setdefault(run.label, []).append(found)
    draw_runs(results, _FIGURE2, out / "figure2")
    draw_runs(results, _FIGURE3, out / "figure3")
    if monitors:
        draw_variance(monitors, out / "figure4")
    rows = table1(results)
    figures.write_table(rows, out)
    return figures.markdown(rows)


def main(arguments: Sequence[str]) -> None:
    """Read the run directories given and write their figures."""
    if len(arguments) < 2:
        sys.exit(__doc__)
    print(write(arguments[1:], arguments[0]))


if __name__ == "__main__":
    main(sys.argv[1:])
