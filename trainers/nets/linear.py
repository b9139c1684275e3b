"""Multinomial logistic regression."""

from __future__ import annotations

import keras


def linear(input_shape: tuple[int, ...], num_classes: int) -> keras.Model:
    """One dense layer on the flattened input."""
    return keras.Sequential(
        [
            keras.layers.Input(input_shape),
            keras.layers.Flatten(),
            keras.layers.Dense(num_classes, name="logits"),
        ],
        name="linear",
    )
