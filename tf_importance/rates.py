"""Keras's callbacks that set the learning rate, where it follows the gain.

Keras lets nobody set the learning rate of an optimizer that has a schedule. `GainAdapted` is one,
and what a user calls the learning rate is what it adapts: that is what these callbacks read and
set.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

_SETTING = (keras.callbacks.ReduceLROnPlateau, keras.callbacks.LearningRateScheduler)


def settable(callbacks: Any, schedule) -> Any:
    """The callbacks of a `fit`, with those that set the learning rate made to set the schedule's.

    Args:
        callbacks: as `fit` has them. schedule: a `GainAdapted`.
    """
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks.callbacks = settable(callbacks.callbacks, schedule)
        return callbacks
    return [
        _OfSchedule(one, schedule) if isinstance(one, _SETTING) else one
        for one in tf.nest.flatten(callbacks or [])
    ]


class _Optimizer:
    """A model's optimizer, but for its learning rate."""

    def __init__(self, optimizer) -> None:
        self._optimizer = optimizer

    def __getattr__(self, name: str):
        return getattr(self._optimizer, name)


class _Model:
    """A model, but for its optimizer."""

    def __init__(self, model, optimizer) -> None:
        self._model, self.optimizer = model, optimizer

    def __getattr__(self, name: str):
        return getattr(self._model, name)


class _OfSchedule(keras.callbacks.Callback):
    """A callback, for which the schedule's own rate is the optimizer's learning rate.

    Args:
        callback: that reads and sets `model.optimizer.learning_rate` between epochs.
    """

    def __init__(self, callback: keras.callbacks.Callback, schedule) -> None:
        super().__init__()
        self._callback, self._schedule = callback, schedule
        self._stand_in: Any = None

    def set_params(self, params) -> None:
        super().set_params(params)
        self._callback.set_params(params)

    def set_model(self, model) -> None:
        super().set_model(model)
        self._stand_in = _Optimizer(model.optimizer)
        self._callback.set_model(_Model(model, self._stand_in))

    def on_train_begin(self, logs=None) -> None:
        self._callback.on_train_begin(logs)

    def on_train_end(self, logs=None) -> None:
        self._callback.on_train_end(logs)

    def on_epoch_begin(self, epoch, logs=None) -> None:
        self._with_rate(self._callback.on_epoch_begin, epoch, logs)

    def on_epoch_end(self, epoch, logs=None) -> None:
        self._with_rate(self._callback.on_epoch_end, epoch, logs)

    def _with_rate(self, hook, epoch: int, logs) -> None:
        before = self._schedule.rate
        # Keras 2 assigns to the variable `lr`, Keras 3 sets the attribute.
        self._stand_in.lr = self._stand_in.learning_rate = tf.Variable(before)
        hook(epoch, logs)
        after = float(self._stand_in.learning_rate)
        if after != float(tf.constant(before)):
            self._schedule.set_rate(after)
