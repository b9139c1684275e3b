"""A ridge regression whose gradients NumPy knows, and the same as a Keras net in float64."""

from __future__ import annotations

from typing import NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_importance import compat


class Recorder(keras.callbacks.Callback):
    """The net's kernel before the first step and after each."""

    def __init__(self) -> None:
        super().__init__()
        self.iterates: list[np.ndarray] = []

    def _record(self) -> None:
        (kernel,) = self.model.net.trainable_variables
        self.iterates.append(compat.value(kernel).numpy()[:, 0])

    def on_train_begin(self, logs=None) -> None:
        self._record()

    def on_train_batch_end(self, batch, logs=None) -> None:
        self._record()


class Problem(NamedTuple):
    """mean_i (x_i·w − y_i)² + penalty ‖w‖².

    Attributes:
        x: [n, d]. y: [n, 1]. start: [d] weights to begin from. penalty: of the squared norm.
    """

    x: np.ndarray
    y: np.ndarray
    start: np.ndarray
    penalty: float

    def gradient(self, w, batch):
        x, y = self.x[batch], self.y[batch, 0]
        return 2 * x.T @ (x @ w - y) / len(x) + 2 * self.penalty * w

    @property
    def everything(self):
        return np.arange(len(self.x))

    @property
    def solution(self):
        count, width = self.x.shape
        matrix = self.x.T @ self.x / count + self.penalty * np.eye(width)
        return np.linalg.solve(matrix, self.x.T @ self.y[:, 0] / count)

    def net(self) -> keras.Model:
        layer = keras.layers.Dense(
            1, use_bias=False, kernel_regularizer=keras.regularizers.L2(self.penalty)
        )
        net = keras.Sequential([keras.layers.Input([self.x.shape[1]]), layer])
        net.set_weights([self.start[:, None]])
        return net

    def batched(self, size: int) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices((self.x, self.y)).batch(size)

    def of(self, batches) -> tf.data.Dataset:
        """Batches of these indices."""
        return tf.data.Dataset.from_tensor_slices((self.x[batches], self.y[batches]))

    def iterates(self, model: keras.Model, batches, learning_rate: float) -> np.ndarray:
        """Fit a model on these batches; the weights before and after each step."""
        model.compile(keras.optimizers.SGD(learning_rate), "mse")
        recorder = Recorder()
        model.fit(self.of(batches), verbose=0, shuffle=False, callbacks=[recorder])
        return np.array(recorder.iterates)


@pytest.fixture
def float64():
    keras.backend.set_floatx("float64")
    # Once a policy was set, layers follow it and not floatx.
    keras.mixed_precision.set_global_policy("float64")
    yield
    keras.backend.set_floatx("float32")
    keras.mixed_precision.set_global_policy("float32")


@pytest.fixture
def ridge(float64) -> Problem:
    """24 examples in 4 dimensions, some of them large: no w fits them all."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(24, 4)) * rng.lognormal(0, 0.5, size=(24, 1))
    y = x @ rng.normal(size=(4, 1)) + rng.normal(size=(24, 1))
    return Problem(x, y, rng.normal(size=4), penalty=0.05)


@pytest.fixture
def drawn():
    """Draws `steps` batches of `size` of `count` examples, with replacement."""

    def draw(steps: int, size: int, count: int = 24) -> np.ndarray:
        return np.random.default_rng(1).integers(count, size=(steps, size))

    return draw
