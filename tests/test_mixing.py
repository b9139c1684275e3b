"""Strata in files of their own: one weighted stream of them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi

RNG = np.random.default_rng(0)
FEW, MANY = RNG.normal(3, 1, size=(20, 2)), RNG.normal(0, 1, size=(980, 2))


def dataset(x, label, *own):
    x = x.astype(np.float32)
    return tf.data.Dataset.from_tensor_slices((x, np.full(len(x), label, np.float32), *own))


def mixed(**kwargs):
    data = [dataset(FEW, 1.0).shuffle(20), dataset(MANY, 0.0).shuffle(980)]
    return tfi.stratified(data, **({"prior": [0.02, 0.98], "seed": 3} | kwargs))


@pytest.mark.parametrize("prior", [[0.02, 0.98], [20, 980]])
def test_weights_restore_the_prior(prior):
    values, weights, labels = [], [], []
    for x, y, weight in mixed(prior=prior, shares=[0.3, 0.7]).batch(100).take(80):
        values.append(np.sum(x.numpy(), axis=1))
        weights.append(weight.numpy())
        labels.append(y.numpy())
    values, weights, labels = (np.concatenate(part) for part in (values, weights, labels))
    assert np.mean(labels) == pytest.approx(0.3, abs=0.02)
    np.testing.assert_allclose(weights, np.where(labels == 1, 0.02 / 0.3, 0.98 / 0.7), rtol=1e-5)
    truth = 0.02 * FEW.sum(axis=1).mean() + 0.98 * MANY.sum(axis=1).mean()
    error = np.std(weights * values) / np.sqrt(len(values))
    assert abs(np.mean(weights * values) - truth) < 4.5 * error
    # Negative control: without the weights.
    assert abs(np.mean(values) - truth) > 10 * error


def test_by_default_shares_grow_with_the_fourth_root_of_the_prior():
    labels = np.concatenate([y.numpy() for _x, y, _w in mixed().batch(100).take(50)])
    expected = 0.02**0.25 / (0.02**0.25 + 0.98**0.25)
    assert np.mean(labels) == pytest.approx(expected, abs=0.03)


def test_users_sample_weights_multiply():
    data = [dataset(FEW, 1.0, np.full(20, 5.0)), dataset(MANY, 0.0, np.full(980, 2.0))]
    for _x, y, weight in tfi.stratified(data, [0.02, 0.98], shares=[0.5, 0.5]).batch(64).take(3):
        np.testing.assert_allclose(weight, np.where(y == 1, 0.2, 3.92), rtol=1e-5)


@pytest.mark.parametrize("scored", [False, True])
def test_keras_trains_on_it_with_and_without_scores(scored):
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, activation="sigmoid")])
    model = tfi.ISModel(net) if scored else net
    model.compile("sgd", "binary_crossentropy")
    data = mixed().map(lambda x, y, w: (x, y[tf.newaxis], w))
    data = data.apply(tfi.importance_sample(model, 16)) if scored else data.batch(16)
    history = model.fit(data, steps_per_epoch=40, verbose=0).history
    assert np.isfinite(history["loss"][0])


@pytest.mark.parametrize(
    "kwargs, error, message",
    [
        ({"datasets": [dataset(FEW, 1.0)]}, ValueError, "two or more"),
        ({"datasets": [dataset(FEW, 1.0), FEW]}, TypeError, "of tf.data; got"),
        ({"datasets": [dataset(FEW, 1.0), dataset(MANY[:, :1], 0.0)]}, ValueError, "alike"),
        ({"datasets": [tf.data.Dataset.range(3)] * 2}, ValueError, r"\(x, y\)"),
        ({"datasets": [dataset(FEW, 1.0), dataset(MANY, 0.0).take(0)]}, ValueError, "1 is empty"),
        ({"prior": [0.1]}, ValueError, r"prior must be 2 positive.*got \[0.1\]"),
        ({"prior": [0.0, 1.0]}, ValueError, "prior must be 2 positive"),
        ({"shares": [0.5, 0.6]}, ValueError, "shares must sum to 1"),
        ({"shares": [1.0, 0.0]}, ValueError, "shares must be 2 positive"),
    ],
)
def test_what_does_not_fit_is_refused(kwargs, error, message):
    given = {"datasets": [dataset(FEW, 1.0), dataset(MANY, 0.0)], "prior": [0.02, 0.98]} | kwargs
    with pytest.raises(error, match=message):
        tfi.stratified(**given)
