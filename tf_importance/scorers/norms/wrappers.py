"""Layers around layers."""

from __future__ import annotations

import inspect

import keras
import tensorflow as tf

from tf_importance.scorers.norms.recording import Recorder
from tf_importance.scorers.norms.registry import register


@register(keras.layers.TimeDistributed, method="time steps as examples")
def _time_distributed(layer, call, record: Recorder, inputs, training=None, mask=None):
    """The inner layer sees the time steps as examples; what it notes is added up over them."""
    first = tf.nest.flatten(inputs)[0]
    steps = first.shape[1] or tf.shape(first)[1]
    takes_mask = "mask" in inspect.signature(layer.layer.call).parameters
    kwargs = {"mask": _merged(mask)} if takes_mask and tf.is_tensor(mask) else {}
    with record.folding(steps):
        merged = tf.nest.map_structure(_merged, inputs)
        outputs = layer.layer(merged, training=training, **kwargs)
    return tf.nest.map_structure(lambda part: _split(part, first), outputs)


def _merged(values: tf.Tensor) -> tf.Tensor:
    """[B, T, …] as [B·T, …]."""
    batch, steps, *shape = values.shape
    merged = -1 if batch is None or steps is None else batch * steps
    if None in shape:
        shape = tf.shape(values)[2:]
    return tf.reshape(values, tf.concat([[merged], shape], axis=0))


def _split(values: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """[B·T, …] as [B, T, …]."""
    size = tf.shape(like)
    split = tf.reshape(values, tf.concat([size[:2], tf.shape(values)[1:]], axis=0))
    return tf.ensure_shape(split, [like.shape[0], like.shape[1], *values.shape[1:]])
