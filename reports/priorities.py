"""The picture of figure 1 of Johnson & Guestrin 2018: what RAIS draws rarely and often.

    python -m reports.priorities OUT.png RUN_DIRECTORY...

A row for each run that left a priorities.npz: the examples trained on least often to the left,
those most often to the right, each with its label and, in parentheses, the class that the net
takes for likely beside it.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402  after the backend is chosen
import numpy as np  # noqa: E402

_COLUMNS = 5


def read(directory: str | pathlib.Path) -> dict[str, np.ndarray]:
    """The examples that a run left.

    Raises:
        FileNotFoundError: it left none, as runs without RAIS do.
    """
    path = pathlib.Path(directory) / "priorities.npz"
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is not there: only runs of --sampling=rais that came to their end have it."
        )
    with np.load(path) as file:
        return dict(file)


def caption(examples: dict[str, np.ndarray], position: int) -> str:
    """Label and, in parentheses, the class it may be confused with."""
    return f"{examples['labels'][position]} ({examples['confused'][position]})"


def draw(directories: Sequence[str | pathlib.Path], path: str | pathlib.Path) -> None:
    """Draw the picture.

    Args:
        directories: of runs. path: of the PNG.
    """
    rows = [read(directory) for directory in directories]
    figure, axes = plt.subplots(
        len(rows), 2 * _COLUMNS + 1, figsize=(2 * _COLUMNS + 1, 1.4 * len(rows)), squeeze=False
    )
    for line, examples in zip(axes, rows):
        count = len(examples["labels"])
        positions = [*range(_COLUMNS), None, *range(count - _COLUMNS, count)]
        for axis, position in zip(line, positions):
            axis.axis("off")
            if position is not None:
                axis.imshow(np.squeeze(examples["images"][position]), cmap="gray")
                axis.set_title(caption(examples, position), fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    draw(sys.argv[2:], sys.argv[1])
