"""Stratified sampling: strata as users give them, unbiased draws, what it composes with."""

import copy
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tests.cases import quick
from tests.reference import strata as reference

N = 400
RNG = np.random.default_rng(0)
Y = (np.arange(N) % 20 == 0).astype(np.int32)
X = (RNG.normal(size=(N, 4)) + Y[:, None]).astype(np.float32)


def model_of(sampler, units=1, **kwargs):
    net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(units)])
    model = tfi.ISModel(net)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, sampler=sampler, **kwargs)
    return model


def drawn(sampler, batches, size=16):
    draw = tf.function(lambda: sampler.draw(size, 3), autograph=False)
    parts = [draw() for _ in range(batches)]
    return (np.stack([part[i].numpy() for part in parts]) for i in (0, 1))


def attached(sampler, x=X, y=Y):
    """The sampler as a dataset of these arrays makes it."""
    sampler.build(len(x))
    sampler.attach(lambda i: (tf.gather(x, i), tf.nest.map_structure(lambda p: tf.gather(p, i), y)))
    return sampler


@pytest.mark.parametrize("shares", [None, {1: 0.25}])
def test_fit_on_arrays_draws_each_stratum_by_its_share_and_weights_it_back(shares):
    sampler = tfi.samplers.Stratified(shares=shares)
    model = model_of(sampler)
    batches = tfi.history_sample((X, Y[:, None]), sampler, 16, seed=1)
    model.fit(batches, epochs=2, verbose=0)
    share = float(sampler.shares[1])
    if shares:
        assert share == pytest.approx(shares[1])
    positives, weights = [], []
    for _, y, told in batches:
        positives.append(float(tf.reduce_mean(tf.cast(y, tf.float32))))
        weights.append(np.where(y[:, 0] == 1, told["weight"], np.nan))
    if shares:
        assert np.mean(positives) == pytest.approx(share, abs=0.02)
        np.testing.assert_allclose(np.nanmax(weights), 0.05 / share, rtol=1e-5)
    assert 0.1 < share < 0.6


def test_fit_takes_arrays_and_logs_the_share_of_the_rarest():
    model = model_of(tfi.samplers.Stratified())
    history = model.fit(X, Y[:, None], batch_size=16, epochs=3, verbose=0).history
    assert len(history["rare_share"]) == 3 and 0.05 < history["rare_share"][-1] < 0.7
    assert history["max_weight"][-1] > 1


@pytest.mark.parametrize("over", [False, True], ids=["alone", "then scored"])
def test_weighted_means_are_unbiased(over):
    sampler = tfi.samplers.Stratified(num_examples=N, shares={1: 0.4})
    model_of(sampler)
    sampler = tfi.samplers.Fresh(32, over=sampler) if over else sampler
    values = (X**2).sum(axis=1) + 10 * Y
    totals, plain = [], []
    for x, y, told in tfi.history_sample((X, Y[:, None]), sampler, 16, seed=2).repeat(20):
        value = np.sum(x.numpy() ** 2, axis=1) + 10 * y.numpy()[:, 0]
        totals.append(np.mean(told["weight"] * value))
        plain.append(np.mean(value))
    error = np.std(totals) / np.sqrt(len(totals))
    assert abs(np.mean(totals) - values.mean()) < 4.5 * error
    # Negative control: without the weights.
    assert abs(np.mean(plain) - values.mean()) > 10 * error


def test_all_examples_of_a_stratum_are_reached_evenly():
    sampler = tfi.samplers.Stratified(np.arange(N) % 4, shares={0: 0.7})
    indices, _ = drawn(sampler, 400)
    counts = np.bincount(indices.ravel(), minlength=N)
    for stratum, share in enumerate([0.7, 0.1, 0.1, 0.1]):
        mine = counts[np.arange(N) % 4 == stratum]
        assert mine.min() > 0
        assert mine.sum() == pytest.approx(share * 6400, abs=20)
        # Several passes in a cycle of 1,100.
        assert mine.max() - mine.min() <= 12


def test_shares_follow_the_scores():
    sampler = tfi.samplers.Stratified(Y, smoothing=1e-3)
    first = float(tf.gather(sampler.shares, 1))
    indices = tf.range(N, dtype=tf.int64)
    for size, expected in [(4.0, 0.05 * 4 / (0.95 * 0.5 + 0.05 * 4)), (0.0, 0.0)]:
        scores = np.where(Y == 1, size, 0.5).astype(np.float32)
        visit = tfi.samplers.Visit(indices, tf.ones([N]), tf.constant(scores))
        update = tf.function(lambda visit=visit: sampler.update(visit), autograph=False)
        for _ in range(600):
            update()
        sampler.draw(16, 0)
        assert float(sampler.shares[1]) == pytest.approx(expected, abs=0.02)
    assert first == pytest.approx(0.05**0.25 / (0.05**0.25 + 0.95**0.25))


LABELS = {
    "column": (Y[:, None], Y),
    "floats": (Y[:, None].astype(np.float32), Y),
    "bool": (Y == 1, Y),
    "one-hot": (np.eye(2, dtype=np.float32)[Y], Y),
    "classes": (np.arange(N) % 7 - 3, np.arange(N) % 7),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_are_strata_by_default(name):
    labels, expected = LABELS[name]
    sampler = attached(tfi.samplers.Stratified(), y=tf.constant(labels))
    np.testing.assert_array_equal(sampler.populations, np.bincount(expected))


def test_of_several_labels_the_rarest_counts():
    several = np.zeros([N, 3], np.float32)
    several[:300, 0], several[200:, 1], several[::20, 2] = 1, 1, 1
    several[:2] = 0
    sampler = attached(tfi.samplers.Stratified(), y=tf.constant(several))
    expected = np.where(several[:, 2], 3, np.where(several[:, 1], 2, np.where(several[:, 0], 1, 0)))
    assert sampler.keys.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(sampler.populations, np.bincount(expected))


def test_a_function_of_one_example_makes_strata():
    asked = []

    def strata(x, y):
        asked.append((x.shape, y.shape))
        return tf.cast(x[0] > 0, tf.int32) + 10 * y

    sampler = attached(tfi.samplers.Stratified(strata), y=tf.constant(Y[:, None]))
    expected = (X[:, 0] > 0) + 10 * Y
    assert set(asked) == {((4,), (1,))}
    keys, sizes = np.unique(expected, return_counts=True)
    np.testing.assert_array_equal(sampler.keys, keys)
    np.testing.assert_array_equal(sampler.populations, sizes)


def test_other_data_are_refused_and_the_same_go_on():
    model = model_of(tfi.samplers.Stratified())
    for batch_size in (16, 32):
        model.fit(X, Y[:, None], batch_size=batch_size, verbose=0)
    with pytest.raises(ValueError, match="made for other data"):
        model.fit(X, np.roll(Y, 1)[:, None], verbose=0)


def test_one_stratum_is_uniform_sampling():
    sampler = tfi.samplers.Stratified(np.zeros(2048, int))
    indices, weights = drawn(sampler, 128)
    assert np.all(weights == 1)
    np.testing.assert_array_equal(np.sort(indices.ravel()), np.arange(2048))


def test_a_stratum_of_one_example_and_more_strata_than_places():
    strata = np.concatenate([[7], np.arange(200) % 100 + 10, np.zeros(199, int)])
    sampler = tfi.samplers.Stratified(strata)
    indices, weights = drawn(sampler, 4000, size=4)
    assert np.all(np.isfinite(weights)) and 0 in indices
    assert len(np.unique(indices)) == N
    assert np.mean(weights) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (
            lambda: tfi.samplers.Stratified(np.zeros(3)).build(4),
            ValueError,
            "each of the 4 examples; got 3",
        ),
        (lambda: tfi.samplers.Stratified([0.5, 1.0]), ValueError, r"not whole, an array of shape"),
        (lambda: tfi.samplers.Stratified(np.zeros([3, 2])), ValueError, r"shape \(3, 2\)"),
        (lambda: tfi.samplers.Stratified(["a", "b"]), TypeError, "array of <U1"),
        (lambda: tfi.samplers.Stratified(smoothing=0), ValueError, "smoothing .* got 0"),
        (lambda: tfi.samplers.Stratified(Y, shares={2: 0.5}), ValueError, r"got \[2\]"),
        (lambda: tfi.samplers.Stratified(Y, shares={1: 1.5}), ValueError, "sum to 1"),
        (lambda: tfi.samplers.Stratified(Y, shares={0: 0.2, 1: 0.2}), ValueError, "sum to 1"),
        (lambda: tfi.samplers.Stratified(Y, shares={1: 0.0}), ValueError, "positive"),
        (lambda: attached(tfi.samplers.Stratified(), y=X[:, :1]), ValueError, "not whole"),
        (lambda: attached(tfi.samplers.Stratified(), y=X), ValueError, "not all 0 or 1"),
        (lambda: attached(tfi.samplers.Stratified(), y={"a": Y}), ValueError, "several parts"),
        (lambda: attached(tfi.samplers.Stratified(lambda x, y: x)), ValueError, r"float32 \(4,\)"),
        (lambda: attached(tfi.samplers.Stratified(lambda x, y: x[0])), TypeError, "float32. Cast"),
        (lambda: attached(tfi.samplers.Stratified(lambda x, y: [y, y])), ValueError, r"\(2,\)"),
    ],
)
def test_what_is_no_stratum_is_refused_by_name(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_users_sample_weights_multiply_and_class_weights_too():
    own = RNG.gamma(1.0, size=N).astype(np.float32)
    sampler = tfi.samplers.Stratified(shares={1: 0.25})
    model_of(sampler)
    for _x, y, told in tfi.history_sample((X, Y[:, None], own), sampler, 16, seed=0).take(3):
        expected = np.where(y[:, 0] == 1, 0.05 / 0.25, 0.95 / 0.75)
        np.testing.assert_allclose(told["importance"], expected, rtol=1e-5)
        np.testing.assert_allclose(told["weight"], expected * own[told["index"].numpy()], rtol=1e-5)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_copy_goes_on_alike(again):
    sampler = attached(tfi.samplers.Stratified(shares={1: 0.3}))
    sampler.draw(16, 0)
    other = again(sampler)
    for _ in range(3):
        np.testing.assert_array_equal(sampler.draw(16, 0).indices, other.draw(16, 0).indices)


@pytest.mark.slow
def test_a_checkpoint_made_before_the_strata_were_known_is_taken_up(tmp_path):
    def trained(epochs):
        keras.utils.set_random_seed(0)
        sampler = tfi.samplers.Stratified()
        model = model_of(sampler)
        data = tfi.history_sample((X, Y[:, None]), sampler, 16, seed=1)
        checkpoint = tf.train.Checkpoint(model=model)
        if epochs == 2:
            model.fit(data, epochs=2, verbose=0)
        else:
            model.fit(data, epochs=1, verbose=0)
            path = checkpoint.save(str(tmp_path / "at"))
            sampler = tfi.samplers.Stratified()
            model = model_of(sampler)
            tf.train.Checkpoint(model=model).restore(path)
            data = tfi.history_sample((X, Y[:, None]), sampler, 16, seed=1)
            model.fit(data, epochs=1, verbose=0)
        return model.get_weights(), sampler

    whole, sampler = trained(2)
    resumed, other = trained(1)
    for one, two in zip(whole, resumed):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(sampler.shares, other.shares)


def test_the_shares_are_neymans_of_what_the_steps_saw():
    sampler = tfi.samplers.Stratified(Y)
    rng = np.random.default_rng(3)
    indices, scores = rng.integers(N, size=(30, 16)), rng.gamma(1.0, size=(30, 16))
    for row, values in zip(indices, scores):
        visit = tfi.samplers.Visit(tf.constant(row), tf.ones([16]), tf.constant(values, tf.float32))
        sampler.update(visit)
    sampler.draw(16, 0)
    prior = np.array([0.95, 0.05])
    guess = (prior**0.25 / np.sum(prior**0.25) / prior) ** 2
    squares = reference.mean_squares(prior, list(zip(Y[indices], scores)), guess)
    np.testing.assert_allclose(
        sampler.shares, reference.neyman_shares(prior, squares, 0.1), rtol=1e-4
    )


@pytest.mark.parametrize("rescored", quick([False, True], True))
@pytest.mark.slow
def test_a_switch_draws_by_strata_from_the_first_batch_on(rescored):
    keras.utils.set_random_seed(0)
    strata = tfi.samplers.Stratified()
    members = [tfi.samplers.Uniform(), strata]
    members += [tfi.samplers.Fresh(64, over=strata)] if rescored else []
    switch = tfi.switches.Gain(step_seconds=1.0, scoring_seconds=1.0)
    sampler = tfi.samplers.Switched(members, by=switch)
    model = model_of(sampler)
    with pytest.warns(UserWarning, match="learning rate that follows"):
        history = model.fit(X, Y[:, None], batch_size=16, steps_per_epoch=100, verbose=0).history
    # Two groups of 8 are uniform, to be compared with.
    assert history["importance"] == [pytest.approx(1 - 16 / 100)]
    assert history["rare_share"][0] > 0.08


@pytest.mark.slow
def test_a_switch_leaves_strata_that_do_not_pay():
    """The negative control: strata by chance, of which a fixed share is far from the best."""
    keras.utils.set_random_seed(0)
    by_chance = (np.arange(N) % 10 == 3).astype(int)
    strata = tfi.samplers.Stratified(by_chance, shares={1: 0.8})
    switch = tfi.switches.Gain(step_seconds=1.0, scoring_seconds=1.0)
    sampler = tfi.samplers.Switched([tfi.samplers.Uniform(), strata], by=switch)
    model = model_of(sampler)
    with pytest.warns(UserWarning, match="learning rate that follows"):
        history = model.fit(
            X, Y[:, None], batch_size=16, steps_per_epoch=300, epochs=4, verbose=0
        ).history
    assert history["importance"][0] > 0.85 and history["importance"][-1] == 0.0


MEMORIES = {
    "rais": lambda: tfi.samplers.RAIS(training_set_size=800),
    "proportional": lambda: tfi.samplers.Proportional(alpha=1.0),
}


def remembering(name, shares=None):
    """Strata over a memory that has seen all examples several times, with scores of its own."""
    sampler = attached(tfi.samplers.Stratified(over=MEMORIES[name](), shares=shares))
    scores = np.random.default_rng(5).gamma(0.5, size=N).astype(np.float32) + 0.05
    update = tf.function(sampler.update, autograph=False)
    for number in range(200):
        indices = (np.arange(16) + 16 * number) % N
        update(
            tfi.samplers.Visit(tf.constant(indices), tf.ones([16]), tf.constant(scores[indices]))
        )
        sampler.tend()
    return sampler, scores


@pytest.mark.parametrize("name", MEMORIES)
def test_memory_draws_within_strata_and_stays_unbiased(name):
    sampler, scores = remembering(name, {1: 0.3})
    indices, weights = (part.astype(np.float64) for part in drawn(sampler, 1500))
    indices = indices.astype(int)
    assert np.mean(Y[indices]) == pytest.approx(0.3, abs=0.02)
    values = scores.astype(np.float64) ** 2 + 1
    means = np.mean(weights * values[indices], axis=1)
    error = np.std(means) / np.sqrt(len(means))
    assert abs(np.mean(means) - values.mean()) < 4.5 * error
    # Negative controls: without the weights, and with those of the strata alone.
    of_strata = np.where(Y == 1, 0.05 / 0.3, 0.95 / 0.7)[indices]
    for wrong in (np.ones_like(weights), of_strata):
        assert abs(np.mean(wrong * values[indices]) - values.mean()) > 10 * error
    # Within each stratum by what memory knows.
    for stratum in (0, 1):
        counts = np.bincount(indices.ravel(), minlength=N)[Y == stratum]
        assert np.corrcoef(counts, scores[Y == stratum])[0, 1] > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("name", MEMORIES)
def test_probabilities_within_strata_are_what_the_weights_say(name):
    sampler, _ = remembering(name, {1: 0.3})
    indices, weights = drawn(sampler, 1500)
    share, p = np.where(Y == 1, 0.3, 0.7), np.full(N, np.nan)
    p[indices.ravel()] = 1 / (N * weights.ravel().astype(np.float64))
    for stratum in (0, 1):
        assert np.nansum(p[Y == stratum]) == pytest.approx(share[Y == stratum][0], rel=0.01)
    expected = np.nan_to_num(p) * indices.size
    counts = np.bincount(indices.ravel(), minlength=N)
    often = expected > 5
    chi_square = np.sum((counts - expected)[often] ** 2 / expected[often])
    assert chi_square < often.sum() + 5 * np.sqrt(2 * often.sum())


def test_before_memory_knows_anything_strata_are_gone_through_pass_by_pass():
    sampler = attached(tfi.samplers.Stratified(over=MEMORIES["rais"](), shares={1: 0.5}))
    indices, weights = drawn(sampler, 10)
    np.testing.assert_allclose(weights, np.where(Y[indices] == 1, 0.1, 1.9), rtol=1e-5)


@pytest.mark.slow
def test_fit_by_strata_over_memory_resumes_bit_for_bit(tmp_path):
    def made():
        keras.utils.set_random_seed(0)
        memory = tfi.samplers.RAIS(training_set_size=200)
        sampler = tfi.samplers.Stratified(over=memory)
        return model_of(sampler), tfi.history_sample((X, Y[:, None]), sampler, 16, seed=1), memory

    whole, data, memory = made()
    whole.fit(data, epochs=4, verbose=0)
    assert np.any(memory.uncertainty_set), "c and d are there"
    first, data, _ = made()
    first.fit(data, epochs=3, verbose=0)
    path = tf.train.Checkpoint(model=first).save(str(tmp_path / "at"))
    second, data, _ = made()
    tf.train.Checkpoint(model=second).restore(path)
    second.fit(data, epochs=1, verbose=0)
    for one, two in zip(whole.get_weights(), second.get_weights()):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    "over, error, message",
    [
        (3, TypeError, "over must be a sampler.*got 3"),
        (tfi.samplers.Uniform(), ValueError, "RAIS or Proportional; got a Uniform"),
        (tfi.samplers.Stratified(), ValueError, "got a Stratified"),
    ],
)
def test_what_cannot_draw_within_strata_is_refused(over, error, message):
    with pytest.raises(error, match=message):
        tfi.samplers.Stratified(over=over)


def test_which_example_a_memory_draws_does_not_depend_on_the_place():
    """Of a stratum that has no place in most batches: all of it is in reach."""
    flipped = 1 - Y
    memory = tfi.samplers.Proportional(alpha=1.0)
    sampler = attached(tfi.samplers.Stratified(flipped, memory, shares={0: 0.1}))
    indices, _ = drawn(sampler, 1500, size=4)
    counts = np.bincount(indices.ravel(), minlength=N)[flipped == 0]
    assert counts.min() > 0.3 * counts.mean()
