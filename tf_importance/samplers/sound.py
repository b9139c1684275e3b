"""What memories make of scores that may be anything: none, infinite, or absurdly large."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

# A score counts as so many typical ones at most: its square, and sums of these, stay numbers.
_LARGEST = 1e4
# The typical score follows by this factor at most from one block to the next: a few absurd scores
# do not become the measure.
_STEADY = 2.0


class Sound(NamedTuple):
    """What visits saw of each example, where one may stand among them several times.

    Attributes:
        scores: [b] the mean of the usable scores of the same example, at each of its places.
        usable: [b] whether there is one.
        share: [b] 1/(how often the example stands among the visits).
    """

    scores: tf.Tensor
    usable: tf.Tensor
    share: tf.Tensor


class Judge(tf.Module):
    """Tells usable scores from others, and keeps large ones within bounds.

    A score is usable if it is finite and not negative. One above 10,000 times the typical score
    counts as that; typical is the median of the first positive ones, and then the mean, which
    moves by a factor of 2 at most from one learning to the next.

    Attributes:
        typical: variable, 0 as long as there was no positive score.
        unusable: variable, how many visits had no usable score, or one that was cut down.
    """

    def __init__(self) -> None:
        super().__init__(name="judge")
        self.typical = tf.Variable(0.0, trainable=False, name="typical")
        self.unusable = tf.Variable(0.0, trainable=False, name="unusable")

    def once_each(self, indices: tf.Tensor, scores: tf.Tensor) -> Sound:
        """Args: indices: [b]. scores: [b], may be NaN, infinite or negative."""
        scores = tf.cast(scores, tf.float32)
        sound = is_sound(scores)
        typical = self._followed(tf.where(sound, scores, 0.0), sound)
        largest = tf.where(typical > 0, _LARGEST * typical, float("inf"))
        cut = sound & (scores > largest)
        self.typical.assign(typical)
        self.unusable.assign_add(tf.reduce_sum(tf.cast(cut | ~sound, tf.float32)))
        return once_each(indices, tf.where(cut, largest, scores))

    def _followed(self, scores: tf.Tensor, sound: tf.Tensor) -> tf.Tensor:
        """The typical score after these."""
        before = tf.convert_to_tensor(self.typical)
        bounded = tf.minimum(scores, _LARGEST * before)
        count = tf.reduce_sum(tf.cast(sound, tf.float32))
        mean = tf.math.divide_no_nan(tf.reduce_sum(bounded), count)
        later = tf.clip_by_value(mean, before / _STEADY, before * _STEADY)
        later = tf.where(mean > 0, later, before)
        return tf.where(before > 0, later, _median_of_positive(scores))


def is_sound(scores: tf.Tensor) -> tf.Tensor:
    """Whether a score says anything: finite and not negative."""
    return tf.math.is_finite(scores) & (scores >= 0)


def once_each(indices: tf.Tensor, scores: tf.Tensor) -> Sound:
    """The mean of the usable scores of each example."""
    scores = tf.cast(scores, tf.float32)
    sound = is_sound(scores)
    columns = [tf.where(sound, scores, 0.0), tf.cast(sound, tf.float32), tf.ones_like(scores)]
    sums = _sums_of_same(indices, tf.stack(columns, axis=1))
    means = tf.math.divide_no_nan(sums[:, 0], sums[:, 1])
    return Sound(means, sums[:, 1] > 0, 1 / sums[:, 2])


def _sums_of_same(indices: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """For each place the sums of the columns over all places of the same index: [b, k]."""
    if indices.shape[0] is None:
        # The rows of a block: too many to compare each with each.
        found, places = tf.unique(indices)
        sums = tf.math.unsorted_segment_sum(columns, places, tf.size(found))
        return tf.gather(sums, places)
    # A batch in a step: XLA has no `unique`.
    same = tf.cast(indices[:, tf.newaxis] == indices[tf.newaxis], tf.float32)
    return tf.linalg.matmul(same, columns)


def _median_of_positive(scores: tf.Tensor) -> tf.Tensor:
    """The lower median; 0 where none is positive."""
    in_order = tf.sort(tf.concat([scores, [0.0]], axis=0), direction="DESCENDING")
    positive = tf.reduce_sum(tf.cast(scores > 0, tf.int32))
    return in_order[positive // 2]
