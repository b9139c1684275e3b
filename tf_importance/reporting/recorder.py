"""Keeps what a report shows of a training by `fit`."""

from __future__ import annotations

import json
import pathlib
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tf_importance import arguments, estimate, marks
from tf_importance.model import ISModel
from tf_importance.reporting import examples as drawn
from tf_importance.reporting import runs

# Seconds for each of the passes that are timed at the end.
_PATIENCE = 2.0


class Recorder(arguments.Written, keras.callbacks.Callback):
    """Writes what `tfi.report` shows of a training: a line for each epoch, and at its end examples.

        model.fit(…, callbacks=[tfi.Recorder("runs/mine", examples=(x, y))])
        tfi.report("runs/mine")

    Any Keras model will do: a uniform training beside one by importance sampling has a report of
    both. The folder gets metrics.jsonl (step, seconds and the logs of each epoch), examples.json
    (the weights that examples would be drawn with at the end, the most and the least drawn, what
    seconds were spent on) and TensorBoard's scalars, histogram and images. Seconds are those of
    training: the first step, which traces, and validation do not count. A training that is resumed
    in the same folder goes on with the lines.

    Args:
        folder: made if it does not exist.
        examples: (x, y), a dataset of single examples, or what has random access; 10,000 of them
            are looked at. None for no look at examples. What a sampler with memory would draw is
            known where these are all that it draws from, in their order.
        every: epochs between two looks at the examples for TensorBoard; by default one at the end.
        show: makes of an example's input an image [h, w] or [h, w, c], or a text; by default what
            has the shape of an image is one.
        class_names: by number.
    Raises:
        TypeError: examples are none. ValueError: every is no positive integer.
    """

    def __init__(
        self,
        folder: str | pathlib.Path,
        examples: Any = None,
        *,
        every: int | None = None,
        show: Callable[[Any], Any] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if examples is not None:
            # Not at the end of the training.
            drawn.check(examples)
        self._folder, self._examples = pathlib.Path(folder), examples
        self._every = None if every is None else arguments.positive_integer("every", every)
        self._options: dict[str, Any] = {"show": show, "class_names": class_names}
        self._writer: Any = None
        self._since: float | None = None
        self._seconds, self._ended = 0.0, False

    # Seconds --------------------------------------------------------------------------------

    def _stop(self) -> None:
        if self._since is not None:
            self._seconds += time.perf_counter() - self._since
            self._since = None

    def on_train_begin(self, logs=None) -> None:
        self._since = None

    def on_train_batch_end(self, batch, logs=None) -> None:
        # Not before the end of the first step, and again after a validation.
        if self._since is None:
            self._since = time.perf_counter()

    def on_test_begin(self, logs=None) -> None:
        self._stop()

    # Lines ----------------------------------------------------------------------------------

    def on_epoch_begin(self, epoch, logs=None) -> None:
        # By now whoever resumes a training has restored the optimizer.
        if self._writer is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            before = runs.keep_until(self._folder, self._step)
            self._seconds = before[-1]["seconds"] if before else 0.0
            self._writer = tf.summary.create_file_writer(str(self._folder / "tensorboard"))

    @property
    def _step(self) -> int:
        return int(tf.convert_to_tensor(self.model.optimizer.iterations))

    def on_epoch_end(self, epoch, logs=None) -> None:
        self._stop()
        numbers = {name: float(value) for name, value in (logs or {}).items()}
        row = {"epoch": epoch + 1, "step": self._step, "seconds": self._seconds, **numbers}
        self._ended = True
        runs.append(self._folder, row)
        with self._writer.as_default(step=row["step"]):
            for name, value in numbers.items():
                tf.summary.scalar(name, value)
        if self._every is not None and (epoch + 1) % self._every == 0:
            self._look()
        self._writer.flush()

    def on_train_end(self, logs=None) -> None:
        self._stop()
        if self._ended and self._examples is not None:
            write_examples(self._folder, self.model, self._examples, **self._options)

    def _look(self) -> None:
        if self._examples is not None:
            found = _looked_at(self.model, self._examples, **self._options)
            if found is None:
                self._examples = None
                return
            with self._writer.as_default():
                drawn.summarize(found.told, self._step)


def write_examples(
    folder: str | pathlib.Path,
    model: keras.Model,
    examples: Any,
    *,
    limit: int = drawn.LIMIT,
    **options: Any,
) -> None:
    """Write what a report says of examples into a run's folder: examples.json, and TensorBoard's.

    Where they cannot be scored a warning says why, and there will be none.

    Args:
        folder: has metrics.jsonl. model: trained. examples, options: as of `Recorder`; `count` of
            those shown of each kind. limit: of those looked at, the first ones.
    """
    folder = pathlib.Path(folder)
    found = _looked_at(model, examples, limit, **options)
    if found is None:
        return
    (run,) = runs.read(folder)
    step, seconds = run.rows[-1]["step"], run.rows[-1]["seconds"]
    spent = _seconds_of(model, found.examples, seconds, run.share, step)
    text = json.dumps({**found.told, "seconds": spent})
    (folder / runs.EXAMPLES).write_text(text + "\n")
    with tf.summary.create_file_writer(str(folder / "tensorboard")).as_default():
        drawn.summarize(found.told, step)


class _Seen(NamedTuple):
    """Examples, (x, y), and what there is to say of them."""

    examples: tuple[Any, Any]
    told: dict[str, Any]


def _looked_at(
    model: keras.Model, examples: Any, limit: int = drawn.LIMIT, **options: Any
) -> _Seen | None:
    """None, and a warning, where they cannot be scored."""
    try:
        arrays = drawn.taken(examples, limit)
        return _Seen(arrays, drawn.described(model, arrays, **options))
    except (TypeError, ValueError) as error:
        warnings.warn(f"the report will show no examples: {error}", stacklevel=3)
        return None


def _seconds_of(
    model: keras.Model, examples: tuple, seconds: float, share: float | None, steps: int
) -> dict[str, float] | None:
    """What the seconds of a training were spent on, about.

    Timed anew on these examples: passes forward and backward, and scoring a pre-sample, as often
    as batches were drawn. The rest is drawing, reading, the optimizer, Keras.

    Args:
        share: of the steps on drawn batches. steps: all of them.
    Returns:
        None for a model that draws nothing.
    """
    if not isinstance(model, ISModel) or steps == 0:
        return None
    drawing, _ = model.datasets.expected
    if drawing is None:
        return None
    batch_size, presample_size, draws = _sizes(drawing)
    pairs = tf.data.Dataset.from_tensor_slices(examples)
    clock = estimate.Clock(model, pairs, patience=_PATIENCE)
    training = min(seconds, steps * clock.step_seconds(batch_size))
    scoring = 0.0
    if presample_size:
        presamples = steps * (1.0 if share is None else share) / draws
        scoring = min(seconds - training, presamples * clock.scoring_seconds(presample_size))
    return {
        "forward and backward": training,
        "scoring": scoring,
        "drawing, reading, the rest": max(0.0, seconds - training - scoring),
    }


def _sizes(drawing: marks.Drawing) -> tuple[int, int, int]:
    """b, B, and how many batches come of a pre-sample; B is 0 where none is scored."""
    if not drawing.plans:
        if drawing.fresh is not None:
            return drawing.fresh.batch_size, drawing.row_size or 0, 1
        return int(drawing.sampler.journal.batch_size), 0, 1
    scored = sorted((plan for plan in drawing.plans if plan.rescored), key=lambda one: one.rate)
    # Of several plans the middle one stands for all.
    plan = scored[len(scored) // 2] if scored else drawing.plans[0]
    return plan.batch_size, plan.presample_size if scored else 0, max(plan.draws, 1)
