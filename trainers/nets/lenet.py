"""LeNet-5 (LeCun et al. 1998), as in Johnson & Guestrin 2018, section 6."""

from __future__ import annotations

import keras

# Keras's penalty is l2 · ‖w‖², theirs is λ/2 ‖w‖² with λ = 2.5e-4, on all weights.
_L2 = 2.5e-4 / 2


def lenet(input_shape: tuple[int, ...], num_classes: int) -> keras.Model:
    """Two convolutions of 6 and 16 channels with pooling; dense layers of 120 and 84 units.

    With ReLU and max-pooling, as the net is usually built today. Images below 28 x 28 keep their
    size in the second convolution.
    """
    inner = "valid" if input_shape[0] >= 28 else "same"
    penalty = {
        "kernel_regularizer": keras.regularizers.L2(_L2),
        "bias_regularizer": keras.regularizers.L2(_L2),
    }
    return keras.Sequential(
        [
            keras.layers.Input(input_shape),
            keras.layers.Conv2D(6, 5, padding="same", activation="relu", **penalty),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(16, 5, padding=inner, activation="relu", **penalty),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(120, activation="relu", **penalty),
            keras.layers.Dense(84, activation="relu", **penalty),
            keras.layers.Dense(num_classes, name="logits", **penalty),
        ],
        name="lenet",
    )
