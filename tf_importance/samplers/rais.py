"""RAIS, robust approximate importance sampling (Johnson & Guestrin 2018, section 4)."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_importance import robust
from tf_importance.arguments import number, positive_integer
from tf_importance.draws import Draws, Seen
from tf_importance.samplers import history_features, sum_tree
from tf_importance.samplers.base import (
    UNIFORM_SHARE,
    Draw,
    Proposal,
    Sampler,
    Turn,
    Visit,
    passing,
    points_of,
)
from tf_importance.samplers.side_features import SideFeatures
from tf_importance.samplers.sound import Judge
from tf_importance.samplers.visits import RecentVisits

# An example's estimate is at least this share of the mean norm: nothing falls out of reach.
_SMALLEST_ESTIMATE = 1e-3
_ROWS_AT_ONCE = 1 << 16
# Trainings of c and d between two sums over all examples, of which the running sum loses digits.
_SUMMED_ANEW_EVERY = 16


class RAIS(Sampler):
    """Draw by the proposal that is best for the worst gradient norms which one must expect.

    v_i = ⟨c, s_i⟩ + k⟨d, s_i⟩ (Proposition 4.1), s_i the features of the example's earlier
    norms, c and d learned from recent visits, (PT). The first two sums and k change at every
    step for the visited examples only, so that a draw takes O(b log n).

    * The first pass, and what follows until c and d are first there, takes the examples
      uniformly without replacement; the paper takes them "sequentially".
    * c and d are trained in a thread after every |D| visits, ⌈|D|/|M|⌉ steps, the first time
      once n + |D| examples have been visited, while steps go on. They take effect |D|/2 visits
      later, always: the thread is waited for if need be, so that runs repeat and a restored
      run goes on exactly. By then it has put the n leaves of the new tree together; the main
      thread copies them.
    * A loss whose norm is surprising, Q > τ and v above its estimate, is scaled for this one
      step until Q = τ.
    * No estimate is taken below 1/1000 of the mean norm, and of the draws 1 % are uniform, which
      the weights count. So an example that looks finished is still drawn now and then, the
      estimate stays unbiased, and no weight is above 100.

    Where the sum of all v is 0 or not finite, examples are drawn uniformly. A visit without a
    usable score is not remembered.

    Args:
        num_examples: n; by default that of the data.
        training_set_size: |D|, visits that c and d are trained on. By default the paper's 20,000
            or, of fewer examples, 3n visits and not below 5,000: small data would wait for it for
            many passes.
        gain_smoothing: α of the gain ratio's averages.
        outlier_threshold: τ; infinite for no protection.
        features: side features, beside those of the history and the bias. An [n] or [n, m]
            array of finite numbers ≥ 0, such as one-hot classes; or, for what is another at each
            visit, a function of TensorFlow operations, (indices [b] int64, visits until now [b]
            int32) -> [b] or [b, m] of the next visit, such as the magnitude of the crop's offset.
            0 stands for what such a function gives below 0 or not finite.
    Attributes:
        visits: variable, [n] how often each example was trained on, as far as it was told.
        uncertainty_set: variable, [2, K] rows c and d; 0 until they are trained.
        outliers: variable, the share of outliers in the last batch.
    Raises:
        ValueError: an argument is out of range, or features do not fit.
    """

    has_limits = True

    def __init__(
        self,
        num_examples: int | None = None,
        training_set_size: int | None = None,
        gain_smoothing: float = 0.01,
        outlier_threshold: float = 100.0,
        features=None,
        resampling: str = "multinomial",
    ) -> None:
        self._points = points_of(resampling)
        if training_set_size is not None:
            training_set_size = positive_integer("training_set_size", training_set_size)
        self._given_size, self._given_features = training_set_size, features
        self._outlier_threshold = number(
            "outlier_threshold", outlier_threshold, "positive", lambda threshold: threshold > 0
        )
        self._worker = _Worker()
        super().__init__(num_examples, gain_smoothing)

    def _build(self) -> None:
        features, by_default = self._given_features, min(20_000, max(3 * self.num_examples, 5_000))
        self._training_set_size = self._given_size or by_default
        self._side = None if features is None else SideFeatures(features, self.num_examples)
        count = history_features.COUNT + (0 if self._side is None else self._side.count) + 1
        empty = tf.fill([self.num_examples, history_features.LENGTH], history_features.EMPTY)
        self.history = _variable(empty, "history")
        features = np.zeros([self.num_examples, count], np.float32)
        features[:, -1] = 1.0
        if self._side is not None:
            features[:, -1 - self._side.count : -1] = self._side.first
        # s_i as the next visit will find it. Kept, since a running sum of what is recomputed
        # drifts: variances of small norms have smaller sums than the errors of the large ones
        # before them.
        self.features = _variable(features, "features")
        totals = features.sum(axis=0, dtype=np.float64)
        self.feature_totals = _variable(tf.constant(totals), "feature_totals")
        self.tree = sum_tree.SumTree(self.num_examples, 2)
        # Rows c and d; both 0 until they are trained.
        self.uncertainty_set = _variable(tf.zeros([2, count]), "uncertainty_set")
        self.recent = RecentVisits(2 * self._training_set_size, count)
        # How often |D| visits were full when it was last looked at.
        self.period = _variable(tf.constant(0, tf.int64), "period")
        # The visits before a training of c and d that has begun and not taken effect; else -1.
        self.training_visits = _variable(tf.constant(-1, tf.int64), "training_visits")
        self.training_totals = _variable(tf.zeros([count], tf.float64), "training_totals")
        self.outliers = _variable(tf.constant(0.0), "outliers")
        self.visits = _variable(tf.zeros([self.num_examples], tf.int32), "visits")
        self.judge = Judge()

    def check_batch_size(self, batch_size: int) -> None:
        if 2 * batch_size > self._training_set_size:
            raise ValueError(
                "training_set_size must be at least two batches; got "
                f"{self._training_set_size} for batches of {batch_size}."
            )

    def largest_block(self, batch_size: int) -> int:
        of_training = self._training_set_size // (2 * batch_size)
        return max(1, min(super().largest_block(batch_size), of_training))

    # Drawing ------------------------------------------------------------------------------

    def _draw(self, turn: Turn) -> Draw:
        # Mixed over the totals that were read here; see SumTree.draw on concurrent updates.
        mixing, total = self._mixed()
        return tf.cond(
            _usable(total),
            lambda: self._drawn(self._points(turn), mixing),
            lambda: passing(turn.position, turn.examples, self.num_examples, turn.seed),
        )

    def _mixed(self) -> tuple[tf.Tensor, tf.Tensor]:
        """(1, k), by which ⟨c, s_i⟩ and ⟨d, s_i⟩ are mixed, and Σ_i v_i."""
        estimated, uncertain = tf.unstack(self.tree.total())
        k = robust.robustness(self.num_examples, uncertain)
        return tf.stack([tf.ones_like(k), k]), estimated + k * uncertain

    def _drawn(self, points: tf.Tensor, mixing: tf.Tensor) -> Draw:
        drawn = self.tree.draw_mixed(points, mixing, UNIFORM_SHARE)
        return Draw(drawn.indices, tf.cast(drawn.weights(self.num_examples), tf.float32))

    def proposal(self) -> Proposal:
        return Proposal(self.tree, *self._mixed())

    @property
    def term(self) -> int:
        """A pass, and the training of c and d behind it."""
        return self.num_examples + 2 * self._training_set_size

    def informed(self) -> tf.Tensor:
        return _usable(self._mixed()[1])

    def weights_of(self, indices: tf.Tensor) -> tf.Tensor:
        mixing, total = self._mixed()
        estimates = tf.cast(self.tree.leaves(indices), tf.float64)
        own = tf.linalg.matmul(estimates, mixing[:, tf.newaxis])[:, 0]
        expected = (1 - UNIFORM_SHARE) * self.num_examples * own / total + UNIFORM_SHARE
        weights = 1 / expected
        return tf.where(_usable(total), tf.cast(weights, tf.float32), tf.ones(tf.shape(own)))

    # Remembering --------------------------------------------------------------------------

    def limits(self, indices: tf.Tensor) -> tf.Tensor:
        # As the next visits will find them.
        estimates, uncertainties = tf.unstack(self._leaves(indices, self.uncertainty_set), axis=1)
        return robust.outlier_limits(estimates, uncertainties, self._outlier_threshold)

    def remember(self, draws: Draws, seen: Seen) -> None:
        super().remember(draws, seen)
        self.outliers.assign(tf.reduce_mean(tf.cast(seen.scores > draws.limits, tf.float32)))

    def update(self, visit: Visit) -> tf.Tensor:
        norms, usable, share = self.judge.once_each(visit.indices, visit.scores)
        old = tf.gather(self.history, visit.indices)
        new = tf.where(usable[:, tf.newaxis], history_features.pushed(old, norms), old)
        before = tf.gather(self.features, visit.indices)
        after = _features(new, self._side_of_the_next(visit.indices, share))
        c_and_d = tf.convert_to_tensor(self.uncertainty_set)
        estimates, uncertainties = tf.unstack(
            tf.linalg.matmul(before, c_and_d, transpose_b=True), axis=1
        )
        scales = robust.outlier_scales(
            estimates, uncertainties, tf.where(usable, norms, 0.0), self._outlier_threshold
        )
        self.history.scatter_nd_update(visit.indices[:, tf.newaxis], new)
        self.features.scatter_nd_update(visit.indices[:, tf.newaxis], after)
        changes = tf.cast(after, tf.float64) - tf.cast(before, tf.float64)
        shares = tf.cast(share, tf.float64)[:, tf.newaxis]
        self.feature_totals.assign_add(tf.reduce_sum(changes * shares, axis=0))
        self.tree.update(visit.indices, tf.linalg.matmul(after, c_and_d, transpose_b=True))
        weights = tf.where(usable, visit.weights, 0.0)
        self.recent.add(visit.indices, before, norms, weights)
        ones = tf.ones_like(visit.indices, tf.int32)
        self.visits.scatter_nd_add(visit.indices[:, tf.newaxis], ones)
        self.outliers.assign(tf.reduce_mean(tf.cast(scales < 1, tf.float32)))
        return scales

    def _side_of_the_next(self, indices: tf.Tensor, share: tf.Tensor) -> tf.Tensor | None:
        """Side features that the examples' next visits will have: [b, m]."""
        if self._side is None:
            return None
        visits = tf.gather(self.visits, indices) + tf.cast(tf.round(1 / share), tf.int32)
        return self._side(indices, visits)

    # Training c and d -----------------------------------------------------------------------

    @property
    def _half(self) -> int:
        """Visits between the begin of a training of c and d and the time when it takes effect."""
        return -(-self._training_set_size // 2)

    def end(self) -> None:
        self._worker.discard()

    def tend(self) -> None:
        """End and begin the trainings of c and d that are due by the visits until now."""
        visits = int(self.recent.count)
        begun = int(self.training_visits)
        if begun >= 0 and visits >= begun + self._half:
            self._install()
            begun = -1
        period = visits // self._training_set_size
        if begun < 0 and period > int(self.period):
            self.period.assign(period)
            self._begin_training(visits, period)

    def _begin_training(self, visits: int, period: int) -> None:
        if visits < self.num_examples + self._training_set_size:
            return
        self.training_visits.assign(visits)
        if period % _SUMMED_ANEW_EVERY == 0:
            self.feature_totals.assign(self._summed_features())
        self.training_totals.assign(self.feature_totals)
        self._start()

    def _summed_features(self) -> np.ndarray:
        """Σ_i s_i over all examples: [K]. O(n)."""
        totals = np.zeros([self.features.shape[1]])
        for first in range(0, self.num_examples, _ROWS_AT_ONCE):
            # A slice would copy the whole variable first.
            rows = tf.gather(
                self.features, tf.range(first, min(first + _ROWS_AT_ONCE, self.num_examples))
            )
            totals += tf.reduce_sum(tf.cast(rows, tf.float64), axis=0).numpy()
        return totals

    def _start(self) -> None:
        means = self.training_totals.numpy() / self.num_examples
        end = int(self.training_visits)
        data = self.recent.before(end, self._training_set_size, means)
        c_and_d = self.uncertainty_set.numpy().astype(np.float64)
        start = robust.UncertaintySet(*c_and_d) if c_and_d.any() else None
        self._worker.start(self._kind(), lambda stopped: self._trained(data, start, stopped))

    def _kind(self) -> bytes:
        """What a training of c and d begins from: one of other numbers is another's."""
        begun, totals = self.training_visits.numpy(), self.training_totals.numpy()
        return begun.tobytes() + totals.tobytes() + self.uncertainty_set.numpy().tobytes()

    def _trained(self, data, start, stopped: Callable[[], bool]) -> _Trained | None:
        """In the thread: c, d, and the levels of the tree that they make."""
        found = robust.train(data, start, _SMALLEST_ESTIMATE)
        if found is None:
            return None
        c_and_d = np.stack(found).astype(np.float32)
        leaves = np.zeros([self.num_examples, 2], np.float32)
        for first in range(0, self.num_examples, _ROWS_AT_ONCE):
            if stopped():
                return None
            last = min(first + _ROWS_AT_ONCE, self.num_examples)
            leaves[first:last] = self._leaves(tf.range(first, last, dtype=tf.int64), c_and_d)
        # As tensors: the main thread takes them over several times faster than arrays.
        return _Trained(c_and_d, [tf.constant(level) for level in sum_tree.levels_of(leaves)])

    def _leaves(self, indices: tf.Tensor, c_and_d) -> tf.Tensor:
        """⟨c, s_i⟩ and ⟨d, s_i⟩ of examples as they are remembered: [b, 2]."""
        return tf.linalg.matmul(tf.gather(self.features, indices), c_and_d, transpose_b=True)

    def _install(self) -> None:
        """The new c, d and tree take effect.

        While the thread read the histories some of them changed: what was visited since its
        start is computed anew, so that the result does not depend on who was faster.
        """
        if not self._worker.does(self._kind()):
            # A checkpoint was restored that was made in the midst of the training.
            self._start()
        trained = self._worker.result()
        if trained is not None:
            self.uncertainty_set.assign(trained.c_and_d)
            self.tree.assign(trained.levels)
            visited = self.recent.indices_since(int(self.training_visits))
            visited = np.unique(visited)
            features = tf.gather(self.features, visited).numpy()
            # TensorFlow's product prepares itself for each new number of rows, which takes longer.
            leaves = np.einsum("bk,pk->bp", features, trained.c_and_d)
            self.tree.update(tf.constant(visited), tf.constant(leaves))
        self.training_visits.assign(-1)

    def why_off(self) -> str:
        needed = self.num_examples + 3 * self._training_set_size // 2
        return (
            f"RAIS draws once it has learned c and d, after {needed} visits of examples, and has "
            f"heard of {int(self.visits.numpy().sum())} so far; train longer, or give a smaller "
            "training_set_size"
        )

    def logs(self) -> dict[str, tf.Tensor]:
        of_scores = {"unusable": tf.identity(self.judge.unusable)}
        return {**super().logs(), **of_scores, "outliers": tf.identity(self.outliers)}


class _Trained(NamedTuple):
    """What the thread hands over: rows c and d, and the levels of the new tree."""

    c_and_d: np.ndarray
    levels: list[tf.Tensor]


class _Worker:
    """Does one thing at a time in a thread."""

    def __init__(self) -> None:
        self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="rais")
        self._future: concurrent.futures.Future | None = None
        self._stopped = threading.Event()
        self._kind = b""

    def start(self, kind: bytes, work: Callable[[Callable[[], bool]], _Trained | None]) -> None:
        """Begin; `work` gets a function that says whether nobody waits for it any more."""
        self.discard()
        self._kind, self._stopped = kind, threading.Event()
        stopped = self._stopped
        self._future = self._pool.submit(work, stopped.is_set)

    def does(self, kind: bytes) -> bool:
        """Whether it was begun with this, and not discarded."""
        return self._future is not None and self._kind == kind

    def result(self) -> _Trained | None:
        """Wait for what was begun; an error in the thread is raised here."""
        future, self._future = self._future, None
        return None if future is None else future.result()

    def discard(self) -> None:
        self._stopped.set()
        self._future = None


def _features(history: tf.Tensor, side: tf.Tensor | None) -> tf.Tensor:
    """s_i: of the history, the side features, and the bias as the last: [b, K]."""
    parts = [history_features.of_history(history), tf.ones_like(history[:, :1])]
    if side is not None:
        parts.insert(1, side)
    return tf.concat(parts, axis=1)


def _usable(total: tf.Tensor) -> tf.Tensor:
    """Whether there is a proposal."""
    return tf.math.is_finite(total) & (total > 0)


def _variable(initial, name: str) -> tf.Variable:
    return tf.Variable(initial, trainable=False, name=name)
