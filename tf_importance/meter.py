"""The moments of the gain, averaged over the latest steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tf_importance import gain, graphs

# The newest step's share in the averages, as in RAIS.
_SMOOTHING = 0.01
# Steps to have been measured before a gain is spoken of.
_ENOUGH = 25
# One in so many steps on uniform batches is measured, and every one on a drawn batch.
_EVERY = 4


class Averages(NamedTuple):
    """Exponential averages that start at 0.

    Attributes:
        share: 1 − (1 − α)^k after k steps; what the others are to be divided by.
        mean_square, square, score, square_per_score, remembered: as in `gain.Moments`.
        rounding: [k] as there.
    """

    share: tf.Tensor
    mean_square: tf.Tensor
    square: tf.Tensor
    score: tf.Tensor
    square_per_score: tf.Tensor
    remembered: tf.Tensor
    rounding: tf.Tensor

    @classmethod
    def of(cls, moments: gain.Moments) -> Averages:
        """A single step's, of share 1."""
        return cls(share=tf.constant(1.0), **moments._asdict())

    @classmethod
    def unpack(cls, packed: tf.Tensor) -> Averages:
        """The inverse of `packed`."""
        return cls._make([*tf.unstack(packed[:6]), packed[6:]])

    def packed(self) -> tf.Tensor:
        """As one vector."""
        return tf.concat([tf.stack(self[:6]), self.rounding], axis=0)

    def moments(self) -> gain.Moments:
        """The averages proper."""
        parts = {
            name: tf.math.divide_no_nan(part, self.share)
            for name, part in self._asdict().items()
            if name != "share"
        }
        return gain.Moments(**parts)


class Meter(tf.Module):
    """Takes up what steps see of their batches, for a way of drawing.

    Args:
        sampling: the rates and the smoothing whose gain is to be known.
    """

    def __init__(self, sampling: gain.Sampling) -> None:
        super().__init__(name="meter")
        self.sampling = sampling
        # One variable: each that a step reads costs as much as a small layer.
        self.averages = tf.Variable(
            tf.zeros([len(Averages._fields) - 1 + len(sampling.rates)]),
            trainable=False,
            name="averages",
            aggregation=tf.VariableAggregation.MEAN,
        )

    def moments(self) -> tuple[gain.Moments, tf.Tensor]:
        """The moments, and whether enough steps have been measured."""
        averages = Averages.unpack(tf.convert_to_tensor(self.averages))
        return averages.moments(), averages.share > 1 - (1 - _SMOOTHING) ** _ENOUGH

    def measure(
        self,
        number: tf.Tensor,
        drawn: tf.Tensor,
        moments: Callable[[Callable[[tf.Tensor], tf.Tensor]], gain.Moments],
    ) -> None:
        """Take up a step's batch, where it is due; one that is not finite is left out.

        Args:
            number: of the step. drawn: whether the batch is no uniform one, scalar bool.
            moments: of the batch, by a function from weighted scores [b] to mean(Ĝ) over the latest
                steps, this one included.
        """
        state = tf.convert_to_tensor(self.averages)
        due = tf.equal(tf.cast(number, tf.int32) % _EVERY, 0)

        def updated() -> tf.Tensor:
            before = Averages.unpack(state)
            found = moments(lambda scores: self._mean_score(before, scores))
            newest = Averages.of(found).packed()
            known = tf.reduce_all(tf.math.is_finite(newest))
            return tf.where(known, state + _SMOOTHING * (newest - state), state)

        self.averages.assign(tf.cond(due | drawn, lambda: graphs.apart(updated), lambda: state))

    def _mean_score(self, before: Averages, weighted_scores: tf.Tensor) -> tf.Tensor:
        score = before.score / (1 + self.sampling.smoothing)
        total = score + _SMOOTHING * (tf.reduce_mean(weighted_scores) - score)
        return total / (before.share + _SMOOTHING * (1 - before.share))
