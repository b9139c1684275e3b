"""Learning-rate schedules of Keras: functions of the step, or of the effective step."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from absl import flags

import tf_importance as tfi
from tf_importance.arguments import meant

_EXPLANATION = (
    "--step_schedule must be none, budget (as --schedule says), constant, inverse_sqrt:OFFSET (the "
    "learning rate times 1/√(1 + t/OFFSET)), or per_epoch:FACTOR (times FACTOR after each pass "
    "over the data, by steps)"
)


@keras.saving.register_keras_serializable(package="tf_importance.trainers")
class InverseSquareRoot(keras.optimizers.schedules.LearningRateSchedule):
    """η = η₀ / √(1 + t/offset).

    Args:
        initial: η₀, the rate at t = 0.
        offset: steps after which it has fallen to 1/√2.
    """

    def __init__(self, initial: float, offset: float) -> None:
        super().__init__()
        self._initial, self._offset = initial, offset

    def __call__(self, step) -> tf.Tensor:
        return self._initial / tf.sqrt(1 + tf.cast(step, tf.float32) / self._offset)

    def get_config(self) -> dict[str, Any]:
        return {"initial": self._initial, "offset": self._offset}


class Rate(NamedTuple):
    """A learning rate for an optimizer, and where that of --schedule goes; None for nowhere."""

    rate: Any
    told: tf.Variable | None


def of(settings: flags.FlagValues, steps_per_epoch: float) -> Rate:
    """The learning rate that the trainer's flags describe.

    Args:
        settings: the trainer's flags. steps_per_epoch: n/b.
    Raises:
        ValueError: as `parse`.
    """
    rate = parse(
        settings.step_schedule,
        settings.learning_rate,
        math.ceil(steps_per_epoch),
        settings.follow_gain,
        settings.gain_ceiling,
    )
    given = rate.given if hasattr(rate, "given") else rate
    return Rate(rate, given.rate if isinstance(given, tfi.schedules.Told) else None)


def parse(
    text: str,
    initial: float,
    steps_per_epoch: int,
    follow_gain: bool,
    gain_ceiling: float = math.inf,
):
    """A learning rate for an optimizer.

    Args:
        text: as --step_schedule takes it. initial: learning rate at step 0.
        steps_per_epoch: steps of a pass over the data.
        follow_gain: adapt it to the gain of importance sampling.
        gain_ceiling: how far above its own maximum that may take it.
    Returns:
        A Keras schedule, or None for "none": something else sets the learning rate.
    Raises:
        ValueError: the text is no schedule, or --follow_gain comes without one.
    """
    name, _, value = text.partition(":")
    schedules = {
        "budget": lambda: tfi.schedules.Told(initial),
        "constant": lambda: initial,
        "inverse_sqrt": lambda: InverseSquareRoot(initial, float(value)),
        "per_epoch": lambda: keras.optimizers.schedules.ExponentialDecay(
            initial, steps_per_epoch, float(value), staircase=True
        ),
    }
    if name == "none" and follow_gain:
        raise ValueError(f"--follow_gain needs a --step_schedule; {_EXPLANATION}.")
    if name == "none":
        return None
    try:
        schedule = schedules[name]()
    except (KeyError, ValueError) as error:
        close = meant(name, [*schedules, "none"])
        raise ValueError(f"{_EXPLANATION}; got {text!r}.{close}") from error
    if not follow_gain:
        return schedule
    return tfi.schedules.GainAdapted(schedule, ceiling=gain_ceiling)
