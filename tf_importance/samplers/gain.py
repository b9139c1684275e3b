"""The gain ratio of what a memory draws, seen in training (Johnson & Guestrin 2018, section 4.4).

Two ratios, both of E‖g‖² of a uniform batch over that of a drawn one, as in `observed`:

* r₁ = mean(q)/mean(‖g‖²), q what each drawn batch says of a uniform one's ‖g‖²
  (`gain.uniform_square_by`); of independent draws this is their eq. 7.
* r₂ by one batch in 32, which is uniform, over the four drawn ones before and the four behind it.
  Where nobody follows the gain there are no such batches, and no r₂.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from tf_importance import observed
from tf_importance.arguments import number

# Batches on each side that a uniform one is compared with, and those of which ‖g‖² is kept for it.
_NEIGHBOURS = 4
_KEPT = 2 * _NEIGHBOURS
# The newest comparison's share, at first that of a mean, and the standard deviation of one over its
# mean, at least: where a few examples carry the gradient, one uniform batch may have none of them.
_OF_COMPARISON = 0.025
_LEAST_ERROR = 2.0
# No gain is taken below, since estimates of q may be negative.
_LEAST = 0.01


class Averages(NamedTuple):
    """Sums over drawn batches by shares that fall exponentially; what they begin with cancels.

    Attributes:
        uniform: of q. drawn: of ‖g‖². weight: of mean(w).
        uniform_square, product, drawn_square: of q², q ‖g‖² and ‖g‖⁴.
        share: of 1. share_square: Σ of the squared shares.
    """

    uniform: tf.Tensor
    drawn: tf.Tensor
    weight: tf.Tensor
    uniform_square: tf.Tensor
    product: tf.Tensor
    drawn_square: tf.Tensor
    share: tf.Tensor
    share_square: tf.Tensor

    @property
    def ratio(self) -> tf.Tensor:
        """r₁, positive."""
        return tf.maximum(tf.math.divide_no_nan(self.uniform, self.drawn), _LEAST)

    @property
    def error(self) -> tf.Tensor:
        """Its standard error, relative to r₁."""
        uniform, drawn = self.uniform / self.share, self.drawn / self.share
        spread = (
            tf.math.divide_no_nan(self.uniform_square, uniform**2)
            - 2 * tf.math.divide_no_nan(self.product, uniform * drawn)
            + tf.math.divide_no_nan(self.drawn_square, drawn**2)
        )
        scatter = tf.maximum(spread, 0.0) / self.share * self.share_square / self.share**2
        return tf.sqrt(scatter)


class Comparisons(NamedTuple):
    """Uniform batches, compared.

    Attributes:
        count: how many. ratio: r₂. square: mean of the squared ratios. weight: Σ of the squared
            shares.
    """

    count: tf.Tensor
    ratio: tf.Tensor
    square: tf.Tensor
    weight: tf.Tensor

    @property
    def at_most(self) -> tf.Tensor:
        """r₂ and its error."""
        scatter = tf.math.divide_no_nan(self.square, self.ratio**2) - 1
        return observed.above(self.ratio, tf.maximum(scatter, _LEAST_ERROR**2) * self.weight)


class GainEstimator(tf.Module):
    """What is said of the gain of a memory's batches.

    Args:
        smoothing: α in (0, 1], the newest batch's share.
        normalized: whether weights have a common factor, which is taken out of r: it makes
            gradients shorter, and no step better.
    Attributes:
        ratio: variable, r; 1 at first.
    Raises:
        ValueError: smoothing is out of range.
    """

    def __init__(self, smoothing: float = 0.01, normalized: bool = False) -> None:
        super().__init__(name="gain")
        smoothing = number("gain_smoothing", smoothing, "in (0, 1]", lambda a: 0 < a <= 1)
        self._smoothing, self._normalized = smoothing, normalized
        self.averages = _variable([len(Averages._fields)], "averages")
        self.comparisons = _variable([len(Comparisons._fields)], "comparisons")
        # ‖g‖² of the latest batches, and what they were: 1 drawn, 2 uniform, 0 unusable.
        self.recent = _variable([2, _KEPT], "recent")
        self.ratio = tf.Variable(1.0, trainable=False, name="ratio")

    def learn(self, rows: tf.Tensor, uniform: tf.Tensor | None = None) -> None:
        """Take up batches in their order; those that are not finite are left out.

        Args:
            rows: [M, 3] of each: q, ‖g‖² and mean(w).
            uniform: [M] bool, which of them are there to be compared with; None where none are.
        """
        known = tf.reduce_all(tf.math.is_finite(rows), axis=1)
        rows = tf.where(known[:, tf.newaxis], rows, 0.0)
        drawn = known if uniform is None else known & ~uniform
        averages = self._averaged(rows, drawn)
        self.averages.assign(tf.stack(averages))
        ratio = averages.ratio
        if self._normalized:
            ratio *= tf.math.divide_no_nan(averages.weight, averages.share) ** 2
        said = observed.surely(ratio, averages.error)
        if uniform is not None:
            kinds = tf.where(known, tf.where(uniform, 2.0, 1.0), 0.0)
            comparisons = self._compared(rows[:, 1], kinds)
            self.comparisons.assign(tf.stack(comparisons))
            said = tf.minimum(said, tf.maximum(comparisons.at_most, 1.0))
        self.ratio.assign(tf.where(averages.drawn > 0, said, 1.0))

    def _averaged(self, rows: tf.Tensor, drawn: tf.Tensor) -> Averages:
        counted = tf.cast(drawn, tf.float32)
        # How many counted batches come after each.
        after = tf.cumsum(counted, exclusive=True, reverse=True)
        shares = counted * self._smoothing * (1 - self._smoothing) ** after
        kept = (1 - self._smoothing) ** tf.reduce_sum(counted)
        q, square, weight = tf.unstack(rows, axis=1)
        columns = [q, square, weight, q**2, q * square, square**2, tf.ones_like(q)]
        sums = tf.linalg.matvec(tf.stack(columns), shares)
        before = Averages(*tf.unstack(self.averages))
        moved = kept * tf.stack(before[:-1]) + sums
        squares = kept**2 * before.share_square + tf.reduce_sum(shares**2)
        return Averages._make([*tf.unstack(moved), squares])

    def _compared(self, squares: tf.Tensor, kinds: tf.Tensor) -> Comparisons:
        """After the uniform batches that have all of their neighbours now."""
        squares, kinds = tf.unstack(tf.concat([self.recent, tf.stack([squares, kinds])], axis=1))
        self.recent.assign(tf.stack([squares[-_KEPT:], kinds[-_KEPT:]]))
        drawn = tf.cast(tf.equal(kinds, 1), tf.float32)
        around, count = _windows(drawn * squares), _windows(drawn)
        inner = slice(_NEIGHBOURS, -_NEIGHBOURS)
        ratios = tf.math.divide_no_nan(squares[inner] * count, around)
        due = tf.equal(kinds[inner], 2) & (count >= _NEIGHBOURS) & (around > 0)
        ratios = tf.boolean_mask(ratios, due)
        before = Comparisons(*tf.unstack(self.comparisons))
        number = before.count + tf.range(1, tf.size(ratios) + 1, dtype=tf.float32)
        own = tf.maximum(1 / number, _OF_COMPARISON)
        kept = tf.math.cumprod(1 - own, exclusive=True, reverse=True)
        shares, all_kept = own * kept, tf.reduce_prod(1 - own)
        return Comparisons(
            before.count + tf.cast(tf.size(ratios), tf.float32),
            all_kept * before.ratio + tf.reduce_sum(shares * ratios),
            all_kept * before.square + tf.reduce_sum(shares * ratios**2),
            all_kept**2 * before.weight + tf.reduce_sum(shares**2),
        )


def _windows(values: tf.Tensor) -> tf.Tensor:
    """Σ over the neighbours of each inner place, on both sides."""
    sums = tf.concat([[0.0], tf.cumsum(values)], axis=0)
    width = 2 * _NEIGHBOURS + 1
    return sums[width:] - sums[:-width] - values[_NEIGHBOURS:-_NEIGHBOURS]


def _variable(shape: list[int], name: str) -> tf.Variable:
    return tf.Variable(tf.zeros(shape), trainable=False, name=name)
