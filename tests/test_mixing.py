"""Strata in files of their own: one weighted stream of them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_importance as tfi
from tf_importance import marks

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
        ({"datasets": [dataset(FEW, 1.0), FEW]}, TypeError, "a tf.data.Dataset; got"),
        ({"datasets": [dataset(FEW, 1.0), dataset(MANY[:, :1], 0.0)]}, ValueError, "alike"),
        ({"datasets": [tf.data.Dataset.range(3)] * 2}, ValueError, r"\(x, y\)"),
        ({"datasets": [dataset(FEW, 1.0), dataset(MANY, 0.0).take(0)]}, ValueError, "1 has no"),
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


# Shares that are learned ------------------------------------------------------------------------


def compiled(rate=0.1) -> tfi.ISModel:
    keras.utils.set_random_seed(0)
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model = tfi.ISModel(net)
    model.compile(keras.optimizers.SGD(rate), keras.losses.BinaryCrossentropy(from_logits=True))
    return model


def learned(model, *own, **kwargs):
    few, many = ([np.full(20, 5.0)], [np.full(980, 2.0)]) if own else ((), ())
    data = [dataset(FEW, 1.0, *few).shuffle(20), dataset(MANY, 0.0, *many).shuffle(980)]
    data = [one.map(lambda x, y, *w: (x, y[tf.newaxis], *w)) for one in data]
    return tfi.stratified(data, **({"prior": [0.02, 0.98], "seed": 3, "model": model} | kwargs))


@pytest.mark.parametrize("rows", [2, 64])
def test_an_example_has_the_weight_and_the_stratum_of_its_own_dataset(rows, monkeypatch):
    """However far the pipelines are apart, while shares change from block to block."""
    monkeypatch.setattr(tfi.mixing, "_KEPT", rows)
    model = compiled()
    batches = learned(model).batch(64)
    boxes = marks.found(batches).reservoirs
    seen = set()
    for number, (_x, y, told) in enumerate(batches.take(60)):
        np.testing.assert_array_equal(told["stratum"], 1 - y.numpy()[:, 0])
        # What steps would have seen, another thing each time.
        scores = tf.constant([[number % 7 + 0.1, 1.0]])
        boxes.scores.take_up(tf.constant([[0, 1]]), scores)
        of_rare = told["weight"].numpy()[told["stratum"].numpy() == 0]
        seen |= set(np.round(of_rare, 5))
    assert len(seen) > 5, "shares have changed"
    if rows == 64:
        planned = boxes.shares.numpy()[: int(boxes.planned), 0]
        assert seen <= set(np.round(np.float32(0.02) / planned, 5))


def test_any_stretch_has_the_share_and_weights_restore_the_prior():
    batches = learned(compiled()).batch(64)
    boxes = marks.found(batches).reservoirs
    counts, means, values = [], [], []
    for x, y, told in batches.take(200):
        counts.append(float(np.sum(y)))
        means.append(float(np.mean(told["weight"])))
        values.append(np.mean(told["weight"].numpy() * x.numpy().sum(axis=1)))
    share = float(boxes.rare_share)
    assert np.mean(counts) == pytest.approx(64 * share, rel=0.03)
    # Far less than the 3.5 of independent draws.
    assert np.std(counts) < 1.5
    assert np.mean(means) == pytest.approx(1, abs=0.01)
    truth = 0.02 * FEW.sum(axis=1).mean() + 0.98 * MANY.sum(axis=1).mean()
    assert abs(np.mean(values) - truth) < 5 * np.std(values) / np.sqrt(len(values))


def test_shares_are_neymans_of_what_steps_see():
    model = compiled(rate=0.0)
    model.net.set_weights([np.array([[0.5], [0.5]]), np.array([-2.0])])
    batches = learned(model).batch(32)
    history = model.fit(batches, steps_per_epoch=150, epochs=2, verbose=0).history

    def root_mean_square(x, y):
        p = 1 / (1 + np.exp(-(0.5 * x.sum(axis=1) - 2)))
        return np.sqrt(np.mean((p - y) ** 2))

    spread = np.array([0.02 * root_mean_square(FEW, 1), 0.98 * root_mean_square(MANY, 0)])
    best = (spread / spread.sum() + 0.1 * np.array([0.02, 0.98])) / 1.1
    assert history["rare_share"][1] == pytest.approx(best[0], rel=0.15)
    assert history["importance"] == [0.0, 0.0]


def test_training_learns_and_a_second_fit_goes_on():
    model = compiled(rate=0.5)
    batches = learned(model).batch(32)
    first = model.fit(batches, steps_per_epoch=60, verbose=0).history
    blocks = int(marks.found(batches).reservoirs.planned)
    second = model.fit(batches, steps_per_epoch=60, verbose=0).history
    assert second["loss"][0] < 0.5 * first["loss"][0]
    assert int(marks.found(batches).reservoirs.planned) > blocks >= 60 * 32 // 512
    # As a class is learned its share falls.
    assert second["rare_share"][0] < 0.3


def test_users_sample_weights_multiply_where_shares_are_learned():
    for _x, y, told in learned(compiled(), True).batch(64).take(3):
        own = np.where(y[:, 0] == 1, 5, 2)
        np.testing.assert_allclose(told["weight"], told["importance"] * own, rtol=1e-6)
        np.testing.assert_array_equal(told["importance"], told["memory"])


def test_learned_shares_need_a_model_with_scores():
    with pytest.raises(TypeError, match="must be a tfi.ISModel"):
        learned(keras.Sequential([keras.layers.Dense(1)]))
    with pytest.raises(ValueError, match="learned with a model; got .* Give either"):
        learned(compiled(), shares=[0.5, 0.5])
