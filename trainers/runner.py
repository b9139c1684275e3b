"""One run: fit within a budget, evaluate, record, continue after a kill."""

from __future__ import annotations

import pathlib
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf
from absl import flags, logging

from trainers import callbacks, schedules
from trainers import flags as trainer_flags
from trainers.budget import Budget, Stopwatch, clock
from trainers.run_directory import RunDirectory
from trainers.sampling import Sampled

# Logs of an ISModel, null before its first step.
_IMPORTANCE_LOGS = (
    *("tau", "ess", "importance", "max_weight", "fallbacks"),
    *("gain", "outliers", "usable", "rare_share"),
)


Also = Callable[[pathlib.Path, int], None]
# Each gives a NamedTuple of numbers, `loss` and `error` among them.
Evaluators = Mapping[str, Callable[[], Any]]


def fit(
    settings: flags.FlagValues,
    sampled: Sampled,
    evaluators: Evaluators,
    also: Also | None = None,
) -> pathlib.Path:
    """Fit a model as the flags say; write run.json, metrics.jsonl and TensorBoard's logs.

    A run that was killed continues from its last evaluation, one that is complete is left
    as it is.

    Args:
        settings: the trainer's flags.
        sampled: the compiled model and its batches.
        evaluators: evaluate the net on "train", "test", and what else there is, by name. Column
            `test_loss` is the field `loss` of what "test" gives.
        also: called at every evaluation, with the run's directory and the number of steps.
    Returns:
        The run's directory.
    Raises:
        ValueError: a flag is out of range, or --out holds another run.
    """
    if not settings.out:
        raise ValueError("give --out, the directory for the run's results.")
    course = callbacks.Course(
        Budget(settings.time_budget, settings.steps), Stopwatch(now=clock(settings.clock))
    )
    by_budget = settings.step_schedule in ("none", "budget")
    kind = callbacks.LearningRate if by_budget else callbacks.StepwiseRate
    schedule = schedules.parse(settings.schedule)
    learning_rate = kind(course, settings.learning_rate, schedule, sampled.told_rate)
    directory = RunDirectory(settings.out, trainer_flags.of_run(settings))
    recorder = _Recorder(directory, course, learning_rate, sampled, evaluators, also)
    recorder.restore()
    if course.progress >= 1:
        logging.warning("The run in %s is complete; nothing is left to do.", directory.path)
        return directory.path
    with warnings.catch_warnings():
        if settings.short:
            # In a few steps few ways of drawing have begun.
            warnings.filterwarnings("ignore", "nothing was drawn")
        sampled.model.fit(
            sampled.batches,
            # The course ends the run; the number of steps is unknown under a time budget.
            steps_per_epoch=sys.maxsize if settings.steps is None else settings.steps - course.step,
            verbose=0,
            shuffle=False,
            callbacks=[
                course,
                learning_rate,
                callbacks.ProgressBar(course),
                callbacks.Evaluate(course, settings.evaluations, recorder.record),
            ],
        )
    return directory.path


class _Recorder:
    """Evaluates, and writes the row, TensorBoard's scalars and the checkpoint."""

    def __init__(self, directory, course, learning_rate, sampled, evaluators, also) -> None:
        model = sampled.model
        self._steps_per_epoch = sampled.steps_per_epoch
        self._directory = directory
        self._course = course
        self._learning_rate = learning_rate
        self._evaluators = evaluators
        self._also = also
        self._writer = tf.summary.create_file_writer(str(directory.path / "tensorboard"))
        self._step = tf.Variable(0, dtype=tf.int64)
        self._seconds = tf.Variable(0.0, dtype=tf.float64)
        self._model = model
        self._checkpoints = tf.train.CheckpointManager(
            tf.train.Checkpoint(
                model=model, optimizer=model.optimizer, step=self._step, seconds=self._seconds
            ),
            str(directory.path / "checkpoints"),
            max_to_keep=1,
        )

    def restore(self) -> None:
        """Go on from the last checkpoint, if there is one."""
        # Keras 3 restores an optimizer's state only once it is there; a legacy optimizer
        # (TensorFlow Addons) has no `build` and restores it when it comes.
        if hasattr(self._model.optimizer, "build"):
            self._model.optimizer.build(self._model.trainable_variables)
        if self._checkpoints.restore_or_initialize():
            self._course.resume(int(self._step.numpy()), float(self._seconds.numpy()))
            logging.warning("Continuing from step %d.", self._course.step)
        self._directory.keep_until(self._course.step if self._checkpoints.latest_checkpoint else -1)

    def record(self, logs: dict[str, Any]) -> None:
        """One evaluation."""
        found = {name: evaluate() for name, evaluate in self._evaluators.items()}
        row = {
            "step": self._course.step,
            "seconds": self._course.seconds,
            **_columns(found),
            "objective": found["train"].loss + _penalties(self._model),
            **{name: _as_float(logs.get(name)) for name in _IMPORTANCE_LOGS},
            "learning_rate": self._learning_rate.current,
            "epoch": self._course.step / self._steps_per_epoch,
            "effective_step": self._learning_rate.effective_step,
        }
        self._directory.append(row)
        with self._writer.as_default(step=self._course.step):
            for name, value in row.items():
                if value is not None:
                    tf.summary.scalar(name, value)
        self._writer.flush()
        if self._also is not None:
            self._also(self._directory.path, self._course.step)
        self._step.assign(self._course.step)
        self._seconds.assign(self._course.seconds)
        self._checkpoints.save()


def _columns(found: Mapping[str, Any]) -> dict[str, float]:
    """Each number of each evaluation, as EVALUATION_NUMBER."""
    return {
        f"{name}_{number}": value
        for name, evaluation in found.items()
        for number, value in evaluation._asdict().items()
    }


def _penalties(model) -> float:
    """The sum of the regularization losses."""
    return float(sum(float(tf.convert_to_tensor(penalty)) for penalty in model.losses))


def _as_float(value: Any) -> float | None:
    return None if value is None else float(value)
