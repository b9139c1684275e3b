"""Layers of TensorFlow Addons, by name: importing it only to register them would be too much."""

from __future__ import annotations

import functools
from typing import Any

import tensorflow as tf

from tf_importance.scorers.norms import registry
from tf_importance.scorers.norms.contributions import Contribution, Direct
from tf_importance.scorers.norms.dense import matrix, unbroadcast
from tf_importance.scorers.norms.recording import Recorder, replaced
from tf_importance.scorers.norms.recurrent import lstm_states


@registry.register(
    "tensorflow_addons.rnn.layer_norm_lstm_cell.LayerNormLSTMCell",
    method="gates of one time step",
)
def _layer_norm_lstm_cell(cell, call, record: Recorder, inputs, states, *args, **kwargs):
    state, carry = tf.nest.flatten(states)

    def product(values: tf.Tensor, variable) -> tf.Tensor:
        kernel = tf.cast(tf.convert_to_tensor(variable), values.dtype)
        return record(
            tf.matmul(values, kernel),
            [variable],
            lambda deltas, values: [matrix(values, deltas)],
            values,
        )

    gates = cell.kernel_norm(product(inputs, cell.kernel))
    gates += cell.recurrent_norm(product(state, cell.recurrent_kernel))
    if cell.use_bias:
        gates += tf.cast(tf.convert_to_tensor(cell.bias), gates.dtype)
        gates = record(
            gates, [cell.bias], lambda deltas: [Direct(unbroadcast(deltas, deltas.shape[-1:]))]
        )
    output, carry = lstm_states(cell, gates, carry, cell.state_norm)
    return output, [output, carry]


def _inner_entry(layer) -> registry.Entry | None:
    return None if layer.is_rnn else registry.entry_of(layer.layer)


@registry.register(
    "tensorflow_addons.layers.wrappers.WeightNormalization",
    method="gradient of the normalized kernel",
    suits=lambda layer: _inner_entry(layer) is not None,
)
def _weight_normalization(layer, call, record: Recorder, inputs, *args, **kwargs):
    """kernel = g v/‖v‖, the norm taken over all axes but the last, of an initialized layer."""
    inner, entry = layer.layer, _inner_entry(layer)
    direction, scale = (tf.convert_to_tensor(variable) for variable in (layer.v, layer.g))
    axes = layer.kernel_norm_axes
    unit = tf.nn.l2_normalize(direction, axis=axes)
    length = tf.sqrt(tf.reduce_sum(direction**2, axis=axes, keepdims=True))

    def adapted(outputs, variables, contributions, *saved):
        """What the layer inside notes for its kernel, passed on to v and g."""

        def passed_on(*tensors) -> list[Contribution | None]:
            kernel, *others = contributions(*tensors)
            gradients = kernel.gradients()
            by_scale = tf.reduce_sum(gradients * unit, axis=[axis + 1 for axis in axes])
            aligned = tf.reshape(by_scale, [-1, *[1] * len(axes), layer.layer_depth])
            by_direction = scale / length * (gradients - unit * aligned)
            return [Direct(by_direction), Direct(by_scale), *others]

        return record(outputs, [layer.v, layer.g, *variables[1:]], passed_on, *saved)

    own_call: Any = functools.partial(type(inner).call, inner)
    assert entry is not None  # `suits` has seen to that.
    with replaced(inner, kernel=unit * scale):
        return entry.handler(inner, own_call, adapted, inputs)
