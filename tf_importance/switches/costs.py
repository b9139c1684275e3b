"""What steps cost on this machine, measured while training goes on."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tf_importance.plans import Plan

# Of so many newest timings the median counts: a pause, an evaluation or a trace is one of them.
_TIMINGS = 5


class StepCosts(tf.Module):
    """Seconds of a step under each plan, as far as training has shown them.

    A pipeline is asked for the next group when the batches of the last one are used up. So the
    time between two of its groups is what the first one's steps took, with all that did not
    overlap with them: reading the examples, scoring them, callbacks. Uniform steps are timed like
    this, and what a drawn-from group took beyond its steps is the seconds of scoring it.

    Args:
        plans: all there are.
        group_size: examples that are asked for at once.
    Attributes:
        timings: [1 + k, 5] newest seconds: of a uniform step, and of scoring a group; where there
            is a memory, of each of the k ways to draw by it.
        counts: [1 + k] how many there ever were.
    """

    def __init__(self, plans: Sequence[Plan], group_size: int) -> None:
        super().__init__(name="step_costs")
        remembered = [plan for plan in plans if plan.remembered]
        kinds = 1 + max(len(remembered), 1)
        self.timings = _variable(tf.zeros([kinds, _TIMINGS]), "timings")
        self.counts = _variable(tf.zeros([kinds], tf.int32), "counts")
        self.last_time = _variable(tf.constant(0.0, tf.float64), "last_time")
        self.last_plan = _variable(tf.constant(-1), "last_plan")
        self.in_a_row = _variable(tf.constant(0), "in_a_row")
        batches = [plan.batches(group_size) for plan in plans]
        self._batches = tf.constant(batches, tf.float32)
        self._drawn = tf.constant([plan.draws > 0 for plan in plans])
        # Where in `timings` what a plan takes beyond its steps is.
        extra = [1 + (remembered.index(plan) if plan.remembered else 0) for plan in plans]
        self._extra = tf.constant(extra)

    def seconds(self) -> tf.Tensor:
        """[k] seconds of a step under each plan; infinite as long as they are not known."""
        counts = tf.convert_to_tensor(self.counts)
        known = tf.range(_TIMINGS)[tf.newaxis] < tf.minimum(counts, _TIMINGS)[:, tf.newaxis]
        times = tf.sort(tf.where(known, tf.convert_to_tensor(self.timings), float("inf")), axis=1)
        middle = tf.maximum(tf.minimum(counts, _TIMINGS) - 1, 0) // 2
        medians = tf.gather(times, middle, batch_dims=1)
        scoring = tf.where(self._drawn, tf.gather(medians, self._extra) / self._batches, 0.0)
        return medians[0] + scoring

    def asked(self, now: tf.Tensor) -> None:
        """Take the time: the group that comes is asked for now.

        Args:
            now: scalar float64, seconds.
        """
        plan, row = tf.convert_to_tensor(self.last_plan), tf.convert_to_tensor(self.in_a_row)
        elapsed = tf.cast(now - self.last_time, tf.float32)
        self.last_time.assign(now)
        # The first of a row overlaps with the steps of another plan.
        tf.cond(row >= 2, lambda: self._record(plan, elapsed), lambda: None)

    def chosen(self, plan: tf.Tensor) -> None:
        """What becomes of the group that was asked for."""
        row = tf.where(tf.equal(plan, self.last_plan), self.in_a_row + 1, 1)
        self.in_a_row.assign(row)
        self.last_plan.assign(plan)

    def interrupted(self) -> None:
        """What comes now, or a pause, is none of the plans'."""
        self.in_a_row.assign(0)
        self.last_plan.assign(-1)

    def _record(self, plan: tf.Tensor, elapsed: tf.Tensor) -> None:
        batches, drawn = tf.gather(self._batches, plan), tf.gather(self._drawn, plan)
        step = elapsed / batches
        # Without a uniform step's time there is nothing to compare with.
        scoring = tf.maximum(elapsed - batches * self.seconds()[0], 0.0)
        row = tf.where(drawn, tf.gather(self._extra, plan), 0)
        place = tf.gather(self.counts, row) % _TIMINGS
        value = tf.where(drawn, scoring, step)
        tf.cond(
            tf.math.is_finite(value),
            lambda: self._write(row, place, value),
            lambda: None,
        )

    def _write(self, row, place, value) -> None:
        self.timings.scatter_nd_update([tf.stack([row, place])], [value])
        self.counts.scatter_nd_add([[row]], [1])


def _variable(initial, name: str) -> tf.Variable:
    return tf.Variable(initial, trainable=False, name=name)
