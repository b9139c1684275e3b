"""A real store for benchmarks, and what trains and scores by it. Has no flags."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import keras
import numpy as np

import tf_importance as tfi
from benchmarks.redis_server import RedisServer

_PIXELS = 784


@contextlib.contextmanager
def server() -> Iterator[str]:
    """A redis-server; its URL."""
    with contextlib.closing(RedisServer()) as one:
        yield one.url


def model(units: list[str], features: int = _PIXELS) -> tfi.ISModel:
    """A perceptron, by default on images of MNIST's size."""
    layers = [keras.layers.Dense(int(width), activation="relu") for width in units]
    net = keras.Sequential([keras.Input((features,)), *layers, keras.layers.Dense(10)])
    made = tfi.ISModel(net)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    made.compile(keras.optimizers.SGD(1e-3), loss)
    return made


def data(n: int, features: int = _PIXELS) -> tuple[np.ndarray, np.ndarray]:
    """Noise: of the time that anything takes, nothing depends on values."""
    rng = np.random.default_rng(0)
    return rng.random((n, features), np.float32), rng.integers(10, size=n).astype(np.int32)


def begun(
    made: tfi.ISModel, source: tuple[np.ndarray, np.ndarray], store: tfi.stores.Store, **options
) -> tfi.distributed.Master:
    """A master of a model on data, whose run stands in the store; options as it has them."""
    master = tfi.distributed.Master(len(source[1]), made, store, **options)
    tfi.history_sample(source, master)
    master.begin()
    return master


def publish(master: tfi.distributed.Master) -> None:
    """Let its exchange send the parameters as they are, as a training does between its steps."""
    master._snapshot()
    master.exchange.wake()
