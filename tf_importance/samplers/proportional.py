"""Proportional prioritization (Schaul, Quan, Antonoglou & Silver 2016, section 3.3)."""

from __future__ import annotations

import math

import keras
import tensorflow as tf

from tf_importance.arguments import number
from tf_importance.samplers.base import (
    UNIFORM_SHARE,
    BiasedDraw,
    Proposal,
    Sampler,
    Turn,
    Visit,
    points_of,
)
from tf_importance.samplers.sound import Judge
from tf_importance.samplers.sum_tree import SumTree

# A priority at most: float32 has room for it, and sums of them.
_LARGEST = 1e30


class Proportional(Sampler):
    """Draw by the score of the last visit: P(i) = p_i^α / Σ_k p_k^α, p_i = |δ_i| + ε  (eq. 1).

    Weights are (1/(n P(i)))^β (section 3.4). β = 1 corrects fully and is unbiased; Schaul et
    al. anneal β from 0.4 or 0.5 to 1, and below 1 the mean of weighted gradients leans towards
    the examples drawn often, by the factor (n P(i))^(1−β).

    An example that was never visited has the largest priority of the visits that were learned last
    (line 6 of their Algorithm 1 has the largest ever, which one absurd score would raise for good):
    so all are seen early. One whose latest visit had no usable score has the mean priority. Of the
    draws 1 % are uniform, whatever the priorities: no weight is above 100.

    Args:
        num_examples: n; by default that of the data.
        alpha: α ≥ 0; 0 is uniform. Theirs is 0.6.
        beta: β, a number in [0, 1], or a Keras schedule of the number of batches drawn, such as
            `keras.optimizers.schedules.PolynomialDecay(0.4, steps, 1.0)`. Theirs starts at 0.4.
        epsilon: ε > 0, in the scores' units: keeps every example in reach.
        normalize: divide the weights by the largest of the batch, as they do "for stability";
            biased even at β = 1, and the mean of the weights is then not 1.
        resampling: "multinomial", independent draws; or "systematic", one in each b-th part of the
            probabilities, as theirs (appendix B.2.1), by one offset for the batch.
        gain_smoothing: as in `Sampler`.
    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        num_examples: int | None = None,
        alpha: float = 0.6,
        beta: float | keras.optimizers.schedules.LearningRateSchedule = 1.0,
        *,
        epsilon: float = 1e-6,
        normalize: bool = False,
        resampling: str = "multinomial",
        gain_smoothing: float = 0.01,
    ) -> None:
        if not callable(beta) or isinstance(beta, type):
            beta = number("beta", beta, "in [0, 1], or a Keras schedule", lambda b: 0 <= b <= 1)
        self._alpha = number("alpha", alpha, "finite and not negative", lambda a: 0 <= a < math.inf)
        self._epsilon = number(
            "epsilon", epsilon, "positive and finite", lambda e: 0 < e < math.inf
        )
        self._normalize = normalize
        self._points = points_of(resampling)
        self.is_biased, self.is_normalized = normalize or callable(beta) or beta != 1, normalize
        # In a function: what a tf.Module holds as an attribute becomes part of checkpoints.
        self._beta = beta if callable(beta) else lambda number: tf.constant(beta, tf.float32)
        super().__init__(num_examples, gain_smoothing)

    def _build(self) -> None:
        # Columns: p^α of a visited example, and 1 for one that waits for its first visit.
        self.tree = SumTree(self.num_examples, 2, initial=[0.0, 1.0])
        # 0 before anything was learned.
        self.largest = tf.Variable(0.0, trainable=False, name="largest")
        self.judge = Judge()

    def proposal(self) -> Proposal:
        largest = tf.convert_to_tensor(self.largest)
        unvisited = tf.where(largest > 0, largest, 1.0)
        mixing = tf.cast(tf.stack([1.0, unvisited]), tf.float64)
        return Proposal(self.tree, mixing, tf.tensordot(self.tree.total(), mixing, 1))

    def _draw(self, turn: Turn) -> BiasedDraw:
        drawn = self.tree.draw_mixed(self._points(turn), self.proposal().mixing, UNIFORM_SHARE)
        beta = tf.cast(self._beta(turn.number), tf.float64)
        memory = drawn.weights(self.num_examples)
        weights = memory**beta
        if self._normalize:
            of_batches = tf.reshape(weights, [turn.batches, turn.size])
            largest = tf.reduce_max(of_batches, axis=1, keepdims=True)
            weights = tf.reshape(of_batches / largest, [-1])
        return BiasedDraw(drawn.indices, tf.cast(weights, tf.float32), tf.cast(memory, tf.float32))

    def update(self, visit: Visit) -> tf.Tensor:
        seen = self.judge.once_each(visit.indices, visit.scores)
        priorities = tf.minimum((seen.scores + self._epsilon) ** self._alpha, _LARGEST)
        largest = tf.reduce_max(tf.where(seen.usable, priorities, 0.0))
        priorities = tf.where(seen.usable, priorities, self._mean())
        leaves = tf.stack([priorities, tf.cast(priorities <= 0, tf.float32)], axis=1)
        self.tree.update(visit.indices, leaves)
        self.largest.assign(tf.where(largest > 0, largest, self.largest))
        return tf.ones_like(visit.scores)

    def _mean(self) -> tf.Tensor:
        """The mean priority of what was visited; 0 where nothing was."""
        total, waiting = tf.unstack(self.tree.total())
        visited = tf.cast(self.num_examples, tf.float64) - waiting
        return tf.cast(tf.math.divide_no_nan(total, visited), tf.float32)

    def logs(self) -> dict[str, tf.Tensor]:
        return {**super().logs(), "unusable": tf.identity(self.judge.unusable)}
