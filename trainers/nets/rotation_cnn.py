"""The baseline of Cohen & Welling 2016 on rotated MNIST, as in Johnson & Guestrin 2018."""

from __future__ import annotations

import keras

import tf_importance as tfi

_CHANNELS = 20
_DROPOUT = 0.3
# λ/2 ‖w‖² with λ = 3e-3.
_L2 = 3e-3 / 2


def rotation_cnn(input_shape: tuple[int, ...], num_classes: int) -> keras.Model:
    """Seven layers: six convolutions of 3 x 3 with 20 channels, and one of 4 x 4 to the classes.

    Pooling after the second; batch normalization, ReLU and dropout after each but the last,
    which is a dense layer on the 4 x 4 positions that are left of 28 x 28. Smaller images keep
    their size in the convolutions. The rate of dropout is not in either paper; 0.3 is ours.
    """
    padding = "valid" if input_shape[0] >= 28 else "same"
    inputs = keras.layers.Input(input_shape)
    hidden = inputs
    for layer in range(6):
        hidden = keras.layers.Conv2D(
            _CHANNELS,
            3,
            padding=padding,
            use_bias=False,
            kernel_initializer="he_normal",
            kernel_regularizer=keras.regularizers.L2(_L2),
        )(hidden)
        hidden = tfi.layers.BatchNormalization(momentum=0.9)(hidden)
        hidden = keras.layers.ReLU()(hidden)
        hidden = keras.layers.Dropout(_DROPOUT)(hidden)
        if layer == 1:
            hidden = keras.layers.MaxPooling2D()(hidden)
    logits = keras.layers.Dense(
        num_classes, kernel_regularizer=keras.regularizers.L2(_L2), name="logits"
    )(keras.layers.Flatten()(hidden))
    return keras.Model(inputs, logits, name="rotation_cnn")
