"""Ways to train on rare classes: each predicts the probabilities of the data as they are."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainers import calibration, rare_classes, rare_sampling
from trainers.datasets import rare
from trainers.rare_sampling import METHODS

N, SHARE = 4000, 0.03


@pytest.fixture(scope="module")
def data() -> rare.Rare:
    """Two Gaussians: the log odds are log π₁/π₀ + 2 (x₀ − 1), known exactly."""
    rng = np.random.default_rng(0)

    def part(size: int) -> rare.Part:
        y = (np.arange(size) % round(1 / SHARE) == 0).astype(np.int32)
        x = rng.normal(size=(size, 2)) + 2.0 * y[:, np.newaxis] * [1, 0]
        return rare.Part(x.astype(np.float32), y, np.ones(size, np.float32))

    return rare.Rare(part(N), part(N), part(8000), num_classes=2)


def _true_logits(data: rare.Rare) -> np.ndarray:
    x, prior = data.test.x, data.prior
    odds = np.log(prior[1] / prior[0]) + 2 * (x[:, 0] - 1)
    return np.stack([np.zeros_like(odds), odds], axis=1)


def _settings(parser_of, *arguments: str):
    parse = parser_of(rare_classes.define)
    return parse("--batch_size=32", "--learning_rate=0.02", *arguments)


def _net() -> keras.Model:
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="logits")])


_FAST = ("uniform", "down_sampled", "strata")


@pytest.mark.parametrize(
    "name",
    [pytest.param(one, marks=() if one in _FAST else pytest.mark.slow) for one in METHODS],
)
def test_every_method_predicts_by_the_datas_own_prior(parser_of, data, name):
    keras.utils.set_random_seed(1)
    method, net = METHODS[name], _net()
    settings = _settings(parser_of, f"--method={name}", "--presample_size=64")
    prepared = method.prepare(settings, net, data)
    model = prepared.model
    for rate in (0.02, 0.002):
        prepared.told_rate.assign(rate)
        model.fit(prepared.batches, steps_per_epoch=300, verbose=0, shuffle=False)
    logits = rare_classes.Predictor(net, method, data)(data.test.x)
    told = data.test.y, data.test.weights
    best = calibration.log_loss(_true_logits(data), *told)
    assert calibration.log_loss(logits, *told) < 1.1 * best
    predicted = np.exp(logits[:, 1]) / np.exp(logits).sum(axis=1)
    assert predicted.mean() == pytest.approx(data.prior[1], rel=0.3)


def test_logits_that_are_not_moved_back_predict_another_prior(parser_of, data):
    """Negative control of the test above: a plain loss of batches that are half rare."""
    keras.utils.set_random_seed(1)
    settings, net = _settings(parser_of, "--rare_share=0.5"), _net()
    batches = rare_sampling._with_shares(settings, data, np.array([0.5, 0.5]))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    prepared = rare_sampling._trained(settings, net, data, loss, batches)
    prepared.model.fit(batches, steps_per_epoch=300, verbose=0, shuffle=False)
    predicted = tf.nn.softmax(net(data.test.x))[:, 1].numpy()
    assert predicted.mean() > 3 * data.prior[1]


# Equations ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shares", [[0.5, 0.5], [0.9, 0.1]])
def test_the_shifted_loss_is_least_at_the_true_odds(shares):
    """Exactly, of an input with four values: the gradient of the expected loss is 0 there."""
    joint = np.array([[0.4, 0.3, 0.2, 0.07], [0.001, 0.004, 0.01, 0.015]])  # p(y, x)
    prior = joint.sum(axis=1)
    drawn = joint * (np.array(shares) / prior)[:, np.newaxis]

    def gradient(shift) -> np.ndarray:
        loss = rare_sampling.Shifted(shift, reduction="none")
        logits = tf.Variable(np.log(joint).T)
        with tf.GradientTape() as tape:
            of_class = [loss(tf.fill([4], k), tf.convert_to_tensor(logits)) for k in (0, 1)]
            total = sum(tf.reduce_sum(drawn[k] * of_class[k]) for k in (0, 1))
        return tape.gradient(total, logits).numpy()

    np.testing.assert_allclose(gradient(np.log(shares / prior)), 0, atol=1e-7)
    # Negative control.
    assert np.abs(gradient(np.zeros(2))).max() > 0.01


def test_focal_loss_is_that_of_its_paper():
    logits, labels = np.array([[1.0, -0.5], [0.2, 0.7], [-3.0, 4.0]]), np.array([0, 0, 1])
    p = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))[np.arange(3), labels]
    expected = np.mean(-((1 - p) ** 1.5) * np.log(p))
    assert float(rare_sampling.Focal(1.5)(labels, tf.constant(logits))) == pytest.approx(expected)


@pytest.mark.parametrize(
    "loss", [rare_sampling.Shifted([0.5, -0.5]), rare_sampling.Focal(2.0)], ids=["shifted", "focal"]
)
def test_losses_are_saved_with_what_they_are(loss):
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    logits, labels = tf.constant([[1.0, 2.0], [0.0, -1.0]]), tf.constant([0, 1])
    assert float(again(labels, logits)) == float(loss(labels, logits))


# Batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shares", [[0.75, 0.25], [0.9, 0.1]])
def test_batches_have_the_shares_and_each_class_passes(parser_of, data, shares):
    settings, share = _settings(parser_of), shares[1]
    batches = rare_sampling._with_shares(settings, data, np.array(shares))
    x, y = (np.concatenate(part) for part in zip(*batches.take(100).as_numpy_iterator()))
    assert len(y) == 3200
    # Three standard deviations; none where each batch has as many.
    whole = share * 32 == int(share * 32)
    deviation = 0 if whole else 3 * np.sqrt(share * (1 - share) / 3200)
    assert y.mean() == pytest.approx(share, abs=max(deviation, 1e-9))
    rare_ones = x[y == 1]
    of_class = int((data.train.y == 1).sum())
    assert len(np.unique(rare_ones[:of_class], axis=0)) == of_class


@pytest.mark.parametrize("prior", [[0.9, 0.08, 0.02], [0.1, 0.6, 0.3]])
def test_rare_shares_are_divided_as_the_data_divide_them(parser_of, prior):
    prior = np.array(prior)
    wanted = rare_sampling._rare_shares(_settings(parser_of, "--rare_share=0.4"), prior)
    common = np.argmax(prior)
    assert wanted.sum() == pytest.approx(1) and wanted[common] == pytest.approx(0.6)
    others = np.delete(wanted, common), np.delete(prior, common)
    np.testing.assert_allclose(others[0] / 0.4, others[1] / others[1].sum())


def test_a_net_begins_with_the_priors_probabilities(parser_of, data):
    net = _net()
    METHODS["uniform"].prepare(_settings(parser_of), net, data)
    np.testing.assert_allclose(tf.nn.softmax(net(np.zeros([1, 2])))[0], data.prior, rtol=1e-5)
