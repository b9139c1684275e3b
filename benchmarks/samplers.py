"""What planning and learning cost, as ratios: python -m benchmarks.samplers

In one process and interleaved, b = 128 from n = 10⁴ … 10⁷ examples in memory:

(a) `plan` and `learn` of a default block by `Proportional`, `RAIS` and `Inclusion`, for each
    example of it, and what `Inclusion` does once a pass, for each example of that; against a draw
    by `numpy.random.choice(p=…)` with an update of as many, and against cpprb's
    prioritized buffer (PyPI) and Reverb where they are installed. Bytes of a sampler's state per
    example.
(b) growth: the cost at the largest n over that at the smallest, and the exponent g of time ∝ n^g.
(c) RAIS: seconds of a training of c and d, and of the copy by which the new tree takes effect.
(d) overhead: a step of fit on batches that RAIS draws / on batches that `Uniform` draws, and on
    batches of an ordinary dataset, c and d being trained meanwhile; on the smallest CNN of
    `benchmarks.step_cost` and on the trainers' small one.
(e) speed: steps a second of CPU time of `fit` on what a sampler draws over plain Keras's on the
    arrays, 10⁶ rows of 20 numbers, an MLP of two layers.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import tf_importance as tfi
from benchmarks import command, measure
from benchmarks.nets import small_cnn
from tf_importance.draws import Seen
from tf_importance.samplers import Visit, sum_tree
from trainers import nets

FLAGS = flags.FLAGS
flags.DEFINE_list("sizes", ["10000", "100000", "1000000", "10000000"], "Values of n.")
flags.DEFINE_integer("batch_size", 128, "b.")
flags.DEFINE_integer("rounds", 7, "Rounds; each times every variant once.")
flags.DEFINE_integer("calls", 50, "Draws and updates of one timing.")
flags.DEFINE_integer("steps", 160, "Training steps of one timing of (d); ten times as many of (e).")
flags.DEFINE_integer("examples", 20_000, "Training examples of (d).")
flags.DEFINE_integer("rows", 1_000_000, "Training examples of (e); 0 leaves it out.")
flags.DEFINE_list("nets", ["smallest_cnn", "cnn"], "Nets of (d).")
flags.DEFINE_string("out", "runs/benchmarks/samplers.json", "Where the result goes.")


class Variant(NamedTuple):
    """What is timed.

    Attributes:
        call: draws, and takes up what was seen of the examples.
        examples: of a call.
        bytes: of a sampler's state, for each example of the data; None for others.
    """

    call: Callable[[], object]
    examples: int
    bytes: float | None = None


def ours(sampler: tfi.samplers.Sampler) -> Variant:
    """A block that is planned, and what its steps saw that is learned, as one graph."""
    b = FLAGS.batch_size
    block = sampler.default_block(b)
    seen = Seen(tf.random.uniform([block, b], 0.1, 1.0), tf.ones([block, 3]))

    @tf.function(autograph=False)
    def plan_and_learn():
        draws = sampler.plan(block, b, 0)
        sampler.journal.planned.assign_add(block)
        sampler.learn(draws, seen)
        return draws.weights

    state = sum(v.dtype.size * v.shape.num_elements() for v in sampler.variables)
    return Variant(plan_and_learn, block * b, state / sampler.num_examples)


def proportional(n: int) -> Variant:
    return ours(tfi.samplers.Proportional(n))


def rais(n: int) -> Variant:
    sampler = tfi.samplers.RAIS(n)
    # As after the training of c and d: the tree is full, and drawn from.
    rng = np.random.default_rng(0)
    sampler.uncertainty_set.assign(rng.random([2, 12]))
    leaves = rng.random([n, 2], np.float32)
    sampler.tree.assign(sum_tree.levels_of(leaves))
    return ours(sampler)


def _inclusion(n: int) -> tfi.samplers.Inclusion:
    """In the midst of a training: each example has a score, and a pass has begun."""
    sampler = tfi.samplers.Inclusion(n)
    sampler.scores.assign(np.random.default_rng(0).gamma(0.5, size=n).astype(np.float32))
    sampler.draw(1, 0)
    return sampler


def inclusion(n: int) -> Variant:
    return ours(_inclusion(n))


def inclusion_pass(n: int) -> Variant:
    """What is due once for n/2 examples: the next pass is chosen."""
    sampler = _inclusion(n)
    seed, number = tf.zeros([2], tf.int64), tf.constant(0, tf.int64)
    begin = tf.function(lambda: sampler._begin(seed, number), autograph=False)
    return Variant(begin, n // 2)


def numpy_choice(n: int) -> Variant:
    rng = np.random.default_rng(0)
    priorities = rng.random(n)
    b = FLAGS.batch_size

    def draw_and_update():
        p = priorities / priorities.sum()
        indices = rng.choice(n, b, p=p)
        priorities[indices] = rng.random(b)
        return 1 / (n * p[indices])

    return Variant(draw_and_update, b)


def cpprb(n: int) -> Variant | None:
    if importlib.util.find_spec("cpprb") is None:
        return None
    module = importlib.import_module("cpprb")
    buffer = module.PrioritizedReplayBuffer(n, {"index": {"dtype": np.int64}})
    rng = np.random.default_rng(0)
    for start in range(0, n, 100_000):
        index = np.arange(start, min(start + 100_000, n))
        buffer.add(index=index, priorities=rng.random(len(index)))
    b = FLAGS.batch_size

    def draw_and_update():
        sample = buffer.sample(b, beta=1.0)
        buffer.update_priorities(sample["indexes"], rng.random(b))
        return sample["weights"]

    return Variant(draw_and_update, b)


def reverb(n: int) -> Variant | None:
    if n > 1_000_000 or importlib.util.find_spec("reverb") is None:
        return None
    module = importlib.import_module("reverb")
    selector = module.selectors.Prioritized(0.6)
    table = module.Table("t", selector, module.selectors.Fifo(), n, module.rate_limiters.MinSize(1))
    server = module.Server([table], port=None)
    client = module.Client(f"localhost:{server.port}")
    rng = np.random.default_rng(0)
    for index in range(n):
        client.insert([np.int64(index)], {"t": float(rng.random())})
    b = FLAGS.batch_size

    def draw_and_update():
        keys = [sample[0].info.key for sample in client.sample("t", b)]
        client.mutate_priorities("t", {key: float(rng.random()) for key in keys})
        return server

    return Variant(draw_and_update, b)


SAMPLERS = {
    "proportional": proportional,
    "rais": rais,
    "inclusion": inclusion,
    "inclusion_pass": inclusion_pass,
    "numpy_choice": numpy_choice,
    "cpprb": cpprb,
    "reverb": reverb,
}


def costs() -> dict:
    """(a) and (b)."""
    seconds: dict[str, dict[int, float]] = {name: {} for name in SAMPLERS}
    state: dict[str, float | None] = {}
    for size in map(int, FLAGS.sizes):
        print(f"== n = {size}")
        made = {name: make(size) for name, make in SAMPLERS.items()}
        made = {name: one for name, one in made.items() if one is not None}
        variants = {
            name: lambda call=one.call: measure.call_seconds(call, FLAGS.calls)
            for name, one in made.items()
        }
        rounds = measure.interleaved(variants, FLAGS.rounds, print)
        for name in variants:
            middle = statistics.median(one[name] for one in rounds)
            seconds[name][size] = middle / made[name].examples
            state[name] = made[name].bytes
    return {
        name: {
            "microseconds_per_example": {
                size: round(1e6 * value, 4) for size, value in found.items()
            },
            "growth": round(found[max(found)] / found[min(found)], 3),
            "growth_exponent": _exponent(found),
            "bytes_per_example": state[name] and round(state[name], 1),
            "speedup_over_numpy": {
                size: round(seconds["numpy_choice"][size] / value, 2)
                for size, value in found.items()
            },
        }
        for name, found in seconds.items()
        if found
    }


def _exponent(seconds: dict[int, float]) -> float | None:
    sizes = sorted(seconds)
    if len(sizes) < 2:
        return None
    low, high = sizes[0], sizes[-1]
    return round(math.log(seconds[high] / seconds[low]) / math.log(high / low), 3)


def trainings() -> dict:
    """(c)"""
    found = {}
    for size in map(int, FLAGS.sizes):
        sampler = tfi.samplers.RAIS(size)
        rng = np.random.default_rng(0)
        sampler.recent.rows.assign(rng.random(sampler.recent.rows.shape, np.float32))
        sampler.features.assign(rng.random([size, 12], np.float32))
        sampler.feature_totals.assign(np.full(12, size / 2))
        # From the first update on, TensorFlow treats what is assigned to the tree differently.
        batch = [tf.range(128, dtype=tf.int64), tf.ones([128]), tf.ones([128])]
        sampler.update(Visit(*batch))
        # A period of 157 steps of 128; the training begins with the first multiple of it.
        steps = -(-(size + 40_000) // (157 * 128)) * 157
        sampler.recent.count.assign(steps * 128)
        sampler.begin()
        sampler.tend()
        start = time.perf_counter()
        sampler.tend()
        sampler._worker._future.result()
        trained = time.perf_counter()
        sampler.tend()
        installed = time.perf_counter()
        found[size] = {
            "thread_seconds": round(trained - start, 4),
            "main_thread_seconds": round(installed - trained, 5),
        }
        print(size, found[size])
    return found


NETS = {"smallest_cnn": small_cnn, "cnn": lambda: nets.build("cnn", (28, 28, 1), 10)}


def compiled(net: str, sampler: tfi.samplers.Sampler | None) -> tfi.ISModel:
    model = tfi.ISModel(NETS[net]())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1e-3), loss, metrics=["accuracy"], sampler=sampler)
    return model


def overhead(net: str) -> dict:
    """(d)"""
    print(f"== {net}")
    n, b = FLAGS.examples, FLAGS.batch_size
    rng = np.random.default_rng(0)
    data = rng.normal(size=(n, 28, 28, 1)).astype(np.float32), rng.integers(10, size=n)
    models = {
        "rais": compiled(net, tfi.samplers.RAIS(n)),
        "uniform": compiled(net, tfi.samplers.Uniform(n)),
        "ordinary": compiled(net, None),
    }
    ordinary = tf.data.Dataset.from_tensor_slices(data).repeat().shuffle(4096).batch(b).prefetch(1)
    batches = {
        name: tfi.history_sample(data, model.sampler, b).repeat() if model.sampler else ordinary
        for name, model in models.items()
    }
    # Until c and d are there, RAIS draws as uniformly as the others.
    models["rais"].fit(batches["rais"], steps_per_epoch=3 * n // b + 160, verbose=0, shuffle=False)
    assert models["rais"].sampler.uncertainty_set.numpy().any()
    variants = {
        name: lambda name=name: measure.fit_seconds(models[name], batches[name], FLAGS.steps)
        for name in models
    }
    rounds = measure.interleaved(variants, FLAGS.rounds, print)
    return {
        "rais_to_uniform": measure.summary([r["rais"] / r["uniform"] for r in rounds]),
        "rais_to_ordinary": measure.summary([r["rais"] / r["ordinary"] for r in rounds]),
        "milliseconds": round(1e3 * statistics.median(r["uniform"] for r in rounds), 3),
    }


def speed() -> dict:
    """(e)"""
    print(f"== {FLAGS.rows} rows")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(FLAGS.rows, 20)).astype(np.float32)
    y = (x[:, :5].sum(axis=1) > 0).astype(np.int32)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def fitted(sampler: tfi.samplers.Sampler | None) -> Callable[[], float]:
        layers = keras.layers
        model = keras.Sequential(
            [keras.Input((20,)), layers.Dense(256, "relu"), layers.Dense(256, "relu")]
        )
        model.add(layers.Dense(2))
        batches = {"x": x, "y": y, "batch_size": FLAGS.batch_size}
        if sampler is not None:
            model = tfi.ISModel(model)
            model.compile(keras.optimizers.SGD(1e-2), loss, sampler=sampler)
            batches = {"x": tfi.history_sample((x, y), sampler, FLAGS.batch_size).repeat()}
        else:
            model.compile(keras.optimizers.SGD(1e-2), loss)
        model.fit(**batches, steps_per_epoch=FLAGS.steps, verbose=0)

        def seconds() -> float:
            start = time.process_time()
            model.fit(**batches, steps_per_epoch=10 * FLAGS.steps, verbose=0)
            return time.process_time() - start

        return seconds

    variants = {
        "rais": fitted(tfi.samplers.RAIS()),
        "proportional": fitted(tfi.samplers.Proportional()),
        "keras": fitted(None),
    }
    rounds = measure.interleaved(variants, FLAGS.rounds, print)
    return {
        name: measure.summary([one["keras"] / one[name] for one in rounds])
        for name in ("rais", "proportional")
    }


def main(_) -> None:
    command.shorten(
        sizes=["1000"],
        rounds=1,
        calls=3,
        steps=3,
        examples=1000,
        nets=["smallest_cnn"],
        rows=1000,
    )
    result: dict = {"batch_size": FLAGS.batch_size}
    if FLAGS.sizes:
        result |= {"plan_and_learn": costs(), "training_of_c_and_d": trainings()}
    result["overhead"] = {net: overhead(net) for net in FLAGS.nets}
    if FLAGS.rows:
        result["speed_over_keras"] = speed()
    print(result)
    measure.write(FLAGS.out, result)
    print(f"written to {FLAGS.out}")


if __name__ == "__main__":
    app.run(main)
