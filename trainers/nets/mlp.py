"""Perceptrons with two hidden layers."""

from __future__ import annotations

import keras


def mlp(input_shape: tuple[int, ...], num_classes: int) -> keras.Model:
    """Two hidden layers of 256 rectified units on the flattened input."""
    return _perceptron("mlp", 256, input_shape, num_classes)


def wide_mlp(input_shape: tuple[int, ...], num_classes: int) -> keras.Model:
    """Two hidden layers of 1,024 rectified units on the flattened input."""
    return _perceptron("wide_mlp", 1024, input_shape, num_classes)


def _perceptron(name: str, units: int, input_shape: tuple[int, ...], num_classes: int):
    return keras.Sequential(
        [
            keras.layers.Input(input_shape),
            keras.layers.Flatten(),
            keras.layers.Dense(units, activation="relu"),
            keras.layers.Dense(units, activation="relu"),
            keras.layers.Dense(num_classes, name="logits"),
        ],
        name=name,
    )
