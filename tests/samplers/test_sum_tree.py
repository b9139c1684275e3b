"""The tree of sums: exact totals, draws by the leaves, whatever is updated how often."""

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from tf_importance.samplers.sum_tree import SumTree, levels_of

ONE = tf.constant([1.0], tf.float64)


def tree_of(leaves) -> SumTree:
    leaves = np.asarray(leaves, np.float32).reshape(len(leaves), -1)
    tree = SumTree(len(leaves), leaves.shape[1])
    tree.assign(levels_of(leaves))
    return tree


def points(size, seed=0):
    return tf.constant(np.random.default_rng(seed).random(size))


@pytest.mark.parametrize("size", [1, 2, 31, 32, 33, 1024, 1025, 10_000])
def test_draws_follow_the_leaves(size):
    leaves = np.random.default_rng(size).gamma(0.5, 1.0, size).astype(np.float32)
    leaves[: size // 3] = 0
    drawn = tree_of(leaves).draw(points(20_000), ONE)
    indices = drawn.indices.numpy()
    p = leaves.astype(np.float64) / leaves.sum(dtype=np.float64)
    np.testing.assert_allclose(drawn.probabilities, p[indices], rtol=1e-6)
    # Few enough cells that each expects some draws.
    cells = np.minimum(np.cumsum(p) * 50, 49.999).astype(int)
    expected = np.bincount(cells, p, 50) * 20_000
    counts = np.bincount(cells[indices], minlength=50)
    full = expected > 5
    if full.sum() > 1:
        scale = counts[full].sum() / expected[full].sum()
        assert scipy.stats.chisquare(counts[full], expected[full] * scale).pvalue > 1e-3
        # Negative control: uniform draws do not.
        uniform = np.bincount(cells, minlength=50)[full].astype(float)
        uniform *= counts[full].sum() / uniform.sum()
        if size > 100:
            assert scipy.stats.chisquare(counts[full], uniform).pvalue < 1e-9


def test_a_point_finds_its_leaf_exactly():
    tree = tree_of([1.0, 0.0, 2.0, 0.0, 1.0])
    where = tf.constant([0.0, 0.249, 0.25, 0.7499, 0.75, 1 - 2.0**-53], tf.float64)
    assert tree.draw(where, ONE).indices.numpy().tolist() == [0, 0, 2, 2, 4, 4]


def test_columns_are_mixed_at_the_draw():
    leaves = np.random.default_rng(0).random([300, 2])
    mixing = tf.constant([1.0, 0.25], tf.float64)
    drawn = tree_of(leaves).draw(points(500), mixing)
    mixed = leaves.astype(np.float32).astype(np.float64) @ [1.0, 0.25]
    np.testing.assert_allclose(
        drawn.probabilities, (mixed / mixed.sum())[drawn.indices.numpy()], rtol=1e-6
    )


@pytest.mark.parametrize("size", [33, 1025, 10_000])
def test_few_draws_at_once_are_those_of_many(size):
    """Many mix whole levels, where these have fewer rows than there are draws; few their own."""
    rng = np.random.default_rng(size)
    tree = tree_of(rng.gamma(0.5, 1.0, [size, 2]))
    mixing, where = tf.constant([1.0, 0.25], tf.float64), points(640)
    many = tree.draw(where, mixing)
    for few in (1, 20):
        parts = [tree.draw(part, mixing) for part in tf.split(where, len(where) // few)[:32]]
        of_few = tf.concat([part.indices for part in parts], axis=0)
        np.testing.assert_array_equal(of_few, many.indices[: len(of_few)])
        np.testing.assert_allclose(
            tf.concat([part.probabilities for part in parts], axis=0),
            many.probabilities[: len(of_few)],
            rtol=1e-9,
        )
    assert len(np.unique(many.indices)) > min(size, 640) / 4


def test_updates_equal_a_tree_made_anew():
    rng = np.random.default_rng(0)
    leaves = rng.random([5000, 2]).astype(np.float32)
    tree = tree_of(leaves)
    for _ in range(20):
        indices = rng.integers(5000, size=64)
        indices[1] = indices[0]
        leaves[indices] = values = np.outer(indices + rng.random(), [1, 2]).astype(np.float32)
        tree.update(tf.constant(indices), tf.constant(values))
    for level, expected in zip(tree.levels, levels_of(leaves)):
        np.testing.assert_allclose(level, expected, rtol=1e-12)
    np.testing.assert_allclose(tree.total(), leaves.sum(axis=0, dtype=np.float64), rtol=1e-12)


def test_numbers_of_very_different_size_do_not_harm_each_other():
    """A running sum would keep 1e12 · 2⁻²⁴ of error after the large leaf is gone."""
    tree = tree_of(np.full(1000, 1e-3))
    for value in (1e12, 0.0):
        tree.update(tf.constant([7]), tf.constant([[value]]))
    assert float(tree.total()[0]) == pytest.approx(0.999, rel=1e-6)


@pytest.mark.slow
def test_ten_million_updates_leave_no_drift():
    size, batch, batches = 20_000, 5_000, 2_000
    tree = SumTree(size)

    @tf.function(autograph=False)
    def soak():
        def step(number):
            seed = tf.stack([number, 1])
            indices = tf.random.stateless_uniform([batch], seed, 0, size, tf.int64)
            # A value for each index and step, so that duplicates agree; five decades of them.
            exponent = tf.cast((indices * 31 + tf.cast(number, tf.int64) * 7) % 1000, tf.float32)
            tree.update(indices, tf.pow(10.0, exponent[:, tf.newaxis] / 200 - 3))
            return number + 1

        return tf.while_loop(lambda n: n < batches, step, [0], parallel_iterations=1)

    soak()
    leaves = tree.levels[0].numpy().reshape(-1).astype(np.float64)
    assert np.count_nonzero(leaves) == size
    assert float(tree.total()[0]) == pytest.approx(leaves.sum(), rel=1e-9)


@pytest.mark.parametrize("size", [1, 40, 1024, 5_000])
def test_rows_are_set_like_their_leaves(size):
    rng = np.random.default_rng(size)
    by_leaves, by_rows = SumTree(size, 3), SumTree(size, 3)
    for _ in range(3):
        rows = np.flatnonzero(rng.random(-(-size // 32)) < 0.5)
        values = rng.random([len(rows), 32, 3]).astype(np.float32)
        places = rows[:, None] * 32 + np.arange(32)
        values[places >= size] = 0
        by_rows.update_rows(rows, values)
        by_leaves.update(places[places < size], values[places < size])
    for mine, theirs in zip(by_rows.levels, by_leaves.levels):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("size", [1, 31, 32, 33, 1024, 5000])
def test_the_sums_before_leaves_are_cumulative(size):
    leaves = np.random.default_rng(size).gamma(0.5, size=(size, 2)).astype(np.float32)
    tree = SumTree(size, 2)
    tree.update(np.arange(size), leaves)
    mixing = np.array([1.0, 0.3])
    indices = np.random.default_rng(0).integers(size, size=50)
    expected = np.concatenate([[0], np.cumsum(leaves.astype(np.float64) @ mixing)])[indices]
    found = tree.before(tf.constant(indices), tf.constant(mixing))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
