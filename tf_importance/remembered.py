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
# Uniform batches are remembered for so many terms at first, and then for one in so many.
_FIRST_TERMS, _TERMS = 4, 8


class Decisions(tf.Module):
    """Where the batches of a switched pipeline are; checkpointed with its switch.

    Attributes:
        batches: variable, number of batches made. position: of examples taken uniformly.
        plan, gain, remember: variables, what was decided last.
    """

    def __init__(self) -> None:
        super().__init__(name="decisions")
        self.batches = _variable(tf.constant(0, tf.int64), "batches")
        self.position = _variable(tf.constant(0, tf.int64), "position")
        self.plan = _variable(tf.constant(0), "plan")
        self.gain = _variable(tf.constant(1.0), "gain")
        self.remember = _variable(tf.constant(True), "remember")


class Batches:
    """A batch at each call, `(x, y, told)`, by the plan that the switch has chosen.

    * Uniform batches are passes over the data, each example once, with weights 1. Memory is only
      worth something while it is fresh, and remembering costs something: uniform batches are
      remembered for 4 terms, and where memory has not paid by then, for one term in 8. A term is
      what a sampler needs to learn all it can. The seconds of a uniform step are those without
      remembering: what remembering takes is a cost of memory.
    * Memory draws b examples.
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

    def __call__(self, _) -> tuple[Any, Any, dict[str, tf.Tensor]]:
        number = self._state.batches.assign_add(1) - 1
        plan, gain, remember = tf.cond(
            tf.equal(number % AT_ONCE, 0), self._decided, self._in_force
        )
        informed = self._sampler.informed()
        made = [
            functools.partial(self._batch, choice, gain, remember, number, informed)
            for choice in self._setting.plans
        ]
        return tf.switch_case(plan, made)

    def _decided(self) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        state = self._state
        plan = self._switch.choose(self._setting)
        gain = self._setting.gain_of(plan)
        term = state.position // self._sampler.term
        due = (term < _FIRST_TERMS) | tf.equal(term % _TERMS, 0)
        uniform = tf.equal(plan, 0)
        remember = tf.logical_not(uniform) | due & ~self._switch.times_uniform(plan)
        tf.cond(uniform & remember, self._switch.interrupted, lambda: None)
        return state.plan.assign(plan), state.gain.assign(gain), state.remember.assign(remember)

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
            "memory": drawn.weights if plan.remembered else self._sampler.weights_of(drawn.indices),
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
        seed = tf.fill([2], tf.constant(self._seed, tf.int64))

        def uniformly() -> samplers.Draw:
            position = self._state.position.assign_add(size) - size
            return passing(position, size, self._sampler.num_examples, seed)

        if not plan.remembered:
            return uniformly()
        return tf.cond(informed, lambda: self._sampler.draw(size, seed), uniformly)

    def _count(self, plan: plans.Plan, informed: tf.Tensor) -> None:
        drawn = tf.cast(informed | plan.rescored, tf.float32) if plan.remembered else 0.0
        self._setting.model.count(drawn=drawn, uniform=1.0 - drawn)


def _variable(initial, name: str) -> tf.Variable:
    return tf.Variable(initial, trainable=False, name=name)
