"""Batch normalization of drawn examples: its statistics, its gradient, its moving averages.

With x the values of a channel, w the weights of the examples and q = w/Σw:

    μ_w = Σ q x,  σ_w² = Σ q (x − μ_w)²                              the batch's own statistics
    y = γ (x − μ)/√(σ² + ε) + β                                      by these or by others
    μ = μ_w + stop_gradient(m − μ_w),  σ² = σ_w² + stop_gradient(v − σ_w²)

m and v are what the batch is normalized by, and gradients flow through its own statistics. All
functions take a Keras layer for its arguments and variables.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf


class Statistics(NamedTuple):
    """Of each channel: [C] each."""

    mean: tf.Tensor
    variance: tf.Tensor


class Rows(NamedTuple):
    """The inputs of a layer, every position of every example a row.

    Attributes:
        values: [N, C]. counts: [N, 1] what each row counts, its example's weight.
        restore: [N, C] to a tensor like the inputs.
    """

    values: tf.Tensor
    counts: tf.Tensor
    restore: Callable[[tf.Tensor], tf.Tensor]


def rows(layer: keras.layers.Layer, inputs, weights: tf.Tensor | None, mask=None) -> Rows:
    """A layer's inputs as rows.

    No weight counts as more than b, a whole uniform batch (truncated importance sampling, Ionides
    2008). Where the net has folded an inner axis into the batch, example by example, its weight is
    repeated; where no example has any, all count alike.

    Args:
        inputs: [b, …]. weights: [b], None for 1 each. mask: None, or what may be counted.
    """
    dtype = tf.float64 if inputs.dtype == tf.float64 else tf.float32
    values = tf.cast(inputs, dtype)
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    axes = [axis % values.shape.rank for axis in axes]
    order = [i for i in range(values.shape.rank) if i not in axes] + axes
    channels = math.prod(values.shape[i] for i in axes)
    ordered = tf.transpose(values, order)
    flat = tf.reshape(ordered, [-1, channels])
    if weights is None:
        weights = tf.ones([tf.shape(values)[0]])
    weights = truncated(tf.cast(weights, dtype))
    each = tf.repeat(weights, tf.shape(flat)[0] // tf.size(weights))[:, tf.newaxis]
    if mask is not None:
        kept = tf.cast(mask, dtype)[..., tf.newaxis] * tf.ones_like(values)
        each *= tf.reshape(tf.transpose(kept, order), tf.shape(flat))[:, :1]
    each = tf.where(tf.reduce_sum(weights) > 0, each, tf.ones_like(each))

    def restore(outputs: tf.Tensor) -> tf.Tensor:
        outputs = tf.transpose(tf.reshape(outputs, tf.shape(ordered)), np.argsort(order))
        return tf.ensure_shape(outputs, values.shape)

    return Rows(flat, each, restore)


def truncated(weights: tf.Tensor) -> tf.Tensor:
    """No weight above b: [b]."""
    return tf.minimum(weights, tf.cast(tf.size(weights), weights.dtype))


def own_statistics(
    layer: keras.layers.Layer, batch: Rows, of_all_replicas: bool = True
) -> Statistics:
    """μ_w and σ_w².

    Args:
        of_all_replicas: whether those of all count where the layer is `synchronized`.
    """

    def together(*sums: tf.Tensor) -> list[tf.Tensor]:
        return summed(layer, *sums) if of_all_replicas else list(sums)

    values, counts = map(tf.stop_gradient, (batch.values, batch.counts))
    total, first = together(tf.reduce_sum(counts), _product(counts, values))
    shares = tf.math.divide_no_nan(counts, total)
    mean = tf.math.divide_no_nan(first, total)
    (variance,) = together(_product(shares, tf.math.squared_difference(values, mean)))
    return Statistics(mean[0], variance[0])


def normalized(
    layer: keras.layers.Layer, batch: Rows, own: Statistics, given: Statistics
) -> tf.Tensor:
    """y of the inputs, with its gradient written out.

    With x̂ = (x − m)/√(v + ε), dx = γ/√(v + ε) (dy − q (Σ dy + (x − μ_w)/√(v + ε) Σ dy x̂)). What
    TensorFlow would derive passes over the values twice as often.

    Args:
        own: μ_w, σ_w². given: m, v.
    Returns:
        A tensor like the inputs, in the layer's type.
    """
    dtype, channels = batch.values.dtype, batch.values.shape[1]
    gamma = tf.reshape(layer.gamma, [-1]) if layer.scale else tf.ones([channels])
    beta = tf.reshape(layer.beta, [-1]) if layer.center else tf.zeros([channels])

    @tf.custom_gradient
    def normalize(values, counts, gamma, beta, own_mean, mean, variance):
        inverse = tf.math.rsqrt(variance + layer.epsilon)
        factor = gamma * inverse

        def gradient(upstream):
            (total,) = summed(layer, tf.reduce_sum(counts))
            shares = tf.math.divide_no_nan(counts, total)
            ones = tf.ones_like(counts)
            of_beta = _product(ones, upstream)
            of_gamma = inverse * (_product(ones, upstream * values) - mean * of_beta)
            all_beta, all_gamma = summed(layer, of_beta, of_gamma)
            slope = factor * inverse * all_gamma
            offset = factor * all_beta - own_mean * slope
            of_values = upstream * factor - shares * (values * slope + offset)
            return of_values, None, of_gamma[0], of_beta[0], None, None, None

        return values * factor + (beta - mean * factor), gradient

    gamma, beta = tf.cast(gamma, dtype), tf.cast(beta, dtype)
    outputs = normalize(batch.values, batch.counts, gamma, beta, own.mean, *given)
    return tf.cast(batch.restore(outputs), layer.compute_dtype)


def moved(layer: keras.layers.Layer, statistics: Statistics) -> Statistics:
    """The moving averages after a batch: momentum · themselves + (1 − momentum) · statistics."""
    before, decay = moving(layer, statistics.mean.dtype), layer.momentum
    return Statistics(*(decay * a + (1 - decay) * b for a, b in zip(before, statistics)))


def moved_weighted(layer: keras.layers.Layer, own: Statistics, weights: tf.Tensor) -> Statistics:
    """The moving averages after a drawn batch, of its own statistics; for w = 1 those of `moved`.

    * a batch counts as much as its weights: with W = Σw/b, the decay of this step is momentum^W. A
      batch of W = 1 counts as in Keras; one that stands for few examples of the data (W ≪ 1) hardly
      moves them. Without this the average of the ratios Σwx/Σw would lean towards the examples that
      are drawn often;
    * drawn means scatter more than uniform ones, by κ = b Σw²/(Σw)² ≥ 1, and variance lost inside
      the batches shows up between them: the moving variance takes up
      σ² + (1 − 1/κ)(μ − moving mean)², whose expectation is that of a uniform batch.

    Args:
        weights: [b].
    """
    dtype = own.mean.dtype
    weights = truncated(tf.cast(weights, dtype))
    size, weight, square = summed(
        layer,
        tf.reduce_sum(tf.ones_like(weights)),
        tf.reduce_sum(weights),
        tf.reduce_sum(weights**2),
    )
    decay = tf.pow(tf.cast(layer.momentum, dtype), weight / size)
    excess = 1 - tf.math.divide_no_nan(weight**2, size * square)
    before = moving(layer, dtype)
    between = excess * (own.mean - before.mean) ** 2
    return Statistics(
        decay * before.mean + (1 - decay) * own.mean,
        decay * before.variance + (1 - decay) * (own.variance + between),
    )


def pooled(
    before: Statistics, weight: tf.Tensor, own: Statistics, own_weight: tf.Tensor
) -> Statistics:
    """Statistics of two sets of examples together (Chan, Golub & LeVeque 1979).

    Args:
        before: of the one, whose examples weigh `weight` in all. own, own_weight: of the other.
    """
    share = tf.math.divide_no_nan(own_weight, weight + own_weight)
    apart = own.mean - before.mean
    between = share * (1 - share) * apart**2
    return Statistics(
        before.mean + share * apart,
        before.variance + share * (own.variance - before.variance) + between,
    )


def summed(layer: keras.layers.Layer, *sums: tf.Tensor) -> list[tf.Tensor]:
    """The sums over all replicas where the layer is `synchronized`."""
    if not getattr(layer, "synchronized", False):
        return list(sums)
    replica = tf.distribute.get_replica_context()
    return list(replica.all_reduce(tf.distribute.ReduceOp.SUM, list(sums)))


def moving(layer: keras.layers.Layer, dtype: tf.DType) -> Statistics:
    """A layer's moving averages."""
    parts = (layer.moving_mean, layer.moving_variance)
    flat = (tf.reshape(tf.convert_to_tensor(part), [-1]) for part in parts)
    return Statistics(*(tf.cast(part, dtype) for part in flat))


def set_moving(layer: keras.layers.Layer, statistics: Statistics) -> None:
    """Write a layer's moving averages."""
    for variable, value in zip((layer.moving_mean, layer.moving_variance), statistics):
        variable.assign(tf.cast(tf.reshape(value, variable.shape), variable.dtype))


def _product(counts: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Σ counts · values: [1, C]; a matrix product is quicker than a reduction."""
    return tf.linalg.matmul(counts, values, transpose_a=True)
