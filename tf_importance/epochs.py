"""Epochs of a dataset that is not equally long each time.

Keras counts the batches of the first epoch and holds all others to it: longer ones are cut,
shorter ones are taken for the end of the data. Under importance sampling a pass over a finite
dataset has fewer batches the more pre-samples are drawn from, so every epoch is fitted anew.
"""

from __future__ import annotations

import keras
import tensorflow as tf


def length_varies(dataset, steps_per_epoch: int | None) -> bool:
    """Whether only a pass over the data tells how many steps an epoch has."""
    return (
        steps_per_epoch is None
        and isinstance(dataset, tf.data.Dataset)
        and dataset.cardinality() == tf.data.UNKNOWN_CARDINALITY
    )


class OneTraining(keras.callbacks.CallbackList):
    """Callbacks to whom several calls of `fit` are one training: it begins and ends once.

    Args:
        callbacks: the user's callbacks, or None.
        model: the model they watch. verbose, epochs: as in `fit`.
    """

    def __init__(self, callbacks, model: keras.Model, verbose, epochs: int) -> None:
        self._began = False
        self._last_logs = None
        super().__init__(
            callbacks,
            add_history=True,
            add_progbar=verbose != 0,
            model=model,
            verbose=1 if verbose == "auto" else verbose,
            epochs=epochs,
            steps=None,
        )

    def on_train_begin(self, logs=None) -> None:
        if not self._began:
            self._began = True
            super().on_train_begin(logs)

    def on_train_end(self, logs=None) -> None:
        self._last_logs = logs

    def finish(self) -> None:
        """The end of the training."""
        super().on_train_end(self._last_logs)
