"""One of several processes with one memory: python -m tests.memory_process RANK PORTS SPEC OUT.

SPEC is JSON: sampler, rate, steps, epochs, seeds of the processes, a checkpoint to restore. Trains
under MultiWorkerMirroredStrategy, and writes what it saw.
"""

from __future__ import annotations

import json
import os
import sys
import traceback

N, b = 96, 4


def data():
    import numpy as np

    rng = np.random.default_rng(0)
    y = rng.integers(3, size=N).astype(np.int32)
    x = (2 * np.eye(3)[y] + rng.normal(size=(N, 3))).astype(np.float32)
    return x, y


def samplers():
    import tf_importance as tfi

    return {
        "Proportional": lambda: tfi.samplers.Proportional(),
        "RAIS": lambda: tfi.samplers.RAIS(training_set_size=32),
        "Inclusion": lambda: tfi.samplers.Inclusion(),
        "Fresh": lambda: tfi.samplers.Fresh(6, over=tfi.samplers.Proportional()),
    }


def compiled(kind: str, rate: float):
    import keras

    import tf_importance as tfi

    keras.utils.set_random_seed(0)
    net = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
    model = tfi.ISModel(net)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.SGD(tfi.schedules.GainAdapted(rate) if rate else rate)
    model.compile(optimizer, loss, sampler=samplers()[kind]())
    return model


def main(rank: int, ports: list[str], spec: dict, out: str) -> None:
    workers = [f"127.0.0.1:{port}" for port in ports]
    task = {"type": "worker", "index": rank}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": workers}, "task": task})
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    import numpy as np

    import tf_importance as tfi

    x, y = data()
    try:
        with strategy.scope():
            model = compiled(spec["sampler"], spec["rate"])
        sampler = model.sampler
        if spec.get("differ"):
            x, y = x[: N - rank], y[: N - rank]
        seed = spec.get("seeds", [None] * len(ports))[rank]
        batches = tfi.history_sample((x, y), sampler, b, seed=seed).repeat()
        checkpoint = tf.train.Checkpoint(net=model.net, sampler=sampler)
        if "restore" in spec:
            checkpoint.restore(spec["restore"])
        fitted = model.fit(batches, steps_per_epoch=spec["steps"], epochs=spec["epochs"], verbose=0)
    except Exception as error:
        traceback.print_exc()
        with open(out, "w") as file:
            json.dump({"error": f"{type(error).__name__}: {error}"}, file)
        # The others may wait for ever.
        os._exit(0)
    journal = sampler.journal
    trained = int(journal.trained)
    kept = min(trained, int(journal.batches(int(journal.batch_size))))
    numbers = tf.range(trained - kept, trained, dtype=tf.int64)
    journal.learned.assign(trained - kept)
    draws, seen = journal.finished(tf.constant(trained, tf.int64), int(journal.batch_size))
    if rank == 0:
        checkpoint.write(out.removesuffix(".json"))
    # What is planned beyond what was trained on may differ.
    planned = {id(variable) for variable in journal.variables}
    found = {
        "logs": {name: values[-1] for name, values in fitted.history.items()},
        "weights": [weight.tolist() for weight in model.net.get_weights()],
        "trained": trained,
        "numbers": numbers.numpy().tolist(),
        "indices": draws.indices.numpy().tolist(),
        "drawn_with": draws.weights.numpy().tolist(),
        "scores": seen.scores.numpy().tolist(),
        "score_of_each": np.asarray(tfi.scorers.upper_bound(model, *data())).tolist(),
        "memory": {
            variable.name.replace(":0", "") + str(number): np.asarray(variable).ravel().tolist()
            for number, variable in enumerate(sampler.variables)
            if id(variable) not in planned
            and variable.dtype.is_floating
            and variable.shape.num_elements() > 1
        },
    }
    with open(out, "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2].split(","), json.loads(sys.argv[3]), sys.argv[4])
