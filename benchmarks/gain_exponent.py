"""Which power of the gain belongs into the learning rate: python -m benchmarks.gain_exponent

η = r^e · schedule(t̂), t̂ ← t̂ + r. If e is right, drawn batches reach at t̂ = N the training loss that
uniform ones reach after N steps, and so in fewer steps. For each optimizer, at a learning rate from
its own grid: the loss at t̂ = N over uniform's at N, median and range over seeds, for several e. All
runs draw always, so that nothing depends on the machine. A ratio above 1 says that t̂ ran ahead of
what was learned, one far below that it lagged behind.
"""

from __future__ import annotations

import functools
import math
import statistics

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from sklearn.datasets import load_digits

import tf_importance as tfi
from benchmarks import command, measure

FLAGS = flags.FLAGS
flags.DEFINE_integer("steps", 2000, "N.")
flags.DEFINE_integer("batch_size", 16, "b; B is four times that.")
flags.DEFINE_integer("seeds", 3, "Runs of each kind.")
flags.DEFINE_list("exponents", ["0", "0.25", "0.5", "0.75", "1"], "e.")
flags.DEFINE_list("optimizers", ["sgd", "momentum", "adam", "rmsprop"], "Optimizers.")
flags.DEFINE_string("out", "runs/benchmarks/gain_exponent.json", "Where the result goes.")

L = keras.layers
OPTIMIZERS = {
    "sgd": (keras.optimizers.SGD, 0.1),
    "momentum": (functools.partial(keras.optimizers.SGD, momentum=0.9), 0.01),
    "adam": (keras.optimizers.Adam, 0.001),
    "rmsprop": (keras.optimizers.RMSprop, 0.001),
}


class Until(keras.callbacks.Callback):
    """Ends training at t̂ = N."""

    def __init__(self, schedule: tfi.schedules.GainAdapted, steps: int) -> None:
        super().__init__()
        self._schedule, self._steps = schedule, steps
        self.made = 0

    def on_train_batch_end(self, batch, logs=None) -> None:
        self.made += 1
        if float(self._schedule.following) >= self._steps:
            self.model.stop_training = True


def final(make_optimizer, rate: float, exponent: float | None, seed: int) -> tuple[float, int]:
    """Training loss at t̂ = N, and the steps made; uniform batches without an exponent."""
    keras.utils.set_random_seed(seed)
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    hidden = [L.Dense(128, activation="relu") for _ in range(2)]
    net = keras.Sequential([keras.Input((64,)), *hidden, L.Dense(10)])
    decay = keras.optimizers.schedules.PolynomialDecay(rate, FLAGS.steps, 0.01 * rate)
    # An exponent of 0 is a rate that does not follow; its t̂ does.
    schedule = tfi.schedules.GainAdapted(decay, exponent or 1e-6, ceiling=math.inf)
    model = tfi.ISModel(net)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(make_optimizer(schedule), loss)
    switch = tfi.switches.Never() if exponent is None else tfi.switches.Always()
    b = FLAGS.batch_size
    batches = (
        tf.data.Dataset.from_tensor_slices((x, y))
        .repeat()
        .shuffle(len(x), seed=seed)
        .apply(
            tfi.importance_sample(
                model, b, 4 * b, switch=switch, resampling="systematic", smoothing=0.2, seed=seed
            )
        )
    )
    until = Until(schedule, FLAGS.steps)
    model.fit(batches, steps_per_epoch=FLAGS.steps * 2, verbose=0, shuffle=False, callbacks=[until])
    logits = net(x)
    losses = keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)
    keras.backend.clear_session()
    return float(np.mean(losses)), until.made


def main(_) -> None:
    command.shorten(steps=10, seeds=1, exponents=["1"], optimizers=["sgd", "adam"])
    result: dict[str, dict] = {}
    for name in FLAGS.optimizers:
        make_optimizer, rate = OPTIMIZERS[name]
        uniform = [final(make_optimizer, rate, None, seed)[0] for seed in range(FLAGS.seeds)]
        result[name] = {"learning_rate": rate, "uniform": uniform}
        for text in FLAGS.exponents:
            runs = [final(make_optimizer, rate, float(text), s) for s in range(FLAGS.seeds)]
            ratios = [loss / base for (loss, _), base in zip(runs, uniform)]
            result[name][text] = {
                "ratio": round(statistics.median(ratios), 3),
                "ratios": sorted(round(ratio, 3) for ratio in ratios),
                "steps": statistics.median(steps for _, steps in runs),
            }
            print(f"{name}, e = {text}: {result[name][text]}", flush=True)
    measure.write(FLAGS.out, result)


if __name__ == "__main__":
    app.run(main)
