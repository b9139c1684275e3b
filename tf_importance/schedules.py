"""Learning rates that follow the gain of importance sampling."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_importance import arguments, compat
from tf_importance.arguments import named, number


@keras.saving.register_keras_serializable(package="tf_importance")
class GainAdapted(keras.optimizers.schedules.LearningRateSchedule, tf.Module):
    """η = r̂^e · schedule(t̂), t̂ ← t̂ + r̂  (Johnson & Guestrin 2018, sections 3.2 and 4.4).

    With this learning rate a step of gain ratio r̂ makes as much expected progress as r̂ uniform
    steps, and the schedule moves on as much: the learning rate that was tuned for uniform
    sampling stays right.

        model.compile(keras.optimizers.SGD(tfi.schedules.GainAdapted(0.1)), loss, sampler=sampler)

    Whoever measures the gain calls `advance(r̂)` once in every step, before the optimizer; an
    ISModel does, with r̂ = 1 for batches of which no gain is known. In any other model r̂ = 1 and
    t̂ = 0 for good. t̂ counts from 0, as Keras's iterations do, where the paper's counts from 1;
    when r̂ is 1 throughout, this is the schedule itself.

    The paper's e = 1 is for SGD, with or without momentum. An optimizer that divides by the root
    of the gradient's second moment has taken a part of the gain already: where noise outweighs
    the mean, E g² falls by r̂, and the step grows by √r̂ without our doing. So e = ½ leaves the
    whole at r̂. Where the mean outweighs the noise, r̂ is near 1 and e does not matter.
    (Measured: `benchmarks/gain_exponent.py`.)

    The proposition asks how noisy a step is, not how far one can go before the net no longer
    follows its gradient: with r̂ times a learning rate that is near that limit already, training
    diverges. Where the limit is cannot be told from the last layer, but the user's own schedule
    has been below it. So η never exceeds `ceiling` times the largest value that the schedule has
    had; late in a decay there is room for a large r̂, under a constant rate there is little. The
    paper has no ceiling (`ceiling=math.inf`).

    A schedule is asked for whole steps, ⌊t̂⌋ as int64. `ReduceLROnPlateau` and
    `LearningRateScheduler` read and set its rate, without the gain. A step that loss scaling skips
    does not count.

    Args:
        schedule: a positive number, or a Keras `LearningRateSchedule`, warm-ups and restarts
            included.
        exponent: e; by default ½ for Adam and other optimizers that normalize (Adam, AdamW,
            Nadam, Adamax, RMSprop, Adadelta, Adafactor, Lion, Lamb) or clip gradients to a norm,
            else 1; also for Adagrad, whose sum over all steps hardly falls with the newest.
        ceiling: c ≥ 1.
        steps: N, at which the schedule ends: `ISModel.fit` stops where t̂ has reached it, after
            fewer steps than N; an own loop can ask `ended`. By default that of a Keras schedule
            that falls to 0 and stays there; None for no end.
    Attributes:
        gain: variable, r̂, no larger than the ceiling allows.
        effective_step: variable, t̂ of the step that is being made; float64.
        exponent: e.
        steps: N, or None.
    Raises:
        TypeError: schedule is neither. ValueError: a number that is not positive and finite, an
            exponent out of (0, 1], a ceiling below 1.
    """

    def __init__(
        self,
        schedule,
        exponent: float | None = None,
        *,
        ceiling: float = 2.0,
        steps: float | None = None,
    ) -> None:
        tf.Module.__init__(self, name="gain_adapted")
        keras.optimizers.schedules.LearningRateSchedule.__init__(self)
        self._rate = _as_schedule(schedule)
        if exponent is not None:
            exponent = number("exponent", exponent, "in (0, 1]", lambda e: 0 < e <= 1)
        if steps is not None:
            steps = number("steps", steps, "positive", lambda count: count > 0)
        self._ceiling = number("ceiling", ceiling, "at least 1", lambda factor: factor >= 1)
        self._steps = steps
        self.steps = _end_of(schedule) if steps is None else float(steps)
        self._exponent = exponent
        self.exponent = 1.0 if exponent is None else exponent
        # In a function: Keras's own schedules are not trackable, and this one is.
        self._given = lambda: schedule
        self.gain = _variable(tf.constant(1.0), "gain")
        self.effective_step = _variable(tf.constant(0.0, tf.float64), "t")
        # t̂ of the next step.
        self.following = _variable(tf.constant(0.0, tf.float64), "following")
        # The largest value that the schedule has had.
        self.peak = _variable(tf.constant(0.0), "peak")
        # What callbacks multiply it by.
        self.factor = _variable(tf.constant(1.0), "factor")
        # What losses were multiplied by in the step that was begun last; it falls where one is
        # skipped.
        self.scale = _variable(tf.constant(0.0), "scale")
        self._loss_scale: Callable[[], Any] = lambda: None
        # η in the graph of the step that was begun last: the optimizer need not compute it again.
        self._begun: Callable[[], tuple[Any, tf.Tensor] | None] = lambda: None
        # References to the model and the optimizer whose it is, once there are any; in a function
        # as well.
        self._served: Callable[[], tuple[weakref.ref, weakref.ref] | None] = lambda: None

    def __repr__(self) -> str:
        own = {"exponent": self._exponent, "ceiling": self._ceiling, "steps": self._steps}
        defaults = {"exponent": None, "ceiling": 2.0, "steps": None}
        options = {name: value for name, value in own.items() if value != defaults[name]}
        return arguments.written(type(self), [self.given], options)

    @property
    def given(self):
        """The schedule or number that it adapts."""
        return self._given()

    @property
    def ended(self) -> bool:
        """Whether t̂ of the next step is at the schedule's end."""
        return self.steps is not None and float(self.following) >= self.steps

    def suit(self, optimizer) -> None:
        """Take the exponent that suits an optimizer, where none was given."""
        if self._exponent is None:
            self.exponent = 0.5 if _normalizes(optimizer) else 1.0

    def serve(self, model, optimizer) -> None:
        """Be the learning rate of a model's optimizer; of another one than before it starts anew.

        Raises:
            ValueError: it is another model's, whose steps would move it on.
        """
        outer = weakref.ref(optimizer)
        optimizer, served = compat.innermost(optimizer), self._served()
        if served is not None:
            other, its_optimizer = (reference() for reference in served)
            if other is not None and other is not model:
                raise ValueError(
                    f"this GainAdapted is the learning rate of model {other.name!r}, and would "
                    f"move on with the steps of {model.name!r} as well; make one for each: "
                    "GainAdapted(schedule)."
                )
            if its_optimizer is not optimizer:
                self._start_anew()
        now = weakref.ref(model), weakref.ref(optimizer)
        self._served = lambda: now
        self._loss_scale = lambda: compat.loss_scale(outer(), now[0]())

    def _start_anew(self) -> None:
        for variable in (self.gain, self.factor):
            variable.assign(1.0)
        for variable in (self.effective_step, self.following, self.peak):
            variable.assign(tf.zeros([], variable.dtype))
        self.scale.assign(0.0)

    def advance(self, gain: tf.Tensor) -> None:
        """Begin a step of gain ratio r̂; a gain that is not finite and positive counts as 1."""
        following = self._next_step()
        scheduled = self._scheduled(following)
        peak = tf.maximum(tf.convert_to_tensor(self.peak), scheduled)
        gain = tf.cast(gain, tf.float32)
        gain = tf.where(tf.math.is_finite(gain) & (gain > 0), gain, 1.0)
        gain = tf.minimum(gain, self._largest_gain(peak, scheduled))
        self.peak.assign(peak)
        self.gain.assign(gain)
        self.effective_step.assign(following)
        self.following.assign(following + tf.cast(gain, tf.float64))
        graph = tf.compat.v1.get_default_graph()
        begun = (weakref.ref(graph), self._adapted(gain, scheduled))
        self._begun = lambda: None if tf.executing_eagerly() else begun

    def _next_step(self) -> tf.Tensor:
        """t̂ of the step that begins: that of the last one again, if it was skipped."""
        following, scale = tf.convert_to_tensor(self.following), self._loss_scale()
        if scale is None:
            return following
        skipped = scale < self.scale
        with tf.control_dependencies([skipped]):
            self.scale.assign(scale)
        return tf.where(skipped, tf.convert_to_tensor(self.effective_step), following)

    @property
    def rate(self) -> float:
        """The schedule's value at t̂ of the next step, without the gain."""
        return float(self._scheduled(tf.convert_to_tensor(self.following)))

    def set_rate(self, rate: float) -> None:
        """Multiply the schedule, from now on, so that this is its value at t̂; where that is 0, not.

        Raises:
            ValueError: the rate is negative or not finite.
        """
        rate = number("a learning rate", rate, "finite and not negative", lambda r: 0 <= r < np.inf)
        now = self.rate
        if now > 0:
            self.factor.assign(self.factor * rate / now)

    def largest_gain(self) -> tf.Tensor:
        """The r̂ that the ceiling allows in the coming step; larger ones count as this."""
        scheduled = self._scheduled(tf.convert_to_tensor(self.following))
        peak = tf.maximum(tf.convert_to_tensor(self.peak), scheduled)
        return self._largest_gain(peak, scheduled)

    def _largest_gain(self, peak: tf.Tensor, scheduled: tf.Tensor) -> tf.Tensor:
        ratio = tf.math.divide_no_nan(peak, scheduled)
        largest = self._ceiling * tf.maximum(ratio, 1.0)
        return largest if self.exponent == 1 else largest ** (1 / self.exponent)

    def _scheduled(self, effective_step: tf.Tensor) -> tf.Tensor:
        whole = tf.cast(tf.floor(effective_step), tf.int64)
        return tf.cast(self._rate(whole), tf.float32) * self.factor

    def __call__(self, step) -> tf.Tensor:
        """η of the step that was begun last; the optimizer's own count is not used."""
        del step
        begun = self._begun()
        if begun is not None and begun[0]() is tf.compat.v1.get_default_graph():
            return begun[1]
        scheduled = self._scheduled(tf.convert_to_tensor(self.effective_step))
        return self._adapted(tf.convert_to_tensor(self.gain), scheduled)

    def _adapted(self, gain: tf.Tensor, scheduled: tf.Tensor) -> tf.Tensor:
        return scheduled * (gain if self.exponent == 1 else gain**self.exponent)

    def get_config(self) -> dict[str, Any]:
        given = self._given()
        if isinstance(given, keras.optimizers.schedules.LearningRateSchedule):
            given = keras.saving.serialize_keras_object(given)
        return {
            "schedule": given,
            "exponent": self._exponent,
            "ceiling": self._ceiling,
            "steps": self._steps,
        }

    @classmethod
    def from_config(cls, config) -> GainAdapted:
        given = config["schedule"]
        if isinstance(given, dict):
            given = keras.saving.deserialize_keras_object(given)
        return cls(given, config["exponent"], ceiling=config["ceiling"], steps=config.get("steps"))


# By name: which of them there are depends on the version of Keras and on TensorFlow Addons.
_NORMALIZING = frozenset(
    "Adam AdamW Nadam Adamax RMSprop Adadelta Adafactor Lion Lamb LAMB LazyAdam RectifiedAdam "
    "ScheduleFreeAdamW AdaBelief NovoGrad Yogi".split()
)


def followed_by(model, optimizer):
    """The learning rate of a model's optimizer where it follows the gain, else None.

    Raises:
        ValueError: the optimizer makes one step of several, or its learning rate is of another
            model.
    """
    schedule = compat.learning_rate(optimizer)
    if not hasattr(schedule, "advance"):
        return None
    accumulated = getattr(optimizer, "gradient_accumulation_steps", None) or 1
    if accumulated > 1:
        raise ValueError(
            "a learning rate that follows the gain moves on with every step, and this "
            f"optimizer makes one of {accumulated}; leave out gradient_accumulation_steps."
        )
    schedule.serve(model, optimizer)
    schedule.suit(optimizer)
    return schedule


def _normalizes(optimizer) -> bool:
    """Whether an optimizer, or the one that it wraps, divides by the size of its gradients.

    As one does that clips them to a norm, while that is what bounds its steps.
    """
    optimizer = compat.innermost(optimizer)
    clips = any(getattr(optimizer, name, None) for name in ("clipnorm", "global_clipnorm"))
    return clips or any(kind.__name__ in _NORMALIZING for kind in type(optimizer).__mro__)


def _variable(initial, name: str) -> tf.Variable:
    # Replicas of a strategy all make the same step.
    return tf.Variable(
        initial,
        trainable=False,
        name=name,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )


def _as_schedule(schedule):
    """A schedule as a function of the step, a number as a constant one."""
    is_schedule = isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule)
    if is_schedule and not isinstance(schedule, GainAdapted):
        return lambda step: schedule(step)
    if not isinstance(schedule, (int, float, np.number)) or isinstance(schedule, bool):
        raise TypeError(
            "schedule must be a number or a keras.optimizers.schedules.LearningRateSchedule; got "
            f"{named(schedule)}."
        )
    name, wanted = "a constant learning rate", "positive and finite"
    rate = number(name, schedule, wanted, lambda value: 0 < value < np.inf)
    return lambda step: tf.constant(rate, tf.float32)


def _end_of(schedule) -> float | None:
    """The step from which on a Keras schedule is 0; None if there is none."""
    if not isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
        return None
    try:
        config = schedule.get_config()
    except NotImplementedError:
        return None
    last = (config.get("decay_steps") or 0) + (config.get("warmup_steps") or 0)
    steps = (tf.constant(int(share * last), tf.int64) for share in (0.5, 1.0, 2.5))
    rates = [float(schedule(step)) for step in steps]
    return float(last) if rates[0] > 0 and rates[1:] == [0.0, 0.0] else None


@keras.saving.register_keras_serializable(package="tf_importance")
class Told(arguments.Written, keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that is whatever somebody sets it to.

    Args:
        initial: the rate at first.
    Attributes:
        rate: variable.
    """

    def __init__(self, initial: float) -> None:
        super().__init__()
        self._initial = initial
        self.rate = tf.Variable(initial, trainable=False, dtype=tf.float32, name="told_rate")

    def __call__(self, step) -> tf.Tensor:
        del step
        return tf.convert_to_tensor(self.rate)

    def get_config(self) -> dict[str, Any]:
        return {"initial": self._initial}
