"""Unbiasedness: by enumeration of every draw on tiny pre-samples, by Monte Carlo on a net."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tests.cases import quick
from tests.reference import equations
from tf_importance import proposals

B, b = 4, 2
RNG = np.random.default_rng(3)
X = RNG.normal(size=(B, 3)).astype(np.float32)
Y = np.array([0, 1, 1, 0], np.int32)
SAMPLE_WEIGHTS = np.array([0.5, 2.0, 0.0, 1.5], np.float32)
DRAWS = {"multinomial": equations.enumerate_draws, "systematic": equations.systematic_draws}


def softmax_model(scorer, reduction, units=2, inputs=3):
    net = keras.Sequential([keras.Input((inputs,)), keras.layers.Dense(units)])
    model = tfi.ISModel(net, scorer=scorer)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)
    model.compile("sgd", loss)
    return model


def gradient(model, x, y, weights) -> np.ndarray:
    """The gradient that a training step follows, flattened."""
    x, y, weights = tf.constant(x), tf.constant(y), tf.constant(weights)
    with tfi.layers.importance_weights(weights), tf.GradientTape() as tape:
        loss = model.compute_loss(x, y, model(x, training=True), weights)
    parts = tape.gradient(loss, model.trainable_variables)
    return np.concatenate([np.ravel(part) for part in parts]).astype(np.float64)


def one_after_another(table):
    """A resampling that goes through a table of draws."""
    table, row = tf.constant(table, tf.int32), tf.Variable(0)

    def resample(proposal, size, seed):
        indices = table[row.assign_add(1) - 1]
        return proposals.Draw(indices, tf.gather(proposals.importance_weights(proposal), indices))

    return resample


@pytest.mark.parametrize("weighted", [False, True], ids=["", "sample_weight"])
@pytest.mark.parametrize("reduction", quick(["sum_over_batch_size", "sum"], "sum"))
@pytest.mark.parametrize("resampling", sorted(DRAWS))
@pytest.mark.parametrize("scorer", sorted(tfi.scorers.BY_NAME))
def test_the_mean_over_all_draws_is_the_full_gradient(scorer, resampling, reduction, weighted):
    model = softmax_model(tfi.scorers.BY_NAME[scorer], reduction)
    sample_weights = SAMPLE_WEIGHTS if weighted else np.ones(B, np.float32)
    scores = sample_weights * model.scorer(model, tf.constant(X), tf.constant(Y)).numpy()
    draws = list(DRAWS[resampling](scores / scores.sum(), b))
    data = (X, Y, SAMPLE_WEIGHTS) if weighted else (X, Y)
    batches = (
        tf.data.Dataset.from_tensor_slices(data)
        .repeat(len(draws))
        .apply(
            tfi.importance_sample(
                model,
                b,
                B,
                tau_threshold="always",
                resampling=one_after_another([indices for indices, _ in draws]),
                seed=0,
            )
        )
    )
    expected = np.zeros(8)
    for (x, y, weights), (indices, probability) in zip(batches, draws):
        np.testing.assert_array_equal(x, X[indices])
        expected += probability * gradient(model, x, y, weights)
    full = gradient(model, X, Y, sample_weights)
    full *= b / B if reduction == "sum" else 1
    np.testing.assert_allclose(expected, full, rtol=1e-4, atol=1e-6)
    unweighted = sum(
        probability * gradient(model, X[i], Y[i], np.ones(b, np.float32))
        for i, probability in draws
    )
    assert np.abs(unweighted - full).max() > 1e-3  # negative control


def test_two_draws_of_the_enumeration_sum_to_one():
    proposal = np.array([0.1, 0.2, 0.3, 0.4])
    for draws in DRAWS.values():
        np.testing.assert_allclose(sum(p for _, p in draws(proposal, b)), 1)
    pairs = {tuple(i) for i, _ in equations.enumerate_draws(proposal, b)}
    assert pairs == set(itertools.product(range(B), repeat=b))


def z_scores(estimates: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Of the mean of estimates [n, d] against truth [d], along a few fixed directions."""
    directions = np.random.default_rng(0).normal(size=(truth.size, 6))
    projected = (estimates - truth) @ directions
    return projected.mean(axis=0) / (projected.std(axis=0, ddof=1) / np.sqrt(len(projected)))


@pytest.mark.slow
@pytest.mark.parametrize("resampling", sorted(DRAWS))
@pytest.mark.parametrize("scorer", sorted(tfi.scorers.BY_NAME))
def test_a_nets_gradient_is_unbiased_by_monte_carlo(scorer, resampling, blobs):
    """|z| < 4.5 along six directions; with no weights or their roots, beyond."""
    points, labels = blobs[0][:64], blobs[1][:64]
    net = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(4)]
    )
    model = tfi.ISModel(net, scorer=tfi.scorers.BY_NAME[scorer])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.5), loss)
    model.fit(points, labels, epochs=8, verbose=0)
    batches = (
        tf.data.Dataset.from_tensor_slices((points, labels))
        .repeat(600)
        .apply(
            tfi.importance_sample(
                model, 8, 64, tau_threshold="always", resampling=resampling, seed=0
            )
        )
    )
    truth = gradient(model, points, labels, np.ones(64, np.float32))
    step = tf.function(lambda x, y, w: _flat_gradient(model, x, y, w))
    estimates = {"right": [], "none": [], "roots": []}
    for x, y, weights in batches:
        estimates["right"].append(step(x, y, weights))
        estimates["none"].append(step(x, y, tf.ones_like(weights)))
        estimates["roots"].append(step(x, y, tf.sqrt(weights)))
    found = {name: z_scores(np.array(e, np.float64), truth) for name, e in estimates.items()}
    assert np.abs(found["right"]).max() < 4.5
    assert np.abs(found["none"]).max() > 6
    assert np.abs(found["roots"]).max() > 4.5


def _flat_gradient(model, x, y, weights):
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x, y, model(x, training=True), weights)
    return tf.concat(
        [tf.reshape(g, [-1]) for g in tape.gradient(loss, model.trainable_variables)], axis=0
    )
