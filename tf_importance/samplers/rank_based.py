"""Rank-based online batch selection (Loshchilov & Hutter 2015, section 3)."""

from __future__ import annotations

import math
import weakref

import keras
import tensorflow as tf

from tf_importance.arguments import positive_integer
from tf_importance.samplers.base import BiasedDraw, Sampler, Turn, Visit, once_each, uniform_points

_SCORED_AT_ONCE = 512


class RankBased(Sampler):
    """Draw by the rank of the last known score: p_i ∝ exp(−log(s_e) / n)^i  (eq. 3).

    i is the rank, 0 for the largest score; the first is drawn s_e times as often as the last.
    Unvisited examples have the score ∞ and come first. A draw is O(b): the geometric
    distribution has a closed form. Scores are sorted every `sort_every` batches, O(n log n),
    and all of them are computed anew with the current net every `recompute_every` batches.

    Weights are (1/(n p_i))^β. Loshchilov & Hutter have none (β = 0): they minimize another
    objective than the mean, knowingly. The default, β = 1, is unbiased.

    Args:
        num_examples: n; by default that of the data.
        selection_pressure: s_e ≥ 1, a number, or a Keras schedule of the number of batches
            drawn; their eq. 4, from s_e0 to s_e1 in so many batches, is
            `tfi.samplers.selection_pressure(s_e0, s_e1, batches)`. Theirs starts at 100.
        sort_every: batches between two sorts; by default a tenth of a pass over the data.
        recompute_every: batches between two scorings of all examples; None for never. Theirs
            is half a pass. It costs n forward passes, and needs a dataset of `history_sample`.
        beta: β in [0, 1].
        gain_smoothing: as in `Sampler`.
    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        num_examples: int | None = None,
        selection_pressure: float | keras.optimizers.schedules.LearningRateSchedule = 100.0,
        *,
        sort_every: int | None = None,
        recompute_every: int | None = None,
        beta: float = 1.0,
        gain_smoothing: float = 0.01,
    ) -> None:
        pressure = selection_pressure
        if not callable(pressure) and not 1 <= pressure < math.inf:
            raise ValueError(
                f"selection_pressure must be at least 1, or a Keras schedule; got {pressure}."
            )
        if not 0 <= beta <= 1:
            raise ValueError(f"beta must be in [0, 1]; got {beta}.")
        self._pressure = pressure if callable(pressure) else lambda number: pressure
        self._beta = beta
        self.is_biased = beta != 1
        self._sort_every = (
            None if sort_every is None else positive_integer("sort_every", sort_every)
        )
        self._recompute_every = (
            None
            if recompute_every is None
            else positive_integer("recompute_every", recompute_every)
        )
        # How often it was due until now to score all examples.
        self.recomputed = tf.Variable(0, dtype=tf.int64, trainable=False, name="recomputed")
        self._rescored: tuple | None = None
        super().__init__(num_examples, gain_smoothing)

    def _build(self) -> None:
        shape = [self.num_examples]
        self.scores = tf.Variable(tf.fill(shape, math.inf), trainable=False, name="scores")
        self.ranked = tf.Variable(
            tf.range(self.num_examples, dtype=tf.int64), trainable=False, name="ranked"
        )

    def _draw(self, turn: Turn) -> BiasedDraw:
        every = self._sort_every or max(self.num_examples // (10 * turn.size), 1)
        # Whether it is for one of the block's batches.
        due = (turn.number > 0) & (-turn.number % every < turn.batches)
        with tf.control_dependencies([tf.cond(due, self._sort, lambda: tf.constant(False))]):
            ratio = self._ratio(turn.number)
            ranks = _geometric(uniform_points(turn), ratio, self.num_examples)
        probabilities = _probabilities(ranks, ratio, self.num_examples)
        memory = 1 / (self.num_examples * probabilities)
        weights = tf.cast(memory**self._beta, tf.float32)
        return BiasedDraw(tf.gather(self.ranked, ranks), weights, tf.cast(memory, tf.float32))

    def _sort(self) -> tf.Tensor:
        order = tf.argsort(tf.convert_to_tensor(self.scores), direction="DESCENDING", stable=True)
        self.ranked.assign(tf.cast(order, tf.int64))
        return tf.constant(True)

    def _ratio(self, number: tf.Tensor) -> tf.Tensor:
        """log of p_{i+1} / p_i = −log(s_e) / n, in float64."""
        pressure = tf.maximum(tf.cast(self._pressure(number), tf.float64), 1.0)
        return -tf.math.log(pressure) / self.num_examples

    def update(self, visit: Visit) -> tf.Tensor:
        scores, usable, _ = once_each(visit)
        before = tf.gather(self.scores, visit.indices)
        values = tf.where(usable, scores, before)
        self.scores.scatter_nd_update(visit.indices[:, tf.newaxis], values)
        return tf.ones_like(visit.scores)

    def tend(self) -> None:
        every = self._recompute_every
        if every is not None and int(self.steps) // every != int(self.recomputed):
            self._recompute()

    def _recompute(self) -> None:
        """Score all examples by the net as it is."""
        self.recomputed.assign(self.steps // self._recompute_every)
        rescore = self._rescore(self.model)
        for start in range(0, self.num_examples, _SCORED_AT_ONCE):
            end = min(start + _SCORED_AT_ONCE, self.num_examples)
            rescore(tf.range(start, end, dtype=tf.int64))
        self._sort()

    def _rescore(self, model):
        """A function that scores the examples at indices [b] by a model; made once for each."""
        if self._rescored is None or self._rescored[0]() is not model:
            gather = self.gather

            @tf.function(autograph=False, reduce_retracing=True)
            def rescore(indices):
                scores = model.scorer(model, *gather(indices))
                return self.update(Visit(indices, tf.ones_like(scores), scores))

            self._rescored = weakref.ref(model), rescore
        return self._rescored[1]


def selection_pressure(
    initial: float, final: float, batches: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """s_e falls exponentially from s_e0 to s_e1 in so many batches  (eq. 4)."""
    return keras.optimizers.schedules.ExponentialDecay(initial, batches, final / initial)


def _geometric(points: tf.Tensor, log_ratio: tf.Tensor, size: int) -> tf.Tensor:
    """Ranks by the inverse of the cumulative ∝ 1 − ratio^(i+1); uniform at ratio 1: [b] int64."""
    number = tf.cast(size, tf.float64)
    decay = tf.math.expm1(number * log_ratio)
    curved = tf.math.divide_no_nan(tf.math.log1p(points * decay), log_ratio)
    ranks = tf.where(log_ratio < 0, curved, points * number)
    return tf.clip_by_value(tf.cast(tf.floor(ranks), tf.int64), 0, size - 1)


def _probabilities(ranks: tf.Tensor, log_ratio: tf.Tensor, size: int) -> tf.Tensor:
    """p_i = ratio^i (1 − ratio) / (1 − ratio^n): [b] float64."""
    number = tf.cast(size, tf.float64)
    first = tf.math.divide_no_nan(tf.math.expm1(log_ratio), tf.math.expm1(number * log_ratio))
    first = tf.where(log_ratio < 0, first, 1 / number)
    return first * tf.exp(tf.cast(ranks, tf.float64) * log_ratio)
