"""Time to the same training loss: python -m benchmarks.time_to_target [--tasks=mnist_mlp,…]

Each task is a net on data. In one process, interleaved, over several seeds, every run decayed
linearly to 0 over its seconds of training (evaluations and the first step are not counted):

    uniform   plain Keras, at its own best learning rate and batch size, of the whole grid
    paper     Algorithm 1 as published (τ over the guaranteed threshold), same rate and batch
    control   batches drawn at random from pre-samples that are scored all the same
    gain      tfi.importance_sample(…, "auto", switch=Gain()) under GainAdapted
    memory    tfi.history_sample by RAIS under GainAdapted
    guarded   the same or uniform batches, as a Gain switch decides
    both      3 batches drawn by memory, scored anew, and one drawn from them
    switched  both, memory or uniform batches, as a Gain switch decides

gain, memory, guarded, both and switched get uniform's rate and batch size, and nothing of their
own. Uniform sampling is run for half, once and twice the seconds, too: its loss against its time,
both in logarithms, is the scale that the others are measured on. A method's speedup is the time
that uniform sampling would need, decayed to its end, for the training loss that the method ends
with, over the method's time. Above 1 it is faster, whatever the target in that range.
"""

from __future__ import annotations

import functools
import json
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
from scipy import stats

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
from tf_importance.schedules import Told

FLAGS = flags.FLAGS
flags.DEFINE_list("tasks", [], "Tasks; all whose data is there by default.")
flags.DEFINE_float("seconds", 6.0, "Training time of a run.")
flags.DEFINE_integer("seeds", 5, "Runs of each method.")
flags.DEFINE_list(
    "methods",
    ["uniform", "paper", "control", "gain", "memory", "guarded", "both", "switched"],
    "What to compare.",
)
flags.DEFINE_string("data_dir", None, "Where TFDS keeps MNIST and CIFAR-10.")
flags.DEFINE_list(
    "grid_of",
    [],
    "Earlier results, whose rates and batch sizes are taken instead of searching the grid anew.",
)
flags.DEFINE_string("out", "runs/benchmarks/time_to_target.json", "Where the result goes.")

# Uniform sampling's seconds, in units of --seconds, beside 1.
_BUDGETS = (0.5, 2.0)
# A speedup outside of uniform sampling's own runs would be a guess.
_LEAST, _MOST = 0.25, 4.0
L = keras.layers


class Task(NamedTuple):
    """A net on data, with the grid of uniform sampling."""

    friendly: bool
    data: Callable[[], Data]
    net: Callable[[Data], keras.Model]
    optimizer: Callable[..., Any]
    rates: tuple[float, ...]
    batch_sizes: tuple[int, ...] = (16, 32, 64)


# Data -------------------------------------------------------------------------------------


def mnist() -> Data:
    return from_tfds("mnist")


def cifar10() -> Data:
    data = from_tfds("cifar10")
    return data._replace(x=data.x[:10_000], y=data.y[:10_000])


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


_SGD, _HEAVY, _ADAM = (0.2, 0.4, 0.8, 1.6), (0.01, 0.03, 0.1), (1e-3, 3e-3, 1e-2)

TASKS = {
    "digits_mlp": Task(True, digits, mlp, sgd, _SGD),
    "mnist_mlp": Task(True, mnist, mlp, sgd, _SGD),
    "mnist_cnn": Task(True, mnist, cnn, sgd, (0.05, 0.1, 0.2)),
    "digits_lstm": Task(True, lambda: pixels(digits()), lstm, adam, _ADAM),
    "mnist_fine_tuning": Task(True, lambda: second_half(mnist()), pretrained, heavy_ball, _HEAVY),
    "cifar10_wrn_10_1": Task(True, cifar10, resnet_8, heavy_ball, _HEAVY, (32, 64)),
    "random_labels": Task(False, lambda: relabelled(digits(), 1.0), mlp, sgd, _SGD),
    "label_noise": Task(False, lambda: relabelled(mnist(), 0.3), mlp, sgd, _SGD),
    "constant_norms": Task(
        False, constant_norms, functools.partial(mlp, units=(64,), classes=2), sgd, _SGD
    ),
    "first_epoch": Task(False, lambda: first(mnist(), 60_000), mlp, sgd, _SGD),
    "linear": Task(False, digits, functools.partial(mlp, units=()), sgd, (0.4, 0.8, 1.6)),
    "slow_input": Task(False, lambda: digits()._replace(change=slowly), mlp, sgd, _SGD),
    "augmented": Task(False, lambda: mnist()._replace(change=rotated), cnn, sgd, (0.05, 0.1, 0.2)),
    "tiny": Task(False, lambda: first(digits(), 128), mlp, sgd, _SGD),
}
# Of --seconds: what is to be learned in a first epoch, or of few examples, takes no longer; of
# images in any position nothing is learned in less.
_SHARES = {"first_epoch": 0.25, "tiny": 0.25, "constant_norms": 0.25, "augmented": 3.0}


# Runs -------------------------------------------------------------------------------------


class Result(NamedTuple):
    """A run: training loss and test error at its end, steps made."""

    loss: float
    test_error: float
    steps: int


class Course(keras.callbacks.Callback):
    """Times training, lets the rate fall, and ends the run."""

    def __init__(self, seconds: float, told: Told) -> None:
        super().__init__()
        self._limit, self._told = seconds, told
        self._seconds, self._last, self._rate = 0.0, None, float(told.rate)
        self.steps = 0

    def on_train_batch_begin(self, batch, logs=None) -> None:
        self._last = self._last or time.perf_counter()
        if self.steps % 4 == 0:
            self._told.rate.assign(self._rate * max(1 - self._seconds / self._limit, 1e-3))

    def on_train_batch_end(self, batch, logs=None) -> None:
        now = time.perf_counter()
        # The first step traces.
        self._seconds += now - self._last if self.steps else 0.0
        self._last, self.steps = now, self.steps + 1
        if self._seconds >= self._limit or not math.isfinite(float(logs["loss"])):
            self.model.stop_training = True


@functools.cache
def _logits(net):
    return tf.function(lambda x: net(x, training=False), autograph=False)


def losses_and_error(net, x, y) -> tuple[float, float]:
    """Mean loss and share of wrong classes."""
    logits = tf.concat([_logits(net)(tf.constant(part)) for part in np.array_split(x, 8)], 0)
    each = keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)
    loss = float(np.mean(each))
    return loss if math.isfinite(loss) else math.inf, float(np.mean(np.argmax(logits, 1) != y))


def run(task: Task, data: Data, method: str, rate: float, b: int, seed: int, seconds) -> Result:
    """One training."""
    keras.utils.set_random_seed(seed)
    net = task.net(data)
    model = net if method == "uniform" else tfi.ISModel(net)
    told = Told(rate)
    remembers = method in ("memory", "guarded", "both", "switched")
    schedule = tfi.schedules.GainAdapted(told) if remembers or method == "gain" else told
    sampler = tfi.samplers.RAIS(len(data.x)) if remembers else None
    own = {} if sampler is None else {"sampler": sampler}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(task.optimizer(schedule), loss, **own)
    course = Course(seconds, told)
    batches = sampled(model, data, method, b, seed, sampler)
    model.fit(batches, steps_per_epoch=10**9, verbose=0, shuffle=False, callbacks=[course])
    subset = np.random.default_rng(0).permutation(len(data.x))[:4000]
    final, _ = losses_and_error(net, data.x[subset], data.y[subset])
    _, error = losses_and_error(net, data.x_test, data.y_test)
    _logits.cache_clear()
    keras.backend.clear_session()
    return Result(final, error, course.steps)


def sampled(model, data: Data, method: str, b: int, seed: int, sampler) -> tf.data.Dataset:
    """Endless batches of a method."""
    change = data.change
    if sampler is not None:
        source, fresh = (data.x, data.y), 3 * b if method in ("both", "switched") else None
        switch = tfi.switches.Gain() if method in ("guarded", "switched") else None
        drawn = tfi.history_sample(
            source, sampler, b, presample_size=fresh, switch=switch, model=model
        ).repeat()
        if change is None:
            return drawn

        def changed(x, y, how):
            # One after another, as the others' examples are.
            each = tf.map_fn(change, x, parallel_iterations=1)
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
        return examples.apply(tfi.importance_sample(model, b, "auto", switch=tfi.switches.Gain()))
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
    scores = tfi.scorers.upper_bound(model, x, y)
    return tf.ones_like(scores) + 0 * tf.minimum(scores, 0.0)


# Results ----------------------------------------------------------------------------------


def best_uniform(task: Task, data: Data, seconds: float) -> tuple[float, int]:
    """Learning rate and batch size of the least training loss in the grid."""
    found = []
    few = 1 if FLAGS.short else None
    for b in task.batch_sizes[:few]:
        for rate in task.rates[:few]:
            result = run(task, data, "uniform", rate, b, 1000, seconds)
            found.append((result.loss, rate, b))
            print(f"  uniform {rate:g}, b = {b}: {result.loss:.3g}", flush=True)
    return min(found)[1:]


def found_before(name: str) -> tuple[float, int] | None:
    """The learning rate and batch size of a task in --grid_of."""
    for path in FLAGS.grid_of:
        task = json.loads(pathlib.Path(path).read_text())["tasks"].get(name)
        if task is not None:
            return task["learning_rate"], task["batch_size"]
    return None


class Scale(NamedTuple):
    """log loss = offset + slope · log(time), of uniform sampling; time in units of --seconds."""

    offset: float
    slope: float

    def time_to(self, loss: float) -> float:
        """What uniform sampling needs for a loss."""
        if not math.isfinite(loss):
            return _LEAST
        time_needed = math.exp((math.log(max(loss, 1e-12)) - self.offset) / self.slope)
        return min(max(time_needed, _LEAST), _MOST)


def scale(losses: dict[float, list[float]]) -> Scale | None:
    """By the medians of Theil and Sen over all runs; None where more time is no lower loss."""
    pairs = [(t, loss) for t, found in losses.items() for loss in found if math.isfinite(loss)]
    times, values = np.log(np.array(pairs)).T
    slope, offset = stats.theilslopes(values, times)[:2]
    return Scale(offset, slope) if slope < -0.05 else None


def measured(name: str, task: Task) -> dict:
    """All methods on one task."""
    print(f"== {name}", flush=True)
    data, seconds = task.data(), FLAGS.seconds * _SHARES.get(name, 1.0)
    rate, b = found_before(name) or best_uniform(task, data, seconds)
    results: dict[str, list[Result]] = {method: [] for method in FLAGS.methods}
    losses: dict[float, list[float]] = {1.0: [], **{budget: [] for budget in _BUDGETS}}
    for seed in range(FLAGS.seeds):
        order = list(results) if seed % 2 == 0 else list(results)[::-1]
        for method in order:
            result = run(task, data, method, rate, b, seed, seconds)
            results[method].append(result)
            print(f"  seed {seed} {method}: {result.loss:.3g}, {result.steps} steps", flush=True)
        for budget in _BUDGETS if seed < 2 else ():
            result = run(task, data, "uniform", rate, b, seed, budget * seconds)
            losses[budget].append(result.loss)
            print(f"  seed {seed} uniform, {budget:g} times as long: {result.loss:.3g}", flush=True)
    losses[1.0] = [result.loss for result in results["uniform"]]
    of_uniform = scale(losses)
    summary: dict[str, Any] = {"learning_rate": rate, "batch_size": b, "seconds": seconds}
    summary["uniform_losses"] = {str(budget): found for budget, found in losses.items()}
    for method, runs in results.items():
        speedups = [of_uniform.time_to(r.loss) if of_uniform else math.nan for r in runs]
        summary[method] = {
            "speedup": round(statistics.median(speedups), 3),
            "speedups": sorted(round(speedup, 3) for speedup in speedups),
            "losses": [r.loss for r in runs],
            "diverged": sum(not math.isfinite(r.loss) for r in runs),
            "test_errors": [round(r.test_error, 5) for r in runs],
            "steps": [r.steps for r in runs],
        }
    return {"friendly": task.friendly, **summary}


def geometric_means(found: dict[str, dict]) -> dict[str, float]:
    """Of the friendly tasks' median speedups."""
    means = {}
    for method in FLAGS.methods:
        speedups = [t[method]["speedup"] for t in found.values() if t["friendly"]]
        means[method] = round(statistics.geometric_mean(speedups), 3) if speedups else math.nan
    return means


def table(found: dict[str, dict]) -> str:
    lines = ["| task | rate, b | " + " | ".join(FLAGS.methods) + " |"]
    lines.append("|---" * (2 + len(FLAGS.methods)) + "|")
    for name, task in found.items():
        cells = []
        for method in FLAGS.methods:
            one = task[method]
            error, loss = statistics.median(one["test_errors"]), statistics.median(one["losses"])
            low, high = one["speedups"][0], one["speedups"][-1]
            cells.append(
                f"**{one['speedup']:.2f}** ({low:.2f} to {high:.2f}); {loss:.2g}, {error:.2%}"
            )
        settings = f"{task['learning_rate']:g}, {task['batch_size']}"
        lines.append(f"| {name} | {settings} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(_) -> None:
    command.shorten(
        tasks=["digits_mlp", "constant_norms"],
        seconds=0.2,
        seeds=1,
        methods=["uniform", "gain", "memory"],
    )
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
        result: dict[str, Any] = {"seeds": FLAGS.seeds, "tasks": found}
        measure.write(FLAGS.out, {**result, "friendly": geometric_means(found)})
        text = table(found)
        pathlib.Path(FLAGS.out).with_suffix(".md").write_text(text + "\n")
    print(f"\nspeedup: median (range over {FLAGS.seeds} seeds); median loss and test error")
    print(f"\n{table(found)}\n\ngeometric means, friendly tasks: {geometric_means(found)}")


if __name__ == "__main__":
    app.run(main)
