"""Pre-activated residual blocks (He et al. 2016), which two families of nets are made of."""

from __future__ import annotations

import keras

# λ/2 ‖w‖² with λ = 5e-4, of K&F 2018 (as weight decay) and Johnson & Guestrin 2018 alike.
_L2 = 0.0005 / 2


def block(inputs, filters: int, strides: int):
    """Two convolutions, and past them the inputs, or where shapes change a 1 × 1 convolution."""
    activated = _activated(inputs)
    same_shape = inputs.shape[-1] == filters and strides == 1
    shortcut = inputs if same_shape else convolution(activated, filters, strides, size=1)
    hidden = _activated(convolution(activated, filters, strides))
    return keras.layers.Add()([shortcut, convolution(hidden, filters)])


def convolution(inputs, filters: int, strides: int = 1, size: int = 3):
    """A convolution without bias."""
    return keras.layers.Conv2D(
        filters,
        size,
        strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        kernel_regularizer=keras.regularizers.L2(_L2),
    )(inputs)


def logits(hidden, num_classes: int):
    """A classifier of what the last block gives."""
    pooled = keras.layers.GlobalAveragePooling2D()(_activated(hidden))
    regularizer = keras.regularizers.L2(_L2)
    return keras.layers.Dense(num_classes, kernel_regularizer=regularizer, name="logits")(pooled)


def _activated(inputs):
    return keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(inputs))
