"""The pre-activation ResNet of 18 layers (He et al. 2016), as in Johnson & Guestrin 2018."""

from __future__ import annotations

import keras

from trainers.nets import preactivated

_FILTERS = (64, 128, 256, 512)
_BLOCKS_PER_GROUP = 2


def resnet18(input_shape: tuple[int, ...], num_classes: int) -> keras.Model:
    """Four groups of two pre-activated residual blocks, all but the first at half resolution.

    As it is built for images of 32 x 32: one convolution of 3 x 3 before the first block.
    """
    inputs = keras.layers.Input(input_shape)
    hidden = preactivated.convolution(inputs, _FILTERS[0])
    for group, filters in enumerate(_FILTERS):
        for block in range(_BLOCKS_PER_GROUP):
            strides = 2 if group > 0 and block == 0 else 1
            hidden = preactivated.block(hidden, filters, strides)
    logits = preactivated.logits(hidden, num_classes)
    return keras.Model(inputs, logits, name="resnet18")
