"""What the report of a run shows of its examples."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
from absl import flags

import tf_importance as tfi

# Of the training examples, so many are scored.
_LOOKED_AT = 2_000


def write(settings: flags.FlagValues, path: pathlib.Path, model: keras.Model, train: Any) -> None:
    """Write examples.json into a run's folder, where a run draws and --shown_examples asks for it.

    Args:
        path: of the run. model: trained. train: single examples, or arrays.
    """
    wanted = settings.shown_examples > 0 and isinstance(model, tfi.ISModel)
    # A run that was complete before is left as it is.
    if wanted and not (path / tfi.reporting.runs.EXAMPLES).exists():
        count, limit = settings.shown_examples, _LOOKED_AT
        tfi.reporting.write_examples(path, model, train, count=count, limit=limit)
