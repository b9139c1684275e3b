"""Layers around layers."""

from __future__ import annotations

import keras
import tensorflow as tf

from tf_importance.scorers.norms.recording import Recorder
from tf_importance.scorers.norms.registry import register


@register(keras.layers.TimeDistributed, method="time steps as examples")
def _time_distributed(layer, call, record: Recorder, inputs, training=None, mask=None):
    """The inner layer sees the time steps as examples; what it notes is added up over them."""
    steps = inputs.shape[1] or tf.shape(inputs)[1]
    kwargs = {} if mask is None or not layer.layer.supports_masking else {"mask": _merged(mask)}
    with record.folding(steps):
        outputs = layer.layer(_merged(inputs), training=training, **kwargs)
    return tf.nest.map_structure(lambda part: _split(part, inputs), outputs)


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
