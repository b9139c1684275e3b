"""A cascade: of F examples B are drawn by a cheap first score, batches of these by the real one.

The first draw is without replacement. Example i comes out with probability π_i, at most once, and
counts m_i = B/(F π_i): the mean over those that come out, weighted by m, is unbiased for the mean
over all F (Horvitz & Thompson 1952). The second draw multiplies its own weights into these.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tf_importance import fresh, inclusion, proposals

# c of π ∝ s + c mean(s). A cheap score may be 0 where a gradient is not: no example is lost, and
# none counts more than (1 + c)/c = 6.
_SMOOTHING = 0.2


def worth_of(score: Callable[..., fresh.Scores], group: fresh.Group) -> tf.Tensor:
    """[F] |w| s, w the weights that the examples of a group come with, s their first scores."""
    scores = score(group.inputs, group.labels, group.importance).values
    return tf.stop_gradient(scores * tf.abs(group.weights))


def probabilities(worth: tf.Tensor, presample_size: int) -> tf.Tensor:
    """[F] float64 π of the sum B; all alike where the scores are unusable.

    Args:
        worth: [F] first scores. presample_size: B ≤ F.
    """
    sound = tf.where(proposals.usable(worth), worth, 1.0)
    found = inclusion.proportional(sound, presample_size / worth.shape[0], _SMOOTHING)
    return tf.ensure_shape(found, worth.shape)


def counts(chances: tf.Tensor, presample_size: int) -> tf.Tensor:
    """[F] float32 m_i = B/(F π_i), what each example counts if it comes out."""
    mean = tf.constant(presample_size / chances.shape[0], chances.dtype)
    return tf.cast(tf.math.divide_no_nan(mean, chances), tf.float32)


def chosen(chances: tf.Tensor, presample_size: int, seed: tf.Tensor) -> tf.Tensor:
    """[B] positions of those that come out, in random order: any part is as good as any other.

    Args:
        chances: [F] π. presample_size: B. seed: [2] integers.
    """
    draw = proposals.systematic(chances / presample_size, presample_size, seed)
    return tf.random.experimental.stateless_shuffle(draw.indices, seed + tf.constant([0, 1]))
