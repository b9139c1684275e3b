"""Perceptrons."""

from __future__ import annotations

import keras


def mlp(input_shape: tuple[int, ...], num_classes: int) -> keras.Model:
    """Two hidden layers of 256 rectified units on the flattened input."""
    return _perceptron("mlp", 256, input_shape, num_classes)


def wide_mlp(input_shape: tuple[int, ...], num_classes: int) -> keras.Model:
    """Two hidden layers of 1,024 rectified units on the flattened input."""
    return _perceptron("wide_mlp", 1024, input_shape, num_classes)


def mlp_4x2048(input_shape: tuple[int, ...], num_classes: int) -> keras.Model:
    """Four hidden layers of 2,048 rectified units (Alain et al. 2015, section 5.1)."""
    return _perceptron("mlp_4x2048", 2048, input_shape, num_classes, hidden=4)


def mlp_4x256(input_shape: tuple[int, ...], num_classes: int) -> keras.Model:
    """The same with 256 units, for small machines."""
    return _perceptron("mlp_4x256", 256, input_shape, num_classes, hidden=4)


def mlp_128(input_shape: tuple[int, ...], num_classes: int) -> keras.Model:
    """One hidden layer of 128 rectified units on the flattened input."""
    return _perceptron("mlp_128", 128, input_shape, num_classes, hidden=1)


def _perceptron(
    name: str, units: int, input_shape: tuple[int, ...], num_classes: int, hidden: int = 2
):
    return keras.Sequential(
        [
            keras.layers.Input(input_shape),
            keras.layers.Flatten(),
            *(keras.layers.Dense(units, activation="relu") for _ in range(hidden)),
            keras.layers.Dense(num_classes, name="logits"),
        ],
        name=name,
    )
