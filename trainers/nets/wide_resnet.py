"""Wide residual networks (Zagoruyko & Komodakis 2016), as in K&F 2018, section 4.2."""

from __future__ import annotations

import keras

import tf_importance as tfi

_FILTERS = (16, 32, 64)
# Keras's penalty is l2 · ‖w‖², so that this is a weight decay of 0.0005.
_L2 = 0.0005 / 2


def wide_resnet(
    input_shape: tuple[int, ...], num_classes: int, depth: int = 28, width: int = 2
) -> keras.Model:
    """WRN-depth-width: three groups of pre-activated blocks, the last two at half resolution.

    Weight decay is on the kernels; the authors' code has it on batch normalization too.

    Args:
        input_shape: (height, width, channels).
        num_classes: number of logits.
        depth: 6n + 4, of which n blocks of two convolutions are in each group.
        width: k; a group has 16k, 32k or 64k filters.
    Raises:
        ValueError: depth is not 6n + 4 with n ≥ 1.
    """
    if depth < 10 or depth % 6 != 4:
        raise ValueError(f"depth must be 6n + 4, such as 10, 16, 28 or 40; got {depth}.")
    inputs = keras.layers.Input(input_shape)
    hidden = _convolution(inputs, 16)
    for group, filters in enumerate(_FILTERS):
        for block in range((depth - 4) // 6):
            strides = 2 if group > 0 and block == 0 else 1
            hidden = _block(hidden, filters * width, strides)
    hidden = _activated(hidden)
    hidden = keras.layers.GlobalAveragePooling2D()(hidden)
    logits = keras.layers.Dense(
        num_classes, kernel_regularizer=keras.regularizers.L2(_L2), name="logits"
    )(hidden)
    return keras.Model(inputs, logits, name="wide_resnet")


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
