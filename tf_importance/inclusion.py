"""Which examples a pass over the data keeps: inclusion probabilities, and a sample by them.

Each example i is kept with probability π_i and weighted by 1/π_i, so that the weighted sum over the
kept ones is unbiased for the sum over all (Horvitz & Thompson 1952). A remembered score that is
negative stands for an example that has none yet: it is always kept.
"""

from __future__ import annotations

import tensorflow as tf


def proportional(scores: tf.Tensor, share: float, smoothing: float) -> tf.Tensor:
    """π_i = min(1, C (Ĝ_i + c mean(Ĝ))), Σ π_i = max(1, share · n) over the n that have scores.

    Of all probabilities of this sum those that are proportional to the norms of the gradients,
    and 1 where that is more, make the variance of a weighted sum of independent choices least. No
    probability is below share · c/(1 + c).

    Args:
        scores: [n] Ĝ, negative where there is none.
        share: in (0, 1], of those that have scores.
        smoothing: c > 0.
    Returns:
        [n] float64 probabilities, 1 for those that have no score.
    """
    has_score = scores >= 0
    known = tf.boolean_mask(tf.cast(scores, tf.float64), has_score)
    size = tf.cast(tf.size(known), tf.float64)
    mean = tf.math.divide_no_nan(tf.reduce_sum(known), size)
    # Equal ones where all are 0.
    smoothed = tf.where(mean > 0, known + smoothing * mean, 1.0)
    wanted = tf.minimum(tf.maximum(share * size, 1.0), size)
    found = _capped(smoothed, wanted)
    places = tf.where(has_score)
    ones = tf.ones_like(scores, tf.float64)
    return tf.tensor_scatter_nd_update(ones, places, found)


def _capped(sizes: tf.Tensor, total: tf.Tensor) -> tf.Tensor:
    """min(1, C size_i) whose sum is the total, by the least number k of ones: [N]."""
    in_order = tf.sort(sizes, direction="DESCENDING")
    # Of the sizes behind the k largest, for k = 0, 1, …
    rest = tf.cumsum(in_order, reverse=True)
    left = total - tf.cast(tf.range(tf.size(in_order)), tf.float64)
    factors = tf.math.divide_no_nan(left, rest)
    fits = (factors * in_order <= 1) & (left > 0)
    factor = tf.reduce_max(tf.where(fits, factors, 0.0))
    return tf.minimum(sizes * factor, 1.0)


def soft_pruning(scores: tf.Tensor, pruned: float) -> tf.Tensor:
    """π_i = 1 − r where Ĝ_i is below the mean, else 1  (Qin et al. 2024, InfoBatch, eq. 3).

    Args:
        scores: [n] Ĝ, negative where there is none; the mean is that of the others.
        pruned: r in [0, 1).
    Returns:
        [n] float64 probabilities.
    """
    scores = tf.cast(scores, tf.float64)
    known = tf.cast(scores >= 0, tf.float64)
    mean = tf.math.divide_no_nan(tf.reduce_sum(known * scores), tf.reduce_sum(known))
    below = (scores >= 0) & (scores < mean)
    return tf.where(below, tf.constant(1 - pruned, tf.float64), 1.0)


def systematic(probabilities: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
    """Whether each example is kept: a point u + k falls into its part of the cumulative sum.

    Each is kept at most once, with its probability exactly; how many are is Σ π, rounded up or
    down. In a random order examples are kept almost independently.

    Args:
        probabilities: [n] float64 in [0, 1]. offset: u, scalar float64 in [0, 1).
    Returns:
        [n] bool.
    """
    ends = tf.floor(tf.cumsum(probabilities) + offset)
    return tf.concat([ends[:1] > 0, ends[1:] > ends[:-1]], axis=0)
