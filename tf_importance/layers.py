"""Batch normalization that learns the data's statistics, not those of the drawn examples.

Ordinary batch normalization averages the batch, and importance sampling fills the batch with
hard examples: the moving statistics then describe a distribution that the net never meets
again. RAIS (Johnson & Guestrin 2018, section 4.5) weights each example by 1/(n p_i).
"""

from __future__ import annotations

import contextlib
import contextvars
import math
import warnings
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf

_weights: contextvars.ContextVar[tf.Tensor | None] = contextvars.ContextVar(
    "importance_weights", default=None
)


@contextlib.contextmanager
def importance_weights(weights: tf.Tensor | None) -> Iterator[None]:
    """Within this context, layers that weight their statistics use these weights.

    `ISModel.train_step` opens it; open it yourself in a training loop of your own.

    Args:
        weights: [b] weights of the batch that passes through the net, of expectation 1, or
            None.
    """
    token = _weights.set(weights)
    try:
        yield
    finally:
        _weights.reset(token)


def current_weights() -> tf.Tensor | None:
    """The weights of the innermost `importance_weights` context, None outside of any."""
    return _weights.get()


@keras.saving.register_keras_serializable(package="tf_importance")
class BatchNormalization(keras.layers.BatchNormalization):
    """Batch normalization with importance-weighted batch and moving statistics.

    Arguments, weights and inference are those of `keras.layers.BatchNormalization`, and so is
    training where no weights are in force (see `importance_weights`). With weights w:

    * the batch is normalized by μ = Σ w x / Σ w and σ² = Σ w (x − μ)² / Σ w, sums over the
      examples and every axis but the layer's;
    * a batch counts in the moving averages as much as its weights: with W = Σw/b, the decay
      of this step is momentum^W. A batch of W = 1 counts as in Keras; one that stands for
      few examples of the data (W ≪ 1) hardly moves them. Without this the average of the
      ratios Σwx/Σw would lean towards the examples that are drawn often;
    * drawn means scatter more than uniform ones, by κ = b Σw²/(Σw)² ≥ 1, and variance lost
      inside the batches shows up between them: the moving variance takes up
      σ² + (1 − 1/κ)(μ − moving mean)², whose expectation is that of a uniform batch.

    In all of these no weight counts as more than b, a whole uniform batch (truncated importance
    sampling, Ionides 2008): an example whose weight outdoes all others' together would make
    the batch's variance nearly zero and the moving averages its own. The price is a bias
    towards the examples drawn often, where weights above b carry much of the data. The
    weights of the loss are never truncated.

    For w = 1 all of this is Keras's own statistics. Where all weights of a batch are zero it
    is normalized without them and leaves the moving averages alone.

    Raises:
        ValueError: with `renorm=True`, whose statistics are not weighted here.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if getattr(self, "renorm", False):
            raise ValueError(
                f"layer {self.name!r} has renorm=True, whose running statistics cannot be "
                "importance-weighted; use renorm=False."
            )

    def call(self, inputs, training=None, mask=None):
        weights = current_weights()
        if weights is None or not training or not self.trainable:
            return super().call(inputs, training=training, mask=mask)
        dtype = tf.float64 if inputs.dtype == tf.float64 else tf.float32
        values, weights = tf.cast(inputs, dtype), tf.cast(weights, dtype)
        weights = tf.minimum(weights, tf.cast(tf.size(weights), dtype))
        order = self._axes_last(values)
        ordered = tf.transpose(values, order)
        channels = math.prod(values.shape[i] for i in self._axes(values))
        rows = tf.reshape(ordered, [-1, channels])
        gamma = tf.reshape(self.gamma, [-1]) if self.scale else tf.ones([channels])
        beta = tf.reshape(self.beta, [-1]) if self.center else tf.zeros([channels])
        outputs, mean, variance = _normalized(
            rows,
            self._counts(rows, weights, values, mask),
            tf.cast(gamma, dtype),
            tf.cast(beta, dtype),
            self.epsilon,
            self._summed,
        )
        self._update_moving_averages(
            tf.reshape(mean, self.moving_mean.shape),
            tf.reshape(variance, self.moving_mean.shape),
            weights,
        )
        outputs = tf.transpose(tf.reshape(outputs, tf.shape(ordered)), np.argsort(order))
        return tf.cast(tf.ensure_shape(outputs, values.shape), self.compute_dtype)

    def _counts(self, rows, weights, values, mask) -> tf.Tensor:
        """[N, 1] what each row counts: its example's weight; all 1 where no example has any.

        Where the net has folded an inner axis into the batch, example by example, its weight is
        repeated.
        """
        each = tf.repeat(weights, tf.shape(rows)[0] // tf.size(weights))[:, tf.newaxis]
        if mask is not None:
            kept = tf.cast(mask, values.dtype)[..., tf.newaxis] * tf.ones_like(values)
            kept = tf.transpose(kept, self._axes_last(values))
            each *= tf.reshape(kept, tf.shape(rows))[:, :1]
        return tf.where(tf.reduce_sum(weights) > 0, each, tf.ones_like(each))

    def _update_moving_averages(self, mean, variance, weights) -> None:
        ones = tf.ones_like(weights)
        size, weight, square = self._summed(
            tf.reduce_sum(ones), tf.reduce_sum(weights), tf.reduce_sum(weights**2)
        )
        decay = tf.pow(tf.cast(self.momentum, mean.dtype), weight / size)
        excess = 1 - tf.math.divide_no_nan(weight**2, size * square)
        moving_mean = tf.cast(tf.convert_to_tensor(self.moving_mean), mean.dtype)
        moving_variance = tf.cast(tf.convert_to_tensor(self.moving_variance), mean.dtype)
        between = excess * (mean - moving_mean) ** 2
        self.moving_mean.assign(decay * moving_mean + (1 - decay) * mean)
        self.moving_variance.assign(decay * moving_variance + (1 - decay) * (variance + between))

    def _summed(self, *sums: tf.Tensor) -> list[tf.Tensor]:
        """The sums over all replicas where the layer is `synchronized`."""
        if not getattr(self, "synchronized", False):
            return list(sums)
        replica = tf.distribute.get_replica_context()
        return list(replica.all_reduce(tf.distribute.ReduceOp.SUM, list(sums)))

    def _axes(self, values) -> list[int]:
        axes = self.axis if isinstance(self.axis, (list, tuple)) else [self.axis]
        return [axis % values.shape.rank for axis in axes]

    def _axes_last(self, values) -> list[int]:
        axes = self._axes(values)
        return [i for i in range(values.shape.rank) if i not in axes] + axes


def _normalized(rows, counts, gamma, beta, epsilon: float, summed: Callable):
    """γ (x − μ)/√(σ² + ε) + β and the weighted μ and σ²: [N, C], [C], [C].

    With its gradient written out: x̂ the normalized values, q = counts/Σcounts and y the
    outputs, dx = γ/√(σ² + ε) (dy − q (Σ dy + x̂ Σ dy x̂)). What TensorFlow would derive passes
    over the values twice as often.

    Args:
        rows: [N, C] values. counts: [N, 1]. gamma, beta: [C].
        summed: tensors to those added up over all replicas.
    """

    @tf.custom_gradient
    def normalize(rows, counts, gamma, beta):
        total, first = summed(tf.reduce_sum(counts), _product(counts, rows))
        shares = tf.math.divide_no_nan(counts, total)
        mean = tf.math.divide_no_nan(first, total)
        (variance,) = summed(_product(shares, tf.math.squared_difference(rows, mean)))
        inverse = tf.math.rsqrt(variance + epsilon)
        factor = gamma * inverse

        def gradient(upstream, *_):
            ones = tf.ones_like(counts)
            of_beta = _product(ones, upstream)
            of_gamma = inverse * (_product(ones, upstream * rows) - mean * of_beta)
            all_beta, all_gamma = summed(of_beta, of_gamma)
            slope = factor * inverse * all_gamma
            offset = factor * all_beta - mean * slope
            of_rows = upstream * factor - shares * (rows * slope + offset)
            return of_rows, None, of_gamma[0], of_beta[0]

        return (rows * factor + (beta - mean * factor), mean[0], variance[0]), gradient

    outputs, mean, variance = normalize(rows, counts, gamma, beta)
    return outputs, tf.stop_gradient(mean), tf.stop_gradient(variance)


def _product(counts: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Σ counts · rows: [1, C]; a matrix product is quicker than a reduction."""
    return tf.linalg.matmul(counts, rows, transpose_a=True)


def ordinary_batch_normalizations(net: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The trainable layers of a net whose batch statistics are not weighted.

    Args:
        net: a layer or model.
    Returns:
        Batch-normalization layers of any class but this module's.
    """
    return [
        layer
        for layer in net._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
        and not isinstance(layer, BatchNormalization)
        and layer.trainable
    ]


def warned_of_ordinary(net: keras.Model) -> bool:
    """Warn of a net's ordinary batch normalization; whether there was any."""
    found = ordinary_batch_normalizations(net)
    if found:
        names = ", ".join(layer.name for layer in found)
        warnings.warn(
            f"net {net.name!r} has ordinary batch normalization ({names}), which would learn the "
            "statistics of the drawn examples instead of the data's. Convert it first, weights "
            "kept: tfi.layers.weight_batch_normalization(net).",
            stacklevel=4,
        )
    return bool(found)


def weight_batch_normalization(net: keras.Model) -> keras.Model:
    """Turn every ordinary batch normalization of a net into an importance-weighted one.

    Works in place and for any net, functional or subclassed, nested, built or not: the
    weighted layer has the same arguments and weights, and differs in training only. Weights
    and optimizer state stay as they are.

    Args:
        net: a model.
    Returns:
        The same net.
    Raises:
        ValueError: a layer cannot be converted, because its class changes what
            `keras.layers.BatchNormalization` does, or uses renorm.
    """
    found = ordinary_batch_normalizations(net)
    for layer in found:
        if type(layer) is not keras.layers.BatchNormalization or getattr(layer, "renorm", False):
            raise ValueError(
                f"layer {layer.name!r} of class {type(layer).__name__} cannot be converted: "
                "only keras.layers.BatchNormalization itself, without renorm, can. Derive its "
                "class from tfi.layers.BatchNormalization instead."
            )
    for layer in found:
        # The subclass adds no state, so an instance becomes one of it by its class alone.
        layer.__class__ = BatchNormalization
    return net
