"""Seconds to a training loss: python -m benchmarks.time_to_target [--tasks=mnist_mlp,…]

Each task is a net on data. In one process, interleaved, over several seeds:

    uniform   at its own best learning rate and batch size, of the whole grid
    paper     Algorithm 1 as published (τ over the guaranteed threshold), same rate and batch
    control   as much work as `always`, its batches drawn at random from the pre-samples
    gain      tfi.importance_sample(…, "auto", switch=Gain()) under GainAdapted
    memory    tfi.history_sample by RAIS under GainAdapted

gain and memory get uniform's rate and batch size, and nothing of their own. The learning rate
falls linearly to 0: for the first three over --seconds of training, for the last two over the
effective steps that uniform sampling makes in that time. The target is fixed beforehand, as 1.15
times the training loss that uniform sampling ends at with the grid's own seeds. Evaluations are
not counted. speedup = uniform's median seconds to the target / the method's; a run that does not
get there counts as infinitely slow.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import functools
import math
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import tf_importance as tfi
from benchmarks import measure
from trainers import nets
from trainers.step_schedules import Told

FLAGS = flags.FLAGS
flags.DEFINE_list("tasks", [], "Tasks; all whose data is there by default.")
flags.DEFINE_float("seconds", 8.0, "Training time of a uniform run.")
flags.DEFINE_integer("seeds", 5, "Runs of each method.")
flags.DEFINE_list("methods", ["uniform", "paper", "control", "gain", "memory"], "What to compare.")
flags.DEFINE_string("data_dir", None, "Where TFDS keeps MNIST and CIFAR-10.")
flags.DEFINE_string("out", "runs/benchmarks/time_to_target.json", "Where the result goes.")

_EVALUATIONS = 40
_SLACK = 1.15
L = keras.layers


class Data(NamedTuple):
    """Arrays, and what becomes of an example on its way."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    change: Callable[[tf.Tensor], tf.Tensor] | None = None


class Task(NamedTuple):
    """A net on data, with the grid of uniform sampling."""

    friendly: bool
    data: Callable[[], Data]
    net: Callable[[Data], keras.Model]
    optimizer: Callable[..., Any]
    rates: tuple[float, ...]
    batch_sizes: tuple[int, ...] = (16, 32, 64)


# Data -------------------------------------------------------------------------------------


def digits() -> Data:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    return Data(x[:1437], y[:1437].astype(np.int32), x[1437:], y[1437:].astype(np.int32))


@functools.cache
def from_tfds(name: str) -> Data:
    import tensorflow_datasets as tfds

    load = functools.partial(
        tfds.load, name, batch_size=-1, as_supervised=True, data_dir=FLAGS.data_dir
    )
    parts = [tfds.as_numpy(load(split=split)) for split in ("train", "test")]
    (x, y), (x_test, y_test) = [
        ((images / 255).astype(np.float32), labels.astype(np.int32)) for images, labels in parts
    ]
    return Data(x, y, x_test, y_test)


def mnist() -> Data:
    return from_tfds("mnist")


def cifar10() -> Data:
    data = from_tfds("cifar10")
    return data._replace(x=data.x[:10_000], y=data.y[:10_000])


def relabelled(data: Data, share: float) -> Data:
    """A share of the training labels at random."""
    rng = np.random.default_rng(0)
    wrong = rng.random(len(data.y)) < share
    labels = np.where(wrong, rng.integers(10, size=len(data.y)), data.y)
    return data._replace(y=labels.astype(np.int32))


def constant_norms() -> Data:
    """Labels that are coin tosses, ±1, of inputs that say nothing: all gradients alike."""
    rng = np.random.default_rng(0)
    x, x_test = np.ones([4096, 16], np.float32), np.ones([512, 16], np.float32)
    return Data(x, rng.integers(2, size=4096), x_test, rng.integers(2, size=512))


def second_half(data: Data) -> Data:
    """Classes 5 to 9 as 0 to 4."""
    keep, keep_test = data.y >= 5, data.y_test >= 5
    return Data(
        data.x[keep], data.y[keep] - 5, data.x_test[keep_test], data.y_test[keep_test] - 5
    )


def pixels(data: Data) -> Data:
    """Images as sequences of pixels in one fixed random order."""
    order = np.random.default_rng(0).permutation(math.prod(data.x.shape[1:]))

    def sequence(x):
        return x.reshape(len(x), -1)[:, order, np.newaxis]

    return data._replace(x=sequence(data.x), x_test=sequence(data.x_test))


def slowly(x: tf.Tensor) -> tf.Tensor:
    """Some 0.1 ms of work for each example, as decoding would be."""
    noise = tf.random.normal([64, 64])
    return x + 0.0 * tf.reduce_sum(tf.linalg.matmul(noise, noise) ** 2) * 1e-30


def rotated(x: tf.Tensor) -> tf.Tensor:
    """A random shift, flip and quarter turn."""
    size = x.shape[0]
    padded = tf.image.pad_to_bounding_box(x, 2, 2, size + 4, size + 4)
    x = tf.image.random_crop(padded, x.shape)
    return tf.image.rot90(tf.image.random_flip_left_right(x), tf.random.uniform([], 0, 4, tf.int32))


# Nets -------------------------------------------------------------------------------------


def mlp(data: Data, units=(256, 256), classes=10) -> keras.Model:
    hidden = [L.Dense(width, activation="relu") for width in units]
    return keras.Sequential(
        [keras.Input(data.x.shape[1:]), L.Flatten(), *hidden, L.Dense(classes)]
    )


def cnn(data: Data) -> keras.Model:
    return nets.build("cnn", data.x.shape[1:], 10)


def lstm(data: Data) -> keras.Model:
    return keras.Sequential([keras.Input(data.x.shape[1:]), L.LSTM(32), L.Dense(10)])


def wrn_10_1(data: Data) -> keras.Model:
    net = nets.wide_resnet.wide_resnet(data.x.shape[1:], 10, depth=10, width=1)
    return tfi.layers.weight_batch_normalization(net)


@functools.cache
def _body(shape: tuple[int, ...]) -> list[np.ndarray]:
    """Weights of a net that has learned the first half of the classes."""
    data = mnist()
    keep = data.y < 5
    keras.utils.set_random_seed(0)
    net = nets.build("cnn", shape, 5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss)
    net.fit(data.x[keep], data.y[keep], batch_size=64, epochs=1, verbose=0)
    return net.get_weights()


def pretrained(data: Data) -> keras.Model:
    net = nets.build("cnn", data.x.shape[1:], 5)
    fresh = net.get_weights()
    net.set_weights([*_body(data.x.shape[1:])[:-2], *fresh[-2:]])
    return net


sgd = keras.optimizers.SGD
heavy_ball = functools.partial(keras.optimizers.SGD, momentum=0.9)
adam = keras.optimizers.Adam
_SGD, _HEAVY, _ADAM = (0.1, 0.2, 0.4), (0.01, 0.03, 0.1), (1e-3, 3e-3, 1e-2)

TASKS = {
    "digits_mlp": Task(True, digits, mlp, sgd, _SGD),
    "mnist_mlp": Task(True, mnist, mlp, sgd, _SGD),
    "mnist_cnn": Task(True, mnist, cnn, sgd, _SGD),
    "digits_lstm": Task(True, lambda: pixels(digits()), lstm, adam, _ADAM),
    "mnist_fine_tuning": Task(
        True, lambda: second_half(mnist()), pretrained, heavy_ball, _HEAVY
    ),
    "cifar10_wrn_10_1": Task(True, cifar10, wrn_10_1, heavy_ball, _HEAVY, (32, 64)),
    "random_labels": Task(False, lambda: relabelled(digits(), 1.0), mlp, sgd, _SGD),
    "label_noise": Task(False, lambda: relabelled(mnist(), 0.3), mlp, sgd, _SGD),
    "constant_norms": Task(
        False, constant_norms, functools.partial(mlp, units=(64,), classes=2), sgd, _SGD
    ),
    "first_epoch": Task(False, lambda: first(mnist(), 60_000), mlp, sgd, _SGD),
    "linear": Task(False, digits, functools.partial(mlp, units=()), sgd, (0.4, 0.8, 1.6)),
    "slow_input": Task(False, lambda: digits()._replace(change=slowly), mlp, sgd, _SGD),
    "augmented": Task(False, lambda: mnist()._replace(change=rotated), cnn, sgd, _SGD),
    "tiny": Task(False, lambda: first(digits(), 128), mlp, sgd, _SGD),
}
# Seconds of one pass over the data are too few to need more.
_SECONDS = {"first_epoch": 1.0}


def first(data: Data, count: int) -> Data:
    return data._replace(x=data.x[:count], y=data.y[:count])


# Runs -------------------------------------------------------------------------------------


class Result(NamedTuple):
    """A run: (seconds, loss) at each evaluation, steps made, and the test error at the end."""

    curve: list[tuple[float, float]]
    steps: int
    test_error: float


class Course(keras.callbacks.Callback):
    """Times training, lets the rate fall, evaluates, and ends the run."""

    def __init__(self, data: Data, seconds: float, steps: float, told, effective) -> None:
        super().__init__()
        self._subset = np.random.default_rng(0).permutation(len(data.x))[:2000]
        self._data, self._limit, self._steps = data, seconds, steps
        self._told, self._effective = told, effective
        self._seconds, self._last, self._rate = 0.0, None, float(told.rate)
        self.curve: list[tuple[float, float]] = []
        self.steps = 0

    @property
    def progress(self) -> float:
        if self._effective is None:
            return self._seconds / self._limit
        return float(self._effective) / self._steps

    def on_train_batch_begin(self, batch, logs=None) -> None:
        self._last = self._last or time.perf_counter()
        if self.steps % 4 == 0:
            self._told.rate.assign(self._rate * max(1 - self.progress, 1e-3))

    def on_train_batch_end(self, batch, logs=None) -> None:
        now = time.perf_counter()
        # The first step traces.
        self._seconds += now - self._last if self.steps else 0.0
        self._last, self.steps = now, self.steps + 1
        progress = self.progress
        if progress * _EVALUATIONS >= len(self.curve) + 1 or progress >= 1:
            loss = mean_loss(self.model, self._data.x[self._subset], self._data.y[self._subset])
            self.curve.append((self._seconds, loss))
            self._last = None
        lost = not math.isfinite(float(logs["loss"]))
        if progress >= 1 or self._seconds > 2 * self._limit or lost:
            self.model.stop_training = True


@functools.cache
def _logits(net):
    return tf.function(lambda x: net(x, training=False), autograph=False)


def mean_loss(model, x, y) -> float:
    chunks = [_logits(model.net)(tf.constant(part)) for part in np.array_split(x, 4)]
    losses = keras.losses.sparse_categorical_crossentropy(y, tf.concat(chunks, 0), from_logits=True)
    return float(np.mean(losses))


def run(task: Task, data: Data, method: str, rate: float, b: int, seed: int, seconds, steps):
    """One training."""
    keras.utils.set_random_seed(seed)
    model = tfi.ISModel(task.net(data))
    told = Told(rate)
    follows = method in ("gain", "memory")
    schedule = tfi.schedules.GainAdapted(told) if follows else told
    sampler = None
    if method == "memory":
        size = len(data.x)
        sampler = tfi.samplers.RAIS(size, min(20_000, max(size, 2 * b)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(task.optimizer(schedule), loss, sampler=sampler)
    effective = schedule.following if follows else None
    course = Course(data, seconds, steps, told, effective)
    batches = sampled(model, data, method, b, seed, sampler)
    model.fit(batches, steps_per_epoch=10**9, verbose=0, shuffle=False, callbacks=[course])
    logits = np.concatenate(
        [_logits(model.net)(tf.constant(part)) for part in np.array_split(data.x_test, 8)]
    )
    error = float(np.mean(logits.argmax(axis=1) != data.y_test))
    _logits.cache_clear()
    keras.backend.clear_session()
    return Result(course.curve, course.steps, error)


def sampled(model, data: Data, method: str, b: int, seed: int, sampler) -> tf.data.Dataset:
    """Endless batches of a method."""
    change = data.change
    if method == "memory":
        drawn = tfi.history_sample((data.x, data.y), sampler, b).repeat()
        if change is None:
            return drawn

        def changed(x, y, how):
            each = tf.map_fn(change, x)
            return tf.ensure_shape(each, x.shape), y, how

        options = tf.data.Options()
        policy = tf.data.experimental.ExternalStatePolicy.IGNORE
        options.experimental_external_state_policy = policy
        return drawn.map(changed).with_options(options)
    size = min(len(data.x), 20_000)
    examples = tf.data.Dataset.from_tensor_slices((data.x, data.y)).repeat()
    examples = examples.shuffle(size, seed=seed)
    if change is not None:
        examples = examples.map(lambda x, y: (change(x), y))
    if method == "uniform":
        return examples.batch(b, drop_remainder=True).prefetch(1)
    if method == "gain":
        return examples.apply(
            tfi.importance_sample(model, b, "auto", switch=tfi.switches.Gain())
        )
    threshold = "guaranteed" if method == "paper" else "always"
    return examples.apply(
        tfi.importance_sample(
            model,
            b,
            4 * b,
            tau_threshold=threshold,
            scorer=blind if method == "control" else None,
        )
    )


def blind(model, x, y) -> tf.Tensor:
    """Works as hard as the upper bound, and learns nothing."""
    return tf.ones_like(tfi.scorers.upper_bound(model, x, y)) + 0 * tf.minimum(
        tfi.scorers.upper_bound(model, x, y), 0.0
    )


def seconds_to(result: Result, target: float) -> float:
    """When the loss is first at the target, linearly between evaluations."""
    before = None
    for at, loss in result.curve:
        if loss <= target:
            if before is None or before[1] <= loss:
                return at
            share = (before[1] - target) / (before[1] - loss)
            return before[0] + share * (at - before[0])
        before = (at, loss)
    return math.inf


# Results ----------------------------------------------------------------------------------


def best_uniform(task: Task, data: Data, seconds: float) -> tuple[float, int, float, float]:
    """Learning rate, batch size, final loss and steps of the best of the grid."""
    found = []
    for b in task.batch_sizes:
        for rate in task.rates:
            result = run(task, data, "uniform", rate, b, 1000, seconds, math.inf)
            final = result.curve[-1][1] if result.curve else math.inf
            found.append((final if math.isfinite(final) else math.inf, rate, b, result.steps))
            print(f"  uniform {rate:g}, b = {b}: {final:.3g}, {result.steps} steps", flush=True)
    final, rate, b, steps = min(found)
    again = run(task, data, "uniform", rate, b, 1001, seconds, math.inf)
    return rate, b, statistics.mean([final, again.curve[-1][1]]), (steps + again.steps) / 2


def measured(name: str, task: Task) -> dict:
    """All methods on one task."""
    print(f"== {name}", flush=True)
    data, seconds = task.data(), _SECONDS.get(name, FLAGS.seconds)
    rate, b, final, steps = best_uniform(task, data, seconds)
    target = _SLACK * final
    results: dict[str, list[Result]] = {method: [] for method in FLAGS.methods}
    for seed in range(FLAGS.seeds):
        order = list(results) if seed % 2 == 0 else list(results)[::-1]
        for method in order:
            result = run(task, data, method, rate, b, seed, seconds, steps)
            results[method].append(result)
            at = seconds_to(result, target)
            print(f"  seed {seed} {method}: {at:.2f} s, {result.steps} steps", flush=True)
    base = statistics.median(seconds_to(r, target) for r in results["uniform"])
    summary = {"learning_rate": rate, "batch_size": b, "target": target, "steps": steps}
    for method, runs in results.items():
        times = [seconds_to(r, target) for r in runs]
        median = statistics.median(times)
        summary[method] = {
            "speedup": _ratio(base, median),
            "speedups": sorted(_ratio(base, at) for at in times),
            "reached": sum(math.isfinite(at) for at in times),
            "final_loss": statistics.median(r.curve[-1][1] if r.curve else math.nan for r in runs),
            "test_error": [round(r.test_error, 5) for r in runs],
        }
    return {"friendly": task.friendly, **summary}


def _ratio(base: float, at: float) -> float:
    if not math.isfinite(base):
        return math.nan
    return round(base / at, 3) if math.isfinite(at) else 0.0


def geometric_means(found: dict[str, dict]) -> dict[str, float]:
    """Of the friendly tasks' speedups; one that was not reached counts as 0.1."""
    means = {}
    for method in FLAGS.methods:
        speedups = [max(t[method]["speedup"], 0.1) for t in found.values() if t["friendly"]]
        means[method] = round(statistics.geometric_mean(speedups), 3) if speedups else math.nan
    return means


def table(found: dict[str, dict]) -> str:
    lines = ["| task | rate, b | " + " | ".join(FLAGS.methods) + " |"]
    lines.append("|---" * (2 + len(FLAGS.methods)) + "|")
    for name, task in found.items():
        cells = []
        for method in FLAGS.methods:
            one = task[method]
            error = statistics.median(one["test_error"])
            low, high = one["speedups"][0], one["speedups"][-1]
            cells.append(f"{one['speedup']:.2f} ({low:.2f} to {high:.2f}), {error:.1%}")
        settings = f"{task['learning_rate']:g}, {task['batch_size']}"
        lines.append(f"| {name} | {settings} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(_) -> None:
    unknown = set(FLAGS.tasks) - set(TASKS)
    if unknown:
        raise app.UsageError(f"unknown tasks {sorted(unknown)}; known are {sorted(TASKS)}.")
    found: dict[str, dict] = {}
    for name in FLAGS.tasks or TASKS:
        try:
            found[name] = measured(name, TASKS[name])
        except (ConnectionError, AssertionError, OSError) as error:
            print(f"skipped, its data is not to be had: {error}")
            continue
        result = {"seconds": FLAGS.seconds, "seeds": FLAGS.seeds, "tasks": found}
        measure.write(FLAGS.out, {**result, "friendly": geometric_means(found)})
        text = table(found)
        pathlib.Path(FLAGS.out).with_suffix(".md").write_text(text + "\n")
    print(f"\nspeedup: median (range over {FLAGS.seeds} seeds), median test error")
    print(f"\n{table(found)}\n\ngeometric means, friendly tasks: {geometric_means(found)}")


if __name__ == "__main__":
    app.run(main)
