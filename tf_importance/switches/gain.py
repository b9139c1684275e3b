"""A switch by the gain: draw while that is worth its cost, both measured in training."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tf_importance import compat, graphs, variance
from tf_importance.arguments import named, number
from tf_importance.plans import Plan
from tf_importance.switches import costs
from tf_importance.switches.base import Judged, Setting, Switch

# Pre-samples in a row for which a cost is measured.
_PROBES = 5
# What is not in use is timed anew from these numbers of pre-samples on (a process gets faster in
# its first seconds), and then before every so many.
_REFRESH_AT = (64, 256)
_REFRESH_EVERY = 1024
# Pre-samples that are drawn from to begin with, and those up to which τ or strata keep it so.
_FIRST = 8
_TRIED = 150
# Weighings for which drawing goes on once it has begun: by then it can be judged by what it did.
_UNTIL_SEEN = 3
# Behind these, one weighing in so many is made while a stream's batches are uniform.
_SELDOM = 4
# With each weighing, how much of what was seen of drawing is forgotten while there is none.
_FORGOTTEN = 1 / 64
# Of uniform batches' speed, what is worth a trial.
_NEAR = 0.75


class Gain(Switch):
    """Draw while the predicted gain is worth its cost, both measured while training goes on.

    The speed of a plan is r/seconds: r, the gain ratio, says how much further its step gets when
    the learning rate follows it (see `tf_importance.gain`, and `tfi.schedules.GainAdapted`,
    without which lower variance is not less time); seconds are those of a step under the plan on
    this machine, reading and scoring examples included where they do not overlap with it. The
    fastest plan is taken.

    * The first 8 pre-samples of a stream are drawn from; so are the next, 150 at most, while
      their τ is above the cost: where a class is rare, uniform batches would say little of the
      gain for hundreds of steps. Of strata, which somebody has named, it is the first 150. Where
      scoring costs more than the B/b that drawing can gain, none is.
    * Where costs are measured the first 5 pre-samples warm up, the next 5 time uniform steps, then
      5 scoring. What is not in use is timed anew for 5 pre-samples from the 64th and the 256th on,
      and of every 1,024. That is all the scoring
      there is while uniform sampling is faster: in the long run one pre-sample in 200. (In
      `history_sample` 8 batches are decided on at once, in place of a pre-sample, and memory is
      tried out now and then, more and more rarely.)
    * Later, gain and cost are weighed for every 32 batches of examples (8 pre-samples of 4b; 8
      batches of `history_sample`), and while a stream's batches are uniform, behind the 150th
      pre-sample, for every 128. A plan gives way when another is faster by the hysteresis, or
      when it falls below uniform sampling. Nothing is decided before 25 steps have been
      measured, one in four of the uniform ones.
    * Its state is in a `tf.train.Checkpoint` of the model, and not in files of weights.
    * With `step_seconds` and `scoring_seconds` nothing is timed, and runs repeat.

    Args:
        step_seconds: of a uniform step. Only the ratio to `scoring_seconds` counts.
        scoring_seconds: of scoring a group (a pre-sample; of 12b with "auto"; 8 pre-samples of
            `history_sample`), as far as steps have to wait for it.
        memory_seconds: of drawing 8 batches of `history_sample` by memory and remembering what
            their steps see, likewise.
        hysteresis: h > 0; another plan must be faster by 1 + h to take over.
    Attributes:
        plan: variable, index of the plan in force.
        gain: variable, its predicted gain ratio r.
        speedup: variable, predicted speed of that plan over uniform batches of b.
    Raises:
        ValueError: only one of the first two seconds is given, or a value is out of range.
    """

    def __init__(
        self,
        *,
        step_seconds: float | None = None,
        scoring_seconds: float | None = None,
        memory_seconds: float = 0.0,
        hysteresis: float = 0.1,
    ) -> None:
        super().__init__(name="gain_switch")
        self._by_hand = _by_hand(step_seconds, scoring_seconds, memory_seconds)
        self._hysteresis = number("hysteresis", hysteresis, "positive", lambda h: h > 0)
        self._opened_for: tuple[weakref.ref, int, tuple[Plan, ...]] | None = None
        self._weigher: Callable[[], Any] | None = None
        self.plan = tf.Variable(0, trainable=False, name="plan")
        self.gain = tf.Variable(1.0, trainable=False, name="gain")
        self.speedup = tf.Variable(1.0, trainable=False, name="speedup")
        self.presamples = tf.Variable(0, dtype=tf.int64, trainable=False, name="presamples")
        self.held = tf.Variable(0, trainable=False, name="held")
        self.correction = tf.Variable(1.0, trainable=False, name="correction")
        self.costs: costs.StepCosts | None = None
        # Of a pipeline that has something to checkpoint.
        self.decisions: tf.Module | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes over: all but the model, since it may serve another one."""
        return {**self.__dict__, "_opened_for": None, "_weigher": None}

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
        if self._weigher is None:
            weigher = graphs.traced_once(lambda: self._weigh(setting))
            # Of a function: what a tf.Module holds becomes part of checkpoints.
            self._weigher = lambda: weigher
        if self._by_hand is None and self.costs is None:
            self.costs = costs.StepCosts(setting.plans, setting.group_size)

    def choose(self, setting: Setting) -> tf.Tensor:
        number = self.presamples.assign_add(1) - 1
        due = tf.equal(number % setting.weighed_every, 0)
        if setting.in_pipeline:
            often = (number < _TRIED) | (self.plan > 0)
            due &= often | tf.equal(number % (_SELDOM * setting.weighed_every), 0)

        def weighed() -> tf.Tensor:
            if not setting.in_pipeline:
                return self._weigh(setting)
            # By Python, which calls a compiled function: as a part of the pipeline its graph would
            # be optimized anew for each iterator, for as long as a dozen steps take.
            assert self._weigher is not None, "open comes first"
            return tf.py_function(graphs.weakly(self._weigher()), [], tf.bool)

        # TensorFlow does not see what Python writes.
        with tf.control_dependencies([tf.cond(due, weighed, lambda: tf.constant(False))]):
            best = tf.identity(self.plan)
        if self.costs is None:
            return best
        with tf.control_dependencies([best]):
            self.costs.asked(tf.timestamp())
        plan = self._probed(setting, number, best)
        self.costs.chosen(plan)
        return plan

    def decided(self, setting: Setting) -> tuple[tf.Tensor, tf.Tensor]:
        plan = self.compared(setting, self.choose(setting))
        with tf.control_dependencies([plan]):
            in_force, gain = tf.identity(self.plan), tf.identity(self.gain)
        # While another plan is timed there is none but 1 that is known to be safe.
        known = tf.equal(plan, in_force) & setting.gains_by(plan)
        return plan, tf.where(known, gain, 1.0)

    def why_off(self, setting: Setting) -> str:
        return "no plan to draw was ever worth its cost"

    def _weigh(self, setting: Setting) -> tf.Tensor:
        """Take the fastest plan by gain and cost as they are now; True."""
        current = tf.convert_to_tensor(self.plan)
        judged = setting.judged(current)
        gains, known, sure = self._gains(setting, current, judged), judged.known, judged.gains
        seconds = self._seconds(setting)
        speeds, uniform = gains / seconds, 1 / seconds[0]
        held = tf.convert_to_tensor(self.held)
        best = tf.where(held > 0, current, self._best(speeds, uniform, current))
        first, begun = self._first_choice(setting, current)
        best = tf.where(begun, first, best)
        begins = tf.equal(current, 0) & setting.compares(best)
        self.held.assign(tf.where(begins, _UNTIL_SEEN, tf.maximum(held - 1, 0)))
        self.plan.assign(best)
        # A learning rate follows what is sure; which plan is taken, what is likely.
        untried = setting.compares(best) & (~known | ~setting.compares(current))
        self.gain.assign(tf.where(untried, 1.0, tf.gather(sure, best)))
        self.speedup.assign(tf.where(uniform > 0, tf.gather(speeds, best) / uniform, 1.0))
        return tf.constant(True)

    def _gains(self, setting: Setting, current: tf.Tensor, judged: Judged) -> tf.Tensor:
        """r of each plan, [k]: what is predicted, corrected by what was seen of drawing.

        The correction is kept while batches are uniform, and slowly forgotten, so that drawing is
        tried again.
        """
        seen = tf.where(judged.known, judged.likely_share, self.correction)
        kept = 1 - _FORGOTTEN
        if setting.in_pipeline:
            kept = tf.where(self.presamples > _TRIED, kept**_SELDOM, kept)
        forgotten = 1 - (1 - self.correction) * kept
        correction = tf.where(setting.compares(current), seen, forgotten)
        self.correction.assign(correction)
        predicted = judged.predicted
        return tf.where(setting.are_compared, correction * predicted, predicted)

    def _first_choice(self, setting: Setting, current: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """What is drawn by before a gain can be judged, and whether it is too early for that.

        The first pre-samples are drawn from, and more of them while their τ is above the cost of
        doing so: where examples differ this much from the first step on, as where a class is rare,
        uniform batches would say little of the gain for hundreds of steps.
        """
        number, plan = self.presamples - 1, _to_time_first(setting.plans)[-1]
        cost = self._cost(setting, plan)
        if setting.plans[0].remembered:
            # Whoever names strata knows that examples differ; their τ is what that leaves.
            likely = tf.constant(True)
        else:
            tau = tf.cast(compat.value(setting.model.tau), tf.float32)
            likely = (number < _FIRST) | (tau > cost)
        # More than B/b no drawing gains, or F/b in a cascade.
        drawn_of = setting.plans[plan].presample_size
        if setting.plans[plan].cascaded:
            drawn_of = setting.group_size
        possible = cost < drawn_of / setting.batch_size
        begins = number < 1
        drawn = possible & likely & (begins | tf.equal(current, plan))
        early = setting.in_pipeline & (number < _TRIED) & (begins | (current > 0))
        return tf.where(drawn, plan, 0), early

    def _cost(self, setting: Setting, plan: int) -> tf.Tensor:
        """Of a step under a plan, in uniform ones; as the paper counts it until it is known."""
        seconds = self._seconds(setting)
        cost = seconds[plan] / seconds[0]
        counted = variance.guaranteed_threshold(
            setting.plans[plan].presample_size, setting.batch_size
        )
        return tf.where(tf.math.is_finite(cost), cost, counted)

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

    def extra_cost(self, setting: Setting, plan: int) -> tf.Tensor:
        """What a step of a plan costs more than a uniform one, in uniform ones; 0 at least."""
        seconds = self._seconds(setting)
        return tf.maximum(seconds[plan] / seconds[0] - 1, 0.0)

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
        given = self._by_hand
        seconds = []
        for plan in setting.plans:
            of_group = given.scoring if plan.rescored else given.memory if plan.remembered else 0.0
            seconds.append(given.step + of_group / plan.batches(setting.group_size))
        return tf.constant(seconds, tf.float32)

    def _best(self, speeds: tf.Tensor, uniform: tf.Tensor, current: tf.Tensor) -> tf.Tensor:
        """The fastest plan, or the current one while it is nearly that and no slower than b.

        Args:
            speeds: of the plans. uniform: of uniform batches of b. current: the plan in force.
        """
        speeds = tf.where(tf.math.is_finite(speeds), speeds, 0.0)
        fastest = tf.argmax(speeds, output_type=tf.int32)
        held = tf.gather(speeds, current)
        stays = (held * (1 + self._hysteresis) >= tf.reduce_max(speeds)) & (held >= uniform)
        return tf.where(stays, current, fastest)

    def _probed(self, setting: Setting, number: tf.Tensor, best: tf.Tensor) -> tf.Tensor:
        """The best plan, but for pre-samples that are there to be timed."""
        first = [setting.warmed_up_by, *_to_time_first(setting.plans)[1:]]
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


class _Seconds(NamedTuple):
    """As a user gave them: of a uniform step, of scoring a group, of drawing one by memory."""

    step: float
    scoring: float
    memory: float


def _by_hand(step: float | None, scoring: float | None, memory: float) -> _Seconds | None:
    """Costs as a user gave them, None if they are to be measured."""
    if step is None and scoring is None and memory == 0:
        return None
    if step is None or scoring is None:
        raise ValueError(
            "step_seconds and scoring_seconds must be given together, memory_seconds with them, or "
            f"none of them, and all are measured; got {named(step)}, {named(scoring)} and "
            f"{named(memory)}."
        )
    return _Seconds(
        number("step_seconds", step, "positive", lambda seconds: seconds > 0),
        number("scoring_seconds", scoring, "not negative", lambda seconds: seconds >= 0),
        number("memory_seconds", memory, "not negative", lambda seconds: seconds >= 0),
    )


def _to_time_anew(plans: Sequence[Plan]) -> list[list[int]]:
    """For each plan in force, what is timed beside it in turns: what its prediction rests on.

    For one that draws uniform steps, for these one that draws. Where a memory draws, all others.
    """
    if any(plan.remembered for plan in plans):
        return [[i for i in range(len(plans)) if i != mine] for mine in range(len(plans))]
    drawn = _to_time_first(plans)[2]
    return [[0 if plan.draws else drawn] for plan in plans]


def _to_time_first(plans: Sequence[Plan]) -> list[int]:
    """Uniform steps, twice; then a plan that draws, or all that a memory draws."""
    by_memory = [i for i, plan in enumerate(plans) if plan.remembered]
    drawing = [i for i, plan in enumerate(plans) if plan.draws]
    return [0, 0, *(by_memory or [drawing[len(drawing) // 2]])]


def warn_unless_followed(switch: Switch | None, model: Any) -> None:
    """Say so where a measured gain would not reach the learning rate."""
    if isinstance(switch, Gain) and not model.follows_gain:
        warnings.warn(
            "a Gain switch counts on a learning rate that follows the gain: without that, lower "
            "variance is not less time. Compile with optimizer=keras.optimizers.SGD("
            "tfi.schedules.GainAdapted(learning_rate)), or any other optimizer.",
            stacklevel=4,
        )
