"""From groups of examples to batches, inside a tf.data pipeline."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tf_importance import groups, losses, plans, proposals, switches


def options(ahead: bool) -> tf.data.Options:
    """Of a pipeline that reads and writes variables of a model or a sampler.

    Args:
        ahead: whether it may run ahead of the training step.
    """
    chosen = tf.data.Options()
    # Checkpoints of the model hold those variables already.
    chosen.experimental_external_state_policy = tf.data.experimental.ExternalStatePolicy.IGNORE
    if not ahead:
        # tf.data would prefetch by itself, and what the variables are when they are read is a race.
        chosen.experimental_optimization.inject_prefetch = False
    return chosen


class Pipeline:
    """From a group of examples to its batches, stacked: nests of [k, b, …] tensors."""

    def __init__(
        self,
        setting: switches.Setting,
        switch: switches.Switch,
        scores: dict[int, Callable],
        resample: proposals.Resampling,
        emission: groups.Emission,
    ) -> None:
        self._setting = setting
        self._switch = switch
        self._scores = scores
        self._resample = resample
        self._emission = emission
        self._means = not losses.only_sums(setting.model.objective)

    def of(self, together: tf.data.Dataset) -> tf.data.Dataset:
        """The batches of groups and their seeds.

        Where a group holds several pre-samples each is scored when its turn has come.
        """
        if max(self._presamples()) == 1:
            return together.map(tf.autograph.experimental.do_not_convert(self._at_once)).unbatch()
        one_by_one = tf.autograph.experimental.do_not_convert(self._one_after_another)
        return together.flat_map(one_by_one).unbatch()

    def _at_once(self, elements, seed):
        group, plan, gain = self._decided(elements)
        return self._stack(group, plan, gain, seed, 0)

    def _presamples(self) -> list[int]:
        """How many pre-samples of a group are scored here under each plan, one after another."""
        if self._emission.with_seed:
            return [1 for _ in self._setting.plans]
        size = self._setting.group_size
        return [size // (choice.presample_size or size) for choice in self._setting.plans]

    def _one_after_another(self, elements, seed) -> tf.data.Dataset:
        group, plan, gain = self._decided(elements)
        # A short group has no plan, and leaves at once.
        count = tf.gather([1, *self._presamples()], plan + 1)
        numbers = tf.data.Dataset.range(tf.cast(count, tf.int64))
        return numbers.map(
            tf.autograph.experimental.do_not_convert(
                lambda number: self._stack(group, plan, gain, seed, tf.cast(number, tf.int32))
            )
        )

    def _decided(self, elements) -> tuple[groups.Group, tf.Tensor, tf.Tensor]:
        """A group, the index of its plan, −1 for a short one, and its r."""
        group = groups.group_of(elements)
        plan, gain = tf.cond(
            group.size < self._setting.group_size,
            self._interrupted,
            self._chosen,
        )
        return group, plan, gain

    def _stack(self, group: groups.Group, plan, gain, seed, number):
        size = self._setting.group_size
        stacked = tf.cond(
            plan < 0,
            lambda: self._short(group, seed),
            lambda: self._full(groups.of_static_size(group, size), plan, gain, number, seed),
        )
        return tf.nest.map_structure(self._with_static_batch, stacked)

    def _interrupted(self) -> tuple[tf.Tensor, tf.Tensor]:
        self._switch.interrupted()
        return tf.constant(-1), tf.constant(1.0)

    def _chosen(self) -> tuple[tf.Tensor, tf.Tensor]:
        # Asked once per group: all its batches stem from the same decision.
        plan = self._switch.choose(self._setting)
        if not self._emission.with_gain:
            return plan, tf.constant(1.0)
        return plan, self._setting.gain_of(plan)

    def _full(self, group: groups.Group, plan, gain, number: tf.Tensor, seed):
        return tf.cond(
            tf.gather([choice.draws for choice in self._setting.plans], plan) > 0,
            lambda: self._drawn(group, plan, gain, number, seed),
            lambda: self._whole(group, plan, gain, seed),
        )

    def _drawn(self, group: groups.Group, plan: tf.Tensor, gain, number: tf.Tensor, seed):
        def batches_of(chosen: plans.Plan):
            size = chosen.presample_size
            if self._emission.with_seed:
                # The steps score and draw.
                self._setting.model.count(drawn=float(self._setting.group_size // size))
                return self._emission.of(groups.whole(group, size), gain, seed)
            start = number * size
            presample = tf.nest.map_structure(lambda part: part[start : start + size], group)
            own_seed = seed + tf.stack([number, 0])
            presample = groups.of_static_size(presample, size)
            return self._scored(presample, chosen, gain, own_seed)

        drawn = [choice for choice in self._setting.plans if choice.draws]
        return self._under(plan, drawn, batches_of)

    def _scored(self, presample: groups.Group, chosen: plans.Plan, gain, seed):
        size = chosen.presample_size
        scores = self._scores[size](presample.inputs, presample.labels)
        scores *= tf.abs(presample.sample_weights)
        smooth = groups.smoothed(scores, self._setting.smoothing)
        return tf.cond(
            proposals.usable(scores),
            lambda: self._resampled(presample, smooth, chosen, gain, seed),
            lambda: self._fallback(presample, chosen, seed),
        )

    def _resampled(self, presample: groups.Group, scores, chosen: plans.Plan, gain, seed):
        self._setting.model.count(drawn=float(chosen.draws))
        batches = groups.drawn(presample, scores, chosen, self._resample, seed)
        return self._emission.of(batches, gain, seed)

    def _whole(self, group: groups.Group, plan: tf.Tensor, gain, seed):
        def batches_of(chosen: plans.Plan):
            count = self._setting.group_size // chosen.batch_size
            self._setting.model.count(uniform=float(count))
            return self._emission.of(groups.whole(group, chosen.batch_size), gain, seed)

        whole = [choice for choice in self._setting.plans if not choice.draws]
        return self._under(plan, whole, batches_of)

    def _under(self, plan: tf.Tensor, choices: list[plans.Plan], batches_of: Callable):
        """batches_of the plan with this index, which is one of the choices."""
        if len(choices) == 1:
            return batches_of(choices[0])
        among = [choices.index(p) if p in choices else 0 for p in self._setting.plans]
        branches = [lambda choice=choice: batches_of(choice) for choice in choices]
        return tf.switch_case(tf.gather(among, plan), branches)

    def _fallback(self, presample: groups.Group, chosen: plans.Plan, seed):
        """All of the pre-sample, uniformly."""
        count = chosen.presample_size // chosen.batch_size
        self._setting.model.count(uniform=float(count), fallbacks=1.0)
        return self._emission.of(groups.whole(presample, chosen.batch_size), 1.0, seed)

    def _short(self, group: groups.Group, seed):
        batch_size = self._setting.batch_size
        count = -(-group.size // batch_size)
        self._setting.model.count(uniform=tf.cast(count, tf.float32))
        return self._emission.of(groups.short(group, batch_size, self._means), 1.0, seed)

    def _with_static_batch(self, part: tf.Tensor) -> tf.Tensor:
        sizes = {plan.batch_size for plan in self._setting.plans}
        size = sizes.pop() if len(sizes) == 1 and not self._emission.with_seed else None
        return tf.ensure_shape(part, [None, size, *part.shape[2:]])
