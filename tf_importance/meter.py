"""The moments of the gain, averaged over the latest steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tf_importance import gain, graphs, observed

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

    def with_step(self, newest: gain.Moments) -> tf.Tensor:
        """After one more step; packed."""
        others = Averages(steps=self.steps + 1, **newest._asdict()).packed()
        shares = tf.concat([[1.0], tf.fill([others.shape[0] - 1], self.share)], axis=0)
        before = self.packed()
        return before + shares * (others - before)


class Meter(tf.Module):
    """Takes up what steps see of their batches, for a way of drawing.

    Args:
        sampling: the rates and the smoothing whose gain is to be known.
    """

    def __init__(self, sampling: gain.Sampling) -> None:
        super().__init__(name="meter")
        self.sampling = sampling
        # One variable, since each that a step reads costs as much as a small layer: `near_until`,
        # the averages, and what was seen.
        self._count = len(Averages._fields) - 1 + len(sampling.rates)
        seen = observed.nothing()
        self.state = tf.Variable(
            tf.concat([seen.head(), tf.zeros([self._count]), seen.packed()], axis=0),
            trainable=False,
            name="state",
            aggregation=tf.VariableAggregation.MEAN,
        )

    def _parts(self, state: tf.Tensor) -> tuple[Averages, observed.Seen]:
        averages, seen = state[1 : 1 + self._count], state[1 + self._count :]
        return Averages.unpack(averages), observed.Seen.unpack(seen)

    def observed(self) -> observed.Observed:
        """What the gain of drawing was seen to be."""
        _, seen = self._parts(tf.convert_to_tensor(self.state))
        return seen.observed

    def moments(self) -> tuple[gain.Moments, tf.Tensor]:
        """The moments, and whether enough steps have been measured."""
        averages, _ = self._parts(tf.convert_to_tensor(self.state))
        return averages.moments(), averages.steps >= _ENOUGH

    def measure(
        self,
        number: tf.Tensor,
        drawn: tf.Tensor,
        moments: Callable[
            [Callable[[tf.Tensor], tf.Tensor]], tuple[gain.Moments, tf.Tensor]
        ],
    ) -> None:
        """Take up a step's batch, where it is due; one that is not finite is left out.

        Args:
            number: of the step. drawn: whether the batch is no uniform one, scalar bool.
            moments: of the batch, and its ‖g‖², by a function from weighted scores [b] to mean(Ĝ)
                over the latest steps, this one included.
        """
        state = tf.convert_to_tensor(self.state)
        due = tf.equal(tf.cast(number, tf.int32) % _EVERY, 0)
        number = tf.cast(number, tf.float32)
        # Most uniform batches are compared with nothing.
        compared = drawn | (number <= state[0])

        def updated() -> tf.Tensor:
            averages, seen = self._parts(state)
            found, square = moments(lambda scores: self._mean_score(averages, scores))

            def compared_now() -> tuple[tf.Tensor, tf.Tensor]:
                now = seen.with_batch(number, square, found.square, drawn)
                return now.head(), now.packed()

            before = state[:1], state[1 + self._count :]
            head, now = _if(compared, compared_now, before)
            after = tf.concat([head, averages.with_step(found), now], axis=0)
            finite = tf.reduce_all(tf.math.is_finite(after)) & tf.math.is_finite(square)
            return tf.where(finite, after, state)

        self.state.assign(_if(due | compared, updated, state))

    def _mean_score(self, before: Averages, weighted_scores: tf.Tensor) -> tf.Tensor:
        score = before.score / (1 + self.sampling.smoothing)
        return score + before.share * (tf.reduce_mean(weighted_scores) - score)


def _if(condition: tf.Tensor, function: Callable, otherwise):
    """What a function returns; where a condition does not hold, what there was."""
    return tf.cond(condition, lambda: graphs.apart(function), lambda: otherwise)
