"""Normalizations, which scale and shift what they have normalized."""

from __future__ import annotations

import keras
import tensorflow as tf

from tf_importance import compat, layers
from tf_importance.arguments import named
from tf_importance.scorers.norms.contributions import Contribution, Direct
from tf_importance.scorers.norms.dense import unbroadcast
from tf_importance.scorers.norms.recording import Recorder, replaced
from tf_importance.scorers.norms.registry import register

L = keras.layers


def _scaled(record: Recorder, normalized, scale, offset, shape, dtype) -> tf.Tensor:
    """normalized · scale + offset, noted.

    Args:
        normalized: [B, …]. scale, offset: variables or None.
        shape: of the two among the axes of `normalized` after the first.
        dtype: of the outputs.
    """
    outputs = normalized
    for variable, combine in ((scale, tf.multiply), (offset, tf.add)):
        if variable is not None:
            value = tf.cast(tf.convert_to_tensor(variable), outputs.dtype)
            outputs = combine(outputs, tf.reshape(value, shape))

    def contributions(deltas, normalized) -> list[Contribution | None]:
        def direct(variable, values):
            if variable is None:
                return None
            values = unbroadcast(values, shape)
            return Direct(tf.reshape(values, [-1, *variable.shape]))

        return [direct(scale, deltas * normalized), direct(offset, deltas)]

    # Noted before the cast: sums of float16 would lose what the layer itself keeps.
    return tf.cast(record(outputs, [scale, offset], contributions, normalized), dtype)


def _axes(axis, rank: int) -> list[int]:
    listed = list(axis) if isinstance(axis, (list, tuple)) else [axis]
    return [each % rank for each in listed]


def _shape_of(inputs: tf.Tensor, axis) -> list[int]:
    """The shape of a scale along axes, among all axes after the first."""
    rank = inputs.shape.rank
    kept = _axes(axis, rank)
    if 0 in kept:
        raise ValueError(
            "a normalization over axis 0 couples the examples of a batch, which then have no "
            f"gradients of their own; got axis={named(axis)}. Leave axis 0 out."
        )
    return [inputs.shape[each] if each in kept else 1 for each in range(1, rank)]


@register(L.LayerNormalization, method="scale and offset")
def _layer_normalization(layer, call, record: Recorder, inputs, *args, **kwargs):
    # With a scale of 1 and no offset, the layer's own call normalizes.
    neutral = {
        name: tf.fill(variable.shape, tf.constant(number, layer.variable_dtype))
        for name, variable, number in (("gamma", layer.gamma, 1), ("beta", layer.beta, 0))
        if variable is not None
    }
    with replaced(layer, **neutral):
        normalized = call(inputs, *args, **kwargs)
    shape = _shape_of(inputs, layer.axis)
    return _scaled(record, normalized, layer.gamma, layer.beta, shape, normalized.dtype)


@register(L.GroupNormalization, method="scale and offset")
def _group_normalization(layer, call, record: Recorder, inputs, *args, **kwargs):
    with replaced(layer, scale=False, center=False):
        normalized = call(inputs, *args, **kwargs)
    shape = _shape_of(inputs, layer.axis)
    scale, offset = getattr(layer, "gamma", None), getattr(layer, "beta", None)
    return _scaled(record, normalized, scale, offset, shape, normalized.dtype)


@register(*compat.layers_named("RMSNormalization"), method="scale")
def _rms_normalization(layer, call, record: Recorder, inputs, *args, **kwargs):
    ones = tf.ones(layer.scale.shape, layer.variable_dtype)
    with replaced(layer, scale=ones):
        normalized = call(inputs, *args, **kwargs)
    shape = _shape_of(inputs, layer.axis)
    return _scaled(record, normalized, layer.scale, None, shape, normalized.dtype)


@register(L.BatchNormalization, layers.BatchNormalization, method="frozen statistics")
def _batch_normalization(layer, call, record: Recorder, inputs, training=None, **kwargs):
    """With the moving statistics: those of the batch would couple its examples."""
    if training:
        raise ValueError(
            f"layer {layer.name!r} normalizes by the statistics of the batch, so that an "
            "example has no gradient of its own; call it with training=False."
        )
    shape = _shape_of(inputs, layer.axis)
    scale, offset = getattr(layer, "gamma", None), getattr(layer, "beta", None)

    def contributions(deltas, inputs) -> list[Contribution | None]:
        def moving(variable) -> tf.Tensor:
            return tf.cast(tf.convert_to_tensor(variable), deltas.dtype)

        # Of all that is normalized only the sums are needed: the layer's own operation, which
        # is fused, gives the outputs.
        centred = inputs - tf.reshape(moving(layer.moving_mean), shape)
        sums = tf.reshape(unbroadcast(deltas * centred, shape), [-1, *layer.moving_mean.shape])
        by_scale = sums * tf.math.rsqrt(moving(layer.moving_variance) + layer.epsilon)
        by_offset = tf.reshape(unbroadcast(deltas, shape), [-1, *layer.moving_mean.shape])
        return [Direct(by_scale), Direct(by_offset)]

    outputs = call(inputs, training=False, **kwargs)
    return record(outputs, [scale, offset], contributions, inputs)
