"""The LSTM of K&F 2018, section 4.4."""

from __future__ import annotations

import keras

_UNITS = 128


def lstm(input_shape: tuple[int, ...], num_classes: int) -> keras.Model:
    """128 units, tanh and recurrent sigmoid, and a linear classifier on the last state.

    Args:
        input_shape: (steps, channels); an image is read row by row, its columns the channels.
        num_classes: number of logits.
    """
    inputs = keras.layers.Input(input_shape)
    steps = inputs
    if len(input_shape) == 3:
        height, width, channels = input_shape
        steps = keras.layers.Reshape((height, width * channels))(inputs)
    state = keras.layers.LSTM(_UNITS, activation="tanh", recurrent_activation="sigmoid")(steps)
    return keras.Model(inputs, keras.layers.Dense(num_classes, name="logits")(state), name="lstm")
