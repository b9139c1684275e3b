"""What older scores cost: python -m benchmarks.blocks

Final training losses of an MLP on the digits after equal steps, by a sampler that plans blocks of
K batches, over those with K = 1: medians and ranges over seeds. Of 1,797 examples 32 batches of 32
are more than a half; by default K is 3 there.
"""

from __future__ import annotations

import statistics

import keras
import numpy as np
from absl import app, flags
from sklearn.datasets import load_digits

import tf_importance as tfi
from benchmarks import command, measure

FLAGS = flags.FLAGS
flags.DEFINE_integer("steps", 2000, "Steps of each run.")
flags.DEFINE_integer("batch_size", 32, "b.")
flags.DEFINE_float("learning_rate", 0.1, "Of SGD, constant.")
flags.DEFINE_integer("seeds", 5, "Runs of each kind.")
flags.DEFINE_list("blocks", ["1", "8", "32"], "K.")
flags.DEFINE_list("samplers", ["RAIS", "Proportional"], "Of tfi.samplers.")
flags.DEFINE_string("out", "runs/benchmarks/blocks.json", "Where the result goes.")


def final(kind: str, block: int, seed: int) -> float:
    """The loss of all training examples after the steps."""
    keras.utils.set_random_seed(seed)
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    layers = [keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10)]
    model = tfi.ISModel(keras.Sequential([keras.Input((64,)), *layers]))
    rate = tfi.schedules.GainAdapted(FLAGS.learning_rate)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    sampler = getattr(tfi.samplers, kind)()
    model.compile(keras.optimizers.SGD(rate), loss, sampler=sampler)
    batches = tfi.history_sample((x, y), sampler, FLAGS.batch_size, block=block, seed=seed)
    model.fit(batches.repeat(), steps_per_epoch=FLAGS.steps, verbose=0, shuffle=False)
    return float(model.evaluate(x, y, verbose=0))


def main(_) -> None:
    command.shorten(steps=4, seeds=1)
    result = {}
    for kind in FLAGS.samplers:
        losses = {
            block: [final(kind, int(block), seed) for seed in range(FLAGS.seeds)]
            for block in FLAGS.blocks
        }
        least = statistics.median(losses[FLAGS.blocks[0]])
        result[kind] = {
            block: {
                "median": statistics.median(found),
                "over_first": round(statistics.median(found) / least, 3),
                "losses": found,
            }
            for block, found in losses.items()
        }
        for block, found in result[kind].items():
            print(f"{kind}, K = {block}: {found['median']:.3g}, {found['over_first']} of K = 1's")
        keras.backend.clear_session()
    measure.write(FLAGS.out, result)


if __name__ == "__main__":
    app.run(main)
