"""A page about runs: what to look at, in a browser."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from tf_importance import arguments
from tf_importance.comparison.result import Comparison
from tf_importance.reporting import runs
from tf_importance.reporting.recorder import Recorder, write_examples

__all__ = ["Recorder", "report", "write_examples"]

_COMPARISON = "comparison.json"


def report(
    run: str | pathlib.Path | Comparison | Sequence[str | pathlib.Path] | Mapping[str, Any],
    out: str | pathlib.Path | None = None,
    *,
    title: str | None = None,
) -> pathlib.Path:
    """Write a page about runs: one HTML file, which asks nothing of other hosts.

        tfi.report("runs/main")              # runs/main/report.html

    It shows losses over seconds and steps, the gain, τ and the share of drawn batches over time;
    where runs say so, the weights that examples are drawn with, the most and the least drawn
    examples with labels and predictions, and what the time was spent on; and a verdict in a
    sentence. Of a comparison: its table, plot and verdict.

    Args:
        run: a folder of a run, which a trainer or `tfi.Recorder` has written, or one that holds
            several, those with several seeds each in a folder called by a number; several such, or
            {name of a curve: its folder or folders}, the baseline first; what `tfi.compare` gave,
            or its folder.
        out: the file; by default report.html in the folder.
        title: by default the folder's name.
    Returns:
        The file.
    Raises:
        FileNotFoundError: there are no runs.
        ImportError: matplotlib or jinja2 are not there.
        TypeError: run is something else. ValueError: out is needed.
    """
    try:
        from tf_importance.reporting import page
    except ImportError as error:
        raise ImportError(
            f"a report needs {error.name}. Install it, in a clone by pip install '.[report]'."
        ) from error
    folder = pathlib.Path(run) if isinstance(run, (str, pathlib.Path)) else None
    if not isinstance(run, Comparison):
        _check(run)
    if out is None and folder is None:
        raise ValueError(
            "out must name the file where run is no folder; got None. Give out='report.html'."
        )
    path = pathlib.Path(folder or ".", "report.html") if out is None else pathlib.Path(out)
    title = title or (folder.resolve().name if folder is not None else path.stem)
    if isinstance(run, Comparison):
        text = page.of_comparison(title, run)
    elif folder is not None and (folder / _COMPARISON).exists():
        text = page.of_comparison(title, Comparison.load(folder))
    else:
        text = page.of_runs(title, _curves(run))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def _curves(given: Any) -> dict[str, list[runs.Run]]:
    if isinstance(given, Mapping):
        return {
            str(label): [one._replace(label=str(label)) for one in _read(folders)]
            for label, folders in given.items()
        }
    return runs.by_label(_read(given))


def _read(folders: Any) -> list[runs.Run]:
    each = [folders] if isinstance(folders, (str, pathlib.Path)) else folders
    return [one for folder in each for one in runs.read(folder)]


def _check(given: Any) -> None:
    """Raises: TypeError: it is no folder, and no collection of some."""
    curves = [*given.values()] if isinstance(given, Mapping) else [given]
    if not curves or not all(map(_are_folders, curves)):
        raise TypeError(
            "run must be a folder of runs, several, {name: folder} or what tfi.compare gave; got "
            f"{arguments.named(given)}."
        )


def _are_folders(given: Any) -> bool:
    """Whether it is a folder, or several."""
    if isinstance(given, (str, pathlib.Path)):
        return True
    several = isinstance(given, Sequence) and len(given) > 0
    return several and all(isinstance(folder, (str, pathlib.Path)) for folder in given)
