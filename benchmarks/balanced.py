"""What balanced data gain: python -m benchmarks.balanced [--tasks=mnist_mlp,…]

Each task is a net on data, compared by `tfi.compare`: uniform sampling, each method, and what it is
to leave a random half out, every one at its own best learning rate, decayed linearly to 0, at equal
cost (what a step of each costs is measured once). Runs are of 20 passes and more over 5,000
examples at most, 2,000 where a net has convolutions or reads words. A method's speedup is the time
that uniform sampling would need for the training loss that the method ends with, over the method's
time; read off uniform sampling's own runs of half and twice the budget. With --by=held_out it is
that of the loss on other examples.

The first six tasks are friendly, there is noise to reduce; the others are hostile, with little or
none. Runs are kept in --out/TASK as they are made, and a command that is interrupted goes on there;
--report runs nothing, and tells what is there. A task of an MLP takes some 7 minutes of a core,
others half an hour, the ResNet more than one; tasks can be shared out among processes.
"""

from __future__ import annotations

import functools
import pathlib
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import tf_importance as tfi
from benchmarks import command, measure
from benchmarks.tasks import (
    Data,
    adam,
    cnn,
    constant_norms,
    digits,
    first,
    from_tfds,
    heavy_ball,
    lstm,
    mlp,
    pixels,
    pretrained,
    relabelled,
    resnet_8,
    second_half,
    sgd,
)
from reports import figures

FLAGS = flags.FLAGS
flags.DEFINE_list("tasks", [], "Tasks; all by default.")
flags.DEFINE_integer("seeds", 5, "Runs of each method.")
flags.DEFINE_list(
    "methods", ["memory", "switched", "inclusion", "a random half"], "What to compare."
)
flags.DEFINE_enum("by", "train", ["train", "held_out"], "The loss that counts.")
flags.DEFINE_string("data_dir", None, "Where TFDS keeps MNIST and CIFAR-10.")
flags.DEFINE_boolean("report", False, "Run nothing; report on what is there, as it was compared.")
flags.DEFINE_string("out", "runs/benchmarks/balanced", "Where runs and results go.")

_EXAMPLES = 5_000
# For nets with convolutions, and over words: all tasks together take less than three hours.
_FEWER = 2_000
_PASSES = 20
L = keras.layers


class Task(NamedTuple):
    """A net on data; rates are sought around `rate`."""

    friendly: bool
    data: Callable[[], Data]
    net: Callable[[Data], keras.Model]
    optimizer: Callable[..., Any]
    rate: float
    batch_size: int = 32
    passes: float = _PASSES


# Data -------------------------------------------------------------------------------------


def mnist(examples: int = _EXAMPLES) -> Data:
    return first(from_tfds("mnist"), examples)


def duplicated(data: Data) -> Data:
    """Each example 1 to 100 times, few of them often."""
    rng = np.random.default_rng(0)
    times = np.rint(100 ** rng.random(len(data.y)) ** 3).astype(int)
    numbers = np.repeat(np.arange(len(data.y)), times)[:_EXAMPLES]
    return data._replace(x=data.x[numbers], y=data.y[numbers])


def reviews() -> Data:
    """Texts of 40 words, made up: two opinions, told by a few words of 2,000, some of them rare."""
    rng = np.random.default_rng(0)
    count, words, length = _FEWER + 1_000, 2_000, 40
    y = rng.integers(2, size=count)
    x = np.minimum(rng.zipf(1.3, size=(count, length)), words - 201)
    told = rng.integers(1, 4, size=count)
    # Each opinion has a hundred words of its own, the first ones frequent.
    for place in range(3):
        own = np.minimum(rng.zipf(1.5, size=count), 100) - 1 + words - 200 + 100 * y
        where = rng.integers(length, size=count)
        rows = np.flatnonzero(told > place)
        x[rows, where[rows]] = own[rows]
    x, y = x.astype(np.int32), y.astype(np.int32)
    return Data(x[:_FEWER], y[:_FEWER], x[_FEWER:], y[_FEWER:])


def cifar10() -> Data:
    return first(from_tfds("cifar10"), _FEWER)


def other_half() -> Data:
    """What is left of twice as many when half the classes are known."""
    return second_half(mnist(2 * _FEWER))


def rotated(x: tf.Tensor) -> tf.Tensor:
    """Each image of a batch shifted by up to two pixels, flipped or not."""
    shape = tf.shape(x)
    padded = tf.pad(x, [[0, 0], [2, 2], [2, 2], [0, 0]])
    row, column = (tf.random.uniform([], 0, 5, tf.int32) for _ in range(2))
    moved = padded[:, row : row + shape[1], column : column + shape[2]]
    moved = tf.ensure_shape(moved, x.shape)
    return tf.where(tf.random.uniform([shape[0], 1, 1, 1]) < 0.5, moved[:, :, ::-1], moved)


def augmented() -> Data:
    return mnist(_FEWER)._replace(change=rotated)


# Nets -------------------------------------------------------------------------------------


def gru(data: Data) -> keras.Model:
    inputs = keras.Input(data.x.shape[1:], dtype="int32")
    return keras.Model(inputs, L.Dense(2)(L.GRU(32)(L.Embedding(2_000, 32)(inputs))))


TASKS = {
    "digits_mlp": Task(True, digits, mlp, sgd, 0.3, passes=60),
    "mnist_mlp": Task(True, mnist, mlp, sgd, 0.3),
    "mnist_cnn": Task(True, lambda: mnist(_FEWER), cnn, sgd, 0.1),
    "digits_lstm": Task(True, lambda: pixels(digits()), lstm, adam, 0.01),
    "mnist_fine_tuning": Task(True, other_half, pretrained, heavy_ball, 0.03),
    "cifar10_resnet_8": Task(True, cifar10, resnet_8, heavy_ball, 0.03),
    "random_labels": Task(False, lambda: relabelled(digits(), 1.0), mlp, sgd, 0.3, passes=60),
    "label_noise": Task(False, lambda: relabelled(mnist(), 0.3), mlp, sgd, 0.3),
    "constant_norms": Task(
        False, constant_norms, functools.partial(mlp, units=(64,), classes=2), sgd, 0.1
    ),
    "linear": Task(False, digits, functools.partial(mlp, units=()), sgd, 0.3),
    "tiny": Task(False, lambda: first(digits(), 128), mlp, sgd, 0.3, passes=200),
    "duplicated": Task(False, lambda: duplicated(mnist()), mlp, sgd, 0.3),
    "augmented": Task(False, augmented, cnn, sgd, 0.1),
    "reviews_gru": Task(False, reviews, gru, adam, 3e-3),
}


# Runs -------------------------------------------------------------------------------------


def compared(name: str, task: Task, out: pathlib.Path) -> tfi.comparison.Comparison:
    """All methods on one task."""
    data = task.data()

    def build() -> keras.Model:
        net = task.net(data)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        net.compile(task.optimizer(task.rate), loss)
        return net

    budget = max(1, round(task.passes * len(data.y) / task.batch_size))
    return tfi.compare(
        build,
        (data.x, data.y),
        FLAGS.methods,
        batch_size=task.batch_size,
        budget=4 if FLAGS.short else budget,
        seeds=FLAGS.seeds,
        rates=[1.0] if FLAGS.short else None,
        validation_data=(data.x_test, data.y_test),
        augment=data.change,
        out=out / name,
        by=FLAGS.by,
    )


# Results ----------------------------------------------------------------------------------


def summary(comparison: tfi.comparison.Comparison, friendly: bool) -> dict[str, Any]:
    """What a task's table has."""
    methods = {row.method: row._asdict() for row in comparison.rows}
    settings = comparison.settings
    return {"friendly": friendly, "settings": settings, "methods": methods}


def geometric_means(tasks: dict[str, dict]) -> dict[str, float]:
    """Of the friendly tasks' median speedups, by method."""
    found: dict[str, list[float]] = {}
    for task in tasks.values():
        for name, row in task["methods"].items():
            if task["friendly"] and row["speedup"] is not None:
                found.setdefault(name, []).append(row["speedup"])
    return {name: round(statistics.geometric_mean(each), 3) for name, each in found.items()}


def markdown(tasks: dict[str, dict]) -> str:
    """Speedups: median (range); train loss and error; the best rates."""
    rows = []
    # Not all have been run on each task.
    methods = dict.fromkeys(method for task in tasks.values() for method in task["methods"])
    for name, task in tasks.items():
        cells = {"task": name if task["friendly"] else f"*{name}*", **dict.fromkeys(methods, "")}
        for method, row in task["methods"].items():
            speedups = row["speedups"]
            told = "-"
            if row["speedup"] is not None:
                told = f"{row['speedup']:.2f} ({min(speedups):.2f} to {max(speedups):.2f})"
            error = "" if row["error"] is None else f", {row['error']:.1%}"
            cells[method] = f"{told}; {row['train_loss']:.2g}{error}"
        rows.append(cells)
    return figures.markdown(rows)


def main(_) -> None:
    command.shorten(tasks=["constant_norms"], seeds=1, methods=["memory"])
    unknown = {*FLAGS.tasks} - {*TASKS}
    if unknown:
        raise app.UsageError(f"unknown tasks {sorted(unknown)}; known are {sorted(TASKS)}.")
    out = pathlib.Path(FLAGS.out)
    found: dict[str, dict] = {}
    for name in FLAGS.tasks or TASKS:
        if FLAGS.report and not (out / name / "comparison.json").exists():
            continue
        print(f"== {name}", flush=True)
        if FLAGS.report:
            comparison = tfi.comparison.Comparison.load(out / name)
        else:
            comparison = compared(name, TASKS[name], out)
        print(comparison, flush=True)
        found[name] = summary(comparison, TASKS[name].friendly)
        keras.backend.clear_session()
    means = geometric_means(found)
    measure.write(str(out / "report.json"), {"tasks": found, "friendly": means})
    text = markdown(found)
    (out / "report.md").write_text(text + "\n")
    print(f"\nspeedup: median (range over the seeds); train loss, held-out error\n\n{text}")
    print(f"\ngeometric means, friendly tasks: {means}")


if __name__ == "__main__":
    app.run(main)
