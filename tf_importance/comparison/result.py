"""What a comparison found: a table, a verdict in one sentence, JSON, a plot."""

from __future__ import annotations

import json
import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tf_importance.comparison import scale
from tf_importance.comparison.training import Run

UNIFORM = "uniform"
# By what counts, the name of a run's loss, and what it is called.
LOSSES = {"held_out": ("loss", "loss"), "train": ("train_loss", "training loss")}
# Below this a difference is none that anybody would notice.
_WORTHWHILE = 1.05


class Row(NamedTuple):
    """What one method's runs of the whole budget say, medians over the seeds.

    Attributes:
        method: its name. is_ours: whether this library does it.
        cost: of a step, in uniform ones; None where it changes.
        factor: of the compiled learning rate, the best. at_edge: whether none beyond was tried.
        loss, smallest, largest: of held-out data. train_loss, error, average_precision: likewise.
        drawn: share of the steps on drawn batches; None of plain Keras.
        losses: of each seed, what counts: of held-out data, or of training examples.
        speedups: of each seed, the time that uniform sampling needs for its loss, in budgets.
        speedup: their median; None where uniform sampling's loss does not fall with time, and the
            runs are not its own to the last digit.
    """

    method: str
    is_ours: bool
    cost: float | None
    factor: float
    at_edge: bool
    loss: float
    smallest: float
    largest: float
    train_loss: float
    error: float | None
    average_precision: float | None
    drawn: float | None
    losses: tuple[float, ...]
    speedups: tuple[float, ...]
    speedup: float | None


class Comparison(NamedTuple):
    """The result of `compare`; `print` shows it as a table and a verdict.

    Attributes:
        rows: a `Row` of each method, uniform sampling first, ours, and others'.
        lengths: of uniform sampling's runs in budgets, and their losses.
        costs: of a step of each method; to be given to later comparisons on this machine.
        settings: budget, seeds and all that makes the runs what they are.
        runs: all of them.
    """

    rows: tuple[Row, ...]
    lengths: Mapping[float, Sequence[float]]
    costs: Mapping[str, float]
    settings: Mapping[str, Any]
    runs: tuple[Run, ...]

    @property
    def best(self) -> Row | None:
        """This library's best method."""
        return _first([row for row in self.rows if row.is_ours])

    @property
    def pays(self) -> bool:
        """Whether its best method was faster than uniform sampling with each seed."""
        return self.best is not None and _pays(self.best)

    @property
    def verdict(self) -> str:
        """What to do, in a sentence or two."""
        best, rival = self.best, _first([r for r in self.rows if _is_rival(r)])
        if best is None:
            return "Nothing of this library's was compared."
        if best.speedup is None:
            return (
                "Nothing can be said of time: uniform sampling's loss is not lower after "
                f"{max(self.lengths):g} budgets than after {min(self.lengths):g}. Give "
                "a smaller budget, or a larger net."
            )
        if not self.pays:
            does = f"saves {_saved(best)}"
            if best.speedup < 1:
                does = f"takes {1 / best.speedup:.2g} times as long as uniform sampling"
            text = f"Stop here: not worth it. The best, {best.method}, {does}."
        else:
            name, what = LOSSES[self.settings.get("by", "held_out")]
            mine, uniforms = (getattr(row, name) for row in (best, self.rows[0]))
            text = (
                f"At equal time {best.method} reaches a {what} of {mine:.4g}, where uniform "
                f"sampling has {uniforms:.4g} and would need {best.speedup:.2g} times as "
                f"long: it saves {_saved(best)}."
            )
        if rival is not None and rival.speedup is not None and _pays(rival):
            text += f" Of what else is done {rival.method} is the best, and saves {_saved(rival)}."
        return text

    def __str__(self) -> str:
        return f"{self.table()}\n\n{self.verdict}"

    def table(self) -> str:
        """The rows, as text: median (range over the seeds)."""
        lines = self.cells()
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        text = "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip()
            for line in lines
        )
        if any(row.at_edge for row in self.rows):
            text += (
                "\n! the best rate is at the edge of those that were tried: give others by rates="
            )
        return text

    def cells(self) -> list[tuple[str, ...]]:
        """What the table says, as texts: a line of names, and one for each method."""
        lines: list[tuple[str, ...]] = [
            ("", "step", "drawn", "rate", "held-out loss", "train loss", "error", "saves")
        ]
        for row in self.rows:
            lines.append(
                (
                    row.method,
                    "" if row.cost is None else f"{row.cost:.2f}",
                    "" if row.drawn is None else f"{row.drawn:.0%}",
                    f"x {row.factor:.3g}{'!' if row.at_edge else ''}",
                    f"{row.loss:.4g} ({row.smallest:.4g} to {row.largest:.4g})",
                    f"{row.train_loss:.3g}",
                    "" if row.error is None else f"{row.error:.2%}",
                    "" if row.speedup is None else _saved(row),
                )
            )
        return lines

    @property
    def what(self) -> str:
        """What counts is called: "loss", of held-out data, or "training loss"."""
        return LOSSES[self.settings.get("by", "held_out")][1]

    def to_json(self) -> dict[str, Any]:
        """All of it, for `json.dump`."""
        return {
            "verdict": self.verdict,
            "pays": self.pays,
            "rows": [row._asdict() for row in self.rows],
            "uniform_losses": {str(length): list(of) for length, of in self.lengths.items()},
            "costs": dict(self.costs),
            "settings": dict(self.settings),
            "runs": [run._asdict() for run in self.runs],
        }

    @classmethod
    def load(cls, folder: str | pathlib.Path) -> Comparison:
        """What was saved in a folder."""
        kept = json.loads(pathlib.Path(folder, "comparison.json").read_text())
        rows = [
            {**row, "losses": tuple(row["losses"]), "speedups": tuple(row["speedups"])}
            for row in kept["rows"]
        ]
        return cls(
            tuple(Row(**row) for row in rows),
            {float(length): of for length, of in kept["uniform_losses"].items()},
            kept["costs"],
            kept["settings"],
            tuple(Run(**run) for run in kept["runs"]),
        )

    def save(self, folder: str | pathlib.Path) -> None:
        """Write comparison.json and comparison.txt, and comparison.png where matplotlib is."""
        path = pathlib.Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        (path / "comparison.json").write_text(json.dumps(self.to_json(), indent=2) + "\n")
        (path / "comparison.txt").write_text(f"{self}\n")
        try:
            self.plot(path / "comparison.png")
        except ImportError:
            (path / "comparison.png").unlink(missing_ok=True)

    def plot(self, path: str | pathlib.Path) -> None:
        """Draw the losses of all methods at equal cost beside uniform sampling's over time.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from tf_importance.comparison import plot

        plot.draw(self.lengths, self.rows[1:], str(path), self.what)


def summarized(
    runs: Sequence[Run],
    chosen: Mapping[tuple[str, float], tuple[float, bool]],
    costs: Mapping[str, float],
    settings: Mapping[str, Any],
    ours: Sequence[str],
) -> Comparison:
    """Of all runs.

    Args:
        chosen: of each method and length the best factor, and whether it is at an edge.
        ours: names of this library's methods.
    """
    final = [run for run in runs if run.seed in settings["seeds"]]
    counts, _ = LOSSES[settings.get("by", "held_out")]
    lengths: dict[float, list[float]] = {}
    for run in final:
        if run.method == UNIFORM and run.factor == chosen[UNIFORM, run.length][0]:
            lengths.setdefault(run.length, []).append(getattr(run, counts))
    lengths = dict(sorted(lengths.items()))
    of_time = scale.of_uniform(lengths)
    rows = []
    for method in dict.fromkeys(name for name, _ in chosen):
        factor, at_edge = chosen[method, 1.0]
        its = [r for r in final if (r.method, r.length, r.factor) == (method, 1.0, factor)]
        counted = tuple(getattr(run, counts) for run in its)
        losses = [run.loss for run in its]
        if of_time is not None:
            speedups = tuple(of_time.time_to(loss) for loss in counted)
        else:
            # Where a loss says nothing of time, the same runs still take the same.
            speedups = (1.0,) * len(its) if list(counted) == lengths[1.0] else ()
        rows.append(
            Row(
                method=method,
                is_ours=method in ours,
                cost=costs.get(method),
                factor=factor,
                at_edge=at_edge,
                loss=statistics.median(losses),
                smallest=min(losses),
                largest=max(losses),
                train_loss=statistics.median(run.train_loss for run in its),
                error=_median([run.error for run in its]),
                average_precision=_median([run.average_precision for run in its]),
                drawn=_median([run.drawn for run in its]),
                losses=counted,
                speedups=speedups,
                speedup=statistics.median(speedups) if speedups else None,
            )
        )
    return Comparison(tuple(rows), lengths, dict(costs), dict(settings), tuple(runs))


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and not math.isnan(value)]
    return statistics.median(known) if known else None


def _first(rows: Sequence[Row]) -> Row | None:
    """The fastest; of rows that have no speedup the one of the least loss."""
    return min(rows, key=lambda row: (-(row.speedup or 0.0), row.loss), default=None)


def _is_rival(row: Row) -> bool:
    return not row.is_ours and row.method != UNIFORM


def _pays(row: Row) -> bool:
    return row.speedup is not None and row.speedup >= _WORTHWHILE and min(row.speedups) > 1


def _saved(row: Row) -> str:
    """The share of uniform sampling's time, and its range."""
    assert row.speedup is not None, "it has one"
    middle, low, high = (
        f"{1 - 1 / value:.0%}".replace("-0%", "0%")
        for value in (row.speedup, min(row.speedups), max(row.speedups))
    )
    return f"{middle} ({low.removesuffix('%')} to {high})"
