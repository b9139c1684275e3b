"""Memory and fresh scores together: pre-samples that a sampler draws, rescored and drawn again."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tf_importance import marks, step

L = keras.layers
B, b, N = 32, 8, 256
LOSS = "sparse_categorical_crossentropy"


def compiled(sampler, rate=0.2):
    net = keras.Sequential([keras.Input((2,)), L.Dense(8, "tanh"), L.Dense(4, "softmax")])
    model = tfi.ISModel(net)
    schedule = tfi.schedules.GainAdapted(rate)
    model.compile(keras.optimizers.SGD(schedule), LOSS, metrics=["accuracy"], sampler=sampler)
    return model


@pytest.fixture
def points(blobs):
    return tuple(part[:N] for part in blobs)


SAMPLERS = {
    "uniform": tfi.samplers.Uniform,
    "proportional": tfi.samplers.Proportional,
    "rank_based": lambda n: tfi.samplers.RankBased(n, 5.0, sort_every=4, recompute_every=50),
    "rais": lambda n: tfi.samplers.RAIS(n, training_set_size=128),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_training_works(name, points):
    sampler = SAMPLERS[name](N)
    model = compiled(sampler)
    before = model.evaluate(*points, verbose=0)[0]
    batches = tfi.history_sample(
        points, sampler, b, presample_size=B, model=model, seed=0
    ).repeat()
    logs = model.fit(batches, steps_per_epoch=80, epochs=2, verbose=0).history
    assert model.evaluate(*points, verbose=0)[0] < 0.8 * before
    assert np.isfinite(logs["gain"]).all() and np.isfinite(logs["loss"]).all()
    assert int(sampler.steps) == int(sampler.draws) == 160


def drawn_by_steps(model, batches):
    """What the step on a pre-sample trains on: indices, weights, and the pre-sample's scores."""
    drawing = marks.found(batches)

    @tf.function(autograph=False)
    def drawn(*presample):
        made = step.Step(model, presample, drawing)
        return made.data, made.told.indices, made.presample.scores

    return drawn


def test_the_sampler_learns_of_the_whole_pre_sample(points):
    """Every score that was made stands in its memory after the step, and no other."""
    sampler = tfi.samplers.Proportional(N, alpha=1.0, epsilon=1e-6)
    model = compiled(sampler, rate=1e-9)
    batches = tfi.history_sample(points, sampler, b, presample_size=B, model=model, seed=0)
    before = sampler.tree.leaves(tf.range(N)).numpy()[:, 0]
    model.fit(batches, steps_per_epoch=1, verbose=0)
    seen = sampler.journal.plans(tf.constant([0], tf.int64), B).indices.numpy()[0]
    sampler.take_up(1, B)
    after = sampler.tree.leaves(tf.range(N)).numpy()[:, 0]
    assert set(np.flatnonzero(before != after)) == set(seen) and len(set(seen)) > b
    scores = tfi.scorers.upper_bound(model, *map(tf.constant, points)).numpy()
    np.testing.assert_allclose(after[seen], scores[seen] + 1e-6, rtol=1e-4)


def test_what_the_batch_says_of_itself(points):
    sampler = tfi.samplers.Proportional(N)
    model = compiled(sampler)
    sampler.tree.update(tf.range(N), np.stack([np.arange(N) + 1.0, np.zeros(N)], axis=1))
    batches = tfi.history_sample(points, sampler, b, presample_size=B, model=model, seed=0)
    inputs, labels, told = next(iter(batches))
    assert inputs.shape == [B, 2] and np.ptp(told["weight"].numpy()) > 0
    (x, y, weights), index, scores = drawn_by_steps(model, batches)(inputs, labels, told)
    assert x.shape == [b, 2]
    np.testing.assert_array_equal(x, points[0][index])
    np.testing.assert_array_equal(y, points[1][index])
    np.testing.assert_allclose(
        scores, tfi.scorers.upper_bound(model, inputs, labels), rtol=1e-4
    )
    first = told["weight"].numpy()
    worth = scores.numpy() * first
    worth += 0.2 * worth.mean()
    place = [list(told["index"].numpy()).index(one) for one in index.numpy()]
    second = worth.sum() / (B * worth[place])
    np.testing.assert_allclose(weights, first[place] * second, rtol=1e-4)


@pytest.mark.slow
def test_the_weights_multiply_to_an_unbiased_mean(points):
    """z-test over 3,000 batches; the second weight alone must fail it."""
    rng = np.random.default_rng(0)
    sampler = tfi.samplers.Proportional(N, alpha=1.0)
    priorities = rng.gamma(0.7, size=N) + 0.05
    columns = np.stack([priorities, np.zeros(N)], axis=1)
    sampler.tree.update(tf.range(N), columns.astype(np.float32))
    model = compiled(sampler)
    values = points[0][:, 0] + 3 * (points[1] == 3)
    batches = tfi.history_sample(
        points, sampler, b, presample_size=B, model=model, resampling="multinomial", seed=0
    ).repeat()
    right, wrong, step_of = [], [], drawn_by_steps(model, batches)
    for presample in batches.take(3000):
        (_, _, weights), index, _ = step_of(*presample)
        first = dict(zip(presample[2]["index"].numpy(), presample[2]["weight"].numpy()))
        chosen, weights = values[index.numpy()], weights.numpy()
        right.append((weights * chosen).mean())
        wrong.append((weights / [first[one] for one in index.numpy()] * chosen).mean())

    def z(found):
        return (np.mean(found) - values.mean()) / (np.std(found) / np.sqrt(len(found)))

    assert abs(z(right)) < 3.5
    assert abs(z(wrong)) > 5


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run(points):
    weights = []
    for _ in range(2):
        keras.utils.set_random_seed(1)
        sampler = tfi.samplers.RAIS(N, training_set_size=128)
        model = compiled(sampler)
        batches = tfi.history_sample(points, sampler, b, presample_size=B, model=model, seed=5)
        model.fit(batches.repeat(), steps_per_epoch=40, verbose=0)
        weights.append(model.net.get_weights())
    for one, other in zip(*weights):
        np.testing.assert_array_equal(one, other)


def test_wrong_arguments_are_refused(points):
    sampler = tfi.samplers.RAIS(N, training_set_size=128)
    model = compiled(sampler)
    with pytest.raises(TypeError, match="model must be a tfi.ISModel; got None"):
        tfi.history_sample(points, sampler, b, presample_size=B)
    with pytest.raises(ValueError, match="at least batch_size; got 4 and 8"):
        tfi.history_sample(points, sampler, b, presample_size=4, model=model)
    with pytest.raises(ValueError, match="presample_size must be a positive integer; got 0"):
        tfi.history_sample(points, sampler, b, presample_size=0, model=model)
    with pytest.raises(ValueError, match="two batches; got 128"):
        tfi.history_sample(points, sampler, b, presample_size=100, model=model)
