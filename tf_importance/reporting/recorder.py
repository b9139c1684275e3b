"""Keeps what a report shows of a training by `fit`."""

from __future__ import annotations

import json
import pathlib
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_importance import arguments, estimate, marks
from tf_importance.model import ISModel
from tf_importance.reporting import examples as drawn
from tf_importance.reporting import runs


class Recorder(keras.callbacks.Callback):
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
        examples: (x, y) or a dataset of single examples, of which 10,000 are looked at; None for
            no look at examples. What a sampler with memory would draw is known where these are all
            that it draws from, in their order.
        every: epochs between two looks at the examples for TensorBoard; by default one at the end.
        show: makes of an example's input an image [h, w] or [h, w, c], or a text; by default what
            has the shape of an image is one.
        class_names: by number.
    Raises:
        ValueError: every is no positive integer.
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
        self._folder, self._examples = pathlib.Path(folder), examples
        self._every = None if every is None else arguments.positive_integer("every", every)
        self._options = {"show": show, "class_names": class_names}
        self._rows: list[dict[str, Any]] | None = None
        self._since: float | None = None
        self._seconds = 0.0

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
        if self._rows is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / runs.METRICS
            lines = path.read_text().splitlines() if path.exists() else []
            rows = [json.loads(line) for line in lines]
            self._rows = [row for row in rows if row["step"] <= self._step]
            self._seconds = self._rows[-1]["seconds"] if self._rows else 0.0
            self._writer = tf.summary.create_file_writer(str(self._folder / "tensorboard"))

    @property
    def _step(self) -> int:
        return int(tf.convert_to_tensor(self.model.optimizer.iterations))

    def on_epoch_end(self, epoch, logs=None) -> None:
        assert self._rows is not None, "an epoch has begun"
        self._stop()
        numbers = {name: float(value) for name, value in (logs or {}).items()}
        row = {"epoch": epoch + 1, "step": self._step, "seconds": self._seconds, **numbers}
        self._rows.append(row)
        lines = "".join(json.dumps(one) + "\n" for one in self._rows)
        (self._folder / runs.METRICS).write_text(lines)
        with self._writer.as_default(step=row["step"]):
            for name, value in numbers.items():
                tf.summary.scalar(name, value)
        if self._every is not None and (epoch + 1) % self._every == 0:
            self._look()
        self._writer.flush()

    def on_train_end(self, logs=None) -> None:
        self._stop()
        if self._rows and self._examples is not None:
            write_examples(self._folder, self.model, self._examples, **self._options)

    def _look(self) -> None:
        if self._examples is not None:
            told = _described(self.model, self._examples, **self._options)
            if told is None:
                self._examples = None
                return
            with self._writer.as_default():
                drawn.summarize(told, self._step)


def write_examples(
    folder: str | pathlib.Path, model: keras.Model, examples: Any, **options: Any
) -> None:
    """Write what a report says of examples into a run's folder: examples.json, and TensorBoard's.

    Where they cannot be scored a warning says why, and there will be none.

    Args:
        folder: has metrics.jsonl. model: trained. examples, options: as of `Recorder`; `count` of
            those shown of each kind, `limit` of those looked at.
    """
    folder = pathlib.Path(folder)
    told = _described(model, examples, **options)
    if told is None:
        return
    (run,) = runs.read(folder)
    step, seconds = run.rows[-1]["step"], run.rows[-1]["seconds"]
    told["seconds"] = _seconds_of(model, examples, seconds, run.share, step)
    (folder / runs.EXAMPLES).write_text(json.dumps(told) + "\n")
    with tf.summary.create_file_writer(str(folder / "tensorboard")).as_default():
        drawn.summarize(told, step)


def _described(model: keras.Model, examples: Any, **options: Any) -> dict[str, Any] | None:
    try:
        return drawn.described(model, examples, **options)
    except (TypeError, ValueError) as error:
        warnings.warn(f"the report will show no examples: {error}", stacklevel=3)
        return None


def _seconds_of(
    model: keras.Model, examples: Any, seconds: float, share: float | None, steps: int
) -> dict[str, float] | None:
    """What the seconds of a training were spent on, about.

    Timed anew on these examples: passes forward and backward, and scoring a pre-sample, as often
    as batches were drawn. The rest is drawing, reading, the optimizer, Keras.

    Args:
        share: of the steps on drawn batches. steps: all of them.
    Returns:
        None for a model that draws nothing.
    """
    drawing, _ = model.datasets.expected if isinstance(model, ISModel) else (None, False)
    if drawing is None or steps == 0:
        return None
    batch_size, presample_size, draws = _sizes(drawing)
    pairs = examples
    if not isinstance(examples, tf.data.Dataset):
        pairs = tf.data.Dataset.from_tensor_slices(examples)
    scored, _ = estimate.with_scores(model)
    clock = estimate.Clock(scored, pairs.map(lambda x, y, *rest: (x, y)))
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
