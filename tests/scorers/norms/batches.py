"""Random batches, variables and compiled losses for a net."""

import contextlib

import keras
import numpy as np
import tensorflow as tf

from tests.reference import gradients
from tests.scorers.norms.families import VOCABULARY

SIZE = 4


@contextlib.contextmanager
def precision(name: str):
    """Within: layers, losses and batches are of this type, or of this mixed policy."""
    policy = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy(name)
    keras.backend.set_floatx("float64" if name == "float64" else "float32")
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(policy)
        keras.backend.set_floatx("float32")


def compiled(model: keras.Model, seed: int = 0) -> keras.Model:
    """With variables off their initial zeros and ones, and moving variances above zero."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        value = np.asarray(tf.convert_to_tensor(variable))
        if value.dtype.kind == "f" and "seed" not in variable.name:
            value = value + 0.1 * rng.normal(size=value.shape)
            variable.assign(1 + abs(value) if "variance" in variable.name else value)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def batch(model: keras.Model, size: int = SIZE, seed: int = 0) -> tuple[tf.Tensor, tf.Tensor]:
    """Inputs and labels; seven time steps where their number is open."""
    rng = np.random.default_rng(seed)
    inputs = getattr(model, "inputs", None)  # A subclassed model has none.
    integers = bool(inputs) and tf.as_dtype(inputs[0].dtype).is_integer
    shape = inputs[0].shape if inputs else (None, 4)
    shape = (size, *(7 if each is None else each for each in shape[1:]))
    if integers:
        x = rng.integers(VOCABULARY, size=shape)
        x[:, 0] = 1 + x[:, 0] % (VOCABULARY - 1)  # A mask that is all False says nothing.
    else:
        x = rng.normal(size=shape)
    x = tf.constant(x, tf.int32 if integers else keras.backend.floatx())
    return x, tf.constant(rng.integers(3, size=size))


def assert_exact(squared: list, model, x, y, tolerance: float, **kwargs) -> None:
    """Each variable's squared norms against those of single examples."""
    assert_close(squared, gradients.squared_norms(model, x, y, **kwargs), tolerance)


def assert_close(squared: list, expected: np.ndarray, tolerance: float) -> None:
    """In units of the whole gradient's: single variables' may be zero in theory."""
    error = abs(np.array(squared, np.float64) - expected)
    assert np.max(error / expected.sum(axis=0)) <= tolerance
