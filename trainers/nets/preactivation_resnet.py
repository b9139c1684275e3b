"""The pre-activation ResNet of 18 layers (He et al. 2016), as in Johnson & Guestrin 2018."""

from __future__ import annotations

import keras

import tf_importance as tfi

_FILTERS = (64, 128, 256, 512)
_BLOCKS_PER_GROUP = 2
# λ/2 ‖w‖² with λ = 5e-4.
_L2 = 5e-4 / 2


def resnet18(input_shape: tuple[int, ...], num_classes: int) -> keras.Model:
    """Four groups of two pre-activated residual blocks, all but the first at half resolution.

    As it is built for images of 32 x 32: one convolution of 3 x 3 before the first block.
    """
    inputs = keras.layers.Input(input_shape)
    hidden = _convolution(inputs, _FILTERS[0])
    for group, filters in enumerate(_FILTERS):
        for block in range(_BLOCKS_PER_GROUP):
            hidden = _block(hidden, filters, strides=2 if group > 0 and block == 0 else 1)
    hidden = keras.layers.GlobalAveragePooling2D()(_activated(hidden))
    logits = keras.layers.Dense(
        num_classes, kernel_regularizer=keras.regularizers.L2(_L2), name="logits"
    )(hidden)
    return keras.Model(inputs, logits, name="resnet18")


def _block(inputs, filters: int, strides: int):
    activated = _activated(inputs)
    same_shape = inputs.shape[-1] == filters and strides == 1
    shortcut = inputs if same_shape else _convolution(activated, filters, strides, size=1)
    hidden = _activated(_convolution(activated, filters, strides))
    return keras.layers.Add()([shortcut, _convolution(hidden, filters)])


def _activated(inputs):
    return keras.layers.ReLU()(tfi.layers.BatchNormalization(momentum=0.9)(inputs))


def _convolution(inputs, filters: int, strides: int = 1, size: int = 3):
    return keras.layers.Conv2D(
        filters,
        size,
        strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        kernel_regularizer=keras.regularizers.L2(_L2),
    )(inputs)
