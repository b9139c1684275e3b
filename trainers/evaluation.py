"""Loss and error of a classifier on a fixed set of examples."""

from __future__ import annotations

from typing import NamedTuple

import keras
import tensorflow as tf


class Evaluation(NamedTuple):
    """Means over the examples.

    Attributes:
        loss: cross-entropy, without regularization.
        error: fraction classified wrongly.
    """

    loss: float
    error: float


class Evaluator:
    """Evaluates a net in inference mode. Holds its examples in memory.

    Args:
        net: a Keras model that ends in logits.
        examples: finite, unbatched dataset of (input, label).
        batch_size: examples in one forward pass.
    """

    def __init__(self, net: keras.Model, examples: tf.data.Dataset, batch_size: int = 512) -> None:
        self._net = net
        self._batches = list(examples.batch(batch_size))
        self._sums = tf.function(self._batch_sums, reduce_retracing=True)

    def __call__(self) -> Evaluation:
        """The net's loss and error as it is now."""
        loss, wrong, count = 0.0, 0.0, 0
        for inputs, labels in self._batches:
            sums = self._sums(inputs, labels)
            loss, wrong, count = loss + float(sums[0]), wrong + float(sums[1]), count + len(labels)
        return Evaluation(loss / count, wrong / count)

    def _batch_sums(self, inputs, labels):
        logits = tf.cast(self._net(inputs, training=False), tf.float32)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        wrong = tf.argmax(logits, axis=-1, output_type=labels.dtype) != labels
        return tf.reduce_sum(losses), tf.reduce_sum(tf.cast(wrong, tf.float32))
