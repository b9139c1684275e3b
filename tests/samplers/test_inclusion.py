"""Laws of passes over a part of the data: probabilities, exact unbiasedness, InfoBatch's rule."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tests.reference import inclusion as reference
from tf_importance import inclusion
from tf_importance.samplers import Visit

N, BATCH = 40, 8
RNG = np.random.default_rng(0)
SCORES = RNG.gamma(0.5, 1.0, N).astype(np.float32)
TINY = np.array([0.1, 3.0, 0.5, 0.0, 1.0], np.float32)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def told(sampler, scores=SCORES):
    """A sampler in whose memory each example has its score, at the beginning of a pass."""
    indices = tf.range(len(scores), dtype=tf.int64)
    sampler.update(Visit(indices, tf.ones(len(scores)), tf.constant(scores)))
    return sampler


def a_pass(sampler, seed=3):
    """The examples of the next pass, and their weights."""
    first = sampler.draw(1, seed)
    rest = int(sampler.sizes_of_passes[1]) - 1
    if rest == 0:
        return tuple(part.numpy() for part in first)
    others = sampler.draw(rest, seed)
    return tuple(np.concatenate(parts) for parts in zip(first, others))


# Probabilities ------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(
    "scores",
    [
        SCORES,
        TINY,
        np.ones(7),
        np.zeros(7),
        [5.0],
        [1e30, 1.0, 1.0, 1e-30],
        [-1.0, 2.0, 3.0, -1.0, 10.0],
        [-1.0, -1.0],
    ],
    ids=["gamma", "tiny", "equal", "zero", "one", "absurd", "some unknown", "unknown"],
)
def test_probabilities_are_proportional_up_to_1(scores, share):
    scores = np.asarray(scores, np.float32)
    found = inclusion.proportional(tf.constant(scores), share, 0.5).numpy()
    np.testing.assert_allclose(found, reference.proportional(scores, share, 0.5), rtol=1e-6)
    known = scores >= 0
    assert np.all(found[~known] == 1)
    assert found.max() <= 1
    if known.any():
        wanted = min(max(share * known.sum(), 1.0), known.sum())
        assert found[known].sum() == pytest.approx(wanted, rel=1e-6)
        assert found.min() >= min(share, wanted / known.sum()) / 3 - 1e-9, "c/(1 + c) = 1/3"


def included_at(probabilities):
    """Of all offsets u: how long each set of kept examples holds, exactly."""
    ends = np.concatenate([[0.0, 1.0], (1 - np.cumsum(probabilities)) % 1])
    breaks = np.unique(ends)
    for low, high in itertools.pairwise(breaks):
        if high - low > 1e-12:
            middle = tf.constant((low + high) / 2, tf.float64)
            yield high - low, inclusion.systematic(tf.constant(probabilities), middle).numpy()


@pytest.mark.parametrize("share", [0.25, 0.5, 0.77])
def test_each_is_kept_with_its_probability_exactly(share):
    probabilities = reference.proportional(TINY, share, 0.5)
    total = sum(length * kept for length, kept in included_at(probabilities))
    np.testing.assert_allclose(total, probabilities, atol=1e-9)
    sizes = {int(kept.sum()) for _, kept in included_at(probabilities)}
    wanted = probabilities.sum()
    assert sizes <= {int(np.floor(wanted + 1e-9)), int(np.ceil(wanted - 1e-9))}


def test_a_pass_is_unbiased_exactly():
    """Over all orders and all offsets: E[mean over the kept of M/(n π) v] = mean(v)."""
    probabilities = reference.proportional(TINY, 0.5, 0.5)
    values = np.array([1.0, -2.0, 5.0, 0.5, 3.0])
    weighted, plain = [], []
    for order in itertools.permutations(range(5)):
        order = np.array(order)
        for length, kept in included_at(probabilities[order]):
            chosen = order[kept]
            weights = len(chosen) / (5 * probabilities[chosen])
            weighted.append(length * np.mean(weights * values[chosen]))
            plain.append(length * np.mean(values[chosen]))
    assert np.sum(weighted) / 120 == pytest.approx(values.mean(), rel=1e-9)
    # Negative control: without the weights it leans towards large scores.
    assert abs(np.sum(plain) / 120 - values.mean()) > 0.3


# Passes -------------------------------------------------------------------------------------


def test_a_pass_has_each_kept_example_once_with_its_weight():
    sampler = told(tfi.samplers.Inclusion(N))
    probabilities = reference.proportional(SCORES, 0.5, 0.5)
    passes = [a_pass(sampler) for _ in range(4)]
    for indices, weights in passes:
        assert len(indices) == len(set(indices)) == N // 2
        np.testing.assert_allclose(weights, 0.5 / probabilities[indices], rtol=1e-5)
        assert set(np.flatnonzero(probabilities == 1)) <= set(indices)
    assert len({tuple(sorted(indices)) for indices, _ in passes}) > 1, "each chooses anew"


def test_passes_are_unbiased_in_the_long_run():
    sampler = told(tfi.samplers.Inclusion(N))
    values = SCORES**2 + 1
    draw = tf.function(lambda: sampler.draw(N // 2, 5), autograph=False)
    means, plain = [], []
    for _ in range(400):
        indices, weights = (part.numpy() for part in draw())
        means.append(np.mean(weights * values[indices]))
        plain.append(np.mean(values[indices]))
    error = np.std(means) / np.sqrt(len(means))
    assert abs(np.mean(means) - values.mean()) < 4.5 * error
    # Without replacement it varies less than independent draws by the same probabilities would.
    p = reference.proportional(SCORES, 0.5, 0.5) / (N / 2)
    independent = np.sqrt((np.sum(values**2 / (N**2 * p)) - values.mean() ** 2) / (N / 2))
    assert np.std(means) < 0.8 * independent
    # Negative control.
    assert abs(np.mean(plain) - values.mean()) > 10 * error


def test_the_first_pass_has_all_examples_whatever_the_sizes_of_batches():
    x = np.arange(N, dtype=np.float32)[:, None]
    source = (x, np.zeros(N, np.int32))
    sampler = tfi.samplers.Inclusion()
    seen = []
    for size, count in ((4, 3), (7, 2), (2, 7)):
        batches = tfi.history_sample(source, sampler, size)
        for _, (inputs, _, drawn) in zip(range(count), batches):
            seen += inputs.numpy()[:, 0].astype(int).tolist()
            assert np.all(drawn["weight"] == 1)
            sampler.journal.write(drawn["row"][0], tf.ones(size), [tf.constant(1.0)] * 3)
    assert sorted(seen) == list(range(N))


def test_an_example_that_was_never_visited_is_in_each_pass():
    scores = SCORES.copy()
    scores[[3, 17]] = -1
    sampler = tfi.samplers.Inclusion(N)
    visited = tf.constant(np.flatnonzero(scores >= 0), tf.int64)
    sampler.update(Visit(visited, tf.ones(N - 2), tf.gather(scores, visited)))
    for _ in range(5):
        indices, weights = a_pass(sampler)
        assert {3, 17} <= set(indices)
        assert np.all(weights[np.isin(indices, [3, 17])] < 1)


@pytest.mark.parametrize("kind", [tfi.samplers.Inclusion, tfi.samplers.InfoBatch])
def test_the_last_passes_are_full(kind):
    sampler = told(kind(N, until=0.5, batches=20))
    batches = [sampler.draw(BATCH, 3) for _ in range(25)]
    # Passes that begin from batch 10 on; the one before ends within 5 batches.
    late = [b.weights.numpy() for b in batches[15:]]
    assert np.all(np.concatenate(late) == 1)
    assert np.any(batches[0].weights.numpy() != 1)
    order = np.concatenate([b.indices.numpy() for b in batches])
    start = int(sampler.starts[1])
    assert sorted(order[start - N : start]) == list(range(N))


def test_by_default_passes_go_on_without_an_end():
    sampler = told(tfi.samplers.Inclusion(N))
    assert all(len(a_pass(sampler)[0]) == N // 2 for _ in range(6))


def _blobs(size=256):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(size, 6)).astype(np.float32)
    return x, (x @ rng.normal(size=(6, 3))).argmax(axis=1)


def _model(sampler, scorer=tfi.scorers.upper_bound):
    net = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)]
    )
    model = tfi.ISModel(net, scorer=scorer)
    model.compile(keras.optimizers.SGD(0.2), LOSS, sampler=sampler)
    return model


def test_fit_tells_how_long_the_training_is():
    x, y = _blobs()
    sampler = tfi.samplers.Inclusion()
    history = _model(sampler).fit(x, y, batch_size=16, epochs=8, verbose=0).history
    assert int(sampler.expected) == 8 * 16
    assert history["kept"][3] == pytest.approx(0.5, abs=0.02)
    assert history["kept"][-1] == 1
    # An epoch is as long as ever.
    assert int(sampler.steps) == 8 * 16


@pytest.mark.slow
def test_a_second_training_begins_where_the_first_one_ended():
    x, y = _blobs()
    sampler = tfi.samplers.Inclusion()
    model = _model(sampler)
    model.fit(x, y, batch_size=16, epochs=2, verbose=0)
    model.fit(x, y, batch_size=16, steps_per_epoch=10, epochs=3, initial_epoch=1, verbose=0)
    assert int(sampler.expected) == 2 * 16 + 2 * 10
    given = tfi.samplers.Inclusion(batches=1000)
    _model(given).fit(x, y, batch_size=16, epochs=1, verbose=0)
    assert int(given.expected) == 1000


@pytest.mark.slow
def test_fresh_scores_go_on_top():
    x, y = _blobs()
    sampler = tfi.samplers.Fresh(32, over=tfi.samplers.Inclusion())
    model = _model(sampler)
    history = model.fit(x, y, batch_size=16, epochs=6, verbose=0).history
    assert int(sampler.memory.expected) == 6 * 16
    assert np.isfinite(history["loss"]).all() and history["loss"][-1] < history["loss"][0]


@pytest.mark.parametrize("kind", [tfi.samplers.Inclusion, tfi.samplers.InfoBatch])
def test_what_needs_the_probability_of_any_example_refuses_it(kind):
    with pytest.raises(ValueError, match=kind.__name__):
        tfi.samplers.Stratified(over=kind())
    with pytest.raises((TypeError, ValueError), match=kind.__name__):
        tfi.samplers.Switched([tfi.samplers.Uniform(), kind()], by=tfi.switches.Gain())


# InfoBatch ----------------------------------------------------------------------------------


def test_info_batch_is_the_papers_rule():
    sampler = told(tfi.samplers.InfoBatch(N, pruned=0.3))
    low = SCORES < SCORES.mean()
    rng = np.random.default_rng(1)
    times, theirs = np.zeros(N), np.zeros(N)
    for _ in range(200):
        indices, weights = a_pass(sampler)
        kept, expected = reference.info_batch(SCORES, 0.3, rng)
        np.testing.assert_allclose(weights, expected[indices], rtol=1e-6)
        assert len(set(indices)) == len(indices)
        assert abs(low[indices].sum() - 0.7 * low.sum()) < 1
        times[indices] += 1
        theirs[kept] += 1
    assert np.all(times[~low] == 200) and np.all(theirs[~low] == 200)
    # Each with probability 1 − r, as theirs: a binomial of 200.
    error = np.sqrt(0.3 * 0.7 / 200)
    assert np.all(np.abs(times[low] / 200 - 0.7) < 4.5 * error)
    assert abs(times[low].mean() - theirs[low].mean()) / 200 < 4.5 * error / np.sqrt(low.sum())


def test_info_batch_trains_with_its_weights_and_measures_without_their_mean():
    x, y = _blobs()
    sampler = tfi.samplers.InfoBatch(until=1.0)
    model = _model(sampler, tfi.scorers.loss)
    history = model.fit(x, y, batch_size=16, epochs=8, verbose=0).history
    assert 0.5 < history["kept"][-1] < 0.95
    # As unbiased weights are, those that metrics see have a mean of 1.
    batches = tfi.history_sample((x, y), sampler, 16)
    weights, memory = [], []
    for _, _, drawn in batches.take(8):
        weights.append(drawn["weight"].numpy())
        memory.append(drawn["memory"].numpy())
    assert set(np.unique(np.round(weights, 5))) == {1.0, 2.0}
    ratios = np.concatenate(memory) / np.concatenate(weights)
    assert np.all(ratios < 1), "M/n"
    assert np.mean(memory) == pytest.approx(1, abs=0.1)
