"""Activations with weights."""

from __future__ import annotations

import keras
import tensorflow as tf

from tf_importance.scorers.norms.contributions import Contribution, Direct
from tf_importance.scorers.norms.dense import unbroadcast
from tf_importance.scorers.norms.recording import Recorder
from tf_importance.scorers.norms.registry import register


@register(keras.layers.PReLU, method="slopes")
def _parametric_relu(layer, call, record: Recorder, inputs, *args, **kwargs):
    def contributions(deltas, inputs) -> list[Contribution]:
        return [Direct(unbroadcast(deltas * tf.minimum(inputs, 0), layer.alpha.shape))]

    return record(call(inputs, *args, **kwargs), [layer.alpha], contributions, inputs)
