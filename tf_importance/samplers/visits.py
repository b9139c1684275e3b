"""The most recent visits, kept in a ring."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tf_importance import robust


class RecentVisits(tf.Module):
    """Features before, norm and weight of each of the last visits.

    Args:
        capacity: how many are kept.
        features: K.
    Attributes:
        count: variable, visits until now.
    """

    def __init__(self, capacity: int, features: int) -> None:
        super().__init__(name="recent_visits")
        self._capacity = capacity
        # Features, norm, weight in one row: a scatter costs the same, wide or narrow.
        self.rows = tf.Variable(tf.zeros([capacity, features + 2]), trainable=False, name="rows")
        self.indices = tf.Variable(tf.zeros([capacity], tf.int64), trainable=False, name="visited")
        self.count = tf.Variable(0, dtype=tf.int64, trainable=False, name="count")

    def add(self, indices, features, norms, weights) -> None:
        """Take up a batch: [b], [b, K], [b], [b]; weight 0 for a visit that says nothing."""
        size = tf.shape(indices, tf.int64)[0]
        places = (self.count + tf.range(size)) % self._capacity
        rows = tf.concat([features, norms[:, tf.newaxis], weights[:, tf.newaxis]], axis=1)
        self.rows.scatter_nd_update(places[:, tf.newaxis], rows)
        self.indices.scatter_nd_update(places[:, tf.newaxis], indices)
        self.count.assign_add(size)

    def before(self, end: int, number: int, mean_features: np.ndarray) -> robust.TrainingSet:
        """The visits end − number … end, counted from the first ever."""
        rows = tf.gather(self.rows, self._places(end - number, end)).numpy().astype(np.float64)
        return robust.TrainingSet(rows[:, :-2], rows[:, -2], rows[:, -1], mean_features)

    def indices_since(self, start: int) -> np.ndarray:
        """Which examples the visits since number `start` went to."""
        return tf.gather(self.indices, self._places(start, int(self.count.numpy()))).numpy()

    def _places(self, start: int, end: int) -> np.ndarray:
        if end - start > self._capacity or int(self.count.numpy()) - start > self._capacity:
            raise ValueError(
                f"visits must be of the last {self._capacity}, which are kept; got number {start} "
                f"of {int(self.count.numpy())}."
            )
        return np.arange(start, end) % self._capacity
