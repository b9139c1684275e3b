"""What a switch decides on, and what it is."""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from tf_importance import arguments, gain
from tf_importance.meter import Meter
from tf_importance.plans import Plan

# Behind so many times the batches of a uniform group that were drawn in a row, the first ones leave
# uniformly.
_COMPARED_EARLY = (2.5, 7.5, 17.5)


class Judged(NamedTuple):
    """What is known of the gains of k plans.

    Attributes:
        predicted: [k] r by the moments alone.
        gains: [k] r that is sure; see `Setting.gains`.
        known: whether enough was seen of what the plan in force does.
        likely_share: what was seen of its gain, as a share of its prediction, 1 at most, taken as
            it is; see `Observed.gain`.
    """

    predicted: tf.Tensor
    gains: tf.Tensor
    known: tf.Tensor
    likely_share: tf.Tensor


class Setting(NamedTuple):
    """What a switch decides for.

    Attributes:
        model: an ISModel.
        group_size: examples that are decided on at once, B where there is one.
        plans: what may become of them; the first is uniform batches of b, or of strata.
        systematic: whether draws are systematic; else they are taken to be independent.
        meter: of the gain, None where nobody asks for it.
        weighed_every: groups from one weighing of gain and cost to the next.
        in_pipeline: whether the graph that asks is a pipeline's own.
        warmed_up_by: index of the plan of the first groups, which nothing is timed by.
    """

    model: Any
    group_size: int
    plans: tuple[Plan, ...]
    systematic: bool
    meter: Meter | None = None
    weighed_every: int = 1
    in_pipeline: bool = False
    warmed_up_by: int = 0

    @property
    def batch_size(self) -> int:
        """b."""
        return self.plans[0].batch_size

    @property
    def presample_sizes(self) -> set[int]:
        """The distinct B of the plans that draw."""
        return {plan.presample_size for plan in self.plans if plan.draws}

    @property
    def _measured(self) -> Meter:
        assert self.meter is not None, "nobody measures the gain"
        return self.meter

    def gains(self, in_force: tf.Tensor) -> tf.Tensor:
        """r of each plan over uniform batches of b: [k]; 1 as long as too little is known.

        None is larger than the model's learning rate can follow, and where the plan in force
        draws by fresh scores, none than what was seen of it allows.

        Args:
            in_force: index of the plan by which the latest batches were made.
        """
        return self.judged(in_force).gains

    def judged(self, in_force: tf.Tensor) -> Judged:
        """All that is known of the gains of the plans."""
        moments, uniform, enough = self._moments(in_force)
        squares = tf.stack([self._square(moments, plan) for plan in self.plans])
        predicted = self._ratios(uniform, squares, enough)
        seen = self._measured.observed()
        expected = tf.math.divide_no_nan(uniform, moments.square)
        of_plan = tf.gather(predicted, in_force)

        def share(sure: bool) -> tf.Tensor:
            share = tf.math.divide_no_nan(seen.gain(expected, sure), of_plan)
            return tf.clip_by_value(share, 0.0, 1.0)

        if not any(plan.is_compared for plan in self.plans):
            return Judged(predicted, predicted, seen.known, share(sure=False))
        surely = tf.where(self.are_compared, share(sure=True), 1.0)
        surely = tf.where(seen.known, surely * predicted, 1.0)
        gains = tf.where(self.compares(in_force), surely, predicted)
        return Judged(predicted, gains, seen.known, share(sure=False))

    @property
    def are_compared(self) -> tf.Tensor:
        """[k] whether uniform batches are compared with those of each plan."""
        return tf.constant([plan.is_compared for plan in self.plans])

    def compares(self, in_force: tf.Tensor) -> tf.Tensor:
        """Whether uniform batches are compared with those of the plan in force."""
        return tf.gather(self.are_compared, in_force)

    def compared_at(self, plan: tf.Tensor) -> tf.Tensor:
        """Which groups of a row leave uniformly: the first ones, and one of how many later, int32.

        The more uniform batches a group has, the rarer; in the long run one batch in 32.
        """
        size = self.group_size // self.batch_size

        def groups(one: Plan, times: float) -> int:
            return max(2, int(times * size // one.batches(self.group_size)))

        table = [
            [*(groups(one, times) for times in _COMPARED_EARLY), groups(one, 31) + 1]
            for one in self.plans
        ]
        return tf.gather(tf.constant(table), plan)

    def gain_of(self, plan: tf.Tensor) -> tf.Tensor:
        """r of the plan that is taken; 1 for uniform batches of b by definition."""
        return tf.cond(
            self.gains_by(plan), lambda: tf.gather(self.gains(plan), plan), lambda: tf.constant(1.0)
        )

    def gains_by(self, plan: tf.Tensor) -> tf.Tensor:
        """Whether a plan can have another gain than 1: all but uniform batches of b."""
        return (plan > 0) | self.plans[0].remembered

    def largest_gain_of_memory(self) -> tf.Tensor:
        """r of batches of b that a memory would draw which knew all scores of the moment.

        While uniform batches are in force; 1 as long as too little is known.
        """

        moments, uniform, enough = self._moments(tf.constant(0))
        perfect = moments._replace(square=moments.drawn_square)
        return self._ratios(uniform, gain.uniform_square(perfect, self.batch_size), enough)

    def _moments(self, in_force: tf.Tensor) -> tuple[gain.Moments, tf.Tensor, tf.Tensor]:
        """The moments, E‖g‖² of uniform batches of b by them, and whether enough was measured."""
        moments, enough = self._measured.moments()
        moments = moments._replace(mean_square=self._mean_square(moments, in_force))
        return moments, gain.uniform_square(moments, self.batch_size), enough

    def _ratios(self, uniform: tf.Tensor, squares: tf.Tensor, enough: tf.Tensor) -> tf.Tensor:
        """r of what has E‖g‖² of these squares."""
        ratios = gain.gain_ratio(uniform, squares)
        return tf.minimum(tf.where(enough, ratios, 1.0), self.model.largest_gain())

    def _square(self, moments: gain.Moments, plan: Plan) -> tf.Tensor:
        moments = _of_presamples(moments, plan)
        if not plan.rescored:
            return gain.uniform_square(moments, plan.batch_size)
        rounding = self._rounding(moments, plan.rate)
        return gain.drawn_square(moments, plan.batch_size, plan.rate, rounding)

    def _rounding(self, moments: gain.Moments, rate: float) -> tf.Tensor:
        if not self.systematic:
            return tf.constant(1.0)
        return moments.rounding_factor(self._measured.sampling.rates.index(rate))

    def _mean_square(self, moments: gain.Moments, in_force: tf.Tensor) -> tf.Tensor:
        """A, of batches of the plan in force; never below 0."""

        def seen_by(plan: Plan) -> tf.Tensor:
            if not plan.rescored:
                return moments.mean_square
            rounding = self._rounding(moments, plan.batch_size / plan.presample_size)
            return gain.corrected_mean_square(
                _of_presamples(moments, plan), plan.batch_size, plan.presample_size, rounding
            )

        seen = tf.stack([seen_by(plan) for plan in self.plans])
        return tf.maximum(tf.gather(seen, in_force), 0.0)


def _of_presamples(moments: gain.Moments, plan: Plan) -> gain.Moments:
    """With the second moment of the plan's pre-samples in the place of uniform ones' U."""
    return moments._replace(square=moments.remembered) if plan.remembered else moments


class Switch(arguments.Written, tf.Module):
    """Decides for each pre-sample what becomes of it. `open` comes first, once.

    Attributes:
        may_draw: whether it can decide for anything but uniform batches.
    """

    may_draw = True

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name=name)
        self.in_a_row = tf.Variable(0, trainable=False, name="in_a_row")

    def compared(self, setting: Setting, plan: tf.Tensor) -> tf.Tensor:
        """A plan; in place of some that draw uniform batches, with which they are compared.

        Called once for each group. The first ones come early.
        """
        if setting.meter is None:
            return plan
        in_a_row = tf.where(setting.compares(plan), self.in_a_row + 1, 0)
        with tf.control_dependencies([self.in_a_row.assign(in_a_row)]):
            at = setting.compared_at(plan)
            early = tf.reduce_any(tf.equal(in_a_row, at[:-1]))
            due = early | tf.equal(in_a_row % at[-1], at[0])
            return tf.where(due & setting.compares(plan), 0, plan)

    def open(self, setting: Setting) -> None:
        """Get to know what is to be decided on.

        Raises:
            ValueError: the switch cannot work with it, or is in use elsewhere.
        """
        del setting

    def choose(self, setting: Setting) -> tf.Tensor:
        """The index of a plan, int32; called in a graph, once for each pre-sample."""
        raise NotImplementedError

    def decided(self, setting: Setting) -> tuple[tf.Tensor, tf.Tensor]:
        """The index of a plan and its predicted gain; asked once for all batches of a group."""
        plan = self.compared(setting, self.choose(setting))
        return plan, tf.constant(1.0) if setting.meter is None else setting.gain_of(plan)

    def interrupted(self) -> None:
        """Called instead where a group is too short to be decided on, as at the end of a pass."""

    def why_off(self, setting: Setting) -> str:
        """Why a training had no drawn batch, as far as it was up to the switch."""
        return f"no group of {setting.group_size} examples was ever complete"


class Always(Switch):
    """Draw from every pre-sample."""

    def choose(self, setting: Setting) -> tf.Tensor:
        return tf.constant(1)


class Never(Switch):
    """Draw from none: uniform sampling, at its cost."""

    may_draw = False

    def choose(self, setting: Setting) -> tf.Tensor:
        return tf.constant(0)
