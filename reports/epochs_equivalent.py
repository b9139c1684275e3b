"""The figures and the table of Johnson & Guestrin 2018 from runs with and without RAIS.

    python -m reports.epochs_equivalent OUT RUN_DIRECTORY...

Runs in one parent directory are one curve; the first one named is the baseline. OUT gets
learning_curves.png (figure 3: means, with ±1.96 standard errors), epochs_equivalent.png (figure 4:
gain and overhead for each epoch, and the objective against epochs equivalent) and table1.md.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402  after the backend is chosen
import numpy as np  # noqa: E402

from reports import curves  # noqa: E402

_CONFIDENCE = 1.96
_PANELS = {
    "objective": "Objective F(w)",
    "test_error": "Validation error",
    "test_loss": "Validation loss",
}


class Band(NamedTuple):
    """A curve over several runs, at the steps that all of them recorded.

    Attributes:
        epochs: passes over the data. mean: of the runs. error: 1.96 standard errors; 0 for one run.
    """

    epochs: np.ndarray
    mean: np.ndarray
    error: np.ndarray


def steps_per_epoch(run: curves.Run) -> float:
    """n/|M|, from the steps and epochs that the run wrote down."""
    return run.last["step"] / run.last["epoch"]


def band(runs: Sequence[curves.Run], name: str) -> Band:
    """Mean and standard error of a metric against epochs."""
    steps, values = _recorded(runs, name)
    count = len(runs)
    deviation = values.std(axis=0, ddof=1) if count > 1 else np.zeros(values.shape[1])
    error = _CONFIDENCE * deviation / np.sqrt(count)
    return Band(steps / steps_per_epoch(runs[0]), values.mean(axis=0), error)


def epochs_equivalent(runs: Sequence[curves.Run]) -> np.ndarray:
    """|M|/n · t̂ at each evaluation, the mean over the runs."""
    return band(runs, "effective_step").mean / steps_per_epoch(runs[0])


def speed_up(runs: Sequence[curves.Run]) -> tuple[np.ndarray, np.ndarray]:
    """(r̂ − 1)·100 % between two evaluations, r̂ being the growth of t̂ for each step.

    Returns:
        Epochs at the middle of each interval, and percents.
    """
    effective = band(runs, "effective_step")
    per_epoch = steps_per_epoch(runs[0])
    gain = np.diff(effective.mean) / (np.diff(effective.epochs) * per_epoch)
    return _middles(effective.epochs), 100 * (gain - 1)


def overhead(
    runs: Sequence[curves.Run], baseline: Sequence[curves.Run]
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of a step over the baseline's, less 1, in percent, between two evaluations."""
    mine, theirs = band(runs, "seconds"), band(baseline, "seconds")
    if len(mine.epochs) != len(theirs.epochs) or not np.allclose(mine.epochs, theirs.epochs):
        raise ValueError(
            "overhead compares runs with evaluations at the same steps; got epochs "
            f"{mine.epochs.round(2)} and {theirs.epochs.round(2)}."
        )
    ratio = np.diff(mine.mean) / np.diff(theirs.mean)
    return _middles(mine.epochs), 100 * (ratio - 1)


def epochs_to(runs: Sequence[curves.Run], name: str, value: float) -> float:
    """Epochs after which the mean of a metric is at most a value for the first time; NaN never."""
    found = band(runs, name)
    reached = np.flatnonzero(found.mean <= value)
    return float(found.epochs[reached[0]]) if len(reached) else float("nan")


def table1(results: curves.Curves) -> str:
    """Quantities upon training completion, means ± 1.96 standard errors, as Markdown."""
    first, *_ = results.values()
    goal = band(first, "objective").mean[-1]
    head = ("curve", "runs", *_PANELS.values(), "epochs", "epochs equivalent")
    rows = [(*head, "epochs to the first one's final objective")]
    for label, runs in results.items():
        ends = [band(runs, name) for name in _PANELS]
        cells = [_cell(end.mean[-1], end.error[-1], len(runs)) for end in ends]
        numbers = (ends[0].epochs[-1], epochs_equivalent(runs)[-1])
        to_goal = epochs_to(runs, "objective", goal)
        passes = [f"{number:.1f}" for number in numbers]
        rows.append((label, str(len(runs)), *cells, *passes, f"{to_goal:.1f}"))
    rows.insert(1, tuple("---" for _ in rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def draw_learning_curves(results: curves.Curves, path: pathlib.Path) -> None:
    """Figure 3."""
    figure, axes = plt.subplots(1, len(_PANELS), figsize=(5 * len(_PANELS), 4))
    for axis, (name, title) in zip(axes, _PANELS.items()):
        for number, (label, runs) in enumerate(results.items()):
            found = band(runs, name)
            _draw_band(axis, found.epochs, found, f"C{number}", label)
        axis.set(xlabel="epochs", title=title, yscale="log")
        axis.legend()
    _save(figure, path)


def draw_epochs_equivalent(results: curves.Curves, path: pathlib.Path) -> None:
    """Figure 4, and the right of figure 2."""
    figure, (above, below) = plt.subplots(1, 2, figsize=(11, 4))
    baseline, *_ = results.values()
    for number, (label, runs) in enumerate(results.items()):
        color = f"C{number}"
        if runs is not baseline:
            above.plot(*speed_up(runs), color=color, label=f"{label}: (gain − 1)·100 %")
            above.plot(*overhead(runs, baseline), color=color, ls=":", label=f"{label}: overhead")
        found = band(runs, "objective")
        _draw_band(below, epochs_equivalent(runs), found, color, label)
    above.set(xlabel="epochs", ylabel="%", title="Speed-up and overhead", yscale="symlog")
    below.set(xlabel="epochs equivalent", title=_PANELS["objective"], yscale="log")
    # The baseline alone has nothing above.
    for axis in (above, below) if len(results) > 1 else (below,):
        axis.legend()
    _save(figure, path)


def _recorded(runs: Sequence[curves.Run], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Common steps [k] and values [runs, k]."""
    tables = [{row["step"]: row[name] for row in run.rows if row[name] is not None} for run in runs]
    steps = sorted(set.intersection(*(set(table) for table in tables)))
    if not steps:
        raise ValueError(f"the runs of a curve have no step in common at which {name} was taken.")
    return np.array(steps, float), np.array([[table[s] for s in steps] for table in tables])


def _draw_band(axis, horizontal, found: Band, color: str, label: str) -> None:
    axis.plot(horizontal, found.mean, color=color, label=label)
    low, high = found.mean - found.error, found.mean + found.error
    axis.fill_between(horizontal, low, high, color=color, alpha=0.2, lw=0)
    axis.grid(alpha=0.3)


def _cell(mean: float, error: float, count: int) -> str:
    return f"{mean:.4g}" if count == 1 else f"{mean:.4g} ± {error:.1g}"


def _middles(values: np.ndarray) -> np.ndarray:
    return (values[1:] + values[:-1]) / 2


def _save(figure, path: pathlib.Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: Sequence[str]) -> None:
    """Read the run directories given and write table and figures."""
    if len(arguments) < 2:
        sys.exit(__doc__)
    out, results = pathlib.Path(arguments[0]), {}
    for run in map(curves.read, arguments[1:]):
        results.setdefault(run.label, []).append(run)
    out.mkdir(parents=True, exist_ok=True)
    draw_learning_curves(results, out / "learning_curves.png")
    draw_epochs_equivalent(results, out / "epochs_equivalent.png")
    table = table1(results)
    (out / "table1.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
