"""Laws of proposals and draws."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tests.reference import equations
from tf_importance import proposals

UNUSABLE = {
    "all zero": [0.0, 0, 0],
    "nan": [1.0, np.nan, 2],
    "infinite": [1.0, np.inf, 2],
    "negative": [1.0, -1, 2],
}
SCORES = st.lists(st.floats(0, 1e30), min_size=1, max_size=40)
METHODS = pytest.mark.parametrize("method", sorted(proposals.RESAMPLING))


@given(SCORES)
@settings(deadline=None, max_examples=60)
def test_a_proposal_is_a_distribution_with_finite_weights(scores):
    proposal = proposals.normalize(tf.constant(scores, tf.float32)).numpy()
    assert np.all(proposal >= 0)
    np.testing.assert_allclose(proposal.sum(), 1, rtol=1e-5)
    assert np.all(np.isfinite(proposals.importance_weights(tf.constant(proposal))))


@pytest.mark.parametrize("scores", [[1, 1, 1], [1, 2, 3], [1e-3, 1, 1]])
def test_weights_make_the_estimate_unbiased(scores):
    proposal = proposals.normalize(tf.constant(scores, tf.float32))
    values = tf.constant([5.0, -1.0, 2.0])
    estimate = tf.reduce_sum(proposal * proposals.importance_weights(proposal) * values)
    np.testing.assert_allclose(estimate, tf.reduce_mean(values), rtol=1e-5)


@pytest.mark.parametrize("scores", UNUSABLE.values(), ids=UNUSABLE.keys())
def test_unusable_scores_give_the_uniform_proposal(scores):
    scores = tf.constant(scores, tf.float32)
    assert not proposals.usable(scores)
    np.testing.assert_allclose(proposals.normalize(scores), np.full(3, 1 / 3), rtol=1e-6)


def test_usable_scores_may_have_zeros_and_large_sums():
    assert proposals.usable(tf.constant([0.0, 1.0]))
    large = proposals.normalize(tf.constant([3e38, 3e38, 0.0]))
    np.testing.assert_allclose(large, [0.5, 0.5, 0], rtol=1e-6)


def test_no_scores_are_not_usable():
    assert not proposals.usable(tf.zeros([0]))


def test_smoothing_bounds_the_weights():
    scores = tf.constant([0.0, 1.0, 8.0])
    weights = proposals.importance_weights(proposals.normalize(proposals.smooth(scores, 1.0)))
    assert tf.reduce_max(weights) <= (3.0 + 1.0) / 1.0 + 1e-6


@METHODS
@pytest.mark.parametrize("wrapped", ["eager", "graph", "xla"])
def test_draws_are_repeatable_and_shaped(method, wrapped):
    function = proposals.RESAMPLING[method]

    def draw(proposal, seed):
        return function(proposal, 5, seed)

    if wrapped != "eager":
        draw = tf.function(draw, jit_compile=wrapped == "xla")
    proposal = proposals.normalize(tf.constant([1.0, 0, 3, 2]))
    first, second = draw(proposal, [1, 2]), draw(proposal, [1, 2])
    np.testing.assert_array_equal(first.indices, second.indices)
    assert first.indices.dtype == tf.int32 and first.indices.shape == [5]
    expected = 1 / (4 * proposal.numpy()[first.indices.numpy()])
    np.testing.assert_allclose(first.weights, expected, rtol=1e-6)
    assert 1 not in first.indices.numpy()


@METHODS
def test_examples_are_drawn_as_often_as_the_proposal_says(method):
    proposal = tf.constant([0.05, 0.1, 0.0, 0.35, 0.5])
    seeds = tf.stack([tf.range(4000), tf.range(4000)], axis=1)
    draw = tf.function(lambda seed: proposals.RESAMPLING[method](proposal, 4, seed).indices)
    drawn = tf.map_fn(draw, seeds, fn_output_signature=tf.int32).numpy()
    # One of the four draws of each seed: draws of one systematic call depend on each other.
    column = drawn[np.arange(4000), np.random.default_rng(0).integers(4, size=4000)]
    counts = np.bincount(column, minlength=5)
    assert counts[2] == 0
    kept = proposal.numpy() > 0
    assert stats.chisquare(counts[kept], 4000 * proposal.numpy()[kept]).pvalue > 1e-4
    shifted = np.roll(proposal.numpy()[kept], 1)
    assert stats.chisquare(counts[kept], 4000 * shifted).pvalue < 1e-4  # negative control


def test_systematic_counts_never_leave_their_floor_and_ceiling():
    proposal = proposals.normalize(tf.constant(np.random.default_rng(0).exponential(size=20)))
    for seed in range(50):
        indices = proposals.systematic(proposal, 16, tf.constant([seed, 0])).indices
        counts = np.bincount(indices, minlength=20)
        expected = 16 * proposal.numpy()
        assert np.all(counts >= np.floor(expected - 1e-9))
        assert np.all(counts <= np.ceil(expected + 1e-9))


def test_systematic_draws_follow_their_reference():
    proposal = proposals.normalize(tf.constant([1.0, 0, 3, 2, 0]))
    possible = [tuple(i) for i, _ in equations.systematic_draws(proposal.numpy(), 3)]
    for seed in range(100):
        drawn = proposals.systematic(proposal, 3, tf.constant([seed, 1])).indices
        assert tuple(drawn.numpy()) in possible


def test_systematic_draws_vary_less():
    proposal = proposals.normalize(tf.constant(np.random.default_rng(1).exponential(size=64)))
    values = np.random.default_rng(2).normal(size=64)

    def estimates(method):
        for seed in range(300):
            draw = method(proposal, 16, tf.constant([seed, 3]))
            yield np.mean(draw.weights.numpy() * values[draw.indices.numpy()])

    systematic = np.var(list(estimates(proposals.systematic)))
    multinomial = np.var(list(estimates(proposals.multinomial)))
    assert systematic < 0.8 * multinomial


def test_a_last_point_rounded_to_one_still_falls_on_an_example():
    """The largest float32 below 1 as offset: (u + 127)/128 rounds to 1."""
    points = (tf.range(128, dtype=tf.float32) + np.float32(1 - 2**-24)) / 128
    assert points[-1] == 1.0  # the trap exists
    uniform = tf.fill([640], 1 / 640.0)
    for seed in range(200):
        indices = proposals.systematic(uniform, 128, tf.constant([seed, 5])).indices
        assert tf.reduce_max(indices) < 640
