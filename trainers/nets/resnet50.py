"""ResNet-50 with a new head, as in K&F 2018, section 4.3."""

from __future__ import annotations

import pathlib

import keras

IMAGENET = "imagenet"
# Of the blue, green and red channel of ImageNet, from which the weights were trained to deviate.
_MEANS = (103.939, 116.779, 123.68)


def resnet50(
    input_shape: tuple[int, ...], num_classes: int, weights: str | None = None
) -> keras.Model:
    """keras.applications' ResNet-50 on images in [0, 1], with a new last layer.

    Args:
        input_shape: (height, width, 3), each side at least 32.
        num_classes: number of logits.
        weights: None for random ones; "imagenet", which keras.applications downloads; or a file
            of keras.applications' weights without the top (…_notop.h5).
    Raises:
        RuntimeError: the weights could not be downloaded.
        ValueError: no such file, or one with other weights; images that are too small or not of
            three channels.
    """
    if len(input_shape) != 3 or min(input_shape[:2]) < 32 or input_shape[2] != 3:
        raise ValueError(f"resnet50 takes images of at least 32x32x3; got {input_shape}.")
    if weights not in (None, IMAGENET) and not pathlib.Path(weights).exists():
        raise ValueError(f"--weights={weights} is no file; give one, {IMAGENET} or none.")
    inputs = keras.layers.Input(input_shape)
    pixels = keras.layers.Rescaling(255.0)(inputs)[:, :, :, ::-1]
    centered = keras.layers.Normalization(mean=_MEANS, variance=(1.0, 1.0, 1.0))(pixels)
    try:
        body = keras.applications.ResNet50(
            include_top=False, weights=weights, input_tensor=centered, pooling="avg"
        )
    # keras.utils.get_file raises plain Exceptions.
    except Exception as error:
        if weights != IMAGENET:
            raise ValueError(f"--weights={weights} are not ResNet-50's: {error}") from error
        raise RuntimeError(
            f"the ImageNet weights could not be downloaded: {error}\nWithout a network, get "
            "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5 of keras-applications and give "
            "--weights=FILE."
        ) from error
    logits = keras.layers.Dense(num_classes, name="logits")(body.output)
    return keras.Model(inputs, logits, name="resnet50")
