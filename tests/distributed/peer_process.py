"""One of two peers on this machine: python -m tests.distributed.peer_process RANK PORTS STORE OUT.

Trains under MultiWorkerMirroredStrategy and writes what it saw.
"""

from __future__ import annotations

import json
import os
import sys
import time


def main(rank: int, ports: list[str], url: str, out: str) -> None:
    workers = [f"127.0.0.1:{port}" for port in ports]
    task = {"type": "worker", "index": rank}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": workers}, "task": task})
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    import keras
    import numpy as np

    import tf_importance as tfi

    rng = np.random.default_rng(0)
    x = rng.normal(size=(96, 5)).astype(np.float32)
    y = x[:, :3].argmax(axis=1).astype(np.int32)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    with strategy.scope():
        keras.utils.set_random_seed(0)
        model = tfi.ISModel(keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)]))
        model.compile(keras.optimizers.SGD(0.1), loss)
    store = tfi.stores.open_store(url, role=f"peer {rank}")
    sampler = tfi.distributed.Peer(
        96, model, store, push_every=2, pull_seconds=0.05, shard_size=32, smoothing=0.1
    )
    with strategy.scope():
        model.compile(keras.optimizers.SGD(0.1), loss, sampler=sampler)
    batches = tfi.history_sample((x, y), sampler, 8, seed=rank).repeat()

    def mean_loss():
        return float(np.mean(loss(y, model.net(x)).numpy()))

    before = mean_loss()
    model.fit(batches, steps_per_epoch=60, epochs=1, verbose=0)
    sampler.begin()
    sampler.exchange.once()
    # What the other one has seen is there when it says so.
    store.report(f"{rank} has sent", {})
    end = time.monotonic() + 300
    while sum(name.endswith("has sent") for name in store.reports()) < len(ports):
        assert time.monotonic() < end, "the other peer has sent nothing"
        time.sleep(0.05)
    sampler.exchange.once()
    known = sampler.mirror.known()
    sampler.end()
    found = {
        "before": before,
        "after": mean_loss(),
        "weights": [weight.tolist() for weight in model.net.get_weights()],
        "visited": sampler.visited.numpy().tolist(),
        "scored": np.flatnonzero(known.versions).tolist(),
        "versions": known.versions.tolist(),
        "count": int(sampler.count.numpy()),
    }
    with open(out, "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2].split(","), sys.argv[3], sys.argv[4])
