"""Uniform batches, a memory's, or a memory's rescored: whichever a switch finds the fastest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tf_importance import plans, proposals, switches
from tf_importance.arguments import named, to_be_made
from tf_importance.draws import Draws, Seen
from tf_importance.marks import Drawing
from tf_importance.samplers.base import Sampler, passing, refuse_other
from tf_importance.samplers.over import Over
from tf_importance.samplers.presampled import Fresh
from tf_importance.samplers.uniform import Uniform
from tf_importance.switches import trial

# Batches that are decided on at once.
AT_ONCE = 8
# Indices of plans.
_UNIFORM, _MEMORY, _RESCORED = 0, 1, 2
# Kinds of batches beside those: uniform, and told to memory.
_LEARNED = 3


class Decision(NamedTuple):
    """What was decided last, and how far uniform batches are.

    Attributes:
        batches: planned until now. position: of examples taken uniformly.
        plan: index of the plan. gain: its predicted r. remember: whether memory is told of it.
    """

    batches: tf.Tensor
    position: tf.Tensor
    plan: tf.Tensor
    gain: tf.Tensor
    remember: tf.Tensor


class Kept(tf.Module):
    """A named state, each part in a variable of its name."""

    def __init__(self, initial: Any, name: str) -> None:
        super().__init__(name=name)
        self._kind = type(initial)
        for field, value in initial._asdict().items():
            setattr(self, field, tf.Variable(value, trainable=False, name=field))

    def read(self):
        """The state."""
        return self._kind(*(tf.identity(getattr(self, field)) for field in self._kind._fields))

    def write(self, state) -> None:
        """Take a new state."""
        for field, value in state._asdict().items():
            getattr(self, field).assign(value)


class Decisions(tf.Module):
    """The states of a switched sampler; they are checkpointed with its switch.

    Attributes:
        end: variable, number of the batch with which the training ends; the largest there is
            where nobody knows.
    """

    def __init__(self) -> None:
        super().__init__(name="decisions")
        zero = tf.constant(0, tf.int64)
        first = Decision(zero, zero, tf.constant(_UNIFORM), tf.constant(1.0), tf.constant(False))
        self.decision = Kept(first, "decision")
        self.trial = Kept(trial.resting(), "trial")
        self.end = tf.Variable(tf.int64.max, trainable=False, name="end")


class Switched(Over):
    """Draw by one of several samplers, chosen for every 8 batches.

        rais = RAIS()
        sampler = Switched([Uniform(), rais, Fresh(96, over=rais)], by=tfi.switches.Gain())

    * Uniform batches are passes over the data, each example once, with weights 1.
    * Memory draws b examples. When it learns, is tried out and rests: `tfi.switches.trial`; not
      where its trial would cost more than a tenth of the steps that `fit` has left. Strata,
      which need not learn to be of use, are tried out from the first batch on. The
      seconds of a uniform step are those without remembering: what remembering takes is a cost
      of memory. Some of the b examples are those next in a pass, k = b c/(1 + c) of them (rounded,
      one at least), c the smoothing, and all have the weights of the mixture, so that none exceeds
      b/k, whatever memory has missed (a defensive mixture; Hesterberg 1995).
    * Or it draws B, which the training step scores and draws b from. As long as it has nothing
      to draw by these are uniform pre-samples.

    Args:
        samplers: a `Uniform`, a sampler that tells the probability of any example, which is `RAIS`
            or `Stratified`, and perhaps a `Fresh` over the same.
        by: a `tfi.switches.Gain`.
        smoothing: c; by default that of `Fresh`, or 0.2.
    Raises:
        TypeError, ValueError: the samplers or the switch are others.
    """

    # Its switch does it.
    is_compared = False
    serves_replicas = False

    def __init__(
        self, samplers: Sequence[Sampler], by: switches.Gain, *, smoothing: float | None = None
    ) -> None:
        if not isinstance(by, switches.Gain):
            remedy = to_be_made(by, "tfi.switches", [switches.Gain])
            raise TypeError(f"by must be a tfi.switches.Gain; got {named(by)}.{remedy}")
        memory, rescored = _members(samplers)
        self.rescored, self.switch = rescored, by
        by_default = 0.2 if rescored is None else rescored.smoothing
        self.smoothing = proposals.checked_smoothing(smoothing, by_default)
        if not isinstance(by.decisions, Decisions):
            by.decisions = Decisions()
        self.decisions = by.decisions
        super().__init__(memory)
        # Of a function: a tf.Module takes what it holds for a part of its checkpoints.
        settings: dict[int, switches.Setting] = {}
        self._settings = lambda: settings

    def why_off(self) -> str:
        if bool(self.memory.informed()):
            return "no plan to draw was ever worth its cost"
        if bool(self.decisions.trial.learning):
            return f"the memory was learning still: {self.memory.why_off()}"
        return (
            f"{type(self.memory).__name__} was not let learn: its switch does that once scores are "
            "so unequal that drawing would nearly pay, and where trying it out takes a tenth of "
            "the steps left, or less"
        )

    def expect(self, batches: int) -> None:
        super().expect(batches)
        self.decisions.end.assign(min(int(self.steps) + batches, tf.int64.max))

    def row_size(self, batch_size: int) -> int:
        return max(self.sizes(batch_size))

    def sizes(self, batch_size: int) -> list[int]:
        presample = batch_size if self.rescored is None else self.rescored.presample_size
        if self.rescored is not None and presample <= batch_size:
            raise ValueError(
                "under a switch presample_size must be larger than batch_size, or None for no "
                f"fresh scores; got {presample} and {batch_size}."
            )
        return [batch_size, batch_size, presample, batch_size]

    def default_block(self, batch_size: int) -> int:
        # A divisor of the batches that are decided on at once.
        return 1 << (super().default_block(batch_size).bit_length() - 1)

    def largest_block(self, batch_size: int) -> int:
        return min(super().largest_block(batch_size), AT_ONCE)

    def drawing(self, batch_size: int) -> Drawing:
        model, setting = self.model, self.setting(batch_size)
        scorer = None if self.rescored is None else self.rescored.scorer()
        if scorer is not None and scorer is not model.scorer:
            raise ValueError(
                "under a switch uniform batches are remembered by the model's scorer, and "
                f"pre-samples must be too; got {named(scorer)}. Give it to the model: "
                "ISModel(net, scorer=…)."
            )
        switches.warn_unless_followed(self.switch, model)
        way = None if self.rescored is None else self.rescored.way(model, batch_size)
        return Drawing(
            model=model,
            loss=model.objective.loss,
            sampler=self.memory,
            switch=self.switch,
            why_off=self.why_off,
            meter=setting.meter,
            fresh=way,
            row_size=self.row_size(batch_size),
        )

    def setting(self, batch_size: int) -> switches.Setting:
        """What the switch decides on."""
        known = self._settings()
        if batch_size not in known:
            presample = None if self.rescored is None else self.rescored.presample_size
            menu = plans.remembered(batch_size, presample, AT_ONCE)
            systematic = self.rescored is None or self.rescored.resample is proposals.systematic
            meter = self.model.meter_of(menu.sampling(self.smoothing))
            # Strata cost nothing: where they are known, no more batches are uniform than are timed.
            first = _MEMORY if self.memory.knows_at_start else _UNIFORM
            setting = switches.Setting(
                *(self.model, menu.group_size, menu.plans, systematic, meter), warmed_up_by=first
            )
            self.switch.open(setting)
            known[batch_size] = setting
        return known[batch_size]

    # Between blocks -----------------------------------------------------------------------

    def plan(self, batches: int, size: int, seed=None) -> Draws:
        kept = self.decisions.decision
        before = kept.read()
        due = tf.equal(before.batches % AT_ONCE, 0)
        now = tf.cond(due, lambda: self._decided(before, self.setting(size)), lambda: before)
        kept.write(now._replace(batches=before.batches + batches))
        informed = self.memory.informed()
        width = self.row_size(size)

        def made(of: Callable[[], Draws]) -> Callable[[], Draws]:
            return lambda: _widened(of(), width)

        ways = [
            made(lambda: self._uniform(batches, size, seed, now.remember)),
            made(lambda: self._by_memory(_MEMORY, batches, size, seed, informed)),
        ]
        if self.rescored is not None:
            ways.append(made(lambda: self._by_memory(_RESCORED, batches, width, seed, informed)))
        draws = tf.switch_case(now.plan, ways)
        drawn = tf.equal(now.plan, _RESCORED) | (tf.equal(now.plan, _MEMORY) & informed)
        share = batches * tf.cast(drawn, tf.float32)
        self.model.count(drawn=share, uniform=batches - share)
        return draws._replace(gains=tf.fill([batches, width], now.gain))

    def learn(self, draws: Draws, seen: Seen) -> None:
        # The gain is in the switch.
        sizes = dict(enumerate(self.sizes(self._size_of_batches())))
        del sizes[_UNIFORM]
        if self.rescored is None:
            del sizes[_RESCORED]
        self._remember_kinds(draws, seen, sizes)

    def _count(self, draws: Draws) -> None:
        """Done, where it was decided."""

    def _size_of_batches(self) -> int:
        (size,) = self._settings()
        return size

    def _decided(self, before: Decision, setting: switches.Setting) -> Decision:
        switch, memory, kept = self.switch, self.memory, self.decisions.trial
        state, uniform = kept.read(), tf.equal(switch.plan, _UNIFORM)
        reached = setting.gains(tf.constant(_MEMORY))[_MEMORY]
        largest = setting.largest_gain_of_memory()
        promising = switch.worth_a_trial(setting, _MEMORY, largest) & trial.is_affordable(
            switch.extra_cost(setting, _MEMORY),
            self.decisions.end - before.batches,
            memory.term,
            setting.batch_size,
            setting.group_size,
        )
        at_once = tf.equal(before.batches, 0) & memory.knows_at_start
        learned, granted = trial.on_uniform(
            state, before.position, memory.term, promising, memory.informed(), at_once
        )
        tried, prolonged = trial.on_drawn(state, reached, tf.equal(switch.held, 0))
        state = trial.where(uniform, learned, tried)
        stretches = tf.where(uniform, granted, prolonged)
        groups = stretches * trial.stretch(memory.term, setting.batch_size, setting.group_size)
        tf.cond(stretches > 0, lambda: switch.hold(_MEMORY, groups), lambda: None)
        drew = tf.not_equal(switch.plan, _UNIFORM)
        plan = switch.choose(setting)
        given_up = trial.given_up(state, before.position, memory.term)
        dropped = drew & tf.equal(switch.plan, _UNIFORM)
        state = trial.where(dropped, given_up, state)
        kept.write(state)
        learns = tf.equal(plan, _UNIFORM) & state.learning & ~switch.times_uniform(plan)
        tf.cond(learns, switch.interrupted, lambda: None)
        remember = tf.not_equal(plan, _UNIFORM) | learns
        plan = switch.compared(setting, plan)
        return before._replace(plan=plan, gain=setting.gain_of(plan), remember=remember)

    # Batches ------------------------------------------------------------------------------

    def _uniform(self, batches: int, size: int, seed, remember) -> Draws:
        indices = self._next(batches, size, seed)
        memory = _mixed(self._weights_of(indices), _of_a_pass(size, self.smoothing) / size)
        kind = tf.where(remember, _LEARNED, _UNIFORM)
        return self._draws(indices, tf.ones_like(memory), memory, kind)

    def _by_memory(self, kind: int, batches: int, size: int, seed, informed) -> Draws:
        """By memory and a pass, with the mixture's weights; a pass where nothing is known."""
        passed = _of_a_pass(size, self.smoothing)

        def mixture():
            drawn = self.memory.plan(batches, size - passed, seed)
            indices, weights = drawn.indices, drawn.weights
            if passed:
                others = self._next(batches, passed, seed)
                weights = tf.concat([weights, self._weights_of(others)], axis=1)
                indices = tf.concat([indices, others], axis=1)
            return indices, _mixed(weights, passed / size)

        def passes():
            indices = self._next(batches, size, seed)
            return indices, tf.ones_like(indices, tf.float32)

        indices, weights = tf.cond(informed, mixture, passes)
        return self._draws(indices, weights, weights, tf.constant(kind))

    def _draws(self, indices, weights, memory, kind) -> Draws:
        limits = tf.reshape(self.memory.limits(tf.reshape(indices, [-1])), tf.shape(indices))
        kinds = tf.fill([indices.shape[0]], kind)
        return Draws(indices, weights, limits, tf.zeros_like(weights), memory, kinds)

    def _next(self, batches: int, size: int, seed) -> tf.Tensor:
        """The examples that are next in a pass: [K, size]."""
        position = self.decisions.decision.position
        first = position.assign_add(batches * size) - batches * size
        seeds = tf.fill([2], tf.cast(self.seed if seed is None else seed, tf.int64))
        passed = passing(first, batches * size, self.num_examples, seeds)
        return tf.reshape(passed.indices, [batches, size])

    def _weights_of(self, indices: tf.Tensor) -> tf.Tensor:
        return tf.reshape(self.memory.weights_of(tf.reshape(indices, [-1])), tf.shape(indices))


def _members(samplers: Sequence[Sampler]) -> tuple[Sampler, Fresh | None]:
    """The memory, and what rescores it."""
    if not isinstance(samplers, Sequence):
        raise TypeError(f"samplers must be a list, [Uniform(), memory]; got {named(samplers)}.")
    for one in samplers:
        refuse_other(one, name="each of samplers")
    kinds = ", ".join(type(one).__name__ for one in samplers)
    well = 2 <= len(samplers) <= 3 and isinstance(samplers[0], Uniform)
    rescored = samplers[2] if len(samplers) == 3 else None
    well = well and (rescored is None or isinstance(rescored, Fresh))
    if not well:
        raise TypeError(
            "samplers must be [Uniform(), memory] or [Uniform(), memory, Fresh(B, over=memory)]; "
            f"got {kinds or 'nothing'}."
        )
    memory = samplers[1]
    if not memory.tells_weights:
        raise ValueError(
            "the memory under a switch must tell the probability of any example, as RAIS() and "
            f"Stratified() do; got {named(memory)}."
        )
    if rescored is not None and rescored.memory is not memory:
        raise ValueError(
            "Fresh must draw over the memory that the switch weighs, the same object; got another. "
            "Give memory = RAIS() to both: [Uniform(), memory, Fresh(B, over=memory)]."
        )
    return memory, rescored


def _widened(draws: Draws, width: int) -> Draws:
    """The same with so many places a batch; what is in the others means nothing."""
    missing = width - draws.indices.shape[1]
    examples = (tf.pad(part, [[0, 0], [0, missing]]) for part in draws.of_examples)
    return Draws._make([*examples, draws.kinds])


def _of_a_pass(size: int, smoothing: float) -> int:
    """How many of the examples that memory draws are those next in a pass instead."""
    share = smoothing / (1 + smoothing)
    return max(round(share * size), 1) if smoothing and size > 1 else 0


def _mixed(weights: tf.Tensor, share: float) -> tf.Tensor:
    """1/(n p) of memory's p mixed with a share of 1/n."""
    return 1 / (share + (1 - share) / weights)
