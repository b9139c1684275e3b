"""Figures 1 and 2 of Katharopoulos & Fleuret 2018, from the ablation.jsonl of runs.

    python -m reports.ablation OUT RUN_DIRECTORY...

OUT gets gradient_distance.png and .svg (figure 1: distance from the gradient of all images, over
that of uniform draws, against updates: mean and range over the runs), probabilities.png and .svg
(figure 2: the first run's probabilities against the ideal ones), table.md and table.csv.
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from reports import figures

UNIFORM, IDEAL = "uniform", "gradient_norm"
_SHOWN = ("loss", "upper_bound", IDEAL)


class Measured(NamedTuple):
    """The measurements of one run.

    Attributes:
        steps: [k] numbers of updates.
        distances: [k, draws] by proposal.
        probabilities: [k, B] by proposal.
    """

    steps: np.ndarray
    distances: Mapping[str, np.ndarray]
    probabilities: Mapping[str, np.ndarray]

    def relative_distances(self, name: str) -> np.ndarray:
        """Mean distance over the draws, over uniform's: [k]."""
        return self.distances[name].mean(axis=1) / self.distances[UNIFORM].mean(axis=1)

    def squared_error(self, name: str) -> float:
        """Σ (g_i − g*_i)² over all images and looks, g* ∝ the gradient norm."""
        return float(np.sum((self.probabilities[name] - self.probabilities[IDEAL]) ** 2))


def read(directory: str | pathlib.Path) -> Measured:
    """Read one run.

    Raises:
        FileNotFoundError: the run has no ablation.jsonl.
        ValueError: it is empty.
    """
    path = pathlib.Path(directory) / "ablation.jsonl"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; trainers.variance_ablation writes it.")
    # A run that was killed and went on may have looked twice at a step.
    rows = {row["step"]: row for row in map(json.loads, path.read_text().splitlines())}
    if not rows:
        raise ValueError(f"{path} is empty: the run recorded nothing.")
    ordered = [rows[step] for step in sorted(rows)]

    def stacked(what: str) -> dict[str, np.ndarray]:
        return {name: np.array([row[what][name] for row in ordered]) for name in ordered[0][what]}

    return Measured(np.array(sorted(rows)), stacked("distances"), stacked("probabilities"))


def table(runs: Sequence[Measured]) -> list[dict[str, Any]]:
    """A row for each proposal: relative distance and squared error, means over the runs.

    `over_ideal` is the mean distance divided by that of the exact gradient norm.
    """
    ideal = np.mean([run.relative_distances(IDEAL) for run in runs])
    rows = []
    for name in _SHOWN:
        distances = np.array([run.relative_distances(name).mean() for run in runs])
        rows.append(
            {
                "proposal": name,
                "runs": len(runs),
                "distance": float(distances.mean()),
                "distance_smallest": float(distances.min()),
                "distance_largest": float(distances.max()),
                "over_ideal": float(distances.mean() / ideal),
                "squared_error": float(np.mean([run.squared_error(name) for run in runs])),
            }
        )
    return rows


def draw_distances(runs: Sequence[Measured], out: pathlib.Path) -> None:
    """Figure 1.

    Args:
        runs: with the same steps. out: directory.
    """
    with figures.saved(out / "gradient_distance", width=5) as (axis,):
        for number, name in enumerate(_SHOWN):
            values = np.array([run.relative_distances(name) for run in runs])
            axis.plot(runs[0].steps, values.mean(axis=0), color=f"C{number}", label=name)
            if len(runs) > 1:
                low, high = values.min(axis=0), values.max(axis=0)
                axis.fill_between(runs[0].steps, low, high, color=f"C{number}", alpha=0.2, lw=0)
        axis.axhline(1, color="black", lw=1, label=UNIFORM)
        axis.set(xlabel="updates", title="Distance of gradients over uniform's")
        axis.legend()


def draw_probabilities(run: Measured, out: pathlib.Path) -> None:
    """Figure 2.

    Args:
        run: one run. out: directory.
    """
    ideal = run.probabilities[IDEAL].ravel()
    with figures.saved(out / "probabilities", width=5, panels=2) as axes:
        for axis, name in zip(axes, ("loss", "upper_bound")):
            axis.scatter(run.probabilities[name].ravel(), ideal, s=2, alpha=0.3)
            axis.plot([0, ideal.max()], [0, ideal.max()], color="black", lw=1)
            title = f"{name}: squared error {run.squared_error(name):.2g}"
            axis.set(xlabel=f"probability by {name}", ylabel="by gradient norm", title=title)


def write(runs: Sequence[Measured], out: str | pathlib.Path) -> list[dict[str, Any]]:
    """Write both figures and the table; returns the table.

    Args:
        runs: measured at the same steps. out: directory.
    Raises:
        ValueError: runs with other steps than the first.
    """
    out = pathlib.Path(out)
    for run in runs[1:]:
        if not np.array_equal(run.steps, runs[0].steps):
            raise ValueError(f"runs must have the same steps; got {runs[0].steps} and {run.steps}.")
    draw_distances(runs, out)
    draw_probabilities(runs[0], out)
    rows = table(runs)
    figures.write_table(rows, out)
    return rows


def main(arguments: Sequence[str]) -> None:
    """Read the run directories given and write their report."""
    if len(arguments) < 2:
        sys.exit(__doc__)
    out, *directories = arguments
    print(figures.markdown(write([read(directory) for directory in directories], out)))


if __name__ == "__main__":
    main(sys.argv[1:])
