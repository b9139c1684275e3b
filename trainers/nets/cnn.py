"""A small convolutional net with batch normalization."""

from __future__ import annotations

import keras

import tf_importance as tfi

_FILTERS = (32, 64)


def cnn(input_shape: tuple[int, ...], num_classes: int) -> keras.Model:
    """Two blocks of convolution, batch normalization, ReLU, pooling; then a dense layer.

    The batch normalization is importance-weighted, and Keras's own under uniform sampling.
    """
    inputs = keras.layers.Input(input_shape)
    hidden = inputs
    for filters in _FILTERS:
        hidden = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)(hidden)
        hidden = tfi.layers.BatchNormalization()(hidden)
        hidden = keras.layers.ReLU()(hidden)
        hidden = keras.layers.MaxPooling2D()(hidden)
    hidden = keras.layers.Flatten()(hidden)
    logits = keras.layers.Dense(num_classes, name="logits")(hidden)
    return keras.Model(inputs, logits, name="cnn")
