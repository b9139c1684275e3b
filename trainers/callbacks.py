"""What happens in a run beside the training steps: its end, its learning rate, its reports."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
from absl import logging

from trainers.budget import Budget, Stopwatch
from trainers.schedules import Schedule

# Often enough for any schedule, and rare enough to cost nothing.
_LEARNING_RATES_PER_RUN = 200


class Course(keras.callbacks.Callback):
    """Where a run stands: counts its steps and seconds, and ends it with its budget.

    The first step traces the train function and the pipeline. It counts as a step, and its
    seconds do not count.

    Args:
        budget: when the run ends.
        stopwatch: counts the seconds of training.
    Attributes:
        step: number of steps made.
        resumed: an earlier process made the first of them, or none yet.
    """

    def __init__(self, budget: Budget, stopwatch: Stopwatch | None = None) -> None:
        super().__init__()
        self.budget = budget
        self.stopwatch = stopwatch or Stopwatch()
        self.step = 0
        self.resumed = False

    def resume(self, step: int, seconds: float) -> None:
        """Go on where an earlier process was."""
        self.step = step
        self.resumed = True
        self.stopwatch = Stopwatch(seconds, self.stopwatch.now)

    @property
    def seconds(self) -> float:
        """Seconds of training, evaluations and the first step left out."""
        return self.stopwatch.seconds

    @property
    def progress(self) -> float:
        """The fraction of the budget that is spent."""
        return self.budget.progress(self.seconds, self.step)

    def on_train_begin(self, logs=None) -> None:
        self._first_step = self.step + 1

    def on_train_batch_end(self, batch, logs=None) -> None:
        self.step += 1
        if self.step == self._first_step:
            self.stopwatch.start()
        if self.progress >= 1:
            self.stopwatch.stop()
            self.model.stop_training = True
            self._say_if_short()

    def _say_if_short(self) -> None:
        counted = self.step - self._first_step
        if counted == 1 and self.budget.steps is None:
            logging.warning(
                "The time budget of %g s is shorter than one step of %.3g s; one step was made, "
                "after the first one, which traces and is not counted.",
                self.budget.seconds,
                self.seconds,
            )


class LearningRate(keras.callbacks.Callback):
    """Lets the learning rate follow a schedule.

    Args:
        course: the run.
        initial: learning rate at factor 1.
        schedule: from progress to factor.
        told: variable to set, of the optimizer's own schedule; by default the optimizer's
            learning rate.
    Attributes:
        current: the learning rate now, but for the gain.
    """

    def __init__(self, course: Course, initial: float, schedule: Schedule, told=None) -> None:
        super().__init__()
        self._course = course
        self._initial = initial
        self._schedule = schedule
        self._told = told
        self._tick = -1
        self.current = initial

    @property
    def effective_step(self) -> float:
        """Uniform steps that make as much progress as the steps made."""
        following = getattr(getattr(self.model, "schedule", None), "following", None)
        return float(self._course.step if following is None else following)

    def on_train_batch_begin(self, batch, logs=None) -> None:
        tick = int(self._course.progress * _LEARNING_RATES_PER_RUN)
        if tick == self._tick:
            return
        self._tick = tick
        learning_rate = self._initial * self._schedule(self._course.progress)
        if learning_rate != self.current or tick == 0:
            self.current = learning_rate
            if self._told is None:
                self.model.optimizer.learning_rate = learning_rate
            else:
                self._told.assign(learning_rate)


class StepwiseRate(LearningRate):
    """Leaves the learning rate to the optimizer's own schedule, and reports it."""

    def on_train_batch_begin(self, batch, logs=None) -> None:
        """The optimizer knows."""

    @property
    def current(self) -> float:
        optimizer = getattr(self.model, "optimizer", None)
        return self._initial if optimizer is None else float(optimizer.learning_rate)

    @current.setter
    def current(self, value: float) -> None:
        """It starts at the initial rate."""


class Evaluate(keras.callbacks.Callback):
    """Reports before the first step and then at equal parts of the budget, the clock stopped.

    Training metrics start anew after each report, as they do with Keras's epochs.

    Args:
        course: the run.
        evaluations: how many reports after the first.
        report: takes the logs of the last step.
    """

    def __init__(
        self, course: Course, evaluations: int, report: Callable[[dict[str, Any]], None]
    ) -> None:
        super().__init__()
        if evaluations < 1:
            raise ValueError(f"--evaluations must be at least 1; got {evaluations}.")
        self._course = course
        self._evaluations = evaluations
        self._report = report

    def on_train_begin(self, logs=None) -> None:
        if not self._course.resumed:
            self._report({})
        self._next = self._reached() + 1

    def on_train_batch_end(self, batch, logs=None) -> None:
        if self._reached() < self._next:
            return
        was_running = self._course.stopwatch.running
        self._course.stopwatch.stop()
        self._report(logs or {})
        self.model.reset_metrics()
        self._next = self._reached() + 1
        if was_running:
            self._course.stopwatch.start()

    def _reached(self) -> int:
        return math.floor(self._course.progress * self._evaluations)


class ProgressBar(keras.callbacks.Callback):
    """Keras's progress bar, in percent of the budget: the number of steps may be unknown."""

    _SHOWN = ("loss", "accuracy", "tau", "importance")

    def __init__(self, course: Course) -> None:
        super().__init__()
        self._course = course

    def on_train_begin(self, logs=None) -> None:
        self._bar = keras.utils.Progbar(
            100, interval=0.5, stateful_metrics=["step", *self._SHOWN], unit_name="percent"
        )

    def on_train_batch_end(self, batch, logs=None) -> None:
        logs = logs or {}
        shown = [(name, logs[name]) for name in self._SHOWN if name in logs]
        percent = min(int(100 * self._course.progress), 100)
        self._bar.update(percent, [("step", self._course.step), *shown])
