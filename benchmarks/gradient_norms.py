"""What exact gradient norms cost, as ratios: python -m benchmarks.gradient_norms [--nets=…]

For each net, in one process and interleaved, all compiled:

(a) time: norms of B examples / forward and backward pass of the same batch.

And in processes of their own, since memory has no undo and TensorFlow's `vectorized_map` may crash:

(b) loop: one example at a time, by `tf.map_fn` / norms.
(c) vectorized_map: of the gradient of one example / norms.
(d) memory: peak resident memory that norms add / that forward and backward pass add.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import tf_importance as tfi
from benchmarks import command, measure, nets

FLAGS = flags.FLAGS
flags.DEFINE_list("nets", list(nets.NETS), "Nets to measure.")
flags.DEFINE_integer("batch_size", 128, "B, examples in a batch.")
flags.DEFINE_integer("rounds", 7, "Rounds; each times every variant once.")
flags.DEFINE_float("seconds", 1.0, "Least time of one timing; one call at least.")
flags.DEFINE_list("slow", ["loop", "vectorized_map"], "Which of the slow ways to time.")
flags.DEFINE_integer("slow_rounds", 2, "Rounds for the slow ways, which take many times as long.")
flags.DEFINE_string("only_memory", None, "For a process of its own: net/variant.")
flags.DEFINE_string("only_slow", None, "For a process of its own: net/variant.")
flags.DEFINE_string("out", "runs/benchmarks/gradient_norms.json", "Where the result goes.")


def compiled(name: str) -> tuple[keras.Model, tf.Tensor, tf.Tensor]:
    """A compiled net and a batch for it."""
    keras.utils.set_random_seed(0)
    net = nets.NETS[name]()
    net.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    rng = np.random.default_rng(0)
    shape = (FLAGS.batch_size, *net.input_shape[1:])
    if net.inputs[0].dtype in ("int32", tf.int32):
        x = rng.integers(nets.VOCABULARY, size=shape).astype(np.int32)
    else:
        x = rng.normal(size=shape).astype(np.float32)
    return net, tf.constant(x), tf.constant(rng.integers(10, size=FLAGS.batch_size))


def variants(name: str) -> dict[str, Callable[[], object]]:
    """The ways to go over one batch."""
    net, x, y = compiled(name)

    def backward():
        with tf.GradientTape() as tape:
            loss = net.loss(y, net(x, training=False))
        return tape.gradient(loss, net.trainable_variables)

    def norm(example):
        one_x, one_y = (part[tf.newaxis] for part in example)
        with tf.GradientTape() as tape:
            loss = net.loss(one_y, net(one_x, training=False))
        gradients = tape.gradient(loss, net.trainable_variables)
        return tf.linalg.global_norm([tf.convert_to_tensor(g) for g in gradients])

    ways = {
        "backward": backward,
        "norms": lambda: tfi.per_example_gradient_norms(net, x, y),
        "loop": lambda: tf.map_fn(norm, (x, y), fn_output_signature=tf.float32),
        "vectorized_map": lambda: tf.vectorized_map(norm, (x, y)),
    }
    return {way: tf.function(function, autograph=False) for way, function in ways.items()}


def seconds(function: Callable[[], object]) -> float:
    """Seconds per call of a function."""
    start, calls = time.perf_counter(), 0
    while not calls or time.perf_counter() - start < FLAGS.seconds:
        # Waits for the result, which the next call may otherwise overlap with.
        tf.nest.map_structure(np.asarray, tf.nest.flatten(function())[-1])
        calls += 1
    return (time.perf_counter() - start) / calls


def ratio(name: str, over: str, under: str, rounds: int) -> dict:
    """Time of one way over that of another, interleaved."""
    ways = variants(name)
    timed = {way: (lambda way=way: seconds(ways[way])) for way in (over, under)}
    results = measure.interleaved(timed, rounds, lambda line: print(line, flush=True))
    return measure.summary([each[over] / each[under] for each in results])


def slow(name: str, way: str) -> dict | str:
    """(b), (c): in a process of its own."""
    finished = alone(f"--only_slow={name}/{way}", f"--slow_rounds={FLAGS.slow_rounds}")
    if finished.returncode:
        return f"fails with exit status {finished.returncode}"
    return json.loads(finished.stdout.splitlines()[-1])


def alone(*arguments: str) -> subprocess.CompletedProcess:
    """This benchmark in a process of its own."""
    same = [f"--batch_size={FLAGS.batch_size}", f"--short={FLAGS.short}"]
    process = [sys.executable, "-m", "benchmarks.gradient_norms", *arguments, *same]
    return subprocess.run(process, check=False, capture_output=True, text=True)


def peak_megabytes() -> float:
    """Most resident memory so far; unlike `getrusage`, not inherited from the parent."""
    with open("/proc/self/status") as status:
        peak = next(line for line in status if line.startswith("VmHWM"))
    return int(peak.split()[1]) / 2**10


def memory(name: str) -> dict:
    """(d)"""
    ways = ("nothing", "backward", "norms")
    outputs = {way: alone(f"--only_memory={name}/{way}").stdout for way in ways}
    peaks = {way: json.loads(output.splitlines()[-1]) for way, output in outputs.items()}
    added = {way: peaks[way] - peaks["nothing"] for way in ("backward", "norms")}
    added_ratio = round(added["norms"] / max(added["backward"], 1), 3)
    return {"memory": added_ratio, "megabytes": {way: round(mb) for way, mb in added.items()}}


def main(_) -> None:
    command.shorten(
        nets=["small_cnn"], batch_size=2, rounds=1, seconds=0.0, slow=["loop"], slow_rounds=1
    )
    if FLAGS.only_memory:
        name, way = FLAGS.only_memory.split("/")
        if way == "nothing":
            compiled(name)
        else:
            function = variants(name)[way]
            for _ in range(3):
                function()
        print(peak_megabytes())
        return
    if FLAGS.only_slow:
        name, way = FLAGS.only_slow.split("/")
        print(json.dumps(ratio(name, way, "norms", FLAGS.slow_rounds)))
        return
    result: dict = {"batch_size": FLAGS.batch_size}
    for name in FLAGS.nets:
        print(f"== {name}")
        result[name] = {"time": ratio(name, "norms", "backward", FLAGS.rounds)} | memory(name)
        result[name] |= {way: slow(name, way) for way in FLAGS.slow}
        print(result[name])
        measure.write(FLAGS.out, result)
    print(f"written to {FLAGS.out}")


if __name__ == "__main__":
    app.run(main)
