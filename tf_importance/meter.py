"""The moments of the gain, averaged over the latest steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tf_importance import gain, graphs

# The newest step's share in the averages late in a training, as in RAIS.
_SMOOTHING = 0.01
# At first step t has the share (η + 1)/(t + η): the mean gradient falls fast then, and a plain mean
# over all steps would speak of the first ones for hundreds more (polynomial-decay averaging,
# Shamir & Zhang 2013).
_RECENCY = 2.0
# Steps to have been measured before a gain is spoken of.
_ENOUGH = 25
# One in so many steps on uniform batches is measured, and every one on a drawn batch.
_EVERY = 4


class Averages(NamedTuple):
    """Averages of the latest steps.

    Attributes:
        steps: how many have been taken up.
        mean_square, square, score, square_per_score, remembered: as in `gain.Moments`.
        rounding: [k] as there.
    """

    steps: tf.Tensor
    mean_square: tf.Tensor
    square: tf.Tensor
    score: tf.Tensor
    square_per_score: tf.Tensor
    remembered: tf.Tensor
    rounding: tf.Tensor

    @classmethod
    def unpack(cls, packed: tf.Tensor) -> Averages:
        """The inverse of `packed`."""
        return cls._make([*tf.unstack(packed[:6]), packed[6:]])

    def packed(self) -> tf.Tensor:
        """As one vector."""
        return tf.concat([tf.stack(self[:6]), self.rounding], axis=0)

    def moments(self) -> gain.Moments:
        """The averages proper."""
        parts = self._asdict()
        del parts["steps"]
        return gain.Moments(**parts)

    @property
    def share(self) -> tf.Tensor:
        """Of the next step."""
        return tf.maximum((_RECENCY + 1) / (self.steps + 1 + _RECENCY), _SMOOTHING)

    def with_step(self, newest: gain.Moments) -> Averages:
        """After one more step."""
        others = Averages(steps=self.steps, **newest._asdict())
        moved = [old + self.share * (new - old) for old, new in zip(self, others)]
        return Averages._make(moved)._replace(steps=self.steps + 1)


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
        return averages.moments(), averages.steps >= _ENOUGH

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
            after = before.with_step(found).packed()
            return tf.where(tf.reduce_all(tf.math.is_finite(after)), after, state)

        self.averages.assign(tf.cond(due | drawn, lambda: graphs.apart(updated), lambda: state))

    def _mean_score(self, before: Averages, weighted_scores: tf.Tensor) -> tf.Tensor:
        score = before.score / (1 + self.sampling.smoothing)
        return score + before.share * (tf.reduce_mean(weighted_scores) - score)
