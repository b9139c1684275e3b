"""The fresh way: score a pre-sample with the current net, draw a batch from it, weight it.

Algorithm 1 of Katharopoulos & Fleuret 2018 as a `tf.data` transform.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tf_importance import (
    compat,
    element_specs,
    groups,
    losses,
    plans,
    proposals,
    scorers,
    scoring,
    switches,
)


def importance_sample(
    model: keras.Model,
    batch_size: int = 32,
    presample_size: int | str | None = None,
    *,
    switch: switches.Switch | None = None,
    tau_threshold: float | str | None = None,
    draws_per_presample: int = 1,
    min_batch_size: int | None = None,
    smoothing: float | None = None,
    score_in: str = "pipeline",
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
    bias. Under a `Gain` switch only the examples are read ahead, and scores are those of the very
    step: with a learning rate that follows the gain, old ones destabilize training. With a seed
    nothing runs ahead, and a run repeats exactly (but for Keras 3 with
    steps_per_execution above 1, which fetches batches ahead of the steps: there it warns; and
    for a `Gain` switch that measures its costs).

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
        min_batch_size: lets a `Gain` switch train on batches of b/2, b/4, … down to this size
            where that is faster; their leading axis is then None. By default b is the only one.
        smoothing: c ≥ 0. Examples are drawn by g_i ∝ Ĝ_i + c mean(Ĝ), so that no weight exceeds
            (1 + c)/c, whatever a score that is a few steps old has missed. 0 by default, as in
            the paper; with a `Gain` switch 0.2.
        score_in: "pipeline", where scoring overlaps with the training step before; or "step": the
            groups that are to be drawn from are handed to the training step whole, which scores
            them, draws and trains in one compiled function. With the same seed both draw the
            same (but for a step that XLA compiles, whose random generators are others). For
            accelerators, where a pipeline on the host reaches the weights dearly; it draws one
            batch of b from a group.
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
    scoring.check_model(model)
    switch = _switch(switch, tau_threshold)
    measured = isinstance(switch, switches.Gain)
    menu = plans.menu(batch_size, presample_size, draws_per_presample, min_batch_size, measured)
    resampling = resampling or ("systematic" if measured else "multinomial")
    resample = proposals.resampling_of(resampling)
    smoothing = proposals.checked_smoothing(smoothing, 0.2 if measured else 0.0)
    systematic = resample is proposals.systematic
    setting = switches.Setting(model, menu.group_size, menu.plans, systematic, smoothing)
    switch.open(setting)
    score = model.scorer if scorer is None else scorer
    scoring.check(score, jit_compile)
    in_step = _in_step(score_in, menu, model)
    _check_measurable(model, menu, measured)
    _warn(model, switch, seed)

    def transform(dataset: tf.data.Dataset) -> tf.data.Dataset:
        spec = element_specs.checked(model, dataset)
        element_specs.build(model, spec, dataset)
        sizes = {plan.presample_size for plan in setting.plans if plan.draws}
        scored = {
            size: scoring.compiled(model, score, spec, size, jit_compile) for size in sizes
        }
        emission = groups.Emission(len(spec) == 3, measured or model.follows_gain, in_step)
        model.expect_drawn_examples(
            sample_weighted=emission.sample_weighted,
            gain_of=setting.sampling if emission.with_gain else None,
            switch=switch,
            draw=groups.StepDraw(
                functools.partial(score, model), smoothing, resample, setting.batch_size
            )
            if in_step
            else None,
        )
        pipeline = _Pipeline(setting, switch, scored, resample, emission)
        seeds = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).batch(2)
        # XLA draws by 32-bit seeds only.
        seeds = seeds.map(lambda pair: tf.bitcast(tf.cast(pair, tf.uint32), tf.int32))
        together = tf.data.Dataset.zip((dataset.batch(setting.group_size), seeds))
        if seed is None:
            # The next group is read while the batches of the last one are trained on.
            together = together.prefetch(1)
        batches = pipeline.of(together)
        ahead = seed is None and not measured
        batches = batches.prefetch(1) if ahead else batches
        return batches.with_options(_options(ahead))

    return transform


class _Pipeline:
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
        return self._stack(*self._decided(elements, seed), 0)

    def _presamples(self) -> list[int]:
        """How many pre-samples a group has under each plan."""
        size = self._setting.group_size
        return [size // (choice.presample_size or size) for choice in self._setting.plans]

    def _one_after_another(self, elements, seed) -> tf.data.Dataset:
        decided = self._decided(elements, seed)
        # A short group has no plan, and leaves at once.
        count = tf.gather([1, *self._presamples()], decided[1] + 1)
        numbers = tf.data.Dataset.range(tf.cast(count, tf.int64))
        return numbers.map(
            tf.autograph.experimental.do_not_convert(
                lambda number: self._stack(*decided, tf.cast(number, tf.int32))
            )
        )

    def _decided(self, elements, seed) -> tuple:
        group = groups.group_of(elements)
        plan, gain = tf.cond(
            group.size < self._setting.group_size,
            self._interrupted,
            self._chosen,
        )
        return group, plan, gain, seed

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
        return plan, tf.gather(self._setting.gains(plan), plan)

    def _full(self, group: groups.Group, plan, gain, number: tf.Tensor, seed):
        return tf.cond(
            tf.gather([choice.draws for choice in self._setting.plans], plan) > 0,
            lambda: self._drawn(group, plan, gain, number, seed),
            lambda: self._whole(group, plan, gain, seed),
        )

    def _drawn(self, group: groups.Group, plan: tf.Tensor, gain, number: tf.Tensor, seed):
        def batches_of(chosen: plans.Plan):
            size = chosen.presample_size
            start = number * size
            presample = tf.nest.map_structure(lambda part: part[start : start + size], group)
            own_seed = seed + tf.stack([number, 0])
            presample = groups.of_static_size(presample, size)
            return self._scored(presample, chosen, gain, own_seed)

        drawn = [choice for choice in self._setting.plans if choice.draws]
        return self._under(plan, drawn, batches_of)

    def _scored(self, presample: groups.Group, chosen: plans.Plan, gain, seed):
        size = chosen.presample_size
        if self._emission.with_seed:
            self._setting.model.count(drawn=1.0)
            return self._emission.of(groups.whole(presample, size), gain, seed)
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


def _check_measurable(model: Any, menu: plans.Menu, measured: bool) -> None:
    """Refuse batches whose gain cannot be measured or compared.

    Raises:
        ValueError: batches of one example, or smaller batches under a loss that is a sum.
    """
    sizes = {plan.batch_size for plan in menu.plans}
    if measured and min(sizes) < 2:
        raise ValueError(
            "a Gain switch tells noise from the mean gradient by pairs of examples, and needs "
            f"batches of 2 at least; got {min(sizes)}."
        )
    if len(sizes) > 1 and losses.only_sums(model.objective):
        raise ValueError(
            "min_batch_size needs a loss that is a mean over the batch: under a sum, smaller "
            "batches have smaller gradients. Leave it out, or use reduction='sum_over_batch_size'."
        )


def _in_step(score_in: str, menu: plans.Menu, model: Any) -> bool:
    """Whether the training step scores.

    Raises:
        ValueError: score_in is unknown, or the step cannot do what is asked for.
    """
    if score_in not in ("pipeline", "step"):
        raise ValueError(f"score_in must be 'pipeline' or 'step'; got {score_in!r}.")
    if score_in == "step" and (len(menu.plans) > 2 or menu.plans[1].draws > 1):
        raise ValueError(
            "score_in='step' draws one batch of batch_size from a pre-sample; leave out "
            "draws_per_presample, min_batch_size and presample_size='auto', or score in the "
            "pipeline."
        )
    replicas = model.distribute_strategy.num_replicas_in_sync
    if score_in == "step" and replicas > 1:
        raise ValueError(
            "score_in='step' works on one replica, and the model is under a strategy of "
            f"{replicas}: each would get a part of the pre-sample. Score in the pipeline."
        )
    return score_in == "step"


def _warn(model: Any, switch: switches.Switch, seed: int | None) -> None:
    if seed is not None and compat.fetches_ahead(model):
        warnings.warn(
            f"model {model.name!r} has steps_per_execution={model.steps_per_execution}, with "
            "which Keras 3 fetches batches ahead of the steps: the draws are seeded, but what "
            "they are drawn by is not. To repeat a run exactly, use steps_per_execution=1.",
            stacklevel=3,
        )
    if isinstance(switch, switches.Gain) and not model.follows_gain:
        warnings.warn(
            "a Gain switch counts on a learning rate that follows the gain: without that, lower "
            "variance is not less time. Compile with optimizer=keras.optimizers.SGD("
            "tfi.schedules.GainAdapted(learning_rate)), or any other optimizer.",
            stacklevel=3,
        )


def _options(ahead: bool) -> tf.data.Options:
    options = tf.data.Options()
    # The pipeline reads and counts in the model's variables, which checkpoints hold already.
    options.experimental_external_state_policy = tf.data.experimental.ExternalStatePolicy.IGNORE
    if not ahead:
        # tf.data would run ahead of the training step, and τ's readings become a race.
        options.experimental_optimization.inject_prefetch = False
    return options
