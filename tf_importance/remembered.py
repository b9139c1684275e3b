"""Batches of a sampler with memory under a switch: uniform, drawn by memory, or rescored."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tf_importance import plans, samplers, switches
from tf_importance.samplers.base import passing

# Batches that are decided on at once.
AT_ONCE = 8
# Memory is tried out for stretches of a term's eighth, of so many steps at least: two, and up to
# so many as long as the gain rises by a twentieth in each.
_STRETCH_STEPS = 150
_LEAST_STRETCHES, _MOST_STRETCHES = 2, 6
_RISING = 1.05
_MEMORY = 1


class Decisions(tf.Module):
    """Where the batches of a switched pipeline are; checkpointed with its switch.

    Attributes:
        batches: variable, number of batches made. position: of examples taken uniformly.
        plan, gain, remember: variables, what was decided last.
        learning: variable, whether memory is told of uniform batches. since: position at which
            that began. pause: terms to go by when memory is given up next. until: position before
            which it does not learn again. stretches: of the trial, 0 when there is none. reached:
            r before the last of them.
    """

    def __init__(self) -> None:
        super().__init__(name="decisions")
        self.batches = _variable(tf.constant(0, tf.int64), "batches")
        self.position = _variable(tf.constant(0, tf.int64), "position")
        self.plan = _variable(tf.constant(0), "plan")
        self.gain = _variable(tf.constant(1.0), "gain")
        self.remember = _variable(tf.constant(False), "remember")
        self.learning = _variable(tf.constant(False), "learning")
        self.since = _variable(tf.constant(0, tf.int64), "since")
        self.pause = _variable(tf.constant(1, tf.int64), "pause")
        self.until = _variable(tf.constant(0, tf.int64), "until")
        self.stretches = _variable(tf.constant(0), "stretches")
        self.reached = _variable(tf.constant(1.0), "reached")


class Batches:
    """A batch at each call, `(x, y, told)`, by the plan that the switch has chosen.

    * Uniform batches are passes over the data, each example once, with weights 1.
    * Memory draws b examples. It is fresh where it is needed only while it draws: what uniform
      batches tell it of an example is a pass old, and one that has learned of such has little to
      gain. So it is tried out. Once a memory that knew all scores of the moment would nearly pay,
      uniform batches are remembered for a term, what a sampler needs to learn all it can. Then
      memory draws for a quarter of a term, and not less than 300 steps, whatever is predicted,
      and goes on for up to three times that while its gain rises; and the switch decides by what
      that has shown. Where memory has not paid, or no longer does, 1 term goes by before it
      learns again, then 2, 4, …, until it has paid. The seconds of a uniform step are those
      without remembering: what remembering takes is a cost of memory.
      Some of the b examples are those next in a pass, k = b c/(1 + c) of them (rounded, one at
      least), c the smoothing, and all have the weights of the mixture, so that none exceeds b/k,
      whatever memory has missed (a defensive mixture; Hesterberg 1995).
    * Or it draws B, which the training step scores and draws b from. As long as it has nothing
      to draw by these are uniform pre-samples.

    Args:
        setting: its plans are those of `plans.remembered`.
        switch: opened.
        sampler: that tells weights.
        gather: examples of static shape by indices.
        seed: integer.
    """

    def __init__(
        self,
        setting: switches.Setting,
        switch: switches.Gain,
        sampler: samplers.Sampler,
        gather: Callable[[tf.Tensor], tuple[Any, Any]],
        seed: int,
    ) -> None:
        self._setting, self._switch, self._sampler = setting, switch, sampler
        self._gather, self._seed = gather, seed
        if not isinstance(switch.decisions, Decisions):
            switch.decisions = Decisions()
        self._state = switch.decisions
        self._rescores = any(plan.rescored for plan in setting.plans)
        stretch = max(sampler.term // 8, _STRETCH_STEPS * setting.batch_size)
        self._stretch = -(-stretch // setting.group_size)

    def __call__(self, _) -> tuple[Any, Any, dict[str, tf.Tensor]]:
        number = self._state.batches.assign_add(1) - 1
        plan, gain, remember = tf.cond(tf.equal(number % AT_ONCE, 0), self._decided, self._in_force)
        informed = self._sampler.informed()
        made = [
            functools.partial(self._batch, choice, gain, remember, number, informed)
            for choice in self._setting.plans
        ]
        return tf.switch_case(plan, made)

    def _decided(self) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        state = self._state
        before = tf.convert_to_tensor(self._switch.plan)
        tf.cond(tf.equal(before, 0), self._prepared, self._tried)
        plan = self._switch.choose(self._setting)
        given_up = (before > 0) & tf.equal(self._switch.plan, 0)
        tf.cond(given_up, self._rest, lambda: None)
        gain = self._setting.gain_of(plan)
        uniform = tf.equal(plan, 0)
        learns = state.learning & ~self._switch.times_uniform(plan)
        remember = tf.logical_not(uniform) | learns
        tf.cond(uniform & remember, self._switch.interrupted, lambda: None)
        return state.plan.assign(plan), state.gain.assign(gain), state.remember.assign(remember)

    def _prepared(self) -> None:
        """While batches are uniform: let memory learn, and then try it out."""
        state, position = self._state, tf.convert_to_tensor(self._state.position)
        largest = self._setting.largest_gain_of_memory()
        promising = self._switch.worth_a_trial(self._setting, _MEMORY, largest)
        learned = position - state.since
        term = self._sampler.term
        tries = promising & self._sampler.informed()
        # What has learned nothing in two terms has nothing to learn.
        ends = state.learning & (learned >= term) & (tries | (learned >= 2 * term))
        begins = promising & ~state.learning & (position >= state.until)
        state.since.assign(tf.where(begins, position, state.since))
        state.learning.assign(tf.where(state.learning, ~ends, begins))
        tf.cond(ends, lambda: tf.cond(tries, self._try, self._rest), lambda: None)

    def _rest(self) -> None:
        self._state.learning.assign(False)
        self._state.until.assign(self._state.position + self._state.pause * self._sampler.term)
        self._state.pause.assign(2 * self._state.pause)

    def _try(self) -> None:
        self._state.stretches.assign(_LEAST_STRETCHES)
        self._state.reached.assign(1.0)
        self._switch.hold(_MEMORY, _LEAST_STRETCHES * self._stretch)

    def _tried(self) -> None:
        """While memory draws: see whether its trial goes on, or has long been passed."""
        state, switch = self._state, self._switch

        def end_of_stretch() -> None:
            reached = self._setting.gains(tf.constant(_MEMORY))[_MEMORY]
            rises = (reached > _RISING * state.reached) & (state.stretches < _MOST_STRETCHES)
            state.stretches.assign(tf.where(rises, state.stretches + 1, 0))
            state.reached.assign(reached)
            tf.cond(rises, lambda: switch.hold(_MEMORY, self._stretch), lambda: None)

        in_trial = state.stretches > 0
        state.pause.assign(tf.where(in_trial, state.pause, tf.constant(1, tf.int64)))
        tf.cond(in_trial & tf.equal(switch.held, 0), end_of_stretch, lambda: None)

    def _in_force(self) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        state = self._state
        return tf.identity(state.plan), tf.identity(state.gain), tf.identity(state.remember)

    def _batch(self, plan: plans.Plan, gain, remember, number: tf.Tensor, informed: tf.Tensor):
        size = plan.presample_size or plan.batch_size
        drawn = self._drawn(plan, size, informed)
        self._count(plan, informed)
        told = {
            "weight": drawn.weights,
            "index": drawn.indices,
            "memory": drawn.weights if plan.remembered else self._weights_of(drawn.indices),
            "remember": tf.fill([size], remember),
            "gain": tf.fill([size], gain),
        }
        if self._rescores:
            # XLA draws by 32-bit seeds only.
            pair = tf.stack([tf.constant(self._seed, tf.int64), number])
            own = tf.bitcast(tf.cast(pair, tf.uint32), tf.int32)
            told["seed"] = tf.broadcast_to(own, [size, 2])
        batch = (*self._gather(drawn.indices), told)
        static = None if self._rescores else size
        return tf.nest.map_structure(
            lambda part: tf.ensure_shape(part, [static, *part.shape[1:]]), batch
        )

    def _drawn(self, plan: plans.Plan, size: int, informed: tf.Tensor) -> samplers.Draw:
        if not plan.remembered:
            return self._next(size)
        return tf.cond(informed, lambda: self._mixture(size), lambda: self._next(size))

    def _next(self, size: int) -> samplers.Draw:
        """The examples that are next in a pass."""
        position = self._state.position.assign_add(size) - size
        return passing(position, size, self._sampler.num_examples, self._seeds())

    def _mixture(self, size: int) -> samplers.Draw:
        """Most examples by memory, the others next in a pass, all with the mixture's weights."""
        passed = _of_a_pass(size, self._setting.smoothing)
        drawn = self._sampler.draw(size - passed, self._seeds())
        if not passed:
            return drawn
        others = self._next(passed).indices
        of_memory = tf.concat([drawn.weights, self._sampler.weights_of(others)], axis=0)
        indices = tf.concat([drawn.indices, others], axis=0)
        return samplers.Draw(indices, _mixed(of_memory, passed / size))

    def _weights_of(self, indices: tf.Tensor) -> tf.Tensor:
        """What memory's batches of b would have given examples as weights."""
        size = self._setting.batch_size
        passed = _of_a_pass(size, self._setting.smoothing)
        return _mixed(self._sampler.weights_of(indices), passed / size)

    def _seeds(self) -> tf.Tensor:
        return tf.fill([2], tf.constant(self._seed, tf.int64))

    def _count(self, plan: plans.Plan, informed: tf.Tensor) -> None:
        drawn = tf.cast(informed | plan.rescored, tf.float32) if plan.remembered else 0.0
        self._setting.model.count(drawn=drawn, uniform=1.0 - drawn)


def _of_a_pass(size: int, smoothing: float) -> int:
    """How many of the examples that memory draws are those next in a pass instead."""
    share = smoothing / (1 + smoothing)
    return max(round(share * size), 1) if smoothing and size > 1 else 0


def _mixed(weights: tf.Tensor, share: float) -> tf.Tensor:
    """1/(n p) of memory's p mixed with a share of 1/n."""
    return 1 / (share + (1 - share) / weights)


def _variable(initial, name: str) -> tf.Variable:
    return tf.Variable(initial, trainable=False, name=name)
