"""The stream form: a `tf.data` transform that scores pre-samples, draws from them and weights.

Algorithm 1 of Katharopoulos & Fleuret 2018.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

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
    groups,
    keys,
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
    first_size: int | None = None,
    first_scorer: scorers.Scorer | None = None,
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

    With a `first_scorer` there is a cascade: of each F examples B are drawn by its cheap scores,
    without replacement, and of these b by the scorer's; weights multiply. Groups are of F; one that
    is not drawn from leaves as F/b uniform batches, and first scores are unusable as others are.
    It pays where the model's own pass is dear and a cheap score knows something: the label's
    class, a small net, an image of half the size (`docs/cascade.md`).

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
        first_size: F > B, a multiple of b; with a first_scorer.
        first_scorer: `(model, x, y) -> [F]`, called in the pipeline, with a batch of examples.
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
    _check_cascade(first_size, first_scorer, stratified)
    menu = plans.menu(
        batch_size, presample_size, draws_per_presample, measured, stratified, first_size
    )
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
    if first_scorer is not None:
        fresh.check(first_scorer, jit_compile)
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
        if switch.may_draw or stratified:
            coupling.refuse_loss(model, *spec[:2])
        _warn_of_short(dataset, setting, switch)
        number_of, kept = None, None
        if strata is not None:
            if element_specs.weighs_elements(spec):
                raise ValueError(
                    "sample weights must be one for each example beside strata; got sample weights "
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
            if (in_step and first_scorer is None) or not switch.may_draw
            else (forward.structure(model.net), model.objective.loss_weights),
            reservoirs=kept,
            sample_weighted=len(spec) == 3,
            switch=switch,
            why_off=(lambda: switch.why_off(setting)) if switch.may_draw else None,
            meter=meter,
            fresh=way(score) if in_step else None,
            unusable=_unusable(setting) if in_step else None,
            averages_statistics=any(plan.draws > 1 for plan in setting.plans),
            plans=tuple(setting.plans),
        )
        group_of = tf.nest.map_structure(
            lambda leaf: tf.TensorSpec([setting.group_size, *leaf.shape], leaf.dtype), spec[0]
        )
        # Nothing is told where the step scores itself, or nothing is ever drawn.
        tells = switch.may_draw and not in_step
        places = batch_statistics.places(model, group_of) if tells else ()
        model.datasets.adopt(drawing)
        # The step compiles the scorer itself; that it can be is found out here all the same.
        sizes = {max(setting.presample_sizes)} if in_step else setting.presample_sizes
        ways = {size: way(fresh.compiled(score, spec, size, jit_compile)) for size in sizes}
        statistics = batch_statistics.size(places)
        first = None
        if first_scorer is not None and switch.may_draw:
            cheap = fresh.Score(first_scorer, model, collects=False)
            first = fresh.compiled(cheap, spec, setting.group_size, jit_compile)
        made = groups.Groups(setting, switch, ways, drawing, number_of, statistics, first)
        batches = made.batches(dataset, seed)
        # Scores must be of the very step where the learning rate follows the gain, and statistics
        # of batch normalization too: those of a step before let a high learning rate diverge.
        of_the_step = with_gain or bool(places)
        # Where the step scores it says of each group what is left of it, for the next to know.
        ahead = seed is None and not (switch.may_draw and (in_step or of_the_step))
        batches = batches.prefetch(1) if ahead else batches
        return marks.put(batches.with_options(compat.data_options(ahead)), drawing)

    return transform


def _check_cascade(first_size: Any, first_scorer: Any, stratified: bool) -> None:
    """Refuse half a cascade, or one over strata.

    Raises:
        ValueError: one of both is missing, or there are strata.
    """
    if (first_size is None) != (first_scorer is None):
        raise ValueError(
            "a cascade has a first_scorer and the first_size that it chooses from; got "
            f"first_size={first_size!r} and first_scorer={first_scorer!r}. Give both or neither."
        )
    if first_scorer is not None and stratified:
        raise ValueError(
            "strata are a first draw by themselves, and a first_scorer would be another one; give "
            "either. To draw by class and more, let the first_scorer look at y."
        )


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


def _unusable(setting: switches.Setting) -> tf.Variable:
    """[k] numbers of the latest groups whose pre-samples could not be drawn from, by the step."""
    most = setting.group_size // min(setting.presample_sizes)
    with setting.model.distribute_strategy.scope():
        return tf.Variable(
            tf.fill([most], tf.constant(-(2**40), tf.int64)), trainable=False, name="unusable"
        )


def _switch(switch: Any, tau_threshold: float | str | None) -> switches.Switch:
    if switch is None:
        return switches.named(tau_threshold)
    if tau_threshold is not None:
        raise ValueError(
            f"tau_threshold={arguments.named(tau_threshold)} is short for a switch, and "
            f"switch={arguments.named(switch)} is one; give either."
        )
    if not isinstance(switch, switches.Switch):
        kinds = arguments.public_kinds(switches.Switch)
        remedy = arguments.to_be_made(switch, "tfi.switches", kinds)
        raise TypeError(
            f"switch must be one of tfi.switches; got {arguments.named(switch)}.{remedy}"
        )
    return switch


def _in_step(score_in: str | None, menu: plans.Menu, model: Any, follows: bool) -> bool:
    """Whether the training step scores.

    Raises:
        ValueError: score_in is unknown, or the step cannot do what is asked for.
    """
    arguments.one_of("score_in", score_in, (None, "pipeline", "step"))
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
