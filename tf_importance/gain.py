"""The gain of drawing a batch from a pre-sample: how much further a step gets. Pure functions.

All of it is written in moments of the population under uniform sampling, for per-example
gradients v_i, scores Ĝ_i and the mean gradient G:

    A = ‖G‖²     U = E[v²]     S = E[Ĝ]     Q = E[v²/Ĝ]     V = S Q

V is the second moment of a single draw by p_i ∝ Ĝ_i with its weight; for Ĝ = v it is (E v)², the
least there can be. A weighted batch estimates each moment, however it was drawn.

Drawing R batches of b from a pre-sample of B is sampling at the rate ρ = R b/B. A step's gradient
then has the variance

    (U − A) ρ/b        the pre-sample is a uniform sample itself, and R steps share its error
    + (V − A) F(ρ)/b   the draws from it

against (U − A)/b of a uniform batch. F is 1 for independent draws. Systematic ones take each
example ⌊c_i⌋ or ⌈c_i⌉ times, c_i = ρ Ĝ_i/S its expected count, and their second moment is that of
rounding, D(ρ) = S² E[f (1 − f) v²/Ĝ²]/ρ, f the fractional part of c; F is D/V. For equal scores
this is 1 − ρ, and the sum is the uniform batch's variance exactly; no score can bring the sum below
(U − A) ρ/b.

Where a sampler's memory draws the pre-samples by p, they are no uniform samples: M = E[v²/(n p)]
takes the place of U in the first term, and an example counts c_i = ρ m_i Ĝ_i/S times, m = 1/(n p).
V is the same: what is drawn by m Ĝ from examples that were drawn by p is drawn by Ĝ. A batch that
memory draws by itself has the variance (M − A)/b.

The gain ratio r of such a step (Johnson & Guestrin 2018, eq. 7) is E‖g‖² of a uniform batch over
that of this one. A step with r times the learning rate makes r times the progress (their
proposition 3.2), and so r over the relative cost of the step is its speed. Unlike τ, r knows when
noise is not what limits training: A then outweighs the rest, and r is near 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf


class Moments(NamedTuple):
    """Moments of a population's gradients and scores; those of the module's docstring.

    Attributes:
        mean_square: A = ‖G‖².
        square: U = E[v²].
        score: S = E[Ĝ].
        square_per_score: Q = E[v²/Ĝ].
        rounding: [k] D(ρ) at each of k rates.
        remembered: M = E[v²/(n p)], second moment of a single weighted draw by a sampler's
            memory; U where there is none.
    """

    mean_square: tf.Tensor
    square: tf.Tensor
    score: tf.Tensor
    square_per_score: tf.Tensor
    rounding: tf.Tensor
    remembered: tf.Tensor | None = None

    @property
    def drawn_square(self) -> tf.Tensor:
        """V = S Q, the second moment of a single weighted draw by the scores."""
        return self.score * self.square_per_score

    def rounding_factor(self, number: int) -> tf.Tensor:
        """F = D/V of systematic draws at the rate of that number, at most 1."""
        return tf.minimum(_ratio(self.rounding[number], self.drawn_square), 1.0)


class Presampled(NamedTuple):
    """How a batch of b was drawn from B examples.

    Attributes:
        size: B. memory: [b] m = 1/(n p), by which the B were drawn.
        variances: [b] ν, of the counts, over their expectations.
    """

    size: int
    memory: tf.Tensor
    variances: tf.Tensor


class Sampling(NamedTuple):
    """The ways of drawing whose gain is to be known.

    Attributes:
        rates: ρ = R b/B, at which rounding is wanted.
        smoothing: c; examples are drawn by Ĝ + c mean(Ĝ).
    """

    rates: tuple[float, ...]
    smoothing: float


def batch_moments(
    scores: tf.Tensor,
    squares: tf.Tensor,
    weights: tf.Tensor,
    batch_square: tf.Tensor,
    sampling: Sampling,
    mean_score: tf.Tensor | None = None,
    memory: tf.Tensor | float = 1.0,
) -> Moments:
    """What one weighted batch says of the moments.

    ‖g‖² − mean(w² v²)/b, scaled by b/(b − 1), is the mean product of the gradients of two
    different examples, and so A for examples that are drawn independently; see
    `corrected_mean_square` for those that are not.

    Args:
        scores: [b] Ĝ, non-negative. squares: [b] v². weights: [b] w, of mean 1 in expectation.
        batch_square: ‖g‖², g the weighted mean gradient.
        sampling: the rates ρ and the smoothing c.
        mean_score: mean(Ĝ), where more is known of it than this batch says.
        memory: [b] m = 1/(n p), where a sampler's memory draws the pre-samples.
    Returns:
        Scalars, and [k]; Ĝ in them are the smoothed scores.
    """
    size = tf.cast(tf.size(scores), scores.dtype)
    own = tf.reduce_mean(weights**2 * squares)
    of_batch = tf.reduce_mean(weights * scores)
    mean = of_batch if mean_score is None else mean_score
    # A pre-sample that memory has drawn is drawn from by m Ĝ + c mean(m Ĝ).
    smooth = scores + sampling.smoothing * _ratio(mean, memory)
    total = 1 + sampling.smoothing
    return Moments(
        mean_square=_ratio(batch_square - own / size, 1 - 1 / size),
        square=tf.reduce_mean(weights * squares),
        score=total * of_batch,
        square_per_score=tf.reduce_mean(weights * _ratio(squares, smooth)),
        rounding=rounded_squares(
            memory * smooth,
            memory**2 * squares,
            weights / memory,
            sampling.rates,
            total * mean,
        ),
        remembered=tf.reduce_mean(weights * memory * squares),
    )


def rounded_squares(
    scores: tf.Tensor,
    squares: tf.Tensor,
    weights: tf.Tensor,
    rates: Sequence[float],
    mean_score: tf.Tensor,
) -> tf.Tensor:
    """D(ρ) = S² E[f (1 − f) v²/Ĝ²]/ρ, f the fractional part of ρ Ĝ/S, for systematic draws.

    Args:
        scores: [b] Ĝ. squares: [b] v². weights: [b]. rates: k numbers ρ. mean_score: S.
    Returns:
        [k], each in [0, V] in expectation; for equal scores and ρ ≤ 1 it is (1 − ρ) U.
    """
    rate = tf.constant(list(rates), scores.dtype)[:, tf.newaxis]
    relative = _ratio(scores, mean_score)
    counts = rate * relative
    fractions = counts - tf.floor(counts)
    of_each = weights * _ratio(squares, relative**2)
    return tf.reduce_mean(of_each * fractions * (1 - fractions), axis=1) / rate[:, 0]


def corrected_mean_square(
    moments: Moments, batch_size: int, presample_size: int, rounding: tf.Tensor | float
) -> tf.Tensor:
    """A from batches that were drawn of pre-samples, whose examples are not independent.

    Two draws from one pre-sample share its error, (U − A)/B, and systematic draws avoid each
    other, −(1 − F)(V − A)/b. What `batch_moments` averages to is A plus both.

    Args:
        moments: averages over such batches. batch_size: b. presample_size: B.
        rounding: F(b/B) of the draws; 1 if they are independent.
    Returns:
        Scalar.
    """
    shared = 1 / presample_size
    avoided = (1 - rounding) / batch_size
    seen = moments.mean_square - shared * moments.square + avoided * moments.drawn_square
    return seen / (1 - shared + avoided)


def uniform_square(moments: Moments, batch_size: int) -> tf.Tensor:
    """E‖g‖² = A + (U − A)/b of a uniform batch of b."""
    return moments.mean_square + (moments.square - moments.mean_square) / batch_size


def drawn_square(
    moments: Moments, batch_size: int, rate: float | tf.Tensor, rounding: tf.Tensor | float
) -> tf.Tensor:
    """E‖g‖² = A + (ρ (U − A) + F (V − A))/b of a batch of b drawn at the rate ρ.

    Args:
        moments: of the population. batch_size: b.
        rate: ρ = R b/B. rounding: F(ρ); 1 for independent draws.
    """
    mean_square = moments.mean_square
    of_presample = rate * (moments.square - mean_square)
    of_draws = rounding * tf.maximum(moments.drawn_square - mean_square, 0.0)
    return mean_square + (of_presample + of_draws) / batch_size


def mean_square_by(
    squares: tf.Tensor,
    weights: tf.Tensor,
    batch_square: tf.Tensor,
    presampled: Presampled | None = None,
) -> tf.Tensor:
    """What one drawn batch says of A; unbiased.

    Independent draws by p with w = 1/(n p): A = (‖g‖² − mean(w² v²)/b)/(1 − 1/b).

    For b of B examples that were drawn before, with ν the variance of an example's count over its
    expected count c, the pre-sample's mean gradient has the square
    P² = (‖g‖² − mean(ν w² v²)/b)/(1 − mean(ν)/b), and A = (P² − M/B)/(1 − 1/B), M = mean(w m v²).
    ν is 1 for independent draws from the pre-sample, and f (1 − f)/c for systematic ones, f the
    fractional part of c.

    Args:
        squares: [b] v². weights: [b] w. batch_square: ‖mean(w ∇f)‖².
        presampled: how the batch was drawn from a pre-sample; None for no pre-sample.
    """
    size = tf.cast(tf.size(weights), squares.dtype)
    of_counts = tf.ones_like(weights) if presampled is None else presampled.variances
    own = tf.reduce_mean(of_counts * weights**2 * squares) / size
    mean_square = _ratio(batch_square - own, 1 - tf.reduce_mean(of_counts) / size)
    if presampled is None:
        return mean_square
    count = tf.cast(presampled.size, squares.dtype)
    remembered = tf.reduce_mean(weights * presampled.memory * squares)
    return _ratio(mean_square - remembered / count, 1 - 1 / count)


def uniform_square_by(
    squares: tf.Tensor,
    weights: tf.Tensor,
    batch_square: tf.Tensor,
    presampled: Presampled | None = None,
    replicas: int = 1,
) -> tf.Tensor:
    """What one drawn batch says of E‖g‖² of a uniform one, A + (U − A)/(R b); unbiased.

    For one replica and independent draws it is ‖g‖² + (mean(w v²) − mean(w² v²))/b, the numerator
    of RAIS's eq. 7.

    Args:
        squares, weights, batch_square, presampled: as in `mean_square_by`.
        replicas: R, of whose gradients the step takes the mean.
    """
    size = tf.cast(tf.size(weights) * replicas, squares.dtype)
    mean_square = mean_square_by(squares, weights, batch_square, presampled)
    return mean_square + (tf.reduce_mean(weights * squares) - mean_square) / size


def joint_square(batch_square: tf.Tensor, mean_square: tf.Tensor, replicas: int) -> tf.Tensor:
    """A + (E‖g‖² − A)/R of the mean of R independent batches' gradients, by one of them.

    Args:
        batch_square: ‖g‖². mean_square: A, by `mean_square_by`.
    """
    return mean_square + (batch_square - mean_square) / replicas


def gain_ratio(uniform: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    """r = E‖g_U‖²/E‖g‖²  (Johnson & Guestrin 2018, eq. 6); 1 where it is not finite."""
    ratio = _ratio(uniform, other)
    return tf.where(tf.math.is_finite(ratio) & (ratio > 0), ratio, 1.0)


def _ratio(one: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    return tf.math.divide_no_nan(one, other)
