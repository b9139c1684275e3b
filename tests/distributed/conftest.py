"""A small run: data, models, a store, workers in threads."""

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


def score_all(worker):
    """Let a worker score what there is to score."""
    while worker.step():
        pass
