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
    pipeline,
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
            pre-samples that are to be drawn from are handed to the training step whole, which
            scores them, draws a batch and trains in one compiled function. The step's scores are
            its own, and what is read ahead needs none. With the same seed both draw the same
            (but for a step that XLA compiles, whose random generators are others). By default
            the step where the learning rate follows the gain, on one replica, for one batch of
            b from each pre-sample; else the pipeline.
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
    in_step = _in_step(score_in, menu, model, measured or model.follows_gain)
    _check_measurable(model, menu, measured)
    _warn(model, switch, seed)

    def transform(dataset: tf.data.Dataset) -> tf.data.Dataset:
        spec = element_specs.checked(model, dataset)
        element_specs.build(model, spec, lambda: next(iter(dataset.batch(1)))[0])
        # The step compiles the scorer itself; that it can be is found out here all the same.
        sizes = {setting.group_size} if in_step else setting.presample_sizes
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
        made = pipeline.Pipeline(setting, switch, scored, resample, emission)
        seeds = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).batch(2)
        # XLA draws by 32-bit seeds only.
        seeds = seeds.map(lambda pair: tf.bitcast(tf.cast(pair, tf.uint32), tf.int32))
        together = tf.data.Dataset.zip((dataset.batch(setting.group_size), seeds))
        if seed is None:
            # The next group is read while the batches of the last one are trained on.
            together = together.prefetch(1)
        batches = made.of(together)
        # Scores must be of the very step where the learning rate follows the gain.
        ahead = seed is None and (in_step or not emission.with_gain)
        batches = batches.prefetch(1) if ahead else batches
        return batches.with_options(pipeline.options(ahead))

    return transform


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


def _in_step(score_in: str | None, menu: plans.Menu, model: Any, follows: bool) -> bool:
    """Whether the training step scores.

    Raises:
        ValueError: score_in is unknown, or the step cannot do what is asked for.
    """
    if score_in not in (None, "pipeline", "step"):
        raise ValueError(f"score_in must be 'pipeline' or 'step'; got {score_in!r}.")
    sizes = {plan.batch_size for plan in menu.plans}
    single = len(sizes) == 1 and all(plan.draws <= 1 for plan in menu.plans)
    replicas = model.distribute_strategy.num_replicas_in_sync
    if score_in is None:
        return follows and single and replicas == 1
    if score_in == "step" and not single:
        raise ValueError(
            "score_in='step' draws one batch of batch_size from a pre-sample; leave out "
            "draws_per_presample and min_batch_size, or score in the pipeline."
        )
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
    switches.warn_unless_followed(switch, model)
