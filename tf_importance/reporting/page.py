"""The page of a report, put together; imported only when one is made."""

from __future__ import annotations

import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jinja2

from tf_importance.comparison import plot
from tf_importance.reporting import pictures, runs
from tf_importance.reporting.runs import Run

_ERRORS = ("test_error", "val_error")
_ACCURACIES = ("val_accuracy", "val_sparse_categorical_accuracy", "accuracy")
# Of an ISModel's steps, and what they are called on the page.
_OF_SAMPLING = {"Gain of a step": "gain", "τ": "tau", "Share of drawn batches": "importance"}

# What `examples.described` says, and the seconds.
Told = Mapping[str, Any]


class Picture(NamedTuple):
    """A plot with its title."""

    title: str
    svg: str


class Section(NamedTuple):
    """Plots side by side."""

    title: str
    note: str
    pictures: list[Picture]


class Shown(NamedTuple):
    """Examples side by side."""

    title: str
    note: str
    examples: list[dict[str, Any]]


def of_runs(title: str, curves: Mapping[str, Sequence[Run]]) -> str:
    """The page of some runs, as HTML."""
    colors = pictures.colors_of(list(curves))
    # Of each curve what the first run says of examples that says something.
    kept = {label: [run.examples for run in of if run.examples] for label, of in curves.items()}
    told = {label: found[0] for label, found in kept.items() if found}
    sections = [
        _losses(curves, colors),
        _sampling(curves, colors),
        _weights(told, colors),
        _seconds(told),
    ]
    return _rendered(
        title=title,
        verdict=runs.verdict(curves),
        rows=[_row(label, of) for label, of in curves.items()],
        sections=[section for section in sections if section.pictures],
        examples=[shown for label, of in told.items() for shown in _examples(label, of)],
        settings={label: of[0].settings for label, of in curves.items() if of[0].settings},
    )


def of_comparison(title: str, comparison: Any) -> str:
    """The page of a `tfi.comparison.Comparison`, as HTML."""
    header, *lines = comparison.cells()
    names = ["method", *header[1:]]
    return _rendered(
        title=title,
        verdict=[comparison.verdict],
        rows=[dict(zip(names, line)) for line in lines],
        sections=[
            Section(
                "Loss at equal cost",
                "Dots and the line are uniform sampling's runs of other lengths.",
                [Picture(comparison.what, _comparison_svg(comparison))],
            )
        ],
        examples=[],
        settings={"this comparison": comparison.settings},
    )


def _rendered(**parts: Any) -> str:
    source = pathlib.Path(__file__).with_name("page.html").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(source).render(**parts)


# Sections -------------------------------------------------------------------------------------


def _of(curves: Mapping[str, Sequence[Run]], names: Sequence[str], over: str) -> dict[str, list]:
    """Of each label the values of its runs, where there are any."""
    found = {label: [run.values(names, over) for run in of] for label, of in curves.items()}
    return {label: of for label, of in found.items() if any(values for _, values in of)}


def _losses(curves: Mapping[str, Sequence[Run]], colors: Mapping[str, str]) -> Section:
    found = []
    for what, names in runs.LOSSES.items():
        for over, title in (("seconds", "seconds of training"), ("step", "steps")):
            lines = _of(curves, names, over)
            if lines:
                svg = pictures.lines(lines, colors, title, what.lower(), logarithmic=True)
                found.append(Picture(f"{what} over {title}", svg))
    return Section("Loss", "", found)


def _sampling(curves: Mapping[str, Sequence[Run]], colors: Mapping[str, str]) -> Section:
    found = []
    for title, name in _OF_SAMPLING.items():
        lines = _of(curves, [name], "step")
        if lines:
            svg = pictures.lines(lines, colors, "steps", title, logarithmic=False)
            found.append(Picture(title, svg))
    note = (
        "A gain of 2 means that a step gets as far as two uniform ones. τ is the factor by which "
        "drawing would raise the effective batch size."
    )
    return Section("Importance sampling over time", note, found)


def _weights(told: Mapping[str, Told], colors: Mapping[str, str]) -> Section:
    found = []
    for label, of in told.items():
        histogram = of["histogram"]
        svg = pictures.histogram(
            histogram["edges"], histogram["counts"], colors[label], "importance weight"
        )
        size = of["effective_sample_size"]
        of_all = "" if size is None else f", effective sample size {size:.0%}"
        found.append(Picture(f"{label}: {of['examples']:,} examples{of_all}", svg))
    note = "The weights that examples would be drawn with at the end. A small one is drawn often."
    return Section("Weights", note, found)


def _seconds(told: Mapping[str, Told]) -> Section:
    seconds = {label: of["seconds"] for label, of in told.items() if of["seconds"]}
    found = [Picture("Seconds", pictures.shares(seconds))] if seconds else []
    note = "Passes and scoring are timed at the end, and counted as often as they were made."
    return Section("What the time was spent on", note, found)


def _examples(label: str, of: Told) -> list[Shown]:
    by = {"memory": "by what is remembered of them", "scores": "by their scores at the end"}
    shown = []
    for name, title in (("most", "Drawn most"), ("least", "Drawn least")):
        parts = [{**one, "told": _weight(one["weight"])} for one in of[name]]
        note = f"{by[of['by']]}, of {of['examples']:,}. Label, then prediction."
        shown.append(Shown(f"{title}: {label}", note[0].upper() + note[1:], parts))
    return shown


def _weight(weight: float | None) -> str:
    return "without end: score 0" if weight is None else f"{weight:.2g}"


# The table ------------------------------------------------------------------------------------


def _row(label: str, of: Sequence[Run]) -> dict[str, str]:
    row = {"curve": label, "runs": str(len(of))}
    for what, names in runs.LOSSES.items():
        row[what.lower()] = _median([run.last(names) for run in of], "{:.3g}")
    row["error"] = _median([_error(run) for run in of], "{:.2%}")
    row["steps"] = _median([run.rows[-1]["step"] for run in of], "{:,.0f}")
    row["seconds"] = _median([run.rows[-1]["seconds"] for run in of], "{:.1f}")
    row["drawn"] = _median([run.share for run in of], "{:.0%}")
    row["gain"] = _median([run.last(["gain"]) for run in of], "{:.2f}")
    return row


def _error(run: Run) -> float | None:
    error, accuracy = run.last(_ERRORS), run.last(_ACCURACIES)
    return error if error is not None or accuracy is None else 1 - accuracy


def _median(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    told: Callable[[float], str] = form.format
    middle, low, high = (told(found(known)) for found in (statistics.median, min, max))
    return middle if low == high else f"{middle} ({low} to {high})"


def _comparison_svg(comparison: Any) -> str:
    return pictures.drawn(
        lambda: plot.drawn(comparison.lengths, comparison.rows[1:], comparison.what),
        f"{comparison.what} of each method at equal cost: "
        + "; ".join(f"{row.method} {row.loss:.3g}" for row in comparison.rows),
    )
