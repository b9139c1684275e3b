"""What variance reduction by snapshots costs: python -m benchmarks.reduced_step_cost

In one process and interleaved, on an MLP:

(a) steps: a step of SVRG and of Katyusha between two snapshots / a plain Keras step. Two gradients
    are computed, so about 2 is expected.
(b) snapshot: the pass over all data / the plain Keras steps of one epoch.
"""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import tf_importance as tfi
from benchmarks import command, measure

FLAGS = flags.FLAGS
flags.DEFINE_integer("batch_size", 128, "b, examples in a step.")
flags.DEFINE_integer("examples", 8192, "n.")
flags.DEFINE_integer("steps", 64, "Steps of one timing.")
flags.DEFINE_integer("rounds", 15, "Rounds; each times every variant once.")
flags.DEFINE_string("out", "runs/benchmarks/reduced_step_cost.json", "Where the result goes.")


def mlp() -> keras.Model:
    layers = [keras.layers.Dense(256, activation="relu") for _ in range(2)]
    return keras.Sequential([keras.Input([784]), *layers, keras.layers.Dense(10)])


def compiled(model: keras.Model) -> keras.Model:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1e-3), loss, metrics=["accuracy"])
    return model


def main(_) -> None:
    command.shorten(batch_size=16, examples=64, steps=4, rounds=1)
    rng = np.random.default_rng(0)
    examples = rng.normal(size=[FLAGS.examples, 784]).astype(np.float32)
    labels = rng.integers(10, size=FLAGS.examples)
    once = tf.data.Dataset.from_tensor_slices((examples, labels)).batch(FLAGS.batch_size)
    batches = once.repeat()
    # More steps than are made: no snapshot falls into a timing.
    never = FLAGS.steps * (FLAGS.rounds + 2)
    plain = compiled(mlp())
    svrg = compiled(tfi.variance_reduced.SVRG(mlp(), once, inner_steps=never))
    katyusha = compiled(tfi.variance_reduced.Katyusha(mlp(), once, inner_steps=never))
    snapshots = compiled(tfi.variance_reduced.SVRG(mlp(), once, inner_steps=never))
    rounds = measure.interleaved(
        {
            "plain": lambda: measure.fit_seconds(plain, batches, FLAGS.steps),
            "svrg": lambda: measure.fit_seconds(svrg, batches, FLAGS.steps),
            "katyusha": lambda: measure.fit_seconds(katyusha, batches, FLAGS.steps),
            "snapshot": lambda: measure.call_seconds(snapshots.take_snapshot, 1),
        },
        FLAGS.rounds,
        print,
    )
    epoch = FLAGS.examples / FLAGS.batch_size
    result = {
        "batch_size": FLAGS.batch_size,
        "examples": FLAGS.examples,
        "svrg_step": measure.summary([r["svrg"] / r["plain"] for r in rounds]),
        "katyusha_step": measure.summary([r["katyusha"] / r["plain"] for r in rounds]),
        "snapshot": measure.summary([r["snapshot"] / (epoch * r["plain"]) for r in rounds]),
    }
    print(result)
    measure.write(FLAGS.out, result)
    print(f"written to {FLAGS.out}")


if __name__ == "__main__":
    app.run(main)
