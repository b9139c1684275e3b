"""Nets by name: functions (input_shape, num_classes) -> a Keras model that ends in logits."""

from __future__ import annotations

import functools
from collections.abc import Callable

import keras

from tf_importance.arguments import meant
from trainers.nets import (
    cnn,
    lenet,
    linear,
    lstm,
    mlp,
    preactivation_resnet,
    resnet50,
    rotation_cnn,
    tabular,
    wide_resnet,
)

NETS: dict[str, Callable[[tuple[int, ...], int], keras.Model]] = {
    "linear": linear.linear,
    "mlp": mlp.mlp,
    "wide_mlp": mlp.wide_mlp,
    "cnn": cnn.cnn,
    "strided_cnn": cnn.strided_cnn,
    "wide_resnet": wide_resnet.wide_resnet,
    "wide_resnet_28_10": functools.partial(wide_resnet.wide_resnet, width=10),
    "wide_resnet_10_1": functools.partial(wide_resnet.wide_resnet, depth=10, width=1),
    "lenet": lenet.lenet,
    "rotation_cnn": rotation_cnn.rotation_cnn,
    "resnet18": preactivation_resnet.resnet18,
    "resnet50": resnet50.resnet50,
    "lstm": lstm.lstm,
    "mlp_4x256": mlp.mlp_4x256,
    "mlp_4x2048": mlp.mlp_4x2048,
    "mlp_128": mlp.mlp_128,
    "flights_mlp": tabular.flights_mlp,
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
        raise ValueError(f"unknown net {name!r}; known are {', '.join(NETS)}.{meant(name, NETS)}")
    return NETS[name](input_shape, num_classes)
