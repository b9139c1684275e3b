"""What reports share: a figure as PNG and SVG, a table as Markdown and CSV."""

from __future__ import annotations

import contextlib
import csv
import io
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402  after the backend is chosen

# The same runs give the same file: no random names, and no date.
_STABLE = {"svg.hashsalt": "tf_importance"}


@contextlib.contextmanager
def saved(path: pathlib.Path, width: float = 5, panels: int = 1) -> Iterator[Sequence[plt.Axes]]:
    """Axes to draw on, saved as PNG and SVG afterwards.

    Args:
        path: without the ending; its directory is made.
        width: of a panel, in inches.
        panels: side by side.
    """
    figure, axes = plt.subplots(1, panels, figsize=(width * panels, 4), squeeze=False)
    try:
        yield axes[0]
        save(figure, path)
    finally:
        plt.close(figure)


def save(figure: plt.Figure, path: pathlib.Path) -> None:
    """Save a figure as PNG and SVG.

    Args:
        figure: the figure. path: without the ending; its directory is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path.with_suffix(".png"), dpi=120)
    with matplotlib.rc_context(_STABLE):
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of equal keys as an aligned Markdown table; numbers with three digits."""
    cells = [[name.replace("_", " ") for name in rows[0]]]
    cells += [[_text(value) for value in row.values()] for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = [" | ".join(text.ljust(width) for text, width in zip(line, widths)) for line in cells]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" for line in lines)


def comma_separated(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of equal keys as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_table(rows: Sequence[Mapping[str, Any]], out: pathlib.Path) -> None:
    """Write table.md and table.csv.

    Args:
        rows: of equal keys. out: directory.
    """
    (out / "table.md").write_text(markdown(rows) + "\n")
    (out / "table.csv").write_text(comma_separated(rows))


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
