"""The gradient of the last layer's weights: of each example and of the batch, exact and cheap.

The gain ratio compares second moments of per-example gradients with that of the batch's, so all
must be taken of the same weights. For the last layer no backward pass is needed: with δ_i the
gradient at its pre-activations and h_i its input, the example's gradient is h_i δ_iᵀ for the
kernel and δ_i for the bias.
"""

from __future__ import annotations

from typing import NamedTuple

import keras
import tensorflow as tf

from tf_importance import compat, losses
from tf_importance.scorers import forward
from tf_importance.scorers.upper_bound import closed_form_deltas, of_examples, taped_deltas

_SUMS = ("BiasAdd", "Add", "AddV2")
_PASSED_ON = ("Identity", "Cast")


class Dense(NamedTuple):
    """A dense layer as seen in the graph.

    Attributes:
        inputs: [b, d] h, or [b, …, d] of a head that is used at several positions, with these
            folded into the first axis. kernel: [d, k], as it was read.
        has_bias: whether a bias was added.
    """

    inputs: tf.Tensor
    kernel: tf.Tensor
    has_bias: bool


class GradientSquares(NamedTuple):
    """Squared norms of gradients by the last layer's weights.

    Attributes:
        per_example: [b] ‖∇f_i‖².
        batch: scalar, ‖mean_i(w_i ∇f_i) + ∇penalty‖².
    """

    per_example: tf.Tensor
    batch: tf.Tensor


def gradient_squares(
    net: keras.Model, objective: losses.Objective, labels, passed: forward.Forward, weights
) -> GradientSquares:
    """‖∇f_i‖² = (‖h_i‖² + 1)‖δ_i‖², and the same of the weighted mini-batch gradient.

    A dense layer that is used at several positions t (of a sequence, say) has the sum of theirs,
    Σ_t h_t δ_tᵀ, as an example's gradient. Where the last layer is not dense, or its input is out
    of sight (eager mode), h is left out and the gradients are those of a bias alone. Several
    outputs add up. A penalty on a dense kernel counts in the batch's gradient, as λw does in RAIS's
    g_R.

    Args:
        net: the net that made the pass. objective: the compiled loss.
        labels: nest of [b, …]. passed: the forward pass. weights: [b].
    """
    heads = [forward.Head(tf.cast(z, tf.float32), act) for z, act in passed.heads]
    passed_in_float32 = forward.Forward(passed.outputs, heads)
    deltas = closed_form_deltas(objective, labels, passed_in_float32)
    originals = [head.preactivation for head in passed.heads]
    if deltas is None or len(deltas) != len(originals):
        deltas = taped_deltas(objective, labels, passed_in_float32)
    squares = [
        _of_output(net, z, delta, weights)
        for z, delta in zip(originals, deltas)
        # What is one number for the batch has no loss by example.
        if z.shape.rank != 0
    ]
    parts = zip(*squares)
    return GradientSquares(*(tf.stop_gradient(tf.add_n(list(part))) for part in parts))


def _of_output(net, preactivation, delta, weights) -> GradientSquares:
    dense = seen_dense(preactivation)
    folded = None not in (preactivation.shape[0], weights.shape[0]) and (
        preactivation.shape[0] != weights.shape[0]
    )
    if dense is not None and (preactivation.shape.rank > 2 or folded):
        return _of_positions(net, dense, delta, weights)
    delta = of_examples(delta, weights)
    weighted = delta * (weights / tf.cast(tf.size(weights), tf.float32))[:, tf.newaxis]
    delta_squares = tf.reduce_sum(delta**2, axis=1)
    if dense is None:
        return GradientSquares(delta_squares, tf.reduce_sum(tf.reduce_sum(weighted, axis=0) ** 2))
    inputs = tf.cast(dense.inputs, tf.float32)
    # A bias is the weight of one more input, which is 1.
    more = [[0, 0], [0, 1]] if dense.has_bias else None
    if more is not None:
        inputs = tf.pad(inputs, more, constant_values=1.0)
    gradient = tf.linalg.matmul(inputs, weighted, transpose_a=True)
    penalty = _penalty_gradient(net, dense)
    if penalty is not None:
        gradient += penalty if more is None else tf.pad(penalty, more[::-1])
    per_example = delta_squares * tf.reduce_sum(inputs**2, axis=1)
    return GradientSquares(per_example, tf.reduce_sum(gradient**2))


def _of_positions(net, dense: Dense, delta, weights) -> GradientSquares:
    """Of a head that is used at T positions of each example, by Σ_t h_t δ_tᵀ."""
    size = tf.shape(weights)[0]
    delta = tf.reshape(delta, [size, -1, dense.kernel.shape[1]])
    inputs = tf.reshape(tf.cast(dense.inputs, tf.float32), [size, -1, dense.kernel.shape[0]])
    more = [[0, 0], [0, 1]] if dense.has_bias else [[0, 0], [0, 0]]
    inputs = tf.pad(inputs, [[0, 0], *more], constant_values=1.0)
    of_each = tf.linalg.matmul(inputs, delta, transpose_a=True)
    gradient = tf.tensordot(weights / tf.cast(size, tf.float32), of_each, 1)
    penalty = _penalty_gradient(net, dense)
    if penalty is not None:
        gradient += tf.pad(penalty, more[::-1])
    return GradientSquares(tf.reduce_sum(of_each**2, axis=[1, 2]), tf.reduce_sum(gradient**2))


def seen_dense(preactivation: tf.Tensor) -> Dense | None:
    """h and the kernel of z = h W (+ b), read off the graph; None where that is not what made z.

    Args:
        preactivation: [b, …, k] z.
    """
    if tf.executing_eagerly() or preactivation.shape.rank < 2:
        return None
    operation = _source(preactivation)
    has_bias = operation.type in _SUMS
    if has_bias:
        operation = _source(operation.inputs[0])
    if operation.type == "Reshape" and preactivation.shape.rank > 2:
        operation = _source(operation.inputs[0])
    if operation.type != "MatMul" or operation.inputs[1].shape.rank != 2:
        return None
    if operation.get_attr("transpose_a") or operation.get_attr("transpose_b"):
        return None
    return Dense(operation.inputs[0], operation.inputs[1], has_bias)


def _source(tensor: tf.Tensor) -> tf.Operation:
    """The operation that made a tensor, past those that hand it on."""
    operation = tensor.op
    while operation.type in _PASSED_ON:
        operation = operation.inputs[0].op
    return operation


def _penalty_gradient(net, dense: Dense) -> tf.Tensor | None:
    """The gradient of the kernel's own regularizer; None where it has none."""
    regularizer = _regularizer(net, dense.kernel)
    if regularizer is None:
        return None
    kernel = tf.cast(dense.kernel, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        penalty = regularizer(kernel)
    return tape.gradient(penalty, kernel)


def _regularizer(net, kernel: tf.Tensor):
    """The regularizer of the layer whose kernel was read."""
    read = _source(kernel)
    if read.type != "ReadVariableOp":
        return None
    handles = {inside.name: outside for outside, inside in read.graph.captures}
    handle = handles.get(read.inputs[0].name)
    for layer in net._flatten_layers():
        if handle is not None and compat.handle(getattr(layer, "kernel", None)) is handle:
            return getattr(layer, "kernel_regularizer", None)
    return None
