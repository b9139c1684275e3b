"""Strata without weights, logits moved in the loss."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tests.cases import quick
from tf_importance import log_odds

N, b, SHARE = 2000, 32, 0.25
L = keras.losses
BINARY = L.BinaryCrossentropy(from_logits=True)
SPARSE = L.SparseCategoricalCrossentropy(from_logits=True)
ONE_HOT = L.CategoricalCrossentropy(from_logits=True)


@pytest.fixture(scope="module")
def points() -> tuple[np.ndarray, np.ndarray]:
    """The log odds of class 1 are log π₁/π₀ + 2 (x₀ − 1), known exactly."""
    rng = np.random.default_rng(0)
    y = (np.arange(N) % 25 == 0).astype(np.float32)
    x = rng.normal(size=(N, 2)).astype(np.float32)
    x[:, 0] += 2 * y
    return x, y[:, np.newaxis]


def sampler(**how) -> tfi.samplers.Stratified:
    return tfi.samplers.Stratified(**{"shares": {1: SHARE}, "correction": "log_odds", **how})


def compiled(loss=BINARY, outputs=1, chosen=None, rate=0.05, **how) -> tfi.ISModel:
    keras.utils.set_random_seed(0)
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(outputs)])
    model = tfi.ISModel(net)
    model.compile(keras.optimizers.Adam(rate), loss, sampler=chosen or sampler(), **how)
    return model


def _shift(points) -> float:
    prior = points[1].mean()
    return np.log(SHARE / prior) - np.log((1 - SHARE) / (1 - prior))


def test_the_net_learns_the_datas_own_odds(points):
    model = compiled()
    for rate in (0.05, 0.01, 0.002):
        model.optimizer.learning_rate = rate
        model.fit(*points, batch_size=b, epochs=6, verbose=0)
    predicted = tf.sigmoid(model.net(points[0])).numpy()
    assert predicted.mean() == pytest.approx(points[1].mean(), rel=0.15)
    kernel = model.net.get_weights()[0][:, 0]
    np.testing.assert_allclose(kernel, [2, 0], atol=0.35)
    # Negative control: what the moved logits say is a quarter.
    moved = tf.sigmoid(model.net(points[0]) + _shift(points)).numpy()
    assert moved.mean() > 3 * points[1].mean()


@pytest.mark.parametrize("kind", quick(["binary", "sparse", "one-hot"], "binary"))
def test_a_step_is_keras_own_on_the_moved_logits_without_weights(points, kind):
    x, y = points
    prior = np.array([1 - y.mean(), y.mean()])
    shift = np.log(np.array([1 - SHARE, SHARE]) / prior)
    loss, outputs, labels = {
        "binary": (BINARY, 1, y),
        "sparse": (SPARSE, 2, y[:, 0].astype(np.int32)),
        "one-hot": (ONE_HOT, 2, np.eye(2, dtype=np.float32)[y[:, 0].astype(int)]),
    }[kind]
    key = 2 if kind == "one-hot" else 1
    model = compiled(loss, outputs, sampler(shares={key: SHARE}))
    batches = tfi.history_sample((x, labels), model.sampler, b, seed=1)
    moved = shift if outputs == 2 else shift[1:] - shift[:1]
    again = keras.models.clone_model(model.net)
    again.set_weights(model.net.get_weights())
    optimizer = keras.optimizers.Adam(0.05)
    optimizer.build(again.trainable_variables)
    model.fit(batches.take(3), epochs=1, verbose=0, shuffle=False)
    for inputs, expected, _ in tfi.history_sample((x, labels), sampler(shares={key: SHARE}), b,
                                                   seed=1).take(3):  # fmt: skip
        with tf.GradientTape() as tape:
            value = loss(expected, again(inputs) + tf.constant(moved, tf.float32))
        gradients = tape.gradient(value, again.trainable_variables)
        optimizer.apply_gradients(zip(gradients, again.trainable_variables))
    for one, other in zip(model.net.get_weights(), again.get_weights()):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_users_weights_stay(points):
    own = np.random.default_rng(1).uniform(0.5, 2, N).astype(np.float32)
    model = compiled(rate=0.0)
    logs = model.fit(*points, sample_weight=own, batch_size=b, epochs=20, verbose=0).history
    drawn = np.array([1 - SHARE, SHARE])[points[1][:, 0].astype(int)]
    there = np.array([1 - points[1].mean(), points[1].mean()])[points[1][:, 0].astype(int)]
    z = model.net(points[0])[:, 0].numpy() + _shift(points)
    losses = np.logaddexp(0, z) - points[1][:, 0] * z
    expected = np.mean(drawn / there * own * losses)
    assert logs["loss"][-1] == pytest.approx(expected, rel=0.1)


@pytest.mark.slow
def test_evaluation_and_metrics_are_of_the_data_as_they_are(points):
    metric = keras.metrics.BinaryCrossentropy(from_logits=True, name="nll")
    model = compiled(rate=0.0, weighted_metrics=[metric])
    history = model.fit(*points, batch_size=b, epochs=20, validation_data=points, verbose=0).history
    z = model.net(points[0])[:, 0].numpy()
    expected = np.mean(np.logaddexp(0, z) - points[1][:, 0] * z)
    assert history["val_loss"][-1] == pytest.approx(expected, rel=1e-4)
    assert history["nll"][-1] == pytest.approx(expected, rel=0.1)
    assert model.evaluate(*points, verbose=0, return_dict=True)["loss"] == pytest.approx(expected)


@pytest.mark.slow
def test_scores_are_of_the_moved_logits(points):
    """Of three classes, against ‖softmax(z + log a) − onehot‖ by NumPy."""
    x, y = points[0], (np.arange(N) % 10 == 0).astype(np.int32) + (np.arange(N) % 50 == 0)
    model = compiled(SPARSE, 3, sampler(shares={1: 0.3, 2: 0.3}), rate=0.0)
    # By then the first guess has faded.
    model.fit(x, y, batch_size=b, epochs=12, verbose=0)
    prior = np.bincount(y) / N
    z = model.net(x).numpy() + np.log(np.array([0.4, 0.3, 0.3]) / prior)
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    squares = np.sum((p - np.eye(3)[y]) ** 2, axis=1)
    found = model.sampler.scores.mean_squares(tf.constant(prior, tf.float32)).numpy()
    expected = [squares[y == k].mean() for k in range(3)]
    np.testing.assert_allclose(found, expected, rtol=0.15)


# Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how, message",
    [
        ({"shares": None}, "with fixed shares.*shares=None"),
        ({"strata": [0, 1] * (N // 2)}, "strata by label"),
        ({"over": tfi.samplers.Proportional()}, "without a memory"),
        ({"correction": "odds"}, "'weights', 'log_odds'; got 'odds'"),
    ],
)
def test_what_it_is_not_for_is_refused(how, message):
    with pytest.raises(ValueError, match=message):
        sampler(**how)


@pytest.mark.parametrize("over", ["fresh", "switched"])
def test_what_draws_by_weights_refuses_it(over):
    strata = sampler()
    with pytest.raises(ValueError, match="draws by weights, and correction='log_odds' has none"):
        if over == "fresh":
            tfi.samplers.Fresh(64, over=strata)
        else:
            tfi.samplers.Switched([tfi.samplers.Uniform(), strata], by=tfi.switches.Gain())


@pytest.mark.parametrize(
    "loss, outputs, message",
    [
        (L.BinaryCrossentropy(), 1, "with from_logits=True; got"),
        ("mse", 1, "got 'mse'"),
        (BINARY, 3, "strata that are the classes of the logits"),
        (SPARSE, 1, r"got strata \[0, 1\] and 1 logits"),
    ],
)
def test_losses_whose_logits_are_not_those_of_the_strata_are_refused(
    points, loss, outputs, message
):
    model = compiled(loss, outputs)
    before = model.net.get_weights()
    with pytest.raises(ValueError, match=message):
        model.fit(points[0], points[1][:, 0], batch_size=b, epochs=1, verbose=0)
    for one, other in zip(model.net.get_weights(), before):
        np.testing.assert_array_equal(one, other)


def test_a_rate_that_follows_the_gain_is_refused(points):
    model = compiled()
    model.compile(keras.optimizers.SGD(tfi.schedules.GainAdapted(0.1)), BINARY, sampler=sampler())
    with pytest.raises(ValueError, match="the gain is that of weighted batches"):
        model.fit(*points, batch_size=b, epochs=1, verbose=0)


def test_classes_that_are_not_there_are_not_moved():
    found = log_odds.shift(SPARSE, tf.zeros([4, 4]), np.array([0, 2]), np.array([0.5, 3.0]))
    np.testing.assert_allclose(found, [np.log(0.5), 0, np.log(3), 0], rtol=1e-6)
