"""Proposals: from scores to a distribution, from a distribution to a weighted draw.

Pure functions on tensors. Scores are non-negative, un-normalized and may be unusable (all
zero, negative, NaN or infinite): then the proposal is uniform, and nothing here is ever NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import tensorflow as tf

from tf_importance.arguments import meant, named, number


class Draw(NamedTuple):
    """Examples drawn from a proposal.

    Attributes:
        indices: [b] int32 positions in the pre-sample, with replacement.
        weights: [b] importance weights w_i = 1/(B g_i), in the proposal's dtype.
    """

    indices: tf.Tensor
    weights: tf.Tensor


Resampling = Callable[[tf.Tensor, int, tf.Tensor], Draw]


def usable(scores: tf.Tensor) -> tf.Tensor:
    """Whether scores can be normalized: all finite, none negative, not all zero.

    Args:
        scores: [B] scores.
    Returns:
        Scalar bool; False for an empty vector.
    """
    sound = tf.reduce_all(tf.math.is_finite(scores) & (scores >= 0))
    return sound & (tf.reduce_max(scores) > 0)


def normalize(scores: tf.Tensor) -> tf.Tensor:
    """Proposal g_i = Ĝ_i / Σ_j Ĝ_j; uniform where the scores are unusable.

    Scores are divided by their maximum first, so that a sum of large scores cannot overflow.

    Args:
        scores: [B] scores.
    Returns:
        [B] proposal; sums to 1.
    """
    ones = tf.ones_like(scores)
    sound = tf.where(usable(scores), scores, ones)
    scaled = sound / tf.reduce_max(sound)
    return scaled / tf.reduce_sum(scaled)


def smooth(scores: tf.Tensor, constant: float | tf.Tensor) -> tf.Tensor:
    """Scores plus a constant: ω̃_i + c  (Alain et al. 2015, section B.3).

    Draws become more uniform as c grows and no weight exceeds (mean(ω̃) + c) / c.

    Args:
        scores: [B] scores.
        constant: c ≥ 0, in the scores' units.
    Returns:
        [B] scores.
    """
    return scores + tf.cast(constant, scores.dtype)


def importance_weights(proposal: tf.Tensor) -> tf.Tensor:
    """Weights that keep the mean unbiased: w_i = 1/(B g_i)  (Algorithm 1, line 9).

    Args:
        proposal: [B] sampling distribution g.
    Returns:
        [B] weights; 0 where g_i = 0, since such an example is never drawn.
    """
    size = tf.cast(tf.size(proposal), proposal.dtype)
    return tf.math.divide_no_nan(tf.ones_like(proposal), size * proposal)


def multinomial(proposal: tf.Tensor, size: int, seed: tf.Tensor) -> Draw:
    """`size` independent draws with replacement, as in the papers.

    Args:
        proposal: [B] sampling distribution g.
        size: b, number of draws.
        seed: [2] integers; equal seeds give equal draws.
    Returns:
        A `Draw` of b examples.
    """
    logits = tf.math.log(proposal)[tf.newaxis]
    indices = tf.random.stateless_categorical(logits, size, seed, dtype=tf.int32)[0]
    return Draw(indices, tf.gather(importance_weights(proposal), indices))


def systematic(proposal: tf.Tensor, size: int, seed: tf.Tensor) -> Draw:
    """`size` draws at the points (u + k)/b, k = 0…b−1, of the cumulative proposal.

    One uniform u serves all draws. Each example is drawn b·g_i times on average, as in
    `multinomial`, so the same weights make it unbiased; its count never leaves
    {⌊b·g_i⌋, ⌈b·g_i⌉}, so its variance is smaller.

    Args, returns: as `multinomial`.
    """
    cumulative = tf.cumsum(proposal)
    cumulative /= cumulative[-1]
    offset = tf.random.stateless_uniform([], seed, dtype=proposal.dtype)
    points = (tf.range(size, dtype=proposal.dtype) + offset) / size
    # Rounding may lift the last point to 1, where no example stands.
    points = tf.minimum(points, 1 - proposal.dtype.as_numpy_dtype(2.0**-24))
    # side="right": a point on a boundary belongs to the next example of positive probability.
    indices = tf.searchsorted(cumulative, points, side="right")
    return Draw(indices, tf.gather(importance_weights(proposal), indices))


RESAMPLING: Mapping[str, Resampling] = {"multinomial": multinomial, "systematic": systematic}


def checked_smoothing(value: float | None, default: float) -> float:
    """The constant c of smoothed scores Ĝ + c mean(Ĝ), as a user gave it or by default.

    Raises:
        ValueError: it is negative or not finite.
    """
    if value is None:
        return default
    return number("smoothing", value, "finite and not negative", lambda c: 0 <= c < math.inf)


def resampling_of(value: str | Resampling) -> Resampling:
    """A way to draw by its name, or itself.

    Raises:
        ValueError: there is none of this name.
    """
    if callable(value):
        return value
    if not isinstance(value, str) or value not in RESAMPLING:
        raise ValueError(
            f"resampling must be one of {', '.join(map(repr, sorted(RESAMPLING)))} or a function "
            f"(proposal, size, seed) -> Draw; got {named(value)}.{meant(value, RESAMPLING)}"
        )
    return RESAMPLING[value]
