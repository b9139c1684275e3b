"""A net for flights: codes looked up in a table, numbers as they are."""

from __future__ import annotations

import keras

from trainers.datasets import flights

_UNITS = 64


def flights_mlp(input_shape: tuple[int, ...], num_classes: int) -> keras.Model:
    """Embeddings of 64 of the six categories and a hidden layer of 64 rectified units.

    Args:
        input_shape: (6 + numbers,): first the codes, each category's behind those before it.
    Raises:
        ValueError: for other inputs.
    """
    categories = len(flights.CATEGORIES)
    expected = (categories + len(flights.NUMBERS),)
    if tuple(input_shape) != expected:
        raise ValueError(
            f"--net=flights_mlp is for flights, inputs of shape {expected}; got {input_shape}."
        )
    inputs = keras.layers.Input(input_shape)
    looked_up = keras.layers.Embedding(sum(flights.SIZES), _UNITS)(inputs[:, :categories])
    parts = [keras.layers.Flatten()(looked_up), inputs[:, categories:]]
    hidden = keras.layers.Dense(_UNITS, activation="relu")(keras.layers.Concatenate()(parts))
    outputs = keras.layers.Dense(num_classes, name="logits")(hidden)
    return keras.Model(inputs, outputs, name="flights_mlp")
