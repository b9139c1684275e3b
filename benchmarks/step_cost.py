"""What a step costs, as ratios: python -m benchmarks.step_cost [--nets=mlp,cnn,lstm]

For each net, in one process and interleaved:

(a) wrapper: an ISModel's step on uniform batches / plain Keras's step on the same.
(b) importance: a step with importance sampling on / (a uniform step + a forward pass of B),
    both measured; 1 means that scoring costs what the paper counts for it, with this
    machine's own forward-to-step cost in place of 1/3.
(c) guard: a step under a Gain switch that never draws, the gain measured in one step of four and a
    learning rate that follows it / plain Keras's step.
    memory_guard: the same for a switch over memory; rescored_guard: over memory and its rescored
    pre-samples. by_memory: a step on batches that RAIS always draws / plain Keras's.
(d) in_step: importance on, scored inside the training step / scored in the pipeline.
(e) retraces of the training step while τ crosses the threshold both ways.
(f) growth: resident memory after the long run / after its first tenth.
(g) on_arrays: processor time of `fit(x, y)` by samplers that score nothing / plain Keras's; a class
    of 1 % among the labels.

(h) replicas: the same under two replicas, by RAIS and Proportional, once RAIS draws; of one net,
    since collectives of two nets in one process share their keys.

--parts chooses: ratios is (a) to (d), retraces (e), memory (f), arrays (g), replicas (h).
"""

from __future__ import annotations

import os
import time

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import tf_importance as tfi
from benchmarks import command, measure
from benchmarks.nets import small_cnn

FLAGS = flags.FLAGS
flags.DEFINE_list("nets", ["mlp", "cnn", "lstm"], "Nets to measure.")
flags.DEFINE_list("parts", ["ratios", "retraces", "memory", "arrays"], "What to measure.")
flags.DEFINE_integer("batch_size", 32, "b, examples trained on in a step.")
flags.DEFINE_integer("presample_size", 128, "B, examples scored for it.")
flags.DEFINE_integer("steps", 150, "Steps of one timing.")
flags.DEFINE_integer("rounds", 15, "Rounds; each times every variant once.")
flags.DEFINE_integer("switching_steps", 1000, "Steps in which τ goes up and down.")
flags.DEFINE_integer("long_run_steps", 10_000, "Steps of the run that watches the memory.")
flags.DEFINE_string("out", "runs/benchmarks/step_cost.json", "Where the result goes.")

L = keras.layers
SHAPE = (28, 28, 1)


def mlp() -> keras.Model:
    dense = [L.Dense(256, activation="relu") for _ in range(2)]
    return keras.Sequential([keras.Input(SHAPE), L.Flatten(), *dense, L.Dense(10)])


def lstm() -> keras.Model:
    return keras.Sequential([keras.Input(SHAPE), L.Reshape((28, 28)), L.LSTM(64), L.Dense(10)])


NETS = {"mlp": mlp, "cnn": small_cnn, "lstm": lstm}


def arrays() -> tuple[np.ndarray, np.ndarray]:
    """Random images and labels: what is measured does not depend on what they show."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(4096, *SHAPE)).astype(np.float32), rng.integers(10, size=4096)


def images() -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(arrays()).repeat()


def compiled(model: keras.Model, rate=1e-3, **kwargs) -> keras.Model:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(rate), loss, metrics=["accuracy"], **kwargs)
    return model


def by_memory(make_net, **switched):
    """A model and the batches that RAIS draws it, with or without a switch."""
    sampler = tfi.samplers.RAIS(4096, training_set_size=1024)
    model = compiled(tfi.ISModel(make_net()), tfi.schedules.GainAdapted(1e-3), sampler=sampler)
    batches = tfi.history_sample(
        arrays(), sampler, FLAGS.batch_size, model=model, **switched
    ).repeat()
    return model, batches


def ratios(make_net) -> dict:
    """(a) to (d)."""
    data, b, B = images(), FLAGS.batch_size, FLAGS.presample_size
    uniform = data.batch(b, drop_remainder=True)
    plain = compiled(make_net())
    wrapped = compiled(tfi.ISModel(make_net()))
    sampling = compiled(tfi.ISModel(make_net()))
    drawn = data.apply(tfi.importance_sample(sampling, b, B, tau_threshold="always"))
    inside = compiled(tfi.ISModel(make_net()))
    groups = data.apply(
        tfi.importance_sample(inside, b, B, tau_threshold="always", score_in="step")
    )
    guarded = compiled(tfi.ISModel(make_net()), tfi.schedules.GainAdapted(1e-3))
    switch = tfi.switches.Gain(step_seconds=1.0, scoring_seconds=1e9)
    undrawn = data.apply(tfi.importance_sample(guarded, b, B, switch=switch))

    def never() -> tfi.switches.Gain:
        """Whatever it predicts, it stays with uniform batches."""
        return tfi.switches.Gain(step_seconds=1.0, scoring_seconds=1e9, hysteresis=1e9)

    alone, passes = by_memory(make_net, switch=never())
    forgoing, forgone = by_memory(make_net, presample_size=B, switch=never())
    remembering, remembered = by_memory(make_net)
    # Until n + 1.5|D| visits are learned, two blocks later, its batches are uniform.
    remembering.fit(remembered, steps_per_epoch=9000 // b, verbose=0, shuffle=False)
    assert remembering.sampler.uncertainty_set.numpy().any()
    presample = next(iter(data.batch(B)))[0]
    forward = tf.function(lambda: plain(presample, training=False))
    rounds = measure.interleaved(
        {
            "plain": lambda: measure.fit_seconds(plain, uniform, FLAGS.steps),
            "wrapped": lambda: measure.fit_seconds(wrapped, uniform, FLAGS.steps),
            "importance": lambda: measure.fit_seconds(sampling, drawn, FLAGS.steps),
            "inside": lambda: measure.fit_seconds(inside, groups, FLAGS.steps),
            "guarded": lambda: measure.fit_seconds(guarded, undrawn, FLAGS.steps),
            "alone": lambda: measure.fit_seconds(alone, passes, FLAGS.steps),
            "forgoing": lambda: measure.fit_seconds(forgoing, forgone, FLAGS.steps),
            "memory": lambda: measure.fit_seconds(remembering, remembered, FLAGS.steps),
            "forward": lambda: measure.call_seconds(forward, FLAGS.steps),
        },
        FLAGS.rounds,
        print,
    )
    expected = [r["plain"] + r["forward"] for r in rounds]
    return {
        "wrapper": measure.summary([r["wrapped"] / r["plain"] for r in rounds]),
        "importance": measure.summary([r["importance"] / e for r, e in zip(rounds, expected)]),
        "in_step": measure.summary([r["inside"] / r["importance"] for r in rounds]),
        "guard": measure.summary([r["guarded"] / r["plain"] for r in rounds]),
        "memory_guard": measure.summary([r["alone"] / r["plain"] for r in rounds]),
        "rescored_guard": measure.summary([r["forgoing"] / r["plain"] for r in rounds]),
        "by_memory": measure.summary([r["memory"] / r["plain"] for r in rounds]),
        "importance_to_uniform": measure.summary([r["importance"] / r["plain"] for r in rounds]),
        "forward_to_uniform": measure.summary([r["forward"] / r["plain"] for r in rounds]),
    }


class Switch(keras.callbacks.Callback):
    """Moves τ over the threshold and back every few steps."""

    def on_train_batch_end(self, batch, logs=None) -> None:
        self.model.tau.assign(9.0 if batch // 20 % 2 else 1.0)


def retraces(make_net) -> dict:
    """(e): traces of the training step beyond those that its first steps needed."""
    model = compiled(tfi.ISModel(make_net()))
    batches = images().apply(
        tfi.importance_sample(model, FLAGS.batch_size, FLAGS.presample_size, tau_threshold=3.0)
    )
    traces = []
    step = model.train_step
    model.train_step = lambda data: traces.append(1) or step(data)
    model.fit(batches, steps_per_epoch=5, verbose=0, shuffle=False)
    before = len(traces)
    logs = model.fit(
        batches,
        steps_per_epoch=FLAGS.switching_steps,
        verbose=0,
        shuffle=False,
        callbacks=[Switch()],
    )
    return {
        "retraces": len(traces) - before,
        "steps": FLAGS.switching_steps,
        "share_drawn": round(float(logs.history["importance"][0]), 3),
    }


def resident_megabytes() -> float:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def memory(make_net) -> dict:
    """(f)"""
    model = compiled(tfi.ISModel(make_net()))
    batches = images().apply(
        tfi.importance_sample(model, FLAGS.batch_size, FLAGS.presample_size, tau_threshold=3.0)
    )
    tenth = FLAGS.long_run_steps // 10
    seen = []

    class Watch(Switch):
        def on_train_batch_end(self, batch, logs=None) -> None:
            super().on_train_batch_end(batch, logs)
            if batch % tenth == tenth - 1:
                seen.append(resident_megabytes())

    model.fit(batches, steps_per_epoch=10 * tenth, verbose=2, shuffle=False, callbacks=[Watch()])
    return {"growth": round(seen[-1] / seen[0], 4), "megabytes": [round(m, 1) for m in seen]}


def on_arrays(make_net, kinds, strategy=None, until_drawn: bool = False) -> dict:
    """Processor time of `fit(x, y)` by samplers over that of plain Keras's, by their names."""
    strategy = strategy or tf.distribute.get_strategy()
    size = FLAGS.batch_size * strategy.num_replicas_in_sync
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300 * size, *SHAPE)).astype(np.float32)
    y = np.where(rng.random(len(x)) < 0.01, 9, rng.integers(9, size=len(x)))

    def seconds_of(kind):
        with strategy.scope():
            net = make_net()
            own = {} if kind is None else {"sampler": kind()}
            model = compiled(net if kind is None else tfi.ISModel(net), jit_compile=False, **own)

        def seconds() -> float:
            start = time.process_time()
            model.fit(x, y, batch_size=size, steps_per_epoch=FLAGS.steps, verbose=0)
            return time.process_time() - start

        return seconds

    made = {name: seconds_of(kind) for name, kind in {"uniform": None, **kinds}.items()}
    # RAIS has learned c and d after n + 1.5|D| visits of examples, and |D| is 20,000 at most.
    for _ in range(-(-(len(x) + 30_000) // (size * FLAGS.steps)) if until_drawn else 0):
        for seconds in made.values():
            seconds()
    rounds = measure.interleaved(made, FLAGS.rounds, print)
    return {n: measure.summary([r[n] / r["uniform"] for r in rounds]) for n in kinds}


def arrays_by_samplers(make_net) -> dict:
    """(g)"""
    kinds = {
        "strata": tfi.samplers.Stratified,
        "inclusion": tfi.samplers.Inclusion,
        "proportional": tfi.samplers.Proportional,
    }
    return {"on_arrays": on_arrays(make_net, kinds)}


def replicas(make_net) -> dict:
    """(h)"""
    kinds = {"rais": tfi.samplers.RAIS, "proportional": tfi.samplers.Proportional}
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    return {"replicas": on_arrays(make_net, kinds, strategy, until_drawn=not FLAGS.short)}


PARTS = {
    "ratios": ratios,
    "retraces": retraces,
    "memory": lambda make_net: {"memory": memory(make_net)},
    "arrays": arrays_by_samplers,
    "replicas": replicas,
}


def main(_) -> None:
    command.shorten(
        nets=["mlp"],
        batch_size=16,
        presample_size=64,
        steps=3,
        rounds=1,
        switching_steps=50,
        long_run_steps=50,
    )
    unknown = set(FLAGS.nets) - set(NETS)
    if unknown:
        raise app.UsageError(f"unknown nets {sorted(unknown)}; known are {sorted(NETS)}.")
    if set(FLAGS.parts) - set(PARTS):
        raise app.UsageError(f"--parts are {', '.join(PARTS)}; got {','.join(FLAGS.parts)}.")
    if "replicas" in FLAGS.parts:
        if len(FLAGS.nets) > 1:
            raise app.UsageError("--parts=replicas is of one net; give --nets=mlp or another.")
        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], two)
    result = {"batch_size": FLAGS.batch_size, "presample_size": FLAGS.presample_size}
    for name in FLAGS.nets:
        print(f"== {name}")
        make_net = NETS[name]
        result[name] = {}
        for part in FLAGS.parts:
            result[name] |= PARTS[part](make_net)
        print({key: value for key, value in result[name].items() if key != "memory"})
    measure.write(FLAGS.out, result)
    print(f"written to {FLAGS.out}")


if __name__ == "__main__":
    app.run(main)
