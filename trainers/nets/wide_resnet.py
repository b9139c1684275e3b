"""Wide residual networks (Zagoruyko & Komodakis 2016), as in K&F 2018, section 4.2."""

from __future__ import annotations

import keras

from trainers.nets import preactivated

_FILTERS = (16, 32, 64)


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
    hidden = preactivated.convolution(inputs, 16)
    for group, filters in enumerate(_FILTERS):
        for block in range((depth - 4) // 6):
            strides = 2 if group > 0 and block == 0 else 1
            hidden = preactivated.block(hidden, filters * width, strides)
    logits = preactivated.logits(hidden, num_classes)
    return keras.Model(inputs, logits, name="wide_resnet")
