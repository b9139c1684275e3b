"""Nets that were trained before, with a new last layer."""

from __future__ import annotations

import pathlib

import keras

from trainers import nets
from trainers.nets import resnet50

NONE = "none"


def build(name: str, weights: str, input_shape: tuple[int, ...], num_classes: int) -> keras.Model:
    """A net with the weights of another task and a new, random last layer.

    Args:
        name: a key of NETS; of no account where weights are a whole net.
        weights: "none" for a net with random weights; a .keras file, such as the net.keras that
            a trainer leaves, whose last layer is replaced; for resnet50 also "imagenet" or a file
            of keras.applications.
        input_shape: shape of one example.
        num_classes: number of logits.
    Raises:
        ValueError: no such file, a net for other inputs, or weights that this net has no use for.
    """
    if weights == NONE:
        return nets.build(name, input_shape, num_classes)
    if weights.endswith(".keras"):
        return _with_new_head(weights, input_shape, num_classes)
    if name != "resnet50":
        raise ValueError(
            f"--weights={weights} is for --net=resnet50; --net={name} takes a .keras file or none."
        )
    return resnet50.resnet50(input_shape, num_classes, weights)


def _with_new_head(weights: str, input_shape: tuple[int, ...], num_classes: int) -> keras.Model:
    if not pathlib.Path(weights).exists():
        raise ValueError(
            f"--weights={weights} is no file; a trainer leaves net.keras in its --out."
        )
    trained = keras.models.load_model(weights, compile=False)
    if tuple(trained.input_shape[1:]) != tuple(input_shape):
        raise ValueError(
            f"--weights={weights} is a net for inputs of shape {trained.input_shape[1:]}; the data "
            f"have {tuple(input_shape)}."
        )
    features = trained.layers[-1].input
    logits = keras.layers.Dense(num_classes, name="new_logits")(features)
    return keras.Model(trained.inputs, logits, name=trained.name)
