"""Draws from n changing, un-normalized probabilities: O(b log n) a draw, O(b log n) an update."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

# A gather of so many neighbours costs little more than one of a single number, and a tree this
# wide has 5 levels for 10 million examples. (At 64, TensorFlow's cumsum takes over.)
FANOUT = 32
_RUNNING_SUMS = np.triu(np.ones([FANOUT, FANOUT]))


class Drawn(NamedTuple):
    """Leaves drawn from a tree.

    Attributes:
        indices: [b] int64.
        probabilities: [b] float64, of having been drawn.
    """

    indices: tf.Tensor
    probabilities: tf.Tensor

    def weights(self, population) -> tf.Tensor:
        """1/(n p_i), [b] float64; 0 should rounding have drawn what has no probability.

        Args:
            population: n.
        """
        expected = tf.cast(population, tf.float64) * self.probabilities
        return tf.math.divide_no_nan(tf.ones_like(expected), expected)


class SumTree(tf.Module):
    """A wide tree of sums over n leaves, each of one or several columns of non-negative numbers.

    A node holds the sum of its children, recomputed from them whenever one changes: no error
    adds up over the updates, however many. Nodes are float64, leaves float32. The columns are
    mixed into one probability at the draw, so that a mixture of which only the mixing changes
    needs no update.

    Args:
        size: n.
        columns: numbers in a leaf.
        initial: [columns] value of all leaves at first.
    """

    def __init__(self, size: int, columns: int = 1, initial=None, name: str = "sum_tree") -> None:
        super().__init__(name=name)
        self.size, self.columns = size, columns
        leaves = np.zeros([size, columns], np.float32)
        if initial is not None:
            leaves[:] = initial
        # From the leaves to the root.
        self.levels = [tf.Variable(level, trainable=False) for level in levels_of(leaves)]

    def total(self) -> tf.Tensor:
        """The sum over all leaves: [columns] float64."""
        return tf.reduce_sum(tf.cast(self.levels[-1], tf.float64), axis=[0, 1])

    def leaves(self, indices: tf.Tensor) -> tf.Tensor:
        """The leaves at indices [b]: [b, columns]."""
        nodes = tf.cast(indices, tf.int64)
        # Not gather_nd, which XLA does not have for variables.
        rows = tf.gather(self.levels[0], nodes // FANOUT)
        return tf.gather(rows, nodes % FANOUT, batch_dims=1)

    def before(self, indices: tf.Tensor, mixing: tf.Tensor) -> tf.Tensor:
        """Σ ⟨leaf_j, mixing⟩ over the leaves j < i of each index: [m] float64.

        Args:
            indices: [m] integers, below n. mixing: [columns] float64.
        """
        node = tf.cast(indices, tf.int64)
        sums = tf.zeros(tf.shape(node), tf.float64)
        for level in self.levels:
            row, place = node // FANOUT, node % FANOUT
            children = tf.cast(tf.gather(level, row), tf.float64)
            earlier = tf.range(FANOUT, dtype=tf.int64) < place[:, tf.newaxis]
            of_earlier = tf.where(earlier[..., tf.newaxis], children, 0.0)
            sums += tf.linalg.matvec(tf.reduce_sum(of_earlier, axis=1), mixing)
            node = row
        return sums

    def draw(self, points: tf.Tensor, mixing: tf.Tensor) -> Drawn:
        """Draw a leaf for each point, by p_i = ⟨leaf_i, mixing⟩ / ⟨total, mixing⟩.

        The probabilities are those by which the branches were really taken: should an update
        run at the same time, the weights made of them are right even so.

        Args:
            points: [b] float64 in [0, 1), uniform.
            mixing: [columns] float64, non-negative; ⟨total, mixing⟩ is positive.
        """
        node = tf.zeros_like(points, tf.int64)
        probabilities = tf.ones_like(points)
        for level in reversed(self.levels):
            # All rows of a level once, where they are fewer than the draws; else each draw's own.
            has_all = level.shape[0] <= (points.shape[0] or 0)
            children, ends = self._mixed(level if has_all else tf.gather(level, node), mixing)
            row = node if has_all else tf.range(tf.size(node, tf.int64))
            of_point = tf.gather(ends, row) if has_all else ends
            whole = of_point[:, -1]
            # Rounding must not lift a point over the last child of positive probability.
            target = tf.minimum(points * whole, whole * (1 - 2.0**-45))
            wanted = target[:, tf.newaxis]
            child = tf.searchsorted(of_point, wanted, side="right", out_type=tf.int64)
            child = tf.minimum(child[:, 0], FANOUT - 1)
            # TensorFlow's batched gather takes several times as long.
            place = row * FANOUT + child
            share = tf.gather(tf.reshape(children, [-1]), place)
            start = tf.gather(tf.reshape(ends, [-1]), place) - share
            points = tf.clip_by_value(tf.math.divide_no_nan(target - start, share), 0.0, 1.0)
            probabilities *= tf.math.divide_no_nan(share, whole)
            node = node * FANOUT + child
        return Drawn(node, probabilities)

    def _mixed(self, rows, mixing: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The children in rows of a level mixed, and their running sums: [m, FANOUT] each."""
        leaves = tf.reshape(tf.cast(rows, tf.float64), [-1, self.columns])
        # TensorFlow's cumsum and matvec take several times as long.
        children = tf.reshape(tf.linalg.matmul(leaves, mixing[:, tf.newaxis]), [-1, FANOUT])
        return children, tf.linalg.matmul(children, _RUNNING_SUMS)

    def draw_mixed(self, points: tf.Tensor, mixing: tf.Tensor, uniform: float) -> Drawn:
        """As `draw`, by p_i mixed with a share of 1/n.

        Args:
            uniform: the share λ; the probabilities are (1 − λ) p_i + λ/n.
        """
        count = tf.cast(self.size, tf.float64)
        spread, others_points = beside(points, uniform)
        by_tree = self.draw(others_points, mixing)
        others = tf.minimum(tf.cast(points / uniform * count, tf.int64), self.size - 1)
        others = tf.maximum(others, 0)
        own = tf.linalg.matvec(tf.cast(self.leaves(others), tf.float64), mixing)
        total = tf.tensordot(self.total(), mixing, 1)
        probabilities = tf.where(
            spread, tf.math.divide_no_nan(own, total), by_tree.probabilities
        )
        indices = tf.where(spread, others, by_tree.indices)
        return Drawn(indices, (1 - uniform) * probabilities + uniform / count)

    def update(self, indices: tf.Tensor, leaves: tf.Tensor) -> None:
        """Set leaves; one that is named twice must be given the same value twice.

        Args:
            indices: [b] integers. leaves: [b, columns] non-negative and finite.
        """
        nodes, values = tf.cast(indices, tf.int64), tf.cast(leaves, tf.float32)
        # Between the last leaf and the end of its row there is room for wrong ones.
        tf.debugging.assert_less(nodes, tf.constant(self.size, tf.int64), "index out of range")
        self.levels[0].scatter_nd_update(_places(nodes), values)
        self._add_up(_distinct(nodes // FANOUT))

    def update_rows(self, rows: tf.Tensor, leaves: tf.Tensor) -> None:
        """Set the leaves 32 r … 32 r + 31 of each row r: many at a time, for less each.

        Args:
            rows: [m] integers, distinct. leaves: [m, 32, columns], zeros behind the last leaf.
        """
        rows = tf.cast(rows, tf.int64)
        leaves = tf.cast(leaves, tf.float32)
        self.levels[0].scatter_nd_update(rows[:, tf.newaxis], leaves)
        self._add_up(rows, tf.reduce_sum(tf.cast(leaves, tf.float64), axis=1))

    def _add_up(self, rows: tf.Tensor, sums: tf.Tensor | None = None) -> None:
        """Recompute the nodes above distinct rows of leaves, of which the sums may be known."""
        for level, parents in zip(self.levels, self.levels[1:]):
            if sums is None:
                sums = tf.reduce_sum(tf.cast(tf.gather(level, rows), tf.float64), axis=1)
            parents.scatter_nd_update(_places(rows), sums)
            rows, sums = _distinct(rows // FANOUT), None

    def assign(self, levels: list[np.ndarray] | list[tf.Tensor]) -> None:
        """Set all leaves; `levels_of` makes the levels, in a thread if need be.

        A copy of O(n), several times faster from tensors than from arrays.
        """
        for variable, level in zip(self.levels, levels):
            variable.assign(level)


def beside(points: tf.Tensor, share: float) -> tuple[tf.Tensor, tf.Tensor]:
    """Which points in [0, 1) are for the first share of all draws, and the others', over [0, 1)."""
    return points < share, tf.maximum(points - share, 0.0) / (1 - share)


def levels_of(leaves: np.ndarray) -> list[np.ndarray]:
    """The levels of a tree of leaves [n, columns], from the leaves to the root: O(n)."""
    levels = [_rows(np.asarray(leaves, np.float32))]
    while len(levels[-1]) > 1:
        levels.append(_rows(levels[-1].sum(axis=1, dtype=np.float64)))
    return levels


def _rows(values: np.ndarray) -> np.ndarray:
    """[m, columns] as [⌈m / FANOUT⌉, FANOUT, columns], filled up with zeros."""
    missing = -len(values) % FANOUT
    padded = np.pad(values, [(0, missing), (0, 0)]) if missing else values
    return padded.reshape(-1, FANOUT, values.shape[1])


def _distinct(rows: tf.Tensor) -> tf.Tensor:
    """Each row once: to add up its 32 nodes takes longer than to find this out."""
    return tf.unique(rows)[0]


def _places(nodes: tf.Tensor) -> tf.Tensor:
    """Where nodes [b] stand in their level: [b, 2] row and place in the row."""
    return tf.stack([nodes // FANOUT, nodes % FANOUT], axis=1)
