"""A real store for benchmarks, and what trains and scores by it. Has no flags."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator

import keras
import numpy as np
import redis

import tf_importance as tfi

_PIXELS = 784


class Server:
    """A redis-server, within a context.

    Attributes:
        port: where it answers, also after it was started anew.
    """

    def __init__(self) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]

    def start(self) -> None:
        """Start it, empty, and wait until it answers."""
        options = ["--port", str(self.port), "--save", "", "--dir", self._directory.name]
        self._process = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL)
        client = redis.Redis(port=self.port)
        for _ in range(500):
            with contextlib.suppress(redis.exceptions.ConnectionError):
                client.ping()
                break
            time.sleep(0.01)

    def kill(self) -> None:
        """As kill -9 does."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Server:
        self._directory = tempfile.TemporaryDirectory()
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.kill()
        self._directory.cleanup()


@contextlib.contextmanager
def server() -> Iterator[str]:
    """A redis-server; its URL."""
    with Server() as one:
        yield f"redis://127.0.0.1:{one.port}/0"


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
