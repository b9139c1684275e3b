"""A small run: data, models, a store, workers in threads, and its clocks."""

import time
import uuid

import keras
import numpy as np
import pytest

import tf_importance as tfi
from tf_importance import stores

N = 96


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 5)).astype(np.float32) * rng.gamma(0.5, 2.0, size=(N, 1))
    return x.astype(np.float32), x[:, :3].argmax(axis=1).astype(np.int32)


@pytest.fixture
def make_model():
    """A function that makes the same compiled ISModel each time."""

    def make(sampler=None, learning_rate=0.05, **options):
        keras.utils.set_random_seed(7)
        layers = [keras.layers.Dense(8, activation="relu"), keras.layers.Dense(3)]
        model = tfi.ISModel(keras.Sequential([keras.Input((5,)), *layers]), **options)
        compile_model(model, sampler, learning_rate)
        return model

    return make


def compile_model(model, sampler=None, learning_rate=0.05):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(learning_rate), loss, sampler=sampler)


@pytest.fixture
def meeting():
    """A function from a role to a store in memory, of a run of its own."""
    name = uuid.uuid4().hex
    yield lambda role="tester": stores.MemoryStore(name, role)
    stores.MemoryStore(name).clear()


class Clock:
    """Stands for the module `time` in one of the library's modules.

    Its seconds go on as the machine's, or stand still; and both jump as far as a test says.
    """

    def __init__(self, stands=True):
        self._stopped_at = time.monotonic() if stands else None
        self._ahead = 0.0

    def monotonic(self):
        return (self._stopped_at or time.monotonic()) + self._ahead

    def jump(self, seconds):
        self._ahead += seconds


@pytest.fixture
def store_clock(monkeypatch):
    """The seconds of stores in memory, which stand still until they jump."""
    clock = Clock()
    monkeypatch.setattr(stores.MemoryStore, "now", lambda _: 1e9 + clock.monotonic())
    return clock


# Bounds a hang, and no more.
HANGING_SECONDS = 300.0


def until(condition, said=lambda: ""):
    """Wait for what other threads and processes do, however long a loaded machine takes.

    If that never happens, what they said instead is shown.
    """
    end = time.monotonic() + HANGING_SECONDS
    while not condition():
        assert time.monotonic() < end, f"not within {HANGING_SECONDS} seconds. {said()}"
        time.sleep(0.005)


def score_all(worker):
    """Let a worker score what there is to score."""
    while worker.step():
        pass
