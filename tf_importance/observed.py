"""What the gain of drawing was seen to be: the ‖g‖² that drawn and uniform batches really had.

Two ratios, both of E‖g‖² of a uniform batch over that of a drawn one:

* r₁ = (A + (U − A)/b)/y, y the mean of ‖g‖² over drawn batches, A and U as these batches tell them
  by their weights. Many batches tell it, and it sees dropout, label noise and any scorer. It takes
  an example's gradient for the same in a drawn batch as in a uniform one.
* r₂, the mean of ‖g‖² over a few uniform batches among the drawn ones, over that of the drawn ones
  just before and after them, which differ by nothing else. Few batches tell it, one in 32, and it
  takes nothing for granted: it sees what batch normalization does.

What is said of the gain is 1, unless r₁ contradicts it at 95 % one-sided: then it is r₁ less its
error, where that is above 1, or r₁ plus its error, where that is below. And it is at most r₂ plus
its error, or 1. Averages are exponential, of the latest steps; pure functions.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

# Quantile of the normal distribution, 95 % one-sided.
_QUANTILE = 1.645
# The newest share: of a drawn batch, at first (η + 1)/(t + η) as of the gain's moments; of a
# comparison, at first that of a mean.
_OF_DRAWN, _OF_COMPARISON = 0.01, 0.1
_RECENCY = 2.0
# Of the drawn batches before and after uniform ones.
_OF_NEIGHBOURS, _NEIGHBOURS = 0.25, 4
# Standard deviation of a comparison over its mean, at least: where a few examples carry the
# gradient, a few uniform batches may have none of them.
_LEAST_ERROR = 1.0
# Drawn batches by which something is known, beside one comparison.
_ENOUGH = 16
# Steps after a drawn batch in which uniform ones are compared with it, and those after which
# drawing has begun anew.
_NEAR, _LONG = 16, 256


class Comparison(NamedTuple):
    """Uniform batches that wait for the drawn ones behind them.

    Attributes:
        square: Σ ‖g‖² of so many uniform batches. count: how many.
        before: mean ‖g‖² of drawn ones before them. after: Σ ‖g‖² of drawn ones behind them.
        waited: how many of these.
    """

    square: tf.Tensor
    count: tf.Tensor
    before: tf.Tensor
    after: tf.Tensor
    waited: tf.Tensor

    @property
    def ratio(self) -> tf.Tensor:
        """Of the means, uniform ones over drawn ones."""
        drawn = (self.before + _ratio(self.after, self.waited)) / 2
        return _ratio(_ratio(self.square, self.count), drawn)


class Observed(NamedTuple):
    """Averages over drawn batches, and of comparisons.

    Attributes:
        latest: number of the latest step on a drawn batch. drawn: how many.
        square: y. of_uniform: mean(w v²) of drawn batches, U.
        spread: mean square of mean(w v²)/U − ‖g‖²/y. weight: Σ of the squared shares.
        neighbours: y of the latest few.
        comparisons: how many. ratio: r₂. ratio_spread: mean square of their deviations from it.
        ratio_weight: as `weight`.
    """

    latest: tf.Tensor
    drawn: tf.Tensor
    square: tf.Tensor
    of_uniform: tf.Tensor
    spread: tf.Tensor
    weight: tf.Tensor
    neighbours: tf.Tensor
    comparisons: tf.Tensor
    ratio: tf.Tensor
    ratio_spread: tf.Tensor
    ratio_weight: tf.Tensor

    @property
    def known(self) -> tf.Tensor:
        """Whether enough was seen to speak of a gain."""
        return (self.drawn >= _ENOUGH) & (self.comparisons >= 1)

    @property
    def near_until(self) -> tf.Tensor:
        """Number of the last step whose uniform batch is compared with the drawn ones before it."""
        return tf.where(self.drawn >= _NEIGHBOURS, self.latest + _NEAR, -1.0)

    def is_near(self, number: tf.Tensor) -> tf.Tensor:
        """Whether a uniform batch of a step is."""
        return number <= self.near_until

    def with_drawn(self, number: tf.Tensor, square: tf.Tensor, of_uniform: tf.Tensor) -> Observed:
        """After a drawn batch.

        Args:
            number: of the step. square: ‖g‖². of_uniform: mean(w v²).
        """
        anew = number - self.latest > _LONG
        drawn = tf.where(anew, 0.0, self.drawn) + 1
        share = tf.maximum((_RECENCY + 1) / (drawn + _RECENCY), _OF_DRAWN)
        mean = _moved(self.square, square, share)
        mean_of_uniform = _moved(self.of_uniform, of_uniform, share)
        apart = _ratio(of_uniform, mean_of_uniform) - _ratio(square, mean)
        return self._replace(
            latest=number,
            drawn=drawn,
            square=mean,
            of_uniform=mean_of_uniform,
            spread=_moved(self.spread, apart**2, share),
            weight=(1 - share) ** 2 * self.weight + share**2,
            neighbours=_moved(self.neighbours, square, tf.maximum(1 / drawn, _OF_NEIGHBOURS)),
            comparisons=tf.where(anew, 0.0, self.comparisons),
        )

    def with_comparison(self, ratio: tf.Tensor) -> Observed:
        """After one more."""
        comparisons = self.comparisons + 1
        share = tf.maximum(1 / comparisons, _OF_COMPARISON)
        mean = _moved(self.ratio, ratio, share)
        return self._replace(
            comparisons=comparisons,
            ratio=mean,
            ratio_spread=_moved(self.ratio_spread, (ratio - mean) ** 2, share),
            ratio_weight=(1 - share) ** 2 * self.ratio_weight + share**2,
        )

    def gain(self, uniform_per_square: tf.Tensor, sure: bool = True) -> tf.Tensor:
        """What is said of the gain.

        Args:
            uniform_per_square: (A + (U − A)/b)/U.
            sure: else r₁ counts as it is, which is as often too high as too low.
        """
        by_drawn = _ratio(uniform_per_square * self.of_uniform, self.square)
        if sure:
            by_drawn = surely(by_drawn, tf.sqrt(self.spread * self.weight))
        scatter = tf.maximum(_ratio(self.ratio_spread, self.ratio**2), _LEAST_ERROR**2)
        at_most = above(self.ratio, scatter * self.ratio_weight)
        return tf.minimum(by_drawn, tf.maximum(at_most, 1.0))


def surely(ratio: tf.Tensor, error: tf.Tensor) -> tf.Tensor:
    """1, unless a ratio contradicts it at 95 %: then what is nearest to 1 of what it allows.

    Args:
        error: its standard error, relative to it.
    """
    away = _QUANTILE * error
    return tf.clip_by_value(1.0, ratio * (1 - away), ratio * (1 + away))


def above(ratio: tf.Tensor, scatter: tf.Tensor) -> tf.Tensor:
    """What a ratio is below with 95 %; scatter is the square of its relative error."""
    return ratio * tf.exp(_QUANTILE * tf.sqrt(scatter))


class Seen(NamedTuple):
    """All of it."""

    observed: Observed
    comparison: Comparison

    @classmethod
    def unpack(cls, packed: tf.Tensor) -> Seen:
        """The inverse of `packed`."""
        parts, of_observed = tf.unstack(packed), len(Observed._fields)
        return cls(Observed(*parts[:of_observed]), Comparison(*parts[of_observed:]))

    def packed(self) -> tf.Tensor:
        """As one vector."""
        return tf.stack([*self.observed, *self.comparison])

    def head(self) -> tf.Tensor:
        """[1] `near_until`."""
        return self.observed.near_until[tf.newaxis]

    def with_batch(self, number, square, of_uniform, drawn: tf.Tensor) -> Seen:
        """After a batch, drawn or uniform."""
        of_drawn = self.with_drawn(number, square, of_uniform)
        return _chosen(drawn, of_drawn, self.with_uniform(number, square))

    def with_drawn(self, number: tf.Tensor, square: tf.Tensor, of_uniform: tf.Tensor) -> Seen:
        """After a drawn batch; see `Observed.with_drawn`."""
        waiting = self.comparison
        near = (waiting.count > 0) & (number - self.observed.latest <= _LONG)
        waiting = _chosen(
            near,
            waiting._replace(after=waiting.after + square, waited=waiting.waited + 1),
            nothing().comparison,
        )
        done = waiting.waited >= _NEIGHBOURS
        now = self.observed.with_drawn(number, square, of_uniform)
        return Seen(
            _chosen(done, now.with_comparison(waiting.ratio), now),
            _chosen(done, nothing().comparison, waiting),
        )

    def with_uniform(self, number: tf.Tensor, square: tf.Tensor) -> Seen:
        """After a uniform batch, which is left out if no drawn one is near."""
        waiting, zero = self.comparison, tf.zeros([])
        first = Comparison(square, tf.ones([]), self.observed.neighbours, zero, zero)
        more = waiting._replace(square=waiting.square + square, count=waiting.count + 1)
        begins = (waiting.count < 1) | (waiting.waited > 0)
        taken = Seen(self.observed, _chosen(begins, first, more))
        return _chosen(self.observed.is_near(number), taken, self)


def nothing() -> Seen:
    """Before the first step."""
    zeros = [[tf.zeros([]) for _ in kind._fields] for kind in (Observed, Comparison)]
    return Seen(Observed(*zeros[0]), Comparison(*zeros[1]))


def _chosen(condition: tf.Tensor, one, other):
    return tf.nest.map_structure(lambda a, b: tf.where(condition, a, b), one, other)


def _moved(mean: tf.Tensor, newest: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    return mean + share * (newest - mean)


def _ratio(one: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    return tf.math.divide_no_nan(one, other)
