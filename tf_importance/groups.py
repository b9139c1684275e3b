"""From groups of examples to batches: decided on, scored, drawn from, weighted, in a pipeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tf_importance import (
    cascade,
    compat,
    element_specs,
    fresh,
    graphs,
    losses,
    marks,
    plans,
    proposals,
    switches,
)


class Before(NamedTuple):
    """The group before this one.

    Attributes:
        group: of any number of examples. plan: index, −1 for a short group.
        number: what its pre-samples are known by.
    """

    group: fresh.Group
    plan: tf.Tensor
    number: tf.Tensor


class Groups:
    """From groups of examples to batches `(x, y, weight)`, or `(x, y, {"weight", …})`.

    Args:
        setting: what is decided on. switch: opened.
        ways: by B, how to draw from a pre-sample.
        drawing: what is to be said of the batches.
        number_of: nests (x, y) of [B, …] -> [B] strata, where there are reservoirs.
        statistics: S of batch normalization, that batches tell.
        first: the first score of a cascade, (x, y, importance) -> `fresh.Scores`; else None.
    """

    def __init__(
        self,
        setting: switches.Setting,
        switch: switches.Switch,
        ways: dict[int, fresh.Way],
        drawing: marks.Drawing,
        number_of: Callable | None,
        statistics: int,
        first: Callable[..., fresh.Scores] | None = None,
    ) -> None:
        self._statistics, self._first = statistics, first
        self._setting, self._switch, self._ways = setting, switch, ways
        self._model = setting.model
        self._sample_weighted = drawing.sample_weighted
        # In which a user's weights do not count.
        self._has_metrics = compat.has_metrics(setting.model)
        self._with_gain = drawing.meter is not None
        self._in_step = drawing.fresh is not None
        self._unusable = drawing.unusable
        self._means = not losses.only_sums(setting.model.objective)
        self._reservoirs, self._number_of = drawing.reservoirs, number_of

    def batches(self, dataset: tf.data.Dataset, seed: int | None) -> tf.data.Dataset:
        """The batches of a dataset's groups.

        Where a group holds several pre-samples each is scored when its turn has come.
        """
        # A pipeline's graph is optimized anew for each iterator, which takes longer the more of it
        # there is: no short group where the data have no end, and sizes that are written down.
        self._ends = dataset.cardinality() != tf.data.INFINITE_CARDINALITY
        self._weighs_elements = element_specs.weighs_elements(dataset.element_spec)
        # What a cascade's examples count is told to who measures the gain.
        self._tells_counts = self._first is not None and self._with_gain
        # Whether something travels with the inputs that is none of the net's.
        self._carries = (
            self._weighs_elements or self._reservoirs is not None or self._tells_counts
        )
        if not self._switch.may_draw:
            # Nothing is decided, so that a group need not be larger than a batch.
            plain = element_specs.batched(dataset, self._setting.batch_size)
            if self._reservoirs is None:
                return plain.map(graphs.as_it_stands(self._uniform))
            together = tf.data.Dataset.zip((plain, _numbers(seed)))
            return together.map(
                graphs.as_it_stands(lambda *one: self._uniform(*self._exchanged(*one)))
            )
        numbers = _numbers(seed)
        groups = element_specs.batched(dataset, self._setting.group_size, not self._ends)
        together = tf.data.Dataset.zip((groups, numbers))
        if seed is None:
            # The next group is read while the batches of the last one are trained on.
            together = together.prefetch(1)
        if self._reservoirs is not None:
            together = together.map(
                graphs.as_it_stands(lambda elements, n: (self._exchanged(elements, n), n))
            )
        if self._unusable is not None:
            spec = together.element_spec
            if self._ends:
                together = together.concatenate(tf.data.Dataset.from_tensors(_nothing(spec)))
            before = Before(self._group(_nothing(spec)[0]), tf.constant(0), tf.constant(0))
            return together.scan(before, graphs.as_it_stands(self._behind)).unbatch()
        if max(self._turns()) == 1:
            return together.map(graphs.as_it_stands(self._at_once)).unbatch()
        return together.flat_map(graphs.as_it_stands(self._one_after_another)).unbatch()

    def _count(self, **numbers) -> None:
        """Of batches that leave; steps that draw count themselves."""
        if not self._in_step:
            self._model.count(**numbers)

    def _exchanged(self, elements: tuple, number: tf.Tensor) -> tuple:
        """((x, told), y, weight, importance), what reservoirs give for a group's examples."""
        assert self._number_of is not None, "reservoirs are of strata"
        inputs, labels, *_ = elements
        # By other random numbers than the draws from what comes out.
        own_seed = _seed_of(number) + tf.constant([0, 1])
        given = self._reservoirs.exchange(elements, self._number_of(inputs, labels), own_seed)
        told = {"memory": given.weights, "stratum": given.strata}
        inputs, labels, *own = given.examples
        weights = given.weights * tf.cast(own[0], tf.float32) if own else given.weights
        return (inputs, told), labels, weights, given.weights

    def _group(self, elements: tuple) -> fresh.Group:
        if self._reservoirs is not None:
            return fresh.Group(*elements)
        if not self._carries:
            return fresh.group_of(elements)
        inputs, labels, *own = elements
        told = {}
        if self._weighs_elements:
            weights = fresh.mean_weights(own[0])
            told["elements"] = own[0]
        else:
            weights = fresh.group_of(elements).weights
        ones = tf.ones_like(weights)
        if self._tells_counts:
            told["memory"] = ones
        return fresh.Group((inputs, told), labels, weights, ones)

    def _uniform(self, *elements):
        """A batch as it comes; the last one filled up."""
        group, size = self._group(elements), self._setting.batch_size
        no_seed = tf.zeros([2], tf.int32)

        def full():
            self._count(uniform=1.0)
            return self._emitted(group, 1.0, no_seed)

        def short():
            return tf.nest.map_structure(lambda part: part[0], self._short(group, no_seed))

        batch = tf.cond(group.size < size, short, full) if self._ends else full()
        return tf.nest.map_structure(
            lambda part: tf.ensure_shape(part, [size, *part.shape[1:]]), batch
        )

    def _turns(self) -> list[int]:
        """How many pre-samples of a group are scored here under each plan, one after another."""
        if self._in_step:
            return [1 for _ in self._setting.plans]
        return [plan.presamples(self._setting.group_size) for plan in self._setting.plans]

    def _at_once(self, elements, number):
        seed = _seed_of(number)
        group, plan, gain_ratio = self._decided(elements, seed)
        return self._stack(group, plan, gain_ratio, seed, 0)

    def _behind(self, before: Before, item) -> tuple[Before, tuple]:
        """A group behind what the steps have left of the one before it."""
        elements, number = item
        seed = _seed_of(number)
        group, plan, gain_ratio = self._decided(elements, seed)
        unusable = tf.convert_to_tensor(self._unusable)
        left = tf.equal(unusable, tf.cast(before.number, unusable.dtype)) & (before.plan > 0)
        stack = self._stack(group, plan, gain_ratio, seed, 0)

        def behind_the_rest():
            rest = self._whole(self._rest(before, left), 1.0, tf.zeros_like(seed))
            # In a stack all are of one size: of uniform batches the steps take the first b.
            most = self._setting.batch_size - 1
            places = tf.minimum(tf.range(tf.shape(tf.nest.flatten(stack)[0])[1]), most)
            return tf.nest.map_structure(
                lambda one, other: tf.concat([tf.gather(one, places, axis=1), other], axis=0),
                rest,
                stack,
            )

        stack = tf.cond(tf.reduce_any(left), behind_the_rest, lambda: stack)
        for part in tf.nest.flatten(stack):
            part.set_shape([None, None, *part.shape[2:]])
        return Before(group, plan, seed[0]), stack

    def _rest(self, before: Before, left: tf.Tensor) -> fresh.Group:
        """What the steps did not train on of pre-samples that could not be drawn from.

        Args:
            left: [k] which pre-samples of the group these are.
        """
        size = tf.gather(self._sizes(), before.plan)
        count = tf.shape(before.group.importance)[0] // size
        first = tf.cast(tf.where(left[:count]), tf.int32) * size
        places = tf.reshape(first + tf.range(self._setting.batch_size, size), [-1])
        return tf.nest.map_structure(lambda part: tf.gather(part, places), before.group)

    def _sizes(self) -> list[int]:
        """Of what the steps get under each plan."""
        return [choice.presample_size or choice.batch_size for choice in self._setting.plans]

    def _one_after_another(self, elements, number) -> tf.data.Dataset:
        seed = _seed_of(number)
        group, plan, gain_ratio = self._decided(elements, seed)
        # A short group has no plan, and leaves at once.
        count = tf.gather([1, *self._turns()], plan + 1)
        return tf.data.Dataset.range(tf.cast(count, tf.int64)).map(
            graphs.as_it_stands(
                lambda turn: self._stack(group, plan, gain_ratio, seed, tf.cast(turn, tf.int32))
            )
        )

    def _decided(self, elements, seed) -> tuple[fresh.Group, tf.Tensor, tf.Tensor]:
        """A group, the index of its plan, −1 for a short one, and its r.

        In a cascade, where the plan draws, what the first draw has left of it.
        """
        group = self._group(elements)
        if self._ends:
            is_short = group.size < self._setting.group_size
            plan, gain_ratio = tf.cond(
                is_short, self._interrupted, lambda: self._switch.decided(self._setting)
            )
        else:
            plan, gain_ratio = self._switch.decided(self._setting)
        if self._first is None:
            return group, plan, gain_ratio
        is_scored = plan >= 0 if self._tells_counts else plan > 0
        return tf.cond(
            is_scored,
            lambda: self._after_first(group, plan, gain_ratio, seed),
            lambda: (group, plan, gain_ratio),
        )

    def _after_first(self, group: fresh.Group, plan, gain_ratio, seed):
        """What the first draw leaves of a full group; all of it where nothing is to be drawn."""
        assert self._first is not None, "there is a first draw"
        group = fresh.of_static_size(group, self._setting.group_size)
        worth = cascade.worth_of(self._first, self._plain(group))
        usable = proposals.usable(worth)

        def left(choice: plans.Plan) -> fresh.Group:
            size = choice.presample_size or max(self._setting.presample_sizes)
            chances = cascade.probabilities(worth, size)
            counts = cascade.counts(chances, size)
            told = self._counted(group, counts)
            if not choice.draws:
                return told
            return fresh.taken(told, cascade.chosen(chances, size, seed), counts)

        def fallen_back() -> None:
            self._model.count(fallbacks=1.0)

        tf.cond(usable | (plan <= 0), lambda: None, fallen_back)
        plan = tf.where(usable, plan, 0)
        ways = [lambda choice=choice: left(choice) for choice in self._setting.plans]
        return tf.switch_case(plan, ways), plan, tf.where(usable, gain_ratio, 1.0)

    def _counted(self, group: fresh.Group, counts: tf.Tensor) -> fresh.Group:
        """With what its examples count by a first draw, where that is told."""
        if not self._tells_counts:
            return group
        inputs, told = group.inputs
        return group._replace(inputs=(inputs, {**told, "memory": counts}))

    def _interrupted(self) -> tuple[tf.Tensor, tf.Tensor]:
        self._switch.interrupted()
        return tf.constant(-1), tf.constant(1.0)

    def _stack(self, group: fresh.Group, plan, gain_ratio, seed, turn):
        _, *choices = self._setting.plans

        def of_choice(full: fresh.Group):
            ways = [
                lambda choice=choice: self._scored(full, choice, gain_ratio, seed, turn)
                for choice in choices
            ]
            return tf.switch_case(plan - 1, ways) if len(ways) > 1 else ways[0]()

        def of_full():
            full = group
            if self._first is None:
                full = fresh.of_static_size(group, self._setting.group_size)
            if self._in_step:
                return self._handed_over(full, plan, gain_ratio, seed)
            return tf.cond(
                plan > 0, lambda: of_choice(full), lambda: self._whole(full, gain_ratio, seed)
            )

        if self._ends:
            stacked = tf.cond(plan < 0, lambda: self._short(group, seed), of_full)
        else:
            stacked = of_full()
        size = None if self._in_step else self._setting.batch_size
        for part in tf.nest.flatten(stacked):
            part.set_shape([None, size, *part.shape[2:]])
        return stacked

    def _short(self, group: fresh.Group, seed):
        batch_size = self._setting.batch_size
        self._count(uniform=tf.cast(-(-group.size // batch_size), tf.float32))
        return self._emitted(fresh.short(group, batch_size, self._means), 1.0, seed)

    def _whole(self, group: fresh.Group, gain_ratio, seed):
        batches = fresh.whole(group, self._setting.batch_size)
        self._count(uniform=tf.cast(fresh.sizes(batches.importance)[0], tf.float32))
        return self._emitted(batches, gain_ratio, seed)

    def _handed_over(self, group: fresh.Group, plan: tf.Tensor, gain_ratio, seed):
        """For the steps: batches, or pre-samples that they draw from; they differ in size alone."""
        parts = fresh.whole(group, tf.gather(self._sizes(), plan))
        return self._emitted(parts, gain_ratio, seed + tf.stack([0, tf.cast(plan > 0, tf.int32)]))

    def _scored(self, group: fresh.Group, choice: plans.Plan, gain_ratio, seed, turn):
        size, way = choice.presample_size, self._ways[choice.presample_size]
        start = turn * size
        presample = tf.nest.map_structure(lambda part: part[start : start + size], group)
        presample = fresh.of_static_size(presample, size)
        scored = way.scored(self._plain(presample))

        def drawn():
            self._count(drawn=float(choice.draws))
            own_seed = seed + tf.stack([turn, 0])
            batches, _ = way.drawn(presample, scored.proposal, own_seed, choice.draws)
            return self._emitted(batches, gain_ratio, seed, scored.statistics)

        def all_of_it():
            self._count(fallbacks=1.0)
            return self._whole(presample, 1.0, seed)

        return tf.cond(scored.usable, drawn, all_of_it)

    def _emitted(
        self,
        group: fresh.Group,
        gain_ratio: tf.Tensor | float,
        seed: tf.Tensor,
        statistics: tf.Tensor | None = None,
    ) -> tuple:
        """What the training step gets, stacked.

        Args:
            group: batches or pre-samples. gain_ratio: r of all.
            seed: [2] of the group; 1 in its second place has the steps draw from it, which then
                find the numbers of its pre-samples there, from 1 on.
            statistics: [S] of the pre-sample that batches were drawn from.
        """
        told = {"weight": group.weights}
        inputs, shape = group.inputs, fresh.sizes(group.weights)
        if self._carries:
            inputs, carried = inputs
            told |= carried
        if self._with_gain:
            told["gain"] = tf.fill(shape, gain_ratio)
        if self._statistics:
            there = [0.0] if statistics is None else [1.0]
            statistics = tf.zeros([self._statistics]) if statistics is None else statistics
            packed = tf.concat([there, statistics], axis=0)
            # The later batches of a pre-sample are trained on when the net is another one.
            first = tf.cast(tf.range(shape[0]) == 0, tf.float32)
            packed = first[:, tf.newaxis] * packed
            told["statistics"] = tf.broadcast_to(
                packed[:, tf.newaxis], [*shape, 1 + self._statistics]
            )
        tells = len(told) > 1 or self._in_step or self._has_metrics
        if self._sample_weighted and tells:
            told["importance"] = group.importance
        if self._in_step:
            # For each example, so that batches have nothing without a batch axis; each pre-sample
            # of the group has its own.
            numbers = tf.range(shape[0], dtype=seed.dtype)
            seeds = seed + tf.stack([numbers, seed[1] * numbers], axis=1)
            told["seed"] = tf.tile(seeds[:, tf.newaxis], [1, shape[1], 1])
        return inputs, group.labels, told if len(told) > 1 else group.weights

    def _plain(self, group: fresh.Group) -> fresh.Group:
        """With inputs as the net takes them."""
        return group._replace(inputs=group.inputs[0]) if self._carries else group


def _numbers(seed: int | None) -> tf.data.Dataset:
    """Random numbers, one for each group."""
    return tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)


def _nothing(spec):
    """A group without an example, and a number."""

    def empty(leaf: tf.TensorSpec) -> tf.Tensor:
        sizes = [size or 0 for size in leaf.shape[1:]]
        return tf.zeros([0, *sizes] if leaf.shape.rank else [], leaf.dtype)

    return tf.nest.map_structure(empty, spec)


def _seed_of(number: tf.Tensor) -> tf.Tensor:
    """[2] for the draws from a group, of its random number in 32 bits; XLA draws by no others."""
    seed = tf.bitcast(tf.cast(number, tf.uint32), tf.int32)
    return tf.stack([seed, tf.zeros_like(seed)])
