"""What a dataset of this package says of itself, found again behind what was applied to it since.

Keras trains on a dataset without asking where it comes from. A mark says which sampler it is drawn
by, so that a training of a model with another one is refused before its first step.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

_NAME = "_tf_importance_mark"


def put(dataset: tf.data.Dataset, mark: Any) -> tf.data.Dataset:
    """The dataset, marked."""
    object.__setattr__(dataset, _NAME, mark)
    return dataset


def found(dataset: Any) -> Any:
    """The mark of a dataset or of one that it is made of; None if there is none."""
    waiting = [dataset] if isinstance(dataset, tf.data.Dataset) else []
    while waiting:
        one = waiting.pop()
        if hasattr(one, _NAME):
            return getattr(one, _NAME)
        waiting.extend(one._inputs())
    return None
