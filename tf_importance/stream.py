"""The stream form: a `tf.data` transform that scores pre-samples, draws from them and weights.

Algorithm 1 of Katharopoulos & Fleuret 2018.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_importance import (
    arguments,
    batch_statistics,
    compat,
    coupling,
    element_specs,
    fresh,
    graphs,
    keys,
    losses,
    marks,
    plans,
    proposals,
    reservoirs,
    scorers,
    switches,
)
from tf_importance.scorers import forward

# Batches of examples from one weighing of gain and cost to the next.
_WEIGHED_EVERY = 32
# c of strata's shares.
_SMOOTHING = 0.1


def importance_sample(
    model: keras.Model,
    batch_size: int = 32,
    presample_size: int | str | None = None,
    *,
    switch: switches.Switch | None = None,
    tau_threshold: float | str | None = None,
    draws_per_presample: int = 1,
    smoothing: float | None = None,
    strata: Callable[[Any, Any], Any] | None = None,
    reservoir_size: int = 1024,
    score_in: str | None = None,
    scorer: scorers.Scorer | None = None,
    resampling: str | proposals.Resampling | None = None,
    seed: int | None = None,
    jit_compile: bool | str = "auto",
) -> Callable[[tf.data.Dataset], tf.data.Dataset]:
    """Batch, score, resample and weight: `dataset.apply(tfi.importance_sample(model))`.

    Takes an unbatched dataset of `(x, y)` or `(x, y, sample_weight)`, any nests of dense
    tensors, sample_weight a scalar. Emits batches `(x, y, weight)` of static size b.

    Examples are taken in groups of B. For each group the switch is asked once, and

    * draws: the group is scored by the model as it is at that moment, b examples are drawn with
      replacement, g_i ∝ s_i Ĝ_i, and one batch leaves with weights s_i/(B g_i), s the user's
      sample weights. The mean of weighted gradients is unbiased for any scores.
    * or does not: the group leaves as B/b uniform batches with weights s. Nothing is scored.

    Scores that cannot be normalized (all zero, negative, NaN or infinite) make their group
    leave uniformly; the training logs count them. The last group of a finite dataset may be
    shorter than B and leaves uniformly too, every example once. Its last batch is filled up
    to b with examples of weight 0, and the others' weights are scaled by b/(their number), so
    that the batch's weighted mean is the mean over those that are there (not scaled for a loss
    that is summed).

    The pipeline reads the model's live weights. Without a seed it works one batch ahead of
    the training step, so scores may be a step or two old: that costs a little variance and no
    bias. Under a learning rate that follows the gain only examples are made ready ahead, and scores
    are those of the very step: old ones would destabilize training. With a seed nothing runs
    ahead, and a run repeats exactly (but for Keras 3 with
    steps_per_execution above 1, which fetches batches ahead of the steps: there it warns; and
    for a `Gain` switch that measures its costs).

    With `strata`, `lambda x, y: y`, each group is first exchanged for one in which every stratum
    has its share: its examples go to reservoirs of the latest 1,024 of each stratum, and as many
    come out, of a rare class again and again. Their weights restore the proportions in which the
    strata come. Drawing by scores goes on from there; a group that is not drawn from leaves as
    stratified batches, at no cost of scoring. Shares are learned as in `tfi.samplers.Stratified`;
    which strata there are may show as the stream goes on. Batches are `(x, y, {"weight", "memory",
    "stratum"})`, and τ is that of what comes out of the reservoirs.

    Where the model's learning rate follows the gain (`tfi.schedules.GainAdapted`), or the switch
    is a `Gain`, batches are `(x, y, {"weight", "gain"})`, [b] each; gain is the ratio r that is
    predicted for the batch. With sample weights there is "importance" too, the weights without
    them. The training step measures the moments of which r is made.

    Args:
        model: a compiled ISModel; an unbuilt net is built from the dataset's element_spec.
        batch_size: b.
        presample_size: B, a multiple of b; 4b by default. "auto", with a `Gain` switch, takes
            groups of 12b and chooses by measured gain and cost whether to draw from them in
            pre-samples of 12b, 6b, 4b, 3b or 2b.
        switch: of `tfi.switches`; by default the paper's, `Tau("guaranteed")`.
        tau_threshold: short for `switch=Tau(tau_threshold)`; or "always", "never".
        draws_per_presample: R, batches drawn from one scoring. The later ones are trained on
            with scores R − 1 steps old, which a learning rate that follows the gain may not
            bear; all of one pre-sample share its sampling error.
        smoothing: c ≥ 0. Examples are drawn by g_i ∝ Ĝ_i + c mean(Ĝ), so that no weight exceeds
            (1 + c)/c, whatever a score that is a few steps old has missed. 0 by default, as in
            the paper; with a `Gain` switch 0.2.
        strata: `(x, y) -> number`, called with one example; the number is whole, a scalar or [1].
        reservoir_size: R ≥ B, examples that are kept of each stratum.
        score_in: "pipeline", where scoring overlaps with the training step before; or "step": the
            pre-samples that are to be drawn from are handed to the training step whole, which
            scores them, draws a batch and trains in one compiled function. The step's scores are
            its own, and what is read ahead needs none. With the same seed both draw the same
            (but for a step that XLA compiles, whose random generators are others). By default
            the step where the learning rate follows the gain or the net has batch normalization,
            on one replica, for one batch of b from each pre-sample; else the pipeline.
        scorer: `(model, x, y) -> [B]`; by default the model's.
        resampling: "multinomial" (independent draws, as in the papers), "systematic" (less
            variance; the default of a `Gain` switch), or a function
            `(proposal, size, seed) -> Draw`.
        seed: makes the draws repeatable.
        jit_compile: compile the scorer by XLA; "auto" does so on GPU and TPU.
    Returns:
        A function for `Dataset.apply`.
    Raises:
        TypeError: model is not an ISModel, switch is none.
        ValueError: an argument or, when applied, the dataset does not fit; see the message.
    """
    fresh.check_model(model)
    switch = _switch(switch, tau_threshold)
    measured = isinstance(switch, switches.Gain)
    stratified = strata is not None
    menu = plans.menu(batch_size, presample_size, draws_per_presample, measured, stratified)
    resample = proposals.resampling_of(resampling or ("systematic" if measured else "multinomial"))
    smoothing = proposals.checked_smoothing(smoothing, 0.2 if measured else 0.0)
    with_gain = measured or model.follows_gain
    meter = model.meter_of(menu.sampling(smoothing)) if with_gain else None
    setting = switches.Setting(
        model,
        menu.group_size,
        menu.plans,
        systematic=resample is proposals.systematic,
        meter=meter,
        weighed_every=max(1, _WEIGHED_EVERY * batch_size // menu.group_size),
        in_pipeline=True,
    )
    switch.open(setting)
    fresh.check(model.scorer if scorer is None else scorer, jit_compile)
    score = fresh.Score(model.scorer if scorer is None else scorer, model)
    follows = with_gain or batch_statistics.has_any(model.net)
    in_step = _in_step(score_in, menu, model, follows) and switch.may_draw
    if stratified:
        _check_strata(menu, reservoir_size)
    _warn(model, switch, seed)

    def way(score: Callable) -> fresh.Way:
        return fresh.Way(score, smoothing, resample, setting.batch_size)

    def transform(dataset: tf.data.Dataset) -> tf.data.Dataset:
        element_specs.checked(model, dataset)
        dataset = element_specs.with_scalar_weights(dataset)
        spec = dataset.element_spec
        element_specs.build(model, spec, lambda: next(iter(dataset.batch(1)))[0])
        coupling.refuse(model, spec[0])
        if switch.may_draw:
            coupling.refuse_loss(model, *spec[:2])
        _warn_of_short(dataset, setting, switch)
        number_of, kept = None, None
        if strata is not None:
            if element_specs.weighs_elements(spec):
                raise ValueError(
                    "strata go with one sample weight for each example; got sample weights "
                    f"{spec[2]}."
                )
            number_of = keys.number_of(strata, spec)
            with model.distribute_strategy.scope():
                scores = reservoirs.scores_of(model.distribute_strategy.num_replicas_in_sync)
            kept = _reservoirs(spec, reservoir_size, setting.batch_size, seed, scores)
        drawing = marks.Drawing(
            model=model,
            loss=model.objective.loss,
            scored=None
            if in_step or not switch.may_draw
            else (forward.structure(model.net), model.objective.loss_weights),
            reservoirs=kept,
            sample_weighted=len(spec) == 3,
            switch=switch,
            why_off=(lambda: switch.why_off(setting)) if switch.may_draw else None,
            meter=meter,
            fresh=way(score) if in_step else None,
            unusable=_unusable(setting) if in_step else None,
            averages_statistics=any(plan.draws > 1 for plan in setting.plans),
        )
        group_of = tf.nest.map_structure(
            lambda leaf: tf.TensorSpec([setting.group_size, *leaf.shape], leaf.dtype), spec[0]
        )
        # Nothing is told where the step scores itself, or nothing is ever drawn.
        tells = switch.may_draw and not in_step
        places = batch_statistics.places(model, group_of) if tells else ()
        model.datasets.adopt(drawing)
        # The step compiles the scorer itself; that it can be is found out here all the same.
        sizes = {setting.group_size} if in_step else setting.presample_sizes
        ways = {size: way(fresh.compiled(score, spec, size, jit_compile)) for size in sizes}
        groups = _Groups(setting, switch, ways, drawing, number_of, batch_statistics.size(places))
        batches = groups.batches(dataset, seed)
        # Scores must be of the very step where the learning rate follows the gain, and statistics
        # of batch normalization too: those of a step before let a high learning rate diverge.
        of_the_step = with_gain or bool(places)
        # Where the step scores it says of each group what is left of it, for the next to know.
        ahead = seed is None and not (switch.may_draw and (in_step or of_the_step))
        batches = batches.prefetch(1) if ahead else batches
        return marks.put(batches.with_options(compat.data_options(ahead)), drawing)

    return transform


class _Before(NamedTuple):
    """The group before this one.

    Attributes:
        group: of any number of examples. plan: index, −1 for a short group.
        number: what its pre-samples are known by.
    """

    group: fresh.Group
    plan: tf.Tensor
    number: tf.Tensor


class _Groups:
    """From groups of examples to batches `(x, y, weight)`, or `(x, y, {"weight", …})`.

    Args:
        setting: what is decided on. switch: opened.
        ways: by B, how to draw from a pre-sample.
        drawing: what is to be said of the batches.
        number_of: nests (x, y) of [B, …] -> [B] strata, where there are reservoirs.
        statistics: S of batch normalization, that batches tell.
    """

    def __init__(
        self,
        setting: switches.Setting,
        switch: switches.Switch,
        ways: dict[int, fresh.Way],
        drawing: marks.Drawing,
        number_of: Callable | None,
        statistics: int,
    ) -> None:
        self._statistics = statistics
        self._setting, self._switch, self._ways = setting, switch, ways
        self._model = setting.model
        self._sample_weighted = drawing.sample_weighted
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
        # Whether something travels with the inputs that is none of the net's.
        self._carries = self._weighs_elements or self._reservoirs is not None
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
            before = _Before(self._group(_nothing(spec)[0]), tf.constant(0), tf.constant(0))
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
        if not self._weighs_elements:
            return fresh.group_of(elements)
        inputs, labels, own = elements
        weights = fresh.mean_weights(own)
        carried = (inputs, {"elements": own})
        return fresh.Group(carried, labels, weights, tf.ones_like(weights))

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
        size = self._setting.group_size
        return [size // (choice.presample_size or size) for choice in self._setting.plans]

    def _at_once(self, elements, number):
        group, plan, gain_ratio = self._decided(elements)
        return self._stack(group, plan, gain_ratio, _seed_of(number), 0)

    def _behind(self, before: _Before, item) -> tuple[_Before, tuple]:
        """A group behind what the steps have left of the one before it."""
        elements, number = item
        group, plan, gain_ratio = self._decided(elements)
        seed = _seed_of(number)
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
        return _Before(group, plan, seed[0]), stack

    def _rest(self, before: _Before, left: tf.Tensor) -> fresh.Group:
        """What the steps did not train on of pre-samples that could not be drawn from.

        Args:
            left: [k] which pre-samples of the group these are.
        """
        size = tf.gather(self._sizes(), before.plan)
        parts = fresh.whole(before.group, size)
        left = left[: tf.shape(parts.importance)[0]]

        def rest(part: tf.Tensor) -> tf.Tensor:
            behind = tf.boolean_mask(part, left)[:, self._setting.batch_size :]
            return tf.reshape(behind, [-1, *fresh.sizes(behind)[2:]])

        return tf.nest.map_structure(rest, parts)

    def _sizes(self) -> list[int]:
        """Of what the steps get under each plan."""
        return [choice.presample_size or choice.batch_size for choice in self._setting.plans]

    def _one_after_another(self, elements, number) -> tf.data.Dataset:
        group, plan, gain_ratio = self._decided(elements)
        seed = _seed_of(number)
        # A short group has no plan, and leaves at once.
        count = tf.gather([1, *self._turns()], plan + 1)
        return tf.data.Dataset.range(tf.cast(count, tf.int64)).map(
            graphs.as_it_stands(
                lambda turn: self._stack(group, plan, gain_ratio, seed, tf.cast(turn, tf.int32))
            )
        )

    def _decided(self, elements) -> tuple[fresh.Group, tf.Tensor, tf.Tensor]:
        """A group, the index of its plan, −1 for a short one, and its r."""
        group = self._group(elements)
        if not self._ends:
            return group, *self._switch.decided(self._setting)
        is_short = group.size < self._setting.group_size
        plan, gain_ratio = tf.cond(
            is_short, self._interrupted, lambda: self._switch.decided(self._setting)
        )
        return group, plan, gain_ratio

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
            batches = fresh.whole(presample, self._setting.batch_size)
            self._count(uniform=float(batches.importance.shape[0]), fallbacks=1.0)
            return self._emitted(batches, 1.0, seed)

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
        if self._sample_weighted and (len(told) > 1 or self._in_step):
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


def _check_strata(menu: plans.Menu, reservoir_size: int) -> None:
    """Refuse what strata cannot work with.

    Raises:
        ValueError: reservoirs that a group does not fit in.
    """
    arguments.positive_integer("reservoir_size", reservoir_size)
    if reservoir_size < menu.group_size:
        raise ValueError(
            f"reservoir_size must be at least {menu.group_size}, the examples that are read at "
            f"once; got {reservoir_size}."
        )


def _reservoirs(
    spec: tuple, capacity: int, batch_size: int, seed: int | None, scores: Any
) -> reservoirs.Reservoirs:
    """For a dataset's examples.

    Raises:
        ValueError: their shapes are not known.
    """
    if not all(leaf.shape.is_fully_defined() for leaf in tf.nest.flatten(spec)):
        raise ValueError(
            "strata keep examples in reservoirs, and must know their shapes; got element_spec "
            f"{spec}. Set them in a map: x = tf.ensure_shape(x, …)."
        )
    seed = int(np.random.randint(2**31)) if seed is None else seed
    return reservoirs.Reservoirs(spec, capacity, batch_size, _SMOOTHING, seed, scores)


def _nothing(spec):
    """A group without an example, and a number."""

    def empty(leaf: tf.TensorSpec) -> tf.Tensor:
        sizes = [size or 0 for size in leaf.shape[1:]]
        return tf.zeros([0, *sizes] if leaf.shape.rank else [], leaf.dtype)

    return tf.nest.map_structure(empty, spec)


def _unusable(setting: switches.Setting) -> tf.Variable:
    """[k] numbers of the latest groups whose pre-samples could not be drawn from, by the step."""
    most = setting.group_size // min(setting.presample_sizes)
    with setting.model.distribute_strategy.scope():
        return tf.Variable(
            tf.fill([most], tf.constant(-(2**40), tf.int64)), trainable=False, name="unusable"
        )


def _seed_of(number: tf.Tensor) -> tf.Tensor:
    """[2] for the draws from a group, of its random number in 32 bits; XLA draws by no others."""
    seed = tf.bitcast(tf.cast(number, tf.uint32), tf.int32)
    return tf.stack([seed, tf.zeros_like(seed)])


def _switch(switch: Any, tau_threshold: float | str | None) -> switches.Switch:
    if switch is None:
        return switches.named(tau_threshold)
    if tau_threshold is not None:
        raise ValueError(
            f"tau_threshold={tau_threshold!r} is short for a switch, and switch={switch!r} is one; "
            "give either."
        )
    if not isinstance(switch, switches.Switch):
        raise TypeError(f"switch must be one of tfi.switches; got {switch!r}.")
    return switch


def _in_step(score_in: str | None, menu: plans.Menu, model: Any, follows: bool) -> bool:
    """Whether the training step scores.

    Raises:
        ValueError: score_in is unknown, or the step cannot do what is asked for.
    """
    if score_in not in (None, "pipeline", "step"):
        raise ValueError(f"score_in must be 'pipeline' or 'step'; got {score_in!r}.")
    single = all(plan.draws <= 1 for plan in menu.plans)
    replicas = model.distribute_strategy.num_replicas_in_sync
    if score_in is None:
        return follows and single and replicas == 1
    if score_in == "step" and not single:
        raise ValueError(
            "score_in='step' draws one batch of batch_size from a pre-sample; leave out "
            "draws_per_presample, or score in the pipeline."
        )
    if score_in == "step" and replicas > 1:
        raise ValueError(
            "score_in='step' works on one replica, and the model is under a strategy of "
            f"{replicas}: each would get a part of the pre-sample. Score in the pipeline."
        )
    return score_in == "step"


def _warn_of_short(
    dataset: tf.data.Dataset, setting: switches.Setting, switch: switches.Switch
) -> None:
    examples = int(dataset.cardinality())
    if switch.may_draw and 0 <= examples < setting.group_size:
        warnings.warn(
            f"the dataset has {examples} examples, and batches are drawn from "
            f"{setting.group_size} at once: nothing will be drawn. Give dataset.repeat() and "
            "steps_per_epoch, or a smaller presample_size.",
            stacklevel=4,
        )


def _warn(model: Any, switch: switches.Switch, seed: int | None) -> None:
    if seed is not None and compat.fetches_ahead(model):
        warnings.warn(
            f"model {model.name!r} has steps_per_execution={model.steps_per_execution}, with "
            "which Keras 3 fetches batches ahead of the steps: the draws are seeded, but what "
            "they are drawn by is not. To repeat a run exactly, use steps_per_execution=1.",
            stacklevel=3,
        )
    switches.warn_unless_followed(switch, model)
