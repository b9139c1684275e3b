"""When to draw from a pre-sample and when to use all of it uniformly."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tf_importance import compat, costs, gain, variance
from tf_importance.plans import Plan

_THRESHOLDS: dict[str, Callable[[int, int], float]] = {
    "guaranteed": variance.guaranteed_threshold,
    "break_even": variance.break_even_threshold,
    "presample_break_even": variance.presample_break_even_threshold,
}


class Setting(NamedTuple):
    """What a switch decides for.

    Attributes:
        model: an ISModel.
        group_size: examples that are decided on at once, B where there is one.
        plans: what may become of them; the first is uniform batches of b.
        systematic: whether draws are systematic; else they are taken to be independent.
        smoothing: c, what the scores are smoothed by.
    """

    model: Any
    group_size: int
    plans: tuple[Plan, ...]
    systematic: bool
    smoothing: float = 0.0

    @property
    def batch_size(self) -> int:
        """b."""
        return self.plans[0].batch_size

    @property
    def presample_sizes(self) -> set[int]:
        """The distinct B of the plans that draw."""
        return {plan.presample_size for plan in self.plans if plan.draws}

    @property
    def rates(self) -> list[float]:
        """The distinct ρ = R b/B of the plans that score, and those of a single batch, b/B."""
        drawn = [plan for plan in self.plans if plan.rescored]
        rates = {plan.rate for plan in drawn}
        return sorted(rates | {plan.batch_size / plan.presample_size for plan in drawn})

    @property
    def sampling(self) -> gain.Sampling:
        """What a step must know to measure the moments of the gain."""
        return gain.Sampling(tuple(self.rates), self.smoothing)

    def gains(self, in_force: tf.Tensor) -> tf.Tensor:
        """r of each plan over uniform batches of b: [k]; 1 as long as too little is known.

        None is larger than the model's learning rate can follow.

        Args:
            in_force: index of the plan by which the latest batches were made.
        """
        return self._over_uniform(
            in_force, lambda moments: tf.stack([self._square(moments, plan) for plan in self.plans])
        )

    def gain_of(self, plan: tf.Tensor) -> tf.Tensor:
        """r of the plan that is taken; 1 for uniform batches of b, the first, by definition."""
        return tf.cond(
            plan > 0, lambda: tf.gather(self.gains(plan), plan), lambda: tf.constant(1.0)
        )

    def largest_gain_of_memory(self) -> tf.Tensor:
        """r of batches of b that a memory would draw which knew all scores of the moment.

        While uniform batches are in force; 1 as long as too little is known.
        """

        def of_all_scores(moments: gain.Moments) -> tf.Tensor:
            perfect = moments._replace(square=moments.drawn_square)
            return gain.uniform_square(perfect, self.batch_size)

        return self._over_uniform(tf.constant(0), of_all_scores)

    def _over_uniform(
        self, in_force: tf.Tensor, squares: Callable[[gain.Moments], tf.Tensor]
    ) -> tf.Tensor:
        """r of what has E‖g‖² by these moments, over uniform batches of b."""
        moments, known = self.model.gain_moments()
        moments = moments._replace(mean_square=self._mean_square(moments, in_force))
        uniform = gain.uniform_square(moments, self.batch_size)
        ratios = gain.gain_ratio(uniform, squares(moments))
        return tf.minimum(tf.where(known, ratios, 1.0), self.model.largest_gain())

    def _square(self, moments: gain.Moments, plan: Plan) -> tf.Tensor:
        moments = _of_presamples(moments, plan)
        if not plan.rescored:
            return gain.uniform_square(moments, plan.batch_size)
        rounding = self._rounding(moments, plan.rate)
        return gain.drawn_square(moments, plan.batch_size, plan.rate, rounding)

    def _rounding(self, moments: gain.Moments, rate: float) -> tf.Tensor:
        return moments.rounding[self.rates.index(rate)] if self.systematic else tf.constant(1.0)

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


class Switch(tf.Module):
    """Decides for each pre-sample what becomes of it. `open` comes first, once."""

    def open(self, setting: Setting) -> None:
        """Get to know what is to be decided on.

        Raises:
            ValueError: the switch cannot work with it, or is in use elsewhere.
        """
        del setting

    def choose(self, setting: Setting) -> tf.Tensor:
        """The index of a plan, int32; called in a graph, once for each pre-sample."""
        raise NotImplementedError

    def interrupted(self) -> None:
        """Called instead where a group is too short to be decided on, as at the end of a pass."""


class Always(Switch):
    """Draw from every pre-sample."""

    def choose(self, setting: Setting) -> tf.Tensor:
        return tf.constant(1)


class Never(Switch):
    """Draw from none: uniform sampling, at its cost."""

    def choose(self, setting: Setting) -> tf.Tensor:
        return tf.constant(0)


class Tau(Switch):
    """Draw while τ, the equivalent batch increase, is above a threshold (Algorithm 1).

    Args:
        threshold: a number; or "guaranteed", the paper's (B + 3b)/(3b); "break_even", its square
            root; "presample_break_even", the same with the pre-sample's own noise counted.
        hysteresis: h ≥ 0; once on, it stays on down to the threshold over 1 + h. The paper has
            none.
    Raises:
        ValueError: threshold is no such name, negative or not finite; hysteresis is negative.
    """

    def __init__(self, threshold: float | str = "guaranteed", hysteresis: float = 0.0) -> None:
        super().__init__(name="tau_switch")
        if isinstance(threshold, str) and threshold not in _THRESHOLDS:
            raise ValueError(
                "the threshold of τ must be a number, 'always', 'never' or one of "
                f"{sorted(_THRESHOLDS)}; got {threshold!r}."
            )
        if not isinstance(threshold, str):
            number = not isinstance(threshold, bool) and math.isfinite(threshold)
            if not number or threshold < 0:
                raise ValueError(
                    "the threshold of τ must be finite and not negative; got "
                    f"{threshold!r}. To draw always or never, give tau_threshold='always' or "
                    "'never', or switch=tfi.switches.Always() or Never()."
                )
        if not hysteresis >= 0:
            raise ValueError(f"hysteresis must not be negative; got {hysteresis}.")
        self._threshold = threshold
        self._hysteresis = hysteresis
        self._on: tf.Variable | None = None

    def open(self, setting: Setting) -> None:
        if self._hysteresis and self._on is None:
            self._on = tf.Variable(False, trainable=False, name="on")

    def choose(self, setting: Setting) -> tf.Tensor:
        threshold = self.threshold(setting.group_size, setting.batch_size)
        tau = compat.value(setting.model.tau)
        if self._on is None:
            return tf.cast(tau > threshold, tf.int32)
        lowered = threshold / (1 + self._hysteresis)
        on = tau > tf.where(self._on, lowered, threshold)
        return tf.cast(self._on.assign(on), tf.int32)

    def threshold(self, presample_size: int, batch_size: int) -> float:
        """τ_th for sizes B and b."""
        if isinstance(self._threshold, str):
            return _THRESHOLDS[self._threshold](presample_size, batch_size)
        return float(self._threshold)


# Pre-samples in a row for which a cost is measured.
_PROBES = 5
# What is not in use is timed anew from these numbers of pre-samples on (a process gets faster in
# its first seconds), and then before every so many.
_REFRESH_AT = (64, 256)
_REFRESH_EVERY = 1024
# Of uniform batches' speed, what is worth a trial.
_NEAR = 0.75


class Gain(Switch):
    """Draw while the predicted gain is worth its cost, both measured while training goes on.

    The speed of a plan is r/seconds: r, the gain ratio, says how much further its step gets when
    the learning rate follows it (see `tf_importance.gain`, and `tfi.schedules.GainAdapted`,
    without which lower variance is not less time); seconds are those of a step under the plan on
    this machine, reading and scoring examples included where they do not overlap with it. The
    fastest plan is taken.

    * It starts uniformly. The first 5 pre-samples warm up, the next 5 time uniform steps, then
      5 scoring, and 5 each of every smaller batch size. What is not in use is timed anew for 5
      pre-samples from the 64th and the 256th on, and of every 1,024. That is all the scoring
      there is while uniform sampling is faster: in the long run one pre-sample in 200. (In
      `history_sample` 8 batches are decided on at once, in place of a pre-sample, and memory is
      tried out now and then, more and more rarely.)
    * A plan gives way when another is faster by the hysteresis, or when it falls below uniform
      sampling. Nothing is decided before 25 steps have been measured, one in four of the uniform
      ones.
    * Its state is in a `tf.train.Checkpoint` of the model, and not in files of weights.
    * With `step_seconds` and `scoring_seconds` nothing is timed, and runs repeat.

    Args:
        step_seconds: of a uniform step of b; smaller ones are taken to cost in proportion. Only
            the ratio to `scoring_seconds` counts.
        scoring_seconds: of scoring a group (a pre-sample; of 12b with "auto"; 8 pre-samples of
            `history_sample`), as far as steps have to wait for it.
        hysteresis: h > 0; another plan must be faster by 1 + h to take over.
    Attributes:
        plan: variable, index of the plan in force.
        speedup: variable, predicted speed of that plan over uniform batches of b.
    Raises:
        ValueError: only one of the seconds is given, or a value is out of range.
    """

    def __init__(
        self,
        *,
        step_seconds: float | None = None,
        scoring_seconds: float | None = None,
        hysteresis: float = 0.1,
    ) -> None:
        super().__init__(name="gain_switch")
        self._by_hand = _by_hand(step_seconds, scoring_seconds)
        if not hysteresis > 0:
            raise ValueError(f"hysteresis must be positive; got {hysteresis}.")
        self._hysteresis = hysteresis
        self._opened_for: tuple[weakref.ref, int, tuple[Plan, ...]] | None = None
        self.plan = tf.Variable(0, trainable=False, name="plan")
        self.speedup = tf.Variable(1.0, trainable=False, name="speedup")
        self.presamples = tf.Variable(0, dtype=tf.int64, trainable=False, name="presamples")
        self.held = tf.Variable(0, trainable=False, name="held")
        self.costs: costs.StepCosts | None = None
        # Of a pipeline that has something to checkpoint.
        self.decisions: tf.Module | None = None

    def open(self, setting: Setting) -> None:
        # Not its id, which another model may have once this one is gone.
        key = (weakref.ref(setting.model), setting.group_size, setting.plans)
        if self._opened_for not in (None, key):
            raise ValueError(
                "a Gain switch measures one model and pipeline, and cannot serve another model or "
                f"other sizes; make a new one. It is used for {self._opened_for[1:]}, and got "
                f"{key[1:]}."
            )
        self._opened_for = key
        if self._by_hand is None and self.costs is None:
            self.costs = costs.StepCosts(setting.plans, setting.group_size)

    def choose(self, setting: Setting) -> tf.Tensor:
        number = self.presamples.assign_add(1) - 1
        if self.costs is not None:
            self.costs.asked(tf.timestamp())
        current = tf.convert_to_tensor(self.plan)
        speeds = setting.gains(current) / self._seconds(setting)
        held = tf.convert_to_tensor(self.held)
        best = tf.where(held > 0, current, self._best(speeds, current))
        self.held.assign(tf.maximum(held - 1, 0))
        self.plan.assign(best)
        self.speedup.assign(tf.where(speeds[0] > 0, tf.gather(speeds, best) / speeds[0], 1.0))
        if self.costs is None:
            return best
        plan = self._probed(setting, number, best)
        self.costs.chosen(plan)
        return plan

    def hold(self, plan: int, groups: int) -> None:
        """Try a plan out for the next groups, whatever is predicted of it."""
        self.plan.assign(plan)
        self.held.assign(groups)

    def worth_a_trial(self, setting: Setting, plan: int, ratio: tf.Tensor) -> tf.Tensor:
        """Whether a plan of this gain ratio may come to be faster than uniform batches of b.

        A gain above the hysteresis, and three quarters of their speed: once the learning rate
        follows it the mean gradient shrinks, noise weighs more, and the gain rises.
        """
        seconds = self._seconds(setting)
        near = ratio * seconds[0] > _NEAR * seconds[plan]
        return near & (ratio > 1 + self._hysteresis)

    def interrupted(self) -> None:
        if self.costs is not None:
            self.costs.interrupted()

    def times_uniform(self, plan: tf.Tensor) -> tf.Tensor:
        """Whether the group that a plan was just chosen for is there to time uniform steps."""
        if self.costs is None:
            return tf.constant(False)
        at_start = tf.equal((self.presamples - 1) // _PROBES, 1)
        return tf.equal(plan, 0) & (at_start | tf.not_equal(self.plan, 0))

    def _seconds(self, setting: Setting) -> tf.Tensor:
        if self._by_hand is None:
            assert self.costs is not None, "open comes first"
            return self.costs.seconds()
        step, scoring = self._by_hand
        return tf.constant(
            [
                step * plan.batch_size / setting.batch_size
                + (scoring / plan.batches(setting.group_size) if plan.rescored else 0.0)
                for plan in setting.plans
            ],
            tf.float32,
        )

    def _best(self, speeds: tf.Tensor, current: tf.Tensor) -> tf.Tensor:
        """The fastest plan, or the current one while it is nearly that and no slower than b."""
        speeds = tf.where(tf.math.is_finite(speeds), speeds, 0.0)
        fastest = tf.argmax(speeds, output_type=tf.int32)
        held = tf.gather(speeds, current)
        stays = (held * (1 + self._hysteresis) >= tf.reduce_max(speeds)) & (held >= speeds[0])
        return tf.where(stays, current, fastest)

    def _probed(self, setting: Setting, number: tf.Tensor, best: tf.Tensor) -> tf.Tensor:
        """The best plan, but for pre-samples that are there to be timed."""
        first = _to_time_first(setting.plans)
        turn = tf.cast(number // _PROBES, tf.int32)
        starting = turn < len(first)
        at_start = tf.gather(first, tf.minimum(turn, len(first) - 1))
        others = _to_time_anew(setting.plans)
        kinds = len(others[0])
        refreshing = number % _REFRESH_EVERY >= _REFRESH_EVERY - _PROBES
        turn = tf.cast(number // _REFRESH_EVERY, tf.int32) % kinds
        for start in _REFRESH_AT:
            since = tf.cast(number - start, tf.int32)
            here = (since >= 0) & (since < kinds * _PROBES)
            refreshing |= here
            turn = tf.where(here, since // _PROBES, turn)
        other = tf.gather_nd(others, [best, turn])
        return tf.where(starting, at_start, tf.where(refreshing, other, best))


def _by_hand(step: float | None, scoring: float | None) -> tuple[float, float] | None:
    """Costs as a user gave them, None if they are to be measured."""
    if step is None and scoring is None:
        return None
    if step is None or scoring is None:
        raise ValueError(
            "step_seconds and scoring_seconds are given together, or both are measured; got "
            f"{step} and {scoring}."
        )
    if not (step > 0 and scoring >= 0):
        raise ValueError(
            "step_seconds must be positive and scoring_seconds not negative; got "
            f"{step} and {scoring}."
        )
    return step, scoring


def _to_time_anew(plans: Sequence[Plan]) -> list[list[int]]:
    """For each plan in force, what is timed beside it in turns: what its prediction rests on.

    For one that draws uniform steps of its size; for uniform batches of b drawing; for smaller
    ones those of b. Where a memory draws, all others.
    """
    if any(plan.remembered for plan in plans):
        return [[i for i in range(len(plans)) if i != mine] for mine in range(len(plans))]
    drawn = _to_time_first(plans)[2]
    others = []
    for plan in plans:
        uniform = plans.index(Plan(plan.batch_size))
        others.append([uniform if plan.draws else (drawn if uniform == 0 else 0)])
    return others


def _to_time_first(plans: Sequence[Plan]) -> list[int]:
    """Uniform steps of b, twice; a plan that draws batches of b, all that a memory draws; every
    other size uniformly."""
    size = plans[0].batch_size
    drawing = [i for i, plan in enumerate(plans) if plan.draws and plan.batch_size == size]
    by_memory = [i for i in drawing if plans[i].remembered]
    drawn = by_memory or [drawing[len(drawing) // 2]]
    smaller = [i for i, plan in enumerate(plans) if not plan.draws and plan.batch_size != size]
    return [0, 0, *drawn, *smaller]


def named(tau_threshold: float | str | None) -> Switch:
    """The switch that a `tau_threshold` stands for."""
    if tau_threshold == "always":
        return Always()
    if tau_threshold == "never":
        return Never()
    return Tau("guaranteed" if tau_threshold is None else tau_threshold)


def warn_unless_followed(switch: Switch | None, model: Any) -> None:
    """Say so where a measured gain would not reach the learning rate."""
    if isinstance(switch, Gain) and not model.follows_gain:
        warnings.warn(
            "a Gain switch counts on a learning rate that follows the gain: without that, lower "
            "variance is not less time. Compile with optimizer=keras.optimizers.SGD("
            "tfi.schedules.GainAdapted(learning_rate)), or any other optimizer.",
            stacklevel=4,
        )
