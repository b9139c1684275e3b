"""The fresh way: score a pre-sample with the current net, draw a batch from it, weight it.

Algorithm 1 of Katharopoulos & Fleuret 2018 as a `tf.data` transform.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tf_importance import arguments, compat, losses, proposals, scorers, variance

_THRESHOLDS: dict[str, Callable[[int, int], float]] = {
    "guaranteed": variance.guaranteed_threshold,
    "break_even": variance.break_even_threshold,
    "presample_break_even": variance.presample_break_even_threshold,
    "always": lambda presample_size, batch_size: -math.inf,
    "never": lambda presample_size, batch_size: math.inf,
}


class _Group(NamedTuple):
    """A pre-sample: nests of [B, …] tensors and the user's sample weights [B]."""

    inputs: Any
    labels: Any
    sample_weights: tf.Tensor


def importance_sample(
    model: keras.Model,
    batch_size: int = 32,
    presample_size: int | None = None,
    *,
    scorer: scorers.Scorer | None = None,
    tau_threshold: float | str | None = None,
    resampling: str | proposals.Resampling = "multinomial",
    seed: int | None = None,
    jit_compile: bool | str = "auto",
) -> Callable[[tf.data.Dataset], tf.data.Dataset]:
    """Batch, score, resample and weight: `dataset.apply(tfi.importance_sample(model))`.

    Takes an unbatched dataset of `(x, y)` or `(x, y, sample_weight)`, any nests of dense
    tensors, sample_weight a scalar. Emits batches `(x, y, weight)` of static size b.

    Examples are taken in groups of B. For each group τ is read once:

    * τ > threshold: the group is scored by the model as it is at that moment, b examples are
      drawn with replacement, g_i ∝ s_i Ĝ_i, and one batch leaves with weights s_i/(B g_i), s the
      user's sample weights. The mean of weighted gradients is unbiased for any scores.
    * else the group leaves as B/b uniform batches with weights s. Nothing is scored.

    Scores that cannot be normalized (all zero, negative, NaN or infinite) make their group
    leave uniformly; the training logs count them. The last group of a finite dataset may be
    shorter than B and leaves uniformly too, every example once. Its last batch is filled up
    to b with examples of weight 0, and the others' weights are scaled by b/(their number), so
    that the batch's weighted mean is the mean over those that are there (not scaled for a loss
    that is summed).

    The pipeline reads the model's live weights. Without a seed it works one batch ahead of
    the training step, so scores may be a step or two old: that costs a little variance and no
    bias. With a seed nothing runs ahead, and a run repeats exactly (but for Keras 3 with
    steps_per_execution above 1, which fetches batches ahead of the steps: there it warns).

    Args:
        model: a compiled ISModel; an unbuilt net is built from the dataset's element_spec.
        batch_size: b.
        presample_size: B, a multiple of b; 4b by default.
        scorer: `(model, x, y) -> [B]`; by default the model's.
        tau_threshold: τ_th, a number, or a name: "guaranteed" (default, the paper's
            (B+3b)/(3b)), "break_even" (its square root), "presample_break_even" (the same with
            the pre-sample's own noise counted), "always", "never".
        resampling: "multinomial" (independent draws, as in the papers), "systematic" (less
            variance), or a function `(proposal, size, seed) -> Draw`.
        seed: makes the draws repeatable.
        jit_compile: compile the scorer by XLA; "auto" does so on GPU and TPU.
    Returns:
        A function for `Dataset.apply`.
    Raises:
        TypeError: model is not an ISModel.
        ValueError: an argument or, when applied, the dataset does not fit; see the message.
    """
    _check_model(model)
    batch_size = arguments.positive_integer("batch_size", batch_size)
    presample_size = arguments.positive_integer(
        "presample_size", 4 * batch_size if presample_size is None else presample_size
    )
    _check_sizes(batch_size, presample_size)
    threshold = _threshold(tau_threshold, presample_size, batch_size)
    resample = _resampling(resampling)
    if jit_compile not in (True, False, "auto"):
        raise ValueError(f"jit_compile must be True, False or 'auto'; got {jit_compile!r}.")
    score = model.scorer if scorer is None else scorer
    if not callable(score):
        raise TypeError(f"scorer must be a callable (model, x, y) -> [B]; got {scorer!r}.")
    if seed is not None and compat.fetches_ahead(model):
        warnings.warn(
            f"model {model.name!r} has steps_per_execution={model.steps_per_execution}, with "
            "which Keras 3 fetches batches ahead of the steps: the draws are seeded, but what "
            "they are drawn by is not. To repeat a run exactly, use steps_per_execution=1.",
            stacklevel=2,
        )

    def transform(dataset: tf.data.Dataset) -> tf.data.Dataset:
        spec = _checked_spec(model, dataset)
        _build(model, spec, dataset)
        scored = _scorer(model, score, spec, presample_size, jit_compile)
        model.expect_drawn_examples(sample_weighted=len(spec) == 3)
        pipeline = _Pipeline(
            model, scored, resample, threshold, batch_size, presample_size, len(spec) == 3
        )
        seeds = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).batch(2)
        groups = tf.data.Dataset.zip((dataset.batch(presample_size), seeds))
        batches = groups.map(pipeline.batches).unbatch()
        batches = batches if seed is not None else batches.prefetch(1)
        return batches.with_options(_options(seed))

    return transform


class _Pipeline:
    """From a group of up to B examples to its batches, stacked: nests of [k, b, …] tensors."""

    def __init__(
        self, model, score, resample, threshold, batch_size, presample_size, sample_weighted
    ) -> None:
        self._model = model
        self._score = score
        self._resample = resample
        self._threshold = threshold
        self._batch_size = batch_size
        self._presample_size = presample_size
        self._sample_weighted = sample_weighted
        self._means = not losses.only_sums(model.objective)

    def batches(self, elements, seed):
        """All batches of a group, as its size and τ decide."""
        group = self._group(elements)
        size = tf.shape(group.sample_weights)[0]
        stacked = tf.cond(
            size < self._presample_size,
            lambda: self._short(group, size),
            lambda: self._full(self._with_static_size(group), seed),
        )
        return tf.nest.map_structure(self._with_static_batch, stacked)

    def _group(self, elements) -> _Group:
        if self._sample_weighted:
            return _Group(elements[0], elements[1], tf.cast(elements[2], tf.float32))
        size = tf.shape(tf.nest.flatten(elements[0])[0])[0]
        return _Group(elements[0], elements[1], tf.ones([size]))

    def _full(self, group: _Group, seed):
        # Read τ once per group: all its batches stem from the same decision.
        draw = compat.value(self._model.tau) > self._threshold
        return tf.cond(draw, lambda: self._scored(group, seed), lambda: self._whole(group))

    def _scored(self, group: _Group, seed):
        scores = tf.abs(group.sample_weights) * self._score(group.inputs, group.labels)
        return tf.cond(
            proposals.usable(scores),
            lambda: self._drawn(group, scores, seed),
            lambda: self._fallback(group),
        )

    def _drawn(self, group: _Group, scores, seed):
        """Lines 6–9 of Algorithm 1: one batch."""
        self._model.count(drawn=1.0)
        draw = self._resample(proposals.normalize(scores), self._batch_size, seed)
        chosen = tf.nest.map_structure(lambda part: tf.gather(part, draw.indices), group)
        chosen = chosen._replace(sample_weights=chosen.sample_weights * draw.weights)
        return tf.nest.map_structure(lambda part: part[tf.newaxis], tuple(chosen))

    def _fallback(self, group: _Group):
        self._model.count(fallbacks=1.0)
        return self._whole(group)

    def _whole(self, group: _Group):
        """Lines 12–13: B/b uniform batches."""
        count = self._presample_size // self._batch_size
        self._model.count(uniform=float(count))
        return tf.nest.map_structure(self._cut, tuple(group))

    def _short(self, group: _Group, size):
        """The uniform batches of a group of fewer than B examples, the last one filled up."""
        count = -(-size // self._batch_size)
        self._model.count(uniform=tf.cast(count, tf.float32))
        positions = tf.range(count * self._batch_size)
        filled = tf.nest.map_structure(
            lambda part: tf.gather(part, tf.minimum(positions, size - 1)), group
        )
        rest = size - (count - 1) * self._batch_size
        scale = tf.cast(self._batch_size / rest, tf.float32) if self._means else 1.0
        in_last = positions >= (count - 1) * self._batch_size
        factor = tf.where(positions < size, tf.where(in_last, scale, 1.0), 0.0)
        filled = filled._replace(sample_weights=filled.sample_weights * factor)
        return tf.nest.map_structure(self._cut, tuple(filled))

    def _cut(self, part: tf.Tensor) -> tf.Tensor:
        shape = [-1, self._batch_size]
        return tf.reshape(part, tf.concat([shape, tf.shape(part)[1:]], axis=0))

    def _with_static_size(self, group: _Group) -> _Group:
        size = self._presample_size
        return tf.nest.map_structure(
            lambda part: tf.ensure_shape(part, [size, *part.shape[1:]]), group
        )

    def _with_static_batch(self, part: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(part, [None, self._batch_size, *part.shape[2:]])


def _check_model(model: Any) -> None:
    if not isinstance(model, keras.Model) or not hasattr(model, "expect_drawn_examples"):
        raise TypeError(
            f"model must be a tfi.ISModel; got {model!r}. Wrap the net: "
            "model = tfi.ISModel(net); model.compile(...)."
        )
    if model.objective.loss is None:
        raise ValueError(
            f"model {model.name!r} is not compiled with a loss, so its examples have no scores; "
            "call model.compile(optimizer=..., loss=...) first."
        )


def _check_sizes(batch_size: int, presample_size: int) -> None:
    if presample_size < batch_size or presample_size % batch_size:
        raise ValueError(
            "presample_size must be a multiple of batch_size, so that a pre-sample which is "
            f"not drawn from leaves as whole batches; got {presample_size} and {batch_size}."
        )


def _threshold(value: float | str | None, presample_size: int, batch_size: int) -> float:
    """τ_th by name or value."""
    name = "guaranteed" if value is None else value
    if isinstance(name, str):
        if name not in _THRESHOLDS:
            raise ValueError(
                f"tau_threshold must be a number or one of {sorted(_THRESHOLDS)}; got {name!r}."
            )
        return _THRESHOLDS[name](presample_size, batch_size)
    if isinstance(name, bool) or not math.isfinite(name) or name < 0:
        raise ValueError(
            f"tau_threshold must be finite and not negative; got {value!r}. To draw always or "
            "never, give 'always' or 'never'."
        )
    return float(name)


def _resampling(value: str | proposals.Resampling) -> proposals.Resampling:
    if callable(value):
        return value
    if value not in proposals.RESAMPLING:
        raise ValueError(
            f"resampling must be one of {sorted(proposals.RESAMPLING)} or a function "
            f"(proposal, size, seed) -> Draw; got {value!r}."
        )
    return proposals.RESAMPLING[value]


def _checked_spec(model: keras.Model, dataset: tf.data.Dataset) -> tuple:
    """The dataset's element_spec, as (x, y) or (x, y, sample_weight) without a batch axis."""
    if not isinstance(dataset, tf.data.Dataset):
        raise TypeError(f"importance_sample applies to a tf.data.Dataset; got {dataset!r}.")
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) not in (2, 3):
        raise ValueError(
            "the dataset must have labels: elements (x, y) or (x, y, sample_weight); got "
            f"element_spec {spec}."
        )
    leaves = tf.nest.flatten(spec)
    if not all(isinstance(leaf, tf.TensorSpec) for leaf in leaves):
        raise ValueError(f"the dataset's elements must be dense tensors; got {spec}.")
    if any(leaf.dtype == tf.string for leaf in tf.nest.flatten(spec[1])):
        raise ValueError(f"labels must be numbers; got {spec[1]}. Map the strings to classes.")
    if _looks_batched(model.net, spec[0], leaves):
        raise ValueError(
            "the dataset must not be batched, since importance_sample batches it itself; got "
            f"element_spec {spec}. Leave out .batch(), or undo it by .unbatch()."
        )
    if len(spec) == 3 and (tf.nest.is_nested(spec[2]) or spec[2].shape.rank != 0):
        raise ValueError(f"sample_weight must be one number for each example; got {spec[2]}.")
    return spec


def _looks_batched(net: keras.Model, inputs, leaves: list[tf.TensorSpec]) -> bool:
    """Whether inputs have the net's own rank, or every part a leading axis of unknown size."""
    parts = tf.nest.flatten(inputs)
    # A net that is not functional, or not built, has no symbolic inputs.
    try:
        expected = tf.nest.flatten(net.inputs or [])
    except (AttributeError, ValueError):
        expected = []
    if expected and len(expected) == len(parts):
        ranks = sorted(len(tensor.shape) for tensor in expected)
        return ranks == sorted(leaf.shape.rank or 0 for leaf in parts)
    return all(leaf.shape.rank and leaf.shape[0] is None for leaf in leaves)


def _build(model: keras.Model, spec: tuple, dataset: tf.data.Dataset) -> None:
    """Make the weights of an unbuilt net by a call on one example."""
    if model.built and model.net.built:
        return
    inputs = spec[0]
    if all(leaf.shape.is_fully_defined() for leaf in tf.nest.flatten(inputs)):
        example = tf.nest.map_structure(lambda s: tf.zeros([1, *s.shape], s.dtype), inputs)
    else:
        example = next(iter(dataset.batch(1)))[0]
    with model.distribute_strategy.scope():
        model(example, training=False)


def _scorer(model, score, spec: tuple, presample_size: int, jit_compile: bool | str) -> Callable:
    """The scorer as a function of [B, …] nests, traced once, run where the weights are."""
    device = compat.device(model)
    accelerated = "GPU" in device or "TPU" in device
    compiled = tf.function(
        lambda inputs, labels: tf.cast(score(model, inputs, labels), tf.float32),
        autograph=False,
        jit_compile=accelerated if jit_compile == "auto" else jit_compile,
    )
    batched = tf.nest.map_structure(
        lambda leaf: tf.TensorSpec([presample_size, *leaf.shape], leaf.dtype), spec[:2]
    )
    try:
        scores = compiled.get_concrete_function(*batched).structured_outputs
    except (TypeError, ValueError, KeyError, tf.errors.InvalidArgumentError) as error:
        raise ValueError(
            f"scorer {score!r} and the compiled loss {model.objective.loss!r} cannot be computed "
            f"for each example of the dataset, inputs {spec[0]}, labels {spec[1]}: {error}"
        ) from error
    if not scores.shape.is_compatible_with([presample_size]):
        raise ValueError(
            f"scorer {score!r} must return one score for each example, shape [{presample_size}]; "
            f"got shape {scores.shape}."
        )

    def scored(inputs, labels):
        # XLA cannot read weights that live on another device than the pipeline's.
        with tf.device(device if accelerated else None):
            return compiled(inputs, labels)

    return scored


def _options(seed: int | None) -> tf.data.Options:
    options = tf.data.Options()
    # The pipeline reads and counts in the model's variables, which checkpoints hold already.
    options.experimental_external_state_policy = tf.data.experimental.ExternalStatePolicy.IGNORE
    if seed is not None:
        # tf.data would run ahead of the training step, and τ's readings become a race.
        options.experimental_optimization.inject_prefetch = False
    return options
