"""What `fit` does with its callbacks: adds some, and lets Keras's own set the learning rate.

Keras lets nobody set the learning rate of an optimizer that has a schedule. `GainAdapted` is one,
and what a user calls the learning rate is what it adapts: that is what Keras's callbacks read and
set.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
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


def joined(callbacks: Any, one: keras.callbacks.Callback, in_front: bool = False) -> Any:
    """The callbacks of a `fit`, and one more.

    Args:
        in_front: before all others; but a list of Keras's own can only be added to behind.
    """
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks.append(one)
        return callbacks
    others = tf.nest.flatten(callbacks or [])
    return [one, *others] if in_front else [*others, one]


class Outcome(keras.callbacks.Callback):
    """Says in one line what came of a training: how much was drawn, or why nothing was.

    Args:
        why_off: says why a training had no drawn batch; None where it needs no reason.
    """

    def __init__(self, why_off: Callable[[], str] | None) -> None:
        super().__init__()
        self._why_off = why_off
        self._shares: list[float] = []
        self._gain: float | None = None
        self._fallbacks = 0
        self._largest_weight = 0.0

    def on_epoch_end(self, epoch, logs=None) -> None:
        logs = logs or {}
        self._shares.append(float(logs.get("importance", 1.0)))
        self._gain = float(logs["gain"]) if "gain" in logs else None
        self._fallbacks += int(logs.get("fallbacks", 0))
        self._largest_weight = max(self._largest_weight, float(logs.get("max_weight", 1.0)))

    def on_train_end(self, logs=None) -> None:
        if sum(self._shares) > 0:
            # Where there is a progress bar, below it.
            if (self.params or {}).get("verbose"):
                sys.stdout.write(f"{self.line}\n")
                sys.stdout.flush()
        elif self._why_off is not None:
            warnings.warn(f"nothing was drawn: {self._reason(self._why_off)}.", stacklevel=2)

    def _reason(self, why_off: Callable[[], str]) -> str:
        if self._shares and not self._largest_weight:
            return "all sample weights were 0, so that no example had anything to teach"
        if self._fallbacks:
            return (
                f"the scores of all {self._fallbacks} pre-samples were unusable (all zero, "
                "negative, NaN or infinite)"
            )
        return why_off()

    @property
    def line(self) -> str:
        """What came of it."""
        parts = [f"{sum(self._shares) / len(self._shares):.0%} of the batches drawn"]
        if self._gain is not None:
            parts.append(f"gain {self._gain:.2f}")
        if self._fallbacks:
            parts.append(f"{self._fallbacks} pre-samples used uniformly")
        return f"importance sampling: {', '.join(parts)}"


class UntilTheEnd(keras.callbacks.Callback):
    """Ends a training where its learning rate's schedule ends: t̂ has reached N.

    Args:
        schedule: a `GainAdapted` with steps.
    """

    # The variable is read so many times while what is left halves, and not in each step.
    _LOOKS = 32

    def __init__(self, schedule) -> None:
        super().__init__()
        self._schedule, self._steps, self._next = schedule, 0, 0

    def on_train_begin(self, logs=None) -> None:
        if self._schedule.ended:
            raise ValueError(
                f"t̂ of the learning rate is {float(self._schedule.following):g}, and its schedule "
                f"ends at {self._schedule.steps:g}: there is nothing left to train. Compile with a "
                "new GainAdapted, or with a schedule of more steps."
            )

    def on_train_batch_end(self, batch, logs=None) -> None:
        self._steps += 1
        if self._steps < self._next:
            return
        left = self._schedule.steps - float(self._schedule.following)
        self._next = self._steps + max(1, int(left / self._LOOKS))
        if self._schedule.ended:
            self.model.stop_training = True
            line = (
                f"training of {self.model.name!r} ends after {self._steps} steps: by their gains "
                f"they count as the {self._schedule.steps:g} of its learning rate's schedule."
            )
            logger, shown = tf.get_logger(), (self.params or {}).get("verbose")
            # Where there is a progress bar, so that it is seen, as Keras's own callbacks have it.
            (logger.warning if shown else logger.info)(line)
