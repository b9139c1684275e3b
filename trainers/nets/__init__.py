"""Nets by name: functions (input_shape, num_classes) -> a Keras model that ends in logits."""

from __future__ import annotations

from collections.abc import Callable

import keras

from trainers.nets import (
    cnn,
    lenet,
    linear,
    mlp,
    preactivation_resnet,
    rotation_cnn,
    wide_resnet,
)

NETS: dict[str, Callable[[tuple[int, ...], int], keras.Model]] = {
    "linear": linear.linear,
    "mlp": mlp.mlp,
    "wide_mlp": mlp.wide_mlp,
    "cnn": cnn.cnn,
    "wide_resnet": wide_resnet.wide_resnet,
    "lenet": lenet.lenet,
    "rotation_cnn": rotation_cnn.rotation_cnn,
    "resnet18": preactivation_resnet.resnet18,
}


def build(name: str, input_shape: tuple[int, ...], num_classes: int) -> keras.Model:
    """A new net with random weights.

    Args:
        name: a key of NETS.
        input_shape: shape of one example.
        num_classes: number of logits.
    Returns:
        A functional Keras model.
    Raises:
        ValueError: unknown name.
    """
    if name not in NETS:
        raise ValueError(f"unknown net {name!r}; known are {', '.join(NETS)}.")
    return NETS[name](input_shape, num_classes)
