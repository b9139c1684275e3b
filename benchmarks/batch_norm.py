"""What batch normalization makes of drawn batches: python -m benchmarks.batch_norm [--nets=mlp,…]

Five ways to train the same net, with the same batch size, optimizer and learning rate, which falls
linearly to 0:

    uniform    plain Keras
    control    uniform batches, normalized by the statistics of B examples: drawn by equal scores
    weighted   drawn, each batch by its own importance-weighted statistics (tfi.layers)
    ordinary   drawn, each batch by its own statistics, as Keras does
    adapted    drawn, by the pre-sample's statistics, with the gradient of the batch's weighted ones

and, by --ways=memory, drawn by RAIS and normalized by a short average over batches.

By train loss in inference and test error, medians and ranges over the seeds: after N steps, and,
for drawn ones, after N/(1 + c), c the seconds of a forward pass of B over those of a uniform step.
--optimizer, --batch_size, --factor (B/b) and the deep nets, --nets=wrn_28_2,resnet_18, show where
it ends.

Runs are kept in --out.jsonl as they are made, and a command that is interrupted goes on there.
"""

from __future__ import annotations

import functools
import json
import math
import pathlib
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import tf_importance as tfi
from benchmarks import command, measure, runs
from reports import figures
from trainers import augmentation, datasets, nets

FLAGS = flags.FLAGS
flags.DEFINE_list("nets", [], "Nets; by default all but the deep ones.")
flags.DEFINE_list("ways", [], "Ways; the first five by default.")
flags.DEFINE_list("rates", [], "Learning rates, in place of each net's own.")
flags.DEFINE_enum("optimizer", None, ["sgd", "momentum", "adam"], "In place of each net's own.")
flags.DEFINE_integer("batch_size", 32, "b.")
flags.DEFINE_integer("factor", 4, "B/b.")
flags.DEFINE_integer("steps", 0, "N, in place of each net's own.")
flags.DEFINE_integer("seeds", 3, "Runs of each kind.")
flags.DEFINE_boolean("equal_cost", True, "Also make the runs of equal cost.")
flags.DEFINE_string("data_dir", None, "Where TFDS keeps its data.")
flags.DEFINE_string("out", "runs/benchmarks/batch_norm.json", "Where the result goes.")

L = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
_EVALUATED = 500


class Data(NamedTuple):
    """Arrays."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


class Case(NamedTuple):
    """A net on data."""

    net: Callable[[tuple[int, ...]], keras.Model]
    data: Callable[[], Data]
    steps: int
    optimizer: str
    rates: tuple[float, ...]
    augments: bool = False


# Data and nets ------------------------------------------------------------------------------


def made_up() -> Data:
    """Half of them to train on."""
    x, y, _ = runs.largest_sums(16_000)
    y = y.astype(np.int32)
    return Data(x[:8000], y[:8000], x[8000:], y[8000:])


@functools.cache
def images(name: str, most: int = 0, halved: bool = False) -> Data:
    """A data set of images; of --short a few that say nothing.

    Args:
        most: images to train on; all by default. halved: in both directions, by means of 2 x 2.
    """
    if FLAGS.short:
        rng = np.random.default_rng(0)
        shape = (32, 32, 3) if name == "cifar10" else (28, 28, 1)
        x, y = rng.random((256, *shape), np.float32), rng.integers(10, size=256)
        return Data(x, y, x, y)
    data = datasets.load(name, FLAGS.data_dir)
    parts: list[np.ndarray] = []
    for split in (data.train, data.test):
        columns = zip(*split.batch(1024).as_numpy_iterator())
        parts += (np.concatenate(column) for column in columns)
    x, y, x_test, y_test = parts
    if halved:
        x, x_test = (_halved(part) for part in (x[: most or None], x_test))
    return Data(x[: most or None], y[: most or None], x_test, y_test)


def _halved(x: np.ndarray) -> np.ndarray:
    count, height, width, channels = x.shape
    return x.reshape(count, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


def _normalized() -> list[keras.layers.Layer]:
    return [L.BatchNormalization(), L.ReLU()]


def mlp(shape) -> keras.Model:
    hidden = [[L.Dense(128, use_bias=False), *_normalized()] for _ in range(2)]
    return keras.Sequential([keras.Input(shape), *sum(hidden, []), L.Dense(5)])


def conv(shape) -> keras.Model:
    hidden = [[L.Conv2D(width, 3, 2, use_bias=False), *_normalized()] for width in (16, 32)]
    last = [L.Flatten(), L.Dense(64, use_bias=False), *_normalized(), L.Dense(10)]
    return keras.Sequential([keras.Input(shape), *sum(hidden, []), *last])


def resnet_8(shape) -> keras.Model:
    """Three blocks of two convolutions (He et al. 2016)."""
    inputs = keras.Input(shape)
    convolution = functools.partial(
        L.Conv2D, padding="same", use_bias=False, kernel_initializer="he_normal"
    )
    hidden = L.ReLU()(L.BatchNormalization()(convolution(16, 3)(inputs)))
    for width, stride in ((16, 1), (32, 2), (64, 2)):
        inner = L.ReLU()(L.BatchNormalization()(convolution(width, 3, strides=stride)(hidden)))
        inner = L.BatchNormalization()(convolution(width, 3)(inner))
        if stride > 1:
            hidden = L.BatchNormalization()(convolution(width, 1, strides=stride)(hidden))
        hidden = L.ReLU()(L.Add()([hidden, inner]))
    return keras.Model(inputs, L.Dense(10)(L.GlobalAveragePooling2D()(hidden)))


def _deep(name: str) -> Case:
    """A net of many layers, on images of 14 x 14 so that it takes minutes."""
    data = functools.partial(images, "mnist", 10_000, halved=True)
    return Case(functools.partial(of_trainers, name), data, 300, "momentum", (0.03,))


def of_trainers(name: str, shape) -> keras.Model:
    return nets.build(name, shape, 10)


CASES = {
    "mlp": Case(mlp, made_up, 1500, "sgd", (0.1, 0.3)),
    "conv": Case(conv, lambda: images("mnist"), 1000, "sgd", (0.1, 0.3)),
    "resnet_8": Case(resnet_8, lambda: images("cifar10"), 2000, "momentum", (0.03,), True),
    "wrn_10_1": Case(
        functools.partial(of_trainers, "wide_resnet_10_1"),
        lambda: images("cifar10", 10_000),
        1000,
        "momentum",
        (0.03,),
    ),
    "rotation_cnn": Case(
        functools.partial(of_trainers, "rotation_cnn"),
        lambda: images("mnist", 10_000),
        1000,
        "momentum",
        (0.03,),
    ),
    "wrn_28_2": _deep("wide_resnet"),
    "resnet_18": _deep("resnet18"),
}
_DEEP = ("wrn_28_2", "resnet_18")
OPTIMIZERS = {
    "sgd": keras.optimizers.SGD,
    "momentum": functools.partial(keras.optimizers.SGD, momentum=0.9),
    "adam": keras.optimizers.Adam,
}


# Ways ---------------------------------------------------------------------------------------


class Way(NamedTuple):
    """Of batch normalization and of drawing.

    Attributes:
        layer: the class of all batch normalization. adapts: whether ISModel converts it.
        draws: whether batches are drawn. scorer: None for the upper bound.
        sampler: in place of a pre-sample, a memory.
    """

    layer: type
    adapts: bool
    draws: bool
    scorer: Callable | None = None
    sampler: Callable[[], tfi.samplers.Sampler] | None = None


WAYS = {
    "uniform": Way(L.BatchNormalization, False, False),
    "control": Way(L.BatchNormalization, True, True, runs.equal_scores),
    "weighted": Way(tfi.layers.BatchNormalization, False, True),
    "ordinary": Way(L.BatchNormalization, False, True),
    "adapted": Way(L.BatchNormalization, True, True),
    "memory": Way(L.BatchNormalization, True, True, sampler=tfi.samplers.RAIS),
}
_BY_DEFAULT = tuple(WAYS)[:5]


class Run(NamedTuple):
    """One training; its numbers at the end."""

    net: str
    rate: float
    way: str
    steps: int
    seed: int
    loss: float
    error: float


def train(name: str, rate: float, way: str, steps: int, seed: int) -> Run:
    """Train a net: its loss on the training data and its error on the test's, in inference."""
    case, (layer, adapts, draws, scorer, make_sampler) = CASES[name], WAYS[way]
    data = case.data()
    keras.utils.set_random_seed(seed)
    net = case.net(data.x.shape[1:])
    for one in net._flatten_layers():
        if isinstance(one, L.BatchNormalization):
            # The weighted layer has no state of its own, so an instance becomes one by its class.
            one.__class__ = layer
    schedule = keras.optimizers.schedules.PolynomialDecay(rate, steps, 0.0)
    optimizer = OPTIMIZERS[FLAGS.optimizer or case.optimizer](schedule)
    batches = tf.data.Dataset.from_tensor_slices((data.x, data.y)).shuffle(len(data.y)).repeat()
    if case.augments:
        seeds = tf.data.Dataset.random()
        batches = tf.data.Dataset.zip((batches, seeds)).map(_augmented)
    model = net
    if draws:
        model = tfi.ISModel(net, adapt_batch_normalization=adapts)
    sampler = {} if make_sampler is None else {"sampler": make_sampler()}
    model.compile(optimizer, LOSS, **sampler)
    if sampler:
        batches = tfi.history_sample(data[:2], sampler["sampler"], FLAGS.batch_size).repeat()
    elif draws:
        size = FLAGS.factor * FLAGS.batch_size
        sampled = tfi.importance_sample(
            model, FLAGS.batch_size, size, tau_threshold="always", smoothing=0.2, scorer=scorer
        )
        batches = batches.apply(sampled)
    else:
        batches = batches.batch(FLAGS.batch_size)
    model.fit(batches, steps_per_epoch=steps, verbose=0, shuffle=None)
    loss, _ = _evaluated(net, data.x, data.y)
    _, error = _evaluated(net, data.x_test, data.y_test)
    keras.backend.clear_session()
    return Run(name, rate, way, steps, seed, loss, error)


def _augmented(example, seed: tf.Tensor):
    x, y = example
    return augmentation.flip_crop(x, tf.stack([seed, seed])), y


def _evaluated(net: keras.Model, x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Loss and error in inference."""
    outputs = tf.function(lambda batch: net(batch, training=False), autograph=False)
    parts = [outputs(x[i : i + _EVALUATED]) for i in range(0, len(x), _EVALUATED)]
    logits = np.concatenate([np.asarray(part, np.float64) for part in parts])
    losses = keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)
    loss = float(np.mean(np.asarray(losses)))
    return loss if math.isfinite(loss) else 1e9, float(np.mean(logits.argmax(1) != y))


def scoring_cost(name: str) -> float:
    """Seconds of a forward pass of B over those of a uniform step of b."""
    case = CASES[name]
    data = case.data()
    net = case.net(data.x.shape[1:])
    net.compile(OPTIMIZERS[case.optimizer](0.0), LOSS)
    size = FLAGS.factor * FLAGS.batch_size
    batch = tuple(tf.constant(part[: FLAGS.batch_size]) for part in data[:2])
    x = tf.constant(data.x[:size])
    step = tf.function(net.train_step, reduce_retracing=True)
    forward = tf.function(lambda: net(x, training=False))
    repeats = 1 if FLAGS.short else 20
    rounds = 1 if FLAGS.short else 7
    return measure.scoring_cost(lambda: step(batch), forward, repeats, rounds)


# All of it ----------------------------------------------------------------------------------


def _told(run: Run) -> str:
    return f"{' '.join(map(str, run[:5]))}: {run.loss:.4g}, {100 * run.error:.2f} %"


def row(found: list[Run], base: float) -> dict[str, Any]:
    """Medians, and the range of the loss, of runs that differ by their seeds."""
    losses = sorted(run.loss for run in found)
    median = statistics.median(losses)
    return {
        "loss": median,
        "losses": [losses[0], losses[-1]],
        "of_uniform": round(median / base, 3),
        "error": statistics.median(run.error for run in found),
    }


def compared(name: str, rate: float, cost: float, kept: runs.Runs) -> dict[str, dict[str, Any]]:
    """Of each way its numbers after as many steps, and of drawn ones at equal cost."""
    steps = FLAGS.steps or CASES[name].steps
    ways = ["uniform", *(way for way in FLAGS.ways or _BY_DEFAULT if way != "uniform")]
    found, base = {}, 0.0
    for way in ways:
        made = [kept.get(name, rate, way, steps, seed) for seed in range(FLAGS.seeds)]
        base = base or statistics.median(run.loss for run in made)
        found[way] = row(made, base)
        if WAYS[way].draws and WAYS[way].sampler is None and FLAGS.equal_cost:
            fewer = round(steps / (1 + cost))
            made = [kept.get(name, rate, way, fewer, seed) for seed in range(FLAGS.seeds)]
            found[way]["at_equal_cost"] = row(made, base)
    return found


def markdown(result: dict[str, Any]) -> str:
    """A table: of each net and rate a row for each way."""
    rows = []
    for case, one in result.items():
        for way, found in one["ways"].items():
            shorter = found.get("at_equal_cost")
            rows.append({"net, rate": case, "way": way, **_text(found), **_text(shorter, "cost")})
    return figures.markdown(rows)


def _text(found: dict[str, Any] | None, cost: str = "steps") -> dict[str, str]:
    keys = [f"{what}, equal {cost}" for what in ("train loss (range)", "of uniform", "test error")]
    if found is None:
        return dict.fromkeys(keys, "")
    low, high = found["losses"]
    texts = (
        f"{found['loss']:.4f} ({low:.4f} to {high:.4f})",
        f"{found['of_uniform']:.2f}",
        f"{100 * found['error']:.2f} %",
    )
    return dict(zip(keys, texts))


def main(_) -> None:
    tf.get_logger().setLevel("ERROR")
    command.shorten(nets=["mlp"], steps=4, seeds=1)
    unknown = {*FLAGS.nets} - {*CASES} | {*FLAGS.ways} - {*WAYS}
    if unknown:
        raise app.UsageError(
            f"unknown: {', '.join(sorted(unknown))}; nets are {', '.join(CASES)}, ways "
            f"{', '.join(WAYS)}."
        )
    out = pathlib.Path(FLAGS.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    settings = f"{FLAGS.optimizer or 'own'}_{FLAGS.batch_size}_{FLAGS.factor}"
    path = out.with_name(f"{out.stem}_{settings}.jsonl")
    kept = runs.Runs(path, Run, train, _told)
    # Measured once: how many steps are made at equal cost goes by it.
    of_costs = path.with_suffix(".costs.json")
    costs = json.loads(of_costs.read_text()) if of_costs.exists() else {}
    result: dict[str, Any] = {}
    for name in FLAGS.nets or [name for name in CASES if name not in _DEEP]:
        cost = costs[name] = costs.get(name) or round(scoring_cost(name), 3)
        of_costs.write_text(json.dumps(costs))
        print(f"{name}: scoring costs {cost:.2f} steps", flush=True)
        for rate in [float(text) for text in FLAGS.rates] or CASES[name].rates:
            ways = compared(name, rate, cost, kept)
            result[f"{name}, {rate:g}"] = {"scoring": round(cost, 3), "ways": ways}
    measure.write(FLAGS.out, {"settings": settings, "results": result})
    print(markdown(result))


if __name__ == "__main__":
    app.run(main)
