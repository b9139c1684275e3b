"""Memories under scores of any kind: none, infinite, negative, zero, absurd, in any order."""

import math

import hypothesis.strategies as st
import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings

import tf_importance as tfi
from tf_importance.samplers import Visit, base

N = 12
LARGEST_WEIGHT = 100.0
STRATA = np.arange(N) % 3
KINDS = {
    "proportional": tfi.samplers.Proportional,
    "proportional, alpha 8": lambda n: tfi.samplers.Proportional(n, alpha=8.0),
    "rank_based": lambda n: tfi.samplers.RankBased(n, sort_every=1),
    "rank_based, steep": lambda n: tfi.samplers.RankBased(n, 1e12, sort_every=1),
    "rais": lambda n: tfi.samplers.RAIS(n, training_set_size=2 * N),
}
OVER = {
    "strata": lambda: tfi.samplers.Stratified(STRATA),
    "strata over rais": lambda: tfi.samplers.Stratified(STRATA, over=KINDS["rais"](N)),
    "strata over proportional": lambda: tfi.samplers.Stratified(
        STRATA, over=tfi.samplers.Proportional()
    ),
}
SCORES = st.one_of(
    st.sampled_from([math.nan, math.inf, -1.0, 0.0, 1e-38, 1e-20, 1e20, 3e38, 1.0]),
    st.floats(0.0, 10.0, width=32),
)
HISTORIES = st.lists(
    st.lists(st.tuples(st.integers(0, N - 1), SCORES), min_size=4, max_size=4), max_size=24
)


def remember(sampler, history):
    for visits in history:
        indices, scores = zip(*visits)
        weights = np.ones(len(scores), np.float32)
        parts = (np.array(indices), weights, np.array(scores, np.float32))
        sampler.update(Visit(*map(tf.constant, parts)))
        sampler.tend()
    sampler.begin()


def probabilities(sampler):
    """[n] by which a memory draws, exactly: by draws at points that leave no example out."""
    count = 400 * N
    sampler._points = lambda turn: (tf.range(count, dtype=tf.float64) + 0.5) / count
    zero = tf.constant(0, tf.int64)
    number = tf.maximum(tf.cast(sampler.draws, tf.int64), 1)
    drawn = sampler._draw(base.Turn(1, count, number, zero, tf.stack([zero, zero])))
    weights = np.asarray(drawn.weights, np.float64)
    assert np.isfinite(weights).all() and weights.max() <= LARGEST_WEIGHT * (1 + 1e-5)
    found = np.full(N, np.nan)
    found[drawn.indices.numpy()] = 1 / (N * weights)
    return found, drawn


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=10)
@given(history=HISTORIES)
def test_weights_are_bounded_and_every_example_is_within_reach(name, history):
    sampler = KINDS[name](N)
    remember(sampler, history)
    found, drawn = probabilities(sampler)
    if name == "rais" and not sampler.uncertainty_set.numpy().any():
        return  # Passes, in which each has weight 1.
    assert np.isfinite(found).all(), "every example is drawn"
    # And so E[w] = Σ p w = 1, if these are the frequencies.
    assert found.sum() == pytest.approx(1, abs=1e-4)
    counts = np.bincount(drawn.indices.numpy(), minlength=N) / len(drawn.indices)
    np.testing.assert_allclose(counts, found, atol=2 / len(drawn.indices) + 1e-9)
    bad = sum(not (np.isfinite(score) and score >= 0) for visits in history for _, score in visits)
    assert float(sampler.judge.unusable) >= bad


@pytest.mark.parametrize("name", OVER)
@settings(max_examples=6)
@given(history=HISTORIES)
def test_strata_bear_any_scores_too(name, history):
    sampler = OVER[name]()
    sampler.attach(lambda indices: (tf.zeros([tf.size(indices), 1]), tf.gather(STRATA, indices)))
    sampler.build(N)
    remember(sampler, history)
    weights = []
    for number in range(4):
        drawn = sampler.draw(300, seed=number)
        weights.append(drawn.weights.numpy())
    weights = np.concatenate(weights)
    assert np.isfinite(weights).all() and (weights > 0).all()
    assert weights.max() <= 1e4
    # By the floor of shares and the uniform share of the memory: within what 1,200 draws tell.
    assert weights.mean() == pytest.approx(1, abs=0.5)


def visited(sampler, scores):
    """Each example once, and again."""
    for _ in range(3):
        remember(sampler, [list(enumerate(scores))])


@pytest.mark.parametrize("name", ["proportional", "rank_based"])
def test_an_example_without_a_score_is_drawn_as_an_average_one(name):
    """It had the priority of an unvisited one for good."""
    scores = [math.inf, *np.linspace(0.5, 1.5, N - 1)]
    sampler = KINDS[name](N)
    visited(sampler, scores)
    found, _ = probabilities(sampler)
    assert 0.3 < found[0] * N < 3
    assert float(sampler.judge.unusable) == 3


def test_one_absurd_score_does_not_end_rais():
    """Its variance was infinite, c and d became NaN, and all was uniform for ever."""
    rng = np.random.default_rng(0)
    sampler = KINDS["rais"](N)
    usual = np.linspace(0.2, 3.0, N)

    def visits(spoilt=()):
        scores = usual * np.exp(0.1 * rng.normal(size=N))
        for place, score in spoilt:
            scores[place] = score
        return list(enumerate(scores.astype(np.float32)))

    remember(sampler, [visits() for _ in range(4)] + [visits([(3, 1e20)])])
    remember(sampler, [visits() for _ in range(40)])
    found, _ = probabilities(sampler)
    assert np.isfinite(sampler.uncertainty_set.numpy()).all()
    assert np.corrcoef(found, usual)[0, 1] > 0.9
    assert float(sampler.judge.unusable) == 1


def test_one_absurd_score_is_no_priority_for_the_unvisited():
    """Visited examples had weights of thousands, since all others waited at its priority."""
    sampler = KINDS["proportional"](N)
    remember(sampler, [[(0, 1.0), (1, 1e20), (2, 1.0), (3, 1.0)], [(1, 1.0), (4, 1.0)]])
    found, _ = probabilities(sampler)
    np.testing.assert_allclose(found * N, 1.0, rtol=1e-3)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_unvisited_examples_have_the_scale_of_the_others(scale):
    sampler = KINDS["proportional"](N)
    remember(sampler, [[(i, scale) for i in range(4)]])
    found, _ = probabilities(sampler)
    assert found.max() / found.min() < 2


def test_without_any_score_ranks_are_random():
    """They were those of the indices, and sorted data begin with one class."""
    sampler, places = KINDS["rank_based"](N), []
    visited(sampler, [math.nan] * N)
    for _ in range(20):
        sampler.draws.assign_add(1)
        sampler._sort()
        places.append(int(sampler.ranked[0]))
    assert len(set(places)) > 4
    ranks = tfi.samplers.RankBased(1000).ranked.numpy()
    assert abs(np.corrcoef(ranks, np.arange(1000))[0, 1]) < 0.1


def test_a_selection_pressure_ends_where_it_is_to_end():
    falling = tfi.samplers.selection_pressure(100.0, 2.0, 50)
    rising = tfi.samplers.selection_pressure(2.0, 100.0, 50)
    for schedule, last in ((falling, 2.0), (rising, 100.0)):
        for step in (50, 51, 10**6, 10**12):
            assert float(schedule(tf.constant(step, tf.int64))) == pytest.approx(last, rel=1e-5)
        again = keras.optimizers.schedules.deserialize(
            keras.optimizers.schedules.serialize(schedule)
        )
        assert float(again(75)) == pytest.approx(last, rel=1e-5)


@pytest.mark.parametrize("pressure", [lambda number: math.nan, lambda number: 0.0, lambda n: 1e38])
def test_any_pressure_gives_probabilities(pressure):
    sampler = tfi.samplers.RankBased(N, pressure)
    found, _ = probabilities(sampler)
    assert found.sum() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", ["proportional", "rank_based", "rais"])
def test_systematic_draws_vary_less_and_are_as_unbiased(name):
    """On sorted data: the variance of the batch's weighted mean over that of independent draws."""
    size, b = 512, 16
    values = np.linspace(0, 1, size)
    scores = (0.2 + values).astype(np.float32)
    make = {
        "proportional": tfi.samplers.Proportional,
        "rank_based": lambda n, **more: tfi.samplers.RankBased(n, sort_every=1, **more),
        "rais": lambda n, **more: tfi.samplers.RAIS(n, training_set_size=600, **more),
    }[name]
    spread = {}
    for resampling in ("multinomial", "systematic"):
        sampler = make(size, resampling=resampling)
        for _ in range(5):
            indices = tf.range(size, dtype=tf.int64)
            sampler.update(Visit(indices, tf.ones([size]), tf.constant(scores)))
            sampler.tend()
        sampler.draw(b, seed=0)
        draw = tf.function(lambda sampler=sampler: sampler.draw(b, seed=1), autograph=False)
        means = []
        for _ in range(600):
            drawn = draw()
            means.append(np.mean(drawn.weights.numpy() * values[drawn.indices.numpy()]))
        error = np.std(means) / len(means) ** 0.5
        assert abs(np.mean(means) - values.mean()) < 4 * error
        spread[resampling] = np.var(means)
    assert spread["systematic"] < 0.5 * spread["multinomial"]


def test_an_unknown_resampling_is_refused():
    with pytest.raises(ValueError, match="resampling must be one of 'multinomial', 'systematic'"):
        tfi.samplers.Proportional(resampling="stratified")
