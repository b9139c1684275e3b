"""Shares, places and weights of strata, against their equations and by enumeration."""

import numpy as np
import pytest
import tensorflow as tf

from tests.reference import strata as reference
from tf_importance import strata

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_neyman_shares_are_the_equations(count):
    prior, squares = RNG.dirichlet(np.ones(count)), RNG.gamma(0.3, size=count)
    shares = strata.neyman_shares(tf.constant(prior), tf.constant(squares), 0.1).numpy()
    np.testing.assert_allclose(shares, reference.neyman_shares(prior, squares, 0.1))
    assert shares.sum() == pytest.approx(1)
    assert np.max(prior / shares) <= 1.1 / 0.1 + 1e-9, "the bound of the weights"


def test_neyman_shares_make_the_variance_least():
    prior, squares = np.array([0.9, 0.08, 0.02]), np.array([0.01, 1.0, 4.0])
    best = strata.neyman_shares(tf.constant(prior), tf.constant(squares), 1e-9).numpy()

    def variance(shares):
        return np.sum(prior**2 * squares / shares)

    for _ in range(100):
        assert variance(best) <= variance(RNG.dirichlet(np.ones(3))) + 1e-9


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_without_scores_shares_are_the_prior(bad):
    shares = strata.neyman_shares(tf.constant([0.9, 0.1]), tf.constant([bad, bad]), 0.1)
    np.testing.assert_allclose(shares, [0.9, 0.1], rtol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 5, 64])
@pytest.mark.parametrize(
    "shares", [[1.0], [0.25, 0.75], [0.0, 0.6, 0.0, 0.4], [0.013] * 10 + [0.87]]
)
def test_the_mean_of_the_counts_over_all_offsets_is_b_times_the_shares(shares, size):
    offsets, lengths = reference.offsets(shares, size)
    positions = tf.zeros([len(shares)], tf.int64)
    points = strata.points(size, tf.constant(offsets))
    placed = strata.placed(tf.constant(shares), points, positions).strata
    counts = [np.bincount(row, minlength=len(shares)) for row in placed.numpy().reshape(-1, size)]
    expected = np.array(shares) * size
    np.testing.assert_allclose(lengths @ counts, expected, atol=1e-5)
    for row, offset in zip(counts, offsets):
        np.testing.assert_array_equal(row, reference.counts(shares, size, offset))
        assert np.all(row >= np.floor(expected - 1e-5)) and np.all(row <= np.ceil(expected + 1e-5))


def test_the_weighted_mean_over_all_that_may_be_drawn_is_the_mean():
    numbers, values = np.array([0, 0, 0, 1, 2, 2]), RNG.normal(size=6)
    prior = np.bincount(numbers) / 6
    shares, size = np.array([0.2, 0.3, 0.5]), 3
    offsets, lengths = reference.offsets(shares, size)
    points = strata.points(size, tf.constant(offsets))
    placed = strata.placed(tf.constant(shares), points, tf.zeros([3], tf.int64))
    weights = strata.weights(tf.constant(prior), tf.constant(shares)).numpy()
    # Within a stratum each example is as likely as the others.
    means = np.array([values[numbers == k].mean() for k in range(3)])
    batches = placed.strata.numpy().reshape(-1, size)
    assert lengths @ (weights * means)[batches].mean(axis=1) == pytest.approx(values.mean())
    # Negative control: without the weights it is not.
    assert abs(lengths @ means[batches].mean(axis=1) - values.mean()) > 0.01


def test_places_count_on_within_each_stratum():
    shares, positions = tf.constant([0.3, 0.7]), tf.constant([5, 100], tf.int64)
    places = strata.placed(shares, strata.points(10, tf.constant([0.5, 0.5])), positions)
    for stratum, first in [(0, 5), (1, 100)]:
        mine = places.positions.numpy()[places.strata.numpy() == stratum]
        np.testing.assert_array_equal(mine, first + np.arange(len(mine)))


@pytest.mark.parametrize("size", [1, 2, 3, 40, 1023, 1024, 5000])
def test_a_stratum_is_gone_through_pass_by_pass(size):
    cycle = size * -(-1024 // size)
    places = strata.Places(tf.zeros([2 * cycle], tf.int32), tf.range(2 * cycle, dtype=tf.int64))
    found = strata.taken(places, tf.constant([size], tf.int64), tf.constant([1, 2], tf.int64))
    first, second = found.numpy()[:cycle], found.numpy()[cycle:]
    for one in (first, second):
        np.testing.assert_array_equal(np.bincount(one), np.full(size, cycle // size))
    if size > 3:
        assert not np.array_equal(first, second)


def test_strata_of_one_size_go_their_own_ways():
    count = 2000
    numbers = tf.repeat(tf.constant([0, 1]), count)
    places = strata.Places(numbers, tf.tile(tf.range(count, dtype=tf.int64), [2]))
    sizes, seed = tf.constant([count, count], tf.int64), tf.constant([1, 2], tf.int64)
    found = strata.taken(places, sizes, seed).numpy()
    assert np.mean(found[:count] == found[count:]) < 0.01


@pytest.mark.parametrize("size", [2, 5, 300, 3000])
def test_each_example_is_as_likely_at_each_place(size):
    draws = 20_000
    positions = 4096 * tf.range(draws, dtype=tf.int64) + 3
    places = strata.Places(tf.zeros([draws], tf.int32), positions)
    found = strata.taken(places, tf.constant([size], tf.int64), tf.constant([7, 9], tf.int64))
    counts = np.bincount(found.numpy(), minlength=size)
    expected = draws / size
    chi_square = np.sum((counts - expected) ** 2 / expected)
    assert chi_square < size - 1 + 5 * np.sqrt(2 * (size - 1))


@pytest.mark.parametrize("batches", [0, 1, 30])
def test_the_running_mean_squares_are_the_equations(batches):
    prior = np.array([0.9, 0.07, 0.03])
    spread = strata.Spread(3)
    seen = [(RNG.integers(2, size=8), RNG.gamma(1.0, size=8)) for _ in range(batches)]
    for number, (_, scores) in enumerate(seen):
        scores[number % 8] = [np.nan, np.inf, -1.0, 1e30][number % 4]
    if batches > 2:
        seen[2][1][:] = np.nan
    # In two parts, as blocks bring them.
    for part in (seen[: batches // 2], seen[batches // 2 :]):
        if part:
            numbers, scores = (np.stack(one) for one in zip(*part))
            spread.take_up(tf.constant(numbers), tf.constant(scores, tf.float32))
    guess = (prior**0.25 / np.sum(prior**0.25) / prior) ** 2
    expected = reference.mean_squares(prior, seen, guess)
    found = spread.mean_squares(tf.constant(prior, tf.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_what_grows_knows_what_has_room_from_the_start():
    growing, whole = strata.Spread(0, grows=True), strata.Spread(5)
    prior = tf.constant([0.7, 0.1, 0.1, 0.1, 0.0])
    for numbers, scores in (([0, 0], [1.0, 3.0]), ([3, 0], [0.5, 2.0]), ([1, 1], [4.0, 1.0])):
        for spread in (growing, whole):
            spread.take_up(tf.constant([numbers]), tf.constant([scores]))
    assert growing.sums.shape == [None, 2] and len(growing.sums.numpy()) == 4
    np.testing.assert_array_equal(growing.mean_squares(prior), whole.mean_squares(prior))


def test_the_first_shares_are_neymans_by_the_guess():
    prior = tf.constant([0.99, 0.01])
    shares = strata.neyman_shares(prior, strata.Spread(2).mean_squares(prior), 1e-6)
    np.testing.assert_allclose(shares, strata.first_shares(prior), rtol=1e-4)
    assert 0.23 < shares[1] < 0.25


def test_a_stratum_that_nothing_is_known_of_does_no_harm():
    """Room for strata to come, and one that has vanished."""
    spread, prior = strata.Spread(4), tf.constant([0.9, 0.1, 0.0, 0.0])
    spread.take_up(tf.constant([[0, 1, 2]]), tf.constant([[0.1, 1.0, 1.0]]))
    shares = strata.neyman_shares(prior, spread.mean_squares(prior), 0.1).numpy()
    assert np.all(np.isfinite(shares)) and shares[2:].tolist() == [0, 0]
    assert shares.sum() == pytest.approx(1)
