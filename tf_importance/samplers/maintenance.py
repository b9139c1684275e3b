"""Samplers that follow a training: told when it begins, after each step, and when it ends."""

from __future__ import annotations

import keras

from tf_importance import callbacks
from tf_importance.samplers.base import Sampler


class Maintenance(keras.callbacks.Callback):
    """Lets a sampler do after each step what is not part of a step.

    `ISModel.fit` adds it by itself.

    Args:
        sampler: that follows the training.
    """

    def __init__(self, sampler: Sampler) -> None:
        super().__init__()
        self._sampler = sampler
        self._updates = 0
        self._batch = -1

    def on_train_begin(self, logs=None) -> None:
        self._updates = int(self._sampler.steps.numpy())
        self._sampler.begin()
        self._sampler.maintain(self._updates, self.model)

    def on_epoch_begin(self, epoch, logs=None) -> None:
        self._batch = -1

    def on_train_batch_end(self, batch, logs=None) -> None:
        # More than one at a time under steps_per_execution.
        self._updates += batch - self._batch
        self._batch = batch
        self._sampler.maintain(self._updates, self.model)

    def on_train_end(self, logs=None) -> None:
        self._sampler.end()


def with_maintenance(given, sampler: Sampler):
    """The callbacks of a `fit`, with a sampler's `Maintenance` before all others."""
    return callbacks.joined(given, Maintenance(sampler), in_front=True)
