"""A sampler whose scores come out of a store."""

from __future__ import annotations

import math
import threading

import numpy as np
import tensorflow as tf

from tf_importance import fresh, scorers, stores
from tf_importance.arguments import number, one_of
from tf_importance.distributed import description
from tf_importance.distributed.exchange import Exchange
from tf_importance.distributed.mirror import COLUMNS, Mirror, Staleness
from tf_importance.distributed.smoothing import Smoothing, as_smoothing
from tf_importance.samplers.base import Draw, Sampler, Turn, uniform_points
from tf_importance.samplers.sum_tree import SumTree
from tf_importance.stores import base

# No smaller share of the mean score is added to a score: one that was 0 when it was computed may
# be so no longer, and what cannot be drawn cannot be made up for by weights.
_FLOOR = 1e-3
_UNIFORM = [0.0, 1.0, 1.0]

UNSCORED = ("mean", "leave_out")
# A score counts as no more than so many times the mean of all but the largest hundredth.
_OUTLIER, _TRIMMED = 100.0, 0.01


class SharedScores(Sampler):
    """Draw by p_i ∝ ω̃_i + c of the scores in a store; what master and peers have in common.

    A thread pulls the scores that changed and puts them into a tree, while steps go on. While there
    is no score that counts, or the store has been silent for `fallback_seconds`, all examples are
    drawn alike, with weights 1. One absurd score would capture all draws: none counts as more than
    100 times the mean of the others; the log `outliers` has how many would.

    Args:
        num_examples: n.
        model: the ISModel in training.
        store: where to meet.
        scorer: what the scores are.
        staleness: which scores count (section B.1); by default all.
        smoothing: c ≥ 0 (section B.3), or a function of the usable scores such as
            `TargetEntropy`.
        unscored: what becomes of examples without a score that counts. "leave_out", the paper's way
            (B.1): they are not drawn, and the weighted mean is that over the others. Unbiased over
            time, as workers score all examples in turn and who is left out at one time does not
            depend on the gradients. "mean": they have the mean score of the others, so that the
            mean over all is unbiased at any time; where few are scored, most draws are of these,
            and sampling is little better than uniform. By default as the kind of sampler says.
        pull_seconds: from one pull to the next.
        fallback_seconds: how long the store may be silent.
        shard_size: as in `stores.Description`.
        gain_smoothing: as in `Sampler`.
    Attributes:
        mirror: the scores as they were last pulled.
        usable: variable, share of the examples whose score counts.
        leaves_out: whether examples without a score that counts are not drawn.
        outliers: variable, how many scores were cut down when they were last taken up.
        store_full: variable, 1 while the store has no room for what is to be sent.
    Raises:
        ValueError: an argument is out of range.
    """

    follows_training = True
    serves_replicas = False
    spans_processes = False
    unscored = "leave_out"

    def __init__(
        self,
        num_examples: int,
        model,
        store: stores.Store,
        *,
        scorer: scorers.Scorer = scorers.gradient_norm,
        staleness: Staleness = Staleness(),  # noqa: B008  frozen
        smoothing: float | Smoothing = 0.0,
        unscored: str | None = None,
        pull_seconds: float = 1.0,
        fallback_seconds: float = 10.0,
        shard_size: int = 0,
        gain_smoothing: float = 0.01,
    ) -> None:
        fresh.check_is_model(model)
        base.check(store)
        fresh.check_scorer(scorer)
        super().__init__(num_examples, gain_smoothing)
        number("pull_seconds", pull_seconds, "positive", lambda seconds: seconds > 0)
        number("fallback_seconds", fallback_seconds, "positive", lambda seconds: seconds > 0)
        if pull_seconds >= fallback_seconds:
            raise ValueError(
                "fallback_seconds must be longer than pull_seconds, or each pause is taken for "
                f"silence; got {fallback_seconds} and {pull_seconds}."
            )
        unscored = self.unscored if unscored is None else unscored
        one_of("unscored", unscored, UNSCORED)
        self.store = store
        self.mirror = Mirror(self.num_examples, staleness)
        self._smoothing, self.leaves_out = as_smoothing(smoothing), unscored == "leave_out"
        self._pull_seconds, self._fallback_seconds = pull_seconds, fallback_seconds
        # In functions: as attributes, model and scorer would become part of its checkpoints.
        self._model = lambda: model
        self._describe = lambda: description.describe(
            model, self.gather, self.num_examples, scorer, shard_size
        )
        self.store_full = tf.Variable(0.0, trainable=False, name="store_full")
        self._was_full = False
        self._exchange: Exchange | None = None
        self._lock = threading.RLock()
        self._make_state()

    def why_off(self) -> str:
        return "no score of a worker had come yet; start one, with the same store and run"

    def _make_state(self) -> None:
        self.tree = SumTree(self.num_examples, COLUMNS, initial=[0.0, 0.0, 1.0])
        self.mixing = tf.Variable(_UNIFORM, dtype=tf.float64, trainable=False, name="mixing")
        # Over how many examples the weighted mean is taken.
        self.population = tf.Variable(
            float(self.num_examples), dtype=tf.float64, trainable=False, name="population"
        )
        self.usable = tf.Variable(0.0, trainable=False, name="usable")
        self.outliers = tf.Variable(0.0, trainable=False, name="outliers")

    # Draws --------------------------------------------------------------------------------

    def largest_block(self, batch_size: int) -> int:
        """One batch: scores come in at any time, and the newest are drawn by."""
        return 1

    def _draw(self, turn: Turn) -> Draw:
        points = uniform_points(turn)
        drawn = self.tree.draw(points, tf.convert_to_tensor(self.mixing))
        # 0 if all of a branch were left out the moment that it was taken.
        weights = drawn.weights(tf.convert_to_tensor(self.population))
        return Draw(drawn.indices, tf.cast(weights, tf.float32))

    def logs(self) -> dict[str, tf.Tensor]:
        names = ("usable", "outliers", "store_full")
        own = {name: tf.identity(getattr(self, name)) for name in names}
        return {**super().logs(), **own}

    # The course of a training -------------------------------------------------------------

    def begin(self) -> None:
        if self._exchange is not None:
            # Of a training that was broken off.
            self._exchange.stop()
        self._exchange = Exchange(
            self.store,
            self._describe(),
            self.mirror,
            joined=self._joined,
            send=self._send,
            pulled=self._take_up,
            pull_seconds=self._pull_seconds,
        )
        self.mirror.mark_all()
        self._draw_uniformly()
        self._exchange.join()
        self._start()

    def _start(self) -> None:
        self.exchange.start()

    @property
    def exchange(self) -> Exchange:
        """The exchange with the store, of a training that goes on.

        Raises:
            ValueError: none does.
        """
        if self._exchange is None:
            raise ValueError(
                f"{type(self).__name__} exchanges scores in `fit` only; train by model.fit."
            )
        return self._exchange

    def maintain(self, updates: int, model) -> None:
        # At each step, and not where batches are planned: the last steps are learned from, too.
        size = int(self.journal.batch_size)
        if size:
            self.take_up(int(self.steps), size)
        self.exchange.raise_failure()
        if self.exchange.is_full != self._was_full:
            self._was_full = self.exchange.is_full
            self.store_full.assign(float(self._was_full))
        if self.exchange.silent_seconds > self._fallback_seconds and self.draws_by_scores:
            self._draw_uniformly()

    def end(self) -> None:
        if self._exchange is not None:
            self._exchange.stop()
            self._exchange.raise_failure()

    @property
    def draws_by_scores(self) -> bool:
        """Whether it does; otherwise all examples are drawn alike."""
        return float(self.usable.numpy()) > 0

    def _draw_uniformly(self) -> None:
        with self._lock:
            self.mixing.assign(_UNIFORM)
            self.population.assign(float(self.num_examples))
            self.usable.assign(0.0)

    # In the thread ------------------------------------------------------------------------

    def _joined(self) -> None:
        """The run was begun or joined."""

    def _send(self) -> int:
        """Send what there is; the version that scores are compared to."""
        raise NotImplementedError

    def _take_up(self) -> None:
        """Put what changed into the tree, and draw by it."""
        scores = self.mirror.usable_scores()
        limit = largest_credible(scores)
        outliers = int((scores > limit).sum())
        scores = np.minimum(scores, limit)
        constant = self.constant(scores)
        with self._lock:
            if constant is None:
                # First, or for a moment there would be nobody to draw.
                self._draw_uniformly()
            rows, leaves = self.mirror.leaves()
            if len(rows):
                leaves[..., 0] = np.minimum(leaves[..., 0], limit)
                self.tree.update_rows(rows, leaves)
            self.outliers.assign(float(outliers))
            if constant is not None:
                unknown = (
                    0.0 if self.leaves_out else float(scores.mean(dtype=np.float64)) + constant
                )
                self.mixing.assign([1.0, constant, unknown])
                self.population.assign(float(len(scores) if self.leaves_out else self.num_examples))
                self.usable.assign(len(scores) / self.num_examples)

    def constant(self, scores: np.ndarray) -> float | None:
        """What is added to each of the usable scores [k]; None if they tell nothing."""
        if not len(scores) or not scores.max() > 0:
            return None
        return max(self._smoothing(scores), _FLOOR * float(scores.mean(dtype=np.float64)))


def largest_credible(scores: np.ndarray) -> float:
    """What a score counts as at most, however large it is; infinite where all are 0.

    Args:
        scores: [k] usable ones.
    """
    if not len(scores):
        return math.inf
    kept = len(scores) - max(1, int(_TRIMMED * len(scores))) if len(scores) > 1 else 1
    others = np.partition(scores, kept - 1)[:kept]
    mean = float(others.mean(dtype=np.float64))
    return _OUTLIER * mean if mean > 0 else math.inf
