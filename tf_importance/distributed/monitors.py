"""What a run by shared scores looks like from within: variance, staleness, speed."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from tf_importance import compat, losses, stores, variance
from tf_importance.arguments import Written, positive_integer
from tf_importance.distributed.mirror import Known
from tf_importance.distributed.shared import SharedScores

_QUANTILES = (0.1, 0.5, 0.9)
# Workers that reported nothing for so long have left.
_GONE_SECONDS = 10.0


def covariances(
    known: Known, constants: dict[str, float], mean_gradient_square: float = 0.0
) -> dict[str, float]:
    """√Tr Σ of the ideal, the stale and the uniform proposal   (eq. 7, 9, 8; figure 4).

    ω̃ are the newest scores, and ω̃_OLD those before: "we refer to q_STALE as the proposal that is
    based on all the weights from the previous iteration". All are of the same examples: those that
    have both, as soon as there are any.

    Args:
        known: the scores. constants: what is added to stale scores, by the name of its curve.
        mean_gradient_square: ‖g_TRUE‖²; what is negative for it counts as 0.
    Returns:
        `ideal`, `uniform`, and the names of constants; NaN before there are scores.
    """
    newest, previous = known.scores.astype(np.float64), known.previous.astype(np.float64)
    square = tf.constant(mean_gradient_square, tf.float64)
    both = np.isfinite(newest) & np.isfinite(previous)
    counted = both if both.any() else np.isfinite(newest)
    traces = dict.fromkeys(("ideal", "uniform", *constants), np.nan)
    if counted.any():
        norms = tf.constant(newest[counted])
        traces["ideal"] = float(variance.ideal_covariance_trace(norms, square))
        traces["uniform"] = float(variance.uniform_covariance_trace(norms, square))
    for name, constant in constants.items() if both.any() else ():
        stale = tf.constant(previous[both] + constant)
        traces[name] = float(variance.covariance_trace(norms, stale, square))
    return {name: float(np.sqrt(max(value, 0.0))) for name, value in traces.items()}


def drawn_trace(
    known: Known, constant: float, leaves_out: bool, mean_gradient_square: float = 0.0
) -> float:
    """√Tr Σ of what is really drawn: by scores that count, and as is done with the others.

    As `covariances` has it for the stale proposal, but that an example whose score does not count
    has the mean of the others, or no part in it.

    Args:
        known: the scores. constant: what is added to them. leaves_out: what becomes of the others.
        mean_gradient_square: as in `covariances`.
    Returns:
        NaN before there are scores.
    """
    newest, previous = known.scores.astype(np.float64), known.previous.astype(np.float64)
    both = np.isfinite(newest) & np.isfinite(previous)
    counted = both & known.usable
    if not counted.any():
        return float("nan")
    proposal = np.where(known.usable, previous, previous[counted].mean()) + constant
    chosen = counted if leaves_out else both
    norms, weights = tf.constant(newest[chosen]), tf.constant(proposal[chosen])
    square = tf.constant(mean_gradient_square, tf.float64)
    return float(np.sqrt(max(float(variance.covariance_trace(norms, weights, square)), 0.0)))


class Monitor(Written, keras.callbacks.Callback):
    """Reports on a run by shared scores, every so many steps.

    The numbers, by name:

    * `sqrt_trace_ideal`, `_uniform`, `_stale` (with the smoothing as it is) and `_stale_other`
      (with `other_constant`), `_drawn` (by the scores that count, and by what those without one are
      drawn by): √Tr Σ of eq. 6 to 9, in the units of the scores, which are gradient
      norms if the scorer is `gradient_norm`;
    * `mean_gradient`, what stands for ‖g_TRUE‖: the mean norm of the gradients of `batches` batches
      drawn uniformly, an upper bound (section B.2);
    * `usable`, the share of scores that count; `staleness_10`, `_50`, `_90`, quantiles of the ages
      of all scores in seconds, and `versions_50` the median in versions;
    * `scores_per_second` of all workers together, `workers`, and `scores_per_second/<name>`.

    Args:
        sampler: a `Master` or `Peer`.
        every: steps.
        report: takes the step and the numbers.
        other_constant: of `sqrt_trace_stale_other`.
        batches: how many; 0 leaves ‖g_TRUE‖ out. batch_size: theirs.
        seed: of their draw.
    Attributes:
        latest: the last numbers.
    """

    def __init__(
        self,
        sampler: SharedScores,
        every: int = 1000,
        report: Callable[[int, dict[str, float]], None] | None = None,
        *,
        other_constant: float = 0.0,
        batches: int = 4,
        batch_size: int = 128,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self._sampler, self._every = sampler, positive_integer("every", every)
        self._report, self._other = report, other_constant
        self._batches, self._batch_size = batches, batch_size
        self._random = np.random.default_rng(seed)
        self._turn = 0
        self._norm = tf.function(self._gradient_norm, autograph=False)
        self.latest: dict[str, float] = {}

    def on_train_batch_end(self, batch, logs=None) -> None:
        step = int(self._sampler.steps.numpy())
        if step // self._every == self._turn:
            return
        self._turn = step // self._every
        self.latest = self.numbers()
        if self._report is not None:
            self._report(step, self.latest)

    def numbers(self) -> dict[str, float]:
        """All numbers, as of now."""
        sampler = self._sampler
        known = sampler.mirror.known()
        constant = sampler.constant(known.scores[known.usable]) or 0.0
        gradient = self._mean_gradient()
        constants = {"stale": constant, "stale_other": self._other}
        traces = covariances(known, constants, gradient**2)
        found = {f"sqrt_trace_{name}": value for name, value in traces.items()}
        found["sqrt_trace_drawn"] = drawn_trace(known, constant, sampler.leaves_out, gradient**2)
        found |= {"mean_gradient": gradient, "smoothing": constant}
        found |= {"usable": float(known.usable.mean())}
        return found | self._of_store(known)

    def _of_store(self, known: Known) -> dict[str, float]:
        scored = known.versions > 0
        found: dict[str, float] = {}
        try:
            now, reports = self._sampler.store.now(), self._sampler.store.reports()
        except stores.StoreError:
            # Who lost the store says so itself; training goes on, and so do the other numbers.
            return found
        if scored.any():
            ages = np.quantile(now - known.times[scored], _QUANTILES)
            found |= {f"staleness_{int(100 * q)}": float(a) for q, a in zip(_QUANTILES, ages)}
            behind = known.versions.max() - known.versions[scored]
            found["versions_50"] = float(np.median(behind))
        alive = {
            name: report["per_second"]
            for name, report in reports.items()
            if "per_second" in report and now - report["time"] < _GONE_SECONDS
        }
        found |= {"workers": float(len(alive)), "scores_per_second": sum(alive.values(), 0.0)}
        return found | {f"scores_per_second/{name}": rate for name, rate in alive.items()}

    def _mean_gradient(self) -> float:
        """Mean ‖g‖ over batches, an upper bound of ‖g_TRUE‖ (section B.2)."""
        if not self._batches:
            return 0.0
        size = (self._batches, self._batch_size)
        chosen = self._random.integers(self._sampler.num_examples, size=size)
        return float(np.mean([float(self._norm(tf.constant(rows))) for rows in chosen]))

    def _gradient_norm(self, indices: tf.Tensor) -> tf.Tensor:
        inputs, labels = self._sampler.gather(indices)
        with tf.GradientTape() as tape:
            outputs = self.model(inputs, training=False)
            values = losses.per_example_losses(self.model.objective, labels, outputs)
            loss = tf.reduce_mean(values)
        variables = [compat.tensorflow_variable(v) for v in self.model.trainable_variables]
        gradients = [g for g in tape.gradient(loss, variables) if g is not None]
        return tf.linalg.global_norm(gradients)
