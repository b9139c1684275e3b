"""Batch normalization that learns the data's statistics, not those of the drawn examples.

Ordinary batch normalization averages the batch, and importance sampling fills the batch with
hard examples: the moving statistics then describe a distribution that the net never meets
again. RAIS (Johnson & Guestrin 2018, section 4.5) weights each example by 1/(n p_i).
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import keras
import tensorflow as tf

from tf_importance import compat

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
        values = tf.cast(inputs, dtype)
        weights = tf.cast(weights, dtype)
        weights = tf.minimum(weights, tf.cast(tf.size(weights), dtype))
        weights = _aligned(weights, values)
        mean, variance = self._weighted_statistics(values, weights, mask)
        outputs = tf.nn.batch_normalization(
            values,
            self._broadcast(mean, values),
            self._broadcast(variance, values),
            self._broadcast(tf.cast(self.beta, dtype), values) if self.center else None,
            self._broadcast(tf.cast(self.gamma, dtype), values) if self.scale else None,
            self.epsilon,
        )
        return tf.cast(outputs, self.compute_dtype)

    def _weighted_statistics(self, values, weights, mask):
        """Batch mean and variance, each of the axis's size; updates the moving averages."""
        per_value = weights * tf.ones_like(values)
        if mask is not None:
            per_value *= tf.cast(mask, values.dtype)[..., tf.newaxis]
        per_value = tf.where(tf.reduce_sum(weights) > 0, per_value, tf.ones_like(values))
        axes = [i for i in range(values.shape.rank) if i not in self._axes(values)]
        total, first = self._summed(
            tf.reduce_sum(per_value, axes), tf.reduce_sum(per_value * values, axes)
        )
        mean = tf.math.divide_no_nan(first, total)
        deviation = values - self._broadcast(mean, values)
        (second,) = self._summed(tf.reduce_sum(per_value * deviation**2, axes))
        variance = tf.math.divide_no_nan(second, total)
        self._update_moving_averages(mean, variance, weights)
        return mean, variance

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

    def _broadcast(self, statistic, values):
        axes = self._axes(values)
        shape = [values.shape[i] if i in axes else 1 for i in range(values.shape.rank)]
        return tf.reshape(statistic, shape)


def _aligned(weights: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Weights [b] as [B, 1, …] for values [B, …].

    Where the net has folded an inner axis into the batch (B = b·k, example by example), each
    weight is repeated k times.
    """
    if weights.shape[0] is None or weights.shape[0] != values.shape[0]:
        weights = tf.repeat(weights, tf.shape(values)[0] // tf.shape(weights)[0])
    return compat.for_inner_axes(weights, values.shape.rank)


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
