"""What runs have left in their folders, as a report reads it."""

from __future__ import annotations

import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# What a run writes, a line for each evaluation or epoch; and what it says of examples at its end.
METRICS, EXAMPLES = "metrics.jsonl", "examples.json"
# Which column is which: trainers and callbacks call them differently.
LOSSES = {
    "Training loss": ("train_loss", "loss"),
    "Held-out loss": ("test_loss", "validation_loss", "val_loss"),
}


class Run(NamedTuple):
    """One run.

    Attributes:
        label: that of its curve: runs with several seeds have one.
        path: its folder.
        rows: lines of metrics.jsonl: "step", "seconds" and numbers; null where there is none.
        settings: flags of a trainer; {} where there are none.
        examples: of examples.json; None where there is none.
    """

    label: str
    path: pathlib.Path
    rows: tuple[Mapping[str, Any], ...]
    settings: Mapping[str, Any]
    examples: Mapping[str, Any] | None

    def values(self, names: Sequence[str], over: str) -> tuple[list[float], list[float]]:
        """The first of these columns that it has, over another: both where they were measured."""
        for name in names:
            there = [row for row in self.rows if row.get(name) is not None and over in row]
            if there:
                return [row[over] for row in there], [row[name] for row in there]
        return [], []

    def last(self, names: Sequence[str]) -> float | None:
        """The newest value of the first of these columns that it has."""
        _, found = self.values(names, "step")
        return found[-1] if found else None

    @property
    def share(self) -> float | None:
        """Of the batches, what was drawn, by steps; None of plain Keras."""
        before, drawn, steps = 0.0, 0.0, 0.0
        for row in self.rows:
            made, before = row["step"] - before, row["step"]
            if row.get("importance") is not None:
                drawn, steps = drawn + made * row["importance"], steps + made
        return drawn / steps if steps else None


def append(folder: pathlib.Path, row: Mapping[str, Any]) -> None:
    """Add a line to metrics.jsonl."""
    with (folder / METRICS).open("a") as file:
        file.write(json.dumps(row) + "\n")


def keep_until(folder: pathlib.Path, step: int) -> list[dict[str, Any]]:
    """Drop the lines after a step, of a process that got no further; those that are left."""
    kept = [line for line in _whole(folder) if json.loads(line)["step"] <= step]
    if (folder / METRICS).exists():
        (folder / METRICS).write_text("".join(kept))
    return [json.loads(line) for line in kept]


def _whole(folder: pathlib.Path) -> list[str]:
    """Lines: a process that was killed while it wrote leaves one without its end, which is none."""
    path = folder / METRICS
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith("\n")]


def _rows(folder: pathlib.Path) -> tuple[dict[str, Any], ...]:
    """What the lines say.

    Raises:
        ValueError: one is none that a run writes.
    """
    rows = []
    for number, line in enumerate(_whole(folder), start=1):
        try:
            row = json.loads(line)
            row["step"] + row["seconds"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"line {number} of {folder / METRICS} is no JSON object with a step and seconds; "
                "remove it, or give another folder."
            ) from error
        rows.append(row)
    return tuple(rows)


def _json(path: pathlib.Path) -> Any:
    """What a file holds; None where there is none.

    Raises:
        ValueError: it is no JSON.
    """
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(
            f"{path} is no JSON ({error}); remove it, or give another folder."
        ) from error


def read(folder: str | pathlib.Path) -> list[Run]:
    """The runs in a folder, and in those within.

    Runs whose folders are called by a number, a seed's, are one curve, that of the folder around.

    Raises:
        FileNotFoundError: there is none. ValueError: a file of one is damaged.
    """
    top = pathlib.Path(folder)
    found = sorted(top.rglob(METRICS))
    runs = [_read(path.parent, top) for path in found if _whole(path.parent)]
    if not runs:
        raise FileNotFoundError(
            f"{top} holds no {METRICS} with a line in it, which trainers and tfi.Recorder write; "
            "give the folder of a run, or one that has such folders."
        )
    return runs


def _read(folder: pathlib.Path, top: pathlib.Path) -> Run:
    own = folder.resolve()
    named = own.parent if own.name.isdigit() else own
    inside = named.is_relative_to(top.resolve()) and named != top.resolve()
    label = str(named.relative_to(top.resolve())) if inside else named.name
    settings = (_json(folder / "run.json") or {}).get("flags", {})
    return Run(label, folder, _rows(folder), settings, _json(folder / EXAMPLES))


def by_label(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each curve, uniform sampling's first."""
    labels = sorted({run.label for run in runs}, key=lambda label: ("uniform" not in label, label))
    return {label: [run for run in runs if run.label == label] for label in labels}


def verdict(curves: Mapping[str, Sequence[Run]]) -> list[str]:
    """What the runs show, a sentence for each curve but the first, or one on the only one."""
    (baseline, its_runs), *others = curves.items()
    if not others:
        return [_alone(its_runs)]
    return [_against(label, mine, baseline, its_runs) for label, mine in others]


def _alone(runs: Sequence[Run]) -> str:
    shares = [run.share for run in runs if run.share is not None]
    if not shares:
        return "Nothing was drawn by importance here: these are uniform batches."
    gains = [gain for gain in (run.last(["gain"]) for run in runs) if gain is not None]
    told = f", with a gain of {statistics.median(gains):.2f} at the end" if gains else ""
    return (
        f"{statistics.median(shares):.0%} of the batches were drawn by importance{told}. Whether "
        "that was faster than uniform sampling shows beside a uniform run, or tfi.compare."
    )


def _against(label: str, runs: Sequence[Run], other: str, others: Sequence[Run]) -> str:
    """A curve beside the baseline: lower or higher only where no two runs overlap."""
    names = LOSSES["Training loss"]
    mine, theirs = (
        [loss for one in each if (loss := one.last(names)) is not None] for each in (runs, others)
    )
    if not mine or not theirs:
        return f"{label} and {other} have no training loss in common."
    medians = f"{statistics.median(mine):.3g} against {statistics.median(theirs):.3g}"
    text = f"At its end {label} has a training loss of {medians} of {other}"
    lower = max(mine) < min(theirs)
    if lower or min(mine) > max(theirs):
        text += f": {'lower' if lower else 'higher'} in every run"
    else:
        text += ": the ranges overlap, no clear difference"
    share = _time_to(statistics.median(theirs), runs, others) if lower else None
    if share is not None:
        return f"{text}. To get to the latter it took {_spent(share)}."
    whole, its_whole = _seconds(runs), _seconds(others)
    return f"{text}. Its runs took {_spent(whole / its_whole)}." if its_whole else f"{text}."


def _spent(share: float) -> str:
    return f"{share:.0%} of the time" if share <= 1 else f"{share:.2g} times as long"


def _seconds(runs: Sequence[Run]) -> float:
    """Of a whole run, in the median."""
    return statistics.median(run.rows[-1]["seconds"] for run in runs)


def _time_to(loss: float, runs: Sequence[Run], others: Sequence[Run]) -> float | None:
    """Seconds until a loss, over those of others' whole runs; medians."""
    reached = []
    for run in runs:
        seconds, losses = run.values(LOSSES["Training loss"], "seconds")
        first = next((time for time, value in zip(seconds, losses) if value <= loss), None)
        if first is None:
            return None
        reached.append(first)
    whole = _seconds(others)
    return statistics.median(reached) / whole if whole else None
