"""Rank-based online batch selection (Loshchilov & Hutter 2015, section 3)."""

from __future__ import annotations

import math
import weakref

import keras
import numpy as np
import tensorflow as tf

from tf_importance.arguments import number, positive_integer
from tf_importance.samplers import sum_tree
from tf_importance.samplers.base import (
    UNIFORM_SHARE,
    BiasedDraw,
    Sampler,
    Turn,
    Visit,
    passing,
    points_of,
)
from tf_importance.samplers.sound import Judge

_SCORED_AT_ONCE = 512
# Of a schedule that rises without end.
_LARGEST_PRESSURE = 1e30


class RankBased(Sampler):
    """Draw by the rank of the last known score: p_i ∝ exp(−log(s_e) / n)^i  (eq. 3).

    i is the rank, 0 for the largest score; the first is drawn s_e times as often as the last.
    Unvisited examples have the score ∞ and come first; one whose latest visit had no usable score
    has the typical one. Equal scores stand in random order. Of the draws 1 % are uniform, whatever
    the ranks: no weight is above 100. A draw is O(b): the geometric
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
        resampling: "multinomial", independent draws; or "systematic", one in each b-th part of the
            probabilities.
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
        resampling: str = "multinomial",
        gain_smoothing: float = 0.01,
    ) -> None:
        pressure = selection_pressure
        if not callable(pressure) or isinstance(pressure, type):
            pressure = number(
                "selection_pressure",
                pressure,
                "at least 1 and finite, or a Keras schedule",
                lambda s: 1 <= s < math.inf,
            )
        self._pressure = pressure if callable(pressure) else lambda step: pressure
        self._beta = number("beta", beta, "in [0, 1]", lambda b: 0 <= b <= 1)
        self._points = points_of(resampling)
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
        # Sorted data would begin with one class. One order for all runs: those of a seed repeat.
        order = np.random.default_rng(0).permutation(self.num_examples)
        self.ranked = tf.Variable(order, dtype=tf.int64, trainable=False, name="ranked")
        self.judge = Judge()

    def _draw(self, turn: Turn) -> BiasedDraw:
        every = self._sort_every or max(self.num_examples // (10 * turn.size), 1)
        # Whether it is for one of the block's batches.
        due = (turn.number > 0) & (-turn.number % every < turn.batches)
        with tf.control_dependencies([tf.cond(due, self._sort, lambda: tf.constant(False))]):
            ratio = self._ratio(turn.number)
            points = self._points(turn)
            spread, by_rank = sum_tree.beside(points, UNIFORM_SHARE)
            one = tf.zeros_like(ratio)
            ranks = tf.where(
                spread,
                _geometric(points / UNIFORM_SHARE, one, self.num_examples),
                _geometric(by_rank, ratio, self.num_examples),
            )
        probabilities = _probabilities(ranks, ratio, self.num_examples)
        probabilities = (1 - UNIFORM_SHARE) * probabilities + UNIFORM_SHARE / self.num_examples
        memory = 1 / (self.num_examples * probabilities)
        weights = tf.cast(memory**self._beta, tf.float32)
        return BiasedDraw(tf.gather(self.ranked, ranks), weights, tf.cast(memory, tf.float32))

    def _sort(self) -> tf.Tensor:
        # Equal scores in an order that changes, and not by the run, whose seed draws have alone.
        start = tf.constant(0, tf.int64)
        seed = tf.random.experimental.stateless_fold_in(tf.zeros([2], tf.int64), self.draws)
        shuffled = passing(start, self.num_examples, self.num_examples, seed).indices
        scores = tf.gather(self.scores, shuffled)
        order = tf.argsort(scores, direction="DESCENDING", stable=True)
        self.ranked.assign(tf.gather(shuffled, order))
        return tf.constant(True)

    def _ratio(self, number: tf.Tensor) -> tf.Tensor:
        """log of p_{i+1} / p_i = −log(s_e) / n, in float64."""
        pressure = tf.cast(self._pressure(number), tf.float64)
        pressure = tf.where(tf.math.is_finite(pressure), pressure, 1.0)
        pressure = tf.clip_by_value(pressure, 1.0, _LARGEST_PRESSURE)
        return -tf.math.log(pressure) / self.num_examples

    def update(self, visit: Visit) -> tf.Tensor:
        seen = self.judge.once_each(visit.indices, visit.scores)
        values = tf.where(seen.usable, seen.scores, self.judge.typical)
        self.scores.scatter_nd_update(visit.indices[:, tf.newaxis], values)
        return tf.ones_like(visit.scores)

    def logs(self) -> dict[str, tf.Tensor]:
        return {**super().logs(), "unusable": tf.identity(self.judge.unusable)}

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
    """s_e goes exponentially from s_e0 to s_e1 in so many batches, and stays there  (eq. 4)."""
    return _Until(initial, batches, final / initial)


@keras.saving.register_keras_serializable(package="tf_importance")
class _Until(keras.optimizers.schedules.ExponentialDecay):
    """That does not go on behind its end."""

    def __call__(self, step) -> tf.Tensor:
        return super().__call__(tf.minimum(tf.cast(step, tf.float32), float(self.decay_steps)))


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
