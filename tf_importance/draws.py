"""The protocol between who plans batches and the step that trains on them.

A plan says which examples a batch has and with which weights (`Draws`); a step writes down what it
saw of them (`Seen`); what both must agree on travels with the batch (`Told`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf


class Draws(NamedTuple):
    """What is planned of K batches.

    Attributes:
        indices: [K, b] int64 of the examples in the source.
        weights: [K, b] float32 importance weights, 1/(n p_i) unless the sampler says otherwise.
        limits: [K, b] float32 scores above which the step scales an example's loss down to them;
            infinite where it does not.
        gains: [K, b] float32 predicted gain ratio r of each batch, the same for all of it.
        memory: [K, b] float32, 1/(n p_i) of the sampler's proposal, whether it drew them or not.
        kinds: [K] int32, by what each batch is drawn; a number that its sampler knows.
    """

    indices: tf.Tensor
    weights: tf.Tensor
    limits: tf.Tensor
    gains: tf.Tensor
    memory: tf.Tensor
    kinds: tf.Tensor

    @property
    def of_examples(self) -> tuple[tf.Tensor, ...]:
        """All that is said of each example."""
        return self[:-1]

    def of_kind(self, kind: int, seen: Seen, size: int) -> tuple[Draws, Seen]:
        """The batches of one kind, of b examples each, and what steps saw of them."""
        here = tf.equal(self.kinds, kind)
        draws, scores, moments = tf.nest.map_structure(
            lambda part: tf.boolean_mask(part, here), (self, seen.scores, seen.moments)
        )
        examples = (part[:, :size] for part in draws.of_examples)
        return Draws._make([*examples, draws.kinds]), Seen(scores[:, :size], moments)


class Seen(NamedTuple):
    """What the steps on M planned batches saw.

    Attributes:
        scores: [M, b] of the steps' own forward passes; may be NaN, infinite or negative.
        moments: [M, 3] of each batch: mean(w v²), mean(w² v²) and ‖g‖² in the last layer's weights.
    """

    scores: tf.Tensor
    moments: tf.Tensor


class Told(NamedTuple):
    """What a pipeline of this package says of a batch, beside (x, y).

    Attributes:
        weight: [b] what the loss is weighted by.
        indices: [b] of the examples in the source, by `history_sample`.
        row: [b] number of the batch among all that its sampler has planned, the same for all; the
            step writes what it sees to the sampler's journal.
        limit: [b] as in `Draws`.
        importance: [b] the part of the weights that sampling has multiplied into them.
        gain: [b] the predicted gain ratio r of the batch, the same for all.
        memory: [b] as in `Draws`; of strata, or a cascade's first draw, what they weigh an example
            by.
        stratum: [b] int32, of examples of a stream that is drawn by strata.
        seed: [b, 2] of a group that the step is to draw from itself, the same for all.
        elements: a user's weights of each output, or of its time steps or pixels, a nest of [b, …];
            `weight` has their means.
        statistics: [b, 1 + S] by which batch normalization normalizes a drawn batch, the same for
            all: 1, and those of the pre-sample; or 0, where it was not drawn from one.
    """

    weight: tf.Tensor
    indices: tf.Tensor | None = None
    row: tf.Tensor | None = None
    limit: tf.Tensor | None = None
    importance: tf.Tensor | None = None
    gain: tf.Tensor | None = None
    memory: tf.Tensor | None = None
    stratum: tf.Tensor | None = None
    seed: tf.Tensor | None = None
    elements: Any = None
    statistics: tf.Tensor | None = None


def is_drawn(data) -> bool:
    """Whether a batch, or the element_spec of a dataset, is one of `history_sample`."""
    return _is_ours(data) and "index" in data[2]


def weight_of(third):
    """The weights, of a batch's third part as a pipeline or a user made it."""
    return third["weight"] if isinstance(third, dict) and "weight" in third else third


def is_group(data) -> bool:
    """Whether data is for the step to score and draw from."""
    return _is_ours(data) and "seed" in data[2]


def split(data) -> tuple[Any, Told | None]:
    """A batch as (x, y, weight) and, where a pipeline of ours made it, all that it says."""
    if not _is_ours(data):
        return data, None
    told = {("indices" if key == "index" else key): part for key, part in data[2].items()}
    return (*data[:2], told["weight"]), Told(**told)


def _is_ours(data) -> bool:
    has_dict = isinstance(data, tuple) and len(data) == 3 and isinstance(data[2], dict)
    return has_dict and "weight" in data[2] and set(data[2]) <= {"index", *Told._fields}
