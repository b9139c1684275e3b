"""Learning rates that follow the gain of importance sampling."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf


@keras.saving.register_keras_serializable(package="tf_importance")
class GainAdapted(keras.optimizers.schedules.LearningRateSchedule, tf.Module):
    """η = r̂ · schedule(t̂), t̂ ← t̂ + r̂  (Johnson & Guestrin 2018, sections 3.2 and 4.4).

    With this learning rate a step of gain ratio r̂ makes as much expected progress as r̂ uniform
    steps, and the schedule moves on as much: the learning rate that was tuned for uniform
    sampling stays right.

        model.compile(keras.optimizers.SGD(tfi.schedules.GainAdapted(0.1)), loss, sampler=sampler)

    Whoever measures the gain calls `advance(r̂)` once in every step, before the optimizer; an
    ISModel that is compiled with a sampler does. Without that, r̂ = 1 and t̂ = 0 for good. t̂
    counts from 0, as Keras's iterations do, where the paper's counts from 1; when r̂ is 1
    throughout, this is the schedule itself.

    Args:
        schedule: a positive number, or a Keras `LearningRateSchedule`.
    Attributes:
        gain: variable, r̂.
        effective_step: variable, t̂ of the step that is being made; float64.
    Raises:
        TypeError: schedule is neither. ValueError: a number that is not positive and finite.
    """

    def __init__(self, schedule) -> None:
        tf.Module.__init__(self, name="gain_adapted")
        keras.optimizers.schedules.LearningRateSchedule.__init__(self)
        self._rate = _as_schedule(schedule)
        # In a function: Keras's own schedules are not trackable, and this one is.
        self._given = lambda: schedule
        self.gain = tf.Variable(1.0, trainable=False, name="gain")
        self.effective_step = tf.Variable(0.0, dtype=tf.float64, trainable=False, name="t")
        # t̂ of the next step.
        self.following = tf.Variable(0.0, dtype=tf.float64, trainable=False, name="following")

    def advance(self, gain: tf.Tensor) -> None:
        """Begin a step of gain ratio r̂; a gain that is not finite and positive counts as 1."""
        gain = tf.cast(gain, tf.float32)
        gain = tf.where(tf.math.is_finite(gain) & (gain > 0), gain, 1.0)
        self.gain.assign(gain)
        self.effective_step.assign(self.following)
        self.following.assign_add(tf.cast(gain, tf.float64))

    def __call__(self, step) -> tf.Tensor:
        """η of the step that was begun last; the optimizer's own count is not used."""
        del step
        effective = tf.cast(self.effective_step, tf.float32)
        return tf.convert_to_tensor(self.gain) * tf.cast(self._rate(effective), tf.float32)

    def get_config(self) -> dict[str, Any]:
        given = self._given()
        if isinstance(given, keras.optimizers.schedules.LearningRateSchedule):
            given = keras.saving.serialize_keras_object(given)
        return {"schedule": given}

    @classmethod
    def from_config(cls, config) -> GainAdapted:
        given = config["schedule"]
        if isinstance(given, dict):
            given = keras.saving.deserialize_keras_object(given)
        return cls(given)


def _as_schedule(schedule):
    """A schedule as a function of the step, a number as a constant one."""
    is_schedule = isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule)
    if is_schedule and not isinstance(schedule, GainAdapted):
        return lambda step: schedule(step)
    number = isinstance(schedule, (int, float, np.number)) and not isinstance(schedule, bool)
    if not number:
        raise TypeError(
            "schedule must be a number or a keras.optimizers.schedules.LearningRateSchedule; got "
            f"{schedule!r}."
        )
    if not (np.isfinite(schedule) and schedule > 0):
        raise ValueError(f"a constant learning rate must be positive and finite; got {schedule}.")
    return lambda step: tf.constant(float(schedule), tf.float32)
