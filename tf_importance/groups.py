"""From a pre-sample to its batches: whole, or drawn by scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tf_importance import proposals
from tf_importance.plans import Plan


class Group(NamedTuple):
    """A pre-sample, or batches of it stacked: nests of [B, …] or [k, b, …].

    Attributes:
        inputs, labels: nests.
        sample_weights: s, a user's.
        importance: what sampling multiplies into them, 1 unless drawn.
    """

    inputs: Any
    labels: Any
    sample_weights: tf.Tensor
    importance: tf.Tensor

    @property
    def size(self) -> tf.Tensor:
        """Number of examples."""
        return tf.shape(self.importance)[0]


def group_of(elements: tuple) -> Group:
    """A batch of (x, y) or (x, y, sample_weight) as a group."""
    size = tf.shape(tf.nest.flatten(elements[0])[0])[0]
    weights = tf.cast(elements[2], tf.float32) if len(elements) == 3 else tf.ones([size])
    return Group(elements[0], elements[1], weights, tf.ones([size]))


def of_static_size(group: Group, size: int) -> Group:
    """The same with its number of examples written down."""
    return tf.nest.map_structure(
        lambda part: tf.ensure_shape(part, [size, *part.shape[1:]]), group
    )


def whole(group: Group, batch_size: int) -> Group:
    """Lines 12–13 of Algorithm 1: B/b uniform batches."""
    return tf.nest.map_structure(lambda part: _cut(part, batch_size), group)


def short(group: Group, batch_size: int, means: bool) -> Group:
    """The uniform batches of a group of any size, the last one filled up.

    Examples of weight 0 fill it; the others' weights are scaled by b/(their number), so that the
    batch's weighted mean is the mean over those that are there.

    Args:
        group: of any number of examples. batch_size: b.
        means: whether the loss is a mean over the batch; else nothing is scaled.
    """
    size = group.size
    count = -(-size // batch_size)
    positions = tf.range(count * batch_size)
    filled = tf.nest.map_structure(
        lambda part: tf.gather(part, tf.minimum(positions, size - 1)), group
    )
    rest = size - (count - 1) * batch_size
    scale = tf.cast(batch_size / rest, tf.float32) if means else 1.0
    in_last = positions >= (count - 1) * batch_size
    factor = tf.where(positions < size, tf.where(in_last, scale, 1.0), 0.0)
    filled = filled._replace(importance=filled.importance * factor)
    return whole(filled, batch_size)


def drawn(
    group: Group, scores: tf.Tensor, plan: Plan, resample: proposals.Resampling, seed: tf.Tensor
) -> Group:
    """Lines 6–9 of Algorithm 1: R batches of b, drawn by g ∝ scores.

    All R b examples are drawn at once, so that systematic draws of several batches do not repeat
    each other, and dealt out in turns: batch j gets the draws j, j + R, j + 2R, …, which for
    systematic ones are systematic again. The batches then leave in random order, which makes
    each of them unbiased by itself.

    Args:
        group: of B examples. scores: [B], usable. plan: b and R.
        resample: of `proposals`. seed: [2] integers.
    """
    indices, weights = proposals_drawn(scores, plan, resample, seed)
    chosen = tf.nest.map_structure(lambda part: tf.gather(part, indices), group)
    return chosen._replace(importance=chosen.importance * weights)


def proposals_drawn(
    scores: tf.Tensor, plan: Plan, resample: proposals.Resampling, seed: tf.Tensor
) -> proposals.Draw:
    """The positions and weights of `drawn`: [R, b] each."""
    proposal = proposals.normalize(scores)
    draw = resample(proposal, plan.draws * plan.batch_size, seed)
    if plan.draws == 1:
        return proposals.Draw(*(part[tf.newaxis] for part in draw))
    order = tf.random.experimental.stateless_shuffle(tf.range(plan.draws), seed)
    in_turns = [tf.transpose(tf.reshape(part, [plan.batch_size, plan.draws])) for part in draw]
    return proposals.Draw(*(tf.gather(part, order) for part in in_turns))


def _cut(part: tf.Tensor, batch_size: int) -> tf.Tensor:
    shape = tf.concat([[-1, batch_size], tf.shape(part)[1:]], axis=0)
    return tf.reshape(part, shape)


class Emission(NamedTuple):
    """How batches are handed to the training step.

    Attributes:
        sample_weighted: whether the dataset has weights of its own.
        with_gain: whether the step is told r, and the importance weights by themselves.
        with_seed: whether the step draws from groups itself, and is told what by.
    """

    sample_weighted: bool
    with_gain: bool
    with_seed: bool = False

    def of(self, group: Group, gain: tf.Tensor, seed: tf.Tensor) -> tuple:
        """(x, y, weight), or (x, y, {"weight", and what else the step is told}).

        Args:
            group: batches or pre-samples, stacked. gain: scalar r of all. seed: [2] of the group.
        """
        weights = group.importance
        if self.sample_weighted:
            weights = group.sample_weights * group.importance
        told = {"weight": weights}
        if self.with_gain:
            gains = tf.fill(tf.shape(weights), gain)
            told |= {"gain": gains}
            if self.sample_weighted:
                told |= {"importance": group.importance}
        if self.with_seed:
            # For each example, so that batches have nothing without a batch axis; each
            # pre-sample of the group has its own.
            numbers = tf.range(tf.shape(weights)[0], dtype=seed.dtype)
            seeds = seed + tf.stack([numbers, tf.zeros_like(numbers)], axis=1)
            shape = tf.concat([tf.shape(weights), [2]], axis=0)
            told["seed"] = tf.broadcast_to(seeds[:, tf.newaxis], shape)
        return group.inputs, group.labels, told if len(told) > 1 else weights


# A batch, its places in the group, scores of the group, whether these are unusable.
_Chosen = tuple[tuple, tf.Tensor, tf.Tensor, tf.Tensor]


class StepDraw(NamedTuple):
    """Scores and draws inside the training step, where groups are handed to it whole.

    Attributes:
        score: (x, y) -> [B].
        smoothing: c. resample: of `proposals`. batch_size: b.
    """

    score: Callable[[Any, Any], tf.Tensor]
    smoothing: float
    resample: proposals.Resampling
    batch_size: int

    def __call__(self, data: tuple) -> tuple[tuple, tf.Tensor]:
        """A batch of b from a group of B; one that has b already as it is.

        Args:
            data: (x, y, told), of an `Emission` with seeds.
        Returns:
            The same with b examples, and whether the scores were unusable: the draws are uniform
            then.
        """
        told = dict(data[2])
        seed = told.pop("seed")[0]
        parts = (*data[:2], told)
        is_group = tf.shape(told["weight"])[0] > self.batch_size
        batch, places, scores, unusable = tf.cond(
            is_group, lambda: self._drawn(parts, seed), lambda: self._as_it_is(parts)
        )
        batch = tf.nest.map_structure(
            lambda part: tf.ensure_shape(part, [self.batch_size, *part.shape[1:]]), batch
        )
        if "index" in told:
            # What a sampler's memory has drawn, all of it.
            of_all = {"index": told["index"], "weight": told["weight"], "score": scores}
            batch[2].update(place=places, presample=of_all)
        return batch, unusable

    def _drawn(self, parts: tuple, seed: tf.Tensor) -> _Chosen:
        inputs, labels, told = parts
        own = self.score(inputs, labels)
        scores = tf.abs(told["weight"]) * own
        usable = proposals.usable(scores)
        smooth = smoothed(scores, self.smoothing)
        # Where they are unusable, the proposal is uniform.
        smooth = tf.where(usable, smooth, tf.zeros_like(smooth))
        draw = self.resample(proposals.normalize(smooth), self.batch_size, seed)
        chosen = tf.nest.map_structure(lambda part: tf.gather(part, draw.indices), parts)
        for name in {"weight", "importance"} & set(told):
            chosen[2][name] *= draw.weights
        if "gain" in told:
            chosen[2]["gain"] = tf.where(usable, chosen[2]["gain"], 1.0)
        return chosen, draw.indices, own, tf.logical_not(usable)

    def _as_it_is(self, parts: tuple) -> _Chosen:
        cut = tf.nest.map_structure(lambda part: part[: self.batch_size], parts)
        # As many as there are, though they are b here: XLA compiles both ways for each size.
        unscored = tf.zeros_like(parts[2]["weight"])
        return cut, tf.range(self.batch_size), unscored, tf.constant(False)


def smoothed(scores: tf.Tensor, constant: float) -> tf.Tensor:
    """Ĝ + c mean(Ĝ)."""
    return proposals.smooth(scores, constant * tf.reduce_mean(scores))
