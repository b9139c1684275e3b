"""Is the gain that training logs the true one: python -m benchmarks.honest_gain [--cases=…]

A net is trained uniformly and then frozen: its optimizer adds up ‖g‖² of the last layers and
changes nothing. The true gain is the mean over uniform batches over that of drawn ones, both
through `fit` (b = 32, B = 128, smoothing 0.2); the logged one is that of the drawn training.

Streams are drawn by fresh scores, multinomial; memories after a first pass and what is learned
behind it, the last half of their steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import tf_importance as tfi
from benchmarks import command, measure, runs
from reports import figures

FLAGS = flags.FLAGS
L = keras.layers
SIZE, PRESAMPLE, STEPS = 32, 128, 500
X, Y, RNG = runs.largest_sums(4000)
NOISY = np.where(RNG.random(4000) < 0.3, RNG.integers(0, 5, 4000), Y)
SEQUENCES = RNG.normal(size=(4000, 8, 6)).astype("float32")
TAGS = (np.cumsum(SEQUENCES[..., 0], 1) > 0).astype(int)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def mlp(*middle, **options):
    first = L.Dense(64, "relu", **options)
    return keras.Sequential([keras.Input((20,)), first, *middle, L.Dense(5)])


def augmented():
    noisy = [L.GaussianNoise(0.5), L.Dense(64, "relu")]
    return keras.Sequential([keras.Input((20,)), *noisy, L.Dense(5)])


def tagger(dropout=0.0):
    recurrent = L.GRU(12, return_sequences=True, recurrent_dropout=dropout)
    return keras.Sequential([keras.Input((8, 6)), recurrent, L.Dense(2)])


def convolutional():
    folded = [L.Reshape((5, 4, 1)), L.Conv2D(16, 3, use_bias=False), L.BatchNormalization()]
    return keras.Sequential([keras.Input((20,)), *folded, L.ReLU(), L.Flatten(), L.Dense(5)])


def two_outputs():
    inputs = keras.Input((20,))
    hidden = L.Dense(64, "relu")(inputs)
    return keras.Model(inputs, [L.Dense(5)(hidden), L.Dense(5)(hidden)])


def mixed():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        return mlp()
    finally:
        keras.mixed_precision.set_global_policy("float32")


class Stream(NamedTuple):
    """A net, its data, what it is scored by, and whether the logged gain is near the true one."""

    net: Callable[[], keras.Model]
    x: np.ndarray
    y: np.ndarray
    scorer: Callable | None
    near: bool


STREAMS = {
    "plain": Stream(mlp, X, Y, None, True),
    "label noise": Stream(mlp, X, NOISY, None, True),
    "loss scorer": Stream(mlp, X, Y, tfi.scorers.loss, True),
    "dropout": Stream(lambda: mlp(L.Dropout(0.5)), X, Y, None, False),
    "noise in the net": Stream(augmented, X, Y, None, False),
    "batch norm": Stream(lambda: mlp(L.BatchNormalization()), X, Y, None, False),
    "weighted batch norm": Stream(lambda: mlp(tfi.layers.BatchNormalization()), X, Y, None, False),
    "constant scorer": Stream(mlp, X, Y, runs.equal_scores, False),
    "conv, batch norm": Stream(convolutional, X, Y, None, False),
    "two outputs": Stream(two_outputs, X, Y, None, True),
    "mixed precision": Stream(mixed, X, Y, None, True),
    "tagging": Stream(tagger, SEQUENCES, TAGS, None, False),
    "recurrent dropout": Stream(lambda: tagger(0.5), SEQUENCES, TAGS, None, False),
}


class Record(keras.optimizers.SGD):
    """Changes no weight; adds up ‖g‖² of some variables."""

    def watch(self, variables):
        self.total = tf.Variable(0.0)
        both = [part for one in variables for part in (one, getattr(one, "value", one))]
        self.watched = [id(part) for part in both]

    def update_step(self, gradient, variable, *rest):
        if id(variable) in self.watched:
            self.total.assign_add(tf.reduce_sum(tf.cast(gradient, tf.float32) ** 2))


def stream(x, y):
    return tf.data.Dataset.from_tensor_slices((x, y)).shuffle(4000, seed=1).repeat()


def trained(make, x, y):
    """A net after 800 uniform steps; all of its outputs are of the same labels."""
    keras.utils.set_random_seed(0)
    net = make()
    net.compile(keras.optimizers.SGD(0.2), [LOSS] * len(net.outputs))
    data = stream(x, y).batch(SIZE)
    if len(net.outputs) > 1:
        data = data.map(lambda x, y: (x, (y,) * len(net.outputs)))
    net.fit(data, steps_per_epoch=800, verbose=0, shuffle=None)
    return net


def frozen(net, rate, data_of, steps=STEPS, sampler=None):
    """‖g‖² of each step, and the logs, of a fit that trains nothing."""
    model, optimizer, seen = tfi.ISModel(net), Record(rate), []
    model.compile(optimizer, [LOSS] * len(net.outputs), sampler=sampler)
    optimizer.watch(net.trainable_variables[-2 * len(net.outputs) :])
    noted = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(float(optimizer.total))
    )
    history = model.fit(
        data_of(model), steps_per_epoch=steps, verbose=0, shuffle=None, callbacks=[noted]
    ).history
    return np.diff(seen, prepend=0.0)[50:], history


def drawn_by(x, y, threshold, scorer=None, outputs=1):
    def data_of(model):
        sampled = tfi.importance_sample(
            model, SIZE, PRESAMPLE, tau_threshold=threshold, scorer=scorer, smoothing=0.2, seed=1
        )
        data = stream(x, y)
        if outputs > 1:
            data = data.map(lambda x, y: (x, (y,) * outputs))
        return data.apply(sampled)

    return data_of


def true_gain(uniform, drawn):
    """The ratio of the means, and its standard error."""
    true = uniform.mean() / drawn.mean()
    error = true * np.hypot(*(g.std() / g.mean() / len(g) ** 0.5 for g in (uniform, drawn)))
    return true, error


S = tfi.samplers


def rais():
    return S.RAIS(training_set_size=4000)


class Memory(NamedTuple):
    """A net, its sampler, B of fresh scores over it or None, and whether as above."""

    net: Callable[[], keras.Model]
    sampler: Callable[[], tfi.samplers.Sampler]
    presample_size: int | None
    near: bool


MEMORIES = {
    "RAIS": Memory(mlp, rais, None, True),
    "RAIS, dropout": Memory(lambda: mlp(L.Dropout(0.5)), rais, None, False),
    "RAIS, batch norm": Memory(lambda: mlp(L.BatchNormalization()), rais, None, False),
    "RAIS, then fresh": Memory(mlp, rais, 96, True),
    "Uniform, then fresh": Memory(mlp, S.Uniform, 96, True),
    "Proportional": Memory(mlp, S.Proportional, None, True),
    "Proportional, biased": Memory(mlp, lambda: S.Proportional(beta=0.4), None, True),
    "Proportional, biased, then fresh": Memory(mlp, lambda: S.Proportional(beta=0.4), 96, False),
    "Proportional, normalized": Memory(mlp, lambda: S.Proportional(normalize=True), None, False),
    "RankBased, without weights": Memory(mlp, lambda: S.RankBased(beta=0.0), None, True),
}


class Found(NamedTuple):
    """The gain that was logged, the true one and its standard error, and the share of drawn."""

    logged: float
    true: float
    error: float
    importance: float
    near: bool


def measured(name: str, factor: int = 1) -> Found:
    """Of a case, by so many times the least number of steps."""
    following = tfi.schedules.GainAdapted(1e-3, ceiling=1e9)
    if name in STREAMS:
        make, x, y, scorer, near = STREAMS[name]
        net = trained(make, x, y)
        never = drawn_by(x, y, "never", outputs=len(net.outputs))
        always = drawn_by(x, y, "always", scorer, len(net.outputs))
        uniform, _ = frozen(net, 1e-3, never, factor * STEPS)
        drawn, history = frozen(net, following, always, factor * STEPS)
    else:
        make, sampler, presample, near = MEMORIES[name]
        net = trained(make, X, Y)

        def remembered(model):
            fresh = {} if presample is None else {"presample_size": presample, "model": model}
            return tfi.history_sample((X, Y), model.sampler, SIZE, seed=1, **fresh).repeat()

        uniform, _ = frozen(net, 1e-3, drawn_by(X, Y, "never"), factor * STEPS)
        drawn, history = frozen(net, following, remembered, 2 * factor * STEPS, sampler())
        drawn = drawn[-factor * STEPS :]
    return Found(history["gain"][-1], *true_gain(uniform, drawn), history["importance"][-1], near)


def main(_) -> None:
    tf.get_logger().setLevel("ERROR")
    command.shorten(cases=["plain"], factor=1)
    known = [*STREAMS, *MEMORIES]
    unknown = {*FLAGS.cases} - {*known}
    if unknown:
        raise app.UsageError(f"unknown: {', '.join(unknown)}; cases are {', '.join(known)}.")
    result: dict[str, Any] = {}
    for name in FLAGS.cases or known:
        found = measured(name, FLAGS.factor)
        result[name] = found._asdict()
        print(f"  {name}: {found.logged:.2f}, {found.true:.2f} ± {found.error:.2f}", flush=True)
    measure.write(FLAGS.out, result)
    rows = [
        {
            "case": name,
            "logged": f"{found['logged']:.2f}",
            "true": f"{found['true']:.2f} ± {found['error']:.2f}",
        }
        for name, found in result.items()
    ]
    print(figures.markdown(rows))


if __name__ == "__main__":
    # Not before: the tests have these cases in one process with the trainers' flags.
    flags.DEFINE_list("cases", [], "Of streams and memories; all by default.")
    flags.DEFINE_integer("factor", 2, "Times the steps that the tests make.")
    flags.DEFINE_string("out", "runs/benchmarks/honest_gain.json", "Where the result goes.")
    app.run(main)
