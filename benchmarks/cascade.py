"""What a cascade gains, and at what cost: python -m benchmarks.cascade

ResNet-8 is trained by uniform batches on CIFAR-10, on MNIST, and on MNIST's 8 among other digits,
thinned to 1 % ("rare"). At a few moments the gradients of all examples, by the weights of the last
layer, are taken, and batches are drawn from them as training would draw: uniformly; b of B by the
net's own scores; and by a cascade, B of F by a cheap first score, of these b by the net's own. r is
E‖g‖² of uniform batches over that of drawn ones. A step costs 1 and what scoring takes, in uniform
steps, measured in turn with them. r over the cost is how much faster training would be where the
learning rate follows the gain.

First scores: "small net", an MLP trained beside it; "half size", the net itself on images of half
the size; "stale", the net as it was so many steps ago: by its own pass, and "remembered", as if
that had cost nothing; "class", the mean of these over each class; "none", all alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import tf_importance as tfi
from benchmarks import command, measure, tasks
from reports import figures
from tf_importance import cascade, fresh, proposals

FLAGS = flags.FLAGS
flags.DEFINE_integer("batch_size", 32, "b.")
flags.DEFINE_list("steps", ["300", "1000", "3000"], "Moments of the training.")
flags.DEFINE_integer("staleness", 150, "Steps since the stale scores.")
flags.DEFINE_integer("examples", 5000, "Of the data; four times as many where a class is rare.")
flags.DEFINE_list("tasks", ["cifar10", "mnist", "rare"], "Tasks; digits, too.")
flags.DEFINE_integer("draws", 2000, "Batches by which E‖g‖² is estimated.")
flags.DEFINE_integer("rounds", 7, "Timings of each pass.")
flags.DEFINE_string("data_dir", None, "Where TFDS keeps MNIST and CIFAR-10.")
flags.DEFINE_string("out", "runs/benchmarks/cascade.json", "Where the result goes.")

_FIRST, _SECOND = 12, (2, 4)  # F and B, in batches
_SMOOTHING = 0.2


def model_of(net: keras.Model) -> tfi.ISModel:
    model = tfi.ISModel(net)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.03, momentum=0.9), loss)
    return model


def half_size(x: tf.Tensor) -> tf.Tensor:
    return tf.nn.avg_pool2d(x, 2, 2, "VALID")


def scorer_of(model: tfi.ISModel, change: Callable = tf.identity) -> Callable:
    return tf.function(
        lambda x, y: tfi.scorers.upper_bound(model, change(x), y), reduce_retracing=True
    )


def of_all(score: Callable, data: tasks.Data) -> np.ndarray:
    """[n] scores."""
    parts = tf.data.Dataset.from_tensor_slices((data.x, data.y)).batch(500)
    return np.concatenate([score(x, y).numpy() for x, y in parts])


def gradients(net: keras.Model, data: tasks.Data) -> np.ndarray:
    """[n, (d + 1) k] of each example, by the last layer's weights, in inference."""
    inputs = keras.Model(net.inputs, net.layers[-1].input).predict(data.x, 500, verbose=0)
    logits = net.predict(data.x, 500, verbose=0)
    deltas = tf.nn.softmax(logits).numpy()
    deltas[np.arange(len(data.y)), data.y] -= 1
    with_bias = np.concatenate([inputs, np.ones([len(inputs), 1], np.float32)], axis=1)
    return np.einsum("nd,nk->ndk", with_bias, deltas).reshape(len(deltas), -1)


def squares(rows: np.ndarray, batch: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]) -> float:
    """E‖g‖² of batches: seeds -> (indices, weights) [b] each."""
    rows = tf.constant(rows)

    def one(seed):
        indices, weights = batch(tf.stack([seed, 1]))
        mean = tf.tensordot(weights, tf.gather(rows, indices), 1) / FLAGS.batch_size
        return tf.reduce_sum(mean**2)

    run = tf.function(lambda: tf.map_fn(one, tf.range(FLAGS.draws), fn_output_signature=tf.float32))
    return float(tf.reduce_mean(run()))


def drawn_from(scores: np.ndarray, first: np.ndarray | None, wide: int, size: int) -> Callable:
    """b of B by their scores; B of F by first scores where there are any."""
    scores = tf.constant(scores)
    way = fresh.Way(
        lambda x, y, w: fresh.Scores(tf.gather(scores, x), tf.zeros([0])),
        _SMOOTHING,
        proposals.systematic,
        FLAGS.batch_size,
    )
    cheap = None if first is None else tf.constant(first)

    def batch(seed):
        group = tf.random.stateless_uniform([wide], seed, 0, len(scores), tf.int32)
        ones = tf.ones([wide])
        presample = fresh.Group(group, ones, ones, ones)
        if cheap is not None:
            chances = cascade.probabilities(tf.gather(cheap, group), size)
            places = cascade.chosen(chances, size, seed + 1)
            presample = fresh.taken(presample, places, cascade.counts(chances, size))
        drawn, _ = way.drawn(presample, way.scored(presample).proposal, seed + 2)
        return drawn.inputs[0], drawn.weights[0]

    return batch


def seconds_of(function: Callable, *arguments: Any) -> Callable[[], float]:
    """Processor seconds of a call, by 5 of them."""

    def timed() -> float:
        start = time.process_time()
        for _ in range(5):
            function(*arguments)
        return (time.process_time() - start) / 5

    return timed


def costs(net: tfi.ISModel, cheap: dict[str, Callable], data: tasks.Data) -> dict[str, float]:
    """Of scoring B by the net, and F by first scores, in uniform steps of b."""
    size = FLAGS.batch_size
    step = tf.function(lambda x, y: net.train_step((x, y)))
    x, y = (tf.constant(np.resize(part, [_FIRST * size, *part.shape[1:]])) for part in data[:2])
    own = scorer_of(net)
    timed = {"step": seconds_of(step, x[:size], y[:size])}
    timed |= {f"net, {k}": seconds_of(own, x[: k * size], y[: k * size]) for k in _SECOND}
    timed |= {name: seconds_of(score, x, y) for name, score in cheap.items()}
    found = measure.interleaved(timed, FLAGS.rounds, lambda line: None)
    return {
        name: statistics.median(one[name] / one["step"] for one in found)
        for name in timed
        if name != "step"
    }


def moment(
    net: keras.Model, firsts: dict[str, np.ndarray], own: np.ndarray, data: tasks.Data
) -> dict[str, float]:
    """r of each way of drawing."""
    rows, size = gradients(net, data), FLAGS.batch_size

    def uniform(seed):
        indices = tf.random.stateless_uniform([size], seed, 0, len(rows), tf.int32)
        return indices, tf.ones([size])

    of_uniform, found = squares(rows, uniform), {}
    for k in (*_SECOND, _FIRST):
        batch = drawn_from(own, None, k * size, k * size)
        found[f"scored, {k}b"] = of_uniform / squares(rows, batch)
    for name, first in firsts.items():
        for k in _SECOND:
            batch = drawn_from(own, first, _FIRST * size, k * size)
            found[f"{name}, {k}b"] = of_uniform / squares(rows, batch)
    return found


def rare() -> tasks.Data:
    """Is it an 8? One in a hundred is."""
    data = tasks.from_tfds("mnist")
    is_eight = data.y == 8
    first = np.flatnonzero(is_eight)[: max(1, FLAGS.examples // 25)]
    others = np.flatnonzero(~is_eight)[: 4 * FLAGS.examples - len(first)]
    chosen = np.random.default_rng(0).permutation(np.concatenate([first, others]))
    return data._replace(x=data.x[chosen], y=is_eight[chosen].astype(np.int32))


def data_of(task: str) -> tasks.Data:
    if task == "rare":
        return rare()
    if task == "digits":
        return tasks.digits()
    return tasks.first(tasks.from_tfds(task), FLAGS.examples)


def trained(data: tasks.Data) -> tuple[dict[int, dict[str, float]], dict[str, float]]:
    """r of each way of drawing at each moment, and what scoring costs."""
    keras.utils.set_random_seed(0)
    net, small = model_of(tasks.resnet_8(data)), model_of(tasks.mlp(data, units=(64,)))
    stale = model_of(tasks.resnet_8(data))
    # It ends in an average over all places, so that its weights serve any size.
    half = model_of(tasks.resnet_8(data._replace(x=half_size(data.x[:1]).numpy())))
    cheap = {
        "small net": scorer_of(small),
        "half size": scorer_of(half, half_size),
        "stale": scorer_of(stale),
    }
    examples = tf.data.Dataset.from_tensor_slices((data.x, data.y)).repeat()
    batches = iter(examples.shuffle(5000, seed=0).batch(FLAGS.batch_size))
    train = [tf.function(lambda x, y, m=m: m.train_step((x, y))) for m in (net, small)]
    moments, found = sorted(map(int, FLAGS.steps)), {}
    for number in range(1, moments[-1] + 1):
        x, y = next(batches)
        for step in train:
            step(x, y)
        if number + FLAGS.staleness in moments:
            stale.net.set_weights(net.net.get_weights())
        if number in moments:
            half.net.set_weights(net.net.get_weights())
            firsts = {name: of_all(score, data) for name, score in cheap.items()}
            of_class = [firsts["stale"][data.y == k].mean() for k in range(int(data.y.max()) + 1)]
            firsts["class"] = np.array(of_class, np.float32)[data.y]
            firsts["none"] = np.ones(len(data.y), np.float32)
            found[number] = moment(net.net, firsts, of_all(scorer_of(net), data), data)
            print(number, {name: round(r, 2) for name, r in found[number].items()}, flush=True)
    return found, costs(net, cheap, data) | {"class": 0.0, "none": 0.0}


def rows_of(gains: dict[int, dict[str, float]], cost: dict[str, float]) -> list[dict[str, str]]:
    """r and r over the cost at each moment, by what is drawn by."""
    rows = []
    for name in gains[max(gains)]:
        kind, size = name.rsplit(", ", 1)
        factor = int(size[:-1])
        of_net = 1 + cost[f"net, {_SECOND[-1]}"] * factor / _SECOND[-1]
        kinds = {kind: of_net + (0.0 if kind == "scored" else cost[kind])}
        if kind == "stale":
            kinds["remembered"] = of_net
        for what, total in kinds.items():
            cells = {
                f"{n} steps": f"{found[name]:.2f}, {found[name] / total:.2f}"
                for n, found in gains.items()
            }
            rows.append({"drawn by": what, "B": size, "cost": f"{total:.2f}", **cells})
    return rows


def main(_) -> None:
    command.shorten(
        steps=["2", "4"],
        staleness=1,
        examples=600,
        draws=20,
        rounds=1,
        batch_size=8,
        tasks=["digits"],
    )
    # Each way of drawing has a function of its own, which is traced.
    tf.get_logger().setLevel("ERROR")
    names = ("batch_size", "steps", "staleness", "examples")
    result = {"settings": {name: FLAGS[name].value for name in names}}
    for task in FLAGS.tasks:
        print(f"== {task}", flush=True)
        gains, cost = trained(data_of(task))
        result[task] = {"costs": cost, "gains": gains}
        measure.write(FLAGS.out, result)
        print(f"r, r/cost\n{figures.markdown(rows_of(gains, cost))}", flush=True)


if __name__ == "__main__":
    app.run(main)
